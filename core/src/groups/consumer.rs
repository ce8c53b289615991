//! The consumer protocol's group (KIP-848): members, their subscriptions, and who owns which partition.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::group::{Context, Target, topic_partitions};
use super::reconcile::{MemberState, Owned, Reconciled, reconcile};
use super::rows::Rows;
use super::table;
use crate::digest::row_hash;
use crate::ids::TopicId;
use crate::op::TopicPartitions;
use crate::reply::{GroupError, HeartbeatReply};

/// Member epoch of a static member that is away for a while.
pub(crate) const AWAY_EPOCH: i32 = -2;
/// Member epoch of a member that leaves.
pub(crate) const LEAVE_EPOCH: i32 = -1;

/// What the group itself knows, without its members.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConsumerHead {
    /// Raised by every change that may change the assignment.
    pub(super) epoch: i32,
    /// The group epoch that the target assignment was computed for.
    pub(super) assignment_epoch: i32,
    /// The assignor that computed it; empty before the first.
    pub(super) assignor: String,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsumerMember {
    pub(super) instance_id: Option<String>,
    pub(super) rack_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) rebalance_timeout_ms: u32,
    pub(super) session_timeout_ms: u32,
    pub(super) heartbeat_interval_ms: u32,
    pub(super) server_assignor: Option<String>,
    /// Topic names, ascending, each once.
    pub(super) subscribed: Vec<String>,
    /// Hash of `subscribed`: equal subscriptions are found without comparing names.
    pub(super) subscription_hash: u128,
    /// Epoch it has reached; [`AWAY_EPOCH`] while a static member is away.
    pub(super) epoch: i32,
    /// The one before, which a member still names after a lost response.
    pub(super) previous_epoch: i32,
    pub(super) state: MemberState,
    /// What it may own, with the epoch at which each partition was assigned.
    pub(super) assigned: Owned,
    /// What it must give up and has not yet.
    pub(super) revoking: Owned,
    /// Log index at which that was asked of it.
    pub(super) revoking_since: Option<u64>,
    /// The request that waits for the target assignment.
    pub(super) waiting: Option<WaitingHeartbeat>,
}

/// A heartbeat that was applied while the target assignment was behind: what is left to answer once it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaitingHeartbeat {
    /// What the member reported to own.
    pub(super) owned: Option<Vec<TopicPartitions>>,
    /// It must be told its assignment in any case.
    pub(super) full: bool,
}

/// A group that speaks ConsumerGroupHeartbeat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConsumerGroup {
    pub(super) head: ConsumerHead,
    pub(super) members: Rows<{ table::CONSUMER_MEMBER }, String, ConsumerMember>,
    /// Where each member is going. Disjoint.
    pub(super) targets: Rows<{ table::TARGET }, String, Target>,
    /// Subscribed topics with the numbers of partitions that the target was computed for.
    pub(super) topics: Rows<{ table::TARGET_TOPIC }, TopicId, u32>,
    pub(super) activity: Activity,
    /// Who holds each partition: assigned, or asked to give it up. What makes two owners impossible.
    #[serde(skip)]
    pub(super) owners: BTreeMap<(TopicId, u32), Arc<str>>,
    /// Member by instance id.
    #[serde(skip)]
    pub(super) instances: BTreeMap<String, String>,
    /// How many members subscribe to each topic name.
    #[serde(skip)]
    pub(super) subscribers: BTreeMap<String, usize>,
}

impl ConsumerGroup {
    pub(super) fn new(epoch: i32) -> Self {
        Self {
            head: ConsumerHead { epoch, assignment_epoch: epoch, assignor: String::new() },
            members: Rows::default(),
            targets: Rows::default(),
            topics: Rows::default(),
            activity: Activity::default(),
            owners: BTreeMap::new(),
            instances: BTreeMap::new(),
            subscribers: BTreeMap::new(),
        }
    }

    pub(super) fn epoch(&self) -> i32 {
        self.head.epoch
    }

