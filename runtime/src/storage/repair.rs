//! Replacing a damaged segment file by what another replica has.
//!
//! The other replica's bytes go to `<store>/repairing/<partition's directory>.<segment's stem>`. Only when all of them are there, have the
//! checksum that this store knows, and are durable, the file is renamed to where the damaged one is: after a crash one of the two is there, whole. A start
//! removes the folder.
//!
//! Meanwhile the store goes on as always. What may happen, and why it does no harm:
//!
//! - *Appends to the segment* are written to the damaged file. When it is exchanged, nothing is being written (`writing` is held), and what was written behind the
//!   fetched part is taken over from the damaged file, batch by batch verified.
//! - *A checkpoint* may sync the damaged file and then count as durable what it holds. Therefore all of that is durable in both files before the one
//!   takes the other's place.
//! - *Deletion* of the segment or its partition: a pin keeps the files; the segment is gone by the time of the exchange, and the fetched file goes too.
//! - *Installation* of a leader's checkpoint exchanges files under `writing` too. Files of another generation are left alone: they are not the ones that were
//!   found damaged. A partition that it did not change has the same generation, and the same bytes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, Env, OpenMode, Step};
use lockstep_probe::Mistake;

use crate::storage::batch::BatchHeader;
use crate::storage::check::Damage;
use crate::storage::segment::SegmentEntry;
use crate::storage::state::{FileSource, Partition};
use crate::storage::store::{Inner, PartitionStore, Pin, lock};

/// Where fetched segments are before they take the place of damaged ones.
pub(crate) const REPAIRING: &str = "repairing";
/// No more than this is taken over from the damaged file: nothing can be written meanwhile.
const TAKEN_OVER_BYTES_MAX: u64 = 16 << 20;

/// Why a segment was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepairError {
    /// The other replica's copy is not what was applied here.
    #[error("its copy has the wrong checksum")]
    WrongChecksum,
    /// The segment grew too fast.
    #[error("the segment grew by {0} bytes meanwhile")]
    Grown(u64),
    /// What was written to the segment meanwhile is damaged as well.
    #[error("what was written since is damaged too")]
    DamagedSince,
    /// The local disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// The file is whole.
    Done,
    /// There is no such file any more: it was deleted, or exchanged.
    Gone,
}

/// A segment on its way from another replica.
#[derive(Debug)]
pub(crate) struct Repair<E: Env> {
    inner: Arc<Inner<E>>,
    /// Keeps the files of what is deleted meanwhile.
    pin: Pin,
    partition: Arc<Partition>,
    damage: Damage,
    staged: PathBuf,
    file: <E::Disk as Disk>::File,
    /// So many bytes are here.
    have: u64,
    /// CRC32C of these.
    crc32c: u32,
}

impl<E: Env> Repair<E> {
    /// Begins with nothing fetched. `None`: the partition is gone. There may be one at a time for a store.
    pub(crate) async fn begin(store: &PartitionStore<E>, damage: Damage) -> io::Result<Option<Self>> {
        let inner = Arc::clone(&store.inner);
        let pin = store.pin();
        let name = damage.entry.name;
        let Some(partition) = inner.partition(name.key()) else { return Ok(None) };
        let folder = inner.dir.join(REPAIRING);
        inner.env.disk().create_dir_all(&folder).await?;
        let staged = folder.join(name.staged_file());
        let file = inner.env.disk().open(&staged, OpenMode::Truncate).await?;
        Ok(Some(Self { inner, pin, partition, damage, staged, file, have: 0, crc32c: 0 }))
    }

    /// Where the next byte belongs, and how many are missing.
    pub(crate) fn missing(&self) -> (u64, u64) {
        (self.have, self.damage.entry.len - self.have)
    }

    /// Takes the next bytes, not more than are missing.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        let len = chunk.len() as u64;
        if len > self.damage.entry.len - self.have {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.crc32c = crc32c::crc32c_append(self.crc32c, &chunk);
        self.file.write_at(self.have, vec![chunk]).await?;
        self.have += len;
        Ok(())
    }

    /// Gives it up.
    pub(crate) async fn abandon(self) {
        let Self { inner, pin, staged, file, .. } = self;
        drop(file);
        inner.remove_unused(&staged).await;
        drop(pin);
        inner.remove_dropped().await;
    }

