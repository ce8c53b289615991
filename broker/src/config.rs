//! The configuration file: a JSON object in which nearly everything may be left out.
//!
//! [`ConfigFile::parse`] reads it, [`ConfigFile::check`] turns it into a [`BrokerConfig`]; both name the field that is wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lockstep_core::NodeId;
use lockstep_runtime::{Durability, NodeConfig};
use serde::Deserialize;

/// Port that clients connect to unless the configuration says otherwise.
const DEFAULT_PORT: u16 = 9092;
/// Bound on a number that is taken for a mistake beyond it.
pub const WORKER_THREADS_MAX: usize = 256;

/// A day: who looks less often for records that are to be deleted keeps them all.
const CHECK_INTERVAL_MS_MAX: u64 = 24 * 60 * 60 * 1_000;
/// A year.
const SCRUB_INTERVAL_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1_000;
/// Slower than this nothing would ever be read to its end.
const READ_BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// What is wrong with a configuration, on one line: `cluster.peers[1].address: missing`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConfigError {
    /// Path of the field, or the file's name when the file as a whole is wrong.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ConfigError {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// What a broker must be told to start.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Address to listen on for clients.
    pub host: String,
    /// Port to listen on for clients; 0 picks a free one.
    pub port: u16,
    /// Host that clients are told; `None`: `host`, or `localhost` when `host` is a wildcard.
    pub advertised_host: Option<String>,
    /// Port that clients are told; `None`: the one listened on.
    pub advertised_port: Option<u16>,
    /// Port of the HTTP side (metrics and health); `None`: no HTTP side.
    pub http_port: Option<u16>,
    /// Connections served at one time; further ones are closed at once.
    pub connections_max: usize,
    /// Longest request frame in bytes, without its length prefix.
    pub frame_bytes_max: usize,
    /// Bytes of requests that may be under way at one time, over all connections.
    pub in_flight_bytes_max: usize,
    /// Bytes of records that were read for clients and not sent yet, over all connections. Lists of topics, groups and offsets may take half as much beside them.
    pub answer_bytes_max: usize,
    /// A connection on which nothing is asked for so long is closed.
    pub idle_timeout: Duration,
    /// Topics and partitions.
    pub topics: TopicDefaults,
    /// Consumer groups.
    pub groups: GroupConfig,
    /// The node beneath.
    pub node: NodeConfig,
}

impl BrokerConfig {
    /// Defaults for everything but the node.
    #[must_use]
    pub fn new(node: NodeConfig) -> Self {
        Self {
            host: "localhost".to_owned(),
            port: DEFAULT_PORT,
            advertised_host: None,
            advertised_port: None,
            http_port: None,
            connections_max: 10_000,
            frame_bytes_max: 100 << 20,
            in_flight_bytes_max: 512 << 20,
            answer_bytes_max: 256 << 20,
            idle_timeout: Duration::from_secs(600),
            topics: TopicDefaults::default(),
            groups: GroupConfig::default(),
            node,
        }
    }

    /// One node on its own, with all its data under `directory`.
    #[must_use]
    pub fn single(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        let node = NodeConfig::new(
            1,
            BTreeMap::from([(1, SINGLE_MODE_ADDRESS.to_owned())]),
            directory.join("raft"),
            directory.join("partitions"),
        );
        Self::new(node)
    }

    /// Whether it was made by [`BrokerConfig::single`], so that both directories come from the one that was given.
    pub(crate) fn is_single(&self) -> bool {
        self.node.peers.len() == 1 && self.node.peers.values().all(|address| address == SINGLE_MODE_ADDRESS)
    }
}

/// A single node has no peers to listen for: any free port of the loopback interface does.
const SINGLE_MODE_ADDRESS: &str = "127.0.0.1:0";

/// What topics are like when nobody says how they should be.
#[derive(Clone, Debug)]
pub struct TopicDefaults {
    /// A Metadata request that allows it creates the topics it asks for.
    pub auto_create: bool,
    /// Partitions of a topic whose creator did not say how many.
    pub partitions: u32,
}

