//! The batches of one partition on their way: gathered, stamped with sequence numbers, sent, sent again.
//!
//! A broker takes an idempotent producer's batches only in the order of their sequence numbers, and knows a batch that
//! comes twice. So a batch keeps its bytes, and with them its sequence numbers, for every attempt, and attempts go out
//! in order. What needs care is a batch that is given up, since it leaves a gap:
//!
//! - It was refused, so it is certain that the broker does not have it: those behind it are numbered anew from its
//!   place.
//! - It may or may not be there: the producer cannot go on with this partition under its present id. Whatever else may
//!   be there is given up too, for sending it under another id could store it twice; the rest goes on under a new id
//!   from number 0.
//!
//! Both wait until nothing of the partition is in flight.
//!
//! The first batch under an id goes out alone: a broker that knows nothing of a producer lets it begin at any number, and would store the second one
//! when the first has failed.
//!
//! Nothing here waits, sends or reads a clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_wire::records::ProducerStamp;
use lockstep_wire::{BatchBuilder, Compression};

use crate::error::{ClientError, ErrorCode};
use crate::producer::delivery::{BatchAck, BatchDelivery};
use crate::retry::Backoff;
use lockstep_probe::{Mark, Mistake};

/// Brokers remember this many batches of a producer in a partition (Kafka's limit), so no more may be unanswered.
pub(crate) const IN_FLIGHT_MAX: usize = 5;

/// Who the broker takes the producer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProducerIdentity {
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
}

/// A batch that is being gathered, or waits to be sent for the first time.
#[derive(Debug)]
pub(crate) struct GatheredBatch {
    pub(crate) builder: BatchBuilder,
    pub(crate) delivery: Arc<BatchDelivery>,
    /// Batches of a producer are numbered as they are opened.
    pub(crate) number: u64,
    pub(crate) opened_at: Instant,
    pub(crate) record_count: i32,
    /// What it takes of the producer's memory.
    pub(crate) memory_len: usize,
}

/// A batch that has been given sequence numbers.
#[derive(Debug)]
struct SentBatch {
    gathered: GatheredBatch,
    bytes: Bytes,
    base_sequence: i32,
    in_flight: bool,
    /// An attempt was sent and not refused: the broker may have it.
    maybe_stored: bool,
    last_error: Option<ClientError>,
}

/// What must happen once nothing is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    /// Number the batches anew from here.
    Renumber(i32),
    /// Go on under another id.
    NewIdentity,
}

/// What became of an attempt.
#[derive(Debug)]
pub(crate) enum Answer {
    Stored(BatchAck),
    /// The broker refused it.
    Refused(ClientError),
    /// It never left.
    NotSent(ClientError),
    /// It may have arrived, but the answer did not.
    Lost(ClientError),
}

/// A batch that is over, to be told to whoever waits.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) delivery: Arc<BatchDelivery>,
    pub(crate) number: u64,
    pub(crate) memory_len: usize,
    pub(crate) record_count: i32,
    pub(crate) outcome: Result<BatchAck, ClientError>,
}

/// How batches of all partitions are treated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueConfig {
    pub(crate) is_idempotent: bool,
    pub(crate) compression: Compression,
    pub(crate) delivery_timeout: Duration,
}

/// One partition's batches.
#[derive(Debug, Default)]
pub(crate) struct PartitionQueue {
    pub(crate) open: Option<GatheredBatch>,
    /// Closed, not sent yet; in order.
    pub(crate) closed: VecDeque<GatheredBatch>,
    /// Numbered; in order of their sequence numbers.
    sent: VecDeque<SentBatch>,
    identity: Option<ProducerIdentity>,
    /// The partition has a batch of this id. Until it has, a broker takes any sequence number from it, also that of the second batch when the first
    /// has failed.
    is_known: bool,
    sequence_next: i32,
    recovery: Option<Recovery>,
    /// Nothing is sent before.
    pub(crate) retry_at: Option<Instant>,
    attempts_failed: u32,
    /// The leader's epoch, as far as it was known, when an attempt failed last.
    failed_epoch: i32,
}

/// Sequence numbers go on at 0 after `i32::MAX`.
fn sequence_after(sequence: i32, count: i32) -> i32 {
    ((i64::from(sequence) + i64::from(count)) % (i64::from(i32::MAX) + 1)) as i32
}

