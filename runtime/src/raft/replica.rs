//! What a shard's tasks on this node share: the state machine, its partitions, and how far they are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use lockstep_core::{ClusterStateMachine, NodeId, Position, SessionTable, ShardId};
use lockstep_env::{Env, watch};
use tokio::sync::Notify;

use super::acknowledged::Acknowledged;
use super::append_stream::CommitNews;
use super::catch_up::CatchUp;
use super::directory_watch::{DirectoryWatch, NewestDirectory};
use super::group_watch::GroupWatch;
use super::snapshot::{Incoming, Outgoing};
use super::staging::StagingPull;
use super::type_config::{LogId, StoredMembership, position};
use crate::compaction::CompactionCounts;
use crate::storage::check::SharedPace;
use crate::storage::{Checkpoints, PartitionStore};

/// So many digests are kept, for comparison with other replicas that are not quite as far.
const DIGESTS_KEPT: usize = 1024;

/// One shard on this node.
pub(crate) struct Replica<E: Env> {
    pub(crate) env: E,
    pub(crate) id: ShardId,
    pub(crate) node_id: NodeId,
    /// Zero of the session table's clock.
    pub(crate) started: Instant,
    pub(crate) store: PartitionStore<E>,
    pub(crate) checkpoints: Checkpoints<E>,
    /// Where the checkpoints are.
    pub(crate) raft_dir: PathBuf,
    pub(crate) groups: GroupWatch,
    /// Last position applied, of any kind of entry.
    pub(crate) applied: watch::Sender<Position>,
    /// Held while a checkpoint is built or installed: one at a time.
    pub(crate) checkpointing: Arc<tokio::sync::Mutex<()>>,
    /// Snapshots that other nodes are fetching from here.
    pub(crate) outgoing: Mutex<BTreeMap<u64, Arc<Outgoing>>>,
    /// What the members acknowledge to this node while it leads.
    acknowledged: Mutex<BTreeMap<NodeId, Arc<Acknowledged>>>,
    /// The snapshot that this node is fetching.
    pub(crate) incoming: Mutex<Option<Arc<Incoming>>>,
    /// The rounds in which it fetches snapshots.
    catch_up: Mutex<CatchUp>,
    /// The files of a compaction that this node is fetching.
    staging: Mutex<Option<Arc<StagingPull>>>,
    compactions: Mutex<CompactionCounts>,
    /// See [`crate::NodeConfig::disk_reserve_bytes`].
    pub(crate) disk_reserve_bytes: u64,
    /// How fast segments come from other nodes.
    pub(crate) fetches: SharedPace,
    /// Index of the last entry that the journal held at the start.
    pub(crate) journal_held_to: u64,
    /// Groups that need an assignment, for the leader to propose.
    pub(crate) assignments: Mutex<BTreeSet<String>>,
    /// Wakes the leader's duties.
    pub(crate) duties: Notify,
    /// Groups with subscriptions by regular expressions that the leader has to resolve.
    unresolved_regexes: Mutex<BTreeSet<String>>,
    /// Wakes the leader's upkeep of groups.
    pub(crate) upkeep: Notify,
    /// Wakes the leader's look for expired records, to end.
    pub(crate) retention: Notify,
    /// Wakes the leader's look for what can be compacted, to end.
    pub(crate) compaction: Notify,
    pub(crate) directory: DirectoryWatch,
    /// What the other members should learn soon, while this node leads.
    pub(crate) commit_news: Arc<CommitNews>,
    core: RwLock<ClusterStateMachine>,
    /// Deadlines, while this node leads. Taken after `core` where both are.
    sessions: Mutex<Option<SessionTable>>,
    progress: Mutex<Progress>,
    digests: Mutex<VecDeque<(u64, u128)>>,
    stopped: Mutex<Option<String>>,
}

