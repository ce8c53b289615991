//! `lockstep bench produce`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use lockstep_client::{Client, ClientError, Compression, Producer, ProducerConfig, ProducerRecord};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use serde::Serialize;

use super::floor::{Floor, FloorMeter, ThroughputFloor, ThroughputMeter};
use super::process::CpuMeter;
use super::{BrokerArguments, OutputArguments, Quantiles, ensure_topic, filler, print_broker_cpu};
use crate::cli::latency::Latencies;
use crate::cli::output::print_json;
use crate::cli::parse_duration;
use crate::cli::produce::CompressionArgument;

#[derive(Debug, Args)]
pub(crate) struct BenchProduce {
    /// Topic to send to; created if it does not exist
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Partitions of the topic, if it is created
    #[arg(long, default_value_t = 8)]
    partitions: i32,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1_024)]
    record_size: usize,
    /// Records that wait for their acknowledgement at any time, of all producers together
    #[arg(long, default_value_t = 1_000)]
    in_flight: usize,
    /// Producers, each with connections and a producer id of its own
    #[arg(long, default_value_t = 1)]
    producers: usize,
    /// Bytes of a batch, before compression; 1 puts each record into a batch of its own
    #[arg(long, default_value_t = ProducerConfig::default().batch_len_max)]
    batch_size: usize,
    /// How long to send at most [default: 10, and 600 with --count]
    #[arg(long)]
    seconds: Option<u64>,
    /// Send no more records than these
    #[arg(long)]
    count: Option<u64>,
    /// How long a batch waits for more records while the broker is not busy
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    linger: Duration,
    /// How batches are compressed
    #[arg(long, value_enum, default_value = "none")]
    compression: CompressionArgument,
    /// Measure what disk and network could carry, too, and print which part of it came: some seconds more, 192 MiB of disk meanwhile [default: true
    /// where it is throughput that is measured: with 100 records or more in flight, for 5 seconds or longer, and 50,000 records or more]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    throughput_floor: Option<bool>,
    #[command(flatten)]
    brokers: BrokerArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// From these on a run is one of throughput, and long enough to measure its floor as well.
const THROUGHPUT_IN_FLIGHT: usize = 100;
const THROUGHPUT_SECONDS: u64 = 5;
const THROUGHPUT_RECORDS: u64 = 50_000;

impl BenchProduce {
    fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.count.is_some() { 600 } else { 10 })
    }

    fn measures_throughput(&self) -> bool {
        self.throughput_floor.unwrap_or_else(|| {
            self.in_flight >= THROUGHPUT_IN_FLIGHT
                && self.seconds() >= THROUGHPUT_SECONDS
                && self.count.is_none_or(|count| count >= THROUGHPUT_RECORDS)
        })
    }
}

#[derive(Serialize)]
struct Report {
    records: u64,
    /// What there was enough of: `records` or `seconds`.
    ended_by: &'static str,
    record_size: usize,
    in_flight: usize,
    producers: usize,
    seconds: f64,
    records_per_second: f64,
    megabytes_per_second: f64,
    acknowledgement: Quantiles,
    /// Of one core, by process; empty without their ids.
    broker_cpu_percent_each: BTreeMap<u32, f64>,
    floor: Floor,
    /// `null` where it was not measured.
    throughput_floor: Option<ThroughputFloor>,
    /// Bytes of records, of those that the disk could take.
    share_of_replicated: Option<f64>,
}

