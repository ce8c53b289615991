//! The partitions that a shard hosts: offsets, epochs, and what producers wrote to them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::digest::{RowSum, kind};
use crate::directory::TopicRecord;
use crate::effect::Effect;
use crate::ids::{ShardId, TopicId};
use crate::op::{AdvanceLogStart, NewLogStart};
use crate::producers::Producers;
use crate::reply::{LogStartError, Reply};
use crate::view::PartitionView;
use lockstep_probe::{Mark, Mistake};

/// Epochs remembered of one partition.
pub(crate) const EPOCHS_MAX: usize = 1024;

/// Where an epoch's records begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochStart {
    pub(crate) epoch: i32,
    pub(crate) start_offset: i64,
}

/// One partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partition {
    pub(crate) log_start_offset: i64,
    pub(crate) next_offset: i64,
    /// Ascending in epoch and in offset. The first one starts where the log does, also when nothing is left of it.
    pub(crate) epochs: Vec<EpochStart>,
    /// The last compaction of its log.
    pub(crate) compaction: Compaction,
}

/// How far a partition is compacted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compaction {
    /// That of the last op 20; 0 before the first.
    pub(crate) revision: u64,
    /// Where the records begin that were in none.
    pub(crate) compacted_to: i64,
}

impl Partition {
    pub(crate) fn view(&self) -> PartitionView {
        PartitionView {
            log_start_offset: self.log_start_offset,
            next_offset: self.next_offset,
            last_epoch: self.epochs.last().map_or(-1, |last| last.epoch),
            compaction_revision: self.compaction.revision,
            compacted_to: self.compaction.compacted_to,
        }
    }

    /// KIP-101, with the answers of Kafka's `LeaderEpochFileCache::endOffsetFor`, except that an epoch above the last one is
    /// answered with the last one: an epoch in which nothing was appended is not listed here.
    pub(crate) fn end_offset_for_epoch(&self, leader_epoch: i32) -> Option<(i32, i64)> {
        let first = self.epochs.first()?;
        if leader_epoch < 0 {
            return None;
        }
        // The records of an epoch below the first one are gone.
        if leader_epoch < first.epoch {
            return Some((leader_epoch, first.start_offset));
        }
        let after = self.epochs.partition_point(|start| start.epoch <= leader_epoch);
        let found = self.epochs.get(after.checked_sub(1)?)?;
        Some((found.epoch, self.epochs.get(after).map_or(self.next_offset, |next| next.start_offset)))
    }
}

impl Partition {
    /// The first and the last epoch in which the record at `offset` may have been appended, and the offset before which that holds. They differ only
    /// where epochs in between were forgotten.
    pub(crate) fn epochs_at(&self, offset: i64) -> Option<(i32, i32, i64)> {
        if offset < self.log_start_offset || offset >= self.next_offset {
            return None;
        }
        let after = self.epochs.partition_point(|start| start.start_offset <= offset);
        let first = self.epochs.get(after.checked_sub(1)?)?;
        let next = self.epochs.get(after);
        let end = next.map_or(self.next_offset, |next| next.start_offset);
        let last = match next {
            Some(next) if after == 1 && self.epochs.len() >= EPOCHS_MAX => next.epoch - 1,
            _ => first.epoch,
        };
        Some((first.epoch, last, end))
    }
}

/// The partitions of one shard. A clone shares what is not changed afterwards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partitions {
    rows: BTreeMap<(TopicId, u32), Arc<Partition>>,
    pub(crate) producers: Producers,
    sum: RowSum,
}

impl Partitions {
    /// Makes those partitions of a topic that belong to `shard` and are not there yet.
    pub(crate) fn host(&mut self, shard: ShardId, topic: &TopicRecord, effects: &mut Vec<Effect>) {
        for (partition, host) in (0_u32..).zip(&topic.partitions) {
            let key = (topic.id, partition);
            if *host == shard && !self.rows.contains_key(&key) {
                self.insert(key, Partition::default());
                effects.push(Effect::CreatePartition { topic_id: topic.id, partition });
            }
        }
    }

    /// Drops whatever is hosted of a topic.
    pub(crate) fn drop_topic(&mut self, topic_id: TopicId, effects: &mut Vec<Effect>) {
        let partitions: Vec<u32> =
            self.rows.range((topic_id, 0)..=(topic_id, u32::MAX)).map(|((_, partition), _)| *partition).collect();
        for partition in partitions {
            if let Some(gone) = self.rows.remove(&(topic_id, partition)) {
                remove_rows(&mut self.sum, (topic_id, partition), &gone);
            }
            self.producers.drop_partition(topic_id, partition);
            effects.push(Effect::DropPartition { topic_id, partition });
        }
    }

