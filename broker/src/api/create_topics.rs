//! CreateTopics: decided on shard 0, answered when every shard's leader knows of the topics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_core::{ShardId, TopicRecord};
use lockstep_env::Env;
use lockstep_wire::codec::create_topics_request::CreatableTopic;
use lockstep_wire::codec::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use lockstep_wire::codec::{CreateTopicsRequest, CreateTopicsResponse, TopicName};

use crate::api::describe_configs::source_code;
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topic_config;
use crate::topics::{self, Refusal};

/// A shorter time-out in a request would leave the client without knowing what became of its topics.
const TIMEOUT_MIN_MS: i32 = 1_000;
/// No request waits longer.
const TIMEOUT_MAX_MS: i32 = 120_000;

/// How long to wait for what a request of an administrator asks for.
pub(crate) fn admin_timeout(timeout_ms: i32) -> Duration {
    Duration::from_millis(timeout_ms.clamp(TIMEOUT_MIN_MS, TIMEOUT_MAX_MS).unsigned_abs().into())
}

/// A topic whose request was found sane.
struct Plan {
    name: String,
    partitions: u32,
    configs: BTreeMap<String, String>,
}

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let version = context.api_version;
    let timeout = admin_timeout(request.timeout_ms);
    let mut seen = BTreeSet::new();
    let duplicates: BTreeSet<TopicName> =
        request.topics.iter().filter(|topic| !seen.insert(&topic.name)).map(|topic| topic.name.clone()).collect();
    topics::freshen_directory(broker).await;

    // Proposed together, so that a request for many topics costs little more than one for a single topic.
    let mut under_way = Vec::with_capacity(request.topics.len());
    let mut named = BTreeSet::new();
    for topic in &request.topics {
        if duplicates.contains(&topic.name) {
            if named.insert(&topic.name) {
                let refusal = Refusal::new(ErrorCode::InvalidRequest, "The request names this topic more than once.");
                under_way.push((topic.name.clone(), Err(refusal)));
            }
            continue;
        }
        let outcome = plan(broker, topic).map(|plan| {
            let broker = broker.clone();
            let validate_only = request.validate_only;
            E::spawn(async move {
                if validate_only {
                    return Ok(TopicRecord {
                        id: lockstep_core::TopicId([0; 16]),
                        name: plan.name,
                        partitions: vec![ShardId::METADATA; plan.partitions as usize],
                        configs: plan.configs,
                        version: 0,
                    });
                }
                topics::create(&broker, plan.name, plan.partitions, plan.configs, timeout).await
            })
        });
        under_way.push((topic.name.clone(), outcome));
    }

    let mut outcomes = Vec::with_capacity(under_way.len());
    for (name, outcome) in under_way {
        let outcome = match outcome {
            Ok(task) => task.await.unwrap_or_else(|error| {
                tracing::error!(topic = &**name, %error, "creating a topic failed unexpectedly");
                Err(ErrorCode::UnknownServerError.into())
            }),
            Err(refusal) => Err(refusal),
        };
        outcomes.push((name, outcome));
    }
    let newest = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()).map(|topic| topic.version).max();
    let mut settled = true;
    if let Some(newest) = newest.filter(|_| !request.validate_only) {
        settled = topics::settle(broker, newest, timeout).await;
    }
    let results = outcomes
        .into_iter()
        .map(|(name, outcome)| match outcome {
            Ok(_) if !settled => refused(
                version,
                name,
                &Refusal::new(
                    ErrorCode::RequestTimedOut,
                    "The topic was created, but not every shard knows of it yet.",
                ),
            ),
            Ok(topic) => created(broker, version, &topic),
            Err(refusal) => refused(version, name, &refusal),
        })
        .collect();
    CreateTopicsResponse::default().with_topics(results)
}

/// Checks what can be checked before anything is proposed.
fn plan<E: Env>(broker: &Broker<E>, topic: &CreatableTopic) -> Result<Plan, Refusal> {
    let name = topic.name.to_string();
    if !topic_config::is_legal_topic_name(&name) {
        return Err(ErrorCode::InvalidTopic.into());
    }
    let (exists, brokers) = broker.node().directory(|directory| {
        (directory.topic(&name).is_some(), directory.brokers.keys().copied().collect::<BTreeSet<_>>())
    });
    if exists {
        return Err(Refusal::new(ErrorCode::TopicAlreadyExists, format!("Topic '{name}' already exists.")));
    }
    let partitions = if topic.assignments.is_empty() {
        check_replication(topic.replication_factor, broker.config().node.peers.len())?;
        match topic.num_partitions {
            -1 => broker.config().topics.partitions,
            count => u32::try_from(count)
                .ok()
                .filter(|count| (1..=10_000).contains(count))
                .ok_or(ErrorCode::InvalidPartitions)?,
        }
    } else {
        check_assignments(topic, &brokers)?
    };
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let Some(value) = &config.value else {
            return Err(Refusal::new(
                ErrorCode::InvalidConfig,
                format!("Null value not supported for topic configs: {}", config.name.as_str()),
            ));
        };
        topic_config::check(&config.name, value).map_err(|message| Refusal::new(ErrorCode::InvalidConfig, message))?;
        configs.insert(config.name.to_string(), value.to_string());
    }
    Ok(Plan { name, partitions, configs })
}

