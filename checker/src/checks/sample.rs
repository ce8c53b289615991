//! Small histories for the tests of checks: of one topic `t`, one group `g`, with a record each 10 µs.

use crate::check::{Check, all_broken, check_all};
use crate::event::{Event, GroupObserved, GroupProtocol, MemberObserved, Partition, Record};

/// Time between two records.
pub(crate) const STEP_US: u64 = 10;

pub(crate) fn partition(index: i32) -> Partition {
    Partition::new("t", index)
}

/// A request without a start begins half a step before it ends, after everything before it.
pub(crate) fn history(events: &[Event]) -> Vec<Record> {
    let times = (1..).map(|number| number * STEP_US);
    let mut records: Vec<_> =
        times.zip(events).map(|(at_us, event)| Record { at_us, lane: "x".into(), event: event.clone() }).collect();
    for Record { at_us, event, .. } in &mut records {
        if let Event::EndObserved { started_at_us, .. }
        | Event::Committed { started_at_us, .. }
        | Event::CommitUnknown { started_at_us, .. }
        | Event::OffsetReset { started_at_us, .. }
        | Event::OffsetFetched { started_at_us, .. } = event
            && *started_at_us == 0
        {
            *started_at_us = *at_us - STEP_US / 2;
        }
    }
    records
}

/// Nothing is broken, and the check had something to look at.
#[track_caller]
pub(crate) fn passes(check: &Check, events: &[Event]) {
    match check_all(&history(events)) {
        Ok(summary) => assert!(summary.facts[check.name] > 0, "nothing was checked: {summary:?}"),
        Err(broken) => panic!("{broken}, by {:?}", broken.records),
    }
}

/// The check finds something, shown by these records, and nothing else is broken.
#[track_caller]
pub(crate) fn fails(check: &Check, events: &[Event], records: &[usize]) {
    fails_with(check, events, records, &[]);
}

/// As [`fails`], where other checks must find something as well.
#[track_caller]
pub(crate) fn fails_with(check: &Check, events: &[Event], records: &[usize], others: &[&Check]) {
    let broken = all_broken(&history(events));
    let mut names: Vec<&str> = broken.iter().map(|broken| broken.check).collect();
    let mut expected: Vec<&str> = others.iter().map(|check| check.name).chain([check.name]).collect();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected, "{broken:#?}");
    let found = broken.iter().find(|broken| broken.check == check.name).map(|broken| broken.records.as_slice());
    assert_eq!(found, Some(records), "{broken:#?}");
}

/// Sent by producer `p`, with the key `k` if it names no partition.
pub(crate) fn sent(value: &str) -> Event {
    sent_by("p", None, value)
}

pub(crate) fn sent_by(producer: &str, key: Option<&str>, value: &str) -> Event {
    Event::Sent {
        producer: producer.into(),
        topic: "t".into(),
        partition: None,
        key: key.map(Into::into),
        value: value.into(),
        is_idempotent: true,
        is_tombstone: false,
    }
}

pub(crate) fn acknowledged(value: &str, offset: i64) -> Event {
    Event::Acknowledged { value: value.into(), partition: partition(0), offset: Some(offset) }
}

pub(crate) fn read(offset: i64, value: &str) -> Event {
    Event::Read { partition: partition(0), offset, value: value.into() }
}

/// The end state of partition 0, from offset `start` on.
pub(crate) fn stored(start: i64, values: &[&str]) -> Event {
    let records: Vec<_> = (start..).zip(values).map(|(offset, value)| (offset, (*value).to_owned())).collect();
    Event::FinalRecords { partition: partition(0), start, end: start + values.len() as i64, records }
}

pub(crate) fn assigned(member: &str) -> Event {
    assigned_both(member, &[0])
}

pub(crate) fn assigned_both(member: &str, partitions: &[i32]) -> Event {
    let partitions = partitions.iter().map(|index| partition(*index)).collect();
    Event::Assigned { group: "g".into(), member: member.into(), partitions, epoch: None }
}

pub(crate) fn released(member: &str, is_lost: bool) -> Event {
    Event::Released { group: "g".into(), member: member.into(), partitions: vec![partition(0)], is_lost }
}

/// The record `v<offset>`.
pub(crate) fn polled(member: &str, offset: i64) -> Event {
    polled_in(0, member, offset, &format!("v{offset}"))
}

pub(crate) fn polled_in(index: i32, member: &str, offset: i64, value: &str) -> Event {
    let (group, member, partition) = ("g".into(), member.into(), partition(index));
    Event::Polled { group, member, partition, offset, value: value.into() }
}

pub(crate) fn committed(member: &str, offset: i64) -> Event {
    committed_in(0, member, offset)
}

pub(crate) fn committed_in(index: i32, member: &str, offset: i64) -> Event {
    let (group, member, partition) = ("g".into(), member.into(), partition(index));
    Event::Committed { group, member, partition, offset, started_at_us: 0 }
}

pub(crate) fn committed_from(member: &str, offset: i64, started_at_us: u64) -> Event {
    let (group, member, partition) = ("g".into(), member.into(), partition(0));
    Event::Committed { group, member, partition, offset, started_at_us }
}

pub(crate) fn commit_unknown(member: &str, offset: i64) -> Event {
    let (group, member, partition, reason) = ("g".into(), member.into(), partition(0), "time-out".into());
    Event::CommitUnknown { group, member, partition, offset, started_at_us: 0, reason }
}

pub(crate) fn reset(offset: Option<i64>) -> Event {
    Event::OffsetReset { group: "g".into(), partition: partition(0), offset, started_at_us: 0, is_acknowledged: true }
}

pub(crate) fn fetched(offset: Option<i64>) -> Event {
    fetched_from(offset, 0)
}

pub(crate) fn fetched_from(offset: Option<i64>, started_at_us: u64) -> Event {
    Event::OffsetFetched { group: "g".into(), partition: partition(0), offset, started_at_us }
}

pub(crate) fn in_the_end(offset: Option<i64>) -> Event {
    Event::FinalCommitted { group: "g".into(), partition: partition(0), offset }
}

/// A consumer group in Stable, at this index and with the same epochs for all; members with their partitions.
pub(crate) fn seen(index: Option<u64>, epoch: i32, members: &[(&str, &[i32])]) -> GroupObserved {
    let members = members.iter().map(|(id, owned)| {
        let owned: Vec<_> = owned.iter().map(|index| partition(*index)).collect();
        MemberObserved { id: (*id).to_owned(), epoch: Some(epoch), target: owned.clone(), owned }
    });
    GroupObserved {
        node: Some(1),
        group: "g".into(),
        started_at_us: None,
        index,
        protocol: GroupProtocol::Consumer,
        state: "Stable".into(),
        epoch: Some(epoch),
        assignment_epoch: Some(epoch),
        members: members.collect(),
        subscribed: Vec::new(),
    }
}
