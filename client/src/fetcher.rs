//! Fetching: one long poll at a time to every leader, ahead of what the caller has taken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_env::{Env, select};
use lockstep_wire::batch::Batches;
use lockstep_wire::codec::fetch_request::{FetchPartition, FetchTopic};
use lockstep_wire::codec::fetch_response::PartitionData;
use lockstep_wire::codec::{FetchRequest, FetchResponse, Uuid};
use lockstep_wire::records::{RecordHeader, decode_batch};
use lockstep_wire::{ApiKey, BatchError};
use tokio::sync::Notify;

use crate::admin::topic_name;
use crate::client::{Client, Purpose};
use crate::error::{ClientError, ErrorCode};
use crate::offsets::{OffsetAt, TopicPartition};
use crate::retry::Backoff;
use crate::succession::Role;
use lockstep_probe::Mark;

/// The first version that names topics by id.
const TOPIC_ID_VERSION: i16 = 13;
/// What the records of one batch may unfold to.
const DECOMPRESSED_LEN_MAX: usize = 128 << 20;
/// Pause after metadata came: where there is still no leader it is asked for again, but not at once.
const METADATA_PAUSE: Duration = Duration::from_millis(50);

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Key.
    pub key: Option<Bytes>,
    /// Value.
    pub value: Option<Bytes>,
    /// Headers in their order.
    pub headers: Vec<RecordHeader>,
}

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At this offset.
    Offset(i64),
    /// At a place that the leader is asked for.
    Place(OffsetAt),
}

/// What to do without an offset, or with one that the partition does not have (any more).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// Go on at the first offset that is kept.
    Earliest,
    /// Go on at the end: only what is written from now on.
    #[default]
    Latest,
    /// Fail.
    Fail,
}

impl OffsetReset {
    pub(crate) fn place(self) -> Option<OffsetAt> {
        match self {
            OffsetReset::Earliest => Some(OffsetAt::Earliest),
            OffsetReset::Latest => Some(OffsetAt::Latest),
            OffsetReset::Fail => None,
        }
    }
}

/// How much is fetched at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchConfig {
    /// How long a leader waits for records before it answers that there are none.
    pub wait_max: Duration,
    /// Bytes of a partition in one answer; a batch that is larger comes whole.
    pub partition_len_max: i32,
    /// Bytes of one answer.
    pub answer_len_max: i32,
    /// Bytes that are fetched ahead of what the caller has taken.
    pub ahead_len_max: usize,
    /// What to do with an offset that a partition does not have.
    pub reset: OffsetReset,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            wait_max: Duration::from_millis(500),
            partition_len_max: 1 << 20,
            answer_len_max: 16 << 20,
            ahead_len_max: 32 << 20,
            reset: OffsetReset::Latest,
        }
    }
}

#[derive(Debug)]
struct PartitionFetch {
    start: StartAt,
    /// Changes with every seek, so that what was fetched before is known as old.
    generation: u64,
    busy: bool,
    retry_at: Option<Instant>,
    failures: Backoff,
    /// Bytes fetched that the caller has not taken.
    ahead_len: usize,
}

#[derive(Debug)]
struct Fetched {
    at: TopicPartition,
    generation: u64,
    messages: VecDeque<Message>,
    len: usize,
}

#[derive(Debug, Default)]
struct State {
    partitions: BTreeMap<TopicPartition, PartitionFetch>,
    busy_leaders: BTreeSet<i32>,
    ready: VecDeque<Fetched>,
    ahead_len: usize,
    generation_next: u64,
    /// Topics whose leaders may have moved.
    stale_topics: BTreeSet<Arc<str>>,
    refreshing: bool,
    closed: bool,
    /// To be told to the caller.
    error: Option<ClientError>,
}

#[derive(Debug)]
struct Shared<E: Env> {
    client: Client<E>,
    config: FetchConfig,
    number: u64,
    state: Mutex<State>,
    /// The fetching task must look.
    wake: Notify,
    /// The caller must look.
    ready: Notify,
}

impl<E: Env> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a set of partitions.
#[derive(Debug)]
pub(crate) struct Fetcher<E: Env> {
    shared: Arc<Shared<E>>,
}

