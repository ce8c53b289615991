//! Records in and out, over the wire.

use std::time::Duration;

use crate::support::{PATIENCE, TestBroker, TestClient, batch, fetch, produce, values};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_wire::ApiKey;
use lockstep_wire::codec::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use lockstep_wire::codec::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use lockstep_wire::codec::{
    BrokerId, InitProducerIdRequest, ListOffsetsRequest, OffsetForLeaderEpochRequest, TopicName,
};

/// Error numbers of the protocol that these tests expect.
const OFFSET_OUT_OF_RANGE: i16 = 1;
const CORRUPT_MESSAGE: i16 = 2;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const MESSAGE_TOO_LARGE: i16 = 10;
const KAFKA_STORAGE_ERROR: i16 = 56;
const FENCED_LEADER_EPOCH: i16 = 74;
const UNKNOWN_LEADER_EPOCH: i16 = 75;

async fn produced(client: &mut TestClient, version: i16, topic: &str, records: bytes::Bytes) -> (i16, i64) {
    let response = client.call(version, produce(topic, 0, -1, records)).await;
    let partition = &response.responses[0].partition_responses[0];
    (partition.error_code, partition.base_offset)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_produced_is_fetched_in_every_version() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let mut expected = Vec::new();
    // From version 13 on topics are named by id, which these requests do not do.
    for version in 3..=12 {
        let value = format!("version {version}");
        assert_eq!(produced(&mut client, version, "t", batch(&[&value])).await, (0, expected.len() as i64));
        expected.push(value);
    }
    for version in 4..=12 {
        let response = client.call(version, fetch("t", 0, 0, 1_000)).await;
        assert_eq!(values(&response), expected, "Fetch {version}");
        assert_eq!(response.responses[0].partitions[0].high_watermark, expected.len() as i64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_named_by_id_from_version_13_on() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let id = client.call(12, crate::support::metadata(&["t"], false)).await.topics[0].topic_id;
    let mut request = produce("", 0, -1, batch(&["by id"]));
    request.topic_data[0].topic_id = id;
    let response = client.call(13, request).await;
    assert_eq!(response.responses[0].topic_id, id);
    assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
    for version in 13..=18 {
        let mut request = fetch("", 0, 0, 1_000);
        request.topics[0].topic_id = id;
        if version >= 15 {
            // The replica's id has moved into a tagged field.
            request.replica_id = BrokerId::default();
            request.replica_id.0 = -1;
        }
        let response = client.call(version, request).await;
        assert_eq!(values(&response), ["by id"], "Fetch {version}");
        assert_eq!(response.responses[0].topic_id, id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_refused_while_the_disk_is_nearly_full() {
    let broker = TestBroker::start_with(|config| config.node.disk_reserve_bytes = u64::MAX).await;
    let looked = async {
        while !broker.broker.node().is_short_of_space() {
            TokioEnv::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, looked).await.expect("no disk has so much room");
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    for version in 3..=12 {
        let response = client.call(version, produce("t", 0, -1, batch(&["value"]))).await;
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (KAFKA_STORAGE_ERROR, -1), "Produce {version}");
        let message = partition.error_message.as_deref().unwrap_or_default();
        assert_eq!(message.contains("nearly full"), version >= 8, "Produce {version}: {message}");
    }
    let response = client.call(11, fetch("t", 0, 0, 0)).await;
    let partition = &response.responses[0].partitions[0];
    assert_eq!((partition.error_code, partition.high_watermark), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_produce_requests_keep_their_order() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let expected: Vec<String> = (0..200).map(|number| format!("record {number}")).collect();
    // More than are queued at a time, so the broker must read on while it writes.
    let mut ids = Vec::new();
    for value in &expected {
        ids.push(client.send(9, produce("t", 0, -1, batch(&[value]))).await);
    }
    for (offset, id) in ids.into_iter().enumerate() {
        let (correlation_id, response) = client.receive(ApiKey::Produce, 9).await.expect("a response");
        assert_eq!(correlation_id, id);
        let lockstep_wire::Response::Produce(response) = response else { panic!("another response") };
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (0, offset as i64));
    }
    assert_eq!(values(&client.call(11, fetch("t", 0, 0, 0)).await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_acknowledgement_there_is_no_answer_and_an_error_closes() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    client.send(9, produce("t", 0, 0, batch(&["silent"]))).await;
    assert_eq!(values(&client.call(11, fetch("t", 0, 0, 5_000)).await), ["silent"]);
    client.send(9, produce("unknown", 0, 0, batch(&["lost"]))).await;
    assert!(client.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_waits_for_records() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut consumer = broker.connect().await;
    consumer.send(11, fetch("t", 0, 0, 20_000)).await;
    let mut producer = broker.connect().await;
    assert_eq!(produced(&mut producer, 9, "t", batch(&["awaited"])).await, (0, 0));
    let (_, response) = consumer.receive(ApiKey::Fetch, 11).await.expect("a response");
    let lockstep_wire::Response::Fetch(response) = response else { panic!("another response") };
    assert_eq!(values(&response), ["awaited"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_fetch_has_empty_records_and_not_null() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let response = broker.connect().await.call(4, fetch("t", 0, 0, 0)).await;
    assert_eq!(response.responses[0].partitions[0].records.as_deref(), Some(&[][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_answers_only_what_is_new() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let opened = client.call(11, fetch("t", 0, 0, 0).with_session_epoch(0)).await;
    assert_ne!(opened.session_id, 0);
    assert_eq!(opened.responses.len(), 1);
    let next = |epoch: i32| {
        fetch("t", 0, 0, 0).with_session_id(opened.session_id).with_session_epoch(epoch).with_topics(Vec::new())
    };
    assert_eq!(client.call(11, next(1)).await.responses.len(), 0);
    produced(&mut client, 9, "t", batch(&["new"])).await;
    assert_eq!(values(&client.call(11, next(2)).await), ["new"]);
    assert_eq!(client.call(11, next(2)).await.error_code, 71, "the epoch was used already");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_refused() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let mut damaged = batch(&["damaged"]).to_vec();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert_eq!(produced(&mut client, 9, "t", damaged.into()).await.0, CORRUPT_MESSAGE);
    let large = "x".repeat(1_100_000);
    assert_eq!(produced(&mut client, 9, "t", batch(&[&large])).await.0, MESSAGE_TOO_LARGE);
    assert_eq!(produced(&mut client, 9, "nowhere", batch(&["lost"])).await.0, UNKNOWN_TOPIC_OR_PARTITION);
    assert_eq!(values(&client.call(11, fetch("t", 0, 0, 0)).await), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_outside_the_log_and_foreign_epochs_are_refused() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    produced(&mut client, 9, "t", batch(&["one"])).await;
    let error = |response: lockstep_wire::codec::FetchResponse| response.responses[0].partitions[0].error_code;
    assert_eq!(error(client.call(11, fetch("t", 0, 2, 5_000)).await), OFFSET_OUT_OF_RANGE);
    let epoch = client.call(9, crate::support::metadata(&["t"], false)).await.topics[0].partitions[0].leader_epoch;
    let mut request = fetch("t", 0, 0, 0);
    for (known, expected) in [(epoch - 1, FENCED_LEADER_EPOCH), (epoch, 0), (epoch + 1, UNKNOWN_LEADER_EPOCH)] {
        request.topics[0].partitions[0].current_leader_epoch = known;
        assert_eq!(error(client.call(11, request.clone()).await), expected, "epoch {known} where {epoch} leads");
    }
    let partition =
        OffsetForLeaderPartition::default().with_partition(0).with_current_leader_epoch(epoch).with_leader_epoch(epoch);
    let topic = OffsetForLeaderTopic::default().with_topic(TopicName("t".into())).with_partitions(vec![partition]);
    let request = OffsetForLeaderEpochRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    let found = &client.call(4, request).await.topics[0].partitions[0];
    assert_eq!((found.error_code, found.leader_epoch, found.end_offset), (0, epoch, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_found_by_place_and_by_time() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    // Timestamps 1000, 1001, 1002 in one batch.
    produced(&mut client, 9, "t", batch(&["a", "b", "c"])).await;
    for version in 1..=10 {
        for (timestamp, offset, since) in
            [(-1, 3, 1), (-2, 0, 1), (1_001, 1, 1), (0, 0, 1), (1_003, -1, 1), (-3, 2, 7), (-4, 0, 8), (-5, -1, 9)]
        {
            if version < since {
                continue;
            }
            let partition = ListOffsetsPartition::default()
                .with_partition_index(0)
                .with_current_leader_epoch(-1)
                .with_timestamp(timestamp);
            let topic = ListOffsetsTopic::default().with_name(TopicName("t".into())).with_partitions(vec![partition]);
            let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
            let response = client.call(version, request).await;
            let found = &response.topics[0].partitions[0];
            assert_eq!((found.error_code, found.offset), (0, offset), "ListOffsets {version} for {timestamp}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_producer_gets_an_id_of_its_own_and_transactions_are_refused() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let response = client.call(4, InitProducerIdRequest::default().with_transactional_id(None)).await;
        assert_eq!((response.error_code, response.producer_epoch), (0, 0));
        assert!(ids.insert(response.producer_id.0));
    }
    let transactional = InitProducerIdRequest::default()
        .with_transactional_id(Some(lockstep_wire::codec::TransactionalId("tx".into())));
    assert_eq!(client.call(4, transactional).await.error_code, 53);
}
