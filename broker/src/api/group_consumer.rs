//! ConsumerGroupHeartbeat and ConsumerGroupDescribe: the consumer group protocol (KIP-848).

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::op::{
    ConsumerHeartbeat, HeartbeatConsumer, JoinConsumerGroup, LeaveConsumerGroup, RebalancePartitions, TopicPartitions,
};
use lockstep_core::reply::HeartbeatReply;
use lockstep_core::view::{GroupType, GroupView, HeartbeatCheck, MemberView};
use lockstep_core::{Directory, GroupError, Op, Reply, TopicId};
use lockstep_env::Env;
use lockstep_runtime::{PatternError, Shard, TopicPattern};
use lockstep_wire::codec::{
    ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, ConsumerGroupHeartbeatRequest,
    ConsumerGroupHeartbeatResponse, GroupId, StrBytes, TopicName, Uuid, consumer_group_describe_response as described,
    consumer_group_heartbeat_request as asked, consumer_group_heartbeat_response as answered,
};

use crate::api::group_admin::state_name;
use crate::api::group_coordinator::{GROUP_OPERATIONS, Refused, coordinated, each_once, propose, wrong_reply};
use crate::broker::Broker;
use crate::config::GroupConfig;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics;

/// ConsumerGroupDescribe v1 says which protocol a member speaks.
const MEMBER_TYPE_CLASSIC: i8 = 0;
const MEMBER_TYPE_CONSUMER: i8 = 1;

pub(crate) async fn heartbeat<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    let group = request.group_id.to_string();
    let epoch = request.member_epoch;
    let fresh_id = || Uuid::from_bytes(E::random_uuid()).to_string();
    let now_ms = broker.env().wall_clock_ms();
    let op = match to_op(&broker.config().groups, context, request, now_ms, fresh_id) {
        Ok(op) => op,
        Err(refused) => return refuse(&group, "", epoch, refused),
    };
    let member = op.member_id.clone();
    match try_heartbeat(broker, op).await {
        Ok(reply) => {
            let (now, assignment) = (reply.member_epoch, reply.assignment.as_deref().map(count));
            match epoch {
                0 => tracing::info!(group, member, epoch = now, assignment, "JoinGroup (ConsumerGroupHeartbeat)"),
                ..0 => tracing::info!(group, member, epoch, "LeaveGroup (ConsumerGroupHeartbeat)"),
                _ => tracing::debug!(group, member, epoch, now, assignment, "Heartbeat"),
            }
            answer(reply)
        }
        Err(refused) => refuse(&group, &member, epoch, refused),
    }
}

fn refuse(group: &str, member: &str, epoch: i32, refused: Refused) -> ConsumerGroupHeartbeatResponse {
    let Refused { error, message } = refused;
    tracing::info!(group, member, epoch, ?error, "Heartbeat refused: {message}");
    ConsumerGroupHeartbeatResponse::default()
        .with_error_code(error.code())
        .with_error_message(Some(message.into_owned().into()).filter(|message: &StrBytes| !message.is_empty()))
}

/// Number of partitions.
fn count(assignment: &[TopicPartitions]) -> usize {
    assignment.iter().map(|topic| topic.partitions.len()).sum()
}

fn answer(reply: HeartbeatReply) -> ConsumerGroupHeartbeatResponse {
    let assignment = reply.assignment.map(|topics| {
        let topics = topics.into_iter().map(|topic| {
            answered::TopicPartitions::default()
                .with_topic_id(topics::uuid(topic.topic_id))
                .with_partitions(indexes(&topic.partitions))
        });
        answered::Assignment::default().with_topic_partitions(topics.collect())
    });
    ConsumerGroupHeartbeatResponse::default()
        .with_member_id(Some(reply.member_id.into()))
        .with_member_epoch(reply.member_epoch)
        .with_heartbeat_interval_ms(i32::try_from(reply.heartbeat_interval_ms).unwrap_or(i32::MAX))
        .with_assignment(assignment)
}

/// Partition indexes as they are on the wire; topics have at most 10,000 partitions.
fn indexes(partitions: &[u32]) -> Vec<i32> {
    partitions.iter().map(|index| i32::try_from(*index).unwrap_or(i32::MAX)).collect()
}

