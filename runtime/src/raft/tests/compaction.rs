//! Logs that are compacted while nodes come and go.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::op::{AdvanceLogStart, NewLogStart};
use lockstep_core::{NodeId, Op, Reply};
use lockstep_env::tokio_env::TokioEnv;
use lockstep_env::{Env, timeout};
use lockstep_wire::records::decode_batch;
use lockstep_wire::{BatchBuilder, Compression};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::cluster::{Cluster, TOPIC, eventually};
use crate::config::NodeConfig;
use crate::storage::SegmentEntry;

/// A checkpoint is taken only because files wait for one.
const SELDOM: u64 = 64 << 20;
const SEGMENT_BYTES: u64 = 2 << 10;
const COMPACTED: &[(&str, &str)] = &[("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0")];

fn compacting(config: &mut NodeConfig) {
    config.segment_bytes = SEGMENT_BYTES;
    config.compaction_check_interval = Duration::from_millis(20);
    // Nothing is read from memory.
    config.cache_bytes = 0;
}

fn forgetful(config: &mut NodeConfig) {
    compacting(config);
    config.compaction_keys_max = 5;
}

/// While a node is down its leader waits for it before it goes on with a compaction, and must lead for so long: nobody takes its place because all
/// stood still for a moment.
fn steady(config: &mut NodeConfig) {
    compacting(config);
    config.election_timeout_min = Duration::from_secs(3);
    config.election_timeout_max = Duration::from_secs(4);
}

/// Offset → key and value.
type Records = BTreeMap<i64, (Vec<u8>, Option<Vec<u8>>)>;

/// A log as clients wrote it.
struct Writer<'a> {
    cluster: &'a Cluster,
    random: StdRng,
    written: Records,
}

impl<'a> Writer<'a> {
    fn new(cluster: &'a Cluster, seed: u64) -> Self {
        Self { cluster, random: StdRng::seed_from_u64(seed), written: Records::new() }
    }

    async fn batch(&mut self, compression: Compression, records: &[(&[u8], Option<&[u8]>)]) {
        let mut builder = BatchBuilder::new();
        for (number, (key, value)) in records.iter().enumerate() {
            builder.push(1_000 + number as i64, Some(key), *value, &[]);
        }
        let max_timestamp_ms = 1_000 + records.len() as i64 - 1;
        let finish = |producer| builder.finish(compression, Some(producer)).unwrap();
        let base_offset = self.cluster.append_batch(records.len() as u32, max_timestamp_ms, finish).await;
        for (offset, (key, value)) in (base_offset..).zip(records) {
            self.written.insert(offset, (key.to_vec(), value.map(<[u8]>::to_vec)));
        }
    }

    /// Batches of a few records each, of so many keys.
    async fn some(&mut self, batches: usize, keys: u32, tombstones: f64) {
        for _ in 0..batches {
            let compressions = [Compression::None, Compression::Gzip, Compression::Lz4, Compression::Zstd];
            let compression = compressions[self.random.random_range(0..compressions.len())];
            let len = self.random.random_range(1..6);
            let records: Vec<(Vec<u8>, Option<Vec<u8>>)> = (0..len)
                .map(|_| {
                    let key = format!("key {}", self.random.random_range(0..keys)).into_bytes();
                    let value: Vec<u8> = (0..self.random.random_range(0..60)).map(|_| self.random.random()).collect();
                    (key, (!self.random.random_bool(tombstones)).then_some(value))
                })
                .collect();
            let records: Vec<_> = records.iter().map(|(key, value)| (&**key, value.as_deref())).collect();
            self.batch(compression, &records).await;
        }
    }

    /// What must be left of it where it is compacted up to `compacted_to`.
    fn left(&self, compacted_to: i64) -> Records {
        let is_last = |offset: i64, key: &[u8]| {
            let later = self.written.range(offset + 1..).take_while(|(later, _)| **later < compacted_to);
            later.into_iter().all(|(_, (other, _))| other != key)
        };
        let stays = |(offset, (key, _)): &(&i64, &(Vec<u8>, _))| **offset >= compacted_to || is_last(**offset, key);
        self.written.iter().filter(stays).map(|(offset, record)| (*offset, record.clone())).collect()
    }
}

fn segments(cluster: &Cluster, node: NodeId) -> Vec<SegmentEntry> {
    cluster.node(node).shard(0).segments(TOPIC, 0)
}

fn compacted_to(cluster: &Cluster, node: NodeId) -> i64 {
    cluster.node(node).shard(0).read(|core| core.partition(TOPIC, 0).map_or(0, |view| view.compacted_to))
}

