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
use checker::{Event, History, Partition};

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
                let key = format!("{name}.{}", random_below(8));
                let sent = Event::Sent {
                    producer: format!("{name}.{life}"),
                    topic: TOPIC.to_owned(),
                    partition: None,
                    key: Some(key.clone()),
                    value: value.clone(),
                    is_idempotent: true,
                };
                history.add(env.trace().now_us(), &name, sent);
                let record = ProducerRecord::new(TOPIC, value.clone()).with_key(key);
                window.push((value, producer.send(&record).await));
            }
            for (value, sent) in window {
                let outcome = match sent {
                    Ok(delivery) => delivery.await,
                    Err(error) => Err(error),
                };
                match outcome {
                    Ok(metadata) => {
                        let partition = Partition::new(TOPIC, metadata.partition);
                        let acknowledged = Event::Acknowledged { value, partition, offset: metadata.offset };
                        history.add(env.trace().now_us(), &name, acknowledged);
                    }
                    Err(error) => {
                        env.trace().event(env.host(), format!("outcome of {value} unknown: {error}"));
                        let unknown = Event::Unknown { value, reason: error.to_string() };
                        history.add(env.trace().now_us(), &name, unknown);
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
        let (group, name) = (|| GROUP.to_owned(), || member.to_owned());
        let add = |event| history.add(env.trace().now_us(), member, event);
        let list = |partitions: &[TopicPartition]| -> Vec<Partition> {
            partitions.iter().map(|at| Partition::new(&*at.topic, at.partition)).collect()
        };
        for event in &polled.events {
            env.trace().event(env.host(), format!("{member}: {event:?}"));
            match event {
                GroupEvent::Assigned(partitions) => {
                    let epoch = Some(consumer.member_epoch());
                    add(Event::Assigned { group: group(), member: name(), partitions: list(partitions), epoch });
                }
                GroupEvent::Revoked(partitions) | GroupEvent::Lost(partitions) => {
                    let is_lost = matches!(event, GroupEvent::Lost(_));
                    add(Event::Released { group: group(), member: name(), partitions: list(partitions), is_lost });
                }
            }
        }
        let mut done: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        for message in polled.messages {
            let value = String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned();
            let (partition, offset) = (Partition::new(&*message.topic, message.partition), message.offset);
            add(Event::Polled { group: group(), member: name(), partition, offset, value });
            done.insert(TopicPartition::new(message.topic, message.partition), offset + 1);
        }
        for (at, offset) in done {
            let started_at_us = env.trace().now_us();
            let outcome = consumer.commit_offset(&at.topic, at.partition, offset).await;
            let (group, member, partition) = (group(), name(), Partition::new(&*at.topic, at.partition));
            add(match outcome {
                Ok(()) => Event::Committed { group, member, partition, offset, started_at_us },
                Err(error) => {
                    let reason = error.to_string();
                    Event::CommitUnknown { group, member, partition, offset, started_at_us, reason }
                }
            });
        }
    }
    // Best effort: a member that cannot say goodbye is removed when its session runs out.
    let _ = consumer.leave_group().await;
    Ok(())
}
