//! What groups refuse: Kafka's error, and nothing changes.

use crate::groups::{commit, committed, error, fetched, group_id};
use crate::groups_classic::{heartbeat as classic_heartbeat, join as classic_join, sync};
use crate::groups_consumer::{heartbeat, join};
use crate::support::{TestBroker, TestClient};
use bytes::Bytes;
use lockstep_wire::codec::join_group_request::JoinGroupRequestProtocol;
use lockstep_wire::codec::leave_group_request::MemberIdentity;
use lockstep_wire::codec::{
    ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    LeaveGroupRequest, TopicName,
};

/// Everything that can be seen of the two groups.
type Seen = (ConsumerGroupDescribeResponse, DescribeGroupsResponse, Vec<(i32, i64)>, Vec<(i32, i64)>);

async fn seen(client: &mut TestClient) -> Seen {
    let consumer = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id("modern")]);
    let classic = DescribeGroupsRequest::default().with_groups(vec![group_id("classic")]);
    (
        client.call(1, consumer).await,
        client.call(6, classic).await,
        fetched(client, 8, "modern", true).await,
        fetched(client, 8, "classic", true).await,
    )
}

/// Two stable groups of one member each, with a commit; the classic member's id.
async fn two_groups(client: &mut TestClient) -> String {
    let joined = client.call(1, join("modern", "m")).await;
    assert_eq!((joined.error_code, joined.member_epoch), (0, 1));
    assert_eq!(committed(client, 9, commit("modern", "m", 1, 0, 5)).await, 0);
    let asked = client.call(9, classic_join(9, "classic", "")).await;
    let member = asked.member_id.to_string();
    let joined = client.call(9, classic_join(9, "classic", &member)).await;
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    let synced = client.call(5, sync(5, "classic", &member, 1, &[(&member, "all")])).await;
    assert_eq!(synced.error_code, 0);
    assert_eq!(committed(client, 9, commit("classic", &member, 1, 0, 6)).await, 0);
    member
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_member_generation_epoch_instance_or_topic_changes_nothing() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    let member = two_groups(&mut client).await;
    let before = seen(&mut client).await;

    // The consumer protocol.
    assert_eq!(client.call(1, heartbeat("modern", "stranger", 1)).await.error_code, error::UNKNOWN_MEMBER_ID);
    assert_eq!(client.call(1, heartbeat("modern", "m", 9)).await.error_code, FENCED_MEMBER_EPOCH);
    assert_eq!(client.call(1, heartbeat("none", "m", 1)).await.error_code, error::GROUP_ID_NOT_FOUND);
    let instance = heartbeat("modern", "m", 1).with_instance_id(Some("other".into()));
    assert_eq!(client.call(1, instance).await.error_code, error::UNKNOWN_MEMBER_ID);
    let unsubscribed = join("modern", "new").with_subscribed_topic_names(None);
    assert_eq!(client.call(1, unsubscribed).await.error_code, error::INVALID_REQUEST);
    let long = "x".repeat(1_025);
    assert_eq!(client.call(1, join("modern", &long)).await.error_code, error::INVALID_REQUEST);

    // The classic one.
    assert_eq!(classic_heartbeat(&mut client, 4, "classic", "stranger", 1).await, error::UNKNOWN_MEMBER_ID);
    assert_eq!(classic_heartbeat(&mut client, 4, "classic", &member, 2).await, error::ILLEGAL_GENERATION);
    let synced = client.call(5, sync(5, "classic", &member, 7, &[])).await;
    assert_eq!(synced.error_code, error::ILLEGAL_GENERATION);
    let other = JoinGroupRequestProtocol::default().with_name("other".into());
    let inconsistent = classic_join(9, "classic", "").with_protocols(vec![other]);
    assert_eq!(client.call(9, inconsistent).await.error_code, error::INCONSISTENT_GROUP_PROTOCOL);
    let hasty = classic_join(9, "classic", &member).with_session_timeout_ms(1);
    assert_eq!(client.call(9, hasty).await.error_code, error::INVALID_SESSION_TIMEOUT);

    // Commits.
    assert_eq!(committed(&mut client, 9, commit("modern", "m", 9, 0, 7)).await, error::STALE_MEMBER_EPOCH);
    assert_eq!(committed(&mut client, 9, commit("modern", "stranger", 1, 0, 7)).await, error::UNKNOWN_MEMBER_ID);
    assert_eq!(committed(&mut client, 9, commit("classic", &member, 2, 0, 7)).await, error::ILLEGAL_GENERATION);
    assert_eq!(committed(&mut client, 9, commit("classic", "", -1, 0, 7)).await, error::UNKNOWN_MEMBER_ID);
    assert_eq!(
        committed(&mut client, 9, commit("modern", "m", 1, 2, 7)).await,
        error::UNKNOWN_TOPIC_OR_PARTITION,
        "there are two partitions"
    );
    let mut elsewhere = commit("modern", "m", 1, 0, 7);
    elsewhere.topics[0].name = TopicName("none".into());
    assert_eq!(committed(&mut client, 9, elsewhere).await, error::UNKNOWN_TOPIC_OR_PARTITION);
    let mut noted = commit("modern", "m", 1, 0, 7);
    noted.topics[0].partitions[0].committed_metadata = Some("x".repeat(4_097).into());
    assert_eq!(committed(&mut client, 9, noted).await, error::OFFSET_METADATA_TOO_LARGE);

    assert_eq!(seen(&mut client).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_far_too_large_is_refused_and_the_group_goes_on() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    let member = two_groups(&mut client).await;
    let before = seen(&mut client).await;

    let heavy =
        JoinGroupRequestProtocol::default().with_name("range".into()).with_metadata(Bytes::from(vec![7; 10 << 20]));
    let heavy = classic_join(9, "classic", &member).with_protocols(vec![heavy]);
    assert_eq!(client.call(9, heavy).await.error_code, UNKNOWN_SERVER_ERROR);

    let assignment = "x".repeat(10 << 20);
    let heavy = client.call(5, sync(5, "classic", &member, 1, &[(&member, &assignment)])).await;
    assert_eq!((heavy.error_code, &heavy.assignment[..]), (0, &b"all"[..]), "the generation has its assignment");

    // As many as a frame of this kind may hold.
    let crowd = (0..50_000).map(|n| MemberIdentity::default().with_member_id(format!("m{n}").into()));
    let crowd = LeaveGroupRequest::default().with_group_id(group_id("classic")).with_members(crowd.collect());
    let outcomes = client.call(5, crowd).await.members;
    assert_eq!(outcomes.len(), 50_000);
    assert!(outcomes.iter().all(|member| member.error_code == error::UNKNOWN_MEMBER_ID));

    assert_eq!(seen(&mut client).await, before);
    assert_eq!(classic_heartbeat(&mut client, 4, "classic", &member, 1).await, 0);
    assert_eq!(client.call(1, heartbeat("modern", "m", 1)).await.error_code, 0);
}

const UNKNOWN_SERVER_ERROR: i16 = -1;
const FENCED_MEMBER_EPOCH: i16 = 110;
