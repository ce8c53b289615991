//! What disk and network take by themselves, and `lockstep bench floor`.

mod disk;
mod network;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use lockstep_env::tokio_env::TokioEnv;
use serde::Serialize;

use super::{OutputArguments, Quantiles};
use crate::cli::latency::Latencies;
use crate::cli::output::print_json;

/// What is written and sent to find the floor, in bytes.
const RECORD_LEN: usize = 1_024;

/// What disk and network take by themselves here: nothing can be acknowledged sooner.
#[derive(Serialize)]
pub(super) struct Floor {
    /// 1 KiB written into space that was written before, and fdatasync.
    disk: Quantiles,
    /// The same in three files at a time, until two are done: what a majority of three nodes on one disk takes.
    majority: Quantiles,
    /// 1 KiB there and back over loopback TCP.
    round_trip: Quantiles,
}

impl Floor {
    pub(super) fn print(&self) -> io::Result<()> {
        self.disk.print("floor: 1 KiB + fdatasync")?;
        self.majority.print("floor: 2 of 3 at a time")?;
        self.round_trip.print("floor: loopback round trip")
    }
}

/// Measures the floor of a run: before and after it, because other users of the machine come and go.
pub(super) struct FloorMeter {
    env: TokioEnv,
    directory: PathBuf,
    disk: Latencies,
    majority: Latencies,
    round_trip: Latencies,
}

impl FloorMeter {
    /// `directory` is where the files are made that the disk is measured with.
    pub(super) fn new(env: &TokioEnv, directory: &Path) -> Self {
        Self {
            env: env.clone(),
            directory: directory.to_owned(),
            disk: Latencies::new(),
            majority: Latencies::new(),
            round_trip: Latencies::new(),
        }
    }

    /// Takes some seconds at most.
    pub(super) async fn measure(&self) -> anyhow::Result<()> {
        disk::measure_writes(&self.env, &self.directory, &self.disk, &self.majority).await?;
        network::measure_round_trip(&self.env, &self.round_trip).await.context("measuring loopback")
    }

    pub(super) fn floor(&self) -> Floor {
        Floor {
            disk: Quantiles::of(&self.disk),
            majority: Quantiles::of(&self.majority),
            round_trip: Quantiles::of(&self.round_trip),
        }
    }
}

/// How much was done in how long, of several measurements together.
#[derive(Default)]
struct Rate {
    done: u64,
    took: Duration,
}

impl Rate {
    fn add(&mut self, (done, took): (u64, Duration)) {
        self.done += done;
        self.took += took;
    }

    fn per_second(&self) -> f64 {
        if self.took.is_zero() { 0.0 } else { self.done as f64 / self.took.as_secs_f64() }
    }
}

/// Measures what one loopback connection carries; before and after a run, like [`FloorMeter`].
pub(super) struct LoopbackMeter {
    env: TokioEnv,
    bytes: Rate,
}

impl LoopbackMeter {
    pub(super) fn new(env: &TokioEnv) -> Self {
        Self { env: env.clone(), bytes: Rate::default() }
    }

    /// Takes two seconds at most.
    pub(super) async fn measure(&mut self) -> anyhow::Result<()> {
        self.bytes.add(network::measure_bulk(&self.env).await.context("measuring loopback")?);
        Ok(())
    }

    pub(super) fn bytes_per_second(&self) -> f64 {
        self.bytes.per_second()
    }

    /// Tells what was measured, and the part of it that a run reached, if there was one.
    pub(super) fn print(bytes_per_second: f64, share: Option<f64>) -> io::Result<()> {
        let reached = reached(share);
        writeln!(io::stdout(), "floor: loopback, one connection: {:.0} MB/s{reached}", bytes_per_second / 1e6)
    }
}

/// What stands behind a floor that a run can be compared with.
fn reached(share: Option<f64>) -> String {
    share.map(|share| format!("; the run reached {share:.3} of it")).unwrap_or_default()
}

/// What this machine could carry at most if brokers cost nothing.
#[derive(Serialize)]
pub(super) struct ThroughputFloor {
    /// Records of 1 KiB in batches of 1,000, each batch written twice by three nodes at a time (journal and segment), the
    /// journal synced; the next one begins when all three are done, since the one disk must take what each of them writes.
    replicated_records_per_second: f64,
    /// Bytes over one loopback connection.
    loopback_megabytes_per_second: f64,
}

impl ThroughputFloor {
    /// Which part of what the disk could take these bytes a second of records are.
    pub(super) fn share_of_replicated(&self, bytes_per_second: f64) -> f64 {
        bytes_per_second / (self.replicated_records_per_second * RECORD_LEN as f64)
    }

    /// `share` is the part of the first that a run reached, if there was one.
    pub(super) fn print(&self, share: Option<f64>) -> io::Result<()> {
        let reached = reached(share);
        writeln!(
            io::stdout(),
            "floor: three nodes, each record written twice, journal synced: {:.0} records/s of 1 KiB{reached}",
            self.replicated_records_per_second
        )?;
        LoopbackMeter::print(self.loopback_megabytes_per_second * 1e6, None)
    }
}

/// Measures [`ThroughputFloor`], before and after a run.
pub(super) struct ThroughputMeter {
    directory: PathBuf,
    records: Rate,
    loopback: LoopbackMeter,
}

impl ThroughputMeter {
    /// `directory` is where the files are made that the disk is measured with: 192 MiB, which are removed again.
    pub(super) fn new(env: &TokioEnv, directory: &Path) -> Self {
        Self { directory: directory.to_owned(), records: Rate::default(), loopback: LoopbackMeter::new(env) }
    }

    /// Takes some seconds, and writes 576 MiB at most.
    pub(super) async fn measure(&mut self) -> anyhow::Result<()> {
        self.records.add(disk::measure_replication(&self.loopback.env, &self.directory).await?);
        self.loopback.measure().await
    }

    pub(super) fn floor(&self) -> ThroughputFloor {
        ThroughputFloor {
            replicated_records_per_second: self.records.per_second(),
            loopback_megabytes_per_second: self.loopback.bytes_per_second() / 1e6,
        }
    }
}

#[derive(Serialize)]
struct Report {
    floor: Floor,
    #[serde(flatten)]
    throughput: ThroughputFloor,
}

/// `lockstep bench floor`.
pub(super) async fn run(env: &TokioEnv, arguments: OutputArguments) -> anyhow::Result<()> {
    let directory = &arguments.floor_dir;
    let (meter, mut throughput) = (FloorMeter::new(env, directory), ThroughputMeter::new(env, directory));
    for _ in 0..2 {
        meter.measure().await?;
        throughput.measure().await?;
    }
    let report = Report { floor: meter.floor(), throughput: throughput.floor() };
    if arguments.json {
        return print_json(&report);
    }
    report.floor.print()?;
    report.throughput.print(None)?;
    Ok(())
}
