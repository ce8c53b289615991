//! The task that keeps the files: a spare one ahead of the writer, no old one longer than needed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, Env, OpenMode, Step, select, wants_room};

use super::format::spare_name;
use super::read::read_sources;
use super::state::{FileOf, Inner, JournalFile, Op, SpareFile};
use lockstep_probe::Mark;

/// Spare files kept; more are deleted. A checkpoint frees several at once, and each that is kept need not be written over with zeros again: with two,
/// a sixth of all that a loaded node wrote was zeros.
pub(super) const SPARES_MAX: usize = 6;
/// From this number of files on, entries that keep the oldest file from being recycled are carried to the newest file, if they are few.
/// Below it, waiting for the shard's checkpoint is cheaper.
const CARRY_FILES_MIN: usize = 4;
/// They are few when they take at most this fraction of a file, so that carrying never costs more than that fraction of all writing.
const CARRY_FRACTION: u64 = 8;
/// However many they are, they are carried once the journal is so many times as long as all that their shards need: a shard that makes no checkpoint any
/// more, since it has stopped, must not fill the disk for the others. Carrying costs the inverse of it of all writing then.
const CARRY_LENGTH_MULTIPLE: u64 = 32;
/// So much may wait for the writer before more is carried.
const CARRY_UNWRITTEN_MAX: u64 = 4 << 20;
/// How often it is looked whether it does no more.
const CARRY_LOOK_EVERY: Duration = Duration::from_millis(5);

/// While more than this goes into the journal, new files are not written over with zeros: batches are large then, so that what their syncs have to do
/// beside them counts for little, and zeros would take a third of what the disk can carry. Files that are used again have been written already.
const BUSY_BYTES_PER_SECOND: u64 = 8 << 20;
/// A spare file is filled in steps of this many bytes.
const FILL_STEP_BYTES: u64 = 1 << 20;
/// After each step the disk is left to others for so long.
const FILL_PAUSE: Duration = Duration::from_millis(5);
/// While the disk is full it is tried again so often whether there is room for a spare file.
pub(super) const ROOM_LOOK_EVERY: Duration = Duration::from_millis(500);
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Keeps the files.
pub(super) struct Keeper<E: Env> {
    inner: Arc<Inner<E>>,
}

/// What there is to do.
enum Chore<F> {
    Recycle(u64, JournalFile<F>),
    Prepare,
    Carry(u64),
    Wait,
    Stop,
}

/// Creates a file of `len` bytes that is not part of the journal yet.
///
/// It is written over with zeros, so that a batch's sync has to make nothing durable but the batch: file systems remember which
/// allocated blocks were never written, and the first write to each would change that too. Once `urgent` says so, the rest is
/// allocated only. The file has its length last: one that a crash left unfinished is shorter than it should be.
pub(super) async fn create_spare<E: Env>(
    inner: &Inner<E>,
    len: u64,
    urgent: impl Fn() -> bool,
) -> io::Result<SpareFile<FileOf<E>>> {
    let path = next_spare_path(inner);
    let file = inner.env.disk().open(&path, OpenMode::Truncate).await?;
    if let Err(error) = fill::<E>(&file, len, urgent).await {
        // A full disk should not be filled with halves of files. That this may fail too changes nothing.
        let _ = inner.env.disk().remove_file(&path).await;
        return Err(error);
    }
    Ok(SpareFile { path, file, len })
}

async fn fill<E: Env>(file: &FileOf<E>, len: u64, urgent: impl Fn() -> bool) -> io::Result<()> {
    let mut filled = 0;
    while filled < len && !urgent() {
        let step = FILL_STEP_BYTES.min(len - filled);
        file.allocate(filled + step).await?;
        let whole = (step / ZEROS.len() as u64) as usize;
        let mut zeros = vec![Bytes::from_static(&ZEROS); whole];
        zeros.push(Bytes::from_static(&ZEROS[..(step % ZEROS.len() as u64) as usize]));
        file.write_at(filled, zeros).await?;
        file.sync_data().await?;
        filled += step;
        if filled < len {
            E::sleep(FILL_PAUSE).await;
        }
    }
    if filled < len {
        file.allocate(len).await?;
        // So that the syncs of batches need not make the file's size durable.
        file.sync_data().await?;
    }
    Ok(())
}

fn next_spare_path<E: Env>(inner: &Inner<E>) -> PathBuf {
    let mut state = inner.lock();
    let number = state.next_spare;
    state.next_spare += 1;
    inner.dir.join(spare_name(number))
}

impl<E: Env> Keeper<E> {
    pub(super) fn new(inner: Arc<Inner<E>>) -> Self {
        Self { inner }
    }

    /// Keeps the files until the journal is closed or has failed.
    pub(super) async fn run(self) {
        loop {
            match self.next_chore() {
                Chore::Recycle(generation, file) => {
                    if let Err(error) = self.recycle(generation, file).await {
                        self.inner.fail(&format!("{}: {error}", self.inner.path(generation).display()));
                    }
                }
                Chore::Prepare => self.prepare().await,
                Chore::Carry(generation) => self.carry(generation).await,
                Chore::Wait => self.inner.wake_keeper.notified().await,
                Chore::Stop => break,
            }
        }
        self.inner.stop_task();
    }

