//! A simulated disk: what was not synced may be lost, torn or kept when the host crashes, sector by sector and entry by entry.
//!
//! The content lives outside the simulated node, so it survives the node's death. Every file has its content as programs see it and its durable
//! content, with the writes between the two; every directory entry has the same. A crash draws, from the seed, which of the
//! unsynced writes reached the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, Env, OpenMode};

use super::trace::Trace;
use super::{SimEnv, chance, random_below};

/// A torn write is torn at multiples of this.
const SECTOR_BYTES: usize = 512;

/// How fast a disk is and how it fails.
#[derive(Clone, Copy, Debug)]
pub struct DiskOptions {
    /// Shortest fsync.
    pub sync_min: Duration,
    /// Longest usual fsync.
    pub sync_max: Duration,
    /// Fsyncs in a thousand that take `slow_sync`.
    pub slow_sync_per_mille: u64,
    /// How long those take.
    pub slow_sync: Duration,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            sync_min: Duration::from_micros(100),
            sync_max: Duration::from_micros(800),
            slow_sync_per_mille: 0,
            slow_sync: Duration::from_millis(150),
        }
    }
}

/// A host's disk. Cheap to clone; clones made by [`SimDisk::boot`] see the same content.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    trace: Trace,
    lane: Arc<str>,
    /// Which life of the host this handle belongs to: handles of a former life can do nothing.
    boot: u64,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk({}, boot {})", self.lane, self.boot)
    }
}

struct State {
    options: DiskOptions,
    boot: u64,
    inode_next: u64,
    inodes: BTreeMap<u64, Inode>,
    directories: BTreeSet<PathBuf>,
    /// Entries as programs see them.
    entries: BTreeMap<PathBuf, u64>,
    /// Entries that survive a crash for certain.
    durable_entries: BTreeMap<PathBuf, u64>,
    /// Changes of entries since, in order.
    pending_entries: Vec<EntryChange>,
    locks: BTreeMap<PathBuf, u64>,
    syncs: u64,
}

#[derive(Clone, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Changes made durable so far.
    synced: u64,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Bytes },
    SetLen(usize),
}

#[derive(Clone)]
enum EntryChange {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl EntryChange {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path) => path.parent(),
        }
    }

    fn apply(&self, entries: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Link(path, inode) => {
                entries.insert(path.clone(), *inode);
            }
            Self::Unlink(path) => {
                entries.remove(path);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = entries.remove(from) {
                    entries.insert(to.clone(), inode);
                }
            }
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(bytes);
            }
            Self::SetLen(len) => content.resize(*len, 0),
        }
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.content);
        self.pending.push(change);
    }

    /// Makes the oldest `count` pending changes durable.
    fn sync(&mut self, count: usize) {
        for change in self.pending.drain(..count.min(self.pending.len())) {
            change.apply(&mut self.durable);
        }
        self.synced += count as u64;
    }

    /// What a crash leaves: of every unsynced write, any of its sectors.
    fn crash(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::SetLen(_) if chance(500) => change.apply(&mut self.durable),
                Change::SetLen(_) => {}
                Change::Write { offset, bytes } => {
                    let fate = random_below(3);
                    for start in (0..bytes.len()).step_by(SECTOR_BYTES) {
                        let kept = fate == 0 || (fate == 1 && chance(500));
                        if kept {
                            let end = bytes.len().min(start + SECTOR_BYTES);
                            let sector = Change::Write { offset: offset + start, bytes: bytes.slice(start..end) };
                            sector.apply(&mut self.durable);
                        }
                    }
                }
            }
        }
        self.content = self.durable.clone();
    }
}

