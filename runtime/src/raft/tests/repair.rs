//! Segments that are damaged on one node, or on more, while the others go on.

use std::path::PathBuf;
use std::time::Duration;

use lockstep_core::NodeId;

use super::cluster::{Cluster, TOPIC, eventually};
use crate::config::NodeConfig;
use crate::partition::ReadError;
use crate::storage::SegmentName;

const BATCHES: u8 = 40;
/// A checkpoint is not taken within a test.
const SELDOM: u64 = 64 << 20;

fn small_segments(config: &mut NodeConfig) {
    config.segment_bytes = 16 << 10;
    // Nothing is read from memory.
    config.cache_bytes = 0;
}

fn scrubbing(config: &mut NodeConfig) {
    small_segments(config);
    config.scrub_interval = Duration::from_millis(100);
}

fn without_scrub(config: &mut NodeConfig) {
    small_segments(config);
    config.scrub_interval = Duration::ZERO;
}

fn path(cluster: &Cluster, node: NodeId, name: SegmentName) -> PathBuf {
    let data = cluster.directory(node).join("data").join(cluster.node(node).shard(0).id().to_string());
    data.join(format!("{}-{}", name.topic_id, name.partition)).join(format!("{:020}.log", name.base_offset))
}

fn content(cluster: &Cluster, node: NodeId, name: SegmentName) -> Vec<u8> {
    std::fs::read(path(cluster, node, name)).unwrap_or_default()
}

/// Changes a byte on the disk, in a file that the node has open.
fn damage(cluster: &Cluster, node: NodeId, name: SegmentName, at: usize) {
    use std::io::{Seek, SeekFrom, Write};
    let byte = content(cluster, node, name)[at] ^ 1;
    let mut file = std::fs::OpenOptions::new().write(true).open(path(cluster, node, name)).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[byte]).unwrap();
}

/// Appends, and waits until all nodes have written it. Gives the segments, the last one still open.
async fn filled(cluster: &Cluster) -> Vec<SegmentName> {
    cluster.create_topic().await;
    for n in 0..BATCHES {
        cluster.append(n, 4_000).await;
    }
    cluster.level(0).await;
    let leader = cluster.leader(0).await;
    let entries = cluster.node(leader).shard(0).segments(TOPIC, 0);
    for node in 1..=cluster.size() {
        eventually("the segments are written", || {
            entries.iter().all(|entry| content(cluster, node, entry.name).len() as u64 == entry.len)
        })
        .await;
    }
    assert!(entries.len() > 5, "{entries:?}");
    entries.into_iter().map(|entry| entry.name).collect()
}

