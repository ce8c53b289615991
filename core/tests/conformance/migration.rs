//! Groups that change their protocol while they have members (KIP-848).

use std::collections::BTreeSet;

use lockstep_core::op::ClassicJoin;
use lockstep_core::view::{GroupState, GroupType, JoinProgress, SyncProgress};
use lockstep_core::{Effect, GroupError};

use crate::harness::{
    GROUP, Parts, REBALANCE_MS, SESSION_MS, Shard, commit, commit_of, consuming, heartbeat, joining, joining_static,
    new_member, owning, parts,
};

const HALVES: [(&str, &[(u8, u32)]); 2] = [("a", &[(1, 0), (1, 1)]), ("b", &[(1, 2), (1, 3)])];

/// Classic consumers "a" and "b" share "t1", and "n" has just come with the consumer protocol.
fn upgraded() -> Shard {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_consumers(&HALVES);
    let reply = shard.enter("n");
    assert_eq!((reply.member_epoch, parts(&reply.assignment.expect("told"))), (2, Parts::new()));
    assert_eq!((shard.view().group_type, shard.view().epoch), (GroupType::Consumer, 2));
    shard
}

/// The classic members of [`upgraded`] do as they are told until all have their partitions.
fn settled() -> Shard {
    let mut shard = upgraded();
    for member_id in ["a", "b"] {
        let joined = shard.join_and_assign(&consuming(member_id, true, &[])).expect("rejoins");
        shard.sync_follower(member_id, joined.generation).expect("synced");
    }
    shard.settle(&["n"]);
    shard
}

fn shared(shard: &Shard) -> Parts {
    let all: Vec<_> = shard.member_ids().iter().flat_map(|member_id| shard.owns(member_id)).collect();
    let distinct: BTreeSet<_> = all.iter().copied().collect();
    assert_eq!(distinct.len(), all.len(), "a partition has two owners");
    distinct
}

#[test]
fn b13_a_stable_classic_group_is_upgraded_and_its_members_go_on_with_the_classic_protocol() {
    let mut shard = upgraded();
    assert!(shard.member("a").speaks_classic && !shard.member("n").speaks_classic);
    assert_eq!(shard.owns("a"), Parts::from([(1, 0), (1, 1)]), "what it had it may keep until it rejoins");
    shard.commit(&commit("a", 1, 5)).expect("it may commit before it rejoins");
    assert_eq!(shard.classic_beat("a", 1), Err(GroupError::RebalanceInProgress));
    assert_eq!(shard.sync_follower("a", 1), Err(GroupError::RebalanceInProgress));

    // An eager member has given up all when it joins.
    let joined = shard.join_and_assign(&consuming("a", true, &[])).expect("rejoins");
    assert_eq!(
        (joined.generation, joined.protocol_type.as_str(), joined.protocol_name.as_str()),
        (2, "consumer", "range")
    );
    assert!(joined.leader.is_empty() && joined.members.is_empty(), "nobody leads");
    let kept = shard.sync_follower("a", 2).expect("synced");
    assert_eq!(kept, shard.owns("a"));
    assert_eq!(shard.classic_beat("a", 2), Ok(()));
    assert_eq!(shard.classic_beat("a", 1), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.sync_follower("a", 1), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.commit(&commit_of("a", 1, &[(1, 3)], 6)), Err(GroupError::IllegalGeneration));
    shared(&shard);

    shard.join_and_assign(&consuming("b", true, &[])).expect("rejoins");
    shard.sync_follower("b", 2).expect("synced");
    shard.settle(&["n"]);
    assert_eq!(shared(&shard).len(), 4);
    assert!(!shard.owns("n").is_empty());
    assert_eq!(shard.fetched(1, 0), Some(5), "offsets stay");
    let digest = shard.digest();
    assert_eq!(
        shard.sync("a", 2, vec![("a".to_owned(), vec![1])]),
        Ok(()),
        "a late leader's assignment counts no more"
    );
    assert_eq!(shard.digest(), digest);
}

