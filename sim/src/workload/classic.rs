//! Members of a group that speak the classic protocol, a small model of what librdkafka and the Java client do: one finds the coordinator,
//! joins, divides the partitions if it leads, reads, keeps its session up, and joins again when it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use checker::Event;
use lockstep_client::{Client, ClientError, ErrorCode, TopicInfo, TopicPartition};
use lockstep_env::Env;
use lockstep_wire::codec::join_group_request::JoinGroupRequestProtocol;
use lockstep_wire::codec::leave_group_request::MemberIdentity;
use lockstep_wire::codec::sync_group_request::SyncGroupRequestAssignment;
use lockstep_wire::codec::{
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
};

use crate::env::{SimEnv, chance};

pub use super::assignor::Protocol;
use super::assignor::{self, Assignment, Subscription, decode_assignment, encode_assignment};
use super::commits::{self, Identity};
use super::coordinator::{Coordinator, PATIENCE, group_id, text};
use super::reading::Reading;
use super::{Commits, Context, Ending, Habits, START_OVER, random_up_to};

/// The first version of JoinGroup that gives a member id and wants to be asked again with it.
const MEMBER_ID_REQUIRED_VERSION: i16 = 4;
/// The first version of JoinGroup that names an instance.
const INSTANCE_VERSION: i16 = 5;
/// A heartbeat is sent as often as this in a session.
const HEARTBEATS_PER_SESSION: u32 = 6;

/// What a member does.
#[derive(Clone, Debug)]
pub struct Classic {
    /// Its group.
    pub group: String,
    /// What it subscribes to.
    pub topics: Vec<String>,
    /// Version of JoinGroup, 0 to 9, from which those of the other requests follow. Static members need 5 or more.
    pub version: i16,
    /// Its instance, if it is a static member.
    pub instance_id: Option<String>,
    /// How the group divides its partitions; all members must agree.
    pub protocol: Protocol,
    /// Without a heartbeat for so long the coordinator removes it: 6 s or more.
    pub session_timeout: Duration,
    /// How long it may take to join again. Version 0 has none of its own.
    pub rebalance_timeout: Duration,
    /// How it behaves.
    pub habits: Habits,
}

impl Classic {
    /// A dynamic member of today's version that stays and commits after every poll.
    #[must_use]
    pub fn new(group: impl Into<String>, topics: Vec<String>) -> Self {
        Self {
            group: group.into(),
            topics,
            version: 9,
            instance_id: None,
            protocol: Protocol::Range,
            session_timeout: Duration::from_secs(6),
            rebalance_timeout: Duration::from_secs(6),
            habits: Habits::default(),
        }
    }

    fn instance(&self) -> Option<&String> {
        self.instance_id.as_ref().filter(|_| self.version >= INSTANCE_VERSION)
    }

    fn sync_version(&self) -> i16 {
        self.version.min(5)
    }

    fn heartbeat_version(&self) -> i16 {
        self.version.min(4)
    }

    fn commit_version(&self) -> i16 {
        self.version.max(if self.instance().is_some() { 7 } else { 2 })
    }

    fn fetch_version(&self) -> i16 {
        self.version.max(1)
    }

    /// Version of the subscription within JoinGroup.
    fn subscription_version(&self) -> i16 {
        match (self.version, self.protocol) {
            (0..=3, Protocol::Range) => 0,
            (..=5, _) => 1,
            (..=7, _) => 2,
            _ => 3,
        }
    }
}

/// Most groups are at rest after so long without faults.
const CALM_BEFORE_REPLACED: Duration = Duration::from_secs(1);

/// Reads and commits until told to finish; starts anew whenever it cannot go on.
pub async fn consume(context: Context, config: Classic) {
    let Some(client) = context.connect().await else { return };
    let mut number = 0;
    let mut divided = None;
    // A static member's process is replaced once more when all is calm: nobody joins again on account of it, so it must be given what it had.
    let mut is_to_be_replaced = config.instance_id.is_some();
    while !context.finish.is_due() {
        number += 1;
        let mut life = Life::new(&context, &config, &client, format!("{}.{number}", context.name));
        life.divided = divided;
        life.is_to_be_replaced = is_to_be_replaced;
        let ending = life.live().await;
        divided = life.divided;
        is_to_be_replaced = life.is_to_be_replaced;
        match ending {
            Ok(_) => context.pause_unless_calm(random_up_to(config.habits.away)).await,
            Err(error) => {
                context.note(format!("{} gives up: {error}", life.identity.life));
                life.reading.release_all(true).await;
                life.record_fenced();
            }
        }
        context.pause(random_up_to(START_OVER)).await;
    }
}

