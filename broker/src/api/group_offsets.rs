//! OffsetCommit and OffsetFetch: what a group has committed.
//!
//! Topics are kept by id; names are looked up in the shard's own directory, the one that commits are checked against.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_core::op::{CommitOffset, OffsetToCommit};
use lockstep_core::view::CommittedOffset;
use lockstep_core::{ClusterStateMachine, Op, Reply, TopicId};
use lockstep_env::{Env, Step};
use lockstep_probe::{Mark, Mistake};
use lockstep_runtime::Shard;
use lockstep_wire::ApiKey;
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use lockstep_wire::codec::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use lockstep_wire::codec::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, StrBytes, TopicName,
};

use crate::api::group_coordinator::{OP_BYTES_MAX, Refused, coordinated, propose, wrong_reply};
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics;

/// What one offset takes in an op besides its metadata, at most.
const OFFSET_BYTES: usize = 48;
/// How long a commit waits for its coordinator to hear of a topic that was just created.
const NEW_TOPIC_TIMEOUT: Duration = Duration::from_millis(500);
/// The request's name, for the log.
const COMMIT: &str = "OffsetCommit";
/// Kafka's "nothing was committed".
const NO_OFFSET: i64 = -1;

/// Whether a frame, without its length prefix, is an OffsetCommit request.
pub(crate) fn is_commit(frame: &[u8]) -> bool {
    frame.first_chunk() == Some(&ApiKey::OffsetCommit.code().to_be_bytes())
}

/// Checks a commit and proposes it. What is returned waits for the outcome, and need not be polled for the commit to be made.
pub(crate) async fn begin_commit<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: OffsetCommitRequest,
) -> impl Future<Output = OffsetCommitResponse> + Send + 'static + use<E> {
    let begun = try_commit(broker, context.api_version, &request).await;
    async move {
        let (group, member) = (request.group_id.as_str(), request.member_id.as_str());
        let epoch = request.generation_id_or_member_epoch;
        let outcomes = match begun {
            Ok(begun) => begun.outcomes(group).await,
            Err(refused) => Err(refused),
        };
        let outcomes = match outcomes {
            Ok(outcomes) => {
                tracing::debug!(group, member, epoch, "OffsetCommit");
                outcomes
            }
            Err(refused) => {
                tracing::info!(group, member, epoch, error = ?refused.error, "OffsetCommit refused");
                request.topics.iter().map(|topic| vec![refused.error; topic.partitions.len()]).collect()
            }
        };
        answer_commit(request.topics, &outcomes)
    }
}