fn gone() -> io::Error {
    io::Error::other("the host has crashed")
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

impl SimDisk {
    /// An empty disk; `lane` names its host in the trace.
    #[must_use]
    pub fn new(lane: &str, options: DiskOptions, trace: Trace) -> Self {
        let state = State {
            options,
            boot: 0,
            inode_next: 0,
            inodes: BTreeMap::new(),
            directories: BTreeSet::from([PathBuf::new(), PathBuf::from(".")]),
            entries: BTreeMap::new(),
            durable_entries: BTreeMap::new(),
            pending_entries: Vec::new(),
            locks: BTreeMap::new(),
            syncs: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), trace, lane: lane.into(), boot: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.boot == self.boot { Ok(state) } else { Err(gone()) }
    }

    /// The disk for the host's next life. With `lose_unsynced` the host lost power: unsynced content is lost or torn; without, only
    /// the process died and the kernel kept what it held.
    #[must_use]
    pub fn reboot(&self, lose_unsynced: bool) -> Self {
        let mut state = self.lock();
        state.boot += 1;
        state.locks.clear();
        if lose_unsynced {
            let lost: usize = state.inodes.values().map(|inode| inode.pending.len()).sum();
            self.trace.event(&self.lane, format!("power cut: {lost} unsynced writes at stake"));
            for inode in state.inodes.values_mut() {
                inode.crash();
            }
            let mut entries = std::mem::take(&mut state.durable_entries);
            // A journalling file system keeps a prefix of the changes of entries.
            let pending = std::mem::take(&mut state.pending_entries);
            let kept = usize::try_from(random_below(pending.len() as u64 + 1)).unwrap_or(0);
            for change in &pending[..kept] {
                change.apply(&mut entries);
            }
            state.durable_entries = entries.clone();
            state.entries = entries;
            let linked: BTreeSet<u64> = state.entries.values().copied().collect();
            state.inodes.retain(|inode, _| linked.contains(inode));
        }
        Self { boot: state.boot, ..self.clone_handle() }
    }

    fn clone_handle(&self) -> Self {
        Self { state: self.state.clone(), trace: self.trace.clone(), lane: self.lane.clone(), boot: self.boot }
    }

    /// Empties the disk, as if it had been replaced. The host must be down.
    pub fn wipe(&self) {
        self.trace.event(&self.lane, "disk emptied");
        let mut state = self.lock();
        state.inodes.clear();
        state.entries.clear();
        state.durable_entries.clear();
        state.pending_entries.clear();
    }

    /// Changes how the disk behaves from now on.
    pub fn set_options(&self, options: DiskOptions) {
        self.lock().options = options;
    }

    /// All files with their content, for comparing replicas.
    #[must_use]
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.lock();
        state
            .entries
            .iter()
            .filter_map(|(path, inode)| Some((path.clone(), state.inodes.get(inode)?.content.clone())))
            .collect()
    }

    /// How many syncs the disk has done.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    async fn pause(&self, base: Duration) {
        SimEnv::sleep(base + Duration::from_nanos(random_below(20_000))).await;
    }

    async fn pause_for_sync(&self) {
        let options = self.lock().options;
        let spread = options.sync_max.saturating_sub(options.sync_min);
        let mut pause =
            options.sync_min + Duration::from_nanos(random_below(u64::try_from(spread.as_nanos()).unwrap_or(1)));
        if chance(options.slow_sync_per_mille) {
            pause += options.slow_sync;
        }
        SimEnv::sleep(pause).await;
    }
}

impl State {
    fn link(&mut self, path: &Path, inode: u64) {
        self.entries.insert(path.to_path_buf(), inode);
        self.pending_entries.push(EntryChange::Link(path.to_path_buf(), inode));
    }

    fn create(&mut self, path: &Path) -> io::Result<u64> {
        if !self.directories.contains(path.parent().unwrap_or(Path::new(""))) {
            return Err(missing(path.parent().unwrap_or(path)));
        }
        let inode = self.inode_next;
        self.inode_next += 1;
        self.inodes.insert(inode, Inode::default());
        self.link(path, inode);
        Ok(inode)
    }
}

/// An open simulated file.
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({}, {})", self.disk.lane, self.inode)
    }
}