impl Default for TopicDefaults {
    fn default() -> Self {
        Self { auto_create: true, partitions: 1 }
    }
}

/// Settings of the group coordinator.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// How long a classic group that was empty waits for more members before its first generation.
    pub initial_rebalance_delay_ms: u32,
    /// Session time-out that consumer-protocol groups give their members.
    pub session_timeout_ms: u32,
    /// Heartbeat interval that consumer-protocol groups give their members.
    pub heartbeat_interval_ms: u32,
    /// Members of a group, at most.
    pub members_max: u32,
    /// Shortest session time-out that a classic member may ask for.
    pub session_timeout_min_ms: u32,
    /// Longest session time-out that a classic member may ask for.
    pub session_timeout_max_ms: u32,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            initial_rebalance_delay_ms: 3_000,
            session_timeout_ms: 45_000,
            heartbeat_interval_ms: 5_000,
            members_max: u32::MAX,
            session_timeout_min_ms: 6_000,
            session_timeout_max_ms: 1_800_000,
        }
    }
}

/// The file as it is written. Every field may be missing; [`ConfigFile::check`] knows the defaults.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Where clients connect, and the log.
    #[serde(default)]
    pub server: ServerSection,
    /// Storage and topics.
    #[serde(default)]
    pub config: StorageSection,
    /// Raft and the other nodes.
    #[serde(default)]
    pub cluster: ClusterSection,
    /// Consumer groups.
    #[serde(default)]
    pub groups: GroupsSection,
}

/// `server`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSection {
    host: Option<String>,
    port: Option<Port>,
    advertised_host: Option<String>,
    advertised_port: Option<Port>,
    http_port: Option<Port>,
    max_connections: Option<usize>,
    log_file: Option<PathBuf>,
    log_level: Option<String>,
    worker_threads: Option<usize>,
}

/// `config`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageSection {
    data_dir: Option<PathBuf>,
    auto_create_topics: Option<bool>,
    default_partitions: Option<u32>,
    segment_bytes: Option<u64>,
    retention_check_interval_ms: Option<u64>,
    compaction_check_interval_ms: Option<u64>,
    compaction_bytes_per_second: Option<u64>,
    fetch_bytes_per_second: Option<u64>,
    scrub_interval_ms: Option<u64>,
    scrub_bytes_per_second: Option<u64>,
    cache_bytes: Option<u64>,
    disk_reserve_bytes: Option<u64>,
    durability: Option<DurabilityName>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DurabilityName {
    Fsync,
    Replicated,
}

/// `cluster`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    enabled: Option<bool>,
    node_id: Option<u64>,
    raft_address: Option<String>,
    data_dir: Option<PathBuf>,
    peers: Option<Vec<PeerSection>>,
    shards: Option<u16>,
    replication: Option<u16>,
    heartbeat_interval_ms: Option<u64>,
    election_timeout_min_ms: Option<u64>,
    election_timeout_max_ms: Option<u64>,
}

/// `cluster.peers[…]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSection {
    id: Option<u64>,
    address: Option<String>,
}

/// `groups`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupsSection {
    initial_rebalance_delay_ms: Option<u32>,
    session_timeout_ms: Option<u32>,
    heartbeat_interval_ms: Option<u32>,
    max_size: Option<u32>,
    min_session_timeout_ms: Option<u32>,
    max_session_timeout_ms: Option<u32>,
    offsets_retention_minutes: Option<u32>,
}

/// A port, written as a number or as a string.
#[derive(Clone, Copy, Debug)]
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;
        impl serde::de::Visitor<'_> for PortVisitor {
            type Value = Port;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a port between 0 and 65535")
            }
            fn visit_u64<X: serde::de::Error>(self, value: u64) -> Result<Port, X> {
                u16::try_from(value)
                    .map(Port)
                    .map_err(|_| X::custom(format!("{value} is not a port between 0 and 65535")))
            }
            fn visit_i64<X: serde::de::Error>(self, value: i64) -> Result<Port, X> {
                Err(X::custom(format!("{value} is not a port between 0 and 65535")))
            }
            fn visit_str<X: serde::de::Error>(self, value: &str) -> Result<Port, X> {
                value.parse().map(Port).map_err(|_| X::custom(format!("{value:?} is not a port between 0 and 65535")))
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}