/// `outcomes` has one for each partition, in the order of the request.
fn answer_commit(topics: Vec<OffsetCommitRequestTopic>, outcomes: &[Vec<ErrorCode>]) -> OffsetCommitResponse {
    let topics = topics.into_iter().zip(outcomes).map(|(topic, outcomes)| {
        let partitions = topic.partitions.iter().zip(outcomes).map(|(partition, error)| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(error.code())
        });
        OffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

/// A commit that was proposed.
struct BegunCommit<P> {
    /// For each partition, in the order of the request: what is known without the reply.
    outcomes: Vec<Vec<ErrorCode>>,
    /// Where in `outcomes` the proposed ones stand.
    slots: Vec<(usize, usize)>,
    /// `None` when nothing was left to propose.
    proposed: Option<P>,
}

impl<P: Future<Output = Result<Reply, Refused>>> BegunCommit<P> {
    /// Waits for the reply; one outcome for each partition, in the order of the request.
    async fn outcomes(mut self, group: &str) -> Result<Vec<Vec<ErrorCode>>, Refused> {
        let Some(proposed) = self.proposed else { return Ok(self.outcomes) };
        let reply = match proposed.await {
            Err(_) if Mistake::CommitAnsweredDespiteFailure.is_made() => {
                Reply::Commit(Ok(vec![Ok(()); self.slots.len()]))
            }
            reply => reply?,
        };
        let committed = match reply {
            Reply::Commit(Ok(committed)) if committed.len() == self.slots.len() => committed,
            Reply::Commit(Err(error)) => return Err(error.into()),
            other => return Err(wrong_reply(COMMIT, group, &other)),
        };
        for ((topic_index, partition_index), outcome) in self.slots.into_iter().zip(committed) {
            self.outcomes[topic_index][partition_index] =
                outcome.map_or_else(|error| ErrorCode::of_group(&error), |()| ErrorCode::None);
        }
        Ok(self.outcomes)
    }
}

async fn try_commit<E: Env>(
    broker: &Broker<E>,
    version: i16,
    request: &OffsetCommitRequest,
) -> Result<BegunCommit<impl Future<Output = Result<Reply, Refused>> + Send + 'static + use<E>>, Refused> {
    let group = request.group_id.as_str();
    let shard = coordinated(broker, COMMIT, group)?;
    let mut known = shard.read(|state| KnownOffsets::of(state, version, request));
    if !known.unknown_topics.is_empty() {
        hear_of(broker, &shard, &known.unknown_topics).await;
        known = shard.read(|state| KnownOffsets::of(state, version, request));
    }
    let KnownOffsets { slots, offsets, bytes, .. } = known;
    if bytes > OP_BYTES_MAX {
        return Err(ErrorCode::InvalidCommitOffsetSize.into());
    }
    let outcomes: Vec<Vec<ErrorCode>> =
        request.topics.iter().map(|topic| vec![ErrorCode::UnknownTopicOrPartition; topic.partitions.len()]).collect();
    let proposed = (!offsets.is_empty()).then(|| {
        let op = Op::CommitOffset(CommitOffset {
            group_id: group.to_owned(),
            member_id: request.member_id.to_string(),
            instance_id: request.group_instance_id.as_ref().map(|id| id.to_string()),
            generation_or_epoch: request.generation_id_or_member_epoch,
            knows_epochs: version >= 9,
            now_ms: broker.env().wall_clock_ms(),
            offsets,
        });
        propose(&shard, COMMIT, group, op)
    });
    Ok(BegunCommit { outcomes, slots, proposed })
}

/// What of a commit is for partitions that the shard knows.
#[derive(Default)]
struct KnownOffsets<'a> {
    /// Where in the request they stand: topic and partition.
    slots: Vec<(usize, usize)>,
    offsets: Vec<OffsetToCommit>,
    /// What they take in an op, at most.
    bytes: usize,
    unknown_topics: BTreeSet<&'a str>,
}

impl<'a> KnownOffsets<'a> {
    fn of(state: &ClusterStateMachine, version: i16, request: &'a OffsetCommitRequest) -> Self {
        let mut known = Self::default();
        for (topic_index, topic) in request.topics.iter().enumerate() {
            let Some(record) = state.directory().topic(&topic.name) else {
                known.unknown_topics.insert(&topic.name);
                continue;
            };
            for (partition_index, partition) in topic.partitions.iter().enumerate() {
                let Some(offset) = offset_to_commit(version, record.id, record.partitions.len(), partition) else {
                    continue;
                };
                known.bytes += OFFSET_BYTES + offset.metadata.len();
                known.slots.push((topic_index, partition_index));
                known.offsets.push(offset);
            }
        }
        known
    }
}

/// `None`: there is no such partition.
fn offset_to_commit(
    version: i16,
    topic_id: TopicId,
    partitions: usize,
    request: &OffsetCommitRequestPartition,
) -> Option<OffsetToCommit> {
    let partition = u32::try_from(request.partition_index).ok().filter(|index| (*index as usize) < partitions)?;
    Some(OffsetToCommit {
        topic_id,
        partition,
        offset: request.committed_offset,
        leader_epoch: if version >= 6 { request.committed_leader_epoch } else { -1 },
        metadata: request.committed_metadata.as_ref().map(|metadata| metadata.to_string()).unwrap_or_default(),
    })
}

/// Gives the shard time to hear of topics that exist but that it does not know yet.
pub(crate) async fn hear_of<E: Env>(broker: &Broker<E>, shard: &Shard<E>, names: &BTreeSet<&str>) {
    let unknown = |state: &ClusterStateMachine| -> Vec<&str> {
        names.iter().filter(|name| state.directory().topic(name).is_none()).copied().collect()
    };
    let missing = shard.read(unknown);
    if missing.is_empty() {
        return;
    }
    topics::freshen_directory(broker).await;
    let exists = broker
        .node()
        .directory(|directory| missing.iter().any(|name| directory.topic(name).is_some()).then_some(directory.version));
    if let Some(version) = exists
        && !broker.node().wait_metadata(version, NEW_TOPIC_TIMEOUT).await
    {
        Mark::CoordinatorKnowsTopicLate.reached();
        tracing::debug!(version, "the coordinator has not heard of the newest topics yet");
    }
}

/// One group's part of an OffsetFetch.
struct Asked {
    group: String,
    member_id: String,
    member_epoch: i32,
    /// `None`: everything that was committed.
    topics: Option<Vec<(TopicName, Vec<i32>)>>,
}

