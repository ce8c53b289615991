//! Deadlines of members and groups, beside the replicated state: kept by a shard's leader in its monotonic time.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::groups::timers::{MemberTimed, Phase, TimedGroup};
use crate::op::{ExpiredMember, ExpiryReason, HeartbeatConsumer, LeaveConsumerGroup, Op, RebalancePartitions};
use crate::state_machine::ClusterStateMachine;
use lockstep_probe::Mark;

/// How long an op that was handed out has to show in the state before it is offered again.
const OFFER_AGAIN_MS: u64 = 1_000;

/// How long the runtime has to answer an `AssignmentNeeded` before the table asks for the assignment itself. It matters
/// when a leader was lost between the two.
const ASSIGNMENT_PATIENCE_MS: u64 = 200;

/// Members named in one op 11, so that `apply` takes a few milliseconds at most. What is left over comes with the next one; nobody's
/// session depends on it.
const SEEN_MEMBERS_MAX: usize = 4_000;

/// Ids named in one op, in bytes, so that it fits well into a message between nodes.
const NAMED_BYTES_MAX: usize = 1 << 20;

/// The leader's timers. Pure: `now_ms` is the leader's monotonic time, and what must happen is returned as ops to propose.
///
/// Times never go back; a `now_ms` below an earlier one counts as that one. Every call costs O(log n) for each member it
/// concerns; [`Self::observe`] reads a whole group only when the group's phase changed or very many members changed at once.
#[derive(Clone, Debug, Default)]
pub struct SessionTable {
    term: u64,
    now_ms: u64,
    groups: BTreeMap<Arc<str>, GroupTimers>,
    /// What is due when, earliest first.
    due: BTreeSet<(u64, u64)>,
    /// Running timers by number.
    timers: BTreeMap<u64, Timer>,
    next_timer: u64,
    /// Heartbeats that no op has told of yet.
    seen: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
}

#[derive(Clone, Debug)]
struct Timer {
    due_ms: u64,
    group_id: Arc<str>,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// A member's session, or a pending member's time to come back.
    Session(Arc<str>),
    /// A member's time to give up partitions.
    Revocation(Arc<str>),
    /// The join phase.
    Join,
    /// SyncGroups that are missing.
    Sync,
    /// The SyncGroup of a classic member of a consumer group.
    MemberSync(Arc<str>),
    /// The target assignment.
    Assignment,
}

#[derive(Clone, Debug)]
struct GroupTimers {
    phase: Phase,
    /// Classic: the generation.
    generation: Option<i32>,
    /// Log index up to which the group's changes are known here; `None` before the first look.
    observed: Option<u64>,
    members: BTreeMap<Arc<str>, MemberSession>,
    join: Option<JoinTimer>,
    sync: Option<SyncTimer>,
    assignment: Option<u64>,
}

#[derive(Clone, Debug)]
struct MemberSession {
    /// When it was last heard from.
    heard_ms: u64,
    timed: MemberTimed,
    /// Its SyncGroup for the current generation waits here, so it cannot heartbeat.
    waits_to_sync: bool,
    session: Option<u64>,
    revocation: Option<u64>,
    /// Runs from a JoinGroup to its SyncGroup in a consumer group.
    sync: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct JoinTimer {
    timer: u64,
    since: u64,
    /// Set while the initial delay runs.
    initial: Option<InitialDelay>,
}

/// A group's first generation waits as long as members keep coming, at most for the rebalance timeout.
#[derive(Clone, Copy, Debug)]
struct InitialDelay {
    delay_ms: u64,
    /// When the phase ends, whoever else comes.
    last_ms: u64,
    /// New members so far.
    arrivals: u32,
    /// Those that the current wait was made for.
    counted: u32,
}

#[derive(Clone, Debug)]
struct SyncTimer {
    timer: u64,
    /// Log index at which the generation began.
    since: u64,
    missing: BTreeSet<Arc<str>>,
}

impl SessionTable {
    /// The term that it was started for.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// A new leader's table for `term`: every member of every group gets a fresh session.
    #[must_use]
    pub fn start(state: &ClusterStateMachine, term: u64, now_ms: u64) -> Self {
        let mut table = Self { term, now_ms, ..Self::default() };
        for group_id in state.groups.ids() {
            table.observe(state, group_id, now_ms);
        }
        table
    }

