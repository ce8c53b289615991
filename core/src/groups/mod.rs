//! Consumer groups of one shard: both protocols and the committed offsets.
//!
//! This is the door: each op finds its group here, changes it, and leaves the digest and the effects in order.

mod activity;
mod admin;
mod assignor;
mod classic;
mod classic_in_consumer;
mod classic_rebalance;
mod consumer;
mod consumer_heartbeat;
mod consumer_protocol;
mod group;
mod invariants;
mod migration;
mod offsets;
mod reconcile;
mod regexes;
mod rows;
mod target;
mod timeline;
pub(crate) mod timers;
mod views;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::directory::Directory;
use crate::effect::Effect;
use crate::ids::{Position, TopicId};
use crate::op::{CommitOffset, HeartbeatConsumer, JoinConsumerGroup, LeaveConsumerGroup, RebalancePartitions};
use crate::reply::{CommitOutcome, GroupError, Reply};
use crate::view::{GroupConfig, GroupEventKind};
pub(crate) use classic::SyncSender;
use group::{At, Context, Group, Protocol};
use lockstep_probe::{Mark, Mistake};
use regexes::has_undecided_offsets;
use rows::Rows;

/// Kinds of rows in the digest. Part of what replicas compare.
mod table {
    pub(crate) const CLASSIC_GROUP: u8 = 0x40;
    pub(crate) const CONSUMER_GROUP: u8 = 0x41;
    pub(crate) const CLASSIC_MEMBER: u8 = 0x42;
    pub(crate) const PENDING_MEMBER: u8 = 0x43;
    pub(crate) const CONSUMER_MEMBER: u8 = 0x44;
    pub(crate) const TARGET: u8 = 0x45;
    pub(crate) const TARGET_TOPIC: u8 = 0x46;
    pub(crate) const SEEN: u8 = 0x47;
    pub(crate) const OFFSET: u8 = 0x48;
    pub(crate) const SUBSCRIPTION: u8 = 0x49;
    pub(crate) const EVENT: u8 = 0x4A;
    pub(crate) const REGEX: u8 = 0x4B;
    pub(crate) const CONFIG: u8 = 0x4C;
    pub(crate) const RELEASED: u8 = 0x4D;
}

/// Every group of a shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    /// Shared with clones until it is changed.
    groups: BTreeMap<String, Arc<Group>>,
    /// What is configured, also for groups that do not exist.
    configs: Rows<{ table::CONFIG }, String, GroupConfig>,
    /// Wrapping sum of the groups' hashes.
    digest: u128,
}

impl Groups {
    /// Op 7. An `Err` is a broken invariant of ours.
    pub(crate) fn apply_join(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &JoinConsumerGroup,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        match op {
            JoinConsumerGroup::Classic(join) => {
                let at = At { directory, position, now_ms: Some(join.now_ms) };
                self.change(at, &join.group_id, effects, |slot, cx| {
                    Reply::ClassicJoin(classic_rebalance::join(slot, cx, join))
                })
            }
            JoinConsumerGroup::Consumer(heartbeat) => {
                let at = At { directory, position, now_ms: Some(heartbeat.now_ms) };
                self.change(at, &heartbeat.group_id, effects, |slot, cx| {
                    Reply::Heartbeat(if heartbeat.member_epoch == 0 {
                        consumer_heartbeat::heartbeat(slot, cx, heartbeat)
                    } else {
                        Err(GroupError::InvalidRequest("a joining member has epoch 0".to_string()))
                    })
                })
            }
        }
    }

    /// Op 8.
    pub(crate) fn apply_leave(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &LeaveConsumerGroup,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        match op {
            LeaveConsumerGroup::Classic { group_id, members, now_ms } => {
                let at = At { directory, position, now_ms: Some(*now_ms) };
                self.change(at, group_id, effects, |slot, cx| {
                    let Some(group) = slot else { return Reply::ClassicLeave(Err(GroupError::UnknownMember)) };
                    Reply::ClassicLeave(Ok(match &mut group.protocol {
                        Protocol::Classic(group) => group.leave(cx, members),
                        Protocol::Consumer(consumer) => {
                            let told = consumer.epoch();
                            let outcomes = consumer.leave_classic(cx, members);
                            migration::downgrade_if_due(group, cx, told, None);
                            outcomes
                        }
                    }))
                })
            }
            LeaveConsumerGroup::Consumer(heartbeat) => {
                let at = At { directory, position, now_ms: Some(heartbeat.now_ms) };
                self.change(at, &heartbeat.group_id, effects, |slot, cx| {
                    Reply::Heartbeat(consumer_heartbeat::check_request(heartbeat).and_then(|()| {
                        if heartbeat.member_epoch >= 0 {
                            return Err(GroupError::InvalidRequest("a leaving member has epoch -1 or -2".to_string()));
                        }
                        let Some(group) = slot else { return Err(GroupError::GroupNotFound) };
                        let Protocol::Consumer(consumer) = &mut group.protocol else {
                            return Err(GroupError::GroupNotFound);
                        };
                        let told = consumer.epoch();
                        let reply = consumer.leave(cx, heartbeat)?;
                        migration::downgrade_if_due(group, cx, told, None);
                        Ok(reply)
                    }))
                })
            }
            LeaveConsumerGroup::Expired { group_id, term, members, now_ms } => {
                if position.term != *term {
                    Mark::ExpiryOfFormerTermVoid.reached();
                    return Ok(Reply::Done(false));
                }
                let at = At { directory, position, now_ms: Some(*now_ms) };
                self.change(at, group_id, effects, |slot, cx| {
                    let Some(group) = slot else { return Reply::Done(false) };
                    Reply::Done(match &mut group.protocol {
                        Protocol::Classic(group) => group.expire(cx, members),
                        Protocol::Consumer(consumer) => {
                            let told = consumer.epoch();
                            let any = consumer.expire(cx, members);
                            migration::downgrade_if_due(group, cx, told, None);
                            any
                        }
                    })
                })
            }
        }
    }

