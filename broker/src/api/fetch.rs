//! Fetch: waits until there is enough to read, and hands out batches as they are stored.
//!
//! Any replica serves what it has applied. OFFSET_OUT_OF_RANGE makes a client reset its position, so above the end of the log it
//! comes only from a leader that has made sure that it is not merely behind; until then the client waits.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lockstep_core::{ShardId, TopicId};
use lockstep_env::{Either, Env, select, timeout};
use lockstep_probe::{Mark, Mistake};
use lockstep_runtime::{LogReadError, PartitionLog, ProposeError, Shard};
use lockstep_wire::codec::fetch_response::{
    EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use lockstep_wire::codec::{BrokerId, FetchRequest, FetchResponse, TopicName, Uuid};
use tokio::sync::Notify;

use crate::answer_room::TakenRoom;
use crate::api::fetch_session::{Answered, PartitionKey, Told, Wanted};
use crate::broker::Broker;
use crate::cluster_view::{self, ClusterView};
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topics::{self, TopicKey};

/// No response carries more bytes of records, whatever a request allows (one batch may be larger).
const RESPONSE_BYTES_MAX: usize = 55 << 20;
/// No request waits longer.
const WAIT_MAX_MS: i32 = 300_000;
/// What a batch may have in bytes when its topic does not say: Kafka's default of `max.message.bytes`, rounded up.
const BATCH_BYTES: usize = (1 << 20) + (1 << 10);
/// A single batch that is longer is sent as it lies in memory.
const COPIED_BYTES_MAX: usize = 256 << 10;
/// While there is no room for a batch, a fetch that would not wait is not answered sooner: its client would only ask again.
const ROOM_WAIT_MIN: Duration = Duration::from_millis(100);
/// How long a leader may take to make sure that an offset really lies above the end of its log.
const RANGE_CHECK_TIMEOUT: Duration = Duration::from_millis(500);
/// From this version on consumers may read from followers (KIP-392).
const FOLLOWERS_SERVE_FROM: i16 = 11;
/// `isolation_level` of consumers that want no records of open transactions; there are none.
const READ_COMMITTED: i8 = 1;

/// A partition of the request and the log to read it from.
struct Source<E: Env> {
    key: PartitionKey,
    wanted: Wanted,
    place: Result<Place<E>, ErrorCode>,
}

struct Place<E: Env> {
    topic_id: TopicId,
    partition: u32,
    shard: Shard<E>,
    log: PartitionLog<E>,
}

/// What reading a partition gave.
#[derive(Debug, Default)]
struct Read {
    error: Option<ErrorCode>,
    records: Bytes,
    /// What the records hold of the memory for answers.
    room: TakenRoom,
    told: Option<Told>,
    diverging: Option<(i32, i64)>,
    /// If nothing comes until the time is up, answer with this error.
    late_error: Option<ErrorCode>,
    /// The shard whose leader the client should be told.
    moved: Option<ShardId>,
}

impl Read {
    fn error(error: ErrorCode) -> Self {
        Self { error: Some(error), ..Self::default() }
    }

    /// It found the end of the log, which is still where it was.
    fn is_empty_at(&self, now: Told) -> bool {
        self.told == Some(now) && self.records.is_empty() && self.late_error.is_none() && !self.must_be_answered()
    }

    fn must_be_answered(&self) -> bool {
        self.error.is_some() || self.diverging.is_some()
    }
}

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: FetchRequest,
) -> (FetchResponse, TakenRoom) {
    let version = context.api_version;
    let fresh_id = (E::random_u64() & 0x7fff_ffff) as i32;
    let begun = broker.fetch_sessions().begin(version, &request, fresh_id, E::now());
    let begun = match begun {
        Ok(begun) => begun,
        Err(error) => return (FetchResponse::default().with_error_code(error.code()), TakenRoom::default()),
    };
    let sources = locate(broker, &begun.wanted);
    let waiter = Arc::new(Notify::new());
    for place in sources.iter().filter_map(|source| source.place.as_ref().ok()) {
        place.log.wake_on_append(&waiter);
    }

    let wait = Duration::from_millis(request.max_wait_ms.clamp(0, WAIT_MAX_MS).unsigned_abs().into());
    let deadline = E::now() + wait;
    let bytes_max = usize::try_from(request.max_bytes).unwrap_or(0).min(RESPONSE_BYTES_MAX);
    let bytes_min = usize::try_from(request.min_bytes).unwrap_or(0).min(bytes_max.max(1));
    let mut reads: Vec<Read> = sources.iter().map(|_| Read::default()).collect();
    loop {
        let mut woken = pin!(waiter.notified());
        woken.as_mut().enable();
        read_all(broker, version, &sources, bytes_max, deadline, &mut reads).await;
        let bytes: usize = reads.iter().map(|read| read.records.len()).sum();
        // What waits for more holds room meanwhile.
        let is_enough = bytes >= bytes_min || bytes > 0 && !broker.records_room().is_ample();
        if is_enough || reads.iter().any(Read::must_be_answered) || E::now() >= deadline {
            break;
        }
        match select(woken, select(E::sleep_until(deadline), broker.stop().given())).await {
            Either::First(()) => Mark::FetchWokenByAppend.reached(),
            Either::Second(_) => break,
        }
    }
    for read in &mut reads {
        if read.late_error.is_some() && read.records.is_empty() {
            Mark::FetchRefusedLate.reached();
        }
        read.error = read.error.or(read.late_error.filter(|_| read.records.is_empty()));
    }

    let answered: Vec<(PartitionKey, Answered)> = sources
        .iter()
        .zip(&reads)
        .map(|(source, read)| {
            let has_records = !read.records.is_empty();
            let told = read.told.filter(|_| read.error.is_none());
            let has_news = has_records || read.must_be_answered();
            (source.key.clone(), Answered { told, has_news, has_records })
        })
        .collect();
    let sent = broker.fetch_sessions().finish(&begun, &answered);
    let mut response = FetchResponse::default();
    if version >= 7 {
        response.session_id = begun.session_id;
    }
    let mut room = TakenRoom::default();
    reads.iter_mut().for_each(|read| room.add(std::mem::take(&mut read.room)));
    (respond(broker, version, request.isolation_level, sources, reads, &sent, response), room)
}