#[test]
fn b13_a_classic_group_is_upgraded_while_its_members_join() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_consumers(&HALVES);
    let ticket = shard.join(&consuming("c", false, &[])).expect("joins");
    let again = shard.join(&consuming("a", true, &[])).expect("rejoins");
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance);
    shard.enter("n");
    for ticket in [&ticket, &again] {
        assert_eq!(
            shard.state.join_progress(GROUP, &ticket.member_id, ticket.after_generation),
            JoinProgress::Done(Err(GroupError::RebalanceInProgress)),
            "who waits is to join again"
        );
    }
    for member_id in ["a", "b", "c"] {
        let joined = shard.join_and_assign(&consuming(member_id, true, &[])).expect("rejoins");
        shard.sync_follower(member_id, joined.generation).expect("synced");
    }
    shard.settle(&["n"]);
    for member_id in ["a", "b", "c"] {
        if shard.classic_beat(member_id, 2) == Err(GroupError::RebalanceInProgress) {
            shard.join_and_assign(&consuming(member_id, true, &[])).expect("partitions are free now");
        }
    }
    assert_eq!(shared(&shard).len(), 4);
    assert_eq!(shard.group_state(), GroupState::Stable);
}

#[test]
fn b13_a_classic_group_is_upgraded_while_its_assignment_is_made() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_consumers(&HALVES);
    let tickets = ["a", "b"].map(|member_id| {
        let join = ClassicJoin { require_known_member_id: false, ..consuming(member_id, true, &[(1, 3)]) };
        shard.join(&join).expect("rejoins")
    });
    assert_eq!(shard.group_state(), GroupState::CompletingRebalance);
    assert_eq!(shard.state.sync_progress(GROUP, "b", 2), SyncProgress::Waiting);
    shard.enter("n");
    // What was read before the rebalance may be committed: the client that is refused drops its partitions.
    assert_eq!(shard.commit(&commit("a", 1, 6)), Ok(vec![Ok(())]));
    assert_eq!(shard.commit(&commit("a", 0, 7)), Err(GroupError::IllegalGeneration));
    let rejoin = SyncProgress::Done(Err(GroupError::RebalanceInProgress));
    assert_eq!(shard.state.sync_progress(GROUP, "b", 2), rejoin);
    assert_eq!(shard.sync("a", 2, Vec::new()), Err(GroupError::RebalanceInProgress));
    assert_eq!(shard.view().epoch, 3);
    for ticket in tickets {
        let joined = shard.join_and_assign(&consuming(&ticket.member_id, true, &[])).expect("rejoins");
        shard.sync_follower(&ticket.member_id, joined.generation).expect("synced");
    }
    shard.settle(&["n"]);
    assert_eq!(shared(&shard).len(), 4);
}

#[test]
fn b13_a_cooperative_member_gives_up_partitions_before_it_moves_on() {
    let mut shard = Shard::with_topics(&[4]);
    let all: &[(u8, u32)] = &[(1, 0), (1, 1), (1, 2), (1, 3)];
    shard.stable_consumers(&[("a", all)]);
    shard.enter("n");
    let joined = shard.join_and_assign(&consuming("a", true, all)).expect("rejoins");
    assert_eq!(joined.generation, 1, "it stays in its generation until it has given up what it must");
    let kept = shard.sync_follower("a", 1).expect("synced");
    assert_eq!(kept.len(), 2);
    assert_eq!(shard.classic_beat("a", 1), Err(GroupError::RebalanceInProgress));
    let kept: Vec<_> = kept.into_iter().collect();
    let joined = shard.join_and_assign(&consuming("a", true, &kept)).expect("rejoins");
    assert_eq!(joined.generation, 2);
    assert_eq!(shard.sync_follower("a", 2).expect("synced").into_iter().collect::<Vec<_>>(), kept);
    shard.settle(&["n"]);
    assert_eq!(shared(&shard).len(), 4);
}

