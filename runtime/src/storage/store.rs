//! All partitions of one shard on this node.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::{Effect, TopicId};
use lockstep_env::Env;

use crate::error::StartError;
use crate::partition::PartitionLog;
use crate::storage::cache::Cache;
use crate::storage::manifest::Manifest;
use crate::storage::segment::{SegmentEntry, SegmentName};

/// How a store keeps its segments.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// A segment is closed before it would grow beyond this many bytes (one batch may be larger). The same on every replica, or their files differ.
    pub segment_bytes: u64,
    /// The node's budget for batches in memory.
    pub cache: Arc<Cache>,
    /// Open files that a store keeps at most.
    pub open_files_max: usize,
}

impl StoreOptions {
    /// Defaults for the rest.
    #[must_use]
    pub fn new(segment_bytes: u64, cache: Arc<Cache>) -> Self {
        Self { segment_bytes, cache, open_files_max: 64 }
    }
}

/// The partitions of one shard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionStore<E: Env> {
    _env: E,
}

/// The segments as they were at one position; see [`PartitionStore::prepare_checkpoint`].
#[derive(Clone, Debug)]
pub struct SegmentView {}

/// While one is held, no file of a dropped partition is removed: another replica may be fetching it.
#[derive(Debug)]
pub struct Pin {}

#[allow(unused_variables, clippy::unused_async)]
impl<E: Env> PartitionStore<E> {
    /// Opens the partitions in `dir` (one directory for each shard; made when missing) as the last checkpoint lists them: segments are cut to its lengths and
    /// what it does not list is removed, all of which a replay of the journal makes again. Without a checkpoint the store starts empty.
    /// Takes no longer when there is more data, only when there are more segments. Starts a task that writes behind `apply`.
    ///
    /// # Errors
    /// `Damaged` when a segment is missing or shorter than the checkpoint says.
    pub async fn open(
        env: E,
        dir: &Path,
        options: StoreOptions,
        manifest: Option<&Manifest>,
    ) -> Result<Self, StartError> {
        todo!()
    }
    /// Applies an effect of an entry with this payload, in memory. Effects that do not concern logs are ignored. Never waits.
    ///
    /// # Errors
    /// The effect contradicts the log (a violated invariant), or the store has failed: the shard must stop on this node.
    pub fn apply(&self, effect: &Effect, payload: &Bytes) -> Result<(), String> {
        todo!()
    }
    /// Waits while too much (more than 64 MiB) is in memory only, because the disk is slower than the log. To be awaited before an entry is applied.
    pub async fn writable(&self) {
        todo!()
    }
    /// The log of a partition.
    #[must_use]
    pub fn log(&self, topic_id: TopicId, partition: u32) -> Option<PartitionLog<E>> {
        todo!()
    }
    /// Writes everything applied so far to the segment files, without syncing them.
    pub async fn flush(&self) -> io::Result<()> {
        todo!()
    }
    /// Why the store cannot go on: its disk failed.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        todo!()
    }
    /// Notes the length of every segment as of now. To be called while nothing is being applied, together with the state machine's snapshot; takes about a millisecond for 10,000 segments.
    #[must_use]
    pub fn prepare_checkpoint(&self) -> SegmentView {
        todo!()
    }
    /// Makes the view's segments durable and lists them, for [`Manifest::segments`]. Syncs only what was touched since the last time. After an error the shard must stop.
    pub async fn sync_for(&self, view: &SegmentView) -> io::Result<Vec<SegmentEntry>> {
        todo!()
    }
    /// To be called when the checkpoint made from `view` is durable: files of partitions that it no longer has are removed.
    pub async fn checkpointed(&self, view: SegmentView) {
        todo!()
    }
    /// Keeps files of dropped partitions from being removed; for as long as another replica fetches a checkpoint from here. Take it before reading the manifest to be sent.
    #[must_use]
    pub fn pin(&self) -> Pin {
        todo!()
    }
    /// Up to `len` bytes (at most 4 MiB) of a segment of the last checkpoint, for a replica that fetches it; fewer at the end of what is written.
    /// `NotFound` when there is no such segment any more.
    pub async fn read_chunk(&self, segment: &SegmentName, offset: u64, len: usize) -> io::Result<Bytes> {
        todo!()
    }
    /// Writes what is in memory and stops the background task. Nothing may be applied afterwards.
    pub async fn close(&self) {
        todo!()
    }
}
