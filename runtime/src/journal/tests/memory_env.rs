//! An environment whose disk is memory and can lose power at any operation.
//!
//! What was not synced when the power goes is there or not, sector by sector and directory entry by directory entry, in any order.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_env::{Connection, Disk, DiskFile, Env, Listener, OpenMode, Task, TaskFailed};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SECTOR_BYTES: usize = 512;

/// An environment with nothing but tasks, time and a disk in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryEnv {
    pub(super) disk: MemoryDisk,
}

#[derive(Clone, Debug, Default)]
pub(super) struct MemoryDisk {
    machine: Arc<Mutex<Machine>>,
}

#[derive(Clone, Debug)]
pub(super) struct MemoryFile {
    machine: Arc<Mutex<Machine>>,
    inode: usize,
}

#[derive(Debug, Default)]
struct Machine {
    names: BTreeMap<PathBuf, usize>,
    names_durable: BTreeMap<PathBuf, usize>,
    names_unsynced: Vec<NameChange>,
    directories: BTreeSet<PathBuf>,
    inodes: Vec<Inode>,
    operations: u64,
    power_off_at: Option<u64>,
    syncs_fail: bool,
    allocated_max: Option<u64>,
}

#[derive(Debug, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Debug)]
enum NameChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

fn apply_change(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, bytes) => {
            if content.len() < offset + bytes.len() {
                content.resize(offset + bytes.len(), 0);
            }
            content[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        Change::SetLen(len) => content.resize(*len, 0),
    }
}

fn apply_name_change(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
    match change {
        NameChange::Create(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
    }
}

impl Machine {
    fn operation(&mut self) -> io::Result<()> {
        if self.power_off_at.is_some_and(|at| self.operations >= at) {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        Ok(())
    }

    fn change(&mut self, inode: usize, change: Change) {
        let inode = &mut self.inodes[inode];
        apply_change(&mut inode.content, &change);
        inode.unsynced.push(change);
    }

    fn change_name(&mut self, change: NameChange) {
        apply_name_change(&mut self.names, &change);
        self.names_unsynced.push(change);
    }

    fn sync(&mut self, inode: usize) -> io::Result<()> {
        self.operation()?;
        let fails = self.syncs_fail;
        let inode = &mut self.inodes[inode];
        // Like Linux, a disk that failed shows what it could not keep, and does not try again.
        for change in std::mem::take(&mut inode.unsynced).iter().filter(|_| !fails) {
            apply_change(&mut inode.durable, change);
        }
        if fails { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }
}

impl MemoryDisk {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    /// Operations done so far.
    pub(super) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The power goes, or the process is killed, before this operation.
    pub(super) fn power_off_at(&self, operation: Option<u64>) {
        self.lock().power_off_at = operation;
    }

    /// From now on every sync fails, or no longer.
    pub(super) fn fail_syncs(&self, fail: bool) {
        self.lock().syncs_fail = fail;
    }

    /// The disk is full once all files together have this many bytes.
    pub(super) fn set_full_at(&self, bytes: Option<u64>) {
        self.lock().allocated_max = bytes;
    }

    /// Bytes in all files.
    pub(super) fn bytes(&self) -> u64 {
        let machine = self.lock();
        machine.names.values().map(|inode| machine.inodes[*inode].content.len() as u64).sum()
    }

    /// Names of all files.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    /// A file's content.
    pub(super) fn content(&self, path: &Path) -> Vec<u8> {
        let machine = self.lock();
        machine.inodes[machine.names[path]].content.clone()
    }

    /// Replaces or creates a file, durably.
    pub(super) fn set_content(&self, path: &Path, content: Vec<u8>) {
        let mut machine = self.lock();
        machine.inodes.push(Inode { durable: content.clone(), content, unsynced: Vec::new() });
        let inode = machine.inodes.len() - 1;
        machine.names.insert(path.to_path_buf(), inode);
        machine.names_durable.insert(path.to_path_buf(), inode);
        machine.directories.insert(path.parent().unwrap().to_path_buf());
    }

    /// Removes a file, durably.
    pub(super) fn remove(&self, path: &Path) {
        let mut machine = self.lock();
        machine.names.remove(path);
        machine.names_durable.remove(path);
    }

    /// What a restart finds after the power was cut.
    pub(super) fn after_power_cut(&self, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let machine = self.lock();
        // Mostly a mixture, but also the extremes.
        let kept = [0.0, 0.1, 0.5, 0.5, 0.9, 1.0][random.random_range(0..6)];
        let mut names = machine.names_durable.clone();
        for change in &machine.names_unsynced {
            if random.random_bool(kept) {
                apply_name_change(&mut names, change);
            }
        }
        let inodes: Vec<Inode> = machine
            .inodes
            .iter()
            .enumerate()
            .map(|(number, inode)| {
                if !names.values().any(|named| *named == number) {
                    return Inode::default();
                }
                let mut content = inode.durable.clone();
                for change in &inode.unsynced {
                    match change {
                        Change::Write(offset, bytes) => {
                            for (i, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                                if random.random_bool(kept) {
                                    let sector = Change::Write(offset + i * SECTOR_BYTES, sector.to_vec());
                                    apply_change(&mut content, &sector);
                                }
                            }
                        }
                        Change::SetLen(_) => {
                            if random.random_bool(kept) {
                                apply_change(&mut content, change);
                            }
                        }
                    }
                }
                Inode { durable: content.clone(), content, unsynced: Vec::new() }
            })
            .collect();
        let machine = Machine {
            names_durable: names.clone(),
            names,
            directories: machine.directories.clone(),
            inodes,
            ..Machine::default()
        };
        Self { machine: Arc::new(Mutex::new(machine)) }
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;
    type Lock = ();

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<MemoryFile> {
        tokio::task::yield_now().await;
        let mut machine = self.lock();
        let existing = machine.names.get(path).copied();
        let inode = match (existing, mode) {
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(io::ErrorKind::NotFound.into()),
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, _) => {
                machine.operation()?;
                machine.inodes.push(Inode::default());
                let inode = machine.inodes.len() - 1;
                machine.change_name(NameChange::Create(path.to_path_buf(), inode));
                inode
            }
            (Some(inode), OpenMode::Truncate) => {
                machine.operation()?;
                machine.change(inode, Change::SetLen(0));
                inode
            }
            (Some(inode), _) => inode,
        };
        Ok(MemoryFile { machine: Arc::clone(&self.machine), inode })
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.lock().directories.insert(path.to_path_buf());
        Ok(())
    }

    async fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let machine = self.lock();
        if !machine.directories.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = machine.names.keys().filter(|name| name.parent() == Some(path));
        Ok(names.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.lock();
        machine.operation()?;
        if !machine.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        machine.change_name(NameChange::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.lock();
        machine.operation()?;
        if !machine.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        machine.change_name(NameChange::Remove(path.to_path_buf()));
        Ok(())
    }

    async fn remove_dir_all(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn sync_dir(&self, _: &Path) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.lock();
        machine.operation()?;
        if machine.syncs_fail {
            return Err(io::Error::other("the disk is broken"));
        }
        machine.names_durable = machine.names.clone();
        machine.names_unsynced.clear();
        Ok(())
    }

    async fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    async fn lock(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl MemoryFile {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }
}

impl DiskFile for MemoryFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        tokio::task::yield_now().await;
        let machine = self.lock();
        let content = &machine.inodes[self.inode].content;
        let from = usize::try_from(offset).unwrap().min(content.len());
        Ok(content[from..content.len().min(from.saturating_add(len))].to_vec())
    }

    async fn write_at(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.lock();
        machine.operation()?;
        machine.change(self.inode, Change::Write(offset as usize, buffers.concat()));
        Ok(())
    }

    async fn write_and_sync(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, buffers).await?;
        self.sync_data().await
    }

    async fn sync_data(&self) -> io::Result<()> {
        tokio::task::yield_now().await;
        self.lock().sync(self.inode)
    }

    async fn write_back(&self, _offset: u64, _len: u64) {}

    async fn allocate(&self, len: u64) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.lock();
        machine.operation()?;
        let present = machine.inodes[self.inode].content.len() as u64;
        let total: u64 = machine.names.values().map(|inode| machine.inodes[*inode].content.len() as u64).sum();
        if machine.allocated_max.is_some_and(|max| total + len.saturating_sub(present) > max) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if present < len {
            machine.change(self.inode, Change::SetLen(len as usize));
        }
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let mut machine = self.lock();
        machine.operation()?;
        machine.change(self.inode, Change::SetLen(len as usize));
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.lock().inodes[self.inode].content.len() as u64)
    }
}

