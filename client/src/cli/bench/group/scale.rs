//! `lockstep bench group scale`.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use lockstep_client::Client;
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use serde::Serialize;

use super::connections::Connections;
use super::crowd::{Crowd, Setting};
use super::{configure_interval, ensure_partitions, failure_text, group_prefix};
use crate::cli::bench::OutputArguments;
use crate::cli::bench::floor::{Floor, FloorMeter};
use crate::cli::output::print_json;
use crate::cli::parse_duration;

/// Between two questions whether the coordinator sees what the members see.
const CHECK_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(crate) struct BenchScale {
    /// Members of the group
    #[arg(long, default_value_t = 900)]
    members: usize,
    /// Partitions of the topic that they share
    #[arg(long, default_value_t = 3_000)]
    partitions: usize,
    /// Interval of each member's heartbeats
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    heartbeat: Duration,
    /// Connections that the members share
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// How often one leaves and one joins
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Topic, created if it does not exist; bench-group-<partitions> unless named
    #[arg(long)]
    topic: Option<String>,
    /// Longest wait for the group to settle
    #[arg(long, default_value = "120s", value_parser = parse_duration)]
    limit: Duration,
    #[command(flatten)]
    output: OutputArguments,
}

/// A member came or went.
#[derive(Serialize)]
struct Step {
    change: &'static str,
    /// Until the last member had acknowledged what it is to have.
    reconciled_ms: f64,
    /// Partitions that the member had or got.
    partitions: usize,
    /// Partitions taken from members that stayed.
    taken: usize,
    /// Those of them that no one needed.
    taken_needlessly: usize,
}

#[derive(Serialize)]
struct Report {
    members: usize,
    partitions: usize,
    heartbeat_ms: u64,
    /// From nothing until all had joined and had their partitions.
    formed_ms: f64,
    steps: Vec<Step>,
    leave_worst_ms: f64,
    join_worst_ms: f64,
    /// Partitions given to a member while another one owned them. None may be.
    owned_twice: u64,
    fenced: u64,
    failed_heartbeats: u64,
    /// Why a heartbeat failed last: a coordinator that moves, for example.
    failure: Option<String>,
    floor: Floor,
}

pub(super) async fn run(client: &Client, arguments: BenchScale) -> anyhow::Result<()> {
    if arguments.members < 2 || arguments.connections == 0 || arguments.rounds == 0 || arguments.heartbeat.is_zero() {
        bail!("--members must be at least 2, --connections, --rounds and --heartbeat at least 1");
    }
    let topic = arguments.topic.clone().unwrap_or_else(|| format!("bench-group-{}", arguments.partitions));
    ensure_partitions(client, &topic, arguments.partitions).await?;
    let meter = FloorMeter::new(client.env(), &arguments.output.floor_dir);
    meter.measure().await?;
    let connections = Connections::new(client, arguments.connections);
    let setting = Setting::new(connections, &topic, arguments.partitions, arguments.heartbeat);
    let crowd = Crowd::new(&setting, group_prefix("scale"));
    configure_interval(&setting.connections, crowd.group_id(), arguments.heartbeat).await?;
    let measured = measure(&arguments, &crowd).await;
    crowd.disband().await;
    let (formed, steps) = measured?;
    meter.measure().await?;
    let worst = |change: &str| {
        let of_it = steps.iter().filter(|step| step.change == change);
        of_it.map(|step| step.reconciled_ms).fold(0.0, f64::max)
    };
    let report = Report {
        members: arguments.members,
        partitions: arguments.partitions,
        heartbeat_ms: u64::try_from(arguments.heartbeat.as_millis()).unwrap_or(u64::MAX),
        formed_ms: milliseconds(formed),
        leave_worst_ms: worst(LEAVE),
        join_worst_ms: worst(JOIN),
        steps,
        owned_twice: setting.tally.owned_twice.load(Ordering::Relaxed),
        fenced: setting.tally.fenced.load(Ordering::Relaxed),
        failed_heartbeats: setting.tally.failed.load(Ordering::Relaxed),
        failure: setting.tally.last_failure(),
        floor: meter.floor(),
    };
    if arguments.output.json {
        print_json(&report)?;
    } else {
        report.print()?;
    }
    // Who was fenced may find out after another member got its partitions.
    if report.owned_twice > 0 && report.fenced == 0 {
        bail!("{} partitions were given to a member while another one owned them", report.owned_twice);
    }
    Ok(())
}

