//! Removing the files of partitions and segments that are gone.
//!
//! The last durable checkpoint may list them still, and other replicas may be fetching it: so they wait until a checkpoint that does not list them is durable,
//! and until nobody holds a [`Pin`](super::store::Pin), or one of the partition. To remove the files of a large topic takes seconds. Nothing else of the store waits for that, but what puts
//! other files in their place.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lockstep_core::TopicId;
use lockstep_env::{Disk, Env};

use crate::storage::segment::{PartitionKey, SegmentName};
use crate::storage::state::Partition;
use crate::storage::store::{Inner, PartitionStore, SegmentView, lock};

/// Partitions and segments that are gone but whose files may still be listed by the last durable checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    /// How many were dropped in all.
    count: u64,
    /// With their number; a checkpoint whose view has seen more drops does not list them.
    waiting: Vec<(u64, Gone)>,
    /// Their files may go, the first ones first.
    removable: VecDeque<Gone>,
    /// Its files are being removed.
    removing: Option<Gone>,
    /// How many need the files of a partition.
    pinned: BTreeMap<PartitionKey, usize>,
}

/// While one is held, no file of a partition is removed: who reads one segment after the other for hours keeps nobody else's room.
#[derive(Debug)]
pub(crate) struct PartitionPin<E: Env> {
    inner: Arc<Inner<E>>,
    key: PartitionKey,
}

impl<E: Env> Drop for PartitionPin<E> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut pinned) = lock(&self.inner.dropped).pinned.entry(self.key) {
            *pinned.get_mut() -= 1;
            if *pinned.get() == 0 {
                pinned.remove();
            }
        }
    }
}

/// What was dropped.
#[derive(Clone, Debug)]
pub(crate) enum Gone {
    Partition(Arc<Partition>),
    /// A segment of which nothing can be read any more, and the generation of the partition's files then.
    Segment(Arc<Partition>, SegmentName, u64),
}

impl Gone {
    fn key(&self) -> PartitionKey {
        match self {
            Self::Partition(partition) | Self::Segment(partition, ..) => partition.key,
        }
    }

    fn partition(&self) -> Option<&Arc<Partition>> {
        match self {
            Self::Partition(partition) => Some(partition),
            Self::Segment(..) => None,
        }
    }
}

impl Dropped {
    /// How many were dropped so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// A checkpoint that was prepared before this lists it with all it had.
    pub(crate) fn wait(&mut self, gone: Gone) {
        self.waiting.push((self.count, gone));
        self.count += 1;
    }

    /// Its files may go.
    pub(crate) fn release(&mut self, gone: Gone) {
        self.removable.push_back(gone);
    }

    /// A partition whose files are here still.
    pub(crate) fn partition(&self, key: PartitionKey) -> Option<Arc<Partition>> {
        let waiting = self.waiting.iter().map(|(_, gone)| gone);
        let mut all = waiting.chain(&self.removable).chain(&self.removing).filter_map(Gone::partition);
        all.find(|gone| gone.key == key).cloned()
    }
}

impl<E: Env> PartitionStore<E> {
    /// To be called when the checkpoint made from `view` is durable: files of partitions and segments that it no longer has are removed
    /// behind. Nobody waits for that, who keeps other shards from their checkpoints meanwhile.
    pub async fn checkpointed(&self, view: SegmentView) {
        {
            let mut dropped = lock(&self.inner.dropped);
            let (gone, waiting): (Vec<_>, Vec<_>) =
                std::mem::take(&mut dropped.waiting).into_iter().partition(|(number, _)| *number < view.drops);
            dropped.waiting = waiting;
            dropped.removable.extend(gone.into_iter().map(|(_, gone)| gone));
        }
        self.inner.remove_dropped_behind();
        self.forget_fetched().await;
    }

    /// Keeps the files of this partition from being removed, those of its deleted and replaced segments too.
    pub(crate) fn pin_partition(&self, topic_id: TopicId, partition: u32) -> PartitionPin<E> {
        let key = PartitionKey { topic_id, partition };
        *lock(&self.inner.dropped).pinned.entry(key).or_default() += 1;
        PartitionPin { inner: Arc::clone(&self.inner), key }
    }

