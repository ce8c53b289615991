//! A history, put in order for the checks.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{Event, Partition, Record};
use crate::view::interval::{Interval, intervals};

pub(crate) mod interval;

/// What a partition holds in the end.
#[derive(Debug, Default)]
pub(crate) struct Stored<'a> {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Ascending if the history is sound.
    pub(crate) records: Vec<(i64, &'a str)>,
    /// Records of the history that tell it.
    pub(crate) told_by: Vec<usize>,
}

impl<'a> Stored<'a> {
    pub(crate) fn at(&self, offset: i64) -> Option<&'a str> {
        self.records.binary_search_by_key(&offset, |(at, _)| *at).ok().map(|index| self.records[index].1)
    }
}

/// Somebody said that a record is at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim<'a> {
    pub(crate) partition: &'a Partition,
    pub(crate) offset: i64,
    /// Index of the record of the history.
    pub(crate) by: usize,
    pub(crate) value: &'a str,
}

/// The tombstones of a key.
#[derive(Debug, Default)]
struct Tombstones<'a> {
    /// Where they were seen, and the record of the history that tells it first.
    seen: BTreeMap<(&'a Partition, i64), usize>,
    /// Of one it is not known where it is, if it was stored at all, or it may be in other places too.
    is_any_unseen: bool,
}

/// A history, put in order.
pub(crate) struct View<'a> {
    pub(crate) records: &'a [Record],
    pub(crate) compacted: BTreeSet<&'a str>,
    /// By partition: each time that records may have been removed since, and the lowest offset that must stay, ascending in both.
    truncated: BTreeMap<&'a Partition, Vec<(usize, i64)>>,
    /// By value: when it was sent.
    pub(crate) sends: BTreeMap<&'a str, Vec<usize>>,
    pub(crate) stored: BTreeMap<&'a Partition, Stored<'a>>,
    /// By key.
    tombstones: BTreeMap<&'a str, Tombstones<'a>>,
    /// By partition and offset.
    pub(crate) claims: Vec<Claim<'a>>,
    /// In the order in which they began.
    pub(crate) intervals: Vec<Interval<'a>>,
    /// Records of the history that tell what was read by a member that did not have the partition.
    pub(crate) strays: Vec<usize>,
    /// How many records were given to a group again.
    pub(crate) repeated: u64,
}

impl<'a> View<'a> {
    pub(crate) fn new(records: &'a [Record]) -> Self {
        let (intervals, strays) = intervals(records);
        let mut view = Self {
            records,
            compacted: BTreeSet::new(),
            truncated: BTreeMap::new(),
            sends: BTreeMap::new(),
            stored: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            claims: Vec::new(),
            intervals,
            strays,
            repeated: 0,
        };
        let mut polled = BTreeSet::new();
        for (index, record) in records.iter().enumerate() {
            view.add(index, &record.event);
            if let Event::Polled { group, partition, offset, .. } = &record.event {
                view.repeated += u64::from(!polled.insert((group, partition, offset)));
            }
        }
        view.claims.sort_unstable();
        view.tombstones = view.find_tombstones();
        view
    }

    fn find_tombstones(&self) -> BTreeMap<&'a str, Tombstones<'a>> {
        let mut found: BTreeMap<&str, Tombstones<'_>> = BTreeMap::new();
        // By what each is known by: its key, and whether all copies of it were seen. A retry may store it again behind what comes later, unless its producer
        // is idempotent.
        let mut tombstones: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
        for record in self.records {
            if let Event::Sent { value, key: Some(key), is_tombstone: true, .. } = &record.event {
                tombstones.insert(value, (key, false));
            }
        }
        for claim in &self.claims {
            if let Some((key, is_seen)) = tombstones.get_mut(claim.value) {
                *is_seen = self.is_sent_once(claim.value);
                found.entry(key).or_default().seen.entry((claim.partition, claim.offset)).or_insert(claim.by);
            }
        }
        for (key, is_seen) in tombstones.into_values() {
            found.entry(key).or_default().is_any_unseen |= !is_seen;
        }
        found
    }

    /// Can it be in one place only?
    fn is_sent_once(&self, value: &str) -> bool {
        let sends = self.sends.get(value).map(Vec::as_slice).unwrap_or_default();
        matches!(sends, [send] if matches!(self.records[*send].event, Event::Sent { is_idempotent: true, .. }))
    }

