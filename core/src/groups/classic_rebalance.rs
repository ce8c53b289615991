//! The classic protocol's rebalance: join phase, new generation, the leader's assignment, and members that go.
//!
//! Only what is in the log decides: a member has joined when its op 7 was applied in the phase, and deadlines come as ops 8 and 9.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::classic::{
    ClassicGroup, ClassicMember, ClassicState, JoinPhase, PendingMember, SyncSender, named_by_instance,
};
use super::classic_in_consumer;
use super::consumer_protocol::{PROTOCOL_TYPE, existing, read_assignment};
use super::group::{Context, Group, Protocol};
use super::timeline::{Moves, short};
use crate::ids::GROUP_AND_MEMBER_ID_BYTES_MAX;
use crate::op::TopicPartitions;
use crate::op::{ClassicJoin, ExpiredMember, ExpiryReason};
use crate::reply::{ClassicJoined, GroupError};
use crate::view::{GroupEventKind, JoinProgress, JoinResult, SyncProgress, SyncResult};
use lockstep_probe::{Mark, Mistake};

/// Protocols a member may offer; real clients offer a handful.
const PROTOCOLS_MAX: usize = 256;

/// JoinGroup. `slot` is the group, if there is one.
pub(super) fn join(
    slot: &mut Option<Group>,
    cx: &mut Context<'_>,
    op: &ClassicJoin,
) -> Result<ClassicJoined, GroupError> {
    if op.group_id.is_empty() || op.group_id.len() > GROUP_AND_MEMBER_ID_BYTES_MAX {
        return Err(GroupError::InvalidGroupId);
    }
    let ids = [Some(&op.member_id), Some(&op.fresh_member_id), op.instance_id.as_ref()];
    if ids.into_iter().flatten().any(|id| id.len() > GROUP_AND_MEMBER_ID_BYTES_MAX) {
        return Err(GroupError::InvalidRequest("the id of a member or instance is too long".to_string()));
    }
    if op.member_id.is_empty() && op.fresh_member_id.is_empty() {
        return Err(GroupError::InvalidRequest("no id for a new member".to_string()));
    }
    if op.protocols.len() > PROTOCOLS_MAX {
        return Err(GroupError::InvalidRequest("too many protocols".to_string()));
    }
    let acceptable = !op.protocol_type.is_empty() && !op.protocols.is_empty();
    match slot {
        Some(group) if !group.has_no_members() => {}
        // Nobody can come back to a group without members, and a refused request leaves an empty group what it was.
        _ if !op.member_id.is_empty() => return Err(GroupError::UnknownMember),
        _ if !acceptable => return Err(GroupError::InconsistentProtocol),
        _ => {}
    }
    let group = slot.get_or_insert_with(|| Group::classic(0));
    if matches!(&group.protocol, Protocol::Consumer(consumer) if !consumer.members.is_empty()) {
        return classic_in_consumer::join(group, cx, op);
    }
    group.become_classic()?.join(cx, op)
}

impl ClassicGroup {
    fn join(&mut self, cx: &mut Context<'_>, op: &ClassicJoin) -> Result<ClassicJoined, GroupError> {
        if op.member_id.is_empty() && !self.knows(&op.fresh_member_id) {
            self.join_new(cx, op)
        } else if op.member_id.is_empty() {
            // The very op once more: the id was made for this request, so the member is the one that came with it.
            self.join_known(cx, &op.fresh_member_id, op)
        } else {
            self.join_known(cx, &op.member_id, op)
        }
    }

