//! Producers: numbered records, in windows whose outcome is waited for.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use checker::{Event, Partition};
use lockstep_client::{Acks, Client, Compression, ErrorCode, Producer, ProducerConfig, ProducerRecord};
use lockstep_env::Env;

use crate::env::{SimEnv, chance, random_below};

use super::{Context, TOMBSTONE, one_of, random_between};

/// What a producer promises and is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Stored once, in order.
    Idempotent,
    /// Stored on a majority; a retry may store it again.
    All,
    /// Stored by the leader; a retry may store it again.
    Leader,
    /// Nothing: no outcome is ever known.
    None,
}

/// Pause after which a record does not come into the same batch as the one before, at most.
const BETWEEN_BATCHES: Duration = Duration::from_millis(3);

/// When all are calm, pauses are so many times shorter: nothing is waited for but that enough was done.
const CALM_PACE: u32 = 4;
/// When enough was done, pauses are so many times longer.
const ENOUGH_PACE: u32 = 5;

/// What a producer sends.
#[derive(Clone, Debug)]
pub struct Produce {
    /// Where to; each record goes to one of them.
    pub topics: Vec<String>,
    /// Its promise.
    pub promise: Promise,
    /// How many keys it has for its records; 0: they have none. Topics whose partitions become more need records without keys.
    pub keys: u64,
    /// Records that it sends before it waits for their outcome, at most.
    pub window_max: u64,
    /// Pause between windows, while faults happen.
    pub pause: Range<Duration>,
    /// Once clients have done so much, it sends less: the run has what it needs, and goes on for its faults.
    pub enough: usize,
    /// How many in a thousand records delete their key.
    pub tombstones_per_mille: u64,
    /// How many in a thousand records are large.
    pub large_per_mille: u64,
    /// How large that is: bytes, in a header of the record.
    pub large_len: usize,
    /// How its batches are compressed.
    pub compression: Compression,
    /// After so long the outcome of a record is given up as unknown.
    pub delivery_timeout: Duration,
}

impl Produce {
    /// A producer with keys and small records that sends some 20 records a second.
    #[must_use]
    pub fn new(topics: Vec<String>, promise: Promise) -> Self {
        Self {
            topics,
            promise,
            keys: 8,
            window_max: 5,
            pause: Duration::from_millis(60)..Duration::from_millis(200),
            enough: usize::MAX,
            tombstones_per_mille: 0,
            large_per_mille: 0,
            large_len: 100 << 10,
            compression: Compression::None,
            delivery_timeout: Duration::from_secs(30),
        }
    }
}

/// Sends until told to finish; then waits for the outcome of all.
pub async fn produce(context: Context, config: Produce) {
    let Some(client) = context.connect().await else { return };
    let mut number = 0;
    let mut life = 0;
    while !context.finish.is_due() {
        // A record whose outcome is unknown ends a producer's life: what comes after it may not be in order with it.
        life += 1;
        live(&context, &config, &client, life, &mut number).await;
        pause(&context, &config).await;
    }
}

async fn live(context: &Context, config: &Produce, client: &Client<SimEnv>, life: u64, number: &mut u64) {
    let is_idempotent = config.promise == Promise::Idempotent;
    let producer = Producer::new(
        client,
        ProducerConfig {
            acks: match config.promise {
                Promise::Idempotent | Promise::All => Acks::All,
                Promise::Leader => Acks::Leader,
                Promise::None => Acks::None,
            },
            is_idempotent,
            compression: config.compression,
            linger: Duration::ZERO,
            delivery_timeout: config.delivery_timeout,
            ..ProducerConfig::default()
        },
    );
    let producer = match producer {
        Ok(producer) => producer,
        Err(error) => panic!("{}: {error}", context.name),
    };
    let mut all_known = true;
    while all_known && !context.finish.is_due() {
        let mut window = Vec::new();
        for _ in 0..1 + random_below(config.window_max) {
            let Some(topic) = one_of(&config.topics) else { return };
            let value = format!("{}.{life}-{number}", context.name);
            *number += 1;
            let key = (config.keys > 0).then(|| format!("{}.{}", context.name, random_below(config.keys)));
            let is_tombstone = config.tombstones_per_mille > 0 && chance(config.tombstones_per_mille);
            context.record(Event::Sent {
                // Without idempotence a retry may store a record again, behind later ones: it has no place in an order.
                producer: if is_idempotent { format!("{}.{life}", context.name) } else { value.clone() },
                topic: topic.clone(),
                partition: None,
                key: key.clone(),
                value: value.clone(),
                is_idempotent,
                is_tombstone,
            });
            let mut record = ProducerRecord::new(topic.clone(), value.clone());
            if is_tombstone {
                record.value = None;
                record.headers.push((Bytes::from_static(TOMBSTONE.as_bytes()), Some(Bytes::from(value.clone()))));
            }
            record.key = key.map(Bytes::from);
            if chance(config.large_per_mille) {
                let padding = Bytes::from(vec![b'x'; config.large_len]);
                record.headers.push((Bytes::from_static(b"padding"), Some(padding)));
            }
            window.push((topic.clone(), value, producer.send(&record).await));
            // What is sent a moment later comes in a batch of its own, while the one before is still on its way.
            if chance(300) {
                SimEnv::sleep(random_between(&(Duration::ZERO..BETWEEN_BATCHES))).await;
            }
        }
        for (topic, value, sent) in window {
            let outcome = match sent {
                Ok(delivery) => delivery.await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(_) if config.promise == Promise::None => {
                    context.record(Event::Unknown { value, reason: "nobody was to tell".to_owned() });
                }
                Ok(metadata) => {
                    let partition = Partition::new(topic, metadata.partition);
                    context.record(Event::Acknowledged { value, partition, offset: metadata.offset });
                }
                Err(error) => {
                    // A broker that forgets or loses what a producer sent would say so.
                    assert_ne!(
                        error.code(),
                        Some(ErrorCode::OutOfOrderSequenceNumber),
                        "{value} does not follow what was stored of its producer"
                    );
                    context.note(format!("outcome of {value} unknown: {error}"));
                    context.record(Event::Unknown { value, reason: error.to_string() });
                    all_known = false;
                }
            }
        }
        pause(context, config).await;
    }
}

async fn pause(context: &Context, config: &Produce) {
    let pause = random_between(&config.pause);
    if context.finish.is_calm() {
        context.pause(pause / CALM_PACE).await;
    } else if context.history.count(Event::is_operation) < config.enough {
        context.pause_unless_calm(pause).await;
    } else {
        context.pause_unless_calm(pause * ENOUGH_PACE).await;
    }
}
