//! Deaths at named steps: the host does nothing more, comes back, and nothing that was acknowledged is lost.

use std::path::Path;
use std::time::Duration;

use lockstep_client::{Admin, Client, ClientConfig, NewTopic, Producer, ProducerConfig, ProducerRecord};
use lockstep_core::ShardId;
use lockstep_env::{Disk, Env, Step, timeout};
use sim::cluster::{Cluster, ClusterOptions, Death};
use sim::env::SimEnv;
use sim::env::clock::DRIFT_PPM_MAX;
use sim::env::crash::Cause;
use sim::env::disk::DiskOptions;
use sim::env::net::LinkOptions;

const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "orders";

fn simulate<F: Future<Output = ()>>(seed: u64, test: impl FnOnce() -> F + Send + 'static) {
    sim::simulate(seed, test).unwrap_or_else(|panic| panic!("seed {seed}: {panic}"));
}

/// Journals so short that checkpoints, purges and snapshots come at once.
fn options() -> ClusterOptions {
    ClusterOptions { shards: 1, journal_file_bytes: 32 << 10, checkpoint_journal_bytes: 16 << 10, ..Default::default() }
}

async fn started(options: ClusterOptions) -> Cluster {
    let cluster = Cluster::new(options, LinkOptions::default(), DiskOptions::default());
    for id in cluster.ids() {
        cluster.start(id);
    }
    assert!(cluster.wait_until(PATIENCE, Cluster::all_led).await, "no leaders");
    cluster
}

