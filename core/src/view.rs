//! Read-only views of the state, for describe requests, heartbeats and the wire.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::TopicId;
use crate::op::{ExpiryReason, TopicPartitions};
use crate::reply::{GroupError, HeartbeatReply};

/// Which protocol a group speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GroupType {
    /// JoinGroup and SyncGroup.
    Classic,
    /// KIP-848.
    Consumer,
}

/// State of a group, of either protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupState {
    /// No members; offsets may remain.
    Empty,
    /// Classic: members are joining.
    PreparingRebalance,
    /// Classic: waiting for the leader's assignment.
    CompletingRebalance,
    /// Consumer: the target assignment is behind the group's epoch.
    Assigning,
    /// Consumer: members are moving towards the target.
    Reconciling,
    /// At rest.
    Stable,
    /// No such group.
    Dead,
}

/// Everything about one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// Group.
    pub group_id: String,
    /// Its protocol.
    pub group_type: GroupType,
    /// Its state.
    pub state: GroupState,
    /// Generation (classic) or group epoch (consumer).
    pub epoch: i32,
    /// Consumer: epoch of the target assignment. Classic: the generation.
    pub assignment_epoch: i32,
    /// Classic: `consumer`, …; consumer: `consumer`.
    pub protocol_type: String,
    /// Classic: the protocol chosen; consumer: the assignor that most members ask for, or the default. Empty when there is none yet.
    pub protocol_name: String,
    /// Classic: the leading member.
    pub leader: Option<String>,
    /// By member id.
    pub members: Vec<MemberView>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Member.
    pub member_id: String,
    /// Static membership.
    pub instance_id: Option<String>,
    /// Rack.
    pub rack_id: Option<String>,
    /// Client id.
    pub client_id: String,
    /// Client's host.
    pub client_host: String,
    /// Consumer: member epoch; classic: the generation.
    pub member_epoch: i32,
    /// Consumer: topic names, sorted.
    pub subscribed_topic_names: Vec<String>,
    /// Consumer: regular expression, or empty.
    pub subscribed_topic_regex: String,
    /// Consumer: what it owns or may own now.
    pub assigned: Vec<TopicPartitions>,
    /// Consumer: what it was asked to give up, and has not yet.
    pub revoking: Vec<TopicPartitions>,
    /// Consumer: where it is going.
    pub target: Vec<TopicPartitions>,
    /// Classic: metadata for the chosen protocol, of a stable group only.
    pub classic_metadata: Vec<u8>,
    /// Classic: assignment; while the group rebalances, that of the last generation.
    pub classic_assignment: Vec<u8>,
    /// It speaks the classic protocol, be the group classic or consumer.
    pub speaks_classic: bool,
}

/// A line of ListGroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Group.
    pub group_id: String,
    /// Its protocol.
    pub group_type: GroupType,
    /// Its state.
    pub state: GroupState,
    /// `consumer`, … ; empty for a group of offsets only.
    pub protocol_type: String,
    /// Number of members.
    pub members: usize,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Topic.
    pub topic_id: TopicId,
    /// Partition index.
    pub partition: u32,
    /// Next offset to read.
    pub offset: i64,
    /// Leader epoch of the last record read, −1 when unknown.
    pub leader_epoch: i32,
    /// Whatever the committer wrote.
    pub metadata: String,
    /// When, by the proposer's wall clock.
    pub commit_time_ms: i64,
}

/// A partition that this shard hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// First offset that can be read.
    pub log_start_offset: i64,
    /// Offset after the last applied record: high watermark and log end are the same here.
    pub next_offset: i64,
    /// Term of the last append, −1 when there was none.
    pub last_epoch: i32,
    /// Names the last compaction of its log; 0 when there was none.
    pub compaction_revision: u64,
    /// Where the records begin that were in no compaction yet.
    pub compacted_to: i64,
}

/// What was configured for one group; `None`: as for every group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupConfig {
    /// `consumer.session.timeout.ms`: of members that speak the consumer protocol.
    pub session_timeout_ms: Option<u32>,
    /// `consumer.heartbeat.interval.ms`: what such members are told.
    pub heartbeat_interval_ms: Option<u32>,
}

/// A regular expression that members of a group subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRegex {
    /// Group.
    pub group_id: String,
    /// As the members wrote it.
    pub regex: String,
    /// Version of the directory by which it was resolved, with the topics found; `None`: not yet, or not since a topic was made or altered
    /// for which the group has committed offsets, so that it is not known whether these may go.
    pub resolved: Option<(u64, Vec<TopicId>)>,
}

/// What happened to a group lately, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupTimeline {
    /// Its protocol.
    pub group_type: GroupType,
    /// Its state.
    pub state: GroupState,
    /// Generation (classic) or group epoch (consumer).
    pub epoch: i32,
    /// Since when a rebalance is under way, by its proposer's wall clock in milliseconds; `None` when the group is settled, and when the
    /// op that began the rebalance carried no time.
    pub rebalance_since_ms: Option<i64>,
    /// Oldest first, at most 64 and at most 64 KiB.
    pub events: Vec<GroupEvent>,
}

