//! Waiting for conditions.

use std::cell::RefCell;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_env::tokio_env::{TokioEnv, TokioTask};
use lockstep_env::{Env, Task, timeout};

/// How long what happens within a second or two may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
const STALL_LOOK_EVERY: Duration = Duration::from_millis(20);

/// Tries `attempt` again and again until it gives something.
///
/// # Panics
/// `deadline` has passed; `what` says what was waited for.
pub async fn wait_until<T, F>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = TokioEnv::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        match timeout::<TokioEnv, _>(left, attempt()).await {
            Ok(Some(found)) => return found,
            Ok(None) if !left.is_zero() => {}
            _ => panic!("waited in vain for {} s: {what}", deadline.as_secs()),
        }
        TokioEnv::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// [`wait_until`] of what says why it is not there yet: the last that it said is shown when it never comes.
///
/// # Panics
/// As [`wait_until`].
pub async fn wait_until_ok<T, E: Debug, F>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let last = RefCell::new(None);
    let shown = ShownOnPanic(&last);
    let found = wait_until(what, deadline, || {
        let attempt = attempt();
        let last = &last;
        async move { attempt.await.map_err(|reason| *last.borrow_mut() = Some(reason)).ok() }
    })
    .await;
    std::mem::forget(shown);
    found
}

/// Shows what was seen last if a condition never comes true.
pub(crate) struct ShownOnPanic<'a, T: Debug>(pub(crate) &'a RefCell<T>);

impl<T: Debug> Drop for ShownOnPanic<'_, T> {
    fn drop(&mut self) {
        eprintln!("seen last: {:#?}", self.0.borrow());
    }
}

/// Notices when this process itself stood still: what it was to see in that time, it could not.
#[derive(Debug)]
pub struct StallMeter {
    longest_us: Arc<AtomicU64>,
    task: TokioTask<()>,
}

impl StallMeter {
    /// Looks from now on.
    pub fn start() -> Self {
        let longest_us = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&longest_us);
        let task = TokioEnv::spawn(async move {
            loop {
                let due = TokioEnv::now() + STALL_LOOK_EVERY;
                TokioEnv::sleep_until(due).await;
                let late = TokioEnv::now().saturating_duration_since(due);
                noted.fetch_max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { longest_us, task }
    }

    /// For how long it stood still at most.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }
}

impl Drop for StallMeter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Awaits `future`.
///
/// # Panics
/// It takes longer than `deadline`; `what` says what was waited for.
pub async fn within<F: Future>(what: &str, deadline: Duration, future: F) -> F::Output {
    match timeout::<TokioEnv, _>(deadline, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {} s: {what}", deadline.as_secs()),
    }
}

/// The distance between two pieces of load. Nothing is waited for in this way.
pub async fn pause(duration: Duration) {
    TokioEnv::sleep(duration).await;
}
