//! The node-wide budget for recently appended batches.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::storage::state::Partition;

/// Appends to one partition are noted together up to so many bytes.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// How many bytes of already written batches all partitions of a node may keep in memory; the oldest go first.
/// Batches that are not written yet are kept in any case.
#[derive(Debug)]
pub struct Cache {
    bytes_max: u64,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    bytes: u64,
    /// Oldest first.
    notes: VecDeque<Note>,
}

#[derive(Debug)]
struct Note {
    partition: Weak<Partition>,
    /// Batches that end here or before may go when the note goes.
    next_offset: i64,
    bytes: u64,
}

impl Cache {
    /// A cache of `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, recent: Mutex::default() })
    }

    /// Notes an append, and lets go of the oldest batches that no longer fit. No lock of a partition may be held.
    pub(crate) fn note(&self, partition: &Arc<Partition>, next_offset: i64, bytes: u64) {
        let mut gone = Vec::new();
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.bytes += bytes;
            match recent.notes.back_mut() {
                Some(last)
                    if std::ptr::eq(last.partition.as_ptr(), Arc::as_ptr(partition))
                        && last.bytes + bytes <= NOTE_BYTES_MAX =>
                {
                    last.next_offset = next_offset;
                    last.bytes += bytes;
                }
                _ => recent.notes.push_back(Note { partition: Arc::downgrade(partition), next_offset, bytes }),
            }
            while recent.bytes > self.bytes_max {
                let Some(note) = recent.notes.pop_front() else { break };
                recent.bytes -= note.bytes;
                gone.push(note);
            }
        }
        for note in gone {
            if let Some(partition) = note.partition.upgrade() {
                partition.lock().evict(note.next_offset);
            }
        }
    }
}
