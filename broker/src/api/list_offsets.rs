//! ListOffsets: the first and last offsets, and offsets by time. Only a serving leader answers, after it has made sure that
//! it has applied everything committed so far.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::{ShardId, TopicId};
use lockstep_env::Env;
use lockstep_runtime::{LogReadError, PartitionLog, ProposeError, Shard};
use lockstep_wire::codec::list_offsets_request::ListOffsetsPartition;
use lockstep_wire::codec::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use lockstep_wire::codec::{ListOffsetsRequest, ListOffsetsResponse};
use lockstep_wire::records;

use crate::api::fetch::check_epoch;
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics::{self, TopicKey};

/// The offset after the last record. With `read_committed` the last stable offset, which is the same without transactions.
const LATEST: i64 = -1;
/// The first offset.
const EARLIEST: i64 = -2;
/// The record with the largest timestamp (KIP-734).
const MAX_TIMESTAMP: i64 = -3;
/// The first offset on local disks (KIP-405): there are no others.
const EARLIEST_LOCAL: i64 = -4;
/// The last offset in tiered storage (KIP-1005): there is none.
const LATEST_TIERED: i64 = -5;

/// How long a leader may take to make sure that it still leads.
const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(2);
/// A batch is decompressed to find a record's offset only up to this size; else its first offset is the answer.
const DECODED_BYTES_MAX: usize = 16 << 20;

/// An answer for one partition: (timestamp, offset, leader epoch), −1 where unknown.
type Found = (i64, i64, i32);

/// Nothing matches: no error, and no offset.
const NOTHING: Found = (-1, -1, -1);

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: ListOffsetsRequest,
) -> ListOffsetsResponse {
    let version = context.api_version;
    // One read index serves every partition of its shard in this request.
    let mut confirmed: BTreeSet<ShardId> = BTreeSet::new();
    let mut responses = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let key = TopicKey::Name(topic.name.to_string());
        let located = topics::locate(broker, &key, topic.partitions.iter().map(|partition| partition.partition_index));
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (nth, partition) in topic.partitions.iter().enumerate() {
            let found = match &located {
                Ok(located) => match located.shards.get(nth).copied().flatten() {
                    Some(shard) => find(broker, version, located.id, shard, partition, &mut confirmed).await,
                    None => Err(ErrorCode::UnknownTopicOrPartition),
                },
                Err(error) => Err(*error),
            };
            let mut response = ListOffsetsPartitionResponse::default().with_partition_index(partition.partition_index);
            match found {
                Ok((timestamp, offset, leader_epoch)) => {
                    response.timestamp = timestamp;
                    response.offset = offset;
                    if version >= 4 {
                        response.leader_epoch = leader_epoch;
                    }
                }
                Err(error) => {
                    response.error_code = error.code();
                    response.timestamp = -1;
                    response.offset = -1;
                }
            }
            partitions.push(response);
        }
        responses.push(ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions));
    }
    ListOffsetsResponse::default().with_topics(responses)
}

async fn find<E: Env>(
    broker: &Broker<E>,
    version: i16,
    topic_id: TopicId,
    shard_id: ShardId,
    wanted: &ListOffsetsPartition,
    confirmed: &mut BTreeSet<ShardId>,
) -> Result<Found, ErrorCode> {
    let partition = u32::try_from(wanted.partition_index).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
    let shard = broker.node().shard(shard_id).ok_or(ErrorCode::NotLeaderOrFollower)?;
    check_epoch(&shard, wanted.current_leader_epoch)?;
    check_serving(version, &shard)?;
    if !confirmed.contains(&shard_id) {
        broker.node().linearizable(shard_id, READ_INDEX_TIMEOUT).await.map_err(|_| not_yet(version))?;
        check_serving(version, &shard)?;
        confirmed.insert(shard_id);
    }
    let log = shard.log(topic_id, partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let epoch =
        || shard.read(|state| state.partition(topic_id, partition)).map_or(-1, |partition| partition.last_epoch);
    let failed = |error: LogReadError| {
        tracing::warn!(topic = %topic_id, partition, %error, "cannot look for an offset");
        ErrorCode::of_log_read(&error)
    };
    match wanted.timestamp {
        LATEST => Ok((-1, log.end_offset(), epoch())),
        EARLIEST | EARLIEST_LOCAL => Ok((-1, log.start_offset(), -1)),
        MAX_TIMESTAMP => Ok(log
            .max_timestamp()
            .await
            .map_err(failed)?
            .map_or(NOTHING, |(timestamp, offset)| (timestamp, offset, -1))),
        LATEST_TIERED => Ok(NOTHING),
        timestamp if timestamp >= 0 => match log.offset_for_time(timestamp).await.map_err(failed)? {
            Some(batch) => Ok(first_record_since(&log, timestamp, batch).await),
            None => Ok(NOTHING),
        },
        _ => Err(ErrorCode::InvalidRequest),
    }
}

/// Within the batch that holds it, the first record at or after `timestamp_ms`. A batch that cannot be read that closely
/// gives its own first offset, from which the consumer finds the record too.
async fn first_record_since<E: Env>(log: &PartitionLog<E>, timestamp_ms: i64, batch: (i64, i64)) -> Found {
    let (batch_timestamp, batch_offset) = batch;
    let whole = (batch_timestamp, batch_offset, -1);
    let Ok(batches) = log.read(batch_offset, 1, true).await else { return whole };
    let Some(bytes) = batches.first() else { return whole };
    decode_first_since(bytes, timestamp_ms)
        .map_or(whole, |(timestamp, offset)| (timestamp, offset.max(log.start_offset()), -1))
}

fn decode_first_since(bytes: &Bytes, timestamp_ms: i64) -> Option<(i64, i64)> {
    let (header, records) = records::decode_batch(bytes, DECODED_BYTES_MAX).ok()?;
    if header.is_log_append_time() {
        return Some((header.max_timestamp, header.base_offset));
    }
    records.iter().find(|record| record.timestamp >= timestamp_ms).map(|record| (record.timestamp, record.offset))
}

fn check_serving<E: Env>(version: i16, shard: &Shard<E>) -> Result<(), ErrorCode> {
    match shard.serving() {
        Ok(_) => Ok(()),
        Err(ProposeError::Loading(_)) => Err(not_yet(version)),
        Err(error) => Err(ErrorCode::of_partition(&error)),
    }
}

/// This node leads but does not know yet what was committed before it did.
fn not_yet(version: i16) -> ErrorCode {
    if version >= 5 { ErrorCode::OffsetNotAvailable } else { ErrorCode::LeaderNotAvailable }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_wire::{BatchBuilder, Compression};

    #[test]
    fn the_first_record_at_or_after_a_time_is_found_within_its_batch() {
        let mut builder = BatchBuilder::new();
        for timestamp in [100, 300, 200] {
            builder.push(timestamp, None, Some(b"value"), &[]);
        }
        let batch = builder.finish(Compression::Lz4, None).expect("batch");
        assert_eq!(decode_first_since(&batch, 50), Some((100, 0)));
        assert_eq!(decode_first_since(&batch, 150), Some((300, 1)));
        assert_eq!(decode_first_since(&batch, 301), None);
    }

    #[test]
    fn older_versions_get_an_error_that_they_know() {
        assert_eq!(not_yet(4), ErrorCode::LeaderNotAvailable);
        assert_eq!(not_yet(5), ErrorCode::OffsetNotAvailable);
    }
}
