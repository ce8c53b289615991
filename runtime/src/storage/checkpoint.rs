//! Where checkpoints are kept.

use std::io;
use std::path::Path;

use lockstep_core::ShardId;
use lockstep_env::Env;

use crate::error::StartError;
use crate::storage::manifest::Manifest;

/// The checkpoint file of one shard, `<raft_dir>/checkpoints/<shard>`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checkpoints<E: Env> {
    _env: E,
}

#[allow(unused_variables, clippy::unused_async)]
impl<E: Env> Checkpoints<E> {
    /// Finds the shard's last checkpoint, if there is one.
    ///
    /// # Errors
    /// `Damaged` when the file is there but is no manifest: the journal before it is gone, so there is nothing to go back to.
    pub async fn open(env: E, raft_dir: &Path, shard: ShardId) -> Result<(Self, Option<Manifest>), StartError> {
        todo!()
    }
    /// Makes `manifest` the shard's checkpoint. When it returns the checkpoint is durable; after a crash before that, either the old or
    /// the new one is there. After an error, too, either may be there: the shard must stop.
    pub async fn write(&self, manifest: &Manifest) -> io::Result<()> {
        todo!()
    }
}
