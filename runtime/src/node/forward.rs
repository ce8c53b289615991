//! Asking the leader of a shard, wherever it is: proposals, read indexes, producer ids.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::op::AllocateProducerIds;
use lockstep_core::{NodeId, Op, Reply, ShardId};
use lockstep_env::{Env, timeout};

use super::Node;
use super::message::{self, Proposed, ReadIndex};
use crate::error::{ProposeError, ReadError};
use crate::peer::{Lane, PeerError, PeerRequest};
use crate::status::NodeReport;
use lockstep_probe::Mark;

const RETRY_AFTER: Duration = Duration::from_millis(10);
/// A leader that has not told its read index for so long may be frozen, and another one known by now.
const READ_INDEX_PATIENCE: Duration = Duration::from_millis(500);
const PRODUCER_IDS_TIMEOUT: Duration = Duration::from_secs(5);
/// Producer ids that a node takes from shard 0 at once.
const PRODUCER_ID_BLOCK: u32 = 1000;

/// Producer ids that this node may hand out.
#[derive(Debug, Default)]
pub(super) struct ProducerIdBlock {
    next: i64,
    end: i64,
}

impl<E: Env> Node<E> {
    /// Proposes wherever the shard is led, for at most `timeout`; for ops without a payload.
    ///
    /// What was certainly not proposed is tried again. An outcome that is not known is returned as [`ProposeError::Unknown`].
    pub async fn forward(&self, shard: ShardId, op: Op, timeout: Duration) -> Result<Reply, ProposeError> {
        let deadline = E::now() + timeout;
        let encoded = Bytes::from(op.encode());
        loop {
            let refused = match self.leader_of(shard).map(|(leader, _)| leader) {
                None => ProposeError::NotLeader { shard, leader: None },
                Some(leader) if leader == self.id() => match self.propose(shard, op.clone(), Bytes::new()).await {
                    Ok(reply) => return Ok(reply),
                    Err(error) => error,
                },
                Some(leader) => match self.ask_propose(leader, shard, encoded.clone(), deadline).await {
                    Ok(reply) => return Ok(reply),
                    Err(error) => error,
                },
            };
            let certainly_not_proposed = matches!(
                refused,
                ProposeError::NotLeader { .. } | ProposeError::Loading(_) | ProposeError::Overloaded(_)
            );
            if !certainly_not_proposed || E::now() + RETRY_AFTER >= deadline {
                return Err(refused);
            }
            E::sleep(RETRY_AFTER).await;
        }
    }

    async fn ask_propose(
        &self,
        leader: NodeId,
        shard: ShardId,
        op: Bytes,
        deadline: Instant,
    ) -> Result<Reply, ProposeError> {
        let request = PeerRequest { kind: message::PROPOSE, shard: shard.0, body: Bytes::new(), payload: vec![op] };
        let left = deadline.saturating_duration_since(E::now());
        match self.peers().call(leader, None, Lane::Bulk, request, left).await {
            Ok((body, _)) => match message::decode::<Proposed>(&body) {
                Ok(outcome) => {
                    Mark::OpForwarded.reached();
                    outcome.map_err(|refusal| refusal.into_error(shard))
                }
                Err(malformed) => Err(ProposeError::Unknown(malformed.to_string())),
            },
            Err(PeerError::Unreachable(_)) => Err(ProposeError::NotLeader { shard, leader: None }),
            Err(error) => {
                Mark::ForwardedOutcomeUnknown.reached();
                Err(ProposeError::Unknown(error.to_string()))
            }
        }
    }

    /// After it returns, [`crate::Shard::read`] on this node shows everything that was committed before the call; on leader and followers
    /// alike (Raft dissertation, 6.4: read index).
    pub async fn linearizable(&self, shard: ShardId, patience: Duration) -> Result<(), ReadError> {
        let deadline = E::now() + patience;
        let Some(hosted) = self.shard(shard) else { return Err(ReadError::NotHosted(shard)) };
        loop {
            let ask_until = deadline.min(E::now() + READ_INDEX_PATIENCE);
            let answer = match self.leader_of(shard).map(|(leader, _)| leader) {
                // A leader that is cut off from its majority waits for it as long as it takes.
                Some(leader) if leader == self.id() => {
                    let left = ask_until.saturating_duration_since(E::now());
                    timeout::<E, _>(left, hosted.read_index()).await.ok().and_then(Result::ok)
                }
                Some(leader) => self.ask_index(message::READ_INDEX, leader, shard, ask_until).await.ok(),
                None => None,
            };
            let left = deadline.saturating_duration_since(E::now());
            if let Some(index) = answer
                && hosted.wait_applied(index, left).await
            {
                return Ok(());
            }
            if E::now() + RETRY_AFTER >= deadline {
                Mark::ReadIndexNotFound.reached();
                return Err(ReadError::NoLeader(shard));
            }
            Mark::ReadIndexAskedAgain.reached();
            E::sleep(RETRY_AFTER).await;
        }
    }

