//! Index files: read when a reader needs them, written when a segment is closed or has grown, made again when they are no good.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, Env, OpenMode};

use crate::storage::batch::{self, BatchHeader, CRC_END, HEADER_LEN};
use crate::storage::gates::Entered;
use crate::storage::index::{self, Index, IndexEntry};
use crate::storage::read::follows;
use crate::storage::segment::{SegmentEntry, SegmentName};
use crate::storage::state::{FileSource, Partition};
use crate::storage::store::{Inner, lock};

/// A growing segment's index is written by a checkpoint once it has so many new entries.
const GROWN_ENTRIES: usize = 16;
/// Bytes of log read at once when an index is made again.
const SCAN_BYTES: usize = 1 << 20;
/// An index that took this much reading is worth a file.
const SCANNED_BYTES_WORTH_A_FILE: u64 = 4 << 20;

/// Segments of a store that are read at the same time to make their indexes. Each takes a piece of memory.
pub(crate) const SCANS_AT_ONCE: usize = 2;
/// A compacted segment that is damaged has no index, and to find that out takes reading all of it: it is not looked at more often, however many would read it.
/// The next time after twice as long, unless it was repaired.
const DAMAGED_LOOK_AFTER_MIN: Duration = Duration::from_secs(1);
const DAMAGED_LOOK_AFTER_MAX: Duration = Duration::from_secs(300);

/// Index entries for the part of a segment that is not in memory.
#[derive(Debug)]
pub(crate) struct LoadedIndex {
    pub(crate) entries: Vec<IndexEntry>,
    /// So much of the segment was asked for.
    asked: u64,
    /// Less than `asked` where the log is damaged.
    pub(crate) covered: u64,
    /// Made from the log in this process, or the log was found damaged: it is no use to make it again.
    pub(crate) from_log: bool,
    /// There is none, because the log is damaged; it is tried again then, if it was not repaired before.
    again_at: Option<Instant>,
}

/// When a damaged segment is looked at again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanAgain {
    at: Instant,
    /// The pause that led there.
    pause: Duration,
}

impl LoadedIndex {
    fn serves(&self, asked: u64, now: Instant) -> bool {
        self.asked >= asked && self.again_at.is_none_or(|again_at| now < again_at)
    }
}

impl<E: Env> Inner<E> {
    /// The index for the first `source.recent_from` bytes of a segment; made from the log when `anew`.
    pub(crate) async fn index(&self, source: &FileSource, anew: bool) -> io::Result<Arc<LoadedIndex>> {
        let known = lock(&self.indexes).get((source.segment, source.generation));
        if let Some(known) = known.filter(|known| !anew && known.serves(source.recent_from, E::now())) {
            return Ok(known);
        }
        let _gate = self.indexing.enter(source.segment).await;
        self.load_index(source, anew).await
    }

    /// The segment's gate must have been entered.
    async fn load_index(&self, source: &FileSource, anew: bool) -> io::Result<Arc<LoadedIndex>> {
        let (name, asked) = (source.segment, source.recent_from);
        let loaded = lock(&self.indexes).get((name, source.generation));
        if let Some(loaded) = loaded.filter(|loaded| loaded.serves(asked, E::now()) && (loaded.from_log || !anew)) {
            return Ok(loaded);
        }
        let mut index = Index::default();
        let mut before = None;
        if !anew || name.is_compacted() {
            index = self.index_in_file(name, asked).await;
        }
        if name.is_compacted() && (anew || index.covered < asked) {
            before = Some(std::mem::take(&mut index)).filter(|index| index.covered == asked);
        }
        let from_file = index.covered;
        if from_file < asked && self.may_scan(source) {
            let scanned = {
                let _permit = self.scans.acquire().await;
                self.scan(source, &mut index).await
            };
            if scanned.is_err() {
                self.scanned(source, false);
            }
            scanned?;
            let listed = self.partition(name.key()).is_some_and(|partition| partition.lock().lists(name));
            let is_worth_a_file = anew || name.is_compacted() || asked - from_file >= SCANNED_BYTES_WORTH_A_FILE;
            if listed && index.covered == asked && is_worth_a_file {
                self.write_index(name, &index).await;
            }
            self.scanned(source, index.covered == asked);
        }
        if index.covered < asked
            && let Some(before) = before
        {
            // The segment is damaged, not its index: what is sound elsewhere in it can still be told.
            index = before;
        }
        let again_at = lock(&self.without_index).get(&(name, source.generation)).map(|again| again.at);
        let loaded = Arc::new(LoadedIndex {
            asked,
            covered: index.covered,
            entries: index.entries,
            from_log: from_file == 0,
            again_at: again_at.filter(|_| index.covered < asked),
        });
        self.keep_index(name, source.generation, &loaded);
        Ok(loaded)
    }

