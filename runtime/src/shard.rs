//! One shard on this node.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lockstep_core::{
    BATCH_BYTES_MAX, ClusterStateMachine, NodeId, Op, Position, Reply, SessionTable, ShardId, TopicId,
};
use lockstep_env::{Env, Task, timeout};
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, ReadPolicy, SnapshotPolicy};

use crate::compaction::{Compaction, CompactionCounts};
use crate::config::Durability;
use crate::error::{ProposeError, StartError};
use crate::group_upkeep::GroupUpkeep;
use crate::partition::{PartitionLog, ReadError};
use crate::peer::{IncomingRequest, PeerFault, PeerIdentity, PeerReply};
pub use crate::raft::GroupWaiter;
use crate::raft::ProposalPayload;
use crate::raft::heartbeats::Heartbeats;
use crate::raft::{
    self, Handler, KeptVote, LeaderDuties, Leadership, LogStore, Member, NetworkFactory, Progress, Promises, Proposals,
    Raft, RaftStatus, Repairer, Replica, STOPPED, ShardContext, StateMachine,
};
use crate::retention::Retention;
use crate::scrub::Scrub;
use crate::status::ShardReport;
use crate::storage::batch::BatchHeader;
use crate::storage::suspicion::FoundBy;
use crate::storage::{Checkpoints, PartitionStore, ScrubCounts, SegmentEntry, StoreOptions};
use lockstep_probe::{Mark, Mistake};

/// A payload longer than this does not fit a frame between nodes. It may consist of one batch.
const PAYLOAD_BYTES_MAX: usize = BATCH_BYTES_MAX;
/// Entries of one append request between nodes; its bytes are bounded too.
const APPEND_ENTRIES_MAX: u64 = 2048;

/// So many of the last digests are reported; enough for replicas that are a few entries apart.
const DIGESTS_REPORTED: usize = 256;

/// Longest wait for a change of membership; it may still happen.
const MEMBERSHIP_PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts at the first election of all: about what the others may be behind.
const STAND_AGAIN: Duration = Duration::from_millis(15);

/// A shard hosted here. Cheap to clone.
pub struct Shard<E: Env> {
    inner: Arc<Inner<E>>,
}

impl<E: Env> Clone for Shard<E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<E: Env> fmt::Debug for Shard<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shard({})", self.inner.replica.id)
    }
}

struct Inner<E: Env> {
    replica: Arc<Replica<E>>,
    proposals: Proposals,
    promises: Arc<Promises>,
    /// `None` when the shard could not even replay its log: it stopped as it started.
    group: Option<Group<E>>,
    tasks: Mutex<Vec<E::Task<()>>>,
}

struct Group<E: Env> {
    raft: Raft<E>,
    leadership: Leadership<E>,
    handler: Handler<E>,
    heartbeats: Heartbeats,
    /// There was no vote on the disk at the start: no leader has ever been heard of here.
    is_new: bool,
}

