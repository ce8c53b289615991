//! Groups as they are seen from outside: members, assignments, committed offsets and lag.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use lockstep_env::Env;
use lockstep_wire::codec::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use lockstep_wire::codec::{
    ConsumerGroupDescribeRequest, DescribeGroupsRequest, GroupId, OffsetFetchRequest, OffsetFetchResponse, StrBytes,
    consumer_group_describe_response, describe_groups_response,
};
use serde::Serialize;

use crate::admin::{Admin, topic_name};
use crate::client::{Client, Purpose};
use crate::error::{ClientError, ErrorCode, check_code};
use crate::offsets::{OffsetAt, TopicPartition};

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupDescription {
    /// Group.
    pub group_id: String,
    /// `consumer` or `classic`.
    pub group_type: String,
    /// State, such as `Stable`.
    pub state: String,
    /// Epoch of the group; `None` for a classic one.
    pub epoch: Option<i32>,
    /// Who computes the assignment: an assignor of the broker, or the protocol that the members agreed on.
    pub assignor: String,
    /// Address of its coordinator.
    pub coordinator: String,
    /// Members by id.
    pub members: Vec<GroupMember>,
    /// Committed offsets by partition.
    pub offsets: Vec<GroupOffset>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupMember {
    /// Member.
    pub member_id: String,
    /// Instance, if it is a static member.
    pub instance_id: Option<String>,
    /// What its client calls itself.
    pub client_id: String,
    /// Where it connects from.
    pub client_host: String,
    /// Its epoch; `None` in a classic group.
    pub epoch: Option<i32>,
    /// Partitions it may read.
    pub assignment: Vec<TopicPartition>,
    /// Partitions it will have once the rebalance is over; the same as `assignment` in a classic group.
    pub target: Vec<TopicPartition>,
}

/// How far a group has come in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupOffset {
    /// Partition.
    #[serde(flatten)]
    pub at: TopicPartition,
    /// Offset to be read next; `None` if it was never committed.
    pub committed: Option<i64>,
    /// Offset that the next record will get; `None` if the partition is gone or has no leader.
    pub end: Option<i64>,
    /// Records between the two.
    pub lag: Option<i64>,
    /// The member that has it.
    pub member_id: Option<String>,
}