    fn insert(&mut self, key: (TopicId, u32), partition: Partition) {
        add_rows(&mut self.sum, key, &partition);
        self.rows.insert(key, Arc::new(partition));
    }

    /// Moves a partition's end to `next_offset`, in `epoch`. The error is a broken invariant.
    pub(crate) fn extend(&mut self, key: (TopicId, u32), epoch: i32, next_offset: i64) -> Result<(), String> {
        let Some(partition) = self.rows.get_mut(&key) else {
            return Err(format!("partition {key:?} is not hosted"));
        };
        let partition = Arc::make_mut(partition);
        if next_offset <= partition.next_offset {
            return Err(format!("partition {key:?} would go from {} to {next_offset}", partition.next_offset));
        }
        match partition.epochs.last().copied() {
            Some(last) if last.epoch == epoch => {}
            Some(last) if last.epoch > epoch => {
                return Err(format!("partition {key:?} would go from epoch {} to {epoch}", last.epoch));
            }
            last => {
                // All records were deleted, those of this epoch too: it is remembered for its end only, which is where the next one starts.
                if let Some(gone) = last.filter(|last| last.start_offset == partition.next_offset) {
                    self.sum.remove(kind::EPOCH, &(key, gone.epoch), &gone.start_offset);
                    partition.epochs.pop();
                }
                // Only applied records are visible, so no log is ever cut at its end, and answering with a later end than an
                // epoch had misleads nobody. The first entry stays: what lies before it is taken to be gone.
                if partition.epochs.len() >= EPOCHS_MAX {
                    let forgotten = partition.epochs.remove(1);
                    self.sum.remove(kind::EPOCH, &(key, forgotten.epoch), &forgotten.start_offset);
                }
                let start = EpochStart { epoch, start_offset: partition.next_offset };
                self.sum.add(kind::EPOCH, &(key, start.epoch), &start.start_offset);
                partition.epochs.push(start);
            }
        }
        self.sum.remove(kind::PARTITION, &key, &(partition.log_start_offset, partition.next_offset));
        partition.next_offset = next_offset;
        self.sum.add(kind::PARTITION, &key, &(partition.log_start_offset, partition.next_offset));
        Ok(())
    }

    /// Op 19.
    pub(crate) fn apply_advance(&mut self, op: &AdvanceLogStart, effects: &mut Vec<Effect>) -> Reply {
        if op.partitions.len() > AdvanceLogStart::PARTITIONS_MAX {
            return Reply::Done(false);
        }
        let outcomes = op.partitions.iter().map(|wanted| self.advance_one(wanted, effects)).collect();
        Reply::LogStarts(outcomes)
    }

    fn advance_one(&mut self, wanted: &NewLogStart, effects: &mut Vec<Effect>) -> Result<i64, LogStartError> {
        let key = (wanted.topic_id, wanted.partition);
        let partition = self.get(key.0, key.1).ok_or(LogStartError::UnknownPartition)?;
        let (start, end) = (partition.log_start_offset, partition.next_offset);
        let start_offset = match wanted.offset {
            NewLogStart::END => end,
            offset if (0..=end).contains(&offset) => offset,
            _ => return Err(LogStartError::OutOfRange),
        };
        if start_offset <= start {
            return Ok(start);
        }
        if start_offset == end {
            Mark::LogEmptied.reached();
        }
        self.advance(key, start_offset);
        effects.push(Effect::TruncateBefore { topic_id: key.0, partition: key.1, start_offset });
        Ok(start_offset)
    }

    /// Moves a partition's start up to `start_offset`, which lies in the log or at its end. Epochs of which nothing is left go, as in Kafka's
    /// `LeaderEpochFileCache::truncateFromStart`: the one that covers the start begins there now, and the last one always stays.
    fn advance(&mut self, key: (TopicId, u32), start_offset: i64) {
        let Some(partition) = self.rows.get_mut(&key) else { return };
        let partition = Arc::make_mut(partition);
        let covering = partition.epochs.partition_point(|epoch| epoch.start_offset <= start_offset).saturating_sub(1);
        for gone in partition.epochs.drain(..covering) {
            self.sum.remove(kind::EPOCH, &(key, gone.epoch), &gone.start_offset);
        }
        if let Some(first) = partition.epochs.first_mut().filter(|first| first.start_offset < start_offset) {
            self.sum.remove(kind::EPOCH, &(key, first.epoch), &first.start_offset);
            first.start_offset = start_offset;
            self.sum.add(kind::EPOCH, &(key, first.epoch), &first.start_offset);
        }
        self.sum.remove(kind::PARTITION, &key, &(partition.log_start_offset, partition.next_offset));
        partition.log_start_offset = start_offset;
        self.sum.add(kind::PARTITION, &key, &(partition.log_start_offset, partition.next_offset));
    }

