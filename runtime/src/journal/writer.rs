//! The task that writes: one batch after the other, each durable before the next.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lockstep_core::{Position, ShardId};
use lockstep_env::{Disk, DiskFile, Env, Step, wants_room};

use super::format::{self, HEADER_BYTES, Identity, Kind, RECORD_BYTES, Record, padded, padding};
use super::index::Place;
use super::keeper::{ROOM_LOOK_EVERY, create_spare};
use super::mark::{Extent, Mark};
use super::state::{Done, FileOf, Inner, JournalFile, Op, SpareFile};
use lockstep_probe::{Mark as Situation, Mistake};

/// A batch is closed once its payloads have this many bytes: larger ones would not be written faster, only be acknowledged later.
const BATCH_PAYLOAD_BYTES: u64 = 4 << 20;
/// Records in a batch at most.
const BATCH_RECORDS: u32 = 16_384;
/// Length of the file that a start begins with, if it finds none to use again.
const FIRST_FILE_BYTES: u64 = 4 << 20;
/// The longest list of shards whose committed position goes along with one batch.
const BATCH_COMMITTED: usize = 1024;

/// Writes what is queued.
pub(super) struct Writer<E: Env> {
    inner: Arc<Inner<E>>,
    /// Every shard as the records written so far say.
    marks: BTreeMap<ShardId, Mark>,
    /// The next batch.
    next: Identity,
    /// The file that is being written.
    file: Option<JournalFile<FileOf<E>>>,
    /// Where the next batch goes.
    offset: u64,
    /// Since when the file is being written.
    begun_at: Instant,
}

/// What the writer found in the queue.
enum Taken {
    /// Write these.
    Ops(Vec<Op>),
    /// The first op needs a new file, in which a batch of this length has room.
    NoRoom(u64),
    /// Nothing: wait.
    Nothing,
    /// Nothing, and nothing will come any more.
    Closed,
}

/// What is known of an entry before its batch is written.
struct Placing {
    shard: ShardId,
    index: u64,
    /// The ticket of an append, or the file that held the entry until now.
    instead_of: Result<u64, u64>,
    /// Where in the batch's payloads it begins.
    start: u64,
    len: u32,
    crc: u32,
}

/// A batch that is being put together.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    payloads: Vec<Bytes>,
    payload_len: u64,
    placings: Vec<Placing>,
    dones: Vec<(Done, bool)>,
    queued_bytes: u64,
    /// Entries were dropped or carried, so that files may have become free.
    frees: bool,
}

impl<E: Env> Writer<E> {
    /// A writer whose first file is still to be begun. `next` names that file and the batch at its start.
    pub(super) fn new(inner: Arc<Inner<E>>, marks: BTreeMap<ShardId, Mark>, next: Identity) -> Self {
        Self { inner, marks, next, file: None, offset: 0, begun_at: E::now() }
    }

