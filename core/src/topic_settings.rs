//! Settings of a topic that decide how long its records are kept and in which portions they go. Names and meanings are Kafka's
//! (`org.apache.kafka.common.config.TopicConfig`); values were checked when they were set, and one that is no number counts as not set.

use crate::directory::TopicRecord;

const CLEANUP_POLICY: &str = "cleanup.policy";
const DELETE_RETENTION_MS: &str = "delete.retention.ms";
const MAX_COMPACTION_LAG_MS: &str = "max.compaction.lag.ms";
const MIN_CLEANABLE_DIRTY_RATIO: &str = "min.cleanable.dirty.ratio";
const MIN_COMPACTION_LAG_MS: &str = "min.compaction.lag.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const RETENTION_MS: &str = "retention.ms";
const SEGMENT_BYTES: &str = "segment.bytes";
const SEGMENT_MS: &str = "segment.ms";

/// Largest record batch that the cluster takes, whatever a topic says: it must fit an entry of the log, and that a frame between nodes.
pub const BATCH_BYTES_MAX: usize = 7 << 20;

/// Seven days.
const RETENTION_MS_DEFAULT: i64 = 7 * 24 * 60 * 60 * 1_000;
/// A day.
const DELETE_RETENTION_MS_DEFAULT: u64 = 24 * 60 * 60 * 1_000;
/// Seven days.
const SEGMENT_MS_DEFAULT: u64 = 7 * 24 * 60 * 60 * 1_000;

/// When a batch begins a new segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentLimits {
    /// The segment would grow beyond so many bytes with it; at least 1.
    pub bytes: u64,
    /// The batch's largest timestamp is later than that of the segment's first batch by more than so many milliseconds.
    pub ms: u64,
}

/// When a log is compacted, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompactionSettings {
    /// `min.cleanable.dirty.ratio`: once so much of it, by bytes, was in no compaction yet.
    pub min_dirty_ratio: f64,
    /// `min.compaction.lag.ms`: segments with a younger record are left alone.
    pub min_lag_ms: u64,
    /// `max.compaction.lag.ms`: a record that is older than this and was in no compaction yet is reason enough.
    pub max_lag_ms: u64,
    /// `delete.retention.ms`: how long a tombstone is kept after the compaction that found it.
    pub delete_retention_ms: u64,
}

impl TopicRecord {
    /// `segment.bytes`, or else `default_bytes`, and `segment.ms`.
    #[must_use]
    pub fn segment_limits(&self, default_bytes: u64) -> SegmentLimits {
        let at_least_1 =
            |name| self.number(name).and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
        let ms = at_least_1(SEGMENT_MS).unwrap_or(SEGMENT_MS_DEFAULT);
        // The segment that grows is never compacted: it must end in time.
        let ms = self.compaction().map_or(ms, |compaction| ms.min(compaction.max_lag_ms.max(1)));
        SegmentLimits { bytes: at_least_1(SEGMENT_BYTES).unwrap_or(default_bytes).max(1), ms }
    }

    /// `retention.ms`: milliseconds for which records are kept; `None`: for ever.
    #[must_use]
    pub fn retention_ms(&self) -> Option<u64> {
        u64::try_from(self.number(RETENTION_MS).unwrap_or(RETENTION_MS_DEFAULT)).ok().filter(|_| self.deletes())
    }

    /// `retention.bytes`: bytes of a partition that are kept; `None`: all.
    #[must_use]
    pub fn retention_bytes(&self) -> Option<u64> {
        u64::try_from(self.number(RETENTION_BYTES)?).ok().filter(|_| self.deletes())
    }

    /// Does `cleanup.policy` allow that old records are deleted?
    #[must_use]
    pub fn deletes(&self) -> bool {
        self.configs.get(CLEANUP_POLICY).is_none_or(|policy| policy.split(',').any(|item| item.trim() == "delete"))
    }

