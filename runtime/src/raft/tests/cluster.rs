//! Nodes in one process, with as many shards as a test wants.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lockstep_core::op::{AppendMessage, CreateTopic, PartitionAppend};
use lockstep_core::{NodeId, Op, Reply, ShardId, TopicError, TopicId};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, Task};
use lockstep_wire::records::ProducerStamp;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::config::{Durability, NodeConfig};
use crate::error::ProposeError;
use crate::journal::{Journal, JournalOptions};
use crate::node::Clocks;
use crate::peer::{IncomingRequest, Lane, PeerFault, PeerHandler, PeerIdentity, PeerNetwork, PeerOptions, PeerReply};
use crate::raft::heartbeats::LOOKS_PER_INTERVAL;
use crate::raft::message;
use crate::raft::{Member, ShardContext, stopped_fault};
use crate::shard::Shard;
use crate::storage::Cache;
use crate::storage::check::SharedPace;

/// Longest wait for anything; what is waited for takes a fraction of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);

pub(super) const ELECTION_TIMEOUT_MAX: Duration = Duration::from_millis(600);
pub(super) const TOPIC: TopicId = TopicId([7; 16]);
/// Who appends what an election must not make it append twice.
const PRODUCER: i64 = 1;
const NO_PRODUCER: ProducerStamp = ProducerStamp { producer_id: -1, producer_epoch: -1, base_sequence: -1 };

/// Waits until `condition` holds.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = TokioEnv::now() + PATIENCE;
    while !condition() {
        assert!(TokioEnv::now() < deadline, "waited in vain for: {what}");
        TokioEnv::sleep(LOOK_AGAIN_AFTER).await;
    }
}

type Shards = Arc<Mutex<BTreeMap<ShardId, Shard<TokioEnv>>>>;

/// How a node answers entries: one request after another, so slowly, or not at all. A heartbeat waits for those that came before it.
#[derive(Default)]
struct Slowness {
    millis: AtomicU64,
    refuses_next: AtomicBool,
    turn: tokio::sync::Mutex<()>,
}

impl Slowness {
    async fn wait(&self, lane: Lane) {
        let millis = self.millis.load(Ordering::SeqCst);
        if millis > 0 {
            let _turn = self.turn.lock().await;
            if lane == Lane::Bulk {
                TokioEnv::sleep(Duration::from_millis(millis)).await;
            }
        }
    }
}

struct Dispatch {
    shards: Shards,
    slowness: Arc<Slowness>,
}

impl PeerHandler for Dispatch {
    fn handle(&self, from: PeerIdentity, request: IncomingRequest) -> BoxFuture<'static, Result<PeerReply, PeerFault>> {
        let lane = request.lane;
        let slowness = (request.kind == message::APPEND).then(|| self.slowness.clone());
        let shard = ShardId(request.shard);
        let answering = match self.shards.lock().unwrap().get(&shard) {
            Some(hosted) => hosted.handle_raft(from, request),
            None => Box::pin(std::future::ready(Err(stopped_fault(shard)))),
        };
        Box::pin(async move {
            let answer = answering.await;
            if let Some(slowness) = slowness {
                slowness.wait(lane).await;
                if lane == Lane::Bulk && slowness.refuses_next.swap(false, Ordering::SeqCst) {
                    return Err(stopped_fault(shard));
                }
            }
            answer
        })
    }

    fn gossip(&self) -> Bytes {
        Bytes::new()
    }

    fn on_gossip(&self, _: PeerIdentity, _: Bytes) {}
}

pub(super) struct TestNode {
    pub(super) id: NodeId,
    shards: Shards,
    peers: PeerNetwork<TokioEnv>,
    pub(super) journal: Journal<TokioEnv>,
    slowness: Arc<Slowness>,
    beat: <TokioEnv as Env>::Task<()>,
}

impl TestNode {
    pub(super) fn shard(&self, id: u16) -> Shard<TokioEnv> {
        self.shards.lock().unwrap()[&ShardId(id)].clone()
    }

