//! Committed offsets: who may commit, and what is fetched.

use lockstep_core::op::{ClassicJoin, CommitOffset, ConsumerHeartbeat, DeleteOffsets, ExpireOffsets};
use lockstep_core::view::GroupState;
use lockstep_core::{GroupError, Op, Reply};

use crate::harness::{
    GROUP, SESSION_MS, Shard, commit, commit_of, consuming, heartbeat, joining, new_member, parts, rejoin,
    topic_partitions,
};

#[test]
fn b11_an_epoch_at_or_above_the_one_of_the_assignment_may_commit() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    assert_eq!(shard.commit(&commit_of("a", 1, &[(1, 0), (1, 3)], 5)).expect("taken"), [Ok(()), Ok(())]);
    // "a" moves to epoch 2 and keeps two of its partitions; "b" gets the others in epoch 2.
    shard.enter("b");
    let kept = parts(&shard.beat(&heartbeat("a", 1)).expect("told to revoke").assignment.expect("told"));
    let lost = (0..4).map(|partition| (1, partition)).find(|partition| !kept.contains(partition)).expect("one");
    let kept_one = *kept.first().expect("one");
    shard.commit(&commit_of("a", 1, &[lost], 6)).expect("it may still commit what it is giving up");
    let mut op = heartbeat("a", 1);
    op.owned = Some(topic_partitions(&kept));
    shard.beat(&op).expect("moves on");
    shard.settle(&["a", "b"]);

    shard.commit(&commit_of("a", 1, &[kept_one], 7)).expect("assigned in epoch 1 and never revoked");
    assert_eq!(shard.fetched(1, kept_one.1), Some(7));
    let digest = shard.digest();
    assert_eq!(shard.commit(&commit_of("a", 1, &[lost], 8)), Err(GroupError::StaleMemberEpoch));
    assert_eq!(shard.commit(&commit_of("a", 1, &[kept_one, lost], 8)), Err(GroupError::StaleMemberEpoch));
    assert_eq!(shard.commit(&commit_of("b", 1, &[lost], 8)), Err(GroupError::StaleMemberEpoch));
    assert_eq!(shard.commit(&commit_of("a", 3, &[kept_one], 8)), Err(GroupError::StaleMemberEpoch));
    assert_eq!(shard.commit(&commit_of("stranger", 2, &[kept_one], 8)), Err(GroupError::UnknownMember));
    assert_eq!(shard.commit(&commit("", -1, 8)), Err(GroupError::UnknownMember), "the group has members");
    let mut old = commit("a", 2, 8);
    old.knows_epochs = false;
    assert_eq!(shard.commit(&old), Err(GroupError::UnsupportedVersion));
    assert_eq!(shard.digest(), digest);
    shard.commit(&commit_of("b", 2, &[lost], 9)).expect("its owner commits");
}

#[test]
fn b11_a_classic_member_of_a_consumer_group_commits_by_the_same_rule() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_consumers(&[("a", &[(1, 0), (1, 1), (1, 2), (1, 3)])]);
    shard.enter("n");
    let all = [(1, 0), (1, 1), (1, 2), (1, 3)];
    let joined = shard.join_and_assign(&consuming("a", true, &all)).expect("rejoins");
    let kept: Vec<_> = shard.sync_follower("a", joined.generation).expect("synced").into_iter().collect();
    let lost = all.into_iter().find(|partition| !kept.contains(partition)).expect("one");
    shard.commit(&commit_of("a", 1, &[lost], 5)).expect("it may still commit what it is giving up");
    let joined = shard.join_and_assign(&consuming("a", true, &kept)).expect("rejoins");
    assert_eq!(joined.generation, 2);
    shard.settle(&["n"]);

    shard.commit(&commit_of("a", 1, &kept, 6)).expect("assigned in generation 1 and never revoked");
    let mut old = commit_of("a", 1, &kept, 7);
    old.knows_epochs = false;
    shard.commit(&old).expect("a classic client knows no epochs");
    assert_eq!(shard.fetched(1, kept[0].1), Some(7));
    let digest = shard.digest();
    assert_eq!(shard.commit(&commit_of("a", 1, &[lost], 8)), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.commit(&commit_of("a", 3, &kept, 8)), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.commit(&commit_of("a", -1, &kept, 8)), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.digest(), digest);
}

