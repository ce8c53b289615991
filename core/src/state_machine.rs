//! The one door: `apply`.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::digest::{kind, row_hash};
use crate::directory::Directory;
use crate::effect::Effect;
use crate::groups::{Groups, SyncSender};
use crate::ids::{Position, ShardId, TopicId, shard_of_group};
use crate::invariants;
use crate::op::{
    ClassicJoin, CommitOffset, CommitOffsets, ConfigureGroup, ConsumerHeartbeat, CreateTopic, DeleteGroup,
    DeleteOffsets, DeleteTopic, HeartbeatConsumer, JoinConsumerGroup, LeaveConsumerGroup, Op, RebalancePartitions,
    ResolveRegularExpression, UpdateMetadata,
};
use crate::partitions::{Partition, Partitions};
use crate::reply::{CommitOutcome, GroupError, HeartbeatReply, Reply, TopicError};
use crate::topics::{Fed, Feed, TopicChange, Topics};
use crate::view::{
    CommittedOffset, GroupConfig, GroupListing, GroupRegex, GroupTimeline, GroupView, GroupsToExpire, HeartbeatCheck,
    JoinProgress, PartitionView, SyncProgress,
};

/// What `apply` returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// For the proposer.
    pub reply: Reply,
    /// For the runtime, on every replica.
    pub effects: Vec<Effect>,
}

/// A hash of the whole state; compare it only between replicas at equal positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

/// An invariant of ours does not hold: the shard must stop on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where.
    pub position: Position,
    /// State before the op.
    pub digest: Digest,
    /// Which invariant, and the values.
    pub message: String,
}

/// The state of one shard. A clone is cheap: it shares what is not changed afterwards, so that a snapshot can be made from
/// it while ops are applied.
#[derive(Clone, Debug)]
pub struct ClusterStateMachine {
    pub(crate) shard: ShardId,
    pub(crate) shard_count: u16,
    pub(crate) applied: Position,
    pub(crate) topics: Arc<Topics>,
    pub(crate) partitions: Partitions,
    pub(crate) groups: Groups,
}

/// The sums a digest is made of: cheap to take before each op, hashed only when somebody asks.
#[derive(Clone, Copy)]
struct DigestParts {
    rows: u128,
    counters: (u64, u64, u64, i64),
}

impl DigestParts {
    fn digest(self) -> Digest {
        Digest(self.rows.wrapping_add(row_hash(kind::COUNTERS, &(), &self.counters)))
    }
}

impl ClusterStateMachine {
    /// An empty state. `shard_count` ≥ 1 is the cluster's and never changes.
    #[must_use]
    pub fn new(shard: ShardId, shard_count: u16) -> Self {
        Self {
            shard,
            shard_count,
            applied: Position::default(),
            topics: Arc::default(),
            partitions: Partitions::default(),
            groups: Groups::default(),
        }
    }

    /// Applies one op. `payload_len` is the length of the entry's raw payload. Positions must ascend; an op at or below the last applied
    /// position is a violation. Never panics, whatever the op. After a violation the state is of no use.
    pub fn apply(&mut self, position: Position, op: &Op, payload_len: usize) -> Result<Applied, Violation> {
        let before = self.digest_parts();
        let mut effects = Vec::new();
        match self.apply_in_order(position, op, payload_len, &mut effects) {
            Ok(reply) => Ok(Applied { reply, effects }),
            Err(message) => Err(Violation { position, digest: before.digest(), message }),
        }
    }

