//! Writing behind `apply`, and making durable what a checkpoint lists.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use lockstep_env::{Disk, DiskFile, Env, OpenMode, select, wants_room};
use tokio::sync::Notify;

use crate::storage::segment::{SegmentEntry, SegmentName};
use crate::storage::state::Partition;
use crate::storage::store::{Inner, URGENT_BYTES, lock};
use lockstep_probe::Mark;

/// How long applied batches stay in memory only, when they are few. Every shard of every node writes behind: five times a second it was seen in the slowest
/// hundredth of single records.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Files that were not used for so long are closed.
const FILE_IDLE: Duration = Duration::from_secs(60);
/// Bytes of one write.
const STEP_BYTES_MAX: u64 = 4 << 20;
/// Buffers of one write (`IOV_MAX` is 1,024).
const STEP_BUFFERS_MAX: usize = 1_000;
/// The system is asked to write a segment to the disk in steps of so many bytes, as it grows: left to itself it waits for the sync, which then holds up
/// those of the journal for as long as all of it takes.
const WRITE_BACK_STEP_BYTES: u64 = 1 << 20;
/// A segment is synced once so much of it was written: small steps in the background, so that a checkpoint finds little left to do and
/// its syncs do not hold up those of the journal.
const SYNC_STEP_BYTES: u64 = 8 << 20;
/// While the disk is full it is tried again so often whether there is room.
const ROOM_LOOK_EVERY: Duration = Duration::from_millis(500);
/// Files synced at the same time.
const SYNCS_AT_ONCE: usize = 8;

/// The store's own task. Ends when the store is closed, dropped or has failed.
pub(crate) async fn run<E: Env>(store: Weak<Inner<E>>, work: Arc<Notify>, urgent: Arc<Notify>) {
    let mut files_mark = 0;
    let mut files_close_at = E::now() + FILE_IDLE;
    loop {
        select(work.notified(), E::sleep_until(files_close_at)).await;
        loop {
            let Some(inner) = store.upgrade() else { return };
            if inner.closed.load(Ordering::Acquire) || inner.is_failed() {
                return;
            }
            if E::now() >= files_close_at {
                let mut files = lock(&inner.files);
                files.forget_unused_since(files_mark);
                files_mark = files.mark();
                files_close_at = E::now() + FILE_IDLE;
            }
            if inner.unwritten.load(Ordering::Acquire) == 0 {
                inner.remove_dropped_behind();
                break;
            }
            // Much may have come while what was there was written: nobody tells of it again.
            let is_urgent = inner.unwritten.load(Ordering::Acquire) >= URGENT_BYTES;
            drop(inner);
            if !is_urgent {
                select(urgent.notified(), E::sleep(FLUSH_INTERVAL)).await;
            }
            let Some(inner) = store.upgrade() else { return };
            if inner.flush().await.is_err() || inner.sync_long_unsynced().await.is_err() {
                return;
            }
        }
    }
}

