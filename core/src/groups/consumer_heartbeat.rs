//! ConsumerGroupHeartbeat in all its forms: join, heartbeat, leave; and the target assignment (KIP-848).

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::assignor::{Assignor, Input, InputMember};
use super::consumer::{AWAY_EPOCH, ConsumerGroup, ConsumerMember, LEAVE_EPOCH, WaitingHeartbeat, subscription_hash};
use super::group::{Context, Group, Protocol, Target};
use super::reconcile::{MemberState, Owned, owns_any, owns_only};
use crate::directory::Directory;
use crate::ids::TopicId;
use crate::op::{ConsumerHeartbeat, ExpiredMember, ExpiryReason, TopicPartitions};
use crate::reply::{GroupError, HeartbeatReply};
use crate::view::HeartbeatCheck;

/// What can be said of a request without looking at the group.
pub(super) fn check_request(op: &ConsumerHeartbeat) -> Result<(), GroupError> {
    let invalid = |text: &str| Err(GroupError::InvalidRequest(text.to_string()));
    if op.group_id.is_empty() {
        return invalid("the group id must not be empty");
    }
    if op.member_id.is_empty() {
        return invalid("the member id must not be empty");
    }
    if op.instance_id.as_deref() == Some("") {
        return invalid("the instance id must not be empty");
    }
    if op.rack_id.as_deref() == Some("") {
        return invalid("the rack id must not be empty");
    }
    match op.member_epoch {
        0 => {
            if op.rebalance_timeout_ms < 0 {
                return invalid("a joining member must give its rebalance timeout");
            }
            if !op.owned.as_ref().is_some_and(Vec::is_empty) {
                return invalid("a joining member must own no partitions, and say so");
            }
            if op.subscribed_topic_names.is_none() && op.subscribed_topic_regex.is_none() {
                return invalid("a joining member must give its subscription");
            }
        }
        AWAY_EPOCH if op.instance_id.is_none() => return invalid("only a static member may leave for a while"),
        epoch if epoch < AWAY_EPOCH => return invalid("no such member epoch"),
        _ => {}
    }
    if op.subscribed_topic_regex.as_ref().is_some_and(|pattern| !pattern.is_empty()) {
        return Err(GroupError::UnsupportedRegularExpression);
    }
    if op.server_assignor.as_ref().is_some_and(|name| Assignor::by_name(name).is_none()) {
        return Err(GroupError::UnsupportedAssignor);
    }
    Ok(())
}

/// Op 7 and op 11 of a consumer group. `slot` is the group, if there is one.
pub(super) fn heartbeat(
    slot: &mut Option<Group>,
    cx: &mut Context<'_>,
    op: &ConsumerHeartbeat,
) -> Result<HeartbeatReply, GroupError> {
    check_request(op)?;
    match slot {
        None if op.member_epoch != 0 => return Err(GroupError::GroupNotFound),
        // A member with an epoch cannot make an empty classic group change its protocol.
        Some(Group { protocol: Protocol::Classic(_), .. }) if op.member_epoch != 0 => {
            return Err(GroupError::GroupNotFound);
        }
        _ => {}
    }
    slot.get_or_insert_with(|| Group::consumer(0)).become_consumer()?.heartbeat(cx, op)
}

/// Who a request comes from.
enum Sender {
    /// Somebody new.
    New,
    /// The member that it says it is.
    Known,
    /// A new process of the static member that is away under this member id.
    Replaces(String),
}

impl ConsumerGroup {
    fn sender(&self, op: &ConsumerHeartbeat) -> Result<Sender, GroupError> {
        let joins = op.member_epoch == 0;
        let member = self.members.get(&op.member_id);
        let Some(instance_id) = &op.instance_id else {
            return match member {
                Some(_) => Ok(Sender::Known),
                None if joins => Ok(Sender::New),
                None => Err(GroupError::UnknownMember),
            };
        };
        match self.instances.get(instance_id) {
            Some(holder) if *holder == op.member_id => Ok(Sender::Known),
            Some(holder) if joins && member.is_none() => {
                if self.members.get(holder).is_some_and(ConsumerMember::is_away) {
                    Ok(Sender::Replaces(holder.clone()))
                } else {
                    Err(GroupError::UnreleasedInstance)
                }
            }
            Some(_) => Err(GroupError::FencedInstance),
            None => match member {
                Some(member) if member.instance_id.is_some() => Err(GroupError::FencedInstance),
                Some(_) if joins => Ok(Sender::Known),
                None if joins => Ok(Sender::New),
                _ => Err(GroupError::UnknownMember),
            },
        }
    }

