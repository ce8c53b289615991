//! How much of the log a leader keeps for members that lag.
//!
//! openraft purges nothing that it is about to send to a member, however far behind that member is. One whose disk takes less than what is appended answers
//! every request in time all the same, and the journal would grow until the leader's disk is full. So the log is purged only as far as the members
//! that answer have it, which spares them a snapshot; but whoever lags by more than an allowance is cut off: the next answer to it counts as a failed request
//! (`network.rs`), upon which openraft lets go of the entries and offers the member a snapshot. What was appended since that one is kept for it too, up to the
//! same allowance, so that it can go on from there; should its installation take longer, the next one follows, and the journal stays as short.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_core::NodeId;
use lockstep_env::Env;
use openraft::async_runtime::WatchReceiver;

use super::Raft;
use super::replica::Replica;
use crate::journal::ShardLog;

/// One for whom entries are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// A member that entries are sent to; `None`: one that is being given a snapshot.
    pub(crate) member: Option<NodeId>,
    /// The first entry that it lacks.
    pub(crate) next: u64,
}

/// How far the log may be purged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// Up to this entry; `None`: everything is needed.
    pub(crate) upto: Option<u64>,
    /// Members that lag too far.
    pub(crate) too_far: Vec<NodeId>,
}

impl Bound {
    /// How far of what may go, up to `covered`, when everybody for whom no more than `allowance` bytes must be kept finds what it lacks. `bytes_from` says how
    /// many the log holds from an entry on.
    pub(crate) fn new(covered: u64, waiting: &[Waiting], allowance: u64, bytes_from: impl Fn(u64) -> u64) -> Self {
        let (far, near): (Vec<Waiting>, Vec<Waiting>) = waiting
            .iter()
            .filter(|waiting| waiting.next <= covered)
            .partition(|waiting| bytes_from(waiting.next) > allowance);
        let needed = near.iter().map(|waiting| waiting.next).min();
        let upto = needed.map_or(Some(covered), |next| next.checked_sub(1));
        let is_cut = |waiting: &&Waiting| upto.is_some_and(|upto| waiting.next <= upto);
        let too_far = far.iter().filter(is_cut).filter_map(|waiting| waiting.member).collect();
        Self { upto, too_far }
    }
}

/// For whom this node, if it leads, keeps entries: members that answered what was sent within `patience` and can go on with what the log has.
/// Whoever is away is given a snapshot when it comes back.
pub(crate) fn waiting<E: Env>(
    raft: &Raft<E>,
    replica: &Replica<E>,
    log: &ShardLog<E>,
    patience: Duration,
) -> Vec<Waiting> {
    let answered: BTreeMap<NodeId, _> = raft.metrics().borrow_watched().heartbeat.clone().unwrap_or_default();
    let now = E::now();
    let first = log.purged().map_or(0, |purged| purged.index + 1);
    let live = answered.into_iter().filter_map(|(member, at)| {
        let silence = now.saturating_duration_since(at?.into_inner().into_std());
        (member != replica.node_id && silence <= patience).then_some(member)
    });
    let members = live.filter_map(|member| {
        let acknowledged = replica.acknowledged(member);
        let next = acknowledged.upto().map_or(0, |upto| upto.index + 1);
        (next >= first && !acknowledged.is_reverted()).then_some(Waiting { member: Some(member), next })
    });
    let mut waiting: Vec<Waiting> = members.collect();
    let offers = replica.lock_outgoing();
    waiting.extend(offers.values().map(|offer| Waiting { member: None, next: offer.position.index + 1 }));
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of a hundred entries of ten bytes.
    fn bytes_from(index: u64) -> u64 {
        (100 - index) * 10
    }

    fn member(id: NodeId, next: u64) -> Waiting {
        Waiting { member: Some(id), next }
    }

    #[test]
    fn whoever_lags_within_the_allowance_finds_what_it_lacks() {
        let waiting = [member(2, 100), member(3, 40), Waiting { member: None, next: 60 }];
        let bound = Bound::new(90, &waiting, 600, bytes_from);
        assert_eq!(bound, Bound { upto: Some(39), too_far: vec![] });
        assert_eq!(Bound::new(90, &[member(2, 0)], 1_000, bytes_from), Bound { upto: None, too_far: vec![] });
    }

    #[test]
    fn whoever_lags_by_more_is_cut_off_and_nobody_else() {
        let waiting = [member(2, 30), member(3, 50), Waiting { member: None, next: 20 }];
        let bound = Bound::new(90, &waiting, 600, bytes_from);
        assert_eq!(bound, Bound { upto: Some(49), too_far: vec![2] });
        // What the checkpoint does not cover stays in any case.
        assert_eq!(Bound::new(10, &waiting, 600, bytes_from), Bound { upto: Some(10), too_far: vec![] });
    }
}
