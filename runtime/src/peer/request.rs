//! What travels between nodes, and who answers it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lockstep_core::NodeId;

/// Which of the two connections to a node carries a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Votes, heartbeats and other small requests: frames of at most 256 KiB.
    Control,
    /// Log entries and pulled files: frames of at most 8 MiB.
    Bulk,
}

impl Lane {
    /// Both.
    pub const ALL: [Lane; 2] = [Lane::Control, Lane::Bulk];

    /// Longest frame in bytes, header included.
    #[must_use]
    pub const fn frame_len_max(self) -> usize {
        match self {
            Lane::Control => 256 << 10,
            Lane::Bulk => 8 << 20,
        }
    }

    /// Bytes of requests that a caller keeps under way on this lane to one node; further calls wait.
    pub(super) const fn sent_bytes_max(self) -> usize {
        match self {
            Lane::Control => 8 << 20,
            Lane::Bulk => 32 << 20,
        }
    }

    /// Bytes of requests of one node that are handled at the same time; further ones are refused. Twice what a caller
    /// sends, because a caller forgets calls whose time is up sooner than the handler finishes them.
    pub(super) const fn handled_bytes_max(self) -> usize {
        self.sent_bytes_max() * 2
    }

    pub(super) const fn code(self) -> u8 {
        match self {
            Lane::Control => 0,
            Lane::Bulk => 1,
        }
    }

    pub(super) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Lane::Control),
            1 => Some(Lane::Bulk),
            _ => None,
        }
    }
}

/// A request to another node.
#[derive(Clone, Debug, Default)]
pub struct PeerRequest {
    /// What is asked; known to the two handlers only.
    pub kind: u8,
    /// The shard that it is about.
    pub shard: u16,
    /// Small head; copied once.
    pub body: Bytes,
    /// Large parts, written one after another without being copied.
    pub payload: Vec<Bytes>,
}

/// A request from another node. Both parts share one allocation of their own size.
#[derive(Clone, Debug)]
pub struct IncomingRequest {
    /// What is asked.
    pub kind: u8,
    /// The shard that it is about.
    pub shard: u16,
    /// Where it came in.
    pub lane: Lane,
    /// Small head.
    pub body: Bytes,
    /// The large parts in one piece.
    pub payload: Bytes,
    /// How long the caller waits for the reply, counted from its call.
    pub timeout: Duration,
}

/// The answer to a request.
#[derive(Clone, Debug, Default)]
pub struct PeerReply {
    /// Small head; copied once.
    pub body: Bytes,
    /// Large parts, written one after another without being copied.
    pub payload: Vec<Bytes>,
}

/// A refusal or failure that the handler reports to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fault {code}: {reason}")]
pub struct PeerFault {
    /// The handlers' own codes, below 0xff00; above, the network's.
    pub code: u16,
    /// For logs; cut after 1,024 bytes.
    pub reason: String,
}

/// The handler ended without an answer. What it did is unknown.
pub const FAULT_INTERNAL: u16 = 0xff00;
/// Too many requests are being handled; this one was not looked at.
pub const FAULT_OVERLOADED: u16 = 0xff01;
/// The reply does not fit the lane.
pub const FAULT_TOO_LARGE: u16 = 0xff02;

/// A call without a reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is no connection to the node. Nothing was sent.
    #[error("node {0} is unreachable")]
    Unreachable(NodeId),
    /// The connection broke while the call was under way. Whether it was handled is unknown.
    #[error("the connection to node {0} broke")]
    Lost(NodeId),
    /// No reply came in time. Whether the request was handled is unknown.
    #[error("node {0} did not reply in time")]
    Timeout(NodeId),
    /// The node is not the one that was meant: its disk was emptied, or replaced. Nothing was handled.
    #[error("node {0} has another incarnation")]
    WrongIncarnation(NodeId),
    /// The request does not fit the lane. Nothing was sent.
    #[error("a request of {len} bytes exceeds the lane's {len_max}")]
    TooLarge {
        /// Bytes of the frame.
        len: usize,
        /// Most that the lane takes.
        len_max: usize,
    },
    /// The node answered with a fault.
    #[error(transparent)]
    Fault(#[from] PeerFault),
}

/// Who sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Node.
    pub node: NodeId,
    /// Its disk's identity: another one after the disk was emptied.
    pub incarnation: [u8; 16],
}

/// Answers requests and carries gossip. None of the methods may block, since they run on the task that reads from the
/// connection.
pub trait PeerHandler: Send + Sync + 'static {
    /// Starts handling a request. Called in the order in which the requests of one node arrived on one lane; the
    /// futures then run at the same time, each in a task of its own, and run on if the caller has gone.
    fn handle(&self, from: PeerIdentity, request: IncomingRequest) -> BoxFuture<'static, Result<PeerReply, PeerFault>>;

    /// What every other node should know now: at most 64 KiB, sent with every ping.
    fn gossip(&self) -> Bytes;

    /// Another node's gossip. Hostile bytes, like everything that arrives.
    fn on_gossip(&self, from: PeerIdentity, gossip: Bytes);
}