    /// Notes a compaction of a hosted partition's log.
    pub(crate) fn compacted(&mut self, key: (TopicId, u32), compaction: Compaction) {
        let Some(partition) = self.rows.get_mut(&key) else { return };
        let partition = Arc::make_mut(partition);
        remove_compaction(&mut self.sum, key, partition.compaction);
        partition.compaction = compaction;
        add_compaction(&mut self.sum, key, partition.compaction);
    }

    /// One partition.
    pub(crate) fn get(&self, topic_id: TopicId, partition: u32) -> Option<&Partition> {
        self.rows.get(&(topic_id, partition)).map(AsRef::as_ref)
    }

    /// Every partition, ascending.
    pub(crate) fn rows(&self) -> &BTreeMap<(TopicId, u32), Arc<Partition>> {
        &self.rows
    }

    /// Sum of the rows' hashes, producers included.
    pub(crate) fn sum(&self) -> u128 {
        self.sum.0.wrapping_add(self.producers.sum())
    }

    /// The table from its rows, as a snapshot lists them.
    pub(crate) fn from_rows(
        rows: Vec<((TopicId, u32), Partition)>,
        producers: Producers,
    ) -> Result<Self, &'static str> {
        let mut partitions = Self { producers, ..Self::default() };
        for (key, mut partition) in rows {
            if Mistake::RestoreForgetsLeaderEpochs.is_made() {
                partition.epochs.drain(..partition.epochs.len().saturating_sub(1));
            }
            if Mistake::RestoreForgetsLogStarts.is_made() {
                partition.log_start_offset = 0;
            }
            if partitions.rows.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err("partitions of a snapshot do not ascend");
            }
            partitions.insert(key, partition);
        }
        Ok(partitions)
    }

    /// The sum made anew from all rows, producers included.
    pub(crate) fn recomputed_sum(&self) -> u128 {
        let mut sum = RowSum::default();
        for (key, partition) in &self.rows {
            add_rows(&mut sum, *key, partition);
        }
        sum.0.wrapping_add(self.producers.recomputed_sum())
    }
}

fn add_rows(sum: &mut RowSum, key: (TopicId, u32), partition: &Partition) {
    sum.add(kind::PARTITION, &key, &(partition.log_start_offset, partition.next_offset));
    for start in &partition.epochs {
        sum.add(kind::EPOCH, &(key, start.epoch), &start.start_offset);
    }
    add_compaction(sum, key, partition.compaction);
}

fn remove_rows(sum: &mut RowSum, key: (TopicId, u32), partition: &Partition) {
    sum.remove(kind::PARTITION, &key, &(partition.log_start_offset, partition.next_offset));
    for start in &partition.epochs {
        sum.remove(kind::EPOCH, &(key, start.epoch), &start.start_offset);
    }
    remove_compaction(sum, key, partition.compaction);
}

/// A partition that was never compacted has no such row.
fn add_compaction(sum: &mut RowSum, key: (TopicId, u32), compaction: Compaction) {
    if compaction != Compaction::default() {
        sum.add(kind::COMPACTION, &key, &compaction);
    }
}

