//! One node of the cluster: what the broker holds.
//!
//! A node owns its journal, its connections to the other nodes and the shards hosted on it; the tasks beside this file keep the
//! cluster whole (bootstrap, membership, leadership, the metadata feed).

mod bootstrap;
mod clocks;
mod disk_space;
mod dispatch;
mod feed;
mod forward;
mod identity;
mod leadership;
mod membership;
mod message;
mod peer_states;
mod placement;
mod unsynced;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lockstep_core::{Directory, NodeId, Op, Reply, ShardId};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, Task};
use lockstep_probe::Mark;
use tokio::sync::{Notify, Semaphore};

use crate::compaction::CompactionCounts;
use crate::config::NodeConfig;
use crate::error::{ProposeError, StartError};
use crate::histogram::Histogram;
use crate::journal::{Journal, JournalOptions};
use crate::peer::{PeerNetwork, PeerOptions, cluster_token};
use crate::raft::directory_watch::NewestDirectory;
use crate::raft::{Doubts, ShardContext};
use crate::shard::Shard;
use crate::status::{ClusterStatus, NodeReport};
use crate::storage::check::SharedPace;
use crate::storage::{Cache, ScrubCounts};
pub(crate) use clocks::Clocks;
use disk_space::DiskSpace;
use feed::FeedProgress;
use forward::ProducerIdBlock;
use identity::{ClusterIdentity, Directories};
use peer_states::PeerStates;

/// Journal bytes of recent entries kept in memory for each shard: what followers that keep up are sent from.
const JOURNAL_CACHE_BYTES_PER_SHARD: usize = 2 << 20;
/// A node not heard from for so many heartbeat intervals is not called alive.
const ALIVE_HEARTBEATS: u32 = 20;

/// One running node. Cheap to clone.
#[derive(Clone)]
pub struct Node<E: Env> {
    inner: Arc<Inner<E>>,
}

impl<E: Env> fmt::Debug for Node<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.inner.config.node_id)
    }
}

struct Inner<E: Env> {
    env: E,
    config: Arc<NodeConfig>,
    incarnation: [u8; 16],
    directories: tokio::sync::Mutex<Option<Directories<E>>>,
    cluster: OnceLock<ClusterIdentity>,
    journal: Journal<E>,
    peers: OnceLock<PeerNetwork<E>>,
    shards: OnceLock<BTreeMap<ShardId, Shard<E>>>,
    /// Who leads which shard in which term, as the others say.
    leaders: Mutex<BTreeMap<ShardId, (u64, NodeId)>>,
    peer_states: PeerStates,
    disk_space: DiskSpace,
    clocks: Clocks,
    doubts: Arc<Doubts>,
    feed: FeedProgress,
    producer_ids: tokio::sync::Mutex<ProducerIdBlock>,
    empty_directory: Directory,
    newest_directory: Arc<NewestDirectory>,
    stopping: AtomicBool,
    failure: Mutex<Option<String>>,
    failure_changed: Notify,
    tasks: Mutex<Vec<E::Task<()>>>,
}