    fn next_chore(&self) -> Chore<FileOf<E>> {
        let mut state = self.inner.lock();
        // A closing journal may still need a file for what is queued: the writer, the other task, goes first.
        if state.failed.is_some() || (state.closing && state.tasks == 1) {
            return Chore::Stop;
        }
        if let Some((generation, file)) = state.freed.pop_front() {
            return Chore::Recycle(generation, file);
        }
        if state.wants_spare() {
            return Chore::Prepare;
        }
        let oldest = state.files.first_key_value().map(|(generation, _)| *generation);
        match oldest {
            Some(oldest)
                if !state.closing && state.files.len() >= CARRY_FILES_MIN && state.carrying != Some(oldest) =>
            {
                let few = self.inner.options.file_bytes / CARRY_FRACTION;
                let bytes: u64 = state
                    .pins
                    .iter()
                    .filter_map(|(shard, extent)| {
                        Some(state.shards.get(shard)?.record_bytes(extent.first, extent.last, few))
                    })
                    .sum();
                if bytes > few && state.bytes_of_files() < CARRY_LENGTH_MULTIPLE * state.bytes_of_pinning_shards() {
                    return Chore::Wait;
                }
                state.carrying = Some(oldest);
                Chore::Carry(oldest)
            }
            _ => Chore::Wait,
        }
    }

    /// Makes a file that is no longer needed a spare one, or deletes it. One at a time, and durable before the next, so that the generations found by
    /// a recovery have no gap.
    async fn recycle(&self, generation: u64, old: JournalFile<FileOf<E>>) -> io::Result<()> {
        self.inner.env.reached(Step::JournalRecycled);
        let disk = self.inner.env.disk();
        let path = self.inner.path(generation);
        let keep = {
            let state = self.inner.lock();
            state.spares.len() < SPARES_MAX && old.len == self.inner.options.file_bytes
        };
        if !keep {
            disk.remove_file(&path).await?;
            return disk.sync_dir(&self.inner.dir).await;
        }
        Mark::JournalFileRecycled.reached();
        let spare = SpareFile { path: next_spare_path(&self.inner), file: old.file, len: old.len };
        disk.rename(&path, &spare.path).await?;
        disk.sync_dir(&self.inner.dir).await?;
        self.add_spare(spare);
        Ok(())
    }

    /// Creates a spare file. That it cannot be done is a failure only once the writer needs it: until then a file may be recycled. A full disk is
    /// no failure at all: the writer waits until there is room, or a file to recycle.
    async fn prepare(&self) {
        let urgent = || {
            let state = self.inner.lock();
            state.spare_wanted
                || state.bytes_per_second > BUSY_BYTES_PER_SECOND
                || state.closing
                || state.failed.is_some()
        };
        match create_spare(&self.inner, self.inner.options.file_bytes, urgent).await {
            Ok(spare) => self.add_spare(spare),
            Err(error) if wants_room(&error) && !self.inner.lock().closing => {
                Mark::JournalWaitedForRoom.reached();
                tracing::warn!(dir = %self.inner.dir.display(), %error, "no room for a journal file: waiting for it");
                select(self.inner.wake_keeper.notified(), E::sleep(ROOM_LOOK_EVERY)).await;
            }
            Err(error) => {
                tracing::warn!(dir = %self.inner.dir.display(), %error, "no journal file could be created ahead of time");
                self.inner.lock().spare_error = Some(format!("a new journal file: {error}"));
                self.inner.spare_changed.notify_one();
            }
        }
    }

    fn add_spare(&self, spare: SpareFile<FileOf<E>>) {
        let mut state = self.inner.lock();
        state.spares.push(spare);
        state.spare_wanted = false;
        state.spare_error = None;
        drop(state);
        self.inner.spare_changed.notify_one();
    }

    /// May more be carried, once the writer has written what there is? Not when it needs something else of this task first.
    async fn has_room_to_carry(&self) -> bool {
        loop {
            {
                let mut state = self.inner.lock();
                if state.unwritten_bytes <= CARRY_UNWRITTEN_MAX || state.check_open().is_err() {
                    return true;
                }
                if !state.freed.is_empty() || state.wants_spare() {
                    // It is begun again then. What was carried already is not carried twice.
                    state.carrying = None;
                    return false;
                }
            }
            E::sleep(CARRY_LOOK_EVERY).await;
        }
    }

    /// Queues the entries in the oldest file once more, so that it can go although a shard still needs them.
    async fn carry(&self, generation: u64) {
        let pins = self.inner.lock().pins.clone();
        for (shard, extent) in pins.into_iter().filter(|(_, extent)| extent.generation == generation) {
            let mut from = extent.first;
            while from <= extent.last {
                if !self.has_room_to_carry().await {
                    return;
                }
                let sources = {
                    let state = self.inner.lock();
                    let Some(index) = state.shards.get(&shard) else { break };
                    index.sources(from, extent.last.saturating_add(1), 1 << 20)
                };
                let entries = match read_sources(&self.inner, shard, sources).await {
                    Ok(entries) if !entries.is_empty() => entries,
                    Ok(_) => break,
                    Err(error) => {
                        // The file stays; whoever reads the entry itself will be told.
                        tracing::error!(%error, "entries cannot be carried out of an old journal file");
                        return;
                    }
                };
                let mut state = self.inner.lock();
                if state.check_open().is_err() {
                    return;
                }
                for (position, payload) in entries {
                    from = position.index.saturating_add(1);
                    let crc = crc32c::crc32c(&payload);
                    state.enqueue(Op::Carry { shard, position, payload, crc, from: generation });
                }
                drop(state);
                self.inner.wake_writer.notify_one();
            }
        }
    }
}
