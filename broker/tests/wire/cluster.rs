//! Three brokers: who coordinates a group, and what becomes of it when its coordinator goes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use crate::groups::{commit, committed, error, group_id, listed};
use crate::groups_classic::{heartbeat, join, sync};
use crate::http::get;
use crate::support::{PATIENCE, TestBroker, TestClient, metadata};
use lockstep_broker::{Broker, BrokerConfig};
use lockstep_core::{ShardId, shard_of_group};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_runtime::NodeConfig;
use lockstep_wire::codec::offset_fetch_request::OffsetFetchRequestGroup;
use lockstep_wire::codec::{
    ApiVersionsRequest, ConsumerGroupHeartbeatRequest, DeleteGroupsRequest, FindCoordinatorRequest, JoinGroupRequest,
    ListGroupsRequest, OffsetDeleteRequest, OffsetFetchRequest, StrBytes,
};
use ports::free_port;
use tokio::net::TcpStream;

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
        cluster.until_settled().await;
        for broker in cluster.brokers.values() {
            cluster.until_ready(broker).await;
        }
        cluster
    }

    /// Starts brokers that may not know of one another yet.
    async fn start_early(change: impl Fn(&mut BrokerConfig)) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let peers: BTreeMap<u64, String> = (1..=3).map(|id| (id, format!("127.0.0.1:{}", free_port()))).collect();
        let mut cluster = Self { brokers: BTreeMap::new(), configs: BTreeMap::new(), directory };
        for id in 1..=3 {
            let own = cluster.disk(id);
            let mut node = NodeConfig::new(id, peers.clone(), own.join("raft"), own.join("partitions"));
            node.shards = 2;
            node.journal_file_bytes = 4 << 20;
            if cfg!(debug_assertions) {
                // Builds without optimisation, all in one process, are not as quick as what they test is meant to be.
                node.heartbeat_interval = Duration::from_millis(75);
                node.election_timeout_min = Duration::from_millis(250);
                node.election_timeout_max = Duration::from_millis(400);
            }
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

    /// Every shard is led by the broker that should have it, so that leadership stays where it is. One that lost its first election is given the
    /// shard only after some seconds, in the middle of what a test does by then.
    async fn until_settled(&self) {
        for shard in 0..self.configs[&1].node.shards {
            // The brokers in turn.
            let node = self.brokers[&(u64::from(shard) % 3 + 1)].node();
            let serves = || node.shard(ShardId(shard)).is_some_and(|shard| shard.serving().is_ok());
            until("the shard is led by the broker that should lead it", async || serves()).await;
        }
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

    /// The same, and connects to it.
    async fn connect_to_coordinator(&self, asked: u64, group: &str, gone: &[u64]) -> (u64, TestClient) {
        let coordinator = self.coordinator(asked, group, gone).await;
        (coordinator, self.connect(coordinator).await)
    }

    /// The term in which a broker coordinates a group, if it does.
    fn coordinates(&self, id: u64, group: &str) -> Option<u64> {
        let node = self.brokers[&id].node();
        node.shard(shard_of_group(group, node.shard_count()))?.serving().ok()
    }
}

/// Was the request taken? The coordinator may be about to move, or just have come; nothing else may keep it from that.
fn is_taken(code: i16) -> bool {
    match code {
        0 => true,
        error::COORDINATOR_LOAD_IN_PROGRESS | error::NOT_COORDINATOR | error::COORDINATOR_NOT_AVAILABLE => false,
        other => panic!("error {other}"),
    }
}

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            TokioEnv::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout::<TokioEnv, _>(PATIENCE, waiting).await.is_ok(), "not in time: {what}");
}

