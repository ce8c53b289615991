//! A simulated disk: what was not synced may be lost, torn or kept when the host crashes, sector by sector and entry by entry.
//!
//! The content lives outside the simulated node, so it survives the node's death. Every file keeps what was not synced yet with what it
//! replaced ([`inode`]), and so do directories ([`tree`]). A crash draws, from the seed, which of the unsynced writes reached the disk.
//! Besides, operations may fail, syncs may be slow or hang, the disk may be full, and bits may flip in what is at rest.

mod inode;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, OpenMode};

use self::inode::Inode;
use self::tree::{Node, Tree, missing};
use super::clock::{WorldSleep, world_now};
use super::trace::Trace;
use super::{chance, random_below};

/// Linux's number of the error that a failing disk gives.
const EIO: i32 = 5;
/// Linux's number of the error that a full disk gives.
const ENOSPC: i32 = 28;

/// How fast a disk is and how it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Shortest fsync.
    pub sync_min: Duration,
    /// Longest usual fsync.
    pub sync_max: Duration,
    /// Fsyncs in a thousand that take `slow_sync`.
    pub slow_sync_per_mille: u64,
    /// How long those take.
    pub slow_sync: Duration,
    /// Reads in a thousand that fail.
    pub read_error_per_mille: u64,
    /// Writes, and changes of directories, in a thousand that fail. Some first part of the write may have been made.
    pub write_error_per_mille: u64,
    /// Fsyncs in a thousand that fail. What they were to make durable never will be, though programs still read it; later syncs succeed.
    pub sync_error_per_mille: u64,
    /// How much the files may hold together; `None`: any amount. With less than they hold already, nothing can grow.
    pub capacity_bytes: Option<u64>,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            sync_min: Duration::from_micros(100),
            sync_max: Duration::from_micros(800),
            slow_sync_per_mille: 0,
            slow_sync: Duration::from_millis(150),
            read_error_per_mille: 0,
            write_error_per_mille: 0,
            sync_error_per_mille: 0,
            capacity_bytes: None,
        }
    }
}

/// What a disk is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Reads content.
    Read,
    /// Writes content, makes or cuts a file, or changes a directory.
    Write,
    /// Makes a file or a directory durable.
    Sync,
}

/// Where in a file a bit may flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// In any durable byte.
    Anywhere,
    /// In a durable byte before what was written last.
    BeforeLastWrite,
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
    tree: Tree,
    /// Inodes that lost a name: they may be gone once nobody has them open.
    unlinked: BTreeSet<u64>,
    locks: BTreeMap<PathBuf, u64>,
    syncs: u64,
    /// Operations that are to fail, with the number of those that are to succeed before.
    failing: Vec<(Operation, u64)>,
    /// No fsync ends before.
    stuck_until: Option<Instant>,
    /// Writes, syncs and changes of directories so far.
    changes: u64,
    /// With which of them power fails.
    power_fails_at: Option<u64>,
}

fn gone() -> io::Error {
    io::Error::other("the host has crashed")
}

