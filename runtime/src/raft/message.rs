//! What the members of a shard send each other. Kinds are stable; bodies are postcard, and every struct is frozen once released.

use bytes::Bytes;
use lockstep_core::op::CompactedSegment;
use lockstep_core::{NodeId, Position, TopicId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::log_store::VoteWire;
use crate::storage::SegmentName;

/// Entries, or none as a heartbeat. Body: [`Append`]; payload: the entries, joined. Answer: [`AppendAnswer`].
pub(crate) const APPEND: u8 = 1;
/// Body: [`Ballot`]. Answer: [`BallotAnswer`].
pub(crate) const VOTE: u8 = 2;
/// Would you vote for me? Body: [`Ballot`]. Answer: [`BallotAnswer`].
pub(crate) const PRE_VOTE: u8 = 3;
/// Take this snapshot. Body: [`Offer`]. Repeated until the answer is final. Answer: [`OfferAnswer`].
pub(crate) const INSTALL_SNAPSHOT: u8 = 4;
/// A piece of the snapshot that is on offer. Body: [`ChunkRequest`]. Answer: payload, the bytes.
pub(crate) const SNAPSHOT_CHUNK: u8 = 5;
/// Body: [`Transfer`]. Answer: [`TransferAnswer`].
pub(crate) const TRANSFER_LEADER: u8 = 6;
/// A piece of a segment, for a member whose own copy is damaged. Body: [`SegmentAsk`]. Answer: payload, the bytes.
pub(crate) const SEGMENT_PIECE: u8 = 7;
/// What you gave of this segment has the wrong checksum. Body: [`SegmentSuspicion`]. Answer: empty.
pub(crate) const SEGMENT_SUSPECTED: u8 = 8;

/// Fetch these compacted segments from me. Body: [`StageAsk`]. Repeated until the answer is final. Answer: [`StageAnswer`].
pub(crate) const STAGE_SEGMENTS: u8 = 9;
/// What is your checksum of this segment? Body: [`ChecksumAsk`]. Answer: [`ChecksumAnswer`].
pub(crate) const SEGMENT_CHECKSUM: u8 = 10;

/// An AppendEntries request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Append {
    pub(crate) vote: VoteWire,
    pub(crate) previous: Option<Position>,
    pub(crate) committed: Option<Position>,
    /// Term and length of each entry; they follow `previous` one by one.
    pub(crate) entries: Vec<(u64, u32)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AppendAnswer {
    Success,
    Partial(Option<Position>),
    Conflict,
    HigherVote(VoteWire),
}

/// A RequestVote request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ballot {
    pub(crate) vote: VoteWire,
    pub(crate) last: Option<Position>,
    pub(crate) leadership_transfer: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BallotAnswer {
    pub(crate) vote: VoteWire,
    pub(crate) granted: bool,
    pub(crate) last: Option<Position>,
}

/// A snapshot on offer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) vote: VoteWire,
    /// Names this transmission: pieces are asked for under it.
    pub(crate) transmission: u64,
    /// The last entry it covers.
    pub(crate) position: Position,
    /// Length of the checkpoint manifest, which is fetched like the segments.
    pub(crate) manifest_len: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum OfferAnswer {
    /// Still pulling; so many bytes are there. Offer it again.
    Pulling {
        /// Bytes received.
        done: u64,
        /// Bytes there are to receive.
        all: u64,
    },
    /// Installed, or not needed; the receiver's vote.
    Done(VoteWire),
    /// It went wrong: start over.
    Failed(String),
}

/// A piece of a snapshot on offer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChunkRequest {
    pub(crate) transmission: u64,
    pub(crate) of: ChunkOf,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// What a piece belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChunkOf {
    /// The checkpoint manifest.
    Manifest,
    /// A segment that the manifest lists.
    Segment(SegmentName),
}

/// A piece of a segment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SegmentAsk {
    pub(crate) segment: SegmentName,
    /// So many bytes of the segment will be asked for in all; whoever has fewer has none to give.
    pub(crate) whole: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// A segment that lies on several nodes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChecksumAsk {
    pub(crate) segment: SegmentName,
    /// How long it is where it is asked from.
    pub(crate) len: u64,
}

/// The CRC32C of a segment; `None`: there is none of that name and length.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChecksumAnswer(pub(crate) Option<u32>);

/// A segment that may be damaged where it was fetched from.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SegmentSuspicion {
    pub(crate) segment: SegmentName,
}

/// The result of a compaction that its leader is about to propose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StageAsk {
    /// What the leader had applied when it began: the fate of every compaction before this one is decided there.
    pub(crate) applied: Position,
    pub(crate) topic_id: TopicId,
    pub(crate) partition: u32,
    pub(crate) revision: u64,
    pub(crate) segments: Vec<CompactedSegment>,
}

impl StageAsk {
    /// The name of the segment that begins here.
    pub(crate) fn name(&self, base_offset: i64) -> SegmentName {
        SegmentName { topic_id: self.topic_id, partition: self.partition, base_offset, revision: self.revision }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum StageAnswer {
    /// Not all of it is here yet. Ask again.
    Fetching {
        /// Bytes that came so far.
        done: u64,
    },
    /// All of it is here, and durable.
    Staged,
    /// It cannot be had now.
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) from: VoteWire,
    pub(crate) to: NodeId,
    pub(crate) last: Option<Position>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum TransferAnswer {
    Accepted,
    VoteChanged { expected: VoteWire, actual: VoteWire },
    LogNotFlushed { expected: Option<Position>, actual: Option<Position> },
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Bytes {
    // Plain data of known lengths, which postcard always encodes.
    Bytes::from(postcard::to_allocvec(message).unwrap_or_default())
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(bytes)
}
