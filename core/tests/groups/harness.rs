//! A shard with its leader's timers, driven op by op, that checks itself after each.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::op::{
    ClassicJoin, CommitOffset, ConsumerHeartbeat, CreateTopic, DeleteTopic, HeartbeatConsumer, JoinConsumerGroup,
    LeaveConsumerGroup, OffsetToCommit, RebalancePartitions, TopicPartitions, UpdateMetadata,
};
use lockstep_core::reply::{ClassicJoined, HeartbeatReply};
use lockstep_core::view::{
    GroupState, GroupView, HeartbeatCheck, JoinProgress, JoinResult, MemberView, SyncProgress, SyncResult,
};
use lockstep_core::{
    ClusterStateMachine, Digest, Effect, GroupError, Op, Position, Reply, SessionTable, ShardId, TopicId,
};

pub(crate) const GROUP: &str = "g";
/// The wall clock when a test begins.
pub(crate) const WALL_MS: i64 = 1_700_000_000_000;
pub(crate) const SESSION_MS: u64 = 45_000;
pub(crate) const REBALANCE_MS: u64 = 60_000;

/// Partitions as (topic, partition).
pub(crate) type Parts = BTreeSet<(u8, u32)>;

pub(crate) struct Shard {
    pub(crate) state: ClusterStateMachine,
    pub(crate) table: SessionTable,
    pub(crate) position: Position,
    pub(crate) now_ms: u64,
    /// Effects of the last op.
    pub(crate) effects: Vec<Effect>,
}

impl Shard {
    pub(crate) fn new() -> Self {
        let state = ClusterStateMachine::new(ShardId(0), 1);
        let table = SessionTable::start(&state, 1, 0);
        Self { state, table, position: Position { term: 1, index: 0 }, now_ms: 0, effects: Vec::new() }
    }

    /// A shard with topics "t1", "t2", … of so many partitions.
    pub(crate) fn with_topics(partitions: &[u32]) -> Self {
        let mut shard = Self::new();
        for (id, count) in (1_u8..).zip(partitions) {
            shard.create_topic(id, *count);
        }
        shard
    }

    pub(crate) fn create_topic(&mut self, id: u8, partitions: u32) {
        self.create_named(id, &topic(id), partitions);
    }

    pub(crate) fn create_named(&mut self, id: u8, name: &str, partitions: u32) {
        self.apply(&Op::CreateTopic(CreateTopic {
            topic_id: topic_id(id),
            name: name.to_owned(),
            partitions,
            configs: BTreeMap::new(),
        }));
    }

    pub(crate) fn add_partitions(&mut self, id: u8, partitions: u32) {
        self.apply(&Op::UpdateMetadata(UpdateMetadata::AddPartitions { topic_id: topic_id(id), partitions }));
    }

    pub(crate) fn delete_topic(&mut self, id: u8) {
        self.apply(&Op::DeleteTopic(DeleteTopic { topic_id: topic_id(id) }));
    }

    /// Applies an op at the next position; timers follow.
    pub(crate) fn apply(&mut self, op: &Op) -> Reply {
        self.position.index += 1;
        let applied = self.state.apply(self.position, op, 0).expect("no invariant breaks");
        self.state.check_invariants().expect("invariants hold");
        for effect in &applied.effects {
            if let Effect::GroupChanged { group_id } = effect {
                self.table.observe(&self.state, group_id, self.now_ms);
            }
        }
        self.effects = applied.effects;
        applied.reply
    }

    /// Time passes; what the timers want is applied until they want nothing more. Gives the ops.
    pub(crate) fn pass(&mut self, ms: u64) -> Vec<Op> {
        let end_ms = self.now_ms + ms;
        let mut all = Vec::new();
        while let Some(due_ms) = self.table.next_deadline().filter(|due_ms| *due_ms <= end_ms) {
            self.now_ms = self.now_ms.max(due_ms);
            for op in self.table.expired(self.now_ms, self.wall_ms()) {
                self.apply(&op);
                all.push(op);
            }
        }
        self.now_ms = end_ms;
        all
    }

