//! Groups as an operator sees them: any node tells the same, and what is past is told by none.

use std::collections::BTreeMap;

use lockstep_client::{Admin, GroupConsumer, GroupConsumerConfig};
use lockstep_wire::private::{GroupLag, GroupLagRequest, GroupTimeline, GroupTimelineRequest};
use serde_json::Value;
use tests::cli::{run, stdout_of};
use tests::{Cluster, PATIENCE, WireConnection, lockstep_binary, wait_until, wait_until_ok};

const GROUP: &str = "workers";
const LEADER_NOT_AVAILABLE: i16 = 5;
const COORDINATOR_NOT_AVAILABLE: i16 = 15;

/// A topic of two partitions with ten messages, which the group has read.
async fn read_ten(cluster: &Cluster) {
    stdout_of(&cluster.lockstep(&["topic", "create", "jobs", "--partitions", "2"], "").await);
    let lines: String = (0..10).map(|number| format!("key{number}=job {number}\n")).collect();
    stdout_of(&cluster.lockstep(&["produce", "jobs", "--key-separator", "="], lines).await);
    let consume = ["consume", "jobs", "--group", GROUP, "--from-beginning", "--exit-at-end"];
    assert_eq!(stdout_of(&cluster.lockstep(&consume, "").await).lines().count(), 10);
}

/// The node that coordinates the group.
async fn coordinator(cluster: &Cluster) -> u64 {
    let described = cluster.lockstep_json(&["group", "describe", GROUP]).await;
    cluster.node_at(described["coordinator"].as_str().expect("an address"))
}

/// What this very node tells, unless it says that it does not know.
async fn told_by(cluster: &Cluster, id: u64) -> Option<(GroupTimeline, GroupLag)> {
    let mut connection = WireConnection::connect(&cluster.address(id)).await.ok()?;
    let timeline = connection.call(0, GroupTimelineRequest { group_id: GROUP.to_owned() }).await.ok()?;
    let lag = connection.call(0, GroupLagRequest { groups: vec![GROUP.to_owned()] }).await.ok()?;
    assert_eq!(lag.error_code, 0);
    let lag: Vec<GroupLag> = serde_json::from_slice(&lag.json).expect("JSON");
    let lag = lag.into_iter().next().expect("the group");
    for code in [timeline.error_code, lag.error_code] {
        assert!(code == 0 || code == COORDINATOR_NOT_AVAILABLE, "error {code}");
    }
    if timeline.error_code != 0 || lag.error_code != 0 {
        return None;
    }
    for partition in &lag.partitions {
        assert!([0, LEADER_NOT_AVAILABLE].contains(&partition.error_code), "{partition:?}");
    }
    if lag.partitions.iter().any(|partition| partition.error_code != 0) {
        return None;
    }
    let timeline = serde_json::from_slice(&timeline.json).expect("JSON");
    let lag = GroupLag {
        partitions: lag
            .partitions
            .into_iter()
            .map(|mut partition| {
                // Time goes on.
                partition.lag_ms = partition.lag_ms.filter(|lag_ms| *lag_ms == 0);
                partition
            })
            .collect(),
        ..lag
    };
    Some((timeline, lag))
}

/// The same, with patience until it knows. It must never tell what is past: `committed` is what each partition's offset is now.
async fn told_now_by(cluster: &Cluster, id: u64, committed: i64) -> (GroupTimeline, GroupLag) {
    let told = wait_until("the node answers", PATIENCE, || told_by(cluster, id)).await;
    let offsets: Vec<i64> = told.1.partitions.iter().map(|partition| partition.committed).collect();
    assert_eq!(offsets, [committed; 2], "node {id} tells what is past");
    told
}

/// Runs the command line with one node to begin with.
async fn lockstep_at(cluster: &Cluster, id: u64, arguments: &[&str]) -> Value {
    let address = cluster.address(id);
    let all = [&["--brokers", &address, "group"], arguments, &[GROUP, "--json"]].concat();
    let printed = stdout_of(&run(lockstep_binary(), &all, Vec::new(), PATIENCE).await);
    let mut told: Value = serde_json::from_str(&printed).expect("JSON");
    // Time goes on, and who coordinates may change.
    for field in ["lag_ms", "coordinator"] {
        told.as_object_mut().expect("an object").remove(field);
    }
    for offset in told.get_mut("offsets").and_then(Value::as_array_mut).into_iter().flatten() {
        offset.as_object_mut().expect("an object").remove("lag_ms");
    }
    told
}

