//! Group requests at the right broker and at a wrong one, and what the log says of them.

use std::cell::Cell;

use lockstep_client::{Admin, NewTopic};
use lockstep_wire::codec::join_group_request::JoinGroupRequestProtocol;
use lockstep_wire::codec::leave_group_request::MemberIdentity;
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::{
    ConsumerGroupHeartbeatRequest, FindCoordinatorRequest, GroupId, HeartbeatRequest, JoinGroupRequest,
    LeaveGroupRequest, OffsetCommitRequest, StrBytes, SyncGroupRequest, TopicName,
};
use tests::{Cluster, PATIENCE, WireConnection, wait_until};

const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
const COORDINATOR_NOT_AVAILABLE: i16 = 15;
const NOT_COORDINATOR: i16 = 16;
const UNKNOWN_MEMBER_ID: i16 = 25;
const MEMBER_ID_REQUIRED: i16 = 79;
const GROUP: &str = "auditors";

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group(name: &str) -> GroupId {
    GroupId(text(name))
}

/// Address of the coordinator of [`GROUP`].
async fn coordinator(cluster: &Cluster) -> String {
    coordinator_of(cluster, GROUP).await
}

async fn coordinator_of(cluster: &Cluster, group: &str) -> String {
    wait_until("the group has a coordinator", PATIENCE, || async {
        let mut connection = WireConnection::connect(&cluster.address(1)).await.ok()?;
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(group)]);
        let response = connection.call(4, request).await.expect("answered");
        let found = response.coordinators.first()?;
        (found.error_code == 0).then(|| format!("{}:{}", found.host.as_str(), found.port))
    })
    .await
}

fn join(group_id: &str, member_id: &str) -> JoinGroupRequest {
    JoinGroupRequest::default()
        .with_group_id(group(group_id))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_member_id(text(member_id))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![
            JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(vec![0, 0, 0, 0, 0, 0].into()),
        ])
}

fn sync(group_id: &str, member_id: &StrBytes, generation_id: i32) -> SyncGroupRequest {
    SyncGroupRequest::default()
        .with_group_id(group(group_id))
        .with_member_id(member_id.clone())
        .with_generation_id(generation_id)
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
}

fn leave(group_id: &str, member_id: &StrBytes) -> LeaveGroupRequest {
    let member = MemberIdentity::default().with_member_id(member_id.clone());
    LeaveGroupRequest::default().with_group_id(group(group_id)).with_members(vec![member])
}

/// The terms of all shards.
async fn terms(cluster: &Cluster) -> Option<Vec<u64>> {
    Some(cluster.status().await?.shards.iter().map(|shard| shard.term).collect())
}

/// What a broker answers to each request of a group.
async fn refusals(address: &str) -> Vec<(&'static str, i16)> {
    let mut connection = WireConnection::connect(address).await.expect("connected");
    let joined = connection.call(9, join(GROUP, "")).await.expect("answered");
    let request =
        HeartbeatRequest::default().with_group_id(group(GROUP)).with_member_id(text("m")).with_generation_id(1);
    let heartbeat = connection.call(4, request).await.expect("answered");
    let synced = connection.call(5, sync(GROUP, &text("m"), 1)).await.expect("answered");
    let left = connection.call(5, leave(GROUP, &text("m"))).await.expect("answered");
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(3);
    let topic =
        OffsetCommitRequestTopic::default().with_name(TopicName(text("facts"))).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(group(GROUP))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let committed = connection.call(8, request).await.expect("answered");
    let request = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group(GROUP))
        .with_member_id(text("m"))
        .with_rebalance_timeout_ms(10_000)
        .with_subscribed_topic_names(Some(vec![TopicName(text("facts"))]))
        .with_topic_partitions(Some(Vec::new()));
    let beat = connection.call(1, request).await.expect("answered");
    if beat.error_code == NOT_COORDINATOR {
        let message = beat.error_message.expect("a message");
        assert!(message.as_str().contains("only leader can handle consumer group operations"), "{message:?}");
    }
    vec![
        ("JoinGroup", joined.error_code),
        ("Heartbeat", heartbeat.error_code),
        ("SyncGroup", synced.error_code),
        ("LeaveGroup", left.error_code),
        ("OffsetCommit", committed.topics[0].partitions[0].error_code),
        ("ConsumerGroupHeartbeat", beat.error_code),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_lead_the_group_refuses_and_says_why() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new("facts", 1)).await.expect("created");
    let other = wait_until("a broker that does not lead the group refuses everything", PATIENCE, || async {
        let before = terms(&cluster).await?;
        let leader = cluster.node_at(&coordinator(&cluster).await);
        let other = cluster.ids().find(|id| *id != leader).expect("three nodes");
        let refusals = refusals(&cluster.address(other)).await;
        if refusals.iter().all(|(_, code)| *code == NOT_COORDINATOR) {
            return Some(other);
        }
        // Only an election can have made another leader of it.
        assert_ne!(terms(&cluster).await, Some(before), "node {other} answers {refusals:?}");
        None
    })
    .await;

    wait_until("the log says why", PATIENCE, || async {
        cluster.log(other).contains("only leader can handle consumer group operations").then_some(())
    })
    .await;
}

/// A member's life. False when the coordinator moved meanwhile: then nothing can be said of it.
async fn come_and_go(coordinator: &str, group_id: &str) -> bool {
    let is_moving = |code| [COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR].contains(&code);
    let mut connection = WireConnection::connect(coordinator).await.expect("connected");
    let joined = connection.call(9, join(group_id, "")).await.expect("answered");
    if is_moving(joined.error_code) {
        return false;
    }
    assert_eq!(joined.error_code, MEMBER_ID_REQUIRED, "a new member is given an id first");
    let member_id = joined.member_id;
    let joined = connection.call(9, join(group_id, member_id.as_str())).await.expect("answered");
    if is_moving(joined.error_code) {
        return false;
    }
    assert_eq!((joined.error_code, joined.leader), (0, member_id.clone()));
    let generation_id = joined.generation_id;
    let beat = |id: &StrBytes| {
        HeartbeatRequest::default()
            .with_group_id(group(group_id))
            .with_member_id(id.clone())
            .with_generation_id(generation_id)
    };
    let synced = connection.call(5, sync(group_id, &member_id, generation_id)).await.expect("answered");
    let beaten = connection.call(4, beat(&member_id)).await.expect("answered");
    let of_nobody = connection.call(4, beat(&text("nobody"))).await.expect("answered");
    let left = connection.call(5, leave(group_id, &member_id)).await.expect("answered");
    let codes = [synced.error_code, beaten.error_code, of_nobody.error_code, left.error_code];
    if codes.iter().any(|code| is_moving(*code)) {
        return false;
    }
    assert_eq!(codes, [0, 0, UNKNOWN_MEMBER_ID, 0]);
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_beating_and_leaving_can_be_found_in_the_coordinators_log() {
    let cluster = Cluster::start_with(3, |_, config| config["server"]["log_level"] = "debug".into()).await;
    let tries = Cell::new(0);
    let (leader, told) = wait_until("a member comes and goes under one coordinator", PATIENCE, || async {
        tries.set(tries.get() + 1);
        let group = format!("{GROUP}-{}", tries.get());
        let address = coordinator_of(&cluster, &group).await;
        come_and_go(&address, &group).await.then(|| (cluster.node_at(&address), group))
    })
    .await;

    wait_until("the log tells the story of the member", PATIENCE, || async {
        let log = cluster.log(leader);
        let line_with = |word: &str| log.lines().any(|line| line.contains(word) && line.contains(&told));
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
