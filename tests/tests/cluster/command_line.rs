//! `lockstep`, as a script would use it.

use serde_json::Value;
use tests::cli::{run, stdout_of};
use tests::{Cluster, PATIENCE, lockstep_binary, wait_until};

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

    let listed = cluster.lockstep_json(&["topic", "list"]).await;
    assert_eq!((&listed[0]["name"], &listed[0]["partitions"]), (&Value::from("orders"), &Value::from(4)));
    assert_eq!(listed[0]["replication"], 3);
    let described = cluster.lockstep_json(&["topic", "describe", "orders"]).await;
    let partitions = described["partitions"].as_array().expect("partitions");
    assert_eq!(partitions.len(), 4);
    assert!(partitions.iter().all(|partition| partition["end"] == 0 && partition["leader"].is_u64()), "{described}");
    assert!(stdout_of(&cluster.lockstep(&["topic", "describe", "orders"], "").await).contains("orders"));

    stdout_of(&cluster.lockstep(&["topic", "delete", "orders"], "").await);
    wait_until("the topic is gone", PATIENCE, || async {
        let listed = cluster.lockstep_json(&["topic", "list"]).await;
        listed.as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
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
    let listed = cluster.lockstep_json(&["group", "list"]).await;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!((&listed[0]["group_id"], &listed[0]["state"]), (&Value::from("workers"), &Value::from("Empty")));

    let described = cluster.lockstep_json(&["group", "describe", "workers"]).await;
    let offsets = described["offsets"].as_array().expect("offsets");
    let sum = |field: &str| offsets.iter().filter_map(|offset| offset[field].as_i64()).sum::<i64>();
    assert_eq!((sum("committed"), sum("end"), sum("lag")), (4, 4, 0), "{described}");
    assert!(stdout_of(&cluster.lockstep(&["group", "describe", "workers"], "").await).contains("workers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_status_names_nodes_and_shards() {
    let cluster = Cluster::start(3).await;
    let status = cluster.lockstep_json(&["cluster", "status"]).await;
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
