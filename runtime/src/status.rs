//! The state of the cluster, for people and tools.

use std::collections::BTreeMap;

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
