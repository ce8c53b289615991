//! Files of compacted segments, before they take the place of others.
//!
//! A file grows in `<store>/compacting/`. Once it is whole and durable it is renamed to where it belongs, which no other segment is called: its name
//! tells of the compaction. So the files that it was made of stay as they are, whatever becomes of the compaction, and the effect of its op
//! ([`lockstep_core::Effect::ReplaceSegments`]) touches no file. The old files go with the next checkpoint, which lists the new ones.
//!
//! A staged file that no op ever names goes when the partition is compacted again: by then the fate of every earlier compaction is known.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::TopicId;
use lockstep_env::{Disk, DiskFile, Env, OpenMode, Step};

use crate::storage::segment::{PartitionKey, SegmentName};
use crate::storage::state::Partition;
use crate::storage::store::{Inner, PartitionStore};

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
        self.file.write_at(self.len, vec![bytes]).await?;
        self.len += len;
        Ok(())
    }

    /// Makes it durable where it belongs.
    pub(crate) async fn finish(self) -> io::Result<()> {
        let Self { inner, partition, name, path, file, len, .. } = self;
        let disk = inner.env.disk();
        file.sync_data().await?;
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
            disk.sync_dir(&inner.dir).await?;
            partition.lock().directory_made = true;
        }
        inner.env.reached(Step::CompactedSegmentStaged);
        disk.rename(&path, &inner.log_path(name)).await?;
        disk.sync_dir(&directory).await?;
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

    /// Removes what was staged for compactions of the partition before this one. The caller knows that none of them will ever take effect.
    pub(crate) async fn discard_staged(&self, topic_id: TopicId, partition: u32, before_revision: u64) {
        let Some(partition) = self.inner.partition(PartitionKey { topic_id, partition }) else { return };
        let _writing = self.inner.writing.lock().await;
        let gone = partition.lock().forget_staged_before(before_revision);
        for name in gone {
            self.inner.remove_unused(&self.inner.log_path(name)).await;
        }
    }
}

impl<E: Env> Inner<E> {
    async fn remove_unused(&self, path: &std::path::Path) {
        match self.env.disk().remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a file of a compaction that is of no use stays");
            }
            _ => {}
        }
    }
}
