//! Who this node's disk belongs to: `node.json` in the Raft directory, and the locks on both directories.
//!
//! The incarnation is the identity of the disk, not of the node. It is made when the directory is first used, so a
//! node whose disk was emptied comes back with another one, and nobody takes it for a voter that still holds what it
//! once acknowledged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lockstep_core::NodeId;
use lockstep_env::{Disk, Env, OpenMode};
use serde::{Deserialize, Serialize};

use crate::config::NodeConfig;
use crate::error::StartError;

const FILE: &str = "node.json";
const LOCK: &str = "lock";
const FORMAT: u32 = 1;
const FILE_LEN_MAX: u64 = 64 << 10;

/// What `node.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Version of this file and of everything beside it.
    pub format: u32,
    /// The node the directory belongs to.
    pub node_id: NodeId,
    /// Identity of the disk.
    pub incarnation: [u8; 16],
    /// Set once the node belongs to a cluster.
    pub cluster: Option<ClusterIdentity>,
}

/// What the nodes of a cluster agreed on when it first started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterIdentity {
    /// The cluster's id.
    pub id: [u8; 16],
    /// Number of shards, for ever.
    pub shards: u16,
    /// The nodes and incarnations that started the cluster: its first voters.
    pub founders: BTreeMap<NodeId, [u8; 16]>,
}

/// Both directories, locked for this process.
pub(crate) struct Directories<E: Env> {
    pub identity: Identity,
    path: PathBuf,
    _locks: Vec<<E::Disk as Disk>::Lock>,
}

impl<E: Env> std::fmt::Debug for Directories<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directories").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl<E: Env> Directories<E> {
    /// Makes and locks the directories, and reads the identity or makes a new one, durable before this returns.
    pub(crate) async fn open(env: &E, config: &NodeConfig) -> Result<Self, StartError> {
        let mut locks = Vec::new();
        for directory in [&config.raft_dir, &config.data_dir] {
            create_durably(env, directory).await.map_err(|source| io_error(directory, source))?;
            let lock_path = directory.join(LOCK);
            if config.raft_dir == config.data_dir && !locks.is_empty() {
                continue;
            }
            match env.disk().lock(&lock_path).await {
                Ok(lock) => locks.push(lock),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(StartError::DirectoryInUse { path: directory.display().to_string() });
                }
                Err(source) => return Err(io_error(&lock_path, source)),
            }
        }
        let raft = Self::claim(env, &config.raft_dir, config.node_id, None).await?;
        if config.raft_dir != config.data_dir {
            // The data directory carries the same identity, so that a directory of another node, or of this node before
            // its other disk was emptied, is not taken for this one's.
            let data = Self::claim(env, &config.data_dir, config.node_id, Some(raft.incarnation)).await?;
            if data.incarnation != raft.incarnation {
                return Err(StartError::ForeignDirectory {
                    path: config.data_dir.display().to_string(),
                    reason: format!(
                        "holds the segments of another {}; move it away to start with an empty one",
                        config.raft_dir.display()
                    ),
                });
            }
        }
        Ok(Self { identity: raft, path: config.raft_dir.join(FILE), _locks: locks })
    }

    async fn claim(
        env: &E,
        directory: &Path,
        node_id: NodeId,
        incarnation: Option<[u8; 16]>,
    ) -> Result<Identity, StartError> {
        let path = directory.join(FILE);
        match env.disk().read_file(&path, FILE_LEN_MAX).await {
            Ok(bytes) => {
                let foreign =
                    |reason: String| StartError::ForeignDirectory { path: path.display().to_string(), reason };
                let identity: Identity =
                    serde_json::from_slice(&bytes).map_err(|error| foreign(format!("not a node's file: {error}")))?;
                if identity.format != FORMAT {
                    return Err(foreign(format!("has format {}, this version reads {FORMAT}", identity.format)));
                }
                if identity.node_id != node_id {
                    return Err(foreign(format!("belongs to node {}, not to node {node_id}", identity.node_id)));
                }
                Ok(identity)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Identity {
                    format: FORMAT,
                    node_id,
                    incarnation: incarnation.unwrap_or_else(E::random_uuid),
                    cluster: None,
                };
                write(env, &path, &identity).await?;
                Ok(identity)
            }
            Err(source) => Err(io_error(&path, source)),
        }
    }

    /// Records, durably, which cluster this node belongs to.
    pub(crate) async fn join_cluster(&mut self, env: &E, cluster: ClusterIdentity) -> Result<(), StartError> {
        assert!(self.identity.cluster.is_none(), "a node joins one cluster once");
        self.identity.cluster = Some(cluster);
        write(env, &self.path, &self.identity).await
    }
}

/// Makes a directory with its parents so that a power cut does not take away what was made.
async fn create_durably<E: Env>(env: &E, directory: &Path) -> io::Result<()> {
    env.disk().create_dir_all(directory).await?;
    // Once the file is there, what is above it was made durable before.
    if env.disk().open(&directory.join(FILE), OpenMode::Read).await.is_ok() {
        return Ok(());
    }
    // Also what exists already: an earlier start may have made it and been killed before it was durable.
    for made in directory.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        let Some(parent) = made.parent() else { break };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match env.disk().sync_dir(parent).await {
            Err(error) if is_not_ours(&error) => break,
            synced => synced?,
        }
    }
    Ok(())
}

/// A directory that may not be read, or lies in a file system that cannot be written or does not sync directories: what it holds was not
/// made by us.
fn is_not_ours(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | InvalidInput | ReadOnlyFilesystem | Unsupported)
}

async fn write<E: Env>(env: &E, path: &Path, identity: &Identity) -> Result<(), StartError> {
    let json = serde_json::to_vec_pretty(identity)
        .map_err(|error| io_error(path, io::Error::new(io::ErrorKind::InvalidData, error)))?;
    env.disk().replace_file(path, Bytes::from(json)).await.map_err(|source| io_error(path, source))
}

pub(crate) fn io_error(path: &Path, source: io::Error) -> StartError {
    StartError::Io { path: path.display().to_string(), source }
}
