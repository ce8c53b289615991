//! Power fails at each write, sync and change of a directory of a workload, one run for each of them: what was acknowledged before is there after the
//! next start, and nothing that was never written.
//!
//! One broker, so that nothing can be fetched from elsewhere. All cuts are made, 1,194 as this is written: half a minute of one core.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep_client::{
    Admin, BrokerConnection, Client, ClientConfig, Consumer, FetchConfig, NewTopic, OffsetAt, Producer, ProducerConfig,
    ProducerRecord, StartAt,
};
use lockstep_env::Env;
use lockstep_wire::codec::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use lockstep_wire::codec::offset_fetch_request::OffsetFetchRequestTopic;
use lockstep_wire::codec::{GroupId, OffsetCommitRequest, OffsetFetchRequest, StrBytes, TopicName};
use sim::cluster::{Cluster, ClusterOptions, Death};
use sim::env::SimEnv;
use sim::env::disk::DiskOptions;
use sim::env::net::LinkOptions;
use sim::seeds::{cores, on_all_cores};

const TOPIC: &str = "records";
const GROUP: &str = "readers";
const BROKER: u64 = 1;
const PARTITIONS: i32 = 2;
const PATIENCE: Duration = Duration::from_secs(30);
/// Records and commits of the workload, together.
const OPERATIONS: usize = 500;
/// So many of them are under way at a time.
const UNDER_WAY: usize = 4;
/// Each fifth operation is a commit.
const COMMIT_EVERY: usize = 5;

/// Files so short that many are begun, closed, recycled and deleted.
fn options() -> ClusterOptions {
    ClusterOptions {
        nodes: 1,
        shards: 1,
        journal_file_bytes: 32 << 10,
        checkpoint_journal_bytes: 24 << 10,
        segment_bytes: 8 << 10,
        ..ClusterOptions::default()
    }
}

/// What clients were told.
#[derive(Default)]
struct Acknowledged {
    records: Vec<(i32, i64, String)>,
    committed: Option<i64>,
}

fn request_topic() -> TopicName {
    TopicName(StrBytes::from_static_str(TOPIC))
}

async fn commit(connection: &BrokerConnection<SimEnv>, offset: i64) -> bool {
    let mut partition = OffsetCommitRequestPartition::default();
    partition.committed_offset = offset;
    let mut topic = OffsetCommitRequestTopic::default();
    topic.name = request_topic();
    topic.partitions = vec![partition];
    let mut request = OffsetCommitRequest::default();
    request.group_id = GroupId(StrBytes::from_static_str(GROUP));
    request.generation_id_or_member_epoch = -1;
    request.topics = vec![topic];
    let Ok(asked) = connection.send(8, request) else { return false };
    let Ok(answer) = asked.answer::<SimEnv>(PATIENCE).await else { return false };
    answer.topics[0].partitions[0].error_code == 0
}

async fn committed(connection: &BrokerConnection<SimEnv>) -> i64 {
    let mut topic = OffsetFetchRequestTopic::default();
    topic.name = request_topic();
    topic.partition_indexes = vec![0];
    let mut request = OffsetFetchRequest::default();
    request.group_id = GroupId(StrBytes::from_static_str(GROUP));
    request.topics = Some(vec![topic]);
    let answer = connection.send(5, request).expect("sent").answer::<SimEnv>(PATIENCE).await.expect("answered");
    answer.topics[0].partitions[0].committed_offset
}

