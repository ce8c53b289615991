//! openraft's requests to the other members of a shard, over the peer network.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use lockstep_core::{NodeId, Position};
use lockstep_env::{Env, Step};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, StorageError};

use super::acknowledged::Acknowledged;
use super::append_stream::{COMMIT_NEWS_DELAY, merge_commit_news};
use super::entry_codec;
use super::message::{self, Append, AppendAnswer, Ballot, BallotAnswer, Offer, OfferAnswer, Transfer, TransferAnswer};
use super::replica::Replica;
use super::snapshot::{Outgoing, Snapshot, SnapshotData};
use super::type_config::{LogId, Member, TypeConfig, Vote, log_id, position};
use crate::peer::{Lane, PeerError, PeerNetwork, PeerRequest};
use lockstep_probe::{Mark, Mistake};

/// Append requests under way to one follower. Each takes at most 256 KiB, or one entry.
const PIPELINE_DEPTH: usize = 8;
/// Longest wait for a follower's disk. A heartbeat tells sooner whether it lives.
const APPEND_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest wait for the answer to an offer, which comes after half a second at most.
const OFFER_TIMEOUT: Duration = Duration::from_secs(5);

type Failure<E> = RPCError<TypeConfig<E>>;

/// Makes the connections' users; the connections themselves are shared by all shards.
pub(crate) struct NetworkFactory<E: Env> {
    pub(crate) replica: Arc<Replica<E>>,
    pub(crate) peers: PeerNetwork<E>,
    /// Must members have what they acknowledged, also when they were started anew? Not with `Durability::Replicated`.
    pub(crate) keeps_acknowledged: bool,
}

impl<E: Env> NetworkFactory<E> {
    fn client(&self, target: NodeId, member: &Member, lane: Lane, acknowledged: Arc<Acknowledged>) -> Network<E> {
        Network {
            replica: self.replica.clone(),
            peers: self.peers.clone(),
            target,
            incarnation: member.incarnation,
            lane,
            acknowledged,
            keeps_acknowledged: self.keeps_acknowledged,
        }
    }
}

impl<E: Env> RaftNetworkFactory<TypeConfig<E>> for NetworkFactory<E> {
    type Network = Network<E>;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Network<E> {
        let acknowledged = self.replica.acknowledged(target);
        self.client(target, node, Lane::Bulk, acknowledged)
    }

    /// openraft asks for it once for each member that it begins to replicate to, before anything else: when the member was added, or this node
    /// elected. What it then knows of the member begins with nothing.
    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Network<E> {
        let acknowledged = self.replica.begin_replication(target);
        self.client(target, node, Lane::Control, acknowledged)
    }
}

/// The way to one member of one shard.
pub(crate) struct Network<E: Env> {
    replica: Arc<Replica<E>>,
    peers: PeerNetwork<E>,
    target: NodeId,
    incarnation: [u8; 16],
    lane: Lane,
    acknowledged: Arc<Acknowledged>,
    keeps_acknowledged: bool,
}

impl<E: Env> Clone for Network<E> {
    fn clone(&self) -> Self {
        Self {
            replica: self.replica.clone(),
            peers: self.peers.clone(),
            target: self.target,
            incarnation: self.incarnation,
            lane: self.lane,
            acknowledged: self.acknowledged.clone(),
            keeps_acknowledged: self.keeps_acknowledged,
        }
    }
}

