//! Reading batches from compacted segments.
//!
//! Where records were removed, the offset of a batch does not tell that of the next one, and a batch's checksum does not cover its own: a flipped bit would
//! give records another offset. So what lies between two entries of the index is read as a whole, and where its batches begin and end is compared with the
//! entry's checksum. That one was made when the whole segment was as its own checksum says.

use bytes::Bytes;
use lockstep_env::{DiskFile, Env, OpenMode};

use crate::partition::ReadError;
use crate::storage::batch::BatchHeader;
use crate::storage::index::{self, IndexEntry};
use crate::storage::lookup::LoadedIndex;
use crate::storage::read::{FileBatches, READ_BYTES_MAX, follows};
use crate::storage::segment::SegmentName;
use crate::storage::state::FileSource;
use crate::storage::store::Inner;

impl<E: Env> Inner<E> {
    /// As [`Inner::read_file`], of a compacted segment with this index.
    pub(crate) async fn read_compacted(
        &self,
        loaded: &LoadedIndex,
        source: &FileSource,
        offset: i64,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<FileBatches, ReadError> {
        let failed = |error| self.read_failed(source.segment, error);
        let entries = &loaded.entries;
        if loaded.covered != source.written || entries.is_empty() {
            return Err(self.damaged(source.segment, loaded.covered));
        }
        let file = self.file(source.segment, source.generation, OpenMode::ReadWrite).await.map_err(failed)?;
        let begin_of = |at: usize| entries.get(at).map_or(loaded.covered, |entry| entry.position);
        let mut at = entries.partition_point(|entry| entry.offset <= offset).saturating_sub(1);
        // More than one round is needed where all batches before the next entry end before the offset.
        while at < entries.len() {
            let from = begin_of(at);
            let wanted = from + bytes_max.min(READ_BYTES_MAX) as u64;
            let mut to = at + 1;
            while to < entries.len() && begin_of(to + 1) <= wanted {
                to += 1;
            }
            let len = usize::try_from(begin_of(to) - from).unwrap_or(usize::MAX);
            let window = Bytes::from(file.read_at(from, len).await.map_err(failed)?);
            let mut taken = Taken { bytes_max, at_least_one, start: None, end: 0, next_offset: offset, full: false };
            for (number, entry) in (at..to).zip(&entries[at..to]) {
                let (begin, end) = ((entry.position - from) as usize, (begin_of(number + 1) - from) as usize);
                let batches =
                    window.get(..end).and_then(|window| batches_between(source.segment, window, begin, entry));
                let sound = batches.is_some_and(|batches| taken.add(&window, &batches, offset));
                if !sound && taken.start.is_none() {
                    return Err(self.damaged(source.segment, entry.position));
                }
                // Good batches before damaged ones are given first: the next read tells of the damage.
                if !sound || taken.full {
                    break;
                }
            }
            if let Some(start) = taken.start {
                let Taken { end, next_offset, full, .. } = taken;
                // Little is not to keep much in memory for as long as a client does not take it.
                let bytes = if (end - start) * 2 < window.len() {
                    Bytes::copy_from_slice(&window[start..end])
                } else {
                    window.slice(start..end)
                };
                return Ok(FileBatches { bytes, next_offset, full });
            }
            at = to;
        }
        // The segment's last batch reaches to its end.
        Err(self.damaged(source.segment, loaded.covered))
    }
}

/// The batches from `start` to the end of `window`, and where each begins, if they are where the index knows them to be.
fn batches_between(
    segment: SegmentName,
    window: &[u8],
    start: usize,
    entry: &IndexEntry,
) -> Option<Vec<(usize, BatchHeader)>> {
    let (mut at, mut expected, mut crc) = (start, entry.offset, 0);
    let mut batches = Vec::new();
    while at < window.len() {
        let header = BatchHeader::parse(&window[at..]).filter(|header| follows(segment, expected, header))?;
        crc = index::offsets_crc(crc, &header);
        batches.push((at, header));
        at += header.len;
        expected = header.next_offset;
    }
    (at == window.len() && crc == entry.offsets_crc).then_some(batches)
}

/// What is given of a window.
struct Taken {
    bytes_max: usize,
    at_least_one: bool,
    /// `None` while nothing is wanted.
    start: Option<usize>,
    end: usize,
    next_offset: i64,
    full: bool,
}

impl Taken {
    /// Takes what is wanted and fits. `false`: a batch is damaged; those before it are taken.
    fn add(&mut self, window: &Bytes, batches: &[(usize, BatchHeader)], offset: i64) -> bool {
        for (at, header) in batches.iter().filter(|(_, header)| header.next_offset > offset) {
            let end = at + header.len;
            let is_first = self.start.is_none();
            if end - self.start.unwrap_or(*at) > self.bytes_max && !(self.at_least_one && is_first) {
                self.full = true;
                if is_first {
                    (self.start, self.end) = (Some(*at), *at);
                }
                return true;
            }
            if !header.verifies(&window[*at..end]) {
                return false;
            }
            self.start.get_or_insert(*at);
            self.end = end;
            self.next_offset = header.next_offset;
        }
        true
    }
}
