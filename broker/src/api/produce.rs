//! Produce: batches are checked by header and CRC, gathered by shard, and proposed in the order of their arrival.
//!
//! Records are decoded only for compacted topics, which take none without a key. acks=1 is answered as acks=all, because an offset exists only once the batch is applied; acks=0
//! gets no answer, and its connection is closed when something went wrong, which makes the client look for the leader again.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::op::{AppendMessage, PartitionAppend};
use lockstep_core::reply::Appended;
use lockstep_core::{Op, Reply, ShardId};
use lockstep_env::{Env, timeout};
use lockstep_probe::{Mark, Mistake};
use lockstep_runtime::{ProposalPayload, ProposeError};
use lockstep_wire::codec::produce_request::TopicProduceData;
use lockstep_wire::codec::produce_response::{
    LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use lockstep_wire::codec::{BrokerId, ProduceRequest, ProduceResponse};
use lockstep_wire::compaction::{delete_horizon_ms, keys_missing, takes_long, unfolded_bytes_max};
use lockstep_wire::{ApiKey, BatchHeader, Compression, check_batch};

use tokio::task::coop::unconstrained;

use crate::broker::Broker;
use crate::cluster_view::{self, ClusterView};
use crate::dispatch::{Outcome, RequestContext};
use crate::error_code::ErrorCode;
use crate::topics::{self, LocatedTopic, TopicKey};

/// One proposal carries at most so many bytes of batches, or one batch.
const PROPOSAL_BYTES_MAX: usize = 1 << 20;
/// No request waits longer for its acknowledgement, whatever it asks for.
const TIMEOUT_MAX_MS: i32 = 120_000;

/// How long to wait before a full queue is tried again.
const OVERLOAD_PAUSE: Duration = Duration::from_millis(2);

/// What [`Mistake::ProduceAnsweredBeforeCommit`] says of a batch that has no offset yet.
const SOMEWHERE: Appended =
    Appended { base_offset: -1, log_append_time_ms: None, log_start_offset: -1, duplicate: false };

/// Does this frame hold a Produce request?
pub(crate) fn is_produce(frame: &[u8]) -> bool {
    frame.first_chunk() == Some(&ApiKey::Produce.code().to_be_bytes())
}

/// Where in the request a batch stands: topic and partition, by position.
type Slot = (usize, usize);

/// What became of a batch.
type Produced = Result<Appended, Failure>;

/// Why a batch was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    error: ErrorCode,
    /// The shard whose leader the client should be told.
    moved: Option<ShardId>,
    /// More than the error says by itself.
    reason: Option<&'static str>,
}

impl From<ErrorCode> for Failure {
    fn from(error: ErrorCode) -> Self {
        Self { error, moved: None, reason: None }
    }
}

/// The answer to records while disks are nearly full. Clients try again until their time for a delivery is up.
const NO_SPACE: Failure = Failure {
    error: ErrorCode::KafkaStorageError,
    moved: None,
    reason: Some("The disks are nearly full: no records are taken until there is room."),
};

/// The answer to a record that a compacted topic could not find by its key again.
const NO_KEY: Failure = Failure {
    error: ErrorCode::InvalidRecord,
    moved: None,
    reason: Some("A compacted topic takes no record without a key."),
};

/// Batches that go into one proposal.
#[derive(Default)]
struct Gathered {
    appends: Vec<PartitionAppend>,
    batches: Vec<Bytes>,
    len: usize,
    slots: Vec<Slot>,
}

/// A proposal under way.
struct Proposed {
    shard: ShardId,
    slots: Vec<Slot>,
    reply: Pin<Box<dyn Future<Output = Result<Reply, ProposeError>> + Send>>,
}

/// A request whose proposals are made, and whose outcome is waited for.
pub(crate) struct Begun<E: Env> {
    broker: Broker<E>,
    context: RequestContext,
    request: ProduceRequest,
    results: Vec<Vec<Produced>>,
    under_way: Vec<Proposed>,
    deadline: Instant,
}

