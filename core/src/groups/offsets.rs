//! Committed offsets: who may commit, and what is kept.
//!
//! What is fetched is what the last accepted commit in log order said.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::classic::{ClassicGroup, ClassicState};
use super::group::{Context, Group, Offset, Protocol};
use crate::ids::{GROUP_AND_MEMBER_ID_BYTES_MAX, TopicId};
use crate::op::{CommitOffset, OffsetToCommit};
use crate::reply::{CommitOutcome, GroupError};
use lockstep_probe::{Mark, Mistake};

/// Kafka's default of `offset.metadata.max.bytes`. Kafka counts UTF-16 code units, whatever the name says.
const METADATA_UNITS_MAX: usize = 4096;

/// OffsetCommit. `slot` is the group, if there is one.
pub(super) fn commit(slot: &mut Option<Group>, cx: &mut Context<'_>, op: &CommitOffset) -> CommitOutcome {
    match slot {
        None if op.group_id.is_empty() && op.generation_or_epoch >= 0 => return Err(GroupError::InvalidGroupId),
        None if op.group_id.len() > GROUP_AND_MEMBER_ID_BYTES_MAX => return Err(GroupError::InvalidGroupId),
        None if op.generation_or_epoch < 0 => {
            // Whoever assigns partitions by itself commits without ever joining: the group is made of offsets only.
            *slot = Some(Group::classic(0));
        }
        None if op.knows_epochs => return Err(GroupError::GroupNotFound),
        None => return Err(GroupError::IllegalGeneration),
        Some(group) => check(group, op)?,
    }
    let Some(group) = slot else { return Err(GroupError::GroupNotFound) };
    let speaks_classic = match &group.protocol {
        Protocol::Classic(classic) => classic.members.contains_key(&op.member_id),
        Protocol::Consumer(consumer) => {
            consumer.members.get(&op.member_id).is_some_and(|member| member.classic.is_some())
        }
    };
    if speaks_classic {
        // A classic member's commit is a sign of life, as a heartbeat is.
        group.activity_mut().saw(&op.member_id, cx.position.index);
        cx.changed = true;
    }
    Ok(op.offsets.iter().map(|offset| store(group, cx, op.now_ms, offset)).collect())
}

fn check(group: &Group, op: &CommitOffset) -> Result<(), GroupError> {
    match &group.protocol {
        Protocol::Classic(classic) => check_classic(classic, op),
        Protocol::Consumer(consumer) => {
            if op.generation_or_epoch < 0 && consumer.members.is_empty() {
                return Ok(());
            }
            let member = consumer.members.get(&op.member_id).ok_or(GroupError::UnknownMember)?;
            if !op.knows_epochs && member.classic.is_none() {
                return Err(GroupError::UnsupportedVersion);
            }
            let partitions = op.offsets.iter().map(|offset| (offset.topic_id, offset.partition));
            consumer.check_commit(&op.member_id, op.generation_or_epoch, partitions)
        }
    }
}

fn check_classic(group: &ClassicGroup, op: &CommitOffset) -> Result<(), GroupError> {
    let empty = group.state() == ClassicState::Empty;
    if op.generation_or_epoch < 0 && empty {
        return Ok(());
    }
    if op.generation_or_epoch < 0 && op.member_id.is_empty() && op.instance_id.is_none() {
        return Err(GroupError::UnknownMember);
    }
    group.check_member(&op.member_id, op.instance_id.as_deref())?;
    if op.generation_or_epoch != group.generation() && !Mistake::CommitWithoutGenerationCheck.is_made() {
        Mark::StaleGenerationRefused.reached();
        return Err(GroupError::IllegalGeneration);
    }
    // The member knows its generation but cannot have its partitions yet: it is to finish the rebalance first.
    if group.state() == ClassicState::Completing {
        Mark::CommitDuringRebalanceRefused.reached();
        return Err(GroupError::RebalanceInProgress);
    }
    Ok(())
}

fn store(group: &mut Group, cx: &Context<'_>, now_ms: i64, offset: &OffsetToCommit) -> Result<(), GroupError> {
    let exists = cx
        .directory
        .topics
        .get(&offset.topic_id)
        .is_some_and(|topic| (offset.partition as usize) < topic.partitions.len());
    if !exists {
        return Err(GroupError::UnknownPartition);
    }
    // There are no more units than bytes: only long texts are counted.
    if offset.metadata.len() > METADATA_UNITS_MAX && offset.metadata.encode_utf16().count() > METADATA_UNITS_MAX {
        return Err(GroupError::OffsetMetadataTooLarge);
    }
    if offset.offset < 0 {
        return Err(GroupError::InvalidRequest("an offset must not be negative".to_string()));
    }
    group.offsets.insert(
        (offset.topic_id, offset.partition),
        Offset {
            offset: offset.offset,
            leader_epoch: offset.leader_epoch,
            metadata: offset.metadata.clone(),
            commit_time_ms: now_ms,
        },
    );
    Ok(())
}

/// Was anything committed for this topic?
pub(super) fn has_topic(group: &Group, topic_id: TopicId) -> bool {
    group.offsets.range((topic_id, 0)..=(topic_id, u32::MAX)).next().is_some()
}

/// A topic is gone, and with it what was committed for it.
pub(super) fn forget_topic(group: &mut Group, topic_id: TopicId) {
    let gone: Vec<(TopicId, u32)> =
        group.offsets.range((topic_id, 0)..=(topic_id, u32::MAX)).map(|(key, _)| *key).collect();
    for key in &gone {
        group.offsets.remove(key);
    }
}
