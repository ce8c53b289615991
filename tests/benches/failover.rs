//! How long after the death of a leader the first produce, commit and heartbeat succeed again.
//!
//! `cargo bench -p tests --bench failover -- [ROUNDS]` starts three nodes, and in each round kills (SIGKILL), then freezes
//! (SIGSTOP), the node that leads a partition and coordinates two groups. Three loops that do one thing after another see it:
//! a producer, a committing member, and a heartbeating member. What counts is the time from the failure to the end of the
//! first operation that began after it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_client::{
    Admin, Client, GroupConsumer, GroupConsumerConfig, NewTopic, Producer, ProducerConfig, ProducerRecord,
};
use lockstep_env::tokio_env::{TokioEnv, TokioTask};
use lockstep_env::{Env, timeout};
use lockstep_wire::codec::{
    FindCoordinatorRequest, GroupId, HeartbeatRequest, JoinGroupRequest, StrBytes, SyncGroupRequest,
    join_group_request::JoinGroupRequestProtocol,
};
use tests::{Cluster, PATIENCE, WireConnection, pause, wait_until};
use tokio::sync::mpsc;

const TOPIC: &str = "failover";
const ROUNDS: usize = 20;
/// Operations of each kind that succeed before the leader fails.
const WARM_UP: usize = 20;
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// A broker that does not answer a bare request within this time is left for another.
const BARE_PATIENCE: Duration = Duration::from_millis(100);

/// When operations of one kind ran.
#[derive(Clone, Default)]
struct Runs(Arc<Mutex<Vec<(Instant, Instant)>>>);

impl Runs {
    fn add(&self, began_at: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((began_at, TokioEnv::now()));
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The end of the first operation that began after `silent_at`.
    fn recovery(&self, silent_at: Instant) -> Option<Instant> {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runs.iter().find(|(began_at, _)| *began_at > silent_at).map(|(_, ended_at)| *ended_at)
    }
}

/// A loop of operations.
struct Probe {
    runs: Runs,
    is_over: Arc<AtomicBool>,
    task: TokioTask<()>,
}

impl Probe {
    fn start<F>(probe: impl FnOnce(Runs, Arc<AtomicBool>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (runs, is_over) = (Runs::default(), Arc::new(AtomicBool::new(false)));
        Self { task: TokioEnv::spawn(probe(runs.clone(), Arc::clone(&is_over))), runs, is_over }
    }

    async fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.expect("the probe runs to its end");
    }
}

async fn produce(client: Client, runs: Runs, is_over: Arc<AtomicBool>) {
    let config = ProducerConfig { linger: Duration::ZERO, ..ProducerConfig::default() };
    let producer = Producer::new(&client, config).expect("the configuration is sound");
    while !is_over.load(Ordering::Relaxed) {
        let began_at = TokioEnv::now();
        let record = ProducerRecord::new(TOPIC, vec![7; 1_024]).with_partition(0);
        producer.send(&record).await.expect("taken").await.expect("acknowledged");
        runs.add(began_at);
        pause(Duration::from_millis(2)).await;
    }
}

async fn commit(client: Client, group: String, runs: Runs, is_over: Arc<AtomicBool>) {
    let config = GroupConsumerConfig::new(group, "committer", vec![TOPIC.to_owned()]);
    let consumer = GroupConsumer::new(&client, config).expect("the configuration is sound");
    consumer.start_heartbeat().await.expect("joined");
    wait_until("the member has the partition", PATIENCE, || async {
        (!consumer.assignment().is_empty()).then_some(())
    })
    .await;
    let mut offset = 0;
    while !is_over.load(Ordering::Relaxed) {
        let began_at = TokioEnv::now();
        consumer.commit_offset(TOPIC, 0, offset).await.expect("committed");
        offset += 1;
        runs.add(began_at);
        pause(Duration::from_millis(2)).await;
    }
    consumer.leave_group().await.expect("left");
}

/// Bare heartbeats of the classic protocol, by one who asks all nodes for the coordinator.
async fn beat(addresses: Vec<String>, group: String, runs: Runs, is_over: Arc<AtomicBool>) {
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let address = wait_until("the group has a coordinator", PATIENCE, || coordinator(&addresses, &group)).await;
    let mut connection = WireConnection::connect(&address).await.expect("connected");
    let join = |member_id: StrBytes| {
        JoinGroupRequest::default()
            .with_group_id(GroupId(text(&group)))
            .with_session_timeout_ms(30_000)
            .with_rebalance_timeout_ms(30_000)
            .with_member_id(member_id)
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![
                JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(vec![0; 6].into()),
            ])
    };
    let member_id = connection.call(9, join(StrBytes::default())).await.expect("answered").member_id;
    let joined = connection.call(9, join(member_id.clone())).await.expect("answered");
    let sync = SyncGroupRequest::default()
        .with_group_id(GroupId(text(&group)))
        .with_member_id(member_id.clone())
        .with_generation_id(joined.generation_id)
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")));
    assert_eq!(connection.call(5, sync).await.expect("answered").error_code, 0, "the group is stable");
    let mut connection = Some(connection);
    while !is_over.load(Ordering::Relaxed) {
        let began_at = TokioEnv::now();
        loop {
            let heartbeat = HeartbeatRequest::default()
                .with_group_id(GroupId(text(&group)))
                .with_member_id(member_id.clone())
                .with_generation_id(joined.generation_id);
            if connection.is_none()
                && let Some(address) = coordinator(&addresses, &group).await
            {
                connection = WireConnection::connect(&address).await.ok();
            }
            if let Some(open) = &mut connection {
                match timeout::<TokioEnv, _>(BARE_PATIENCE, open.call(4, heartbeat)).await {
                    Ok(Ok(answer)) if answer.error_code == 0 => break,
                    _ => connection = None,
                }
            }
            pause(Duration::from_millis(5)).await;
        }
        runs.add(began_at);
        pause(Duration::from_millis(2)).await;
    }
}

