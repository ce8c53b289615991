//! What is known of one partition, in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::storage::batch::BatchHeader;
use crate::storage::index::{self, IndexEntry};
use crate::storage::segment::{PartitionKey, SegmentEntry, SegmentName};
use lockstep_core::SegmentLimits;
use lockstep_core::op::CompactedSegment;
use lockstep_probe::Mistake;

/// Places that readers stopped at, remembered so that the next read from there need not search.
const HINTS: usize = 4;
/// Spare room that an empty tail may keep.
const IDLE_TAIL_CAPACITY: usize = 8;

/// One partition. The lock is held for short sections only and never across an await.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) key: PartitionKey,
    state: Mutex<PartitionState>,
}

impl Partition {
    pub(crate) fn new(key: PartitionKey, state: PartitionState) -> Arc<Self> {
        Arc::new(Self { key, state: Mutex::new(state) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, PartitionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct PartitionState {
    /// Ascending and without gaps. Those before `deleted` can only be read by replicas that fetch a checkpoint, until their files are removed.
    segments: VecDeque<Segment>,
    /// So many segments at the front hold only records that were deleted. There is at least one more: a partition without records has a segment of
    /// length 0.
    deleted: usize,
    /// Those that compacted ones took the place of, until their files are removed. All of them are written.
    replaced: Vec<Segment>,
    /// Files of compacted segments that are here, durable, and have not taken the place of others yet, with their lengths.
    staged: BTreeMap<SegmentName, u64>,
    /// The newest batches: those not written yet, and before them some that are.
    tail: VecDeque<TailBatch>,
    /// So many batches at the front of the tail are written.
    tail_written: usize,
    /// Written batches that end here or before are not kept.
    evict_before: i64,
    /// It waits in the store's queue of partitions to be written.
    pub(crate) queued: bool,
    /// The partition's directory was made or found.
    pub(crate) directory_made: bool,
    /// Grows with every file that is made in the directory.
    pub(crate) directory_changes: u64,
    /// So many of these changes are durable.
    pub(crate) directory_synced: u64,
    /// Deleted: nothing can be read any more.
    pub(crate) dropped: bool,
    /// The store's generation when these files were opened; another one when they were exchanged since.
    pub(crate) generation: u64,
    waiters: Vec<Weak<Notify>>,
    /// Waiters are cleared of dead ones when there are so many.
    waiters_prune_at: usize,
    /// Offset, base offset of the segment, position. Forgotten when segments are replaced.
    hints: [(i64, i64, u64); HINTS],
    hint_next: usize,
}

/// One segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// As applied.
    pub(crate) entry: SegmentEntry,
    /// So many bytes are in the file.
    pub(crate) written: u64,
    /// So many bytes are durable.
    pub(crate) synced: u64,
    /// Index entries from `recent_from` on; what comes before is covered by the index file or must be scanned.
    pub(crate) recent: Vec<IndexEntry>,
    pub(crate) recent_from: u64,
}

impl Segment {
    pub(crate) fn empty(name: SegmentName) -> Self {
        Self::durable(SegmentEntry::empty(name))
    }

    /// A segment that lies on disk as `entry` says.
    pub(crate) fn durable(entry: SegmentEntry) -> Self {
        Self { entry, written: entry.len, synced: entry.len, recent: Vec::new(), recent_from: entry.len }
    }
}

#[derive(Debug)]
struct TailBatch {
    bytes: Bytes,
    /// Which segment it belongs to.
    segment: SegmentName,
    /// Where in the segment it begins.
    position: u64,
    base_offset: i64,
    next_offset: i64,
}

/// Batches to be written next to one file.
#[derive(Debug)]
pub(crate) struct WriteStep {
    pub(crate) segment: SegmentName,
    pub(crate) generation: u64,
    pub(crate) position: u64,
    pub(crate) buffers: Vec<Bytes>,
    pub(crate) bytes: u64,
}

/// Where the next batches for a reader are.
#[derive(Debug)]
pub(crate) enum Source {
    /// Here. There is no more, or no more that fits.
    Memory(Vec<Bytes>),
    /// In a file.
    File(FileSource),
}

/// Where to look in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSource {
    pub(crate) segment: SegmentName,
    pub(crate) generation: u64,
    /// So many bytes of the file may be read.
    pub(crate) written: u64,
    /// A batch begins here, at this offset, and the wanted one is this or a later one. `None`: the index must be asked about the
    /// first `recent_from` bytes.
    pub(crate) at: Option<(u64, i64)>,
    pub(crate) recent_from: u64,
}

impl PartitionState {
    /// A partition that lies on disk as `segments` say: ascending, without gaps, at least one.
    pub(crate) fn durable(segments: impl IntoIterator<Item = SegmentEntry>, generation: u64) -> Self {
        let segments: VecDeque<Segment> = segments.into_iter().map(Segment::durable).collect();
        assert!(!segments.is_empty(), "a partition has a segment");
        Self {
            segments,
            deleted: 0,
            replaced: Vec::new(),
            staged: BTreeMap::new(),
            tail: VecDeque::new(),
            tail_written: 0,
            evict_before: 0,
            queued: false,
            directory_made: false,
            directory_changes: 0,
            directory_synced: 0,
            dropped: false,
            generation,
            waiters: Vec::new(),
            waiters_prune_at: 8,
            hints: [(-1, -1, 0); HINTS],
            hint_next: 0,
        }
    }

    /// The segments that hold what can be read, ascending.
    pub(crate) fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> + ExactSizeIterator {
        self.segments.range(self.deleted..)
    }

    /// The deleted and the replaced ones too.
    pub(crate) fn segments_with_files(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().chain(&self.replaced)
    }

    pub(crate) fn start_offset(&self) -> i64 {
        self.segments.get(self.deleted).map_or(0, |segment| segment.entry.start_offset)
    }

    /// Does this segment hold something that can be read?
    pub(crate) fn lists(&self, name: SegmentName) -> bool {
        self.position(name).is_some_and(|at| at >= self.deleted)
    }

    pub(crate) fn end_offset(&self) -> i64 {
        self.segments.back().map_or(0, |segment| segment.entry.next_offset)
    }

    /// Where it stands in `segments`.
    fn position(&self, name: SegmentName) -> Option<usize> {
        let base = |segment: &Segment| segment.entry.name.base_offset;
        let at = self.segments.binary_search_by_key(&name.base_offset, base).ok()?;
        self.segments.get(at).is_some_and(|segment| segment.entry.name == name).then_some(at)
    }

    /// One that there are files of, though perhaps none that can be read any more.
    pub(crate) fn segment(&self, name: SegmentName) -> Option<&Segment> {
        match self.position(name) {
            Some(at) => self.segments.get(at),
            None => self.replaced.iter().find(|segment| segment.entry.name == name),
        }
    }

    pub(crate) fn segment_mut(&mut self, name: SegmentName) -> Option<&mut Segment> {
        match self.position(name) {
            Some(at) => self.segments.get_mut(at),
            None => self.replaced.iter_mut().find(|segment| segment.entry.name == name),
        }
    }

    /// Does a batch begin a new segment? That depends on nothing but the batches before it and the limits that come with it. The rules are
    /// those of Kafka's `LogSegment::shouldRoll`.
    fn rolls(&self, header: &BatchHeader, limits: SegmentLimits) -> bool {
        self.segments.back().is_none_or(|Segment { entry, .. }| {
            let too_long = entry.len.saturating_add(header.len as u64) > limits.bytes;
            let age_ms = i128::from(header.max_timestamp_ms) - i128::from(entry.first_timestamp_ms);
            let too_old = entry.first_timestamp_ms >= 0 && age_ms > i128::from(limits.ms);
            entry.len > 0 && (too_long || too_old)
        })
    }

    /// CRC32C of the segment that the next batch will go to.
    pub(crate) fn crc_before(&self, header: &BatchHeader, limits: SegmentLimits) -> u32 {
        if self.rolls(header, limits) { 0 } else { self.segments.back().map_or(0, |segment| segment.entry.crc32c) }
    }

    /// Appends a stamped batch; `crc32c` is that of its segment with it.
    pub(crate) fn append(
        &mut self,
        key: PartitionKey,
        batch: Bytes,
        header: &BatchHeader,
        limits: SegmentLimits,
        crc32c: u32,
    ) {
        assert!(header.base_offset == self.end_offset() && header.len == batch.len(), "a batch follows the one before");
        let len = batch.len() as u64;
        if self.rolls(header, limits) {
            self.begin_segment(key, header.base_offset);
        }
        let Some(Segment { entry, recent, .. }) = self.segments.back_mut() else { return };
        index::push(recent, header, entry.len);
        self.tail.push_back(TailBatch {
            segment: entry.name,
            position: entry.len,
            base_offset: header.base_offset,
            next_offset: header.next_offset,
            bytes: batch,
        });
        entry.crc32c = crc32c;
        if entry.len == 0 {
            entry.first_timestamp_ms = header.max_timestamp_ms;
        }
        entry.len += len;
        entry.next_offset = header.next_offset;
        if header.max_timestamp_ms > entry.max_timestamp_ms {
            entry.max_timestamp_ms = header.max_timestamp_ms;
            entry.max_timestamp_offset = header.next_offset - 1;
        }
    }

    fn begin_segment(&mut self, key: PartitionKey, base_offset: i64) {
        self.segments.push_back(Segment::empty(SegmentName::appended(key, base_offset)));
    }

    /// Lets the log begin at `start_offset`, which is above its start and at most its end. The names of the segments of which nothing is left: they
    /// stay known, and what is not written of them will be, until [`PartitionState::forget_deleted`].
    pub(crate) fn truncate_before(&mut self, key: PartitionKey, start_offset: i64) -> Vec<SegmentName> {
        let end_offset = self.end_offset();
        assert!(start_offset > self.start_offset() && start_offset <= end_offset, "a log's start lies in the log");
        if start_offset == end_offset {
            // A log that ends above its start has records in its last segment.
            self.begin_segment(key, start_offset);
        }
        let mut gone = Vec::new();
        while let Some(next) = self.segments.get(self.deleted + 1)
            && next.entry.name.base_offset <= start_offset
        {
            gone.extend(self.segments.get(self.deleted).map(|segment| segment.entry.name));
            self.deleted += 1;
        }
        if let Some(first) = self.segments.get_mut(self.deleted) {
            first.entry.start_offset = start_offset;
            let base_offset = first.entry.name.base_offset;
            self.evict(base_offset);
        }
        gone
    }

    /// The deleted or replaced segment's files are about to be removed. False when it is none any more: files were exchanged since then.
    pub(crate) fn forget_deleted(&mut self, name: SegmentName, generation: u64) -> bool {
        if self.generation != generation {
            return false;
        }
        let gone = match self.position(name) {
            Some(at) if at < self.deleted => {
                self.deleted -= 1;
                self.segments.remove(at)
            }
            Some(_) => None,
            None => {
                let at = self.replaced.iter().position(|segment| segment.entry.name == name);
                at.map(|at| self.replaced.swap_remove(at))
            }
        };
        if let Some(gone) = &gone {
            assert_eq!(gone.written, gone.entry.len, "nothing of a removed file is written later");
        }
        gone.is_some()
    }

    /// Is everything before `offset` in the files?
    pub(crate) fn is_written_to(&self, offset: i64) -> bool {
        self.tail.get(self.tail_written).is_none_or(|first| first.base_offset >= offset)
    }

    /// Lets compacted segments take the place of those that they were made of, all of which must be written. Gives the names of the replaced ones,
    /// which stay known until [`PartitionState::forget_deleted`], and of those among the new ones whose files are not here.
    ///
    /// # Errors
    /// A new segment does not begin and end where listed ones do, or would replace the one that grows: nothing is changed.
    pub(crate) fn replace(
        &mut self,
        key: PartitionKey,
        revision: u64,
        compacted: &[CompactedSegment],
    ) -> Result<(Vec<SegmentName>, Vec<SegmentName>), String> {
        let mut ranges = Vec::with_capacity(compacted.len());
        let mut from = self.deleted;
        for new in compacted {
            let base = |segment: &Segment| segment.entry.name.base_offset;
            let first = self.segments.binary_search_by_key(&new.base_offset, base).ok().filter(|first| *first >= from);
            let last = self.segments.binary_search_by_key(&new.next_offset, |segment| segment.entry.next_offset).ok();
            let (Some(first), Some(last)) = (first, last) else {
                return Err(format!("no segments run from {} to {}", new.base_offset, new.next_offset));
            };
            let unwritten = |segment: &Segment| segment.written < segment.entry.len;
            if last < first || last + 1 >= self.segments.len() || self.segments.range(first..=last).any(unwritten) {
                return Err(format!("the segments from {} to {} still grow", new.base_offset, new.next_offset));
            }
            ranges.push((first, last));
            from = last + 1;
        }
        let (mut gone, mut missing) = (Vec::new(), Vec::new());
        let evict_before = compacted.last().map_or(0, |last| last.next_offset);
        // In one pass: a log may have very many segments, and `apply` waits.
        let mut new_ones = compacted.iter().zip(ranges).peekable();
        for (at, segment) in std::mem::take(&mut self.segments).into_iter().enumerate() {
            let Some((new, (first, last))) = new_ones.peek().filter(|(_, (first, _))| *first <= at) else {
                self.segments.push_back(segment);
                continue;
            };
            if at == *first {
                let name = SegmentName { revision, ..SegmentName::appended(key, new.base_offset) };
                self.segments.push_back(Segment::durable(SegmentEntry {
                    name,
                    len: new.len,
                    crc32c: new.crc32c,
                    start_offset: segment.entry.start_offset,
                    next_offset: new.next_offset,
                    first_timestamp_ms: new.first_timestamp_ms,
                    max_timestamp_ms: new.max_timestamp_ms,
                    max_timestamp_offset: new.max_timestamp_offset,
                }));
                if self.staged.remove(&name) != Some(new.len) {
                    missing.push(name);
                }
            }
            if at == *last {
                new_ones.next();
            }
            gone.push(segment.entry.name);
            self.replaced.push(segment);
        }
        self.hints = [(-1, -1, 0); HINTS];
        // What is in memory of the replaced ones is written, and belongs to other positions than the new ones'.
        self.evict(evict_before);
        Ok((gone, missing))
    }

    /// The file of a compacted segment is here, and durable. One that has taken its place meanwhile is no staged one any more.
    pub(crate) fn stage(&mut self, name: SegmentName, len: u64) {
        if self.segment(name).is_none() {
            self.staged.insert(name, len);
        }
    }

    /// The length of a compacted segment whose file is here and that has not taken the place of others.
    pub(crate) fn staged(&self, name: SegmentName) -> Option<u64> {
        self.staged.get(&name).copied()
    }

    /// Forgets staged segments of compactions before this one, whose files the caller removes.
    pub(crate) fn forget_staged_before(&mut self, revision: u64) -> Vec<SegmentName> {
        let gone: Vec<SegmentName> = self.staged.keys().filter(|name| name.revision < revision).copied().collect();
        self.staged.retain(|name, _| name.revision >= revision);
        gone
    }

    /// The next batches to be written, all of one segment; `None` when everything is.
    pub(crate) fn next_write(&self, bytes_max: u64, buffers_max: usize) -> Option<WriteStep> {
        let first = self.tail.get(self.tail_written)?;
        let mut step = WriteStep {
            segment: first.segment,
            generation: self.generation,
            position: first.position,
            buffers: Vec::new(),
            bytes: 0,
        };
        for batch in self.tail.range(self.tail_written..) {
            let len = batch.bytes.len() as u64;
            let fits = step.bytes + len <= bytes_max && step.buffers.len() < buffers_max;
            if batch.segment != first.segment || !(fits || step.buffers.is_empty()) {
                break;
            }
            step.bytes += len;
            step.buffers.push(batch.bytes.clone());
        }
        Some(step)
    }

    /// A step of [`PartitionState::next_write`] was done.
    pub(crate) fn wrote(&mut self, step: &WriteStep) {
        if let Some(segment) = self.segment_mut(step.segment) {
            assert_eq!(segment.written, step.position, "a segment is written in order");
            segment.written += step.bytes;
            assert!(segment.written <= segment.entry.len, "no more is written than was applied");
        }
        self.tail_written += step.buffers.len();
        self.trim();
    }

    /// Bytes that are in memory only.
    pub(crate) fn unwritten(&self) -> u64 {
        self.tail.range(self.tail_written..).map(|batch| batch.bytes.len() as u64).sum()
    }

    /// Written batches that end at `next_offset` or before need not be kept.
    pub(crate) fn evict(&mut self, next_offset: i64) {
        self.evict_before = self.evict_before.max(next_offset);
        self.trim();
    }

    fn trim(&mut self) {
        while self.tail_written > 0 && self.tail.front().is_some_and(|batch| batch.next_offset <= self.evict_before) {
            self.tail.pop_front();
            self.tail_written -= 1;
        }
        if self.tail.is_empty() && self.tail.capacity() > IDLE_TAIL_CAPACITY {
            self.tail.shrink_to(IDLE_TAIL_CAPACITY);
        }
    }

    /// Forgets everything in memory; the number of bytes that were nowhere else.
    pub(crate) fn forget_tail(&mut self) -> u64 {
        let unwritten = self.unwritten();
        self.tail = VecDeque::new();
        self.tail_written = 0;
        self.evict_before = 0;
        unwritten
    }

    /// Takes on what lies on disk after files were exchanged. The tail must have been forgotten.
    pub(crate) fn replace_segments(&mut self, segments: impl IntoIterator<Item = SegmentEntry>, generation: u64) {
        assert!(self.tail.is_empty(), "the tail belongs to the old segments");
        self.segments = segments.into_iter().map(Segment::durable).collect();
        self.deleted = 0;
        self.replaced = Vec::new();
        let segments = &self.segments;
        self.staged.retain(|name, _| !segments.iter().any(|segment| segment.entry.name == *name));
        assert!(!self.segments.is_empty(), "a partition has a segment");
        self.generation = generation;
        self.hints = [(-1, -1, 0); HINTS];
    }

    /// Where the batch that holds `offset` is. The offset must lie in the log. From memory: batches of together at most `bytes_max` bytes, but at
    /// least one if `at_least_one`.
    pub(crate) fn source(&self, offset: i64, bytes_max: usize, at_least_one: bool) -> Option<Source> {
        if self.tail.front().is_some_and(|first| first.base_offset <= offset) {
            let skips = Mistake::CachedBatchSkipped.is_made();
            let before = |batch: &TailBatch| batch.next_offset <= offset || (skips && batch.base_offset < offset);
            let from = self.tail.partition_point(before);
            let mut batches = Vec::new();
            let mut left = bytes_max;
            for batch in self.tail.range(from..) {
                if batch.bytes.len() > left && !(at_least_one && batches.is_empty()) {
                    break;
                }
                left = left.saturating_sub(batch.bytes.len());
                batches.push(batch.bytes.clone());
            }
            return Some(Source::Memory(batches));
        }
        let after = self.segments.partition_point(|segment| segment.entry.name.base_offset <= offset);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let name = segment.entry.name;
        let hint = self.hints.iter().find(|hint| hint.0 == offset && hint.1 == name.base_offset);
        let at = match hint {
            Some(hint) => Some((hint.2, offset)),
            None => index::find_offset(&segment.recent, offset).map(|entry| (entry.position, entry.offset)),
        };
        Some(Source::File(FileSource {
            segment: name,
            generation: self.generation,
            written: segment.written,
            at,
            recent_from: segment.recent_from,
        }))
    }

    /// A reader stopped before the batch of `offset`, which begins at `position` unless the segment ends there.
    pub(crate) fn hint(&mut self, offset: i64, name: SegmentName, position: u64) {
        let hint = (offset, name.base_offset, position);
        if self.position(name).and_then(|at| self.segments.get(at)).is_some_and(|it| it.entry.next_offset > offset)
            && !self.hints.contains(&hint)
        {
            self.hints[self.hint_next] = hint;
            self.hint_next = (self.hint_next + 1) % HINTS;
        }
    }

    pub(crate) fn wait(&mut self, waiter: &Arc<Notify>) {
        if self.waiters.len() >= self.waiters_prune_at {
            self.waiters.retain(|waiter| waiter.strong_count() > 0);
            self.waiters_prune_at = (self.waiters.len() * 2).max(8);
        }
        self.waiters.push(Arc::downgrade(waiter));
    }

    /// Everyone who waits, to be woken once the lock is free.
    pub(crate) fn waiters(&mut self) -> Vec<Arc<Notify>> {
        let mut alive = Vec::with_capacity(self.waiters.len());
        self.waiters.retain(|waiter| {
            let waiter = waiter.upgrade();
            let keep = waiter.is_some();
            alive.extend(waiter);
            keep
        });
        if self.waiters.is_empty() && self.waiters.capacity() > 8 {
            self.waiters = Vec::new();
        }
        alive
    }
}
