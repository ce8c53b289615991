//! Deleting groups and committed offsets, over the wire.

use crate::groups::{commit, committed, error, fetched, group_id, listed};
use crate::groups_consumer::{heartbeat, join};
use crate::support::{TestBroker, TestClient};
use lockstep_wire::codec::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
use lockstep_wire::codec::{DeleteGroupsRequest, OffsetDeleteRequest, OffsetDeleteResponse, TopicName};

/// The error of each group, in the order of the answer.
async fn deleted(client: &mut TestClient, version: i16, groups: &[&str]) -> Vec<(String, i16)> {
    let names = groups.iter().map(|group| group_id(group)).collect();
    let response = client.call(version, DeleteGroupsRequest::default().with_groups_names(names)).await;
    response.results.into_iter().map(|result| (result.group_id.to_string(), result.error_code)).collect()
}

fn offset_delete(group: &str, topics: &[(&'static str, &[i32])]) -> OffsetDeleteRequest {
    let topics = topics.iter().map(|(name, partitions)| {
        let partitions =
            partitions.iter().map(|index| OffsetDeleteRequestPartition::default().with_partition_index(*index));
        OffsetDeleteRequestTopic::default().with_name(TopicName((*name).into())).with_partitions(partitions.collect())
    });
    OffsetDeleteRequest::default().with_group_id(group_id(group)).with_topics(topics.collect())
}

fn errors(response: &OffsetDeleteResponse) -> Vec<i16> {
    response.topics.iter().flat_map(|topic| &topic.partitions).map(|one| one.error_code).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_members_is_deleted_with_its_offsets() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    for version in 0..=2 {
        assert_eq!(committed(&mut client, 9, commit("g", "", -1, 0, 7)).await, 0);
        assert_eq!(deleted(&mut client, version, &["g"]).await, [("g".to_owned(), 0)], "DeleteGroups {version}");
        assert!(listed(&mut client, &[], &[]).await.is_empty());
        assert_eq!(fetched(&mut client, 9, "g", true).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_group_to_delete_has_its_own_outcome() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    assert_eq!(committed(&mut client, 9, commit("idle", "", -1, 0, 7)).await, 0);
    assert_eq!(client.call(1, join("busy", "m")).await.error_code, 0);
    let outcomes = deleted(&mut client, 2, &["busy", "nobody", "idle", "", "idle"]).await;
    let expected = [
        ("busy", error::NON_EMPTY_GROUP),
        ("nobody", error::GROUP_ID_NOT_FOUND),
        ("idle", 0),
        ("", error::GROUP_ID_NOT_FOUND),
    ];
    assert_eq!(outcomes, expected.map(|(group, error)| (group.to_owned(), error)));
    assert_eq!(client.call(1, heartbeat("busy", "m", -1)).await.error_code, 0);
    assert_eq!(deleted(&mut client, 2, &["busy"]).await, [("busy".to_owned(), 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_without_a_group_id_can_be_deleted() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    assert_eq!(committed(&mut client, 7, commit("", "", -1, 0, 7)).await, 0);
    assert_eq!(fetched(&mut client, 7, "", true).await, [(0, 7)]);
    assert_eq!(deleted(&mut client, 2, &[""]).await, [(String::new(), 0)]);
    assert_eq!(fetched(&mut client, 7, "", true).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_deletes_no_more_than_ten_thousand_groups() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    assert_eq!(committed(&mut client, 9, commit("first", "", -1, 0, 7)).await, 0);
    assert_eq!(committed(&mut client, 9, commit("last", "", -1, 0, 7)).await, 0);
    let made_up: Vec<String> = (0..9_999).map(|number| format!("made-up-{number}")).collect();
    let mut names = vec!["first"];
    names.extend(made_up.iter().map(String::as_str));
    names.push("last");
    let outcomes = deleted(&mut client, 2, &names).await;
    assert!(outcomes.iter().map(|(group, _)| group.as_str()).eq(names.iter().copied()));
    let errors: Vec<i16> = outcomes.into_iter().map(|(_, error)| error).collect();
    assert_eq!((errors[0], errors[10_000]), (0, error::INVALID_REQUEST));
    assert!(errors[1..10_000].iter().all(|code| *code == error::GROUP_ID_NOT_FOUND));
    assert_eq!(deleted(&mut client, 2, &["last"]).await, [("last".to_owned(), 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_deleted_one_by_one() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    for partition in 0..2 {
        assert_eq!(committed(&mut client, 9, commit("g", "", -1, partition, 7)).await, 0);
    }
    let response = client.call(0, offset_delete("g", &[("nowhere", &[0]), ("t", &[1, 5, -1, 1])])).await;
    let missing = error::UNKNOWN_TOPIC_OR_PARTITION;
    assert_eq!((response.error_code, errors(&response)), (0, vec![missing, 0, missing, missing, 0]));
    assert_eq!(fetched(&mut client, 9, "g", true).await, [(0, 7)]);
    // There is nothing left to delete, which is no error.
    assert_eq!(errors(&client.call(0, offset_delete("g", &[("t", &[1])])).await), [0]);

    let response = client.call(0, offset_delete("nobody", &[("t", &[0])])).await;
    assert_eq!((response.error_code, response.topics.len()), (error::GROUP_ID_NOT_FOUND, 0));
    let response = client.call(0, offset_delete("", &[("t", &[0])])).await;
    assert_eq!(response.error_code, error::INVALID_GROUP_ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_of_a_subscribed_topic_stay() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    broker.create_topic("other", 1).await;
    let mut client = broker.connect().await;
    let joined = client.call(1, join("g", "m")).await;
    assert_eq!(committed(&mut client, 9, commit("g", "m", joined.member_epoch, 0, 7)).await, 0);
    let response = client.call(0, offset_delete("g", &[("t", &[0]), ("other", &[0])])).await;
    assert_eq!((response.error_code, errors(&response)), (0, vec![error::GROUP_SUBSCRIBED_TO_TOPIC, 0]));
    assert_eq!(fetched(&mut client, 9, "g", true).await, [(0, 7)]);
}
