//! The task that sends what the accumulator has ready, one lane a broker.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_env::{Env, select};
use lockstep_wire::Request;
use lockstep_wire::api::Call;
use lockstep_wire::codec::produce_request::{PartitionProduceData, TopicProduceData};
use lockstep_wire::codec::{InitProducerIdRequest, ProduceRequest, ProduceResponse, ProducerId, Uuid};
use tokio::sync::{Notify, mpsc};

use crate::admin::topic_name;
use crate::client::{Client, Purpose};
use crate::error::ClientError;
use crate::producer::accumulator::{Accumulator, OutgoingBatch};
use crate::producer::delivery::BatchAck;
use crate::producer::partition_queue::{Answer, Finished, ProducerIdentity};
use crate::producer::{Acks, ProducerConfig};
use crate::retry::Backoff;
use crate::succession::Role;
use lockstep_probe::Mark;

/// The first version that names topics by id.
const TOPIC_ID_VERSION: i16 = 13;
/// Longest wait for one answer, so that a broker that fell silent leaves time for its successor.
const ANSWER_PATIENCE_MAX: Duration = Duration::from_secs(10);

/// Topics gain partitions, which nothing but metadata tells.
const METADATA_AGE_MAX: Duration = Duration::from_secs(60);
/// Pause after metadata came: where there is still no leader it is asked for again, but not at once.
const METADATA_PAUSE: Duration = Duration::from_millis(50);

/// What a producer and its tasks share.
#[derive(Debug)]
pub(crate) struct Shared<E: Env> {
    pub(crate) client: Client<E>,
    pub(crate) config: ProducerConfig,
    pub(crate) number: u64,
    accumulator: Mutex<Accumulator>,
    /// The sender must look.
    pub(crate) wake: Notify,
    /// Batches are over: there is room, or a flush may be done.
    pub(crate) progress: Notify,
}

