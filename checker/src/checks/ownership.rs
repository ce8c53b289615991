//! Who has a partition, and what it reads while it has it.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{Check, Violation, violation};
use crate::event::{Event, Partition};
use crate::view::View;
use crate::view::interval::Interval;

pub(crate) const ONE_OWNER: Check = Check {
    name: "a partition has two owners",
    what: "A partition has at most one owner in a group at any time. A member that was fenced may read on until it learns of it, so only \
           times count in which commits prove both to be members (KIP-848: revoke before assign).",
    run: one_owner,
};

fn one_owner(view: &View<'_>) -> Result<u64, Violation> {
    let mut certain = 0;
    let mut longest: BTreeMap<(&str, &Partition), Longest<'_, '_>> = BTreeMap::new();
    for interval in &view.intervals {
        let Some(until_us) = interval.certain_until_us else { continue };
        certain += 1;
        let longest = longest.entry((interval.group, interval.partition)).or_default();
        if let Some(other) = longest.of_another(interval.member, u64::MAX)
            && other.certain_until_us > Some(interval.began_us)
        {
            let ended = [interval, other].into_iter().filter_map(|interval| interval.end).map(|end| end.by);
            let details = format!(
                "{} of {}: {} has it from {} to {until_us} µs at least, {} from {} to {} µs at least",
                interval.partition,
                interval.group,
                interval.member,
                interval.began_us,
                other.member,
                other.began_us,
                other.certain_until_us.unwrap_or_default(),
            );
            return violation(details, ended.chain([interval.began, other.began]));
        }
        longest.add(interval);
    }
    Ok(certain)
}

/// Of the intervals so far those that are certain for longest, of two members.
#[derive(Default)]
pub(crate) struct Longest<'i, 'a> {
    /// One that is longer than all before it, each time; with the longest of another member by then.
    steps: Vec<(u64, [Option<&'i Interval<'a>>; 2])>,
}

impl<'i, 'a> Longest<'i, 'a> {
    /// Must be called in the order in which the intervals began.
    pub(crate) fn add(&mut self, interval: &'i Interval<'a>) {
        let [first, second] = self.steps.last().map_or([None, None], |(_, longest)| *longest);
        let until = |interval: Option<&Interval<'_>>| interval.and_then(|interval| interval.certain_until_us);
        let now = if until(Some(interval)) > until(first) {
            let is_same = first.is_some_and(|first| first.member == interval.member);
            [Some(interval), if is_same { second } else { first }]
        } else if first.is_some_and(|first| first.member != interval.member) && until(Some(interval)) > until(second) {
            [first, Some(interval)]
        } else {
            return;
        };
        self.steps.push((interval.began_us, now));
    }

    /// The longest of another member, of those that began before this time.
    pub(crate) fn of_another(&self, member: &str, before_us: u64) -> Option<&'i Interval<'a>> {
        let count = self.steps.partition_point(|(began_us, _)| *began_us < before_us);
        let (_, longest) = self.steps.get(count.checked_sub(1)?)?;
        longest.iter().flatten().find(|interval| interval.member != member).copied()
    }
}

pub(crate) const READ_BY_OWNER: Check = Check {
    name: "a member read a partition that it did not have",
    what: "A member is given records of the partitions that it was told it has, until it has given them up.",
    run: read_by_owner,
};

fn read_by_owner(view: &View<'_>) -> Result<u64, Violation> {
    if let Some(&stray) = view.strays.first()
        && let Event::Polled { group, member, partition, offset, .. } = &view.records[stray].event
    {
        return violation(format!("{member} of {group} read {partition}:{offset}"), [stray]);
    }
    Ok(view.intervals.iter().map(|interval| interval.polls.len() as u64).sum())
}

pub(crate) const CONTIGUOUS: Check = Check {
    name: "polls of a member are not contiguous",
    what: "While a member has a partition it reads it without a gap and without going back.",
    run: contiguous,
};

