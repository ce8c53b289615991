//! A member at work: heartbeats, and what follows from their answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_env::{Env, select};
use lockstep_wire::codec::consumer_group_heartbeat_request::TopicPartitions;
use lockstep_wire::codec::consumer_group_heartbeat_response::Assignment;
use lockstep_wire::codec::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, GroupId, StrBytes, Uuid};
use tokio::sync::Notify;

use crate::admin::topic_name;
use crate::client::{Client, Purpose};
use crate::error::{ClientError, ErrorCode, check_code};
use crate::fetcher::{Fetcher, StartAt};
use crate::group::config::GroupConsumerConfig;
use crate::group::reconciliation::{Effect, Heartbeat, PartitionId, Reconciliation};
use crate::offsets::TopicPartition;
use crate::retry::Backoff;
use lockstep_probe::{Mark, Mistake};

/// Until the coordinator says how often.
const HEARTBEAT_INTERVAL_FIRST: Duration = Duration::from_secs(1);
/// A coordinator that asks for more than this is not believed.
const HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(20);
const HEARTBEAT_PATIENCE_MAX: Duration = Duration::from_secs(5);
/// Member epoch of a member that leaves for good.
const LEAVE_EPOCH: i32 = -1;
/// Member epoch of a static member that will be back.
const LEAVE_FOR_A_WHILE_EPOCH: i32 = -2;

/// A change of the assignment that the caller has not been told yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// These are read from now on.
    Assigned(Vec<TopicPartition>),
    /// Nothing more of these comes. What came before may still be committed, up to the next poll.
    Revoked(Vec<TopicPartition>),
    /// These may belong to another member by now: commits of them fail.
    Lost(Vec<TopicPartition>),
}

#[derive(Debug)]
pub(crate) struct MemberState {
    pub(crate) reconciliation: Reconciliation,
    names: BTreeMap<Uuid, Arc<str>>,
    /// Assigned, not read yet, each with the number of its assignment: what is found out for an earlier one is void.
    pending: BTreeMap<PartitionId, u64>,
    assignment_number: u64,
    is_starting: bool,
    /// Partitions that the caller knows of: it was told that they are assigned, or has got messages of them since.
    pub(crate) handed_out: BTreeSet<TopicPartition>,
    /// What the caller has not been told of the assignment.
    pub(crate) events: VecDeque<GroupEvent>,
    /// The next heartbeat must not wait for its turn.
    pub(crate) is_urgent: bool,
    heartbeat_interval: Duration,
    /// When the last heartbeat that was answered had been sent.
    contact_at: Instant,
    /// The member cannot go on.
    pub(crate) fatal: Option<ClientError>,
    pub(crate) is_running: bool,
    pub(crate) is_closing: bool,
}

/// What a member's handle and tasks share.
#[derive(Debug)]
pub(crate) struct Member<E: Env> {
    pub(crate) client: Client<E>,
    pub(crate) config: GroupConsumerConfig,
    pub(crate) member_id: String,
    pub(crate) number: u64,
    pub(crate) fetcher: Fetcher<E>,
    state: Mutex<MemberState>,
    /// The heartbeat task must look.
    pub(crate) wake: Notify,
    /// Epoch, assignment or events changed, or the heartbeat task has ended.
    pub(crate) changed: Notify,
}

