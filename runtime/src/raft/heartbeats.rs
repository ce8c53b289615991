//! When the leader of a shard owes its members a heartbeat.
//!
//! Entries say all that a heartbeat says: whoever takes them waits with its own candidacy, and who answers them renews the leader's lease. While entries
//! flow, heartbeats of all shards at once would only be in their way: a millisecond of processor on three nodes, sixteen times a second.
//!
//! openraft can spare heartbeats by itself (`heartbeat_min_interval`), member by member, but only while they and what it calls the heartbeat interval, here the time that
//! one may take, are shorter than an election time-out together.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_probe::Mark;

/// How often in each interval it is looked whether heartbeats are due.
pub(crate) const LOOKS_PER_INTERVAL: u32 = 4;

/// The heartbeats of one shard.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    interval: Duration,
    last: Mutex<Option<Instant>>,
}

impl Heartbeats {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, last: Mutex::default() }
    }

    /// Must all members be sent one now? `heard` is when that was sent which every member has answered: heartbeats or entries.
    pub(crate) fn are_due(&self, heard: Option<Instant>, now: Instant) -> bool {
        // Looks come a little late, never early: one that is nearly due does not wait for the next look.
        let patience = self.interval - self.interval / (2 * LOOKS_PER_INTERVAL);
        is_over(*self.lock(), patience, now) && is_over(heard, patience, now)
    }

    /// Those of some shard are due: may this one's go along? If so they count as sent. Not when members heard of this leader a moment ago.
    pub(crate) fn begin(&self, heard: Option<Instant>, now: Instant) -> bool {
        let patience = self.interval / 2;
        let mut last = self.lock();
        if !is_over(*last, patience, now) {
            return false;
        }
        if !is_over(heard, patience, now) {
            Mark::HeartbeatSpared.reached();
            return false;
        }
        *last = Some(now);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_over(since: Option<Instant>, patience: Duration, now: Instant) -> bool {
    since.is_none_or(|at| now.saturating_duration_since(at) >= patience)
}

#[cfg(test)]
mod tests {
    use lockstep_env::Env;
    use lockstep_env::tokio_env::TokioEnv;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(80);
    const LOOK: Duration = Duration::from_millis(20);

    /// Counts the heartbeats of a shard over a hundred intervals; `heard` says when members last answered.
    fn beats(heard: impl Fn(Instant, Option<Instant>) -> Option<Instant>) -> (usize, Duration) {
        let began = TokioEnv::now();
        let heartbeats = Heartbeats::new(INTERVAL);
        let (mut count, mut last, mut longest) = (0, None, Duration::ZERO);
        for look in 0..100 * LOOKS_PER_INTERVAL {
            // A little late each time, as a clock that is busy.
            let now = began + LOOK * look + Duration::from_millis(u64::from(look % 3));
            let answered = heard(now, last);
            longest = longest.max(answered.map_or(Duration::ZERO, |at| now - at));
            if heartbeats.are_due(answered, now) {
                assert!(heartbeats.begin(answered, now));
                count += 1;
                last = Some(now);
            }
        }
        (count, longest)
    }

    #[test]
    fn a_shard_without_entries_beats_once_in_an_interval() {
        assert_eq!(beats(|_, last| last).0, 100);
    }

    #[test]
    fn a_member_that_never_answers_costs_no_more_heartbeats_than_one_that_does() {
        assert_eq!(beats(|_, _| None).0, 100);
    }

    #[test]
    fn entries_that_everybody_answers_make_heartbeats_needless() {
        assert_eq!(beats(|now, _| Some(now - Duration::from_millis(3))).0, 0);
    }

    #[test]
    fn after_the_last_entry_no_member_waits_much_longer_than_an_interval() {
        let began = TokioEnv::now();
        let entries_end = began + INTERVAL * 7 + Duration::from_millis(7);
        let (count, longest) = beats(|now, last| Some(now.min(entries_end)).max(last));
        assert!((92..=94).contains(&count), "{count}");
        assert!(longest <= INTERVAL + LOOK, "{longest:?}");
    }

    #[test]
    fn shards_that_will_be_due_soon_go_along() {
        let began = TokioEnv::now();
        let heartbeats = Heartbeats::new(INTERVAL);
        assert!(heartbeats.begin(None, began));
        let soon = began + INTERVAL * 2 / 3;
        assert!(!heartbeats.are_due(None, soon) && heartbeats.begin(None, soon));
        assert!(!heartbeats.begin(None, soon + INTERVAL / 3), "a moment after its last one");
        let entries = soon + INTERVAL;
        assert!(!heartbeats.begin(Some(entries), entries + INTERVAL / 3), "a moment after entries");
        assert!(heartbeats.begin(Some(entries), entries + INTERVAL / 2));
    }
}
