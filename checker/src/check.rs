//! What must be true of a history and of what the cluster holds in the end. Pure: it is given both as data.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::Event;

/// Everything that is stored when the run is over: partition → records as (offset, value), ascending.
pub type Stored = BTreeMap<i32, Vec<(i64, String)>>;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{check}: {details}")]
pub struct Broken {
    /// Which check.
    pub check: &'static str,
    /// What was found.
    pub details: String,
}

fn broken(check: &'static str, details: String) -> Result<(), Broken> {
    Err(Broken { check, details })
}

/// Runs all checks.
///
/// # Errors
/// The first promise that was broken.
pub fn check(history: &[Event], stored: &Stored, committed: &BTreeMap<i32, i64>) -> Result<(), Broken> {
    acknowledged_records_are_stored(history, stored)?;
    nothing_is_stored_twice_or_from_nowhere(history, stored)?;
    records_of_a_producer_are_in_order(stored)?;
    polled_records_are_the_stored_ones(history, stored)?;
    polls_are_contiguous(history)?;
    every_record_reached_the_group(history, stored, committed)?;
    acknowledged_commits_are_kept(history, committed)
}

fn acknowledged_records_are_stored(history: &[Event], stored: &Stored) -> Result<(), Broken> {
    for event in history {
        let Event::Acknowledged { value, partition, offset } = event else { continue };
        let records = stored.get(partition).map(Vec::as_slice).unwrap_or_default();
        let found = match offset {
            Some(offset) => records.iter().any(|(at, record)| at == offset && record == value),
            None => records.iter().any(|(_, record)| record == value),
        };
        if !found {
            return broken("an acknowledged record is lost", format!("{value} at {partition}/{offset:?}"));
        }
    }
    Ok(())
}

fn nothing_is_stored_twice_or_from_nowhere(history: &[Event], stored: &Stored) -> Result<(), Broken> {
    let sent: BTreeSet<&str> = history
        .iter()
        .filter_map(|event| if let Event::Sent { value } = event { Some(value.as_str()) } else { None })
        .collect();
    let mut seen = BTreeSet::new();
    for (partition, records) in stored {
        for (offset, value) in records {
            if !sent.contains(value.as_str()) {
                return broken("a record was stored that nobody sent", format!("{value} at {partition}/{offset}"));
            }
            if !seen.insert(value.as_str()) {
                return broken(
                    "an idempotent producer's record is stored twice",
                    format!("{value} at {partition}/{offset}"),
                );
            }
        }
    }
    Ok(())
}

/// The name of the producer and the number of the record.
fn parse(value: &str) -> Option<(&str, u64)> {
    let (producer, number) = value.rsplit_once('-')?;
    Some((producer, number.parse().ok()?))
}

fn records_of_a_producer_are_in_order(stored: &Stored) -> Result<(), Broken> {
    for (partition, records) in stored {
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for (offset, value) in records {
            let Some((producer, number)) = parse(value) else { continue };
            if let Some(before) = last.insert(producer, number)
                && before >= number
            {
                return broken(
                    "records of a producer are out of order",
                    format!("{value} at {partition}/{offset} after {producer}-{before}"),
                );
            }
        }
    }
    Ok(())
}

fn polled_records_are_the_stored_ones(history: &[Event], stored: &Stored) -> Result<(), Broken> {
    for event in history {
        let Event::Polled { member, partition, offset, value } = event else { continue };
        let records = stored.get(partition).map(Vec::as_slice).unwrap_or_default();
        let there = records.binary_search_by_key(offset, |(at, _)| *at).ok().map(|index| &records[index].1);
        if there != Some(value) {
            return broken(
                "a member read what is not stored",
                format!("{member} read {value} at {partition}/{offset}, where {there:?} is stored"),
            );
        }
    }
    Ok(())
}

