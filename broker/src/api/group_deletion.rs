//! DeleteGroups, and OffsetDelete (KIP-496).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_core::op::{DeleteGroup, DeleteOffsets, TopicPartitions};
use lockstep_core::{GroupError, Op, Reply, TopicId};
use lockstep_env::Env;
use lockstep_wire::codec::delete_groups_response::DeletableGroupResult;
use lockstep_wire::codec::offset_delete_request::OffsetDeleteRequestTopic;
use lockstep_wire::codec::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use lockstep_wire::codec::{DeleteGroupsRequest, DeleteGroupsResponse, OffsetDeleteRequest, OffsetDeleteResponse};

use crate::api::group_coordinator::{Refused, coordinated, each_once, propose, wrong_reply};
use crate::api::group_offsets::hear_of;
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;

/// Groups of one request that are deleted; what it names beyond these is refused.
const DELETED_GROUPS_MAX: usize = 10_000;
/// After so many groups other tasks get a turn: groups that are not there need no waiting.
const GROUPS_IN_A_ROW: usize = 128;

pub(crate) async fn groups<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: DeleteGroupsRequest,
) -> DeleteGroupsResponse {
    let mut named = each_once(request.groups_names);
    let beyond = named.split_off(named.len().min(DELETED_GROUPS_MAX));
    let mut results = Vec::with_capacity(named.len() + beyond.len());
    let result = |group_id, error: ErrorCode| {
        DeletableGroupResult::default().with_group_id(group_id).with_error_code(error.code())
    };
    for (at, group_id) in named.into_iter().enumerate() {
        if at > 0 && at.is_multiple_of(GROUPS_IN_A_ROW) {
            E::sleep(Duration::ZERO).await;
        }
        let error = match delete_group(broker, &group_id).await {
            Ok(()) => {
                tracing::info!(group = group_id.as_str(), "group deleted");
                ErrorCode::None
            }
            Err(refused) => {
                tracing::info!(group = group_id.as_str(), error = ?refused.error, "DeleteGroups refused");
                refused.error
            }
        };
        results.push(result(group_id, error));
    }
    if !beyond.is_empty() {
        tracing::info!(groups = beyond.len(), "DeleteGroups names more than {DELETED_GROUPS_MAX} groups");
    }
    results.extend(beyond.into_iter().map(|group_id| result(group_id, ErrorCode::InvalidRequest)));
    DeleteGroupsResponse::default().with_results(results)
}

async fn delete_group<E: Env>(broker: &Broker<E>, group: &str) -> Result<(), Refused> {
    const REQUEST: &str = "DeleteGroups";
    // Also the empty id: Kafka takes commits for it, so that it must be possible to get rid of them.
    let shard = coordinated(broker, REQUEST, group)?;
    // What was acknowledged is applied here while this broker coordinates: a refusal needs no place in the log, which made-up ids
    // would fill otherwise.
    match shard.read(|state| state.group(group).map(|group| group.members.is_empty())) {
        None => return Err(GroupError::GroupNotFound.into()),
        Some(false) => return Err(GroupError::NonEmptyGroup.into()),
        Some(true) => {}
    }
    let op = Op::DeleteGroup(DeleteGroup { group_id: group.to_owned() });
    match propose(&shard, REQUEST, group, op).await? {
        Reply::Group(outcome) => Ok(outcome?),
        other => Err(wrong_reply(REQUEST, group, &other)),
    }
}

pub(crate) async fn offsets<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: OffsetDeleteRequest,
) -> OffsetDeleteResponse {
    let group = request.group_id.to_string();
    match delete_offsets(broker, &group, &request.topics).await {
        Ok(outcomes) => {
            tracing::info!(group, "committed offsets deleted");
            answer_offsets(request.topics, &outcomes)
        }
        Err(refused) => {
            tracing::info!(group, error = ?refused.error, "OffsetDelete refused");
            OffsetDeleteResponse::default().with_error_code(refused.error.code())
        }
    }
}

/// `outcomes` has one for each partition, in the order of the request.
fn answer_offsets(topics: Vec<OffsetDeleteRequestTopic>, outcomes: &[Vec<ErrorCode>]) -> OffsetDeleteResponse {
    let topics = topics.into_iter().zip(outcomes).map(|(topic, outcomes)| {
        let partitions = topic.partitions.iter().zip(outcomes).map(|(partition, error)| {
            OffsetDeleteResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(error.code())
        });
        OffsetDeleteResponseTopic::default().with_name(topic.name).with_partitions(partitions.collect())
    });
    OffsetDeleteResponse::default().with_topics(topics.collect())
}

async fn delete_offsets<E: Env>(
    broker: &Broker<E>,
    group: &str,
    topics: &[OffsetDeleteRequestTopic],
) -> Result<Vec<Vec<ErrorCode>>, Refused> {
    const REQUEST: &str = "OffsetDelete";
    if group.is_empty() {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    let shard = coordinated(broker, REQUEST, group)?;
    let names: BTreeSet<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
    hear_of(broker, &shard, &names).await;

    // Each partition once, whatever the request says how often.
    let mut wanted: BTreeMap<TopicId, BTreeSet<u32>> = BTreeMap::new();
    let keys: Vec<Vec<Option<(TopicId, u32)>>> = shard.read(|state| {
        let key = |topic: &OffsetDeleteRequestTopic, index: i32| {
            let record = state.directory().topic(&topic.name)?;
            let index = u32::try_from(index).ok().filter(|index| (*index as usize) < record.partitions.len())?;
            Some((record.id, index))
        };
        let keys = |topic: &OffsetDeleteRequestTopic| {
            topic.partitions.iter().map(|partition| key(topic, partition.partition_index)).collect()
        };
        topics.iter().map(keys).collect()
    });
    for (topic_id, partition) in keys.iter().flatten().flatten() {
        wanted.entry(*topic_id).or_default().insert(*partition);
    }
    // Also when no partition is left: whether there is such a group is the state machine's to say.
    let op = Op::DeleteOffsets(DeleteOffsets {
        group_id: group.to_owned(),
        topics: wanted
            .iter()
            .map(|(topic_id, partitions)| TopicPartitions {
                topic_id: *topic_id,
                partitions: partitions.iter().copied().collect(),
            })
            .collect(),
    });
    let deleted = match propose(&shard, REQUEST, group, op).await? {
        Reply::Commit(outcome) => outcome?,
        other => return Err(wrong_reply(REQUEST, group, &other)),
    };
    let asked: Vec<(TopicId, u32)> = wanted
        .iter()
        .flat_map(|(topic_id, partitions)| partitions.iter().map(|partition| (*topic_id, *partition)))
        .collect();
    if asked.len() != deleted.len() {
        return Err(wrong_reply(REQUEST, group, &Reply::Commit(Ok(deleted))));
    }
    let outcomes: BTreeMap<(TopicId, u32), ErrorCode> = asked
        .into_iter()
        .zip(deleted)
        .map(|(key, outcome)| (key, outcome.map_or_else(|error| ErrorCode::of_group(&error), |()| ErrorCode::None)))
        .collect();
    let outcome = |key: &Option<(TopicId, u32)>| {
        key.and_then(|key| outcomes.get(&key).copied()).unwrap_or(ErrorCode::UnknownTopicOrPartition)
    };
    Ok(keys.iter().map(|keys| keys.iter().map(outcome).collect()).collect())
}
