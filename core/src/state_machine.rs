//! The one door: `apply`.

use alloc::string::String;
use alloc::vec::Vec;

use crate::directory::Directory;
use crate::effect::Effect;
use crate::ids::{Position, ShardId, TopicId};
use crate::op::{ConsumerHeartbeat, Op};
use crate::reply::{GroupError, HeartbeatReply, Reply};
use crate::view::{
    CommittedOffset, GroupListing, GroupView, HeartbeatCheck, JoinProgress, PartitionView, SyncProgress,
};

/// What `apply` returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// For the proposer.
    pub reply: Reply,
    /// For the runtime, on every replica.
    pub effects: Vec<Effect>,
}

/// A hash of the whole state; compare it only between replicas at equal positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

/// An invariant of ours does not hold: the shard must stop on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where.
    pub position: Position,
    /// State before the op.
    pub digest: Digest,
    /// Which invariant, and the values.
    pub message: String,
}

/// The state of one shard.
#[derive(Clone, Debug)]
pub struct ClusterStateMachine {
    shard: ShardId,
    shard_count: u16,
}

#[allow(unused_variables)]
impl ClusterStateMachine {
    /// An empty state. `shard_count` ≥ 1 is the cluster's and never changes.
    #[must_use]
    pub fn new(shard: ShardId, shard_count: u16) -> Self {
        Self { shard, shard_count }
    }
    /// Applies one op. `payload_len` is the length of the entry's raw payload. Positions must ascend; an op at or below the last applied
    /// position is a violation. Never panics, whatever the op.
    pub fn apply(&mut self, position: Position, op: &Op, payload_len: usize) -> Result<Applied, Violation> {
        todo!()
    }
    /// The shard's id.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }
    /// Shards in the cluster.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.shard_count
    }
    /// Position of the last op applied.
    #[must_use]
    pub fn applied(&self) -> Position {
        todo!()
    }
    /// Incremental digest of the state.
    #[must_use]
    pub fn digest(&self) -> Digest {
        todo!()
    }
    /// The state as bytes, versioned; equal states give equal bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        todo!()
    }
    /// The state from bytes made by [`Self::snapshot`]; hostile bytes give an error.
    pub fn restore(bytes: &[u8]) -> Result<Self, crate::op::DecodeError> {
        todo!()
    }
    /// Checks every invariant over the whole state; for tests, the simulator and debug builds.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        todo!()
    }

    /// Topics and brokers.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        todo!()
    }
    /// On shard 0: the op that brings another shard from `version` to this directory; `None` when it is there already.
    #[must_use]
    pub fn feed_since(&self, version: u64) -> Option<Op> {
        todo!()
    }
    /// A partition hosted here.
    #[must_use]
    pub fn partition(&self, topic_id: TopicId, partition: u32) -> Option<PartitionView> {
        todo!()
    }
    /// All partitions hosted here, ascending.
    pub fn partitions(&self) -> Vec<(TopicId, u32, PartitionView)> {
        todo!()
    }
    /// KIP-101: the end offset of the largest epoch ≤ `leader_epoch`, as (epoch, end offset); `None` when unknown.
    #[must_use]
    pub fn end_offset_for_epoch(&self, topic_id: TopicId, partition: u32, leader_epoch: i32) -> Option<(i32, i64)> {
        todo!()
    }

    /// A group with its members.
    #[must_use]
    pub fn group(&self, group_id: &str) -> Option<GroupView> {
        todo!()
    }
    /// Every group here.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupListing> {
        todo!()
    }
    /// One committed offset.
    #[must_use]
    pub fn committed_offset(&self, group_id: &str, topic_id: TopicId, partition: u32) -> Option<CommittedOffset> {
        todo!()
    }
    /// All committed offsets of a group.
    #[must_use]
    pub fn committed_offsets(&self, group_id: &str) -> Vec<CommittedOffset> {
        todo!()
    }
    /// OffsetFetch v9+: is this member with this epoch allowed to ask? (Only asked when one is given.)
    pub fn check_offset_fetch(&self, group_id: &str, member_id: &str, member_epoch: i32) -> Result<(), GroupError> {
        todo!()
    }
    /// How far a JoinGroup is that was answered with this ticket.
    #[must_use]
    pub fn join_progress(&self, group_id: &str, member_id: &str, after_generation: i32) -> JoinProgress {
        todo!()
    }
    /// How far a SyncGroup of this generation is.
    #[must_use]
    pub fn sync_progress(&self, group_id: &str, member_id: &str, generation: i32) -> SyncProgress {
        todo!()
    }
    /// Follower's SyncGroup checks that need no op: errors as Kafka gives them.
    pub fn check_sync(
        &self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        protocol_type: Option<&str>,
        protocol_name: Option<&str>,
    ) -> Result<(), GroupError> {
        todo!()
    }
    /// Classic Heartbeat, answered from the applied state.
    pub fn check_heartbeat(
        &self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        todo!()
    }
    /// ConsumerGroupHeartbeat with epoch > 0: can it be answered from the applied state?
    #[must_use]
    pub fn check_consumer_heartbeat(&self, heartbeat: &ConsumerHeartbeat) -> HeartbeatCheck {
        todo!()
    }
    /// After an assignment: what `member_id` would be answered now.
    pub fn heartbeat_reply(&self, group_id: &str, member_id: &str) -> Result<HeartbeatReply, GroupError> {
        todo!()
    }
}