impl<E: Env> Shard<E> {
    /// Recovers the shard: its last checkpoint, then what the journal holds after it.
    ///
    /// # Errors
    /// What is on disk is damaged or cannot be read. A broken invariant met on the way is no error: the shard is there, stopped.
    pub(crate) async fn start(context: ShardContext<E>) -> Result<Self, StartError> {
        let ShardContext { env, id, shard_count, config, .. } = context.clone();
        let (checkpoints, manifest) = Checkpoints::open(env.clone(), &config.raft_dir, id).await?;
        let (core, progress) = match &manifest {
            None => (ClusterStateMachine::new(id, shard_count), Progress::default()),
            Some(manifest) => raft::restore(manifest).map_err(|error| StartError::Damaged {
                path: config.raft_dir.join("checkpoints").join(id.to_string()).display().to_string(),
                offset: 0,
                reason: error.to_string(),
            })?,
        };
        let options = StoreOptions::new(context.cache.clone());
        let dir = config.data_dir.join(id.to_string());
        let store = PartitionStore::open(env.clone(), &dir, options, manifest.as_ref()).await?;
        drop(manifest);
        let log = context.journal.shard(id);
        raft::drop_superseded(&log, progress.last.as_ref());
        let replica = Arc::new(Replica::new(
            env,
            id,
            config.node_id,
            core,
            store,
            checkpoints,
            config.raft_dir.clone(),
            progress,
            config.disk_reserve_bytes,
            context.fetches.clone(),
            log.last().map_or(0, |last| last.index),
            context.newest_directory.clone(),
        ));
        let proposals = Proposals::new(id);
        if let Some(voters) = context.founding_voters.clone() {
            let founded = raft::found(&log, voters).await;
            founded.map_err(|error| StartError::Raft(format!("{id:?}: {error}")))?;
        }
        let stored_vote = raft::stored_vote(&log).map_err(|error| StartError::Raft(format!("{id:?}: {error}")))?;
        let is_new = stored_vote.is_none();
        let in_checkpoint = Some(*replica.applied.borrow()).filter(|applied| *applied != Position::default());
        let last = log.last().or(log.purged()).max(in_checkpoint);
        let in_doubt = context.doubts.is_in_doubt(id);
        let promises = Arc::new(Promises::at_start(stored_vote, last, keeps_acknowledged(&config)));
        let log_store = LogStore::new(log, promises.clone(), in_doubt);
        let kept_vote = KeptVote::at_start(stored_vote, config.node_id, E::now(), config.election_timeout_max)
            .filter(|_| !Mistake::RestartedVoterForgetsLease.is_made());
        let may_stand = kept_vote.is_none() && !in_doubt;
        let settings = openraft::Config { enable_elect: may_stand, ..raft_config(&config, id)? };
        let built = Raft::<E>::new(
            config.node_id,
            Arc::new(settings),
            NetworkFactory {
                replica: replica.clone(),
                peers: context.peers.clone(),
                keeps_acknowledged: keeps_acknowledged(&config),
            },
            log_store,
            StateMachine::new(replica.clone()),
        )
        .await;
        let raft = match built {
            Ok(raft) => raft,
            Err(error) if !replica.is_stopped() => return Err(StartError::Raft(format!("{id:?}: {error}"))),
            Err(_) => {
                proposals.close();
                let inner = Inner { replica, proposals, promises, group: None, tasks: Mutex::default() };
                return Ok(Self { inner: Arc::new(inner) });
            }
        };
        let leadership = Leadership::new(&raft, replica.clone(), lease(&config));
        let duties = LeaderDuties {
            replica: replica.clone(),
            leadership: leadership.clone(),
            proposals: proposals.clone(),
            patience: config.election_timeout_max * 4,
        };
        let upkeep = GroupUpkeep {
            replica: replica.clone(),
            leadership: leadership.clone(),
            proposals: proposals.clone(),
            offsets_retention: config.offsets_retention,
            offsets_retention_check_interval: config.offsets_retention_check_interval,
        };
        let retention = Retention {
            replica: replica.clone(),
            leadership: leadership.clone(),
            proposals: proposals.clone(),
            clocks: context.clocks.clone(),
            check_interval: config.retention_check_interval,
        };
        let compaction = Compaction {
            replica: replica.clone(),
            leadership: leadership.clone(),
            proposals: proposals.clone(),
            peers: context.peers.clone(),
            clocks: context.clocks.clone(),
            turns: context.compactions.clone(),
            check_interval: config.compaction_check_interval,
            bytes_per_second: config.compaction_bytes_per_second,
            keys_max: config.compaction_keys_max,
            segment_bytes: config.segment_bytes,
        };
        let scrub = Scrub {
            replica: replica.clone(),
            peers: context.peers.clone(),
            turns: context.scrubs.clone(),
            interval: config.scrub_interval,
            bytes_per_second: config.scrub_bytes_per_second,
        };
        let repairer = Repairer { replica: replica.clone(), peers: context.peers.clone() };
        let mut tasks = vec![
            E::spawn(proposals.clone().run(context.env.clone(), raft.clone())),
            E::spawn(duties.run()),
            E::spawn(upkeep.run()),
            E::spawn(retention.run()),
            E::spawn(compaction.run()),
            E::spawn(scrub.run()),
            E::spawn(repairer.run()),
            E::spawn(raft::record_changes(raft.clone(), replica.clone())),
            E::spawn(raft::checkpoint(context.clone(), raft.clone(), replica.clone())),
        ];
        let log = context.journal.shard(id);
        if !may_stand {
            let (doubts, peers) = (context.doubts.clone(), context.peers.clone());
            let permitting =
                raft::permit_elections(raft.clone(), replica.clone(), log.clone(), peers, doubts, kept_vote);
            tasks.push(E::spawn(permitting));
        }
        let handler = Handler {
            raft: raft.clone(),
            replica: replica.clone(),
            peers: context.peers,
            log,
            promises: promises.clone(),
            kept_vote,
            doubts: context.doubts,
        };
        let heartbeats = Heartbeats::new(config.heartbeat_interval);
        let group = Some(Group { raft, leadership, handler, heartbeats, is_new });
        let shard = Self { inner: Arc::new(Inner { replica, proposals, promises, group, tasks: Mutex::new(tasks) }) };
        if may_stand {
            shard.lead_alone().await;
        }
        Ok(shard)
    }

