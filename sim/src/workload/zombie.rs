//! Clients that misbehave: they send every request twice and to the wrong broker, do not wait for answers, and go on as members long after
//! they are none. Nothing that they send must ever count when it is stale.
//!
//! While such a client is a member it commits nothing but what is committed already, so that nothing is skipped on its account.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use checker::Event;
use lockstep_client::{Client, ClientError, ErrorCode, TopicPartition};
use lockstep_env::Env;
use lockstep_wire::api::Call;
use lockstep_wire::codec::join_group_request::JoinGroupRequestProtocol;
use lockstep_wire::codec::leave_group_request::MemberIdentity;
use lockstep_wire::codec::{
    HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, OffsetCommitRequest, SyncGroupRequest,
};

use crate::env::{SimEnv, chance, random_below};

use super::assignor::{Protocol, Subscription, decode_assignment};
use super::classic::divide;
use super::commits::{self, Identity};
use super::coordinator::{Coordinator, PATIENCE, check, group_id, text};
use super::heartbeats::{ConsumerMember, HEARTBEAT_VERSION, Wanted};
use super::{Context, START_OVER, partitions_of, random_up_to};

const JOIN_VERSION: i16 = 9;
const SYNC_VERSION: i16 = 5;
const CLASSIC_HEARTBEAT_VERSION: i16 = 4;
const LEAVE_VERSION: i16 = 5;
const OFFSETS_VERSION: i16 = 9;
/// Version of the subscription within JoinGroup.
const SUBSCRIPTION_VERSION: i16 = 3;
/// How long the coordinator waits for it in a rebalance.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(3);

/// Which protocol a zombie speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// JoinGroup, SyncGroup, Heartbeat, LeaveGroup; with the protocol of the group's other members.
    Classic(Protocol),
    /// ConsumerGroupHeartbeat.
    Consumer,
}

/// What a zombie disturbs.
#[derive(Clone, Debug)]
pub struct Zombie {
    /// Its group.
    pub group: String,
    /// What it subscribes to.
    pub topics: Vec<String>,
    /// Its protocol.
    pub speaks: Speaks,
    /// How long it is a member, at most.
    pub lives: Duration,
    /// How long it goes on after that, at most.
    pub haunts: Duration,
}

impl Zombie {
    /// One that is a member for some seconds and haunts the group for as long.
    #[must_use]
    pub fn new(group: impl Into<String>, topics: Vec<String>, speaks: Speaks) -> Self {
        let (lives, haunts) = (Duration::from_secs(3), Duration::from_secs(9));
        Self { group: group.into(), topics, speaks, lives, haunts }
    }
}

/// Disturbs until all are to be calm, then leaves.
pub async fn haunt(context: Context, config: Zombie) {
    let Some(client) = context.connect().await else { return };
    let mut number = 0;
    while !context.finish.is_calm() {
        number += 1;
        let life = format!("{}.{number}", context.name);
        let wanted = Wanted::Topics(config.topics.clone());
        let member = ConsumerMember::new(&config.group, &life, wanted, REBALANCE_TIMEOUT);
        let mut ghost = Ghost {
            context: &context,
            config: &config,
            client: client.clone(),
            coordinator: Coordinator::new(&context, &client, &config.group),
            identity: Identity {
                life,
                group: config.group.clone(),
                member_id: String::new(),
                instance_id: None,
                epoch: 0,
            },
            member,
            has: BTreeSet::new(),
            committed: BTreeMap::new(),
        };
        if let Err(error) = ghost.live().await {
            context.note(format!("{} is stopped: {error}", ghost.identity.life));
        }
        ghost.haunt().await;
        context.pause_unless_calm(START_OVER + random_up_to(START_OVER)).await;
    }
}

struct Ghost<'a> {
    context: &'a Context,
    config: &'a Zombie,
    client: Client<SimEnv>,
    coordinator: Coordinator,
    identity: Identity,
    member: ConsumerMember,
    has: BTreeSet<TopicPartition>,
    /// What it found committed of the partitions that it has.
    committed: BTreeMap<TopicPartition, i64>,
}

