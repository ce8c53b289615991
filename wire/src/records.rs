//! Records within a batch: built for producing, decoded for consumers and consoles.
//!
//! Header keys are bytes, and duplicates keep their order: Kafka promises neither UTF-8 nor uniqueness.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::batch::{self, BatchError, BatchHeader, HEADER_LEN, MAGIC};
use crate::compression::{Compression, CompressionError};
use crate::varint;

/// A record's header: key, and a value that may be null.
pub type RecordHeader = (Bytes, Option<Bytes>);

/// A record as it comes out of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970, of creation or of appending as the batch says.
    pub timestamp: i64,
    /// Key.
    pub key: Option<Bytes>,
    /// Value; null is a tombstone where the topic is compacted.
    pub value: Option<Bytes>,
    /// Headers in their order.
    pub headers: Vec<RecordHeader>,
}

/// Records could not be decoded.
#[derive(Debug, Error)]
pub enum RecordsError {
    /// The batch itself is bad.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Its records could not be unfolded.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// A record breaks the format.
    #[error("record {index} of the batch is malformed: {reason}")]
    Malformed {
        /// Position in the batch, from 0.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The records of a batch from which some were removed could not be put together again.
    #[error("the records left of the batch cannot be put together: {reason}")]
    NotRewritten {
        /// What the codec says, or which limit is exceeded.
        reason: String,
    },
}

/// Who produced a batch, for an idempotent producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerStamp {
    /// Producer id.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// Sequence number of the batch's first record.
    pub base_sequence: i32,
}

/// Gathers records into a batch.
#[derive(Clone, Debug, Default)]
pub struct BatchBuilder {
    records: BytesMut,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for `len` bytes of records.
    pub fn with_capacity(len: usize) -> Self {
        Self { records: BytesMut::with_capacity(len), ..Self::default() }
    }

    /// An upper bound of what a record adds to [`BatchBuilder::len`].
    pub fn record_len_max(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[RecordHeader]) -> usize {
        let headers_len: usize =
            headers.iter().map(|(key, value)| 10 + key.len() + value.as_ref().map_or(0, Bytes::len)).sum();
        36 + key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + headers_len
    }

    /// Appends a record. Its offset is the number of those before it. `timestamp` is in milliseconds since 1970.
    pub fn push(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[RecordHeader]) {
        assert!(self.count < i32::MAX, "a batch holds fewer than 2^31 records");
        if self.count == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        let offset_delta = i64::from(self.count);

        let bytes_len = |bytes: Option<&[u8]>| match bytes {
            Some(bytes) => varint::encoded_len(bytes.len() as i64) + bytes.len(),
            None => 1,
        };
        let mut len = 1 + varint::encoded_len(timestamp_delta) + varint::encoded_len(offset_delta);
        len += bytes_len(key) + bytes_len(value) + varint::encoded_len(headers.len() as i64);
        for (key, value) in headers {
            len += bytes_len(Some(key)) + bytes_len(value.as_deref());
        }

        let put_bytes = |buf: &mut BytesMut, bytes: Option<&[u8]>| match bytes {
            Some(bytes) => {
                varint::put(buf, bytes.len() as i64);
                buf.put_slice(bytes);
            }
            None => varint::put(buf, -1),
        };
        let buf = &mut self.records;
        buf.reserve(len + 5);
        varint::put(buf, len as i64);
        buf.put_i8(0);
        varint::put(buf, timestamp_delta);
        varint::put(buf, offset_delta);
        put_bytes(buf, key);
        put_bytes(buf, value);
        varint::put(buf, headers.len() as i64);
        for (key, value) in headers {
            put_bytes(buf, Some(key));
            put_bytes(buf, value.as_deref());
        }
        self.count += 1;
    }

