//! What a checkpoint consists of.

use bytes::Bytes;
use lockstep_core::Position;
use serde::{Deserialize, Serialize};

use crate::storage::segment::SegmentEntry;

/// One checkpoint of one shard; it is the Raft snapshot too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The last position applied to it; `None` before the first.
    pub position: Option<Position>,
    /// Raft's membership as of the position, opaque here.
    pub membership: Bytes,
    /// The state machine's snapshot.
    pub core_snapshot: Bytes,
    /// All segments, ascending by name.
    pub segments: Vec<SegmentEntry>,
}

/// Bytes that are no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint manifest: {0}")]
pub struct ManifestError(pub String);

/// No manifest is longer: neither one that is written, nor one that another node is asked for.
pub(crate) const BYTES_MAX: u64 = 4 << 30;

const MAGIC: [u8; 8] = *b"LSMANIF3";
const HEAD_LEN: usize = 24;
const CRC_LEN: usize = 4;

/// The parts that postcard encodes. Frozen: another layout gets another magic.
#[derive(Serialize, Deserialize)]
struct Body {
    position: Option<Position>,
    segments: Vec<SegmentEntry>,
}

impl Manifest {
    /// The bytes on disk and on the wire: versioned, with a checksum at the end.
    ///
    /// `LSMANIF3`, the lengths (big-endian) of the three parts (body u32, membership u32, snapshot u64), the parts, and the CRC32C of
    /// all that (u32). The body is position and segments, in postcard.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body = Body { position: self.position, segments: self.segments.clone() };
        #[allow(clippy::expect_used, reason = "a vector takes whatever plain data there is")]
        let body = postcard::to_allocvec(&body).expect("plain data can be encoded");
        let mut bytes =
            Vec::with_capacity(HEAD_LEN + body.len() + self.membership.len() + self.core_snapshot.len() + CRC_LEN);
        bytes.extend(MAGIC);
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend((self.membership.len() as u32).to_be_bytes());
        bytes.extend((self.core_snapshot.len() as u64).to_be_bytes());
        bytes.extend(&body);
        bytes.extend(&self.membership);
        bytes.extend(&self.core_snapshot);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_be_bytes());
        Bytes::from(bytes)
    }

    /// Reads what [`Manifest::encode`] wrote. Any other bytes are refused, whatever they are. Membership and snapshot share the memory of `bytes`.
    ///
    /// # Errors
    /// Also when the segments contradict each other.
    pub fn decode(bytes: &Bytes) -> Result<Self, ManifestError> {
        let refuse = |reason: &str| ManifestError(reason.to_owned());
        let (checked, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or_else(|| refuse("too short"))?;
        let (head, rest) = checked.split_first_chunk::<HEAD_LEN>().ok_or_else(|| refuse("too short"))?;
        let (magic, head) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(refuse("another format or version"));
        }
        if crc32c::crc32c(checked) != u32::from_be_bytes(*crc) {
            return Err(refuse("wrong checksum"));
        }
        let lengths = || -> Option<(usize, usize, usize)> {
            let (body, head) = head.split_first_chunk::<4>()?;
            let (membership, head) = head.split_first_chunk::<4>()?;
            let (snapshot, _) = head.split_first_chunk::<8>()?;
            let body = usize::try_from(u32::from_be_bytes(*body)).ok()?;
            let membership = usize::try_from(u32::from_be_bytes(*membership)).ok()?;
            let snapshot = usize::try_from(u64::from_be_bytes(*snapshot)).ok()?;
            let together = body.checked_add(membership)?.checked_add(snapshot)?;
            (together == rest.len()).then_some((body, membership, snapshot))
        };
        let (body_len, membership_len, snapshot_len) = lengths().ok_or_else(|| refuse("lengths do not add up"))?;
        let (body, left) = postcard::take_from_bytes::<Body>(&rest[..body_len])
            .map_err(|error| ManifestError(format!("body: {error}")))?;
        if !left.is_empty() {
            return Err(refuse("bytes after the body"));
        }
        check_segments(&body.segments)?;
        let membership_start = HEAD_LEN + body_len;
        let snapshot_start = membership_start + membership_len;
        Ok(Self {
            position: body.position,
            membership: bytes.slice(membership_start..snapshot_start),
            core_snapshot: bytes.slice(snapshot_start..snapshot_start + snapshot_len),
            segments: body.segments,
        })
    }
}

