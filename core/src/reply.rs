//! What an op answers to whoever proposed it. Broker maps these to Kafka's error numbers, in one place.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::directory::TopicRecord;
use crate::op::TopicPartitions;

/// The outcome of one op.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// CreateTopic, DeleteTopic, SetTopicConfigs, AddPartitions: the record as it now is (as it was, when deleted).
    Topic(Result<TopicRecord, TopicError>),
    /// AppendMessage: one outcome for each append, in order.
    Append(Vec<Result<Appended, AppendError>>),
    /// RegisterBroker, UnregisterBroker and Feed: the metadata version afterwards.
    Metadata {
        /// Version.
        version: u64,
    },
    /// AllocateProducerIds: the first id of the block.
    ProducerIds {
        /// First id.
        first: i64,
    },
    /// JoinGroup.
    ClassicJoin(Result<ClassicJoined, GroupError>),
    /// LeaveGroup: the group's error, or one outcome a member.
    ClassicLeave(Result<Vec<Result<(), GroupError>>, GroupError>),
    /// SyncGroup.
    Sync(Result<(), GroupError>),
    /// ConsumerGroupHeartbeat in all its forms, and Assign with a member.
    Heartbeat(Result<HeartbeatReply, GroupError>),
    /// CommitOffset, DeleteOffsets.
    Commit(CommitOutcome),
    /// Ops of the coordinator itself, and ops that came to the wrong shard (`false`: nothing was done).
    Done(bool),
    /// DeleteGroup, ConfigureGroup.
    Group(Result<(), GroupError>),
    /// CommitOffsets: one outcome for each commit, in order; `None`: its group belongs to another shard, and nothing was done.
    Commits(Vec<Option<CommitOutcome>>),
    /// AdvanceLogStart: for each partition, in order, its first offset afterwards.
    LogStarts(Vec<Result<i64, LogStartError>>),
}

/// What became of the offsets of one request: the request's error, or one outcome a partition, in the order of the request.
pub type CommitOutcome = Result<Vec<Result<(), GroupError>>, GroupError>;

/// Why a change to a topic was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TopicError {
    /// The name is taken, or the id is or was another topic's.
    AlreadyExists,
    /// No such topic.
    Unknown,
    /// Not a legal topic name, or one that differs from another topic's only in `.` and `_`.
    InvalidName,
    /// Not a legal number of partitions, or not more than there are.
    InvalidPartitions,
    /// The op belongs to shard 0.
    WrongShard,
}

/// A batch is in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appended {
    /// Offset of its first record; for a duplicate, that of the original.
    pub base_offset: i64,
    /// Set when the topic stamps records on append.
    pub log_append_time_ms: Option<i64>,
    /// The partition's first offset.
    pub log_start_offset: i64,
    /// It was there already: nothing was stored.
    pub duplicate: bool,
}

/// Why a batch was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppendError {
    /// The topic is unknown here, or has no such partition in this shard.
    UnknownPartition,
    /// The sequence number does not follow the last one.
    OutOfOrderSequence,
    /// Older than the batches that are remembered: a duplicate whose offset is no longer known.
    DuplicateSequence,
    /// An older epoch of this producer.
    InvalidProducerEpoch,
    /// The producer's state is gone and its sequence does not start at 0. Kept for peers: as in Kafka since 2.5, such a producer
    /// may go on with any sequence.
    UnknownProducer,
    /// The header contradicts itself or the payload.
    CorruptBatch,
    /// Too many producers are remembered in this shard. Kept for peers: the longest unused producer is forgotten instead.
    TooManyProducers,
}

/// Why records were not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStartError {
    /// The topic is unknown here, or has no such partition in this shard.
    UnknownPartition,
    /// Neither an offset nor [`crate::op::NewLogStart::END`], or one beyond the log's end.
    OutOfRange,
}

/// A JoinGroup was taken in. Unless it is `ready`, the member waits until
/// [`crate::ClusterStateMachine::join_progress`] says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassicJoined {
    /// The member's id, perhaps a fresh one.
    pub member_id: String,
    /// The ticket for `join_progress`: the generation the group had when the member came.
    pub after_generation: i32,
    /// The answer is there already (no rebalance was needed).
    pub ready: bool,
}

/// Why a group operation was refused; names follow Kafka's error codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupError {
    /// MEMBER_ID_REQUIRED, with the id to come back with.
    MemberIdRequired(String),
    /// UNKNOWN_MEMBER_ID.
    UnknownMember,
    /// ILLEGAL_GENERATION.
    IllegalGeneration,
    /// REBALANCE_IN_PROGRESS.
    RebalanceInProgress,
    /// INCONSISTENT_GROUP_PROTOCOL.
    InconsistentProtocol,
    /// FENCED_INSTANCE_ID.
    FencedInstance,
    /// UNRELEASED_INSTANCE_ID.
    UnreleasedInstance,
    /// FENCED_MEMBER_EPOCH.
    FencedMemberEpoch,
    /// STALE_MEMBER_EPOCH.
    StaleMemberEpoch,
    /// GROUP_MAX_SIZE_REACHED.
    GroupMaxSizeReached,
    /// GROUP_ID_NOT_FOUND.
    GroupNotFound,
    /// UNSUPPORTED_ASSIGNOR.
    UnsupportedAssignor,
    /// UNSUPPORTED_VERSION: the request's version does not fit the group's protocol.
    UnsupportedVersion,
    /// UNKNOWN_TOPIC_OR_PARTITION.
    UnknownPartition,
    /// OFFSET_METADATA_TOO_LARGE.
    OffsetMetadataTooLarge,
    /// INVALID_GROUP_ID.
    InvalidGroupId,
    /// INVALID_REQUEST, with what is wrong.
    InvalidRequest(String),
    /// INVALID_REGULAR_EXPRESSION.
    InvalidRegularExpression,
    /// UNSUPPORTED_VERSION: a subscription by regular expression, of a coordinator that cannot have them resolved. Kept for peers; the
    /// text for clients: "subscription by regular expression is not supported; subscribe to topics by name".
    UnsupportedRegularExpression,
    /// NON_EMPTY_GROUP.
    NonEmptyGroup,
    /// GROUP_SUBSCRIBED_TO_TOPIC.
    SubscribedToTopic,
}

/// The answer to a ConsumerGroupHeartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// The member.
    pub member_id: String,
    /// Its epoch now (−1, −2: has left).
    pub member_epoch: i32,
    /// When to come again.
    pub heartbeat_interval_ms: u32,
    /// What it should own, when it must be told.
    pub assignment: Option<Vec<TopicPartitions>>,
    /// The target assignment is behind the group's epoch. This is not an answer for the member yet: the reply to an `Assign`
    /// that names the member is.
    pub assignment_due: bool,
}
