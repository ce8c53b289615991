//! Partitions that come and go, waiters, and many of them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::{Effect, TopicId};
use tokio::sync::Notify;

use crate::error::StartError;
use crate::partition::ReadError;
use crate::storage::SegmentName;
use crate::storage::tests::batch::batch;
use crate::storage::tests::memory_env::MemoryDisk;
use crate::storage::tests::scenario::{Replica, Shape, random_entries, small};

const TOPIC: TopicId = TopicId([7; 16]);

fn create(partition: u32) -> Effect {
    Effect::CreatePartition { topic_id: TOPIC, partition }
}

fn drop_partition(partition: u32) -> Effect {
    Effect::DropPartition { topic_id: TOPIC, partition }
}

fn append(replica: &Replica, partition: u32, base_offset: i64) -> Result<(), String> {
    let payload = Bytes::from(batch(1, 1, b"content"));
    let effect = Effect::Append {
        topic_id: TOPIC,
        partition,
        payload_start: 0,
        payload_len: payload.len() as u32,
        base_offset,
        next_offset: base_offset + 1,
        leader_epoch: 1,
        log_append_time_ms: None,
    };
    replica.store.apply(&effect, &payload)
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
    assert_eq!(replica.log_files().len(), 2);

    let pin = replica.store.pin();
    replica.checkpoint().await.unwrap();
    assert_eq!(replica.log_files().len(), 2, "pinned");
    let name = SegmentName { topic_id: TOPIC, partition: 1, base_offset: 0 };
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
        };
        assert!(replica.store.apply(&effect, &payload).is_err(), "{effect:?}");
    }
    append(&replica, 0, 0).unwrap();
}

#[tokio::test]
async fn segments_that_a_checkpoint_lists_must_be_there() {
    let entries = random_entries(3, Shape { entries: 40, content_max: 900, drops: false });
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
