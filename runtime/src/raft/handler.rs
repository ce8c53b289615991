//! What the other members of a shard ask of this one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lockstep_core::{NodeId, Position, ShardId};
use lockstep_env::Env;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
};
use serde::de::DeserializeOwned;

use super::Raft;
use super::comparison;
use super::doubt::{self, Doubts};
use super::entry_codec;
use super::kept_vote::KeptVote;
use super::log_store::{VoteWire, stored_vote};
use super::message::{
    self, Append, AppendAnswer, Ballot, BallotAnswer, ChunkRequest, Offer, OfferAnswer, SegmentAsk, SegmentSuspicion,
    Transfer, TransferAnswer,
};
use super::promises::Promises;
use super::repair;
use super::replica::Replica;
use super::snapshot::{self, Incoming};
use super::staging;
use super::type_config::{Entry, TypeConfig, Vote, log_id, position};
use crate::journal::ShardLog;
use crate::peer::{IncomingRequest, Lane, PeerFault, PeerIdentity, PeerNetwork, PeerReply};
use crate::storage::suspicion::FoundBy;
use lockstep_probe::{Mark, Mistake};

/// How long an offer is answered after at most, when there is nothing new.
const OFFER_PATIENCE: Duration = Duration::from_millis(500);

/// How often it is looked whether what is here is durable by now.
const DURABLE_LOOK_EVERY: Duration = Duration::from_millis(5);

/// The shard does not run on this node, or no longer.
const FAULT_STOPPED: u16 = 1;
/// The request cannot be.
const FAULT_MALFORMED: u16 = 2;
/// Something that was asked for is not there.
const FAULT_MISSING: u16 = 3;

type Answer = Result<PeerReply, PeerFault>;

/// The answer of a shard that stopped.
pub(crate) fn stopped_fault(shard: ShardId) -> PeerFault {
    stopped(format_args!("{shard:?} has stopped on this node"))
}

fn stopped(reason: impl std::fmt::Display) -> PeerFault {
    PeerFault { code: FAULT_STOPPED, reason: reason.to_string() }
}

fn malformed(reason: impl std::fmt::Display) -> PeerFault {
    PeerFault { code: FAULT_MALFORMED, reason: reason.to_string() }
}

