//! `lockstep bench cluster`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use lockstep_client::{Admin, Client, ClientError, ErrorCode, NewTopic, Producer, ProducerConfig, ProducerRecord};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use serde::Serialize;

use super::floor::{Floor, FloorMeter};
use super::process::{CpuMeter, resident_bytes};
use super::{BrokerArguments, OutputArguments, Quantiles, filler};
use crate::cli::latency::Latencies;
use crate::cli::output::print_json;
use crate::cli::parse_duration;

/// Partitions of the topic that single records are sent to, in turn, and bytes of such a record.
const PROBED_PARTITIONS: i32 = 12;
const PROBE_LEN: usize = 1_024;
/// How long single records are sent at most.
const PROBE_TIME: Duration = Duration::from_secs(10);

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
    /// Records that are sent one at a time, before there are the partitions and beside them
    #[arg(long, default_value_t = 1_000)]
    single_records: u64,
    /// How long creating the partitions may take
    #[arg(long, default_value = "300s", value_parser = parse_duration)]
    limit: Duration,
    #[command(flatten)]
    brokers: BrokerArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// What brokers are while nothing is asked of them.
#[derive(Serialize)]
struct Idle {
    resident_bytes_each: BTreeMap<u32, u64>,
    /// Of one core.
    cpu_percent_each: BTreeMap<u32, f64>,
}

/// Records sent one at a time, to a topic of their own.
#[derive(Serialize)]
struct SingleRecords {
    records: u64,
    records_per_second: f64,
    megabytes_per_second: f64,
    acknowledgement: Quantiles,
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
    single_records_before: SingleRecords,
    single_records_after: SingleRecords,
    floor: Floor,
}

pub(super) async fn run(client: &Client, arguments: BenchCluster) -> anyhow::Result<()> {
    let BenchCluster { partitions, partitions_per_topic, seconds, single_records, .. } = arguments;
    if [partitions, partitions_per_topic].contains(&0) || seconds == 0 || single_records == 0 {
        bail!("--partitions, --partitions-per-topic, --seconds and --single-records must be at least 1");
    }
    if arguments.brokers.broker_pids.is_empty() {
        bail!("--broker-pids must be given");
    }
    let prefix = format!("bench-cluster-{:08x}", TokioEnv::random_u64() as u32);
    let probed = NewTopic::new(format!("{prefix}-probed"), PROBED_PARTITIONS);
    let topics: Vec<NewTopic> = (0..partitions.div_ceil(partitions_per_topic))
        .map(|number| {
            let count = partitions_per_topic.min(partitions - number * partitions_per_topic);
            Ok(NewTopic::new(format!("{prefix}-{number}"), i32::try_from(count)?))
        })
        .collect::<anyhow::Result<_>>()?;
    let measured = measure(client, &arguments, &probed, &topics).await;
    let mut deleted = Ok(());
    for topic in topics.iter().chain([&probed]) {
        if let Err(error) = Admin::new(client).delete_topic(&topic.name).await
            && !is_missing(&error)
        {
            deleted = deleted.and(Err(error));
        }
    }
    // Why there is nothing to report says more than that topics are left over, which has the same cause, perhaps.
    let report = measured?;
    deleted?;
    if arguments.output.json {
        return print_json(&report);
    }
    report.print()?;
    Ok(())
}

async fn measure(
    client: &Client,
    arguments: &BenchCluster,
    probed: &NewTopic,
    topics: &[NewTopic],
) -> anyhow::Result<Report> {
    let (admin, processes) = (Admin::new(client), &arguments.brokers.broker_pids);
    let watched = Duration::from_secs(arguments.seconds);
    let meter = FloorMeter::new(client.env(), &arguments.output.floor_dir);
    meter.measure().await?;
    admin.create_topic(probed).await?;
    // First, so that what their records take of the memory is there before and after.
    let single_records_before = send_single_records(client, &probed.name, arguments.single_records).await?;
    TokioEnv::sleep(watched).await;
    let before = watch(processes, watched).await?;
    let began_at = TokioEnv::now();
    let creating = async {
        for topic in topics {
            admin.create_topic(topic).await?;
        }
        anyhow::Ok(())
    };
    match timeout::<TokioEnv, _>(arguments.limit, creating).await {
        Ok(created) => created?,
        Err(_) => bail!("creating the partitions takes longer than {} s (--limit)", arguments.limit.as_secs()),
    }
    let created_seconds = (TokioEnv::now() - began_at).as_secs_f64();
    // The first moments belong to the creation.
    TokioEnv::sleep(watched).await;
    let after = watch(processes, watched).await?;
    let single_records_after = send_single_records(client, &probed.name, arguments.single_records).await?;
    meter.measure().await?;
    let grown = |process| {
        let of = |idle: &Idle| idle.resident_bytes_each.get(process).copied().unwrap_or(0);
        of(&after).saturating_sub(of(&before))
    };
    let grown_most = processes.iter().map(grown).max().unwrap_or(0);
    Ok(Report {
        partitions: arguments.partitions,
        created_seconds,
        resident_bytes_per_partition: grown_most as f64 / f64::from(arguments.partitions),
        before,
        after,
        single_records_before,
        single_records_after,
        floor: meter.floor(),
    })
}

/// Sends them, unless time is over before.
async fn send_single_records(client: &Client, topic: &str, count: u64) -> anyhow::Result<SingleRecords> {
    let config = ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::default() };
    let (producer, latencies) = (Producer::new(client, config)?, Latencies::new());
    let value = filler(TokioEnv::random_u64(), PROBE_LEN);
    let send = async |partition: i32| {
        let record = ProducerRecord::new(topic, value.clone()).with_partition(partition);
        producer.send(&record).await?.await
    };
    for partition in 0..PROBED_PARTITIONS {
        // The first ones open connections.
        send(partition).await?;
    }
    let began_at = TokioEnv::now();
    for partition in (0..PROBED_PARTITIONS).cycle() {
        let sent_at = TokioEnv::now();
        if latencies.count() == count || sent_at - began_at >= PROBE_TIME {
            break;
        }
        send(partition).await?;
        latencies.add(TokioEnv::now() - sent_at);
    }
    let records_per_second = latencies.count() as f64 / (TokioEnv::now() - began_at).as_secs_f64();
    Ok(SingleRecords {
        records: latencies.count(),
        records_per_second,
        megabytes_per_second: records_per_second * PROBE_LEN as f64 / 1e6,
        acknowledgement: Quantiles::of(&latencies),
    })
}

impl Report {
    fn print(&self) -> io::Result<()> {
        self.before.print("before")?;
        writeln!(io::stdout(), "{} partitions created in {:.2} s", self.partitions, self.created_seconds)?;
        self.after.print("with them")?;
        let mebibytes = self.resident_bytes_per_partition / f64::from(1 << 20);
        writeln!(io::stdout(), "{mebibytes:.4} MiB of memory for each at most")?;
        self.single_records_before.print("before")?;
        self.single_records_after.print("with them")?;
        self.floor.print()
    }
}

impl SingleRecords {
    fn print(&self, when: &str) -> io::Result<()> {
        let SingleRecords { records, records_per_second, megabytes_per_second, acknowledgement } = self;
        writeln!(
            io::stdout(),
            "{when}: {records} records, one at a time: {records_per_second:.0} records/s, {megabytes_per_second:.2} MB/s"
        )?;
        acknowledgement.print("acknowledgement")
    }
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
