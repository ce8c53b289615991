//! The proposal queue of one shard: what waits for Raft, and who waits for its outcome.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lockstep_core::op::{AppendMessage, CommitOffset, CommitOffsets};
use lockstep_core::{NodeId, Op, Reply, ShardId};
use lockstep_env::{Env, Step};
use openraft::raft::ClientWriteResult;
use tokio::sync::{Notify, oneshot};

use super::completion::Completion;
use super::proposal_payload::ProposalPayload;
use super::type_config::{Command, TypeConfig};
use crate::error::ProposeError;
use lockstep_probe::Mark;

/// Payload of one op 3 that was gathered from several, or commits of one op 18; a single batch or commit may be larger.
const GATHERED_BYTES_MAX: usize = 1 << 20;
/// Batches of one op 3 that was gathered from several.
const GATHERED_APPENDS_MAX: usize = 10_000;
/// Commits of one op 18.
const GATHERED_COMMITS_MAX: usize = 1_000;
/// Entries under way at a time. Beyond it proposals wait in the queue, where appends and commits are gathered into fewer entries.
const UNDER_WAY_MAX: usize = 256;
/// The same while nothing but commits waits. Each is small, and what an entry costs on every replica is many times what a commit
/// costs: those that come while so many entries are on their way share the next one.
const UNDER_WAY_BEFORE_COMMITS_MAX: usize = 2;
/// Queued and under way, together.
const OUTSTANDING_BYTES_MAX: usize = 48 << 20;
/// Queued and under way, together.
const OUTSTANDING_OPS_MAX: usize = 50_000;
/// An op without its payload at most. Entries longer than a frame of the bulk lane would never reach a follower.
const OP_BYTES_MAX: usize = 7 << 20;
/// What an op without payload counts for, roughly.
const OP_BYTES: usize = 256;
/// What a commit takes in an op at most, without its ids and offsets.
const COMMIT_BYTES: usize = 48;
/// What an offset takes in a commit at most, without its metadata.
const OFFSET_BYTES: usize = 48;

type Answer = oneshot::Sender<Result<Reply, ProposeError>>;

/// An op that was not handed to Raft yet.
struct Proposal {
    op: Op,
    payload: ProposalPayload,
    answer: Answer,
}

/// One proposal within an entry.
struct Waiter {
    answer: Answer,
    share: Share,
    cost: usize,
}

/// What of an entry's reply is for one of its proposals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// All: the entry is all its own.
    Whole,
    /// So many outcomes of an op 3.
    Appends(usize),
    /// One outcome of an op 18.
    Commit,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Proposal>,
    /// Those in the queue that are no commits.
    queued_others: usize,
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

