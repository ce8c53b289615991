//! librdkafka, the client that most of the world uses, against a cluster of real processes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_env::tokio_env::{TokioEnv, TokioTask};
use lockstep_env::{Env, timeout};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use tests::{Cluster, PATIENCE, wait_until, within};

const KEYS: usize = 20;
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// A message as a consumer was given it.
#[derive(Clone, Debug)]
struct Given {
    partition: i32,
    key: String,
    value: String,
}

async fn create_topic(cluster: &Cluster, name: &str, partitions: i32) {
    create_topic_with(cluster, name, partitions, &[]).await;
}

async fn create_topic_with(cluster: &Cluster, name: &str, partitions: i32, configs: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", cluster.brokers()).create().expect("an admin client");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(3));
    let topic = configs.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let created = within("the topic is created", PATIENCE, admin.create_topics([&topic], &options)).await;
    assert!(created.expect("answered").iter().all(Result::is_ok), "{name} cannot be created");
}

fn producer(cluster: &Cluster, codec: &str) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", cluster.brokers())
        .set("enable.idempotence", "true")
        .set("compression.codec", codec)
        .set("linger.ms", "5")
        .set("message.timeout.ms", "60000")
        .create()
        .expect("a producer")
}

/// Sends `count` messages, `prefix:number` each, spread over the keys. All are acknowledged when it returns.
async fn produce(producer: &FutureProducer, topic: &str, prefix: &str, count: usize) -> BTreeSet<String> {
    let mut deliveries = Vec::new();
    let mut values = BTreeSet::new();
    for number in 0..count {
        // Long enough, and alike enough, for every codec to have something to do.
        let value = format!("{prefix}:{number:06}:{}", "padding ".repeat(8));
        let key = format!("{prefix}-{}", number % KEYS);
        let record = FutureRecord::to(topic).payload(&value).key(&key);
        deliveries.push(producer.send_result(record).map_err(|(error, _)| error).expect("the queue has room"));
        values.insert(value);
    }
    for delivery in deliveries {
        let outcome = within("a message is acknowledged", PATIENCE, delivery).await.expect("the producer lives");
        outcome.map_err(|(error, _)| error).expect("acknowledged");
    }
    values
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Classic,
    Consumer,
}

fn consumer(cluster: &Cluster, group: &str, protocol: Protocol) -> StreamConsumer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", cluster.brokers())
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100");
    match protocol {
        Protocol::Classic => config
            .set("partition.assignment.strategy", "range,roundrobin")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "500"),
        Protocol::Consumer => config.set("group.protocol", "consumer"),
    };
    config.create().expect("a consumer")
}

/// A member of a group that runs until it is told to stop: it notes and commits each message.
struct Member {
    consumer: Arc<StreamConsumer>,
    given: Arc<Mutex<Vec<Given>>>,
    is_over: Arc<AtomicBool>,
    task: TokioTask<()>,
}

impl Member {
    fn start(cluster: &Cluster, group: &str, protocol: Protocol, topic: &str) -> Self {
        let consumer = Arc::new(consumer(cluster, group, protocol));
        consumer.subscribe(&[topic]).expect("subscribed");
        let given = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let task = TokioEnv::spawn(read_and_commit(Arc::clone(&consumer), Arc::clone(&given), Arc::clone(&is_over)));
        Self { consumer, given, is_over, task }
    }

    fn partitions(&self) -> usize {
        self.consumer.assignment().map_or(0, |assignment| assignment.count())
    }

    fn given(&self) -> Vec<Given> {
        self.given.lock().expect("nobody panics with the lock").clone()
    }

    async fn stop(self) -> Vec<Given> {
        self.is_over.store(true, Ordering::Relaxed);
        within("the member stops", PATIENCE, self.task).await.expect("the member ran to its end");
        // Closing talks to the coordinator and blocks.
        let consumer = self.consumer;
        within("the member leaves", PATIENCE, tokio::task::spawn_blocking(move || drop(consumer))).await.expect("left");
        self.given.lock().expect("nobody panics with the lock").clone()
    }
}

async fn read_and_commit(consumer: Arc<StreamConsumer>, given: Arc<Mutex<Vec<Given>>>, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Relaxed) {
        let Ok(received) = timeout::<TokioEnv, _>(Duration::from_millis(200), consumer.recv()).await else { continue };
        // Errors of librdkafka's are news: it goes on by itself.
        let Ok(message) = received else { continue };
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        given.lock().expect("nobody panics with the lock").push(Given {
            partition: message.partition(),
            key: text(message.key()),
            value: text(message.payload()),
        });
        drop(consumer.commit_message(&message, CommitMode::Async));
    }
    wait_until("everything read is committed", PATIENCE, || async {
        // It blocks until the coordinator has answered; commits on the way may have been refused when the coordinator changed.
        let consumer = Arc::clone(&consumer);
        let commit = move || consumer.commit_consumer_state(CommitMode::Sync);
        match tokio::task::spawn_blocking(commit).await.expect("the commit returns") {
            Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Some(()),
            Err(_) => None,
        }
    })
    .await;
}

