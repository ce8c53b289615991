//! What is true of every group after every op. One function an invariant.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;

use super::Groups;
use super::classic::{ClassicGroup, ClassicState, protocol_names};
use super::consumer::{ConsumerGroup, subscription_hash};
use super::group::{Group, Protocol};
use super::reconcile::MemberState;
use super::regexes::REGEXES_MAX;
use super::timeline::{BYTES_MAX, EVENTS_MAX};
use crate::directory::Directory;
use crate::ids::TopicId;
use crate::view::GroupState;

impl Groups {
    /// Checks every group in full.
    pub(crate) fn check_invariants(&self, directory: &Directory) -> Result<(), String> {
        let mut digest = 0_u128;
        for (group_id, group) in &self.groups {
            check_group(group_id, group, directory).map_err(|message| format!("group {group_id:?}: {message}"))?;
            digest = digest.wrapping_add(group.hash);
        }
        holds(self.configs.sum() == self.configs.sum_from_scratch(), || "the digest of configurations is off".into())?;
        holds(digest == self.digest, || "the digest is not that of the groups".into())
    }
}

fn check_group(group_id: &str, group: &Group, directory: &Directory) -> Result<(), String> {
    digest_is_that_of_the_rows(group_id, group)?;
    epochs_are_in_order(group)?;
    everybody_was_seen_once(group)?;
    offsets_are_of_partitions_that_exist(group, directory)?;
    the_timeline_is_small(group)?;
    holds(group.empty_since_ms.is_none() || group.members_len() == 0, || "empty, with members".into())?;
    match &group.protocol {
        Protocol::Classic(classic) => {
            classic_indexes_follow_the_members(classic)?;
            classic_state_fits_the_members(classic)?;
            classic_members_share_a_protocol(classic)
        }
        Protocol::Consumer(consumer) => {
            consumer_indexes_follow_the_members(consumer)?;
            classic_members_do_not_stay_among_themselves(consumer)?;
            regexes_have_subscribers(consumer)?;
            a_partition_has_one_owner(consumer)?;
            member_states_fit_what_is_owed(consumer)?;
            targets_share_out_every_subscribed_partition(consumer, directory)?;
            stable_means_one_owner_for_every_partition(group, consumer)
        }
    }
}

fn holds(condition: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(message()) }
}

fn digest_is_that_of_the_rows(group_id: &str, group: &Group) -> Result<(), String> {
    let tables = match &group.protocol {
        Protocol::Classic(classic) => {
            classic.members.sum() == classic.members.sum_from_scratch()
                && classic.pending.sum() == classic.pending.sum_from_scratch()
                && classic.activity.sum() == classic.activity.sum_from_scratch()
        }
        Protocol::Consumer(consumer) => {
            consumer.members.sum() == consumer.members.sum_from_scratch()
                && consumer.head.released.sum() == consumer.head.released.sum_from_scratch()
                && consumer.targets.sum() == consumer.targets.sum_from_scratch()
                && consumer.topics.sum() == consumer.topics.sum_from_scratch()
                && consumer.regexes.sum() == consumer.regexes.sum_from_scratch()
                && consumer.activity.sum() == consumer.activity.sum_from_scratch()
        }
    };
    holds(tables && group.offsets.sum() == group.offsets.sum_from_scratch(), || "a table's digest is off".into())?;
    holds(group.hash == group.hash_of(group_id), || "the group's hash is off".into())
}

/// The timeline is bounded, whatever happens to a group.
fn the_timeline_is_small(group: &Group) -> Result<(), String> {
    let (len, bytes) = group.timeline.size();
    holds(len <= EVENTS_MAX && bytes <= BYTES_MAX, || format!("a timeline of {len} events and {bytes} bytes"))?;
    holds(bytes == group.timeline.known_bytes(), || "the timeline's length is off".into())?;
    holds(group.timeline.sum_is_right(), || "the timeline's digest is off".into())
}

/// A group without a member of the consumer protocol is a classic one; and its classic members have a protocol in common for then.
fn classic_members_do_not_stay_among_themselves(group: &ConsumerGroup) -> Result<(), String> {
    let classic = group.members.values().filter(|member| member.classic.is_some()).count();
    holds(classic == group.classic_members, || "the count of classic members is off".into())?;
    holds(classic < group.members.len() || classic == 0, || "a consumer group of classic members only".into())?;
    let mut support: BTreeMap<&str, usize> = BTreeMap::new();
    for terms in group.members.values().filter_map(|member| member.classic.as_ref()) {
        for name in protocol_names(&terms.protocols) {
            *support.entry(name).or_insert(0) += 1;
        }
    }
    let shared = support.values().any(|count| *count == classic);
    holds(classic == 0 || shared, || "no protocol that all classic members offer".into())?;
    let known = group.support.iter().map(|(name, count)| (name.as_str(), *count));
    holds(support.into_iter().eq(known), || "the count of protocols is off".into())
}

