//! Op 20: a partition's log was compacted.
//!
//! Which records stay is decided by the leader that compacts, from records that all replicas have; the op only says what the result is. It takes effect
//! at one position of the log, so that the files of all replicas change there.

use alloc::vec::Vec;

use crate::effect::Effect;
use crate::ids::{Position, TopicId};
use crate::op::{CompactLog, CompactedSegment};
use crate::partitions::{Compaction, Partition, Partitions};
use crate::reply::Reply;
use lockstep_probe::Mark;

impl Partitions {
    /// Op 20.
    pub(crate) fn apply_compact(&mut self, position: Position, op: &CompactLog, effects: &mut Vec<Effect>) -> Reply {
        let key: (TopicId, u32) = (op.topic_id, op.partition);
        let Some(partition) = self.get(key.0, key.1) else { return Reply::Done(false) };
        if op.term() != position.term || !may_follow(partition, op) {
            Mark::CompactionOutOfDate.reached();
            return Reply::Done(false);
        }
        self.compacted(key, Compaction { revision: op.revision, compacted_to: op.compacted_to });
        if !op.segments.is_empty() {
            effects.push(Effect::ReplaceSegments {
                topic_id: key.0,
                partition: key.1,
                revision: op.revision,
                segments: op.segments.clone(),
            });
        }
        Reply::Done(true)
    }
}

/// Is the log still what it was when it was compacted, and can the result be?
fn may_follow(partition: &Partition, op: &CompactLog) -> bool {
    let before = partition.compaction;
    op.revision > before.revision
        && op.log_start_offset == partition.log_start_offset
        && (before.compacted_to..=partition.next_offset).contains(&op.compacted_to)
        && op.segments.len() <= CompactLog::SEGMENTS_MAX
        && op.segments.iter().all(is_possible)
        && op.segments.windows(2).all(|pair| matches!(pair, [a, b] if a.next_offset <= b.base_offset))
        // One that ends where the log begins would hold nothing that can be read.
        && op.segments.first().is_none_or(|first| first.next_offset > partition.log_start_offset)
        && op.segments.last().is_none_or(|last| last.next_offset <= partition.next_offset)
}

fn is_possible(segment: &CompactedSegment) -> bool {
    segment.base_offset >= 0
        && segment.next_offset > segment.base_offset
        && segment.len > 0
        && i64::try_from(segment.len).is_ok()
        && segment.max_timestamp_offset < segment.next_offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producers::Producers;

    const KEY: (TopicId, u32) = (TopicId([1; 16]), 0);

    fn segment(base_offset: i64, next_offset: i64) -> CompactedSegment {
        CompactedSegment {
            base_offset,
            next_offset,
            len: 100,
            crc32c: 7,
            first_timestamp_ms: 5,
            max_timestamp_ms: 5,
            max_timestamp_offset: base_offset,
        }
    }

    const TERM: u64 = 4;

    fn revision(attempt: u64) -> u64 {
        CompactLog::revision_of(TERM, attempt).unwrap()
    }

    fn op() -> CompactLog {
        CompactLog {
            topic_id: KEY.0,
            partition: KEY.1,
            revision: revision(3),
            log_start_offset: 0,
            compacted_to: 30,
            segments: alloc::vec![segment(0, 10), segment(20, 30)],
        }
    }

    fn partitions() -> Partitions {
        let mut partitions =
            Partitions::from_rows(alloc::vec![(KEY, Partition::default())], Producers::default()).unwrap();
        partitions.extend(KEY, 4, 40).unwrap();
        partitions
    }

    fn apply(partitions: &mut Partitions, op: &CompactLog) -> (Reply, Vec<Effect>) {
        let mut effects = Vec::new();
        let reply = partitions.apply_compact(Position { term: TERM, index: 50 }, op, &mut effects);
        assert_eq!(partitions.sum(), partitions.recomputed_sum());
        (reply, effects)
    }

    #[test]
    fn segments_are_replaced_and_how_far_is_remembered() {
        let mut partitions = partitions();
        let before = partitions.sum();
        let (reply, effects) = apply(&mut partitions, &op());
        assert_eq!(reply, Reply::Done(true));
        let replaced = Effect::ReplaceSegments {
            topic_id: KEY.0,
            partition: KEY.1,
            revision: revision(3),
            segments: alloc::vec![segment(0, 10), segment(20, 30)],
        };
        assert_eq!(effects, [replaced]);
        let view = partitions.get(KEY.0, KEY.1).unwrap().view();
        assert_eq!(
            (view.compaction_revision, view.compacted_to, view.log_start_offset, view.next_offset),
            (revision(3), 30, 0, 40)
        );
        assert_ne!(partitions.sum(), before);
        // Where nothing can be removed, how far was looked is worth remembering.
        let nothing = CompactLog { revision: revision(4), compacted_to: 40, segments: Vec::new(), ..op() };
        assert_eq!(apply(&mut partitions, &nothing), (Reply::Done(true), Vec::new()));
        assert_eq!(partitions.get(KEY.0, KEY.1).unwrap().view().compacted_to, 40);
    }

    #[test]
    fn what_does_not_fit_the_log_any_more_does_nothing() {
        let wrong: &[fn(&mut CompactLog)] = &[
            |op| op.partition = 1,
            |op| op.revision = 0,
            |op| op.revision = CompactLog::revision_of(TERM - 1, 9).unwrap(),
            |op| op.revision = CompactLog::revision_of(TERM + 1, 1).unwrap(),
            |op| op.log_start_offset = 1,
            |op| op.compacted_to = 41,
            |op| op.compacted_to = -1,
            |op| op.segments[0].base_offset = -1,
            |op| op.segments[0].next_offset = 0,
            |op| op.segments[0].next_offset = 21,
            |op| op.segments[1].next_offset = 41,
            |op| op.segments[0].len = 0,
            |op| op.segments[0].len = u64::MAX,
            |op| op.segments[0].max_timestamp_offset = 10,
            |op| op.segments.swap(0, 1),
            |op| op.segments = alloc::vec![segment(0, 10); CompactLog::SEGMENTS_MAX + 1],
        ];
        for (number, change) in wrong.iter().enumerate() {
            let mut partitions = partitions();
            let before = partitions.sum();
            let mut op = op();
            change(&mut op);
            assert_eq!(apply(&mut partitions, &op), (Reply::Done(false), Vec::new()), "{number}");
            assert_eq!(partitions.sum(), before, "{number}");
        }
    }

    #[test]
    fn revisions_ascend_with_terms_and_attempts_until_there_are_none() {
        let ascending = [(0, 1), (0, (1 << 20) - 1), (1, 0), (1, 1), ((1 << 44) - 1, (1 << 20) - 1)];
        let revisions: Vec<_> =
            ascending.iter().map(|(term, attempt)| CompactLog::revision_of(*term, *attempt)).collect();
        assert!(revisions.iter().all(Option::is_some) && revisions.is_sorted());
        assert_eq!((CompactLog::revision_of(1 << 44, 0), CompactLog::revision_of(0, 1 << 20)), (None, None));
    }

    #[test]
    fn each_compaction_is_later_and_goes_at_least_as_far() {
        let mut partitions = partitions();
        assert_eq!(apply(&mut partitions, &op()).0, Reply::Done(true));
        for (attempt, compacted_to, expected) in [(3, 30, false), (2, 30, false), (4, 29, false), (4, 30, true)] {
            let again = CompactLog { revision: revision(attempt), compacted_to, segments: Vec::new(), ..op() };
            assert_eq!(apply(&mut partitions, &again).0, Reply::Done(expected), "{attempt} {compacted_to}");
        }
    }
}