    /// From now on each request with entries waits for the one before it and takes so long to be answered, and heartbeats with them.
    pub(super) fn answer_slowly(&self, pause: Duration) {
        self.slowness.millis.store(pause.as_millis() as u64, Ordering::SeqCst);
    }

    /// The answer to one request with entries gets lost.
    pub(super) async fn lose_an_answer(&self) {
        self.slowness.refuses_next.store(true, Ordering::SeqCst);
        eventually("an answer is lost", || !self.slowness.refuses_next.load(Ordering::SeqCst)).await;
    }

    async fn stop(self) {
        self.beat.abort();
        let shards = std::mem::take(&mut *self.shards.lock().unwrap());
        for shard in shards.values() {
            shard.stop().await;
        }
        drop(shards);
        self.journal.close().await;
        self.peers.shutdown().await;
    }
}

/// Some nodes, and their disks.
pub(super) struct Cluster {
    dir: TempDir,
    shard_count: u16,
    size: u64,
    /// What is different in the nodes' configuration.
    change: fn(&mut NodeConfig),
    checkpoint_journal_bytes: u64,
    nodes: BTreeMap<NodeId, TestNode>,
    addresses: BTreeMap<NodeId, String>,
    /// The sequence that the next record of [`PRODUCER`] has.
    next_sequence: AtomicI32,
}

impl Cluster {
    /// Starts `size` nodes, all of them voters of every shard.
    pub(super) async fn start(size: u64, shard_count: u16) -> Self {
        Self::start_with(size, shard_count, 64 << 20).await
    }

    /// The same, with a checkpoint after so many bytes of a shard's journal.
    pub(super) async fn start_with(size: u64, shard_count: u16, checkpoint_journal_bytes: u64) -> Self {
        Self::start_changed(size, shard_count, checkpoint_journal_bytes, |_| {}).await
    }

    /// The same, with another configuration.
    pub(super) async fn start_changed(
        size: u64,
        shard_count: u16,
        checkpoint_journal_bytes: u64,
        change: fn(&mut NodeConfig),
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let mut cluster = Self {
            dir,
            shard_count,
            size,
            change,
            checkpoint_journal_bytes,
            nodes: BTreeMap::new(),
            addresses: BTreeMap::new(),
            next_sequence: AtomicI32::new(0),
        };
        for id in 1..=size {
            cluster.start_node(id).await;
        }
        cluster
    }

