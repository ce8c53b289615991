//! Threads that write and sync, for [`TokioEnv`](crate::tokio_env::TokioEnv).
//!
//! tokio's blocking pool wakes a thread while it holds the pool's lock. The thread that wakes runs at once, finds the lock taken and sleeps
//! again: two more context switches for every sync, which is what an acknowledged write waits for. Here each thread has a queue of its own.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;
/// The queues of threads that have nothing to do, the one used last at the end.
type Idle = Mutex<Vec<Sender<Job>>>;

/// A pool that is as large as there ever were operations at a time. Its threads end when the last clone is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct SyncThreads {
    idle: Arc<Idle>,
}

fn lock(idle: &Idle) -> MutexGuard<'_, Vec<Sender<Job>>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SyncThreads {
    /// Runs `operation` on a thread. It runs to its end even when the future is dropped.
    pub(crate) async fn run<T, F>(&self, operation: F) -> io::Result<T>
    where
        F: FnOnce() -> io::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let idle = lock(&self.idle).pop();
        let thread = match idle {
            Some(thread) => thread,
            None => spawn()?,
        };
        let (answer, answered) = oneshot::channel();
        let (pool, back) = (Arc::downgrade(&self.idle), thread.clone());
        let job: Job = Box::new(move || {
            let result = operation();
            // Before the answer, so that the next operation finds this thread.
            if let Some(pool) = pool.upgrade() {
                lock(&pool).push(back);
            }
            // Nobody waits any more when the future was dropped.
            let _ = answer.send(result);
        });
        let panicked = || io::Error::other("a disk operation panicked");
        thread.send(job).map_err(|_| panicked())?;
        answered.await.map_err(|_| panicked())?
    }
}

fn spawn() -> io::Result<Sender<Job>> {
    let (jobs, queue) = channel::<Job>();
    let run = move || queue.into_iter().for_each(|job| job());
    std::thread::Builder::new().name("disk".to_owned()).spawn(run)?;
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_thread_does_what_comes_one_after_another() {
        let threads = SyncThreads::default();
        let name = || Ok(std::thread::current().id());
        let first = threads.run(name).await.unwrap();
        for _ in 0..10 {
            assert_eq!(threads.run(name).await.unwrap(), first);
        }
    }

    #[tokio::test]
    async fn operations_at_the_same_time_do_not_wait_for_each_other() {
        let threads = SyncThreads::default();
        let (go_on, gone_on) = channel();
        let waiting = threads.run(move || gone_on.recv().map_err(io::Error::other));
        let other = async {
            assert_eq!(threads.run(|| Ok(7)).await.unwrap(), 7);
            go_on.send(8).unwrap();
        };
        let (first, ()) = tokio::join!(waiting, other);
        assert_eq!(first.unwrap(), 8);
    }

    #[tokio::test]
    async fn errors_come_back_and_a_panic_is_one() {
        let threads = SyncThreads::default();
        let refused = threads.run(|| Err::<(), _>(io::ErrorKind::StorageFull.into())).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        threads.run::<(), _>(|| panic!("on purpose")).await.unwrap_err();
        assert_eq!(threads.run(|| Ok(1)).await.unwrap(), 1);
    }
}
