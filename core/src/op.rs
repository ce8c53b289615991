//! The closed list of operations. Codes never change meaning.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::directory::{BrokerRecord, TopicRecord};
use crate::ids::{NodeId, TopicId};

/// One entry of a shard's log. Raw record payloads are not in it: they follow it in the entry, and
/// [`PartitionAppend`] names slices of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Code 1, shard 0.
    CreateTopic(CreateTopic),
    /// Code 2, shard 0.
    DeleteTopic(DeleteTopic),
    /// Code 3.
    AppendMessage(AppendMessage),
    /// Code 4.
    UpdateMetadata(UpdateMetadata),
    /// Code 5, shard 0.
    RegisterBroker(RegisterBroker),
    /// Code 6, shard 0.
    UnregisterBroker(UnregisterBroker),
    /// Code 7.
    JoinConsumerGroup(JoinConsumerGroup),
    /// Code 8.
    LeaveConsumerGroup(LeaveConsumerGroup),
    /// Code 9.
    RebalancePartitions(RebalancePartitions),
    /// Code 10.
    CommitOffset(CommitOffset),
    /// Code 11.
    HeartbeatConsumer(HeartbeatConsumer),
    /// Code 12, shard 0: a block of producer ids for one broker.
    AllocateProducerIds(AllocateProducerIds),
    /// Code 13.
    DeleteGroup(DeleteGroup),
    /// Code 14.
    DeleteOffsets(DeleteOffsets),
    /// Code 15.
    ExpireOffsets(ExpireOffsets),
    /// Code 16.
    ConfigureGroup(ConfigureGroup),
    /// Code 17.
    ResolveRegularExpression(ResolveRegularExpression),
    /// Code 18.
    CommitOffsets(CommitOffsets),
    /// Code 19.
    AdvanceLogStart(AdvanceLogStart),
    /// Code 20.
    CompactLog(CompactLog),
}

/// Makes a topic. Partition `p` goes to shard `(s + p) % shard_count`, where `s` is the number of partitions ever created
/// modulo `shard_count`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopic {
    /// Made by the proposer.
    pub topic_id: TopicId,
    /// See [`TopicRecord::name`].
    pub name: String,
    /// 1 ..= 10,000.
    pub partitions: u32,
    /// Already checked names and values.
    pub configs: BTreeMap<String, String>,
}

/// Removes a topic with its records and the offsets committed for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteTopic {
    /// Which one.
    pub topic_id: TopicId,
}

/// Appends record batches. The entry's payload holds the batches as the producers sent them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendMessage {
    /// The proposer's wall clock, for topics with `message.timestamp.type=LogAppendTime`.
    pub now_ms: i64,
    /// Where segments of topics without `segment.bytes` end, as the proposer's broker is configured: in the op, since all replicas must
    /// close them at the same place, and their brokers may be configured otherwise.
    pub segment_bytes: u64,
    /// In order; one batch each.
    pub appends: Vec<PartitionAppend>,
}

/// One record batch for one partition: what `core` needs of its header, which the proposer has checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionAppend {
    /// Topic.
    pub topic_id: TopicId,
    /// Partition index.
    pub partition: u32,
    /// Where the batch starts in the entry's payload: at or after the end of the append before it.
    pub payload_start: u32,
    /// The batch's length in bytes, header included.
    pub payload_len: u32,
    /// Offsets the batch takes: last offset delta + 1, at least 1.
    pub offset_count: u32,
    /// −1 when the producer is not idempotent.
    pub producer_id: i64,
    /// Producer epoch, −1 without a producer id.
    pub producer_epoch: i16,
    /// First sequence number, −1 without a producer id.
    pub base_sequence: i32,
    /// Largest record timestamp, as the producer wrote it.
    pub max_timestamp_ms: i64,
}