    /// Lets the fetched bytes take the place of the damaged file, if they are the right ones.
    pub(crate) async fn finish(self) -> Result<Replaced, RepairError> {
        let replaced = self.exchange().await;
        match replaced {
            Ok(Replaced::Done) => {
                self.renew_index().await;
                let Self { inner, pin, .. } = self;
                drop(pin);
                inner.remove_dropped().await;
            }
            _ => self.abandon().await,
        }
        replaced
    }

    async fn exchange(&self) -> Result<Replaced, RepairError> {
        let Self { inner, damage, file, .. } = self;
        let Damage { entry, generation } = damage;
        let disk = inner.env.disk();
        if self.have != entry.len {
            return Err(RepairError::WrongChecksum);
        }
        if self.crc32c != entry.crc32c && !Mistake::SnapshotChecksumIgnored.is_made() {
            return Err(RepairError::WrongChecksum);
        }
        file.sync_data().await?;
        // From here on nobody writes to, exchanges or removes segment files.
        let _writing = inner.writing.lock().await;
        inner.check_failed()?;
        let found = {
            let state = self.partition.lock();
            let segment = state.segment(entry.name);
            segment
                .filter(|_| !state.dropped && state.generation == *generation)
                .map(|segment| (segment.entry, segment.written, segment.synced))
        };
        let Some((now, written, synced)) = found else { return Ok(Replaced::Gone) };
        if written > entry.len {
            self.take_over(&now, written).await?;
        }
        if synced < written {
            // A checkpoint that synced the damaged file a moment ago relies on it until the new one is there for good.
            inner.sync_segment(&self.partition, entry.name).await?;
        }
        inner.env.reached(Step::SegmentRepairStaged);
        let path = inner.log_path(entry.name);
        disk.rename(&self.staged, &path).await?;
        inner.forget_file(entry.name, *generation);
        let directory = inner.directory(entry.name.key());
        // Without this nothing that is written to the new file could be made durable.
        disk.sync_dir(&directory).await.map_err(|error| inner.fail(&directory, error))?;
        if let Some(segment) = self.partition.lock().segment_mut(entry.name) {
            segment.synced = segment.synced.max(written);
        }
        Ok(Replaced::Done)
    }

    /// Copies what was written behind the fetched part since it was asked for. `writing` is held.
    async fn take_over(&self, now: &SegmentEntry, written: u64) -> Result<(), RepairError> {
        let entry = &self.damage.entry;
        let len = written - entry.len;
        if len > TAKEN_OVER_BYTES_MAX {
            return Err(RepairError::Grown(len));
        }
        let damaged = self.inner.file(entry.name, self.damage.generation, OpenMode::ReadWrite).await?;
        let bytes = Bytes::from(damaged.read_at(entry.len, len as usize).await?);
        let (mut at, mut expected) = (0, entry.next_offset);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let header = BatchHeader::parse(rest)
                .filter(|header| header.base_offset == expected)
                .filter(|header| rest.get(..header.len).is_some_and(|batch| header.verifies(batch)));
            let Some(header) = header else { return Err(RepairError::DamagedSince) };
            at += header.len;
            expected = header.next_offset;
        }
        let all_there = bytes.len() as u64 == len;
        // Where nothing waits to be written the checksum of the whole is known; otherwise the next check will have it.
        let known_wrong = written == now.len
            && crc32c::crc32c_append(self.crc32c, &bytes) != now.crc32c
            && self.crc32c == entry.crc32c;
        if !all_there || known_wrong {
            return Err(RepairError::DamagedSince);
        }
        self.file.write_at(entry.len, vec![bytes]).await?;
        self.file.sync_data().await?;
        Ok(())
    }

    /// An index may have been made from the damaged log: it is made again.
    async fn renew_index(&self) {
        let Self { inner, damage, .. } = self;
        let (name, generation) = (damage.entry.name, damage.generation);
        {
            // Whoever is reading the damaged file for one is done then.
            let _indexing = inner.indexing.lock().await;
            lock(&inner.indexes).remove((name, generation));
        }
        let source = {
            let state = self.partition.lock();
            let Some(segment) = state.segment(name).filter(|_| state.generation == generation) else {
                return;
            };
            FileSource {
                segment: name,
                generation,
                written: segment.written,
                at: None,
                recent_from: segment.recent_from,
            }
        };
        if source.recent_from > 0
            && let Err(error) = inner.index(&source, true).await
        {
            // The next reader who needs it makes it.
            tracing::warn!(path = %inner.index_path(name).display(), %error, "the index of a repaired segment could not be made");
        }
    }
}
