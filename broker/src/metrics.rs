//! What the broker measures, in Prometheus' text format.
//!
//! Counters and histograms are recorded without locks as requests pass; everything else is read from the node when somebody
//! asks. Names begin with `lockstep_`; groups are counted by the broker that coordinates them, so that sums over brokers hold.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_core::view::{GroupState, GroupType};
use lockstep_env::Env;
use lockstep_runtime::{Histogram, HistogramSnapshot, ScrubCounts, Shard};
use lockstep_wire::ApiKey;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::api::group_admin::{state_name, type_name};
use crate::broker::Broker;

/// The roles a node may have in a shard's Raft group.
const ROLES: [&str; 5] = ["leader", "follower", "candidate", "learner", "stopped"];
/// Every state that a group of each type may be in, so that a state nobody is in is told as 0.
const GROUP_STATES: [(GroupType, GroupState); 8] = [
    (GroupType::Classic, GroupState::Empty),
    (GroupType::Classic, GroupState::PreparingRebalance),
    (GroupType::Classic, GroupState::CompletingRebalance),
    (GroupType::Classic, GroupState::Stable),
    (GroupType::Consumer, GroupState::Empty),
    (GroupType::Consumer, GroupState::Assigning),
    (GroupType::Consumer, GroupState::Reconciling),
    (GroupType::Consumer, GroupState::Stable),
];
/// Of the histograms' buckets every so many-th is told: four to a factor of ten.
const BUCKET_STEP: usize = 2;

/// What is recorded as requests pass.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// In the order of [`ApiKey::ALL`].
    requests: Vec<Histogram>,
    pub(crate) received_bytes: Count,
    pub(crate) sent_bytes: Count,
    pub(crate) accepted_connections: Count,
    pub(crate) refused_connections: Count,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: ApiKey::ALL.iter().map(|_| Histogram::new()).collect(),
            received_bytes: Count::default(),
            sent_bytes: Count::default(),
            accepted_connections: Count::default(),
            refused_connections: Count::default(),
        }
    }

    /// A request was answered so long after its last byte had arrived.
    pub(crate) fn answered(&self, api_key: ApiKey, took: Duration) {
        if let Some(histogram) =
            ApiKey::ALL.iter().position(|key| *key == api_key).and_then(|index| self.requests.get(index))
        {
            histogram.record(took);
        }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All that is told of one broker. It keeps the broker alive: to be dropped when the broker stops.
pub(crate) fn registry<E: Env>(broker: Broker<E>) -> Registry {
    let mut registry = Registry::with_prefix("lockstep");
    registry.register_collector(Box::new(BrokerCollector { broker }));
    registry
}

struct BrokerCollector<E: Env> {
    broker: Broker<E>,
}

impl<E: Env> fmt::Debug for BrokerCollector<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerCollector").field("broker", &self.broker).finish()
    }
}

impl<E: Env> Collector for BrokerCollector<E> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let broker = &self.broker;
        let shards = broker.node().shards();
        encode_shards(&mut encoder, &shards)?;
        encode_groups(&mut encoder, &shards)?;
        encode_node(&mut encoder, broker)?;
        encode_traffic(&mut encoder, broker)
    }
}

/// One label's name and value.
type Label = (&'static str, String);

fn encode_gauges(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Vec<Label>, i64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn encode_gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: i64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

fn encode_counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, count: u64) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    metric.encode_counter::<NoLabelSet, u64, f64>(&count, None)
}

fn encode_histogram(metric: &mut MetricEncoder<'_>, snapshot: &HistogramSnapshot) -> fmt::Result {
    let buckets = thinned(snapshot);
    metric.encode_histogram::<NoLabelSet>(snapshot.sum_seconds, snapshot.count, &buckets, None)
}

/// Upper bound and how many values lie between it and the bound before it. The encoder writes `f64::MAX` as infinity.
fn thinned(snapshot: &HistogramSnapshot) -> Vec<(f64, u64)> {
    let last = snapshot.buckets.len().saturating_sub(1);
    let mut below = 0;
    let kept = snapshot.buckets.iter().enumerate().filter(|(index, _)| index % BUCKET_STEP == 0 || *index == last);
    kept.map(|(_, (bound, cumulative))| {
        let within = cumulative.saturating_sub(below);
        below = *cumulative;
        (if bound.is_finite() { *bound } else { f64::MAX }, within)
    })
    .collect()
}

