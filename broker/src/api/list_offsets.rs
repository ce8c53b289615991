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
        timestamp if timestamp >= 0 => first_record_since(&log, timestamp).await.map_err(failed),
        _ => Err(ErrorCode::InvalidRequest),
    }
}

/// The first record that is kept at or after `timestamp_ms`.
async fn first_record_since<E: Env>(log: &PartitionLog<E>, timestamp_ms: i64) -> Result<Found, LogReadError> {
    let mut from = 0;
    while let Some((batch_timestamp, batch_offset)) = log.offset_for_time(timestamp_ms, from).await? {
        let start = log.start_offset().max(from);
        // A batch that cannot be read that closely gives its own first offset, from which the consumer finds the record too.
        let whole = (batch_timestamp, batch_offset.max(start), -1);
        let Ok(batches) = log.read(batch_offset.max(start), 1, true).await else { return Ok(whole) };
        let Some(bytes) = batches.first() else { return Ok(whole) };
        match decode_first_since(bytes, timestamp_ms, start) {
            Some(Ok((timestamp, offset))) => return Ok((timestamp, offset, -1)),
            // What was late enough of this batch is deleted.
            Some(Err(next_offset)) if next_offset > from => from = next_offset,
            Some(Err(_)) | None => return Ok(whole),
        }
    }
    Ok(NOTHING)
}

/// The batch's first record at or above offset `start` and at or after `timestamp_ms`; the error is the offset after the batch, when there is none.
/// Nothing when the batch cannot be decoded.
fn decode_first_since(bytes: &Bytes, timestamp_ms: i64, start: i64) -> Option<Result<(i64, i64), i64>> {
    let (header, records) = records::decode_batch(bytes, DECODED_BYTES_MAX).ok()?;
    let mut kept = records.iter().filter(|record| record.offset >= start);
    let found = kept.find(|record| record.timestamp >= timestamp_ms);
    Some(match found {
        Some(record) => Ok((record.timestamp, record.offset)),
        None => Err(header.base_offset.saturating_add(i64::from(header.last_offset_delta)).saturating_add(1)),
    })
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
        assert_eq!(decode_first_since(&batch, 50, 0), Some(Ok((100, 0))));
        assert_eq!(decode_first_since(&batch, 150, 0), Some(Ok((300, 1))));
        assert_eq!(decode_first_since(&batch, 301, 0), Some(Err(3)));
        // Of the first two nothing is left.
        assert_eq!(decode_first_since(&batch, 50, 2), Some(Ok((200, 2))));
        assert_eq!(decode_first_since(&batch, 250, 2), Some(Err(3)));
    }

    #[test]
    fn older_versions_get_an_error_that_they_know() {
        assert_eq!(not_yet(4), ErrorCode::LeaderNotAvailable);
        assert_eq!(not_yet(5), ErrorCode::OffsetNotAvailable);
    }
}