fn contiguous(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for interval in &view.intervals {
        for pair in interval.polls.windows(2) {
            let &[(before, last), (index, offset)] = pair else { continue };
            facts += 1;
            let may_skip_to = if view.is_compacted(interval.partition) {
                i64::MAX
            } else {
                view.may_start_at(interval.partition, index)
            };
            if offset != last + 1 && !(offset > last && offset <= may_skip_to) {
                let (member, partition) = (interval.member, interval.partition);
                let details = format!("{member} of {} read {partition}:{offset} after {last}", interval.group);
                return violation(details, [interval.began, before, index]);
            }
        }
    }
    Ok(facts)
}

/// Commits of a group in a partition.
#[derive(Default)]
struct Commits {
    /// Index of the record, and the highest offset acknowledged by then.
    acknowledged: Vec<(usize, i64, usize)>,
    /// By offset: when it was first sent.
    sent_us: BTreeMap<i64, u64>,
    /// An administrator moved it.
    is_reset: bool,
}

fn commits<'a>(view: &View<'a>) -> BTreeMap<(&'a str, &'a Partition), Commits> {
    let mut all: BTreeMap<(&str, &Partition), Commits> = BTreeMap::new();
    for (index, record) in view.records.iter().enumerate() {
        match &record.event {
            Event::Committed { group, partition, offset, started_at_us, .. } => {
                let commits = all.entry((group, partition)).or_default();
                let (highest, by) = match commits.acknowledged.last() {
                    Some((_, highest, by)) if highest >= offset => (*highest, *by),
                    _ => (*offset, index),
                };
                commits.acknowledged.push((index, highest, by));
                let sent_us = commits.sent_us.entry(*offset).or_insert(*started_at_us);
                *sent_us = (*sent_us).min(*started_at_us);
            }
            Event::CommitUnknown { group, partition, offset, started_at_us, .. } => {
                let commits = all.entry((group, partition)).or_default();
                let sent_us = commits.sent_us.entry(*offset).or_insert(*started_at_us);
                *sent_us = (*sent_us).min(*started_at_us);
            }
            Event::OffsetReset { group, partition, .. } => all.entry((group, partition)).or_default().is_reset = true,
            _ => {}
        }
    }
    all
}

pub(crate) const BEGINS_AT_COMMITTED: Check = Check {
    name: "an owner does not begin at the committed offset",
    what: "The first record that an owner reads is the one at the committed offset: one that was committed and not below what was \
           acknowledged by then; without any, the first of the partition. A member that may have been fenced may begin below, and so may one that \
           lost the partition and has it again: it asked for the committed offset while its own last commit may still have been under way.",
    run: begins_at_committed,
};

fn begins_at_committed(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let all = commits(view);
    let none = Commits::default();
    let mut lost: BTreeMap<(&str, &str, &Partition), bool> = BTreeMap::new();
    for interval in &view.intervals {
        let before = lost.insert((interval.group, interval.member, interval.partition), interval.is_lost());
        let Some(&(index, offset)) = interval.polls.first() else { continue };
        let (group, member, partition) = (interval.group, interval.member, interval.partition);
        let commits = all.get(&(group, partition)).unwrap_or(&none);
        if commits.is_reset {
            continue;
        }
        facts += 1;
        let at_us = view.at_us(index);
        let known = commits.acknowledged.partition_point(|(by, ..)| *by < index);
        if interval.certain_until_us >= Some(at_us)
            && let Some((_, highest, by)) = known.checked_sub(1).and_then(|last| commits.acknowledged.get(last))
            && offset < *highest
            && !(before == Some(true) && is_commit_of(&view.records[*by].event, interval.member))
        {
            let details = format!("{member} of {group} begins with {partition}:{offset}; {highest} is committed");
            return violation(details, [interval.began, *by, index]);
        }
        let was_committed = commits.sent_us.get(&offset).is_some_and(|sent_us| *sent_us <= at_us);
        if !was_committed && offset > view.may_start_at(partition, index) && !view.is_compacted(partition) {
            let last = commits.sent_us.range(..offset).next_back().map_or(0, |(offset, _)| *offset);
            let details =
                format!("{member} of {group} begins with {partition}:{offset}, which nobody committed; {last} was");
            return violation(details, [interval.began, index]);
        }
    }
    Ok(facts)
}

fn is_commit_of(event: &Event, life: &str) -> bool {
    matches!(event, Event::Committed { member, .. } if member == life)
}

pub(crate) const NOTHING_SKIPPED: Check = Check {
    name: "a record was skipped",
    what: "Every record below a group's committed offset was given to a member of it (at least once delivery).",
    run: nothing_skipped,
};

