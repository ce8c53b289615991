//! Whatever comes: no panic, sound invariants, equal replicas.

use std::collections::BTreeMap;

use lockstep_core::op::{
    AllocateProducerIds, AppendMessage, CreateTopic, DeleteTopic, PartitionAppend, RegisterBroker, UnregisterBroker,
    UpdateMetadata,
};
use lockstep_core::{BrokerRecord, ClusterStateMachine, Op, Position, ShardId, TopicId, TopicRecord};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

/// Mostly from a handful, so that ops meet.
fn topic_id() -> impl Strategy<Value = TopicId> {
    prop_oneof![
        12 => (1_u8..6).prop_map(|id| TopicId([id; 16])),
        1 => any::<[u8; 16]>().prop_map(TopicId),
        1 => Just(TopicId([0; 16])),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => prop::sample::select(vec!["a", "b", "c", "d.e", "d_e", "f-1"]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => prop::sample::select(vec!["", ".", "..", "a/b"]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9._-]{1,260}",
    ]
}

fn configs() -> impl Strategy<Value = BTreeMap<String, String>> {
    let stamped = prop::sample::select(vec!["LogAppendTime", "CreateTime", "?"]);
    prop_oneof![
        3 => Just(BTreeMap::new()),
        2 => stamped.prop_map(|value| BTreeMap::from([("message.timestamp.type".to_owned(), value.to_owned())])),
        1 => prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
    ]
}

fn count() -> impl Strategy<Value = u32> {
    prop_oneof![12 => 1_u32..9, 1 => Just(0), 1 => Just(9_999), 1 => any::<u32>(), 1 => Just(i32::MAX as u32 + 1)]
}

fn node_id() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..4, 1 => any::<u64>()]
}

fn broker() -> impl Strategy<Value = BrokerRecord> {
    (node_id(), ".{0,4}", any::<u16>(), prop::option::of(".{0,3}"), any::<u8>(), any::<u16>()).prop_map(
        |(id, host, port, rack, incarnation, feature_level)| BrokerRecord {
            id,
            host,
            port,
            rack,
            incarnation: [incarnation; 16],
            feature_level,
        },
    )
}

fn append() -> impl Strategy<Value = PartitionAppend> {
    let slice = prop_oneof![12 => (0_u32..40, 1_u32..40), 1 => (any::<u32>(), any::<u32>())];
    let producer = prop_oneof![
        2 => Just((-1_i64, -1_i16, -1_i32)),
        6 => (0_i64..3, 0_i16..2, prop_oneof![3 => 0_i32..8, 1 => (i32::MAX - 4)..=i32::MAX]),
        1 => (any::<i64>(), any::<i16>(), any::<i32>()),
    ];
    (topic_id(), prop_oneof![12 => 0_u32..6, 1 => any::<u32>()], slice, count(), producer, any::<i64>()).prop_map(
        |(topic_id, partition, (payload_start, payload_len), offset_count, producer, max_timestamp_ms)| {
            PartitionAppend {
                topic_id,
                partition,
                payload_start,
                payload_len,
                offset_count,
                producer_id: producer.0,
                producer_epoch: producer.1,
                base_sequence: producer.2,
                max_timestamp_ms,
            }
        },
    )
}

fn record() -> impl Strategy<Value = TopicRecord> {
    let shards = prop::collection::vec(prop_oneof![20 => 0_u16..3, 1 => any::<u16>()].prop_map(ShardId), 0..6);
    let version = prop_oneof![8 => 0_u64..8, 1 => any::<u64>()];
    (topic_id(), name(), shards, configs(), version).prop_map(|(id, name, partitions, configs, version)| TopicRecord {
        id,
        name,
        partitions,
        configs,
        version,
    })
}

fn feed() -> impl Strategy<Value = UpdateMetadata> {
    let version = || prop_oneof![12 => 0_u64..12, 1 => any::<u64>()];
    (
        version(),
        version(),
        any::<bool>(),
        prop::collection::vec(record(), 0..4),
        prop::collection::vec(topic_id(), 0..3),
        prop::option::of(prop::collection::vec(broker(), 0..3)),
    )
        .prop_map(|(from_version, to_version, full, topics, deleted, brokers)| UpdateMetadata::Feed {
            from_version,
            to_version,
            full,
            topics,
            deleted,
            brokers,
        })
}

fn append_op() -> impl Strategy<Value = Op> {
    (any::<i64>(), prop::collection::vec(append(), 0..5)).prop_map(|(now_ms, mut appends)| {
        // Half of the ops have slices in good order.
        if now_ms % 2 == 0 {
            let mut end = 0_u32;
            for append in &mut appends {
                append.payload_start = end;
                end = end.saturating_add(append.payload_len);
            }
        }
        Op::AppendMessage(AppendMessage { now_ms, appends })
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (topic_id(), name(), count(), configs()).prop_map(|(topic_id, name, partitions, configs)| {
            Op::CreateTopic(CreateTopic { topic_id, name, partitions, configs })
        }),
        2 => topic_id().prop_map(|topic_id| Op::DeleteTopic(DeleteTopic { topic_id })),
        10 => append_op(),
        1 => (topic_id(), configs())
            .prop_map(|(topic_id, configs)| Op::UpdateMetadata(UpdateMetadata::SetTopicConfigs { topic_id, configs })),
        2 => (topic_id(), count())
            .prop_map(|(topic_id, partitions)| Op::UpdateMetadata(UpdateMetadata::AddPartitions { topic_id, partitions })),
        4 => feed().prop_map(Op::UpdateMetadata),
        2 => broker().prop_map(|broker| Op::RegisterBroker(RegisterBroker { broker })),
        1 => node_id().prop_map(|node_id| Op::UnregisterBroker(UnregisterBroker { node_id })),
        1 => count().prop_map(|count| Op::AllocateProducerIds(AllocateProducerIds { count })),
    ]
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

proptest! {
    #![proptest_config(config(192))]

    #[test]
    fn replicas_stay_sound_and_equal(shard in 0_u16..3, steps in prop::collection::vec(step(), 1..40)) {
        let mut first = ClusterStateMachine::new(ShardId(shard), 3);
        let mut second = first.clone();
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
            let op = Op::AppendMessage(AppendMessage { now_ms: 0, appends: vec![append] });
            let applied = state.apply(Position { term: 1, index }, &op, 80).unwrap();
            let lockstep_core::Reply::Append(outcomes) = applied.reply else { panic!("not an append's reply") };
            let appended = outcomes[0].as_ref().expect("stored or known");
            prop_assert_eq!((appended.base_offset, appended.duplicate), (base_offset, applied.effects.is_empty()));
        }
        let stored: i64 = batches[..sent].iter().map(|(_, count, _)| i64::from(*count)).sum();
        prop_assert_eq!(state.partition(id, 0).unwrap().next_offset, stored);
    }

    #[test]
    fn any_bytes_are_an_op_or_an_error(code in 0_u8..14, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
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