/// Checks a request and makes its proposals. When it returns they stand in their shards' queues, before those of any
/// request that is begun later. A queue that is full holds up the connection, not the order.
pub(crate) async fn begin<E: Env>(broker: Broker<E>, context: RequestContext, request: ProduceRequest) -> Begun<E> {
    let patience = Duration::from_millis(request.timeout_ms.clamp(0, TIMEOUT_MAX_MS).unsigned_abs().into());
    let deadline = E::now() + patience;
    let mut results: Vec<Vec<Produced>> = Vec::with_capacity(request.topic_data.len());
    let mut by_shard: BTreeMap<ShardId, Vec<Gathered>> = BTreeMap::new();
    for (topic_index, topic) in request.topic_data.iter().enumerate() {
        let key = TopicKey::of(context.api_version >= 13, &topic.name, &topic.topic_id);
        let located = topics::locate(&broker, &key, topic.partition_data.iter().map(|partition| partition.index));
        let mut topic_results = Vec::with_capacity(topic.partition_data.len());
        for partition_index in 0..topic.partition_data.len() {
            let mut checked = check(context.api_version, &request, &located, topic, partition_index);
            if let (Ok(LocatedTopic { is_compacted: true, .. }), Ok((_, _, batch))) = (&located, &checked)
                && let Err(failure) = check_keys_aside(&broker, batch).await
            {
                checked = Err(failure);
            }
            // Replaced by the outcome of the batch's proposal.
            topic_results.push(Err(checked.as_ref().err().copied().unwrap_or(ErrorCode::UnknownServerError.into())));
            if let Ok((shard, append, batch)) = checked {
                gather(by_shard.entry(shard).or_default(), append, batch, (topic_index, partition_index));
            }
        }
        results.push(topic_results);
    }
    let mut under_way = Vec::new();
    for (shard, proposals) in by_shard {
        // Whoever does not lead the shard says that, so that the client goes to the leader.
        let leads = broker.node().shard(shard).is_some_and(|shard| shard.serving().is_ok());
        let is_full = leads && !broker.node().takes_records(shard);
        for gathered in proposals {
            if is_full {
                Mark::RecordsRefusedForSpace.reached();
                gathered.slots.iter().for_each(|&(topic, partition)| results[topic][partition] = Err(NO_SPACE));
            } else {
                under_way.push(propose(&broker, shard, gathered, context.request_bytes, deadline).await);
            }
        }
    }
    Begun { broker, context, request, results, under_way, deadline }
}

impl<E: Env> Begun<E> {
    /// Waits for the proposals, at most as long as the request allows.
    pub(crate) async fn finish(self) -> Outcome {
        let Self { broker, context, request, mut results, under_way, deadline } = self;
        for proposed in under_way {
            let hasty = Mistake::ProduceAnsweredBeforeCommit.is_made();
            let left = if hasty { Duration::ZERO } else { deadline.saturating_duration_since(E::now()) };
            let outcomes = match timeout::<E, _>(left, proposed.reply).await {
                Ok(reply) => outcomes(proposed.shard, reply, proposed.slots.len()),
                Err(_) if hasty => vec![Ok(SOMEWHERE); proposed.slots.len()],
                Err(_) => {
                    Mark::ProduceTimedOut.reached();
                    vec![Err(ErrorCode::RequestTimedOut.into()); proposed.slots.len()]
                }
            };
            for ((topic, partition), outcome) in proposed.slots.into_iter().zip(outcomes) {
                results[topic][partition] = outcome;
            }
        }
        if request.acks != 0 {
            return Outcome::respond(respond(&broker, context.api_version, request.topic_data, results).into());
        }
        match results.iter().flatten().find_map(|result| result.as_ref().err()) {
            None => Outcome::Silence,
            Some(failure) => {
                tracing::info!(
                    client = context.client_id,
                    error = ?failure.error,
                    "records without acknowledgement were refused: connection closed"
                );
                Outcome::Close
            }
        }
    }
}

