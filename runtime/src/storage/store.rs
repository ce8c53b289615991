//! All partitions of one shard on this node.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lockstep_core::op::CompactedSegment;
use lockstep_core::{BATCH_BYTES_MAX, Effect, SegmentLimits, TopicId};
use lockstep_env::{Disk, DiskFile, Env, OpenMode};
use tokio::sync::{Notify, Semaphore};

use crate::error::StartError;
use crate::partition::PartitionLog;
use crate::storage::arena::Arena;
use crate::storage::batch::{self, BatchHeader};
use crate::storage::cache::Cache;
use crate::storage::flush;
use crate::storage::gates::Gates;
use crate::storage::lookup::{LoadedIndex, SCANS_AT_ONCE, ScanAgain};
use crate::storage::lru::Lru;
use crate::storage::manifest::Manifest;
use crate::storage::recovery;
use crate::storage::removal::{Dropped, Gone};
use crate::storage::segment::{PartitionKey, SegmentEntry, SegmentName};
use crate::storage::state::{Partition, PartitionState};
use crate::storage::suspicion::{FoundBy, ScrubCounters, ScrubCounts, Suspicions};
use lockstep_probe::{Mark, Mistake};

/// The flusher does not wait any longer once so much is in memory only.
pub(crate) const URGENT_BYTES: u64 = 256 << 10;
/// [`PartitionStore::writable`] waits while more than this is in memory only.
const UNWRITTEN_BYTES_MAX: u64 = 32 << 20;
/// A replica that fetches gets at most so much at once.
const CHUNK_BYTES_MAX: usize = 4 << 20;
/// Index entries kept for readers, of 32 bytes each.
const INDEX_ENTRIES_MAX: usize = 32 << 10;

/// How a store keeps its segments.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The node's budget for batches in memory.
    pub cache: Arc<Cache>,
    /// Open files that a store keeps at most.
    pub open_files_max: usize,
}

impl StoreOptions {
    /// Defaults for the rest.
    #[must_use]
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache, open_files_max: 64 }
    }
}

/// The partitions of one shard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionStore<E: Env> {
    pub(crate) inner: Arc<Inner<E>>,
}

/// The segments as they were at one position; see [`PartitionStore::prepare_checkpoint`].
#[derive(Clone, Debug)]
pub struct SegmentView {
    pub(crate) segments: Vec<(Arc<Partition>, SegmentEntry)>,
    /// So many partitions and segments had been dropped.
    pub(crate) drops: u64,
}

/// While one is held, no file of a dropped partition or segment is removed: another replica may be fetching it.
#[derive(Debug)]
pub struct Pin {
    _held: Arc<()>,
}

type OpenFiles<E> = Lru<(SegmentName, u64), <<E as Env>::Disk as Disk>::File>;

