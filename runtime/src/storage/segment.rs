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

/// A segment as a checkpoint lists it. A partition without records has one entry of length 0, and no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// Which one.
    pub name: SegmentName,
    /// Length in bytes.
    pub len: u64,
    /// CRC32C of these bytes.
    pub crc32c: u32,
    /// Offset after the last record.
    pub next_offset: i64,
    /// Largest timestamp of its records in milliseconds, −1 when there is none.
    pub max_timestamp_ms: i64,
    /// Last offset of the first batch that has this timestamp, −1 when there is none.
    pub max_timestamp_offset: i64,
}
