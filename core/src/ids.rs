//! Names of things.

use core::fmt;

use serde::{Deserialize, Serialize};

/// A node of the cluster, 0 ..= `i32::MAX` (it is Kafka's broker id too).
pub type NodeId = u64;

/// One Raft group and its state machine. Shard 0 is also the source of the cluster metadata.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The shard that owns the cluster metadata.
    pub const METADATA: ShardId = ShardId(0);
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}", self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The longest id of a group, a member or an instance, in bytes. Kafka has no bound but the request's; here an op may name thousands of them, and
/// must fit into one message between nodes.
pub(crate) const GROUP_AND_MEMBER_ID_BYTES_MAX: usize = 1024;

/// A topic, for ever: a topic deleted and created again under the same name has another id (KIP-516).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicId(pub [u8; 16]);

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Where an op stands in its shard's log. Raft indexes also count blank and membership entries, so a Kafka offset
/// is not an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The Raft term of the entry; the leader epoch that Kafka clients see.
    pub term: u64,
    /// The Raft index of the entry.
    pub index: u64,
}

/// Group and transactional ids are spread over this many slots, and slots over shards.
pub const GROUP_SLOTS: u32 = 1024;

/// The slot of a group id: 64-bit FNV-1a, folded. Part of the replicated format: it never changes.
#[must_use]
pub fn group_slot(group_id: &str) -> u32 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in group_id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    ((hash ^ (hash >> 32)) % u64::from(GROUP_SLOTS)) as u32
}

/// The shard that owns a group. `shard_count` is at least 1 and was fixed when the cluster first started.
#[must_use]
pub fn shard_of_group(group_id: &str, shard_count: u16) -> ShardId {
    ShardId((group_slot(group_id) % u32::from(shard_count.max(1))) as u16)
}
