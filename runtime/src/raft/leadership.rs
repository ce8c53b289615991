//! May this node answer for a shard?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_core::NodeId;
use lockstep_env::Env;
use openraft::async_runtime::WatchReceiver;
use openraft::{RaftMetrics, ServerState, alias};

use super::replica::Replica;
use super::type_config::{Member, TypeConfig};
use super::{Raft, RaftStatus};
use crate::error::ProposeError;
use lockstep_probe::Mistake;

type Metrics<E> = alias::WatchReceiverOf<TypeConfig<E>, RaftMetrics<TypeConfig<E>>>;

/// The role of a shard that does not go on here.
pub(crate) const STOPPED: &str = "stopped";

/// Looks at Raft's own records. Cheap to clone, cheap to ask.
pub(crate) struct Leadership<E: Env> {
    replica: Arc<Replica<E>>,
    metrics: Metrics<E>,
    /// For how long after it heard from a quorum a leader is sure that there is no other.
    lease: Duration,
    /// A term in which this node handed leadership over: it does not lead in it any more, whatever became of that.
    handed_over: Arc<AtomicU64>,
}

impl<E: Env> Clone for Leadership<E> {
    fn clone(&self) -> Self {
        Self {
            replica: self.replica.clone(),
            metrics: self.metrics.clone(),
            lease: self.lease,
            handed_over: self.handed_over.clone(),
        }
    }
}

/// What the records say of this node as leader.
enum Standing {
    /// Leads in this term, and its lease holds.
    Leads(u64),
    /// Does not, or cannot be sure; the leader as far as it is known, and its term.
    DoesNot(Option<(NodeId, u64)>),
    /// Raft's core stopped.
    Stopped,
}

