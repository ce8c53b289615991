//! Three nodes in one process: they find each other, replicate, lose and regain members.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use lockstep_core::op::{CreateTopic, UnregisterBroker};
use lockstep_core::{NodeId, Op, Reply, ShardId, TopicError, TopicId};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_runtime::{ClusterStatus, Node, NodeConfig, ProposeError, StartError, start_node};
use ports::free_port;

const PATIENCE: Duration = Duration::from_secs(60);

async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = TokioEnv::now() + PATIENCE;
    while !condition().await {
        assert!(TokioEnv::now() < deadline, "in {PATIENCE:?} it never came true that {what}");
        TokioEnv::sleep(Duration::from_millis(10)).await;
    }
}

struct Nodes {
    directory: tempfile::TempDir,
    peers: BTreeMap<NodeId, String>,
    running: BTreeMap<NodeId, Node<TokioEnv>>,
}

impl Nodes {
    async fn start(count: u64) -> Self {
        let peers = (1..=count).map(|id| (id, format!("127.0.0.1:{}", free_port()))).collect();
        let mut nodes = Self { directory: tempfile::tempdir().unwrap(), peers, running: BTreeMap::new() };
        for id in 1..=count {
            nodes.boot(id).await;
        }
        nodes
    }

    fn path(&self, id: NodeId) -> std::path::PathBuf {
        self.directory.path().join(format!("node{id}"))
    }

    fn config(&self, id: NodeId, directory: &Path) -> NodeConfig {
        let mut config = NodeConfig::new(id, self.peers.clone(), directory.join("raft"), directory.join("data"));
        config.journal_file_bytes = 1 << 20;
        config.shards = 4;
        if cfg!(debug_assertions) {
            // Builds without optimisation, all in one process, are not as quick as what they test is meant to be.
            config.heartbeat_interval = Duration::from_millis(75);
            config.election_timeout_min = Duration::from_millis(250);
            config.election_timeout_max = Duration::from_millis(400);
        }
        config
    }

    async fn boot(&mut self, id: NodeId) {
        let node = start_node(self.config(id, &self.path(id))).await.unwrap();
        self.running.insert(id, node);
    }

    async fn stop(&mut self, id: NodeId) {
        self.running.remove(&id).unwrap().shutdown().await;
    }

    fn any(&self) -> &Node<TokioEnv> {
        self.running.values().next().unwrap()
    }

    async fn status(&self) -> ClusterStatus {
        self.any().cluster_status(Duration::from_secs(2)).await
    }

    async fn until_led(&self) {
        until("every shard has a leader", || async {
            (0..4)
                .map(ShardId)
                .all(|id| self.running.values().any(|node| node.shard(id).is_some_and(|s| s.serving().is_ok())))
        })
        .await;
    }

    async fn until_equal(&self) {
        until("all replicas have the same digest at their last index", || async {
            let status = self.status().await;
            status.shards.len() == 4
                && status.shards.iter().all(|shard| {
                    let applied: std::collections::BTreeSet<_> = shard.applied.values().collect();
                    let digests: std::collections::BTreeSet<_> = shard.digest.values().map(|at| &at.hex).collect();
                    applied.len() == 1 && digests.len() == 1 && shard.digest.len() == self.running.len()
                })
        })
        .await;
    }

    async fn create_topic(&self, via: NodeId, name: &str) -> TopicId {
        let topic_id = TopicId(TokioEnv::random_uuid());
        let node = &self.running[&via];
        let deadline = TokioEnv::now() + PATIENCE;
        let mut may_exist = false;
        let version = loop {
            assert!(TokioEnv::now() < deadline, "no leader of the metadata stayed for {name}");
            let op = CreateTopic { topic_id, name: name.to_owned(), partitions: 8, configs: BTreeMap::new() };
            match node.forward(ShardId::METADATA, Op::CreateTopic(op), PATIENCE).await {
                Ok(Reply::Topic(Ok(record))) => break record.version,
                // An election came while it was under way.
                Err(ProposeError::Unknown(_)) => may_exist = true,
                Ok(Reply::Topic(Err(TopicError::AlreadyExists))) if may_exist => {
                    until("the topic is known", || async { node.directory(|known| known.topic(name).is_some()) }).await;
                    break node.directory(|known| known.version);
                }
                other => panic!("{other:?}"),
            }
        };
        assert!(node.wait_metadata(version, PATIENCE).await);
        topic_id
    }
}