pub(super) async fn run(client: &Client, arguments: BenchProduce) -> anyhow::Result<()> {
    if arguments.partitions < 1 || arguments.producers == 0 || arguments.in_flight < arguments.producers {
        bail!("--partitions and --producers must be at least 1, and --in-flight at least --producers");
    }
    ensure_topic(client, &arguments.topic, arguments.partitions).await?;
    let meter = FloorMeter::new(client.env(), &arguments.output.floor_dir);
    let mut throughput =
        arguments.measures_throughput().then(|| ThroughputMeter::new(client.env(), &arguments.output.floor_dir));
    meter.measure().await?;
    if let Some(throughput) = &mut throughput {
        throughput.measure().await?;
    }
    let config = ProducerConfig {
        linger: arguments.linger,
        compression: Compression::from(arguments.compression),
        batch_len_max: arguments.batch_size,
        ..ProducerConfig::default()
    };
    let producers = open_producers(client, &arguments, &config).await?;
    let latencies = Arc::new(Latencies::new());
    let cpu = CpuMeter::begin(&arguments.brokers.broker_pids)?;
    let began_at = TokioEnv::now();
    measure(&arguments, &producers, &latencies).await?;
    let took = TokioEnv::now() - began_at;
    let broker_cpu_percent_each = cpu.percent_each(took)?;
    let seconds = took.as_secs_f64();
    meter.measure().await?;
    if let Some(throughput) = &mut throughput {
        throughput.measure().await?;
    }
    let records = latencies.count();
    let records_per_second = records as f64 / seconds;
    let bytes_per_second = records_per_second * arguments.record_size as f64;
    let throughput_floor = throughput.map(|throughput| throughput.floor());
    let report = Report {
        records,
        ended_by: if arguments.count == Some(records) { "records" } else { "seconds" },
        record_size: arguments.record_size,
        in_flight: arguments.in_flight,
        producers: arguments.producers,
        seconds,
        records_per_second,
        megabytes_per_second: bytes_per_second / 1e6,
        acknowledgement: Quantiles::of(&latencies),
        broker_cpu_percent_each,
        floor: meter.floor(),
        share_of_replicated: throughput_floor.as_ref().map(|floor| floor.share_of_replicated(bytes_per_second)),
        throughput_floor,
    };
    if arguments.output.json {
        return print_json(&report);
    }
    writeln!(
        io::stdout(),
        "{records} records of {} bytes in {seconds:.2} s: {records_per_second:.0} records/s, {:.1} MB/s",
        arguments.record_size,
        report.megabytes_per_second
    )?;
    if let Some(count) = arguments.count.filter(|&count| count != records) {
        writeln!(io::stdout(), "ended after {} seconds, before all {count} records were sent", arguments.seconds())?;
    }
    report.acknowledgement.print("acknowledgement")?;
    print_broker_cpu(&report.broker_cpu_percent_each)?;
    report.floor.print()?;
    if let Some(floor) = &report.throughput_floor {
        floor.print(report.share_of_replicated)?;
    }
    Ok(())
}

/// Each with a client, and so with connections, of its own.
async fn open_producers(
    client: &Client,
    arguments: &BenchProduce,
    config: &ProducerConfig,
) -> Result<Vec<Arc<Producer>>, ClientError> {
    let mut producers = vec![Arc::new(Producer::new(client, config.clone())?)];
    while producers.len() < arguments.producers {
        let client = Client::connect(client.env().clone(), client.config().clone()).await?;
        producers.push(Arc::new(Producer::new(&client, config.clone())?));
    }
    Ok(producers)
}

/// As many tasks as records may be in flight, each sending one after another; they are spread over the producers.
async fn measure(
    arguments: &BenchProduce,
    producers: &[Arc<Producer>],
    latencies: &Arc<Latencies>,
) -> Result<(), ClientError> {
    let left = Arc::new(AtomicI64::new(match arguments.count {
        Some(count) => i64::try_from(count).unwrap_or(i64::MAX),
        None => i64::MAX,
    }));
    let deadline = TokioEnv::now() + Duration::from_secs(arguments.seconds());
    let failed = Arc::new(AtomicBool::new(false));
    // Not all zeros: a compressing disk or codec would make too much of them.
    let seed = Arc::new(AtomicU64::new(TokioEnv::random_u64()));
    let tasks: Vec<_> = (0..arguments.in_flight)
        .map(|number| {
            let producer = &producers[number % producers.len()];
            let (producer, latencies) = (Arc::clone(producer), Arc::clone(latencies));
            let (left, failed, seed) = (Arc::clone(&left), Arc::clone(&failed), Arc::clone(&seed));
            let (topic, record_size) = (arguments.topic.clone(), arguments.record_size);
            TokioEnv::spawn(async move {
                let mut record = ProducerRecord::new(topic, filler(seed.fetch_add(1, Ordering::Relaxed), record_size));
                while !failed.load(Ordering::Relaxed)
                    && TokioEnv::now() < deadline
                    && left.fetch_sub(1, Ordering::Relaxed) > 0
                {
                    record.timestamp = None;
                    let sent_at = TokioEnv::now();
                    let result = match producer.send(&record).await {
                        Ok(delivery) => delivery.await,
                        Err(error) => Err(error),
                    };
                    match result {
                        Ok(_) => latencies.add(TokioEnv::now() - sent_at),
                        Err(error) => {
                            failed.store(true, Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                }
                Ok(())
            })
        })
        .collect();
    let mut first_error = None;
    for task in tasks {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => first_error = first_error.or(Some(error)),
            Err(error) => first_error = first_error.or(Some(ClientError::InvalidArgument(error.to_string()))),
        }
    }
    first_error.map_or(Ok(()), Err)
}
