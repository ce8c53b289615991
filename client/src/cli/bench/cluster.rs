//! `lockstep bench cluster`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use lockstep_client::{Admin, Client, ClientError, ErrorCode, NewTopic};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use serde::Serialize;

use super::BrokerArguments;
use super::process::{CpuMeter, resident_bytes};
use crate::cli::output::print_json;

#[derive(Debug, Args)]
pub(crate) struct BenchCluster {
    /// Partitions to create
    #[arg(long, default_value_t = 5_000)]
    partitions: u32,
    /// Partitions of each topic
    #[arg(long, default_value_t = 50)]
    partitions_per_topic: u32,
    /// How long to watch the brokers, before and after
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[command(flatten)]
    brokers: BrokerArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What brokers are while nothing is asked of them.
#[derive(Serialize)]
struct Idle {
    resident_bytes_each: BTreeMap<u32, u64>,
    /// Of one core.
    cpu_percent_each: BTreeMap<u32, f64>,
}

#[derive(Serialize)]
struct Report {
    partitions: u32,
    /// How long it took to create them.
    created_seconds: f64,
    before: Idle,
    after: Idle,
    /// Of the broker that grew most.
    resident_bytes_per_partition: f64,
}

pub(super) async fn run(client: &Client, arguments: BenchCluster) -> anyhow::Result<()> {
    let BenchCluster { partitions, partitions_per_topic, seconds, .. } = arguments;
    let processes = &arguments.brokers.broker_pids;
    if partitions == 0 || partitions_per_topic == 0 || seconds == 0 || processes.is_empty() {
        bail!("--partitions, --partitions-per-topic and --seconds must be at least 1, and --broker-pids be given");
    }
    let watched = Duration::from_secs(seconds);
    let before = watch(processes, watched).await?;
    let prefix = format!("bench-cluster-{:08x}", TokioEnv::random_u64() as u32);
    let topics: Vec<(String, u32)> = (0..partitions.div_ceil(partitions_per_topic))
        .map(|number| {
            let count = partitions_per_topic.min(partitions - number * partitions_per_topic);
            (format!("{prefix}-{number}"), count)
        })
        .collect();
    let admin = Admin::new(client);
    let began_at = TokioEnv::now();
    let measured = async {
        for (topic, count) in &topics {
            admin.create_topic(&NewTopic::new(topic.clone(), i32::try_from(*count)?)).await?;
        }
        let created_seconds = (TokioEnv::now() - began_at).as_secs_f64();
        // The first moments belong to the creation.
        TokioEnv::sleep(watched).await;
        anyhow::Ok((created_seconds, watch(processes, watched).await?))
    };
    let measured = measured.await;
    for (topic, _) in &topics {
        match admin.delete_topic(topic).await {
            Err(error) if !is_missing(&error) => return Err(error.into()),
            _ => {}
        }
    }
    let (created_seconds, after) = measured?;
    let grown = |process| {
        let of = |idle: &Idle| idle.resident_bytes_each.get(process).copied().unwrap_or(0);
        of(&after).saturating_sub(of(&before))
    };
    let grown_most = processes.iter().map(grown).max().unwrap_or(0);
    let resident_bytes_per_partition = grown_most as f64 / f64::from(partitions);
    let report = Report { partitions, created_seconds, before, after, resident_bytes_per_partition };
    if arguments.json {
        return print_json(&report);
    }
    report.before.print("before")?;
    writeln!(io::stdout(), "{partitions} partitions created in {created_seconds:.2} s")?;
    report.after.print("with them")?;
    writeln!(io::stdout(), "{:.4} MiB of memory for each at most", resident_bytes_per_partition / f64::from(1 << 20))?;
    Ok(())
}

fn is_missing(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::UnknownTopicOrPartition)
}

async fn watch(processes: &[u32], time: Duration) -> anyhow::Result<Idle> {
    let cpu = CpuMeter::begin(processes)?;
    TokioEnv::sleep(time).await;
    let cpu_percent_each = cpu.percent_each(time)?;
    let resident = processes.iter().map(|&process| Ok((process, resident_bytes(process)?)));
    Ok(Idle { resident_bytes_each: resident.collect::<anyhow::Result<_>>()?, cpu_percent_each })
}

impl Idle {
    fn print(&self, when: &str) -> io::Result<()> {
        for (process, bytes) in &self.resident_bytes_each {
            let cpu = self.cpu_percent_each.get(process).copied().unwrap_or(0.0);
            writeln!(
                io::stdout(),
                "{when}: broker {process}: {:.1} MiB, {cpu:.1} % of one core",
                *bytes as f64 / f64::from(1 << 20)
            )?;
        }
        Ok(())
    }
}
