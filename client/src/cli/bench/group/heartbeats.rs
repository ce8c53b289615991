//! `lockstep bench group heartbeats`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::future::join_all;
use lockstep_client::{Admin, Client};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use serde::Serialize;
use serde_json::Value;

use super::connections::Connections;
use super::crowd::{Crowd, Setting};
use super::{configure_interval, ensure_partitions, failure_text, group_prefix};
use crate::cli::bench::floor::{Floor, FloorMeter};
use crate::cli::bench::process::{cpu_time, cpu_times};
use crate::cli::bench::{OutputArguments, Quantiles};
use crate::cli::output::print_json;
use crate::cli::parse_duration;

/// How long the brokers are watched before the members come.
const IDLE_TIME: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct BenchHeartbeats {
    /// Members of all groups together
    #[arg(long, default_value_t = 10_000)]
    members: usize,
    /// Groups that they belong to
    #[arg(long, default_value_t = 100)]
    groups: usize,
    /// Connections that they share
    #[arg(long, default_value_t = 200)]
    connections: usize,
    /// Interval of each member's heartbeats
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    heartbeat: Duration,
    /// How long to measure once all have joined
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Partitions of the topic that every group reads
    #[arg(long, default_value_t = 100)]
    partitions: usize,
    /// Process ids of the brokers, on this machine: their processor time is measured
    #[arg(long, value_delimiter = ',')]
    broker_pids: Vec<u32>,
    /// Topic, created if it does not exist; bench-group-<partitions> unless named
    #[arg(long)]
    topic: Option<String>,
    /// Longest wait for the groups to settle
    #[arg(long, default_value = "300s", value_parser = parse_duration)]
    limit: Duration,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Serialize)]
struct Report {
    members: usize,
    groups: usize,
    heartbeat_ms: u64,
    /// From nothing until all groups had settled.
    formed_seconds: f64,
    seconds: f64,
    heartbeats: u64,
    heartbeats_per_second: f64,
    answer: Quantiles,
    /// Of one core, all brokers together, by process too; absent without their ids.
    broker_cpu_percent: Option<f64>,
    broker_cpu_percent_each: BTreeMap<u32, f64>,
    /// The same of all brokers together before there were any members.
    broker_idle_cpu_percent: Option<f64>,
    /// Of one core: what sending them took.
    client_cpu_percent: Option<f64>,
    /// Members that were told they are none although they sent their heartbeats.
    false_expiries: u64,
    failed_heartbeats: u64,
    /// Why a heartbeat failed last, also while the groups formed: a coordinator that moves, for example.
    failure: Option<String>,
    /// Entries that each shard's log grew by, whatever they were.
    entries_per_second: BTreeMap<String, f64>,
    entries_per_second_worst: f64,
    floor: Floor,
}

pub(super) async fn run(client: &Client, arguments: BenchHeartbeats) -> anyhow::Result<()> {
    let BenchHeartbeats { members, groups, connections, .. } = arguments;
    if groups == 0 || members < groups || connections == 0 || arguments.seconds == 0 || arguments.heartbeat.is_zero() {
        bail!("--groups, --connections, --seconds and --heartbeat must be at least 1, --members at least --groups");
    }
    let topic = arguments.topic.clone().unwrap_or_else(|| format!("bench-group-{}", arguments.partitions));
    ensure_partitions(client, &topic, arguments.partitions).await?;
    let meter = FloorMeter::new(client.env(), &arguments.output.floor_dir);
    meter.measure().await?;
    let per_broker = connections / client.brokers().len().max(1);
    let connections = Connections::new(client, per_broker);
    let setting = Setting::new(connections, &topic, arguments.partitions, arguments.heartbeat);
    let prefix = group_prefix("heartbeats");
    let crowds: Vec<Arc<Crowd>> = (0..groups).map(|group| Crowd::new(&setting, format!("{prefix}-{group}"))).collect();
    let measured = measure(client, &arguments, &setting, &crowds).await;
    join_all(crowds.iter().map(|crowd| crowd.disband())).await;
    let measured = measured?;
    meter.measure().await?;
    let report = measured.into_report(&arguments, &setting, meter.floor());
    if arguments.output.json {
        return print_json(&report);
    }
    report.print()?;
    Ok(())
}

impl Report {
    fn print(&self) -> io::Result<()> {
        writeln!(
            io::stdout(),
            "{} members in {} groups, heartbeats each {} ms: formed in {:.1} s",
            self.members,
            self.groups,
            self.heartbeat_ms,
            self.formed_seconds
        )?;
        writeln!(
            io::stdout(),
            "{} heartbeats in {:.1} s: {:.0} heartbeats/s",
            self.heartbeats,
            self.seconds,
            self.heartbeats_per_second
        )?;
        self.answer.print("heartbeat to answer")?;
        match self.broker_cpu_percent {
            Some(percent) => {
                let each: Vec<String> = self
                    .broker_cpu_percent_each
                    .iter()
                    .map(|(process, percent)| format!("{process}: {percent:.1} %"))
                    .collect();
                let idle = self.broker_idle_cpu_percent.unwrap_or_default();
                writeln!(
                    io::stdout(),
                    "brokers: {percent:.1} % of one core ({}), {idle:.1} % without members",
                    each.join(", ")
                )?;
            }
            None => writeln!(io::stdout(), "brokers: processor time not measured (--broker-pids)")?,
        }
        if let Some(percent) = self.client_cpu_percent {
            writeln!(io::stdout(), "this process: {percent:.1} % of one core")?;
        }
        writeln!(
            io::stdout(),
            "false expiries {}, failed heartbeats {}{}",
            self.false_expiries,
            self.failed_heartbeats,
            failure_text(self.failure.as_deref())
        )?;
        let shards: Vec<String> =
            self.entries_per_second.iter().map(|(shard, rate)| format!("{shard}: {rate:.2}")).collect();
        writeln!(
            io::stdout(),
            "log entries per second by shard: {}; worst {:.2}",
            shards.join(", "),
            self.entries_per_second_worst
        )?;
        self.floor.print()
    }
}