    /// Another leader takes over, from a snapshot.
    pub(crate) fn fail_over(&mut self) {
        let digest = self.state.digest();
        self.state = ClusterStateMachine::restore(&self.state.snapshot()).expect("a snapshot is read back");
        assert_eq!(self.state.digest(), digest);
        self.position.term += 1;
        self.table = SessionTable::start(&self.state, self.position.term, self.now_ms);
    }

    /// What the wall clock shows; it has nothing to do with the timers' clock but the pace.
    pub(crate) fn wall_ms(&self) -> i64 {
        WALL_MS + self.now_ms as i64
    }

    pub(crate) fn digest(&self) -> Digest {
        self.state.digest()
    }

    pub(crate) fn view(&self) -> GroupView {
        self.state.group(GROUP).expect("the group exists")
    }

    pub(crate) fn group_state(&self) -> GroupState {
        self.view().state
    }

    pub(crate) fn member(&self, member_id: &str) -> MemberView {
        self.find_member(member_id).expect("the member is in the group")
    }

    pub(crate) fn find_member(&self, member_id: &str) -> Option<MemberView> {
        self.view().members.into_iter().find(|member| member.member_id == member_id)
    }

    pub(crate) fn member_ids(&self) -> Vec<String> {
        self.view().members.into_iter().map(|member| member.member_id).collect()
    }

    // Classic protocol.

    pub(crate) fn join(&mut self, join: &ClassicJoin) -> Result<ClassicJoined, GroupError> {
        match self.apply(&Op::JoinConsumerGroup(JoinConsumerGroup::Classic(join.clone()))) {
            Reply::ClassicJoin(outcome) => outcome,
            other => panic!("not a join's reply: {other:?}"),
        }
    }

    pub(crate) fn joined(&self, ticket: &ClassicJoined) -> JoinResult {
        match self.state.join_progress(GROUP, &ticket.member_id, ticket.after_generation) {
            JoinProgress::Done(Ok(result)) => result,
            other => panic!("the join is not answered: {other:?}"),
        }
    }

    /// The leader's SyncGroup: everybody is assigned its own id.
    pub(crate) fn sync_leader(&mut self) -> Result<(), GroupError> {
        let view = self.view();
        let leader = view.leader.clone().expect("a leader");
        let assignments =
            view.members.iter().map(|member| (member.member_id.clone(), member.member_id.clone().into())).collect();
        let outcome = self.sync(&leader, view.epoch, assignments);
        self.table.synced(GROUP, &leader, view.epoch, self.now_ms);
        outcome
    }

    pub(crate) fn sync(
        &mut self,
        member_id: &str,
        generation: i32,
        assignments: Vec<(String, Vec<u8>)>,
    ) -> Result<(), GroupError> {
        let op = RebalancePartitions::Sync {
            group_id: GROUP.to_owned(),
            generation,
            member_id: member_id.to_owned(),
            instance_id: None,
            protocol_type: Some("consumer".to_owned()),
            protocol_name: None,
            assignments,
            now_ms: self.wall_ms(),
        };
        match self.apply(&Op::RebalancePartitions(op)) {
            Reply::Sync(outcome) => outcome,
            other => panic!("not a sync's reply: {other:?}"),
        }
    }

    pub(crate) fn synced(&self, member_id: &str) -> Result<SyncResult, GroupError> {
        match self.state.sync_progress(GROUP, member_id, self.view().epoch) {
            SyncProgress::Done(outcome) => outcome,
            SyncProgress::Waiting => panic!("the sync is not answered"),
        }
    }

    /// Every member's SyncGroup arrives, the leader's last.
    pub(crate) fn sync_all(&mut self) {
        let view = self.view();
        for member in &view.members {
            self.table.synced(GROUP, &member.member_id, view.epoch, self.now_ms);
        }
        self.sync_leader().expect("the leader's sync is taken");
    }