    fn apply_in_order(
        &mut self,
        position: Position,
        op: &Op,
        payload_len: usize,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        if position.index <= self.applied.index || position.term < self.applied.term {
            return Err(format!("position {position:?} does not follow {:?}", self.applied));
        }
        self.applied = position;
        if op_group(op).is_some_and(|group_id| shard_of_group(group_id, self.shard_count) != self.shard) {
            return Ok(Reply::Done(false));
        }
        let directory = &self.topics.directory;
        match op {
            Op::CreateTopic(op) => self.apply_create_topic(position, op, effects),
            Op::DeleteTopic(op) => self.apply_delete_topic(position, op, effects),
            Op::AppendMessage(op) => self.partitions.apply_append(directory, position, op, payload_len, effects),
            Op::UpdateMetadata(op) => self.apply_update_metadata(position, op, effects),
            Op::RegisterBroker(_) | Op::UnregisterBroker(_) | Op::AllocateProducerIds(_) if !self.is_metadata() => {
                Ok(Reply::Done(false))
            }
            Op::RegisterBroker(op) => match self.topics_mut().register_broker(&op.broker)? {
                Some(changed) => Ok(self.brokers_reply(changed, effects)),
                None => Ok(Reply::Done(false)),
            },
            Op::UnregisterBroker(op) => {
                let changed = self.topics_mut().unregister_broker(op.node_id)?;
                Ok(self.brokers_reply(changed, effects))
            }
            Op::AllocateProducerIds(op) => Ok(match self.topics_mut().allocate_producer_ids(op.count) {
                Some(first) => Reply::ProducerIds { first },
                None => Reply::Done(false),
            }),
            Op::JoinConsumerGroup(op) => self.groups.apply_join(directory, position, op, effects),
            Op::LeaveConsumerGroup(op) => self.groups.apply_leave(directory, position, op, effects),
            Op::RebalancePartitions(op) => self.groups.apply_rebalance(directory, position, op, effects),
            Op::CommitOffset(op) => self.groups.apply_commit(directory, position, op, effects).map(Reply::Commit),
            Op::HeartbeatConsumer(op) => self.groups.apply_heartbeat(directory, position, op, effects),
            Op::DeleteGroup(op) => self.groups.apply_delete_group(directory, position, op, effects),
            Op::DeleteOffsets(op) => self.groups.apply_delete_offsets(directory, position, op, effects),
            Op::ExpireOffsets(op) => self.groups.apply_expire_offsets(directory, position, op, effects),
            Op::ConfigureGroup(op) => self.groups.apply_configure(directory, position, op, effects),
            Op::ResolveRegularExpression(op) => self.groups.apply_resolve(directory, position, op, effects),
            Op::CommitOffsets(op) => self.apply_commits(position, op, effects).map(Reply::Commits),
            Op::AdvanceLogStart(op) => Ok(self.partitions.apply_advance(op, effects)),
            Op::CompactLog(op) => Ok(self.partitions.apply_compact(position, op, effects)),
        }
    }

    fn topics_mut(&mut self) -> &mut Topics {
        Arc::make_mut(&mut self.topics)
    }

    fn is_metadata(&self) -> bool {
        self.shard == ShardId::METADATA
    }

    fn apply_create_topic(
        &mut self,
        position: Position,
        op: &CreateTopic,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        if !self.is_metadata() {
            return Ok(Reply::Topic(Err(TopicError::WrongShard)));
        }
        let shard_count = self.shard_count;
        Ok(Reply::Topic(match self.topics_mut().create(shard_count, op)? {
            Ok((record, made)) => {
                if made {
                    self.follow(position, &TopicChange { grown: vec![record.id], deleted: Vec::new() }, effects);
                }
                Ok(record)
            }
            Err(error) => Err(error),
        }))
    }

    fn apply_delete_topic(
        &mut self,
        position: Position,
        op: &DeleteTopic,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        if !self.is_metadata() {
            return Ok(Reply::Topic(Err(TopicError::WrongShard)));
        }
        let outcome = self.topics_mut().delete(op.topic_id)?;
        if let Ok(record) = &outcome {
            self.follow(position, &TopicChange { grown: Vec::new(), deleted: vec![record.id] }, effects);
        }
        Ok(Reply::Topic(outcome))
    }