    /// A group's only voter need not wait for others.
    async fn lead_alone(&self) {
        let Some(group) = &self.inner.group else { return };
        let voters = group.leadership.status().voters;
        if voters.len() == 1 && voters.contains_key(&self.inner.replica.node_id) {
            let _ = group.raft.trigger().elect(false).await;
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.inner.replica.id
    }

    /// May this node answer as leader (or coordinator) now? It leads, its lease holds, and it has applied its term's first entry.
    /// Gives the term, else `NotLeader`, `Loading` or `Stopped`.
    pub fn serving(&self) -> Result<u64, ProposeError> {
        match &self.inner.group {
            Some(group) => group.leadership.serving(),
            None => Err(ProposeError::Stopped(self.id())),
        }
    }

    /// Who leads and in which term, as far as this node knows. A leader that is not sure that it still is does not name itself.
    #[must_use]
    pub fn leader(&self) -> Option<(NodeId, u64)> {
        self.inner.group.as_ref()?.leadership.leader()
    }

    /// This node's role in the Raft group (`leader`, `follower`, `learner`, `candidate` or `stopped`) and the highest term it
    /// has seen. For people: [`Shard::serving`] says whether it may answer.
    #[must_use]
    pub fn role(&self) -> (&'static str, u64) {
        self.inner.group.as_ref().map_or((STOPPED, 0), |group| group.leadership.role())
    }

    /// Proposes an op with its payload (at most 7 MiB), in the order of the calls; completes when it is applied here, with its reply.
    /// The proposal is made by the call: what is returned need not be polled for it, and dropping it takes nothing back.
    ///
    /// Appends that wait at the same time share an entry, and so do commits of offsets. Nothing is ever proposed twice.
    pub fn propose<P: Into<ProposalPayload> + 'static>(
        &self,
        op: Op,
        payload: P,
    ) -> impl Future<Output = Result<Reply, ProposeError>> + Send + 'static + use<E, P> {
        let payload: ProposalPayload = payload.into();
        let pushed = self.serving().and_then(|_| {
            if payload.len() > PAYLOAD_BYTES_MAX {
                return Err(ProposeError::TooLarge(self.id()));
            }
            self.inner.proposals.push(op, payload)
        });
        async move {
            match pushed?.await {
                Ok(outcome) => outcome,
                Err(_) => Err(ProposeError::Unknown("the shard stopped".to_owned())),
            }
        }
    }

    /// Reads the applied state. The closure must be short: `apply` waits for it.
    pub fn read<R>(&self, read: impl FnOnce(&ClusterStateMachine) -> R) -> R {
        read(&self.inner.replica.core())
    }

    /// The last position applied here.
    #[must_use]
    pub fn applied(&self) -> Position {
        *self.inner.replica.applied.borrow()
    }

    /// The log of a partition hosted here.
    #[must_use]
    pub fn log(&self, topic_id: TopicId, partition: u32) -> Option<PartitionLog<E>> {
        self.inner.replica.store.log(topic_id, partition)
    }

    /// Compares the leader epochs that batches name with those in which they were appended, as far as the state knows. Of all that a batch says of itself, only this is
    /// not covered by its checksum. Gives the batches before the first wrong one, whose segment is going to be repaired.
    ///
    /// # Errors
    /// `WrongEpoch`: the first batch, which was read from the partition's log, is wrong already.
    pub fn check_epochs(
        &self,
        topic_id: TopicId,
        partition: u32,
        mut batches: Vec<Bytes>,
    ) -> Result<Vec<Bytes>, ReadError> {
        // Taken from the batches before the state is read: `apply` waits for whoever reads that.
        let mut headers = Vec::new();
        for (number, bytes) in batches.iter().enumerate() {
            let mut at = 0_usize;
            while let Some(header) = bytes.get(at..).and_then(BatchHeader::parse) {
                headers.push((number, at, header.base_offset, header.next_offset, header.leader_epoch));
                at = at.saturating_add(header.len);
            }
        }
        let wrong = self.read(|state| {
            let start = state.partition(topic_id, partition).map_or(0, |view| view.log_start_offset);
            // First and last epoch, and the offset before which they hold.
            let mut known: Option<(i32, i32, i64)> = None;
            headers.iter().find(|(_, _, base_offset, next_offset, leader_epoch)| {
                if *next_offset <= start {
                    // Deleted since it was read: nothing is known of its epoch any more.
                    return false;
                }
                let offset = (*base_offset).max(start);
                if known.is_none_or(|(.., end)| offset >= end) {
                    known = state.epochs_at(topic_id, partition, offset);
                }
                known.is_some_and(|(first, last, _)| !(first..=last).contains(leader_epoch))
            })
        });
        let Some(&(number, at, offset, ..)) = wrong else { return Ok(batches) };
        let store = &self.inner.replica.store;
        let name = store.segment_of(topic_id, partition, offset);
        if let Some(name) = name {
            store.suspect(name, FoundBy::Reader);
        }
        batches.truncate(number + 1);
        if let Some(last) = batches.last_mut() {
            last.truncate(at);
        }
        batches.retain(|bytes| !bytes.is_empty());
        match name {
            _ if !batches.is_empty() => Ok(batches),
            Some(name) => Err(ReadError::WrongEpoch { path: store.segment_path(name).display().to_string(), offset }),
            None => Err(ReadError::Gone),
        }
    }

    /// The segments with records of a partition hosted here, ascending, as they are on this node.
    #[must_use]
    pub fn segments(&self, topic_id: TopicId, partition: u32) -> Vec<SegmentEntry> {
        self.inner.replica.store.segments(topic_id, partition)
    }

    /// What comparing segments with their checksums came to since the start.
    #[must_use]
    pub fn scrub_counts(&self) -> ScrubCounts {
        self.inner.replica.store.scrub_counts()
    }

    /// What compaction came to here since the start.
    #[must_use]
    pub fn compaction_counts(&self) -> CompactionCounts {
        *self.inner.replica.lock_compactions()
    }

    /// A ticket for changes of a group: take it before reading the state, then await [`GroupWaiter::changed`].
    #[must_use]
    pub fn watch_group(&self, group_id: &str) -> GroupWaiter {
        self.inner.replica.groups.watch(group_id)
    }

    /// Tells the leader's session table of a member that was just answered with success.
    pub fn heartbeat(&self, group_id: &str, member_id: &str) {
        let now_ms = self.inner.replica.now_ms();
        if let Some(sessions) = self.inner.replica.sessions().as_mut() {
            sessions.heartbeat(group_id, member_id, now_ms);
        }
    }

    /// Tells the leader's session table of a SyncGroup.
    pub fn synced(&self, group_id: &str, member_id: &str, generation: i32) {
        let now_ms = self.inner.replica.now_ms();
        if let Some(sessions) = self.inner.replica.sessions().as_mut() {
            sessions.synced(group_id, member_id, generation, now_ms);
        }
    }
}

