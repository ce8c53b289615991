//! What the leader of a shard does about records that are kept for long enough: it looks which segments have expired, by their age
//! (`retention.ms`) or because their partition holds more than it should (`retention.bytes`), and proposes where the logs shall begin. The op
//! decides, on every replica at the same position; what a node's own clock and disk say is only the reason to propose it.
//!
//! The rules are those of Kafka's `UnifiedLog::deleteOldSegments`: whole segments go, the oldest first, up to the first one that stays. The last
//! segment goes too when it has expired with all others; the log goes on in an empty one then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::op::{AdvanceLogStart, NewLogStart};
use lockstep_core::{Op, Reply, TopicId, TopicRecord};
use lockstep_env::{Env, select};
use lockstep_probe::Mark;

use crate::node::Clocks;
use crate::raft::{Leadership, Proposals, Replica, take_turns};
use crate::storage::SegmentEntry;

/// How soon it is noticed that this node leads, or does not any more.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a new leader lets its partitions rest at most (Kafka's `LogManager.InitialTaskDelayMs`).
const FIRST_CHECK_AFTER: Duration = Duration::from_secs(30);
/// After so many partitions other tasks get a turn.
const PARTITIONS_IN_A_ROW: usize = 256;

/// The task of one shard. It idles where this node does not lead.
pub(crate) struct Retention<E: Env> {
    pub(crate) replica: Arc<Replica<E>>,
    pub(crate) leadership: Leadership<E>,
    pub(crate) proposals: Proposals,
    pub(crate) clocks: Clocks,
    /// Between two checks ([`crate::NodeConfig::retention_check_interval`]).
    pub(crate) check_interval: Duration,
}

/// What a topic says of its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    /// `None`: for ever.
    ms: Option<u64>,
    /// `None`: all.
    bytes: Option<u64>,
}

impl Kept {
    fn of(topic: &TopicRecord) -> Self {
        Self { ms: topic.retention_ms(), bytes: topic.retention_bytes() }
    }
}

impl<E: Env> Retention<E> {
    pub(crate) async fn run(self) {
        let mut led: Option<u64> = None;
        let mut next_check: Instant = E::now();
        while !self.replica.is_stopped() {
            match self.leadership.serving() {
                Ok(term) => {
                    if led != Some(term) {
                        led = Some(term);
                        next_check = E::now() + self.check_interval.min(FIRST_CHECK_AFTER);
                    }
                    if E::now() >= next_check {
                        self.check().await;
                        next_check = E::now() + self.check_interval;
                    }
                }
                Err(_) => led = None,
            }
            let pause = match led {
                Some(_) => next_check.saturating_duration_since(E::now()).min(LOOK_EVERY),
                None => LOOK_EVERY,
            };
            select(self.replica.retention.notified(), E::sleep(pause)).await;
        }
    }

    /// Looks at every partition, and proposes the starts that have to go up.
    async fn check(&self) {
        // The clock is read once: what it shows later has not been compared.
        let now_ms = self.replica.env.wall_clock_ms();
        let clocks_agree = self.clocks.agree(now_ms, E::now());
        let mut awaits_clock = false;
        let mut due = Vec::new();
        for (looked, (topic_id, partition, kept)) in self.partitions().into_iter().enumerate() {
            if looked % PARTITIONS_IN_A_ROW == PARTITIONS_IN_A_ROW - 1 {
                take_turns().await;
            }
            let segments = self.replica.store.segments(topic_id, partition);
            let by_age = kept.ms.and_then(|ms| expired_by_age(&segments, now_ms, ms));
            awaits_clock |= by_age.is_some() && !clocks_agree;
            let by_size = kept.bytes.and_then(|bytes| expired_by_size(&segments, bytes));
            if let Some(offset) = by_age.filter(|_| clocks_agree).max(by_size) {
                due.push(NewLogStart { topic_id, partition, offset });
            }
        }
        if awaits_clock {
            Mark::ExpiryAwaitedClock.reached();
            tracing::warn!(
                target: "raft", node = self.replica.node_id, shard = %self.replica.id, now_ms,
                "records are old enough to be deleted, but this node's clock does not agree with a majority's: waiting"
            );
        }
        for some in due.chunks(AdvanceLogStart::PARTITIONS_MAX) {
            tracing::info!(
                target: "raft", node = self.replica.node_id, shard = %self.replica.id, partitions = some.len(),
                "records are old or many enough to be deleted"
            );
            let op = Op::AdvanceLogStart(AdvanceLogStart { partitions: some.to_vec() });
            let done = match self.proposals.push(op, Bytes::new()) {
                Ok(outcome) => matches!(outcome.await, Ok(Ok(Reply::LogStarts(_)))),
                Err(_) => false,
            };
            if !done {
                // The next check, here or elsewhere, finds what is left.
                return;
            }
        }
    }