    /// Do files wait for the next checkpoint before they can be removed?
    #[must_use]
    pub fn removal_awaits_checkpoint(&self) -> bool {
        !lock(&self.inner.dropped).waiting.is_empty()
    }
}

impl<E: Env> Inner<E> {
    /// Lets files go: those of these partitions, which were taken out of the map, and of all that was dropped.
    pub(crate) fn removable(&self, partitions: Vec<Arc<Partition>>) {
        let mut dropped = lock(&self.dropped);
        let waiting = std::mem::take(&mut dropped.waiting);
        dropped.removable.extend(waiting.into_iter().map(|(_, gone)| gone));
        dropped.removable.extend(partitions.into_iter().map(Gone::Partition));
    }

    /// As [`Inner::remove_dropped`], without waiting for it.
    pub(crate) fn remove_dropped_behind(self: &Arc<Self>) {
        let is_idle = self.removing.try_lock().is_ok();
        if is_idle && self.next_removable().is_some() {
            let inner = Arc::clone(self);
            drop(E::spawn(async move { inner.remove_dropped().await }));
        }
    }

    /// Removes the files of what was dropped and no checkpoint lists, unless they are pinned.
    pub(crate) async fn remove_dropped(&self) {
        let _removing = self.removing.lock().await;
        while let Some(gone) = self.next_removable() {
            match gone {
                Gone::Partition(partition) => self.remove_partition(&partition).await,
                Gone::Segment(partition, name, generation) => self.remove_segment(&partition, name, generation).await,
            }
            lock(&self.dropped).removing = None;
        }
    }

    /// What is to be removed next. It is known as dropped until that is done: no partition of its name can be made meanwhile.
    fn next_removable(&self) -> Option<Gone> {
        let mut dropped = lock(&self.dropped);
        if Arc::strong_count(&self.pins) > 1 || self.closed.load(Ordering::Acquire) {
            return None;
        }
        if dropped.removing.is_none() {
            let is_free = |gone: &Gone| !dropped.pinned.contains_key(&gone.key());
            let next = dropped.removable.iter().position(is_free);
            dropped.removing = next.and_then(|next| dropped.removable.remove(next));
        }
        dropped.removing.clone()
    }

    async fn remove_partition(&self, partition: &Partition) {
        let key = partition.key;
        let open: Vec<_> = {
            // Whoever is writing to it, or putting a compacted segment there, is done then; whoever comes later finds it dropped, with nothing to write.
            let _writing = self.writing.lock().await;
            let mut state = partition.lock();
            self.forget_tail(&mut state);
            state.segments_with_files().map(|segment| (segment.entry.name, state.generation)).collect()
        };
        // And whoever makes an index there.
        self.indexing.passed(key).await;
        for (name, generation) in open {
            self.forget_segment(name, generation);
        }
        match self.env.disk().remove_dir_all(&self.directory(key)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next start tries again.
                tracing::warn!(partition = key.directory(), %error, "files of a deleted partition stay");
            }
            _ => {}
        }
    }

    /// Removes the files of a segment that was deleted, unless they were exchanged since then.
    async fn remove_segment(&self, partition: &Partition, name: SegmentName, generation: u64) {
        {
            // Whoever would write its index finds the segment gone, or is done with it.
            let _gate = self.indexing.enter(name).await;
            let _writing = self.writing.lock().await;
            if !partition.lock().forget_deleted(name, generation) {
                return;
            }
        }
        self.forget_segment(name, generation);
        for path in [self.log_path(name), self.index_path(name)] {
            match self.env.disk().remove_file(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // The next start tries again.
                    tracing::warn!(path = %path.display(), %error, "a file of deleted records stays");
                }
                _ => {}
            }
        }
    }

    /// Its file is closed now, so that the system does not keep what it took when it is removed.
    fn forget_segment(&self, name: SegmentName, generation: u64) {
        lock(&self.files).remove((name, generation));
        lock(&self.indexes).remove((name, generation));
        lock(&self.without_index).remove(&(name, generation));
    }
}
