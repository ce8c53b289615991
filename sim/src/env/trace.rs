//! What happened, in order: a running hash to compare two runs of one seed, and the events themselves for people.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_env::Env;

use super::SimEnv;

/// Events kept for the timeline of a failure.
const EVENTS_MAX: usize = 4000;

/// Shared by the whole simulated world.
#[derive(Clone)]
pub struct Trace {
    state: Arc<Mutex<State>>,
}

struct State {
    started_at: Instant,
    hasher: DefaultHasher,
    count: u64,
    events: VecDeque<Event>,
}

/// One event of the timeline.
#[derive(Clone, Debug)]
pub struct Event {
    /// Simulated time since the start.
    pub at: Duration,
    /// Node or client.
    pub lane: String,
    /// What happened.
    pub text: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10.3} ms  {:<10} {}", self.at.as_secs_f64() * 1e3, self.lane, self.text)
    }
}

impl Default for Trace {
    fn default() -> Self {
        let state =
            State { started_at: SimEnv::now(), hasher: DefaultHasher::new(), count: 0, events: VecDeque::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl Trace {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts an event of the network or a disk into the hash.
    pub fn note(&self, what: impl Hash) {
        let now = SimEnv::now();
        self.with(|state| {
            now.saturating_duration_since(state.started_at).hash(&mut state.hasher);
            what.hash(&mut state.hasher);
            state.count += 1;
        });
    }

    /// Adds an event to the timeline, and to the hash.
    pub fn event(&self, lane: &str, text: impl Into<String>) {
        let text = text.into();
        self.note((lane, &text));
        let now = SimEnv::now();
        self.with(|state| {
            if state.events.len() == EVENTS_MAX {
                state.events.pop_front();
            }
            let at = now.saturating_duration_since(state.started_at);
            state.events.push_back(Event { at, lane: lane.to_owned(), text });
        });
    }

    /// Simulated time since the start, in microseconds: the clock of the history.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        let now = SimEnv::now();
        let since = self.with(|state| now.saturating_duration_since(state.started_at));
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Adds an event of the past to the timeline, in its place; not to the hash.
    pub(crate) fn event_at(&self, at: Duration, lane: &str, text: impl Into<String>) {
        self.with(|state| {
            let place = state.events.partition_point(|event| event.at <= at);
            state.events.insert(place, Event { at, lane: lane.to_owned(), text: text.into() });
        });
    }

    /// Number of events and the hash over all of them: equal for two runs of one seed.
    #[must_use]
    pub fn fingerprint(&self) -> (u64, u64) {
        self.with(|state| (state.count, state.hasher.clone().finish()))
    }

    /// The timeline: the last events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.with(|state| state.events.iter().cloned().collect())
    }
}
