//! A broker whose disk was emptied, while the others fill it.

use crate::cluster::{Cluster, until};
use crate::support::{TestBroker, TestClient, batch, fetch, metadata, produce, values};
use lockstep_core::ShardId;

/// Partition `p` of the first topic is on shard `p`, which node `p + 1` should lead.
const SHARDS: u16 = 3;
const LAST: ShardId = ShardId(SHARDS - 1);

async fn serves(cluster: &Cluster, id: u64, shard: ShardId) -> bool {
    cluster.brokers[&id].node().shard(shard).is_some_and(|shard| shard.serving().is_ok())
}

/// Was it taken? A leader's lease may lapse for a moment.
async fn stored(client: &mut TestClient, partition: i32, value: &str) -> bool {
    let answer = client.call(9, produce("t", partition, -1, batch(&[value]))).await;
    answer.responses[0].partition_responses[0].error_code == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_leads_and_serves_what_it_has_while_the_directory_s_own_shard_is_still_fetched() {
    let mut cluster = Cluster::start_with(|config| {
        config.node.shards = SHARDS;
        config.node.checkpoint_journal_bytes = 256 << 10;
        config.node.journal_file_bytes = 1 << 20;
    })
    .await;
    let mut client = cluster.connect(1).await;
    TestBroker::create_topic_at(&mut client, "t", i32::from(SHARDS)).await;
    until("node 1 leads shard 0", async || serves(&cluster, 1, ShardId::METADATA).await).await;
    cluster.brokers[&3].shutdown().await;
    // More than a log keeps for members that lag: the emptied disk needs a checkpoint's segments.
    let filler = "x".repeat(200 << 10);
    for _ in 0..20 {
        until("it is stored", async || stored(&mut client, 0, &filler).await).await;
    }

    loop {
        std::fs::remove_dir_all(cluster.disk(3)).expect("node 3's disk is emptied");
        // At this rate nothing of a megabyte comes in the time of a test.
        cluster.boot(3, |config| config.node.fetch_bytes_per_second = 1 << 10).await;
        until("node 3 leads its shard again", async || serves(&cluster, 3, LAST).await).await;
        let directory = cluster.brokers[&3].node().shard(ShardId::METADATA).expect("shard 0 is on every node");
        if directory.read(|state| state.directory().topics.is_empty()) {
            break;
        }
        // The others had no checkpoint yet, and filled it from their logs.
        cluster.brokers[&3].shutdown().await;
    }

    let mut client = cluster.connect(3).await;
    let answer = client.call(9, metadata(&["t"], false)).await;
    assert_eq!(answer.brokers.len(), 3);
    assert_eq!((answer.topics[0].error_code, answer.topics[0].partitions.len()), (0, usize::from(SHARDS)));
    let partition = i32::from(LAST.0);
    until("it is stored at node 3", async || stored(&mut client, partition, "kept").await).await;
    let mut fetched = None;
    until("it is fetched from node 3", async || {
        let answer = client.call(11, fetch("t", partition, 0, 10_000)).await;
        let is_served = answer.responses[0].partitions[0].error_code == 0;
        fetched = Some(answer);
        is_served
    })
    .await;
    assert_eq!(values(&fetched.expect("fetched"))[0], "kept");
    // That there is no such topic is known from shard 0's leader: UNKNOWN_TOPIC_OR_PARTITION.
    until("it is known that there is no such topic", async || {
        let code = client.call(9, metadata(&["unheard-of"], false)).await.topics[0].error_code;
        // 5: LEADER_NOT_AVAILABLE.
        assert!([3, 5].contains(&code), "error {code}");
        code == 3
    })
    .await;
    // And a topic can be made here.
    TestBroker::create_topic_at(&mut client, "another", 1).await;
    until("it is known here", async || client.call(9, metadata(&["another"], false)).await.topics[0].error_code == 0)
        .await;
    for broker in cluster.brokers.values() {
        broker.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_knows_no_broker_turns_clients_away() {
    let lonely = TestBroker::start_without_peers().await;
    assert!(lonely.connect().await.is_closed().await);
    lonely.broker.shutdown().await;
}
