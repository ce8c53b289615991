//! How the members of a shard come by the files of a compaction, before it is proposed.
//!
//! The leader asks each member to fetch the compacted segments from it, again and again until the answer is final. It proposes the compaction once a
//! majority has them durable, so that no single disk can take away the only copy of what the old segments are about to be removed for. A member that
//! has not fetched them by then finds them missing when the op takes effect there, and fetches them as it would a damaged one (`repair.rs`).

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lockstep_core::NodeId;
use lockstep_env::{Disk, Env, Task};

use super::leadership::Leadership;
use super::message::{self, SegmentAsk, StageAnswer, StageAsk};
use super::repair::fetch_piece;
use super::replica::Replica;
use super::snapshot::CHUNK_BYTES;
use super::type_config::StoredMembership;
use crate::peer::{Lane, PeerIdentity, PeerNetwork, PeerRequest};
use crate::storage::staging::Staging;

/// Longest wait for a member's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two questions to a member that is still fetching.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Once a majority is ready, the others are waited for no longer than this.
const LAST_ONES_PATIENCE: Duration = Duration::from_secs(5);
/// A majority is waited for no longer than this once nobody comes any further.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(20);
/// A member that cannot have the files now is not asked again before.
const ASK_REFUSER_AFTER: Duration = Duration::from_secs(2);

/// The compacted segments that this node is fetching from the leader.
pub(crate) struct StagingPull {
    ask: StageAsk,
    /// Bytes so far.
    done: AtomicU64,
    outcome: Mutex<Option<StageAnswer>>,
    stop: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl StagingPull {
    fn start<E: Env>(replica: Arc<Replica<E>>, peers: PeerNetwork<E>, from: PeerIdentity, ask: StageAsk) -> Arc<Self> {
        let pull = Arc::new(Self { ask, done: AtomicU64::new(0), outcome: Mutex::default(), stop: Mutex::default() });
        let shared = Arc::clone(&pull);
        let task = E::spawn(async move {
            let from = (from.node, from.incarnation);
            let outcome = match fetch_all(&replica, &peers, from, &shared.ask, &shared.done).await {
                Ok(()) => StageAnswer::Staged,
                Err(reason) => StageAnswer::Refused(reason),
            };
            *shared.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        });
        *pull.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(move || task.abort()));
        pull
    }

    /// Gives it up; what was fetched stays until the partition is compacted again, or the next start.
    pub(crate) fn abandon(&self) {
        if let Some(stop) = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take() {
            stop();
        }
    }
}

/// A leader asks this member to have the files of a compaction.
pub(crate) fn asked<E: Env>(
    replica: &Arc<Replica<E>>,
    peers: &PeerNetwork<E>,
    from: PeerIdentity,
    ask: StageAsk,
) -> StageAnswer {
    if ask.revision == 0 {
        return StageAnswer::Refused("no compaction has such a revision".to_owned());
    }
    if *replica.applied.borrow() < ask.applied {
        // What was staged here before may be about to take effect.
        return StageAnswer::Fetching { done: 0 };
    }
    let mut current = replica.lock_staging();
    if let Some(pull) = current.clone().filter(|pull| pull.ask == ask) {
        let outcome = pull.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if matches!(outcome, Some(StageAnswer::Refused(_))) {
            // The next question tries again.
            *current = None;
        }
        return outcome.unwrap_or_else(|| StageAnswer::Fetching { done: pull.done.load(Ordering::Relaxed) });
    }
    if let Some(other) = current.take() {
        other.abandon();
    }
    *current = Some(StagingPull::start(Arc::clone(replica), peers.clone(), from, ask));
    StageAnswer::Fetching { done: 0 }
}

async fn fetch_all<E: Env>(
    replica: &Replica<E>,
    peers: &PeerNetwork<E>,
    from: (NodeId, [u8; 16]),
    ask: &StageAsk,
    done: &AtomicU64,
) -> Result<(), String> {
    let store = &replica.store;
    // Everything that the leader had applied when it began is applied here: no compaction before this one can still take effect.
    store.discard_staged(ask.topic_id, ask.partition, ask.revision).await;
    let missing = || ask.segments.iter().filter(|segment| !store.has_compacted(ask.name(segment.base_offset)));
    let bytes = missing().fold(0_u64, |sum, segment| sum.saturating_add(segment.len));
    has_room(replica, bytes).await.map_err(|error| error.to_string())?;
    for segment in missing() {
        let name = ask.name(segment.base_offset);
        let mut staging = Staging::begin(store, name).await.map_err(|error| error.to_string())?;
        let fetched = fetch(replica, peers, from, &mut staging, segment.len, done).await;
        match fetched {
            Ok(()) if staging.crc32c() == segment.crc32c => {
                staging.finish().await.map_err(|error| error.to_string())?;
            }
            Ok(()) => {
                staging.abandon().await;
                return Err("a compacted segment came with a wrong checksum".to_owned());
            }
            Err(reason) => {
                staging.abandon().await;
                return Err(reason);
            }
        }
    }
    Ok(())
}

