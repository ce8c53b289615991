//! A cluster of simulated brokers that can be started, killed, wiped and restarted one by one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_broker::{Broker, BrokerConfig};
use lockstep_core::{NodeId, ShardId};
use lockstep_env::{Env, Step};
use lockstep_runtime::{Durability, Node, NodeConfig};
use madsim::runtime::{Handle, NodeHandle};
use madsim::task::JoinHandle;
use serde::{Deserialize, Serialize};

use crate::env::SimEnv;
use crate::env::clock::HostClock;
use crate::env::crash::{Cause, CrashPoints, TrapId};
pub use crate::env::crash::{Death, Fall};
use crate::env::disk::{DiskOptions, Flip, SimDisk};
use crate::env::net::{BlockId, LinkOptions, Network};
use crate::env::trace::Trace;

/// Port on which every simulated broker serves clients.
const CLIENT_PORT: u16 = 9092;
/// Port on which every simulated broker serves its peers.
const PEER_PORT: u16 = 8091;

/// What a cluster is like. Sizes are small, so that files roll, checkpoints happen and snapshots are installed within seconds.
#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    /// Brokers.
    pub nodes: u64,
    /// Shards.
    pub shards: u16,
    /// Size of a journal file.
    pub journal_file_bytes: u64,
    /// Journal bytes of a shard between checkpoints.
    pub checkpoint_journal_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// How often it is looked for records that are to be deleted.
    pub retention_check_interval: Duration,
    /// How often it is looked for what can be compacted.
    pub compaction_check_interval: Duration,
    /// How often every segment is compared with its checksum.
    pub scrub_interval: Duration,
    /// Bytes of recent batches kept in memory.
    pub cache_bytes: u64,
    /// Session time-out of consumer groups.
    pub session_timeout_ms: u32,
    /// Heartbeat interval of consumer groups.
    pub heartbeat_interval_ms: u32,
    /// Heartbeats and elections of Raft.
    pub timing: Timing,
    /// When entries are acknowledged.
    pub durability: Durability,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            shards: 3,
            journal_file_bytes: 64 << 10,
            checkpoint_journal_bytes: 48 << 10,
            segment_bytes: 1_200,
            retention_check_interval: Duration::from_millis(400),
            compaction_check_interval: Duration::from_millis(300),
            scrub_interval: Duration::from_secs(1),
            cache_bytes: 32 << 10,
            session_timeout_ms: 2_000,
            heartbeat_interval_ms: 500,
            timing: Timing::default(),
            durability: Durability::Fsync,
        }
    }
}

/// How soon brokers notice that a leader is gone, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Between two heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for this long may stand for election.
    pub election_min_ms: u64,
    /// A follower that hears nothing for this long does. A leader's lease is four fifths of it.
    pub election_max_ms: u64,
}

impl Default for Timing {
    /// Longer than in production, so that what is to come within a lease, such as a step of a fault, has room.
    fn default() -> Self {
        Self { heartbeat_ms: 75, election_min_ms: 250, election_max_ms: 400 }
    }
}

impl Timing {
    /// What brokers have unless they are told otherwise.
    #[must_use]
    pub fn shipped() -> Self {
        let config = NodeConfig::new(1, BTreeMap::new(), PathBuf::new(), PathBuf::new());
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            heartbeat_ms: ms(config.heartbeat_interval),
            election_min_ms: ms(config.election_timeout_min),
            election_max_ms: ms(config.election_timeout_max),
        }
    }
}

/// Files in which nothing is written any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtRest {
    /// A partition's segments, but for the last one of each.
    Segment,
    /// The indexes of such segments. They can be made again.
    Index,
    /// The journal's files, but for the last batch of the newest.
    Journal,
    /// The checkpoints.
    Checkpoint,
}

/// Simulated brokers on one network. Cheap to clone: faults that overlap share it.
#[derive(Clone)]
pub struct Cluster {
    options: ClusterOptions,
    network: Network,
    crash_points: CrashPoints,
    hosts: Arc<Mutex<BTreeMap<NodeId, Host>>>,
    clients: Arc<Mutex<BTreeMap<String, (SimEnv, NodeHandle)>>>,
    damaged: Arc<Mutex<Vec<DamagedSegment>>>,
}