    fn apply_update_metadata(
        &mut self,
        position: Position,
        op: &UpdateMetadata,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        let shard_count = self.shard_count;
        match op {
            UpdateMetadata::Feed { .. } if self.is_metadata() => Ok(Reply::Done(false)),
            UpdateMetadata::Feed { from_version, to_version, full, topics, deleted, brokers } => {
                let feed = Feed {
                    from_version: *from_version,
                    to_version: *to_version,
                    full: *full,
                    topics,
                    deleted,
                    brokers: brokers.as_deref(),
                };
                match self.topics_mut().feed(shard_count, &feed) {
                    Fed::Refused => return Ok(Reply::Done(false)),
                    Fed::OutOfTurn => {}
                    Fed::Changed(change) => self.follow(position, &change, effects),
                }
                Ok(Reply::Metadata { version: self.topics.directory.version })
            }
            UpdateMetadata::SetTopicConfigs { .. } | UpdateMetadata::AddPartitions { .. } if !self.is_metadata() => {
                Ok(Reply::Topic(Err(TopicError::WrongShard)))
            }
            UpdateMetadata::SetTopicConfigs { topic_id, configs } => {
                Ok(Reply::Topic(match self.topics_mut().set_configs(*topic_id, configs)? {
                    Ok((record, changed)) => {
                        if changed {
                            self.follow(position, &TopicChange::default(), effects);
                        }
                        Ok(record)
                    }
                    Err(error) => Err(error),
                }))
            }
            UpdateMetadata::AddPartitions { topic_id, partitions } => {
                let outcome = self.topics_mut().add_partitions(shard_count, *topic_id, *partitions)?;
                if let Ok(record) = &outcome {
                    self.follow(position, &TopicChange { grown: vec![record.id], deleted: Vec::new() }, effects);
                }
                Ok(Reply::Topic(outcome))
            }
        }
    }

    fn apply_commits(
        &mut self,
        position: Position,
        op: &CommitOffsets,
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<Option<CommitOutcome>>, String> {
        let directory = &self.topics.directory;
        let mut outcomes = Vec::with_capacity(op.commits.len());
        for commit in &op.commits {
            outcomes.push(if shard_of_group(&commit.group_id, self.shard_count) == self.shard {
                Some(self.groups.apply_commit(directory, position, commit, effects)?)
            } else {
                None
            });
        }
        // Nobody looks at a group before all is applied: once is enough, however many of the commits ask for it.
        let mut told = BTreeSet::new();
        let mut news = effects.iter().map(|effect| told.insert(effect)).collect::<Vec<_>>().into_iter();
        effects.retain(|_| news.next().unwrap_or(true));
        Ok(outcomes)
    }

    fn brokers_reply(&self, changed: bool, effects: &mut Vec<Effect>) -> Reply {
        let version = self.topics.directory.version;
        if changed {
            effects.push(Effect::DirectoryChanged { version });
        }
        Reply::Metadata { version }
    }

    /// The directory has changed: hosted partitions and groups follow it.
    fn follow(&mut self, position: Position, change: &TopicChange, effects: &mut Vec<Effect>) {
        for topic_id in &change.deleted {
            self.partitions.drop_topic(*topic_id, effects);
        }
        for topic_id in &change.grown {
            if let Some(topic) = self.topics.directory.topics.get(topic_id) {
                self.partitions.host(self.shard, topic, effects);
            }
        }
        let directory = &self.topics.directory;
        if !change.grown.is_empty() || !change.deleted.is_empty() {
            self.groups.topics_changed(directory, position, &change.grown, &change.deleted, effects);
        }
        effects.push(Effect::DirectoryChanged { version: directory.version });
    }

    fn digest_parts(&self) -> DigestParts {
        let rows = self.topics.sum().wrapping_add(self.partitions.sum()).wrapping_add(self.groups.digest());
        DigestParts { rows, counters: self.topics.counters() }
    }

    /// The shard's id.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Shards in the cluster.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.shard_count
    }

