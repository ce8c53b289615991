//! A consumer that shares topics with the other members of its group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, select};
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::{GroupId, OffsetCommitRequest, OffsetCommitResponse, StrBytes};

use crate::admin::topic_name;
use crate::client::{Client, Purpose};
use crate::error::{ClientError, ErrorCode, check_code};
use crate::fetcher::Message;
use crate::group::config::GroupConsumerConfig;
use crate::group::member::{self, GroupEvent, Member, is_passing};
use crate::offsets::TopicPartition;
use crate::succession::Role;
use lockstep_probe::Mark;

/// The lowest version of OffsetCommit that carries the epoch of a member of the consumer protocol.
const MEMBER_EPOCH_VERSION: i16 = 9;
/// Longest wait for a farewell to be answered: the session runs out anyway.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// A consumer that has lost contact to its coordinator looks so often whether it is back.
const SESSION_PAUSE: Duration = Duration::from_millis(50);

/// What a poll gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// Messages of one partition, in order.
    pub messages: Vec<Message>,
    /// How the assignment changed since the last poll, in order.
    pub events: Vec<GroupEvent>,
}

/// A member of a consumer group (KIP-848: the coordinator assigns the partitions).
///
/// The order of calls: [`join_group`](Self::join_group), [`start_heartbeat`](Self::start_heartbeat), then read by
/// [`subscribe`](Self::subscribe) and commit, and in the end [`leave_group`](Self::leave_group). Partitions that must
/// go to another member are no longer read, the caller is told ([`GroupEvent::Revoked`]), and they are handed over when
/// it asks for messages again, since it has finished with them then. Dropped without leaving, the member is removed
/// when its session runs out.
#[derive(Debug)]
pub struct GroupConsumer<E: Env = TokioEnv> {
    member: Arc<Member<E>>,
}

impl<E: Env> Drop for GroupConsumer<E> {
    fn drop(&mut self) {
        self.member.lock().is_closing = true;
        self.member.wake.notify_one();
        let number = self.member.number;
        self.member.client.forget_connections(|_, purpose| purpose == Purpose::Group(number));
    }
}

/// The messages of a [`GroupConsumer`].
#[derive(Debug)]
pub struct Messages<'a, E: Env = TokioEnv> {
    consumer: &'a GroupConsumer<E>,
}

impl<E: Env> Messages<'_, E> {
    /// The next message, waited for as long as it takes. By asking, the caller says that it has finished with those
    /// before.
    ///
    /// # Errors
    /// The member cannot go on, or reading failed in a way that waiting does not mend.
    pub async fn next(&mut self) -> Result<Message, ClientError> {
        loop {
            let polled = self.consumer.poll_up_to(1, Duration::from_secs(1)).await?;
            if let Some(message) = polled.messages.into_iter().next() {
                return Ok(message);
            }
        }
    }

    /// Messages that are there, or the first to come within `timeout`, and changes of the assignment. By asking, the
    /// caller says that it has finished with the messages before.
    ///
    /// # Errors
    /// As [`Messages::next`].
    pub async fn poll(&mut self, timeout: Duration) -> Result<Polled, ClientError> {
        self.consumer.poll_up_to(500, timeout).await
    }
}

impl<E: Env> GroupConsumer<E> {
    /// A consumer that has not joined yet. Must be called within the environment's tasks.
    ///
    /// # Errors
    /// The configuration is bad.
    pub fn new(client: &Client<E>, config: GroupConsumerConfig) -> Result<Self, ClientError> {
        config.check()?;
        Ok(Self { member: Member::new(client, config) })
    }

    /// Its id in the group.
    pub fn member_id(&self) -> &str {
        &self.member.member_id
    }

    /// Its epoch in the group, 0 while it is not a member.
    pub fn member_epoch(&self) -> i32 {
        self.member.lock().reconciliation.member_epoch()
    }

