//! Shards whose log here may end before what it was acknowledged to hold: `Durability::Replicated`, and the node's last life did not end in good order.
//!
//! What such a node acknowledged from its memory may be gone with it. Were it to vote, whoever lacks those entries too could be elected without them. So in such
//! a shard it neither votes nor stands for election, until it holds, durably, all that a leader knows to be committed: whoever led when an entry was
//! acknowledged has it, and so has whoever was elected since without this node's vote. What it had applied beyond its last checkpoint it does not apply
//! again before it hears of it: that may be gone from the others.
//!
//! Where a majority of the voters is in doubt, or has another disk now, what they acknowledged together is lost if it is: all of them may vote then, or nobody would lead again.
//! That an acknowledged message is lost when a majority dies at the same time is what this mode accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_core::{NodeId, Position, ShardId};
use lockstep_env::Env;
use lockstep_probe::Mistake;
use openraft::async_runtime::WatchReceiver;

use super::Raft;
use super::kept_vote::KeptVote;
use super::replica::Replica;
use crate::journal::ShardLog;
use crate::peer::PeerNetwork;

/// What a node said of its doubts counts for so long.
const HEARD_LATELY: Duration = Duration::from_secs(1);
/// How often it is looked whether the doubt is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Those who vote in a shard, and whether the disk is gone on which each was one: with what it held, and for certain.
pub(crate) type Voters = BTreeMap<NodeId, bool>;

/// The voters as this node knows them.
pub(crate) fn voters<E: Env>(raft: &Raft<E>, peers: &PeerNetwork<E>) -> Voters {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let has_lost_disk = |node: NodeId| {
        let member = membership.get_node(&node)?;
        Some(peers.incarnation_of(node)? != member.incarnation)
    };
    membership.voter_ids().map(|node| (node, has_lost_disk(node).unwrap_or(false))).collect()
}

/// The shards in doubt, on this node and on others.
#[derive(Debug, Default)]
pub(crate) struct Doubts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Those of this node, each with what it must hold, once a leader has said it.
    own: BTreeMap<ShardId, Option<Position>>,
    others: BTreeMap<NodeId, (Instant, BTreeSet<ShardId>)>,
}

