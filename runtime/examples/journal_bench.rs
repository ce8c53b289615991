//! What the journal costs: latency of single appends next to the bare disk, and throughput with many appends under way.
//!
//! `cargo run --release -p lockstep-runtime --example journal_bench -- [DIRECTORY] [SECONDS]`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::{Position, ShardId};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Disk, DiskFile, Env, OpenMode};
use lockstep_runtime::{Durability, Histogram, Journal, JournalOptions, ShardLog};
use tokio::sync::{Semaphore, oneshot};

const ENTRY_BYTES: usize = 1024;
const SHARDS: u16 = 8;
const UNDER_WAY: usize = 1_000;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let duration = Duration::from_secs(arguments.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(5));
    let directory = tempfile::tempdir_in(parent).expect("a directory to write to");

    let floor = bare_disk(&directory.path().join("written"), true, duration).await;
    show("4 KiB write + fdatasync, over what was written before", &floor, duration);
    let floor = bare_disk(&directory.path().join("allocated"), false, duration).await;
    show("4 KiB write + fdatasync, into what was only allocated", &floor, duration);
    let single = one_at_a_time(directory.path(), duration).await;
    show("1 KiB entry, one at a time", &single, duration);
    let many = many_at_a_time(directory.path(), duration).await;
    show("1 KiB entries, 1,000 under way on 8 shards", &many, duration);
}

fn show(what: &str, histogram: &Histogram, duration: Duration) {
    let snapshot = histogram.snapshot();
    let ms = |q| snapshot.quantile(q).unwrap_or_default() * 1e3;
    println!(
        "{what}: {:.0}/s, p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms",
        snapshot.count as f64 / duration.as_secs_f64(),
        ms(0.5),
        ms(0.99),
        ms(0.999)
    );
}

async fn bare_disk(path: &Path, is_written: bool, duration: Duration) -> Histogram {
    let env = TokioEnv::new();
    let file = env.disk().open(path, OpenMode::CreateNew).await.expect("a file");
    let block = Bytes::from(vec![7; 4096]);
    let blocks = 16_384;
    file.allocate(blocks * 4096).await.expect("an allocation");
    if is_written {
        for i in 0..blocks / 256 {
            file.write_at(i * 256 * 4096, vec![block.clone(); 256]).await.expect("a write");
        }
    }
    file.sync_data().await.expect("a sync");
    let histogram = Histogram::new();
    let end = TokioEnv::now() + duration;
    let mut i = 0;
    while TokioEnv::now() < end {
        let begun_at = TokioEnv::now();
        file.write_and_sync(i % blocks * 4096, vec![block.clone()]).await.expect("a write");
        histogram.record(TokioEnv::now() - begun_at);
        i += 1;
    }
    histogram
}

async fn open(directory: &Path) -> Journal<TokioEnv> {
    let options =
        JournalOptions { file_bytes: 64 << 20, cache_bytes_per_shard: 8 << 20, durability: Durability::Fsync };
    Journal::open(TokioEnv::new(), directory, options).await.expect("a journal")
}

fn entry(index: u64) -> (Position, Vec<Bytes>) {
    let payload = Bytes::from(vec![index as u8; ENTRY_BYTES]);
    (Position { term: 1, index }, vec![payload.slice(..50), payload.slice(50..)])
}

/// Purges now and then, as checkpoints do.
fn purge_sometimes(log: &ShardLog<TokioEnv>, index: u64) {
    if index % 10_000 == 9_999 {
        log.purge(Position { term: 1, index: index - 5_000 });
    }
}

async fn one_at_a_time(directory: &Path, duration: Duration) -> Histogram {
    let journal = open(&directory.join("single")).await;
    let log = journal.shard(ShardId(0));
    let histogram = Histogram::new();
    let end = TokioEnv::now() + duration;
    for index in 0.. {
        let begun_at = TokioEnv::now();
        if begun_at >= end {
            break;
        }
        let (sender, done) = oneshot::channel();
        log.append(vec![entry(index)], Box::new(|result| drop(sender.send(result))));
        done.await.expect("an answer").expect("an append");
        histogram.record(TokioEnv::now() - begun_at);
        purge_sometimes(&log, index);
    }
    journal.close().await;
    histogram
}

async fn many_at_a_time(directory: &Path, duration: Duration) -> Arc<Histogram> {
    let journal = open(&directory.join("many")).await;
    let histogram = Arc::new(Histogram::new());
    let end = TokioEnv::now() + duration;
    let mut tasks = Vec::new();
    for shard in 0..SHARDS {
        let log = journal.shard(ShardId(shard));
        let histogram = Arc::clone(&histogram);
        tasks.push(TokioEnv::spawn(async move {
            let under_way = Arc::new(Semaphore::new(UNDER_WAY / usize::from(SHARDS)));
            for index in 0.. {
                let permit = Arc::clone(&under_way).acquire_owned().await.expect("an open semaphore");
                let begun_at = TokioEnv::now();
                if begun_at >= end {
                    break;
                }
                let histogram = Arc::clone(&histogram);
                let done = move |result: std::io::Result<()>| {
                    result.expect("an append");
                    histogram.record(TokioEnv::now() - begun_at);
                    drop(permit);
                };
                log.append(vec![entry(index)], Box::new(done));
                purge_sometimes(&log, index);
            }
        }));
    }
    for task in tasks {
        task.await.expect("a task that ends");
    }
    journal.close().await;
    let syncs = journal.sync_histogram().snapshot();
    println!(
        "  {} batches, sync p50 {:.3} ms, p99 {:.3} ms",
        syncs.count,
        syncs.quantile(0.5).unwrap_or_default() * 1e3,
        syncs.quantile(0.99).unwrap_or_default() * 1e3
    );
    histogram
}
