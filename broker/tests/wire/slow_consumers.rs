//! Clients that ask for much and take nothing.

use crate::cluster::until;
use crate::support::{PATIENCE, TestBroker, TestClient, batch, fetch, metadata, produce};
use lockstep_env::timeout;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::batch::Batches;
use lockstep_wire::codec::ApiVersionsRequest;

/// Of a batch.
const BYTES: usize = 100 << 10;
/// Ten answers of a megabyte fill what the system keeps of a connection on both ends.
const FETCHES: usize = 40;

/// How many batches a fetch from the beginning gets.
async fn batches(client: &mut TestClient) -> usize {
    let answer = client.call(11, fetch("t", 0, 0, 100)).await;
    let partition = &answer.responses[0].partitions[0];
    assert_eq!(partition.error_code, 0);
    Batches::new(partition.records.as_ref().expect("records are never null")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_slow_consumers_do_not_take_is_bounded_and_others_get_on() {
    let broker = TestBroker::start_with(|config| config.answer_bytes_max = 6 << 20).await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    // The first frame of a connection must be a short one.
    assert_eq!(batches(&mut client).await, 0);
    let value = "x".repeat(BYTES);
    for _ in 0..12 {
        let answer = client.call(9, produce("t", 0, -1, batch(&[&value]))).await;
        assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    }
    let many = batches(&mut client).await;
    assert!(many > 5, "{many} batches fit into a megabyte");

    let mut slow = Vec::new();
    for _ in 0..12 {
        let mut client = broker.connect().await;
        for _ in 0..FETCHES {
            client.send(11, fetch("t", 0, 0, 100)).await;
        }
        slow.push(client);
    }
    // Once they take nothing more, more than half of the room is taken for good, and not all of it.
    until("fetches get one batch, again and again", async || {
        for _ in 0..20 {
            if batches(&mut client).await != 1 {
                return false;
            }
        }
        true
    })
    .await;

    drop(slow);
    until("fetches get as much as before", async || batches(&mut client).await == many).await;
}

/// An answer that takes longer, after hundreds of others to somebody else, waits for something.
const SOON: std::time::Duration = std::time::Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_nobody_takes_are_bounded_too() {
    let broker = TestBroker::start_with(|config| config.answer_bytes_max = 2 << 20).await;
    broker.create_topic("t", 10_000).await;
    let mut client = broker.connect().await;
    let list = metadata(&["t"], false);
    assert_eq!(client.call(9, list.clone()).await.topics[0].partitions.len(), 10_000);
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut client = broker.connect().await;
        for _ in 0..FETCHES {
            client.send(9, list.clone()).await;
        }
        slow.push(client);
    }
    // Eight lists of a quarter of a megabyte do not fit into one: once the system takes nothing more, no further one is begun.
    let mut waiting = None;
    until("lists wait for room", async || {
        let mut asking = broker.connect().await;
        asking.send(9, list.clone()).await;
        for _ in 0..300 {
            client.call(3, ApiVersionsRequest::default()).await;
        }
        let waits = timeout::<TokioEnv, _>(SOON, asking.receive_frame()).await.is_err();
        waiting = waits.then_some(asking);
        waits
    })
    .await;
    // Who asks for no list notices nothing.
    let answer = client.call(9, produce("t", 0, -1, batch(&["value"]))).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    assert_eq!(batches(&mut client).await, 1);

    drop(slow);
    // It waits no longer, or it was sent away for another broker.
    let mut waiting = waiting.expect("one waits");
    timeout::<TokioEnv, _>(PATIENCE, waiting.receive_frame()).await.expect("an answer, or an end");
    assert_eq!(client.call(9, list).await.topics[0].partitions.len(), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_named_often_is_told_once() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 3).await;
    let mut client = broker.connect().await;
    let answer = client.call(9, metadata(&["t", "u", "t", "u", "t"], false)).await;
    let told: Vec<_> =
        answer.topics.iter().map(|topic| (topic.name.as_ref().unwrap().as_str(), topic.error_code)).collect();
    assert_eq!(told, [("t", 0), ("u", 3)]);
}