    /// Checks that change nothing: who it is, its epoch, and whether there is room.
    fn admit(&self, op: &ConsumerHeartbeat) -> Result<Sender, GroupError> {
        let sender = self.sender(op)?;
        if matches!(sender, Sender::New) && self.members.len() >= op.members_max as usize {
            return Err(GroupError::GroupMaxSizeReached);
        }
        if op.member_epoch > 0
            && let Some(member) = self.members.get(&op.member_id)
        {
            // The previous epoch is one whose answer was lost; whoever owns more than was assigned since has missed more than that.
            let current = op.member_epoch == member.epoch;
            let lost_answer = op.member_epoch < member.epoch
                && op.member_epoch == member.previous_epoch
                && owns_only(op.owned.as_deref(), &member.assigned);
            if !current && !lost_answer {
                return Err(GroupError::FencedMemberEpoch);
            }
        }
        Ok(sender)
    }

    fn heartbeat(&mut self, cx: &mut Context<'_>, op: &ConsumerHeartbeat) -> Result<HeartbeatReply, GroupError> {
        let sender = self.admit(op)?;
        let member_id = op.member_id.as_str();
        let joined = matches!(sender, Sender::New);
        match sender {
            Sender::New => self.insert_member(cx, member_id, ConsumerMember::joining(op), None),
            Sender::Replaces(away) => {
                if let Some((mut member, target)) = self.remove_member(cx, &away) {
                    member.epoch = 0;
                    member.previous_epoch = 0;
                    self.activity.note_replaced(&away);
                    self.insert_member(cx, member_id, member, target);
                }
            }
            Sender::Known => {}
        }
        if self.update_member(cx, op) || joined {
            self.bump(cx);
        }
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
        let tell = self.must_tell(op);
        if self.assignment_due() {
            // The way on depends on a target that is not there yet; what the member gave up is free at once. It is told
            // nothing before its `Assign`: what it reports here must still be true then.
            self.acknowledge(member_id, op.owned.as_deref());
            if let Some(mut member) = self.members.get_mut(member_id) {
                member.waiting = Some(WaitingHeartbeat { owned: op.owned.clone(), full: tell });
            }
            return self.reply(member_id, false);
        }
        self.forget_waiting(member_id);
        let assigned_changed = self.advance(cx, member_id, op.owned.as_deref());
        self.reply(member_id, tell || assigned_changed)
    }

    /// Takes over what the request says of the member; true when its subscription changed.
    fn update_member(&mut self, cx: &mut Context<'_>, op: &ConsumerHeartbeat) -> bool {
        let Some(member) = self.members.get(&op.member_id) else { return false };
        let names =
            op.subscribed_topic_names.as_ref().map(|names| sorted(names)).filter(|names| *names != member.subscribed);
        let returns = op.member_epoch == 0 && member.is_away();
        let newly_static = op.instance_id.is_some() && member.instance_id.is_none();
        if names.is_none() && !returns && !newly_static && !differs_in_details(member, op) {
            return false;
        }
        cx.changed = true;
        if let Some(names) = &names {
            let before = member.subscribed.clone();
            self.uncount_subscription(&before);
            self.count_subscription(names);
        }
        if let (true, Some(instance_id)) = (newly_static, &op.instance_id) {
            self.instances.insert(instance_id.clone(), op.member_id.clone());
        }
        let Some(mut member) = self.members.get_mut(&op.member_id) else { return false };
        if returns {
            member.epoch = 0;
            member.previous_epoch = 0;
        }
        if newly_static {
            member.instance_id.clone_from(&op.instance_id);
        }
        if let Some(rack_id) = &op.rack_id {
            member.rack_id = Some(rack_id.clone());
        }
        if let Some(assignor) = &op.server_assignor {
            member.server_assignor = Some(assignor.clone());
        }
        if let Ok(timeout_ms) = u32::try_from(op.rebalance_timeout_ms) {
            member.rebalance_timeout_ms = timeout_ms;
        }
        member.client_id.clone_from(&op.client_id);
        member.client_host.clone_from(&op.client_host);
        member.session_timeout_ms = op.session_timeout_ms;
        member.heartbeat_interval_ms = op.heartbeat_interval_ms;
        let subscription_changed = names.is_some();
        if let Some(names) = names {
            member.subscription_hash = subscription_hash(&names);
            member.subscribed = names;
        }
        subscription_changed
    }

