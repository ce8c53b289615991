//! Segments that may be damaged, to be looked at by the shard's repairer (`raft/repair.rs`).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::storage::segment::SegmentName;
use crate::storage::store::lock;

/// Who suspects a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoundBy {
    /// The scrub compared it with its checksum.
    Scrub,
    /// A read met a batch that is no good, or a file that could not be read.
    Reader,
    /// Another replica fetched it from here and found that its checksum was wrong.
    Peer,
    /// A compaction took effect before its files were here.
    Compaction,
    /// A start did not find a file of a compaction.
    Start,
}

impl FoundBy {
    /// It is no surprise that the file is not here.
    pub(crate) fn is_expected(self) -> bool {
        matches!(self, Self::Compaction | Self::Start)
    }

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scrub => "scrub",
            Self::Reader => "reader",
            Self::Peer => "peer",
            Self::Compaction => "compaction",
            Self::Start => "start",
        }
    }
}

/// What is suspected in one store. Each segment at most once, so there are never more than the store has segments.
#[derive(Debug, Default)]
pub(crate) struct Suspicions {
    waiting: Mutex<BTreeMap<SegmentName, FoundBy>>,
    added: Notify,
}

impl Suspicions {
    pub(crate) fn add(&self, name: SegmentName, by: FoundBy) {
        let newly = match lock(&self.waiting).entry(name) {
            std::collections::btree_map::Entry::Vacant(vacant) => {
                vacant.insert(by);
                true
            }
            std::collections::btree_map::Entry::Occupied(_) => false,
        };
        if newly {
            self.added.notify_one();
        }
    }

    /// Everything that is suspected now; the caller looks at it.
    pub(crate) fn take(&self) -> BTreeMap<SegmentName, FoundBy> {
        std::mem::take(&mut lock(&self.waiting))
    }

    /// Completes when something was added since the last call; a wake-up before the wait is not lost.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }
}

/// What checking and repairing segments came to since the start.
#[derive(Debug, Default)]
pub(crate) struct ScrubCounters {
    pub(crate) segments: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) repaired: AtomicU64,
}

/// What checking and repairing segments came to since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCounts {
    /// Segments that were compared with their checksums.
    pub segments: u64,
    /// Bytes of them that were read.
    pub bytes: u64,
    /// Segments that were found damaged.
    pub damaged: u64,
    /// Segments that were replaced by another node's copy.
    pub repaired: u64,
}

impl ScrubCounters {
    pub(crate) fn read(&self) -> ScrubCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ScrubCounts {
            segments: load(&self.segments),
            bytes: load(&self.bytes),
            damaged: load(&self.damaged),
            repaired: load(&self.repaired),
        }
    }
}

impl std::iter::Sum for ScrubCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, next| Self {
            segments: sum.segments + next.segments,
            bytes: sum.bytes + next.bytes,
            damaged: sum.damaged + next.damaged,
            repaired: sum.repaired + next.repaired,
        })
    }
}