/// What is known of regular expressions is known of those in use.
fn regexes_have_subscribers(group: &ConsumerGroup) -> Result<(), String> {
    let mut subscribers: BTreeMap<&str, usize> = BTreeMap::new();
    for regex in group.members.values().filter_map(|member| member.regex.as_deref()) {
        *subscribers.entry(regex).or_insert(0) += 1;
    }
    let unused = group.regexes.keys().any(|regex| !subscribers.contains_key(regex.as_str()));
    holds(!unused, || "a regular expression without subscribers".into())?;
    holds(subscribers.len() <= REGEXES_MAX, || format!("{} regular expressions", subscribers.len()))?;
    let unsorted =
        group.regexes.values().any(|resolved| !resolved.topics.is_sorted_by(|earlier, later| earlier < later));
    holds(!unsorted, || "topics of a regular expression out of order".into())?;
    let known = group.regex_subscribers.iter().map(|(regex, count)| (regex.as_str(), *count));
    holds(subscribers.into_iter().eq(known), || "the count of regular expressions is off".into())
}

/// Nobody is ahead of the group, and the target is not ahead of it either.
fn epochs_are_in_order(group: &Group) -> Result<(), String> {
    match &group.protocol {
        Protocol::Classic(classic) => {
            holds(classic.generation() >= 0, || format!("generation {}", classic.generation()))
        }
        Protocol::Consumer(consumer) => {
            let head = &consumer.head;
            holds(0 <= head.assignment_epoch && head.assignment_epoch <= head.epoch, || {
                format!("assignment epoch {} and group epoch {}", head.assignment_epoch, head.epoch)
            })?;
            for (member_id, member) in consumer.members.iter() {
                holds(member.epoch <= head.assignment_epoch && member.previous_epoch <= member.epoch, || {
                    format!(
                        "member {member_id:?} at epoch {} after {}, target at {}",
                        member.epoch, member.previous_epoch, head.assignment_epoch
                    )
                })?;
                let ahead = member
                    .assigned
                    .values()
                    .chain(member.revoking.values())
                    .flat_map(BTreeMap::values)
                    .any(|epoch| *epoch > head.assignment_epoch);
                holds(!ahead, || format!("member {member_id:?} was assigned a partition in an epoch to come"))?;
            }
            Ok(())
        }
    }
}

fn everybody_was_seen_once(group: &Group) -> Result<(), String> {
    let seen: BTreeSet<&String> = group.activity().members().collect();
    let (members, pending): (BTreeSet<&String>, BTreeSet<&String>) = match &group.protocol {
        Protocol::Classic(classic) => (classic.members.keys().collect(), classic.pending.keys().collect()),
        Protocol::Consumer(consumer) => (consumer.members.keys().collect(), BTreeSet::new()),
    };
    holds(members.is_disjoint(&pending), || "a member is pending too".into())?;
    holds(
        seen.len() == members.len() + pending.len() && seen.is_superset(&members) && seen.is_superset(&pending),
        || "who was heard from and who is a member differ".into(),
    )
}

fn offsets_are_of_partitions_that_exist(group: &Group, directory: &Directory) -> Result<(), String> {
    for ((topic_id, partition), offset) in group.offsets.iter() {
        let exists = directory.topics.get(topic_id).is_some_and(|topic| (*partition as usize) < topic.partitions.len());
        holds(exists && offset.offset >= 0, || format!("offset {} of {topic_id}-{partition}", offset.offset))?;
    }
    Ok(())
}

fn classic_indexes_follow_the_members(group: &ClassicGroup) -> Result<(), String> {
    let (support, instances, joined) = group.derived();
    holds(support == group.support, || "the count of protocols is off".into())?;
    holds(instances == group.instances, || "the instance ids are off".into())?;
    let statics = group.members.values().filter(|member| member.instance_id.is_some()).count();
    holds(statics == instances.len(), || "an instance id belongs to two members".into())?;
    let joining = matches!(group.state(), ClassicState::Preparing(_));
    holds(!joining || joined == group.joined, || format!("{joined} have joined, {} are counted", group.joined))
}

fn classic_state_fits_the_members(group: &ClassicGroup) -> Result<(), String> {
    let leads = group.head.leader.as_ref().is_some_and(|leader| group.members.contains_key(leader));
    match group.state() {
        ClassicState::Empty => holds(group.members.is_empty(), || "an empty group has members".into()),
        ClassicState::Preparing(phase) => {
            let over = phase.initial_delay_ms == 0 && group.joined == group.members.len() && group.pending.is_empty();
            holds(!over, || "everybody has joined and the join phase goes on".into())?;
            holds(group.head.leader.is_none() || leads, || "the leader is no member".into())
        }
        ClassicState::Completing | ClassicState::Stable => {
            holds(leads, || "a generation without a leader".into())?;
            holds(group.head.protocol_name.is_some(), || "a generation without a protocol".into())?;
            holds(group.head.generation > 0, || "a generation that was never begun".into())
        }
    }
}

fn classic_members_share_a_protocol(group: &ClassicGroup) -> Result<(), String> {
    let shared = group.support.values().any(|count| *count == group.members.len());
    holds(group.members.is_empty() || shared, || "no protocol that all members offer".into())
}