/// What joining came to.
struct Joined {
    generation: i32,
    assignment: Assignment,
}

struct Life<'a> {
    context: &'a Context,
    config: &'a Classic,
    client: Client<SimEnv>,
    coordinator: Coordinator,
    identity: Identity,
    reading: Reading,
    heartbeat_at: Instant,
    /// When the coordinator last answered that all is well.
    contact_at: Instant,
    committed_at: Instant,
    must_rejoin: bool,
    /// It leads the group, and divided so many partitions: it watches out for more. A static member whose place was kept while it was away
    /// divides nothing when it is back (KIP-814), so this is handed from one life to the next.
    divided: Option<usize>,
    /// It vanishes once when all has been calm for a while.
    is_to_be_replaced: bool,
    calm_since: Option<Instant>,
}

impl<'a> Life<'a> {
    fn new(context: &'a Context, config: &'a Classic, client: &Client<SimEnv>, life: String) -> Self {
        let now = SimEnv::now();
        let reading = Reading::new(context, client, &config.group, &life);
        Self {
            context,
            config,
            client: client.clone(),
            coordinator: Coordinator::new(context, client, &config.group),
            identity: Identity {
                life,
                group: config.group.clone(),
                member_id: String::new(),
                instance_id: config.instance().cloned(),
                epoch: -1,
            },
            reading,
            heartbeat_at: now,
            contact_at: now,
            committed_at: now,
            must_rejoin: true,
            divided: None,
            is_to_be_replaced: false,
            calm_since: None,
        }
    }

    fn record_fenced(&self) {
        let Identity { group, life, epoch, .. } = self.identity.clone();
        self.context.record(Event::Fenced { group, member: life, epoch: (epoch >= 0).then_some(epoch) });
    }

    async fn live(&mut self) -> Result<Ending, ClientError> {
        let habits = &self.config.habits;
        let heartbeat_interval = self.config.session_timeout / HEARTBEATS_PER_SESSION;
        while !self.context.finish.is_due() {
            if self.must_rejoin {
                self.rejoin().await?;
                continue;
            }
            let left = (self.heartbeat_at + heartbeat_interval).saturating_duration_since(SimEnv::now());
            self.reading.poll(habits.poll.min(left.max(Duration::from_millis(1)))).await?;
            if self.context.has_whim(habits.slow_per_mille) {
                self.be_slow(heartbeat_interval).await?;
            }
            if self.context.has_whim(habits.vanish_per_mille) || self.is_replaced_now() {
                return Ok(Ending::Vanished);
            }
            if self.is_commit_due() {
                self.commit().await?;
            }
            if SimEnv::now() >= self.heartbeat_at + heartbeat_interval {
                self.heartbeat().await?;
            }
            if self.context.has_whim(habits.leave_per_mille) {
                break;
            }
        }
        self.leave().await;
        Ok(Ending::Left)
    }

    fn is_replaced_now(&mut self) -> bool {
        if !self.is_to_be_replaced || !self.context.finish.is_calm() {
            return false;
        }
        let calm_since = *self.calm_since.get_or_insert_with(SimEnv::now);
        let is_now = SimEnv::now().saturating_duration_since(calm_since) >= CALM_BEFORE_REPLACED;
        self.is_to_be_replaced = !is_now;
        is_now
    }

    /// The application takes its time; the library goes on with heartbeats.
    async fn be_slow(&mut self, heartbeat_interval: Duration) -> Result<(), ClientError> {
        let until = SimEnv::now() + random_up_to(self.config.habits.slow);
        while SimEnv::now() < until && !self.context.finish.is_calm() {
            self.context.pause_unless_calm(heartbeat_interval.min(until - SimEnv::now())).await;
            self.heartbeat().await?;
        }
        Ok(())
    }