/// Ascending, without gaps within a partition, and each one possible.
pub(crate) fn check_segments(segments: &[SegmentEntry]) -> Result<(), ManifestError> {
    let mut last: Option<&SegmentEntry> = None;
    for segment in segments {
        let base_offset = segment.name.base_offset;
        let is_first = last.is_none_or(|last| last.name.key() != segment.name.key());
        // Of what is listed something can be read, or there is nothing.
        let starts_within = segment.start_offset == base_offset
            || is_first && segment.start_offset > base_offset && segment.start_offset < segment.next_offset;
        let possible = base_offset >= 0
            && segment.next_offset >= base_offset
            && starts_within
            && (segment.len == 0) == (segment.next_offset == base_offset)
            && i64::try_from(segment.len).is_ok()
            && segment.max_timestamp_offset < segment.next_offset;
        let follows = last.is_none_or(|last| {
            if last.name.key() == segment.name.key() {
                last.len > 0 && base_offset == last.next_offset
            } else {
                last.name.key() < segment.name.key()
            }
        });
        if !possible || !follows {
            return Err(ManifestError(format!("segment {:?} is impossible", segment.name)));
        }
        last = Some(segment);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lockstep_core::TopicId;
    use proptest::prelude::*;

    use super::*;
    use crate::storage::segment::SegmentName;

    fn entry(partition: u32, base_offset: i64, next_offset: i64) -> SegmentEntry {
        SegmentEntry {
            name: SegmentName { topic_id: TopicId([9; 16]), partition, base_offset, revision: 0 },
            len: (next_offset - base_offset) as u64 * 100,
            crc32c: 77,
            start_offset: base_offset,
            next_offset,
            first_timestamp_ms: -1,
            max_timestamp_ms: -1,
            max_timestamp_offset: -1,
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            position: Some(Position { term: 3, index: 99 }),
            membership: Bytes::from_static(b"members"),
            core_snapshot: Bytes::from(vec![5; 1000]),
            segments: vec![
                entry(0, 0, 10),
                entry(0, 10, 20),
                entry(1, 0, 0),
                SegmentEntry { start_offset: 8, ..entry(2, 7, 9) },
                entry(3, 5, 5),
            ],
        }
    }

    #[test]
    fn it_comes_back_as_it_was() {
        for manifest in [manifest(), Manifest::default()] {
            assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    }

    #[test]
    fn impossible_segments_are_refused() {
        for segments in [
            vec![entry(0, 10, 20), entry(0, 0, 10)],
            vec![entry(1, 0, 10), entry(0, 0, 10)],
            vec![entry(0, 0, 10), entry(0, 11, 20)],
            vec![entry(0, 0, 10), entry(0, 0, 10)],
            vec![entry(0, 0, 0), entry(0, 0, 10)],
            vec![entry(0, -5, 10)],
            vec![SegmentEntry { len: 0, ..entry(0, 0, 10) }],
            vec![SegmentEntry { start_offset: 10, ..entry(0, 0, 10) }],
            vec![SegmentEntry { start_offset: -1, ..entry(0, 0, 10) }],
            vec![SegmentEntry { start_offset: 1, ..entry(0, 0, 0) }],
            vec![entry(0, 0, 10), SegmentEntry { start_offset: 11, ..entry(0, 10, 20) }],
            vec![SegmentEntry { len: u64::MAX, ..entry(0, 0, 10) }],
        ] {
            let bad = Manifest { segments, ..manifest() };
            assert!(Manifest::decode(&bad.encode()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn damage_is_refused(at in 0usize..1000, mask in 1u8..) {
            let mut bytes = manifest().encode().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= mask;
            prop_assert!(Manifest::decode(&Bytes::from(bytes)).is_err());
        }

        #[test]
        fn hostile_bytes_with_a_good_checksum_do_no_harm(
            lengths in any::<(u32, u32, u64)>(),
            small in any::<bool>(),
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = MAGIC.to_vec();
            let (body, membership, snapshot) = if small { (rest.len() as u32, 0, 0) } else { lengths };
            bytes.extend(body.to_be_bytes());
            bytes.extend(membership.to_be_bytes());
            bytes.extend(snapshot.to_be_bytes());
            bytes.extend(rest);
            let crc = crc32c::crc32c(&bytes);
            bytes.extend(crc.to_be_bytes());
            let _ = Manifest::decode(&Bytes::from(bytes));
        }
    }
}
