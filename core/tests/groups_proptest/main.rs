//! Random ops on groups of both protocols, with every invariant checked after each: what no order of requests, losses,
//! repetitions, clock jumps and failovers may break.

#[path = "../groups/harness.rs"]
#[allow(dead_code, reason = "the named tests use more of it")]
mod harness;
mod steps;

use std::collections::BTreeMap;

use lockstep_core::op::{
    ClassicJoin, CommitOffset, CommitOffsets, ConfigureGroup, ConsumerHeartbeat, CreateTopic, DeleteGroup,
    DeleteOffsets, DeleteTopic, ExpireOffsets, ExpiredMember, ExpiryReason, HeartbeatConsumer, JoinConsumerGroup,
    LeaveConsumerGroup, RebalancePartitions, ResolveRegularExpression, UpdateMetadata,
};
use lockstep_core::reply::{CommitOutcome, HeartbeatReply};
use lockstep_core::view::{GroupState, GroupType, GroupView, HeartbeatCheck, MemberView};
use lockstep_core::{ClusterStateMachine, Effect, GroupError, Op, Position, Reply, SessionTable, ShardId};
use proptest::prelude::*;

use steps::{CommitStep, MEMBERS, Owned, Step, step};

use harness::{Parts, commit_of, heartbeat, new_member, parts, topic, topic_id, topic_partitions, topics};

/// Two replicas and the leader's timers.
struct World {
    state: ClusterStateMachine,
    twin: ClusterStateMachine,
    table: SessionTable,
    position: Position,
    now_ms: u64,
    history: Vec<Op>,
    /// Offsets by the model: the last commit that was accepted.
    committed: BTreeMap<(String, u8, u32), i64>,
    /// By the model: the index of the last op that was accepted of a member.
    heard: BTreeMap<(String, String), u64>,
    /// By the model: what each client of a consumer group holds. It takes what it is told, and has given up what it does not report.
    held: BTreeMap<(String, String), Parts>,
    /// By the model: what each member was assigned in each epoch or generation, whatever the group spoke then.
    assigned_in: BTreeMap<(String, i32), BTreeMap<String, Parts>>,
    fresh: u32,
    topics: u8,
}

fn group_name(group: u8) -> String {
    format!("group-{group}")
}

fn member_name(member: u8) -> String {
    format!("member-{member}")
}

fn instance_name(instance: Option<u8>) -> Option<String> {
    instance.map(|instance| format!("instance-{instance}"))
}

impl World {
    fn new() -> Self {
        let state = ClusterStateMachine::new(ShardId(0), 1);
        let mut world = Self {
            twin: state.clone(),
            table: SessionTable::start(&state, 1, 0),
            state,
            position: Position { term: 1, index: 0 },
            now_ms: 0,
            history: Vec::new(),
            committed: BTreeMap::new(),
            heard: BTreeMap::new(),
            held: BTreeMap::new(),
            assigned_in: BTreeMap::new(),
            fresh: 0,
            topics: 0,
        };
        for id in 1..4 {
            world.create_topic(id);
        }
        world
    }

