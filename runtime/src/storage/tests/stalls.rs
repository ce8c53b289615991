//! What takes long holds up nothing that could go on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::op::CompactedSegment;
use lockstep_core::{Effect, TopicId};
use lockstep_env::{Env, timeout};

use crate::partition::ReadError;
use crate::storage::check::{Checked, Pace};
use crate::storage::repair::{REPAIRING, Repair, Replaced};
use crate::storage::segment::PartitionKey;
use crate::storage::staging::Staging;
use crate::storage::tests::batch::batch;
use crate::storage::tests::memory_env::{MemoryDisk, MemoryEnv};
use crate::storage::tests::scenario::{Options, Replica, STORE_DIR};
use crate::storage::{Cache, SegmentName};

const KEY: PartitionKey = PartitionKey { topic_id: TopicId([7; 16]), partition: 0 };
const OTHER: PartitionKey = PartitionKey { partition: 1, ..KEY };
/// More than anything takes that is not held up.
const LONG: Duration = Duration::from_secs(20);

/// Nothing is kept in memory that is written.
fn options(segment_bytes: u64) -> Options {
    Options::new(segment_bytes, Cache::new(0))
}

fn create(replica: &Replica, key: PartitionKey) -> Result<(), String> {
    let effect = Effect::CreatePartition { topic_id: key.topic_id, partition: key.partition };
    replica.store.apply(&effect, &Bytes::new())
}

/// Appends a record of so many bytes.
fn append(replica: &Replica, key: PartitionKey, len: usize) {
    let key = (key.topic_id, key.partition);
    let base_offset = replica.log(key).end_offset();
    replica.append(key, base_offset, batch(1, base_offset, &vec![base_offset as u8; len])).unwrap();
}

fn path_of(name: SegmentName) -> PathBuf {
    Path::new(STORE_DIR).join(name.key().directory()).join(name.log_file())
}

