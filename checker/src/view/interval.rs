//! Times during which a member had a partition, and how sure that is.

use std::collections::BTreeMap;

use crate::event::{Event, Partition, Record};

/// How an interval ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Index of the record of the history.
    pub(crate) by: usize,
    pub(crate) at_us: u64,
    pub(crate) is_lost: bool,
}

/// A member's time with a partition: from being told that it has it until it has finished with it.
///
/// A member may have been fenced long before it learns of it. That it had the partition is certain only up to where something proves that it
/// was a member still: a commit that was accepted later, while it had been without a break the owner of some partition.
#[derive(Clone, Debug)]
pub(crate) struct Interval<'a> {
    pub(crate) group: &'a str,
    pub(crate) member: &'a str,
    pub(crate) partition: &'a Partition,
    /// Index of the record of the history.
    pub(crate) began: usize,
    pub(crate) began_us: u64,
    pub(crate) end: Option<End>,
    /// Records of the history, with the offsets that were read.
    pub(crate) polls: Vec<(usize, i64)>,
    /// Up to when the member certainly had the partition; `None`: perhaps it never did.
    pub(crate) certain_until_us: Option<u64>,
}

impl Interval<'_> {
    pub(crate) fn is_lost(&self) -> bool {
        self.end.is_some_and(|end| end.is_lost)
    }

    /// Index of the record that ended it, or one that there is not.
    pub(crate) fn ended(&self) -> usize {
        self.end.map_or(usize::MAX, |end| end.by)
    }
}

/// What a member has, and since when it has not been without anything.
#[derive(Debug, Default)]
struct Member<'a> {
    /// Indices of its intervals.
    open: BTreeMap<&'a Partition, usize>,
    /// Intervals since it last had nothing, or may not have been a member.
    unbroken: Vec<usize>,
    /// The latest time at which it certainly was a member since.
    proof_us: Option<u64>,
}

impl<'a> Member<'a> {
    fn close(&mut self, intervals: &mut [Interval<'a>], partition: &Partition, end: End) {
        if let Some(interval) = self.open.remove(partition) {
            intervals[interval].end = Some(end);
        }
    }

    /// From here on nothing proves any more what was before.
    fn breaks(&mut self, intervals: &mut [Interval<'a>]) {
        let proof_us = self.proof_us.take();
        for interval in std::mem::take(&mut self.unbroken) {
            let interval = &mut intervals[interval];
            let kept_until_us = interval.end.filter(|end| !end.is_lost).map_or(u64::MAX, |end| end.at_us);
            interval.certain_until_us =
                proof_us.map(|proof_us| proof_us.min(kept_until_us)).filter(|until_us| *until_us > interval.began_us);
        }
    }
}

/// All intervals in the order in which they began, and what was read by members that did not have the partition.
pub(crate) fn intervals(records: &[Record]) -> (Vec<Interval<'_>>, Vec<usize>) {
    let mut intervals: Vec<Interval<'_>> = Vec::new();
    let mut strays = Vec::new();
    let mut members: BTreeMap<(&str, &str), Member<'_>> = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        let at_us = record.at_us;
        match &record.event {
            Event::Assigned { group, member: name, partitions, .. } => {
                let member = members.entry((group, name)).or_default();
                for partition in partitions {
                    if member.open.contains_key(partition) {
                        continue;
                    }
                    member.open.insert(partition, intervals.len());
                    member.unbroken.push(intervals.len());
                    intervals.push(Interval {
                        group,
                        member: name,
                        partition,
                        began: index,
                        began_us: at_us,
                        end: None,
                        polls: Vec::new(),
                        certain_until_us: None,
                    });
                }
            }
            Event::Released { group, member, partitions, is_lost } => {
                let member = members.entry((group, member)).or_default();
                for partition in partitions {
                    member.close(&mut intervals, partition, End { by: index, at_us, is_lost: *is_lost });
                }
                if *is_lost || member.open.is_empty() {
                    member.breaks(&mut intervals);
                    member.unbroken.extend(member.open.values());
                }
            }
            Event::Fenced { group, member, .. } | Event::Left { group, member } => {
                let is_lost = matches!(record.event, Event::Fenced { .. });
                let member = members.entry((group, member)).or_default();
                for partition in member.open.keys().copied().collect::<Vec<_>>() {
                    member.close(&mut intervals, partition, End { by: index, at_us, is_lost });
                }
                member.breaks(&mut intervals);
            }
            Event::Committed { group, member, started_at_us, .. } => {
                if let Some(member) = members.get_mut(&(group.as_str(), member.as_str()))
                    && !member.unbroken.is_empty()
                {
                    member.proof_us = member.proof_us.max(Some(*started_at_us));
                }
            }
            Event::Polled { group, member, partition, offset, .. } => {
                let member = members.get(&(group.as_str(), member.as_str()));
                match member.and_then(|member| member.open.get(partition)) {
                    Some(interval) => intervals[*interval].polls.push((index, *offset)),
                    None => strays.push(index),
                }
            }
            _ => {}
        }
    }
    for member in members.values_mut() {
        member.breaks(&mut intervals);
    }
    (intervals, strays)
}