    fn join_new(&mut self, cx: &mut Context<'_>, op: &ClassicJoin) -> Result<ClassicJoined, GroupError> {
        let member_id = &op.fresh_member_id;
        let replaced = op.instance_id.as_ref().and_then(|instance_id| self.instances.get(instance_id)).cloned();
        if !self.has_room(replaced.as_deref(), op.members_max) {
            return Err(GroupError::GroupMaxSizeReached);
        }
        if !self.supports(&op.protocol_type, &op.protocols) {
            return Err(GroupError::InconsistentProtocol);
        }
        if let Some(replaced) = replaced {
            return Ok(self.replace_static(cx, &replaced, op));
        }
        if op.instance_id.is_none() && op.require_known_member_id {
            Mark::MemberIdHandedOut.reached();
            if self.pending.len() >= op.members_max as usize {
                return Err(GroupError::GroupMaxSizeReached);
            }
            self.pending.insert(member_id.clone(), PendingMember { session_timeout_ms: op.session_timeout_ms });
            self.activity.saw(member_id, cx.position.index);
            cx.changed = true;
            return Err(GroupError::MemberIdRequired(member_id.clone()));
        }
        Ok(self.add_member(cx, member_id, op))
    }

    fn join_known(
        &mut self,
        cx: &mut Context<'_>,
        member_id: &str,
        op: &ClassicJoin,
    ) -> Result<ClassicJoined, GroupError> {
        if self.pending.contains_key(member_id) {
            if !self.has_room(None, op.members_max) {
                self.drop_pending(cx, member_id);
                self.complete_join_if_all_joined(cx);
                return Err(GroupError::GroupMaxSizeReached);
            }
            if !self.supports(&op.protocol_type, &op.protocols) {
                return Err(GroupError::InconsistentProtocol);
            }
            if op.instance_id.as_ref().is_some_and(|instance_id| self.instances.contains_key(instance_id)) {
                return Err(GroupError::FencedInstance);
            }
            return Ok(self.add_member(cx, member_id, op));
        }
        let member = self.check_member(member_id, op.instance_id.as_deref())?;
        let unchanged = member.protocols == op.protocols;
        if !self.has_room(Some(member_id), op.members_max) {
            self.remove_member(cx, member_id);
            cx.note_member(member_id, |member_id| GroupEventKind::Left { member_id });
            self.complete_join_if_all_joined(cx);
            return Err(GroupError::GroupMaxSizeReached);
        }
        if !self.supports(&op.protocol_type, &op.protocols) {
            return Err(GroupError::InconsistentProtocol);
        }
        let after_generation = self.head.generation;
        let rejoin_rebalances = match self.head.state {
            ClassicState::Preparing(_) => true,
            // It missed the answer to its join: it can have it again.
            ClassicState::Completing => !unchanged,
            // A leader rejoins to have partitions assigned anew; a follower only when it has something new to say.
            ClassicState::Stable => !unchanged || self.is_leader(member_id),
            ClassicState::Empty => return Err(GroupError::UnknownMember),
        };
        self.update_member(cx, member_id, op);
        if !rejoin_rebalances {
            return Ok(self.joined_already(member_id));
        }
        if !matches!(self.head.state, ClassicState::Preparing(_)) {
            cx.note_member(member_id, |member_id| GroupEventKind::Rejoined { member_id });
        }
        self.prepare_rebalance_if_at_rest(cx, 0);
        self.mark_joined(member_id);
        self.complete_join_if_all_joined(cx);
        Ok(self.ticket(member_id, after_generation))
    }

    /// A new process took a static member's place: it gets the place, and the old member id is fenced.
    fn replace_static(&mut self, cx: &mut Context<'_>, old: &str, op: &ClassicJoin) -> ClassicJoined {
        let member_id = op.fresh_member_id.as_str();
        let after_generation = self.head.generation;
        let led = self.is_leader(old);
        let chosen_before = self.head.protocol_name.clone();
        let had_joined = self.members.get(old).map_or(0, |member| member.joined);
        let assignment = self.members.get(old).map(|member| member.assignment.clone()).unwrap_or_default();
        self.remove_member(cx, old);
        Mark::StaticMemberReplaced.reached();
        self.activity.note_replaced(old);
        cx.note(GroupEventKind::Replaced { member_id: short(old), by: short(member_id) });
        let mut member = ClassicMember::from_join(op);
        if !Mistake::StaticReplacementLosesAssignment.is_made() {
            member.assignment = assignment;
        }
        member.joined = had_joined;
        self.insert_member(cx, member_id, &op.protocol_type, member);
        if let ClassicState::Preparing(phase) = self.head.state
            && had_joined == phase.since
        {
            self.joined += 1;
        }
        if led {
            self.head.leader = Some(member_id.to_string());
        }
        match self.head.state {
            ClassicState::Stable if self.elect_protocol() == chosen_before => self.joined_already(member_id),
            ClassicState::Stable | ClassicState::Completing | ClassicState::Preparing(_) | ClassicState::Empty => {
                // While the assignment is being made the leader may know the old id only: all must join again.
                self.prepare_rebalance_if_at_rest(cx, 0);
                self.mark_joined(member_id);
                self.complete_join_if_all_joined(cx);
                self.ticket(member_id, after_generation)
            }
        }
    }