    /// A member is told its assignment when it joins, when it sends all it has (as it does after an error), and when it
    /// has missed the answer with its epoch.
    fn must_tell(&self, op: &ConsumerHeartbeat) -> bool {
        let full = op.rebalance_timeout_ms >= 0
            && (op.subscribed_topic_names.is_some() || op.subscribed_topic_regex.is_some())
            && op.owned.is_some();
        full || op.member_epoch == 0
            || self.members.get(&op.member_id).is_some_and(|member| member.epoch != op.member_epoch)
    }

    fn forget_waiting(&mut self, member_id: &str) {
        if let Some(mut member) = self.members.get_mut(member_id)
            && member.waiting.is_some()
        {
            member.waiting = None;
        }
    }

    /// Frees what the member was asked to give up, if it reports to own none of it any more. Its epoch stays.
    fn acknowledge(&mut self, member_id: &str, owned: Option<&[TopicPartitions]>) {
        let Some(mut member) = self.members.get_mut(member_id) else { return };
        if member.state != MemberState::Unrevoked || owns_any(owned, &member.revoking) {
            return;
        }
        member.state = MemberState::Stable;
        member.revoking_since = None;
        for (topic_id, partitions) in core::mem::take(&mut member.revoking) {
            for partition in partitions.keys() {
                self.owners.remove(&(topic_id, *partition));
            }
        }
    }

    /// Op 8 with member epoch −1 or −2.
    pub(super) fn leave(&mut self, cx: &mut Context<'_>, op: &ConsumerHeartbeat) -> Result<HeartbeatReply, GroupError> {
        self.sender(op)?;
        if op.member_epoch == AWAY_EPOCH {
            self.park(cx, &op.member_id);
        } else {
            self.remove_member(cx, &op.member_id);
            self.bump(cx);
        }
        Ok(HeartbeatReply {
            member_id: op.member_id.clone(),
            member_epoch: if op.member_epoch == AWAY_EPOCH { AWAY_EPOCH } else { LEAVE_EPOCH },
            heartbeat_interval_ms: op.heartbeat_interval_ms,
            assignment: None,
            assignment_due: false,
        })
    }

    /// A static member goes for a while: it keeps what it is assigned, for the process that takes its place.
    fn park(&mut self, cx: &mut Context<'_>, member_id: &str) {
        let Some(mut member) = self.members.get_mut(member_id) else { return };
        member.epoch = AWAY_EPOCH;
        member.previous_epoch = AWAY_EPOCH;
        member.state = MemberState::Stable;
        member.revoking_since = None;
        member.waiting = None;
        for (topic_id, partitions) in core::mem::take(&mut member.revoking) {
            for partition in partitions.keys() {
                self.owners.remove(&(topic_id, *partition));
            }
        }
        drop(member);
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
    }

    /// LeaveGroup to a consumer group: only an administrator's removal of static members, by instance id alone.
    pub(super) fn remove_static(
        &mut self,
        cx: &mut Context<'_>,
        members: &[(String, Option<String>)],
    ) -> Vec<Result<(), GroupError>> {
        let mut removed = false;
        let outcomes = members
            .iter()
            .map(|(member_id, instance_id)| {
                let by_instance = instance_id.as_ref().filter(|_| member_id.is_empty());
                let member_id = by_instance.and_then(|instance_id| self.instances.get(instance_id)).cloned();
                let member_id = member_id.ok_or(GroupError::UnknownMember)?;
                self.remove_member(cx, &member_id);
                removed = true;
                Ok(())
            })
            .collect();
        if removed {
            self.bump(cx);
        }
        outcomes
    }

