//! Members of a group that note what they were given, and the checks of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_client::{
    Client, Consumer, FetchConfig, GroupConsumer, GroupConsumerConfig, Message, OffsetAt, OffsetReset, StartAt,
    TopicPartition,
};
use lockstep_env::Env;
use lockstep_env::tokio_env::{TokioEnv, TokioTask};

use crate::cluster::Cluster;
use crate::wait::{PATIENCE, wait_until, within};

const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// A message that was given to somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Key as text.
    pub key: String,
    /// Value as text.
    pub value: String,
}

impl Delivered {
    fn new(message: &Message) -> Self {
        let text = |bytes: Option<&bytes::Bytes>| String::from_utf8_lossy(bytes.map_or(&[], |b| &b[..])).into_owned();
        Self {
            partition: message.partition,
            offset: message.offset,
            key: text(message.key.as_ref()),
            value: text(message.value.as_ref()),
        }
    }
}

#[derive(Debug, Default)]
struct Notes {
    delivered: Vec<Delivered>,
    /// By partition: the highest offset whose commit was acknowledged.
    committed: BTreeMap<i32, i64>,
    failures: Vec<String>,
}

/// Members of one group, each with a client of its own. They commit after every poll.
#[derive(Debug)]
pub struct Readers {
    notes: Arc<Mutex<Notes>>,
    is_over: Arc<AtomicBool>,
    tasks: Vec<TokioTask<()>>,
}

impl Readers {
    /// Starts `count` members and waits until each has a partition.
    ///
    /// # Panics
    /// They do not get partitions within a minute.
    pub async fn start(cluster: &Cluster, group: &str, topic: &str, count: usize) -> Self {
        let notes = Arc::new(Mutex::new(Notes::default()));
        let is_over = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        let mut members = Vec::new();
        for index in 0..count {
            let client = cluster.client().await;
            let mut config = GroupConsumerConfig::new(group, format!("reader-{index}"), vec![topic.to_owned()]);
            config.fetch.wait_max = Duration::from_millis(100);
            let consumer = Arc::new(GroupConsumer::new(&client, config).expect("the configuration is sound"));
            let reader = Reader {
                consumer: Arc::clone(&consumer),
                topic: topic.to_owned(),
                notes: Arc::clone(&notes),
                is_over: Arc::clone(&is_over),
            };
            tasks.push(TokioEnv::spawn(reader.run()));
            members.push(consumer);
        }
        wait_until("every member has a partition", PATIENCE, || async {
            members.iter().all(|member| !member.assignment().is_empty()).then_some(())
        })
        .await;
        Self { notes, is_over, tasks }
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages given to any member so far.
    pub fn delivered(&self) -> usize {
        self.notes().delivered.len()
    }

    /// By partition: the highest offset whose commit was acknowledged.
    pub fn committed(&self) -> BTreeMap<i32, i64> {
        self.notes().committed.clone()
    }

    /// Waits until all of `values` were given to a member.
    ///
    /// # Panics
    /// They are not within a minute.
    pub async fn wait_for(&self, values: &[String]) {
        let what = format!("the group has been given all {} messages", values.len());
        wait_until(&what, PATIENCE, || async {
            let notes = self.notes();
            if notes.delivered.len() < values.len() {
                return None;
            }
            let seen: BTreeSet<&str> = notes.delivered.iter().map(|message| message.value.as_str()).collect();
            values.iter().all(|value| seen.contains(value.as_str())).then_some(())
        })
        .await;
    }

    /// Lets every member leave; gives what was delivered to any of them, in the order of delivery.
    ///
    /// # Panics
    /// A member failed in a way that its client should have mended.
    pub async fn finish(self) -> Vec<Delivered> {
        self.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            within("a member leaves", PATIENCE, task).await.expect("the member runs to its end");
        }
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(notes.failures.is_empty(), "members failed: {:?}", notes.failures);
        std::mem::take(&mut notes.delivered)
    }
}

struct Reader {
    consumer: Arc<GroupConsumer>,
    topic: String,
    notes: Arc<Mutex<Notes>>,
    is_over: Arc<AtomicBool>,
}

impl Reader {
    async fn run(self) {
        if let Err(error) = self.read().await {
            self.notes.lock().unwrap_or_else(PoisonError::into_inner).failures.push(error.to_string());
        }
    }