impl ConfigFile {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| ConfigError::new("configuration", error.to_string()))?;
        // A JSON array would do for a section, its elements taken as the fields in order: nobody means that.
        let sections = value.as_object().ok_or_else(|| ConfigError::new("configuration", "must be a JSON object"))?;
        if let Some((name, _)) = sections.iter().find(|(_, section)| section.is_array()) {
            return Err(ConfigError::new(name, "must be a JSON object"));
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." || path == "?" { "configuration".to_owned() } else { path };
            ConfigError::new(field, error.inner().to_string())
        })
    }

    /// Where the log goes besides the terminal.
    #[must_use]
    pub fn log_file(&self) -> Option<&PathBuf> {
        self.server.log_file.as_ref()
    }

    /// What is logged, in the syntax of `tracing`'s environment filter; `info` when nothing is said.
    #[must_use]
    pub fn log_level(&self) -> &str {
        self.server.log_level.as_deref().unwrap_or("info")
    }

    /// Threads that run tasks, 1 to [`WORKER_THREADS_MAX`] once checked; those that wait for disks come on top. `None`: for the program to
    /// choose.
    #[must_use]
    pub fn worker_threads(&self) -> Option<usize> {
        self.server.worker_threads
    }

    /// Fills in the defaults and checks every value.
    pub fn check(&self) -> Result<BrokerConfig, ConfigError> {
        let data_dir = self.config.data_dir.clone();
        let mut node = if self.cluster.enabled.unwrap_or(false) {
            self.cluster.node(data_dir)?
        } else {
            let directory = data_dir.unwrap_or_else(|| PathBuf::from("data"));
            BrokerConfig::single(directory).node
        };
        self.cluster.timing(&mut node)?;
        self.config.storage(&mut node)?;

        let mut config = BrokerConfig::new(node);
        let server = &self.server;
        if let Some(host) = &server.host {
            check_host("server.host", host)?;
            config.host.clone_from(host);
        }
        config.port = server.port.map_or(DEFAULT_PORT, |port| port.0);
        if let Some(host) = &server.advertised_host {
            check_host("server.advertised_host", host)?;
            config.advertised_host = Some(host.clone());
        }
        if let Some(port) = server.advertised_port {
            if port.0 == 0 {
                return Err(ConfigError::new("server.advertised_port", "clients cannot connect to port 0"));
            }
            config.advertised_port = Some(port.0);
        }
        config.http_port = match (server.http_port, config.port) {
            (Some(port), _) => Some(port.0),
            (None, 0) => Some(0),
            (None, port) => Some(port.checked_add(1_000).ok_or_else(|| {
                ConfigError::new("server.http_port", format!("must be given: {port} + 1000 is not a port"))
            })?),
        };
        if config.http_port == Some(config.port) && config.port != 0 {
            return Err(ConfigError::new("server.http_port", "must differ from server.port"));
        }
        if server.worker_threads.is_some_and(|threads| !(1..=WORKER_THREADS_MAX).contains(&threads)) {
            return Err(ConfigError::new("server.worker_threads", format!("must be from 1 to {WORKER_THREADS_MAX}")));
        }
        if let Some(connections) = server.max_connections {
            if connections == 0 {
                return Err(ConfigError::new("server.max_connections", "must be at least 1"));
            }
            config.connections_max = connections;
        }
        config.topics.auto_create = self.config.auto_create_topics.unwrap_or(true);
        if let Some(partitions) = self.config.default_partitions {
            if !(1..=10_000).contains(&partitions) {
                return Err(ConfigError::new("config.default_partitions", "must lie between 1 and 10000"));
            }
            config.topics.partitions = partitions;
        }
        config.groups = self.groups.check()?;
        if let Some(minutes) = self.groups.offsets_retention_minutes {
            if minutes == 0 {
                return Err(ConfigError::new("groups.offsets_retention_minutes", "must be at least 1"));
            }
            config.node.offsets_retention = Duration::from_secs(u64::from(minutes) * 60);
        }
        Ok(config)
    }
}

