//! Time: the world's, and what each host's clocks make of it.
//!
//! The world's time is madsim's. Links and disks live by it. A host's monotonic clock ([`Env::now`](lockstep_env::Env::now)) may run
//! faster or slower than that, and its sleeps with it; `now` is a function without a host, so the host is found from the running task:
//! madsim knows the machine of every task. The host's wall clock follows its monotonic clock and may jump besides.
//!
//! Instants of two hosts cannot be compared; nor are they, since no instant leaves its host.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use madsim::task::NodeId as MachineId;
use madsim::time::TimeHandle;

/// Wall-clock time at which every simulation starts: 2026-01-01, in milliseconds since the Unix epoch.
const EPOCH_MS: i64 = 1_767_225_600_000;
/// Largest drift in either direction: a tenth.
pub const DRIFT_PPM_MAX: i64 = 100_000;
const MILLION: u128 = 1_000_000;

// A simulation has a thread of its own, and these with it.
thread_local! {
    /// Where the world's time is read.
    static WORLD: OnceCell<TimeHandle> = const { OnceCell::new() };
    /// Does, or did, any clock drift? Until one does, nothing is looked up.
    static DRIFTING: Cell<bool> = const { Cell::new(false) };
    /// Whose clock counts instead of that of the running task's host.
    static ACTING: RefCell<Option<HostClock>> = const { RefCell::new(None) };
    static MACHINES: RefCell<BTreeMap<MachineId, HostClock>> = const { RefCell::new(BTreeMap::new()) };
}

/// The world's time: what `Instant::now` gives too, with less to look up on the way.
///
/// # Panics
/// It is called outside of a simulation.
#[must_use]
pub fn world_now() -> Instant {
    WORLD.with(|world| world.get_or_init(TimeHandle::current).now_instant())
}

/// The time of the host whose task is running.
pub(crate) fn host_now() -> Instant {
    let now = world_now();
    match running_clock() {
        Some(clock) => clock.lock().host_time(now),
        None => now,
    }
}

fn running_clock() -> Option<HostClock> {
    if !DRIFTING.get() {
        return None;
    }
    if let Some(acting) = ACTING.with_borrow(Clone::clone) {
        return Some(acting);
    }
    MACHINES.with_borrow(|machines| machines.get(&madsim::plugin::node()).cloned())
}

/// A host's clocks. They belong to the hardware: a reboot changes nothing about them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HostClock {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    world_began_at: Instant,
    /// By how much the wall clock was set wrong.
    skew_ms: i64,
    /// How much faster than the world's time the clocks run, in millionths.
    drift_ppm: i64,
    /// Since when they do, in the world's time and in the host's.
    since: (Instant, Instant),
}

impl State {
    /// How many millionths of a second the host counts in one second.
    fn rate(&self) -> u128 {
        u128::try_from(1_000_000 + self.drift_ppm).unwrap_or(MILLION)
    }

    fn host_time(&self, world: Instant) -> Instant {
        let (world_since, host_since) = self.since;
        let elapsed = world.saturating_duration_since(world_since).as_nanos();
        host_since + nanos(elapsed * self.rate() / MILLION)
    }

    /// The first moment at which the host's clock shows `host` or more.
    fn world_time(&self, host: Instant) -> Instant {
        let (world_since, host_since) = self.since;
        let elapsed = host.saturating_duration_since(host_since).as_nanos();
        world_since + nanos((elapsed * MILLION).div_ceil(self.rate()))
    }
}

fn nanos(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

impl HostClock {
    /// Right clocks in a world that began at `world_began_at`.
    #[must_use]
    pub fn new(world_began_at: Instant) -> Self {
        let now = world_now();
        let state = State { world_began_at, skew_ms: 0, drift_ppm: 0, since: (now, now) };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tasks of this machine go by this clock.
    pub(crate) fn run_on(&self, machine: MachineId) {
        MACHINES.with_borrow_mut(|machines| machines.insert(machine, self.clone()));
    }

    /// Calls `act` as a task of this host would: for looking into a node from outside, which may compare its instants with the present.
    pub fn act<R>(&self, act: impl FnOnce() -> R) -> R {
        let before = ACTING.replace(Some(self.clone()));
        let result = act();
        ACTING.set(before);
        result
    }

    /// Makes the wall clock jump, forwards or backwards.
    pub fn jump(&self, by_ms: i64) {
        let mut state = self.lock();
        state.skew_ms = state.skew_ms.saturating_add(by_ms);
    }

    /// Sets how wrong the wall clock is from now on; 0 puts it right, but for what it drifted away.
    pub fn set_skew(&self, ms: i64) {
        self.lock().skew_ms = ms;
    }

    /// From now on the host's clocks and sleeps run faster (or, below 0, slower) than the world's time by so many millionths, at most
    /// [`DRIFT_PPM_MAX`]. What they show now they still show. A sleep that is under way when they become slower is made longer; one that is
    /// under way when they become faster still ends when it would have.
    pub fn set_drift_ppm(&self, ppm: i64) {
        let now = world_now();
        let mut state = self.lock();
        state.since = (now, state.host_time(now));
        state.drift_ppm = ppm.clamp(-DRIFT_PPM_MAX, DRIFT_PPM_MAX);
        if ppm != 0 {
            DRIFTING.set(true);
        }
    }

    /// What the wall clock shows, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        let state = self.lock();
        let elapsed = state.host_time(world_now()).saturating_duration_since(state.world_began_at).as_millis();
        EPOCH_MS.saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX)).saturating_add(state.skew_ms)
    }
}

/// A wait in the world's time, to the nanosecond: for what links and disks do.
pub(crate) struct WorldSleep {
    sleep: Pin<Box<madsim::time::Sleep>>,
    /// Who will be woken. madsim would set one more timer at every poll.
    waker: Option<Waker>,
}

impl WorldSleep {
    pub(crate) fn until(deadline: Instant) -> Self {
        let mut sleep = Self::of_a_millisecond_at_least(deadline);
        sleep.reset(deadline);
        sleep
    }

    pub(crate) fn of(duration: Duration) -> Self {
        Self::until(world_now() + duration)
    }

    fn of_a_millisecond_at_least(deadline: Instant) -> Self {
        Self { sleep: Box::pin(madsim::time::sleep_until(deadline)), waker: None }
    }

    fn reset(&mut self, deadline: Instant) {
        self.sleep.as_mut().reset(deadline);
        self.waker = None;
    }
}

impl Future for WorldSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleep.is_elapsed() {
            return Poll::Ready(());
        }
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.sleep.as_mut().poll(cx)
    }
}

/// A wait by a host's clock, of at least a millisecond like tokio's.
pub struct SimSleep {
    sleep: WorldSleep,
    /// When it is over, in the time of the host that sleeps.
    deadline: Instant,
}

impl SimSleep {
    pub(crate) fn until(deadline: Instant) -> Self {
        let world = running_clock().map_or(deadline, |clock| clock.lock().world_time(deadline));
        Self { sleep: WorldSleep::of_a_millisecond_at_least(world), deadline }
    }
}

impl Future for SimSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while Pin::new(&mut self.sleep).poll(cx).is_ready() {
            let Some(clock) = running_clock() else { return Poll::Ready(()) };
            let due = {
                let state = clock.lock();
                (state.host_time(world_now()) < self.deadline).then(|| state.world_time(self.deadline))
            };
            match due {
                Some(due) => self.sleep.reset(due),
                None => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}
