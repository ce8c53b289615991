//! `lockstep`, as a script would use it.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::cli::{run, stdout_of};
use tests::{Cluster, PATIENCE, lockstep_binary};

const LINES: usize = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_created_listed_described_and_deleted() {
    let cluster = Cluster::start(3).await;
    let created = stdout_of(&cluster.lockstep(&["topic", "create", "orders", "--partitions", "4"], "").await);
    assert!(created.contains("orders"), "{created}");
    let again = cluster.lockstep(&["topic", "create", "orders", "--partitions", "4"], "").await;
    assert_eq!(again.status.code(), Some(1));
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(error.contains("TOPIC_ALREADY_EXISTS") && error.trim_end().lines().count() == 1, "{error}");

    // Whichever broker is asked may hear of it a moment later.
    let is_there = |listed: &Value| listed.as_array().is_some_and(|topics| !topics.is_empty());
    let listed = cluster.wait_lockstep_json("the topic is listed", &["topic", "list"], is_there).await;
    assert_eq!((&listed[0]["name"], &listed[0]["partitions"]), (&Value::from("orders"), &Value::from(4)));
    assert_eq!(listed[0]["replication"], 3);
    let is_led = |described: &Value| {
        let partitions = described["partitions"].as_array();
        partitions.is_some_and(|all| all.iter().all(|one| one["leader"].is_u64() && one["end"].is_u64()))
    };
    let describe = ["topic", "describe", "orders"];
    let described = cluster.wait_lockstep_json("every partition has a leader", &describe, is_led).await;
    let partitions = described["partitions"].as_array().expect("partitions");
    assert_eq!(partitions.len(), 4);
    assert!(partitions.iter().all(|partition| partition["end"] == 0), "{described}");
    assert!(stdout_of(&cluster.lockstep(&["topic", "describe", "orders"], "").await).contains("orders"));

    // Whoever reads the output may have seen enough of it: `lockstep topic describe orders | head -1`.
    let brokers = cluster.brokers();
    let mut unread = Command::new(lockstep_binary())
        .args(["--brokers", &brokers, "topic", "describe", "orders"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("lockstep can be started");
    drop(unread.stdout.take());
    let unread = unread.wait_with_output().expect("lockstep ends");
    assert_eq!((unread.status.code(), String::from_utf8_lossy(&unread.stderr).as_ref()), (Some(0), ""));

    stdout_of(&cluster.lockstep(&["topic", "delete", "orders"], "").await);
    wait_for_nothing(&cluster, "topic").await;
    let gone = cluster.lockstep(&["topic", "describe", "orders"], "").await;
    assert_eq!(gone.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_go_in_and_come_out() {
    let cluster = Cluster::start(3).await;
    stdout_of(&cluster.lockstep(&["topic", "create", "lines", "--partitions", "3"], "").await);
    let lines: Vec<String> = (0..LINES).map(|number| format!("key{}=line {number}", number % 50)).collect();
    let input = lines.join("\n") + "\n";
    let produced =
        cluster.lockstep(&["produce", "lines", "--key-separator", "=", "--compression", "zstd"], input).await;
    stdout_of(&produced);
    let told = String::from_utf8_lossy(&produced.stderr).into_owned();
    assert!(told.contains(&format!("{LINES} messages")), "{told}");

    let format = ["--from-beginning", "--exit-at-end", "--format", "%k=%v\\n"];
    let alone = stdout_of(&cluster.lockstep(&[&["consume", "lines"], &format[..]].concat(), "").await);
    assert_lines(&alone, &lines);
    let grouped = [&["consume", "lines", "--group", "scripts"], &format[..]].concat();
    let in_group = stdout_of(&cluster.lockstep(&grouped, "").await);
    assert_lines(&in_group, &lines);
    // All of it is committed: the group is given nothing twice.
    let more = stdout_of(&cluster.lockstep(&["produce", "lines", "--key-separator", "="], "key1=one more\n").await);
    assert_eq!(more, "");
    let next = [&["consume", "lines", "--group", "scripts", "--count", "1"], &format[2..]].concat();
    assert_eq!(stdout_of(&cluster.lockstep(&next, "").await), "key1=one more\n");
}

/// The same lines, those of each key in the order in which they went in.
fn assert_lines(output: &str, lines: &[String]) {
    assert_eq!(output.lines().count(), lines.len());
    let by_key = |mut lines: Vec<&str>| {
        lines.sort_by_key(|line| line.split_once('=').map(|(key, _)| key.to_owned()));
        lines.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(by_key(output.lines().collect()), by_key(lines.iter().map(String::as_str).collect()));
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_listed_and_described() {
    let cluster = Cluster::start(3).await;
    stdout_of(&cluster.lockstep(&["topic", "create", "jobs", "--partitions", "2"], "").await);
    stdout_of(&cluster.lockstep(&["produce", "jobs"], "a\nb\nc\nd\n").await);
    let consumed =
        cluster.lockstep(&["consume", "jobs", "--group", "workers", "--from-beginning", "--exit-at-end"], "").await;
    assert_eq!(stdout_of(&consumed).lines().count(), 4);
    let is_there = |listed: &Value| listed.as_array().is_some_and(|groups| !groups.is_empty());
    let listed = cluster.wait_lockstep_json("the group is listed", &["group", "list"], is_there).await;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!((&listed[0]["group_id"], &listed[0]["state"]), (&Value::from("workers"), &Value::from("Empty")));

    let is_known = |described: &Value| {
        described["offsets"].as_array().is_some_and(|rows| rows.iter().all(|row| row["lag"].is_i64()))
    };
    let describe = ["group", "describe", "workers"];
    let described = cluster.wait_lockstep_json("the lag in every partition is known", &describe, is_known).await;
    let offsets = described["offsets"].as_array().expect("offsets");
    let sum = |field: &str| offsets.iter().filter_map(|offset| offset[field].as_i64()).sum::<i64>();
    assert_eq!((sum("committed"), sum("end"), sum("lag")), (4, 4, 0), "{described}");
    assert!(stdout_of(&cluster.lockstep(&["group", "describe", "workers"], "").await).contains("workers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_status_names_nodes_and_shards() {
    let cluster = Cluster::start(3).await;
    // A node that answers too late is not there for a moment, and a shard may have no leader for one.
    let is_whole = |status: &Value| {
        let all = |what: &str, right: &dyn Fn(&Value) -> bool| {
            status[what].as_array().is_some_and(|all| all.iter().all(right))
        };
        all("nodes", &|node| node["alive"] == true) && all("shards", &|shard| shard["leader"].is_u64())
    };
    let status = cluster.wait_lockstep_json("the cluster is whole", &["cluster", "status"], is_whole).await;
    let nodes = status["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 3);
    for (node, id) in nodes.iter().zip(cluster.ids()) {
        assert_eq!((&node["id"], &node["alive"]), (&Value::from(id), &Value::from(true)));
        assert_eq!(node["address"], cluster.address(id));
    }
    let shards = status["shards"].as_array().expect("shards");
    assert_eq!(shards.len(), usize::from(tests::cluster::SHARDS));
    for shard in shards {
        for field in ["id", "leader", "term", "voters", "learners", "role", "applied", "digest"] {
            assert!(!shard[field].is_null(), "{field} is missing in {shard}");
        }
        assert_eq!(shard["voters"].as_array().map(Vec::len), Some(3));
    }
    let table = stdout_of(&cluster.lockstep(&["cluster", "status"], "").await);
    assert!(cluster.ids().all(|id| table.contains(&cluster.address(id))), "{table}");

    let nowhere = ["--brokers", "127.0.0.1:1", "--timeout", "2s", "topic", "list"];
    let nobody = run(lockstep_binary(), &nowhere, Vec::new(), PATIENCE).await;
    assert_eq!(nobody.status.code(), Some(1));
}

/// A measurement waits for the disk more than a thousand times: it may be slow, and how quick it is no test asks.
const BENCH_PATIENCE: Duration = Duration::from_secs(300);

/// Runs a measurement with small numbers.
async fn bench(cluster: &Cluster, arguments: &[&str]) -> Value {
    let floor_dir = cluster.directory().to_str().expect("a path of plain text");
    let all = [&["bench"], arguments, &["--floor-dir", floor_dir]].concat();
    cluster.lockstep_json_within(BENCH_PATIENCE, &all).await
}

/// Waits until no `topic`, or no `group`, is there any more. Whichever broker is asked may hear of it a moment later.
async fn wait_for_nothing(cluster: &Cluster, what: &str) {
    let is_empty = |listed: &Value| listed.as_array().is_some_and(Vec::is_empty);
    cluster.wait_lockstep_json("nothing is left", &[what, "list"], is_empty).await;
}

async fn bench_group(cluster: &Cluster, arguments: &[&str]) -> Value {
    bench(cluster, &[&["group"], arguments].concat()).await
}

fn process_ids(cluster: &Cluster) -> String {
    cluster.ids().map(|id| cluster.process_id(id).to_string()).collect::<Vec<_>>().join(",")
}

#[tokio::test(flavor = "multi_thread")]
async fn producing_and_consuming_are_measured() {
    let cluster = Cluster::start(3).await;
    let processes = process_ids(&cluster);
    let many = ["produce", "--producers", "4", "--in-flight", "8", "--batch-size", "1", "--count", "100"];
    let more = ["--partitions", "3", "--throughput-floor", "--broker-pids", &processes];
    let report = bench(&cluster, &[&many[..], &more].concat()).await;
    assert_eq!((&report["records"], &report["ended_by"]), (&Value::from(100), &Value::from("records")), "{report}");
    assert_eq!(report["producers"], 4, "{report}");
    assert_eq!(report["broker_cpu_percent_each"].as_object().map(serde_json::Map::len), Some(3), "{report}");
    for part in ["disk", "majority", "round_trip"] {
        assert!(report["floor"][part]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{part} in {report}");
    }
    for field in ["replicated_records_per_second", "loopback_megabytes_per_second"] {
        assert!(report["throughput_floor"][field].as_f64().is_some_and(|rate| rate > 1.0), "{field} in {report}");
    }
    assert!(report["share_of_replicated"].as_f64().is_some_and(|share| share > 0.0), "{report}");
    let short = ["produce", "--count", "1000000000", "--seconds", "1", "--in-flight", "1"];
    let ended = bench(&cluster, &short).await;
    assert_eq!(ended["ended_by"], "seconds", "{ended}");
    assert!(ended["throughput_floor"].is_null(), "not a run of throughput: {ended}");
    let consume = ["consume", "--records", "500", "--partitions", "3", "--rounds", "2"];
    let read = bench(&cluster, &[&consume[..], &["--broker-pids", &processes]].concat()).await;
    assert_eq!((&read["records"], &read["ended_by"]), (&Value::from(1_000), &Value::from("rounds")), "{read}");
    for field in ["megabytes_per_second", "loopback_megabytes_per_second", "share_of_loopback"] {
        assert!(read[field].as_f64().is_some_and(|rate| rate > 0.0), "{field} in {read}");
    }
    assert!(read["wait"]["p99_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{read}");
    assert!(read["floor"]["round_trip"]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{read}");
    assert_eq!(read["broker_cpu_percent_each"].as_object().map(serde_json::Map::len), Some(3), "{read}");
    let endless = bench(&cluster, &["consume", "--records", "500", "--rounds", "1000000000", "--seconds", "1"]).await;
    assert_eq!(endless["ended_by"], "seconds", "{endless}");
    let files = std::fs::read_dir(cluster.directory()).expect("a directory").flatten();
    let left: Vec<_> =
        files.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert!(left.is_empty(), "what the disk was measured with is left behind: {left:?}");
    let refused = cluster.lockstep(&["bench", "produce", "--producers", "2", "--in-flight", "1"], "").await;
    assert_eq!(refused.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_partitions_and_the_machine_are_measured() {
    let cluster = Cluster::start(3).await;
    let sizes = ["--partitions", "25", "--partitions-per-topic", "10", "--seconds", "1"];
    let processes = process_ids(&cluster);
    let idle = [&["cluster"], &sizes[..], &["--single-records", "20", "--broker-pids", &processes]].concat();
    let report = bench(&cluster, &idle).await;
    for when in ["before", "after"] {
        let resident = report[when]["resident_bytes_each"].as_object().expect("memory of each broker");
        assert_eq!(resident.len(), 3, "{report}");
        assert!(resident.values().all(|bytes| bytes.as_u64().is_some_and(|bytes| bytes > 1 << 20)), "{report}");
    }
    for when in ["single_records_before", "single_records_after"] {
        assert_eq!(report[when]["records"], 20, "{report}");
        assert!(report[when]["acknowledgement"]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
    }
    assert!(report["floor"]["majority"]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
    wait_for_nothing(&cluster, "topic").await;
    let floor = bench(&cluster, &["floor"]).await;
    for field in ["replicated_records_per_second", "loopback_megabytes_per_second"] {
        assert!(floor[field].as_f64().is_some_and(|rate| rate > 1.0), "{field} in {floor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_groups_rebalances_are_measured() {
    let cluster = Cluster::start(3).await;
    let sizes = ["scale", "--members", "9", "--partitions", "30", "--heartbeat", "200ms", "--connections", "4"];
    let report = bench_group(&cluster, &[&sizes[..], &["--rounds", "2"]].concat()).await;
    for field in ["owned_twice", "fenced"] {
        assert_eq!(report[field], 0, "{field} in {report}");
    }
    let steps = report["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 4, "{report}");
    for step in steps {
        assert!(step["reconciled_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{step}");
        assert!(step["partitions"].as_u64().is_some_and(|partitions| (3..=4).contains(&partitions)), "{step}");
        assert_eq!(step["taken_needlessly"], 0, "{step}");
    }
    assert!(report["floor"]["disk"]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
    wait_for_nothing(&cluster, "group").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_heartbeats_cost_is_measured() {
    let cluster = Cluster::start(3).await;
    let processes = process_ids(&cluster);
    let sizes = ["heartbeats", "--members", "30", "--groups", "5", "--connections", "6", "--partitions", "12"];
    let time = ["--heartbeat", "200ms", "--seconds", "2", "--broker-pids", &processes];
    let report = bench_group(&cluster, &[&sizes[..], &time].concat()).await;
    assert_eq!(report["false_expiries"], 0, "{report}");
    assert!(report["heartbeats"].as_u64().is_some_and(|heartbeats| heartbeats >= 30), "{report}");
    assert_eq!(report["broker_cpu_percent_each"].as_object().map(serde_json::Map::len), Some(3), "{report}");
    let entries = report["entries_per_second"].as_object().expect("entries by shard");
    assert_eq!(entries.len(), usize::from(tests::cluster::SHARDS), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_and_commits_are_measured() {
    let cluster = Cluster::start(3).await;
    let processes = process_ids(&cluster);
    let joins = bench_group(&cluster, &["join", "--rounds", "5", "--partitions", "6"]).await;
    assert_eq!(joins["rounds"], 5, "{joins}");
    assert!(joins["assigned"]["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{joins}");
    for (in_flight, connections) in [("1", 1), ("40", 6)] {
        let sizes = ["commit", "--in-flight", in_flight, "--connections", "6", "--groups", "7", "--partitions", "6"];
        let commits =
            bench_group(&cluster, &[&sizes[..], &["--seconds", "1", "--broker-pids", &processes]].concat()).await;
        assert_eq!(commits["connections"], connections, "{commits}");
        assert_eq!(commits["broker_cpu_percent_each"].as_object().map(serde_json::Map::len), Some(3), "{commits}");
        // The coordinator may move, as clients know.
        let moving = ["NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS"];
        let refusal = commits["refusal"].as_str();
        assert!(refusal.is_none_or(|refusal| moving.contains(&refusal)), "{commits}");
        assert!(commits["commits_per_second"].as_f64().is_some_and(|rate| rate > 1.0), "{commits}");
    }
}
