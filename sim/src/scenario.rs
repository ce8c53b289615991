//! One run: a cluster, its clients, what goes wrong, and what must be true in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lockstep_client::{Admin, Client, Consumer, FetchConfig, NewTopic, OffsetAt, OffsetReset, StartAt, TopicPartition};
use lockstep_core::ShardId;
use lockstep_core::view::GroupState;
use lockstep_env::{Env, timeout};
use madsim::runtime::{Handle, NodeHandle};

use crate::cluster::{Cluster, ClusterOptions};
use crate::env::SimEnv;
use crate::env::disk::DiskOptions;
use crate::env::net::LinkOptions;
use crate::env::random_below;
use crate::env::trace::Event as TraceEvent;
use crate::faults::{self, Planned};
use crate::workload::{self, Finish, GROUP, TOPIC};
use checker::{Event, Header, History, Partition, Record, check_all};

/// What is stored in the end: by partition, offsets and values.
type Stored = BTreeMap<i32, Vec<(i64, String)>>;

/// Partitions of the topic.
const PARTITIONS: i32 = 6;
const PRODUCERS: u64 = 2;
const MEMBERS: usize = 3;
/// Everything must converge within this long after the faults have stopped.
const CONVERGE: Duration = Duration::from_secs(120);

/// What a run gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The faults that were drawn.
    pub schedule: Vec<Planned>,
    /// What the clients saw.
    pub history: Vec<Record>,
    /// Number and hash of all events of the world.
    pub fingerprint: (u64, u64),
    /// The last events.
    pub timeline: Vec<TraceEvent>,
    /// Which promise was broken; `None`: none.
    pub verdict: Option<String>,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64) -> Outcome {
    crate::simulate(seed, drive)
}

async fn drive() -> Outcome {
    let options = ClusterOptions { shards: if random_below(8) == 0 { 8 } else { 3 }, ..ClusterOptions::default() };
    let schedule = faults::draw(options.nodes, options.shards, MEMBERS);
    let cluster = Cluster::new(options, LinkOptions::default(), DiskOptions::default());
    let history = History::new(Header::default());
    let verdict = play(&cluster, &options, &schedule, &history).await.err();
    if let Some(verdict) = &verdict {
        cluster.trace().event("verdict", verdict.clone());
    }
    let outcome = Outcome {
        schedule,
        history: history.records(),
        fingerprint: cluster.trace().fingerprint(),
        timeline: cluster.trace().events(),
        verdict,
    };
    cluster.end().await;
    outcome
}

