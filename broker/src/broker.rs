//! The broker: a node, a listener, and what the handlers share.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::NodeId;
use lockstep_env::{Env, Listener, Task};
use lockstep_runtime::{Node, StartError as NodeStartError};

use crate::answer_room::AnswerRoom;
use crate::api::fetch_session::FetchSessions;
use crate::config::BrokerConfig;
use crate::connection;
use crate::connection_limits::ConnectionLimits;
use crate::http;
use crate::metrics::Metrics;
use crate::stop::StopSignal;

/// Answers that are lists have room for this part of what records have.
const LIST_SHARE: usize = 2;
/// How long requests under way may take to be answered when the broker stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a broker did not start, on one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port for clients cannot be listened on.
    #[error("server.port: cannot listen on {address}: {source}")]
    Listen {
        /// Address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The port of the HTTP side cannot be listened on.
    #[error("server.http_port: cannot listen on {address}: {source}")]
    ListenHttp {
        /// Address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The node did not start.
    #[error(transparent)]
    Node(#[from] NodeStartError),
}

impl StartError {
    /// The error on one line that begins with the configuration's field to look at, and says what to do where files are damaged.
    #[must_use]
    pub fn naming_field(&self, config: &BrokerConfig) -> String {
        let field_of = |path: &str| {
            let path = Path::new(path);
            // In single mode both lie under `config.data_dir`.
            if !config.is_single() && path.starts_with(&config.node.raft_dir) {
                "cluster.data_dir"
            } else {
                "config.data_dir"
            }
        };
        let field = match self {
            // These say it themselves.
            Self::Listen { .. } | Self::ListenHttp { .. } | Self::Node(NodeStartError::Config { .. }) => {
                return self.to_string();
            }
            Self::Node(
                NodeStartError::DirectoryInUse { path }
                | NodeStartError::ForeignDirectory { path, .. }
                | NodeStartError::Damaged { path, .. }
                | NodeStartError::Io { path, .. },
            ) => field_of(path),
            Self::Node(NodeStartError::Listen { .. }) => "cluster.raft_address",
            Self::Node(NodeStartError::Raft(_)) => "cluster",
        };
        match self {
            Self::Node(NodeStartError::Damaged { .. }) => format!("{field}: {self}. {}", way_out(config)),
            _ => format!("{field}: {self}"),
        }
    }
}

/// What an operator can do about damaged files of a node. It does nothing by itself: the files may be all there is.
fn way_out(config: &BrokerConfig) -> String {
    let node = &config.node;
    // In single mode both lie under one directory.
    let directories = match node.raft_dir.parent() {
        Some(parent) if config.is_single() => vec![parent],
        _ => vec![node.raft_dir.as_path(), node.data_dir.as_path()],
    };
    let aside = |directory: &&Path| {
        // Without a slash at the end, behind which the new name would be within the directory.
        let directory: PathBuf = directory.components().collect();
        format!("mv '{0}' '{0}.damaged'", directory.display())
    };
    let aside = directories.iter().map(aside).collect::<Vec<_>>().join(" && ");
    // Two others must hold everything, and be able to decide without this node.
    let copies = node.peers.len().min(usize::from(node.replication));
    if copies >= 3 {
        format!(
            "The other nodes have what was here: once all of them run, `{aside}`, and start this one again. Never do so with a second node before the first is whole again"
        )
    } else {
        format!(
            "The other nodes cannot make up for it, with fewer than three copies of everything: put back a backup, or give up what only this node has with `{aside}`"
        )
    }
}

/// A running broker. Cheap to clone; it runs until [`Broker::shutdown`].
pub struct Broker<E: Env> {
    shared: Arc<Shared<E>>,
}

impl<E: Env> Clone for Broker<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<E: Env> std::fmt::Debug for Broker<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

struct Shared<E: Env> {
    env: E,
    node: Node<E>,
    config: BrokerConfig,
    address: String,
    /// Where the HTTP side listens.
    http_address: Option<String>,
    limits: ConnectionLimits,
    records_room: AnswerRoom,
    lists_room: AnswerRoom,
    metrics: Metrics,
    stop: StopSignal,
    /// Given last: the HTTP side tells that the broker stops for as long as it does.
    stop_http: StopSignal,
    accepting: Mutex<Option<E::Task<()>>>,
    fetch_sessions: Mutex<FetchSessions>,
}

impl<E: Env> Broker<E> {
    /// Listens for clients, starts the node and begins to serve. Returns without waiting for a leader.
    pub async fn start(env: E, mut config: BrokerConfig) -> Result<Self, StartError> {
        let address = join_address(&config.host, config.port);
        // The port is taken first: the node registers it in the directory, and with port 0 it is known only now.
        let (listener, port) = listen(&env, &address, config.port)
            .await
            .map_err(|source| StartError::Listen { address: address.clone(), source })?;
        let address = join_address(&config.host, port);
        let http_listener = match config.http_port {
            Some(port) => {
                let address = join_address(http::HOST, port);
                let (listener, port) = listen(&env, &address, port)
                    .await
                    .map_err(|source| StartError::ListenHttp { address: address.clone(), source })?;
                Some((listener, join_address(http::HOST, port)))
            }
            None => None,
        };
        config.node.advertised_host = advertised_host(&config);
        config.node.advertised_port = config.advertised_port.unwrap_or(port);
        let node = Node::start(env.clone(), config.node.clone()).await?;
        tracing::info!(
            node = config.node.node_id,
            address,
            advertised = join_address(&config.node.advertised_host, config.node.advertised_port),
            http = http_listener.as_ref().map(|(_, address)| address),
            "broker serves clients"
        );

        let limits = ConnectionLimits::new(&config);
        let records_room = AnswerRoom::new(config.answer_bytes_max);
        let lists_room = AnswerRoom::new(config.answer_bytes_max / LIST_SHARE);
        let (http_listener, http_address) = http_listener.unzip();
        let broker = Self {
            shared: Arc::new(Shared {
                env,
                node,
                config,
                address,
                http_address,
                limits,
                records_room,
                lists_room,
                metrics: Metrics::new(),
                stop: StopSignal::new(),
                stop_http: StopSignal::new(),
                accepting: Mutex::new(None),
                fetch_sessions: Mutex::new(FetchSessions::default()),
            }),
        };
        let accepting = E::spawn(connection::accept(broker.clone(), listener));
        *lock(&broker.shared.accepting) = Some(accepting);
        if let Some(listener) = http_listener {
            drop(E::spawn(http::serve(broker.clone(), listener, broker.shared.stop_http.clone())));
        }
        Ok(broker)
    }

    /// Where it listens for clients, as `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.shared.address.clone()
    }

    /// Where the HTTP side listens (`/metrics`, `/healthz`, `/readyz`), as `host:port`, if there is one.
    #[must_use]
    pub fn http_address(&self) -> Option<String> {
        self.shared.http_address.clone()
    }

    /// The node beneath.
    #[must_use]
    pub fn node(&self) -> &Node<E> {
        &self.shared.node
    }

    /// The configuration it was started with.
    #[must_use]
    pub fn config(&self) -> &BrokerConfig {
        &self.shared.config
    }

    /// The outside world.
    #[must_use]
    pub fn env(&self) -> &E {
        &self.shared.env
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.limits.connections()
    }

    /// Completes when the broker cannot go on, with the reason.
    pub async fn failed(&self) -> String {
        self.shared.node.failed().await
    }

    /// Stops accepting, hands leadership over, answers what is under way, and stops the node.
    pub async fn shutdown(&self) {
        self.shared.stop.give();
        let accepting = lock(&self.shared.accepting).take();
        if let Some(task) = accepting {
            task.abort();
        }
        self.shared.node.shutdown().await;
        if lockstep_env::timeout::<E, _>(DRAIN_TIMEOUT, self.shared.limits.all_closed()).await.is_err() {
            tracing::warn!(connections = self.connections(), "connections were still busy when the broker stopped");
        }
        self.shared.stop_http.give();
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.shared.node.id()
    }

    pub(crate) fn limits(&self) -> &ConnectionLimits {
        &self.shared.limits
    }

    /// For what Fetch reads.
    pub(crate) fn records_room(&self) -> &AnswerRoom {
        &self.shared.records_room
    }

    /// For answers that list topics, groups or offsets. Apart from the records' room, so that slow consumers keep nobody from finding its leaders.
    pub(crate) fn lists_room(&self) -> &AnswerRoom {
        &self.shared.lists_room
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub(crate) fn stop(&self) -> &StopSignal {
        &self.shared.stop
    }

    pub(crate) fn fetch_sessions(&self) -> MutexGuard<'_, FetchSessions> {
        lock(&self.shared.fetch_sessions)
    }
}

/// Listens, and says on which port.
async fn listen<E: Env>(env: &E, address: &str, port: u16) -> std::io::Result<(E::Listener, u16)> {
    let listener = env.listen(address).await?;
    let local_address = listener.local_address()?;
    let port = local_address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(port);
    Ok((listener, port))
}

/// What a panicked task left behind is still sound: every change under these locks is complete or not begun.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `host:port`, with brackets around an IPv6 host.
fn join_address(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Clients cannot connect to a wildcard address.
fn advertised_host(config: &BrokerConfig) -> String {
    match &config.advertised_host {
        Some(host) => host.clone(),
        None if matches!(config.host.as_str(), "0.0.0.0" | "::" | "[::]") => "localhost".to_owned(),
        None => config.host.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_not_advertised() {
        for (host, advertised) in [("0.0.0.0", "localhost"), ("::", "localhost"), ("node7.example", "node7.example")] {
            let mut config = BrokerConfig::single("unused");
            config.host = host.to_owned();
            assert_eq!(advertised_host(&config), advertised);
        }
    }

    #[test]
    fn a_broker_that_cannot_start_names_the_field() {
        let mut config = BrokerConfig::single("somewhere");
        config.node.peers.insert(2, "localhost:1".to_owned());
        let in_use = |path: &str| StartError::Node(NodeStartError::DirectoryInUse { path: path.to_owned() });
        assert_eq!(
            in_use("somewhere/raft/lock").naming_field(&config),
            "cluster.data_dir: somewhere/raft/lock: in use by another process"
        );
        assert!(in_use("somewhere/partitions").naming_field(&config).starts_with("config.data_dir: "));
        // A cluster may have but one node.
        config.node.peers = std::collections::BTreeMap::from([(1, "localhost:1".to_owned())]);
        assert!(in_use("somewhere/raft/lock").naming_field(&config).starts_with("cluster.data_dir: "));
        let config = BrokerConfig::single("somewhere");
        assert!(in_use("somewhere/raft/lock").naming_field(&config).starts_with("config.data_dir: "));
    }

    #[test]
    fn damaged_files_come_with_a_way_out() {
        let damaged = |path: &str| {
            let (path, reason) = (path.to_owned(), "a checksum is wrong".to_owned());
            StartError::Node(NodeStartError::Damaged { path, offset: 4096, reason })
        };
        let mut config = BrokerConfig::single("somewhere");
        assert_eq!(
            damaged("somewhere/raft/journal/1").naming_field(&config),
            "config.data_dir: somewhere/raft/journal/1: damaged at offset 4096: a checksum is wrong. The other nodes cannot make up for it, with \
             fewer than three copies of everything: put back a backup, or give up what only this node has with `mv 'somewhere' 'somewhere.damaged'`"
        );
        let peers = (1..=3).map(|id| (id, format!("localhost:{id}"))).collect();
        config.node = lockstep_runtime::NodeConfig::new(1, peers, "votes/".into(), "records".into());
        let told = damaged("votes/journal/1").naming_field(&config);
        assert!(told.starts_with("cluster.data_dir: votes/journal/1: damaged at offset 4096: "), "{told}");
        assert!(told.contains("`mv 'votes' 'votes.damaged' && mv 'records' 'records.damaged'`, and start"), "{told}");
        config.node.replication = 2;
        let told = damaged("votes/journal/1").naming_field(&config);
        assert!(told.contains("cannot make up for it") && !told.contains("and start"), "{told}");
    }

    #[test]
    fn an_ipv6_host_gets_brackets() {
        assert_eq!(join_address("::1", 9092), "[::1]:9092");
        assert_eq!(join_address("[::1]", 9092), "[::1]:9092");
        assert_eq!(join_address("localhost", 9092), "localhost:9092");
    }
}