impl PartitionQueue {
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_none() && self.closed.is_empty() && self.sent.is_empty()
    }

    /// It cannot number batches before it is given an id.
    pub(crate) fn needs_identity(&self, config: &QueueConfig) -> bool {
        config.is_idempotent && self.identity.is_none() && !(self.closed.is_empty() && self.sent.is_empty())
    }

    /// Gives it the id that it needs. Batches that were numbered for an id to come get it too.
    pub(crate) fn set_identity(&mut self, identity: ProducerIdentity) {
        if self.identity.is_some() {
            return;
        }
        self.identity = Some(identity);
        let batches = std::mem::take(&mut self.sent);
        self.sequence_next = 0;
        self.renumber(batches);
    }

    /// No more records go into the open batch.
    pub(crate) fn close_open(&mut self) {
        self.closed.extend(self.open.take());
    }

    /// May what failed last have failed because of an election, so that another leader is about to be named?
    pub(crate) fn awaits_leader(&self) -> bool {
        Backoff::is_at_first(self.attempts_failed)
    }

    /// The partition has a leader, of this epoch. If it came after the last failure there is no reason to wait before it is tried. Metadata that names
    /// nobody, and then the former leader again, is no news.
    pub(crate) fn on_leader(&mut self, leader_epoch: i32) {
        if leader_epoch > self.failed_epoch {
            self.retry_at = None;
        }
    }

    /// An attempt failed while this was the leader's epoch.
    pub(crate) fn failed_under(&mut self, leader_epoch: i32) {
        self.failed_epoch = leader_epoch;
    }

    fn has_in_flight(&self) -> bool {
        self.sent.iter().any(|batch| batch.in_flight)
    }

    /// The next batch to send, if one may be sent now. It counts as in flight from here on.
    ///
    /// # Errors
    /// The batch could not be built, and is finished.
    pub(crate) fn next_to_send(
        &mut self,
        config: &QueueConfig,
        now: Instant,
    ) -> Result<Option<(u64, Bytes)>, Finished> {
        if self.retry_at.is_some_and(|at| now < at) || (config.is_idempotent && self.identity.is_none()) {
            return Ok(None);
        }
        if self.recovery.is_some() || (config.is_idempotent && !self.is_known && self.has_in_flight()) {
            return Ok(None);
        }
        if let Some(at) = self.sent.iter().position(|batch| !batch.in_flight) {
            // Again and in order: those behind one that failed are refused, so all are awaited before the first goes
            // out again. Then they follow one another without waiting.
            if self.sent.iter().skip(at).any(|batch| batch.in_flight) {
                return Ok(None);
            }
            Mark::ProducerBatchSentAgain.reached();
            if Mistake::RetryTakesNewSequence.is_made() {
                let batches = std::mem::take(&mut self.sent);
                self.renumber(batches);
            }
            let batch = &mut self.sent[at];
            batch.in_flight = true;
            return Ok(Some((batch.gathered.number, batch.bytes.clone())));
        }
        let in_flight_max = if config.is_idempotent { IN_FLIGHT_MAX } else { 1 };
        if self.sent.len() >= in_flight_max {
            return Ok(None);
        }
        let Some(mut gathered) = self.closed.pop_front() else { return Ok(None) };
        let count = gathered.record_count;
        let base_sequence = self.sequence_next;
        let stamp = self.identity.filter(|_| config.is_idempotent).map(|identity| ProducerStamp {
            producer_id: identity.producer_id,
            producer_epoch: identity.producer_epoch,
            base_sequence,
        });
        let builder = std::mem::take(&mut gathered.builder);
        let bytes = match builder.finish(config.compression, stamp) {
            Ok(bytes) => bytes,
            Err(error) => {
                let error = ClientError::InvalidArgument(format!("records cannot be compressed: {error}"));
                return Err(finished(gathered, Err(error)));
            }
        };
        let number = gathered.number;
        let sent = SentBatch {
            gathered,
            bytes: bytes.clone(),
            base_sequence,
            in_flight: true,
            maybe_stored: false,
            last_error: None,
        };
        self.sequence_next = sequence_after(base_sequence, count);
        self.sent.push_back(sent);
        Ok(Some((number, bytes)))
    }

    /// Takes in what became of an attempt. Gives the batches that are over. `delay` is how long to wait before trying
    /// again, given the number of failures in a row.
    pub(crate) fn on_answer(
        &mut self,
        number: u64,
        answer: Answer,
        now: Instant,
        delay: impl FnOnce(u32) -> Duration,
    ) -> Vec<Finished> {
        let Some(at) = self.sent.iter().position(|batch| batch.gathered.number == number) else {
            return Vec::new();
        };
        let is_oldest = at == 0;
        let batch = &mut self.sent[at];
        assert!(batch.in_flight, "only a batch in flight is answered");
        batch.in_flight = false;
        let mut over = Vec::new();
        let retry_after = |queue: &mut Self, error: ClientError| {
            queue.sent[at].last_error = Some(error);
            // Batches that were in flight together fail together: that is one failure.
            if queue.retry_at.is_none_or(|at| at <= now) {
                queue.retry_at = Some(now + delay(queue.attempts_failed));
                queue.attempts_failed = queue.attempts_failed.saturating_add(1);
            }
        };
        match answer {
            Answer::Stored(ack) => {
                self.attempts_failed = 0;
                self.retry_at = None;
                self.is_known = true;
                over.extend(self.sent.remove(at).map(|batch| finished(batch.gathered, Ok(ack))));
            }
            Answer::NotSent(error) => retry_after(self, error),
            Answer::Lost(error) => {
                batch.maybe_stored = true;
                retry_after(self, error);
            }
            Answer::Refused(error) => match error.code() {
                // It has been there since an attempt whose answer was lost.
                Some(ErrorCode::DuplicateSequenceNumber) => {
                    self.is_known = true;
                    let ack = BatchAck { base_offset: None, append_time_ms: None };
                    over.extend(self.sent.remove(at).map(|batch| finished(batch.gathered, Ok(ack))));
                }
                Some(ErrorCode::OutOfOrderSequenceNumber) if !is_oldest || self.recovery.is_some() => {
                    // Because of one before it, which has failed or will be sent again.
                    retry_after(self, error);
                }
                Some(
                    ErrorCode::OutOfOrderSequenceNumber
                    | ErrorCode::UnknownProducerId
                    | ErrorCode::InvalidProducerEpoch
                    | ErrorCode::InvalidProducerIdMapping,
                ) => {
                    tracing::warn!(%error, "the broker does not know this producer as it was; going on under another id");
                    self.recovery = Some(Recovery::NewIdentity);
                    retry_after(self, error);
                }
                // The leader may have stored it, and not learnt in time that enough others had.
                Some(ErrorCode::RequestTimedOut | ErrorCode::NotEnoughReplicasAfterAppend) => {
                    batch.maybe_stored = true;
                    retry_after(self, error);
                }
                _ if error.is_retriable() => retry_after(self, error),
                _ => {
                    let refused = self.sent.remove(at);
                    over.extend(refused.map(|batch| self.give_up(batch, error)));
                }
            },
        }
        over.extend(self.recover());
        over
    }

    /// Ends a numbered batch that failed.
    fn give_up(&mut self, batch: SentBatch, error: ClientError) -> Finished {
        let wanted = if batch.maybe_stored { Recovery::NewIdentity } else { Recovery::Renumber(batch.base_sequence) };
        self.recovery = match (self.recovery, wanted) {
            (Some(Recovery::NewIdentity), _) | (_, Recovery::NewIdentity) => Some(Recovery::NewIdentity),
            // Numbering goes on at the first gap: the one that is farthest behind.
            (Some(Recovery::Renumber(one)), Recovery::Renumber(other)) => {
                let behind = |sequence: i32| {
                    (i64::from(self.sequence_next) - i64::from(sequence)).rem_euclid(i64::from(i32::MAX) + 1)
                };
                Some(Recovery::Renumber(if behind(one) >= behind(other) { one } else { other }))
            }
            (None, wanted) => Some(wanted),
        };
        finished(batch.gathered, Err(error))
    }

    /// Fails what has waited too long. Batches in flight are left: their answer is awaited.
    pub(crate) fn expire(&mut self, config: &QueueConfig, now: Instant, what: impl Fn() -> String) -> Vec<Finished> {
        let is_due = |batch: &GatheredBatch| now.saturating_duration_since(batch.opened_at) >= config.delivery_timeout;
        let timed_out = |last: Option<&ClientError>| ClientError::TimedOut {
            what: what(),
            after: config.delivery_timeout,
            last: last.map_or_else(|| "no leader".to_owned(), ToString::to_string),
        };
        let mut over = Vec::new();
        while self.sent.front().is_some_and(|batch| !batch.in_flight && is_due(&batch.gathered)) {
            let batch = self.sent.pop_front();
            over.extend(batch.map(|batch| {
                let error = timed_out(batch.last_error.as_ref());
                self.give_up(batch, error)
            }));
        }
        // Those behind are younger, so an unsent one is due only once nothing sent is.
        let last_error = self.sent.front().and_then(|batch| batch.last_error.clone());
        while self.sent.is_empty() && self.closed.front().is_some_and(is_due) {
            let error = timed_out(last_error.as_ref());
            over.extend(self.closed.pop_front().map(|batch| finished(batch, Err(error))));
        }
        over.extend(self.recover());
        over
    }

    /// When [`PartitionQueue::expire`] has something to do, at the earliest.
    pub(crate) fn expires_at(&self, config: &QueueConfig) -> Option<Instant> {
        let oldest = self.sent.front().filter(|batch| !batch.in_flight).map(|batch| &batch.gathered);
        let oldest = oldest.or(self.closed.front().filter(|_| self.sent.is_empty()));
        oldest.map(|batch| batch.opened_at + config.delivery_timeout)
    }

    /// Does what was put off until nothing is in flight.
    fn recover(&mut self) -> Vec<Finished> {
        if self.has_in_flight() {
            return Vec::new();
        }
        let Some(recovery) = self.recovery.take() else { return Vec::new() };
        let mut over = Vec::new();
        match recovery {
            Recovery::Renumber(sequence) => {
                Mark::ProducerRenumbered.reached();
                self.sequence_next = sequence;
            }
            Recovery::NewIdentity => {
                Mark::ProducerTookNewIdentity.reached();
                self.identity = None;
                self.is_known = false;
                self.sequence_next = 0;
            }
        }
        let mut rest = VecDeque::new();
        for batch in std::mem::take(&mut self.sent) {
            if batch.maybe_stored && recovery == Recovery::NewIdentity {
                let error = batch.last_error.unwrap_or(ClientError::Closed("producer"));
                over.push(finished(batch.gathered, Err(error)));
                continue;
            }
            rest.push_back(batch);
        }
        self.renumber(rest);
        over
    }

    /// Gives batches that the broker does not have the next numbers, in order.
    fn renumber(&mut self, batches: VecDeque<SentBatch>) {
        for mut batch in batches {
            batch.base_sequence = self.sequence_next;
            self.sequence_next = sequence_after(self.sequence_next, batch.gathered.record_count);
            // Without an id this is done once there is one.
            if let Some(identity) = self.identity {
                let mut bytes = batch.bytes.to_vec();
                let stamp = ProducerStamp {
                    producer_id: identity.producer_id,
                    producer_epoch: identity.producer_epoch,
                    base_sequence: batch.base_sequence,
                };
                let stamped = lockstep_wire::batch::stamp_producer(&mut bytes, stamp);
                assert_eq!(stamped, Ok(()), "a batch of our own has a header");
                batch.bytes = bytes.into();
            }
            self.sent.push_back(batch);
        }
    }

    /// Ends everything, in flight or not.
    pub(crate) fn fail_all(&mut self, error: &ClientError) -> Vec<Finished> {
        self.close_open();
        let sent = std::mem::take(&mut self.sent).into_iter().map(|batch| batch.gathered);
        let closed = std::mem::take(&mut self.closed);
        sent.chain(closed).map(|batch| finished(batch, Err(error.clone()))).collect()
    }
}