#[test]
fn b13_calls_of_the_wrong_protocol_get_the_right_error() {
    let mut shard = settled();
    let digest = shard.digest();
    // The member of the consumer protocol makes classic calls.
    assert_eq!(shard.classic_beat("n", 2), Err(GroupError::UnknownMember));
    assert_eq!(shard.sync_follower("n", 2), Err(GroupError::UnknownMember));
    assert_eq!(shard.join(&consuming("n", true, &[])), Err(GroupError::UnknownMember));
    // A classic member heartbeats as one of the consumer protocol, or speaks something else.
    assert_eq!(shard.beat(&heartbeat("a", 2)), Err(GroupError::UnknownMember));
    assert_eq!(shard.beat(&heartbeat("a", -1)), Err(GroupError::UnknownMember));
    let other_type = ClassicJoin { protocol_type: "connect".to_owned(), ..consuming("a", true, &[]) };
    assert_eq!(shard.join(&other_type), Err(GroupError::InconsistentProtocol));
    assert_eq!(shard.join(&new_member("c")), Err(GroupError::InconsistentProtocol), "metadata that is no subscription");
    let fresh = ClassicJoin { require_known_member_id: true, ..consuming("c", false, &[]) };
    assert_eq!(shard.join(&fresh), Err(GroupError::MemberIdRequired("c".to_owned())));
    let full = ClassicJoin { members_max: 3, ..consuming("c", false, &[]) };
    assert_eq!(shard.join(&full), Err(GroupError::GroupMaxSizeReached));
    assert_eq!(shard.digest(), digest);
    let joined = shard.join_and_assign(&consuming("c", true, &[])).expect("comes back with its id");
    assert_eq!(joined.generation, 3);
}

#[test]
fn b13_an_administrator_removes_members_of_either_protocol() {
    let mut shard = settled();
    shard.beat(&joining_static("s", "one")).expect("joins");
    let digest = shard.digest();
    assert_eq!(
        shard.leave(&[("stranger", None), ("n", Some("one")), ("s", Some("two"))]).expect("a batch"),
        [Err(GroupError::UnknownMember), Err(GroupError::FencedInstance), Err(GroupError::UnknownMember)]
    );
    assert_eq!(shard.digest(), digest);
    assert_eq!(
        shard.leave(&[("n", None), ("b", None)]).expect("a batch"),
        [Ok(()), Ok(())],
        "by member id, whatever it speaks"
    );
    assert_eq!(shard.member_ids(), ["a", "s"]);
}

#[test]
fn b13_a_classic_member_that_waits_joins_again_once_for_all_that_it_waits_for() {
    let mut shard = Shard::with_topics(&[6]);
    shard.enter("m");
    shard.enter("n");
    shard.settle(&["m", "n"]);
    let generation = shard.join_and_assign(&consuming("c", false, &[])).expect("joins").generation;
    assert_eq!(shard.sync_follower("c", generation), Ok(Parts::new()), "the others hold what it is to get");
    let gives_up = |shard: &mut Shard, member_id: &str| {
        let epoch = shard.member(member_id).member_epoch;
        let kept = parts(&shard.beat(&heartbeat(member_id, epoch)).expect("in order").assignment.expect("told"));
        assert_eq!(kept.len(), 2);
        shard.beat(&owning(member_id, epoch, &kept.into_iter().collect::<Vec<_>>())).expect("moves on");
    };
    gives_up(&mut shard, "m");
    assert_eq!(shard.classic_beat("c", generation), Ok(()), "\"n\" holds the other one still");
    gives_up(&mut shard, "n");
    assert_eq!(shard.classic_beat("c", generation), Err(GroupError::RebalanceInProgress));
    shard.join_and_assign(&consuming("c", true, &[])).expect("rejoins");
    assert_eq!(shard.sync_follower("c", generation).expect("synced").len(), 2);
    assert_eq!(shard.group_state(), GroupState::Stable);
}

