//! Records that are deleted: on request, by their age, and because there are too many; and what clients see of it.

use std::time::Duration;

use crate::support::{PATIENCE, TestBroker, TestClient, batch, create_configured, fetch, produce, values};
use lockstep_core::TopicId;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_wire::codec::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use lockstep_wire::codec::describe_configs_request::DescribeConfigsResource;
use lockstep_wire::codec::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use lockstep_wire::codec::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use lockstep_wire::codec::{
    BrokerId, DeleteRecordsRequest, DescribeConfigsRequest, IncrementalAlterConfigsRequest, ListOffsetsRequest,
    TopicName,
};
use lockstep_wire::{BatchBuilder, Compression};

/// Error numbers of the protocol that these tests expect.
const OFFSET_OUT_OF_RANGE: i16 = 1;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const POLICY_VIOLATION: i16 = 44;

const EARLIEST: i64 = -2;
const LATEST: i64 = -1;
const MAX_TIMESTAMP: i64 = -3;

/// Error, low watermark.
async fn delete(client: &mut TestClient, version: i16, topic: &str, partition: i32, offset: i64) -> (i16, i64) {
    let partition = DeleteRecordsPartition::default().with_partition_index(partition).with_offset(offset);
    let topic =
        DeleteRecordsTopic::default().with_name(TopicName(topic.to_owned().into())).with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let response = client.call(version, request).await;
    let result = &response.topics[0].partitions[0];
    (result.error_code, result.low_watermark)
}

/// Timestamp, offset.
async fn list(client: &mut TestClient, topic: &str, timestamp: i64) -> (i64, i64) {
    let partition =
        ListOffsetsPartition::default().with_partition_index(0).with_current_leader_epoch(-1).with_timestamp(timestamp);
    let topic =
        ListOffsetsTopic::default().with_name(TopicName(topic.to_owned().into())).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    let response = client.call(7, request).await;
    let found = &response.topics[0].partitions[0];
    assert_eq!(found.error_code, 0);
    (found.timestamp, found.offset)
}

/// The offset of the first record, and where the log began then.
async fn send(client: &mut TestClient, topic: &str, records: bytes::Bytes) -> (i64, i64) {
    let response = client.call(9, produce(topic, 0, -1, records)).await;
    let partition = &response.responses[0].partition_responses[0];
    assert_eq!(partition.error_code, 0);
    (partition.base_offset, partition.log_start_offset)
}

/// Error, high watermark, where the log begins.
async fn fetch_at(client: &mut TestClient, topic: &str, offset: i64) -> (i16, i64, i64) {
    let response = client.call(11, fetch(topic, 0, offset, 0)).await;
    let partition = &response.responses[0].partitions[0];
    (partition.error_code, partition.high_watermark, partition.log_start_offset)
}