    /// Heartbeats as the broker answers them.
    pub(crate) fn classic_beat(&mut self, member_id: &str, generation: i32) -> Result<(), GroupError> {
        let outcome = self.state.check_heartbeat(GROUP, member_id, None, generation);
        if matches!(outcome, Ok(()) | Err(GroupError::RebalanceInProgress)) {
            self.table.heartbeat(GROUP, member_id, self.now_ms);
        }
        outcome
    }

    /// Members "a", "b", … join at once, and the group comes to rest.
    pub(crate) fn stable_classic_group(&mut self, members: &[&str]) -> Vec<ClassicJoined> {
        let tickets: Vec<ClassicJoined> = members
            .iter()
            .map(|member| {
                self.join(&ClassicJoin { initial_rebalance_delay_ms: 3_000, ..new_member(member) }).expect("joins")
            })
            .collect();
        // The delay is extended once, because members came during it.
        self.pass(6_000);
        self.sync_all();
        assert_eq!(self.group_state(), GroupState::Stable);
        tickets
    }

    pub(crate) fn leave(
        &mut self,
        members: &[(&str, Option<&str>)],
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        let op = LeaveConsumerGroup::Classic {
            group_id: GROUP.to_owned(),
            members: members.iter().map(|(id, instance)| ((*id).to_owned(), instance.map(ToOwned::to_owned))).collect(),
            now_ms: self.wall_ms(),
        };
        match self.apply(&Op::LeaveConsumerGroup(op)) {
            Reply::ClassicLeave(outcome) => outcome,
            other => panic!("not a leave's reply: {other:?}"),
        }
    }

    // Consumer protocol.

    /// A heartbeat on its whole way: from the applied state when nothing changes, else through the log.
    pub(crate) fn beat(&mut self, op: &ConsumerHeartbeat) -> Result<HeartbeatReply, GroupError> {
        if op.member_epoch > 0
            && let HeartbeatCheck::Answer(answer) = self.state.check_consumer_heartbeat(op)
        {
            if answer.is_ok() {
                self.table.heartbeat(GROUP, &op.member_id, self.now_ms);
            }
            return answer;
        }
        let reply = self.propose(op)?;
        if reply.assignment_due { self.assign(Some(&op.member_id)).expect("there is a member") } else { Ok(reply) }
    }