fn remove_compaction(sum: &mut RowSum, key: (TopicId, u32), compaction: Compaction) {
    if compaction != Compaction::default() {
        sum.remove(kind::COMPACTION, &key, &compaction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (TopicId, u32) = (TopicId([1; 16]), 0);

    #[test]
    fn a_partitions_end_and_epoch_never_go_back() {
        let mut partitions =
            Partitions::from_rows(alloc::vec![(KEY, Partition::default())], Producers::default()).unwrap();
        partitions.extend(KEY, 4, 10).unwrap();
        assert!(partitions.extend(KEY, 4, 10).is_err());
        assert!(partitions.extend(KEY, 3, 11).is_err());
        assert!(partitions.extend((KEY.0, 1), 4, 1).is_err());
        assert_eq!(partitions.get(KEY.0, 0).unwrap().next_offset, 10);
        assert_eq!(partitions.sum(), partitions.recomputed_sum());
    }

    fn epochs(partitions: &Partitions) -> Vec<(i32, i64)> {
        partitions.get(KEY.0, 0).unwrap().epochs.iter().map(|start| (start.epoch, start.start_offset)).collect()
    }

    fn advance(partitions: &mut Partitions, offset: i64) -> (Result<i64, LogStartError>, Vec<Effect>) {
        let mut effects = Vec::new();
        let wanted = NewLogStart { topic_id: KEY.0, partition: 0, offset };
        let reply = partitions.apply_advance(&AdvanceLogStart { partitions: alloc::vec![wanted] }, &mut effects);
        assert_eq!(partitions.sum(), partitions.recomputed_sum());
        let Reply::LogStarts(outcomes) = reply else { panic!("not the reply of op 19") };
        (outcomes[0], effects)
    }

    #[test]
    fn the_start_goes_up_to_the_end_and_never_back() {
        let mut partitions =
            Partitions::from_rows(alloc::vec![(KEY, Partition::default())], Producers::default()).unwrap();
        assert_eq!(advance(&mut partitions, NewLogStart::END), (Ok(0), Vec::new()));
        partitions.extend(KEY, 4, 10).unwrap();
        for wrong in [-2, i64::MIN, 11, i64::MAX] {
            assert_eq!(advance(&mut partitions, wrong), (Err(LogStartError::OutOfRange), Vec::new()), "{wrong}");
        }
        let effect = |start_offset| Effect::TruncateBefore { topic_id: KEY.0, partition: 0, start_offset };
        assert_eq!(advance(&mut partitions, 7), (Ok(7), alloc::vec![effect(7)]));
        for below in [0, 6, 7] {
            assert_eq!(advance(&mut partitions, below), (Ok(7), Vec::new()), "{below}");
        }
        assert_eq!(advance(&mut partitions, NewLogStart::END), (Ok(10), alloc::vec![effect(10)]));
        let gone = NewLogStart { topic_id: KEY.0, partition: 1, offset: 0 };
        let op = AdvanceLogStart { partitions: alloc::vec![gone] };
        let unknown = Reply::LogStarts(alloc::vec![Err(LogStartError::UnknownPartition)]);
        assert_eq!(partitions.apply_advance(&op, &mut Vec::new()), unknown);
    }

    #[test]
    fn epochs_below_the_start_go_and_the_last_one_stays() {
        let mut partitions =
            Partitions::from_rows(alloc::vec![(KEY, Partition::default())], Producers::default()).unwrap();
        for (epoch, end) in [(1, 10), (3, 20), (4, 30)] {
            partitions.extend(KEY, epoch, end).unwrap();
        }
        advance(&mut partitions, 10).0.unwrap();
        assert_eq!(epochs(&partitions), [(3, 10), (4, 20)]);
        advance(&mut partitions, 15).0.unwrap();
        assert_eq!(epochs(&partitions), [(3, 15), (4, 20)]);
        let end_of = |partitions: &Partitions, epoch| partitions.get(KEY.0, 0).unwrap().end_offset_for_epoch(epoch);
        assert_eq!(end_of(&partitions, 1), Some((1, 15)));
        assert_eq!(end_of(&partitions, 3), Some((3, 20)));
        advance(&mut partitions, NewLogStart::END).0.unwrap();
        assert_eq!(epochs(&partitions), [(4, 30)]);
        assert_eq!(end_of(&partitions, 4), Some((4, 30)));
        // The next epoch begins where the emptied one ended.
        partitions.extend(KEY, 6, 31).unwrap();
        assert_eq!(epochs(&partitions), [(6, 30)]);
        assert_eq!(end_of(&partitions, 4), Some((4, 30)));
        assert_eq!(end_of(&partitions, 6), Some((6, 31)));
        assert_eq!(partitions.sum(), partitions.recomputed_sum());
    }

    #[test]
    fn an_op_with_too_many_partitions_does_nothing() {
        let mut partitions =
            Partitions::from_rows(alloc::vec![(KEY, Partition::default())], Producers::default()).unwrap();
        partitions.extend(KEY, 1, 10).unwrap();
        let wanted = NewLogStart { topic_id: KEY.0, partition: 0, offset: 5 };
        let op = AdvanceLogStart { partitions: alloc::vec![wanted; AdvanceLogStart::PARTITIONS_MAX + 1] };
        let mut effects = Vec::new();
        assert_eq!(partitions.apply_advance(&op, &mut effects), Reply::Done(false));
        assert!(effects.is_empty());
        assert_eq!(partitions.get(KEY.0, 0).unwrap().log_start_offset, 0);
    }
}
