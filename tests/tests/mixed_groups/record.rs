//! What the members of a group did, by one clock, and the checks of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use tests::{Delivered, assert_all_delivered_in_order, assert_stored_once_in_order};

/// How a member came to the end of having a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It was asked to give it up, and had finished with it.
    Revoked,
    /// It was told that others may have it already.
    Lost,
}

/// A member's time with a partition: from being told that it has it until it has finished with it.
#[derive(Debug)]
struct Ownership {
    member: String,
    partition: i32,
    from: Duration,
    end: Option<(Duration, End)>,
    /// What the group had committed when it began.
    committed_before: i64,
    /// The offset after the last one that was read.
    next: Option<i64>,
}

#[derive(Debug, Default)]
struct Notes {
    /// In the order in which they began.
    ownerships: Vec<Ownership>,
    delivered: Vec<Delivered>,
    /// By partition: the offset after the highest that any member has read.
    next: BTreeMap<i32, i64>,
    /// By partition: the highest offset whose commit was acknowledged.
    committed: BTreeMap<i32, i64>,
    repeated: usize,
    violations: Vec<String>,
    log: Vec<(Duration, String, String)>,
}

/// One group's record. All members write it, under one lock and with one clock: what stands earlier was earlier.
#[derive(Debug)]
pub(crate) struct GroupRecord {
    group: String,
    start: Instant,
    notes: Mutex<Notes>,
}

impl GroupRecord {
    pub(crate) fn new(group: &str) -> Arc<Self> {
        Arc::new(Self { group: group.to_owned(), start: TokioEnv::now(), notes: Mutex::default() })
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line to what is shown when the test fails.
    pub(crate) fn note(&self, who: &str, text: impl Into<String>) {
        let mut notes = self.notes();
        let at = self.start.elapsed();
        notes.log.push((at, who.to_owned(), text.into()));
    }

    /// Messages that were read by any member, each counted once.
    pub(crate) fn read(&self) -> usize {
        let notes = self.notes();
        notes.delivered.len() - notes.repeated
    }

    /// Who has which partitions now.
    pub(crate) fn owners(&self) -> BTreeMap<String, BTreeSet<i32>> {
        let mut owners: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for ownership in self.notes().ownerships.iter().filter(|ownership| ownership.end.is_none()) {
            owners.entry(ownership.member.clone()).or_default().insert(ownership.partition);
        }
        owners
    }

    /// Checks everything: no partition had two owners at any time, no member read what it did not have, nobody lost a partition, each
    /// owner went on where the one before had stopped, nothing is missing, and nothing was read twice.
    ///
    /// # Panics
    /// It is not so.
    pub(crate) fn check(&self, acknowledged: &[String]) {
        let notes = self.notes();
        let mut violations = notes.violations.clone();
        let mut before: BTreeMap<i32, &Ownership> = BTreeMap::new();
        for ownership in &notes.ownerships {
            if let Some(earlier) = before.insert(ownership.partition, ownership)
                && earlier.end.is_none_or(|(end, _)| end > ownership.from)
            {
                violations.push(format!("a partition had two owners: {earlier:?} and {ownership:?}"));
            }
            if matches!(ownership.end, Some((_, End::Lost))) {
                violations.push(format!("a partition was lost: {ownership:?}"));
            }
        }
        assert!(violations.is_empty(), "group {}:\n{}", self.group, violations.join("\n"));
        assert_all_delivered_in_order(&notes.delivered, acknowledged);
        let mut delivered = notes.delivered.clone();
        delivered.sort_by_key(|message| (message.partition, message.offset));
        assert_stored_once_in_order(&delivered, acknowledged);
        assert_eq!(notes.repeated, 0, "group {}: messages were read twice", self.group);
        println!(
            "group {}: {} messages read, {} repeated; {} assignments of partitions; {:?}",
            self.group,
            notes.delivered.len(),
            notes.repeated,
            notes.ownerships.len(),
            self.start.elapsed(),
        );
    }
}

/// Shows what every member noted if the test fails.
pub(crate) struct ShownOnPanic(pub(crate) Vec<Arc<GroupRecord>>);

impl Drop for ShownOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for record in &self.0 {
            let notes = record.notes();
            eprintln!("---- group {}: {} messages read, next {:?}", record.group, notes.delivered.len(), notes.next);
            eprintln!("committed {:?}\nviolations {:#?}", notes.committed, notes.violations);
            let members: BTreeSet<&str> = notes.log.iter().map(|(_, who, _)| who.as_str()).collect();
            for member in members {
                eprintln!("-- {member}");
                for (at, _, text) in notes.log.iter().filter(|(_, who, _)| who == member) {
                    eprintln!("{:9.3} {text}", at.as_secs_f64());
                }
            }
        }
    }
}

/// One member's part in its group's record.
#[derive(Debug)]
pub(crate) struct MemberNotes {
    record: Arc<GroupRecord>,
    name: String,
    /// By partition: what was read and is not committed yet, as the offset to commit.
    uncommitted: Mutex<BTreeMap<i32, i64>>,
}