    async fn read(&self) -> Result<(), lockstep_client::ClientError> {
        self.consumer.join_group().await?;
        self.consumer.start_heartbeat().await?;
        let mut messages = self.consumer.subscribe().await?;
        while !self.is_over.load(Ordering::Relaxed) {
            let polled = messages.poll(POLL_TIMEOUT).await?;
            let mut offsets: BTreeMap<TopicPartition, i64> = BTreeMap::new();
            for message in &polled.messages {
                offsets.insert(TopicPartition::new(self.topic.as_str(), message.partition), message.offset + 1);
            }
            let delivered = polled.messages.iter().map(Delivered::new);
            self.notes.lock().unwrap_or_else(PoisonError::into_inner).delivered.extend(delivered);
            for (at, offset) in offsets {
                // A partition that was lost meanwhile cannot be committed; its messages come again.
                if self.consumer.commit_offset(&at.topic, at.partition, offset).await.is_ok() {
                    let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
                    let committed = notes.committed.entry(at.partition).or_default();
                    *committed = offset.max(*committed);
                }
            }
        }
        self.consumer.leave_group().await
    }
}

/// Checks what a group was given: nothing was skipped in any partition, each key's messages came in order (but for repetitions), and all
/// that was acknowledged is there.
///
/// # Panics
/// It is not so.
pub fn assert_all_delivered_in_order(delivered: &[Delivered], acknowledged: &[String]) {
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    for message in delivered {
        let next = next.entry(message.partition).or_insert(0);
        assert!(
            message.offset <= *next,
            "offset {} of partition {} came before {next}: a message was skipped",
            message.offset,
            message.partition
        );
        *next = (*next).max(message.offset + 1);
    }
    assert_none_missing(delivered, acknowledged);
}

fn assert_none_missing(delivered: &[Delivered], acknowledged: &[String]) {
    let seen: BTreeSet<&str> = delivered.iter().map(|message| message.value.as_str()).collect();
    let missing: Vec<_> = acknowledged.iter().filter(|value| !seen.contains(value.as_str())).collect();
    assert!(missing.is_empty(), "{} acknowledged messages are gone: {missing:?}", missing.len());
}

/// Checks what a topic holds: all that was acknowledged is there, nothing is there twice, and each key's messages are in the order
/// of sending.
///
/// # Panics
/// It is not so.
pub fn assert_stored_once_in_order(stored: &[Delivered], acknowledged: &[String]) {
    let mut values = BTreeSet::new();
    let mut last: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for message in stored {
        assert!(values.insert(&message.value), "{} is stored twice", message.value);
        let (load, sequence) = (message.value.split_once(':'), message.value.rsplit_once(':'));
        let (Some((load, _)), Some((_, sequence))) = (load, sequence) else { continue };
        let sequence: u64 = sequence.parse().expect("the values of a load end with a number");
        let before = last.insert((load, &message.key), sequence);
        assert!(before.is_none_or(|before| before < sequence), "{} comes after {before:?}", message.value);
    }
    assert_none_missing(stored, acknowledged);
}

/// All messages of a topic, by partition and offset.
///
/// # Panics
/// The topic cannot be read to its end within a minute.
pub async fn read_everything(client: &Client, topic: &str) -> Vec<Delivered> {
    let config =
        FetchConfig { wait_max: Duration::from_millis(100), reset: OffsetReset::Fail, ..FetchConfig::default() };
    let consumer = Consumer::new(client, config);
    consumer.assign_topic(topic, StartAt::Place(OffsetAt::Earliest)).await.expect("the topic exists");
    let ends = consumer.end_offsets().await.expect("the leaders answer");
    let mut messages = Vec::new();
    let read = async {
        while !ends.iter().all(|(at, &end)| consumer.position(at).is_some_and(|position| position >= end)) {
            let polled = consumer.poll(10_000, POLL_TIMEOUT).await.expect("the topic can be read");
            messages.extend(polled.iter().map(Delivered::new));
        }
    };
    within("the topic is read to its end", PATIENCE, read).await;
    messages.sort_by_key(|message: &Delivered| (message.partition, message.offset));
    messages
}
