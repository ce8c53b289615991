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
    /// Where the segment begins: the offset of its first record, unless that was compacted away.
    pub base_offset: i64,
    /// Which compaction made it ([`lockstep_core::op::CompactLog::revision`]); 0: none, its batches lie there as they were appended.
    pub revision: u64,
}

impl SegmentName {
    /// The partition it belongs to.
    pub(crate) fn key(&self) -> PartitionKey {
        PartitionKey { topic_id: self.topic_id, partition: self.partition }
    }

    /// A segment that batches are appended to.
    pub(crate) fn appended(key: PartitionKey, base_offset: i64) -> Self {
        Self { topic_id: key.topic_id, partition: key.partition, base_offset, revision: 0 }
    }

    /// There may be offsets in it that no batch holds.
    pub(crate) fn is_compacted(&self) -> bool {
        self.revision > 0
    }

    /// What its files are called within the partition's directory, without their endings.
    pub(crate) fn stem(&self) -> String {
        match self.revision {
            0 => format!("{:020}", self.base_offset),
            revision => format!("{:020}-{revision}", self.base_offset),
        }
    }

    /// Reads what [`SegmentName::stem`] made; `None` for anything else.
    pub(crate) fn parse_stem(key: PartitionKey, stem: &str) -> Option<Self> {
        let (base_offset, revision) = stem.split_once('-').unwrap_or((stem, "0"));
        let revision = revision.parse().ok()?;
        let name = Self { revision, ..Self::appended(key, base_offset.parse().ok()?) };
        (name.stem() == stem).then_some(name)
    }

    /// Name of the file with the record batches, in the partition's directory.
    #[must_use]
    pub fn log_file(&self) -> String {
        format!("{}.log", self.stem())
    }

    /// Name of the file with the index.
    pub(crate) fn index_file(&self) -> String {
        format!("{}.index", self.stem())
    }

    /// Where the file is staged, in a folder of the store, before it comes to its place.
    pub(crate) fn staged_file(&self) -> String {
        format!("{}.{}", self.key().directory(), self.stem())
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

    #[test]
    fn segments_have_one_name() {
        let key = PartitionKey { topic_id: TopicId([7; 16]), partition: 3 };
        let appended = SegmentName::appended(key, 52);
        assert_eq!(appended.log_file(), "00000000000000000052.log");
        let compacted = SegmentName { revision: 1 << 20 | 5, ..appended };
        assert_eq!(compacted.index_file(), "00000000000000000052-1048581.index");
        for name in [appended, compacted] {
            assert_eq!(SegmentName::parse_stem(key, &name.stem()), Some(name));
        }
        for other in ["", "-", "52", "00000000000000000052-0", "00000000000000000052-01", "00000000000000000052-", "x"]
        {
            assert_eq!(SegmentName::parse_stem(key, other), None, "{other}");
        }
    }
}
