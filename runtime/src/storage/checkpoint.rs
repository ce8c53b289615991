//! Where checkpoints are kept.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lockstep_core::ShardId;
use lockstep_env::{Disk, Env, Step};

use crate::error::StartError;
use crate::storage::manifest::{self, Manifest};

/// The checkpoint file of one shard, `<raft_dir>/checkpoints/<shard>`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checkpoints<E: Env> {
    env: E,
    path: PathBuf,
}

impl<E: Env> Checkpoints<E> {
    /// Finds the shard's last checkpoint, if there is one.
    ///
    /// # Errors
    /// `Damaged` when the file is there but is no manifest: the journal before it is gone, so there is nothing to go back to.
    pub async fn open(env: E, raft_dir: &Path, shard: ShardId) -> Result<(Self, Option<Manifest>), StartError> {
        let dir = raft_dir.join("checkpoints");
        let path = dir.join(shard.to_string());
        let failed = |source| StartError::Io { path: path.display().to_string(), source };
        env.disk().create_dir_all(&dir).await.map_err(failed)?;
        env.disk().sync_dir(raft_dir).await.map_err(failed)?;
        // A checkpoint that was put in place just before the process died may be in the system's memory only. The journal is purged up to what
        // is read here, so it must not be gone when power fails later.
        env.disk().sync_dir(&dir).await.map_err(failed)?;
        let manifest = match env.disk().read_file(&path, manifest::BYTES_MAX).await {
            Ok(bytes) => Some(Manifest::decode(&Bytes::from(bytes)).map_err(|error| StartError::Damaged {
                path: path.display().to_string(),
                offset: 0,
                reason: error.to_string(),
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        Ok((Self { env, path }, manifest))
    }

    /// The shard's checkpoint file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `manifest` the shard's checkpoint. When it returns the checkpoint is durable; after a crash before that, either the old or
    /// the new one is there. After an error, too, either may be there: the shard must stop, and unless
    /// the manifest is too large the node, whose other shards have theirs in the same directory.
    pub async fn write(&self, manifest: &Manifest) -> io::Result<()> {
        self.write_encoded(manifest.encode()).await
    }

    pub(crate) async fn write_encoded(&self, manifest: Bytes) -> io::Result<()> {
        // The next start could not read it, nor another node.
        if manifest.len() as u64 > manifest::BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("a checkpoint of {} bytes", manifest.len()),
            ));
        }
        let staged = self.env.disk().stage_file(&self.path, manifest).await?;
        self.env.reached(Step::CheckpointStaged);
        self.env.disk().put_in_place(&staged, &self.path).await
    }
}
