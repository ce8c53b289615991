//! openraft's asynchronous runtime, on any [`Env`].

use std::any::type_name;
use std::cmp::Ordering;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use lockstep_env::task::Timeout;
use lockstep_env::{Elapsed, Env, TaskFailed, timeout, timeout_at, watch};
use openraft_rt::{AsyncRuntime, OptionalSend, OptionalSync};
use tokio::sync::{mpsc, oneshot};

/// Gives openraft the environment's tasks, time and randomness, and channels that wake in a repeatable order.
pub struct EnvRuntime<E>(PhantomData<fn() -> E>);

impl<E> fmt::Debug for EnvRuntime<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvRuntime<{}>", type_name::<E>())
    }
}

impl<E: Env> AsyncRuntime for EnvRuntime<E> {
    type JoinError = TaskFailed;
    type JoinHandle<T: OptionalSend + 'static> = E::Task<T>;
    type Sleep = E::Sleep;
    type Instant = EnvInstant<E>;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<E, T>;
    type ThreadLocalRng = EnvRng<E>;
    type Mpsc = EnvMpsc;
    type Watch = EnvWatch;
    type Oneshot = EnvOneshot;
    type Mutex<T: OptionalSend + 'static> = EnvMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        E::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        E::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        E::sleep_until(deadline.at)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        timeout::<E, _>(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        timeout_at::<E, _>(deadline.at, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        matches!(join_error, TaskFailed::Panicked(_))
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        EnvRng(PhantomData)
    }

    /// An environment has no executor of its own to make: openraft's tasks run on the one they are started from.
    fn new(_threads: usize) -> Self {
        Self(PhantomData)
    }

    /// Polls on the calling thread. The environment's executor must be entered already if `future` uses it.
    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            std::thread::park();
        }
    }

    /// Runs in a task: the provided method would start a thread, which a simulation cannot allow. openraft calls it for
    /// nothing of its own, and what does block goes through [`lockstep_env::Disk`].
    async fn spawn_blocking<F, T>(f: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        E::spawn(async move { f() }).await.map_err(io::Error::other)
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A point on the environment's monotonic clock.
pub struct EnvInstant<E> {
    at: std::time::Instant,
    env: PhantomData<fn() -> E>,
}

impl<E> EnvInstant<E> {
    /// The same point as the standard library's type.
    #[must_use]
    pub fn into_std(self) -> std::time::Instant {
        self.at
    }
}

impl<E> From<std::time::Instant> for EnvInstant<E> {
    fn from(at: std::time::Instant) -> Self {
        Self { at, env: PhantomData }
    }
}

impl<E: Env> openraft_rt::Instant for EnvInstant<E> {
    fn now() -> Self {
        E::now().into()
    }
}

impl<E> Clone for EnvInstant<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for EnvInstant<E> {}

impl<E> fmt::Debug for EnvInstant<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}

impl<E> PartialEq for EnvInstant<E> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<E> Eq for EnvInstant<E> {}

impl<E> PartialOrd for EnvInstant<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for EnvInstant<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

impl<E> Add<Duration> for EnvInstant<E> {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        (self.at + duration).into()
    }
}

impl<E> AddAssign<Duration> for EnvInstant<E> {
    fn add_assign(&mut self, duration: Duration) {
        self.at += duration;
    }
}

impl<E> Sub<Duration> for EnvInstant<E> {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        (self.at - duration).into()
    }
}

impl<E> SubAssign<Duration> for EnvInstant<E> {
    fn sub_assign(&mut self, duration: Duration) {
        self.at -= duration;
    }
}

impl<E> Sub for EnvInstant<E> {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.at.saturating_duration_since(earlier.at)
    }
}

/// The environment's randomness as openraft draws it.
pub struct EnvRng<E>(PhantomData<fn() -> E>);

impl<E> fmt::Debug for EnvRng<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvRng")
    }
}

