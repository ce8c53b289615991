//! A shard's log in memory: where every entry is, and the recent entries themselves.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lockstep_core::Position;

use super::format::RECORD_BYTES;
use super::mark::follows;

/// An entry's slices, one after another.
pub(super) type Payload = Arc<[Bytes]>;

/// The payload in one piece; copies only when there are several.
pub(super) fn joined(payload: &[Bytes]) -> Bytes {
    match payload {
        [] => Bytes::new(),
        [whole] => whole.clone(),
        slices => {
            let mut joined = BytesMut::with_capacity(slices.iter().map(Bytes::len).sum());
            slices.iter().for_each(|slice| joined.extend_from_slice(slice));
            joined.freeze()
        }
    }
}

/// Where an entry is held in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file.
    pub(super) generation: u64,
    /// Offset of the payload.
    pub(super) offset: u32,
    /// CRC32C of the payload.
    pub(super) crc: u32,
    /// What the entry costs in the files, with its share of its batch's header and padding.
    pub(super) charge: u32,
}

/// Marks a slot whose entry is not yet in a file; generations and tickets are smaller.
const PENDING: u64 = 1 << 63;

/// One entry: 32 bytes.
#[derive(Clone, Copy, Debug)]
struct Slot {
    term: u64,
    /// The generation, or `PENDING` and the ticket of the append that is under way.
    held_by: u64,
    offset: u32,
    len: u32,
    crc: u32,
    charge: u32,
}

/// What to do to read one entry.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// It is in memory.
    Memory(Payload),
    /// It is in a file.
    File {
        /// Where.
        place: Place,
        /// Its length.
        len: u32,
    },
}

/// A shard's log in memory.
#[derive(Debug, Default)]
pub(super) struct ShardIndex {
    pub(super) vote: Option<Bytes>,
    pub(super) committed: Option<Position>,
    purged: Option<Position>,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// Payloads of the last entries; the last of them belongs to the last slot.
    cached: VecDeque<Payload>,
    cached_bytes: usize,
    held_bytes: u64,
}

impl ShardIndex {
    /// Entries up to here are purged.
    pub(super) fn purged(&self) -> Option<Position> {
        self.purged
    }

    /// The last entry, or what was purged.
    pub(super) fn last(&self) -> Option<Position> {
        match self.slots.back() {
            Some(slot) => Some(Position { term: slot.term, index: self.first + (self.slots.len() as u64 - 1) }),
            None => self.purged,
        }
    }

    /// Is the entry at this position here and in a file? All before it are then too: they are written in order.
    pub(super) fn is_written(&self, position: Position) -> bool {
        self.slot_number(position.index).is_some_and(|number| {
            let slot = &self.slots[number];
            slot.term == position.term && slot.held_by & PENDING == 0
        })
    }

    /// Bytes that the entries take in the files.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// The part of them that those from `index` on take.
    pub(super) fn held_bytes_from(&self, index: u64) -> u64 {
        let number = match index.checked_sub(self.first) {
            None => 0,
            Some(number) => usize::try_from(number).unwrap_or(usize::MAX).min(self.slots.len()),
        };
        let charges =
            |slots: std::collections::vec_deque::Iter<'_, Slot>| slots.map(|slot| u64::from(slot.charge)).sum();
        // A log may have millions of entries: the shorter part is counted.
        if number < self.slots.len() / 2 {
            let before: u64 = charges(self.slots.range(..number));
            self.held_bytes - before
        } else {
            charges(self.slots.range(number..))
        }
    }

    fn slot_number(&self, index: u64) -> Option<usize> {
        let number = usize::try_from(index.checked_sub(self.first)?).ok()?;
        (number < self.slots.len()).then_some(number)
    }