fn garbled<E: Env>(error: &(impl std::error::Error + 'static)) -> Failure<E> {
    RPCError::Network(NetworkError::new(error))
}

/// The log is about to be purged beyond what a member has.
fn cut_off<E: Env>() -> Failure<E> {
    RPCError::Network(NetworkError::new(&io::Error::other("it lags by more than the log may hold")))
}

/// A member that no longer has what it acknowledged cannot be asked anything.
fn reverted<E: Env>(member: NodeId) -> Unreachable<TypeConfig<E>> {
    Unreachable::new(&io::Error::other(format!("node {member} no longer has what it acknowledged")))
}

impl<E: Env> Network<E> {
    /// Sends a request: it leaves before those of later calls, even if the future is awaited after theirs.
    fn call(
        &self,
        rpc: RPCTypes,
        lane: Lane,
        kind: u8,
        body: Bytes,
        payload: Vec<Bytes>,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, Failure<E>>> + Send + use<E> {
        let request = PeerRequest { kind, shard: self.replica.id.0, body, payload };
        let is_ballot = matches!(kind, message::VOTE | message::PRE_VOTE);
        let incarnation = (!is_ballot || !Mistake::VoteOfAnotherDisk.is_made()).then_some(self.incarnation);
        let calling = self.peers.call(self.target, incarnation, lane, request, timeout);
        let (id, target) = (self.replica.node_id, self.target);
        calling.map(move |answered| match answered {
            Ok((body, _)) => Ok(body),
            Err(PeerError::Timeout(_)) => Err(Timeout { action: rpc, id, target, timeout }.into()),
            Err(error @ (PeerError::Unreachable(_) | PeerError::WrongIncarnation(_) | PeerError::Fault(_))) => {
                Err(RPCError::Unreachable(Unreachable::new(&error)))
            }
            Err(error) => Err(RPCError::Network(NetworkError::new(&error))),
        })
    }

    fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig<E>>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig<E>>, Failure<E>>> {
        let mut payload = Vec::with_capacity(request.entries.len() * 2);
        let mut entries = Vec::with_capacity(request.entries.len());
        for entry in &request.entries {
            let parts = entry_codec::encode(&entry.payload);
            let len: usize = parts.iter().map(Bytes::len).sum();
            entries.push((entry.log_id.leader_id.term, u32::try_from(len).unwrap_or(u32::MAX)));
            payload.extend(parts);
        }
        let append = Append {
            vote: request.vote.into(),
            previous: request.prev_log_id.as_ref().map(position),
            committed: request.leader_commit.as_ref().map(position),
            entries,
        };
        let body = message::encode(&append);
        if !request.entries.is_empty() {
            self.replica.env.reached(Step::BeforeReplicate);
        }
        let calling = self.call(RPCTypes::AppendEntries, self.lane, message::APPEND, body, payload, timeout);
        let previous: Option<LogId> = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let (acknowledged, keeps_acknowledged) = (self.acknowledged.clone(), self.keeps_acknowledged);
        let (node, shard, target) = (self.replica.node_id, self.replica.id, self.target);
        // Boxed where it is made: it is long, and would be moved several times on its way into the pipeline.
        Box::pin(calling.map(move |answered| {
            let answer = match message::decode::<AppendAnswer>(&answered?).map_err(|error| garbled(&error))? {
                AppendAnswer::HigherVote(vote) => return Ok(AppendEntriesResponse::HigherVote(vote.into())),
                AppendAnswer::Success => {
                    acknowledged.acknowledge(last);
                    AppendEntriesResponse::Success
                }
                AppendAnswer::Partial(upto) => {
                    let upto = upto.map(log_id);
                    if upto < previous || upto > last {
                        return Err(garbled(&io::Error::other("a part of what was not sent")));
                    }
                    acknowledged.acknowledge(upto);
                    AppendEntriesResponse::PartialSuccess(upto)
                }
                AppendAnswer::Conflict => {
                    // Nothing comes before the first entry, so nothing there can differ.
                    let Some(previous) = previous else {
                        return Err(garbled(&io::Error::other("a conflict before the first entry")));
                    };
                    if !keeps_acknowledged {
                        acknowledged.forget_from(previous);
                    } else if acknowledged.refuse(previous) {
                        tracing::error!(
                            target: "raft", node, shard = %shard, member = target, missing = %previous,
                            "a member of the raft group no longer has what it acknowledged: it does not count until it was added anew"
                        );
                    }
                    AppendEntriesResponse::Conflict
                }
            };
            if acknowledged.is_reverted() { Err(RPCError::Unreachable(reverted(target))) } else { Ok(answer) }
        }))
    }

    async fn ballot(
        &self,
        kind: u8,
        request: VoteRequest<TypeConfig<E>>,
        timeout: Duration,
    ) -> Result<VoteResponse<TypeConfig<E>>, Failure<E>> {
        let ballot = Ballot {
            vote: request.vote.into(),
            last: request.last_log_id.as_ref().map(position),
            leadership_transfer: request.leadership_transfer,
        };
        let answer =
            self.call(RPCTypes::Vote, Lane::Control, kind, message::encode(&ballot), Vec::new(), timeout).await?;
        let answer: BallotAnswer = message::decode(&answer).map_err(|error| garbled(&error))?;
        Ok(VoteResponse {
            vote: answer.vote.into(),
            vote_granted: answer.granted,
            last_log_id: answer.last.map(log_id),
        })
    }

    /// Is the member to be given a snapshot instead of the entries that it lacks?
    fn is_cut_off(&self) -> bool {
        let cut_off = self.acknowledged.take_cut_off();
        if cut_off {
            Mark::LaggingMemberCutOff.reached();
            tracing::warn!(
                target: "raft", node = self.replica.node_id, shard = %self.replica.id, member = self.target,
                "a member of the raft group lags by more than the log may hold: it is given a snapshot"
            );
        }
        cut_off
    }

    fn append_timeout(&self, option: &RPCOption) -> Duration {
        match self.lane {
            Lane::Control => option.soft_ttl(),
            Lane::Bulk => APPEND_TIMEOUT,
        }
    }

    /// Offers the snapshot until the receiver has it.
    async fn offer(&self, vote: Vote, outgoing: &Outgoing, transmission: u64) -> Result<Vote, Failure<E>> {
        let offer = Offer {
            vote: vote.into(),
            transmission,
            position: outgoing.position,
            manifest_len: outgoing.manifest.len() as u64,
        };
        let body = message::encode(&offer);
        let mut reported: Option<(u64, u64)> = None;
        loop {
            let answer = self
                .call(
                    RPCTypes::InstallSnapshot,
                    Lane::Control,
                    message::INSTALL_SNAPSHOT,
                    body.clone(),
                    Vec::new(),
                    OFFER_TIMEOUT,
                )
                .await?;
            match message::decode::<OfferAnswer>(&answer).map_err(|error| garbled(&error))? {
                OfferAnswer::Done(vote) => return Ok(vote.into()),
                OfferAnswer::Failed(reason) => return Err(garbled(&io::Error::other(reason))),
                OfferAnswer::Pulling { done, all } => {
                    if reported != Some((done, all)) {
                        reported = Some((done, all));
                        tracing::debug!(
                            target: "raft", node = self.replica.node_id, shard = %self.replica.id, to = self.target,
                            done, all, "raft snapshot is being fetched"
                        );
                    }
                }
            }
        }
    }
}

/// Keeps a checkpoint on offer until dropped.
struct OnOffer<E: Env> {
    replica: Arc<Replica<E>>,
    transmission: u64,
}

impl<E: Env> Drop for OnOffer<E> {
    fn drop(&mut self) {
        self.replica.lock_outgoing().remove(&self.transmission);
    }
}

impl<E: Env> RaftNetworkV2<TypeConfig<E>> for Network<E> {
    type SnapshotData = SnapshotData<E>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<E>>, Failure<E>> {
        let timeout = self.append_timeout(&option);
        self.append(rpc, timeout).await
    }

    /// Several requests at a time: they leave in order, are handled in the order of their arrival, and are answered in order. Should one
    /// overtake another all the same, the follower refuses it as a conflict and the leader starts over from what matches.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig<E>>, Failure<E>>>, Failure<E>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<E>>> + OptionalSend + Unpin + 'static,
    {
        let timeout = self.append_timeout(&option);
        let network = self.clone();
        let answers = merge_commit_news::<E, _>(input, self.replica.commit_news.clone(), COMMIT_NEWS_DELAY)
            .map(move |request| {
                let previous: Option<LogId> = request.prev_log_id;
                let last = request.entries.last().map(|entry| entry.log_id).or(previous);
                network.append(request, timeout).map(move |answer| (previous, last, answer))
            })
            .buffered(PIPELINE_DEPTH);
        let begun = (self.clone(), answers, false);
        let stream = futures_util::stream::unfold(Some(begun), |state| async move {
            let (network, mut answers, with_entries) = state?;
            // Of requests without entries, be they heartbeats or news of a commit, openraft forgets that they failed.
            if with_entries && network.is_cut_off() {
                return Some((Err(cut_off()), None));
            }
            let (previous, last, answer) = answers.next().await?;
            match answer {
                Ok(answer) => {
                    let partial = matches!(&answer, AppendEntriesResponse::PartialSuccess(upto) if *upto != last);
                    let result = answer.into_stream_result(previous, last);
                    // What follows a refusal or a part was sent in vain.
                    let more = result.is_ok() && !partial;
                    Some((Ok(result), more.then_some((network, answers, with_entries || last > previous))))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Box::pin(async move {
            let stream: BoxStream<'s, _> = Box::pin(stream);
            Ok(stream)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E>>, Failure<E>> {
        self.ballot(message::VOTE, rpc, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E>>, Failure<E>> {
        self.ballot(message::PRE_VOTE, rpc, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<E>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<E>>, StreamingError<TypeConfig<E>>> {
        let Some(outgoing) = snapshot.snapshot.outgoing() else {
            let error = io::Error::other("only a checkpoint of this node can be sent");
            return Err(StreamingError::StorageError(StorageError::read_snapshot(
                Some(snapshot.meta.signature()),
                openraft::AnyError::new(&error),
            )));
        };
        let transmission = E::random_u64();
        let replica = &self.replica;
        replica.lock_outgoing().insert(transmission, outgoing.clone());
        let _on_offer = OnOffer { replica: replica.clone(), transmission };
        tracing::info!(
            target: "raft", node = replica.node_id, shard = %replica.id, to = self.target, index = outgoing.position.index,
            "offering a raft snapshot to a member that lags"
        );
        match lockstep_env::select(cancel, self.offer(vote, &outgoing, transmission)).await {
            lockstep_env::Either::First(closed) => Err(StreamingError::Closed(closed)),
            lockstep_env::Either::Second(Ok(_)) if self.acknowledged.is_reverted() => {
                Err(StreamingError::Unreachable(reverted(self.target)))
            }
            lockstep_env::Either::Second(Ok(answered)) => {
                if answered <= vote {
                    self.acknowledged.acknowledge(Some(log_id(outgoing.position)));
                }
                Ok(SnapshotResponse::new(answered))
            }
            lockstep_env::Either::Second(Err(error)) => Err(match error {
                RPCError::Timeout(error) => StreamingError::Timeout(error),
                RPCError::Unreachable(error) => StreamingError::Unreachable(error),
                RPCError::Network(error) => StreamingError::Network(error),
                RPCError::RemoteError(error) => StreamingError::Unreachable(Unreachable::new(&error)),
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig<E>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<E>>, Failure<E>> {
        let transfer = Transfer {
            from: (*req.from_leader()).into(),
            to: *req.to_node_id(),
            last: req.last_log_id().map(position),
        };
        let body = message::encode(&transfer);
        let answer = self
            .call(
                RPCTypes::TransferLeader,
                Lane::Control,
                message::TRANSFER_LEADER,
                body,
                Vec::new(),
                option.soft_ttl(),
            )
            .await?;
        let log = |at: Option<Position>| at.map(log_id);
        Ok(match message::decode::<TransferAnswer>(&answer).map_err(|error| garbled(&error))? {
            TransferAnswer::Accepted => Ok(()),
            TransferAnswer::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            TransferAnswer::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed { expected: log(expected), actual: log(actual) })
            }
        })
    }
}
