//! Ops 1, 2, 4, 5, 6 and 12 on shard 0.

use lockstep_core::op::{AllocateProducerIds, UnregisterBroker, UpdateMetadata};
use lockstep_core::{Effect, Op, Position, Reply, ShardId, TopicError, TopicId};

use crate::harness::{Shard, add_partitions, broker, create, delete, plain, register, set_configs, topic_id};

fn shards(record: &lockstep_core::TopicRecord) -> Vec<u16> {
    record.partitions.iter().map(|shard| shard.0).collect()
}

#[test]
fn partitions_go_to_shards_in_turn_across_topics() {
    let mut shard = Shard::new(0, 3);
    assert_eq!(shards(&shard.create(1, "first", 4)), [0, 1, 2, 0]);
    assert_eq!(shards(&shard.create(2, "second", 2)), [1, 2]);
    let (grown, _) = shard.topic_op(&add_partitions(1, 6));
    assert_eq!(shards(&grown.unwrap()), [0, 1, 2, 0, 0, 1]);
}

#[test]
fn shard_0_hosts_its_own_partitions_at_once() {
    let mut shard = Shard::new(0, 2);
    let (record, effects) = shard.topic_op(&create(1, "orders", 3));
    assert_eq!(record.unwrap().version, 1);
    assert_eq!(
        effects,
        [
            Effect::CreatePartition { topic_id: topic_id(1), partition: 0 },
            Effect::CreatePartition { topic_id: topic_id(1), partition: 2 },
            Effect::DirectoryChanged { version: 1 },
        ]
    );
    let view = shard.state.partition(topic_id(1), 2).unwrap();
    assert_eq!((view.log_start_offset, view.next_offset, view.last_epoch), (0, 0, -1));
    assert_eq!(shard.state.partition(topic_id(1), 1), None);
    assert_eq!(shard.state.directory().topic("orders").unwrap().id, topic_id(1));
}

#[test]
fn topic_names_follow_kafkas_rules() {
    let mut shard = Shard::new(0, 1);
    let longest = "x".repeat(249);
    for (id, name) in (1..).zip(["a", "A-b_c.9", "...", "__consumer_offsets", longest.as_str()]) {
        assert!(shard.topic_op(&create(id, name, 1)).0.is_ok(), "{name}");
    }
    let too_long = "x".repeat(250);
    for name in ["", ".", "..", "a b", "a/b", "ä", "a\0", too_long.as_str()] {
        assert_eq!(shard.topic_op(&create(90, name, 1)).0, Err(TopicError::InvalidName), "{name:?}");
    }
}

#[test]
fn names_that_differ_only_in_dots_and_underscores_are_refused() {
    let mut shard = Shard::new(0, 1);
    shard.create(1, "a.b_c", 1);
    assert_eq!(shard.topic_op(&create(2, "a_b.c", 1)).0, Err(TopicError::InvalidName));
    shard.create(3, "a-b-c", 1);
    shard.topic_op(&delete(1)).0.unwrap();
    shard.create(4, "a_b.c", 1);
}

#[test]
fn a_taken_name_or_id_is_refused_and_a_repeated_op_is_not() {
    let mut shard = Shard::new(0, 1);
    let record = shard.create(1, "orders", 1);
    assert_eq!(shard.topic_op(&create(2, "orders", 1)).0, Err(TopicError::AlreadyExists));
    assert_eq!(shard.topic_op(&create(1, "other", 1)).0, Err(TopicError::AlreadyExists));
    let (again, effects) = shard.topic_op(&create(1, "orders", 1));
    assert_eq!((again, effects), (Ok(record), vec![]));
}

#[test]
fn an_id_names_one_topic_for_ever() {
    let mut shard = Shard::new(0, 1);
    shard.create(1, "orders", 1);
    shard.topic_op(&delete(1)).0.unwrap();
    assert_eq!(shard.topic_op(&create(1, "orders", 1)).0, Err(TopicError::AlreadyExists));
    shard.create(2, "orders", 1);
    let Op::CreateTopic(mut reserved) = create(3, "zero", 1) else { unreachable!() };
    reserved.topic_id = TopicId([0; 16]);
    assert_eq!(shard.topic_op(&Op::CreateTopic(reserved)).0, Err(TopicError::AlreadyExists));
}

#[test]
fn partition_counts_are_bounded() {
    let mut shard = Shard::new(0, 1);
    for partitions in [0, 10_001, u32::MAX] {
        assert_eq!(shard.topic_op(&create(1, "t", partitions)).0, Err(TopicError::InvalidPartitions));
    }
    shard.create(1, "t", 9_999);
    for partitions in [0, 9_998, 9_999, 10_001, u32::MAX] {
        assert_eq!(shard.topic_op(&add_partitions(1, partitions)).0, Err(TopicError::InvalidPartitions));
    }
    assert_eq!(shard.topic_op(&add_partitions(1, 10_000)).0.unwrap().partitions.len(), 10_000);
    assert_eq!(shard.topic_op(&add_partitions(2, 10)).0, Err(TopicError::Unknown));
}