    /// Timers ran out; true when anybody went.
    pub(super) fn expire(&mut self, cx: &mut Context<'_>, expired: &[ExpiredMember]) -> bool {
        let mut removed = false;
        for expiry in expired {
            let Some(member) = self.members.get(&expiry.member_id) else { continue };
            let over = match expiry.reason {
                ExpiryReason::Session => {
                    self.activity.last_seen(&expiry.member_id).is_some_and(|last_seen| last_seen <= expiry.last_seen)
                }
                // The revocation's beginning is named: once it is acknowledged, or is another one, nothing is owed.
                ExpiryReason::Rebalance => member.revoking_since == Some(expiry.last_seen),
                ExpiryReason::Pending => false,
            };
            if over {
                self.remove_member(cx, &expiry.member_id);
                removed = true;
            }
        }
        if removed {
            self.bump(cx);
        }
        removed
    }

    /// Op 9 `Assign`: computes the target if it is behind; then goes on with the member whose request waits for it.
    pub(super) fn assign(
        &mut self,
        cx: &mut Context<'_>,
        member_id: Option<&str>,
    ) -> Option<Result<HeartbeatReply, GroupError>> {
        if self.assignment_due() {
            self.compute_target(cx);
        }
        let member_id = member_id?;
        let Some(mut member) = self.members.get_mut(member_id) else { return Some(Err(GroupError::UnknownMember)) };
        let waiting = if member.waiting.is_some() { member.waiting.take() } else { None };
        drop(member);
        let (owned, tell) = waiting.map_or((None, true), |waiting| (waiting.owned, waiting.full));
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
        let assigned_changed = self.advance(cx, member_id, owned.as_deref());
        Some(self.reply(member_id, tell || assigned_changed))
    }

    fn compute_target(&mut self, cx: &mut Context<'_>) {
        let mut topics: BTreeMap<TopicId, (&str, u32)> = BTreeMap::new();
        for name in self.subscribers.keys() {
            if let Some(topic) = cx.directory.topic(name) {
                let count = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
                topics.insert(topic.id, (name, count));
            }
        }
        let topic_index: BTreeMap<&str, usize> =
            topics.values().enumerate().map(|(index, (name, _))| (*name, index)).collect();
        let mut by_hash: BTreeMap<u128, usize> = BTreeMap::new();
        let mut subscriptions: Vec<Vec<usize>> = Vec::new();
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        let mut members: Vec<InputMember<'_>> = Vec::with_capacity(self.members.len());
        for (member_id, member) in self.members.iter() {
            let subscription = *by_hash.entry(member.subscription_hash).or_insert_with(|| {
                let mut indexes: Vec<usize> =
                    member.subscribed.iter().filter_map(|name| topic_index.get(name.as_str()).copied()).collect();
                indexes.sort_unstable();
                subscriptions.push(indexes);
                subscriptions.len() - 1
            });
            if let Some(assignor) = &member.server_assignor {
                *votes.entry(assignor).or_insert(0) += 1;
            }
            members.push(InputMember {
                member_id,
                instance_id: member.instance_id.as_deref(),
                subscription,
                previous: self.targets.get(member_id),
            });
        }
        let most = votes.values().max().copied();
        let assignor = votes
            .iter()
            .find(|(_, count)| Some(**count) == most)
            .and_then(|(name, _)| Assignor::by_name(name))
            .unwrap_or_default();
        let input = Input {
            topics: topics.iter().map(|(topic_id, (_, count))| (*topic_id, *count)).collect(),
            subscriptions,
            members,
        };
        let targets = assignor.assign(&input);
        let changed: Vec<(String, Target)> = input
            .members
            .iter()
            .zip(targets)
            .filter(|(member, target)| member.previous.map_or(!target.is_empty(), |previous| previous != target))
            .map(|(member, target)| (member.member_id.to_string(), target))
            .collect();
        let counts: BTreeMap<TopicId, u32> = input.topics.iter().copied().collect();
        for (member_id, target) in changed {
            if target.is_empty() {
                self.targets.remove(&member_id);
            } else {
                self.targets.insert(member_id, target);
            }
        }
        let gone: Vec<TopicId> =
            self.topics.keys().filter(|topic_id| !counts.contains_key(*topic_id)).copied().collect();
        for topic_id in gone {
            self.topics.remove(&topic_id);
        }
        for (topic_id, count) in counts {
            if self.topics.get(&topic_id) != Some(&count) {
                self.topics.insert(topic_id, count);
            }
        }
        self.head.assignment_epoch = self.head.epoch;
        self.head.assignor = assignor.name().to_string();
        cx.changed = true;
    }

