//! The log of one partition: recent batches in memory, all of them in segment files.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_env::Env;
use tokio::sync::Notify;

use crate::storage::batch::{BatchHeader, HEADER_LEN};
use crate::storage::state::{FileSource, Partition, Segment, Source};
use crate::storage::store::Inner;
use crate::storage::suspicion::FoundBy;
use lockstep_probe::Mark;

/// Read again so often when files were exchanged under a read.
const ATTEMPTS_MAX: usize = 5;
/// Bytes of one read when a time is looked for.
const TIME_SCAN_BYTES: usize = 256 << 10;

/// A partition's log on this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionLog<E: Env> {
    store: Arc<Inner<E>>,
    partition: Arc<Partition>,
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The offset lies before the log's start or after its end.
    #[error("offset out of range: the log holds {start}..{end}")]
    OutOfRange {
        /// First offset there is.
        start: i64,
        /// Offset after the last.
        end: i64,
    },
    /// The partition was deleted meanwhile.
    #[error("the partition is gone")]
    Gone,
    /// A batch read from disk is damaged.
    #[error("{path} is damaged at {position}")]
    Damaged {
        /// File.
        path: String,
        /// Byte position.
        position: u64,
    },
    /// A batch read from disk names another leader epoch than the one it was appended in: it is damaged where no checksum of its own covers it.
    #[error("{path} is damaged: the batch at offset {offset} names another leader epoch than its own")]
    WrongEpoch {
        /// File.
        path: String,
        /// The batch's base offset.
        offset: i64,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl<E: Env> PartitionLog<E> {
    pub(crate) fn new(store: Arc<Inner<E>>, partition: Arc<Partition>) -> Self {
        Self { store, partition }
    }

    /// First offset that can be read.
    #[must_use]
    pub fn start_offset(&self) -> i64 {
        self.partition.lock().start_offset()
    }

    /// Offset after the last applied record (high watermark).
    #[must_use]
    pub fn end_offset(&self) -> i64 {
        self.partition.lock().end_offset()
    }

    /// Whole batches from the one that holds `offset` on, as stored: together at most `bytes_max` bytes, but at least one batch if
    /// `at_least_one` and there is one. Empty at the end of the log. Each element holds one or more whole batches.
    pub async fn read(&self, offset: i64, bytes_max: usize, at_least_one: bool) -> Result<Vec<Bytes>, ReadError> {
        let mut batches = Vec::new();
        let (mut next, mut left, mut first) = (offset, bytes_max, at_least_one);
        loop {
            if !first && left < HEADER_LEN && next != offset {
                return Ok(batches);
            }
            match self.read_some(next, left, first).await {
                Ok((some, next_offset, full)) => {
                    left = left.saturating_sub(some.iter().map(Bytes::len).sum());
                    first &= some.is_empty();
                    next = next_offset;
                    batches.extend(some);
                    if full {
                        return Ok(batches);
                    }
                }
                // What was read is good; the next read will say it again.
                Err(_) if !batches.is_empty() => return Ok(batches),
                Err(error) => return Err(error),
            }
        }
    }

    /// Batches from memory or from one file, the offset after them, and whether that is all there is or all that fits.
    async fn read_some(
        &self,
        offset: i64,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<(Vec<Bytes>, i64, bool), ReadError> {
        let mut attempt = 1;
        loop {
            let source = {
                let state = self.partition.lock();
                if state.dropped {
                    return Err(ReadError::Gone);
                }
                let (start, end) = (state.start_offset(), state.end_offset());
                if offset == end {
                    return Ok((Vec::new(), offset, true));
                }
                if offset < start || offset > end {
                    return Err(ReadError::OutOfRange { start, end });
                }
                state.source(offset, bytes_max, at_least_one).ok_or(ReadError::OutOfRange { start, end })?
            };
            let source = match source {
                Source::Memory(batches) => return Ok((batches, offset, true)),
                Source::File(source) => source,
            };
            match self.store.read_file(&self.partition, &source, offset, bytes_max, at_least_one).await {
                Ok(read) if read.bytes.is_empty() => return Ok((Vec::new(), offset, true)),
                Ok(read) => return Ok((vec![read.bytes], read.next_offset, read.full)),
                // The files may have been exchanged, or removed with deleted records, under the read.
                Err(_) if attempt < ATTEMPTS_MAX && self.exchanged(&source) => {
                    Mark::ReadOfExchangedFiles.reached();
                    attempt += 1;
                }
                Err(error) => {
                    // Whoever asks again, or elsewhere, may be lucky: the file is repaired from another replica at once.
                    self.store.suspect(source.segment, FoundBy::Reader);
                    return Err(error);
                }
            }
        }
    }

    fn exchanged(&self, source: &FileSource) -> bool {
        let state = self.partition.lock();
        if !state.dropped && state.generation == source.generation && !state.lists(source.segment) {
            Mark::ReadOfDeletedSegment.reached();
            return true;
        }
        state.dropped || state.generation != source.generation
    }

    /// The first batch with a max timestamp ≥ `timestamp_ms` among those that hold an offset ≥ `from_offset`, refined to the record by the caller if
    /// it wishes: its max timestamp and its base offset, which lies below the log's start when only the batch's end is left.
    pub async fn offset_for_time(&self, timestamp_ms: i64, from_offset: i64) -> Result<Option<(i64, i64)>, ReadError> {
        let mut attempt = 1;
        'again: loop {
            let least = from_offset.max(self.start_offset());
            let Some((source, recent)) = self.segment_for_time(timestamp_ms, least)? else { return Ok(None) };
            let mut from = source.segment.base_offset;
            let mut found = false;
            if source.recent_from > 0 {
                match self.store.index(&source, false).await {
                    Ok(loaded) => {
                        let entry = loaded.entries.iter().find(|entry| entry.max_timestamp_ms >= timestamp_ms);
                        // Where an index ends early, the log is damaged there: reading on will say so.
                        found = entry.is_some() || loaded.covered < source.recent_from;
                        from = entry.or(loaded.entries.last()).map_or(from, |entry| entry.offset);
                    }
                    Err(_) if attempt < ATTEMPTS_MAX && self.exchanged(&source) => {
                        attempt += 1;
                        continue 'again;
                    }
                    Err(error) => {
                        let path = self.store.log_path(source.segment).display().to_string();
                        return Err(ReadError::Io { path, source: error });
                    }
                }
            }
            if !found && let Some(offset) = recent {
                from = offset;
            }
            from = from.max(least);
            loop {
                let batches = match self.read(from, TIME_SCAN_BYTES, true).await {
                    Err(ReadError::OutOfRange { .. }) if attempt < ATTEMPTS_MAX => {
                        attempt += 1;
                        continue 'again;
                    }
                    other => other?,
                };
                if batches.is_empty() {
                    return Ok(None);
                }
                for mut batches in batches {
                    while let Some(header) = BatchHeader::parse(&batches) {
                        if header.max_timestamp_ms >= timestamp_ms {
                            return Ok(Some((header.max_timestamp_ms, header.base_offset)));
                        }
                        from = header.next_offset;
                        let len = header.len.min(batches.len());
                        bytes::Buf::advance(&mut batches, len);
                    }
                }
            }
        }
    }

    /// The first segment with such a timestamp, and the first index entry in memory with one.
    fn segment_for_time(
        &self,
        timestamp_ms: i64,
        from_offset: i64,
    ) -> Result<Option<(FileSource, Option<i64>)>, ReadError> {
        let state = self.partition.lock();
        if state.dropped {
            return Err(ReadError::Gone);
        }
        let segment = state.segments().find(|Segment { entry, .. }| {
            entry.len > 0 && entry.next_offset > from_offset && entry.max_timestamp_ms >= timestamp_ms
        });
        Ok(segment.map(|segment| {
            let source = FileSource {
                segment: segment.entry.name,
                generation: state.generation,
                written: segment.written,
                at: None,
                recent_from: segment.recent_from,
            };
            let recent = segment.recent.iter().find(|entry| entry.max_timestamp_ms >= timestamp_ms);
            (source, recent.map(|entry| entry.offset))
        }))
    }

    /// The largest timestamp in the log with its batch's last offset (ListOffsets −3); `None` when no record has one.
    pub async fn max_timestamp(&self) -> Result<Option<(i64, i64)>, ReadError> {
        let mut attempt = 1;
        loop {
            let entries: Vec<_> = {
                let state = self.partition.lock();
                if state.dropped {
                    return Err(ReadError::Gone);
                }
                state.segments().map(|segment| segment.entry).collect()
            };
            let mut largest: Option<(i64, i64)> = None;
            let mut take = |here: (i64, i64)| {
                if here.0 >= 0 && largest.is_none_or(|largest| here.0 > largest.0) {
                    largest = Some(here);
                }
            };
            let mut again = false;
            for entry in entries {
                if entry.max_timestamp_offset >= entry.start_offset {
                    take((entry.max_timestamp_ms, entry.max_timestamp_offset));
                    continue;
                }
                // The batch that has it is gone: it may be another one's now.
                match self.max_timestamp_within(entry.start_offset, entry.next_offset).await {
                    Ok(found) => found.into_iter().for_each(&mut take),
                    Err(ReadError::OutOfRange { .. }) if attempt < ATTEMPTS_MAX => again = true,
                    Err(error) => return Err(error),
                }
            }
            if !again {
                return Ok(largest);
            }
            attempt += 1;
        }
    }

    /// The largest timestamp of the batches from the one that holds `from` to the one that ends at `end`, each with its batch's last offset.
    async fn max_timestamp_within(&self, mut from: i64, end: i64) -> Result<Option<(i64, i64)>, ReadError> {
        let mut largest: Option<(i64, i64)> = None;
        while from < end {
            let batches = self.read(from, TIME_SCAN_BYTES, true).await?;
            if batches.is_empty() {
                break;
            }
            for mut batches in batches {
                while let Some(header) = BatchHeader::parse(&batches).filter(|header| header.base_offset < end) {
                    let here = (header.max_timestamp_ms, header.next_offset - 1);
                    if largest.is_none_or(|largest| here.0 > largest.0) {
                        largest = Some(here);
                    }
                    from = header.next_offset;
                    let len = header.len.min(batches.len());
                    bytes::Buf::advance(&mut batches, len);
                }
                if BatchHeader::parse(&batches).is_some() {
                    return Ok(largest);
                }
            }
        }
        Ok(largest)
    }

    /// Wakes `waiter` at every append after this call, until the waiter is dropped; also when the partition is deleted or its log is
    /// exchanged for a leader's. A wake-up before the wait is not lost (`notify_one`).
    pub fn wake_on_append(&self, waiter: &Arc<Notify>) {
        self.partition.lock().wait(waiter);
    }
}
