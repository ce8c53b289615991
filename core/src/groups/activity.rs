//! When each member was last heard from, by log index, and which members changed lately.
//!
//! The first is replicated (an expiry names it, and is void when it is older); the second lets timers follow without reading a whole group.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};

use serde::{Deserialize, Serialize};

use super::rows::Rows;
use super::table;
use lockstep_probe::Mistake;

/// Changes that are remembered; an observer that lags further reads the whole group.
const JOURNAL_LEN_MAX: usize = 1024;

/// Replaced static members that are remembered, for requests of theirs that still wait.
const REPLACED_MAX: usize = 64;

/// The last log index at which an op came from each member, pending members included.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Activity {
    seen: Rows<{ table::SEEN }, String, u64>,
    /// (index, member) of changes, oldest first. Not part of the replicated state.
    #[serde(skip)]
    journal: VecDeque<(u64, String)>,
    /// Changes at or below this index may be missing in `journal`; `None`: nothing is known (just read from a snapshot).
    #[serde(skip)]
    journal_floor: Option<u64>,
    /// Static members that another member id took over from. Not part of the replicated state.
    #[serde(skip)]
    replaced: VecDeque<String>,
}

impl Activity {
    /// An op of this member was accepted at `index`.
    pub(crate) fn saw(&mut self, member_id: &str, index: u64) {
        if let Some(mut seen) = self.seen.get_mut(member_id) {
            let ignored = Mistake::UnreplicatedStateDecides.is_made() && self.journal_floor.is_none();
            if *seen < index && !ignored {
                *seen = index;
            }
        } else {
            self.seen.insert(member_id.to_string(), index);
        }
        self.note(member_id, index);
    }

    /// This member is gone since `index`.
    pub(crate) fn forget(&mut self, member_id: &str, index: u64) {
        self.seen.remove(member_id);
        self.note(member_id, index);
    }

    /// Another member id took over from this static member.
    pub(crate) fn note_replaced(&mut self, member_id: &str) {
        if self.replaced.len() == REPLACED_MAX {
            self.replaced.pop_front();
        }
        self.replaced.push_back(member_id.to_string());
    }

    /// Was this member replaced lately?
    pub(crate) fn was_replaced(&self, member_id: &str) -> bool {
        self.replaced.iter().any(|replaced| replaced == member_id)
    }

    /// The last index at which this member was heard from.
    pub(crate) fn last_seen(&self, member_id: &str) -> Option<u64> {
        self.seen.get(member_id).copied()
    }

    /// Members that changed after `index`, perhaps some twice; `None` when that is no longer known.
    pub(crate) fn changed_since(&self, index: u64) -> Option<impl Iterator<Item = &str>> {
        if self.journal_floor? > index {
            return None;
        }
        let start = self.journal.partition_point(|(at, _)| *at <= index);
        Some(self.journal.range(start..).map(|(_, member_id)| member_id.as_str()))
    }

    /// Everybody who has been heard from.
    pub(crate) fn members(&self) -> impl Iterator<Item = &String> {
        self.seen.keys()
    }

    pub(crate) fn sum(&self) -> u128 {
        self.seen.sum()
    }

    pub(crate) fn sum_from_scratch(&self) -> u128 {
        self.seen.sum_from_scratch()
    }

    /// Something changed at `index` that a member's timers hang on, whether or not it was heard from.
    pub(crate) fn note(&mut self, member_id: &str, index: u64) {
        if self.journal_floor.is_none() {
            self.journal_floor = Some(index.saturating_sub(1));
        }
        if self.journal.len() == JOURNAL_LEN_MAX
            && let Some((at, _)) = self.journal.pop_front()
        {
            self.journal_floor = Some(at);
        }
        self.journal.push_back((index, member_id.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn changes_are_listed_while_they_are_remembered() {
        let mut activity = Activity::default();
        activity.saw("a", 5);
        activity.saw("b", 6);
        activity.forget("a", 7);
        assert_eq!(activity.changed_since(5).map(Iterator::collect::<Vec<_>>), Some(["b", "a"].to_vec()));
        assert!(activity.changed_since(3).is_none(), "what came before the first note is unknown");
        for i in 0..2000 {
            activity.saw(&format!("m{i}"), 8);
        }
        assert!(activity.changed_since(7).is_none(), "one op changed more than is remembered");
        assert_eq!(activity.changed_since(8).map(Iterator::count), Some(0));
    }

    #[test]
    fn an_older_index_does_not_hide_a_later_one() {
        let mut activity = Activity::default();
        activity.saw("a", 5);
        activity.saw("a", 4);
        assert_eq!(activity.last_seen("a"), Some(5));
    }
}
