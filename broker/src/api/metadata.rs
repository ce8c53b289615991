//! Metadata: brokers, topics, partitions and who leads them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_core::{ShardId, TopicRecord};
use lockstep_env::Env;
use lockstep_wire::codec::metadata_request::MetadataRequestTopic;
use lockstep_wire::codec::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use lockstep_wire::codec::{MetadataRequest, MetadataResponse, TopicName};

use crate::broker::Broker;
use crate::cluster_view::{CLUSTER_OPERATIONS, ClusterView, TOPIC_OPERATIONS};
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topic_config;
use crate::topics::{self, TopicKey};

/// How long a Metadata request may wait for the topics that it creates.
const AUTO_CREATE_TIMEOUT: Duration = Duration::from_secs(3);
/// A request creates at most so many topics; the client asks again for the others.
const AUTO_CREATE_MAX: usize = 100;

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: MetadataRequest,
) -> MetadataResponse {
    let version = context.api_version;
    // Version 0 has no null: there an empty list asks for all topics.
    let mut wanted = match request.topics {
        Some(topics) if version == 0 && topics.is_empty() => None,
        other => other,
    };
    if let Some(wanted) = &mut wanted {
        // Whoever asks twice is told once.
        let mut named = BTreeSet::new();
        wanted.retain(|topic| named.insert(key_of(topic)));
    }
    let mut refused = BTreeMap::new();
    if let Some(wanted) = &wanted {
        // Versions before 4 cannot say: they always mean it.
        let may_create = (version < 4 || request.allow_auto_topic_creation) && broker.config().topics.auto_create;
        refused = look_again(broker, wanted, may_create).await;
    }

    let mut view = ClusterView::take(broker);
    let topics = match &wanted {
        None => {
            let records: Vec<TopicRecord> =
                broker.node().directory(|directory| directory.topics.values().cloned().collect());
            records.iter().map(|record| describe(broker, &mut view, version, record)).collect()
        }
        Some(wanted) => wanted
            .iter()
            .map(|topic| {
                let key = key_of(topic);
                match broker.node().directory(|directory| key.find(directory).cloned()) {
                    Some(record) => describe(broker, &mut view, version, &record),
                    None => {
                        let error = refused.get(&key).copied().unwrap_or_else(|| unknown(&key));
                        MetadataResponseTopic::default()
                            .with_error_code(error.code())
                            .with_name(topic.name.clone().or_else(|| (version < 12).then(Default::default)))
                            .with_topic_id(topic.topic_id)
                    }
                }
            })
            .collect(),
    };
    let mut response = MetadataResponse::default()
        .with_brokers(
            view.living()
                .map(|known| {
                    MetadataResponseBroker::default()
                        .with_node_id(known.broker_id())
                        .with_host(known.host())
                        .with_port(i32::from(known.record.port))
                        .with_rack(known.rack())
                })
                .collect(),
        )
        .with_controller_id(view.controller)
        .with_cluster_id(Some(view.cluster_id.clone().into()).filter(|_| !view.cluster_id.is_empty()))
        .with_topics(topics);
    if version >= 8 && request.include_topic_authorized_operations {
        for topic in response.topics.iter_mut().filter(|topic| topic.error_code == 0) {
            topic.topic_authorized_operations = TOPIC_OPERATIONS;
        }
    }
    if (8..=10).contains(&version) && request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    response
}

fn key_of(topic: &MetadataRequestTopic) -> TopicKey {
    match &topic.name {
        Some(name) => TopicKey::Name(name.to_string()),
        None => TopicKey::Id(topics::topic_id(&topic.topic_id)),
    }
}

fn unknown(key: &TopicKey) -> ErrorCode {
    match key {
        TopicKey::Name(name) if !topic_config::is_legal_topic_name(name) => ErrorCode::InvalidTopic,
        key => key.unknown(),
    }
}

/// For topics that this node's directory does not show: makes sure that it is not merely behind, and creates what is missing
/// if that is wished. Returns why topics could not be created.
async fn look_again<E: Env>(
    broker: &Broker<E>,
    wanted: &[MetadataRequestTopic],
    may_create: bool,
) -> BTreeMap<TopicKey, ErrorCode> {
    let missing = |keys: &BTreeSet<TopicKey>| -> BTreeSet<TopicKey> {
        broker.node().directory(|directory| keys.iter().filter(|key| key.find(directory).is_none()).cloned().collect())
    };
    let keys: BTreeSet<TopicKey> = wanted.iter().map(key_of).collect();
    let mut refused = BTreeMap::new();
    if missing(&keys).is_empty() {
        return refused;
    }
    let is_fresh = topics::freshen_directory(broker).await;
    let still_missing = missing(&keys);
    if !is_fresh {
        // Whether they exist is not known here, nor can they be created now; clients ask again after this error.
        let legal = |key: &TopicKey| matches!(key, TopicKey::Name(name) if topic_config::is_legal_topic_name(name));
        let waiting = still_missing.into_iter().filter(legal);
        return waiting.map(|key| (key, ErrorCode::LeaderNotAvailable)).collect();
    }
    if !may_create {
        return refused;
    }
    let mut newest = None;
    for key in still_missing.into_iter().take(AUTO_CREATE_MAX) {
        let TopicKey::Name(name) = &key else { continue };
        if !topic_config::is_legal_topic_name(name) {
            continue;
        }
        let partitions = broker.config().topics.partitions;
        match topics::create(broker, name.clone(), partitions, BTreeMap::new(), AUTO_CREATE_TIMEOUT).await {
            Ok(record) => newest = newest.max(Some(record.version)),
            // Another client was faster: the directory will show it.
            Err(refusal) if refusal.error == ErrorCode::TopicAlreadyExists => {}
            Err(refusal) => {
                tracing::warn!(topic = name, reason = refusal.message, "topic not created");
                // Clients retry after this one, older ones too.
                refused.insert(key, ErrorCode::LeaderNotAvailable);
            }
        }
    }
    match newest {
        Some(version) => {
            topics::settle(broker, version, AUTO_CREATE_TIMEOUT).await;
        }
        None => {
            topics::freshen_directory(broker).await;
        }
    }
    refused
}

fn describe<E: Env>(
    broker: &Broker<E>,
    view: &mut ClusterView,
    version: i16,
    record: &TopicRecord,
) -> MetadataResponseTopic {
    let partitions = record
        .partitions
        .iter()
        .zip(0..)
        .map(|(shard, index)| describe_partition(broker, view, version, *shard, index))
        .collect();
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(record.name.clone().into())))
        .with_topic_id(topics::uuid(record.id))
        .with_partitions(partitions)
}

fn describe_partition<E: Env>(
    broker: &Broker<E>,
    view: &mut ClusterView,
    version: i16,
    shard: ShardId,
    index: i32,
) -> MetadataResponsePartition {
    let shard = view.shard(broker, shard);
    let mut partition = MetadataResponsePartition::default()
        .with_partition_index(index)
        .with_replica_nodes(shard.replicas.clone())
        .with_isr_nodes(shard.living.clone());
    match shard.leader {
        Some((leader, epoch)) => {
            partition.leader_id = leader;
            if version >= 7 {
                partition.leader_epoch = epoch;
            }
        }
        None => {
            partition.leader_id = crate::cluster_view::NO_BROKER;
            partition.error_code = ErrorCode::LeaderNotAvailable.code();
        }
    }
    if version >= 5 {
        partition.offline_replicas = shard.offline.clone();
    }
    partition
}
