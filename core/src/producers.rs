//! What is remembered of idempotent producers (KIP-98), for each partition: enough to tell a new batch from a duplicate
//! and from one that comes too early.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::digest::{RowSum, kind};
use crate::ids::TopicId;
use crate::op::PartitionAppend;
use crate::reply::AppendError;
use lockstep_probe::{Mark, Mistake};

/// Batches remembered of one producer in one partition. Clients keep at most so many requests in flight
/// (`max.in.flight.requests.per.connection` ≤ 5 with idempotence), so no older batch is ever sent again.
pub(crate) const PRODUCER_BATCHES_MAX: usize = 5;

/// Producers, counted once for each partition, that one shard remembers. Beyond it the longest unused is forgotten, as if it had expired.
pub(crate) const PRODUCERS_MAX: usize = 65_536;

/// A producer in a partition: topic, partition index, producer id.
pub(crate) type ProducerKey = (TopicId, u32, i64);

/// Log index of the op that last stored a batch, and the batch's place among the op's appends. No two producers share one.
pub(crate) type LastUse = (u64, u32);

/// A batch that is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProducerBatch {
    pub(crate) first_sequence: i32,
    /// Below `first_sequence` when the sequence wrapped within the batch.
    pub(crate) last_sequence: i32,
    pub(crate) base_offset: i64,
    pub(crate) log_append_time_ms: Option<i64>,
}

/// One producer in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Producer {
    pub(crate) epoch: i16,
    /// The epoch's first batch here had sequence 0, so every sequence up to the last one is known to be in the log.
    pub(crate) whole: bool,
    pub(crate) last_use: LastUse,
    /// The last batches of the epoch, oldest first, at least one and at most [`PRODUCER_BATCHES_MAX`].
    pub(crate) batches: Vec<ProducerBatch>,
}

/// What a batch is, by its producer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sequenced {
    /// Its producer is not idempotent.
    Plain,
    /// The next one.
    Next,
    /// It is in the log already.
    Duplicate(ProducerBatch),
}

/// The producers of one partition by id.
type PartitionProducers = BTreeMap<i64, Arc<Producer>>;

/// The producers of one shard. A clone shares what is not changed afterwards.
#[derive(Clone, Debug)]
pub(crate) struct Producers {
    partitions: BTreeMap<(TopicId, u32), Arc<PartitionProducers>>,
    /// Every producer; the longest unused first.
    by_use: Arc<BTreeMap<LastUse, ProducerKey>>,
    sum: RowSum,
    rows_max: usize,
}

impl Default for Producers {
    fn default() -> Self {
        Self { partitions: BTreeMap::new(), by_use: Arc::default(), sum: RowSum::default(), rows_max: PRODUCERS_MAX }
    }
}

/// The sequence `count` places after `sequence`; sequences run from 0 to `i32::MAX` and start again at 0.
pub(crate) fn sequence_after(sequence: i32, count: u32) -> i32 {
    ((i64::from(sequence) + i64::from(count)) % (i64::from(i32::MAX) + 1)) as i32
}

impl Producers {
    /// Sorts a batch in, without changing anything.
    ///
    /// The rules are those of Kafka's `ProducerAppendInfo`: a duplicate is a batch whose first and last sequence are remembered;
    /// an older epoch is fenced; a newer epoch begins at sequence 0; within an epoch sequences follow without gaps; and a producer
    /// of which nothing is remembered may begin anywhere (KAFKA-5793, KIP-360: its state may have expired).
    /// One answer is more exact than Kafka's: a sequence that is known to be in the log, but no longer remembered, is
    /// `DuplicateSequence`, which clients take as success, instead of `OutOfOrderSequence`.
    pub(crate) fn check(&self, append: &PartitionAppend) -> Result<Sequenced, AppendError> {
        if append.producer_id == -1 {
            return Ok(Sequenced::Plain);
        }
        if append.producer_id < 0 || append.producer_epoch < 0 || append.base_sequence < 0 {
            return Err(AppendError::CorruptBatch);
        }
        let partition = self.partitions.get(&(append.topic_id, append.partition));
        let Some(producer) = partition.and_then(|producers| producers.get(&append.producer_id)) else {
            return Ok(Sequenced::Next);
        };
        if append.producer_epoch < producer.epoch {
            Mark::ProducerEpochFenced.reached();
            return Err(AppendError::InvalidProducerEpoch);
        }
        if append.producer_epoch > producer.epoch {
            return if append.base_sequence == 0 { Ok(Sequenced::Next) } else { Err(AppendError::OutOfOrderSequence) };
        }
        let last_sequence = sequence_after(append.base_sequence, append.offset_count.saturating_sub(1));
        let skipped =
            if Mistake::OnlyLastBatchRemembered.is_made() { producer.batches.len().saturating_sub(1) } else { 0 };
        for batch in producer.batches.iter().skip(skipped) {
            if (batch.first_sequence, batch.last_sequence) == (append.base_sequence, last_sequence) {
                Mark::DuplicateBatchRecognised.reached();
                return Ok(Sequenced::Duplicate(*batch));
            }
        }
        if let Some(last) = producer.batches.last()
            && append.base_sequence == sequence_after(last.last_sequence, 1)
        {
            return Ok(Sequenced::Next);
        }
        if let Some(oldest) = producer.batches.first()
            && producer.whole
            && append.base_sequence <= last_sequence
            && last_sequence < oldest.first_sequence
        {
            Mark::ForgottenDuplicateRecognised.reached();
            return Err(AppendError::DuplicateSequence);
        }
        Mark::OutOfOrderSequenceRefused.reached();
        Err(AppendError::OutOfOrderSequence)
    }

