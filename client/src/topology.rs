//! What a client knows of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_wire::codec::{MetadataResponse, ResponseError, Uuid};

/// A partition as brokers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Index within the topic, from 0.
    pub index: i32,
    /// The broker that leads it; `None` while there is none.
    pub leader: Option<i32>,
    /// Grows with every change of leadership; −1 if unknown.
    pub leader_epoch: i32,
    /// Brokers that hold it.
    pub replicas: Vec<i32>,
    /// Brokers that hold all of it.
    pub in_sync_replicas: Vec<i32>,
}

/// A topic as brokers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Name.
    pub name: Arc<str>,
    /// Id. A topic that is deleted and created again has another one. Nil if the broker does not know ids.
    pub id: Uuid,
    /// Made by the cluster for itself.
    pub is_internal: bool,
    /// Partitions, ascending and without gaps.
    pub partitions: Vec<PartitionInfo>,
}

impl TopicInfo {
    /// The partition with this index.
    pub fn partition(&self, index: i32) -> Option<&PartitionInfo> {
        usize::try_from(index).ok().and_then(|index| self.partitions.get(index))
    }
}

/// Brokers, and the topics asked about so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    pub(crate) cluster_id: Option<String>,
    pub(crate) controller: Option<i32>,
    /// Addresses, `host:port`, by broker id.
    pub(crate) brokers: BTreeMap<i32, String>,
    pub(crate) topics: BTreeMap<Arc<str>, Arc<TopicInfo>>,
}

/// What a metadata response says of one topic.
#[derive(Clone, Debug)]
pub(crate) enum TopicAnswer {
    Known(Arc<TopicInfo>),
    Error(ResponseError),
}

impl Topology {
    /// Takes in a metadata response. Gives its topics by name, with those asked for by an id that has no name left out.
    pub(crate) fn update(&mut self, response: &MetadataResponse) -> BTreeMap<Arc<str>, TopicAnswer> {
        if !response.brokers.is_empty() {
            self.brokers = response
                .brokers
                .iter()
                .map(|broker| (broker.node_id.0, address_of(&broker.host, broker.port)))
                .collect();
        }
        self.controller = (response.controller_id.0 >= 0).then_some(response.controller_id.0);
        if let Some(id) = &response.cluster_id {
            self.cluster_id = Some(id.to_string());
        }
        let mut answers = BTreeMap::new();
        for topic in &response.topics {
            let Some(name) = &topic.name else { continue };
            let name: Arc<str> = Arc::from(name.as_str());
            if let Some(error) = ResponseError::try_from_code(topic.error_code) {
                if error == ResponseError::UnknownTopicOrPartition {
                    self.topics.remove(&name);
                }
                answers.insert(name, TopicAnswer::Error(error));
                continue;
            }
            let mut partitions: Vec<PartitionInfo> = topic
                .partitions
                .iter()
                .map(|partition| PartitionInfo {
                    index: partition.partition_index,
                    leader: (partition.leader_id.0 >= 0).then_some(partition.leader_id.0),
                    leader_epoch: partition.leader_epoch,
                    replicas: partition.replica_nodes.iter().map(|id| id.0).collect(),
                    in_sync_replicas: partition.isr_nodes.iter().map(|id| id.0).collect(),
                })
                .collect();
            partitions.sort_by_key(|partition| partition.index);
            if (0..).zip(&partitions).any(|(index, partition)| partition.index != index) {
                answers.insert(name, TopicAnswer::Error(ResponseError::UnknownServerError));
                continue;
            }
            if let Some(known) = self.topics.get(&name).filter(|known| known.id == topic.topic_id) {
                keep_newer_leaders(&mut partitions, &known.partitions);
            }
            let info = Arc::new(TopicInfo {
                name: Arc::clone(&name),
                id: topic.topic_id,
                is_internal: topic.is_internal,
                partitions,
            });
            self.topics.insert(Arc::clone(&name), Arc::clone(&info));
            answers.insert(name, TopicAnswer::Known(info));
        }
        answers
    }

    /// The name of a topic that is known by its id.
    pub(crate) fn name_of(&self, id: Uuid) -> Option<Arc<str>> {
        self.topics.values().find(|topic| topic.id == id).map(|topic| Arc::clone(&topic.name))
    }

