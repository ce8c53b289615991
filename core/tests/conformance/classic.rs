//! The classic protocol: JoinGroup, SyncGroup, Heartbeat, LeaveGroup.

use lockstep_core::GroupError;
use lockstep_core::op::ClassicJoin;
use lockstep_core::view::{GroupState, JoinProgress, SyncProgress};

use crate::harness::{
    GROUP, SESSION_MS, Shard, commit, new_member, rejoin, stable_static_group, static_member, with_metadata,
};

#[test]
fn b15_the_initial_delay_is_extended_by_joins_and_capped_by_the_rebalance_timeout() {
    let delayed =
        |id: &str| ClassicJoin { initial_rebalance_delay_ms: 3_000, rebalance_timeout_ms: 10_000, ..new_member(id) };
    let mut alone = Shard::with_topics(&[4]);
    alone.join(&delayed("a")).expect("joins");
    alone.pass(2_999);
    assert_eq!(alone.group_state(), GroupState::PreparingRebalance);
    alone.pass(1);
    assert_eq!(alone.group_state(), GroupState::CompletingRebalance);

    let mut shard = Shard::with_topics(&[4]);
    shard.join(&delayed("m0")).expect("joins");
    for i in 1..=4 {
        shard.pass(2_000);
        shard.join(&delayed(&format!("m{i}"))).expect("joins");
        assert_eq!(shard.group_state(), GroupState::PreparingRebalance, "at {} ms", shard.now_ms);
    }
    shard.pass(1_999);
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance);
    shard.pass(1);
    assert_eq!(shard.group_state(), GroupState::CompletingRebalance, "10 s after the first");
    assert_eq!((shard.view().epoch, shard.member_ids().len()), (1, 5));
}

#[test]
fn b16_pending_members_expire_and_keep_within_the_size() {
    let mut shard = Shard::with_topics(&[4]);
    let first = |id: &str| ClassicJoin { require_known_member_id: true, members_max: 2, ..new_member(id) };
    let rejoin = |id: &str| ClassicJoin { members_max: 2, ..rejoin(id) };
    let told = |id: &str| Err(GroupError::MemberIdRequired(id.to_owned()));
    assert_eq!(shard.join(&first("a")), told("a"));
    shard.join(&rejoin("a")).expect("comes back");
    shard.sync_all();
    assert_eq!(shard.join(&first("b")), told("b"));
    assert_eq!(shard.join(&first("c")), told("c"), "a client that may never come back keeps nobody out");
    assert_eq!(
        shard.join(&first("d")),
        Err(GroupError::GroupMaxSizeReached),
        "but there are no more of them than places"
    );
    for _ in 0..5 {
        shard.pass(SESSION_MS / 5);
        shard.classic_beat("a", 1).expect("alive");
    }
    assert_eq!(shard.join(&rejoin("b")), Err(GroupError::UnknownMember), "it came too late");

    assert_eq!(shard.join(&first("d")), told("d"));
    assert_eq!(shard.join(&first("e")), told("e"));
    shard.join(&rejoin("d")).expect("takes the last place");
    shard.join(&rejoin("a")).expect("rejoins");
    assert_eq!(shard.join(&rejoin("e")), Err(GroupError::GroupMaxSizeReached), "who comes last is one too many");
    shard.sync_all();
    assert_eq!(shard.member_ids(), ["a", "d"]);
    assert_eq!(shard.join(&first("f")), Err(GroupError::GroupMaxSizeReached));
}

#[test]
fn b16_while_members_join_the_places_are_for_those_who_have_joined() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    let of_two = |join: ClassicJoin| ClassicJoin { members_max: 2, ..join };
    assert_eq!(shard.join(&of_two(new_member("c"))), Err(GroupError::GroupMaxSizeReached), "stable, and full");
    shard.join(&of_two(with_metadata(rejoin("a"), "more topics"))).expect("rejoins");
    let newcomer = shard.join(&of_two(new_member("c"))).expect("\"b\" has not joined yet");
    assert_eq!(shard.join(&of_two(new_member("d"))), Err(GroupError::GroupMaxSizeReached));
    assert_eq!(shard.join(&of_two(rejoin("b"))), Err(GroupError::GroupMaxSizeReached), "it comes last");
    assert_eq!(shard.member_ids(), ["a", "c"]);
    assert_eq!(shard.joined(&newcomer).generation, 2);
}

#[test]
fn b17_an_unchanged_follower_does_not_rebalance_and_the_leader_does() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    let leader = shard.view().leader.expect("a leader");
    let follower = if leader == "a" { "b" } else { "a" };
    let ticket = shard.join(&rejoin(follower)).expect("rejoins");
    assert!(ticket.ready);
    assert_eq!(shard.joined(&ticket).generation, 1);
    assert_eq!(shard.group_state(), GroupState::Stable);

    shard.join(&with_metadata(rejoin(follower), "another subscription")).expect("rejoins");
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance);
    shard.join(&rejoin(&leader)).expect("rejoins");
    shard.sync_all();
    shard.join(&rejoin(&leader)).expect("rejoins");
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance);
}

