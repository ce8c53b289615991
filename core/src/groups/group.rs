//! One group: the protocol it speaks now, and its committed offsets.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::classic::{ClassicGroup, ClassicState, SyncSender};
use super::consumer::ConsumerGroup;
use super::rows::Rows;
use super::table;
use super::timeline::{Rebalance, Timeline, short};
use crate::digest::row_hash;
use crate::directory::Directory;
use crate::ids::{Position, TopicId};
use crate::op::{ExpiredMember, TopicPartitions};
use crate::reply::GroupError;
use crate::view::{GroupConfig, GroupEvent, GroupEventKind};
use lockstep_probe::{Mark, Mistake};

/// Where and when an op is applied.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(super) directory: &'a Directory,
    pub(super) position: Position,
    /// The proposer's wall clock, when the op carries it.
    pub(super) now_ms: Option<i64>,
}

/// What an op is applied with, and what it leaves for the runtime to do.
pub(crate) struct Context<'a> {
    pub(super) directory: &'a Directory,
    pub(super) position: Position,
    /// What is configured for the group.
    pub(super) config: GroupConfig,
    /// For the group's timeline.
    pub(super) events: Vec<GroupEventKind>,
    /// The group is to go, whatever it still knows.
    pub(super) forgotten: bool,
    /// Waiters or timers should look at the group.
    pub(super) changed: bool,
    /// The group epoch ran ahead of the target assignment.
    pub(super) assignment_needed: bool,
    /// Offsets are kept until regular expressions are resolved again.
    pub(super) resolution_needed: bool,
}

impl<'a> Context<'a> {
    pub(super) fn new(at: At<'a>, config: GroupConfig) -> Self {
        Self {
            directory: at.directory,
            position: at.position,
            config,
            events: Vec::new(),
            forgotten: false,
            changed: false,
            assignment_needed: false,
            resolution_needed: false,
        }
    }

    /// Something for the group's timeline.
    pub(super) fn note(&mut self, what: GroupEventKind) {
        self.events.push(what);
    }

    /// A member came.
    pub(super) fn note_joined(&mut self, member_id: &str, instance_id: Option<&str>, client_id: &str, host: &str) {
        self.events.push(GroupEventKind::Joined {
            member_id: short(member_id),
            instance_id: instance_id.map(short),
            client_id: short(client_id),
            client_host: short(host),
        });
    }

    /// A member was removed because its time was up.
    pub(super) fn note_expired(&mut self, expiry: &ExpiredMember) {
        let ExpiredMember { member_id, reason, silent_ms, .. } = expiry;
        self.events.push(GroupEventKind::Expired {
            member_id: short(member_id),
            reason: *reason,
            silent_ms: *silent_ms,
        });
    }

    /// The same of one member, by its id as the timeline keeps it.
    pub(super) fn note_member(&mut self, member_id: &str, what: impl FnOnce(String) -> GroupEventKind) {
        self.events.push(what(short(member_id)));
    }
}

/// The protocol a group speaks, with its members.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Protocol {
    Classic(ClassicGroup),
    Consumer(ConsumerGroup),
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offset {
    pub(super) offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) metadata: String,
    pub(super) commit_time_ms: i64,
}

/// Everything a shard knows of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(super) protocol: Protocol,
    pub(super) offsets: Rows<{ table::OFFSET }, (TopicId, u32), Offset>,
    /// When its last member went, by that op's wall clock; `None` while it has members, and when it never had any.
    pub(super) empty_since_ms: Option<i64>,
    pub(super) timeline: Timeline,
    /// The group's part of the digest.
    #[serde(skip)]
    pub(super) hash: u128,
}

impl Group {
    pub(super) fn classic(generation: i32) -> Self {
        Self::new(Protocol::Classic(ClassicGroup::new(generation)))
    }

    pub(super) fn consumer(epoch: i32) -> Self {
        Self::new(Protocol::Consumer(ConsumerGroup::new(epoch)))
    }

