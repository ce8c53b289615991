//! Groups that change their protocol while they have members (KIP-848): a classic group of consumers is upgraded when a member
//! joins with the consumer protocol, and downgraded when the last such member is gone.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::classic::{ClassicGroup, ClassicMember, ClassicState};
use super::consumer::{ClassicTerms, ConsumerGroup, ConsumerMember, subscription_hash};
use super::consumer_heartbeat::sorted;
use super::consumer_protocol::{PROTOCOL_TYPE, existing, read_assignment, read_subscription, write_assignment};
use super::group::{Context, Group, Protocol, Target};
use super::reconcile::{MemberState, Owned};
use crate::directory::Directory;
use crate::op::ConsumerHeartbeat;
use crate::reply::{GroupError, HeartbeatReply};
use crate::view::{GroupEventKind, GroupType};
use lockstep_probe::Mark;

/// Assignors whose assignments tell a client nothing but its partitions. What some clients put beside them says what the members had before
/// (librdkafka gives each member its own subscription's bytes back, Sarama the next one's), and only who assigns reads it: from now on the broker.
/// Kafka refuses to upgrade such groups, as those of any custom assignor.
const STICKY_ASSIGNORS: [&str; 2] = ["cooperative-sticky", "sticky"];

/// The first heartbeat of a member of the consumer protocol, to a classic group with members. Nothing changes unless that member is
/// taken in too.
pub(super) fn upgrade(
    group: &mut Group,
    cx: &mut Context<'_>,
    op: &ConsumerHeartbeat,
) -> Result<HeartbeatReply, GroupError> {
    let Protocol::Classic(classic) = &group.protocol else { return Err(GroupError::GroupNotFound) };
    if classic.head.protocol_type.as_deref() != Some(PROTOCOL_TYPE) {
        return Err(GroupError::GroupNotFound);
    }
    check_newcomer(classic, op)?;
    let mut upgraded = consumer_group(classic, cx)?;
    if !upgraded.takes_in(op)? {
        // Whoever takes a static member's place gives no reason for a new epoch; that the broker assigns from now on does.
        upgraded.bump(cx);
    }
    let reply = upgraded.heartbeat(cx, op)?;
    group.protocol = Protocol::Consumer(upgraded);
    Mark::GroupUpgraded.reached();
    cx.note(GroupEventKind::Migrated { to: GroupType::Consumer });
    Ok(reply)
}

/// Refuses whom the upgraded group would refuse, before every member is read for the upgrade.
fn check_newcomer(classic: &ClassicGroup, op: &ConsumerHeartbeat) -> Result<(), GroupError> {
    let holder = op.instance_id.as_ref().and_then(|instance_id| classic.instances.get(instance_id));
    match (holder, classic.members.get(&op.member_id)) {
        (Some(holder), Some(_)) if *holder != op.member_id => Err(GroupError::FencedInstance),
        (None, Some(member)) if op.instance_id.is_some() && member.instance_id.is_some() => {
            Err(GroupError::FencedInstance)
        }
        (None, None) if classic.members.len() >= op.members_max as usize => Err(GroupError::GroupMaxSizeReached),
        _ => Ok(()),
    }
}

