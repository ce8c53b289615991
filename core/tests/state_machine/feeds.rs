//! The directory's way from shard 0 to the other shards.

use lockstep_core::op::UpdateMetadata;
use lockstep_core::{Directory, Effect, Op, Reply, ShardId};

use crate::harness::{Shard, add_partitions, broker, create, delete, plain, register, set_configs, topic_id};

fn assert_same_directory(metadata: &Shard, follower: &Shard) {
    let (truth, copy) = (metadata.state.directory(), follower.state.directory());
    assert_eq!((copy.version, &copy.topics, &copy.topic_ids), (truth.version, &truth.topics, &truth.topic_ids));
    assert_eq!(copy.brokers, truth.brokers);
}

#[test]
fn partitions_appear_grow_and_go_where_they_are_placed() {
    let mut metadata = Shard::new(0, 2);
    let mut follower = Shard::new(1, 2);
    metadata.create(1, "orders", 3);
    metadata.apply(&register(4, 9092), 0);
    let (_, effects) = follower.follow(&metadata.state);
    assert_eq!(
        effects,
        [Effect::CreatePartition { topic_id: topic_id(1), partition: 1 }, Effect::DirectoryChanged { version: 2 },]
    );
    assert_same_directory(&metadata, &follower);
    follower.append(plain(1, 1, 7)).unwrap();

    metadata.topic_op(&add_partitions(1, 5)).0.unwrap();
    metadata.topic_op(&set_configs(1, &[("retention.ms", "1")])).0.unwrap();
    let (_, effects) = follower.follow(&metadata.state);
    assert_eq!(effects[0], Effect::CreatePartition { topic_id: topic_id(1), partition: 3 });
    assert_eq!(follower.state.partition(topic_id(1), 1).unwrap().next_offset, 7, "records stay");
    assert_same_directory(&metadata, &follower);

    metadata.topic_op(&delete(1)).0.unwrap();
    metadata.create(2, "orders", 1);
    let (_, effects) = follower.follow(&metadata.state);
    assert_eq!(effects[..2], [1, 3].map(|partition| Effect::DropPartition { topic_id: topic_id(1), partition }));
    assert_same_directory(&metadata, &follower);
}

#[test]
fn a_shard_that_is_up_to_date_needs_no_feed() {
    let mut metadata = Shard::new(0, 2);
    assert_eq!(metadata.state.feed_since(0), None);
    metadata.create(1, "t", 1);
    assert!(metadata.state.feed_since(0).is_some());
    assert_eq!(metadata.state.feed_since(1), None);
    assert_eq!(metadata.state.feed_since(u64::MAX), None);
    let mut follower = Shard::new(1, 2);
    follower.follow(&metadata.state);
    assert_eq!(follower.state.feed_since(0), None, "only shard 0 feeds");
}

#[test]
fn a_feed_out_of_turn_does_nothing_and_tells_the_version() {
    let mut metadata = Shard::new(0, 2);
    let mut follower = Shard::new(1, 2);
    metadata.create(1, "a", 2);
    let first = metadata.state.feed_since(0).unwrap();
    metadata.create(2, "b", 2);
    let second = metadata.state.feed_since(1).unwrap();
    assert_eq!(follower.apply(&second, 0).reply, Reply::Metadata { version: 0 });
    assert!(follower.state.directory().topics.is_empty());
    assert_eq!(follower.apply(&first, 0).reply, Reply::Metadata { version: 1 });
    assert_eq!(follower.apply(&second, 0).reply, Reply::Metadata { version: 2 });
    let digest = follower.state.digest();
    let late = follower.apply(&first, 0);
    assert_eq!((late.reply, late.effects), (Reply::Metadata { version: 2 }, vec![]));
    assert_eq!(follower.state.digest(), digest);
    assert_same_directory(&metadata, &follower);
}