#[test]
fn b12_a_fetch_of_offsets_is_checked_only_when_it_names_a_member() {
    let mut shard = Shard::with_topics(&[4]);
    assert_eq!(shard.state.check_offset_fetch("no such group", "a", 1), Ok(()));
    shard.enter("a");
    let check = |member_id: &str, epoch: i32| shard.state.check_offset_fetch(GROUP, member_id, epoch);
    assert_eq!(check("", -1), Ok(()));
    assert_eq!(check("a", 1), Ok(()));
    assert_eq!(check("a", 0), Err(GroupError::StaleMemberEpoch));
    assert_eq!(check("a", 2), Err(GroupError::StaleMemberEpoch));
    assert_eq!(check("stranger", 1), Err(GroupError::UnknownMember));
}

#[test]
fn b22_a_commit_waits_for_the_end_of_a_rebalance_and_keeps_the_session_alive() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a", "b"]);
    assert_eq!(shard.commit(&commit("a", 0, 5)), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.commit(&commit("stranger", 1, 5)), Err(GroupError::UnknownMember));
    for _ in 0..4 {
        shard.pass(SESSION_MS / 2);
        shard.classic_beat("b", 1).expect("alive");
        shard.commit(&commit("a", 1, 5)).expect("a commit is a sign of life");
    }
    shard.join(&crate::harness::new_member("c")).expect("joins");
    shard.commit(&commit("a", 1, 6)).expect("it may commit before it rejoins");
    for member_id in ["a", "b"] {
        shard.join(&rejoin(member_id)).expect("rejoins");
    }
    assert_eq!(shard.group_state(), GroupState::CompletingRebalance);
    assert_eq!(shard.commit(&commit("a", 2, 7)), Err(GroupError::RebalanceInProgress));
    shard.sync_all();
    shard.commit(&commit("a", 2, 8)).expect("taken");
    assert_eq!(shard.fetched(1, 0), Some(8));
}

#[test]
fn b23_an_administrator_commits_only_to_an_empty_group() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a"]);
    let digest = shard.digest();
    assert_eq!(shard.commit(&commit("", -1, 5)), Err(GroupError::UnknownMember));
    assert_eq!(shard.digest(), digest);
    shard.leave(&[("a", None)]).expect("a batch");
    shard.commit(&commit("", -1, 5)).expect("the group is empty");
    assert_eq!(shard.fetched(1, 0), Some(5));
}

fn delete_offsets(shard: &mut Shard, partitions: &[(u8, u32)]) -> Result<Vec<Result<(), GroupError>>, GroupError> {
    let topics = topic_partitions(&partitions.iter().copied().collect());
    match shard.apply(&Op::DeleteOffsets(DeleteOffsets { group_id: GROUP.to_owned(), topics })) {
        Reply::Commit(outcome) => outcome,
        other => panic!("not a deletion's reply: {other:?}"),
    }
}

/// Kafka's default of `offsets.retention.minutes`.
const RETENTION_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// The leader looks for what is to expire, and proposes it.
fn expire(shard: &mut Shard) -> bool {
    let now_ms = shard.wall_ms();
    let groups = shard.state.groups_to_expire(now_ms, RETENTION_MS, None, 100).groups;
    let found = !groups.is_empty();
    let reply = shard.apply(&Op::ExpireOffsets(ExpireOffsets { now_ms, retention_ms: RETENTION_MS, groups }));
    assert_eq!(reply, Reply::Done(found));
    found
}