/// Everything but the segment that grows is compacted, on these nodes.
async fn compacted(cluster: &Cluster, nodes: &[NodeId]) -> i64 {
    let leader = cluster.leader(0).await;
    let due = || segments(cluster, leader).last().map_or(0, |last| last.name.base_offset);
    eventually("all that may be is compacted", || {
        due() > 0 && nodes.iter().all(|node| compacted_to(cluster, *node) == due())
    })
    .await;
    due()
}

/// What a client reads on a node; from every offset on it must be the rest of that.
async fn read(cluster: &Cluster, node: NodeId) -> Records {
    let log = cluster.node(node).shard(0).log(TOPIC, 0).unwrap();
    let (start, end) = (log.start_offset(), log.end_offset());
    let mut records = Records::new();
    let mut from = start;
    while from < end {
        let batches = log.read(from, 4_000, true).await.unwrap();
        assert!(!batches.is_empty(), "nothing at {from} of {start}..{end}");
        for mut bytes in batches {
            while !bytes.is_empty() {
                let len = 12 + u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
                let (header, decoded) = decode_batch(&bytes.split_to(len), 1 << 20).unwrap();
                assert!(header.base_offset >= from || header.last_offset() >= from, "{from} {header:?}");
                from = header.last_offset() + 1;
                for record in decoded.into_iter().filter(|record| record.offset >= start) {
                    let key = record.key.unwrap_or_default().to_vec();
                    let before = records.insert(record.offset, (key, record.value.map(|value| value.to_vec())));
                    assert!(before.is_none(), "{} is there twice", record.offset);
                }
            }
        }
    }
    for offset in start..end {
        let batches = log.read(offset, 1, true).await.unwrap();
        let (header, _) = decode_batch(&batches[0], 1 << 20).unwrap();
        assert!(header.last_offset() >= offset, "{offset} {header:?}");
        let next = records.range(offset..).next().map(|(next, _)| *next);
        assert!(
            next.is_none_or(|next| next >= header.base_offset),
            "{next:?} was passed over from {offset}: {header:?}"
        );
    }
    records
}

fn path(cluster: &Cluster, node: NodeId, entry: &SegmentEntry) -> PathBuf {
    let data = cluster.directory(node).join("data").join("0").join(format!("{TOPIC}-0"));
    data.join(entry.name.log_file())
}