/// Changes topics or carries changes to other shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateMetadata {
    /// On shard 0: replaces a topic's configuration.
    SetTopicConfigs {
        /// Which one.
        topic_id: TopicId,
        /// All that is set.
        configs: BTreeMap<String, String>,
    },
    /// On shard 0: grows a topic to so many partitions.
    AddPartitions {
        /// Which one.
        topic_id: TopicId,
        /// The new number; it must be larger than the old one.
        partitions: u32,
    },
    /// On every other shard: what changed in shard 0's directory. Does nothing unless `from_version` is the shard's own
    /// version (or `full`) and `to_version` is larger.
    Feed {
        /// Version before.
        from_version: u64,
        /// Version after.
        to_version: u64,
        /// `topics` and `brokers` are all there are: what is missing goes.
        full: bool,
        /// Topics made or changed.
        topics: Vec<TopicRecord>,
        /// Topics deleted.
        deleted: Vec<TopicId>,
        /// All brokers, when they changed.
        brokers: Option<Vec<BrokerRecord>>,
    },
}

/// Announces a broker: where clients reach it and what its software supports. Repeating it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterBroker {
    /// The broker.
    pub broker: BrokerRecord,
}

/// Takes a broker out of the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnregisterBroker {
    /// Which one.
    pub node_id: NodeId,
}

/// Hands out `count` producer ids, never handed out before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocateProducerIds {
    /// 1 ..= 10,000.
    pub count: u32,
}

/// Adds or renews a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinConsumerGroup {
    /// JoinGroup.
    Classic(ClassicJoin),
    /// ConsumerGroupHeartbeat with member epoch 0.
    Consumer(ConsumerHeartbeat),
}

/// A JoinGroup request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicJoin {
    /// Group.
    pub group_id: String,
    /// Empty for a member that has no id yet.
    pub member_id: String,
    /// The id to give such a member, made by the proposer (`core` has no randomness).
    pub fresh_member_id: String,
    /// Static membership (KIP-345).
    pub instance_id: Option<String>,
    /// From the request header.
    pub client_id: String,
    /// The peer's address.
    pub client_host: String,
    /// Already checked to lie within the broker's bounds.
    pub session_timeout_ms: u32,
    /// How long the others wait for this member in a rebalance.
    pub rebalance_timeout_ms: u32,
    /// `consumer`, `connect`, …
    pub protocol_type: String,
    /// Assignors with the member's subscription for each, in order of preference.
    pub protocols: Vec<(String, Vec<u8>)>,
    /// JoinGroup v4+ of a dynamic member: an empty id gets MEMBER_ID_REQUIRED and a place as pending member (KIP-394).
    pub require_known_member_id: bool,
    /// How long a group that was empty waits for more members before its first generation.
    pub initial_rebalance_delay_ms: u32,
    /// `group.max.size` of the proposer.
    pub members_max: u32,
    /// The proposer's wall clock, in milliseconds, for people: no deadline depends on it.
    pub now_ms: i64,
}

/// A ConsumerGroupHeartbeat request (KIP-848); which op carries it depends on the member epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerHeartbeat {
    /// Group.
    pub group_id: String,
    /// Made by the client (v1) or, when the client sent none (v0), by the proposer.
    pub member_id: String,
    /// 0 joins, −1 leaves, −2 leaves for a while (static), above: heartbeat.
    pub member_epoch: i32,
    /// Static membership.
    pub instance_id: Option<String>,
    /// Rack; `None`: unchanged.
    pub rack_id: Option<String>,
    /// −1: unchanged.
    pub rebalance_timeout_ms: i32,
    /// `None`: unchanged.
    pub subscribed_topic_names: Option<Vec<String>>,
    /// `None`: unchanged; empty: none.
    pub subscribed_topic_regex: Option<String>,
    /// `None`: unchanged.
    pub server_assignor: Option<String>,
    /// What the member owns; `None`: unchanged since its last report. Indexes ascending.
    pub owned: Option<Vec<TopicPartitions>>,
    /// From the request header.
    pub client_id: String,
    /// The peer's address.
    pub client_host: String,
    /// Session time-out that the group gives its members (proposer's configuration).
    pub session_timeout_ms: u32,
    /// Heartbeat interval that the group gives its members (proposer's configuration).
    pub heartbeat_interval_ms: u32,
    /// `group.max.size` of the proposer.
    pub members_max: u32,
    /// The proposer's wall clock, in milliseconds, for people: no deadline depends on it.
    pub now_ms: i64,
}