fn locate<E: Env>(broker: &Broker<E>, wanted: &[(PartitionKey, Wanted)]) -> Vec<Source<E>> {
    // Partitions of one topic are looked up together.
    let mut by_topic: BTreeMap<&TopicKey, Vec<(usize, i32)>> = BTreeMap::new();
    for (position, (key, _)) in wanted.iter().enumerate() {
        by_topic.entry(&key.topic).or_default().push((position, key.partition));
    }
    let mut places: Vec<Option<Result<Place<E>, ErrorCode>>> = wanted.iter().map(|_| None).collect();
    for (topic, partitions) in by_topic {
        let located = topics::locate(broker, topic, partitions.iter().map(|(_, index)| *index));
        for (nth, (position, index)) in partitions.iter().enumerate() {
            places[*position] = Some(located.as_ref().map_err(|error| *error).and_then(|located| {
                let shard_id = located.shards.get(nth).copied().flatten().ok_or(ErrorCode::UnknownTopicOrPartition)?;
                let partition = u32::try_from(*index).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
                let shard = broker.node().shard(shard_id).ok_or(ErrorCode::NotLeaderOrFollower)?;
                // The directory may be ahead of the shard, which hears of new topics a moment later.
                let log = shard.log(located.id, partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
                Ok(Place { topic_id: located.id, partition, shard, log })
            }));
        }
    }
    wanted
        .iter()
        .zip(places)
        .map(|((key, wanted), place)| Source {
            key: key.clone(),
            wanted: *wanted,
            place: place.unwrap_or(Err(ErrorCode::UnknownTopicOrPartition)),
        })
        .collect()
}

/// Reads every partition; of those that an earlier round found empty, only the ones to which something was appended since.
async fn read_all<E: Env>(
    broker: &Broker<E>,
    version: i16,
    sources: &[Source<E>],
    bytes_max: usize,
    deadline: Instant,
    reads: &mut [Read],
) {
    // The first batch of a response is sent however large it is, or its consumer could never pass it.
    let mut allowance = Allowance { bytes: bytes_max, at_least_one: true, deadline };
    for (source, read) in sources.iter().zip(reads) {
        if !matches!(&source.place, Ok(place) if read.is_empty_at(told(&place.log))) {
            // What it held is free before it is read anew.
            *read = Read::default();
            *read = match &source.place {
                Ok(place) => read_one(broker, version, place, source.wanted, &mut allowance).await,
                Err(error) => Read::error(*error),
            };
        }
        if !read.records.is_empty() {
            allowance.at_least_one = false;
            allowance.bytes = allowance.bytes.saturating_sub(read.records.len());
        }
    }
}

/// What a response may still read.
struct Allowance {
    bytes: usize,
    /// One batch, however long it is.
    at_least_one: bool,
    /// Until then it waits for room.
    deadline: Instant,
}

/// Reads what fits, once there is room for it.
async fn read_log<E: Env>(
    broker: &Broker<E>,
    place: &Place<E>,
    wanted: Wanted,
    allowance: &mut Allowance,
) -> Result<(Bytes, TakenRoom), LogReadError> {
    let Place { topic_id, partition, ref shard, ref log } = *place;
    // Most partitions of a fetch that waits: nothing is there to be held, but the log may be gone.
    if wanted.fetch_offset == log.end_offset() {
        log.read(wanted.fetch_offset, 0, false).await?;
        return Ok((Bytes::new(), TakenRoom::default()));
    }
    let bytes_max = usize::try_from(wanted.bytes_max).unwrap_or(0).min(allowance.bytes);
    let least = if allowance.at_least_one { BATCH_BYTES } else { 1 };
    let (mut room, mut ample) = broker.records_room().take_ample(bytes_max.max(least));
    if ample < least {
        ample = 0;
        room = TakenRoom::default();
        if allowance.at_least_one {
            let patience = allowance.deadline.saturating_duration_since(E::now()).max(ROOM_WAIT_MIN);
            match timeout::<E, _>(patience, broker.records_room().take_for_batch(least)).await {
                Ok(taken) => room = taken,
                Err(_) => allowance.at_least_one = false,
            }
        }
    }
    let bytes_max = bytes_max.min(ample);
    if bytes_max == 0 && !allowance.at_least_one {
        return Ok((Bytes::new(), room));
    }
    let batches = log.read(wanted.fetch_offset, bytes_max, allowance.at_least_one).await?;
    let records = join(shard.check_epochs(topic_id, partition, batches)?);
    room.settle(records.len());
    Ok((records, room))
}

async fn read_one<E: Env>(
    broker: &Broker<E>,
    version: i16,
    place: &Place<E>,
    wanted: Wanted,
    allowance: &mut Allowance,
) -> Read {
    let serving = place.shard.serving();
    let moved = |error: ErrorCode| Read { moved: Some(place.shard.id()), ..Read::error(error) };
    if let Err(error) = check_epoch(&place.shard, wanted.current_leader_epoch) {
        return moved(error);
    }
    if version < FOLLOWERS_SERVE_FROM
        && let Err(error) = &serving
    {
        return moved(ErrorCode::of_partition(error));
    }
    // What a leader says of epochs is final; a follower may not know of the last ones yet.
    if serving.is_ok() && wanted.last_fetched_epoch >= 0 {
        let end = place
            .shard
            .read(|state| state.end_offset_for_epoch(place.topic_id, place.partition, wanted.last_fetched_epoch));
        if let Some((epoch, end_offset)) = end
            && (epoch < wanted.last_fetched_epoch || end_offset < wanted.fetch_offset)
        {
            return Read { diverging: Some((epoch, end_offset)), told: Some(told(&place.log)), ..Read::default() };
        }
    }
    let read = read_log(broker, place, wanted, allowance).await;
    if serving.is_err() && read.as_ref().is_ok_and(|(records, _)| !records.is_empty()) {
        Mark::FetchServedByFollower.reached();
    }
    match read {
        Ok((records, room)) => Read {
            records,
            room,
            told: Some(told(&place.log)),
            late_error: if is_current(broker, &place.shard, &serving) {
                None
            } else {
                Some(ErrorCode::NotLeaderOrFollower)
            },
            moved: Some(place.shard.id()),
            ..Read::default()
        },
        // What was deleted stays deleted: this is true on every replica.
        Err(LogReadError::OutOfRange { start, .. }) if wanted.fetch_offset < start => {
            Read { told: Some(told(&place.log)), ..Read::error(ErrorCode::OffsetOutOfRange) }
        }
        Err(LogReadError::OutOfRange { .. }) => beyond_the_end(broker, version, place, wanted, serving.is_ok()).await,
        Err(error) => {
            tracing::warn!(topic = %place.topic_id, partition = place.partition, %error, "cannot read");
            Read::error(ErrorCode::of_log_read(&error))
        }
    }
}

/// The offset lies above what this node has applied. A follower may have been faster than its leader, so even a leader
/// first makes sure that it has applied all that was committed before it calls the offset wrong.
async fn beyond_the_end<E: Env>(
    broker: &Broker<E>,
    version: i16,
    place: &Place<E>,
    wanted: Wanted,
    serving: bool,
) -> Read {
    let waiting = Read {
        told: Some(told(&place.log)),
        late_error: Some(if version >= FOLLOWERS_SERVE_FROM {
            ErrorCode::OffsetNotAvailable
        } else {
            ErrorCode::LeaderNotAvailable
        }),
        moved: Some(place.shard.id()),
        ..Read::default()
    };
    let careless = Mistake::OffsetOutOfRangeOnFollower.is_made();
    if !careless && (!serving || broker.node().linearizable(place.shard.id(), RANGE_CHECK_TIMEOUT).await.is_err()) {
        Mark::OffsetNotAvailable.reached();
        return waiting;
    }
    if wanted.fetch_offset > place.log.end_offset() && (careless || place.shard.serving().is_ok()) {
        return Read { told: Some(told(&place.log)), ..Read::error(ErrorCode::OffsetOutOfRange) };
    }
    // It was merely behind: the append that brought it there has woken the waiter.
    waiting
}

fn told<E: Env>(log: &PartitionLog<E>) -> Told {
    Told { high_watermark: log.end_offset(), log_start_offset: log.start_offset() }
}

/// Does this node hear of what is appended? It leads, or follows a leader that lives. One that is cut off would let its
/// consumers wait for ever.
fn is_current<E: Env>(broker: &Broker<E>, shard: &Shard<E>, serving: &Result<u64, ProposeError>) -> bool {
    match serving {
        Ok(_) | Err(ProposeError::Loading(_)) => true,
        Err(_) => shard.leader().is_some_and(|(leader, _)| leader != broker.node_id() && broker.node().alive(leader)),
    }
}

/// KIP-320: a client that knows an older epoch must refresh its metadata, one that knows a newer one must wait for us.
pub(crate) fn check_epoch<E: Env>(shard: &Shard<E>, current_leader_epoch: i32) -> Result<(), ErrorCode> {
    if current_leader_epoch < 0 {
        return Ok(());
    }
    let Some((_, term)) = shard.leader() else { return Ok(()) };
    match current_leader_epoch.cmp(&cluster_view::leader_epoch(term)) {
        std::cmp::Ordering::Less => Err(ErrorCode::FencedLeaderEpoch),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(ErrorCode::UnknownLeaderEpoch),
    }
}

/// The batches in memory of their own: a short slice of the node's cache would keep the whole chunk that it is in for as long as a client takes.
fn join(mut batches: Vec<Bytes>) -> Bytes {
    let is_one = batches.len() <= 1 || Mistake::FetchDropsAllButLastBatch.is_made();
    if is_one && batches.last().is_none_or(|batch| batch.is_empty() || batch.len() > COPIED_BYTES_MAX) {
        return batches.pop().unwrap_or_default();
    }
    if is_one {
        batches.drain(..batches.len() - 1);
    }
    let mut records = BytesMut::with_capacity(batches.iter().map(Bytes::len).sum());
    batches.iter().for_each(|batch| records.extend_from_slice(batch));
    records.freeze()
}

fn respond<E: Env>(
    broker: &Broker<E>,
    version: i16,
    isolation_level: i8,
    sources: Vec<Source<E>>,
    reads: Vec<Read>,
    sent: &[bool],
    response: FetchResponse,
) -> FetchResponse {
    let mut view: Option<ClusterView> = None;
    let mut leaders: BTreeMap<BrokerId, NodeEndpoint> = BTreeMap::new();
    let mut responses: Vec<(TopicKey, Vec<PartitionData>)> = Vec::new();
    for ((source, read), _) in sources.into_iter().zip(reads).zip(sent).filter(|(_, sent)| **sent) {
        let mut data = PartitionData::default()
            .with_partition_index(source.key.partition)
            .with_records(Some(read.records))
            .with_aborted_transactions((isolation_level == READ_COMMITTED).then(Vec::new));
        let told = read.told.unwrap_or(Told { high_watermark: -1, log_start_offset: -1 });
        data.high_watermark = told.high_watermark;
        data.last_stable_offset = told.high_watermark;
        if version >= 5 {
            data.log_start_offset = told.log_start_offset;
        }
        if let Some(error) = read.error {
            data.error_code = error.code();
        }
        if version >= 12 {
            if let Some((epoch, end_offset)) = read.diverging {
                data.diverging_epoch = EpochEndOffset::default().with_epoch(epoch).with_end_offset(end_offset);
            }
            let has_moved = matches!(read.error, Some(ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch));
            if let Some(shard) = read.moved.filter(|_| has_moved) {
                let view = view.get_or_insert_with(|| ClusterView::take(broker));
                if let Some((leader, epoch)) = view.leader(broker, shard) {
                    Mark::ConsumerToldOfNewLeader.reached();
                    data.current_leader = LeaderIdAndEpoch::default().with_leader_id(leader).with_leader_epoch(epoch);
                    if let Some(known) =
                        view.brokers.values().find(|known| version >= 16 && known.broker_id() == leader)
                    {
                        leaders.entry(leader).or_insert_with(|| endpoint(known));
                    }
                }
            }
        }
        match responses.last_mut() {
            Some((topic, partitions)) if *topic == source.key.topic => partitions.push(data),
            _ => responses.push((source.key.topic, vec![data])),
        }
    }
    let responses = responses
        .into_iter()
        .map(|(topic, partitions)| {
            let response = FetchableTopicResponse::default().with_partitions(partitions);
            match topic {
                TopicKey::Name(name) => response.with_topic(TopicName(name.into())),
                TopicKey::Id(id) => response.with_topic_id(Uuid::from_bytes(id.0)),
            }
        })
        .collect();
    response.with_responses(responses).with_node_endpoints(leaders.into_values().collect())
}

fn endpoint(known: &cluster_view::KnownBroker) -> NodeEndpoint {
    NodeEndpoint::default()
        .with_node_id(known.broker_id())
        .with_host(known.host())
        .with_port(i32::from(known.record.port))
        .with_rack(known.rack())
}
