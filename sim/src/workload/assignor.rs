//! What members of classic groups tell each other through the broker, in the encoding of Kafka's consumers
//! (ConsumerProtocolSubscription, ConsumerProtocolAssignment), and how the one that leads divides the partitions.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lockstep_client::TopicPartition;

/// How a group divides its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Ranges of each topic's partitions; members give up everything before they join again.
    Range,
    /// Members keep what they have, and give up only what goes elsewhere (KIP-429).
    CooperativeSticky,
}

impl Protocol {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::CooperativeSticky => "cooperative-sticky",
        }
    }
}

/// What a member says of itself when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) topics: BTreeSet<String>,
    pub(super) owned: BTreeSet<TopicPartition>,
    /// The generation in which it owned them; −1: none.
    pub(super) generation: i32,
}

pub(super) type Assignment = BTreeSet<TopicPartition>;

fn put_text(bytes: &mut BytesMut, text: &str) {
    bytes.put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
    bytes.put_slice(text.as_bytes());
}

fn put_partitions(bytes: &mut BytesMut, partitions: &BTreeSet<TopicPartition>) {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for at in partitions {
        topics.entry(&at.topic).or_default().push(at.partition);
    }
    bytes.put_i32(topics.len() as i32);
    for (topic, indexes) in topics {
        put_text(bytes, topic);
        bytes.put_i32(indexes.len() as i32);
        indexes.into_iter().for_each(|index| bytes.put_i32(index));
    }
}

fn get_text(bytes: &mut Bytes) -> Option<String> {
    let len = usize::try_from(bytes.try_get_i16().ok()?).ok()?;
    let text = (len <= bytes.len()).then(|| bytes.split_to(len))?;
    String::from_utf8(text.to_vec()).ok()
}

fn get_partitions(bytes: &mut Bytes) -> Option<BTreeSet<TopicPartition>> {
    let mut partitions = BTreeSet::new();
    for _ in 0..bytes.try_get_i32().ok()? {
        let topic = get_text(bytes)?;
        for _ in 0..bytes.try_get_i32().ok()? {
            partitions.insert(TopicPartition::new(topic.as_str(), bytes.try_get_i32().ok()?));
        }
    }
    Some(partitions)
}

impl Subscription {
    /// Versions 0 to 3: owned partitions from 1, their generation from 2, a rack from 3.
    pub(super) fn encode(&self, version: i16) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_i16(version);
        bytes.put_i32(self.topics.len() as i32);
        self.topics.iter().for_each(|topic| put_text(&mut bytes, topic));
        bytes.put_i32(-1);
        if version >= 1 {
            put_partitions(&mut bytes, &self.owned);
        }
        if version >= 2 {
            bytes.put_i32(self.generation);
        }
        if version >= 3 {
            bytes.put_i16(-1);
        }
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let version = bytes.try_get_i16().ok()?;
        let mut subscription = Self { generation: -1, ..Self::default() };
        for _ in 0..bytes.try_get_i32().ok()? {
            subscription.topics.insert(get_text(&mut bytes)?);
        }
        let user_data = usize::try_from(bytes.try_get_i32().ok()?).unwrap_or(0);
        if user_data > bytes.len() {
            return None;
        }
        bytes.advance(user_data);
        if version >= 1 {
            subscription.owned = get_partitions(&mut bytes)?;
        }
        if version >= 2 {
            subscription.generation = bytes.try_get_i32().ok()?;
        }
        Some(subscription)
    }
}

pub(super) fn encode_assignment(assignment: &Assignment, version: i16) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i16(version);
    put_partitions(&mut bytes, assignment);
    bytes.put_i32(-1);
    bytes.freeze()
}

/// An empty one is what a member gets that is assigned nothing.
pub(super) fn decode_assignment(mut bytes: Bytes) -> Option<Assignment> {
    if bytes.is_empty() {
        return Some(Assignment::new());
    }
    bytes.try_get_i16().ok()?;
    get_partitions(&mut bytes)
}

/// Divides the partitions of the topics (with how many each has) among members by id.
pub(super) fn assign(
    protocol: Protocol,
    topics: &BTreeMap<String, i32>,
    members: &BTreeMap<String, Subscription>,
) -> BTreeMap<String, Assignment> {
    match protocol {
        Protocol::Range => range(topics, members),
        Protocol::CooperativeSticky => cooperative_sticky(topics, members),
    }
}

fn range(topics: &BTreeMap<String, i32>, members: &BTreeMap<String, Subscription>) -> BTreeMap<String, Assignment> {
    let mut assignments: BTreeMap<String, Assignment> =
        members.keys().map(|member| (member.clone(), Assignment::new())).collect();
    for (topic, count) in topics {
        let subscribed: Vec<&String> =
            members.iter().filter(|(_, subscription)| subscription.topics.contains(topic)).map(|(id, _)| id).collect();
        let number = subscribed.len() as i32;
        let mut first = 0;
        for (index, member) in subscribed.into_iter().enumerate() {
            let share = count / number + i32::from((index as i32) < count % number);
            let partitions = (first..first + share).map(|index| TopicPartition::new(topic.as_str(), index));
            assignments.entry(member.clone()).or_default().extend(partitions);
            first += share;
        }
    }
    assignments
}

