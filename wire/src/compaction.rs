//! What compaction of a log needs of record batches: keys and offsets of stored records, and batches from which some
//! records are removed.
//!
//! A batch that is thinned out keeps its offsets and its place in its producer's sequence, whichever records go: base
//! offset, last offset delta, leader epoch, producer id, producer epoch and base sequence stay as they are, down to a
//! batch of a header alone ([`emptied`]). Consumers see gaps, not other offsets, and a broker that reads its log back
//! still knows the last sequence number of each producer.
//!
//! Markers of transactions are no messages and have no keys that compaction may compare: control batches are left alone
//! here.

use std::ops::Range;

use bytes::{BufMut, Bytes};

use crate::batch::{self, BatchHeader, HEADER_LEN, LOG_OVERHEAD};
use crate::compression::{Compression, CompressionError};
use crate::records::{Reader, RecordParts, RecordsError, unfold};
use crate::varint;

/// Attributes: compression.
const COMPRESSION_BITS: i16 = 0x07;
/// Attribute: the base timestamp is the delete horizon.
const DELETE_HORIZON_BIT: i16 = 0x40;
/// Length field of a batch that is a header alone.
const EMPTIED_BATCH_LENGTH: i32 = (HEADER_LEN - LOG_OVERHEAD) as i32;

/// Nothing else runs on a thread while it unfolds a batch.
const UNFOLDED_BYTES_MAX: usize = 16 << 20;

/// How long the records of a batch of so many bytes may be, unfolded, for a compacted topic: 16 MiB, or twice the batch. A longer one is refused when it is
/// produced, and left as it is where it lies in a log already.
pub fn unfolded_bytes_max(batch_len: usize) -> usize {
    UNFOLDED_BYTES_MAX.max(batch_len.saturating_mul(2))
}

/// May looking at the batch's records take longer than a task should keep others waiting? Those of a compressed batch may be a thousand times as long as it is. For
/// others that are not long, handing them to another thread would take longer.
#[must_use]
pub fn takes_long(batch: &[u8]) -> bool {
    const SOON_BYTES: usize = 64 << 10;
    batch.len() > SOON_BYTES
        || !BatchHeader::parse(batch).is_ok_and(|header| header.compression() == Ok(Compression::None))
}

/// What decides about a record's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyedRecord<'a> {
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970, of creation or of appending as the batch says.
    pub timestamp_ms: i64,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// The value is null: whatever had the key is deleted.
    pub is_tombstone: bool,
}

/// A batch without the records that were to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thinned {
    /// All stays as it is: the batch's bytes are to be copied.
    Unchanged,
    /// The batch that takes its place.
    Rewritten(Bytes),
    /// No record is left. What of the batch must stay for the sake of its offsets or its producer, [`emptied`] makes.
    Empty,
}

/// From when on the tombstones of a batch may go, in milliseconds since 1970, if compaction has set that already.
///
/// Only compaction sets it: a producer that did would have its tombstones removed early.
pub fn delete_horizon_ms(header: &BatchHeader) -> Option<i64> {
    (header.attributes & DELETE_HORIZON_BIT != 0).then_some(header.base_timestamp)
}

