//! Producing: records are gathered to batches, sent in order, and sent again until they are acknowledged.

mod accumulator;
mod delivery;
mod partition_queue;
mod partitioner;
mod sender;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::Compression;
use lockstep_wire::records::RecordHeader;

pub use delivery::{Delivery, RecordMetadata};
pub use partitioner::{murmur2, partition_for_key};

use crate::client::{Client, Purpose};
use crate::error::ClientError;
use accumulator::{Accumulator, Append, Limits, RecordParts};
use partition_queue::QueueConfig;

/// When a record counts as acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Once it is durable on a majority.
    #[default]
    All,
    /// Once the leader has it. Lockstep answers this as [`Acks::All`].
    Leader,
    /// As soon as it has been sent: it may be lost, and no offset is known.
    None,
}

impl Acks {
    const fn code(self) -> i16 {
        match self {
            Acks::All => -1,
            Acks::Leader => 1,
            Acks::None => 0,
        }
    }
}

/// How a producer gathers and sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerConfig {
    /// When a record counts as acknowledged.
    pub acks: Acks,
    /// Retries store nothing twice and keep the order. Needs [`Acks::All`].
    pub is_idempotent: bool,
    /// How batches are compressed.
    pub compression: Compression,
    /// Bytes of a batch, before compression. A record that is larger gets a batch of its own.
    pub batch_len_max: usize,
    /// How long a batch waits for more records while the broker is not busy. While it is, batches wait anyway, and
    /// grow.
    pub linger: Duration,
    /// Bytes of all batches together; beyond, sending waits.
    pub memory_len_max: usize,
    /// How long a record may take from sending to acknowledgement, retries included.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            is_idempotent: true,
            compression: Compression::None,
            batch_len_max: 256 * 1024,
            linger: Duration::from_millis(2),
            memory_len_max: 64 * 1024 * 1024,
            delivery_timeout: Duration::from_secs(60),
        }
    }
}

/// A record to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerRecord {
    /// Topic.
    pub topic: String,
    /// Partition; `None` to have it chosen by the key, or in turn if there is none.
    pub partition: Option<i32>,
    /// Key.
    pub key: Option<Bytes>,
    /// Value.
    pub value: Option<Bytes>,
    /// Headers.
    pub headers: Vec<RecordHeader>,
    /// Milliseconds since 1970; `None` for the time of sending.
    pub timestamp: Option<i64>,
}

impl ProducerRecord {
    /// A record without a key.
    pub fn new(topic: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), value: Some(value.into()), ..Self::default() }
    }

    /// With this key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// To this partition.
    #[must_use]
    pub fn with_partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }
}

/// Sends records. Dropped without [`Producer::flush`], it gives up what it holds.
#[derive(Debug)]
pub struct Producer<E: Env = TokioEnv> {
    shared: Arc<sender::Shared<E>>,
}

impl<E: Env> Drop for Producer<E> {
    fn drop(&mut self) {
        let over = self.shared.lock().close();
        self.shared.finish(over);
        self.shared.wake.notify_one();
        let number = self.shared.number;
        self.shared.client.forget_connections(|_, purpose| purpose == Purpose::Produce(number));
    }
}

impl<E: Env> Producer<E> {
    /// A producer on the client's cluster. Must be called within the environment's tasks.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(client: &Client<E>, config: ProducerConfig) -> Result<Self, ClientError> {
        let invalid = |text: &str| Err(ClientError::InvalidArgument(text.to_owned()));
        if config.is_idempotent && config.acks != Acks::All {
            return invalid("an idempotent producer needs acks=all");
        }
        if config.batch_len_max == 0 || config.memory_len_max == 0 || config.delivery_timeout.is_zero() {
            return invalid("batch length, memory and delivery time-out must be above 0");
        }
        let queue = QueueConfig {
            is_idempotent: config.is_idempotent,
            compression: config.compression,
            delivery_timeout: config.delivery_timeout,
        };
        let limits = Limits {
            queue,
            batch_len_max: config.batch_len_max,
            linger: config.linger,
            memory_len_max: config.memory_len_max,
        };
        let shared = sender::Shared::new(client.clone(), config, Accumulator::new(limits));
        drop(E::spawn(sender::run(Arc::clone(&shared))));
        Ok(Self { shared })
    }

    /// Hands over a record. Waits only for metadata of a topic that is new to the producer, and while its memory is
    /// full. What is given back completes when the record is acknowledged; records of a partition are stored in the
    /// order of the calls.
    ///
    /// # Errors
    /// The topic or partition does not exist, or the producer is closed.
    pub async fn send(&self, record: &ProducerRecord) -> Result<Delivery, ClientError> {
        let parts = RecordParts {
            partition: record.partition,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &record.headers,
            timestamp: record.timestamp.unwrap_or_else(|| self.shared.client.env().wall_clock_ms()),
        };
        self.send_parts(&record.topic, parts).await
    }

    /// [`Producer::send`] of borrowed bytes, for those who send very many.
    ///
    /// # Errors
    /// As [`Producer::send`].
    pub async fn send_bytes(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp: i64,
    ) -> Result<Delivery, ClientError> {
        self.send_parts(topic, RecordParts { partition, key, value, headers: &[], timestamp }).await
    }

    async fn send_parts(&self, topic: &str, parts: RecordParts<'_>) -> Result<Delivery, ClientError> {
        let shared = &self.shared;
        loop {
            let mut progress = pin!(shared.progress.notified());
            progress.as_mut().enable();
            let append = shared.lock().append(topic, parts, E::now());
            match append {
                Append::Taken { delivery, must_wake } => {
                    if must_wake {
                        shared.wake.notify_one();
                    }
                    return Ok(delivery);
                }
                Append::UnknownTopic => {
                    let info = shared.client.topic(topic, true).await?;
                    if info.partitions.is_empty() {
                        return Err(ClientError::InvalidArgument(format!("topic {topic} has no partitions")));
                    }
                    shared.lock().set_topic(info, E::random_u64());
                }
                Append::Full => {
                    shared.wake.notify_one();
                    progress.await;
                }
                Append::Invalid(error) => return Err(error),
            }
        }
    }

    /// Sends everything that has been handed over, without waiting for batches to fill, and waits until each record is
    /// acknowledged or has failed.
    ///
    /// # Errors
    /// The first error of any record since the last flush.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let shared = &self.shared;
        let below = shared.lock().flush();
        shared.wake.notify_one();
        loop {
            let mut progress = pin!(shared.progress.notified());
            progress.as_mut().enable();
            {
                let mut accumulator = shared.lock();
                if accumulator.is_flushed(below) {
                    return accumulator.take_error().map_or(Ok(()), Err);
                }
            }
            progress.await;
        }
    }

    /// The first error of any record since the last flush or the last call. For those who do not wait for each record.
    pub fn take_error(&self) -> Option<ClientError> {
        self.shared.lock().take_error()
    }

    /// Number of records that have been acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.lock().acknowledged()
    }
}