impl ClusterSection {
    fn node(&self, data_dir: Option<PathBuf>) -> Result<NodeConfig, ConfigError> {
        let node_id = self.node_id.ok_or_else(|| ConfigError::new("cluster.node_id", "missing"))?;
        check_node_id("cluster.node_id", node_id)?;
        let sections = self.peers.as_ref().ok_or_else(|| ConfigError::new("cluster.peers", "missing"))?;
        if sections.is_empty() {
            return Err(ConfigError::new("cluster.peers", "must name every node, this one too"));
        }
        let mut peers: BTreeMap<NodeId, String> = BTreeMap::new();
        for (index, peer) in sections.iter().enumerate() {
            let field = |name: &str| format!("cluster.peers[{index}].{name}");
            let id = peer.id.ok_or_else(|| ConfigError::new(field("id"), "missing"))?;
            check_node_id(&field("id"), id)?;
            let address = peer.address.as_ref().ok_or_else(|| ConfigError::new(field("address"), "missing"))?;
            check_address(&field("address"), address)?;
            if peers.values().any(|other| other == address) {
                return Err(ConfigError::new(field("address"), format!("{address} is another node's too")));
            }
            if peers.insert(id, address.clone()).is_some() {
                return Err(ConfigError::new(field("id"), format!("{id} is another node's too")));
            }
        }
        let Some(own_address) = peers.get(&node_id) else {
            return Err(ConfigError::new("cluster.node_id", format!("{node_id} is not among cluster.peers")));
        };
        if let Some(raft_address) = &self.raft_address {
            check_address("cluster.raft_address", raft_address)?;
            if raft_address != own_address {
                return Err(ConfigError::new(
                    "cluster.raft_address",
                    format!("is {raft_address}, but cluster.peers says {own_address} for node {node_id}"),
                ));
            }
        }
        let raft_dir = self.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("raft_data/node{node_id}")));
        let data_dir = data_dir.unwrap_or_else(|| PathBuf::from(format!("data/broker{node_id}")));
        if raft_dir == data_dir {
            return Err(ConfigError::new("cluster.data_dir", "must differ from config.data_dir"));
        }
        Ok(NodeConfig::new(node_id, peers, raft_dir, data_dir))
    }

    fn timing(&self, node: &mut NodeConfig) -> Result<(), ConfigError> {
        if let Some(shards) = self.shards {
            if !(1..=1_024).contains(&shards) {
                return Err(ConfigError::new("cluster.shards", "must lie between 1 and 1024"));
            }
            node.shards = shards;
        }
        if let Some(replication) = self.replication {
            if replication == 0 {
                return Err(ConfigError::new("cluster.replication", "must be at least 1"));
            }
            node.replication = replication;
        }
        for (name, value, target) in [
            ("cluster.heartbeat_interval_ms", self.heartbeat_interval_ms, &mut node.heartbeat_interval),
            ("cluster.election_timeout_min_ms", self.election_timeout_min_ms, &mut node.election_timeout_min),
            ("cluster.election_timeout_max_ms", self.election_timeout_max_ms, &mut node.election_timeout_max),
        ] {
            if let Some(milliseconds) = value {
                if !(1..=60_000).contains(&milliseconds) {
                    return Err(ConfigError::new(name, "must lie between 1 and 60000"));
                }
                *target = Duration::from_millis(milliseconds);
            }
        }
        if node.heartbeat_interval * 2 > node.election_timeout_min {
            return Err(ConfigError::new(
                "cluster.heartbeat_interval_ms",
                format!(
                    "is {}, but must be at most half of cluster.election_timeout_min_ms ({})",
                    node.heartbeat_interval.as_millis(),
                    node.election_timeout_min.as_millis()
                ),
            ));
        }
        if node.election_timeout_min >= node.election_timeout_max {
            return Err(ConfigError::new(
                "cluster.election_timeout_max_ms",
                format!(
                    "is {}, but must be larger than cluster.election_timeout_min_ms ({})",
                    node.election_timeout_max.as_millis(),
                    node.election_timeout_min.as_millis()
                ),
            ));
        }
        Ok(())
    }
}

