//! The binding to openraft: one Raft group for each shard.
//!
//! Entries are kept in the journal ([`log_store`]), applied to the core and the partitions ([`state_machine`]), sent over the peer
//! network ([`network`], [`handler`]); a snapshot is a checkpoint ([`snapshot`]). [`crate::Shard`] puts it together.

mod acknowledged;
mod append_stream;
mod catch_up;
mod comparison;
mod completion;
pub(crate) mod directory_watch;
mod doubt;
mod duties;
mod entry_codec;
pub mod env_runtime;
mod founding;
mod group_watch;
mod handler;
pub(crate) mod heartbeats;
mod kept_vote;
mod leadership;
mod log_bound;
mod log_store;
mod message;
mod network;
mod promises;
mod proposal_payload;
mod proposals;
mod repair;
mod replica;
mod snapshot;
mod staging;
mod state_machine;
#[cfg(test)]
mod tests;
mod type_config;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_core::{NodeId, ShardId};
use lockstep_env::Env;
use tokio::sync::Semaphore;

use crate::config::NodeConfig;
use crate::journal::Journal;
use crate::node::Clocks;
use crate::peer::PeerNetwork;
use crate::storage::Cache;
use crate::storage::check::SharedPace;

pub(crate) use comparison::compare;
pub(crate) use doubt::{Doubts, permit_elections};
pub(crate) use duties::{LeaderDuties, checkpoint, record_changes};
pub(crate) use founding::found;
pub use group_watch::GroupWaiter;
pub(crate) use handler::{Handler, stopped_fault};
pub(crate) use kept_vote::KeptVote;
pub(crate) use leadership::{Leadership, STOPPED};
pub(crate) use log_store::{LogStore, drop_superseded, stored_vote};
pub(crate) use message::StageAsk;
pub(crate) use network::NetworkFactory;
pub use promises::{Choice, Promised, Promises};
pub use proposal_payload::ProposalPayload;
pub(crate) use proposals::Proposals;
pub(crate) use repair::Repairer;
pub(crate) use replica::{Progress, Replica};
pub(crate) use snapshot::restore;
pub(crate) use staging::{has_room, spread};
pub(crate) use state_machine::{StateMachine, take_turns};
#[cfg(test)]
pub(crate) use type_config::Command;
pub(crate) use type_config::{Member, TypeConfig};

/// One Raft group on this node.
pub(crate) type Raft<E> = openraft::Raft<TypeConfig<E>, StateMachine<E>>;

/// What a shard is started with.
#[derive(Clone)]
pub(crate) struct ShardContext<E: Env> {
    pub(crate) env: E,
    pub(crate) id: ShardId,
    /// Shards in the cluster.
    pub(crate) shard_count: u16,
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) journal: Journal<E>,
    pub(crate) peers: PeerNetwork<E>,
    /// The node's budget for recent batches in memory.
    pub(crate) cache: Arc<Cache>,
    /// Who votes at first, if this node is one of those who start the cluster.
    pub(crate) founding_voters: Option<BTreeMap<NodeId, Member>>,
    /// One permit: shards of a node are checkpointed one after another.
    pub(crate) checkpoints: Arc<Semaphore>,
    /// One permit: a node reads one segment at a time to compare it with its checksum.
    pub(crate) scrubs: Arc<Semaphore>,
    /// One permit: a node compacts one partition at a time.
    pub(crate) compactions: Arc<Semaphore>,
    /// How fast segments come from other nodes.
    pub(crate) fetches: SharedPace,
    pub(crate) clocks: Clocks,
    /// Which shards may have lost what they acknowledged.
    pub(crate) doubts: Arc<Doubts>,
    pub(crate) newest_directory: Arc<directory_watch::NewestDirectory>,
}

/// A Raft group as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RaftStatus {
    /// `leader`, `follower`, `learner`, `candidate` or `stopped`.
    pub(crate) role: &'static str,
    pub(crate) term: u64,
    pub(crate) leader: Option<NodeId>,
    pub(crate) voters: BTreeMap<NodeId, Member>,
    /// Those who vote in every configuration of a membership that changes.
    pub(crate) lasting_voters: BTreeSet<NodeId>,
    pub(crate) learners: BTreeMap<NodeId, Member>,
    /// On the leader: the last entry that each node is known to hold.
    pub(crate) matched: BTreeMap<NodeId, Option<u64>>,
    /// On the leader: those who no longer hold what they acknowledged to it.
    pub(crate) reverted: BTreeSet<NodeId>,
    /// Last entry in this node's log.
    pub(crate) last_log: u64,
    /// Last entry that the checkpoint covers.
    pub(crate) snapshot: Option<u64>,
    /// Last entry that is no longer in the log.
    pub(crate) purged: Option<u64>,
}

impl RaftStatus {
    /// Is a change of the voters half done? Until it is finished, majorities of the voters before and of those after are both needed.
    pub(crate) fn is_joint(&self) -> bool {
        self.lasting_voters.len() != self.voters.len()
    }
}
