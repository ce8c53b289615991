//! The leader's timers and the expiries they propose.

use lockstep_core::op::{
    ClassicJoin, CommitOffset, ConsumerHeartbeat, ExpiredMember, ExpiryReason, HeartbeatConsumer, JoinConsumerGroup,
    LeaveConsumerGroup, RebalancePartitions,
};
use lockstep_core::reply::GroupError;
use lockstep_core::view::GroupState;
use lockstep_core::{Op, Position, Reply, SessionTable};

use crate::harness::{
    GROUP, REBALANCE_MS, SESSION_MS, Shard, commit, heartbeat, joining, joining_static, new_member, rejoin,
};

fn expiry(term: u64, member_id: &str, last_seen: u64, reason: ExpiryReason) -> Op {
    Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired {
        group_id: GROUP.to_owned(),
        term,
        members: vec![ExpiredMember { member_id: member_id.to_owned(), last_seen, reason, silent_ms: SESSION_MS }],
        now_ms: 0,
    })
}

#[test]
fn a_silent_member_goes_at_its_session_timeout_and_a_heartbeat_puts_that_off() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    shard.enter("b");
    shard.pass(SESSION_MS - 1);
    let epoch = shard.member("b").member_epoch;
    shard.beat(&heartbeat("b", epoch)).expect("in order");
    assert_eq!(shard.member_ids().len(), 2);
    let ops = shard.pass(1);
    assert_eq!(shard.member_ids(), ["b"]);
    let Some(Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { members, term: 1, .. })) = ops.first() else {
        panic!("an expiry is proposed: {ops:?}");
    };
    assert_eq!((members.len(), members[0].silent_ms, members[0].reason), (1, SESSION_MS, ExpiryReason::Session));
}

/// `count` ids of the greatest length.
fn long_ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{n:01024}")).collect()
}

#[test]
fn however_long_their_ids_members_that_were_seen_or_are_silent_fit_into_ops_of_bounded_length() {
    let mut shard = Shard::with_topics(&[4]);
    let ids = long_ids(1_100);
    for id in &ids {
        shard.beat(&ConsumerHeartbeat { members_max: 2_000, ..joining(id) }).expect("joins");
    }
    for id in &ids {
        shard.table.heartbeat(GROUP, id, shard.now_ms);
    }
    let mut seen = 0;
    while let Some(op) = shard.table.take_seen() {
        assert!(op.encode().len() < 2 << 20);
        let Op::HeartbeatConsumer(HeartbeatConsumer::Seen { groups }) = op else { panic!("{op:?}") };
        seen += groups.iter().map(|(_, members)| members.len()).sum::<usize>();
    }
    assert_eq!(seen, ids.len());
    let ops = shard.pass(SESSION_MS + 1);
    assert!(ops.len() > 1 && ops.iter().all(|op| op.encode().len() < 2 << 20));
    assert!(shard.member_ids().is_empty());
}

#[test]
fn ids_that_are_too_long_are_refused_and_change_nothing() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    let digest = shard.digest();
    let long = "x".repeat(1_025);
    assert!(matches!(shard.beat(&joining(&long)), Err(GroupError::InvalidRequest(_))));
    assert!(matches!(shard.beat(&joining_static("b", &long)), Err(GroupError::InvalidRequest(_))));
    assert!(matches!(shard.join(&new_member(&long)), Err(GroupError::InvalidRequest(_))));
    let elsewhere = ClassicJoin { group_id: long.clone(), ..new_member("c") };
    assert!(matches!(
        shard.apply(&Op::JoinConsumerGroup(JoinConsumerGroup::Classic(elsewhere))),
        Reply::ClassicJoin(Err(GroupError::InvalidGroupId))
    ));
    let admin = CommitOffset { group_id: long, ..commit("", -1, 7) };
    assert_eq!(shard.commit(&admin), Err(GroupError::InvalidGroupId));
    assert_eq!(shard.digest(), digest);
}

