//! The proposal queue of one shard: what waits for Raft, and who waits for its outcome.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use lockstep_core::op::AppendMessage;
use lockstep_core::{NodeId, Op, Reply, ShardId};
use lockstep_env::Env;
use openraft::raft::ClientWriteResult;
use tokio::sync::{Notify, oneshot};

use super::completion::Completion;
use super::type_config::{Command, TypeConfig};
use crate::error::ProposeError;
use lockstep_probe::Mark;

/// Payload of one op 3 that was gathered from several; a single batch may be larger.
const GATHERED_BYTES_MAX: usize = 1 << 20;
/// Batches of one op 3 that was gathered from several.
const GATHERED_APPENDS_MAX: usize = 10_000;
/// Entries under way at a time. Beyond it proposals wait in the queue, where appends are gathered into fewer entries.
const UNDER_WAY_MAX: usize = 256;
/// Queued and under way, together.
const OUTSTANDING_BYTES_MAX: usize = 48 << 20;
/// Queued and under way, together.
const OUTSTANDING_OPS_MAX: usize = 50_000;
/// An op without its payload at most. Entries longer than a frame of the bulk lane would never reach a follower.
const OP_BYTES_MAX: usize = 7 << 20;
/// What an op without payload counts for, roughly.
const OP_BYTES: usize = 256;

type Answer = oneshot::Sender<Result<Reply, ProposeError>>;

/// An op that was not handed to Raft yet.
struct Proposal {
    op: Op,
    payload: Bytes,
    answer: Answer,
}

/// One proposal within an entry.
struct Waiter {
    answer: Answer,
    /// Its share of an op 3's outcomes; `None` when the entry is all its own.
    share: Option<usize>,
    cost: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Proposal>,
    /// Entries handed to Raft, by the order in which they were.
    under_way: BTreeMap<u64, Vec<Waiter>>,
    next: u64,
    outstanding_ops: usize,
    outstanding_bytes: usize,
    closed: bool,
}

/// The queue. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposals {
    shard: ShardId,
    state: Arc<Mutex<State>>,
    queued: Arc<Notify>,
}

fn cost(payload: &Bytes) -> usize {
    OP_BYTES + payload.len()
}

