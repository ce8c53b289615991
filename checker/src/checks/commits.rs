//! Committed offsets: a register each, which the group's members move forward.

use std::collections::BTreeMap;

use crate::check::{Check, Violation, violation};
use crate::checks::forward::{Seen, goes_back};
use crate::checks::ownership::Longest;
use crate::event::{Event, Partition};
use crate::view::View;

/// A commit that took effect between `start_us` and `end_us`; one of unknown outcome has no end.
#[derive(Clone, Copy, Debug)]
struct Write {
    start_us: u64,
    end_us: u64,
    offset: Option<i64>,
    is_acknowledged: bool,
    is_reset: bool,
    by: usize,
}

#[derive(Default)]
struct Register {
    writes: Vec<Write>,
    reads: Vec<Seen<Option<i64>>>,
}

impl Register {
    fn resets(&self) -> Vec<(u64, u64)> {
        self.writes.iter().filter(|write| write.is_reset).map(|write| (write.start_us, write.end_us)).collect()
    }
}

type Registers<'a> = BTreeMap<(&'a str, &'a Partition), Register>;

fn registers<'a>(view: &View<'a>) -> Registers<'a> {
    let mut all = Registers::new();
    for (by, record) in view.records.iter().enumerate() {
        let at_us = record.at_us;
        match &record.event {
            Event::Committed { group, partition, offset, started_at_us, .. }
            | Event::CommitUnknown { group, partition, offset, started_at_us, .. } => {
                let is_acknowledged = matches!(record.event, Event::Committed { .. });
                all.entry((group, partition)).or_default().writes.push(Write {
                    start_us: *started_at_us,
                    end_us: if is_acknowledged { at_us } else { u64::MAX },
                    offset: Some(*offset),
                    is_acknowledged,
                    is_reset: false,
                    by,
                });
            }
            Event::OffsetReset { group, partition, offset, started_at_us, is_acknowledged } => {
                all.entry((group, partition)).or_default().writes.push(Write {
                    start_us: *started_at_us,
                    end_us: if *is_acknowledged { at_us } else { u64::MAX },
                    offset: *offset,
                    is_acknowledged: *is_acknowledged,
                    is_reset: true,
                    by,
                });
            }
            Event::OffsetFetched { group, partition, offset, started_at_us } => {
                let read = Seen { start_us: *started_at_us, end_us: at_us, value: *offset, by };
                all.entry((group, partition)).or_default().reads.push(read);
            }
            // It comes after all else.
            Event::FinalCommitted { group, partition, offset } => {
                let read = Seen { start_us: u64::MAX, end_us: u64::MAX, value: *offset, by };
                all.entry((group, partition)).or_default().reads.push(read);
            }
            _ => {}
        }
    }
    all
}

fn shown(offset: Option<i64>) -> String {
    offset.map_or("no offset".to_owned(), |offset| offset.to_string())
}

pub(crate) const ACCEPTED_OF_OWNER: Check = Check {
    name: "a commit was accepted of a member that did not own the partition",
    what: "A stale generation, a stale epoch or an unknown member never changes state: while a partition certainly belongs to another \
           member, no commit to it is acknowledged (KIP-848, KIP-1251).",
    run: accepted_of_owner,
};

fn accepted_of_owner(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut owners: BTreeMap<(&str, &Partition), Longest<'_, '_>> = BTreeMap::new();
    for interval in &view.intervals {
        if interval.certain_until_us.is_some() {
            owners.entry((interval.group, interval.partition)).or_default().add(interval);
        }
    }
    for (index, record) in view.records.iter().enumerate() {
        let Event::Committed { group, member, partition, offset, started_at_us } = &record.event else { continue };
        let Some(owners) = owners.get(&(group.as_str(), partition)) else { continue };
        facts += 1;
        if let Some(owner) = owners.of_another(member, *started_at_us)
            && owner.certain_until_us > Some(record.at_us)
        {
            let details = format!("{member} of {group} committed {partition}:{offset}, which {} had", owner.member);
            return violation(details, [owner.began, index].into_iter().chain(owner.end.map(|end| end.by)));
        }
    }
    Ok(facts)
}

pub(crate) const COMMITTED_STAYS: Check = Check {
    name: "an acknowledged commit is lost",
    what: "The offset that is fetched is the last accepted commit: one that was sent, and that no commit has certainly replaced before the \
           fetch began. `No offset` never follows a commit, unless it was removed. A commit of unknown outcome may take effect late.",
    run: committed_stays,
};