impl<E: Env> Node<E> {
    /// Recovers what is on disk, listens for peers and starts every shard hosted here. Returns without waiting for a leader.
    ///
    /// On empty directories the cluster is bootstrapped once all peers have said that theirs are empty too; until then, and
    /// until the shards run, the node serves no shard. A node whose disk was emptied while the cluster lives comes back as a
    /// learner and is promoted when it has caught up.
    pub async fn start(env: E, config: NodeConfig) -> Result<Self, StartError> {
        check(&config)?;
        let config = Arc::new(config);
        let directories = Directories::open(&env, &config).await?;
        let identity = directories.identity.clone();
        let journal_dir = config.raft_dir.join("journal");
        let options = JournalOptions {
            file_bytes: config.journal_file_bytes,
            cache_bytes_per_shard: JOURNAL_CACHE_BYTES_PER_SHARD,
            durability: config.durability,
        };
        // Before anything can be acknowledged.
        let was_cut_off = unsynced::begin(&env, &config.raft_dir, config.durability).await?;
        // Before the cluster was known nothing was acknowledged.
        let shards = identity.cluster.as_ref().map_or(0, |cluster| cluster.shards);
        let doubts = if was_cut_off { Doubts::of((0..shards).map(ShardId)) } else { Doubts::default() };
        if !doubts.own().is_empty() {
            tracing::warn!(
                target: "cluster", node = config.node_id,
                "this node did not end in good order while it acknowledged entries from its memory: it votes in no shard until it has caught up there"
            );
        }
        let journal = Journal::open(env.clone(), &journal_dir, options).await?;
        let cluster = OnceLock::new();
        if let Some(known) = identity.cluster {
            let _ = cluster.set(known);
        }
        let inner = Arc::new(Inner {
            env: env.clone(),
            incarnation: identity.incarnation,
            directories: tokio::sync::Mutex::new(Some(directories)),
            cluster,
            journal,
            peers: OnceLock::new(),
            shards: OnceLock::new(),
            leaders: Mutex::default(),
            peer_states: PeerStates::default(),
            doubts: Arc::new(doubts),
            disk_space: DiskSpace::default(),
            clocks: Clocks::new(config.peers.len()),
            feed: FeedProgress::default(),
            producer_ids: tokio::sync::Mutex::default(),
            empty_directory: Directory::default(),
            newest_directory: Arc::default(),
            stopping: AtomicBool::new(false),
            failure: Mutex::default(),
            failure_changed: Notify::new(),
            tasks: Mutex::default(),
            config: config.clone(),
        });
        let node = Self { inner };
        let peers = PeerNetwork::start(
            env,
            PeerOptions::new(
                config.node_id,
                identity.incarnation,
                cluster_token(&config.peers),
                config.peers[&config.node_id].clone(),
                config.peers.clone(),
            ),
            Arc::new(dispatch::Dispatch::new(&node.inner)),
        )
        .await?;
        let _ = node.inner.peers.set(peers);
        if node.inner.cluster.get().is_some() {
            node.start_shards().await?;
        } else {
            node.spawn(bootstrap::run(node.clone()));
        }
        Ok(node)
    }