/// Every shard has its replicas already: a factor that the cluster can meet is accepted, and the real one is reported.
fn check_replication(factor: i16, nodes: usize) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidReplicationFactor, message));
    match factor {
        -1 => Ok(()),
        ..=0 => refuse("Replication factor must be larger than 0, or -1 for the default.".to_owned()),
        _ if factor.unsigned_abs() as usize > nodes => {
            refuse(format!("Replication factor {factor} is larger than the number of brokers, {nodes}."))
        }
        _ => Ok(()),
    }
}

/// Where partitions live is for the cluster to decide, so a manual assignment fixes only how many there are; but it must make sense.
fn check_assignments(topic: &CreatableTopic, brokers: &BTreeSet<u64>) -> Result<u32, Refusal> {
    if topic.num_partitions != -1 || topic.replication_factor != -1 {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            "Partitions and replication factor must be -1 when replicas are assigned.",
        ));
    }
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
    let mut partitions = BTreeSet::new();
    for assignment in &topic.assignments {
        let index = assignment.partition_index;
        if !partitions.insert(index) {
            return refuse(format!("Partition {index} is assigned twice."));
        }
        if assignment.broker_ids.is_empty() {
            return refuse(format!("Partition {index} has no replicas."));
        }
        let mut replicas = BTreeSet::new();
        for replica in &assignment.broker_ids {
            if !u64::try_from(replica.0).is_ok_and(|id| brokers.contains(&id)) {
                return refuse(format!("Partition {index} names broker {}, which is unknown.", replica.0));
            }
            if !replicas.insert(replica.0) {
                return refuse(format!("Partition {index} names broker {} twice.", replica.0));
            }
        }
    }
    let count = u32::try_from(partitions.len()).unwrap_or(u32::MAX);
    if count > 10_000 {
        return Err(ErrorCode::InvalidPartitions.into());
    }
    if partitions.iter().zip(0..).any(|(index, expected)| *index != expected) {
        return refuse("Partitions must be numbered from 0 without gaps.".to_owned());
    }
    Ok(count)
}

fn created<E: Env>(broker: &Broker<E>, version: i16, topic: &TopicRecord) -> CreatableTopicResult {
    let mut result =
        CreatableTopicResult::default().with_name(TopicName(topic.name.clone().into())).with_error_message(None);
    if version >= 5 {
        let shard = topic.partitions.first().copied().unwrap_or(ShardId::METADATA);
        let replicas = broker.node().replicas(shard).len();
        let segment_bytes = broker.config().node.segment_bytes;
        let configs = topic_config::shown(&topic.configs, segment_bytes).map(|shown| {
            CreatableTopicConfigs::default()
                .with_name(shown.setting.name.into())
                .with_value(Some(shown.value.into()))
                .with_config_source(source_code(shown.source))
        });
        result = result
            .with_num_partitions(i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX))
            .with_replication_factor(i16::try_from(replicas).unwrap_or(i16::MAX))
            .with_configs(Some(configs.collect()));
    }
    if version >= 7 {
        result = result.with_topic_id(topics::uuid(topic.id));
    }
    result
}

fn refused(version: i16, name: TopicName, refusal: &Refusal) -> CreatableTopicResult {
    let result = CreatableTopicResult::default()
        .with_name(name)
        .with_error_code(refusal.error.code())
        .with_error_message(Some(refusal.message.clone().into()));
    if version >= 5 { result.with_configs(None) } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_wire::codec::BrokerId;
    use lockstep_wire::codec::create_topics_request::CreatableReplicaAssignment;

    #[test]
    fn a_replication_factor_must_be_one_the_cluster_can_meet() {
        for factor in [-1, 1, 3] {
            assert_eq!(check_replication(factor, 3), Ok(()));
        }
        for factor in [-2, 0, 4] {
            let refusal = check_replication(factor, 3).expect_err("must be refused");
            assert_eq!(refusal.error, ErrorCode::InvalidReplicationFactor);
        }
    }

    #[test]
    fn manual_assignments_must_make_sense() {
        let brokers = BTreeSet::from([1, 2, 3]);
        let topic = |rows: &[(i32, &[i32])]| {
            CreatableTopic::default().with_num_partitions(-1).with_replication_factor(-1).with_assignments(
                rows.iter()
                    .map(|(index, ids)| {
                        CreatableReplicaAssignment::default()
                            .with_partition_index(*index)
                            .with_broker_ids(ids.iter().copied().map(BrokerId).collect())
                    })
                    .collect(),
            )
        };
        assert_eq!(check_assignments(&topic(&[(1, &[1, 2]), (0, &[2, 3])]), &brokers), Ok(2));
        for rows in [&[(0, &[9][..])][..], &[(0, &[1, 1])], &[(0, &[])], &[(1, &[1])], &[(0, &[1]), (0, &[2])]] {
            let refusal = check_assignments(&topic(rows), &brokers).expect_err("must be refused");
            assert_eq!(refusal.error, ErrorCode::InvalidReplicaAssignment, "{rows:?}");
        }
    }
}