impl<E: Env> Drop for Fetcher<E> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        let number = self.shared.number;
        self.shared.client.forget_connections(|_, purpose| purpose == Purpose::Fetch(number));
    }
}

impl<E: Env> Fetcher<E> {
    pub(crate) fn new(client: &Client<E>, config: FetchConfig) -> Self {
        let shared = Arc::new(Shared {
            client: client.clone(),
            config,
            number: client.next_user_number(),
            state: Mutex::default(),
            wake: Notify::new(),
            ready: Notify::new(),
        });
        drop(E::spawn(run(Arc::clone(&shared))));
        Self { shared }
    }

    /// Begins to read a partition, or goes on elsewhere in it.
    pub(crate) fn start(&self, at: TopicPartition, start: StartAt) {
        let mut state = self.shared.lock();
        state.drop_fetched(&at);
        let generation = state.generation_next;
        state.generation_next += 1;
        let partition =
            PartitionFetch { start, generation, busy: false, retry_at: None, failures: Backoff::new(), ahead_len: 0 };
        state.partitions.insert(at, partition);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Stops reading a partition. Nothing of it is handed out from here on.
    pub(crate) fn stop(&self, at: &TopicPartition) {
        let mut state = self.shared.lock();
        state.drop_fetched(at);
        state.partitions.remove(at);
    }

    /// Partitions that are read.
    pub(crate) fn partitions(&self) -> BTreeSet<TopicPartition> {
        self.shared.lock().partitions.keys().cloned().collect()
    }

    /// The offset of the next message that the caller will get; `None` while it is being asked for, or if the partition
    /// is not read.
    pub(crate) fn position(&self, at: &TopicPartition) -> Option<i64> {
        let state = self.shared.lock();
        let partition = state.partitions.get(at)?;
        let first = state.ready.iter().find(|fetched| fetched.at == *at).and_then(|fetched| fetched.messages.front());
        match (first, partition.start) {
            (Some(message), _) => Some(message.offset),
            (None, StartAt::Offset(offset)) => Some(offset),
            (None, StartAt::Place(_)) => None,
        }
    }

    /// Up to `count_max` messages that are there already, all of one partition.
    pub(crate) fn take(&self, count_max: usize) -> Result<Vec<Message>, ClientError> {
        let mut state = self.shared.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        let Some(fetched) = state.ready.front_mut() else { return Ok(Vec::new()) };
        if fetched.messages.len() > count_max {
            return Ok(fetched.messages.drain(..count_max).collect());
        }
        let Some(fetched) = state.ready.pop_front() else { return Ok(Vec::new()) };
        state.release(&fetched);
        drop(state);
        self.shared.wake.notify_one();
        Ok(fetched.messages.into())
    }

    /// Waits until [`Fetcher::take`] has something, or has an error. May wake for nothing.
    pub(crate) async fn ready(&self) {
        let mut ready = pin!(self.shared.ready.notified());
        ready.as_mut().enable();
        {
            let state = self.shared.lock();
            if state.error.is_some() || !state.ready.is_empty() {
                return;
            }
        }
        ready.await;
    }

    /// Messages that are there already, waited for until `deadline` if there are none.
    pub(crate) async fn poll(&self, count_max: usize, deadline: Instant) -> Result<Vec<Message>, ClientError> {
        loop {
            let messages = self.take(count_max)?;
            if !messages.is_empty() || E::now() >= deadline {
                return Ok(messages);
            }
            select(self.ready(), E::sleep_until(deadline)).await;
        }
    }
}

impl State {
    /// Forgets what was fetched of a partition and not taken.
    fn drop_fetched(&mut self, at: &TopicPartition) {
        let dropped: usize = self.ready.iter().filter(|fetched| fetched.at == *at).map(|fetched| fetched.len).sum();
        self.ready.retain(|fetched| fetched.at != *at);
        self.ahead_len -= dropped;
    }