    fn add_member(&mut self, cx: &mut Context<'_>, member_id: &str, op: &ClassicJoin) -> ClassicJoined {
        let after_generation = self.head.generation;
        cx.note_joined(member_id, op.instance_id.as_deref(), &op.client_id, &op.client_host);
        self.insert_member(cx, member_id, &op.protocol_type, ClassicMember::from_join(op));
        self.prepare_rebalance_if_at_rest(cx, op.initial_rebalance_delay_ms);
        self.mark_joined(member_id);
        if let ClassicState::Preparing(phase) = &mut self.head.state {
            phase.arrivals = phase.arrivals.saturating_add(1);
        }
        self.complete_join_if_all_joined(cx);
        self.ticket(member_id, after_generation)
    }

    /// Is there a place for this member, or (`None`) for a new one? Pending members take none, as in Kafka: they may never come back.
    ///
    /// While members join, places are for those who have joined. The others may be too many, when newcomers took their places or the
    /// limit was lowered: whoever comes last into the next generation must go.
    fn has_room(&self, member_id: Option<&str>, members_max: u32) -> bool {
        let members_max = members_max as usize;
        let known = member_id.and_then(|member_id| self.members.get(member_id));
        match self.head.state {
            ClassicState::Empty => true,
            ClassicState::Preparing(phase) => {
                known.is_some_and(|member| member.joined == phase.since) || self.joined < members_max
            }
            ClassicState::Completing | ClassicState::Stable => known.is_some() || self.members.len() < members_max,
        }
    }

    fn knows(&self, member_id: &str) -> bool {
        self.members.contains_key(member_id) || self.pending.contains_key(member_id)
    }

    fn ticket(&self, member_id: &str, after_generation: i32) -> ClassicJoined {
        ClassicJoined {
            member_id: member_id.to_string(),
            after_generation,
            ready: matches!(self.join_progress(member_id, after_generation), JoinProgress::Done(_)),
        }
    }

    /// The current generation is the answer.
    fn joined_already(&self, member_id: &str) -> ClassicJoined {
        self.ticket(member_id, self.head.generation.saturating_sub(1))
    }

    /// Starts a join phase unless one is running. A group that was empty waits for the initial delay.
    fn prepare_rebalance_if_at_rest(&mut self, cx: &mut Context<'_>, initial_delay_ms: u32) {
        let initial_delay_ms = match self.head.state {
            ClassicState::Preparing(_) => return,
            ClassicState::Empty => initial_delay_ms,
            ClassicState::Completing | ClassicState::Stable => 0,
        };
        self.begin_join_phase(cx, initial_delay_ms);
    }

    fn begin_join_phase(&mut self, cx: &mut Context<'_>, initial_delay_ms: u32) {
        self.head.state =
            ClassicState::Preparing(JoinPhase { since: cx.position.index, initial_delay_ms, arrivals: 0 });
        self.joined = 0;
        cx.changed = true;
    }

    fn mark_joined(&mut self, member_id: &str) {
        if let ClassicState::Preparing(phase) = self.head.state
            && let Some(mut member) = self.members.get_mut(member_id)
            && member.joined != phase.since
        {
            member.joined = phase.since;
            self.joined += 1;
        }
    }

    /// The phase is over when every member has joined and nobody is pending, except that an initial delay runs its time.
    fn complete_join_if_all_joined(&mut self, cx: &mut Context<'_>) {
        if let ClassicState::Preparing(phase) = self.head.state
            && phase.initial_delay_ms == 0
            && self.joined == self.members.len()
            && self.pending.is_empty()
        {
            self.complete_join(cx, phase);
        }
    }