impl<E: Env> rand::TryRng for EnvRng<E> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((E::random_u64() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(E::random_u64())
    }

    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), Infallible> {
        for chunk in destination.chunks_mut(8) {
            chunk.copy_from_slice(&E::random_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// tokio's bounded channel, whose order depends on its callers only.
#[derive(Debug)]
pub struct EnvMpsc;

/// The sending half.
#[derive(Debug)]
pub struct MpscSender<T>(mpsc::Sender<T>);

impl<T> Clone for MpscSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct MpscReceiver<T>(mpsc::Receiver<T>);

/// A sending half that does not keep the channel open.
#[derive(Debug)]
pub struct MpscWeakSender<T>(mpsc::WeakSender<T>);

impl<T> Clone for MpscWeakSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl openraft_rt::Mpsc for EnvMpsc {
    type Sender<T: OptionalSend> = MpscSender<T>;
    type Receiver<T: OptionalSend> = MpscReceiver<T>;
    type WeakSender<T: OptionalSend> = MpscWeakSender<T>;

    fn channel<T: OptionalSend>(buffer: usize) -> (Self::Sender<T>, Self::Receiver<T>) {
        let (sender, receiver) = mpsc::channel(buffer);
        (MpscSender(sender), MpscReceiver(receiver))
    }
}

impl<T: OptionalSend> openraft_rt::MpscSender<EnvMpsc, T> for MpscSender<T> {
    async fn send(&self, msg: T) -> Result<(), openraft_rt::SendError<T>> {
        self.0.send(msg).await.map_err(|error| openraft_rt::SendError(error.0))
    }

    fn downgrade(&self) -> MpscWeakSender<T> {
        MpscWeakSender(self.0.downgrade())
    }
}

impl<T: OptionalSend> openraft_rt::MpscReceiver<T> for MpscReceiver<T> {
    async fn recv(&mut self) -> Option<T> {
        self.0.recv().await
    }

    fn try_recv(&mut self) -> Result<T, openraft_rt::TryRecvError> {
        self.0.try_recv().map_err(|error| match error {
            mpsc::error::TryRecvError::Empty => openraft_rt::TryRecvError::Empty,
            mpsc::error::TryRecvError::Disconnected => openraft_rt::TryRecvError::Disconnected,
        })
    }
}

impl<T: OptionalSend> openraft_rt::MpscWeakSender<EnvMpsc, T> for MpscWeakSender<T> {
    fn upgrade(&self) -> Option<MpscSender<T>> {
        self.0.upgrade().map(MpscSender)
    }
}

/// tokio's channel for one value.
#[derive(Debug)]
pub struct EnvOneshot;

/// The sending half.
#[derive(Debug)]
pub struct OneshotSender<T>(oneshot::Sender<T>);

impl openraft_rt::Oneshot for EnvOneshot {
    type Sender<T: OptionalSend> = OneshotSender<T>;
    type Receiver<T: OptionalSend> = oneshot::Receiver<T>;
    type ReceiverError = oneshot::error::RecvError;

    fn channel<T: OptionalSend>() -> (Self::Sender<T>, Self::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (OneshotSender(sender), receiver)
    }
}

impl<T: OptionalSend> openraft_rt::OneshotSender<T> for OneshotSender<T> {
    fn send(self, t: T) -> Result<(), T> {
        self.0.send(t)
    }
}

/// tokio's mutex, which is fair.
#[derive(Debug)]
pub struct EnvMutex<T>(tokio::sync::Mutex<T>);

impl<T: OptionalSend + 'static> openraft_rt::Mutex<T> for EnvMutex<T> {
    type Guard<'a> = tokio::sync::MutexGuard<'a, T>;

    fn new(value: T) -> Self {
        Self(tokio::sync::Mutex::new(value))
    }

    async fn lock(&self) -> Self::Guard<'_> {
        self.0.lock().await
    }
}

/// [`lockstep_env::watch`]: tokio's wakes in an order that no seed controls.
#[derive(Debug)]
pub struct EnvWatch;

/// The sending half.
#[derive(Debug)]
pub struct WatchSender<T>(watch::Sender<T>);

impl<T> Clone for WatchSender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct WatchReceiver<T>(watch::Receiver<T>);

impl<T> Clone for WatchReceiver<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl openraft_rt::Watch for EnvWatch {
    type Sender<T: OptionalSend + OptionalSync> = WatchSender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = WatchReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Self::Sender<T>, Self::Receiver<T>) {
        let (sender, receiver) = watch::channel(init);
        (WatchSender(sender), WatchReceiver(receiver))
    }
}

impl<T: OptionalSend + OptionalSync> openraft_rt::WatchSender<EnvWatch, T> for WatchSender<T> {
    fn send(&self, value: T) -> Result<(), openraft_rt::watch::SendError<T>> {
        self.0.send(value).map_err(|error| openraft_rt::watch::SendError(error.0))
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        self.0.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.0.borrow()
    }

    fn subscribe(&self) -> WatchReceiver<T> {
        WatchReceiver(self.0.subscribe())
    }
}

impl<T: OptionalSend + OptionalSync> openraft_rt::WatchReceiver<EnvWatch, T> for WatchReceiver<T> {
    async fn changed(&mut self) -> Result<(), openraft_rt::RecvError> {
        self.0.changed().await.map_err(|watch::Closed| openraft_rt::watch::RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.0.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.0.borrow_and_update()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_env::tokio_env::TokioEnv;

    #[test]
    fn openraft_finds_what_it_expects_of_a_runtime() {
        let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _entered = executor.enter();
        openraft_rt::testing::Suite::<EnvRuntime<TokioEnv>>::test_all();
    }

    #[test]
    fn blocking_work_and_panics_are_reported() {
        let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        executor.block_on(async {
            assert_eq!(EnvRuntime::<TokioEnv>::spawn_blocking(|| 7).await.unwrap(), 7);
            let failed = EnvRuntime::<TokioEnv>::spawn(async { panic!("on purpose") }).await.unwrap_err();
            assert!(EnvRuntime::<TokioEnv>::is_panic(&failed));
        });
    }
}
