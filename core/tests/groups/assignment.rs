//! What the server-side assignors promise, seen from a group.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::Op;
use lockstep_core::op::{ConsumerHeartbeat, JoinConsumerGroup};
use lockstep_core::view::GroupState;

use crate::harness::{Parts, Shard, heartbeat, joining, joining_static, topics};

fn with_topics(member_id: &str, ids: &[u8]) -> ConsumerHeartbeat {
    ConsumerHeartbeat { subscribed_topic_names: Some(topics(ids)), ..joining(member_id) }
}

fn targets(shard: &Shard) -> BTreeMap<String, Parts> {
    shard.view().members.into_iter().map(|member| (member.member_id, crate::harness::parts(&member.target))).collect()
}

fn moved(before: &BTreeMap<String, Parts>, after: &BTreeMap<String, Parts>) -> usize {
    after
        .iter()
        .map(|(member_id, target)| match before.get(member_id) {
            Some(before) => target.difference(before).count(),
            None => target.len(),
        })
        .sum()
}

fn spread(targets: &BTreeMap<String, Parts>) -> usize {
    let sizes: Vec<usize> = targets.values().map(BTreeSet::len).collect();
    sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0)
}

#[test]
fn uniform_is_balanced_and_moves_no_more_than_it_must() {
    let mut shard = Shard::with_topics(&[7, 5]);
    let mut before = BTreeMap::new();
    for i in 0..5_usize {
        let member_id = format!("m{i}");
        shard.beat(&with_topics(&member_id, &[1, 2])).expect("joins");
        let after = targets(&shard);
        assert!(spread(&after) <= 1, "{after:?}");
        assert_eq!(moved(&before, &after), after[&member_id].len(), "only what the newcomer gets moves");
        before = after;
    }
    let freed = before["m2"].len();
    shard.beat(&heartbeat("m2", -1)).expect("leaves");
    shard.assign(None);
    let after = targets(&shard);
    assert!(spread(&after) <= 1);
    assert_eq!(moved(&before, &after), freed, "only what was freed moves");
}

#[test]
fn uniform_balances_across_different_subscriptions() {
    let mut shard = Shard::with_topics(&[6, 6]);
    shard.beat(&with_topics("both", &[1, 2])).expect("joins");
    shard.beat(&with_topics("first", &[1])).expect("joins");
    shard.beat(&with_topics("second", &[2])).expect("joins");
    let after = targets(&shard);
    let sizes: BTreeMap<&str, usize> =
        after.iter().map(|(member_id, target)| (member_id.as_str(), target.len())).collect();
    assert_eq!(sizes.values().sum::<usize>(), 12);
    // No partition can go from one subscriber of its topic to another and leave them more alike.
    assert!(sizes["both"].abs_diff(sizes["first"]) <= 1 && sizes["both"].abs_diff(sizes["second"]) <= 1, "{sizes:?}");
    assert!(after["first"].iter().all(|(topic, _)| *topic == 1));
    assert!(after["second"].iter().all(|(topic, _)| *topic == 2));
}

#[test]
fn uniform_gives_nothing_to_members_beyond_the_partitions() {
    let mut shard = Shard::with_topics(&[2]);
    for member_id in ["a", "b", "c"] {
        shard.enter(member_id);
    }
    shard.settle(&["a", "b", "c"]);
    assert_eq!(["a", "b", "c"].map(|member_id| shard.owns(member_id).len()).iter().sum::<usize>(), 2);
}

