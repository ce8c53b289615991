//! Raft snapshots are checkpoints: built here, offered to replicas that lag too far, fetched from the leader in pieces.
//!
//! The sender offers a snapshot again and again until the receiver has it; the receiver pulls the manifest and what it lacks of the
//! segments at its own pace, checks everything, and only then hands it to Raft. Until then nothing changes for it, so that a crash on
//! either side costs no more than the time.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lockstep_core::{ClusterStateMachine, NodeId, Position};
use lockstep_env::{Env, Step, Task, timeout, wants_room};
use openraft::RaftSnapshotBuilder;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedMutexGuard};

use super::entry_codec;
use super::log_store::VoteWire;
use super::message::{self, ChunkOf, ChunkRequest, Offer};
use super::repair::tell_damaged;
use super::replica::{Progress, Replica};
use super::type_config::{Member, Membership, SnapshotMeta, StoredMembership, TypeConfig, log_id, position};
use crate::peer::{Lane, PeerNetwork, PeerRequest};
use crate::storage::{Checkpoints, Installation, Manifest, Pin, SegmentView, manifest};
use lockstep_probe::Mark;

/// A snapshot with its data.
pub(crate) type Snapshot<E> =
    openraft::Snapshot<openraft::vote::leader_id_std::CommittedLeaderId<u64>, NodeId, Member, SnapshotData<E>>;

/// Bytes fetched by one request: small enough to let appends of other shards through in between.
pub(crate) const CHUNK_BYTES: u32 = 256 << 10;
const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);
/// A piece that does not come is asked for again so many times.
const CHUNK_ATTEMPTS: u32 = 4;
const CHUNK_RETRY_AFTER: Duration = Duration::from_millis(100);
/// While the disk is full it is tried again so often whether there is room for a checkpoint.
const ROOM_LOOK_EVERY: Duration = Duration::from_millis(500);
/// Segments whose local beginning turns out to differ are fetched anew, once.
const ROUNDS_MAX: u32 = 4;

/// What openraft passes around as a snapshot.
pub(crate) enum SnapshotData<E: Env> {
    /// This node's last checkpoint. Its files are kept for as long as this lives.
    Own(Arc<Outgoing>),
    /// Fetched from the leader and complete.
    Fetched(Box<Fetched<E>>),
}

/// A checkpoint that other nodes may fetch.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) manifest: Bytes,
    pub(crate) position: Position,
    _pin: Pin,
}

/// A snapshot ready to be swapped in.
pub(crate) struct Fetched<E: Env> {
    installation: Installation<E>,
    core: ClusterStateMachine,
    progress: Progress,
}

impl<E: Env> Fetched<E> {
    /// What openraft is given to install.
    pub(crate) fn into_snapshot(self) -> Snapshot<E> {
        Snapshot { meta: meta_of(&self.progress), snapshot: SnapshotData::Fetched(Box::new(self)) }
    }
}

/// The membership as a manifest carries it.
#[derive(Serialize, Deserialize)]
struct MembershipWire {
    at: Option<Position>,
    membership: Vec<u8>,
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// How far a checkpoint is, as openraft counts it.
pub(crate) fn progress_of(manifest: &Manifest) -> io::Result<Progress> {
    let membership = if manifest.membership.is_empty() {
        StoredMembership::default()
    } else {
        let wire: MembershipWire = postcard::from_bytes(&manifest.membership).map_err(invalid)?;
        let membership: Membership = entry_codec::decode_membership(&wire.membership)?;
        StoredMembership::new(wire.at.map(log_id), membership)
    };
    Ok(Progress { last: manifest.position.map(log_id), membership })
}

fn meta_of(progress: &Progress) -> SnapshotMeta {
    SnapshotMeta { last_log_id: progress.last, last_membership: progress.membership.clone() }
}

/// Builds one checkpoint from a view taken between two entries.
pub(crate) struct Builder<E: Env> {
    replica: Arc<Replica<E>>,
    core: ClusterStateMachine,
    view: Option<SegmentView>,
    progress: Progress,
    _turn: OwnedMutexGuard<()>,
}

impl<E: Env> Builder<E> {
    /// To be called while nothing is being applied.
    pub(crate) fn prepare(replica: Arc<Replica<E>>, turn: OwnedMutexGuard<()>) -> Self {
        let core = replica.core().clone();
        let view = Some(replica.store.prepare_checkpoint());
        let progress = replica.progress();
        Self { replica, core, view, progress, _turn: turn }
    }

