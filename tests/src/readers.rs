//! Members of a group that tell the history what they were given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_client::{GroupConsumer, GroupConsumerConfig, GroupEvent, TopicPartition};
use lockstep_env::Env;
use lockstep_env::tokio_env::{TokioEnv, TokioTask};

use crate::cluster::Cluster;
use crate::recorder::{MemberLane, Recorder, still_assigned, value_of};
use crate::wait::{PATIENCE, wait_until, within};

const POLL_TIMEOUT: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Notes {
    delivered: usize,
    values: BTreeSet<String>,
    commits: usize,
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
    pub async fn start(recorder: &Recorder, cluster: &Cluster, group: &str, topic: &str, count: usize) -> Self {
        let notes = Arc::new(Mutex::new(Notes::default()));
        let is_over = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        let mut members = Vec::new();
        for index in 0..count {
            let client = cluster.client().await;
            let name = format!("reader-{index}");
            let mut config = GroupConsumerConfig::new(group, name.clone(), vec![topic.to_owned()]);
            config.fetch.wait_max = Duration::from_millis(100);
            let consumer = Arc::new(GroupConsumer::new(&client, config).expect("the configuration is sound"));
            let reader = Reader {
                consumer: Arc::clone(&consumer),
                topic: topic.to_owned(),
                lane: MemberLane::new(recorder, group, topic, &name),
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
        self.notes().delivered
    }

    /// Commits that were acknowledged so far.
    pub fn commits(&self) -> usize {
        self.notes().commits
    }

    /// Waits until all of `values` were given to a member.
    ///
    /// # Panics
    /// They are not within a minute.
    pub async fn wait_for(&self, values: &[String]) {
        let what = format!("the group has been given all {} messages", values.len());
        wait_until(&what, PATIENCE, || async {
            let notes = self.notes();
            values.iter().all(|value| notes.values.contains(value)).then_some(())
        })
        .await;
    }

    /// Lets every member leave.
    ///
    /// # Panics
    /// A member failed in a way that its client should have mended.
    pub async fn finish(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            within("a member leaves", PATIENCE, task).await.expect("the member runs to its end");
        }
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(notes.failures.is_empty(), "members failed: {:?}", notes.failures);
    }
}

struct Reader {
    consumer: Arc<GroupConsumer>,
    topic: String,
    lane: MemberLane,
    notes: Arc<Mutex<Notes>>,
    is_over: Arc<AtomicBool>,
}

impl Reader {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self) {
        if let Err(error) = self.read().await {
            self.lane.lane().note(format!("failed: {error}"));
            self.notes().failures.push(error.to_string());
        }
    }

    async fn read(&self) -> Result<(), lockstep_client::ClientError> {
        self.consumer.join_group().await?;
        self.consumer.start_heartbeat().await?;
        let mut messages = self.consumer.subscribe().await?;
        let mut owned: BTreeSet<i32> = BTreeSet::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let polled = messages.poll(POLL_TIMEOUT).await?;
            let numbers = |partitions: &[TopicPartition]| partitions.iter().map(|at| at.partition).collect::<Vec<_>>();
            for (index, event) in polled.events.iter().enumerate() {
                match event {
                    GroupEvent::Assigned(_) => {
                        let partitions = still_assigned(&polled.events, index);
                        self.lane.assigned(&partitions);
                        owned.extend(partitions);
                    }
                    GroupEvent::Revoked(gone) | GroupEvent::Lost(gone) => {
                        let gone = numbers(gone);
                        self.lane.released(&gone, matches!(event, GroupEvent::Lost(_)));
                        owned.retain(|partition| !gone.contains(partition));
                    }
                }
            }
            let mut offsets: BTreeMap<i32, i64> = BTreeMap::new();
            for message in &polled.messages {
                let value = value_of(message);
                offsets.insert(message.partition, message.offset + 1);
                self.lane.polled(message.partition, message.offset, value.clone());
                let mut notes = self.notes();
                notes.delivered += 1;
                notes.values.insert(value);
            }
            for (partition, offset) in offsets {
                let started_at_us = self.lane.lane().now_us();
                // A partition that was lost meanwhile cannot be committed; its messages come again.
                let outcome = self.consumer.commit_offset(&self.topic, partition, offset).await;
                self.notes().commits += usize::from(outcome.is_ok());
                let outcome = outcome.map_err(|error| error.to_string());
                self.lane.committed(&BTreeMap::from([(partition, offset)]), started_at_us, outcome);
            }
        }
        self.lane.released(&owned.into_iter().collect::<Vec<_>>(), false);
        self.consumer.leave_group().await
    }
}