    /// Called after [`crate::Effect::GroupChanged`]: timers follow the group's state (new members, join phases, missing
    /// SyncGroups, revocations), and members that an applied op has heard from are renewed.
    pub fn observe(&mut self, state: &ClusterStateMachine, group_id: &str, now_ms: u64) {
        self.advance_clock(now_ms);
        let Some(group) = state.groups.timed(group_id) else {
            self.forget_group(group_id);
            return;
        };
        let applied = state.applied().index;
        let phase = group.phase();
        let (key, known) = match self.groups.remove_entry(group_id) {
            Some((key, timers)) => (key, Some(timers)),
            None => (Arc::from(group_id), None),
        };
        let mut timers = known.unwrap_or(GroupTimers {
            phase,
            generation: None,
            observed: None,
            members: BTreeMap::new(),
            join: None,
            sync: None,
            assignment: None,
        });
        let new_phase = timers.phase != phase || timers.observed.is_none();
        timers.phase = phase;
        timers.generation = group.classic_generation();
        let changed = timers.observed.filter(|_| !new_phase).and_then(|observed| group.changed_since(observed));
        // Everybody has just heard of the new generation, or is about to.
        let fresh = new_phase && matches!(phase, Phase::AwaitingSync { .. });
        if new_phase {
            self.enter_phase(&key, &mut timers, &group);
        }
        if let Some(changed) = changed {
            for member_id in changed {
                self.follow_member(&key, &mut timers, &group, member_id, false);
            }
        } else {
            let gone: Vec<Arc<str>> =
                timers.members.keys().filter(|member_id| group.timed_member(member_id).is_none()).cloned().collect();
            for member_id in gone {
                self.follow_member(&key, &mut timers, &group, &member_id, false);
            }
            for member_id in group.timed_members() {
                self.follow_member(&key, &mut timers, &group, member_id, fresh);
            }
        }
        if let (Some(JoinTimer { initial: Some(initial), .. }), Some(joining)) = (&mut timers.join, group.join_phase())
        {
            initial.arrivals = joining.arrivals;
        }
        self.follow_assignment(&key, &mut timers, &group);
        timers.observed = Some(applied);
        self.groups.insert(key, timers);
    }

    /// A request of this member was answered just now from the applied state, with success or (classic) with
    /// REBALANCE_IN_PROGRESS: also a member that has yet to rejoin is alive.
    pub fn heartbeat(&mut self, group_id: &str, member_id: &str, now_ms: u64) {
        self.advance_clock(now_ms);
        let now_ms = self.now_ms;
        let Some((key, timers)) = self.groups.get_key_value(group_id) else { return };
        let Some((member_key, session)) = timers.members.get_key_value(member_id) else { return };
        let (key, member_key) = (key.clone(), member_key.clone());
        if let Some(timer) = session.session {
            let due_ms = now_ms.saturating_add(u64::from(session.timed.session_timeout_ms));
            self.move_timer(timer, due_ms);
        }
        if let Some(session) = self.groups.get_mut(group_id).and_then(|timers| timers.members.get_mut(member_id)) {
            session.heard_ms = now_ms;
        }
        self.seen.entry(key).or_default().insert(member_key);
    }

    /// This member's SyncGroup for this generation arrived and was in order. While it waits for the leader's, its session does not run.
    pub fn synced(&mut self, group_id: &str, member_id: &str, generation: i32, now_ms: u64) {
        self.advance_clock(now_ms);
        if matches!(self.groups.get(group_id), Some(timers) if matches!(timers.phase, Phase::Consumer { .. })) {
            self.synced_in_consumer_group(group_id, member_id);
            return;
        }
        let Some((key, mut timers)) = self.groups.remove_entry(group_id) else { return };
        if timers.generation == Some(generation)
            && let Some((member_key, session)) = timers.members.get_key_value(member_id)
        {
            let (member_key, mut session) = (member_key.clone(), session.clone());
            session.heard_ms = self.now_ms;
            session.waits_to_sync = matches!(timers.phase, Phase::AwaitingSync { .. });
            if let Some(timer) = session.session {
                if session.waits_to_sync {
                    self.stop_timer(timer);
                    session.session = None;
                } else {
                    self.move_timer(timer, self.now_ms.saturating_add(u64::from(session.timed.session_timeout_ms)));
                }
            }
            timers.members.insert(member_key.clone(), session);
            if let Some(sync) = &mut timers.sync {
                sync.missing.remove(member_id);
            }
            self.stop_sync_timer_if_all_came(&mut timers);
            self.seen.entry(key.clone()).or_default().insert(member_key);
        }
        self.groups.insert(key, timers);
    }

    fn synced_in_consumer_group(&mut self, group_id: &str, member_id: &str) {
        let session = self.groups.get_mut(group_id).and_then(|timers| timers.members.get_mut(member_id));
        if let Some(timer) = session.and_then(|session| session.sync.take()) {
            self.stop_timer(timer);
        }
        self.heartbeat(group_id, member_id, self.now_ms);
    }