    /// Writes until the journal is closed or has failed.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.write_queue().await {
            self.fail(&error);
        }
        self.inner.stop_task();
    }

    async fn write_queue(&mut self) -> io::Result<()> {
        loop {
            match self.take() {
                Taken::Ops(ops) => self.write_ops(ops).await?,
                Taken::NoRoom(batch_bytes) => {
                    self.next = Identity {
                        generation: self.next.generation + 1,
                        salt: self.next.next_salt,
                        next_salt: E::random_u64(),
                        ..self.next
                    };
                    self.begin_file(batch_bytes).await?;
                }
                Taken::Nothing => self.inner.wake_writer.notified().await,
                Taken::Closed => return Ok(()),
            }
        }
    }

    /// Takes from the queue what goes into one batch.
    fn take(&self) -> Taken {
        let room = self.file.as_ref().map_or(0, |file| file.len.saturating_sub(self.offset));
        let mut state = self.inner.lock();
        if state.failed.is_some() {
            return Taken::Closed;
        }
        let mut ops = Vec::new();
        let (mut records, mut payload_bytes, mut batch_bytes) = (0, 0, HEADER_BYTES as u64);
        while let Some(op) = state.queue.front() {
            let op_bytes = op.batch_bytes();
            if op_bytes > 0 {
                if padded(batch_bytes + op_bytes) > room {
                    if ops.is_empty() {
                        return Taken::NoRoom(padded(batch_bytes + op_bytes));
                    }
                    break;
                }
                let full = payload_bytes + op.payload_bytes() > BATCH_PAYLOAD_BYTES || records == BATCH_RECORDS;
                if records > 0 && full {
                    break;
                }
                records += 1;
            }
            payload_bytes += op.payload_bytes();
            batch_bytes += op_bytes;
            ops.extend(state.queue.pop_front());
        }
        match (ops.is_empty(), state.closing) {
            (false, _) => Taken::Ops(ops),
            (true, false) => Taken::Nothing,
            // One last batch for what otherwise waits for the next batch.
            (true, true) if !state.committed_unwritten.is_empty() => {
                let one_more = padded((HEADER_BYTES + RECORD_BYTES) as u64);
                if one_more > room { Taken::NoRoom(one_more) } else { Taken::Ops(ops) }
            }
            (true, true) => Taken::Closed,
        }
    }

    async fn write_ops(&mut self, ops: Vec<Op>) -> io::Result<()> {
        let mut batch = Batch::default();
        let mut added = Ok(());
        for op in ops {
            match op {
                Op::Done { done, deferred } => batch.dones.push((done, deferred)),
                op if added.is_ok() => added = self.add(op, &mut batch),
                _ => {}
            }
        }
        let dones = std::mem::take(&mut batch.dones);
        let queued_bytes = batch.queued_bytes;
        let written = match added {
            Ok(()) => {
                self.add_committed(&mut batch);
                if batch.records.is_empty() { Ok(()) } else { self.write(batch).await }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &written {
            // Before anybody hears of it, so that whoever hears of it finds the journal failed.
            self.fail(error);
        }
        {
            let mut state = self.inner.lock();
            state.unwritten_bytes -= queued_bytes;
            state.deferred -= dones.iter().filter(|(_, deferred)| *deferred).count();
        }
        for (done, _) in dones {
            done(match &written {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
        written
    }

    fn fail(&self, error: &io::Error) {
        self.inner.fail(&format!("{}: {error}", self.inner.path(self.next.generation).display()));
    }

    /// Adds one op to the batch and to the marks.
    fn add(&mut self, op: Op, batch: &mut Batch) -> io::Result<()> {
        batch.queued_bytes += op.batch_bytes();
        let generation = self.next.generation;
        match op {
            Op::Entry { shard, position, payload, len, crc, ticket } => {
                self.mark(shard).append(generation, position).map_err(io::Error::other)?;
                let entry =
                    Record { kind: Kind::Entry, shard, position: Some(position), payload_len: len, payload_crc: crc };
                batch.add_entry(entry, position, Ok(ticket));
                batch.payloads.extend(payload.iter().filter(|slice| !slice.is_empty()).cloned());
            }
            Op::Carry { shard, position, payload, crc, from } => {
                // Nothing to carry when the entry was dropped since, or carried before.
                if self.mark(shard).generation_of(position.index) != Some(from) || from == generation {
                    return Ok(());
                }
                Situation::EntryCarried.reached();
                self.mark(shard).carry(generation, position.index).map_err(io::Error::other)?;
                let payload_len = payload.len() as u32;
                let entry =
                    Record { kind: Kind::Carry, shard, position: Some(position), payload_len, payload_crc: crc };
                batch.add_entry(entry, position, Err(from));
                batch.payloads.push(payload);
                batch.frees = true;
            }
            Op::Truncate { shard, last } => {
                self.mark(shard).truncate(last).map_err(io::Error::other)?;
                batch.records.push(Record::bare(Kind::Truncate, shard, last));
                batch.frees = true;
            }
            Op::Purge { shard, upto } => {
                self.mark(shard).purge(upto);
                batch.records.push(Record::bare(Kind::Purge, shard, Some(upto)));
                batch.frees = true;
            }
            Op::Vote { shard, vote } => {
                batch.add_vote(shard, &vote);
                self.mark(shard).vote = Some(vote);
            }
            Op::Done { .. } => {}
        }
        Ok(())
    }

    fn mark(&mut self, shard: ShardId) -> &mut Mark {
        self.marks.entry(shard).or_default()
    }

    /// Adds the committed positions saved since the last batch, if this batch leaves nothing in the queue: no committed position is then
    /// ever durable before the entries that it speaks of.
    fn add_committed(&mut self, batch: &mut Batch) {
        let room = self.file.as_ref().map_or(0, |file| file.len.saturating_sub(self.offset));
        let inner = Arc::clone(&self.inner);
        let mut state = inner.lock();
        // Not by itself, unless it is the last chance.
        if !state.queue.is_empty() || (batch.records.is_empty() && !state.closing) {
            return;
        }
        for _ in 0..BATCH_COMMITTED {
            if padded(batch.len() + RECORD_BYTES as u64) > room {
                break;
            }
            let Some(shard) = state.committed_unwritten.pop_first() else { break };
            let committed = state.shards.get(&shard).and_then(|index| index.committed);
            self.mark(shard).committed = committed;
            batch.records.push(Record::bare(Kind::Committed, shard, committed));
        }
    }

    /// Writes a batch, waits until it is durable, and says so.
    async fn write(&mut self, batch: Batch) -> io::Result<()> {
        let Some(file) = self.file.as_ref().map(|open| open.file.clone()) else {
            return Err(io::Error::other("no file was begun"));
        };
        let batch_bytes = batch.len();
        let payloads_at = self.offset + batch_bytes - batch.payload_len;
        let overhead = padded(batch_bytes) - batch.payload_len - (batch.records.len() * RECORD_BYTES) as u64;
        let overhead_each = overhead / (batch.placings.len() as u64).max(1);

        let mut buffers = Vec::with_capacity(batch.payloads.len() + 2);
        buffers.push(format::encode_head(self.next, &batch.records));
        buffers.extend(batch.payloads);
        let padding = padding(batch_bytes);
        if !padding.is_empty() {
            buffers.push(padding);
        }
        let begun_at = E::now();
        file.write_and_sync(self.offset, buffers).await?;
        self.inner.env.reached(Step::Journalled);
        self.inner.histogram.record(E::now().saturating_duration_since(begun_at));
        let generation = self.next.generation;
        self.offset += padded(batch_bytes);
        self.next.sequence += 1;

        let mut state = self.inner.lock();
        let cache_bytes = self.inner.options.cache_bytes_per_shard;
        for placing in batch.placings {
            let charge = u64::from(placing.len) + RECORD_BYTES as u64 + overhead_each;
            let place = Place {
                generation,
                offset: u32::try_from(payloads_at + placing.start).map_err(io::Error::other)?,
                crc: placing.crc,
                charge: u32::try_from(charge).unwrap_or(u32::MAX),
            };
            let Some(index) = state.shards.get_mut(&placing.shard) else { continue };
            match placing.instead_of {
                Ok(ticket) => index.locate(placing.index, ticket, place),
                Err(from) => index.relocate(placing.index, from, place),
            }
            index.shrink_cache(cache_bytes);
        }
        drop(state);
        if batch.frees {
            self.free_files();
        }
        Ok(())
    }

    /// Begins the next file, named by `self.next`, with room for its state records and a batch of `batch_bytes`.
    pub(super) async fn begin_file(&mut self, batch_bytes: u64) -> io::Result<()> {
        let mut batch = Batch::default();
        for (shard, mark) in &self.marks {
            batch.records.push(Record::bare(Kind::Base, *shard, mark.last));
            batch.records.push(Record::bare(Kind::Committed, *shard, mark.committed));
            if mark.purged.is_some() {
                batch.records.push(Record::bare(Kind::Purge, *shard, mark.purged));
            }
            if let Some(vote) = &mark.vote {
                batch.add_vote(*shard, vote);
            }
        }
        let spare = self.spare(padded(batch.len()) + batch_bytes).await?;
        let disk = self.inner.env.disk();
        disk.rename(&spare.path, &self.inner.path(self.next.generation)).await?;
        if !Mistake::JournalDirectoryNotSynced.is_made() {
            disk.sync_dir(&self.inner.dir).await?;
        }
        let took = E::now().saturating_duration_since(self.begun_at).as_millis().max(1);
        let bytes_per_second = u64::try_from(u128::from(self.offset) * 1000 / took).unwrap_or(u64::MAX);
        self.file = Some(JournalFile { file: spare.file.clone(), len: spare.len });
        (self.offset, self.begun_at) = (0, E::now());
        // By itself, so that the file's first batch holds nothing that came from clients.
        self.write(batch).await?;
        {
            let mut state = self.inner.lock();
            state.files.insert(self.next.generation, JournalFile { file: spare.file, len: spare.len });
            state.bytes_per_second = bytes_per_second;
        }
        self.free_files();
        Ok(())
    }

    /// A file of at least `len` bytes and at least the configured size.
    async fn spare(&self, len: u64) -> io::Result<SpareFile<FileOf<E>>> {
        let file_bytes = self.inner.options.file_bytes;
        if len > file_bytes {
            return self.longer_file(padded(len)).await;
        }
        let mut asked = false;
        loop {
            {
                let mut state = self.inner.lock();
                if let Some(spare) = state.spares.pop() {
                    drop(state);
                    self.inner.wake_keeper.notify_one();
                    return Ok(spare);
                }
                if let Some(reason) = &state.failed {
                    return Err(io::Error::other(reason.clone()));
                }
                match &state.spare_error {
                    Some(reason) if asked => return Err(io::Error::other(reason.clone())),
                    // An earlier attempt failed; there may be room by now.
                    _ => state.spare_error = None,
                }
                state.spare_wanted = self.file.is_some();
            }
            if self.file.is_none() {
                // The keeper does not run yet. A short file is filled at once, and a longer one by the time it is full.
                let len = padded(len).max(FIRST_FILE_BYTES).min(file_bytes);
                return create_spare(&self.inner, len, || false).await;
            }
            asked = true;
            Situation::JournalWaitedForFile.reached();
            self.inner.wake_keeper.notify_one();
            self.inner.spare_changed.notified().await;
        }
    }

    /// A file for an entry that does not fit into one of the usual size. None is kept ready, so that a full disk is waited for here.
    async fn longer_file(&self, len: u64) -> io::Result<SpareFile<FileOf<E>>> {
        loop {
            let error = match create_spare(&self.inner, len, || true).await {
                Err(error) if wants_room(&error) => error,
                created => return created,
            };
            {
                let state = self.inner.lock();
                if state.closing || state.failed.is_some() {
                    return Err(io::Error::new(error.kind(), format!("a new journal file: {error}")));
                }
            }
            Situation::JournalWaitedForRoom.reached();
            tracing::warn!(dir = %self.inner.dir.display(), %error, len, "no room for a long journal file: waiting for it");
            E::sleep(ROOM_LOOK_EVERY).await;
        }
    }

    /// Hands the files that no shard's durable records need any more to the keeper, oldest first and without a gap, and notes who needs the
    /// oldest of the others.
    fn free_files(&self) {
        let current = self.next.generation;
        let needed = self.marks.values().filter_map(Mark::oldest_generation);
        let oldest = if Mistake::JournalFileRecycledTooEarly.is_made() { needed.max() } else { needed.min() };
        let oldest = oldest.unwrap_or(current);
        let mut state = self.inner.lock();
        let needed = state.files.split_off(&oldest);
        let freed = std::mem::replace(&mut state.files, needed);
        state.freed.extend(freed);
        state.pins = if oldest < current { self.pins(oldest) } else { Vec::new() };
        drop(state);
        self.inner.wake_keeper.notify_one();
    }

    fn pins(&self, generation: u64) -> Vec<(ShardId, Extent)> {
        let of_shard = |(shard, mark): (&ShardId, &Mark)| {
            let shard = *shard;
            mark.extents_in(generation).map(move |extent| (shard, extent)).collect::<Vec<_>>()
        };
        self.marks.iter().flat_map(of_shard).collect()
    }
}

impl Batch {
    /// Its length without padding.
    fn len(&self) -> u64 {
        (HEADER_BYTES + self.records.len() * RECORD_BYTES) as u64 + self.payload_len
    }

    /// Adds an entry's record; its payload is to be added next.
    fn add_entry(&mut self, record: Record, position: Position, instead_of: Result<u64, u64>) {
        self.records.push(record);
        self.placings.push(Placing {
            shard: record.shard,
            index: position.index,
            instead_of,
            start: self.payload_len,
            len: record.payload_len,
            crc: record.payload_crc,
        });
        self.payload_len += u64::from(record.payload_len);
    }

    fn add_vote(&mut self, shard: ShardId, vote: &Bytes) {
        self.records.push(Record::vote(shard, vote));
        self.payload_len += vote.len() as u64;
        self.payloads.push(vote.clone());
    }
}
