//! A node: what the broker holds.

use std::time::Duration;

use bytes::Bytes;
use lockstep_core::{Directory, NodeId, Op, Reply, ShardId};
use lockstep_env::Env;

use crate::config::NodeConfig;
use crate::error::{ProposeError, ReadError, StartError};
use crate::shard::Shard;
use crate::status::ClusterStatus;

/// One running node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node<E: Env> {
    _env: std::marker::PhantomData<E>,
}

#[allow(unused_variables, clippy::unused_async)]
impl<E: Env> Node<E> {
    /// Recovers what is on disk, listens for peers and starts every shard hosted here. Returns without waiting for a leader.
    /// On empty directories the cluster is bootstrapped once all peers have said that theirs are empty too; a node whose disk was emptied
    /// while the cluster lives comes back as a learner and is promoted when it has caught up.
    pub async fn start(env: E, config: NodeConfig) -> Result<Self, StartError> {
        todo!()
    }
    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        todo!()
    }
    /// The cluster's id, once known: made at bootstrap.
    #[must_use]
    pub fn cluster_id(&self) -> Option<[u8; 16]> {
        todo!()
    }
    /// Number of shards in the cluster.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        todo!()
    }
    /// A shard hosted here.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<Shard<E>> {
        todo!()
    }
    /// The shards hosted here.
    #[must_use]
    pub fn shards(&self) -> Vec<Shard<E>> {
        todo!()
    }
    /// Reads this node's applied copy of the directory (shard 0's).
    pub fn directory<R>(&self, read: impl FnOnce(&Directory) -> R) -> R {
        todo!()
    }
    /// Who leads a shard, and in which term, as far as this node knows; also for shards not hosted here.
    #[must_use]
    pub fn leader_of(&self, shard: ShardId) -> Option<(NodeId, u64)> {
        todo!()
    }
    /// The nodes that hold a copy of a shard (voters and learners, ascending), also for shards not hosted here; empty when unknown.
    #[must_use]
    pub fn replicas(&self, shard: ShardId) -> Vec<NodeId> {
        todo!()
    }
    /// Was this node heard from lately? A node always hears itself.
    #[must_use]
    pub fn alive(&self, node: NodeId) -> bool {
        todo!()
    }
    /// Proposes on the shard if this node leads it; see [`Shard::propose`].
    pub async fn propose(&self, shard: ShardId, op: Op, payload: Bytes) -> Result<Reply, ProposeError> {
        todo!()
    }
    /// Proposes wherever the shard is led, for at most `timeout`. Retries only what was certainly not proposed. For ops without a payload.
    pub async fn forward(&self, shard: ShardId, op: Op, timeout: Duration) -> Result<Reply, ProposeError> {
        todo!()
    }
    /// After it returns, every shard leader has applied at least this metadata version (`CreateTopics` answers then).
    /// `false` when the time was up first. Works on any node.
    pub async fn wait_metadata(&self, version: u64, timeout: Duration) -> bool {
        todo!()
    }
    /// A block of fresh producer ids, from shard 0; returns one id of the node's current block.
    pub async fn producer_id(&self) -> Result<i64, ProposeError> {
        todo!()
    }
    /// The state of the whole cluster, asked from all nodes that answer in time.
    pub async fn cluster_status(&self, timeout: Duration) -> ClusterStatus {
        todo!()
    }
    /// Completes when the node has failed for good (a disk error, a violation in every shard …), with the reason.
    pub async fn failed(&self) -> String {
        todo!()
    }
    /// Hands leadership over, checkpoints nothing, stops all tasks and closes the journal.
    pub async fn shutdown(&self) {
        todo!()
    }
}

/// Waits until the caller has seen everything that was committed before the call.
impl<E: Env> Node<E> {
    /// After it returns, [`Shard::read`] on this node shows everything committed before the call; works on leader and followers (read index).
    pub async fn linearizable(&self, shard: ShardId, timeout: Duration) -> Result<(), ReadError> {
        let _ = (shard, timeout);
        todo!()
    }
}
