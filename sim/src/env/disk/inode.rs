//! The content of one file, and what of it a crash may take.
//!
//! There is one copy of the content. Every change that is not durable yet is kept with what it replaced, so that a sync has nothing to
//! copy but only forgets, and only a crash goes back.

use std::sync::Arc;

use bytes::Bytes;

use crate::env::{chance, random_below};

/// A torn write is torn at multiples of this.
const SECTOR_BYTES: usize = 512;

#[derive(Default)]
pub(super) struct Inode {
    content: Vec<u8>,
    /// What is not durable, oldest first.
    pending: Vec<Pending>,
    next: u64,
    /// Where the last write of something else than zeros began.
    last_write: usize,
    /// Held by every open handle too.
    pub(super) handles: Arc<()>,
}

struct Pending {
    number: u64,
    change: Change,
}

enum Change {
    Write {
        offset: usize,
        new: Bytes,
        /// What was there, as far as the file went.
        old: Vec<u8>,
        len_before: usize,
    },
    SetLen {
        len: usize,
        len_before: usize,
        /// What was cut off.
        cut: Vec<u8>,
    },
    /// A write whose sync failed: programs still see it, but it is not going to be written, unless it was already. As long as `new`.
    Doomed { offset: usize, new: Vec<u8>, old: Vec<u8> },
}

/// Writes bytes; the content grows with zeros as needed.
fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

/// Writes those bytes that lie within the content.
fn put_inside(content: &mut [u8], offset: usize, bytes: &[u8]) {
    let end = content.len().min(offset + bytes.len());
    if offset < end {
        content[offset..end].copy_from_slice(&bytes[..end - offset]);
    }
}

impl Inode {
    pub(super) fn content(&self) -> &[u8] {
        &self.content
    }

    pub(super) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    fn push(&mut self, change: Change) {
        self.pending.push(Pending { number: self.next, change });
        self.next += 1;
    }

    pub(super) fn write(&mut self, offset: usize, new: Bytes) {
        let len_before = self.content.len();
        let old_end = len_before.min(offset + new.len());
        let old = self.content.get(offset..old_end).unwrap_or_default().to_vec();
        put(&mut self.content, offset, &new);
        self.push(Change::Write { offset, new, old, len_before });
    }

    /// Notes where a write of several pieces began. One of zeros only makes room.
    pub(super) fn note_write(&mut self, offset: usize, is_zeros: bool) {
        if !is_zeros {
            self.last_write = offset;
        }
    }

    pub(super) fn set_len(&mut self, len: usize) {
        let len_before = self.content.len();
        let cut = self.content.get(len..).unwrap_or_default().to_vec();
        self.content.resize(len, 0);
        self.push(Change::SetLen { len, len_before, cut });
    }

    /// A sync that begins now covers the changes with smaller numbers.
    pub(super) fn covered(&self) -> u64 {
        self.next
    }

    /// The changes below `covered` are durable.
    pub(super) fn sync(&mut self, covered: u64) {
        if !self.pending.iter().any(|pending| matches!(pending.change, Change::Doomed { .. })) {
            let count = self.pending.partition_point(|pending| pending.number < covered);
            self.pending.drain(..count);
            return;
        }
        let mut kept: Vec<Pending> = Vec::new();
        for pending in std::mem::take(&mut self.pending) {
            match &pending.change {
                Change::Write { offset, new, .. } if pending.number < covered => overwrite(&mut kept, *offset, new),
                Change::SetLen { len, .. } if pending.number < covered => cut_off(&mut kept, *len),
                _ => kept.push(pending),
            }
        }
        self.pending = kept;
    }