/// How far openraft's entries are applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl<E: Env> fmt::Debug for Replica<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({:?} on node {})", self.id, self.node_id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Env> Replica<E> {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        env: E,
        id: ShardId,
        node_id: NodeId,
        core: ClusterStateMachine,
        store: PartitionStore<E>,
        checkpoints: Checkpoints<E>,
        raft_dir: PathBuf,
        progress: Progress,
        disk_reserve_bytes: u64,
        fetches: SharedPace,
        journal_held_to: u64,
        newest_directory: Arc<NewestDirectory>,
    ) -> Self {
        let applied = progress.last.as_ref().map(position).unwrap_or_default();
        let digests = VecDeque::from([(applied.index, core.digest().0)]);
        let directory = DirectoryWatch::new(core.directory().version, newest_directory);
        Self {
            env,
            id,
            node_id,
            started: E::now(),
            store,
            checkpoints,
            raft_dir,
            groups: GroupWatch::default(),
            applied: watch::channel(applied).0,
            checkpointing: Arc::default(),
            outgoing: Mutex::default(),
            acknowledged: Mutex::default(),
            incoming: Mutex::default(),
            catch_up: Mutex::default(),
            staging: Mutex::default(),
            compactions: Mutex::default(),
            disk_reserve_bytes,
            fetches,
            journal_held_to,
            assignments: Mutex::default(),
            duties: Notify::new(),
            unresolved_regexes: Mutex::default(),
            upkeep: Notify::new(),
            retention: Notify::new(),
            compaction: Notify::new(),
            directory,
            commit_news: Arc::default(),
            core: RwLock::new(core),
            sessions: Mutex::default(),
            progress: Mutex::new(progress),
            digests: Mutex::new(digests),
            stopped: Mutex::default(),
        }
    }

    pub(crate) fn core(&self) -> RwLockReadGuard<'_, ClusterStateMachine> {
        self.core.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn core_mut(&self) -> RwLockWriteGuard<'_, ClusterStateMachine> {
        self.core.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sessions(&self) -> MutexGuard<'_, Option<SessionTable>> {
        lock(&self.sessions)
    }

    pub(crate) fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// The session table's clock.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(E::now().saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes an applied entry and the digest after it.
    pub(crate) fn advance(&self, last: LogId, membership: Option<StoredMembership>, digest: u128) {
        {
            let mut progress = lock(&self.progress);
            progress.last = Some(last);
            if let Some(membership) = membership {
                progress.membership = membership;
            }
        }
        {
            let mut digests = lock(&self.digests);
            if digests.len() == DIGESTS_KEPT {
                digests.pop_front();
            }
            digests.push_back((last.index, digest));
        }
        self.applied.send_modify(|applied| *applied = position(&last));
    }

    /// Replaces the state by that of a snapshot.
    pub(crate) fn replace(&self, core: ClusterStateMachine, progress: Progress) {
        let applied = progress.last.as_ref().map(position).unwrap_or_default();
        let digest = core.digest().0;
        {
            let mut shown = self.core_mut();
            self.directory.reached(core.directory().version);
            *shown = core;
        }
        *lock(&self.progress) = progress;
        *lock(&self.digests) = VecDeque::from([(applied.index, digest)]);
        self.applied.send_modify(|position| *position = applied);
        self.directory.tell();
        self.groups.change_all();
    }

    /// The last digests by ascending applied index.
    pub(crate) fn digests(&self) -> Vec<(u64, u128)> {
        lock(&self.digests).iter().copied().collect()
    }

    /// Stops the shard on this node, for good. The first reason counts.
    pub(crate) fn stop(&self, reason: String) {
        lock(&self.stopped).get_or_insert(reason);
        self.groups.change_all();
        self.duties.notify_waiters();
        self.upkeep.notify_waiters();
        self.retention.notify_waiters();
        self.compaction.notify_waiters();
    }

    pub(crate) fn stopped(&self) -> Option<String> {
        lock(&self.stopped).clone()
    }

    /// The other members of the shard, beginning behind this one, so that not all ask the same one first.
    pub(crate) fn others(&self) -> VecDeque<(NodeId, [u8; 16])> {
        let own = self.node_id;
        let progress = self.progress();
        let nodes = progress.membership.membership().nodes();
        let mut others: VecDeque<_> =
            nodes.filter(|(node, _)| **node != own).map(|(node, member)| (*node, member.incarnation)).collect();
        let below = others.iter().filter(|(node, _)| *node < own).count();
        others.rotate_left(below);
        others
    }

    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.stopped).is_some()
    }

    pub(crate) fn lock_assignments(&self) -> MutexGuard<'_, BTreeSet<String>> {
        lock(&self.assignments)
    }

    pub(crate) fn lock_unresolved_regexes(&self) -> MutexGuard<'_, BTreeSet<String>> {
        lock(&self.unresolved_regexes)
    }

    pub(crate) fn lock_outgoing(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Outgoing>>> {
        lock(&self.outgoing)
    }

    /// From now on `member` is replicated to anew: whatever it acknowledged before is forgotten.
    pub(crate) fn begin_replication(&self, member: NodeId) -> Arc<Acknowledged> {
        let fresh = Arc::<Acknowledged>::default();
        lock(&self.acknowledged).insert(member, fresh.clone());
        fresh
    }

    /// What `member` acknowledged since it was last replicated to anew.
    pub(crate) fn acknowledged(&self, member: NodeId) -> Arc<Acknowledged> {
        lock(&self.acknowledged).entry(member).or_default().clone()
    }

    /// Members that no longer hold what they acknowledged when this node led last.
    pub(crate) fn reverted(&self) -> BTreeSet<NodeId> {
        let acknowledged = lock(&self.acknowledged);
        acknowledged.iter().filter(|(_, member)| member.is_reverted()).map(|(member, _)| *member).collect()
    }

    pub(crate) fn lock_compactions(&self) -> MutexGuard<'_, CompactionCounts> {
        lock(&self.compactions)
    }

    pub(crate) fn lock_staging(&self) -> MutexGuard<'_, Option<Arc<StagingPull>>> {
        lock(&self.staging)
    }

    pub(crate) fn lock_catch_up(&self) -> MutexGuard<'_, CatchUp> {
        lock(&self.catch_up)
    }

    pub(crate) fn lock_incoming(&self) -> MutexGuard<'_, Option<Arc<Incoming>>> {
        lock(&self.incoming)
    }
}