const LEAVE: &str = "leave";
const JOIN: &str = "join";

impl Report {
    fn print(&self) -> io::Result<()> {
        writeln!(
            io::stdout(),
            "{} members, {} partitions, heartbeats each {} ms: formed in {:.0} ms",
            self.members,
            self.partitions,
            self.heartbeat_ms,
            self.formed_ms
        )?;
        for Step { change, reconciled_ms, partitions, taken, taken_needlessly } in &self.steps {
            writeln!(
                io::stdout(),
                "one {change:<5} reconciled in {reconciled_ms:>8.1} ms   partitions {partitions:>4}   taken from others {taken:>4}, needlessly {taken_needlessly}"
            )?;
        }
        writeln!(io::stdout(), "worst leave {:.1} ms, worst join {:.1} ms", self.leave_worst_ms, self.join_worst_ms)?;
        writeln!(
            io::stdout(),
            "owned twice {}, fenced {}, failed heartbeats {}{}",
            self.owned_twice,
            self.fenced,
            self.failed_heartbeats,
            failure_text(self.failure.as_deref())
        )?;
        self.floor.print()
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

async fn measure(arguments: &BenchScale, crowd: &Arc<Crowd>) -> anyhow::Result<(Duration, Vec<Step>)> {
    let began_at = TokioEnv::now();
    for _ in 0..arguments.members {
        crowd.join();
    }
    let (mut epoch, settled_at) = reconciled(arguments, crowd, 0).await.context("forming the group")?;
    let formed = settled_at - began_at;
    let mut steps = Vec::with_capacity(2 * arguments.rounds);
    for _ in 0..arguments.rounds {
        crowd.reset_taken();
        let began_at = TokioEnv::now();
        let partitions = crowd.leave().context("nobody can leave")?;
        let settled_at;
        (epoch, settled_at) = reconciled(arguments, crowd, epoch).await.context("after one left")?;
        let taken = crowd.reset_taken();
        let reconciled_ms = milliseconds(settled_at - began_at);
        steps.push(Step { change: LEAVE, reconciled_ms, partitions, taken, taken_needlessly: taken });

        let began_at = TokioEnv::now();
        let newcomer = crowd.join();
        let settled_at;
        (epoch, settled_at) = reconciled(arguments, crowd, epoch).await.context("after one joined")?;
        let (partitions, taken) = (crowd.owned(&newcomer).len(), crowd.reset_taken());
        let reconciled_ms = milliseconds(settled_at - began_at);
        let taken_needlessly = taken.saturating_sub(partitions);
        steps.push(Step { change: JOIN, reconciled_ms, partitions, taken, taken_needlessly });
    }
    Ok((formed, steps))
}

/// Waits until members and coordinator agree on an assignment newer than `after`: its epoch, and when the last member got there.
async fn reconciled(arguments: &BenchScale, crowd: &Crowd, after: i32) -> anyhow::Result<(i32, Instant)> {
    let deadline = TokioEnv::now() + arguments.limit;
    loop {
        let settled = crowd.settled(after, deadline).await?;
        match crowd.check_with_coordinator().await {
            Ok(()) => return Ok((settled.epoch, settled.at)),
            Err(error) if TokioEnv::now() >= deadline => return Err(error),
            Err(error) => tracing::debug!(%error, "not settled yet"),
        }
        TokioEnv::sleep(CHECK_EVERY).await;
    }
}
