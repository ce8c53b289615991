//! Whatever comes: no panic, sound invariants, equal replicas.

use std::collections::BTreeMap;

use lockstep_core::op::{AppendMessage, CreateTopic, PartitionAppend};
use lockstep_core::{ClusterStateMachine, Op, Position, ShardId, TopicId};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::strategies::op;

/// Proptest's default number of cases, or that of `PROPTEST_CASES`; a failing case is kept beside the test.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

/// An op with what comes around it: steps of term and index, payload length, and whether one replica is restored before it.
fn step() -> impl Strategy<Value = (Op, u64, u64, usize, bool)> {
    (
        op(),
        prop_oneof![9 => Just(0_u64), 1 => 1_u64..4, 1 => Just(1_u64 << 40)],
        1_u64..3,
        prop_oneof![9 => 60_usize..120, 1 => any::<usize>()],
        prop::bool::weighted(0.1),
    )
}

/// A partition's log begins where it did, or later; `starts` are those of the state before. A topic's id is used once.
fn no_start_goes_back(
    starts: &mut BTreeMap<(TopicId, u32), i64>,
    state: &ClusterStateMachine,
) -> Result<(), TestCaseError> {
    let now: BTreeMap<_, _> =
        state.partitions().into_iter().map(|(id, partition, view)| ((id, partition), view.log_start_offset)).collect();
    for (key, start) in &now {
        prop_assert!(starts.get(key).is_none_or(|before| before <= start), "{key:?} begins at {start} again");
    }
    *starts = now;
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn replicas_stay_sound_and_equal(shard in 0_u16..3, steps in prop::collection::vec(step(), 1..40)) {
        let mut first = ClusterStateMachine::new(ShardId(shard), 3);
        let mut second = first.clone();
        let mut starts = BTreeMap::new();
        let mut position = Position::default();
        for (op, terms, indexes, payload_len, restored) in steps {
            position.term = position.term.saturating_add(terms);
            position.index += indexes;
            if restored {
                let bytes = second.snapshot();
                second = ClusterStateMachine::restore(&bytes).unwrap();
                prop_assert_eq!(second.snapshot(), bytes);
            }
            let decoded = Op::decode(&op.encode()).unwrap();
            prop_assert_eq!(&decoded, &op);
            let applied = first.apply(position, &op, payload_len).unwrap();
            prop_assert_eq!(second.apply(position, &decoded, payload_len).unwrap(), applied);
            first.check_invariants().unwrap();
            no_start_goes_back(&mut starts, &first)?;
            prop_assert_eq!(first.digest(), second.digest());
            prop_assert!(first.apply(position, &op, payload_len).is_err(), "the same position again");
            prop_assert_eq!(first.digest(), second.digest());
        }
    }

    #[test]
    fn other_shards_end_with_the_directory_of_shard_0(steps in prop::collection::vec((op(), 0_u8..4), 1..40)) {
        let mut metadata = ClusterStateMachine::new(ShardId(0), 3);
        let mut followers = [1, 2].map(|shard| ClusterStateMachine::new(ShardId(shard), 3));
        let mut position = Position { term: 1, index: 0 };
        let last = steps.len();
        for (at, (op, fed)) in (1..).zip(steps) {
            position.index += 1;
            metadata.apply(position, &op, 100).unwrap();
            for (follower, bit) in followers.iter_mut().zip([1, 2]) {
                if fed & bit == 0 && at < last {
                    continue;
                }
                while let Some(feed) = metadata.feed_since(follower.directory().version) {
                    position.index += 1;
                    let before = follower.directory().version;
                    follower.apply(position, &feed, 0).unwrap();
                    follower.check_invariants().unwrap();
                    prop_assert!(follower.directory().version > before);
                }
            }
        }
        for follower in &followers {
            prop_assert_eq!(&follower.directory().topics, &metadata.directory().topics);
            prop_assert_eq!(&follower.directory().topic_ids, &metadata.directory().topic_ids);
            prop_assert_eq!(&follower.directory().brokers, &metadata.directory().brokers);
        }
        // Every partition lives in exactly one shard.
        let placed: usize = metadata.directory().topics.values().map(|topic| topic.partitions.len()).sum();
        let hosted: usize = followers.iter().chain([&metadata]).map(|state| state.partitions().len()).sum();
        prop_assert_eq!(hosted, placed);
    }

    #[test]
    fn an_idempotent_producer_stores_each_batch_once(
        counts in prop::collection::vec(1_u32..4, 1..30),
        sends in prop::collection::vec((0_usize..5, any::<bool>()), 1..120),
        first_sequence in prop_oneof![Just(0_i32), Just(i32::MAX - 5)],
    ) {
        // The producer sends batches in order, and again any of the last five.
        let mut state = ClusterStateMachine::new(ShardId(0), 1);
        let id = TopicId([1; 16]);
        let create = CreateTopic { topic_id: id, name: "t".to_owned(), partitions: 1, configs: BTreeMap::new() };
        state.apply(Position { term: 1, index: 1 }, &Op::CreateTopic(create), 0).unwrap();
        let mut batches = Vec::new();
        let (mut sequence, mut offset) = (i64::from(first_sequence), 0_i64);
        for count in counts {
            batches.push((sequence as i32, count, offset));
            sequence = (sequence + i64::from(count)) % (i64::from(i32::MAX) + 1);
            offset += i64::from(count);
        }
        let mut sent = 0;
        for (index, (back, again)) in (2..).zip(sends) {
            let at = if again && sent > 0 { sent - 1 - back.min(sent - 1) } else { sent };
            let Some((base_sequence, offset_count, base_offset)) = batches.get(at).copied() else { break };
            sent = sent.max(at + 1);
            let append = PartitionAppend {
                topic_id: id, partition: 0, payload_start: 0, payload_len: 80, offset_count,
                producer_id: 9, producer_epoch: 0, base_sequence, max_timestamp_ms: 0,
            };
            let op = Op::AppendMessage(AppendMessage { now_ms: 0, segment_bytes: 1 << 20, appends: vec![append] });
            let applied = state.apply(Position { term: 1, index }, &op, 80).unwrap();
            let lockstep_core::Reply::Append(outcomes) = applied.reply else { panic!("not an append's reply") };
            let appended = outcomes[0].as_ref().expect("stored or known");
            prop_assert_eq!((appended.base_offset, appended.duplicate), (base_offset, applied.effects.is_empty()));
        }
        let stored: i64 = batches[..sent].iter().map(|(_, count, _)| i64::from(*count)).sum();
        prop_assert_eq!(state.partition(id, 0).unwrap().next_offset, stored);
    }

    #[test]
    fn any_bytes_are_an_op_or_an_error(code in 0_u8..21, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Op::decode(&bytes);
        let framed: Vec<u8> = [1, code].into_iter().chain(bytes).collect();
        if let Ok(op) = Op::decode(&framed) {
            prop_assert_eq!(Op::decode(&op.encode()), Ok(op));
        }
    }

    #[test]
    fn any_bytes_are_a_snapshot_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = ClusterStateMachine::restore(&bytes);
        let framed: Vec<u8> = [1].into_iter().chain(bytes).collect();
        if let Ok(state) = ClusterStateMachine::restore(&framed) {
            state.check_invariants().unwrap();
        }
    }
}
