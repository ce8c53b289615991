//! How far groups are behind.

use bytes::{Buf, BufMut};
use proto_kafka::error::{ProtoError, Result};
use proto_kafka::protocol::buf::{ByteBuf, ByteBufMut};
use serde::{Deserialize, Serialize};

use super::{JsonResponse, PrivateRequest, get_text, private_request, put_text};

/// Groups of one request, at most.
pub const LAG_GROUPS_MAX: usize = 1_000;

/// Asks any broker how far groups are behind. Key 32002, version 0; the body is a count (u16, at most [`LAG_GROUPS_MAX`]) and
/// as many group ids: a length (u16) and as many bytes each.
///
/// Committed offsets are read first and the ends of the partitions after them, both linearizably: an offset committed for
/// records that were read never lies beyond the end. INVALID_REQUEST: no group is named, or too many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupLagRequest {
    /// Groups.
    pub groups: Vec<String>,
}

/// Answers [`GroupLagRequest`] with a list of [`GroupLag`], in the order of the request. Groups at the end are missing when
/// those before them have so many partitions that the answer would become too long; the first one never is.
pub type GroupLagResponse = JsonResponse<GroupLagRequest>;

impl PrivateRequest for GroupLagRequest {
    const NAME: &'static str = "GroupLagRequest";

    fn put<B: ByteBufMut>(&self, buf: &mut B) -> Result<()> {
        let size = self.groups.len();
        let too_large = ProtoError::FieldTooLarge { field: "groups", size };
        let count = u16::try_from(size).ok().filter(|_| size <= LAG_GROUPS_MAX).ok_or(too_large)?;
        BufMut::put_u16(buf, count);
        self.groups.iter().try_for_each(|group| put_text(buf, "groups", group))
    }

    fn get<B: ByteBuf>(buf: &mut B) -> Result<Self> {
        let count = usize::from(Buf::try_get_u16(buf)?);
        if count > LAG_GROUPS_MAX {
            return Err(ProtoError::FieldTooLarge { field: "groups", size: count });
        }
        let mut groups = Vec::new();
        for _ in 0..count {
            groups.push(get_text(buf)?);
        }
        Ok(Self { groups })
    }

    fn len(&self) -> usize {
        2 + self.groups.iter().map(|group| 2 + group.len()).sum::<usize>()
    }
}

private_request!(GroupLagRequest);

/// How far a group is behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLag {
    /// Group.
    pub group_id: String,
    /// Kafka's error code, 0 for none: GROUP_ID_NOT_FOUND, COORDINATOR_NOT_AVAILABLE, or NOT_COORDINATOR when
    /// the broker keeps no copy of the group.
    pub error_code: i16,
    /// Every partition that the group has committed an offset for, by topic and index.
    pub partitions: Vec<PartitionLag>,
}

/// How far a group is behind in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionLag {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Kafka's error code, 0 for none: LEADER_NOT_AVAILABLE, KAFKA_STORAGE_ERROR, UNKNOWN_TOPIC_OR_PARTITION (deleted a moment ago),
    /// or NOT_LEADER_OR_FOLLOWER when the broker keeps no copy of the partition. After an error only `committed` is known.
    pub error_code: i16,
    /// Offset to be read next.
    pub committed: i64,
    /// First offset that is kept.
    pub start: Option<i64>,
    /// Offset that the next record will get.
    pub end: Option<i64>,
    /// Offsets that are kept and not read: from `committed`, or from `start` if that is later, to `end`. Never negative.
    pub lag: Option<i64>,
    /// How long the first of these records has been waiting, in milliseconds: the broker's wall clock less the timestamp of the
    /// batch that holds the record, which is that of the batch's first record (with LogAppendTime, when it was appended). So it
    /// is exact where a batch is read from its beginning, and too large by the batch's own span at most elsewhere. 0 when `lag`
    /// is 0, and for timestamps to come; `null` when the producer gave none, or when the broker would have taken too long to
    /// look at all the batches.
    pub lag_ms: Option<u64>,
}
