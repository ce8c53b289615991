//! A replica that takes over another's checkpoint.
//!
//! What is fetched goes to `<store>/installing/`, one file for each segment, named `<partition's directory>.<segment's stem>.<first
//! byte's position>`, and also `.<segment's length>-<segment's CRC32C>` from when it is whole, as the checksum says, and durable. Once all of it is there, verified and durable, the folder is renamed to `install-<CRC32C>-<length>` of the encoded manifest,
//! then the manifest becomes the shard's checkpoint, and then the files are moved (or, where the segment's first part was here already, appended)
//! to where they belong. A start that finds such a folder does the last step if the checkpoint is that manifest, and removes the folder otherwise;
//! the old segments were not touched before.
//!
//! What was fetched when an installation is given up, or the process dies, stays: the next one moves it to `fetched-before/` and goes on from there, if it
//! is about the same segments. It takes over as they are the files that are whole, by their names; were they copied, each interruption would cost as much
//! reading and writing as there is here already. A segment that has grown since goes on behind the part that was whole. The file that was being written it
//! copies: had its sync failed then, another sync of the same file would prove nothing. A node that has written a checkpoint of its own since then does not
//! need any of it, and removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, Env, OpenMode, Step, wants_room};

use crate::storage::checkpoint::Checkpoints;
use crate::storage::flush;
use crate::storage::manifest::{Manifest, check_segments};
use crate::storage::segment::{PartitionKey, SegmentEntry, SegmentName};
use crate::storage::state::{Partition, PartitionState};
use crate::storage::store::{Inner, PartitionStore, Pin, lock};
use lockstep_probe::{Mark, Mistake};

const FETCHING: &str = "installing";
const FETCHED_BEFORE: &str = "fetched-before";
const COMPLETE: &str = "install-";
/// Bytes copied or checked at once.
const COPY_BYTES: usize = 1 << 20;

/// Bytes of a segment that must be fetched, from the first to the last, before an installation can finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingRange {
    /// Segment.
    pub segment: SegmentName,
    /// Position of the first missing byte.
    pub from: u64,
    /// How many are missing.
    pub len: u64,
}

/// A checkpoint under way from another node. Until [`Installation::finish`] nothing changes for the store: it may go on applying, flushing
/// and writing checkpoints of its own, and after a crash it is found as it was. Dropping the installation gives it up. There is at most one for a store.
#[derive(Debug)]
pub struct Installation<E: Env> {
    store: PartitionStore<E>,
    /// Parts of segments that were deleted here may be part of segments that were not deleted there.
    pin: Option<Pin>,
    manifest: Manifest,
    folder: PathBuf,
    /// What is not complete.
    missing: BTreeMap<SegmentName, Fetch>,
    /// Segments fetched, with the position that the fetched part begins at.
    fetched: BTreeMap<SegmentName, u64>,
    /// The file that was written last.
    open: Option<(SegmentName, <E::Disk as Disk>::File)>,
}

/// How far a segment is.
#[derive(Clone, Copy, Debug)]
struct Fetch {
    entry: SegmentEntry,
    /// So many bytes were here already.
    local: u64,
    /// So many bytes are here now.
    have: u64,
    /// CRC32C of these.
    crc32c: u32,
    /// Some of them were fetched by an earlier installation: a crash may have damaged them, or they may be another leader's.
    resumed: bool,
    /// Those are in a file that was whole then, and is named so until more is written to it.
    whole_before: bool,
}

/// What an earlier installation left of a segment.
#[derive(Clone, Copy, Debug)]
enum LeftOver {
    /// Unfinished, or a sync failed.
    Part,
    /// The segment, whole and durable, when it was so long and had this CRC32C.
    Whole { len: u64, crc32c: u32 },
}

impl<E: Env> Drop for Installation<E> {
    fn drop(&mut self) {
        self.store.inner.installing.store(false, Ordering::Release);
    }
}

