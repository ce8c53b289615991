//! Records of the topic and broker directory, which every shard carries a copy of.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, ShardId, TopicId};

/// A topic as every shard knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    /// Its identity.
    pub id: TopicId,
    /// Its name, unique among topics that exist: 1 to 249 of `[a-zA-Z0-9._-]`, neither `.` nor `..`.
    pub name: String,
    /// The shard that hosts partition `i`; its length is the number of partitions.
    pub partitions: Vec<ShardId>,
    /// Configuration that was set on the topic, by Kafka's names. Defaults are not listed.
    pub configs: BTreeMap<String, String>,
    /// Metadata version that last changed this record.
    pub version: u64,
}

/// A broker that has registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRecord {
    /// Its node id.
    pub id: NodeId,
    /// Host that clients are told.
    pub host: String,
    /// Port that clients are told.
    pub port: u16,
    /// Rack, when configured.
    pub rack: Option<String>,
    /// Identity of the node's disk; another one after the disk was emptied.
    pub incarnation: [u8; 16],
    /// Highest feature level the broker's software supports.
    pub feature_level: u16,
}

/// Topics and brokers at one metadata version. On shard 0 it is the truth, elsewhere a copy that follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Counts changes; every change of topics or brokers raises it by one.
    pub version: u64,
    /// Topics by id.
    pub topics: BTreeMap<TopicId, TopicRecord>,
    /// Topic ids by name.
    pub topic_ids: BTreeMap<String, TopicId>,
    /// Brokers by id.
    pub brokers: BTreeMap<NodeId, BrokerRecord>,
    /// Version that last changed `brokers`; elsewhere than on shard 0, of the feed that brought them.
    pub brokers_version: u64,
    /// The last deletions (version, id), oldest first, at most [`Directory::DELETED_MAX`]. On shard 0 only.
    pub deleted: Vec<(u64, TopicId)>,
}

impl Directory {
    /// How many deletions are remembered for the incremental feed; a shard that lags further gets a full copy.
    pub const DELETED_MAX: usize = 1024;

    /// A topic by name.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&TopicRecord> {
        self.topics.get(self.topic_ids.get(name)?)
    }
}
