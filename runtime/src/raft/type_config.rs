//! The types that openraft is used with.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use lockstep_core::{NodeId, Position, Reply};
use lockstep_env::Env;
use openraft::vote::leader_id_std::CommittedLeaderId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::completion::Completion;
use super::env_runtime::EnvRuntime;

/// openraft's type parameters, on the clocks and tasks of `E`.
pub(crate) struct TypeConfig<E>(PhantomData<fn() -> E>);

/// Who stood for, or won, an election: one leader a term, as in the Raft paper.
pub(crate) type LeaderId = openraft::vote::leader_id_std::LeaderId<u64, NodeId>;
/// A vote as it is kept on disk.
pub(crate) type Vote = openraft::Vote<LeaderId>;
/// openraft's form of a [`Position`].
pub(crate) type LogId = openraft::LogId<CommittedLeaderId<u64>>;
/// What an entry holds.
pub(crate) type Payload = openraft::EntryPayload<Command, NodeId, Member>;
/// An entry of a shard's log.
pub(crate) type Entry = openraft::Entry<CommittedLeaderId<u64>, Payload>;
/// Voters and learners.
pub(crate) type Membership = openraft::Membership<NodeId, Member>;
/// A membership and the entry that made it.
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId<u64>, NodeId, Member>;
/// What a snapshot covers.
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId<u64>, NodeId, Member>;

/// The position that openraft calls a log id.
pub(crate) fn position(log_id: &LogId) -> Position {
    Position { term: log_id.leader_id.term, index: log_id.index }
}

/// openraft's name for a position.
pub(crate) fn log_id(position: Position) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(position.term), index: position.index }
}

/// An op on its way through the log: its encoding, and the raw record batches that it names slices of.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// [`lockstep_core::Op::encode`].
    pub(crate) op: Bytes,
    /// Record batches, one after another; empty for most ops.
    pub(crate) payload: Bytes,
}

impl Command {
    /// The op's code, 0 when there is none.
    fn code(&self) -> u8 {
        self.op.get(1).copied().unwrap_or(0)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op {} ({} + {} bytes)", self.code(), self.op.len(), self.payload.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// openraft asks for these bounds. Nothing is stored or sent this way: see `entry_codec`.
impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.op.as_ref(), self.payload.as_ref()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (op, payload) = <(Vec<u8>, Vec<u8>)>::deserialize(deserializer)?;
        Ok(Self { op: op.into(), payload: payload.into() })
    }
}

/// What the state machine gave back: nothing for entries of Raft's own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome(pub(crate) Option<Reply>);

/// A node as the members of a shard know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Peer address, `host:port`, for people: the peer network has its own list.
    pub(crate) address: String,
    /// Made when the node's directories were. A node that comes back with emptied disks has another one and is not taken for the old one.
    pub(crate) incarnation: [u8; 16],
}

impl<E: Env> openraft::RaftTypeConfig for TypeConfig<E> {
    type D = Command;
    type R = Outcome;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = EnvRuntime<E>;
    type Responder<T>
        = Completion<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}

// A marker has one value; derives would ask the same of `E`.
impl<E> Clone for TypeConfig<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for TypeConfig<E> {}

impl<E> Default for TypeConfig<E> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E> fmt::Debug for TypeConfig<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}

impl<E> PartialEq for TypeConfig<E> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<E> Eq for TypeConfig<E> {}

impl<E> PartialOrd for TypeConfig<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for TypeConfig<E> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}
