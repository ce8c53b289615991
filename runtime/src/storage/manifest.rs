//! What a checkpoint consists of.

use bytes::Bytes;
use lockstep_core::Position;

use crate::storage::segment::SegmentEntry;

/// One checkpoint of one shard; it is the Raft snapshot too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The last position applied to it; `None` before the first.
    pub position: Option<Position>,
    /// Raft's membership as of the position, opaque here.
    pub membership: Bytes,
    /// The state machine's snapshot.
    pub core_snapshot: Bytes,
    /// All segments, ascending by name.
    pub segments: Vec<SegmentEntry>,
}

/// Bytes that are no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint manifest: {0}")]
pub struct ManifestError(pub String);

impl Manifest {
    /// The bytes on disk and on the wire: versioned, with a checksum at the end.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        todo!()
    }
    /// Reads what [`Manifest::encode`] wrote. Any other bytes are refused, whatever they are.
    pub fn decode(bytes: &Bytes) -> Result<Self, ManifestError> {
        let _ = bytes;
        todo!()
    }
}
