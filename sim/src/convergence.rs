//! After the faults: everything must come to rest within stated bounds, and what the cluster then holds is read for the checks.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use checker::{Event, History, Partition};
use lockstep_client::{
    Client, ClientError, Consumer, ErrorCode, FetchConfig, OffsetAt, OffsetReset, StartAt, TopicPartition,
};
use lockstep_core::ShardId;
use lockstep_core::view::GroupState;
use lockstep_env::{Env, timeout};

use crate::choices::Deletion;
use crate::cluster::Cluster;
use crate::env::SimEnv;
use crate::workload::text_of;
use crate::workload::{GROUP, TOPIC};

/// What is stored in the end, by partition.
pub(crate) type Stored = BTreeMap<Partition, StoredLog>;

/// What a partition holds.
pub(crate) struct StoredLog {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Offsets and values.
    pub(crate) records: Vec<(i64, String)>,
}

impl StoredLog {
    /// The offset after the last record that was read.
    fn next(&self) -> i64 {
        self.records.last().map_or(self.start, |(offset, _)| offset + 1)
    }
}

/// How a verdict begins that tells of something that did not come in time.
pub(crate) const LATE: &str = "not within";
/// Everything must come to rest within this long after the faults have stopped, each step of it.
const CONVERGE: Duration = Duration::from_secs(60);
/// What was to be deleted is so after some times the pause between two looks for it.
const RETENTION_SETTLES: Duration = Duration::from_millis(1_000);
/// Every shard must have a leader within this long after the faults have stopped.
const ELECT: Duration = Duration::from_secs(20);

/// Every broker must vote again within this long after the faults have stopped: an emptied disk is filled, and a few looks are taken at it.
const VOTE: Duration = Duration::from_secs(20);
/// A damaged segment must be whole again within this long after the faults have stopped: a round of the scrub and a few attempts.
const REPAIR: Duration = Duration::from_secs(30);

/// Waits until every shard has a leader.
pub(crate) async fn led(cluster: &Cluster) -> Result<(), String> {
    if cluster.wait_until(ELECT, Cluster::all_led).await {
        Ok(())
    } else {
        Err("not every shard has a leader".to_owned())
    }
}

/// Waits until every broker that is up votes in all its shards, with the disk that it has: whose disk was emptied is a full member again.
pub(crate) async fn voting(cluster: &Cluster) -> Result<(), String> {
    let all_vote = |cluster: &Cluster| {
        let mut up = cluster.ids().into_iter().filter(|id| cluster.node(*id).is_some());
        up.all(|id| cluster.votes_everywhere(id))
    };
    if cluster.wait_until(VOTE, all_vote).await {
        Ok(())
    } else {
        Err(format!("not every broker votes in all its shards within {VOTE:?}"))
    }
}

/// Waits until every segment that was damaged is whole again.
pub(crate) async fn whole(cluster: &Cluster) -> Result<(), String> {
    if cluster.wait_until(REPAIR, Cluster::all_whole).await {
        Ok(())
    } else {
        Err(format!("a damaged segment is not whole again within {REPAIR:?}"))
    }
}

/// Bounds a step of the convergence.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> Result<T, String> {
    timeout::<SimEnv, _>(CONVERGE, work).await.map_err(|_| format!("{LATE} {CONVERGE:?} after the faults: {what}"))
}

/// What counts as done by clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Only what is done.
    Done,
    /// Records that are stored and still to be polled too: the group reads everything in the end, unless records are deleted.
    Due,
}