    /// Remembers a batch that [`Self::check`] called [`Sequenced::Next`] and that now is in the log.
    pub(crate) fn stored(
        &mut self,
        append: &PartitionAppend,
        last_use: LastUse,
        base_offset: i64,
        log_append_time_ms: Option<i64>,
    ) {
        let key = (append.topic_id, append.partition, append.producer_id);
        let batch = ProducerBatch {
            first_sequence: append.base_sequence,
            last_sequence: sequence_after(append.base_sequence, append.offset_count.saturating_sub(1)),
            base_offset,
            log_append_time_ms,
        };
        let by_use = Arc::make_mut(&mut self.by_use);
        let row = Arc::make_mut(self.partitions.entry((key.0, key.1)).or_default()).entry(key.2).or_insert_with(|| {
            Arc::new(Producer { epoch: append.producer_epoch, whole: false, last_use, batches: Vec::new() })
        });
        let producer = Arc::make_mut(row);
        if !producer.batches.is_empty() {
            self.sum.remove(kind::PRODUCER, &key, producer);
            by_use.remove(&producer.last_use);
        }
        if producer.epoch != append.producer_epoch {
            Mark::ProducerEpochRaised.reached();
            producer.epoch = append.producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.is_empty() {
            producer.whole = append.base_sequence == 0;
        }
        if producer.batches.len() >= PRODUCER_BATCHES_MAX {
            producer.batches.remove(0);
        }
        producer.batches.push(batch);
        producer.last_use = last_use;
        self.sum.add(kind::PRODUCER, &key, producer);
        by_use.insert(last_use, key);
        while self.by_use.len() > self.rows_max
            && let Some((_, longest_unused)) = Arc::make_mut(&mut self.by_use).pop_first()
        {
            self.forget(longest_unused);
        }
    }

    /// Removes a producer that is no longer in the order of use.
    fn forget(&mut self, key: ProducerKey) {
        let Some(producers) = self.partitions.get_mut(&(key.0, key.1)) else { return };
        let producers = Arc::make_mut(producers);
        if let Some(forgotten) = producers.remove(&key.2) {
            self.sum.remove(kind::PRODUCER, &key, &*forgotten);
        }
        if producers.is_empty() {
            self.partitions.remove(&(key.0, key.1));
        }
    }

    /// Forgets the producers of one partition.
    pub(crate) fn drop_partition(&mut self, topic_id: TopicId, partition: u32) {
        let Some(producers) = self.partitions.remove(&(topic_id, partition)) else { return };
        let by_use = Arc::make_mut(&mut self.by_use);
        for (producer_id, producer) in producers.iter() {
            self.sum.remove(kind::PRODUCER, &(topic_id, partition, *producer_id), &**producer);
            by_use.remove(&producer.last_use);
        }
    }

    /// Every producer, ascending by key.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (ProducerKey, &Producer)> {
        self.partitions.iter().flat_map(|((topic_id, partition), producers)| {
            producers.iter().map(|(producer_id, producer)| ((*topic_id, *partition, *producer_id), producer.as_ref()))
        })
    }

    /// Sum of the rows' hashes.
    pub(crate) fn sum(&self) -> u128 {
        self.sum.0
    }

