//! What disk and network take by themselves, and `lockstep bench floor`.

mod disk;
mod network;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

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

/// What this machine could carry at most if brokers cost nothing.
#[derive(Serialize)]
struct Report {
    floor: Floor,
    /// Records of 1 KiB in batches of 1,000, each batch written twice by three nodes at a time (journal and segment), the
    /// journal synced; the next one begins when two nodes are done.
    replicated_records_per_second: f64,
    /// Bytes over one loopback connection.
    loopback_megabytes_per_second: f64,
}

/// `lockstep bench floor`.
pub(super) async fn run(env: &TokioEnv, arguments: OutputArguments) -> anyhow::Result<()> {
    let directory = &arguments.floor_dir;
    let meter = FloorMeter::new(env, directory);
    meter.measure().await?;
    let replicated_records_per_second = disk::measure_replication(env, directory).await?;
    let loopback_megabytes_per_second = network::measure_bulk(env).await.context("measuring loopback")? / 1e6;
    meter.measure().await?;
    let report = Report { floor: meter.floor(), replicated_records_per_second, loopback_megabytes_per_second };
    if arguments.json {
        return print_json(&report);
    }
    report.floor.print()?;
    writeln!(
        io::stdout(),
        "floor: three nodes, each record written twice, journal synced: {replicated_records_per_second:.0} records/s of 1 KiB"
    )?;
    writeln!(io::stdout(), "floor: loopback, one connection: {loopback_megabytes_per_second:.0} MB/s")?;
    Ok(())
}