/// Waits until clients have done so much.
pub(crate) async fn busy(history: &History, operations: u64, counted: Counted) {
    let count = || {
        let done = history.count(Event::is_operation);
        let stored = history.count(|event| matches!(event, Event::Acknowledged { .. }));
        let polled = history.count(|event| matches!(event, Event::Polled { .. }));
        let due = if counted == Counted::Due { stored.saturating_sub(polled) } else { 0 };
        (done + due) as u64
    };
    while count() < operations {
        SimEnv::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads every partition from its start to its end. While records are deleted it begins again.
pub(crate) async fn read_all(client: &Client<SimEnv>, deletion: Deletion) -> Result<Stored, String> {
    loop {
        let starts = offsets(client, OffsetAt::Earliest).await;
        let ends = offsets(client, OffsetAt::Latest).await;
        let stored = read_from(client, &starts, &ends, deletion).await?;
        if let Some(stored) = stored {
            if deletion == Deletion::Never {
                return Ok(stored);
            }
            // Nobody asks for deletions any more, but what was decided before may still be under way.
            SimEnv::sleep(RETENTION_SETTLES).await;
            if starts == offsets(client, OffsetAt::Earliest).await {
                return Ok(stored);
            }
        }
    }
}

/// Starts or ends of the topic's partitions.
async fn offsets(client: &Client<SimEnv>, place: OffsetAt) -> BTreeMap<TopicPartition, i64> {
    loop {
        if let Ok(info) = client.topic(TOPIC, false).await {
            let partitions = info.partitions.iter();
            let places = partitions.map(|info| (TopicPartition::new(TOPIC, info.index), place)).collect();
            if let Ok(offsets) = client.offsets(&places).await {
                return offsets;
            }
        }
        SimEnv::sleep(Duration::from_millis(100)).await;
    }
}

/// `None`: records were deleted meanwhile.
async fn read_from(
    client: &Client<SimEnv>,
    starts: &BTreeMap<TopicPartition, i64>,
    ends: &BTreeMap<TopicPartition, i64>,
    deletion: Deletion,
) -> Result<Option<Stored>, String> {
    let consumer = Consumer::new(client, FetchConfig { reset: OffsetReset::Fail, ..FetchConfig::default() });
    let text = |error: ClientError| format!("reading everything: {error}");
    let from = starts.iter().map(|(at, start)| (at.clone(), StartAt::Offset(*start))).collect();
    consumer.assign(&from).await.map_err(text)?;
    let named = |at: &TopicPartition| Partition::new(&*at.topic, at.partition);
    let mut stored = Stored::new();
    for (at, end) in ends {
        let start = starts.get(at).copied().unwrap_or(0);
        if start > *end {
            return Err(format!("{at} begins at {start}, above its end {end}"));
        }
        stored.insert(named(at), StoredLog { start, end: *end, records: Vec::new() });
    }
    while stored.values().any(|log| log.next() < log.end) {
        let messages = match consumer.poll(10_000, Duration::from_secs(1)).await {
            Err(error) if error.code() == Some(ErrorCode::OffsetOutOfRange) => return Ok(None),
            polled => polled.map_err(text)?,
        };
        for message in messages {
            let value = text_of(message.value.as_deref(), &message.headers);
            let partition = Partition::new(&*message.topic, message.partition);
            let Some(log) = stored.get_mut(&partition) else { continue };
            let is_due =
                if deletion.is_compaction() { message.offset >= log.next() } else { message.offset == log.next() };
            if !is_due {
                return Err(format!("a gap: in {partition} before offset {}", message.offset));
            }
            log.records.push((message.offset, value));
            log.end = log.end.max(message.offset + 1);
        }
    }
    Ok(Some(stored))
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
        // Of a partition without records there is nothing to commit.
        let done = stored.iter().all(|(partition, log)| {
            log.start == log.end || committed.get(partition).is_some_and(|offset| *offset >= log.end)
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
            for (topic, partition, view) in replica.read(|state| state.partitions()) {
                let name = replica.read(|state| state.directory().topics.get(&topic).map(|topic| topic.name.clone()));
                let Some(log) = replica.log(topic, partition) else {
                    return Err(format!("a log is missing: node {node}, partition {partition}"));
                };
                let partition =
                    Partition::new(name.unwrap_or_else(|| topic.to_string()), i32::try_from(partition).unwrap_or(-1));
                let (start, end) = (log.start_offset(), log.end_offset());
                if (start, end) != (view.log_start_offset, view.next_offset) {
                    let known = (view.log_start_offset, view.next_offset);
                    return Err(format!(
                        "a log is not what the state says: node {node}, {partition}: {start}..{end}, not {known:?}"
                    ));
                }
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
