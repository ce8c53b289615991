//! Kafka's error numbers: the only place that knows them, and how our errors map to them.

use lockstep_core::reply::{AppendError, LogStartError};
use lockstep_core::{GroupError, TopicError};
use lockstep_runtime::{LogReadError, ProposeError, ReadError};
use lockstep_wire::BatchError;

/// What a Kafka client must be told when a request goes to a broker that does not coordinate the group.
pub const NOT_COORDINATOR_MESSAGE: &str = "only leader can handle consumer group operations";

/// An error number of the Kafka protocol (`org.apache.kafka.common.protocol.Errors`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
#[allow(missing_docs, reason = "the names are Kafka's own")]
pub enum ErrorCode {
    UnknownServerError = -1,
    None = 0,
    OffsetOutOfRange = 1,
    CorruptMessage = 2,
    UnknownTopicOrPartition = 3,
    InvalidFetchSize = 4,
    LeaderNotAvailable = 5,
    NotLeaderOrFollower = 6,
    RequestTimedOut = 7,
    BrokerNotAvailable = 8,
    ReplicaNotAvailable = 9,
    MessageTooLarge = 10,
    OffsetMetadataTooLarge = 12,
    NetworkException = 13,
    CoordinatorLoadInProgress = 14,
    CoordinatorNotAvailable = 15,
    NotCoordinator = 16,
    InvalidTopic = 17,
    RecordListTooLarge = 18,
    NotEnoughReplicas = 19,
    InvalidRequiredAcks = 21,
    IllegalGeneration = 22,
    InconsistentGroupProtocol = 23,
    InvalidGroupId = 24,
    UnknownMemberId = 25,
    InvalidSessionTimeout = 26,
    RebalanceInProgress = 27,
    InvalidCommitOffsetSize = 28,
    TopicAuthorizationFailed = 29,
    GroupAuthorizationFailed = 30,
    ClusterAuthorizationFailed = 31,
    InvalidTimestamp = 32,
    UnsupportedVersion = 35,
    TopicAlreadyExists = 36,
    InvalidPartitions = 37,
    InvalidReplicationFactor = 38,
    InvalidReplicaAssignment = 39,
    InvalidConfig = 40,
    NotController = 41,
    InvalidRequest = 42,
    UnsupportedForMessageFormat = 43,
    PolicyViolation = 44,
    OutOfOrderSequenceNumber = 45,
    DuplicateSequenceNumber = 46,
    InvalidProducerEpoch = 47,
    InvalidTxnState = 48,
    TransactionalIdAuthorizationFailed = 53,
    KafkaStorageError = 56,
    UnknownProducerId = 59,
    NonEmptyGroup = 68,
    GroupIdNotFound = 69,
    FetchSessionIdNotFound = 70,
    InvalidFetchSessionEpoch = 71,
    FencedLeaderEpoch = 74,
    UnknownLeaderEpoch = 75,
    UnsupportedCompressionType = 76,
    StaleBrokerEpoch = 77,
    OffsetNotAvailable = 78,
    MemberIdRequired = 79,
    GroupMaxSizeReached = 81,
    FencedInstanceId = 82,
    GroupSubscribedToTopic = 86,
    InvalidRecord = 87,
    ThrottlingQuotaExceeded = 89,
    UnknownTopicId = 100,
    InconsistentTopicId = 103,
    FetchSessionTopicIdError = 106,
    FencedMemberEpoch = 110,
    UnreleasedInstanceId = 111,
    UnsupportedAssignor = 112,
    StaleMemberEpoch = 113,
    MismatchedEndpointType = 114,
    UnsupportedEndpointType = 115,
    InvalidRegularExpression = 128,
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// Produce, Fetch, ListOffsets, OffsetForLeaderEpoch: a proposal on, or question to, the shard of a partition. All but
    /// `Unknown` are answered with errors after which clients refresh their metadata and try again.
    #[must_use]
    pub fn of_partition(error: &ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { .. } => Self::NotLeaderOrFollower,
            ProposeError::Loading(_) => Self::LeaderNotAvailable,
            ProposeError::Unknown(_) | ProposeError::Overloaded(_) => Self::RequestTimedOut,
            ProposeError::Stopped(_) => Self::KafkaStorageError,
            ProposeError::TooLarge(_) => Self::MessageTooLarge,
        }
    }

    /// Group requests: a proposal on, or question to, the shard of a group.
    #[must_use]
    pub fn of_coordinator(error: &ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { .. } => Self::NotCoordinator,
            ProposeError::Loading(_) | ProposeError::Overloaded(_) => Self::CoordinatorLoadInProgress,
            // Kafka's coordinator says this too when its own write timed out or lost its leader.
            ProposeError::Unknown(_) | ProposeError::Stopped(_) => Self::CoordinatorNotAvailable,
            // What Kafka's coordinator says when its log refuses a record as too large.
            ProposeError::TooLarge(_) => Self::UnknownServerError,
        }
    }

    /// Topics, configuration, producer ids: a proposal that was forwarded to shard 0.
    #[must_use]
    pub fn of_controller(error: &ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { .. } => Self::NotController,
            ProposeError::Loading(_) | ProposeError::Unknown(_) | ProposeError::Overloaded(_) => Self::RequestTimedOut,
            ProposeError::Stopped(_) => Self::BrokerNotAvailable,
            ProposeError::TooLarge(_) => Self::InvalidRequest,
        }
    }

    /// InitProducerId: the same, in the errors that producers retry.
    #[must_use]
    pub fn of_producer_id(error: &ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { .. } | ProposeError::Stopped(_) => Self::CoordinatorNotAvailable,
            ProposeError::Loading(_) | ProposeError::Overloaded(_) => Self::CoordinatorLoadInProgress,
            // Ids that were handed out to nobody are merely skipped, so the producer may ask again.
            ProposeError::Unknown(_) => Self::CoordinatorLoadInProgress,
            ProposeError::TooLarge(_) => Self::UnknownServerError,
        }
    }

    /// A linearizable read of a group's state.
    #[must_use]
    pub fn of_group_read(error: &ReadError) -> Self {
        match error {
            ReadError::NoLeader(_) => Self::CoordinatorNotAvailable,
            ReadError::NotHosted(_) => Self::NotCoordinator,
        }
    }

    /// A batch that `core` refused.
    #[must_use]
    pub const fn of_append(error: AppendError) -> Self {
        match error {
            AppendError::UnknownPartition => Self::UnknownTopicOrPartition,
            AppendError::OutOfOrderSequence => Self::OutOfOrderSequenceNumber,
            AppendError::DuplicateSequence => Self::DuplicateSequenceNumber,
            AppendError::InvalidProducerEpoch => Self::InvalidProducerEpoch,
            AppendError::UnknownProducer => Self::UnknownProducerId,
            AppendError::CorruptBatch => Self::CorruptMessage,
            AppendError::TooManyProducers => Self::PolicyViolation,
        }
    }

    /// Records that `core` did not delete.
    #[must_use]
    pub const fn of_log_start(error: LogStartError) -> Self {
        match error {
            LogStartError::UnknownPartition => Self::UnknownTopicOrPartition,
            LogStartError::OutOfRange => Self::OffsetOutOfRange,
        }
    }

    /// A batch of a Produce request that breaks the format.
    #[must_use]
    pub const fn of_batch(error: &BatchError) -> Self {
        match error {
            BatchError::UnsupportedMagic { .. } => Self::UnsupportedForMessageFormat,
            BatchError::UnknownCompression { .. } => Self::UnsupportedCompressionType,
            // A second batch, or a header that contradicts itself: the bytes arrived as they were sent, and would again.
            BatchError::TrailingBytes { .. }
            | BatchError::BadRecordCount { .. }
            | BatchError::BadOffsetDelta { .. } => Self::InvalidRecord,
            BatchError::Truncated { .. } | BatchError::BadLength { .. } | BatchError::CrcMismatch { .. } => {
                Self::CorruptMessage
            }
        }
    }

    /// A change to a topic that `core` refused.
    #[must_use]
    pub const fn of_topic(error: &TopicError) -> Self {
        match error {
            TopicError::AlreadyExists => Self::TopicAlreadyExists,
            TopicError::Unknown => Self::UnknownTopicOrPartition,
            TopicError::InvalidName => Self::InvalidTopic,
            TopicError::InvalidPartitions => Self::InvalidPartitions,
            TopicError::WrongShard => Self::NotController,
        }
    }

    /// A read of a partition's log that failed on this node.
    #[must_use]
    pub const fn of_log_read(error: &LogReadError) -> Self {
        match error {
            LogReadError::OutOfRange { .. } => Self::OffsetOutOfRange,
            LogReadError::Gone => Self::UnknownTopicOrPartition,
            // Clients ask again, here or elsewhere, while the segment is repaired.
            LogReadError::Damaged { .. } | LogReadError::WrongEpoch { .. } | LogReadError::Io { .. } => {
                Self::KafkaStorageError
            }
        }
    }

    /// A group operation that `core` refused.
    #[must_use]
    pub const fn of_group(error: &GroupError) -> Self {
        match error {
            GroupError::MemberIdRequired(_) => Self::MemberIdRequired,
            GroupError::UnknownMember => Self::UnknownMemberId,
            GroupError::IllegalGeneration => Self::IllegalGeneration,
            GroupError::RebalanceInProgress => Self::RebalanceInProgress,
            GroupError::InconsistentProtocol => Self::InconsistentGroupProtocol,
            GroupError::FencedInstance => Self::FencedInstanceId,
            GroupError::UnreleasedInstance => Self::UnreleasedInstanceId,
            GroupError::FencedMemberEpoch => Self::FencedMemberEpoch,
            GroupError::StaleMemberEpoch => Self::StaleMemberEpoch,
            GroupError::GroupMaxSizeReached => Self::GroupMaxSizeReached,
            GroupError::GroupNotFound => Self::GroupIdNotFound,
            GroupError::UnsupportedAssignor => Self::UnsupportedAssignor,
            GroupError::UnsupportedVersion => Self::UnsupportedVersion,
            GroupError::UnknownPartition => Self::UnknownTopicOrPartition,
            GroupError::OffsetMetadataTooLarge => Self::OffsetMetadataTooLarge,
            GroupError::InvalidGroupId => Self::InvalidGroupId,
            GroupError::InvalidRequest(_) => Self::InvalidRequest,
            GroupError::UnsupportedRegularExpression => Self::UnsupportedVersion,
            GroupError::InvalidRegularExpression => Self::InvalidRegularExpression,
            GroupError::NonEmptyGroup => Self::NonEmptyGroup,
            GroupError::SubscribedToTopic => Self::GroupSubscribedToTopic,
        }
    }

    /// A sentence for people, for responses that have room for one.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::UnknownServerError => "The broker met an error that it did not expect.",
            Self::None => "",
            Self::OffsetOutOfRange => "The offset lies outside the range of offsets of this partition.",
            Self::CorruptMessage => "The record batch is damaged: its header or checksum is wrong.",
            Self::UnknownTopicOrPartition => "This broker knows no such topic or partition.",
            Self::LeaderNotAvailable => "The partition has no leader at the moment; an election is under way.",
            Self::NotLeaderOrFollower => "This broker does not lead the partition.",
            Self::RequestTimedOut => "The request was not completed in time; its outcome is unknown.",
            Self::MessageTooLarge => "The record batch is larger than max.message.bytes allows.",
            Self::NotCoordinator => NOT_COORDINATOR_MESSAGE,
            Self::CoordinatorLoadInProgress => "The group's coordinator is new and still loading.",
            Self::CoordinatorNotAvailable => "The group has no coordinator at the moment.",
            Self::InvalidTopic => {
                "A topic's name is 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-', and neither '.' nor '..'."
            }
            Self::InvalidRequiredAcks => "acks must be -1, 0 or 1.",
            Self::UnsupportedVersion => "The broker does not support this version of the request.",
            Self::TopicAlreadyExists => "A topic of this name exists already.",
            Self::InvalidPartitions => "The number of partitions must lie between 1 and 10000.",
            Self::NotController => "The cluster's metadata has no leader at the moment.",
            Self::InvalidRequest => "The request contradicts itself.",
            Self::UnsupportedForMessageFormat => "Record batches must be of format 2 (magic 2).",
            Self::InvalidRecord => "The record batch breaks a rule of the broker.",
            Self::InvalidTxnState => "Transactions are not offered by this cluster.",
            Self::UnsupportedCompressionType => "This version of the request does not allow this compression.",
            Self::KafkaStorageError => "The disk of this broker failed.",
            Self::UnknownTopicId => "This broker knows no topic of this id.",
            Self::UnknownProducerId => "The broker remembers nothing of this producer.",
            Self::OutOfOrderSequenceNumber => "A sequence number of this producer is missing.",
            Self::TransactionalIdAuthorizationFailed => "Transactions are not offered by this cluster.",
            Self::IllegalGeneration => "The generation is not the group's current one.",
            Self::InconsistentGroupProtocol => "The member's protocols do not fit those of the group.",
            Self::InvalidGroupId => "The group id is not valid.",
            Self::UnknownMemberId => "The group knows no such member.",
            Self::InvalidSessionTimeout => "The session timeout lies outside the bounds of the broker.",
            Self::RebalanceInProgress => "The group is rebalancing: the member must join again.",
            Self::InvalidCommitOffsetSize => "The offsets and their metadata are too large for one request.",
            Self::NonEmptyGroup => "The group has members.",
            Self::GroupIdNotFound => "There is no such group.",
            Self::MemberIdRequired => "The member must join again, with the id that it was given.",
            Self::GroupMaxSizeReached => "The group has as many members as it may have.",
            Self::FencedInstanceId => "Another member uses this instance id.",
            Self::GroupSubscribedToTopic => "Members of the group subscribe to the topic.",
            Self::InvalidRegularExpression => "The regular expression is not valid, or too large.",
            Self::FencedMemberEpoch => "The member epoch is not the member's current one: it must join again.",
            Self::UnreleasedInstanceId => "The instance id is in use by a member that has not left.",
            Self::UnsupportedAssignor => "The assignor is not supported; supported are uniform and range.",
            Self::StaleMemberEpoch => "The member epoch is older than the member's current one.",
            Self::OffsetMetadataTooLarge => "The metadata of an offset is too large.",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::ShardId;

    #[test]
    fn a_group_request_at_the_wrong_broker_says_who_can_handle_it() {
        let error = ProposeError::NotLeader { shard: ShardId(3), leader: Some(2) };
        assert_eq!(ErrorCode::of_coordinator(&error), ErrorCode::NotCoordinator);
        assert_eq!(ErrorCode::NotCoordinator.code(), 16);
        assert_eq!(ErrorCode::NotCoordinator.message(), "only leader can handle consumer group operations");
    }

    #[test]
    fn what_was_not_proposed_is_retriable_and_what_may_have_been_is_a_timeout() {
        let unknown = ProposeError::Unknown("leadership lost".to_owned());
        assert_eq!(ErrorCode::of_partition(&unknown), ErrorCode::RequestTimedOut);
        let not_leader = ProposeError::NotLeader { shard: ShardId(0), leader: None };
        assert_eq!(ErrorCode::of_partition(&not_leader), ErrorCode::NotLeaderOrFollower);
        assert_eq!(ErrorCode::of_controller(&not_leader), ErrorCode::NotController);
    }
}