    /// The op of a heartbeat, without what follows it.
    pub(crate) fn propose(&mut self, op: &ConsumerHeartbeat) -> Result<HeartbeatReply, GroupError> {
        let op = match op.member_epoch {
            0 => Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(op.clone())),
            epoch if epoch < 0 => Op::LeaveConsumerGroup(LeaveConsumerGroup::Consumer(op.clone())),
            _ => Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(op.clone())),
        };
        match self.apply(&op) {
            Reply::Heartbeat(outcome) => outcome,
            other => panic!("not a heartbeat's reply: {other:?}"),
        }
    }

    pub(crate) fn assign(&mut self, member_id: Option<&str>) -> Option<Result<HeartbeatReply, GroupError>> {
        let op = RebalancePartitions::Assign {
            group_id: GROUP.to_owned(),
            member_id: member_id.map(ToOwned::to_owned),
            now_ms: self.wall_ms(),
        };
        match self.apply(&Op::RebalancePartitions(op)) {
            Reply::Heartbeat(outcome) => Some(outcome),
            Reply::Done(_) => None,
            other => panic!("not an assignment's reply: {other:?}"),
        }
    }

    /// A member joins "t1"; its reply.
    pub(crate) fn enter(&mut self, member_id: &str) -> HeartbeatReply {
        self.beat(&joining(member_id)).expect("joins")
    }

    /// One heartbeat of each member, which owns what it may.
    pub(crate) fn beat_each(&mut self, members: &[&str]) {
        for member_id in members {
            let member = self.member(member_id);
            let mut op = heartbeat(member_id, member.member_epoch);
            op.owned = Some(member.assigned.clone());
            self.beat(&op).expect("the heartbeat is in order");
        }
    }

    /// Members do as they are told until the group is at rest.
    pub(crate) fn settle(&mut self, members: &[&str]) {
        for _ in 0..10 {
            self.beat_each(members);
            if self.group_state() == GroupState::Stable {
                return;
            }
        }
        panic!("the group does not come to rest: {:?}", self.view());
    }

    /// What a member may own.
    pub(crate) fn owns(&self, member_id: &str) -> Parts {
        parts(&self.member(member_id).assigned)
    }

    // Classic members of a consumer group.

    /// JoinGroup on its whole way: the coordinator assigns when it has to.
    pub(crate) fn join_and_assign(&mut self, join: &ClassicJoin) -> Result<JoinResult, GroupError> {
        let ticket = self.join(join)?;
        if self.effects.iter().any(|effect| matches!(effect, Effect::AssignmentNeeded { .. })) {
            assert_eq!(
                self.state.join_progress(GROUP, &ticket.member_id, ticket.after_generation),
                JoinProgress::Waiting
            );
            self.assign(None);
        }
        match self.state.join_progress(GROUP, &ticket.member_id, ticket.after_generation) {
            JoinProgress::Done(outcome) => outcome,
            JoinProgress::Waiting => panic!("the join is not answered"),
        }
    }

    /// A follower's SyncGroup.
    pub(crate) fn sync_follower(&mut self, member_id: &str, generation: i32) -> Result<Parts, GroupError> {
        self.state.check_sync(GROUP, member_id, None, generation, Some("consumer"), None)?;
        self.table.synced(GROUP, member_id, generation, self.now_ms);
        match self.state.sync_progress(GROUP, member_id, generation) {
            SyncProgress::Done(outcome) => outcome.map(|synced| assigned(&synced.assignment)),
            SyncProgress::Waiting => panic!("the sync is not answered"),
        }
    }

    /// Classic consumers of "t1" join at once and share its partitions, the first the first half.
    pub(crate) fn stable_consumers(&mut self, members: &[(&str, &[(u8, u32)])]) {
        for (member_id, _) in members {
            self.join(&ClassicJoin { initial_rebalance_delay_ms: 3_000, ..consuming(member_id, false, &[]) })
                .expect("joins");
        }
        self.pass(6_000);
        let view = self.view();
        let leader = view.leader.clone().expect("a leader");
        let parts = members
            .iter()
            .map(|(member_id, parts)| ((*member_id).to_owned(), assignment(&parts.iter().copied().collect())))
            .collect();
        self.sync(&leader, view.epoch, parts).expect("taken");
        for (member_id, _) in members {
            self.table.synced(GROUP, member_id, view.epoch, self.now_ms);
        }
        assert_eq!(self.group_state(), GroupState::Stable);
    }

    // Offsets.

    pub(crate) fn commit(&mut self, commit: &CommitOffset) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        match self.apply(&Op::CommitOffset(commit.clone())) {
            Reply::Commit(outcome) => outcome,
            other => panic!("not a commit's reply: {other:?}"),
        }
    }

    pub(crate) fn fetched(&self, id: u8, partition: u32) -> Option<i64> {
        self.state.committed_offset(GROUP, topic_id(id), partition).map(|offset| offset.offset)
    }
}

pub(crate) fn topic_id(id: u8) -> TopicId {
    TopicId([id; 16])
}

pub(crate) fn topic(id: u8) -> String {
    format!("t{id}")
}

pub(crate) fn topics(ids: &[u8]) -> Vec<String> {
    ids.iter().map(|id| topic(*id)).collect()
}

pub(crate) fn parts(assignment: &[TopicPartitions]) -> Parts {
    assignment
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(|partition| (topic.topic_id.0[0], *partition)))
        .collect()
}

