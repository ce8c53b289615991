//! Partitions that come and go, waiters, and many of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::{Effect, SegmentLimits, TopicId};
use lockstep_env::Env;
use tokio::sync::Notify;

use crate::error::StartError;
use crate::partition::ReadError;
use crate::storage::SegmentName;
use crate::storage::segment::PartitionKey;
use crate::storage::staging::Staging;
use crate::storage::store::URGENT_BYTES;
use crate::storage::tests::batch::batch;
use crate::storage::tests::memory_env::{MemoryDisk, MemoryEnv};
use crate::storage::tests::scenario::{Options, Replica, Shape, random_entries, small};

const TOPIC: TopicId = TopicId([7; 16]);

fn create(partition: u32) -> Effect {
    Effect::CreatePartition { topic_id: TOPIC, partition }
}

fn drop_partition(partition: u32) -> Effect {
    Effect::DropPartition { topic_id: TOPIC, partition }
}

fn append(replica: &Replica, partition: u32, base_offset: i64) -> Result<(), String> {
    append_content(replica, partition, base_offset, b"content")
}

fn append_content(replica: &Replica, partition: u32, base_offset: i64, content: &[u8]) -> Result<(), String> {
    replica.append((TOPIC, partition), base_offset, batch(1, 1, content))
}

#[tokio::test]
async fn waiters_are_woken_by_appends_and_by_the_end() {
    let replica = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    replica.store.apply(&create(0), &Bytes::new()).unwrap();
    let log = replica.log((TOPIC, 0));
    let waiter = Arc::new(Notify::new());
    log.wake_on_append(&waiter);
    for _ in 0..100 {
        log.wake_on_append(&Arc::new(Notify::new()));
    }
    append(&replica, 0, 0).unwrap();
    waiter.notified().await;
    append(&replica, 0, 1).unwrap();
    waiter.notified().await;
    assert_eq!(log.end_offset(), 2);
    replica.store.apply(&drop_partition(0), &Bytes::new()).unwrap();
    waiter.notified().await;
    assert!(matches!(log.read(0, 100, true).await, Err(ReadError::Gone)));
    assert!(replica.store.log(TOPIC, 0).is_none());
}