fn size(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
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
            tree: Tree::default(),
            unlinked: BTreeSet::new(),
            locks: BTreeMap::new(),
            syncs: 0,
            failing: Vec::new(),
            stuck_until: None,
            changes: 0,
            power_fails_at: None,
        };
        Self { state: Arc::new(Mutex::new(state)), trace, lane: lane.into(), boot: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.boot == self.boot { Ok(state) } else { Err(gone()) }
    }

    /// The host dies: handles of this life can do nothing from now on. With `lose_unsynced` it lost power: unsynced content is lost or
    /// torn; without, only the process died and the kernel kept what it held.
    pub fn power_off(&self, lose_unsynced: bool) {
        self.end_life(&mut self.state(), lose_unsynced);
    }

    fn end_life(&self, state: &mut State, lose_unsynced: bool) {
        state.boot += 1;
        state.locks.clear();
        if lose_unsynced {
            let lost: usize = state.inodes.values().map(Inode::pending_count).sum();
            self.trace.event(&self.lane, format!("power cut: {lost} unsynced writes at stake"));
            for inode in state.inodes.values_mut() {
                inode.crash();
            }
            let kept = random_below(state.tree.pending_count() as u64 + 1);
            state.tree.crash(usize::try_from(kept).unwrap_or(0));
            let named = state.tree.inodes();
            state.inodes.retain(|inode, _| named.contains(inode));
            state.unlinked.clear();
        }
    }

    /// The disk as the host's present life sees it, or, when the host is down, its next one.
    #[must_use]
    pub fn boot(&self) -> Self {
        let boot = self.state().boot;
        Self { boot, ..self.clone() }
    }

    /// [`SimDisk::power_off`], and the disk for the host's next life.
    #[must_use]
    pub fn reboot(&self, lose_unsynced: bool) -> Self {
        self.power_off(lose_unsynced);
        self.boot()
    }

    /// Empties the disk, as if it had been replaced. The host must be down.
    pub fn wipe(&self) {
        self.trace.event(&self.lane, "disk emptied");
        let mut state = self.state();
        state.inodes.clear();
        state.unlinked.clear();
        state.tree = Tree::default();
    }

    /// How the disk behaves now.
    #[must_use]
    pub fn options(&self) -> DiskOptions {
        self.state().options
    }

    /// Changes how the disk behaves from now on.
    pub fn set_options(&self, options: DiskOptions) {
        self.state().options = options;
    }

    /// Changes some of how the disk behaves from now on.
    pub fn change_options(&self, change: impl FnOnce(&mut DiskOptions)) {
        change(&mut self.state().options);
    }

    /// The `nth` operation of this kind from now on fails, 1 being the next one.
    pub fn fail_nth(&self, operation: Operation, nth: u64) {
        self.state().failing.push((operation, nth.saturating_sub(1)));
    }

    /// Takes back what [`SimDisk::fail_nth`] announced and has not come yet; `false`: all of it has.
    pub fn fail_no_more(&self) -> bool {
        let failing = std::mem::take(&mut self.state().failing);
        !failing.is_empty()
    }

    /// No fsync that is under way, or begins meanwhile, ends before `duration` has passed.
    pub fn hang_syncs(&self, duration: Duration) {
        self.trace.event(&self.lane, format!("syncs hang for {duration:?}"));
        self.state().stuck_until = Some(world_now() + duration);
    }

    /// Bytes that the files hold together, counting those that were removed but are still open.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// Leaves room for `free_bytes` more, until the capacity is set otherwise.
    pub fn fill_up(&self, free_bytes: u64) {
        let mut state = self.state();
        let capacity_bytes = state.used_bytes().saturating_add(free_bytes);
        state.options.capacity_bytes = Some(capacity_bytes);
        self.trace.event(&self.lane, format!("disk full but for {free_bytes} bytes"));
    }

    /// Flips one bit, drawn from the seed, of one of the files that `choose` wants; where. Only bytes that are durable are touched.
    /// `None` when there are none. To spare what is being written is up to `choose`.
    pub fn flip_bit(&self, choose: impl Fn(&Path) -> Option<Flip>) -> Option<(PathBuf, u64)> {
        let mut state = self.state();
        let files = state.tree.files().into_iter();
        let mut chosen: Vec<(PathBuf, u64, Flip)> =
            files.filter_map(|(path, inode)| choose(&path).map(|flip| (path, inode, flip))).collect();
        while !chosen.is_empty() {
            let drawn = usize::try_from(random_below(chosen.len() as u64)).unwrap_or(0);
            let (path, inode, flip) = chosen.swap_remove(drawn);
            let flipped = state.inodes.get_mut(&inode).and_then(|inode| inode.flip_bit(flip == Flip::BeforeLastWrite));
            if let Some(at) = flipped {
                self.trace.event(&self.lane, format!("a bit of {} flips at {at}", path.display()));
                return Some((path, at as u64));
            }
        }
        None
    }

    /// The paths of all files, ascending.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().tree.files().into_keys().collect()
    }

    /// All files with their content, for comparing replicas.
    #[must_use]
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        let content = |inode| state.inodes.get(inode).map(|inode| inode.content().to_vec());
        state.tree.files().iter().filter_map(|(path, inode)| Some((path.clone(), content(inode)?))).collect()
    }

    /// One byte of a file; `None` when there is no such file or it ends before.
    #[must_use]
    pub fn byte(&self, path: &Path, at: u64) -> Option<u8> {
        let state = self.state();
        let inode = state.tree.files().get(path).copied()?;
        state.inodes.get(&inode)?.content().get(usize::try_from(at).ok()?).copied()
    }

    /// How many writes, syncs and changes of directories there have been.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Power fails just as the change with this number, counted from 0, would be made. The host must be taken down when
    /// [`SimDisk::lost_power`] says that it has.
    pub fn power_fails_at(&self, change: u64) {
        self.state().power_fails_at = Some(change);
    }

    /// Did power fail, as [`SimDisk::power_fails_at`] asked for?
    #[must_use]
    pub fn lost_power(&self) -> bool {
        let state = self.state();
        state.power_fails_at.is_some_and(|at| state.changes > at)
    }

    /// How many syncs the disk has done.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    async fn pause(&self, base: Duration) {
        WorldSleep::of(base + Duration::from_nanos(random_below(20_000))).await;
    }

    async fn pause_for_sync(&self) {
        let options = self.options();
        let spread = options.sync_max.saturating_sub(options.sync_min);
        let mut pause =
            options.sync_min + Duration::from_nanos(random_below(u64::try_from(spread.as_nanos()).unwrap_or(1)));
        if chance(options.slow_sync_per_mille) {
            pause += options.slow_sync;
        }
        WorldSleep::of(pause).await;
        loop {
            let stuck_until = self.state().stuck_until;
            match stuck_until {
                Some(until) if until > world_now() => WorldSleep::until(until).await,
                _ => return,
            }
        }
    }

    /// Does this operation fail? `what` is only for people.
    fn check(&self, state: &mut State, operation: Operation, what: impl fmt::Display) -> io::Result<()> {
        if operation != Operation::Read {
            state.changes += 1;
            if state.power_fails_at.is_some_and(|at| at == state.changes - 1) {
                self.end_life(state, true);
                return Err(gone());
            }
        }
        let per_mille = match operation {
            Operation::Read => state.options.read_error_per_mille,
            Operation::Write => state.options.write_error_per_mille,
            Operation::Sync => state.options.sync_error_per_mille,
        };
        let mut fails = chance(per_mille);
        state.failing.retain_mut(|(failing, left)| {
            let now = *failing == operation && *left == 0;
            fails |= now;
            if *failing == operation {
                *left = left.saturating_sub(1);
            }
            !now
        });
        if fails {
            self.trace.event(&self.lane, format!("{operation:?} fails: {what}"));
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    /// The disk, for a change of directories.
    fn to_change(&self, path: &Path) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.alive()?;
        self.check(&mut state, Operation::Write, path.display())?;
        Ok(state)
    }
}