/// A byte of a segment file that was changed on a disk.
struct DamagedSegment {
    node: NodeId,
    path: PathBuf,
    at: u64,
    byte: Option<u8>,
}

struct Host {
    name: String,
    disk: SimDisk,
    clock: HostClock,
    /// Also after it died by itself, until it is started again.
    running: Option<Running>,
}

struct Running {
    machine: NodeHandle,
    env: SimEnv,
    broker: Arc<Mutex<Start>>,
    /// It was told to stop.
    stopping: bool,
}

enum Start {
    Under,
    Serving(Broker<SimEnv>),
    Failed(String),
}

impl Cluster {
    /// Hosts with empty disks, none running. To be called inside a simulation.
    #[must_use]
    pub fn new(options: ClusterOptions, link: LinkOptions, disk: DiskOptions) -> Self {
        let trace = Trace::default();
        let network = Network::new(link, trace.clone());
        let host = |id| {
            let name = format!("n{id}");
            let clock = HostClock::new(trace.started_at());
            Host { disk: SimDisk::new(&name, disk, trace.clone()), name, clock, running: None }
        };
        let hosts = (1..=options.nodes).map(|id| (id, host(id))).collect();
        Self {
            options,
            network,
            crash_points: CrashPoints::default(),
            hosts: Arc::new(Mutex::new(hosts)),
            clients: Arc::default(),
            damaged: Arc::default(),
        }
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<NodeId, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was made with.
    #[must_use]
    pub fn options(&self) -> &ClusterOptions {
        &self.options
    }

    /// The links.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What happened so far.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        self.network.trace()
    }

    /// All node ids.
    #[must_use]
    pub fn ids(&self) -> Vec<NodeId> {
        self.hosts().keys().copied().collect()
    }

    /// A node's host name.
    #[must_use]
    pub fn host(&self, id: NodeId) -> String {
        self.hosts()[&id].name.clone()
    }

    /// A node's disk, also while it is down.
    #[must_use]
    pub fn disk(&self, id: NodeId) -> SimDisk {
        self.hosts()[&id].disk.boot()
    }

    /// A node's clocks, also while it is down. Those of a client are its environment's ([`SimEnv::clock`]).
    #[must_use]
    pub fn clock(&self, id: NodeId) -> HostClock {
        self.hosts()[&id].clock.clone()
    }

    /// Kills a node (`None`: whichever it is) when it comes to `step` for the `nth` time from now on, 1 being the next time: nothing
    /// that it does afterwards has an effect. Who fell is told by [`Cluster::crash_points`]; the node is down then and may be started.
    pub fn arm(&self, node: Option<NodeId>, step: Step, nth: u64, death: Death) -> TrapId {
        let host = node.map(|id| self.host(id));
        let whom = host.as_deref().unwrap_or("whoever comes");
        self.trace().event("faults", format!("{whom} is to die ({death:?}) at {step:?} number {nth}"));
        self.crash_points.arm(host.as_deref(), step, nth, death)
    }

    /// The traps, and who died by itself: at a trap, or because the broker gave up or could not start, where in production the process
    /// ends.
    #[must_use]
    pub fn crash_points(&self) -> &CrashPoints {
        &self.crash_points
    }

    /// The node with this host name.
    #[must_use]
    pub fn id_of(&self, host: &str) -> Option<NodeId> {
        self.hosts().iter().find(|(_, it)| it.name == host).map(|(id, _)| *id)
    }

