//! Shards and their replicas: one leader a term, an end that only grows, equal state and equal bytes.

use std::collections::BTreeMap;

use crate::check::{Check, Violation, violation};
use crate::checks::forward::{Seen, goes_back};
use crate::event::{Event, Partition};
use crate::view::View;

pub(crate) const ONE_LEADER: Check = Check {
    name: "a term has two leaders",
    what: "At most one node leads a shard in a term (Raft: election safety).",
    run: one_leader,
};

fn one_leader(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut leaders: BTreeMap<(u16, u64), (u64, usize)> = BTreeMap::new();
    for (index, record) in view.records.iter().enumerate() {
        let Event::LeaderObserved { node, shard, term } = record.event else { continue };
        facts += 1;
        let (leader, by) = *leaders.entry((shard, term)).or_insert((node, index));
        if leader != node {
            return violation(format!("nodes {leader} and {node} lead shard {shard} in term {term}"), [by, index]);
        }
    }
    Ok(facts)
}

pub(crate) const END_GROWS: Check = Check {
    name: "the end of a partition goes back",
    what: "Only what is committed counts: an end that is asked for after another was told is not below it, whichever node answers.",
    run: end_grows,
};

fn end_grows(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for (partition, seen) in &ends(view) {
        facts += seen.len() as u64;
        if let Some((before, after)) = goes_back(seen, &[]) {
            let details = format!("{partition} ended at {}, then at {}", before.value, after.value);
            return violation(details, [before.by, after.by]);
        }
    }
    Ok(facts)
}

fn ends<'a>(view: &View<'a>) -> BTreeMap<&'a Partition, Vec<Seen<i64>>> {
    let mut ends: BTreeMap<&Partition, Vec<Seen<i64>>> = BTreeMap::new();
    for (by, record) in view.records.iter().enumerate() {
        if let Event::EndObserved { partition, end, started_at_us, .. } = &record.event {
            let seen = Seen { start_us: *started_at_us, end_us: record.at_us, value: *end, by };
            ends.entry(partition).or_default().push(seen);
        }
    }
    // What is there in the end comes after all else.
    for (partition, stored) in &view.stored {
        let by = stored.told_by.last().copied().unwrap_or_default();
        let seen = Seen { start_us: u64::MAX, end_us: u64::MAX, value: stored.end, by };
        ends.entry(partition).or_default().push(seen);
    }
    ends
}

pub(crate) const END_IS_BEHIND_ALL: Check = Check {
    name: "the end of a partition is before what was stored",
    what: "An end that is asked for after a record was acknowledged or read is behind that record.",
    run: end_is_behind_all,
};

fn end_is_behind_all(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut known: BTreeMap<&Partition, Vec<(u64, i64, usize)>> = BTreeMap::new();
    for claim in &view.claims {
        if !matches!(view.records[claim.by].event, Event::FinalRecords { .. }) {
            known.entry(claim.partition).or_default().push((view.at_us(claim.by), claim.offset, claim.by));
        }
    }
    for (partition, seen) in &ends(view) {
        let Some(known) = known.get_mut(partition) else { continue };
        known.sort_unstable();
        // With each: the highest offset up to there, and who knew it.
        let mut highest = (i64::MIN, 0);
        for (_, offset, by) in known.iter_mut() {
            highest = highest.max((*offset, *by));
            (*offset, *by) = highest;
        }
        for end in seen {
            facts += 1;
            let count = known.partition_point(|(at_us, ..)| *at_us < end.start_us);
            if let Some((_, offset, by)) = count.checked_sub(1).and_then(|last| known.get(last))
                && *offset >= end.value
            {
                let details = format!("{partition} ends at {}, although offset {offset} was known", end.value);
                return violation(details, [*by, end.by]);
            }
        }
    }
    Ok(facts)
}

pub(crate) const STATE_IS_SOUND: Check = Check {
    name: "a replica's state is not sound",
    what: "Every invariant of the state machine holds on every replica.",
    run: state_is_sound,
};

fn state_is_sound(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for (index, record) in view.records.iter().enumerate() {
        let Event::FinalReplica { node, shard, violation: found, .. } = &record.event else { continue };
        facts += 1;
        if let Some(found) = found {
            return violation(format!("node {node}, shard {shard}: {found}"), [index]);
        }
    }
    Ok(facts)
}

pub(crate) const REPLICAS_AGREE: Check = Check {
    name: "replicas differ at one position",
    what: "Equal applied index means equal term and equal digest on every replica, also after snapshot and restore (Raft: log matching).",
    run: replicas_agree,
};

fn replicas_agree(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut first: BTreeMap<(u16, u64), (u64, u64, &str, usize)> = BTreeMap::new();
    for (by, record) in view.records.iter().enumerate() {
        let Event::FinalReplica { node, shard, term, index, digest, .. } = &record.event else { continue };
        let (other, other_term, other_digest, other_by) =
            *first.entry((*shard, *index)).or_insert((*node, *term, digest, by));
        facts += u64::from(other_by != by);
        if (other_term, other_digest) != (*term, digest) {
            let details = format!(
                "shard {shard} at index {index}: node {other} has term {other_term} and digest {other_digest}, node {node} has \
                 {term} and {digest}"
            );
            return violation(details, [other_by, by]);
        }
    }
    Ok(facts)
}

