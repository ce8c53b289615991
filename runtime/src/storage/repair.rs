//! Replacing a damaged segment file by what another replica has.
//!
//! The other replica's bytes go to `<store>/repairing/<partition's directory>.<segment's stem>`. Only when all of them are there, have the
//! checksum that this store knows, and are durable, the file is renamed to where the damaged one is: after a crash one of the two is there, whole. A start
//! removes the folder.
//!
//! Meanwhile the store goes on as always. What may happen, and why it does no harm:
//!
//! - *Appends to the segment* are written to the damaged file. When it is exchanged, nothing is being written (`writing` is held), and what was written behind the
//!   fetched part is taken over from the damaged file, batch by batch verified: the fetched part is all that there was when the damage was found, and what came
//!   since is what was applied. Most of it is taken over before, so that little is left while nothing can be written.
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

use crate::storage::batch::{BatchHeader, HEADER_LEN};
use crate::storage::check::Damage;
use crate::storage::flush;
use crate::storage::read::follows;
use crate::storage::removal::PartitionPin;
use crate::storage::segment::SegmentEntry;
use crate::storage::state::{FileSource, Partition};
use crate::storage::store::{Inner, PartitionStore, lock};

/// Where fetched segments are before they take the place of damaged ones.
pub(crate) const REPAIRING: &str = "repairing";
/// No more than this is taken over from the damaged file while nothing can be written.
const TAKEN_OVER_AT_LAST_MAX: u64 = 4 << 20;
/// What comes meanwhile is taken over so many times before: each time there is as much less as reading is faster than appending.
const TAKE_OVERS_MAX: usize = 16;
/// Bytes taken over at once; a longer batch is read whole.
const PIECE_BYTES: usize = 1 << 20;

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
    pin: PartitionPin<E>,
    partition: Arc<Partition>,
    damage: Damage,
    staged: PathBuf,
    file: <E::Disk as Disk>::File,
    /// So many bytes are here: of those that were asked for, and then of those that were taken over.
    have: u64,
    /// CRC32C of these.
    crc32c: u32,
    /// Offset after what was taken over.
    next_offset: i64,
}

impl<E: Env> Repair<E> {
    /// Begins with nothing fetched. `None`: the partition is gone. There may be one at a time for a store.
    pub(crate) async fn begin(store: &PartitionStore<E>, damage: Damage) -> io::Result<Option<Self>> {
        let inner = Arc::clone(&store.inner);
        let name = damage.entry.name;
        let pin = store.pin_partition(name.topic_id, name.partition);
        let Some(partition) = inner.partition(name.key()) else { return Ok(None) };
        let folder = inner.dir.join(REPAIRING);
        inner.env.disk().create_dir_all(&folder).await?;
        let staged = folder.join(name.staged_file());
        let file = inner.env.disk().open(&staged, OpenMode::Truncate).await?;
        Ok(Some(Self {
            inner,
            pin,
            partition,
            damage,
            staged,
            file,
            have: 0,
            crc32c: 0,
            next_offset: damage.entry.next_offset,
        }))
    }

    /// Where the next byte belongs, and how many are missing.
    pub(crate) fn missing(&self) -> (u64, u64) {
        (self.have, self.damage.entry.len.saturating_sub(self.have))
    }

