//! `lockstep bench group commit`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use futures_util::future::join_all;
use lockstep_client::Client;
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::{GroupId, OffsetCommitRequest, StrBytes, TopicName};
use lockstep_wire::{ApiKey, Request, Response};
use serde::Serialize;

use super::connections::Connections;
use super::crowd::{Crowd, Setting, name_of};
use super::pipeline::{Pipeline, Requests};
use super::{ensure_partitions, group_prefix};
use crate::cli::bench::floor::{Floor, FloorMeter};
use crate::cli::bench::process::CpuMeter;
use crate::cli::bench::{BrokerArguments, OutputArguments, Quantiles, print_broker_cpu};
use crate::cli::latency::Latencies;
use crate::cli::output::print_json;
use crate::cli::parse_duration;

/// The lowest version of OffsetCommit that carries the epoch of a member of the consumer protocol.
const MEMBER_EPOCH_VERSION: i16 = 9;
/// How often the members whose offsets are committed send heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct BenchCommit {
    /// Commits under way at any time
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Connections that they are spread over, at most
    #[arg(long, default_value_t = 15)]
    connections: usize,
    /// Groups, each with one member, that the commits are spread over
    #[arg(long, default_value_t = 48)]
    groups: usize,
    /// Partitions of the topic; each commit is of one
    #[arg(long, default_value_t = 12)]
    partitions: usize,
    /// How long to commit
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Topic, created if it does not exist; bench-group-<partitions> unless named
    #[arg(long)]
    topic: Option<String>,
    /// Longest wait for the groups to settle
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    limit: Duration,
    #[command(flatten)]
    brokers: BrokerArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Serialize)]
struct Report {
    commits: u64,
    in_flight: usize,
    connections: usize,
    groups: usize,
    seconds: f64,
    commits_per_second: f64,
    acknowledgement: Quantiles,
    refused: u64,
    /// Why a commit was refused last.
    refusal: Option<String>,
    /// Of one core, by process; empty without their ids.
    broker_cpu_percent_each: BTreeMap<u32, f64>,
    floor: Floor,
}

pub(super) async fn run(client: &Client, arguments: BenchCommit) -> anyhow::Result<()> {
    let BenchCommit { in_flight, connections, groups, partitions, seconds, .. } = arguments;
    if in_flight == 0 || connections == 0 || groups == 0 || partitions == 0 || seconds == 0 {
        bail!("--in-flight, --connections, --groups, --partitions and --seconds must be at least 1");
    }
    let topic = arguments.topic.clone().unwrap_or_else(|| format!("bench-group-{partitions}"));
    ensure_partitions(client, &topic, partitions).await?;
    let meter = FloorMeter::new(client.env(), &arguments.output.floor_dir);
    meter.measure().await?;
    let setting = Setting::new(Connections::new(client, groups), &topic, partitions, HEARTBEAT);
    let prefix = group_prefix("commit");
    let crowds: Vec<Arc<Crowd>> = (0..groups).map(|group| Crowd::new(&setting, format!("{prefix}-{group}"))).collect();
    let measured = measure(client, &arguments, &setting, &crowds).await;
    join_all(crowds.iter().map(|crowd| crowd.disband())).await;
    let Measured { took, results, broker_cpu_percent_each } = measured?;
    meter.measure().await?;
    let refused = results.refused.load(Ordering::Relaxed);
    let commits = results.latencies.count().saturating_sub(refused);
    let report = Report {
        commits,
        in_flight,
        connections: connections.min(in_flight),
        groups,
        seconds: took.as_secs_f64(),
        commits_per_second: commits as f64 / took.as_secs_f64(),
        acknowledgement: Quantiles::of(&results.latencies),
        refused,
        refusal: results.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        broker_cpu_percent_each,
        floor: meter.floor(),
    };
    if arguments.output.json {
        return print_json(&report);
    }
    writeln!(
        io::stdout(),
        "{commits} commits in {:.2} s: {:.0} commits/s, {in_flight} under way over {} connections, {groups} groups",
        report.seconds,
        report.commits_per_second,
        report.connections
    )?;
    report.acknowledgement.print("acknowledgement")?;
    if let Some(refusal) = &report.refusal {
        writeln!(io::stdout(), "refused {}, the last with {refusal}", report.refused)?;
    }
    print_broker_cpu(&report.broker_cpu_percent_each)?;
    report.floor.print()?;
    Ok(())
}

struct Results {
    latencies: Latencies,
    refused: AtomicU64,
    refusal: Mutex<Option<String>>,
}