/// For the node.
impl<E: Env> Shard<E> {
    fn group(&self) -> Result<&Group<E>, ProposeError> {
        self.inner.group.as_ref().ok_or(ProposeError::Stopped(self.id()))
    }

    /// Answers a request of another member of the group. To be called in the order in which the requests of one node arrived.
    pub(crate) fn handle_raft(
        &self,
        from: PeerIdentity,
        request: IncomingRequest,
    ) -> BoxFuture<'static, Result<PeerReply, PeerFault>> {
        match &self.inner.group {
            Some(group) => group.handler.handle(from, request),
            None => Box::pin(std::future::ready(Err(raft::stopped_fault(self.id())))),
        }
    }

    /// Stands for election in a group that has just been founded, so that nobody waits for a time-out: again and again, because the
    /// others may not be there yet, until there has been an election or `patience` is over. Does nothing in a group that may have had a leader: that
    /// one may rely on the vote of this node, see `raft/kept_vote.rs`.
    pub(crate) async fn stand_first(&self, patience: Duration) {
        let Some(group) = self.inner.group.as_ref().filter(|group| group.is_new) else { return };
        let deadline = E::now() + patience;
        while self.raft_status().term == 0 && E::now() < deadline {
            if group.raft.trigger().elect(true).await.is_err() {
                return;
            }
            E::sleep(STAND_AGAIN).await;
        }
    }

    /// An index such that everything committed before the call is applied at it; only on the leader (Raft dissertation, 6.4).
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        let group = self.group()?;
        if Mistake::ReadIndexNotConfirmed.is_made() {
            return Ok(self.applied().index);
        }
        let term = group.leadership.serving()?;
        // While the lease holds no other leader can have committed anything; else a quorum is asked. openraft's own lease is longer than
        // ours, which was found to hold just now.
        if let Ok(linearizer) = group.raft.get_read_linearizer(ReadPolicy::LeaseRead).await {
            return Ok(linearizer.read_log_id().index());
        }
        Mark::ReadIndexAskedOfQuorum.reached();
        match group.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(_) => Err(match group.leadership.serving() {
                Ok(now) if now == term => ProposeError::NotLeader { shard: self.id(), leader: None },
                Ok(_) => ProposeError::Loading(self.id()),
                Err(error) => error,
            }),
        }
    }

    /// [`Shard::read_index`] for another member, which will wait until it has applied as much, and hears of it without delay.
    pub(crate) async fn read_index_for_member(&self) -> Result<u64, ProposeError> {
        let index = self.read_index().await?;
        self.inner.replica.commit_news.want(index);
        Ok(index)
    }

    /// Waits until this index is applied here; `false` when the time was up or the shard stopped first.
    pub(crate) async fn wait_applied(&self, index: u64, patience: Duration) -> bool {
        let mut applied = self.inner.replica.applied.subscribe();
        let waited = timeout::<E, _>(patience, applied.wait_for(|at| at.index >= index)).await;
        matches!(waited, Ok(Ok(())))
    }

    /// Completes at the next change of the directory after this call.
    pub(crate) fn directory_changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.inner.replica.directory.changed()
    }

    /// The version of this shard's copy of the directory. Costs no lock.
    pub(crate) fn directory_version(&self) -> u64 {
        self.inner.replica.directory.version()
    }

    /// What this node says of the shard in the cluster's status.
    pub(crate) fn report(&self) -> ShardReport {
        let status = self.raft_status();
        let mut digests = self.digests();
        digests.drain(..digests.len().saturating_sub(DIGESTS_REPORTED));
        ShardReport {
            id: self.id(),
            role: status.role.to_owned(),
            term: status.term,
            leader: status.leader,
            voters: status.voters.into_keys().collect(),
            learners: status.learners.into_keys().collect(),
            applied: self.applied().index,
            digests,
        }
    }

    /// Must its members be sent heartbeats now?
    pub(crate) fn owes_heartbeat(&self) -> bool {
        let Some(group) = &self.inner.group else { return false };
        group.leadership.term_led().is_some() && group.heartbeats.are_due(group.leadership.heard_by_all(), E::now())
    }

    /// Sends heartbeats now, if this node leads and they will be due soon.
    pub(crate) fn beat(&self) {
        let Some(group) = &self.inner.group else { return };
        if group.leadership.term_led().is_some() && group.heartbeats.begin(group.leadership.heard_by_all(), E::now()) {
            let raft = group.raft.clone();
            let _detached = E::spawn(async move {
                let _ = raft.trigger().heartbeat().await;
            });
        }
    }

    /// The group's state as this node sees it.
    pub(crate) fn raft_status(&self) -> RaftStatus {
        match &self.inner.group {
            Some(group) => group.leadership.status(),
            None => RaftStatus { role: STOPPED, ..RaftStatus::default() },
        }
    }

    /// The last digests by ascending applied index.
    pub(crate) fn digests(&self) -> Vec<(u64, u128)> {
        self.inner.replica.digests()
    }

    /// What this node has promised of the shard. It can still be asked when the shard is gone.
    #[must_use]
    pub fn promises(&self) -> Arc<Promises> {
        self.inner.promises.clone()
    }

    /// The term whose sessions of group members this node keeps, if it keeps any: the one that it leads in, a moment after it was elected.
    #[must_use]
    pub fn session_term(&self) -> Option<u64> {
        self.inner.replica.sessions().as_ref().map(SessionTable::term)
    }

    /// Members that no longer hold what they acknowledged to this node, which leads. None is the rule: a disk lied, or was put back.
    #[must_use]
    pub fn reverted(&self) -> BTreeSet<NodeId> {
        self.inner.group.as_ref().map(|group| group.leadership.reverted()).unwrap_or_default()
    }

    /// Why the shard stopped on this node, if it did, or will with the next entry: a write behind it failed.
    #[must_use]
    pub fn stopped(&self) -> Option<String> {
        let failure = || self.inner.group.as_ref().and_then(|group| group.leadership.failure());
        self.inner.replica.stopped().or_else(|| self.inner.replica.store.failed()).or_else(failure)
    }

    /// Why the shard's segments are written no more: the disk failed.
    pub(crate) fn disk_failure(&self) -> Option<String> {
        self.inner.replica.store.failed()
    }

    /// Hands leadership to another voter. From now on this node does not answer as leader in the present term, whatever becomes of it.
    pub(crate) async fn transfer_leader(&self, to: NodeId) {
        let Some(group) = &self.inner.group else { return };
        if group.leadership.term_led().is_some() {
            group.leadership.hand_over();
            let _ = group.raft.trigger().transfer_leader(to).await;
        }
    }

    /// Takes a node out of the group, as voter and as learner.
    pub(crate) async fn remove_member(&self, node: NodeId) -> Result<(), ProposeError> {
        let status = self.raft_status();
        if status.voters.contains_key(&node) {
            self.change(ChangeMembers::RemoveVoters([node].into()), false).await
        } else {
            self.change(ChangeMembers::RemoveNodes([node].into()), false).await
        }
    }

    /// Replicates to a node that does not vote.
    pub(crate) async fn add_learner(&self, node: NodeId, member: Member) -> Result<(), ProposeError> {
        self.change(ChangeMembers::AddNodes([(node, member)].into()), true).await
    }

    /// Makes a learner a voter.
    pub(crate) async fn promote(&self, node: NodeId) -> Result<(), ProposeError> {
        self.change(ChangeMembers::AddVoterIds([node].into()), true).await
    }

    /// Finishes a change of the voters that is half done: what it was to come to holds from then on.
    pub(crate) async fn finish_change(&self) -> Result<(), ProposeError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await
    }

    async fn change(&self, change: ChangeMembers<NodeId, Member>, retain: bool) -> Result<(), ProposeError> {
        let group = self.group()?;
        group.leadership.serving()?;
        let changed = timeout::<E, _>(MEMBERSHIP_PATIENCE, group.raft.change_membership(change, retain)).await;
        let Ok(changed) = changed else {
            return Err(ProposeError::Unknown("the change of membership takes too long".to_owned()));
        };
        match changed {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { shard: self.id(), leader: forward.leader_id })
            }
            Err(error) => Err(ProposeError::Unknown(error.to_string())),
        }
    }

    /// Stops the shard's tasks. What was acknowledged is durable already.
    pub(crate) async fn stop(&self) {
        self.inner.proposals.close();
        // Whoever waits for room on the disk may be what Raft's core waits for.
        self.inner.replica.store.wait_no_longer();
        if let Some(group) = &self.inner.group {
            let _ = group.raft.shutdown().await;
        }
        self.inner.replica.stop("the node is stopping".to_owned());
        self.inner.proposals.give_up("the node is stopping", None);
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
        }
        if let Some(incoming) = self.inner.replica.lock_incoming().take() {
            incoming.abandon();
        }
        if let Some(pull) = self.inner.replica.lock_staging().take() {
            pull.abandon();
        }
        self.inner.replica.store.close().await;
    }
}

