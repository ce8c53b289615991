//! A member that takes less than clients write, and answers all the same.

use std::time::Duration;

use lockstep_core::{NodeId, ShardId};

use super::cluster::{Cluster, eventually};

const CHECKPOINT_BYTES: u64 = 256 << 10;
/// Of one record.
const RECORD_BYTES: usize = 100_000;
/// Eight requests are under way at a time, and each must be answered within four seconds.
const PAUSE: Duration = Duration::from_millis(350);

/// Three nodes, their leader, and one of the others, which answers slowly.
async fn with_a_late_member(checkpoint_journal_bytes: u64) -> (Cluster, NodeId, NodeId) {
    let cluster = Cluster::start_with(3, 1, checkpoint_journal_bytes).await;
    cluster.create_topic().await;
    let leader = cluster.leader(0).await;
    let late = leader % 3 + 1;
    cluster.level(0).await;
    cluster.node(late).answer_slowly(PAUSE);
    (cluster, leader, late)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_stays_bounded_while_a_member_answers_and_lags() {
    let (cluster, leader, late) = with_a_late_member(CHECKPOINT_BYTES).await;
    let shard = cluster.node(leader).shard(0);
    let held = || cluster.node(leader).journal.bytes_since_purge(ShardId(0));
    for _ in 0..3 {
        for n in 0..100 {
            cluster.append(n, RECORD_BYTES).await;
        }
        // It would take the late one ten seconds and more to take that.
        let mut cut_off = false;
        eventually("the journal is short again", || {
            let status = shard.raft_status();
            cut_off |= status.purged > status.matched[&late];
            held() < 6 * CHECKPOINT_BYTES
        })
        .await;
        assert!(cut_off, "the log holds {} bytes because the late one has caught up", held());
    }
    cluster.append(255, 10).await;
    cluster.node(late).answer_slowly(Duration::ZERO);
    cluster.assert_equal(0).await;
    cluster.assert_same_records(&[1, 2, 3], 301).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lags_a_little_finds_what_it_lacks_in_the_log() {
    let (cluster, leader, late) = with_a_late_member(4 * CHECKPOINT_BYTES).await;
    let shard = cluster.node(leader).shard(0);
    // Twice what a checkpoint is taken after, and less than the member may lag by.
    for n in 0..20 {
        cluster.append(n, RECORD_BYTES).await;
    }
    eventually("a checkpoint covers most", || shard.raft_status().snapshot.is_some_and(|at| at > 10)).await;
    let matched = || shard.raft_status().matched[&late];
    let lacked = matched();
    // Were the log to be purged beyond what it has, an answer that is lost would be followed by a snapshot.
    cluster.node(late).lose_an_answer().await;
    eventually("it goes on", || {
        let purged = shard.raft_status().purged;
        assert!(purged <= matched(), "the log is purged to {purged:?}");
        matched() > lacked
    })
    .await;
    cluster.node(late).answer_slowly(Duration::ZERO);
    cluster.assert_equal(0).await;
    cluster.assert_same_records(&[1, 2, 3], 20).await;
    cluster.stop().await;
}