/// Something that happened to a group, for people who ask why it rebalanced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEvent {
    /// Log index of the op that did it.
    pub index: u64,
    /// When, by the proposer's wall clock in milliseconds; `None` for changes of topics, which carry no time.
    pub at_ms: Option<i64>,
    /// Generation or group epoch afterwards: the one that the event caused, when it caused one.
    pub epoch: i32,
    /// What.
    pub what: GroupEventKind,
}

/// What happened to a group. Ids that are longer than 300 bytes are cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupEventKind {
    /// A member came.
    Joined {
        /// Who.
        member_id: String,
        /// Static membership.
        instance_id: Option<String>,
        /// What its client calls itself.
        client_id: String,
        /// Where from.
        client_host: String,
    },
    /// Classic: a member joined again and asked for a new generation by that.
    Rejoined {
        /// Who.
        member_id: String,
    },
    /// A new process of a static member took its place.
    Replaced {
        /// Who.
        member_id: String,
        /// The new process's member id.
        by: String,
    },
    /// A static member left for a while.
    Away {
        /// Who.
        member_id: String,
    },
    /// A member left, or was removed by an administrator.
    Left {
        /// Who.
        member_id: String,
    },
    /// A member was removed because it did not do something in time.
    Expired {
        /// Who.
        member_id: String,
        /// What it did not do.
        reason: ExpiryReason,
        /// How long nothing had been heard from it; 0 when it was there and did not rejoin.
        silent_ms: u64,
    },
    /// A member subscribes to other topics.
    Subscribed {
        /// Who.
        member_id: String,
    },
    /// A regular expression matches other topics than before.
    RegexResolved {
        /// Which one.
        regex: String,
        /// How many topics it matches.
        topics: u32,
    },
    /// Topics that the group subscribes to were made, deleted, or got more partitions.
    TopicsChanged,
    /// Classic: a generation began, and waits for its assignment.
    Generation {
        /// Who leads.
        leader: String,
        /// How many members it has.
        members: u32,
    },
    /// The target assignment (consumer) or the assignment of the generation (classic) was made.
    Assigned {
        /// By which assignor.
        assignor: String,
        /// What goes from whom to whom.
        moves: Vec<PartitionsMoved>,
        /// Partitions that go elsewhere too and are not listed, to keep the timeline small.
        omitted: u32,
    },
    /// Everybody has what it is assigned.
    Settled {
        /// Milliseconds since the rebalance began, by the proposers' wall clocks; `None` when that time is not known.
        after_ms: Option<u64>,
    },
    /// The group changed its protocol.
    Migrated {
        /// What it speaks now.
        to: GroupType,
    },
}

/// Partitions that go from one member to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionsMoved {
    /// Who had them; `None`: nobody.
    pub from: Option<String>,
    /// Who gets them; `None`: nobody.
    pub to: Option<String>,
    /// Which.
    pub partitions: Vec<TopicPartitions>,
}

/// How far a waiting JoinGroup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinProgress {
    /// Wait for the next `GroupChanged`.
    Waiting,
    /// Answer this.
    Done(Result<JoinResult, GroupError>),
}

/// A JoinGroup response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinResult {
    /// The new generation.
    pub generation: i32,
    /// `consumer`, …
    pub protocol_type: String,
    /// The protocol chosen.
    pub protocol_name: String,
    /// Who leads.
    pub leader: String,
    /// The member itself.
    pub member_id: String,
    /// A leader that must not assign (a returning static leader in a stable group, v9+).
    pub skip_assignment: bool,
    /// For the leader: member id, instance id, metadata. Empty for the others.
    pub members: Vec<(String, Option<String>, Vec<u8>)>,
}

/// How far a waiting SyncGroup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncProgress {
    /// Wait for the next `GroupChanged`.
    Waiting,
    /// Answer this.
    Done(Result<SyncResult, GroupError>),
}

/// A SyncGroup response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncResult {
    /// `consumer`, …
    pub protocol_type: String,
    /// The protocol chosen.
    pub protocol_name: String,
    /// The member's assignment.
    pub assignment: Vec<u8>,
}

/// Whether a ConsumerGroupHeartbeat can be answered from the applied state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeartbeatCheck {
    /// Nothing changes: answer this.
    Answer(Result<HeartbeatReply, GroupError>),
    /// It changes reconciliation: propose it.
    Propose,
}

/// Groups with offsets that are old enough to go; see [`crate::ClusterStateMachine::groups_to_expire`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupsToExpire {
    /// Their ids, ascending.
    pub groups: Vec<String>,
    /// The last group that was looked at; `None`: all were, up to the last one.
    pub last: Option<String>,
}
