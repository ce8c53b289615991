//! Which part of a log is compacted, and when.
//!
//! The rules are those of Kafka's `LogCleanerManager`: the segment that grows is left alone, and everything from the first one with a record that is younger than
//! `min.compaction.lag.ms`. What was in no compaction yet is dirty; a log is due when enough of it is, or when something has been for too long.

use lockstep_core::CompactionSettings;
use lockstep_core::op::CompactLog;

use crate::storage::SegmentEntry;

/// What a compaction has to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// From the first one of the log on, without a gap.
    pub(super) segments: Vec<SegmentEntry>,
    /// Records at or above this offset were in no compaction yet.
    pub(super) dirty_from: i64,
    /// Bytes of `segments`.
    pub(super) bytes: u64,
    /// The part of these bytes that is dirty.
    pub(super) dirty_ratio: f64,
}

impl Plan {
    /// Where the part ends that is compacted.
    pub(super) fn end(&self) -> i64 {
        self.segments.last().map_or(0, |last| last.next_offset)
    }

    /// Leaves out the segments from this offset on.
    pub(super) fn cut(&mut self, upto: i64) {
        self.segments.retain(|entry| entry.name.base_offset < upto);
        self.bytes = self.segments.iter().map(|entry| entry.len).sum();
    }

    /// Segments are written together up to so many bytes, where the topic's may have `segment_bytes`: more in a log of so many that one op could perhaps not
    /// name what comes of them. Together with the one behind it each is longer than that, so there are fewer than twice as many as it goes into the whole:
    /// half of what an op can name, should batches not become longer.
    pub(super) fn group_bytes(&self, segment_bytes: u64) -> u64 {
        if self.segments.len() <= CompactLog::SEGMENTS_MAX {
            return segment_bytes;
        }
        segment_bytes.max(self.bytes.div_ceil(CompactLog::SEGMENTS_MAX as u64 / 4))
    }
}

/// `segments` are those with records, the one that grows too. `None`: there is nothing to do yet.
pub(super) fn plan(
    segments: &[SegmentEntry],
    compacted_to: i64,
    settings: &CompactionSettings,
    now_ms: i64,
) -> Option<Plan> {
    let (_growing, closed) = segments.split_last()?;
    let age_ms = |timestamp_ms: i64| i128::from(now_ms) - i128::from(timestamp_ms);
    let is_dirty = |segment: &&SegmentEntry| segment.next_offset > compacted_to;
    let is_old_enough = |segment: &&SegmentEntry| {
        let min_lag_ms = settings.min_lag_ms;
        !is_dirty(segment) || min_lag_ms == 0 || age_ms(segment.max_timestamp_ms) >= i128::from(min_lag_ms)
    };
    let segments: Vec<SegmentEntry> = closed.iter().take_while(is_old_enough).copied().collect();
    let first_dirty = segments.iter().find(is_dirty)?;
    let waits_too_long =
        first_dirty.first_timestamp_ms >= 0 && age_ms(first_dirty.first_timestamp_ms) > i128::from(settings.max_lag_ms);
    let bytes: u64 = segments.iter().map(|segment| segment.len).sum();
    let dirty_bytes: u64 = segments.iter().filter(is_dirty).map(|segment| segment.len).sum();
    let dirty_ratio = dirty_bytes as f64 / bytes as f64;
    let is_due = waits_too_long || dirty_ratio > settings.min_dirty_ratio;
    let dirty_from = compacted_to.max(segments.first().map_or(0, |first| first.start_offset));
    is_due.then_some(Plan { segments, dirty_from, bytes, dirty_ratio })
}

#[cfg(test)]
mod tests {
    use lockstep_core::TopicId;

    use super::*;
    use crate::storage::SegmentName;

    const SETTINGS: CompactionSettings =
        CompactionSettings { min_dirty_ratio: 0.5, min_lag_ms: 0, max_lag_ms: u64::MAX, delete_retention_ms: 0 };

    /// Segments of ten records, by length and largest timestamp.
    fn segments(rows: &[(u64, i64)]) -> Vec<SegmentEntry> {
        let entry = |(number, (len, timestamp_ms)): (usize, &(u64, i64))| {
            let base_offset = number as i64 * 10;
            SegmentEntry {
                name: SegmentName { topic_id: TopicId([1; 16]), partition: 0, base_offset, revision: 0 },
                len: *len,
                crc32c: 0,
                start_offset: base_offset,
                next_offset: base_offset + 10,
                first_timestamp_ms: *timestamp_ms,
                max_timestamp_ms: *timestamp_ms,
                max_timestamp_offset: base_offset,
            }
        };
        rows.iter().enumerate().map(entry).collect()
    }

    fn ends(log: &[SegmentEntry], compacted_to: i64, settings: &CompactionSettings, now_ms: i64) -> Option<(i64, i64)> {
        plan(log, compacted_to, settings, now_ms).map(|plan| (plan.dirty_from, plan.end()))
    }

