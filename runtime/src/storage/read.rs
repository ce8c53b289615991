//! Reading batches from segment files.

use bytes::Bytes;
use lockstep_env::{DiskFile, Env, OpenMode};

use crate::partition::ReadError;
use crate::storage::batch::{self, BatchHeader, HEADER_LEN};
use crate::storage::index;
use crate::storage::lookup::LoadedIndex;
use crate::storage::segment::SegmentName;
use crate::storage::state::{FileSource, Partition};
use crate::storage::store::Inner;

/// Smallest and largest read, apart from single batches that are larger.
const READ_BYTES_MIN: usize = 16 << 10;
pub(crate) const READ_BYTES_MAX: usize = 4 << 20;

/// Whole batches, one after another.
#[derive(Debug)]
pub(crate) struct FileBatches {
    /// Empty when the first batch does not fit.
    pub(crate) bytes: Bytes,
    /// Offset after the last of them.
    pub(crate) next_offset: i64,
    /// The next batch does not fit.
    pub(crate) full: bool,
}

/// Where a batch begins: position and base offset.
type Start = (u64, i64);

/// May a batch come where this offset is expected? One that is longer than any can be is none: its length must not decide how much memory is taken.
pub(crate) fn follows(segment: SegmentName, expected: i64, header: &BatchHeader) -> bool {
    (header.base_offset == expected || segment.is_compacted() && header.base_offset > expected)
        && header.len <= batch::len_max(segment)
}

impl<E: Env> Inner<E> {
    /// Batches of one file from the one that holds `offset` on, each one verified.
    pub(crate) async fn read_file(
        &self,
        partition: &Partition,
        source: &FileSource,
        offset: i64,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<FileBatches, ReadError> {
        if let Some(start) = source.at.filter(|_| !source.segment.is_compacted()) {
            return self.read_from(partition, source, start, offset, bytes_max, at_least_one).await;
        }
        let failed = |error| self.read_failed(source.segment, error);
        let loaded = self.index(source, false).await.map_err(failed)?;
        match self.read_indexed(partition, &loaded, source, offset, bytes_max, at_least_one).await {
            // Perhaps it is only the index that is wrong.
            Err(ReadError::Damaged { .. }) if !loaded.from_log => {
                let loaded = self.index(source, true).await.map_err(failed)?;
                self.read_indexed(partition, &loaded, source, offset, bytes_max, at_least_one).await
            }
            other => other,
        }
    }

    async fn read_indexed(
        &self,
        partition: &Partition,
        loaded: &LoadedIndex,
        source: &FileSource,
        offset: i64,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<FileBatches, ReadError> {
        if source.segment.is_compacted() {
            return self.read_compacted(loaded, source, offset, bytes_max, at_least_one).await;
        }
        let found = index::find_offset(&loaded.entries, offset);
        let start = found.map_or((0, source.segment.base_offset), |entry| (entry.position, entry.offset));
        self.read_from(partition, source, start, offset, bytes_max, at_least_one).await
    }

    pub(crate) fn read_failed(&self, name: SegmentName, source: std::io::Error) -> ReadError {
        ReadError::Io { path: self.log_path(name).display().to_string(), source }
    }

    pub(crate) fn damaged(&self, name: SegmentName, position: u64) -> ReadError {
        ReadError::Damaged { path: self.log_path(name).display().to_string(), position }
    }

    async fn read_from(
        &self,
        partition: &Partition,
        source: &FileSource,
        (mut position, mut expected): Start,
        offset: i64,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<FileBatches, ReadError> {
        let failed = |error| self.read_failed(source.segment, error);
        let damaged = |position| self.damaged(source.segment, position);
        let file = self.file(source.segment, source.generation, OpenMode::ReadWrite).await.map_err(failed)?;
        loop {
            let left = usize::try_from(source.written.saturating_sub(position)).unwrap_or(usize::MAX);
            let before = if expected == offset { 0 } else { index::INTERVAL_BYTES as usize };
            let len = bytes_max.saturating_add(before).clamp(READ_BYTES_MIN, READ_BYTES_MAX).min(left);
            let window = Bytes::from(file.read_at(position, len).await.map_err(failed)?);
            if len == 0 || window.len() != len {
                return Err(damaged(position + window.len() as u64));
            }
            // The wanted batches are window[start..at]; nothing is wanted yet when `start` is none. Good batches before a damaged one are given
            // first: the next read tells of the damage.
            let (mut start, mut at, mut full) = (None, 0, false);
            while let Some(rest) = window.get(at..).filter(|rest| !rest.is_empty()) {
                let here = position + at as u64;
                let left_in_file = source.written - here;
                if rest.len() < HEADER_LEN && (rest.len() as u64) < left_in_file {
                    break;
                }
                let header = BatchHeader::parse(rest)
                    .filter(|header| follows(source.segment, expected, header) && header.len as u64 <= left_in_file);
                let Some(header) = header else {
                    if start.is_some() {
                        break;
                    }
                    return Err(damaged(here));
                };
                if header.next_offset > offset {
                    let taken = at - start.unwrap_or(at);
                    if taken + header.len > bytes_max && !(at_least_one && start.is_none()) {
                        full = true;
                        start = start.or(Some(at));
                        break;
                    }
                    match rest.get(..header.len) {
                        Some(batch) if header.verifies(batch) => start = start.or(Some(at)),
                        _ if start.is_some() => break,
                        Some(_) => return Err(damaged(here)),
                        None => {
                            let batch = Bytes::from(file.read_at(here, header.len).await.map_err(failed)?);
                            if !header.verifies(&batch) {
                                return Err(damaged(here));
                            }
                            let after = here + header.len as u64;
                            partition.lock().hint(header.next_offset, source.segment, after);
                            return Ok(FileBatches { bytes: batch, next_offset: header.next_offset, full: false });
                        }
                    }
                }
                at += header.len;
                expected = header.next_offset;
            }
            position += at as u64;
            if let Some(start) = start {
                partition.lock().hint(expected, source.segment, position);
                return Ok(FileBatches { bytes: window.slice(start..at), next_offset: expected, full });
            }
        }
    }
}
