//! The configuration of single groups, over the wire.

use crate::groups::error;
use crate::groups_consumer::{heartbeat, join};
use crate::support::{TestBroker, TestClient};
use lockstep_wire::codec::describe_configs_request::DescribeConfigsResource;
use lockstep_wire::codec::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use lockstep_wire::codec::{
    AlterConfigsRequest, DescribeConfigsRequest, IncrementalAlterConfigsRequest, alter_configs_request,
};

const GROUP: i8 = 32;
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SESSION_TIMEOUT: &str = "consumer.session.timeout.ms";
const HEARTBEAT_INTERVAL: &str = "consumer.heartbeat.interval.ms";

/// Name, value and source of each setting.
async fn described(client: &mut TestClient, group: &str) -> Vec<(String, String, i8)> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(GROUP)
        .with_resource_name(group.to_owned().into())
        .with_configuration_keys(None);
    let response = client.call(4, DescribeConfigsRequest::default().with_resources(vec![resource])).await;
    assert_eq!(response.results[0].error_code, 0);
    let entry = |entry: &lockstep_wire::codec::describe_configs_response::DescribeConfigsResourceResult| {
        let value = entry.value.as_ref().map(ToString::to_string).unwrap_or_default();
        (entry.name.to_string(), value, entry.config_source)
    };
    response.results[0].configs.iter().map(entry).collect()
}

fn incremental(group: &str, changes: &[(&'static str, i8, Option<&'static str>)]) -> IncrementalAlterConfigsRequest {
    let changes = changes.iter().map(|(name, operation, value)| {
        AlterableConfig::default()
            .with_name((*name).into())
            .with_config_operation(*operation)
            .with_value(value.map(Into::into))
    });
    let resource = AlterConfigsResource::default()
        .with_resource_type(GROUP)
        .with_resource_name(group.to_owned().into())
        .with_configs(changes.collect());
    IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
}

fn entry(name: &str, value: &str, source: i8) -> (String, String, i8) {
    (name.to_owned(), value.to_owned(), source)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_configured_and_its_members_are_told() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let defaults = [entry(HEARTBEAT_INTERVAL, "5000", 5), entry(SESSION_TIMEOUT, "45000", 5)];
    assert_eq!(described(&mut client, "g").await, defaults);

    let joined = client.call(1, join("g", "m")).await;
    assert_eq!((joined.error_code, joined.heartbeat_interval_ms), (0, 5_000));
    let changes = [(HEARTBEAT_INTERVAL, SET, Some("700")), (SESSION_TIMEOUT, SET, Some("20000"))];
    let validated = client.call(1, incremental("g", &changes).with_validate_only(true)).await;
    assert_eq!(validated.responses[0].error_code, 0);
    assert_eq!(described(&mut client, "g").await, defaults, "it was only validated");
    assert_eq!(client.call(1, incremental("g", &changes)).await.responses[0].error_code, 0);
    let set = [entry(HEARTBEAT_INTERVAL, "700", 8), entry(SESSION_TIMEOUT, "20000", 8)];
    assert_eq!(described(&mut client, "g").await, set);
    assert_eq!(described(&mut client, "other").await, defaults);
    let beat = client.call(1, heartbeat("g", "m", joined.member_epoch)).await;
    assert_eq!((beat.error_code, beat.heartbeat_interval_ms), (0, 700));

    // However a number is written, it is the number that counts.
    let response = client.call(1, incremental("g", &[(SESSION_TIMEOUT, SET, Some(" +021000 "))])).await;
    assert_eq!(response.responses[0].error_code, 0);
    let set = [entry(HEARTBEAT_INTERVAL, "700", 8), entry(SESSION_TIMEOUT, "21000", 8)];
    assert_eq!(described(&mut client, "g").await, set);

    let response = client.call(1, incremental("g", &[(SESSION_TIMEOUT, DELETE, None)])).await;
    assert_eq!(response.responses[0].error_code, 0);
    let left = [entry(HEARTBEAT_INTERVAL, "700", 8), entry(SESSION_TIMEOUT, "45000", 5)];
    assert_eq!(described(&mut client, "g").await, left);
    // Replaced by nothing: the defaults again.
    let resource =
        alter_configs_request::AlterConfigsResource::default().with_resource_type(GROUP).with_resource_name("g".into());
    let response = client.call(2, AlterConfigsRequest::default().with_resources(vec![resource])).await;
    assert_eq!(response.responses[0].error_code, 0);
    assert_eq!(described(&mut client, "g").await, defaults);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_outside_of_the_bounds_changes_nothing() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    let before = described(&mut client, "g").await;
    for (changes, expected) in [
        (&[(SESSION_TIMEOUT, SET, Some("5999"))][..], error::INVALID_CONFIG),
        (&[(SESSION_TIMEOUT, SET, Some("soon"))], error::INVALID_CONFIG),
        (&[(SESSION_TIMEOUT, SET, None)], error::INVALID_CONFIG),
        (&[(SESSION_TIMEOUT, APPEND, Some("7000"))], error::INVALID_CONFIG),
        (&[(HEARTBEAT_INTERVAL, SET, Some("45000"))], error::INVALID_CONFIG),
        (&[("consumer.magic", SET, Some("1"))], error::INVALID_CONFIG),
        (&[(HEARTBEAT_INTERVAL, SET, Some("800")), (HEARTBEAT_INTERVAL, DELETE, None)], error::INVALID_REQUEST),
    ] {
        let response = client.call(1, incremental("g", changes)).await;
        assert_eq!(response.responses[0].error_code, expected, "{changes:?}");
        assert!(response.responses[0].error_message.as_ref().is_some_and(|message| !message.is_empty()));
    }
    let response = client.call(1, incremental("", &[(HEARTBEAT_INTERVAL, SET, Some("800"))])).await;
    assert_eq!(response.responses[0].error_code, error::INVALID_REQUEST);
    assert_eq!(described(&mut client, "g").await, before);
}