    fn new(protocol: Protocol) -> Self {
        Self { protocol, offsets: Rows::default(), empty_since_ms: None, timeline: Timeline::default(), hash: 0 }
    }

    /// What follows from an op for every group alike: its timeline, whether it is empty, and its hash.
    pub(super) fn conclude(&mut self, group_id: &str, at: At<'_>, cx: &mut Context<'_>, before: Before) {
        let epoch = self.epoch();
        for what in core::mem::take(&mut cx.events) {
            self.timeline.push(GroupEvent { index: at.position.index, at_ms: at.now_ms, epoch, what });
        }
        if self.members_len() > 0 {
            self.empty_since_ms = None;
        } else if before.members > 0 {
            self.empty_since_ms = at.now_ms;
            if Mistake::OffsetsForgottenWithLastMember.is_made() {
                self.offsets = Rows::default();
            }
        }
        let rebalances = match &self.protocol {
            Protocol::Classic(group) => matches!(group.state(), ClassicState::Preparing(_) | ClassicState::Completing),
            Protocol::Consumer(_) => epoch > before.epoch && self.members_len() > 0,
        };
        if rebalances {
            let since_ms = self.timeline.rebalance.and_then(|rebalance| rebalance.since_ms).or(at.now_ms);
            self.timeline.rebalance = Some(Rebalance { since_ms });
        }
        if let Some(rebalance) = self.timeline.rebalance
            && self.is_settled()
        {
            self.timeline.rebalance = None;
            if self.members_len() > 0 {
                let after_ms = rebalance.since_ms.zip(at.now_ms);
                let after_ms =
                    after_ms.map(|(since_ms, now_ms)| u64::try_from(now_ms.saturating_sub(since_ms)).unwrap_or(0));
                let what = GroupEventKind::Settled { after_ms };
                self.timeline.push(GroupEvent { index: at.position.index, at_ms: at.now_ms, epoch, what });
            }
        }
        self.hash = self.hash_of(group_id);
    }

    /// Everybody has what it is assigned.
    fn is_settled(&mut self) -> bool {
        match &mut self.protocol {
            Protocol::Classic(group) => matches!(group.state(), ClassicState::Empty | ClassicState::Stable),
            Protocol::Consumer(group) => group.is_settled(),
        }
    }

    pub(super) fn before(&self) -> Before {
        Before { epoch: self.epoch(), members: self.members_len() }
    }

    pub(super) fn members_len(&self) -> usize {
        match &self.protocol {
            Protocol::Classic(group) => group.members.len(),
            Protocol::Consumer(group) => group.members.len(),
        }
    }

    /// Generation (classic) or group epoch (consumer). It never goes back, also when the group changes its protocol.
    pub(super) fn epoch(&self) -> i32 {
        match &self.protocol {
            Protocol::Classic(group) => group.generation(),
            Protocol::Consumer(group) => group.epoch(),
        }
    }

    pub(super) fn activity(&self) -> &Activity {
        match &self.protocol {
            Protocol::Classic(group) => &group.activity,
            Protocol::Consumer(group) => &group.activity,
        }
    }

    pub(super) fn activity_mut(&mut self) -> &mut Activity {
        match &mut self.protocol {
            Protocol::Classic(group) => &mut group.activity,
            Protocol::Consumer(group) => &mut group.activity,
        }
    }

    /// No members; in a classic group none pending either.
    pub(super) fn has_no_members(&self) -> bool {
        match &self.protocol {
            Protocol::Classic(group) => group.members.is_empty() && group.pending.is_empty(),
            Protocol::Consumer(group) => group.members.is_empty(),
        }
    }

    /// Nothing would be lost with this group, not even an epoch that somebody was told.
    pub(super) fn is_vacant(&self) -> bool {
        self.has_no_members() && self.offsets.is_empty() && self.epoch() == 0
    }

