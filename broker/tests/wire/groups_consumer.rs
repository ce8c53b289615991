//! The consumer group protocol (KIP-848), over the wire.

use std::collections::BTreeSet;

use crate::groups::{commit, committed, error, fetched, group_id, listed};
use crate::support::{PATIENCE, TestBroker, TestClient};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_wire::codec::consumer_group_heartbeat_request::TopicPartitions;
use lockstep_wire::codec::leave_group_request::MemberIdentity;
use lockstep_wire::codec::{
    ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, DescribeGroupsRequest,
    JoinGroupRequest, LeaveGroupRequest, TopicName, Uuid, join_group_request::JoinGroupRequestProtocol,
};

pub(crate) fn heartbeat(group: &str, member: &str, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group_id(group))
        .with_member_id(member.to_owned().into())
        .with_member_epoch(epoch)
        .with_rebalance_timeout_ms(-1)
        .with_subscribed_topic_names(None)
        .with_topic_partitions(None)
}

pub(crate) fn join(group: &str, member: &str) -> ConsumerGroupHeartbeatRequest {
    heartbeat(group, member, 0)
        .with_rebalance_timeout_ms(30_000)
        .with_subscribed_topic_names(Some(vec![TopicName("t".into())]))
        .with_topic_partitions(Some(Vec::new()))
}

/// A member as its client sees it.
struct Member {
    id: &'static str,
    epoch: i32,
    topic_id: Uuid,
    owned: BTreeSet<i32>,
}

impl Member {
    async fn join(client: &mut TestClient, id: &'static str) -> Self {
        let response = client.call(1, join("g", id)).await;
        assert_eq!((response.error_code, &response.error_message), (0, &None));
        let mut member = Self { id, epoch: 0, topic_id: Uuid::nil(), owned: BTreeSet::new() };
        member.hear(&response);
        assert!(member.epoch > 0);
        member
    }

    fn hear(&mut self, response: &ConsumerGroupHeartbeatResponse) {
        assert_eq!(response.member_id.as_deref(), Some(self.id));
        assert_eq!(response.heartbeat_interval_ms, 5_000);
        self.epoch = response.member_epoch;
        if let Some(assignment) = &response.assignment {
            assert!(assignment.topic_partitions.len() <= 1);
            self.owned = assignment.topic_partitions.iter().flat_map(|topic| topic.partitions.clone()).collect();
            if let Some(topic) = assignment.topic_partitions.first() {
                self.topic_id = topic.topic_id;
            }
        }
    }