async fn fetch<E: Env>(
    replica: &Replica<E>,
    peers: &PeerNetwork<E>,
    from: (NodeId, [u8; 16]),
    staging: &mut Staging<E>,
    whole: u64,
    done: &AtomicU64,
) -> Result<(), String> {
    while staging.len() < whole {
        let len = (whole - staging.len()).min(u64::from(CHUNK_BYTES)) as u32;
        let ask = SegmentAsk { segment: staging.name(), whole, offset: staging.len(), len };
        let piece = fetch_piece(peers, replica, from, &ask).await.map_err(|error| error.to_string())?;
        replica.fetches.took::<E>(piece.len()).await;
        done.fetch_add(piece.len() as u64, Ordering::Relaxed);
        staging.write(piece).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Is there room for so many bytes beside what the node keeps free for its journal?
pub(crate) async fn has_room<E: Env>(replica: &Replica<E>, bytes: u64) -> io::Result<()> {
    let free = replica.env.disk().free_bytes(replica.store.dir()).await?;
    if free < bytes.saturating_add(replica.disk_reserve_bytes) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

/// Lets the other members fetch what is staged here. Completes when all have it, or a majority has had it for a while, this node among them.
///
/// # Errors
/// Too few have it, and why.
pub(crate) async fn spread<E: Env>(
    replica: &Replica<E>,
    peers: &PeerNetwork<E>,
    leadership: &Leadership<E>,
    ask: &StageAsk,
) -> Result<(), String> {
    let mut ready = BTreeMap::from([(replica.node_id, own_incarnation(replica))]);
    let mut reasons: BTreeMap<NodeId, String> = BTreeMap::new();
    let mut not_before: BTreeMap<NodeId, Instant> = BTreeMap::new();
    let mut furthest: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut deadline = E::now() + MAJORITY_PATIENCE;
    let mut majority_since = None;
    loop {
        leadership.serving().map_err(|error| error.to_string())?;
        let now = E::now();
        let membership = replica.progress().membership;
        let nodes = membership.membership().nodes().map(|(node, member)| (*node, member.incarnation));
        let missing: Vec<_> = nodes
            .filter(|(node, incarnation)| ready.get(node).is_none_or(|known| *known != Some(*incarnation)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let due = missing.iter().filter(|(node, _)| not_before.get(node).is_none_or(|at| *at <= now));
        let asked = due.map(async |(node, incarnation)| {
            let request = PeerRequest {
                kind: message::STAGE_SEGMENTS,
                shard: replica.id.0,
                body: message::encode(ask),
                payload: Vec::new(),
            };
            let answer = peers.call(*node, Some(*incarnation), Lane::Bulk, request, ANSWER_TIMEOUT).await;
            let answer = answer.map_err(|error| error.to_string());
            let answer =
                answer.and_then(|(body, _)| message::decode::<StageAnswer>(&body).map_err(|error| error.to_string()));
            (*node, *incarnation, answer)
        });
        for (node, incarnation, answer) in join_all(asked).await {
            match answer {
                Ok(StageAnswer::Staged) => {
                    ready.insert(node, Some(incarnation));
                }
                Ok(StageAnswer::Fetching { done }) => {
                    let before = furthest.entry(node).or_insert(0);
                    if done > *before {
                        *before = done;
                        deadline = E::now() + MAJORITY_PATIENCE;
                    }
                }
                Ok(StageAnswer::Refused(reason)) | Err(reason) => {
                    reasons.insert(node, reason);
                    not_before.insert(node, E::now() + ASK_REFUSER_AFTER);
                }
            }
        }
        let now = E::now();
        if majority_since.is_none() && is_majority(&membership, &ready) {
            majority_since = Some(now);
        }
        match majority_since {
            Some(since) if now >= since + LAST_ONES_PATIENCE => return Ok(()),
            None if now >= deadline => return Err(format!("too few members have the files: {reasons:?}")),
            _ => E::sleep(ASK_AGAIN_AFTER).await,
        }
    }
}

/// While voters change, a majority of both configurations.
fn is_majority(membership: &StoredMembership, ready: &BTreeMap<NodeId, Option<[u8; 16]>>) -> bool {
    let membership = membership.membership();
    let has_it = |node: &&NodeId| {
        let incarnation = membership.get_node(node).map(|member| member.incarnation);
        ready.get(node).is_some_and(|known| *known == incarnation)
    };
    membership.get_joint_config().iter().all(|voters| {
        let there = voters.iter().filter(has_it).count();
        there > voters.len() / 2
    })
}

/// The disk that this node is a member with.
fn own_incarnation<E: Env>(replica: &Replica<E>) -> Option<[u8; 16]> {
    let membership = replica.progress().membership;
    membership.membership().get_node(&replica.node_id).map(|member| member.incarnation)
}
