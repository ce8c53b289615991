//! One member's way to its target assignment, as a pure function (KIP-848).
//!
//! A member first gives up what it must, then reaches the target epoch, then gets what the others have given up.

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::consumer::ConsumerMember;
use super::group::Target;
use crate::ids::TopicId;
use crate::op::TopicPartitions;

/// Partitions with the epoch at which each was assigned.
pub(crate) type Owned = BTreeMap<TopicId, BTreeMap<u32, i32>>;

/// Where a member stands on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MemberState {
    /// It has all of the target that it knows of; the target may have moved on since.
    Stable,
    /// It must give up partitions, and stays at its epoch until it has.
    Unrevoked,
    /// It has reached the target's epoch, but others still hold some of its partitions.
    Unreleased,
}

/// A step of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reconciled {
    pub(crate) state: MemberState,
    pub(crate) epoch: i32,
    pub(crate) assigned: Owned,
    pub(crate) revoking: Owned,
}

/// The next step of `member` towards `target`, or `None` when it stays as it is.
///
/// `owned` is what it reports to own with this request, if it does. `is_free` tells whether nobody else holds a partition.
pub(crate) fn reconcile(
    member: &ConsumerMember,
    target_epoch: i32,
    target: &Target,
    owned: Option<&[TopicPartitions]>,
    is_free: impl Fn(TopicId, u32) -> bool,
) -> Option<Reconciled> {
    if member.is_away() {
        return None;
    }
    match member.state {
        MemberState::Stable if member.epoch == target_epoch => return None,
        MemberState::Unrevoked if owns_any(owned, &member.revoking) => return None,
        _ => {}
    }
    let mut assigned = Owned::new();
    let mut revoking = Owned::new();
    for (topic_id, partitions) in &member.assigned {
        let target = target.get(topic_id).map_or(&[][..], |partitions| partitions.as_slice());
        for (partition, epoch) in partitions {
            let side = if target.binary_search(partition).is_ok() { &mut assigned } else { &mut revoking };
            side.entry(*topic_id).or_default().insert(*partition, *epoch);
        }
    }
    if !revoking.is_empty() && owns_any(owned, &revoking) {
        return changed(member, Reconciled { state: MemberState::Unrevoked, epoch: member.epoch, assigned, revoking });
    }
    let mut unreleased = false;
    for (topic_id, partitions) in target {
        for partition in partitions {
            if assigned.get(topic_id).is_some_and(|assigned| assigned.contains_key(partition)) {
                continue;
            }
            if is_free(*topic_id, *partition) {
                assigned.entry(*topic_id).or_default().insert(*partition, target_epoch);
            } else {
                unreleased = true;
            }
        }
    }
    let state = if unreleased { MemberState::Unreleased } else { MemberState::Stable };
    changed(member, Reconciled { state, epoch: target_epoch, assigned, revoking: Owned::new() })
}

fn changed(member: &ConsumerMember, step: Reconciled) -> Option<Reconciled> {
    let same = member.state == step.state
        && member.epoch == step.epoch
        && member.assigned == step.assigned
        && member.revoking == step.revoking;
    (!same).then_some(step)
}

/// Does it, by its report, own any of these? Without a report it must be taken to.
pub(crate) fn owns_any(owned: Option<&[TopicPartitions]>, partitions: &Owned) -> bool {
    let Some(owned) = owned else { return !partitions.is_empty() };
    owned.iter().any(|topic| {
        partitions
            .get(&topic.topic_id)
            .is_some_and(|partitions| topic.partitions.iter().any(|partition| partitions.contains_key(partition)))
    })
}

/// Is all that it reports to own part of `assigned`? Without a report the answer is no.
pub(crate) fn owns_only(owned: Option<&[TopicPartitions]>, assigned: &Owned) -> bool {
    owned.is_some_and(|owned| {
        owned.iter().all(|topic| {
            topic
                .partitions
                .iter()
                .all(|partition| assigned.get(&topic.topic_id).is_some_and(|assigned| assigned.contains_key(partition)))
        })
    })
}