    /// Joins the group. The assignment may come later, while heartbeats go on.
    ///
    /// # Errors
    /// The coordinator refused, or was not found within the client's time-out.
    pub async fn join_group(&self) -> Result<(), ClientError> {
        let member = &self.member;
        {
            let mut state = member.lock();
            if state.is_running {
                return Ok(());
            }
            state.fatal = None;
            state.is_closing = false;
        }
        let mut retry = member.client.retry(format!("joining group {}", member.config.group_id));
        loop {
            match member.heartbeat().await {
                Ok(()) => return Ok(()),
                Err(error) if is_passing(&error) => retry.pause_anyway(&error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps the session alive from now on, and follows the coordinator's assignments. Joins first if that was not
    /// done.
    ///
    /// # Errors
    /// As [`GroupConsumer::join_group`].
    pub async fn start_heartbeat(&self) -> Result<(), ClientError> {
        if self.member_epoch() == 0 {
            self.join_group().await?;
        }
        let mut state = self.member.lock();
        if !std::mem::replace(&mut state.is_running, true) {
            drop(E::spawn(member::run(Arc::clone(&self.member))));
        }
        Ok(())
    }

    /// The messages of the partitions that the member has, now and later. Starts heartbeats if that was not done.
    ///
    /// # Errors
    /// As [`GroupConsumer::join_group`].
    pub async fn subscribe(&self) -> Result<Messages<'_, E>, ClientError> {
        let is_running = self.member.lock().is_running;
        if !is_running {
            self.start_heartbeat().await?;
        }
        Ok(Messages { consumer: self })
    }

    async fn poll_up_to(&self, count_max: usize, timeout: Duration) -> Result<Polled, ClientError> {
        let member = &self.member;
        let deadline = E::now() + timeout;
        {
            let mut state = member.lock();
            // Asked again after it was told what goes, the caller has finished with it.
            let is_told = !state.events.iter().any(|event| matches!(event, GroupEvent::Revoked(_)));
            if is_told {
                member.finish_revocation(&mut state);
            }
        }
        loop {
            let mut changed = std::pin::pin!(member.changed.notified());
            changed.as_mut().enable();
            if let Some(polled) = self.take(count_max, E::now() >= deadline)? {
                return Ok(polled);
            }
            if member.is_session_over(&member.lock()) {
                // What was fetched is not handed out before the coordinator was heard again: that it is there is no news.
                let look_again = (E::now() + SESSION_PAUSE).min(deadline);
                select(changed, E::sleep_until(look_again)).await;
            } else {
                select(select(changed, member.fetcher.ready()), E::sleep_until(deadline)).await;
            }
        }
    }

    /// What is there now; `None` if there is nothing and the caller can wait.
    fn take(&self, count_max: usize, is_last: bool) -> Result<Option<Polled>, ClientError> {
        let member = &self.member;
        let mut state = member.lock();
        if let Some(error) = &state.fatal {
            return Err(error.clone());
        }
        if !state.is_running {
            return Err(ClientError::Closed("group consumer"));
        }
        // Taken under the lock that revocations need: none comes between taking and noting it.
        let messages = match member.is_session_over(&state) {
            true => Vec::new(),
            false => member.fetcher.take(count_max)?,
        };
        if let Some(message) = messages.first() {
            state.handed_out.insert(TopicPartition::new(Arc::clone(&message.topic), message.partition));
        }
        let events: Vec<_> = state.events.drain(..).collect();
        for event in &events {
            if let GroupEvent::Assigned(told) = event {
                // From now on the caller may keep something of its own for them, and must be told before they go.
                let still_owned: Vec<_> = told.iter().filter(|at| member.owns(&state, at)).cloned().collect();
                state.handed_out.extend(still_owned);
            }
        }
        let is_something = !messages.is_empty() || !events.is_empty();
        Ok((is_something || is_last).then_some(Polled { messages, events }))
    }

    /// Commits that all messages of a partition below `offset` are done.
    ///
    /// # Errors
    /// The member does not have the partition (any more), has lost it and won it again since the last poll (what was read before may be behind
    /// what others have committed), or the coordinator did not take the commit within the
    /// client's time-out. After a time-out it is unknown whether it was taken.
    pub async fn commit_offset(&self, topic: &str, partition: i32, offset: i64) -> Result<(), ClientError> {
        self.commit_offsets(&BTreeMap::from([(TopicPartition::new(topic, partition), offset)])).await
    }

    /// [`GroupConsumer::commit_offset`] of several partitions at once.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit_offset`], of the first partition that failed; others may be committed.
    pub async fn commit_offsets(&self, offsets: &BTreeMap<TopicPartition, i64>) -> Result<(), ClientError> {
        if offsets.is_empty() {
            return Ok(());
        }
        let member = &self.member;
        let group = &member.config.group_id;
        let mut retry = member.client.retry(format!("committing offsets of group {group}"));
        loop {
            let epoch = {
                let state = member.lock();
                // A partition may have been lost and won again before the caller is told: what it wants to commit is from before then,
                // and others may have gone further meanwhile.
                let lost_unawares = |at: &TopicPartition| {
                    state.events.iter().any(|event| matches!(event, GroupEvent::Lost(lost) if lost.contains(at)))
                };
                if let Some(at) = offsets.keys().find(|at| !member.owns(&state, at) || lost_unawares(at)) {
                    let why = match member.owns(&state, at) {
                        true => "was lost since the last poll: poll before you commit",
                        false => "is not assigned",
                    };
                    let text = format!("{at} {why} ({} in group {group})", member.member_id);
                    return Err(ClientError::InvalidArgument(text));
                }
                state.reconciliation.member_epoch()
            };
            match self.try_commit(epoch, offsets).await {
                Ok(()) => return Ok(()),
                Err(error) if error.code() == Some(ErrorCode::StaleMemberEpoch) => {
                    Mark::CommitMetNewEpoch.reached();
                    // The epoch moved on, and the next heartbeat says where to. The partition may be gone by then.
                    member.lock().is_urgent = true;
                    member.wake.notify_one();
                    let deadline = E::now() + retry.left();
                    let moved = member
                        .wait_for_change(deadline, |state| (state.reconciliation.member_epoch() != epoch).then_some(()))
                        .await;
                    if moved.is_none() {
                        return Err(error);
                    }
                }
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    async fn try_commit(&self, epoch: i32, offsets: &BTreeMap<TopicPartition, i64>) -> Result<(), ClientError> {
        let member = &self.member;
        let client = &member.client;
        let group = &member.config.group_id;
        let purpose = Purpose::Group(member.number);
        let address = client.coordinator(group).await?;
        let role = Role::Coordinator { group: group.clone() };
        let result = async {
            let connection = client.connection_in_role(&address, &role, purpose).await?;
            let version = connection.version_of(lockstep_wire::ApiKey::OffsetCommit)?;
            if version < MEMBER_EPOCH_VERSION {
                return Err(ClientError::Unsupported { address: address.clone(), api: "OffsetCommit version 9" });
            }
            let patience = client.patience().min(LEAVE_PATIENCE * 2);
            let in_flight = connection.send(version, self.commit_request(epoch, offsets))?;
            client.answer_in_role(&connection, &role, Duration::ZERO, patience, in_flight).await
        };
        let response = result.await.inspect_err(|_| client.forget_coordinator(group, &address))?;
        check_commit(group, offsets, &response, &address).inspect_err(|error| {
            if matches!(error.code(), Some(ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable)) {
                client.forget_coordinator(group, &address);
            }
        })
    }

    fn commit_request(&self, epoch: i32, offsets: &BTreeMap<TopicPartition, i64>) -> OffsetCommitRequest {
        let config = &self.member.config;
        let mut topics: BTreeMap<&Arc<str>, OffsetCommitRequestTopic> = BTreeMap::new();
        for (at, &offset) in offsets {
            let mut partition = OffsetCommitRequestPartition::default();
            partition.partition_index = at.partition;
            partition.committed_offset = offset;
            let topic = topics.entry(&at.topic).or_default();
            topic.name = topic_name(&at.topic);
            topic.partitions.push(partition);
        }
        let mut request = OffsetCommitRequest::default();
        request.group_id = GroupId(StrBytes::from_string(config.group_id.clone()));
        request.member_id = StrBytes::from_string(self.member.member_id.clone());
        request.generation_id_or_member_epoch = epoch;
        request.group_instance_id = config.instance_id.clone().map(StrBytes::from_string);
        request.topics = topics.into_values().collect();
        request
    }

    /// What the group has committed for a partition, whoever did; `None` if nothing. Linearizable: a commit that was
    /// acknowledged is seen.
    ///
    /// # Errors
    /// The coordinator did not answer within the client's time-out.
    pub async fn fetch_committed_offset(&self, topic: &str, partition: i32) -> Result<Option<i64>, ClientError> {
        let at = TopicPartition::new(topic, partition);
        let group = &self.member.config.group_id;
        let offsets = self.member.client.committed_offsets(group, Some(std::slice::from_ref(&at))).await?;
        Ok(offsets.get(&at).copied())
    }

    /// The partitions that the member reads, ascending.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.member.assignment()
    }

    /// The offset of the next message to come from a partition; `None` if the member does not read it (yet).
    pub fn position(&self, at: &TopicPartition) -> Option<i64> {
        self.member.fetcher.position(at)
    }

    /// Leaves the group: its partitions go to others at once, or for a static member when its session runs out and it
    /// is not back. What is to be committed must be committed before.
    ///
    /// # Errors
    /// The coordinator was not told; the member is removed when its session runs out.
    pub async fn leave_group(&self) -> Result<(), ClientError> {
        let member = &self.member;
        let was_member = {
            let mut state = member.lock();
            state.is_closing = true;
            state.reconciliation.member_epoch() > 0
        };
        member.wake.notify_one();
        // A heartbeat under way must be over first: its answer would come after the farewell.
        let patience = member.config.session_timeout;
        member.wait_for_change(E::now() + patience, |state| (!state.is_running).then_some(())).await;
        member.stop_all();
        if !was_member {
            return Ok(());
        }
        let mut retry = crate::retry::Retry::<E>::new(
            format!("leaving group {}", member.config.group_id),
            member.client.patience().min(LEAVE_PATIENCE),
        );
        loop {
            match member.leave().await {
                Ok(()) => return Ok(()),
                // The coordinator has removed the member already.
                Err(error) if error.code() == Some(ErrorCode::UnknownMemberId) => return Ok(()),
                Err(error) => retry.pause(error).await?,
            }
        }
    }
}

fn check_commit(
    group: &str,
    offsets: &BTreeMap<TopicPartition, i64>,
    response: &OffsetCommitResponse,
    address: &str,
) -> Result<(), ClientError> {
    let mut answered = 0;
    for topic in &response.topics {
        for partition in &topic.partitions {
            let at = TopicPartition::new(topic.name.as_str(), partition.partition_index);
            answered += usize::from(offsets.contains_key(&at));
            check_code(|| format!("committing {at} in group {group}"), partition.error_code, None)?;
        }
    }
    if answered < offsets.len() {
        return Err(ClientError::bad_answer(address, "a partition of the commit is missing"));
    }
    Ok(())
}