    #[test]
    fn a_log_is_due_when_enough_of_it_is_dirty() {
        let log = segments(&[(100, 1), (60, 1), (40, 1), (500, 1)]);
        assert_eq!(ends(&log, 0, &SETTINGS, 9), Some((0, 30)));
        assert_eq!(ends(&log, 10, &SETTINGS, 9), None, "half of it is not more than half");
        assert_eq!(ends(&log, 10, &CompactionSettings { min_dirty_ratio: 0.49, ..SETTINGS }, 9), Some((10, 30)));
        assert_eq!(ends(&log, 20, &SETTINGS, 9), None, "a fifth");
        assert_eq!(ends(&log, 25, &CompactionSettings { min_dirty_ratio: 0.1, ..SETTINGS }, 9), Some((25, 30)));
        assert_eq!(ends(&log, 30, &CompactionSettings { min_dirty_ratio: 0.0, ..SETTINGS }, 9), None, "nothing is");
        assert_eq!(ends(&log[..1], 0, &SETTINGS, 9), None, "it grows");
        assert_eq!(ends(&[], 0, &SETTINGS, 9), None);
    }

    #[test]
    fn young_records_are_left_alone_and_what_comes_behind_them() {
        let log = segments(&[(100, 10), (100, 80), (100, 20), (500, 90)]);
        let settings = |min_lag_ms| CompactionSettings { min_lag_ms, ..SETTINGS };
        assert_eq!(ends(&log, 0, &settings(20), 100), Some((0, 30)));
        assert_eq!(ends(&log, 0, &settings(21), 100), Some((0, 10)));
        assert_eq!(ends(&log, 0, &settings(91), 100), None);
        assert_eq!(
            ends(&log, 20, &CompactionSettings { min_dirty_ratio: 0.1, ..settings(50) }, 100),
            Some((20, 30)),
            "what is clean has been old"
        );
        assert_eq!(ends(&log, 0, &settings(u64::MAX), i64::MAX), None);
    }

    #[test]
    fn nothing_is_dirty_for_longer_than_allowed() {
        let log = segments(&[(1_000, 10), (10, 50), (10, 60)]);
        let settings = |max_lag_ms| CompactionSettings { max_lag_ms, ..SETTINGS };
        assert_eq!(ends(&log, 10, &settings(50), 100), None);
        assert_eq!(ends(&log, 10, &settings(49), 100), Some((10, 20)));
    }

    #[test]
    fn a_log_that_begins_later_is_dirty_from_there() {
        let mut log = segments(&[(100, 1), (100, 1), (100, 1)]);
        log[0].start_offset = 7;
        assert_eq!(ends(&log, 0, &SETTINGS, 9), Some((7, 20)));
    }

    #[test]
    fn what_is_dirty_behind_many_clean_segments_is_compacted_too() {
        let many = CompactLog::SEGMENTS_MAX + 5_000;
        let log = segments(&vec![(100, 1); many]);
        let dirty_from = many as i64 * 10 - 3_000;
        let due = CompactionSettings { min_dirty_ratio: 0.01, ..SETTINGS };
        assert_eq!(ends(&log, dirty_from, &due, 9), Some((dirty_from, many as i64 * 10 - 10)));
    }

    #[test]
    fn one_op_can_name_what_comes_of_any_log() {
        for (many, lengths) in [
            (CompactLog::SEGMENTS_MAX, vec![100]),
            (CompactLog::SEGMENTS_MAX + 1, vec![1_000]),
            (CompactLog::SEGMENTS_MAX * 3, vec![1_000]),
            (CompactLog::SEGMENTS_MAX * 5, vec![1_000, 1, 600, 30]),
            (CompactLog::SEGMENTS_MAX * 2, vec![1_000, 5_000_000]),
        ] {
            let rows: Vec<(u64, i64)> = lengths.iter().cycle().take(many + 1).map(|len| (*len, 1)).collect();
            let plan = plan(&segments(&rows), 0, &SETTINGS, 9).expect("all of it is dirty");
            let group_bytes = plan.group_bytes(1_000);
            // As segments are written together when nothing of them goes, which makes the most of them.
            let (mut groups, mut open) = (1, 0);
            for segment in &plan.segments {
                if open > 0 && open + segment.len > group_bytes {
                    (groups, open) = (groups + 1, 0);
                }
                open += segment.len;
            }
            assert!(groups <= CompactLog::SEGMENTS_MAX, "{groups} of {many} segments");
            let (mut cut, one) = (plan.clone(), plan.segments[0]);
            cut.cut(one.next_offset);
            assert_eq!((cut.bytes, cut.segments), (one.len, vec![one]));
            assert_eq!(group_bytes == 1_000, many == CompactLog::SEGMENTS_MAX, "{group_bytes} for {many}");
        }
    }
}
