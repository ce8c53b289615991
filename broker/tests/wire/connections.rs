//! What a broker does with connections and frames, whoever sends them.

use std::time::Duration;

use crate::groups::commit;
use crate::support::{TestBroker, batch, produce};
use lockstep_broker::{Broker, BrokerConfig};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::codec::ApiVersionsRequest;
use lockstep_wire::frame::encode_request;
use lockstep_wire::{ApiKey, Request, Response};
use tokio::io::AsyncWriteExt;

fn introduction() -> ApiVersionsRequest {
    ApiVersionsRequest::default().with_client_software_name("test".into()).with_client_software_version("1.0".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_every_served_version_is_answered_in_that_version() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    for &api_key in ApiKey::ALL {
        for version in api_key.versions().iter() {
            // Shown when the test fails.
            println!("{} {version}", api_key.name());
            let mut request = Request::default_of(api_key);
            if let Request::Produce(produce) = &mut request {
                // Without acknowledgement there would be no answer.
                produce.acks = 1;
            }
            let id = client.send_request(version, &request).await;
            let answer = client.receive(api_key, version).await;
            let (correlation_id, response) =
                answer.unwrap_or_else(|| panic!("{} {version} closed the connection", api_key.name()));
            assert_eq!((correlation_id, response.api_key()), (id, api_key));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_different_kinds_that_come_at_once_are_answered_in_order() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    let mut frames = Vec::new();
    let mut expected = Vec::new();
    for id in 0..150 {
        let (version, request): (i16, Request) = match id % 5 {
            0 => (3, introduction().into()),
            1 => (9, produce("t", 0, -1, batch(&["record"])).into()),
            _ => (8, commit(&format!("g{}", id % 3), "", -1, id % 2, i64::from(id)).into()),
        };
        let frame = encode_request(version, id, Some("test"), &request).expect("encoded");
        frames.extend_from_slice(&frame.into_bytes());
        expected.push((id, request.api_key(), version));
    }
    // What was asked before is answered, although these eight bytes of an unknown request end the connection.
    frames.extend_from_slice(&[0, 0, 0, 8, 0x70, 0, 0, 0, 0, 0, 0, 0]);
    client.stream.write_all(&frames).await.expect("written");
    for (id, api_key, version) in expected {
        let (answered, response) = client.receive(api_key, version).await.expect("an answer");
        assert_eq!(answered, id);
        if let Response::OffsetCommit(response) = response {
            assert_eq!(response.topics[0].partitions[0].error_code, 0);
        }
    }
    assert!(client.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_version_of_api_versions_is_answered_in_version_0() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    // Length, key 18, version 99, correlation id 7, and a body nobody knows.
    client.stream.write_all(&[0, 0, 0, 12, 0, 18, 0, 99, 0, 0, 0, 7, 1, 2, 3, 4]).await.expect("write");
    let (correlation_id, response) = client.receive(ApiKey::ApiVersions, 0).await.expect("an answer");
    let Response::ApiVersions(response) = response else { panic!("another response") };
    assert_eq!((correlation_id, response.error_code), (7, 35));
    // The connection lives on: the client asks again in a version that it has found in the answer.
    assert_eq!(client.call(3, introduction()).await.error_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_frame_ends_its_connection_and_no_other() {
    let broker = TestBroker::start().await;
    let mut other = broker.connect().await;
    assert_eq!(other.call(3, introduction()).await.error_code, 0);
    for (what, bytes) in [
        ("a negative length", &[0xff, 0xff, 0xff, 0xff, 0, 18, 0, 3, 0, 0, 0, 1][..]),
        ("a length of nothing", &[0, 0, 0, 0, 0, 18, 0, 3, 0, 0, 0, 1]),
        ("a gigabyte", &[0x40, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1]),
        ("a first frame above 64 KiB", &[0, 1, 0, 1, 0, 0, 0, 9, 0, 0, 0, 1]),
        ("an unknown request", &[0, 0, 0, 8, 0x70, 0, 0, 0, 0, 0, 0, 1]),
        ("a version that is not served", &[0, 0, 0, 8, 0, 3, 0, 99, 0, 0, 0, 1]),
        ("a header that is cut off", &[0, 0, 0, 9, 0, 3, 0, 9, 0, 0, 0, 1, 0x7f]),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (
            "an array of two thousand million elements",
            &[0, 0, 0, 16, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0, 0],
        ),
    ] {
        let mut client = broker.connect().await;
        client.stream.write_all(bytes).await.expect("write");
        assert!(client.is_closed().await, "{what} was answered");
        assert_eq!(other.call(3, introduction()).await.error_code, 0, "after {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_above_the_limit_are_closed_and_room_is_found_again() {
    let broker = TestBroker::start_with(|config| config.connections_max = 1).await;
    let mut first = broker.connect().await;
    assert_eq!(first.call(3, introduction()).await.error_code, 0);
    assert!(broker.connect().await.is_closed().await);
    drop(first);
    let found_room = async {
        loop {
            let mut client = broker.connect().await;
            client.send(3, introduction()).await;
            if client.receive_frame().await.is_some() {
                return;
            }
        }
    };
    lockstep_env::timeout::<TokioEnv, _>(crate::support::PATIENCE, found_room).await.expect("room");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed() {
    let broker = TestBroker::start_with(|config| config.idle_timeout = Duration::from_millis(50)).await;
    assert!(broker.connect().await.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let broker = TestBroker::start().await;
    let port = broker.broker.address().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("port");
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut config = BrokerConfig::single(directory.path());
    config.port = port;
    let error = Broker::start(TokioEnv::new(), config.clone()).await.expect_err("in use").naming_field(&config);
    assert!(error.starts_with(&format!("server.port: cannot listen on localhost:{port}: ")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_named() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().to_owned();
    let _broker = TestBroker::start_with(|config| {
        let single = BrokerConfig::single(&path);
        config.node.data_dir = single.node.data_dir;
        config.node.raft_dir = single.node.raft_dir;
    })
    .await;
    let mut config = BrokerConfig::single(&path);
    config.port = 0;
    let error = Broker::start(TokioEnv::new(), config.clone()).await.expect_err("in use").naming_field(&config);
    assert!(error.starts_with("config.data_dir: ") && error.contains("in use"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stops_closes_its_connections() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    assert_eq!(client.call(3, introduction()).await.error_code, 0);
    broker.broker.shutdown().await;
    assert!(client.is_closed().await);
}
