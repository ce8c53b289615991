//! `lockstep bench`.

mod floor;
mod group;
mod produce;

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
    /// Measures consumer groups: rebalances, heartbeats, joins, commits
    #[command(subcommand)]
    Group(group::BenchGroup),
}

pub(crate) async fn run(client: &Client, command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Produce(arguments) => produce::run(client, arguments).await,
        BenchCommand::Group(command) => group::run(client, command).await,
    }
}

/// What every measurement is told.
#[derive(Debug, Args)]
struct OutputArguments {
    /// Directory for the file that the disk is measured with
    #[arg(long, default_value = ".")]
    floor_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
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

    fn print(&self, name: &str) {
        let Quantiles { p50_ms, p99_ms, p999_ms } = self;
        println!("{name:<28} p50 {p50_ms:>8.3} ms   p99 {p99_ms:>8.3} ms   p99.9 {p999_ms:>8.3} ms");
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
