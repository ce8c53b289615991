//! Keeps each shard's membership equal to its placement: a node whose disk was emptied leaves as voter, comes back as a
//! learner and is promoted when it has caught up. It never votes, nor counts, with a log it has lost. So does one that turns out to lack what it
//! acknowledged to this leader (`raft/acknowledged.rs`), though nobody knows what it voted for before that was noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_core::NodeId;
use lockstep_env::Env;

use super::{Node, placement};
use crate::raft::{Member, RaftStatus};
use crate::shard::Shard;
use lockstep_probe::Mark;

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A learner that lags by at most so many entries is promoted.
const PROMOTE_LAG_ENTRIES_MAX: u64 = 128;

/// One step towards the membership that should be.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A leader began a change of the voters and did not come to its end: finish it. Until then the group needs a majority of the former voters too.
    Finish,
    /// Its disk is not the one that voted, or no longer holds what it acknowledged: take it out.
    Remove(NodeId),
    /// Replicate to it.
    AddLearner(NodeId, Member),
    /// It has caught up: let it vote.
    Promote(NodeId),
}

/// Watches the shards led here.
pub(super) async fn run<E: Env>(node: Node<E>) {
    loop {
        E::sleep(LOOK_EVERY).await;
        let seen: BTreeMap<NodeId, Member> = node
            .inner
            .config
            .peers
            .iter()
            .filter_map(|(id, address)| {
                let incarnation =
                    if *id == node.id() { node.inner.incarnation } else { node.peers().incarnation_of(*id)? };
                Some((*id, Member { address: address.clone(), incarnation }))
            })
            .collect();
        for shard in node.shards() {
            if shard.serving().is_ok() {
                take_step(&node, &shard, &seen).await;
            }
        }
    }
}

async fn take_step<E: Env>(node: &Node<E>, shard: &Shard<E>, seen: &BTreeMap<NodeId, Member>) {
    let replicas: BTreeSet<NodeId> = placement::replicas(&node.inner.config, shard.id()).into_iter().collect();
    let Some(step) = next_step(&replicas, seen, &shard.raft_status(), node.id()) else { return };
    let (id, shard_id) = (node.id(), shard.id());
    tracing::info!(target: "cluster", node = id, shard = %shard_id, ?step, "raft membership changes");
    match &step {
        Step::Finish => Mark::HalfDoneMembershipChangeFinished.reached(),
        Step::Remove(_) => Mark::EmptiedNodeRemoved.reached(),
        Step::AddLearner(..) => Mark::LearnerAdded.reached(),
        Step::Promote(_) => Mark::LearnerPromoted.reached(),
    }
    let outcome = match step {
        Step::Finish => shard.finish_change().await,
        Step::Remove(peer) => shard.remove_member(peer).await,
        Step::AddLearner(peer, member) => shard.add_learner(peer, member).await,
        Step::Promote(peer) => shard.promote(peer).await,
    };
    if let Err(error) = outcome {
        tracing::info!(target: "cluster", node = id, shard = %shard_id, %error, "raft membership change put off");
    }
}

fn next_step(
    replicas: &BTreeSet<NodeId>,
    seen: &BTreeMap<NodeId, Member>,
    status: &RaftStatus,
    me: NodeId,
) -> Option<Step> {
    if status.is_joint() {
        return Some(Step::Finish);
    }
    let known = |node: &NodeId| status.voters.get(node).or_else(|| status.learners.get(node));
    for (node, member) in seen.iter().filter(|(node, _)| **node != me && replicas.contains(node)) {
        match known(node) {
            Some(known) if known.incarnation != member.incarnation || status.reverted.contains(node) => {
                return Some(Step::Remove(*node));
            }
            Some(_) => {}
            None => return Some(Step::AddLearner(*node, member.clone())),
        }
    }
    let caught_up = |node: &NodeId| {
        let matched = status.matched.get(node).copied().flatten();
        matched.is_some_and(|matched| matched.saturating_add(PROMOTE_LAG_ENTRIES_MAX) >= status.last_log)
    };
    status.learners.keys().find(|node| replicas.contains(node) && caught_up(node)).map(|node| Step::Promote(*node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(incarnation: u8) -> Member {
        Member { address: "localhost:1".to_owned(), incarnation: [incarnation; 16] }
    }

    fn members(list: &[(NodeId, u8)]) -> BTreeMap<NodeId, Member> {
        list.iter().map(|(node, incarnation)| (*node, member(*incarnation))).collect()
    }

    fn check(
        voters: &[(NodeId, u8)],
        learners: &[(NodeId, u8)],
        matched: &[(NodeId, u64)],
        seen: &[(NodeId, u8)],
        step: Option<Step>,
    ) {
        let status = RaftStatus {
            voters: members(voters),
            lasting_voters: members(voters).into_keys().collect(),
            learners: members(learners),
            matched: matched.iter().map(|(node, index)| (*node, Some(*index))).collect(),
            last_log: 1000,
            ..RaftStatus::default()
        };
        assert_eq!(next_step(&BTreeSet::from([1, 2, 3]), &members(seen), &status, 1), step);
    }

    #[test]
    fn an_emptied_disk_is_removed_then_learns_then_votes() {
        let seen = [(1, 1), (2, 9), (3, 3)];
        check(&[(1, 1), (2, 2), (3, 3)], &[], &[(2, 900)], &seen, Some(Step::Remove(2)));
        check(&[(1, 1), (3, 3)], &[], &[], &seen, Some(Step::AddLearner(2, member(9))));
        check(&[(1, 1), (3, 3)], &[(2, 9)], &[(2, 10)], &seen, None);
        check(&[(1, 1), (3, 3)], &[(2, 9)], &[(2, 990)], &seen, Some(Step::Promote(2)));
        check(&[(1, 1), (2, 9), (3, 3)], &[], &[(2, 1000)], &seen, None);
    }

    #[test]
    fn a_learner_whose_disk_is_emptied_again_starts_over() {
        check(&[(1, 1), (3, 3)], &[(2, 8)], &[(2, 990)], &[(1, 1), (2, 9), (3, 3)], Some(Step::Remove(2)));
    }

    #[test]
    fn a_node_that_lacks_what_it_acknowledged_starts_over_with_the_same_disk() {
        let status = RaftStatus {
            voters: members(&[(1, 1), (2, 2), (3, 3)]),
            lasting_voters: BTreeSet::from([1, 2, 3]),
            reverted: BTreeSet::from([3]),
            ..RaftStatus::default()
        };
        let seen = members(&[(1, 1), (2, 2), (3, 3)]);
        assert_eq!(next_step(&BTreeSet::from([1, 2, 3]), &seen, &status, 1), Some(Step::Remove(3)));
        check(&[(1, 1), (2, 2)], &[], &[], &[(1, 1), (2, 2), (3, 3)], Some(Step::AddLearner(3, member(3))));
    }

    #[test]
    fn a_change_that_was_left_half_done_is_finished_first() {
        let status = RaftStatus {
            voters: members(&[(1, 1), (2, 2), (3, 3)]),
            lasting_voters: BTreeSet::from([2, 3]),
            ..RaftStatus::default()
        };
        // Also by the node that the change is about, and before another disk that was emptied meanwhile is taken out.
        let seen = members(&[(1, 1), (2, 9), (3, 3)]);
        assert_eq!(next_step(&BTreeSet::from([1, 2, 3]), &seen, &status, 1), Some(Step::Finish));
    }

    #[test]
    fn a_node_that_is_away_stays_a_voter() {
        check(&[(1, 1), (2, 2), (3, 3)], &[], &[(2, 1)], &[(1, 1), (3, 3)], None);
    }
}
