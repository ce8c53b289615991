//! What requests of both group protocols share: finding the coordinator, committed offsets, lists.

use crate::groups_consumer::{heartbeat, join};
use crate::support::{TestBroker, TestClient};
use lockstep_wire::codec::list_groups_response::ListedGroup;
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use lockstep_wire::codec::{
    DescribeGroupsRequest, FindCoordinatorRequest, GroupId, ListGroupsRequest, OffsetCommitRequest, OffsetFetchRequest,
    TopicName,
};
use lockstep_wire::{ApiKey, Response};

/// Error numbers of the protocol that the tests of groups expect.
pub(crate) mod error {
    pub(crate) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub(crate) const OFFSET_METADATA_TOO_LARGE: i16 = 12;
    pub(crate) const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
    pub(crate) const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    pub(crate) const NOT_COORDINATOR: i16 = 16;
    pub(crate) const ILLEGAL_GENERATION: i16 = 22;
    pub(crate) const INCONSISTENT_GROUP_PROTOCOL: i16 = 23;
    pub(crate) const INVALID_GROUP_ID: i16 = 24;
    pub(crate) const UNKNOWN_MEMBER_ID: i16 = 25;
    pub(crate) const INVALID_SESSION_TIMEOUT: i16 = 26;
    pub(crate) const REBALANCE_IN_PROGRESS: i16 = 27;
    pub(crate) const UNSUPPORTED_VERSION: i16 = 35;
    pub(crate) const INVALID_CONFIG: i16 = 40;
    pub(crate) const INVALID_REQUEST: i16 = 42;
    pub(crate) const NON_EMPTY_GROUP: i16 = 68;
    pub(crate) const GROUP_ID_NOT_FOUND: i16 = 69;
    pub(crate) const MEMBER_ID_REQUIRED: i16 = 79;
    pub(crate) const FENCED_INSTANCE_ID: i16 = 82;
    pub(crate) const GROUP_SUBSCRIBED_TO_TOPIC: i16 = 86;
    pub(crate) const FENCED_MEMBER_EPOCH: i16 = 110;
    pub(crate) const UNRELEASED_INSTANCE_ID: i16 = 111;
    pub(crate) const UNSUPPORTED_ASSIGNOR: i16 = 112;
    pub(crate) const STALE_MEMBER_EPOCH: i16 = 113;
    pub(crate) const INVALID_REGULAR_EXPRESSION: i16 = 128;
}

pub(crate) fn group_id(group: &str) -> GroupId {
    GroupId(group.to_owned().into())
}

/// A commit of one partition of topic `t`.
pub(crate) fn commit(group: &str, member: &str, generation: i32, partition: i32, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(partition)
        .with_committed_offset(offset)
        .with_committed_metadata(Some("note".into()));
    let topic = OffsetCommitRequestTopic::default().with_name(TopicName("t".into())).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group_id(group))
        .with_member_id(member.to_owned().into())
        .with_generation_id_or_member_epoch(generation)
        .with_topics(vec![topic])
}

/// The error of the one partition.
pub(crate) async fn committed(client: &mut TestClient, version: i16, request: OffsetCommitRequest) -> i16 {
    client.call(version, request).await.topics[0].partitions[0].error_code
}

/// What is committed for partitions 0 and 1 of topic `t`, or for everything: (partition, offset).
pub(crate) async fn fetched(client: &mut TestClient, version: i16, group: &str, all: bool) -> Vec<(i32, i64)> {
    if version >= 8 {
        let topic =
            OffsetFetchRequestTopics::default().with_name(TopicName("t".into())).with_partition_indexes(vec![0, 1]);
        let group =
            OffsetFetchRequestGroup::default().with_group_id(group_id(group)).with_topics((!all).then(|| vec![topic]));
        let response = client.call(version, OffsetFetchRequest::default().with_groups(vec![group])).await;
        assert_eq!(response.groups[0].error_code, 0);
        let partitions = response.groups[0].topics.iter().flat_map(|topic| &topic.partitions);
        return partitions.map(|one| (one.partition_index, one.committed_offset)).collect();
    }
    let topic = OffsetFetchRequestTopic::default().with_name(TopicName("t".into())).with_partition_indexes(vec![0, 1]);
    let request = OffsetFetchRequest::default().with_group_id(group_id(group)).with_topics((!all).then(|| vec![topic]));
    let response = client.call(version, request).await;
    assert_eq!(response.error_code, 0);
    let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.map(|one| (one.partition_index, one.committed_offset)).collect()
}