    /// Lets every node reach a majority, and no two the same one; see [`Network::ring`].
    pub fn ring(&self) -> Vec<BlockId> {
        let hosts: Vec<String> = self.hosts().values().map(|host| host.name.clone()).collect();
        self.network.ring(&hosts.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Flips a bit of one of a node's files of this kind, in a place drawn from the seed; where, unless there is none.
    pub fn flip_bit(&self, id: NodeId, kind: AtRest) -> Option<(PathBuf, u64)> {
        self.flip_bit_of(id, kind, |_| true)
    }

    fn flip_bit_of(&self, id: NodeId, kind: AtRest, is_in: impl Fn(&Path) -> bool) -> Option<(PathBuf, u64)> {
        let disk = self.disk(id);
        let paths = disk.paths();
        let has_extension = |path: &Path, wanted: &str| path.extension().is_some_and(|extension| extension == wanted);
        // Paths ascend, and names in a directory with the offset or the generation that they begin with.
        let is_last_of_its_kind = |path: &Path| {
            let alike = |other: &&PathBuf| other.parent() == path.parent() && other.extension() == path.extension();
            paths.iter().rfind(alike).is_none_or(|last| last == path)
        };
        disk.flip_bit(|path| {
            if !is_in(path) {
                return None;
            }
            let is_chosen = match kind {
                AtRest::Segment => has_extension(path, "log") && !is_last_of_its_kind(path),
                AtRest::Index => has_extension(path, "index") && !is_last_of_its_kind(&path.with_extension("log")),
                // At the end of the newest one damage cannot be told from a write that power cut short.
                AtRest::Journal if is_last_of_its_kind(path) => {
                    return has_extension(path, "journal").then_some(Flip::BeforeLastWrite);
                }
                AtRest::Journal => has_extension(path, "journal"),
                AtRest::Checkpoint => {
                    path.parent().is_some_and(|parent| parent.ends_with("checkpoints")) && path.extension().is_none()
                }
            };
            is_chosen.then_some(Flip::Anywhere)
        })
    }

    /// Flips a bit of a closed segment of a node, which is to find and repair it by itself; `false` when there is none. With a shard: of one of its segments.
    /// Another node has the same segment: the last copy there is would be beyond repair.
    #[must_use]
    pub fn damage_segment(&self, id: NodeId, shard: Option<ShardId>) -> bool {
        let directory = shard.map(|shard| shard.to_string());
        let own = self.disk(id).files();
        let others: Vec<_> = self.ids().into_iter().filter(|it| *it != id).map(|it| self.disk(it).files()).collect();
        // What lies beside the segments is of no use to anybody: files of compactions before they take effect, and those that they replaced.
        let in_use = self.segment_files(id);
        let may_be_damaged = |path: &Path| {
            if in_use.as_ref().is_some_and(|files| !files.iter().any(|file| path.ends_with(file))) {
                return false;
            }
            let is_in = |directory: &str| path.components().any(|part| part.as_os_str() == directory);
            directory.as_deref().is_none_or(is_in) && others.iter().any(|files| files.get(path) == own.get(path))
        };
        let Some((path, at)) = self.flip_bit_of(id, AtRest::Segment, may_be_damaged) else { return false };
        let byte = self.disk(id).byte(&path, at);
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.push(DamagedSegment { node: id, path, at, byte });
        true
    }

    /// The files that a node's logs consist of, as far as it can be asked: directory of the partition and name.
    fn segment_files(&self, id: NodeId) -> Option<Vec<PathBuf>> {
        let node = self.node(id)?;
        let mut files = Vec::new();
        for shard in node.shards() {
            for (topic, partition, _) in shard.read(|state| state.partitions()) {
                let directory = PathBuf::from(format!("{topic}-{partition}"));
                let entries = shard.segments(topic, partition);
                files.extend(entries.iter().map(|entry| directory.join(entry.name.log_file())));
            }
        }
        Some(files)
    }

    /// Is every damaged segment whole again, or gone, on the nodes that are up?
    #[must_use]
    pub fn all_whole(&self) -> bool {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.retain(|it| self.disk(it.node).byte(&it.path, it.at) == it.byte);
        damaged.iter().all(|it| !self.is_up(it.node))
    }

    /// Two copies of a segment that differ, though both are up and nothing damaged them: the first found.
    #[must_use]
    pub fn differing_copies(&self) -> Option<String> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen: BTreeMap<PathBuf, Vec<(NodeId, Vec<u8>)>> = BTreeMap::new();
        for id in self.ids().into_iter().filter(|id| self.broker(*id).is_some()) {
            let mut files = self.disk(id).files();
            files.retain(|path, _| {
                path.starts_with("data") && path.extension().is_some_and(|extension| extension == "log")
            });
            for (path, content) in files {
                let copies = seen.entry(path.clone()).or_default();
                for (other, known) in &*copies {
                    let is_excused = |at: usize| {
                        damaged
                            .iter()
                            .any(|it| it.path == path && it.at == at as u64 && [id, *other].contains(&it.node))
                    };
                    let bytes = content.iter().zip(known).enumerate();
                    if let Some((at, _)) = bytes.into_iter().find(|(at, (one, two))| one != two && !is_excused(*at)) {
                        return Some(format!("{} differs between nodes {other} and {id} at {at}", path.display()));
                    }
                }
                copies.push((id, content));
            }
        }
        None
    }

    /// Where clients reach the brokers.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.hosts().values().map(|host| format!("{}:{CLIENT_PORT}", host.name)).collect()
    }