fn cooperative_sticky(
    topics: &BTreeMap<String, i32>,
    members: &BTreeMap<String, Subscription>,
) -> BTreeMap<String, Assignment> {
    let all: Vec<TopicPartition> = topics
        .iter()
        .flat_map(|(topic, count)| (0..*count).map(|index| TopicPartition::new(topic.as_str(), index)))
        .collect();
    // Of two that say that they own a partition, the one of the later generation does.
    let mut owners: BTreeMap<&TopicPartition, (i32, &String)> = BTreeMap::new();
    for (id, subscription) in members {
        for at in subscription.owned.iter().filter(|at| subscription.topics.contains(&*at.topic)) {
            let owner = owners.entry(at).or_insert((subscription.generation, id));
            *owner = (*owner).max((subscription.generation, id));
        }
    }
    let mut target: BTreeMap<&String, Assignment> = members.keys().map(|id| (id, Assignment::new())).collect();
    let share_max = all.len().div_ceil(members.len().max(1));
    let mut free = Vec::new();
    for at in &all {
        match owners.get(at).and_then(|(_, owner)| target.get_mut(owner)) {
            Some(assignment) if assignment.len() < share_max => {
                assignment.insert(at.clone());
            }
            _ => free.push(at),
        }
    }
    for at in free {
        let subscribed = members.iter().filter(|(_, subscription)| subscription.topics.contains(&*at.topic));
        let least = subscribed.map(|(id, _)| id).min_by_key(|id| (target.get(id).map_or(0, BTreeSet::len), *id));
        if let Some(least) = least {
            target.entry(least).or_default().insert(at.clone());
        }
    }
    // What another member still has is given in the next round, when that one has given it up.
    target
        .into_iter()
        .map(|(id, assignment)| {
            let is_free = |at: &TopicPartition| owners.get(at).is_none_or(|(_, owner)| *owner == id);
            (id.clone(), assignment.into_iter().filter(is_free).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(topics: &[&str], owned: &[i32], generation: i32) -> Subscription {
        Subscription {
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            owned: owned.iter().map(|index| TopicPartition::new("t", *index)).collect(),
            generation,
        }
    }

    fn counts(
        protocol: Protocol,
        members: &BTreeMap<String, Subscription>,
    ) -> (BTreeMap<String, Assignment>, Vec<usize>) {
        let assignments = assign(protocol, &BTreeMap::from([("t".to_owned(), 6)]), members);
        let counts = assignments.values().map(BTreeSet::len).collect();
        (assignments, counts)
    }

    #[test]
    fn what_is_encoded_is_decoded_in_every_version() {
        let subscription = member(&["t", "u"], &[0, 4], 7);
        for version in 0..=3 {
            let expected = match version {
                0 => Subscription { owned: BTreeSet::new(), generation: -1, ..subscription.clone() },
                1 => Subscription { generation: -1, ..subscription.clone() },
                _ => subscription.clone(),
            };
            assert_eq!(Subscription::decode(subscription.encode(version)), Some(expected), "version {version}");
            let assignment = subscription.owned.clone();
            assert_eq!(decode_assignment(encode_assignment(&assignment, version)), Some(assignment));
        }
    }

    #[test]
    fn every_partition_goes_to_one_member() {
        let members = BTreeMap::from([
            ("a".to_owned(), member(&["t"], &[], -1)),
            ("b".to_owned(), member(&["t"], &[], -1)),
            ("c".to_owned(), member(&["u"], &[], -1)),
        ]);
        for protocol in [Protocol::Range, Protocol::CooperativeSticky] {
            let (assignments, counts) = counts(protocol, &members);
            assert_eq!(counts, [3, 3, 0]);
            assert_eq!(assignments.values().flatten().collect::<BTreeSet<_>>().len(), 6);
        }
    }

    #[test]
    fn a_partition_moves_only_when_its_owner_has_given_it_up() {
        let mut members = BTreeMap::from([
            ("a".to_owned(), member(&["t"], &[0, 1, 2, 3, 4, 5], 1)),
            ("b".to_owned(), member(&["t"], &[], -1)),
        ]);
        let (assignments, first) = counts(Protocol::CooperativeSticky, &members);
        assert_eq!(first, [3, 0]);
        members.insert("a".to_owned(), Subscription { owned: assignments["a"].clone(), ..member(&["t"], &[], 2) });
        let (again, second) = counts(Protocol::CooperativeSticky, &members);
        assert_eq!(second, [3, 3]);
        assert_eq!(again["a"], assignments["a"]);
    }
}