    /// The target assignment is behind the group, and there is somebody to assign to.
    pub(super) fn assignment_due(&self) -> bool {
        self.head.epoch > self.head.assignment_epoch && !self.members.is_empty()
    }

    /// Indexes that follow from the members.
    pub(super) fn rebuild(&mut self) {
        self.owners = BTreeMap::new();
        self.instances = BTreeMap::new();
        self.subscribers = BTreeMap::new();
        for (member_id, member) in self.members.iter() {
            let shared: Arc<str> = member_id.as_str().into();
            for (topic_id, partitions) in member.assigned.iter().chain(&member.revoking) {
                for partition in partitions.keys() {
                    self.owners.insert((*topic_id, *partition), shared.clone());
                }
            }
            if let Some(instance_id) = &member.instance_id {
                self.instances.insert(instance_id.clone(), member_id.clone());
            }
            for name in &member.subscribed {
                *self.subscribers.entry(name.clone()).or_insert(0) += 1;
            }
        }
    }

    /// A change that may change the assignment.
    pub(super) fn bump(&mut self, cx: &mut Context<'_>) {
        self.head.epoch = self.head.epoch.saturating_add(1);
        cx.changed = true;
        cx.assignment_needed |= !self.members.is_empty();
    }

    pub(super) fn count_subscription(&mut self, names: &[String]) {
        for name in names {
            if let Some(count) = self.subscribers.get_mut(name) {
                *count += 1;
            } else {
                self.subscribers.insert(name.clone(), 1);
            }
        }
    }

