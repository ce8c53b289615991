//! Members of a group with our own consumer (KIP-848).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use checker::Event;
use lockstep_client::{Client, ClientError, GroupConsumer, GroupConsumerConfig, GroupEvent, TopicPartition};
use lockstep_env::Env;

use crate::env::{SimEnv, chance, random_below};

use super::commits::record_fetched;
use super::{
    COMMIT_SLOW, Commits, Context, Ending, Habits, START_OVER, partition_of, partitions_of, random_up_to, text_of,
};

/// What a member does.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its group.
    pub group: String,
    /// What it subscribes to in the end.
    pub topics: Vec<String>,
    /// Its instance, if it is a static member.
    pub instance_id: Option<String>,
    /// The assignor that it asks for.
    pub assignor: Option<String>,
    /// After so long without contact it takes its partitions as lost.
    pub session_timeout: Duration,
    /// How long it may take to give partitions up.
    pub rebalance_timeout: Duration,
    /// How it behaves.
    pub habits: Habits,
    /// How often in a thousand lives it subscribes to a part of the topics only.
    pub part_per_mille: u64,
}

impl Member {
    /// A dynamic member that stays and commits after every poll.
    #[must_use]
    pub fn new(group: impl Into<String>, topics: Vec<String>) -> Self {
        Self {
            group: group.into(),
            topics,
            instance_id: None,
            assignor: None,
            session_timeout: Duration::from_secs(6),
            rebalance_timeout: Duration::from_secs(6),
            habits: Habits::default(),
            part_per_mille: 0,
        }
    }
}

/// Reads and commits until told to finish; joins again whenever it cannot go on.
pub async fn consume(context: Context, config: Member) {
    let Some(client) = context.connect().await else { return };
    let mut number = 0;
    while !context.finish.is_due() {
        number += 1;
        let name = format!("{}.{number}", context.name);
        let (has, done) = (BTreeSet::new(), BTreeMap::new());
        let mut life = Life { context: &context, config: &config, client: &client, name, has, done };
        match life.live().await {
            Ok(_) => context.pause_unless_calm(random_up_to(config.habits.away)).await,
            Err(error) => {
                context.note(format!("{} gives up: {error}", life.name));
                life.record(|group, member| Event::Fenced { group, member, epoch: None });
            }
        }
        context.pause(random_up_to(START_OVER)).await;
    }
}

struct Life<'a> {
    context: &'a Context,
    config: &'a Member,
    client: &'a Client<SimEnv>,
    name: String,
    has: BTreeSet<TopicPartition>,
    /// Read and not committed: the next offset to read.
    done: BTreeMap<TopicPartition, i64>,
}