    async fn build(&mut self) -> io::Result<Snapshot<E>> {
        let Some(view) = self.view.take() else {
            return Err(io::Error::other("a checkpoint is built only once"));
        };
        let began = E::now();
        let replica = &*self.replica;
        let segments = replica.store.sync_for(&view).await?;
        let membership = MembershipWire {
            at: self.progress.membership.log_id().as_ref().map(position),
            membership: entry_codec::encode_membership(self.progress.membership.membership()),
        };
        let manifest = Manifest {
            position: self.progress.last.as_ref().map(position),
            membership: message::encode(&membership),
            core_snapshot: Bytes::from(self.core.snapshot()),
            segments,
        };
        loop {
            match replica.checkpoints.write(&manifest).await {
                // Nothing needs it now; without it the journal grows, for which there is no room either.
                Err(error) if wants_room(&error) && !replica.is_stopped() => {
                    Mark::CheckpointWaitedForRoom.reached();
                    tracing::warn!(target: "raft", node = replica.node_id, shard = %replica.id, %error,
                        "no room for a checkpoint: waiting for it");
                    E::sleep(ROOM_LOOK_EVERY).await;
                }
                // All shards have their checkpoints in one directory: were only this one to stop, the next would sync that again, and take its word.
                Err(error) if !wants_room(&error) && error.kind() != io::ErrorKind::FileTooLarge => {
                    return Err(replica.store.inner.fail(replica.checkpoints.path(), error));
                }
                written => break written?,
            }
        }
        replica.env.reached(Step::CheckpointWritten);
        replica.store.checkpointed(view).await;
        if self.progress.last.is_some_and(|last| last.index >= replica.journal_held_to) {
            replica.store.forget_unclaimed().await;
        }
        tracing::info!(
            target: "raft",
            node = replica.node_id,
            shard = %replica.id,
            index = self.progress.last.map(|last| last.index),
            segments = manifest.segments.len(),
            core_bytes = manifest.core_snapshot.len(),
            elapsed_ms = E::now().saturating_duration_since(began).as_millis() as u64,
            "checkpoint written"
        );
        Mark::CheckpointTaken.reached();
        let position = manifest.position.unwrap_or_default();
        let outgoing = Outgoing { manifest: manifest.encode(), position, _pin: replica.store.pin() };
        Ok(Snapshot { meta: meta_of(&self.progress), snapshot: SnapshotData::Own(Arc::new(outgoing)) })
    }
}

impl<E: Env> RaftSnapshotBuilder<TypeConfig<E>> for Builder<E> {
    type SnapshotData = SnapshotData<E>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot<E>> {
        let built = self.build().await;
        if let Err(error) = &built {
            self.replica.stop(format!("{:?}: a checkpoint could not be written: {error}", self.replica.id));
        }
        built
    }
}

/// This node's last checkpoint, read back from disk.
pub(crate) async fn read_current<E: Env>(replica: &Replica<E>) -> io::Result<Option<Snapshot<E>>> {
    let pin = replica.store.pin();
    let (_, manifest) = Checkpoints::open(replica.env.clone(), &replica.raft_dir, replica.id).await.map_err(invalid)?;
    let Some(manifest) = manifest else { return Ok(None) };
    let progress = progress_of(&manifest)?;
    let position = manifest.position.unwrap_or_default();
    let outgoing = Outgoing { manifest: manifest.encode(), position, _pin: pin };
    Ok(Some(Snapshot { meta: meta_of(&progress), snapshot: SnapshotData::Own(Arc::new(outgoing)) }))
}

impl<E: Env> SnapshotData<E> {
    /// Makes the snapshot this replica's state. Called between two applies.
    pub(crate) async fn install(self, replica: &Replica<E>, meta: &SnapshotMeta) -> io::Result<()> {
        match self {
            Self::Fetched(fetched) => {
                let Fetched { installation, core, progress } = *fetched;
                if progress.last != meta.last_log_id {
                    return Err(io::Error::other("the snapshot is not the one that was announced"));
                }
                let _turn = replica.checkpointing.lock().await;
                installation.finish(&replica.checkpoints).await?;
                tracing::info!(
                    target: "raft",
                    node = replica.node_id,
                    shard = %replica.id,
                    index = progress.last.map(|last| last.index),
                    "raft snapshot of the leader installed"
                );
                Mark::SnapshotInstalled.reached();
                replica.replace(core, progress);
                Ok(())
            }
            // A replica starts from its own checkpoint before openraft runs, so there is nothing to install.
            Self::Own(_) if replica.progress().last >= meta.last_log_id => Ok(()),
            Self::Own(_) => Err(io::Error::other("a checkpoint of this node was offered for installation")),
        }
    }