    fn is_commit_due(&mut self) -> bool {
        let is_due = match self.config.habits.commits {
            Commits::Always => true,
            Commits::Sometimes(per_mille) => chance(per_mille) || self.context.finish.is_calm(),
            Commits::Later(pause) => {
                SimEnv::now().saturating_duration_since(self.committed_at) >= pause || self.context.finish.is_calm()
            }
        };
        if is_due {
            self.committed_at = SimEnv::now();
        }
        is_due
    }

    /// Commits what was read. What the coordinator does not take now is tried again later.
    async fn commit(&mut self) -> Result<(), ClientError> {
        let done = self.reading.done.clone();
        let version = self.config.commit_version();
        let result = commits::commit(self.context, &mut self.coordinator, &self.identity, version, &done).await;
        if result.is_ok() {
            self.reading.done.clear();
        }
        self.hear(result).await
    }

    async fn heartbeat(&mut self) -> Result<(), ClientError> {
        self.heartbeat_at = SimEnv::now();
        let mut request = HeartbeatRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_member_id(text(&self.identity.member_id))
            .with_generation_id(self.identity.epoch);
        request.group_instance_id = self.identity.instance_id.as_deref().map(text);
        let version = self.config.heartbeat_version();
        let answer = self.coordinator.ask(version, PATIENCE, request, |response| response.error_code).await;
        self.hear(answer.map(drop)).await?;
        if self.divided.is_some()
            && chance(300)
            && let Ok(count) = self.count_partitions().await
            && self.divided != Some(count)
        {
            self.must_rejoin = true;
        }
        Ok(())
    }

    /// How many partitions its topics have.
    async fn count_partitions(&self) -> Result<usize, ClientError> {
        Ok(self.count(&self.client.all_topics().await?))
    }

    fn count(&self, topics: &[Arc<TopicInfo>]) -> usize {
        let read = topics.iter().filter(|topic| self.config.topics.iter().any(|name| **name == *topic.name));
        read.map(|topic| topic.partitions.len()).sum()
    }

