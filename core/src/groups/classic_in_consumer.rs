//! Members of a consumer group that speak the classic protocol: the group was upgraded under them, or they came while old and new
//! clients share it (KIP-848, "classic protocol compatibility").
//!
//! The broker computes their assignment as it does for everybody. A JoinGroup is answered with the member's epoch as its generation
//! as soon as the target is there; SyncGroup fetches the assignment; Heartbeat answers REBALANCE_IN_PROGRESS when they are to join again.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::classic::{SyncSender, check_instance, named_by_instance};
use super::consumer::{ClassicTerms, ConsumerGroup, ConsumerMember, WaitingHeartbeat, subscription_hash};
use super::consumer_heartbeat::sorted;
use super::consumer_protocol::{PROTOCOL_TYPE, Subscription, existing, read_subscription};
use super::group::{Context, Group, Protocol};
use super::migration;
use super::reconcile::{MemberState, Owned};
use crate::directory::Directory;
use crate::op::ClassicJoin;
use crate::reply::{ClassicJoined, GroupError};
use crate::view::{GroupEventKind, JoinProgress, JoinResult, SyncProgress, SyncResult};

/// JoinGroup to a consumer group with members.
pub(super) fn join(group: &mut Group, cx: &mut Context<'_>, op: &ClassicJoin) -> Result<ClassicJoined, GroupError> {
    let Protocol::Consumer(consumer) = &mut group.protocol else { return Err(GroupError::UnknownMember) };
    let told = consumer.epoch();
    let joined = consumer.join_classic(cx, op)?;
    migration::downgrade_if_due(group, cx, told, Some(&joined.member_id));
    Ok(match &group.protocol {
        Protocol::Classic(classic) => classic.ticket_after_downgrade(&joined.member_id),
        Protocol::Consumer(_) => joined,
    })
}

/// Who a JoinGroup comes from.
enum Sender {
    New,
    Known,
    /// A new process of the static member with this id.
    Replaces(String),
}

impl ConsumerGroup {
    /// Does a classic member with these protocols fit? One of them must be offered by every classic member.
    fn supports_classic(&self, protocol_type: &str, protocols: &[(String, Vec<u8>)]) -> bool {
        protocol_type == PROTOCOL_TYPE
            && protocols.iter().any(|(name, _)| self.support.get(name).copied().unwrap_or(0) == self.classic_members)
    }

    fn classic_sender(&self, op: &ClassicJoin, member_id: &str) -> Result<Sender, GroupError> {
        let known = self.members.get(member_id);
        if known.is_some_and(|member| member.classic.is_none()) {
            return Err(GroupError::UnknownMember);
        }
        let Some(instance_id) = &op.instance_id else {
            return Ok(if known.is_some() { Sender::Known } else { Sender::New });
        };
        match self.instances.get(instance_id) {
            Some(holder) if holder == member_id => Ok(Sender::Known),
            Some(holder) if op.member_id.is_empty() && known.is_none() => Ok(Sender::Replaces(holder.clone())),
            Some(_) => Err(GroupError::FencedInstance),
            None if op.member_id.is_empty() && known.is_none() => Ok(Sender::New),
            None => Err(GroupError::UnknownMember),
        }
    }

    fn join_classic(&mut self, cx: &mut Context<'_>, op: &ClassicJoin) -> Result<ClassicJoined, GroupError> {
        let member_id = if op.member_id.is_empty() { &op.fresh_member_id } else { &op.member_id };
        let sender = self.classic_sender(op, member_id)?;
        if matches!(sender, Sender::New) && self.members.len() >= op.members_max as usize {
            return Err(GroupError::GroupMaxSizeReached);
        }
        if !self.supports_classic(&op.protocol_type, &op.protocols) {
            return Err(GroupError::InconsistentProtocol);
        }
        let subscription = op.protocols.first().and_then(|(_, metadata)| read_subscription(metadata));
        let subscription = subscription.ok_or(GroupError::InconsistentProtocol)?;
        if matches!(sender, Sender::New)
            && op.member_id.is_empty()
            && op.instance_id.is_none()
            && op.require_known_member_id
        {
            // Any id is taken from a member that comes with one, so there is nothing to remember.
            return Err(GroupError::MemberIdRequired(op.fresh_member_id.clone()));
        }
        let joined = matches!(sender, Sender::New);
        match sender {
            Sender::New => {
                cx.note_joined(member_id, op.instance_id.as_deref(), &op.client_id, &op.client_host);
                self.insert_member(cx, member_id, ConsumerMember::joining_classic(cx, op, &subscription), None);
            }
            Sender::Replaces(replaced) => {
                let terms = ClassicTerms::new(cx, op);
                self.replace_member(cx, &replaced, member_id, |member| member.classic = Some(terms));
            }
            Sender::Known => {}
        }
        let subscribed = self.update_classic(cx, member_id, op, &subscription);
        if subscribed && !joined {
            cx.note_member(member_id, |member_id| GroupEventKind::Subscribed { member_id });
        }
        if subscribed || joined {
            self.bump(cx);
        }
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
        let owned = existing(&subscription.owned, cx.directory);
        if self.assignment_due() {
            self.acknowledge(cx, member_id, Some(&owned));
            if let Some(mut member) = self.members.get_mut(member_id) {
                member.waiting = Some(WaitingHeartbeat { owned: Some(owned), full: true });
            }
        } else {
            self.forget_waiting(member_id);
            self.advance(cx, member_id, Some(&owned));
        }
        Ok(ClassicJoined {
            member_id: member_id.clone(),
            // Should the group be downgraded before the answer is there, the next generation is it.
            after_generation: self.head.epoch,
            ready: !self.assignment_due(),
        })
    }