impl<E: Env> Admin<E> {
    /// A group of either protocol with its members, committed offsets and lag.
    ///
    /// # Errors
    /// The group does not exist, or the cluster did not answer in time.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, ClientError> {
        let mut retry = self.client().retry(format!("describing group {group}"));
        let mut description = loop {
            match self.try_describe_group(group).await {
                Ok(description) => break description,
                Err(error) => retry.pause(error).await?,
            }
        };
        description.offsets = self.group_offsets(&description).await?;
        Ok(description)
    }

    async fn try_describe_group(&self, group: &str) -> Result<GroupDescription, ClientError> {
        let client = self.client();
        let coordinator = client.coordinator(group).await?;
        let what = || format!("describing group {group}");
        let as_consumer = client
            .ask_coordinator(
                group,
                Purpose::Question,
                client.patience(),
                |_| {
                    let mut request = ConsumerGroupDescribeRequest::default();
                    request.group_ids = vec![group_id(group)];
                    request
                },
                |response| response.groups.first().map_or(0, |group| group.error_code),
            )
            .await;
        match as_consumer {
            Ok(response) => {
                let described = response.groups.into_iter().next();
                let described = described.ok_or_else(|| ClientError::bad_answer(&coordinator, "no group"))?;
                match check_code(what, described.error_code, described.error_message.as_deref()) {
                    Ok(()) => return Ok(of_consumer_group(described, coordinator)),
                    // It may be a classic group.
                    Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(ClientError::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
        let response = client
            .ask_coordinator(
                group,
                Purpose::Question,
                client.patience(),
                |_| {
                    let mut request = DescribeGroupsRequest::default();
                    request.groups = vec![group_id(group)];
                    request
                },
                |response| response.groups.first().map_or(0, |group| group.error_code),
            )
            .await?;
        let described = response.groups.into_iter().next();
        let described = described.ok_or_else(|| ClientError::bad_answer(&coordinator, "no group"))?;
        check_code(what, described.error_code, described.error_message.as_deref())?;
        // Before version 6 a group that does not exist is described as dead.
        if described.group_state.as_str() == "Dead" {
            return Err(ClientError::broker(what(), ErrorCode::GroupIdNotFound.code(), None));
        }
        Ok(of_classic_group(described, coordinator))
    }

    async fn group_offsets(&self, group: &GroupDescription) -> Result<Vec<GroupOffset>, ClientError> {
        let client = self.client();
        let mut owners: BTreeMap<TopicPartition, String> = BTreeMap::new();
        for member in &group.members {
            for at in &member.assignment {
                owners.insert(at.clone(), member.member_id.clone());
            }
        }
        let mut committed: BTreeMap<TopicPartition, Option<i64>> = owners.keys().map(|at| (at.clone(), None)).collect();
        let offsets = client.committed_offsets(&group.group_id, None).await?;
        committed.extend(offsets.into_iter().map(|(at, offset)| (at, Some(offset))));

        // A topic that was deleted keeps no end, and must not keep the rest from being shown.
        let mut places = BTreeMap::new();
        for at in committed.keys() {
            let topic = match client.cached_topic(&at.topic) {
                Some(topic) => Some(topic),
                None => client.topic(&at.topic, false).await.ok(),
            };
            if topic.is_some_and(|topic| topic.partition(at.partition).is_some_and(|info| info.leader.is_some())) {
                places.insert(at.clone(), OffsetAt::Latest);
            }
        }
        let ends = client.offsets(&places).await.unwrap_or_default();
        Ok(committed
            .into_iter()
            .map(|(at, committed)| {
                let end = ends.get(&at).copied();
                let lag = committed.zip(end).map(|(committed, end)| (end - committed).max(0));
                GroupOffset { committed, end, lag, member_id: owners.get(&at).cloned(), at }
            })
            .collect())
    }
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
}

pub(super) fn group_id(group: &str) -> GroupId {
    GroupId(StrBytes::from_string(group.to_owned()))
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

fn offsets_of(response: &OffsetFetchResponse) -> Result<BTreeMap<TopicPartition, i64>, ClientError> {
    let in_groups = response.groups.iter().flat_map(|group| &group.topics).flat_map(|topic| {
        let row = |partition: &lockstep_wire::codec::offset_fetch_response::OffsetFetchResponsePartitions| {
            (partition.partition_index, partition.committed_offset, partition.error_code)
        };
        topic.partitions.iter().map(move |partition| (&topic.name, row(partition)))
    });
    let alone = response.topics.iter().flat_map(|topic| {
        let row = |partition: &lockstep_wire::codec::offset_fetch_response::OffsetFetchResponsePartition| {
            (partition.partition_index, partition.committed_offset, partition.error_code)
        };
        topic.partitions.iter().map(move |partition| (&topic.name, row(partition)))
    });
    let mut offsets = BTreeMap::new();
    for (name, (partition, offset, code)) in in_groups.chain(alone) {
        let at = TopicPartition::new(name.as_str(), partition);
        check_code(|| format!("committed offset of {at}"), code, None)?;
        if offset >= 0 {
            offsets.insert(at, offset);
        }
    }
    Ok(offsets)
}

fn of_consumer_group(group: consumer_group_describe_response::DescribedGroup, coordinator: String) -> GroupDescription {
    let partitions_of = |assignment: &consumer_group_describe_response::Assignment| {
        let mut partitions: Vec<TopicPartition> = assignment
            .topic_partitions
            .iter()
            .flat_map(|topic| {
                let name: Arc<str> = Arc::from(topic.topic_name.as_str());
                topic.partitions.iter().map(move |&partition| TopicPartition::new(Arc::clone(&name), partition))
            })
            .collect();
        partitions.sort();
        partitions
    };
    let mut members: Vec<GroupMember> = group
        .members
        .iter()
        .map(|member| GroupMember {
            member_id: member.member_id.to_string(),
            instance_id: member.instance_id.as_ref().map(ToString::to_string),
            client_id: member.client_id.to_string(),
            client_host: member.client_host.to_string(),
            epoch: Some(member.member_epoch),
            assignment: partitions_of(&member.assignment),
            target: partitions_of(&member.target_assignment),
        })
        .collect();
    members.sort_by(|a, b| a.member_id.cmp(&b.member_id));
    GroupDescription {
        group_id: group.group_id.to_string(),
        group_type: "consumer".to_owned(),
        state: group.group_state.to_string(),
        epoch: Some(group.group_epoch),
        assignor: group.assignor_name.to_string(),
        coordinator,
        members,
        offsets: Vec::new(),
    }
}

fn of_classic_group(group: describe_groups_response::DescribedGroup, coordinator: String) -> GroupDescription {
    let mut members: Vec<GroupMember> = group
        .members
        .iter()
        .map(|member| {
            // Another client wrote it: what cannot be read is shown as nothing.
            let assignment = classic_assignment(member.member_assignment.clone()).unwrap_or_default();
            GroupMember {
                member_id: member.member_id.to_string(),
                instance_id: member.group_instance_id.as_ref().map(ToString::to_string),
                client_id: member.client_id.to_string(),
                client_host: member.client_host.to_string(),
                epoch: None,
                target: assignment.clone(),
                assignment,
            }
        })
        .collect();
    members.sort_by(|a, b| a.member_id.cmp(&b.member_id));
    GroupDescription {
        group_id: group.group_id.to_string(),
        group_type: "classic".to_owned(),
        state: group.group_state.to_string(),
        epoch: None,
        assignor: group.protocol_data.to_string(),
        coordinator,
        members,
        offsets: Vec::new(),
    }
}

/// The assignment that a classic group's leader made: a version, then topics with their partitions. Later versions only
/// append.
fn classic_assignment(mut bytes: Bytes) -> Option<Vec<TopicPartition>> {
    let version = bytes.try_get_i16().ok()?;
    let topics = bytes.try_get_i32().ok()?;
    if version < 0 || topics < 0 {
        return None;
    }
    let mut assignment = Vec::new();
    for _ in 0..topics {
        let name_len = usize::try_from(bytes.try_get_i16().ok()?).ok()?;
        if name_len > bytes.len() {
            return None;
        }
        let name = bytes.split_to(name_len);
        let name: Arc<str> = Arc::from(std::str::from_utf8(&name).ok()?);
        for _ in 0..bytes.try_get_i32().ok()? {
            assignment.push(TopicPartition::new(Arc::clone(&name), bytes.try_get_i32().ok()?));
        }
    }
    assignment.sort();
    Some(assignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_assignments_of_any_bytes_are_read_or_refused() {
        let good = b"\0\x03\0\0\0\x01\0\x01t\0\0\0\x02\0\0\0\x01\0\0\0\0\xff\xff\xff\xff";
        let read = classic_assignment(Bytes::from_static(good)).expect("read");
        assert_eq!(read, [TopicPartition::new("t", 0), TopicPartition::new("t", 1)]);
        for len in 0..good.len() - 4 {
            assert_eq!(classic_assignment(Bytes::from_static(&good[..len])), None, "{len}");
        }
        assert_eq!(classic_assignment(Bytes::from_static(b"\0\0\x7f\xff\xff\xff")), None);
    }
}