    /// Op 9 `CompleteJoin`: true when the phase was still running.
    pub(super) fn complete_join_phase(&mut self, cx: &mut Context<'_>, since: u64) -> bool {
        match self.head.state {
            ClassicState::Preparing(phase) if phase.since == since => {
                self.complete_join(cx, phase);
                true
            }
            _ => false,
        }
    }

    /// Begins the next generation with whoever has joined. Static members stay without joining, for their session time-out.
    fn complete_join(&mut self, cx: &mut Context<'_>, phase: JoinPhase) {
        cx.changed = true;
        if self.joined < self.members.len() {
            let absent: Vec<String> = self
                .members
                .iter()
                .filter(|(_, member)| member.joined != phase.since && member.instance_id.is_none())
                .map(|(member_id, _)| member_id.clone())
                .collect();
            for member_id in absent {
                self.remove_member(cx, &member_id);
                Mark::JoinPhaseTimedOut.reached();
                let reason = ExpiryReason::Rebalance;
                cx.note(GroupEventKind::Expired { member_id: short(&member_id), reason, silent_ms: 0 });
            }
        }
        if self.members.is_empty() {
            self.head.generation = self.head.generation.saturating_add(1);
            if Mistake::EmptyGroupRestartsEpochs.is_made() {
                self.head.generation = 1;
            }
            self.head.generation_since = cx.position.index;
            self.head.state = ClassicState::Empty;
            self.head.protocol_name = None;
            self.head.leader = None;
            return;
        }
        let has_joined =
            |member_id: &String| self.members.get(member_id).is_some_and(|member| member.joined == phase.since);
        let leader = self
            .head
            .leader
            .clone()
            .filter(&has_joined)
            .or_else(|| self.members.keys().find(|member_id| has_joined(member_id)).cloned());
        let Some(leader) = leader else {
            // Only static members that are away are left: nobody could lead. Wait until one is back or its session ends.
            Mark::OnlyAbsentStaticMembersLeft.reached();
            self.begin_join_phase(cx, 0);
            return;
        };
        self.head.leader = Some(leader);
        self.head.protocol_name = self.elect_protocol();
        self.head.generation = self.head.generation.saturating_add(1);
        self.head.generation_since = cx.position.index;
        self.head.state = ClassicState::Completing;
        cx.note(GroupEventKind::Generation {
            leader: self.head.leader.as_deref().map(short).unwrap_or_default(),
            members: u32::try_from(self.members.len()).unwrap_or(u32::MAX),
        });
    }

    /// A group that was just downgraded begins a join phase; these members' JoinGroups wait for its end already.
    pub(super) fn rebalance_with(&mut self, cx: &mut Context<'_>, joined: &[&String]) {
        self.begin_join_phase(cx, 0);
        for member_id in joined {
            self.mark_joined(member_id);
        }
        self.complete_join_if_all_joined(cx);
    }

    /// The answer to a JoinGroup that replaced the last member of the consumer protocol.
    pub(super) fn ticket_after_downgrade(&self, member_id: &str) -> ClassicJoined {
        match self.head.state {
            // The join phase that it is part of makes the next generation.
            ClassicState::Preparing(_) => self.ticket(member_id, self.head.generation),
            _ => self.joined_already(member_id),
        }
    }

    /// After members went: the others must join again.
    fn rebalance_without_them(&mut self, cx: &mut Context<'_>) {
        if self.head.state != ClassicState::Empty {
            self.prepare_rebalance_if_at_rest(cx, 0);
        }
        self.complete_join_if_all_joined(cx);
    }

    fn drop_pending(&mut self, cx: &mut Context<'_>, member_id: &str) -> bool {
        let known = self.pending.remove(member_id).is_some();
        if known {
            self.activity.forget(member_id, cx.position.index);
            cx.changed = true;
        }
        known
    }

