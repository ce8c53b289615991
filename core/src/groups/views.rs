//! Answers from the state as it is: describe, list, fetch offsets, and requests that change nothing.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Groups;
use super::classic::{ClassicGroup, ClassicState, SyncSender};
use super::consumer::ConsumerGroup;
use super::consumer_heartbeat;
use super::group::{Group, Offset, Protocol, topic_partitions};
use super::reconcile::MemberState;
use crate::directory::Directory;
use crate::ids::TopicId;
use crate::op::ConsumerHeartbeat;
use crate::reply::{GroupError, HeartbeatReply};
use crate::view::{
    CommittedOffset, GroupListing, GroupState, GroupTimeline, GroupType, GroupView, HeartbeatCheck, JoinProgress,
    MemberView, SyncProgress,
};

impl Groups {
    /// See [`crate::ClusterStateMachine::group`].
    pub(crate) fn group(&self, group_id: &str) -> Option<GroupView> {
        let group = self.groups.get(group_id)?;
        Some(match &group.protocol {
            Protocol::Classic(classic) => classic_view(group_id, classic),
            Protocol::Consumer(consumer) => consumer_view(group_id, consumer),
        })
    }

    /// See [`crate::ClusterStateMachine::has_group`].
    pub(crate) fn contains(&self, group_id: &str) -> bool {
        self.groups.contains_key(group_id)
    }

    /// See [`crate::ClusterStateMachine::groups`].
    pub(crate) fn groups(&self) -> Vec<GroupListing> {
        self.groups
            .iter()
            .map(|(group_id, group)| {
                let (group_type, state, protocol_type, members) = match &group.protocol {
                    Protocol::Classic(classic) => (
                        GroupType::Classic,
                        classic_state(classic),
                        classic.head.protocol_type.clone().unwrap_or_default(),
                        classic.members.len(),
                    ),
                    Protocol::Consumer(consumer) => {
                        (GroupType::Consumer, consumer_state(consumer), "consumer".to_string(), consumer.members.len())
                    }
                };
                GroupListing { group_id: group_id.clone(), group_type, state, protocol_type, members }
            })
            .collect()
    }

    /// See [`crate::ClusterStateMachine::committed_offset`].
    pub(crate) fn committed_offset(
        &self,
        group_id: &str,
        topic_id: TopicId,
        partition: u32,
    ) -> Option<CommittedOffset> {
        let offset = self.groups.get(group_id)?.offsets.get(&(topic_id, partition))?;
        Some(committed((topic_id, partition), offset))
    }

    /// See [`crate::ClusterStateMachine::committed_offsets`].
    pub(crate) fn committed_offsets(&self, group_id: &str) -> Vec<CommittedOffset> {
        let Some(group) = self.groups.get(group_id) else { return Vec::new() };
        group.offsets.iter().map(|(key, offset)| committed(*key, offset)).collect()
    }

    /// See [`crate::ClusterStateMachine::check_offset_fetch`]. A group that does not exist has no offsets, which is no error;
    /// a classic group checks nothing.
    pub(crate) fn check_offset_fetch(
        &self,
        group_id: &str,
        member_id: &str,
        member_epoch: i32,
    ) -> Result<(), GroupError> {
        match self.groups.get(group_id).map(|group| &group.protocol) {
            Some(Protocol::Consumer(group)) => {
                if member_id.is_empty() && member_epoch < 0 {
                    return Ok(());
                }
                let member = group.members.get(member_id).ok_or(GroupError::UnknownMember)?;
                if member.epoch == member_epoch {
                    Ok(())
                } else if member.classic.is_some() {
                    Err(GroupError::IllegalGeneration)
                } else {
                    Err(GroupError::StaleMemberEpoch)
                }
            }
            Some(Protocol::Classic(_)) | None => Ok(()),
        }
    }

    /// See [`crate::ClusterStateMachine::join_progress`].
    pub(crate) fn join_progress(&self, group_id: &str, member_id: &str, after_generation: i32) -> JoinProgress {
        match self.protocol(group_id) {
            Some(Protocol::Classic(group)) => group.join_progress(member_id, after_generation),
            Some(Protocol::Consumer(group)) => group.classic_join_progress(member_id),
            None => JoinProgress::Done(Err(GroupError::UnknownMember)),
        }
    }

