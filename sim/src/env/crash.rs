//! Deaths at named points: a trap is armed for a step, and the host that gets there dies before it can do anything more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_env::Step;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// How a host dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Death {
    /// kill -9: the kernel keeps what it holds and closes the connections.
    Process,
    /// Power cut: what was not synced is at stake, and nobody is told.
    Power,
}

/// Why a host died by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It came to a step at which a trap was armed.
    Step(Step),
    /// The broker gave up, as after a disk error; in production the process exits with this reason.
    Failed(String),
}

/// A host that died by itself, by what the crash points record of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fall {
    /// The host's name.
    pub host: String,
    /// Why.
    pub cause: Cause,
    /// How.
    pub death: Death,
    /// When, since the start of the world.
    pub at: Duration,
}

/// Names a trap, to take it away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrapId(u64);

#[derive(Debug)]
struct Trap {
    /// `None`: whoever comes there.
    host: Option<String>,
    step: Step,
    /// How often the step is still passed.
    left: u64,
    death: Death,
}

#[derive(Debug, Default)]
struct State {
    traps: BTreeMap<u64, Trap>,
    trap_next: u64,
    reached: BTreeMap<Step, u64>,
    falls: Vec<Fall>,
}

/// The traps of a world, and who fell. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct CrashPoints {
    state: Arc<Mutex<State>>,
    fell: Arc<Notify>,
}

impl CrashPoints {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills `host` (`None`: whichever host it is) when the step is reached for the `nth` time from now on, 1 being the next time.
    /// A trap works once.
    pub fn arm(&self, host: Option<&str>, step: Step, nth: u64, death: Death) -> TrapId {
        let mut state = self.lock();
        let id = state.trap_next;
        state.trap_next += 1;
        let trap = Trap { host: host.map(str::to_owned), step, left: nth.saturating_sub(1), death };
        state.traps.insert(id, trap);
        TrapId(id)
    }

    /// Takes a trap away; `false` when somebody has fallen into it already.
    pub fn disarm(&self, trap: TrapId) -> bool {
        self.lock().traps.remove(&trap.0).is_some()
    }

    /// How often each step was reached by any host that was alive.
    #[must_use]
    pub fn reached_counts(&self) -> BTreeMap<Step, u64> {
        self.lock().reached.clone()
    }

    /// Those who fell since this was asked last, oldest first.
    #[must_use]
    pub fn take_falls(&self) -> Vec<Fall> {
        std::mem::take(&mut self.lock().falls)
    }

    /// Completes when [`CrashPoints::take_falls`] has something to give.
    pub async fn wait_for_fall(&self) {
        loop {
            let fell = self.fell.notified();
            if !self.lock().falls.is_empty() {
                return;
            }
            fell.await;
        }
    }

    /// `host` is at `step`: how does it die of that?
    pub(crate) fn reached(&self, host: &str, step: Step) -> Option<Death> {
        let mut state = self.lock();
        *state.reached.entry(step).or_default() += 1;
        let mut sprung = None;
        for (id, trap) in &mut state.traps {
            if trap.step == step && trap.host.as_deref().is_none_or(|wanted| wanted == host) {
                match trap.left.checked_sub(1) {
                    Some(left) => trap.left = left,
                    None => sprung = Some(*id),
                }
            }
        }
        sprung.and_then(|id| state.traps.remove(&id)).map(|trap| trap.death)
    }

    pub(crate) fn record(&self, fall: Fall) {
        self.lock().falls.push(fall);
        self.fell.notify_waiters();
    }
}