impl MemberNotes {
    pub(crate) fn new(record: &Arc<GroupRecord>, name: &str) -> Self {
        Self { record: Arc::clone(record), name: name.to_owned(), uncommitted: Mutex::default() }
    }

    pub(crate) fn group(&self) -> &str {
        &self.record.group
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.record.note(&self.name, text);
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        self.uncommitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, text: String, change: impl FnOnce(&mut Notes, Duration)) {
        let mut notes = self.record.notes();
        let at = self.record.start.elapsed();
        notes.log.push((at, self.name.clone(), text));
        change(&mut notes, at);
    }

    /// The member was told that it has these.
    pub(crate) fn assigned(&self, partitions: &[i32]) {
        self.change(format!("assigned {partitions:?}"), |notes, from| {
            for &partition in partitions {
                let committed_before = notes.committed.get(&partition).copied().unwrap_or(0);
                let member = self.name.clone();
                let ownership = Ownership { member, partition, from, end: None, committed_before, next: None };
                notes.ownerships.push(ownership);
            }
        });
    }

    /// The member has finished with these.
    pub(crate) fn revoked(&self, partitions: &[i32]) {
        self.ended(partitions, End::Revoked);
    }

    /// The member was told that it may not have these any more.
    pub(crate) fn lost(&self, partitions: &[i32]) {
        self.pending().retain(|partition, _| !partitions.contains(partition));
        self.ended(partitions, End::Lost);
    }

    fn ended(&self, partitions: &[i32], how: End) {
        self.change(format!("{how:?} {partitions:?}"), |notes, at| {
            for &partition in partitions {
                match notes.current(&self.name, partition) {
                    Some(ownership) => ownership.end = Some((at, how)),
                    None => notes.violations.push(format!("{} gave up {partition}, which it did not have", self.name)),
                }
            }
        });
    }

    /// Something went wrong that must not.
    pub(crate) fn failed(&self, error: impl std::fmt::Display) {
        self.record.notes().violations.push(format!("{}: {error}", self.name));
    }

    /// Those of `partitions` that the member has.
    pub(crate) fn had(&self, partitions: Vec<i32>) -> Vec<i32> {
        let owned = self.owned();
        partitions.into_iter().filter(|partition| owned.contains(partition)).collect()
    }

    /// All that the member has.
    pub(crate) fn owned(&self) -> Vec<i32> {
        self.record.owners().remove(&self.name).unwrap_or_default().into_iter().collect()
    }

    /// The member was given a message, and has processed it.
    pub(crate) fn delivered(&self, message: Delivered) {
        let (partition, offset) = (message.partition, message.offset);
        self.pending().insert(partition, offset + 1);
        let mut notes = self.record.notes();
        let next = notes.next.get(&partition).copied().unwrap_or(0);
        let name = &self.name;
        let violation = match notes.current(name, partition) {
            None => Some(format!("{name} read {partition}:{offset}, which it did not have")),
            Some(ownership) => {
                let committed = ownership.committed_before;
                match ownership.next.replace(offset + 1) {
                    Some(due) if due != offset => Some(format!("{name} read {partition}:{offset} instead of {due}")),
                    None if offset > next => Some(format!("{name} skipped {partition}:{next} to {offset}")),
                    None if offset < committed => {
                        Some(format!("{name} began with {partition}:{offset}, although {committed} was committed"))
                    }
                    _ => None,
                }
            }
        };
        notes.violations.extend(violation);
        notes.next.insert(partition, next.max(offset + 1));
        if offset < next {
            notes.repeated += 1;
            let at = self.record.start.elapsed();
            notes.log.push((at, self.name.clone(), format!("read {partition}:{offset} again")));
        }
        notes.delivered.push(message);
    }

    /// What was read of these partitions, or of all, and is not committed yet.
    pub(crate) fn uncommitted(&self, only: Option<&[i32]>) -> BTreeMap<i32, i64> {
        let is_meant = |partition: &i32| only.is_none_or(|only| only.contains(partition));
        self.pending().iter().filter(|(partition, _)| is_meant(partition)).map(|(at, offset)| (*at, *offset)).collect()
    }

    /// These commits were acknowledged.
    pub(crate) fn committed(&self, offsets: &BTreeMap<i32, i64>) {
        self.pending().retain(|partition, offset| offsets.get(partition).is_none_or(|committed| committed < offset));
        let mut notes = self.record.notes();
        for (&partition, &offset) in offsets {
            let before = notes.committed.insert(partition, offset);
            if let Some(before) = before.filter(|before| *before > offset) {
                let text = format!("{} committed {partition}:{offset} after {before} was committed", self.name);
                notes.violations.push(text);
            }
        }
    }
}

impl Notes {
    fn current(&mut self, member: &str, partition: i32) -> Option<&mut Ownership> {
        let is_it = |ownership: &&mut Ownership| {
            ownership.member == member && ownership.partition == partition && ownership.end.is_none()
        };
        self.ownerships.iter_mut().rev().find(is_it)
    }
}