/// While a member has a partition it reads it without a gap and without going back.
fn polls_are_contiguous(history: &[Event]) -> Result<(), Broken> {
    let mut next: BTreeMap<(&str, i32), i64> = BTreeMap::new();
    for event in history {
        match event {
            Event::Released { member, partitions } => {
                for partition in partitions {
                    next.remove(&(member.as_str(), *partition));
                }
            }
            Event::Polled { member, partition, offset, .. } => {
                if let Some(expected) = next.insert((member, *partition), offset + 1)
                    && expected != *offset
                {
                    return broken(
                        "polls of a member are not contiguous",
                        format!("{member} read {partition}/{offset} where {expected} was next"),
                    );
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// What lies below the committed offset was read by some member: nothing is skipped.
fn every_record_reached_the_group(
    history: &[Event],
    stored: &Stored,
    committed: &BTreeMap<i32, i64>,
) -> Result<(), Broken> {
    let polled: BTreeSet<(i32, i64)> = history
        .iter()
        .filter_map(|event| match event {
            Event::Polled { partition, offset, .. } => Some((*partition, *offset)),
            _ => None,
        })
        .collect();
    for (partition, records) in stored {
        let done = committed.get(partition).copied().unwrap_or(0);
        if let Some((offset, value)) =
            records.iter().find(|(offset, _)| *offset < done && !polled.contains(&(*partition, *offset)))
        {
            return broken("a record was skipped", format!("{value} at {partition}/{offset}; committed is {done}"));
        }
    }
    Ok(())
}

fn acknowledged_commits_are_kept(history: &[Event], committed: &BTreeMap<i32, i64>) -> Result<(), Broken> {
    let mut acknowledged: BTreeMap<i32, i64> = BTreeMap::new();
    for event in history {
        if let Event::Committed { partition, offset, .. } = event {
            let highest = acknowledged.entry(*partition).or_insert(*offset);
            *highest = (*highest).max(*offset);
        }
    }
    for (partition, offset) in acknowledged {
        // Owners follow one another and each begins where the one before committed, so commits only grow.
        let now = committed.get(&partition).copied();
        if now.is_none_or(|now| now < offset) {
            return broken(
                "an acknowledged commit is lost",
                format!("{partition}: {offset} was committed, {now:?} is there"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(values: &[&str]) -> Stored {
        let records = values.iter().enumerate().map(|(offset, value)| (offset as i64, (*value).to_owned())).collect();
        BTreeMap::from([(0, records)])
    }

    fn sent(value: &str) -> Event {
        Event::Sent { value: value.to_owned() }
    }

    fn acknowledged(value: &str, offset: i64) -> Event {
        Event::Acknowledged { value: value.to_owned(), partition: 0, offset: Some(offset) }
    }

    fn polled(member: &str, offset: i64, value: &str) -> Event {
        Event::Polled { member: member.to_owned(), partition: 0, offset, value: value.to_owned() }
    }

    fn committed(offset: i64) -> Event {
        Event::Committed { member: "m".to_owned(), partition: 0, offset }
    }

    fn expect(history: &[Event], stored: &Stored, done: i64, verdict: Option<&str>) {
        let outcome = check(history, stored, &BTreeMap::from([(0, done)]));
        assert_eq!(outcome.as_ref().err().map(|broken| broken.check), verdict, "{outcome:?}");
    }

    #[test]
    fn each_broken_promise_is_found_and_a_good_history_passes() {
        let both = stored(&["p-0", "p-1"]);
        let sends = [sent("p-0"), sent("p-1")];
        let with = |more: &[Event]| sends.iter().chain(more).cloned().collect::<Vec<_>>();
        let good = with(&[acknowledged("p-0", 0), polled("m", 0, "p-0"), polled("m", 1, "p-1"), committed(2)]);
        expect(&good, &both, 2, None);
        expect(&with(&[acknowledged("p-1", 0)]), &both, 0, Some("an acknowledged record is lost"));
        expect(&sends, &stored(&["p-0", "p-0"]), 0, Some("an idempotent producer's record is stored twice"));
        expect(&sends, &stored(&["q-0"]), 0, Some("a record was stored that nobody sent"));
        expect(&sends, &stored(&["p-1", "p-0"]), 0, Some("records of a producer are out of order"));
        expect(&with(&[polled("m", 0, "p-1")]), &both, 0, Some("a member read what is not stored"));
        let twice = [polled("m", 0, "p-0"), polled("m", 0, "p-0")];
        expect(&with(&twice), &both, 0, Some("polls of a member are not contiguous"));
        expect(&with(&[polled("m", 1, "p-1")]), &both, 2, Some("a record was skipped"));
        let kept = [polled("m", 0, "p-0"), polled("m", 1, "p-1"), committed(2)];
        expect(&with(&kept), &both, 1, Some("an acknowledged commit is lost"));
    }
}
