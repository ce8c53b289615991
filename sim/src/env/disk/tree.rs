//! Directories: their entries as programs see them, and as a crash leaves them.
//!
//! A change of an entry is durable once its directory is synced, and with it whatever changed before under the same names. That is what
//! POSIX promises, and it goes for created directories too: a directory whose parent was not synced may be gone with all that it holds.
//! ext4 gives more than that (it commits whatever changed before anywhere), and no program should count on it. Of the other changes a
//! power cut leaves some first part, as a file system with a journal does; a rename is never half done.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};

/// The root directory.
const ROOT: u64 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    /// With its inode's number.
    File(u64),
    /// With its number among the directories.
    Directory(u64),
}

#[derive(Default)]
struct Directory {
    current: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
}

/// What one entry is from now on.
struct Part {
    directory: u64,
    name: String,
    node: Option<Node>,
}

/// Entries that change together.
type Change = Vec<Part>;

pub(super) struct Tree {
    directories: BTreeMap<u64, Directory>,
    directory_next: u64,
    /// With so many, those that nothing leads to any more are forgotten.
    directories_max: usize,
    pending: Vec<Change>,
}

pub(super) fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

fn names(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str().ok_or(io::ErrorKind::InvalidInput)?),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(names)
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            directories: BTreeMap::from([(ROOT, Directory::default())]),
            directory_next: ROOT + 1,
            directories_max: 32,
            pending: Vec::new(),
        }
    }
}

impl Tree {
    fn change(&mut self, change: Change) {
        self.apply(&change, |directory| &mut directory.current);
        self.pending.push(change);
    }

    fn apply(&mut self, change: &Change, side: impl Fn(&mut Directory) -> &mut BTreeMap<String, Node>) {
        // What a name stood for goes before what it stands for comes.
        for part in change {
            if let Some(directory) = self.directories.get_mut(&part.directory) {
                match part.node {
                    Some(node) => side(directory).insert(part.name.clone(), node),
                    None => side(directory).remove(&part.name),
                };
            }
        }
    }

    fn lookup(&self, names: &[&str]) -> Option<Node> {
        let mut node = Node::Directory(ROOT);
        for name in names {
            let Node::Directory(directory) = node else { return None };
            node = *self.directories.get(&directory)?.current.get(*name)?;
        }
        Some(node)
    }

    pub(super) fn node(&self, path: &Path) -> Option<Node> {
        self.lookup(&names(path).ok()?)
    }

    fn directory(&self, path: &Path) -> io::Result<u64> {
        match self.lookup(&names(path)?) {
            Some(Node::Directory(directory)) => Ok(directory),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(missing(path)),
        }
    }

    /// The directory that holds the entry, and the entry's name.
    fn place(&self, path: &Path) -> io::Result<(u64, String)> {
        let names = names(path)?;
        let Some((name, parent)) = names.split_last() else { return Err(io::ErrorKind::InvalidInput.into()) };
        match self.lookup(parent) {
            Some(Node::Directory(directory)) => Ok((directory, (*name).to_owned())),
            _ => Err(missing(path.parent().unwrap_or(path))),
        }
    }

