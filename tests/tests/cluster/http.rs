//! Health and metrics over HTTP.

use lockstep_client::{Admin, NewTopic};
use tests::{Cluster, Load, PATIENCE, Readers, Recorder, wait_until, wait_until_ok};

/// Names and values of a text in Prometheus' format; panics where it is none.
fn samples(text: &str) -> Vec<(String, String, f64)> {
    let mut samples = Vec::new();
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name_and_labels, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?} has no value"));
        let (name, labels) = name_and_labels.split_once('{').unwrap_or((name_and_labels, ""));
        let is_name =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':');
        assert!(!name.is_empty() && is_name(name), "{line:?} has no name");
        let value = value.parse().unwrap_or_else(|_| panic!("{line:?} has no number"));
        samples.push((name.to_owned(), labels.trim_end_matches('}').to_owned(), value));
    }
    samples
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_healthy_while_it_runs_and_ready_while_it_can_serve() {
    let mut cluster = Cluster::start(3).await;
    for id in cluster.ids() {
        let health = cluster.http_get(id, "/healthz").await.expect("answered");
        assert_eq!(health.status, 200, "{health:?}");
        let status = wait_until("the node is ready", PATIENCE, || async {
            cluster.http_get(id, "/readyz").await.map(|ready| ready.status).filter(|status| *status == 200)
        })
        .await;
        assert_eq!(status, 200);
        assert_eq!(cluster.http_get(id, "/nothing-here").await.expect("answered").status, 404);
    }
    cluster.kill9(2);
    cluster.kill9(3);
    wait_until("a node without a majority is not ready", PATIENCE, || async {
        cluster.http_get(1, "/readyz").await.filter(|ready| ready.status == 503)
    })
    .await;
    assert_eq!(cluster.http_get(1, "/healthz").await.expect("answered").status, 200, "it runs all the same");
    cluster.restart(2);
    wait_until("with a majority it is ready again", PATIENCE, || async {
        cluster.http_get(1, "/readyz").await.filter(|ready| ready.status == 200)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_leaders_groups_commits_and_nodes() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new("measured", 3)).await.expect("created");
    let recorder = Recorder::new(env!("CARGO_TARGET_TMPDIR"), "http-metrics");
    let readers = Readers::start(&recorder, &cluster, "measurers", "measured", 1).await;
    let load = Load::start(&recorder, &client, "measured", "load");
    wait_until("messages are read", PATIENCE, || async { (readers.delivered() >= 100).then_some(()) }).await;
    wait_until("something is committed", PATIENCE, || async { (readers.commits() > 0).then_some(()) }).await;

    let shards = f64::from(tests::cluster::SHARDS);
    // Each node is asked at another moment: between two of them leadership may move, and a node be missed for a moment.
    wait_until_ok("the metrics of all nodes are those of one cluster", PATIENCE, || async {
        let mut all = Vec::new();
        for id in cluster.ids() {
            let metrics = cluster.http_get(id, "/metrics").await.ok_or_else(|| format!("node {id} does not answer"))?;
            assert_eq!(metrics.status, 200);
            assert!(metrics.head.contains("content-type: "), "{}", metrics.head);
            let samples = samples(&metrics.body);
            assert!(!samples.is_empty(), "node {id} has no metrics");
            all.extend(samples);
        }
        let is = |suffix: &str, label: &str, right: &dyn Fn(f64) -> bool| {
            let found: Vec<f64> = all
                .iter()
                .filter(|(name, labels, _)| name.ends_with(suffix) && labels.contains(label))
                .map(|sample| sample.2)
                .collect();
            let sum = found.iter().sum();
            if !found.is_empty() && right(sum) { Ok(()) } else { Err(format!("{suffix} with {label}: {found:?}")) }
        };
        let about = |expected: f64| move |sum: f64| (sum - expected).abs() < 0.5;
        is("raft_role", "role=\"leader\"", &about(shards))?;
        is("groups", "type=\"consumer\"", &|count| count >= 1.0)?;
        is("group_members", "", &|count| count >= 1.0)?;
        is("request_duration_seconds_count", "api=\"OffsetCommit\"", &|count| count >= 1.0)?;
        for id in cluster.ids() {
            is("node_alive", &format!("node=\"{id}\""), &about(3.0))?;
        }
        Ok::<_, String>(())
    })
    .await;
    load.finish().await;
    readers.finish().await;
}