#[test]
fn b13_a_group_that_is_not_one_of_plain_consumers_is_not_upgraded() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a"]);
    let digest = shard.digest();
    assert_eq!(shard.beat(&joining("n")), Err(GroupError::GroupNotFound), "its members' bytes are no subscriptions");
    let mut custom = Shard::with_topics(&[4]);
    custom.stable_consumers(&HALVES);
    let mut bytes = crate::harness::assignment(&Parts::from([(1, 0)]));
    let end = bytes.len() - 4;
    bytes.splice(end.., [0, 0, 0, 1, 7]);
    custom.join(&consuming("a", true, &[])).expect("the leader rejoins");
    custom.join(&consuming("b", true, &[])).expect("rejoins");
    custom.sync("a", 2, vec![("a".to_owned(), bytes)]).expect("taken");
    let before = custom.digest();
    assert_eq!(custom.beat(&joining("n")), Err(GroupError::GroupNotFound), "a custom assignor's data would be lost");
    assert_eq!((custom.digest(), shard.digest()), (before, digest));
}

#[test]
fn b13_what_sticky_assignors_put_beside_an_assignment_does_not_stop_an_upgrade() {
    let halves = [("a", Parts::from([(1, 0), (1, 1)])), ("b", Parts::from([(1, 2), (1, 3)]))];
    // With "range" it could only be a custom assignor of that name.
    for (assignor, is_upgraded) in [("cooperative-sticky", true), ("sticky", true), ("range", false)] {
        let mut shard = Shard::with_topics(&[4]);
        for (member_id, _) in &halves {
            let mut join = consuming(member_id, false, &[]);
            join.protocols[0].0 = assignor.to_owned();
            shard.join(&ClassicJoin { initial_rebalance_delay_ms: 3_000, ..join }).expect("joins");
        }
        shard.pass(6_000);
        let with_user_data = |parts: &Parts| {
            let mut bytes = crate::harness::assignment(parts);
            let end = bytes.len() - 4;
            bytes.splice(end.., [0, 0, 0, 2, 7, 7]);
            bytes
        };
        let assignments =
            halves.iter().map(|(member_id, parts)| ((*member_id).to_owned(), with_user_data(parts))).collect();
        let view = shard.view();
        shard.sync(&view.leader.expect("a leader"), view.epoch, assignments).expect("taken");

        let outcome = shard.beat(&joining("n"));
        assert_eq!(outcome.is_ok(), is_upgraded, "{assignor}: {outcome:?}");
        if is_upgraded {
            assert_eq!(shard.view().group_type, GroupType::Consumer);
            for (member_id, parts) in &halves {
                assert_eq!(&shard.owns(member_id), parts, "{assignor}: what it had it may keep until it rejoins");
            }
        } else {
            assert_eq!(shard.view().group_type, GroupType::Classic);
        }
    }
}

#[test]
fn b13_a_classic_member_is_timed_as_it_asked_and_must_rejoin_in_time() {
    let mut shard = upgraded();
    // "a" and "b" heartbeat and never rejoin.
    for _ in 0..5 {
        shard.pass(REBALANCE_MS / 6);
        for member_id in ["a", "b"] {
            assert_eq!(shard.classic_beat(member_id, 1), Err(GroupError::RebalanceInProgress));
        }
        shard.beat_each(&["n"]);
    }
    assert_eq!(shard.member_ids(), ["a", "b", "n"]);
    shard.pass(REBALANCE_MS / 6 + 1);
    assert_eq!(shard.member_ids(), ["n"], "the time to rejoin is over");
    shard.settle(&["n"]);
    assert_eq!(shard.owns("n").len(), 4);

    let mut shard = settled();
    shard.pass(SESSION_MS / 2);
    shard.classic_beat("a", 2).expect("alive");
    shard.beat_each(&["n"]);
    shard.pass(SESSION_MS / 2 + 1);
    assert_eq!(shard.member_ids(), ["a", "n"], "\"b\" was silent for its session");
}

