//! Bytes that no honest client or peer sends, on both ports of a node that goes on serving.

use std::time::Duration;

use lockstep_client::{Admin, NewTopic, Producer, ProducerConfig, ProducerRecord};
use lockstep_wire::ApiKey;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tests::{Cluster, PATIENCE, WireConnection, within};

/// Memory that a node may take for strangers: far below what the lengths they claim add up to.
const GROWTH_MAX: u64 = 192 << 20;

/// The beginning of a request: length, key, version, correlation id, no client id.
fn request_start(len: u32, api_key: i16, version: i16) -> Vec<u8> {
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend(api_key.to_be_bytes());
    bytes.extend(version.to_be_bytes());
    bytes.extend(7_i32.to_be_bytes());
    bytes.extend((-1_i16).to_be_bytes());
    bytes
}

/// One connection's worth of nonsense.
fn nonsense(random: &mut StdRng) -> Vec<u8> {
    let mut noise = vec![0; random.random_range(0..3_000)];
    random.fill_bytes(&mut noise);
    match random.random_range(0..7_u8) {
        0 => noise,
        // A frame that never comes to its end, of any length up to 4 GiB.
        1 => [random.random::<u32>().to_be_bytes().to_vec(), noise].concat(),
        2 => [(100_u32 << 20).to_be_bytes().to_vec(), vec![0, 0, 0, 9], noise].concat(),
        // Served requests with bodies of noise, in honest frames.
        3 | 4 => {
            let api_key = ApiKey::ALL[random.random_range(0..ApiKey::ALL.len())];
            let versions = api_key.versions();
            let version = random.random_range(versions.min..=versions.max);
            let mut frame = request_start(u32::try_from(10 + noise.len()).unwrap_or(10), api_key.code(), version);
            frame.extend(noise);
            frame
        }
        // Arrays and strings that claim to be endless.
        5 => {
            let api_key = ApiKey::ALL[random.random_range(0..ApiKey::ALL.len())];
            let mut frame = request_start(10 + 64, api_key.code(), api_key.versions().max);
            frame.extend([[0xff, 0xff, 0xff, 0xff, 0x07], [0x7f, 0xff, 0xff, 0xff, 0x00]].concat().repeat(7));
            frame.truncate(4 + 10 + 64);
            frame
        }
        // The greeting of a peer, broken.
        _ => [b"LKSP".to_vec(), vec![0, 1, 0, 0], noise].concat(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_outlives_nonsense_on_both_ports_and_serves_on() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new("steady", 3)).await.expect("created");
    let producer = Producer::new(&client, ProducerConfig::default()).expect("sound");
    let record = ProducerRecord::new("steady", "still here");
    producer.send(&record).await.expect("taken").await.expect("acknowledged");
    let before = cluster.resident_bytes(1);

    for address in [cluster.address(1), cluster.peer_address(1)] {
        for round in 0..6 {
            // Many at one time, most of them left open until the round is over.
            let mut connections = Vec::new();
            for _ in 0..60 {
                let Ok(mut connection) = WireConnection::connect(&address).await else { continue };
                // The node may have closed the connection in the middle of it.
                drop(connection.write(&nonsense(&mut random)).await);
                if random.random_bool(0.3) {
                    drop(connection.finish().await);
                }
                connections.push(connection);
            }
            assert!(!connections.is_empty(), "round {round}: nobody can connect to {address}");
            let delivery = producer.send(&record).await.expect("taken");
            within("a message is acknowledged in between", PATIENCE, delivery).await.expect("acknowledged");
        }
    }
    assert!(cluster.is_running(1), "the node is gone");
    let after = cluster.resident_bytes(1);
    assert!(after < before + GROWTH_MAX, "memory grew from {before} to {after} bytes");
    cluster.wait_whole().await;
    assert!(!cluster.log(1).contains("panicked"), "a handler panicked");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_request_end_their_connection() {
    let cluster = Cluster::start(1).await;
    for (what, bytes) in [
        ("a giant length", [vec![0x7f, 0xff, 0xff, 0xff], vec![0; 8]].concat()),
        ("a negative length", [vec![0xff, 0xff, 0xff, 0xf0], vec![0; 8]].concat()),
        ("an unknown request", request_start(10, 30_000, 0)),
        ("a version that is not served", request_start(10, ApiKey::Metadata.code(), 99)),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let mut connection = WireConnection::connect(&cluster.address(1)).await.expect("connected");
        connection.write(&bytes).await.expect("written");
        let closed = connection.closed_within(Duration::from_secs(20)).await;
        assert!(closed.is_ok(), "{what} leaves its connection open");
    }
    let mut connection = WireConnection::connect(&cluster.peer_address(1)).await.expect("connected");
    connection.write(&[0x55; 200]).await.expect("written");
    let closed = connection.closed_within(Duration::from_secs(20)).await;
    assert!(closed.is_ok(), "a stranger on the port for peers keeps its connection");
}
