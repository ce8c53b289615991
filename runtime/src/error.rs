//! What can go wrong, where it arises.

use lockstep_core::{NodeId, ShardId};

/// A proposal that has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead the shard, or is not sure that it still does. Nothing was proposed.
    #[error("{shard:?} is not led by this node{}", leader_suffix(*leader))]
    NotLeader {
        /// Shard.
        shard: ShardId,
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// This node leads but has not applied its term's first entry yet: try again in some milliseconds.
    #[error("{0:?} has a new leader that is still loading")]
    Loading(ShardId),
    /// The op may or may not have been applied: leadership was lost, or the time was up, while it was under way.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The node is stopping, or the shard stopped on this node after a violation or a disk error.
    #[error("{0:?} has stopped on this node")]
    Stopped(ShardId),
    /// Too much is waiting already.
    #[error("{0:?} is overloaded")]
    Overloaded(ShardId),
    /// The op is longer than what fits into a message between nodes. Nothing was proposed.
    #[error("too long an operation for {0:?}")]
    TooLarge(ShardId),
}

fn leader_suffix(leader: Option<NodeId>) -> String {
    leader.map_or_else(String::new, |id| format!(" but by node {id}"))
}

/// A linearizable read that could not be made so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader with a quorum was found in time.
    #[error("{0:?} has no reachable leader")]
    NoLeader(ShardId),
    /// The shard stopped on this node, or is not hosted here.
    #[error("{0:?} is not served by this node")]
    NotHosted(ShardId),
}

/// A node that cannot start. The text names the field, file or address.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("{field}: {reason}")]
    Config {
        /// The field of the configuration file.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Another process uses the directory.
    #[error("{path}: in use by another process")]
    DirectoryInUse {
        /// Directory.
        path: String,
    },
    /// The directory belongs to another node, cluster or version.
    #[error("{path}: {reason}")]
    ForeignDirectory {
        /// Directory.
        path: String,
        /// Whose it is.
        reason: String,
    },
    /// The journal or a checkpoint is damaged before its tail.
    #[error("{path}: damaged at offset {offset}: {reason}")]
    Damaged {
        /// File.
        path: String,
        /// Where.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// A port cannot be listened on.
    #[error("{address}: {source}")]
    Listen {
        /// Address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Anything else about a file.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Raft refused to start.
    #[error("raft: {0}")]
    Raft(String),
}