    /// Position of the last op applied.
    #[must_use]
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// Incremental digest of the state.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest_parts().digest()
    }

    /// Checks every invariant over the whole state; for tests, the simulator and debug builds.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        invariants::check(self).map_err(|message| Violation { position: self.applied, digest: self.digest(), message })
    }

    /// Topics and brokers.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.topics.directory
    }

    /// A partition hosted here.
    #[must_use]
    pub fn partition(&self, topic_id: TopicId, partition: u32) -> Option<PartitionView> {
        self.partitions.get(topic_id, partition).map(Partition::view)
    }

    /// All partitions hosted here, ascending.
    #[must_use]
    pub fn partitions(&self) -> Vec<(TopicId, u32, PartitionView)> {
        self.partitions.rows().iter().map(|((topic_id, partition), row)| (*topic_id, *partition, row.view())).collect()
    }

    /// KIP-101: the end offset of the largest epoch ≤ `leader_epoch`, as (epoch, end offset); `None` when unknown. An epoch below the
    /// first one that is known ends where that one starts.
    #[must_use]
    pub fn end_offset_for_epoch(&self, topic_id: TopicId, partition: u32, leader_epoch: i32) -> Option<(i32, i64)> {
        self.partitions.get(topic_id, partition)?.end_offset_for_epoch(leader_epoch)
    }

    /// The first and the last leader epoch in which the record at `offset` may have been appended, and the offset before which that holds; `None` outside of
    /// the log. They differ only where epochs were forgotten.
    #[must_use]
    pub fn epochs_at(&self, topic_id: TopicId, partition: u32, offset: i64) -> Option<(i32, i32, i64)> {
        self.partitions.get(topic_id, partition)?.epochs_at(offset)
    }

    /// A group with its members.
    #[must_use]
    pub fn group(&self, group_id: &str) -> Option<GroupView> {
        self.groups.group(group_id)
    }
    /// Whether there is such a group here, if only its committed offsets.
    #[must_use]
    pub fn has_group(&self, group_id: &str) -> bool {
        self.groups.contains(group_id)
    }
    /// Every group here.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupListing> {
        self.groups.groups()
    }
    /// One committed offset.
    #[must_use]
    pub fn committed_offset(&self, group_id: &str, topic_id: TopicId, partition: u32) -> Option<CommittedOffset> {
        self.groups.committed_offset(group_id, topic_id, partition)
    }
    /// All committed offsets of a group.
    #[must_use]
    pub fn committed_offsets(&self, group_id: &str) -> Vec<CommittedOffset> {
        self.groups.committed_offsets(group_id)
    }
    /// What is configured for a group, whether or not it exists.
    #[must_use]
    pub fn group_config(&self, group_id: &str) -> GroupConfig {
        self.groups.config(group_id)
    }
    /// Groups from which an [`crate::op::ExpireOffsets`] of these values would remove something: those whose ids follow `after`
    /// (`None`: from the first on), as far as one look goes. A look ends after about `rows_max` committed offsets and members, groups
    /// without any counting as one, so that `apply` never waits long for it.
    #[must_use]
    pub fn groups_to_expire(
        &self,
        now_ms: i64,
        retention_ms: u64,
        after: Option<&str>,
        rows_max: usize,
    ) -> GroupsToExpire {
        self.groups.to_expire(&self.topics.directory, now_ms, retention_ms, after, rows_max)
    }
    /// Does anybody in this group subscribe by this regular expression?
    #[must_use]
    pub fn group_knows_regex(&self, group_id: &str, regex: &str) -> bool {
        self.groups.knows_regex(group_id, regex)
    }
    /// What happened to a group lately. `None` if there is no such group.
    #[must_use]
    pub fn group_timeline(&self, group_id: &str) -> Option<GroupTimeline> {
        self.groups.timeline(group_id)
    }
    /// Regular expressions that members of this group subscribe to. The leader resolves those that are not resolved, and all again when
    /// topics came or went; it proposes [`crate::op::ResolveRegularExpression`] when they are told as not resolved, or the outcome differs.
    #[must_use]
    pub fn group_regexes(&self, group_id: &str) -> Vec<GroupRegex> {
        self.groups.regexes(&self.topics.directory, group_id)
    }
    /// Has this group a subscription by regular expression that was never resolved?
    #[must_use]
    pub fn has_unresolved_regexes(&self, group_id: &str) -> bool {
        self.groups.has_unresolved_regexes(group_id)
    }
    /// Groups with such subscriptions, ascending.
    #[must_use]
    pub fn groups_with_regexes(&self) -> Vec<String> {
        self.groups.with_regexes()
    }
    /// OffsetFetch v9+: is this member with this epoch allowed to ask? (Only asked when one is given.)
    pub fn check_offset_fetch(&self, group_id: &str, member_id: &str, member_epoch: i32) -> Result<(), GroupError> {
        self.groups.check_offset_fetch(group_id, member_id, member_epoch)
    }
    /// How far a JoinGroup is that was answered with this ticket.
    #[must_use]
    pub fn join_progress(&self, group_id: &str, member_id: &str, after_generation: i32) -> JoinProgress {
        self.groups.join_progress(group_id, member_id, after_generation)
    }
    /// How far a SyncGroup of this generation is.
    #[must_use]
    pub fn sync_progress(&self, group_id: &str, member_id: &str, generation: i32) -> SyncProgress {
        self.groups.sync_progress(&self.topics.directory, group_id, member_id, generation)
    }
    /// Follower's SyncGroup checks that need no op: errors as Kafka gives them.
    pub fn check_sync(
        &self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        protocol_type: Option<&str>,
        protocol_name: Option<&str>,
    ) -> Result<(), GroupError> {
        let sender = SyncSender { member_id, instance_id, generation, protocol_type, protocol_name };
        self.groups.check_sync(group_id, &sender)
    }
    /// Is this the member whose SyncGroup carries the assignment of a classic group?
    #[must_use]
    pub fn leads_classic_group(&self, group_id: &str, member_id: &str) -> bool {
        self.groups.leads_classic_group(group_id, member_id)
    }
    /// Classic Heartbeat, answered from the applied state.
    pub fn check_heartbeat(
        &self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        self.groups.check_heartbeat(group_id, member_id, instance_id, generation)
    }
    /// ConsumerGroupHeartbeat with epoch > 0: can it be answered from the applied state?
    #[must_use]
    pub fn check_consumer_heartbeat(&self, heartbeat: &ConsumerHeartbeat) -> HeartbeatCheck {
        self.groups.check_consumer_heartbeat(heartbeat)
    }
    /// After an assignment: what `member_id` would be answered now.
    pub fn heartbeat_reply(&self, group_id: &str, member_id: &str) -> Result<HeartbeatReply, GroupError> {
        self.groups.heartbeat_reply(group_id, member_id)
    }
}

