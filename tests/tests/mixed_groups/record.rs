//! What the members of a group do: told to the history, which is checked in the end, and kept for those who wait for something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checker::{Event, History};
use tests::{Lane, MemberLane, Recorder};

use crate::scene::TOPIC;

#[derive(Debug, Default)]
struct Notes {
    /// By member: what it has.
    owned: BTreeMap<String, BTreeSet<i32>>,
    /// Partition and offset of what any member has read.
    read: BTreeSet<(i32, i64)>,
    violations: Vec<String>,
}

/// One group. All members tell the history of it under one lock: what stands earlier was earlier.
#[derive(Debug)]
pub(crate) struct GroupRecord {
    group: String,
    lane: Lane,
    notes: Mutex<Notes>,
}

impl GroupRecord {
    pub(crate) fn new(recorder: &Recorder, group: &str) -> Arc<Self> {
        Arc::new(Self { group: group.to_owned(), lane: recorder.lane(group), notes: Mutex::default() })
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// Its place in the history.
    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line to what is shown when the test fails.
    pub(crate) fn note(&self, who: &str, text: impl Into<String>) {
        self.lane.note(format!("{who}: {}", text.into()));
    }

    /// Messages that were read by any member, each counted once.
    pub(crate) fn read(&self) -> usize {
        self.notes().read.len()
    }

    /// Who has which partitions now.
    pub(crate) fn owners(&self) -> BTreeMap<String, BTreeSet<i32>> {
        let owned = self.notes().owned.clone();
        owned.into_iter().filter(|(_, partitions)| !partitions.is_empty()).collect()
    }

    /// Checks what no history tells: that no member failed, and that none gave up what it did not have.
    ///
    /// # Panics
    /// It is not so.
    pub(crate) fn check(&self) {
        let notes = self.notes();
        assert!(notes.violations.is_empty(), "group {}:\n{}", self.group, notes.violations.join("\n"));
    }
}

/// Shows what everybody noted if the test fails, but for the many records and commits.
pub(crate) struct ShownOnPanic(pub(crate) History);

impl Drop for ShownOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.0.with_records(|records| {
            let lanes: BTreeSet<&str> = records.iter().map(|record| record.lane.as_str()).collect();
            for lane in lanes {
                eprintln!("-- {lane}");
                for record in records.iter().filter(|record| record.lane == lane) {
                    let text = match &record.event {
                        Event::Note { text } => text.clone(),
                        event @ (Event::Assigned { .. } | Event::Released { .. } | Event::CommitUnknown { .. }) => {
                            format!("{event:?}")
                        }
                        _ => continue,
                    };
                    eprintln!("{:9.3} {text}", record.at_us as f64 / 1e6);
                }
            }
        });
    }
}

/// One member's part in its group's record.
#[derive(Debug)]
pub(crate) struct MemberNotes {
    record: Arc<GroupRecord>,
    lane: MemberLane,
    /// By partition: what was read and is not committed yet, as the offset to commit.
    uncommitted: Mutex<BTreeMap<i32, i64>>,
}

impl MemberNotes {
    pub(crate) fn new(recorder: &Recorder, record: &Arc<GroupRecord>, name: &str) -> Self {
        let lane = MemberLane::new(recorder, record.group(), TOPIC, name);
        Self { record: Arc::clone(record), lane, uncommitted: Mutex::default() }
    }

    pub(crate) fn group(&self) -> &str {
        &self.record.group
    }

    pub(crate) fn name(&self) -> &str {
        self.lane.name()
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.lane.lane().note(text);
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        self.uncommitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member was told that it has these.
    pub(crate) fn assigned(&self, partitions: &[i32]) {
        let mut notes = self.record.notes();
        self.lane.assigned(partitions);
        notes.owned.entry(self.name().to_owned()).or_default().extend(partitions);
    }

    /// The member has finished with these.
    pub(crate) fn revoked(&self, partitions: &[i32]) {
        self.ended(partitions, false);
    }

    /// The member was told that it may not have these any more.
    pub(crate) fn lost(&self, partitions: &[i32]) {
        self.pending().retain(|partition, _| !partitions.contains(partition));
        self.ended(partitions, true);
    }

    fn ended(&self, partitions: &[i32], is_lost: bool) {
        let mut notes = self.record.notes();
        self.lane.released(partitions, is_lost);
        for partition in partitions {
            if !notes.owned.get_mut(self.name()).is_some_and(|owned| owned.remove(partition)) {
                notes.violations.push(format!("{} gave up {partition}, which it did not have", self.name()));
            }
        }
    }

    /// Something went wrong that must not.
    pub(crate) fn failed(&self, error: impl std::fmt::Display) {
        self.note(format!("failed: {error}"));
        self.record.notes().violations.push(format!("{}: {error}", self.name()));
    }

    /// Those of `partitions` that the member has.
    pub(crate) fn had(&self, partitions: Vec<i32>) -> Vec<i32> {
        let owned = self.owned();
        partitions.into_iter().filter(|partition| owned.contains(partition)).collect()
    }

    /// All that the member has.
    pub(crate) fn owned(&self) -> Vec<i32> {
        self.record.notes().owned.get(self.name()).into_iter().flatten().copied().collect()
    }

    /// The member was given a message, and has processed it.
    pub(crate) fn delivered(&self, partition: i32, offset: i64, value: String) {
        self.pending().insert(partition, offset + 1);
        let mut notes = self.record.notes();
        self.lane.polled(partition, offset, value);
        if !notes.read.insert((partition, offset)) {
            self.note(format!("read {partition}:{offset} again"));
        }
    }

    /// What was read of these partitions, or of all, and is not committed yet.
    pub(crate) fn uncommitted(&self, only: Option<&[i32]>) -> BTreeMap<i32, i64> {
        let is_meant = |partition: &i32| only.is_none_or(|only| only.contains(partition));
        self.pending().iter().filter(|(partition, _)| is_meant(partition)).map(|(at, offset)| (*at, *offset)).collect()
    }

    /// Now, by the clock of the history.
    pub(crate) fn now_us(&self) -> u64 {
        self.lane.lane().now_us()
    }

    /// These commits, sent at `started_at_us`, were acknowledged, or it is unknown whether they took effect.
    pub(crate) fn committed(&self, offsets: &BTreeMap<i32, i64>, started_at_us: u64, outcome: Result<(), String>) {
        if outcome.is_ok() {
            self.pending()
                .retain(|partition, offset| offsets.get(partition).is_none_or(|committed| committed < offset));
        }
        self.lane.committed(offsets, started_at_us, outcome);
    }
}
