//! Server-side assignors: pure functions from subscriptions to a target assignment.

pub(crate) mod range;
pub(crate) mod uniform;

use alloc::vec::Vec;

use super::group::Target;
use crate::ids::TopicId;

/// What an assignor works on. Equal subscriptions and their topics are listed once, so that a group of many like members is cheap.
pub(crate) struct Input<'a> {
    /// Topics that anybody subscribes to, with their numbers of partitions; ascending by id.
    pub(crate) topics: Vec<(TopicId, u32)>,
    /// Distinct subscriptions: ascending indexes into `topics`.
    pub(crate) subscriptions: Vec<Vec<usize>>,
    /// Members, ascending by id.
    pub(crate) members: Vec<InputMember<'a>>,
}

/// One member.
pub(crate) struct InputMember<'a> {
    pub(crate) member_id: &'a str,
    pub(crate) instance_id: Option<&'a str>,
    /// Index into [`Input::subscriptions`].
    pub(crate) subscription: usize,
    /// Its target so far.
    pub(crate) previous: Option<&'a Target>,
}

/// Topics that have the same subscribers: for balance, their partitions are interchangeable.
pub(crate) struct TopicClass {
    /// Indexes into [`Input::topics`], ascending.
    pub(crate) topics: Vec<usize>,
    /// Indexes into [`Input::members`], ascending. Not empty.
    pub(crate) members: Vec<usize>,
}

impl Input<'_> {
    /// Every subscribed topic in its class.
    pub(crate) fn classes(&self) -> Vec<TopicClass> {
        let mut members_of: Vec<Vec<usize>> = self.subscriptions.iter().map(|_| Vec::new()).collect();
        for (index, member) in self.members.iter().enumerate() {
            if let Some(members) = members_of.get_mut(member.subscription) {
                members.push(index);
            }
        }
        let mut subscribers: Vec<Vec<usize>> = self.topics.iter().map(|_| Vec::new()).collect();
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            for topic in subscription {
                if let Some(subscribers) = subscribers.get_mut(*topic) {
                    subscribers.push(index);
                }
            }
        }
        let mut classes: alloc::collections::BTreeMap<Vec<usize>, Vec<usize>> = alloc::collections::BTreeMap::new();
        for (topic, subscribers) in subscribers.into_iter().enumerate() {
            classes.entry(subscribers).or_default().push(topic);
        }
        classes
            .into_iter()
            .map(|(subscriptions, topics)| {
                let mut members: Vec<usize> =
                    subscriptions.iter().filter_map(|index| members_of.get(*index)).flatten().copied().collect();
                members.sort_unstable();
                TopicClass { topics, members }
            })
            .filter(|class| !class.members.is_empty())
            .collect()
    }
}

/// The assignors that a group can choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Assignor {
    /// Balanced and sticky.
    #[default]
    Uniform,
    /// Neighbouring partitions of each topic; equal indexes of different topics go to the same member.
    Range,
}

impl Assignor {
    /// By the name that clients use.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        match name {
            "uniform" => Some(Self::Uniform),
            "range" => Some(Self::Range),
            _ => None,
        }
    }

    /// The name that clients use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// The target of each member, in the order of the input. Every partition of a subscribed topic goes to one subscriber.
    pub(crate) fn assign(self, input: &Input<'_>) -> Vec<Target> {
        match self {
            Self::Uniform => uniform::assign(input),
            Self::Range => range::assign(input),
        }
    }
}