    /// Op 9.
    pub(crate) fn apply_rebalance(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &RebalancePartitions,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        match op {
            RebalancePartitions::Sync {
                group_id,
                generation,
                member_id,
                instance_id,
                protocol_type,
                protocol_name,
                assignments,
                now_ms,
            } => {
                let at = At { directory, position, now_ms: Some(*now_ms) };
                self.change(at, group_id, effects, |slot, cx| {
                    let Some(group) = slot else { return Reply::Sync(Err(GroupError::UnknownMember)) };
                    let checked = group.check_sync(&SyncSender {
                        member_id,
                        instance_id: instance_id.as_deref(),
                        generation: *generation,
                        protocol_type: protocol_type.as_deref(),
                        protocol_name: protocol_name.as_deref(),
                    });
                    // In a consumer group nobody leads: what the client computed before the group was upgraded counts no more.
                    if let (Ok(()), Protocol::Classic(group)) = (&checked, &mut group.protocol) {
                        group.assign(cx, member_id, assignments);
                    }
                    Reply::Sync(checked)
                })
            }
            RebalancePartitions::CompleteJoin { group_id, since, now_ms } => {
                let at = At { directory, position, now_ms: Some(*now_ms) };
                self.change(at, group_id, effects, |slot, cx| {
                    Reply::Done(match slot.as_mut().map(|group| &mut group.protocol) {
                        Some(Protocol::Classic(group)) => group.complete_join_phase(cx, *since),
                        _ => false,
                    })
                })
            }
            RebalancePartitions::Assign { group_id, member_id, now_ms } => {
                let at = At { directory, position, now_ms: Some(*now_ms) };
                self.change(at, group_id, effects, |slot, cx| {
                    let outcome = match slot.as_mut().map(|group| &mut group.protocol) {
                        Some(Protocol::Consumer(group)) => group.assign(cx, member_id.as_deref()),
                        _ => member_id.as_ref().map(|_| Err(GroupError::GroupNotFound)),
                    };
                    outcome.map_or(Reply::Done(cx.changed), Reply::Heartbeat)
                })
            }
        }
    }

    /// Op 10, and each commit of op 18.
    pub(crate) fn apply_commit(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &CommitOffset,
        effects: &mut Vec<Effect>,
    ) -> Result<CommitOutcome, String> {
        let at = At { directory, position, now_ms: Some(op.now_ms) };
        self.change(at, &op.group_id, effects, |slot, cx| {
            let outcome = offsets::commit(slot, cx, op);
            if let (Ok(_), Some(Protocol::Consumer(consumer))) = (&outcome, slot.as_ref().map(|group| &group.protocol))
            {
                let topics = op.offsets.iter().map(|offset| &offset.topic_id);
                cx.resolution_needed = consumer.undecided_since(cx.directory, topics).is_some();
            }
            outcome
        })
    }

