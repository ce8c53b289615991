//! Names and descriptions of segments.

use lockstep_core::TopicId;
use serde::{Deserialize, Serialize};

/// Which segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentName {
    /// Topic.
    pub topic_id: TopicId,
    /// Partition index.
    pub partition: u32,
    /// Offset of the segment's first record.
    pub base_offset: i64,
}

impl SegmentName {
    /// The partition it belongs to.
    pub(crate) fn key(&self) -> PartitionKey {
        PartitionKey { topic_id: self.topic_id, partition: self.partition }
    }

    /// Name of the file with the record batches.
    pub(crate) fn log_file(&self) -> String {
        format!("{:020}.log", self.base_offset)
    }

    /// Name of the file with the index.
    pub(crate) fn index_file(&self) -> String {
        format!("{:020}.index", self.base_offset)
    }
}

/// A segment as a checkpoint lists it. A partition without records has one entry of length 0, and no file; all other segments hold records
/// that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// Which one.
    pub name: SegmentName,
    /// Length in bytes.
    pub len: u64,
    /// CRC32C of these bytes.
    pub crc32c: u32,
    /// First offset that can be read: the base offset, except in a partition's first segment, of which the beginning may have been deleted.
    pub start_offset: i64,
    /// Offset after the last record.
    pub next_offset: i64,
    /// Largest timestamp of its first batch in milliseconds, negative when there is none: a later batch may be too late for this segment
    /// (`segment.ms`).
    pub first_timestamp_ms: i64,
    /// Largest timestamp of its records in milliseconds, −1 when there is none.
    pub max_timestamp_ms: i64,
    /// Last offset of the first batch that has this timestamp, −1 when there is none.
    pub max_timestamp_offset: i64,
}

impl SegmentEntry {
    /// A segment that begins at `name.base_offset` and holds nothing yet.
    pub(crate) fn empty(name: SegmentName) -> Self {
        Self {
            name,
            len: 0,
            crc32c: 0,
            start_offset: name.base_offset,
            next_offset: name.base_offset,
            first_timestamp_ms: -1,
            max_timestamp_ms: -1,
            max_timestamp_offset: -1,
        }
    }
}

/// A partition, and the name of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PartitionKey {
    pub(crate) topic_id: TopicId,
    pub(crate) partition: u32,
}

impl PartitionKey {
    /// Name of the partition's directory.
    pub(crate) fn directory(&self) -> String {
        format!("{}-{}", self.topic_id, self.partition)
    }

    /// Reads a name that [`PartitionKey::directory`] made; `None` for any other.
    pub(crate) fn parse_directory(name: &str) -> Option<Self> {
        let (topic, partition) = name.split_once('-')?;
        if topic.len() != 32 || !topic.is_ascii() {
            return None;
        }
        let mut id = [0; 16];
        for (at, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(topic.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        let key = Self { topic_id: TopicId(id), partition: partition.parse().ok()? };
        (key.directory() == name).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_have_one_name() {
        let key = PartitionKey { topic_id: TopicId(*b"0123456789abcdef"), partition: 17 };
        assert_eq!(key.directory(), "30313233343536373839616263646566-17");
        assert_eq!(PartitionKey::parse_directory(&key.directory()), Some(key));
        for other in
            ["", "-", "x-1", "30313233343536373839616263646566-017", "3031323334353637383961626364656-17", "lost+found"]
        {
            assert_eq!(PartitionKey::parse_directory(other), None, "{other}");
        }
    }
}
