//! The classic protocol: JoinGroup, SyncGroup, Heartbeat, LeaveGroup.

use lockstep_core::GroupError;
use lockstep_core::op::ClassicJoin;
use lockstep_core::view::{GroupState, JoinProgress, SyncProgress};

use crate::harness::{GROUP, Shard, new_member, rejoin, stable_static_group, static_member, with_metadata};

#[test]
fn a_group_goes_from_join_to_sync_to_rest() {
    let mut shard = Shard::with_topics(&[4]);
    let ticket = shard.join(&new_member("a")).expect("joins");
    assert!(ticket.ready, "without an initial delay the first member has its generation at once");
    let result = shard.joined(&ticket);
    assert_eq!((result.generation, result.leader.as_str(), result.protocol_name.as_str()), (1, "a", "range"));
    assert_eq!(result.members, [("a".to_owned(), None, b"subscription".to_vec())]);
    assert!(!result.skip_assignment);
    assert_eq!(shard.group_state(), GroupState::CompletingRebalance);
    assert_eq!(shard.state.sync_progress(GROUP, "a", 1), SyncProgress::Waiting);
    shard.sync_leader().expect("taken");
    assert_eq!(shard.group_state(), GroupState::Stable);
    assert_eq!(shard.synced("a").expect("assigned").assignment, b"a");
}

#[test]
fn a_second_member_waits_until_the_first_has_rejoined() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a"]);
    let ticket = shard.join(&new_member("b")).expect("joins");
    assert!(!ticket.ready);
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance);
    assert_eq!(shard.state.join_progress(GROUP, "b", ticket.after_generation), JoinProgress::Waiting);
    let leader = shard.join(&rejoin("a")).expect("rejoins");
    assert!(leader.ready);
    let (follower, leader) = (shard.joined(&ticket), shard.joined(&leader));
    assert_eq!((follower.generation, follower.leader.as_str(), follower.members.len()), (2, "a", 0));
    assert_eq!((leader.generation, leader.members.len()), (2, 2));
    shard.sync_all();
    assert_eq!(shard.synced("b").expect("assigned").assignment, b"b");
}

#[test]
fn members_that_do_not_rejoin_are_left_behind() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    let leader = shard.view().leader.expect("a leader");
    let rejoins = shard.join(&rejoin(&leader)).expect("rejoins");
    // The other one is alive, but does not come.
    for _ in 0..6 {
        shard.pass(10_000);
        let _ = shard.classic_beat("b", 1);
    }
    assert_eq!(shard.member_ids(), std::slice::from_ref(&leader));
    assert_eq!(shard.joined(&rejoins).members.len(), 1);
    assert_eq!(shard.classic_beat("b", 2), Err(GroupError::UnknownMember));
}

#[test]
fn a_dynamic_member_is_told_its_id_first() {
    let mut shard = Shard::with_topics(&[4]);
    let first = ClassicJoin { require_known_member_id: true, ..new_member("a") };
    assert_eq!(shard.join(&first), Err(GroupError::MemberIdRequired("a".to_owned())));
    assert!(shard.member_ids().is_empty());
    let ticket = shard.join(&rejoin("a")).expect("comes with its id");
    let generation = shard.joined(&ticket).generation;
    // Its answer is lost: it asks again, and is neither a second member nor in another generation.
    let again = shard.join(&rejoin("a")).expect("asks again");
    assert_eq!(shard.joined(&again).generation, generation);
    assert_eq!(shard.member_ids(), ["a"]);
    assert_eq!(shard.join(&rejoin("stranger")), Err(GroupError::UnknownMember));
}

#[test]
fn the_same_join_op_twice_makes_one_member() {
    let mut shard = Shard::with_topics(&[4]);
    let join = new_member("a");
    shard.join(&join).expect("joins");
    let view = shard.view();
    shard.join(&join).expect("once more");
    assert_eq!(shard.view(), view);
}

#[test]
fn a_pending_member_holds_the_join_phase_up_until_it_comes_or_expires() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a"]);
    let pending = ClassicJoin { require_known_member_id: true, session_timeout_ms: 6_000, ..new_member("b") };
    assert!(matches!(shard.join(&pending), Err(GroupError::MemberIdRequired(_))));
    let ticket = shard.join(&rejoin("a")).expect("rejoins");
    assert!(!ticket.ready);
    shard.pass(6_000);
    assert_eq!(shard.joined(&ticket).generation, 2);
}

#[test]
fn a_static_replacement_while_the_assignment_is_made_rebalances() {
    let mut shard = stable_static_group();
    shard.join(&ClassicJoin { instance_id: Some("one".to_owned()), ..rejoin("a") }).expect("rejoins");
    shard.join(&ClassicJoin { instance_id: Some("two".to_owned()), ..rejoin("b") }).expect("rejoins");
    assert_eq!(shard.group_state(), GroupState::CompletingRebalance);
    shard.join(&static_member("b2", "two")).expect("takes the place");
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance);
}