    /// See [`crate::ClusterStateMachine::sync_progress`].
    pub(crate) fn sync_progress(
        &self,
        directory: &Directory,
        group_id: &str,
        member_id: &str,
        generation: i32,
    ) -> SyncProgress {
        match self.protocol(group_id) {
            Some(Protocol::Classic(group)) => group.sync_progress(member_id, generation),
            Some(Protocol::Consumer(group)) => group.classic_sync_progress(directory, member_id, generation),
            None => SyncProgress::Done(Err(GroupError::UnknownMember)),
        }
    }

    /// See [`crate::ClusterStateMachine::check_sync`].
    pub(crate) fn check_sync(&self, group_id: &str, sender: &SyncSender<'_>) -> Result<(), GroupError> {
        self.groups.get(group_id).ok_or(GroupError::UnknownMember)?.check_sync(sender)
    }

    /// See [`crate::ClusterStateMachine::leads_classic_group`].
    pub(crate) fn leads_classic_group(&self, group_id: &str, member_id: &str) -> bool {
        matches!(self.protocol(group_id), Some(Protocol::Classic(group)) if group.is_leader(member_id))
    }

    /// See [`crate::ClusterStateMachine::check_heartbeat`].
    pub(crate) fn check_heartbeat(
        &self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        match self.protocol(group_id) {
            Some(Protocol::Classic(group)) => group.check_heartbeat(member_id, instance_id, generation),
            Some(Protocol::Consumer(group)) => group.check_classic_heartbeat(member_id, instance_id, generation),
            None => Err(GroupError::UnknownMember),
        }
    }

    /// See [`crate::ClusterStateMachine::check_consumer_heartbeat`].
    pub(crate) fn check_consumer_heartbeat(&self, heartbeat: &ConsumerHeartbeat) -> HeartbeatCheck {
        if let Err(error) = consumer_heartbeat::check_request(heartbeat) {
            return HeartbeatCheck::Answer(Err(error));
        }
        if heartbeat.member_epoch <= 0 {
            return HeartbeatCheck::Propose;
        }
        match self.groups.get(&heartbeat.group_id).map(|group| &group.protocol) {
            Some(Protocol::Consumer(group)) => group.check_heartbeat(heartbeat, self.config(&heartbeat.group_id)),
            _ => HeartbeatCheck::Answer(Err(GroupError::GroupNotFound)),
        }
    }

    /// See [`crate::ClusterStateMachine::heartbeat_reply`]. Without the assignment while a request of the member still waits
    /// for its `Assign`, which goes by what the member reported then.
    pub(crate) fn heartbeat_reply(&self, group_id: &str, member_id: &str) -> Result<HeartbeatReply, GroupError> {
        match self.groups.get(group_id).map(|group| &group.protocol) {
            Some(Protocol::Consumer(group)) => {
                let waits = group.members.get(member_id).is_some_and(|member| member.waiting.is_some());
                group.reply(member_id, !waits, self.config(group_id))
            }
            _ => Err(GroupError::GroupNotFound),
        }
    }

    /// See [`crate::ClusterStateMachine::group_timeline`].
    pub(crate) fn timeline(&self, group_id: &str) -> Option<GroupTimeline> {
        let group = self.groups.get(group_id)?;
        let (group_type, state) = match &group.protocol {
            Protocol::Classic(classic) => (GroupType::Classic, classic_state(classic)),
            Protocol::Consumer(consumer) => (GroupType::Consumer, consumer_state(consumer)),
        };
        Some(GroupTimeline {
            group_type,
            state,
            epoch: group.epoch(),
            rebalance_since_ms: group.timeline.rebalance.and_then(|rebalance| rebalance.since_ms),
            events: group.timeline.events().cloned().collect(),
        })
    }

    fn protocol(&self, group_id: &str) -> Option<&Protocol> {
        self.groups.get(group_id).map(|group| &group.protocol)
    }
}

