//! Members that subscribe by a regular expression, which the coordinator resolves (ConsumerGroupHeartbeat v1), by raw requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use checker::Event;
use lockstep_client::{Client, ClientError, ErrorCode, TopicPartition};
use lockstep_env::Env;
use lockstep_wire::codec::Uuid;

use crate::env::SimEnv;

use super::commits::{self, Identity};
use super::coordinator::{Coordinator, PATIENCE};
use super::heartbeats::{ConsumerMember, HEARTBEAT_VERSION, Owned, Wanted};
use super::reading::Reading;
use super::{Context, Ending, Habits, START_OVER, random_up_to};

/// Version of OffsetCommit and OffsetFetch that knows member epochs.
const OFFSETS_VERSION: i16 = 9;

/// What a member does.
#[derive(Clone, Debug)]
pub struct RegexMember {
    /// Its group.
    pub group: String,
    /// The expression, in the syntax of RE2.
    pub pattern: String,
    /// What it reads and records of the topics that match; of others it does nothing.
    pub topics: Vec<String>,
    /// After so long without contact it takes its partitions as lost.
    pub session_timeout: Duration,
    /// How long it may take to give partitions up.
    pub rebalance_timeout: Duration,
    /// How it behaves. It commits after every poll.
    pub habits: Habits,
}

impl RegexMember {
    /// A member that stays.
    #[must_use]
    pub fn new(group: impl Into<String>, pattern: impl Into<String>, topics: Vec<String>) -> Self {
        Self {
            group: group.into(),
            pattern: pattern.into(),
            topics,
            session_timeout: Duration::from_secs(6),
            rebalance_timeout: Duration::from_secs(6),
            habits: Habits::default(),
        }
    }
}

/// Reads and commits until told to finish; joins again whenever it cannot go on.
pub async fn consume(context: Context, config: RegexMember) {
    let Some(client) = context.connect().await else { return };
    let mut number = 0;
    while !context.finish.is_due() {
        number += 1;
        let name = format!("{}.{number}", context.name);
        let mut life = Life::new(&context, &config, &client, name);
        match life.live().await {
            Ok(_) => context.pause_unless_calm(random_up_to(config.habits.away)).await,
            Err(error) => {
                context.note(format!("{} gives up: {error}", life.identity.life));
                life.reading.release_all(true).await;
                life.record(|group, member| Event::Fenced { group, member, epoch: None });
            }
        }
        context.pause(random_up_to(START_OVER)).await;
    }
}

struct Life<'a> {
    context: &'a Context,
    config: &'a RegexMember,
    client: Client<SimEnv>,
    coordinator: Coordinator,
    member: ConsumerMember,
    identity: Identity,
    reading: Reading,
    names: BTreeMap<Uuid, Arc<str>>,
    heartbeat_at: Instant,
    contact_at: Instant,
}

impl<'a> Life<'a> {
    fn new(context: &'a Context, config: &'a RegexMember, client: &Client<SimEnv>, life: String) -> Self {
        let wanted = Wanted::Regex(config.pattern.clone());
        let member = ConsumerMember::new(&config.group, &life, wanted, config.rebalance_timeout);
        let (group, member_id) = (config.group.clone(), member.member_id.clone());
        Self {
            context,
            config,
            client: client.clone(),
            coordinator: Coordinator::new(context, client, &config.group),
            reading: Reading::new(context, client, &config.group, &life),
            identity: Identity { life, group, member_id, instance_id: None, epoch: 0 },
            member,
            names: BTreeMap::new(),
            heartbeat_at: SimEnv::now(),
            contact_at: SimEnv::now(),
        }
    }

    fn record(&self, event: impl FnOnce(String, String) -> Event) {
        self.context.record(event(self.config.group.clone(), self.identity.life.clone()));
    }

    async fn live(&mut self) -> Result<Ending, ClientError> {
        let habits = &self.config.habits;
        while !self.context.finish.is_due() {
            if SimEnv::now() >= self.heartbeat_at {
                self.heartbeat().await?;
            }
            let left = self.heartbeat_at.saturating_duration_since(SimEnv::now()).max(Duration::from_millis(1));
            self.reading.poll(habits.poll.min(left)).await?;
            if self.context.has_whim(habits.slow_per_mille) {
                self.context.pause_unless_calm(random_up_to(habits.slow)).await;
            }
            if self.context.has_whim(habits.vanish_per_mille) {
                return Ok(Ending::Vanished);
            }
            self.commit().await?;
            if self.context.has_whim(habits.leave_per_mille) {
                break;
            }
        }
        self.leave().await;
        Ok(Ending::Left)
    }