pub(crate) fn topic_partitions(parts: &Parts) -> Vec<TopicPartitions> {
    let mut topics: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
    for (topic, partition) in parts {
        topics.entry(*topic).or_default().push(*partition);
    }
    topics.into_iter().map(|(topic, partitions)| TopicPartitions { topic_id: topic_id(topic), partitions }).collect()
}

/// A JoinGroup of somebody new who will be called so.
pub(crate) fn new_member(fresh_member_id: &str) -> ClassicJoin {
    ClassicJoin {
        group_id: GROUP.to_owned(),
        member_id: String::new(),
        fresh_member_id: fresh_member_id.to_owned(),
        instance_id: None,
        client_id: "client".to_owned(),
        client_host: "host".to_owned(),
        session_timeout_ms: SESSION_MS as u32,
        rebalance_timeout_ms: REBALANCE_MS as u32,
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), b"subscription".to_vec())],
        require_known_member_id: false,
        initial_rebalance_delay_ms: 0,
        members_max: 1_000,
        now_ms: WALL_MS,
    }
}

/// A JoinGroup of a member that has its id.
pub(crate) fn rejoin(member_id: &str) -> ClassicJoin {
    ClassicJoin { member_id: member_id.to_owned(), ..new_member("unused") }
}

/// A JoinGroup of a static member's new process.
pub(crate) fn static_member(fresh_member_id: &str, instance_id: &str) -> ClassicJoin {
    ClassicJoin { instance_id: Some(instance_id.to_owned()), ..new_member(fresh_member_id) }
}

/// A heartbeat that says nothing new.
pub(crate) fn heartbeat(member_id: &str, member_epoch: i32) -> ConsumerHeartbeat {
    ConsumerHeartbeat {
        group_id: GROUP.to_owned(),
        member_id: member_id.to_owned(),
        member_epoch,
        instance_id: None,
        rack_id: None,
        rebalance_timeout_ms: -1,
        subscribed_topic_names: None,
        subscribed_topic_regex: None,
        server_assignor: None,
        owned: None,
        client_id: "client".to_owned(),
        client_host: "host".to_owned(),
        session_timeout_ms: SESSION_MS as u32,
        heartbeat_interval_ms: 5_000,
        members_max: 1_000,
        now_ms: WALL_MS,
    }
}

/// The first heartbeat of a member that subscribes to "t1".
pub(crate) fn joining(member_id: &str) -> ConsumerHeartbeat {
    ConsumerHeartbeat {
        rebalance_timeout_ms: REBALANCE_MS as i32,
        subscribed_topic_names: Some(topics(&[1])),
        owned: Some(Vec::new()),
        ..heartbeat(member_id, 0)
    }
}

/// The same of a static member.
pub(crate) fn joining_static(member_id: &str, instance_id: &str) -> ConsumerHeartbeat {
    ConsumerHeartbeat { instance_id: Some(instance_id.to_owned()), ..joining(member_id) }
}

/// A heartbeat that reports what the member owns.
pub(crate) fn owning(member_id: &str, member_epoch: i32, owned: &[(u8, u32)]) -> ConsumerHeartbeat {
    ConsumerHeartbeat {
        owned: Some(topic_partitions(&owned.iter().copied().collect())),
        ..heartbeat(member_id, member_epoch)
    }
}

/// A commit of one offset for partition 0 of "t1".
pub(crate) fn commit(member_id: &str, generation_or_epoch: i32, offset: i64) -> CommitOffset {
    commit_of(member_id, generation_or_epoch, &[(1, 0)], offset)
}

/// A commit of the same offset for several partitions.
pub(crate) fn commit_of(
    member_id: &str,
    generation_or_epoch: i32,
    partitions: &[(u8, u32)],
    offset: i64,
) -> CommitOffset {
    CommitOffset {
        group_id: GROUP.to_owned(),
        member_id: member_id.to_owned(),
        instance_id: None,
        generation_or_epoch,
        knows_epochs: true,
        now_ms: WALL_MS,
        offsets: partitions
            .iter()
            .map(|(topic, partition)| OffsetToCommit {
                topic_id: topic_id(*topic),
                partition: *partition,
                offset,
                leader_epoch: 1,
                metadata: String::new(),
            })
            .collect(),
    }
}

