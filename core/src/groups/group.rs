//! One group: the protocol it speaks now, and its committed offsets.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::classic::ClassicGroup;
use super::consumer::ConsumerGroup;
use super::rows::Rows;
use super::table;
use crate::digest::row_hash;
use crate::directory::Directory;
use crate::ids::{Position, TopicId};
use crate::op::TopicPartitions;
use crate::reply::GroupError;

/// What an op is applied with, and what it leaves for the runtime to do.
pub(crate) struct Context<'a> {
    pub(super) directory: &'a Directory,
    pub(super) position: Position,
    /// Waiters or timers should look at the group.
    pub(super) changed: bool,
    /// The group epoch ran ahead of the target assignment.
    pub(super) assignment_needed: bool,
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
    /// The group's part of the digest.
    #[serde(skip)]
    pub(super) hash: u128,
}

impl Group {
    pub(super) fn classic(generation: i32) -> Self {
        Self { protocol: Protocol::Classic(ClassicGroup::new(generation)), offsets: Rows::default(), hash: 0 }
    }

    pub(super) fn consumer(epoch: i32) -> Self {
        Self { protocol: Protocol::Consumer(ConsumerGroup::new(epoch)), offsets: Rows::default(), hash: 0 }
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
            self.protocol = Protocol::Classic(ClassicGroup::new(group.epoch()));
        }
        match &mut self.protocol {
            Protocol::Classic(group) => Ok(group),
            Protocol::Consumer(_) => Err(GroupError::InconsistentProtocol),
        }
    }

    /// The consumer group for a joining member. An empty classic group is converted and keeps its epoch and offsets.
    pub(super) fn become_consumer(&mut self) -> Result<&mut ConsumerGroup, GroupError> {
        if let Protocol::Classic(group) = &self.protocol {
            if !group.members.is_empty() {
                return Err(GroupError::GroupNotFound);
            }
            self.protocol = Protocol::Consumer(ConsumerGroup::new(group.generation()));
        }
        match &mut self.protocol {
            Protocol::Consumer(group) => Ok(group),
            Protocol::Classic(_) => Err(GroupError::GroupNotFound),
        }
    }

    /// The hash of the group: of its head and of the sums of its tables.
    pub(super) fn hash_of(&self, group_id: &str) -> u128 {
        match &self.protocol {
            Protocol::Classic(group) => row_hash(
                table::CLASSIC_GROUP,
                &group_id,
                &(&group.head, group.members.sum(), group.pending.sum(), group.activity.sum(), self.offsets.sum()),
            ),
            Protocol::Consumer(group) => row_hash(
                table::CONSUMER_GROUP,
                &group_id,
                &(
                    &group.head,
                    group.members.sum(),
                    group.targets.sum(),
                    group.topics.sum(),
                    group.activity.sum(),
                    self.offsets.sum(),
                ),
            ),
        }
    }

    /// Derived indexes, after the group was read from a snapshot.
    pub(super) fn rebuild(&mut self, group_id: &str) {
        match &mut self.protocol {
            Protocol::Classic(group) => group.rebuild(),
            Protocol::Consumer(group) => group.rebuild(),
        }
        self.hash = self.hash_of(group_id);
    }
}

/// Partitions by topic, ascending.
pub(crate) type Target = BTreeMap<TopicId, alloc::vec::Vec<u32>>;

/// The same as it is told to clients.
pub(super) fn topic_partitions<'a, P: IntoIterator<Item = u32>>(
    by_topic: impl IntoIterator<Item = (&'a TopicId, P)>,
) -> alloc::vec::Vec<TopicPartitions> {
    by_topic
        .into_iter()
        .map(|(topic_id, partitions)| TopicPartitions {
            topic_id: *topic_id,
            partitions: partitions.into_iter().collect(),
        })
        .filter(|topic| !topic.partitions.is_empty())
        .collect()
}