impl Doubts {
    /// The node's last life did not end in good order: all its shards are in doubt.
    pub(crate) fn of(shards: impl Iterator<Item = ShardId>) -> Self {
        Self(Mutex::new(State { own: shards.map(|shard| (shard, None)).collect(), others: BTreeMap::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Others are not on this node.
    pub(crate) fn keep_only(&self, is_hosted: impl Fn(ShardId) -> bool) {
        self.lock().own.retain(|shard, _| is_hosted(*shard));
    }

    /// Those of this node.
    pub(crate) fn own(&self) -> Vec<ShardId> {
        self.lock().own.keys().copied().collect()
    }

    pub(crate) fn is_in_doubt(&self, shard: ShardId) -> bool {
        self.lock().own.contains_key(&shard)
    }

    /// What another node says of itself.
    pub(crate) fn heard(&self, node: NodeId, shards: &[ShardId], now: Instant) {
        self.lock().others.insert(node, (now, shards.iter().copied().collect()));
    }

    /// A leader says that everything up to here is committed.
    pub(crate) fn heard_committed(&self, shard: ShardId, committed: Position) {
        if let Some(target) = self.lock().own.get_mut(&shard) {
            *target = (*target).max(Some(committed));
        }
    }

    /// May the node `me` vote in this shard, and stand for election?
    pub(crate) fn may_vote(&self, shard: ShardId, me: NodeId, voters: impl FnOnce() -> Voters, now: Instant) -> bool {
        let state = self.lock();
        if !state.own.contains_key(&shard) || Mistake::DoubtfulReplicaVotes.is_made() {
            return true;
        }
        let is_in_doubt = |(node, has_lost_disk): &(&NodeId, &bool)| {
            **node == me
                || **has_lost_disk
                || state.others.get(*node).is_some_and(|(at, shards)| {
                    now.saturating_duration_since(*at) < HEARD_LATELY && shards.contains(&shard)
                })
        };
        let voters = voters();
        // Two decide together: whoever is elected has the other's vote, and each of them has had all that was acknowledged.
        if voters.len() == 2 {
            return true;
        }
        voters.iter().filter(is_in_doubt).count() > voters.len() / 2
    }

    fn target(&self, shard: ShardId) -> Option<Position> {
        self.lock().own.get(&shard).copied().flatten()
    }

    fn resolve(&self, shard: ShardId) {
        self.lock().own.remove(&shard);
    }
}

/// Lets the shard's replica stand for election once it may, and ends its doubt.
pub(crate) async fn permit_elections<E: Env>(
    raft: Raft<E>,
    replica: Arc<Replica<E>>,
    log: ShardLog<E>,
    peers: PeerNetwork<E>,
    doubts: Arc<Doubts>,
    kept_vote: Option<KeptVote>,
) {
    if let Some(kept_vote) = kept_vote {
        E::sleep_until(kept_vote.until()).await;
    }
    let (shard, me) = (replica.id, replica.node_id);
    while doubts.is_in_doubt(shard) && !replica.is_stopped() {
        let (voters, leader) = (voters(&raft, &peers), raft.metrics().borrow_watched().current_leader);
        // A majority that was in doubt itself has elected this node: its log is the shard's now.
        let leads = leader == Some(me);
        if leads || doubts.target(shard).is_some_and(|target| log.is_durable(target)) {
            tracing::info!(target: "raft", node = me, shard = %shard, leads, "this replica has caught up with what it may have lost: it votes again");
            doubts.resolve(shard);
            peers.poke_gossip();
            break;
        }
        raft.runtime_config().elect(doubts.may_vote(shard, me, || voters, E::now()));
        E::sleep(LOOK_EVERY).await;
    }
    raft.runtime_config().elect(true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_env::tokio_env::TokioEnv;

    const SHARD: ShardId = ShardId(2);

    #[test]
    fn one_in_doubt_does_not_vote_unless_a_majority_is() {
        let now = TokioEnv::now();
        let voters = Voters::from([1, 2, 3].map(|node| (node, false)));
        let sure = Doubts::default();
        assert!(sure.may_vote(SHARD, 1, || voters.clone(), now));
        let doubts = Doubts::of([ShardId(0), SHARD].into_iter());
        assert!(!doubts.may_vote(SHARD, 1, || voters.clone(), now));
        doubts.heard(2, &[ShardId(0)], now);
        doubts.heard(4, &[SHARD], now);
        assert!(
            !doubts.may_vote(SHARD, 1, || voters.clone(), now),
            "another shard's doubt, and that of who does not vote"
        );
        doubts.heard(3, &[SHARD], now);
        assert!(doubts.may_vote(SHARD, 1, || voters.clone(), now));
        assert!(!doubts.may_vote(SHARD, 1, || voters.clone(), now + HEARD_LATELY), "that is long past");
        assert!(doubts.may_vote(SHARD, 1, || Voters::from([(1, false)]), now), "the only one");
        assert!(doubts.may_vote(SHARD, 1, || Voters::from([(1, false), (2, false)]), now), "one of two");
        let lost = Voters::from([(1, false), (2, true), (3, false)]);
        assert!(doubts.may_vote(SHARD, 1, || lost, now + HEARD_LATELY), "what was on a disk that is gone is gone");
        doubts.resolve(SHARD);
        assert!(doubts.may_vote(SHARD, 1, || voters.clone(), now));
        assert_eq!(doubts.own(), [ShardId(0)]);
    }

    #[test]
    fn all_that_leaders_said_must_be_there() {
        let at = |term, index| Position { term, index };
        let doubts = Doubts::of([SHARD].into_iter());
        assert_eq!(doubts.target(SHARD), None);
        doubts.heard_committed(SHARD, at(3, 9));
        doubts.heard_committed(SHARD, at(3, 7));
        doubts.heard_committed(ShardId(5), at(8, 8));
        assert_eq!((doubts.target(SHARD), doubts.target(ShardId(5))), (Some(at(3, 9)), None));
    }
}
