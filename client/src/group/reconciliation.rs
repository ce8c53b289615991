//! How a member moves to the assignment that its coordinator gives it (KIP-848).
//!
//! Pure: it is told what was answered and what is done, and says what to do. The order is always the same: stop reading
//! what must go, let the caller finish with it, only then tell the coordinator that it is gone, since from then on
//! another member may have it. What comes is free already, or the coordinator would not have given it.

use std::collections::BTreeSet;

use lockstep_wire::codec::Uuid;

/// A partition, by the id of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartitionId {
    pub(crate) topic_id: Uuid,
    pub(crate) partition: i32,
}

/// What the driver must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Stop reading these, let the caller finish with them, then call [`Reconciliation::on_revoked`].
    Revoke(BTreeSet<PartitionId>),
    /// Start reading these at their committed offsets.
    Assign(BTreeSet<PartitionId>),
    /// These are gone, perhaps to another member already: stop reading them, nothing of them may be committed.
    Lose(BTreeSet<PartitionId>),
}

/// What a heartbeat says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// 0 joins.
    pub(crate) member_epoch: i32,
    /// All that the coordinator may have forgotten, or not have heard, is said again: subscription, time-out, owned
    /// partitions.
    pub(crate) is_full: bool,
    /// Partitions that the member has; `None` if that is no news.
    pub(crate) owned: Option<BTreeSet<PartitionId>>,
}

/// A member's way to its assignment.
#[derive(Debug, Default)]
pub(crate) struct Reconciliation {
    /// 0 until it has joined.
    member_epoch: i32,
    /// What the caller may work on, with what is being revoked.
    owned: BTreeSet<PartitionId>,
    /// Not read any more, but the caller has not finished.
    revoking: BTreeSet<PartitionId>,
    /// The newest assignment, if it is not reached yet.
    target: Option<BTreeSet<PartitionId>>,
    /// What the coordinator knows to be owned; `None` if it cannot be sure that it knows.
    reported: Option<BTreeSet<PartitionId>>,
}

impl Reconciliation {
    /// The epoch for heartbeats and commits, 0 until joined.
    pub(crate) fn member_epoch(&self) -> i32 {
        self.member_epoch
    }

    /// What may be committed: also what is being revoked.
    pub(crate) fn owned(&self) -> &BTreeSet<PartitionId> {
        &self.owned
    }

    /// What is on its way out.
    pub(crate) fn revoking(&self) -> &BTreeSet<PartitionId> {
        &self.revoking
    }

