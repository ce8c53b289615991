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

/// While so many requests to a broker are unanswered, only full batches are added to them, and records gather to larger
/// ones: a broker with work to do takes a large batch in little more time than a small one.
const UNFILLED_IN_FLIGHT_MAX: usize = 2;

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
        for (queue, partition) in topic.partitions.iter_mut().zip(&info.partitions) {
            if partition.leader.is_some() {
                queue.on_leader(partition.leader_epoch);
            }
        }
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
                let busy = self.in_flight.get(&leader).copied().unwrap_or_default();
                if busy >= IN_FLIGHT_MAX {
                    continue;
                }
                if let Some(open) = queue.open.as_ref().filter(|_| busy < UNFILLED_IN_FLIGHT_MAX) {
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
                    Some(at) if at > now => {
                        wake_by(at);
                        if queue.awaits_leader() {
                            self.stale_topics.insert(Arc::clone(name));
                        }
                    }
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
            let Some(topic) = self.topics.get_mut(&batch.topic) else { continue };
            let Some(queue) = topic.partitions.get_mut(batch.partition as usize) else { continue };
            // Whatever failed, leadership may have moved.
            if !matches!(answer, Answer::Stored(_)) {
                self.stale_topics.insert(Arc::clone(&batch.topic));
                let known = topic.info.partitions.get(batch.partition as usize);
                queue.failed_under(known.map_or(-1, |partition| partition.leader_epoch));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::delivery::BatchAck;
    use crate::retry::Backoff;
    use crate::topology::PartitionInfo;
    use lockstep_wire::{BatchHeader, Compression};

    const LINGER: Duration = Duration::from_millis(5);

    fn accumulator(leaders: &[Option<i32>]) -> Accumulator {
        let queue = QueueConfig {
            is_idempotent: true,
            compression: Compression::None,
            delivery_timeout: Duration::from_secs(60),
        };
        let mut accumulator =
            Accumulator::new(Limits { queue, batch_len_max: 1_000, linger: LINGER, memory_len_max: 10_000 });
        set_leaders(&mut accumulator, leaders);
        accumulator
    }

    fn set_leaders(accumulator: &mut Accumulator, leaders: &[Option<i32>]) {
        set_leaders_of(accumulator, leaders, 1);
    }

    fn set_leaders_of(accumulator: &mut Accumulator, leaders: &[Option<i32>], leader_epoch: i32) {
        let partition = |(index, &leader): (i32, &Option<i32>)| PartitionInfo {
            index,
            leader,
            leader_epoch,
            replicas: vec![1],
            in_sync_replicas: vec![1],
        };
        let info = TopicInfo {
            name: Arc::from("t"),
            id: Uuid::nil(),
            is_internal: false,
            partitions: (0..).zip(leaders).map(partition).collect(),
        };
        accumulator.set_topic(Arc::new(info), 0);
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the beginning")]
    fn start() -> Instant {
        Instant::now()
    }

    fn append(accumulator: &mut Accumulator, partition: Option<i32>, len: usize, now: Instant) -> Append {
        let value = vec![0; len];
        let record = RecordParts { partition, key: None, value: Some(&value), headers: &[], timestamp: 0 };
        accumulator.append("t", record, now)
    }

    /// The batches that may be sent now: broker, partition, records. Ids are given out where they are needed.
    fn drain(accumulator: &mut Accumulator, now: Instant) -> Vec<(i32, OutgoingBatch)> {
        let (mut drained, over) = accumulator.drain(now);
        assert!(over.is_empty());
        if drained.needs_identity {
            accumulator.set_identity(ProducerIdentity { producer_id: 1, producer_epoch: 0 });
            let (again, _) = accumulator.drain(now);
            drained.requests.extend(again.requests);
        }
        let requests = drained.requests.into_iter();
        requests.flat_map(|(leader, batches)| batches.into_iter().map(move |batch| (leader, batch))).collect()
    }

    fn summary(batches: &[(i32, OutgoingBatch)]) -> Vec<(i32, i32, i32)> {
        let count = |batch: &OutgoingBatch| BatchHeader::parse(&batch.bytes).expect("a batch").record_count;
        batches.iter().map(|(leader, batch)| (*leader, batch.partition, count(batch))).collect()
    }

    fn acknowledge(accumulator: &mut Accumulator, batches: Vec<(i32, OutgoingBatch)>, now: Instant) {
        for (leader, batch) in batches {
            let ack = BatchAck { base_offset: Some(0), append_time_ms: None };
            let over = accumulator.on_answers(leader, vec![(batch, Answer::Stored(ack))], now, |_| Duration::ZERO);
            for finished in over {
                finished.delivery.finish(finished.outcome);
            }
        }
    }

    /// From then on the partition knows the producer, and batches need not wait for one another.
    fn store_first(accumulator: &mut Accumulator, now: Instant) {
        append(accumulator, None, 10, now);
        let sent = drain(accumulator, now + LINGER);
        acknowledge(accumulator, sent, now);
    }

    #[test]
    fn a_batch_lingers_unless_it_is_full_or_flushed() {
        let mut accumulator = accumulator(&[Some(1)]);
        let now = start();
        store_first(&mut accumulator, now);
        append(&mut accumulator, None, 10, now);
        append(&mut accumulator, None, 10, now);
        assert_eq!(summary(&drain(&mut accumulator, now)), []);
        assert_eq!(accumulator.drain(now).0.wake_at, Some(now + LINGER));
        assert_eq!(summary(&drain(&mut accumulator, now + LINGER)), [(1, 0, 2)]);
        append(&mut accumulator, None, 600, now + LINGER);
        append(&mut accumulator, None, 600, now + LINGER);
        assert_eq!(summary(&drain(&mut accumulator, now + LINGER)), [(1, 0, 1)], "the full one");
        let below = accumulator.flush();
        assert!(!accumulator.is_flushed(below));
        assert_eq!(summary(&drain(&mut accumulator, now + LINGER)), [], "two are in flight: this one can still grow");
    }

    #[test]
    fn while_a_broker_is_busy_records_gather_and_full_batches_go() {
        let mut accumulator = accumulator(&[Some(1)]);
        let now = start();
        store_first(&mut accumulator, now);
        let mut sent = Vec::new();
        for _ in 0..UNFILLED_IN_FLIGHT_MAX {
            append(&mut accumulator, None, 10, now);
            sent.extend(drain(&mut accumulator, now + LINGER));
        }
        assert_eq!(sent.len(), UNFILLED_IN_FLIGHT_MAX);
        append(&mut accumulator, None, 10, now);
        append(&mut accumulator, None, 10, now);
        assert_eq!(summary(&drain(&mut accumulator, now + LINGER)), []);
        append(&mut accumulator, None, 990, now);
        assert_eq!(summary(&drain(&mut accumulator, now + LINGER)), [(1, 0, 2)]);
        acknowledge(&mut accumulator, sent, now);
        assert_eq!(summary(&drain(&mut accumulator, now + LINGER)), [(1, 0, 1)]);
    }

    #[test]
    fn records_without_a_key_go_round_the_partitions_that_have_a_leader() {
        let mut accumulator = accumulator(&[Some(1), None, Some(2)]);
        let now = start();
        let mut partitions = Vec::new();
        for _ in 0..4 {
            append(&mut accumulator, None, 10, now);
            let sent = drain(&mut accumulator, now + LINGER);
            partitions.extend(summary(&sent).into_iter().map(|(_, partition, _)| partition));
            acknowledge(&mut accumulator, sent, now);
        }
        assert_eq!(partitions, [0, 2, 0, 2]);
    }

    #[test]
    fn without_a_leader_metadata_is_asked_for_and_the_batch_waits() {
        let mut accumulator = accumulator(&[None]);
        let now = start();
        append(&mut accumulator, Some(0), 10, now);
        let (drained, _) = accumulator.drain(now + LINGER);
        assert!(drained.requests.is_empty() && drained.stale_topics.contains("t"));
        set_leaders(&mut accumulator, &[Some(3)]);
        assert_eq!(summary(&drain(&mut accumulator, now + LINGER)), [(3, 0, 1)]);
    }

    #[test]
    fn a_batch_that_failed_goes_to_another_leader_as_soon_as_there_is_one() {
        let mut accumulator = accumulator(&[Some(1)]);
        let mut now = start();
        let pause = Duration::from_millis(30);
        append(&mut accumulator, Some(0), 10, now);
        now += LINGER;
        let mut batches = drain(&mut accumulator, now);
        for failure in 0..1_000 {
            let lost = |(_, batch)| (batch, Answer::Lost(ClientError::Closed("connection")));
            accumulator.on_answers(1, batches.into_iter().map(lost).collect(), now, |_| pause);
            for leaders in [[Some(1)], [None], [Some(1)]] {
                set_leaders(&mut accumulator, &leaders);
            }
            let (waiting, _) = accumulator.drain(now + pause / 2);
            assert!(waiting.requests.is_empty(), "the same leader is not tried again at once");
            // What fails for long does not fail because of an election.
            assert_eq!(waiting.stale_topics.contains("t"), Backoff::is_at_first(failure + 1), "failure {failure}");
            set_leaders(&mut accumulator, &[Some(1)]);
            now += pause;
            batches = drain(&mut accumulator, now);
            assert_eq!(summary(&batches), [(1, 0, 1)]);
        }
        let lost = |(_, batch)| (batch, Answer::Lost(ClientError::Closed("connection")));
        accumulator.on_answers(1, batches.into_iter().map(lost).collect(), now, |_| pause);
        set_leaders_of(&mut accumulator, &[Some(2)], 2);
        assert_eq!(summary(&drain(&mut accumulator, now)), [(2, 0, 1)]);
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let mut accumulator = accumulator(&[Some(1)]);
        let now = start();
        let mut taken = 0;
        while matches!(append(&mut accumulator, Some(0), 900, now), Append::Taken { .. }) {
            taken += 1;
        }
        assert_eq!(taken, 10);
        let sent = drain(&mut accumulator, now);
        assert!(!sent.is_empty(), "nothing lingers while the caller waits");
        assert!(matches!(append(&mut accumulator, Some(0), 900, now), Append::Full));
        acknowledge(&mut accumulator, sent, now);
        assert!(matches!(append(&mut accumulator, Some(0), 900, now), Append::Taken { .. }));
        let mut empty = self::accumulator(&[Some(1)]);
        assert!(matches!(append(&mut empty, Some(0), 50_000, now), Append::Taken { .. }), "larger than all memory");
    }

    #[test]
    fn closing_fails_what_is_held_and_takes_nothing_more() {
        let mut accumulator = accumulator(&[Some(1)]);
        let now = start();
        append(&mut accumulator, Some(0), 10, now);
        assert_eq!(accumulator.close().len(), 1);
        assert!(matches!(append(&mut accumulator, Some(0), 10, now), Append::Invalid(ClientError::Closed(_))));
        assert!(accumulator.is_flushed(u64::MAX));
    }
}