#[test]
fn b25_offsets_of_a_subscribed_topic_are_not_deleted() {
    let mut shard = Shard::with_topics(&[4, 1]);
    assert_eq!(delete_offsets(&mut shard, &[(1, 0)]), Err(GroupError::GroupNotFound));
    shard.enter("a");
    shard.commit(&commit_of("a", 1, &[(1, 0), (2, 0)], 5)).expect("taken");
    let outcomes = delete_offsets(&mut shard, &[(1, 0), (2, 0), (9, 0)]).expect("a batch");
    assert_eq!(outcomes, [Err(GroupError::SubscribedToTopic), Ok(()), Err(GroupError::UnknownPartition)]);
    assert_eq!((shard.fetched(1, 0), shard.fetched(2, 0)), (Some(5), None));
    assert_eq!(delete_offsets(&mut shard, &[(2, 0)]).expect("a batch"), [Ok(())], "nothing to delete is no error");
    shard.beat(&heartbeat("a", -1)).expect("leaves");
    assert_eq!(delete_offsets(&mut shard, &[(1, 0)]).expect("a batch"), [Ok(())]);
    assert_eq!(shard.fetched(1, 0), None);

    let mut classic = Shard::with_topics(&[4, 1]);
    classic.stable_consumers(&[("a", &[(1, 0)])]);
    classic.commit(&commit_of("a", 1, &[(1, 0), (2, 0)], 5)).expect("taken");
    assert_eq!(
        delete_offsets(&mut classic, &[(1, 0), (2, 0)]).expect("a batch"),
        [Err(GroupError::SubscribedToTopic), Ok(())]
    );
    let mut other = Shard::with_topics(&[4]);
    other.join(&ClassicJoin { protocol_type: "connect".to_owned(), ..new_member("w") }).expect("joins");
    assert_eq!(delete_offsets(&mut other, &[(1, 0)]), Err(GroupError::NonEmptyGroup));
}

#[test]
fn b25_offsets_expire_by_what_the_group_is_doing() {
    // Without members: since the commit, when it never had any.
    let mut shard = Shard::with_topics(&[4, 1]);
    let now = |shard: &Shard, mut op: CommitOffset| {
        op.now_ms = shard.wall_ms();
        op
    };
    let op = now(&shard, commit("", -1, 5));
    shard.commit(&op).expect("taken");
    shard.pass(RETENTION_MS - 1);
    assert!(!expire(&mut shard));
    shard.pass(1);
    assert!(expire(&mut shard));
    assert!(shard.state.group(GROUP).is_none(), "nothing is left of the group");

    // With members: only what nobody subscribes to.
    shard.enter("a");
    let op = now(&shard, commit_of("a", 1, &[(1, 0), (2, 0)], 5));
    shard.commit(&op).expect("taken");
    shard.now_ms += RETENTION_MS;
    assert!(expire(&mut shard));
    assert_eq!((shard.fetched(1, 0), shard.fetched(2, 0)), (Some(5), None));

    // While it rebalances: nothing.
    let op = now(&shard, commit_of("a", 1, &[(2, 0)], 6));
    shard.commit(&op).expect("taken");
    shard.now_ms += RETENTION_MS;
    shard.propose(&joining("b")).expect("joins");
    assert_eq!(shard.group_state(), GroupState::Assigning);
    assert!(!expire(&mut shard));

    // Since it became empty, the group itself with its offsets.
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    shard.commit(&commit("a", 1, 5)).expect("taken");
    shard.now_ms += 2 * RETENTION_MS;
    shard.propose(&ConsumerHeartbeat { now_ms: shard.wall_ms(), ..heartbeat("a", -1) }).expect("leaves");
    shard.pass(RETENTION_MS - 1);
    assert!(!expire(&mut shard));
    shard.fail_over();
    shard.pass(1);
    assert!(expire(&mut shard));
    assert!(shard.state.group(GROUP).is_none());

    let mut classic = Shard::with_topics(&[4, 1]);
    classic.stable_consumers(&[("a", &[(1, 0)])]);
    let op = now(&classic, commit_of("a", 1, &[(1, 0), (2, 0)], 5));
    classic.commit(&op).expect("taken");
    classic.now_ms += RETENTION_MS;
    assert!(expire(&mut classic));
    assert_eq!((classic.fetched(1, 0), classic.fetched(2, 0)), (Some(5), None));
}
