//! Headers of record batches, format version 2, as far as a log needs them. Records are never decoded.
//!
//! Layout (big-endian): base offset 0..8, length of what follows it 8..12, partition leader epoch 12..16, magic 16, CRC32C 17..21 (of everything
//! from 21 on), attributes 21..23, last offset delta 23..27, base timestamp 27..35, max timestamp 35..43, producer id 43..51,
//! producer epoch 51..53, base sequence 53..57, record count 57..61.

use lockstep_core::BATCH_BYTES_MAX;

use crate::storage::segment::SegmentName;

/// Length of a batch's header; no batch is shorter.
pub(crate) const HEADER_LEN: usize = 61;
/// Bytes before and including the length field.
const LENGTH_END: usize = 12;
const CRC_START: usize = 17;
/// The batch's checksum covers what begins here.
pub(crate) const CRC_END: usize = 21;
/// Longest batch that a compaction writes. Compression may be worse than the producer's was: this is what records may unfold to.
pub(crate) const COMPACTED_LEN_MAX: usize = 16 << 20;
/// Attribute bit 3 (of the low byte): timestamps are those of the append.
const LOG_APPEND_TIME: u8 = 1 << 3;

/// What a log needs of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Offset of the first record.
    pub(crate) base_offset: i64,
    /// Offset after the last record.
    pub(crate) next_offset: i64,
    /// Length of the whole batch in bytes.
    pub(crate) len: usize,
    /// The epoch in which it was appended. The batch's checksum does not cover it.
    pub(crate) leader_epoch: i32,
    /// Largest timestamp in milliseconds; −1 when there is none.
    pub(crate) max_timestamp_ms: i64,
    /// CRC32C of everything from byte 21 on.
    pub(crate) crc32c: u32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`; `None` when it is cut off or contradicts itself.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let base_offset = i64::from_be_bytes(field(header, 0)?);
        let after_length = u32::from_be_bytes(field(header, 8)?) as usize;
        let last_offset_delta = i32::from_be_bytes(field(header, 23)?);
        let len = after_length.checked_add(LENGTH_END)?;
        if base_offset < 0 || header[16] != 2 || last_offset_delta < 0 || len < HEADER_LEN || len > i32::MAX as usize {
            return None;
        }
        Some(Self {
            base_offset,
            next_offset: base_offset.checked_add(i64::from(last_offset_delta))?.checked_add(1)?,
            len,
            leader_epoch: i32::from_be_bytes(field(header, 12)?),
            max_timestamp_ms: i64::from_be_bytes(field(header, 35)?),
            crc32c: u32::from_be_bytes(field(header, CRC_START)?),
        })
    }

    /// Is `batch` (exactly this header's batch) undamaged?
    pub(crate) fn verifies(&self, batch: &[u8]) -> bool {
        batch.len() == self.len && batch.get(CRC_END..).is_some_and(|covered| crc32c::crc32c(covered) == self.crc32c)
    }
}

/// No batch of the segment is longer.
pub(crate) fn len_max(segment: SegmentName) -> usize {
    if segment.is_compacted() { COMPACTED_LEN_MAX } else { BATCH_BYTES_MAX }
}

/// Writes what the log decides into a batch as its producer sent it. The batch must be at least a header long.
pub(crate) fn stamp(batch: &mut [u8], base_offset: i64, leader_epoch: i32, log_append_time_ms: Option<i64>) {
    assert!(batch.len() >= HEADER_LEN, "a batch is at least its header");
    batch[0..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
    if let Some(time_ms) = log_append_time_ms {
        batch[22] |= LOG_APPEND_TIME;
        batch[35..43].copy_from_slice(&time_ms.to_be_bytes());
        let crc = crc32c::crc32c(&batch[CRC_END..]);
        batch[CRC_START..CRC_END].copy_from_slice(&crc.to_be_bytes());
    }
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> Option<[u8; N]> {
    header.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tests::batch::batch;

    #[test]
    fn a_stamped_batch_keeps_its_crc() {
        let mut bytes = batch(3, 1_000, b"some records");
        stamp(&mut bytes, 40, 7, None);
        let header = BatchHeader::parse(&bytes).unwrap();
        assert_eq!((header.base_offset, header.next_offset, header.max_timestamp_ms), (40, 43, 1_000));
        assert_eq!(&bytes[12..16], &7i32.to_be_bytes());
        assert!(header.verifies(&bytes));
        bytes[HEADER_LEN] ^= 1;
        assert!(!header.verifies(&bytes));
    }

    #[test]
    fn log_append_time_makes_the_crc_anew() {
        let mut bytes = batch(1, 1_000, b"some records");
        let before = BatchHeader::parse(&bytes).unwrap();
        stamp(&mut bytes, 0, 0, Some(2_000));
        let header = BatchHeader::parse(&bytes).unwrap();
        assert_eq!(header.max_timestamp_ms, 2_000);
        assert_ne!(header.crc32c, before.crc32c);
        assert!(header.verifies(&bytes));
        assert_eq!(i16::from_be_bytes([bytes[21], bytes[22]]), 8);
    }

    #[test]
    fn a_header_that_contradicts_itself_is_refused() {
        let good = batch(1, 0, b"x");
        assert!(BatchHeader::parse(&good).is_some());
        assert!(BatchHeader::parse(&good[..60]).is_none());
        for (at, value) in [(0, 0xff), (8, 0xff), (16, 1), (23, 0xff)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(BatchHeader::parse(&bad).is_none(), "byte {at}");
        }
        let mut short = good;
        short[8..12].copy_from_slice(&48u32.to_be_bytes());
        assert!(BatchHeader::parse(&short).is_none());
    }
}
