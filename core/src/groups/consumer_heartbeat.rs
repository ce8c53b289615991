//! ConsumerGroupHeartbeat in all its forms: join, heartbeat, leave; and the target assignment (KIP-848).

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::assignor::Assignor;
use super::consumer::{AWAY_EPOCH, ConsumerGroup, ConsumerMember, LEAVE_EPOCH, WaitingHeartbeat, subscription_hash};
use super::group::{Context, Group, Protocol};
use super::migration;
use super::reconcile::{MemberState, Owned, owns_any, owns_only};
use super::timeline::short;
use crate::ids::GROUP_AND_MEMBER_ID_BYTES_MAX;
use crate::op::{ConsumerHeartbeat, ExpiredMember, ExpiryReason, TopicPartitions};
use crate::reply::{GroupError, HeartbeatReply};
use crate::view::{GroupConfig, GroupEventKind, HeartbeatCheck};
use lockstep_probe::{Mark, Mistake};

/// The longest regular expression that is taken.
const REGEX_BYTES_MAX: usize = 4096;

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
    let ids = [Some(&op.group_id), Some(&op.member_id), op.instance_id.as_ref()];
    if ids.into_iter().flatten().any(|id| id.len() > GROUP_AND_MEMBER_ID_BYTES_MAX) {
        return invalid("the id of a group, member or instance is too long");
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
    if op.subscribed_topic_regex.as_ref().is_some_and(|pattern| pattern.len() > REGEX_BYTES_MAX) {
        return Err(GroupError::InvalidRegularExpression);
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
    let group = slot.get_or_insert_with(|| Group::consumer(0));
    if let Protocol::Classic(classic) = &group.protocol
        && !classic.members.is_empty()
    {
        return migration::upgrade(group, cx, op);
    }
    group.become_consumer()?.heartbeat(cx, op)
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
                None => {
                    Mark::UnknownMemberRefused.reached();
                    Err(GroupError::UnknownMember)
                }
            };
        };
        match self.instances.get(instance_id) {
            Some(holder) if *holder == op.member_id => Ok(Sender::Known),
            Some(holder) if joins && member.is_none() => {
                // A classic member's process never says that it goes for a while: another one with its instance id takes over.
                if self.members.get(holder).is_some_and(|member| member.is_away() || member.classic.is_some()) {
                    Ok(Sender::Replaces(holder.clone()))
                } else {
                    Mark::InstanceIdInUse.reached();
                    Err(GroupError::UnreleasedInstance)
                }
            }
            Some(_) => Err(GroupError::FencedInstance),
            None => match member {
                Some(member) if joins && member.instance_id.is_some() => Err(GroupError::FencedInstance),
                Some(_) if joins => Ok(Sender::Known),
                None if joins => Ok(Sender::New),
                _ => Err(GroupError::UnknownMember),
            },
        }
    }

    /// Does this request, if it is in order, bring somebody new?
    pub(super) fn takes_in(&self, op: &ConsumerHeartbeat) -> Result<bool, GroupError> {
        self.admit(op).map(|sender| matches!(sender, Sender::New))
    }

    /// Checks that change nothing: who it is, its epoch, and whether there is room.
    fn admit(&self, op: &ConsumerHeartbeat) -> Result<Sender, GroupError> {
        let sender = self.sender(op)?;
        if matches!(sender, Sender::New) && self.members.len() >= op.members_max as usize {
            return Err(GroupError::GroupMaxSizeReached);
        }
        if op.member_epoch != 0
            && let Some(member) = self.members.get(&op.member_id)
            && member.classic.is_some()
        {
            return Err(GroupError::UnknownMember);
        }
        if op.member_epoch > 0
            && let Some(member) = self.members.get(&op.member_id)
        {
            // The previous epoch is one whose answer was lost; whoever owns more than was assigned since has missed more than that.
            let current = op.member_epoch == member.epoch;
            let lost_answer = op.member_epoch < member.epoch
                && op.member_epoch == member.previous_epoch
                && owns_only(op.owned.as_deref(), &member.assigned);
            if lost_answer {
                Mark::PreviousEpochAccepted.reached();
            }
            if !current && !lost_answer {
                Mark::MemberEpochFenced.reached();
                return Err(GroupError::FencedMemberEpoch);
            }
        }
        if op.member_epoch >= 0
            && let Some(regex) = &op.subscribed_topic_regex
        {
            let member_id = match &sender {
                Sender::New => None,
                Sender::Known => Some(&op.member_id),
                Sender::Replaces(replaced) => Some(replaced),
            };
            let before = member_id.and_then(|member_id| self.members.get(member_id)?.regex.as_deref());
            self.check_room_for_regex(before, regex)?;
        }
        Ok(sender)
    }

    pub(super) fn heartbeat(
        &mut self,
        cx: &mut Context<'_>,
        op: &ConsumerHeartbeat,
    ) -> Result<HeartbeatReply, GroupError> {
        let sender = self.admit(op)?;
        let member_id = op.member_id.as_str();
        let joined = matches!(sender, Sender::New);
        match sender {
            Sender::New => {
                cx.note_joined(member_id, op.instance_id.as_deref(), &op.client_id, &op.client_host);
                self.insert_member(cx, member_id, ConsumerMember::joining(op), None);
            }
            Sender::Replaces(replaced) => {
                self.replace_member(cx, &replaced, member_id, |member| member.speak_consumer(op));
            }
            Sender::Known => self.turn_native(cx, op),
        }
        let votes_anew = op.server_assignor.is_some()
            && self.members.get(member_id).is_some_and(|member| member.server_assignor != op.server_assignor);
        let subscribed = self.update_member(cx, op);
        if subscribed && !joined {
            cx.note_member(member_id, |member_id| GroupEventKind::Subscribed { member_id });
        }
        if subscribed || joined || votes_anew && self.wants_another_assignor() {
            self.bump(cx);
        }
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
        let tell = self.must_tell(op);
        if self.assignment_due() {
            // The way on depends on a target that is not there yet; what the member gave up is free at once. It is told
            // nothing before its `Assign`: what it reports here must still be true then.
            self.acknowledge(cx, member_id, op.owned.as_deref());
            if let Some(mut member) = self.members.get_mut(member_id) {
                member.waiting = Some(WaitingHeartbeat { owned: op.owned.clone(), full: tell });
            }
            return self.reply(member_id, false, cx.config);
        }
        self.forget_waiting(member_id);
        let assigned_changed = self.advance(cx, member_id, op.owned.as_deref());
        self.reply(member_id, tell || assigned_changed, cx.config)
    }

    /// A new process takes a static member's place, with all that it was assigned.
    pub(super) fn replace_member(
        &mut self,
        cx: &mut Context<'_>,
        replaced: &str,
        by: &str,
        change: impl FnOnce(&mut ConsumerMember),
    ) {
        // What its regular expression matches must not be forgotten in between: nobody else may subscribe by it.
        let regex = self.members.get(replaced).and_then(|member| member.regex.clone());
        self.count_subscription(&[], regex.as_deref());
        if let Some((mut member, target)) = self.remove_member(cx, replaced) {
            Mark::StaticMemberReplaced.reached();
            member.epoch = 0;
            member.previous_epoch = 0;
            member.waiting = None;
            change(&mut member);
            self.activity.note_replaced(replaced);
            self.insert_member(cx, by, member, target);
            cx.note(GroupEventKind::Replaced { member_id: short(replaced), by: short(by) });
        }
        self.uncount_subscription(&[], regex.as_deref());
    }

    /// A member that spoke the classic protocol joins with the consumer protocol under the same id.
    fn turn_native(&mut self, cx: &mut Context<'_>, op: &ConsumerHeartbeat) {
        let Some(mut member) = self.members.get_mut(&op.member_id) else { return };
        let Some(terms) = (if member.classic.is_some() { member.classic.take() } else { None }) else { return };
        member.speak_consumer(op);
        member.waiting = None;
        drop(member);
        self.uncount_classic(&terms);
        cx.changed = true;
    }

    /// Takes over what the request says of the member; true when its subscription changed.
    fn update_member(&mut self, cx: &mut Context<'_>, op: &ConsumerHeartbeat) -> bool {
        let Some(member) = self.members.get(&op.member_id) else { return false };
        let names =
            op.subscribed_topic_names.as_ref().map(|names| sorted(names)).filter(|names| *names != member.subscribed);
        let regex = new_regex(member, op);
        let returns = op.member_epoch == 0 && member.is_away();
        let newly_static = op.instance_id.is_some() && member.instance_id.is_none();
        let subscription_changed = names.is_some() || regex.is_some();
        if !subscription_changed && !returns && !newly_static && !differs_in_details(member, op) {
            return false;
        }
        cx.changed = true;
        if subscription_changed {
            let (names_before, regex_before) = (member.subscribed.clone(), member.regex.clone());
            let regex = regex.clone().unwrap_or_else(|| regex_before.clone());
            // What the new one shares with the old one must not be forgotten in between.
            self.count_subscription(names.as_ref().unwrap_or(&names_before), regex.as_deref());
            self.uncount_subscription(&names_before, regex_before.as_deref());
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
        if let Some(regex) = regex {
            member.regex = regex;
        }
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

    pub(super) fn forget_waiting(&mut self, member_id: &str) {
        if let Some(mut member) = self.members.get_mut(member_id)
            && member.waiting.is_some()
        {
            member.waiting = None;
        }
    }

    /// Frees what the member was asked to give up, if it reports to own none of it any more. Its epoch stays.
    pub(super) fn acknowledge(&mut self, cx: &Context<'_>, member_id: &str, owned: Option<&[TopicPartitions]>) {
        let Some(mut member) = self.members.get_mut(member_id) else { return };
        if member.state != MemberState::Unrevoked || owns_any(owned, &member.revoking) {
            return;
        }
        Mark::RevokedWhileTargetIsBehind.reached();
        member.state = MemberState::Stable;
        member.revoking_since = None;
        self.freed_at = cx.position.index;
        for (topic_id, partitions) in core::mem::take(&mut member.revoking) {
            for partition in partitions.keys() {
                self.owners.remove(&(topic_id, *partition));
            }
        }
    }

    /// Op 8 with member epoch −1 or −2.
    pub(super) fn leave(&mut self, cx: &mut Context<'_>, op: &ConsumerHeartbeat) -> Result<HeartbeatReply, GroupError> {
        self.admit(op)?;
        if op.member_epoch == AWAY_EPOCH {
            Mark::StaticMemberParked.reached();
            self.park(cx, &op.member_id);
            cx.note_member(&op.member_id, |member_id| GroupEventKind::Away { member_id });
        } else {
            self.release_member(cx, &op.member_id);
            cx.note_member(&op.member_id, |member_id| GroupEventKind::Left { member_id });
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
        self.freed_at = cx.position.index;
        for (topic_id, partitions) in core::mem::take(&mut member.revoking) {
            for partition in partitions.keys() {
                self.owners.remove(&(topic_id, *partition));
            }
        }
        drop(member);
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
    }

    /// Timers ran out; true when anybody went.
    pub(super) fn expire(&mut self, cx: &mut Context<'_>, expired: &[ExpiredMember]) -> bool {
        let mut removed = false;
        for expiry in expired {
            let Some(member) = self.members.get(&expiry.member_id) else { continue };
            let over = match expiry.reason {
                ExpiryReason::Session => {
                    self.activity.last_seen(&expiry.member_id).is_some_and(|last_seen| last_seen <= expiry.last_seen)
                        || Mistake::ExpiryDespiteLaterHeartbeat.is_made()
                }
                // The revocation's beginning is named: once it is acknowledged, or is another one, nothing is owed.
                // A classic member is named with its last JoinGroup: it owes another one, or the SyncGroup after that one.
                ExpiryReason::Rebalance => {
                    member.revoking_since == Some(expiry.last_seen)
                        || member.classic.as_ref().is_some_and(|terms| terms.joined_at == expiry.last_seen)
                }
                ExpiryReason::Pending => false,
            };
            match (over, expiry.reason) {
                (false, _) => Mark::ExpiryVoid.reached(),
                (true, ExpiryReason::Rebalance) => Mark::RevocationTimedOut.reached(),
                (true, _) => Mark::SessionExpired.reached(),
            }
            if over {
                self.release_member(cx, &expiry.member_id);
                cx.note_expired(expiry);
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
            self.answer_classic_joins(cx);
        }
        let member_id = member_id?;
        let Some(mut member) = self.members.get_mut(member_id) else { return Some(Err(GroupError::UnknownMember)) };
        if member.classic.is_some() {
            // Such a member takes its steps when it joins.
            return Some(Err(GroupError::UnknownMember));
        }
        let waiting = if member.waiting.is_some() { member.waiting.take() } else { None };
        drop(member);
        let (owned, tell) = waiting.map_or((None, true), |waiting| (waiting.owned, waiting.full));
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
        let assigned_changed = self.advance(cx, member_id, owned.as_deref());
        Some(self.reply(member_id, tell || assigned_changed, cx.config))
    }

    /// Can a heartbeat with an epoch be answered from the state as it is?
    pub(super) fn check_heartbeat(&self, op: &ConsumerHeartbeat, config: GroupConfig) -> HeartbeatCheck {
        if let Err(error) = self.admit(op) {
            return HeartbeatCheck::Answer(Err(error));
        }
        let Some(member) = self.members.get(&op.member_id) else {
            return HeartbeatCheck::Answer(Err(GroupError::UnknownMember));
        };
        let subscription_differs =
            op.subscribed_topic_names.as_ref().is_some_and(|names| sorted(names) != member.subscribed);
        if subscription_differs
            || new_regex(member, op).is_some()
            || differs_in_details(member, op)
            || self.assignment_due()
            // What an earlier request reported is no longer true of a member that is told something now.
            || member.waiting.is_some()
            || self.next_step(&op.member_id, member, op.owned.as_deref()).is_some()
        {
            return HeartbeatCheck::Propose;
        }
        HeartbeatCheck::Answer(self.reply(&op.member_id, self.must_tell(op), config))
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
            regex: op.subscribed_topic_regex.clone().filter(|regex| !regex.is_empty()),
            classic: None,
            epoch: 0,
            previous_epoch: 0,
            state: MemberState::Stable,
            assigned: Owned::new(),
            revoking: Owned::new(),
            revoking_since: None,
            waiting: None,
        }
    }

    /// It spoke the classic protocol before, if any.
    fn speak_consumer(&mut self, op: &ConsumerHeartbeat) {
        self.classic = None;
        self.session_timeout_ms = op.session_timeout_ms;
        self.heartbeat_interval_ms = op.heartbeat_interval_ms;
    }
}

/// The regular expression of a request, where it differs from the member's; the inner `None`: no longer any.
#[expect(clippy::option_option, reason = "no change and no expression are two things")]
fn new_regex(member: &ConsumerMember, op: &ConsumerHeartbeat) -> Option<Option<String>> {
    let said = op.subscribed_topic_regex.as_ref()?;
    (member.regex.as_deref().unwrap_or_default() != said).then(|| Some(said.clone()).filter(|regex| !regex.is_empty()))
}

pub(super) fn sorted(names: &[String]) -> Vec<String> {
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
