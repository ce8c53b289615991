//! Op 3: offsets, epochs and idempotent producers.

use lockstep_core::op::{AdvanceLogStart, NewLogStart, PartitionAppend};
use lockstep_core::reply::AppendError::{
    CorruptBatch, DuplicateSequence, InvalidProducerEpoch, OutOfOrderSequence, UnknownPartition,
};
use lockstep_core::reply::{AppendError, Appended};
use lockstep_core::{Effect, Op, Reply, SegmentLimits};

use crate::harness::{SEGMENT_BYTES, Shard, delete, idempotent, plain, set_configs, topic_id};

fn shard_with_topic() -> Shard {
    let mut shard = Shard::new(0, 1);
    shard.create(1, "orders", 3);
    shard
}

/// Base offset and whether it was a duplicate.
fn stored(outcome: Result<Appended, AppendError>) -> Result<(i64, bool), AppendError> {
    outcome.map(|appended| (appended.base_offset, appended.duplicate))
}

#[test]
fn offsets_are_given_in_order_partition_by_partition() {
    let mut shard = shard_with_topic();
    let (outcomes, effects) = shard.append_all(vec![plain(1, 0, 3), plain(1, 1, 1), plain(1, 0, 2)]);
    let base_offsets: Vec<i64> = outcomes.into_iter().map(|outcome| outcome.unwrap().base_offset).collect();
    assert_eq!(base_offsets, [0, 0, 3]);
    assert_eq!(
        effects[2],
        Effect::Append {
            topic_id: topic_id(1),
            partition: 0,
            payload_start: 200,
            payload_len: 100,
            base_offset: 3,
            next_offset: 5,
            leader_epoch: 1,
            log_append_time_ms: None,
            limits: SegmentLimits { bytes: SEGMENT_BYTES, ms: 604_800_000 },
        }
    );
    assert_eq!(shard.state.partition(topic_id(1), 0).unwrap().next_offset, 5);
    assert_eq!(stored(shard.append(plain(1, 0, 1))), Ok((5, false)));
}

#[test]
fn one_refused_batch_does_not_hold_up_the_others() {
    let mut shard = shard_with_topic();
    let (outcomes, effects) =
        shard.append_all(vec![plain(1, 3, 1), plain(2, 0, 1), plain(1, 0, 0), plain(1, 0, u32::MAX), plain(1, 2, 1)]);
    assert_eq!(outcomes[..4], [UnknownPartition, UnknownPartition, CorruptBatch, CorruptBatch].map(Err));
    assert!(outcomes[4].is_ok());
    assert_eq!(effects.len(), 1);
}

#[test]
fn slices_that_overlap_or_leave_the_payload_are_corrupt() {
    let at = |start, len| PartitionAppend { payload_start: start, payload_len: len, ..plain(1, 0, 1) };
    let cases = [
        (vec![(0, 50), (50, 50)], vec![true, true]),
        (vec![(0, 50), (60, 40)], vec![true, true]),
        (vec![(0, 50), (49, 51)], vec![true, false]),
        (vec![(0, 101), (0, 100)], vec![false, true]),
        (vec![(10, 0)], vec![false]),
        (vec![(100, 1), (u32::MAX, u32::MAX)], vec![false, false]),
        (vec![(50, 50), (0, 50)], vec![true, false]),
    ];
    for (slices, good) in cases {
        let mut shard = shard_with_topic();
        let appends = slices.iter().map(|(start, len)| at(*start, *len)).collect();
        let (outcomes, _) = shard.append_raw(appends, 100);
        let outcomes: Vec<bool> = outcomes.iter().map(|outcome| *outcome != Err(CorruptBatch)).collect();
        assert_eq!(outcomes, good, "{slices:?}");
    }
}

#[test]
fn a_topic_may_stamp_records_on_append() {
    let mut shard = shard_with_topic();
    assert_eq!(shard.append(plain(1, 0, 1)).unwrap().log_append_time_ms, None);
    shard.topic_op(&set_configs(1, &[("message.timestamp.type", "LogAppendTime")])).0.unwrap();
    let (outcomes, effects) = shard.append_all(vec![idempotent(0, 0, 1)]);
    assert_eq!(outcomes[0].as_ref().unwrap().log_append_time_ms, Some(1_700_000_000_000));
    assert!(matches!(effects[0], Effect::Append { log_append_time_ms: Some(1_700_000_000_000), .. }));
    shard.topic_op(&set_configs(1, &[("message.timestamp.type", "CreateTime")])).0.unwrap();
    let duplicate = shard.append(idempotent(0, 0, 1)).unwrap();
    assert_eq!(duplicate.log_append_time_ms, Some(1_700_000_000_000), "a duplicate has its original's time");
    assert_eq!(shard.append(plain(1, 0, 1)).unwrap().log_append_time_ms, None);
}