    /// Groups with offsets to expire, found in as many looks as it takes.
    fn to_expire(&self, now_ms: i64, retention_ms: u64) -> Vec<String> {
        let mut groups = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let look = self.state.groups_to_expire(now_ms, retention_ms, after.as_deref(), 2);
            groups.extend(look.groups);
            after = look.last;
            if after.is_none() {
                return groups;
            }
        }
    }

    fn wall_ms(&self) -> i64 {
        harness::WALL_MS + self.now_ms as i64
    }

    fn create_topic(&mut self, id: u8) {
        self.topics += 1;
        self.apply(&Op::CreateTopic(CreateTopic {
            topic_id: topic_id(self.topics),
            name: topic(id),
            partitions: u32::from(id),
            configs: BTreeMap::new(),
        }));
    }

    /// Applies to both replicas and checks what must hold between the states before and after.
    fn apply(&mut self, op: &Op) -> Reply {
        self.position.index += 1;
        let before = self.views();
        let digest = self.state.digest();
        let applied = self.state.apply(self.position, op, 0).expect("no invariant breaks");
        let twin = self.twin.apply(self.position, op, 0).expect("no invariant breaks");
        assert_eq!(applied, twin);
        self.state.check_invariants().expect("invariants hold");
        assert_eq!(self.state.digest(), self.twin.digest(), "replicas agree");
        if removes_groups(op) {
            let state = &self.state;
            self.committed.retain(|(group_id, topic, partition), _| {
                state.committed_offset(group_id, topic_id(*topic), *partition).is_some()
            });
            self.assigned_in.retain(|(group_id, _), _| state.group(group_id).is_some());
        } else {
            self.epochs_go_on(&before);
        }
        self.an_epoch_has_one_assignment();
        if refused(&applied.reply) {
            self.refused_changes_nothing(op, &applied.reply, digest);
        }
        for effect in &applied.effects {
            if let Effect::GroupChanged { group_id } = effect {
                self.table.observe(&self.state, group_id, self.now_ms);
            }
        }
        if digest != self.state.digest() && commits(op).is_empty() && !touches_topics(op) {
            assert!(
                applied.effects.iter().any(|effect| matches!(effect, Effect::GroupChanged { .. })),
                "a change that nobody is told of: {op:?}"
            );
        }
        self.history.push(op.clone());
        self.model(op, &applied.reply, &before);
        applied.reply
    }

    /// What clients make of an answer, and what the answer had to be.
    fn model(&mut self, op: &Op, reply: &Reply, before: &BTreeMap<String, GroupView>) {
        let index = self.position.index;
        let heard = &mut self.heard;
        let mut hear = |group_id: &str, member_id: &str| {
            heard.insert((group_id.to_owned(), member_id.to_owned()), index);
        };
        match (op, reply) {
            (Op::JoinConsumerGroup(JoinConsumerGroup::Classic(join)), Reply::ClassicJoin(Ok(joined))) => {
                hear(&join.group_id, &joined.member_id);
            }
            (
                Op::RebalancePartitions(RebalancePartitions::Sync { group_id, member_id, generation, .. }),
                Reply::Sync(Ok(())),
            ) if before[group_id].group_type == GroupType::Classic => {
                assert_eq!(before[group_id].epoch, *generation, "a stale sync was taken");
                hear(group_id, member_id);
            }
            (
                Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(beat))
                | Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(beat)),
                Reply::Heartbeat(Ok(reply)),
            ) => {
                hear(&beat.group_id, &beat.member_id);
                self.client_hears(beat, reply);
            }
            (
                Op::RebalancePartitions(RebalancePartitions::Assign { group_id, member_id: Some(member_id), .. }),
                Reply::Heartbeat(Ok(reply)),
            ) => {
                hear(group_id, member_id);
                let held = self.held.entry((group_id.clone(), member_id.clone())).or_default();
                held.extend(reply.assignment.iter().flat_map(|told| parts(told)));
            }
            (Op::LeaveConsumerGroup(LeaveConsumerGroup::Consumer(beat)), Reply::Heartbeat(Ok(_))) => {
                self.held.remove(&(beat.group_id.clone(), beat.member_id.clone()));
            }
            (Op::CommitOffset(_) | Op::CommitOffsets(_), _) => {
                for (commit, outcomes) in commits(op).into_iter().zip(outcomes(reply)) {
                    if outcomes.is_ok() && classic_commit_taken(commit, before.get(&commit.group_id)) {
                        hear(&commit.group_id, &commit.member_id);
                    }
                    if let (Ok([Ok(())]), [offset]) = (outcomes.as_deref(), &commit.offsets[..]) {
                        self.committed.insert((commit.group_id.clone(), 3, offset.partition), offset.offset);
                    }
                }
            }
            (Op::HeartbeatConsumer(HeartbeatConsumer::Seen { groups }), _) => {
                for (group_id, member_ids) in groups {
                    for member_id in member_ids {
                        hear(group_id, member_id);
                    }
                }
            }
            (
                Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { group_id, term, members, .. }),
                Reply::Done(done),
            ) => {
                assert!(!done || *term == self.position.term, "an expiry of an earlier term");
                for member in members.iter().filter(|member| member.reason == ExpiryReason::Session) {
                    let known = |view: &GroupView| view.members.iter().any(|known| known.member_id == member.member_id);
                    let heard = self.heard.get(&(group_id.clone(), member.member_id.clone())).copied().unwrap_or(0);
                    if before.get(group_id).is_some_and(known) && heard > member.last_seen {
                        let after = self.state.group(group_id).expect("a group with a member");
                        assert!(known(&after) || members.len() > 1, "a member was heard from and expired");
                    }
                }
            }
            _ => {}
        }
        self.holders_are_apart();
    }

    /// A client has given up what it does not report, and takes what it is told.
    fn client_hears(&mut self, beat: &ConsumerHeartbeat, reply: &HeartbeatReply) {
        let held = self.held.entry((beat.group_id.clone(), beat.member_id.clone())).or_default();
        if let Some(owned) = &beat.owned {
            let owned = parts(owned);
            held.retain(|partition| owned.contains(partition));
        }
        held.extend(reply.assignment.iter().flat_map(|told| parts(told)));
    }

    /// Whatever clients were told and have not given up: nobody holds what another holds.
    fn holders_are_apart(&mut self) {
        let state = &self.state;
        self.held.retain(|(group_id, member_id), _| {
            state.group(group_id).is_some_and(|view| view.members.iter().any(|member| member.member_id == *member_id))
        });
        let mut holders: BTreeMap<(&str, u8, u32), &str> = BTreeMap::new();
        for ((group_id, member_id), held) in &self.held {
            for (topic, partition) in held {
                let other = holders.insert((group_id, *topic, *partition), member_id);
                assert_eq!(other, None, "{topic}-{partition} is held by {member_id} too");
            }
        }
    }

    fn views(&self) -> BTreeMap<String, GroupView> {
        self.state
            .groups()
            .into_iter()
            .map(|group| (group.group_id.clone(), self.state.group(&group.group_id).expect("a group that is listed")))
            .collect()
    }

    fn epochs_go_on(&self, before: &BTreeMap<String, GroupView>) {
        for (group_id, before) in before {
            let Some(after) = self.state.group(group_id) else {
                assert_eq!(before.epoch, 0, "{group_id} is forgotten with its epoch");
                continue;
            };
            assert!(after.epoch >= before.epoch, "the epoch of {group_id} went back");
            if after.group_type == GroupType::Consumer && before.group_type == GroupType::Consumer {
                assert!(after.assignment_epoch >= before.assignment_epoch);
                if after.epoch == before.epoch && after.assignment_epoch == before.assignment_epoch {
                    for member in &after.members {
                        let known = before.members.iter().find(|known| known.member_id == member.member_id);
                        assert!(known.is_none_or(|known| known.target == member.target), "an epoch has one assignment");
                    }
                }
                for member in &after.members {
                    let known = before.members.iter().find(|known| known.member_id == member.member_id);
                    assert!(
                        known
                            .is_none_or(|known| member.member_epoch >= known.member_epoch || member.member_epoch == -2),
                        "the epoch of {} went back",
                        member.member_id
                    );
                }
            }
        }
    }

    /// No epoch or generation is used twice: not by another assignment of the same protocol, and not by the other one after the group
    /// changed its protocol.
    fn an_epoch_has_one_assignment(&mut self) {
        for (group_id, view) in self.views() {
            let at_rest = match view.group_type {
                GroupType::Classic => view.state == GroupState::Stable,
                GroupType::Consumer => view.epoch == view.assignment_epoch,
            };
            if !at_rest {
                continue;
            }
            let known = self.assigned_in.entry((group_id.clone(), view.epoch)).or_default();
            for member in view.members {
                let assigned = match view.group_type {
                    GroupType::Classic => harness::assigned(&member.classic_assignment),
                    GroupType::Consumer => parts(&member.target),
                };
                let before = known.entry(member.member_id.clone()).or_insert_with(|| assigned.clone());
                assert_eq!(*before, assigned, "{} in epoch {} of {group_id}", member.member_id, view.epoch);
            }
        }
    }

    /// A refused request leaves everything as it was. Two refusals are more than that: a pending member is remembered, and
    /// one that does not fit into a group any more is dropped. An assignment is computed whoever waits for it.
    fn refused_changes_nothing(&self, op: &Op, reply: &Reply, digest: lockstep_core::Digest) {
        let more =
            matches!(reply, Reply::ClassicJoin(Err(GroupError::MemberIdRequired(_) | GroupError::GroupMaxSizeReached)));
        let assigns = matches!(op, Op::RebalancePartitions(RebalancePartitions::Assign { .. }));
        assert!(more || assigns || self.state.digest() == digest, "{op:?} was refused with {reply:?}");
    }

    /// A commit of an offset that no other commit has, whichever of an op it is.
    fn commit(&self, step: &CommitStep, nth: i64) -> CommitOffset {
        let CommitStep { group, member, epoch_off, partition } = step;
        let member_id = member.map_or_else(String::new, |member| self.member_of(*group, member));
        let epoch = if member.is_some() { self.epoch_of(*group, &member_id) + epoch_off } else { -1 };
        let offset = self.position.index as i64 * 8 + nth;
        CommitOffset { group_id: group_name(*group), ..commit_of(&member_id, epoch, &[(3, *partition)], offset) }
    }

    fn fresh_name(&mut self) -> String {
        self.fresh += 1;
        format!("fresh-{}", self.fresh)
    }

    fn member_of(&self, group: u8, member: u8) -> String {
        let ids: Vec<String> = self
            .state
            .group(&group_name(group))
            .map(|view| view.members.into_iter().map(|member| member.member_id).collect())
            .unwrap_or_default();
        // Mostly somebody who is there.
        ids.get(usize::from(member)).cloned().unwrap_or_else(|| member_name(member))
    }

    fn epoch_of(&self, group: u8, member_id: &str) -> i32 {
        self.state.group(&group_name(group)).map_or(0, |view| {
            view.members
                .iter()
                .find(|member| member.member_id == member_id)
                .map_or(view.epoch, |member| member.member_epoch)
        })
    }

    fn assigned_to(&self, group: u8, member_id: &str) -> Parts {
        self.state
            .group(&group_name(group))
            .and_then(|view| view.members.into_iter().find(|member| member.member_id == member_id))
            .map(|member| parts(&member.assigned))
            .unwrap_or_default()
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::ClassicJoin { group, member, known, instance, protocols, topics, eager, delay, require_id, max } => {
                let names = ["range", "roundrobin"];
                let ids: Vec<u8> = (1..4).filter(|id| topics & (1 << (id - 1)) != 0).collect();
                let owned =
                    if *eager { Parts::new() } else { self.assigned_to(*group, &self.member_of(*group, *member)) };
                // Now and then bytes that are no subscription.
                let metadata = if ids.len() == 2 { vec![*topics] } else { harness::subscription(&ids, &owned) };
                let protocols = names
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| protocols & (1 << i) != 0)
                    .map(|(_, name)| ((*name).to_owned(), metadata.clone()))
                    .collect();
                let fresh = self.fresh_name();
                self.apply(&Op::JoinConsumerGroup(JoinConsumerGroup::Classic(ClassicJoin {
                    group_id: group_name(*group),
                    member_id: if *known { self.member_of(*group, *member) } else { String::new() },
                    instance_id: instance_name(*instance),
                    protocols,
                    require_known_member_id: *require_id,
                    initial_rebalance_delay_ms: if *delay { 3_000 } else { 0 },
                    members_max: u32::from(*max),
                    ..new_member(&fresh)
                })));
            }
            Step::ClassicLeave { group, members } => {
                let members = members
                    .iter()
                    .map(|(member, instance)| {
                        (
                            member.map_or_else(String::new, |member| self.member_of(*group, member)),
                            instance_name(*instance),
                        )
                    })
                    .collect();
                self.apply(&Op::LeaveConsumerGroup(LeaveConsumerGroup::Classic {
                    group_id: group_name(*group),
                    members,
                    now_ms: self.wall_ms(),
                }));
            }
            Step::Sync { group, member, stale } => {
                let member_id = self.member_of(*group, *member);
                let generation = self.state.group(&group_name(*group)).map_or(0, |view| view.epoch) + stale;
                let reply = self.apply(&Op::RebalancePartitions(RebalancePartitions::Sync {
                    group_id: group_name(*group),
                    generation,
                    member_id: member_id.clone(),
                    instance_id: None,
                    protocol_type: None,
                    protocol_name: None,
                    assignments: (0..MEMBERS)
                        .map(|other| {
                            (
                                self.member_of(*group, other),
                                harness::assignment(&Parts::from([(3, u32::from(other) % 4)])),
                            )
                        })
                        .collect(),
                    now_ms: self.wall_ms(),
                }));
                if reply == Reply::Sync(Ok(())) {
                    self.table.synced(&group_name(*group), &member_id, generation, self.now_ms);
                }
            }
            Step::ConsumerJoin { group, member, instance, topics: ids, regex, range } => {
                let ids: Vec<u8> = (1..4).filter(|id| ids & (1 << (id - 1)) != 0).collect();
                let member_id = self.member_of(*group, *member);
                self.beat(
                    &ConsumerHeartbeat {
                        group_id: group_name(*group),
                        instance_id: instance_name(*instance),
                        rebalance_timeout_ms: 60_000,
                        subscribed_topic_names: Some(topics(&ids)),
                        subscribed_topic_regex: Some(if *regex { "t.*".to_owned() } else { String::new() }),
                        owned: Some(Vec::new()),
                        server_assignor: range.then(|| "range".to_owned()),
                        ..heartbeat(&member_id, 0)
                    },
                    true,
                );
            }
            Step::ConsumerBeat { group, member, epoch_off, owned, topics: ids, follow } => {
                let member_id = self.member_of(*group, *member);
                let assigned = self.assigned_to(*group, &member_id);
                let everything = (1..4).flat_map(|topic| (0..4).map(move |partition| (topic, partition))).collect();
                let owned = match owned {
                    Owned::Unsaid => None,
                    Owned::Nothing => Some(Parts::new()),
                    Owned::Assigned => Some(assigned),
                    Owned::Everything => Some(everything),
                };
                let ids = ids.map(|ids| (1..4).filter(|id| ids & (1 << (id - 1)) != 0).collect::<Vec<u8>>());
                let epoch = (self.epoch_of(*group, &member_id) + epoch_off).max(1);
                self.beat(
                    &ConsumerHeartbeat {
                        group_id: group_name(*group),
                        subscribed_topic_names: ids.map(|ids| topics(&ids)),
                        owned: owned.as_ref().map(topic_partitions),
                        ..heartbeat(&member_id, epoch)
                    },
                    *follow,
                );
            }
            Step::ConsumerLeave { group, member, instance, for_a_while } => {
                let member_id = self.member_of(*group, *member);
                self.apply(&Op::LeaveConsumerGroup(LeaveConsumerGroup::Consumer(ConsumerHeartbeat {
                    group_id: group_name(*group),
                    instance_id: instance_name(*instance),
                    ..heartbeat(&member_id, if *for_a_while { -2 } else { -1 })
                })));
            }
            Step::Assign { group, member } => {
                let member_id = member.map(|member| self.member_of(*group, member));
                self.assign(&group_name(*group), member_id);
            }
            Step::Commit(commit) => {
                let commit = self.commit(commit, 0);
                self.apply(&Op::CommitOffset(commit));
            }
            Step::Commits(commits) => {
                let commits = (0..).zip(commits).map(|(nth, commit)| self.commit(commit, nth)).collect();
                self.apply(&Op::CommitOffsets(CommitOffsets { commits }));
            }
            Step::DeleteGroup { group } => {
                let members = self.state.group(&group_name(*group)).map(|view| view.members.len());
                let reply = self.apply(&Op::DeleteGroup(DeleteGroup { group_id: group_name(*group) }));
                let expected = match members {
                    None => Err(GroupError::GroupNotFound),
                    Some(0) => Ok(()),
                    Some(_) => Err(GroupError::NonEmptyGroup),
                };
                assert_eq!(reply, Reply::Group(expected));
            }
            Step::DeleteOffsets { group, partition } => {
                let topics = topic_partitions(&Parts::from([(3, *partition)]));
                let group_id = group_name(*group);
                let reply = self.apply(&Op::DeleteOffsets(DeleteOffsets { group_id: group_id.clone(), topics }));
                let left = self.state.committed_offset(&group_id, topic_id(3), *partition);
                assert!(reply != Reply::Commit(Ok(vec![Ok(())])) || left.is_none());
            }
            Step::ExpireOffsets { retention_ms } => {
                let now_ms = self.wall_ms();
                let groups = self.to_expire(now_ms, *retention_ms);
                let any = !groups.is_empty();
                let op = ExpireOffsets { now_ms, retention_ms: *retention_ms, groups };
                assert_eq!(self.apply(&Op::ExpireOffsets(op)), Reply::Done(any));
                assert!(self.to_expire(now_ms, *retention_ms).is_empty(), "all at once");
            }
            Step::Configure { group, session_ms } => {
                let value = session_ms.map(|session_ms| session_ms.to_string());
                let changes = vec![("consumer.session.timeout.ms".to_owned(), value)];
                let op = Op::ConfigureGroup(ConfigureGroup { group_id: group_name(*group), changes });
                assert_eq!(self.apply(&op), Reply::Group(Ok(())));
            }
            Step::Resolve { group, topics: ids, back } => {
                let directory = self.state.directory();
                let mut topics: Vec<_> = (1..4)
                    .filter(|id| ids & (1 << (id - 1)) != 0)
                    .filter_map(|id| directory.topic(&topic(id)).map(|record| record.id))
                    .collect();
                topics.sort();
                self.apply(&Op::ResolveRegularExpression(ResolveRegularExpression {
                    group_id: group_name(*group),
                    regex: "t.*".to_owned(),
                    metadata_version: directory.version.saturating_sub(*back),
                    topics,
                    now_ms: self.wall_ms(),
                }));
            }
            Step::Seen { group, members } => {
                let mut members: Vec<String> = members.iter().map(|member| self.member_of(*group, *member)).collect();
                members.sort();
                members.dedup();
                let before = self.views();
                self.apply(&Op::HeartbeatConsumer(HeartbeatConsumer::Seen {
                    groups: vec![(group_name(*group), members)],
                }));
                assert_eq!(self.views(), before, "a sign of life changes nothing that anybody sees");
            }
            Step::StaleExpiry { group, member, back, old_term, reason } => {
                let member_id = self.member_of(*group, *member);
                self.apply(&Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired {
                    group_id: group_name(*group),
                    term: self.position.term - u64::from(*old_term),
                    members: vec![ExpiredMember {
                        member_id,
                        last_seen: self.position.index.saturating_sub(*back),
                        reason: [ExpiryReason::Session, ExpiryReason::Rebalance, ExpiryReason::Pending]
                            [usize::from(*reason)],
                        silent_ms: 1,
                    }],
                    now_ms: self.wall_ms(),
                }));
            }
            Step::StaleCompleteJoin { group, back } => {
                self.apply(&Op::RebalancePartitions(RebalancePartitions::CompleteJoin {
                    group_id: group_name(*group),
                    since: self.position.index.saturating_sub(*back),
                    now_ms: self.wall_ms(),
                }));
            }
            Step::Repeat { back } => {
                let Some(op) = self.history.len().checked_sub(*back).and_then(|at| self.history.get(at)).cloned()
                else {
                    return;
                };
                if touches_topics(&op) {
                    return;
                }
                self.apply(&op);
            }
            Step::Topic { id, change } => {
                let known = self.state.directory().topic(&topic(*id)).cloned();
                match (known, change) {
                    (None, _) => self.create_topic(*id),
                    (Some(record), 0) if *id != 3 => {
                        self.apply(&Op::DeleteTopic(DeleteTopic { topic_id: record.id }));
                    }
                    (Some(record), 1) => {
                        let partitions = record.partitions.len() as u32 + 1;
                        self.apply(&Op::UpdateMetadata(UpdateMetadata::AddPartitions {
                            topic_id: record.id,
                            partitions,
                        }));
                    }
                    _ => {}
                }
            }
            Step::Time { ms } => self.pass(*ms),
            Step::Failover { restore } => {
                let restored = ClusterStateMachine::restore(&self.state.snapshot()).expect("a snapshot is read back");
                assert_eq!(restored.digest(), self.state.digest());
                assert_eq!(restored.snapshot(), self.state.snapshot());
                if *restore {
                    self.state = restored;
                }
                self.position.term += 1;
                self.table = SessionTable::start(&self.state, self.position.term, self.now_ms);
            }
        }
        for ((group_id, topic, partition), offset) in &self.committed {
            let fetched = self.state.committed_offset(group_id, topic_id(*topic), *partition);
            assert_eq!(fetched.map(|fetched| fetched.offset), Some(*offset), "the last accepted commit is fetched");
        }
    }

    /// A heartbeat on its way; with `follow` to its end.
    fn beat(&mut self, op: &ConsumerHeartbeat, follow: bool) {
        let checked = self.state.check_consumer_heartbeat(op);
        if let (false, HeartbeatCheck::Answer(Ok(reply))) = (follow, &checked) {
            // As the leader does it: no op for what changes nothing.
            self.table.heartbeat(&op.group_id, &op.member_id, self.now_ms);
            self.client_hears(op, reply);
            self.holders_are_apart();
            return;
        }
        let before = self.views();
        let reply = match op.member_epoch {
            0 => self.apply(&Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(op.clone()))),
            _ => self.apply(&Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(op.clone()))),
        };
        let Reply::Heartbeat(outcome) = reply else { panic!("not a heartbeat's reply: {reply:?}") };
        if let HeartbeatCheck::Answer(answer) = checked {
            assert_eq!(answer, outcome, "what is answered from the state is what the op would have answered");
            assert_eq!(self.views(), before, "and the op would have changed nothing");
        }
        let due = outcome.is_ok_and(|reply| reply.assignment_due);
        if follow && due {
            self.assign(&op.group_id, Some(op.member_id.clone()));
        }
    }

    fn assign(&mut self, group_id: &str, member_id: Option<String>) {
        self.apply(&Op::RebalancePartitions(RebalancePartitions::Assign {
            group_id: group_id.to_owned(),
            member_id,
            now_ms: self.wall_ms(),
        }));
    }

    fn pass(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        let mut rounds = 0;
        while let Some(due_ms) = self.table.next_deadline().filter(|due_ms| *due_ms <= end_ms) {
            self.now_ms = self.now_ms.max(due_ms);
            for op in self.table.expired(self.now_ms, self.wall_ms()) {
                self.apply(&op);
            }
            rounds += 1;
            assert!(rounds < 1_000, "timers come to rest: {:?}", self.views());
        }
        self.now_ms = end_ms;
        if let Some(op) = self.table.take_seen() {
            self.apply(&op);
        }
    }

    /// Everybody falls silent: all groups end up empty, and no timer is left.
    fn all_fall_silent(&mut self) {
        self.pass(1_000_000);
        for (group_id, view) in self.views() {
            assert!(view.members.is_empty(), "{group_id} has silent members: {view:?}");
        }
        assert_eq!(self.table.next_deadline(), None);
    }

    /// A classic member of a consumer group does as it is told.
    fn follow_classic(&mut self, group_id: &str, member: &MemberView) {
        let checked = self.state.check_heartbeat(group_id, &member.member_id, None, member.member_epoch);
        if checked != Err(GroupError::RebalanceInProgress) {
            return;
        }
        // What it offered and subscribed to is not in the view: the protocols of the steps, in whatever combination it shares.
        let ids: Vec<u8> =
            member.subscribed_topic_names.iter().filter_map(|name| name.strip_prefix('t')?.parse().ok()).collect();
        let metadata = harness::subscription(&ids, &parts(&member.assigned));
        let both = ["range", "roundrobin"].map(|name| (name.to_owned(), metadata.clone()));
        self.apply(&Op::JoinConsumerGroup(JoinConsumerGroup::Classic(ClassicJoin {
            group_id: group_id.to_owned(),
            member_id: member.member_id.clone(),
            instance_id: member.instance_id.clone(),
            protocols: both.to_vec(),
            ..new_member("unused")
        })));
        self.assign(group_id, None);
    }

    /// All consumer groups come to rest when their members do as they are told.
    fn all_come_to_rest(&mut self) {
        for group in 0..3 {
            let Some(view) = self.state.group(&group_name(group)) else { continue };
            if view.group_type != GroupType::Consumer {
                continue;
            }
            let mut done = view.members.is_empty();
            for _ in 0..20 {
                if done {
                    break;
                }
                let view = self.state.group(&group_name(group)).expect("a group with members");
                for member in view.members {
                    if member.speaks_classic {
                        self.follow_classic(&group_name(group), &member);
                        continue;
                    }
                    // Whoever is away comes back.
                    let joins = member.member_epoch <= 0;
                    self.beat(
                        &ConsumerHeartbeat {
                            group_id: group_name(group),
                            rebalance_timeout_ms: 60_000,
                            subscribed_topic_names: Some(member.subscribed_topic_names.clone()),
                            owned: Some(if joins { Vec::new() } else { member.assigned.clone() }),
                            ..heartbeat(&member.member_id, member.member_epoch.max(0))
                        },
                        true,
                    );
                }
                done = self.state.group(&group_name(group)).expect("a group").state == GroupState::Stable;
            }
            assert!(done, "the group does not come to rest: {:?}", self.state.group(&group_name(group)));
        }
    }
}