/// The consumer group that a classic one becomes: its members stand where the last assignment put them, at the epoch of the
/// generation, and each is to join again. Pending members are forgotten; they may come with their ids all the same.
fn consumer_group(classic: &ClassicGroup, cx: &Context<'_>) -> Result<ConsumerGroup, GroupError> {
    let epoch = classic.generation();
    // While the leader's assignment is missing, what members have is of the generation before, and so may their commits be.
    let assigned_at = match classic.head.state {
        ClassicState::Completing => epoch.saturating_sub(1),
        _ => epoch,
    };
    let mut group = ConsumerGroup::new(epoch);
    group.activity = classic.activity.clone();
    for pending in classic.pending.keys() {
        group.activity.forget(pending, cx.position.index);
    }
    let mut taken = BTreeSet::new();
    let is_sticky = classic.head.protocol_name.as_deref().is_some_and(|name| STICKY_ASSIGNORS.contains(&name));
    for (member_id, member) in classic.members.iter() {
        let metadata = match &classic.head.protocol_name {
            Some(name) => member.metadata(name),
            None => member.protocols.first().map_or(&[][..], |(_, metadata)| metadata),
        };
        // What a custom assignor keeps in these bytes would be lost: such a group stays as it is.
        let subscription = read_subscription(metadata).ok_or(GroupError::GroupNotFound)?;
        let assignment = read_assignment(&member.assignment).ok_or(GroupError::GroupNotFound)?;
        if assignment.has_user_data && !is_sticky {
            return Err(GroupError::GroupNotFound);
        }
        let mut assigned = Owned::new();
        let mut target = Target::new();
        for topic in existing(&assignment.partitions, cx.directory) {
            for partition in topic.partitions {
                // The client that assigned may have given a partition to two members; here only one can have it.
                if taken.insert((topic.topic_id, partition)) {
                    assigned.entry(topic.topic_id).or_default().insert(partition, assigned_at);
                    target.entry(topic.topic_id).or_default().push(partition);
                }
            }
        }
        let subscribed = sorted(&subscription.topics);
        let converted = ConsumerMember {
            instance_id: member.instance_id.clone(),
            rack_id: subscription.rack_id,
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            rebalance_timeout_ms: member.rebalance_timeout_ms,
            session_timeout_ms: member.session_timeout_ms,
            heartbeat_interval_ms: 0,
            server_assignor: None,
            subscription_hash: subscription_hash(&subscribed),
            subscribed,
            regex: None,
            classic: Some(ClassicTerms {
                protocols: member.protocols.clone(),
                joined_at: cx.position.index,
                joined: false,
            }),
            epoch,
            previous_epoch: epoch,
            state: MemberState::Stable,
            assigned,
            revoking: Owned::new(),
            revoking_since: None,
            waiting: None,
        };
        group.members.insert(member_id.clone(), converted);
        if !target.is_empty() {
            group.targets.insert(member_id.clone(), target);
        }
    }
    group.rebuild();
    Ok(group)
}

/// Makes a consumer group a classic one when all members that are left speak the classic protocol. `joining` is a member whose JoinGroup
/// replaced the last other one; if everybody is where it should be nobody needs to join again.
///
/// The classic group begins in the generation `told`, the group's epoch before this op, as in Kafka: the op may have raised it, but
/// nobody was told, and a member whose generation is not the group's would have to drop its partitions before it joins again.
pub(super) fn downgrade_if_due(group: &mut Group, cx: &mut Context<'_>, told: i32, joining: Option<&str>) {
    let Protocol::Consumer(consumer) = &group.protocol else { return };
    if consumer.members.is_empty() || consumer.classic_members < consumer.members.len() {
        return;
    }
    let mut classic = classic_group(consumer, cx, told);
    let at_rest = joining.is_some()
        && !consumer.assignment_due()
        && consumer.members.values().all(|member| {
            member.epoch == consumer.head.epoch && member.state == MemberState::Stable && member.waiting.is_none()
        });
    if !at_rest {
        let asking: Vec<&String> = consumer
            .members
            .iter()
            .filter(|(member_id, member)| member.waiting.is_some() || joining == Some(member_id.as_str()))
            .map(|(member_id, _)| member_id)
            .collect();
        classic.rebalance_with(cx, &asking);
    }
    group.protocol = Protocol::Classic(classic);
    cx.assignment_needed = false;
    cx.changed = true;
    Mark::GroupDowngraded.reached();
    cx.note(GroupEventKind::Migrated { to: GroupType::Classic });
}

/// The classic group that a consumer group without members of the consumer protocol becomes, with everybody's assignment.
fn classic_group(consumer: &ConsumerGroup, cx: &Context<'_>, generation: i32) -> ClassicGroup {
    let mut group = ClassicGroup::new(generation);
    group.activity = consumer.activity.clone();
    group.head.protocol_type = Some(PROTOCOL_TYPE.to_string());
    group.head.generation_since = cx.position.index;
    for (member_id, member) in consumer.members.iter() {
        let protocols = member.classic.as_ref().map(|terms| terms.protocols.clone()).unwrap_or_default();
        let converted = ClassicMember {
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            session_timeout_ms: member.session_timeout_ms,
            rebalance_timeout_ms: member.rebalance_timeout_ms,
            assignment: member.classic_assignment(cx.directory),
            protocols,
            joined: 0,
        };
        group.members.insert(member_id.clone(), converted);
    }
    group.rebuild();
    group.head.leader = group.members.first_key().cloned();
    group.head.protocol_name = group.elect_protocol();
    group.head.state = ClassicState::Stable;
    group
}

impl ConsumerMember {
    /// What it is assigned, in the bytes of the classic protocol.
    pub(super) fn classic_assignment(&self, directory: &Directory) -> Vec<u8> {
        let metadata = self.classic.as_ref().and_then(|terms| terms.protocols.first());
        let version = metadata.and_then(|(_, metadata)| read_subscription(metadata)).map_or(0, |said| said.version);
        write_assignment(version, &self.assignment(), directory)
    }
}
