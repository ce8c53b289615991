//! Records: what was acknowledged is there, once, in order, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{Check, Violation, violation};
use crate::event::{Event, Partition};
use crate::view::View;

pub(crate) const STORED_IS_WHOLE: Check = Check {
    name: "what is stored has a gap",
    what: "Every partition can be read from its start to its end: offsets are consecutive where nothing is compacted (Kafka's log; \
           transactions, whose markers take offsets, are not used).",
    run: stored_is_whole,
};

fn stored_is_whole(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut next: BTreeMap<&Partition, i64> = BTreeMap::new();
    for (index, record) in view.records.iter().enumerate() {
        let Event::FinalRecords { partition, start, end, records } = &record.event else { continue };
        let mut due = next.get(partition).copied().unwrap_or(*start);
        if due != *start {
            return violation(format!("{partition} is told up to {due} and then from {start} on"), [index]);
        }
        for (offset, value) in records {
            facts += 1;
            let is_due = if view.is_compacted(partition) { *offset >= due } else { *offset == due };
            if !is_due {
                return violation(format!("{partition} has {value} at {offset} where {due} comes next"), [index]);
            }
            due = offset + 1;
        }
        if due > *end || (due < *end && !view.is_compacted(partition)) {
            return violation(format!("{partition} ends at {end}; its records end at {due}"), [index]);
        }
        next.insert(partition, *end);
    }
    Ok(facts)
}

pub(crate) const NOTHING_REMOVED: Check = Check {
    name: "records were removed unasked",
    what: "The start of a partition moves only by DeleteRecords and retention.",
    run: nothing_removed,
};

fn nothing_removed(view: &View<'_>) -> Result<u64, Violation> {
    for (partition, stored) in &view.stored {
        let by = stored.told_by.first().copied().unwrap_or_default();
        let may_start_at = view.may_start_at(partition, by);
        if stored.start > may_start_at {
            let details = format!("{partition} starts at {}, no later than {may_start_at} was asked for", stored.start);
            return violation(details, [by]);
        }
    }
    Ok(view.stored.len() as u64)
}

pub(crate) const ONE_OFFSET_ONE_VALUE: Check = Check {
    name: "an offset has two values",
    what: "Whoever reads an offset, whenever and wherever, reads the same record; a producer that is told an offset finds its record \
           there (Raft: committed entries never change).",
    run: one_offset_one_value,
};

fn one_offset_one_value(view: &View<'_>) -> Result<u64, Violation> {
    for pair in view.claims.windows(2) {
        let [one, other] = pair else { continue };
        if (one.partition, one.offset) == (other.partition, other.offset) && one.value != other.value {
            let place = format!("{}:{}", one.partition, one.offset);
            return violation(format!("{place} is {} and {}", one.value, other.value), [one.by, other.by]);
        }
    }
    Ok(view.claims.len() as u64)
}

pub(crate) const NOT_FROM_NOWHERE: Check = Check {
    name: "a record was stored that nobody sent",
    what: "Only what a producer sent is ever read, after it was sent, in the topic and partition that it was sent to; and never what was \
           refused.",
    run: not_from_nowhere,
};

fn not_from_nowhere(view: &View<'_>) -> Result<u64, Violation> {
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, record) in view.records.iter().enumerate() {
        if let Event::Refused { value, .. } = &record.event {
            refused.insert(value, index);
        }
    }
    for claim in &view.claims {
        let place = format_args!("{}:{}", claim.partition, claim.offset);
        let sends = view.sends.get(claim.value).map(Vec::as_slice).unwrap_or_default();
        let is_meant = |index: &usize| match &view.records[*index].event {
            Event::Sent { topic, partition, .. } => {
                *index < claim.by
                    && *topic == claim.partition.topic
                    && partition.is_none_or(|meant| meant == claim.partition.index)
            }
            _ => false,
        };
        if !sends.iter().any(is_meant) {
            let what = if sends.is_empty() { "which nobody sent" } else { "where nobody had sent it" };
            return violation(
                format!("{} is at {place}, {what}", claim.value),
                sends.iter().copied().chain([claim.by]),
            );
        }
        if let (Some(refused), 1) = (refused.get(claim.value), sends.len()) {
            return violation(format!("{} is at {place}; it was refused", claim.value), [*refused, claim.by]);
        }
    }
    Ok(view.claims.len() as u64)
}

