//! The binary `broker`: one broker from a configuration file, one on its own, or three in one process to try things with.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lockstep_broker::{Broker, BrokerConfig, ConfigFile};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Either, Env, select, timeout};
use lockstep_runtime::NodeConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The configuration, a port or a directory is wrong: starting again changes nothing.
const EXIT_CONFIGURATION: u8 = 2;
/// The broker ran and could not go on.
const EXIT_FAILED: u8 = 1;

/// What `broker dev` gives its nodes unless it is told otherwise.
const DEV_PORT: u16 = 9092;
const DEV_NODES: u16 = 3;
const DEV_DIRECTORY: &str = "data/dev";
/// Peer ports lie so far below the ports for clients: 8091 to 8093.
const DEV_PEER_PORT_DISTANCE: u16 = 1_001;
/// How long the three nodes may take to elect their leaders before `broker dev` says that something is wrong.
const DEV_READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Where `broker dev` logs, beneath its data; the terminal shows errors only.
const DEV_LOG_FILE: &str = "dev.log";
/// Libraries are quiet unless something is wrong; what matters of Raft is logged by the runtime.
const QUIET_LIBRARIES: &str = "openraft=error,hyper=warn";

/// A message queue with consistent consumer groups, for every Kafka client.
#[derive(Debug, Parser)]
#[command(name = "broker", version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Configuration file (JSON). Without one, a single broker listens on port 9092 and keeps its data in ./data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a cluster of three brokers in this process, on three ports in a row.
    Dev {
        /// Port of the first broker.
        #[arg(long, default_value_t = DEV_PORT)]
        port: u16,
        /// Where the three keep their data; it is found again at the next start.
        #[arg(long, value_name = "DIRECTORY", default_value = DEV_DIRECTORY)]
        data: PathBuf,
    },
}

/// A failure with the code to exit with.
struct Failure {
    exit: u8,
    message: String,
}

impl Failure {
    fn configuration(message: impl Into<String>) -> Self {
        Self { exit: EXIT_CONFIGURATION, message: message.into() }
    }
}

fn main() -> ExitCode {
    // `-config FILE` is written with one dash by those who know the flag from elsewhere.
    let arguments = std::env::args_os().map(|argument| match argument.to_str() {
        Some(text) if text == "-config" || text.starts_with("-config=") => format!("-{text}").into(),
        _ => argument,
    });
    let arguments = Arguments::parse_from(arguments);
    let outcome = match arguments.command {
        Some(Command::Dev { port, data }) => run_dev(port, &data),
        None => run_one(arguments.config.as_deref()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("broker: {}", failure.message);
            ExitCode::from(failure.exit)
        }
    }
}

/// Half as many threads as there are cores unless the configuration says otherwise: the threads that write and sync need the
/// other half, and a thread that is woken to help with little work costs more than it helps.
fn run<T>(threads: Option<usize>, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = threads.unwrap_or((cores / 2).clamp(1, 16));
    // One thread needs no scheduler that hands tasks from thread to thread.
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    // More than `TokioEnv` reads files at a time with: what commits wait for finds a thread.
    let runtime = builder
        .worker_threads(threads)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .map_err(|error| Failure { exit: EXIT_FAILED, message: format!("cannot start threads: {error}") })?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Clients' connections and segments need more files than the 1,024 that a process may open where nobody has asked for more.
fn raise_open_files_max() {
    let before = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before });
    let open_files_max = getrlimit(Resource::Nofile).current;
    match raised {
        Ok(()) => tracing::info!(open_files_max, "files that may be open at a time"),
        Err(error) => tracing::warn!(open_files_max, %error, "the number of files that may be open cannot be raised"),
    }
}

fn run_one(path: Option<&Path>) -> Result<(), Failure> {
    let (file, origin) = match path {
        None => (ConfigFile::default(), String::new()),
        Some(path) => {
            let shown = path.display();
            let text = fs::read_to_string(path).map_err(|error| Failure::configuration(format!("{shown}: {error}")))?;
            let file = ConfigFile::parse(&text).map_err(|error| Failure::configuration(format!("{shown}: {error}")))?;
            (file, format!("{shown}: "))
        }
    };
    let config = file.check().map_err(|error| Failure::configuration(format!("{origin}{error}")))?;
    start_log(file.log_level(), file.log_level(), file.log_file())
        .map_err(|message| Failure::configuration(format!("{origin}{message}")))?;
    raise_open_files_max();
    run(file.worker_threads(), async {
        let mut signals = Signals::new()?;
        let broker = start(config).await.map_err(|message| Failure::configuration(format!("{origin}{message}")))?;
        let outcome = match select(signals.received(), broker.failed()).await {
            Either::First(name) => {
                tracing::info!(signal = name, "broker stops");
                Ok(())
            }
            Either::Second(reason) => {
                tracing::error!(reason, "broker cannot go on");
                Err(Failure { exit: EXIT_FAILED, message: reason })
            }
        };
        stop(&mut signals, &[broker]).await;
        outcome
    })
}

