//! Groups as they are seen from outside: members, assignments, committed offsets and lag.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use lockstep_env::Env;
use lockstep_wire::codec::{
    ConsumerGroupDescribeRequest, DescribeGroupsRequest, GroupId, StrBytes, consumer_group_describe_response,
    describe_groups_response,
};
use serde::Serialize;

use super::lag::LagTotal;
use crate::admin::Admin;
use crate::client::Purpose;
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
    /// Records that are kept and were not read, in all partitions of which that is known; `None` when it is known of none.
    pub lag: Option<i64>,
    /// How long the oldest of these records has been waiting, in milliseconds; `None` when that is not known.
    pub lag_ms: Option<u64>,
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
    /// Records that are kept and were not read: 0 or more.
    pub lag: Option<i64>,
    /// How long the first unread record has been waiting, in milliseconds: the broker's clock less the timestamp of the batch that
    /// holds it. 0 when there is none; `None` when that time is not known, and from brokers other than Lockstep's.
    pub lag_ms: Option<u64>,
    /// The member that has it.
    pub member_id: Option<String>,
}

impl<E: Env> Admin<E> {
    /// A group of either protocol with its members, committed offsets and lag.
    ///
    /// Every part of it is a linearizable read of its own: each shows what was acknowledged before the call, whichever broker is
    /// reached first.
    ///
    /// # Errors
    /// The group does not exist, or the cluster did not answer in time.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, ClientError> {
        let mut description = self.describe_members(group).await?;
        description.offsets = self.group_offsets(&description).await?;
        let lag = LagTotal::of(description.offsets.iter().map(|offset| (offset.lag, offset.lag_ms)));
        (description.lag, description.lag_ms) = (lag.lag, lag.lag_ms);
        Ok(description)
    }

    /// A group without its offsets.
    pub(super) async fn describe_members(&self, group: &str) -> Result<GroupDescription, ClientError> {
        let mut retry = self.client().retry(format!("describing group {group}"));
        loop {
            match self.try_describe_group(group).await {
                Ok(description) => return Ok(description),
                Err(error) => retry.pause(error).await?,
            }
        }
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
        let mut owners: BTreeMap<TopicPartition, String> = BTreeMap::new();
        for member in &group.members {
            for at in &member.assignment {
                owners.insert(at.clone(), member.member_id.clone());
            }
        }
        let nothing = |at: &TopicPartition| GroupOffset {
            at: at.clone(),
            committed: None,
            end: None,
            lag: None,
            lag_ms: None,
            member_id: owners.get(at).cloned(),
        };
        let mut offsets: BTreeMap<TopicPartition, GroupOffset> =
            owners.keys().map(|at| (at.clone(), nothing(at))).collect();
        // Partitions whose ends the broker that was asked could not tell, or was not asked for.
        let mut missing: BTreeSet<TopicPartition> = owners.keys().cloned().collect();
        match self.lag_of_group(&group.group_id).await? {
            Some(partitions) => {
                for lag in partitions {
                    let at = TopicPartition::new(lag.topic, lag.partition);
                    let is_elsewhere = lag.error_code == ErrorCode::NotLeaderOrFollower.code();
                    if is_elsewhere {
                        missing.insert(at.clone())
                    } else {
                        missing.remove(&at)
                    };
                    let offset = GroupOffset {
                        committed: Some(lag.committed),
                        end: lag.end,
                        lag: lag.lag,
                        lag_ms: lag.lag_ms,
                        ..nothing(&at)
                    };
                    offsets.insert(at, offset);
                }
            }
            None => {
                for (at, committed) in self.client().committed_offsets(&group.group_id, None).await? {
                    missing.insert(at.clone());
                    offsets.insert(at.clone(), GroupOffset { committed: Some(committed), ..nothing(&at) });
                }
            }
        }
        let places = self.with_leaders(&missing).await;
        let starts = self.offsets_at(&places, OffsetAt::Earliest).await;
        let ends = self.offsets_at(&places, OffsetAt::Latest).await;
        for (at, end) in ends {
            if let Some(offset) = offsets.get_mut(&at) {
                offset.end = Some(end);
                // What is not kept any more cannot be read.
                let start = starts.get(&at).copied().unwrap_or(0);
                offset.lag = offset.committed.map(|committed| end.saturating_sub(committed.max(start)).max(0));
                offset.lag_ms = offset.lag.filter(|lag| *lag == 0).map(|_| 0);
            }
        }
        Ok(offsets.into_values().collect())
    }

    /// Those of these partitions that exist and have a leader: others must not keep the rest from being shown.
    async fn with_leaders(&self, partitions: &BTreeSet<TopicPartition>) -> BTreeSet<TopicPartition> {
        let client = self.client();
        let mut places = BTreeSet::new();
        for at in partitions {
            let topic = match client.cached_topic(&at.topic) {
                Some(topic) => Some(topic),
                None => client.topic(&at.topic, false).await.ok(),
            };
            if topic.is_some_and(|topic| topic.partition(at.partition).is_some_and(|info| info.leader.is_some())) {
                places.insert(at.clone());
            }
        }
        places
    }

    /// The starts or ends of partitions, as their leaders say, as far as they say.
    async fn offsets_at(&self, partitions: &BTreeSet<TopicPartition>, at: OffsetAt) -> BTreeMap<TopicPartition, i64> {
        let places = partitions.iter().map(|partition| (partition.clone(), at)).collect();
        self.client().offsets(&places).await.unwrap_or_default()
    }
}

pub(super) fn group_id(group: &str) -> GroupId {
    GroupId(StrBytes::from_string(group.to_owned()))
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
        lag: None,
        lag_ms: None,
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
        lag: None,
        lag_ms: None,
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