    /// The next heartbeat. One must be answered, refused or lost before the next is asked for.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        if self.member_epoch == 0 {
            return Heartbeat { member_epoch: 0, is_full: true, owned: Some(BTreeSet::new()) };
        }
        let is_full = self.reported.is_none();
        let is_news = self.reported.as_ref() != Some(&self.owned);
        Heartbeat { member_epoch: self.member_epoch, is_full, owned: is_news.then(|| self.owned.clone()) }
    }

    /// The coordinator waits for news that there is: the next heartbeat should not wait for its turn.
    pub(crate) fn has_news(&self) -> bool {
        self.member_epoch > 0 && self.reported.as_ref().is_some_and(|reported| *reported != self.owned)
    }

    /// `heartbeat` was answered.
    pub(crate) fn on_answer(
        &mut self,
        heartbeat: &Heartbeat,
        member_epoch: i32,
        assignment: Option<BTreeSet<PartitionId>>,
    ) -> Vec<Effect> {
        if let Some(owned) = &heartbeat.owned {
            self.reported = Some(owned.clone());
        }
        self.member_epoch = member_epoch;
        if let Some(assignment) = assignment {
            self.target = Some(assignment);
        }
        self.reconcile()
    }

    /// No answer came, or not from the coordinator: what was reported may not have arrived, and an assignment may have
    /// been missed.
    pub(crate) fn on_lost_answer(&mut self) {
        self.reported = None;
    }

    /// The caller has finished with what was to be revoked.
    pub(crate) fn on_revoked(&mut self) -> Vec<Effect> {
        for gone in std::mem::take(&mut self.revoking) {
            self.owned.remove(&gone);
        }
        self.reconcile()
    }

    /// The coordinator does not take the member for one any more, or the session has run out: it begins anew.
    pub(crate) fn on_fenced(&mut self) -> Vec<Effect> {
        let lost = std::mem::take(self).owned;
        if lost.is_empty() { Vec::new() } else { vec![Effect::Lose(lost)] }
    }

    fn reconcile(&mut self) -> Vec<Effect> {
        // One step at a time: a newer target is looked at when the present step is done.
        if !self.revoking.is_empty() {
            return Vec::new();
        }
        let Some(target) = self.target.take() else { return Vec::new() };
        let to_revoke: BTreeSet<_> = self.owned.difference(&target).copied().collect();
        if !to_revoke.is_empty() {
            self.target = Some(target);
            self.revoking = to_revoke.clone();
            return vec![Effect::Revoke(to_revoke)];
        }
        let to_assign: BTreeSet<_> = target.difference(&self.owned).copied().collect();
        self.owned = target;
        if to_assign.is_empty() { Vec::new() } else { vec![Effect::Assign(to_assign)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(partitions: &[i32]) -> BTreeSet<PartitionId> {
        partitions.iter().map(|&partition| PartitionId { topic_id: Uuid::nil(), partition }).collect()
    }

    /// One heartbeat that is answered so. Gives what it said of owned partitions, and what is to be done.
    fn beat(
        member: &mut Reconciliation,
        epoch: i32,
        assignment: Option<&[i32]>,
    ) -> (Option<BTreeSet<PartitionId>>, Vec<Effect>) {
        let heartbeat = member.heartbeat();
        let effects = member.on_answer(&heartbeat, epoch, assignment.map(set));
        (heartbeat.owned, effects)
    }

    fn joined(assignment: &[i32]) -> Reconciliation {
        let mut member = Reconciliation::default();
        assert_eq!(beat(&mut member, 1, Some(assignment)), (Some(set(&[])), vec![Effect::Assign(set(assignment))]));
        assert!(member.has_news());
        assert_eq!(beat(&mut member, 1, None), (Some(set(assignment)), vec![]));
        assert!(!member.has_news());
        member
    }

    #[test]
    fn joining_says_everything_and_an_idle_member_nothing() {
        let mut member = Reconciliation::default();
        assert_eq!(member.heartbeat(), Heartbeat { member_epoch: 0, is_full: true, owned: Some(set(&[])) });
        member = joined(&[0, 1]);
        assert_eq!(member.heartbeat(), Heartbeat { member_epoch: 1, is_full: false, owned: None });
    }

    #[test]
    fn what_is_revoked_is_reported_only_once_the_caller_has_finished() {
        let mut member = joined(&[0, 1, 2]);
        let (_, effects) = beat(&mut member, 1, Some(&[0]));
        assert_eq!(effects, [Effect::Revoke(set(&[1, 2]))]);
        assert_eq!(beat(&mut member, 1, None), (None, vec![]), "still working on them");
        assert_eq!(*member.owned(), set(&[0, 1, 2]), "still to be committed");
        assert_eq!(member.on_revoked(), []);
        assert!(member.has_news());
        assert_eq!(beat(&mut member, 2, None), (Some(set(&[0])), vec![]));
    }

    #[test]
    fn what_comes_waits_for_what_goes() {
        let mut member = joined(&[0, 1]);
        let (_, effects) = beat(&mut member, 1, Some(&[1, 5]));
        assert_eq!(effects, [Effect::Revoke(set(&[0]))]);
        assert_eq!(member.on_revoked(), [Effect::Assign(set(&[5]))]);
        assert_eq!(beat(&mut member, 2, None).0, Some(set(&[1, 5])));
    }

    #[test]
    fn a_partition_given_back_while_it_goes_is_started_anew() {
        let mut member = joined(&[0, 1]);
        beat(&mut member, 1, Some(&[0]));
        let (_, effects) = beat(&mut member, 2, Some(&[0, 1]));
        assert_eq!(effects, [], "its caller is still finishing");
        assert_eq!(member.on_revoked(), [Effect::Assign(set(&[1]))]);
        assert_eq!(*member.owned(), set(&[0, 1]));
    }

    #[test]
    fn only_the_newest_assignment_counts() {
        let mut member = joined(&[0, 1, 2]);
        beat(&mut member, 1, Some(&[0, 1]));
        beat(&mut member, 2, Some(&[1, 7]));
        assert_eq!(member.on_revoked(), [Effect::Revoke(set(&[0]))]);
        assert_eq!(member.on_revoked(), [Effect::Assign(set(&[7]))]);
    }

    #[test]
    fn after_a_lost_answer_everything_is_said_again() {
        let mut member = joined(&[0]);
        member.on_lost_answer();
        assert_eq!(member.heartbeat(), Heartbeat { member_epoch: 1, is_full: true, owned: Some(set(&[0])) });
        assert!(!member.has_news(), "not at once: there is a pause between attempts");
        assert_eq!(
            beat(&mut member, 3, Some(&[0])),
            (Some(set(&[0])), vec![]),
            "the same assignment again changes nothing"
        );
    }

    #[test]
    fn a_fenced_member_loses_all_and_joins_anew() {
        let mut member = joined(&[0, 1]);
        beat(&mut member, 1, Some(&[0]));
        assert_eq!(member.on_fenced(), [Effect::Lose(set(&[0, 1]))]);
        assert_eq!(member.member_epoch(), 0);
        assert_eq!(member.heartbeat(), Heartbeat { member_epoch: 0, is_full: true, owned: Some(set(&[])) });
        assert_eq!(member.on_fenced(), [], "there is nothing left to lose");
        let (_, effects) = beat(&mut member, 9, Some(&[1]));
        assert_eq!(effects, [Effect::Assign(set(&[1]))]);
    }

    /// Whatever the coordinator answers, in whatever order the caller finishes: what is read is what was assigned and
    /// neither revoked nor lost, and a partition is reported as gone only when it is not read.
    #[test]
    fn reading_and_reports_agree_in_any_order() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        for _ in 0..2_000 {
            let mut member = Reconciliation::default();
            let mut reading = BTreeSet::new();
            let mut unfinished = BTreeSet::new();
            for epoch in 1..40 {
                let effects = match next(10) {
                    0 => member.on_fenced(),
                    1 => {
                        member.on_lost_answer();
                        Vec::new()
                    }
                    2 | 3 if !unfinished.is_empty() => {
                        unfinished.clear();
                        member.on_revoked()
                    }
                    choice => {
                        let heartbeat = member.heartbeat();
                        if let (Some(owned), true) = (&heartbeat.owned, heartbeat.member_epoch > 0) {
                            assert!(reading.is_subset(owned) && unfinished.is_subset(owned));
                        }
                        let assignment = (choice > 5).then(|| {
                            let bits = next(64);
                            (0..6).filter(|bit| bits >> bit & 1 == 1).collect::<Vec<i32>>()
                        });
                        member.on_answer(&heartbeat, epoch, assignment.as_deref().map(set))
                    }
                };
                for effect in effects {
                    match effect {
                        Effect::Revoke(gone) => {
                            assert!(gone.is_subset(&reading));
                            reading = reading.difference(&gone).copied().collect();
                            unfinished = gone;
                        }
                        Effect::Assign(new) => {
                            assert!(new.is_disjoint(&reading) && unfinished.is_empty());
                            reading.extend(new);
                        }
                        Effect::Lose(gone) => {
                            assert!(reading.is_subset(&gone) && unfinished.is_subset(&gone));
                            reading.clear();
                            unfinished.clear();
                        }
                    }
                }
                let held: BTreeSet<_> = reading.union(&unfinished).copied().collect();
                assert_eq!(held, *member.owned());
            }
        }
    }
}