/// Joins a group as its only member and gives itself everything; its id and the generation. The coordinator may be about to move, so it may take some tries:
/// whoever comes next knows what the former one had taken.
async fn join_alone(cluster: &Cluster, group: &str) -> (String, i32) {
    let mut member = String::new();
    let (mut generation, mut joins) = (0, 0);
    until("a member has joined", async || {
        let (_, mut client) = cluster.connect_to_coordinator(1, group, &[]).await;
        if member.is_empty() {
            let response = client.call(9, join(9, group, "")).await;
            match response.error_code {
                error::MEMBER_ID_REQUIRED => member = response.member_id.to_string(),
                code => assert!(!is_taken(code), "nobody joins without an id"),
            }
            return false;
        }
        if generation == 0 {
            joins += 1;
            let response = client.call(9, join(9, group, &member)).await;
            if response.error_code == error::UNKNOWN_MEMBER_ID {
                // Its id went with the coordinator that gave it.
                member.clear();
                return false;
            }
            if !is_taken(response.error_code) {
                return false;
            }
            assert_eq!((response.leader.as_str(), response.members.len()), (member.as_str(), 1));
            generation = response.generation_id;
            assert!((1..=joins).contains(&generation), "generation {generation} after {joins} joins");
        }
        is_taken(client.call(5, sync(5, group, &member, generation, &[(&member, "all")])).await.error_code)
    })
    .await;
    (member, generation)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_outlives_its_coordinator_and_its_member_notices_nothing() {
    let cluster = Cluster::start().await;
    TestBroker::create_topic_at(&mut cluster.connect(1).await, "t", 2).await;
    let (member, generation) = join_alone(&cluster, "g").await;
    let mut coordinator = 0;
    until("the member commits", async || {
        let mut client;
        (coordinator, client) = cluster.connect_to_coordinator(1, "g", &[]).await;
        is_taken(committed(&mut client, 8, commit("g", &member, generation, 0, 41)).await)
    })
    .await;

    cluster.brokers[&coordinator].shutdown().await;
    let left: Vec<u64> = (1..=3).filter(|id| *id != coordinator).collect();
    let gone = [coordinator];
    // The first answers may be that it is not ready yet; none may be that the member has to join again.
    until("the member's heartbeat is taken", async || {
        let (_, mut client) = cluster.connect_to_coordinator(left[0], "g", &gone).await;
        is_taken(heartbeat(&mut client, 4, "g", &member, generation).await)
    })
    .await;
    until("the member commits", async || {
        let (_, mut client) = cluster.connect_to_coordinator(left[0], "g", &gone).await;
        is_taken(committed(&mut client, 8, commit("g", &member, generation, 1, 42)).await)
    })
    .await;
    let (mut next, mut offsets) = (0, Vec::new());
    until("the offsets are told", async || {
        let mut client;
        (next, client) = cluster.connect_to_coordinator(left[0], "g", &gone).await;
        let group = OffsetFetchRequestGroup::default().with_group_id(group_id("g")).with_topics(None);
        let response = client.call(8, OffsetFetchRequest::default().with_groups(vec![group])).await;
        let partitions = response.groups[0].topics.iter().flat_map(|topic| &topic.partitions);
        offsets = partitions.map(|one| (one.partition_index, one.committed_offset)).collect();
        is_taken(response.groups[0].error_code)
    })
    .await;
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
        heartbeat(&mut client, 4, "g", &member, generation).await == error::NOT_COORDINATOR
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

/// What a broker answers to requests of group `g`, `None` for one that it lists.
async fn sent_away(client: &mut TestClient) -> Vec<Option<i16>> {
    let mut told = vec![
        Some(client.call(9, join(9, "g", "")).await.error_code),
        Some(heartbeat(client, 4, "g", "m", 1).await),
        Some(committed(client, 8, commit("g", "", -1, 0, 1)).await),
    ];
    let beat = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group_id("g"))
        .with_member_id("m".into())
        .with_member_epoch(1)
        .with_rebalance_timeout_ms(-1);
    let beaten = client.call(1, beat).await;
    told.push(Some(beaten.error_code));
    if beaten.error_code == error::NOT_COORDINATOR {
        assert_eq!(beaten.error_message.as_deref(), Some("only leader can handle consumer group operations"));
    }
    if listed(client, &[], &[]).await.iter().any(|group| group.group_id.as_str() == "g") {
        told.push(None);
    }
    let request = DeleteGroupsRequest::default().with_groups_names(vec![group_id("g")]);
    told.push(Some(client.call(2, request).await.results[0].error_code));
    let request = OffsetDeleteRequest::default().with_group_id(group_id("g"));
    told.push(Some(client.call(0, request).await.error_code));
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_agree_on_the_coordinator_and_the_others_send_clients_away() {
    let cluster = Cluster::start().await;
    join_alone(&cluster, "g").await;
    until("all name the same coordinator, and the others refuse", async || {
        let mut named = Vec::new();
        for id in 1..=3 {
            named.push(cluster.coordinator(id, "g", &[]).await);
        }
        let coordinator = named[0];
        let Some(term) = cluster.coordinates(coordinator, "g") else { return false };
        let mut is_right = named.iter().all(|id| *id == coordinator);
        for id in (1..=3).filter(|id| *id != coordinator) {
            let told = sent_away(&mut cluster.connect(id).await).await;
            let expected = vec![Some(error::NOT_COORDINATOR); told.len()];
            // While one broker coordinates, no other one may take anything. Leadership may be moved, but not for ever.
            let is_coordinator_still = cluster.coordinates(coordinator, "g") == Some(term);
            assert!(told == expected || !is_coordinator_still, "broker {id} answers {told:?}");
            is_right &= told == expected;
        }
        is_right && cluster.coordinates(coordinator, "g") == Some(term)
    })
    .await;
    for id in 1..=3 {
        // What can be seen without the group's state is answered everywhere.
        let mut client = cluster.connect(id).await;
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
            if let Entry::Vacant(entry) = asked.entry(id) {
                if !cluster.brokers[&id].node().has_directory() {
                    continue;
                }
                entry.insert(cluster.connect(id).await);
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
                if let Entry::Vacant(entry) = answered.entry(named) {
                    let mut client = cluster.connect(named).await;
                    client.call(3, ApiVersionsRequest::default()).await;
                    entry.insert(client);
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