#[test]
fn static_members_that_are_away_keep_their_place_through_a_rebalance() {
    let mut shard = stable_static_group();
    let ticket = shard.join(&ClassicJoin { instance_id: Some("two".to_owned()), ..with_metadata(rejoin("b"), "new") });
    let ticket = ticket.expect("rejoins");
    for _ in 0..7 {
        shard.pass(10_000);
        let _ = shard.classic_beat("a", 2);
        let _ = shard.classic_beat("b", 3);
    }
    assert_eq!(shard.joined(&ticket).leader, "b", "who is there leads");
    assert_eq!(shard.member_ids(), ["a", "b"]);
}

#[test]
fn a_leader_that_never_syncs_is_removed_too_and_the_followers_go_on() {
    let mut shard = Shard::with_topics(&[4]);
    shard.join(&ClassicJoin { initial_rebalance_delay_ms: 1_000, ..new_member("a") }).expect("joins");
    shard.join(&new_member("b")).expect("joins");
    shard.pass(2_000);
    let leader = shard.view().leader.expect("a leader");
    let follower = if leader == "a" { "b" } else { "a" };
    shard.table.synced(GROUP, follower, 1, shard.now_ms);
    for _ in 0..7 {
        shard.pass(10_000);
        let _ = shard.classic_beat(&leader, 1);
    }
    assert_eq!(shard.member_ids(), [follower], "a follower whose SyncGroup waits does not time out");
    assert_eq!(shard.state.sync_progress(GROUP, follower, 1), SyncProgress::Done(Err(GroupError::RebalanceInProgress)));
    shard.join(&rejoin(follower)).expect("rejoins");
    shard.sync_all();
    assert_eq!(shard.group_state(), GroupState::Stable);
}

#[test]
fn members_keep_their_assignments_while_a_rebalance_runs() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    assert_eq!(shard.member("b").classic_metadata, b"subscription");
    shard.join(&new_member("c")).expect("joins");
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance);
    let shown =
        |member_id: &str| (shard.member(member_id).classic_metadata, shard.member(member_id).classic_assignment);
    assert_eq!(shown("b"), (Vec::new(), b"b".to_vec()), "the protocol of the next generation is not chosen yet");
    assert_eq!(shown("c"), (Vec::new(), Vec::new()));
}

#[test]
fn a_stale_sync_changes_nothing() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    let digest = shard.digest();
    assert_eq!(shard.sync("a", 0, vec![("a".to_owned(), b"stale".to_vec())]), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.sync("x", 1, vec![("a".to_owned(), b"stale".to_vec())]), Err(GroupError::UnknownMember));
    assert_eq!(
        shard.state.check_sync(GROUP, "a", None, 1, Some("connect"), None),
        Err(GroupError::InconsistentProtocol)
    );
    assert_eq!(
        shard.state.check_sync(GROUP, "a", None, 1, None, Some("roundrobin")),
        Err(GroupError::InconsistentProtocol)
    );
    assert_eq!(shard.digest(), digest);
    shard.sync("a", 1, vec![("a".to_owned(), b"repeated".to_vec())]).expect("a repeated sync is answered");
    assert_eq!(shard.synced("a").expect("assigned").assignment, b"a");
}

#[test]
fn protocols_are_chosen_by_vote_and_strangers_are_refused() {
    let offering = |id: &str, names: &[&str]| ClassicJoin {
        protocols: names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect(),
        ..new_member(id)
    };
    let mut shard = Shard::with_topics(&[4]);
    shard.join(&ClassicJoin { initial_rebalance_delay_ms: 1_000, ..offering("a", &["x", "y", "z"]) }).expect("joins");
    shard.join(&offering("b", &["w", "y", "x"])).expect("joins");
    shard.join(&offering("c", &["y", "x"])).expect("joins");
    assert_eq!(shard.join(&offering("d", &["w", "z"])), Err(GroupError::InconsistentProtocol));
    let connect = ClassicJoin { protocol_type: "connect".to_owned(), ..offering("d", &["x"]) };
    assert_eq!(shard.join(&connect), Err(GroupError::InconsistentProtocol));
    assert_eq!(shard.join(&offering("e", &[])), Err(GroupError::InconsistentProtocol));
    shard.pass(2_000);
    assert_eq!(shard.view().protocol_name, "y");
}

#[test]
fn a_generation_survives_a_new_leader_and_goes_on_in_an_emptied_group() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    let before = shard.view();
    shard.fail_over();
    assert_eq!(shard.view(), before);
    shard.classic_beat("a", 1).expect("alive");
    shard.leave(&[("a", None), ("b", None)]).expect("a batch");
    let emptied = shard.view().epoch;
    let ticket = shard.join(&new_member("c")).expect("joins");
    assert!(shard.joined(&ticket).generation > emptied);
}
