//! Nodes that die, freeze, stop and lose their disks under load.

use std::time::Duration;

use lockstep_client::{Admin, Client, NewTopic};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use tests::{Cluster, Load, PATIENCE, Readers, Recorder, StallMeter, wait_until};

const TOPIC: &str = "events";
const GROUP: &str = "workers";
const PARTITIONS: i32 = 6;

/// A cluster with a topic, a group that reads it and a producer that fills it, all in full swing.
struct Scene {
    cluster: Cluster,
    client: Client,
    load: Load,
    readers: Readers,
    recorder: Recorder,
}

impl Scene {
    /// `test` names the history.
    async fn set(test: &str) -> Self {
        let recorder = Recorder::new(env!("CARGO_TARGET_TMPDIR"), test);
        let cluster = Cluster::start(3).await;
        let client = cluster.client().await;
        Admin::new(&client).create_topic(&NewTopic::new(TOPIC, PARTITIONS)).await.expect("created");
        let readers = Readers::start(&recorder, &cluster, GROUP, TOPIC, 2).await;
        let load = Load::start(&recorder, &client, TOPIC, "load");
        let scene = Self { cluster, client, load, readers, recorder };
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
        let Self { cluster, client, load, readers, recorder } = self;
        let outcome = load.finish().await;
        println!("{} messages, nothing acknowledged for {:?} at most", outcome.acknowledged.len(), outcome.longest_gap);
        readers.wait_for(&outcome.acknowledged).await;
        let lane = recorder.lane("end");
        lane.fetch_committed(&client, GROUP, TOPIC, PARTITIONS).await;
        readers.finish().await;
        lane.fetch_final_committed(&client, GROUP, TOPIC, PARTITIONS).await;
        lane.read_everything(&client, TOPIC).await;
        cluster.wait_whole().await;
        cluster.wait_equal_digests().await;
        let summary = recorder.check();
        println!("{summary}");
        let partitions = PARTITIONS as u64;
        assert_eq!(summary.acknowledged, outcome.acknowledged.len() as u64);
        assert!(summary.final_records >= summary.acknowledged && summary.polled >= summary.acknowledged);
        assert!(summary.committed > 0 && summary.fetched >= partitions && summary.intervals >= partitions, "{summary}");
        assert_eq!((summary.final_partitions, summary.final_committed), (partitions, partitions));
        outcome.longest_gap
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_takes_nothing_acknowledged_with_it() {
    let mut scene = Scene::set("leader-killed").await;
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
    let scene = Scene::set("leader-frozen").await;
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
    let mut scene = Scene::set("all-killed").await;
    for id in scene.cluster.ids() {
        scene.cluster.kill9(id);
    }
    for id in scene.cluster.ids() {
        scene.cluster.restart(id);
    }
    scene.cluster.wait_whole().await;
    scene.recorder.lane("test").fetch_committed(&scene.client, GROUP, TOPIC, PARTITIONS).await;
    scene.wait_for_progress().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_stop_hands_over_and_clients_hardly_notice() {
    let mut scene = Scene::set("asked-to-stop").await;
    let stalls = StallMeter::start();
    let leader = scene.leader().await;
    let status = scene.cluster.sigterm(leader).await;
    assert_eq!(status.code(), Some(0), "{status}");
    scene.wait_for_progress().await;
    scene.cluster.restart(leader);
    scene.cluster.wait_whole().await;
    let longest_gap = scene.check().await;
    // Below the time it takes to notice that a leader is gone and to retry, even where two cores are shared with a compiler. While the load
    // itself stood still nothing could be acknowledged to it.
    let (bound, stalled) = (Duration::from_secs(5), stalls.longest());
    assert!(longest_gap < bound + stalled, "nothing was acknowledged for {longest_gap:?}, stalled for {stalled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_learns_everything_before_it_votes_again() {
    let mut scene = Scene::set("disk-lost").await;
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
    let mut scene = Scene::set("majority-gone").await;
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