/// Partitions of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TopicPartitions {
    /// Topic.
    pub topic_id: TopicId,
    /// Indexes, ascending, each once.
    pub partitions: Vec<u32>,
}

/// Removes members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "ops are made and applied one at a time")]
pub enum LeaveConsumerGroup {
    /// LeaveGroup, also in a batch (v3+): an outcome for each member.
    Classic {
        /// Group.
        group_id: String,
        /// Member id (may be empty when the instance id is given) and instance id.
        members: Vec<(String, Option<String>)>,
        /// The proposer's wall clock, for people and for the expiry of offsets.
        now_ms: i64,
    },
    /// ConsumerGroupHeartbeat with member epoch −1 or −2.
    Consumer(ConsumerHeartbeat),
    /// The coordinator's timers ran out ([`crate::SessionTable::expired`]). Does nothing in a later term than `term`.
    Expired {
        /// Group.
        group_id: String,
        /// Term in which the session was timed.
        term: u64,
        /// Who.
        members: Vec<ExpiredMember>,
        /// The proposer's wall clock, for people and for the expiry of offsets.
        now_ms: i64,
    },
}

/// A member whose time is up; only if nothing was heard from it since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiredMember {
    /// Member.
    pub member_id: String,
    /// Log index of the last op that the timer knew to have come from the member. A later one voids the expiry.
    /// For [`ExpiryReason::Rebalance`], which heartbeats do not put off: the index at which the generation or the
    /// revocation began that the member holds up. Another one, or none, voids the expiry.
    pub last_seen: u64,
    /// What ran out.
    pub reason: ExpiryReason,
    /// For people: how long it had been silent.
    pub silent_ms: u64,
}

/// Which timer ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ExpiryReason {
    /// No heartbeat within the session time-out.
    Session,
    /// Classic: did not rejoin, or did not send SyncGroup, within the rebalance time-out. Consumer: did not give up revoked partitions in time.
    Rebalance,
    /// A pending member never came back with its id.
    Pending,
}

/// Gives a generation or epoch its assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RebalancePartitions {
    /// SyncGroup by the group's leader.
    Sync {
        /// Group.
        group_id: String,
        /// Generation.
        generation: i32,
        /// The leader.
        member_id: String,
        /// Static membership.
        instance_id: Option<String>,
        /// Must be the group's, when given (v5+).
        protocol_type: Option<String>,
        /// Must be the group's, when given (v5+).
        protocol_name: Option<String>,
        /// Member id → assignment bytes.
        assignments: Vec<(String, Vec<u8>)>,
        /// The proposer's wall clock, for people.
        now_ms: i64,
    },
    /// The coordinator's timer: the join phase that began at log index `since` is over with whoever has rejoined.
    /// Does nothing if that phase is over.
    CompleteJoin {
        /// Group.
        group_id: String,
        /// Log index at which the phase began.
        since: u64,
        /// The proposer's wall clock, for people and for the expiry of offsets.
        now_ms: i64,
    },
    /// Consumer: compute the target assignment if the group epoch is ahead of it. Then, for each member named, reconcile it as
    /// its own heartbeat would. Issued by the coordinator whenever [`crate::Effect::AssignmentNeeded`] was emitted.
    Assign {
        /// Group.
        group_id: String,
        /// Member whose request waits for the outcome; the reply is for it.
        member_id: Option<String>,
        /// The proposer's wall clock, for people.
        now_ms: i64,
    },
}

/// Commits offsets of one group, all or each with its own outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitOffset {
    /// Group.
    pub group_id: String,
    /// Empty for an administrative commit.
    pub member_id: String,
    /// Static membership.
    pub instance_id: Option<String>,
    /// Generation (classic) or member epoch (consumer); −1 for an administrative commit.
    pub generation_or_epoch: i32,
    /// Request version ≥ 9, which a consumer group requires of its members.
    pub knows_epochs: bool,
    /// The proposer's wall clock, in milliseconds, for people and for expiry of offsets.
    pub now_ms: i64,
    /// What to commit.
    pub offsets: Vec<OffsetToCommit>,
}