    /// The checkpoint to be sent, when it is this node's own.
    pub(crate) fn outgoing(self) -> Option<Arc<Outgoing>> {
        match self {
            Self::Own(outgoing) => Some(outgoing),
            Self::Fetched(_) => None,
        }
    }
}

/// A snapshot that this node fetches.
pub(crate) struct Incoming {
    pub(crate) transmission: u64,
    /// Bytes here, and bytes there are.
    pub(crate) done: AtomicU64,
    pub(crate) all: AtomicU64,
    outcome: Mutex<Option<Result<VoteWire, String>>>,
    finished: Notify,
    stop: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("transmission", &self.transmission).finish_non_exhaustive()
    }
}

impl Incoming {
    /// Starts fetching; `install` is given what came.
    pub(crate) fn start<E, F>(
        replica: Arc<Replica<E>>,
        peers: PeerNetwork<E>,
        from: (NodeId, [u8; 16]),
        offer: Offer,
        install: impl FnOnce(Fetched<E>) -> F + Send + 'static,
    ) -> Arc<Self>
    where
        E: Env,
        F: Future<Output = Result<VoteWire, String>> + Send + 'static,
    {
        let incoming = Arc::new(Self {
            transmission: offer.transmission,
            done: AtomicU64::new(0),
            all: AtomicU64::new(offer.manifest_len),
            outcome: Mutex::default(),
            finished: Notify::new(),
            stop: Mutex::default(),
        });
        let shared = incoming.clone();
        let task = E::spawn(async move {
            let pull = Pull { replica, peers, from, offer, incoming: shared.clone() };
            let outcome = match pull.run().await {
                Ok(fetched) => install(fetched).await,
                Err(error) => Err(error.to_string()),
            };
            *shared.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            shared.finished.notify_waiters();
        });
        *incoming.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(move || task.abort()));
        incoming
    }

    /// The outcome, if it is there within `patience`.
    pub(crate) async fn outcome<E: Env>(&self, patience: Duration) -> Option<Result<VoteWire, String>> {
        let finished = self.finished.notified();
        let look = || self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(outcome) = look() {
            return Some(outcome);
        }
        let _ = timeout::<E, _>(patience, finished).await;
        look()
    }

    /// Gives the transmission up. What it wrote stays beside, for the next one.
    pub(crate) fn abandon(&self) {
        if let Some(stop) = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take() {
            stop();
        }
    }
}

/// Fetches one snapshot.
struct Pull<E: Env> {
    replica: Arc<Replica<E>>,
    peers: PeerNetwork<E>,
    from: (NodeId, [u8; 16]),
    offer: Offer,
    incoming: Arc<Incoming>,
}