fn to_i64(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn encode_shards<E: Env>(encoder: &mut DescriptorEncoder, shards: &[Shard<E>]) -> fmt::Result {
    let label = |shard: &Shard<E>| ("shard", shard.id().to_string());
    let standings: Vec<(&Shard<E>, &'static str, u64)> = shards
        .iter()
        .map(|shard| {
            let (role, term) = shard.role();
            (shard, role, term)
        })
        .collect();
    encode_gauges(
        encoder,
        "raft_role",
        "This node's role in the Raft group of each shard: 1 for the one that it has",
        standings.iter().flat_map(|(shard, role, _)| {
            ROLES.map(|name| (vec![label(shard), ("role", name.to_owned())], i64::from(name == *role)))
        }),
    )?;
    encode_gauges(
        encoder,
        "raft_term",
        "Highest Raft term seen, by shard",
        standings.iter().map(|(shard, _, term)| (vec![label(shard)], to_i64(*term))),
    )?;
    encode_gauges(
        encoder,
        "raft_leader_id",
        "Node that leads the shard as far as this node knows, -1 when there is none",
        shards.iter().map(|shard| (vec![label(shard)], shard.leader().map_or(-1, |(leader, _)| to_i64(leader)))),
    )?;
    encode_gauges(
        encoder,
        "raft_serving",
        "1 where this node may answer as leader: it leads and its lease holds",
        shards.iter().map(|shard| (vec![label(shard)], i64::from(shard.serving().is_ok()))),
    )?;
    encode_gauges(
        encoder,
        "applied_index",
        "Raft index of the last entry applied on this node, by shard",
        shards.iter().map(|shard| (vec![label(shard)], to_i64(shard.applied().index))),
    )
}

/// Groups and members of the shards that this broker leads.
fn encode_groups<E: Env>(encoder: &mut DescriptorEncoder, shards: &[Shard<E>]) -> fmt::Result {
    let mut groups: BTreeMap<(GroupType, GroupState), i64> = GROUP_STATES.map(|key| (key, 0)).into();
    let mut members: BTreeMap<GroupType, i64> = [(GroupType::Classic, 0), (GroupType::Consumer, 0)].into();
    for shard in shards.iter().filter(|shard| shard.serving().is_ok()) {
        for group in shard.read(|state| state.groups()) {
            *groups.entry((group.group_type, group.state)).or_insert(0) += 1;
            *members.entry(group.group_type).or_insert(0) += to_i64(group.members);
        }
    }
    let type_label = |group_type| ("type", type_name(group_type).to_owned());
    encode_gauges(
        encoder,
        "groups",
        "Consumer groups that this broker coordinates, by type and state",
        groups.into_iter().map(|((group_type, state), count)| {
            (vec![type_label(group_type), ("state", state_name(state).to_owned())], count)
        }),
    )?;
    encode_gauges(
        encoder,
        "group_members",
        "Members of the consumer groups that this broker coordinates, by the groups' type",
        members.into_iter().map(|(group_type, count)| (vec![type_label(group_type)], count)),
    )
}

fn encode_node<E: Env>(encoder: &mut DescriptorEncoder, broker: &Broker<E>) -> fmt::Result {
    encode_gauges(
        encoder,
        "node_alive",
        "1 for each node of the cluster that this node has heard from lately, itself included",
        broker
            .config()
            .node
            .peers
            .keys()
            .map(|node| (vec![("node", node.to_string())], i64::from(broker.node().alive(*node)))),
    )?;
    let (topics, partitions) = broker.node().directory(|directory| {
        let partitions: usize = directory.topics.values().map(|topic| topic.partitions.len()).sum();
        (directory.topics.len(), partitions)
    });
    encode_gauge(encoder, "topics", "Topics of the cluster", to_i64(topics))?;
    encode_gauge(encoder, "partitions", "Partitions of all topics of the cluster", to_i64(partitions))?;
    if let Some(free_bytes) = broker.node().disk_free_bytes() {
        let free_bytes = i64::try_from(free_bytes).unwrap_or(i64::MAX);
        encode_gauge(encoder, "disk_free_bytes", "Bytes free on the fuller one of the node's disks", free_bytes)?;
    }
    let is_short = i64::from(broker.node().is_short_of_space());
    encode_gauge(encoder, "disk_short", "1 while so little is free that the node takes no records", is_short)?;
    encode_scrub(encoder, broker.node().scrub_counts())?;
    let compacted = broker.node().compaction_counts();
    encode_counter(encoder, "logs_compacted", "Times that this node compacted a log", compacted.logs)?;
    let help = "Bytes that logs have become shorter by when this node compacted them";
    encode_counter(encoder, "compaction_removed_bytes", help, compacted.bytes_removed)?;
    let mut syncs = encoder.encode_descriptor(
        "journal_sync_duration_seconds",
        "How long each fsync of the journal took",
        None,
        MetricType::Histogram,
    )?;
    encode_histogram(&mut syncs, &broker.node().journal_sync_histogram().snapshot())
}

/// What comparing segments with their checksums came to.
fn encode_scrub(encoder: &mut DescriptorEncoder, counts: ScrubCounts) -> fmt::Result {
    let rows = [
        ("segments_scrubbed", "Segments that were compared with their checksums", counts.segments),
        (
            "segment_bytes_scrubbed",
            "Bytes of segments that were read to compare them with their checksums",
            counts.bytes,
        ),
        ("segments_found_damaged", "Segments that did not hold what was stored", counts.damaged),
        ("segments_repaired", "Damaged segments that were replaced by another node's copy", counts.repaired),
    ];
    rows.into_iter().try_for_each(|(name, help, count)| encode_counter(encoder, name, help, count))
}

fn encode_traffic<E: Env>(encoder: &mut DescriptorEncoder, broker: &Broker<E>) -> fmt::Result {
    let metrics = broker.metrics();
    encode_gauge(encoder, "connections", "Connections of clients open now", to_i64(broker.connections()))?;
    encode_counter(
        encoder,
        "connections_accepted",
        "Connections of clients that were served",
        metrics.accepted_connections.get(),
    )?;
    encode_counter(
        encoder,
        "connections_refused",
        "Connections of clients that were closed at once because there were too many, or because this node knew no topics yet",
        metrics.refused_connections.get(),
    )?;
    encode_counter(encoder, "received_bytes", "Bytes of requests", metrics.received_bytes.get())?;
    encode_counter(encoder, "sent_bytes", "Bytes of responses", metrics.sent_bytes.get())?;
    let mut requests = encoder.encode_descriptor(
        "request_duration_seconds",
        "From the last byte of a request to the last byte of its response, by request; waits that the client asked for included",
        None,
        MetricType::Histogram,
    )?;
    for (api_key, histogram) in ApiKey::ALL.iter().zip(&metrics.requests) {
        let snapshot = histogram.snapshot();
        if snapshot.count > 0 {
            let labels = [("api", api_key.name())];
            encode_histogram(&mut requests.encode_family(&labels)?, &snapshot)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinned_buckets_lose_no_value() {
        let histogram = Histogram::new();
        for micros in [1, 2, 50, 1_000, 70_000] {
            histogram.record(Duration::from_micros(micros));
        }
        histogram.record(Duration::from_secs(1_000));
        let snapshot = histogram.snapshot();
        let buckets = thinned(&snapshot);
        assert!(buckets.len() <= snapshot.buckets.len() / BUCKET_STEP + 2);
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 6);
        assert_eq!(buckets.last(), Some(&(f64::MAX, 1)));
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn requests_are_counted_by_their_kind() {
        let metrics = Metrics::new();
        metrics.answered(ApiKey::OffsetCommit, Duration::from_millis(3));
        let index = ApiKey::ALL.iter().position(|key| *key == ApiKey::OffsetCommit).expect("served");
        assert_eq!(metrics.requests[index].snapshot().count, 1);
        assert_eq!(metrics.requests.iter().map(|histogram| histogram.snapshot().count).sum::<u64>(), 1);
    }
}