    /// How many nodes there are.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Where a node's disk is.
    pub(super) fn directory(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub(super) fn config(&self, id: NodeId) -> NodeConfig {
        let base = self.directory(id);
        let peers = (1..=self.size).map(|peer| (peer, String::new())).collect();
        let mut config = NodeConfig {
            cache_bytes: 8 << 20,
            // The disk of the machine that tests is not what is tested.
            disk_reserve_bytes: 0,
            shards: self.shard_count,
            checkpoint_journal_bytes: self.checkpoint_journal_bytes,
            journal_file_bytes: 1 << 20,
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: ELECTION_TIMEOUT_MAX,
            offsets_retention_check_interval: Duration::from_millis(50),
            ..NodeConfig::new(id, peers, base.join("raft"), base.join("data"))
        };
        (self.change)(&mut config);
        config
    }

    pub(super) async fn start_node(&mut self, id: NodeId) {
        let config = Arc::new(self.config(id));
        let env = TokioEnv::new();
        let options = JournalOptions {
            file_bytes: config.journal_file_bytes,
            cache_bytes_per_shard: 1 << 20,
            durability: Durability::Fsync,
        };
        let journal = Journal::open(env.clone(), &config.raft_dir.join("journal"), options).await.unwrap();
        let shards = Shards::default();
        let slowness = Arc::<Slowness>::default();
        let dispatch = Dispatch { shards: shards.clone(), slowness: slowness.clone() };
        let nowhere = (1..=self.size).map(|peer| (peer, "127.0.0.1:1".to_owned())).collect();
        let options = PeerOptions::new(id, incarnation(id), [1; 16], "127.0.0.1:0".to_owned(), nowhere);
        let peers = PeerNetwork::start(env.clone(), options, Arc::new(dispatch)).await.unwrap();
        self.addresses.insert(id, peers.local_address().to_owned());
        for node in self.nodes.values() {
            node.peers.redirect(id, self.addresses[&id].clone());
        }
        for (other, address) in &self.addresses {
            peers.redirect(*other, address.clone());
        }
        let founder = |id| (id, Member { address: String::new(), incarnation: incarnation(id) });
        let founders: BTreeMap<NodeId, Member> = (1..=self.size).map(founder).collect();
        let cache = Cache::new(config.cache_bytes);
        let checkpoints = Arc::new(Semaphore::new(1));
        let scrubs = Arc::new(Semaphore::new(1));
        let compactions = Arc::new(Semaphore::new(1));
        let fetches = SharedPace::new::<TokioEnv>(config.fetch_bytes_per_second);
        for shard in (0..self.shard_count).map(ShardId) {
            let context = ShardContext {
                env: env.clone(),
                id: shard,
                shard_count: self.shard_count,
                config: config.clone(),
                journal: journal.clone(),
                peers: peers.clone(),
                cache: cache.clone(),
                founding_voters: Some(founders.clone()),
                checkpoints: checkpoints.clone(),
                scrubs: scrubs.clone(),
                compactions: compactions.clone(),
                fetches: fetches.clone(),
                clocks: Clocks::new(1),
                doubts: Arc::default(),
                newest_directory: Arc::default(),
            };
            let started = Shard::start(context).await.unwrap();
            shards.lock().unwrap().insert(shard, started);
        }
        let (beating, interval) = (shards.clone(), config.heartbeat_interval);
        let beat = TokioEnv::spawn(async move {
            loop {
                let shards: Vec<_> = beating.lock().unwrap().values().cloned().collect();
                if shards.iter().any(Shard::owes_heartbeat) {
                    shards.iter().for_each(Shard::beat);
                }
                TokioEnv::sleep(interval / LOOKS_PER_INTERVAL).await;
            }
        });
        self.nodes.insert(id, TestNode { id, shards, peers, journal, slowness, beat });
    }

    pub(super) async fn stop_node(&mut self, id: NodeId) {
        self.nodes.remove(&id).unwrap().stop().await;
    }

    pub(super) async fn stop(mut self) {
        for (_, node) in std::mem::take(&mut self.nodes) {
            node.stop().await;
        }
    }

    pub(super) fn node(&self, id: NodeId) -> &TestNode {
        &self.nodes[&id]
    }

    /// The node that serves a shard now.
    pub(super) fn leading(&self, shard: u16) -> Option<NodeId> {
        self.nodes.values().find(|node| node.shard(shard).serving().is_ok()).map(|node| node.id)
    }

    /// The node that serves a shard, once there is one.
    pub(super) async fn leader(&self, shard: u16) -> NodeId {
        let mut leading = None;
        eventually("a leader", || {
            leading = self.leading(shard);
            leading.is_some()
        })
        .await;
        leading.unwrap_or_default()
    }

    /// What is seen while one node leads in one term: looks again when an election came between. Gives the leader, too.
    pub(super) async fn under_one_leader<T>(&self, shard: u16, mut look: impl AsyncFnMut(NodeId) -> T) -> (NodeId, T) {
        let deadline: Instant = TokioEnv::now() + PATIENCE;
        loop {
            assert!(TokioEnv::now() < deadline, "no leader stayed for it");
            let leader = self.leader(shard).await;
            let term = self.node(leader).shard(shard).serving();
            let seen = look(leader).await;
            let is_settled = |node: &TestNode| Ok(node.shard(shard).raft_status().term) == term;
            if self.node(leader).shard(shard).serving() == term && self.nodes.values().all(is_settled) {
                return (leader, seen);
            }
        }
    }

    /// Does something on whoever leads, and again on whoever leads then if an election came between: it must do no harm when it is done twice.
    pub(super) async fn on_leader<T>(
        &self,
        shard: u16,
        mut act: impl AsyncFnMut(Shard<TokioEnv>) -> Result<T, ProposeError>,
    ) -> T {
        let deadline: Instant = TokioEnv::now() + PATIENCE;
        loop {
            assert!(TokioEnv::now() < deadline, "no leader stayed for it");
            let leader = self.leader(shard).await;
            match act(self.node(leader).shard(shard)).await {
                Ok(done) => return done,
                Err(ProposeError::NotLeader { .. } | ProposeError::Loading(_) | ProposeError::Unknown(_)) => {}
                Err(error) => panic!("{error}"),
            }
            TokioEnv::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// Proposes on whoever leads. An entry that an election may have discarded is proposed again: the op must do no harm when it is applied twice.
    pub(super) async fn propose(&self, shard: u16, op: Op, payload: Bytes) -> Reply {
        self.on_leader(shard, async |shard| shard.propose(op.clone(), payload.clone()).await).await
    }

    /// Makes [`TOPIC`] with one partition for each shard; only for clusters of one shard, where no metadata must be fed.
    pub(super) async fn create_topic(&self) {
        self.create_topic_with(&[]).await;
    }

    /// The same, with settings.
    pub(super) async fn create_topic_with(&self, configs: &[(&str, &str)]) {
        assert_eq!(self.shard_count, 1);
        let configs = configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let topic = CreateTopic { topic_id: TOPIC, name: "orders".to_owned(), partitions: 1, configs };
        match self.propose(0, Op::CreateTopic(topic), Bytes::new()).await {
            // The second when it was proposed twice: nobody else makes this topic.
            Reply::Topic(Ok(_) | Err(TopicError::AlreadyExists)) => {}
            reply => panic!("{reply:?}"),
        }
    }

    /// Appends one batch and gives its offset.
    pub(super) async fn append(&self, fill: u8, len: usize) -> i64 {
        self.append_batch(1, 1_000, |producer| batch(fill, len, producer)).await
    }

    /// Appends one batch of so many records, and gives the offset of the first. It is stored once, whatever leaders do meanwhile; one must be answered before the next.
    pub(super) async fn append_batch(
        &self,
        count: u32,
        max_timestamp_ms: i64,
        batch: impl FnOnce(ProducerStamp) -> Bytes,
    ) -> i64 {
        let base_sequence = self.next_sequence.fetch_add(count as i32, Ordering::Relaxed);
        let producer = ProducerStamp { producer_id: PRODUCER, producer_epoch: 0, base_sequence };
        let payload = batch(producer);
        let op = append_message(&payload, count, max_timestamp_ms, producer, self.config(1).segment_bytes);
        match self.propose(0, op, payload).await {
            Reply::Append(outcomes) => outcomes[0].as_ref().unwrap().base_offset,
            reply => panic!("{reply:?}"),
        }
    }

    /// All nodes that run have applied what the leader has.
    pub(super) async fn level(&self, shard: u16) -> u64 {
        let target = self.node(self.leader(shard).await).shard(shard).applied().index;
        eventually("all replicas level", || {
            self.nodes.values().all(|node| node.shard(shard).applied().index >= target)
        })
        .await;
        target
    }

    /// The leader has this node as a learner, which holds all of its log.
    pub(super) fn is_level_learner(&self, shard: u16, node: NodeId) -> bool {
        self.leading(shard).is_some_and(|leader| {
            let status = self.node(leader).shard(shard).raft_status();
            status.learners.contains_key(&node) && status.matched.get(&node).copied().flatten() == Some(status.last_log)
        })
    }

    /// Equal digests at the last index that all nodes remember.
    pub(super) async fn assert_equal(&self, shard: u16) {
        self.level(shard).await;
        let digests: Vec<BTreeMap<u64, u128>> =
            self.nodes.values().map(|node| node.shard(shard).digests().into_iter().collect()).collect();
        let common = digests[0].keys().rev().find(|at| digests.iter().all(|digests| digests.contains_key(at)));
        let common = *common.expect("replicas remember no common index");
        assert!(digests.iter().all(|of_node| of_node[&common] == digests[0][&common]), "digests differ at {common}");
    }

    /// These nodes have the same batches, so many, byte by byte.
    pub(super) async fn assert_same_records(&self, nodes: &[NodeId], count: usize) {
        let expected = self.records(nodes[0]).await;
        for node in nodes {
            let records = self.records(*node).await;
            assert_eq!(records.len(), count, "batches on node {node}");
            let differs = records.iter().zip(&expected).position(|(here, there)| here != there);
            assert_eq!(differs, None, "a batch of node {node} differs from that of node {}", nodes[0]);
        }
    }

    /// The records of [`TOPIC`] on one node.
    pub(super) async fn records(&self, node: NodeId) -> Vec<Bytes> {
        let log = self.node(node).shard(0).log(TOPIC, 0).expect("the partition is hosted");
        let mut batches = Vec::new();
        let mut offset = log.start_offset();
        while offset < log.end_offset() {
            let read = log.read(offset, 1 << 20, true).await.unwrap();
            assert!(!read.is_empty(), "nothing at {offset}");
            for mut bytes in read {
                while !bytes.is_empty() {
                    let len = i32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
                    batches.push(bytes.split_to(len + 12));
                    offset += 1;
                }
            }
        }
        batches
    }
}

pub(super) fn incarnation(id: NodeId) -> [u8; 16] {
    [id as u8; 16]
}

/// An op that appends one batch of one record of `len` bytes of `fill` to partition 0 of [`TOPIC`], again whenever it is proposed again.
pub(super) fn append_op(fill: u8, len: usize) -> (Op, Bytes) {
    let payload = batch(fill, len, NO_PRODUCER);
    (append_message(&payload, 1, 1_000, NO_PRODUCER, 256 << 20), payload)
}

fn append_message(
    payload: &Bytes,
    count: u32,
    max_timestamp_ms: i64,
    producer: ProducerStamp,
    segment_bytes: u64,
) -> Op {
    let append = PartitionAppend {
        topic_id: TOPIC,
        partition: 0,
        payload_start: 0,
        payload_len: payload.len() as u32,
        offset_count: count,
        producer_id: producer.producer_id,
        producer_epoch: producer.producer_epoch,
        base_sequence: producer.base_sequence,
        max_timestamp_ms,
    };
    Op::AppendMessage(AppendMessage { now_ms: 1_000, segment_bytes, appends: vec![append] })
}

/// A record batch in Kafka's format, version 2, whose records nobody decodes.
fn batch(fill: u8, len: usize, producer: ProducerStamp) -> Bytes {
    let mut after_crc = Vec::new();
    after_crc.extend_from_slice(&0_i16.to_be_bytes());
    after_crc.extend_from_slice(&0_i32.to_be_bytes());
    after_crc.extend_from_slice(&1_000_i64.to_be_bytes());
    after_crc.extend_from_slice(&1_000_i64.to_be_bytes());
    after_crc.extend_from_slice(&producer.producer_id.to_be_bytes());
    after_crc.extend_from_slice(&producer.producer_epoch.to_be_bytes());
    after_crc.extend_from_slice(&producer.base_sequence.to_be_bytes());
    after_crc.extend_from_slice(&1_i32.to_be_bytes());
    after_crc.resize(after_crc.len() + len, fill);
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&0_i64.to_be_bytes());
    bytes.extend_from_slice(&(after_crc.len() as i32 + 9).to_be_bytes());
    bytes.extend_from_slice(&(-1_i32).to_be_bytes());
    bytes.push(2);
    bytes.extend_from_slice(&crc32c::crc32c(&after_crc).to_be_bytes());
    bytes.extend_from_slice(&after_crc);
    Bytes::from(bytes)
}

/// What a stored batch holds of `fill`.
pub(super) fn fill_of(batch: &Bytes) -> u8 {
    batch[batch.len() - 1]
}
