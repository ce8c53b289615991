//! After the faults: everything must come to rest within stated bounds, and what the cluster then holds is read for the checks.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use checker::{Event, History, Partition};
use lockstep_client::{Client, Consumer, FetchConfig, OffsetAt, OffsetReset, StartAt, TopicPartition};
use lockstep_core::ShardId;
use lockstep_core::view::GroupState;
use lockstep_env::{Env, timeout};

use crate::cluster::Cluster;
use crate::env::SimEnv;
use crate::workload::{GROUP, TOPIC};

/// What is stored in the end: by partition, offsets and values.
pub(crate) type Stored = BTreeMap<Partition, Vec<(i64, String)>>;

/// Everything must come to rest within this long after the faults have stopped, each step of it.
const CONVERGE: Duration = Duration::from_secs(60);
/// Every shard must have a leader within this long after the faults have stopped.
const ELECT: Duration = Duration::from_secs(20);

/// Waits until every shard has a leader.
pub(crate) async fn led(cluster: &Cluster) -> Result<(), String> {
    if cluster.wait_until(ELECT, Cluster::all_led).await {
        Ok(())
    } else {
        Err("not every shard has a leader".to_owned())
    }
}

/// Bounds a step of the convergence.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> Result<T, String> {
    timeout::<SimEnv, _>(CONVERGE, work).await.map_err(|_| format!("not within {CONVERGE:?} after the faults: {what}"))
}

/// Have clients done so much?
pub(crate) fn is_busy(history: &History, operations: u64) -> bool {
    history.count(Event::is_operation) as u64 >= operations
}

/// Waits until they have.
pub(crate) async fn busy(history: &History, operations: u64) {
    while !is_busy(history, operations) {
        SimEnv::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) async fn read_all(client: &Client<SimEnv>) -> Result<Stored, String> {
    let consumer = Consumer::new(client, FetchConfig { reset: OffsetReset::Fail, ..FetchConfig::default() });
    let text = |error: lockstep_client::ClientError| format!("reading everything: {error}");
    consumer.assign_topic(TOPIC, StartAt::Place(OffsetAt::Earliest)).await.map_err(text)?;
    let ends = loop {
        match consumer.end_offsets().await {
            Ok(ends) => break ends,
            Err(_) => SimEnv::sleep(Duration::from_millis(100)).await,
        }
    };
    let named = |at: &TopicPartition| Partition::new(&*at.topic, at.partition);
    let mut stored: Stored = ends.keys().map(|at| (named(at), Vec::new())).collect();
    let complete = |stored: &Stored| {
        ends.iter().all(|(at, end)| {
            let last = stored.get(&named(at)).and_then(|records| records.last());
            *end == 0 || last.is_some_and(|(offset, _)| offset + 1 >= *end)
        })
    };
    while !complete(&stored) {
        for message in consumer.poll(10_000, Duration::from_secs(1)).await.map_err(text)? {
            let value = String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned();
            let partition = Partition::new(&*message.topic, message.partition);
            let records = stored.entry(partition.clone()).or_default();
            if records.last().map_or(0, |(offset, _)| offset + 1) != message.offset {
                return Err(format!("a gap: in {partition} before offset {}", message.offset));
            }
            records.push((message.offset, value));
        }
    }
    Ok(stored)
}

pub(crate) async fn committed(client: &Client<SimEnv>, stored: &Stored) -> Result<BTreeMap<Partition, i64>, String> {
    let partitions: Vec<TopicPartition> =
        stored.keys().map(|partition| TopicPartition::new(&*partition.topic, partition.index)).collect();
    loop {
        match client.committed_offsets(GROUP, Some(&partitions)).await {
            Ok(offsets) => {
                let named = |at: TopicPartition| Partition::new(&*at.topic, at.partition);
                return Ok(offsets.into_iter().map(|(at, offset)| (named(at), offset)).collect());
            }
            Err(error) if error.is_retriable() => SimEnv::sleep(Duration::from_millis(100)).await,
            Err(error) => return Err(format!("committed offsets: {error}")),
        }
    }
}

/// The group is at rest with all its members, and has committed the end of every partition.
pub(crate) async fn group_done(
    cluster: &Cluster,
    client: &Client<SimEnv>,
    stored: &Stored,
    members: usize,
) -> Result<(), String> {
    loop {
        SimEnv::sleep(Duration::from_millis(200)).await;
        let shard = lockstep_core::shard_of_group(GROUP, cluster.options().shards);
        let at_rest = cluster.serving(shard).into_iter().filter_map(|id| cluster.node(id)?.shard(shard)).any(|shard| {
            shard
                .read(|state| state.group(GROUP))
                .is_some_and(|group| group.state == GroupState::Stable && group.members.len() == members)
        });
        if !at_rest {
            continue;
        }
        let committed = committed(client, stored).await?;
        let done = stored.iter().all(|(partition, records)| {
            let end = records.last().map_or(0, |(offset, _)| offset + 1);
            end == 0 || committed.get(partition).is_some_and(|offset| *offset >= end)
        });
        if done {
            return Ok(());
        }
    }
}

/// Waits until every replica has come to the same position, and records what each holds there.
pub(crate) async fn replicas(cluster: &Cluster, history: &History) -> Result<(), String> {
    let shards = || (0..cluster.options().shards).map(ShardId);
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
    let at_us = cluster.trace().now_us();
    for shard in shards() {
        for (node, replica) in replicas(shard) {
            let (position, digest, sound) =
                replica.read(|state| (state.applied(), state.digest(), state.check_invariants()));
            let (term, index) = (position.term, position.index);
            let violation = sound.err().map(|violation| violation.message);
            let digest = format!("{:032x}", digest.0);
            let seen = Event::FinalReplica { node, shard: shard.0, term, index, digest, violation };
            history.add(at_us, "end", seen);
            for (topic, partition, _) in replica.read(|state| state.partitions()) {
                let name = replica.read(|state| state.directory().topics.get(&topic).map(|topic| topic.name.clone()));
                let Some(log) = replica.log(topic, partition) else {
                    return Err(format!("a log is missing: node {node}, partition {partition}"));
                };
                let partition =
                    Partition::new(name.unwrap_or_else(|| topic.to_string()), i32::try_from(partition).unwrap_or(-1));
                let (start, end) = (log.start_offset(), log.end_offset());
                let (mut offset, mut length, mut hasher) = (start, 0, DefaultHasher::new());
                while offset < end {
                    let unreadable =
                        |error: &dyn Display| format!("a log cannot be read: node {node}, {partition}: {error}");
                    let batches = log.read(offset, 1 << 20, true).await.map_err(|error| unreadable(&error))?;
                    for batch in batches.iter().flat_map(|bytes| lockstep_wire::batch::Batches::new(bytes)) {
                        offset = batch.map_err(|error| unreadable(&error))?.1.last_offset() + 1;
                    }
                    for bytes in &batches {
                        length += bytes.len() as u64;
                        hasher.write(bytes);
                    }
                }
                let hash = format!("{:016x}", hasher.finish());
                history.add(at_us, "end", Event::FinalFile { node, partition, start, end, length, hash });
            }
        }
    }
    Ok(())
}
