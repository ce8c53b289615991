//! What the runtime must do after an op was applied, as data.

use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::TopicId;
use crate::op::CompactedSegment;
use crate::topic_settings::SegmentLimits;

/// One thing to do, in order. Every replica gets the same effects at the same position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// A partition now lives in this shard: make its (empty) log.
    CreatePartition {
        /// Topic.
        topic_id: TopicId,
        /// Partition index.
        partition: u32,
    },
    /// A partition is gone: drop its log.
    DropPartition {
        /// Topic.
        topic_id: TopicId,
        /// Partition index.
        partition: u32,
    },
    /// Write a slice of the entry's payload to a partition's log, with base offset and leader epoch stamped into the batch
    /// header (both lie outside the batch's CRC). With a log append time, attributes and max timestamp are set too and the CRC is made anew.
    Append {
        /// Topic.
        topic_id: TopicId,
        /// Partition index.
        partition: u32,
        /// Start in the payload.
        payload_start: u32,
        /// Length in bytes.
        payload_len: u32,
        /// Offset of the first record.
        base_offset: i64,
        /// Offset after the last record: the partition's new high watermark.
        next_offset: i64,
        /// The entry's term.
        leader_epoch: i32,
        /// Set when the topic stamps records on append.
        log_append_time_ms: Option<i64>,
        /// When the batch begins a new segment, by what the topic says at this position.
        limits: SegmentLimits,
    },
    /// A partition's log begins at `start_offset` from now on. Segments with nothing at or above it go; one that holds both is kept whole. When
    /// nothing is left, an empty segment begins there.
    TruncateBefore {
        /// Topic.
        topic_id: TopicId,
        /// Partition index.
        partition: u32,
        /// The first offset that is kept: above the old one, at most the log's end.
        start_offset: i64,
    },
    /// Compacted segments take the place of others in a partition's log. Their files are there already, or must be fetched from another replica.
    ReplaceSegments {
        /// Topic.
        topic_id: TopicId,
        /// Partition index.
        partition: u32,
        /// Names the files of the new segments.
        revision: u64,
        /// The new segments, ascending. Each begins and ends where segments do, none of them the one that grows.
        segments: Vec<CompactedSegment>,
    },
    /// Something that waiters of this group (join, sync, describe) or the session table should look at.
    GroupChanged {
        /// Group.
        group_id: String,
    },
    /// Consumer: the group epoch ran ahead of the target assignment; the coordinator proposes
    /// [`crate::op::RebalancePartitions::Assign`].
    AssignmentNeeded {
        /// Group.
        group_id: String,
    },
    /// Offsets of the group are kept because a subscription by regular expression was not matched with their topics since these were made
    /// or altered: [`crate::ClusterStateMachine::group_regexes`] tells it as not resolved, and the leader of the shard resolves it again.
    ResolutionNeeded {
        /// Group.
        group_id: String,
    },
    /// Topics or brokers changed.
    DirectoryChanged {
        /// Version now.
        version: u64,
    },
}