pub(crate) const ACKNOWLEDGED_STAYS: Check = Check {
    name: "an acknowledged record is lost",
    what: "An acknowledged write is on a majority's disks (acks=all): it is there in the end, at the offset that was told; where the topic is \
           compacted, it or a later one of its key, unless a tombstone deleted it.",
    run: acknowledged_stays,
};

fn acknowledged_stays(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut places: BTreeSet<(&Partition, &str)> = BTreeSet::new();
    for (partition, stored) in &view.stored {
        places.extend(stored.records.iter().map(|(_, value)| (*partition, *value)));
    }
    for (index, record) in view.records.iter().enumerate() {
        let Event::Acknowledged { value, partition, offset } = &record.event else { continue };
        let Some(stored) = view.stored.get(partition) else { continue };
        facts += 1;
        if view.is_compacted(partition) && view.is_superseded(partition, offset.unwrap_or(-1), value) {
            continue;
        }
        let is_there = match offset {
            Some(offset) => *offset < stored.start || stored.at(*offset) == Some(value),
            // It may be among those that were removed.
            None => stored.start > 0 || places.contains(&(partition, value)),
        };
        if !is_there {
            let place = offset.map_or("an offset not told".to_owned(), |offset| offset.to_string());
            let found = offset.and_then(|offset| stored.at(offset)).unwrap_or("nothing");
            let details = format!("{value} was acknowledged at {partition}:{place}, where {found} is in the end");
            return violation(details, sent(view, value).chain([index]).chain(stored.told_by.last().copied()));
        }
    }
    Ok(facts)
}

fn sent<'a>(view: &'a View<'_>, value: &str) -> impl Iterator<Item = usize> + 'a {
    view.sends.get(value).into_iter().flatten().copied()
}

pub(crate) const READ_STAYS: Check = Check {
    name: "a record that was read is lost",
    what: "Only what is committed is ever visible: whatever anybody read is there in the end, whether it was acknowledged or not; where the \
           topic is compacted, it or a later one of its key, unless a tombstone deleted it.",
    run: read_stays,
};

fn read_stays(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for claim in &view.claims {
        if !matches!(view.records[claim.by].event, Event::Read { .. } | Event::Polled { .. }) {
            continue;
        }
        let Some(stored) = view.stored.get(claim.partition) else { continue };
        facts += 1;
        let may_be_gone = claim.offset < stored.start
            || view.is_compacted(claim.partition) && view.is_superseded(claim.partition, claim.offset, claim.value);
        if !may_be_gone && stored.at(claim.offset) != Some(claim.value) {
            let place = format_args!("{}:{}", claim.partition, claim.offset);
            let found = stored.at(claim.offset).unwrap_or("nothing");
            let details = format!("{} was read at {place}, where {found} is in the end", claim.value);
            return violation(details, sent(view, claim.value).chain([claim.by]).chain(stored.told_by.last().copied()));
        }
    }
    Ok(facts)
}

pub(crate) const DELETED_STAYS_AWAY: Check = Check {
    name: "a deleted record came back",
    what: "A tombstone goes only after all that it deletes: while a record is there, so is every later tombstone of its key (Kafka's log \
           compaction, delete.retention.ms).",
    run: deleted_stays_away,
};

fn deleted_stays_away(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    for (partition, stored) in view.stored.iter().filter(|(partition, _)| view.is_compacted(partition)) {
        for (offset, value) in &stored.records {
            for (tombstone, by) in view.deletions_since(partition, *offset, value) {
                facts += 1;
                if stored.at(tombstone).is_none() {
                    let details = format!("{value} is at {partition}:{offset}; the tombstone at {tombstone} is gone");
                    return violation(details, sent(view, value).chain([by]).chain(stored.told_by.last().copied()));
                }
            }
        }
    }
    Ok(facts)
}

pub(crate) const STORED_ONCE: Check = Check {
    name: "an idempotent producer's record is stored twice",
    what: "However often an idempotent producer retries, a record is stored once for each time that its caller sent it (KIP-98).",
    run: stored_once,
};

