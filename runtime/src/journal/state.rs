//! What the handles, the writer and the keeper of the files share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lockstep_core::{Position, ShardId};
use lockstep_env::{Disk, Env};
use tokio::sync::Notify;

use super::JournalOptions;
use super::format::{RECORD_BYTES, file_name};
use super::index::{Payload, ShardIndex};
use super::mark::Extent;
use crate::histogram::Histogram;

/// An open file of an environment's disk.
pub(super) type FileOf<E> = <<E as Env>::Disk as Disk>::File;

/// Called once with the outcome.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What waits for the writer, in order.
pub(super) enum Op {
    /// Write an entry. The ticket names this append of it.
    Entry { shard: ShardId, position: Position, payload: Payload, len: u32, crc: u32, ticket: u64 },
    /// Write an entry that the file `from` holds once more, so that `from` is no longer needed for it.
    Carry { shard: ShardId, position: Position, payload: Bytes, crc: u32, from: u64 },
    /// The log ends here now.
    Truncate { shard: ShardId, last: Option<Position> },
    /// Entries up to here are dropped.
    Purge { shard: ShardId, upto: Position },
    /// The vote.
    Vote { shard: ShardId, vote: Bytes },
    /// Everything before it is durable once it is reached.
    Done { done: Done, deferred: bool },
}

impl Op {
    /// Bytes of its payload.
    pub(super) fn payload_bytes(&self) -> u64 {
        match self {
            Self::Entry { len, .. } => u64::from(*len),
            Self::Carry { payload, .. } => payload.len() as u64,
            Self::Vote { vote, .. } => vote.len() as u64,
            Self::Truncate { .. } | Self::Purge { .. } | Self::Done { .. } => 0,
        }
    }

    /// Bytes that it takes in a batch.
    pub(super) fn batch_bytes(&self) -> u64 {
        match self {
            Self::Done { .. } => 0,
            _ => RECORD_BYTES as u64 + self.payload_bytes(),
        }
    }
}

/// A file that holds records.
#[derive(Debug)]
pub(super) struct JournalFile<F> {
    pub(super) file: F,
    pub(super) len: u64,
}

/// A file that waits to be used.
#[derive(Debug)]
pub(super) struct SpareFile<F> {
    pub(super) path: PathBuf,
    pub(super) file: F,
    pub(super) len: u64,
}

/// Everything behind the lock.
pub(super) struct State<F> {
    pub(super) shards: BTreeMap<ShardId, ShardIndex>,
    /// What the writer has not taken yet. Its memory is bounded by whoever appends: openraft has a bounded number of entries under way
    /// until `done` is called, and in `Durability::Replicated` calls wait once `unwritten_bytes` is large.
    pub(super) queue: VecDeque<Op>,
    /// Bytes in `queue` and in the batch that is being written.
    pub(super) unwritten_bytes: u64,
    /// `Done` ops in `queue`, or in the batch being written, that would have been called at once had the queue been shorter.
    pub(super) deferred: usize,
    /// Shards whose committed position was saved since it was written last.
    pub(super) committed_unwritten: BTreeSet<ShardId>,
    /// Files that hold records, by generation; the last one is being written.
    pub(super) files: BTreeMap<u64, JournalFile<F>>,
    /// Entries in the oldest file, by shard. Empty while it is the only one.
    pub(super) pins: Vec<(ShardId, Extent)>,
    /// Files that nothing needs any more, oldest first.
    pub(super) freed: VecDeque<(u64, JournalFile<F>)>,
    pub(super) spares: Vec<SpareFile<F>>,
    /// How many bytes a second went into the file before the one that is being written.
    pub(super) bytes_per_second: u64,
    /// Number of the next spare file.
    pub(super) next_spare: u64,
    /// The writer waits for one.
    pub(super) spare_wanted: bool,
    /// Why there is none: nobody tries again until the writer asks.
    pub(super) spare_error: Option<String>,
    /// Entries of the oldest file are being carried to the newest one; the generation of the oldest.
    pub(super) carrying: Option<u64>,
    /// Ticket of the next append.
    pub(super) next_ticket: u64,
    pub(super) closing: bool,
    pub(super) failed: Option<String>,
    /// Tasks that still run.
    pub(super) tasks: usize,
}

