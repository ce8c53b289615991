//! CreatePartitions: a topic grows, it never shrinks.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_core::Op;
use lockstep_core::op::UpdateMetadata;
use lockstep_env::Env;
use lockstep_wire::codec::create_partitions_request::CreatePartitionsTopic;
use lockstep_wire::codec::create_partitions_response::CreatePartitionsTopicResult;
use lockstep_wire::codec::{CreatePartitionsRequest, CreatePartitionsResponse};

use crate::api::create_topics::admin_timeout;
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics::{self, Refusal};

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let timeout = admin_timeout(request.timeout_ms);
    topics::freshen_directory(broker).await;
    let mut named = BTreeSet::new();
    let mut newest = None;
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let outcome = if named.insert(&topic.name) {
            grow(broker, topic, request.validate_only, timeout).await
        } else {
            Err(Refusal::new(ErrorCode::InvalidRequest, "The request names this topic more than once."))
        };
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        results.push(match outcome {
            Ok(version) => {
                newest = newest.max(version);
                result.with_error_message(None)
            }
            Err(refusal) => {
                result.with_error_code(refusal.error.code()).with_error_message(Some(refusal.message.into()))
            }
        });
    }
    if let Some(version) = newest {
        topics::settle(broker, version, timeout).await;
    }
    CreatePartitionsResponse::default().with_results(results)
}

/// Gives the directory's version after the change, `None` when it was only checked.
async fn grow<E: Env>(
    broker: &Broker<E>,
    topic: &CreatePartitionsTopic,
    validate_only: bool,
    timeout: Duration,
) -> Result<Option<u64>, Refusal> {
    let (topic_id, before) = broker
        .node()
        .directory(|directory| directory.topic(&topic.name).map(|topic| (topic.id, topic.partitions.len())))
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partitions = u32::try_from(topic.count).unwrap_or(0);
    let added = (partitions as usize).saturating_sub(before);
    if added == 0 {
        let message = format!("The topic has {before} partitions already; it can only grow.");
        return Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    }
    if partitions > 10_000 {
        return Err(ErrorCode::InvalidPartitions.into());
    }
    // As in CreateTopics, where partitions live is for the cluster to decide.
    if topic.assignments.as_ref().is_some_and(|assignments| assignments.len() != added) {
        let message = format!("Replicas must be assigned to each of the {added} new partitions, or to none.");
        return Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
    }
    if validate_only {
        return Ok(None);
    }
    let op = Op::UpdateMetadata(UpdateMetadata::AddPartitions { topic_id, partitions });
    let grown = topics::change(broker, op, timeout).await?;
    tracing::info!(topic = grown.name, partitions, "topic has more partitions");
    Ok(Some(grown.version))
}