async fn client(cluster: &Cluster, name: &str) -> Client<SimEnv> {
    let (env, _) = cluster.client(name);
    let config =
        ClientConfig { brokers: cluster.addresses(), timeout: Duration::from_secs(5), client_id: name.to_owned() };
    loop {
        match Client::connect(env.clone(), config.clone()).await {
            Ok(client) => return client,
            Err(_) => SimEnv::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Writes until somebody has fallen; how many records were acknowledged.
async fn write_until_somebody_falls(cluster: &Cluster) -> u64 {
    let producer = Producer::new(&client(cluster, "writer").await, ProducerConfig::default()).unwrap();
    let record = ProducerRecord::new(TOPIC, vec![7; 1000]);
    let mut acknowledged = 0;
    let writing = async {
        while cluster.ids().iter().all(|id| cluster.is_up(*id)) {
            if let Ok(delivery) = producer.send(&record).await
                && delivery.await.is_ok()
            {
                acknowledged += 1;
            }
        }
    };
    let _ = timeout::<SimEnv, _>(PATIENCE, writing).await;
    acknowledged
}

/// Offsets behind the last record of the topic, on every node.
fn ends(cluster: &Cluster) -> Vec<i64> {
    let end = |id| {
        let shard = cluster.node(id)?.shard(ShardId(0))?;
        let topic = shard.read(|state| state.directory().topic(TOPIC).map(|topic| topic.id))?;
        Some(shard.log(topic, 0)?.end_offset())
    };
    cluster.ids().into_iter().filter_map(end).collect()
}

async fn dies_and_comes_back(seed: u64, step: Step, nth: u64, death: Death) {
    let cluster = started(options()).await;
    let admin = Admin::new(&client(&cluster, "admin").await);
    while admin.create_topic(&NewTopic::new(TOPIC, 1)).await.is_err() {
        SimEnv::sleep(Duration::from_millis(100)).await;
    }
    let trap = cluster.arm(None, step, nth, death);
    // A node that lost its disk is taken out, fetches a snapshot and is taken in again. It is the leader's choice when.
    let wiped = cluster.ids().into_iter().find(|id| Some(*id) != cluster.leader(ShardId(0))).unwrap();
    let needs_newcomer = matches!(
        step,
        Step::SnapshotPulled
            | Step::SnapshotStaged
            | Step::SnapshotAdopted
            | Step::MembershipAppended
            | Step::MembershipApplied
            | Step::VoteWritten
            | Step::BeforeJoin
    );
    if needs_newcomer {
        let shared = cluster.clone();
        drop(SimEnv::spawn(async move {
            // Far enough behind that the journals of the others no longer reach back.
            shared.kill(wiped, Death::Process);
            shared.disk(wiped).wipe();
            SimEnv::sleep(Duration::from_secs(5)).await;
            if !shared.is_up(wiped) {
                shared.start(wiped);
            }
        }));
        SimEnv::sleep(Duration::from_millis(1)).await;
    }
    let what = format!("seed {seed}, {step:?}, {death:?}");
    let writing = client(&cluster, "filler").await;
    let mut acknowledged = 0;
    if needs_newcomer {
        let producer = Producer::new(&writing, ProducerConfig::default()).unwrap();
        let until = SimEnv::now() + Duration::from_secs(6);
        let record = ProducerRecord::new(TOPIC, vec![7; 1000]);
        while SimEnv::now() < until {
            if let Ok(delivery) = producer.send(&record).await
                && delivery.await.is_ok()
            {
                acknowledged += 1;
            }
            SimEnv::sleep(Duration::from_millis(20)).await;
        }
    }
    acknowledged += write_until_somebody_falls(&cluster).await;
    let fell = timeout::<SimEnv, _>(PATIENCE, cluster.crash_points().wait_for_fall()).await;
    assert!(fell.is_ok(), "{what}: nobody came there; steps reached: {:?}", cluster.crash_points().reached_counts());
    assert!(!cluster.crash_points().disarm(trap), "{what}: the trap is still armed");
    let falls = cluster.crash_points().take_falls();
    assert_eq!(falls.len(), 1, "{what}: {falls:?}");
    assert_eq!((&falls[0].cause, falls[0].death), (&Cause::Step(step), death), "{what}");
    let fallen = cluster.id_of(&falls[0].host).unwrap();
    assert!(!cluster.is_up(fallen) && cluster.node(fallen).is_none(), "{what}");
    let before = cluster.disk(fallen).files();
    SimEnv::sleep(Duration::from_secs(1)).await;
    assert!(before == cluster.disk(fallen).files(), "{what}: a dead host still writes");
    cluster.start(fallen);
    let together = |cluster: &Cluster| {
        let ends = ends(cluster);
        cluster.all_led()
            && ends.len() == 3
            && ends.iter().all(|end| *end == ends[0])
            && cluster.ids().iter().all(|id| cluster.votes_everywhere(*id))
    };
    assert!(cluster.wait_until(PATIENCE, together).await, "{what}: apart for good, {:?}", ends(&cluster));
    assert!(
        ends(&cluster)[0] >= acknowledged as i64,
        "{what}: {acknowledged} acknowledged, {:?} there",
        ends(&cluster)
    );
    cluster.end().await;
}

fn check(steps: &[Step]) {
    for (number, step) in (0..).zip(steps.iter().copied()) {
        for (death, nth) in [(Death::Process, 1), (Death::Power, 2)] {
            simulate(number, move || dies_and_comes_back(number, step, nth, death));
        }
    }
}

#[test]
fn a_node_may_die_while_it_writes_and_replicates() {
    check(&[Step::BeforeAppend, Step::BeforeReplicate, Step::Journalled, Step::BeforeReply]);
}

#[test]
fn a_node_may_die_around_a_checkpoint() {
    check(&[Step::CheckpointStaged, Step::CheckpointWritten, Step::JournalPurged, Step::JournalRecycled]);
}

#[test]
fn a_node_may_die_while_it_becomes_a_member_again() {
    check(&[Step::SnapshotPulled, Step::MembershipAppended, Step::MembershipApplied]);
    simulate(1, || dies_and_comes_back(1, Step::VoteWritten, 1, Death::Power));
    for step in [Step::SnapshotStaged, Step::SnapshotAdopted, Step::BeforeJoin] {
        simulate(2, move || dies_and_comes_back(2, step, 1, Death::Power));
    }
}

#[test]
fn a_broker_that_gives_up_falls_and_says_why() {
    simulate(1, || async {
        let cluster = started(options()).await;
        let admin = Admin::new(&client(&cluster, "admin").await);
        while admin.create_topic(&NewTopic::new(TOPIC, 1)).await.is_err() {
            SimEnv::sleep(Duration::from_millis(100)).await;
        }
        let leader = cluster.leader(ShardId(0)).unwrap();
        cluster.disk(leader).change_options(|options| options.sync_error_per_mille = 1000);
        let acknowledged = write_until_somebody_falls(&cluster).await;
        timeout::<SimEnv, _>(PATIENCE, cluster.crash_points().wait_for_fall()).await.expect("it goes on");
        let falls = cluster.crash_points().take_falls();
        assert!(matches!(&falls[0].cause, Cause::Failed(reason) if reason.contains("os error 5")), "{falls:?}");
        assert!(cluster.start_error(leader).is_some_and(|reason| reason.contains("os error 5")));
        assert!(!cluster.is_up(leader));
        cluster.disk(leader).set_options(DiskOptions::default());
        cluster.start(leader);
        let together = |cluster: &Cluster| {
            let ends = ends(cluster);
            cluster.all_led() && ends.len() == 3 && ends.iter().all(|end| *end == ends[0])
        };
        assert!(cluster.wait_until(PATIENCE, together).await, "apart for good, {:?}", ends(&cluster));
        assert!(ends(&cluster)[0] >= acknowledged as i64);
        cluster.end().await;
    });
}

#[test]
fn directories_that_a_killed_first_start_made_survive_a_power_cut() {
    for seed in 0..5 {
        simulate(seed, move || async move {
            let cluster = Cluster::new(options(), LinkOptions::default(), DiskOptions::default());
            for id in cluster.ids() {
                for directory in ["raft", "data"] {
                    cluster.disk(id).create_dir_all(Path::new(directory)).await.unwrap();
                }
                cluster.disk(id).power_off(false);
                cluster.start(id);
            }
            assert!(cluster.wait_until(PATIENCE, Cluster::all_led).await, "no leaders");
            let incarnations = |cluster: &Cluster| -> Vec<_> {
                cluster.ids().into_iter().filter_map(|id| Some(cluster.node(id)?.incarnation())).collect()
            };
            let before = incarnations(&cluster);
            for id in cluster.ids() {
                cluster.kill(id, Death::Power);
                cluster.start(id);
            }
            assert!(cluster.wait_until(PATIENCE, |cluster| incarnations(cluster).len() == 3).await);
            assert_eq!(before, incarnations(&cluster), "seed {seed}: a disk has lost what it held");
            cluster.end().await;
        });
    }
}

#[test]
fn no_two_nodes_serve_a_shard_at_once_however_their_clocks_drift() {
    for seed in 0..10 {
        simulate(seed, move || async move {
            let cluster = started(options()).await;
            let old = cluster.leader(ShardId(0)).unwrap();
            for id in cluster.ids() {
                cluster.clock(id).set_drift_ppm(if id == old { -DRIFT_PPM_MAX } else { DRIFT_PPM_MAX });
            }
            SimEnv::sleep(Duration::from_secs(3)).await;
            let Some(old) = cluster.leader(ShardId(0)) else { return };
            for id in cluster.ids().into_iter().filter(|id| *id != old) {
                cluster.network().block(&cluster.host(old), &cluster.host(id));
                cluster.network().block(&cluster.host(id), &cluster.host(old));
            }
            let deadline = SimEnv::now() + PATIENCE;
            while cluster.serving(ShardId(0)).iter().all(|id| *id == old) {
                assert!(SimEnv::now() < deadline, "seed {seed}: nobody else is elected");
                SimEnv::sleep(Duration::from_millis(1)).await;
            }
            let serving = cluster.serving(ShardId(0));
            assert_eq!(serving.len(), 1, "seed {seed}: {serving:?} serve at once");
            cluster.end().await;
        });
    }
}
