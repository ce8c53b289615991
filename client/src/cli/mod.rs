//! Arguments and what they lead to.

mod bench;
mod cluster;
mod consume;
mod group;
mod latency;
mod output;
mod produce;
mod topic;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use lockstep_client::{Client, ClientConfig};
use lockstep_env::tokio_env::TokioEnv;
use tracing_subscriber::EnvFilter;

/// Works with a Lockstep cluster, or any that speaks Kafka's protocol.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, about)]
struct Arguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster, and how patiently.
#[derive(Debug, Args)]
struct ClusterArguments {
    /// Brokers to begin with, host:port separated by commas; one that answers is enough
    #[arg(long, global = true, default_value = "localhost:9092")]
    brokers: String,
    /// How long an operation may take, retries included: 10s, 500ms, 2m
    #[arg(long, global = true, default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates, lists, describes and deletes topics
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Sends lines from standard input as messages
    Produce(produce::ProduceArguments),
    /// Writes messages to standard output
    Consume(consume::ConsumeArguments),
    /// Lists, describes, explains, resets, moves and deletes consumer groups
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Shows nodes and shards
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Measures
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// A number and a unit: `ms`, `s`, `m` or `h`. Without a unit it is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits_len);
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{unit}` is not one of ms, s, m, h")),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
}

/// Parses the arguments, does what they say, and turns what came of it into an exit code: 0, 1 after an error, 2 for
/// arguments that make no sense.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    // One thread is enough, and leaves the others to brokers on the same machine. But a consumer stays in its group also while nobody
    // reads what it writes: that blocks the main thread, and heartbeats leave from another one.
    let mut builder = match arguments.command {
        Command::Consume(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = match builder.worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(arguments));
    // Standard input may still be waited for by a thread that cannot be stopped.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever read our output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut config = ClientConfig::for_brokers(&arguments.cluster.brokers);
    config.timeout = arguments.cluster.timeout;
    config.client_id = "lockstep-cli".to_owned();
    let client = Client::connect(TokioEnv::new(), config).await?;
    match arguments.command {
        Command::Topic(command) => topic::run(&client, command).await,
        Command::Produce(arguments) => produce::run(&client, arguments).await,
        Command::Consume(arguments) => consume::run(&client, arguments).await,
        Command::Group(command) => group::run(&client, command).await,
        Command::Cluster(command) => cluster::run(&client, command).await,
        Command::Bench(command) => bench::run(&client, command).await,
    }
}

/// Completes when the user interrupts.
async fn interrupted() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::warn!(%error, "interrupts are not noticed");
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        for (text, ms) in [("10", 10_000), ("10s", 10_000), ("250ms", 250), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1", "1.5s", "5days", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
