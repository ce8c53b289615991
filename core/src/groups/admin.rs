//! What administrators and the leader's housekeeping do to groups: delete them or their offsets, let offsets expire, configure.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Bound;

use super::Groups;
use super::classic::{ClassicGroup, ClassicState};
use super::consumer::ConsumerGroup;
use super::consumer_protocol::{PROTOCOL_TYPE, read_subscription};
use super::group::{At, Context, Group, Protocol};
use crate::directory::Directory;
use crate::effect::Effect;
use crate::ids::{GROUP_AND_MEMBER_ID_BYTES_MAX, Position, TopicId};
use crate::op::{ConfigureGroup, DeleteGroup, DeleteOffsets, ExpireOffsets};
use crate::reply::{GroupError, Reply};
use crate::view::{GroupConfig, GroupState, GroupsToExpire};
use lockstep_probe::Mark;

/// Groups that have a configuration of their own, at most, in one shard: they need not exist, so nothing else bounds them.
const CONFIGS_MAX: usize = 10_000;
/// Kafka's name of [`GroupConfig::session_timeout_ms`].
const SESSION_TIMEOUT: &str = "consumer.session.timeout.ms";
/// Kafka's name of [`GroupConfig::heartbeat_interval_ms`].
const HEARTBEAT_INTERVAL: &str = "consumer.heartbeat.interval.ms";

impl Groups {
    /// Op 13.
    pub(crate) fn apply_delete_group(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &DeleteGroup,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        let at = At { directory, position, now_ms: None };
        self.change(at, &op.group_id, effects, |slot, cx| {
            Reply::Group(match slot {
                None => Err(GroupError::GroupNotFound),
                Some(group) if group.members_len() > 0 => Err(GroupError::NonEmptyGroup),
                Some(_) => {
                    cx.forgotten = true;
                    cx.changed = true;
                    Ok(())
                }
            })
        })
    }

    /// Op 14.
    pub(crate) fn apply_delete_offsets(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &DeleteOffsets,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        let at = At { directory, position, now_ms: None };
        self.change(at, &op.group_id, effects, |slot, cx| Reply::Commit(delete_offsets(slot, cx, op)))
    }

    /// Op 15.
    pub(crate) fn apply_expire_offsets(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &ExpireOffsets,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        let mut any = false;
        let at = At { directory, position, now_ms: Some(op.now_ms) };
        for group_id in &op.groups {
            any |= self.change(at, group_id, effects, |slot, cx| {
                let Some(group) = slot else { return false };
                let expiry = expiry(group, cx.directory, op.now_ms, op.retention_ms);
                if !expiry.offsets.is_empty() {
                    Mark::OffsetsExpired.reached();
                }
                for key in &expiry.offsets {
                    group.offsets.remove(key);
                }
                cx.forgotten = expiry.group;
                cx.changed |= !expiry.is_empty();
                !expiry.is_empty()
            })?;
        }
        Ok(Reply::Done(any))
    }

    /// Op 16.
    pub(crate) fn apply_configure(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &ConfigureGroup,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        let before = self.config(&op.group_id);
        let config = match self.check_configure(before, op) {
            Ok(config) => config,
            Err(error) => return Ok(Reply::Group(Err(error))),
        };
        if config != before {
            if config == GroupConfig::default() {
                self.configs.remove(&op.group_id);
            } else {
                self.configs.insert(op.group_id.clone(), config);
            }
            // Sessions follow the new time-out.
            let at = At { directory, position, now_ms: None };
            self.change(at, &op.group_id, effects, |_, cx| cx.changed = true)?;
        }
        Ok(Reply::Group(Ok(())))
    }

    /// What the configuration is after the change, if that is in order.
    fn check_configure(&self, before: GroupConfig, op: &ConfigureGroup) -> Result<GroupConfig, GroupError> {
        let config = configured(before, &op.changes)?;
        if op.group_id.is_empty() {
            return Err(GroupError::InvalidGroupId);
        }
        if op.group_id.len() > GROUP_AND_MEMBER_ID_BYTES_MAX {
            let text = format!("the id of a group has at most {GROUP_AND_MEMBER_ID_BYTES_MAX} bytes");
            return Err(GroupError::InvalidRequest(text));
        }
        let new = config != GroupConfig::default() && !self.configs.contains_key(&op.group_id);
        if new && self.configs.len() >= CONFIGS_MAX {
            return Err(GroupError::InvalidRequest(format!("{CONFIGS_MAX} groups have a configuration already")));
        }
        Ok(config)
    }

