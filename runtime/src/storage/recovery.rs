//! What a store finds when it opens.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::storage::staging::STAGING;
use crate::storage::state::{Partition, PartitionState};
use lockstep_probe::{Mark, Mistake};

/// Directories looked at at the same time.
const DIRECTORIES_AT_ONCE: usize = 16;

fn failed(path: &Path, source: io::Error) -> StartError {
    StartError::Io { path: path.display().to_string(), source }
}

/// What a store has at its start.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) partitions: BTreeMap<PartitionKey, Arc<Partition>>,
    /// Listed segments that a compaction made and whose files are not there, or not whole.
    pub(crate) missing: Vec<SegmentName>,
    /// Files of compactions, with their lengths, of partitions that the manifest does not know: the journal may.
    pub(crate) unclaimed: BTreeMap<PartitionKey, Vec<(SegmentName, u64)>>,
}

/// Makes the directory hold what the manifest lists, and files of compactions that may be about to take effect: an entry of the journal may say so,
/// and they may be nowhere else. Everything else goes.
pub(crate) async fn recover<E: Env>(env: &E, dir: &Path, manifest: Option<&Manifest>) -> Result<Recovered, StartError> {
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
    let mut left_over = install::resume::<E>(disk, dir, &names, manifest).await.map_err(|error| failed(dir, error))?;
    // What was being repaired is damaged still, or whole.
    left_over.extend(names.iter().filter(|name| *name == REPAIRING).map(|name| dir.join(name)));
    // The process may have died between putting files in place and making that durable. A power failure later must not take them back: by then more may have been
    // written to them, and checkpoints list it.
    let was_interrupted = !left_over.is_empty();
    let mut recovered = Recovered::default();
    for name in names {
        // What was being compacted was not needed yet.
        let is_leftover = name == STAGING;
        let unlisted = PartitionKey::parse_directory(&name).filter(|key| !listed.contains_key(key));
        let path = dir.join(&name);
        if let Some(key) = unlisted {
            // Without a segment that is listed, nothing stays but what compactions left.
            let found = cut_partition(disk, key, &path, &[], false).await?;
            if !found.staged.is_empty() {
                recovered.unclaimed.insert(key, found.staged);
                continue;
            }
        }
        if is_leftover || unlisted.is_some() {
            disk.remove_dir_all(&path).await.map_err(|error| failed(&path, error))?;
        }
    }
    let listed: Vec<_> = listed.into_iter().collect();
    for some in listed.chunks(DIRECTORIES_AT_ONCE) {
        let states = some.iter().map(async |(key, segments)| {
            let found = cut_partition(disk, *key, &dir.join(key.directory()), segments, was_interrupted).await?;
            let mut state = PartitionState::durable(segments.iter().copied(), 0);
            state.directory_made = found.directory_made;
            for (name, len) in found.staged {
                Mark::StagedSegmentFoundAtStart.reached();
                state.stage(name, len);
            }
            Ok::<_, StartError>((*key, Partition::new(*key, state), found.missing))
        });
        for (key, partition, missing) in try_join_all(states).await? {
            recovered.partitions.insert(key, partition);
            recovered.missing.extend(missing);
        }
    }
    for path in left_over {
        disk.remove_dir_all(&path).await.map_err(|error| failed(&path, error))?;
    }
    Ok(recovered)
}

/// What was found of a partition.
#[derive(Default)]
struct Found {
    directory_made: bool,
    /// Files of compactions after those that the manifest knows, with their lengths.
    staged: Vec<(SegmentName, u64)>,
    missing: Vec<SegmentName>,
}

/// Cuts the partition's files to what is listed. Where `was_interrupted`, files may be in their places that are not durable there.
async fn cut_partition<D: Disk>(
    disk: &D,
    key: PartitionKey,
    directory: &Path,
    segments: &[SegmentEntry],
    was_interrupted: bool,
) -> Result<Found, StartError> {
    let names = match disk.read_dir(directory).await {
        Ok(names) => Some(names),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(directory, error)),
    };
    let mut found = Found { directory_made: names.is_some(), ..Found::default() };
    let kept: BTreeSet<String> = segments
        .iter()
        .filter(|entry| entry.len > 0)
        .flat_map(|entry| [entry.name.log_file(), entry.name.index_file()])
        .collect();
    let last_revision = segments.iter().map(|entry| entry.name.revision).max().unwrap_or(0);
    for name in names.iter().flatten() {
        let compacted = name.strip_suffix(".log").and_then(|stem| SegmentName::parse_stem(key, stem));
        let forgets = Mistake::StagedSegmentsRemovedAtStart.is_made();
        if let Some(compacted) = compacted.filter(|compacted| compacted.revision > last_revision && !forgets) {
            let path = directory.join(name);
            let file = disk.open(&path, OpenMode::Read).await.map_err(|error| failed(&path, error))?;
            found.staged.push((compacted, file.len().await.map_err(|error| failed(&path, error))?));
            continue;
        }
        let ours = name.ends_with(".log") || name.ends_with(".index");
        if ours && !kept.contains(name) {
            let path = directory.join(name);
            disk.remove_file(&path).await.map_err(|error| failed(&path, error))?;
        }
    }
    if !found.staged.is_empty() || was_interrupted && found.directory_made {
        // The process may have died between putting them in place and making that durable.
        disk.sync_dir(directory).await.map_err(|error| failed(directory, error))?;
    }
    for entry in segments.iter().filter(|entry| entry.len > 0) {
        let path = directory.join(entry.name.log_file());
        let damaged =
            |offset: u64, reason: String| StartError::Damaged { path: path.display().to_string(), offset, reason };
        let file = match disk.open(&path, OpenMode::ReadWrite).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && entry.name.is_compacted() => {
                found.missing.push(entry.name);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(0, format!("missing, the checkpoint lists {} bytes", entry.len)));
            }
            Err(error) => return Err(failed(&path, error)),
        };
        let len = file.len().await.map_err(|error| failed(&path, error))?;
        if len < entry.len && entry.name.is_compacted() {
            found.missing.push(entry.name);
            continue;
        }
        if len < entry.len {
            return Err(damaged(len, format!("ends here, the checkpoint lists {} bytes", entry.len)));
        }
        if len > entry.len {
            file.set_len(entry.len).await.map_err(|error| failed(&path, error))?;
        }
    }
    Ok(found)
}
