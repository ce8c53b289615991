//! Random ops other than those of groups, some of them hostile.

use std::collections::BTreeMap;

use lockstep_core::op::{
    AdvanceLogStart, AllocateProducerIds, AppendMessage, CompactLog, CompactedSegment, CreateTopic, DeleteTopic,
    NewLogStart, PartitionAppend, RegisterBroker, UnregisterBroker, UpdateMetadata,
};
use lockstep_core::{BrokerRecord, Op, ShardId, TopicId, TopicRecord};
use proptest::prelude::*;

/// Mostly from a handful, so that ops meet.
pub(crate) fn topic_id() -> impl Strategy<Value = TopicId> {
    prop_oneof![
        12 => (1_u8..6).prop_map(|id| TopicId([id; 16])),
        1 => any::<[u8; 16]>().prop_map(TopicId),
        1 => Just(TopicId([0; 16])),
    ]
}

pub(crate) fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => prop::sample::select(vec!["a", "b", "c", "d.e", "d_e", "f-1"]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => prop::sample::select(vec!["", ".", "..", "a/b"]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9._-]{1,260}",
    ]
}

pub(crate) fn configs() -> impl Strategy<Value = BTreeMap<String, String>> {
    let stamped = prop::sample::select(vec!["LogAppendTime", "CreateTime", "?"]);
    prop_oneof![
        3 => Just(BTreeMap::new()),
        2 => stamped.prop_map(|value| BTreeMap::from([("message.timestamp.type".to_owned(), value.to_owned())])),
        1 => prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
    ]
}

pub(crate) fn count() -> impl Strategy<Value = u32> {
    prop_oneof![12 => 1_u32..9, 1 => Just(0), 1 => Just(9_999), 1 => any::<u32>(), 1 => Just(i32::MAX as u32 + 1)]
}

fn node_id() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..4, 1 => any::<u64>()]
}

pub(crate) fn broker() -> impl Strategy<Value = BrokerRecord> {
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

pub(crate) fn append_op() -> impl Strategy<Value = Op> {
    (any::<i64>(), prop::collection::vec(append(), 0..5)).prop_map(|(now_ms, mut appends)| {
        // Half of the ops have slices in good order.
        if now_ms % 2 == 0 {
            let mut end = 0_u32;
            for append in &mut appends {
                append.payload_start = end;
                end = end.saturating_add(append.payload_len);
            }
        }
        Op::AppendMessage(AppendMessage { now_ms, segment_bytes: 1 << 20, appends })
    })
}

pub(crate) fn advance_op() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![6 => 0_i64..20, 3 => Just(NewLogStart::END), 1 => any::<i64>()];
    let partition = prop_oneof![12 => 0_u32..6, 1 => any::<u32>()];
    let wanted = (topic_id(), partition, offset).prop_map(|(topic_id, partition, offset)| NewLogStart {
        topic_id,
        partition,
        offset,
    });
    prop::collection::vec(wanted, 0..4).prop_map(|partitions| Op::AdvanceLogStart(AdvanceLogStart { partitions }))
}

pub(crate) fn compact_op() -> impl Strategy<Value = Op> {
    let offset = || prop_oneof![12 => 0_i64..20, 1 => any::<i64>()];
    let segment = (offset(), offset(), 0_u64..3).prop_map(|(base_offset, next_offset, len)| CompactedSegment {
        base_offset,
        next_offset,
        len,
        crc32c: 0,
        first_timestamp_ms: -1,
        max_timestamp_ms: -1,
        max_timestamp_offset: -1,
    });
    let segments = prop::collection::vec(segment, 0..3);
    // Terms of the entries are small.
    let revision = (0_u64..6, 0_u64..4).prop_map(|(term, attempt)| CompactLog::revision_of(term, attempt).unwrap_or(0));
    (topic_id(), 0_u32..6, revision, prop_oneof![3 => Just(0), 1 => offset()], offset(), segments).prop_map(
        |(topic_id, partition, revision, log_start_offset, compacted_to, segments)| {
            Op::CompactLog(CompactLog { topic_id, partition, revision, log_start_offset, compacted_to, segments })
        },
    )
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => compact_op(),
        5 => (topic_id(), name(), count(), configs()).prop_map(|(topic_id, name, partitions, configs)| {
            Op::CreateTopic(CreateTopic { topic_id, name, partitions, configs })
        }),
        4 => advance_op(),
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