fn stored_once(view: &View<'_>) -> Result<u64, Violation> {
    let mut places: BTreeMap<&str, BTreeMap<(&Partition, i64), usize>> = BTreeMap::new();
    for claim in &view.claims {
        places.entry(claim.value).or_default().entry((claim.partition, claim.offset)).or_insert(claim.by);
    }
    for (value, places) in &places {
        let sends = view.sends.get(value).map(Vec::as_slice).unwrap_or_default();
        let is_idempotent =
            |index: &usize| matches!(view.records[*index].event, Event::Sent { is_idempotent: true, .. });
        if places.len() > sends.len() && !sends.is_empty() && sends.iter().all(is_idempotent) {
            let at: Vec<String> = places.keys().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
            let details = format!("{value}, sent {} times, is at {}", sends.len(), at.join(" and "));
            return violation(details, sends.iter().chain(places.values()).copied());
        }
    }
    Ok(places.len() as u64)
}

pub(crate) const PRODUCER_ORDER: Check = Check {
    name: "records of a producer are out of order",
    what: "Within one life, a producer's records stand in each partition in the order in which it sent them (KIP-98; Kafka's guarantee for \
           max.in.flight.requests up to 5).",
    run: producer_order,
};

fn producer_order(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut last: BTreeMap<(&Partition, &str), (usize, usize, i64)> = BTreeMap::new();
    for claim in &view.claims {
        // A record that its caller sent twice has no one place in the order.
        let Some([send]) = view.sends.get(claim.value).map(Vec::as_slice) else { continue };
        let Event::Sent { producer, is_idempotent, .. } = &view.records[*send].event else { continue };
        facts += 1;
        let before = last.insert((claim.partition, producer), (*send, claim.by, claim.offset));
        if let Some((sent_before, by, offset)) = before
            // Without idempotence a retry may store a record again.
            && (sent_before > *send || (*is_idempotent && sent_before == *send && offset != claim.offset))
        {
            let details = format!(
                "{} is at {}:{}, after {}, which {producer} sent later",
                claim.value,
                claim.partition,
                claim.offset,
                value_of(view, sent_before),
            );
            return violation(details, [sent_before, *send, by, claim.by]);
        }
    }
    Ok(facts)
}

fn value_of<'a>(view: &View<'a>, send: usize) -> &'a str {
    match view.records.get(send).map(|record| &record.event) {
        Some(Event::Sent { value, .. }) => value,
        _ => "",
    }
}

pub(crate) const ACKNOWLEDGED_COMES_FIRST: Check = Check {
    name: "a record stands before one that was acknowledged before it was sent",
    what: "A partition is a linearizable log: what is sent after an acknowledgement comes behind what was acknowledged, whoever sent it.",
    run: acknowledged_comes_first,
};