    /// A broker said who leads now (KIP-951). Ignored if it is not news.
    pub(crate) fn learn_leader(&mut self, topic: &str, index: i32, leader: i32, leader_epoch: i32) {
        let Some(known) = self.topics.get_mut(topic) else { return };
        let Some(partition) = usize::try_from(index).ok().and_then(|at| known.partitions.get(at)) else { return };
        let is_news = leader_epoch > partition.leader_epoch
            || leader_epoch == partition.leader_epoch && partition.leader.is_none();
        if leader < 0 || !is_news || !self.brokers.contains_key(&leader) {
            return;
        }
        let partition = &mut Arc::make_mut(known).partitions[index as usize];
        partition.leader = Some(leader);
        partition.leader_epoch = leader_epoch;
    }
}

/// A broker that lags may still name a former leader: its epoch tells.
fn keep_newer_leaders(partitions: &mut [PartitionInfo], known: &[PartitionInfo]) {
    for (partition, known) in partitions.iter_mut().zip(known) {
        if partition.leader.is_none() {
            // It may name no epoch either. The one that is known stays, so that a leader before it is not believed.
            partition.leader_epoch = partition.leader_epoch.max(known.leader_epoch);
        } else if known.leader_epoch > partition.leader_epoch && partition.leader_epoch >= 0 {
            partition.leader = known.leader;
            partition.leader_epoch = known.leader_epoch;
        }
    }
}

pub(crate) fn address_of(host: &str, port: i32) -> String {
    // An IPv6 address must be told from its port.
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_wire::codec::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };
    use lockstep_wire::codec::{BrokerId, StrBytes, TopicName};

    fn response(leader: i32, epoch: i32) -> MetadataResponse {
        let mut response = MetadataResponse::default();
        for id in 1..=3 {
            let mut broker = MetadataResponseBroker::default();
            broker.node_id = BrokerId(id);
            broker.host = StrBytes::from_static_str("h");
            broker.port = 9090 + id;
            response.brokers.push(broker);
        }
        let mut partition = MetadataResponsePartition::default();
        partition.leader_id = BrokerId(leader);
        partition.leader_epoch = epoch;
        let mut topic = MetadataResponseTopic::default();
        topic.name = Some(TopicName(StrBytes::from_static_str("t")));
        topic.partitions.push(partition);
        response.topics.push(topic);
        response
    }

    fn leader(topology: &Topology) -> Option<i32> {
        topology.topics["t"].partitions[0].leader
    }

    #[test]
    fn a_broker_that_lags_does_not_bring_back_a_former_leader() {
        let mut topology = Topology::default();
        topology.update(&response(1, 5));
        topology.update(&response(2, 6));
        topology.update(&response(1, 5));
        assert_eq!(leader(&topology), Some(2));
        topology.update(&response(-1, 7));
        assert_eq!(leader(&topology), None);
    }

    #[test]
    fn a_former_leader_is_not_believed_after_an_answer_that_names_nobody() {
        let mut topology = Topology::default();
        topology.update(&response(2, 6));
        topology.update(&response(-1, -1));
        topology.update(&response(1, 5));
        assert_eq!(leader(&topology), None);
        topology.update(&response(2, 6));
        assert_eq!(leader(&topology), Some(2), "whoever has heard of it names the last one");
        topology.update(&response(-1, -1));
        topology.update(&response(3, 7));
        assert_eq!(leader(&topology), Some(3));
    }

    #[test]
    fn a_leader_learnt_from_an_error_must_be_newer_and_known() {
        let mut topology = Topology::default();
        topology.update(&response(1, 5));
        topology.learn_leader("t", 0, 3, 5);
        topology.learn_leader("t", 0, 9, 6);
        topology.learn_leader("t", 7, 3, 6);
        topology.learn_leader("x", 0, 3, 6);
        assert_eq!(leader(&topology), Some(1));
        topology.learn_leader("t", 0, 3, 6);
        assert_eq!(leader(&topology), Some(3));
        // Of the epoch that is known, when nobody is known to lead.
        topology.update(&response(-1, -1));
        topology.learn_leader("t", 0, 1, 5);
        assert_eq!(leader(&topology), None);
        topology.learn_leader("t", 0, 3, 6);
        assert_eq!(leader(&topology), Some(3));
    }

    #[test]
    fn a_topic_with_gaps_in_its_partitions_is_not_believed() {
        let mut topology = Topology::default();
        let mut bad = response(1, 1);
        bad.topics[0].partitions[0].partition_index = 1;
        let answers = topology.update(&bad);
        assert!(matches!(answers["t"], TopicAnswer::Error(_)));
        assert!(topology.topics.is_empty());
    }
}
