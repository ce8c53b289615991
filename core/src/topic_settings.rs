//! Settings of a topic that decide how long its records are kept and in which portions they go. Names and meanings are Kafka's
//! (`org.apache.kafka.common.config.TopicConfig`); values were checked when they were set, and one that is no number counts as not set.

use crate::directory::TopicRecord;

const CLEANUP_POLICY: &str = "cleanup.policy";
const RETENTION_BYTES: &str = "retention.bytes";
const RETENTION_MS: &str = "retention.ms";
const SEGMENT_BYTES: &str = "segment.bytes";
const SEGMENT_MS: &str = "segment.ms";

/// Seven days.
const RETENTION_MS_DEFAULT: i64 = 7 * 24 * 60 * 60 * 1_000;
/// Seven days.
const SEGMENT_MS_DEFAULT: u64 = 7 * 24 * 60 * 60 * 1_000;

/// When a batch begins a new segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentLimits {
    /// The segment would grow beyond so many bytes with it. `None`: the topic does not say.
    pub bytes: Option<u64>,
    /// The batch's largest timestamp is later than that of the segment's first batch by more than so many milliseconds.
    pub ms: u64,
}

impl Default for SegmentLimits {
    /// Those of a topic that says nothing.
    fn default() -> Self {
        Self { bytes: None, ms: SEGMENT_MS_DEFAULT }
    }
}

impl TopicRecord {
    /// `segment.bytes` and `segment.ms`.
    #[must_use]
    pub fn segment_limits(&self) -> SegmentLimits {
        let at_least_1 =
            |name| self.number(name).and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
        SegmentLimits { bytes: at_least_1(SEGMENT_BYTES), ms: at_least_1(SEGMENT_MS).unwrap_or(SEGMENT_MS_DEFAULT) }
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
        assert_eq!(topic.segment_limits(), SegmentLimits { bytes: None, ms: 604_800_000 });
        assert_eq!((topic.retention_ms(), topic.retention_bytes()), (Some(604_800_000), None));
    }

    #[test]
    fn minus_one_keeps_everything_and_so_does_compaction_alone() {
        let forever = topic(&[("retention.ms", "-1"), ("retention.bytes", "-1")]);
        assert_eq!((forever.retention_ms(), forever.retention_bytes()), (None, None));
        let set = &[("retention.ms", "5"), ("retention.bytes", " 7 "), ("segment.bytes", "14"), ("segment.ms", "1")];
        let kept = topic(set);
        assert_eq!((kept.retention_ms(), kept.retention_bytes()), (Some(5), Some(7)));
        assert_eq!(kept.segment_limits(), SegmentLimits { bytes: Some(14), ms: 1 });
        for (policy, deletes) in [("compact", false), ("compact, delete", true), ("delete", true)] {
            let mut topic = topic(set);
            topic.configs.insert("cleanup.policy".to_string(), policy.to_string());
            assert_eq!(topic.retention_ms().is_some(), deletes, "{policy}");
            assert_eq!(topic.retention_bytes().is_some(), deletes, "{policy}");
        }
    }
}
