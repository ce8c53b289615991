//! An environment whose disk is a tree in memory. When the power goes, what was not synced is there or not, change by change.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Connection, Disk, DiskFile, Env, Listener, OpenMode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

const SECTOR_BYTES: usize = 512;
const ROOT: usize = 0;

#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryEnv {
    pub(crate) disk: MemoryDisk,
}

#[derive(Clone, Debug)]
pub(crate) struct MemoryDisk {
    machine: Arc<Mutex<Machine>>,
}

#[derive(Clone, Debug)]
pub(crate) struct MemoryFile {
    machine: Arc<Mutex<Machine>>,
    node: usize,
}

#[derive(Debug)]
struct Machine {
    nodes: Vec<Node>,
    /// Changes of names that are not durable, in order.
    moves: Vec<Move>,
    /// Changes made so far.
    operations: u64,
    power_off_at: Option<u64>,
    full_at: Option<u64>,
    /// So many files and directories can be opened, and then so many cannot.
    opens_granted: u64,
    opens_refused: u64,
    syncs_fail: bool,
    /// So many syncs succeed, and then one fails.
    one_sync_fails_after: Option<u64>,
    opened: u64,
    bytes_read: u64,
    longest_read: usize,
    /// Removals wait while it is held.
    removals: Arc<RwLock<()>>,
    /// Reads of this file wait while it is held.
    reads: Option<(usize, Arc<RwLock<()>>)>,
    /// Syncs of this file wait while it is held.
    syncs: Option<(usize, Arc<RwLock<()>>)>,
    written: u64,
}

#[derive(Clone, Debug)]
enum Node {
    Directory { names: Names, durable: Names },
    File { content: Vec<u8>, durable: Vec<u8>, unsynced: Vec<Change> },
}

type Names = BTreeMap<String, usize>;

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

/// A name that appears, goes, or both at once.
#[derive(Clone, Debug)]
struct Move {
    removed: Option<(usize, String)>,
    added: Option<(usize, String, usize)>,
}