#[tokio::test]
async fn files_of_a_dropped_partition_outlive_the_checkpoint_that_lists_them() {
    let mut replica = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    for partition in 0..2 {
        replica.store.apply(&create(partition), &Bytes::new()).unwrap();
        append(&replica, partition, 0).unwrap();
    }
    replica.applied = 1;
    replica.checkpoint().await.unwrap();
    append(&replica, 1, 1).unwrap();
    let before_drop = replica.store.prepare_checkpoint();
    replica.store.apply(&drop_partition(1), &Bytes::new()).unwrap();
    // A checkpoint from before the drop lists the partition with all it had.
    let segments = replica.store.sync_for(&before_drop).await.unwrap();
    assert_eq!(segments[1].next_offset, 2);
    replica.store.checkpointed(before_drop).await;
    replica.removed().await;
    assert_eq!(replica.log_files().len(), 2);

    let pin = replica.store.pin();
    replica.checkpoint().await.unwrap();
    assert_eq!(replica.log_files().len(), 2, "pinned");
    let name = SegmentName { topic_id: TOPIC, partition: 1, base_offset: 0, revision: 0 };
    assert_eq!(replica.store.read_chunk(&name, 0, 1 << 20).await.unwrap().len() as u64, segments[1].len);
    drop(pin);
    replica.checkpoint().await.unwrap();
    assert_eq!(replica.log_files().len(), 1);
    assert_eq!(replica.store.read_chunk(&name, 0, 10).await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn effects_that_contradict_the_log_are_refused() {
    let replica = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    assert!(append(&replica, 0, 0).is_err());
    assert!(replica.store.apply(&drop_partition(0), &Bytes::new()).is_err());
    replica.store.apply(&create(0), &Bytes::new()).unwrap();
    assert!(replica.store.apply(&create(0), &Bytes::new()).is_err());
    assert!(append(&replica, 0, 1).is_err());
    let payload = Bytes::from(batch(2, 1, b"content"));
    let len = payload.len() as u32;
    for (payload_start, payload_len, next_offset) in
        [(0, len, 1), (0, len - 1, 2), (1, len, 2), (u32::MAX, u32::MAX, 2), (0, 60, 2), (0, 0, 2)]
    {
        let effect = Effect::Append {
            topic_id: TOPIC,
            partition: 0,
            payload_start,
            payload_len,
            base_offset: 0,
            next_offset,
            leader_epoch: 1,
            log_append_time_ms: Some(5),
            limits: replica.limits(),
        };
        assert!(replica.store.apply(&effect, &payload).is_err(), "{effect:?}");
    }
    append(&replica, 0, 0).unwrap();
}

#[tokio::test]
async fn segments_that_a_checkpoint_lists_must_be_there() {
    let entries = random_entries(3, Shape { entries: 40, content_max: 900, drops: false, deletes: false });
    let disk = MemoryDisk::default();
    let mut replica = Replica::open(&disk, small()).await.unwrap();
    replica.apply(&entries).unwrap();
    replica.checkpoint().await.unwrap();
    replica.store.close().await;
    let (path, content) = replica.log_files().pop_first().unwrap();
    disk.set_content(&path, content[..content.len() - 1].to_vec());
    match Replica::open(&disk, small()).await.err() {
        Some(StartError::Damaged { path: told, offset, .. }) => {
            assert_eq!((Path::new(&told), offset), (path.as_path(), content.len() as u64 - 1));
        }
        other => panic!("{other:?}"),
    }
    disk.remove(&path);
    assert!(matches!(Replica::open(&disk, small()).await.err(), Some(StartError::Damaged { .. })));
    disk.set_content(Path::new("/raft/checkpoints/3"), b"nonsense".to_vec());
    assert!(matches!(Replica::open(&disk, small()).await.err(), Some(StartError::Damaged { .. })));
}

#[tokio::test]
async fn opening_does_not_read_what_is_in_the_segments() {
    let disk = MemoryDisk::default();
    let mut replica = Replica::open(&disk, small()).await.unwrap();
    for partition in 0..3_000 {
        replica.store.apply(&create(partition), &Bytes::new()).unwrap();
        append(&replica, partition, 0).unwrap();
    }
    replica.applied = 1;
    replica.checkpoint().await.unwrap();
    replica.store.close().await;
    let before = disk.opened();
    let replica = Replica::open(&disk, small()).await.unwrap();
    // Each segment once, for its length, and the checkpoint.
    assert_eq!(disk.opened() - before, 3_001);
    for partition in [0, 1_234, 2_999] {
        let log = replica.log((TOPIC, partition));
        assert_eq!((log.start_offset(), log.end_offset()), (0, 1));
        assert_eq!(log.read(0, 1_000, false).await.unwrap().concat().len(), 61 + 7);
    }
}

#[tokio::test]
async fn the_store_writes_behind_on_its_own() {
    let replica = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    replica.store.apply(&create(0), &Bytes::new()).unwrap();
    append(&replica, 0, 0).unwrap();
    while replica.log_files().values().all(Vec::is_empty) {
        tokio::task::yield_now().await;
    }
    replica.store.writable().await;
    replica.store.close().await;
}

fn truncate(replica: &Replica, start_offset: i64) -> Result<(), String> {
    replica.store.apply(&Effect::TruncateBefore { topic_id: TOPIC, partition: 0, start_offset }, &Bytes::new())
}

/// Partition 0 with so many segments of one record each.
async fn segments_of_one(disk: &MemoryDisk, count: i64) -> Replica {
    let options = Options { segment_bytes: 1, ..small() };
    let mut replica = Replica::open(disk, options).await.unwrap();
    replica.store.apply(&create(0), &Bytes::new()).unwrap();
    for offset in 0..count {
        append(&replica, 0, offset).unwrap();
    }
    replica.applied = 1;
    replica
}

fn bases(replica: &Replica) -> Vec<i64> {
    replica.log_files().keys().map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn files_of_deleted_records_outlive_the_checkpoint_that_lists_them() {
    let disk = MemoryDisk::default();
    let replica = segments_of_one(&disk, 5).await;
    replica.checkpoint().await.unwrap();
    append(&replica, 0, 5).unwrap();
    let before = replica.store.prepare_checkpoint();
    truncate(&replica, 3).unwrap();
    assert!(replica.store.removal_awaits_checkpoint());
    assert_eq!(replica.store.segments(TOPIC, 0).len(), 3);
    // A checkpoint from before the deletion lists all segments.
    let segments = replica.store.sync_for(&before).await.unwrap();
    assert_eq!(segments.len(), 6);
    replica.store.checkpointed(before).await;
    replica.removed().await;
    assert_eq!(bases(&replica), [0, 1, 2, 3, 4, 5]);

    let pin = replica.store.pin();
    let manifest = replica.checkpoint().await.unwrap();
    assert_eq!(manifest.segments.iter().map(|entry| entry.name.base_offset).collect::<Vec<_>>(), [3, 4, 5]);
    assert!(!replica.store.removal_awaits_checkpoint());
    assert_eq!(bases(&replica), [0, 1, 2, 3, 4, 5], "pinned");
    let read = replica.store.read_chunk(&segments[1].name, 0, 1 << 20).await.unwrap();
    assert_eq!(read.len() as u64, segments[1].len);
    drop(pin);
    replica.checkpoint().await.unwrap();
    assert_eq!(bases(&replica), [3, 4, 5]);
    assert_eq!(
        replica.store.read_chunk(&segments[1].name, 0, 10).await.unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    replica.store.close().await;
    let replica = Replica::open(&disk, small()).await.unwrap();
    let log = replica.log((TOPIC, 0));
    assert_eq!((log.start_offset(), log.end_offset()), (3, 6));
}

#[tokio::test]
async fn a_log_of_which_all_was_deleted_goes_on_where_it_ended() {
    let disk = MemoryDisk::default();
    let mut replica = segments_of_one(&disk, 3).await;
    truncate(&replica, 3).unwrap();
    let log = replica.log((TOPIC, 0));
    assert_eq!((log.start_offset(), log.end_offset()), (3, 3));
    assert!(log.read(3, 100, true).await.unwrap().is_empty());
    assert!(matches!(log.read(2, 100, true).await, Err(ReadError::OutOfRange { start: 3, end: 3 })));
    assert_eq!(log.offset_for_time(0, 0).await.unwrap(), None);
    assert_eq!(log.max_timestamp().await.unwrap(), None);
    replica.checkpoint().await.unwrap();
    assert_eq!(bases(&replica), [0_i64; 0]);
    replica.store.close().await;
    replica = Replica::open(&disk, small()).await.unwrap();
    assert_eq!((replica.log((TOPIC, 0)).start_offset(), replica.log((TOPIC, 0)).end_offset()), (3, 3));
    append(&replica, 0, 3).unwrap();
    replica.checkpoint().await.unwrap();
    assert_eq!(bases(&replica), [3]);
}

#[tokio::test]
async fn deletions_that_contradict_the_log_are_refused() {
    let replica = segments_of_one(&MemoryDisk::default(), 3).await;
    truncate(&replica, 1).unwrap();
    for start_offset in [-1, 0, 1, 4, i64::MAX] {
        assert!(truncate(&replica, start_offset).is_err(), "{start_offset}");
    }
    let elsewhere = Effect::TruncateBefore { topic_id: TOPIC, partition: 1, start_offset: 1 };
    assert!(replica.store.apply(&elsewhere, &Bytes::new()).is_err());
}

#[tokio::test]
async fn a_segment_ends_when_a_batch_is_too_late_or_too_long_for_it() {
    let replica = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    replica.store.apply(&create(0), &Bytes::new()).unwrap();
    let mut offset = 0;
    let mut send = |timestamp_ms: i64, limits: SegmentLimits| {
        let payload = Bytes::from(batch(1, timestamp_ms, b"content"));
        let effect = Effect::Append {
            topic_id: TOPIC,
            partition: 0,
            payload_start: 0,
            payload_len: payload.len() as u32,
            base_offset: offset,
            next_offset: offset + 1,
            leader_epoch: 1,
            log_append_time_ms: None,
            limits,
        };
        offset += 1;
        replica.store.apply(&effect, &payload).unwrap();
        replica.store.segments(TOPIC, 0).iter().map(|entry| entry.name.base_offset).collect::<Vec<_>>()
    };
    let ms = |ms| SegmentLimits { ms, ..replica.limits() };
    assert_eq!(send(1_000, ms(100)), [0]);
    assert_eq!(send(1_100, ms(100)), [0], "as late as it may be");
    assert_eq!(send(50, ms(100)), [0], "earlier than the first");
    assert_eq!(send(1_101, ms(100)), [0, 3]);
    assert_eq!(send(5_000, ms(10_000)), [0, 3], "the setting at this position counts");
    let short = SegmentLimits { bytes: 2 * (61 + 7), ms: 10_000 };
    assert_eq!(send(5_000, short), [0, 3, 5]);
    assert_eq!(send(5_000, short), [0, 3, 5]);
    assert_eq!(send(5_000, short), [0, 3, 5, 7]);
}

#[tokio::test]
async fn what_is_staged_survives_a_power_cut_in_a_directory_that_was_just_made() {
    let disk = MemoryDisk::default();
    let replica = Replica::open(&disk, small()).await.unwrap();
    // What creates the store makes the data directory durable; the partition's is made by the first write.
    replica.store.apply(&create(0), &Bytes::new()).unwrap();
    append(&replica, 0, 0).unwrap();
    replica.store.flush().await.unwrap();
    let key = PartitionKey { topic_id: TOPIC, partition: 0 };
    let name = SegmentName { revision: 1, ..SegmentName::appended(key, 0) };
    let mut staging = Staging::begin(&replica.store, name).await.unwrap();
    staging.write(Bytes::from(batch(1, 1, b"compacted"))).await.unwrap();
    staging.finish().await.unwrap();
    for seed in 0..20 {
        let disk = disk.after_power_cut(seed);
        let replica = Replica::open(&disk, small()).await.unwrap();
        replica.store.apply(&create(0), &Bytes::new()).unwrap();
        assert!(replica.store.has_compacted(name), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_segments_are_written_is_written_at_once_when_it_is_much() {
    let replica = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    replica.store.apply(&create(0), &Bytes::new()).unwrap();
    let content = vec![7; usize::try_from(2 * URGENT_BYTES).unwrap()];
    let began = MemoryEnv::now();
    let opened_before = replica.disk.opened();
    append_content(&replica, 0, 0, &content).unwrap();
    while replica.disk.opened() == opened_before {
        tokio::task::yield_now().await;
    }
    assert!(replica.log_files().values().all(Vec::is_empty), "the first batch is not written yet");
    append_content(&replica, 0, 1, &content).unwrap();
    while replica.log_files().values().map(Vec::len).sum::<usize>() < 2 * content.len() {
        MemoryEnv::sleep(Duration::from_millis(1)).await;
    }
    let took = MemoryEnv::now() - began;
    assert!(took < Duration::from_millis(100), "the second batch waited for the next look: {took:?}");
}
