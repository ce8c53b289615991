//! A consumer group's target assignment: when it is behind, and how it is computed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::assignor::{Assignor, Input, InputMember};
use super::consumer::{ConsumerGroup, ConsumerMember};
use super::group::{Context, Target};
use super::rows::Rows;
use super::timeline::Moves;
use crate::directory::{Directory, TopicRecord};
use crate::ids::TopicId;
use lockstep_probe::Mistake;

impl ConsumerGroup {
    /// Topics that anybody subscribes to, by name or by a regular expression that was resolved. Some may come twice.
    pub(super) fn subscribed_topics<'a>(&'a self, directory: &'a Directory) -> impl Iterator<Item = &'a TopicRecord> {
        let by_name = self.subscribers.keys().filter_map(|name| directory.topic(name));
        let by_regex = self.regexes.values().flat_map(|resolved| &resolved.topics);
        by_name.chain(by_regex.filter_map(|topic_id| directory.topics.get(topic_id)))
    }

    /// Does this member subscribe to this topic?
    pub(super) fn subscribes(&self, member: &ConsumerMember, topic: &TopicRecord) -> bool {
        let resolved = member.regex.as_ref().and_then(|regex| self.regexes.get(regex));
        member.subscribed.binary_search(&topic.name).is_ok()
            || resolved.is_some_and(|resolved| resolved.topics.binary_search(&topic.id).is_ok())
    }

    /// Does anybody subscribe to this topic, as far as it is known?
    pub(super) fn is_subscribed(&self, topic: &TopicRecord) -> bool {
        self.subscribers.contains_key(&topic.name)
            || self.regexes.values().any(|resolved| resolved.topics.binary_search(&topic.id).is_ok())
    }

    /// Topics changed in the directory: must the group's epoch follow?
    pub(super) fn follows(&self, directory: &Directory, changed: &[TopicId], deleted: &[TopicId]) -> bool {
        // While the target is behind, it will be computed from the new directory anyway.
        if self.members.is_empty() || self.assignment_due() {
            return false;
        }
        let altered = changed.iter().filter_map(|topic_id| directory.topics.get(topic_id)).any(|topic| {
            self.topics.get(&topic.id).map(|count| *count as usize) != Some(topic.partitions.len())
                && self.is_subscribed(topic)
        });
        altered && !Mistake::AddedPartitionsUnnoticed.is_made()
            || deleted.iter().any(|topic_id| self.topics.contains_key(topic_id))
    }

    /// Computes the target for the group's epoch from subscriptions, directory, and the target so far.
    pub(super) fn compute_target(&mut self, cx: &mut Context<'_>) {
        let topics: BTreeMap<TopicId, u32> = self
            .subscribed_topics(cx.directory)
            .map(|topic| (topic.id, u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX)))
            .collect();
        let assignor = self.elect_assignor();
        let input = self.assignor_input(cx.directory, &topics);
        let targets = assignor.assign(&input);
        let changed: Vec<(String, Target)> = input
            .members
            .iter()
            .zip(targets)
            .filter(|(member, target)| member.previous.map_or(!target.is_empty(), |previous| previous != target))
            .map(|(member, target)| (member.member_id.to_string(), target))
            .collect();
        self.note_moves(cx, &changed, assignor);
        for (member_id, target) in changed {
            if target.is_empty() {
                self.targets.remove(&member_id);
            } else {
                self.targets.insert(member_id, target);
            }
        }
        let gone: Vec<TopicId> =
            self.topics.keys().filter(|topic_id| !topics.contains_key(*topic_id)).copied().collect();
        for topic_id in gone {
            self.topics.remove(&topic_id);
        }
        for (topic_id, count) in topics {
            if self.topics.get(&topic_id) != Some(&count) {
                self.topics.insert(topic_id, count);
            }
        }
        self.head.assignment_epoch = self.head.epoch;
        self.head.assignor = assignor.name().to_string();
        self.head.released = Rows::default();
        cx.changed = true;
    }

    /// Would another assignor compute the target now than the one that did? While the target is behind, it will anyway.
    pub(super) fn wants_another_assignor(&self) -> bool {
        !self.assignment_due() && self.elect_assignor().name() != self.head.assignor
    }

    /// The assignor that most members ask for, among equals the first by name; without a wish the default.
    pub(super) fn elect_assignor(&self) -> Assignor {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for assignor in self.members.values().filter_map(|member| member.server_assignor.as_deref()) {
            *votes.entry(assignor).or_insert(0) += 1;
        }
        let most = votes.values().max().copied();
        votes
            .iter()
            .find(|(_, count)| Some(**count) == most)
            .and_then(|(name, _)| Assignor::by_name(name))
            .unwrap_or_default()
    }

    fn assignor_input<'a>(&'a self, directory: &Directory, topics: &BTreeMap<TopicId, u32>) -> Input<'a> {
        let index_of: BTreeMap<TopicId, usize> =
            topics.keys().enumerate().map(|(index, topic_id)| (*topic_id, index)).collect();
        let mut known: BTreeMap<(u128, Option<&str>), usize> = BTreeMap::new();
        let mut subscriptions: Vec<Vec<usize>> = Vec::new();
        let mut members: Vec<InputMember<'_>> = Vec::with_capacity(self.members.len());
        for (member_id, member) in self.members.iter() {
            let key = (member.subscription_hash, member.regex.as_deref());
            let subscription = *known.entry(key).or_insert_with(|| {
                let by_name = member.subscribed.iter().filter_map(|name| directory.topic_ids.get(name));
                let resolved = member.regex.as_ref().and_then(|regex| self.regexes.get(regex));
                let by_regex = resolved.into_iter().flat_map(|resolved| &resolved.topics);
                let indexes: BTreeSet<usize> =
                    by_name.chain(by_regex).filter_map(|topic_id| index_of.get(topic_id).copied()).collect();
                subscriptions.push(indexes.into_iter().collect());
                subscriptions.len() - 1
            });
            members.push(InputMember {
                member_id,
                instance_id: member.instance_id.as_deref(),
                subscription,
                previous: self.targets.get(member_id),
            });
        }
        Input { topics: topics.iter().map(|(topic_id, count)| (*topic_id, *count)).collect(), subscriptions, members }
    }

    fn note_moves(&self, cx: &mut Context<'_>, changed: &[(String, Target)], assignor: Assignor) {
        let mut moves = Moves::default();
        for (member_id, target) in self.head.released.iter() {
            for (topic_id, partitions) in target {
                moves.had(member_id, *topic_id, partitions.iter().copied());
            }
        }
        for (member_id, target) in changed {
            for (topic_id, partitions) in self.targets.get(member_id).into_iter().flatten() {
                moves.had(member_id, *topic_id, partitions.iter().copied());
            }
            for (topic_id, partitions) in target {
                moves.gets(member_id, *topic_id, partitions.iter().copied());
            }
        }
        cx.note(moves.into_event(assignor.name()));
    }
}