/// What the tasks and the handles share.
pub(super) struct Inner<E: Env> {
    pub(super) env: E,
    pub(super) dir: PathBuf,
    pub(super) options: JournalOptions,
    pub(super) histogram: Arc<Histogram>,
    state: Mutex<State<FileOf<E>>>,
    /// There is something to write, or the journal closes.
    pub(super) wake_writer: Notify,
    /// There is something to do about files, or the journal closes.
    pub(super) wake_keeper: Notify,
    /// A spare file was added, or could not be.
    pub(super) spare_changed: Notify,
    /// A task has stopped.
    pub(super) task_stopped: Notify,
}

impl<E: Env> Inner<E> {
    pub(super) fn new(env: E, dir: &Path, options: JournalOptions, state: State<FileOf<E>>) -> Self {
        Self {
            env,
            dir: dir.to_path_buf(),
            options,
            histogram: Arc::new(Histogram::new()),
            state: Mutex::new(state),
            wake_writer: Notify::new(),
            wake_keeper: Notify::new(),
            spare_changed: Notify::new(),
            task_stopped: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<FileOf<E>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, generation: u64) -> PathBuf {
        self.dir.join(file_name(generation))
    }

    /// Nothing is accepted any more; the tasks stop when they are through.
    pub(super) fn begin_close(&self) {
        self.lock().closing = true;
        self.wake_tasks();
    }

    fn wake_tasks(&self) {
        self.wake_writer.notify_one();
        self.wake_keeper.notify_one();
        self.spare_changed.notify_one();
    }

    /// The journal has failed for good: whoever waits is told. Only the first reason is kept.
    pub(super) fn fail(&self, reason: &str) {
        let queue = {
            let mut state = self.lock();
            if state.failed.is_none() {
                tracing::error!(dir = %self.dir.display(), reason, "the journal has failed");
                state.failed = Some(reason.to_owned());
            }
            std::mem::take(&mut state.queue)
        };
        self.wake_tasks();
        for op in queue {
            if let Op::Done { done, .. } = op {
                done(Err(io::Error::other(reason.to_owned())));
            }
        }
    }

    /// A task is about to end.
    pub(super) fn stop_task(&self) {
        self.lock().tasks -= 1;
        self.wake_keeper.notify_one();
        self.task_stopped.notify_waiters();
    }
}

impl<F> State<F> {
    /// Fails when the journal takes no more calls.
    pub(super) fn check_open(&self) -> io::Result<()> {
        match &self.failed {
            Some(reason) => Err(io::Error::other(reason.clone())),
            None if self.closing => Err(io::Error::other("the journal is closed")),
            None => Ok(()),
        }
    }

    /// Hands an op to the writer.
    pub(super) fn enqueue(&mut self, op: Op) {
        self.unwritten_bytes += op.batch_bytes();
        self.queue.push_back(op);
    }

    /// Is a spare file to be prepared? That it could not be is told once, and tried again when the writer asks.
    pub(super) fn wants_spare(&self) -> bool {
        self.spares.is_empty() && self.spare_error.is_none()
    }

    /// How long the journal is, without what nothing needs any more.
    pub(super) fn bytes_of_files(&self) -> u64 {
        self.files.values().map(|file| file.len).sum()
    }

    /// What the shards need that have entries in the oldest file: there and in later ones.
    pub(super) fn bytes_of_pinning_shards(&self) -> u64 {
        let pinning: BTreeSet<ShardId> = self.pins.iter().map(|(shard, _)| *shard).collect();
        pinning.iter().filter_map(|shard| self.shards.get(shard)).map(ShardIndex::held_bytes).sum()
    }
}