/// The request as `core` knows it. Members of version 1 make their ids themselves; older ones get one when they join.
fn to_op(
    limits: &GroupConfig,
    context: &RequestContext,
    request: ConsumerGroupHeartbeatRequest,
    now_ms: i64,
    fresh_id: impl FnOnce() -> String,
) -> Result<ConsumerHeartbeat, Refused> {
    let member_id = if context.api_version == 0 && request.member_epoch == 0 && request.member_id.is_empty() {
        fresh_id()
    } else {
        request.member_id.to_string()
    };
    Ok(ConsumerHeartbeat {
        group_id: request.group_id.to_string(),
        member_id,
        member_epoch: request.member_epoch,
        instance_id: request.instance_id.map(|id| id.to_string()),
        rack_id: request.rack_id.map(|id| id.to_string()),
        rebalance_timeout_ms: request.rebalance_timeout_ms,
        subscribed_topic_names: request
            .subscribed_topic_names
            .map(|names| names.into_iter().map(|name| name.to_string()).collect()),
        subscribed_topic_regex: request.subscribed_topic_regex.map(|pattern| pattern.to_string()),
        server_assignor: request.server_assignor.map(|name| name.to_string()),
        owned: request.topic_partitions.map(to_owned_partitions).transpose()?,
        client_id: context.client_id.clone(),
        client_host: context.client_host.to_string(),
        session_timeout_ms: limits.session_timeout_ms,
        heartbeat_interval_ms: limits.heartbeat_interval_ms,
        members_max: limits.members_max,
        now_ms,
    })
}

/// Ascending, each partition once, whatever the client's order.
fn to_owned_partitions(topics: Vec<asked::TopicPartitions>) -> Result<Vec<TopicPartitions>, Refused> {
    let mut owned: BTreeMap<TopicId, BTreeSet<u32>> = BTreeMap::new();
    for topic in topics {
        let partitions = owned.entry(topics::topic_id(&topic.topic_id)).or_default();
        for index in topic.partitions {
            let index = u32::try_from(index)
                .map_err(|_| GroupError::InvalidRequest("a partition's index must not be negative".to_owned()))?;
            partitions.insert(index);
        }
    }
    let topics = owned.into_iter().filter(|(_, partitions)| !partitions.is_empty());
    Ok(topics
        .map(|(topic_id, partitions)| TopicPartitions { topic_id, partitions: partitions.into_iter().collect() })
        .collect())
}

async fn try_heartbeat<E: Env>(broker: &Broker<E>, op: ConsumerHeartbeat) -> Result<HeartbeatReply, Refused> {
    const REQUEST: &str = "ConsumerGroupHeartbeat";
    let (group, member) = (op.group_id.clone(), op.member_id.clone());
    let shard = coordinated(broker, REQUEST, &group)?;
    match shard.read(|state| state.check_consumer_heartbeat(&op)) {
        HeartbeatCheck::Answer(outcome) => {
            let reply = outcome?;
            shard.heartbeat(&group, &member);
            return Ok(reply);
        }
        HeartbeatCheck::Propose => {}
    }
    // One that the group knows was compiled when it came.
    if let Some(pattern) = &op.subscribed_topic_regex
        && !shard.read(|state| state.group_knows_regex(&group, pattern))
    {
        check_pattern(pattern)?;
    }
    let op = match op.member_epoch {
        0 => Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(op)),
        ..0 => Op::LeaveConsumerGroup(LeaveConsumerGroup::Consumer(op)),
        _ => Op::HeartbeatConsumer(HeartbeatConsumer::Consumer(op)),
    };
    let reply = propose_heartbeat(&shard, REQUEST, &group, op).await?;
    if !reply.assignment_due {
        return Ok(reply);
    }
    let now_ms = broker.env().wall_clock_ms();
    let assign = RebalancePartitions::Assign { group_id: group.clone(), member_id: Some(member), now_ms };
    let assign = Op::RebalancePartitions(assign);
    propose_heartbeat(&shard, REQUEST, &group, assign).await
}

/// An empty one takes the subscription back.
fn check_pattern(pattern: &str) -> Result<(), Refused> {
    if pattern.is_empty() {
        return Ok(());
    }
    let refuse = |error: PatternError| Refused {
        error: ErrorCode::InvalidRegularExpression,
        message: format!("SubscribedTopicRegex is not a valid regular expression: {error}").into(),
    };
    TopicPattern::new(pattern).map(|_| ()).map_err(refuse)
}

async fn propose_heartbeat<E: Env>(
    shard: &Shard<E>,
    request: &'static str,
    group: &str,
    op: Op,
) -> Result<HeartbeatReply, Refused> {
    match propose(shard, request, group, op).await? {
        Reply::Heartbeat(outcome) => Ok(outcome?),
        other => Err(wrong_reply(request, group, &other)),
    }
}