/// The nodes have the same segments, in files that are the same byte by byte, and no others.
async fn same_files(cluster: &Cluster, nodes: &[NodeId]) {
    let expected = segments(cluster, nodes[0]);
    for node in nodes {
        assert_eq!(segments(cluster, *node), expected, "node {node}");
        eventually("old files are gone, new ones whole", || {
            let files = std::fs::read_dir(path(cluster, *node, &expected[0]).parent().unwrap()).unwrap();
            let logs = files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|it| it == "log"));
            logs.count() == expected.len()
                && expected.iter().all(|entry| {
                    let content = std::fs::read(path(cluster, *node, entry)).unwrap_or_default();
                    content.len() as u64 == entry.len && crc32c::crc32c(&content) == entry.crc32c
                })
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_record_of_each_key_stays_in_the_same_files_everywhere() {
    let cluster = Cluster::start_changed(3, 1, SELDOM, compacting).await;
    cluster.create_topic_with(COMPACTED).await;
    let mut writer = Writer::new(&cluster, 1);
    for _ in 0..3 {
        writer.some(60, 10, 0.1).await;
        let compacted_to = compacted(&cluster, &[1, 2, 3]).await;
        let left = writer.left(compacted_to);
        assert!(left.len() < writer.written.len() / 2, "{} of {}", left.len(), writer.written.len());
        for node in [1, 2, 3] {
            assert_eq!(read(&cluster, node).await, left, "node {node}");
        }
    }
    same_files(&cluster, &[1, 2, 3]).await;
    cluster.assert_equal(0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_find_what_was_compacted_before_and_after_the_last_checkpoint() {
    let mut cluster = Cluster::start_changed(3, 1, SELDOM, compacting).await;
    cluster.create_topic_with(COMPACTED).await;
    let mut written = Records::new();
    for round in 0..3 {
        let left = {
            let mut writer = Writer::new(&cluster, round);
            writer.written = written;
            writer.some(40, 12, 0.1).await;
            let compacted_to = compacted(&cluster, &[1, 2, 3]).await;
            let left = writer.left(compacted_to);
            written = writer.written;
            left
        };
        if round == 1 {
            // Checkpoints follow, and the old files go. The first restart comes before any checkpoint has the partition.
            same_files(&cluster, &[1, 2, 3]).await;
        }
        for node in [1, 2, 3] {
            cluster.stop_node(node).await;
        }
        for node in [1, 2, 3] {
            cluster.start_node(node).await;
        }
        cluster.level(0).await;
        let leader = cluster.leader(0).await;
        let shard = cluster.node(leader).shard(0);
        eventually("the log is back", || {
            shard.log(TOPIC, 0).is_some_and(|log| log.end_offset() == written.len() as i64)
        })
        .await;
        drop(shard);
        for node in [1, 2, 3] {
            let found = read(&cluster, node).await;
            // What was dirty then may be compacted by now; nothing comes back.
            assert!(found.iter().all(|(offset, record)| left.get(offset) == Some(record)), "node {node}");
            let mut writer = Writer::new(&cluster, 0);
            writer.written = std::mem::take(&mut written);
            let least = writer.left(compacted_to(&cluster, node));
            assert!(least.iter().all(|(offset, record)| found.get(offset) == Some(record)), "node {node}");
            written = writer.written;
        }
    }
    cluster.stop().await;
}

/// Three nodes with a little in the log, of which one follower, which is named, has been stopped since.
async fn without_one(checkpoint_journal_bytes: u64, seed: u64) -> (Cluster, NodeId, Records) {
    let mut cluster = Cluster::start_changed(3, 1, checkpoint_journal_bytes, steady).await;
    cluster.create_topic_with(COMPACTED).await;
    let mut writer = Writer::new(&cluster, seed);
    writer.some(10, 10, 0.1).await;
    let written = writer.written;
    cluster.level(0).await;
    let late = cluster.leader(0).await % 3 + 1;
    cluster.stop_node(late).await;
    (cluster, late, written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_fetches_what_was_compacted_meanwhile() {
    let (mut cluster, late, written) = without_one(SELDOM, 3).await;
    let rest: Vec<NodeId> = (1..=3).filter(|node| *node != late).collect();
    let mut writer = Writer::new(&cluster, 4);
    writer.written = written;
    writer.some(60, 10, 0.1).await;
    let compacted_to = compacted(&cluster, &rest).await;
    let left = writer.left(compacted_to);
    cluster.start_node(late).await;
    cluster.level(0).await;
    same_files(&cluster, &[rest[0], rest[1], late]).await;
    for node in 1..=3 {
        assert_eq!(read(&cluster, node).await, left, "node {node}");
    }
    cluster.assert_equal(0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_brings_compacted_segments_to_a_node_far_behind() {
    let (mut cluster, late, written) = without_one(16 << 10, 5).await;
    let rest: Vec<NodeId> = (1..=3).filter(|node| *node != late).collect();
    let mut writer = Writer::new(&cluster, 6);
    writer.written = written;
    let leader = cluster.leader(0).await;
    let shard = cluster.node(leader).shard(0);
    while shard.raft_status().purged.is_none_or(|purged| purged < 60) {
        writer.some(20, 10, 0.1).await;
    }
    drop(shard);
    let compacted_to = compacted(&cluster, &rest).await;
    let left = writer.left(compacted_to);
    cluster.start_node(late).await;
    cluster.level(0).await;
    same_files(&cluster, &[rest[0], rest[1], late]).await;
    assert_eq!(read(&cluster, late).await, left);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tombstones_stay_for_their_time_and_go_then() {
    for (retention_ms, stay) in [("0", false), ("3600000", true)] {
        let cluster = Cluster::start_changed(1, 1, SELDOM, compacting).await;
        let settings = [COMPACTED, &[("delete.retention.ms", retention_ms)]].concat();
        cluster.create_topic_with(&settings).await;
        let mut writer = Writer::new(&cluster, 7);
        writer.batch(Compression::Zstd, &[(b"a", Some(b"1")), (b"b", Some(b"1"))]).await;
        writer.batch(Compression::Zstd, &[(b"a", None)]).await;
        // The first compaction that meets the tombstone says how long it stays, a later one removes it.
        for round in 0..3 {
            writer.some(40 + round, 5, 0.0).await;
            compacted(&cluster, &[1]).await;
        }
        let found = read(&cluster, 1).await;
        assert_eq!(found.get(&0), None, "a deleted record");
        assert_eq!(found.get(&1), Some(&(b"b".to_vec(), Some(b"1".to_vec()))));
        assert_eq!(found.contains_key(&2), stay, "a tombstone that is kept for {retention_ms} ms");
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_memory_takes_more_rounds_to_the_same_end() {
    let cluster = Cluster::start_changed(1, 1, SELDOM, forgetful).await;
    cluster.create_topic_with(COMPACTED).await;
    let mut writer = Writer::new(&cluster, 8);
    writer.some(150, 40, 0.1).await;
    let compacted_to = compacted(&cluster, &[1]).await;
    assert_eq!(read(&cluster, 1).await, writer.left(compacted_to));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_may_be_deleted_before_and_after() {
    let cluster = Cluster::start_changed(3, 1, SELDOM, compacting).await;
    let both = [("cleanup.policy", "compact,delete"), ("min.cleanable.dirty.ratio", "0"), ("retention.ms", "-1")];
    cluster.create_topic_with(&both).await;
    let mut writer = Writer::new(&cluster, 9);
    let mut start = 0;
    for round in 0..4 {
        writer.some(40, 15, 0.1).await;
        if round % 2 == 1 {
            compacted(&cluster, &[1, 2, 3]).await;
        }
        // Within a segment, which may be a compacted one; offsets that are gone are as good as others.
        start += writer.random.random_range(10..40);
        let wanted = NewLogStart { topic_id: TOPIC, partition: 0, offset: start };
        let op = Op::AdvanceLogStart(AdvanceLogStart { partitions: vec![wanted] });
        assert_eq!(cluster.propose(0, op, Bytes::new()).await, Reply::LogStarts(vec![Ok(start)]));
    }
    writer.some(40, 15, 0.1).await;
    let compacted_to = compacted(&cluster, &[1, 2, 3]).await;
    let left: Records = writer.left(compacted_to).into_iter().filter(|(offset, _)| *offset >= start).collect();
    for node in [1, 2, 3] {
        assert_eq!(read(&cluster, node).await, left, "node {node}");
    }
    same_files(&cluster, &[1, 2, 3]).await;
    cluster.stop().await;
}

/// The first batch of a file, with more than one offset, whose base offset still lies between those of its neighbours when this bit of it is flipped: where that
/// byte is.
fn offset_that_may_flip(content: &[u8], bit: u8) -> Option<usize> {
    let mut bases = vec![(0, i64::from_be_bytes(content[..8].try_into().unwrap()))];
    let mut at = 12 + u32::from_be_bytes(content[8..12].try_into().unwrap()) as usize;
    while at < content.len() {
        bases.push((at, i64::from_be_bytes(content[at..at + 8].try_into().unwrap())));
        at += 12 + u32::from_be_bytes(content[at + 8..at + 12].try_into().unwrap()) as usize;
    }
    let fits = |three: &&[(usize, i64)]| {
        let flipped = three[1].1 ^ i64::from(bit);
        content[three[1].0 + 26] > 0 && three[0].1 + 3 < flipped && flipped + 3 < three[2].1
    };
    bases.windows(3).find(fits).map(|three| three[1].0 + 7)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_is_given_another_offset_or_passed_over_by_a_bit_that_flips() {
    for (is_read_before, ends_early) in [(false, false), (false, true), (true, false), (true, true)] {
        let cluster = Cluster::start_changed(1, 1, SELDOM, compacting).await;
        cluster.create_topic_with(COMPACTED).await;
        let mut writer = Writer::new(&cluster, 10);
        writer.some(80, 30, 0.0).await;
        let left = writer.left(compacted(&cluster, &[1]).await);
        if is_read_before {
            assert_eq!(read(&cluster, 1).await, left);
        }
        let files = segments(&cluster, 1).into_iter().map(|entry| path(&cluster, 1, &entry));
        let flips = files.filter_map(|path| {
            let content = std::fs::read(&path).unwrap();
            let (at, bit) =
                (0..8).map(|bit| 1 << bit).find_map(|bit| Some((offset_that_may_flip(&content, bit)?, bit)))?;
            Some((path, content, at, bit))
        });
        let (path, whole, at, bit) = flips.into_iter().next().expect("a batch with room around it");
        // Its base offset changes, or it seems to end before its last record.
        let mut damaged = whole.clone();
        match ends_early {
            true => damaged[at + 19] = 0,
            false => damaged[at] ^= bit,
        }
        std::fs::write(&path, &damaged).unwrap();
        let log = cluster.node(1).shard(0).log(TOPIC, 0).unwrap();
        let mut refused = 0;
        for offset in log.start_offset()..log.end_offset() {
            let Ok(batches) = log.read(offset, 4_000, true).await else {
                refused += 1;
                continue;
            };
            let mut given = Records::new();
            for mut bytes in batches {
                while !bytes.is_empty() {
                    let len = 12 + u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
                    let (_, records) = decode_batch(&bytes.split_to(len), 1 << 20).unwrap();
                    for record in records {
                        let key = record.key.unwrap_or_default().to_vec();
                        given.insert(record.offset, (key, record.value.map(|value| value.to_vec())));
                    }
                }
            }
            let given: Vec<_> = given.range(offset..).collect();
            let due: Vec<_> = left.range(offset..).take(given.len()).collect();
            assert_eq!(given, due, "from {offset} on");
        }
        assert!(refused > 0, "nothing was damaged");
        std::fs::write(&path, &whole).unwrap();
        // What was found damaged is looked at again after a while.
        let looking_again = async {
            for offset in log.start_offset()..log.end_offset() {
                while log.read(offset, 1, true).await.is_err() {
                    TokioEnv::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        timeout::<TokioEnv, _>(Duration::from_secs(30), looking_again).await.expect("it can be read");
        assert_eq!(read(&cluster, 1).await, left);
        cluster.stop().await;
    }
}
