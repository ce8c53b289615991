//! Segments that somebody suspects are checked, and damaged ones are fetched anew from another member of the shard.
//!
//! Whoever has the segment will do, the leader or not: the files of all replicas are the same, byte by byte, and what comes must have the checksum
//! that this node knows. A segment that nobody can give is asked for again and again, less and less often; the shard goes on without it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::NodeId;
use lockstep_env::{Env, Step, select};
use lockstep_probe::Mark;

use super::message::{self, SegmentAsk, SegmentSuspicion};
use super::replica::Replica;
use super::snapshot::CHUNK_BYTES;
use crate::peer::{Lane, PeerError, PeerNetwork, PeerRequest};
use crate::storage::SegmentName;
use crate::storage::check::{Checked, Damage, Pace};
use crate::storage::repair::{Repair, RepairError, Replaced};
use crate::storage::suspicion::FoundBy;

/// Longest wait for a piece of a segment.
const PIECE_TIMEOUT: Duration = Duration::from_secs(5);
/// A segment that could not be repaired is looked at again after this, then after twice as long, and so on.
const AGAIN_AFTER_MIN: Duration = Duration::from_millis(500);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(20);
/// While nothing is suspected it is looked so often whether the shard has stopped.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The task of one shard.
pub(crate) struct Repairer<E: Env> {
    pub(crate) replica: Arc<Replica<E>>,
    pub(crate) peers: PeerNetwork<E>,
}

/// A segment to be looked at.
#[derive(Clone, Copy, Debug)]
struct Case {
    by: FoundBy,
    /// Not before then.
    at: Instant,
    /// The pause after the next failure.
    pause: Duration,
    /// It was looked at and found damaged.
    known: bool,
}

/// How looking at a segment went.
enum Outcome {
    /// There is nothing to be done any more.
    Settled,
    /// It is damaged still.
    Damaged,
    /// It could not even be looked at.
    Unknown,
}

/// Why one member's copy was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("{0} bytes came of {1} that were asked for")]
    Length(usize, u32),
    #[error(transparent)]
    Repair(#[from] RepairError),
}

impl FetchError {
    /// Another member would be of no more use.
    fn is_local(&self) -> bool {
        matches!(self, Self::Repair(RepairError::Io(_) | RepairError::Grown(_) | RepairError::DamagedSince))
    }
}

impl<E: Env> Repairer<E> {
    pub(crate) async fn run(self) {
        let mut cases: BTreeMap<SegmentName, Case> = BTreeMap::new();
        while !self.replica.is_stopped() {
            let now = E::now();
            for (name, by) in self.replica.store.suspicions().take() {
                cases.entry(name).or_insert(Case { by, at: now, pause: AGAIN_AFTER_MIN, known: false });
            }
            let next = cases.iter().min_by_key(|(_, case)| case.at).map(|(name, case)| (*name, *case));
            match next {
                Some((name, case)) if case.at <= now => match self.attend(name, case).await {
                    Outcome::Settled => {
                        cases.remove(&name);
                    }
                    outcome => {
                        let known = case.known || matches!(outcome, Outcome::Damaged);
                        let pause = (case.pause * 2).min(AGAIN_AFTER_MAX);
                        cases.insert(name, Case { at: E::now() + case.pause, pause, known, ..case });
                    }
                },
                next => {
                    let wake = next.map_or(now + LOOK_EVERY, |(_, case)| case.at.min(now + LOOK_EVERY));
                    select(self.replica.store.suspicions().added(), E::sleep_until(wake)).await;
                }
            }
        }
    }

    /// Checks a segment, and repairs it if it is damaged.
    async fn attend(&self, name: SegmentName, case: Case) -> Outcome {
        let Replica { store, node_id, id, .. } = &*self.replica;
        let path = store.segment_path(name);
        let damage = match store.check_segment(name, &mut Pace::fast::<E>()).await {
            Ok(Checked::Damaged(damage)) => damage,
            Ok(Checked::Sound | Checked::Gone) => return Outcome::Settled,
            Err(error) => {
                tracing::warn!(
                    target: "raft", node = node_id, shard = %id, path = %path.display(), %error,
                    "a segment that may be damaged cannot be checked"
                );
                return Outcome::Unknown;
            }
        };
        if !case.known && case.by.is_expected() {
            tracing::info!(
                target: "raft", node = node_id, shard = %id, path = %path.display(), bytes = damage.entry.len,
                "a compacted segment is not here: fetching it from another node"
            );
        } else if !case.known {
            Mark::SegmentDamageFound.reached();
            store.scrub_counters().damaged.fetch_add(1, Ordering::Relaxed);
            let position = store.locate_damage(&damage).await;
            tracing::error!(
                target: "raft", node = node_id, shard = %id, path = %path.display(), position, bytes = damage.entry.len,
                found_by = case.by.name(),
                "a segment is damaged: fetching it from another node"
            );
        }
        self.repair(damage, case.by).await
    }