/// May a group go, or its offsets, for another reason than that it has become meaningless?
/// The commits that an op consists of.
fn commits(op: &Op) -> Vec<&CommitOffset> {
    match op {
        Op::CommitOffset(commit) => vec![commit],
        Op::CommitOffsets(op) => op.commits.iter().collect(),
        _ => Vec::new(),
    }
}

/// The outcomes of the commits that were answered with this.
fn outcomes(reply: &Reply) -> Vec<&CommitOutcome> {
    match reply {
        Reply::Commit(outcome) => vec![outcome],
        Reply::Commits(outcomes) => {
            outcomes.iter().map(|outcome| outcome.as_ref().expect("a group of this shard")).collect()
        }
        other => panic!("not a commit's reply: {other:?}"),
    }
}

/// Checks that a commit which was taken is not a stale one; is it a sign of life of a classic group's member?
fn classic_commit_taken(commit: &CommitOffset, group: Option<&GroupView>) -> bool {
    let Some(group) = group.filter(|group| !group.members.is_empty()) else {
        assert!(commit.generation_or_epoch < 0, "a stale commit was taken");
        return false;
    };
    if group.group_type == GroupType::Classic {
        assert_eq!(commit.generation_or_epoch, group.epoch, "a stale commit was taken");
        return true;
    }
    let member = group.members.iter().find(|member| member.member_id == commit.member_id);
    assert!(member.is_some_and(|member| commit.generation_or_epoch <= member.member_epoch));
    false
}

