//! Reading the files back after a start.
//!
//! Batches are read in the order of their sequence numbers. Where the next one is missing or bad, two things can be the reason:
//!
//! - The node stopped while it was being written. It was never acknowledged. Because a batch is begun only after the one before it is
//!   durable, no later batch was ever written in that file: the bad batch is the *tail* and is cut.
//! - It was durable and was damaged since. If so much as the header of a later batch is there, this is the case: an error.
//!
//! When the very last durable batch is the damaged one, the two cannot be told apart, and it is cut.
//!
//! Every start begins a new file and never writes behind a cut tail, so remains of the tail are never taken for what follows it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lockstep_core::{Position, ShardId};
use lockstep_env::{Disk, DiskFile, Env, OpenMode};

use super::format::{
    BLOCK_BYTES, HEADER_BYTES, Header, Identity, Kind, Name, RECORD_BYTES, Record, file_name, padded, spare_name,
};
use super::index::{Place, ShardIndex};
use super::keeper::SPARES_MAX;
use super::mark::{Mark, follows};
use super::state::{FileOf, JournalFile, SpareFile};
use crate::error::StartError;
use lockstep_probe::{Mark as Situation, Mistake};

/// Bytes read at once.
const WINDOW_BYTES: usize = 1 << 20;
/// Larger generations are not believed: nobody can have begun that many files, and their upper bits have a meaning in memory.
const GENERATION_MAX: u64 = 1 << 62;

/// Why there is no batch where not even a header is.
const NOTHING_BEGUN: &str = "no batch";

/// What the files hold.
pub(super) struct Recovered<F> {
    /// Files with records, ascending; their lengths as far as they are valid.
    pub(super) files: BTreeMap<u64, JournalFile<F>>,
    pub(super) spares: Vec<SpareFile<F>>,
    pub(super) next_spare: u64,
    pub(super) shards: BTreeMap<ShardId, ShardIndex>,
    pub(super) marks: BTreeMap<ShardId, Mark>,
    /// The last valid batch.
    pub(super) last: Option<Identity>,
    /// Where it begins and ends, in the last file.
    pub(super) last_batch: Range<u64>,
}

