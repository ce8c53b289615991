//! The disk by itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Disk, DiskFile, Env, OpenMode};
use tokio::sync::mpsc;

use super::super::filler;
use super::RECORD_LEN;
use crate::cli::latency::Latencies;

type File = <<TokioEnv as Env>::Disk as Disk>::File;

const NODES: usize = 3;
/// So many are a majority of them.
const MAJORITY: usize = 2;
const FILE_LEN: u64 = 4 << 20;
const WRITES: u64 = 400;
/// Records of a batch whose throughput is measured.
const BATCH_RECORDS: usize = 1_000;
/// Batches at most, and for how long.
const BATCHES: u64 = 64;
const BATCHES_TIME: Duration = Duration::from_secs(2);
const BATCH_FILE_LEN: u64 = 32 << 20;

/// Files that are removed when the measurement is over.
struct Files {
    env: TokioEnv,
    paths: Vec<PathBuf>,
    files: Vec<File>,
}

impl Files {
    /// `count` files of `len` bytes that were all written once: blocks that are only reserved cost more at the first write.
    async fn create(env: &TokioEnv, directory: &Path, count: usize, len: u64) -> anyhow::Result<Self> {
        let mut files = Self { env: env.clone(), paths: Vec::new(), files: Vec::new() };
        for _ in 0..count {
            let path = directory.join(format!(".lockstep-bench-{:016x}", TokioEnv::random_u64()));
            let made = files.add(path.clone(), len).await;
            if let Err(error) = made {
                files.remove().await?;
                return Err(error).with_context(|| format!("measuring the disk with {}", path.display()));
            }
        }
        Ok(files)
    }

    async fn add(&mut self, path: PathBuf, len: u64) -> std::io::Result<()> {
        let file = self.env.disk().open(&path, OpenMode::CreateNew).await?;
        self.paths.push(path);
        file.allocate(len).await?;
        let content = filler(1, FILE_LEN as usize);
        let mut offset = 0;
        while offset < len {
            file.write_at(offset, vec![content.clone()]).await?;
            offset += content.len() as u64;
        }
        file.sync_data().await?;
        self.files.push(file);
        Ok(())
    }

    async fn remove(self) -> anyhow::Result<()> {
        for path in &self.paths {
            self.env.disk().remove_file(path).await.with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// Small writes that are synced: by one writer, and by three at a time until a majority is done.
pub(super) async fn measure_writes(
    env: &TokioEnv,
    directory: &Path,
    alone: &Latencies,
    majority: &Latencies,
) -> anyhow::Result<()> {
    let files = Files::create(env, directory, NODES, FILE_LEN).await?;
    let content = filler(2, RECORD_LEN);
    let measured = async {
        for index in 0..WRITES {
            let began_at = TokioEnv::now();
            files.files[0].write_and_sync(offset_of(index, &content, FILE_LEN), vec![content.clone()]).await?;
            alone.add(TokioEnv::now() - began_at);
        }
        for index in 0..WRITES {
            let offset = offset_of(index, &content, FILE_LEN);
            let write = |file: File, content: Bytes| async move { file.write_and_sync(offset, vec![content]).await };
            majority.add(time_of_majority(&files.files, &content, write).await?);
        }
        std::io::Result::Ok(())
    };
    let measured = measured.await;
    files.remove().await?;
    measured.with_context(|| format!("measuring the disk in {}", directory.display()))
}

/// Records of 1 KiB that three nodes stored while nothing but the disk took time, and how long that was.
pub(super) async fn measure_replication(env: &TokioEnv, directory: &Path) -> anyhow::Result<(u64, Duration)> {
    let journals = Files::create(env, directory, NODES, BATCH_FILE_LEN).await?;
    let segments = match Files::create(env, directory, NODES, BATCH_FILE_LEN).await {
        Ok(segments) => segments,
        Err(error) => {
            journals.remove().await?;
            return Err(error);
        }
    };
    let content = filler(3, BATCH_RECORDS * RECORD_LEN);
    let nodes: Vec<(File, File)> = journals.files.iter().cloned().zip(segments.files.iter().cloned()).collect();
    let began_at = TokioEnv::now();
    let measured = async {
        let mut batches = 0;
        while batches < BATCHES && TokioEnv::now() - began_at < BATCHES_TIME {
            let offset = offset_of(batches, &content, BATCH_FILE_LEN);
            let write = |(journal, segment): (File, File), content: Bytes| async move {
                journal.write_and_sync(offset, vec![content.clone()]).await?;
                segment.write_at(offset, vec![content]).await
            };
            time_of_majority(&nodes, &content, write).await?;
            batches += 1;
        }
        std::io::Result::Ok(batches)
    };
    let measured = measured.await;
    let took = TokioEnv::now() - began_at;
    journals.remove().await?;
    segments.remove().await?;
    let batches = measured.with_context(|| format!("measuring the disk in {}", directory.display()))?;
    Ok((batches * BATCH_RECORDS as u64, took))
}

/// Where a write goes in a file that is written over from its beginning when it is full.
fn offset_of(index: u64, content: &Bytes, file_len: u64) -> u64 {
    let len = content.len() as u64;
    index % (file_len / len) * len
}

/// How long it takes until a majority of the nodes has written. Ends when all have.
async fn time_of_majority<N, W>(
    nodes: &[N],
    content: &Bytes,
    write: impl Fn(N, Bytes) -> W,
) -> std::io::Result<Duration>
where
    N: Clone,
    W: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let (done, mut results) = mpsc::channel(nodes.len());
    let began_at = TokioEnv::now();
    for node in nodes {
        let (writing, done) = (write(node.clone(), content.clone()), done.clone());
        TokioEnv::spawn(async move {
            let result = writing.await;
            // There is room for all.
            let _ = done.send(result).await;
        });
    }
    drop(done);
    let mut took = Duration::ZERO;
    let mut written = 0;
    while let Some(result) = results.recv().await {
        result?;
        written += 1;
        if written == MAJORITY {
            took = TokioEnv::now() - began_at;
        }
    }
    Ok(took)
}
