//! `lockstep bench consume`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use lockstep_client::{
    Client, Consumer, FetchConfig, OffsetAt, Producer, ProducerConfig, ProducerRecord, StartAt, TopicPartition,
};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use serde::Serialize;

use super::floor::{Floor, FloorMeter, LoopbackMeter};
use super::process::CpuMeter;
use super::{BrokerArguments, OutputArguments, Quantiles, ensure_topic, filler, print_broker_cpu};
use crate::cli::latency::Latencies;
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
    /// How long to read at most; filling the topic may take as long again
    #[arg(long, default_value_t = 60)]
    seconds: u64,
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
    /// Those that came to the end of the topic.
    rounds: u32,
    /// What there was enough of: `rounds` or `seconds`.
    ended_by: &'static str,
    seconds: f64,
    records_per_second: f64,
    /// Keys and values, without what goes along with them.
    megabytes_per_second: f64,
    /// Of the best round: what others do on the machine shows least in it.
    best_megabytes_per_second: f64,
    /// Polls that found no messages and waited for an answer to bring some; the others found what was fetched meanwhile, and take no time.
    waits: u64,
    wait: Quantiles,
    broker_cpu_percent_each: BTreeMap<u32, f64>,
    floor: Floor,
    loopback_megabytes_per_second: f64,
    /// Of what one loopback connection carries.
    share_of_loopback: f64,
}

/// What was read.
#[derive(Default)]
struct Tally {
    records: u64,
    bytes: u64,
    rounds: u32,
    best_bytes_per_second: f64,
}

pub(super) async fn run(client: &Client, arguments: BenchConsume) -> anyhow::Result<()> {
    if arguments.partitions < 1 || arguments.records == 0 || arguments.rounds == 0 || arguments.seconds == 0 {
        bail!("--partitions, --records, --rounds and --seconds must be at least 1");
    }
    let time = Duration::from_secs(arguments.seconds);
    ensure_topic(client, &arguments.topic, arguments.partitions).await?;
    match timeout::<TokioEnv, _>(time, fill(client, &arguments)).await {
        Ok(filled) => filled?,
        Err(_) => bail!("filling the topic takes longer than {} s (--seconds)", arguments.seconds),
    }
    let ends = ends(client, &arguments.topic).await?;
    let meter = FloorMeter::new(client.env(), &arguments.output.floor_dir);
    let mut loopback = LoopbackMeter::new(client.env());
    meter.measure().await?;
    loopback.measure().await?;
    let (mut tally, waits) = (Tally::default(), Latencies::new());
    let cpu = CpuMeter::begin(&arguments.brokers.broker_pids)?;
    let began_at = TokioEnv::now();
    let deadline = began_at + time;
    while tally.rounds < arguments.rounds && TokioEnv::now() < deadline {
        read(client, &arguments, &ends, deadline, &waits, &mut tally).await?;
    }
    let took = TokioEnv::now() - began_at;
    let broker_cpu_percent_each = cpu.percent_each(took)?;
    meter.measure().await?;
    loopback.measure().await?;
    let seconds = took.as_secs_f64();
    let bytes_per_second = tally.bytes as f64 / seconds;
    let report = Report {
        records: tally.records,
        rounds: tally.rounds,
        ended_by: if tally.rounds == arguments.rounds { "rounds" } else { "seconds" },
        seconds,
        records_per_second: tally.records as f64 / seconds,
        megabytes_per_second: bytes_per_second / 1e6,
        // Without a whole round there is none to be the best.
        best_megabytes_per_second: tally.best_bytes_per_second.max(bytes_per_second) / 1e6,
        waits: waits.count(),
        wait: Quantiles::of(&waits),
        broker_cpu_percent_each,
        floor: meter.floor(),
        loopback_megabytes_per_second: loopback.bytes_per_second() / 1e6,
        share_of_loopback: bytes_per_second / loopback.bytes_per_second(),
    };
    if arguments.output.json {
        return print_json(&report);
    }
    report.print(arguments.rounds)?;
    Ok(())
}

