//! What a follower acknowledged to the leader that this node is, and whether it still has it.
//!
//! Raft relies on it that what was acknowledged stays. A disk that lied about a sync, or was put back to an older copy, breaks that: the
//! follower's log has *reverted*. To openraft, without `allow_log_reversion`, the refusal that shows it is a bug of its own, which ends the leader's shard. So
//! such a refusal never gets there: from then on the follower counts as one that cannot be reached, whatever it answers, and
//! `node/membership.rs` takes it out and adds it again, as a learner that has nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::type_config::LogId;

/// What one follower acknowledged, from the day that it was added, or that this node was elected.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    upto: Option<LogId>,
    reverted: bool,
    /// It is to be sent no more entries up to here.
    cut_off: Option<u64>,
}

impl Acknowledged {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It says that it has everything up to here.
    pub(crate) fn acknowledge(&self, upto: Option<LogId>) {
        let mut state = self.lock();
        state.upto = state.upto.max(upto);
    }

    /// It says that it does not have the entry at `missing`. `true`: it acknowledged that one before, and this is the first time that it
    /// contradicts itself.
    pub(crate) fn refuse(&self, missing: LogId) -> bool {
        let mut state = self.lock();
        let reverts = !state.reverted && state.upto.is_some_and(|upto| missing <= upto);
        state.reverted |= reverts;
        reverts
    }

    /// The last entry that it acknowledged.
    pub(crate) fn upto(&self) -> Option<LogId> {
        self.lock().upto
    }

    /// The log is to hold no entries up to `index`, whether or not it has them.
    pub(crate) fn cut_off(&self, index: u64) {
        self.lock().cut_off = Some(index);
    }

    /// Is the next entry for it one that the log is to hold no more? Said once, for each time that [`Acknowledged::cut_off`] was called.
    pub(crate) fn take_cut_off(&self) -> bool {
        let mut state = self.lock();
        let next = state.upto.map_or(0, |upto| upto.index + 1);
        state.cut_off.take().is_some_and(|index| next <= index)
    }

    /// It says that it does not have the entry at `missing`, where it may have lost what it acknowledged from its memory.
    pub(crate) fn forget_from(&self, missing: LogId) {
        let mut state = self.lock();
        state.upto = state.upto.filter(|upto| *upto < missing);
    }

    /// Does it no longer have what it acknowledged? Nothing that it says counts then.
    pub(crate) fn is_reverted(&self) -> bool {
        self.lock().reverted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::type_config::log_id;
    use lockstep_core::Position;

    fn at(index: u64) -> LogId {
        log_id(Position { term: 2, index })
    }

    #[test]
    fn to_lack_what_was_never_acknowledged_is_no_reversion() {
        let follower = Acknowledged::default();
        assert!(!follower.refuse(at(9)) && !follower.is_reverted());
        follower.acknowledge(Some(at(5)));
        assert!(!follower.refuse(at(6)) && !follower.is_reverted());
    }

    #[test]
    fn a_member_is_cut_off_once_unless_it_has_caught_up() {
        let follower = Acknowledged::default();
        follower.acknowledge(Some(at(5)));
        assert!(!follower.take_cut_off());
        follower.cut_off(6);
        assert!(follower.take_cut_off() && !follower.take_cut_off());
        follower.cut_off(6);
        follower.acknowledge(Some(at(6)));
        assert!(!follower.take_cut_off());
    }

    #[test]
    fn to_lack_what_was_acknowledged_is_one_for_good() {
        let follower = Acknowledged::default();
        follower.acknowledge(Some(at(5)));
        follower.acknowledge(Some(at(3)));
        assert!(follower.refuse(at(5)));
        assert!(!follower.refuse(at(4)), "it is told once");
        follower.acknowledge(Some(at(7)));
        assert!(follower.is_reverted());
    }
}
