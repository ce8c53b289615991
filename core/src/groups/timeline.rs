//! What happened to a group lately, so that "why did it rebalance?" has an answer on every replica and after every failover.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::group::topic_partitions;
use super::rows::Rows;
use super::table;
use crate::ids::TopicId;
use crate::view::{GroupEvent, GroupEventKind, PartitionsMoved};

/// Events that are remembered.
pub(crate) const EVENTS_MAX: usize = 64;
/// What they take together, encoded.
pub(crate) const BYTES_MAX: usize = 64 * 1024;
/// What the list of moves of one event may take.
const MOVES_BYTES_MAX: usize = 12 * 1024;
/// Ids are cut to this: a member's id is its client's (up to 255 bytes of it) and a UUID.
const ID_BYTES_MAX: usize = 300;

/// A rebalance that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rebalance {
    /// Wall clock at its beginning; `None` when the op that began it carried none.
    pub(crate) since_ms: Option<i64>,
}

/// The last events of a group.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Timeline {
    events: Rows<{ table::EVENT }, u64, GroupEvent>,
    pub(super) rebalance: Option<Rebalance>,
    /// Sum of the events' encoded lengths.
    #[serde(skip)]
    bytes: usize,
}

impl Timeline {
    /// Adds an event; the oldest ones make room.
    pub(super) fn push(&mut self, event: GroupEvent) {
        let number = self.events.last_key().map_or(0, |last| last.saturating_add(1));
        self.bytes += encoded_len(&event);
        self.events.insert(number, event);
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(first) = self.events.first_key().copied() else { break };
            if let Some(event) = self.events.remove(&first) {
                self.bytes = self.bytes.saturating_sub(encoded_len(&event));
            }
        }
    }

    /// Oldest first.
    pub(crate) fn events(&self) -> impl Iterator<Item = &GroupEvent> {
        self.events.values()
    }

    /// What the group's hash takes of it.
    pub(super) fn hashed(&self) -> (u128, Option<Rebalance>) {
        (self.events.sum(), self.rebalance)
    }

    pub(super) fn sum_is_right(&self) -> bool {
        self.events.sum() == self.events.sum_from_scratch()
    }

    /// Number of events and their encoded length, from scratch.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.events.len(), self.events().map(encoded_len).sum())
    }

    pub(super) fn known_bytes(&self) -> usize {
        self.bytes
    }

    /// What follows from the events, after they were read from a snapshot.
    pub(super) fn rebuild(&mut self) {
        self.bytes = self.size().1;
    }
}

fn encoded_len(event: &GroupEvent) -> usize {
    // postcard fails only on sequences of unknown length, which events do not have.
    postcard::to_extend(event, Vec::new()).map_or(0, |bytes| bytes.len())
}

/// An id as the timeline keeps it.
pub(super) fn short(id: &str) -> String {
    id.get(..id.floor_char_boundary(ID_BYTES_MAX)).unwrap_or_default().to_string()
}

/// Who had partitions and who gets them.
#[derive(Default)]
pub(super) struct Moves<'a> {
    partitions: BTreeMap<(TopicId, u32), FromTo<'a>>,
}

/// Member ids; `None`: nobody.
type FromTo<'a> = (Option<&'a str>, Option<&'a str>);

impl<'a> Moves<'a> {
    pub(super) fn had(&mut self, member_id: &'a str, topic_id: TopicId, partitions: impl IntoIterator<Item = u32>) {
        for partition in partitions {
            self.partitions.entry((topic_id, partition)).or_default().0 = Some(member_id);
        }
    }

    pub(super) fn gets(&mut self, member_id: &'a str, topic_id: TopicId, partitions: impl IntoIterator<Item = u32>) {
        for partition in partitions {
            self.partitions.entry((topic_id, partition)).or_default().1 = Some(member_id);
        }
    }

    /// The event, with as many moves as the timeline takes.
    pub(super) fn into_event(self, assignor: &str) -> GroupEventKind {
        let mut by_members: BTreeMap<_, BTreeMap<TopicId, Vec<u32>>> = BTreeMap::new();
        for ((topic_id, partition), (from, to)) in self.partitions {
            if from != to {
                by_members.entry((from, to)).or_default().entry(topic_id).or_default().push(partition);
            }
        }
        let mut moves = Vec::new();
        let mut omitted = 0_usize;
        let mut room = MOVES_BYTES_MAX;
        for ((from, to), topics) in by_members {
            let ids = [from, to].into_iter().flatten().map(str::len).sum::<usize>().min(2 * ID_BYTES_MAX);
            let count: usize = topics.values().map(Vec::len).sum();
            // 16 bytes for a topic's id and at most 5 for an index; small numbers for lengths.
            let bytes = 8 + ids + topics.len() * 20 + count * 5;
            if bytes > room {
                omitted += count;
                continue;
            }
            room -= bytes;
            let partitions =
                topic_partitions(topics.iter().map(|(topic_id, partitions)| (topic_id, partitions.iter().copied())));
            moves.push(PartitionsMoved { from: from.map(short), to: to.map(short), partitions });
        }
        GroupEventKind::Assigned {
            assignor: short(assignor),
            moves,
            omitted: u32::try_from(omitted).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(member_id: &str) -> GroupEvent {
        GroupEvent { index: 1, at_ms: Some(1), epoch: 1, what: GroupEventKind::Left { member_id: short(member_id) } }
    }

    #[test]
    fn the_oldest_events_make_room() {
        let mut timeline = Timeline::default();
        for i in 0..100_u32 {
            timeline.push(left(&i.to_string()));
        }
        assert_eq!(timeline.events().count(), EVENTS_MAX);
        assert_eq!(timeline.events().next(), Some(&left("36")));
        assert_eq!(timeline.size(), (EVENTS_MAX, timeline.known_bytes()));
    }

    #[test]
    fn an_event_of_any_size_keeps_the_timeline_small() {
        let mut timeline = Timeline::default();
        let ids: Vec<String> = (0..2_000).map(|i| alloc::format!("{i}{}", "x".repeat(400))).collect();
        for _ in 0..20 {
            let mut moves = Moves::default();
            for (i, id) in (0..).zip(&ids) {
                moves.gets(id, TopicId([1; 16]), [i]);
            }
            let GroupEventKind::Assigned { moves, omitted, assignor } = moves.into_event("uniform") else { panic!() };
            assert!(!moves.is_empty());
            assert_eq!(moves.len() + omitted as usize, 2_000, "every move is listed or counted");
            let what = GroupEventKind::Assigned { moves, omitted, assignor };
            timeline.push(GroupEvent { index: 1, at_ms: None, epoch: 1, what });
        }
        assert!(timeline.size().1 <= BYTES_MAX && timeline.size().0 >= 4, "{:?}", timeline.size());
    }

    #[test]
    fn ids_are_cut_between_characters() {
        assert_eq!(short(&"ä".repeat(200)).len(), 300);
        assert_eq!(short(&alloc::format!("x{}", "ä".repeat(200))).len(), 299);
    }
}
