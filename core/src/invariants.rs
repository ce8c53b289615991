//! What must hold in every state, one function each. Those of groups stand beside the groups.

use alloc::format;
use alloc::string::String;

use crate::ids::ShardId;
use crate::state_machine::ClusterStateMachine;

/// All of them.
pub(crate) fn check(state: &ClusterStateMachine) -> Result<(), String> {
    shard_is_one_of_the_cluster(state)?;
    state.topics.check_invariants(state.shard_count)?;
    only_shard_0_counts(state)?;
    hosted_partitions_are_the_placed_ones(state)?;
    offsets_are_monotone(state)?;
    epochs_ascend(state)?;
    state.partitions.producers.check_invariants()?;
    producers_write_to_hosted_partitions(state)?;
    state.groups.check_invariants(&state.topics.directory)?;
    digest_is_that_of_the_rows(state)
}

fn shard_is_one_of_the_cluster(state: &ClusterStateMachine) -> Result<(), String> {
    if state.shard.0 >= state.shard_count {
        return Err(format!("{:?} of {} shards", state.shard, state.shard_count));
    }
    Ok(())
}

/// The counters of shard 0 and its memory of deletions are nowhere else.
fn only_shard_0_counts(state: &ClusterStateMachine) -> Result<(), String> {
    let topics = &state.topics;
    if state.shard != ShardId::METADATA
        && (topics.partitions_created, topics.next_producer_id, topics.directory.deleted.len()) != (0, 0, 0)
    {
        return Err(format!("{:?} keeps counters of shard 0", state.shard));
    }
    Ok(())
}

/// A shard hosts exactly the partitions that the directory places in it.
fn hosted_partitions_are_the_placed_ones(state: &ClusterStateMachine) -> Result<(), String> {
    let mut placed = 0;
    for topic in state.topics.directory.topics.values() {
        for (partition, shard) in (0_u32..).zip(&topic.partitions) {
            if *shard == state.shard {
                placed += 1;
                if state.partitions.get(topic.id, partition).is_none() {
                    return Err(format!("partition {}-{partition} is placed here and not hosted", topic.name));
                }
            }
        }
    }
    if placed != state.partitions.rows().len() {
        return Err(format!("{} partitions are hosted, {placed} are placed here", state.partitions.rows().len()));
    }
    Ok(())
}

/// 0 ≤ first offset ≤ next offset, and nothing is compacted that is not there yet.
fn offsets_are_monotone(state: &ClusterStateMachine) -> Result<(), String> {
    for (key, partition) in state.partitions.rows() {
        let compacted_to = partition.compaction.compacted_to;
        if !(0..=partition.next_offset).contains(&compacted_to) {
            return Err(format!(
                "partition {key:?} ends at {} and is compacted to {compacted_to}",
                partition.next_offset
            ));
        }
        if partition.log_start_offset < 0 || partition.next_offset < partition.log_start_offset {
            return Err(format!(
                "partition {key:?} runs from {} to {}",
                partition.log_start_offset, partition.next_offset
            ));
        }
    }
    Ok(())
}

/// Epochs ascend, each with at least one record unless all records were deleted; the first one starts where the log does or later, and none is
/// newer than the last op.
fn epochs_ascend(state: &ClusterStateMachine) -> Result<(), String> {
    for (key, partition) in state.partitions.rows() {
        for pair in partition.epochs.windows(2) {
            let [earlier, later] = pair else { continue };
            if later.epoch <= earlier.epoch || later.start_offset <= earlier.start_offset {
                return Err(format!("partition {key:?}: {later:?} does not follow {earlier:?}"));
            }
        }
        let first_is_legal = partition
            .epochs
            .first()
            .is_none_or(|first| first.epoch >= 0 && first.start_offset >= partition.log_start_offset);
        let is_emptied = partition.log_start_offset == partition.next_offset && partition.epochs.len() == 1;
        let last_is_legal = partition.epochs.last().is_none_or(|last| {
            (last.start_offset < partition.next_offset || is_emptied && last.start_offset == partition.next_offset)
                && u64::try_from(last.epoch).is_ok_and(|epoch| epoch <= state.applied.term)
        });
        let counted = partition.epochs.len() <= crate::partitions::EPOCHS_MAX
            && partition.epochs.is_empty() == (partition.next_offset == 0);
        if !first_is_legal || !last_is_legal || !counted {
            return Err(format!("partition {key:?} has illegal epochs"));
        }
    }
    Ok(())
}

/// A producer's batches lie in a partition hosted here, and were stored by an op that was applied.
fn producers_write_to_hosted_partitions(state: &ClusterStateMachine) -> Result<(), String> {
    for (key, producer) in state.partitions.producers.rows() {
        let Some(partition) = state.partitions.get(key.0, key.1) else {
            return Err(format!("producer {key:?} wrote to a partition that is not hosted"));
        };
        if producer.batches.last().is_some_and(|last| last.base_offset >= partition.next_offset)
            || producer.last_use.0 > state.applied.index
        {
            return Err(format!("producer {key:?} wrote beyond the partition's end"));
        }
    }
    Ok(())
}

/// The digest that is kept row by row is the one made anew from all rows.
fn digest_is_that_of_the_rows(state: &ClusterStateMachine) -> Result<(), String> {
    if state.topics.sum() != state.topics.recomputed_sum() {
        return Err(String::from("the directory's digest is not that of its rows"));
    }
    if state.partitions.sum() != state.partitions.recomputed_sum() {
        return Err(String::from("the partitions' digest is not that of their rows"));
    }
    Ok(())
}