fn committed_stays(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for ((group, partition), register) in &registers(view) {
        // By end: with the acknowledged one that started last, up to there.
        let mut ended: Vec<Write> = register.writes.iter().filter(|write| write.is_acknowledged).copied().collect();
        ended.sort_by_key(|write| (write.end_us, write.by));
        let mut latest: Option<Write> = None;
        let latest: Vec<(u64, Write)> = ended
            .iter()
            .map(|write| {
                let now = latest.filter(|latest| latest.start_us >= write.start_us).unwrap_or(*write);
                latest = Some(now);
                (write.end_us, now)
            })
            .collect();
        // By offset, by start: with the latest end up to there.
        let mut by_offset: BTreeMap<Option<i64>, Vec<(u64, u64)>> = BTreeMap::new();
        let mut started: Vec<&Write> = register.writes.iter().collect();
        started.sort_by_key(|write| write.start_us);
        for write in started {
            let list = by_offset.entry(write.offset).or_default();
            let end_us = list.last().map_or(write.end_us, |(_, end_us)| write.end_us.max(*end_us));
            list.push((write.start_us, end_us));
        }
        for read in &register.reads {
            facts += 1;
            let before = latest.partition_point(|(end_us, _)| *end_us < read.start_us);
            let replaced_by = before.checked_sub(1).and_then(|last| latest.get(last)).map(|(_, write)| *write);
            let list = by_offset.get(&read.value).map(Vec::as_slice).unwrap_or_default();
            let count = list.partition_point(|(start_us, _)| *start_us <= read.end_us);
            let end_us = count.checked_sub(1).and_then(|last| list.get(last)).map(|(_, end_us)| *end_us);
            let is_possible = match (end_us, replaced_by) {
                (Some(end_us), Some(by)) => end_us >= by.start_us,
                (Some(_), None) => true,
                // Before the first commit there is none.
                (None, None) => read.value.is_none(),
                (None, Some(_)) => false,
            };
            if !is_possible {
                let due = replaced_by.map_or("no offset".to_owned(), |write| shown(write.offset));
                let seen = shown(read.value);
                let details =
                    format!("{group} has {seen} in {partition}; the last acknowledged commit before was {due}");
                return violation(details, replaced_by.map(|write| write.by).into_iter().chain([read.by]));
            }
        }
    }
    Ok(facts)
}

pub(crate) const ONLY_FORWARD: Check = Check {
    name: "acknowledged commits go back",
    what: "Owners follow one another and each begins where the one before committed: a commit that is sent after another was acknowledged \
           is not below it.",
    run: only_forward,
};

fn only_forward(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for ((group, partition), register) in &registers(view) {
        let commits: Vec<_> = register
            .writes
            .iter()
            .filter(|write| write.is_acknowledged && !write.is_reset)
            .map(|write| Seen { start_us: write.start_us, end_us: write.end_us, value: write.offset, by: write.by })
            .collect();
        facts += commits.len() as u64;
        if let Some((before, after)) = goes_back(&commits, &register.resets()) {
            let (from, to) = (shown(before.value), shown(after.value));
            let details = format!("{group} committed {to} in {partition} after {from} was acknowledged");
            return violation(details, [before.by, after.by]);
        }
    }
    Ok(facts)
}

pub(crate) const READS_GO_FORWARD: Check = Check {
    name: "a committed offset is seen going back",
    what: "A fetch of a committed offset that begins after another was answered does not give an older one (linearizable reads, whichever \
           node answers).",
    run: reads_go_forward,
};

