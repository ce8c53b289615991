//! Group requests at the right broker and at a wrong one, and what the log says of them.

use lockstep_client::{Admin, NewTopic};
use lockstep_wire::codec::join_group_request::JoinGroupRequestProtocol;
use lockstep_wire::codec::leave_group_request::MemberIdentity;
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::{
    ConsumerGroupHeartbeatRequest, FindCoordinatorRequest, GroupId, HeartbeatRequest, JoinGroupRequest,
    LeaveGroupRequest, OffsetCommitRequest, StrBytes, SyncGroupRequest, TopicName,
};
use tests::{Cluster, PATIENCE, WireConnection, wait_until};

const NOT_COORDINATOR: i16 = 16;
const UNKNOWN_MEMBER_ID: i16 = 25;
const MEMBER_ID_REQUIRED: i16 = 79;
const GROUP: &str = "auditors";

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group() -> GroupId {
    GroupId(text(GROUP))
}

/// Address of the group's coordinator.
async fn coordinator(cluster: &Cluster) -> String {
    wait_until("the group has a coordinator", PATIENCE, || async {
        let mut connection = WireConnection::connect(&cluster.address(1)).await.ok()?;
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(GROUP)]);
        let response = connection.call(4, request).await.expect("answered");
        let found = response.coordinators.first()?;
        (found.error_code == 0).then(|| format!("{}:{}", found.host.as_str(), found.port))
    })
    .await
}

fn join(member_id: &str) -> JoinGroupRequest {
    JoinGroupRequest::default()
        .with_group_id(group())
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_member_id(text(member_id))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![
            JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(vec![0, 0, 0, 0, 0, 0].into()),
        ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_lead_the_group_refuses_and_says_why() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new("facts", 1)).await.expect("created");
    let leader = cluster.node_at(&coordinator(&cluster).await);
    let other = cluster.ids().find(|id| *id != leader).expect("three nodes");
    let mut connection = WireConnection::connect(&cluster.address(other)).await.expect("connected");

    let joined = connection.call(9, join("")).await.expect("answered");
    assert_eq!(joined.error_code, NOT_COORDINATOR);
    let request = HeartbeatRequest::default().with_group_id(group()).with_member_id(text("m")).with_generation_id(1);
    assert_eq!(connection.call(4, request).await.expect("answered").error_code, NOT_COORDINATOR);
    let request = SyncGroupRequest::default()
        .with_group_id(group())
        .with_member_id(text("m"))
        .with_generation_id(1)
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")));
    assert_eq!(connection.call(5, request).await.expect("answered").error_code, NOT_COORDINATOR);
    let member = MemberIdentity::default().with_member_id(text("m"));
    let request = LeaveGroupRequest::default().with_group_id(group()).with_members(vec![member]);
    assert_eq!(connection.call(5, request).await.expect("answered").error_code, NOT_COORDINATOR);
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(3);
    let topic =
        OffsetCommitRequestTopic::default().with_name(TopicName(text("facts"))).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(group())
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let committed = connection.call(8, request).await.expect("answered");
    assert_eq!(committed.topics[0].partitions[0].error_code, NOT_COORDINATOR);
    let request = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group())
        .with_member_id(text("m"))
        .with_rebalance_timeout_ms(10_000)
        .with_subscribed_topic_names(Some(vec![TopicName(text("facts"))]))
        .with_topic_partitions(Some(Vec::new()));
    let beat = connection.call(1, request).await.expect("answered");
    assert_eq!(beat.error_code, NOT_COORDINATOR);
    let message = beat.error_message.expect("a message");
    assert!(message.as_str().contains("only leader can handle consumer group operations"), "{message:?}");

    wait_until("the log says why", PATIENCE, || async {
        cluster.log(other).contains("only leader can handle consumer group operations").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_beating_and_leaving_can_be_found_in_the_coordinators_log() {
    let cluster = Cluster::start_with(3, |_, config| config["server"]["log_level"] = "debug".into()).await;
    let address = coordinator(&cluster).await;
    let leader = cluster.node_at(&address);
    let mut connection = WireConnection::connect(&address).await.expect("connected");

    let joined = connection.call(9, join("")).await.expect("answered");
    assert_eq!(joined.error_code, MEMBER_ID_REQUIRED, "a new member is given an id first");
    let member_id = joined.member_id;
    let joined = connection.call(9, join(member_id.as_str())).await.expect("answered");
    assert_eq!((joined.error_code, joined.leader.clone()), (0, member_id.clone()));
    let request = SyncGroupRequest::default()
        .with_group_id(group())
        .with_member_id(member_id.clone())
        .with_generation_id(joined.generation_id)
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")));
    assert_eq!(connection.call(5, request).await.expect("answered").error_code, 0);
    let beat = |id: &StrBytes| {
        HeartbeatRequest::default()
            .with_group_id(group())
            .with_member_id(id.clone())
            .with_generation_id(joined.generation_id)
    };
    assert_eq!(connection.call(4, beat(&member_id)).await.expect("answered").error_code, 0);
    assert_eq!(connection.call(4, beat(&text("nobody"))).await.expect("answered").error_code, UNKNOWN_MEMBER_ID);
    let member = MemberIdentity::default().with_member_id(member_id.clone());
    let request = LeaveGroupRequest::default().with_group_id(group()).with_members(vec![member]);
    assert_eq!(connection.call(5, request).await.expect("answered").error_code, 0);

    wait_until("the log tells the story of the member", PATIENCE, || async {
        let log = cluster.log(leader);
        let line_with = |word: &str| log.lines().any(|line| line.contains(word) && line.contains(GROUP));
        ["JoinGroup", "LeaveGroup", "Heartbeat"].iter().all(|word| line_with(word)).then_some(())
    })
    .await;
    for id in cluster.ids() {
        let log = cluster.log(id);
        for word in ["raft", "cluster"] {
            assert!(log.lines().any(|line| line.contains(word)), "the log of node {id} never speaks of {word}");
        }
    }
}
