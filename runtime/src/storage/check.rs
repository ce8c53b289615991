//! Comparing a segment's file with the checksum that its store knows of it.
//!
//! Every segment is checked, the one that still grows too: a log that nobody writes to has no other, and it would never be looked at. Its file is
//! only ever appended to, so the bytes that were there at one moment stay as they are, and the store knows the CRC32C of exactly these: it is
//! noted with the length under the partition's lock, what is missing of them in the file is written, and then the file's beginning is read.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep_env::{DiskFile, Env, OpenMode};

use crate::storage::batch::BatchHeader;
use crate::storage::read::follows;
use crate::storage::segment::{SegmentEntry, SegmentName};
use crate::storage::store::{Inner, PartitionStore, lock};

/// Bytes read at once.
const PIECE_BYTES: usize = 256 << 10;

/// What came of a check.
#[derive(Debug)]
pub(crate) enum Checked {
    /// The file holds what was applied.
    Sound,
    /// There is no such segment any more, or its file was exchanged meanwhile.
    Gone,
    /// It holds something else.
    Damaged(Damage),
}

/// A segment whose file does not hold what was applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Damage {
    /// What the file must begin with: length and checksum.
    pub(crate) entry: SegmentEntry,
    /// The generation of the partition's files then.
    pub(crate) generation: u64,
}

/// How fast a file is read for a check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// Not before then.
    next: Instant,
}

impl Pace {
    /// At most so many bytes a second.
    pub(crate) fn slow<E: Env>(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: Some(bytes_per_second.max(1)), next: E::now() }
    }

    /// As fast as the disk is.
    pub(crate) fn fast<E: Env>() -> Self {
        Self { bytes_per_second: None, next: E::now() }
    }

    /// To be called after each read of so many bytes.
    pub(crate) async fn read<E: Env>(&mut self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = E::now();
        // What was not read in time is not made up for.
        self.next = self.next.max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        E::sleep_until(self.next).await;
    }
}

/// How fast all shards of a node together fetch from others: at most so many bytes a second, unless some have been promised more.
#[derive(Clone, Debug)]
pub(crate) struct SharedPace(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    bytes_per_second: u64,
    /// The sum of what was promised.
    promised: u64,
    /// Nothing that nobody was promised before then.
    next: Instant,
}

/// Whoever was promised nothing gets this part of the configured rate in any case, however much was promised to others.
const UNPROMISED_FRACTION: u64 = 4;

/// Whoever was promised a rate and could not keep to it for a moment makes up for so much.
const MADE_UP_FOR: Duration = Duration::from_millis(100);

impl SharedPace {
    /// At most so many bytes a second.
    pub(crate) fn new<E: Env>(bytes_per_second: u64) -> Self {
        Self(Arc::new(Mutex::new(Shared { bytes_per_second: bytes_per_second.max(1), promised: 0, next: E::now() })))
    }

    /// To be called after each piece of so many bytes.
    pub(crate) async fn took<E: Env>(&self, bytes: usize) {
        let now = E::now();
        let next = {
            let mut shared = lock(&self.0);
            shared.next = shared.slot(now, bytes);
            shared.next
        };
        E::sleep_until(next).await;
    }

    /// Room for so many bytes a second besides what others do, until it is dropped. All that was promised counts against the configured rate, as long as
    /// that suffices.
    pub(crate) fn promise<E: Env>(&self, bytes_per_second: u64) -> PromisedPace {
        let mut shared = lock(&self.0);
        shared.promised = shared.promised.saturating_add(bytes_per_second);
        PromisedPace { shared: self.clone(), bytes_per_second, next: E::now() }
    }
}

impl Shared {
    /// Until when so many bytes take that nobody was promised.
    fn slot(&self, now: Instant, bytes: usize) -> Instant {
        let least = (self.bytes_per_second / UNPROMISED_FRACTION).max(1);
        let rate = self.bytes_per_second.saturating_sub(self.promised).max(least);
        after(self.next.max(now), bytes, rate)
    }
}

/// When so many bytes have gone from `from` on.
fn after(from: Instant, bytes: usize, bytes_per_second: u64) -> Instant {
    from + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64)
}