fn repaired(cluster: &Cluster, node: NodeId) -> u64 {
    cluster.node(node).shard(0).scrub_counts().repaired
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_finds_and_repairs_damage_on_followers_and_on_the_leader() {
    let cluster = Cluster::start_changed(3, 1, SELDOM, scrubbing).await;
    let names = filled(&cluster).await;
    for (node, at) in [(1, 100), (2, 13), (3, 5_000)] {
        // One that is closed, and the one that still grows.
        for name in [names[1], names[names.len() - 1]] {
            let good = content(&cluster, node, name);
            damage(&cluster, node, name, at % good.len());
            eventually("the file is whole again", || content(&cluster, node, name) == good).await;
        }
        eventually("both repairs are counted", || repaired(&cluster, node) == 2).await;
        let counts = cluster.node(node).shard(0).scrub_counts();
        assert_eq!(counts.damaged, 2, "{counts:?}");
    }
    // The segments go on as they were.
    for n in BATCHES..BATCHES + 10 {
        cluster.append(n, 4_000).await;
    }
    cluster.level(0).await;
    cluster.assert_same_records(&[1, 2, 3], usize::from(BATCHES) + 10).await;
    cluster.assert_equal(0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_is_given_nothing_damaged_and_soon_everything() {
    let cluster = Cluster::start_changed(3, 1, SELDOM, without_scrub).await;
    let names = filled(&cluster).await;
    let leader = cluster.leader(0).await;
    for node in [leader, leader % 3 + 1] {
        let good = content(&cluster, node, names[2]);
        damage(&cluster, node, names[2], 3_000);
        let log = cluster.node(node).shard(0).log(TOPIC, 0).unwrap();
        let offset = names[2].base_offset;
        match log.read(offset, 1, true).await {
            Err(ReadError::Damaged { path: told, position }) => {
                assert_eq!((told, position), (path(&cluster, node, names[2]).display().to_string(), 0));
            }
            other => panic!("{other:?}"),
        }
        eventually("the file is whole again", || content(&cluster, node, names[2]) == good).await;
        eventually("the repair is counted", || repaired(&cluster, node) == 1).await;
        let read = log.read(offset, 1, true).await.unwrap().concat();
        assert_eq!(read, good[..read.len()]);
    }
    // The leader epoch, bytes 12..16 of a batch, is covered by no checksum of the batch.
    let good = content(&cluster, leader, names[3]);
    damage(&cluster, leader, names[3], 15);
    let shard = cluster.node(leader).shard(0);
    let log = shard.log(TOPIC, 0).unwrap();
    let read = log.read(names[3].base_offset, 10_000, true).await.unwrap();
    // What lies before it is given.
    let more = log.read(names[2].base_offset, 1 << 20, true).await.unwrap();
    let given = shard.check_epochs(TOPIC, 0, more.clone()).unwrap().concat();
    assert!(!given.is_empty() && more.concat().starts_with(&given));
    let checked = shard.check_epochs(TOPIC, 0, read.clone());
    assert!(
        matches!(checked, Err(ReadError::WrongEpoch { offset, .. }) if offset == names[3].base_offset),
        "{checked:?}"
    );
    eventually("the file is whole again", || content(&cluster, leader, names[3]) == good).await;
    eventually("the new file is read", || shard.scrub_counts().repaired == 2).await;
    let read = log.read(0, 1 << 20, true).await.unwrap();
    assert!(shard.check_epochs(TOPIC, 0, read.clone()).is_ok());
    drop(shard);
    cluster.assert_same_records(&[1, 2, 3], usize::from(BATCHES)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_down_or_damaged_too_is_passed_over() {
    let mut cluster = Cluster::start_changed(3, 1, SELDOM, scrubbing).await;
    let names = filled(&cluster).await;
    let good = content(&cluster, 1, names[0]);
    // The same segment on two of three nodes: whichever is asked first by the other, both get the third one's.
    damage(&cluster, 1, names[0], 50);
    damage(&cluster, 2, names[0], 7_000);
    eventually("both are whole again", || {
        content(&cluster, 1, names[0]) == good && content(&cluster, 2, names[0]) == good
    })
    .await;
    for down in [2, 3] {
        cluster.stop_node(down).await;
        let good = content(&cluster, 1, names[1]);
        damage(&cluster, 1, names[1], 50);
        eventually("the one that is left gives its copy", || content(&cluster, 1, names[1]) == good).await;
        cluster.start_node(down).await;
        cluster.level(0).await;
    }
    cluster.assert_same_records(&[1, 2, 3], usize::from(BATCHES)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_nobody_can_give_harms_nothing_else() {
    let cluster = Cluster::start_changed(1, 1, SELDOM, scrubbing).await;
    let names = filled(&cluster).await;
    let good = content(&cluster, 1, names[1]);
    damage(&cluster, 1, names[1], 100);
    let shard = cluster.node(1).shard(0);
    eventually("it is found", || shard.scrub_counts().damaged == 1).await;
    let log = shard.log(TOPIC, 0).unwrap();
    assert!(matches!(log.read(names[1].base_offset, 1, true).await, Err(ReadError::Damaged { .. })));
    assert!(!log.read(names[2].base_offset, 1, true).await.unwrap().is_empty());
    assert_eq!(cluster.append(BATCHES, 100).await, i64::from(BATCHES));
    assert_eq!(shard.stopped(), None);
    std::fs::write(path(&cluster, 1, names[1]), good).unwrap();
    assert_eq!(cluster.records(1).await.len(), usize::from(BATCHES) + 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_fetched_from_a_leader_whose_segment_was_damaged() {
    let mut cluster = Cluster::start_changed(3, 1, 64 << 10, without_scrub).await;
    cluster.create_topic().await;
    cluster.append(0, 4_000).await;
    cluster.level(0).await;
    let late = cluster.leader(0).await % 3 + 1;
    cluster.stop_node(late).await;
    for n in 1..100 {
        cluster.append(n, 4_000).await;
    }
    let leader = cluster.leader(0).await;
    let shard = cluster.node(leader).shard(0);
    eventually("the log before is purged", || shard.raft_status().purged.is_some_and(|purged| purged > 60)).await;
    let name = shard.segments(TOPIC, 0)[3].name;
    let good = content(&cluster, leader, name);
    damage(&cluster, leader, name, 13);
    // Nobody reads there: the leader hears of it from the one that fetches.
    cluster.start_node(late).await;
    let arrived = cluster.node(late).shard(0);
    eventually("the snapshot is installed", || arrived.raft_status().snapshot.is_some_and(|at| at > 60)).await;
    cluster.level(0).await;
    assert_eq!(content(&cluster, late, name), good);
    if shard.serving().is_ok() {
        eventually("the leader's file is whole again", || content(&cluster, leader, name) == good).await;
    }
    drop((shard, arrived));
    cluster.assert_equal(0).await;
    cluster.assert_same_records(&[leader, late], 100).await;
    cluster.stop().await;
}