    /// Takes over what a JoinGroup says of the member; true when its subscription changed.
    fn update_classic(
        &mut self,
        cx: &Context<'_>,
        member_id: &str,
        op: &ClassicJoin,
        subscription: &Subscription,
    ) -> bool {
        let names = sorted(&subscription.topics);
        let Some(mut member) = self.members.get_mut(member_id) else { return false };
        let before = member.classic.replace(ClassicTerms::new(cx, op));
        let subscribed_before = (member.subscribed.clone(), member.regex.take());
        member.subscription_hash = subscription_hash(&names);
        member.subscribed.clone_from(&names);
        member.client_id.clone_from(&op.client_id);
        member.client_host.clone_from(&op.client_host);
        member.session_timeout_ms = op.session_timeout_ms;
        member.rebalance_timeout_ms = op.rebalance_timeout_ms;
        if subscription.rack_id.is_some() {
            member.rack_id.clone_from(&subscription.rack_id);
        }
        drop(member);
        if let Some(before) = &before {
            self.uncount_classic(before);
        }
        self.count_classic(&ClassicTerms::new(cx, op));
        self.count_subscription(&names, None);
        self.uncount_subscription(&subscribed_before.0, subscribed_before.1.as_deref());
        subscribed_before != (names, None)
    }

    /// The target is there: members whose JoinGroup waits for it take their step.
    pub(super) fn answer_classic_joins(&mut self, cx: &mut Context<'_>) {
        if self.classic_members == 0 {
            return;
        }
        let waiting: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.classic.is_some() && member.waiting.is_some())
            .map(|(member_id, _)| member_id.clone())
            .collect();
        for member_id in waiting {
            let waiting = self.members.get_mut(&member_id).and_then(|mut member| member.waiting.take());
            let owned = waiting.and_then(|waiting| waiting.owned);
            self.advance(cx, &member_id, owned.as_deref());
            // Its session runs again.
            self.activity.note(&member_id, cx.position.index);
        }
    }

    /// Must this classic member join again? When the group's epoch is ahead of its own, when it has to give up partitions, or when
    /// all that it waits for are free: to join for each of them would stop it as often.
    pub(super) fn must_rejoin(&self, member_id: &str, member: &ConsumerMember) -> bool {
        if member.waiting.is_some() {
            return false;
        }
        member.epoch < self.head.epoch
            || member.state == MemberState::Unrevoked
            || member.state == MemberState::Unreleased && !self.waits_for_others(member_id)
    }

    /// Does anybody else hold a partition that this member is to get?
    fn waits_for_others(&self, member_id: &str) -> bool {
        self.targets.get(member_id).into_iter().flatten().any(|(topic_id, partitions)| {
            partitions
                .iter()
                .any(|partition| self.owners.get(&(*topic_id, *partition)).is_some_and(|owner| **owner != *member_id))
        })
    }

    /// Is this a member that speaks the classic protocol, with this instance id if it gives one?
    fn check_classic_member(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
    ) -> Result<(&ConsumerMember, &ClassicTerms), GroupError> {
        check_instance(&self.instances, member_id, instance_id)?;
        let member = self.members.get(member_id).ok_or(GroupError::UnknownMember)?;
        Ok((member, member.classic.as_ref().ok_or(GroupError::UnknownMember)?))
    }

    /// The same for a request that waits. Who replaced whom is not replicated, so no op may ask this.
    fn waiting_classic_member(&self, member_id: &str) -> Result<(&ConsumerMember, &ClassicTerms), GroupError> {
        if self.activity.was_replaced(member_id) && !self.members.contains_key(member_id) {
            return Err(GroupError::FencedInstance);
        }
        self.check_classic_member(member_id, None)
    }

    /// Heartbeat.
    pub(super) fn check_classic_heartbeat(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        let (member, _) = self.check_classic_member(member_id, instance_id)?;
        if generation != member.epoch {
            return Err(GroupError::IllegalGeneration);
        }
        if self.must_rejoin(member_id, member) { Err(GroupError::RebalanceInProgress) } else { Ok(()) }
    }

    /// SyncGroup. A member that has to give up partitions has joined already: it is told what it keeps, and joins again by itself.
    pub(super) fn check_classic_sync(&self, sender: &SyncSender<'_>) -> Result<(), GroupError> {
        let (member, terms) = self.check_classic_member(sender.member_id, sender.instance_id)?;
        if sender.generation != member.epoch {
            return Err(GroupError::IllegalGeneration);
        }
        let differs = |given: Option<&str>, own: &str| given.is_some_and(|given| given != own);
        if differs(sender.protocol_type, PROTOCOL_TYPE) || differs(sender.protocol_name, terms.protocol_name()) {
            return Err(GroupError::InconsistentProtocol);
        }
        if member.epoch < self.head.epoch && member.state != MemberState::Unrevoked {
            return Err(GroupError::RebalanceInProgress);
        }
        Ok(())
    }

    /// How far a JoinGroup is.
    pub(super) fn classic_join_progress(&self, member_id: &str) -> JoinProgress {
        let (member, terms) = match self.waiting_classic_member(member_id) {
            Ok(found) => found,
            Err(error) => return JoinProgress::Done(Err(error)),
        };
        if member.waiting.is_some() {
            return JoinProgress::Waiting;
        }
        // It asked the classic group that this one was.
        if !terms.joined {
            return JoinProgress::Done(Err(GroupError::RebalanceInProgress));
        }
        JoinProgress::Done(Ok(JoinResult {
            generation: member.epoch,
            protocol_type: PROTOCOL_TYPE.to_string(),
            protocol_name: terms.protocol_name().to_string(),
            leader: String::new(),
            member_id: member_id.to_string(),
            skip_assignment: false,
            members: Vec::new(),
        }))
    }

    /// How far a SyncGroup of this generation is: never far away, because the assignment is there before the generation is.
    pub(super) fn classic_sync_progress(
        &self,
        directory: &Directory,
        member_id: &str,
        generation: i32,
    ) -> SyncProgress {
        SyncProgress::Done(self.waiting_classic_member(member_id).and_then(|(member, terms)| {
            if generation != member.epoch || !terms.joined {
                return Err(GroupError::RebalanceInProgress);
            }
            let instance_id = member.instance_id.as_deref();
            let sender = SyncSender { member_id, instance_id, generation, protocol_type: None, protocol_name: None };
            self.check_classic_sync(&sender)?;
            Ok(SyncResult {
                protocol_type: PROTOCOL_TYPE.to_string(),
                protocol_name: terms.protocol_name().to_string(),
                assignment: member.classic_assignment(directory),
            })
        }))
    }

    /// LeaveGroup: members of either protocol, by member id, instance id or both. Administrators remove members so, whatever they speak.
    pub(super) fn leave_classic(
        &mut self,
        cx: &mut Context<'_>,
        members: &[(String, Option<String>)],
    ) -> Vec<Result<(), GroupError>> {
        let mut removed = false;
        let outcomes = members
            .iter()
            .map(|(member_id, instance_id)| {
                let named = named_by_instance(&self.instances, member_id, instance_id.as_deref());
                let member_id = named.unwrap_or_else(|| Ok(member_id.clone()))?;
                check_instance(&self.instances, &member_id, instance_id.as_deref())?;
                if !self.members.contains_key(&member_id) {
                    return Err(GroupError::UnknownMember);
                }
                self.release_member(cx, &member_id);
                cx.note_member(&member_id, |member_id| GroupEventKind::Left { member_id });
                removed = true;
                Ok(())
            })
            .collect();
        if removed {
            self.bump(cx);
        }
        outcomes
    }
}

impl ClassicTerms {
    fn new(cx: &Context<'_>, op: &ClassicJoin) -> Self {
        Self { protocols: op.protocols.clone(), joined_at: cx.position.index, joined: true }
    }

    /// The protocol that it is told was chosen: it is not asked to assign anything by it.
    fn protocol_name(&self) -> &str {
        self.protocols.first().map_or("", |(name, _)| name.as_str())
    }
}

impl ConsumerMember {
    /// A member that has just come; the rest of what it says is taken over next.
    fn joining_classic(cx: &Context<'_>, op: &ClassicJoin, subscription: &Subscription) -> Self {
        let subscribed = sorted(&subscription.topics);
        Self {
            instance_id: op.instance_id.clone(),
            rack_id: subscription.rack_id.clone(),
            client_id: op.client_id.clone(),
            client_host: op.client_host.clone(),
            rebalance_timeout_ms: op.rebalance_timeout_ms,
            session_timeout_ms: op.session_timeout_ms,
            heartbeat_interval_ms: 0,
            server_assignor: None,
            subscription_hash: subscription_hash(&subscribed),
            subscribed,
            regex: None,
            classic: Some(ClassicTerms::new(cx, op)),
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