/// Removes all index files.
fn without_indexes(disk: &MemoryDisk) {
    for path in disk.files().into_keys().filter(|path| path.extension().is_some_and(|end| end == "index")) {
        disk.remove(&path);
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_take_long_to_remove_hold_up_no_writes() {
    let disk = MemoryDisk::default();
    let replica = Replica::open(&disk, options(3_000)).await.unwrap();
    for key in [KEY, OTHER] {
        create(&replica, key).unwrap();
        for _ in 0..20 {
            append(&replica, key, 1_000);
        }
    }
    replica.checkpoint().await.unwrap();
    let files = |key: PartitionKey| {
        let directory = Path::new(STORE_DIR).join(key.directory());
        replica.log_files().keys().filter(|path| path.starts_with(&directory)).count()
    };
    let before = (files(KEY), files(OTHER));
    let removals = disk.hold_removals().await;
    let drop = Effect::DropPartition { topic_id: KEY.topic_id, partition: KEY.partition };
    replica.store.apply(&drop, &Bytes::new()).unwrap();
    let truncate = Effect::TruncateBefore { topic_id: OTHER.topic_id, partition: OTHER.partition, start_offset: 15 };
    replica.store.apply(&truncate, &Bytes::new()).unwrap();
    let checkpointed = async {
        replica.checkpoint().await.unwrap();
    };
    let goes_on = async {
        // Until the removal is under way.
        MemoryEnv::sleep(Duration::from_secs(5)).await;
        append(&replica, OTHER, 1_000);
        timeout::<MemoryEnv, _>(LONG, replica.store.flush()).await.expect("a flush waits for a removal").unwrap();
        // And the store's own task.
        append(&replica, OTHER, 1_000);
        MemoryEnv::sleep(LONG).await;
        assert!(replica.store.is_written_to(OTHER.topic_id, OTHER.partition, 22), "nothing is written behind");
        assert_eq!((files(KEY), files(OTHER) >= before.1), (before.0, true), "they are not removed yet");
        assert!(create(&replica, KEY).is_err(), "its directory is being removed");
        std::mem::drop(removals);
    };
    futures_util::future::join(checkpointed, goes_on).await;
    assert_eq!(files(KEY), 0);
    assert_eq!(replica.store.segments(OTHER.topic_id, OTHER.partition).len(), files(OTHER));
    create(&replica, KEY).unwrap();
    append(&replica, KEY, 1_000);
    replica.checkpoint().await.unwrap();
    assert_eq!(files(KEY), 1);
}

#[tokio::test]
async fn who_needs_one_partition_keeps_no_files_of_others() {
    let disk = MemoryDisk::default();
    let replica = Replica::open(&disk, options(3_000)).await.unwrap();
    for key in [KEY, OTHER] {
        create(&replica, key).unwrap();
        for _ in 0..20 {
            append(&replica, key, 1_000);
        }
    }
    replica.checkpoint().await.unwrap();
    let files = |key: PartitionKey| {
        let directory = Path::new(STORE_DIR).join(key.directory());
        replica.log_files().keys().filter(|path| path.starts_with(&directory)).count()
    };
    let before = files(KEY);
    let pins = [0, 1].map(|_| replica.store.pin_partition(KEY.topic_id, KEY.partition));
    for key in [KEY, OTHER] {
        let truncate = Effect::TruncateBefore { topic_id: key.topic_id, partition: key.partition, start_offset: 20 };
        replica.store.apply(&truncate, &Bytes::new()).unwrap();
    }
    for pin in pins {
        replica.checkpoint().await.unwrap();
        assert_eq!((files(KEY), files(OTHER)), (before, 0));
        drop(pin);
    }
    replica.checkpoint().await.unwrap();
    assert_eq!((files(KEY), files(OTHER)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_is_read_for_its_index_holds_up_neither_other_reads_nor_writes() {
    let disk = MemoryDisk::default();
    let replica = Replica::open(&disk, options(100_000)).await.unwrap();
    create(&replica, KEY).unwrap();
    for _ in 0..300 {
        append(&replica, KEY, 1_000);
    }
    replica.checkpoint().await.unwrap();
    replica.store.close().await;
    without_indexes(&disk);
    let replica = Replica::open(&disk, options(100_000)).await.unwrap();
    let [first, second, ..] = replica.store.segments(KEY.topic_id, KEY.partition)[..] else { panic!("segments") };
    let reads = disk.hold_reads(&path_of(first.name)).await;
    let log = replica.log((KEY.topic_id, KEY.partition));
    let held_up = async {
        assert!(!log.read(50, 100, true).await.unwrap().is_empty());
    };
    let go_on = async {
        MemoryEnv::sleep(Duration::from_secs(1)).await;
        let offset = second.name.base_offset + 50;
        let read = timeout::<MemoryEnv, _>(LONG, log.read(offset, 100, true)).await;
        assert!(!read.expect("another segment's index is waited for").unwrap().is_empty());
        // Segments are closed, and their indexes written.
        for _ in 0..300 {
            append(&replica, KEY, 1_000);
        }
        timeout::<MemoryEnv, _>(LONG, replica.store.flush()).await.expect("a flush waits for an index").unwrap();
        drop(reads);
    };
    futures_util::future::join(held_up, go_on).await;
    // What could not be done at once is, by the next checkpoint at the latest.
    replica.checkpoint().await.unwrap();
    let segments = replica.store.segments(KEY.topic_id, KEY.partition);
    let files = disk.files();
    for segment in &segments[3..segments.len() - 1] {
        assert!(files.contains_key(&path_of(segment.name).with_extension("index")), "{segment:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_read_a_log_for_its_index() {
    let disk = MemoryDisk::default();
    let replica = Replica::open(&disk, options(300_000)).await.unwrap();
    create(&replica, KEY).unwrap();
    for _ in 0..200 {
        append(&replica, KEY, 1_000);
    }
    replica.checkpoint().await.unwrap();
    replica.store.close().await;
    without_indexes(&disk);
    // Now the first part of the segment is in the file alone, and its index nowhere.
    let replica = Replica::open(&disk, options(300_000)).await.unwrap();
    let name = replica.store.listed_segments()[0];
    let reads = disk.hold_reads(&path_of(name)).await;
    for _ in 0..200 {
        append(&replica, KEY, 1_000);
    }
    timeout::<MemoryEnv, _>(LONG, replica.store.flush()).await.expect("a flush reads the log").unwrap();
    drop(reads);
    replica.checkpoint().await.unwrap();
    assert!(disk.files().contains_key(&path_of(name).with_extension("index")));
    let log = replica.log((KEY.topic_id, KEY.partition));
    for offset in [0, 150, 250, 399] {
        assert!(!log.read(offset, 100, true).await.unwrap().is_empty());
    }
}

/// A partition whose first segment is a compacted one, with nothing in memory. The log's batches are all as they were.
async fn compacted(disk: &MemoryDisk) -> (Replica, SegmentName) {
    let replica = Replica::open(disk, options(300_000)).await.unwrap();
    create(&replica, KEY).unwrap();
    for _ in 0..400 {
        append(&replica, KEY, 1_000);
    }
    replica.checkpoint().await.unwrap();
    let [before, ..] = replica.store.segments(KEY.topic_id, KEY.partition)[..] else { panic!("segments") };
    let name = SegmentName { revision: 1, ..before.name };
    let mut staging = Staging::begin(&replica.store, name).await.unwrap();
    staging.write(Bytes::from(disk.files()[&path_of(before.name)].clone())).await.unwrap();
    staging.finish().await.unwrap();
    let compacted = CompactedSegment {
        base_offset: name.base_offset,
        next_offset: before.next_offset,
        len: before.len,
        crc32c: before.crc32c,
        first_timestamp_ms: before.first_timestamp_ms,
        max_timestamp_ms: before.max_timestamp_ms,
        max_timestamp_offset: before.max_timestamp_offset,
    };
    let effect = Effect::ReplaceSegments {
        topic_id: KEY.topic_id,
        partition: KEY.partition,
        revision: 1,
        segments: vec![compacted],
    };
    replica.store.apply(&effect, &Bytes::new()).unwrap();
    replica.checkpoint().await.unwrap();
    (replica, name)
}

#[tokio::test(start_paused = true)]
async fn a_damaged_compacted_segment_is_read_for_its_index_less_and_less_often_until_it_is_repaired() {
    let disk = MemoryDisk::default();
    let (here, name) = compacted(&disk).await;
    let (there, _) = compacted(&MemoryDisk::default()).await;
    let path = path_of(name);
    let mut content = disk.files()[&path].clone();
    let len = content.len();
    content[len / 2] ^= 1;
    disk.set_content(&path, content);
    let log = here.log((KEY.topic_id, KEY.partition));
    let read_before = disk.reads().0;
    for _ in 0..600 {
        let read = log.read(100, 100, true).await;
        assert!(matches!(read, Err(ReadError::Damaged { .. })), "{read:?}");
        MemoryEnv::sleep(Duration::from_millis(500)).await;
    }
    let times = (disk.reads().0 - read_before) / len as u64;
    assert!((3..=10).contains(&times), "it was read {times} times in five minutes");

    let Checked::Damaged(damage) = here.store.check_segment(name, &mut Pace::fast::<MemoryEnv>()).await.unwrap() else {
        panic!("it is damaged");
    };
    let mut repair = Repair::begin(&here.store, damage).await.unwrap().unwrap();
    while repair.missing().1 > 0 {
        let piece = there.store.read_part(name, damage.entry.len, repair.missing().0, 100_000).await.unwrap();
        repair.write(piece).await.unwrap();
    }
    assert_eq!(repair.finish().await.unwrap(), Replaced::Done);
    assert!(!log.read(100, 100, true).await.unwrap().is_empty(), "it is looked at at once");
}

#[tokio::test(start_paused = true)]
async fn a_compacted_segment_that_only_seemed_damaged_is_read_again_once_it_is_found_sound() {
    let disk = MemoryDisk::default();
    let (here, name) = compacted(&disk).await;
    let path = path_of(name);
    let good = disk.files()[&path].clone();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    disk.set_content(&path, bad);
    let log = here.log((KEY.topic_id, KEY.partition));
    for _ in 0..100 {
        assert!(log.read(100, 100, true).await.is_err());
        MemoryEnv::sleep(Duration::from_secs(1)).await;
    }
    disk.set_content(&path, good);
    let checked = here.store.check_segment(name, &mut Pace::fast::<MemoryEnv>()).await.unwrap();
    assert!(matches!(checked, Checked::Sound), "{checked:?}");
    assert!(!log.read(100, 100, true).await.unwrap().is_empty(), "nobody looks again");
}

#[tokio::test(start_paused = true)]
async fn a_process_without_file_descriptors_writes_once_it_has_some() {
    let mut met = 0;
    for granted in 0..20 {
        let disk = MemoryDisk::default();
        let replica = Replica::open(&disk, options(300)).await.unwrap();
        create(&replica, KEY).unwrap();
        for _ in 0..3 {
            append(&replica, KEY, 200);
        }
        disk.refuse_opens_after(granted);
        replica.store.flush().await.unwrap();
        replica.store.inner.forget_files();
        let segments = replica.store.sync_for(&replica.store.prepare_checkpoint()).await.unwrap();
        met += u64::from(disk.has_refused_opens());
        assert_eq!(replica.store.failed(), None, "after {granted}");
        let lengths: Vec<u64> = segments.iter().map(|entry| entry.len).collect();
        let there: Vec<u64> = replica.log_files().values().map(|content| content.len() as u64).collect();
        assert_eq!((there.len(), there), (3, lengths), "after {granted}");
    }
    // To write three segments, to sync them, their directory and the store's.
    assert!(met >= 7, "{met}");
}

#[tokio::test]
async fn a_segment_that_grows_while_what_was_fetched_of_it_is_synced_is_repaired_all_the_same() {
    let disk = MemoryDisk::default();
    let here = Replica::open(&disk, options(64 << 20)).await.unwrap();
    let there = Replica::open(&MemoryDisk::default(), options(64 << 20)).await.unwrap();
    for replica in [&here, &there] {
        create(replica, KEY).unwrap();
        append(replica, KEY, 1_000);
        replica.store.flush().await.unwrap();
    }
    let name = SegmentName::appended(KEY, 0);
    let mut content = disk.files()[&path_of(name)].clone();
    content[100] ^= 1;
    disk.set_content(&path_of(name), content);
    let Checked::Damaged(damage) = here.store.check_segment(name, &mut Pace::fast::<MemoryEnv>()).await.unwrap() else {
        panic!("it is damaged");
    };
    let mut repair = Repair::begin(&here.store, damage).await.unwrap().unwrap();
    let fetched = there.store.read_part(name, damage.entry.len, 0, 4_096).await.unwrap();
    repair.write(fetched).await.unwrap();
    let staged = Path::new(STORE_DIR).join(REPAIRING).join(name.staged_file());
    let held = disk.hold_syncs(&staged).await;
    let growing = async {
        for _ in 0..6 {
            append(&here, KEY, 1 << 20);
            here.store.flush().await.unwrap();
        }
        drop(held);
    };
    let (repaired, ()) = tokio::join!(repair.finish(), growing);
    assert_eq!(repaired.unwrap(), Replaced::Done);
    let checked = here.store.check_segment(name, &mut Pace::fast::<MemoryEnv>()).await.unwrap();
    assert!(matches!(checked, Checked::Sound), "{checked:?}");
}