/// Checks one partition's records, but for their keys; gives the shard they belong to, and what `core` must know of them.
fn check(
    version: i16,
    request: &ProduceRequest,
    located: &Result<LocatedTopic, ErrorCode>,
    topic: &TopicProduceData,
    partition_index: usize,
) -> Result<(ShardId, PartitionAppend, Bytes), Failure> {
    if !(-1..=1).contains(&request.acks) {
        return Err(ErrorCode::InvalidRequiredAcks.into());
    }
    if request.transactional_id.is_some() {
        return Err(ErrorCode::TransactionalIdAuthorizationFailed.into());
    }
    let located = located.as_ref().map_err(|error| *error)?;
    let partition = &topic.partition_data[partition_index];
    let shard = located.shards.get(partition_index).copied().flatten().ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let index = u32::try_from(partition.index).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
    let batch = partition.records.clone().filter(|records| !records.is_empty()).ok_or(ErrorCode::InvalidRecord)?;
    if batch.len() > located.max_message_bytes {
        return Err(ErrorCode::MessageTooLarge.into());
    }
    let header = check_batch(&batch).map_err(|error| {
        tracing::info!(topic = &**topic.name, partition = index, %error, "record batch refused");
        ErrorCode::of_batch(&error)
    })?;
    check_header(version, &header)?;
    let payload_len = u32::try_from(batch.len()).map_err(|_| ErrorCode::MessageTooLarge)?;
    let idempotent = header.has_producer_id();
    let append = PartitionAppend {
        topic_id: located.id,
        partition: index,
        payload_start: 0,
        payload_len,
        offset_count: u32::try_from(header.record_count).map_err(|_| ErrorCode::InvalidRecord)?,
        producer_id: if idempotent { header.producer_id } else { -1 },
        producer_epoch: if idempotent { header.producer_epoch } else { -1 },
        base_sequence: if idempotent { header.base_sequence } else { -1 },
        max_timestamp_ms: header.max_timestamp,
    };
    Ok((shard, append, batch))
}

/// Rules for what a producer may send, beyond a batch that is sound in itself.
fn check_header(version: i16, header: &BatchHeader) -> Result<(), ErrorCode> {
    if header.is_control() {
        // Only coordinators write control batches.
        return Err(ErrorCode::InvalidRecord);
    }
    if header.is_transactional() {
        return Err(ErrorCode::InvalidTxnState);
    }
    if delete_horizon_ms(header).is_some() {
        // Only compaction says when tombstones may go.
        return Err(ErrorCode::InvalidRecord);
    }
    if header.has_producer_id() && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return Err(ErrorCode::InvalidRecord);
    }
    // KIP-110: consumers that know zstd are only sure to exist where producers speak version 7.
    if version < 7 && header.compression() == Ok(Compression::Zstd) {
        return Err(ErrorCode::UnsupportedCompressionType);
    }
    Ok(())
}

/// Every record has a key (Kafka's `LogValidator`). Records that cannot be read could never be compacted.
fn check_keys(batch: &Bytes) -> Result<(), Failure> {
    match keys_missing(batch, unfolded_bytes_max(batch.len())) {
        Ok(false) => Ok(()),
        Ok(true) => Err(NO_KEY),
        Err(_) => Err(ErrorCode::InvalidRecord.into()),
    }
}

/// The same, without holding up others: a few bytes may unfold to many, and a request may have thousands of such batches.
async fn check_keys_aside<E: Env>(broker: &Broker<E>, batch: &Bytes) -> Result<(), Failure> {
    if !takes_long(batch) {
        return check_keys(batch);
    }
    let batch = batch.clone();
    broker.env().compute(move || check_keys(&batch)).await
}

/// Adds a batch to the last proposal of its shard, or begins another one.
fn gather(proposals: &mut Vec<Gathered>, mut append: PartitionAppend, batch: Bytes, slot: Slot) {
    let fits = |gathered: &&mut Gathered| gathered.len + batch.len() <= PROPOSAL_BYTES_MAX;
    if proposals.last_mut().filter(fits).is_none() {
        proposals.push(Gathered::default());
    }
    let Some(gathered) = proposals.last_mut() else { return };
    append.payload_start = u32::try_from(gathered.len).unwrap_or(u32::MAX);
    gathered.len += batch.len();
    gathered.appends.push(append);
    gathered.batches.push(batch);
    gathered.slots.push(slot);
}

