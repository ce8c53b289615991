//! Three brokers: who coordinates a group, and what becomes of it when its coordinator goes.

use std::collections::BTreeMap;

use crate::groups::{commit, committed, error, group_id, listed};
use crate::groups_classic::{heartbeat, join, sync};
use crate::http::get;
use crate::support::{PATIENCE, TestBroker, TestClient, metadata};
use lockstep_broker::{Broker, BrokerConfig};
use lockstep_core::shard_of_group;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_runtime::NodeConfig;
use lockstep_wire::codec::offset_fetch_request::OffsetFetchRequestGroup;
use lockstep_wire::codec::{
    ApiVersionsRequest, ConsumerGroupHeartbeatRequest, DeleteGroupsRequest, FindCoordinatorRequest, JoinGroupRequest,
    ListGroupsRequest, OffsetDeleteRequest, OffsetFetchRequest, StrBytes,
};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Cluster {
    pub(crate) brokers: BTreeMap<u64, Broker<TokioEnv>>,
    configs: BTreeMap<u64, BrokerConfig>,
    directory: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl Fn(&mut BrokerConfig)) -> Self {
        let cluster = Self::start_early(change).await;
        for broker in cluster.brokers.values() {
            cluster.until_ready(broker).await;
        }
        cluster
    }

    /// Starts brokers that may not know of one another yet.
    async fn start_early(change: impl Fn(&mut BrokerConfig)) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut peers = BTreeMap::new();
        let mut held = Vec::new();
        for id in 1..=3 {
            // Held until all are known, so that no two are the same.
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            peers.insert(id, listener.local_addr().expect("an address").to_string());
            held.push(listener);
        }
        drop(held);
        let mut cluster = Self { brokers: BTreeMap::new(), configs: BTreeMap::new(), directory };
        for id in 1..=3 {
            let own = cluster.disk(id);
            let mut node = NodeConfig::new(id, peers.clone(), own.join("raft"), own.join("partitions"));
            node.shards = 2;
            node.journal_file_bytes = 4 << 20;
            let mut config = BrokerConfig::new(node);
            config.port = 0;
            config.http_port = Some(0);
            config.groups.initial_rebalance_delay_ms = 0;
            change(&mut config);
            cluster.configs.insert(id, config);
            cluster.boot(id, |_| ()).await;
        }
        cluster
    }

    /// Starts a broker that does not run.
    pub(crate) async fn boot(&mut self, id: u64, change: impl FnOnce(&mut BrokerConfig)) {
        let mut config = self.configs[&id].clone();
        change(&mut config);
        self.brokers.insert(id, Broker::start(TokioEnv::new(), config).await.expect("start"));
    }

    /// Where a broker keeps all it has.
    pub(crate) fn disk(&self, id: u64) -> std::path::PathBuf {
        self.directory.path().join(id.to_string())
    }

    async fn until_ready(&self, broker: &Broker<TokioEnv>) {
        let everyone = || broker.node().directory(|directory| directory.brokers.len()) == 3;
        until("the broker is ready", async || everyone() && get(broker, "/readyz").await.0 == 200).await;
    }

    pub(crate) async fn connect(&self, id: u64) -> TestClient {
        TestClient::new(TcpStream::connect(self.brokers[&id].address()).await.expect("connect"))
    }

    /// Asks a broker until it names a coordinator that is not one of these.
    pub(crate) async fn coordinator(&self, asked: u64, group: &str, gone: &[u64]) -> u64 {
        let mut client = self.connect(asked).await;
        let mut found = 0;
        until("a coordinator is named", async || {
            let request = FindCoordinatorRequest::default().with_key(group.to_owned().into());
            let response = client.call(3, request).await;
            found = u64::try_from(response.node_id.0).unwrap_or(0);
            response.error_code == 0 && !gone.contains(&found)
        })
        .await;
        found
    }
}

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            TokioEnv::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert!(timeout::<TokioEnv, _>(PATIENCE, waiting).await.is_ok(), "not in time: {what}");
}

