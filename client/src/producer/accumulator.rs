//! All that a producer holds in memory: topics, partitions, batches, and what may be sent now.
//!
//! Nothing here waits, sends or reads a clock; the sender drives it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_wire::BatchBuilder;
use lockstep_wire::codec::Uuid;
use lockstep_wire::records::RecordHeader;

use crate::error::ClientError;
use crate::producer::delivery::{BatchDelivery, Delivery};
use crate::producer::partition_queue::{
    Answer, Finished, GatheredBatch, IN_FLIGHT_MAX, PartitionQueue, ProducerIdentity, QueueConfig,
};
use crate::producer::partitioner::{Sticky, partition_for_key};
use crate::topology::TopicInfo;

/// Limits of a producer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) queue: QueueConfig,
    pub(crate) batch_len_max: usize,
    pub(crate) linger: Duration,
    pub(crate) memory_len_max: usize,
}

/// A record, borrowed from the caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordParts<'a> {
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [RecordHeader],
    pub(crate) timestamp: i64,
}

/// What came of an attempt to take a record.
#[derive(Debug)]
pub(crate) enum Append {
    /// It is in a batch; the sender must look if `must_wake`.
    Taken { delivery: Delivery, must_wake: bool },
    /// Metadata of the topic is needed first.
    UnknownTopic,
    /// There is no room; the sender must look, and the caller wait.
    Full,
    /// It can never be taken.
    Invalid(ClientError),
}

/// A batch to send, as one partition's part of a request.
#[derive(Clone, Debug)]
pub(crate) struct OutgoingBatch {
    pub(crate) topic: Arc<str>,
    pub(crate) topic_id: Uuid,
    pub(crate) partition: i32,
    pub(crate) number: u64,
    pub(crate) bytes: Bytes,
}

/// What may be sent now, and when to look again.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// One request for each of these brokers.
    pub(crate) requests: BTreeMap<i32, Vec<OutgoingBatch>>,
    pub(crate) wake_at: Option<Instant>,
    /// Topics whose leaders are not known.
    pub(crate) stale_topics: BTreeSet<Arc<str>>,
    /// Partitions wait for a producer id.
    pub(crate) needs_identity: bool,
}

#[derive(Debug)]
struct TopicQueue {
    info: Arc<TopicInfo>,
    partitions: Vec<PartitionQueue>,
    sticky: Sticky,
}

/// All batches of a producer.
#[derive(Debug)]
pub(crate) struct Accumulator {
    limits: Limits,
    topics: BTreeMap<Arc<str>, TopicQueue>,
    /// Requests in flight by broker.
    in_flight: BTreeMap<i32, usize>,
    number_next: u64,
    /// Numbers of batches that are not over.
    unfinished: BTreeSet<u64>,
    /// Batches below this number are sent without waiting for more records.
    flush_below: u64,
    memory_len: usize,
    /// The caller waits for room: nothing lingers.
    is_starved: bool,
    stale_topics: BTreeSet<Arc<str>>,
    closed: bool,
    first_error: Option<ClientError>,
    acknowledged: u64,
}

