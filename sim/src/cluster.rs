//! A cluster of simulated brokers that can be started, killed, wiped and restarted one by one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_broker::{Broker, BrokerConfig};
use lockstep_core::{NodeId, ShardId};
use lockstep_env::Env;
use lockstep_runtime::{Node, NodeConfig};
use madsim::runtime::{Handle, NodeHandle};
use serde::{Deserialize, Serialize};

use crate::env::SimEnv;
use crate::env::disk::{DiskOptions, SimDisk};
use crate::env::net::{LinkOptions, Network};
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
    /// Bytes of recent batches kept in memory.
    pub cache_bytes: u64,
    /// Session time-out of consumer groups.
    pub session_timeout_ms: u32,
    /// Heartbeat interval of consumer groups.
    pub heartbeat_interval_ms: u32,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            shards: 3,
            journal_file_bytes: 64 << 10,
            checkpoint_journal_bytes: 48 << 10,
            segment_bytes: 16 << 10,
            cache_bytes: 32 << 10,
            session_timeout_ms: 6_000,
            heartbeat_interval_ms: 500,
        }
    }
}

/// How a broker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Death {
    /// kill -9: the kernel keeps what it holds and closes the connections.
    Process,
    /// Power cut: what was not synced is at stake, and nobody is told.
    Power,
}

/// Simulated brokers on one network. Cheap to clone: faults that overlap share it.
#[derive(Clone)]
pub struct Cluster {
    options: ClusterOptions,
    network: Network,
    hosts: Arc<Mutex<BTreeMap<NodeId, Host>>>,
    clients: Arc<Mutex<BTreeMap<String, (SimEnv, NodeHandle)>>>,
}

struct Host {
    name: String,
    disk: SimDisk,
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
            Host { disk: SimDisk::new(&name, disk, trace.clone()), name, running: None }
        };
        let hosts = (1..=options.nodes).map(|id| (id, host(id))).collect();
        Self { options, network, hosts: Arc::new(Mutex::new(hosts)), clients: Arc::default() }
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
        self.hosts()[&id].disk.clone()
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
        node.journal_file_bytes = options.journal_file_bytes;
        node.checkpoint_journal_bytes = options.checkpoint_journal_bytes;
        node.segment_bytes = options.segment_bytes;
        node.cache_bytes = options.cache_bytes;
        let mut config = BrokerConfig::new(node);
        config.host = self.host(id);
        config.port = CLIENT_PORT;
        config.topics.partitions = 3;
        config.groups.initial_rebalance_delay_ms = 0;
        config.groups.session_timeout_ms = options.session_timeout_ms;
        config.groups.heartbeat_interval_ms = options.heartbeat_interval_ms;
        config
    }

    /// Boots a host that is down; returns at once.
    pub fn start(&self, id: NodeId) {
        let config = self.config(id);
        let network = self.network.clone();
        let mut hosts = self.hosts();
        let Some(host) = hosts.get_mut(&id) else { return };
        assert!(host.running.is_none(), "{} runs already", host.name);
        network.host_up(&host.name);
        let machine = Handle::current().create_node().name(host.name.clone()).build();
        let env = SimEnv::new(&host.name, &network, host.disk.clone());
        let broker = Arc::new(Mutex::new(Start::Under));
        let (starting, boot_env, name) = (broker.clone(), env.clone(), host.name.clone());
        machine.spawn(async move {
            let trace = boot_env.trace().clone();
            let outcome = match Broker::start(boot_env, config).await {
                Ok(broker) => {
                    trace.event(&name, "serving");
                    Start::Serving(broker)
                }
                Err(error) => {
                    trace.event(&name, format!("does not start: {error}"));
                    Start::Failed(error.to_string())
                }
            };
            *starting.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
        });
        host.running = Some(Running { machine, env, broker, stopping: false });
    }

    /// Kills a broker that runs. Its disk is ready for the next life when this returns.
    pub fn kill(&self, id: NodeId, death: Death) {
        let mut hosts = self.hosts();
        let Some(host) = hosts.get_mut(&id) else { return };
        let Some(running) = host.running.take() else { return };
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
        self.hosts()[&id].running.is_some()
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
        let running = hosts[&id].running.as_ref()?;
        match &*running.broker.lock().unwrap_or_else(PoisonError::into_inner) {
            Start::Serving(broker) => Some(broker.clone()),
            Start::Under | Start::Failed(_) => None,
        }
    }

    /// Why a broker that was started does not serve.
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
        Some(self.hosts()[&id].running.as_ref()?.env.clone())
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
                (SimEnv::new(name, network, disk), machine)
            })
            .clone()
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

    /// Does every shard have a leader that serves?
    #[must_use]
    pub fn all_led(&self) -> bool {
        let nodes: Vec<Node<SimEnv>> = self.ids().into_iter().filter_map(|id| self.node(id)).collect();
        (0..self.options.shards).all(|shard| {
            nodes.iter().any(|node| node.shard(ShardId(shard)).is_some_and(|shard| shard.serving().is_ok()))
        })
    }

    /// The node that leads a shard and may serve, if there is one.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.ids()
            .into_iter()
            .find(|id| self.node(*id).and_then(|node| node.shard(shard)).is_some_and(|shard| shard.serving().is_ok()))
    }

    /// Does this node vote in every shard, with the disk that it has now, as every broker that is up knows? Then the cluster can do without
    /// one of the others.
    #[must_use]
    pub fn votes_everywhere(&self, id: NodeId) -> bool {
        let Some(incarnation) = self.node(id).map(|node| node.incarnation()) else { return false };
        let nodes: Vec<Node<SimEnv>> = self.ids().into_iter().filter_map(|id| self.node(id)).collect();
        (0..self.options.shards).map(ShardId).all(|shard| {
            self.leader(shard).is_some()
                && nodes
                    .iter()
                    .filter_map(|node| node.voters(shard))
                    .all(|voters| voters.get(&id) == Some(&incarnation))
        })
    }
}