fn reply<T: serde::Serialize>(message: &T) -> Answer {
    Ok(PeerReply { body: message::encode(message), payload: Vec::new() })
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, PeerFault> {
    message::decode(body).map_err(malformed)
}

/// Where a member's requests are answered.
pub(crate) struct Handler<E: Env> {
    pub(crate) raft: Raft<E>,
    pub(crate) replica: Arc<Replica<E>>,
    pub(crate) peers: PeerNetwork<E>,
    pub(crate) log: ShardLog<E>,
    pub(crate) promises: Arc<Promises>,
    pub(crate) kept_vote: Option<KeptVote>,
    pub(crate) doubts: Arc<Doubts>,
}

impl<E: Env> Clone for Handler<E> {
    fn clone(&self) -> Self {
        Self {
            raft: self.raft.clone(),
            replica: self.replica.clone(),
            peers: self.peers.clone(),
            log: self.log.clone(),
            promises: self.promises.clone(),
            kept_vote: self.kept_vote,
            doubts: self.doubts.clone(),
        }
    }
}

impl<E: Env> Handler<E> {
    /// To be called in the order in which the requests of one node arrived on one lane: appends reach Raft in that order.
    pub(crate) fn handle(&self, from: PeerIdentity, request: IncomingRequest) -> BoxFuture<'static, Answer> {
        let this = self.clone();
        match request.kind {
            message::APPEND => match read_append(from.node, &request) {
                Ok(append) => {
                    let mut appending: BoxFuture<'static, Answer> = Box::pin(this.append(append));
                    // The first poll hands the request to Raft's queue; the answer is waited for elsewhere.
                    match Pin::as_mut(&mut appending).poll(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(answer) => Box::pin(std::future::ready(answer)),
                        Poll::Pending => appending,
                    }
                }
                Err(fault) => Box::pin(std::future::ready(Err(fault))),
            },
            message::VOTE => Box::pin(async move { this.vote(from.node, &request.body, false).await }),
            message::PRE_VOTE => Box::pin(async move { this.vote(from.node, &request.body, true).await }),
            message::INSTALL_SNAPSHOT => Box::pin(async move { this.offered(from, read(&request.body)?).await }),
            message::SNAPSHOT_CHUNK => Box::pin(async move { this.chunk(&read(&request.body)?).await }),
            message::TRANSFER_LEADER => Box::pin(async move { this.transfer(from.node, read(&request.body)?).await }),
            message::SEGMENT_PIECE => Box::pin(async move { this.segment_piece(&read(&request.body)?).await }),
            message::SEGMENT_SUSPECTED => {
                Box::pin(std::future::ready(read(&request.body).map(|suspicion| this.suspected(&suspicion))))
            }
            message::SEGMENT_CHECKSUM => {
                let answer = read(&request.body).and_then(|ask| reply(&comparison::asked(&this.replica, &ask)));
                Box::pin(std::future::ready(answer))
            }
            message::STAGE_SEGMENTS => Box::pin(async move {
                let ask = read(&request.body)?;
                reply(&staging::asked(&this.replica, &this.peers, from, ask))
            }),
            kind => Box::pin(std::future::ready(Err(malformed(format!("request kind {kind} is not known"))))),
        }
    }

    async fn append(self, request: AppendEntriesRequest<TypeConfig<E>>) -> Answer {
        if let Some(reason) = self.contradiction(&request) {
            return Err(stopped(reason));
        }
        // Of its own term: all that was committed before is before it.
        let committed = request.leader_commit.filter(|at| at.leader_id.term == request.vote.leader_id.term);
        let answer = match self.raft.append_entries(request).await.map_err(stopped)? {
            AppendEntriesResponse::Success => {
                if let Some(committed) = committed {
                    self.doubts.heard_committed(self.replica.id, position(&committed));
                }
                AppendAnswer::Success
            }
            AppendEntriesResponse::PartialSuccess(upto) => AppendAnswer::Partial(upto.as_ref().map(position)),
            AppendEntriesResponse::Conflict => {
                Mark::AppendConflicted.reached();
                AppendAnswer::Conflict
            }
            AppendEntriesResponse::HigherVote(vote) => {
                Mark::FormerLeaderRefused.reached();
                AppendAnswer::HigherVote(vote.into())
            }
        };
        reply(&answer)
    }

    /// What this replica has applied cannot have become something else, unless a majority has lost what it had acknowledged. `None`: all is as it must be.
    fn contradiction(&self, request: &AppendEntriesRequest<TypeConfig<E>>) -> Option<String> {
        let entries = request.entries.iter().map(|entry| &entry.log_id);
        let told = request.prev_log_id.iter().chain(request.leader_commit.iter()).chain(entries).map(position);
        let applied = *self.replica.applied.borrow();
        let differing = told.into_iter().find(|at| self.is_contradicted_by(applied, *at))?;
        // A leader of the past is refused by Raft itself.
        let own_vote = stored_vote(&self.log).ok().flatten();
        own_vote.is_none_or(|own_vote| request.vote >= own_vote).then(|| self.contradicted(differing))
    }

    /// Is it another entry that was applied here? Where the log no longer says which, a later term than that of all that was applied is another.
    fn is_contradicted_by(&self, applied: Position, at: Position) -> bool {
        if at.index > applied.index {
            return false;
        }
        let own = if at.index == applied.index { Some(applied.term) } else { self.log.term_at(at.index) };
        own.map_or(at.term > applied.term, |term| term != at.term)
    }

    /// Stops the replica, and says why.
    fn contradicted(&self, differing: Position) -> String {
        let reason = format!(
            "{:?}: the leader's entry {differing:?} is not the one that was applied here: acknowledged entries were lost on other nodes. Once all others run, move this \
             node's directories away and start it again",
            self.replica.id
        );
        self.replica.stop(reason.clone());
        reason
    }

    async fn vote(&self, from: NodeId, body: &[u8], pre_vote: bool) -> Answer {
        let ballot: Ballot = read(body)?;
        let vote = owned_vote(from, ballot.vote)?;
        let now = E::now();
        let voters = || doubt::voters(&self.raft, &self.peers);
        if self.kept_vote.is_some_and(|kept| kept.is_kept_from(from, ballot.leadership_transfer, now))
            || !self.doubts.may_vote(self.replica.id, self.replica.node_id, voters, now)
        {
            Mark::VoteKeptBack.reached();
            let own = self.raft.server_metrics().borrow_watched().vote;
            return reply(&BallotAnswer { vote: own.into(), granted: false, last: self.log.last() });
        }
        let request =
            VoteRequest { vote, last_log_id: ballot.last.map(log_id), leadership_transfer: ballot.leadership_transfer };
        let answer = if pre_vote { self.raft.pre_vote(request).await } else { self.raft.vote(request).await };
        let answer = answer.map_err(stopped)?;
        if !answer.vote_granted {
            Mark::VoteRefused.reached();
        }
        if !pre_vote {
            tracing::info!(
                target: "raft", node = self.replica.node_id, shard = %self.replica.id, candidate = from,
                term = vote.leader_id.term, granted = answer.vote_granted, "raft vote asked for"
            );
        }
        reply(&BallotAnswer {
            vote: answer.vote.into(),
            granted: answer.vote_granted,
            last: answer.last_log_id.as_ref().map(position),
        })
    }

    async fn transfer(&self, from: NodeId, transfer: Transfer) -> Answer {
        let vote = owned_vote(from, transfer.from)?;
        let request = TransferLeaderRequest::new(vote, transfer.to, transfer.last.map(log_id));
        let at = |log: Option<super::type_config::LogId>| log.as_ref().map(position);
        reply(&match self.raft.handle_transfer_leader(request).await.map_err(stopped)? {
            Ok(()) => TransferAnswer::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                TransferAnswer::VoteChanged { expected: expected.into(), actual: actual.into() }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                TransferAnswer::LogNotFlushed { expected: at(expected), actual: at(actual) }
            }
        })
    }

    async fn chunk(&self, ask: &ChunkRequest) -> Answer {
        let chunk = snapshot::read_chunk(&self.replica, ask)
            .await
            .map_err(|error| PeerFault { code: FAULT_MISSING, reason: error.to_string() })?;
        Ok(PeerReply { body: Bytes::new(), payload: vec![chunk] })
    }

    async fn segment_piece(&self, ask: &SegmentAsk) -> Answer {
        let piece = repair::read_piece(&self.replica, ask)
            .await
            .map_err(|error| PeerFault { code: FAULT_MISSING, reason: error.to_string() })?;
        Ok(PeerReply { body: Bytes::new(), payload: vec![piece] })
    }

    /// Another member believes that a segment is damaged here. That is looked into, and no more: it may be wrong.
    fn suspected(&self, suspicion: &SegmentSuspicion) -> PeerReply {
        self.replica.store.suspect(suspicion.segment, FoundBy::Peer);
        PeerReply { body: Bytes::new(), payload: Vec::new() }
    }

    /// A leader offers its snapshot, and offers it again while it is being fetched.
    async fn offered(&self, from: PeerIdentity, offer: Offer) -> Answer {
        let vote = owned_vote(from.node, offer.vote)?;
        if !vote.committed || offer.position.term > vote.leader_id.term {
            return Err(malformed("a snapshot that its sender cannot have"));
        }
        let (own_vote, committed) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.vote, metrics.local_committed.as_ref().map(position))
        };
        // A leader of the past, or a snapshot of what is here already: there is nothing to fetch.
        if own_vote > vote {
            return reply(&OfferAnswer::Done(own_vote.into()));
        }
        let position = offer.position;
        let applied = *self.replica.applied.borrow();
        if self.is_contradicted_by(applied, position) {
            return Err(stopped(self.contradicted(position)));
        }
        if committed.is_some_and(|committed| committed.index >= position.index) {
            return reply(&self.durable(position, vote).await?);
        }
        let incoming = self.incoming(from, offer);
        let answer = match incoming.outcome::<E>(OFFER_PATIENCE).await {
            None => {
                let load = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
                OfferAnswer::Pulling { done: load(&incoming.done), all: load(&incoming.all) }
            }
            Some(outcome) => {
                self.forget(&incoming);
                match outcome {
                    Ok(answered) if Vote::from(answered) > vote => OfferAnswer::Done(answered),
                    Ok(_) => self.durable(position, vote).await?,
                    Err(reason) => {
                        tracing::warn!(
                            target: "raft", node = self.replica.node_id, shard = %self.replica.id, from = from.node,
                            "raft snapshot was not installed: {reason}"
                        );
                        OfferAnswer::Failed(reason)
                    }
                }
            }
        };
        reply(&answer)
    }

    /// The answer to an offer of what is here already: not before it is durable, because the leader counts on it from then on. To Raft something
    /// is committed here as soon as it is accepted, while entries are still written or a snapshot is still being installed; and it stays so in the
    /// records of a group that stopped because that failed.
    async fn durable(&self, position: Position, vote: Vote) -> Result<OfferAnswer, PeerFault> {
        if Mistake::SnapshotAcknowledgedBeforeInstalled.is_made() || self.is_durable(position) {
            return Ok(self.has(position, vote));
        }
        Mark::OfferHeldUntilDurable.reached();
        let deadline = E::now() + OFFER_PATIENCE;
        while E::now() < deadline {
            if self.replica.is_stopped() || self.raft.metrics().borrow_watched().running_state.is_err() {
                return Err(stopped_fault(self.replica.id));
            }
            E::sleep(DURABLE_LOOK_EVERY).await;
            if self.is_durable(position) {
                return Ok(self.has(position, vote));
            }
        }
        Ok(OfferAnswer::Pulling { done: 0, all: 0 })
    }

    fn has(&self, position: Position, vote: Vote) -> OfferAnswer {
        self.promises.installed(position);
        OfferAnswer::Done(vote.into())
    }

    /// Is this entry, and every one before it, on this disk: in the journal, or in a checkpoint that was adopted?
    fn is_durable(&self, position: Position) -> bool {
        let snapshot = self.raft.data_metrics().borrow_watched().snapshot;
        snapshot.is_some_and(|snapshot| snapshot.index >= position.index) || self.log.is_durable(position)
    }

    /// The transmission that this offer is about, begun now if it is new.
    fn incoming(&self, from: PeerIdentity, offer: Offer) -> Arc<Incoming> {
        let mut current = self.replica.lock_incoming();
        if let Some(incoming) = current.as_ref() {
            if incoming.transmission == offer.transmission {
                return incoming.clone();
            }
            Mark::SnapshotPullBegunAnew.reached();
            incoming.abandon();
        }
        let (raft, vote) = (self.raft.clone(), Vote::from(offer.vote));
        let incoming = Incoming::start(
            self.replica.clone(),
            self.peers.clone(),
            (from.node, from.incarnation),
            offer,
            move |fetched| async move {
                let snapshot = fetched.into_snapshot();
                match raft.install_full_snapshot(vote, snapshot).await {
                    Ok(response) => Ok(VoteWire::from(response.vote)),
                    Err(error) => Err(error.to_string()),
                }
            },
        );
        *current = Some(incoming.clone());
        incoming
    }

    fn forget(&self, finished: &Arc<Incoming>) {
        let mut current = self.replica.lock_incoming();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, finished)) {
            *current = None;
        }
    }
}

