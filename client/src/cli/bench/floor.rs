//! What disk and network take by themselves.

use std::path::{Path, PathBuf};

use anyhow::Context;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Disk, DiskFile, Env, Listener, OpenMode};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Quantiles, filler};
use crate::cli::latency::Latencies;

/// Bytes of the floor's writes.
const FLOOR_LEN: usize = 1_024;
const FLOOR_FILE_LEN: u64 = 4 << 20;
const FLOOR_WRITES: u64 = 400;
const FLOOR_ROUND_TRIPS: u64 = 2_000;

/// What disk and network take by themselves here: no majority can acknowledge sooner.
#[derive(Serialize)]
pub(super) struct Floor {
    /// 1 KiB written into preallocated space, and fdatasync.
    disk: Quantiles,
    /// 1 KiB there and back over loopback TCP.
    round_trip: Quantiles,
}

impl Floor {
    pub(super) fn print(&self) {
        self.disk.print("floor: 1 KiB + fdatasync");
        self.round_trip.print("floor: loopback round trip");
    }
}

/// Measures the floor of a run: before and after it, because other users of the machine come and go.
pub(super) struct FloorMeter {
    env: TokioEnv,
    directory: PathBuf,
    disk: Latencies,
    round_trip: Latencies,
}

impl FloorMeter {
    /// `directory` is where the file is made that the disk is measured with.
    pub(super) fn new(env: &TokioEnv, directory: &Path) -> Self {
        let (disk, round_trip) = (Latencies::new(), Latencies::new());
        Self { env: env.clone(), directory: directory.to_owned(), disk, round_trip }
    }

    /// Takes some seconds at most.
    pub(super) async fn measure(&self) -> anyhow::Result<()> {
        measure_disk(&self.env, &self.directory, &self.disk).await?;
        measure_round_trip(&self.env, &self.round_trip).await.context("measuring loopback")
    }

    pub(super) fn floor(&self) -> Floor {
        Floor { disk: Quantiles::of(&self.disk), round_trip: Quantiles::of(&self.round_trip) }
    }
}

async fn measure_disk(env: &TokioEnv, directory: &Path, latencies: &Latencies) -> anyhow::Result<()> {
    let path = directory.join(format!(".lockstep-bench-{:016x}", TokioEnv::random_u64()));
    let disk = env.disk();
    let context = || format!("measuring the disk with {}", path.display());
    let file = disk.open(&path, OpenMode::CreateNew).await.with_context(context)?;
    let measured = async {
        // Written once before: blocks that are only reserved cost more at the first write.
        file.allocate(FLOOR_FILE_LEN).await?;
        file.write_and_sync(0, vec![filler(1, FLOOR_FILE_LEN as usize)]).await?;
        let content = filler(2, FLOOR_LEN);
        for index in 0..FLOOR_WRITES {
            let offset = index * FLOOR_LEN as u64 % FLOOR_FILE_LEN;
            let began_at = TokioEnv::now();
            file.write_and_sync(offset, vec![content.clone()]).await?;
            latencies.add(TokioEnv::now() - began_at);
        }
        Ok::<_, std::io::Error>(())
    };
    let measured = measured.await;
    disk.remove_file(&path).await.with_context(context)?;
    measured.with_context(context)
}

async fn measure_round_trip(env: &TokioEnv, latencies: &Latencies) -> std::io::Result<()> {
    let mut listener = env.listen("127.0.0.1:0").await?;
    let address = listener.local_address()?;
    let echo = TokioEnv::spawn(async move {
        let mut connection = listener.accept().await?;
        let mut buffer = [0; FLOOR_LEN];
        // Ends with an error when the other side closes.
        loop {
            connection.reader.read_exact(&mut buffer).await?;
            connection.writer.write_all(&buffer).await?;
            connection.writer.flush().await?;
        }
        #[expect(unreachable_code, reason = "names the type of the result")]
        Ok::<(), std::io::Error>(())
    });
    let mut connection = env.connect(&address).await?;
    let mut buffer = [7; FLOOR_LEN];
    for _ in 0..FLOOR_ROUND_TRIPS {
        let began_at = TokioEnv::now();
        connection.writer.write_all(&buffer).await?;
        connection.writer.flush().await?;
        connection.reader.read_exact(&mut buffer).await?;
        latencies.add(TokioEnv::now() - began_at);
    }
    drop(connection);
    // That it ended with an error is expected.
    let _ = echo.await;
    Ok(())
}
