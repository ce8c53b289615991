//! The consumer protocol (KIP-848): epochs, reconciliation, static members.

use lockstep_core::GroupError;
use lockstep_core::op::ConsumerHeartbeat;
use lockstep_core::view::{GroupState, HeartbeatCheck};

use crate::harness::{
    GROUP, REBALANCE_MS, Shard, epoch, heartbeat, joining, joining_static, owning, parts, topic_partitions, two_members,
};

#[test]
fn b01_an_epoch_above_the_known_one_is_fenced() {
    let mut shard = two_members();
    let digest = shard.digest();
    let op = heartbeat("a", epoch(&shard, "a") + 1);
    assert_eq!(shard.state.check_consumer_heartbeat(&op), HeartbeatCheck::Answer(Err(GroupError::FencedMemberEpoch)));
    assert_eq!(shard.propose(&op), Err(GroupError::FencedMemberEpoch));
    assert_eq!(shard.digest(), digest);
}

#[test]
fn b02_the_previous_epoch_is_accepted_only_from_a_member_that_owns_a_part_of_its_assignment() {
    let mut shard = Shard::with_topics(&[4]);
    shard.enter("a");
    shard.enter("b");
    // "a" gives up two partitions; the answer with its new epoch is lost.
    let kept = parts(&shard.beat(&heartbeat("a", 1)).expect("told to revoke").assignment.expect("told"));
    assert_eq!(kept.len(), 2);
    let mut op = heartbeat("a", 1);
    op.owned = Some(topic_partitions(&kept));
    assert_eq!(shard.beat(&op).expect("moves on").member_epoch, 2);

    let again = shard.beat(&op).expect("the lost answer is given again");
    assert_eq!((again.member_epoch, again.assignment.map(|told| parts(&told))), (2, Some(kept)));
    let all: Vec<(u8, u32)> = (0..4).map(|partition| (1, partition)).collect();
    assert_eq!(shard.beat(&owning("a", 1, &all)), Err(GroupError::FencedMemberEpoch));
    assert_eq!(shard.beat(&heartbeat("a", 1)), Err(GroupError::FencedMemberEpoch), "it does not say what it owns");
}

#[test]
fn b03_a_fenced_member_rejoins_with_epoch_0_and_keeps_its_place() {
    let mut shard = two_members();
    let (before, owned) = (shard.view().epoch, shard.owns("a"));
    assert_eq!(shard.beat(&heartbeat("a", 99)), Err(GroupError::FencedMemberEpoch));
    let reply = shard.enter("a");
    assert_eq!(reply.member_epoch, before);
    assert_eq!(parts(&reply.assignment.expect("told")), owned);
    assert_eq!(shard.view().epoch, before, "nothing changed for the others");
}

#[test]
fn b04_an_epoch_from_an_unknown_member_is_refused_as_such() {
    let mut shard = two_members();
    assert_eq!(shard.beat(&heartbeat("stranger", 1)), Err(GroupError::UnknownMember));
    assert_eq!(shard.propose(&heartbeat("stranger", 1)), Err(GroupError::UnknownMember));
    let mut op = heartbeat("a", 1);
    op.group_id = "no such group".to_owned();
    assert_eq!(shard.beat(&op), Err(GroupError::GroupNotFound));
}

#[test]
fn b05_partitions_are_revoked_before_they_are_assigned_and_never_have_two_owners() {
    let mut shard = Shard::with_topics(&[6]);
    shard.enter("a");
    assert_eq!(shard.enter("b").assignment, Some(Vec::new()), "everything is still with a");
    assert_eq!(shard.enter("c").assignment, Some(Vec::new()));
    let told = shard.beat(&heartbeat("a", 1)).expect("told to revoke");
    assert_eq!(told.member_epoch, 1, "it stays at its epoch until it has revoked");
    let kept = parts(&told.assignment.expect("told"));
    assert_eq!(kept.len(), 2);
    assert_eq!(shard.group_state(), GroupState::Reconciling);

    // As long as "a" has not said so, nobody gets its partitions.
    for member_id in ["b", "c", "a"] {
        let now = epoch(&shard, member_id);
        shard.beat(&heartbeat(member_id, now)).expect("in order");
    }
    assert!(shard.owns("b").is_empty() && shard.owns("c").is_empty());

    let mut op = heartbeat("a", 1);
    op.owned = Some(topic_partitions(&kept));
    assert_eq!(shard.beat(&op).expect("moves on").member_epoch, 3);
    shard.settle(&["a", "b", "c"]);
    let owned = ["a", "b", "c"].map(|member_id| shard.owns(member_id));
    assert!(owned.iter().all(|owned| owned.len() == 2), "{owned:?}");
    assert_eq!(owned.iter().flatten().count(), owned.iter().flatten().collect::<std::collections::BTreeSet<_>>().len());
}

#[test]
fn b06_a_partition_that_comes_back_while_it_is_revoked_is_not_owned_twice() {
    let mut shard = Shard::with_topics(&[2]);
    shard.enter("a");
    shard.enter("b");
    let kept = parts(&shard.beat(&heartbeat("a", 1)).expect("told to revoke").assignment.expect("told"));
    assert_eq!(kept.len(), 1);
    // "b" leaves: the target of "a" has both partitions again, while it is still giving one up.
    shard.beat(&heartbeat("b", -1)).expect("leaves");
    shard.assign(None);
    let reply = shard.beat(&heartbeat("a", 1)).expect("still revoking");
    assert_eq!((reply.member_epoch, reply.assignment), (1, None));
    assert_eq!(shard.owns("a"), kept, "what it was asked to give up is not handed to it meanwhile");
    // A third member joins: the partition is owed to nobody else before "a" has answered.
    assert_eq!(shard.enter("c").assignment, Some(Vec::new()));
    let mut op = heartbeat("a", 1);
    op.owned = Some(topic_partitions(&kept));
    shard.beat(&op).expect("has revoked");
    shard.settle(&["a", "c"]);
    assert_eq!((shard.owns("a").len(), shard.owns("c").len()), (1, 1));
}