    fn config(&self, id: NodeId) -> BrokerConfig {
        let peers = self.hosts().iter().map(|(id, host)| (*id, format!("{}:{PEER_PORT}", host.name))).collect();
        let options = self.options;
        let mut node = NodeConfig::new(id, peers, PathBuf::from("raft"), PathBuf::from("data"));
        node.shards = options.shards;
        node.heartbeat_interval = Duration::from_millis(options.timing.heartbeat_ms);
        node.election_timeout_min = Duration::from_millis(options.timing.election_min_ms);
        node.election_timeout_max = Duration::from_millis(options.timing.election_max_ms);
        node.journal_file_bytes = options.journal_file_bytes;
        node.checkpoint_journal_bytes = options.checkpoint_journal_bytes;
        node.segment_bytes = options.segment_bytes;
        node.retention_check_interval = options.retention_check_interval;
        node.compaction_check_interval = options.compaction_check_interval;
        // Segments are short here: the pace hardly shows.
        node.fetch_bytes_per_second = 64 << 20;
        node.scrub_interval = options.scrub_interval;
        node.durability = options.durability;
        node.cache_bytes = options.cache_bytes;
        let mut config = BrokerConfig::new(node);
        config.host = self.host(id);
        config.port = CLIENT_PORT;
        config.topics.partitions = 3;
        config.groups.initial_rebalance_delay_ms = 0;
        config.groups.session_timeout_ms = options.session_timeout_ms;
        config.groups.session_timeout_min_ms = options.session_timeout_ms;
        config.groups.heartbeat_interval_ms = options.heartbeat_interval_ms;
        config
    }

    /// Boots a host that is down; returns at once.
    pub fn start(&self, id: NodeId) {
        let config = self.config(id);
        let network = self.network.clone();
        let mut hosts = self.hosts();
        let Some(host) = hosts.get_mut(&id) else { return };
        if let Some(running) = &host.running {
            running.env.finish_fall();
            assert!(!running.env.is_alive(), "{} runs already", host.name);
        }
        host.disk = host.disk.boot();
        network.host_up(&host.name);
        let machine = Handle::current().create_node().name(host.name.clone()).build();
        let env = SimEnv::on_machine(
            &host.name,
            &network,
            host.disk.clone(),
            host.clock.clone(),
            self.crash_points.clone(),
            machine.id(),
        );
        let broker = Arc::new(Mutex::new(Start::Under));
        let (starting, boot_env, name) = (broker.clone(), env.clone(), host.name.clone());
        machine.spawn(async move {
            let trace = boot_env.trace().clone();
            let now_is = |state| *starting.lock().unwrap_or_else(PoisonError::into_inner) = state;
            let reason = match Broker::start(boot_env.clone(), config).await {
                Ok(broker) => {
                    trace.event(&name, "serving");
                    now_is(Start::Serving(broker.clone()));
                    broker.failed().await
                }
                Err(error) => {
                    trace.event(&name, format!("does not start: {error}"));
                    error.to_string()
                }
            };
            now_is(Start::Failed(reason.clone()));
            boot_env.fall(Cause::Failed(reason), Death::Process);
        });
        host.running = Some(Running { machine, env, broker, stopping: false });
    }