/// The pace of one who was promised a rate, and has part in what nobody was promised.
#[derive(Debug)]
pub(crate) struct PromisedPace {
    shared: SharedPace,
    bytes_per_second: u64,
    next: Instant,
}

impl PromisedPace {
    /// To be called after each piece of so many bytes.
    pub(crate) async fn took<E: Env>(&mut self, bytes: usize) {
        let now = E::now();
        // A promise holds for what was held up a little elsewhere, too: the way here, and the disk.
        let since = self.next.max(now.checked_sub(MADE_UP_FOR).unwrap_or(now));
        let own = (self.bytes_per_second > 0).then(|| after(since, bytes, self.bytes_per_second));
        let next = {
            let mut shared = lock(&self.shared.0);
            let unpromised = shared.slot(now, bytes);
            match own.filter(|own| *own <= unpromised) {
                Some(own) => {
                    self.next = own;
                    own
                }
                None => {
                    shared.next = unpromised;
                    unpromised
                }
            }
        };
        E::sleep_until(next).await;
    }
}

impl Drop for PromisedPace {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared.0);
        shared.promised = shared.promised.saturating_sub(self.bytes_per_second);
    }
}

impl<E: Env> PartitionStore<E> {
    /// All segments with records that can be read, ascending.
    pub(crate) fn listed_segments(&self) -> Vec<SegmentName> {
        let mut names = Vec::new();
        for partition in self.inner.partitions().values() {
            let state = partition.lock();
            names.extend(state.segments().filter(|segment| segment.entry.len > 0).map(|segment| segment.entry.name));
        }
        names
    }

