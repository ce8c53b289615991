//! Reading entries from memory and from the files.

use std::io;

use bytes::Bytes;
use lockstep_core::{Position, ShardId};
use lockstep_env::{DiskFile, Env};

use super::index::{Place, Source, joined};
use super::state::{FileOf, Inner};

/// Entries in one file are read together when not more than this lies between them.
const GAP_BYTES: u64 = 64 << 10;
/// Most that is read together, unless one entry is longer.
const RUN_BYTES: u64 = 4 << 20;

/// Entries of one file that are read together.
struct Run<F> {
    file: F,
    start: u64,
    end: u64,
    entries: Vec<(Position, Place, u32)>,
}

/// The entries as they are now, in order; fewer, or none, when the log was changed since `sources` were taken. An entry that is damaged
/// in its file is an error that names the file and the offset.
pub(super) async fn read_sources<E: Env>(
    inner: &Inner<E>,
    shard: ShardId,
    sources: Vec<(Position, Source)>,
) -> io::Result<Vec<(Position, Bytes)>> {
    let mut entries = Vec::with_capacity(sources.len());
    let mut run: Option<Run<FileOf<E>>> = None;
    for (position, source) in sources {
        if let Source::File { place, len } = source
            && let Some(run) = run.as_mut().filter(|run| run.takes(place, len))
        {
            run.end = u64::from(place.offset) + u64::from(len);
            run.entries.push((position, place, len));
            continue;
        }
        if let Some(run) = run.take()
            && !read_run(inner, shard, run, &mut entries).await?
        {
            return Ok(entries);
        }
        match source {
            Source::Memory(payload) => entries.push((position, joined(&payload))),
            Source::File { place, len } => {
                let Some(file) = file_of(inner, shard, position, place)? else { return Ok(entries) };
                let start = u64::from(place.offset);
                run = Some(Run { file, start, end: start + u64::from(len), entries: vec![(position, place, len)] });
            }
        }
    }
    if let Some(run) = run {
        read_run(inner, shard, run, &mut entries).await?;
    }
    Ok(entries)
}

/// The file that an entry is in; `None` when the log was changed meanwhile and the entry is gone.
///
/// # Errors
/// The journal gave the file up although the log still has the entry: a caller that looked again would find the same for ever.
fn file_of<E: Env>(
    inner: &Inner<E>,
    shard: ShardId,
    position: Position,
    place: Place,
) -> io::Result<Option<FileOf<E>>> {
    let state = inner.lock();
    if let Some(open) = state.files.get(&place.generation) {
        return Ok(Some(open.file.clone()));
    }
    if !state.shards.get(&shard).is_some_and(|index| index.is_at(position.index, place)) {
        return Ok(None);
    }
    let path = inner.path(place.generation);
    let reason = format!("{}: given up although entry {} of {shard:?} is in it", path.display(), position.index);
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

impl<F> Run<F> {
    fn takes(&self, place: Place, len: u32) -> bool {
        let start = u64::from(place.offset);
        self.entries.last().is_some_and(|(_, last, _)| last.generation == place.generation)
            && start >= self.end
            && start - self.end <= GAP_BYTES
            && start + u64::from(len) - self.start <= RUN_BYTES
    }
}

/// Reads a run. `false` when the log was changed meanwhile and not all of it could be read.
async fn read_run<E: Env>(
    inner: &Inner<E>,
    shard: ShardId,
    run: Run<FileOf<E>>,
    entries: &mut Vec<(Position, Bytes)>,
) -> io::Result<bool> {
    let bytes = Bytes::from(run.file.read_at(run.start, (run.end - run.start) as usize).await?);
    for (position, place, len) in run.entries {
        let from = (u64::from(place.offset) - run.start) as usize;
        let to = from + len as usize;
        let payload = if to <= bytes.len() { bytes.slice(from..to) } else { Bytes::new() };
        if payload.len() == len as usize && crc32c::crc32c(&payload) == place.crc {
            entries.push((position, payload));
            continue;
        }
        // Either the entry was dropped and its file is in use again, or the disk has lost it.
        let is_there = inner.lock().shards.get(&shard).is_some_and(|index| index.is_at(position.index, place));
        if !is_there {
            return Ok(false);
        }
        let path = inner.path(place.generation);
        let reason =
            format!("{}: entry {} of {shard:?} is damaged at offset {}", path.display(), position.index, place.offset);
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(true)
}