    /// Draws the conclusion from what the coordinator says to a heartbeat or a commit.
    async fn hear(&mut self, result: Result<(), ClientError>) -> Result<(), ClientError> {
        let error = match result {
            Ok(()) => {
                self.contact_at = SimEnv::now();
                return Ok(());
            }
            Err(error) => error,
        };
        match error.code() {
            Some(ErrorCode::RebalanceInProgress) => {
                self.contact_at = SimEnv::now();
                self.must_rejoin = true;
                Ok(())
            }
            Some(ErrorCode::IllegalGeneration | ErrorCode::UnknownMemberId) => {
                self.lose(error.code() == Some(ErrorCode::UnknownMemberId)).await;
                Ok(())
            }
            _ if is_passing(&error) => {
                if SimEnv::now().saturating_duration_since(self.contact_at) > self.config.session_timeout {
                    self.context.note(format!("{}: no contact for a session", self.identity.life));
                    self.lose(false).await;
                }
                self.context.pause(random_up_to(Duration::from_millis(100))).await;
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// What it had may be another's by now.
    async fn lose(&mut self, is_unknown: bool) {
        self.reading.release_all(true).await;
        if self.identity.epoch >= 0 {
            self.record_fenced();
        }
        self.identity.epoch = -1;
        if is_unknown {
            self.identity.member_id.clear();
        }
        self.must_rejoin = true;
    }

    /// Joins, and takes up what it is assigned. Gives up before whatever its protocol asks for.
    async fn rejoin(&mut self) -> Result<(), ClientError> {
        if self.identity.epoch >= 0 {
            let must_give_up = self.config.protocol == Protocol::Range;
            // Only once: what cannot be committed now is read again.
            self.must_rejoin = false;
            self.commit().await?;
            if self.identity.epoch >= 0 && must_give_up {
                self.reading.release_all(false).await;
            }
            self.must_rejoin = true;
        }
        let joined = match self.join_and_sync().await {
            Ok(joined) => joined,
            Err(error) => {
                match error.code() {
                    Some(ErrorCode::UnknownMemberId) => self.lose(true).await,
                    Some(ErrorCode::IllegalGeneration) => self.lose(false).await,
                    Some(ErrorCode::RebalanceInProgress) => {}
                    // Others speak another protocol as yet.
                    Some(ErrorCode::InconsistentGroupProtocol | ErrorCode::GroupMaxSizeReached) => {
                        self.lose(true).await;
                        self.context.pause(START_OVER).await;
                    }
                    _ if is_passing(&error) => {
                        if SimEnv::now().saturating_duration_since(self.contact_at) > self.config.session_timeout {
                            self.lose(false).await;
                        }
                    }
                    _ => return Err(error),
                }
                self.context.pause(random_up_to(Duration::from_millis(100))).await;
                return Ok(());
            }
        };
        (self.contact_at, self.heartbeat_at) = (SimEnv::now(), SimEnv::now());
        self.identity.epoch = joined.generation;
        self.must_rejoin = false;
        let (group, member) = (self.config.group.clone(), self.identity.life.clone());
        self.context.record(Event::Joined { group, member, epoch: Some(joined.generation) });
        let has = self.reading.has();
        let gone: BTreeSet<TopicPartition> = has.difference(&joined.assignment).cloned().collect();
        if !gone.is_empty() {
            self.commit().await?;
            if self.identity.epoch >= 0 {
                self.reading.release(&gone, false).await;
            }
            // Now that they are free, the others may have them.
            self.must_rejoin = true;
        }
        if self.identity.epoch < 0 {
            return Ok(());
        }
        let new: Vec<TopicPartition> = joined.assignment.difference(&has).cloned().collect();
        self.start(&new).await
    }

    async fn start(&mut self, new: &[TopicPartition]) -> Result<(), ClientError> {
        let version = self.config.fetch_version();
        while !new.is_empty() {
            match commits::committed(self.context, &mut self.coordinator, version, new).await {
                Ok(offsets) => {
                    let new = new.iter().map(|at| (at.clone(), offsets.get(at).copied().flatten())).collect();
                    return self.reading.add(&new, self.identity.epoch).await;
                }
                Err(error) if self.context.finish.is_due() => return Err(error),
                Err(error) => {
                    let was = self.identity.epoch;
                    self.hear(Err(error)).await?;
                    if self.identity.epoch != was {
                        return Ok(());
                    }
                    self.heartbeat().await?;
                    if self.identity.epoch != was {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn join_request(&self) -> JoinGroupRequest {
        let version = self.config.version;
        let subscription = Subscription {
            topics: self.config.topics.iter().cloned().collect(),
            owned: self.reading.has(),
            generation: self.identity.epoch,
        };
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(text(self.config.protocol.name()))
            .with_metadata(subscription.encode(self.config.subscription_version()));
        let mut request = JoinGroupRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_member_id(text(&self.identity.member_id))
            .with_session_timeout_ms(millis(self.config.session_timeout))
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol]);
        if version >= 1 {
            request.rebalance_timeout_ms = millis(self.config.rebalance_timeout);
        }
        request.group_instance_id = self.identity.instance_id.as_deref().map(text);
        request
    }

    async fn join_and_sync(&mut self) -> Result<Joined, ClientError> {
        let patience = self.config.rebalance_timeout.max(self.config.session_timeout) + Duration::from_secs(2);
        let version = self.config.version;
        let mut required = false;
        let joined = loop {
            let request = self.join_request();
            let coordinator = &mut self.coordinator;
            let connection = coordinator.connection().await?;
            let asked = async { connection.send(version, request)?.answer::<SimEnv>(patience).await };
            let response = asked.await.inspect_err(|_| coordinator.forget())?;
            let must_ask_again = response.error_code == ErrorCode::MemberIdRequired.code();
            if must_ask_again && version >= MEMBER_ID_REQUIRED_VERSION && !required {
                required = true;
                self.identity.member_id = response.member_id.to_string();
                continue;
            }
            self.check("JoinGroup", response.error_code)?;
            break response;
        };
        self.identity.member_id = joined.member_id.to_string();
        let version = self.config.subscription_version();
        let Division { topics, assignments } = divide(&self.client, self.config.protocol, version, &joined).await?;
        self.divided = match joined.leader == joined.member_id {
            // Counted in the very answer that was divided: another broker may know of more partitions, or of fewer.
            true if !joined.skip_assignment => Some(self.count(&topics)),
            // One that has forgotten what it divided finds any number to be another.
            true => self.divided.or(Some(0)),
            false => None,
        };
        let mut request = SyncGroupRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_member_id(joined.member_id.clone())
            .with_generation_id(joined.generation_id)
            .with_assignments(assignments);
        request.group_instance_id = self.identity.instance_id.as_deref().map(text);
        let version = self.config.sync_version();
        if version >= 5 {
            request.protocol_type = Some(text("consumer"));
            request.protocol_name = Some(text(self.config.protocol.name()));
        }
        let response = self.coordinator.ask(version, patience, request, |response| response.error_code).await?;
        let assignment = decode_assignment(response.assignment).ok_or_else(|| ClientError::BadAnswer {
            address: self.config.group.clone(),
            reason: "an assignment that cannot be read".to_owned(),
        })?;
        Ok(Joined { generation: joined.generation_id, assignment })
    }

    fn check(&mut self, what: &str, code: i16) -> Result<(), ClientError> {
        super::coordinator::check(what, code).inspect_err(|error| {
            if matches!(error.code(), Some(ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable)) {
                self.coordinator.forget();
            }
        })
    }

    /// Best effort: a member that cannot say goodbye is removed when its session runs out. A static one says nothing and keeps its place.
    async fn leave(&mut self) {
        if self.identity.epoch < 0 {
            return;
        }
        // The last chance, whatever comes of it.
        let done = std::mem::take(&mut self.reading.done);
        let version = self.config.commit_version();
        let _ = commits::commit(self.context, &mut self.coordinator, &self.identity, version, &done).await;
        self.reading.release_all(false).await;
        if self.identity.instance_id.is_some() {
            return;
        }
        let version = self.config.version.min(5);
        let request = LeaveGroupRequest::default().with_group_id(group_id(&self.config.group));
        let member = text(&self.identity.member_id);
        let request = if version >= 3 {
            request.with_members(vec![MemberIdentity::default().with_member_id(member)])
        } else {
            request.with_member_id(member)
        };
        let answer = self.coordinator.ask(version, PATIENCE, request, |response| response.error_code).await;
        if answer.is_ok() {
            let (group, member) = (self.config.group.clone(), self.identity.life.clone());
            self.context.record(Event::Left { group, member });
        }
    }
}

/// What a leader divides.
#[derive(Default)]
pub(super) struct Division {
    /// All topics, as the broker that was asked knew them.
    topics: Vec<Arc<TopicInfo>>,
    /// Each member's part.
    pub(super) assignments: Vec<SyncGroupRequestAssignment>,
}

/// What the leader divides; nothing for the others, and for a leader whose place was kept (KIP-814).
pub(super) async fn divide(
    client: &Client<SimEnv>,
    protocol: Protocol,
    version: i16,
    joined: &JoinGroupResponse,
) -> Result<Division, ClientError> {
    if joined.leader != joined.member_id || joined.skip_assignment {
        return Ok(Division::default());
    }
    let mut members = BTreeMap::new();
    for member in &joined.members {
        // Others may be clients of another kind.
        let subscription = Subscription::decode(member.metadata.clone()).unwrap_or_default();
        members.insert(member.member_id.to_string(), subscription);
    }
    let names: BTreeSet<String> =
        members.values().flat_map(|subscription| subscription.topics.iter().cloned()).collect();
    let topics = client.all_topics().await?;
    let read = topics.iter().filter(|topic| names.contains(&*topic.name));
    let counts: BTreeMap<String, i32> =
        read.map(|topic| (topic.name.to_string(), topic.partitions.len() as i32)).collect();
    let assignments = assignor::assign(protocol, &counts, &members);
    let assignment = |(member, assignment): (String, Assignment)| {
        let bytes: Bytes = encode_assignment(&assignment, version);
        SyncGroupRequestAssignment::default().with_member_id(text(&member)).with_assignment(bytes)
    };
    let assignments = assignments.into_iter().map(assignment).collect();
    Ok(Division { topics, assignments })
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// May the same request succeed later?
fn is_passing(error: &ClientError) -> bool {
    matches!(error, ClientError::BadAnswer { .. } | ClientError::TimedOut { .. }) || error.is_retriable()
}