    /// Topics changed in the directory: must the group's epoch follow?
    pub(super) fn follows(&self, directory: &Directory, changed: &[TopicId], deleted: &[TopicId]) -> bool {
        // While the target is behind, it will be computed from the new directory anyway.
        if self.members.is_empty() || self.assignment_due() {
            return false;
        }
        let altered = changed.iter().filter_map(|topic_id| directory.topics.get(topic_id)).any(|topic| {
            self.subscribers.contains_key(&topic.name)
                && self.topics.get(&topic.id).map(|count| *count as usize) != Some(topic.partitions.len())
        });
        altered || deleted.iter().any(|topic_id| self.topics.contains_key(topic_id))
    }

    /// Can a heartbeat with an epoch be answered from the state as it is?
    pub(super) fn check_heartbeat(&self, op: &ConsumerHeartbeat) -> HeartbeatCheck {
        if let Err(error) = self.admit(op) {
            return HeartbeatCheck::Answer(Err(error));
        }
        let Some(member) = self.members.get(&op.member_id) else {
            return HeartbeatCheck::Answer(Err(GroupError::UnknownMember));
        };
        let subscription_differs =
            op.subscribed_topic_names.as_ref().is_some_and(|names| sorted(names) != member.subscribed);
        if subscription_differs
            || differs_in_details(member, op)
            || self.assignment_due()
            // What an earlier request reported is no longer true of a member that is told something now.
            || member.waiting.is_some()
            || self.next_step(&op.member_id, member, op.owned.as_deref()).is_some()
        {
            return HeartbeatCheck::Propose;
        }
        HeartbeatCheck::Answer(self.reply(&op.member_id, self.must_tell(op)))
    }
}

impl ConsumerMember {
    /// A member that has just come; the rest of what it says is taken over next.
    fn joining(op: &ConsumerHeartbeat) -> Self {
        let subscribed = sorted(op.subscribed_topic_names.as_deref().unwrap_or(&[]));
        Self {
            instance_id: op.instance_id.clone(),
            rack_id: op.rack_id.clone(),
            client_id: op.client_id.clone(),
            client_host: op.client_host.clone(),
            rebalance_timeout_ms: u32::try_from(op.rebalance_timeout_ms).unwrap_or(0),
            session_timeout_ms: op.session_timeout_ms,
            heartbeat_interval_ms: op.heartbeat_interval_ms,
            server_assignor: op.server_assignor.clone(),
            subscription_hash: subscription_hash(&subscribed),
            subscribed,
            epoch: 0,
            previous_epoch: 0,
            state: MemberState::Stable,
            assigned: Owned::new(),
            revoking: Owned::new(),
            revoking_since: None,
            waiting: None,
        }
    }
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.dedup();
    names
}

/// Does the request say anything new of the member, its subscription aside?
fn differs_in_details(member: &ConsumerMember, op: &ConsumerHeartbeat) -> bool {
    op.rack_id.is_some() && op.rack_id != member.rack_id
        || op.server_assignor.is_some() && op.server_assignor != member.server_assignor
        || u32::try_from(op.rebalance_timeout_ms).is_ok_and(|timeout_ms| timeout_ms != member.rebalance_timeout_ms)
        || op.client_id != member.client_id
        || op.client_host != member.client_host
        || op.session_timeout_ms != member.session_timeout_ms
        || op.heartbeat_interval_ms != member.heartbeat_interval_ms
}