fn run_dev(port: u16, directory: &Path) -> Result<(), Failure> {
    let highest = port.checked_add(DEV_NODES - 1).filter(|_| port > DEV_PEER_PORT_DISTANCE);
    if highest.is_none() {
        return Err(Failure::configuration(format!("--port: {port} leaves no room for {DEV_NODES} brokers")));
    }
    let log_file = directory.join(DEV_LOG_FILE);
    start_log("error", "info", Some(&log_file)).map_err(Failure::configuration)?;
    raise_open_files_max();
    run(None, async {
        let mut signals = Signals::new()?;
        println!("Three brokers start, with their data in {} …", directory.display());
        let mut brokers = Vec::new();
        for index in 0..DEV_NODES {
            match start(dev_config(port, directory, index)).await {
                Ok(broker) => brokers.push(broker),
                Err(message) => {
                    stop(&mut signals, &brokers).await;
                    return Err(Failure::configuration(message));
                }
            }
        }
        let ready = async {
            while !brokers.iter().all(is_ready) {
                TokioEnv::sleep(Duration::from_millis(20)).await;
            }
        };
        match select(signals.received(), timeout::<TokioEnv, _>(DEV_READY_TIMEOUT, ready)).await {
            Either::First(_) => {
                stop(&mut signals, &brokers).await;
                return Ok(());
            }
            Either::Second(Err(_)) => {
                eprintln!("broker: the brokers have not found their leaders yet; see {}", log_file.display());
            }
            Either::Second(Ok(())) => introduce(port, directory),
        }
        let failed = select(brokers[0].failed(), select(brokers[1].failed(), brokers[2].failed()));
        let outcome = match select(signals.received(), failed).await {
            Either::First(_) => Ok(()),
            Either::Second(Either::First(reason) | Either::Second(Either::First(reason) | Either::Second(reason))) => {
                Err(Failure { exit: EXIT_FAILED, message: reason })
            }
        };
        println!("The brokers stop …");
        stop(&mut signals, &brokers).await;
        outcome
    })
}

/// What to try with the three brokers.
fn introduce(port: u16, directory: &Path) {
    let servers: Vec<String> = (0..DEV_NODES).map(|index| format!("localhost:{}", port + index)).collect();
    let (first, all) = (&servers[0], servers.join(","));
    println!("Ready: {all}");
    println!(
        "Data and {DEV_LOG_FILE} are in {} (remove it to begin anew). Ctrl-C stops all three.",
        directory.display()
    );
    println!("\nTry, in another terminal:");
    for (command, what) in [
        (format!("kcat -b {first} -L"), "brokers, topics, leaders"),
        (format!("echo hello | kcat -b {first} -P -t greetings"), "produce (the topic is made by itself)"),
        (format!("kcat -b {first} -C -t greetings -e"), "consume"),
        (format!("kcat -b {first} -G my-group greetings"), "consume in a group; start it twice and watch"),
        ("lockstep --help".to_owned(), "our own command line"),
    ] {
        println!("  {command:<54} {what}");
    }
    println!("Any Kafka client does: bootstrap.servers={all}");
}

/// Node `index + 1` of the three.
fn dev_config(port: u16, directory: &Path, index: u16) -> BrokerConfig {
    let node_id = |index: u16| u64::from(index) + 1;
    let peers: BTreeMap<u64, String> = (0..DEV_NODES)
        .map(|index| (node_id(index), format!("localhost:{}", port - DEV_PEER_PORT_DISTANCE + index)))
        .collect();
    let own = directory.join(format!("node{}", node_id(index)));
    let mut node = NodeConfig::new(node_id(index), peers, own.join("raft"), own.join("partitions"));
    // Three nodes share one disk and one page cache here.
    node.journal_file_bytes = 16 << 20;
    node.cache_bytes = 16 << 20;
    let mut config = BrokerConfig::new(node);
    config.port = port + index;
    config.http_port = config.port.checked_add(1_000);
    config.groups.initial_rebalance_delay_ms = 0;
    config
}

/// Every shard has a leader, and every broker is in the directory.
fn is_ready(broker: &Broker<TokioEnv>) -> bool {
    let node = broker.node();
    node.directory(|directory| directory.brokers.len()) == usize::from(DEV_NODES)
        && (0..node.shard_count()).all(|shard| node.leader_of(lockstep_core::ShardId(shard)).is_some())
}

async fn start(config: BrokerConfig) -> Result<Broker<TokioEnv>, String> {
    let fields = config.clone();
    Broker::start(TokioEnv::new(), config).await.map_err(|error| error.naming_field(&fields))
}

/// Stops brokers together. A second signal ends the process at once.
async fn stop(signals: &mut Signals, brokers: &[Broker<TokioEnv>]) {
    let stopping: Vec<_> = brokers
        .iter()
        .map(|broker| {
            let broker = broker.clone();
            TokioEnv::spawn(async move { broker.shutdown().await })
        })
        .collect();
    let stopped = async {
        for task in stopping {
            if let Err(error) = task.await {
                tracing::error!(%error, "a broker did not stop cleanly");
            }
        }
    };
    match select(stopped, signals.received()).await {
        Either::First(()) => tracing::info!("broker stopped"),
        Either::Second(_) => std::process::exit(i32::from(EXIT_FAILED)),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure { exit: EXIT_FAILED, message: format!("cannot listen for signals: {error}") })
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn received(&mut self) -> &'static str {
        match select(self.terminate.recv(), self.interrupt.recv()).await {
            Either::First(_) => "SIGTERM",
            Either::Second(_) => "SIGINT",
        }
    }
}

/// Logs to the terminal, and to a file when one is named. `RUST_LOG` overrides the level.
fn start_log(terminal_level: &str, file_level: &str, file: Option<&PathBuf>) -> Result<(), String> {
    let filter = |level: &str| {
        EnvFilter::try_from_default_env()
            .or_else(|_| EnvFilter::try_new(format!("{QUIET_LIBRARIES},{level}")))
            .map_err(|error| format!("server.log_level: {error}"))
    };
    let terminal = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(filter(terminal_level)?);
    let log_file = match file {
        None => None,
        Some(path) => {
            let file = open_log(path).map_err(|error| format!("server.log_file: {}: {error}", path.display()))?;
            Some(fmt::layer().with_writer(Mutex::new(file)).with_ansi(false).with_filter(filter(file_level)?))
        }
    };
    tracing_subscriber::registry().with(terminal).with(log_file).init();
    Ok(())
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}