/// Joins a group as its only member and gives itself everything. The coordinator may be about to move, so it may take some tries.
async fn join_alone(cluster: &Cluster, group: &str) -> (u64, String) {
    let mut joined = None;
    until("a member has joined", async || {
        let coordinator = cluster.coordinator(1, group, &[]).await;
        let mut client = cluster.connect(coordinator).await;
        let response = client.call(3, join(3, group, "")).await;
        if response.error_code != 0 || response.members.len() != 1 {
            return false;
        }
        let member = response.member_id.to_string();
        let synced = client.call(3, sync(3, group, &member, response.generation_id, &[(&member, "all")])).await;
        if synced.error_code != 0 {
            return false;
        }
        joined = Some((coordinator, member, response.generation_id));
        true
    })
    .await;
    let (coordinator, member, generation) = joined.expect("joined");
    assert_eq!(generation, 1);
    (coordinator, member)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_outlives_its_coordinator_and_its_member_notices_nothing() {
    let cluster = Cluster::start().await;
    TestBroker::create_topic_at(&mut cluster.connect(1).await, "t", 2).await;
    let (coordinator, member) = join_alone(&cluster, "g").await;
    let mut client = cluster.connect(coordinator).await;
    assert_eq!(committed(&mut client, 8, commit("g", &member, 1, 0, 41)).await, 0);

    cluster.brokers[&coordinator].shutdown().await;
    let left: Vec<u64> = (1..=3).filter(|id| *id != coordinator).collect();
    let next = cluster.coordinator(left[0], "g", &[coordinator]).await;
    let mut client = cluster.connect(next).await;
    // The first answers may be that it is not ready yet; none may be that the member has to join again.
    until("the member's heartbeat is taken", async || match heartbeat(&mut client, 4, "g", &member, 1).await {
        0 => true,
        error::COORDINATOR_LOAD_IN_PROGRESS | error::NOT_COORDINATOR | error::COORDINATOR_NOT_AVAILABLE => false,
        other => panic!("error {other}"),
    })
    .await;
    until("the member commits", async || committed(&mut client, 8, commit("g", &member, 1, 1, 42)).await == 0).await;
    let group = OffsetFetchRequestGroup::default().with_group_id(group_id("g")).with_topics(None);
    let response = client.call(8, OffsetFetchRequest::default().with_groups(vec![group])).await;
    let partitions = response.groups[0].topics.iter().flat_map(|topic| &topic.partitions);
    let offsets: Vec<_> = partitions.map(|one| (one.partition_index, one.committed_offset)).collect();
    assert_eq!(offsets, [(0, 41), (1, 42)]);

    // With one of three left nobody can be sure of anything.
    cluster.brokers[&next].shutdown().await;
    let last = left.into_iter().find(|id| *id != next).expect("a third broker");
    let broker = &cluster.brokers[&last];
    until("the last broker says that it is not ready", async || get(broker, "/readyz").await.0 == 503).await;
    assert_eq!(get(broker, "/healthz").await.0, 200);
    let mut client = cluster.connect(last).await;
    // It may lead the group's shard for a moment longer than another one.
    until("the last broker sends the member away", async || {
        heartbeat(&mut client, 4, "g", &member, 1).await == error::NOT_COORDINATOR
    })
    .await;
    until("the last broker does not list groups", async || {
        client.call(5, ListGroupsRequest::default()).await.error_code == error::COORDINATOR_NOT_AVAILABLE
    })
    .await;
    // A broker that was heard from a moment ago is named for that moment.
    until("the last broker names no coordinator", async || {
        let request = FindCoordinatorRequest::default().with_key("g".into());
        client.call(3, request).await.error_code == error::COORDINATOR_NOT_AVAILABLE
    })
    .await;
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_agree_on_the_coordinator_and_the_others_send_clients_away() {
    let cluster = Cluster::start().await;
    join_alone(&cluster, "g").await;
    // Leadership may be moved while it is spread over the nodes, but not for ever.
    let mut others = Vec::new();
    until("all name the same coordinator", async || {
        let mut named = Vec::new();
        for id in 1..=3 {
            named.push(cluster.coordinator(id, "g", &[]).await);
        }
        others = (1..=3).filter(|id| *id != named[0]).collect();
        let serves = |id: u64| {
            let node = cluster.brokers[&id].node();
            let shard = shard_of_group("g", node.shard_count());
            node.shard(shard).is_some_and(|shard| shard.serving().is_ok())
        };
        named.iter().all(|id| *id == named[0]) && serves(named[0])
    })
    .await;
    for id in others {
        let mut client = cluster.connect(id).await;
        let refused = client.call(3, join(3, "g", "")).await;
        assert_eq!(refused.error_code, error::NOT_COORDINATOR);
        assert_eq!(heartbeat(&mut client, 4, "g", "m", 1).await, error::NOT_COORDINATOR);
        assert_eq!(committed(&mut client, 8, commit("g", "", -1, 0, 1)).await, error::NOT_COORDINATOR);
        let beat = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(group_id("g"))
            .with_member_id("m".into())
            .with_member_epoch(1)
            .with_rebalance_timeout_ms(-1);
        let refused = client.call(1, beat).await;
        assert_eq!(refused.error_code, error::NOT_COORDINATOR);
        assert_eq!(refused.error_message.as_deref(), Some("only leader can handle consumer group operations"));
        assert!(!listed(&mut client, &[], &[]).await.iter().any(|group| group.group_id.as_str() == "g"));
        let request = DeleteGroupsRequest::default().with_groups_names(vec![group_id("g")]);
        assert_eq!(client.call(2, request).await.results[0].error_code, error::NOT_COORDINATOR);
        let request = OffsetDeleteRequest::default().with_group_id(group_id("g"));
        assert_eq!(client.call(0, request).await.error_code, error::NOT_COORDINATOR);
        // What can be seen without the group's state is answered everywhere.
        let invalid = client.call(9, JoinGroupRequest::default().with_session_timeout_ms(10_000)).await;
        assert_eq!(invalid.error_code, error::INVALID_GROUP_ID);
    }
    for broker in cluster.brokers.values() {
        broker.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_knows_of_no_leader_is_its_own_controller() {
    let cluster = Cluster::start().await;
    let mut client = cluster.connect(3).await;
    for id in [1, 2] {
        cluster.brokers[&id].shutdown().await;
    }
    // Never "nobody": librdkafka's administrators would wait for a broker that names one, and ask none.
    until("the last broker names itself", async || {
        let answer = client.call(9, metadata(&[], false)).await;
        assert!((1..=3).contains(&answer.controller_id.0), "controller {}", answer.controller_id.0);
        answer.brokers.len() == 1 && answer.controller_id.0 == 3
    })
    .await;
    cluster.brokers[&3].shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_named_takes_clients_from_the_first_moment() {
    let cluster = Cluster::start_early(|config| config.node.shards = 12).await;
    // Those that have no copy of the directory yet close connections, also when they lead already.
    let groups: Vec<StrBytes> = (0..40).map(|group| StrBytes::from(format!("g{group}"))).collect();
    let mut asked: BTreeMap<u64, TestClient> = BTreeMap::new();
    let mut answered: BTreeMap<u64, TestClient> = BTreeMap::new();
    until("every group has a coordinator", async || {
        let mut all_found = true;
        for id in 1..=3 {
            if !asked.contains_key(&id) {
                if !cluster.brokers[&id].node().has_directory() {
                    continue;
                }
                asked.insert(id, cluster.connect(id).await);
            }
            let request = FindCoordinatorRequest::default().with_coordinator_keys(groups.clone());
            let found = asked.get_mut(&id).expect("connected").call(4, request).await.coordinators;
            for coordinator in found {
                if coordinator.error_code != 0 {
                    assert_eq!(coordinator.error_code, error::COORDINATOR_NOT_AVAILABLE);
                    all_found = false;
                    continue;
                }
                let named = u64::try_from(coordinator.node_id.0).expect("a broker");
                if !answered.contains_key(&named) {
                    let mut client = cluster.connect(named).await;
                    client.call(3, ApiVersionsRequest::default()).await;
                    answered.insert(named, client);
                }
            }
        }
        all_found && asked.len() == 3
    })
    .await;
    for broker in cluster.brokers.values() {
        broker.shutdown().await;
    }
}