fn consumer_indexes_follow_the_members(group: &ConsumerGroup) -> Result<(), String> {
    let mut instances: BTreeMap<&str, &str> = BTreeMap::new();
    let mut subscribers: BTreeMap<&str, usize> = BTreeMap::new();
    for (member_id, member) in group.members.iter() {
        if let Some(instance_id) = &member.instance_id {
            let before = instances.insert(instance_id, member_id);
            holds(before.is_none(), || format!("instance id {instance_id:?} belongs to two members"))?;
        }
        holds(member.subscription_hash == subscription_hash(&member.subscribed), || {
            format!("subscription hash of member {member_id:?}")
        })?;
        for name in &member.subscribed {
            *subscribers.entry(name).or_insert(0) += 1;
        }
    }
    let known_instances =
        group.instances.iter().map(|(instance_id, member_id)| (instance_id.as_str(), member_id.as_str()));
    holds(instances.into_iter().eq(known_instances), || "the instance ids are off".into())?;
    let known_subscribers = group.subscribers.iter().map(|(name, count)| (name.as_str(), *count));
    holds(subscribers.into_iter().eq(known_subscribers), || "the count of subscribers is off".into())
}

/// Whatever the epoch: what one member may own or has not given up yet, nobody else may own.
fn a_partition_has_one_owner(group: &ConsumerGroup) -> Result<(), String> {
    let mut owners: BTreeMap<(TopicId, u32), &str> = BTreeMap::new();
    for (member_id, member) in group.members.iter() {
        for (topic_id, partitions) in member.assigned.iter().chain(&member.revoking) {
            for partition in partitions.keys() {
                if let Some(other) = owners.insert((*topic_id, *partition), member_id) {
                    return Err(format!("{topic_id}-{partition} belongs to {other:?} and to {member_id:?}"));
                }
            }
        }
    }
    let known = group.owners.iter().map(|(partition, owner)| (*partition, &**owner));
    holds(owners.into_iter().eq(known), || "the owners of partitions are off".into())
}

fn member_states_fit_what_is_owed(group: &ConsumerGroup) -> Result<(), String> {
    for (member_id, member) in group.members.iter() {
        let unrevoked = member.state == MemberState::Unrevoked;
        holds(unrevoked != member.revoking.is_empty() && unrevoked == member.revoking_since.is_some(), || {
            format!("member {member_id:?} is {:?}, asked to revoke at {:?}", member.state, member.revoking_since)
        })?;
        let hollow = member.assigned.values().chain(member.revoking.values()).any(BTreeMap::is_empty);
        holds(!hollow, || format!("member {member_id:?} owns a topic without partitions"))?;
        holds(!member.is_away() || member.instance_id.is_some(), || format!("dynamic member {member_id:?} is away"))?;
    }
    Ok(())
}

/// Targets are disjoint; when they are up to date, they cover what the directory says of the subscribed topics, exactly.
fn targets_share_out_every_subscribed_partition(group: &ConsumerGroup, directory: &Directory) -> Result<(), String> {
    let mut shared_out: BTreeSet<(TopicId, u32)> = BTreeSet::new();
    for (member_id, target) in group.targets.iter() {
        holds(group.members.contains_key(member_id), || format!("a target for {member_id:?}, who is no member"))?;
        for (topic_id, partitions) in target {
            for partition in partitions {
                let fresh = shared_out.insert((*topic_id, *partition));
                holds(fresh, || format!("{topic_id}-{partition} is in two targets"))?;
            }
        }
    }
    if group.members.is_empty() || group.assignment_due() {
        return Ok(());
    }
    let expected: BTreeSet<(TopicId, u32)> = group
        .subscribed_topics(directory)
        .flat_map(|topic| (0_u32..).zip(&topic.partitions).map(|(partition, _)| (topic.id, partition)))
        .collect();
    holds(shared_out == expected, || {
        format!("{} partitions are in targets, {} are subscribed to", shared_out.len(), expected.len())
    })?;
    for (member_id, target) in group.targets.iter() {
        let Some(member) = group.members.get(member_id) else { continue };
        let strange = target
            .keys()
            .any(|topic_id| directory.topics.get(topic_id).is_none_or(|topic| !group.subscribes(member, topic)));
        holds(!strange, || format!("member {member_id:?} is to own a topic that it does not subscribe to"))?;
    }
    Ok(())
}

fn stable_means_one_owner_for_every_partition(group: &Group, consumer: &ConsumerGroup) -> Result<(), String> {
    if group.state() != GroupState::Stable {
        return Ok(());
    }
    let targets = consumer
        .targets
        .iter()
        .flat_map(|(member_id, target)| {
            target.iter().flat_map(move |(topic_id, partitions)| {
                partitions.iter().map(move |partition| ((*topic_id, *partition), member_id.as_str()))
            })
        })
        .collect::<BTreeMap<_, _>>();
    let owners = consumer.owners.iter().map(|(partition, owner)| (*partition, &**owner));
    holds(targets.into_iter().eq(owners), || "stable, and not everybody owns its target".into())
}