#[test]
fn an_expiry_does_nothing_when_the_member_was_heard_from_since() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    let known = shard.position.index;
    let seen = Op::HeartbeatConsumer(HeartbeatConsumer::Seen {
        groups: vec![(GROUP.to_owned(), vec!["a".to_owned(), "stranger".to_owned()]), ("none".to_owned(), vec![])],
    });
    assert_eq!(shard.apply(&seen), Reply::Done(true));
    let digest = shard.digest();
    assert_eq!(shard.apply(&expiry(1, "a", known, ExpiryReason::Session)), Reply::Done(false));
    assert_eq!(shard.apply(&expiry(1, "a", known, ExpiryReason::Rebalance)), Reply::Done(false));
    assert_eq!(shard.apply(&expiry(1, "a", known, ExpiryReason::Pending)), Reply::Done(false));
    assert_eq!(shard.digest(), digest);
    let now = shard.position.index - 3;
    assert_eq!(shard.apply(&expiry(1, "a", now, ExpiryReason::Session)), Reply::Done(true));
    assert!(shard.member_ids().is_empty());
}

#[test]
fn a_classic_member_that_was_heard_from_since_does_not_expire() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a"]);
    let known = shard.position.index;
    shard.commit(&crate::harness::commit("a", 1, 5)).expect("a sign of life");
    assert_eq!(shard.apply(&expiry(1, "a", known, ExpiryReason::Session)), Reply::Done(false));
    assert_eq!(shard.apply(&expiry(1, "a", known + 1, ExpiryReason::Session)), Reply::Done(true));
    assert!(shard.member_ids().is_empty());
}

#[test]
fn an_expiry_of_an_earlier_term_does_nothing() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    let known = shard.position.index;
    shard.position = Position { term: 2, ..shard.position };
    let digest = shard.digest();
    assert_eq!(shard.apply(&expiry(1, "a", known, ExpiryReason::Session)), Reply::Done(false));
    assert_eq!(shard.digest(), digest);
}

#[test]
fn a_new_leader_gives_everybody_a_fresh_session() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    shard.pass(SESSION_MS - 1);
    shard.fail_over();
    shard.pass(SESSION_MS - 1);
    assert_eq!(shard.member_ids(), ["a"]);
    shard.pass(1);
    assert!(shard.member_ids().is_empty());
}

#[test]
fn an_op_that_came_to_nothing_is_offered_again() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    let now_ms = shard.now_ms + SESSION_MS;
    let first = shard.table.expired(now_ms, 0);
    assert_eq!(first.len(), 1);
    assert!(shard.table.expired(now_ms, 0).is_empty(), "once");
    let next_ms = shard.table.next_deadline().expect("again");
    assert!(next_ms > now_ms && next_ms <= now_ms + 1_000);
    assert_eq!(shard.table.expired(next_ms, 0).len(), 1);
    // It takes effect at last: nothing is left to time.
    shard.apply(&first[0]);
    assert_eq!(shard.table.next_deadline(), None);
}

#[test]
fn members_that_wait_in_a_join_do_not_time_out() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    let short = ClassicJoin { session_timeout_ms: 6_000, ..new_member("c") };
    shard.join(&short).expect("joins");
    for _ in 0..3 {
        shard.pass(15_000);
        let _ = shard.classic_beat("a", 1);
        let _ = shard.classic_beat("b", 1);
    }
    assert_eq!(shard.member_ids(), ["a", "b", "c"]);
    for member_id in ["a", "b"] {
        shard.join(&rejoin(member_id)).expect("rejoins");
    }
    shard.pass(5_999);
    assert_eq!(shard.member_ids(), ["a", "b", "c"], "its session begins with the generation");
    shard.pass(1);
    assert_eq!(shard.member_ids(), ["a", "b"]);
}

#[test]
fn a_pending_member_owes_no_sync() {
    let mut shard = Shard::with_topics(&[4]);
    let pending = ClassicJoin { require_known_member_id: true, session_timeout_ms: 200_000, ..new_member("b") };
    assert!(matches!(shard.join(&pending), Err(GroupError::MemberIdRequired(_))));
    shard.join(&new_member("a")).expect("joins");
    shard.pass(REBALANCE_MS);
    assert_eq!(shard.group_state(), GroupState::CompletingRebalance, "nobody waits longer for \"b\"");
    shard.sync_leader().expect("the leader's sync is taken");
    for _ in 0..2 {
        assert_eq!(shard.pass(SESSION_MS - 1), [], "nobody owes anything");
        shard.classic_beat("a", 1).expect("in order");
    }
    assert_eq!(shard.group_state(), GroupState::Stable);
}

