//! The cluster as clients are told it: brokers that live, leaders that are sure of themselves.

use std::collections::BTreeMap;

use lockstep_core::{BrokerRecord, NodeId, ShardId};
use lockstep_env::Env;
use lockstep_runtime::ProposeError;
use lockstep_wire::codec::{BrokerId, StrBytes};

use crate::broker::Broker;

/// What everyone may do with the cluster: there are no access rules. Bits are Kafka's `AclOperation` codes:
/// create, alter, describe, cluster action, describe and alter configs, idempotent write.
pub(crate) const CLUSTER_OPERATIONS: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;
/// And with a topic: read, write, create, delete, alter, describe, describe and alter configs.
pub(crate) const TOPIC_OPERATIONS: i32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;
/// Kafka's "nobody".
pub(crate) const NO_BROKER: BrokerId = BrokerId(-1);

/// A broker of the directory.
#[derive(Clone, Debug)]
pub(crate) struct KnownBroker {
    pub(crate) record: BrokerRecord,
    pub(crate) alive: bool,
}

impl KnownBroker {
    pub(crate) fn broker_id(&self) -> BrokerId {
        broker_id(self.record.id)
    }

    pub(crate) fn host(&self) -> StrBytes {
        self.record.host.clone().into()
    }

    pub(crate) fn rack(&self) -> Option<StrBytes> {
        self.record.rack.clone().map(StrBytes::from)
    }
}

/// Node ids are checked to fit when the configuration is read.
pub(crate) fn broker_id(node: NodeId) -> BrokerId {
    BrokerId(i32::try_from(node).unwrap_or(-1))
}

/// Terms rise by elections: 31 bits last for ever.
pub(crate) fn leader_epoch(term: u64) -> i32 {
    i32::try_from(term).unwrap_or(i32::MAX)
}

/// Brokers and shards at one moment.
#[derive(Clone, Debug)]
pub(crate) struct ClusterView {
    pub(crate) brokers: BTreeMap<NodeId, KnownBroker>,
    /// Whom to send changes of topics to: the leader of shard 0, or else the broker that answers, which forwards them, or any that lives; nobody only while none does.
    pub(crate) controller: BrokerId,
    /// As Kafka writes it: 22 characters. Empty until it is known.
    pub(crate) cluster_id: String,
    /// Those that were asked for.
    shards: BTreeMap<ShardId, ShardView>,
}

/// A shard as clients are told it; its partitions all look the same.
#[derive(Clone, Debug)]
pub(crate) struct ShardView {
    /// Who leads and in which epoch, if clients can reach it.
    pub(crate) leader: Option<(BrokerId, i32)>,
    pub(crate) replicas: Vec<BrokerId>,
    pub(crate) living: Vec<BrokerId>,
    pub(crate) offline: Vec<BrokerId>,
}

impl ClusterView {
    pub(crate) fn take<E: Env>(broker: &Broker<E>) -> Self {
        let records: Vec<BrokerRecord> =
            broker.node().directory(|directory| directory.brokers.values().cloned().collect());
        let brokers: BTreeMap<NodeId, KnownBroker> = records
            .into_iter()
            .map(|record| {
                let alive = broker.node().takes_clients(record.id);
                (record.id, KnownBroker { record, alive })
            })
            .collect();
        // Any broker takes requests for the controller, as with KRaft. "Nobody" must not be said while there is one: librdkafka's administrators
        // wait then until a broker names one, and ask none.
        let leader = shard_leader(broker, ShardId::METADATA).map(|(leader, _)| leader);
        let candidates = leader.into_iter().chain([broker.node_id()]).chain(brokers.keys().copied());
        let controller = candidates.into_iter().find(|id| brokers.get(id).is_some_and(|known| known.alive));
        let controller = controller.map_or(NO_BROKER, broker_id);
        let cluster_id = broker.node().cluster_id().map(|id| url_safe_base64(&id)).unwrap_or_default();
        Self { brokers, controller, cluster_id, shards: BTreeMap::new() }
    }

    /// Who leads a shard, if clients can reach it: (broker, epoch).
    pub(crate) fn leader<E: Env>(&self, broker: &Broker<E>, shard: ShardId) -> Option<(BrokerId, i32)> {
        let (leader, term) = shard_leader(broker, shard)?;
        self.brokers.get(&leader).filter(|known| known.alive)?;
        Some((broker_id(leader), leader_epoch(term)))
    }

    /// Leader and replicas of a shard, looked up once.
    pub(crate) fn shard<E: Env>(&mut self, broker: &Broker<E>, shard: ShardId) -> &ShardView {
        if !self.shards.contains_key(&shard) {
            let looked_up = self.look_up(broker, shard);
            self.shards.insert(shard, looked_up);
        }
        &self.shards[&shard]
    }

    fn look_up<E: Env>(&self, broker: &Broker<E>, shard: ShardId) -> ShardView {
        let leader = self.leader(broker, shard);
        let nodes = broker.node().replicas(shard);
        let (living, offline): (Vec<NodeId>, Vec<NodeId>) =
            nodes.iter().partition(|node| self.brokers.get(node).is_some_and(|known| known.alive));
        let ids = |nodes: Vec<NodeId>| nodes.into_iter().map(broker_id).collect::<Vec<_>>();
        ShardView { leader, replicas: ids(nodes), living: ids(living), offline: ids(offline) }
    }

    /// Brokers that live.
    pub(crate) fn living(&self) -> impl Iterator<Item = &KnownBroker> {
        self.brokers.values().filter(|known| known.alive)
    }
}

/// Who leads a shard, and in which term. This node names itself only while its lease holds.
pub(crate) fn shard_leader<E: Env>(broker: &Broker<E>, shard: ShardId) -> Option<(NodeId, u64)> {
    let (leader, term) = broker.node().leader_of(shard)?;
    if leader == broker.node_id() {
        match broker.node().shard(shard)?.serving() {
            Ok(_) | Err(ProposeError::Loading(_)) => {}
            Err(_) => return None,
        }
    }
    Some((leader, term))
}

/// RFC 4648, section 5, without padding.
fn url_safe_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut word = 0_u32;
        for (index, byte) in chunk.iter().enumerate() {
            word |= u32::from(*byte) << (16 - 8 * index);
        }
        for index in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(word >> (18 - 6 * index)) as usize & 63]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_has_22_characters() {
        assert_eq!(url_safe_base64(&[0; 16]), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(url_safe_base64(&[0xff; 16]), "_____________________w");
        assert_eq!(url_safe_base64(b"Man"), "TWFu");
    }
}