    /// Op 11.
    pub(crate) fn apply_heartbeat(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &HeartbeatConsumer,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        match op {
            HeartbeatConsumer::Seen { groups } => {
                let mut any = false;
                let at = At { directory, position, now_ms: None };
                for (group_id, member_ids) in groups {
                    self.change(at, group_id, effects, |slot, cx| {
                        let Some(group) = slot else { return };
                        for member_id in member_ids {
                            if group.activity().last_seen(member_id).is_some() {
                                group.activity_mut().saw(member_id, position.index);
                                cx.changed = true;
                                any = true;
                            }
                        }
                    })?;
                }
                Ok(Reply::Done(any))
            }
            HeartbeatConsumer::Consumer(heartbeat) => {
                let at = At { directory, position, now_ms: Some(heartbeat.now_ms) };
                self.change(at, &heartbeat.group_id, effects, |slot, cx| {
                    Reply::Heartbeat(if heartbeat.member_epoch > 0 {
                        consumer_heartbeat::heartbeat(slot, cx, heartbeat)
                    } else {
                        Err(GroupError::InvalidRequest("a heartbeat has an epoch above 0".to_string()))
                    })
                })
            }
        }
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
        let at = At { directory, position, now_ms: None };
        for (group_id, group) in &mut self.groups {
            let mut cx = Context::new(at, GroupConfig::default());
            let forgets = deleted.iter().any(|topic_id| offsets::has_topic(group, *topic_id));
            let bumps = matches!(&group.protocol, Protocol::Consumer(consumer)
                if consumer.follows(directory, changed, deleted));
            if forgets || bumps {
                let group = Arc::make_mut(group);
                let before = group.before();
                if forgets {
                    Mark::TopicDeletedWithOffsets.reached();
                }
                for topic_id in deleted.iter().filter(|_| !Mistake::DeletedTopicKeepsOffsets.is_made()) {
                    offsets::forget_topic(group, *topic_id);
                }
                if let (true, Protocol::Consumer(consumer)) = (bumps, &mut group.protocol) {
                    Mark::EpochRaisedByTopics.reached();
                    cx.note(GroupEventKind::TopicsChanged);
                    consumer.bump(&mut cx);
                }
                self.digest = self.digest.wrapping_sub(group.hash);
                group.conclude(group_id, at, &mut cx, before);
                self.digest = self.digest.wrapping_add(group.hash);
                cx.resolution_needed = has_undecided_offsets(group, directory);
                cx.report(group_id, effects);
            } else if let Protocol::Consumer(consumer) = &group.protocol {
                let kept = changed.iter().filter(|topic_id| offsets::has_topic(group, **topic_id));
                cx.resolution_needed = consumer.undecided_since(directory, kept).is_some();
                cx.report(group_id, effects);
            }
        }
        // A group of offsets only whose last topic went has nothing left.
        let vacant: Vec<String> =
            self.groups.iter().filter(|(_, group)| group.is_vacant()).map(|(group_id, _)| group_id.clone()).collect();
        for group_id in vacant {
            if let Some(group) = self.groups.remove(&group_id) {
                self.digest = self.digest.wrapping_sub(group.hash);
            }
        }
    }

    /// Kept incrementally.
    pub(crate) fn digest(&self) -> u128 {
        self.digest.wrapping_add(self.configs.sum())
    }

    /// Runs one change of one group and puts digest and effects right.
    fn change<T>(
        &mut self,
        at: At<'_>,
        group_id: &str,
        effects: &mut Vec<Effect>,
        change: impl FnOnce(&mut Option<Group>, &mut Context<'_>) -> T,
    ) -> Result<T, String> {
        let (key, mut slot) = match self.groups.remove_entry(group_id) {
            Some((key, group)) => (key, Some(Arc::unwrap_or_clone(group))),
            None => (group_id.to_string(), None),
        };
        let before = slot.as_ref().map(Group::before).unwrap_or_default();
        if let Some(group) = &slot {
            self.digest = self.digest.wrapping_sub(group.hash);
        }
        let mut cx = Context::new(at, self.config(group_id));
        let outcome = change(&mut slot, &mut cx);
        let forgotten = cx.forgotten;
        let mut broken = None;
        if let Some(mut group) = slot.filter(|group| !group.is_vacant() && !forgotten) {
            if group.epoch() < before.epoch && !Mistake::EmptyGroupRestartsEpochs.is_made() {
                broken = Some(format!("group {key:?}: epoch went back from {} to {}", before.epoch, group.epoch()));
            }
            group.conclude(&key, at, &mut cx, before);
            self.digest = self.digest.wrapping_add(group.hash);
            // Whoever subscribes to something else leaves offsets behind.
            cx.resolution_needed |= cx.assignment_needed && has_undecided_offsets(&group, at.directory);
            cx.report(&key, effects);
            self.groups.insert(key, Arc::new(group));
        } else {
            cx.report(&key, effects);
            if before.epoch > 0 && !forgotten {
                broken = Some(format!("group {key:?} with epoch {} was forgotten", before.epoch));
            }
        }
        broken.map_or(Ok(outcome), Err)
    }
}

impl Context<'_> {
    fn report(self, group_id: &str, effects: &mut Vec<Effect>) {
        if self.changed {
            effects.push(Effect::GroupChanged { group_id: group_id.to_string() });
        }
        if self.assignment_needed {
            effects.push(Effect::AssignmentNeeded { group_id: group_id.to_string() });
        }
        if self.resolution_needed {
            effects.push(Effect::ResolutionNeeded { group_id: group_id.to_string() });
        }
    }
}

impl Serialize for Groups {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let groups: BTreeMap<&String, &Group> =
            self.groups.iter().map(|(group_id, group)| (group_id, &**group)).collect();
        (groups, &self.configs).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Groups {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (rows, configs) =
            <(BTreeMap<String, Group>, Rows<{ table::CONFIG }, String, GroupConfig>)>::deserialize(deserializer)?;
        let mut groups = Self { configs, ..Self::default() };
        for (group_id, mut group) in rows {
            if Mistake::RestoreForgetsOffsetsOfEmptyGroups.is_made() && group.has_no_members() {
                group.offsets = Rows::default();
            }
            group.rebuild(&group_id);
            groups.digest = groups.digest.wrapping_add(group.hash);
            groups.groups.insert(group_id, Arc::new(group));
        }
        Ok(groups)
    }
}