    /// The term of the entry at `index`.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        self.slot_number(index).map(|number| self.slots[number].term)
    }

    fn push(&mut self, position: Position, slot: Slot) {
        assert!(follows(self.last(), position), "an entry must follow the one before it");
        if self.slots.is_empty() {
            self.first = position.index;
        }
        self.held_bytes += u64::from(slot.charge);
        self.slots.push_back(slot);
    }

    /// Adds an entry that is about to be written. It must follow [`ShardIndex::last`].
    pub(super) fn append(&mut self, position: Position, payload: Payload, len: u32, ticket: u64) {
        let charge = len + RECORD_BYTES as u32;
        let slot = Slot { term: position.term, held_by: PENDING | ticket, offset: 0, len, crc: 0, charge };
        self.push(position, slot);
        self.cached.push_back(payload);
        self.cached_bytes += len as usize;
    }

    /// Adds an entry that was found in a file. It must follow [`ShardIndex::last`].
    pub(super) fn restore(&mut self, position: Position, len: u32, place: Place) {
        self.push(position, Slot::at(position.term, len, place));
    }

    /// The append with this ticket is durable at `place`. Ignored when the entry was dropped meanwhile.
    pub(super) fn locate(&mut self, index: u64, ticket: u64, place: Place) {
        self.place(index, PENDING | ticket, place);
    }

    /// The entry, held by the file `from` until now, is also durable at `place`. Ignored when the entry was dropped meanwhile.
    pub(super) fn relocate(&mut self, index: u64, from: u64, place: Place) {
        self.place(index, from, place);
    }

    fn place(&mut self, index: u64, held_by: u64, place: Place) {
        let Some(number) = self.slot_number(index) else { return };
        let slot = &mut self.slots[number];
        if slot.held_by == held_by {
            self.held_bytes = self.held_bytes - u64::from(slot.charge) + u64::from(place.charge);
            *slot = Slot::at(slot.term, slot.len, place);
        }
    }

    /// Drops entries with a greater index and gives the new last position, or nothing when there was nothing to drop.
    pub(super) fn truncate_after(&mut self, index: Option<u64>) -> Option<Option<Position>> {
        let keep = match index {
            Some(index) if index >= self.first => {
                usize::try_from(index - self.first).unwrap_or(usize::MAX).saturating_add(1)
            }
            _ => 0,
        };
        if keep >= self.slots.len() {
            return None;
        }
        while self.slots.len() > keep {
            if let Some(slot) = self.slots.pop_back() {
                self.held_bytes -= u64::from(slot.charge);
                if self.cached.pop_back().is_some() {
                    self.cached_bytes -= slot.len as usize;
                }
            }
        }
        Some(self.last())
    }

    /// Drops entries up to `upto.index`. `false` when that much was purged before.
    pub(super) fn purge(&mut self, upto: Position) -> bool {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return false;
        }
        while !self.slots.is_empty() && self.first <= upto.index {
            self.pop_front();
        }
        self.purged = Some(upto);
        if self.slots.capacity() > 4 * self.slots.len().max(256) {
            self.slots.shrink_to(2 * self.slots.len());
        }
        true
    }

    fn pop_front(&mut self) {
        let Some(slot) = self.slots.pop_front() else { return };
        self.held_bytes -= u64::from(slot.charge);
        self.first = self.first.saturating_add(1);
        if self.cached.len() > self.slots.len() {
            self.cached.pop_front();
            self.cached_bytes -= slot.len as usize;
        }
    }

    /// Forgets the payloads of the oldest durable entries until at most `bytes_max` bytes are left, or an entry that is not durable.
    pub(super) fn shrink_cache(&mut self, bytes_max: usize) {
        while self.cached_bytes > bytes_max && !self.cached.is_empty() {
            let slot = &self.slots[self.slots.len() - self.cached.len()];
            if slot.held_by & PENDING != 0 {
                break;
            }
            self.cached_bytes -= slot.len as usize;
            self.cached.pop_front();
        }
    }

    /// How to read the entries from `from` on, up to `to_exclusive` and while they, with 32 bytes for each, take at most `bytes_max`
    /// bytes; the first one in any case.
    pub(super) fn sources(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> Vec<(Position, Source)> {
        let mut sources = Vec::new();
        let Some(number) = self.slot_number(from) else { return sources };
        let cached_from = self.slots.len() - self.cached.len();
        let mut bytes = 0;
        for (number, index) in (number..self.slots.len()).zip(from..to_exclusive) {
            let slot = &self.slots[number];
            bytes += slot.len as usize + RECORD_BYTES;
            if bytes > bytes_max && !sources.is_empty() {
                break;
            }
            let source = match number.checked_sub(cached_from) {
                Some(at) => Source::Memory(Arc::clone(&self.cached[at])),
                None => Source::File { place: slot.place(), len: slot.len },
            };
            sources.push((Position { term: slot.term, index }, source));
        }
        sources
    }

    /// Is the entry still held there?
    pub(super) fn is_at(&self, index: u64, place: Place) -> bool {
        self.slot_number(index).is_some_and(|number| self.slots[number].place() == place)
    }

    /// Bytes of the records from `first` to `last` that are still in the log, counted no further than to more than `enough`.
    pub(super) fn record_bytes(&self, first: u64, last: u64, enough: u64) -> u64 {
        let Some(end) = self.last() else { return 0 };
        let mut bytes = 0;
        for number in (first.max(self.first)..=last.min(end.index)).map_while(|index| self.slot_number(index)) {
            bytes += u64::from(self.slots[number].len) + RECORD_BYTES as u64;
            if bytes > enough {
                break;
            }
        }
        bytes
    }
}

