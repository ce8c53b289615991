//! Files of compacted segments, before they take the place of others.
//!
//! A file grows in `<store>/compacting/`. Once it is whole and durable it is renamed to where it belongs, which no other segment is called: its name
//! tells of the compaction. So the files that it was made of stay as they are, whatever becomes of the compaction, and the effect of its op
//! ([`lockstep_core::Effect::ReplaceSegments`]) touches no file. The old files go with the next checkpoint, which lists the new ones.
//!
//! A staged file that no op ever names goes when the partition is compacted again: by then the fate of every earlier compaction is known. A start keeps such files, also
//! those of partitions that its checkpoint does not know: the journal may name both.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use lockstep_core::TopicId;
use lockstep_env::{Disk, Env, OpenMode, Step};

use crate::storage::flush;
use crate::storage::segment::{PartitionKey, SegmentName};
use crate::storage::state::Partition;
use crate::storage::store::{Inner, PartitionStore, lock};

/// Where files of compacted segments grow.
pub(crate) const STAGING: &str = "compacting";

/// One file on its way. Dropping it leaves the file where it is, until the next one of this name or the next start.
#[derive(Debug)]
pub(crate) struct Staging<E: Env> {
    inner: Arc<Inner<E>>,
    partition: Arc<Partition>,
    name: SegmentName,
    path: PathBuf,
    file: <E::Disk as Disk>::File,
    len: u64,
    crc32c: u32,
}

impl<E: Env> Staging<E> {
    /// Begins with nothing. `NotFound`: the partition is gone.
    pub(crate) async fn begin(store: &PartitionStore<E>, name: SegmentName) -> io::Result<Self> {
        assert!(name.is_compacted(), "a segment that batches are appended to is never staged");
        let inner = Arc::clone(&store.inner);
        let partition = inner.partition(name.key()).ok_or(io::ErrorKind::NotFound)?;
        let folder = inner.dir.join(STAGING);
        inner.env.disk().create_dir_all(&folder).await?;
        let path = folder.join(name.staged_file());
        let file = inner.env.disk().open(&path, OpenMode::Truncate).await?;
        Ok(Self { inner, partition, name, path, file, len: 0, crc32c: 0 })
    }

    /// Which segment it will be.
    pub(crate) fn name(&self) -> SegmentName {
        self.name
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// CRC32C of them.
    pub(crate) fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// Adds to its end.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let len = bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes);
        flush::write::<E>(&self.file, self.len, vec![bytes], len).await?;
        self.len += len;
        Ok(())
    }

    /// Makes it durable where it belongs.
    pub(crate) async fn finish(self) -> io::Result<()> {
        let Self { inner, partition, name, path, file, len, .. } = self;
        let disk = inner.env.disk();
        inner.sync_file(&file, &path).await?;
        drop(file);
        // Nobody removes the partition's directory meanwhile.
        let _writing = inner.writing.lock().await;
        inner.check_failed()?;
        if partition.lock().dropped {
            disk.remove_file(&path).await?;
            return Err(io::ErrorKind::NotFound.into());
        }
        let directory = inner.directory(name.key());
        if !partition.lock().directory_made {
            disk.create_dir_all(&directory).await?;
            inner.root_changes.fetch_add(1, Ordering::AcqRel);
            partition.lock().directory_made = true;
        }
        // Also what was made to write to, which a checkpoint has not come to yet.
        inner.sync_root().await?;
        inner.env.reached(Step::CompactedSegmentStaged);
        disk.rename(&path, &inner.log_path(name)).await?;
        inner.sync_directory(&directory).await?;
        partition.lock().stage(name, len);
        Ok(())
    }

    /// Gives it up.
    pub(crate) async fn abandon(self) {
        let Self { inner, path, file, .. } = self;
        drop(file);
        inner.remove_unused(&path).await;
    }
}

impl<E: Env> PartitionStore<E> {
    /// Is this compacted segment here already, whether or not it has taken its place?
    pub(crate) fn has_compacted(&self, name: SegmentName) -> bool {
        self.inner.staged(name).is_some() || self.inner.listed(name).is_some()
    }

    /// Removes files of compactions that a start found, of partitions that are not there now: to be called when everything that this node's journal held then is
    /// applied.
    pub(crate) async fn forget_unclaimed(&self) {
        let inner = &self.inner;
        let _writing = inner.writing.lock().await;
        let unclaimed = std::mem::take(&mut *lock(&inner.unclaimed));
        for (key, staged) in unclaimed {
            match inner.partition(key) {
                // It came with a leader's checkpoint, and so did what is listed of them.
                Some(partition) => {
                    let mut state = partition.lock();
                    for (name, len) in staged {
                        state.stage(name, len);
                    }
                }
                None => inner.remove_unused_directory(&inner.directory(key)).await,
            }
        }
    }

    /// Removes what was staged for compactions of the partition before this one. The caller knows that none of them will ever take effect.
    pub(crate) async fn discard_staged(&self, topic_id: TopicId, partition: u32, before_revision: u64) {
        let Some(partition) = self.inner.partition(PartitionKey { topic_id, partition }) else { return };
        let gone = {
            // One that is just being put in place is there then.
            let _writing = self.inner.writing.lock().await;
            partition.lock().forget_staged_before(before_revision)
        };
        for name in gone {
            self.inner.remove_unused(&self.inner.log_path(name)).await;
        }
        // What was given up half way.
        let folder = self.inner.dir.join(STAGING);
        for file in self.inner.env.disk().read_dir(&folder).await.unwrap_or_default() {
            let (directory, stem) = file.split_once('.').unwrap_or_default();
            let name = SegmentName::parse_stem(partition.key, stem);
            if directory == partition.key.directory() && name.is_some_and(|name| name.revision < before_revision) {
                self.inner.remove_unused(&folder.join(file)).await;
            }
        }
    }
}

impl<E: Env> Inner<E> {
    async fn remove_unused_directory(&self, path: &std::path::Path) {
        match self.env.disk().remove_dir_all(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next start tries again.
                tracing::warn!(path = %path.display(), %error, "files of compactions of a deleted partition stay");
            }
            _ => {}
        }
    }

    /// Removes a file that nobody will ask for, if it is there. The next start tries again.
    pub(crate) async fn remove_unused(&self, path: &std::path::Path) {
        match self.env.disk().remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a file that is of no use stays");
            }
            _ => {}
        }
    }
}