/// What the command line describes, once every partition that the group has read has a leader.
async fn described_by(cluster: &Cluster, id: u64) -> Value {
    wait_until_ok("the lag in every partition is known", PATIENCE, || async {
        let described = lockstep_at(cluster, id, &["describe"]).await;
        let is_known = described["offsets"].as_array().is_some_and(|rows| rows.iter().all(|row| row["lag"].is_i64()));
        if is_known { Ok(described) } else { Err(described) }
    })
    .await
}

async fn reset_to(cluster: &Cluster, offset: i64) {
    let reset = cluster.lockstep_json(&["group", "reset", GROUP, "--to", &offset.to_string()]).await;
    let news: Vec<_> = reset["offsets"].as_array().expect("offsets").iter().map(|one| one["new"].as_i64()).collect();
    assert_eq!(news, [Some(offset); 2], "{reset}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_tells_the_same_right_after_a_change_whatever_happened_to_it() {
    let mut cluster = Cluster::start(3).await;
    read_ten(&cluster).await;
    let told = async |id| wait_until("the node answers", PATIENCE, || told_by(&cluster, id)).await;
    let first = told(1).await;
    for id in cluster.ids() {
        assert_eq!(told(id).await, first, "node {id}");
        let explained = lockstep_at(&cluster, id, &["explain"]).await;
        assert_eq!(explained, serde_json::to_value(&first.0).expect("JSON"), "node {id}");
        let events: Vec<&str> = explained["events"]
            .as_array()
            .expect("events")
            .iter()
            .filter_map(|event| event["event"].as_str())
            .collect();
        assert_eq!(events.first(), Some(&"joined"), "{explained}");
        assert_eq!(events.last(), Some(&"left"), "{explained}");
        assert!(events.contains(&"assigned") && events.contains(&"settled"), "{explained}");
    }

    // A coordinator that freezes, is replaced, and goes on, has slept through a change.
    let frozen = coordinator(&cluster).await;
    cluster.sigstop(frozen);
    reset_to(&cluster, 1).await;
    cluster.sigcont(frozen);
    let told = told_now_by(&cluster, frozen, 1).await;
    for id in cluster.ids() {
        assert_eq!(told_now_by(&cluster, id, 1).await, told, "node {id}");
    }

    // The same with one that dies. The rest tell what they did, and then what is new.
    let killed = coordinator(&cluster).await;
    cluster.kill9(killed);
    let left: Vec<u64> = cluster.ids().filter(|id| *id != killed).collect();
    for &id in &left {
        assert_eq!(told_now_by(&cluster, id, 1).await, told, "node {id}");
    }
    reset_to(&cluster, 2).await;
    cluster.restart(killed);
    let described = described_by(&cluster, left[0]).await;
    for id in cluster.ids() {
        told_now_by(&cluster, id, 2).await;
        let now = described_by(&cluster, id).await;
        assert_eq!(now, described, "node {id}");
        assert_eq!(now["offsets"].as_array().map(Vec::len), Some(2));
    }
    let lag: i64 = described["offsets"].as_array().expect("offsets").iter().filter_map(|one| one["lag"].as_i64()).sum();
    assert_eq!((lag, &described["lag"]), (10 - 2 * 2, &Value::from(10 - 2 * 2)), "{described}");
    cluster.wait_whole().await;
    cluster.wait_equal_digests().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_reset_exported_imported_and_deleted() {
    let cluster = Cluster::start(3).await;
    read_ten(&cluster).await;
    let committed = async || -> BTreeMap<i64, i64> {
        let described = cluster.lockstep_json(&["group", "describe", GROUP]).await;
        let offsets = described["offsets"].as_array().expect("offsets").iter();
        offsets.map(|one| (one["partition"].as_i64().unwrap(), one["committed"].as_i64().unwrap())).collect()
    };
    let ends = committed().await;
    assert_eq!(ends.values().sum::<i64>(), 10);
    let fails = async |arguments: &[&str], input: &str, reason: &str| {
        let output = cluster.lockstep(arguments, input).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(reason), "{arguments:?}: {error}");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    };

    let exported = stdout_of(&cluster.lockstep(&["group", "export", GROUP], "").await);
    let file = cluster.directory().join("group.json");
    std::fs::write(&file, &exported).expect("written");
    let file = file.to_str().expect("a path");

    let tried = stdout_of(&cluster.lockstep(&["group", "reset", GROUP, "--to", "earliest", "--dry-run"], "").await);
    assert!(tried.contains("nothing was changed"), "{tried}");
    assert_eq!(committed().await, ends);
    let done = stdout_of(&cluster.lockstep(&["group", "reset", GROUP, "--to", "earliest"], "").await);
    let shown = |partition: i64| {
        let words = ["jobs", &partition.to_string(), &ends[&partition].to_string(), "→", "0"].map(str::to_owned);
        done.lines().any(|line| line.split_whitespace().zip(&words).filter(|(one, other)| *one == **other).count() == 5)
    };
    assert!(shown(0) && shown(1), "{done}");
    assert_eq!(committed().await, BTreeMap::from([(0, 0), (1, 0)]));
    let is_known = |listed: &Value| listed[0]["partitions_unknown"] == 0;
    let listed = cluster.wait_lockstep_json("the group's lag is known", &["group", "list", "--lag"], is_known).await;
    assert_eq!((&listed[0]["group_id"], &listed[0]["lag"]), (&Value::from(GROUP), &Value::from(10)), "{listed}");
    assert!(listed[0]["lag_ms"].as_u64().is_some_and(|lag_ms| lag_ms < 600_000), "{listed}");
    stdout_of(&cluster.lockstep(&["group", "reset", GROUP, "--to", "latest", "--topic", "jobs:1"], "").await);
    assert_eq!(committed().await, BTreeMap::from([(0, 0), (1, ends[&1])]));
    stdout_of(&cluster.lockstep(&["group", "reset", GROUP, "--to", "-1", "--topic", "jobs:1"], "").await);
    assert_eq!(committed().await, BTreeMap::from([(0, 0), (1, ends[&1] - 1)]));
    stdout_of(&cluster.lockstep(&["group", "reset", GROUP, "--to", "2020-01-01T00:00:00Z"], "").await);
    assert_eq!(committed().await, BTreeMap::from([(0, 0), (1, 0)]));
    // No record is as late.
    stdout_of(&cluster.lockstep(&["group", "reset", GROUP, "--to", "@4000000000000"], "").await);
    assert_eq!(committed().await, ends);

    stdout_of(&cluster.lockstep(&["group", "delete", GROUP], "").await);
    for command in ["describe", "explain", "delete", "export"] {
        fails(&["group", command, GROUP], "", "GROUP_ID_NOT_FOUND").await;
    }
    fails(&["group", "reset", GROUP, "--to", "latest"], "", "GROUP_ID_NOT_FOUND").await;
    stdout_of(&cluster.lockstep(&["group", "import", file, "--dry-run"], "").await);
    fails(&["group", "describe", GROUP], "", "GROUP_ID_NOT_FOUND").await;
    stdout_of(&cluster.lockstep(&["group", "import", file], "").await);
    assert_eq!(committed().await, ends);
    let again = stdout_of(&cluster.lockstep(&["group", "export", GROUP], "").await);
    assert_eq!(again, exported);
    fails(&["group", "import", "-"], "no JSON", "not a group's export").await;
    fails(&["group", "import", "-"], &exported.replace("jobs", "nowhere"), "nowhere").await;
    fails(&["group", "import", "nowhere.json"], "", "nowhere.json").await;

    // What members read is theirs.
    let client = cluster.client().await;
    let config = GroupConsumerConfig::new(GROUP, "reader", vec!["jobs".to_owned()]);
    let consumer = GroupConsumer::new(&client, config).expect("a consumer");
    consumer.join_group().await.expect("joined");
    consumer.start_heartbeat().await.expect("heartbeats");
    fails(&["group", "reset", GROUP, "--to", "earliest"], "", "NON_EMPTY_GROUP").await;
    fails(&["group", "import", file], "", "NON_EMPTY_GROUP").await;
    fails(&["group", "delete", GROUP], "", "NON_EMPTY_GROUP").await;
    let told = stdout_of(&cluster.lockstep(&["group", "explain", GROUP], "").await);
    assert!(told.contains("reader") && told.contains("joined"), "{told}");
    consumer.leave_group().await.expect("left");
    assert_eq!(Admin::new(&client).explain_group(GROUP).await.expect("explained").state, "Empty");
    assert_eq!(committed().await, ends);
}