    /// What the topic says of compaction; `None` when `cleanup.policy` does not ask for it.
    #[must_use]
    pub fn compaction(&self) -> Option<CompactionSettings> {
        let policy = self.configs.get(CLEANUP_POLICY)?;
        policy.split(',').any(|item| item.trim() == "compact").then(|| {
            let millis =
                |name, default| self.number(name).and_then(|value| u64::try_from(value).ok()).unwrap_or(default);
            let ratio = self.configs.get(MIN_CLEANABLE_DIRTY_RATIO).and_then(|value| value.trim().parse().ok());
            CompactionSettings {
                min_dirty_ratio: ratio.unwrap_or(0.5),
                min_lag_ms: millis(MIN_COMPACTION_LAG_MS, 0),
                max_lag_ms: millis(MAX_COMPACTION_LAG_MS, u64::MAX),
                delete_retention_ms: millis(DELETE_RETENTION_MS, DELETE_RETENTION_MS_DEFAULT),
            }
        })
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.configs.get(name)?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicId;
    use alloc::string::ToString;

    fn topic(configs: &[(&str, &str)]) -> TopicRecord {
        TopicRecord {
            id: TopicId([1; 16]),
            name: "t".to_string(),
            partitions: alloc::vec![],
            configs: configs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            version: 1,
        }
    }

    #[test]
    fn what_is_not_set_is_kafkas_default() {
        let topic = topic(&[]);
        assert_eq!(topic.segment_limits(77), SegmentLimits { bytes: 77, ms: 604_800_000 });
        assert_eq!((topic.retention_ms(), topic.retention_bytes()), (Some(604_800_000), None));
    }

    #[test]
    fn compaction_is_asked_for_by_the_policy() {
        assert_eq!(topic(&[]).compaction(), None);
        assert_eq!(topic(&[("cleanup.policy", "delete")]).compaction(), None);
        let by_default = topic(&[("cleanup.policy", "delete, compact")]).compaction();
        let settings = CompactionSettings {
            min_dirty_ratio: 0.5,
            min_lag_ms: 0,
            max_lag_ms: u64::MAX,
            delete_retention_ms: 86_400_000,
        };
        assert_eq!(by_default, Some(settings));
        let set = topic(&[
            ("cleanup.policy", "compact"),
            ("min.cleanable.dirty.ratio", "0.01"),
            ("min.compaction.lag.ms", "5"),
            ("max.compaction.lag.ms", "6000"),
            ("delete.retention.ms", "7"),
        ]);
        let settings =
            CompactionSettings { min_dirty_ratio: 0.01, min_lag_ms: 5, max_lag_ms: 6_000, delete_retention_ms: 7 };
        assert_eq!(set.compaction(), Some(settings));
        assert_eq!(set.segment_limits(77).ms, 6_000, "what grows is not compacted");
    }

    #[test]
    fn minus_one_keeps_everything_and_so_does_compaction_alone() {
        let forever = topic(&[("retention.ms", "-1"), ("retention.bytes", "-1")]);
        assert_eq!((forever.retention_ms(), forever.retention_bytes()), (None, None));
        let set = &[("retention.ms", "5"), ("retention.bytes", " 7 "), ("segment.bytes", "14"), ("segment.ms", "1")];
        let kept = topic(set);
        assert_eq!((kept.retention_ms(), kept.retention_bytes()), (Some(5), Some(7)));
        assert_eq!(kept.segment_limits(77), SegmentLimits { bytes: 14, ms: 1 });
        for (policy, deletes) in [("compact", false), ("compact, delete", true), ("delete", true)] {
            let mut topic = topic(set);
            topic.configs.insert("cleanup.policy".to_string(), policy.to_string());
            assert_eq!(topic.retention_ms().is_some(), deletes, "{policy}");
            assert_eq!(topic.retention_bytes().is_some(), deletes, "{policy}");
        }
    }
}