/// What was measured while all groups were stable.
struct Measured {
    formed: Duration,
    took: Duration,
    /// What all brokers together spent in [`IDLE_TIME`] before.
    idle: Duration,
    brokers: BTreeMap<u32, Duration>,
    own: Option<Duration>,
    entries: BTreeMap<String, u64>,
    fenced: u64,
    failed: u64,
}

async fn measure(
    client: &Client,
    arguments: &BenchHeartbeats,
    setting: &Arc<Setting>,
    crowds: &[Arc<Crowd>],
) -> anyhow::Result<Measured> {
    for crowd in crowds {
        configure_interval(&setting.connections, crowd.group_id(), arguments.heartbeat).await?;
    }
    let idle = idle_cpu_time(&arguments.broker_pids).await?;
    let began_at = TokioEnv::now();
    for member in 0..arguments.members {
        crowds[member % crowds.len()].join();
    }
    let deadline = began_at + arguments.limit;
    for crowd in crowds {
        crowd.settled(0, deadline).await?;
    }
    let formed = TokioEnv::now() - began_at;
    // What forming leaves behind, such as the first full round of heartbeats, is not what is measured.
    TokioEnv::sleep(arguments.heartbeat).await;

    let tally = &setting.tally;
    let (fenced, failed) = (tally.fenced.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
    let applied_before = applied(client).await?;
    let brokers_before = cpu_times(&arguments.broker_pids)?;
    let own_before = cpu_time(std::process::id()).ok();
    tally.is_counting.store(true, Ordering::Relaxed);
    let began_at = TokioEnv::now();
    TokioEnv::sleep(Duration::from_secs(arguments.seconds)).await;
    tally.is_counting.store(false, Ordering::Relaxed);
    let took = TokioEnv::now() - began_at;
    let brokers = cpu_times(&arguments.broker_pids)?;
    let own = cpu_time(std::process::id()).ok();
    let applied_after = applied(client).await?;
    let grown = |(shard, after): (String, u64)| {
        let before = applied_before.get(&shard).copied().unwrap_or(after);
        (shard, after.saturating_sub(before))
    };
    Ok(Measured {
        formed,
        took,
        idle,
        brokers: brokers
            .into_iter()
            .map(|(process, after)| (process, after.saturating_sub(brokers_before[&process])))
            .collect(),
        own: own.zip(own_before).map(|(after, before)| after.saturating_sub(before)),
        entries: applied_after.into_iter().map(grown).collect(),
        fenced: tally.fenced.load(Ordering::Relaxed) - fenced,
        failed: tally.failed.load(Ordering::Relaxed) - failed,
    })
}

impl Measured {
    fn into_report(self, arguments: &BenchHeartbeats, setting: &Setting, floor: Floor) -> Report {
        let seconds = self.took.as_secs_f64();
        let percent = |spent: Duration| spent.as_secs_f64() / seconds * 100.0;
        let heartbeats = setting.tally.latencies.count();
        let idle_percent = self.idle.as_secs_f64() / IDLE_TIME.as_secs_f64() * 100.0;
        let all: Duration = self.brokers.values().sum();
        let entries_per_second: BTreeMap<String, f64> =
            self.entries.into_iter().map(|(shard, entries)| (shard, entries as f64 / seconds)).collect();
        Report {
            members: arguments.members,
            groups: arguments.groups,
            heartbeat_ms: u64::try_from(arguments.heartbeat.as_millis()).unwrap_or(u64::MAX),
            formed_seconds: self.formed.as_secs_f64(),
            seconds,
            heartbeats,
            heartbeats_per_second: heartbeats as f64 / seconds,
            answer: Quantiles::of(&setting.tally.latencies),
            broker_idle_cpu_percent: (!self.brokers.is_empty()).then_some(idle_percent),
            broker_cpu_percent: (!self.brokers.is_empty()).then(|| percent(all)),
            broker_cpu_percent_each: self.brokers.into_iter().map(|(id, spent)| (id, percent(spent))).collect(),
            client_cpu_percent: self.own.map(percent),
            false_expiries: self.fenced,
            failed_heartbeats: self.failed,
            failure: setting.tally.last_failure(),
            entries_per_second_worst: entries_per_second.values().copied().fold(0.0, f64::max),
            entries_per_second,
            floor,
        }
    }
}

/// What the processes spend, all together, while nothing is asked of them; at once when there are none.
async fn idle_cpu_time(processes: &[u32]) -> anyhow::Result<Duration> {
    if processes.is_empty() {
        return Ok(Duration::ZERO);
    }
    let before: Duration = cpu_times(processes)?.values().sum();
    TokioEnv::sleep(IDLE_TIME).await;
    let after: Duration = cpu_times(processes)?.values().sum();
    Ok(after.saturating_sub(before))
}

/// The highest index that any node has applied, by shard.
async fn applied(client: &Client) -> anyhow::Result<BTreeMap<String, u64>> {
    let status = Admin::new(client).cluster_status().await?;
    let status: Value = serde_json::from_slice(&status).context("the status is not JSON")?;
    let shards = status["shards"].as_array().context("the status names no shards")?;
    let highest = |shard: &Value| {
        let nodes = shard["applied"].as_object()?;
        Some((shard["id"].to_string(), nodes.values().filter_map(Value::as_u64).max()?))
    };
    Ok(shards.iter().filter_map(highest).collect())
}
