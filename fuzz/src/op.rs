//! Ops: decoded from bytes, and built from them.

use std::collections::BTreeMap;

use lockstep_core::op::{
    AdvanceLogStart, AllocateProducerIds, AppendMessage, ClassicJoin, CommitOffset, CommitOffsets, CompactLog,
    CompactedSegment, ConfigureGroup, ConsumerHeartbeat, CreateTopic, DeleteGroup, DeleteOffsets, DeleteTopic,
    ExpireOffsets, ExpiredMember, ExpiryReason, HeartbeatConsumer, JoinConsumerGroup, LeaveConsumerGroup, NewLogStart,
    OffsetToCommit, PartitionAppend, RebalancePartitions, RegisterBroker, ResolveRegularExpression, TopicPartitions,
    UnregisterBroker, UpdateMetadata,
};
use lockstep_core::{BrokerRecord, Op, ShardId, TopicId, TopicRecord};

use crate::input::Input;

/// What members subscribe to, and leaders resolve.
const REGEXES: &[&str] = &["a.*", "(", ""];

/// An encoded op, as it lies in a log. What is decoded is encoded to something that decodes to the same.
pub fn op(data: &[u8]) {
    let Ok(op) = Op::decode(data) else { return };
    let encoded = op.encode();
    assert_eq!(Op::decode(&encoded).as_ref(), Ok(&op), "an op is not what it was after encoding");
    assert_eq!(encoded.get(1), Some(&op.code()));
}

/// An op made of whatever the input says, mostly about the same few topics, groups and members, so that ops meet.
pub fn arbitrary_op(input: &mut Input<'_>) -> Op {
    match input.below(31) {
        0..=2 => Op::CreateTopic(CreateTopic {
            topic_id: topic_id(input),
            name: name(input),
            partitions: match input.below(16) {
                0 => u32_of(input),
                _ => u32::from(input.below(8)),
            },
            configs: configs(input),
        }),
        3 => Op::DeleteTopic(DeleteTopic { topic_id: topic_id(input) }),
        4..=7 => Op::AppendMessage(append_message(input)),
        8 | 9 => Op::UpdateMetadata(update_metadata(input)),
        10 => Op::RegisterBroker(RegisterBroker { broker: broker(input) }),
        11 => match input.below(2) {
            0 => Op::UnregisterBroker(UnregisterBroker { node_id: input.mostly_below(4) }),
            _ => Op::AllocateProducerIds(AllocateProducerIds { count: u32_of(input) }),
        },
        12 | 13 => Op::JoinConsumerGroup(JoinConsumerGroup::Classic(classic_join(input))),
        14..=16 => Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(ConsumerHeartbeat {
            member_epoch: 0,
            ..consumer_heartbeat(input)
        })),
        17 => Op::LeaveConsumerGroup(leave(input)),
        18..=20 => Op::RebalancePartitions(rebalance(input)),
        21 => Op::CommitOffset(commit(input)),
        22 => Op::DeleteGroup(DeleteGroup { group_id: group_id(input) }),
        23 => Op::DeleteOffsets(DeleteOffsets { group_id: group_id(input), topics: owned(input) }),
        24 => Op::ExpireOffsets(ExpireOffsets {
            now_ms: i64_of(input),
            retention_ms: input.mostly_below(64),
            groups: input.list(3, group_id),
        }),
        25 => Op::ConfigureGroup(ConfigureGroup { group_id: group_id(input), changes: input.list(3, group_change) }),
        26 => Op::ResolveRegularExpression(ResolveRegularExpression {
            group_id: group_id(input),
            regex: text(input, REGEXES),
            metadata_version: input.mostly_below(12),
            topics: input.list(4, topic_id),
            now_ms: i64_of(input),
        }),
        27 => Op::CommitOffsets(CommitOffsets { commits: input.list(4, commit) }),
        28 => Op::AdvanceLogStart(AdvanceLogStart { partitions: input.list(4, new_log_start) }),
        29 => Op::CompactLog(CompactLog {
            topic_id: topic_id(input),
            partition: u32_of(input),
            revision: CompactLog::revision_of(input.mostly_below(6), input.mostly_below(4)).unwrap_or(0),
            log_start_offset: i64_of(input),
            compacted_to: i64_of(input),
            segments: input.list(3, compacted_segment),
        }),
        _ => Op::HeartbeatConsumer(match input.below(3) {
            0 => HeartbeatConsumer::Seen { groups: input.list(2, |input| (group_id(input), input.list(3, member_id))) },
            _ => HeartbeatConsumer::Consumer(consumer_heartbeat(input)),
        }),
    }
}

fn new_log_start(input: &mut Input<'_>) -> NewLogStart {
    NewLogStart { topic_id: topic_id(input), partition: u32_of(input), offset: i64_of(input) }
}

fn compacted_segment(input: &mut Input<'_>) -> CompactedSegment {
    CompactedSegment {
        base_offset: i64_of(input),
        next_offset: i64_of(input),
        len: input.mostly_below(6),
        crc32c: 0,
        first_timestamp_ms: i64_of(input),
        max_timestamp_ms: i64_of(input),
        max_timestamp_offset: i64_of(input),
    }
}

