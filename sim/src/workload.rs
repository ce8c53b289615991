//! The clients of a run: idempotent producers and members of one consumer group, all with our own client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_client::{
    Client, ClientConfig, ClientError, GroupConsumer, GroupConsumerConfig, GroupEvent, Producer, ProducerConfig,
    ProducerRecord, TopicPartition,
};
use lockstep_env::Env;

use crate::env::{SimEnv, random_below};
use checker::history::{Event, History};

/// The topic that everything goes through.
pub(crate) const TOPIC: &str = "records";
/// The group that reads it.
pub(crate) const GROUP: &str = "readers";
/// Pause before a client starts over after an error.
const START_OVER: Duration = Duration::from_millis(200);
/// Records that a producer sends before it waits for their outcome.
const WINDOW: usize = 5;

/// Tells clients to finish.
#[derive(Clone, Default)]
pub(crate) struct Finish(Arc<AtomicBool>);

impl Finish {
    pub(crate) fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_due(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) fn client_config(brokers: &[String], name: &str) -> ClientConfig {
    ClientConfig { brokers: brokers.to_vec(), timeout: Duration::from_secs(10), client_id: name.to_owned() }
}

pub(crate) async fn connect(env: &SimEnv, brokers: &[String], name: &str) -> Client<SimEnv> {
    loop {
        match Client::connect(env.clone(), client_config(brokers, name)).await {
            Ok(client) => return client,
            Err(_) => SimEnv::sleep(START_OVER).await,
        }
    }
}

/// Sends numbered records until told to finish; then waits for the outcome of all.
pub(crate) async fn produce(env: SimEnv, brokers: Vec<String>, name: String, history: History, finish: Finish) {
    let client = connect(&env, &brokers, &name).await;
    let mut number = 0_u64;
    let mut life = 0;
    while !finish.is_due() {
        // A record whose outcome is unknown ends a producer's life: what comes after it may not be in order with it.
        life += 1;
        let producer =
            match Producer::new(&client, ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::default() }) {
                Ok(producer) => producer,
                Err(error) => panic!("{name}: {error}"),
            };
        let mut all_known = true;
        while all_known && !finish.is_due() {
            let mut window = Vec::new();
            for _ in 0..1 + random_below(WINDOW as u64) {
                let value = format!("{name}.{life}-{number}");
                number += 1;
                history.add(Event::Sent { value: value.clone() });
                let key = format!("{name}.{}", random_below(8));
                let record = ProducerRecord::new(TOPIC, value.clone()).with_key(key);
                window.push((value, producer.send(&record).await));
            }
            for (value, sent) in window {
                let outcome = match sent {
                    Ok(delivery) => delivery.await,
                    Err(error) => Err(error),
                };
                match outcome {
                    Ok(metadata) => history.add(Event::Acknowledged {
                        value,
                        partition: metadata.partition,
                        offset: metadata.offset,
                    }),
                    Err(error) => {
                        env.trace().event(env.host(), format!("outcome of {value} unknown: {error}"));
                        history.add(Event::Unknown { value });
                        all_known = false;
                    }
                }
            }
            SimEnv::sleep(Duration::from_millis(random_below(60))).await;
        }
    }
}

/// Reads and commits as a member of the group until told to finish; joins again whenever it cannot go on.
pub(crate) async fn consume(env: SimEnv, brokers: Vec<String>, name: String, history: History, finish: Finish) {
    let client = connect(&env, &brokers, &name).await;
    let mut life = 0;
    while !finish.is_due() {
        life += 1;
        let member = format!("{name}.{life}");
        if let Err(error) = live(&env, &client, &member, &history, &finish).await {
            env.trace().event(env.host(), format!("{member} gives up: {error}"));
            SimEnv::sleep(START_OVER).await;
        }
    }
}

async fn live(
    env: &SimEnv,
    client: &Client<SimEnv>,
    member: &str,
    history: &History,
    finish: &Finish,
) -> Result<(), ClientError> {
    let mut config = GroupConsumerConfig::new(GROUP, member, vec![TOPIC.to_owned()]);
    config.session_timeout = Duration::from_secs(6);
    config.rebalance_timeout = Duration::from_secs(6);
    config.fetch.wait_max = Duration::from_millis(100);
    let consumer = GroupConsumer::new(client, config)?;
    consumer.join_group().await?;
    let mut messages = consumer.subscribe().await?;
    while !finish.is_due() {
        let polled = messages.poll(Duration::from_millis(300)).await?;
        let mut done: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        for message in polled.messages {
            let value = String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned();
            let (partition, offset) = (message.partition, message.offset);
            history.add(Event::Polled { member: member.to_owned(), partition, offset, value });
            done.insert(TopicPartition::new(message.topic, partition), offset + 1);
        }
        for event in polled.events {
            env.trace().event(env.host(), format!("{member}: {event:?}"));
            let list = |partitions: Vec<TopicPartition>| partitions.into_iter().map(|at| at.partition).collect();
            match event {
                GroupEvent::Assigned(partitions) => {
                    history.add(Event::Assigned { member: member.to_owned(), partitions: list(partitions) });
                }
                GroupEvent::Revoked(partitions) => {
                    history.add(Event::Released { member: member.to_owned(), partitions: list(partitions) });
                }
                GroupEvent::Lost(partitions) => {
                    done.retain(|at, _| !partitions.contains(at));
                    history.add(Event::Released { member: member.to_owned(), partitions: list(partitions) });
                }
            }
        }
        for (at, offset) in done {
            let (member, partition) = (member.to_owned(), at.partition);
            match consumer.commit_offset(&at.topic, partition, offset).await {
                Ok(()) => history.add(Event::Committed { member, partition, offset }),
                Err(_) => history.add(Event::CommitUnknown { member, partition, offset }),
            }
        }
    }
    // Best effort: a member that cannot say goodbye is removed when its session runs out.
    let _ = consumer.leave_group().await;
    Ok(())
}