    pub(super) fn uncount_subscription(&mut self, names: &[String]) {
        for name in names {
            if let Some(count) = self.subscribers.get_mut(name) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.subscribers.remove(name);
                }
            }
        }
    }

    /// Takes a member out with all it owned; the caller bumps the epoch unless somebody takes its place.
    pub(super) fn remove_member(
        &mut self,
        cx: &mut Context<'_>,
        member_id: &str,
    ) -> Option<(ConsumerMember, Option<Target>)> {
        let member = self.members.remove(member_id)?;
        for (topic_id, partitions) in member.assigned.iter().chain(&member.revoking) {
            for partition in partitions.keys() {
                self.owners.remove(&(*topic_id, *partition));
            }
        }
        if let Some(instance_id) = &member.instance_id {
            self.instances.remove(instance_id);
        }
        self.uncount_subscription(&member.subscribed);
        self.activity.forget(member_id, cx.position.index);
        cx.changed = true;
        let target = self.targets.remove(member_id);
        Some((member, target))
    }

    /// Puts a member in with all it owns.
    pub(super) fn insert_member(
        &mut self,
        cx: &mut Context<'_>,
        member_id: &str,
        member: ConsumerMember,
        target: Option<Target>,
    ) {
        let shared: Arc<str> = member_id.into();
        for (topic_id, partitions) in member.assigned.iter().chain(&member.revoking) {
            for partition in partitions.keys() {
                self.owners.insert((*topic_id, *partition), shared.clone());
            }
        }
        if let Some(instance_id) = &member.instance_id {
            self.instances.insert(instance_id.clone(), member_id.to_string());
        }
        self.count_subscription(&member.subscribed);
        self.members.insert(member_id.to_string(), member);
        if let Some(target) = target {
            self.targets.insert(member_id.to_string(), target);
        }
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
    }

    /// Where this member would go next; `None` when nothing changes.
    pub(super) fn next_step(
        &self,
        member_id: &str,
        member: &ConsumerMember,
        owned: Option<&[TopicPartitions]>,
    ) -> Option<Reconciled> {
        static NOTHING: Target = Target::new();
        let target = self.targets.get(member_id).unwrap_or(&NOTHING);
        reconcile(member, self.head.assignment_epoch, target, owned, |topic_id, partition| {
            self.owners.get(&(topic_id, partition)).is_none_or(|owner| **owner == *member_id)
        })
    }

    /// Moves a member one step towards its target; true when what it may own has changed.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>, member_id: &str, owned: Option<&[TopicPartitions]>) -> bool {
        let Some(member) = self.members.get(member_id) else { return false };
        let Some(step) = self.next_step(member_id, member, owned) else { return false };
        self.take_step(cx, member_id, step)
    }

    /// Makes a step that [`Self::next_step`] found.
    pub(super) fn take_step(&mut self, cx: &mut Context<'_>, member_id: &str, step: Reconciled) -> bool {
        let Some(mut member) = self.members.get_mut(member_id) else { return false };
        let shared: Arc<str> = member_id.into();
        let held = |partitions: &Owned, topic_id: &TopicId, partition: &u32| {
            partitions.get(topic_id).is_some_and(|partitions| partitions.contains_key(partition))
        };
        for (topic_id, partitions) in member.assigned.iter().chain(&member.revoking) {
            for partition in partitions.keys() {
                if !held(&step.assigned, topic_id, partition) && !held(&step.revoking, topic_id, partition) {
                    self.owners.remove(&(*topic_id, *partition));
                }
            }
        }
        for (topic_id, partitions) in &step.assigned {
            for partition in partitions.keys() {
                if !held(&member.assigned, topic_id, partition) {
                    self.owners.insert((*topic_id, *partition), shared.clone());
                }
            }
        }
        let assigned_changed = member.assigned != step.assigned;
        if step.state != MemberState::Unrevoked {
            member.revoking_since = None;
        } else if member.revoking != step.revoking {
            member.revoking_since = Some(cx.position.index);
        }
        if member.epoch != step.epoch {
            member.previous_epoch = member.epoch;
            member.epoch = step.epoch;
        }
        member.state = step.state;
        member.assigned = step.assigned;
        member.revoking = step.revoking;
        cx.changed = true;
        assigned_changed
    }

    /// What a member is answered. `tell`: with its assignment.
    pub(super) fn reply(&self, member_id: &str, tell: bool) -> Result<HeartbeatReply, GroupError> {
        let member = self.members.get(member_id).ok_or(GroupError::UnknownMember)?;
        Ok(HeartbeatReply {
            member_id: member_id.to_string(),
            member_epoch: member.epoch,
            heartbeat_interval_ms: member.heartbeat_interval_ms,
            assignment: tell.then(|| member.assignment()),
            assignment_due: self.assignment_due(),
        })
    }

    /// OffsetCommit by a member: its own epoch, or an older one not below that at which each partition was assigned (KIP-1251).
    pub(super) fn check_commit(
        &self,
        member_id: &str,
        epoch: i32,
        partitions: impl Iterator<Item = (TopicId, u32)>,
    ) -> Result<(), GroupError> {
        let member = self.members.get(member_id).ok_or(GroupError::UnknownMember)?;
        if epoch < 0 || epoch > member.epoch {
            return Err(GroupError::StaleMemberEpoch);
        }
        if epoch == member.epoch {
            return Ok(());
        }
        for (topic_id, partition) in partitions {
            let assigned_at = [&member.assigned, &member.revoking]
                .into_iter()
                .find_map(|owned| owned.get(&topic_id)?.get(&partition));
            if assigned_at.is_none_or(|assigned_at| epoch < *assigned_at) {
                return Err(GroupError::StaleMemberEpoch);
            }
        }
        Ok(())
    }
}

/// The hash that equal subscriptions share.
pub(super) fn subscription_hash(names: &[String]) -> u128 {
    row_hash(table::SUBSCRIPTION, &(), &names)
}

impl ConsumerMember {
    /// What it should own, as it is told.
    pub(super) fn assignment(&self) -> Vec<TopicPartitions> {
        topic_partitions(self.assigned.iter().map(|(topic_id, partitions)| (topic_id, partitions.keys().copied())))
    }

    /// A static member that said it would be back.
    pub(super) fn is_away(&self) -> bool {
        self.epoch == AWAY_EPOCH
    }
}