impl<E: Env> Shared<E> {
    pub(crate) fn new(client: Client<E>, config: ProducerConfig, accumulator: Accumulator) -> Arc<Self> {
        let number = client.next_user_number();
        Arc::new(Self {
            client,
            config,
            number,
            accumulator: Mutex::new(accumulator),
            wake: Notify::new(),
            progress: Notify::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Accumulator> {
        self.accumulator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait. Never called with the lock held: their wakers are not ours.
    pub(crate) fn finish(&self, over: Vec<Finished>) {
        if over.is_empty() {
            return;
        }
        for finished in over {
            finished.delivery.finish(finished.outcome);
        }
        self.progress.notify_waiters();
    }

    fn patience(&self) -> Duration {
        (self.config.delivery_timeout / 3).clamp(Duration::from_millis(500), ANSWER_PATIENCE_MAX)
    }

    fn complete(&self, leader: i32, answers: Vec<(OutgoingBatch, Answer)>) {
        let now = E::now();
        let over = self
            .lock()
            .on_answers(leader, answers, now, |failures| Backoff::after(failures).next_delay(E::random_u64()));
        self.finish(over);
        self.wake.notify_one();
    }
}

/// One request's batches.
type Lane = mpsc::UnboundedSender<Vec<OutgoingBatch>>;

/// Runs until the producer is closed.
pub(crate) async fn run<E: Env>(shared: Arc<Shared<E>>) {
    let mut lanes: BTreeMap<i32, Lane> = BTreeMap::new();
    let refreshing = Arc::new(Mutex::new(false));
    let identifying = Arc::new(Mutex::new(false));
    let mut refresh_all_at = E::now() + METADATA_AGE_MAX;
    loop {
        let mut woken = pin!(shared.wake.notified());
        woken.as_mut().enable();
        let (drained, over) = {
            let mut accumulator = shared.lock();
            if accumulator.is_closed() {
                return;
            }
            let now = E::now();
            let (mut drained, over) = accumulator.drain(now);
            if now >= refresh_all_at {
                drained.stale_topics = accumulator.topic_names();
                refresh_all_at = now + METADATA_AGE_MAX;
            }
            (drained, over)
        };
        shared.finish(over);
        let has_sent = !drained.requests.is_empty();
        for (leader, batches) in drained.requests {
            let lane = lanes.entry(leader).or_insert_with(|| open_lane(&shared, leader));
            // A lane ends only with its sender, which is here.
            let _ = lane.send(batches);
        }
        if !drained.stale_topics.is_empty() && begin(&refreshing) {
            let shared = Arc::clone(&shared);
            let refreshing = Arc::clone(&refreshing);
            let topics: Vec<Arc<str>> = drained.stale_topics.into_iter().collect();
            drop(E::spawn(async move {
                refresh(&shared, &topics).await;
                end(&refreshing);
                shared.wake.notify_one();
            }));
        }
        if drained.needs_identity && begin(&identifying) {
            let shared = Arc::clone(&shared);
            let identifying = Arc::clone(&identifying);
            drop(E::spawn(async move {
                let identity = identify(&shared).await;
                if let Some(identity) = identity {
                    shared.lock().set_identity(identity);
                }
                end(&identifying);
                shared.wake.notify_one();
            }));
        }
        // A partition may have another full batch, which goes into a request of its own.
        if has_sent {
            continue;
        }
        let wake_at = drained.wake_at.map_or(refresh_all_at, |at| at.min(refresh_all_at));
        select(woken, E::sleep_until(wake_at)).await;
    }
}

/// Whether it was not under way yet.
fn begin(flag: &Mutex<bool>) -> bool {
    !std::mem::replace(&mut *flag.lock().unwrap_or_else(PoisonError::into_inner), true)
}

fn end(flag: &Mutex<bool>) {
    *flag.lock().unwrap_or_else(PoisonError::into_inner) = false;
}

async fn refresh<E: Env>(shared: &Shared<E>, topics: &[Arc<str>]) {
    match shared.client.refresh(topics, true).await {
        Ok(_) => {
            let known: Vec<_> = topics.iter().filter_map(|name| shared.client.cached_topic(name)).collect();
            let mut accumulator = shared.lock();
            for topic in known {
                accumulator.set_topic(topic, E::random_u64());
            }
        }
        Err(error) => tracing::warn!(%error, "no metadata"),
    }
    E::sleep(METADATA_PAUSE).await;
}

async fn identify<E: Env>(shared: &Shared<E>) -> Option<ProducerIdentity> {
    let mut retry = shared.client.retry("a producer id");
    loop {
        let answer = shared
            .client
            .ask_any(|version| {
                let mut request = InitProducerIdRequest::default();
                request.transactional_id = None;
                request.transaction_timeout_ms = i32::MAX;
                if version >= 3 {
                    request.producer_id = ProducerId(-1);
                    request.producer_epoch = -1;
                }
                request
            })
            .await;
        let result = answer.and_then(|(_, response)| {
            crate::error::check_code(|| "a producer id".to_owned(), response.error_code, None)?;
            Ok(ProducerIdentity { producer_id: response.producer_id.0, producer_epoch: response.producer_epoch })
        });
        match result {
            Ok(identity) => return Some(identity),
            Err(error) => {
                if shared.lock().is_closed() {
                    return None;
                }
                if let Err(error) = retry.pause_anyway(&error).await {
                    tracing::warn!(%error, "no producer id; trying on");
                    return None;
                }
            }
        }
    }
}

fn open_lane<E: Env>(shared: &Arc<Shared<E>>, leader: i32) -> Lane {
    let (lane, mut requests) = mpsc::unbounded_channel();
    let shared = Arc::clone(shared);
    drop(E::spawn(async move {
        // Requests are handed to the connection one after another, so that batches of a partition leave in order;
        // answers are awaited beside.
        while let Some(batches) = requests.recv().await {
            if let Err((batches, error)) = send(&shared, leader, batches).await {
                let answers = batches.into_iter().map(|batch| (batch, Answer::NotSent(error.clone()))).collect();
                shared.complete(leader, answers);
            }
        }
    }));
    lane
}

async fn send<E: Env>(
    shared: &Arc<Shared<E>>,
    leader: i32,
    batches: Vec<OutgoingBatch>,
) -> Result<(), (Vec<OutgoingBatch>, ClientError)> {
    let partitions = batches.iter().map(|batch| (Arc::clone(&batch.topic), batch.partition)).collect();
    let role = Role::Leader { broker: leader, partitions };
    let connecting = async {
        let address = shared.client.address_of(leader)?;
        let purpose = Purpose::Produce(shared.number);
        let connection = shared.client.connection_in_role(&address, &role, purpose).await?;
        let mut version = connection.version_of(ProduceRequest::API_KEY)?;
        // Ids are of no use if the metadata came from a broker that does not know them.
        if batches.iter().any(|batch| batch.topic_id.is_nil()) {
            version = version.min(TOPIC_ID_VERSION - 1);
        }
        Ok((connection, version))
    };
    let (connection, version) = match connecting.await {
        Ok(found) => found,
        Err(error) => return Err((batches, error)),
    };
    let request = produce_request(&batches, version, shared.config.acks, shared.patience());
    if shared.config.acks == Acks::None {
        let sent = connection.send_unanswered(version, &Request::Produce(request));
        if let Err(error) = sent {
            return Err((batches, error));
        }
        let ack = BatchAck { base_offset: None, append_time_ms: None };
        let answers = batches.into_iter().map(|batch| (batch, Answer::Stored(ack))).collect();
        shared.complete(leader, answers);
        return Ok(());
    }
    let in_flight = match connection.send(version, request) {
        Ok(in_flight) => in_flight,
        Err(error) => return Err((batches, error)),
    };
    let shared = Arc::clone(shared);
    drop(E::spawn(async move {
        // The connection must live until the answer is there.
        let patience = shared.patience();
        let answer = shared.client.answer_in_role(&connection, &role, Duration::ZERO, patience, in_flight).await;
        let address = connection.address().to_owned();
        drop(connection);
        let answers = match answer {
            Ok(response) => match_answers(&shared, batches, &response, version, &address),
            Err(error) => {
                Mark::ProduceAnswerLost.reached();
                batches.into_iter().map(|batch| (batch, Answer::Lost(error.clone()))).collect()
            }
        };
        shared.complete(leader, answers);
    }));
    Ok(())
}

fn produce_request(batches: &[OutgoingBatch], version: i16, acks: Acks, patience: Duration) -> ProduceRequest {
    let mut topics: BTreeMap<(&Arc<str>, Uuid), Vec<PartitionProduceData>> = BTreeMap::new();
    for batch in batches {
        let mut partition = PartitionProduceData::default();
        partition.index = batch.partition;
        partition.records = Some(batch.bytes.clone());
        topics.entry((&batch.topic, batch.topic_id)).or_default().push(partition);
    }
    let mut request = ProduceRequest::default();
    request.transactional_id = None;
    request.acks = acks.code();
    request.timeout_ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    request.topic_data = topics
        .into_iter()
        .map(|((name, id), partitions)| {
            let mut topic = TopicProduceData::default();
            if version >= TOPIC_ID_VERSION {
                topic.topic_id = id;
            } else {
                topic.name = topic_name(name);
            }
            topic.partition_data = partitions;
            topic
        })
        .collect();
    request
}

fn match_answers<E: Env>(
    shared: &Shared<E>,
    batches: Vec<OutgoingBatch>,
    response: &ProduceResponse,
    version: i16,
    address: &str,
) -> Vec<(OutgoingBatch, Answer)> {
    batches
        .into_iter()
        .map(|batch| {
            let topic = response.responses.iter().find(|topic| match version {
                TOPIC_ID_VERSION.. => topic.topic_id == batch.topic_id,
                _ => topic.name.as_str() == &*batch.topic,
            });
            let partition =
                topic.and_then(|topic| topic.partition_responses.iter().find(|answer| answer.index == batch.partition));
            let Some(partition) = partition else {
                return (batch, Answer::Lost(ClientError::bad_answer(address, "a partition is missing")));
            };
            if partition.error_code == 0 {
                let ack = BatchAck {
                    base_offset: (partition.base_offset >= 0).then_some(partition.base_offset),
                    append_time_ms: (partition.log_append_time_ms >= 0).then_some(partition.log_append_time_ms),
                };
                return (batch, Answer::Stored(ack));
            }
            let leader = &partition.current_leader;
            shared.client.learn_leader(&batch.topic, batch.partition, leader.leader_id.0, leader.leader_epoch);
            let what = format!("producing to {}/{}", batch.topic, batch.partition);
            let error = ClientError::broker(what, partition.error_code, partition.error_message.as_deref());
            (batch, Answer::Refused(error))
        })
        .collect()
}
