//! Commits and fetches of offsets by raw requests, in any version.

use std::collections::BTreeMap;

use checker::Event;
use lockstep_client::{ClientError, TopicPartition};
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use lockstep_wire::codec::{OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse};

use super::coordinator::{Coordinator, PATIENCE, check, group_id, text, topic_name};
use super::{COMMIT_SLOW, Context, is_outcome_unknown, partition_of};

/// The first version of OffsetCommit that names an instance.
const COMMIT_INSTANCE_VERSION: i16 = 7;
/// The first version of OffsetFetch that asks for several groups.
const FETCH_GROUPS_VERSION: i16 = 8;

/// Who commits.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// The name of this life in the history.
    pub(super) life: String,
    pub(super) group: String,
    pub(super) member_id: String,
    pub(super) instance_id: Option<String>,
    /// Generation or member epoch.
    pub(super) epoch: i32,
}

fn by_topic(partitions: impl Iterator<Item = TopicPartition>) -> BTreeMap<String, Vec<i32>> {
    let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for at in partitions {
        topics.entry(at.topic.to_string()).or_default().push(at.partition);
    }
    topics
}

pub(super) fn commit_request(
    identity: &Identity,
    version: i16,
    offsets: &BTreeMap<TopicPartition, i64>,
) -> OffsetCommitRequest {
    let mut topics: BTreeMap<&str, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
    for (at, offset) in offsets {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(at.partition)
            .with_committed_offset(*offset)
            .with_committed_metadata(Some(text("")));
        topics.entry(&at.topic).or_default().push(partition);
    }
    let topics = topics.into_iter().map(|(name, partitions)| {
        OffsetCommitRequestTopic::default().with_name(topic_name(name)).with_partitions(partitions)
    });
    let request = OffsetCommitRequest::default()
        .with_group_id(group_id(&identity.group))
        .with_member_id(text(&identity.member_id))
        .with_generation_id_or_member_epoch(identity.epoch)
        .with_topics(topics.collect());
    match &identity.instance_id {
        Some(instance) if version >= COMMIT_INSTANCE_VERSION => request.with_group_instance_id(Some(text(instance))),
        _ => request,
    }
}

/// The first error of any partition.
pub(super) fn commit_error(response: &OffsetCommitResponse) -> i16 {
    let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.map(|partition| partition.error_code).find(|code| *code != 0).unwrap_or(0)
}

/// Records what is known of a commit.
pub(super) fn record_commit(
    context: &Context,
    identity: &Identity,
    offsets: &BTreeMap<TopicPartition, i64>,
    started_at_us: u64,
    outcome: &Result<OffsetCommitResponse, ClientError>,
) {
    let mut codes = BTreeMap::new();
    if let Ok(response) = outcome {
        for topic in &response.topics {
            for partition in &topic.partitions {
                codes.insert(TopicPartition::new(topic.name.as_str(), partition.partition_index), partition.error_code);
            }
        }
    }
    for (at, offset) in offsets {
        let (group, member) = (identity.group.clone(), identity.life.clone());
        let (partition, offset) = (partition_of(at), *offset);
        let of_partition = match (outcome, codes.get(at)) {
            (Ok(_), Some(code)) => check("OffsetCommit", *code),
            (Ok(_), None) => Err(ClientError::BadAnswer { address: String::new(), reason: "no such partition".into() }),
            (Err(error), _) => Err(error.clone()),
        };
        context.record(match of_partition {
            Ok(()) => Event::Committed { group, member, partition, offset, started_at_us },
            Err(error) if is_outcome_unknown(&error) => {
                let reason = error.to_string();
                Event::CommitUnknown { group, member, partition, offset, started_at_us, reason }
            }
            Err(error) => Event::CommitRefused { group, member, partition, offset, reason: error.to_string() },
        });
    }
}