fn cost(payload: &ProposalPayload) -> usize {
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
        payload: impl Into<ProposalPayload>,
    ) -> Result<oneshot::Receiver<Result<Reply, ProposeError>>, ProposeError> {
        let (answer, outcome) = oneshot::channel();
        let payload = payload.into();
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
            state.queued_others += usize::from(!matches!(op, Op::CommitOffset(_)));
            state.queue.push_back(Proposal { op, payload, answer });
            if !state.may_go() {
                // The end of what is under way wakes the queue.
                return Ok(outcome);
            }
        }
        self.queued.notify_one();
        Ok(outcome)
    }

    /// Hands what is queued to Raft, in order, until the queue is closed.
    pub(crate) async fn run<E: Env, SM>(self, env: E, raft: openraft::Raft<TypeConfig<E>, SM>)
    where
        SM: openraft::storage::RaftStateMachine<TypeConfig<E>>,
    {
        loop {
            let batch = {
                let mut state = self.lock();
                if state.closed {
                    return;
                }
                if state.may_go() { state.take_queue() } else { VecDeque::new() }
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
                env.reached(Step::BeforeAppend);
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
            if !state.queue.is_empty() && state.may_go() {
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
            let queue = state.take_queue();
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
            let queue = state.take_queue();
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
    /// May what is queued be handed to Raft, with so much under way?
    fn may_go(&self) -> bool {
        let under_way_max = if self.queued_others > 0 { UNDER_WAY_MAX } else { UNDER_WAY_BEFORE_COMMITS_MAX };
        self.under_way.len() < under_way_max
    }

    fn take_queue(&mut self) -> VecDeque<Proposal> {
        self.queued_others = 0;
        std::mem::take(&mut self.queue)
    }

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

/// Gives each proposal of an entry its share of the outcome.
fn answer(waiters: Vec<Waiter>, outcome: Result<Reply, ProposeError>) {
    let outcome = match outcome {
        Ok(reply) => match replies(reply, &waiters) {
            Ok(replies) => {
                for (waiter, reply) in waiters.into_iter().zip(replies) {
                    let _ = waiter.answer.send(Ok(reply));
                }
                return;
            }
            Err(error) => error,
        },
        Err(error) => error,
    };
    for waiter in waiters {
        let _ = waiter.answer.send(Err(outcome.clone()));
    }
}

/// One reply for each waiter, in order, of the reply to their entry.
fn replies(reply: Reply, waiters: &[Waiter]) -> Result<Vec<Reply>, ProposeError> {
    let shares = waiters.iter().map(|waiter| waiter.share);
    match reply {
        reply if waiters.len() == 1 && shares.clone().all(|share| share == Share::Whole) => Ok(vec![reply]),
        Reply::Append(outcomes) => {
            let mut outcomes = outcomes.into_iter();
            let mut replies = Vec::with_capacity(waiters.len());
            for share in shares {
                let Share::Appends(len) = share else { return Err(foreign_reply()) };
                let own: Vec<_> = outcomes.by_ref().take(len).collect();
                if own.len() < len {
                    return Err(foreign_reply());
                }
                replies.push(Reply::Append(own));
            }
            if outcomes.len() == 0 { Ok(replies) } else { Err(foreign_reply()) }
        }
        Reply::Commits(outcomes)
            if outcomes.len() == waiters.len() && shares.clone().all(|share| share == Share::Commit) =>
        {
            // A commit that came to the wrong shard is answered as in an entry of its own.
            Ok(outcomes.into_iter().map(|outcome| outcome.map_or(Reply::Done(false), Reply::Commit)).collect())
        }
        _ => Err(foreign_reply()),
    }
}

fn foreign_reply() -> ProposeError {
    ProposeError::Unknown("an entry was answered with another entry's reply".to_owned())
}

/// Do all slices lie within the proposal's own payload? What does not is proposed alone, so that it reaches nobody else's records.
fn slices_fit(append: &AppendMessage, payload: &ProposalPayload) -> bool {
    append
        .appends
        .iter()
        .all(|slice| u64::from(slice.payload_start) + u64::from(slice.payload_len) <= payload.len() as u64)
}

/// What a commit takes in an op at most.
fn commit_bytes(commit: &CommitOffset) -> usize {
    let ids = commit.group_id.len() + commit.member_id.len() + commit.instance_id.as_ref().map_or(0, String::len);
    let offsets: usize = commit.offsets.iter().map(|offset| OFFSET_BYTES + offset.metadata.len()).sum();
    COMMIT_BYTES + ids + offsets
}

/// Makes entries of proposals, in order; neighbouring appends share one, and so do neighbouring commits.
fn gather(batch: VecDeque<Proposal>) -> Vec<(Command, Vec<Waiter>)> {
    let mut entries = Vec::with_capacity(batch.len());
    let mut gathered = Gathered::Nothing;
    for Proposal { op, payload, answer } in batch {
        match op {
            Op::AppendMessage(append) if slices_fit(&append, &payload) => match &mut gathered {
                Gathered::Appends(open) if open.has_room(&append, &payload) => open.add(append, payload, answer),
                _ => {
                    entries.extend(gathered.close());
                    gathered = Gathered::Appends(GatheredAppends::open(append, payload, answer));
                }
            },
            Op::CommitOffset(commit) if payload.is_empty() => {
                let bytes = commit_bytes(&commit);
                match &mut gathered {
                    Gathered::Commits(open) if open.has_room(bytes) => open.add(commit, bytes, answer),
                    _ => {
                        entries.extend(gathered.close());
                        gathered = Gathered::Commits(GatheredCommits::open(commit, bytes, answer));
                    }
                }
            }
            op => {
                entries.extend(gathered.close());
                gathered = Gathered::Nothing;
                let cost = cost(&payload);
                let command = Command { op: Bytes::from(op.encode()), payload: payload.join() };
                entries.push((command, vec![Waiter { answer, share: Share::Whole, cost }]));
            }
        }
    }
    entries.extend(gathered.close());
    entries
}

/// The op that is being gathered.
enum Gathered {
    Nothing,
    Appends(GatheredAppends),
    Commits(GatheredCommits),
}

impl Gathered {
    fn close(self) -> Option<(Command, Vec<Waiter>)> {
        match self {
            Self::Nothing => None,
            Self::Appends(appends) => Some(appends.close()),
            Self::Commits(commits) => Some(commits.close()),
        }
    }
}

/// An op 3 that is being gathered.
struct GatheredAppends {
    append: AppendMessage,
    payload: ProposalPayload,
    waiters: Vec<Waiter>,
}

impl GatheredAppends {
    fn open(append: AppendMessage, payload: ProposalPayload, answer: Answer) -> Self {
        let waiter = Waiter { answer, share: Share::Appends(append.appends.len()), cost: cost(&payload) };
        Self { append, payload, waiters: vec![waiter] }
    }

    fn has_room(&self, append: &AppendMessage, payload: &ProposalPayload) -> bool {
        self.payload.len() + payload.len() <= GATHERED_BYTES_MAX
            && self.append.appends.len() + append.appends.len() <= GATHERED_APPENDS_MAX
    }

    fn add(&mut self, append: AppendMessage, payload: ProposalPayload, answer: Answer) {
        // Within `GATHERED_BYTES_MAX`, so both sums fit.
        let base = self.payload.len() as u32;
        self.append.now_ms = self.append.now_ms.max(append.now_ms);
        self.waiters.push(Waiter { answer, share: Share::Appends(append.appends.len()), cost: cost(&payload) });
        self.append.appends.extend(append.appends.into_iter().map(|mut slice| {
            slice.payload_start += base;
            slice
        }));
        self.payload.extend(payload);
    }

    fn close(self) -> (Command, Vec<Waiter>) {
        if self.waiters.len() > 1 {
            Mark::AppendsGathered.reached();
        }
        let op = Bytes::from(Op::AppendMessage(self.append).encode());
        (Command { op, payload: self.payload.join() }, self.waiters)
    }
}

/// An op 18 that is being gathered, or an op 10 while it is the only one.
struct GatheredCommits {
    commits: Vec<CommitOffset>,
    bytes: usize,
    waiters: Vec<Waiter>,
}

impl GatheredCommits {
    fn open(commit: CommitOffset, bytes: usize, answer: Answer) -> Self {
        Self { commits: vec![commit], bytes, waiters: vec![Waiter { answer, share: Share::Whole, cost: OP_BYTES }] }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes + bytes <= GATHERED_BYTES_MAX && self.commits.len() < GATHERED_COMMITS_MAX
    }

    fn add(&mut self, commit: CommitOffset, bytes: usize, answer: Answer) {
        self.commits.push(commit);
        self.bytes += bytes;
        self.waiters.push(Waiter { answer, share: Share::Commit, cost: OP_BYTES });
    }

    fn close(mut self) -> (Command, Vec<Waiter>) {
        let op = if self.commits.len() == 1 {
            Op::CommitOffset(self.commits.remove(0))
        } else {
            Mark::CommitsGathered.reached();
            if let Some(first) = self.waiters.first_mut() {
                first.share = Share::Commit;
            }
            Op::CommitOffsets(CommitOffsets { commits: self.commits })
        };
        (Command { op: Bytes::from(op.encode()), payload: Bytes::new() }, self.waiters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::TopicId;
    use lockstep_core::op::{AllocateProducerIds, OffsetToCommit, PartitionAppend};
    use lockstep_core::reply::{Appended, GroupError};

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
        (
            Op::AppendMessage(AppendMessage { now_ms, segment_bytes: 1 << 20, appends }),
            Bytes::from(vec![now_ms as u8; len]),
        )
    }

    fn batch(ops: Vec<(Op, Bytes)>) -> (VecDeque<Proposal>, Vec<oneshot::Receiver<Result<Reply, ProposeError>>>) {
        ops.into_iter()
            .map(|(op, payload)| {
                let (answer, outcome) = oneshot::channel();
                (Proposal { op, payload: payload.into(), answer }, outcome)
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

    fn commit(group: &str, metadata_len: usize) -> CommitOffset {
        CommitOffset {
            group_id: group.to_owned(),
            member_id: "member".to_owned(),
            instance_id: Some("instance".to_owned()),
            generation_or_epoch: i32::MIN,
            knows_epochs: true,
            now_ms: i64::MIN,
            offsets: vec![OffsetToCommit {
                topic_id: TopicId([255; 16]),
                partition: u32::MAX,
                offset: i64::MIN,
                leader_epoch: i32::MIN,
                metadata: "x".repeat(metadata_len),
            }],
        }
    }

    fn commit_op(group: &str, metadata_len: usize) -> (Op, Bytes) {
        (Op::CommitOffset(commit(group, metadata_len)), Bytes::new())
    }

    fn codes(entries: &[(Command, Vec<Waiter>)]) -> Vec<(u8, usize)> {
        entries.iter().map(|(command, waiters)| (command.op[1], waiters.len())).collect()
    }

    #[test]
    fn neighbouring_commits_share_an_entry_and_split_its_reply() {
        let (proposals, mut outcomes) = batch(["g", "h", "g"].map(|group| commit_op(group, 3)).to_vec());
        let mut entries = gather(proposals);
        let (command, waiters) = entries.pop().unwrap();
        assert!(entries.is_empty());
        let commits = ["g", "h", "g"].map(|group| commit(group, 3)).to_vec();
        assert_eq!(Op::decode(&command.op), Ok(Op::CommitOffsets(CommitOffsets { commits })));
        let refused = Err(GroupError::UnknownMember);
        answer(waiters, Ok(Reply::Commits(vec![Some(Ok(vec![Ok(())])), None, Some(refused.clone())])));
        let mut told = || outcomes.remove(0).try_recv().unwrap();
        assert_eq!(told(), Ok(Reply::Commit(Ok(vec![Ok(())]))));
        assert_eq!(told(), Ok(Reply::Done(false)), "as a commit for the wrong shard is answered by itself");
        assert_eq!(told(), Ok(Reply::Commit(refused)));
    }

    #[test]
    fn a_commit_by_itself_is_a_plain_one() {
        let (proposals, mut outcomes) = batch(vec![commit_op("g", 3)]);
        let (command, waiters) = gather(proposals).pop().unwrap();
        assert_eq!(Op::decode(&command.op), Ok(Op::CommitOffset(commit("g", 3))));
        answer(waiters, Ok(Reply::Done(false)));
        assert_eq!(outcomes.remove(0).try_recv().unwrap(), Ok(Reply::Done(false)));
    }

    #[test]
    fn commits_and_other_ops_keep_their_places() {
        let other = || (Op::AllocateProducerIds(AllocateProducerIds { count: 1 }), Bytes::new());
        let commit = || commit_op("g", 0);
        let ops = [commit(), commit(), append(10, 1, 1), append(10, 1, 1), commit(), other(), commit(), commit()];
        let (proposals, _outcomes) = batch(ops.to_vec());
        assert_eq!(codes(&gather(proposals)), [(18, 2), (3, 2), (10, 1), (12, 1), (18, 2)]);
    }

    #[test]
    fn commits_that_are_too_long_or_too_many_for_one_entry_take_several() {
        let commit = |len| commit_op("g", len);
        let oversize = OP_BYTES_MAX + 1;
        let ops = vec![commit(9), commit(9), commit(oversize), commit(9), commit(600 << 10), commit(600 << 10)];
        let (proposals, _outcomes) = batch(ops);
        let entries = gather(proposals);
        assert_eq!(codes(&entries), [(18, 2), (10, 1), (18, 2), (10, 1)]);
        let refused: Vec<bool> = entries.iter().map(|(command, _)| command.op.len() > OP_BYTES_MAX).collect();
        assert_eq!(refused, [false, true, false, false], "only the one that is too long by itself");
        let (proposals, _outcomes) = batch(vec![commit(0); GATHERED_COMMITS_MAX + 1]);
        assert_eq!(codes(&gather(proposals)), [(18, GATHERED_COMMITS_MAX), (10, 1)]);
    }

    #[test]
    fn a_commit_is_never_longer_than_it_is_counted() {
        for metadata_len in [0, 200, 70_000, 3 << 20] {
            let commit = CommitOffset { group_id: "g".repeat(40_000), ..commit("", metadata_len) };
            let counted = commit_bytes(&commit);
            assert!(Op::CommitOffset(commit).encode().len() <= counted);
        }
    }

    #[test]
    fn an_answer_that_is_not_the_entrys_tells_nobody_of_success() {
        let foreign = [
            Reply::Commits(vec![Some(Ok(Vec::new()))]),
            Reply::Append(vec![appended(0), appended(1)]),
            Reply::Commit(Ok(Vec::new())),
        ];
        for reply in foreign {
            let (proposals, outcomes) = batch(vec![commit_op("g", 0), commit_op("g", 0)]);
            let (_, waiters) = gather(proposals).pop().unwrap();
            answer(waiters, Ok(reply));
            for mut outcome in outcomes {
                assert!(matches!(outcome.try_recv().unwrap(), Err(ProposeError::Unknown(_))));
            }
        }
    }

    #[test]
    fn commits_wait_for_what_is_under_way_unless_another_op_is_behind_them() {
        let mut state = State::default();
        let commit = || {
            let (op, payload) = commit_op("g", 0);
            Proposal { op, payload: payload.into(), answer: oneshot::channel().0 }
        };
        for (under_way, may_go) in [(0, true), (1, true), (2, false), (UNDER_WAY_MAX, false)] {
            state.under_way = (0..under_way as u64).map(|number| (number, Vec::new())).collect();
            state.queue.push_back(commit());
            assert_eq!(state.may_go(), may_go, "{under_way}");
        }
        state.under_way.pop_last();
        state.queued_others = 1;
        assert!(state.may_go());
        assert_eq!(state.take_queue().len(), 4);
        assert!(!state.may_go());
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
