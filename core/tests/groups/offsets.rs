//! Committed offsets: who may commit, and what is fetched.

use lockstep_core::op::{CommitOffset, CommitOffsets};
use lockstep_core::view::GroupState;
use lockstep_core::{ClusterStateMachine, GroupError, Op, Position, Reply, ShardId, shard_of_group};

use crate::harness::{GROUP, Shard, commit, commit_of, topic_id};

#[test]
fn what_is_fetched_is_the_last_commit() {
    let mut shard = Shard::with_topics(&[4]);
    assert_eq!(shard.fetched(1, 0), None);
    let mut first = commit("", -1, 10);
    first.offsets[0].metadata = "where I was".to_owned();
    assert_eq!(shard.commit(&first).expect("taken"), [Ok(())]);
    let stored = shard.state.committed_offset(GROUP, topic_id(1), 0).expect("stored");
    assert_eq!((stored.offset, stored.leader_epoch, stored.metadata.as_str()), (10, 1, "where I was"));
    assert_eq!(stored.commit_time_ms, first.now_ms);
    shard.commit(&commit("", -1, 7)).expect("taken");
    assert_eq!(shard.fetched(1, 0), Some(7), "a commit may go back");
    assert_eq!(shard.group_state(), GroupState::Empty);
    assert_eq!(shard.state.groups()[0].protocol_type, "");
}

#[test]
fn each_partition_of_a_commit_has_its_outcome() {
    let mut shard = Shard::with_topics(&[4]);
    let mut request = commit_of("", -1, &[(1, 3), (1, 4), (9, 0), (1, 1), (1, 2)], 5);
    request.offsets[3].metadata = "x".repeat(4_097);
    request.offsets[4].metadata = "ß".repeat(4_096);
    assert_eq!(
        shard.commit(&request).expect("taken"),
        [
            Ok(()),
            Err(GroupError::UnknownPartition),
            Err(GroupError::UnknownPartition),
            Err(GroupError::OffsetMetadataTooLarge),
            Ok(()),
        ]
    );
    assert_eq!((shard.fetched(1, 3), shard.fetched(1, 1), shard.fetched(1, 2)), (Some(5), None, Some(5)));
}

#[test]
fn offsets_go_with_their_topic() {
    let mut shard = Shard::with_topics(&[4, 1]);
    shard.commit(&commit_of("", -1, &[(1, 0), (1, 3), (2, 0)], 5)).expect("taken");
    shard.delete_topic(1);
    assert_eq!(shard.state.committed_offsets(GROUP).len(), 1);
    shard.delete_topic(2);
    assert!(shard.state.group(GROUP).is_none(), "nothing is left of the group");
    let empty = Shard::with_topics(&[4, 1]);
    let mut rebuilt = Shard::with_topics(&[4, 1]);
    rebuilt.commit(&commit_of("", -1, &[(1, 0)], 5)).expect("taken");
    assert_ne!(rebuilt.digest(), empty.digest());
}

#[test]
fn a_member_of_no_group_is_refused() {
    let mut shard = Shard::with_topics(&[4]);
    let digest = shard.digest();
    assert_eq!(shard.commit(&commit("a", 3, 5)), Err(GroupError::GroupNotFound));
    let mut old = commit("a", 3, 5);
    old.knows_epochs = false;
    assert_eq!(shard.commit(&old), Err(GroupError::IllegalGeneration));
    assert_eq!(shard.commit(&commit_of("", -1, &[(9, 9)], 5)).expect("taken"), [Err(GroupError::UnknownPartition)]);
    assert_eq!(shard.digest(), digest);
}

#[test]
fn commits_that_share_an_op_are_answered_one_by_one() {
    let mut shard = Shard::with_topics(&[4]);
    let other = CommitOffset { group_id: "other".to_owned(), ..commit("", -1, 9) };
    let commits = vec![commit("", -1, 5), commit("nobody", 3, 6), other, commit_of("", -1, &[(1, 0), (1, 4)], 7)];
    let Reply::Commits(outcomes) = shard.apply(&Op::CommitOffsets(CommitOffsets { commits })) else {
        panic!("not the commits' reply")
    };
    assert_eq!(
        outcomes,
        [
            Some(Ok(vec![Ok(())])),
            Some(Err(GroupError::UnknownMember)),
            Some(Ok(vec![Ok(())])),
            Some(Ok(vec![Ok(()), Err(GroupError::UnknownPartition)])),
        ]
    );
    assert_eq!(shard.fetched(1, 0), Some(7), "the last one counts");
    assert_eq!(shard.state.committed_offset("other", topic_id(1), 0).map(|offset| offset.offset), Some(9));
}

#[test]
fn a_commit_for_a_group_of_another_shard_spoils_no_other() {
    let group_of = |shard: u16| {
        let mut names = (0..).map(|name| format!("group-{name}"));
        names.find(|name| shard_of_group(name, 2) == ShardId(shard)).expect("there are enough names")
    };
    let mut state = ClusterStateMachine::new(ShardId(0), 2);
    let commits = [1, 0, 1].map(|shard| CommitOffset { group_id: group_of(shard), ..commit("", -1, 5) }).to_vec();
    let applied = state.apply(Position { term: 1, index: 1 }, &Op::CommitOffsets(CommitOffsets { commits }), 0);
    let taken = Some(Ok(vec![Err(GroupError::UnknownPartition)]));
    assert_eq!(applied.expect("no invariant breaks").reply, Reply::Commits(vec![None, taken, None]));
}