/// The group an op is about, when it is about one only.
fn op_group(op: &Op) -> Option<&str> {
    match op {
        Op::JoinConsumerGroup(JoinConsumerGroup::Classic(ClassicJoin { group_id, .. }))
        | Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(ConsumerHeartbeat { group_id, .. }))
        | Op::LeaveConsumerGroup(
            LeaveConsumerGroup::Classic { group_id, .. }
            | LeaveConsumerGroup::Consumer(ConsumerHeartbeat { group_id, .. })
            | LeaveConsumerGroup::Expired { group_id, .. },
        )
        | Op::RebalancePartitions(
            RebalancePartitions::Sync { group_id, .. }
            | RebalancePartitions::CompleteJoin { group_id, .. }
            | RebalancePartitions::Assign { group_id, .. },
        )
        | Op::CommitOffset(CommitOffset { group_id, .. })
        | Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(ConsumerHeartbeat { group_id, .. }))
        | Op::DeleteGroup(DeleteGroup { group_id })
        | Op::DeleteOffsets(DeleteOffsets { group_id, .. })
        | Op::ConfigureGroup(ConfigureGroup { group_id, .. })
        | Op::ResolveRegularExpression(ResolveRegularExpression { group_id, .. }) => Some(group_id),
        Op::HeartbeatConsumer(HeartbeatConsumer::Seen { .. })
        | Op::ExpireOffsets(_)
        | Op::CommitOffsets(_)
        | Op::AdvanceLogStart(_)
        | Op::CompactLog(_)
        | Op::CreateTopic(_)
        | Op::DeleteTopic(_)
        | Op::AppendMessage(_)
        | Op::UpdateMetadata(_)
        | Op::RegisterBroker(_)
        | Op::UnregisterBroker(_)
        | Op::AllocateProducerIds(_) => None,
    }
}
