//! What a node must be told to start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lockstep_core::NodeId;

/// A node's configuration.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node, a key of `peers`.
    pub node_id: NodeId,
    /// Every node's peer address (`host:port`), this one's too. One entry: single mode.
    pub peers: BTreeMap<NodeId, String>,
    /// Votes, journal and checkpoints.
    pub raft_dir: PathBuf,
    /// Partition segments.
    pub data_dir: PathBuf,
    /// Number of shards, used at the cluster's first start only; later starts read it from disk. 1 ..= 1,024.
    pub shards: u16,
    /// Voters of each shard other than 0; shard 0 has every node.
    pub replication: u16,
    /// How often a leader tells its followers that it lives.
    pub heartbeat_interval: Duration,
    /// Shortest wait of a follower before it stands for election.
    pub election_timeout_min: Duration,
    /// Longest such wait. A leader that no quorum has heard for four fifths of it does not answer as one.
    pub election_timeout_max: Duration,
    /// Journal bytes of one shard after which it is checkpointed.
    pub checkpoint_journal_bytes: u64,
    /// Size of a journal file, preallocated.
    pub journal_file_bytes: u64,
    /// Size at which a partition's segment is closed and a new one begun, for what this node proposes as a leader, unless the topic says otherwise.
    pub segment_bytes: u64,
    /// Recently appended batches kept in memory for readers, over all partitions of the node.
    pub cache_bytes: u64,
    /// While less than this is free on one of its disks a node takes no records. 0: it takes them until the disk is full.
    pub disk_reserve_bytes: u64,
    /// What an acknowledgement means.
    pub durability: Durability,
    /// How long a group's committed offsets are kept once it is empty, or nobody in it subscribes to the topic any more.
    pub offsets_retention: Duration,
    /// How often each shard's leader looks for older ones.
    pub offsets_retention_check_interval: Duration,
    /// How often each shard's leader looks for records that are to be deleted (`retention.ms`, `retention.bytes`).
    pub retention_check_interval: Duration,
    /// How often each shard's leader looks for partitions that are to be compacted (`cleanup.policy=compact`).
    pub compaction_check_interval: Duration,
    /// How fast segments are read for that, one partition at a time on a node.
    pub compaction_bytes_per_second: u64,
    /// Keys that one compaction remembers at most, in about 40 bytes each: what comes behind so many different ones is left to the next.
    pub compaction_keys_max: usize,
    /// How fast a node fetches segments from others: of a leader's checkpoint, when it has fallen far behind or lost its disk, and of compacted logs. A
    /// checkpoint is fetched faster than that where clients write faster, or the node would never catch up.
    pub fetch_bytes_per_second: u64,
    /// Every segment is compared with its checksum once in so much time, and repaired from another node when it differs. Zero: never; what
    /// readers find damaged is repaired all the same.
    pub scrub_interval: Duration,
    /// How fast segments are read for that.
    pub scrub_bytes_per_second: u64,
    /// Host that clients reach this broker under; registered in the directory.
    pub advertised_host: String,
    /// Port that clients reach this broker under.
    pub advertised_port: u16,
    /// Rack, when there are racks.
    pub rack: Option<String>,
}

/// What an acknowledged write has survived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// fdatasync on a majority of nodes.
    #[default]
    Fsync,
    /// In memory on a majority, written and synced in the background; votes are synced all the same.
    Replicated,
}

impl NodeConfig {
    /// Defaults for everything but identity and place.
    #[must_use]
    pub fn new(node_id: NodeId, peers: BTreeMap<NodeId, String>, raft_dir: PathBuf, data_dir: PathBuf) -> Self {
        Self {
            node_id,
            peers,
            raft_dir,
            data_dir,
            shards: 8,
            replication: 3,
            heartbeat_interval: Duration::from_millis(60),
            election_timeout_min: Duration::from_millis(120),
            election_timeout_max: Duration::from_millis(200),
            checkpoint_journal_bytes: 64 << 20,
            journal_file_bytes: 64 << 20,
            segment_bytes: 256 << 20,
            cache_bytes: 64 << 20,
            disk_reserve_bytes: 512 << 20,
            durability: Durability::Fsync,
            offsets_retention: Duration::from_secs(7 * 24 * 60 * 60),
            offsets_retention_check_interval: Duration::from_secs(600),
            retention_check_interval: Duration::from_secs(300),
            compaction_check_interval: Duration::from_secs(15),
            compaction_bytes_per_second: 32 << 20,
            compaction_keys_max: 1_000_000,
            fetch_bytes_per_second: 32 << 20,
            scrub_interval: Duration::from_secs(7 * 24 * 60 * 60),
            scrub_bytes_per_second: 8 << 20,
            advertised_host: "localhost".to_owned(),
            advertised_port: 9092,
            rack: None,
        }
    }
}