async fn play(
    cluster: &Cluster,
    options: &ClusterOptions,
    schedule: &[Planned],
    history: &History,
) -> Result<(), String> {
    for id in cluster.ids() {
        cluster.start(id);
    }
    if !cluster.wait_until(CONVERGE, Cluster::all_led).await {
        return Err("the cluster does not start".to_owned());
    }
    let brokers = cluster.addresses();
    let (env, _) = cluster.client("admin");
    let client = workload::connect(&env, &brokers, "admin").await;
    let admin = Admin::new(&client);
    admin.create_topic(&NewTopic::new(TOPIC, PARTITIONS)).await.map_err(|error| format!("no topic: {error}"))?;

    let (no_more_records, no_more_reading) = (Finish::default(), Finish::default());
    let mut producers = Vec::new();
    for number in 0..PRODUCERS {
        let name = format!("p{number}");
        let (env, machine) = cluster.client(&name);
        producers.push(machine.spawn(workload::produce(
            env,
            brokers.clone(),
            name,
            history.clone(),
            no_more_records.clone(),
        )));
    }
    let mut members = Vec::new();
    let mut machines: Vec<NodeHandle> = Vec::new();
    for number in 0..MEMBERS {
        let name = format!("m{number}");
        let (env, machine) = cluster.client(&name);
        members.push(machine.spawn(workload::consume(
            env,
            brokers.clone(),
            name,
            history.clone(),
            no_more_reading.clone(),
        )));
        machines.push(machine);
    }
    let machines = Arc::new(machines);
    let paused = machines.clone();
    faults::play(cluster, schedule, move |member, pause| {
        if let Some(machine) = paused.get(member) {
            if pause { Handle::current().pause(machine.id()) } else { Handle::current().resume(machine.id()) }
        }
    })
    .await;
    SimEnv::sleep(Duration::from_millis(500)).await;
    no_more_records.now();
    cluster.trace().event("faults", "no more");

    // From here on everything must converge.
    within("producers know the outcome of every record", async {
        for producer in producers {
            let _ = producer.await;
        }
    })
    .await?;
    if let Some(error) = cluster.ids().into_iter().find_map(|id| cluster.start_error(id)) {
        return Err(format!("a broker does not start again: {error}"));
    }
    if !cluster.wait_until(CONVERGE, |cluster| cluster.all_led()).await {
        return Err("not every shard has a leader again".to_owned());
    }
    let stored = within("everything can be read", read_all(&client)).await??;
    within("the group is stable and has read everything", group_done(cluster, &client, &stored)).await??;
    let committed = within("the committed offsets can be read", committed(&client)).await??;
    no_more_reading.now();
    within("the members leave", async {
        for member in members {
            let _ = member.await;
        }
    })
    .await?;
    let at_us = cluster.trace().now_us();
    for (partition, records) in &stored {
        let partition = Partition::new(TOPIC, *partition);
        let end = records.last().map_or(0, |(offset, _)| offset + 1);
        history.add_final_records(at_us, "end", &partition, (0, end), records);
    }
    for partition in 0..PARTITIONS {
        let (group, offset) = (GROUP.to_owned(), committed.get(&partition).copied());
        let partition = Partition::new(TOPIC, partition);
        history.add(at_us, "end", Event::FinalCommitted { group, partition, offset });
    }
    check_all(&history.records()).map_err(|broken| broken.to_string())?;
    replicas_agree(cluster, options).await
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> Result<T, String> {
    timeout::<SimEnv, _>(CONVERGE, work).await.map_err(|_| format!("not within {CONVERGE:?} after the faults: {what}"))
}

async fn read_all(client: &Client<SimEnv>) -> Result<Stored, String> {
    let consumer = Consumer::new(client, FetchConfig { reset: OffsetReset::Fail, ..FetchConfig::default() });
    let text = |error: lockstep_client::ClientError| format!("reading everything: {error}");
    consumer.assign_topic(TOPIC, StartAt::Place(OffsetAt::Earliest)).await.map_err(text)?;
    let ends = loop {
        match consumer.end_offsets().await {
            Ok(ends) => break ends,
            Err(_) => SimEnv::sleep(Duration::from_millis(100)).await,
        }
    };
    let mut stored: Stored = (0..PARTITIONS).map(|partition| (partition, Vec::new())).collect();
    let complete = |stored: &Stored| {
        ends.iter().all(|(at, end)| {
            let last = stored.get(&at.partition).and_then(|records| records.last());
            *end == 0 || last.is_some_and(|(offset, _)| offset + 1 >= *end)
        })
    };
    while !complete(&stored) {
        for message in consumer.poll(10_000, Duration::from_secs(1)).await.map_err(text)? {
            let value = String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned();
            let records = stored.entry(message.partition).or_default();
            if records.last().map_or(0, |(offset, _)| offset + 1) != message.offset {
                return Err(format!("a gap in partition {} before offset {}", message.partition, message.offset));
            }
            records.push((message.offset, value));
        }
    }
    Ok(stored)
}

async fn committed(client: &Client<SimEnv>) -> Result<BTreeMap<i32, i64>, String> {
    let partitions: Vec<TopicPartition> =
        (0..PARTITIONS).map(|partition| TopicPartition::new(TOPIC, partition)).collect();
    loop {
        match client.committed_offsets(GROUP, Some(&partitions)).await {
            Ok(offsets) => return Ok(offsets.into_iter().map(|(at, offset)| (at.partition, offset)).collect()),
            Err(error) if error.is_retriable() => SimEnv::sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(format!("committed offsets: {error}")),
        }
    }
}

/// The group is at rest with all its members, and has committed the end of every partition.
async fn group_done(cluster: &Cluster, client: &Client<SimEnv>, stored: &Stored) -> Result<(), String> {
    loop {
        SimEnv::sleep(Duration::from_millis(200)).await;
        let at_rest = cluster.ids().iter().filter_map(|id| cluster.node(*id)).any(|node| {
            let shard = lockstep_core::shard_of_group(GROUP, node.shard_count());
            node.shard(shard).is_some_and(|shard| {
                shard.serving().is_ok()
                    && shard
                        .read(|state| state.group(GROUP))
                        .is_some_and(|group| group.state == GroupState::Stable && group.members.len() == MEMBERS)
            })
        });
        if !at_rest {
            continue;
        }
        let committed = committed(client).await?;
        let done = stored.iter().all(|(partition, records)| {
            let end = records.last().map_or(0, |(offset, _)| offset + 1);
            end == 0 || committed.get(partition).is_some_and(|offset| *offset >= end)
        });
        if done {
            return Ok(());
        }
    }
}

/// Every replica comes to the same digest at the same index, holds the same bytes, and its state is sound.
async fn replicas_agree(cluster: &Cluster, options: &ClusterOptions) -> Result<(), String> {
    let shards = || (0..options.shards).map(ShardId);
    let nodes: Vec<_> = cluster.ids().into_iter().filter_map(|id| cluster.node(id)).collect();
    let replicas = |shard: ShardId| nodes.iter().filter_map(move |node| Some((node.id(), node.shard(shard)?)));
    let equal = |_: &Cluster| {
        shards().all(|shard| {
            let mut applied = replicas(shard).map(|(_, replica)| replica.applied());
            let first = applied.next();
            applied.all(|position| Some(position) == first)
        })
    };
    if !cluster.wait_until(CONVERGE, equal).await {
        return Err("the replicas do not come to the same position".to_owned());
    }
    for shard in shards() {
        let mut digests = BTreeMap::new();
        for (node, replica) in replicas(shard) {
            let (digest, sound) = replica.read(|state| (state.digest(), state.check_invariants()));
            sound.map_err(|violation| format!("node {node}: {violation:?}"))?;
            digests.insert(node, digest);
        }
        if digests.values().any(|digest| Some(digest) != digests.values().next()) {
            return Err(format!("{shard:?}: replicas differ at the same position: {digests:?}"));
        }
        let hosted =
            replicas(shard).next().map(|(_, replica)| replica.read(|state| state.partitions())).unwrap_or_default();
        for (topic, partition, _) in hosted {
            let mut copies = BTreeMap::new();
            for (node, replica) in replicas(shard) {
                let Some(log) = replica.log(topic, partition) else {
                    return Err(format!("node {node} has no log of partition {partition}"));
                };
                let mut bytes = Vec::new();
                let mut offset = log.start_offset();
                while offset < log.end_offset() {
                    let read = log.read(offset, 1 << 20, true).await;
                    let batches = read.map_err(|error| format!("node {node}, partition {partition}: {error}"))?;
                    for batch in batches.iter().flat_map(|bytes| lockstep_wire::batch::Batches::new(bytes)) {
                        let (_, header) =
                            batch.map_err(|error| format!("node {node}, partition {partition}: {error}"))?;
                        offset = header.last_offset() + 1;
                    }
                    bytes.extend(batches.iter().flat_map(|batch| batch.to_vec()));
                }
                copies.insert(node, bytes);
            }
            if copies.values().any(|copy| Some(copy) != copies.values().next()) {
                let lengths: Vec<_> = copies.iter().map(|(node, copy)| (node, copy.len())).collect();
                return Err(format!("{shard:?}, partition {partition}: copies differ, bytes by node {lengths:?}"));
            }
        }
    }
    Ok(())
}