    /// Partitions of which something may go.
    fn partitions(&self) -> Vec<(TopicId, u32, Kept)> {
        let core = self.replica.core();
        let topics = core.directory().topics.values().filter_map(|topic| {
            let kept = Kept::of(topic);
            (kept.ms.is_some() || kept.bytes.is_some()).then_some((topic, kept))
        });
        topics
            .flat_map(|(topic, kept)| {
                (0_u32..).zip(&topic.partitions).map(move |(partition, shard)| (topic.id, partition, *shard, kept))
            })
            .filter(|(_, _, shard, _)| *shard == self.replica.id)
            .map(|(topic_id, partition, _, kept)| (topic_id, partition, kept))
            .collect()
    }
}

/// Where the log begins without the segments whose youngest record is older than `retention_ms`. Records without a timestamp do not age.
fn expired_by_age(segments: &[SegmentEntry], now_ms: i64, retention_ms: u64) -> Option<i64> {
    let expired = |segment: &&SegmentEntry| {
        let age_ms = i128::from(now_ms) - i128::from(segment.max_timestamp_ms);
        segment.max_timestamp_ms >= 0 && age_ms > i128::from(retention_ms)
    };
    segments.iter().take_while(expired).last().map(|last| last.next_offset)
}

/// Where the log begins without the oldest segments, as long as at least `retention_bytes` are left.
fn expired_by_size(segments: &[SegmentEntry], retention_bytes: u64) -> Option<i64> {
    let total: u64 = segments.iter().map(|segment| segment.len).sum();
    let mut surplus = total.saturating_sub(retention_bytes);
    let mut start = None;
    for segment in segments {
        let Some(left) = surplus.checked_sub(segment.len) else { break };
        surplus = left;
        start = Some(segment.next_offset);
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::SegmentName;

    fn segments(rows: &[(i64, u64, i64)]) -> Vec<SegmentEntry> {
        let mut base_offset = 5;
        let entry = |&(records, len, max_timestamp_ms): &(i64, u64, i64)| {
            let name = SegmentName { topic_id: TopicId([1; 16]), partition: 0, base_offset, revision: 0 };
            base_offset += records;
            SegmentEntry {
                name,
                len,
                crc32c: 0,
                start_offset: name.base_offset,
                next_offset: base_offset,
                first_timestamp_ms: 0,
                max_timestamp_ms,
                max_timestamp_offset: name.base_offset,
            }
        };
        rows.iter().map(entry).collect()
    }

    #[test]
    fn segments_expire_by_age_from_the_oldest_to_the_first_that_stays() {
        let log = segments(&[(10, 100, 1_000), (10, 100, 900), (10, 100, 2_000), (10, 100, 1_500)]);
        for (now_ms, expected) in [(1_100, None), (1_101, Some(25)), (2_100, Some(25)), (2_101, Some(45))] {
            assert_eq!(expired_by_age(&log, now_ms, 100), expected, "at {now_ms}");
        }
        assert_eq!(expired_by_age(&log, i64::MIN, 0), None);
        assert_eq!(expired_by_age(&log, i64::MAX, u64::MAX), None);
        assert_eq!(expired_by_age(&segments(&[(1, 10, -1), (1, 10, 0)]), i64::MAX, 0), None, "without a timestamp");
        assert_eq!(expired_by_age(&[], 5, 0), None);
    }

    #[test]
    fn the_oldest_segments_go_while_enough_is_left() {
        let log = segments(&[(10, 100, 0), (10, 50, 0), (10, 100, 0), (10, 30, 0)]);
        for (bytes, expected) in [
            (1_000, None),
            (280, None),
            (181, None),
            (180, Some(15)),
            (130, Some(25)),
            (30, Some(35)),
            (1, Some(35)),
            (0, Some(45)),
        ] {
            assert_eq!(expired_by_size(&log, bytes), expected, "{bytes} bytes");
        }
    }
}
