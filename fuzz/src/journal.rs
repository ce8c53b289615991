//! What a disk gives back after a crash, or after somebody has edited it.

use std::path::Path;
use std::sync::OnceLock;

use lockstep_core::ShardId;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_runtime::{Durability, Journal, JournalOptions};
use tokio::runtime::Runtime;

/// The smallest file there may be: it keeps what is written per run small.
const FILE_BYTES: u64 = 16 << 10;
/// Longer files only take longer.
const LEN_MAX: usize = 256 << 10;
/// Shards that are looked into.
const SHARDS: u16 = 4;

/// The first of a journal's files; what follows the first byte is its content, and the byte says whether it is split into two files.
/// Recovery gives a journal that can be read, written, closed and opened again, or a typed error.
pub fn journal(data: &[u8]) {
    let [choice, content @ ..] = data else { return };
    if content.len() > LEN_MAX {
        return;
    }
    let directory = directory();
    let path = directory.path().join("journal");
    std::fs::create_dir(&path).expect("a directory");
    let cut = match choice % 4 {
        1 => FILE_BYTES as usize,
        _ => content.len(),
    };
    for (number, part) in content.chunks(cut.max(1)).enumerate().take(4) {
        std::fs::write(path.join(format!("{:016x}.journal", number + 1)), part).expect("a file");
    }
    runtime().block_on(async {
        let Some(before) = recover(&path).await else { return };
        let after = recover(&path).await;
        assert_eq!(Some(before), after, "a second recovery finds something else");
    });
}

/// Ends of the logs by shard; `None` when the journal is refused.
async fn recover(path: &Path) -> Option<Vec<(Option<u64>, Option<u64>)>> {
    let options =
        JournalOptions { file_bytes: FILE_BYTES, cache_bytes_per_shard: 4 << 10, durability: Durability::Fsync };
    let journal = Journal::open(TokioEnv::new(), path, options).await.ok()?;
    let mut ends = Vec::new();
    for shard in 0..SHARDS {
        let log = journal.shard(ShardId(shard));
        let first = log.purged().map_or(0, |purged| purged.index.saturating_add(1));
        let last = log.last().map(|last| last.index);
        if let Some(last) = last {
            let read = log.read(first, last.saturating_add(1), 1 << 20).await;
            if let Ok(entries) = &read {
                assert!(entries.windows(2).all(|pair| pair[0].0.index + 1 == pair[1].0.index), "entries have gaps");
            }
        }
        ends.push((log.purged().map(|purged| purged.index), last));
    }
    journal.close().await;
    Some(ends)
}

/// In memory where the system has such a place: syncing costs nothing there.
fn directory() -> tempfile::TempDir {
    let in_memory = Path::new("/dev/shm");
    let directory = if in_memory.is_dir() { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() };
    directory.expect("a temporary directory")
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().expect("a runtime")
    })
}