/// A producer id, across elections: those of a block whose allocation was lost are never given.
async fn producer_id(node: &Node<TokioEnv>) -> i64 {
    let deadline = TokioEnv::now() + PATIENCE;
    loop {
        match node.producer_id().await {
            Ok(id) => return id,
            Err(ProposeError::Unknown(_)) if TokioEnv::now() < deadline => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_start_a_cluster_and_every_shard_learns_of_topics_and_brokers() {
    let nodes = Nodes::start(3).await;
    nodes.until_led().await;
    let topic = nodes.create_topic(2, "orders").await;
    // What wait_metadata promises: whoever leads a hosting shard has the partition.
    for shard in (0..4).map(ShardId) {
        let serving = || nodes.running.values().find_map(|node| node.shard(shard).filter(|s| s.serving().is_ok()));
        let mut leader = None;
        until("the shard has a leader", || {
            leader = serving();
            std::future::ready(leader.is_some())
        })
        .await;
        let leader = leader.unwrap();
        let hosted = leader.read(|state| state.partitions().iter().filter(|(id, _, _)| *id == topic).count());
        assert_eq!(hosted, 2, "{shard:?}");
    }
    until("all brokers are registered everywhere", || async {
        nodes.running.values().all(|node| node.directory(|directory| directory.brokers.len() == 3))
    })
    .await;
    nodes.until_equal().await;
    let ids: std::collections::BTreeSet<_> = nodes.running.values().map(Node::cluster_id).collect();
    assert_eq!(ids.len(), 1);
    let producer_ids = [producer_id(&nodes.running[&1]).await, producer_id(&nodes.running[&2]).await];
    assert_ne!(producer_ids[0], producer_ids[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_taken_out_registers_again() {
    let nodes = Nodes::start(1).await;
    nodes.until_led().await;
    let registered = || async { nodes.any().directory(|directory| directory.brokers.contains_key(&1)) };
    until("the broker is registered", registered).await;
    let version = nodes.any().directory(|directory| directory.version);
    let op = Op::UnregisterBroker(UnregisterBroker { node_id: 1 });
    nodes.any().forward(ShardId::METADATA, op, PATIENCE).await.unwrap();
    until("the broker is registered again", || async {
        nodes.any().directory(|directory| directory.brokers.contains_key(&1) && directory.version > version)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_catches_up_and_leadership_moves_back() {
    let mut nodes = Nodes::start(3).await;
    nodes.until_led().await;
    nodes.create_topic(1, "before").await;
    nodes.stop(2).await;
    nodes.until_led().await;
    nodes.create_topic(1, "meanwhile").await;
    nodes.boot(2).await;
    until("the node knows what happened meanwhile", || async {
        nodes.running[&2].directory(|directory| directory.topic("meanwhile").is_some())
    })
    .await;
    until("each node leads a shard again", || async {
        let leaders: std::collections::BTreeSet<_> =
            nodes.status().await.shards.iter().filter_map(|s| s.leader).collect();
        leaders.len() == 3
    })
    .await;
    nodes.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_was_emptied_learns_before_it_votes() {
    let mut nodes = Nodes::start(3).await;
    nodes.until_led().await;
    nodes.create_topic(1, "kept").await;
    nodes.stop(3).await;
    std::fs::remove_dir_all(nodes.path(3)).unwrap();
    nodes.boot(3).await;
    until("the node votes again in every shard, with its new disk, and knows the topic", || async {
        let status = nodes.status().await;
        status.shards.len() == 4
            && status.shards.iter().all(|shard| shard.voters == [1, 2, 3] && shard.learners.is_empty())
            && nodes.running[&3].directory(|directory| directory.topic("kept").is_some())
    })
    .await;
    nodes.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_empty_nodes_do_not_start_a_cluster() {
    let mut nodes = Nodes::start(3).await;
    nodes.until_led().await;
    nodes.create_topic(1, "kept").await;
    for id in 1..=3 {
        nodes.stop(id).await;
    }
    for id in [1, 2] {
        std::fs::remove_dir_all(nodes.path(id)).unwrap();
        nodes.boot(id).await;
    }
    // They have talked to each other (each has heard the other), and still there is no cluster.
    until("the two empty nodes hear each other", || async { nodes.running[&1].alive(2) && nodes.running[&2].alive(1) })
        .await;
    assert_eq!(nodes.running[&1].cluster_id(), None);
    assert_eq!(nodes.running[&2].cluster_id(), None);
}

#[tokio::test]
async fn directories_of_others_are_refused() {
    let mut nodes = Nodes::start(1).await;
    let second = start_node(nodes.config(1, &nodes.path(1))).await;
    assert!(matches!(second, Err(StartError::DirectoryInUse { .. })), "{second:?}");
    nodes.stop(1).await;
    nodes.peers.insert(2, "127.0.0.1:1".to_owned());
    let foreign = start_node(nodes.config(2, &nodes.path(1))).await;
    assert!(matches!(foreign, Err(StartError::ForeignDirectory { .. })), "{foreign:?}");
    let nobody = start_node(nodes.config(9, &nodes.path(1))).await;
    assert!(matches!(nobody, Err(StartError::Config { field: "cluster.node_id", .. })), "{nobody:?}");
}