#[test]
fn b18_a_static_replacement_in_stable_does_not_rebalance() {
    let mut shard = stable_static_group();
    let generation = shard.view().epoch;
    let ticket = shard.join(&static_member("b2", "two")).expect("takes the place");
    assert!(ticket.ready);
    let result = shard.joined(&ticket);
    assert_eq!((result.generation, result.leader.as_str(), result.skip_assignment), (generation, "a", false));
    assert_eq!(shard.group_state(), GroupState::Stable);
    assert_eq!(shard.synced("b2").expect("inherited").assignment, b"b");

    let ticket = shard.join(&static_member("a2", "one")).expect("takes the leader's place");
    let result = shard.joined(&ticket);
    assert_eq!((result.generation, result.leader.as_str(), result.skip_assignment), (generation, "a2", true));
    assert_eq!(result.members.len(), 2);

    // With other protocols the choice for the next generation changes, so that one must come.
    let other = ClassicJoin {
        protocols: vec![("roundrobin".to_owned(), Vec::new()), ("range".to_owned(), Vec::new())],
        ..static_member("b3", "two")
    };
    shard.join(&other).expect("range is common still");
    assert_eq!(shard.group_state(), GroupState::Stable);
}

#[test]
fn b19_a_stale_duplicate_of_a_static_member_is_fenced_everywhere() {
    let mut shard = stable_static_group();
    let generation = shard.view().epoch;
    shard.join(&static_member("b2", "two")).expect("takes the place");
    let digest = shard.digest();
    let old = |id: &str| ClassicJoin { instance_id: Some("two".to_owned()), ..rejoin(id) };
    assert_eq!(shard.join(&old("b")), Err(GroupError::FencedInstance));
    assert_eq!(
        shard.state.check_sync(GROUP, "b", Some("two"), generation, None, None),
        Err(GroupError::FencedInstance)
    );
    assert_eq!(shard.state.check_heartbeat(GROUP, "b", Some("two"), generation), Err(GroupError::FencedInstance));
    let mut stale = commit("b", generation, 5);
    stale.instance_id = Some("two".to_owned());
    assert_eq!(shard.commit(&stale), Err(GroupError::FencedInstance));
    assert_eq!(shard.leave(&[("b", Some("two"))]).expect("a batch"), [Err(GroupError::FencedInstance)]);
    assert_eq!(shard.digest(), digest);
    // A request of the old process that still waited when it was replaced.
    assert_eq!(shard.state.join_progress(GROUP, "b", generation), JoinProgress::Done(Err(GroupError::FencedInstance)));
    assert_eq!(shard.state.sync_progress(GROUP, "b", generation), SyncProgress::Done(Err(GroupError::FencedInstance)));
}

#[test]
fn b20_a_member_that_never_syncs_is_removed_at_the_rebalance_timeout() {
    let mut shard = Shard::with_topics(&[4]);
    shard.join(&ClassicJoin { initial_rebalance_delay_ms: 1_000, ..new_member("a") }).expect("joins");
    shard.join(&new_member("b")).expect("joins");
    shard.pass(2_000);
    assert_eq!(shard.group_state(), GroupState::CompletingRebalance);
    let leader = shard.view().leader.expect("a leader");
    let silent = if leader == "a" { "b" } else { "a" };
    shard.sync_leader().expect("taken");
    // It heartbeats, but never asks for its assignment.
    for _ in 0..6 {
        shard.pass(9_999);
        shard.classic_beat(silent, 1).expect("alive");
        shard.classic_beat(&leader, 1).expect("alive");
    }
    shard.pass(10);
    assert_eq!(shard.member_ids(), std::slice::from_ref(&leader));
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance, "the others share out what it had");
}

#[test]
fn b21_heartbeats_while_a_rebalance_runs() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    shard.join(&new_member("c")).expect("joins");
    assert_eq!(shard.classic_beat("a", 1), Err(GroupError::RebalanceInProgress));
    for member_id in ["a", "b"] {
        shard.join(&rejoin(member_id)).expect("rejoins");
    }
    assert_eq!(shard.group_state(), GroupState::CompletingRebalance);
    assert_eq!(shard.classic_beat("a", 2), Ok(()));
    assert_eq!(shard.classic_beat("a", 1), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.classic_beat("stranger", 2), Err(GroupError::UnknownMember));
    assert_eq!(shard.sync("a", 1, Vec::new()), Err(GroupError::IllegalGeneration));
}

#[test]
fn b24_a_batch_of_leaves_has_an_outcome_for_each() {
    let mut shard = stable_static_group();
    assert!(matches!(
        shard.join(&ClassicJoin { require_known_member_id: true, ..new_member("p") }),
        Err(GroupError::MemberIdRequired(_))
    ));
    let outcomes = shard.leave(&[
        ("stranger", None),
        ("p", None),
        ("", Some("one")),
        ("", Some("nobody")),
        ("a", None),
        ("b", Some("one")),
        ("wrong", Some("two")),
    ]);
    assert_eq!(
        outcomes.expect("a batch"),
        [
            Err(GroupError::UnknownMember),
            Ok(()),
            Ok(()),
            Err(GroupError::UnknownMember),
            Err(GroupError::UnknownMember),
            Err(GroupError::UnknownMember),
            Err(GroupError::FencedInstance),
        ]
    );
    assert_eq!((shard.member_ids(), shard.group_state()), (vec!["b".to_owned()], GroupState::PreparingRebalance));
    let before = shard.view().epoch;
    assert_eq!(shard.leave(&[("b", None)]).expect("a batch"), [Ok(())]);
    assert_eq!(shard.group_state(), GroupState::Empty);
    assert_eq!(shard.view().epoch, before + 1);
}