    /// Number of records.
    pub fn count(&self) -> i32 {
        self.count
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch, header included, if it is not compressed.
    pub fn len(&self) -> usize {
        HEADER_LEN + self.records.len()
    }

    /// The finished batch with base offset 0, as a producer sends it. At least one record must be in it.
    ///
    /// # Errors
    /// The compressor failed.
    pub fn finish(self, compression: Compression, producer: Option<ProducerStamp>) -> std::io::Result<Bytes> {
        assert!(self.count > 0, "a batch holds at least one record");
        let compressed;
        let records: &[u8] = match compression {
            Compression::None => &self.records,
            _ => {
                compressed = compression.compress(&self.records)?;
                &compressed
            }
        };
        let producer = producer.unwrap_or(ProducerStamp { producer_id: -1, producer_epoch: -1, base_sequence: -1 });
        let header = BatchHeader {
            base_offset: 0,
            batch_length: 0,
            partition_leader_epoch: -1,
            magic: MAGIC,
            crc: 0,
            attributes: i16::from(compression.code()),
            last_offset_delta: self.count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: producer.producer_id,
            producer_epoch: producer.producer_epoch,
            base_sequence: producer.base_sequence,
            record_count: self.count,
        };
        batch::seal(header, records).ok_or_else(|| std::io::Error::other("a batch of more than 2 GiB"))
    }
}

/// Checks a whole batch, CRC included, and decodes its records. The records may unfold to at most `len_max` bytes. Keys
/// and values are slices of `bytes` where it is not compressed. A batch that compaction has emptied has no records.
///
/// # Errors
/// See [`RecordsError`].
pub fn decode_batch(bytes: &Bytes, len_max: usize) -> Result<(BatchHeader, Vec<Record>), RecordsError> {
    let header = batch::check_stored_batch(bytes)?;
    let records = unfold(&header, bytes, len_max)?;
    let count = usize::try_from(header.record_count).unwrap_or(0);
    // What the header says of the count is not believed before the bytes are there.
    let mut decoded = Vec::with_capacity(count.min(records.len() / 7));
    let mut reader = Reader::new(&records);
    for _ in 0..count {
        decoded.push(decode_record(&mut reader, &header, &records)?);
    }
    reader.finish()?;
    Ok((header, decoded))
}

/// The records of a batch that has been checked, uncompressed, in at most `len_max` bytes.
pub(crate) fn unfold(header: &BatchHeader, batch: &Bytes, len_max: usize) -> Result<Bytes, RecordsError> {
    // There are no bytes then, which a codec would take for damage.
    if header.record_count == 0 {
        return Ok(Bytes::new());
    }
    Ok(header.compression()?.decompress(&batch.slice(HEADER_LEN..), len_max)?)
}

/// `records` are the bytes that `reader` reads, from which key and value are sliced.
fn decode_record(reader: &mut Reader<'_>, batch: &BatchHeader, records: &Bytes) -> Result<Record, RecordsError> {
    let parts = reader.start_record(batch)?;
    let mut headers = Vec::with_capacity(parts.headers_count.min(64));
    for _ in 0..parts.headers_count {
        let (key, value) = reader.header()?;
        headers.push((records.slice(key), value.map(|range| records.slice(range))));
    }
    reader.end_record(&parts)?;
    Ok(Record {
        offset: parts.offset(batch),
        timestamp: parts.timestamp(batch),
        key: parts.key.map(|range| records.slice(range)),
        value: parts.value.map(|range| records.slice(range)),
        headers,
    })
}

/// Where the parts of a record are among the records' bytes.
#[derive(Clone, Debug)]
pub(crate) struct RecordParts {
    /// The whole record, the length before it included.
    pub(crate) whole: Range<usize>,
    /// Where the byte of attributes is, of which none is in use.
    pub(crate) attributes: usize,
    /// Milliseconds after the batch's base timestamp.
    pub(crate) timestamp_delta: i64,
    /// All from the offset delta on.
    pub(crate) rest: Range<usize>,
    /// Offset after the batch's base offset.
    offset_delta: i64,
    /// The key, unless it is null.
    pub(crate) key: Option<Range<usize>>,
    /// The value, unless it is null.
    pub(crate) value: Option<Range<usize>>,
    /// How many headers follow, which [`Reader::header`] reads.
    headers_count: usize,
}

impl RecordParts {
    pub(crate) fn offset(&self, batch: &BatchHeader) -> i64 {
        batch.base_offset.wrapping_add(self.offset_delta)
    }