    /// The sync of the changes below `covered` failed: what they wrote is forgotten as if it were durable, as Linux does. The length
    /// of the file is durable all the same, by the file system's journal.
    pub(super) fn fail_sync(&mut self, covered: u64) {
        let mut kept: Vec<Pending> = Vec::new();
        for pending in std::mem::take(&mut self.pending) {
            let Pending { number, change } = pending;
            match change {
                Change::Write { offset, new, mut old, .. } if number < covered => {
                    old.resize(new.len(), 0);
                    kept.push(Pending { number, change: Change::Doomed { offset, new: new.to_vec(), old } });
                }
                Change::SetLen { len, .. } if number < covered => cut_off(&mut kept, len),
                change => kept.push(Pending { number, change }),
            }
        }
        self.pending = kept;
    }

    /// What a power cut leaves: of every write that was not synced, any of its sectors.
    pub(super) fn crash(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for Pending { change, .. } in pending.iter().rev() {
            match change {
                Change::Write { offset, old, len_before, .. } => {
                    put_inside(&mut self.content, *offset, old);
                    self.content.truncate(*len_before);
                }
                Change::SetLen { len, len_before, cut } => {
                    self.content.resize(*len_before, 0);
                    put_inside(&mut self.content, *len, cut);
                }
                Change::Doomed { offset, old, .. } => put_inside(&mut self.content, *offset, old),
            }
        }
        for Pending { change, .. } in pending {
            let (offset, new, grows) = match change {
                Change::SetLen { len, .. } => {
                    if chance(500) {
                        self.content.resize(len, 0);
                    }
                    continue;
                }
                Change::Write { offset, new, .. } => (offset, new, true),
                Change::Doomed { offset, new, .. } => (offset, Bytes::from(new), false),
            };
            let fate = random_below(3);
            for (sector, bytes) in new.chunks(SECTOR_BYTES).enumerate() {
                let at = offset + sector * SECTOR_BYTES;
                match fate == 0 || (fate == 1 && chance(500)) {
                    true if grows => put(&mut self.content, at, bytes),
                    true => put_inside(&mut self.content, at, bytes),
                    false => {}
                }
            }
        }
    }

    /// Flips a bit of a durable byte drawn at random, preferably one that is not zero; where it is. `None` when there are no such bytes.
    /// `before_last_write`: of one that lies before what was written last.
    pub(super) fn flip_bit(&mut self, before_last_write: bool) -> Option<usize> {
        let limit = if before_last_write { self.last_write.min(self.content.len()) } else { self.content.len() };
        let is_durable = |at: usize| {
            !self.pending.iter().any(|pending| match &pending.change {
                Change::Write { offset, new, .. } => (*offset..offset + new.len()).contains(&at),
                Change::Doomed { offset, new, .. } => (*offset..offset + new.len()).contains(&at),
                Change::SetLen { len, len_before, .. } => at >= *len.min(len_before),
            })
        };
        let mut zero = None;
        for _ in 0..64 {
            let at = usize::try_from(random_below(limit as u64)).ok()?;
            if limit == 0 || !is_durable(at) {
                continue;
            }
            zero = Some(at);
            if self.content[at] != 0 {
                break;
            }
        }
        let at = zero?;
        self.content[at] ^= 1 << random_below(8);
        Some(at)
    }
}

/// A durable write lies over what was doomed before it, whatever becomes of that.
fn overwrite(before: &mut [Pending], offset: usize, bytes: &[u8]) {
    for pending in before {
        if let Change::Doomed { offset: doomed_at, new, old } = &mut pending.change {
            let from = offset.max(*doomed_at);
            let to = (offset + bytes.len()).min(*doomed_at + new.len());
            if from < to {
                let durable = &bytes[from - offset..to - offset];
                new[from - *doomed_at..to - *doomed_at].copy_from_slice(durable);
                old[from - *doomed_at..to - *doomed_at].copy_from_slice(durable);
            }
        }
    }
}

/// The file was durably cut here: nothing that was doomed before comes back behind it.
fn cut_off(before: &mut [Pending], len: usize) {
    for pending in before {
        if let Change::Doomed { offset, new, old } = &mut pending.change {
            new.truncate(len.saturating_sub(*offset));
            old.truncate(len.saturating_sub(*offset));
        }
    }
}
