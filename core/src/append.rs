//! Op 3: record batches get their offsets.

use alloc::string::String;
use alloc::vec::Vec;

use crate::directory::Directory;
use crate::effect::Effect;
use crate::ids::Position;
use crate::op::{AppendMessage, PartitionAppend};
use crate::partitions::Partitions;
use crate::producers::Sequenced;
use crate::reply::{AppendError, Appended, Reply};
use lockstep_probe::Mistake;

/// Kafka's name of the topic setting that decides whose clock stamps records.
const TIMESTAMP_TYPE: &str = "message.timestamp.type";

impl Partitions {
    /// Stores what can be stored of an op 3; each append has its own outcome. The error is a broken invariant.
    pub(crate) fn apply_append(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &AppendMessage,
        payload_len: usize,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        let mut outcomes = Vec::with_capacity(op.appends.len());
        // End of the slices seen so far. A byte of the payload belongs to one append at most.
        let mut taken = 0_u64;
        for (ordinal, append) in (0_u32..).zip(&op.appends) {
            let end = u64::from(append.payload_start) + u64::from(append.payload_len);
            let sliced =
                append.payload_len > 0 && u64::from(append.payload_start) >= taken && end <= payload_len as u64;
            if sliced {
                taken = end;
            }
            outcomes.push(if sliced {
                self.append_one(directory, position, ordinal, op, append, effects)?
            } else {
                Err(AppendError::CorruptBatch)
            });
        }
        Ok(Reply::Append(outcomes))
    }

    fn append_one(
        &mut self,
        directory: &Directory,
        position: Position,
        ordinal: u32,
        op: &AppendMessage,
        append: &PartitionAppend,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<Appended, AppendError>, String> {
        let (Some(topic), Some(partition)) =
            (directory.topics.get(&append.topic_id), self.get(append.topic_id, append.partition))
        else {
            return Ok(Err(AppendError::UnknownPartition));
        };
        let (base_offset, log_start_offset) = (partition.next_offset, partition.log_start_offset);
        // A batch's last offset delta is an i32 from 0 on.
        if append.offset_count == 0 || append.offset_count > i32::MAX as u32 + 1 {
            return Ok(Err(AppendError::CorruptBatch));
        }
        let sequenced = match self.producers.check(append) {
            Ok(Sequenced::Duplicate(original)) => {
                let wrong = Mistake::DuplicateAnsweredWithNewOffset.is_made();
                return Ok(Ok(Appended {
                    base_offset: if wrong { base_offset } else { original.base_offset },
                    log_append_time_ms: original.log_append_time_ms,
                    log_start_offset,
                    duplicate: true,
                }));
            }
            Ok(sequenced) => sequenced,
            Err(error) => return Ok(Err(error)),
        };
        // A partition that is full for ever: the batch cannot be numbered.
        let Some(next_offset) = base_offset.checked_add(i64::from(append.offset_count)) else {
            return Ok(Err(AppendError::CorruptBatch));
        };
        let log_append_time_ms = topic
            .configs
            .get(TIMESTAMP_TYPE)
            .is_some_and(|stamped_by| stamped_by == "LogAppendTime")
            .then_some(op.now_ms.max(0));
        let limits = topic.segment_limits(op.segment_bytes);
        // Terms beyond Kafka's epochs: two thousand million elections.
        let leader_epoch = i32::try_from(position.term).unwrap_or(i32::MAX);
        self.extend((append.topic_id, append.partition), leader_epoch, next_offset)?;
        if sequenced == Sequenced::Next {
            self.producers.stored(append, (position.index, ordinal), base_offset, log_append_time_ms);
        }
        effects.push(Effect::Append {
            topic_id: append.topic_id,
            partition: append.partition,
            payload_start: append.payload_start,
            payload_len: append.payload_len,
            base_offset,
            next_offset,
            leader_epoch,
            log_append_time_ms,
            limits,
        });
        Ok(Ok(Appended { base_offset, log_append_time_ms, log_start_offset, duplicate: false }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::TopicRecord;
    use crate::ids::{ShardId, TopicId};
    use crate::partitions::{EpochStart, Partition};
    use crate::producers::Producers;

    #[test]
    fn a_partition_whose_offsets_are_used_up_refuses_batches() {
        let id = TopicId([1; 16]);
        let mut directory = Directory::default();
        directory.topics.insert(
            id,
            TopicRecord {
                id,
                name: "t".into(),
                partitions: alloc::vec![ShardId(0)],
                configs: Default::default(),
                version: 1,
            },
        );
        let nearly_full = Partition {
            log_start_offset: 0,
            next_offset: i64::MAX - 5,
            epochs: alloc::vec![EpochStart { epoch: 1, start_offset: 0 }],
            ..Partition::default()
        };
        let mut partitions = Partitions::from_rows(alloc::vec![((id, 0), nearly_full)], Producers::default()).unwrap();
        let append = |offset_count| PartitionAppend {
            topic_id: id,
            partition: 0,
            payload_start: 0,
            payload_len: 100,
            offset_count,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            max_timestamp_ms: 0,
        };
        for (offset_count, fits) in [(6, false), (5, true), (1, false)] {
            let op = AppendMessage { now_ms: 0, segment_bytes: 1 << 20, appends: alloc::vec![append(offset_count)] };
            let position = Position { term: 1, index: 1 };
            let reply = partitions.apply_append(&directory, position, &op, 100, &mut Vec::new()).unwrap();
            let Reply::Append(outcomes) = reply else { panic!("not an append's reply") };
            let expected = if fits { Ok(i64::MAX - 5) } else { Err(AppendError::CorruptBatch) };
            assert_eq!(outcomes[0].clone().map(|appended| appended.base_offset), expected);
        }
    }
}