/// How often something is looked for.
fn interval(field: &'static str, milliseconds: Option<u64>) -> Result<Option<Duration>, ConfigError> {
    match milliseconds {
        Some(milliseconds) if !(1..=CHECK_INTERVAL_MS_MAX).contains(&milliseconds) => {
            Err(ConfigError::new(field, format!("must lie between 1 and {CHECK_INTERVAL_MS_MAX}")))
        }
        milliseconds => Ok(milliseconds.map(Duration::from_millis)),
    }
}

/// How fast segments are read.
fn rate(field: &'static str, bytes_per_second: Option<u64>) -> Result<Option<u64>, ConfigError> {
    match bytes_per_second {
        Some(bytes) if bytes < READ_BYTES_PER_SECOND_MIN => {
            Err(ConfigError::new(field, format!("must be at least {READ_BYTES_PER_SECOND_MIN}")))
        }
        rate => Ok(rate),
    }
}

impl StorageSection {
    fn storage(&self, node: &mut NodeConfig) -> Result<(), ConfigError> {
        if let Some(bytes) = self.segment_bytes {
            if !(1 << 20..=2 << 30).contains(&bytes) {
                return Err(ConfigError::new("config.segment_bytes", "must lie between 1048576 and 2147483648"));
            }
            node.segment_bytes = bytes;
        }
        if let Some(interval) = interval("config.retention_check_interval_ms", self.retention_check_interval_ms)? {
            node.retention_check_interval = interval;
        }
        if let Some(interval) = interval("config.compaction_check_interval_ms", self.compaction_check_interval_ms)? {
            node.compaction_check_interval = interval;
        }
        if let Some(rate) = rate("config.compaction_bytes_per_second", self.compaction_bytes_per_second)? {
            node.compaction_bytes_per_second = rate;
        }
        if let Some(rate) = rate("config.fetch_bytes_per_second", self.fetch_bytes_per_second)? {
            node.fetch_bytes_per_second = rate;
        }
        if let Some(milliseconds) = self.scrub_interval_ms {
            if milliseconds > SCRUB_INTERVAL_MS_MAX {
                return Err(ConfigError::new(
                    "config.scrub_interval_ms",
                    format!("must lie between 0 (never) and {SCRUB_INTERVAL_MS_MAX}"),
                ));
            }
            node.scrub_interval = Duration::from_millis(milliseconds);
        }
        if let Some(rate) = rate("config.scrub_bytes_per_second", self.scrub_bytes_per_second)? {
            node.scrub_bytes_per_second = rate;
        }
        if let Some(bytes) = self.cache_bytes {
            if bytes < 1 << 20 {
                return Err(ConfigError::new("config.cache_bytes", "must be at least 1048576"));
            }
            node.cache_bytes = bytes;
        }
        if let Some(bytes) = self.disk_reserve_bytes {
            node.disk_reserve_bytes = bytes;
        }
        node.durability = match self.durability {
            None | Some(DurabilityName::Fsync) => Durability::Fsync,
            Some(DurabilityName::Replicated) => Durability::Replicated,
        };
        Ok(())
    }
}

impl GroupsSection {
    fn check(&self) -> Result<GroupConfig, ConfigError> {
        let defaults = GroupConfig::default();
        let config = GroupConfig {
            initial_rebalance_delay_ms: self.initial_rebalance_delay_ms.unwrap_or(defaults.initial_rebalance_delay_ms),
            session_timeout_ms: self.session_timeout_ms.unwrap_or(defaults.session_timeout_ms),
            heartbeat_interval_ms: self.heartbeat_interval_ms.unwrap_or(defaults.heartbeat_interval_ms),
            members_max: self.max_size.unwrap_or(defaults.members_max),
            session_timeout_min_ms: self.min_session_timeout_ms.unwrap_or(defaults.session_timeout_min_ms),
            session_timeout_max_ms: self.max_session_timeout_ms.unwrap_or(defaults.session_timeout_max_ms),
        };
        if config.heartbeat_interval_ms == 0 || config.heartbeat_interval_ms >= config.session_timeout_ms {
            return Err(ConfigError::new(
                "groups.heartbeat_interval_ms",
                format!(
                    "is {}, but must lie between 1 and groups.session_timeout_ms ({})",
                    config.heartbeat_interval_ms, config.session_timeout_ms
                ),
            ));
        }
        if config.members_max == 0 {
            return Err(ConfigError::new("groups.max_size", "must be at least 1"));
        }
        if config.session_timeout_min_ms > config.session_timeout_max_ms {
            return Err(ConfigError::new(
                "groups.min_session_timeout_ms",
                format!(
                    "is {}, but groups.max_session_timeout_ms is {}",
                    config.session_timeout_min_ms, config.session_timeout_max_ms
                ),
            ));
        }
        Ok(config)
    }
}