#[test]
fn a_new_leader_ends_a_join_phase_that_it_did_not_begin() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    shard.join(&rejoin(&shard.view().leader.expect("a leader"))).expect("rejoins");
    shard.fail_over();
    shard.pass(REBALANCE_MS);
    assert_eq!((shard.group_state(), shard.member_ids().len()), (GroupState::CompletingRebalance, 1));
}

#[test]
fn a_new_leader_computes_an_assignment_that_the_old_one_owed() {
    let mut shard = Shard::with_topics(&[4]);
    shard.propose(&crate::harness::joining("a")).expect("joins");
    shard.fail_over();
    assert_eq!(shard.group_state(), GroupState::Assigning);
    let ops = shard.pass(1_000);
    let [Op::RebalancePartitions(RebalancePartitions::Assign { group_id, member_id: None, .. })] = ops.as_slice()
    else {
        panic!("not the assignment: {ops:?}");
    };
    assert_eq!(group_id, GROUP);
    assert_eq!(shard.group_state(), GroupState::Reconciling);
    let reply = shard.enter("a");
    assert_eq!((reply.member_epoch, shard.group_state()), (1, GroupState::Stable));
}

#[test]
fn heartbeats_of_a_second_become_one_op() {
    let mut shard = Shard::with_topics(&[4]);
    assert_eq!(shard.table.take_seen(), None);
    for i in 0..100 {
        shard
            .join(&ClassicJoin { initial_rebalance_delay_ms: 1_000, ..new_member(&format!("m{i:03}")) })
            .expect("joins");
    }
    shard.pass(2_000);
    shard.sync_all();
    while shard.table.take_seen().is_some() {}
    for i in 0..100 {
        shard.classic_beat(&format!("m{i:03}"), 1).expect("alive");
        shard.classic_beat(&format!("m{i:03}"), 1).expect("alive");
    }
    let Some(Op::HeartbeatConsumer(HeartbeatConsumer::Seen { groups })) = shard.table.take_seen() else {
        panic!("the heartbeats are told");
    };
    assert_eq!(groups.len(), 1);
    assert!(groups[0].1.is_sorted() && groups[0].1.len() == 100);
    assert_eq!(shard.table.take_seen(), None);
}

#[test]
fn time_that_jumps_ahead_or_back_does_no_more_than_expire_sessions() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    shard.table.heartbeat(GROUP, "a", u64::MAX);
    shard.table.heartbeat(GROUP, "a", 0);
    for now_ms in [0, u64::MAX, 0, u64::MAX] {
        for op in shard.table.expired(now_ms, 0) {
            shard.apply(&op);
        }
    }
    let mut table = SessionTable::start(&shard.state, 1, u64::MAX);
    assert!(table.expired(u64::MAX, 0).len() <= 2);
}

#[test]
fn ten_thousand_members_are_timed_without_reading_them_all_each_time() {
    let mut shard = Shard::with_topics(&[4]);
    // Direct to the state: the self-checks of the harness are linear in the group.
    for i in 0..10_000 {
        shard.position.index += 1;
        let join =
            ClassicJoin { initial_rebalance_delay_ms: 1_000, members_max: 20_000, ..new_member(&format!("m{i:05}")) };
        let op = Op::JoinConsumerGroup(lockstep_core::op::JoinConsumerGroup::Classic(join));
        shard.state.apply(shard.position, &op, 0).expect("no invariant breaks");
        shard.table.observe(&shard.state, GROUP, shard.now_ms);
    }
    let ops = shard.pass(2_000);
    assert_eq!(ops.len(), 1, "{ops:?}");
    for i in 0..10_000 {
        shard.table.heartbeat(GROUP, &format!("m{i:05}"), shard.now_ms);
    }
    shard.pass(SESSION_MS - 1);
    assert_eq!(shard.member_ids().len(), 10_000);
    let first = shard.table.expired(shard.now_ms + 1, 0);
    let [Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { members, .. })] = first.as_slice() else {
        panic!("one op for the group");
    };
    assert_eq!(members.len(), 10_000);
}