impl<E: Env> Installation<E> {
    /// Compares the manifest with what the store has. Local segments are prefixes of the leader's, because all replicas apply the same
    /// batches in the same order, so only the rest is missing.
    ///
    /// # Errors
    /// `InvalidData` when the manifest's segments contradict each other, `WouldBlock` while another installation is under way, or the disk's.
    pub async fn begin(store: &PartitionStore<E>, manifest: Manifest) -> io::Result<Self> {
        check_segments(&manifest.segments).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if store.inner.installing.swap(true, Ordering::AcqRel) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another installation is under way"));
        }
        let folder = store.inner.dir.join(FETCHING);
        let mut installation = Self {
            store: store.clone(),
            pin: Some(store.pin()),
            manifest,
            folder,
            missing: BTreeMap::new(),
            fetched: BTreeMap::new(),
            open: None,
        };
        installation.compare().await?;
        Ok(installation)
    }

    async fn compare(&mut self) -> io::Result<()> {
        let inner = Arc::clone(&self.store.inner);
        inner.flush().await?;
        let disk = inner.env.disk();
        let before = inner.dir.join(FETCHED_BEFORE);
        let mut left_over = self.set_aside(&before).await?;
        for entry in self.manifest.segments.iter().filter(|entry| entry.len > 0) {
            let local = inner.partition(entry.name.key()).and_then(|partition| {
                let state = partition.lock();
                state.segment(entry.name).map(|segment| (segment.entry, state.generation))
            });
            let (len, crc32c) = match local {
                Some((local, generation)) if local.len > entry.len => {
                    // Closed later here than there: only the first part counts.
                    (entry.len, crc_of(&inner, entry, generation).await?)
                }
                Some((local, _)) => (local.len, local.crc32c),
                None => (0, 0),
            };
            let fetch = if len < entry.len {
                Fetch { entry: *entry, local: len, have: len, crc32c, resumed: false, whole_before: false }
            } else if crc32c == entry.crc32c {
                continue;
            } else {
                Fetch { entry: *entry, local: 0, have: 0, crc32c: 0, resumed: false, whole_before: false }
            };
            let fetch = match left_over.remove(&(entry.name, fetch.local)) {
                None => fetch,
                Some(LeftOver::Whole { len, crc32c }) => self.take_over(fetch, len, crc32c, &before).await?,
                Some(LeftOver::Part) => match self.resume(fetch, &before).await {
                    // Whatever is wrong with it, the leader has it all.
                    Err(error) if !wants_room(&error) => fetch,
                    resumed => resumed?,
                },
            };
            if fetch.have < entry.len {
                self.missing.insert(entry.name, fetch);
            } else {
                self.fetched.insert(entry.name, fetch.local);
            }
        }
        remove_if_there(disk, &before).await?;
        // The local parts must be in the files, also those applied since the flush above.
        inner.flush().await
    }

    /// Begins with an empty folder; what was in it is in another one afterwards: what that is, by the segment and the position of its first byte.
    async fn set_aside(&self, before: &Path) -> io::Result<BTreeMap<(SegmentName, u64), LeftOver>> {
        let disk = self.store.inner.env.disk();
        disk.create_dir_all(&self.folder).await?;
        disk.create_dir_all(before).await?;
        for name in disk.read_dir(&self.folder).await? {
            disk.rename(&self.folder.join(&name), &before.join(&name)).await?;
        }
        let mut left_over = BTreeMap::new();
        for name in disk.read_dir(before).await? {
            if let Some((segment, from)) = parse_staged_name(&name) {
                // A whole one that is beside it is worth more.
                left_over.entry((segment, from)).or_insert(LeftOver::Part);
            } else if let Some((whole, from)) = parse_whole_name(&name) {
                left_over.insert((whole.name, from), LeftOver::Whole { len: whole.len, crc32c: whole.crc32c });
            }
        }
        Ok(left_over)
    }

    /// Goes on from a segment that an earlier installation had fetched whole, unless the leader's is another one, or shorter.
    async fn take_over(&self, fetch: Fetch, len: u64, crc32c: u32, before: &Path) -> io::Result<Fetch> {
        let differs = len == fetch.entry.len && crc32c != fetch.entry.crc32c;
        if differs || len > fetch.entry.len || len <= fetch.local {
            return Ok(fetch);
        }
        let name = whole_name(&SegmentEntry { len, crc32c, ..fetch.entry }, fetch.local);
        self.store.inner.env.disk().rename(&before.join(&name), &self.folder.join(&name)).await?;
        Mark::SnapshotPullResumed.reached();
        Ok(Fetch { have: len, crc32c, resumed: true, whole_before: true, ..fetch })
    }

    /// Goes on from what an earlier installation has fetched of a segment, unless that cannot be right.
    async fn resume(&self, fetch: Fetch, before: &Path) -> io::Result<Fetch> {
        let disk = self.store.inner.env.disk();
        let name = staged_name(&fetch.entry.name, fetch.local);
        let source = disk.open(&before.join(&name), OpenMode::Read).await?;
        let len = source.len().await?;
        if len == 0 || len > fetch.entry.len - fetch.local {
            return Ok(fetch);
        }
        let path = self.folder.join(&name);
        let file = disk.open(&path, OpenMode::Truncate).await?;
        let mut resumed = Fetch { resumed: true, ..fetch };
        while resumed.have < fetch.local + len {
            let at = resumed.have - fetch.local;
            let left = usize::try_from(len - at).unwrap_or(usize::MAX);
            let bytes = source.read_at(at, left.min(COPY_BYTES)).await?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            resumed.crc32c = crc32c::crc32c_append(resumed.crc32c, &bytes);
            resumed.have += bytes.len() as u64;
            file.write_at(at, vec![Bytes::from(bytes)]).await?;
        }
        disk.remove_file(&before.join(&name)).await?;
        if resumed.have == fetch.entry.len {
            if resumed.crc32c != fetch.entry.crc32c {
                disk.remove_file(&path).await?;
                return Ok(fetch);
            }
            self.store.inner.sync_file(&file, &path).await?;
            self.name_whole(&fetch.entry, fetch.local).await?;
        }
        Mark::SnapshotPullResumed.reached();
        Ok(resumed)
    }

    /// A fetched segment is whole and was synced: says so by its file's name.
    async fn name_whole(&self, entry: &SegmentEntry, from: u64) -> io::Result<()> {
        let staged = self.folder.join(staged_name(&entry.name, from));
        self.store.inner.env.disk().rename(&staged, &self.folder.join(whole_name(entry, from))).await
    }

    /// The manifest being installed.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What must still be fetched, ascending by segment. Ask again when all ranges are written: a segment whose checksum turns out
    /// wrong because the local part differs is listed anew, from its first byte. Empty: ready to finish.
    #[must_use]
    pub fn missing(&self) -> Vec<MissingRange> {
        let range = |(segment, fetch): (&SegmentName, &Fetch)| MissingRange {
            segment: *segment,
            from: fetch.have,
            len: fetch.entry.len - fetch.have,
        };
        self.missing.iter().map(range).collect()
    }

    /// Takes the next bytes of a segment: `offset` must be the `from` of its missing range.
    ///
    /// # Errors
    /// `InvalidData` when nothing is missing there, or when a segment that was fetched whole has the wrong checksum (the other side is
    /// damaged: the installation cannot succeed with it). Any other error is the local disk's.
    pub async fn write_chunk(&mut self, segment: &SegmentName, offset: u64, chunk: Bytes) -> io::Result<()> {
        let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{segment:?}: {reason}"));
        let fetch = self.missing.get(segment).copied().ok_or_else(|| invalid("not missing"))?;
        if offset != fetch.have || chunk.is_empty() || chunk.len() as u64 > fetch.entry.len - fetch.have {
            return Err(invalid("not the next bytes"));
        }
        let disk = self.store.inner.env.disk();
        let path = self.folder.join(staged_name(segment, fetch.local));
        let file = match &self.open {
            Some((name, file)) if name == segment => file.clone(),
            _ => {
                if fetch.whole_before {
                    // Whether what follows becomes durable is not known yet.
                    let whole = SegmentEntry { len: fetch.have, crc32c: fetch.crc32c, ..fetch.entry };
                    disk.rename(&self.folder.join(whole_name(&whole, fetch.local)), &path).await?;
                    self.missing.insert(*segment, Fetch { whole_before: false, ..fetch });
                }
                let mode = if fetch.have == fetch.local { OpenMode::Truncate } else { OpenMode::ReadWrite };
                let file = disk.open(&path, mode).await?;
                self.open = Some((*segment, file.clone()));
                file
            }
        };
        flush::write::<E>(&file, fetch.have - fetch.local, vec![chunk.clone()], chunk.len() as u64).await?;
        let have = fetch.have + chunk.len() as u64;
        let crc32c = crc32c::crc32c_append(fetch.crc32c, &chunk);
        if have < fetch.entry.len {
            self.missing.insert(*segment, Fetch { have, crc32c, whole_before: false, ..fetch });
            return Ok(());
        }
        self.open = None;
        if crc32c == fetch.entry.crc32c || Mistake::SnapshotChecksumIgnored.is_made() {
            self.store.inner.sync_file(&file, &path).await?;
            self.name_whole(&fetch.entry, fetch.local).await?;
            self.missing.remove(segment);
            self.fetched.insert(*segment, fetch.local);
            return Ok(());
        }
        drop(file);
        disk.remove_file(&path).await?;
        let whole = fetch.local == 0 && !fetch.resumed;
        let anew = Fetch { local: 0, have: 0, crc32c: 0, resumed: false, whole_before: false, ..fetch };
        self.missing.insert(*segment, anew);
        if whole { Err(invalid("wrong checksum")) } else { Ok(()) }
    }

    /// Makes the manifest the shard's checkpoint and the store's content, in place: clones of the store and its logs see the new
    /// content, waiters are woken. The caller must not run `apply` or a checkpoint meanwhile. After an error the shard must stop;
    /// its next start finds the old or the new state.
    pub async fn finish(mut self, checkpoints: &Checkpoints<E>) -> io::Result<Manifest> {
        if !self.missing.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "segments are missing"));
        }
        let inner = Arc::clone(&self.store.inner);
        {
            let _removing = inner.removing.lock().await;
            let _writing = inner.writing.lock().await;
            let done = self.exchange(&inner, checkpoints).await;
            done.map_err(|error| inner.fail(&self.folder, error))?;
        }
        self.pin = None;
        // openraft does nothing else until this returns.
        inner.remove_dropped_behind();
        Ok(std::mem::take(&mut self.manifest))
    }

    async fn exchange(&self, inner: &Inner<E>, checkpoints: &Checkpoints<E>) -> io::Result<()> {
        let disk = inner.env.disk();
        inner.write_queued().await?;
        // The local parts of segments, and what was complete without fetching, must be as durable as the fetched parts are.
        let mut local = Vec::new();
        for entry in &self.manifest.segments {
            let from = self.fetched.get(&entry.name).copied().unwrap_or(entry.len);
            if let Some(partition) = inner.partition(entry.name.key()).filter(|_| from > 0) {
                local.push((partition, SegmentEntry { len: from, ..*entry }));
            }
        }
        inner.sync_segments(&local).await?;
        disk.sync_dir(&self.folder).await?;
        inner.env.reached(Step::SnapshotStaged);

        let encoded = self.manifest.encode();
        let complete = inner.dir.join(complete_name(&encoded));
        remove_if_there(disk, &complete).await?;
        while let Err(error) = disk.rename(&self.folder, &complete).await {
            inner.wait_for_room(&complete, error).await?;
        }
        disk.sync_dir(&inner.dir).await?;
        // Each attempt writes all of it again.
        while let Err(error) = checkpoints.write_encoded(encoded.clone()).await {
            inner.wait_for_room(&complete, error).await?;
        }
        // From here on the new state is what a start finds.
        inner.env.reached(Step::SnapshotAdopted);
        let fetched = self.fetched.iter().map(|(name, from)| (*name, *from));
        let targets = self.manifest.segments.iter().map(|entry| (entry.name, *entry)).collect();
        move_in(disk, &inner.dir, &complete, fetched, &targets, Some(inner)).await?;
        self.exchange_state(inner).await?;
        disk.remove_dir_all(&complete).await
    }

    /// Lets the store see the files as they are now, and removes what is not listed.
    async fn exchange_state(&self, inner: &Inner<E>) -> io::Result<()> {
        let disk = inner.env.disk();
        let generation = inner.generation.fetch_add(1, Ordering::AcqRel) + 1;
        let mut listed: BTreeMap<PartitionKey, Vec<SegmentEntry>> = BTreeMap::new();
        for entry in &self.manifest.segments {
            listed.entry(entry.name.key()).or_default().push(*entry);
        }
        let mut waiters = Vec::new();
        let mut gone: Vec<Arc<Partition>> = Vec::new();
        let mut remove = Vec::new();
        let mut cut = Vec::new();
        {
            let mut partitions = inner.partitions();
            partitions.retain(|key, partition| {
                let keep = listed.contains_key(key);
                if !keep {
                    let mut state = partition.lock();
                    state.dropped = true;
                    inner.forget_tail(&mut state);
                    waiters.extend(state.waiters());
                    gone.push(Arc::clone(partition));
                }
                keep
            });
            for (key, entries) in listed {
                let directory_made = entries.iter().any(|entry| entry.len > 0);
                let Some(partition) = partitions.get(&key) else {
                    let mut state = PartitionState::durable(entries, generation);
                    state.directory_made = directory_made;
                    partitions.insert(key, Partition::new(key, state));
                    continue;
                };
                let mut state = partition.lock();
                if state.segments().map(|segment| segment.entry).eq(entries.iter().copied()) {
                    continue;
                }
                let start_offset = entries.first().map_or(0, |first| first.start_offset);
                for segment in state.segments_with_files() {
                    let name = segment.entry.name;
                    let listed =
                        entries.binary_search_by_key(&name, |entry| entry.name).ok().and_then(|at| entries.get(at));
                    match listed.filter(|entry| entry.len > 0) {
                        Some(entry) if segment.entry.len > entry.len => cut.push((name, entry.len)),
                        Some(_) => {}
                        None => {
                            if segment.entry.next_offset <= start_offset && segment.entry.len > 0 {
                                Mark::DeletedSegmentsMissedAndRemoved.reached();
                            }
                            remove.extend([inner.log_path(name), inner.index_path(name)]);
                        }
                    }
                }
                inner.forget_tail(&mut state);
                state.replace_segments(entries, generation);
                state.directory_made |= directory_made;
                waiters.extend(state.waiters());
            }
        }
        inner.removable(gone);
        inner.forget_files();
        lock(&inner.indexes).clear();
        lock(&inner.without_index).clear();
        inner.wrote.notify_waiters();
        for waiter in waiters {
            waiter.notify_one();
        }
        for path in remove {
            match disk.remove_file(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for (name, len) in cut {
            disk.open(&inner.log_path(name), OpenMode::ReadWrite).await?.set_len(len).await?;
        }
        Ok(())
    }
}

impl<E: Env> PartitionStore<E> {
    /// Removes what an installation that was given up has fetched.
    pub(crate) async fn forget_fetched(&self) {
        if self.inner.installing.swap(true, Ordering::AcqRel) {
            return;
        }
        for folder in [FETCHING, FETCHED_BEFORE].map(|name| self.inner.dir.join(name)) {
            if let Err(error) = remove_if_there(self.inner.env.disk(), &folder).await {
                tracing::warn!(path = %folder.display(), %error, "what was fetched of a leader's checkpoint stays");
            }
        }
        self.inner.installing.store(false, Ordering::Release);
    }
}

/// CRC32C of the first `entry.len` bytes of a local segment.
async fn crc_of<E: Env>(inner: &Inner<E>, entry: &SegmentEntry, generation: u64) -> io::Result<u32> {
    let file = inner.file(entry.name, generation, OpenMode::ReadWrite).await?;
    let (mut position, mut crc32c) = (0, 0);
    while position < entry.len {
        let left = usize::try_from(entry.len - position).unwrap_or(usize::MAX);
        let bytes = file.read_at(position, left.min(COPY_BYTES)).await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        crc32c = crc32c::crc32c_append(crc32c, &bytes);
        position += bytes.len() as u64;
    }
    Ok(crc32c)
}

fn staged_name(segment: &SegmentName, from: u64) -> String {
    format!("{}.{from}", segment.staged_file())
}

fn parse_staged_name(name: &str) -> Option<(SegmentName, u64)> {
    let mut parts = name.split('.');
    let (directory, stem, from) = (parts.next()?, parts.next()?, parts.next()?);
    let key = PartitionKey::parse_directory(directory)?;
    let segment = SegmentName::parse_stem(key, stem)?;
    let from = from.parse().ok()?;
    (staged_name(&segment, from) == name).then_some((segment, from))
}

/// The name of a fetched segment's file once it is whole and durable.
fn whole_name(entry: &SegmentEntry, from: u64) -> String {
    format!("{}.{}-{:08x}", staged_name(&entry.name, from), entry.len, entry.crc32c)
}

/// What such a name says of its segment, and the position of the file's first byte.
fn parse_whole_name(name: &str) -> Option<(Whole, u64)> {
    let (staged, whole) = name.rsplit_once('.')?;
    let (segment, from) = parse_staged_name(staged)?;
    let (len, crc32c) = whole.split_once('-')?;
    let whole = Whole { name: segment, len: len.parse().ok()?, crc32c: u32::from_str_radix(crc32c, 16).ok()? };
    (format!("{staged}.{}-{:08x}", whole.len, whole.crc32c) == name).then_some((whole, from))
}

/// A segment as it was when it was whole.
struct Whole {
    name: SegmentName,
    len: u64,
    crc32c: u32,
}

fn complete_name(encoded_manifest: &[u8]) -> String {
    format!("{COMPLETE}{:08x}-{}", crc32c::crc32c(encoded_manifest), encoded_manifest.len())
}

async fn remove_if_there<D: Disk>(disk: &D, directory: &Path) -> io::Result<()> {
    match disk.remove_dir_all(directory).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Ends an installation that a crash interrupted: `names` are the entries of the store's directory, `manifest` its checkpoint. Gives the folders that it was
/// made in: what was moved out of them before the crash may not be durable where it is now, so they must stay until all directories of the checkpoint's
/// partitions are.
pub(crate) async fn resume<E: Env>(
    disk: &E::Disk,
    dir: &Path,
    names: &[String],
    manifest: Option<&Manifest>,
) -> io::Result<Vec<PathBuf>> {
    let mut resumed = Vec::new();
    for name in names.iter().filter(|name| name.starts_with(COMPLETE)) {
        let folder = dir.join(name);
        if let Some(manifest) = manifest.filter(|manifest| *name == complete_name(&manifest.encode())) {
            Mark::InstallationResumed.reached();
            let staged = disk.read_dir(&folder).await?;
            let targets = manifest.segments.iter().map(|entry| (entry.name, *entry)).collect();
            let staged =
                staged.iter().filter_map(|name| parse_whole_name(name)).map(|(whole, from)| (whole.name, from));
            move_in::<E>(disk, dir, &folder, staged, &targets, None).await?;
            resumed.push(folder);
            continue;
        }
        remove_if_there(disk, &folder).await?;
    }
    Ok(resumed)
}

/// Moves staged files to where they belong and makes that durable. May be repeated after a crash. Where the disk is full, the store waits for
/// room; while there is no store yet that is an error.
async fn move_in<E: Env>(
    disk: &E::Disk,
    dir: &Path,
    folder: &Path,
    staged: impl Iterator<Item = (SegmentName, u64)>,
    targets: &BTreeMap<SegmentName, SegmentEntry>,
    store: Option<&Inner<E>>,
) -> io::Result<()> {
    let wait = async |path: &Path, error: io::Error| match store {
        Some(store) => store.wait_for_room(path, error).await,
        None => Err(error),
    };
    let mut moves = Vec::new();
    let mut directories = BTreeSet::new();
    for (segment, from) in staged {
        let Some(entry) = targets.get(&segment).filter(|entry| entry.len >= from) else { continue };
        moves.push((*entry, from));
        if from == 0 {
            directories.insert(dir.join(segment.key().directory()));
        }
    }
    for directory in &directories {
        while let Err(error) = disk.create_dir_all(directory).await {
            wait(directory, error).await?;
        }
    }
    // A file must not move durably into a directory that a crash may take away.
    disk.sync_dir(dir).await?;
    for (entry, from) in moves {
        let (segment, len) = (entry.name, entry.len);
        let directory = dir.join(segment.key().directory());
        let from_path = folder.join(whole_name(&entry, from));
        let to_path = directory.join(segment.log_file());
        if from == 0 {
            match disk.remove_file(&directory.join(segment.index_file())).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            while let Err(error) = disk.rename(&from_path, &to_path).await {
                wait(&to_path, error).await?;
            }
        } else {
            // The staged file stays until the segment is durable, with the folder.
            let source = disk.open(&from_path, OpenMode::Read).await?;
            let target = disk.open(&to_path, OpenMode::ReadWrite).await?;
            let mut position = from;
            while position < len {
                let left = usize::try_from(len - position).unwrap_or(usize::MAX);
                let bytes = source.read_at(position - from, left.min(COPY_BYTES)).await?;
                if bytes.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let bytes = Bytes::from(bytes);
                while let Err(error) = target.write_at(position, vec![bytes.clone()]).await {
                    wait(&to_path, error).await?;
                }
                position += bytes.len() as u64;
            }
            target.set_len(len).await?;
            target.sync_data().await?;
        }
    }
    for directory in directories {
        disk.sync_dir(&directory).await?;
    }
    Ok(())
}