pub(crate) struct Inner<E: Env> {
    pub(crate) env: E,
    pub(crate) dir: PathBuf,
    pub(crate) options: StoreOptions,
    partitions: Mutex<BTreeMap<PartitionKey, Arc<Partition>>>,
    pub(crate) dropped: Mutex<Dropped>,
    /// Files of compactions that the start found in directories of partitions it does not know, with their lengths.
    pub(crate) unclaimed: Mutex<BTreeMap<PartitionKey, Vec<(SegmentName, u64)>>>,
    /// Memory for the batches that are appended.
    arena: Mutex<Arena>,
    pub(crate) pins: Arc<()>,
    /// Partitions with something to write, each once.
    pub(crate) queue: Mutex<VecDeque<Arc<Partition>>>,
    /// Bytes that are in memory only.
    pub(crate) unwritten: AtomicU64,
    /// Segments of which much was written since they were synced.
    pub(crate) long_unsynced: Mutex<Vec<(Arc<Partition>, SegmentName)>>,
    /// There is something to write.
    pub(crate) work: Arc<Notify>,
    /// There is much to write.
    pub(crate) urgent: Arc<Notify>,
    /// Something was written.
    pub(crate) wrote: Notify,
    /// Held by whoever writes to or exchanges segment files. In the end `apply` waits for what waits for it: nothing that takes long is done meanwhile, but an
    /// installation, during which nothing is applied.
    pub(crate) writing: tokio::sync::Mutex<()>,
    /// Held by whoever removes the files of what was dropped, or puts other files in their place. Taken before `writing`.
    pub(crate) removing: tokio::sync::Mutex<()>,
    /// Open segment files, by name and generation.
    pub(crate) files: Mutex<OpenFiles<E>>,
    /// Grows, while `files` is locked, with every segment file that another one has taken the place of.
    replaced_files: AtomicU64,
    pub(crate) indexes: Mutex<Lru<(SegmentName, u64), Arc<LoadedIndex>>>,
    /// Entered by whoever makes, reads or writes a segment's index file. Taken before `writing`; who has that one does not wait here.
    pub(crate) indexing: Gates,
    /// A permit for each segment that may be read for an index at the same time.
    pub(crate) scans: Semaphore,
    /// Compacted segments that were damaged when an index was to be made of them, with the generation of the partition's files.
    pub(crate) without_index: Mutex<BTreeMap<(SegmentName, u64), ScanAgain>>,
    /// Grows with every directory made in the store's, and so much of that is durable.
    pub(crate) root_changes: AtomicU64,
    pub(crate) root_synced: AtomicU64,
    /// Grows with every installed checkpoint.
    pub(crate) generation: AtomicU64,
    /// An installation is under way.
    pub(crate) installing: AtomicBool,
    /// Segments that may be damaged.
    pub(crate) suspicions: Suspicions,
    pub(crate) scrubbed: ScrubCounters,
    has_failed: AtomicBool,
    failure: Mutex<Option<String>>,
    /// It is being closed: nothing waits for room on the disk any more.
    pub(crate) closing: AtomicBool,
    pub(crate) closed: AtomicBool,
    flusher: Mutex<Option<E::Task<()>>>,
}

