//! Subscriptions by regular expression. What one matches is found out outside, and comes as an op.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::iter::successors;
use core::ops::Bound;

use serde::{Deserialize, Serialize};

use super::Groups;
use super::consumer::ConsumerGroup;
use super::group::{At, Context, Group, Protocol};
use super::timeline::short;
use crate::directory::Directory;
use crate::effect::Effect;
use crate::ids::{Position, TopicId};
use crate::op::ResolveRegularExpression;
use crate::reply::{GroupError, Reply};
use crate::view::{GroupEventKind, GroupRegex};
use lockstep_probe::Mark;

/// Different regular expressions in one group, at most: each costs the leader a match against all topics.
pub(super) const REGEXES_MAX: usize = 100;

/// What a regular expression matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResolvedRegex {
    /// Version of the directory that it was matched with.
    pub(super) version: u64,
    /// Ascending, each once. Those that were deleted since are still listed.
    pub(super) topics: Vec<TopicId>,
}

impl Groups {
    /// Op 17.
    pub(crate) fn apply_resolve(
        &mut self,
        directory: &Directory,
        position: Position,
        op: &ResolveRegularExpression,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, String> {
        let at = At { directory, position, now_ms: Some(op.now_ms) };
        self.change(at, &op.group_id, effects, |slot, cx| {
            Reply::Done(match slot.as_mut().map(|group| &mut group.protocol) {
                Some(Protocol::Consumer(group)) => group.resolve(cx, op),
                _ => false,
            })
        })
    }

    /// See [`crate::ClusterStateMachine::group_regexes`].
    pub(crate) fn regexes(&self, directory: &Directory, group_id: &str) -> Vec<GroupRegex> {
        let Some(group) = self.groups.get(group_id) else { return Vec::new() };
        let Protocol::Consumer(consumer) = &group.protocol else { return Vec::new() };
        let since = consumer.undecided_since(directory, topics_of_offsets(group)).unwrap_or(0);
        let resolved = |regex: &String| {
            let resolved = consumer.regexes.get(regex).filter(|resolved| resolved.version >= since)?;
            Some((resolved.version, resolved.topics.clone()))
        };
        consumer
            .regex_subscribers
            .keys()
            .map(|regex| GroupRegex { group_id: group_id.to_string(), regex: regex.clone(), resolved: resolved(regex) })
            .collect()
    }

    /// See [`crate::ClusterStateMachine::group_knows_regex`].
    pub(crate) fn knows_regex(&self, group_id: &str, regex: &str) -> bool {
        match self.groups.get(group_id).map(|group| &group.protocol) {
            Some(Protocol::Consumer(group)) => group.regex_subscribers.contains_key(regex),
            _ => false,
        }
    }

    /// See [`crate::ClusterStateMachine::has_unresolved_regexes`].
    pub(crate) fn has_unresolved_regexes(&self, group_id: &str) -> bool {
        match self.groups.get(group_id).map(|group| &group.protocol) {
            Some(Protocol::Consumer(group)) => group.has_unresolved_regexes(),
            _ => false,
        }
    }

    /// See [`crate::ClusterStateMachine::groups_with_regexes`].
    pub(crate) fn with_regexes(&self) -> Vec<String> {
        self.groups
            .iter()
            .filter(|(_, group)| {
                matches!(&group.protocol, Protocol::Consumer(group) if !group.regex_subscribers.is_empty())
            })
            .map(|(group_id, _)| group_id.clone())
            .collect()
    }
}

/// Topics for which a group has committed offsets, each once.
fn topics_of_offsets(group: &Group) -> impl Iterator<Item = &TopicId> {
    let next = |after: Option<&TopicId>| {
        let start = after.map_or(Bound::Unbounded, |topic_id| Bound::Excluded((*topic_id, u32::MAX)));
        group.offsets.range((start, Bound::Unbounded)).next().map(|((topic_id, _), _)| topic_id)
    };
    successors(next(None), move |topic_id| next(Some(topic_id)))
}

/// Are there offsets of topics of which it is not known whether anybody subscribes to them, because resolutions are older?
pub(super) fn has_undecided_offsets(group: &Group, directory: &Directory) -> bool {
    match &group.protocol {
        Protocol::Consumer(consumer) => consumer.undecided_since(directory, topics_of_offsets(group)).is_some(),
        Protocol::Classic(_) => false,
    }
}

impl ConsumerGroup {
    /// Does anybody subscribe by an expression that was never resolved? Only those with subscribers are kept resolved, so that counting
    /// is enough.
    pub(super) fn has_unresolved_regexes(&self) -> bool {
        self.regexes.len() < self.regex_subscribers.len()
    }

    /// Version of the directory that altered the newest of these topics of which it is not known whether anybody subscribes to them,
    /// because a resolution is older. A topic that is new and one that was altered cannot be told apart.
    pub(super) fn undecided_since<'a>(
        &self,
        directory: &Directory,
        topics: impl Iterator<Item = &'a TopicId>,
    ) -> Option<u64> {
        let resolved = self.regexes.values().map(|resolved| resolved.version).min()?;
        let topics = topics.filter_map(|topic_id| directory.topics.get(topic_id));
        let undecided = topics.filter(|topic| topic.version > resolved && !self.is_subscribed(topic));
        undecided.map(|topic| topic.version).max()
    }

    /// Is there room for the regular expression of a member? `before` is the one that it has so far, which makes room when nobody else
    /// subscribes by it.
    pub(super) fn check_room_for_regex(&self, before: Option<&str>, regex: &str) -> Result<(), GroupError> {
        if regex.is_empty() || self.regex_subscribers.contains_key(regex) {
            return Ok(());
        }
        let given_up = before.is_some_and(|before| self.regex_subscribers.get(before) == Some(&1));
        if self.regex_subscribers.len().saturating_sub(usize::from(given_up)) < REGEXES_MAX {
            return Ok(());
        }
        Err(GroupError::InvalidRequest(format!("a group subscribes by at most {REGEXES_MAX} regular expressions")))
    }

    /// True when it says something that was not known. Of two resolutions the one by the later directory holds, in whatever order they
    /// come; one by a directory that this shard has not yet is refused, because the topics it names may not be there.
    fn resolve(&mut self, cx: &mut Context<'_>, op: &ResolveRegularExpression) -> bool {
        let known = self.regexes.get(&op.regex);
        let ascending = op.topics.is_sorted_by(|earlier, later| earlier < later);
        let stale = known.is_some_and(|known| op.metadata_version < known.version);
        let fresh = ResolvedRegex { version: op.metadata_version, topics: op.topics.clone() };
        if stale || op.metadata_version > cx.directory.version {
            Mark::RegexResolutionOutOfTurn.reached();
        }
        if !self.regex_subscribers.contains_key(&op.regex)
            || !ascending
            || stale
            || op.metadata_version > cx.directory.version
            || known == Some(&fresh)
        {
            return false;
        }
        let before = known.map(|known| known.topics.as_slice()).unwrap_or_default();
        let exists = |topic_id: &&TopicId| cx.directory.topics.contains_key(topic_id);
        let matters = !before.iter().filter(exists).eq(op.topics.iter().filter(exists));
        self.regexes.insert(op.regex.clone(), fresh);
        if matters {
            Mark::RegexResolved.reached();
            cx.note(GroupEventKind::RegexResolved {
                regex: short(&op.regex),
                topics: u32::try_from(op.topics.len()).unwrap_or(u32::MAX),
            });
            self.bump(cx);
        }
        cx.changed = true;
        true
    }
}
