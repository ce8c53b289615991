//! The node's journal: one log of records for all its shards, and the only thing on an acknowledged write's critical path.
//!
//! Files are preallocated and named by their generation, a number that grows by one from file to file. One task, the writer, writes
//! one batch after the other ([`format`]): what was queued while one batch was written and synced goes into the next one, and that one is
//! written only after the one before it is durable. [`recovery`] relies on that to tell a torn tail from damage.
//!
//! A file begins with every shard's state (vote, purged, committed and last position), so older files are needed for entries only. A file
//! in which no shard has entries any more is renamed and used again. Files go oldest first. When few entries keep the oldest file, the
//! [`keeper`] carries them to the newest one; when they are many, [`Journal::pinned_by`] names the shard that has to be checkpointed, and
//! they are carried only once the journal is much longer than what that shard needs. So the journal's length is bounded by what shards have not purged.
//!
//! After a failed write or sync nobody knows what the disk holds: the journal fails for good and is never written again, and the next
//! start reads what is really there.
//!
//! The caller keeps two journals out of one directory (`Disk::lock`).

mod format;
mod index;
mod keeper;
mod mark;
mod read;
mod recovery;
mod shard_log;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use lockstep_core::ShardId;
use lockstep_env::{Disk, DiskFile, Env};
use lockstep_probe::Mistake;

use crate::config::Durability;
use crate::error::StartError;
use crate::histogram::Histogram;
use format::{BLOCK_BYTES, Identity};
use keeper::Keeper;
use recovery::{Recovered, recover};
pub use shard_log::ShardLog;
use state::{FileOf, Inner, State};
use writer::Writer;

/// Smallest and largest size of a file.
const FILE_BYTES: std::ops::RangeInclusive<u64> = 4 * BLOCK_BYTES..=1 << 30;

/// How a journal behaves.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Size of a file, preallocated: 16 KiB to 1 GiB in steps of 4 KiB. A file is longer only when a single entry would not fit.
    pub file_bytes: u64,
    /// Recent entries of each shard kept in memory. Entries that are not yet durable are always kept, whatever their size.
    pub cache_bytes_per_shard: usize,
    /// When [`ShardLog::append`] answers.
    pub durability: Durability,
}

/// Closes the journal when the last one who could use it is gone.
struct Handle<E: Env> {
    inner: Arc<Inner<E>>,
}

impl<E: Env> Drop for Handle<E> {
    fn drop(&mut self) {
        self.inner.begin_close();
    }
}

impl<E: Env> fmt::Debug for Handle<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

/// A node's journal. Cheap to clone.
///
/// What is queued is written and synced before it stops, be it closed or dropped; only [`Journal::close`] tells when that is done.
#[derive(Debug)]
pub struct Journal<E: Env> {
    handle: Arc<Handle<E>>,
}

impl<E: Env> Clone for Journal<E> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

