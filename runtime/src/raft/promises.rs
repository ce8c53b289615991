//! What others may rely on: the vote and the entries of a shard that this node has called durable.
//!
//! Raft's safety rests on this: whoever voted once votes for nobody else in that term, whoever acknowledged an entry has it, also after losing power.
//! So what was promised in one life of the node is held against what its next life finds on the disk; the simulator does so at every start.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_core::{NodeId, Position};

use super::type_config::Vote;

/// A vote and a position up to which entries are there, be it in the journal or in a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    /// The last vote.
    pub vote: Option<Choice>,
    /// The last entry.
    pub last: Option<Position>,
}

/// A vote of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// In which term.
    pub term: u64,
    /// For whom.
    pub node: NodeId,
    /// That node was elected, as this one knows. It follows it then, whomever it had voted for.
    pub is_elected: bool,
}

impl Promised {
    /// What of `self` was promised and is not in `found`, for people; `None`: all is kept.
    #[must_use]
    pub fn broken_by(&self, found: &Self) -> Option<String> {
        let votes_again = match (self.vote, found.vote) {
            (Some(promised), Some(found)) => {
                (found.term, found.is_elected) < (promised.term, promised.is_elected)
                    || (found.term, found.is_elected) == (promised.term, promised.is_elected)
                        && found.node != promised.node
            }
            (promised, None) => promised.is_some(),
            (None, Some(_)) => false,
        };
        if votes_again {
            return Some(format!("its vote {:?} has become {:?}", self.vote, found.vote));
        }
        // Entries of a later term may have taken the place of those that were promised.
        (found.last < self.last).then(|| format!("its log ended at {:?} and ends at {:?}", self.last, found.last))
    }
}

/// The promises of a shard's present life on this node.
#[derive(Debug)]
pub struct Promises {
    found: Promised,
    syncs_entries: bool,
    made: Mutex<Made>,
}

#[derive(Debug)]
struct Made {
    promised: Promised,
    /// Counts cuts of the log: an append that was under way during one says nothing.
    cuts: u64,
}

impl Promises {
    /// `syncs_entries`: with `Durability::Replicated` nothing is promised of entries.
    pub(crate) fn at_start(vote: Option<Vote>, last: Option<Position>, syncs_entries: bool) -> Self {
        let found = Promised { vote: vote.as_ref().map(choice), last };
        Self { found, syncs_entries, made: Mutex::new(Made { promised: found, cuts: 0 }) }
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this life found on the disk at its start.
    #[must_use]
    pub fn found(&self) -> Promised {
        self.found
    }

    /// What this life has promised so far.
    #[must_use]
    pub fn made(&self) -> Promised {
        self.lock().promised
    }

    pub(crate) fn voted(&self, vote: &Vote) {
        self.lock().promised.vote = Some(choice(vote));
    }

    /// To be given to [`Promises::appended`].
    pub(crate) fn appending(&self) -> u64 {
        self.lock().cuts
    }

    /// Entries up to `last` are there, if the log was not cut meanwhile.
    pub(crate) fn appended(&self, last: Position, appending: u64) {
        let mut made = self.lock();
        if self.syncs_entries && made.cuts == appending {
            made.promised.last = made.promised.last.max(Some(last));
        }
    }

    /// A snapshot of what was before `last` is there.
    pub(crate) fn installed(&self, last: Position) {
        let mut made = self.lock();
        made.promised.last = made.promised.last.max(Some(last));
    }

    /// The log ends at `last` now.
    pub(crate) fn cut(&self, last: Option<Position>) {
        let mut made = self.lock();
        made.cuts += 1;
        made.promised.last = made.promised.last.min(last);
    }
}

fn choice(vote: &Vote) -> Choice {
    Choice { term: vote.leader_id.term, node: vote.leader_id.voted_for, is_elected: vote.committed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::type_config::LeaderId;

    fn vote(term: u64, voted_for: NodeId) -> Vote {
        Vote { leader_id: LeaderId { term, voted_for }, committed: false }
    }

    fn at(term: u64, index: u64) -> Position {
        Position { term, index }
    }

    #[test]
    fn a_vote_that_is_gone_or_another_one_in_its_term_breaks_a_promise() {
        let promises = Promises::at_start(Some(vote(3, 1)), None, true);
        promises.voted(&vote(4, 2));
        let found = |vote| Promised { vote, last: None };
        let choice = |term, node, is_elected| Some(Choice { term, node, is_elected });
        for vote in [None, choice(3, 1, false), choice(4, 1, false), choice(3, 2, true)] {
            assert!(promises.made().broken_by(&found(vote)).is_some(), "{vote:?}");
        }
        // Whoever was elected without this node's vote leads it too.
        for vote in [choice(4, 2, false), choice(5, 1, false), choice(4, 1, true)] {
            assert_eq!(promises.made().broken_by(&found(vote)), None);
        }
        assert_eq!(promises.found().vote, choice(3, 1, false));
    }

    #[test]
    fn entries_that_are_gone_break_a_promise_unless_a_later_leader_took_them() {
        let promises = Promises::at_start(None, Some(at(1, 5)), true);
        promises.appended(at(2, 9), promises.appending());
        let found = |last| Promised { vote: None, last };
        for last in [None, Some(at(1, 5)), Some(at(2, 8)), Some(at(1, 20))] {
            assert!(promises.made().broken_by(&found(last)).is_some(), "{last:?}");
        }
        for last in [at(2, 9), at(2, 12), at(3, 6)] {
            assert_eq!(promises.made().broken_by(&found(Some(last))), None);
        }
    }

    #[test]
    fn what_a_leader_had_cut_off_was_not_promised_nor_what_was_being_written_then() {
        let promises = Promises::at_start(None, Some(at(1, 5)), true);
        let appending = promises.appending();
        promises.cut(Some(at(1, 3)));
        promises.appended(at(1, 8), appending);
        assert_eq!(promises.made().last, Some(at(1, 3)));
        promises.installed(at(1, 7));
        assert_eq!(promises.made().last, Some(at(1, 7)));
    }
}
