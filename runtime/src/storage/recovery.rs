//! What a store finds when it opens.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::try_join_all;
use lockstep_env::{Disk, DiskFile, Env, OpenMode};

use crate::error::StartError;
use crate::storage::install;
use crate::storage::manifest::{Manifest, check_segments};
use crate::storage::repair::REPAIRING;
use crate::storage::segment::{PartitionKey, SegmentEntry, SegmentName};
use crate::storage::state::{Partition, PartitionState};

/// Directories looked at at the same time.
const DIRECTORIES_AT_ONCE: usize = 16;

fn failed(path: &Path, source: io::Error) -> StartError {
    StartError::Io { path: path.display().to_string(), source }
}

/// Makes the directory hold what the manifest lists and nothing else, and gives its partitions.
pub(crate) async fn recover<E: Env>(
    env: &E,
    dir: &Path,
    manifest: Option<&Manifest>,
) -> Result<BTreeMap<PartitionKey, Arc<Partition>>, StartError> {
    let disk = env.disk();
    disk.create_dir_all(dir).await.map_err(|error| failed(dir, error))?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(parent).await.map_err(|error| failed(parent, error))?;
    }
    let mut listed: BTreeMap<PartitionKey, Vec<SegmentEntry>> = BTreeMap::new();
    if let Some(manifest) = manifest {
        check_segments(&manifest.segments).map_err(|error| StartError::Damaged {
            path: dir.display().to_string(),
            offset: 0,
            reason: error.to_string(),
        })?;
        for entry in &manifest.segments {
            listed.entry(entry.name.key()).or_default().push(*entry);
        }
    }
    let names = disk.read_dir(dir).await.map_err(|error| failed(dir, error))?;
    install::resume::<E>(disk, dir, &names, manifest).await.map_err(|error| failed(dir, error))?;
    for name in names {
        // What was being repaired is damaged still, or whole.
        let is_leftover = name == REPAIRING;
        if is_leftover || PartitionKey::parse_directory(&name).is_some_and(|key| !listed.contains_key(&key)) {
            let path = dir.join(&name);
            disk.remove_dir_all(&path).await.map_err(|error| failed(&path, error))?;
        }
    }
    let mut partitions = BTreeMap::new();
    let listed: Vec<_> = listed.into_iter().collect();
    for some in listed.chunks(DIRECTORIES_AT_ONCE) {
        let states = some.iter().map(async |(key, segments)| {
            let directory_made = cut_partition(disk, &dir.join(key.directory()), segments).await?;
            let mut state = PartitionState::durable(segments.iter().copied(), 0);
            state.directory_made = directory_made;
            Ok::<_, StartError>((*key, Partition::new(*key, state)))
        });
        partitions.extend(try_join_all(states).await?);
    }
    Ok(partitions)
}

/// Cuts the partition's files to what is listed. Is there a directory?
async fn cut_partition<D: Disk>(disk: &D, directory: &Path, segments: &[SegmentEntry]) -> Result<bool, StartError> {
    let names = match disk.read_dir(directory).await {
        Ok(names) => Some(names),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(directory, error)),
    };
    for name in names.iter().flatten() {
        let ours = name.ends_with(".log") || name.ends_with(".index");
        let kept = segments.iter().any(|entry| entry.len > 0 && is_file_of(name, &entry.name));
        if ours && !kept {
            let path = directory.join(name);
            disk.remove_file(&path).await.map_err(|error| failed(&path, error))?;
        }
    }
    for entry in segments.iter().filter(|entry| entry.len > 0) {
        let path = directory.join(entry.name.log_file());
        let damaged =
            |offset: u64, reason: String| StartError::Damaged { path: path.display().to_string(), offset, reason };
        let file = match disk.open(&path, OpenMode::ReadWrite).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(0, format!("missing, the checkpoint lists {} bytes", entry.len)));
            }
            Err(error) => return Err(failed(&path, error)),
        };
        let len = file.len().await.map_err(|error| failed(&path, error))?;
        if len < entry.len {
            return Err(damaged(len, format!("ends here, the checkpoint lists {} bytes", entry.len)));
        }
        if len > entry.len {
            file.set_len(entry.len).await.map_err(|error| failed(&path, error))?;
        }
    }
    Ok(names.is_some())
}

fn is_file_of(file: &str, segment: &SegmentName) -> bool {
    file == segment.log_file() || file == segment.index_file()
}