    /// The classic group for a JoinGroup. An empty group of the other protocol is converted and keeps its epoch and offsets.
    pub(super) fn become_classic(&mut self) -> Result<&mut ClassicGroup, GroupError> {
        if let Protocol::Consumer(group) = &self.protocol {
            if !group.members.is_empty() {
                return Err(GroupError::InconsistentProtocol);
            }
            Mark::EmptyGroupChangedProtocol.reached();
            self.protocol = Protocol::Classic(ClassicGroup::new(group.epoch()));
        }
        match &mut self.protocol {
            Protocol::Classic(group) => Ok(group),
            Protocol::Consumer(_) => Err(GroupError::InconsistentProtocol),
        }
    }

    /// The consumer group for a joining member. A classic group without members is converted and keeps its epoch and offsets; one with
    /// members is for [`super::migration`].
    pub(super) fn become_consumer(&mut self) -> Result<&mut ConsumerGroup, GroupError> {
        if let Protocol::Classic(group) = &self.protocol {
            if !group.members.is_empty() {
                return Err(GroupError::GroupNotFound);
            }
            if group.generation() > 0 {
                Mark::EmptyGroupChangedProtocol.reached();
            }
            self.protocol = Protocol::Consumer(ConsumerGroup::new(group.generation()));
        }
        match &mut self.protocol {
            Protocol::Consumer(group) => Ok(group),
            Protocol::Classic(_) => Err(GroupError::GroupNotFound),
        }
    }

    /// SyncGroup, before anything is done for it.
    pub(super) fn check_sync(&self, sender: &SyncSender<'_>) -> Result<(), GroupError> {
        match &self.protocol {
            Protocol::Classic(group) => group.check_sync(sender),
            Protocol::Consumer(group) => group.check_classic_sync(sender),
        }
    }

    /// The hash of the group: of its head and of the sums of its tables.
    pub(super) fn hash_of(&self, group_id: &str) -> u128 {
        match &self.protocol {
            Protocol::Classic(group) => row_hash(
                table::CLASSIC_GROUP,
                &group_id,
                &(&group.head, group.members.sum(), group.pending.sum(), group.activity.sum(), self.hash_of_rest()),
            ),
            Protocol::Consumer(group) => row_hash(
                table::CONSUMER_GROUP,
                &group_id,
                &(
                    group.head.hashed(),
                    group.members.sum(),
                    group.targets.sum(),
                    group.topics.sum(),
                    group.regexes.sum(),
                    group.activity.sum(),
                    self.hash_of_rest(),
                ),
            ),
        }
    }

    /// What a group has whatever it speaks.
    fn hash_of_rest(&self) -> (u128, Option<i64>, (u128, Option<Rebalance>)) {
        (self.offsets.sum(), self.empty_since_ms, self.timeline.hashed())
    }

    /// Derived indexes, after the group was read from a snapshot.
    pub(super) fn rebuild(&mut self, group_id: &str) {
        match &mut self.protocol {
            Protocol::Classic(group) => group.rebuild(),
            Protocol::Consumer(group) => group.rebuild(),
        }
        self.timeline.rebuild();
        self.hash = self.hash_of(group_id);
    }
}

/// What an op found, for [`Group::conclude`].
#[derive(Clone, Copy, Default)]
pub(super) struct Before {
    pub(super) epoch: i32,
    pub(super) members: usize,
}

/// Partitions by topic, ascending.
pub(crate) type Target = BTreeMap<TopicId, Vec<u32>>;

/// The same as it is told to clients.
pub(super) fn topic_partitions<'a, P: IntoIterator<Item = u32>>(
    by_topic: impl IntoIterator<Item = (&'a TopicId, P)>,
) -> Vec<TopicPartitions> {
    by_topic
        .into_iter()
        .map(|(topic_id, partitions)| TopicPartitions {
            topic_id: *topic_id,
            partitions: partitions.into_iter().collect(),
        })
        .filter(|topic| !topic.partitions.is_empty())
        .collect()
}
