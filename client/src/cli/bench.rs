//! `lockstep bench`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use lockstep_client::{
    Admin, Client, ClientError, Compression, ErrorCode, NewTopic, Producer, ProducerConfig, ProducerRecord,
};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Disk, DiskFile, Env, Listener, OpenMode};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::latency::Latencies;
use super::output::print_json;
use super::produce::CompressionArgument;

/// Bytes of the floor's writes.
const FLOOR_LEN: usize = 1_024;
const FLOOR_FILE_LEN: u64 = 4 << 20;
const FLOOR_WRITES: u64 = 400;
const FLOOR_ROUND_TRIPS: u64 = 2_000;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Sends records as fast as they are acknowledged, and measures how long each takes
    Produce(BenchProduce),
}

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
    /// Records that wait for their acknowledgement at any time
    #[arg(long, default_value_t = 1_000)]
    in_flight: usize,
    /// How long to send
    #[arg(long, default_value_t = 10, conflicts_with = "count")]
    seconds: u64,
    /// Send so many records, however long it takes
    #[arg(long)]
    count: Option<u64>,
    /// How long a batch waits for more records while the broker is not busy
    #[arg(long, default_value = "0ms", value_parser = super::parse_duration)]
    linger: Duration,
    /// How batches are compressed
    #[arg(long, value_enum, default_value = "none")]
    compression: CompressionArgument,
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
}

#[derive(Serialize)]
struct Report {
    records: u64,
    record_size: usize,
    in_flight: usize,
    seconds: f64,
    records_per_second: f64,
    megabytes_per_second: f64,
    acknowledgement: Quantiles,
    floor: Floor,
}

/// What disk and network take by themselves here: no majority can acknowledge sooner.
#[derive(Serialize)]
struct Floor {
    /// 1 KiB written into preallocated space, and fdatasync.
    disk: Quantiles,
    /// 1 KiB there and back over loopback TCP.
    round_trip: Quantiles,
}

pub(crate) async fn run(client: &Client, command: BenchCommand) -> anyhow::Result<()> {
    let BenchCommand::Produce(arguments) = command;
    if arguments.in_flight == 0 || arguments.partitions < 1 {
        bail!("--in-flight and --partitions must be at least 1");
    }
    ensure_topic(client, &arguments).await?;
    let (disk, round_trip) = (Latencies::new(), Latencies::new());
    measure_floor(client.env(), &arguments.floor_dir, &disk, &round_trip).await?;
    let config = ProducerConfig {
        linger: arguments.linger,
        compression: Compression::from(arguments.compression),
        ..ProducerConfig::default()
    };
    let producer = Arc::new(Producer::new(client, config)?);
    let latencies = Arc::new(Latencies::new());
    let began_at = TokioEnv::now();
    measure(&arguments, &producer, &latencies).await?;
    let seconds = (TokioEnv::now() - began_at).as_secs_f64();
    // Again, because other users of the machine come and go.
    measure_floor(client.env(), &arguments.floor_dir, &disk, &round_trip).await?;
    let floor = Floor { disk: Quantiles::of(&disk), round_trip: Quantiles::of(&round_trip) };
    let records = latencies.count();
    let records_per_second = records as f64 / seconds;
    let report = Report {
        records,
        record_size: arguments.record_size,
        in_flight: arguments.in_flight,
        seconds,
        records_per_second,
        megabytes_per_second: records_per_second * arguments.record_size as f64 / 1e6,
        acknowledgement: Quantiles::of(&latencies),
        floor,
    };
    if arguments.json {
        return print_json(&report);
    }
    let show = |name: &str, quantiles: &Quantiles| {
        let Quantiles { p50_ms, p99_ms, p999_ms } = quantiles;
        println!("{name:<28} p50 {p50_ms:>8.3} ms   p99 {p99_ms:>8.3} ms   p99.9 {p999_ms:>8.3} ms");
    };
    println!(
        "{records} records of {} bytes in {seconds:.2} s: {records_per_second:.0} records/s, {:.1} MB/s",
        arguments.record_size, report.megabytes_per_second
    );
    show("acknowledgement", &report.acknowledgement);
    show("floor: 1 KiB + fdatasync", &report.floor.disk);
    show("floor: loopback round trip", &report.floor.round_trip);
    Ok(())
}

