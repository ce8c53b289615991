//! One shard on this node.

use bytes::Bytes;
use lockstep_core::{ClusterStateMachine, NodeId, Op, Position, Reply, ShardId, TopicId};
use lockstep_env::Env;

use crate::error::ProposeError;
use crate::partition::PartitionLog;

/// A shard hosted here. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shard<E: Env> {
    _env: std::marker::PhantomData<E>,
}

#[allow(unused_variables, clippy::unused_async)]
impl<E: Env> Shard<E> {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> ShardId {
        todo!()
    }
    /// May this node answer as leader (or coordinator) now? It leads, its lease holds, and it has applied its term's first entry.
    /// Gives the term, else `NotLeader`, `Loading` or `Stopped`.
    pub fn serving(&self) -> Result<u64, ProposeError> {
        todo!()
    }
    /// Who leads and in which term, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<(NodeId, u64)> {
        todo!()
    }
    /// Proposes an op with its payload, in the order of the calls; completes when it is applied here, with its reply.
    pub async fn propose(&self, op: Op, payload: Bytes) -> Result<Reply, ProposeError> {
        todo!()
    }
    /// Reads the applied state. The closure must be short: `apply` waits for it.
    pub fn read<R>(&self, read: impl FnOnce(&ClusterStateMachine) -> R) -> R {
        todo!()
    }
    /// The last position applied here.
    #[must_use]
    pub fn applied(&self) -> Position {
        todo!()
    }
    /// The log of a partition hosted here.
    #[must_use]
    pub fn log(&self, topic_id: TopicId, partition: u32) -> Option<PartitionLog<E>> {
        todo!()
    }
    /// A ticket for changes of a group: take it before reading the state, then await [`GroupWaiter::changed`].
    #[must_use]
    pub fn watch_group(&self, group_id: &str) -> GroupWaiter {
        todo!()
    }
    /// Tells the leader's session table of a member that was just answered with success.
    pub fn heartbeat(&self, group_id: &str, member_id: &str) {
        todo!()
    }
    /// Tells the leader's session table of a SyncGroup.
    pub fn synced(&self, group_id: &str, member_id: &str, generation: i32) {
        todo!()
    }
}

/// Waits for changes of one group on one shard.
#[derive(Debug)]
pub struct GroupWaiter {}

#[allow(clippy::unused_async)]
impl GroupWaiter {
    /// Completes at the first change since the ticket was taken or since the last return, and when this node stops leading.
    pub async fn changed(&mut self) {
        todo!()
    }
}
