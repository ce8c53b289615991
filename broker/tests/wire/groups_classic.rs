//! The classic group protocol, over the wire.

use crate::groups::{commit, committed, error, fetched, group_id, listed};
use crate::support::{TestBroker, TestClient};
use bytes::Bytes;
use lockstep_wire::codec::join_group_request::JoinGroupRequestProtocol;
use lockstep_wire::codec::leave_group_request::MemberIdentity;
use lockstep_wire::codec::sync_group_request::SyncGroupRequestAssignment;
use lockstep_wire::codec::{
    DescribeGroupsRequest, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
    SyncGroupResponse,
};
use lockstep_wire::{ApiKey, Response};

pub(crate) fn join(version: i16, group: &str, member: &str) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name("range".into())
        .with_metadata(Bytes::from_static(b"subscription"));
    let request = JoinGroupRequest::default()
        .with_group_id(group_id(group))
        .with_member_id(member.to_owned().into())
        .with_session_timeout_ms(30_000)
        .with_protocol_type("consumer".into())
        .with_protocols(vec![protocol]);
    if version >= 1 { request.with_rebalance_timeout_ms(30_000) } else { request }
}

pub(crate) fn sync(
    version: i16,
    group: &str,
    member: &str,
    generation: i32,
    assignments: &[(&str, &str)],
) -> SyncGroupRequest {
    let assignments = assignments.iter().map(|(member, assignment)| {
        SyncGroupRequestAssignment::default()
            .with_member_id((*member).to_owned().into())
            .with_assignment(Bytes::copy_from_slice(assignment.as_bytes()))
    });
    let request = SyncGroupRequest::default()
        .with_group_id(group_id(group))
        .with_member_id(member.to_owned().into())
        .with_generation_id(generation)
        .with_assignments(assignments.collect());
    if version >= 5 {
        request.with_protocol_type(Some("consumer".into())).with_protocol_name(Some("range".into()))
    } else {
        request
    }
}

pub(crate) async fn heartbeat(
    client: &mut TestClient,
    version: i16,
    group: &str,
    member: &str,
    generation: i32,
) -> i16 {
    let request = HeartbeatRequest::default()
        .with_group_id(group_id(group))
        .with_member_id(member.to_owned().into())
        .with_generation_id(generation);
    client.call(version, request).await.error_code
}

/// Outcomes of the whole request and of each member.
async fn leave(client: &mut TestClient, version: i16, group: &str, members: &[&str]) -> (i16, Vec<i16>) {
    let request = LeaveGroupRequest::default().with_group_id(group_id(group));
    let request = if version >= 3 {
        let members =
            members.iter().map(|member| MemberIdentity::default().with_member_id((*member).to_owned().into()));
        request.with_members(members.collect())
    } else {
        request.with_member_id(members[0].to_owned().into())
    };
    let response = client.call(version, request).await;
    (response.error_code, response.members.iter().map(|member| member.error_code).collect())
}

async fn joined(client: &mut TestClient, version: i16) -> JoinGroupResponse {
    let (_, response) = client.receive(ApiKey::JoinGroup, version).await.expect("a response");
    let Response::JoinGroup(response) = response else { panic!("another response") };
    response
}

async fn synced(client: &mut TestClient, version: i16) -> SyncGroupResponse {
    let (_, response) = client.receive(ApiKey::SyncGroup, version).await.expect("a response");
    let Response::SyncGroup(response) = response else { panic!("another response") };
    response
}