impl Default for MemoryDisk {
    fn default() -> Self {
        // The node's two directories are there before anything is opened in them.
        let directories: Names = [("data".to_owned(), 1), ("raft".to_owned(), 2)].into();
        let empty = Node::Directory { names: Names::new(), durable: Names::new() };
        let root = Node::Directory { names: directories.clone(), durable: directories };
        Self { machine: Arc::new(Mutex::new(Machine::new(vec![root, empty.clone(), empty]))) }
    }
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

impl Machine {
    fn new(nodes: Vec<Node>) -> Self {
        Self {
            nodes,
            moves: Vec::new(),
            operations: 0,
            power_off_at: None,
            full_at: None,
            opens_granted: 0,
            opens_refused: 0,
            syncs_fail: false,
            one_sync_fails_after: None,
            opened: 0,
            bytes_read: 0,
            longest_read: 0,
            removals: Arc::default(),
            reads: None,
            syncs: None,
            written: 0,
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.operation()?;
        let fails_now = self.one_sync_fails_after.take_if(|after| *after == 0).is_some();
        if let Some(after) = &mut self.one_sync_fails_after {
            *after -= 1;
        }
        if self.syncs_fail || fails_now { Err(io::Error::other("the disk is broken")) } else { Ok(()) }
    }

    fn operation(&mut self) -> io::Result<()> {
        if self.power_off_at.is_some_and(|at| self.operations >= at) {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        Ok(())
    }

    /// To open a file, or a directory to sync it.
    fn take_descriptor(&mut self) -> io::Result<()> {
        if self.opens_granted > 0 {
            self.opens_granted -= 1;
        } else if self.opens_refused > 0 {
            self.opens_refused -= 1;
            // EMFILE: it has no kind of its own.
            return Err(io::Error::from_raw_os_error(24));
        }
        Ok(())
    }

    /// An operation that a full disk refuses.
    fn operation_that_takes_room(&mut self) -> io::Result<()> {
        if self.full_at.take_if(|at| self.operations >= *at).is_some() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.operation()
    }

    fn names(&mut self, node: usize, durable_ones: bool) -> &mut Names {
        match &mut self.nodes[node] {
            Node::Directory { durable, .. } if durable_ones => durable,
            Node::Directory { names, .. } => names,
            Node::File { .. } => panic!("a file is no directory"),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut node = ROOT;
        for name in parts(path) {
            let Node::Directory { names, .. } = &self.nodes[node] else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            node = *names.get(&name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    fn find_parent(&self, path: &Path) -> io::Result<(usize, String)> {
        let mut names = parts(path);
        let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let parent: PathBuf = names.iter().collect();
        Ok((self.find(&parent)?, last))
    }

    fn apply_move(&mut self, change: &Move, durable: bool) {
        if let Some((directory, name)) = &change.removed {
            self.names(*directory, durable).remove(name);
        }
        if let Some((directory, name, node)) = &change.added {
            self.names(*directory, durable).insert(name.clone(), *node);
        }
    }

    fn moved(&mut self, change: Move) {
        self.apply_move(&change, false);
        self.moves.push(change);
    }

    fn add(&mut self, directory: usize, name: String, node: Node) -> usize {
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.moved(Move { removed: None, added: Some((directory, name, node)) });
        node
    }

    fn changed(&mut self, node: usize, change: Change) {
        let Node::File { content, unsynced, .. } = &mut self.nodes[node] else { panic!("a directory has no content") };
        apply_change(content, &change);
        unsynced.push(change);
    }

    fn remove_tree(&mut self, directory: usize, name: String) -> io::Result<()> {
        let node = self.names(directory, false)[&name];
        if let Node::Directory { names, .. } = &self.nodes[node] {
            for name in names.keys().cloned().collect::<Vec<_>>() {
                self.remove_tree(node, name)?;
            }
        }
        self.operation()?;
        self.moved(Move { removed: Some((directory, name)), added: None });
        Ok(())
    }

    fn collect(&self, node: usize, path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        match &self.nodes[node] {
            Node::Directory { names, .. } => {
                for (name, node) in names {
                    self.collect(*node, &path.join(name), files);
                }
            }
            Node::File { content, .. } => {
                files.insert(path.to_path_buf(), content.clone());
            }
        }
    }
}

fn parts(path: &Path) -> Vec<String> {
    let normal = path.components().filter(|component| matches!(component, Component::Normal(_)));
    normal.map(|component| component.as_os_str().to_string_lossy().into_owned()).collect()
}

impl MemoryDisk {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    /// Changes made so far.
    pub(crate) fn operations(&self) -> u64 {
        self.machine().operations
    }

    /// The power goes before this change.
    pub(crate) fn power_off_at(&self, operation: u64) {
        self.machine().power_off_at = Some(operation);
    }

    /// From this number of changes on the disk is full, until it has said so once.
    pub(crate) fn full_at(&self, operation: u64) {
        self.machine().full_at = Some(operation);
    }

    /// Has it said that it is full?
    pub(crate) fn was_full(&self) -> bool {
        self.machine().full_at.is_none()
    }

    /// When so many more files and directories were opened, the process has no file descriptor left twice.
    pub(crate) fn refuse_opens_after(&self, granted: u64) {
        let mut machine = self.machine();
        (machine.opens_granted, machine.opens_refused) = (granted, 2);
    }

    /// Has it been so?
    pub(crate) fn has_refused_opens(&self) -> bool {
        self.machine().opens_refused == 0
    }

    /// From now on every sync fails.
    pub(crate) fn fail_syncs(&self) {
        self.machine().syncs_fail = true;
    }

    /// So many syncs succeed from now on, and then one fails.
    pub(crate) fn fail_one_sync_after(&self, syncs: u64) {
        self.machine().one_sync_fails_after = Some(syncs);
    }

    /// Has it failed?
    pub(crate) fn a_sync_failed(&self) -> bool {
        self.machine().one_sync_fails_after.is_none()
    }

    /// Nothing is removed while this is held.
    pub(crate) async fn hold_removals(&self) -> OwnedRwLockWriteGuard<()> {
        let removals = Arc::clone(&self.machine().removals);
        removals.write_owned().await
    }

    /// This file is not read while this is held.
    pub(crate) async fn hold_reads(&self, path: &Path) -> OwnedRwLockWriteGuard<()> {
        let reads = Arc::new(RwLock::new(()));
        {
            let mut machine = self.machine();
            let node = machine.find(path).unwrap();
            machine.reads = Some((node, Arc::clone(&reads)));
        }
        reads.write_owned().await
    }

    /// This file is not synced while this is held.
    pub(crate) async fn hold_syncs(&self, path: &Path) -> OwnedRwLockWriteGuard<()> {
        let syncs = Arc::new(RwLock::new(()));
        {
            let mut machine = self.machine();
            let node = machine.find(path).unwrap();
            machine.syncs = Some((node, Arc::clone(&syncs)));
        }
        syncs.write_owned().await
    }

    /// Bytes read so far, and the most that was asked for at once.
    pub(crate) fn reads(&self) -> (u64, usize) {
        let machine = self.machine();
        (machine.bytes_read, machine.longest_read)
    }

    /// How often a file was opened.
    pub(crate) fn opened(&self) -> u64 {
        self.machine().opened
    }

    /// Bytes written to files so far.
    pub(crate) fn written(&self) -> u64 {
        self.machine().written
    }

    /// All files with their content.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        self.machine().collect(ROOT, Path::new("/"), &mut files);
        files
    }

    /// Replaces the content of a file that exists.
    pub(crate) fn set_content(&self, path: &Path, bytes: Vec<u8>) {
        let mut machine = self.machine();
        let node = machine.find(path).unwrap();
        machine.nodes[node] = Node::File { durable: bytes.clone(), content: bytes, unsynced: Vec::new() };
    }

    /// Removes a file.
    pub(crate) fn remove(&self, path: &Path) {
        let mut machine = self.machine();
        let (directory, name) = machine.find_parent(path).unwrap();
        machine.names(directory, false).remove(&name);
        machine.names(directory, true).remove(&name);
    }

    /// What a restart finds after the process was killed: all that it did, though not all of it is durable.
    pub(crate) fn after_kill(&self) -> Self {
        let machine = self.machine();
        let mut after = Machine::new(machine.nodes.clone());
        after.moves.clone_from(&machine.moves);
        Self { machine: Arc::new(Mutex::new(after)) }
    }

    /// What a restart finds after the power was cut now.
    pub(crate) fn after_power_cut(&self, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let kept = [0.0, 0.1, 0.5, 0.5, 0.9, 1.0][random.random_range(0..6)];
        let machine = self.machine();
        let mut after = Machine::new(machine.nodes.clone());
        for change in &machine.moves {
            if random.random_bool(kept) {
                after.apply_move(change, true);
            }
        }
        for node in &mut after.nodes {
            match node {
                Node::Directory { names, durable } => names.clone_from(durable),
                Node::File { content, durable, unsynced } => {
                    for change in std::mem::take(unsynced) {
                        match change {
                            Change::Write(offset, bytes) => {
                                for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                                    if random.random_bool(kept) {
                                        let at = offset + number * SECTOR_BYTES;
                                        apply_change(durable, &Change::Write(at, sector.to_vec()));
                                    }
                                }
                            }
                            Change::SetLen(_) if random.random_bool(kept) => apply_change(durable, &change),
                            Change::SetLen(_) => {}
                        }
                    }
                    content.clone_from(durable);
                }
            }
        }
        Self { machine: Arc::new(Mutex::new(after)) }
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;
    type Lock = ();

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<MemoryFile> {
        tokio::task::yield_now().await;
        let mut machine = self.machine();
        machine.take_descriptor()?;
        let (directory, name) = machine.find_parent(path)?;
        machine.opened += 1;
        let existing = machine.names(directory, false).get(&name).copied();
        let node = match (existing, mode) {
            (None, OpenMode::Read | OpenMode::ReadWrite) => return Err(io::ErrorKind::NotFound.into()),
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, _) => {
                machine.operation_that_takes_room()?;
                let file = Node::File { content: Vec::new(), durable: Vec::new(), unsynced: Vec::new() };
                machine.add(directory, name, file)
            }
            (Some(node), OpenMode::Truncate) => {
                machine.operation()?;
                machine.changed(node, Change::SetLen(0));
                node
            }
            (Some(node), _) => node,
        };
        Ok(MemoryFile { machine: Arc::clone(&self.machine), node })
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.machine();
        let mut node = ROOT;
        for name in parts(path) {
            node = match machine.names(node, false).get(&name) {
                Some(node) => *node,
                None => {
                    machine.operation_that_takes_room()?;
                    machine.add(node, name, Node::Directory { names: Names::new(), durable: Names::new() })
                }
            };
        }
        Ok(())
    }

    async fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        tokio::task::yield_now().await;
        let mut machine = self.machine();
        let node = machine.find(path)?;
        Ok(machine.names(node, false).keys().cloned().collect())
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.machine();
        let node = machine.find(from)?;
        let (to_directory, to_name) = machine.find_parent(to)?;
        machine.operation_that_takes_room()?;
        let from = machine.find_parent(from)?;
        machine.moved(Move { removed: Some(from), added: Some((to_directory, to_name, node)) });
        Ok(())
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        tokio::task::yield_now().await;
        let removals = Arc::clone(&self.machine().removals);
        let _allowed = removals.read().await;
        let mut machine = self.machine();
        machine.find(path)?;
        machine.operation()?;
        let from = machine.find_parent(path)?;
        machine.moved(Move { removed: Some(from), added: None });
        Ok(())
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        tokio::task::yield_now().await;
        let removals = Arc::clone(&self.machine().removals);
        let _allowed = removals.read().await;
        let mut machine = self.machine();
        machine.find(path)?;
        let (directory, name) = machine.find_parent(path)?;
        machine.remove_tree(directory, name)
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.machine();
        machine.take_descriptor()?;
        let node = machine.find(path)?;
        machine.sync()?;
        let touches = |change: &Move| {
            change.removed.as_ref().is_some_and(|removed| removed.0 == node)
                || change.added.as_ref().is_some_and(|added| added.0 == node)
        };
        let (synced, moves) = std::mem::take(&mut machine.moves).into_iter().partition(touches);
        machine.moves = moves;
        let synced: Vec<Move> = synced;
        for change in synced {
            machine.apply_move(&change, true);
        }
        Ok(())
    }

    async fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    async fn lock(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        tokio::task::yield_now().await;
        let held = self.machine.lock().unwrap().reads.clone().filter(|(node, _)| *node == self.node);
        if let Some((_, reads)) = held {
            drop(reads.read().await);
        }
        let mut machine = self.machine.lock().unwrap();
        let Node::File { content, .. } = &machine.nodes[self.node] else { panic!("a directory was opened") };
        let from = usize::try_from(offset).unwrap().min(content.len());
        let read = content[from..content.len().min(from.saturating_add(len))].to_vec();
        machine.bytes_read += read.len() as u64;
        machine.longest_read = machine.longest_read.max(len);
        Ok(read)
    }

    async fn write_at(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.machine.lock().unwrap();
        machine.operation_that_takes_room()?;
        let bytes = buffers.concat();
        machine.written += bytes.len() as u64;
        machine.changed(self.node, Change::Write(offset as usize, bytes));
        Ok(())
    }

    async fn write_and_sync(&self, offset: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, buffers).await?;
        self.sync_data().await
    }

    async fn sync_data(&self) -> io::Result<()> {
        tokio::task::yield_now().await;
        let held = self.machine.lock().unwrap().syncs.clone().filter(|(node, _)| *node == self.node);
        if let Some((_, syncs)) = held {
            drop(syncs.read().await);
        }
        let mut machine = self.machine.lock().unwrap();
        machine.sync()?;
        let Node::File { content, durable, unsynced } = &mut machine.nodes[self.node] else {
            panic!("a directory was opened")
        };
        durable.clone_from(content);
        unsynced.clear();
        Ok(())
    }

    async fn write_back(&self, _offset: u64, _len: u64) {}

    async fn allocate(&self, len: u64) -> io::Result<()> {
        if self.len().await? < len { self.set_len(len).await } else { Ok(()) }
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        tokio::task::yield_now().await;
        let mut machine = self.machine.lock().unwrap();
        machine.operation()?;
        machine.changed(self.node, Change::SetLen(len as usize));
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        tokio::task::yield_now().await;
        let machine = self.machine.lock().unwrap();
        let Node::File { content, .. } = &machine.nodes[self.node] else { panic!("a directory was opened") };
        Ok(content.len() as u64)
    }
}

pub(crate) struct NoListener;

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
    type Task<T: Send + 'static> = <TokioEnv as Env>::Task<T>;
    type Sleep = <TokioEnv as Env>::Sleep;

    fn now() -> Instant {
        TokioEnv::now()
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioEnv::sleep(duration)
    }

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        TokioEnv::sleep_until(deadline)
    }

    fn spawn<F>(future: F) -> Self::Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        TokioEnv::spawn(future)
    }

    fn random_u64() -> u64 {
        0
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