    fn release(&mut self, fetched: &Fetched) {
        self.ahead_len -= fetched.len;
        if let Some(partition) = self.partitions.get_mut(&fetched.at)
            && partition.generation == fetched.generation
        {
            partition.ahead_len -= fetched.len;
        }
    }

    fn current(&mut self, asked: &Asked) -> Option<&mut PartitionFetch> {
        self.partitions.get_mut(&asked.at).filter(|partition| partition.generation == asked.generation)
    }
}

impl PartitionFetch {
    fn retry_later<E: Env>(&mut self) {
        self.busy = false;
        self.retry_at = Some(E::now() + self.failures.next_delay(E::random_u64()));
    }
}

/// A partition's part of a request.
#[derive(Clone, Debug)]
struct Asked {
    at: TopicPartition,
    topic_id: Uuid,
    generation: u64,
    offset: i64,
}

/// What there is to do now.
#[derive(Default)]
struct Plan {
    fetches: BTreeMap<i32, Vec<Asked>>,
    places: Vec<(TopicPartition, u64, OffsetAt)>,
    stale_topics: BTreeSet<Arc<str>>,
    wake_at: Option<Instant>,
}

async fn run<E: Env>(shared: Arc<Shared<E>>) {
    loop {
        let mut woken = pin!(shared.wake.notified());
        woken.as_mut().enable();
        let Some(plan) = plan(&shared) else { return };
        for (leader, asked) in plan.fetches {
            let shared = Arc::clone(&shared);
            drop(E::spawn(async move {
                let result = fetch(&shared, leader, &asked).await;
                apply(&shared, leader, asked, result);
            }));
        }
        if !plan.places.is_empty() {
            let shared = Arc::clone(&shared);
            drop(E::spawn(async move { find_places(&shared, plan.places).await }));
        }
        if !plan.stale_topics.is_empty() {
            let shared = Arc::clone(&shared);
            drop(E::spawn(async move {
                let topics: Vec<_> = plan.stale_topics.into_iter().collect();
                if let Err(error) = shared.client.refresh(&topics, false).await {
                    tracing::warn!(%error, "no metadata");
                }
                E::sleep(METADATA_PAUSE).await;
                shared.lock().refreshing = false;
                shared.wake.notify_one();
            }));
        }
        match plan.wake_at {
            Some(at) => {
                select(woken, E::sleep_until(at)).await;
            }
            None => woken.await,
        }
    }
}

/// Decides what to do, and marks it as under way. `None` once the fetcher is closed.
fn plan<E: Env>(shared: &Shared<E>) -> Option<Plan> {
    let now = E::now();
    let mut state = shared.lock();
    if state.closed {
        return None;
    }
    let mut plan = Plan::default();
    let state = &mut *state;
    let has_room = state.ahead_len < shared.config.ahead_len_max;
    for (at, partition) in &mut state.partitions {
        if partition.busy {
            continue;
        }
        if let Some(retry_at) = partition.retry_at.filter(|&retry_at| retry_at > now) {
            plan.wake_at = Some(plan.wake_at.map_or(retry_at, |earlier| earlier.min(retry_at)));
            continue;
        }
        let offset = match partition.start {
            StartAt::Offset(offset) => offset,
            StartAt::Place(place) => {
                partition.busy = true;
                plan.places.push((at.clone(), partition.generation, place));
                continue;
            }
        };
        // One answer is kept ahead while the caller works on the one before.
        if !has_room || partition.ahead_len >= shared.config.partition_len_max as usize {
            continue;
        }
        let topic = shared.client.cached_topic(&at.topic);
        let leader = topic.as_ref().and_then(|topic| topic.partition(at.partition)).and_then(|info| info.leader);
        let (Some(topic), Some(leader)) = (topic, leader) else {
            state.stale_topics.insert(Arc::clone(&at.topic));
            continue;
        };
        if state.busy_leaders.contains(&leader) {
            continue;
        }
        partition.busy = true;
        let asked = Asked { at: at.clone(), topic_id: topic.id, generation: partition.generation, offset };
        plan.fetches.entry(leader).or_default().push(asked);
    }
    state.busy_leaders.extend(plan.fetches.keys());
    if !state.refreshing {
        plan.stale_topics = std::mem::take(&mut state.stale_topics);
        state.refreshing = !plan.stale_topics.is_empty();
    }
    Some(plan)
}

async fn find_places<E: Env>(shared: &Shared<E>, places: Vec<(TopicPartition, u64, OffsetAt)>) {
    let asked = places.iter().map(|(at, _, place)| (at.clone(), *place)).collect();
    let found = shared.client.offsets(&asked).await;
    let mut state = shared.lock();
    for (at, generation, _) in places {
        let Some(partition) = state.partitions.get_mut(&at).filter(|partition| partition.generation == generation)
        else {
            continue;
        };
        match found.as_ref().ok().and_then(|found| found.get(&at)) {
            Some(&offset) => {
                partition.busy = false;
                partition.start = StartAt::Offset(offset);
                partition.failures.reset();
            }
            None => partition.retry_later::<E>(),
        }
    }
    if let Err(error) = found {
        state.error.get_or_insert(error);
        shared.ready.notify_waiters();
    }
    drop(state);
    shared.wake.notify_one();
}

async fn fetch<E: Env>(shared: &Shared<E>, leader: i32, asked: &[Asked]) -> Result<(i16, FetchResponse), ClientError> {
    let address = shared.client.address_of(leader)?;
    let partitions = asked.iter().map(|asked| (Arc::clone(&asked.at.topic), asked.at.partition)).collect();
    let role = Role::Leader { broker: leader, partitions };
    let connection = shared.client.connection_in_role(&address, &role, Purpose::Fetch(shared.number)).await?;
    let mut version = connection.version_of(ApiKey::Fetch)?;
    if asked.iter().any(|asked| asked.topic_id.is_nil()) {
        version = version.min(TOPIC_ID_VERSION - 1);
    }
    let config = &shared.config;
    let mut topics: BTreeMap<(&Arc<str>, Uuid), Vec<FetchPartition>> = BTreeMap::new();
    for asked in asked {
        let mut partition = FetchPartition::default();
        partition.partition = asked.at.partition;
        partition.fetch_offset = asked.offset;
        partition.partition_max_bytes = config.partition_len_max;
        topics.entry((&asked.at.topic, asked.topic_id)).or_default().push(partition);
    }
    let mut request = FetchRequest::default();
    request.max_wait_ms = i32::try_from(config.wait_max.as_millis()).unwrap_or(i32::MAX);
    request.min_bytes = 1;
    request.max_bytes = config.answer_len_max;
    request.topics = topics
        .into_iter()
        .map(|((name, id), partitions)| {
            let mut topic = FetchTopic::default();
            if version >= TOPIC_ID_VERSION {
                topic.topic_id = id;
            } else {
                topic.topic = topic_name(name);
            }
            topic.partitions = partitions;
            topic
        })
        .collect();
    let patience = config.wait_max + shared.client.patience().min(Duration::from_secs(5));
    let in_flight = connection.send(version, request)?;
    let response = shared.client.answer_in_role(&connection, &role, config.wait_max, patience, in_flight).await?;
    crate::error::check_code(|| format!("fetching from {address}"), response.error_code, None)?;
    Ok((version, response))
}

/// Takes in an answer, and lets the fetching task go on.
fn apply<E: Env>(
    shared: &Shared<E>,
    leader: i32,
    asked: Vec<Asked>,
    result: Result<(i16, FetchResponse), ClientError>,
) {
    match &result {
        Ok((version, response)) => {
            for asked in &asked {
                let topic = response.responses.iter().find(|topic| match *version {
                    TOPIC_ID_VERSION.. => topic.topic_id == asked.topic_id,
                    _ => topic.topic.as_str() == &*asked.at.topic,
                });
                let data = topic
                    .and_then(|topic| topic.partitions.iter().find(|data| data.partition_index == asked.at.partition));
                apply_partition(shared, asked, data);
            }
        }
        Err(error) => {
            Mark::FetchFailed.reached();
            tracing::debug!(leader, %error, "fetch failed");
            let mut state = shared.lock();
            for asked in &asked {
                state.stale_topics.insert(Arc::clone(&asked.at.topic));
                if let Some(partition) = state.current(asked) {
                    partition.retry_later::<E>();
                }
            }
        }
    }
    shared.lock().busy_leaders.remove(&leader);
    shared.ready.notify_waiters();
    shared.wake.notify_one();
}

/// Takes in one partition of an answer.
fn apply_partition<E: Env>(shared: &Shared<E>, asked: &Asked, data: Option<&PartitionData>) {
    let at = &asked.at;
    // Decoding is done without the lock.
    let code = data.map_or(0, |data| data.error_code);
    let fetched = match (data, code) {
        (Some(data), 0) => Some(decode(asked, data.records.clone().unwrap_or_default())),
        _ => None,
    };
    let mut state = shared.lock();
    let state = &mut *state;
    let Some(partition) = state.current(asked) else {
        Mark::FetchedInVain.reached();
        return;
    };
    partition.busy = false;
    match fetched {
        Some(Ok((messages, offset_next, len))) => {
            partition.failures.reset();
            partition.retry_at = None;
            partition.start = StartAt::Offset(offset_next);
            if !messages.is_empty() {
                partition.ahead_len += len;
                state.ahead_len += len;
                state.ready.push_back(Fetched { at: at.clone(), generation: asked.generation, messages, len });
            }
        }
        Some(Err(error)) => {
            partition.retry_later::<E>();
            state.error.get_or_insert(error);
        }
        // A partition that the leader left out has nothing new.
        None if data.is_none() => partition.retry_later::<E>(),
        None if code == ErrorCode::OffsetOutOfRange.code() => match shared.config.reset.place() {
            Some(place) => {
                Mark::FetchPositionReset.reached();
                tracing::warn!(%at, offset = asked.offset, ?place, "the partition does not have this offset");
                partition.start = StartAt::Place(place);
            }
            None => {
                partition.retry_later::<E>();
                let what = format!("fetching {at} at offset {}", asked.offset);
                state.error.get_or_insert(ClientError::broker(what, code, None));
            }
        },
        None => {
            partition.retry_later::<E>();
            state.stale_topics.insert(Arc::clone(&at.topic));
            let error = ClientError::broker(format!("fetching {at}"), code, None);
            tracing::debug!(%error, "fetch refused");
            if let Some(data) = data {
                let leader = &data.current_leader;
                shared.client.learn_leader(&at.topic, at.partition, leader.leader_id.0, leader.leader_epoch);
            }
            if !error.is_retriable() {
                state.error.get_or_insert(error);
            }
        }
    }
}

/// The messages from `asked.offset` on, the offset behind them, and the bytes they came in.
fn decode(asked: &Asked, records: Bytes) -> Result<(VecDeque<Message>, i64, usize), ClientError> {
    let bad = |reason: String| ClientError::BadRecords {
        topic: asked.at.topic.to_string(),
        partition: asked.at.partition,
        offset: asked.offset,
        reason,
    };
    let mut messages = VecDeque::new();
    let mut offset_next = asked.offset;
    for batch in Batches::new(&records) {
        let (range, header) = match batch {
            Ok(batch) => batch,
            // The answer was full. What is cut off is fetched next time, unless there was nothing else.
            Err(BatchError::Truncated { .. }) if offset_next > asked.offset => break,
            Err(error) => return Err(bad(error.to_string())),
        };
        if header.last_offset() < asked.offset {
            continue;
        }
        // Markers of transactions are not messages.
        if !header.is_control() {
            let (_, decoded) =
                decode_batch(&records.slice(range), DECOMPRESSED_LEN_MAX).map_err(|error| bad(error.to_string()))?;
            messages.extend(decoded.into_iter().filter(|record| record.offset >= asked.offset).map(|record| Message {
                topic: Arc::clone(&asked.at.topic),
                partition: asked.at.partition,
                offset: record.offset,
                timestamp: record.timestamp,
                key: record.key,
                value: record.value,
                headers: record.headers,
            }));
        }
        offset_next = offset_next.max(header.last_offset().saturating_add(1));
    }
    Ok((messages, offset_next, records.len()))
}
