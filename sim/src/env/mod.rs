//! The simulated environment: time and tasks by madsim, links and disks of our own.
//!
//! madsim gives one executor on one thread, a simulated clock, a seeded random generator and nodes whose tasks can be
//! killed. Its network and file system are not used: its network refuses what a real one lets hang, and its file system loses
//! nothing in a crash.

pub mod disk;
pub mod net;
pub mod trace;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use lockstep_env::{Connection, Env, Task, TaskFailed};

use self::disk::SimDisk;
use self::net::{Network, SimListener, SimReader, SimWriter};
use self::trace::Trace;

/// Wall-clock time at which every simulation starts: 2026-01-01, in milliseconds since the Unix epoch.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// A simulated host: what one node or client sees of the world.
#[derive(Clone)]
pub struct SimEnv {
    host: Arc<str>,
    network: Network,
    disk: SimDisk,
    started_at: Instant,
    clock_skew_ms: Arc<AtomicI64>,
}

impl fmt::Debug for SimEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimEnv({})", self.host)
    }
}

impl SimEnv {
    /// A host on `network` with the disk given. Addresses on it are `host:port`.
    #[must_use]
    pub fn new(host: &str, network: &Network, disk: SimDisk) -> Self {
        Self {
            host: host.into(),
            network: network.clone(),
            disk,
            started_at: Self::now(),
            clock_skew_ms: Arc::default(),
        }
    }

    /// The host's name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Makes the wall clock of this host jump.
    pub fn skew_clock(&self, by_ms: i64) {
        self.clock_skew_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Events of the whole world so far.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        self.network.trace()
    }
}

/// A random number below `bound`, from the seed.
pub(crate) fn random_below(bound: u64) -> u64 {
    SimEnv::random_u64() % bound.max(1)
}

/// True `per_mille` times in a thousand.
pub(crate) fn chance(per_mille: u64) -> bool {
    random_below(1000) < per_mille
}

impl Env for SimEnv {
    type Disk = SimDisk;
    type Reader = SimReader;
    type Writer = SimWriter;
    type Listener = SimListener;
    type Task<T: Send + 'static> = SimTask<T>;
    type Sleep = SimSleep;

    #[expect(clippy::disallowed_methods, reason = "madsim answers with simulated time")]
    fn now() -> Instant {
        Instant::now()
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimSleep(Box::pin(madsim::time::sleep(duration)))
    }

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        SimSleep(Box::pin(madsim::time::sleep(deadline.saturating_duration_since(Self::now()))))
    }

    fn spawn<F>(future: F) -> Self::Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        SimTask(madsim::task::spawn(future))
    }

    fn random_u64() -> u64 {
        madsim::rand::random()
    }

    fn wall_clock_ms(&self) -> i64 {
        let elapsed = Self::now().saturating_duration_since(self.started_at).as_millis();
        EPOCH_MS + i64::try_from(elapsed).unwrap_or(i64::MAX / 2) + self.clock_skew_ms.load(Ordering::Relaxed)
    }

    async fn connect(&self, address: &str) -> io::Result<Connection<Self>> {
        self.network.connect(&self.host, address).await
    }

    async fn listen(&self, address: &str) -> io::Result<Self::Listener> {
        self.network.listen(&self.host, address)
    }

    fn disk(&self) -> &Self::Disk {
        &self.disk
    }
}

/// A task on a simulated node.
pub struct SimTask<T>(madsim::task::JoinHandle<T>);

impl<T> Future for SimTask<T> {
    type Output = Result<T, TaskFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| TaskFailed::Aborted)
    }
}

impl<T: Send + 'static> Task<T> for SimTask<T> {
    fn abort(&self) {
        self.0.abort();
    }
}

/// A wait in simulated time.
pub struct SimSleep(Pin<Box<madsim::time::Sleep>>);

impl Future for SimSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}