    /// See [`crate::ClusterStateMachine::group_config`].
    pub(crate) fn config(&self, group_id: &str) -> GroupConfig {
        self.configs.get(group_id).copied().unwrap_or_default()
    }

    /// See [`crate::ClusterStateMachine::groups_to_expire`].
    pub(crate) fn to_expire(
        &self,
        directory: &Directory,
        now_ms: i64,
        retention_ms: u64,
        after: Option<&str>,
        rows_max: usize,
    ) -> GroupsToExpire {
        let mut found = GroupsToExpire::default();
        let mut rows = 0;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (group_id, group) in self.groups.range::<str, _>((start, Bound::Unbounded)) {
            if rows >= rows_max {
                return found;
            }
            if !expiry(group, directory, now_ms, retention_ms).is_empty() {
                found.groups.push(group_id.clone());
            }
            rows += 1 + group.offsets.len() + group.members_len();
            found.last = Some(group_id.clone());
        }
        found.last = None;
        found
    }
}

fn configured(mut config: GroupConfig, changes: &[(String, Option<String>)]) -> Result<GroupConfig, GroupError> {
    for (name, value) in changes {
        let value = match value {
            None => None,
            Some(text) => {
                Some(text.parse::<u32>().ok().filter(|value| (1..=i32::MAX as u32).contains(value)).ok_or_else(
                    || GroupError::InvalidRequest(format!("{name} must be a number of milliseconds above 0")),
                )?)
            }
        };
        match name.as_str() {
            SESSION_TIMEOUT => config.session_timeout_ms = value,
            HEARTBEAT_INTERVAL => config.heartbeat_interval_ms = value,
            _ => return Err(GroupError::InvalidRequest("no such configuration of a group".to_string())),
        }
    }
    if let (Some(session_timeout_ms), Some(heartbeat_interval_ms)) =
        (config.session_timeout_ms, config.heartbeat_interval_ms)
        && heartbeat_interval_ms >= session_timeout_ms
    {
        // Members that do as they are told would be removed between two heartbeats.
        return Err(GroupError::InvalidRequest(format!("{HEARTBEAT_INTERVAL} must be below {SESSION_TIMEOUT}")));
    }
    Ok(config)
}

/// OffsetDelete. `slot` is the group, if there is one.
fn delete_offsets(
    slot: &mut Option<Group>,
    cx: &mut Context<'_>,
    op: &DeleteOffsets,
) -> Result<Vec<Result<(), GroupError>>, GroupError> {
    let group = slot.as_mut().ok_or(GroupError::GroupNotFound)?;
    if let Protocol::Classic(classic) = &group.protocol
        && !classic.members.is_empty()
        && classic.head.protocol_type.as_deref() != Some(PROTOCOL_TYPE)
    {
        // What its members read is known to them only.
        return Err(GroupError::NonEmptyGroup);
    }
    let subscribed = subscribed_topics(group, cx.directory);
    let kept: Vec<bool> = op.topics.iter().map(|topic| subscribed.contains(topic.topic_id)).collect();
    let mut outcomes = Vec::new();
    for (topic, kept) in op.topics.iter().zip(kept) {
        let outcome = if !cx.directory.topics.contains_key(&topic.topic_id) {
            Err(GroupError::UnknownPartition)
        } else if kept {
            Err(GroupError::SubscribedToTopic)
        } else {
            Ok(())
        };
        for partition in &topic.partitions {
            if outcome.is_ok() && group.offsets.remove(&(topic.topic_id, *partition)).is_some() {
                cx.changed = true;
            }
            outcomes.push(outcome.clone());
        }
    }
    Ok(outcomes)
}

/// What a group's members read.
enum SubscribedTopics<'a> {
    /// It cannot be told: every topic may be among it.
    Unknown,
    /// Of a classic group.
    Known(BTreeSet<TopicId>),
    /// What regular expressions match of topics that they were not matched with yet cannot be told.
    Resolved(&'a ConsumerGroup, &'a Directory),
}

