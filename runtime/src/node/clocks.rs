//! How far the other nodes' wall clocks are from this one's, as far as they said what theirs show.
//!
//! What expires by its age is deleted for good on every replica. A leader whose clock is wrong would delete too early, so it lets nothing expire
//! unless a majority of the nodes, itself included, has about the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_core::NodeId;

/// Clocks that differ by more than this do not agree. What a message is under way counts as a difference.
const DIFFERENCE_MS_MAX: u64 = 10_000;
/// What a clock showed so long ago says nothing any more.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// What the clocks of a cluster's nodes show. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Clocks {
    /// Nodes of the cluster, this one too.
    nodes: usize,
    others: Arc<Mutex<BTreeMap<NodeId, Shown>>>,
}

/// What another node's clock showed when that was heard.
#[derive(Clone, Copy, Debug)]
struct Shown {
    wall_clock_ms: i64,
    heard_at: Instant,
}

impl Clocks {
    /// Those of so many nodes, this one included.
    pub(crate) fn new(nodes: usize) -> Self {
        Self { nodes, others: Arc::default() }
    }

    /// Another node's clock shows `wall_clock_ms` at `now`.
    pub(crate) fn heard(&self, node: NodeId, wall_clock_ms: i64, now: Instant) {
        let shown = Shown { wall_clock_ms, heard_at: now };
        self.others.lock().unwrap_or_else(PoisonError::into_inner).insert(node, shown);
    }

    /// Does a majority have about the time that this node's clock shows, `wall_clock_ms`, at `now`?
    pub(crate) fn agree(&self, wall_clock_ms: i64, now: Instant) -> bool {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let agreeing = others.values().filter(|shown| {
            let since = now.saturating_duration_since(shown.heard_at);
            let since_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
            let shows_ms = shown.wall_clock_ms.saturating_add(since_ms);
            since <= SILENCE_MAX && shows_ms.abs_diff(wall_clock_ms) <= DIFFERENCE_MS_MAX
        });
        (agreeing.count() + 1) * 2 > self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_env::Env;
    use lockstep_env::tokio_env::TokioEnv;

    #[test]
    fn a_clock_is_trusted_while_a_majority_shows_the_same_time() {
        let start = TokioEnv::now();
        let after = |ms| start + Duration::from_millis(ms);
        assert!(Clocks::new(1).agree(5, start), "nobody to compare with");
        let clocks = Clocks::new(3);
        assert!(!clocks.agree(0, start), "nobody was heard");
        clocks.heard(2, 100_000, start);
        assert!(clocks.agree(100_000, start));
        assert!(clocks.agree(112_000, after(2_000)), "both clocks go on");
        assert!(!clocks.agree(112_001, after(2_000)), "too far ahead");
        assert!(!clocks.agree(91_999, after(2_000)), "too far behind");
        assert!(!clocks.agree(105_001, after(5_001)), "heard too long ago");
        clocks.heard(3, 3_600_000, after(2_000));
        assert!(clocks.agree(102_000, after(2_000)), "two of three agree");
        assert!(!clocks.agree(-3_600_000, after(2_000)));
        let five = Clocks::new(5);
        five.heard(2, 0, start);
        assert!(!five.agree(0, start), "two of five are no majority");
        five.heard(3, 0, start);
        assert!(five.agree(0, start));
    }
}