#[test]
fn b13_a_classic_member_that_never_syncs_is_removed() {
    let mut shard = settled();
    let joined = shard.join_and_assign(&consuming("a", true, &[])).expect("rejoins");
    for _ in 0..7 {
        shard.pass(REBALANCE_MS / 6);
        for member_id in ["a", "b"] {
            let _ = shard.classic_beat(member_id, joined.generation);
        }
        shard.beat_each(&["n"]);
    }
    assert!(shard.find_member("a").is_none());
    assert!(shard.find_member("b").is_some());
}

/// "n" has the only partition; the classic consumer "c" comes to its group and waits for one.
fn with_classic_newcomer() -> (Shard, i32) {
    let mut shard = Shard::with_topics(&[1]);
    shard.enter("n");
    let joined = shard.join_and_assign(&consuming("c", false, &[])).expect("joins");
    shard.settle(&["n"]);
    assert_eq!((shard.view().group_type, shard.owns("c")), (GroupType::Consumer, Parts::new()));
    (shard, joined.generation)
}

fn alive_for_longer_than_a_rebalance(shard: &mut Shard, generation: i32) {
    for _ in 0..7 {
        shard.pass(REBALANCE_MS / 6);
        let _ = shard.classic_beat("c", generation);
        shard.beat_each(&["n"]);
    }
}

#[test]
fn b13_a_classic_member_that_is_new_and_never_syncs_is_removed() {
    let (mut shard, generation) = with_classic_newcomer();
    shard.pass(REBALANCE_MS / 2);
    shard.classic_beat("c", generation).expect("alive");
    shard.beat_each(&["n"]);
    assert!(shard.find_member("c").is_some(), "it has time left");
    alive_for_longer_than_a_rebalance(&mut shard, generation);
    assert_eq!(shard.member_ids(), ["n"]);
}

#[test]
fn b13_a_classic_member_that_has_synced_stays_also_with_a_new_leader() {
    let (mut shard, generation) = with_classic_newcomer();
    shard.sync_follower("c", generation).expect("synced");
    alive_for_longer_than_a_rebalance(&mut shard, generation);
    assert_eq!(shard.member_ids(), ["c", "n"]);
    shard.fail_over();
    alive_for_longer_than_a_rebalance(&mut shard, generation);
    assert_eq!(shard.member_ids(), ["c", "n"], "the new leader cannot know of the SyncGroup");
}

#[test]
fn b13_a_classic_member_must_rejoin_in_time_once_another_member_has_freed_its_partition() {
    let mut shard = Shard::with_topics(&[2]);
    shard.enter("n");
    let joined = shard.join_and_assign(&consuming("c", false, &[])).expect("joins");
    let generation = joined.generation;
    assert_eq!(shard.sync_follower("c", generation), Ok(Parts::new()), "\"n\" holds both");
    for _ in 0..7 {
        shard.pass(REBALANCE_MS / 8);
        shard.classic_beat("c", generation).expect("there is nothing to get yet");
        let _ = shard.beat(&owning("n", 1, &[(1, 0), (1, 1)]));
    }
    let kept = *shard.owns("n").first().expect("one is kept");
    shard.beat(&owning("n", 1, &[kept])).expect("the other one is given up");
    assert_eq!(shard.classic_beat("c", generation), Err(GroupError::RebalanceInProgress));
    alive_for_longer_than_a_rebalance(&mut shard, generation);
    assert_eq!(shard.member_ids(), ["n"], "it never came for its partition");
}