impl Report {
    fn print(&self, rounds_wanted: u32) -> io::Result<()> {
        writeln!(
            io::stdout(),
            "{} records in {:.2} s: {:.0} records/s, {:.1} MB/s, {:.1} MB/s in the best of {} rounds",
            self.records,
            self.seconds,
            self.records_per_second,
            self.megabytes_per_second,
            self.best_megabytes_per_second,
            self.rounds
        )?;
        if self.rounds < rounds_wanted {
            writeln!(io::stdout(), "ended by --seconds, before all {rounds_wanted} rounds were read")?;
        }
        self.wait.print("wait for an answer")?;
        print_broker_cpu(&self.broker_cpu_percent_each)?;
        self.floor.print()?;
        LoopbackMeter::print(self.loopback_megabytes_per_second * 1e6, Some(self.share_of_loopback))
    }
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
    // A topic that was there before has as many as it was made with.
    let partitions: Vec<i32> =
        client.topic(&arguments.topic, false).await?.partitions.iter().map(|info| info.index).collect();
    let producer = Producer::new(client, ProducerConfig::default())?;
    for (_, partition) in (0..missing).zip(partitions.into_iter().cycle()) {
        let value = filler(TokioEnv::random_u64(), arguments.record_size);
        let record = ProducerRecord::new(arguments.topic.clone(), value).with_partition(partition);
        // Flushing tells whether all of them arrived.
        drop(producer.send(&record).await?);
    }
    producer.flush().await.context("filling the topic")
}

/// Reads everything once, or as much as there is time for.
async fn read(
    client: &Client,
    arguments: &BenchConsume,
    ends: &BTreeMap<TopicPartition, i64>,
    deadline: Instant,
    waits: &Latencies,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let consumer = Consumer::new(client, FetchConfig::default());
    let began_at = TokioEnv::now();
    consumer.assign_topic(&arguments.topic, StartAt::Place(OffsetAt::Earliest)).await?;
    let mut left: BTreeMap<i32, i64> =
        ends.iter().filter(|(_, end)| **end > 0).map(|(at, end)| (at.partition, *end)).collect();
    let mut bytes = 0;
    while !left.is_empty() {
        let mut messages = consumer.poll(TAKEN_AT_ONCE, Duration::ZERO).await?;
        if messages.is_empty() {
            let waits_since = TokioEnv::now();
            let patience = arguments.limit.min(deadline.saturating_duration_since(waits_since));
            messages = consumer.poll(TAKEN_AT_ONCE, patience).await?;
            if !messages.is_empty() {
                waits.add(TokioEnv::now() - waits_since);
            }
        }
        // All of them are of one partition.
        let Some(last) = messages.last() else {
            if TokioEnv::now() >= deadline {
                return Ok(());
            }
            bail!(
                "no message within {} s, {} partitions are not read to their end",
                arguments.limit.as_secs(),
                left.len()
            );
        };
        if left.get(&last.partition).is_some_and(|end| last.offset + 1 >= *end) {
            left.remove(&last.partition);
        }
        let len = |message: &lockstep_client::Message| {
            message.key.as_ref().map_or(0, bytes::Bytes::len) + message.value.as_ref().map_or(0, bytes::Bytes::len)
        };
        let polled_bytes = messages.iter().map(len).sum::<usize>() as u64;
        bytes += polled_bytes;
        tally.bytes += polled_bytes;
        tally.records += messages.len() as u64;
        if TokioEnv::now() >= deadline && !left.is_empty() {
            return Ok(());
        }
    }
    tally.rounds += 1;
    let bytes_per_second = bytes as f64 / (TokioEnv::now() - began_at).as_secs_f64();
    tally.best_bytes_per_second = tally.best_bytes_per_second.max(bytes_per_second);
    Ok(())
}
