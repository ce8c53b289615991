//! Segments without the records that have a later one of the same key.
//!
//! Each batch is looked at by itself and keeps its offsets. Segments that become short are written together, up to the size that a segment may have; one
//! of which everything stays, and that is long enough, is not written at all.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::op::CompactedSegment;
use lockstep_env::Env;
use lockstep_wire::BatchHeader as WireHeader;
use lockstep_wire::compaction::{
    KeyedRecord, Thinned, delete_horizon_ms, emptied, takes_long, thin, unfolded_bytes_max,
};
use lockstep_wire::records::RecordsError;

use super::keys::Keys;
use super::plan::Plan;
use super::segment_reader::SegmentReader;
use crate::raft::take_turns;
use crate::storage::batch::{BatchHeader, COMPACTED_LEN_MAX};
use crate::storage::check::Pace;
use crate::storage::staging::Staging;
use crate::storage::{PartitionStore, SegmentEntry, SegmentName};
use lockstep_probe::Mark;

/// What decides about records.
pub(super) struct Rules {
    /// The last offset of each key, of the records from `plan.dirty_from` to `keys_end`.
    pub(super) keys: Keys,
    /// Records from here on stay: it was not looked whether there are later ones. Where a batch begins.
    pub(super) keys_end: i64,
    /// Records before this offset are deleted.
    pub(super) log_start_offset: i64,
    /// Tombstones go whose delete horizon is not later. `None`: none go.
    pub(super) now_ms: Option<i64>,
    /// The delete horizon of tombstones that are met for the first time. `None`: they get none now.
    pub(super) horizon_ms: Option<i64>,
    /// Segments are written together up to so many bytes ([`Plan::group_bytes`]).
    pub(super) group_bytes: u64,
}

impl Rules {
    /// Does the record stay?
    fn keep(&self, record: &KeyedRecord<'_>, horizon_ms: Option<i64>) -> bool {
        // As in Kafka, one without a key goes: the topic was not always a compacted one.
        let Some(key) = record.key else { return false };
        if record.offset < self.log_start_offset || self.keys.is_superseded(key, record.offset) {
            return false;
        }
        let is_over = horizon_ms.zip(self.now_ms).is_some_and(|(horizon_ms, now_ms)| horizon_ms <= now_ms);
        if record.is_tombstone && is_over {
            Mark::TombstoneRemoved.reached();
            return false;
        }
        true
    }

    /// What becomes of a batch of this segment.
    fn thin(&self, entry: &SegmentEntry, header: &BatchHeader, batch: &Bytes) -> Thinned {
        if header.base_offset >= self.keys_end {
            return Thinned::Unchanged;
        }
        let Ok(parsed) = WireHeader::parse(batch) else { return Thinned::Unchanged };
        if parsed.record_count == 0 && header.next_offset == entry.next_offset {
            // What an earlier compaction left there, for the same reason.
            return Thinned::Unchanged;
        }
        let horizon_ms = delete_horizon_ms(&parsed);
        let thin = |new_horizon_ms| {
            let len_max = unfolded_bytes_max(batch.len());
            match thin(batch, len_max, new_horizon_ms, |record| self.keep(record, horizon_ms))? {
                // Compression may be worse than the producer's was. Whoever reads the segment takes a longer one for damage.
                Thinned::Rewritten(longer) if longer.len() > COMPACTED_LEN_MAX => {
                    Err(RecordsError::NotRewritten { reason: format!("it would be {} bytes long", longer.len()) })
                }
                thinned => Ok(thinned),
            }
        };
        // A horizon may make it longer than it may be; without one its tombstones stay.
        thin(self.horizon_ms).or_else(|_| thin(None)).unwrap_or_else(|error| {
            // Nobody can read its records, or they unfold to too much: it stays as it is.
            tracing::debug!(base_offset = header.base_offset, %error, "a batch cannot be compacted");
            Thinned::Unchanged
        })
    }
}

/// Writes what stays of the plan's segments, under this revision, and makes it durable here. Gives the segments that take the place of others, none when nothing
/// can be removed.
///
/// # Errors
/// `InvalidData` with the segment that is damaged, or the disk's. What was staged whole is the caller's to discard.
pub(super) async fn rewrite<E: Env>(
    env: &E,
    store: &PartitionStore<E>,
    plan: &Plan,
    revision: u64,
    rules: &Arc<Rules>,
    pace: &mut Pace,
) -> Result<Vec<CompactedSegment>, (SegmentName, io::Error)> {
    let mut compacted = Vec::new();
    let mut group: Option<Group<E>> = None;
    for entry in &plan.segments {
        let failed = |error| (entry.name, error);
        if let Some(full) = group.take_if(|open| open.len() + entry.len > rules.group_bytes) {
            // Not this segment's, which is the first of the next one.
            let first = full.first.name;
            compacted.extend(full.close().await.map_err(|error| (first, error))?);
        }
        let open = group.get_or_insert_with(|| Group::new(env.clone(), revision, *entry));
        if let Err(error) = open.take_in(store, entry, rules, pace).await {
            open.abandon().await;
            return Err(failed(error));
        }
    }
    if let Some(open) = group {
        let name = open.first.name;
        compacted.extend(open.close().await.map_err(|error| (name, error))?);
    }
    Ok(compacted)
}