/// A node speaks for itself only.
fn owned_vote(from: NodeId, vote: VoteWire) -> Result<Vote, PeerFault> {
    if vote.node == from {
        Ok(vote.into())
    } else {
        Err(malformed(format!("node {from} came with the vote of node {}", vote.node)))
    }
}

/// Reads an append, and checks what Raft relies on: one leader's vote, entries without a gap, terms that do not fall.
fn read_append<E: Env>(
    from: NodeId,
    request: &IncomingRequest,
) -> Result<AppendEntriesRequest<TypeConfig<E>>, PeerFault> {
    let append: Append = read(&request.body)?;
    let vote = owned_vote(from, append.vote)?;
    if !vote.committed {
        return Err(malformed("entries from a node that was not elected"));
    }
    let mut rest = request.payload.clone();
    let mut at = append.previous;
    let mut entries = Vec::with_capacity(append.entries.len());
    for (term, len) in append.entries {
        let len = len as usize;
        if rest.len() < len {
            return Err(malformed("entries are longer than the request"));
        }
        let index = match at {
            None => 0,
            Some(previous) => {
                if term < previous.term {
                    return Err(malformed("terms fall"));
                }
                previous.index.checked_add(1).ok_or_else(|| malformed("no index is left"))?
            }
        };
        if term > vote.leader_id.term {
            return Err(malformed("an entry of a later term than its leader's"));
        }
        let next = Position { term, index };
        let payload = entry_codec::decode(rest.split_to(len)).map_err(malformed)?;
        entries.push(Entry { log_id: log_id(next), payload });
        at = Some(next);
    }
    if !rest.is_empty() {
        return Err(malformed("bytes are left over after the entries"));
    }
    if request.lane == Lane::Control && !entries.is_empty() {
        return Err(malformed("entries on the lane of heartbeats"));
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id: append.previous.map(log_id),
        entries,
        leader_commit: append.committed.map(log_id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_env::tokio_env::TokioEnv;
    use proptest::prelude::*;

    const VOTE: VoteWire = VoteWire { term: 5, node: 2, committed: true };

    fn request(append: &Append, payload: Vec<u8>) -> IncomingRequest {
        IncomingRequest {
            kind: message::APPEND,
            shard: 0,
            lane: Lane::Bulk,
            body: message::encode(append),
            payload: Bytes::from(payload),
            timeout: Duration::from_secs(1),
        }
    }

    fn check(from: NodeId, append: Append, payload: &[u8]) -> Result<Vec<Position>, String> {
        let read = read_append::<TokioEnv>(from, &request(&append, payload.to_vec()));
        read.map(|read| read.entries.iter().map(|entry| position(&entry.log_id)).collect())
            .map_err(|fault| fault.reason)
    }

    fn append(previous: Option<Position>, entries: &[(u64, u32)]) -> Append {
        Append { vote: VOTE, previous, committed: None, entries: entries.to_vec() }
    }

    #[test]
    fn entries_follow_the_one_before_them() {
        let blank = [1, 0, 1, 0];
        let at = |term, index| Position { term, index };
        assert_eq!(check(2, append(None, &[(0, 2), (1, 2)]), &blank), Ok(vec![at(0, 0), at(1, 1)]));
        assert_eq!(check(2, append(Some(at(4, 9)), &[(4, 2), (5, 2)]), &blank), Ok(vec![at(4, 10), at(5, 11)]));
        assert_eq!(check(2, append(Some(at(4, 9)), &[]), &[]), Ok(vec![]));
    }

    #[test]
    fn what_no_leader_sends_is_refused() {
        let blank = [1, 0, 1, 0];
        let before = Some(Position { term: 4, index: 9 });
        let refused = |from, append, payload: &[u8]| check(from, append, payload).unwrap_err();
        assert!(refused(3, append(before, &[]), &[]).contains("vote of node 2"));
        let candidate = Append { vote: VoteWire { committed: false, ..VOTE }, ..append(before, &[]) };
        assert!(refused(2, candidate, &[]).contains("not elected"));
        assert!(refused(2, append(before, &[(3, 2), (5, 2)]), &blank).contains("terms fall"));
        assert!(refused(2, append(before, &[(5, 2), (6, 2)]), &blank).contains("later term"));
        assert!(refused(2, append(before, &[(5, 2), (5, 3)]), &blank).contains("longer"));
        assert!(refused(2, append(before, &[(5, 2)]), &blank).contains("left over"));
        assert!(refused(2, append(before, &[(5, 2)]), &[9, 9]).contains("version"));
        let last = Some(Position { term: 4, index: u64::MAX });
        assert!(refused(2, append(last, &[(5, 2)]), &[1, 0]).contains("index"));
    }

    proptest! {
        #[test]
        fn hostile_appends_never_panic(
            body in proptest::collection::vec(any::<u8>(), 0..100),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut hostile = request(&append(None, &[]), payload);
            hostile.body = Bytes::from(body);
            let _ = read_append::<TokioEnv>(2, &hostile);
        }
    }
}