/// Commits once and records it. The error is the first of any partition.
pub(super) async fn commit(
    context: &Context,
    coordinator: &mut Coordinator,
    identity: &Identity,
    version: i16,
    offsets: &BTreeMap<TopicPartition, i64>,
) -> Result<(), ClientError> {
    if offsets.is_empty() {
        return Ok(());
    }
    let connected = coordinator.connection().await.map(drop);
    let started_at_us = context.now_us();
    let outcome = match connected {
        // What was not sent has no outcome.
        Err(error) => return Err(error),
        Ok(()) => {
            let request = commit_request(identity, version, offsets);
            coordinator.ask(version, PATIENCE, request, |_| 0).await
        }
    };
    record_commit(context, identity, offsets, started_at_us, &outcome);
    let result = outcome.and_then(|response| check("OffsetCommit", commit_error(&response)));
    if result.as_ref().is_err_and(is_outcome_unknown) {
        coordinator.forget();
    }
    if result.is_ok() && context.now_us().saturating_sub(started_at_us) >= COMMIT_SLOW.as_micros() as u64 {
        // Whoever coordinates the group by now must know of it; an answer that does not come is none.
        coordinator.forget();
        let partitions: Vec<TopicPartition> = offsets.keys().cloned().collect();
        let _ = committed(context, coordinator, FETCH_GROUPS_VERSION, &partitions).await;
    }
    result
}

pub(super) fn fetch_request(group: &str, version: i16, partitions: &[TopicPartition]) -> OffsetFetchRequest {
    let topics = by_topic(partitions.iter().cloned()).into_iter();
    if version >= FETCH_GROUPS_VERSION {
        let topics = topics.map(|(name, indexes)| {
            OffsetFetchRequestTopics::default().with_name(topic_name(&name)).with_partition_indexes(indexes)
        });
        let group =
            OffsetFetchRequestGroup::default().with_group_id(group_id(group)).with_topics(Some(topics.collect()));
        return OffsetFetchRequest::default().with_groups(vec![group]);
    }
    let topics = topics.map(|(name, indexes)| {
        OffsetFetchRequestTopic::default().with_name(topic_name(&name)).with_partition_indexes(indexes)
    });
    OffsetFetchRequest::default().with_group_id(group_id(group)).with_topics(Some(topics.collect()))
}

/// Committed offsets; `None`: there is none.
///
/// # Errors
/// The first error of the answer.
pub(super) fn fetched(response: &OffsetFetchResponse) -> Result<BTreeMap<TopicPartition, Option<i64>>, ClientError> {
    let mut codes = vec![response.error_code];
    let mut offsets = BTreeMap::new();
    let mut add = |topic: &str, partition: i32, offset: i64| {
        offsets.insert(TopicPartition::new(topic, partition), (offset >= 0).then_some(offset));
    };
    for topic in &response.topics {
        for partition in &topic.partitions {
            codes.push(partition.error_code);
            add(&topic.name, partition.partition_index, partition.committed_offset);
        }
    }
    for group in &response.groups {
        codes.push(group.error_code);
        for topic in &group.topics {
            for partition in &topic.partitions {
                codes.push(partition.error_code);
                add(&topic.name, partition.partition_index, partition.committed_offset);
            }
        }
    }
    check("OffsetFetch", codes.into_iter().find(|code| *code != 0).unwrap_or(0))?;
    Ok(offsets)
}

/// What the group has committed, asked once of the coordinator; recorded.
pub(super) async fn committed(
    context: &Context,
    coordinator: &mut Coordinator,
    version: i16,
    partitions: &[TopicPartition],
) -> Result<BTreeMap<TopicPartition, Option<i64>>, ClientError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    coordinator.connection().await?;
    let started_at_us = context.now_us();
    let request = fetch_request(&coordinator.group, version, partitions);
    let response = coordinator.ask(version, PATIENCE, request, |response| response.error_code).await?;
    let offsets = fetched(&response).inspect_err(|error| {
        if is_outcome_unknown(error) {
            coordinator.forget();
        }
    })?;
    record_fetched(context, &coordinator.group, &offsets, started_at_us);
    Ok(offsets)
}

pub(super) fn record_fetched(
    context: &Context,
    group: &str,
    offsets: &BTreeMap<TopicPartition, Option<i64>>,
    started_at_us: u64,
) {
    for (at, offset) in offsets {
        let (group, partition) = (group.to_owned(), partition_of(at));
        context.record(Event::OffsetFetched { group, partition, offset: *offset, started_at_us });
    }
}
