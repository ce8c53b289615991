//! The consumer protocol (KIP-848): epochs, reconciliation, static members.

use lockstep_core::op::ConsumerHeartbeat;
use lockstep_core::view::{GroupState, HeartbeatCheck};
use lockstep_core::{Effect, GroupError};

use crate::harness::{
    GROUP, Parts, SESSION_MS, Shard, epoch, heartbeat, joining, joining_static, parts, topics, two_members,
};

#[test]
fn a_first_member_gets_everything_with_its_first_answer() {
    let mut shard = Shard::with_topics(&[3]);
    let reply = shard.enter("a");
    assert_eq!(reply.member_epoch, 1);
    assert_eq!(reply.heartbeat_interval_ms, 5_000);
    assert_eq!(parts(&reply.assignment.expect("told")), Parts::from([(1, 0), (1, 1), (1, 2)]));
    assert_eq!(shard.group_state(), GroupState::Stable);
}

#[test]
fn a_static_member_that_does_not_come_back_goes_at_its_session_timeout() {
    let mut shard = Shard::with_topics(&[4]);
    shard.beat(&joining_static("a", "one")).expect("joins");
    let mut away = heartbeat("a", -2);
    away.instance_id = Some("one".to_owned());
    shard.beat(&away).expect("goes");
    let before = shard.view().epoch;
    shard.pass(SESSION_MS - 1);
    assert_eq!(shard.member_ids(), ["a"]);
    shard.pass(1);
    assert_eq!(shard.group_state(), GroupState::Empty);
    assert_eq!(shard.view().epoch, before + 1);
}

#[test]
fn a_retried_join_makes_no_ghost_and_no_further_epoch() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    let view = shard.view();
    let reply = shard.enter("a");
    assert_eq!(reply.member_epoch, 1);
    assert_eq!(reply.assignment.map(|told| parts(&told).len()), Some(4));
    assert_eq!(shard.view(), view);
}

#[test]
fn a_full_group_takes_nobody_in_but_keeps_who_is_there() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    let full = |member_id: &str| ConsumerHeartbeat { members_max: 1, ..joining(member_id) };
    assert_eq!(shard.beat(&full("b")), Err(GroupError::GroupMaxSizeReached));
    assert_eq!(shard.beat(&full("a")).expect("known").member_epoch, 1);
}

#[test]
fn a_topic_that_grows_or_goes_gives_its_subscribers_a_new_epoch_and_nobody_else() {
    let mut shard = Shard::with_topics(&[2, 2]);
    shard.enter("a");
    shard.add_partitions(2, 4);
    assert_eq!(shard.view().epoch, 1, "nobody subscribes to it");
    shard.add_partitions(1, 3);
    assert_eq!(shard.view().epoch, 2);
    assert!(shard.effects.contains(&Effect::AssignmentNeeded { group_id: GROUP.to_owned() }));
    assert_eq!(shard.group_state(), GroupState::Assigning);
    shard.assign(None);
    shard.settle(&["a"]);
    assert_eq!(shard.owns("a").len(), 3);
    shard.delete_topic(1);
    shard.assign(None);
    shard.settle(&["a"]);
    assert!(shard.owns("a").is_empty());
    shard.create_named(7, "t1", 5);
    shard.assign(None);
    shard.settle(&["a"]);
    assert_eq!(shard.owns("a").len(), 5, "a topic of that name exists again");
}

#[test]
fn a_changed_subscription_is_answered_with_the_new_assignment() {
    let mut shard = Shard::with_topics(&[2, 3]);
    shard.enter("a");
    let mut op = heartbeat("a", 1);
    op.subscribed_topic_names = Some(topics(&[2, 1, 2]));
    let reply = shard.beat(&op).expect("in order");
    assert_eq!(reply.member_epoch, 2);
    assert_eq!(parts(&reply.assignment.expect("told")).len(), 5);
    op.member_epoch = 2;
    op.subscribed_topic_names = Some(topics(&[1, 2]));
    assert_eq!(
        shard.state.check_consumer_heartbeat(&op),
        HeartbeatCheck::Answer(Ok(lockstep_core::reply::HeartbeatReply { assignment: None, ..reply_of(&shard) }))
    );
}

fn reply_of(shard: &Shard) -> lockstep_core::reply::HeartbeatReply {
    shard.state.heartbeat_reply(GROUP, "a").expect("a member")
}

