//! The list of checks, and what comes of them.

use std::collections::BTreeMap;
use std::fmt;

use crate::checks;
use crate::event::{Event, Record};
use crate::view::View;

/// A promise that can be checked.
#[derive(Clone, Copy)]
pub struct Check {
    /// What it is called when it is broken.
    pub name: &'static str,
    /// The rule, and where it comes from.
    pub what: &'static str,
    /// Gives how many facts were held against the rule.
    pub(crate) run: for<'a> fn(&View<'a>) -> Result<u64, Violation>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("name", &self.name).field("what", &self.what).finish_non_exhaustive()
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) details: String,
    pub(crate) records: Vec<usize>,
}

/// A violation by these records.
pub(crate) fn violation<T>(details: String, records: impl IntoIterator<Item = usize>) -> Result<T, Violation> {
    let mut records: Vec<usize> = records.into_iter().collect();
    records.sort_unstable();
    records.dedup();
    Err(Violation { details, records })
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{check}: {details}")]
pub struct Broken {
    /// Which check.
    pub check: &'static str,
    /// What was found.
    pub details: String,
    /// Places in the history of the records that show it, ascending: a timeline can be cut around them.
    pub records: Vec<usize>,
}

/// What was checked: a history without anything in it breaks no promise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records in the history.
    pub records: u64,
    /// Records that producers sent.
    pub sent: u64,
    /// Those that were acknowledged.
    pub acknowledged: u64,
    /// Those that were refused for good.
    pub refused: u64,
    /// Those of unknown outcome.
    pub unknown: u64,
    /// Records read by readers in no group.
    pub read: u64,
    /// Records given to members of groups.
    pub polled: u64,
    /// Those of them that a member of the group had been given before.
    pub repeated: u64,
    /// Times that a member was given a partition.
    pub intervals: u64,
    /// How many of them ended with the partition lost.
    pub lost: u64,
    /// How many of them began while another member had not finished with the partition. With members that may have been fenced unawares this
    /// breaks no promise; a test whose members never are asserts that it is 0.
    pub overlaps: u64,
    /// Commits that were acknowledged.
    pub committed: u64,
    /// Commits that were refused.
    pub commits_refused: u64,
    /// Commits of unknown outcome.
    pub commits_unknown: u64,
    /// Committed offsets that were read.
    pub fetched: u64,
    /// Times that a group was seen.
    pub groups_observed: u64,
    /// Times that a leader was seen.
    pub leaders_observed: u64,
    /// Times that the end of a partition was seen.
    pub ends_observed: u64,
    /// Partitions whose records are known to the last.
    pub final_partitions: u64,
    /// Records in them.
    pub final_records: u64,
    /// Committed offsets in the end.
    pub final_committed: u64,
    /// Replicas that were seen in the end.
    pub final_replicas: u64,
    /// Copies of partitions that were seen in the end.
    pub final_files: u64,
    /// By name of the check: how many facts were held against its rule.
    pub facts: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} sent ({} acknowledged, {} refused, {} unknown), {} read, {} polled ({} again), {} stored in {} partitions",
            self.sent,
            self.acknowledged,
            self.refused,
            self.unknown,
            self.read,
            self.polled,
            self.repeated,
            self.final_records,
            self.final_partitions,
        )?;
        writeln!(
            f,
            "{} times a partition was given ({} lost, {} while another had it), {} commits ({} refused, {} unknown), {} fetched",
            self.intervals,
            self.lost,
            self.overlaps,
            self.committed,
            self.commits_refused,
            self.commits_unknown,
            self.fetched + self.final_committed,
        )?;
        for (check, facts) in &self.facts {
            writeln!(f, "{facts:>10}  {check}")?;
        }
        Ok(())
    }
}

/// All checks.
pub const CHECKS: &[Check] = checks::ALL;

/// Runs all checks.
///
/// # Errors
/// The first promise that was broken.
pub fn check_all(records: &[Record]) -> Result<Summary, Broken> {
    let view = View::new(records);
    let mut summary = summary(&view);
    for check in CHECKS {
        let facts = run(check, &view)?;
        summary.facts.insert(check.name, facts);
    }
    Ok(summary)
}

/// Runs all checks; gives the first that each of them found.
#[must_use]
pub fn all_broken(records: &[Record]) -> Vec<Broken> {
    let view = View::new(records);
    CHECKS.iter().filter_map(|check| run(check, &view).err()).collect()
}

fn run(check: &Check, view: &View<'_>) -> Result<u64, Broken> {
    (check.run)(view).map_err(|Violation { details, records }| Broken { check: check.name, details, records })
}

fn summary(view: &View<'_>) -> Summary {
    let mut summary = Summary { records: view.records.len() as u64, ..Summary::default() };
    for record in view.records {
        let count = match &record.event {
            Event::Sent { .. } => &mut summary.sent,
            Event::Acknowledged { .. } => &mut summary.acknowledged,
            Event::Refused { .. } => &mut summary.refused,
            Event::Unknown { .. } => &mut summary.unknown,
            Event::Read { .. } => &mut summary.read,
            Event::Polled { .. } => &mut summary.polled,
            Event::Committed { .. } => &mut summary.committed,
            Event::CommitRefused { .. } => &mut summary.commits_refused,
            Event::CommitUnknown { .. } => &mut summary.commits_unknown,
            Event::OffsetFetched { .. } => &mut summary.fetched,
            Event::GroupObserved(_) => &mut summary.groups_observed,
            Event::LeaderObserved { .. } => &mut summary.leaders_observed,
            Event::EndObserved { .. } => &mut summary.ends_observed,
            Event::FinalCommitted { .. } => &mut summary.final_committed,
            Event::FinalReplica { .. } => &mut summary.final_replicas,
            Event::FinalFile { .. } => &mut summary.final_files,
            _ => continue,
        };
        *count += 1;
    }
    summary.final_partitions = view.stored.len() as u64;
    summary.final_records = view.stored.values().map(|stored| stored.records.len() as u64).sum();
    summary.repeated = view.repeated;
    for interval in &view.intervals {
        summary.intervals += 1;
        summary.lost += u64::from(interval.is_lost());
    }
    summary.overlaps = view.overlaps().len() as u64;
    summary
}
