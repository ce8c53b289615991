//! What nodes say to each other beyond Raft's own messages. Kinds below 64 are Raft's (see `raft`).

use lockstep_core::{NodeId, Reply, ShardId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::ProposeError;
use crate::node::identity::ClusterIdentity;

/// Who are you, and do you belong to a cluster already? Answer: [`Introduction`].
pub(crate) const INTRODUCE: u8 = 64;
/// Propose this op on a shard you lead. Body: the op. Answer: [`Proposed`].
pub(crate) const PROPOSE: u8 = 65;
/// The read index of a shard you lead. Answer: [`ReadIndex`].
pub(crate) const READ_INDEX: u8 = 66;
/// Your report for the cluster's status. Answer: [`crate::status::NodeReport`].
pub(crate) const REPORT: u8 = 67;
/// Wait until every shard has this metadata version. Body: [`WaitMetadata`]. Answer: `bool`.
pub(crate) const WAIT_METADATA: u8 = 68;
/// The metadata version that a shard you lead has applied. Answer: [`ReadIndex`], with the version as its value.
pub(crate) const METADATA_VERSION: u8 = 69;

/// A node that is starting tells the others about its disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Introduction {
    pub node_id: NodeId,
    pub incarnation: [u8; 16],
    /// Shards it would start a cluster with.
    pub shards: u16,
    pub cluster: Option<ClusterIdentity>,
}

/// Outcome of a forwarded proposal.
pub(crate) type Proposed = Result<Reply, Refusal>;

/// Outcome of a question to a shard's leader.
pub(crate) type ReadIndex = Result<u64, Refusal>;

/// [`ProposeError`] between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    NotLeader { leader: Option<NodeId> },
    Loading,
    Unknown(String),
    Stopped,
    Overloaded,
    TooLarge,
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader, .. } => Self::NotLeader { leader },
            ProposeError::Loading(_) => Self::Loading,
            ProposeError::Unknown(text) => Self::Unknown(text),
            ProposeError::Stopped(_) => Self::Stopped,
            ProposeError::Overloaded(_) => Self::Overloaded,
            ProposeError::TooLarge(_) => Self::TooLarge,
        }
    }
}

impl Refusal {
    pub(crate) fn into_error(self, shard: ShardId) -> ProposeError {
        match self {
            Self::NotLeader { leader } => ProposeError::NotLeader { shard, leader },
            Self::Loading => ProposeError::Loading(shard),
            Self::Unknown(text) => ProposeError::Unknown(text),
            Self::Stopped => ProposeError::Stopped(shard),
            Self::Overloaded => ProposeError::Overloaded(shard),
            Self::TooLarge => ProposeError::TooLarge(shard),
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WaitMetadata {
    pub version: u64,
    pub timeout_ms: u32,
}

/// What every node says of itself some ten times a second.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Gossip {
    /// The shards it leads, with the term.
    pub leads: Vec<(ShardId, u64)>,
    /// It is stopping: leadership should not move to it.
    pub stopping: bool,
    /// Its disk is nearly full: it should lead nothing, and not count for where records go.
    pub short_of_space: bool,
    /// It turns clients away: it has no copy of the directory yet.
    pub without_directory: bool,
    /// The shards of which it may have lost what it acknowledged.
    pub doubts: Vec<ShardId>,
    /// What its wall clock shows, in milliseconds since 1970.
    pub wall_clock_ms: i64,
}

/// Bytes that are not the message expected.
#[derive(Debug, thiserror::Error)]
#[error("malformed message from a peer: {0}")]
pub(crate) struct Malformed(postcard::Error);

pub(crate) fn encode<T: Serialize>(message: &T) -> bytes::Bytes {
    // Messages are plain data whose lengths are known, which postcard always encodes.
    bytes::Bytes::from(postcard::to_allocvec(message).unwrap_or_default())
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    postcard::from_bytes(bytes).map_err(Malformed)
}
