//! Encodings are for ever: journals and snapshots on disk, and peers of other versions, hold them.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::op::{
    AdvanceLogStart, AllocateProducerIds, AppendMessage, ClassicJoin, CommitOffset, CommitOffsets, CompactLog,
    CompactedSegment, ConfigureGroup, ConsumerHeartbeat, CreateTopic, DeleteGroup, DeleteOffsets, DeleteTopic,
    ExpireOffsets, ExpiredMember, ExpiryReason, HeartbeatConsumer, JoinConsumerGroup, LeaveConsumerGroup, NewLogStart,
    OffsetToCommit, PartitionAppend, RebalancePartitions, RegisterBroker, ResolveRegularExpression, TopicPartitions,
    UnregisterBroker, UpdateMetadata,
};
use lockstep_core::{BrokerRecord, Op, ShardId, TopicId, TopicRecord};

/// One line an op: its name, then its encoding in hexadecimal.
const GOLDEN: &str = include_str!("golden_encodings.txt");

fn id(first: u8) -> TopicId {
    let mut bytes = [0; 16];
    for (byte, value) in bytes.iter_mut().zip(first..) {
        *byte = value;
    }
    TopicId(bytes)
}

fn configs() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("cleanup.policy".to_owned(), "delete".to_owned()),
        ("retention.ms".to_owned(), "604800000".to_owned()),
    ])
}

fn broker() -> BrokerRecord {
    BrokerRecord {
        id: 1000,
        host: "b1.example".to_owned(),
        port: 9092,
        rack: Some("r1".to_owned()),
        incarnation: [0xA5; 16],
        feature_level: 3,
    }
}

fn commit() -> CommitOffset {
    CommitOffset {
        group_id: "g".to_owned(),
        member_id: "m".to_owned(),
        instance_id: Some("i".to_owned()),
        generation_or_epoch: -1,
        knows_epochs: true,
        now_ms: 1_700_000_000_123,
        offsets: vec![OffsetToCommit {
            topic_id: id(1),
            partition: 2,
            offset: 5_000_000_000,
            leader_epoch: -1,
            metadata: "note".to_owned(),
        }],
    }
}

fn heartbeat(member_epoch: i32) -> ConsumerHeartbeat {
    ConsumerHeartbeat {
        group_id: "g".to_owned(),
        member_id: "m".to_owned(),
        member_epoch,
        instance_id: Some("i".to_owned()),
        rack_id: Some("r".to_owned()),
        rebalance_timeout_ms: 300_000,
        subscribed_topic_names: Some(vec!["t".to_owned(), "u".to_owned()]),
        subscribed_topic_regex: Some("t.*".to_owned()),
        server_assignor: Some("uniform".to_owned()),
        owned: Some(vec![TopicPartitions { topic_id: id(1), partitions: vec![0, 300] }]),
        client_id: "c".to_owned(),
        client_host: "h".to_owned(),
        session_timeout_ms: 45_000,
        heartbeat_interval_ms: 5_000,
        members_max: 200,
        now_ms: 1_700_000_000_000,
    }
}