/// Why a batch cannot be read.
enum Bad {
    /// Its bytes are not what was written, or nothing was.
    Torn(&'static str),
    /// Its bytes are right but make no sense.
    Wrong(&'static str),
    Io(io::Error),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A record with the place of its payload and, for a vote, the payload.
struct Found {
    record: Record,
    offset: u32,
    charge: u32,
    vote: Option<Bytes>,
}

/// Reads a file front to back without ever holding more than a window of it.
struct Window<F> {
    file: F,
    len: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl<F: DiskFile> Window<F> {
    /// The `len` bytes at `offset`; fewer at the end of the file.
    async fn bytes(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let len = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        let inside = offset >= self.start && offset + len as u64 <= self.start + self.buffer.len() as u64;
        if !inside {
            let ahead = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            self.buffer = self.file.read_at(offset, len.max(ahead)).await?;
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        Ok(self.buffer.get(from..self.buffer.len().min(from + len)).unwrap_or_default())
    }

    async fn header(&mut self, offset: u64) -> io::Result<Option<Header>> {
        Ok(Header::decode(self.bytes(offset, HEADER_BYTES).await?))
    }

    /// CRC32C of `len` bytes, `None` when the file ends before.
    async fn crc(&mut self, mut offset: u64, mut len: u64) -> io::Result<Option<u32>> {
        let mut crc = 0;
        while len > 0 {
            let bytes = self.bytes(offset, len.min(WINDOW_BYTES as u64) as usize).await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            crc = crc32c::crc32c_append(crc, bytes);
            offset += bytes.len() as u64;
            len -= bytes.len() as u64;
        }
        Ok(Some(crc))
    }

    /// The records of the batch at `offset`, whose header is `header`.
    async fn records(&mut self, offset: u64, header: &Header) -> Result<Vec<Found>, Bad> {
        let end = header.batch_len().and_then(|len| offset.checked_add(len));
        let Some(end) = end.filter(|end| *end <= self.len) else {
            return Err(Bad::Torn("the batch is longer than the file"));
        };
        if end > u64::from(u32::MAX) {
            return Err(Bad::Wrong("a batch lies beyond 4 GiB"));
        }
        let table_len = header.records as usize * RECORD_BYTES;
        let table = self.bytes(offset + HEADER_BYTES as u64, table_len).await?;
        if table.len() < table_len || crc32c::crc32c(table) != header.table_crc {
            return Err(Bad::Torn("the batch's table is damaged"));
        }
        let rows =
            table.chunks_exact(RECORD_BYTES).map(Record::decode).collect::<Result<Vec<_>, _>>().map_err(Bad::Wrong)?;
        let payload_len: u64 = rows.iter().map(|record| u64::from(record.payload_len)).sum();
        if payload_len != header.payload_len {
            return Err(Bad::Wrong("the payloads do not fill the batch"));
        }
        let entries = rows.iter().filter(|row| matches!(row.kind, Kind::Entry | Kind::Carry)).count() as u64;
        let overhead = padded(end - offset) - payload_len - table_len as u64;
        let overhead_each = (overhead / entries.max(1)) as u32;
        let mut at = offset + (HEADER_BYTES + table_len) as u64;
        let mut found = Vec::with_capacity(rows.len());
        for record in rows {
            let len = u64::from(record.payload_len);
            let matches = self.crc(at, len).await? == Some(record.payload_crc) || len == 0;
            if !matches && !Mistake::TornBatchTrusted.is_made() {
                return Err(Bad::Torn("a record's payload is damaged"));
            }
            let vote = match record.kind {
                Kind::Vote => Some(Bytes::copy_from_slice(self.bytes(at, len as usize).await?)),
                _ => None,
            };
            let charge = record.payload_len + RECORD_BYTES as u32 + overhead_each;
            found.push(Found { record, offset: at as u32, charge, vote });
            at += len;
        }
        Ok(found)
    }
}

/// An entry found in the files.
#[derive(Clone, Copy)]
struct Entry {
    position: Position,
    len: u32,
    place: Place,
}

/// One shard while its records are read.
#[derive(Default)]
struct Replay {
    mark: Mark,
    /// The log's entries as far as files from the oldest one on hold them, ascending without a gap.
    entries: VecDeque<Entry>,
    /// The last of the entries that were in files which are gone. They must be purged, truncated or carried by a later record.
    missing_upto: Option<u64>,
    /// Those of them that were carried.
    carried: BTreeMap<u64, Entry>,
}

impl Replay {
    fn apply(
        &mut self,
        found: Found,
        generation: u64,
        is_first_file: bool,
        is_first_batch: bool,
    ) -> Result<(), &'static str> {
        let Found { record, offset, charge, vote } = found;
        let position = record.position;
        let entry = |position| {
            let place = Place { generation, offset, crc: record.payload_crc, charge };
            Entry { position, len: record.payload_len, place }
        };
        match (record.kind, position) {
            (Kind::Base, last) if is_first_batch => {
                if is_first_file {
                    self.mark.last = last;
                    self.missing_upto = last.map(|last| last.index);
                } else if self.mark.last != last {
                    return Err("the file does not continue the file before it");
                }
            }
            (Kind::Entry, Some(position)) => {
                self.mark.append(generation, position)?;
                self.entries.push_back(entry(position));
            }
            (Kind::Carry, Some(position)) => {
                self.mark.carry(generation, position.index)?;
                self.carry(entry(position))?;
            }
            (Kind::Truncate, last) => {
                self.mark.truncate(last)?;
                self.truncate(last)?;
            }
            (Kind::Purge, Some(upto)) => {
                self.mark.purge(upto);
                while self.entries.front().is_some_and(|entry| entry.position.index <= upto.index) {
                    self.entries.pop_front();
                }
                self.carried.retain(|index, _| *index > upto.index);
                self.missing_upto = self.missing_upto.filter(|missing| *missing > upto.index);
            }
            (Kind::Committed, committed) => self.mark.committed = committed,
            (Kind::Vote, None) => self.mark.vote = vote,
            _ => return Err("a record that makes no sense"),
        }
        Ok(())
    }

    fn entry_mut(&mut self, index: u64) -> Option<&mut Entry> {
        let first = self.entries.front()?.position.index;
        self.entries.get_mut(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    fn carry(&mut self, entry: Entry) -> Result<(), &'static str> {
        match self.entry_mut(entry.position.index) {
            Some(old) if old.position == entry.position && old.len == entry.len => *old = entry,
            Some(_) => return Err("a carried entry is not the one that was there"),
            None => {
                self.carried.insert(entry.position.index, entry);
            }
        }
        Ok(())
    }

    fn truncate(&mut self, last: Option<Position>) -> Result<(), &'static str> {
        let Some(last) = last else {
            self.entries.clear();
            self.carried.clear();
            self.missing_upto = None;
            return Ok(());
        };
        while self.entries.back().is_some_and(|entry| entry.position.index > last.index) {
            self.entries.pop_back();
        }
        self.carried.retain(|index, _| *index <= last.index);
        self.missing_upto = self.missing_upto.map(|missing| missing.min(last.index));
        // What is left of the missing entries may have been purged already.
        let purged = self.mark.purged.map(|purged| purged.index);
        self.missing_upto = self.missing_upto.filter(|missing| purged.is_none_or(|purged| *missing > purged));
        match self.entries.back() {
            Some(entry) if entry.position != last => Err("a log is truncated to an entry that is not there"),
            _ => Ok(()),
        }
    }

    /// The log in memory.
    fn finish(mut self) -> Result<(Mark, ShardIndex), Contradiction> {
        if let Some(missing_upto) = self.missing_upto {
            let first = self.carried.first_key_value().map(|(index, _)| *index);
            let from = self.mark.purged.map_or(first.unwrap_or(0), |purged| purged.index.saturating_add(1));
            let mut next = Some(from);
            for index in self.carried.keys() {
                if next != Some(*index) {
                    break;
                }
                next = index.checked_add(1);
            }
            if let Some(from) = next.filter(|next| *next <= missing_upto) {
                return Err(Contradiction::Missing { from, to: missing_upto });
            }
        }
        let mark = &mut self.mark;
        if let Some(committed) = mark.committed
            && mark.last.is_none_or(|last| last.index < committed.index)
        {
            mark.committed = mark.last;
        }
        let mut index = ShardIndex::default();
        index.vote.clone_from(&mark.vote);
        index.committed = mark.committed;
        if let Some(purged) = mark.purged {
            index.purge(purged);
        }
        for entry in self.carried.values().chain(&self.entries) {
            if !follows(index.last(), entry.position) {
                return Err(Contradiction::Entry(entry.place));
            }
            index.restore(entry.position, entry.len, entry.place);
        }
        if index.last() != mark.last {
            return Err(Contradiction::Last);
        }
        Ok((self.mark, index))
    }
}

/// What is wrong with a shard after all records were read.
enum Contradiction {
    /// No file holds these entries.
    Missing { from: u64, to: u64 },
    /// This entry does not follow the one before it.
    Entry(Place),
    /// The log does not end where it should.
    Last,
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> StartError {
    let path = path.display().to_string();
    move |source| StartError::Io { path: path.clone(), source }
}

fn damaged(path: &Path, offset: u64, reason: impl Into<String>) -> StartError {
    StartError::Damaged { path: path.display().to_string(), offset, reason: reason.into() }
}

/// Reads all files in `dir`. Nothing is changed but that files without a single batch are removed.
pub(super) async fn recover<E: Env>(env: &E, dir: &Path, file_bytes: u64) -> Result<Recovered<FileOf<E>>, StartError> {
    let names = env.disk().read_dir(dir).await.map_err(io_error(dir))?;
    let names: Vec<Name> = names.iter().filter_map(|name| Name::parse(name)).collect();
    let mut scan = Scan::<E> {
        env,
        dir,
        files: BTreeMap::new(),
        replays: BTreeMap::new(),
        first: None,
        last: None,
        last_batch: 0..0,
        end: (dir.to_path_buf(), 0),
    };
    let mut generations: Vec<u64> =
        names.iter().filter_map(|name| if let Name::Generation(n) = name { Some(*n) } else { None }).collect();
    generations.sort_unstable();
    for (i, generation) in generations.iter().enumerate() {
        scan.file(*generation, i + 1 == generations.len()).await?;
    }

    let mut spares = Vec::new();
    let mut next_spare = 0;
    for name in &names {
        let Name::Spare(number) = *name else { continue };
        next_spare = next_spare.max(number.saturating_add(1));
        let path = dir.join(spare_name(number));
        let file = env.disk().open(&path, OpenMode::ReadWrite).await.map_err(io_error(&path))?;
        let len = file.len().await.map_err(io_error(&path))?;
        if len == file_bytes && spares.len() < SPARES_MAX {
            spares.push(SpareFile { path, file, len });
        } else {
            env.disk().remove_file(&path).await.map_err(io_error(&path))?;
        }
    }

    let Scan { files, replays, last, first, last_batch, end, .. } = scan;
    let mut shards = BTreeMap::new();
    let mut marks = BTreeMap::new();
    for (shard, replay) in replays {
        let (mark, index) = replay.finish().map_err(|contradiction| match contradiction {
            Contradiction::Missing { from, to } => {
                let gone = dir.join(file_name(first.unwrap_or_default().saturating_sub(1)));
                damaged(&gone, 0, format!("the file is gone, and entries {from} to {to} of {shard:?} with it"))
            }
            Contradiction::Entry(place) => {
                let path = dir.join(file_name(place.generation));
                damaged(
                    &path,
                    u64::from(place.offset),
                    format!("an entry of {shard:?} does not follow the one before it"),
                )
            }
            Contradiction::Last => damaged(&end.0, end.1, format!("{shard:?} does not end where it should")),
        })?;
        marks.insert(shard, mark);
        shards.insert(shard, index);
    }
    Ok(Recovered { files, spares, next_spare, shards, marks, last, last_batch })
}

/// The state of reading all files.
struct Scan<'a, E: Env> {
    env: &'a E,
    dir: &'a Path,
    files: BTreeMap<u64, JournalFile<FileOf<E>>>,
    replays: BTreeMap<ShardId, Replay>,
    /// Generation of the oldest file.
    first: Option<u64>,
    /// The last valid batch.
    last: Option<Identity>,
    /// Where it begins and ends.
    last_batch: Range<u64>,
    /// Where the next batch would have been in the file read last.
    end: (PathBuf, u64),
}

impl<E: Env> Scan<'_, E> {
    async fn file(&mut self, generation: u64, is_last_file: bool) -> Result<(), StartError> {
        let path = self.dir.join(file_name(generation));
        if generation >= GENERATION_MAX {
            return Err(damaged(&path, 0, "no journal has that many files"));
        }
        if let Some(last) = self.last
            && last.generation + 1 != generation
        {
            return Err(damaged(&self.dir.join(file_name(last.generation + 1)), 0, "the file is missing"));
        }
        let file = self.env.disk().open(&path, OpenMode::ReadWrite).await.map_err(io_error(&path))?;
        let len = file.len().await.map_err(io_error(&path))?;
        let mut window = Window { file: file.clone(), len, start: 0, buffer: Vec::new() };
        let Some(header) =
            window.header(0).await.map_err(io_error(&path))?.filter(|h| h.identity.generation == generation)
        else {
            return self.empty_file(generation, &path, &mut window, is_last_file).await;
        };
        let identity = header.identity;
        if let Some(last) = self.last {
            if identity.salt != last.next_salt {
                return Err(damaged(&path, 0, "the file belongs to another journal"));
            }
            if identity.sequence != last.sequence + 1 {
                let reason = format!(
                    "batch {} is damaged or missing: the next file begins with {}",
                    last.sequence + 1,
                    identity.sequence
                );
                return Err(damaged(&self.end.0, self.end.1, reason));
            }
        }
        let is_first_file = self.last.is_none();
        let mut expected = identity;
        let mut offset = 0;
        loop {
            let header =
                window.header(offset).await.map_err(io_error(&path))?.filter(|header| header.identity == expected);
            let read = match header {
                Some(header) => window.records(offset, &header).await.map(|records| (header, records)),
                None => Err(Bad::Torn(NOTHING_BEGUN)),
            };
            let (header, records) = match read {
                Ok(read) => read,
                Err(Bad::Torn(reason)) => {
                    self.check_tail(&path, &mut window, offset, expected, reason).await?;
                    break;
                }
                Err(Bad::Wrong(reason)) => return Err(damaged(&path, offset, reason)),
                Err(Bad::Io(error)) => return Err(io_error(&path)(error)),
            };
            for found in records {
                let replay = self.replays.entry(found.record.shard).or_default();
                let at = u64::from(found.offset);
                replay
                    .apply(found, generation, is_first_file, offset == 0)
                    .map_err(|reason| damaged(&path, if at > 0 { at } else { offset }, reason))?;
            }
            self.last = Some(expected);
            self.first.get_or_insert(generation);
            let begun_at = offset;
            offset += padded(header.batch_len().unwrap_or(BLOCK_BYTES));
            self.last_batch = begun_at..offset.min(len);
            expected.sequence = expected
                .sequence
                .checked_add(1)
                .ok_or_else(|| damaged(&path, offset, "no journal has that many batches"))?;
        }
        if offset == 0 {
            return self.empty_file(generation, &path, &mut window, is_last_file).await;
        }
        self.end = (path, offset);
        self.files.insert(generation, JournalFile { file, len: offset.min(len) });
        Ok(())
    }

    /// The batch at `offset` is bad. Fails when a later one was begun, because then this one was durable.
    async fn check_tail(
        &self,
        path: &Path,
        window: &mut Window<FileOf<E>>,
        offset: u64,
        expected: Identity,
        reason: &str,
    ) -> Result<(), StartError> {
        let is_later = |found: Identity| {
            found.generation == expected.generation && found.salt == expected.salt && found.sequence > expected.sequence
        };
        match later_header(window, offset, is_later).await.map_err(io_error(path))? {
            Some(at) if !Mistake::DamageTakenForTornTail.is_made() => {
                Err(damaged(path, offset, format!("{reason}, but a later batch is at offset {at}")))
            }
            _ => {
                if reason != NOTHING_BEGUN {
                    Situation::TornTailCut.reached();
                }
                Ok(())
            }
        }
    }

    /// A file without a valid first batch: the node stopped while it was being begun, else it is damaged.
    async fn empty_file(
        &self,
        generation: u64,
        path: &Path,
        window: &mut Window<FileOf<E>>,
        is_last_file: bool,
    ) -> Result<(), StartError> {
        let salt = self.last.map(|last| last.next_salt);
        let is_later = |found: Identity| found.generation == generation && salt.is_none_or(|salt| found.salt == salt);
        let later = later_header(window, BLOCK_BYTES, is_later).await.map_err(io_error(path))?;
        match later {
            Some(at) => Err(damaged(path, 0, format!("the first batch is damaged, but a later one is at offset {at}"))),
            None if !is_last_file => Err(damaged(path, 0, "the first batch is damaged, but there is a later file")),
            None => {
                Situation::UnbegunJournalFileRemoved.reached();
                self.env.disk().remove_file(path).await.map_err(io_error(path))
            }
        }
    }
}

/// Offset of the first header from `offset` on that `is_later` accepts.
async fn later_header<F: DiskFile>(
    window: &mut Window<F>,
    mut offset: u64,
    is_later: impl Fn(Identity) -> bool,
) -> io::Result<Option<u64>> {
    while offset < window.len {
        if window.header(offset).await?.is_some_and(|header| is_later(header.identity)) {
            return Ok(Some(offset));
        }
        offset += BLOCK_BYTES;
    }
    Ok(None)
}
