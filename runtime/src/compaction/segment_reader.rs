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

/// Reads a closed segment from its beginning, not faster than asked to.
pub(super) struct SegmentReader<'a, E: Env> {
    file: <E::Disk as Disk>::File,
    entry: SegmentEntry,
    pace: &'a mut Pace,
    /// Where the next batch begins.
    position: u64,
    /// The offset that is expected there.
    expected: i64,
    window: Bytes,
}

impl<'a, E: Env> SegmentReader<'a, E> {
    pub(super) async fn open(
        store: &PartitionStore<E>,
        entry: SegmentEntry,
        pace: &'a mut Pace,
    ) -> io::Result<SegmentReader<'a, E>> {
        let (_, _, generation) = store.inner.listed(entry.name).ok_or(io::ErrorKind::NotFound)?;
        let file = store.inner.file(entry.name, generation, OpenMode::ReadWrite).await?;
        Ok(Self { file, entry, pace, position: 0, expected: entry.name.base_offset, window: Bytes::new() })
    }

    /// Goes on at `position`, where a batch begins at this offset, or later in a compacted segment.
    pub(super) fn skip_to(&mut self, position: u64, expected: i64) {
        (self.position, self.expected, self.window) = (position, expected, Bytes::new());
    }

    /// Where the next batch begins.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next batch, verified; `None` at the segment's end.
    ///
    /// # Errors
    /// `InvalidData` when it is damaged, or the disk's.
    pub(super) async fn next(&mut self) -> io::Result<Option<(BatchHeader, Bytes)>> {
        if self.position >= self.entry.len {
            return Ok(None);
        }
        self.fill(HEADER_LEN).await?;
        let left = self.entry.len - self.position;
        let header = BatchHeader::parse(&self.window)
            .filter(|header| follows(self.entry.name, self.expected, header) && header.len as u64 <= left)
            .ok_or(io::ErrorKind::InvalidData)?;
        self.fill(header.len).await?;
        let batch = self.window.split_to(header.len);
        if !header.verifies(&batch) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.position += header.len as u64;
        self.expected = header.next_offset;
        Ok(Some((header, batch)))
    }

    /// Makes the window at least so long.
    async fn fill(&mut self, len: usize) -> io::Result<()> {
        if self.window.len() >= len {
            return Ok(());
        }
        let left = usize::try_from(self.entry.len - self.position).unwrap_or(usize::MAX);
        let window = self.file.read_at(self.position, len.max(WINDOW_BYTES).min(left)).await?;
        self.pace.read::<E>(window.len()).await;
        if window.len() < len {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.window = Bytes::from(window);
        Ok(())
    }
}
