//! Shows by a trace of system calls that a majority has synced a record before it is acknowledged.
//!
//! `cargo run -p tests --example fsync_trace` needs `strace`. It starts three nodes, attaches `strace` to each, and sends
//! records one after another. Each must be found in a write to the journal, and an fdatasync of the same file must have returned
//! after that write, before the producer got its acknowledgement: on two nodes of three at least.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use lockstep_client::{Admin, NewTopic, Producer, ProducerConfig, ProducerRecord};
use rustix::process::{Pid, Signal, kill_process};
use tests::{Cluster, PATIENCE, pause, wait_until};

const TOPIC: &str = "traced";
const RECORDS: usize = 200;
const NODES: usize = 3;
const MAJORITY: usize = 2;

fn mark(number: usize) -> String {
    format!("record-{number:06}-of-the-trace")
}

/// `strace` at one node.
struct Tracer {
    process: Child,
    file: PathBuf,
}

impl Tracer {
    fn attach(cluster: &Cluster, id: u64) -> Self {
        let file = cluster.directory().join(format!("trace{id}"));
        let process = Command::new("strace")
            .args([
                "-f",
                "-ttt",
                "-T",
                "-y",
                "-s",
                "1000000",
                "-e",
                "trace=pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync",
            ])
            .arg("-o")
            .arg(&file)
            .args(["-p", &cluster.process_id(id).to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed and may trace");
        Self { process, file }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.file).unwrap_or_default()).into_owned()
    }

    fn detach(mut self) -> String {
        kill_process(Pid::from_child(&self.process), Signal::INT).expect("strace runs");
        self.process.wait().expect("strace can be waited for");
        self.text()
    }
}

/// A line of a trace: when, which thread, and what it says.
struct Line<'a> {
    at: f64,
    thread: &'a str,
    text: &'a str,
}

fn lines(trace: &str) -> Vec<Line<'_>> {
    trace
        .lines()
        .filter_map(|line| {
            let (thread, rest) = line.split_once(' ')?;
            let (at, text) = rest.trim_start().split_once(' ')?;
            Some(Line { at: at.parse().ok()?, thread, text })
        })
        .collect()
}

/// By record: when the first sync returned that was begun after the record had been written to a file, in seconds since 1970.
fn synced_at(trace: &str) -> BTreeMap<usize, f64> {
    let lines = lines(trace);
    let mut synced = BTreeMap::new();
    for number in 0..RECORDS {
        let mark = mark(number);
        let is_journal =
            |line: &Line<'_>| line.text.split_once('>').is_some_and(|(file, _)| file.ends_with(".journal"));
        let is_write =
            |line: &Line<'_>| line.text.starts_with("pwrite") && is_journal(line) && line.text.contains(&mark);
        let Some(written) = lines.iter().position(is_write) else { continue };
        let thread = lines[written].thread;
        let mut later = lines[written + 1..].iter().filter(|line| line.thread == thread);
        let Some(sync) = later.find(|line| line.text.starts_with("fdatasync(") || line.text.starts_with("fsync("))
        else {
            continue;
        };
        // A call that other threads' calls interrupted is told in two lines; the second one has the time of its return.
        let returned = if sync.text.contains("unfinished") {
            later
                .find(|line| line.text.contains("resumed>"))
                .filter(|line| line.text.contains("= 0"))
                .map(|line| line.at)
        } else {
            duration(sync.text).map(|seconds| sync.at + seconds)
        };
        if let Some(returned) = returned {
            synced.insert(number, returned);
        }
    }
    synced
}

/// How long a call took that succeeded: `… = 0 <0.000123>`.
fn duration(text: &str) -> Option<f64> {
    text.rsplit_once("= 0 <")?.1.strip_suffix('>')?.parse().ok()
}

/// Seconds since 1970, by the clock that `strace` reads.
#[expect(clippy::disallowed_methods, reason = "the wall clock is what the trace is compared with")]
fn seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_secs_f64()
}

#[tokio::main]
async fn main() {
    let cluster = Cluster::start(NODES).await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new(TOPIC, 3)).await.expect("created");
    let tracers: Vec<Tracer> = cluster.ids().map(|id| Tracer::attach(&cluster, id)).collect();
    wait_until("every node is traced", PATIENCE, || async {
        tracers.iter().all(|tracer| !tracer.text().is_empty()).then_some(())
    })
    .await;
    let producer = Producer::new(&client, ProducerConfig::default()).expect("the configuration is sound");
    let mut acknowledged_at = Vec::new();
    for number in 0..RECORDS {
        let record = ProducerRecord::new(TOPIC, mark(number)).with_partition((number % 3) as i32);
        producer.send(&record).await.expect("taken").await.expect("acknowledged");
        acknowledged_at.push(seconds());
        pause(Duration::from_millis(5)).await;
    }
    let traces: Vec<String> = tracers.into_iter().map(Tracer::detach).collect();
    keep(&traces);
    let synced: Vec<BTreeMap<usize, f64>> = traces.iter().map(|trace| synced_at(trace)).collect();
    let mut by_count = BTreeMap::<usize, usize>::new();
    for (number, at) in acknowledged_at.iter().enumerate() {
        let in_time = |synced: &&BTreeMap<usize, f64>| synced.get(&number).is_some_and(|synced| synced < at);
        *by_count.entry(synced.iter().filter(in_time).count()).or_default() += 1;
    }
    for (nodes, records) in &by_count {
        println!("{records} records were synced by {nodes} nodes of {NODES} before they were acknowledged");
    }
    let too_few: usize = by_count.range(..MAJORITY).map(|(_, records)| records).sum();
    assert_eq!(too_few, 0, "records were acknowledged before a majority had synced them");
}

/// The traces stay for whoever wants to read them.
fn keep(traces: &[String]) {
    for (index, trace) in traces.iter().enumerate() {
        let path = Path::new(&std::env::temp_dir()).join(format!("lockstep-trace-{}", index + 1));
        if fs::write(&path, trace).is_ok() {
            println!("trace of node {}: {}", index + 1, path.display());
        }
    }
}