fn acknowledged_comes_first(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut offsets: BTreeMap<usize, Vec<(&Partition, i64, usize)>> = BTreeMap::new();
    for claim in &view.claims {
        if let Some([send]) = view.sends.get(claim.value).map(Vec::as_slice) {
            offsets.entry(*send).or_default().push((claim.partition, claim.offset, claim.by));
        }
    }
    let mut highest: BTreeMap<&Partition, (i64, usize)> = BTreeMap::new();
    for (index, record) in view.records.iter().enumerate() {
        match &record.event {
            Event::Acknowledged { partition, offset: Some(offset), .. } => {
                let highest = highest.entry(partition).or_insert((*offset, index));
                *highest = (*highest).max((*offset, index));
            }
            Event::Sent { value, .. } => {
                for (partition, offset, by) in offsets.get(&index).into_iter().flatten() {
                    let Some((before, acknowledged)) = highest.get(partition) else { continue };
                    facts += 1;
                    if before >= offset {
                        let details = format!("{value} is at {partition}:{offset}; {before} was acknowledged before");
                        return violation(details, [*acknowledged, index, *by]);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(facts)
}

pub(crate) const KEY_STAYS: Check = Check {
    name: "records of a key are in two partitions",
    what: "A key's records come to one partition, as long as the topic keeps the number of its partitions (Kafka's default partitioner).",
    run: key_stays,
};

fn key_stays(view: &View<'_>) -> Result<u64, Violation> {
    let mut facts = 0;
    let mut homes: BTreeMap<(&str, &str), (&Partition, usize)> = BTreeMap::new();
    for claim in &view.claims {
        let Some([send]) = view.sends.get(claim.value).map(Vec::as_slice) else { continue };
        let Event::Sent { key: Some(key), partition: None, topic, .. } = &view.records[*send].event else { continue };
        facts += 1;
        let (home, by) = *homes.entry((topic, key)).or_insert((claim.partition, claim.by));
        if home != claim.partition {
            return violation(format!("{key} is in {home} and in {}", claim.partition), [by, claim.by]);
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::replicas::END_IS_BEHIND_ALL;
    use crate::checks::sample::{acknowledged, fails, fails_with, partition, passes, read, sent, sent_by, stored};

    fn truncated(start: i64) -> Event {
        Event::Truncated { partition: partition(0), start }
    }

    fn compacted() -> Event {
        Event::Compacted { topic: "t".into() }
    }

    fn refused(value: &str) -> Event {
        Event::Refused { value: value.into(), reason: "too large".into() }
    }

    fn unknown(value: &str) -> Event {
        Event::Unknown { value: value.into(), reason: "time-out".into() }
    }

    fn found_stored(value: &str) -> Event {
        Event::Acknowledged { value: value.into(), partition: partition(0), offset: None }
    }

    fn piece(start: i64, end: i64, records: &[(i64, &str)]) -> Event {
        let records = records.iter().map(|(offset, value)| (*offset, (*value).to_owned())).collect();
        Event::FinalRecords { partition: partition(0), start, end, records }
    }

    #[test]
    fn what_is_stored_has_no_gap() {
        let sends = [sent("a"), sent("b")];
        let with = |more: &[Event]| [&sends[..], more].concat();
        let check = &STORED_IS_WHOLE;
        passes(check, &with(&[piece(0, 1, &[(0, "a")]), piece(1, 2, &[(1, "b")])]));
        passes(check, &with(&[compacted(), piece(0, 9, &[(3, "a"), (7, "b")])]));
        fails(check, &with(&[piece(0, 3, &[(0, "a"), (2, "b")])]), &[2]);
        fails(check, &with(&[piece(0, 2, &[(0, "a")])]), &[2]);
        fails(check, &with(&[piece(0, 1, &[(0, "a")]), piece(2, 3, &[(2, "b")])]), &[3]);
        fails(check, &with(&[compacted(), piece(0, 2, &[(1, "a"), (1, "a")])]), &[3]);
    }

    #[test]
    fn records_are_removed_only_when_it_is_asked_for() {
        let check = &NOTHING_REMOVED;
        passes(check, &[sent("a"), truncated(1), stored(1, &["a"])]);
        passes(check, &[sent("a"), truncated(5), truncated(3), stored(5, &["a"])]);
        fails(check, &[sent("a"), truncated(1), stored(2, &["a"])], &[2]);
        fails(check, &[sent("a"), stored(1, &["a"]), truncated(1)], &[1]);
    }

    #[test]
    fn an_offset_has_one_value_for_all() {
        let sends = [sent_by("p", None, "a"), sent_by("q", None, "b")];
        let with = |more: &[Event]| [&sends[..], more].concat();
        let check = &ONE_OFFSET_ONE_VALUE;
        passes(check, &with(&[read(0, "a"), acknowledged("a", 0), read(0, "a"), read(1, "b")]));
        fails(check, &with(&[read(0, "a"), read(0, "b")]), &[2, 3]);
        fails(check, &with(&[read(0, "a"), acknowledged("b", 0)]), &[2, 3]);
        fails_with(check, &with(&[read(0, "a"), stored(0, &["b"])]), &[2, 3], &[&READ_STAYS]);
    }

    #[test]
    fn nothing_comes_from_nowhere() {
        let check = &NOT_FROM_NOWHERE;
        passes(check, &[sent("a"), refused("a"), sent("a"), read(0, "a")]);
        fails(check, &[read(0, "a")], &[0]);
        fails(check, &[read(0, "a"), sent("a")], &[0, 1]);
        fails(check, &[sent("a"), refused("a"), read(0, "a")], &[1, 2]);
        fails(check, &[sent("a"), read(0, "a"), refused("a")], &[1, 2]);
        let elsewhere = Event::Read { partition: Partition::new("u", 0), offset: 0, value: "a".into() };
        fails(check, &[sent("a"), elsewhere], &[0, 1]);
        let mut to_another = sent("a");
        if let Event::Sent { partition, .. } = &mut to_another {
            *partition = Some(1);
        }
        fails(check, &[to_another, read(0, "a")], &[0, 1]);
    }

    #[test]
    fn acknowledged_records_stay_and_unknown_ones_may() {
        let check = &ACKNOWLEDGED_STAYS;
        passes(check, &[sent("a"), acknowledged("a", 0), sent("b"), found_stored("b"), stored(0, &["a", "b"])]);
        passes(check, &[sent("a"), sent("b"), unknown("a"), acknowledged("b", 0), stored(0, &["b"])]);
        passes(check, &[sent("a"), sent("b"), unknown("a"), acknowledged("b", 1), stored(0, &["a", "b"])]);
        passes(check, &[sent("a"), acknowledged("a", 0), truncated(1), stored(1, &[])]);
        let (a, b) = (sent_by("p", None, "a"), sent_by("q", None, "b"));
        fails_with(check, &[a, b, acknowledged("a", 0), stored(0, &["b"])], &[0, 2, 3], &[&ONE_OFFSET_ONE_VALUE]);
        fails(check, &[sent("a"), sent("b"), found_stored("a"), stored(0, &["b"])], &[0, 2, 3]);
    }

    fn keyed(key: &str, value: &str) -> Event {
        sent_by("p", Some(key), value)
    }

    fn tombstone(key: &str, value: &str) -> Event {
        let mut event = keyed(key, value);
        if let Event::Sent { is_tombstone, .. } = &mut event {
            *is_tombstone = true;
        }
        event
    }

    #[test]
    fn what_a_tombstone_deletes_may_go_and_the_tombstone_only_after_it() {
        let sends = [compacted(), keyed("k", "a"), tombstone("k", "x"), keyed("l", "b"), keyed("k", "c")];
        let with = |more: &[Event]| [&sends[..], more].concat();
        let in_the_end = |records: &[(i64, &str)]| piece(0, 4, records);
        let known = [acknowledged("a", 0), acknowledged("x", 1), acknowledged("b", 2)];
        let check = &ACKNOWLEDGED_STAYS;
        for left in [&[(0, "a"), (1, "x"), (2, "b")][..], &[(1, "x"), (2, "b")], &[(2, "b")]] {
            passes(check, &with(&[&known[..], &[in_the_end(left)]].concat()));
        }
        fails(check, &with(&[&known[..], &[acknowledged("c", 3), in_the_end(&[(2, "b")])]].concat()), &[4, 8, 9]);
        fails(check, &with(&[&known[..], &[in_the_end(&[(1, "x")])]].concat()), &[3, 7, 8]);
        // One that nobody saw may have been stored, and be gone.
        passes(check, &with(&[acknowledged("a", 0), unknown("x"), in_the_end(&[])]));
        passes(&READ_STAYS, &with(&[read(0, "a"), read(1, "x"), in_the_end(&[])]));
        // Nor is it known where all copies are of one that a retry may have stored again.
        let mut repeated = with(&[acknowledged("x", 1), acknowledged("c", 3), in_the_end(&[])]);
        fails(check, &repeated, &[4, 6, 7]);
        if let Event::Sent { is_idempotent, .. } = &mut repeated[2] {
            *is_idempotent = false;
        }
        passes(check, &repeated);
        let back = with(&[read(1, "x"), in_the_end(&[(0, "a"), (2, "b")])]);
        fails(&DELETED_STAYS_AWAY, &back, &[1, 5, 6]);
        passes(&DELETED_STAYS_AWAY, &with(&[read(1, "x"), in_the_end(&[(0, "a"), (1, "x"), (2, "b")])]));
    }

    #[test]
    fn the_last_record_of_a_key_stays() {
        let sends = [compacted(), keyed("k", "a"), keyed("l", "b"), keyed("k", "c")];
        let with = |more: &[Event]| [&sends[..], more].concat();
        let in_the_end = |records: &[(i64, &str)]| piece(0, 3, records);
        for (check, seen) in
            [(&ACKNOWLEDGED_STAYS, acknowledged as fn(&str, i64) -> Event), (&READ_STAYS, |v, o| read(o, v))]
        {
            passes(check, &with(&[seen("a", 0), seen("b", 1), seen("c", 2), in_the_end(&[(1, "b"), (2, "c")])]));
            fails(check, &with(&[seen("a", 0), seen("b", 1), seen("c", 2), in_the_end(&[(2, "c")])]), &[2, 5, 7]);
            fails(check, &with(&[seen("a", 0), in_the_end(&[(1, "b")])]), &[1, 4, 5]);
        }
        passes(&ACKNOWLEDGED_STAYS, &with(&[found_stored("a"), in_the_end(&[(1, "b"), (2, "c")])]));
        fails(&ACKNOWLEDGED_STAYS, &with(&[found_stored("a"), in_the_end(&[(1, "b")])]), &[1, 4, 5]);
    }

    #[test]
    fn what_was_read_stays() {
        let check = &READ_STAYS;
        passes(check, &[sent("a"), read(0, "a"), unknown("a"), stored(0, &["a"])]);
        passes(check, &[sent("a"), read(0, "a"), truncated(1), stored(1, &[])]);
        let lost = [sent("a"), unknown("a"), read(0, "a"), stored(0, &[])];
        fails_with(check, &lost, &[0, 2, 3], &[&END_IS_BEHIND_ALL]);
    }

    #[test]
    fn an_idempotent_producers_record_is_stored_once_for_each_time_it_was_sent() {
        let check = &STORED_ONCE;
        passes(check, &[sent("a"), unknown("a"), sent("a"), stored(0, &["a", "a"])]);
        let mut may_repeat = sent("a");
        if let Event::Sent { is_idempotent, .. } = &mut may_repeat {
            *is_idempotent = false;
        }
        passes(&ONE_OFFSET_ONE_VALUE, &[sent_by("q", None, "b"), stored(0, &["b"])]);
        fails_with(check, &[sent("a"), stored(0, &["a", "a"])], &[0, 1], &[&PRODUCER_ORDER]);
        // Without idempotence a retry may store it again.
        passes(check, &[may_repeat, stored(0, &["a", "a"])]);
    }

    #[test]
    fn a_producers_records_are_in_order_within_one_life() {
        let check = &PRODUCER_ORDER;
        passes(check, &[sent("a"), sent("b"), read(4, "b"), read(2, "a")]);
        passes(check, &[sent_by("p", None, "a"), sent_by("q", None, "b"), stored(0, &["b", "a"])]);
        fails(check, &[sent("a"), sent("b"), stored(0, &["b", "a"])], &[0, 1, 2]);
        fails(check, &[sent("a"), sent("b"), read(4, "a"), read(2, "b")], &[0, 1, 2, 3]);
    }

    #[test]
    fn what_was_acknowledged_stands_before_what_is_sent_later() {
        let check = &ACKNOWLEDGED_COMES_FIRST;
        let (a, b) = (sent_by("p", None, "a"), sent_by("q", None, "b"));
        passes(check, &[a.clone(), acknowledged("a", 0), b.clone(), acknowledged("b", 1)]);
        passes(&ONE_OFFSET_ONE_VALUE, &[a.clone(), b.clone(), acknowledged("a", 1), acknowledged("b", 0)]);
        fails(check, &[a, acknowledged("a", 1), b, read(0, "b")], &[1, 2, 3]);
    }

    #[test]
    fn a_key_keeps_its_partition() {
        let elsewhere = Event::Read { partition: partition(1), offset: 0, value: "b".into() };
        let sends = |key| [sent_by("p", Some("k"), "a"), sent_by("p", Some(key), "b"), read(0, "a"), elsewhere.clone()];
        passes(&KEY_STAYS, &sends("l"));
        fails(&KEY_STAYS, &sends("k"), &[2, 3]);
    }
}
