//! `lockstep bench group join`.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use lockstep_client::{Admin, Client, ClientError, ErrorCode};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use serde::Serialize;

use super::connections::Connections;
use super::crowd::{RETRY_AFTER, Setting, is_moving, leave, name_of};
use super::member::Member;
use super::{ensure_partitions, group_prefix};
use crate::cli::bench::floor::{Floor, FloorMeter};
use crate::cli::bench::{OutputArguments, Quantiles};
use crate::cli::latency::Latencies;
use crate::cli::output::print_json;
use crate::cli::parse_duration;

#[derive(Debug, Args)]
pub(crate) struct BenchJoin {
    /// How many groups are joined, one after another
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Partitions of the topic
    #[arg(long, default_value_t = 12)]
    partitions: usize,
    /// Topic, created if it does not exist; bench-group-<partitions> unless named
    #[arg(long)]
    topic: Option<String>,
    /// Longest wait for an assignment
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    limit: Duration,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Serialize)]
struct Report {
    rounds: u64,
    partitions: usize,
    /// From the first heartbeat's sending to an answer with all partitions.
    assigned: Quantiles,
    /// Heartbeats that it took, at most.
    heartbeats_worst: usize,
    floor: Floor,
}

pub(super) async fn run(client: &Client, arguments: BenchJoin) -> anyhow::Result<()> {
    if arguments.rounds == 0 || arguments.partitions == 0 {
        bail!("--rounds and --partitions must be at least 1");
    }
    let topic = arguments.topic.clone().unwrap_or_else(|| format!("bench-group-{}", arguments.partitions));
    ensure_partitions(client, &topic, arguments.partitions).await?;
    let meter = FloorMeter::new(client.env(), &arguments.output.floor_dir);
    meter.measure().await?;
    let setting = Setting::new(Connections::new(client, 1), &topic, arguments.partitions, Duration::ZERO);
    let (prefix, latencies) = (group_prefix("join"), Latencies::new());
    let mut heartbeats_worst = 0;
    for round in 0..arguments.rounds {
        let group = format!("{prefix}-{round}");
        heartbeats_worst = heartbeats_worst.max(join(&setting, &group, arguments.limit, &latencies).await?);
    }
    meter.measure().await?;
    for round in 0..arguments.rounds {
        let group = format!("{prefix}-{round}");
        if let Err(error) = Admin::new(client).delete_group(&group).await {
            tracing::warn!(group, %error, "the group is left behind");
        }
    }
    let report = Report {
        rounds: latencies.count(),
        partitions: arguments.partitions,
        assigned: Quantiles::of(&latencies),
        heartbeats_worst,
        floor: meter.floor(),
    };
    if arguments.output.json {
        return print_json(&report);
    }
    writeln!(
        io::stdout(),
        "{} joins of empty groups, {} partitions each, {} heartbeats at most",
        report.rounds,
        report.partitions,
        report.heartbeats_worst
    )?;
    report.assigned.print("join to assignment")?;
    report.floor.print()?;
    Ok(())
}

/// Joins and leaves again; how many heartbeats it took.
async fn join(setting: &Setting, group: &str, limit: Duration, latencies: &Latencies) -> anyhow::Result<usize> {
    let mut member = Member::new(group, &setting.topic);
    let deadline = TokioEnv::now() + limit;
    reach_coordinator(setting, group, deadline).await?;
    let (mut began_at, mut heartbeats, mut is_perhaps_heard) = (TokioEnv::now(), 0, false);
    loop {
        let answer = match setting.exchange(0, member.heartbeat()).await {
            Ok(answer) => answer,
            Err(error) if is_passing(&error) && TokioEnv::now() < deadline => {
                member.on_lost_answer();
                (heartbeats, is_perhaps_heard) = (heartbeats + 1, true);
                TokioEnv::sleep(RETRY_AFTER).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        heartbeats += 1;
        if is_moving(answer.error_code) && TokioEnv::now() < deadline {
            member.on_lost_answer();
            TokioEnv::sleep(RETRY_AFTER).await;
            is_perhaps_heard |= answer.error_code == ErrorCode::CoordinatorNotAvailable.code();
            if member.epoch() == 0 && !is_perhaps_heard {
                // Nothing was asked of the coordinator yet.
                reach_coordinator(setting, group, deadline).await?;
                (began_at, heartbeats) = (TokioEnv::now(), 0);
            }
            continue;
        }
        if answer.error_code != 0 {
            let message = answer.error_message.as_deref().unwrap_or_default();
            bail!("joining group {group}: {} {message}", name_of(answer.error_code));
        }
        member.on_answer(&answer);
        let waited = TokioEnv::now() - began_at;
        if member.owned().len() == setting.partitions {
            latencies.add(waited);
            break;
        }
        if TokioEnv::now() >= deadline {
            bail!("group {group} has {} of {} partitions assigned", member.owned().len(), setting.partitions);
        }
        if !member.has_news() {
            // As often as the coordinator asks for, like any member.
            TokioEnv::sleep(Duration::from_millis(u64::try_from(answer.heartbeat_interval_ms).unwrap_or(0))).await;
        }
    }
    leave(setting, 0, &member).await;
    Ok(heartbeats)
}

/// Who coordinates, and the connection, are no part of joining.
async fn reach_coordinator(setting: &Setting, group: &str, deadline: Instant) -> anyhow::Result<()> {
    loop {
        match setting.connections.to_coordinator(group, 0).await {
            Ok(_) => return Ok(()),
            Err(error) if is_passing(&error) && TokioEnv::now() < deadline => TokioEnv::sleep(RETRY_AFTER).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Another try may succeed: a connection broke, an answer was lost.
fn is_passing(error: &ClientError) -> bool {
    error.is_retriable() || matches!(error, ClientError::TimedOut { .. })
}
