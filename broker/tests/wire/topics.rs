//! Topics and the cluster, over the wire.

use crate::support::{TestBroker, TestClient, metadata};
use lockstep_wire::codec::create_partitions_request::CreatePartitionsTopic;
use lockstep_wire::codec::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use lockstep_wire::codec::delete_topics_request::DeleteTopicState;
use lockstep_wire::codec::describe_configs_request::DescribeConfigsResource;
use lockstep_wire::codec::describe_topic_partitions_request::TopicRequest;
use lockstep_wire::codec::{
    AlterConfigsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeClusterRequest,
    DescribeConfigsRequest, DescribeTopicPartitionsRequest, IncrementalAlterConfigsRequest, MetadataRequest,
    ProduceResponse, TopicName, alter_configs_request, incremental_alter_configs_request,
};
use lockstep_wire::private::ClusterStatusRequest;

fn topic(name: &str, partitions: i32) -> CreatableTopic {
    CreatableTopic::default()
        .with_name(TopicName(name.to_owned().into()))
        .with_num_partitions(partitions)
        .with_replication_factor(1)
}

async fn create(client: &mut TestClient, version: i16, topics: Vec<CreatableTopic>, validate_only: bool) -> Vec<i16> {
    let request =
        CreateTopicsRequest::default().with_topics(topics).with_timeout_ms(10_000).with_validate_only(validate_only);
    client.call(version, request).await.topics.iter().map(|topic| topic.error_code).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_made_shown_and_deleted_in_every_version() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    for version in 2..=7 {
        let name = format!("made-by-{version}");
        assert_eq!(create(&mut client, version, vec![topic(&name, 3)], false).await, [0], "CreateTopics {version}");
        assert_eq!(create(&mut client, version, vec![topic(&name, 3)], false).await, [36]);
        for version in 0..=13 {
            let response = client.call(version, metadata(&[&name], true)).await;
            let shown = &response.topics[0];
            assert_eq!((shown.error_code, shown.partitions.len()), (0, 3), "Metadata {version}");
            assert!(shown.partitions.iter().all(|partition| partition.leader_id.0 == 1));
            assert_eq!(response.brokers.len(), 1);
        }
    }
    for version in 1..=6 {
        let name = TopicName(format!("made-by-{}", version + 1).into());
        let request = if version >= 6 {
            DeleteTopicsRequest::default().with_topics(vec![DeleteTopicState::default().with_name(Some(name.clone()))])
        } else {
            DeleteTopicsRequest::default().with_topic_names(vec![name.clone()])
        };
        let response = client.call(version, request.with_timeout_ms(10_000)).await;
        assert_eq!(response.responses[0].error_code, 0, "DeleteTopics {version}");
        let shown = client.call(9, metadata(&[&name], false)).await;
        assert_eq!(shown.topics[0].error_code, 3, "deleted topics are gone");
    }
    assert_eq!(client.call(1, MetadataRequest::default().with_topics(None)).await.topics.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_deleted_and_made_again_is_another_topic() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        assert_eq!(create(&mut client, 7, vec![topic("t", 1)], false).await, [0]);
        let id = client.call(12, metadata(&["t"], false)).await.topics[0].topic_id;
        ids.push(id);
        let by_id = DeleteTopicState::default().with_name(None).with_topic_id(id);
        let request = DeleteTopicsRequest::default().with_topics(vec![by_id]).with_timeout_ms(10_000);
        let response = client.call(6, request.clone()).await;
        assert_eq!(response.responses[0].error_code, 0);
        assert_eq!(response.responses[0].name.as_deref().map(|name| name.as_str()), Some("t"));
        assert_eq!(client.call(6, request).await.responses[0].error_code, 100);
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_makes_topics_only_where_both_sides_want_it() {
    let broker = TestBroker::start_with(|config| config.topics.partitions = 4).await;
    let mut client = broker.connect().await;
    assert_eq!(client.call(9, metadata(&["new"], false)).await.topics[0].error_code, 3);
    let made = client.call(9, metadata(&["new"], true)).await;
    assert_eq!((made.topics[0].error_code, made.topics[0].partitions.len()), (0, 4));
    assert_eq!(client.call(9, metadata(&["not/legal"], true)).await.topics[0].error_code, 17);

    let strict = TestBroker::start_with(|config| config.topics.auto_create = false).await;
    assert_eq!(strict.connect().await.call(9, metadata(&["new"], true)).await.topics[0].error_code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_topics_are_refused_and_right_ones_beside_them_are_made() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    let config = |name: &'static str, value: &'static str| {
        CreatableTopicConfig::default().with_name(name.into()).with_value(Some(value.into()))
    };
    let topics = vec![
        topic("right", 2),
        topic("a b", 1),
        topic("none", 0),
        topic("copies", 1).with_replication_factor(3),
        topic("config", 1).with_configs(vec![config("no.such.setting", "1")]),
        topic("value", 1).with_configs(vec![config("retention.ms", "soon")]),
        // No shard takes so much at once, whatever the topic says.
        topic("large", 1).with_configs(vec![config("max.message.bytes", "7340033")]),
        topic("twice", 1),
        topic("twice", 1),
    ];
    assert_eq!(create(&mut client, 7, topics.clone(), true).await, [0, 17, 37, 38, 40, 40, 40, 42]);
    assert_eq!(client.call(9, metadata(&["right"], false)).await.topics[0].error_code, 3, "it was only validated");
    assert_eq!(create(&mut client, 7, topics, false).await, [0, 17, 37, 38, 40, 40, 40, 42]);
    assert_eq!(client.call(9, metadata(&["right"], false)).await.topics[0].error_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_are_described_with_their_sources() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    let set = CreatableTopicConfig::default().with_name("max.message.bytes".into()).with_value(Some("2000".into()));
    assert_eq!(create(&mut client, 7, vec![topic("t", 1).with_configs(vec![set])], false).await, [0]);
    let resource = |kind: i8, name: &'static str| {
        DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(name.into())
            .with_configuration_keys(None)
    };
    for version in 1..=4 {
        let request = DescribeConfigsRequest::default()
            .with_resources(vec![resource(2, "t"), resource(4, "1"), resource(2, "unknown"), resource(4, "9")])
            .with_include_synonyms(true);
        let response = client.call(version, request).await;
        let errors: Vec<i16> = response.results.iter().map(|result| result.error_code).collect();
        assert_eq!(errors, [0, 0, 3, 42], "DescribeConfigs {version}");
        let entry = |result: usize, name: &str| {
            response.results[result].configs.iter().find(|entry| entry.name.as_str() == name).expect("entry").clone()
        };
        let set = entry(0, "max.message.bytes");
        assert_eq!((set.value.as_deref(), set.config_source, set.synonyms.len()), (Some("2000"), 1, 2));
        let default = entry(0, "retention.ms");
        assert_eq!((default.value.as_deref(), default.config_source), (Some("604800000"), 5));
        assert!(entry(1, "node.id").read_only);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_described_page_by_page() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    assert_eq!(create(&mut client, 7, vec![topic("a", 3), topic("b", 2)], false).await, [0, 0]);
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let request = DescribeTopicPartitionsRequest::default()
            .with_topics(["a", "b"].map(|name| TopicRequest::default().with_name(TopicName(name.into()))).to_vec())
            .with_response_partition_limit(2)
            .with_cursor(cursor.take());
        let response = client.call(0, request).await;
        for topic in &response.topics {
            let name = topic.name.as_deref().map(ToString::to_string).unwrap_or_default();
            seen.extend(topic.partitions.iter().map(|partition| (name.clone(), partition.partition_index)));
        }
        let Some(next) = response.next_cursor else { break };
        cursor = Some(
            lockstep_wire::codec::describe_topic_partitions_request::Cursor::default()
                .with_topic_name(next.topic_name)
                .with_partition_index(next.partition_index),
        );
    }
    let expected: Vec<(String, i32)> =
        [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)].map(|(name, index)| (name.to_owned(), index)).to_vec();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_described() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    let port: i32 = broker.broker.address().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("port");
    for version in 0..=2 {
        let request = DescribeClusterRequest::default().with_endpoint_type(1);
        let response = client.call(version, request).await;
        assert_eq!((response.error_code, response.controller_id.0), (0, 1), "DescribeCluster {version}");
        assert_eq!(response.cluster_id.len(), 22);
        assert_eq!((response.brokers.len(), response.brokers[0].port), (1, port));
    }
    let status = client.call(0, ClusterStatusRequest {}).await;
    assert_eq!(status.error_code, 0);
    let status: lockstep_runtime::ClusterStatus = serde_json::from_slice(&status.json).expect("JSON");
    assert_eq!((status.nodes.len(), status.shards.len()), (1, 2));
    assert!(status.shards.iter().all(|shard| shard.leader == Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_grows_and_never_shrinks() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    assert_eq!(create(&mut client, 7, vec![topic("t", 2)], false).await, [0]);
    for (version, count, error) in [(0, 3, 0), (1, 3, 37), (2, 2, 37), (3, 5, 0), (3, 0, 37)] {
        let topic = CreatePartitionsTopic::default().with_name(TopicName("t".into())).with_count(count);
        let request =
            CreatePartitionsRequest::default().with_topics(vec![topic.with_assignments(None)]).with_timeout_ms(10_000);
        assert_eq!(client.call(version, request).await.results[0].error_code, error, "to {count}");
    }
    let shown = client.call(9, metadata(&["t"], false)).await;
    assert_eq!(shown.topics[0].partitions.len(), 5);
    let produced = client.call(9, crate::support::produce("t", 4, -1, crate::support::batch(&["new"]))).await;
    assert_eq!(produced.responses[0].partition_responses[0].error_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_takes_effect() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    assert_eq!(create(&mut client, 7, vec![topic("t", 1)], false).await, [0]);
    let limit = |value: &'static str| {
        let config = incremental_alter_configs_request::AlterableConfig::default()
            .with_name("max.message.bytes".into())
            .with_config_operation(0)
            .with_value(Some(value.into()));
        let resource = incremental_alter_configs_request::AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name("t".into())
            .with_configs(vec![config]);
        IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
    };
    assert_eq!(client.call(1, limit("some")).await.responses[0].error_code, 40);
    let refused = client.call(1, limit("7340033")).await.responses[0].clone();
    let reason = refused.error_message.as_deref().unwrap_or_default();
    assert!(refused.error_code == 40 && reason.contains("between 0 and 7340032"), "{refused:?}");
    assert_eq!(client.call(1, limit("7340032").with_validate_only(true)).await.responses[0].error_code, 0);
    assert_eq!(client.call(1, limit("50").with_validate_only(true)).await.responses[0].error_code, 0);
    let produce = || crate::support::produce("t", 0, -1, crate::support::batch(&["a value"]));
    let error = |response: ProduceResponse| response.responses[0].partition_responses[0].error_code;
    assert_eq!(error(client.call(9, produce()).await), 0);
    assert_eq!(client.call(1, limit("50")).await.responses[0].error_code, 0);
    assert_eq!(error(client.call(9, produce()).await), 10, "larger than 50 bytes");
    // Replaced by nothing: the default again.
    let resource =
        alter_configs_request::AlterConfigsResource::default().with_resource_type(2).with_resource_name("t".into());
    let request = AlterConfigsRequest::default().with_resources(vec![resource]);
    assert_eq!(client.call(2, request).await.responses[0].error_code, 0);
    assert_eq!(error(client.call(9, produce()).await), 0);
}
