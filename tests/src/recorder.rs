//! What everybody in a test sees, as one history with one clock, and the checks of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use checker::{Event, Header, History, Partition, Summary, all_broken, check_all};
use lockstep_client::{Client, Consumer, FetchConfig, Message, OffsetAt, OffsetReset, StartAt, TopicPartition};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;

use crate::wait::{PATIENCE, within};

const POLL_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(200);

/// A test's history. When the test fails, it is written to a file that can be checked again.
#[derive(Debug)]
pub struct Recorder {
    lane: Lane,
    file: PathBuf,
}

/// One recorder's place in a history.
#[derive(Clone, Debug)]
pub struct Lane {
    history: History,
    start: Instant,
    name: String,
}

impl Recorder {
    /// An empty history. `directory`: where it is written if the test fails, `env!("CARGO_TARGET_TMPDIR")`; `test`: tells it from those of
    /// other tests.
    #[must_use]
    pub fn new(directory: impl AsRef<Path>, test: &str) -> Self {
        let history = History::new(Header::default());
        history.describe("test", test);
        let file = directory.as_ref().join(format!("{test}-{}.history.jsonl", std::process::id()));
        Self { lane: Lane { history, start: TokioEnv::now(), name: "test".to_owned() }, file }
    }

    /// A place for somebody.
    #[must_use]
    pub fn lane(&self, name: impl Into<String>) -> Lane {
        Lane { name: name.into(), ..self.lane.clone() }
    }

    /// The history.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.lane.history
    }

    /// Runs all checks on what was recorded so far.
    ///
    /// # Panics
    /// A promise is broken; the message names each, with the records that show it.
    #[must_use]
    pub fn check(&self) -> Summary {
        self.history().with_records(|records| match check_all(records) {
            Ok(summary) => summary,
            Err(_) => {
                let mut text = String::new();
                for broken in all_broken(records) {
                    text += &format!("\n{broken}");
                    for index in &broken.records {
                        let record = &records[*index];
                        let event: String = format!("{:?}", record.event).chars().take(300).collect();
                        text += &format!("\n  {:>12} µs {:<12} {event}", record.at_us, record.lane);
                    }
                }
                panic!("{text}")
            }
        })
    }

    fn keep(&self) {
        match self.history().save(&self.file) {
            Ok(()) => eprintln!(
                "the history is in {0}; it is checked by\n  cargo run --release -p sim -- check {0}",
                self.file.display()
            ),
            Err(error) => eprintln!("the history could not be written to {}: {error}", self.file.display()),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
    }
}

impl Lane {
    /// Microseconds since the history began.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("a test does not run that long")
    }

    /// Adds what is known now.
    pub fn add(&self, event: Event) {
        self.history.add(self.now_us(), &self.name, event);
    }

    /// Adds a line for people.
    pub fn note(&self, text: impl Into<String>) {
        self.add(Event::Note { text: text.into() });
    }

    /// Reads what a group has committed in these partitions of a topic, and adds it.
    ///
    /// # Panics
    /// The coordinator does not answer.
    pub async fn fetch_committed(&self, client: &Client, group: &str, topic: &str, partitions: i32) {
        let started_at_us = self.now_us();
        for (partition, offset) in committed(client, group, topic, partitions).await {
            self.add(Event::OffsetFetched { group: group.to_owned(), partition, offset, started_at_us });
        }
    }

    /// The same when all members of the group have left.
    ///
    /// # Panics
    /// As [`Lane::fetch_committed`].
    pub async fn fetch_final_committed(&self, client: &Client, group: &str, topic: &str, partitions: i32) {
        for (partition, offset) in committed(client, group, topic, partitions).await {
            self.add(Event::FinalCommitted { group: group.to_owned(), partition, offset });
        }
    }

    /// Reads all that is stored in a topic, when nobody writes any more, and adds it.
    ///
    /// # Panics
    /// The topic cannot be read to its end within a minute.
    pub async fn read_everything(&self, client: &Client, topic: &str) {
        let config = FetchConfig {
            wait_max: std::time::Duration::from_millis(100),
            reset: OffsetReset::Fail,
            ..FetchConfig::default()
        };
        let consumer = Consumer::new(client, config);
        consumer.assign_topic(topic, StartAt::Place(OffsetAt::Earliest)).await.expect("the topic exists");
        let ends = consumer.end_offsets().await.expect("the leaders answer");
        let mut records: BTreeMap<i32, Vec<(i64, String)>> = BTreeMap::new();
        let read = async {
            while !ends.iter().all(|(at, &end)| consumer.position(at).is_some_and(|position| position >= end)) {
                for message in consumer.poll(10_000, POLL_TIMEOUT).await.expect("the topic can be read") {
                    records.entry(message.partition).or_default().push((message.offset, value_of(&message)));
                }
            }
        };
        within("the topic is read to its end", PATIENCE, read).await;
        for (at, end) in ends {
            let records = records.remove(&at.partition).unwrap_or_default();
            let start = records.first().map_or(0, |(offset, _)| *offset);
            let partition = Partition::new(topic, at.partition);
            self.history.add_final_records(self.now_us(), &self.name, &partition, (start, end), &records);
        }
    }
}