impl<E: Env> Journal<E> {
    /// Recovers all shards from the files in `dir`, created when missing, and starts the writer. A torn tail, which cannot have been
    /// acknowledged, is cut; damage before it is `StartError::Damaged`. Whatever the files hold, memory and time are bounded by their size.
    pub async fn open(env: E, dir: &Path, options: JournalOptions) -> Result<Self, StartError> {
        if !FILE_BYTES.contains(&options.file_bytes) || !options.file_bytes.is_multiple_of(BLOCK_BYTES) {
            let reason =
                format!("must be a multiple of {BLOCK_BYTES} from {} to {}", FILE_BYTES.start(), FILE_BYTES.end());
            return Err(StartError::Config { field: "journal_file_bytes", reason });
        }
        let io_error = |source: io::Error| StartError::Io { path: dir.display().to_string(), source };
        env.disk().create_dir_all(dir).await.map_err(io_error)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            env.disk().sync_dir(parent).await.map_err(io_error)?;
        }
        let Recovered { files, spares, next_spare, shards, marks, last, last_batch } =
            recover(&env, dir, options.file_bytes).await?;
        if let Some((_, file)) = files.last_key_value()
            && !Mistake::RecoveredTailNotSynced.is_made()
        {
            Self::write_again(&file.file, last_batch).await.map_err(io_error)?;
        }
        let next = Identity {
            generation: last.map_or(1, |last| last.generation + 1),
            sequence: last.map_or(1, |last| last.sequence + 1),
            salt: last.map_or_else(E::random_u64, |last| last.next_salt),
            next_salt: E::random_u64(),
        };
        let state = State {
            shards,
            queue: VecDeque::new(),
            unwritten_bytes: 0,
            deferred: 0,
            committed_unwritten: BTreeSet::new(),
            files,
            pins: Vec::new(),
            freed: VecDeque::new(),
            spares,
            next_spare,
            spare_wanted: false,
            bytes_per_second: 0,
            spare_error: None,
            carrying: None,
            next_ticket: 0,
            closing: false,
            failed: None,
            tasks: 2,
        };
        let inner = Arc::new(Inner::new(env, dir, options, state));
        let mut writer = Writer::new(Arc::clone(&inner), marks, next);
        writer.begin_file(0).await.map_err(io_error)?;
        if let Some(last) = last {
            Self::cut(&inner, last.generation).await.map_err(io_error)?;
        }
        drop(E::spawn(writer.run()));
        drop(E::spawn(Keeper::new(Arc::clone(&inner)).run()));
        Ok(Self { handle: Arc::new(Handle { inner }) })
    }

    /// Makes the last batch durable. If only the process stopped and not the machine, or if a sync failed, the batch may have been read from
    /// the operating system's memory without being on the disk; a sync by itself would then do nothing.
    async fn write_again(file: &FileOf<E>, batch: Range<u64>) -> io::Result<()> {
        let mut offset = batch.start;
        while offset < batch.end {
            let bytes = file.read_at(offset, (batch.end - offset).min(1 << 20) as usize).await?;
            if bytes.is_empty() {
                break;
            }
            let next = offset + bytes.len() as u64;
            file.write_at(offset, vec![bytes.into()]).await?;
            offset = next;
        }
        file.sync_data().await
    }

    /// Gives the room behind the last batch of the file that was written before this start back, and with it the torn tail.
    async fn cut(inner: &Inner<E>, generation: u64) -> io::Result<()> {
        let old = inner.lock().files.get(&generation).map(|old| (old.file.clone(), old.len));
        if let Some((file, len)) = old {
            file.set_len(len).await?;
            file.sync_data().await?;
        }
        Ok(())
    }

    /// A shard's log, empty when the journal has never heard of the shard.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> ShardLog<E> {
        ShardLog::new(Arc::clone(&self.handle), shard)
    }

    /// Journal bytes held by entries of this shard, with their share of padding: about what a recovery has to read for it.
    #[must_use]
    pub fn bytes_since_purge(&self, shard: ShardId) -> u64 {
        self.handle.inner.lock().shards.get(&shard).map_or(0, index::ShardIndex::held_bytes)
    }

    /// The shard that has the most entries in the oldest file, unless that is the file being written: checkpoint and purge it, so that
    /// the file can be used again.
    #[must_use]
    pub fn pinned_by(&self) -> Option<ShardId> {
        let mut entries = BTreeMap::new();
        for (shard, extent) in &self.handle.inner.lock().pins {
            *entries.entry(*shard).or_insert(0) += extent.last - extent.first + 1;
        }
        entries.into_iter().max_by_key(|(_, entries)| *entries).map(|(shard, _)| shard)
    }

    /// Number of files that hold records that are still needed. Spare files come on top.
    #[must_use]
    pub fn files(&self) -> usize {
        self.handle.inner.lock().files.len()
    }

    /// Latencies of writing and syncing one batch.
    #[must_use]
    pub fn sync_histogram(&self) -> Arc<Histogram> {
        Arc::clone(&self.handle.inner.histogram)
    }

    /// Writes and syncs what is queued, then stops the journal: later calls fail. Returns when nothing touches the directory any more.
    pub async fn close(&self) {
        let inner = &self.handle.inner;
        inner.begin_close();
        loop {
            let mut stopped = pin!(inner.task_stopped.notified());
            stopped.as_mut().enable();
            if inner.lock().tasks == 0 {
                return;
            }
            stopped.await;
        }
    }

    /// Why the journal failed, if it did: a write or a sync went wrong, and nothing can be trusted to reach the disk any more.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.handle.inner.lock().failed.clone()
    }
}