impl<E: Env> Member<E> {
    pub(crate) fn new(client: &Client<E>, config: GroupConsumerConfig) -> Arc<Self> {
        let id = Uuid::from_bytes(E::random_uuid()).hyphenated().to_string();
        let member_id = if config.consumer_id.is_empty() { id } else { format!("{}-{id}", config.consumer_id) };
        Arc::new(Self {
            client: client.clone(),
            fetcher: Fetcher::new(client, config.fetch),
            config,
            member_id,
            number: client.next_user_number(),
            state: Mutex::new(MemberState {
                reconciliation: Reconciliation::default(),
                names: BTreeMap::new(),
                pending: BTreeMap::new(),
                assignment_number: 0,
                is_starting: false,
                handed_out: BTreeSet::new(),
                events: VecDeque::new(),
                is_urgent: false,
                heartbeat_interval: HEARTBEAT_INTERVAL_FIRST,
                contact_at: E::now(),
                fatal: None,
                is_running: false,
                is_closing: false,
            }),
            wake: Notify::new(),
            changed: Notify::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, MemberState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn patience(&self) -> Duration {
        (self.config.session_timeout / 3).clamp(Duration::from_millis(100), HEARTBEAT_PATIENCE_MAX)
    }

    /// The coordinator may have given the partitions to others by now.
    pub(crate) fn is_session_over(&self, state: &MemberState) -> bool {
        state.reconciliation.member_epoch() > 0
            && E::now().saturating_duration_since(state.contact_at) > self.config.session_timeout
    }

    /// Waits until something changed, at most until `deadline`. `check` is asked first, and nothing is missed in
    /// between.
    pub(crate) async fn wait_for_change<T>(
        &self,
        deadline: Instant,
        mut check: impl FnMut(&mut MemberState) -> Option<T>,
    ) -> Option<T> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = check(&mut self.lock()) {
                return Some(found);
            }
            if E::now() >= deadline {
                return None;
            }
            select(changed, E::sleep_until(deadline)).await;
        }
    }

    /// One heartbeat, sent and answered. The error of a member that must begin anew has been dealt with already.
    pub(crate) async fn heartbeat(self: &Arc<Self>) -> Result<(), ClientError> {
        let sent_at = E::now();
        let heartbeat = self.lock().reconciliation.heartbeat();
        let result = self.exchange(&heartbeat).await;
        let mut state = self.lock();
        let effects = match &result {
            Ok(response) => {
                state.contact_at = sent_at;
                let interval = u64::try_from(response.heartbeat_interval_ms).unwrap_or(0);
                state.heartbeat_interval = Duration::from_millis(interval).max(HEARTBEAT_INTERVAL_MIN);
                let assignment = response.assignment.as_ref().map(partitions_of);
                state.reconciliation.on_answer(&heartbeat, response.member_epoch, assignment)
            }
            Err(error) => match error.code() {
                Some(ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMemberId | ErrorCode::GroupIdNotFound) => {
                    Mark::MemberFenced.reached();
                    // A member that is joining has nothing to lose, but must not try on with what it had.
                    state.reconciliation.on_fenced()
                }
                _ => {
                    Mark::HeartbeatAnswerLost.reached();
                    state.reconciliation.on_lost_answer();
                    Vec::new()
                }
            },
        };
        self.apply(&mut state, effects);
        drop(state);
        self.changed.notify_waiters();
        result.map(drop)
    }

    async fn exchange(&self, heartbeat: &Heartbeat) -> Result<ConsumerGroupHeartbeatResponse, ClientError> {
        let group = &self.config.group_id;
        let response = self
            .client
            .ask_coordinator(
                group,
                Purpose::Group(self.number),
                self.patience(),
                |_| self.request(heartbeat),
                |response| response.error_code,
            )
            .await?;
        let what = || format!("heartbeat of {} in group {group}", self.member_id);
        check_code(what, response.error_code, response.error_message.as_deref())?;
        // An answer that would make the member leave is not one to a heartbeat.
        if response.member_epoch <= 0 {
            return Err(ClientError::bad_answer(group, format!("member epoch {}", response.member_epoch)));
        }
        Ok(response)
    }

    fn request(&self, heartbeat: &Heartbeat) -> ConsumerGroupHeartbeatRequest {
        let config = &self.config;
        let text = |text: &String| StrBytes::from_string(text.clone());
        let mut request = ConsumerGroupHeartbeatRequest::default();
        request.group_id = GroupId(text(&config.group_id));
        request.member_id = text(&self.member_id);
        request.member_epoch = heartbeat.member_epoch;
        request.instance_id = config.instance_id.as_ref().map(text);
        if heartbeat.is_full {
            request.rebalance_timeout_ms = i32::try_from(config.rebalance_timeout.as_millis()).unwrap_or(i32::MAX);
            request.subscribed_topic_names = Some(config.topics.iter().map(|name| topic_name(name)).collect());
            request.server_assignor = config.assignor.as_ref().map(text);
        }
        request.topic_partitions = heartbeat.owned.as_ref().map(|owned| {
            let mut topics: BTreeMap<Uuid, TopicPartitions> = BTreeMap::new();
            for id in owned {
                let topic = topics.entry(id.topic_id).or_default();
                topic.topic_id = id.topic_id;
                topic.partitions.push(id.partition);
            }
            topics.into_values().collect()
        });
        request
    }

    /// Says farewell, once.
    pub(crate) async fn leave(&self) -> Result<(), ClientError> {
        let member_epoch = if self.config.instance_id.is_some() { LEAVE_FOR_A_WHILE_EPOCH } else { LEAVE_EPOCH };
        let heartbeat = Heartbeat { member_epoch, is_full: false, owned: None };
        let group = &self.config.group_id;
        let response = self
            .client
            .ask_coordinator(
                group,
                Purpose::Group(self.number),
                self.patience(),
                |_| self.request(&heartbeat),
                |response| response.error_code,
            )
            .await?;
        let what = || format!("{} leaving group {group}", self.member_id);
        check_code(what, response.error_code, response.error_message.as_deref())
    }

    /// Does what the reconciliation asks for, in one step with the state that decided it.
    fn apply(self: &Arc<Self>, state: &mut MemberState, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Revoke(gone) => {
                    let gone = self.stop(state, &gone);
                    tracing::info!(group = %self.config.group_id, partitions = ?names(&gone), "revoked");
                    state.events.push_back(GroupEvent::Revoked(gone));
                }
                Effect::Lose(gone) => {
                    let gone = self.stop(state, &gone);
                    state.handed_out.clear();
                    tracing::warn!(group = %self.config.group_id, partitions = ?names(&gone), "lost");
                    // Whoever was not told yet to give them up is not to be asked any more: it would commit what it had read, and by then
                    // perhaps have won them again while others had gone further.
                    for event in &mut state.events {
                        if let GroupEvent::Revoked(revoked) = event {
                            revoked.retain(|at| !gone.contains(at));
                        }
                    }
                    state.events.retain(|event| !matches!(event, GroupEvent::Revoked(revoked) if revoked.is_empty()));
                    state.events.push_back(GroupEvent::Lost(gone));
                }
                Effect::Assign(new) => {
                    state.assignment_number += 1;
                    let number = state.assignment_number;
                    state.pending.extend(new.into_iter().map(|id| (id, number)));
                    if !std::mem::replace(&mut state.is_starting, true) {
                        drop(E::spawn(start_pending(Arc::clone(self))));
                    }
                }
            }
        }
        // What the caller has seen nothing of, it need not finish with.
        let revoking = self.named(state, state.reconciliation.revoking());
        let unseen = revoking.iter().all(|at| !state.handed_out.contains(at));
        let hasty = Mistake::RevocationReportedAtOnce.is_made();
        if !state.reconciliation.revoking().is_empty() && (unseen || hasty) {
            self.finish_revocation(state);
        }
    }

    /// The caller has finished with what is being revoked: the coordinator may know.
    pub(crate) fn finish_revocation(self: &Arc<Self>, state: &mut MemberState) {
        if state.reconciliation.revoking().is_empty() {
            return;
        }
        for at in self.named(state, state.reconciliation.revoking()) {
            state.handed_out.remove(&at);
        }
        let effects = state.reconciliation.on_revoked();
        self.wake.notify_one();
        self.apply(state, effects);
    }

    fn named(&self, state: &MemberState, ids: &BTreeSet<PartitionId>) -> Vec<TopicPartition> {
        let named =
            |id: &PartitionId| Some(TopicPartition::new(Arc::clone(state.names.get(&id.topic_id)?), id.partition));
        ids.iter().filter_map(named).collect()
    }

    fn stop(&self, state: &mut MemberState, gone: &BTreeSet<PartitionId>) -> Vec<TopicPartition> {
        state.pending.retain(|id, _| !gone.contains(id));
        let stopped = self.named(state, gone);
        for at in &stopped {
            self.fetcher.stop(at);
        }
        stopped
    }

    /// The partitions that may be worked on.
    pub(crate) fn assignment(&self) -> Vec<TopicPartition> {
        let state = self.lock();
        let current = state.reconciliation.owned() - state.reconciliation.revoking();
        let mut assignment = self.named(&state, &current);
        assignment.sort();
        assignment
    }

    /// The member may commit for this partition.
    pub(crate) fn owns(&self, state: &MemberState, at: &TopicPartition) -> bool {
        let is_it = |id: &PartitionId| id.partition == at.partition && state.names.get(&id.topic_id) == Some(&at.topic);
        state.reconciliation.owned().iter().any(is_it)
    }

    /// Nothing is read any more.
    pub(crate) fn stop_all(self: &Arc<Self>) {
        let mut state = self.lock();
        let effects = state.reconciliation.on_fenced();
        for effect in effects {
            if let Effect::Lose(gone) = effect {
                self.stop(&mut state, &gone);
            }
        }
    }
}

