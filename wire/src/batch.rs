//! Record batches of format 2, as opaque bytes behind a header of 61 bytes.
//!
//! The CRC covers the attributes and all that follows, so that base offset and leader epoch can be stamped into the
//! header without touching it.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::compression::Compression;
use crate::records::ProducerStamp;

/// Bytes of a batch before its records.
pub const HEADER_LEN: usize = 61;
/// Bytes before those that `batch_length` counts.
pub const LOG_OVERHEAD: usize = 12;
/// Where the leader epoch is, which a broker stamps.
pub const LEADER_EPOCH_RANGE: Range<usize> = 12..16;
/// Where the magic byte is; all formats of Kafka have it there.
pub const MAGIC_POSITION: usize = 16;
/// Where the CRC is.
pub const CRC_RANGE: Range<usize> = 17..21;
/// The CRC covers everything from here on.
pub const CRC_START: usize = 21;
/// The only format that is accepted.
pub const MAGIC: i8 = 2;
/// A record without key, value and headers takes at least this: length, attributes, timestamp, offset, key, value,
/// headers.
const RECORD_LEN_MIN: usize = 7;

/// A batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; what a producer sends means nothing.
    pub base_offset: i64,
    /// Bytes that follow this field.
    pub batch_length: i32,
    /// Epoch of the leader that appended it, −1 from a producer.
    pub partition_leader_epoch: i32,
    /// Format, 2.
    pub magic: i8,
    /// CRC32C over everything from the attributes on.
    pub crc: u32,
    /// Bits 0–2 compression, 3 timestamp type, 4 transactional, 5 control, 6 has a delete horizon.
    pub attributes: i16,
    /// Offset of the last record less the base offset.
    pub last_offset_delta: i32,
    /// Timestamp of the first record, in milliseconds since 1970 (or the delete horizon).
    pub base_timestamp: i64,
    /// The greatest timestamp, in milliseconds since 1970.
    pub max_timestamp: i64,
    /// Producer id, −1 if it has none.
    pub producer_id: i64,
    /// Producer epoch, −1 if it has none.
    pub producer_epoch: i16,
    /// Sequence number of the first record, −1 if it has none.
    pub base_sequence: i32,
    /// Number of records.
    pub record_count: i32,
}

/// Why bytes are not a batch that can be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// The bytes end within the batch.
    #[error("{len} bytes do not hold a batch of {needed}")]
    Truncated {
        /// Bytes there are.
        len: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The length field is negative or less than a header's.
    #[error("batch length {batch_length} is below the least")]
    BadLength {
        /// The field.
        batch_length: i32,
    },
    /// Bytes follow the batch where one batch was expected.
    #[error("{extra} bytes follow the batch")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
    /// A message set of the formats 0 and 1, or of one yet to come.
    #[error("format {magic} is not supported, only 2 is")]
    UnsupportedMagic {
        /// The format.
        magic: i8,
    },
    /// The CRC does not match.
    #[error("CRC is {actual:#010x}, the header says {expected:#010x}")]
    CrcMismatch {
        /// As the header has it.
        expected: u32,
        /// As computed.
        actual: u32,
    },
    /// A batch without records where some must be, with fewer bytes than so many records take, or with bytes but no
    /// records.
    #[error("{record_count} records in {records_len} bytes")]
    BadRecordCount {
        /// The field.
        record_count: i32,
        /// Bytes behind the header.
        records_len: usize,
    },
    /// The last offset delta does not go with the number of records.
    #[error("last offset delta {last_offset_delta} with {record_count} records")]
    BadOffsetDelta {
        /// The field.
        last_offset_delta: i32,
        /// The field.
        record_count: i32,
    },
    /// A compression that Kafka does not have.
    #[error("unknown compression {code}")]
    UnknownCompression {
        /// Lowest three bits of the attributes.
        code: u8,
    },
}

fn array_at<const N: usize>(bytes: &[u8], position: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[position..position + N]);
    array
}