#[test]
fn range_gives_neighbouring_partitions_and_the_same_indexes_of_like_topics() {
    let mut shard = Shard::with_topics(&[5, 5]);
    for member_id in ["a", "b"] {
        let op = ConsumerHeartbeat { server_assignor: Some("range".to_owned()), ..with_topics(member_id, &[1, 2]) };
        shard.beat(&op).expect("joins");
    }
    assert_eq!(shard.view().protocol_name, "range");
    let after = targets(&shard);
    assert_eq!(after["a"], Parts::from([(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]));
    assert_eq!(after["b"], Parts::from([(1, 3), (1, 4), (2, 3), (2, 4)]));
}

#[test]
fn range_orders_static_members_by_instance_so_that_a_restart_moves_nothing() {
    let mut shard = Shard::with_topics(&[4]);
    for (member_id, instance_id) in [("z", "one"), ("y", "two")] {
        let op =
            ConsumerHeartbeat { server_assignor: Some("range".to_owned()), ..joining_static(member_id, instance_id) };
        shard.beat(&op).expect("joins");
    }
    assert_eq!(targets(&shard)["z"], Parts::from([(1, 0), (1, 1)]));
}

#[test]
fn the_assignor_with_most_votes_is_used() {
    let mut shard = Shard::with_topics(&[4]);
    let with = |member_id: &str, name: &str| ConsumerHeartbeat {
        server_assignor: Some(name.to_owned()),
        ..joining(member_id)
    };
    shard.enter("a");
    assert_eq!(shard.view().protocol_name, "uniform", "the default");
    shard.beat(&with("b", "range")).expect("joins");
    assert_eq!(shard.view().protocol_name, "range");
    shard.beat(&with("c", "uniform")).expect("joins");
    shard.beat(&with("d", "uniform")).expect("joins");
    assert_eq!(shard.view().protocol_name, "uniform");
}

#[test]
fn another_assignor_is_used_as_soon_as_most_members_ask_for_it() {
    let mut shard = Shard::with_topics(&[5, 5]);
    let asking = |member_id: &str, epoch: i32, name: &str| ConsumerHeartbeat {
        server_assignor: Some(name.to_owned()),
        ..heartbeat(member_id, epoch)
    };
    for member_id in ["a", "b"] {
        shard.beat(&with_topics(member_id, &[1, 2])).expect("joins");
    }
    shard.settle(&["a", "b"]);
    let epoch = shard.view().epoch;
    shard.beat(&asking("a", epoch, "uniform")).expect("in order");
    assert_eq!(shard.view().epoch, epoch, "it is used already");
    shard.beat(&asking("a", epoch, "range")).expect("in order");
    assert_eq!((shard.view().epoch, shard.view().protocol_name.as_str()), (epoch + 1, "range"));
    assert_eq!(targets(&shard)["a"], Parts::from([(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]));
    shard.settle(&["a", "b"]);
    shard.beat(&asking("b", epoch + 1, "range")).expect("in order");
    assert_eq!(shard.view().epoch, epoch + 1, "one more vote changes nothing");
    shard.settle(&["a", "b"]);

    let mut shard = Shard::with_topics(&[5, 5]);
    shard.beat(&joining_static("s", "one")).expect("joins");
    let mut away = heartbeat("s", -2);
    away.instance_id = Some("one".to_owned());
    shard.beat(&away).expect("goes for a while");
    shard
        .beat(&ConsumerHeartbeat { server_assignor: Some("range".to_owned()), ..joining_static("s2", "one") })
        .expect("returns");
    assert_eq!((shard.view().epoch, shard.view().protocol_name.as_str()), (2, "range"));
}

#[test]
fn the_assignor_that_is_shown_is_the_one_that_will_be_used() {
    let mut shard = Shard::with_topics(&[4]);
    shard.propose(&joining("a")).expect("joins");
    assert_eq!((shard.view().state, shard.view().protocol_name.as_str()), (GroupState::Assigning, "uniform"));
    shard.propose(&ConsumerHeartbeat { server_assignor: Some("range".to_owned()), ..joining("b") }).expect("joins");
    assert_eq!(shard.view().protocol_name, "range");
}

proptest::proptest! {
    /// Whoever subscribes to what, in whatever order members come and go: no partition can go from one subscriber of its
    /// topic to another and leave the two more alike, and members with equal subscriptions differ by one at most.
    #[test]
    fn uniform_leaves_no_move_that_would_help(
        counts in proptest::collection::vec(1..9_u32, 3),
        changes in proptest::collection::vec((0..7_u8, 0..8_u8), 1..20),
    ) {
        let mut shard = Shard::with_topics(&counts);
        let mut subscriptions: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (member, mask) in changes {
            let member_id = format!("m{member}");
            if mask == 0 {
                if subscriptions.remove(&member_id).is_some() {
                    shard.beat(&heartbeat(&member_id, -1)).expect("leaves");
                    shard.assign(None);
                }
            } else {
                let ids: Vec<u8> = (1..4).filter(|id| mask & (1 << (id - 1)) != 0).collect();
                shard.beat(&with_topics(&member_id, &ids)).expect("joins");
                subscriptions.insert(member_id, ids);
            }
        }
        let targets = if subscriptions.is_empty() { BTreeMap::new() } else { targets(&shard) };
        for (from, target) in &targets {
            for (to, ids) in &subscriptions {
                let could_take = target.iter().any(|(topic, _)| ids.contains(topic));
                let helps = could_take && target.len() > targets[to].len() + 1;
                proptest::prop_assert!(!helps, "{from} has {} partitions, {to} {}", target.len(), targets[to].len());
            }
        }
    }
}

#[test]
fn in_a_large_group_a_leaving_member_moves_only_what_it_had() {
    for assignor in ["uniform", "range"] {
        let mut shard = Shard::with_topics(&[100; 30]);
        let ids: Vec<u8> = (1..=30).collect();
        let member_ids: Vec<String> = (0..900).map(|number| format!("m{number:03}")).collect();
        // Checking every invariant after each of 900 joins would take long; the last op is checked as ever.
        for member_id in &member_ids {
            let join = ConsumerHeartbeat { server_assignor: Some(assignor.to_owned()), ..with_topics(member_id, &ids) };
            shard.position.index += 1;
            let op = Op::JoinConsumerGroup(JoinConsumerGroup::Consumer(join));
            shard.state.apply(shard.position, &op, 0).expect("no invariant breaks");
        }
        shard.assign(None);
        let before = targets(&shard);
        let total: usize = before.values().map(BTreeSet::len).sum();
        assert_eq!(total, 3_000);
        let freed = before["m450"].len();
        shard.beat(&heartbeat("m450", -1)).expect("leaves");
        shard.assign(None);
        let after = targets(&shard);
        if assignor == "uniform" {
            assert!(spread(&after) <= 1, "{}", spread(&after));
            assert_eq!(moved(&before, &after), freed, "what stays does not move");
        }
        assert_eq!(after.values().map(BTreeSet::len).sum::<usize>(), 3_000);
    }
}