impl SubscribedTopics<'_> {
    fn contains(&self, topic_id: TopicId) -> bool {
        match self {
            Self::Unknown => true,
            Self::Known(topics) => topics.contains(&topic_id),
            Self::Resolved(group, directory) => {
                directory.topics.get(&topic_id).is_some_and(|topic| group.is_subscribed(topic))
                    || group.undecided_since(directory, [topic_id].iter()).is_some()
            }
        }
    }
}

fn subscribed_topics<'a>(group: &'a Group, directory: &'a Directory) -> SubscribedTopics<'a> {
    match &group.protocol {
        Protocol::Classic(classic) => classic_topics(classic, directory),
        // What an expression matches that was not resolved yet may be any topic.
        Protocol::Consumer(consumer) if consumer.has_unresolved_regexes() => SubscribedTopics::Unknown,
        Protocol::Consumer(consumer) => SubscribedTopics::Resolved(consumer, directory),
    }
}

fn classic_topics(group: &ClassicGroup, directory: &Directory) -> SubscribedTopics<'static> {
    let mut topics = BTreeSet::new();
    if group.members.is_empty() {
        return SubscribedTopics::Known(topics);
    }
    if group.head.protocol_type.as_deref() != Some(PROTOCOL_TYPE) {
        return SubscribedTopics::Unknown;
    }
    for member in group.members.values() {
        let metadata = match &group.head.protocol_name {
            Some(name) => member.metadata(name),
            None => member.protocols.first().map_or(&[][..], |(_, metadata)| metadata),
        };
        let Some(subscription) = read_subscription(metadata) else { return SubscribedTopics::Unknown };
        topics.extend(subscription.topics.iter().filter_map(|name| directory.topic(name)).map(|topic| topic.id));
    }
    SubscribedTopics::Known(topics)
}

/// What of a group is older than the retention allows.
struct Expiry {
    offsets: Vec<(TopicId, u32)>,
    /// The group itself has nothing left.
    group: bool,
}

impl Expiry {
    fn is_empty(&self) -> bool {
        self.offsets.is_empty() && !self.group
    }
}

/// Offsets of an empty group age from when it became empty (a group that never had members: from the commit), those of a stable one
/// from the commit, and only for topics that nobody in it subscribes to. While a group rebalances nothing is removed.
fn expiry(group: &Group, directory: &Directory, now_ms: i64, retention_ms: u64) -> Expiry {
    let before_ms = now_ms.saturating_sub(i64::try_from(retention_ms).unwrap_or(i64::MAX));
    let empty = group.members_len() == 0;
    let rebalances = match &group.protocol {
        Protocol::Classic(classic) => !matches!(classic.state(), ClassicState::Empty | ClassicState::Stable),
        Protocol::Consumer(_) => !matches!(group.state(), GroupState::Empty | GroupState::Stable),
    };
    let old = |since_ms: i64| since_ms <= before_ms;
    if rebalances && !empty {
        return Expiry { offsets: Vec::new(), group: false };
    }
    let mut aged = group
        .offsets
        .iter()
        .filter(|(_, offset)| {
            let emptied_ms = group.empty_since_ms.filter(|_| empty).unwrap_or(i64::MIN);
            old(offset.commit_time_ms.max(emptied_ms))
        })
        .map(|(key, _)| *key)
        .peekable();
    let offsets: Vec<(TopicId, u32)> = if empty || aged.peek().is_none() {
        aged.collect()
    } else {
        let subscribed = subscribed_topics(group, directory);
        // By topic: each is looked at once.
        let mut last = None;
        aged.filter(|(topic_id, _)| {
            let kept = match last {
                Some((looked_at, kept)) if looked_at == *topic_id => kept,
                _ => subscribed.contains(*topic_id),
            };
            last = Some((*topic_id, kept));
            !kept
        })
        .collect()
    };
    let nothing_left = offsets.len() == group.offsets.len();
    let nobody_left = group.has_no_members() && group.empty_since_ms.is_none_or(old);
    Expiry { offsets, group: nothing_left && nobody_left }
}