/// What a classic consumer says of itself: it subscribes to these topics and owns these partitions.
pub(crate) fn subscription(ids: &[u8], owned: &Parts) -> Vec<u8> {
    let mut bytes = vec![0, 1];
    bytes.extend((ids.len() as i32).to_be_bytes());
    for id in ids {
        name(&mut bytes, *id);
    }
    bytes.extend((-1_i32).to_be_bytes());
    named_partitions(&mut bytes, owned);
    bytes
}

/// The assignment that a classic leader makes for a member.
pub(crate) fn assignment(parts: &Parts) -> Vec<u8> {
    let mut bytes = vec![0, 1];
    named_partitions(&mut bytes, parts);
    bytes.extend((-1_i32).to_be_bytes());
    bytes
}

fn name(bytes: &mut Vec<u8>, id: u8) {
    bytes.extend((topic(id).len() as i16).to_be_bytes());
    bytes.extend(topic(id).bytes());
}

fn named_partitions(bytes: &mut Vec<u8>, parts: &Parts) {
    let topics = topic_partitions(parts);
    bytes.extend((topics.len() as i32).to_be_bytes());
    for topic in topics {
        name(bytes, topic.topic_id.0[0]);
        bytes.extend((topic.partitions.len() as i32).to_be_bytes());
        for partition in topic.partitions {
            bytes.extend(partition.to_be_bytes());
        }
    }
}

/// The partitions in what a classic member was assigned.
pub(crate) fn assigned(bytes: &[u8]) -> Parts {
    if bytes.is_empty() {
        return Parts::new();
    }
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let (mut at, mut parts) = (6, Parts::new());
    for _ in 0..number(2) {
        let len = usize::from(bytes[at + 1]);
        let id: u8 = std::str::from_utf8(&bytes[at + 3..at + 2 + len]).expect("a name").parse().expect("a number");
        at += 2 + len;
        let count = number(at);
        parts.extend((1..=count).map(|i| (id, number(at + 4 * i) as u32)));
        at += 4 + 4 * count;
    }
    parts
}

/// A JoinGroup of a classic consumer of "t1" that owns these partitions; with an id or, new, with one made for it.
pub(crate) fn consuming(member_id: &str, known: bool, owned: &[(u8, u32)]) -> ClassicJoin {
    let metadata = subscription(&[1], &owned.iter().copied().collect());
    let join = ClassicJoin { protocols: vec![("range".to_owned(), metadata)], ..new_member(member_id) };
    if known { ClassicJoin { member_id: member_id.to_owned(), ..join } } else { join }
}

pub(crate) fn with_metadata(join: ClassicJoin, metadata: &str) -> ClassicJoin {
    ClassicJoin { protocols: vec![("range".to_owned(), metadata.into())], ..join }
}

/// A stable group of static members "a" (leads, instance "one") and "b" (instance "two").
pub(crate) fn stable_static_group() -> Shard {
    let mut shard = Shard::with_topics(&[4]);
    shard.join(&static_member("a", "one")).expect("joins");
    shard.join(&static_member("b", "two")).expect("joins");
    shard.join(&ClassicJoin { instance_id: Some("one".to_owned()), ..rejoin("a") }).expect("rejoins");
    shard.sync_all();
    assert_eq!(shard.view().leader.as_deref(), Some("a"));
    shard
}

/// Two members that share the four partitions of "t1".
pub(crate) fn two_members() -> Shard {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    shard.enter("b");
    shard.settle(&["a", "b"]);
    assert_eq!(shard.owns("a").len(), 2);
    assert_eq!(shard.owns("b").len(), 2);
    shard
}

pub(crate) fn epoch(shard: &Shard, member_id: &str) -> i32 {
    shard.member(member_id).member_epoch
}