/// Each value once, and those of each key in the order of their numbers, all in one partition.
fn assert_once_in_order(members: &[Vec<Given>], sent: &BTreeSet<String>) {
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<&str, (i32, &str)> = BTreeMap::new();
    for message in members.iter().flatten() {
        assert!(seen.insert(message.value.clone()), "{} was given twice", message.value);
        if let Some((partition, before)) = last.insert(&message.key, (message.partition, &message.value)) {
            assert_eq!(partition, message.partition, "{} moved", message.key);
            assert!(before < message.value.as_str(), "{} came after {before}", message.value);
        }
    }
    assert_eq!(&seen, sent);
}

async fn two_members_share(protocol: Protocol) {
    let cluster = Cluster::start(3).await;
    create_topic(&cluster, "shared", 4).await;
    let members = [(); 2].map(|()| Member::start(&cluster, "sharing", protocol, "shared"));
    wait_until("both members have two partitions", PATIENCE, || async {
        members.iter().all(|member| member.partitions() == 2).then_some(())
    })
    .await;
    let mut sent = BTreeSet::new();
    for codec in CODECS {
        sent.extend(produce(&producer(&cluster, codec), "shared", codec, 400).await);
    }
    wait_until("all messages are read", PATIENCE, || async {
        let given: usize = members.iter().map(|member| member.given().len()).sum();
        (given >= sent.len()).then_some(())
    })
    .await;
    let mut given = Vec::new();
    for member in members {
        given.push(member.stop().await);
    }
    assert!(given.iter().all(|given| !given.is_empty()), "one member did all the work");
    assert_once_in_order(&given, &sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_of_a_classic_group_share_what_is_produced_with_every_codec() {
    two_members_share(Protocol::Classic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_of_a_consumer_group_share_what_is_produced_with_every_codec() {
    two_members_share(Protocol::Consumer).await;
}

/// A group reads, all nodes are killed and started again, and the group goes on after its last commit.
async fn commits_survive(protocol: Protocol) {
    let mut cluster = Cluster::start(3).await;
    create_topic(&cluster, "kept", 3).await;
    let producer = producer(&cluster, "lz4");
    let first = produce(&producer, "kept", "first", 300).await;
    let member = Member::start(&cluster, "keepers", protocol, "kept");
    wait_until("the first messages are read", PATIENCE, || async {
        (member.given().len() >= first.len()).then_some(())
    })
    .await;
    assert_once_in_order(&[member.stop().await], &first);
    for id in cluster.ids() {
        cluster.kill9(id);
    }
    for id in cluster.ids() {
        cluster.restart(id);
    }
    cluster.wait_whole().await;

    let second = produce(&producer, "kept", "second", 300).await;
    let member = Member::start(&cluster, "keepers", protocol, "kept");
    wait_until("the second messages are read", PATIENCE, || async {
        (member.given().len() >= second.len()).then_some(())
    })
    .await;
    assert_once_in_order(&[member.stop().await], &second);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_a_classic_group_survive_a_restart_of_everything() {
    commits_survive(Protocol::Classic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_a_consumer_group_survive_a_restart_of_everything() {
    commits_survive(Protocol::Consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_producer_loses_and_repeats_nothing_while_leaders_die() {
    let mut cluster = Cluster::start(3).await;
    create_topic(&cluster, "risky", 3).await;
    let producer = producer(&cluster, "snappy");
    let mut sent = produce(&producer, "risky", "before", 200).await;
    for id in [1, 2] {
        cluster.kill9(id);
        sent.extend(produce(&producer, "risky", &format!("without-{id}"), 200).await);
        cluster.restart(id);
        cluster.wait_whole().await;
    }
    producer.flush(PATIENCE).expect("flushed");
    let member = Member::start(&cluster, "checkers", Protocol::Classic, "risky");
    wait_until("all messages are read", PATIENCE, || async { (member.given().len() >= sent.len()).then_some(()) })
        .await;
    assert_once_in_order(&[member.stop().await], &sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_gives_the_last_message_of_each_key() {
    let cluster =
        Cluster::start_with(3, |_, config| config["config"]["compaction_check_interval_ms"] = 50.into()).await;
    let compacted = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0"), ("segment.bytes", "3000")];
    create_topic_with(&cluster, "changes", 2, &compacted).await;
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    let mut sent = 0;
    for codec in CODECS {
        for value in produce(&producer(&cluster, codec), "changes", codec, 500).await {
            let number: usize = value.split(':').nth(1).and_then(|number| number.parse().ok()).expect("a number");
            last.insert(format!("{codec}-{}", number % KEYS), value);
            sent += 1;
        }
    }
    // What a member of a new group is given, to the end of both partitions.
    let mut groups = 0;
    let given = wait_until("most of it is compacted", PATIENCE, || {
        groups += 1;
        let member = Member::start(&cluster, &format!("latecomers-{groups}"), Protocol::Consumer, "changes");
        let last = &last;
        async move {
            wait_until("the last messages are read", PATIENCE, || async {
                let given = member.given();
                last.values().all(|value| given.iter().any(|message| message.value == *value)).then_some(())
            })
            .await;
            let given = member.stop().await;
            (given.len() < sent / 2).then_some(given)
        }
    })
    .await;
    let mut read: BTreeMap<String, String> = BTreeMap::new();
    for message in given {
        let before = read.insert(message.key, message.value.clone());
        assert!(before.is_none_or(|before| before < message.value), "{} is given late", message.value);
    }
    assert_eq!(read, last);
}