pub(crate) async fn describe<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    let with_operations = request.include_authorized_operations;
    let groups = each_once(request.group_ids).into_iter().map(|group_id| {
        let mut group = match describe_group(broker, context.api_version, &group_id) {
            Ok(group) => group,
            Err(refused) => described::DescribedGroup::default()
                .with_error_code(refused.error.code())
                .with_error_message(Some(refused.message.into_owned().into())),
        };
        if with_operations && group.error_code == ErrorCode::None.code() {
            group.authorized_operations = GROUP_OPERATIONS;
        }
        group.with_group_id(group_id)
    });
    ConsumerGroupDescribeResponse::default().with_groups(groups.collect())
}

fn describe_group<E: Env>(
    broker: &Broker<E>,
    version: i16,
    group_id: &GroupId,
) -> Result<described::DescribedGroup, Refused> {
    if group_id.is_empty() {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    let not_found = |message: String| Refused { error: ErrorCode::GroupIdNotFound, message: message.into() };
    let shard = coordinated(broker, "ConsumerGroupDescribe", group_id)?;
    let view =
        shard.read(|state| state.group(group_id)).ok_or_else(|| not_found("There is no such group.".to_owned()))?;
    if view.group_type != GroupType::Consumer {
        return Err(not_found(format!("Group {} is not a consumer group.", group_id.as_str())));
    }
    Ok(shard.read(|state| answer_describe(version, view, state.directory())))
}

fn answer_describe(version: i16, view: GroupView, directory: &Directory) -> described::DescribedGroup {
    let members = view.members.into_iter().map(|member| answer_member(version, member, directory)).collect();
    described::DescribedGroup::default()
        .with_group_state(StrBytes::from_static_str(state_name(view.state)))
        .with_group_epoch(view.epoch)
        .with_assignment_epoch(view.assignment_epoch)
        .with_assignor_name(view.protocol_name.into())
        .with_members(members)
}

/// Both lists as one, with each topic once.
fn together(mut assigned: Vec<TopicPartitions>, revoking: &[TopicPartitions]) -> Vec<TopicPartitions> {
    for topic in revoking {
        match assigned.iter_mut().find(|known| known.topic_id == topic.topic_id) {
            Some(known) => {
                known.partitions.extend(&topic.partitions);
                known.partitions.sort_unstable();
            }
            None => assigned.push(topic.clone()),
        }
    }
    assigned
}

fn answer_member(version: i16, member: MemberView, directory: &Directory) -> described::Member {
    let assignment = |topics: Vec<TopicPartitions>| {
        // A topic that was deleted has no name any more; the group lets go of it as its members come.
        let topics = topics.into_iter().filter_map(|topic| {
            let record = directory.topics.get(&topic.topic_id)?;
            Some(
                described::TopicPartitions::default()
                    .with_topic_id(topics::uuid(topic.topic_id))
                    .with_topic_name(TopicName(record.name.clone().into()))
                    .with_partitions(indexes(&topic.partitions)),
            )
        });
        described::Assignment::default().with_topic_partitions(topics.collect())
    };
    let names = member.subscribed_topic_names.into_iter().map(|name| TopicName(name.into())).collect();
    let described = described::Member::default()
        .with_member_id(member.member_id.into())
        .with_instance_id(member.instance_id.map(StrBytes::from))
        .with_rack_id(member.rack_id.map(StrBytes::from))
        .with_member_epoch(member.member_epoch)
        .with_client_id(member.client_id.into())
        .with_client_host(member.client_host.into())
        .with_subscribed_topic_names(names)
        .with_subscribed_topic_regex(
            Some(member.subscribed_topic_regex).filter(|pattern| !pattern.is_empty()).map(StrBytes::from),
        )
        // A member answers for what it is giving up until it has.
        .with_assignment(assignment(together(member.assigned, &member.revoking)))
        .with_target_assignment(assignment(member.target));
    let member_type = if member.speaks_classic { MEMBER_TYPE_CLASSIC } else { MEMBER_TYPE_CONSUMER };
    if version >= 1 { described.with_member_type(member_type) } else { described }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::view::GroupState;
    use lockstep_wire::frame::encode_response;

    fn context(api_version: i16) -> RequestContext {
        RequestContext { api_version, request_bytes: 0, client_id: "c".to_owned(), client_host: "/127.0.0.1".into() }
    }

    fn op(version: i16, request: ConsumerGroupHeartbeatRequest) -> ConsumerHeartbeat {
        to_op(&GroupConfig::default(), &context(version), request, 0, || "made".to_owned()).expect("a sound request")
    }

    #[test]
    fn only_version_0_is_given_a_member_id_and_only_to_join() {
        let request = |id: &'static str, epoch| {
            ConsumerGroupHeartbeatRequest::default().with_member_id(id.into()).with_member_epoch(epoch)
        };
        assert_eq!(op(0, request("", 0)).member_id, "made");
        assert_eq!(op(0, request("mine", 0)).member_id, "mine");
        assert_eq!(op(0, request("", 4)).member_id, "");
        assert_eq!(op(1, request("", 0)).member_id, "");
    }

    #[test]
    fn owned_partitions_are_put_in_order() {
        let topic = |id: u8, partitions: &[i32]| {
            asked::TopicPartitions::default()
                .with_topic_id(Uuid::from_bytes([id; 16]))
                .with_partitions(partitions.to_vec())
        };
        let owned = |topics: Vec<asked::TopicPartitions>| {
            let request = ConsumerGroupHeartbeatRequest::default().with_topic_partitions(Some(topics));
            to_op(&GroupConfig::default(), &context(1), request, 0, String::new).map(|op| op.owned)
        };
        let expected = |id: u8, partitions: &[u32]| TopicPartitions {
            topic_id: TopicId([id; 16]),
            partitions: partitions.to_vec(),
        };
        assert_eq!(
            owned(vec![topic(2, &[3, 1]), topic(1, &[0]), topic(2, &[1, 2]), topic(3, &[])]),
            Ok(Some(vec![expected(1, &[0]), expected(2, &[1, 2, 3])]))
        );
        assert_eq!(owned(vec![]), Ok(Some(vec![])));
        assert_eq!(owned(vec![topic(1, &[-1])]).map_err(|refused| refused.error), Err(ErrorCode::InvalidRequest));
    }

    fn partitions() -> Vec<TopicPartitions> {
        vec![TopicPartitions { topic_id: TopicId([1; 16]), partitions: vec![0, 1] }]
    }

    fn member() -> MemberView {
        MemberView {
            member_id: "m".to_owned(),
            instance_id: None,
            rack_id: None,
            client_id: "c".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            member_epoch: 3,
            subscribed_topic_names: vec!["t".to_owned()],
            subscribed_topic_regex: String::new(),
            assigned: partitions(),
            revoking: Vec::new(),
            target: partitions(),
            classic_metadata: Vec::new(),
            classic_assignment: Vec::new(),
            speaks_classic: false,
        }
    }

    #[test]
    fn a_members_protocol_is_told_from_version_1_on() {
        for (version, speaks_classic, expected) in [(0, false, -1), (0, true, -1), (1, false, 1), (1, true, 0)] {
            let mut member = member();
            member.speaks_classic = speaks_classic;
            let told = answer_member(version, member, &Directory::default());
            assert_eq!(told.member_type, expected, "version {version}, classic: {speaks_classic}");
        }
    }

    #[test]
    fn a_member_is_described_with_what_it_is_giving_up() {
        let topic = |id: u8, partitions: &[u32]| TopicPartitions {
            topic_id: TopicId([id; 16]),
            partitions: partitions.to_vec(),
        };
        assert_eq!(
            together(vec![topic(1, &[0, 3])], &[topic(1, &[1]), topic(2, &[0])]),
            [topic(1, &[0, 1, 3]), topic(2, &[0])]
        );
        assert_eq!(together(Vec::new(), &[topic(1, &[1])]), [topic(1, &[1])]);
    }

    #[test]
    fn responses_encode_in_every_version() {
        let partitions = partitions();
        let member = member();
        let view = GroupView {
            group_id: "g".to_owned(),
            group_type: GroupType::Consumer,
            state: GroupState::Stable,
            epoch: 3,
            assignment_epoch: 3,
            protocol_type: "consumer".to_owned(),
            protocol_name: "uniform".to_owned(),
            leader: None,
            members: vec![member],
        };
        let reply = HeartbeatReply {
            member_id: "m".to_owned(),
            member_epoch: 3,
            heartbeat_interval_ms: 5_000,
            assignment: Some(partitions),
            assignment_due: false,
        };
        for version in 0..=1 {
            encode_response(version, 1, &answer(reply.clone()).into()).expect("encodes");
            let refused = refuse("g", "m", 3, ErrorCode::FencedMemberEpoch.into());
            encode_response(version, 1, &refused.into()).expect("encodes");
            let groups = vec![answer_describe(version, view.clone(), &Directory::default())];
            encode_response(version, 1, &ConsumerGroupDescribeResponse::default().with_groups(groups).into())
                .expect("encodes");
        }
    }
}
