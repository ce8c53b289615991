//! `lockstep bench`.

mod cluster;
mod consume;
mod floor;
mod group;
mod process;
mod produce;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, Subcommand};
use lockstep_client::{Admin, Client, ClientError, ErrorCode, NewTopic};
use serde::Serialize;

use super::latency::Latencies;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Sends records as fast as they are acknowledged, and measures how long each takes
    Produce(produce::BenchProduce),
    /// Reads a topic as fast as it comes
    Consume(consume::BenchConsume),
    /// Measures consumer groups: rebalances, heartbeats, joins, commits
    #[command(subcommand)]
    Group(group::BenchGroup),
    /// Creates many partitions and measures what brokers spend on them while nothing happens, and single records beside them
    Cluster(cluster::BenchCluster),
    /// Measures what disk and network take by themselves
    Floor(OutputArguments),
}

pub(crate) async fn run(client: &Client, command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Produce(arguments) => produce::run(client, arguments).await,
        BenchCommand::Consume(arguments) => consume::run(client, arguments).await,
        BenchCommand::Group(command) => group::run(client, command).await,
        BenchCommand::Cluster(arguments) => cluster::run(client, arguments).await,
        BenchCommand::Floor(arguments) => floor::run(client.env(), arguments).await,
    }
}

/// What every measurement is told.
#[derive(Debug, Args)]
pub(crate) struct OutputArguments {
    /// Directory for the file that the disk is measured with
    #[arg(long, default_value = ".")]
    floor_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which processes are measured.
#[derive(Debug, Args)]
struct BrokerArguments {
    /// Process ids of the brokers, on this machine, separated by commas: what they spend is measured
    #[arg(long, value_delimiter = ',')]
    broker_pids: Vec<u32>,
}

/// Tells what brokers spent, if that was measured.
fn print_broker_cpu(each: &BTreeMap<u32, f64>) -> io::Result<()> {
    if each.is_empty() {
        return Ok(());
    }
    let all: f64 = each.values().sum();
    let each: Vec<String> = each.iter().map(|(process, percent)| format!("{process}: {percent:.1} %")).collect();
    writeln!(io::stdout(), "brokers: {all:.1} % of one core ({})", each.join(", "))
}

/// Milliseconds.
#[derive(Serialize)]
struct Quantiles {
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
}

impl Quantiles {
    fn of(latencies: &Latencies) -> Self {
        let quantile = |share| latencies.quantile_ms(share);
        Self { p50_ms: quantile(0.5), p99_ms: quantile(0.99), p999_ms: quantile(0.999) }
    }

    fn print(&self, name: &str) -> io::Result<()> {
        let Quantiles { p50_ms, p99_ms, p999_ms } = self;
        writeln!(io::stdout(), "{name:<28} p50 {p50_ms:>8.3} ms   p99 {p99_ms:>8.3} ms   p99.9 {p999_ms:>8.3} ms")
    }
}

async fn ensure_topic(client: &Client, name: &str, partitions: i32) -> Result<(), ClientError> {
    match client.topic(name, false).await {
        Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => {
            Admin::new(client).create_topic(&NewTopic::new(name, partitions)).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Bytes that do not repeat soon.
fn filler(seed: u64, len: usize) -> Bytes {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