impl<E: Env> Pull<E> {
    async fn run(&self) -> io::Result<Fetched<E>> {
        let manifest = self.manifest().await?;
        let progress = progress_of(&manifest)?;
        if manifest.position != Some(self.offer.position) {
            return Err(invalid("the manifest is not the one that was offered"));
        }
        let core = ClusterStateMachine::restore(&manifest.core_snapshot).map_err(invalid)?;
        if core.shard() != self.replica.id || core.shard_count() != self.replica.core().shard_count() {
            return Err(invalid("the snapshot belongs to another shard or cluster"));
        }
        tracing::info!(
            target: "raft",
            node = self.replica.node_id,
            shard = %self.replica.id,
            from = self.from.0,
            index = self.offer.position.index,
            segments = manifest.segments.len(),
            "fetching a raft snapshot from the leader"
        );
        let mut installation = Installation::begin(&self.replica.store, manifest).await?;
        let rate = self.replica.lock_catch_up().begin(E::now(), &installation.missing());
        let mut pace = self.replica.fetches.promise::<E>(rate);
        for _ in 0..ROUNDS_MAX {
            let missing = installation.missing();
            if missing.is_empty() {
                return Ok(Fetched { installation, core, progress });
            }
            self.incoming.all.fetch_add(missing.iter().map(|range| range.len).sum(), Ordering::Relaxed);
            for range in missing {
                let end = range.from.saturating_add(range.len);
                let mut offset = range.from;
                while offset < end {
                    let len = (end - offset).min(u64::from(CHUNK_BYTES)) as u32;
                    let chunk = self.chunk(ChunkOf::Segment(range.segment), offset, len).await?;
                    offset += chunk.len() as u64;
                    self.replica.lock_catch_up().fetched(&range.segment, chunk.len());
                    pace.took::<E>(chunk.len()).await;
                    let written = installation.write_chunk(&range.segment, offset - chunk.len() as u64, chunk).await;
                    if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                        // The leader's own copy is damaged. It will offer the snapshot again, and by then it may be repaired.
                        tell_damaged(&self.peers, &self.replica, self.from, range.segment).await;
                    }
                    written?;
                    self.replica.env.reached(Step::SnapshotPulled);
                }
            }
        }
        Err(invalid("segments differ from their checksums again and again"))
    }

    async fn manifest(&self) -> io::Result<Manifest> {
        let len = self.offer.manifest_len;
        if len > manifest::BYTES_MAX {
            return Err(invalid(format!("a manifest of {len} bytes")));
        }
        let mut bytes = BytesMut::new();
        while (bytes.len() as u64) < len {
            let at = bytes.len() as u64;
            let chunk = self.chunk(ChunkOf::Manifest, at, (len - at).min(u64::from(CHUNK_BYTES)) as u32).await?;
            bytes.extend_from_slice(&chunk);
        }
        Manifest::decode(&bytes.freeze()).map_err(invalid)
    }

    /// Between 1 and `len` bytes.
    async fn chunk(&self, of: ChunkOf, offset: u64, len: u32) -> io::Result<Bytes> {
        let ask = ChunkRequest { transmission: self.offer.transmission, of, offset, len };
        let mut attempt = 0;
        loop {
            let request = PeerRequest {
                kind: message::SNAPSHOT_CHUNK,
                shard: self.replica.id.0,
                body: message::encode(&ask),
                payload: Vec::new(),
            };
            match self.peers.call(self.from.0, Some(self.from.1), Lane::Bulk, request, CHUNK_TIMEOUT).await {
                Ok((_, chunk)) => {
                    if chunk.is_empty() || chunk.len() > len as usize {
                        return Err(invalid(format!("asked for {len} bytes, got {}", chunk.len())));
                    }
                    self.incoming.done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    return Ok(chunk);
                }
                Err(error) => {
                    attempt += 1;
                    if attempt == CHUNK_ATTEMPTS {
                        return Err(io::Error::other(error.to_string()));
                    }
                    Mark::SnapshotPieceAskedAgain.reached();
                    E::sleep(CHUNK_RETRY_AFTER).await;
                }
            }
        }
    }
}

/// Serves a piece of a checkpoint that is on offer.
pub(crate) async fn read_chunk<E: Env>(replica: &Replica<E>, ask: &ChunkRequest) -> io::Result<Bytes> {
    let outgoing = replica.lock_outgoing().get(&ask.transmission).cloned();
    let Some(outgoing) = outgoing else {
        Mark::SnapshotNoLongerOnOffer.reached();
        return Err(io::Error::new(io::ErrorKind::NotFound, "this snapshot is no longer on offer"));
    };
    let len = ask.len.min(CHUNK_BYTES) as usize;
    match &ask.of {
        ChunkOf::Manifest => {
            let from = usize::try_from(ask.offset).unwrap_or(usize::MAX).min(outgoing.manifest.len());
            let to = from.saturating_add(len).min(outgoing.manifest.len());
            Ok(outgoing.manifest.slice(from..to))
        }
        ChunkOf::Segment(segment) => replica.store.read_chunk(segment, ask.offset, len).await,
    }
}

/// Recovers how far a replica was from its checkpoint.
pub(crate) fn restore(manifest: &Manifest) -> io::Result<(ClusterStateMachine, Progress)> {
    let core = ClusterStateMachine::restore(&manifest.core_snapshot).map_err(invalid)?;
    Ok((core, progress_of(manifest)?))
}
