//! Nodes that die, freeze, stop and lose their disks under load.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_client::{Admin, Client, NewTopic, TopicPartition};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use tests::{
    Cluster, Load, PATIENCE, Readers, assert_all_delivered_in_order, assert_stored_once_in_order, read_everything,
    wait_until,
};

const TOPIC: &str = "events";
const GROUP: &str = "workers";
const PARTITIONS: i32 = 6;

/// A cluster with a topic, a group that reads it and a producer that fills it, all in full swing.
struct Scene {
    cluster: Cluster,
    client: Client,
    load: Load,
    readers: Readers,
}

impl Scene {
    async fn set() -> Self {
        let cluster = Cluster::start(3).await;
        let client = cluster.client().await;
        Admin::new(&client).create_topic(&NewTopic::new(TOPIC, PARTITIONS)).await.expect("created");
        let readers = Readers::start(&cluster, GROUP, TOPIC, 2).await;
        let load = Load::start(&client, TOPIC, "load");
        let scene = Self { cluster, client, load, readers };
        scene.wait_for_progress().await;
        scene
    }

    /// The node that leads partition 0.
    async fn leader(&self) -> u64 {
        wait_until("partition 0 has a leader", PATIENCE, || async {
            let topic = Admin::new(&self.client).describe_topic(TOPIC).await.ok()?;
            topic.partition(0)?.leader.and_then(|leader| u64::try_from(leader).ok())
        })
        .await
    }

    /// Several hundred more messages are acknowledged and read.
    async fn wait_for_progress(&self) {
        let (sent, read) = (self.load.acknowledged() + 300, self.readers.delivered() + 300);
        wait_until("messages are acknowledged and read", PATIENCE, || async {
            (self.load.acknowledged() >= sent && self.readers.delivered() >= read).then_some(())
        })
        .await;
    }

    /// Ends the load and checks everything that was promised.
    async fn check(self) -> Duration {
        let Self { cluster, client, load, readers } = self;
        let outcome = load.finish().await;
        println!("{} messages, nothing acknowledged for {:?} at most", outcome.acknowledged.len(), outcome.longest_gap);
        readers.wait_for(&outcome.acknowledged).await;
        assert_committed(&client, &readers.committed()).await;
        let delivered = readers.finish().await;
        assert_all_delivered_in_order(&delivered, &outcome.acknowledged);
        let stored = read_everything(&client, TOPIC).await;
        assert_stored_once_in_order(&stored, &outcome.acknowledged);
        cluster.wait_whole().await;
        cluster.wait_equal_digests().await;
        outcome.longest_gap
    }
}

/// The group's commits are not behind what was acknowledged.
async fn assert_committed(client: &Client, acknowledged: &BTreeMap<i32, i64>) {
    let partitions: Vec<_> = acknowledged.keys().map(|&index| TopicPartition::new(TOPIC, index)).collect();
    let committed = client.committed_offsets(GROUP, Some(&partitions)).await.expect("the coordinator answers");
    for (&partition, &offset) in acknowledged {
        let kept = committed.get(&TopicPartition::new(TOPIC, partition)).copied();
        assert!(kept.is_some_and(|kept| kept >= offset), "partition {partition}: {kept:?}, but {offset} was committed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_takes_nothing_acknowledged_with_it() {
    let mut scene = Scene::set().await;
    for _ in 0..2 {
        let leader = scene.leader().await;
        scene.cluster.kill9(leader);
        scene.wait_for_progress().await;
        scene.cluster.restart(leader);
        scene.cluster.wait_whole().await;
        scene.wait_for_progress().await;
    }
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_freezes_is_replaced_and_does_no_harm_when_it_wakes() {
    let scene = Scene::set().await;
    let leader = scene.leader().await;
    scene.cluster.sigstop(leader);
    scene.wait_for_progress().await;
    scene.cluster.sigcont(leader);
    scene.cluster.wait_whole().await;
    scene.wait_for_progress().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_come_back_with_every_message_and_commit() {
    let mut scene = Scene::set().await;
    for id in scene.cluster.ids() {
        scene.cluster.kill9(id);
    }
    let committed = scene.readers.committed();
    for id in scene.cluster.ids() {
        scene.cluster.restart(id);
    }
    scene.cluster.wait_whole().await;
    assert_committed(&scene.client, &committed).await;
    scene.wait_for_progress().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_stop_hands_over_and_clients_hardly_notice() {
    let mut scene = Scene::set().await;
    let leader = scene.leader().await;
    let status = scene.cluster.sigterm(leader).await;
    assert_eq!(status.code(), Some(0), "{status}");
    scene.wait_for_progress().await;
    scene.cluster.restart(leader);
    scene.cluster.wait_whole().await;
    let longest_gap = scene.check().await;
    // Below the time it takes to notice that a leader is gone and to retry, even where two cores are shared with a compiler.
    assert!(longest_gap < Duration::from_secs(5), "nothing was acknowledged for {longest_gap:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_learns_everything_before_it_votes_again() {
    let mut scene = Scene::set().await;
    let wiped = scene.leader().await;
    scene.cluster.kill9(wiped);
    scene.cluster.wipe(wiped);
    scene.wait_for_progress().await;
    scene.cluster.restart(wiped);
    scene.cluster.wait_whole().await;
    scene.wait_for_progress().await;
    let log: String = scene.cluster.ids().map(|id| scene.cluster.log(id)).collect();
    assert!(log.contains("learner"), "no log tells that the node came back as a learner");
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_nodes_gone_stop_the_cluster_and_one_more_brings_it_back() {
    let mut scene = Scene::set().await;
    scene.cluster.kill9(1);
    scene.cluster.kill9(2);
    let mut last = (scene.load.acknowledged(), TokioEnv::now());
    wait_until("nothing is acknowledged any more", PATIENCE, || {
        let count = scene.load.acknowledged();
        if count != last.0 {
            last = (count, TokioEnv::now());
        }
        // Much longer than an election takes, and longer than what was under way.
        let is_over = last.1.elapsed() > Duration::from_secs(3);
        async move { is_over.then_some(()) }
    })
    .await;
    scene.cluster.restart(2);
    scene.wait_for_progress().await;
    scene.cluster.restart(1);
    scene.cluster.wait_whole().await;
    scene.check().await;
}
