//! A cluster in the simulator: it starts, survives the death of any broker, and a seed repeats itself.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_core::op::CreateTopic;
use lockstep_core::{Op, Reply, ShardId, TopicId};
use lockstep_env::Env;
use sim::cluster::{Cluster, ClusterOptions, Death};
use sim::env::SimEnv;
use sim::env::disk::DiskOptions;
use sim::env::net::LinkOptions;
use sim::simulate;

const PATIENCE: Duration = Duration::from_secs(30);

async fn started() -> Cluster {
    let cluster = Cluster::new(ClusterOptions::default(), LinkOptions::default(), DiskOptions::default());
    for id in cluster.ids() {
        cluster.start(id);
    }
    assert!(cluster.wait_until(PATIENCE, Cluster::all_led).await, "no leaders");
    cluster
}

async fn create_topic(cluster: &Cluster, via: u64, name: &str) {
    let node = cluster.node(via).unwrap();
    let topic_id = TopicId(SimEnv::random_uuid());
    let op = CreateTopic { topic_id, name: name.to_owned(), partitions: 6, configs: BTreeMap::new() };
    let reply = node.forward(ShardId::METADATA, Op::CreateTopic(op), PATIENCE).await.unwrap();
    let Reply::Topic(Ok(record)) = reply else { panic!("{reply:?}") };
    assert!(node.wait_metadata(record.version, PATIENCE).await);
}

#[test]
fn a_cluster_starts_and_a_seed_repeats_itself() {
    for seed in 0..5 {
        let run = || {
            simulate(seed, || async {
                let cluster = started().await;
                create_topic(&cluster, 2, "orders").await;
                cluster.trace().fingerprint()
            })
            .unwrap()
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn a_power_cut_of_all_loses_nothing_acknowledged() {
    for seed in 0..10 {
        simulate(seed, || async {
            let cluster = started().await;
            create_topic(&cluster, 1, "orders").await;
            for id in cluster.ids() {
                cluster.kill(id, Death::Power);
            }
            for id in cluster.ids() {
                cluster.start(id);
            }
            assert!(cluster.wait_until(PATIENCE, Cluster::all_led).await, "no leaders again");
            let known = |cluster: &Cluster| {
                cluster.ids().iter().all(|id| {
                    cluster
                        .node(*id)
                        .is_some_and(|node| node.directory(|directory| directory.topic("orders").is_some()))
                })
            };
            assert!(cluster.wait_until(PATIENCE, known).await, "the topic is lost");
        })
        .unwrap();
    }
}