impl Proposals {
    pub(crate) fn new(shard: ShardId) -> Self {
        Self { shard, state: Arc::default(), queued: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an op. The receiver fails only when the shard is torn down.
    pub(crate) fn push(
        &self,
        op: Op,
        payload: Bytes,
    ) -> Result<oneshot::Receiver<Result<Reply, ProposeError>>, ProposeError> {
        let (answer, outcome) = oneshot::channel();
        let cost = cost(&payload);
        {
            let mut state = self.lock();
            if state.closed {
                return Err(ProposeError::Stopped(self.shard));
            }
            let full = state.outstanding_ops >= OUTSTANDING_OPS_MAX
                || state.outstanding_bytes.saturating_add(cost) > OUTSTANDING_BYTES_MAX;
            // However large it is, one may always pass: a batch larger than the bound would never get through.
            if full && state.outstanding_ops > 0 {
                Mark::ProposalQueueFull.reached();
                return Err(ProposeError::Overloaded(self.shard));
            }
            state.outstanding_ops += 1;
            state.outstanding_bytes += cost;
            state.queue.push_back(Proposal { op, payload, answer });
        }
        self.queued.notify_one();
        Ok(outcome)
    }

    /// Hands what is queued to Raft, in order, until the queue is closed.
    pub(crate) async fn run<E: Env, SM>(self, raft: openraft::Raft<TypeConfig<E>, SM>)
    where
        SM: openraft::storage::RaftStateMachine<TypeConfig<E>>,
    {
        loop {
            let batch = {
                let mut state = self.lock();
                if state.closed {
                    return;
                }
                if state.under_way.len() < UNDER_WAY_MAX { std::mem::take(&mut state.queue) } else { VecDeque::new() }
            };
            if batch.is_empty() {
                self.queued.notified().await;
                continue;
            }
            for (command, waiters) in gather(batch) {
                if command.op.len() > OP_BYTES_MAX {
                    self.refuse(waiters);
                    continue;
                }
                let number = {
                    let mut state = self.lock();
                    let number = state.next;
                    state.next += 1;
                    state.under_way.insert(number, waiters);
                    number
                };
                let ticket = Ticket { proposals: self.clone(), number };
                let completion = Completion::new(move |result: ClientWriteResult<TypeConfig<E>>| {
                    ticket.proposals.finish(ticket.number, outcome(ticket.proposals.shard, result));
                });
                if raft.client_write_ff(command, Some(completion)).await.is_err() {
                    // The ticket inside was dropped and has answered: nothing more can be proposed here.
                    self.close();
                    return;
                }
            }
        }
    }

    /// Answers for an entry that is not made because it is too long.
    fn refuse(&self, waiters: Vec<Waiter>) {
        self.lock().settle(waiters.iter().map(|waiter| waiter.cost));
        answer(waiters, Err(ProposeError::TooLarge(self.shard)));
    }

    fn finish(&self, number: u64, outcome: Result<Reply, ProposeError>) {
        let waiters = {
            let mut state = self.lock();
            let Some(waiters) = state.under_way.remove(&number) else { return };
            state.settle(waiters.iter().map(|waiter| waiter.cost));
            if !state.queue.is_empty() && state.under_way.len() == UNDER_WAY_MAX - 1 {
                self.queued.notify_one();
            }
            waiters
        };
        answer(waiters, outcome);
    }

    /// Nothing that is under way will be heard of for some time: says so to those who wait. Raft may still commit it.
    pub(crate) fn give_up(&self, reason: &str, leader: Option<NodeId>) {
        let (queue, under_way) = {
            let mut state = self.lock();
            let queue = std::mem::take(&mut state.queue);
            let under_way = std::mem::take(&mut state.under_way);
            state.settle(queue.iter().map(|proposal| cost(&proposal.payload)));
            state.settle(under_way.values().flatten().map(|waiter| waiter.cost));
            (queue, under_way)
        };
        for proposal in queue {
            let _ = proposal.answer.send(Err(ProposeError::NotLeader { shard: self.shard, leader }));
        }
        for waiters in under_way.into_values() {
            Mark::ProposalGivenUp.reached();
            answer(waiters, Err(ProposeError::Unknown(reason.to_owned())));
        }
    }

    /// Is anything under way?
    pub(crate) fn busy(&self) -> bool {
        let state = self.lock();
        !state.under_way.is_empty() || !state.queue.is_empty()
    }

    /// Takes no more proposals.
    pub(crate) fn close(&self) {
        let queue = {
            let mut state = self.lock();
            state.closed = true;
            let queue = std::mem::take(&mut state.queue);
            state.settle(queue.iter().map(|proposal| cost(&proposal.payload)));
            queue
        };
        for proposal in queue {
            let _ = proposal.answer.send(Err(ProposeError::Stopped(self.shard)));
        }
        self.queued.notify_one();
    }
}

impl State {
    fn settle(&mut self, costs: impl Iterator<Item = usize>) {
        for cost in costs {
            self.outstanding_ops -= 1;
            self.outstanding_bytes -= cost;
        }
    }
}

/// Answers for an entry whose outcome never came: Raft's core is gone.
struct Ticket {
    proposals: Proposals,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.proposals.finish(self.number, Err(ProposeError::Unknown("the shard stopped".to_owned())));
    }
}

fn outcome<E: Env>(shard: ShardId, result: ClientWriteResult<TypeConfig<E>>) -> Result<Reply, ProposeError> {
    use openraft::errors::ClientWriteError;
    match result {
        Ok(response) => {
            response.data.0.ok_or_else(|| ProposeError::Unknown("an op was applied without a reply".to_owned()))
        }
        // Refused before the entry was made.
        Err(ClientWriteError::ForwardToLeader(forward)) => {
            Err(ProposeError::NotLeader { shard, leader: forward.leader_id })
        }
        Err(ClientWriteError::LogEntryDiscarded(_)) => {
            Mark::EntryDiscarded.reached();
            Err(ProposeError::Unknown("leadership was lost while it was under way".to_owned()))
        }
        Err(error) => Err(ProposeError::Unknown(error.to_string())),
    }
}

fn answer(waiters: Vec<Waiter>, outcome: Result<Reply, ProposeError>) {
    let whole = |waiter: &Waiter| waiter.share.is_none();
    let outcome = match outcome {
        Ok(Reply::Append(outcomes)) if !waiters.iter().any(whole) => {
            let expected: usize = waiters.iter().filter_map(|waiter| waiter.share).sum();
            if outcomes.len() == expected {
                let mut outcomes = outcomes.into_iter();
                for waiter in waiters {
                    let share = outcomes.by_ref().take(waiter.share.unwrap_or(0)).collect();
                    let _ = waiter.answer.send(Ok(Reply::Append(share)));
                }
                return;
            }
            Err(ProposeError::Unknown(format!("{expected} batches were appended with {} outcomes", outcomes.len())))
        }
        Ok(_) if !waiters.iter().all(whole) => {
            Err(ProposeError::Unknown("an append was answered with another kind of reply".to_owned()))
        }
        outcome => outcome,
    };
    for waiter in waiters {
        let _ = waiter.answer.send(outcome.clone());
    }
}

/// Do all slices lie within the proposal's own payload? What does not is proposed alone, so that it reaches nobody else's records.
fn slices_fit(append: &AppendMessage, payload: &Bytes) -> bool {
    append
        .appends
        .iter()
        .all(|slice| u64::from(slice.payload_start) + u64::from(slice.payload_len) <= payload.len() as u64)
}

/// Makes entries of proposals, in order; neighbouring appends share one.
fn gather(batch: VecDeque<Proposal>) -> Vec<(Command, Vec<Waiter>)> {
    let mut entries = Vec::with_capacity(batch.len());
    let mut gathered: Option<Gathered> = None;
    for Proposal { op, payload, answer } in batch {
        match op {
            Op::AppendMessage(append) if slices_fit(&append, &payload) => match &mut gathered {
                Some(open) if open.has_room(&append, &payload) => open.add(append, payload, answer),
                _ => {
                    entries.extend(gathered.take().map(Gathered::close));
                    gathered = Some(Gathered::open(append, payload, answer));
                }
            },
            op => {
                entries.extend(gathered.take().map(Gathered::close));
                let cost = cost(&payload);
                let command = Command { op: Bytes::from(op.encode()), payload };
                entries.push((command, vec![Waiter { answer, share: None, cost }]));
            }
        }
    }
    entries.extend(gathered.map(Gathered::close));
    entries
}

/// An op 3 that is being gathered.
struct Gathered {
    append: AppendMessage,
    payloads: Vec<Bytes>,
    bytes: usize,
    waiters: Vec<Waiter>,
}

impl Gathered {
    fn open(append: AppendMessage, payload: Bytes, answer: Answer) -> Self {
        let waiter = Waiter { answer, share: Some(append.appends.len()), cost: cost(&payload) };
        Self { append, bytes: payload.len(), payloads: vec![payload], waiters: vec![waiter] }
    }