    /// Takes the next bytes, not more than are missing.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        let len = chunk.len() as u64;
        if len > self.missing().1 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.crc32c = crc32c::crc32c_append(self.crc32c, &chunk);
        flush::write::<E>(&self.file, self.have, vec![chunk], len).await?;
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
    pub(crate) async fn finish(mut self) -> Result<Replaced, RepairError> {
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

    async fn exchange(&mut self) -> Result<Replaced, RepairError> {
        let Damage { entry, generation } = self.damage;
        if self.have != entry.len {
            return Err(RepairError::WrongChecksum);
        }
        let is_right = self.crc32c == entry.crc32c;
        if !is_right && !Mistake::SnapshotChecksumIgnored.is_made() {
            return Err(RepairError::WrongChecksum);
        }
        let inner = Arc::clone(&self.inner);
        // Before each look at how much was written meanwhile: a sync of all that was fetched takes long, and more was written again after it.
        inner.sync_file(&self.file, &self.staged).await?;
        for _ in 0..TAKE_OVERS_MAX {
            let Some((_, written, _)) = self.found() else { return Ok(Replaced::Gone) };
            if written.saturating_sub(self.have) <= TAKEN_OVER_AT_LAST_MAX {
                break;
            }
            self.take_over(written).await?;
            inner.sync_file(&self.file, &self.staged).await?;
        }
        // From here on nobody writes to or exchanges segment files, and nothing is removed that can be found now.
        let _writing = inner.writing.lock().await;
        inner.check_failed()?;
        let Some((now, written, synced)) = self.found() else { return Ok(Replaced::Gone) };
        if written > self.have {
            let grown = written - self.have;
            if grown > TAKEN_OVER_AT_LAST_MAX {
                return Err(RepairError::Grown(grown));
            }
            self.take_over(written).await?;
            inner.sync_file(&self.file, &self.staged).await?;
        }
        // Where nothing waits to be written the checksum of the whole is known; otherwise the next check will have it.
        if is_right && written == now.len && self.crc32c != now.crc32c {
            return Err(RepairError::DamagedSince);
        }
        if synced < written {
            // A checkpoint that synced the damaged file a moment ago relies on it until the new one is there for good.
            inner.sync_segment(&self.partition, entry.name).await?;
        }
        inner.env.reached(Step::SegmentRepairStaged);
        inner.env.disk().rename(&self.staged, &inner.log_path(entry.name)).await?;
        inner.forget_file(entry.name, generation);
        // Without this nothing that is written to the new file could be made durable.
        inner.sync_directory(&inner.directory(entry.name.key())).await?;
        if let Some(segment) = self.partition.lock().segment_mut(entry.name) {
            segment.synced = segment.synced.max(written);
        }
        Ok(Replaced::Done)
    }

    /// The segment as it is now, how much of it is in its file, and how much of that is durable. `None`: it is gone, or in another file.
    fn found(&self) -> Option<(SegmentEntry, u64, u64)> {
        let state = self.partition.lock();
        let segment = state.segment(self.damage.entry.name)?;
        let is_here = !state.dropped && state.generation == self.damage.generation;
        is_here.then_some((segment.entry, segment.written, segment.synced))
    }

    /// Copies what the damaged file holds behind what is here, up to `written`. A batch ends there.
    async fn take_over(&mut self, written: u64) -> Result<(), RepairError> {
        let name = self.damage.entry.name;
        let damaged = self.inner.file(name, self.damage.generation, OpenMode::ReadWrite).await?;
        while self.have < written {
            let left = usize::try_from(written - self.have).unwrap_or(usize::MAX);
            let mut piece = Bytes::from(damaged.read_at(self.have, left.min(PIECE_BYTES)).await?);
            let next = BatchHeader::parse(&piece).filter(|header| follows(name, self.next_offset, header));
            let len = next.ok_or(RepairError::DamagedSince)?.len;
            if len > piece.len() {
                piece = Bytes::from(damaged.read_at(self.have, len.min(left)).await?);
            }
            let mut at = 0;
            while at < piece.len() {
                let rest = &piece[at..];
                let header = BatchHeader::parse(rest).filter(|header| follows(name, self.next_offset, header));
                match header.map(|header| (header, rest.get(..header.len))) {
                    Some((header, Some(batch))) if header.verifies(batch) => {
                        at += header.len;
                        self.next_offset = header.next_offset;
                    }
                    // The next piece begins with it.
                    Some((_, None)) if at > 0 => break,
                    None if at > 0 && rest.len() < HEADER_LEN => break,
                    _ => return Err(RepairError::DamagedSince),
                }
            }
            let whole = piece.slice(..at);
            self.crc32c = crc32c::crc32c_append(self.crc32c, &whole);
            flush::write::<E>(&self.file, self.have, vec![whole], at as u64).await?;
            self.have += at as u64;
        }
        Ok(())
    }

    /// An index may have been made from the damaged log: it is made again.
    async fn renew_index(&self) {
        let Self { inner, damage, .. } = self;
        let (name, generation) = (damage.entry.name, damage.generation);
        {
            // Whoever is reading the damaged file for one is done then.
            let _gate = inner.indexing.enter(name).await;
            lock(&inner.indexes).remove((name, generation));
            lock(&inner.without_index).remove(&(name, generation));
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