async fn wait_for_start(client: &mut TestClient, topic: &str, start: i64) {
    let waiting = async {
        while list(client, topic, EARLIEST).await.1 != start {
            TokioEnv::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, waiting).await.expect("records are deleted");
}

/// A batch of one record with this timestamp.
fn record_of(timestamp_ms: i64, value: &str) -> bytes::Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(timestamp_ms, None, Some(value.as_bytes()), &[]);
    builder.finish(Compression::None, None).expect("batch")
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_records_are_gone_for_every_request() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    create_configured(&mut client, "t", &[]).await;
    // Timestamps 1000, 1001, 1002 in each batch; a batch has three records.
    for _ in 0..3 {
        send(&mut client, "t", batch(&["a", "b", "c"])).await;
    }
    assert_eq!(delete(&mut client, 0, "t", 0, 0).await, (0, 0), "nothing lies below the first offset");
    assert_eq!(delete(&mut client, 1, "t", 0, 3).await, (0, 3));
    assert_eq!(list(&mut client, "t", EARLIEST).await, (-1, 3));
    assert_eq!(fetch_at(&mut client, "t", 2).await, (OFFSET_OUT_OF_RANGE, 9, 3));
    assert_eq!(fetch_at(&mut client, "t", 3).await, (0, 9, 3));
    // In the middle of a batch, of which nothing but the last record is left.
    assert_eq!(delete(&mut client, 2, "t", 0, 5).await, (0, 5));
    assert_eq!(list(&mut client, "t", EARLIEST).await, (-1, 5));
    assert_eq!(fetch_at(&mut client, "t", 4).await.0, OFFSET_OUT_OF_RANGE);
    let whole_batch = client.call(11, fetch("t", 0, 5, 0)).await;
    assert_eq!(values(&whole_batch), ["a", "b", "c", "a", "b", "c"], "as in Kafka, consumers skip what lies below");
    assert_eq!(list(&mut client, "t", 0).await, (1_002, 5));
    assert_eq!(list(&mut client, "t", 1_002).await, (1_002, 5));
    assert_eq!(list(&mut client, "t", MAX_TIMESTAMP).await, (1_002, 5));
    assert_eq!(delete(&mut client, 2, "t", 0, 4).await, (0, 5), "the start does not go back");
    for wrong in [-2, 10, i64::MAX, i64::MIN] {
        assert_eq!(delete(&mut client, 2, "t", 0, wrong).await, (OFFSET_OUT_OF_RANGE, -1), "{wrong}");
    }
    assert_eq!(send(&mut client, "t", batch(&["d"])).await, (9, 5));
    assert_eq!(delete(&mut client, 2, "t", 0, -1).await, (0, 10));
    assert_eq!((list(&mut client, "t", EARLIEST).await, list(&mut client, "t", LATEST).await), ((-1, 10), (-1, 10)));
    assert_eq!(list(&mut client, "t", 0).await, (-1, -1));
    assert_eq!(fetch_at(&mut client, "t", 10).await, (0, 10, 10));
    assert_eq!(send(&mut client, "t", batch(&["e"])).await, (10, 10));
    assert_eq!(values(&client.call(11, fetch("t", 0, 10, 1_000)).await), ["e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_record_that_was_deleted_is_not_found_by_time() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    create_configured(&mut client, "t", &[]).await;
    let mut builder = BatchBuilder::new();
    for timestamp in [5_000, 1_000] {
        builder.push(timestamp, None, Some(b"value"), &[]);
    }
    send(&mut client, "t", builder.finish(Compression::None, None).expect("batch")).await;
    send(&mut client, "t", record_of(3_000, "later")).await;
    assert_eq!(list(&mut client, "t", 2_000).await, (5_000, 0));
    assert_eq!(delete(&mut client, 2, "t", 0, 1).await, (0, 1));
    assert_eq!(list(&mut client, "t", 2_000).await, (3_000, 2));
    assert_eq!(list(&mut client, "t", 4_000).await, (-1, -1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_must_be_kept_is_not_deleted() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    create_configured(&mut client, "t", &[]).await;
    create_configured(&mut client, "compacted", &[("cleanup.policy", "compact")]).await;
    create_configured(&mut client, "both", &[("cleanup.policy", "compact,delete")]).await;
    let mut keyed = BatchBuilder::new();
    keyed.push(1_000, Some(b"key"), Some(b"a"), &[]);
    let keyed = keyed.finish(Compression::None, None).expect("batch");
    for topic in ["compacted", "both"] {
        send(&mut client, topic, keyed.clone()).await;
    }
    for (topic, partition) in [("unknown", 0), ("t", 1), ("t", -1), ("t", i32::MAX)] {
        let refused = delete(&mut client, 2, topic, partition, 0).await;
        assert_eq!(refused, (UNKNOWN_TOPIC_OR_PARTITION, -1), "{topic} {partition}");
    }
    assert_eq!(delete(&mut client, 2, "compacted", 0, 1).await, (POLICY_VIOLATION, -1));
    assert_eq!(delete(&mut client, 2, "both", 0, 1).await, (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_expire_by_size_and_by_age_as_their_topic_says_now() {
    let broker =
        TestBroker::start_with(|config| config.node.retention_check_interval = Duration::from_millis(20)).await;
    let mut client = broker.connect().await;
    // One batch a segment; a batch has 61 bytes of header and some of its record.
    create_configured(&mut client, "t", &[("segment.bytes", "100"), ("retention.ms", "-1")]).await;
    let now_ms = TokioEnv::new().wall_clock_ms();
    let value = "v".repeat(60);
    for number in 0..10 {
        send(&mut client, "t", record_of(now_ms - 3_600_000 + number, &value)).await;
    }
    for _ in 0..2 {
        send(&mut client, "t", record_of(now_ms, &value)).await;
    }
    let id = client.call(12, crate::support::metadata(&["t"], false)).await.topics[0].topic_id;
    let topic_id = TopicId(*id.as_bytes());
    let bytes = {
        let node = broker.broker.node();
        let shard = node.directory(|directory| directory.topic("t").map(|topic| topic.partitions[0]));
        let segments = node.shard(shard.expect("the topic")).expect("its shard").segments(topic_id, 0);
        assert_eq!(segments.len(), 12);
        segments[0].len
    };
    assert_eq!(list(&mut client, "t", EARLIEST).await.1, 0, "nothing expires yet");
    alter(&mut client, "t", &[("retention.bytes", &(bytes * 7).to_string())]).await;
    wait_for_start(&mut client, "t", 5).await;
    alter(&mut client, "t", &[("retention.bytes", "-1"), ("retention.ms", "1800000")]).await;
    wait_for_start(&mut client, "t", 10).await;
    alter(&mut client, "t", &[("retention.ms", "1")]).await;
    wait_for_start(&mut client, "t", 12).await;
    assert_eq!(send(&mut client, "t", record_of(now_ms + 3_600_000, "young")).await, (12, 12));
    assert_eq!(values(&client.call(11, fetch("t", 0, 12, 1_000)).await), ["young"]);
}

async fn alter(client: &mut TestClient, topic: &str, configs: &[(&str, &str)]) {
    let configs = configs.iter().map(|(name, value)| {
        AlterableConfig::default()
            .with_name((*name).to_owned().into())
            .with_config_operation(0)
            .with_value(Some((*value).to_owned().into()))
    });
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(topic.to_owned().into())
        .with_configs(configs.collect());
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let response = client.call(1, request).await;
    assert_eq!(response.responses[0].error_code, 0, "{:?}", response.responses[0].error_message);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_segments_and_retention_are_shown_with_the_brokers_default() {
    let broker = TestBroker::start_with(|config| config.node.segment_bytes = 7 << 20).await;
    let mut client = broker.connect().await;
    create_configured(&mut client, "t", &[("retention.bytes", "1000")]).await;
    alter(&mut client, "t", &[("segment.ms", "60000")]).await;
    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name("t".into())
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let response = client.call(4, request).await;
    let shown = |name: &str| {
        let entry = response.results[0].configs.iter().find(|entry| entry.name.as_str() == name).expect("entry");
        (entry.value.as_deref().expect("a value").to_owned(), entry.config_source)
    };
    assert_eq!(shown("retention.bytes"), ("1000".to_owned(), 1));
    assert_eq!(shown("retention.ms"), ("604800000".to_owned(), 5));
    assert_eq!(shown("segment.ms"), ("60000".to_owned(), 1));
    assert_eq!(shown("segment.bytes"), ((7 << 20).to_string(), 4));
}
