//! The cluster as one partner: connections, metadata, who leads and who coordinates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_wire::api::Call;
use lockstep_wire::codec::{
    FindCoordinatorRequest, MetadataRequest, StrBytes, TopicName, Uuid, metadata_request::MetadataRequestTopic,
};

use crate::config::ClientConfig;
use crate::connection::BrokerConnection;
use crate::error::{ClientError, ErrorCode, check_code};
use crate::retry::Retry;
use crate::succession::Role;
use crate::topology::{TopicAnswer, TopicInfo, Topology, address_of};
use lockstep_probe::Mark;

/// Longest wait for a connection, so that a broker that is gone leaves time for the others.
const CONNECT_PATIENCE_MAX: Duration = Duration::from_secs(3);
/// How long a topic may be unknown to a broker that has just been told of it, before it is taken as missing.
const UNKNOWN_TOPIC_PATIENCE: Duration = Duration::from_secs(1);

/// A question that may go to any broker goes to another after so long a silence.
const ASK_ANOTHER_AFTER: Duration = Duration::from_millis(200);
/// How long a broker that was named as coordinator may take to say so itself.
const LOOK_UP_PATIENCE: Duration = Duration::from_millis(500);
/// So long a broker that did not answer is asked only after the others.
const SILENCE_REMEMBERED: Duration = Duration::from_secs(10);

/// Metadata asked for within this time on behalf of a silent leader is not asked for again: many requests wait for one. Shorter
/// than the time between two doubts of one request, each of which is to bring news.
const METADATA_FRESH: Duration = Duration::from_millis(40);

/// What a connection is for. Brokers answer a connection's requests in order, so what may wait long gets its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// What changes something, and questions of one broker.
    General,
    /// Questions that another broker may answer instead: a broker that is slow to answer loses the connection.
    Question,
    /// Batches of a producer, by the producer's number.
    Produce(u64),
    /// Fetches of a consumer, by the consumer's number: they wait for data.
    Fetch(u64),
    /// Heartbeats and commits of a group's member, by its number: a session depends on them.
    Group(u64),
}

/// A client of one cluster. Clones share connections and metadata.
#[derive(Debug)]
pub struct Client<E: Env = TokioEnv> {
    shared: Arc<Shared<E>>,
}

impl<E: Env> Clone for Client<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<E: Env> {
    env: E,
    config: ClientConfig,
    topology: Mutex<Topology>,
    /// Addresses of coordinators by group.
    coordinators: Mutex<BTreeMap<String, String>>,
    connections: Mutex<Connections<E>>,
    /// Addresses that did not answer, and when; asked last for a while.
    silent: Mutex<BTreeMap<String, Instant>>,
    /// Topics that were asked about a moment ago because their leader was silent.
    metadata_asked_at: Mutex<BTreeMap<Arc<str>, Instant>>,
    user_number_next: AtomicU64,
}

/// By address and purpose.
type Connections<E> = BTreeMap<(String, Purpose), Arc<Slot<E>>>;
type Slot<E> = tokio::sync::Mutex<SlotState<E>>;

#[derive(Debug)]
struct SlotState<E: Env> {
    connection: Option<Arc<BrokerConnection<E>>>,
    /// When and why connecting failed last, for those who waited while it was tried.
    failed: Option<(Instant, ClientError)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client<TokioEnv> {
    /// Connects from an ordinary process to `brokers`, a list of `host:port` separated by commas, with the defaults of
    /// [`ClientConfig`].
    ///
    /// # Errors
    /// See [`Client::connect`].
    pub async fn open(brokers: &str) -> Result<Self, ClientError> {
        Self::connect(TokioEnv::new(), ClientConfig::for_brokers(brokers)).await
    }
}

impl<E: Env> Client<E> {
    /// Connects to one of the brokers and learns of the others.
    ///
    /// # Errors
    /// No broker answered within the time-out, or the configuration is bad.
    pub async fn connect(env: E, config: ClientConfig) -> Result<Self, ClientError> {
        config.check()?;
        let client = Self {
            shared: Arc::new(Shared {
                env,
                config,
                topology: Mutex::default(),
                coordinators: Mutex::default(),
                connections: Mutex::default(),
                silent: Mutex::default(),
                metadata_asked_at: Mutex::default(),
                user_number_next: AtomicU64::new(0),
            }),
        };
        client.refresh(&[], false).await?;
        Ok(client)
    }

