//! DeleteRecords: the beginning of partitions goes. Only the leader of a partition's shard takes it, like Produce.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use lockstep_core::op::{AdvanceLogStart, NewLogStart};
use lockstep_core::{Op, Reply, ShardId};
use lockstep_env::{Env, timeout};
use lockstep_runtime::ProposeError;
use lockstep_wire::codec::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use lockstep_wire::codec::{DeleteRecordsRequest, DeleteRecordsResponse};

use crate::api::create_topics::admin_timeout;
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics::{self, TopicKey};

/// Where in the request a partition stands: topic and partition, by position.
type Slot = (usize, usize);

/// The partition's first offset afterwards.
type Deleted = Result<i64, ErrorCode>;

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let patience = admin_timeout(request.timeout_ms);
    let missing = |name: &str| broker.node().directory(|directory| directory.topic(name).is_none());
    if request.topics.iter().any(|topic| missing(&topic.name)) {
        topics::freshen_directory(broker).await;
    }
    let mut results: Vec<Vec<Deleted>> = Vec::with_capacity(request.topics.len());
    let mut by_shard: BTreeMap<ShardId, Vec<(Slot, NewLogStart)>> = BTreeMap::new();
    for (topic_index, topic) in request.topics.iter().enumerate() {
        let key = TopicKey::Name(topic.name.to_string());
        let located = topics::locate(broker, &key, topic.partitions.iter().map(|partition| partition.partition_index));
        // Kafka's rule: what is compacted, and nothing else, keeps the last record of each key.
        let kept = broker.node().directory(|directory| key.find(directory).is_some_and(|topic| !topic.deletes()));
        let mut topic_results = Vec::with_capacity(topic.partitions.len());
        for (nth, wanted) in topic.partitions.iter().enumerate() {
            let checked = located.as_ref().map_err(|error| *error).and_then(|located| {
                let shard = located.shards.get(nth).copied().flatten().ok_or(ErrorCode::UnknownTopicOrPartition)?;
                let partition =
                    u32::try_from(wanted.partition_index).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
                if kept {
                    return Err(ErrorCode::PolicyViolation);
                }
                Ok((shard, NewLogStart { topic_id: located.id, partition, offset: wanted.offset }))
            });
            // Replaced by the outcome of the partition's proposal.
            topic_results.push(Err(checked.as_ref().err().copied().unwrap_or(ErrorCode::UnknownServerError)));
            if let Ok((shard, start)) = checked {
                by_shard.entry(shard).or_default().push(((topic_index, nth), start));
            }
        }
        results.push(topic_results);
    }
    let proposals = by_shard
        .iter()
        .flat_map(|(shard, wanted)| wanted.chunks(AdvanceLogStart::PARTITIONS_MAX).map(|some| (*shard, some)));
    let under_way = proposals.map(async |(shard, some)| (some, propose(broker, shard, some, patience).await));
    for (some, outcomes) in join_all(under_way).await {
        for ((slot, _), outcome) in some.iter().zip(outcomes) {
            if let Some(result) = results.get_mut(slot.0).and_then(|results| results.get_mut(slot.1)) {
                *result = outcome;
            }
        }
    }
    let topics = request.topics.into_iter().zip(results).map(|(topic, results)| {
        let partitions = topic.partitions.iter().zip(results).map(|(partition, result)| {
            DeleteRecordsPartitionResult::default()
                .with_partition_index(partition.partition_index)
                .with_low_watermark(result.unwrap_or(-1))
                .with_error_code(result.err().unwrap_or(ErrorCode::None).code())
        });
        let partitions = partitions.collect();
        DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions)
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}

async fn propose<E: Env>(
    broker: &Broker<E>,
    shard: ShardId,
    wanted: &[(Slot, NewLogStart)],
    patience: Duration,
) -> Vec<Deleted> {
    let partitions: Vec<NewLogStart> = wanted.iter().map(|(_, start)| start.clone()).collect();
    let topics: BTreeSet<_> = partitions.iter().map(|start| start.topic_id).collect();
    let op = Op::AdvanceLogStart(AdvanceLogStart { partitions });
    let outcome = timeout::<E, _>(patience, broker.node().propose(shard, op, Bytes::new())).await;
    let outcome = outcome.unwrap_or_else(|_| Err(ProposeError::Unknown("records were not deleted in time".to_owned())));
    match outcome {
        Ok(Reply::LogStarts(outcomes)) if outcomes.len() == wanted.len() => {
            tracing::info!(%shard, partitions = wanted.len(), topics = topics.len(), "records deleted");
            outcomes.into_iter().map(|outcome| outcome.map_err(ErrorCode::of_log_start)).collect()
        }
        Ok(other) => {
            tracing::error!(?other, "a reply of another kind to AdvanceLogStart");
            vec![Err(ErrorCode::UnknownServerError); wanted.len()]
        }
        Err(error) => vec![Err(ErrorCode::of_partition(&error)); wanted.len()],
    }
}
