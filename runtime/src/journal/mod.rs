//! The node's journal: one log of records for all its shards.

mod shard_log;

use std::path::Path;
use std::sync::Arc;

use lockstep_core::ShardId;
use lockstep_env::Env;

use crate::config::Durability;
use crate::error::StartError;
use crate::histogram::Histogram;
pub use shard_log::ShardLog;

/// How a journal behaves.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Size of a file, preallocated.
    pub file_bytes: u64,
    /// Recent entries of each shard kept in memory. Entries that are not yet durable are always kept, whatever their size.
    pub cache_bytes_per_shard: usize,
    /// When [`ShardLog::append`] answers.
    pub durability: Durability,
}

/// A node's journal. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal<E: Env> {
    _env: std::marker::PhantomData<E>,
}

#[allow(unused_variables, clippy::unused_async)]
impl<E: Env> Journal<E> {
    /// Recovers all shards from the files in `dir` and starts the writer.
    pub async fn open(env: E, dir: &Path, options: JournalOptions) -> Result<Self, StartError> {
        todo!()
    }
    /// A shard's log, empty when the journal has never heard of the shard.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> ShardLog<E> {
        todo!()
    }
    /// Journal bytes held by entries of this shard.
    #[must_use]
    pub fn bytes_since_purge(&self, shard: ShardId) -> u64 {
        todo!()
    }
    /// The shard whose entries keep the oldest file from being recycled: checkpoint and purge it.
    #[must_use]
    pub fn pinned_by(&self) -> Option<ShardId> {
        todo!()
    }
    /// Number of files that hold records.
    #[must_use]
    pub fn files(&self) -> usize {
        todo!()
    }
    /// Latencies of writing and syncing one batch.
    #[must_use]
    pub fn sync_histogram(&self) -> Arc<Histogram> {
        todo!()
    }
    /// Writes and syncs what is queued, then stops the journal: later calls fail.
    pub async fn close(&self) {
        todo!()
    }
    /// Why the journal failed, if it did: a write or a sync went wrong, and nothing can be trusted to reach the disk any more.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        todo!()
    }
}