    /// Entries for the first `asked` bytes of a segment, or fewer: whatever is wrong with the file, the log has it all.
    async fn index_in_file(&self, name: SegmentName, asked: u64) -> Index {
        let path = self.index_path(name);
        let file = self.env.disk().read_file(&path, index::FILE_LEN_MAX).await.unwrap_or_default();
        let mut index = Index::decode(&file, name.base_offset).unwrap_or_default();
        index.cut(asked);
        index
    }

    /// Was the segment not found damaged a short time ago?
    fn may_scan(&self, source: &FileSource) -> bool {
        let again = lock(&self.without_index).get(&(source.segment, source.generation)).copied();
        again.is_none_or(|again| again.at <= E::now())
    }

    /// A segment was read for an index.
    fn scanned(&self, source: &FileSource, is_sound: bool) {
        if !source.segment.is_compacted() {
            return;
        }
        let key = (source.segment, source.generation);
        let is_listed = self.listed(source.segment).is_some_and(|(_, _, generation)| generation == source.generation);
        let mut without_index = lock(&self.without_index);
        if is_sound || !is_listed {
            without_index.remove(&key);
            return;
        }
        let longer = |again: &ScanAgain| (again.pause * 2).min(DAMAGED_LOOK_AFTER_MAX);
        let pause = without_index.get(&key).map_or(DAMAGED_LOOK_AFTER_MIN, longer);
        without_index.insert(key, ScanAgain { at: E::now() + pause, pause });
    }

    /// A segment is as it should be: whoever found it damaged may look again.
    pub(crate) fn found_sound(&self, name: SegmentName, generation: u64) {
        if lock(&self.without_index).remove(&(name, generation)).is_some() {
            lock(&self.indexes).remove((name, generation));
        }
    }

    fn keep_index(&self, name: SegmentName, generation: u64, loaded: &Arc<LoadedIndex>) {
        lock(&self.indexes).insert((name, generation), Arc::clone(loaded), loaded.entries.len() + 8);
    }

    /// Takes in the batches from `index.covered` to `source.recent_from`, or to the first one that does not follow or is damaged. Of a compacted segment all or
    /// nothing: which offsets its batches should have is known only when the whole segment is as its checksum says.
    async fn scan(&self, source: &FileSource, index: &mut Index) -> io::Result<()> {
        let crc32c = self.scan_batches(source, index).await?;
        if source.segment.is_compacted() && self.listed(source.segment).is_none_or(|(entry, ..)| entry.crc32c != crc32c)
        {
            *index = Index::default();
        }
        Ok(())
    }

    /// Gives the CRC32C of the batches that were taken in.
    async fn scan_batches(&self, source: &FileSource, index: &mut Index) -> io::Result<u32> {
        let mut crc32c = 0;
        let file = self.file(source.segment, source.generation, OpenMode::ReadWrite).await?;
        let mut expected = (index.covered == 0).then_some(source.segment.base_offset);
        while index.covered < source.recent_from {
            let left = usize::try_from(source.recent_from - index.covered).unwrap_or(usize::MAX);
            let window = file.read_at(index.covered, left.min(SCAN_BYTES)).await?;
            let mut at = 0;
            while let Some(rest) = window.get(at..).filter(|rest| rest.len() >= HEADER_LEN) {
                let Some(header) = BatchHeader::parse(rest) else { return Ok(crc32c) };
                let follows = match expected {
                    Some(expected) => follows(source.segment, expected, &header),
                    None => {
                        header.len <= batch::len_max(source.segment)
                            && index.entries.last().is_none_or(|last| header.base_offset > last.offset)
                    }
                };
                if !follows || index.covered + header.len as u64 > source.recent_from {
                    return Ok(crc32c);
                }
                // A damaged timestamp would lead whoever looks for a time past its batch.
                match rest.get(..header.len) {
                    Some(batch) if header.verifies(batch) => crc32c = crc32c::crc32c_append(crc32c, batch),
                    Some(_) => return Ok(crc32c),
                    None if at > 0 => break,
                    None => match self.crc_of_long(&file, index.covered, &header, crc32c).await? {
                        Some(with_it) => crc32c = with_it,
                        None => return Ok(crc32c),
                    },
                }
                index.push(&header);
                expected = Some(header.next_offset);
                at += header.len;
            }
            if at == 0 {
                return Ok(crc32c);
            }
        }
        Ok(crc32c)
    }