fn finished(batch: GatheredBatch, outcome: Result<BatchAck, ClientError>) -> Finished {
    Finished {
        delivery: batch.delivery,
        number: batch.number,
        memory_len: batch.memory_len,
        record_count: batch.record_count,
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_wire::check_batch;

    const CONFIG: QueueConfig =
        QueueConfig { is_idempotent: true, compression: Compression::None, delivery_timeout: Duration::from_secs(60) };
    const IDENTITY: ProducerIdentity = ProducerIdentity { producer_id: 7, producer_epoch: 0 };
    const SECOND_IDENTITY: ProducerIdentity = ProducerIdentity { producer_id: 8, producer_epoch: 0 };

    /// A queue with closed batches, numbered from 0, of `counts` records each.
    fn queue(counts: &[i32], now: Instant) -> PartitionQueue {
        let mut queue = PartitionQueue::default();
        for (number, &count) in (0..).zip(counts) {
            let mut builder = BatchBuilder::new();
            for _ in 0..count {
                builder.push(0, None, Some(b"v"), &[]);
            }
            let delivery = BatchDelivery::new(Arc::from("t"), 0);
            queue.closed.push_back(GatheredBatch {
                builder,
                delivery,
                number,
                opened_at: now,
                record_count: count,
                memory_len: 1,
            });
        }
        assert!(queue.needs_identity(&CONFIG));
        queue.set_identity(IDENTITY);
        // As after a batch that was stored.
        queue.is_known = true;
        queue
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the beginning")]
    fn start() -> Instant {
        Instant::now()
    }

    /// All that may be sent now: number, producer id, first sequence number.
    fn send(queue: &mut PartitionQueue, now: Instant) -> Vec<(u64, i64, i32)> {
        let mut sent = Vec::new();
        while let Some((number, bytes)) = queue.next_to_send(&CONFIG, now).expect("builds") {
            let header = check_batch(&bytes).expect("a good batch");
            sent.push((number, header.producer_id, header.base_sequence));
        }
        sent
    }

    fn stored() -> Answer {
        Answer::Stored(BatchAck { base_offset: Some(0), append_time_ms: None })
    }

    fn refused(code: ErrorCode) -> Answer {
        Answer::Refused(ClientError::broker("test", code.code(), None))
    }

    fn lost() -> Answer {
        Answer::Lost(ClientError::Disconnected { address: "b".to_owned(), reason: "cut".to_owned() })
    }

    fn answer(queue: &mut PartitionQueue, number: u64, answer: Answer, now: Instant) -> Vec<(u64, bool)> {
        let over = queue.on_answer(number, answer, now, |_| Duration::from_millis(10));
        over.into_iter().map(|finished| (finished.number, finished.outcome.is_ok())).collect()
    }

    #[test]
    fn sequence_numbers_follow_one_another_and_five_batches_fly() {
        let now = start();
        let mut queue = queue(&[3, 1, 2, 1, 1, 1], now);
        assert_eq!(send(&mut queue, now), [(0, 7, 0), (1, 7, 3), (2, 7, 4), (3, 7, 6), (4, 7, 7)]);
        assert_eq!(answer(&mut queue, 0, stored(), now), [(0, true)]);
        assert_eq!(send(&mut queue, now), [(5, 7, 8)]);
    }

    #[test]
    fn a_batch_sent_again_keeps_its_sequence_and_the_order() {
        let now = start();
        let mut queue = queue(&[3, 1, 1], now);
        send(&mut queue, now);
        assert_eq!(answer(&mut queue, 0, lost(), now), []);
        let later = now + Duration::from_secs(1);
        assert_eq!(send(&mut queue, later), [], "the others of the first round are awaited");
        assert_eq!(answer(&mut queue, 1, refused(ErrorCode::OutOfOrderSequenceNumber), now), []);
        assert_eq!(answer(&mut queue, 2, refused(ErrorCode::OutOfOrderSequenceNumber), now), []);
        assert_eq!(send(&mut queue, now), [], "not before the pause is over");
        assert_eq!(send(&mut queue, later), [(0, 7, 0), (1, 7, 3), (2, 7, 4)]);
        for number in 0..3 {
            assert_eq!(answer(&mut queue, number, stored(), later), [(number, true)]);
        }
        assert!(queue.is_idle());
    }

    #[test]
    fn a_duplicate_is_a_success() {
        let now = start();
        let mut queue = queue(&[1], now);
        send(&mut queue, now);
        answer(&mut queue, 0, lost(), now);
        send(&mut queue, now + Duration::from_secs(1));
        assert_eq!(answer(&mut queue, 0, refused(ErrorCode::DuplicateSequenceNumber), now), [(0, true)]);
    }

    #[test]
    fn after_a_refused_batch_those_behind_take_its_numbers() {
        let now = start();
        let mut queue = queue(&[3, 2, 1, 1], now);
        send(&mut queue, now);
        assert_eq!(answer(&mut queue, 0, stored(), now), [(0, true)]);
        assert_eq!(answer(&mut queue, 1, refused(ErrorCode::MessageTooLarge), now), [(1, false)]);
        assert_eq!(answer(&mut queue, 2, refused(ErrorCode::OutOfOrderSequenceNumber), now), []);
        assert_eq!(send(&mut queue, now + Duration::from_secs(1)), [], "one is still in flight");
        assert_eq!(answer(&mut queue, 3, refused(ErrorCode::OutOfOrderSequenceNumber), now), []);
        assert_eq!(send(&mut queue, now + Duration::from_secs(1)), [(2, 7, 3), (3, 7, 4)]);
    }

    #[test]
    fn the_last_batch_refused_leaves_no_gap_for_the_next() {
        let now = start();
        let mut queue = queue(&[3], now);
        send(&mut queue, now);
        assert_eq!(answer(&mut queue, 0, refused(ErrorCode::InvalidRecord), now), [(0, false)]);
        assert_eq!(queue.sequence_next, 0);
    }

    #[test]
    fn what_may_be_stored_is_never_sent_under_another_id() {
        let now = start();
        let mut queue = queue(&[2, 2, 2], now);
        send(&mut queue, now);
        answer(&mut queue, 0, lost(), now);
        answer(&mut queue, 1, lost(), now);
        answer(&mut queue, 2, refused(ErrorCode::OutOfOrderSequenceNumber), now);
        let late = now + CONFIG.delivery_timeout - Duration::from_millis(1);
        assert!(queue.expire(&CONFIG, late, || "test".to_owned()).is_empty());
        // Only the first is due: it opened before the others.
        queue.sent[1].gathered.opened_at = late;
        queue.sent[2].gathered.opened_at = late;
        let late = now + CONFIG.delivery_timeout;
        let over = queue.expire(&CONFIG, late, || "test".to_owned());
        let numbers: Vec<_> = over.iter().map(|finished| (finished.number, finished.outcome.is_ok())).collect();
        assert_eq!(numbers, [(0, false), (1, false)], "the second may be stored as well");
        assert_eq!(send(&mut queue, late), [], "no id yet");
        assert!(queue.needs_identity(&CONFIG));
        queue.set_identity(SECOND_IDENTITY);
        assert_eq!(send(&mut queue, late), [(2, 8, 0)]);
    }

    #[test]
    fn a_batch_never_sent_expires_without_a_new_id() {
        let now = start();
        let mut queue = queue(&[1, 1], now);
        let late = now + CONFIG.delivery_timeout;
        assert_eq!(queue.expires_at(&CONFIG), Some(late));
        let over = queue.expire(&CONFIG, late, || "producing to t/0".to_owned());
        assert_eq!(over.len(), 2);
        assert!(over[0].outcome.as_ref().is_err_and(|error| error.to_string().contains("producing to t/0")));
        assert!(!queue.needs_identity(&CONFIG));
    }

    #[test]
    fn the_first_batch_goes_out_alone_until_it_is_stored() {
        let now = start();
        let mut queue = queue(&[1, 2, 1], now);
        queue.is_known = false;
        assert_eq!(send(&mut queue, now), [(0, 7, 0)]);
        // Whatever came behind it now would be taken for the producer's beginning.
        answer(&mut queue, 0, Answer::NotSent(ClientError::Closed("connection")), now);
        let later = now + Duration::from_secs(1);
        assert_eq!(send(&mut queue, later), [(0, 7, 0)]);
        answer(&mut queue, 0, stored(), later);
        assert_eq!(send(&mut queue, later), [(1, 7, 1), (2, 7, 3)]);
    }

    #[test]
    fn a_producer_that_the_broker_forgot_goes_on_under_another_id() {
        let now = start();
        let mut queue = queue(&[1, 1], now);
        send(&mut queue, now);
        answer(&mut queue, 0, refused(ErrorCode::UnknownProducerId), now);
        answer(&mut queue, 1, refused(ErrorCode::OutOfOrderSequenceNumber), now);
        assert!(queue.needs_identity(&CONFIG));
        queue.set_identity(SECOND_IDENTITY);
        let later = now + Duration::from_secs(1);
        assert_eq!(send(&mut queue, later), [(0, 8, 0)]);
        answer(&mut queue, 0, stored(), later);
        assert_eq!(send(&mut queue, later), [(1, 8, 1)]);
    }

    #[test]
    fn sequence_numbers_wrap_to_0() {
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 5), 3);
        assert_eq!(sequence_after(0, i32::MAX), i32::MAX);
    }
}