    /// After it returns, [`Node::directory`] shows every change that was acknowledged before the call, whichever shard it reads it from: also
    /// on a node that is still being filled with what shard 0 has.
    pub async fn fresh_directory(&self, patience: Duration) -> Result<(), ReadError> {
        let newest = &self.inner.newest_directory;
        let freshening = async {
            loop {
                // A leader that serves has applied all that it, or a leader before it, has acknowledged.
                if let Ok(version) = self.metadata_version(ShardId::METADATA).await {
                    loop {
                        let changed = newest.changed();
                        if newest.version() >= version {
                            return;
                        }
                        changed.await;
                    }
                }
                Mark::ReadIndexAskedAgain.reached();
                E::sleep(RETRY_AFTER).await;
            }
        };
        timeout::<E, _>(patience, freshening).await.map_err(|_| {
            Mark::ReadIndexNotFound.reached();
            ReadError::NoLeader(ShardId::METADATA)
        })
    }

    /// The metadata version that a shard's leader has applied.
    pub(super) async fn metadata_version(&self, shard: ShardId) -> Result<u64, ProposeError> {
        let not_led = |leader| ProposeError::NotLeader { shard, leader };
        match self.leader_of(shard).map(|(leader, _)| leader) {
            Some(leader) if leader == self.id() => self.own_metadata_version(shard).await,
            Some(leader) => {
                // A leader that does not answer may be frozen, and another one known by now.
                let deadline = E::now() + READ_INDEX_PATIENCE;
                self.ask_index(message::METADATA_VERSION, leader, shard, deadline).await
            }
            None => Err(not_led(None)),
        }
    }

    /// The same, on the node that leads the shard.
    pub(super) async fn own_metadata_version(&self, shard: ShardId) -> Result<u64, ProposeError> {
        let Some(hosted) = self.shard(shard) else { return Err(ProposeError::NotLeader { shard, leader: None }) };
        hosted.serving()?;
        Ok(hosted.read(|state| state.directory().version))
    }

    async fn ask_index(
        &self,
        kind: u8,
        leader: NodeId,
        shard: ShardId,
        deadline: Instant,
    ) -> Result<u64, ProposeError> {
        let request = PeerRequest { kind, shard: shard.0, body: Bytes::new(), payload: Vec::new() };
        let left = deadline.saturating_duration_since(E::now());
        match self.peers().call(leader, None, Lane::Control, request, left).await {
            Ok((body, _)) => match message::decode::<ReadIndex>(&body) {
                Ok(outcome) => outcome.map_err(|refusal| refusal.into_error(shard)),
                Err(malformed) => Err(ProposeError::Unknown(malformed.to_string())),
            },
            Err(error) => Err(ProposeError::Unknown(error.to_string())),
        }
    }

    pub(super) async fn ask_report(&self, node: NodeId, timeout: Duration) -> Option<NodeReport> {
        let request = PeerRequest { kind: message::REPORT, shard: 0, body: Bytes::new(), payload: Vec::new() };
        let (body, payload) = self.peers().call(node, None, Lane::Bulk, request, timeout).await.ok()?;
        let report: NodeReport = message::decode(if payload.is_empty() { &body } else { &payload }).ok()?;
        (report.node_id == node).then_some(report)
    }

    /// A producer id never handed out before, from this node's block; a new block comes from shard 0.
    pub async fn producer_id(&self) -> Result<i64, ProposeError> {
        let mut block = self.inner.producer_ids.lock().await;
        if block.next >= block.end {
            let op = Op::AllocateProducerIds(AllocateProducerIds { count: PRODUCER_ID_BLOCK });
            match self.forward(ShardId::METADATA, op, PRODUCER_IDS_TIMEOUT).await? {
                Reply::ProducerIds { first } => {
                    *block = ProducerIdBlock { next: first, end: first + i64::from(PRODUCER_ID_BLOCK) };
                }
                reply => return Err(ProposeError::Unknown(format!("answered with {reply:?}"))),
            }
        }
        let id = block.next;
        block.next += 1;
        Ok(id)
    }
}
