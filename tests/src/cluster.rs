//! A cluster of broker processes.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use lockstep_client::{Admin, Client, ClientConfig};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_runtime::{ClusterStatus, ShardStatus};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::binaries::{broker_binary, lockstep_binary};
use crate::wait::{PATIENCE, ShownOnPanic, wait_until, wait_until_ok};
use crate::{cli, free_port, http};

/// Shards of a cluster unless its configuration is changed: enough for each of three nodes to lead one.
pub const SHARDS: u16 = 3;
/// Lines of a log that are shown when a test fails.
const TAIL_LINES: usize = 60;
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Clusters that run at one time: a second one would only make both slow and late.
static TURN: Semaphore = Semaphore::const_new(1);

/// Broker processes, their directories and their ports. Nodes count from 1.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    directory: TempDir,
    _turn: SemaphorePermit<'static>,
}

#[derive(Debug)]
struct Node {
    id: u64,
    port: u16,
    http_port: u16,
    peer_port: u16,
    directory: PathBuf,
    process: Option<Child>,
}

impl Node {
    fn config_file(&self) -> PathBuf {
        self.directory.join("broker.json")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("broker.log")
    }

    fn error_file(&self) -> PathBuf {
        self.directory.join("stderr")
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().unwrap_or_else(|| panic!("node {} does not run", self.id));
        kill_process(Pid::from_child(process), signal).expect("the process can be signalled");
    }

    /// The end of what it logged; panics are there too.
    fn tail(&self) -> String {
        let lines_of = |path: &Path| {
            let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
            let lines: Vec<_> = text.lines().rev().take(TAIL_LINES).collect();
            lines.into_iter().rev().fold(String::new(), |text, line| text + line + "\n")
        };
        lines_of(&self.error_file())
    }
}

