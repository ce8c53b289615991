//! `lockstep bench consume`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use lockstep_client::{
    Client, Consumer, FetchConfig, OffsetAt, Producer, ProducerConfig, ProducerRecord, StartAt, TopicPartition,
};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use serde::Serialize;

use super::process::CpuMeter;
use super::{BrokerArguments, OutputArguments, ensure_topic, filler, print_broker_cpu};
use crate::cli::output::print_json;
use crate::cli::parse_duration;

/// Messages taken from the consumer at a time.
const TAKEN_AT_ONCE: usize = 10_000;

#[derive(Debug, Args)]
pub(crate) struct BenchConsume {
    /// Topic to read; created if it does not exist
    #[arg(long, default_value = "bench-consume")]
    topic: String,
    /// Partitions of the topic, if it is created
    #[arg(long, default_value_t = 8)]
    partitions: i32,
    /// Records that the topic is filled up to before anything is measured
    #[arg(long, default_value_t = 40_000)]
    records: u64,
    /// Bytes of such a record's value
    #[arg(long, default_value_t = 1_024)]
    record_size: usize,
    /// How often the topic is read from its beginning to its end
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Longest wait for the next message
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    limit: Duration,
    #[command(flatten)]
    brokers: BrokerArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Serialize)]
struct Report {
    /// Of all rounds together.
    records: u64,
    rounds: u32,
    seconds: f64,
    records_per_second: f64,
    /// Keys and values, without what goes along with them.
    megabytes_per_second: f64,
    /// Of the best round: what others do on the machine shows least in it.
    best_megabytes_per_second: f64,
    broker_cpu_percent_each: BTreeMap<u32, f64>,
}

pub(super) async fn run(client: &Client, arguments: BenchConsume) -> anyhow::Result<()> {
    if arguments.partitions < 1 || arguments.records == 0 || arguments.rounds == 0 {
        bail!("--partitions, --records and --rounds must be at least 1");
    }
    ensure_topic(client, &arguments.topic, arguments.partitions).await?;
    fill(client, &arguments).await?;
    let ends = ends(client, &arguments.topic).await?;
    let cpu = CpuMeter::begin(&arguments.brokers.broker_pids)?;
    let (mut records, mut bytes, mut best) = (0, 0, 0.0_f64);
    let began_at = TokioEnv::now();
    for _ in 0..arguments.rounds {
        let round_began_at = TokioEnv::now();
        let (round_records, round_bytes) = read(client, &arguments, &ends).await?;
        records += round_records;
        bytes += round_bytes;
        best = best.max(round_bytes as f64 / (TokioEnv::now() - round_began_at).as_secs_f64());
    }
    let took = TokioEnv::now() - began_at;
    let report = Report {
        records,
        rounds: arguments.rounds,
        seconds: took.as_secs_f64(),
        records_per_second: records as f64 / took.as_secs_f64(),
        megabytes_per_second: bytes as f64 / took.as_secs_f64() / 1e6,
        best_megabytes_per_second: best / 1e6,
        broker_cpu_percent_each: cpu.percent_each(took)?,
    };
    if arguments.output.json {
        return print_json(&report);
    }
    writeln!(
        io::stdout(),
        "{records} records in {:.2} s: {:.0} records/s, {:.1} MB/s, {:.1} MB/s in the best of {} rounds",
        report.seconds,
        report.records_per_second,
        report.megabytes_per_second,
        report.best_megabytes_per_second,
        report.rounds
    )?;
    print_broker_cpu(&report.broker_cpu_percent_each)?;
    Ok(())
}

/// Where every partition ends now.
async fn ends(client: &Client, topic: &str) -> anyhow::Result<BTreeMap<TopicPartition, i64>> {
    let info = client.topic(topic, false).await?;
    let places = info.partitions.iter().map(|info| (TopicPartition::new(topic, info.index), OffsetAt::Latest));
    Ok(client.offsets(&places.collect()).await?)
}

/// Adds what the topic lacks.
async fn fill(client: &Client, arguments: &BenchConsume) -> anyhow::Result<()> {
    let there: i64 = ends(client, &arguments.topic).await?.values().sum();
    let missing = arguments.records.saturating_sub(u64::try_from(there).unwrap_or(0));
    let producer = Producer::new(client, ProducerConfig::default())?;
    for number in 0..missing {
        let value = filler(TokioEnv::random_u64(), arguments.record_size);
        let partition = (number % arguments.partitions as u64) as i32;
        let record = ProducerRecord::new(arguments.topic.clone(), value).with_partition(partition);
        // Flushing tells whether all of them arrived.
        drop(producer.send(&record).await?);
    }
    producer.flush().await.context("filling the topic")
}

/// Reads everything once: how many messages there were, and their bytes.
async fn read(
    client: &Client,
    arguments: &BenchConsume,
    ends: &BTreeMap<TopicPartition, i64>,
) -> anyhow::Result<(u64, u64)> {
    let consumer = Consumer::new(client, FetchConfig::default());
    consumer.assign_topic(&arguments.topic, StartAt::Place(OffsetAt::Earliest)).await?;
    let mut left: BTreeMap<i32, i64> =
        ends.iter().filter(|(_, end)| **end > 0).map(|(at, end)| (at.partition, *end)).collect();
    let (mut records, mut bytes) = (0, 0);
    while !left.is_empty() {
        let messages = consumer.poll(TAKEN_AT_ONCE, arguments.limit).await?;
        // All of them are of one partition.
        let Some(last) = messages.last() else {
            bail!(
                "no message within {} s, {} partitions are not read to their end",
                arguments.limit.as_secs(),
                left.len()
            );
        };
        if left.get(&last.partition).is_some_and(|end| last.offset + 1 >= *end) {
            left.remove(&last.partition);
        }
        records += messages.len() as u64;
        let len = |message: &lockstep_client::Message| {
            message.key.as_ref().map_or(0, bytes::Bytes::len) + message.value.as_ref().map_or(0, bytes::Bytes::len)
        };
        bytes += messages.iter().map(len).sum::<usize>() as u64;
    }
    Ok((records, bytes))
}