fn names(partitions: &[TopicPartition]) -> Vec<String> {
    partitions.iter().map(ToString::to_string).collect()
}

fn partitions_of(assignment: &Assignment) -> BTreeSet<PartitionId> {
    let topics = assignment.topic_partitions.iter();
    topics
        .flat_map(|topic| {
            let topic_id = topic.topic_id;
            topic.partitions.iter().map(move |&partition| PartitionId { topic_id, partition })
        })
        .collect()
}

/// Whether the member can go on after this error by trying again.
pub(crate) fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Broker {
            code: ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMemberId | ErrorCode::GroupIdNotFound,
            ..
        } => true,
        // A broker that answers nonsense may be another tomorrow, for instance during an upgrade.
        ClientError::BadAnswer { .. } => true,
        error => error.is_retriable(),
    }
}

/// Sends heartbeats until the member is closed or cannot go on.
pub(crate) async fn run<E: Env>(member: Arc<Member<E>>) {
    let mut next_at = E::now();
    let mut backoff = Backoff::new();
    loop {
        let mut woken = pin!(member.wake.notified());
        woken.as_mut().enable();
        let is_due = {
            let mut state = member.lock();
            if state.is_closing {
                break;
            }
            if member.is_session_over(&state) {
                Mark::MemberLostContact.reached();
                tracing::warn!(group = %member.config.group_id, "no contact to the coordinator for a session");
                let effects = state.reconciliation.on_fenced();
                member.apply(&mut state, effects);
                member.changed.notify_waiters();
            }
            std::mem::take(&mut state.is_urgent) || state.reconciliation.has_news() || E::now() >= next_at
        };
        if is_due {
            let pause = match member.heartbeat().await {
                Ok(()) => {
                    backoff.reset();
                    member.lock().heartbeat_interval
                }
                Err(error) if is_passing(&error) => {
                    tracing::info!(group = %member.config.group_id, %error, "heartbeat failed");
                    backoff.next_delay(E::random_u64())
                }
                Err(error) => {
                    tracing::error!(group = %member.config.group_id, %error, "the member cannot go on");
                    let mut state = member.lock();
                    let effects = state.reconciliation.on_fenced();
                    member.apply(&mut state, effects);
                    state.fatal = Some(error);
                    break;
                }
            };
            next_at = E::now() + pause;
            continue;
        }
        select(woken, E::sleep_until(next_at)).await;
    }
    member.lock().is_running = false;
    member.changed.notify_waiters();
}