/// The offsets of one topic; `None` where nothing was committed.
struct Fetched {
    name: TopicName,
    partitions: Vec<(i32, Option<CommittedOffset>)>,
}

pub(crate) async fn fetch<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    let version = context.api_version;
    if version >= 8 {
        let mut told = BTreeSet::new();
        let groups = request.groups.into_iter().filter(|group| told.insert(group.group_id.clone())).map(|group| {
            let group_id = group.group_id;
            let asked = Asked {
                group: group_id.to_string(),
                member_id: group.member_id.map(|id| id.to_string()).unwrap_or_default(),
                member_epoch: if version >= 9 { group.member_epoch } else { -1 },
                topics: group
                    .topics
                    .map(|topics| topics.into_iter().map(|topic| (topic.name, topic.partition_indexes)).collect()),
            };
            let response = OffsetFetchResponseGroup::default().with_group_id(group_id);
            match fetch_group(broker, asked) {
                Ok(fetched) => response.with_topics(fetched.into_iter().map(answer_topic_of_group).collect()),
                Err(error) => response.with_error_code(error.code()),
            }
        });
        return OffsetFetchResponse::default().with_groups(groups.collect());
    }
    let names: Option<Vec<(TopicName, Vec<i32>)>> =
        request.topics.map(|topics| topics.into_iter().map(|topic| (topic.name, topic.partition_indexes)).collect());
    let asked = Asked {
        group: request.group_id.to_string(),
        member_id: String::new(),
        member_epoch: -1,
        topics: names.clone(),
    };
    match fetch_group(broker, asked) {
        Ok(fetched) => {
            let topics = fetched.into_iter().map(|topic| answer_topic(version, topic, ErrorCode::None));
            OffsetFetchResponse::default().with_topics(topics.collect())
        }
        Err(error) if version >= 2 => OffsetFetchResponse::default().with_error_code(error.code()),
        // Version 1 can only say it of each partition.
        Err(error) => {
            let topics = names.unwrap_or_default().into_iter().map(|(name, indexes)| {
                let partitions = indexes.into_iter().map(|index| (index, None)).collect();
                answer_topic(version, Fetched { name, partitions }, error)
            });
            OffsetFetchResponse::default().with_topics(topics.collect())
        }
    }
}

/// Reads applied state: a coordinator that holds its lease has applied every commit that was ever acknowledged. There are no
/// transactions, so that offsets are always stable.
fn fetch_group<E: Env>(broker: &Broker<E>, asked: Asked) -> Result<Vec<Fetched>, ErrorCode> {
    let outcome = coordinated(broker, "OffsetFetch", &asked.group).and_then(|shard| {
        Ok(shard.read(|state| {
            state.check_offset_fetch(&asked.group, &asked.member_id, asked.member_epoch)?;
            Ok::<_, lockstep_core::GroupError>(read_offsets(state, &asked.group, asked.topics.as_deref()))
        })?)
    });
    match outcome {
        Ok(fetched) => {
            broker.env().reached(Step::BeforeOffsetsAnswer);
            tracing::debug!(group = asked.group, member = asked.member_id, topics = fetched.len(), "OffsetFetch");
            Ok(fetched)
        }
        Err(refused) => {
            tracing::info!(group = asked.group, member = asked.member_id, error = ?refused.error, "OffsetFetch refused");
            Err(refused.error)
        }
    }
}

fn read_offsets(state: &ClusterStateMachine, group: &str, topics: Option<&[(TopicName, Vec<i32>)]>) -> Vec<Fetched> {
    let Some(topics) = topics else {
        return read_all_offsets(state, group);
    };
    // Each partition once: the metadata of an offset may be a thousand times as long as the question for it.
    let mut told = BTreeSet::new();
    let topics = topics.iter().map(|(name, indexes)| {
        let topic_id = state.directory().topic(name).map(|record| record.id);
        let indexes = indexes.iter().filter(|index| told.insert((name, **index)));
        let partitions = indexes.map(|index| {
            let partition = u32::try_from(*index).ok();
            let offset = topic_id
                .zip(partition)
                .and_then(|(topic_id, partition)| state.committed_offset(group, topic_id, partition));
            (*index, offset)
        });
        Fetched { name: name.clone(), partitions: partitions.collect() }
    });
    topics.collect()
}