impl Cluster {
    /// Starts `count` nodes and waits until all of them serve, and lead what they are to lead.
    ///
    /// # Panics
    /// They do not come up within a minute.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, |_, _| {}).await
    }

    /// [`Cluster::start`] with configurations that `adapt` has changed; it gets each node's id and configuration.
    ///
    /// # Panics
    /// As [`Cluster::start`].
    pub async fn start_with(count: usize, adapt: impl Fn(u64, &mut Value)) -> Self {
        let turn = TURN.acquire().await.expect("nobody closes the semaphore");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let nodes: Vec<Node> = (1..=count as u64)
            .map(|id| Node {
                id,
                port: free_port(),
                http_port: free_port(),
                peer_port: free_port(),
                directory: directory.path().join(format!("node{id}")),
                process: None,
            })
            .collect();
        let peers: Vec<Value> = nodes
            .iter()
            .map(|node| json!({ "id": node.id, "address": format!("127.0.0.1:{}", node.peer_port) }))
            .collect();
        for node in &nodes {
            let mut config = json!({
                "server": {
                    "host": "127.0.0.1",
                    "port": node.port,
                    "http_port": node.http_port,
                    "log_file": node.log_file(),
                },
                "config": { "data_dir": node.directory.join("data"), "cache_bytes": 16 << 20 },
                "cluster": {
                    "enabled": true,
                    "node_id": node.id,
                    "raft_address": format!("127.0.0.1:{}", node.peer_port),
                    "data_dir": node.directory.join("raft"),
                    "peers": peers,
                    "shards": SHARDS,
                },
                "groups": {
                    "initial_rebalance_delay_ms": 0,
                    "session_timeout_ms": 6_000,
                    "heartbeat_interval_ms": 300,
                    "min_session_timeout_ms": 1_000,
                },
            });
            if cfg!(debug_assertions) {
                // Builds without optimisation, of which several may run at once, are not as quick as what they test is meant to be.
                config["cluster"]["heartbeat_interval_ms"] = json!(75);
                config["cluster"]["election_timeout_min_ms"] = json!(250);
                config["cluster"]["election_timeout_max_ms"] = json!(400);
            }
            adapt(node.id, &mut config);
            fs::create_dir_all(&node.directory).expect("the node's directory");
            fs::write(node.config_file(), config.to_string()).expect("the configuration file");
        }
        let mut cluster = Self { nodes, directory, _turn: turn };
        for id in 1..=count as u64 {
            cluster.restart(id);
        }
        cluster.wait_settled().await;
        cluster.wait_whole().await;
        cluster
    }

    fn node(&self, id: u64) -> &Node {
        &self.nodes[usize::try_from(id - 1).expect("nodes are few")]
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[usize::try_from(id - 1).expect("nodes are few")]
    }

    /// Ids of all nodes.
    pub fn ids(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.nodes.len() as u64
    }

    /// Where clients reach a node, `host:port`.
    pub fn address(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.node(id).port)
    }

    /// Where other nodes reach a node, `host:port`.
    pub fn peer_address(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.node(id).peer_port)
    }

    /// Where a node serves HTTP, `host:port`.
    pub fn http_address(&self, id: u64) -> String {
        format!("127.0.0.1:{}", self.node(id).http_port)
    }

    /// The node that clients reach under this address.
    ///
    /// # Panics
    /// There is none.
    pub fn node_at(&self, address: &str) -> u64 {
        let port = address.parse::<SocketAddr>().map(|address| address.port());
        let node = self.nodes.iter().find(|node| Ok(node.port) == port);
        node.unwrap_or_else(|| panic!("no node has the address {address}")).id
    }

    /// All addresses, separated by commas.
    pub fn brokers(&self) -> String {
        self.ids().map(|id| self.address(id)).collect::<Vec<_>>().join(",")
    }

    /// A directory for the test's own files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A node's configuration file.
    pub fn config_file(&self, id: u64) -> PathBuf {
        self.node(id).config_file()
    }

    /// Where a node keeps its partitions.
    pub fn data_dir(&self, id: u64) -> PathBuf {
        self.node(id).directory.join("data")
    }

    /// A client that knows all nodes.
    ///
    /// # Panics
    /// No node answers.
    pub async fn client(&self) -> Client {
        let config = ClientConfig { timeout: PATIENCE, ..ClientConfig::for_brokers(&self.brokers()) };
        Client::connect(TokioEnv::new(), config).await.expect("a broker answers")
    }

    /// Starts a node that does not run. Returns at once.
    ///
    /// # Panics
    /// It runs already.
    pub fn restart(&mut self, id: u64) {
        let node = self.node_mut(id);
        assert!(node.process.is_none(), "node {id} runs already");
        let error_file = OpenOptions::new().create(true).append(true).open(node.error_file()).expect("a file");
        let process = broker_command(&node.config_file()).stderr(error_file).spawn().expect("the broker starts");
        node.process = Some(process);
    }

    /// Ends a node's process at once, without a chance to write anything.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill9(&mut self, id: u64) {
        let node = self.node_mut(id);
        let mut process = node.process.take().unwrap_or_else(|| panic!("node {id} does not run"));
        process.kill().expect("the process can be killed");
        process.wait().expect("the process can be waited for");
    }

    /// Freezes a node: its connections stay open, nothing answers.
    ///
    /// # Panics
    /// It does not run.
    pub fn sigstop(&self, id: u64) {
        self.node(id).signal(Signal::STOP);
    }

    /// Lets a frozen node go on.
    ///
    /// # Panics
    /// It does not run.
    pub fn sigcont(&self, id: u64) {
        self.node(id).signal(Signal::CONT);
    }

    /// Asks a node to stop and waits until it has.
    ///
    /// # Panics
    /// It does not run, or does not stop.
    pub async fn sigterm(&mut self, id: u64) -> ExitStatus {
        self.node(id).signal(Signal::TERM);
        let node = std::cell::RefCell::new(self.node_mut(id));
        let status = wait_until(&format!("node {id} stops"), PATIENCE, || async {
            let mut node = node.borrow_mut();
            node.process.as_mut().and_then(|process| process.try_wait().expect("the process can be waited for"))
        })
        .await;
        self.node_mut(id).process = None;
        status
    }

    /// Removes all that a node has stored. It must not run.
    ///
    /// # Panics
    /// It runs.
    pub fn wipe(&mut self, id: u64) {
        let node = self.node(id);
        assert!(node.process.is_none(), "node {id} runs");
        for name in ["data", "raft"] {
            fs::remove_dir_all(node.directory.join(name)).expect("the directory can be removed");
        }
    }

    /// All that a node has logged since it was made.
    pub fn log(&self, id: u64) -> String {
        String::from_utf8_lossy(&fs::read(self.node(id).log_file()).unwrap_or_default()).into_owned()
    }

    /// The id of a node's process.
    ///
    /// # Panics
    /// It does not run.
    pub fn process_id(&self, id: u64) -> u32 {
        self.node(id).process.as_ref().unwrap_or_else(|| panic!("node {id} does not run")).id()
    }

    /// Memory that a node's process holds, in bytes.
    ///
    /// # Panics
    /// It does not run.
    pub fn resident_bytes(&self, id: u64) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process_id(id))).expect("the process's status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a running process has memory");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kilobytes * 1_024
    }

    /// Whether a node's process is still there.
    pub fn is_running(&mut self, id: u64) -> bool {
        self.node_mut(id).process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// GET from a node's HTTP side; `None` while it does not answer.
    pub async fn http_get(&self, id: u64, path: &str) -> Option<http::Response> {
        http::get(&self.http_address(id), path).await.ok()
    }

    /// The status that node `id` gathers; `None` while it cannot be asked.
    pub async fn status_from(&self, id: u64) -> Option<ClusterStatus> {
        let config = ClientConfig { timeout: STATUS_TIMEOUT, ..ClientConfig::for_brokers(&self.address(id)) };
        let client = Client::connect(TokioEnv::new(), config).await.ok()?;
        let status = Admin::new(&client).cluster_status().await.ok()?;
        serde_json::from_slice(&status).ok()
    }

    /// The status as any of the running nodes gathers it.
    pub async fn status(&self) -> Option<ClusterStatus> {
        for node in self.nodes.iter().filter(|node| node.process.is_some()) {
            if let Some(status) = self.status_from(node.id).await {
                return Some(status);
            }
        }
        None
    }

    /// Waits for a status that satisfies `condition`.
    ///
    /// # Panics
    /// There is none within a minute; the last one is shown.
    pub async fn wait_status(&self, what: &str, condition: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        let last = std::cell::RefCell::new(None);
        let shown = ShownOnPanic(&last);
        let status = wait_until(what, PATIENCE, || async {
            let status = self.status().await;
            let found = status.clone().filter(|status| condition(status));
            *last.borrow_mut() = status;
            found
        })
        .await;
        std::mem::forget(shown);
        status
    }

    /// Waits until every shard is led by the node that should have it, so that leadership stays where it is. One that lost its first election is
    /// given the shard only after some seconds, in the middle of what a test does by then.
    async fn wait_settled(&self) {
        let count = self.nodes.len() as u64;
        self.wait_status("every shard is led by the node that should lead it", |status| {
            // The nodes in turn.
            let is_settled = |shard: &ShardStatus| shard.leader == Some(u64::from(shard.id.0) % count + 1);
            !status.shards.is_empty() && status.shards.iter().all(is_settled)
        })
        .await;
    }

    /// Waits until every node is there, takes clients, and votes in every shard, and every shard has a leader.
    ///
    /// # Panics
    /// As [`Cluster::wait_status`].
    pub async fn wait_whole(&self) {
        let count = self.nodes.len();
        self.wait_status("every node is alive and votes, and every shard has a leader", |status| {
            status.nodes.len() == count
                && status.nodes.iter().all(|node| node.alive && !node.address.is_empty())
                && !status.shards.is_empty()
                && status.shards.iter().all(|shard| {
                    shard.leader.is_some()
                        && shard.voters.len() == count.min(3)
                        && shard.learners.is_empty()
                        && shard.role.values().filter(|role| *role == "leader").count() == 1
                })
        })
        .await;
        for id in self.ids() {
            wait_until("the node is ready", PATIENCE, || async {
                self.http_get(id, "/readyz").await.filter(|ready| ready.status == 200)
            })
            .await;
        }
    }

    /// Waits until the states of all nodes were equal at one log position in every shard.
    ///
    /// # Panics
    /// They do not come to be comparable, or differ.
    pub async fn wait_equal_digests(&self) {
        let count = self.nodes.len();
        let status = self
            .wait_status("every shard's digest is known on every node", |status| {
                status.shards.iter().all(|shard| shard.digest.len() == count)
            })
            .await;
        for shard in &status.shards {
            let digests: Vec<_> = shard.digest.values().collect();
            assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{shard:?} differs between nodes");
        }
    }

    /// Runs the command line against this cluster.
    ///
    /// # Panics
    /// It does not end within a minute.
    pub async fn lockstep(&self, arguments: &[&str], input: impl Into<Vec<u8>>) -> Output {
        self.lockstep_within(PATIENCE, arguments, input).await
    }

    /// The same for what may take longer.
    ///
    /// # Panics
    /// It does not end within `deadline`.
    pub async fn lockstep_within(&self, deadline: Duration, arguments: &[&str], input: impl Into<Vec<u8>>) -> Output {
        let brokers = self.brokers();
        let mut all = vec!["--brokers", &brokers];
        all.extend_from_slice(arguments);
        cli::run(lockstep_binary(), &all, input.into(), deadline).await
    }

    /// Runs the command line with `--json` and reads what it prints.
    ///
    /// # Panics
    /// It fails.
    pub async fn lockstep_json(&self, arguments: &[&str]) -> Value {
        self.lockstep_json_within(PATIENCE, arguments).await
    }

    /// The same for what may take longer.
    ///
    /// # Panics
    /// It fails.
    pub async fn lockstep_json_within(&self, deadline: Duration, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let printed = cli::stdout_of(&self.lockstep_within(deadline, &all, "").await);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error} in {printed}"))
    }

    /// The same again and again, until what it prints is as `condition` says.
    ///
    /// # Panics
    /// It fails, or does not come to that within a minute; the last that it printed is shown.
    pub async fn wait_lockstep_json(
        &self,
        what: &str,
        arguments: &[&str],
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        wait_until_ok(what, PATIENCE, || async {
            let printed = self.lockstep_json(arguments).await;
            if condition(&printed) { Ok(printed) } else { Err(printed) }
        })
        .await
    }
}

/// A broker with this configuration file, not started yet.
pub fn broker_command(config: &Path) -> Command {
    let mut command = Command::new(broker_binary());
    command.arg("--config").arg(config).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                // It may be gone already; all that counts is that it is.
                drop(process.kill());
                drop(process.wait());
            }
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("---- end of the log of node {} ----\n{}", node.id, node.tail());
            }
        }
    }
}