/// Finds out where to read what was assigned, and starts.
async fn start_pending<E: Env>(member: Arc<Member<E>>) {
    let mut backoff = Backoff::new();
    loop {
        let (pending, mut known) = {
            let mut state = member.lock();
            if state.pending.is_empty() || state.is_closing {
                state.is_starting = false;
                return;
            }
            (state.pending.clone(), state.names.clone())
        };
        let found = async {
            let ids: BTreeSet<Uuid> = pending.keys().map(|id| id.topic_id).collect();
            known.extend(member.client.topic_names(&ids).await?);
            let partitions: Vec<TopicPartition> = pending
                .keys()
                .filter_map(|id| Some(TopicPartition::new(Arc::clone(known.get(&id.topic_id)?), id.partition)))
                .collect();
            member.client.committed_offsets(&member.config.group_id, Some(&partitions)).await
        };
        let found = match found.await {
            Err(_) if Mistake::FailedLookupStartsAtReset.is_made() => Ok(BTreeMap::new()),
            found => found,
        };
        let mut is_complete = true;
        match found {
            Ok(offsets) => {
                let mut state = member.lock();
                let mut started = Vec::new();
                for (id, number) in pending {
                    let Some(name) = known.get(&id.topic_id) else {
                        // Metadata of a topic may come later than its assignment.
                        is_complete = false;
                        continue;
                    };
                    if state.pending.get(&id) != Some(&number) {
                        continue;
                    }
                    state.pending.remove(&id);
                    state.names.insert(id.topic_id, Arc::clone(name));
                    let at = TopicPartition::new(Arc::clone(name), id.partition);
                    let start = match offsets.get(&at) {
                        Some(&offset) => StartAt::Offset(offset),
                        None => match member.config.fetch.reset.place() {
                            Some(place) => StartAt::Place(place),
                            None => {
                                let text = format!("group {} has no offset for {at}", member.config.group_id);
                                state.fatal.get_or_insert(ClientError::InvalidArgument(text));
                                continue;
                            }
                        },
                    };
                    member.fetcher.start(at.clone(), start);
                    started.push(at);
                }
                if !started.is_empty() {
                    tracing::info!(group = %member.config.group_id, partitions = ?names(&started), "assigned");
                    state.events.push_back(GroupEvent::Assigned(started));
                }
            }
            Err(error) => {
                Mark::CommittedOffsetsNotFoundOut.reached();
                tracing::warn!(group = %member.config.group_id, %error, "cannot find out where to begin");
                is_complete = false;
            }
        }
        member.changed.notify_waiters();
        if !is_complete {
            E::sleep(backoff.next_delay(E::random_u64())).await;
        }
    }
}