    /// Ops due at `now_ms`, with the wall clock's `wall_ms` as data for people. An op whose proposal fails is offered again later.
    pub fn expired(&mut self, now_ms: u64, wall_ms: i64) -> Vec<Op> {
        self.advance_clock(now_ms);
        let later = self.due.split_off(&(self.now_ms.saturating_add(1), 0));
        let due = core::mem::replace(&mut self.due, later);
        let mut members: BTreeMap<Arc<str>, Vec<ExpiredMember>> = BTreeMap::new();
        let mut ops = Vec::new();
        for (_, number) in due {
            let Some(timer) = self.timers.get_mut(&number) else { continue };
            timer.due_ms = self.now_ms.saturating_add(OFFER_AGAIN_MS);
            let again_ms = timer.due_ms;
            let (group_id, what) = (timer.group_id.clone(), timer.what.clone());
            self.due.insert((again_ms, number));
            match what {
                What::Session(member_id) => {
                    members.entry(group_id.clone()).or_default().extend(self.expired_session(&group_id, &member_id));
                }
                What::Revocation(member_id) => {
                    members.entry(group_id.clone()).or_default().extend(self.expired_revocation(&group_id, &member_id));
                }
                What::Sync => members.entry(group_id.clone()).or_default().extend(self.missing_syncs(&group_id)),
                What::MemberSync(member_id) => {
                    members.entry(group_id.clone()).or_default().extend(self.missing_sync(&group_id, &member_id));
                }
                What::Join => ops.extend(self.join_phase_over(&group_id, number, wall_ms)),
                What::Assignment => ops.push(Op::RebalancePartitions(RebalancePartitions::Assign {
                    group_id: group_id.to_string(),
                    member_id: None,
                    now_ms: wall_ms,
                })),
            }
        }
        for (group_id, mut members) in members {
            members.sort_unstable_by(|a, b| (&a.member_id, a.reason).cmp(&(&b.member_id, b.reason)));
            while !members.is_empty() {
                let mut bytes = 0;
                let fits = |member: &&ExpiredMember| {
                    bytes += member.member_id.len();
                    bytes < NAMED_BYTES_MAX
                };
                // One id is far shorter than the bound.
                let count = members.iter().take_while(fits).count().max(1);
                let rest = members.split_off(count);
                ops.push(Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired {
                    group_id: group_id.to_string(),
                    term: self.term,
                    members: core::mem::replace(&mut members, rest),
                    now_ms: wall_ms,
                }));
            }
        }
        ops
    }

    /// When [`Self::expired`] is next worth calling.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// The batched op 11 for members heard from since the last call; `None` when there were none. To be called about once a
    /// second. It names at most 4,000 members; the others come with the next call.
    pub fn take_seen(&mut self) -> Option<Op> {
        let mut groups = Vec::new();
        let (mut room, mut bytes) = (SEEN_MEMBERS_MAX, 0);
        while room > 0
            && bytes < NAMED_BYTES_MAX
            && let Some(mut entry) = self.seen.first_entry()
        {
            let mut members = Vec::new();
            bytes += entry.key().len();
            while room > 0
                && bytes < NAMED_BYTES_MAX
                && let Some(member_id) = entry.get_mut().pop_first()
            {
                members.push(member_id.to_string());
                room -= 1;
                bytes += member_id.len();
            }
            let group_id = entry.key().to_string();
            if entry.get().is_empty() {
                entry.remove();
            }
            groups.push((group_id, members));
        }
        (!groups.is_empty()).then_some(Op::HeartbeatConsumer(HeartbeatConsumer::Seen { groups }))
    }