    /// The environment it runs in.
    pub fn env(&self) -> &E {
        &self.shared.env
    }

    /// Its configuration.
    pub fn config(&self) -> &ClientConfig {
        &self.shared.config
    }

    /// The id of the cluster, if brokers tell.
    pub fn cluster_id(&self) -> Option<String> {
        lock(&self.shared.topology).cluster_id.clone()
    }

    /// Brokers by id, as of the last answer: `host:port` each.
    pub fn brokers(&self) -> BTreeMap<i32, String> {
        lock(&self.shared.topology).brokers.clone()
    }

    /// A number that no other producer or consumer of this client has.
    pub(crate) fn next_user_number(&self) -> u64 {
        self.shared.user_number_next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn retry(&self, what: impl Into<String>) -> Retry<E> {
        Retry::new(what, self.shared.config.timeout)
    }

    /// Longest wait for one answer.
    pub(crate) fn patience(&self) -> Duration {
        self.shared.config.timeout
    }

    /// A connection that works as far as is known, made if there is none.
    pub(crate) async fn connection(
        &self,
        address: &str,
        purpose: Purpose,
    ) -> Result<Arc<BrokerConnection<E>>, ClientError> {
        let slot = {
            let mut connections = lock(&self.shared.connections);
            let slot = connections
                .entry((address.to_owned(), purpose))
                .or_insert_with(|| Arc::new(tokio::sync::Mutex::new(SlotState { connection: None, failed: None })));
            Arc::clone(slot)
        };
        let asked_at = E::now();
        let mut state = slot.lock().await;
        if let Some(connection) = state.connection.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        if let Some((failed_at, error)) = &state.failed
            && *failed_at >= asked_at
        {
            return Err(error.clone());
        }
        state.connection = None;
        let config = &self.shared.config;
        let patience = config.timeout.min(CONNECT_PATIENCE_MAX);
        // Boxed, since it is long and rarely comes to this: all that ask a broker something would be as long, and are moved about.
        match Box::pin(BrokerConnection::open(&self.shared.env, address, &config.client_id, patience)).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                state.connection = Some(Arc::clone(&connection));
                state.failed = None;
                Ok(connection)
            }
            Err(error) => {
                tracing::debug!(address, %error, "not connected");
                state.failed = Some((E::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// A new connection to the broker at `address` (`host:port`), which the client itself does not use: for those who speak
    /// the protocol themselves.
    ///
    /// # Errors
    /// The broker cannot be reached within the client's time-out, or speaks another protocol.
    pub async fn open_connection(&self, address: &str) -> Result<BrokerConnection<E>, ClientError> {
        let config = &self.shared.config;
        let patience = config.timeout.min(CONNECT_PATIENCE_MAX);
        BrokerConnection::open(&self.shared.env, address, &config.client_id, patience).await
    }

    /// Closes the connections, by address and purpose, that belong to what has ended.
    pub(crate) fn forget_connections(&self, belongs: impl Fn(&str, Purpose) -> bool) {
        let mut connections = lock(&self.shared.connections);
        let ended: Vec<_> = connections.extract_if(.., |(address, purpose), _| belongs(address, *purpose)).collect();
        drop(connections);
        drop(ended);
    }

    /// Where to ask, in an order that differs each time: a broker that is cut off from the others may answer all the same,
    /// with what was true once, and must not be asked again and again. Those that did not answer lately come last.
    fn addresses(&self) -> Vec<String> {
        let known: Vec<String> = lock(&self.shared.topology).brokers.values().cloned().collect();
        let configured = self.shared.config.brokers.iter().cloned();
        let mut seen = BTreeSet::new();
        let mut addresses: Vec<String> =
            known.into_iter().chain(configured).filter(|address| seen.insert(address.clone())).collect();
        let start = (E::random_u64() % addresses.len().max(1) as u64) as usize;
        addresses.rotate_left(start);
        let now = E::now();
        let mut silent = lock(&self.shared.silent);
        silent.retain(|_, since| now.saturating_duration_since(*since) < SILENCE_REMEMBERED);
        addresses.sort_by_key(|address| silent.contains_key(address));
        addresses
    }

    /// Asks any broker. One that is slow to answer is not waited for: another is asked beside it, and the first answer
    /// counts. So this is for questions, and for what may well be done twice.
    pub(crate) async fn ask_any<R: Call>(
        &self,
        request: impl Fn(i16) -> R,
    ) -> Result<(String, R::Response), ClientError> {
        let addresses = self.addresses();
        let patience = self.patience_of_each(addresses.len());
        let mut addresses = addresses.into_iter();
        let mut asked = FuturesUnordered::new();
        let mut unanswered: BTreeMap<String, Instant> = BTreeMap::new();
        let mut last = String::new();
        let result = loop {
            if let Some(address) = addresses.next() {
                unanswered.insert(address.clone(), E::now());
                asked.push(self.ask_one(address, Purpose::Question, patience, &request));
            } else if asked.is_empty() {
                break Err(ClientError::NoBroker { reason: last });
            }
            let answered = if addresses.len() > 0 {
                timeout::<E, _>(ASK_ANOTHER_AFTER, asked.next()).await
            } else {
                Ok(asked.next().await)
            };
            match answered {
                Ok(Some((address, Ok(response)))) => {
                    unanswered.remove(&address);
                    break Ok((address, response));
                }
                Ok(Some((_, Err(error @ ClientError::Encode(_))))) => return Err(error),
                Ok(Some((address, Err(error)))) => {
                    unanswered.remove(&address);
                    self.remember_silent([address]);
                    last = error.to_string();
                }
                Ok(None) | Err(_) => {}
            }
        };
        drop(asked);
        let now = E::now();
        unanswered.retain(|_, asked_at| now.saturating_duration_since(*asked_at) >= ASK_ANOTHER_AFTER);
        // Nobody waits for their answers any more, so nobody would find out that none ever comes.
        self.forget_connections(|address, purpose| purpose == Purpose::Question && unanswered.contains_key(address));
        self.remember_silent(unanswered.into_keys());
        result
    }

    /// Has any broker do something, once each until one answers. Those that did not may have done it.
    pub(crate) async fn tell_any<R: Call>(
        &self,
        request: impl Fn(i16) -> R,
    ) -> Result<(String, R::Response), ClientError> {
        let addresses = self.addresses();
        let patience = self.patience_of_each(addresses.len());
        let mut last = String::new();
        for address in addresses {
            match self.ask_one(address, Purpose::General, patience, &request).await {
                (address, Ok(response)) => return Ok((address, response)),
                (_, Err(error @ ClientError::Encode(_))) => return Err(error),
                (address, Err(error)) => {
                    last = error.to_string();
                    self.remember_silent([address]);
                }
            }
        }
        Err(ClientError::NoBroker { reason: last })
    }

    /// A broker that accepts connections and then says nothing must leave time to ask the others.
    fn patience_of_each(&self, count: usize) -> Duration {
        (self.patience() / (count as u32 + 1)).max(Duration::from_millis(500))
    }

    async fn ask_one<R: Call>(
        &self,
        address: String,
        purpose: Purpose,
        patience: Duration,
        request: &impl Fn(i16) -> R,
    ) -> (String, Result<R::Response, ClientError>) {
        let result = self.ask(&address, purpose, patience, request).await;
        match &result {
            Ok(_) => drop(lock(&self.shared.silent).remove(&address)),
            Err(error) => tracing::debug!(address, %error, "no answer"),
        }
        (address, result)
    }

    /// These are asked after the others for some time, or until they answer.
    pub(crate) fn remember_silent(&self, addresses: impl IntoIterator<Item = String>) {
        let now = E::now();
        lock(&self.shared.silent).extend(addresses.into_iter().map(|address| (address, now)));
    }

    /// Asks one broker, once.
    pub(crate) async fn ask<R: Call>(
        &self,
        address: &str,
        purpose: Purpose,
        patience: Duration,
        request: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, ClientError> {
        self.connection(address, purpose).await?.call(patience, request).await
    }

    /// Address of a broker by its id.
    pub(crate) fn address_of(&self, broker: i32) -> Result<String, ClientError> {
        let address = lock(&self.shared.topology).brokers.get(&broker).cloned();
        address.ok_or_else(|| ClientError::NoBroker { reason: format!("broker {broker} is not known") })
    }

    /// Asks once for metadata of `topics` (none: of the brokers only).
    async fn ask_metadata(
        &self,
        topics: Option<Vec<MetadataRequestTopic>>,
        create: bool,
    ) -> Result<BTreeMap<Arc<str>, TopicAnswer>, ClientError> {
        let (address, response) = self
            .ask_any(|version| {
                let mut request = MetadataRequest::default();
                // Version 0 has no way to ask for no topics: an empty list means all.
                request.topics = if version == 0 { Some(topics.clone().unwrap_or_default()) } else { topics.clone() };
                request.allow_auto_topic_creation = create || version < 4;
                request
            })
            .await?;
        check_code(|| format!("metadata from {address}"), response.error_code, None)?;
        Ok(lock(&self.shared.topology).update(&response))
    }

    /// Brings the metadata of `topics` up to date, and the brokers with it. Retries while no broker answers, not for
    /// what they say of the topics.
    pub(crate) async fn refresh(
        &self,
        topics: &[Arc<str>],
        create: bool,
    ) -> Result<BTreeMap<Arc<str>, TopicAnswer>, ClientError> {
        let mut retry = self.retry("finding a broker");
        loop {
            match self.ask_metadata(Some(topics.iter().map(|name| by_name(name)).collect()), create).await {
                Ok(answers) => return Ok(answers),
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    /// [`Client::refresh`] without retries. What came a moment ago, for whomever, is fresh enough.
    pub(crate) async fn refresh_once(&self, topics: &[Arc<str>]) -> Result<(), ClientError> {
        let now = E::now();
        let is_fresh = |at: &Instant| now.saturating_duration_since(*at) < METADATA_FRESH;
        {
            let mut asked_at = lock(&self.shared.metadata_asked_at);
            asked_at.retain(|_, at| is_fresh(at));
            if topics.iter().all(|topic| asked_at.contains_key(topic)) {
                return Ok(());
            }
            asked_at.extend(topics.iter().map(|topic| (Arc::clone(topic), now)));
        }
        self.ask_metadata(Some(topics.iter().map(|name| by_name(name)).collect()), false).await?;
        Ok(())
    }

    /// Metadata of all topics.
    ///
    /// # Errors
    /// No broker answered in time.
    pub async fn all_topics(&self) -> Result<Vec<Arc<TopicInfo>>, ClientError> {
        let mut retry = self.retry("listing topics");
        loop {
            match self.ask_metadata(None, false).await {
                Ok(answers) => {
                    let known = |answer| match answer {
                        TopicAnswer::Known(topic) => Some(topic),
                        TopicAnswer::Error(_) => None,
                    };
                    return Ok(answers.into_values().filter_map(known).collect());
                }
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    /// Names of topics by id, those that exist.
    pub(crate) async fn topic_names(&self, ids: &BTreeSet<Uuid>) -> Result<BTreeMap<Uuid, Arc<str>>, ClientError> {
        let known = |topology: &Topology| -> BTreeMap<Uuid, Arc<str>> {
            ids.iter().filter_map(|&id| Some((id, topology.name_of(id)?))).collect()
        };
        let names = known(&lock(&self.shared.topology));
        if names.len() == ids.len() {
            return Ok(names);
        }
        let asked = ids.iter().filter(|id| !names.contains_key(id));
        let asked = asked
            .map(|&id| {
                let mut topic = MetadataRequestTopic::default();
                topic.topic_id = id;
                topic.name = None;
                topic
            })
            .collect();
        self.ask_metadata(Some(asked), false).await?;
        Ok(known(&lock(&self.shared.topology)))
    }

    /// Metadata of one topic, as of the last answer.
    pub(crate) fn cached_topic(&self, name: &str) -> Option<Arc<TopicInfo>> {
        lock(&self.shared.topology).topics.get(name).cloned()
    }

    /// Metadata of one topic, fresh. `create` lets brokers that are configured so create a topic that is missing.
    ///
    /// # Errors
    /// The topic does not exist, or no broker answered in time.
    pub async fn topic(&self, name: &str, create: bool) -> Result<Arc<TopicInfo>, ClientError> {
        let name: Arc<str> = Arc::from(name);
        let what = || format!("topic {name}");
        let mut retry = self.retry(what());
        let asked_at = E::now();
        loop {
            let error = match self.refresh(&[Arc::clone(&name)], create).await?.remove(&name) {
                Some(TopicAnswer::Known(topic)) => return Ok(topic),
                Some(TopicAnswer::Error(code)) => ClientError::broker(what(), code.code(), None),
                None => ClientError::broker(what(), ErrorCode::UnknownTopicOrPartition.code(), None),
            };
            // One that was just created may be news to this broker; it is not waited for as long as for a leader.
            let is_missing = error.code() == Some(ErrorCode::UnknownTopicOrPartition);
            if is_missing && !create && E::now().saturating_duration_since(asked_at) > UNKNOWN_TOPIC_PATIENCE {
                return Err(error);
            }
            retry.pause(error).await?;
        }
    }

    /// A broker said who leads a partition.
    pub(crate) fn learn_leader(&self, topic: &str, partition: i32, leader: i32, leader_epoch: i32) {
        lock(&self.shared.topology).learn_leader(topic, partition, leader, leader_epoch);
    }

    /// Address of the broker that coordinates `group`, asked for unless known.
    pub(crate) async fn coordinator(&self, group: &str) -> Result<String, ClientError> {
        if let Some(address) = lock(&self.shared.coordinators).get(group) {
            return Ok(address.clone());
        }
        self.find_coordinator(group).await
    }

    /// Asks once for the address of the broker that coordinates `group`, and remembers it.
    ///
    /// # Errors
    /// No broker answered, or none coordinates the group at present.
    pub async fn find_coordinator(&self, group: &str) -> Result<String, ClientError> {
        let address = self.look_up_coordinator(group, None).await?;
        lock(&self.shared.coordinators).insert(group.to_owned(), address.clone());
        Ok(address)
    }

    /// Address of the coordinator of `group` in the words of the broker at `from`, or of any broker.
    pub(crate) async fn look_up_coordinator(&self, group: &str, from: Option<&str>) -> Result<String, ClientError> {
        let request = |version| {
            let mut request = FindCoordinatorRequest::default();
            let key = StrBytes::from_string(group.to_owned());
            if version >= 4 {
                request.coordinator_keys = vec![key];
            } else {
                request.key = key;
            }
            request
        };
        let response = match from {
            Some(address) => self.ask(address, Purpose::Question, LOOK_UP_PATIENCE, request).await?,
            None => self.ask_any(request).await?.1,
        };
        let what = || format!("finding the coordinator of group {group}");
        check_code(what, response.error_code, response.error_message.as_deref())?;
        let (host, port) = match response.coordinators.first() {
            Some(found) => {
                check_code(what, found.error_code, found.error_message.as_deref())?;
                (&found.host, found.port)
            }
            None => (&response.host, response.port),
        };
        if host.is_empty() || port <= 0 {
            return Err(ClientError::broker(what(), ErrorCode::CoordinatorNotAvailable.code(), None));
        }
        Ok(address_of(host, port))
    }

    /// The coordinator of `group` is no longer at `address`, or does not answer there. What was learnt since is kept.
    pub(crate) fn forget_coordinator(&self, group: &str, address: &str) {
        let mut coordinators = lock(&self.shared.coordinators);
        if coordinators.get(group).is_some_and(|known| known == address) {
            Mark::CoordinatorForgotten.reached();
            coordinators.remove(group);
        }
    }

    /// Asks the coordinator of `group`, once, and forgets it when it cannot be asked or `error_of` says that it is
    /// another.
    pub(crate) async fn ask_coordinator<R: Call>(
        &self,
        group: &str,
        purpose: Purpose,
        patience: Duration,
        request: impl FnOnce(i16) -> R,
        error_of: impl FnOnce(&R::Response) -> i16,
    ) -> Result<R::Response, ClientError> {
        let address = self.coordinator(group).await?;
        let role = Role::Coordinator { group: group.to_owned() };
        let result = self.ask_in_role(&address, &role, purpose, patience, request).await;
        let must_forget = match &result {
            Ok(response) => {
                let code = error_of(response);
                code == ErrorCode::NotCoordinator.code() || code == ErrorCode::CoordinatorNotAvailable.code()
            }
            Err(_) => true,
        };
        if must_forget {
            self.forget_coordinator(group, &address);
        }
        result
    }
}

fn by_name(name: &str) -> MetadataRequestTopic {
    let mut topic = MetadataRequestTopic::default();
    topic.name = Some(TopicName(StrBytes::from_string(name.to_owned())));
    topic
}