/// What of a request is proposed. A slice keeps all of its request in memory for as long as the journal remembers recent entries: one that is a small part of it is copied.
/// Several are copied anyway, when their entry is made.
fn payload(mut batches: Vec<Bytes>, request_bytes: usize) -> ProposalPayload {
    if batches.len() == 1 {
        return copied_if_small(batches.swap_remove(0), request_bytes).into();
    }
    batches.into()
}

fn copied_if_small(batch: Bytes, request_bytes: usize) -> Bytes {
    if batch.len() < request_bytes / 2 { Bytes::copy_from_slice(&batch) } else { batch }
}

/// Puts one proposal into its shard's queue, without waiting for its outcome. The first poll does that; it must not be put off
/// by tokio's cooperative budget, or a later request could overtake this one.
async fn propose<E: Env>(
    broker: &Broker<E>,
    shard_id: ShardId,
    gathered: Gathered,
    request_bytes: usize,
    deadline: Instant,
) -> Proposed {
    let Gathered { appends, batches, slots, .. } = gathered;
    let settled = |error: ProposeError| Box::pin(std::future::ready(Err(error)));
    let Some(shard) = broker.node().shard(shard_id) else {
        let leader = broker.node().leader_of(shard_id).map(|(leader, _)| leader);
        return Proposed {
            shard: shard_id,
            slots,
            reply: settled(ProposeError::NotLeader { shard: shard_id, leader }),
        };
    };
    let payload = payload(batches, request_bytes);
    let op = Op::AppendMessage(AppendMessage {
        now_ms: broker.env().wall_clock_ms(),
        segment_bytes: broker.config().node.segment_bytes,
        appends,
    });
    loop {
        let (shard, op, payload) = (shard.clone(), op.clone(), payload.clone());
        let mut reply: Pin<Box<dyn Future<Output = Result<Reply, ProposeError>> + Send>> =
            Box::pin(unconstrained(async move { shard.propose(op, payload).await }));
        let first = std::future::poll_fn(|cx| Poll::Ready(reply.as_mut().poll(cx))).await;
        let reply = match first {
            Poll::Pending => reply,
            Poll::Ready(Err(ProposeError::Overloaded(_))) if E::now() < deadline => {
                Mark::ProduceHeldUp.reached();
                E::sleep(OVERLOAD_PAUSE).await;
                continue;
            }
            Poll::Ready(outcome) => Box::pin(std::future::ready(outcome)),
        };
        return Proposed { shard: shard_id, slots, reply };
    }
}

fn outcomes(shard: ShardId, reply: Result<Reply, ProposeError>, count: usize) -> Vec<Produced> {
    match reply {
        Ok(Reply::Append(appended)) if appended.len() == count => {
            appended.into_iter().map(|outcome| outcome.map_err(|error| ErrorCode::of_append(error).into())).collect()
        }
        Ok(other) => {
            tracing::error!(?other, "a reply of another kind to AppendMessage");
            vec![Err(ErrorCode::UnknownServerError.into()); count]
        }
        Err(error) => {
            let moved = matches!(error, ProposeError::NotLeader { .. }).then_some(shard);
            vec![Err(Failure { moved, ..ErrorCode::of_partition(&error).into() }); count]
        }
    }
}