    /// Reads a segment's file and compares it with what was applied. A file that is missing or cannot be read is damaged too.
    ///
    /// # Errors
    /// It could not be compared now: the store has failed, or the file could not be opened for a reason that says nothing of its content.
    pub(crate) async fn check_segment(&self, name: SegmentName, pace: &mut Pace) -> io::Result<Checked> {
        let inner = &self.inner;
        let Some((entry, written, generation)) = inner.listed(name) else { return Ok(Checked::Gone) };
        if written < entry.len {
            inner.flush().await?;
        }
        let counters = &inner.scrubbed;
        let sound = match inner.file(name, generation, OpenMode::ReadWrite).await {
            Ok(file) => {
                let (mut position, mut crc32c) = (0, 0);
                while position < entry.len {
                    let left = usize::try_from(entry.len - position).unwrap_or(usize::MAX);
                    let piece = match file.read_at(position, left.min(PIECE_BYTES)).await {
                        Ok(piece) => Ok(piece),
                        // A moment's failure is no damage.
                        Err(_) => file.read_at(position, left.min(PIECE_BYTES)).await,
                    };
                    let Ok(piece) = piece else { break };
                    if piece.is_empty() {
                        break;
                    }
                    crc32c = crc32c::crc32c_append(crc32c, &piece);
                    position += piece.len() as u64;
                    counters.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    pace.read::<E>(piece.len()).await;
                }
                position == entry.len && crc32c == entry.crc32c
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        counters.segments.fetch_add(1, Ordering::Relaxed);
        if sound {
            inner.found_sound(name, generation);
            return Ok(Checked::Sound);
        }
        // Files of deleted records are removed, and an installation exchanges and shortens files, only after the state has changed. What is listed
        // still, in the same generation, should have been there for as long as it was read.
        match inner.listed(name) {
            Some((_, _, now)) if now == generation => Ok(Checked::Damaged(Damage { entry, generation })),
            _ => Ok(Checked::Gone),
        }
    }

    /// Length and checksum of a segment with records that can be read.
    pub(crate) fn listed_entry(&self, name: SegmentName) -> Option<SegmentEntry> {
        self.inner.listed(name).map(|(entry, ..)| entry)
    }

    /// Where the first batch begins that is not as it should be; `None` when each one is good by itself: a byte changed that no batch's checksum covers.
    pub(crate) async fn locate_damage(&self, damage: &Damage) -> Option<u64> {
        let entry = &damage.entry;
        let Ok(file) = self.inner.file(entry.name, damage.generation, OpenMode::ReadWrite).await else {
            return Some(0);
        };
        let (mut position, mut expected) = (0, entry.name.base_offset);
        // What was read last, and where in it the next batch begins.
        let (mut window, mut at) = (Vec::new(), 0);
        while position < entry.len {
            let left = usize::try_from(entry.len - position).unwrap_or(usize::MAX);
            let is_whole = |rest: &[u8]| BatchHeader::parse(rest).is_some_and(|header| header.len <= rest.len());
            if !window.get(at..).is_some_and(is_whole) {
                window = file.read_at(position, left.min(PIECE_BYTES)).await.unwrap_or_default();
                at = 0;
            }
            let rest = window.get(at..).unwrap_or_default();
            let header =
                BatchHeader::parse(rest).filter(|header| follows(entry.name, expected, header) && header.len <= left);
            let Some(header) = header else { return Some(position) };
            let is_sound = match rest.get(..header.len) {
                Some(batch) => header.verifies(batch),
                None => self.inner.crc_of_long(&file, position, &header, 0).await.is_ok_and(|crc32c| crc32c.is_some()),
            };
            if !is_sound {
                return Some(position);
            }
            position += header.len as u64;
            at += header.len;
            expected = header.next_offset;
        }
        None
    }
}

impl<E: Env> Inner<E> {
    /// A compacted segment whose file is here and that has not taken the place of others: its length, and the generation of the partition's files.
    pub(crate) fn staged(&self, name: SegmentName) -> Option<(u64, u64)> {
        let partition = self.partition(name.key())?;
        let state = partition.lock();
        Some((state.staged(name)?, state.generation))
    }

    /// A segment with records that can be read: its entry, how much of it is in the file, and the generation of the partition's files.
    pub(crate) fn listed(&self, name: SegmentName) -> Option<(SegmentEntry, u64, u64)> {
        let partition = self.partition(name.key())?;
        let state = partition.lock();
        if state.dropped || !state.lists(name) {
            return None;
        }
        let segment = state.segment(name).filter(|segment| segment.entry.len > 0)?;
        Some((segment.entry, segment.written, state.generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_env::tokio_env::TokioEnv;

    const PIECE: usize = 1 << 10;

    /// Bytes that each of these fetches in ten seconds, all at the same time.
    async fn fetched_in_ten_seconds(paces: Vec<PromisedPace>) -> Vec<u64> {
        let end = TokioEnv::now() + Duration::from_secs(10);
        let fetching = paces.into_iter().map(|mut pace| async move {
            let mut bytes = 0;
            while TokioEnv::now() < end {
                pace.took::<TokioEnv>(PIECE).await;
                bytes += PIECE as u64;
            }
            bytes
        });
        futures_util::future::join_all(fetching).await
    }

    fn is_about(bytes: u64, expected: u64) -> bool {
        bytes.abs_diff(expected) <= expected / 20
    }

    #[tokio::test(start_paused = true)]
    async fn shards_share_the_configured_rate_as_long_as_it_suffices() {
        let shared = SharedPace::new::<TokioEnv>(100 << 10);
        let paces = vec![shared.promise::<TokioEnv>(40 << 10), shared.promise::<TokioEnv>(0)];
        let fetched = fetched_in_ten_seconds(paces).await;
        assert!(fetched[0] >= 400 << 10, "{fetched:?}");
        assert!(is_about(fetched.iter().sum(), 1_000 << 10), "{fetched:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn every_shard_gets_what_it_was_promised_and_nobody_starves() {
        let shared = SharedPace::new::<TokioEnv>(100 << 10);
        let promised = [300 << 10, 50 << 10, 0];
        let fetched = fetched_in_ten_seconds(promised.map(|rate| shared.promise::<TokioEnv>(rate)).into()).await;
        for (fetched, promised) in fetched.iter().zip(promised) {
            assert!(*fetched >= promised * 10 && *fetched > 50 << 10, "{fetched} of {promised} a second");
        }
        assert!(is_about(fetched.iter().sum(), 3_750 << 10), "{fetched:?}");
        // Nobody needs more now.
        let fetched = fetched_in_ten_seconds(vec![shared.promise::<TokioEnv>(0)]).await;
        assert!(is_about(fetched[0], 1_000 << 10), "{fetched:?}");
    }
}
