//! A segment, batch by batch.

use std::io;

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, Env, OpenMode};

use crate::storage::batch::{BatchHeader, HEADER_LEN};
use crate::storage::check::Pace;
use crate::storage::read::follows;
use crate::storage::{PartitionStore, SegmentEntry};

/// Bytes read at once; a longer batch is read whole.
const WINDOW_BYTES: usize = 256 << 10;

/// Reads a closed segment from its beginning to its end. Each batch is verified by itself, and in the end the whole by the segment's checksum: leader epochs and base
/// offsets are covered by nothing else, and whatever is wrong in what is read would be right, by its new checksum, in what is made of it.
pub(super) struct SegmentReader<E: Env> {
    file: <E::Disk as Disk>::File,
    entry: SegmentEntry,
    /// Where the next batch begins.
    position: u64,
    /// The offset that is expected there.
    expected: i64,
    /// CRC32C of what comes before.
    crc32c: u32,
    window: Bytes,
}

impl<E: Env> SegmentReader<E> {
    pub(super) async fn open(store: &PartitionStore<E>, entry: SegmentEntry) -> io::Result<Self> {
        let (_, _, generation) = store.inner.listed(entry.name).ok_or(io::ErrorKind::NotFound)?;
        let file = store.inner.file(entry.name, generation, OpenMode::ReadWrite).await?;
        Ok(Self { file, entry, position: 0, expected: entry.name.base_offset, crc32c: 0, window: Bytes::new() })
    }

    /// Where the next batch begins.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next batch; `None` at the segment's end.
    ///
    /// # Errors
    /// `InvalidData` when the segment is damaged, or the disk's.
    pub(super) async fn next(&mut self, pace: &mut Pace) -> io::Result<Option<(BatchHeader, Bytes)>> {
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        if self.position >= self.entry.len {
            let is_whole = self.crc32c == self.entry.crc32c && self.expected == self.entry.next_offset;
            return if is_whole { Ok(None) } else { Err(damaged()) };
        }
        self.fill(HEADER_LEN, pace).await?;
        let left = self.entry.len - self.position;
        let header = BatchHeader::parse(&self.window)
            .filter(|header| follows(self.entry.name, self.expected, header) && header.len as u64 <= left)
            .filter(|header| header.next_offset <= self.entry.next_offset)
            .ok_or_else(damaged)?;
        self.fill(header.len, pace).await?;
        let batch = self.window.split_to(header.len);
        if !header.verifies(&batch) {
            return Err(damaged());
        }
        self.crc32c = crc32c::crc32c_append(self.crc32c, &batch);
        self.position += header.len as u64;
        self.expected = header.next_offset;
        Ok(Some((header, batch)))
    }

    /// Makes the window at least so long.
    async fn fill(&mut self, len: usize, pace: &mut Pace) -> io::Result<()> {
        if self.window.len() >= len {
            return Ok(());
        }
        let left = usize::try_from(self.entry.len - self.position).unwrap_or(usize::MAX);
        let window = self.file.read_at(self.position, len.max(WINDOW_BYTES).min(left)).await?;
        pace.read::<E>(window.len()).await;
        if window.len() < len {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.window = Bytes::from(window);
        Ok(())
    }
}