#[test]
fn a_heartbeat_that_changes_nothing_needs_no_op() {
    let mut shard = two_members();
    let digest = shard.digest();
    for member_id in ["a", "b"] {
        let now = epoch(&shard, member_id);
        let HeartbeatCheck::Answer(Ok(reply)) = shard.state.check_consumer_heartbeat(&heartbeat(member_id, now)) else {
            panic!("it is answered from the state");
        };
        assert_eq!((reply.member_epoch, reply.assignment), (now, None));
    }
    // And what was answered is what the op would have said.
    let now = epoch(&shard, "a");
    let reply = shard.propose(&heartbeat("a", now)).expect("in order");
    assert_eq!((reply.member_epoch, reply.assignment, reply.assignment_due), (now, None, false));
    assert_ne!(shard.digest(), digest, "the op counts as a sign of life");
}

#[test]
fn what_a_member_reported_with_its_request_counts_when_the_assignment_is_there() {
    // A static member comes back with nothing in its hands while a target is due that takes everything from it.
    let mut shard = Shard::with_topics(&[1, 1]);
    let join = |member_id: &str| ConsumerHeartbeat {
        subscribed_topic_names: Some(topics(&[1, 2])),
        ..joining_static(member_id, "one")
    };
    shard.beat(&join("a")).expect("joins");
    let mut away = heartbeat("a", -2);
    away.instance_id = Some("one".to_owned());
    shard.beat(&away).expect("goes");
    let mut back = join("a2");
    back.subscribed_topic_names = Some(Vec::new());
    let reply = shard.beat(&back).expect("comes back");
    assert_eq!((reply.member_epoch, reply.assignment), (shard.view().epoch, Some(Vec::new())));
    assert_eq!(shard.group_state(), GroupState::Stable, "nothing is left to revoke");
}

#[test]
fn members_that_a_rebalance_does_not_touch_keep_their_partitions() {
    let mut shard = Shard::with_topics(&[4, 2]);
    shard.enter("a");
    shard.settle(&["a"]);
    let owned = shard.owns("a");
    let other = ConsumerHeartbeat { subscribed_topic_names: Some(topics(&[2])), ..joining("b") };
    assert_eq!(parts(&shard.beat(&other).expect("joins").assignment.expect("told")).len(), 2);
    let reply = shard.beat(&heartbeat("a", 1)).expect("in order");
    assert_eq!((reply.member_epoch, reply.assignment), (2, None));
    assert_eq!(shard.owns("a"), owned);
}

#[test]
fn a_leaving_member_frees_its_partitions_for_the_others() {
    let mut shard = two_members();
    let before = shard.view().epoch;
    assert_eq!(shard.beat(&heartbeat("b", -1)).expect("leaves").member_epoch, -1);
    assert_eq!(shard.view().epoch, before + 1);
    assert!(shard.effects.contains(&Effect::AssignmentNeeded { group_id: GROUP.to_owned() }));
    shard.assign(None);
    shard.settle(&["a"]);
    assert_eq!(shard.owns("a").len(), 4);
    assert_eq!(shard.beat(&heartbeat("b", -1)), Err(GroupError::UnknownMember));
    shard.beat(&heartbeat("a", -1)).expect("leaves");
    let emptied = shard.view();
    assert_eq!(emptied.state, GroupState::Empty);
    shard.enter("a");
    assert!(shard.view().epoch > emptied.epoch, "epochs go on in a group that was empty");
}

#[test]
fn what_a_member_is_giving_up_is_shown_until_it_has() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    shard.enter("b");
    shard.beat(&heartbeat("a", 1)).expect("told to revoke");
    let revoking = |shard: &Shard| parts(&shard.member("a").revoking);
    assert_eq!((shard.owns("a").len(), revoking(&shard).len()), (2, 2));
    assert!(shard.owns("a").is_disjoint(&revoking(&shard)));
    shard.settle(&["a", "b"]);
    assert_eq!(revoking(&shard).len(), 0);
}

#[test]
fn an_epoch_survives_a_new_leader_and_a_snapshot() {
    let mut shard = two_members();
    let before = shard.view();
    shard.fail_over();
    assert_eq!(shard.view(), before);
    let now = epoch(&shard, "a");
    assert!(matches!(shard.state.check_consumer_heartbeat(&heartbeat("a", now)), HeartbeatCheck::Answer(Ok(_))));
    shard.enter("c");
    assert_eq!(shard.view().epoch, before.epoch + 1);
}