impl<E: Env> Inner<E> {
    /// Writes everything applied so far.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        let _writing = self.writing.lock().await;
        self.write_queued().await
    }

    /// Writes what waits in the queue now. `writing` must be held. A partition leaves the queue only when it is written, so nothing is lost when the
    /// caller gives up half way.
    pub(crate) async fn write_queued(&self) -> io::Result<()> {
        self.check_failed()?;
        let queued = lock(&self.queue).len();
        for _ in 0..queued {
            let Some(partition) = lock(&self.queue).front().cloned() else { break };
            self.write_partition(&partition).await?;
            let more = {
                let mut state = partition.lock();
                state.queued = state.unwritten() > 0;
                state.queued
            };
            let mut queue = lock(&self.queue);
            queue.pop_front();
            if more {
                queue.push_back(partition);
            }
        }
        Ok(())
    }

    /// Writes what the partition has now; not what is appended meanwhile, which might never end.
    async fn write_partition(&self, partition: &Arc<Partition>) -> io::Result<()> {
        let mut left = partition.lock().unwritten();
        while left > 0 {
            let (step, directory_made, new_file) = {
                let state = partition.lock();
                let Some(step) = state.next_write(STEP_BYTES_MAX, STEP_BUFFERS_MAX) else { break };
                let new_file = step.position == 0;
                (step, state.directory_made, new_file)
            };
            if !directory_made {
                let directory = self.directory(partition.key);
                while let Err(error) = self.env.disk().create_dir_all(&directory).await {
                    self.wait_for_room(&directory, error).await.map_err(|error| self.fail(&directory, error))?;
                }
                // Only now: a checkpoint that syncs the directory before would count it as durable.
                self.root_changes.fetch_add(1, Ordering::AcqRel);
                partition.lock().directory_made = true;
            }
            let mode = if new_file { OpenMode::CreateOrOpen } else { OpenMode::ReadWrite };
            loop {
                let written = match self.file(step.segment, step.generation, mode).await {
                    Ok(file) => write::<E>(&file, step.position, step.buffers.clone(), step.bytes).await,
                    Err(error) => Err(error),
                };
                let Err(error) = written else { break };
                let path = self.log_path(step.segment);
                self.wait_for_room(&path, error).await.map_err(|error| self.fail(&path, error))?;
            }
            {
                let mut state = partition.lock();
                state.wrote(&step);
                state.directory_changes += u64::from(new_file);
                let unsynced = state.segment(step.segment).map_or(0, |it| it.written - it.synced);
                if unsynced / SYNC_STEP_BYTES > unsynced.saturating_sub(step.bytes) / SYNC_STEP_BYTES {
                    lock(&self.long_unsynced).push((Arc::clone(partition), step.segment));
                }
            }
            self.unwritten.fetch_sub(step.bytes, Ordering::AcqRel);
            self.wrote.notify_waiters();
            left = left.saturating_sub(step.bytes);
        }
        self.save_closed_indexes(partition).await;
        Ok(())
    }

    /// Returns when a write that failed, or the opening of a file, may be tried again: one that finds the disk full, or no file descriptor left, has lost nothing,
    /// since what it was to write is still in memory, or in another file. Until then [`PartitionStore::writable`](super::store::PartitionStore::writable) holds up what would need more memory.
    /// A sync that failed is not made again: it never says that it lacks room ([`DiskFile::sync_data`]).
    ///
    /// # Errors
    /// `error` itself when it is another one, or when the store is being closed.
    pub(crate) async fn wait_for_room(&self, path: &Path, error: io::Error) -> io::Result<()> {
        self.check_failed()?;
        if !wants_room(&error) || self.closing.load(Ordering::Acquire) {
            return Err(error);
        }
        Mark::SegmentsWaitedForRoom.reached();
        tracing::warn!(path = %path.display(), %error, "no room to write: waiting for it");
        E::sleep(ROOM_LOOK_EVERY).await;
        Ok(())
    }

    /// Makes these segments durable up to the lengths given. They must be written.
    pub(crate) async fn sync_segments(&self, segments: &[(Arc<Partition>, SegmentEntry)]) -> io::Result<()> {
        let mut unsynced = Vec::new();
        let mut directories = BTreeMap::new();
        for (partition, entry) in segments {
            let state = partition.lock();
            if state.directory_changes > state.directory_synced {
                directories.insert(partition.key, Arc::clone(partition));
            }
            if entry.len == 0 {
                continue;
            }
            let segment = state
                .segment(entry.name)
                .filter(|segment| segment.written >= entry.len)
                .ok_or_else(|| io::Error::other("the segments were exchanged under the checkpoint"))?;
            if segment.synced < entry.len {
                unsynced.push((partition, entry.name));
            }
        }
        for some in unsynced.chunks(SYNCS_AT_ONCE) {
            try_join_all(some.iter().map(|(partition, name)| self.sync_segment(partition, *name))).await?;
        }
        let directories: Vec<_> = directories.into_values().collect();
        for some in directories.chunks(SYNCS_AT_ONCE) {
            try_join_all(some.iter().map(async |partition| {
                let changes = partition.lock().directory_changes;
                self.sync_directory(&self.directory(partition.key)).await?;
                partition.lock().directory_synced = changes;
                io::Result::Ok(())
            }))
            .await?;
        }
        self.sync_root().await
    }

    /// Makes durable what is written of a segment.
    pub(crate) async fn sync_segment(&self, partition: &Partition, name: SegmentName) -> io::Result<()> {
        let (written, generation) = {
            let state = partition.lock();
            (state.segment(name).map_or(0, |segment| segment.written), state.generation)
        };
        let path = self.log_path(name);
        let opened = loop {
            match self.file(name, generation, OpenMode::ReadWrite).await {
                Err(error) if wants_room(&error) => {
                    self.wait_for_room(&path, error).await.map_err(|error| self.fail(&path, error))?;
                }
                opened => break opened,
            }
        };
        if let Ok(file) = &opened {
            // A failure counts also when the file was exchanged meanwhile: what took its place may be the same one, grown.
            self.sync_file(file, &path).await?;
        }
        let mut state = partition.lock();
        let is_gone = state.dropped || state.segment(name).is_none();
        let gone = is_gone && opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if gone || state.generation != generation {
            // The files were removed, or exchanged for others that are durable.
            return Ok(());
        }
        opened.map_err(|error| self.fail(&path, error))?;
        if let Some(segment) = state.segment_mut(name) {
            segment.synced = segment.synced.max(written);
        }
        Ok(())
    }

    async fn sync_long_unsynced(&self) -> io::Result<()> {
        let segments = std::mem::take(&mut *lock(&self.long_unsynced));
        for (partition, name) in segments {
            self.sync_segment(&partition, name).await?;
        }
        Ok(())
    }

    /// Makes the partitions' directories durable.
    pub(crate) async fn sync_root(&self) -> io::Result<()> {
        let changes = self.root_changes.load(Ordering::Acquire);
        if changes > self.root_synced.load(Ordering::Acquire) {
            self.sync_directory(&self.dir).await?;
            self.root_synced.fetch_max(changes, Ordering::AcqRel);
        }
        Ok(())
    }
}

/// Writes to a segment's file, and lets the system begin with each step that is full: little is left for the sync then, which would hold up those of the journal.
pub(crate) async fn write<E: Env>(
    file: &<E::Disk as Disk>::File,
    offset: u64,
    buffers: Vec<Bytes>,
    bytes: u64,
) -> io::Result<()> {
    file.write_at(offset, buffers).await?;
    let step_of = |offset: u64| offset - offset % WRITE_BACK_STEP_BYTES;
    let (begun, whole) = (step_of(offset), step_of(offset + bytes));
    if whole > begun {
        file.write_back(begun, whole - begun).await;
    }
    Ok(())
}