#[test]
fn b13_a_static_member_is_replaced_by_a_process_of_the_other_protocol() {
    let mut shard = Shard::with_topics(&[4]);
    let one = |id: &str| ClassicJoin { instance_id: Some("one".to_owned()), ..consuming(id, false, &[]) };
    shard.join(&one("a")).expect("joins");
    shard
        .sync("a", 1, vec![("a".to_owned(), crate::harness::assignment(&Parts::from([(1, 0), (1, 1)])))])
        .expect("taken");
    let reply = shard.beat(&joining_static("n", "one")).expect("takes over");
    assert_eq!(shard.view().group_type, GroupType::Consumer);
    assert_eq!(shard.member_ids(), ["n"]);
    assert_eq!(parts(&reply.assignment.expect("told")).len(), 4);
    assert_eq!(shard.state.join_progress(GROUP, "a", 1), JoinProgress::Done(Err(GroupError::FencedInstance)));
}

/// Both classic members rejoin, the leader assigns, and the group is at rest in this generation.
fn goes_on_as_classic(shard: &mut Shard, generation: i32) {
    assert_eq!(shard.view().group_type, GroupType::Classic);
    for member_id in ["a", "b"] {
        shard.join(&consuming(member_id, true, &[])).expect("rejoins");
    }
    assert_eq!((shard.group_state(), shard.view().epoch), (GroupState::CompletingRebalance, generation));
    shard.sync_all();
    assert_eq!(shard.classic_beat("a", generation), Ok(()));
}

#[test]
fn b14_a_group_becomes_classic_when_the_last_member_of_the_consumer_protocol_leaves() {
    let mut shard = settled();
    shard.commit(&commit("a", 2, 7)).expect("taken");
    shard.beat(&heartbeat("n", -1)).expect("leaves");
    assert_eq!(shard.group_state(), GroupState::PreparingRebalance);
    assert!(!shard.effects.iter().any(|effect| matches!(effect, Effect::AssignmentNeeded { .. })));
    assert_eq!(shard.view().epoch, 2, "nobody was told another epoch");
    for member_id in ["a", "b"] {
        let told = shard.classic_beat(member_id, 2);
        assert_eq!(told, Err(GroupError::RebalanceInProgress), "it keeps its partitions until it joins");
    }
    goes_on_as_classic(&mut shard, 3);
    assert_eq!(shard.fetched(1, 0), Some(7), "offsets stay");

    let mut shard = settled();
    shard.enter("n2");
    shard.beat(&heartbeat("n", -1)).expect("leaves");
    assert_eq!(shard.view().group_type, GroupType::Consumer, "not the last one");
}

#[test]
fn b14_a_group_becomes_classic_when_the_last_member_of_the_consumer_protocol_times_out() {
    let mut shard = settled();
    for _ in 0..2 {
        shard.pass(SESSION_MS / 2 + 1);
        for member_id in ["a", "b"] {
            let _ = shard.classic_beat(member_id, 2);
        }
    }
    assert_eq!(shard.member_ids(), ["a", "b"]);
    assert_eq!(shard.classic_beat("a", 2), Err(GroupError::RebalanceInProgress));
    goes_on_as_classic(&mut shard, 3);
}

#[test]
fn b14_a_group_becomes_classic_when_the_last_member_of_the_consumer_protocol_is_removed() {
    let mut shard = settled();
    assert_eq!(shard.leave(&[("n", None), ("b", None)]).expect("a batch"), [Ok(()), Ok(())]);
    assert_eq!((shard.view().group_type, shard.view().epoch), (GroupType::Classic, 2));
    assert_eq!(shard.classic_beat("a", 2), Err(GroupError::RebalanceInProgress));
    shard.join(&consuming("a", true, &[])).expect("rejoins");
    shard.sync_all();
    assert_eq!(shard.classic_beat("a", 3), Ok(()));
}

