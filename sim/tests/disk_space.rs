//! Disks that fill up: records are refused while everything else goes on, and once there is room nothing must be restarted.

use std::time::Duration;

use lockstep_client::{
    Admin, Client, ClientConfig, ClientError, Consumer, FetchConfig, GroupConsumer, GroupConsumerConfig, NewTopic,
    OffsetAt, Producer, ProducerConfig, ProducerRecord, StartAt, TopicPartition,
};
use lockstep_core::NodeId;
use lockstep_env::Env;
use lockstep_runtime::Shard;
use sim::cluster::{Cluster, ClusterOptions};
use sim::env::SimEnv;
use sim::env::disk::DiskOptions;
use sim::env::net::LinkOptions;
use sim::simulate;

const TOPIC: &str = "records";
const PATIENCE: Duration = Duration::from_secs(60);
/// Less than a broker's reserve, and more than anything but records needs.
const NEARLY_FULL_BYTES: u64 = 100 << 20;
/// Not enough for anything.
const FULL_BYTES: u64 = 4 << 10;

async fn started() -> (Cluster, Client<SimEnv>) {
    let cluster = Cluster::new(ClusterOptions::default(), LinkOptions::default(), DiskOptions::default());
    for id in cluster.ids() {
        cluster.start(id);
    }
    assert!(cluster.wait_until(PATIENCE, Cluster::all_led).await, "no leaders");
    let (env, _) = cluster.client("test");
    let config = ClientConfig { brokers: cluster.addresses(), ..ClientConfig::default() };
    let client = Client::connect(env, config).await.expect("connected");
    Admin::new(&client).create_topic(&NewTopic::new(TOPIC, 6)).await.expect("created");
    (cluster, client)
}

fn make_room(cluster: &Cluster, id: NodeId) {
    cluster.disk(id).change_options(|options| options.capacity_bytes = None);
}

async fn wait_for(cluster: &Cluster, what: &str, condition: impl Fn(&Cluster) -> bool) {
    assert!(cluster.wait_until(PATIENCE, condition).await, "{what}");
}

/// The error or offset of one record to each partition, after so much time for it.
async fn produce(client: &Client<SimEnv>, delivery_timeout: Duration) -> Vec<Result<Option<i64>, ClientError>> {
    let producer =
        Producer::new(client, ProducerConfig { delivery_timeout, ..ProducerConfig::default() }).expect("a producer");
    let mut outcomes = Vec::new();
    for partition in 0..6 {
        let record = ProducerRecord::new(TOPIC, "value").with_partition(partition);
        let outcome = async { producer.send(&record).await?.await };
        outcomes.push(outcome.await.map(|stored| stored.offset));
    }
    outcomes
}

#[test]
fn records_are_refused_by_full_disks_while_groups_and_reads_go_on() {
    simulate(1, || async {
        let (cluster, client) = started().await;
        assert!(produce(&client, PATIENCE).await.iter().all(Result::is_ok));
        for id in cluster.ids() {
            cluster.disk(id).fill_up(NEARLY_FULL_BYTES);
        }
        let all_short = |cluster: &Cluster| {
            cluster.ids().iter().all(|id| cluster.ask(*id, |node| node.is_short_of_space()) == Some(true))
        };
        wait_for(&cluster, "not all know that they are short", all_short).await;

        for outcome in produce(&client, Duration::from_secs(2)).await {
            let error = outcome.expect_err("there is no room");
            assert!(error.to_string().contains("KAFKA_STORAGE_ERROR: The disks are nearly full"), "{error}");
        }
        let consumer = Consumer::new(&client, FetchConfig::default());
        consumer.assign_topic(TOPIC, StartAt::Place(OffsetAt::Earliest)).await.expect("assigned");
        assert_eq!(consumer.poll(1, PATIENCE).await.expect("read").len(), 1);
        let group = GroupConsumer::new(&client, GroupConsumerConfig::new("readers", "me", vec![TOPIC.to_owned()]))
            .expect("a member");
        group.join_group().await.expect("joined");
        let third = TopicPartition::new(TOPIC, 3);
        let mut messages = group.subscribe().await.expect("subscribed");
        while !group.assignment().contains(&third) {
            messages.poll(Duration::from_millis(100)).await.expect("polled");
        }
        group.commit_offset(TOPIC, 3, 1).await.expect("committed");
        assert_eq!(group.fetch_committed_offset(TOPIC, 3).await.expect("fetched"), Some(1));
        group.leave_group().await.expect("left");
        Admin::new(&client).create_topic(&NewTopic::new("another", 3)).await.expect("created");

        for id in cluster.ids() {
            make_room(&cluster, id);
        }
        let outcomes = produce(&client, PATIENCE).await;
        assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_ok_and(|offset| *offset == Some(1))), "{outcomes:?}");
    })
    .unwrap();
}

#[test]
fn a_broker_whose_disk_is_nearly_full_leads_nothing_while_others_have_room() {
    simulate(2, || async {
        let (cluster, client) = started().await;
        let leads_some =
            |id: NodeId| move |cluster: &Cluster| cluster.shards().any(|shard| cluster.leader(shard) == Some(id));
        wait_for(&cluster, "broker 2 leads nothing", leads_some(2)).await;
        cluster.disk(2).fill_up(NEARLY_FULL_BYTES);
        let leads_nothing = |cluster: &Cluster| cluster.all_led() && !leads_some(2)(cluster);
        wait_for(&cluster, "broker 2 still leads", leads_nothing).await;
        assert!(produce(&client, PATIENCE).await.iter().all(Result::is_ok));
        make_room(&cluster, 2);
        wait_for(&cluster, "broker 2 never leads again", leads_some(2)).await;
        assert!(produce(&client, PATIENCE).await.iter().all(Result::is_ok));
    })
    .unwrap();
}

#[test]
fn a_broker_without_any_room_waits_for_it_and_catches_up_by_itself() {
    for seed in 0..5 {
        simulate(seed, move || async move {
            let (cluster, client) = started().await;
            cluster.disk(3).fill_up(FULL_BYTES);
            for _ in 0..20 {
                assert!(produce(&client, PATIENCE).await.iter().all(Result::is_ok), "seed {seed}");
                SimEnv::sleep(Duration::from_millis(200)).await;
            }
            let node = cluster.node(3).expect("it runs");
            let reasons: Vec<String> = node.shards().iter().filter_map(Shard::stopped).collect();
            assert!(reasons.is_empty(), "seed {seed}: a full disk stops nothing: {reasons:?}");
            make_room(&cluster, 3);
            let caught_up = |cluster: &Cluster| {
                cluster.shards().all(|shard| {
                    let applied = |id: &NodeId| {
                        cluster.ask(*id, |node| node.shard(shard).map(|shard| shard.applied().index)).flatten()
                    };
                    let at: Vec<Option<u64>> = cluster.ids().iter().map(applied).collect();
                    at.iter().all(|index| index.is_some() && *index == at[0])
                })
            };
            wait_for(&cluster, "broker 3 does not catch up", caught_up).await;
        })
        .unwrap();
    }
}