impl BatchHeader {
    /// Reads a header from the front of `bytes`. Checks nothing but that there are enough of them.
    ///
    /// # Errors
    /// [`BatchError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let header: &[u8; HEADER_LEN] =
            bytes.first_chunk().ok_or(BatchError::Truncated { len: bytes.len(), needed: HEADER_LEN })?;
        Ok(Self {
            base_offset: i64::from_be_bytes(array_at(header, 0)),
            batch_length: i32::from_be_bytes(array_at(header, 8)),
            partition_leader_epoch: i32::from_be_bytes(array_at(header, 12)),
            magic: header[MAGIC_POSITION] as i8,
            crc: u32::from_be_bytes(array_at(header, 17)),
            attributes: i16::from_be_bytes(array_at(header, 21)),
            last_offset_delta: i32::from_be_bytes(array_at(header, 23)),
            base_timestamp: i64::from_be_bytes(array_at(header, 27)),
            max_timestamp: i64::from_be_bytes(array_at(header, 35)),
            producer_id: i64::from_be_bytes(array_at(header, 43)),
            producer_epoch: i16::from_be_bytes(array_at(header, 51)),
            base_sequence: i32::from_be_bytes(array_at(header, 53)),
            record_count: i32::from_be_bytes(array_at(header, 57)),
        })
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.base_offset.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.partition_leader_epoch.to_be_bytes());
        bytes[16] = self.magic as u8;
        bytes[17..21].copy_from_slice(&self.crc.to_be_bytes());
        bytes[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        bytes[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        bytes[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        bytes[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        bytes[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        bytes[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        bytes[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        bytes[57..61].copy_from_slice(&self.record_count.to_be_bytes());
        bytes
    }

    /// Bytes of the whole batch, header included. `None` if the length field is nonsense.
    pub fn total_len(&self) -> Option<usize> {
        let length = usize::try_from(self.batch_length).ok()?;
        (length >= HEADER_LEN - LOG_OVERHEAD).then_some(length + LOG_OVERHEAD)
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// How the records are compressed.
    ///
    /// # Errors
    /// [`BatchError::UnknownCompression`].
    pub fn compression(&self) -> Result<Compression, BatchError> {
        let code = (self.attributes & 0x07) as u8;
        Compression::from_code(code).ok_or(BatchError::UnknownCompression { code })
    }

    /// The timestamps are the time of appending, not of creation.
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & 0x08 != 0
    }

    /// Part of a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & 0x10 != 0
    }

    /// Holds transaction markers, not messages.
    pub fn is_control(&self) -> bool {
        self.attributes & 0x20 != 0
    }

    /// Comes from an idempotent producer.
    pub fn has_producer_id(&self) -> bool {
        self.producer_id >= 0
    }

    fn check_format(&self, len: usize) -> Result<usize, BatchError> {
        if self.magic != MAGIC {
            return Err(BatchError::UnsupportedMagic { magic: self.magic });
        }
        let total_len = self.total_len().ok_or(BatchError::BadLength { batch_length: self.batch_length })?;
        if total_len > len {
            return Err(BatchError::Truncated { len, needed: total_len });
        }
        Ok(total_len)
    }
}

/// Checks that `bytes` are exactly one batch as a producer may send it: length, format, CRC, at least one record,
/// consecutive offsets, a compression that exists. Records are not decoded.
///
/// # Errors
/// See [`BatchError`]. The format is looked at first, since formats 0 and 1 mean other things by the other fields.
pub fn check_batch(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = check_stored_batch(bytes)?;
    if header.record_count == 0 {
        let records_len = bytes.len() - HEADER_LEN;
        return Err(BatchError::BadRecordCount { record_count: header.record_count, records_len });
    }
    // In 64 bits: a count of i32::MIN must not overflow.
    if i64::from(header.last_offset_delta) != i64::from(header.record_count) - 1 {
        return Err(BatchError::BadOffsetDelta {
            last_offset_delta: header.last_offset_delta,
            record_count: header.record_count,
        });
    }
    Ok(header)
}

/// Like [`check_batch`], for batches that compaction may have thinned out: the offsets may have gaps, and of a batch
/// whose records are all gone the header alone may be left, so that its offsets stay accounted for.
///
/// # Errors
/// See [`BatchError`].
pub fn check_stored_batch(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    if let Some(&magic) = bytes.get(MAGIC_POSITION)
        && magic as i8 != MAGIC
    {
        return Err(BatchError::UnsupportedMagic { magic: magic as i8 });
    }
    let header = BatchHeader::parse(bytes)?;
    let total_len = header.check_format(bytes.len())?;
    if total_len < bytes.len() {
        return Err(BatchError::TrailingBytes { extra: bytes.len() - total_len });
    }
    let actual = crc32c::crc32c(&bytes[CRC_START..]);
    if actual != header.crc {
        return Err(BatchError::CrcMismatch { expected: header.crc, actual });
    }
    let compression = header.compression()?;
    let records_len = total_len - HEADER_LEN;
    let is_possible = match usize::try_from(header.record_count) {
        Err(_) => false,
        Ok(0) => records_len == 0,
        Ok(count) => compression != Compression::None || count.saturating_mul(RECORD_LEN_MIN) <= records_len,
    };
    if !is_possible {
        return Err(BatchError::BadRecordCount { record_count: header.record_count, records_len });
    }
    // A batch without records covers the offsets of those it had, of which there was at least one.
    if i64::from(header.last_offset_delta) < (i64::from(header.record_count) - 1).max(0) {
        return Err(BatchError::BadOffsetDelta {
            last_offset_delta: header.last_offset_delta,
            record_count: header.record_count,
        });
    }
    Ok(header)
}

/// Writes another producer id, epoch and sequence number into a finished batch, and the CRC that goes with them.
///
/// # Errors
/// [`BatchError::Truncated`]: `bytes` are shorter than a header.
pub fn stamp_producer(bytes: &mut [u8], stamp: ProducerStamp) -> Result<(), BatchError> {
    let mut header = BatchHeader::parse(bytes)?;
    header.producer_id = stamp.producer_id;
    header.producer_epoch = stamp.producer_epoch;
    header.base_sequence = stamp.base_sequence;
    bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    stamp_crc(bytes);
    Ok(())
}

/// Writes the CRC into a batch that is finished but for it. `bytes` hold a header at least.
pub(crate) fn stamp_crc(bytes: &mut [u8]) {
    let crc = crc32c::crc32c(&bytes[CRC_START..]);
    bytes[CRC_RANGE].copy_from_slice(&crc.to_be_bytes());
}

/// A batch of `header` and `records`, which are compressed already as the header says. Length and CRC of the header are
/// made here. `None` if the length does not fit in its field.
pub(crate) fn seal(header: BatchHeader, records: &[u8]) -> Option<Bytes> {
    let batch_length = i32::try_from(HEADER_LEN - LOG_OVERHEAD + records.len()).ok()?;
    let mut bytes = BytesMut::with_capacity(HEADER_LEN + records.len());
    bytes.put_slice(&BatchHeader { batch_length, ..header }.to_bytes());
    bytes.put_slice(records);
    stamp_crc(&mut bytes);
    Some(bytes.freeze())
}

/// The batches of a record set, each with the range of its bytes. Checks lengths and format only; call [`check_batch`]
/// on the range for the rest. Stops after the first error.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Batches<'a> {
    /// Iterates over `bytes`, which may end within a batch: that gives [`BatchError::Truncated`] for the last one.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<(Range<usize>, BatchHeader), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.position..).filter(|rest| !rest.is_empty())?;
        let step = || -> Result<(usize, BatchHeader), BatchError> {
            if let Some(&magic) = rest.get(MAGIC_POSITION)
                && magic as i8 != MAGIC
            {
                return Err(BatchError::UnsupportedMagic { magic: magic as i8 });
            }
            let header = BatchHeader::parse(rest)?;
            Ok((header.check_format(rest.len())?, header))
        };
        match step() {
            Ok((len, header)) => {
                let range = self.position..self.position + len;
                self.position = range.end;
                Some(Ok((range, header)))
            }
            Err(error) => {
                self.position = self.bytes.len();
                Some(Err(error))
            }
        }
    }
}