/// Checks a whole stored batch, CRC included, and shows its records to `visit` one after the other. They may unfold to
/// at most `len_max` bytes. Of a control batch none is shown. Offsets may have gaps but must ascend.
///
/// # Errors
/// See [`RecordsError`]. Records before a malformed one have been shown by then.
pub fn visit_records(
    batch: &Bytes,
    len_max: usize,
    mut visit: impl FnMut(KeyedRecord<'_>),
) -> Result<BatchHeader, RecordsError> {
    let header = batch::check_stored_batch(batch)?;
    if !header.is_control() {
        walk(&header, &unfold(&header, batch, len_max)?, |_, record| visit(record))?;
    }
    Ok(header)
}

/// Whether a record of the batch lacks a key, which makes it one that a compacted topic cannot take.
///
/// # Errors
/// See [`RecordsError`].
pub fn keys_missing(batch: &Bytes, len_max: usize) -> Result<bool, RecordsError> {
    let mut is_missing = false;
    visit_records(batch, len_max, |record| is_missing |= record.key.is_none())?;
    Ok(is_missing)
}

/// Removes the records of a stored batch that `keep` does not want. Those that stay keep their bytes, but for the
/// timestamp's encoding where a delete horizon is set. `keep` is asked once about each record, in their order.
///
/// `horizon_ms` is the delete horizon that the batch gets if a tombstone stays in it and it has none yet. The horizon
/// takes the place of the base timestamp, which nothing but the records' timestamps depends on; these stay the same. A
/// batch without tombstones gets none, since nothing in it waits for that time; one that has a horizon keeps it, or its
/// tombstones would never be old enough.
///
/// The records may unfold to at most `len_max` bytes, before and after.
///
/// # Errors
/// See [`RecordsError`]. A horizon may make records longer, since it may be further from their timestamps than the base
/// timestamp was: a batch that then exceeds `len_max`, which could not be read again, is
/// [`CompressionError::TooLong`].
pub fn thin(
    batch: &Bytes,
    len_max: usize,
    horizon_ms: Option<i64>,
    mut keep: impl FnMut(&KeyedRecord<'_>) -> bool,
) -> Result<Thinned, RecordsError> {
    let header = batch::check_stored_batch(batch)?;
    if header.is_control() {
        return Ok(Thinned::Unchanged);
    }
    let compression = header.compression()?;
    let records = unfold(&header, batch, len_max)?;
    let mut kept = Kept::default();
    walk(&header, &records, |parts, record| {
        if keep(&record) {
            kept.push(&parts.whole, &record);
        }
    })?;
    if kept.count == 0 {
        return Ok(Thinned::Empty);
    }
    let horizon_ms = horizon_ms.filter(|_| kept.has_tombstone && delete_horizon_ms(&header).is_none());
    if kept.count == header.record_count && horizon_ms.is_none() {
        return Ok(Thinned::Unchanged);
    }

    // Where the time is that of appending, all records have the greatest timestamp of the batch, which stays thereby.
    let mut thinned = BatchHeader { record_count: kept.count, max_timestamp: kept.max_timestamp_ms, ..header };
    if let Some(horizon_ms) = horizon_ms {
        thinned.attributes |= DELETE_HORIZON_BIT;
        thinned.base_timestamp = horizon_ms;
    }
    let mut plain = Vec::with_capacity(kept.runs.iter().map(Range::len).sum());
    for run in &kept.runs {
        let run = &records[run.clone()];
        match horizon_ms {
            None => plain.extend_from_slice(run),
            Some(horizon_ms) => rebase(&header, run, horizon_ms, &mut plain)?,
        }
    }
    if plain.len() > len_max {
        return Err(CompressionError::TooLong { len_max }.into());
    }
    let sealed = match compression {
        Compression::None => batch::seal(thinned, &plain),
        _ => {
            let compressed = compression.compress(&plain);
            let compressed = compressed.map_err(|error| RecordsError::NotRewritten { reason: error.to_string() })?;
            batch::seal(thinned, &compressed)
        }
    };
    let too_long = || RecordsError::NotRewritten { reason: "a batch of more than 2 GiB".to_owned() };
    Ok(Thinned::Rewritten(sealed.ok_or_else(too_long)?))
}

/// What is left of a batch without its records: a batch that covers the same offsets and says the same of its producer.
/// [`batch::check_stored_batch`] accepts it, and consumers find no records in it.
pub fn emptied(header: &BatchHeader) -> [u8; HEADER_LEN] {
    let emptied = BatchHeader {
        batch_length: EMPTIED_BATCH_LENGTH,
        // No bytes follow, not even those of a codec that has nothing to compress.
        attributes: header.attributes & !COMPRESSION_BITS,
        record_count: 0,
        ..*header
    };
    let mut bytes = emptied.to_bytes();
    batch::stamp_crc(&mut bytes);
    bytes
}

/// Shows each of the batch's records, which are uncompressed, with the places of its parts. They must be as many as the
/// header says, and no more.
fn walk(
    header: &BatchHeader,
    records: &[u8],
    mut each: impl FnMut(&RecordParts, KeyedRecord<'_>),
) -> Result<(), RecordsError> {
    let mut reader = Reader::new(records);
    for _ in 0..header.record_count {
        let parts = reader.skim_record(header)?;
        let record = KeyedRecord {
            offset: parts.offset(header),
            timestamp_ms: parts.timestamp(header),
            key: parts.key.clone().map(|range| &records[range]),
            is_tombstone: parts.value.is_none(),
        };
        each(&parts, record);
    }
    reader.finish()
}

/// Appends the records of `run`, with their timestamps after `horizon_ms` instead of `header`'s base timestamp.
fn rebase(header: &BatchHeader, run: &[u8], horizon_ms: i64, out: &mut Vec<u8>) -> Result<(), RecordsError> {
    let mut reader = Reader::new(run);
    while !reader.is_at_end() {
        let parts = reader.skim_record(header)?;
        // Timestamps may be any number: a sum or a difference that wraps around is undone by the reader's sum.
        let timestamp = header.base_timestamp.wrapping_add(parts.timestamp_delta);
        let delta = timestamp.wrapping_sub(horizon_ms);
        let len = 1 + varint::encoded_len(delta) + parts.rest.len();
        varint::put(out, len as i64);
        out.put_u8(run[parts.attributes]);
        varint::put(out, delta);
        out.extend_from_slice(&run[parts.rest]);
    }
    Ok(())
}

/// The records of a batch that stay.
#[derive(Default)]
struct Kept {
    count: i32,
    /// Where they are among the records' bytes; neighbours are one run.
    runs: Vec<Range<usize>>,
    has_tombstone: bool,
    /// Means nothing while there are none.
    max_timestamp_ms: i64,
}

impl Kept {
    fn push(&mut self, whole: &Range<usize>, record: &KeyedRecord<'_>) {
        match self.runs.last_mut() {
            Some(run) if run.end == whole.start => run.end = whole.end,
            _ => self.runs.push(whole.clone()),
        }
        self.max_timestamp_ms = match self.count {
            0 => record.timestamp_ms,
            _ => self.max_timestamp_ms.max(record.timestamp_ms),
        };
        self.has_tombstone |= record.is_tombstone;
        self.count += 1;
    }
}