    async fn heartbeat(&mut self) -> Result<(), ClientError> {
        let joins = self.member.epoch == 0;
        let asked =
            self.coordinator.ask(HEARTBEAT_VERSION, PATIENCE, self.member.request(), |answer| answer.error_code);
        match asked.await {
            Ok(response) => {
                self.contact_at = SimEnv::now();
                self.member.hear(&response);
                self.identity.epoch = self.member.epoch;
                self.heartbeat_at = SimEnv::now() + self.member.interval;
                if joins {
                    let epoch = Some(self.member.epoch);
                    self.record(|group, member| Event::Joined { group, member, epoch });
                }
                self.reconcile().await
            }
            Err(error) => {
                self.member.must_tell_all = true;
                self.hear_error(error).await
            }
        }
    }

    async fn hear_error(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.heartbeat_at = SimEnv::now() + random_up_to(Duration::from_millis(200));
        match error.code() {
            Some(ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMemberId | ErrorCode::GroupIdNotFound) => {
                self.lose().await;
                Ok(())
            }
            // The next heartbeat tells the epoch.
            Some(ErrorCode::StaleMemberEpoch) => Ok(()),
            _ if error.is_retriable()
                || matches!(error, ClientError::BadAnswer { .. } | ClientError::TimedOut { .. }) =>
            {
                if SimEnv::now().saturating_duration_since(self.contact_at) > self.config.session_timeout {
                    self.lose().await;
                }
                Ok(())
            }
            _ => Err(error),
        }
    }

    async fn lose(&mut self) {
        self.reading.release_all(true).await;
        if self.member.epoch > 0 {
            let epoch = Some(self.member.epoch);
            self.record(|group, member| Event::Fenced { group, member, epoch });
        }
        self.member.begin_anew();
        self.contact_at = SimEnv::now();
    }

    async fn resolve(&mut self, wanted: &Owned) -> Result<(), ClientError> {
        if wanted.keys().any(|id| !self.names.contains_key(id)) {
            let topics = self.client.all_topics().await?;
            self.names = topics.into_iter().map(|topic| (topic.id, Arc::clone(&topic.name))).collect();
        }
        Ok(())
    }

    fn named(&self, list: &Owned) -> BTreeSet<TopicPartition> {
        let topics = list.iter().filter_map(|(id, partitions)| Some((self.names.get(id)?, partitions)));
        topics
            .filter(|(name, _)| self.config.topics.iter().any(|topic| **topic == ***name))
            .flat_map(|(name, partitions)| partitions.iter().map(|index| TopicPartition::new(Arc::clone(name), *index)))
            .collect()
    }

    /// Gives up what it must, takes what it may, and tells so at once.
    async fn reconcile(&mut self) -> Result<(), ClientError> {
        if self.member.target == self.member.owned {
            return Ok(());
        }
        let target = self.member.target.clone();
        if let Err(error) = self.resolve(&target).await {
            return self.hear_error(error).await;
        }
        let (has, due) = (self.reading.has(), self.named(&target));
        let gone: BTreeSet<TopicPartition> = has.difference(&due).cloned().collect();
        if !gone.is_empty() {
            self.commit().await?;
            if self.member.epoch == 0 {
                return Ok(());
            }
            self.reading.release(&gone, false).await;
        }
        let new: Vec<TopicPartition> = due.difference(&has).cloned().collect();
        match commits::committed(self.context, &mut self.coordinator, OFFSETS_VERSION, &new).await {
            Ok(offsets) => {
                let new: BTreeMap<_, _> =
                    new.into_iter().map(|at| (at.clone(), offsets.get(&at).copied().flatten())).collect();
                if !new.is_empty() {
                    self.reading.add(&new, self.member.epoch).await?;
                }
                // A topic whose name is not known yet is taken later.
                self.member.owned = target.into_iter().filter(|(id, _)| self.names.contains_key(id)).collect();
            }
            Err(error) => {
                let given_up = |id: &Uuid, partitions: &BTreeSet<i32>| -> BTreeSet<i32> {
                    partitions.intersection(target.get(id).unwrap_or(&BTreeSet::new())).copied().collect()
                };
                let owned = self.member.owned.iter().map(|(id, partitions)| (*id, given_up(id, partitions)));
                self.member.owned = owned.collect();
                self.hear_error(error).await?;
            }
        }
        self.heartbeat_at = self.heartbeat_at.min(SimEnv::now() + Duration::from_millis(10));
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), ClientError> {
        let done = self.reading.done.clone();
        let committed =
            commits::commit(self.context, &mut self.coordinator, &self.identity, OFFSETS_VERSION, &done).await;
        match committed {
            Ok(()) => {
                self.reading.done.clear();
                Ok(())
            }
            Err(error) => {
                self.context.pause(Duration::from_millis(20)).await;
                self.hear_error(error).await
            }
        }
    }

    async fn leave(&mut self) {
        // A commit may be what tells that it is no member any more.
        if self.commit().await.is_err() || self.member.epoch == 0 {
            return;
        }
        self.reading.release_all(false).await;
        let request = self.member.bare_request(-1);
        let answer = self.coordinator.ask(HEARTBEAT_VERSION, PATIENCE, request, |answer| answer.error_code).await;
        if answer.is_ok() {
            self.record(|group, member| Event::Left { group, member });
        }
    }
}