async fn ensure_topic(client: &Client, arguments: &BenchProduce) -> Result<(), ClientError> {
    match client.topic(&arguments.topic, false).await {
        Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => {
            let topic = NewTopic::new(&arguments.topic, arguments.partitions);
            Admin::new(client).create_topic(&topic).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// As many tasks as records may be in flight, each sending one after another.
async fn measure(
    arguments: &BenchProduce,
    producer: &Arc<Producer>,
    latencies: &Arc<Latencies>,
) -> Result<(), ClientError> {
    let left = Arc::new(AtomicI64::new(match arguments.count {
        Some(count) => i64::try_from(count).unwrap_or(i64::MAX),
        None => i64::MAX,
    }));
    let deadline = TokioEnv::now() + Duration::from_secs(arguments.seconds);
    let has_deadline = arguments.count.is_none();
    let failed = Arc::new(AtomicBool::new(false));
    // Not all zeros: a compressing disk or codec would make too much of them.
    let seed = Arc::new(AtomicU64::new(TokioEnv::random_u64()));
    let tasks: Vec<_> = (0..arguments.in_flight)
        .map(|_| {
            let (producer, latencies) = (Arc::clone(producer), Arc::clone(latencies));
            let (left, failed, seed) = (Arc::clone(&left), Arc::clone(&failed), Arc::clone(&seed));
            let (topic, record_size) = (arguments.topic.clone(), arguments.record_size);
            TokioEnv::spawn(async move {
                let mut record = ProducerRecord::new(topic, filler(seed.fetch_add(1, Ordering::Relaxed), record_size));
                while !failed.load(Ordering::Relaxed)
                    && left.fetch_sub(1, Ordering::Relaxed) > 0
                    && !(has_deadline && TokioEnv::now() >= deadline)
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

async fn measure_floor(
    env: &TokioEnv,
    directory: &std::path::Path,
    disk: &Latencies,
    round_trip: &Latencies,
) -> anyhow::Result<()> {
    measure_disk(env, directory, disk).await?;
    measure_round_trip(env, round_trip).await.context("measuring loopback")
}

async fn measure_disk(env: &TokioEnv, directory: &std::path::Path, latencies: &Latencies) -> anyhow::Result<()> {
    let path = directory.join(format!(".lockstep-bench-{:016x}", TokioEnv::random_u64()));
    let disk = env.disk();
    let context = || format!("measuring the disk with {}", path.display());
    let file = disk.open(&path, OpenMode::CreateNew).await.with_context(context)?;
    let measured = async {
        // Written once before: blocks that are only reserved cost more at the first write.
        file.allocate(FLOOR_FILE_LEN).await?;
        file.write_and_sync(0, vec![filler(1, FLOOR_FILE_LEN as usize)]).await?;
        let content = filler(2, FLOOR_LEN);
        for index in 0..FLOOR_WRITES {
            let offset = index * FLOOR_LEN as u64 % FLOOR_FILE_LEN;
            let began_at = TokioEnv::now();
            file.write_and_sync(offset, vec![content.clone()]).await?;
            latencies.add(TokioEnv::now() - began_at);
        }
        Ok::<_, std::io::Error>(())
    };
    let measured = measured.await;
    disk.remove_file(&path).await.with_context(context)?;
    measured.with_context(context)
}

async fn measure_round_trip(env: &TokioEnv, latencies: &Latencies) -> std::io::Result<()> {
    let mut listener = env.listen("127.0.0.1:0").await?;
    let address = listener.local_address()?;
    let echo = TokioEnv::spawn(async move {
        let mut connection = listener.accept().await?;
        let mut buffer = [0; FLOOR_LEN];
        // Ends with an error when the other side closes.
        loop {
            connection.reader.read_exact(&mut buffer).await?;
            connection.writer.write_all(&buffer).await?;
            connection.writer.flush().await?;
        }
        #[expect(unreachable_code, reason = "names the type of the result")]
        Ok::<(), std::io::Error>(())
    });
    let mut connection = env.connect(&address).await?;
    let mut buffer = [7; FLOOR_LEN];
    for _ in 0..FLOOR_ROUND_TRIPS {
        let began_at = TokioEnv::now();
        connection.writer.write_all(&buffer).await?;
        connection.writer.flush().await?;
        connection.reader.read_exact(&mut buffer).await?;
        latencies.add(TokioEnv::now() - began_at);
    }
    drop(connection);
    // That it ended with an error is expected.
    let _ = echo.await;
    Ok(())
}