    fn has_room(&self, append: &AppendMessage, payload: &Bytes) -> bool {
        self.bytes + payload.len() <= GATHERED_BYTES_MAX
            && self.append.appends.len() + append.appends.len() <= GATHERED_APPENDS_MAX
    }

    fn add(&mut self, append: AppendMessage, payload: Bytes, answer: Answer) {
        // Within `GATHERED_BYTES_MAX`, so both sums fit.
        let base = self.bytes as u32;
        self.append.now_ms = self.append.now_ms.max(append.now_ms);
        self.waiters.push(Waiter { answer, share: Some(append.appends.len()), cost: cost(&payload) });
        self.append.appends.extend(append.appends.into_iter().map(|mut slice| {
            slice.payload_start += base;
            slice
        }));
        self.bytes += payload.len();
        self.payloads.push(payload);
    }

    fn close(mut self) -> (Command, Vec<Waiter>) {
        let payload = if self.payloads.len() == 1 {
            self.payloads.remove(0)
        } else {
            Mark::AppendsGathered.reached();
            let mut joined = BytesMut::with_capacity(self.bytes);
            for payload in &self.payloads {
                joined.extend_from_slice(payload);
            }
            joined.freeze()
        };
        let op = Bytes::from(Op::AppendMessage(self.append).encode());
        (Command { op, payload }, self.waiters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::TopicId;
    use lockstep_core::op::{AllocateProducerIds, PartitionAppend};
    use lockstep_core::reply::Appended;

    fn append(len: usize, batches: usize, now_ms: i64) -> (Op, Bytes) {
        let each = len / batches;
        let appends = (0..batches)
            .map(|n| PartitionAppend {
                topic_id: TopicId([1; 16]),
                partition: n as u32,
                payload_start: (n * each) as u32,
                payload_len: each as u32,
                offset_count: 1,
                producer_id: -1,
                producer_epoch: -1,
                base_sequence: -1,
                max_timestamp_ms: 0,
            })
            .collect();
        (Op::AppendMessage(AppendMessage { now_ms, appends }), Bytes::from(vec![now_ms as u8; len]))
    }

    fn batch(ops: Vec<(Op, Bytes)>) -> (VecDeque<Proposal>, Vec<oneshot::Receiver<Result<Reply, ProposeError>>>) {
        ops.into_iter()
            .map(|(op, payload)| {
                let (answer, outcome) = oneshot::channel();
                (Proposal { op, payload, answer }, outcome)
            })
            .unzip()
    }

    fn appended(base_offset: i64) -> Result<Appended, lockstep_core::reply::AppendError> {
        Ok(Appended { base_offset, log_append_time_ms: None, log_start_offset: 0, duplicate: false })
    }

    #[test]
    fn neighbouring_appends_share_an_entry_and_split_its_reply() {
        let (proposals, mut outcomes) = batch(vec![append(30, 3, 7), append(10, 1, 9)]);
        let mut entries = gather(proposals);
        let (command, waiters) = entries.pop().unwrap();
        assert!(entries.is_empty());
        let Ok(Op::AppendMessage(op)) = Op::decode(&command.op) else { panic!("not an append") };
        assert_eq!(op.now_ms, 9);
        assert_eq!(op.appends.iter().map(|slice| slice.payload_start).collect::<Vec<_>>(), [0, 10, 20, 30]);
        assert_eq!(command.payload, [vec![7; 30], vec![9; 10]].concat());
        answer(waiters, Ok(Reply::Append((0..4).map(appended).collect())));
        assert_eq!(outcomes[0].try_recv().unwrap(), Ok(Reply::Append((0..3).map(appended).collect())));
        assert_eq!(outcomes[1].try_recv().unwrap(), Ok(Reply::Append(vec![appended(3)])));
    }

    #[test]
    fn another_op_between_appends_keeps_its_place() {
        let other = (Op::AllocateProducerIds(AllocateProducerIds { count: 1 }), Bytes::new());
        let (proposals, _outcomes) = batch(vec![append(10, 1, 1), other, append(10, 1, 2)]);
        let codes: Vec<u8> =
            gather(proposals).iter().map(|(command, _)| Op::decode(&command.op).unwrap().code()).collect();
        assert_eq!(codes, [3, 12, 3]);
    }

    #[test]
    fn an_entry_stays_below_its_cap_unless_one_append_is_larger() {
        let sizes = [600 << 10, 600 << 10, 3 << 20, 10];
        let (proposals, _outcomes) = batch(sizes.iter().map(|size| append(*size, 1, 1)).collect());
        let lengths: Vec<usize> = gather(proposals).iter().map(|(command, _)| command.payload.len()).collect();
        assert_eq!(lengths, sizes);
    }

    #[test]
    fn slices_beyond_their_payload_are_not_gathered() {
        let (Op::AppendMessage(mut bad), payload) = append(10, 1, 1) else { panic!() };
        bad.appends[0].payload_len = 11;
        let (proposals, _outcomes) = batch(vec![append(10, 1, 1), (Op::AppendMessage(bad), payload), append(10, 1, 1)]);
        assert_eq!(gather(proposals).len(), 3);
    }

    #[test]
    fn a_full_queue_refuses_and_a_lost_leader_answers_all() {
        let proposals = Proposals::new(ShardId(3));
        let (op, payload) = append(OUTSTANDING_BYTES_MAX + 1, 1, 1);
        let mut first = proposals.push(op, payload).unwrap();
        let (op, payload) = append(10, 1, 1);
        assert_eq!(proposals.push(op, payload).unwrap_err(), ProposeError::Overloaded(ShardId(3)));
        proposals.give_up("no quorum", None);
        assert!(matches!(first.try_recv().unwrap(), Err(ProposeError::NotLeader { .. })));
        assert!(!proposals.busy());
        let (op, payload) = append(10, 1, 1);
        assert!(proposals.push(op, payload).is_ok());
        proposals.close();
        let (op, payload) = append(10, 1, 1);
        assert_eq!(proposals.push(op, payload).unwrap_err(), ProposeError::Stopped(ShardId(3)));
    }
}
