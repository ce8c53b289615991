//! The simulated environment: time and tasks by madsim, links and disks of our own.
//!
//! madsim gives one executor on one thread, a simulated clock, a seeded random generator and nodes whose tasks can be
//! killed. Its network and file system are not used: its network refuses what a real one lets hang, and its file system loses
//! nothing in a crash.

pub mod clock;
pub mod crash;
pub mod disk;
pub mod net;
pub mod trace;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use lockstep_env::{Connection, Env, Step, Task, TaskFailed};
use madsim::runtime::Handle;
use madsim::task::NodeId as MachineId;

use self::clock::{HostClock, SimSleep, WorldSleep};
use self::crash::{Cause, CrashPoints, Death, Fall};
use self::disk::SimDisk;
use self::net::{Network, SimListener, SimReader, SimWriter};
use self::trace::Trace;

/// A host that dies as it sends entries cannot send any more from then on, but its disk may finish what it is at for so long.
const DISK_FINISHES_IN: Duration = Duration::from_millis(5);

/// A simulated host: what one node or client sees of the world. Cheap to clone.
#[derive(Clone)]
pub struct SimEnv {
    host: Arc<Host>,
}

struct Host {
    name: String,
    network: Network,
    disk: SimDisk,
    clock: HostClock,
    crash_points: CrashPoints,
    /// The tasks that die with the host; `None` when that is for others to see to.
    machine: Option<MachineId>,
    life: Mutex<Life>,
}

#[derive(Debug)]
enum Life {
    Alive,
    /// Off the network, while the disk finishes.
    Dying(Cause, Death),
    Dead,
}

impl fmt::Debug for SimEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimEnv({})", self.host.name)
    }
}

impl SimEnv {
    /// A host on `network` with the disk given. Addresses on it are `host:port`.
    #[must_use]
    pub fn new(host: &str, network: &Network, disk: SimDisk) -> Self {
        let clock = HostClock::new(network.trace().started_at());
        Self::assemble(host, network, disk, clock, CrashPoints::default(), None)
    }

    /// A host whose tasks run on `machine`, go by `clock`, and die at the traps of `crash_points`.
    #[must_use]
    pub fn on_machine(
        host: &str,
        network: &Network,
        disk: SimDisk,
        clock: HostClock,
        crash_points: CrashPoints,
        machine: MachineId,
    ) -> Self {
        clock.run_on(machine);
        Self::assemble(host, network, disk, clock, crash_points, Some(machine))
    }

    fn assemble(
        host: &str,
        network: &Network,
        disk: SimDisk,
        clock: HostClock,
        crash_points: CrashPoints,
        machine: Option<MachineId>,
    ) -> Self {
        let host = Host {
            name: host.to_owned(),
            network: network.clone(),
            disk,
            clock,
            crash_points,
            machine,
            life: Mutex::new(Life::Alive),
        };
        Self { host: Arc::new(host) }
    }

    /// The host's name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host.name
    }

    /// The host's clocks.
    #[must_use]
    pub fn clock(&self) -> &HostClock {
        &self.host.clock
    }

    /// Makes the wall clock of this host jump.
    pub fn skew_clock(&self, by_ms: i64) {
        self.clock().jump(by_ms);
    }

    /// Events of the whole world so far.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        self.host.network.trace()
    }

    fn life(&self) -> std::sync::MutexGuard<'_, Life> {
        self.host.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it not died by itself?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(*self.life(), Life::Alive)
    }

    /// The host dies now. Its tasks may run on to their next await, but neither network nor disk take anything from them any more.
    pub(crate) fn fall(&self, cause: Cause, death: Death) {
        if !self.is_alive() {
            return;
        }
        let host = &*self.host;
        self.trace().event(&host.name, format!("dies ({death:?}): {cause:?}"));
        host.network.host_down(&host.name, death == Death::Power);
        // So that the entries which nobody was sent are in the journal here, as they would be with a faster disk or a slower network.
        let disk_finishes = cause == Cause::Step(Step::BeforeReplicate);
        *self.life() = Life::Dying(cause, death);
        if disk_finishes {
            let dying = self.clone();
            drop(Self::spawn(async move {
                WorldSleep::of(DISK_FINISHES_IN).await;
                dying.finish_fall();
            }));
        } else {
            self.finish_fall();
        }
    }

    /// Ends a death that has begun.
    pub(crate) fn finish_fall(&self) {
        let (cause, death) = {
            let mut life = self.life();
            let Life::Dying(cause, death) = &*life else { return };
            let dying = (cause.clone(), *death);
            *life = Life::Dead;
            dying
        };
        let host = &*self.host;
        host.disk.power_off(death == Death::Power);
        if let Some(machine) = host.machine {
            Handle::current().kill(machine);
        }
        let at = self.trace().elapsed();
        host.crash_points.record(Fall { host: host.name.clone(), cause, death, at });
    }
}

/// A random number below `bound`, from the seed.
pub(crate) fn random_below(bound: u64) -> u64 {
    SimEnv::random_u64() % bound.max(1)
}

/// True `per_mille` times in a thousand.
pub(crate) fn chance(per_mille: u64) -> bool {
    per_mille > 0 && random_below(1000) < per_mille
}

impl Env for SimEnv {
    type Disk = SimDisk;
    type Reader = SimReader;
    type Writer = SimWriter;
    type Listener = SimListener;
    type Task<T: Send + 'static> = SimTask<T>;
    type Sleep = SimSleep;

    fn now() -> Instant {
        clock::host_now()
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimSleep::until(Self::now() + duration)
    }

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        SimSleep::until(deadline)
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
        self.clock().wall_ms()
    }

    async fn connect(&self, address: &str) -> io::Result<Connection<Self>> {
        self.host.network.connect(&self.host.name, address).await
    }

    async fn listen(&self, address: &str) -> io::Result<Self::Listener> {
        self.host.network.listen(&self.host.name, address)
    }

    fn disk(&self) -> &Self::Disk {
        &self.host.disk
    }

    fn reached(&self, step: Step) {
        if self.is_alive()
            && let Some(death) = self.host.crash_points.reached(&self.host.name, step)
        {
            self.fall(Cause::Step(step), death);
        }
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