/// Commits that waited for the log at the same time and share an entry, of any groups of the shard. Each has the outcome that it would
/// have in an entry of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitOffsets {
    /// In order.
    pub commits: Vec<CommitOffset>,
}

/// One partition's offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetToCommit {
    /// Topic.
    pub topic_id: TopicId,
    /// Partition index.
    pub partition: u32,
    /// Next offset to read, ≥ 0.
    pub offset: i64,
    /// Leader epoch of the last record read, −1 when unknown.
    pub leader_epoch: i32,
    /// At most 4,096 bytes (`offset.metadata.max.bytes`).
    pub metadata: String,
}

/// Heartbeats that must be in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "ops are made and applied one at a time")]
pub enum HeartbeatConsumer {
    /// Members heard from since the last such op, at most one op a shard and second.
    Seen {
        /// Group id → member ids, both ascending.
        groups: Vec<(String, Vec<String>)>,
    },
    /// ConsumerGroupHeartbeat with member epoch > 0 that changes what the state says of the member.
    Consumer(ConsumerHeartbeat),
}

/// Removes a group without members, with its committed offsets and its timeline. Its configuration stays, as in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteGroup {
    /// Group.
    pub group_id: String,
}

/// Removes committed offsets of one group, each partition with its own outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteOffsets {
    /// Group.
    pub group_id: String,
    /// Of which partitions. A partition without an offset is no error.
    pub topics: Vec<TopicPartitions>,
}

/// Removes committed offsets that are older than the retention allows, and empty groups that have none left. Proposed by the leader
/// for the groups that [`crate::ClusterStateMachine::groups_to_expire`] names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpireOffsets {
    /// The proposer's wall clock, in milliseconds.
    pub now_ms: i64,
    /// `offsets.retention.minutes`, in milliseconds.
    pub retention_ms: u64,
    /// Groups to look at; one that has nothing to expire stays as it is.
    pub groups: Vec<String>,
}

/// Changes the configuration of a group, which need not exist (IncrementalAlterConfigs for a resource of type GROUP). Refused as an
/// invalid request: a heartbeat interval that is not below the session timeout, a group id above 1,024 bytes, and a configuration for
/// one more group when 10,000 of the shard have one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigureGroup {
    /// Group.
    pub group_id: String,
    /// Name and new value, or `None` for the default; by Kafka's names: `consumer.session.timeout.ms` and
    /// `consumer.heartbeat.interval.ms`. The proposer has checked the values against its bounds.
    pub changes: Vec<(String, Option<String>)>,
}

/// What a regular expression that members of a group subscribe to matches. `core` knows no regular expressions: the leader
/// resolves those that [`crate::ClusterStateMachine::group_regexes`] names. Does nothing when nobody subscribes to it any more, and
/// when it was resolved by a later directory already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveRegularExpression {
    /// Group.
    pub group_id: String,
    /// As the members wrote it.
    pub regex: String,
    /// Version of the directory that it was matched with.
    pub metadata_version: u64,
    /// Topics whose names match, ascending, each once.
    pub topics: Vec<TopicId>,
    /// The proposer's wall clock, for people.
    pub now_ms: i64,
}

/// Deletes the oldest records of partitions: DeleteRecords, and what retention asks for. Each partition has its own outcome. Nothing is done
/// when there are more than [`AdvanceLogStart::PARTITIONS_MAX`] of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvanceLogStart {
    /// In order.
    pub partitions: Vec<NewLogStart>,
}

impl AdvanceLogStart {
    /// Partitions of one op, at most.
    pub const PARTITIONS_MAX: usize = 1_000;
}

/// Where a partition shall begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewLogStart {
    /// Topic.
    pub topic_id: TopicId,
    /// Partition index.
    pub partition: u32,
    /// The first offset that is kept, at most the log's end; [`NewLogStart::END`]: the log's end, wherever that is by then. One at or below the
    /// present start changes nothing and is no error.
    pub offset: i64,
}

