//! What the records written so far say about a shard.

use bytes::Bytes;
use lockstep_core::Position;

/// A run of entries held by one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The file.
    pub(super) generation: u64,
    /// Index of the first entry.
    pub(super) first: u64,
    /// Index of the last entry.
    pub(super) last: u64,
}

/// A shard as the records say, in the order in which they are written, without the entries themselves. The writer keeps one to know
/// what a new file must begin with and which files are still needed; recovery keeps one to check every record.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark {
    /// The vote.
    pub(super) vote: Option<Bytes>,
    /// Entries up to here are purged.
    pub(super) purged: Option<Position>,
    /// Entries up to here are committed.
    pub(super) committed: Option<Position>,
    /// The last entry, or `purged` when there is none.
    pub(super) last: Option<Position>,
    /// Which file holds which entries, ascending by index.
    extents: Vec<Extent>,
}

impl Mark {
    /// The entry at `position` is written to a file.
    pub(super) fn append(&mut self, generation: u64, position: Position) -> Result<(), &'static str> {
        if !follows(self.last, position) {
            return Err("an entry does not follow the one before it");
        }
        self.last = Some(position);
        match self.extents.last_mut() {
            Some(extent) if extent.generation == generation && extent.last.checked_add(1) == Some(position.index) => {
                extent.last = position.index;
            }
            _ => self.extents.push(Extent { generation, first: position.index, last: position.index }),
        }
        Ok(())
    }

    /// The log is cut to end at `last`.
    pub(super) fn truncate(&mut self, last: Option<Position>) -> Result<(), &'static str> {
        let inside = match (self.purged, last, self.last) {
            (None, None, _) => true,
            (Some(purged), Some(last), Some(end)) if last.index == purged.index => last == purged && last <= end,
            (purged, Some(last), Some(end)) => {
                purged.is_none_or(|purged| purged.index < last.index)
                    && last.index <= end.index
                    && last.term <= end.term
            }
            _ => false,
        };
        if !inside {
            return Err("a log is truncated to where it never was");
        }
        self.last = last;
        self.extents.retain_mut(|extent| match last {
            Some(last) => {
                extent.last = extent.last.min(last.index);
                extent.first <= extent.last
            }
            None => false,
        });
        Ok(())
    }

    /// Entries up to `upto` are dropped.
    pub(super) fn purge(&mut self, upto: Position) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        self.purged = Some(upto);
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
        self.extents.retain_mut(|extent| {
            extent.first = extent.first.max(upto.index.saturating_add(1));
            extent.last > upto.index
        });
    }

    /// The entry at `index` is written once more, to a newer file.
    pub(super) fn carry(&mut self, generation: u64, index: u64) -> Result<(), &'static str> {
        if self.purged.is_some_and(|purged| index <= purged.index) || self.last.is_none_or(|last| index > last.index) {
            return Err("an entry is carried that is not in the log");
        }
        let mut at = self.extents.partition_point(|extent| extent.last < index);
        if let Some(extent) = self.extents.get(at).copied().filter(|extent| extent.first <= index) {
            let before = (extent.first < index).then(|| Extent { last: index - 1, ..extent });
            let after = (index < extent.last).then(|| Extent { first: index + 1, ..extent });
            self.extents.splice(at..=at, before.into_iter().chain(after));
            at += usize::from(before.is_some());
        }
        match at.checked_sub(1).and_then(|at| self.extents.get_mut(at)) {
            Some(extent) if extent.generation == generation && extent.last + 1 == index => extent.last = index,
            _ => self.extents.insert(at, Extent { generation, first: index, last: index }),
        }
        Ok(())
    }

    /// The file that holds the entry at `index`.
    pub(super) fn generation_of(&self, index: u64) -> Option<u64> {
        let at = self.extents.partition_point(|extent| extent.last < index);
        self.extents.get(at).filter(|extent| extent.first <= index).map(|extent| extent.generation)
    }

    /// The oldest file that holds entries of this shard.
    pub(super) fn oldest_generation(&self) -> Option<u64> {
        self.extents.iter().map(|extent| extent.generation).min()
    }

    /// The runs of entries that a file holds.
    pub(super) fn extents_in(&self, generation: u64) -> impl Iterator<Item = Extent> {
        self.extents.iter().filter(move |extent| extent.generation == generation).copied()
    }
}

/// May `position` follow `last` in a log? An empty log that was never purged may begin anywhere.
pub(super) fn follows(last: Option<Position>, position: Position) -> bool {
    last.is_none_or(|last| last.index.checked_add(1) == Some(position.index) && last.term <= position.term)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: u64, index: u64) -> Position {
        Position { term, index }
    }

    fn extents(mark: &Mark) -> Vec<(u64, u64, u64)> {
        mark.extents.iter().map(|extent| (extent.generation, extent.first, extent.last)).collect()
    }

    fn with_entries() -> Mark {
        let mut mark = Mark::default();
        for (generation, index) in [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4), (3, 5)] {
            mark.append(generation, at(1, index)).unwrap();
        }
        mark
    }

    #[test]
    fn entries_follow_each_other() {
        let mut mark = with_entries();
        assert_eq!(extents(&mark), [(1, 0, 2), (2, 3, 4), (3, 5, 5)]);
        assert!(mark.append(3, at(1, 7)).is_err());
        assert!(mark.append(3, at(1, 5)).is_err());
        assert!(mark.append(3, at(0, 6)).is_err());
        assert!(mark.append(3, at(2, 6)).is_ok());
        let mut end = Mark { last: Some(at(1, u64::MAX)), ..Mark::default() };
        assert!(end.append(3, at(1, 0)).is_err());
    }

    #[test]
    fn truncation_and_purge_free_files() {
        let mut mark = with_entries();
        mark.truncate(Some(at(1, 3))).unwrap();
        assert_eq!(extents(&mark), [(1, 0, 2), (2, 3, 3)]);
        mark.purge(at(1, 2));
        assert_eq!((extents(&mark), mark.oldest_generation()), (vec![(2, 3, 3)], Some(2)));
        assert!(mark.truncate(None).is_err(), "a log never becomes shorter than what was purged");
        assert!(mark.truncate(Some(at(1, 1))).is_err());
        assert!(mark.truncate(Some(at(1, 4))).is_err());
        mark.truncate(Some(at(1, 2))).unwrap();
        assert_eq!((mark.last, mark.oldest_generation()), (Some(at(1, 2)), None));
        mark.purge(at(5, 100));
        assert_eq!(mark.last, Some(at(5, 100)));
        mark.append(9, at(5, 101)).unwrap();
    }

    #[test]
    fn carried_entries_change_their_file() {
        let mut mark = with_entries();
        for index in 0..3 {
            mark.carry(4, index).unwrap();
        }
        assert_eq!((extents(&mark), mark.oldest_generation()), (vec![(4, 0, 2), (2, 3, 4), (3, 5, 5)], Some(2)));
        mark.carry(5, 1).unwrap();
        assert_eq!(extents(&mark), [(4, 0, 0), (5, 1, 1), (4, 2, 2), (2, 3, 4), (3, 5, 5)]);
        assert_eq!((mark.generation_of(1), mark.generation_of(6)), (Some(5), None));
        assert!(mark.carry(5, 6).is_err());
        mark.purge(at(1, 1));
        assert!(mark.carry(5, 1).is_err());
    }
}