    /// The table from its rows, as a snapshot lists them.
    pub(crate) fn from_rows(rows: Vec<(ProducerKey, Producer)>) -> Result<Self, &'static str> {
        let mut partitions: BTreeMap<(TopicId, u32), PartitionProducers> = BTreeMap::new();
        let mut by_use = BTreeMap::new();
        let mut sum = RowSum::default();
        let mut last = None;
        for (key, producer) in rows {
            if last.is_some_and(|last| last >= key) {
                return Err("producers of a snapshot do not ascend");
            }
            last = Some(key);
            if by_use.insert(producer.last_use, key).is_some() {
                return Err("two producers of a snapshot claim the same batch");
            }
            sum.add(kind::PRODUCER, &key, &producer);
            partitions.entry((key.0, key.1)).or_default().insert(key.2, Arc::new(producer));
        }
        let partitions = partitions.into_iter().map(|(key, producers)| (key, Arc::new(producers))).collect();
        Ok(Self { partitions, by_use: Arc::new(by_use), sum, rows_max: PRODUCERS_MAX })
    }

    /// Producers' batches ascend in offset and follow each other in sequence; the order of use names every producer once.
    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        let count: usize = self.partitions.values().map(|producers| producers.len()).sum();
        if count > self.rows_max || count != self.by_use.len() {
            return Err(format!("{count} producers, {} in order of use", self.by_use.len()));
        }
        for (key, producer) in self.rows() {
            if self.by_use.get(&producer.last_use) != Some(&key) {
                return Err(format!("producer {key:?} is missing in the order of use"));
            }
            if producer.batches.is_empty() || producer.batches.len() > PRODUCER_BATCHES_MAX {
                return Err(format!("producer {key:?} has {} batches", producer.batches.len()));
            }
            if key.2 < 0 || producer.epoch < 0 {
                return Err(format!("producer {key:?} has epoch {}", producer.epoch));
            }
            if producer
                .batches
                .iter()
                .any(|batch| batch.first_sequence < 0 || batch.last_sequence < 0 || batch.base_offset < 0)
            {
                return Err(format!("producer {key:?} has a negative sequence or offset"));
            }
            for pair in producer.batches.windows(2) {
                let [earlier, later] = pair else { continue };
                if later.base_offset <= earlier.base_offset
                    || later.first_sequence != sequence_after(earlier.last_sequence, 1)
                {
                    return Err(format!("producer {key:?}: {later:?} does not follow {earlier:?}"));
                }
            }
        }
        Ok(())
    }

    /// The sum made anew from all rows.
    pub(crate) fn recomputed_sum(&self) -> u128 {
        let mut sum = RowSum::default();
        for (key, producer) in self.rows() {
            sum.add(kind::PRODUCER, &key, producer);
        }
        sum.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(producer_id: i64, base_sequence: i32) -> PartitionAppend {
        PartitionAppend {
            topic_id: TopicId([1; 16]),
            partition: (producer_id % 2) as u32,
            payload_start: 0,
            payload_len: 100,
            offset_count: 1,
            producer_id,
            producer_epoch: 0,
            base_sequence,
            max_timestamp_ms: 0,
        }
    }

    #[test]
    fn the_longest_unused_producer_is_forgotten() {
        let mut producers = Producers { rows_max: 3, ..Producers::default() };
        for producer_id in 0..3 {
            producers.stored(&append(producer_id, 0), (1, producer_id as u32), 10 + producer_id, None);
        }
        // Producer 0 writes again, so that producer 1 is now the one that was silent longest.
        producers.stored(&append(0, 1), (2, 0), 20, None);
        producers.stored(&append(7, 0), (2, 1), 21, None);
        producers.check_invariants().unwrap();
        assert_eq!(producers.sum(), producers.recomputed_sum());
        let kept: Vec<i64> = producers.rows().map(|((_, _, producer_id), _)| producer_id).collect();
        assert_eq!(kept, [0, 2, 7]);
        // As if it had expired: it goes on with any sequence.
        assert_eq!(producers.check(&append(1, 1)), Ok(Sequenced::Next));
        assert!(matches!(producers.check(&append(0, 0)), Ok(Sequenced::Duplicate(_))));
    }

    #[test]
    fn sequences_count_from_0_to_the_largest_i32() {
        assert_eq!(sequence_after(0, 1), 1);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 3), 1);
        assert_eq!(sequence_after(5, i32::MAX as u32 + 1), 5);
    }

    #[test]
    fn rows_that_name_one_batch_twice_are_refused() {
        let mut producers = Producers::default();
        producers.stored(&append(0, 0), (1, 0), 10, None);
        let (key, producer) = producers.rows().next().map(|(key, row)| (key, row.clone())).unwrap();
        let other = (key.0, key.1, 4);
        assert!(Producers::from_rows(alloc::vec![(key, producer.clone()), (other, producer.clone())]).is_err());
        assert!(Producers::from_rows(alloc::vec![(key, producer.clone()), (key, producer)]).is_err());
    }
}
