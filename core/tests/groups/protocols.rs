//! One group, two protocols: which calls a group refuses, and when it changes its protocol.

use lockstep_core::GroupError;
use lockstep_core::view::{GroupState, GroupType, SyncProgress};

use crate::harness::{GROUP, Shard, commit, heartbeat, joining, joining_static, new_member, rejoin};

#[test]
fn a_classic_call_on_a_consumer_group_with_members_gets_the_right_error() {
    let mut shard = Shard::with_topics(&[4]);
    shard.beat(&joining_static("a", "one")).expect("joins");
    let digest = shard.digest();
    assert_eq!(shard.join(&new_member("c")), Err(GroupError::InconsistentProtocol));
    assert_eq!(shard.join(&rejoin("a")), Err(GroupError::UnknownMember));
    assert_eq!(shard.sync("a", 1, Vec::new()), Err(GroupError::UnknownMember));
    assert_eq!(shard.state.check_sync(GROUP, "a", None, 1, None, None), Err(GroupError::UnknownMember));
    assert_eq!(shard.state.sync_progress(GROUP, "a", 1), SyncProgress::Done(Err(GroupError::UnknownMember)));
    assert_eq!(shard.classic_beat("a", 1), Err(GroupError::UnknownMember));
    assert_eq!(shard.digest(), digest);
    assert_eq!(shard.leave(&[("", Some("one"))]).expect("a batch"), [Ok(())], "an administrator removes members");
    assert_eq!(shard.group_state(), GroupState::Empty);
}

#[test]
fn a_consumer_call_on_a_classic_group_with_members_gets_the_right_error() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a"]);
    let digest = shard.digest();
    assert_eq!(shard.beat(&joining("c")), Err(GroupError::GroupNotFound));
    assert_eq!(shard.beat(&heartbeat("a", 1)), Err(GroupError::GroupNotFound));
    assert_eq!(shard.propose(&heartbeat("a", 1)), Err(GroupError::GroupNotFound));
    assert_eq!(shard.beat(&heartbeat("a", -1)), Err(GroupError::GroupNotFound));
    assert_eq!(shard.assign(Some("a")), Some(Err(GroupError::GroupNotFound)));
    assert_eq!(shard.digest(), digest);
}

#[test]
fn an_empty_group_changes_its_protocol_and_keeps_its_offsets_and_epoch() {
    let mut shard = Shard::with_topics(&[4]);
    shard.stable_classic_group(&["a"]);
    shard.commit(&commit("a", 1, 5)).expect("taken");
    shard.leave(&[("a", None)]).expect("a batch");
    let emptied = shard.view().epoch;

    let digest = shard.digest();
    assert_eq!(shard.beat(&heartbeat("b", 3)), Err(GroupError::GroupNotFound));
    assert_eq!(shard.join(&rejoin("a")), Err(GroupError::UnknownMember));
    assert_eq!(shard.digest(), digest, "refused calls do not convert");

    shard.enter("b");
    let view = shard.view();
    assert_eq!((view.group_type, view.state), (GroupType::Consumer, GroupState::Stable));
    assert!(view.epoch > emptied);
    assert_eq!(shard.fetched(1, 0), Some(5));

    shard.beat(&heartbeat("b", -1)).expect("leaves");
    let ticket = shard.join(&new_member("c")).expect("joins");
    assert!(shard.joined(&ticket).generation > view.epoch);
    assert_eq!(shard.view().group_type, GroupType::Classic);
    assert_eq!(shard.fetched(1, 0), Some(5));
}

#[test]
fn a_group_of_offsets_takes_either_protocol() {
    for consumer in [true, false] {
        let mut shard = Shard::with_topics(&[4]);
        shard.commit(&commit("", -1, 5)).expect("taken");
        if consumer {
            shard.enter("a");
        } else {
            shard.join(&new_member("a")).expect("joins");
        }
        assert_eq!((shard.fetched(1, 0), shard.member_ids().len()), (Some(5), 1));
    }
}