/// Node ids travel as Kafka's signed 32-bit broker ids.
fn check_node_id(field: &str, id: u64) -> Result<(), ConfigError> {
    if i32::try_from(id).is_err() {
        return Err(ConfigError::new(field, format!("{id} is larger than {}", i32::MAX)));
    }
    Ok(())
}

fn check_host(field: &str, host: &str) -> Result<(), ConfigError> {
    if host.is_empty() || host.len() > 255 || host.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(ConfigError::new(field, format!("{host:?} is not a host name")));
    }
    Ok(())
}

/// `host:port`, with an IPv6 host in brackets.
fn check_address(field: &str, address: &str) -> Result<(), ConfigError> {
    let wrong = || ConfigError::new(field, format!("{address:?} is not of the form host:port"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if port == 0 || (host.contains(':') && !bracketed) {
        return Err(wrong());
    }
    check_host(field, host).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER_1: &str = include_str!("../../configs/broker1.json");

    fn error_of(text: &str) -> String {
        ConfigFile::parse(text).and_then(|file| file.check()).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_example_is_accepted() {
        let file = ConfigFile::parse(BROKER_1).expect("parse");
        assert_eq!(file.log_file(), Some(&PathBuf::from("logs/broker1.log")));
        let config = file.check().expect("check");
        assert_eq!((config.port, config.http_port), (9092, Some(10092)));
        assert_eq!(config.node.node_id, 1);
        assert_eq!(config.node.peers.len(), 3);
        assert_eq!(config.node.peers[&2], "localhost:8092");
        assert_eq!(config.node.raft_dir, PathBuf::from("raft_data/node1"));
        assert_eq!(config.node.data_dir, PathBuf::from("data/broker1"));
    }

    #[test]
    fn the_three_examples_form_one_cluster() {
        let texts = [BROKER_1, include_str!("../../configs/broker2.json"), include_str!("../../configs/broker3.json")];
        let configs: Vec<_> =
            texts.iter().map(|text| ConfigFile::parse(text).expect("parse").check().expect("check")).collect();
        for (index, config) in configs.iter().enumerate() {
            assert_eq!(config.node.node_id, index as u64 + 1);
            assert_eq!(config.port, 9092 + index as u16);
            assert_eq!(config.node.peers, configs[0].node.peers);
        }
    }

    #[test]
    fn an_empty_object_is_single_mode() {
        let config = ConfigFile::parse("{}").expect("parse").check().expect("check");
        assert_eq!(config.port, 9092);
        assert_eq!(config.node.peers.len(), 1);
        assert!(config.node.raft_dir.starts_with("data") && config.node.data_dir.starts_with("data"));
        assert!(config.topics.auto_create);
    }

    #[test]
    fn ports_may_be_numbers_or_strings() {
        for text in [r#"{"server":{"port":"9099"}}"#, r#"{"server":{"port":9099}}"#] {
            assert_eq!(ConfigFile::parse(text).expect("parse").check().expect("check").port, 9099);
        }
    }

    #[test]
    fn errors_name_the_field() {
        for (text, field) in [
            (r#"{"server":{"port":"http"}}"#, "server.port: "),
            (r#"{"server":{"port":70000}}"#, "server.port: "),
            (r#"{"server":{"prot":1}}"#, "server.prot: "),
            (r#"{"sever":{}}"#, "sever: "),
            (r#"{"server":{"port":65000}}"#, "server.http_port: "),
            (r#"{"server":{"max_connections":0}}"#, "server.max_connections: "),
            (r#"{"server":{"worker_threads":0}}"#, "server.worker_threads: "),
            (r#"{"config":{"durability":"maybe"}}"#, "config.durability: "),
            (r#"{"config":{"default_partitions":0}}"#, "config.default_partitions: "),
            (r#"{"config":{"retention_check_interval_ms":0}}"#, "config.retention_check_interval_ms: "),
            (r#"{"config":{"compaction_check_interval_ms":0}}"#, "config.compaction_check_interval_ms: "),
            (r#"{"config":{"fetch_bytes_per_second":1}}"#, "config.fetch_bytes_per_second: "),
            (r#"{"config":{"compaction_bytes_per_second":0}}"#, "config.compaction_bytes_per_second: "),
            (r#"{"config":{"scrub_interval_ms":99999999999999}}"#, "config.scrub_interval_ms: "),
            (r#"{"config":{"scrub_bytes_per_second":0}}"#, "config.scrub_bytes_per_second: "),
            (r#"{"cluster":{"enabled":true}}"#, "cluster.node_id: missing"),
            (r#"{"cluster":{"enabled":true,"node_id":1}}"#, "cluster.peers: missing"),
            (r#"{"cluster":{"enabled":true,"node_id":1,"peers":[]}}"#, "cluster.peers: "),
            (
                r#"{"cluster":{"enabled":true,"node_id":4,"peers":[{"id":1,"address":"a:1"}]}}"#,
                "cluster.node_id: 4 is not among cluster.peers",
            ),
            (
                r#"{"cluster":{"enabled":true,"node_id":1,"peers":[{"id":1,"address":"a:1"},{"id":2}]}}"#,
                "cluster.peers[1].address: missing",
            ),
            (
                r#"{"cluster":{"enabled":true,"node_id":1,"peers":[{"id":1,"address":"a:1"},{"id":2,"address":"b"}]}}"#,
                "cluster.peers[1].address: ",
            ),
            (
                r#"{"cluster":{"enabled":true,"node_id":1,"peers":[{"id":1,"address":"a:1"},{"id":2,"address":7}]}}"#,
                "cluster.peers[1].address: ",
            ),
            (
                r#"{"cluster":{"enabled":true,"node_id":1,"peers":[{"id":1,"address":"a:1"},{"id":1,"address":"b:1"}]}}"#,
                "cluster.peers[1].id: ",
            ),
            (
                r#"{"cluster":{"enabled":true,"node_id":1,"peers":[{"id":1,"address":"a:1"},{"id":2,"address":"a:1"}]}}"#,
                "cluster.peers[1].address: ",
            ),
            (
                r#"{"cluster":{"enabled":true,"node_id":1,"raft_address":"a:2","peers":[{"id":1,"address":"a:1"}]}}"#,
                "cluster.raft_address: ",
            ),
            (r#"{"cluster":{"heartbeat_interval_ms":500}}"#, "cluster.heartbeat_interval_ms: "),
            (r#"{"cluster":{"election_timeout_max_ms":100}}"#, "cluster.election_timeout_max_ms: "),
            (r#"{"groups":{"heartbeat_interval_ms":50000}}"#, "groups.heartbeat_interval_ms: "),
            (r#"{"groups":{"offsets_retention_minutes":0}}"#, "groups.offsets_retention_minutes: "),
            (
                r#"{"groups":{"min_session_timeout_ms":5,"max_session_timeout_ms":4}}"#,
                "groups.min_session_timeout_ms: ",
            ),
            ("{", "configuration: "),
            ("{} {}", "configuration: "),
            ("[]", "configuration: "),
            (r#"{"server":["localhost"]}"#, "server: "),
        ] {
            let error = error_of(text);
            assert!(error.starts_with(field), "{text} gave {error:?}, not {field:?}");
            assert!(!error.contains('\n'), "{error:?} is more than a line");
        }
    }
}