#[test]
fn b07_the_time_to_revoke_ends_with_the_acknowledgement() {
    let revoking = || {
        let mut shard = Shard::with_topics(&[2]);
        shard.enter("a");
        shard.enter("b");
        let kept = parts(&shard.beat(&heartbeat("a", 1)).expect("told to revoke").assignment.expect("told"));
        (shard, kept)
    };
    let keep_alive = |shard: &mut Shard, members: &[&str]| {
        for _ in 0..(REBALANCE_MS / 10_000 + 1) {
            shard.pass(10_000);
            for member_id in members {
                let now = shard.find_member(member_id).map(|member| member.member_epoch);
                if let Some(now) = now {
                    shard.beat(&heartbeat(member_id, now)).expect("in order");
                }
            }
        }
    };

    let (mut shard, _) = revoking();
    keep_alive(&mut shard, &["a", "b"]);
    assert_eq!(shard.member_ids(), ["b"], "heartbeats do not buy time for a revocation");

    let (mut shard, kept) = revoking();
    let mut op = heartbeat("a", 1);
    op.owned = Some(topic_partitions(&kept));
    shard.beat(&op).expect("has revoked");
    keep_alive(&mut shard, &["a", "b"]);
    assert_eq!(shard.member_ids(), ["a", "b"]);
}

#[test]
fn b08_a_static_member_goes_for_a_while_without_a_new_epoch_and_its_replacement_inherits() {
    let mut shard = Shard::with_topics(&[4]);
    shard.beat(&joining_static("a", "one")).expect("joins");
    shard.enter("b");
    shard.settle(&["a", "b"]);
    let (before, owned) = (shard.view().epoch, shard.owns("a"));
    let mut away = heartbeat("a", -2);
    away.instance_id = Some("one".to_owned());
    assert_eq!(shard.beat(&away).expect("goes").member_epoch, -2);
    assert_eq!(shard.view().epoch, before);
    shard.beat_each(&["b"]);
    assert_eq!(shard.owns("b").len(), 2, "its partitions wait for it");

    let reply = shard.beat(&joining_static("a2", "one")).expect("takes its place");
    assert_eq!(reply.member_epoch, before);
    assert_eq!(parts(&reply.assignment.expect("told")), owned);
    assert_eq!((shard.view().epoch, shard.member_ids()), (before, vec!["a2".to_owned(), "b".to_owned()]));
    assert_eq!(shard.beat(&heartbeat("a", before)), Err(GroupError::UnknownMember));
}

#[test]
fn b09_an_instance_id_belongs_to_one_member() {
    let mut shard = Shard::with_topics(&[4]);
    shard.beat(&joining_static("a", "one")).expect("joins");
    let digest = shard.digest();
    assert_eq!(shard.beat(&joining_static("thief", "one")), Err(GroupError::UnreleasedInstance));
    let mut op = heartbeat("thief", 1);
    op.instance_id = Some("one".to_owned());
    assert_eq!(shard.beat(&op), Err(GroupError::FencedInstance));
    let mut leave = heartbeat("thief", -1);
    leave.instance_id = Some("one".to_owned());
    assert_eq!(shard.beat(&leave), Err(GroupError::FencedInstance));
    let mut unknown = heartbeat("a", 1);
    unknown.instance_id = Some("two".to_owned());
    assert_eq!(shard.beat(&unknown), Err(GroupError::UnknownMember), "nobody has this instance id: it is to join anew");
    unknown.member_epoch = -1;
    assert_eq!(shard.beat(&unknown), Err(GroupError::UnknownMember));
    assert_eq!(shard.digest(), digest);
}

#[test]
fn b10_the_first_heartbeat_says_all_there_is_to_say() {
    let mut shard = Shard::with_topics(&[4]);
    let digest = shard.digest();
    let refused = |shard: &mut Shard, op: &ConsumerHeartbeat| {
        assert!(matches!(shard.beat(op), Err(GroupError::InvalidRequest(_))), "{op:?}");
    };
    refused(&mut shard, &ConsumerHeartbeat { rebalance_timeout_ms: -1, ..joining("a") });
    refused(&mut shard, &ConsumerHeartbeat { subscribed_topic_names: None, ..joining("a") });
    refused(&mut shard, &ConsumerHeartbeat { owned: None, ..joining("a") });
    refused(&mut shard, &ConsumerHeartbeat { owned: owning("a", 0, &[(1, 0)]).owned, ..joining("a") });
    refused(&mut shard, &ConsumerHeartbeat { member_id: String::new(), ..joining("a") });
    refused(&mut shard, &heartbeat("a", -2));
    refused(&mut shard, &heartbeat("a", -3));
    let unknown = ConsumerHeartbeat { server_assignor: Some("sorted".to_owned()), ..joining("a") };
    assert_eq!(shard.beat(&unknown), Err(GroupError::UnsupportedAssignor));
    let pattern = ConsumerHeartbeat { subscribed_topic_regex: Some("t".repeat(5_000)), ..joining("a") };
    assert_eq!(shard.beat(&pattern), Err(GroupError::InvalidRegularExpression));
    assert_eq!(shard.digest(), digest, "a refused join leaves no group behind");
    assert!(shard.state.group(GROUP).is_none());
}