    /// A heartbeat that reports what is owned, which is at once what was assigned.
    async fn heartbeat(&mut self, client: &mut TestClient) {
        let owned = TopicPartitions::default()
            .with_topic_id(self.topic_id)
            .with_partitions(self.owned.iter().copied().collect());
        let owned = if self.owned.is_empty() { Vec::new() } else { vec![owned] };
        let response = client.call(1, heartbeat("g", self.id, self.epoch).with_topic_partitions(Some(owned))).await;
        assert_eq!((response.error_code, &response.error_message), (0, &None));
        self.hear(&response);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_share_a_topic_and_one_inherits_it() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 4).await;
    let mut client = broker.connect().await;
    let mut a = Member::join(&mut client, "a").await;
    assert_eq!(a.owned.len(), 4, "a member that is alone is told its partitions when it joins");
    let mut b = Member::join(&mut client, "b").await;
    assert!(b.owned.is_empty(), "nothing is taken from another before it has let go");
    let balancing = async {
        while (a.owned.len(), b.owned.len()) != (2, 2) {
            a.heartbeat(&mut client).await;
            assert!(a.owned.is_disjoint(&b.owned));
            b.heartbeat(&mut client).await;
            assert!(a.owned.is_disjoint(&b.owned));
        }
        a.heartbeat(&mut client).await;
        b.heartbeat(&mut client).await;
    };
    timeout::<TokioEnv, _>(PATIENCE, balancing).await.expect("balance");
    assert_eq!(a.epoch, b.epoch);

    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id("g")]);
    for version in 0..=1 {
        let response = client.call(version, request.clone().with_include_authorized_operations(true)).await;
        let group = &response.groups[0];
        assert_eq!(
            (group.error_code, group.group_state.as_str(), group.assignor_name.as_str()),
            (0, "Stable", "uniform")
        );
        assert_eq!((group.group_epoch, group.assignment_epoch), (a.epoch, a.epoch));
        assert_ne!(group.authorized_operations, i32::MIN);
        for member in &group.members {
            assert_eq!(member.subscribed_topic_names, [TopicName("t".into())]);
            assert_eq!(member.assignment, member.target_assignment);
            assert_eq!(member.assignment.topic_partitions[0].topic_name.as_str(), "t");
            assert_eq!(member.member_type, if version >= 1 { 1 } else { -1 });
        }
    }
    assert_eq!(listed(&mut client, &["stable"], &["consumer"]).await.len(), 1);
    let classic = client.call(6, DescribeGroupsRequest::default().with_groups(vec![group_id("g")])).await;
    let group = &classic.groups[0];
    assert_eq!((group.error_code, group.group_state.as_str()), (error::GROUP_ID_NOT_FOUND, "Dead"));

    assert_eq!(committed(&mut client, 9, commit("g", "a", a.epoch, 0, 11)).await, 0);
    assert_eq!(committed(&mut client, 9, commit("g", "a", a.epoch + 1, 0, 12)).await, error::STALE_MEMBER_EPOCH);
    assert_eq!(committed(&mut client, 8, commit("g", "a", a.epoch, 0, 12)).await, error::UNSUPPORTED_VERSION);
    assert_eq!(committed(&mut client, 9, commit("g", "c", 1, 0, 12)).await, error::UNKNOWN_MEMBER_ID);
    assert_eq!(fetched(&mut client, 9, "g", true).await, [(0, 11)]);

    let left = client.call(1, heartbeat("g", "b", -1)).await;
    assert_eq!((left.error_code, left.member_epoch), (0, -1));
    let inheriting = async {
        while a.owned.len() != 4 {
            a.heartbeat(&mut client).await;
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, inheriting).await.expect("everything goes to who is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_described_with_what_it_is_giving_up_and_an_administrator_may_remove_it() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 4).await;
    let mut client = broker.connect().await;
    let mut a = Member::join(&mut client, "a").await;
    let b = Member::join(&mut client, "b").await;
    a.heartbeat(&mut client).await;
    assert_eq!((a.owned.len(), b.owned.len()), (2, 0), "it was told to give up half");
    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id("g")]);
    let response = client.call(1, request).await;
    let group = &response.groups[0];
    assert_eq!((group.group_state.as_str(), group.assignor_name.as_str()), ("Reconciling", "uniform"));
    let shown = group.members.iter().find(|member| member.member_id.as_str() == "a").expect("a member");
    assert_eq!(shown.assignment.topic_partitions.len(), 1, "each topic once");
    assert_eq!(shown.assignment.topic_partitions[0].partitions, [0, 1, 2, 3]);
    assert_eq!(shown.target_assignment.topic_partitions[0].partitions.len(), 2);

    let leaving = |member: &'static str| MemberIdentity::default().with_member_id(member.into());
    let request =
        LeaveGroupRequest::default().with_group_id(group_id("g")).with_members(vec![leaving("b"), leaving("c")]);
    let response = client.call(5, request).await;
    let outcomes: Vec<i16> = response.members.iter().map(|member| member.error_code).collect();
    assert_eq!((response.error_code, outcomes), (0, vec![0, error::UNKNOWN_MEMBER_ID]));
    let removed = client.call(1, heartbeat("g", "b", b.epoch)).await;
    assert_eq!(removed.error_code, error::UNKNOWN_MEMBER_ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_members_that_join_at_once_get_a_partition_each() {
    const MEMBERS: usize = 100;
    let broker = TestBroker::start().await;
    broker.create_topic("t", MEMBERS as i32).await;
    let mut joining = Vec::new();
    for number in 0..MEMBERS {
        let id: &'static str = format!("m{number}").leak();
        let mut client = broker.connect().await;
        joining.push(TokioEnv::spawn(async move {
            let member = Member::join(&mut client, id).await;
            (client, member)
        }));
    }
    let mut members = Vec::new();
    for joined in joining {
        members.push(joined.await.expect("joined"));
    }
    let balancing = async {
        while members.iter().any(|(_, member)| member.owned.len() != 1) {
            for (client, member) in &mut members {
                member.heartbeat(client).await;
            }
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, balancing).await.expect("balance");
    let owned: BTreeSet<i32> = members.iter().flat_map(|(_, member)| member.owned.iter().copied()).collect();
    assert_eq!(owned.len(), MEMBERS, "no partition is owned twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_version_0_gives_out_member_ids() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let response = client.call(0, join("g", "")).await;
    assert_eq!(response.error_code, 0);
    let id = response.member_id.expect("an id");
    assert!(!id.is_empty());
    assert_eq!(client.call(0, heartbeat("g", &id, response.member_epoch)).await.error_code, 0);
    assert_eq!(client.call(1, join("g", "")).await.error_code, error::INVALID_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_a_reason() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    let owned = vec![TopicPartitions::default().with_partitions(vec![0])];
    for (request, expected) in [
        (join("", "m"), error::INVALID_REQUEST),
        (join("g", "m").with_rebalance_timeout_ms(-1), error::INVALID_REQUEST),
        (join("g", "m").with_subscribed_topic_names(None), error::INVALID_REQUEST),
        (join("g", "m").with_topic_partitions(None), error::INVALID_REQUEST),
        (join("g", "m").with_topic_partitions(Some(owned)), error::INVALID_REQUEST),
        (join("g", "m").with_instance_id(Some("".into())), error::INVALID_REQUEST),
        (join("g", "m").with_server_assignor(Some("magic".into())), error::UNSUPPORTED_ASSIGNOR),
        (join("g", "m").with_subscribed_topic_regex(Some("t(".into())), error::INVALID_REGULAR_EXPRESSION),
        (heartbeat("g", "m", -2), error::INVALID_REQUEST),
        (heartbeat("g", "m", -3), error::INVALID_REQUEST),
        (heartbeat("g", "m", 1), error::GROUP_ID_NOT_FOUND),
        (heartbeat("g", "m", -1), error::GROUP_ID_NOT_FOUND),
    ] {
        let response = client.call(1, request.clone()).await;
        assert_eq!(response.error_code, expected, "{request:?}");
        assert!(response.error_message.is_some_and(|message| !message.is_empty()), "{request:?}");
    }

    let member = client.call(1, join("g", "m").with_instance_id(Some("i".into()))).await;
    assert_eq!(member.error_code, 0);
    for (request, expected) in [
        (heartbeat("g", "m", member.member_epoch + 5).with_instance_id(Some("i".into())), error::FENCED_MEMBER_EPOCH),
        (heartbeat("g", "stranger", 1), error::UNKNOWN_MEMBER_ID),
        (join("g", "other").with_instance_id(Some("i".into())), error::UNRELEASED_INSTANCE_ID),
    ] {
        assert_eq!(client.call(1, request.clone()).await.error_code, expected, "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_leaves_for_a_while_and_its_successor_inherits() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 2).await;
    let mut client = broker.connect().await;
    let as_static = |request: ConsumerGroupHeartbeatRequest| request.with_instance_id(Some("i".into()));
    let first = client.call(1, as_static(join("g", "first"))).await;
    let assigned = first.assignment.expect("partitions");
    let left = client.call(1, as_static(heartbeat("g", "first", -2))).await;
    assert_eq!((left.error_code, left.member_epoch), (0, -2));
    let second = client.call(1, as_static(join("g", "second"))).await;
    assert_eq!((second.error_code, second.member_epoch), (0, first.member_epoch), "no new epoch");
    assert_eq!(second.assignment, Some(assigned));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_protocols_do_not_mix_in_one_group() {
    let broker = TestBroker::start().await;
    broker.create_topic("t", 1).await;
    let mut client = broker.connect().await;
    assert_eq!(client.call(1, join("g", "m")).await.error_code, 0);
    let protocol = JoinGroupRequestProtocol::default().with_name("range".into());
    let classic = |group: &str| {
        JoinGroupRequest::default()
            .with_group_id(group_id(group))
            .with_session_timeout_ms(30_000)
            .with_rebalance_timeout_ms(30_000)
            .with_protocol_type("consumer".into())
            .with_protocols(vec![protocol.clone()])
    };
    assert_eq!(client.call(3, classic("g")).await.error_code, error::INCONSISTENT_GROUP_PROTOCOL);
    assert_eq!(client.call(3, classic("old")).await.error_code, 0);
    assert_eq!(client.call(1, join("old", "m")).await.error_code, error::GROUP_ID_NOT_FOUND);
    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id("old")]);
    assert_eq!(client.call(1, request).await.groups[0].error_code, error::GROUP_ID_NOT_FOUND);
}

/// The names of topics that a member has in its assignment, as ConsumerGroupDescribe tells them.
async fn topics_of(client: &mut TestClient, group: &str) -> BTreeSet<String> {
    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id(group)]);
    let response = client.call(1, request).await;
    let members = response.groups.iter().flat_map(|group| &group.members);
    let topics = members.flat_map(|member| &member.assignment.topic_partitions);
    topics.map(|topic| topic.topic_name.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_subscribes_by_regular_expression_gets_topics_old_and_new() {
    let broker = TestBroker::start().await;
    broker.create_topic("orders-eu", 2).await;
    broker.create_topic("old-orders-eu", 2).await;
    let mut client = broker.connect().await;
    let request =
        join("g", "m").with_subscribed_topic_names(None).with_subscribed_topic_regex(Some("orders-.*".into()));
    let joined = client.call(1, request).await;
    assert_eq!((joined.error_code, &joined.error_message), (0, &None));

    let mut epoch = joined.member_epoch;
    let mut owned: Vec<TopicPartitions> = Vec::new();
    let mut expected = BTreeSet::from(["orders-eu".to_owned()]);
    for new_topic in [None, Some("orders-us")] {
        if let Some(name) = new_topic {
            broker.create_topic(name, 3).await;
            expected.insert(name.to_owned());
        }
        let hearing = async {
            while topics_of(&mut client, "g").await != expected {
                let beat = heartbeat("g", "m", epoch).with_topic_partitions(Some(owned.clone()));
                let response = client.call(1, beat).await;
                assert_eq!((response.error_code, &response.error_message), (0, &None));
                epoch = response.member_epoch;
                if let Some(assignment) = response.assignment {
                    let topics = assignment.topic_partitions.into_iter().map(|topic| {
                        TopicPartitions::default().with_topic_id(topic.topic_id).with_partitions(topic.partitions)
                    });
                    owned = topics.collect();
                }
            }
        };
        timeout::<TokioEnv, _>(PATIENCE, hearing).await.expect("matching topics are assigned");
    }
    assert_eq!(owned.iter().map(|topic| topic.partitions.len()).sum::<usize>(), 5);

    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id("g")]);
    let response = client.call(1, request).await;
    assert_eq!(response.groups[0].members[0].subscribed_topic_regex.as_deref(), Some("orders-.*"));
    let back = client.call(1, heartbeat("g", "m", epoch).with_subscribed_topic_regex(Some("".into()))).await;
    assert_eq!(back.error_code, 0);
    let giving_up = async {
        while !topics_of(&mut client, "g").await.is_empty() {
            let response = client.call(1, heartbeat("g", "m", epoch).with_topic_partitions(Some(Vec::new()))).await;
            assert_eq!(response.error_code, 0);
            epoch = response.member_epoch;
        }
    };
    timeout::<TokioEnv, _>(PATIENCE, giving_up).await.expect("a subscription that is taken back ends");
}