#[test]
fn a_deleted_topic_takes_its_records_with_it() {
    let mut shard = Shard::new(0, 1);
    shard.create(1, "orders", 2);
    shard.append(plain(1, 0, 5)).unwrap();
    let (outcome, effects) = shard.topic_op(&delete(1));
    assert_eq!(outcome.unwrap().name, "orders");
    assert_eq!(
        effects,
        [
            Effect::DropPartition { topic_id: topic_id(1), partition: 0 },
            Effect::DropPartition { topic_id: topic_id(1), partition: 1 },
            Effect::DirectoryChanged { version: 2 },
        ]
    );
    assert_eq!(shard.state.partitions(), []);
    assert_eq!(shard.state.directory().topic("orders"), None);
    assert_eq!(shard.topic_op(&delete(1)).0, Err(TopicError::Unknown));
}

#[test]
fn configs_are_replaced_and_equal_ones_change_nothing() {
    let mut shard = Shard::new(0, 1);
    shard.create(1, "t", 1);
    let (record, effects) = shard.topic_op(&set_configs(1, &[("retention.ms", "5")]));
    assert_eq!(record.unwrap().configs["retention.ms"], "5");
    assert_eq!(effects, [Effect::DirectoryChanged { version: 2 }]);
    let (record, effects) = shard.topic_op(&set_configs(1, &[("retention.ms", "5")]));
    assert_eq!((record.unwrap().version, effects), (2, vec![]));
    assert_eq!(shard.topic_op(&set_configs(9, &[])).0, Err(TopicError::Unknown));
}

#[test]
fn registering_a_broker_again_changes_nothing() {
    let mut shard = Shard::new(0, 1);
    let first = shard.apply(&register(3, 9092), 0);
    assert_eq!(first.reply, Reply::Metadata { version: 1 });
    assert_eq!(first.effects, [Effect::DirectoryChanged { version: 1 }]);
    let digest = shard.state.digest();
    let again = shard.apply(&register(3, 9092), 0);
    assert_eq!((again.reply, again.effects), (Reply::Metadata { version: 1 }, vec![]));
    assert_eq!(shard.state.digest(), digest);
    assert_eq!(shard.apply(&register(3, 9093), 0).reply, Reply::Metadata { version: 2 });
    assert_eq!(shard.state.directory().brokers[&3], broker(3, 9093));

    let unregister = Op::UnregisterBroker(UnregisterBroker { node_id: 3 });
    assert_eq!(shard.apply(&unregister, 0).reply, Reply::Metadata { version: 3 });
    assert!(shard.state.directory().brokers.is_empty());
    assert_eq!(shard.apply(&unregister, 0).reply, Reply::Metadata { version: 3 });
}

#[test]
fn a_broker_that_kafka_cannot_name_is_refused() {
    let mut shard = Shard::new(0, 1);
    assert_eq!(shard.apply(&register(1 << 31, 9092), 0).reply, Reply::Done(false));
    assert_eq!(shard.apply(&register(u64::MAX, 9092), 0).reply, Reply::Done(false));
    assert_eq!(shard.state.directory().version, 0);
}

#[test]
fn producer_ids_are_handed_out_once() {
    let mut shard = Shard::new(0, 1);
    let allocate = |count| Op::AllocateProducerIds(AllocateProducerIds { count });
    assert_eq!(shard.apply(&allocate(1000), 0).reply, Reply::ProducerIds { first: 0 });
    assert_eq!(shard.apply(&allocate(1), 0).reply, Reply::ProducerIds { first: 1000 });
    assert_eq!(shard.apply(&allocate(10_000), 0).reply, Reply::ProducerIds { first: 1001 });
    assert_eq!(shard.apply(&allocate(0), 0).reply, Reply::Done(false));
    assert_eq!(shard.apply(&allocate(10_001), 0).reply, Reply::Done(false));
}

#[test]
fn other_shards_refuse_what_belongs_to_shard_0() {
    let mut shard = Shard::new(1, 2);
    let before = shard.state.digest();
    for op in [create(1, "t", 1), delete(1), add_partitions(1, 2), set_configs(1, &[])] {
        assert_eq!(shard.topic_op(&op), (Err(TopicError::WrongShard), vec![]));
    }
    for op in [
        register(1, 9092),
        Op::UnregisterBroker(UnregisterBroker { node_id: 1 }),
        Op::AllocateProducerIds(AllocateProducerIds { count: 5 }),
    ] {
        assert_eq!(shard.apply(&op, 0).reply, Reply::Done(false));
    }
    assert_eq!(shard.state.digest(), before);
}

#[test]
fn shard_0_refuses_feeds() {
    let mut shard = Shard::new(0, 2);
    let feed = Op::UpdateMetadata(UpdateMetadata::Feed {
        from_version: 0,
        to_version: 9,
        full: true,
        topics: vec![],
        deleted: vec![],
        brokers: None,
    });
    assert_eq!(shard.apply(&feed, 0).reply, Reply::Done(false));
    assert_eq!(shard.state.directory().version, 0);
}

#[test]
fn a_position_that_does_not_ascend_is_a_violation_and_changes_nothing() {
    let mut shard = Shard::new(0, 1);
    shard.position = Position { term: 3, index: 9 };
    shard.create(1, "t", 1);
    let digest = shard.state.digest();
    for (term, index) in [(3, 10), (3, 9), (9, 10), (2, 11)] {
        let position = Position { term, index };
        let violation = shard.state.apply(position, &create(2, "u", 1), 0).unwrap_err();
        assert_eq!((violation.position, violation.digest), (position, digest));
        assert_eq!(shard.state.digest(), digest);
        assert_eq!(shard.state.applied(), Position { term: 3, index: 10 });
    }
    assert_eq!(shard.state.shard(), ShardId(0));
}