    /// Takes a batch that is longer than what is read at once into the CRC32C of what comes before it. `None`: it is damaged.
    pub(crate) async fn crc_of_long(
        &self,
        file: &<E::Disk as Disk>::File,
        position: u64,
        header: &BatchHeader,
        before: u32,
    ) -> io::Result<Option<u32>> {
        let (mut at, mut all, mut covered) = (0, before, 0);
        while at < header.len {
            let piece = file.read_at(position + at as u64, (header.len - at).min(SCAN_BYTES)).await?;
            if piece.is_empty() {
                return Ok(None);
            }
            all = crc32c::crc32c_append(all, &piece);
            covered = crc32c::crc32c_append(covered, piece.get(CRC_END.saturating_sub(at)..).unwrap_or_default());
            at += piece.len();
        }
        Ok((covered == header.crc32c).then_some(all))
    }

    /// Writes the indexes of segments that were closed and are written. `writing` is held, so nothing is waited for and no log is read: what cannot be
    /// done like that is left to the next checkpoint.
    pub(crate) async fn save_closed_indexes(&self, partition: &Arc<Partition>) {
        let mut closed = Vec::new();
        {
            let state = partition.lock();
            for segment in state.segments().rev().skip(1) {
                if segment.recent.is_empty() || state.dropped {
                    break;
                }
                if segment.written == segment.entry.len {
                    closed.push(segment.entry.name);
                }
            }
        }
        for name in closed {
            if let Some(gate) = self.indexing.try_enter(name) {
                self.save_index(partition, name, gate, false).await;
            }
        }
    }

    /// Writes the indexes of segments that have grown much, so that memory and the next start have little to do with them; and those of closed ones that were not
    /// written yet.
    pub(crate) async fn save_grown_indexes(&self, segments: &[(Arc<Partition>, SegmentEntry)]) {
        for (partition, entry) in segments {
            let is_due = {
                let state = partition.lock();
                let grows = state.segments().next_back().is_none_or(|last| last.entry.name == entry.name);
                let least = if grows { GROWN_ENTRIES } else { 0 };
                state.segment(entry.name).is_some_and(|segment| segment.recent.len() > least)
            };
            if is_due {
                let gate = self.indexing.enter(entry.name).await;
                self.save_index(partition, entry.name, gate, true).await;
            }
        }
    }

    /// Moves the entries of what is written from memory to the index file. They stay in memory when that fails: nothing else depends on the file. It fails
    /// too when the log would have to be read and it `may_scan` not.
    async fn save_index(&self, partition: &Arc<Partition>, name: SegmentName, _gate: Entered<'_>, may_scan: bool) {
        let (source, moved, covered) = {
            let state = partition.lock();
            let Some(segment) = state.segment(name).filter(|_| !state.dropped) else { return };
            let closed = state.segments().next_back().is_some_and(|last| last.entry.name != name);
            // The last entry of a growing segment is not finished.
            let (count, covered) = if closed && segment.written == segment.entry.len {
                (segment.recent.len(), segment.entry.len)
            } else {
                let written = segment.recent.partition_point(|entry| entry.position <= segment.written);
                let Some(last) = written.checked_sub(1).and_then(|last| segment.recent.get(last)) else { return };
                (written - 1, last.position)
            };
            let source = FileSource {
                segment: name,
                generation: state.generation,
                written: segment.written,
                at: None,
                recent_from: segment.recent_from,
            };
            (source, segment.recent[..count].to_vec(), covered)
        };
        if moved.is_empty() {
            return;
        }
        let mut index = Index::default();
        if source.recent_from > 0 {
            let entries = if may_scan {
                let loaded = self.load_index(&source, false).await.ok();
                loaded.filter(|loaded| loaded.covered == source.recent_from).map(|loaded| loaded.entries.clone())
            } else {
                let saved = self.index_in_file(name, source.recent_from).await;
                (saved.covered == source.recent_from).then_some(saved.entries)
            };
            let Some(entries) = entries else { return };
            index.entries = entries;
        }
        index.entries.extend(&moved);
        index.covered = covered;
        if !self.write_index(name, &index).await {
            return;
        }
        let loaded = LoadedIndex { entries: index.entries, asked: covered, covered, from_log: false, again_at: None };
        self.keep_index(name, source.generation, &Arc::new(loaded));
        let mut state = partition.lock();
        if state.generation == source.generation
            && let Some(segment) = state.segment_mut(name)
            && segment.recent_from == source.recent_from
        {
            segment.recent.drain(..moved.len());
            segment.recent.shrink_to_fit();
            segment.recent_from = covered;
        }
    }

    async fn write_index(&self, name: SegmentName, index: &Index) -> bool {
        let path = self.index_path(name);
        let content = Bytes::from(index.encode(name.base_offset));
        let written = match self.env.disk().open(&path, OpenMode::Truncate).await {
            Ok(file) => file.write_at(0, vec![content]).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &written {
            tracing::warn!(path = %path.display(), %error, "index not written");
        }
        written.is_ok()
    }
}