impl<E: Env> fmt::Debug for Inner<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl<E: Env> Drop for Inner<E> {
    fn drop(&mut self) {
        // The flusher holds no reference while it waits: this lets it find that out.
        self.work.notify_one();
        self.urgent.notify_one();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Env> PartitionStore<E> {
    /// Opens the partitions in `dir` (one directory for each shard; made when missing) as the last checkpoint lists them: segments are cut to its lengths and
    /// what it does not list is removed, all of which a replay of the journal makes again. Without a checkpoint the store starts empty.
    /// Takes no longer when there is more data, only when there are more segments. Starts a task that writes behind `apply`.
    ///
    /// # Errors
    /// `Damaged` when a segment is missing or shorter than the checkpoint says; one that a compaction made is fetched from another replica instead.
    pub async fn open(
        env: E,
        dir: &Path,
        options: StoreOptions,
        manifest: Option<&Manifest>,
    ) -> Result<Self, StartError> {
        let recovered = recovery::recover(&env, dir, manifest).await?;
        let inner = Arc::new(Inner {
            dir: dir.to_path_buf(),
            partitions: Mutex::new(recovered.partitions),
            dropped: Mutex::default(),
            unclaimed: Mutex::new(recovered.unclaimed),
            arena: Mutex::default(),
            pins: Arc::new(()),
            queue: Mutex::default(),
            unwritten: AtomicU64::new(0),
            long_unsynced: Mutex::default(),
            work: Arc::new(Notify::new()),
            urgent: Arc::new(Notify::new()),
            wrote: Notify::new(),
            writing: tokio::sync::Mutex::new(()),
            removing: tokio::sync::Mutex::new(()),
            files: Mutex::new(Lru::new(options.open_files_max.max(1))),
            replaced_files: AtomicU64::new(0),
            indexes: Mutex::new(Lru::new(INDEX_ENTRIES_MAX)),
            indexing: Gates::default(),
            scans: Semaphore::new(SCANS_AT_ONCE),
            without_index: Mutex::default(),
            root_changes: AtomicU64::new(1),
            root_synced: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            installing: AtomicBool::new(false),
            suspicions: Suspicions::default(),
            scrubbed: ScrubCounters::default(),
            has_failed: AtomicBool::new(false),
            failure: Mutex::default(),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            flusher: Mutex::default(),
            env,
            options,
        });
        for name in recovered.missing {
            inner.suspicions.add(name, FoundBy::Start);
        }
        let flusher =
            E::spawn(flush::run::<E>(Arc::downgrade(&inner), Arc::clone(&inner.work), Arc::clone(&inner.urgent)));
        *lock(&inner.flusher) = Some(flusher);
        Ok(Self { inner })
    }

    /// Applies an effect of an entry with this payload, in memory. Effects that do not concern logs are ignored. Never waits. Before segments are
    /// replaced everything must have been written ([`PartitionStore::flush`]).
    ///
    /// # Errors
    /// The effect contradicts the log (a violated invariant), or the store has failed: the shard must stop on this node.
    pub fn apply(&self, effect: &Effect, payload: &Bytes) -> Result<(), String> {
        let inner = &self.inner;
        if let Some(failure) = self.failed() {
            return Err(failure);
        }
        match *effect {
            Effect::CreatePartition { topic_id, partition } => inner.create(PartitionKey { topic_id, partition }),
            Effect::DropPartition { topic_id, partition } => inner.drop_partition(PartitionKey { topic_id, partition }),
            Effect::Append {
                topic_id,
                partition,
                payload_start,
                payload_len,
                base_offset,
                next_offset,
                leader_epoch,
                log_append_time_ms,
                limits,
            } => {
                let key = PartitionKey { topic_id, partition };
                let refuse = |reason: String| format!("append to partition {}: {reason}", key.directory());
                let batch = (payload_start as usize)
                    .checked_add(payload_len as usize)
                    .and_then(|end| payload.get(payload_start as usize..end))
                    .filter(|batch| (batch::HEADER_LEN..=BATCH_BYTES_MAX).contains(&batch.len()))
                    .ok_or_else(|| refuse("the payload has no such batch".to_owned()))?;
                // A copy: a slice would keep the payload of the whole entry in memory, with the batches of all other partitions.
                let batch = lock(&inner.arena).copy(batch, |batch| {
                    batch::stamp(batch, base_offset, leader_epoch, log_append_time_ms);
                });
                let header = BatchHeader::parse(&batch)
                    .filter(|header| header.len == batch.len() && header.next_offset == next_offset)
                    .ok_or_else(|| refuse(format!("no batch of offsets {base_offset}..{next_offset}")))?;
                inner.append(key, batch, &header, limits).map_err(refuse)
            }
            Effect::TruncateBefore { topic_id, partition, start_offset } => {
                inner.truncate_before(PartitionKey { topic_id, partition }, start_offset)
            }
            Effect::ReplaceSegments { topic_id, partition, revision, ref segments } => {
                inner.replace_segments(PartitionKey { topic_id, partition }, revision, segments)
            }
            Effect::GroupChanged { .. }
            | Effect::AssignmentNeeded { .. }
            | Effect::ResolutionNeeded { .. }
            | Effect::DirectoryChanged { .. } => Ok(()),
        }
    }

    /// Is everything before `offset` of a partition in its files? Of one that is not there it is.
    pub(crate) fn is_written_to(&self, topic_id: TopicId, partition: u32, offset: i64) -> bool {
        let partition = self.inner.partition(PartitionKey { topic_id, partition });
        partition.is_none_or(|partition| partition.lock().is_written_to(offset))
    }

    /// Where the partitions are.
    pub(crate) fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Waits while too much (more than 32 MiB) is in memory only, because the disk is slower than the log. To be awaited before an entry is applied.
    pub async fn writable(&self) {
        loop {
            let wrote = self.inner.wrote.notified();
            if self.inner.unwritten.load(Ordering::Acquire) <= UNWRITTEN_BYTES_MAX || self.inner.is_failed() {
                return;
            }
            Mark::ApplyWaitedForSegments.reached();
            wrote.await;
        }
    }

    /// The log of a partition.
    #[must_use]
    pub fn log(&self, topic_id: TopicId, partition: u32) -> Option<PartitionLog<E>> {
        let partition = self.inner.partition(PartitionKey { topic_id, partition })?;
        Some(PartitionLog::new(Arc::clone(&self.inner), partition))
    }

    /// Writes everything applied so far to the segment files, without syncing them.
    pub async fn flush(&self) -> io::Result<()> {
        self.inner.flush().await
    }

    /// Why the store cannot go on: its disk failed.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        if self.inner.is_failed() { lock(&self.inner.failure).clone() } else { None }
    }

    /// Notes the length of every segment as of now. To be called while nothing is being applied, together with the state machine's snapshot; takes about a millisecond for 10,000 segments.
    #[must_use]
    pub fn prepare_checkpoint(&self) -> SegmentView {
        let drops = lock(&self.inner.dropped).count();
        let mut segments = Vec::new();
        for partition in lock(&self.inner.partitions).values() {
            let state = partition.lock();
            segments.extend(state.segments().map(|segment| (Arc::clone(partition), segment.entry)));
        }
        SegmentView { segments, drops }
    }

    /// Makes the view's segments durable and lists them, for [`Manifest::segments`]. Syncs only what was touched since the last time. After an error the shard must stop.
    pub async fn sync_for(&self, view: &SegmentView) -> io::Result<Vec<SegmentEntry>> {
        self.inner.flush().await?;
        if !Mistake::CheckpointBeforeSegments.is_made() {
            self.inner.sync_segments(&view.segments).await?;
        }
        self.inner.save_grown_indexes(&view.segments).await;
        Ok(view.segments.iter().map(|(_, entry)| *entry).collect())
    }

    /// A partition's segments with records, ascending, as its log consists of them now.
    #[must_use]
    pub fn segments(&self, topic_id: TopicId, partition: u32) -> Vec<SegmentEntry> {
        let Some(partition) = self.inner.partition(PartitionKey { topic_id, partition }) else { return Vec::new() };
        let state = partition.lock();
        state.segments().map(|segment| segment.entry).filter(|entry| entry.len > 0).collect()
    }

    /// Keeps files of dropped partitions and segments from being removed; for as long as another replica fetches a checkpoint from here. Take it before reading the manifest to be sent.
    #[must_use]
    pub fn pin(&self) -> Pin {
        Pin { _held: Arc::clone(&self.inner.pins) }
    }

    /// Up to `len` bytes (at most 4 MiB) of a segment of the last checkpoint, for a replica that fetches it; fewer at the end of what is written.
    /// `NotFound` when there is no such segment any more.
    pub async fn read_chunk(&self, segment: &SegmentName, offset: u64, len: usize) -> io::Result<Bytes> {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        let partition = self.inner.partition_or_dropped(segment.key()).ok_or_else(not_found)?;
        let (written, generation) = {
            let state = partition.lock();
            (state.segment(*segment).ok_or_else(not_found)?.written, state.generation)
        };
        let left = usize::try_from(written.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(CHUNK_BYTES_MAX).min(left);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let file = self.inner.file(*segment, generation, OpenMode::ReadWrite).await?;
        Ok(Bytes::from(file.read_at(offset, len).await?))
    }

    /// Up to `len` bytes (at most 4 MiB) of the first `whole` bytes of a segment, for a replica whose own copy is damaged, or that has none yet of a compacted
    /// one. `NotFound` when there is no such segment here, or not so much of it.
    pub(crate) async fn read_part(
        &self,
        segment: SegmentName,
        whole: u64,
        offset: u64,
        len: usize,
    ) -> io::Result<Bytes> {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        let found = self.inner.listed(segment).map(|(_, written, generation)| (written, generation));
        let (written, generation) = found.or_else(|| self.inner.staged(segment)).ok_or_else(not_found)?;
        if written < whole || offset >= whole {
            return Err(not_found());
        }
        let left = usize::try_from(whole - offset).unwrap_or(usize::MAX);
        let file = self.inner.file(segment, generation, OpenMode::ReadWrite).await?;
        Ok(Bytes::from(file.read_at(offset, len.min(CHUNK_BYTES_MAX).min(left)).await?))
    }

    /// Somebody believes that a segment is damaged: it will be checked, and repaired if it is.
    pub(crate) fn suspect(&self, name: SegmentName, by: FoundBy) {
        self.inner.suspect(name, by);
    }

    /// The segment that holds this offset.
    pub(crate) fn segment_of(&self, topic_id: TopicId, partition: u32, offset: i64) -> Option<SegmentName> {
        let partition = self.inner.partition(PartitionKey { topic_id, partition })?;
        let state = partition.lock();
        state.segments().map(|segment| segment.entry.name).take_while(|name| name.base_offset <= offset).last()
    }

    /// The segments that are suspected.
    pub(crate) fn suspicions(&self) -> &Suspicions {
        &self.inner.suspicions
    }

    /// Where a segment's file is.
    pub(crate) fn segment_path(&self, name: SegmentName) -> PathBuf {
        self.inner.log_path(name)
    }

    pub(crate) fn scrub_counters(&self) -> &ScrubCounters {
        &self.inner.scrubbed
    }

    /// What checking and repairing segments came to since the store was opened.
    #[must_use]
    pub fn scrub_counts(&self) -> ScrubCounts {
        self.inner.scrubbed.read()
    }

    /// From now on nothing waits for room on the disk: what would have to wait is an error.
    pub(crate) fn wait_no_longer(&self) {
        self.inner.closing.store(true, Ordering::Release);
    }

    /// Writes what is in memory and stops the background task. Nothing may be applied afterwards.
    pub async fn close(&self) {
        self.wait_no_longer();
        if let Err(error) = self.inner.flush().await {
            tracing::warn!(dir = %self.inner.dir.display(), %error, "segments could not be written at the end");
        }
        self.inner.closed.store(true, Ordering::Release);
        self.inner.work.notify_one();
        self.inner.urgent.notify_one();
        let flusher = lock(&self.inner.flusher).take();
        if let Some(flusher) = flusher {
            let _ = flusher.await;
        }
        // Whatever is being removed is the last.
        drop(self.inner.removing.lock().await);
        self.inner.forget_files();
    }
}

impl<E: Env> Inner<E> {
    pub(crate) fn partition(&self, key: PartitionKey) -> Option<Arc<Partition>> {
        lock(&self.partitions).get(&key).cloned()
    }

    fn partition_or_dropped(&self, key: PartitionKey) -> Option<Arc<Partition>> {
        self.partition(key).or_else(|| lock(&self.dropped).partition(key))
    }

    /// All partitions by key, to be exchanged.
    pub(crate) fn partitions(&self) -> MutexGuard<'_, BTreeMap<PartitionKey, Arc<Partition>>> {
        lock(&self.partitions)
    }

    pub(crate) fn directory(&self, key: PartitionKey) -> PathBuf {
        self.dir.join(key.directory())
    }

    pub(crate) fn log_path(&self, name: SegmentName) -> PathBuf {
        self.directory(name.key()).join(name.log_file())
    }

    pub(crate) fn index_path(&self, name: SegmentName) -> PathBuf {
        self.directory(name.key()).join(name.index_file())
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// See [`PartitionStore::suspect`].
    pub(crate) fn suspect(&self, name: SegmentName, by: FoundBy) {
        if self.listed(name).is_some() {
            self.suspicions.add(name, by);
        }
    }

    /// Nothing is written any more after this; `apply` refuses. The error is returned with the path in it.
    pub(crate) fn fail(&self, path: &Path, error: io::Error) -> io::Error {
        let error = io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        lock(&self.failure).get_or_insert_with(|| error.to_string());
        self.has_failed.store(true, Ordering::Release);
        self.wrote.notify_waiters();
        tracing::error!(%error, "segments cannot be written any more");
        error
    }

    /// Makes a file durable. After an error the store has failed: what that sync left is unknown, and that another one succeeds would prove nothing.
    pub(crate) async fn sync_file(&self, file: &<E::Disk as Disk>::File, path: &Path) -> io::Result<()> {
        file.sync_data().await.map_err(|error| self.fail(path, error))
    }

    /// Makes a directory durable. After an error the store has failed, as after one of [`Inner::sync_file`].
    pub(crate) async fn sync_directory(&self, path: &Path) -> io::Result<()> {
        while let Err(error) = self.env.disk().sync_dir(path).await {
            // It could not be opened, or this is another error.
            self.wait_for_room(path, error).await.map_err(|error| self.fail(path, error))?;
        }
        Ok(())
    }

    pub(crate) fn check_failed(&self) -> io::Result<()> {
        if self.is_failed() {
            return Err(io::Error::other(lock(&self.failure).clone().unwrap_or_default()));
        }
        Ok(())
    }

    /// A segment's file, open for reading and writing.
    pub(crate) async fn file(
        &self,
        name: SegmentName,
        generation: u64,
        mode: OpenMode,
    ) -> io::Result<<E::Disk as Disk>::File> {
        loop {
            let replaced_files = {
                let mut files = lock(&self.files);
                if let Some(file) = files.get((name, generation)) {
                    return Ok(file);
                }
                self.replaced_files.load(Ordering::Acquire)
            };
            let file = self.env.disk().open(&self.log_path(name), mode).await?;
            let mut files = lock(&self.files);
            // One that was opened just before another took its place must not be kept: what is written to it would be lost.
            if self.replaced_files.load(Ordering::Acquire) == replaced_files {
                files.insert((name, generation), file.clone(), 1);
                return Ok(file);
            }
        }
    }

    /// Other files have taken the place of all that were open.
    pub(crate) fn forget_files(&self) {
        let mut files = lock(&self.files);
        self.replaced_files.fetch_add(1, Ordering::AcqRel);
        files.clear();
    }

    /// Another file has taken the place of this one: whoever asks for it from now on is given that.
    pub(crate) fn forget_file(&self, name: SegmentName, generation: u64) {
        let mut files = lock(&self.files);
        self.replaced_files.fetch_add(1, Ordering::AcqRel);
        files.remove((name, generation));
    }

    fn create(&self, key: PartitionKey) -> Result<(), String> {
        if self.partition_or_dropped(key).is_some() {
            return Err(format!("partition {} exists already", key.directory()));
        }
        let name = SegmentName::appended(key, 0);
        let generation = self.generation.load(Ordering::Acquire);
        let mut state = PartitionState::durable([SegmentEntry::empty(name)], generation);
        for (name, len) in lock(&self.unclaimed).remove(&key).unwrap_or_default() {
            Mark::StagedSegmentFoundAtStart.reached();
            state.directory_made = true;
            state.stage(name, len);
        }
        lock(&self.partitions).insert(key, Partition::new(key, state));
        Ok(())
    }

    fn drop_partition(&self, key: PartitionKey) -> Result<(), String> {
        let Some(partition) = lock(&self.partitions).remove(&key) else {
            return Err(format!("partition {} does not exist", key.directory()));
        };
        let waiters = {
            let mut state = partition.lock();
            state.dropped = true;
            state.waiters()
        };
        {
            // Its tail stays and is still written: a checkpoint prepared before the drop may list it.
            lock(&self.dropped).wait(Gone::Partition(partition));
        }
        for waiter in waiters {
            waiter.notify_one();
        }
        Ok(())
    }

    fn truncate_before(&self, key: PartitionKey, start_offset: i64) -> Result<(), String> {
        let refuse = |reason: String| {
            Err(format!("deletion of the records before {start_offset} of {}: {reason}", key.directory()))
        };
        let Some(partition) = self.partition(key) else { return refuse("it does not exist".to_owned()) };
        let mut state = partition.lock();
        let (start, end) = (state.start_offset(), state.end_offset());
        if start_offset <= start || start_offset > end {
            return refuse(format!("the log holds {start}..{end}"));
        }
        let gone = state.truncate_before(key, start_offset);
        if state.segments().next().is_some_and(|first| first.entry.name.base_offset < start_offset) {
            Mark::LogStartWithinSegment.reached();
        }
        let early = Mistake::RetentionRemovesFilesBeforeCheckpoint.is_made();
        let mut dropped = lock(&self.dropped);
        for name in gone {
            let is_written = state.segment(name).is_some_and(|it| it.written == it.entry.len);
            let gone = Gone::Segment(Arc::clone(&partition), name, state.generation);
            if early && is_written {
                dropped.release(gone);
                self.work.notify_one();
                continue;
            }
            dropped.wait(gone);
        }
        Ok(())
    }

    fn replace_segments(&self, key: PartitionKey, revision: u64, segments: &[CompactedSegment]) -> Result<(), String> {
        let refuse = |reason: String| format!("compaction {revision} of {}: {reason}", key.directory());
        let partition = self.partition(key).ok_or_else(|| refuse("it does not exist".to_owned()))?;
        let missing = {
            let mut state = partition.lock();
            let (gone, missing) = state.replace(key, revision, segments).map_err(refuse)?;
            let generation = state.generation;
            let mut dropped = lock(&self.dropped);
            for name in gone {
                dropped.wait(Gone::Segment(Arc::clone(&partition), name, generation));
            }
            missing
        };
        Mark::LogCompacted.reached();
        for name in missing {
            Mark::CompactedSegmentMissing.reached();
            self.suspicions.add(name, FoundBy::Compaction);
        }
        Ok(())
    }

    fn append(
        &self,
        key: PartitionKey,
        batch: Bytes,
        header: &BatchHeader,
        limits: SegmentLimits,
    ) -> Result<(), String> {
        let partition = self.partition(key).ok_or_else(|| "it does not exist".to_owned())?;
        let len = batch.len() as u64;
        let crc_before = {
            let state = partition.lock();
            if state.end_offset() != header.base_offset {
                return Err(format!("at offset {}, but the log ends at {}", header.base_offset, state.end_offset()));
            }
            state.crc_before(header, limits)
        };
        // Only `apply` appends, one entry at a time, so the segment is the same still. Readers need not wait for the checksum.
        let crc = crc32c::crc32c_append(crc_before, &batch);
        let before = self.unwritten.fetch_add(len, Ordering::AcqRel);
        let (newly_queued, waiters) = {
            let mut state = partition.lock();
            state.append(key, batch, header, limits, crc);
            (!std::mem::replace(&mut state.queued, true), state.waiters())
        };
        if newly_queued {
            lock(&self.queue).push_back(Arc::clone(&partition));
        }
        for waiter in waiters {
            waiter.notify_one();
        }
        if before == 0 {
            self.work.notify_one();
        }
        if before < URGENT_BYTES && before + len >= URGENT_BYTES {
            self.urgent.notify_one();
        }
        self.options.cache.note(&partition, header.next_offset, len);
        Ok(())
    }

    /// Forgets a partition's tail.
    pub(crate) fn forget_tail(&self, state: &mut PartitionState) {
        self.unwritten.fetch_sub(state.forget_tail(), Ordering::AcqRel);
    }
}
