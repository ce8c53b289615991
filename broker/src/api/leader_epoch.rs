//! OffsetForLeaderEpoch (KIP-101, KIP-320): where an epoch's records end.

use lockstep_core::{ShardId, TopicId};
use lockstep_env::Env;
use lockstep_wire::codec::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use lockstep_wire::codec::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use lockstep_wire::codec::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use crate::api::fetch::check_epoch;
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics::{self, TopicKey};

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let results = request.topics.into_iter().map(|topic| {
        let key = TopicKey::Name(topic.topic.to_string());
        let located = topics::locate(broker, &key, topic.partitions.iter().map(|partition| partition.partition));
        let partitions = topic.partitions.iter().enumerate().map(|(nth, partition)| {
            let found = located.as_ref().map_err(|error| *error).and_then(|located| {
                let shard = located.shards.get(nth).copied().flatten().ok_or(ErrorCode::UnknownTopicOrPartition)?;
                find(broker, located.id, shard, partition)
            });
            let response = EpochEndOffset::default().with_partition(partition.partition);
            match found {
                Ok((epoch, end_offset)) => response.with_leader_epoch(epoch).with_end_offset(end_offset),
                Err(error) => response.with_error_code(error.code()).with_leader_epoch(-1).with_end_offset(-1),
            }
        });
        let partitions = partitions.collect();
        OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
    });
    OffsetForLeaderEpochResponse::default().with_topics(results.collect())
}

fn find<E: Env>(
    broker: &Broker<E>,
    topic_id: TopicId,
    shard_id: ShardId,
    wanted: &OffsetForLeaderPartition,
) -> Result<(i32, i64), ErrorCode> {
    let partition = u32::try_from(wanted.partition).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
    let shard = broker.node().shard(shard_id).ok_or(ErrorCode::NotLeaderOrFollower)?;
    check_epoch(&shard, wanted.current_leader_epoch)?;
    shard.serving().map_err(|error| ErrorCode::of_partition(&error))?;
    shard.read(|state| {
        state.partition(topic_id, partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
        // An epoch before all that are known has no end here.
        Ok(state.end_offset_for_epoch(topic_id, partition, wanted.leader_epoch).unwrap_or((-1, -1)))
    })
}