fn read_all_offsets(state: &ClusterStateMachine, group: &str) -> Vec<Fetched> {
    let mut all: Vec<Fetched> = Vec::new();
    let mut last = None;
    for offset in state.committed_offsets(group) {
        // Ascending by topic. Of a topic that was deleted just now nothing is told any more.
        let Some(record) = state.directory().topics.get(&offset.topic_id) else { continue };
        if last != Some(offset.topic_id) {
            last = Some(offset.topic_id);
            all.push(Fetched { name: TopicName(record.name.clone().into()), partitions: Vec::new() });
        }
        if let (Some(topic), Ok(index)) = (all.last_mut(), i32::try_from(offset.partition)) {
            topic.partitions.push((index, Some(offset)));
        }
    }
    all
}

/// Offset, leader epoch and metadata as they are told.
fn told(offset: Option<CommittedOffset>) -> (i64, i32, StrBytes) {
    match offset {
        Some(offset) => (offset.offset, offset.leader_epoch, offset.metadata.into()),
        None => (NO_OFFSET, -1, StrBytes::default()),
    }
}

fn answer_topic_of_group(fetched: Fetched) -> OffsetFetchResponseTopics {
    let partitions = fetched.partitions.into_iter().map(|(index, offset)| {
        let (offset, leader_epoch, metadata) = told(offset);
        OffsetFetchResponsePartitions::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(leader_epoch)
            .with_metadata(Some(metadata))
    });
    OffsetFetchResponseTopics::default().with_name(fetched.name).with_partitions(partitions.collect())
}

fn answer_topic(version: i16, fetched: Fetched, error: ErrorCode) -> OffsetFetchResponseTopic {
    let partitions = fetched.partitions.into_iter().map(|(index, offset)| {
        let (offset, leader_epoch, metadata) = told(offset);
        let mut partition = OffsetFetchResponsePartition::default()
            .with_partition_index(index)
            .with_committed_offset(offset)
            .with_metadata(Some(metadata))
            .with_error_code(error.code());
        if version >= 5 {
            partition.committed_leader_epoch = leader_epoch;
        }
        partition
    });
    OffsetFetchResponseTopic::default().with_name(fetched.name).with_partitions(partitions.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_wire::frame::encode_response;

    fn fetched() -> Fetched {
        let offset = CommittedOffset {
            topic_id: TopicId([1; 16]),
            partition: 0,
            offset: 42,
            leader_epoch: 3,
            metadata: "m".to_owned(),
            commit_time_ms: 0,
        };
        Fetched { name: TopicName("t".into()), partitions: vec![(0, Some(offset)), (1, None)] }
    }

    #[test]
    fn fetch_responses_encode_in_every_version() {
        for version in 1..=7 {
            for error in [ErrorCode::None, ErrorCode::NotCoordinator] {
                let topic = answer_topic(version, fetched(), error);
                assert_eq!(topic.partitions[1].committed_offset, -1);
                let response = OffsetFetchResponse::default().with_topics(vec![topic]);
                encode_response(version, 1, &response.into()).unwrap_or_else(|error| panic!("{version}: {error}"));
            }
        }
        for version in 8..=9 {
            let group = OffsetFetchResponseGroup::default().with_topics(vec![answer_topic_of_group(fetched())]);
            let response = OffsetFetchResponse::default().with_groups(vec![group]);
            encode_response(version, 1, &response.into()).unwrap_or_else(|error| panic!("{version}: {error}"));
        }
    }

    #[test]
    fn partitions_that_are_not_there_are_not_committed() {
        let request =
            |index| OffsetCommitRequestPartition::default().with_partition_index(index).with_committed_offset(1);
        for (index, exists) in [(-1, false), (0, true), (2, true), (3, false), (i32::MIN, false)] {
            assert_eq!(offset_to_commit(9, TopicId([1; 16]), 3, &request(index)).is_some(), exists, "{index}");
        }
    }

    #[test]
    fn a_commit_is_answered_partition_by_partition() {
        let partition = |index| OffsetCommitRequestPartition::default().with_partition_index(index);
        let topic = OffsetCommitRequestTopic::default()
            .with_name(TopicName("t".into()))
            .with_partitions(vec![partition(4), partition(2)]);
        let response = answer_commit(vec![topic], &[vec![ErrorCode::None, ErrorCode::UnknownTopicOrPartition]]);
        let told: Vec<(i32, i16)> =
            response.topics[0].partitions.iter().map(|one| (one.partition_index, one.error_code)).collect();
        assert_eq!(told, [(4, 0), (2, 3)]);
    }
}