fn group_change(input: &mut Input<'_>) -> (String, Option<String>) {
    let name = text(input, &["consumer.session.timeout.ms", "consumer.heartbeat.interval.ms"]);
    (name, input.maybe(|input| text(input, &["1000", "45000", "-1", "x"])))
}

fn u32_of(input: &mut Input<'_>) -> u32 {
    u32::try_from(input.mostly_below(6) & u64::from(u32::MAX)).unwrap_or(0)
}

fn i32_of(input: &mut Input<'_>) -> i32 {
    match input.below(16) {
        0 => *input.choose(&[i32::MIN, i32::MAX, -3]),
        1 => -2,
        2 | 3 => -1,
        _ => i32::from(input.below(12)),
    }
}

fn i64_of(input: &mut Input<'_>) -> i64 {
    match input.below(16) {
        0 => *input.choose(&[i64::MIN, i64::MAX, -2]),
        1 => -1,
        _ => i64::from(input.byte()),
    }
}

fn any_text(input: &mut Input<'_>) -> String {
    let len = usize::from(input.byte());
    String::from_utf8_lossy(input.take(len)).into_owned()
}

fn text(input: &mut Input<'_>, usual: &[&str]) -> String {
    if input.one_in(24) { any_text(input) } else { (*input.choose(usual)).to_owned() }
}

fn topic_id(input: &mut Input<'_>) -> TopicId {
    TopicId([input.below(6); 16])
}

fn name(input: &mut Input<'_>) -> String {
    text(input, &["a", "b", "c", "d.e", "d_e", "..", ""])
}

fn group_id(input: &mut Input<'_>) -> String {
    text(input, &["g", "g", "g", "h", ""])
}

fn member_id(input: &mut Input<'_>) -> String {
    text(input, &["m1", "m2", "m3", "m4", ""])
}

fn instance_id(input: &mut Input<'_>) -> Option<String> {
    if input.one_in(3) { Some(text(input, &["i1", "i2"])) } else { None }
}

fn configs(input: &mut Input<'_>) -> BTreeMap<String, String> {
    let pairs = input.list(2, |input| {
        let name = text(input, &["message.timestamp.type", "retention.ms", "cleanup.policy"]);
        (name, text(input, &["LogAppendTime", "CreateTime", "1000", "-1", "compact", "delete"]))
    });
    pairs.into_iter().collect()
}

fn broker(input: &mut Input<'_>) -> BrokerRecord {
    BrokerRecord {
        id: input.mostly_below(4),
        host: text(input, &["localhost", "node1"]),
        port: u16::from(input.byte()),
        rack: input.maybe(|input| text(input, &["r1", "r2"])),
        incarnation: [input.byte(); 16],
        feature_level: u16::from(input.below(3)),
    }
}

fn record(input: &mut Input<'_>) -> TopicRecord {
    TopicRecord {
        id: topic_id(input),
        name: name(input),
        partitions: input.list(5, |input| ShardId(u16::from(input.below(4)))),
        configs: configs(input),
        version: input.mostly_below(12),
    }
}

fn update_metadata(input: &mut Input<'_>) -> UpdateMetadata {
    match input.below(6) {
        0 => UpdateMetadata::SetTopicConfigs { topic_id: topic_id(input), configs: configs(input) },
        1 => UpdateMetadata::AddPartitions { topic_id: topic_id(input), partitions: u32_of(input) },
        _ => UpdateMetadata::Feed {
            from_version: input.mostly_below(12),
            to_version: input.mostly_below(12),
            full: input.one_in(2),
            topics: input.list(4, record),
            deleted: input.list(2, topic_id),
            brokers: input.maybe(|input| input.list(3, broker)),
        },
    }
}

fn append_message(input: &mut Input<'_>) -> AppendMessage {
    let is_sound = !input.one_in(4);
    let mut end = 0_u32;
    let appends = input.list(4, |input| {
        let (start, len) = (u32_of(input), u32::from(input.below(40)) + 1);
        let payload_start = if is_sound { end } else { start };
        end = end.saturating_add(len);
        let (producer_id, producer_epoch, base_sequence) = match input.below(4) {
            0 => (-1, -1, -1),
            1 => (i64_of(input), i16::from(input.below(3)) - 1, i32_of(input)),
            _ => (i64::from(input.below(3)), i16::from(input.below(2)), i32::from(input.below(12))),
        };
        PartitionAppend {
            topic_id: topic_id(input),
            partition: u32_of(input),
            payload_start,
            payload_len: len,
            offset_count: u32::from(input.below(6)),
            producer_id,
            producer_epoch,
            base_sequence,
            max_timestamp_ms: i64_of(input),
        }
    });
    AppendMessage { now_ms: i64_of(input), segment_bytes: i64_of(input).unsigned_abs(), appends }
}

fn owned(input: &mut Input<'_>) -> Vec<TopicPartitions> {
    input.list(2, |input| TopicPartitions { topic_id: topic_id(input), partitions: input.list(4, u32_of) })
}

