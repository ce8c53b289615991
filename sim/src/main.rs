//! The simulator's command line: replays a seed, sweeps fresh ones, makes a failure smaller.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use checker::History;
use clap::{Args, Parser, Subcommand};
use lockstep_probe::Mistake;
use sim::choices::Case;
use sim::scenario::{self, Outcome};
use sim::{power, seeds, shrink, sweep, timeline};

/// Whole clusters on simulated time, network and disks.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    replay: Replay,
    /// Switches on one known bug, by name (`mistakes` lists them). Not in release builds: use `--profile simulation`.
    #[arg(long, global = true)]
    mistake: Option<String>,
    /// Prints what brokers and clients log, in simulated time, to standard error; in the syntax of RUST_LOG.
    #[arg(long, global = true)]
    log: Option<String>,
}

#[derive(Debug, Args)]
struct Replay {
    #[command(flatten)]
    which: Which,
    /// Writes what the clients saw to this file, as JSON lines; `check` checks it again.
    #[arg(long)]
    history: Option<PathBuf>,
}

/// Which run.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Which {
    /// The run that this seed stands for.
    #[arg(long)]
    seed: Option<u64>,
    /// The run in a file, as `shrink` writes it and as sim/seeds holds them.
    #[arg(long)]
    case: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs fresh seeds.
    Sweep {
        /// For so long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// At most so many.
        #[arg(long)]
        count: Option<u64>,
        /// From this one on; drawn when not given.
        #[arg(long)]
        first: Option<u64>,
        /// Threads; by default one a core.
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Reduces a failing run to the few faults and clients that matter.
    Shrink {
        #[command(flatten)]
        which: Which,
        /// Writes the smaller run to this file.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Checks a history that was recorded, by the simulator or by a test against real processes.
    Check {
        /// The file.
        history: PathBuf,
    },
    /// Prints number and hash of each seed's trace: the same from every process.
    Fingerprints {
        /// The first seed.
        #[arg(long)]
        first: u64,
        /// How many.
        #[arg(long)]
        count: u64,
    },
    /// Lists the known bugs that can be switched on.
    Mistakes,
    /// Switches on each known bug in turn and counts the seeds until it is found.
    Power {
        /// Seeds that a bug may take.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// Only this one.
        #[arg(long)]
        only: Option<String>,
        /// Threads; by default one a core.
        #[arg(long)]
        jobs: Option<usize>,
    },
}

impl Which {
    fn case(&self) -> anyhow::Result<Case> {
        match (self.seed, &self.case) {
            (Some(seed), _) => Ok(Case::of_seed(seed)),
            (None, Some(path)) => {
                let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                serde_json::from_slice(&bytes).with_context(|| format!("{} is not a run", path.display()))
            }
            (None, None) => bail!("which run? Name one with --seed or --case"),
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(filter) = &arguments.log {
        let filter = tracing_subscriber::EnvFilter::try_new(filter)?;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    if let Some(name) = &arguments.mistake {
        if !Mistake::possible() {
            bail!("this build has no known bugs in it: use `cargo run --profile simulation -p sim -- …`");
        }
        let Some(mistake) = Mistake::named(name) else {
            bail!("no known bug is called {name}; `mistakes` lists them");
        };
        mistake.make();
    }
    match arguments.command {
        None => replay(&arguments.replay),
        Some(Command::Sweep { seconds, count, first, jobs }) => Ok(sweep_seeds(seconds, count, first, jobs)),
        Some(Command::Shrink { which, out }) => shrink_case(&which.case()?, out.as_deref()),
        Some(Command::Check { history }) => check_history(&history),
        Some(Command::Fingerprints { first, count }) => {
            let cases: Vec<u64> = (first..first.saturating_add(count)).collect();
            let prints =
                seeds::on_all_cores(&cases, seeds::cores(), |seed| scenario::run(&Case::of_seed(*seed)).fingerprint);
            for (seed, (count, hash)) in cases.iter().zip(prints) {
                println!("{seed} {count} {hash:016x}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Power { seeds, only, jobs }) => power_survey(seeds, only.as_deref(), jobs),
        Some(Command::Mistakes) => {
            for mistake in Mistake::ALL {
                println!("{}: {}", mistake.name(), mistake.meaning());
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print_choices(case: &Case) {
    let choices = &case.choices;
    println!(
        "seed {}: {} brokers, {} shards, {} partitions; clients {:?}",
        case.seed, choices.nodes, choices.shards, choices.partitions, choices.clients
    );
    for planned in &choices.faults {
        println!("  at {:>6} ms for {:>5} ms: {:?}", planned.at_ms, planned.lasts_ms, planned.fault);
    }
    if let Some(node) = choices.gone {
        println!("  in the end: broker {node} dies for good");
    }
}

fn conclude(outcome: &Outcome) -> ExitCode {
    let (count, hash) = outcome.fingerprint;
    println!("{} client events, {count} world events, trace {hash:016x}", outcome.history.with_records(<[_]>::len));
    match &outcome.verdict {
        Some(verdict) => {
            println!("BROKEN: {verdict}");
            ExitCode::FAILURE
        }
        None => {
            println!("all checks hold");
            ExitCode::SUCCESS
        }
    }
}

fn replay(replay: &Replay) -> anyhow::Result<ExitCode> {
    let outcome = scenario::run(&replay.which.case()?);
    print_choices(&outcome.case);
    print!("{}", timeline::whole(&outcome));
    if let Some(path) = &replay.history {
        outcome.history.save(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(conclude(&outcome))
}

#[expect(clippy::disallowed_methods, reason = "real time, outside of every simulation")]
fn sweep_seeds(seconds: u64, count: Option<u64>, first: Option<u64>, jobs: Option<usize>) -> ExitCode {
    let first = first.unwrap_or_else(|| u64::from(rand::random::<u32>()) << 20);
    let jobs = jobs.unwrap_or_else(seeds::cores);
    println!("seeds from {first} on");
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(seconds);
    let failed = |outcome: &Outcome| {
        let verdict = outcome.verdict.as_deref().unwrap_or_default();
        println!("BROKEN: seed {}: {verdict}", outcome.case.seed);
    };
    let progress = |swept: &sweep::Swept| swept.print_progress(begun.elapsed());
    let swept = sweep::sweep(first, count.unwrap_or(u64::MAX), deadline, jobs, failed, progress);
    swept.print(begun.elapsed(), jobs);
    if swept.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::disallowed_methods, reason = "real time, outside of every simulation")]
fn power_survey(seeds: u64, only: Option<&str>, jobs: Option<usize>) -> anyhow::Result<ExitCode> {
    if !Mistake::possible() {
        bail!("this build has no known bugs in it: use `cargo run --profile simulation -p sim -- power`");
    }
    let jobs = jobs.unwrap_or_else(seeds::cores);
    let chosen = Mistake::ALL.iter().filter(|mistake| only.is_none_or(|only| mistake.name() == only));
    let (mut counts, mut escaped) = (Vec::new(), 0);
    for mistake in chosen {
        let begun = Instant::now();
        match power::search(*mistake, seeds, jobs) {
            Some(caught) => {
                counts.push(caught.seed + 1);
                println!(
                    "{:<36} {:>4} seeds {:>6.1} s  {}",
                    mistake.name(),
                    caught.seed + 1,
                    begun.elapsed().as_secs_f64(),
                    caught.verdict
                );
            }
            None => {
                escaped += 1;
                println!("{:<36} NOT FOUND in {seeds} seeds", mistake.name());
            }
        }
    }
    counts.sort_unstable();
    let median = counts.get(counts.len() / 2).copied().unwrap_or(0);
    println!("{} found, {escaped} not; median {median} seeds, most {}", counts.len(), counts.last().unwrap_or(&0));
    Ok(if escaped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check_history(path: &std::path::Path) -> anyhow::Result<ExitCode> {
    let history = History::load(path).with_context(|| format!("cannot read {}", path.display()))?;
    let records = history.records();
    let broken = checker::all_broken(&records);
    for broken in &broken {
        println!("BROKEN: {broken}");
        for record in broken.records.iter().filter_map(|index| records.get(*index)) {
            println!("{:>14} us  {:<8} {:?}", record.at_us, record.lane, record.event);
        }
    }
    match checker::check_all(&records) {
        Ok(summary) => {
            print!("{summary}");
            println!("all checks hold");
            Ok(ExitCode::SUCCESS)
        }
        Err(_) => Ok(ExitCode::FAILURE),
    }
}

fn shrink_case(case: &Case, out: Option<&std::path::Path>) -> anyhow::Result<ExitCode> {
    let Some(outcome) = shrink::shrink(case, |step| println!("{step}")) else {
        println!("this run breaks no promise");
        return Ok(ExitCode::SUCCESS);
    };
    print_choices(&outcome.case);
    print!("{}", timeline::short(&outcome));
    let json = serde_json::to_string_pretty(&outcome.case)?;
    match out {
        Some(path) => std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?,
        None => println!("{json}"),
    }
    Ok(conclude(&outcome))
}