#[test]
fn a_shard_that_lags_behind_the_remembered_deletions_gets_a_full_copy() {
    let mut metadata = Shard::new(0, 2);
    let mut follower = Shard::new(1, 2);
    for id in 1..=3 {
        metadata.create(id, &format!("topic{id}"), 2);
    }
    follower.follow(&metadata.state);
    let lagging = follower.state.directory().version;
    metadata.topic_op(&delete(2)).0.unwrap();
    // Delete and create so many others that the deletion of topic 2 is forgotten.
    for round in 0..=Directory::DELETED_MAX {
        let Op::CreateTopic(mut op) = create(0, "busy", 1) else { unreachable!() };
        op.topic_id.0[..8].copy_from_slice(&(round as u64).to_be_bytes());
        let id = op.topic_id;
        metadata.state.apply(next(&mut metadata.position), &Op::CreateTopic(op), 0).unwrap();
        let delete = Op::DeleteTopic(lockstep_core::op::DeleteTopic { topic_id: id });
        metadata.state.apply(next(&mut metadata.position), &delete, 0).unwrap();
    }
    assert_eq!(metadata.state.directory().deleted.len(), Directory::DELETED_MAX);
    let feed = metadata.state.feed_since(lagging).unwrap();
    assert!(matches!(feed, Op::UpdateMetadata(UpdateMetadata::Feed { full: true, .. })));
    let recent = metadata.state.feed_since(metadata.state.directory().version - 1).unwrap();
    assert!(matches!(recent, Op::UpdateMetadata(UpdateMetadata::Feed { full: false, .. })));

    let (feeds, effects) = follower.follow(&metadata.state);
    assert_eq!(feeds, 1);
    assert_eq!(effects[0], Effect::DropPartition { topic_id: topic_id(2), partition: 1 });
    assert_same_directory(&metadata, &follower);
    assert!(follower.state.partition(topic_id(1), 1).is_some());
}

fn next(position: &mut lockstep_core::Position) -> lockstep_core::Position {
    position.index += 1;
    *position
}

#[test]
fn a_long_way_is_fed_in_several_ops() {
    let mut metadata = Shard::new(0, 2);
    let mut follower = Shard::new(1, 2);
    for id in 1..=12 {
        metadata.create(id, &format!("topic{id}"), 10_000);
    }
    metadata.topic_op(&delete(3)).0.unwrap();
    metadata.apply(&register(1, 9092), 0);
    let (feeds, _) = follower.follow(&metadata.state);
    assert_eq!(feeds, 3);
    assert_same_directory(&metadata, &follower);
}

#[test]
fn a_feed_that_contradicts_the_copy_changes_nothing() {
    let mut metadata = Shard::new(0, 2);
    let mut follower = Shard::new(1, 2);
    let record = metadata.create(1, "a.b", 2);
    follower.follow(&metadata.state);
    let other = lockstep_core::TopicRecord { id: topic_id(2), name: "other".to_owned(), ..record.clone() };
    let rename = |record: &lockstep_core::TopicRecord, name: &str| lockstep_core::TopicRecord {
        name: name.to_owned(),
        ..record.clone()
    };
    let place = |record: &lockstep_core::TopicRecord, shards: &[u16]| lockstep_core::TopicRecord {
        partitions: shards.iter().map(|shard| ShardId(*shard)).collect(),
        ..record.clone()
    };
    let newer = lockstep_core::TopicRecord { version: 99, ..other.clone() };
    let cases = [
        ("a topic was renamed", vec![rename(&record, "c")], vec![], None),
        ("a topic shrank", vec![place(&record, &[0])], vec![], None),
        ("a partition moved", vec![place(&record, &[1, 1])], vec![], None),
        ("no such shard", vec![place(&other, &[2])], vec![], None),
        ("no partitions", vec![place(&other, &[])], vec![], None),
        ("an illegal name", vec![rename(&other, "a/b")], vec![], None),
        ("a taken name", vec![rename(&other, "a.b")], vec![], None),
        ("a name like another's", vec![rename(&other, "a_b")], vec![], None),
        ("one topic twice", vec![other.clone(), other.clone()], vec![], None),
        ("made and deleted", vec![other.clone()], vec![other.id], None),
        ("newer than the feed", vec![newer], vec![], None),
        ("one broker twice", vec![], vec![], Some(vec![broker(1, 1), broker(1, 2)])),
        ("no legal broker", vec![], vec![], Some(vec![broker(u64::MAX, 1)])),
    ];
    let digest = follower.state.digest();
    for (case, topics, deleted, brokers) in cases {
        let feed = UpdateMetadata::Feed { from_version: 1, to_version: 2, full: false, topics, deleted, brokers };
        let applied = follower.apply(&Op::UpdateMetadata(feed), 0);
        assert_eq!((applied.reply, applied.effects), (Reply::Done(false), vec![]), "{case}");
        assert_eq!(follower.state.digest(), digest, "{case}");
    }
    let feed = UpdateMetadata::Feed {
        from_version: 1,
        to_version: 2,
        full: false,
        topics: vec![rename(&other, "a.b")],
        deleted: vec![record.id],
        brokers: None,
    };
    assert_eq!(follower.apply(&Op::UpdateMetadata(feed), 0).reply, Reply::Metadata { version: 2 });
}