impl Group {
    pub(super) fn state(&self) -> GroupState {
        match &self.protocol {
            Protocol::Classic(group) => classic_state(group),
            Protocol::Consumer(group) => consumer_state(group),
        }
    }
}

fn committed(key: (TopicId, u32), offset: &Offset) -> CommittedOffset {
    CommittedOffset {
        topic_id: key.0,
        partition: key.1,
        offset: offset.offset,
        leader_epoch: offset.leader_epoch,
        metadata: offset.metadata.clone(),
        commit_time_ms: offset.commit_time_ms,
    }
}

fn classic_state(group: &ClassicGroup) -> GroupState {
    match group.state() {
        ClassicState::Empty => GroupState::Empty,
        ClassicState::Preparing(_) => GroupState::PreparingRebalance,
        ClassicState::Completing => GroupState::CompletingRebalance,
        ClassicState::Stable => GroupState::Stable,
    }
}

fn consumer_state(group: &ConsumerGroup) -> GroupState {
    let settled = |epoch: i32, state: MemberState| epoch == group.head.assignment_epoch && state == MemberState::Stable;
    if group.members.is_empty() {
        GroupState::Empty
    } else if group.assignment_due() {
        GroupState::Assigning
    } else if group.members.values().all(|member| settled(member.epoch, member.state)) {
        GroupState::Stable
    } else {
        GroupState::Reconciling
    }
}

fn classic_view(group_id: &str, group: &ClassicGroup) -> GroupView {
    let state = classic_state(group);
    let protocol_name = group.head.protocol_name.clone().unwrap_or_default();
    // While the group rebalances, no protocol is chosen that metadata could be of. What members were assigned they have until they join.
    let stable = state == GroupState::Stable;
    let members = group
        .members
        .iter()
        .map(|(member_id, member)| MemberView {
            member_id: member_id.clone(),
            instance_id: member.instance_id.clone(),
            rack_id: None,
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            member_epoch: group.head.generation,
            subscribed_topic_names: Vec::new(),
            subscribed_topic_regex: String::new(),
            assigned: Vec::new(),
            revoking: Vec::new(),
            target: Vec::new(),
            classic_metadata: if stable { member.metadata(&protocol_name).to_vec() } else { Vec::new() },
            classic_assignment: member.assignment.clone(),
            speaks_classic: true,
        })
        .collect();
    GroupView {
        group_id: group_id.to_string(),
        group_type: GroupType::Classic,
        state,
        epoch: group.head.generation,
        assignment_epoch: group.head.generation,
        protocol_type: group.head.protocol_type.clone().unwrap_or_default(),
        protocol_name,
        leader: group.head.leader.clone(),
        members,
    }
}

fn consumer_view(group_id: &str, group: &ConsumerGroup) -> GroupView {
    let members = group
        .members
        .iter()
        .map(|(member_id, member)| MemberView {
            member_id: member_id.clone(),
            instance_id: member.instance_id.clone(),
            rack_id: member.rack_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            member_epoch: member.epoch,
            subscribed_topic_names: member.subscribed.clone(),
            subscribed_topic_regex: member.regex.clone().unwrap_or_default(),
            assigned: member.assignment(),
            revoking: topic_partitions(
                member.revoking.iter().map(|(topic_id, partitions)| (topic_id, partitions.keys().copied())),
            ),
            target: group.targets.get(member_id).map_or_else(Vec::new, |target| {
                topic_partitions(target.iter().map(|(topic_id, partitions)| (topic_id, partitions.iter().copied())))
            }),
            classic_metadata: Vec::new(),
            classic_assignment: Vec::new(),
            speaks_classic: member.classic.is_some(),
        })
        .collect();
    GroupView {
        group_id: group_id.to_string(),
        group_type: GroupType::Consumer,
        state: consumer_state(group),
        epoch: group.head.epoch,
        assignment_epoch: group.head.assignment_epoch,
        protocol_type: "consumer".to_string(),
        protocol_name: group.elect_assignor().name().to_string(),
        leader: None,
        members,
    }
}