async fn connect(cluster: &Cluster, name: &str) -> Client<SimEnv> {
    let (env, _) = cluster.client(name);
    let config = ClientConfig { brokers: cluster.addresses(), timeout: PATIENCE, client_id: name.to_owned() };
    loop {
        match Client::connect(env.clone(), config.clone()).await {
            Ok(client) => return client,
            Err(_) => SimEnv::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// What record `number` says.
fn value_of(number: usize) -> String {
    format!("{number} {}", "x".repeat(number % 7 * 40))
}

/// Works until everything is done or power has failed.
async fn work(cluster: &Cluster) -> Acknowledged {
    let mut told = Acknowledged::default();
    let client = connect(cluster, "writer").await;
    if Admin::new(&client).create_topic(&NewTopic::new(TOPIC, PARTITIONS)).await.is_err() {
        return told;
    }
    let config =
        ProducerConfig { batch_len_max: 1, delivery_timeout: Duration::from_secs(3), ..ProducerConfig::default() };
    let producer = Producer::new(&client, config).expect("a producer");
    let Ok(connection) = client.open_connection(&cluster.addresses()[0]).await else { return told };
    for first in (0..OPERATIONS).step_by(UNDER_WAY) {
        let mut sent = Vec::new();
        let mut commits = Vec::new();
        for number in first..first + UNDER_WAY {
            if number.is_multiple_of(COMMIT_EVERY) {
                commits.push(number as i64);
                continue;
            }
            let value = value_of(number);
            let partition = number as i32 % PARTITIONS;
            let record = ProducerRecord::new(TOPIC, value.clone()).with_partition(partition);
            match producer.send(&record).await {
                Ok(delivery) => sent.push((partition, value, delivery)),
                Err(_) => return told,
            }
        }
        for offset in commits {
            if commit(&connection, offset).await {
                told.committed = Some(offset);
            }
        }
        for (partition, value, delivery) in sent {
            if let Ok(stored) = delivery.await {
                told.records.push((partition, stored.offset.expect("an offset"), value));
            }
        }
        if cluster.disk(BROKER).lost_power() {
            break;
        }
    }
    told
}

async fn read_all(client: &Client<SimEnv>) -> BTreeMap<(i32, i64), String> {
    let consumer = Consumer::new(client, FetchConfig::default());
    consumer.assign_topic(TOPIC, StartAt::Place(OffsetAt::Earliest)).await.expect("assigned");
    let ends = consumer.end_offsets().await.expect("ends");
    let all: i64 = ends.values().sum();
    let mut read = BTreeMap::new();
    while (read.len() as i64) < all {
        for message in consumer.poll(500, PATIENCE).await.expect("read") {
            let value = String::from_utf8(message.value.expect("a value").to_vec()).expect("text");
            read.insert((message.partition, message.offset), value);
        }
    }
    read
}

/// A run in which power fails with this change, or never. Gives the number of changes until the work was done.
fn run(seed: u64, cut: Option<u64>) -> u64 {
    let done = sim::simulate(seed, move || async move {
        let cluster = Cluster::new(options(), LinkOptions::default(), DiskOptions::default());
        if let Some(cut) = cut {
            cluster.disk(BROKER).power_fails_at(cut);
        }
        cluster.start(BROKER);
        let watched = cluster.clone();
        let started_again = Arc::new(AtomicBool::new(false));
        let is_back = Arc::clone(&started_again);
        drop(SimEnv::spawn(async move {
            // However early it comes: the host goes down and up again.
            while !watched.disk(BROKER).lost_power() {
                SimEnv::sleep(Duration::from_millis(1)).await;
            }
            watched.kill(BROKER, Death::Power);
            SimEnv::sleep(Duration::from_millis(100)).await;
            watched.start(BROKER);
            is_back.store(true, Ordering::Relaxed);
        }));
        let told = work(&cluster).await;
        let changes = cluster.disk(BROKER).changes();
        if cut.is_some() {
            // Power may fail with the last change of all: the broker that is falling still looks as if it led.
            let back = |cluster: &Cluster| started_again.load(Ordering::Relaxed) && cluster.all_led();
            assert!(cluster.wait_until(PATIENCE, back).await, "the broker does not come back");
            assert!(cluster.stopped_shards(BROKER).is_empty());
        }
        let client = connect(&cluster, "reader").await;
        Admin::new(&client).create_topic(&NewTopic::new("another", 1)).await.expect("the broker goes on");
        if told.records.is_empty() && told.committed.is_none() {
            return changes;
        }
        let read = read_all(&client).await;
        for (partition, offset, value) in &told.records {
            let found = read.get(&(*partition, *offset));
            assert_eq!(found, Some(value), "what was acknowledged as record {offset} of partition {partition}");
        }
        let mut numbers = BTreeMap::new();
        for (at, value) in &read {
            let number: usize = value.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
            let is_written = number < OPERATIONS && !number.is_multiple_of(COMMIT_EVERY) && *value == value_of(number);
            assert!(is_written, "{at:?} was never written: {value}");
            assert_eq!(numbers.insert(number, at), None, "record {number} is stored twice");
        }
        let connection = client.open_connection(&cluster.addresses()[0]).await.expect("connected");
        let there = committed(&connection).await;
        assert!(told.committed.is_none_or(|told| there >= told), "{there} is committed, after {:?}", told.committed);
        changes
    });
    done.unwrap_or_else(|panic| panic!("power fails with change {cut:?}, seed {seed}: {panic}"))
}

#[test]
fn nothing_acknowledged_is_lost_whenever_power_fails() {
    let changes = run(0, None);
    println!("{changes} changes");
    // A workload that ended early would leave little to cut.
    assert!(changes as usize > OPERATIONS, "only {changes} changes for {OPERATIONS} operations");
    let cuts: Vec<u64> = (0..changes).collect();
    on_all_cores(&cuts, cores(), |cut| run(0, Some(*cut)));
}
