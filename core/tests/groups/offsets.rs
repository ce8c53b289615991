//! Committed offsets: who may commit, and what is fetched.

use lockstep_core::GroupError;
use lockstep_core::view::GroupState;

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