    /// Kills a broker that runs. Its disk is ready for the next life when this returns.
    pub fn kill(&self, id: NodeId, death: Death) {
        let mut hosts = self.hosts();
        let Some(host) = hosts.get_mut(&id) else { return };
        let Some(running) = host.running.take() else { return };
        if !running.env.is_alive() {
            running.env.finish_fall();
            return;
        }
        self.network.host_down(&host.name, death == Death::Power);
        Handle::current().kill(running.machine.id());
        host.disk = host.disk.reboot(death == Death::Power);
    }

    /// Ends all brokers and clients, and with them what they hold: a task that waits for nothing more would otherwise
    /// outlive the simulation.
    pub async fn end(self) {
        for id in self.ids() {
            self.kill(id, Death::Process);
        }
        let clients = std::mem::take(&mut *self.clients.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, machine) in clients.into_values() {
            Handle::current().kill(machine.id());
        }
        // Killed tasks are dropped when their turn comes.
        SimEnv::sleep(Duration::from_millis(1)).await;
    }

    /// Stops a broker as SIGTERM does, and waits until it has stopped.
    pub async fn stop(&self, id: NodeId) {
        if let Some(broker) = self.broker(id) {
            let machine = self.hosts().get_mut(&id).and_then(|host| host.running.as_mut()).map(|running| {
                running.stopping = true;
                running.machine.spawn(async move { broker.shutdown().await })
            });
            if let Some(stopping) = machine {
                let _ = stopping.await;
            }
        }
        self.kill(id, Death::Process);
    }

