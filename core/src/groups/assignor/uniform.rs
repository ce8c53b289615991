//! `uniform`: members get about the same number of partitions, and keep what they have as far as that allows.
//!
//! Three steps, each about linear in partitions and members: keep what each member had and may still have; give what is
//! free to whoever has least; then move single partitions from the most to the least loaded subscriber of the same topics
//! while that makes the balance better.

use alloc::collections::{BTreeMap, BTreeSet, BinaryHeap};
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::{Input, TopicClass};
use crate::groups::group::Target;

/// Rounds over all classes of topics. One settles members with equal subscriptions; more only help where subscriptions overlap.
const ROUNDS_MAX: usize = 8;

/// No owner yet.
const FREE: usize = usize::MAX;

pub(crate) fn assign(input: &Input<'_>) -> Vec<Target> {
    let mut plan = Plan::keep_previous(input);
    let mut classes = input.classes();
    // Topics with few subscribers leave the least choice, so they go first.
    classes.sort_by_key(|class| class.members.len());
    for class in &classes {
        plan.give_free(class);
    }
    for _ in 0..ROUNDS_MAX {
        let mut moved = false;
        for class in &classes {
            moved |= plan.level(class);
        }
        if !moved {
            break;
        }
    }
    plan.into_targets(input)
}

/// Who gets what so far, by index.
struct Plan {
    /// Owner of each partition, topic by topic.
    owners: Vec<Vec<usize>>,
    /// Partitions of each member.
    load: Vec<usize>,
}

impl Plan {
    fn keep_previous(input: &Input<'_>) -> Self {
        let mut owners: Vec<Vec<usize>> =
            input.topics.iter().map(|(_, count)| alloc::vec![FREE; *count as usize]).collect();
        let mut load = alloc::vec![0; input.members.len()];
        for (index, member) in input.members.iter().enumerate() {
            let (Some(previous), Some(subscription)) = (member.previous, input.subscriptions.get(member.subscription))
            else {
                continue;
            };
            for (topic_id, partitions) in previous {
                let Ok(topic) = input.topics.binary_search_by_key(topic_id, |(topic_id, _)| *topic_id) else {
                    continue;
                };
                if subscription.binary_search(&topic).is_err() {
                    continue;
                }
                for partition in partitions {
                    if let Some(owner) = owners.get_mut(topic).and_then(|owners| owners.get_mut(*partition as usize))
                        && *owner == FREE
                    {
                        *owner = index;
                        if let Some(load) = load.get_mut(index) {
                            *load += 1;
                        }
                    }
                }
            }
        }
        Self { owners, load }
    }

    fn load_of(&self, member: usize) -> usize {
        self.load.get(member).copied().unwrap_or(0)
    }

    /// Gives the class's free partitions to its least loaded members.
    fn give_free(&mut self, class: &TopicClass) {
        let mut least: Option<BinaryHeap<Reverse<(usize, usize)>>> = None;
        for topic in &class.topics {
            let Some(owners) = self.owners.get_mut(*topic) else { continue };
            for owner in owners.iter_mut().filter(|owner| **owner == FREE) {
                let heap = least.get_or_insert_with(|| {
                    class
                        .members
                        .iter()
                        .map(|member| Reverse((self.load.get(*member).copied().unwrap_or(0), *member)))
                        .collect()
                });
                let Some(Reverse((load, member))) = heap.pop() else { continue };
                *owner = member;
                if let Some(load) = self.load.get_mut(member) {
                    *load += 1;
                }
                heap.push(Reverse((load + 1, member)));
            }
        }
    }

    /// Moves partitions within the class until no move makes two loads more alike; true when any moved.
    fn level(&mut self, class: &TopicClass) -> bool {
        let loads = class.members.iter().map(|member| self.load_of(*member));
        let (Some(min), Some(max)) = (loads.clone().min(), loads.max()) else { return false };
        if max < min + 2 {
            return false;
        }
        let mut held: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for topic in &class.topics {
            for (partition, owner) in self.owners.get(*topic).into_iter().flatten().enumerate() {
                held.entry(*owner).or_default().push((*topic, partition));
            }
        }
        let mut light: BTreeSet<(usize, usize)> =
            class.members.iter().map(|member| (self.load_of(*member), *member)).collect();
        let mut heavy: BTreeSet<(usize, usize)> = held.keys().map(|member| (self.load_of(*member), *member)).collect();
        let mut moved = false;
        while let (Some((most, from)), Some((least, to))) = (heavy.last().copied(), light.first().copied())
            && most >= least + 2
        {
            heavy.remove(&(most, from));
            light.remove(&(most, from));
            light.remove(&(least, to));
            heavy.remove(&(least, to));
            let Some((topic, partition)) = held.get_mut(&from).and_then(Vec::pop) else { continue };
            if let Some(owner) = self.owners.get_mut(topic).and_then(|owners| owners.get_mut(partition)) {
                *owner = to;
            }
            held.entry(to).or_default().push((topic, partition));
            for (member, load) in [(from, most - 1), (to, least + 1)] {
                if let Some(slot) = self.load.get_mut(member) {
                    *slot = load;
                }
                light.insert((load, member));
                if held.get(&member).is_some_and(|held| !held.is_empty()) {
                    heavy.insert((load, member));
                }
            }
            moved = true;
        }
        moved
    }

    fn into_targets(self, input: &Input<'_>) -> Vec<Target> {
        let mut targets: Vec<Target> = input.members.iter().map(|_| Target::new()).collect();
        for ((topic_id, _), owners) in input.topics.iter().zip(self.owners) {
            for (partition, owner) in (0_u32..).zip(owners) {
                if let Some(target) = targets.get_mut(owner) {
                    target.entry(*topic_id).or_default().push(partition);
                }
            }
        }
        targets
    }
}