/// A held lock; it is free again when dropped or when the host dies.
#[derive(Debug)]
pub struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        if let Ok(mut state) = self.disk.alive() {
            state.locks.remove(&self.path);
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        self.pause(Duration::from_micros(5)).await;
        let mut state = self.alive()?;
        let known = state.entries.get(path).copied();
        let inode = match (known, mode) {
            (Some(_), OpenMode::CreateNew) => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", path.display())));
            }
            (Some(inode), OpenMode::Truncate) => {
                state.inodes.entry(inode).or_default().change(Change::SetLen(0));
                inode
            }
            (Some(inode), _) => inode,
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(missing(path)),
            (None, _) => state.create(path)?,
        };
        drop(state);
        Ok(SimFile { disk: self.clone(), inode })
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.alive()?;
        for directory in path.ancestors() {
            state.directories.insert(directory.to_path_buf());
        }
        Ok(())
    }

    async fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.alive()?;
        if !state.directories.contains(path) {
            return Err(missing(path));
        }
        let children = state.entries.keys().chain(state.directories.iter());
        let names: BTreeSet<String> = children
            .filter(|child| child.parent() == Some(path))
            .filter_map(|child| Some(child.file_name()?.to_string_lossy().into_owned()))
            .collect();
        Ok(names.into_iter().collect())
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.alive()?;
        if state.directories.contains(from) {
            let moved: Vec<PathBuf> = state.entries.keys().filter(|path| path.starts_with(from)).cloned().collect();
            for path in moved {
                let target = to.join(path.strip_prefix(from).unwrap_or(&path));
                EntryChange::Rename(path.clone(), target.clone()).apply(&mut state.entries);
                state.pending_entries.push(EntryChange::Rename(path, target));
            }
            let directories: Vec<PathBuf> =
                state.directories.iter().filter(|path| path.starts_with(from)).cloned().collect();
            for path in directories {
                state.directories.remove(&path);
                state.directories.insert(to.join(path.strip_prefix(from).unwrap_or(&path)));
            }
            return Ok(());
        }
        if !state.entries.contains_key(from) {
            return Err(missing(from));
        }
        let change = EntryChange::Rename(from.to_path_buf(), to.to_path_buf());
        change.apply(&mut state.entries);
        state.pending_entries.push(change);
        Ok(())
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.alive()?;
        state.entries.remove(path).ok_or_else(|| missing(path))?;
        state.pending_entries.push(EntryChange::Unlink(path.to_path_buf()));
        Ok(())
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.alive()?;
        if !state.directories.contains(path) {
            return Err(missing(path));
        }
        let inside: Vec<PathBuf> = state.entries.keys().filter(|entry| entry.starts_with(path)).cloned().collect();
        for entry in inside {
            state.entries.remove(&entry);
            state.pending_entries.push(EntryChange::Unlink(entry));
        }
        state.directories.retain(|directory| !directory.starts_with(path));
        Ok(())
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pause_for_sync().await;
        let mut state = self.alive()?;
        let pending = std::mem::take(&mut state.pending_entries);
        let mut entries = std::mem::take(&mut state.durable_entries);
        for change in pending {
            // Renamed directories are synced through any directory above the entry.
            if change.directory().is_some_and(|directory| directory.starts_with(path)) {
                change.apply(&mut entries);
            } else {
                state.pending_entries.push(change);
            }
        }
        state.durable_entries = entries;
        Ok(())
    }

    async fn lock(&self, path: &Path) -> io::Result<SimLock> {
        let mut state = self.alive()?;
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locks.insert(path.to_path_buf(), self.boot);
        drop(state);
        Ok(SimLock { disk: self.clone(), path: path.to_path_buf() })
    }
}

impl SimFile {
    fn with<R>(&self, change: impl FnOnce(&mut Inode) -> R) -> io::Result<R> {
        let mut state = self.disk.alive()?;
        Ok(change(state.inodes.entry(self.inode).or_default()))
    }
}

impl DiskFile for SimFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.disk.pause(Duration::from_micros(20)).await;
        self.with(|inode| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(inode.content.len());
            let end = start.saturating_add(len).min(inode.content.len());
            inode.content[start..end].to_vec()
        })
    }

    async fn write_at(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.disk.pause(Duration::from_micros(5)).await;
        let mut at = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        for bytes in buffers {
            let len = bytes.len();
            self.disk.trace.note((&*self.disk.lane, self.inode, at, len));
            self.with(|inode| inode.change(Change::Write { offset: at, bytes }))?;
            at += len;
        }
        Ok(())
    }

    async fn write_and_sync(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, buffers).await?;
        self.sync_data().await
    }

    async fn sync_data(&self) -> io::Result<()> {
        // What is written while the sync runs is not covered by it.
        let covered = self.with(|inode| inode.synced + inode.pending.len() as u64)?;
        self.disk.pause_for_sync().await;
        self.with(|inode| inode.sync(usize::try_from(covered.saturating_sub(inode.synced)).unwrap_or(0)))?;
        self.disk.lock().syncs += 1;
        Ok(())
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.with(|inode| {
            if inode.content.len() < len {
                inode.change(Change::SetLen(len));
            }
        })
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.with(|inode| inode.change(Change::SetLen(len)))
    }

    async fn len(&self) -> io::Result<u64> {
        self.with(|inode| inode.content.len() as u64)
    }
}