pub(crate) const FILES_ARE_EQUAL: Check = Check {
    name: "copies of a partition differ",
    what: "Replicas' partition files are byte-identical: whatever changes them is decided at a position of the log.",
    run: files_are_equal,
};

fn files_are_equal(view: &View<'_>) -> Result<u64, Violation> {
    type Extent = Option<(i64, i64)>;
    let mut facts = 0;
    let mut positions: BTreeMap<u16, u64> = BTreeMap::new();
    let are_at_one_position = view.records.iter().all(|record| match record.event {
        Event::FinalReplica { shard, index, .. } => *positions.entry(shard).or_insert(index) == index,
        _ => true,
    });
    // Copies of other extents are of replicas at other positions, if there are such.
    let is_known = are_at_one_position && !positions.is_empty();
    let mut first: BTreeMap<(&Partition, Extent), (usize, u64)> = BTreeMap::new();
    for (by, record) in view.records.iter().enumerate() {
        let Event::FinalFile { node, partition, start, end, length, hash } = &record.event else { continue };
        let extent = (!is_known).then_some((*start, *end));
        let (other_by, other) = *first.entry((partition, extent)).or_insert((by, *node));
        facts += u64::from(other_by != by);
        let Event::FinalFile { start: from, end: to, length: bytes, hash: other_hash, .. } =
            &view.records[other_by].event
        else {
            continue;
        };
        if (from, to, bytes, other_hash) != (start, end, length, hash) {
            let details = format!(
                "{partition}: node {other} has {from} to {to}, {bytes} bytes of hash {other_hash}; node {node} has {start} to {end}, \
                 {length} bytes of hash {hash}"
            );
            return violation(details, [other_by, by]);
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::messages::READ_STAYS;
    use crate::checks::sample::{acknowledged, fails, fails_with, partition, passes, read, sent, stored};

    fn leader(node: u64, shard: u16, term: u64) -> Event {
        Event::LeaderObserved { node, shard, term }
    }

    fn end(end: i64, started_at_us: u64) -> Event {
        Event::EndObserved { node: None, partition: partition(0), end, started_at_us }
    }

    fn replica(node: u64, index: u64, digest: &str) -> Event {
        Event::FinalReplica { node, shard: 1, term: 2, index, digest: digest.into(), violation: None }
    }

    fn file(node: u64, end: i64, hash: &str) -> Event {
        Event::FinalFile { node, partition: partition(0), start: 0, end, length: 100, hash: hash.into() }
    }

    #[test]
    fn a_term_has_one_leader() {
        let check = &ONE_LEADER;
        passes(check, &[leader(1, 0, 3), leader(2, 1, 3), leader(2, 0, 4), leader(1, 0, 3)]);
        fails(check, &[leader(1, 0, 3), leader(2, 0, 3)], &[0, 1]);
    }

    #[test]
    fn the_end_only_grows() {
        let check = &END_GROWS;
        passes(check, &[end(3, 5), end(4, 15), end(3, 15), end(4, 35)]);
        fails(check, &[end(3, 5), end(4, 15), end(3, 25)], &[1, 2]);
        fails(check, &[sent("a"), end(2, 15), stored(0, &["a"])], &[1, 2]);
    }

    #[test]
    fn the_end_is_behind_what_is_known() {
        let check = &END_IS_BEHIND_ALL;
        passes(check, &[sent("a"), acknowledged("a", 0), end(0, 15), end(1, 25)]);
        fails(check, &[sent("a"), acknowledged("a", 0), end(0, 25)], &[1, 2]);
        fails_with(check, &[sent("a"), read(0, "a"), stored(0, &[])], &[1, 2], &[&READ_STAYS]);
    }

    #[test]
    fn replicas_are_sound_and_equal() {
        passes(&REPLICAS_AGREE, &[replica(1, 9, "x"), replica(2, 9, "x"), replica(3, 8, "y")]);
        fails(&REPLICAS_AGREE, &[replica(1, 9, "x"), replica(2, 9, "y")], &[0, 1]);
        let other_term =
            Event::FinalReplica { node: 2, shard: 1, term: 3, index: 9, digest: "x".into(), violation: None };
        fails(&REPLICAS_AGREE, &[replica(1, 9, "x"), other_term], &[0, 1]);
        passes(&STATE_IS_SOUND, &[replica(1, 9, "x")]);
        let unsound = Event::FinalReplica {
            node: 2,
            shard: 1,
            term: 2,
            index: 9,
            digest: "x".into(),
            violation: Some("an offset below 0".into()),
        };
        fails(&STATE_IS_SOUND, &[replica(1, 9, "x"), unsound], &[1]);
    }

    #[test]
    fn copies_are_equal() {
        let check = &FILES_ARE_EQUAL;
        passes(check, &[file(1, 7, "x"), file(2, 7, "x"), file(3, 6, "y")]);
        fails(check, &[file(1, 7, "x"), file(2, 7, "y")], &[0, 1]);
        // At one position of the log they have the same extent.
        let at_one = [replica(1, 9, "d"), replica(2, 9, "d"), file(1, 7, "x")];
        passes(check, &[&at_one[..], &[file(2, 7, "x")]].concat());
        fails(check, &[&at_one[..], &[file(2, 6, "y")]].concat(), &[2, 3]);
    }
}