impl Slot {
    fn at(term: u64, len: u32, place: Place) -> Self {
        Self { term, held_by: place.generation, offset: place.offset, len, crc: place.crc, charge: place.charge }
    }

    fn place(&self) -> Place {
        Place { generation: self.held_by, offset: self.offset, crc: self.crc, charge: self.charge }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(len: usize) -> Payload {
        Arc::from([Bytes::from(vec![7; len])])
    }

    fn place(generation: u64) -> Place {
        Place { generation, offset: 4096, crc: 1, charge: 200 }
    }

    fn append(index: &mut ShardIndex, from: u64, to: u64) {
        for i in from..to {
            index.append(Position { term: 1, index: i }, payload(100), 100, i);
        }
    }

    #[test]
    fn a_slot_takes_32_bytes() {
        assert_eq!(size_of::<Slot>(), 32);
    }

    #[test]
    fn only_durable_entries_leave_the_cache() {
        let mut index = ShardIndex::default();
        append(&mut index, 0, 10);
        index.shrink_cache(0);
        assert_eq!(index.cached.len(), 10);
        for i in 0..4 {
            index.locate(i, i, place(1));
        }
        index.shrink_cache(700);
        assert_eq!(index.cached.len(), 7);
        index.shrink_cache(0);
        assert_eq!(index.cached.len(), 6);
        let sources = index.sources(2, 6, usize::MAX);
        assert!(matches!(
            sources.as_slice(),
            [(_, Source::File { .. }), (_, Source::File { .. }), (_, Source::Memory(_)), (_, Source::Memory(_))]
        ));
        assert_eq!(index.held_bytes(), 4 * 200 + 6 * 132);
    }

    #[test]
    fn bytes_are_counted_from_an_entry_on() {
        let mut index = ShardIndex::default();
        assert_eq!(index.held_bytes_from(0), 0);
        append(&mut index, 0, 10);
        index.purge(Position { term: 1, index: 3 });
        for (from, entries) in [(0, 6), (4, 6), (5, 5), (6, 4), (8, 2), (9, 1), (10, 0), (99, 0)] {
            assert_eq!(index.held_bytes_from(from), entries * 132, "from {from}");
        }
    }

    #[test]
    fn an_append_that_was_replaced_is_not_located() {
        let mut index = ShardIndex::default();
        append(&mut index, 0, 3);
        assert_eq!(index.truncate_after(Some(0)), Some(Some(Position { term: 1, index: 0 })));
        index.append(Position { term: 2, index: 1 }, payload(50), 50, 77);
        index.locate(1, 1, place(1));
        assert!(!index.is_at(1, place(1)));
        index.locate(1, 77, place(2));
        assert!(index.is_at(1, place(2)));
    }

    #[test]
    fn purge_and_truncate_keep_the_counts_true() {
        let mut index = ShardIndex::default();
        append(&mut index, 0, 10);
        assert!(index.purge(Position { term: 1, index: 3 }));
        assert!(!index.purge(Position { term: 1, index: 3 }));
        assert_eq!(index.truncate_after(Some(9)), None);
        assert_eq!(index.truncate_after(None), Some(Some(Position { term: 1, index: 3 })));
        assert_eq!((index.held_bytes(), index.cached_bytes, index.cached.len()), (0, 0, 0));
        assert!(index.purge(Position { term: 3, index: 50 }));
        index.append(Position { term: 3, index: 51 }, payload(1), 1, 1);
        assert_eq!(index.sources(51, 60, 0).len(), 1);
        assert_eq!(index.sources(50, 60, 0).len(), 0);
        assert_eq!(index.sources(52, 60, 0).len(), 0);
    }
}
