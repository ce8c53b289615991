//! The state of the cluster, for people and tools.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::{NodeId, ShardId};
use serde::{Deserialize, Serialize};

/// Answer of `cluster status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// All nodes of the configuration, ascending.
    pub nodes: Vec<NodeStatus>,
    /// All shards, ascending.
    pub shards: Vec<ShardStatus>,
}

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Node.
    pub id: NodeId,
    /// Where clients reach it, `host:port`; empty when it never registered.
    pub address: String,
    /// It answered.
    pub alive: bool,
}

/// A shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Shard.
    pub id: ShardId,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// The highest term seen.
    pub term: u64,
    /// Voters.
    pub voters: Vec<NodeId>,
    /// Learners: nodes that catch up.
    pub learners: Vec<NodeId>,
    /// Raft role by node: `leader`, `follower`, `learner`, `candidate`, `stopped`.
    pub role: BTreeMap<NodeId, String>,
    /// Applied index by node.
    pub applied: BTreeMap<NodeId, u64>,
    /// Digest by node, all at one common index where there is one.
    pub digest: BTreeMap<NodeId, DigestAt>,
}

/// A digest and where it was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestAt {
    /// Applied index.
    pub index: u64,
    /// 32 hexadecimal digits.
    pub hex: String,
}

/// What one node says of itself; [`ClusterStatus::gather`] puts the reports of all nodes together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    pub node_id: NodeId,
    pub shards: Vec<ShardReport>,
}

/// One shard on one node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShardReport {
    pub id: ShardId,
    pub role: String,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    pub applied: u64,
    /// The last digests, by ascending applied index.
    pub digests: Vec<(u64, u128)>,
}

impl ClusterStatus {
    /// Puts reports together. `nodes` are the configured nodes with the address that clients are told.
    pub(crate) fn gather(nodes: BTreeMap<NodeId, String>, reports: &[NodeReport]) -> Self {
        let nodes = nodes
            .into_iter()
            .map(|(id, address)| NodeStatus { id, address, alive: reports.iter().any(|report| report.node_id == id) })
            .collect();
        let mut by_shard: BTreeMap<ShardId, Vec<(NodeId, &ShardReport)>> = BTreeMap::new();
        for report in reports {
            for shard in &report.shards {
                by_shard.entry(shard.id).or_default().push((report.node_id, shard));
            }
        }
        let shards = by_shard.into_iter().map(|(id, views)| Self::gather_shard(id, &views)).collect();
        Self { nodes, shards }
    }

    fn gather_shard(id: ShardId, views: &[(NodeId, &ShardReport)]) -> ShardStatus {
        let term = views.iter().map(|(_, view)| view.term).max().unwrap_or(0);
        // A node that believes itself leader in the highest term is the leader; else whoever the newest view names.
        let leader = views
            .iter()
            .find(|(_, view)| view.term == term && view.role == "leader")
            .map(|(node, _)| *node)
            .or_else(|| views.iter().filter(|(_, view)| view.term == term).find_map(|(_, view)| view.leader));
        let newest = leader
            .and_then(|leader| views.iter().find(|(node, _)| *node == leader))
            .or_else(|| views.iter().max_by_key(|(_, view)| view.applied));
        let (voters, learners) =
            newest.map(|(_, view)| (view.voters.clone(), view.learners.clone())).unwrap_or_default();
        let common = views
            .iter()
            .map(|(_, view)| view.digests.iter().map(|(index, _)| *index).collect::<BTreeSet<u64>>())
            .reduce(|left, right| left.intersection(&right).copied().collect())
            .and_then(|indexes| indexes.last().copied());
        let digest = common.map_or_else(BTreeMap::new, |index| {
            views
                .iter()
                .filter_map(|(node, view)| {
                    let (_, digest) = view.digests.iter().find(|(at, _)| *at == index)?;
                    Some((*node, DigestAt { index, hex: format!("{digest:032x}") }))
                })
                .collect()
        });
        ShardStatus {
            id,
            leader,
            term,
            voters,
            learners,
            role: views.iter().map(|(node, view)| (*node, view.role.clone())).collect(),
            applied: views.iter().map(|(node, view)| (*node, view.applied)).collect(),
            digest,
        }
    }
}