    /// Starts the shards hosted here and the tasks that watch over them. The node belongs to a cluster by now.
    async fn start_shards(&self) -> Result<(), StartError> {
        let inner = &self.inner;
        let Some(cluster) = inner.cluster.get() else {
            return Err(StartError::Raft("shards started before the cluster is known".to_owned()));
        };
        let cache = Cache::new(inner.config.cache_bytes);
        let checkpoints = Arc::new(Semaphore::new(1));
        let scrubs = Arc::new(Semaphore::new(1));
        let compactions = Arc::new(Semaphore::new(1));
        let fetches = SharedPace::new::<E>(inner.config.fetch_bytes_per_second);
        let members = placement::founding_members(&inner.config, cluster);
        let is_founder = cluster.founders.get(&inner.config.node_id) == Some(&inner.incarnation);
        let mut shards = BTreeMap::new();
        for id in (0..cluster.shards).map(ShardId) {
            let replicas = placement::replicas(&inner.config, id);
            if !replicas.contains(&inner.config.node_id) {
                continue;
            }
            // Whoever is no founder waits to be added.
            let founding_voters = is_founder.then(|| {
                members.iter().filter(|(node, _)| replicas.contains(node)).map(|(n, m)| (*n, m.clone())).collect()
            });
            let context = ShardContext {
                env: inner.env.clone(),
                id,
                shard_count: cluster.shards,
                config: inner.config.clone(),
                journal: inner.journal.clone(),
                peers: self.peers().clone(),
                cache: cache.clone(),
                founding_voters,
                checkpoints: checkpoints.clone(),
                scrubs: scrubs.clone(),
                compactions: compactions.clone(),
                fetches: fetches.clone(),
                clocks: inner.clocks.clone(),
                doubts: inner.doubts.clone(),
                newest_directory: inner.newest_directory.clone(),
            };
            shards.insert(id, Shard::start(context).await?);
        }
        // What is left here of a shard that is not hosted now may be hosted again.
        inner.doubts.keep_only(|shard| shards.contains_key(&shard) || inner.journal.shard(shard).last().is_some());
        let _ = inner.shards.set(shards);
        self.spawn(leadership::begin(self.clone()));
        self.spawn(leadership::beat(self.clone()));
        self.spawn(leadership::balance(self.clone()));
        self.spawn(disk_space::watch(self.clone()));
        self.spawn(membership::run(self.clone()));
        self.spawn(feed::register_broker(self.clone()));
        self.spawn(feed::tell_of_first_directory(self.clone()));
        self.spawn(watch_failures(self.clone()));
        for id in (1..cluster.shards).map(ShardId) {
            self.spawn(feed::run(self.clone(), id));
        }
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stopping() {
            tasks.push(E::spawn(task));
        }
    }

    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.inner.config.node_id
    }

    /// The identity of this node's disk: another one after the disk was emptied.
    #[must_use]
    pub fn incarnation(&self) -> [u8; 16] {
        self.inner.incarnation
    }

    /// The voters of a shard hosted here with the disks that vote, as this node knows them. While the membership changes, those who
    /// vote both before and after: nobody else makes up for the loss of one of them yet.
    #[must_use]
    pub fn voters(&self, shard: ShardId) -> Option<BTreeMap<NodeId, [u8; 16]>> {
        let status = self.shard(shard)?.raft_status();
        let lasting = status.voters.into_iter().filter(|(node, _)| status.lasting_voters.contains(node));
        Some(lasting.map(|(node, member)| (node, member.incarnation)).collect())
    }

    /// The cluster's id, once known: made at bootstrap.
    #[must_use]
    pub fn cluster_id(&self) -> Option<[u8; 16]> {
        self.inner.cluster.get().map(|cluster| cluster.id)
    }

    /// Number of shards in the cluster; before the cluster is known, that of the configuration.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.inner.cluster.get().map_or(self.inner.config.shards, |cluster| cluster.shards)
    }

    /// A shard hosted here.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<Shard<E>> {
        self.inner.shards.get()?.get(&shard).cloned()
    }

    /// The shards hosted here.
    #[must_use]
    pub fn shards(&self) -> Vec<Shard<E>> {
        self.inner.shards.get().map(|shards| shards.values().cloned().collect()).unwrap_or_default()
    }

    /// Reads the newest copy of the directory that this node has; empty until the shards run.
    ///
    /// Shard 0's is the original, and every other shard carries a copy. A node that leads a shard while it still lacks what shard 0
    /// has (its disk was emptied, or it was away) knows the topics from there.
    pub fn directory<R>(&self, read: impl FnOnce(&Directory) -> R) -> R {
        match self.shard_of_newest_directory() {
            Some(shard) => shard.read(|state| read(state.directory())),
            None => read(&self.inner.empty_directory),
        }
    }

    fn shard_of_newest_directory(&self) -> Option<&Shard<E>> {
        let shards = self.inner.shards.get()?;
        match shards.get(&ShardId::METADATA) {
            Some(source) if source.directory_version() >= self.inner.newest_directory.version() => Some(source),
            _ => {
                Mark::DirectoryReadFromAnotherShard.reached();
                shards.values().max_by_key(|shard| shard.directory_version())
            }
        }
    }

    /// Has this node a copy of the directory, however old? Not when it was started with an empty disk and nothing has come from
    /// the other nodes yet: then it can tell clients nothing, not even of other brokers.
    #[must_use]
    pub fn has_directory(&self) -> bool {
        self.inner.newest_directory.version() > 0
    }

    /// Shards in which this node may have lost what it acknowledged from its memory, in its last life with [`Durability::Replicated`](crate::Durability): it does
    /// not vote there until it has all of it again.
    #[must_use]
    pub fn shards_in_doubt(&self) -> Vec<ShardId> {
        self.inner.doubts.own()
    }

    /// Who leads a shard, and in which term, as far as this node knows; also for shards not hosted here.
    #[must_use]
    pub fn leader_of(&self, shard: ShardId) -> Option<(NodeId, u64)> {
        let told = self.lock_leaders().get(&shard).map(|(term, node)| (*node, *term));
        let own = self.shard(shard).and_then(|shard| shard.leader());
        // What the others say does not count where this node itself is named: it knows better.
        let told = told.filter(|(node, _)| *node != self.id());
        match (own, told) {
            (Some(own), Some(told)) => Some(if told.1 > own.1 { told } else { own }),
            (own, told) => own.or(told),
        }
    }

    /// The nodes that hold a copy of a shard, ascending; also for shards not hosted here.
    #[must_use]
    pub fn replicas(&self, shard: ShardId) -> Vec<NodeId> {
        let mut replicas = placement::replicas(&self.inner.config, shard);
        replicas.sort_unstable();
        replicas
    }

    /// Was this node heard from lately? A node always hears itself.
    #[must_use]
    pub fn alive(&self, node: NodeId) -> bool {
        node == self.id()
            || self
                .inner
                .peers
                .get()
                .and_then(|peers| peers.last_heard(node))
                .is_some_and(|at| E::now().saturating_duration_since(at) < self.silence_max())
    }

    fn silence_max(&self) -> Duration {
        (self.inner.config.heartbeat_interval * ALIVE_HEARTBEATS).max(Duration::from_secs(1))
    }

    /// The time each fsync of the journal took.
    #[must_use]
    pub fn journal_sync_histogram(&self) -> Arc<Histogram> {
        self.inner.journal.sync_histogram()
    }

    /// What comparing segments with their checksums came to since the start, over all shards hosted here.
    #[must_use]
    pub fn scrub_counts(&self) -> ScrubCounts {
        self.shards().iter().map(Shard::scrub_counts).sum()
    }

    /// What compaction came to since the start, on the shards that this node led.
    #[must_use]
    pub fn compaction_counts(&self) -> CompactionCounts {
        self.shards().iter().map(Shard::compaction_counts).sum()
    }

    /// Proposes on the shard if this node leads it; see [`Shard::propose`].
    pub async fn propose(&self, shard: ShardId, op: Op, payload: Bytes) -> Result<Reply, ProposeError> {
        match self.shard(shard) {
            Some(shard) => shard.propose(op, payload).await,
            None => Err(ProposeError::NotLeader { shard, leader: self.leader_of(shard).map(|(node, _)| node) }),
        }
    }

    /// The state of the whole cluster, asked from all nodes that answer in time.
    pub async fn cluster_status(&self, timeout: Duration) -> ClusterStatus {
        let mut asked = Vec::new();
        for node in self.inner.config.peers.keys().filter(|node| **node != self.id()) {
            let (this, node) = (self.clone(), *node);
            asked.push(E::spawn(async move { this.ask_report(node, timeout).await }));
        }
        let mut reports = vec![self.report()];
        for report in asked {
            if let Ok(Some(report)) = report.await {
                reports.push(report);
            }
        }
        let addresses = self.directory(|directory| {
            let address = |node: &NodeId| {
                let broker = directory.brokers.get(node)?;
                Some(format!("{}:{}", broker.host, broker.port))
            };
            self.inner.config.peers.keys().map(|node| (*node, address(node).unwrap_or_default())).collect()
        });
        ClusterStatus::gather(addresses, &reports)
    }

    fn report(&self) -> NodeReport {
        NodeReport { node_id: self.id(), shards: self.shards().iter().map(Shard::report).collect() }
    }

    /// Completes when the node has failed for good (a disk error, every shard stopped after a violation), with the reason.
    pub async fn failed(&self) -> String {
        loop {
            let changed = self.inner.failure_changed.notified();
            if let Some(reason) = self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return reason;
            }
            changed.await;
        }
    }

    fn fail(&self, reason: String) {
        tracing::error!(target: "cluster", node = self.id(), %reason, "this node has failed");
        self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.inner.failure_changed.notify_waiters();
    }

    /// Hands leadership over, stops all tasks and closes the journal. What was acknowledged is durable without it.
    pub async fn shutdown(&self) {
        if self.inner.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        tracing::info!(target: "cluster", node = self.id(), "stopping: handing leadership over");
        if let Some(peers) = self.inner.peers.get() {
            peers.poke_gossip();
        }
        leadership::hand_over(self).await;
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
        }
        for shard in self.shards() {
            shard.stop().await;
        }
        self.inner.journal.close().await;
        if self.inner.doubts.own().is_empty() && self.inner.journal.failed().is_none() {
            unsynced::end(&self.inner.env, &self.inner.config.raft_dir).await;
        }
        if let Some(peers) = self.inner.peers.get() {
            peers.shutdown().await;
        }
        self.inner.directories.lock().await.take();
        tracing::info!(target: "cluster", node = self.id(), "stopped");
    }

    fn stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::SeqCst)
    }

    fn peers(&self) -> &PeerNetwork<E> {
        self.inner.peers.get().expect("the peer network starts before anything that uses it")
    }

    fn lock_leaders(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, (u64, NodeId)>> {
        self.inner.leaders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails the node when its journal has failed, or a shard's segments could not be written or synced, or when no shard on it runs any more. A disk that
/// failed once is not to be trusted with the next write of another shard; a shard that met a broken invariant stops alone, since the others know nothing of it.
async fn watch_failures<E: Env>(node: Node<E>) {
    loop {
        E::sleep(Duration::from_millis(200)).await;
        if let Some(reason) = node.inner.journal.failed() {
            return node.fail(format!("journal: {reason}"));
        }
        if let Some(reason) = node.shards().iter().find_map(Shard::disk_failure) {
            return node.fail(format!("segments: {reason}"));
        }
        let stopped: Vec<String> = node.shards().iter().filter_map(Shard::stopped).collect();
        if !stopped.is_empty() && stopped.len() == node.shards().len() {
            return node.fail(stopped.join("; "));
        }
    }
}

/// Starts a node in the production environment.
///
/// Compiled here once, so that the binaries and tests that use it need not compile the whole of a node for themselves.
pub fn start_node(config: NodeConfig) -> BoxFuture<'static, Result<Node<TokioEnv>, StartError>> {
    Box::pin(Node::start(TokioEnv::new(), config))
}

fn check(config: &NodeConfig) -> Result<(), StartError> {
    let refuse = |field, reason: String| Err(StartError::Config { field, reason });
    if !config.peers.contains_key(&config.node_id) {
        return refuse("cluster.node_id", format!("{} is not among cluster.peers", config.node_id));
    }
    if config.peers.keys().any(|id| i32::try_from(*id).is_err()) {
        return refuse("cluster.peers", "an id is larger than 2147483647".to_owned());
    }
    if config.shards == 0 || config.shards > 1024 {
        return refuse("cluster.shards", format!("{} is not within 1 ..= 1024", config.shards));
    }
    if config.scrub_bytes_per_second == 0 {
        return refuse("config.scrub_bytes_per_second", "must be at least 1".to_owned());
    }
    if config.replication == 0 {
        return refuse("cluster.replication", "must be at least 1".to_owned());
    }
    if config.heartbeat_interval * 2 > config.election_timeout_min {
        return refuse(
            "cluster.heartbeat_interval_ms",
            "must be at most half of cluster.election_timeout_min_ms".to_owned(),
        );
    }
    if config.election_timeout_min >= config.election_timeout_max {
        return refuse("cluster.election_timeout_min_ms", "must be below cluster.election_timeout_max_ms".to_owned());
    }
    Ok(())
}