impl State {
    fn create(&mut self, path: &Path) -> io::Result<u64> {
        let inode = self.inode_next;
        self.tree.link(path, inode)?;
        self.inode_next += 1;
        self.inodes.insert(inode, Inode::default());
        Ok(inode)
    }

    fn is_open(&self, inode: u64) -> bool {
        self.inodes.get(&inode).is_some_and(|inode| Arc::strong_count(&inode.handles) > 1)
    }

    fn used_bytes(&self) -> u64 {
        let freed = |inode: &u64| self.unlinked.contains(inode) && !self.is_open(*inode);
        let used = self.inodes.iter().filter(|(inode, _)| !freed(inode)).map(|(_, inode)| inode.content().len());
        used.sum::<usize>() as u64
    }

    /// How many bytes the files may grow by.
    fn free_bytes(&self) -> usize {
        let Some(capacity) = self.options.capacity_bytes else { return usize::MAX };
        usize::try_from(capacity.saturating_sub(self.used_bytes())).unwrap_or(usize::MAX)
    }

    /// Forgets what has no name, now or after a crash, and is not open.
    fn forget_unlinked(&mut self) {
        if self.unlinked.is_empty() {
            return;
        }
        let named = self.tree.inodes();
        for inode in std::mem::take(&mut self.unlinked) {
            if self.is_open(inode) || named.contains(&inode) {
                self.unlinked.insert(inode);
            } else {
                self.inodes.remove(&inode);
            }
        }
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        // A disk that was replaced under an open file.
        self.inodes.get_mut(&inode).ok_or_else(gone)
    }
}