/// Every op in every variant, with every field set to something that shows.
fn examples() -> Vec<(&'static str, Op)> {
    let bare = ConsumerHeartbeat {
        instance_id: None,
        rack_id: None,
        rebalance_timeout_ms: -1,
        subscribed_topic_names: None,
        subscribed_topic_regex: None,
        server_assignor: None,
        owned: None,
        ..heartbeat(7)
    };
    let record = TopicRecord {
        id: id(1),
        name: "orders".to_owned(),
        partitions: vec![ShardId(0), ShardId(300)],
        configs: configs(),
        version: 500,
    };
    let administrative = CommitOffset {
        group_id: "h".to_owned(),
        member_id: String::new(),
        instance_id: None,
        knows_epochs: false,
        now_ms: 0,
        offsets: Vec::new(),
        ..commit()
    };
    let expired = |reason| ExpiredMember { member_id: "m".to_owned(), last_seen: 1_000, reason, silent_ms: 45_001 };
    vec![
        (
            "CreateTopic",
            Op::CreateTopic(CreateTopic {
                topic_id: id(1),
                name: "orders".to_owned(),
                partitions: 300,
                configs: configs(),
            }),
        ),
        ("DeleteTopic", Op::DeleteTopic(DeleteTopic { topic_id: id(1) })),
        (
            "AppendMessage",
            Op::AppendMessage(AppendMessage {
                segment_bytes: 1 << 28,
                now_ms: 1_700_000_000_123,
                appends: vec![
                    PartitionAppend {
                        topic_id: id(1),
                        partition: 2,
                        payload_start: 0,
                        payload_len: 1_000,
                        offset_count: 10,
                        producer_id: -1,
                        producer_epoch: -1,
                        base_sequence: -1,
                        max_timestamp_ms: -1,
                    },
                    PartitionAppend {
                        topic_id: id(2),
                        partition: 3,
                        payload_start: 1_000,
                        payload_len: 70_000,
                        offset_count: 1,
                        producer_id: 4_000,
                        producer_epoch: 5,
                        base_sequence: i32::MAX,
                        max_timestamp_ms: 1_700_000_000_000,
                    },
                ],
            }),
        ),
        (
            "UpdateMetadata::SetTopicConfigs",
            Op::UpdateMetadata(UpdateMetadata::SetTopicConfigs { topic_id: id(1), configs: configs() }),
        ),
        (
            "UpdateMetadata::AddPartitions",
            Op::UpdateMetadata(UpdateMetadata::AddPartitions { topic_id: id(1), partitions: 12 }),
        ),
        (
            "UpdateMetadata::Feed",
            Op::UpdateMetadata(UpdateMetadata::Feed {
                from_version: 1,
                to_version: 500,
                full: true,
                topics: vec![record],
                deleted: vec![id(2)],
                brokers: Some(vec![broker()]),
            }),
        ),
        ("RegisterBroker", Op::RegisterBroker(RegisterBroker { broker: broker() })),
        ("UnregisterBroker", Op::UnregisterBroker(UnregisterBroker { node_id: 1_000 })),
        (
            "JoinConsumerGroup::Classic",
            Op::JoinConsumerGroup(JoinConsumerGroup::Classic(ClassicJoin {
                group_id: "g".to_owned(),
                member_id: String::new(),
                fresh_member_id: "c-1".to_owned(),
                instance_id: Some("i".to_owned()),
                client_id: "c".to_owned(),
                client_host: "h".to_owned(),
                session_timeout_ms: 10_000,
                rebalance_timeout_ms: 60_000,
                protocol_type: "consumer".to_owned(),
                protocols: vec![("range".to_owned(), vec![0, 255])],
                require_known_member_id: true,
                initial_rebalance_delay_ms: 3_000,
                members_max: 200,
                now_ms: 1_700_000_000_000,
            })),
        ),
        ("JoinConsumerGroup::Consumer", Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(heartbeat(0)))),
        (
            "LeaveConsumerGroup::Classic",
            Op::LeaveConsumerGroup(LeaveConsumerGroup::Classic {
                group_id: "g".to_owned(),
                members: vec![("m".to_owned(), None), (String::new(), Some("i".to_owned()))],
                now_ms: 1_700_000_000_000,
            }),
        ),
        ("LeaveConsumerGroup::Consumer", Op::LeaveConsumerGroup(LeaveConsumerGroup::Consumer(heartbeat(-2)))),
        (
            "LeaveConsumerGroup::Expired",
            Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired {
                group_id: "g".to_owned(),
                term: 4,
                members: vec![
                    expired(ExpiryReason::Session),
                    expired(ExpiryReason::Rebalance),
                    expired(ExpiryReason::Pending),
                ],
                now_ms: 1_700_000_000_000,
            }),
        ),
        (
            "RebalancePartitions::Sync",
            Op::RebalancePartitions(RebalancePartitions::Sync {
                group_id: "g".to_owned(),
                generation: 9,
                member_id: "m".to_owned(),
                instance_id: None,
                protocol_type: Some("consumer".to_owned()),
                protocol_name: Some("range".to_owned()),
                assignments: vec![("m".to_owned(), vec![1, 2, 3])],
                now_ms: 1_700_000_000_000,
            }),
        ),
        (
            "RebalancePartitions::CompleteJoin",
            Op::RebalancePartitions(RebalancePartitions::CompleteJoin {
                group_id: "g".to_owned(),
                since: 1_000,
                now_ms: 1_700_000_000_000,
            }),
        ),
        (
            "RebalancePartitions::Assign",
            Op::RebalancePartitions(RebalancePartitions::Assign {
                group_id: "g".to_owned(),
                member_id: Some("m".to_owned()),
                now_ms: 1_700_000_000_000,
            }),
        ),
        ("CommitOffset", Op::CommitOffset(commit())),
        (
            "HeartbeatConsumer::Seen",
            Op::HeartbeatConsumer(HeartbeatConsumer::Seen {
                groups: vec![("g".to_owned(), vec!["m".to_owned(), "n".to_owned()])],
            }),
        ),
        ("HeartbeatConsumer::Consumer", Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(heartbeat(6)))),
        ("HeartbeatConsumer::Consumer, bare", Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(bare))),
        ("AllocateProducerIds", Op::AllocateProducerIds(AllocateProducerIds { count: 1_000 })),
        ("DeleteGroup", Op::DeleteGroup(DeleteGroup { group_id: "g".to_owned() })),
        (
            "DeleteOffsets",
            Op::DeleteOffsets(DeleteOffsets {
                group_id: "g".to_owned(),
                topics: vec![TopicPartitions { topic_id: id(1), partitions: vec![0, 300] }],
            }),
        ),
        (
            "ExpireOffsets",
            Op::ExpireOffsets(ExpireOffsets {
                now_ms: 1_700_000_000_123,
                retention_ms: 604_800_000,
                groups: vec!["g".to_owned(), "h".to_owned()],
            }),
        ),
        (
            "ConfigureGroup",
            Op::ConfigureGroup(ConfigureGroup {
                group_id: "g".to_owned(),
                changes: vec![
                    ("consumer.session.timeout.ms".to_owned(), Some("50000".to_owned())),
                    ("consumer.heartbeat.interval.ms".to_owned(), None),
                ],
            }),
        ),
        (
            "ResolveRegularExpression",
            Op::ResolveRegularExpression(ResolveRegularExpression {
                group_id: "g".to_owned(),
                regex: "t.*".to_owned(),
                metadata_version: 500,
                topics: vec![id(1), id(2)],
                now_ms: 1_700_000_000_123,
            }),
        ),
        ("CommitOffsets", Op::CommitOffsets(CommitOffsets { commits: vec![commit(), administrative] })),
        (
            "AdvanceLogStart",
            Op::AdvanceLogStart(AdvanceLogStart {
                partitions: vec![
                    NewLogStart { topic_id: id(1), partition: 300, offset: 5_000_000_000 },
                    NewLogStart { topic_id: id(2), partition: 0, offset: NewLogStart::END },
                ],
            }),
        ),
        (
            "CompactLog",
            Op::CompactLog(CompactLog {
                topic_id: id(1),
                partition: 300,
                revision: 1 << 20 | 7,
                log_start_offset: 5,
                compacted_to: 5_000_000_000,
                segments: vec![CompactedSegment {
                    base_offset: 3,
                    next_offset: 700,
                    len: 70_000,
                    crc32c: 0xA5A5_A5A5,
                    first_timestamp_ms: 1_700_000_000_123,
                    max_timestamp_ms: 1_700_000_000_124,
                    max_timestamp_offset: -1,
                }],
            }),
        ),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn no_encoding_changes() {
    let encoded: String = examples().iter().map(|(name, op)| format!("{name}: {}\n", hex(&op.encode()))).collect();
    let changed: Vec<&str> = encoded.lines().filter(|line| !GOLDEN.lines().any(|golden| golden == *line)).collect();
    assert!(
        changed.is_empty() && GOLDEN.lines().count() == examples().len(),
        "encodings differ from golden_encodings.txt. Journals in the field hold the old ones: give the op a new format \
         version and keep reading the old one. A new op's line belongs into the file. Lines that differ:\n{}",
        changed.join("\n")
    );
}