    /// Of creation or of appending, as the batch says.
    pub(crate) fn timestamp(&self, batch: &BatchHeader) -> i64 {
        match batch.is_log_append_time() {
            true => batch.max_timestamp,
            false => batch.base_timestamp.wrapping_add(self.timestamp_delta),
        }
    }
}

/// Reads uncompressed records one after the other: [`Reader::start_record`], [`Reader::header`] as often as that says,
/// [`Reader::end_record`]; or [`Reader::skim_record`], where headers are of no interest but the order of offsets is.
/// Allocates nothing.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    index: usize,
    /// The least offset delta that [`Reader::skim_record`] takes.
    delta_min: i64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, index: 0, delta_min: 0 }
    }

    /// Whether all has been read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.position >= self.bytes.len()
    }

    /// An error about the record being read.
    fn malformed(&self, reason: &'static str) -> RecordsError {
        RecordsError::Malformed { index: self.index, reason }
    }

    fn varint(&mut self) -> Result<i64, RecordsError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let (value, len) = varint::get(rest).ok_or_else(|| self.malformed("bad varint"))?;
        self.position += len;
        Ok(value)
    }

    /// Bytes with their length before them, −1 for null.
    fn nullable_bytes(&mut self) -> Result<Option<Range<usize>>, RecordsError> {
        let len = self.varint()?;
        if len == -1 {
            return Ok(None);
        }
        let len = usize::try_from(len).map_err(|_| self.malformed("negative length"))?;
        let end = self.position.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed("a length reaches beyond the batch"))?;
        let range = self.position..end;
        self.position = end;
        Ok(Some(range))
    }

    /// Reads a record up to its headers.
    fn start_record(&mut self, batch: &BatchHeader) -> Result<RecordParts, RecordsError> {
        let start = self.position;
        let len = usize::try_from(self.varint()?).map_err(|_| self.malformed("negative length"))?;
        let end = self.position.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed("it reaches beyond the batch"))?;
        if len == 0 {
            return Err(self.malformed("empty"));
        }
        let attributes = self.position;
        self.position += 1;
        let timestamp_delta = self.varint()?;
        let rest_start = self.position;
        let offset_delta = self.varint()?;
        if offset_delta < 0 || offset_delta > i64::from(batch.last_offset_delta) {
            return Err(self.malformed("its offset lies outside the batch"));
        }
        let key = self.nullable_bytes()?;
        let value = self.nullable_bytes()?;
        let headers_count = usize::try_from(self.varint()?).map_err(|_| self.malformed("negative header count"))?;
        // A header takes two bytes at least.
        if headers_count > end.saturating_sub(self.position) / 2 {
            return Err(self.malformed("more headers than there is room for"));
        }
        let (whole, rest) = (start..end, rest_start..end);
        Ok(RecordParts { whole, attributes, timestamp_delta, rest, offset_delta, key, value, headers_count })
    }

    /// Reads the next header of a record, key and value.
    fn header(&mut self) -> Result<(Range<usize>, Option<Range<usize>>), RecordsError> {
        let key = self.nullable_bytes()?.ok_or_else(|| self.malformed("null header key"))?;
        Ok((key, self.nullable_bytes()?))
    }

    /// The record must end here.
    fn end_record(&mut self, parts: &RecordParts) -> Result<(), RecordsError> {
        if self.position != parts.whole.end {
            return Err(self.malformed("its length does not match"));
        }
        self.index += 1;
        Ok(())
    }

    /// Reads a whole record; its headers are checked and passed over. Its offset must be above that of the record
    /// skimmed before.
    pub(crate) fn skim_record(&mut self, batch: &BatchHeader) -> Result<RecordParts, RecordsError> {
        let parts = self.start_record(batch)?;
        if parts.offset_delta < self.delta_min {
            return Err(self.malformed("its offset is not above the one before"));
        }
        self.delta_min = parts.offset_delta + 1;
        for _ in 0..parts.headers_count {
            self.header()?;
        }
        self.end_record(&parts)?;
        Ok(parts)
    }

    /// All must have been read.
    pub(crate) fn finish(&self) -> Result<(), RecordsError> {
        if !self.is_at_end() {
            // Of the last record, not of one that is not there.
            let index = self.index.saturating_sub(1);
            return Err(RecordsError::Malformed { index, reason: "bytes follow the last record" });
        }
        Ok(())
    }
}
