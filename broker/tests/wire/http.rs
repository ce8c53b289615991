//! The HTTP side: metrics, health and readiness.

use crate::support::{PATIENCE, TestBroker, metadata};
use lockstep_broker::{Broker, BrokerConfig};
use lockstep_env::timeout;
use lockstep_env::tokio_env::TokioEnv;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn start() -> TestBroker {
    TestBroker::start_with(|config| config.http_port = Some(0)).await
}

async fn connect(broker: &Broker<TokioEnv>) -> TcpStream {
    TcpStream::connect(broker.http_address().expect("an HTTP side")).await.expect("connect")
}

/// Sends these bytes and returns all that comes back.
async fn exchange(broker: &Broker<TokioEnv>, request: &[u8]) -> String {
    let mut stream = connect(broker).await;
    // The broker may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..read]);
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, reading).await.expect("the connection is closed after its answer");
    String::from_utf8(answer).expect("text")
}

pub(crate) async fn get(broker: &Broker<TokioEnv>, path: &str) -> (u16, String) {
    let answer = exchange(broker, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

/// Waits until a page says what is expected.
async fn get_until(broker: &Broker<TokioEnv>, path: &str, expected: impl Fn(u16, &str) -> bool) -> String {
    let waiting = async {
        loop {
            let (status, body) = get(broker, path).await;
            if expected(status, &body) {
                return body;
            }
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, waiting).await.expect("the page says it in time")
}

/// The value of a line of `/metrics`.
fn value(metrics: &str, line: &str) -> Option<f64> {
    metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_serves_is_healthy_and_ready() {
    let broker = start().await;
    assert_eq!(get(&broker.broker, "/healthz").await, (200, "ok\n".to_owned()));
    get_until(&broker.broker, "/readyz", |status, body| status == 200 && body == "ready\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_clients_do() {
    let broker = start().await;
    broker.create_topic("t", 3).await;
    let mut client = broker.connect().await;
    for _ in 0..3 {
        client.call(9, metadata(&["t"], false)).await;
    }
    let metadata_count = "lockstep_request_duration_seconds_count{api=\"Metadata\"}";
    let metrics =
        get_until(&broker.broker, "/metrics", |_, body| value(body, metadata_count).is_some_and(|count| count >= 3.0))
            .await;
    for (line, least) in [
        ("lockstep_connections ", 1.0),
        ("lockstep_connections_accepted_total ", 2.0),
        ("lockstep_received_bytes_total ", 100.0),
        ("lockstep_sent_bytes_total ", 100.0),
        ("lockstep_disk_free_bytes ", 1.0),
        ("lockstep_raft_role{shard=\"0\",role=\"leader\"} ", 1.0),
        ("lockstep_raft_serving{shard=\"1\"} ", 1.0),
        ("lockstep_raft_term{shard=\"0\"} ", 1.0),
        ("lockstep_raft_leader_id{shard=\"0\"} ", 1.0),
        ("lockstep_applied_index{shard=\"0\"} ", 1.0),
        ("lockstep_node_alive{node=\"1\"} ", 1.0),
        ("lockstep_topics ", 1.0),
        ("lockstep_partitions ", 3.0),
        ("lockstep_segments_found_damaged_total ", 0.0),
        ("lockstep_segments_repaired_total ", 0.0),
        ("lockstep_groups{type=\"classic\",state=\"Stable\"} ", 0.0),
        ("lockstep_group_members{type=\"consumer\"} ", 0.0),
        ("lockstep_journal_sync_duration_seconds_count ", 1.0),
        ("lockstep_journal_sync_duration_seconds_bucket{le=\"+Inf\"} ", 1.0),
    ] {
        let found = value(&metrics, line);
        assert!(found.is_some_and(|value| value >= least), "{line}{found:?}, expected {least} or more:\n{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"), "OpenMetrics ends with a mark");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_no_cluster_yet_is_healthy_but_not_ready() {
    let lonely = TestBroker::start_without_peers().await;
    let broker = &lonely.broker;
    assert_eq!(get(broker, "/healthz").await.0, 200);
    assert_eq!(get(broker, "/readyz").await, (503, "the cluster has not been formed yet\n".to_owned()));
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_is_refused() {
    let broker = start().await;
    let broker = &broker.broker;
    assert_eq!(get(broker, "/").await.0, 404);
    assert!(
        exchange(broker, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.contains(" 405 ")
    );
    let head = exchange(broker, b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.contains(" 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    let mut large = b"GET /healthz HTTP/1.1\r\n".to_vec();
    for number in 0..40 {
        large.extend_from_slice(format!("X-{number}: {}\r\n", "x".repeat(1_000)).as_bytes());
    }
    large.extend_from_slice(b"\r\n");
    let refused = exchange(broker, &large).await;
    assert!(refused.is_empty() || refused.contains(" 431 "), "{refused}");
    let refused = exchange(broker, &[0, 0, 0, 9, 0, 3, 0, 9, 0, 0, 0, 1, b'\r', b'\n', b'\r', b'\n']).await;
    assert!(refused.is_empty() || refused.contains(" 400 "), "{refused}");
    assert_eq!(get(broker, "/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_do_not_pile_up() {
    let broker = start().await;
    let mut silent = Vec::new();
    // The broker closes those for which it has no room at once, and keeps the others for a while.
    let closed_at_once = async {
        loop {
            let mut stream = connect(&broker.broker).await;
            let closed = timeout::<TokioEnv, _>(std::time::Duration::from_millis(100), stream.read(&mut [0; 1])).await;
            if matches!(closed, Ok(Ok(0) | Err(_))) {
                return;
            }
            silent.push(stream);
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, closed_at_once).await.expect("a bound on connections");
    drop(silent);
    // The broker itself does not care.
    broker.connect().await.call(9, metadata(&[], false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stopped_has_no_http_side() {
    let broker = start().await;
    let address = broker.broker.http_address().expect("an HTTP side");
    broker.broker.shutdown().await;
    let closed = async { while TcpStream::connect(&address).await.is_ok() {} };
    timeout::<TokioEnv, _>(PATIENCE, closed).await.expect("the port is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_port_in_use_is_named() {
    let broker = start().await;
    let address = broker.broker.http_address().expect("an HTTP side");
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("port");
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut config = BrokerConfig::single(directory.path());
    config.port = 0;
    config.http_port = Some(port);
    let error = Broker::start(TokioEnv::new(), config.clone()).await.expect_err("in use").naming_field(&config);
    assert!(error.starts_with(&format!("server.http_port: cannot listen on 127.0.0.1:{port}: ")), "{error}");
}