#[test]
fn a_duplicate_gets_the_offset_of_the_original() {
    let mut shard = shard_with_topic();
    for sequence in 0..5 {
        assert_eq!(stored(shard.append(idempotent(0, sequence * 2, 2))), Ok((i64::from(sequence) * 2, false)));
    }
    let digest = shard.state.digest();
    for sequence in 0..5 {
        let (outcomes, effects) = shard.append_all(vec![idempotent(0, sequence * 2, 2)]);
        assert_eq!(stored(outcomes[0].clone()), Ok((i64::from(sequence) * 2, true)));
        assert_eq!(effects, []);
    }
    assert_eq!(shard.state.digest(), digest);
    assert_eq!(stored(shard.append(idempotent(0, 10, 1))), Ok((10, false)));
    assert_eq!(shard.append(idempotent(0, 0, 2)), Err(DuplicateSequence), "only five are remembered");
}

#[test]
fn a_duplicate_within_one_op_is_found() {
    let mut shard = shard_with_topic();
    let (outcomes, effects) = shard.append_all(vec![idempotent(0, 0, 2), idempotent(0, 0, 2), idempotent(0, 2, 1)]);
    let outcomes: Vec<_> = outcomes.into_iter().map(stored).collect();
    assert_eq!(outcomes, [Ok((0, false)), Ok((0, true)), Ok((2, false))]);
    assert_eq!(effects.len(), 2);
}

#[test]
fn a_gap_in_the_sequence_is_refused() {
    let mut shard = shard_with_topic();
    shard.append(idempotent(0, 0, 3)).unwrap();
    for (sequence, count) in [(4, 1), (i32::MAX, 1), (2, 2), (1, 1), (0, 4)] {
        assert_eq!(shard.append(idempotent(0, sequence, count)), Err(OutOfOrderSequence), "{sequence}+{count}");
    }
    assert_eq!(stored(shard.append(idempotent(0, 3, 1))), Ok((3, false)));
}

#[test]
fn an_older_epoch_is_fenced_and_a_new_one_starts_at_0() {
    let mut shard = shard_with_topic();
    shard.append(idempotent(4, 0, 3)).unwrap();
    assert_eq!(shard.append(idempotent(3, 3, 1)), Err(InvalidProducerEpoch));
    assert_eq!(shard.append(idempotent(5, 3, 1)), Err(OutOfOrderSequence));
    assert_eq!(stored(shard.append(idempotent(5, 0, 1))), Ok((3, false)));
    assert_eq!(shard.append(idempotent(4, 3, 1)), Err(InvalidProducerEpoch));
    assert_eq!(stored(shard.append(idempotent(5, 0, 1))), Ok((3, true)));
}

#[test]
fn a_producer_of_which_nothing_is_known_may_start_anywhere() {
    let mut shard = shard_with_topic();
    assert_eq!(stored(shard.append(idempotent(2, 700, 3))), Ok((0, false)));
    // What came before was never seen, so it must not pass for a duplicate.
    assert_eq!(shard.append(idempotent(2, 0, 3)), Err(OutOfOrderSequence));
    assert_eq!(stored(shard.append(idempotent(2, 703, 1))), Ok((3, false)));
}

#[test]
fn sequences_wrap_at_the_largest_i32() {
    let mut shard = shard_with_topic();
    shard.append(idempotent(0, i32::MAX - 1, 2)).unwrap();
    assert_eq!(stored(shard.append(idempotent(0, 0, 1))), Ok((2, false)));
    let mut shard = shard_with_topic();
    shard.append(idempotent(0, i32::MAX, 3)).unwrap();
    assert_eq!(shard.append(idempotent(0, 3, 1)), Err(OutOfOrderSequence));
    assert_eq!(stored(shard.append(idempotent(0, 2, 1))), Ok((3, false)));
    assert_eq!(stored(shard.append(idempotent(0, i32::MAX, 3))), Ok((0, true)));
}

#[test]
fn producers_are_known_partition_by_partition() {
    let mut shard = shard_with_topic();
    shard.append(idempotent(0, 0, 3)).unwrap();
    let elsewhere = PartitionAppend { partition: 1, ..idempotent(0, 0, 3) };
    assert_eq!(stored(shard.append(elsewhere)), Ok((0, false)));
    let another = PartitionAppend { producer_id: 6, ..idempotent(0, 0, 3) };
    assert_eq!(stored(shard.append(another)), Ok((3, false)));
}

