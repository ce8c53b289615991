//! What a group has committed: read, and written by an administrator.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_env::Env;
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use lockstep_wire::codec::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, StrBytes,
};

use super::describe::group_id;
use crate::admin::topic_name;
use crate::client::{Client, Purpose};
use crate::error::{ClientError, ErrorCode, check_code};
use crate::offsets::TopicPartition;

/// Offsets of one commit, and the metadata that goes with them, at most. A commit is all or nothing.
const COMMIT_OFFSETS_MAX: usize = 10_000;
const COMMIT_METADATA_BYTES_MAX: usize = 1 << 20;

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) offset: i64,
    /// Whatever the committer wrote.
    pub(super) metadata: String,
}

impl<E: Env> Client<E> {
    /// What a group has committed: of these partitions, or of all that it ever committed for. Partitions without an
    /// offset are left out.
    ///
    /// # Errors
    /// The coordinator did not answer in time.
    pub async fn committed_offsets(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, i64>, ClientError> {
        let committed = self.committed(group, partitions).await?;
        Ok(committed.into_iter().map(|(at, committed)| (at, committed.offset)).collect())
    }

    /// [`Client::committed_offsets`] with their metadata.
    pub(super) async fn committed(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, Committed>, ClientError> {
        let what = || format!("offsets of group {group}");
        let mut retry = self.retry(what());
        loop {
            let answer = self
                .ask_coordinator(
                    group,
                    Purpose::Question,
                    self.patience(),
                    |version| offset_fetch_request(group, partitions, version),
                    error_of_offset_fetch,
                )
                .await;
            let result = answer.and_then(|response| {
                check_code(what, error_of_offset_fetch(&response), None)?;
                offsets_of(&response)
            });
            match result {
                Ok(offsets) => return Ok(offsets),
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    /// Commits for a group that has no members, which makes the group if there is none. In several steps when there are very many
    /// offsets; each is all or nothing.
    ///
    /// # Errors
    /// The group has members, a partition does not exist, or the coordinator did not answer in time.
    pub(super) async fn commit_for_empty_group(
        &self,
        group: &str,
        offsets: &BTreeMap<TopicPartition, Committed>,
    ) -> Result<(), ClientError> {
        let mut step: Vec<(&TopicPartition, &Committed)> = Vec::new();
        let mut metadata_bytes = 0;
        for (at, committed) in offsets {
            if step.len() == COMMIT_OFFSETS_MAX || metadata_bytes + committed.metadata.len() > COMMIT_METADATA_BYTES_MAX
            {
                self.commit_step(group, &step).await?;
                step.clear();
                metadata_bytes = 0;
            }
            metadata_bytes += committed.metadata.len();
            step.push((at, committed));
        }
        if step.is_empty() { Ok(()) } else { self.commit_step(group, &step).await }
    }

    async fn commit_step(&self, group: &str, step: &[(&TopicPartition, &Committed)]) -> Result<(), ClientError> {
        let mut retry = self.retry(format!("committing offsets of group {group}"));
        loop {
            let answer = self
                .ask_coordinator(
                    group,
                    Purpose::General,
                    self.patience(),
                    |_| offset_commit_request(group, step),
                    error_of_offset_commit,
                )
                .await;
            match answer.and_then(|response| check_committed(group, step.len(), &response)) {
                Ok(()) => return Ok(()),
                Err(error) => retry.pause(error).await?,
            }
        }
    }
}

/// What is said of a group whose offsets only its members may change.
pub(super) fn not_empty(what: String) -> ClientError {
    ClientError::broker(what, ErrorCode::NonEmptyGroup.code(), Some("the group has members; stop its consumers first"))
}

fn offset_commit_request(group: &str, step: &[(&TopicPartition, &Committed)]) -> OffsetCommitRequest {
    let mut topics: BTreeMap<&Arc<str>, OffsetCommitRequestTopic> = BTreeMap::new();
    for (at, committed) in step {
        let topic = topics.entry(&at.topic).or_default();
        topic.name = topic_name(&at.topic);
        let mut partition = OffsetCommitRequestPartition::default();
        partition.partition_index = at.partition;
        partition.committed_offset = committed.offset;
        partition.committed_metadata = Some(StrBytes::from_string(committed.metadata.clone()));
        topic.partitions.push(partition);
    }
    let mut request = OffsetCommitRequest::default();
    request.group_id = group_id(group);
    request.generation_id_or_member_epoch = -1;
    request.topics = topics.into_values().collect();
    request
}

fn error_of_offset_commit(response: &OffsetCommitResponse) -> i16 {
    let mut codes = response.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code);
    codes.find(|code| *code != 0).unwrap_or(0)
}

fn check_committed(group: &str, asked: usize, response: &OffsetCommitResponse) -> Result<(), ClientError> {
    let mut answered = 0;
    for topic in &response.topics {
        for partition in &topic.partitions {
            answered += 1;
            let what = || {
                format!("committing offset of {}/{} for group {group}", topic.name.as_str(), partition.partition_index)
            };
            // Whoever is no member may commit for a group without members only.
            if partition.error_code == ErrorCode::UnknownMemberId.code() {
                return Err(not_empty(what()));
            }
            check_code(what, partition.error_code, None)?;
        }
    }
    if answered == asked {
        Ok(())
    } else {
        Err(ClientError::bad_answer("the coordinator", "not every offset was answered"))
    }
}

fn by_topic(partitions: &[TopicPartition]) -> BTreeMap<&Arc<str>, Vec<i32>> {
    let mut topics: BTreeMap<&Arc<str>, Vec<i32>> = BTreeMap::new();
    for at in partitions {
        topics.entry(&at.topic).or_default().push(at.partition);
    }
    topics
}

fn offset_fetch_request(group: &str, partitions: Option<&[TopicPartition]>, version: i16) -> OffsetFetchRequest {
    let mut request = OffsetFetchRequest::default();
    request.require_stable = version >= 7;
    if version >= 8 {
        let mut asked = OffsetFetchRequestGroup::default();
        asked.group_id = group_id(group);
        asked.member_id = None;
        asked.member_epoch = -1;
        asked.topics = partitions.map(|partitions| {
            let topics = by_topic(partitions).into_iter();
            topics
                .map(|(name, indexes)| {
                    let mut topic = OffsetFetchRequestTopics::default();
                    topic.name = topic_name(name);
                    topic.partition_indexes = indexes;
                    topic
                })
                .collect()
        });
        request.groups = vec![asked];
    } else {
        request.group_id = group_id(group);
        request.topics = partitions.map(|partitions| {
            let topics = by_topic(partitions).into_iter();
            topics
                .map(|(name, indexes)| {
                    let mut topic = OffsetFetchRequestTopic::default();
                    topic.name = topic_name(name);
                    topic.partition_indexes = indexes;
                    topic
                })
                .collect()
        });
    }
    request
}

fn error_of_offset_fetch(response: &OffsetFetchResponse) -> i16 {
    response.groups.first().map_or(response.error_code, |group| group.error_code)
}

fn offsets_of(response: &OffsetFetchResponse) -> Result<BTreeMap<TopicPartition, Committed>, ClientError> {
    let in_groups = response.groups.iter().flat_map(|group| &group.topics).flat_map(|topic| {
        let row = |partition: &lockstep_wire::codec::offset_fetch_response::OffsetFetchResponsePartitions| {
            (partition.partition_index, partition.committed_offset, partition.metadata.clone(), partition.error_code)
        };
        topic.partitions.iter().map(move |partition| (&topic.name, row(partition)))
    });
    let alone = response.topics.iter().flat_map(|topic| {
        let row = |partition: &lockstep_wire::codec::offset_fetch_response::OffsetFetchResponsePartition| {
            (partition.partition_index, partition.committed_offset, partition.metadata.clone(), partition.error_code)
        };
        topic.partitions.iter().map(move |partition| (&topic.name, row(partition)))
    });
    let mut offsets = BTreeMap::new();
    for (name, (partition, offset, metadata, code)) in in_groups.chain(alone) {
        let at = TopicPartition::new(name.as_str(), partition);
        check_code(|| format!("committed offset of {at}"), code, None)?;
        if offset >= 0 {
            let metadata = metadata.map(|metadata| metadata.to_string()).unwrap_or_default();
            offsets.insert(at, Committed { offset, metadata });
        }
    }
    Ok(offsets)
}