/// An open simulated file.
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    _handle: Arc<()>,
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
        let inode = match (state.tree.node(path), mode) {
            (Some(Node::Directory(_)), _) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(Node::File(_)), OpenMode::CreateNew) => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} exists", path.display())));
            }
            (Some(Node::File(inode)), OpenMode::Truncate) => {
                self.check(&mut state, Operation::Write, path.display())?;
                state.inode(inode)?.set_len(0);
                inode
            }
            (Some(Node::File(inode)), _) => inode,
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(missing(path)),
            (None, _) => {
                self.check(&mut state, Operation::Write, path.display())?;
                state.create(path)?
            }
        };
        let handle = state.inode(inode)?.handles.clone();
        drop(state);
        Ok(SimFile { disk: self.clone(), inode, _handle: handle })
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.to_change(path)?.tree.create_dir_all(path)
    }

    async fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.alive()?.tree.read_dir(path)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.to_change(from)?;
        let replaced = state.tree.rename(from, to)?;
        state.unlinked.extend(replaced);
        Ok(())
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.to_change(path)?;
        let inode = state.tree.remove_file(path)?;
        state.unlinked.insert(inode);
        Ok(())
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.to_change(path)?;
        let inodes = state.tree.remove_dir_all(path)?;
        state.unlinked.extend(inodes);
        Ok(())
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pause_for_sync().await;
        let mut state = self.alive()?;
        self.check(&mut state, Operation::Sync, path.display())?;
        state.tree.sync(path)?;
        state.forget_unlinked();
        Ok(())
    }

    async fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::try_from(self.alive()?.free_bytes()).unwrap_or(u64::MAX))
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
    fn inode<R>(&self, change: impl FnOnce(&mut Inode) -> R) -> io::Result<R> {
        Ok(change(self.disk.alive()?.inode(self.inode)?))
    }

    fn check(&self, operation: Operation) -> io::Result<()> {
        let mut state = self.disk.alive()?;
        self.disk.check(&mut state, operation, format_args!("inode {}", self.inode))
    }

    /// Writes as much as there is room for.
    fn write(&self, mut at: usize, buffers: Vec<Bytes>, mut len_max: usize) -> io::Result<()> {
        for mut bytes in buffers {
            bytes.truncate(len_max);
            len_max -= bytes.len();
            let mut state = self.disk.alive()?;
            let room = state.free_bytes();
            let inode = state.inode(self.inode)?;
            let fits = inode.content().len().saturating_add(room).saturating_sub(at);
            let is_full = bytes.len() > fits;
            bytes.truncate(fits);
            let len = bytes.len();
            if len > 0 {
                inode.write(at, bytes);
            }
            drop(state);
            self.disk.trace.note((&*self.disk.lane, self.inode, at, len));
            at += len;
            if is_full {
                self.disk.trace.event(&self.disk.lane, "a write finds the disk full");
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
        }
        Ok(())
    }

    fn grow(&self, len: u64, shrink: bool) -> io::Result<()> {
        let len = size(len)?;
        self.check(Operation::Write)?;
        let mut state = self.disk.alive()?;
        let room = state.free_bytes();
        let inode = state.inode(self.inode)?;
        let before = inode.content().len();
        if len > before && len - before > room {
            drop(state);
            self.disk.trace.event(&self.disk.lane, "a file cannot grow: the disk is full");
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        if len > before || (shrink && len < before) {
            inode.set_len(len);
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.disk.pause(Duration::from_micros(20)).await;
        self.check(Operation::Read)?;
        self.inode(|inode| {
            let content = inode.content();
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
            let end = start.saturating_add(len).min(content.len());
            content[start..end].to_vec()
        })
    }

    async fn write_at(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.disk.pause(Duration::from_micros(5)).await;
        let at = size(offset)?;
        if let Err(error) = self.check(Operation::Write) {
            let len: usize = buffers.iter().map(Bytes::len).sum();
            self.write(at, buffers, usize::try_from(random_below(len as u64 + 1)).unwrap_or(0))?;
            return Err(error);
        }
        let is_zeros = buffers.iter().flatten().all(|byte| *byte == 0);
        self.write(at, buffers, usize::MAX)?;
        self.inode(|inode| inode.note_write(at, is_zeros))
    }

    async fn write_and_sync(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, buffers).await?;
        self.sync_data().await
    }

    async fn sync_data(&self) -> io::Result<()> {
        // What is written while the sync runs is not covered by it.
        let covered = self.inode(|inode| inode.covered())?;
        self.disk.pause_for_sync().await;
        if let Err(error) = self.check(Operation::Sync) {
            self.inode(|inode| inode.fail_sync(covered))?;
            return Err(error);
        }
        self.inode(|inode| inode.sync(covered))?;
        self.disk.state().syncs += 1;
        Ok(())
    }

    async fn write_back(&self, _offset: u64, _len: u64) {}

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.grow(len, false)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.grow(len, true)
    }

    async fn len(&self) -> io::Result<u64> {
        self.inode(|inode| inode.content().len() as u64)
    }
}