    /// A new file of this inode.
    pub(super) fn link(&mut self, path: &Path, inode: u64) -> io::Result<()> {
        let (directory, name) = self.place(path)?;
        self.change(vec![Part { directory, name, node: Some(Node::File(inode)) }]);
        Ok(())
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut directory = ROOT;
        for name in names(path)? {
            match self.directories.get(&directory).and_then(|directory| directory.current.get(name)) {
                Some(Node::Directory(next)) => directory = *next,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    let made = self.directory_next;
                    self.directory_next += 1;
                    self.directories.insert(made, Directory::default());
                    self.change(vec![Part { directory, name: name.to_owned(), node: Some(Node::Directory(made)) }]);
                    directory = made;
                }
            }
        }
        Ok(())
    }

    pub(super) fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let directory = self.directory(path)?;
        Ok(self.directories.get(&directory).map(|it| it.current.keys().cloned().collect()).unwrap_or_default())
    }

    /// Gives the inode of a file that was replaced.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<Option<u64>> {
        let node = self.node(from).ok_or_else(|| missing(from))?;
        let (from_directory, from_name) = self.place(from)?;
        let (directory, name) = self.place(to)?;
        let replaced = match (node, self.node(to)) {
            (Node::File(moved), Some(Node::File(inode))) => (moved != inode).then_some(inode),
            (Node::File(_), Some(Node::Directory(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (Node::Directory(_), Some(Node::File(_))) => return Err(io::ErrorKind::NotADirectory.into()),
            (Node::Directory(_), Some(Node::Directory(there))) => {
                if self.directories.get(&there).is_some_and(|there| !there.current.is_empty()) {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                None
            }
            (_, None) => None,
        };
        let gone = Part { directory: from_directory, name: from_name, node: None };
        self.change(vec![gone, Part { directory, name, node: Some(node) }]);
        Ok(replaced)
    }

    /// Gives the file's inode.
    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<u64> {
        let Some(Node::File(inode)) = self.node(path) else { return Err(missing(path)) };
        let (directory, name) = self.place(path)?;
        self.change(vec![Part { directory, name, node: None }]);
        Ok(inode)
    }

    /// Removes one entry after the other, as there is no other way. Gives the inodes of the files.
    pub(super) fn remove_dir_all(&mut self, path: &Path) -> io::Result<Vec<u64>> {
        let directory = self.directory(path)?;
        let place = self.place(path)?;
        let mut inodes = Vec::new();
        self.empty(directory, &mut inodes);
        self.change(vec![Part { directory: place.0, name: place.1, node: None }]);
        Ok(inodes)
    }

    fn empty(&mut self, directory: u64, inodes: &mut Vec<u64>) {
        let entries = self.directories.get(&directory).map(|it| it.current.clone()).unwrap_or_default();
        for (name, node) in entries {
            match node {
                Node::File(inode) => inodes.push(inode),
                Node::Directory(inner) => self.empty(inner, inodes),
            }
            self.change(vec![Part { directory, name, node: None }]);
        }
    }

    /// Makes a directory's entries durable, and what changed before under the same names.
    pub(super) fn sync(&mut self, path: &Path) -> io::Result<()> {
        let synced = self.directory(path)?;
        let mut wanted: BTreeSet<(u64, &str)> = BTreeSet::new();
        let mut is_durable = vec![false; self.pending.len()];
        for (place, change) in self.pending.iter().enumerate().rev() {
            let concerned = change
                .iter()
                .any(|part| part.directory == synced || wanted.contains(&(part.directory, part.name.as_str())));
            if concerned {
                is_durable[place] = true;
                wanted.extend(change.iter().map(|part| (part.directory, part.name.as_str())));
            }
        }
        drop(wanted);
        for (change, is_durable) in std::mem::take(&mut self.pending).into_iter().zip(is_durable) {
            if is_durable {
                self.apply(&change, |directory| &mut directory.durable);
            } else {
                self.pending.push(change);
            }
        }
        self.forget_unreachable();
        Ok(())
    }

    /// What a power cut leaves: what is durable and the first `kept` of the other changes.
    pub(super) fn crash(&mut self, kept: usize) {
        for change in std::mem::take(&mut self.pending).into_iter().take(kept) {
            self.apply(&change, |directory| &mut directory.durable);
        }
        for directory in self.directories.values_mut() {
            directory.current.clone_from(&directory.durable);
        }
        self.forget_unreachable();
    }

    pub(super) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Every node that anything stands for: now, durably, or in a change under way.
    fn reachable(&self) -> BTreeSet<Node> {
        let mut reachable = BTreeSet::new();
        let mut open = vec![Node::Directory(ROOT)];
        open.extend(self.pending.iter().flatten().filter_map(|part| part.node));
        while let Some(node) = open.pop() {
            if !reachable.insert(node) {
                continue;
            }
            if let Node::Directory(directory) = node
                && let Some(directory) = self.directories.get(&directory)
            {
                open.extend(directory.current.values().chain(directory.durable.values()));
            }
        }
        reachable
    }

    fn forget_unreachable(&mut self) {
        // Nothing is lost but memory while some are left over.
        if self.directories.len() < self.directories_max {
            return;
        }
        let reachable = self.reachable();
        self.directories.retain(|directory, _| reachable.contains(&Node::Directory(*directory)));
        self.directories_max = self.directories.len() * 2 + 16;
        self.pending.retain(|change| change.iter().any(|part| self.directories.contains_key(&part.directory)));
    }

    /// All inodes that have a name, now or after a crash.
    pub(super) fn inodes(&self) -> BTreeSet<u64> {
        let file = |node| match node {
            Node::File(inode) => Some(inode),
            Node::Directory(_) => None,
        };
        self.reachable().into_iter().filter_map(file).collect()
    }

    /// All files as programs see them, by path.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, u64> {
        let mut files = BTreeMap::new();
        let mut open = vec![(PathBuf::new(), ROOT)];
        while let Some((path, directory)) = open.pop() {
            let Some(directory) = self.directories.get(&directory) else { continue };
            for (name, node) in &directory.current {
                match node {
                    Node::File(inode) => {
                        files.insert(path.join(name), *inode);
                    }
                    Node::Directory(inner) => open.push((path.join(name), *inner)),
                }
            }
        }
        files
    }
}