fn nothing_skipped(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut polled: BTreeSet<(&str, &Partition, i64)> = BTreeSet::new();
    let mut reset: BTreeSet<(&str, &Partition)> = BTreeSet::new();
    for record in view.records {
        match &record.event {
            Event::Polled { group, partition, offset, .. } => {
                polled.insert((group, partition, *offset));
            }
            Event::OffsetReset { group, partition, .. } => {
                reset.insert((group, partition));
            }
            _ => {}
        }
    }
    for (index, record) in view.records.iter().enumerate() {
        let Event::FinalCommitted { group, partition, offset: Some(done) } = &record.event else { continue };
        let Some(stored) = view.stored.get(partition) else { continue };
        if reset.contains(&(group.as_str(), partition)) {
            continue;
        }
        for (offset, value) in stored.records.iter().take_while(|(offset, _)| offset < done) {
            facts += 1;
            if !polled.contains(&(group, partition, *offset)) {
                let details =
                    format!("{value} at {partition}:{offset} came to no member of {group}, which is at {done}");
                let sent = view.sends.get(value).into_iter().flatten().copied();
                return violation(details, sent.chain([index]));
            }
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check_all;
    use crate::checks::commits::ACCEPTED_OF_OWNER;
    use crate::checks::sample::{
        assigned, assigned_both, commit_unknown, committed, committed_in, fails, fails_with, history, in_the_end,
        partition, passes, polled, polled_in, released, reset, sent, stored,
    };

    /// Three records are sent and acknowledged; nothing is committed yet. The next record of the history is number 3, at 40 µs.
    fn with(more: &[Event]) -> Vec<Event> {
        [&[sent("v0"), sent("v1"), sent("v2")], more].concat()
    }

    fn overlaps(events: &[Event]) -> (u64, u64) {
        check_all(&history(events)).map(|summary| (summary.overlaps, summary.lost)).expect("nothing is broken")
    }

    #[test]
    fn a_partition_has_one_owner_at_a_time() {
        let check = &ONE_OWNER;
        let one_after_another =
            [assigned("m"), committed("m", 0), released("m", false), assigned("n"), committed("n", 0)];
        passes(check, &one_after_another);
        assert_eq!(overlaps(&one_after_another), (0, 0));
        // Each commits to another partition, so that only having the first twice is wrong.
        let both = [
            assigned_both("m", &[0, 1]),
            assigned_both("n", &[0, 2]),
            committed_in(1, "m", 0),
            committed_in(2, "n", 0),
        ];
        fails(check, &both, &[0, 1]);
        let released = [&both[..], &[released("m", false)]].concat();
        fails(check, &released, &[0, 1, 4]);
    }

    #[test]
    fn a_member_that_was_fenced_may_think_that_it_owns() {
        let zombie = [
            assigned("m"),
            committed("m", 0),
            assigned("n"),
            committed("n", 0),
            released("m", true),
            committed("n", 0),
        ];
        passes(&ONE_OWNER, &zombie);
        assert_eq!(overlaps(&zombie), (1, 1));
        // Without a commit since, it may have been fenced and be asked to give up what it no longer has.
        let unproved = [assigned("m"), assigned("n"), committed("n", 0), released("m", false)];
        passes(&ONE_OWNER, &unproved);
        assert_eq!(overlaps(&unproved), (1, 0));
        // One that rejoined is another member: its commits do not prove what was before.
        let rejoined = [
            assigned("m"),
            assigned("n"),
            committed("n", 0),
            released("m", true),
            released("n", false),
            assigned("m"),
            committed("m", 0),
        ];
        passes(&ONE_OWNER, &rejoined);
    }

    #[test]
    fn a_member_reads_what_it_has() {
        let check = &READ_BY_OWNER;
        passes(check, &with(&[assigned("m"), polled("m", 0), released("m", false)]));
        fails(check, &with(&[polled("m", 0)]), &[3]);
        fails(check, &with(&[assigned("m"), released("m", false), polled("m", 0)]), &[5]);
        fails(check, &with(&[assigned("n"), polled("m", 0)]), &[4]);
    }

    #[test]
    fn polls_are_contiguous_while_a_member_has_a_partition() {
        let check = &CONTIGUOUS;
        passes(check, &with(&[assigned("m"), polled("m", 0), assigned("m"), polled("m", 1)]));
        let again = [assigned("m"), polled("m", 0), released("m", true), assigned("m"), polled("m", 0), polled("m", 1)];
        passes(check, &with(&again));
        fails(check, &with(&[assigned("m"), polled("m", 0), polled("m", 2)]), &[3, 4, 5]);
        fails(check, &with(&[assigned("m"), polled("m", 0), polled("m", 1), polled("m", 0)]), &[3, 5, 6]);
        fails(check, &with(&[assigned("m"), polled("m", 0), assigned("m"), polled("m", 0)]), &[3, 4, 6]);
        let truncated = Event::Truncated { partition: partition(0), start: 2 };
        passes(check, &with(&[assigned("m"), polled("m", 0), truncated, polled("m", 2)]));
        let compacted = Event::Compacted { topic: "t".into() };
        passes(check, &with(&[compacted, assigned("m"), polled("m", 0), polled("m", 2)]));
    }

    #[test]
    fn an_owner_begins_at_the_committed_offset() {
        let check = &BEGINS_AT_COMMITTED;
        let first = [assigned("m"), polled("m", 0), polled("m", 1), committed("m", 2), released("m", false)];
        let then = |more: &[Event]| with(&[&first[..], more].concat());
        passes(check, &then(&[assigned("n"), polled("n", 2), committed("n", 3)]));
        // It goes back to what is committed when the commit was not heard of.
        let unheard = [assigned("m"), polled("m", 0), commit_unknown("m", 1), released("m", true), assigned("n")];
        for begins in [0, 1] {
            passes(check, &with(&[&unheard[..], &[polled("n", begins)]].concat()));
        }
        // Below it, with a commit that proves that it was the owner; or without, so that it may have been fenced.
        let below = [assigned("n"), polled("n", 1), committed("n", 2)];
        fails(check, &then(&below), &[6, 8, 9]);
        passes(check, &then(&[assigned("n"), polled("n", 0)]));
        // The same member has it again, and its commit was under way while it asked where to begin.
        let lost = [assigned("m"), polled("m", 0), committed("m", 1), released("m", true), assigned("m")];
        passes(check, &with(&[&lost[..], &[polled("m", 0), committed("m", 1)]].concat()));
        let given_up = [assigned("m"), polled("m", 0), committed("m", 1), released("m", false), assigned("m")];
        fails(check, &with(&[&given_up[..], &[polled("m", 0), committed("m", 1)]].concat()), &[5, 7, 8]);
        // Beyond it.
        fails(check, &with(&[assigned("m"), polled("m", 1)]), &[3, 4]);
        fails(check, &with(&[assigned("m"), polled("m", 2), commit_unknown("m", 2)]), &[3, 4]);
        // An administrator may have sent it anywhere.
        let elsewhere = [assigned_both("z", &[1]), polled_in(1, "z", 0, "v1")];
        let moved = with(&[reset(Some(2)), assigned("m"), polled("m", 2)]);
        passes(check, &[&moved[..], &elsewhere].concat());
    }

    #[test]
    fn no_record_is_skipped() {
        let check = &NOTHING_SKIPPED;
        let end = [stored(0, &["v0", "v1", "v2"]), in_the_end(Some(2))];
        let whole = [assigned("m"), polled("m", 0), polled("m", 1), committed("m", 2)];
        passes(check, &with(&[&whole[..], &end].concat()));
        let skipped = [assigned("m"), polled("m", 0), committed("m", 2)];
        fails(check, &with(&[&skipped[..], &end].concat()), &[1, 7]);
        let moved = [assigned("m"), polled("m", 0), released("m", false), reset(Some(2))];
        passes(&READ_BY_OWNER, &with(&[&moved[..], &end].concat()));
    }

    #[test]
    fn a_commit_while_another_certainly_owns_is_no_proof_but_a_fault() {
        let zombie = [assigned("m"), assigned("n"), committed("m", 0), committed("n", 0)];
        fails_with(&ACCEPTED_OF_OWNER, &zombie, &[1, 2], &[&ONE_OWNER]);
    }
}