    /// Asks one member after the other.
    async fn repair(&self, damage: Damage, by: FoundBy) -> Outcome {
        let Replica { store, node_id, id, .. } = &*self.replica;
        let path = store.segment_path(damage.entry.name);
        let mut asked_before = false;
        for (node, incarnation) in self.replica.others() {
            if asked_before {
                Mark::RepairAskedNextPeer.reached();
            }
            asked_before = true;
            match self.fetch(node, incarnation, damage).await {
                Ok(Replaced::Gone) => return Outcome::Settled,
                Ok(Replaced::Done) if by.is_expected() => {
                    tracing::info!(
                        target: "raft", node = node_id, shard = %id, path = %path.display(), bytes = damage.entry.len, from = node,
                        "a compacted segment came from another node"
                    );
                    return Outcome::Settled;
                }
                Ok(Replaced::Done) => {
                    Mark::SegmentRepaired.reached();
                    if by == FoundBy::Reader {
                        Mark::SegmentRepairedByReader.reached();
                    }
                    store.scrub_counters().repaired.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(
                        target: "raft", node = node_id, shard = %id, path = %path.display(), bytes = damage.entry.len, from = node,
                        "a damaged segment was replaced by another node's copy"
                    );
                    return Outcome::Settled;
                }
                Err(error) => {
                    tracing::warn!(
                        target: "raft", node = node_id, shard = %id, path = %path.display(), from = node, %error,
                        "a damaged segment could not be replaced by this node's copy"
                    );
                    if error.is_local() {
                        break;
                    }
                    if matches!(error, FetchError::Repair(RepairError::WrongChecksum)) {
                        tell_damaged(&self.peers, &self.replica, (node, incarnation), damage.entry.name).await;
                    }
                }
            }
        }
        tracing::error!(
            target: "raft", node = node_id, shard = %id, path = %path.display(),
            "a damaged segment could not be repaired: its records cannot be read here until it is; trying again"
        );
        Outcome::Damaged
    }

    async fn fetch(&self, from: NodeId, incarnation: [u8; 16], damage: Damage) -> Result<Replaced, FetchError> {
        let begun = Repair::begin(&self.replica.store, damage).await.map_err(RepairError::Io)?;
        let Some(mut repair) = begun else { return Ok(Replaced::Gone) };
        loop {
            let (offset, missing) = repair.missing();
            if missing == 0 {
                return Ok(repair.finish().await?);
            }
            let len = missing.min(u64::from(CHUNK_BYTES)) as u32;
            let ask = SegmentAsk { segment: damage.entry.name, whole: damage.entry.len, offset, len };
            let written = match fetch_piece(&self.peers, &self.replica, (from, incarnation), &ask).await {
                Ok(piece) => {
                    self.replica.fetches.took::<E>(piece.len()).await;
                    repair.write(piece).await.map_err(|error| RepairError::Io(error).into())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                repair.abandon().await;
                return Err(error);
            }
            self.replica.env.reached(Step::SegmentPieceFetched);
        }
    }
}

/// A piece of a segment that another member has: between 1 and `ask.len` bytes.
pub(crate) async fn fetch_piece<E: Env>(
    peers: &PeerNetwork<E>,
    replica: &Replica<E>,
    (from, incarnation): (NodeId, [u8; 16]),
    ask: &SegmentAsk,
) -> Result<Bytes, FetchError> {
    let request = PeerRequest {
        kind: message::SEGMENT_PIECE,
        shard: replica.id.0,
        body: message::encode(ask),
        payload: Vec::new(),
    };
    let (_, piece) = peers.call(from, Some(incarnation), Lane::Bulk, request, PIECE_TIMEOUT).await?;
    if piece.is_empty() || piece.len() > ask.len as usize {
        return Err(FetchError::Length(piece.len(), ask.len));
    }
    Ok(piece)
}

/// Tells a member that what it gave of a segment was not what it should be. It looks for itself; nothing depends on whether it hears of it.
pub(crate) async fn tell_damaged<E: Env>(
    peers: &PeerNetwork<E>,
    replica: &Replica<E>,
    (to, incarnation): (NodeId, [u8; 16]),
    segment: SegmentName,
) {
    Mark::DamageToldToPeer.reached();
    let request = PeerRequest {
        kind: message::SEGMENT_SUSPECTED,
        shard: replica.id.0,
        body: message::encode(&SegmentSuspicion { segment }),
        payload: Vec::new(),
    };
    let _ = peers.call(to, Some(incarnation), Lane::Bulk, request, PIECE_TIMEOUT).await;
}

/// Serves a piece of a segment to a member whose copy is damaged.
pub(crate) async fn read_piece<E: Env>(replica: &Replica<E>, ask: &SegmentAsk) -> io::Result<Bytes> {
    let len = ask.len.min(CHUNK_BYTES) as usize;
    replica.store.read_part(ask.segment, ask.whole, ask.offset, len).await
}