#[test]
fn every_op_is_read_back_as_it_was_written() {
    let mut codes = BTreeSet::new();
    for (name, op) in examples() {
        let bytes = op.encode();
        assert_eq!(bytes[..2], [if op.code() == 3 { 2 } else { 1 }, op.code()], "{name}");
        assert_eq!(Op::decode(&bytes), Ok(op), "{name}");
        codes.insert(bytes[1]);
    }
    assert_eq!(codes, (1..=20).collect(), "an op without an example");
}

#[test]
fn an_append_of_the_first_format_is_read() {
    let Some((_, Op::AppendMessage(append))) = examples().into_iter().find(|(name, _)| *name == "AppendMessage") else {
        panic!("no example")
    };
    let first = "0103f6a1abfef962020102030405060708090a0b0c0d0e0f100200e8070a0101010102030405060708090a0b0c0d0e0f101103e807f0a20401c03e0afeffffff0f80a0abfef962";
    let bytes: Vec<u8> =
        (0..first.len()).step_by(2).map(|at| u8::from_str_radix(&first[at..at + 2], 16).unwrap()).collect();
    let expected = AppendMessage { segment_bytes: 256 << 20, ..append };
    assert_eq!(Op::decode(&bytes), Ok(Op::AppendMessage(expected)));
}

#[test]
fn cut_longer_and_unknown_bytes_are_refused() {
    for (name, op) in examples() {
        let bytes = op.encode();
        for length in 0..bytes.len() {
            assert!(Op::decode(&bytes[..length]).is_err(), "{name} cut to {length} bytes");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Op::decode(&longer).is_err(), "{name} with a byte more");
        let mut newer = bytes.clone();
        newer[0] += 1;
        assert!(Op::decode(&newer).is_err(), "{name} of another format version");
        let mut unknown = bytes;
        for code in [0, 21, 255] {
            unknown[1] = code;
            assert!(Op::decode(&unknown).is_err(), "code {code}");
        }
    }
}

#[test]
fn a_length_that_the_bytes_cannot_hold_is_refused() {
    // AppendMessage at time 0 that claims 2^64 − 1, 2^32 or 2^20 appends.
    for length in [u64::MAX, 1 << 32, 1 << 20] {
        let mut bytes = vec![1, 3, 0];
        let mut rest = length;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes.extend([0; 64]);
        assert!(Op::decode(&bytes).is_err());
    }
}