fn respond<E: Env>(
    broker: &Broker<E>,
    version: i16,
    topics: Vec<TopicProduceData>,
    results: Vec<Vec<Produced>>,
) -> ProduceResponse {
    // Looked up only when somebody must be told who leads (KIP-951).
    let mut view: Option<ClusterView> = None;
    let mut leaders: BTreeMap<BrokerId, NodeEndpoint> = BTreeMap::new();
    let responses = topics
        .into_iter()
        .zip(results)
        .map(|(topic, results)| {
            let partitions = topic.partition_data.iter().zip(results).map(|(partition, result)| {
                let mut response = PartitionProduceResponse::default().with_index(partition.index);
                match result {
                    Ok(appended) => {
                        response.base_offset = appended.base_offset;
                        response.log_append_time_ms = appended.log_append_time_ms.unwrap_or(-1);
                        if version >= 5 {
                            response.log_start_offset = appended.log_start_offset;
                        }
                    }
                    Err(failure) => {
                        response.error_code = failure.error.code();
                        response.base_offset = -1;
                        response.log_append_time_ms = -1;
                        let message = failure.reason.unwrap_or(failure.error.message());
                        if version >= 8 && !message.is_empty() {
                            response.error_message = Some(message.into());
                        }
                        if let Some(shard) = failure.moved.filter(|_| version >= 10) {
                            let view = view.get_or_insert_with(|| ClusterView::take(broker));
                            if let Some((leader, epoch)) = view.leader(broker, shard) {
                                Mark::ProducerToldOfNewLeader.reached();
                                response.current_leader =
                                    LeaderIdAndEpoch::default().with_leader_id(leader).with_leader_epoch(epoch);
                                if let Some(known) = view.brokers.values().find(|known| known.broker_id() == leader) {
                                    leaders.entry(leader).or_insert_with(|| endpoint(known));
                                }
                            }
                        }
                    }
                }
                response
            });
            let partitions = partitions.collect();
            let response = TopicProduceResponse::default().with_partition_responses(partitions);
            if version >= 13 { response.with_topic_id(topic.topic_id) } else { response.with_name(topic.name) }
        })
        .collect();
    ProduceResponse::default().with_responses(responses).with_node_endpoints(leaders.into_values().collect())
}