impl Life<'_> {
    fn record(&self, event: impl FnOnce(String, String) -> Event) {
        self.context.record(event(self.config.group.clone(), self.name.clone()));
    }

    async fn live(&mut self) -> Result<Ending, ClientError> {
        let habits = &self.config.habits;
        let is_part = self.context.has_whim(self.config.part_per_mille);
        let mut topics = self.config.topics.clone();
        if is_part && topics.len() > 1 {
            let index = random_below(topics.len() as u64) as usize;
            topics.remove(index);
        }
        let mut config = GroupConsumerConfig::new(&self.config.group, &self.name, topics);
        config.instance_id = self.config.instance_id.clone();
        config.assignor = self.config.assignor.clone();
        config.session_timeout = self.config.session_timeout;
        config.rebalance_timeout = self.config.rebalance_timeout;
        let consumer = GroupConsumer::new(self.client, config)?;
        consumer.join_group().await?;
        let epoch = Some(consumer.member_epoch());
        self.record(|group, member| Event::Joined { group, member, epoch });
        let mut messages = consumer.subscribe().await?;
        let mut committed_at = SimEnv::now();
        while !self.context.finish.is_due() {
            let polled = messages.poll(habits.poll).await?;
            for event in polled.events {
                self.context.note(format!("{}: {event:?}", self.name));
                self.change(&consumer, event).await;
            }
            for message in polled.messages {
                let value = text_of(message.value.as_deref(), &message.headers);
                let at = TopicPartition::new(message.topic, message.partition);
                let (partition, offset) = (partition_of(&at), message.offset);
                self.record(|group, member| Event::Polled { group, member, partition, offset, value });
                self.done.insert(at, offset + 1);
            }
            if self.context.has_whim(habits.busy_per_mille) {
                self.context.pause_unless_calm(random_up_to(habits.busy)).await;
            }
            if self.context.has_whim(habits.slow_per_mille) {
                self.context.pause_unless_calm(random_up_to(habits.slow)).await;
            }
            if self.context.has_whim(habits.vanish_per_mille) {
                return Ok(Ending::Vanished);
            }
            if self.is_commit_due(&mut committed_at) {
                let done = std::mem::take(&mut self.done);
                self.commit(&consumer, &done).await;
            }
            if self.context.has_whim(habits.leave_per_mille) || (is_part && self.context.finish.is_calm()) {
                break;
            }
        }
        let done = std::mem::take(&mut self.done);
        self.commit(&consumer, &done).await;
        let partitions = partitions_of(&self.has);
        self.record(|group, member| Event::Released { group, member, partitions, is_lost: false });
        // A member that cannot say goodbye is removed when its session runs out.
        if consumer.leave_group().await.is_ok() {
            self.record(|group, member| Event::Left { group, member });
        }
        Ok(Ending::Left)
    }

    fn is_commit_due(&self, committed_at: &mut Instant) -> bool {
        let is_due = match self.config.habits.commits {
            Commits::Always => true,
            Commits::Sometimes(per_mille) => chance(per_mille) || self.context.finish.is_calm(),
            Commits::Later(pause) => {
                SimEnv::now().saturating_duration_since(*committed_at) >= pause || self.context.finish.is_calm()
            }
        };
        if is_due {
            *committed_at = SimEnv::now();
        }
        is_due && !self.done.is_empty()
    }

    async fn change(&mut self, consumer: &GroupConsumer<SimEnv>, event: GroupEvent) {
        match event {
            GroupEvent::Assigned(partitions) => {
                let list = partitions_of(&partitions);
                let epoch = Some(consumer.member_epoch());
                self.record(|group, member| Event::Assigned { group, member, partitions: list, epoch });
                self.has.extend(partitions);
            }
            GroupEvent::Revoked(partitions) => {
                // What was read of them is committed before they are given up, which the next poll does.
                let done: BTreeMap<_, _> = self.done.extract_if(.., |at, _| partitions.contains(at)).collect();
                self.commit(consumer, &done).await;
                self.release(&partitions, false);
            }
            GroupEvent::Lost(partitions) => self.release(&partitions, true),
        }
    }

    fn release(&mut self, partitions: &[TopicPartition], is_lost: bool) {
        self.has.retain(|at| !partitions.contains(at));
        self.done.retain(|at, _| !partitions.contains(at));
        let partitions = partitions_of(partitions);
        self.record(|group, member| Event::Released { group, member, partitions, is_lost });
    }

    /// Makes sure of a commit that took its time: it must be there, whoever coordinates the group by now. An answer that does not come is none.
    async fn read_back(&self, partitions: &[TopicPartition]) {
        let started_at_us = self.context.now_us();
        let Ok(found) = self.client.committed_offsets(&self.config.group, Some(partitions)).await else { return };
        let found = partitions.iter().map(|at| (at.clone(), found.get(at).copied())).collect();
        record_fetched(self.context, &self.config.group, &found, started_at_us);
    }

    /// One request of all partitions, or one of each. What was not acknowledged is to be committed again.
    async fn commit(&mut self, consumer: &GroupConsumer<SimEnv>, done: &BTreeMap<TopicPartition, i64>) {
        let commits: Vec<BTreeMap<TopicPartition, i64>> = if chance(500) {
            done.iter().map(|(at, offset)| BTreeMap::from([(at.clone(), *offset)])).collect()
        } else {
            vec![done.clone()]
        };
        for commit in commits {
            let started_at_us = self.context.now_us();
            let outcome = consumer.commit_offsets(&commit).await;
            let took_us = self.context.now_us().saturating_sub(started_at_us);
            let partitions: Vec<TopicPartition> = commit.keys().cloned().collect();
            for (at, offset) in commit {
                let partition = partition_of(&at);
                if outcome.is_err() && self.has.contains(&at) {
                    self.done.entry(at).or_insert(offset);
                }
                self.record(|group, member| match &outcome {
                    Ok(()) => Event::Committed { group, member, partition, offset, started_at_us },
                    // It may have been sent before, by an attempt that was not answered.
                    Err(error) => {
                        let reason = error.to_string();
                        Event::CommitUnknown { group, member, partition, offset, started_at_us, reason }
                    }
                });
            }
            if outcome.is_ok() && took_us >= COMMIT_SLOW.as_micros() as u64 {
                self.read_back(&partitions).await;
            }
        }
    }
}