/// Segments that become one.
struct Group<E: Env> {
    env: E,
    revision: u64,
    first: SegmentEntry,
    next_offset: i64,
    /// `None` while nothing has changed, and there is one segment only.
    staging: Option<Staging<E>>,
    /// Offset after the last batch that was noted or added.
    last_offset: i64,
    /// The last batch, when no record of it is left: the segment's offsets must be covered to their end.
    emptied: Option<Bytes>,
    first_timestamp_ms: Option<i64>,
    max_timestamp_ms: i64,
    max_timestamp_offset: i64,
}

impl<E: Env> Group<E> {
    fn new(env: E, revision: u64, first: SegmentEntry) -> Self {
        Self {
            env,
            revision,
            first,
            next_offset: first.next_offset,
            staging: None,
            last_offset: first.name.base_offset,
            emptied: None,
            first_timestamp_ms: None,
            max_timestamp_ms: -1,
            max_timestamp_offset: -1,
        }
    }

    fn len(&self) -> u64 {
        self.staging.as_ref().map_or(self.first.len, Staging::len)
    }

    /// Another segment becomes part of it, or the first one.
    async fn take_in(
        &mut self,
        store: &PartitionStore<E>,
        entry: &SegmentEntry,
        rules: &Arc<Rules>,
        pace: &mut Pace,
    ) -> io::Result<()> {
        if entry.name != self.first.name && self.staging.is_none() {
            let first = self.first;
            let mut rest = self.copy(store, &first, first.len, pace).await?;
            // The segment's checksum is looked at behind its last batch.
            rest.next(pace).await?;
        }
        self.next_offset = entry.next_offset;
        let mut reader = SegmentReader::open(store, *entry).await?;
        while let Some((header, batch)) = reader.next(pace).await? {
            let thinned = if takes_long(&batch) {
                let (rules, entry, batch) = (Arc::clone(rules), *entry, batch.clone());
                self.env.compute(move || rules.thin(&entry, &header, &batch)).await
            } else {
                rules.thin(entry, &header, &batch)
            };
            if self.staging.is_none() {
                if matches!(thinned, Thinned::Unchanged) {
                    self.note(&header);
                    take_turns().await;
                    continue;
                }
                // The first change: what comes before it stays as it is.
                reader = self.copy(store, entry, reader.position() - header.len as u64, pace).await?;
                reader.next(pace).await?;
            }
            self.add(&header, batch, thinned).await?;
            take_turns().await;
        }
        Ok(())
    }

    /// Begins to write: the first segment's first `len` bytes stay as they are, and were noted. Gives the reader that stands behind them.
    async fn copy(
        &mut self,
        store: &PartitionStore<E>,
        entry: &SegmentEntry,
        len: u64,
        pace: &mut Pace,
    ) -> io::Result<SegmentReader<E>> {
        let staging = Staging::begin(store, SegmentName { revision: self.revision, ..self.first.name }).await?;
        let staging = self.staging.insert(staging);
        let mut reader = SegmentReader::open(store, *entry).await?;
        while reader.position() < len {
            let Some((_, batch)) = reader.next(pace).await? else { break };
            staging.write(batch).await?;
        }
        Ok(reader)
    }

    /// A batch that stays as it is.
    fn note(&mut self, header: &BatchHeader) {
        self.last_offset = header.next_offset;
        self.first_timestamp_ms.get_or_insert(header.max_timestamp_ms);
        if header.max_timestamp_ms > self.max_timestamp_ms {
            self.max_timestamp_ms = header.max_timestamp_ms;
            self.max_timestamp_offset = header.next_offset - 1;
        }
    }

    async fn add(&mut self, header: &BatchHeader, batch: Bytes, thinned: Thinned) -> io::Result<()> {
        let bytes = match thinned {
            Thinned::Unchanged => batch,
            Thinned::Rewritten(bytes) => bytes,
            Thinned::Empty => {
                self.last_offset = header.next_offset;
                let parsed = WireHeader::parse(&batch).map_err(io::Error::other)?;
                self.emptied = Some(Bytes::copy_from_slice(&emptied(&parsed)));
                return Ok(());
            }
        };
        self.emptied = None;
        self.write(bytes).await
    }

    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let header = BatchHeader::parse(&bytes).ok_or(io::ErrorKind::InvalidData)?;
        self.note(&header);
        match &mut self.staging {
            Some(staging) => staging.write(bytes).await,
            None => Ok(()),
        }
    }

    /// Gives it up.
    async fn abandon(&mut self) {
        if let Some(staging) = self.staging.take() {
            staging.abandon().await;
        }
    }

    /// Makes it durable. `None`: everything stays as it is.
    async fn close(mut self) -> io::Result<Option<CompactedSegment>> {
        if let Some(emptied) = self.emptied.take()
            && let Err(error) = self.write(emptied).await
        {
            self.abandon().await;
            return Err(error);
        }
        let Some(staging) = self.staging.take() else { return Ok(None) };
        assert_eq!(self.last_offset, self.next_offset, "segments that were read to their ends reach to their ends");
        let compacted = CompactedSegment {
            base_offset: self.first.name.base_offset,
            next_offset: self.next_offset,
            len: staging.len(),
            crc32c: staging.crc32c(),
            first_timestamp_ms: self.first_timestamp_ms.unwrap_or(-1),
            max_timestamp_ms: self.max_timestamp_ms,
            max_timestamp_offset: self.max_timestamp_offset,
        };
        staging.finish().await?;
        Ok(Some(compacted))
    }
}