/// For how long a leader is sure of itself after it was heard by a quorum.
///
/// The others do not vote for anybody else for `election_timeout_max` after they heard of it, each by its own clock. The difference makes up
/// for clocks that run a tenth too slow here and a tenth too fast there. A voter that was started anew within that time keeps its vote back:
/// see [`KeptVote`].
fn lease(config: &crate::config::NodeConfig) -> Duration {
    config.election_timeout_max * 4 / 5
}

/// Does a node that is started anew have all the entries that it acknowledged?
fn keeps_acknowledged(config: &crate::config::NodeConfig) -> bool {
    config.durability == Durability::Fsync
}

/// Raft's own settings, from the node's.
fn raft_config(config: &crate::config::NodeConfig, id: ShardId) -> Result<openraft::Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (min, max) = (millis(config.election_timeout_min), millis(config.election_timeout_max));
    let settings = openraft::Config {
        cluster_name: format!("shard {id}"),
        election_timeout_min: min,
        election_timeout_max: max.max(min + 1),
        // The node beats for all shards at once, as often as it is configured to, and spares those that entries flow in. For Raft itself this is the time that a heartbeat may
        // take: more than one beat, or a busy moment would cost the lease.
        heartbeat_interval: (min / 2).max(millis(config.heartbeat_interval) * 5 / 3).min(min - 1).max(1),
        enable_heartbeat: false,
        enable_pre_vote: Some(true),
        // A node that has lost its log comes back as another member, never as the same one. Where entries are acknowledged from memory it may have lost the last
        // of them: it does not vote until it has them again, and whoever leads has them.
        allow_log_reversion: Some(!keeps_acknowledged(config)),
        // A restarted leader has not applied all that it acknowledged; an election makes sure of it.
        enable_leader_restore: Some(false),
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::Never,
        // Purging is bounded by bytes, which Raft does not count: see `checkpoint`.
        max_in_snapshot_log_to_keep: u64::MAX,
        // Room for measurements that are compiled away.
        log_stage_capacity: Some(1),
        backoff: "40ms 80ms 160ms ...400ms".to_owned(),
        ..openraft::Config::default()
    };
    settings.validate().map_err(|error| StartError::Config { field: "raft", reason: error.to_string() })
}

#[cfg(test)]
impl<E: Env> Shard<E> {
    /// For how long some member has not answered this leader.
    pub(crate) fn longest_silence(&self) -> Option<Duration> {
        let heard = self.group().ok()?.leadership.heard_by_all()?;
        Some(E::now().saturating_duration_since(heard))
    }

    /// No checkpoint is written or installed while this is held.
    pub(crate) async fn hold_checkpoints(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.inner.replica.checkpointing.clone().lock_owned().await
    }

    /// The last position that Raft counts as committed here, whether or not it is durable.
    pub(crate) fn accepted(&self) -> Option<Position> {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.group().ok()?.raft.data_metrics();
        metrics
            .borrow_watched()
            .local_committed
            .as_ref()
            .map(|at| Position { term: at.leader_id.term, index: at.index })
    }

    /// Puts bytes into the log that may be no op at all.
    pub(crate) async fn propose_raw(&self, op: Bytes) {
        let command = raft::Command { op, payload: Bytes::new() };
        if let Ok(group) = self.group() {
            let _ = group.raft.client_write(command).await;
        }
    }
}