impl Accumulator {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            topics: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            number_next: 0,
            unfinished: BTreeSet::new(),
            flush_below: 0,
            memory_len: 0,
            is_starved: false,
            stale_topics: BTreeSet::new(),
            closed: false,
            first_error: None,
            acknowledged: 0,
        }
    }

    /// Takes in metadata. `random` is any 64 bits.
    pub(crate) fn set_topic(&mut self, info: Arc<TopicInfo>, random: u64) {
        self.stale_topics.remove(&info.name);
        let topic = self.topics.entry(Arc::clone(&info.name)).or_insert_with(|| TopicQueue {
            info: Arc::clone(&info),
            partitions: Vec::new(),
            sticky: Sticky::new(random),
        });
        topic.info = Arc::clone(&info);
        // Never fewer: batches of a partition that is gone fail by time-out.
        while topic.partitions.len() < info.partitions.len() {
            topic.partitions.push(PartitionQueue::default());
        }
    }

    /// Takes a record.
    pub(crate) fn append(&mut self, topic_name: &str, record: RecordParts<'_>, now: Instant) -> Append {
        if self.closed {
            return Append::Invalid(ClientError::Closed("producer"));
        }
        let Some((name, topic)) = self.topics.get_key_value(topic_name) else { return Append::UnknownTopic };
        let name = Arc::clone(name);
        let partitions = topic.info.partitions.len();
        let at = match (record.partition, record.key) {
            (Some(partition), _) => match usize::try_from(partition).ok().filter(|&at| at < partitions) {
                Some(at) => at,
                None => {
                    let text = format!("topic {name} has {partitions} partitions, none with index {partition}");
                    return Append::Invalid(ClientError::InvalidArgument(text));
                }
            },
            (None, Some(key)) => partition_for_key(key, partitions as i32) as usize,
            (None, None) => topic.sticky.current(partitions),
        };
        let record_len = BatchBuilder::record_len_max(record.key, record.value, record.headers);
        let has_room = self.memory_len + record_len <= self.limits.memory_len_max;
        // A record larger than all the memory is let through when there is nothing else.
        if !has_room && self.memory_len > 0 {
            self.is_starved = true;
            return Append::Full;
        }
        let Some(topic) = self.topics.get_mut(topic_name) else { return Append::UnknownTopic };
        let is_sticky = record.partition.is_none() && record.key.is_none();
        let queue = &mut topic.partitions[at];
        let mut must_wake = false;
        let is_full =
            queue.open.as_ref().is_some_and(|open| open.builder.len() + record_len > self.limits.batch_len_max);
        if is_full {
            queue.close_open();
            must_wake = true;
            if is_sticky {
                // The record still goes here, which costs nothing; those after it go on.
                let info = Arc::clone(&topic.info);
                topic.sticky.advance(partitions, |at| info.partitions[at].leader.is_some());
            }
        }
        let queue = &mut topic.partitions[at];
        let number_next = &mut self.number_next;
        let unfinished = &mut self.unfinished;
        let batch_len_max = self.limits.batch_len_max;
        let open = queue.open.get_or_insert_with(|| {
            let number = *number_next;
            *number_next += 1;
            unfinished.insert(number);
            must_wake = true;
            GatheredBatch {
                builder: BatchBuilder::with_capacity(batch_len_max.min(4 * record_len)),
                delivery: BatchDelivery::new(Arc::clone(&name), at as i32),
                number,
                opened_at: now,
                record_count: 0,
                memory_len: 0,
            }
        });
        let index = open.builder.count();
        open.builder.push(record.timestamp, record.key, record.value, record.headers);
        open.record_count += 1;
        open.memory_len += record_len;
        self.memory_len += record_len;
        let delivery =
            Delivery { batch: Arc::clone(&open.delivery), index, timestamp: record.timestamp, waker_at: None };
        Append::Taken { delivery, must_wake }
    }

    /// Collects what may be sent now. It counts as in flight from here on. Gives also the batches that failed on the
    /// way.
    pub(crate) fn drain(&mut self, now: Instant) -> (Drained, Vec<Finished>) {
        let mut drained = Drained::default();
        let mut over = Vec::new();
        let limits = self.limits;
        let wake_at = &mut drained.wake_at;
        let mut wake_by = |at: Instant| *wake_at = Some(wake_at.map_or(at, |earlier: Instant| earlier.min(at)));
        for (name, topic) in &mut self.topics {
            let info = Arc::clone(&topic.info);
            for (index, queue) in topic.partitions.iter_mut().enumerate() {
                if queue.is_idle() {
                    continue;
                }
                over.extend(queue.expire(&limits.queue, now, || format!("producing to {name}/{index}")));
                if let Some(at) = queue.expires_at(&limits.queue) {
                    wake_by(at);
                }
                let Some(leader) = info.partitions.get(index).and_then(|partition| partition.leader) else {
                    self.stale_topics.insert(Arc::clone(name));
                    // Closed, so that it can expire.
                    queue.close_open();
                    continue;
                };
                // While the broker is busy, records gather to larger batches.
                if self.in_flight.get(&leader).is_some_and(|&count| count >= IN_FLIGHT_MAX) {
                    continue;
                }
                if let Some(open) = &queue.open {
                    let lingers_until = open.opened_at + limits.linger;
                    if now >= lingers_until || open.number < self.flush_below || self.is_starved {
                        queue.close_open();
                        if topic.sticky.current(info.partitions.len()) == index {
                            topic.sticky.advance(info.partitions.len(), |at| info.partitions[at].leader.is_some());
                        }
                    } else {
                        wake_by(lingers_until);
                    }
                }
                drained.needs_identity |= queue.needs_identity(&limits.queue);
                match queue.retry_at {
                    Some(at) if at > now => wake_by(at),
                    _ => match queue.next_to_send(&limits.queue, now) {
                        Ok(Some((number, bytes))) => {
                            drained.requests.entry(leader).or_default().push(OutgoingBatch {
                                topic: Arc::clone(name),
                                topic_id: info.id,
                                partition: index as i32,
                                number,
                                bytes,
                            });
                        }
                        Ok(None) => {}
                        Err(finished) => over.push(finished),
                    },
                }
            }
        }
        for &leader in drained.requests.keys() {
            *self.in_flight.entry(leader).or_default() += 1;
        }
        drained.stale_topics = self.stale_topics.clone();
        self.account(&over);
        (drained, over)
    }

    /// A request is over: what became of each of its batches. Gives the batches that are over.
    pub(crate) fn on_answers(
        &mut self,
        leader: i32,
        answers: Vec<(OutgoingBatch, Answer)>,
        now: Instant,
        delay: impl Fn(u32) -> Duration,
    ) -> Vec<Finished> {
        let count = self.in_flight.entry(leader).or_default();
        *count = count.saturating_sub(1);
        let mut over = Vec::new();
        for (batch, answer) in answers {
            // Whatever failed, leadership may have moved.
            if !matches!(answer, Answer::Stored(_)) {
                self.stale_topics.insert(Arc::clone(&batch.topic));
            }
            let Some(topic) = self.topics.get_mut(&batch.topic) else { continue };
            let Some(queue) = topic.partitions.get_mut(batch.partition as usize) else { continue };
            over.extend(queue.on_answer(batch.number, answer, now, &delay));
        }
        self.account(&over);
        over
    }

    fn account(&mut self, over: &[Finished]) {
        for finished in over {
            self.unfinished.remove(&finished.number);
            self.memory_len -= finished.memory_len;
            match &finished.outcome {
                Ok(_) => self.acknowledged += finished.record_count as u64,
                Err(error) => {
                    self.first_error.get_or_insert_with(|| error.clone());
                }
            }
        }
        if !over.is_empty() {
            self.is_starved = false;
        }
    }

    /// The topics that records were sent to.
    pub(crate) fn topic_names(&self) -> BTreeSet<Arc<str>> {
        self.topics.keys().cloned().collect()
    }

    /// The partitions that need an id get `identity`.
    pub(crate) fn set_identity(&mut self, identity: ProducerIdentity) {
        for queue in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
            if queue.needs_identity(&self.limits.queue) {
                queue.set_identity(identity);
            }
        }
    }

    /// Everything that is in a batch now is sent without waiting for more. Gives the number below which batches must be
    /// over.
    pub(crate) fn flush(&mut self) -> u64 {
        self.flush_below = self.number_next;
        self.flush_below
    }

    /// Whether all batches below this number are over.
    pub(crate) fn is_flushed(&self, below: u64) -> bool {
        self.unfinished.first().is_none_or(|&number| number >= below)
    }

    /// The first error since it was asked last.
    pub(crate) fn take_error(&mut self) -> Option<ClientError> {
        self.first_error.take()
    }

    /// Records that brokers took.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// No more records are taken, and those that are held fail.
    pub(crate) fn close(&mut self) -> Vec<Finished> {
        self.closed = true;
        let error = ClientError::Closed("producer");
        let queues = self.topics.values_mut().flat_map(|topic| &mut topic.partitions);
        let over: Vec<Finished> = queues.flat_map(|queue| queue.fail_all(&error)).collect();
        self.account(&over);
        over
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}