/// Asks for a member id, as a new dynamic member of version 4 and later does.
async fn member_id(client: &mut TestClient, group: &str) -> String {
    let response = client.call(9, join(9, group, "")).await;
    assert_eq!(response.error_code, error::MEMBER_ID_REQUIRED);
    assert!(response.member_id.starts_with("test-"), "{:?}", response.member_id);
    response.member_id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_comes_and_goes_in_every_version() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    for version in 0..=9 {
        let group = format!("g{version}");
        let mut response = client.call(version, join(version, &group, "")).await;
        if version >= 4 {
            assert_eq!(response.error_code, error::MEMBER_ID_REQUIRED, "JoinGroup {version}");
            response = client.call(version, join(version, &group, &response.member_id)).await;
        }
        assert_eq!((response.error_code, response.generation_id), (0, 1), "JoinGroup {version}");
        let member = response.member_id.to_string();
        assert_eq!(response.leader.as_str(), member);
        assert_eq!(response.protocol_name.as_deref(), Some("range"));
        assert_eq!(response.protocol_type.as_deref(), (version >= 7).then_some("consumer"));
        assert_eq!(response.members.len(), 1);
        assert_eq!(&response.members[0].metadata[..], b"subscription");

        let older = version.min(5);
        let response = client.call(older, sync(older, &group, &member, 1, &[(&member, "mine")])).await;
        assert_eq!((response.error_code, &response.assignment[..]), (0, &b"mine"[..]), "SyncGroup {older}");
        assert_eq!(response.protocol_name.as_deref(), (older >= 5).then_some("range"));
        let older = version.min(4);
        assert_eq!(heartbeat(&mut client, older, &group, &member, 1).await, 0, "Heartbeat {older}");
        assert_eq!(heartbeat(&mut client, older, &group, &member, 2).await, error::ILLEGAL_GENERATION);
        assert_eq!(committed(&mut client, version.max(2), commit(&group, &member, 1, 0, 7)).await, 0);
        assert_eq!(fetched(&mut client, version.max(1), &group, false).await, [(0, 7), (1, -1)]);

        let older = version.min(5);
        let (all, each) = leave(&mut client, older, &group, &[&member]).await;
        assert_eq!((all, each), (0, if older >= 3 { vec![0] } else { vec![] }), "LeaveGroup {older}");
        assert_eq!(heartbeat(&mut client, 4, &group, &member, 1).await, error::UNKNOWN_MEMBER_ID);
        // The group stays, for its offsets.
        assert_eq!(fetched(&mut client, version.max(1), &group, false).await, [(0, 7), (1, -1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_member_makes_the_first_join_again() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let (mut first, mut second) = (broker.connect().await, broker.connect().await);
    let a = member_id(&mut first, "g").await;
    let response = first.call(9, join(9, "g", &a)).await;
    assert_eq!((response.error_code, response.generation_id), (0, 1));
    first.call(5, sync(5, "g", &a, 1, &[(&a, "all")])).await;

    let b = member_id(&mut second, "g").await;
    second.send(9, join(9, "g", &b)).await;
    // The second one waits for the first, who hears of it from a heartbeat.
    while heartbeat(&mut first, 4, "g", &a, 1).await == 0 {}
    assert_eq!(heartbeat(&mut first, 4, "g", &a, 1).await, error::REBALANCE_IN_PROGRESS);
    let leader = first.call(9, join(9, "g", &a)).await;
    let follower = joined(&mut second, 9).await;
    assert_eq!((leader.generation_id, follower.generation_id), (2, 2));
    assert_eq!((leader.leader.as_str(), follower.leader.as_str()), (a.as_str(), a.as_str()));
    assert_eq!((leader.members.len(), follower.members.len()), (2, 0));

    // The follower's SyncGroup waits for the leader's.
    second.send(5, sync(5, "g", &b, 2, &[])).await;
    assert_eq!(committed(&mut first, 8, commit("g", &a, 2, 0, 1)).await, error::REBALANCE_IN_PROGRESS);
    let response = first.call(5, sync(5, "g", &a, 2, &[(&a, "left"), (&b, "right")])).await;
    assert_eq!(&response.assignment[..], b"left");
    let response = synced(&mut second, 5).await;
    assert_eq!((response.error_code, &response.assignment[..]), (0, &b"right"[..]));
    assert_eq!(heartbeat(&mut first, 4, "g", &a, 2).await, 0);
    assert_eq!(heartbeat(&mut second, 4, "g", &b, 2).await, 0);
    assert_eq!(committed(&mut first, 8, commit("g", &a, 2, 0, 1)).await, 0);
    assert_eq!(committed(&mut first, 8, commit("g", &a, 1, 0, 2)).await, error::ILLEGAL_GENERATION);

    let described = first.call(5, DescribeGroupsRequest::default().with_groups(vec![group_id("g")])).await;
    let group = &described.groups[0];
    assert_eq!((group.error_code, group.group_state.as_str(), group.protocol_data.as_str()), (0, "Stable", "range"));
    let mut assignments: Vec<&[u8]> = group.members.iter().map(|member| &member.member_assignment[..]).collect();
    assignments.sort_unstable();
    assert_eq!(assignments, [&b"left"[..], b"right"]);
    assert!(group.members.iter().all(|member| member.client_host.as_str() == "/127.0.0.1"));
    assert_eq!(listed(&mut first, &["Stable"], &["classic"]).await.len(), 1);
    assert_eq!(listed(&mut first, &[], &["consumer"]).await.len(), 0);

    assert_eq!(leave(&mut second, 5, "g", &[&b, "stranger"]).await, (0, vec![0, error::UNKNOWN_MEMBER_ID]));
    assert_eq!(heartbeat(&mut first, 4, "g", &a, 2).await, error::REBALANCE_IN_PROGRESS);
    let described = first.call(5, DescribeGroupsRequest::default().with_groups(vec![group_id("g")])).await;
    let group = &described.groups[0];
    assert_eq!((group.group_state.as_str(), group.protocol_data.as_str()), ("PreparingRebalance", ""));
    let member = &group.members[0];
    assert_eq!((&member.member_assignment[..], &member.member_metadata[..]), (&b"left"[..], &b""[..]));
    let response = first.call(9, join(9, "g", &a)).await;
    assert_eq!((response.generation_id, response.members.len()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_returns_keeps_its_place() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    let as_static = |member: &str| join(9, "g", member).with_group_instance_id(Some("instance".into()));
    let first = client.call(9, as_static("")).await;
    assert_eq!((first.error_code, first.generation_id), (0, 1), "a static member needs no second try");
    let member = first.member_id.to_string();
    client.call(5, sync(5, "g", &member, 1, &[(&member, "mine")])).await;

    let second = client.call(9, as_static("")).await;
    assert_eq!((second.error_code, second.generation_id, second.skip_assignment), (0, 1, true));
    assert_ne!(second.member_id, first.member_id);
    let replacement = second.member_id.to_string();
    let response = client.call(5, sync(5, "g", &replacement, 1, &[])).await;
    assert_eq!((response.error_code, &response.assignment[..]), (0, &b"mine"[..]));
    let stale = HeartbeatRequest::default()
        .with_group_id(group_id("g"))
        .with_member_id(first.member_id.clone())
        .with_group_instance_id(Some("instance".into()))
        .with_generation_id(1);
    assert_eq!(client.call(4, stale).await.error_code, error::FENCED_INSTANCE_ID);

    // An administrator removes it by its instance id alone.
    let by_instance = MemberIdentity::default().with_group_instance_id(Some("instance".into()));
    let request = LeaveGroupRequest::default().with_group_id(group_id("g")).with_members(vec![by_instance]);
    let response = client.call(5, request).await;
    assert_eq!((response.error_code, response.members[0].error_code), (0, 0));
    assert_eq!(heartbeat(&mut client, 4, "g", &replacement, 1).await, error::UNKNOWN_MEMBER_ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_falls_silent_is_removed() {
    let broker = TestBroker::start_with(|config| config.groups.session_timeout_min_ms = 1).await;
    let (mut first, mut second) = (broker.connect().await, broker.connect().await);
    let mut request = join(3, "g", "");
    request.session_timeout_ms = 3_000;
    let silent = first.call(3, request).await;
    let member = silent.member_id.to_string();
    first.call(3, sync(3, "g", &member, 1, &[(&member, "all")])).await;
    // The second one's JoinGroup is answered when the first one's session is over.
    let response = second.call(3, join(3, "g", "")).await;
    assert_eq!((response.error_code, response.generation_id, response.members.len()), (0, 2, 1));
    assert_eq!(heartbeat(&mut first, 4, "g", &member, 1).await, error::UNKNOWN_MEMBER_ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_members_join_at_once() {
    const MEMBERS: usize = 300;
    // The group's first generation waits for all of them.
    let broker = TestBroker::start_with(|config| config.groups.initial_rebalance_delay_ms = 1_500).await;
    let mut clients = Vec::new();
    for _ in 0..MEMBERS {
        let mut client = broker.connect().await;
        client.send(3, join(3, "g", "")).await;
        clients.push(client);
    }
    let mut members = Vec::new();
    for client in &mut clients {
        let response = joined(client, 3).await;
        assert_eq!((response.error_code, response.generation_id), (0, 1));
        members.push(response);
    }
    let ids: Vec<String> = members.iter().map(|member| member.member_id.to_string()).collect();
    let assignments: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), id.as_str())).collect();
    for (client, member) in clients.iter_mut().zip(&members) {
        let leads = member.leader == member.member_id;
        assert_eq!(member.members.len(), if leads { MEMBERS } else { 0 });
        let brought = if leads { &assignments[..] } else { &[] };
        client.send(3, sync(3, "g", &member.member_id, 1, brought)).await;
    }
    for (client, id) in clients.iter_mut().zip(&ids) {
        let response = synced(client, 3).await;
        assert_eq!((response.error_code, &response.assignment[..]), (0, id.as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect().await;
    for (change, expected) in [
        (join(9, "", ""), error::INVALID_GROUP_ID),
        (join(9, "g", "").with_session_timeout_ms(1), error::INVALID_SESSION_TIMEOUT),
        (join(9, "g", "").with_session_timeout_ms(i32::MAX), error::INVALID_SESSION_TIMEOUT),
        (join(9, "g", "").with_protocols(Vec::new()), error::INCONSISTENT_GROUP_PROTOCOL),
        (join(9, "g", "stranger"), error::UNKNOWN_MEMBER_ID),
    ] {
        assert_eq!(client.call(9, change).await.error_code, expected);
    }
    assert_eq!(client.call(5, sync(4, "g", "m", 1, &[])).await.error_code, error::INCONSISTENT_GROUP_PROTOCOL);
    assert_eq!(client.call(5, sync(5, "g", "m", 1, &[])).await.error_code, error::UNKNOWN_MEMBER_ID);
    assert_eq!(client.call(5, sync(5, "", "m", 1, &[])).await.error_code, error::INVALID_GROUP_ID);
    assert_eq!(heartbeat(&mut client, 4, "", "m", 1).await, error::INVALID_GROUP_ID);
    assert_eq!(heartbeat(&mut client, 4, "g", "m", 1).await, error::UNKNOWN_MEMBER_ID);
    assert_eq!(leave(&mut client, 2, "g", &["m"]).await, (error::UNKNOWN_MEMBER_ID, vec![]));
    assert_eq!(leave(&mut client, 5, "g", &["m"]).await, (0, vec![error::UNKNOWN_MEMBER_ID]));
    assert_eq!(leave(&mut client, 5, "", &["m"]).await, (error::INVALID_GROUP_ID, vec![]));
    for version in 0..=6 {
        let response = client.call(version, DescribeGroupsRequest::default().with_groups(vec![group_id("g")])).await;
        let group = &response.groups[0];
        let expected = if version >= 6 { error::GROUP_ID_NOT_FOUND } else { 0 };
        assert_eq!((group.group_state.as_str(), group.error_code), ("Dead", expected), "DescribeGroups {version}");
    }
}
