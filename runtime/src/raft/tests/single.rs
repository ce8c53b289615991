//! A group of one.

use bytes::Bytes;
use lockstep_core::op::{AllocateProducerIds, DeleteGroup};
use lockstep_core::{Op, Reply};

use super::cluster::{Cluster, append_op, eventually, fill_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_voter_serves_and_keeps_the_order_of_its_proposals() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create_topic().await;
    let shard = cluster.node(1).shard(0);
    let proposals: Vec<_> = (0..200_u8)
        .map(|n| {
            let (op, payload) = append_op(n, 100);
            shard.propose(op, payload)
        })
        .collect();
    for (n, proposal) in proposals.into_iter().enumerate() {
        let Ok(Reply::Append(outcomes)) = proposal.await else { panic!("not appended") };
        assert_eq!(outcomes[0].as_ref().unwrap().base_offset, n as i64);
    }
    let fills: Vec<u8> = cluster.records(1).await.iter().map(fill_of).collect();
    assert_eq!(fills, (0..200).collect::<Vec<u8>>());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_op_longer_than_a_message_between_nodes_is_refused_and_holds_nothing_up() {
    let cluster = Cluster::start(1, 1).await;
    cluster.leader(0).await;
    let shard = cluster.node(1).shard(0);
    let op = Op::DeleteGroup(DeleteGroup { group_id: "x".repeat(8 << 20) });
    assert_eq!(shard.propose(op, Bytes::new()).await, Err(crate::ProposeError::TooLarge(shard.id())));
    let ids = Op::AllocateProducerIds(AllocateProducerIds { count: 1 });
    assert!(matches!(cluster.propose(0, ids, Bytes::new()).await, Reply::ProducerIds { .. }));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_there_after_a_restart() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.create_topic().await;
    for n in 0..50 {
        cluster.append(n, 1_000).await;
    }
    let before = cluster.node(1).shard(0).read(|state| state.digest());
    cluster.stop_node(1).await;
    cluster.start_node(1).await;
    cluster.leader(0).await;
    assert_eq!(cluster.node(1).shard(0).read(|state| state.digest()), before);
    assert_eq!(cluster.records(1).await.len(), 50);
    assert_eq!(cluster.append(77, 10).await, 50);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_op_that_cannot_be_decoded_stops_its_shard_and_no_other() {
    let mut cluster = Cluster::start(1, 2).await;
    let ids = || Op::AllocateProducerIds(AllocateProducerIds { count: 1 });
    cluster.leader(1).await;
    cluster.propose(0, ids(), Bytes::new()).await;
    cluster.node(1).shard(1).propose_raw(Bytes::from_static(b"\xffno op")).await;
    eventually("the shard stops", || cluster.node(1).shard(1).stopped().is_some()).await;
    let shard = cluster.node(1).shard(1);
    assert_eq!(shard.serving(), Err(crate::ProposeError::Stopped(shard.id())));
    assert!(shard.stopped().unwrap().contains("digest"), "{:?}", shard.stopped());
    assert!(shard.propose(ids(), Bytes::new()).await.is_err());
    assert!(matches!(cluster.propose(0, ids(), Bytes::new()).await, Reply::ProducerIds { .. }));
    // The entry is still in the log: the shard comes back stopped, and the node with its other shard all the same.
    cluster.stop_node(1).await;
    cluster.start_node(1).await;
    assert!(matches!(cluster.propose(0, ids(), Bytes::new()).await, Reply::ProducerIds { .. }));
    eventually("the shard stops again", || cluster.node(1).shard(1).stopped().is_some()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_cannot_be_written_is_a_failure_of_the_node() {
    let cluster = Cluster::start_with(1, 1, 64 << 10).await;
    cluster.create_topic().await;
    let checkpoints = cluster.config(1).raft_dir.join("checkpoints");
    std::fs::remove_dir_all(&checkpoints).unwrap();
    std::fs::write(&checkpoints, "not a directory").unwrap();
    let shard = cluster.node(1).shard(0);
    while shard.stopped().is_none() {
        let (op, payload) = append_op(1, 10_000);
        let _ = shard.propose(op, payload).await;
    }
    // What fails the node, whose other shards keep their checkpoints there too.
    assert!(shard.disk_failure().unwrap().contains("checkpoints"), "{:?}", shard.disk_failure());
    cluster.stop().await;
}
