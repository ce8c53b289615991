//! A producer that never stops, and knows what was acknowledged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use checker::{Event, Partition};
use lockstep_client::{Client, ClientError, Compression, Producer, ProducerConfig, ProducerRecord, RecordMetadata};
use lockstep_env::Env;
use lockstep_env::tokio_env::{TokioEnv, TokioTask};

use crate::recorder::{Lane, Recorder};
use crate::wait::pause;

/// Keys of the messages; each key's messages must stay in order. Enough for each of six partitions to get some.
pub const KEYS: u64 = 24;
/// Messages that are under way at one time.
const WINDOW: u64 = 24;
const PAUSE_BETWEEN_WINDOWS: Duration = Duration::from_millis(4);

#[derive(Debug, Default)]
struct Progress {
    acknowledged: Vec<String>,
    last: Option<Instant>,
    longest_gap: Duration,
    failures: Vec<String>,
}

/// Load on a topic by one idempotent producer. Values are `name:key:sequence number`, the number rising.
#[derive(Debug)]
pub struct Load {
    progress: Arc<Mutex<Progress>>,
    is_over: Arc<AtomicBool>,
    task: TokioTask<()>,
}

/// What a load has come to.
#[derive(Debug)]
pub struct LoadOutcome {
    /// Values of the messages that were acknowledged, in the order of sending.
    pub acknowledged: Vec<String>,
    /// The longest time in which nothing was acknowledged.
    pub longest_gap: Duration,
}

impl Load {
    /// Starts to send. `name` tells the values of one load from another's.
    ///
    /// # Panics
    /// The producer cannot be made.
    pub fn start(recorder: &Recorder, client: &Client, topic: &str, name: &str) -> Self {
        let config = ProducerConfig {
            compression: Compression::Lz4,
            delivery_timeout: Duration::from_secs(90),
            ..ProducerConfig::default()
        };
        let producer = Producer::new(client, config).expect("the configuration is sound");
        let progress = Arc::new(Mutex::new(Progress::default()));
        let is_over = Arc::new(AtomicBool::new(false));
        let sender = Sender {
            producer,
            topic: topic.to_owned(),
            name: name.to_owned(),
            lane: recorder.lane(name),
            progress: Arc::clone(&progress),
            is_over: Arc::clone(&is_over),
        };
        Self { progress, is_over, task: TokioEnv::spawn(sender.run()) }
    }

    /// Messages acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.len()
    }

    /// Stops sending, and waits for what is under way.
    ///
    /// # Panics
    /// A message was refused for good, although no broker should have.
    pub async fn finish(self) -> LoadOutcome {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.expect("the load runs to its end");
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(progress.failures.is_empty(), "messages failed: {:?}", progress.failures);
        LoadOutcome { acknowledged: std::mem::take(&mut progress.acknowledged), longest_gap: progress.longest_gap }
    }
}

struct Sender {
    producer: Producer,
    topic: String,
    name: String,
    lane: Lane,
    progress: Arc<Mutex<Progress>>,
    is_over: Arc<AtomicBool>,
}

impl Sender {
    async fn run(self) {
        let mut sequence = 0_u64;
        while !self.is_over.load(Ordering::Relaxed) {
            let mut deliveries = Vec::new();
            for _ in 0..WINDOW {
                let key = format!("key-{}", sequence % KEYS);
                let value = format!("{}:{key}:{sequence}", self.name);
                sequence += 1;
                self.lane.add(Event::Sent {
                    producer: self.name.clone(),
                    topic: self.topic.clone(),
                    partition: None,
                    key: Some(key.clone()),
                    value: value.clone(),
                    is_idempotent: true,
                    is_tombstone: false,
                });
                let record = ProducerRecord::new(self.topic.clone(), value.clone()).with_key(key);
                match self.producer.send(&record).await {
                    Ok(delivery) => deliveries.push((value, delivery)),
                    Err(error) => self.note(value, Err(error)),
                }
            }
            for (value, delivery) in deliveries {
                let outcome = delivery.await;
                self.note(value, outcome);
            }
            pause(PAUSE_BETWEEN_WINDOWS).await;
        }
    }

    fn note(&self, value: String, outcome: Result<RecordMetadata, ClientError>) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Err(error) => {
                progress.failures.push(format!("{value}: {error}"));
                self.lane.add(Event::Unknown { value, reason: error.to_string() });
            }
            Ok(metadata) => {
                let partition = Partition::new(&*metadata.topic, metadata.partition);
                self.lane.add(Event::Acknowledged { value: value.clone(), partition, offset: metadata.offset });
                let now = TokioEnv::now();
                let gap = progress.last.map_or(Duration::ZERO, |last| now - last);
                progress.longest_gap = progress.longest_gap.max(gap);
                progress.last = Some(now);
                progress.acknowledged.push(value);
            }
        }
    }
}