fn reads_go_forward(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for ((group, partition), register) in &registers(view) {
        facts += register.reads.len() as u64;
        // A commit of unknown outcome may come late, and be below what was committed since.
        let late = register.writes.iter().filter(|write| !write.is_acknowledged);
        let excused: Vec<_> =
            register.resets().into_iter().chain(late.map(|write| (write.start_us, write.end_us))).collect();
        if let Some((before, after)) = goes_back(&register.reads, &excused) {
            let (from, to) = (shown(before.value), shown(after.value));
            return violation(format!("{group} had {from} in {partition}, then {to}"), [before.by, after.by]);
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::ownership::ONE_OWNER;
    use crate::checks::sample::{
        assigned, commit_unknown, committed, committed_from, fails, fails_with, fetched, fetched_from, in_the_end,
        passes, released, reset,
    };

    fn refused(member: &str, offset: i64) -> Event {
        Event::CommitRefused {
            group: "g".into(),
            member: member.into(),
            partition: Partition::new("t", 0),
            offset,
            reason: "fenced".into(),
        }
    }

    #[test]
    fn a_commit_is_accepted_only_of_the_owner() {
        let check = &ACCEPTED_OF_OWNER;
        let before = [assigned("m"), committed("m", 1), released("m", true), assigned("n"), committed("n", 1)];
        let with = |more: &[Event]| [&before[..], more].concat();
        passes(check, &with(&[refused("m", 1), commit_unknown("m", 1), committed("n", 2)]));
        fails(check, &with(&[committed("m", 1), committed("n", 2)]), &[3, 5]);
        // It may have been accepted before the other had the partition, or after.
        passes(check, &with(&[committed_from("m", 1, 35), committed("n", 2)]));
        passes(check, &with(&[committed("m", 1), released("n", true)]));
        // Nothing was lost, so that both are owners.
        let zombie = [assigned("m"), assigned("n"), committed("m", 0), committed("n", 0)];
        fails_with(check, &zombie, &[1, 2], &[&ONE_OWNER]);
    }

    #[test]
    fn an_acknowledged_commit_is_what_is_fetched() {
        let check = &COMMITTED_STAYS;
        passes(check, &[fetched(None), committed("m", 5), fetched(Some(5)), committed("m", 7), in_the_end(Some(7))]);
        fails(check, &[committed("m", 5), fetched(None)], &[0, 1]);
        fails(check, &[committed("m", 5), in_the_end(None)], &[0, 1]);
        fails(check, &[committed("m", 5), committed("m", 7), in_the_end(Some(5))], &[1, 2]);
        fails(check, &[committed("m", 5), fetched(Some(6))], &[0, 1]);
        fails(check, &[fetched(Some(6))], &[0]);
        fails(check, &[refused("m", 6), fetched(Some(6))], &[1]);
        // A fetch that began before the answer may see what was before.
        passes(check, &[committed("m", 5), fetched_from(None, 8)]);
        passes(check, &[committed("m", 5), committed("m", 7), fetched_from(Some(5), 15)]);
    }

    #[test]
    fn a_commit_of_unknown_outcome_may_take_effect_late_or_never() {
        let check = &COMMITTED_STAYS;
        let before = [committed("m", 5), commit_unknown("m", 6)];
        let with = |more: &[Event]| [&before[..], more].concat();
        passes(check, &with(&[fetched(Some(5)), fetched(Some(6))]));
        passes(check, &with(&[committed("m", 7), fetched(Some(7)), fetched(Some(6))]));
        fails(check, &with(&[committed("m", 7), fetched(Some(5))]), &[2, 3]);
        fails(check, &with(&[fetched(None)]), &[0, 2]);
    }

    #[test]
    fn an_administrator_may_set_an_offset_to_anything() {
        let check = &COMMITTED_STAYS;
        passes(check, &[committed("m", 5), reset(Some(2)), fetched(Some(2)), reset(None), fetched(None)]);
        fails(check, &[committed("m", 5), reset(Some(2)), fetched(Some(5))], &[1, 2]);
        fails(check, &[committed("m", 5), reset(None), fetched(Some(5))], &[1, 2]);
        passes(&ONLY_FORWARD, &[committed("m", 5), reset(Some(2)), committed("m", 3)]);
    }

    #[test]
    fn commits_go_forward() {
        let check = &ONLY_FORWARD;
        passes(check, &[committed("m", 5), committed("m", 5), committed_from("n", 4, 8)]);
        fails(check, &[committed("m", 5), committed("n", 4)], &[0, 1]);
        fails(check, &[reset(Some(9)), committed("m", 5), committed("n", 4)], &[1, 2]);
    }

    #[test]
    fn fetched_offsets_go_forward() {
        let check = &READS_GO_FORWARD;
        // All while the commit is under way.
        let during = |reads: &[Event]| [reads, &[committed_from("m", 5, 1)]].concat();
        passes(check, &during(&[fetched(None), fetched(Some(5)), fetched_from(None, 15)]));
        fails(check, &during(&[fetched(None), fetched(Some(5)), fetched(None)]), &[1, 2]);
        passes(
            check,
            &[commit_unknown("m", 5), fetched(Some(5)), committed("m", 6), fetched(Some(6)), fetched(Some(5))],
        );
    }
}