#[test]
fn a_header_that_contradicts_itself_is_corrupt() {
    let mut shard = shard_with_topic();
    for (producer_id, producer_epoch, base_sequence) in [(-2, 0, 0), (i64::MIN, 0, 0), (5, -1, 0), (5, 0, -1)] {
        let append = PartitionAppend { producer_id, producer_epoch, base_sequence, ..plain(1, 0, 1) };
        assert_eq!(shard.append(append), Err(CorruptBatch));
    }
}

#[test]
fn a_recreated_topic_knows_nothing_of_the_old_ones_producers() {
    let mut shard = shard_with_topic();
    shard.append(idempotent(7, 0, 3)).unwrap();
    shard.topic_op(&delete(1)).0.unwrap();
    shard.create(2, "orders", 1);
    assert_eq!(shard.append(idempotent(7, 3, 1)), Err(UnknownPartition));
    let append = PartitionAppend { topic_id: topic_id(2), ..idempotent(0, 0, 1) };
    assert_eq!(stored(shard.append(append)), Ok((0, false)));
}

#[test]
fn the_end_of_an_epoch_is_the_start_of_the_next() {
    let mut shard = shard_with_topic();
    let end = |shard: &Shard, epoch| shard.state.end_offset_for_epoch(topic_id(1), 0, epoch);
    assert_eq!(end(&shard, 0), None);
    for (term, count) in [(3, 10), (3, 5), (5, 1), (9, 2)] {
        shard.position.term = term;
        shard.append(plain(1, 0, count)).unwrap();
    }
    assert_eq!(shard.state.partition(topic_id(1), 0).unwrap().last_epoch, 9);
    let cases = [
        (-1, None),
        (2, Some((2, 0))),
        (3, Some((3, 15))),
        (4, Some((3, 15))),
        (5, Some((5, 16))),
        (8, Some((5, 16))),
        (9, Some((9, 18))),
        (i32::MAX, Some((9, 18))),
    ];
    for (epoch, expected) in cases {
        assert_eq!(end(&shard, epoch), expected, "epoch {epoch}");
    }
    assert_eq!(shard.state.end_offset_for_epoch(topic_id(1), 7, 3), None);
}

#[test]
fn many_epochs_are_forgotten_without_shortening_any() {
    let mut shard = shard_with_topic();
    for term in 1..=1100_u64 {
        shard.position.term = term;
        shard.append(plain(1, 0, 1)).unwrap();
    }
    for epoch in 1..=1100 {
        let (found, end) = shard.state.end_offset_for_epoch(topic_id(1), 0, epoch).unwrap();
        assert!(found <= epoch && end >= i64::from(epoch), "epoch {epoch} ends at {end}");
        // Each one has one record.
        let (first, last, upto) = shard.state.epochs_at(topic_id(1), 0, i64::from(epoch) - 1).unwrap();
        assert!((first..=last).contains(&epoch), "{first}..={last} instead of {epoch}");
        assert!(upto == i64::from(epoch) || first < last, "up to {upto}");
    }
    assert_eq!(shard.state.epochs_at(topic_id(1), 0, 1100), None);
    assert_eq!(shard.state.end_offset_for_epoch(topic_id(1), 0, 1100), Some((1100, 1100)));
}

#[test]
fn a_batch_goes_by_the_topics_segment_settings_at_its_position() {
    let mut shard = shard_with_topic();
    let limits = |shard: &mut Shard| match shard.append_all(vec![plain(1, 0, 1)]).1[0] {
        Effect::Append { limits, .. } => limits,
        ref other => panic!("not an append: {other:?}"),
    };
    let by_broker = SegmentLimits { bytes: SEGMENT_BYTES, ms: 604_800_000 };
    assert_eq!(limits(&mut shard), by_broker);
    shard.topic_op(&set_configs(1, &[("segment.bytes", "1000"), ("segment.ms", "60000")])).0.unwrap();
    assert_eq!(limits(&mut shard), SegmentLimits { bytes: 1000, ms: 60_000 });
    shard.topic_op(&set_configs(1, &[])).0.unwrap();
    assert_eq!(limits(&mut shard), by_broker);
}

#[test]
fn producers_are_remembered_when_all_their_records_were_deleted() {
    let mut shard = shard_with_topic();
    assert_eq!(stored(shard.append(idempotent(0, 0, 3))), Ok((0, false)));
    let all = NewLogStart { topic_id: topic_id(1), partition: 0, offset: NewLogStart::END };
    let deleted = shard.apply(&Op::AdvanceLogStart(AdvanceLogStart { partitions: vec![all] }), 0);
    assert_eq!(deleted.reply, Reply::LogStarts(vec![Ok(3)]));
    assert_eq!(stored(shard.append(idempotent(0, 0, 3))), Ok((0, true)));
    let next = shard.append(idempotent(0, 3, 1)).unwrap();
    assert_eq!((next.base_offset, next.log_start_offset), (3, 3));
}