fn endpoint(known: &cluster_view::KnownBroker) -> NodeEndpoint {
    NodeEndpoint::default()
        .with_node_id(known.broker_id())
        .with_host(known.host())
        .with_port(i32::from(known.record.port))
        .with_rack(known.rack())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::TopicId;
    use lockstep_wire::BatchBuilder;
    use lockstep_wire::codec::produce_request::PartitionProduceData;

    fn batch(compression: Compression) -> Bytes {
        let mut builder = BatchBuilder::new();
        builder.push(1, Some(b"key"), Some(b"value"), &[]);
        builder.push(2, None, Some(b"value"), &[]);
        builder.finish(compression, None).expect("batch")
    }

    fn check_records(
        version: i16,
        acks: i16,
        records: Option<Bytes>,
        max_message_bytes: usize,
    ) -> Result<PartitionAppend, ErrorCode> {
        check_for(version, acks, records, max_message_bytes, false).map_err(|failure| failure.error)
    }

    fn check_for(
        version: i16,
        acks: i16,
        records: Option<Bytes>,
        max_message_bytes: usize,
        is_compacted: bool,
    ) -> Result<PartitionAppend, Failure> {
        let shards = vec![Some(ShardId(3))];
        let located = LocatedTopic { id: TopicId([7; 16]), max_message_bytes, is_compacted, shards };
        let topic = TopicProduceData::default()
            .with_partition_data(vec![PartitionProduceData::default().with_index(0).with_records(records)]);
        let request = ProduceRequest::default().with_acks(acks);
        let (_, append, batch) = check(version, &request, &Ok(located), &topic, 0)?;
        if is_compacted {
            check_keys(&batch)?;
        }
        Ok(append)
    }

    #[test]
    fn a_sound_batch_passes_with_what_its_header_says() {
        let append = check_records(9, -1, Some(batch(Compression::None)), 1 << 20).expect("sound");
        assert_eq!((append.offset_count, append.max_timestamp_ms), (2, 2));
        assert_eq!((append.producer_id, append.producer_epoch, append.base_sequence), (-1, -1, -1));
    }

    #[test]
    fn what_is_wrong_with_a_batch_gets_its_own_error() {
        let sound = batch(Compression::None);
        let changed = |position: usize, to: u8| {
            let mut bytes = sound.to_vec();
            bytes[position] = to;
            Some(Bytes::from(bytes))
        };
        let twice = Bytes::from([&sound[..], &sound[..]].concat());
        for (records, error) in [
            (None, ErrorCode::InvalidRecord),
            (Some(Bytes::new()), ErrorCode::InvalidRecord),
            (Some(twice), ErrorCode::InvalidRecord),
            (changed(16, 1), ErrorCode::UnsupportedForMessageFormat),
            (changed(sound.len() - 1, 0xaa), ErrorCode::CorruptMessage),
            (Some(sound.slice(..40)), ErrorCode::CorruptMessage),
        ] {
            assert_eq!(check_records(9, -1, records, 1 << 20), Err(error));
        }
        assert_eq!(check_records(9, -1, Some(sound.clone()), sound.len() - 1), Err(ErrorCode::MessageTooLarge));
        assert_eq!(check_records(9, 2, Some(sound), 1 << 20), Err(ErrorCode::InvalidRequiredAcks));
    }

    #[test]
    fn a_small_batch_does_not_keep_its_request_in_memory() {
        let request = Bytes::from(vec![7; 1_000]);
        let is_slice = |payload: &Bytes| request.as_ptr_range().contains(&payload.as_ptr());
        for (range, is_kept) in [(0..900, true), (0..500, true), (500..999, false), (3..4, false)] {
            let batch = request.slice(range);
            let proposed = copied_if_small(batch.clone(), request.len());
            assert_eq!((&proposed, is_slice(&proposed)), (&batch, is_kept));
        }
    }

    #[test]
    fn a_compacted_topic_takes_records_with_keys_only() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mixed = batch(compression);
            assert_eq!(check_for(9, -1, Some(mixed), 1 << 20, true), Err(NO_KEY));
            let mut builder = BatchBuilder::new();
            builder.push(1, Some(b""), Some(b"value"), &[]);
            builder.push(2, Some(b"key"), None, &[]);
            let keyed = builder.finish(compression, None).expect("batch");
            assert!(check_for(9, -1, Some(keyed), 1 << 20, true).is_ok(), "an empty key is a key");
        }
        // It says that it is compressed by gzip.
        let mut unreadable = batch(Compression::None).to_vec();
        unreadable[22] |= 1;
        let crc = crc32c::crc32c(&unreadable[21..]);
        unreadable[17..21].copy_from_slice(&crc.to_be_bytes());
        let unreadable = Bytes::from(unreadable);
        assert!(check_for(9, -1, Some(unreadable.clone()), 1 << 20, false).is_ok(), "nobody looks");
        let refused = check_for(9, -1, Some(unreadable), 1 << 20, true);
        assert_eq!(refused, Err(ErrorCode::InvalidRecord.into()));
    }

    #[test]
    fn zstd_needs_version_7() {
        let records = batch(Compression::Zstd);
        assert_eq!(check_records(6, 1, Some(records.clone()), 1 << 20), Err(ErrorCode::UnsupportedCompressionType));
        assert!(check_records(7, 1, Some(records), 1 << 20).is_ok());
    }

    #[test]
    fn a_proposal_holds_a_mebibyte_or_one_batch() {
        let append = check_records(9, -1, Some(batch(Compression::None)), 1 << 20).expect("sound");
        let mut proposals = Vec::new();
        for (slot, len) in [600_000, 400_000, 100_000, 3 << 20, 1].into_iter().enumerate() {
            gather(&mut proposals, append.clone(), Bytes::from(vec![0; len]), (0, slot));
        }
        let slots: Vec<Vec<usize>> =
            proposals.iter().map(|gathered| gathered.slots.iter().map(|slot| slot.1).collect()).collect();
        assert_eq!(slots, [vec![0, 1], vec![2], vec![3], vec![4]]);
        assert_eq!(proposals[0].appends[1].payload_start, 600_000);
    }
}