    fn add(&mut self, index: usize, event: &'a Event) {
        let mut claim = |partition, offset, value| self.claims.push(Claim { partition, offset, by: index, value });
        match event {
            Event::Compacted { topic } => {
                self.compacted.insert(topic);
            }
            Event::Truncated { partition, start } => {
                let list = self.truncated.entry(partition).or_default();
                let before = list.last().map_or(0, |(_, start)| *start);
                list.push((index, before.max(*start)));
            }
            Event::Sent { value, .. } => self.sends.entry(value).or_default().push(index),
            Event::Acknowledged { value, partition, offset: Some(offset) } => claim(partition, *offset, value),
            Event::Read { partition, offset, value } | Event::Polled { partition, offset, value, .. } => {
                claim(partition, *offset, value);
            }
            Event::FinalRecords { partition, start, end, records } => {
                for (offset, value) in records {
                    claim(partition, *offset, value);
                }
                let is_new = !self.stored.contains_key(partition);
                let stored = self.stored.entry(partition).or_default();
                if is_new {
                    stored.start = *start;
                }
                stored.end = *end;
                stored.records.extend(records.iter().map(|(offset, value)| (*offset, value.as_str())));
                stored.told_by.push(index);
            }
            _ => {}
        }
    }

    /// Is there, in the end, a later record of the same key, or was there a tombstone, which may be gone by now? Compaction may have removed this one then, and
    /// this one if it is a tombstone.
    pub(crate) fn is_superseded(&self, partition: &Partition, offset: i64, value: &str) -> bool {
        let Some(stored) = self.stored.get(partition) else { return false };
        let Some(key) = self.key_of(value) else { return true };
        let is_deleted = self.tombstones.get(key).is_some_and(|tombstones| {
            let last = tombstones.seen.keys().rfind(|(at, _)| *at == partition);
            tombstones.is_any_unseen || last.is_some_and(|(_, last)| *last >= offset)
        });
        is_deleted || stored.records.iter().any(|(later, value)| *later > offset && self.key_of(value) == Some(key))
    }

    /// Tombstones of this record's key that were seen behind it: (offset, who saw it).
    pub(crate) fn deletions_since(
        &self,
        partition: &Partition,
        offset: i64,
        value: &str,
    ) -> impl Iterator<Item = (i64, usize)> {
        let tombstones = self.key_of(value).and_then(|key| self.tombstones.get(key));
        let seen = tombstones.into_iter().flat_map(|tombstones| &tombstones.seen);
        seen.filter(move |((at, later), _)| *at == partition && *later > offset).map(|((_, later), by)| (*later, *by))
    }

    /// The key that a record was sent with.
    fn key_of(&self, value: &str) -> Option<&'a str> {
        self.sends.get(value)?.iter().find_map(|send| match &self.records[*send].event {
            Event::Sent { key, .. } => key.as_deref(),
            _ => None,
        })
    }

    pub(crate) fn is_compacted(&self, partition: &Partition) -> bool {
        self.compacted.contains(partition.topic.as_str())
    }

    /// The lowest offset of a partition that must still be there, by what was known before record `by` of the history.
    pub(crate) fn may_start_at(&self, partition: &Partition, by: usize) -> i64 {
        let Some(list) = self.truncated.get(partition) else { return 0 };
        let known = list.partition_point(|(index, _)| *index < by);
        known.checked_sub(1).and_then(|last| list.get(last)).map_or(0, |(_, start)| *start)
    }

    pub(crate) fn at_us(&self, index: usize) -> u64 {
        self.records.get(index).map_or(u64::MAX, |record| record.at_us)
    }

    /// Pairs of intervals of one partition of which the second began before the first had ended, as indices: of the earlier ones, that which
    /// ended last.
    pub(crate) fn overlaps(&self) -> Vec<(usize, usize)> {
        let mut longest: BTreeMap<(&str, &Partition), usize> = BTreeMap::new();
        let mut overlaps = Vec::new();
        for (index, interval) in self.intervals.iter().enumerate() {
            let before = longest.entry((interval.group, interval.partition)).or_insert(index);
            let ended = self.intervals[*before].ended();
            // A member's own intervals never overlap.
            if *before != index && ended > interval.began {
                overlaps.push((*before, index));
            }
            if interval.ended() > ended {
                *before = index;
            }
        }
        overlaps
    }
}