/// The groups that ListGroups v5 names, by these filters.
pub(crate) async fn listed(client: &mut TestClient, states: &[&str], types: &[&str]) -> Vec<ListedGroup> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned().into()).collect();
    let request = ListGroupsRequest::default().with_states_filter(names(states)).with_types_filter(names(types));
    let response = client.call(5, request).await;
    assert_eq!(response.error_code, 0);
    response.groups
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_broker_coordinates_every_group() {
    let broker = TestBroker::start().await;
    let address = broker.broker.address();
    let mut client = broker.connect().await;
    for version in 0..=6 {
        for key in ["a", "b", "c"] {
            let request = FindCoordinatorRequest::default();
            let response = if version >= 4 {
                let keys = vec![key.into(), "other".into()];
                let response = client.call(version, request.with_coordinator_keys(keys)).await;
                assert_eq!(response.coordinators.len(), 2);
                let found = &response.coordinators[0];
                assert_eq!(found.key.as_str(), key);
                (found.error_code, found.node_id.0, format!("{}:{}", found.host.as_str(), found.port))
            } else {
                let found = client.call(version, request.with_key(key.into())).await;
                (found.error_code, found.node_id.0, format!("{}:{}", found.host.as_str(), found.port))
            };
            assert_eq!(response, (0, 1, address.clone()), "FindCoordinator {version}");
        }
    }
    let transaction = FindCoordinatorRequest::default().with_key("tx".into()).with_key_type(1);
    assert_eq!(client.call(3, transaction).await.error_code, 0);
    let share = FindCoordinatorRequest::default().with_coordinator_keys(vec!["g:t:0".into()]).with_key_type(2);
    assert_eq!(client.call(6, share).await.coordinators[0].error_code, error::INVALID_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_fetched_in_every_version() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    for version in 1..=9 {
        assert_eq!(fetched(&mut client, version, "nobody", false).await, [(0, -1), (1, -1)], "OffsetFetch {version}");
    }
    for version in 2..=9 {
        let offset = 100 + i64::from(version);
        assert_eq!(committed(&mut client, version, commit("g", "", -1, 1, offset)).await, 0, "OffsetCommit {version}");
        for version in 1..=9 {
            assert_eq!(fetched(&mut client, version, "g", false).await, [(0, -1), (1, offset)]);
        }
        // Version 1 cannot ask for all.
        for version in 2..=9 {
            assert_eq!(fetched(&mut client, version, "g", true).await, [(1, offset)]);
        }
    }
    let groups = listed(&mut client, &["empty"], &["classic"]).await;
    assert_eq!(groups.iter().map(|group| group.group_id.as_str()).collect::<Vec<_>>(), ["g"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_twice_is_told_once() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    assert_eq!(committed(&mut client, 8, commit("g", "", -1, 1, 5)).await, 0);
    let topic =
        OffsetFetchRequestTopics::default().with_name(TopicName("t".into())).with_partition_indexes(vec![1, 1, 0, 1]);
    let group = OffsetFetchRequestGroup::default()
        .with_group_id(group_id("g"))
        .with_topics(Some(vec![topic.clone(), topic.clone()]));
    let response = client.call(8, OffsetFetchRequest::default().with_groups(vec![group.clone(), group])).await;
    assert_eq!(response.groups.len(), 1);
    let partitions = response.groups[0].topics.iter().flat_map(|topic| &topic.partitions);
    let offsets: Vec<_> = partitions.map(|one| (one.partition_index, one.committed_offset)).collect();
    assert_eq!(offsets, [(1, 5), (0, -1)]);
    let request = DescribeGroupsRequest::default().with_groups(vec![group_id("g"), group_id("h"), group_id("g")]);
    let described = client.call(5, request).await;
    let ids: Vec<_> = described.groups.iter().map(|group| group.group_id.as_str()).collect();
    assert_eq!(ids, ["g", "h"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_do_not_wait_for_each_other_are_made_and_answered_in_order() {
    const COMMITS: i64 = 200;
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    // The first commit needs the join before it to be over.
    let join = client.send(1, join("g", "m")).await;
    let mut sent = Vec::new();
    for offset in 1..=COMMITS {
        sent.push(client.send(9, commit("g", "m", 1, 0, offset)).await);
    }
    let leave = client.send(1, heartbeat("g", "m", -1)).await;
    let late = client.send(9, commit("g", "m", 1, 0, COMMITS + 1)).await;

    let (answered, _) = client.receive(ApiKey::ConsumerGroupHeartbeat, 1).await.expect("the join is answered");
    assert_eq!(answered, join);
    let code = |response: Response| match response {
        Response::OffsetCommit(response) => response.topics[0].partitions[0].error_code,
        other => panic!("not an answer to a commit: {other:?}"),
    };
    for expected in sent {
        let (answered, response) = client.receive(ApiKey::OffsetCommit, 9).await.expect("a commit is answered");
        assert_eq!((answered, code(response)), (expected, 0));
    }
    let (answered, _) = client.receive(ApiKey::ConsumerGroupHeartbeat, 1).await.expect("the farewell is answered");
    assert_eq!(answered, leave);
    let (answered, response) = client.receive(ApiKey::OffsetCommit, 9).await.expect("the last commit is answered");
    assert_eq!((answered, code(response)), (late, error::UNKNOWN_MEMBER_ID), "the member has left by then");
    assert_eq!(fetched(&mut client, 9, "g", true).await, [(0, COMMITS)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_partition_of_a_commit_has_its_own_outcome() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    let mut request = commit("g", "", -1, 0, 5);
    let template = request.topics[0].partitions[0].clone();
    let long = "x".repeat(5_000);
    request.topics[0].partitions.extend([
        template.clone().with_partition_index(7),
        template.clone().with_partition_index(-1),
        template.clone().with_partition_index(1).with_committed_metadata(Some(long.into())),
    ]);
    let mut unknown = request.topics[0].clone();
    unknown.name = TopicName("nowhere".into());
    unknown.partitions.truncate(1);
    request.topics.push(unknown);
    let response = client.call(8, request).await;
    let errors: Vec<i16> =
        response.topics.iter().flat_map(|topic| &topic.partitions).map(|one| one.error_code).collect();
    let missing = error::UNKNOWN_TOPIC_OR_PARTITION;
    assert_eq!(errors, [0, missing, missing, error::OFFSET_METADATA_TOO_LARGE, missing]);
    assert_eq!(fetched(&mut client, 7, "g", true).await, [(0, 5)]);
}