    /// Runs a task on a broker's machine, by its clock; it ends with the machine. `None`: the broker does not serve.
    pub fn spawn_on<F>(&self, id: NodeId, task: impl FnOnce(Node<SimEnv>) -> F) -> Option<JoinHandle<F::Output>>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let node = self.node(id)?;
        let hosts = self.hosts();
        let running = hosts.get(&id)?.running.as_ref()?;
        Some(running.machine.spawn(task(node)))
    }

    /// Freezes a broker as SIGSTOP does.
    pub fn pause(&self, id: NodeId) {
        if let Some(Host { name, running: Some(running), .. }) = self.hosts().get(&id) {
            self.trace().event(name, "paused");
            Handle::current().pause(running.machine.id());
        }
    }

    /// Lets a frozen broker go on.
    pub fn resume(&self, id: NodeId) {
        if let Some(Host { name, running: Some(running), .. }) = self.hosts().get(&id) {
            self.trace().event(name, "goes on");
            Handle::current().resume(running.machine.id());
        }
    }

    /// Is the host up?
    #[must_use]
    pub fn is_up(&self, id: NodeId) -> bool {
        self.hosts()[&id].running.as_ref().is_some_and(|running| running.env.is_alive())
    }

    /// Was it told to stop, as SIGTERM does, and has not yet?
    #[must_use]
    pub fn is_stopping(&self, id: NodeId) -> bool {
        self.hosts()[&id].running.as_ref().is_some_and(|running| running.stopping)
    }

    /// The broker, once it serves.
    #[must_use]
    pub fn broker(&self, id: NodeId) -> Option<Broker<SimEnv>> {
        let hosts = self.hosts();
        let running = hosts[&id].running.as_ref().filter(|running| running.env.is_alive())?;
        match &*running.broker.lock().unwrap_or_else(PoisonError::into_inner) {
            Start::Serving(broker) => Some(broker.clone()),
            Start::Under | Start::Failed(_) => None,
        }
    }

    /// The shards that have stopped on a node, or will with their next entry, while the node goes on, as after a broken invariant, or an error of the disk that it is about to give up over. In production
    /// it takes a restart until they run there again.
    #[must_use]
    pub fn stopped_shards(&self, id: NodeId) -> Vec<ShardId> {
        let shards = self.node(id).map(|node| node.shards()).unwrap_or_default();
        shards.iter().filter(|shard| shard.stopped().is_some()).map(|shard| shard.id()).collect()
    }

    /// Is a node sure that it has all that it acknowledged in an earlier life?
    #[must_use]
    pub fn is_sure(&self, id: NodeId) -> bool {
        self.node(id).is_some_and(|node| node.shards_in_doubt().is_empty())
    }

    /// Why a broker that was started does not serve: it could not start, or it gave up.
    #[must_use]
    pub fn start_error(&self, id: NodeId) -> Option<String> {
        let hosts = self.hosts();
        let running = hosts[&id].running.as_ref()?;
        match &*running.broker.lock().unwrap_or_else(PoisonError::into_inner) {
            Start::Failed(error) => Some(error.clone()),
            Start::Under | Start::Serving(_) => None,
        }
    }

    /// The node beneath the broker, once it serves.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<Node<SimEnv>> {
        Some(self.broker(id)?.node().clone())
    }

    /// A broker's environment, while the host is up.
    #[must_use]
    pub fn env(&self, id: NodeId) -> Option<SimEnv> {
        Some(self.hosts()[&id].running.as_ref().filter(|running| running.env.is_alive())?.env.clone())
    }

    /// A machine of a client's own, on which its tasks run.
    pub fn client(&self, name: &str) -> (SimEnv, NodeHandle) {
        let network = &self.network;
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.to_owned())
            .or_insert_with(|| {
                let disk = SimDisk::new(name, DiskOptions::default(), network.trace().clone());
                let machine = Handle::current().create_node().name(name).build();
                let clock = HostClock::new(network.trace().started_at());
                let env = SimEnv::on_machine(name, network, disk, clock, self.crash_points.clone(), machine.id());
                (env, machine)
            })
            .clone()
    }

    /// The hosts of all clients.
    #[must_use]
    pub fn client_names(&self) -> Vec<String> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Waits until `condition` holds, at most `patience`; `false` when it never did.
    pub async fn wait_until(&self, patience: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let deadline = SimEnv::now() + patience;
        while !condition(self) {
            if SimEnv::now() >= deadline {
                return false;
            }
            SimEnv::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Every shard.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.options.shards).map(ShardId)
    }

    /// Does every shard have a leader that serves?
    #[must_use]
    pub fn all_led(&self) -> bool {
        self.shards().all(|shard| self.leader(shard).is_some())
    }

    /// The nodes that would answer for a shard now, each by its own clock. Two at a time are one too many.
    #[must_use]
    pub fn serving(&self, shard: ShardId) -> Vec<NodeId> {
        let serves = |node: &Node<SimEnv>| node.shard(shard).is_some_and(|shard| shard.serving().is_ok());
        self.ids().into_iter().filter(|id| self.ask(*id, serves).is_some_and(|serves| serves)).collect()
    }

    /// Looks into a node that serves, going by that node's clock: what it knows is compared with its own present.
    pub fn ask<R>(&self, id: NodeId, ask: impl FnOnce(&Node<SimEnv>) -> R) -> Option<R> {
        let node = self.node(id)?;
        Some(self.clock(id).act(|| ask(&node)))
    }

    /// The node that leads a shard and may serve, if there is one.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.serving(shard).first().copied()
    }

    /// Does this node vote in every shard that it is to hold, with the disk that it has now, as every broker that is up knows? Then the
    /// cluster can do without one of the others.
    #[must_use]
    pub fn votes_everywhere(&self, id: NodeId) -> bool {
        let Some(incarnation) = self.node(id).map(|node| node.incarnation()) else { return false };
        let nodes: Vec<Node<SimEnv>> = self.ids().into_iter().filter_map(|id| self.node(id)).collect();
        self.shards().all(|shard| {
            self.leader(shard).is_some()
                && nodes
                    .iter()
                    .filter(|node| node.replicas(shard).contains(&id))
                    .filter_map(|node| node.voters(shard))
                    .all(|voters| voters.get(&id) == Some(&incarnation))
        })
    }
}
