//! Which nodes host which shard. A pure function of the configured nodes, so that all nodes agree without asking.

use std::collections::BTreeMap;

use lockstep_core::{NodeId, ShardId};

use crate::config::NodeConfig;
use crate::node::identity::ClusterIdentity;
use crate::raft::Member;

/// The nodes that replicate a shard, the one that should lead it first. Shard 0 is on every node, so that any broker
/// knows the topics; the others are on `replication` nodes, spread by their number.
pub(crate) fn replicas(config: &NodeConfig, shard: ShardId) -> Vec<NodeId> {
    let nodes: Vec<NodeId> = config.peers.keys().copied().collect();
    let count = if shard == ShardId::METADATA { nodes.len() } else { nodes.len().min(usize::from(config.replication)) };
    nodes.iter().cycle().skip(usize::from(shard.0) % nodes.len().max(1)).take(count).copied().collect()
}

/// The members that started the cluster, with the disks that they had then.
pub(crate) fn founding_members(config: &NodeConfig, cluster: &ClusterIdentity) -> BTreeMap<NodeId, Member> {
    let member = |(node, incarnation): (&NodeId, &[u8; 16])| {
        let address = config.peers.get(node).cloned().unwrap_or_default();
        (*node, Member { address, incarnation: *incarnation })
    };
    cluster.founders.iter().map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(nodes: u64, replication: u16) -> NodeConfig {
        let peers = (1..=nodes).map(|id| (id, format!("localhost:{}", 8090 + id))).collect();
        NodeConfig { replication, ..NodeConfig::new(1, peers, "raft".into(), "data".into()) }
    }

    #[test]
    fn every_shard_has_its_replicas_and_leadership_is_spread() {
        for nodes in [1, 3, 5, 7] {
            let config = config(nodes, 3);
            let mut leads = BTreeMap::<NodeId, usize>::new();
            for shard in (0..70).map(ShardId) {
                let replicas = replicas(&config, shard);
                let distinct: std::collections::BTreeSet<_> = replicas.iter().collect();
                assert_eq!(distinct.len(), replicas.len());
                let expected = if shard.0 == 0 { nodes as usize } else { nodes.min(3) as usize };
                assert_eq!(replicas.len(), expected);
                *leads.entry(replicas[0]).or_default() += 1;
            }
            assert_eq!(leads.len(), nodes as usize);
            assert!(leads.values().max().unwrap() - leads.values().min().unwrap() <= 1);
        }
    }
}
