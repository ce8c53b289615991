//! A voter that was started anew keeps its vote back for as long as a leader may rely on it.
//!
//! A leader answers reads without asking while its lease holds: a quorum heard of it a moment ago, and votes for nobody else within
//! `election_timeout_max` after that. openraft remembers in memory only when it heard of the leader last, so that a voter which was started
//! anew within that time would vote for anybody. Two leaders could then answer at once, one of them with what was true before.
//!
//! What the voter still knows is its vote on disk. If that is one for a leader that was elected, it may have heard of that leader the
//! moment before it died. It then neither votes nor stands for election for one more lease, with two exceptions that take nothing from
//! anybody: it votes for that leader itself, whose former term is over when it asks, and for whom a leader hands over to,
//! since that leader has stopped answering before. A vote for a mere candidate needs no such care: the voter gave it when no lease held.

use std::time::{Duration, Instant};

use lockstep_core::NodeId;

use super::type_config::Vote;

/// A vote that is kept back for a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeptVote {
    leader: NodeId,
    until: Instant,
}

impl KeptVote {
    /// What a voter that is started at `now` owes to the vote on its disk. Others trust a voter that heard of a leader for `lease`, at most.
    pub(crate) fn at_start(stored: Option<Vote>, me: NodeId, now: Instant, lease: Duration) -> Option<Self> {
        let vote = stored.filter(|vote| vote.committed && vote.leader_id.voted_for != me)?;
        Some(Self { leader: vote.leader_id.voted_for, until: now + lease })
    }

    /// When it may be given to anybody.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Must `candidate` be refused at `now`? `handed_over`: a leader has given its leadership, and its lease, up for it.
    pub(crate) fn is_kept_from(&self, candidate: NodeId, handed_over: bool, now: Instant) -> bool {
        now < self.until && candidate != self.leader && !handed_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::type_config::LeaderId;
    use lockstep_env::Env;
    use lockstep_env::tokio_env::TokioEnv;

    const LEASE: Duration = Duration::from_millis(400);

    fn vote(node: NodeId, committed: bool) -> Vote {
        Vote { leader_id: LeaderId { term: 3, voted_for: node }, committed }
    }

    #[test]
    fn only_a_vote_for_another_node_that_was_elected_is_kept_back() {
        let now = TokioEnv::now();
        assert_eq!(KeptVote::at_start(None, 1, now, LEASE), None, "a first start is not held up");
        assert_eq!(KeptVote::at_start(Some(vote(2, false)), 1, now, LEASE), None, "a candidate has no lease");
        assert_eq!(KeptVote::at_start(Some(vote(1, true)), 1, now, LEASE), None, "its own lease went with it");
        assert!(KeptVote::at_start(Some(vote(2, true)), 1, now, LEASE).is_some());
    }

    #[test]
    fn it_is_kept_from_others_for_one_lease() {
        let now = TokioEnv::now();
        let kept = KeptVote::at_start(Some(vote(2, true)), 1, now, LEASE).unwrap();
        let late = now + LEASE - Duration::from_millis(1);
        assert!(kept.is_kept_from(3, false, now) && kept.is_kept_from(3, false, late));
        assert!(!kept.is_kept_from(2, false, now), "the leader of before may lead again");
        assert!(!kept.is_kept_from(3, true, now), "the leader of before gave it up");
        assert!(!kept.is_kept_from(3, false, now + LEASE));
    }
}