#[test]
fn b14_a_join_that_waits_is_part_of_the_first_rebalance_after_the_downgrade() {
    let mut shard = settled();
    // "c" comes, and before its assignment is there the last member of the consumer protocol goes.
    let ticket = shard.join(&consuming("c", false, &[])).expect("joins");
    shard.beat(&heartbeat("n", -1)).expect("leaves");
    assert_eq!(shard.view().group_type, GroupType::Classic);
    let progress = |shard: &Shard| shard.state.join_progress(GROUP, "c", ticket.after_generation);
    assert_eq!(progress(&shard), JoinProgress::Waiting);
    goes_on_as_classic(&mut shard, 4);
    assert!(matches!(progress(&shard), JoinProgress::Done(Ok(_))));
}

#[test]
fn b14_a_group_becomes_classic_when_the_last_member_of_the_consumer_protocol_is_replaced() {
    let mut shard = Shard::with_topics(&[4]);
    shard.beat(&joining_static("n", "one")).expect("joins");
    let mut join = consuming("b", false, &[]);
    shard.join_and_assign(&join).expect("joins");
    let kept: Vec<_> =
        parts(&shard.beat(&heartbeat("n", 1)).expect("told").assignment.expect("told")).into_iter().collect();
    shard.beat(&owning("n", 1, &kept)).expect("moves on");
    assert_eq!(shard.classic_beat("b", 2), Err(GroupError::RebalanceInProgress), "partitions are free");
    join = consuming("b", true, &[]);
    let generation = shard.join_and_assign(&join).expect("rejoins").generation;
    assert_eq!(shard.sync_follower("b", generation).expect("synced").len(), 2);
    assert_eq!(shard.group_state(), GroupState::Stable);

    // A classic process with the same instance id takes over; everybody is where it should be, so nobody has to move.
    let replacement = ClassicJoin { instance_id: Some("one".to_owned()), ..consuming("a", false, &[]) };
    let joined = shard.join_and_assign(&replacement).expect("takes over");
    assert_eq!((shard.view().group_type, shard.group_state()), (GroupType::Classic, GroupState::Stable));
    assert_eq!(joined.generation, generation);
    let synced = shard.synced("a").expect("synced");
    assert_eq!(crate::harness::assigned(&synced.assignment).into_iter().collect::<Vec<_>>(), kept);
    assert_eq!(shard.classic_beat("b", generation), Ok(()), "members that are not concerned go on");
    assert_eq!(shard.beat(&heartbeat("n", 2)), Err(GroupError::GroupNotFound));
}

#[test]
fn b14_a_replacement_that_subscribes_to_something_else_makes_the_others_join_again_and_nothing_more() {
    let mut shard = Shard::with_topics(&[4, 1]);
    shard.beat(&joining_static("n", "one")).expect("joins");
    let generation = shard.join_and_assign(&consuming("b", false, &[])).expect("joins").generation;
    shard.sync_follower("b", generation).expect("synced");
    let other = vec![("range".to_owned(), crate::harness::subscription(&[1, 2], &Parts::new()))];
    let replacement =
        ClassicJoin { instance_id: Some("one".to_owned()), protocols: other, ..consuming("a", false, &[]) };
    let ticket = shard.join(&replacement).expect("takes over");
    assert_eq!((shard.view().group_type, shard.view().epoch), (GroupType::Classic, generation));
    assert_eq!(shard.classic_beat("b", generation), Err(GroupError::RebalanceInProgress));
    shard.join(&consuming("b", true, &[])).expect("rejoins");
    assert_eq!(shard.joined(&ticket).generation, generation + 1);
}

#[test]
fn migration_survives_a_new_leader_from_a_snapshot() {
    let mut shard = upgraded();
    shard.join(&consuming("a", true, &[])).expect("rejoins");
    shard.fail_over();
    shard.join_and_assign(&consuming("b", true, &[])).expect("rejoins");
    shard.settle(&["n"]);
    shard.fail_over();
    shard.beat(&heartbeat("n", -1)).expect("leaves");
    shard.fail_over();
    assert_eq!(shard.classic_beat("a", 2), Err(GroupError::RebalanceInProgress));
    goes_on_as_classic(&mut shard, 3);
}
