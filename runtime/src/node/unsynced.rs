//! The file that says that entries may be acknowledged before they are durable: there while a node runs with `Durability::Replicated`, gone once it has stopped
//! in good order. A start that finds it does not know what is missing: see `raft/doubt.rs`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use lockstep_env::{Disk, Env};

use super::identity::io_error;
use crate::config::Durability;
use crate::error::StartError;

const FILE: &str = "unsynced";
const CONTENT: &[u8] = b"What was acknowledged last may not be on this disk: the node runs with durability \"replicated\", or did when it ended.\n";

fn path(raft_dir: &Path) -> PathBuf {
    raft_dir.join(FILE)
}

/// Did the last life leave the file? With `Durability::Replicated` it is there, durably, when this returns.
pub(super) async fn begin<E: Env>(env: &E, raft_dir: &Path, durability: Durability) -> Result<bool, StartError> {
    let path = path(raft_dir);
    let names = env.disk().read_dir(raft_dir).await.map_err(|error| io_error(raft_dir, error))?;
    let was_left = names.iter().any(|name| name == FILE);
    if durability == Durability::Replicated && !was_left {
        let written = env.disk().replace_file(&path, Bytes::from_static(CONTENT)).await;
        written.map_err(|error| io_error(&path, error))?;
    }
    Ok(was_left)
}

/// All is durable, and nothing is in doubt: the next start may trust what it finds.
pub(super) async fn end<E: Env>(env: &E, raft_dir: &Path) {
    let path = path(raft_dir);
    let removed = match env.disk().remove_file(&path).await {
        Ok(()) => env.disk().sync_dir(raft_dir).await,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "the next start may not trust what this node acknowledged last");
    }
}