impl<E: Env> Leadership<E> {
    pub(crate) fn new(raft: &Raft<E>, replica: Arc<Replica<E>>, lease: Duration) -> Self {
        Self { replica, metrics: raft.metrics(), lease, handed_over: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    fn standing(&self) -> Standing {
        let metrics = self.metrics.borrow_watched();
        if metrics.running_state.is_err() {
            return Standing::Stopped;
        }
        let term = metrics.vote.leader_id.term;
        let me = self.replica.node_id;
        let named = metrics.current_leader.map(|leader| (leader, term));
        let elected = metrics.state == ServerState::Leader
            && metrics.vote.committed
            && metrics.vote.leader_id.voted_for == me
            && self.handed_over.load(Ordering::SeqCst) != term;
        let holds = || {
            let voters = metrics.membership_config.membership().get_joint_config();
            let alone = !voters.is_empty() && voters.iter().all(|set| set.len() == 1 && set.contains(&me));
            alone
                || metrics
                    .last_quorum_acked
                    .is_some_and(|acked| E::now().saturating_duration_since(acked.into_inner().into_std()) < self.lease)
        };
        if elected && (holds() || Mistake::LeaseIgnored.is_made()) {
            Standing::Leads(term)
        } else {
            // A leader that is not sure of itself does not name itself either.
            Standing::DoesNot(named.filter(|(leader, _)| *leader != me))
        }
    }

    /// The term in which this node may answer as leader.
    pub(crate) fn serving(&self) -> Result<u64, ProposeError> {
        let shard = self.replica.id;
        if self.replica.is_stopped() {
            return Err(ProposeError::Stopped(shard));
        }
        match self.standing() {
            Standing::Leads(term)
                if self.replica.applied.borrow().term == term || Mistake::LeaderServesBeforeItsFirstEntry.is_made() =>
            {
                Ok(term)
            }
            Standing::Leads(_) => Err(ProposeError::Loading(shard)),
            Standing::DoesNot(named) => Err(ProposeError::NotLeader { shard, leader: named.map(|(leader, _)| leader) }),
            Standing::Stopped => Err(ProposeError::Stopped(shard)),
        }
    }

    /// Who leads and in which term, as far as this node knows.
    pub(crate) fn leader(&self) -> Option<(NodeId, u64)> {
        match self.standing() {
            Standing::Leads(term) => Some((self.replica.node_id, term)),
            Standing::DoesNot(named) => named,
            Standing::Stopped => None,
        }
    }

    /// The term that this node leads in by its own records, whether or not its lease holds.
    pub(crate) fn term_led(&self) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        (metrics.state == ServerState::Leader && metrics.running_state.is_ok()).then_some(metrics.vote.leader_id.term)
    }

    /// When that was sent which every member has answered since, voters and learners alike; `None` unless all have answered this leader. As with the lease, news of a
    /// commit that was held back (`append_stream.rs`) counts as sent when it was to be, some milliseconds too early or too late.
    pub(crate) fn heard_by_all(&self) -> Option<Instant> {
        let metrics = self.metrics.borrow_watched();
        let others = metrics.heartbeat.as_ref()?.iter().filter(|(member, _)| **member != self.replica.node_id);
        let answered = others.map(|(_, at)| at.map(|at| at.into_inner().into_std()));
        answered.reduce(|earliest, at| Some(earliest?.min(at?))).flatten()
    }

    /// From now on this node does not lead in the present term.
    pub(crate) fn hand_over(&self) {
        let term = self.metrics.borrow_watched().vote.leader_id.term;
        self.handed_over.store(term, Ordering::SeqCst);
        self.replica.duties.notify_one();
    }

    /// Members that no longer hold what they acknowledged to this node, if it leads.
    pub(crate) fn reverted(&self) -> BTreeSet<NodeId> {
        if self.term_led().is_some() { self.replica.reverted() } else { BTreeSet::new() }
    }

    /// What this node is in the group, and the highest term it has seen.
    pub(crate) fn role(&self) -> (&'static str, u64) {
        let metrics = self.metrics.borrow_watched();
        (self.role_in(&metrics), metrics.vote.leader_id.term)
    }

    fn role_in(&self, metrics: &RaftMetrics<TypeConfig<E>>) -> &'static str {
        match metrics.state {
            _ if metrics.running_state.is_err() || self.replica.is_stopped() => STOPPED,
            ServerState::Leader => "leader",
            ServerState::Candidate => "candidate",
            ServerState::Follower => "follower",
            ServerState::Learner => "learner",
            ServerState::Shutdown => STOPPED,
        }
    }

    /// Everything that is known of the group.
    pub(crate) fn status(&self) -> RaftStatus {
        // Asked first: it borrows the metrics itself.
        let reverted = self.reverted();
        let metrics = self.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let nodes: BTreeMap<NodeId, Member> =
            membership.nodes().map(|(node, member)| (*node, member.clone())).collect();
        let voters: BTreeMap<NodeId, Member> =
            membership.voter_ids().filter_map(|node| nodes.get(&node).map(|member| (node, member.clone()))).collect();
        let configurations = membership.get_joint_config();
        let lasting_voters =
            voters.keys().filter(|node| configurations.iter().all(|voters| voters.contains(node))).copied().collect();
        let learners = nodes.into_iter().filter(|(node, _)| !voters.contains_key(node)).collect();
        let matched = metrics
            .replication
            .iter()
            .flatten()
            .map(|(node, matched)| (*node, matched.as_ref().map(|matched| matched.index)))
            .collect();
        let role = self.role_in(&metrics);
        RaftStatus {
            role,
            term: metrics.vote.leader_id.term,
            leader: metrics.current_leader,
            voters,
            lasting_voters,
            learners,
            matched,
            reverted,
            last_log: metrics.last_log_index.unwrap_or(0),
            snapshot: metrics.snapshot.map(|at| at.index),
            purged: metrics.purged.map(|at| at.index),
        }
    }

    /// Why Raft's core stopped, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.metrics.borrow_watched().running_state.as_ref().err().map(ToString::to_string)
    }
}
