//! A shard that checks itself after every op.

use std::collections::BTreeMap;

use lockstep_core::op::{AppendMessage, CreateTopic, DeleteTopic, PartitionAppend, RegisterBroker, UpdateMetadata};
use lockstep_core::reply::{AppendError, Appended};
use lockstep_core::{
    Applied, BrokerRecord, ClusterStateMachine, Effect, Op, Position, Reply, ShardId, TopicError, TopicId, TopicRecord,
};

/// Where the proposer has segments end unless topics say otherwise.
pub(crate) const SEGMENT_BYTES: u64 = 1 << 20;

pub(crate) struct Shard {
    pub(crate) state: ClusterStateMachine,
    pub(crate) position: Position,
}

impl Shard {
    pub(crate) fn new(shard: u16, shard_count: u16) -> Self {
        Self { state: ClusterStateMachine::new(ShardId(shard), shard_count), position: Position { term: 1, index: 0 } }
    }

    /// Applies an op at the next position.
    pub(crate) fn apply(&mut self, op: &Op, payload_len: usize) -> Applied {
        self.position.index += 1;
        let applied = self.state.apply(self.position, op, payload_len).expect("no invariant breaks");
        self.state.check_invariants().expect("invariants hold");
        applied
    }

    pub(crate) fn topic_op(&mut self, op: &Op) -> (Result<TopicRecord, TopicError>, Vec<Effect>) {
        let applied = self.apply(op, 0);
        match applied.reply {
            Reply::Topic(outcome) => (outcome, applied.effects),
            other => panic!("not a topic's reply: {other:?}"),
        }
    }

    /// Makes a topic that must be legal.
    pub(crate) fn create(&mut self, id: u8, name: &str, partitions: u32) -> TopicRecord {
        self.topic_op(&create(id, name, partitions)).0.expect("the topic is made")
    }

    pub(crate) fn append(&mut self, append: PartitionAppend) -> Result<Appended, AppendError> {
        self.append_all(vec![append]).0.remove(0)
    }

    /// Appends batches, each with a payload slice of its own.
    pub(crate) fn append_all(
        &mut self,
        mut appends: Vec<PartitionAppend>,
    ) -> (Vec<Result<Appended, AppendError>>, Vec<Effect>) {
        let mut end = 0;
        for append in &mut appends {
            append.payload_start = end;
            end += append.payload_len;
        }
        self.append_raw(appends, end as usize)
    }

    pub(crate) fn append_raw(
        &mut self,
        appends: Vec<PartitionAppend>,
        payload_len: usize,
    ) -> (Vec<Result<Appended, AppendError>>, Vec<Effect>) {
        let applied = self.apply(
            &Op::AppendMessage(AppendMessage { now_ms: 1_700_000_000_000, segment_bytes: SEGMENT_BYTES, appends }),
            payload_len,
        );
        match applied.reply {
            Reply::Append(outcomes) => (outcomes, applied.effects),
            other => panic!("not an append's reply: {other:?}"),
        }
    }

    /// Feeds this shard from shard 0 until nothing is left. Gives the number of feeds and all effects.
    pub(crate) fn follow(&mut self, metadata: &ClusterStateMachine) -> (usize, Vec<Effect>) {
        let mut feeds = 0;
        let mut effects = Vec::new();
        while let Some(feed) = metadata.feed_since(self.state.directory().version) {
            let before = self.state.directory().version;
            effects.extend(self.apply(&feed, 0).effects);
            assert!(self.state.directory().version > before, "a feed brings the copy forward");
            feeds += 1;
        }
        (feeds, effects)
    }
}

pub(crate) fn topic_id(id: u8) -> TopicId {
    TopicId([id.wrapping_add(100); 16])
}

pub(crate) fn create(id: u8, name: &str, partitions: u32) -> Op {
    Op::CreateTopic(CreateTopic { topic_id: topic_id(id), name: name.to_owned(), partitions, configs: BTreeMap::new() })
}

pub(crate) fn delete(id: u8) -> Op {
    Op::DeleteTopic(DeleteTopic { topic_id: topic_id(id) })
}

pub(crate) fn add_partitions(id: u8, partitions: u32) -> Op {
    Op::UpdateMetadata(UpdateMetadata::AddPartitions { topic_id: topic_id(id), partitions })
}

pub(crate) fn set_configs(id: u8, configs: &[(&str, &str)]) -> Op {
    let configs = configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Op::UpdateMetadata(UpdateMetadata::SetTopicConfigs { topic_id: topic_id(id), configs })
}

pub(crate) fn broker(id: u64, port: u16) -> BrokerRecord {
    BrokerRecord { id, host: "broker.example".to_owned(), port, rack: None, incarnation: [7; 16], feature_level: 1 }
}

pub(crate) fn register(id: u64, port: u16) -> Op {
    Op::RegisterBroker(RegisterBroker { broker: broker(id, port) })
}

/// A batch of `count` records from a producer that is not idempotent.
pub(crate) fn plain(id: u8, partition: u32, count: u32) -> PartitionAppend {
    PartitionAppend {
        topic_id: topic_id(id),
        partition,
        payload_start: 0,
        payload_len: 100,
        offset_count: count,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        max_timestamp_ms: 0,
    }
}

/// A batch of `count` records from producer 5 for partition 0 of topic 1.
pub(crate) fn idempotent(epoch: i16, sequence: i32, count: u32) -> PartitionAppend {
    PartitionAppend { producer_id: 5, producer_epoch: epoch, base_sequence: sequence, ..plain(1, 0, count) }
}
