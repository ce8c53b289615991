//! DescribeTopicPartitions (KIP-966): topics page by page.

use std::collections::BTreeSet;

use lockstep_core::TopicRecord;
use lockstep_env::Env;
use lockstep_wire::codec::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use lockstep_wire::codec::{DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, TopicName};

use crate::broker::Broker;
use crate::cluster_view::{ClusterView, NO_BROKER, TOPIC_OPERATIONS};
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topic_config;
use crate::topics;

/// Partitions of one response, at most (Kafka's `max.request.partition.size.limit`).
const PARTITIONS_MAX: usize = 2_000;

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let limit = usize::try_from(request.response_partition_limit).unwrap_or(0).clamp(1, PARTITIONS_MAX);
    let asks_for_all = request.topics.is_empty();
    let missing = |name: &str| broker.node().directory(|directory| directory.topic(name).is_none());
    if request.topics.iter().any(|topic| missing(&topic.name)) {
        topics::freshen_directory(broker).await;
    }
    let mut names: BTreeSet<String> = if asks_for_all {
        broker.node().directory(|directory| directory.topic_ids.keys().cloned().collect())
    } else {
        request.topics.iter().map(|topic| topic.name.to_string()).collect()
    };
    let mut first_partition = 0;
    if let Some(cursor) = &request.cursor {
        names = names.split_off(cursor.topic_name.as_str());
        if names.first().is_some_and(|name| *name == *cursor.topic_name.as_str()) {
            first_partition = usize::try_from(cursor.partition_index).unwrap_or(0);
        }
    }

    let mut view = ClusterView::take(broker);
    let mut left = limit;
    let mut response = DescribeTopicPartitionsResponse::default();
    for name in names {
        let from = std::mem::take(&mut first_partition);
        if left == 0 {
            response.next_cursor = Some(cursor(name, from));
            break;
        }
        let Some(record) = broker.node().directory(|directory| directory.topic(&name).cloned()) else {
            let is_legal = topic_config::is_legal_topic_name(&name);
            let error = if is_legal { ErrorCode::UnknownTopicOrPartition } else { ErrorCode::InvalidTopic };
            response.topics.push(
                DescribeTopicPartitionsResponseTopic::default()
                    .with_error_code(error.code())
                    .with_name(Some(TopicName(name.into()))),
            );
            continue;
        };
        let end = record.partitions.len().min(from.saturating_add(left));
        left -= end.saturating_sub(from);
        let is_cut = end < record.partitions.len();
        response.topics.push(describe(broker, &mut view, &record, from..end));
        if is_cut {
            response.next_cursor = Some(cursor(name, end));
            break;
        }
    }
    response
}

fn cursor(name: String, partition: usize) -> Cursor {
    Cursor::default()
        .with_topic_name(TopicName(name.into()))
        .with_partition_index(i32::try_from(partition).unwrap_or(i32::MAX))
}

fn describe<E: Env>(
    broker: &Broker<E>,
    view: &mut ClusterView,
    record: &TopicRecord,
    partitions: std::ops::Range<usize>,
) -> DescribeTopicPartitionsResponseTopic {
    let partitions = partitions.filter_map(|index| {
        let shard = view.shard(broker, *record.partitions.get(index)?);
        let (leader, epoch) = shard.leader.unwrap_or((NO_BROKER, -1));
        let error = if shard.leader.is_some() { ErrorCode::None } else { ErrorCode::LeaderNotAvailable };
        Some(
            DescribeTopicPartitionsResponsePartition::default()
                .with_error_code(error.code())
                .with_partition_index(i32::try_from(index).unwrap_or(i32::MAX))
                .with_leader_id(leader)
                .with_leader_epoch(epoch)
                .with_replica_nodes(shard.replicas.clone())
                .with_isr_nodes(shard.living.clone())
                .with_eligible_leader_replicas(Some(Vec::new()))
                .with_last_known_elr(Some(Vec::new()))
                .with_offline_replicas(shard.offline.clone()),
        )
    });
    let partitions = partitions.collect();
    DescribeTopicPartitionsResponseTopic::default()
        .with_name(Some(TopicName(record.name.clone().into())))
        .with_topic_id(topics::uuid(record.id))
        .with_partitions(partitions)
        .with_topic_authorized_operations(TOPIC_OPERATIONS)
}