/// The coordinator that two nodes name: one that was frozen may name itself, and is not waited for.
async fn coordinator(addresses: &[String], group: &str) -> Option<String> {
    let (answers, mut answered) = mpsc::unbounded_channel();
    for address in addresses {
        let (address, answers) = (address.clone(), answers.clone());
        let key = StrBytes::from_string(group.to_owned());
        drop(TokioEnv::spawn(timeout::<TokioEnv, _>(BARE_PATIENCE, async move {
            let mut connection = WireConnection::connect(&address).await.ok()?;
            let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![key]);
            let response = connection.call(4, request).await.ok()?;
            let found = response.coordinators.first().filter(|found| found.error_code == 0)?;
            answers.send(format!("{}:{}", found.host.as_str(), found.port)).ok()
        })));
    }
    drop(answers);
    let mut named = Vec::new();
    while let Some(address) = answered.recv().await {
        if named.contains(&address) {
            return Some(address);
        }
        named.push(address);
    }
    None
}

async fn leader(client: &Client) -> u64 {
    wait_until("the partition has a leader", PATIENCE, || async {
        let topic = Admin::new(client).describe_topic(TOPIC).await.ok()?;
        topic.partition(0)?.leader.and_then(|leader| u64::try_from(leader).ok())
    })
    .await
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    Kill,
    Freeze,
}

/// Waits until leadership has stayed where it is for longer than the cluster takes to move it back to a node that has returned.
async fn wait_settled(cluster: &Cluster) {
    let mut leaders = Vec::new();
    let mut since = TokioEnv::now();
    let deadline = since + PATIENCE;
    while since.elapsed() < SETTLED_AFTER {
        assert!(TokioEnv::now() < deadline, "leadership does not settle");
        let status = cluster
            .wait_status("every shard has a leader", |status| status.shards.iter().all(|shard| shard.leader.is_some()));
        let now: Vec<Option<u64>> = status.await.shards.iter().map(|shard| shard.leader).collect();
        if leaders != now {
            (leaders, since) = (now, TokioEnv::now());
        }
        pause(Duration::from_millis(100)).await;
    }
}

async fn round(cluster: &mut Cluster, failure: Failure, number: usize) -> [Duration; 3] {
    wait_settled(cluster).await;
    let addresses: Vec<String> = cluster.ids().map(|id| cluster.address(id)).collect();
    let client = cluster.client().await;
    let victim = leader(&client).await;
    let address = cluster.address(victim);
    let mut groups = Vec::new();
    for index in 0.. {
        let group = format!("{failure:?}-{number}-{index}");
        let found = wait_until("the group has a coordinator", PATIENCE, || coordinator(&addresses, &group)).await;
        if found == address {
            groups.push(group);
        }
        if groups.len() == 2 {
            break;
        }
    }
    let probes = [
        Probe::start(|runs, is_over| produce(client.clone(), runs, is_over)),
        Probe::start(|runs, is_over| commit(client.clone(), groups[0].clone(), runs, is_over)),
        Probe::start(|runs, is_over| beat(addresses.clone(), groups[1].clone(), runs, is_over)),
    ];
    wait_until("every probe runs", PATIENCE, || async {
        probes.iter().all(|probe| probe.runs.count() >= WARM_UP).then_some(())
    })
    .await;
    let failed_at = TokioEnv::now();
    match failure {
        Failure::Kill => cluster.kill9(victim),
        Failure::Freeze => cluster.sigstop(victim),
    }
    let silent_at = TokioEnv::now();
    let mut recoveries = [Duration::ZERO; 3];
    for (recovery, probe) in recoveries.iter_mut().zip(&probes) {
        *recovery = wait_until("the probe succeeds again", PATIENCE, || async {
            probe.runs.recovery(silent_at).map(|ended_at| ended_at - failed_at)
        })
        .await;
    }
    match failure {
        Failure::Kill => cluster.restart(victim),
        Failure::Freeze => cluster.sigcont(victim),
    }
    for probe in probes {
        probe.stop().await;
    }
    cluster.wait_whole().await;
    recoveries
}

fn show(failure: Failure, rounds: &[[Duration; 3]]) {
    for (index, what) in ["produce", "commit", "heartbeat"].iter().enumerate() {
        let mut times: Vec<f64> = rounds.iter().map(|round| round[index].as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let (first, last) = (times[0], times[times.len() - 1]);
        println!(
            "{failure:?} {what:<10} median {:>7.0} ms   least {first:>7.0} ms   most {last:>7.0} ms",
            times[times.len() / 2]
        );
    }
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS).max(1);
    let mut cluster = Cluster::start_with(3, |_, config| {
        config["cluster"].as_object_mut().expect("an object").remove("shards");
        config.as_object_mut().expect("an object").remove("groups");
    })
    .await;
    let client = cluster.client().await;
    Admin::new(&client).create_topic(&NewTopic::new(TOPIC, 1)).await.expect("created");
    for failure in [Failure::Kill, Failure::Freeze] {
        let mut times = Vec::new();
        for number in 0..rounds {
            let round = round(&mut cluster, failure, number).await;
            println!("{failure:?} {number}: produce {:?}, commit {:?}, heartbeat {:?}", round[0], round[1], round[2]);
            times.push(round);
        }
        show(failure, &times);
    }
}