fn removes_groups(op: &Op) -> bool {
    matches!(op, Op::DeleteGroup(_) | Op::DeleteOffsets(_) | Op::ExpireOffsets(_))
}

fn touches_topics(op: &Op) -> bool {
    matches!(op, Op::CreateTopic(_) | Op::DeleteTopic(_) | Op::UpdateMetadata(_))
}

fn refused(reply: &Reply) -> bool {
    match reply {
        Reply::ClassicJoin(outcome) => outcome.is_err(),
        Reply::ClassicLeave(outcome) => outcome.as_ref().map_or(true, |outcomes| outcomes.iter().all(Result::is_err)),
        Reply::Sync(outcome) => outcome.is_err(),
        Reply::Heartbeat(outcome) => outcome.is_err(),
        Reply::Commit(_) | Reply::Commits(_) => outcomes(reply).iter().all(|outcome| outcome.is_err()),
        Reply::Done(done) => !done,
        Reply::Group(outcome) => outcome.is_err(),
        _ => false,
    }
}

/// Some ten seconds' worth, or as many as the environment asks for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_ops_breaks_an_invariant(steps in proptest::collection::vec(step(), 1..120), silence in any::<bool>()) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        if silence {
            world.all_fall_silent();
        } else {
            world.all_come_to_rest();
        }
    }
}
