//! Consumer groups of one shard: both protocols and the committed offsets.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::directory::Directory;
use crate::effect::Effect;
use crate::ids::{Position, TopicId};
use crate::op::{
    CommitOffset, ConsumerHeartbeat, HeartbeatConsumer, JoinConsumerGroup, LeaveConsumerGroup, RebalancePartitions,
};
use crate::reply::{GroupError, HeartbeatReply, Reply};
use crate::view::{CommittedOffset, GroupListing, GroupView, HeartbeatCheck, JoinProgress, SyncProgress};

/// Every group of a shard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Groups {}

#[allow(unused_variables, dead_code, clippy::needless_pass_by_ref_mut)]
impl Groups {
    /// Op 7. An `Err` is a broken invariant of ours.
    pub(crate) fn apply_join(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &JoinConsumerGroup,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        todo!()
    }

    /// Op 8.
    pub(crate) fn apply_leave(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &LeaveConsumerGroup,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        todo!()
    }

    /// Op 9.
    pub(crate) fn apply_rebalance(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &RebalancePartitions,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        todo!()
    }

    /// Op 10.
    pub(crate) fn apply_commit(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &CommitOffset,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        todo!()
    }

    /// Op 11.
    pub(crate) fn apply_heartbeat(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &HeartbeatConsumer,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        todo!()
    }

    /// The directory has changed already: topics made or altered, and topics deleted (their committed offsets go).
    pub(crate) fn topics_changed(
        &mut self,
        directory: &Directory,
        position: Position,
        changed: &[TopicId],
        deleted: &[TopicId],
        effects: &mut Vec<Effect>,
    ) {
    }

    /// Kept incrementally.
    pub(crate) fn digest(&self) -> u128 {
        0
    }

    /// Checks every group in full.
    pub(crate) fn check_invariants(&self, directory: &Directory) -> Result<(), String> {
        Ok(())
    }

    /// See [`crate::ClusterStateMachine::group`].
    pub(crate) fn group(&self, group_id: &str) -> Option<GroupView> {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::groups`].
    pub(crate) fn groups(&self) -> Vec<GroupListing> {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::committed_offset`].
    pub(crate) fn committed_offset(
        &self,
        group_id: &str,
        topic_id: TopicId,
        partition: u32,
    ) -> Option<CommittedOffset> {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::committed_offsets`].
    pub(crate) fn committed_offsets(&self, group_id: &str) -> Vec<CommittedOffset> {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::check_offset_fetch`].
    pub(crate) fn check_offset_fetch(
        &self,
        group_id: &str,
        member_id: &str,
        member_epoch: i32,
    ) -> Result<(), GroupError> {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::join_progress`].
    pub(crate) fn join_progress(&self, group_id: &str, member_id: &str, after_generation: i32) -> JoinProgress {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::sync_progress`].
    pub(crate) fn sync_progress(&self, group_id: &str, member_id: &str, generation: i32) -> SyncProgress {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::check_sync`].
    pub(crate) fn check_sync(
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
    /// See [`crate::ClusterStateMachine::check_heartbeat`].
    pub(crate) fn check_heartbeat(
        &self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::check_consumer_heartbeat`].
    pub(crate) fn check_consumer_heartbeat(&self, heartbeat: &ConsumerHeartbeat) -> HeartbeatCheck {
        todo!()
    }
    /// See [`crate::ClusterStateMachine::heartbeat_reply`].
    pub(crate) fn heartbeat_reply(&self, group_id: &str, member_id: &str) -> Result<HeartbeatReply, GroupError> {
        todo!()
    }
}