thread_local! {
    static RANDOM: Cell<u64> = const { Cell::new(1) };
}

#[derive(Debug)]
pub(super) struct MemoryTask<T>(tokio::task::JoinHandle<T>);

impl<T: Send + 'static> Task<T> for MemoryTask<T> {
    fn abort(&self) {
        self.0.abort();
    }
}

impl<T> Future for MemoryTask<T> {
    type Output = Result<T, TaskFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(cx)).map_err(|_| TaskFailed::Aborted))
    }
}

pub(super) struct NoListener;

impl Listener<MemoryEnv> for NoListener {
    async fn accept(&mut self) -> io::Result<Connection<MemoryEnv>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn local_address(&self) -> io::Result<String> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Env for MemoryEnv {
    type Disk = MemoryDisk;
    type Reader = tokio::io::Empty;
    type Writer = tokio::io::Sink;
    type Listener = NoListener;
    type Task<T: Send + 'static> = MemoryTask<T>;
    type Sleep = tokio::time::Sleep;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Self::sleep_until(Self::now() + duration)
    }

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline.into())
    }

    fn spawn<F>(future: F) -> Self::Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        MemoryTask(tokio::runtime::Handle::current().spawn(future))
    }

    fn random_u64() -> u64 {
        RANDOM.with(|random| {
            let next = random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random.set(next);
            next
        })
    }

    fn wall_clock_ms(&self) -> i64 {
        0
    }

    async fn connect(&self, _: &str) -> io::Result<Connection<Self>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn listen(&self, _: &str) -> io::Result<NoListener> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn disk(&self) -> &MemoryDisk {
        &self.disk
    }
}