impl NewLogStart {
    /// As an offset: nothing is kept (Kafka's `DeleteRecordsRequest.HIGH_WATERMARK`).
    pub const END: i64 = -1;
}

/// Lets segments that the leader has compacted take the place of those that they were made of (`cleanup.policy=compact`). Each holds the records that
/// stay of one or more segments in a row; segments between them stay as they are. Proposed once a majority of the shard's members have their
/// files. Does nothing unless `revision` is above that of every compaction before it, its leader's term is the entry's (a later leader has counted on the files being of
/// no use), and the partition still begins at `log_start_offset`: records were deleted since then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactLog {
    /// Topic.
    pub topic_id: TopicId,
    /// Partition index.
    pub partition: u32,
    /// Names this compaction, and its files: [`CompactLog::revision_of`].
    pub revision: u64,
    /// Where the partition began when its segments were read.
    pub log_start_offset: i64,
    /// Of the records before this offset only the last of each key is left, and tombstones for a while. Not below what it was; it may lie within a
    /// segment.
    pub compacted_to: i64,
    /// Ascending, apart from each other or adjacent, at most [`CompactLog::SEGMENTS_MAX`]. None: nothing could be removed.
    pub segments: Vec<CompactedSegment>,
}

impl CompactLog {
    /// The op's code.
    pub const CODE: u8 = 20;
    /// Segments of one op, at most.
    pub const SEGMENTS_MAX: usize = 10_000;
    /// The part of a revision that counts the attempts of one term.
    const ATTEMPT_BITS: u32 = 20;

    /// The revision of a leader's `attempt` in its term: a number that no other attempt has, of whichever leader, above those of earlier terms. `None`: there is
    /// none left.
    #[must_use]
    pub fn revision_of(term: u64, attempt: u64) -> Option<u64> {
        let fits = term < 1 << (u64::BITS - Self::ATTEMPT_BITS) && attempt < 1 << Self::ATTEMPT_BITS;
        fits.then_some(term << Self::ATTEMPT_BITS | attempt)
    }

    /// The term whose leader has made it.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.revision >> Self::ATTEMPT_BITS
    }
}

/// A segment that takes the place of those from `base_offset` to `next_offset`, which must be where segments begin and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CompactedSegment {
    /// Where the first one that it replaces begins.
    pub base_offset: i64,
    /// Where the last one that it replaces ends.
    pub next_offset: i64,
    /// Bytes, at least 1.
    pub len: u64,
    /// CRC32C of them.
    pub crc32c: u32,
    /// Largest timestamp of its first batch, −1 when there is none.
    pub first_timestamp_ms: i64,
    /// Largest timestamp of all, −1 when there is none.
    pub max_timestamp_ms: i64,
    /// Last offset of the first batch that has it, −1 when there is none.
    pub max_timestamp_offset: i64,
}

/// Bytes that are not an op or a snapshot of a version known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What is wrong.
    pub reason: &'static str,
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.reason)
    }
}

impl core::error::Error for DecodeError {}

impl Op {
    /// The op's stable code.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::CreateTopic(_) => 1,
            Self::DeleteTopic(_) => 2,
            Self::AppendMessage(_) => 3,
            Self::UpdateMetadata(_) => 4,
            Self::RegisterBroker(_) => 5,
            Self::UnregisterBroker(_) => 6,
            Self::JoinConsumerGroup(_) => 7,
            Self::LeaveConsumerGroup(_) => 8,
            Self::RebalancePartitions(_) => 9,
            Self::CommitOffset(_) => 10,
            Self::HeartbeatConsumer(_) => 11,
            Self::AllocateProducerIds(_) => 12,
            Self::DeleteGroup(_) => 13,
            Self::DeleteOffsets(_) => 14,
            Self::ExpireOffsets(_) => 15,
            Self::ConfigureGroup(_) => 16,
            Self::ResolveRegularExpression(_) => 17,
            Self::CommitOffsets(_) => 18,
            Self::AdvanceLogStart(_) => 19,
            Self::CompactLog(_) => CompactLog::CODE,
        }
    }
}
