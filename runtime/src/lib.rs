//! One node: its shards, their Raft groups, journal, partition logs and checkpoints, and the network between nodes.

mod compaction;
pub mod config;
pub mod error;
mod group_upkeep;
pub mod histogram;
pub mod journal;
pub mod node;
pub mod partition;
pub mod peer;
pub mod raft;
mod retention;
mod scrub;
pub mod shard;
pub mod status;
pub mod storage;
pub mod topic_pattern;

pub use compaction::CompactionCounts;
pub use config::{Durability, NodeConfig};
pub use error::{ProposeError, ReadError, StartError};
pub use histogram::{Histogram, HistogramSnapshot};
pub use journal::{Journal, JournalOptions, ShardLog};
pub use node::{Node, start_node};
pub use partition::{PartitionLog, ReadError as LogReadError};
pub use raft::ProposalPayload;
pub use shard::Shard;
pub use status::{ClusterStatus, NodeStatus, ShardStatus};
pub use storage::ScrubCounts;
pub use topic_pattern::{PatternError, TopicPattern};