struct Measured {
    took: Duration,
    results: Arc<Results>,
    broker_cpu_percent_each: BTreeMap<u32, f64>,
}

async fn measure(
    client: &Client,
    arguments: &BenchCommit,
    setting: &Arc<Setting>,
    crowds: &[Arc<Crowd>],
) -> anyhow::Result<Measured> {
    let members: Vec<String> = crowds.iter().map(|crowd| crowd.join()).collect();
    let deadline = TokioEnv::now() + arguments.limit;
    let mut requests: BTreeMap<String, Vec<Request>> = BTreeMap::new();
    for (crowd, member) in crowds.iter().zip(&members) {
        crowd.settled(0, deadline).await?;
        let connection = setting.connections.to_coordinator(crowd.group_id(), 0).await?;
        let version = connection.version_of(ApiKey::OffsetCommit)?;
        if version < MEMBER_EPOCH_VERSION {
            bail!("{} serves OffsetCommit up to version {version} only", connection.address());
        }
        let commits = requests.entry(connection.address().to_owned()).or_default();
        commits.push(request(setting, crowd, member).into());
    }
    let results =
        Arc::new(Results { latencies: Latencies::new(), refused: AtomicU64::new(0), refusal: Mutex::new(None) });
    let pipelines = arguments.connections.min(arguments.in_flight);
    let cpu = CpuMeter::begin(&arguments.brokers.broker_pids)?;
    let began_at = TokioEnv::now();
    let ends_at = began_at + Duration::from_secs(arguments.seconds);
    let mut tasks = Vec::with_capacity(pipelines);
    for (number, (address, requests)) in requests.iter().cycle().take(pipelines).enumerate() {
        let window = arguments.in_flight / pipelines + usize::from(number < arguments.in_flight % pipelines);
        let pipeline = Pipeline::open(client.env(), address, ApiKey::OffsetCommit, MEMBER_EPOCH_VERSION).await?;
        let commits = Commits { requests: requests.clone(), at: number, partitions: arguments.partitions, ends_at };
        tasks.push(TokioEnv::spawn(commits.send(pipeline, window, Arc::clone(&results))));
    }
    for task in tasks {
        task.await.context("a connection's task failed")??;
    }
    let took = TokioEnv::now() - began_at;
    Ok(Measured { took, results, broker_cpu_percent_each: cpu.percent_each(took)? })
}

/// The commits of one connection: its broker's groups in turn, and their partitions.
struct Commits {
    requests: Vec<Request>,
    at: usize,
    partitions: usize,
    ends_at: Instant,
}

impl Commits {
    async fn send(mut self, pipeline: Pipeline, window: usize, results: Arc<Results>) -> anyhow::Result<()> {
        let answered = |response: &Response| {
            let Response::OffsetCommit(response) = response else { return };
            let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
            for refused in partitions.filter(|partition| partition.error_code != 0) {
                results.refused.fetch_add(1, Ordering::Relaxed);
                let name = name_of(refused.error_code);
                *results.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
            }
        };
        pipeline.run(window, &results.latencies, &mut self, answered).await
    }
}

impl Requests for Commits {
    fn next(&mut self) -> Option<&Request> {
        if TokioEnv::now() >= self.ends_at {
            return None;
        }
        self.at = self.at.wrapping_add(1);
        let (groups, at) = (self.requests.len(), self.at);
        let request = &mut self.requests[at % groups];
        if let Request::OffsetCommit(request) = request
            && let Some(partition) = request.topics.first_mut().and_then(|topic| topic.partitions.first_mut())
        {
            partition.partition_index = i32::try_from(at / groups % self.partitions).unwrap_or(0);
            partition.committed_offset = i64::try_from(at).unwrap_or(0);
        }
        Some(request)
    }
}

/// A commit of one partition by the group's member.
fn request(setting: &Setting, crowd: &Crowd, member: &str) -> OffsetCommitRequest {
    let mut topic = OffsetCommitRequestTopic::default();
    topic.name = TopicName(StrBytes::from_string(setting.topic.clone()));
    topic.partitions = vec![OffsetCommitRequestPartition::default()];
    let mut request = OffsetCommitRequest::default();
    request.group_id = GroupId(StrBytes::from_string(crowd.group_id().to_owned()));
    request.member_id = StrBytes::from_string(member.to_owned());
    request.generation_id_or_member_epoch = crowd.epoch(member);
    request.topics = vec![topic];
    request
}