    fn advance_clock(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    fn forget_group(&mut self, group_id: &str) {
        self.seen.remove(group_id);
        let Some(timers) = self.groups.remove(group_id) else { return };
        let of_members =
            timers.members.into_values().flat_map(|session| [session.session, session.revocation, session.sync]);
        let of_group = [timers.join.map(|join| join.timer), timers.sync.map(|sync| sync.timer), timers.assignment];
        for timer in of_members.chain(of_group).flatten() {
            self.stop_timer(timer);
        }
    }

    /// The group's own timers start anew.
    fn enter_phase(&mut self, key: &Arc<str>, timers: &mut GroupTimers, group: &TimedGroup<'_>) {
        let known_generation =
            matches!(&timers.sync, Some(sync) if timers.phase == Phase::Stable { since: sync.since });
        if let Some(join) = timers.join.take() {
            self.stop_timer(join.timer);
        }
        // Once the leader has assigned, those who never asked for their part are still due to.
        if !known_generation && let Some(sync) = timers.sync.take() {
            self.stop_timer(sync.timer);
        }
        match timers.phase {
            Phase::Joining { since } => {
                let initial = group.join_phase().filter(|phase| phase.initial_delay_ms > 0);
                let longest_ms = u64::from(group.longest_rebalance_timeout_ms());
                let wait_ms = initial.map_or(longest_ms, |phase| u64::from(phase.initial_delay_ms).min(longest_ms));
                let timer = self.start_timer(key, What::Join, wait_ms);
                let initial = initial.map(|phase| InitialDelay {
                    delay_ms: u64::from(phase.initial_delay_ms),
                    last_ms: self.now_ms.saturating_add(longest_ms),
                    arrivals: phase.arrivals,
                    counted: 1,
                });
                timers.join = Some(JoinTimer { timer, since, initial });
            }
            Phase::AwaitingSync { since } => {
                let timer = self.start_timer(key, What::Sync, u64::from(group.longest_rebalance_timeout_ms()));
                // Who was told an id and has not come back is no part of the generation.
                let missing = group
                    .timed_members()
                    .filter(|member_id| group.timed_member(member_id).is_some_and(|timed| !timed.pending))
                    .map(|member_id| Arc::from(member_id.as_str()))
                    .collect();
                timers.sync = Some(SyncTimer { timer, since, missing });
            }
            Phase::Stable { .. } => {
                // The group is stable because its leader has synced.
                if let (Some(sync), Some(leader)) = (&mut timers.sync, group.classic_leader()) {
                    sync.missing.remove(leader);
                }
                self.stop_sync_timer_if_all_came(timers);
            }
            Phase::Empty | Phase::Consumer { .. } => {}
        }
        for session in timers.members.values_mut() {
            session.waits_to_sync = false;
        }
    }

    /// One member's timers follow its state. `fresh`: the phase is new, so its session starts anew whether or not it was heard from.
    fn follow_member(
        &mut self,
        key: &Arc<str>,
        timers: &mut GroupTimers,
        group: &TimedGroup<'_>,
        member_id: &str,
        fresh: bool,
    ) {
        let Some(timed) = group.timed_member(member_id) else {
            if let Some(session) = timers.members.remove(member_id) {
                for timer in [session.session, session.revocation, session.sync].into_iter().flatten() {
                    self.stop_timer(timer);
                }
            }
            if let Some(seen) = self.seen.get_mut(key) {
                seen.remove(member_id);
            }
            if let Some(sync) = &mut timers.sync {
                sync.missing.remove(member_id);
            }
            self.stop_sync_timer_if_all_came(timers);
            return;
        };
        let member_key = timers
            .members
            .get_key_value(member_id)
            .map_or_else(|| Arc::from(member_id), |(member_key, _)| member_key.clone());
        let now_ms = self.now_ms;
        let before = timers.members.remove(&member_key);
        let known = before.is_some();
        let mut session = before.unwrap_or(MemberSession {
            heard_ms: now_ms,
            timed,
            waits_to_sync: false,
            session: None,
            revocation: None,
            sync: None,
        });
        let heard = !known || fresh || timed.last_seen > session.timed.last_seen;
        if heard {
            session.heard_ms = now_ms;
        }
        if timed.revoking != session.timed.revoking || !known {
            if let Some(timer) = session.revocation.take() {
                self.stop_timer(timer);
            }
            session.revocation = timed.revoking.map(|(_, timeout_ms)| {
                self.start_timer(key, What::Revocation(member_key.clone()), u64::from(timeout_ms))
            });
        }
        // Of a member that a new leader finds it cannot be told whether its SyncGroup came; one that comes later owes it.
        let owes_sync = !known && timers.observed.is_some();
        if timed.joined != session.timed.joined || owes_sync {
            if let Some(timer) = session.sync.take() {
                self.stop_timer(timer);
            }
            session.sync = timed.joined.map(|(_, timeout_ms)| {
                self.start_timer(key, What::MemberSync(member_key.clone()), u64::from(timeout_ms))
            });
        }
        let silent = timed.waits_to_join || session.waits_to_sync;
        let retimed = timed.session_timeout_ms != session.timed.session_timeout_ms;
        match session.session {
            Some(timer) if silent => {
                self.stop_timer(timer);
                session.session = None;
            }
            Some(timer) if heard || retimed => {
                self.move_timer(timer, session.heard_ms.saturating_add(u64::from(timed.session_timeout_ms)));
            }
            None if !silent => {
                let wait_ms = u64::from(timed.session_timeout_ms);
                session.session = Some(self.start_timer(key, What::Session(member_key.clone()), wait_ms));
            }
            _ => {}
        }
        session.timed = timed;
        timers.members.insert(member_key, session);
    }

    fn stop_sync_timer_if_all_came(&mut self, timers: &mut GroupTimers) {
        if let Some(sync) = timers.sync.take_if(|sync| sync.missing.is_empty()) {
            self.stop_timer(sync.timer);
        }
    }

    fn follow_assignment(&mut self, key: &Arc<str>, timers: &mut GroupTimers, group: &TimedGroup<'_>) {
        match (group.assignment_due(), timers.assignment) {
            (true, None) => {
                timers.assignment = Some(self.start_timer(key, What::Assignment, ASSIGNMENT_PATIENCE_MS));
            }
            (false, Some(timer)) => {
                self.stop_timer(timer);
                timers.assignment = None;
            }
            _ => {}
        }
    }

    fn expired_session(&self, group_id: &str, member_id: &str) -> Option<ExpiredMember> {
        let session = self.groups.get(group_id)?.members.get(member_id)?;
        Some(ExpiredMember {
            member_id: member_id.to_string(),
            last_seen: session.timed.last_seen,
            reason: if session.timed.pending { ExpiryReason::Pending } else { ExpiryReason::Session },
            silent_ms: self.now_ms.saturating_sub(session.heard_ms),
        })
    }

    fn expired_revocation(&self, group_id: &str, member_id: &str) -> Option<ExpiredMember> {
        let session = self.groups.get(group_id)?.members.get(member_id)?;
        let (since, _) = session.timed.revoking?;
        Some(self.late(session, member_id, since))
    }

    fn missing_sync(&self, group_id: &str, member_id: &str) -> Option<ExpiredMember> {
        let session = self.groups.get(group_id)?.members.get(member_id)?;
        let (joined_at, _) = session.timed.joined?;
        Some(self.late(session, member_id, joined_at))
    }

    fn missing_syncs(&self, group_id: &str) -> Vec<ExpiredMember> {
        let Some(timers) = self.groups.get(group_id) else { return Vec::new() };
        let Some(sync) = &timers.sync else { return Vec::new() };
        sync.missing
            .iter()
            .filter_map(|member_id| Some(self.late(timers.members.get(member_id)?, member_id, sync.since)))
            .collect()
    }

    fn late(&self, session: &MemberSession, member_id: &str, since: u64) -> ExpiredMember {
        ExpiredMember {
            member_id: member_id.to_string(),
            last_seen: since,
            reason: ExpiryReason::Rebalance,
            silent_ms: self.now_ms.saturating_sub(session.heard_ms),
        }
    }

    /// The join phase's timer ran out: while the initial delay is extended by members that keep coming, it goes on.
    fn join_phase_over(&mut self, group_id: &str, timer: u64, wall_ms: i64) -> Option<Op> {
        let now_ms = self.now_ms;
        let timers = self.groups.get_mut(group_id)?;
        let join = timers.join.as_mut()?;
        let since = join.since;
        if let Some(initial) = &mut join.initial
            && initial.arrivals > initial.counted
            && now_ms < initial.last_ms
        {
            Mark::InitialDelayExtended.reached();
            initial.counted = initial.arrivals;
            let due_ms = now_ms.saturating_add(initial.delay_ms).min(initial.last_ms);
            self.move_timer(timer, due_ms);
            return None;
        }
        let group_id = group_id.to_string();
        Some(Op::RebalancePartitions(RebalancePartitions::CompleteJoin { group_id, since, now_ms: wall_ms }))
    }

    fn start_timer(&mut self, group_id: &Arc<str>, what: What, wait_ms: u64) -> u64 {
        let number = self.next_timer;
        self.next_timer += 1;
        let due_ms = self.now_ms.saturating_add(wait_ms);
        self.timers.insert(number, Timer { due_ms, group_id: group_id.clone(), what });
        self.due.insert((due_ms, number));
        number
    }

    fn move_timer(&mut self, number: u64, due_ms: u64) {
        if let Some(timer) = self.timers.get_mut(&number) {
            self.due.remove(&(timer.due_ms, number));
            timer.due_ms = due_ms;
            self.due.insert((due_ms, number));
        }
    }

    fn stop_timer(&mut self, number: u64) {
        if let Some(timer) = self.timers.remove(&number) {
            self.due.remove(&(timer.due_ms, number));
        }
    }
}