async fn committed(client: &Client, group: &str, topic: &str, partitions: i32) -> Vec<(Partition, Option<i64>)> {
    let all: Vec<_> = (0..partitions).map(|index| TopicPartition::new(topic, index)).collect();
    let offsets = client.committed_offsets(group, Some(&all)).await.expect("the coordinator answers");
    all.iter().map(|at| (Partition::new(topic, at.partition), offsets.get(at).copied())).collect()
}

/// A message's value as text.
pub(crate) fn value_of(message: &Message) -> String {
    String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned()
}

/// A member of a group. It has to tell of everything in the order in which the member does it.
#[derive(Clone, Debug)]
pub struct MemberLane {
    lane: Lane,
    group: String,
    topic: String,
    member: String,
}

impl MemberLane {
    /// One life of a member that reads one topic. Names must differ within a group.
    #[must_use]
    pub fn new(recorder: &Recorder, group: &str, topic: &str, member: &str) -> Self {
        let lane = recorder.lane(format!("{group} {member}"));
        Self { lane, group: group.to_owned(), topic: topic.to_owned(), member: member.to_owned() }
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.member
    }

    /// Its place in the history.
    #[must_use]
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    fn names(&self) -> (String, String) {
        (self.group.clone(), self.member.clone())
    }

    fn partition(&self, index: i32) -> Partition {
        Partition::new(self.topic.as_str(), index)
    }

    /// The member was told that it has these.
    pub fn assigned(&self, partitions: &[i32]) {
        if partitions.is_empty() {
            return;
        }
        let (group, member) = self.names();
        let partitions = partitions.iter().map(|index| self.partition(*index)).collect();
        self.lane.add(Event::Assigned { group, member, partitions, epoch: None });
    }

    /// The member has finished with these, or was told that it may not have them any more.
    pub fn released(&self, partitions: &[i32], is_lost: bool) {
        if partitions.is_empty() {
            return;
        }
        let (group, member) = self.names();
        let partitions = partitions.iter().map(|index| self.partition(*index)).collect();
        self.lane.add(Event::Released { group, member, partitions, is_lost });
    }

    /// The member was given a record.
    pub fn polled(&self, partition: i32, offset: i64, value: String) {
        let (group, member) = self.names();
        self.lane.add(Event::Polled { group, member, partition: self.partition(partition), offset, value });
    }

    /// A commit that was sent at `started_at_us` was acknowledged, or its outcome is unknown.
    pub fn committed(&self, offsets: &BTreeMap<i32, i64>, started_at_us: u64, outcome: Result<(), String>) {
        for (&index, &offset) in offsets {
            let (group, member) = self.names();
            let partition = self.partition(index);
            self.lane.add(match &outcome {
                Ok(()) => Event::Committed { group, member, partition, offset, started_at_us },
                Err(reason) => {
                    let reason = reason.clone();
                    Event::CommitUnknown { group, member, partition, offset, started_at_us, reason }
                }
            });
        }
    }
}

/// Of partitions that a member was told to have, those that it still has after the later events of the same poll: what is gone again before
/// the member was told of it, it never had.
#[must_use]
pub fn still_assigned(events: &[lockstep_client::GroupEvent], index: usize) -> Vec<i32> {
    use lockstep_client::GroupEvent::{Assigned, Lost, Revoked};
    let Some(Assigned(told)) = events.get(index) else { return Vec::new() };
    let gone: BTreeSet<&TopicPartition> = events[index..]
        .iter()
        .flat_map(|later| match later {
            Assigned(_) => &[][..],
            Revoked(gone) | Lost(gone) => gone.as_slice(),
        })
        .collect();
    told.iter().filter(|at| !gone.contains(at)).map(|at| at.partition).collect()
}
