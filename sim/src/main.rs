//! Replays one seed: `cargo run --release -p sim -- --seed N`.

use std::process::ExitCode;

use clap::Parser;
use sim::scenario;

/// Runs one seed of the simulator, with the faults that it draws, and prints what happened.
#[derive(Debug, Parser)]
struct Arguments {
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// Prints what the clients saw as JSON lines.
    #[arg(long)]
    history: bool,
    /// Prints what brokers and clients log, in simulated time, to standard error; in the syntax of RUST_LOG.
    #[arg(long)]
    log: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(filter) = &arguments.log {
        let filter = tracing_subscriber::EnvFilter::try_new(filter)?;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let outcome = scenario::run(arguments.seed);
    println!("seed {}: faults drawn", arguments.seed);
    for planned in &outcome.schedule {
        println!("  after {:?}: {:?} for {:?}", planned.after, planned.fault, planned.lasts);
    }
    println!("timeline");
    for event in &outcome.timeline {
        println!("{event}");
    }
    if arguments.history {
        for event in &outcome.history {
            println!("{}", serde_json::to_string(event)?);
        }
    }
    let (count, hash) = outcome.fingerprint;
    println!("{} client events, {count} world events, trace {hash:016x}", outcome.history.len());
    Ok(match &outcome.verdict {
        Some(verdict) => {
            println!("BROKEN: {verdict}");
            ExitCode::FAILURE
        }
        None => {
            println!("all checks hold");
            ExitCode::SUCCESS
        }
    })
}