fn consumer_heartbeat(input: &mut Input<'_>) -> ConsumerHeartbeat {
    ConsumerHeartbeat {
        group_id: group_id(input),
        member_id: member_id(input),
        member_epoch: i32_of(input),
        instance_id: instance_id(input),
        rack_id: input.maybe(|input| text(input, &["r1", "r2"])),
        rebalance_timeout_ms: if input.one_in(4) { i32_of(input) } else { 30_000 },
        subscribed_topic_names: input.maybe(|input| input.list(3, name)),
        subscribed_topic_regex: if input.one_in(8) { Some(text(input, REGEXES)) } else { None },
        server_assignor: input.maybe(|input| text(input, &["uniform", "range", "?"])),
        owned: input.maybe(owned),
        client_id: "client".to_owned(),
        client_host: "host".to_owned(),
        session_timeout_ms: 45_000,
        heartbeat_interval_ms: 5_000,
        members_max: if input.one_in(8) { u32::from(input.below(4)) } else { 100 },
        now_ms: i64_of(input),
    }
}

/// The metadata of a classic consumer: version, topics, no user data.
fn subscription(input: &mut Input<'_>) -> Vec<u8> {
    if input.one_in(6) {
        let len = usize::from(input.below(24));
        return input.take(len).to_vec();
    }
    let names = input.list(3, name);
    let mut bytes = vec![0, 0];
    bytes.extend(u32::try_from(names.len()).unwrap_or(0).to_be_bytes());
    for name in names {
        bytes.extend(u16::try_from(name.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(name.bytes());
    }
    bytes.extend((-1_i32).to_be_bytes());
    bytes
}

fn classic_join(input: &mut Input<'_>) -> ClassicJoin {
    ClassicJoin {
        group_id: group_id(input),
        member_id: member_id(input),
        fresh_member_id: member_id(input),
        instance_id: instance_id(input),
        client_id: "client".to_owned(),
        client_host: "host".to_owned(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: u32::from(input.byte()) * 100,
        protocol_type: text(input, &["consumer", "consumer", "consumer", "connect", ""]),
        protocols: input.list(3, |input| (text(input, &["range", "range", "sticky", ""]), subscription(input))),
        require_known_member_id: input.one_in(2),
        initial_rebalance_delay_ms: if input.one_in(4) { 3_000 } else { 0 },
        members_max: if input.one_in(8) { u32::from(input.below(4)) } else { 100 },
        now_ms: i64_of(input),
    }
}

fn leave(input: &mut Input<'_>) -> LeaveConsumerGroup {
    match input.below(3) {
        0 => LeaveConsumerGroup::Classic {
            group_id: group_id(input),
            members: input.list(3, |input| (member_id(input), instance_id(input))),
            now_ms: i64_of(input),
        },
        1 => {
            let member_epoch = *input.choose(&[-1, -2, -1, -2, 0, 3]);
            LeaveConsumerGroup::Consumer(ConsumerHeartbeat { member_epoch, ..consumer_heartbeat(input) })
        }
        _ => LeaveConsumerGroup::Expired {
            group_id: group_id(input),
            term: input.mostly_below(4),
            members: input.list(3, |input| ExpiredMember {
                member_id: member_id(input),
                last_seen: input.mostly_below(64),
                reason: *input.choose(&[ExpiryReason::Session, ExpiryReason::Rebalance, ExpiryReason::Pending]),
                silent_ms: u64::from(input.byte()),
            }),
            now_ms: i64_of(input),
        },
    }
}

fn rebalance(input: &mut Input<'_>) -> RebalancePartitions {
    match input.below(3) {
        0 => RebalancePartitions::Sync {
            group_id: group_id(input),
            generation: i32_of(input),
            member_id: member_id(input),
            instance_id: instance_id(input),
            protocol_type: if input.one_in(3) { Some(text(input, &["consumer", "?"])) } else { None },
            protocol_name: if input.one_in(3) { Some(text(input, &["range", "?"])) } else { None },
            assignments: input.list(4, |input| {
                let len = usize::from(input.below(8));
                (member_id(input), input.take(len).to_vec())
            }),
            now_ms: i64_of(input),
        },
        1 => RebalancePartitions::CompleteJoin {
            group_id: group_id(input),
            since: input.mostly_below(64),
            now_ms: i64_of(input),
        },
        _ => RebalancePartitions::Assign {
            group_id: group_id(input),
            member_id: if input.one_in(2) { Some(member_id(input)) } else { None },
            now_ms: i64_of(input),
        },
    }
}

fn commit(input: &mut Input<'_>) -> CommitOffset {
    CommitOffset {
        group_id: group_id(input),
        member_id: member_id(input),
        instance_id: instance_id(input),
        generation_or_epoch: i32_of(input),
        knows_epochs: input.one_in(2),
        now_ms: i64_of(input),
        offsets: input.list(4, |input| OffsetToCommit {
            topic_id: topic_id(input),
            partition: u32_of(input),
            offset: i64_of(input),
            leader_epoch: i32_of(input),
            metadata: if input.one_in(16) { "x".repeat(5_000) } else { any_text(input) },
        }),
    }
}