    /// LeaveGroup: an outcome for each member named.
    pub(super) fn leave(
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
                if self.drop_pending(cx, &member_id) {
                    return Ok(());
                }
                self.check_member(&member_id, instance_id.as_deref())?;
                self.remove_member(cx, &member_id);
                cx.note_member(&member_id, |member_id| GroupEventKind::Left { member_id });
                removed = true;
                Ok(())
            })
            .collect();
        if removed {
            self.rebalance_without_them(cx);
        } else {
            self.complete_join_if_all_joined(cx);
        }
        outcomes
    }

    /// Timers ran out; true when anybody went.
    pub(super) fn expire(&mut self, cx: &mut Context<'_>, expired: &[ExpiredMember]) -> bool {
        let mut any = false;
        let mut removed = false;
        for expiry in expired {
            let Some(last_seen) = self.activity.last_seen(&expiry.member_id) else { continue };
            let gone = match expiry.reason {
                ExpiryReason::Pending if last_seen <= expiry.last_seen => {
                    Mark::PendingMemberExpired.reached();
                    any |= self.drop_pending(cx, &expiry.member_id);
                    false
                }
                ExpiryReason::Session => {
                    last_seen <= expiry.last_seen || Mistake::ExpiryDespiteLaterHeartbeat.is_made()
                }
                // The generation's beginning is named: in a later generation, or while joining, nobody owes its SyncGroup.
                ExpiryReason::Rebalance => {
                    expiry.last_seen == self.head.generation_since
                        && matches!(self.head.state, ClassicState::Completing | ClassicState::Stable)
                }
                _ => false,
            };
            if gone && self.remove_member(cx, &expiry.member_id).is_some() {
                removed = true;
                match expiry.reason {
                    ExpiryReason::Rebalance => Mark::SyncTimedOut.reached(),
                    ExpiryReason::Session | ExpiryReason::Pending => Mark::SessionExpired.reached(),
                }
                cx.note_expired(expiry);
            }
        }
        if removed {
            self.rebalance_without_them(cx);
        } else if any {
            self.complete_join_if_all_joined(cx);
        }
        any || removed
    }

    /// What a SyncGroup is checked against, whoever sends it.
    pub(super) fn check_sync(&self, sender: &SyncSender<'_>) -> Result<(), GroupError> {
        self.check_member(sender.member_id, sender.instance_id)?;
        if sender.generation != self.head.generation {
            return Err(GroupError::IllegalGeneration);
        }
        let differs = |given: Option<&str>, ours: &Option<String>| given.is_some() && given != ours.as_deref();
        if differs(sender.protocol_type, &self.head.protocol_type)
            || differs(sender.protocol_name, &self.head.protocol_name)
        {
            return Err(GroupError::InconsistentProtocol);
        }
        match self.head.state {
            ClassicState::Empty => Err(GroupError::UnknownMember),
            ClassicState::Preparing(_) => Err(GroupError::RebalanceInProgress),
            ClassicState::Completing | ClassicState::Stable => Ok(()),
        }
    }

    /// Takes the leader's assignment; members it does not name get none. The request was checked.
    pub(super) fn assign(&mut self, cx: &mut Context<'_>, member_id: &str, assignments: &[(String, Vec<u8>)]) {
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
        if self.head.state != ClassicState::Completing || !self.is_leader(member_id) {
            return;
        }
        let by_member: alloc::collections::BTreeMap<&str, &Vec<u8>> =
            assignments.iter().map(|(member_id, assignment)| (member_id.as_str(), assignment)).collect();
        let changed: Vec<(String, Vec<u8>)> = self
            .members
            .iter()
            .filter_map(|(member_id, member)| {
                let assignment = by_member.get(member_id.as_str()).map_or(&[][..], |assignment| assignment.as_slice());
                (member.assignment != assignment).then(|| (member_id.clone(), assignment.to_vec()))
            })
            .collect();
        self.note_moves(cx, &changed);
        for (member_id, assignment) in changed {
            if let Some(mut member) = self.members.get_mut(&member_id) {
                member.assignment = assignment;
            }
        }
        self.head.state = ClassicState::Stable;
    }

    /// What the leader moved, as far as its bytes are those of consumers.
    fn note_moves(&self, cx: &mut Context<'_>, changed: &[(String, Vec<u8>)]) {
        let mut moves = Moves::default();
        if self.head.protocol_type.as_deref() == Some(PROTOCOL_TYPE) {
            let read = |bytes: &[u8]| -> Vec<TopicPartitions> {
                read_assignment(bytes).map_or_else(Vec::new, |read| existing(&read.partitions, cx.directory))
            };
            for (member_id, assignment) in changed {
                let before = self.members.get(member_id).map_or(&[][..], |member| member.assignment.as_slice());
                for topic in read(before) {
                    moves.had(member_id, topic.topic_id, topic.partitions);
                }
                for topic in read(assignment) {
                    moves.gets(member_id, topic.topic_id, topic.partitions);
                }
            }
        }
        cx.note(moves.into_event(self.head.protocol_name.as_deref().unwrap_or_default()));
    }

    /// Heartbeat.
    pub(super) fn check_heartbeat(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        self.check_member(member_id, instance_id)?;
        if generation != self.head.generation {
            return Err(GroupError::IllegalGeneration);
        }
        match self.head.state {
            ClassicState::Empty => Err(GroupError::UnknownMember),
            ClassicState::Preparing(_) => Err(GroupError::RebalanceInProgress),
            ClassicState::Completing | ClassicState::Stable => Ok(()),
        }
    }

    fn gone(&self, member_id: &str) -> GroupError {
        if self.activity.was_replaced(member_id) { GroupError::FencedInstance } else { GroupError::UnknownMember }
    }

    /// How far a JoinGroup is that came when the group was at `after_generation`.
    pub(super) fn join_progress(&self, member_id: &str, after_generation: i32) -> JoinProgress {
        let Some(member) = self.members.get(member_id) else {
            return JoinProgress::Done(Err(self.gone(member_id)));
        };
        // What it joined is not over, whatever number the ticket has: it may be from before the group was downgraded.
        if matches!(self.head.state, ClassicState::Preparing(phase) if member.joined == phase.since) {
            return JoinProgress::Waiting;
        }
        if self.head.generation <= after_generation {
            return JoinProgress::Waiting;
        }
        // The generation came and has lost its leader already: the member joins again.
        let (Some(leader), Some(protocol_name)) = (&self.head.leader, &self.head.protocol_name) else {
            return JoinProgress::Done(Err(GroupError::RebalanceInProgress));
        };
        let leads = leader == member_id;
        let members = if leads {
            self.members
                .iter()
                .map(|(id, member)| (id.clone(), member.instance_id.clone(), member.metadata(protocol_name).to_vec()))
                .collect()
        } else {
            Vec::new()
        };
        JoinProgress::Done(Ok(JoinResult {
            generation: self.head.generation,
            protocol_type: self.head.protocol_type.clone().unwrap_or_default(),
            protocol_name: protocol_name.clone(),
            leader: leader.clone(),
            member_id: member_id.to_string(),
            skip_assignment: leads && self.head.state == ClassicState::Stable,
            members,
        }))
    }

    /// How far a SyncGroup of this generation is.
    pub(super) fn sync_progress(&self, member_id: &str, generation: i32) -> SyncProgress {
        let Some(member) = self.members.get(member_id) else {
            return SyncProgress::Done(Err(self.gone(member_id)));
        };
        if generation != self.head.generation {
            return SyncProgress::Done(Err(GroupError::RebalanceInProgress));
        }
        match self.head.state {
            ClassicState::Completing
                if member.assignment.is_empty() || !Mistake::SyncAnsweredWithFormerAssignment.is_made() =>
            {
                SyncProgress::Waiting
            }
            ClassicState::Completing | ClassicState::Stable => SyncProgress::Done(Ok(SyncResult {
                protocol_type: self.head.protocol_type.clone().unwrap_or_default(),
                protocol_name: self.head.protocol_name.clone().unwrap_or_default(),
                assignment: member.assignment.clone(),
            })),
            ClassicState::Preparing(_) | ClassicState::Empty => {
                SyncProgress::Done(Err(GroupError::RebalanceInProgress))
            }
        }
    }
}
