//! A replica that takes over another's checkpoint.

use std::io;

use bytes::Bytes;
use lockstep_env::Env;

use crate::storage::checkpoint::Checkpoints;
use crate::storage::manifest::Manifest;
use crate::storage::segment::SegmentName;
use crate::storage::store::PartitionStore;

/// Bytes of a segment that must be fetched, from the first to the last, before an installation can finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingRange {
    /// Segment.
    pub segment: SegmentName,
    /// Position of the first missing byte.
    pub from: u64,
    /// How many are missing.
    pub len: u64,
}

/// A checkpoint under way from another node. Until [`Installation::finish`] nothing changes for the store: it may go on applying, flushing
/// and writing checkpoints of its own, and after a crash it is found as it was. Dropping the installation gives it up.
#[derive(Debug)]
pub struct Installation<E: Env> {
    store: PartitionStore<E>,
}

#[allow(unused_variables, clippy::unused_async)]
impl<E: Env> Installation<E> {
    /// Compares the manifest with what the store has. Local segments are prefixes of the leader's, because all replicas apply the same
    /// batches in the same order, so only the rest is missing.
    pub async fn begin(store: &PartitionStore<E>, manifest: Manifest) -> io::Result<Self> {
        todo!()
    }
    /// The manifest being installed.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        todo!()
    }
    /// What must still be fetched, ascending by segment. Ask again when all ranges are written: a segment whose checksum turns out
    /// wrong because the local part differs is listed anew, from its first byte. Empty: ready to finish.
    #[must_use]
    pub fn missing(&self) -> Vec<MissingRange> {
        todo!()
    }
    /// Takes the next bytes of a segment: `offset` must be the `from` of its missing range.
    ///
    /// # Errors
    /// `InvalidData` when nothing is missing there, or when a segment that was fetched whole has the wrong checksum (the other side is
    /// damaged: the installation cannot succeed with it). Any other error is the local disk's.
    pub async fn write_chunk(&mut self, segment: &SegmentName, offset: u64, chunk: Bytes) -> io::Result<()> {
        todo!()
    }
    /// Makes the manifest the shard's checkpoint and the store's content, in place: clones of the store and its logs see the new
    /// content, waiters are woken. The caller must not run `apply` or a checkpoint meanwhile. After an error the shard must stop;
    /// its next start finds the old or the new state.
    pub async fn finish(self, checkpoints: &Checkpoints<E>) -> io::Result<Manifest> {
        todo!()
    }
}
