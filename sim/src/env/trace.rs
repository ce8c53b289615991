//! What happened, in order: a running hash to compare two runs of one seed, and the events themselves for people.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clock::world_now;

/// Events kept for the timeline of a failure.
const EVENTS_MAX: usize = 4000;

/// Shared by the whole simulated world.
#[derive(Clone)]
pub struct Trace {
    state: Arc<Mutex<State>>,
}

struct State {
    started_at: Instant,
    hash: Fingerprint,
    count: u64,
    events: VecDeque<Event>,
}

/// A hash that is the same in every process, and cheap: it is fed at every write of a network or a disk, with all bytes that a network
/// carries. It tells two runs apart; it withstands nobody.
#[derive(Clone, Copy, Debug)]
struct Fingerprint(u64);

impl Fingerprint {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64).wrapping_add(0x2545_f491_4f6c_dd1d);
    }
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        // The length keeps zeros at the end from being taken for nothing.
        self.mix(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }
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
        let state = State {
            started_at: world_now(),
            hash: Fingerprint(0x5851_f42d_4c95_7f2d),
            count: 0,
            events: VecDeque::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl Trace {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts an event of the network or a disk into the hash.
    pub fn note(&self, what: impl Hash) {
        let now = world_now();
        self.with(|state| {
            let at = now.saturating_duration_since(state.started_at);
            state.hash.mix(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
            what.hash(&mut state.hash);
            state.count += 1;
        });
    }

    /// Adds an event to the timeline, and to the hash.
    pub fn event(&self, lane: &str, text: impl Into<String>) {
        let text = text.into();
        self.note((lane, &text));
        let at = self.elapsed();
        self.with(|state| {
            if state.events.len() == EVENTS_MAX {
                state.events.pop_front();
            }
            state.events.push_back(Event { at, lane: lane.to_owned(), text });
        });
    }

    /// Simulated time since the start, in microseconds: the clock of the history.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Simulated time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        world_now().saturating_duration_since(self.started_at())
    }

    /// When the world began.
    #[must_use]
    pub fn started_at(&self) -> Instant {
        self.with(|state| state.started_at)
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
        self.with(|state| (state.count, state.hash.finish()))
    }

    /// The timeline: the last events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.with(|state| state.events.iter().cloned().collect())
    }
}
