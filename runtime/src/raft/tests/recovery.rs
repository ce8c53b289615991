//! Checkpoints, restarts after them, and replicas that need one.

use std::fs;

use bytes::Bytes;
use lockstep_core::op::AllocateProducerIds;
use lockstep_core::{NodeId, Op, Position, ShardId};
use lockstep_env::tokio_env::TokioEnv;
use tokio::sync::oneshot;

use super::cluster::{Cluster, eventually};
use crate::config::Durability;
use crate::journal::{Journal, JournalOptions};
use crate::raft::entry_codec;
use crate::raft::log_store::VoteWire;
use crate::raft::message;
use crate::raft::type_config::Payload;
use crate::storage::Checkpoints;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_from_its_checkpoint_and_the_journal_after_it() {
    let mut cluster = Cluster::start_with(1, 1, 64 << 10).await;
    cluster.create_topic().await;
    for n in 0..100 {
        cluster.append(n, 4_000).await;
    }
    let shard = cluster.node(1).shard(0);
    eventually("a checkpoint covers most", || shard.raft_status().purged.is_some_and(|purged| purged > 50)).await;
    cluster.append(100, 4_000).await;
    let digest = shard.read(|state| state.digest());
    drop(shard);
    cluster.stop_node(1).await;
    cluster.start_node(1).await;
    cluster.leader(0).await;
    assert_eq!(cluster.node(1).shard(0).read(|state| state.digest()), digest);
    assert_eq!(cluster.records(1).await.len(), 101);
    assert_eq!(cluster.append(101, 10).await, 101);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lags_beyond_the_log_takes_the_snapshot_and_what_it_lacks() {
    let mut cluster = Cluster::start_with(3, 1, 64 << 10).await;
    cluster.create_topic().await;
    for n in 0..10 {
        cluster.append(n, 4_000).await;
    }
    cluster.level(0).await;
    let leader = cluster.leader(0).await;
    let late = leader % 3 + 1;
    cluster.stop_node(late).await;
    for n in 10..150 {
        cluster.append(n, 4_000).await;
    }
    let shard = cluster.node(cluster.leader(0).await).shard(0);
    eventually("the log before is purged", || shard.raft_status().purged.is_some_and(|purged| purged > 100)).await;
    cluster.start_node(late).await;
    cluster.level(0).await;
    let leader = cluster.leader(0).await;
    let arrived = cluster.node(late).shard(0);
    eventually("the snapshot is installed", || arrived.raft_status().snapshot.is_some_and(|at| at > 100)).await;
    drop(arrived);
    cluster.assert_same_records(&[leader, late], 150).await;
    for n in 150..160 {
        cluster.append(n, 100).await;
    }
    cluster.assert_equal(0).await;
    // What was installed is durable: the replica starts from it.
    cluster.stop_node(late).await;
    cluster.start_node(late).await;
    cluster.level(0).await;
    cluster.assert_equal(0).await;
    cluster.assert_same_records(&[1, 2, 3], 160).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_shard_does_not_hold_up_the_journal_of_a_busy_one() {
    let cluster = Cluster::start_with(1, 2, 2 << 20).await;
    let ids = || Op::AllocateProducerIds(AllocateProducerIds { count: 1 });
    // More than the journal would carry along to newer files.
    for _ in 0..15 {
        cluster.propose(1, ids(), Bytes::from(vec![0; 100 << 10])).await;
    }
    // Ten files' worth of entries on the other shard.
    for _ in 0..50 {
        cluster.propose(0, ids(), Bytes::from(vec![0; 200 << 10])).await;
    }
    eventually("old files are used again", || cluster.node(1).journal.files() <= 4).await;
    cluster.stop().await;
}

/// Gives a stopped node the journal of one that adopted its checkpoint and lost power before the journal could drop a former leader's entries in its
/// place, which go on beyond its end.
async fn bring_former_entries_back(cluster: &Cluster, node: NodeId, term_of: impl Fn(u64) -> u64) {
    let raft_dir = cluster.directory(node).join("raft");
    let (_, manifest) = Checkpoints::open(TokioEnv::new(), &raft_dir, ShardId(0)).await.unwrap();
    let end = manifest.unwrap().position.unwrap();
    let term = term_of(end.term);
    let journal_dir = raft_dir.join("journal");
    fs::remove_dir_all(&journal_dir).unwrap();
    let options = JournalOptions { file_bytes: 1 << 20, cache_bytes_per_shard: 1 << 20, durability: Durability::Fsync };
    let journal = Journal::open(TokioEnv::new(), &journal_dir, options).await.unwrap();
    let log = journal.shard(ShardId(0));
    let vote = VoteWire { term: term.max(end.term), node, committed: false };
    log.save_vote(message::encode(&vote)).await.unwrap();
    let entry = |index| (Position { term, index }, entry_codec::encode(&Payload::Blank));
    let (sender, durable) = oneshot::channel();
    log.append((0..end.index + 30).map(entry).collect(), Box::new(move |result| sender.send(result).unwrap()));
    durable.await.unwrap().unwrap();
    drop(log);
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_whose_journal_had_not_dropped_what_the_adopted_checkpoint_replaces() {
    let mut cluster = Cluster::start_with(3, 1, 64 << 10).await;
    cluster.create_topic().await;
    let mut count = 0;
    // Entries that nobody committed may be of an earlier term than the committed ones in their place, or of a later one.
    for term_of in [|term: u64| term - 1, |term: u64| term + 1] {
        for n in 0..60 {
            cluster.append(n, 4_000).await;
            count += 1;
        }
        let node = cluster.leader(0).await % 3 + 1;
        let shard = cluster.node(node).shard(0);
        eventually("there is a checkpoint", || shard.raft_status().snapshot.is_some_and(|at| at > 10)).await;
        drop(shard);
        // The others have it all, and forget what this one acknowledged, which is more than its checkpoint.
        cluster.level(0).await;
        for node in 1..=3 {
            cluster.stop_node(node).await;
        }
        bring_former_entries_back(&cluster, node, term_of).await;
        for node in 1..=3 {
            cluster.start_node(node).await;
        }
        cluster.append(60, 10).await;
        count += 1;
        cluster.assert_equal(0).await;
    }
    cluster.assert_same_records(&[1, 2, 3], count).await;
    cluster.stop().await;
}