impl Ghost<'_> {
    fn record(&self, event: impl FnOnce(String, String) -> Event) {
        self.context.record(event(self.config.group.clone(), self.identity.life.clone()));
    }

    /// Sends a request up to five times: again on the same connection, on others, to a broker that may be the wrong one, and without waiting
    /// for the answer. The first answer is that of the first.
    async fn send<R: Call + Clone>(
        &mut self,
        version: i16,
        patience: Duration,
        request: &R,
    ) -> Vec<Result<R::Response, ClientError>> {
        let mut outcomes = Vec::new();
        let (client, context) = (self.client.clone(), self.context);
        match self.coordinator.connection().await {
            Ok(connection) => {
                let address = connection.address().to_owned();
                let is_twice = chance(300);
                let first = connection.send(version, request.clone());
                let second = is_twice.then(|| connection.send(version, request.clone()));
                if chance(100) {
                    outcomes.push(send_unheard(&client, &address, version, request).await);
                }
                let other = if chance(150) {
                    Some(send_elsewhere(&client, &address, version, patience, request).await)
                } else {
                    None
                };
                let wrong = if chance(150) {
                    Some(send_elsewhere(&client, &context.any_broker(), version, patience, request).await)
                } else {
                    None
                };
                let answer = async {
                    let first = first?.answer::<SimEnv>(patience).await?;
                    Ok((first, second))
                };
                match answer.await {
                    Ok((first, second)) => {
                        outcomes.insert(0, Ok(first));
                        if let Some(second) = second {
                            let second = async { second?.answer::<SimEnv>(patience).await };
                            outcomes.push(second.await);
                        }
                    }
                    Err(error) => {
                        outcomes.insert(0, Err(error));
                        self.coordinator.forget();
                    }
                }
                outcomes.extend(other);
                outcomes.extend(wrong);
            }
            Err(error) => outcomes.push(Err(error)),
        }
        outcomes
    }

    /// As [`Ghost::send`], and gives the first answer.
    async fn ask<R: Call + Clone>(
        &mut self,
        version: i16,
        patience: Duration,
        request: &R,
        error_of: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, ClientError> {
        let first = self.send(version, patience, request).await.swap_remove(0)?;
        let result = check(R::API_KEY.name(), error_of(&first));
        if result.as_ref().is_err_and(super::is_outcome_unknown) {
            self.coordinator.forget();
        }
        result.map(|()| first)
    }

    /// Joins, and behaves like a member but for the repetitions.
    async fn live(&mut self) -> Result<(), ClientError> {
        let until = SimEnv::now() + random_up_to(self.config.lives);
        while SimEnv::now() < until && !self.context.finish.is_calm() {
            let result = match self.config.speaks {
                Speaks::Consumer => self.consumer_step().await,
                Speaks::Classic(protocol) => self.classic_step(protocol).await,
            };
            match result {
                Ok(()) => {}
                Err(error) => match error.code() {
                    Some(ErrorCode::MemberIdRequired) => {}
                    Some(ErrorCode::RebalanceInProgress) => {
                        if self.config.speaks == Speaks::Classic(Protocol::Range) {
                            self.take(BTreeSet::new()).await?;
                        }
                        self.identity.epoch = 0;
                    }
                    Some(
                        ErrorCode::FencedMemberEpoch
                        | ErrorCode::UnknownMemberId
                        | ErrorCode::IllegalGeneration
                        | ErrorCode::StaleMemberEpoch,
                    ) => return Err(error),
                    _ if error.is_retriable() => {}
                    _ => return Err(error),
                },
            }
            self.context.pause_unless_calm(Duration::from_millis(100 + random_below(300))).await;
        }
        Ok(())
    }

    async fn consumer_step(&mut self) -> Result<(), ClientError> {
        let joins = self.member.epoch == 0;
        let request = self.member.request();
        let answer = self.ask(HEARTBEAT_VERSION, PATIENCE, &request, |answer| answer.error_code).await;
        self.member.must_tell_all = answer.is_err();
        self.member.hear(&answer?);
        (self.identity.member_id, self.identity.epoch) = (self.member.member_id.clone(), self.member.epoch);
        if joins {
            let epoch = Some(self.member.epoch);
            self.record(|group, member| Event::Joined { group, member, epoch });
        }
        if self.member.target != self.member.owned {
            let target = self.member.target.clone();
            let mut due = BTreeSet::new();
            for topic in self.client.all_topics().await? {
                let partitions = target.get(&topic.id).into_iter().flatten();
                due.extend(partitions.map(|index| TopicPartition::new(topic.name.clone(), *index)));
            }
            self.take(due).await?;
            self.member.owned = target;
        }
        self.commit().await
    }

    async fn classic_step(&mut self, protocol: Protocol) -> Result<(), ClientError> {
        if self.identity.epoch > 0 {
            let request = self.classic_heartbeat(self.identity.epoch);
            self.ask(CLASSIC_HEARTBEAT_VERSION, PATIENCE, &request, |answer| answer.error_code).await?;
            if chance(200) {
                self.stale_commit().await?;
            }
            return self.commit().await;
        }
        let subscription = Subscription {
            topics: self.config.topics.iter().cloned().collect(),
            owned: self.has.clone(),
            generation: -1,
        };
        let metadata = subscription.encode(SUBSCRIPTION_VERSION);
        let request = JoinGroupRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_member_id(text(&self.identity.member_id))
            .with_session_timeout_ms(6_000)
            .with_rebalance_timeout_ms(REBALANCE_TIMEOUT.as_millis() as i32)
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![
                JoinGroupRequestProtocol::default().with_name(text(protocol.name())).with_metadata(metadata),
            ]);
        let patience = REBALANCE_TIMEOUT * 4;
        let joined = self.send(JOIN_VERSION, patience, &request).await.swap_remove(0)?;
        if joined.error_code == 0 || joined.error_code == ErrorCode::MemberIdRequired.code() {
            self.identity.member_id = joined.member_id.to_string();
        }
        if check("JoinGroup", joined.error_code).as_ref().is_err_and(super::is_outcome_unknown) {
            self.coordinator.forget();
        }
        check("JoinGroup", joined.error_code)?;
        let assignments = divide(&self.client, protocol, SUBSCRIPTION_VERSION, &joined).await?.assignments;
        let request = SyncGroupRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_member_id(joined.member_id.clone())
            .with_generation_id(joined.generation_id)
            .with_protocol_type(Some(text("consumer")))
            .with_protocol_name(Some(text(protocol.name())))
            .with_assignments(assignments);
        let synced = self.ask(SYNC_VERSION, patience, &request, |answer| answer.error_code).await?;
        let epoch = Some(joined.generation_id);
        self.record(|group, member| Event::Joined { group, member, epoch });
        self.identity.epoch = joined.generation_id;
        self.take(decode_assignment(synced.assignment).unwrap_or_default()).await
    }

    fn classic_heartbeat(&self, generation: i32) -> HeartbeatRequest {
        HeartbeatRequest::default()
            .with_group_id(group_id(&self.config.group))
            .with_member_id(text(&self.identity.member_id))
            .with_generation_id(generation)
    }

    /// It has these from now on, and looks up what is committed of them.
    async fn take(&mut self, due: BTreeSet<TopicPartition>) -> Result<(), ClientError> {
        let gone: Vec<TopicPartition> = self.has.difference(&due).cloned().collect();
        let new: Vec<TopicPartition> = due.difference(&self.has).cloned().collect();
        self.committed.retain(|at, _| due.contains(at));
        self.has = due;
        if !gone.is_empty() {
            let partitions = partitions_of(&gone);
            self.record(|group, member| Event::Released { group, member, partitions, is_lost: false });
        }
        if !new.is_empty() {
            let (partitions, epoch) = (partitions_of(&new), Some(self.identity.epoch));
            self.record(|group, member| Event::Assigned { group, member, partitions, epoch });
            let offsets = commits::committed(self.context, &mut self.coordinator, OFFSETS_VERSION, &new).await?;
            self.committed.extend(offsets.into_iter().filter_map(|(at, offset)| Some((at, offset?))));
        }
        Ok(())
    }

    /// A classic group takes no commit of another generation, whoever sends it.
    async fn stale_commit(&mut self) -> Result<(), ClientError> {
        if self.committed.is_empty() || self.identity.epoch < 2 || !matches!(self.config.speaks, Speaks::Classic(_)) {
            return Ok(());
        }
        let former = Identity { epoch: self.identity.epoch - 1, ..self.identity.clone() };
        let request: OffsetCommitRequest = commits::commit_request(&former, OFFSETS_VERSION, &self.committed);
        for outcome in self.send(OFFSETS_VERSION, PATIENCE, &request).await {
            let accepted = outcome.is_ok_and(|answer| commits::commit_error(&answer) == 0);
            assert!(!accepted, "a commit of generation {} of {} was accepted", former.epoch, former.life);
        }
        Ok(())
    }

    /// Commits once more what is committed.
    async fn commit(&mut self) -> Result<(), ClientError> {
        if self.committed.is_empty() {
            return Ok(());
        }
        let offsets = self.committed.clone();
        let request: OffsetCommitRequest = commits::commit_request(&self.identity, OFFSETS_VERSION, &offsets);
        let started_at_us = self.context.now_us();
        let outcomes = self.send(OFFSETS_VERSION, PATIENCE, &request).await;
        for outcome in &outcomes {
            commits::record_commit(self.context, &self.identity, &offsets, started_at_us, outcome);
        }
        match outcomes.into_iter().next() {
            Some(first) => check("OffsetCommit", commits::commit_error(&first?)),
            None => Ok(()),
        }
    }

    /// It goes on as if it were a member still.
    async fn haunt(&mut self) {
        if self.identity.member_id.is_empty() {
            return;
        }
        if chance(500) {
            self.leave().await;
        } else {
            self.context.pause_unless_calm(random_up_to(self.config.haunts)).await;
        }
        let until = SimEnv::now() + random_up_to(self.config.haunts);
        while SimEnv::now() < until && !self.context.finish.is_calm() {
            // Whatever comes of it is recorded.
            let _ = self.commit().await;
            let _ = self.stale_heartbeat().await;
            self.context.pause_unless_calm(Duration::from_millis(200 + random_below(800))).await;
        }
        self.leave().await;
        self.record(|group, member| Event::Fenced { group, member, epoch: None });
    }

    async fn stale_heartbeat(&mut self) -> Result<(), ClientError> {
        let epoch = self.identity.epoch.max(1);
        // Of the past, of the present and of the future.
        let epoch = (epoch - 1 + random_below(3) as i32).max(1);
        match self.config.speaks {
            Speaks::Classic(_) => {
                let request = self.classic_heartbeat(epoch);
                self.ask(CLASSIC_HEARTBEAT_VERSION, PATIENCE, &request, |answer| answer.error_code).await.map(drop)
            }
            Speaks::Consumer => {
                let request = self.member.bare_request(epoch);
                self.ask(HEARTBEAT_VERSION, PATIENCE, &request, |answer| answer.error_code).await.map(drop)
            }
        }
    }

    async fn leave(&mut self) {
        let partitions = partitions_of(&std::mem::take(&mut self.has));
        self.record(|group, member| Event::Released { group, member, partitions, is_lost: false });
        let left = match self.config.speaks {
            Speaks::Classic(_) => {
                let member = MemberIdentity::default().with_member_id(text(&self.identity.member_id));
                let request =
                    LeaveGroupRequest::default().with_group_id(group_id(&self.config.group)).with_members(vec![member]);
                self.ask(LEAVE_VERSION, PATIENCE, &request, |answer| answer.error_code).await.map(drop)
            }
            Speaks::Consumer => {
                let request = self.member.bare_request(-1);
                self.ask(HEARTBEAT_VERSION, PATIENCE, &request, |answer| answer.error_code).await.map(drop)
            }
        };
        if let Err(error) = left {
            self.context.note(format!("{} does not leave: {error}", self.identity.life));
        }
    }
}

async fn send_elsewhere<R: Call + Clone>(
    client: &Client<SimEnv>,
    address: &str,
    version: i16,
    patience: Duration,
    request: &R,
) -> Result<R::Response, ClientError> {
    let connection = client.open_connection(address).await?;
    connection.send(version, request.clone())?.answer::<SimEnv>(patience).await
}

/// Closes the connection about when the request has left it.
async fn send_unheard<R: Call + Clone>(
    client: &Client<SimEnv>,
    address: &str,
    version: i16,
    request: &R,
) -> Result<R::Response, ClientError> {
    let connection = client.open_connection(address).await?;
    let answer = connection.send(version, request.clone())?;
    let patience = Duration::from_micros(random_below(2_000));
    answer.answer::<SimEnv>(patience).await
}
