//! What readers see, wherever the data lies.

use bytes::Bytes;
use proptest::prelude::*;

use crate::partition::ReadError;
use crate::storage::Cache;
use crate::storage::batch::BatchHeader;
use crate::storage::tests::memory_env::MemoryDisk;
use crate::storage::tests::scenario::{ModelBatch, ModelLog, Options, Replica, Shape, model, random_entries, small};

/// What a read must give.
fn expected(batches: &[ModelBatch], offset: i64, bytes_max: usize, at_least_one: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for batch in batches.iter().filter(|batch| batch.next_offset > offset) {
        if bytes.len() + batch.bytes.len() > bytes_max && !(at_least_one && bytes.is_empty()) {
            break;
        }
        bytes.extend(&batch.bytes);
    }
    bytes
}

/// The first batch with such a timestamp and an offset that is not below `from`.
fn expected_time(batches: &[ModelBatch], from: i64, timestamp_ms: i64) -> Option<(i64, i64)> {
    let batch = batches.iter().find(|batch| batch.next_offset > from && batch.max_timestamp_ms >= timestamp_ms)?;
    Some((batch.max_timestamp_ms, batch.base_offset))
}

async fn check_some(replica: &Replica, expected_log: &ModelLog, reads: &[(u16, u32, bool)]) {
    let ModelLog { start, end, batches } = expected_log;
    let (start, end) = (*start, *end);
    let log = replica.log((lockstep_core::TopicId([1; 16]), 0));
    assert_eq!((log.start_offset(), log.end_offset()), (start, end));
    for (at, bytes_max, at_least_one) in reads {
        let offset = start + i64::from(*at) % (end + 1 - start);
        let read = log.read(offset, *bytes_max as usize, *at_least_one).await.unwrap();
        assert!(
            read.concat() == expected(batches, offset, *bytes_max as usize, *at_least_one),
            "offset {offset} of {end}, {bytes_max} bytes, {at_least_one}"
        );
        let timestamp_ms = 850 + i64::from(*at) % 500;
        assert_eq!(log.offset_for_time(timestamp_ms, 0).await.unwrap(), expected_time(batches, 0, timestamp_ms));
        let found = log.offset_for_time(timestamp_ms, offset).await.unwrap();
        assert_eq!(found, expected_time(batches, offset, timestamp_ms));
    }
    let largest = batches.iter().map(|batch| batch.max_timestamp_ms).max();
    let first = batches.iter().find(|batch| Some(batch.max_timestamp_ms) == largest);
    let first = first.map(|batch| (batch.max_timestamp_ms, batch.next_offset - 1));
    assert_eq!(log.max_timestamp().await.unwrap(), first);
    for outside in [start - 1, end + 1] {
        assert!(
            matches!(log.read(outside, 100, true).await, Err(ReadError::OutOfRange { start: s, end: e }) if (s, e) == (start, end))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn reads_are_the_same_from_memory_and_from_files(
        seed in any::<u64>(),
        large in any::<bool>(),
        segment_bytes in 500u64..400_000,
        cache_bytes in prop_oneof![Just(0), 0u64..100_000, Just(1 << 30)],
        flush_at in proptest::collection::vec(0usize..100, 0..6),
        reopen in any::<bool>(),
        deletes in any::<bool>(),
        reads in proptest::collection::vec((any::<u16>(), 0u32..300_000, any::<bool>()), 1..40),
    ) {
        let content_max = if large { 60_000 } else { 1_500 };
        let shape = Shape { entries: 100, content_max, drops: false, deletes };
        let entries = random_entries(seed, shape);
        let model = model(&entries);
        let log = &model[&(lockstep_core::TopicId([1; 16]), 0)];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let options = Options::new(segment_bytes, Cache::new(cache_bytes));
            let disk = MemoryDisk::default();
            let mut replica = Replica::open(&disk, options.clone()).await.unwrap();
            let mut flush_at = flush_at;
            flush_at.sort_unstable();
            for upto in flush_at {
                if upto > replica.applied {
                    replica.apply(&entries[..upto]).unwrap();
                }
                replica.store.flush().await.unwrap();
            }
            if reopen {
                replica.checkpoint().await.unwrap();
                replica.store.close().await;
                replica = Replica::open(&disk, options).await.unwrap();
            }
            replica.apply(&entries).unwrap();
            check_some(&replica, log, &reads).await;
        });
    }
}

/// A log of several segments with several index entries each, on disk only.
async fn cold(disk: &MemoryDisk) -> (Replica, ModelLog, Options) {
    let entries = random_entries(77, Shape { entries: 300, content_max: 40_000, drops: false, deletes: false });
    let options = Options::new(400_000, Cache::new(0));
    let mut replica = Replica::open(disk, options.clone()).await.unwrap();
    replica.apply(&entries).unwrap();
    replica.checkpoint().await.unwrap();
    replica.store.close().await;
    let log = model(&entries)[&(lockstep_core::TopicId([1; 16]), 0)].clone();
    let replica = Replica::open(disk, options.clone()).await.unwrap();
    (replica, log, options)
}

fn every_read(batches: &[ModelBatch]) -> Vec<(u16, u32, bool)> {
    batches.iter().map(|batch| (batch.base_offset as u16, 1_000, true)).collect()
}

#[tokio::test]
async fn an_index_that_is_missing_or_damaged_is_made_again() {
    let disk = MemoryDisk::default();
    let (replica, expected_log, options) = cold(&disk).await;
    let batches = &expected_log.batches;
    check_some(&replica, &expected_log, &every_read(batches)).await;
    let indexes = || {
        let mut files = disk.files();
        files.retain(|path, content| path.extension().is_some_and(|it| it == "index") && content.len() > 100);
        files
    };
    assert!(!indexes().is_empty());
    for (number, (path, mut content)) in indexes().into_iter().enumerate() {
        match number % 2 {
            0 => disk.remove(&path),
            _ => {
                content[40] ^= 1;
                disk.set_content(&path, content);
            }
        }
    }
    let replica = Replica::open(&disk, options.clone()).await.unwrap();
    check_some(&replica, &expected_log, &every_read(batches)).await;
    // One that is whole but says something wrong.
    for (path, content) in indexes() {
        let base_offset: i64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let mut index = crate::storage::index::Index::decode(&content, base_offset).unwrap();
        for entry in index.entries.iter_mut().skip(1) {
            entry.position += 1;
        }
        disk.set_content(&path, index.encode(base_offset));
    }
    let replica = Replica::open(&disk, options).await.unwrap();
    let log = replica.log((lockstep_core::TopicId([1; 16]), 0));
    for batch in batches {
        let read = log.read(batch.base_offset, 1, true).await.unwrap();
        assert_eq!(read.concat(), batch.bytes);
    }
}

#[tokio::test]
async fn a_damaged_byte_is_never_served() {
    let entries = random_entries(5, Shape { entries: 60, content_max: 1_000, drops: false, deletes: false });
    let disk = MemoryDisk::default();
    let mut replica = Replica::open(&disk, small()).await.unwrap();
    replica.apply(&entries).unwrap();
    replica.checkpoint().await.unwrap();
    replica.store.close().await;
    let key = (lockstep_core::TopicId([1; 16]), 0);
    let batches = model(&entries)[&key].batches.clone();
    let directory = format!("/{}-{}/", key.0, key.1);
    for (path, content) in replica.log_files() {
        if !path.to_str().unwrap().contains(&directory) {
            continue;
        }
        let base_offset: i64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let (mut position, mut damage_seen) = (0, 0);
        for batch in batches.iter().filter(|batch| batch.base_offset >= base_offset) {
            // Bytes 12..16, the leader epoch, are outside every checksum of the format.
            for byte in [0, 7, 8, 11, 16, 17, 21, 23, 26, 40, 60, batch.bytes.len() - 1] {
                if position + byte >= content.len() {
                    continue;
                }
                let mut damaged = content.clone();
                damaged[position + byte] ^= 0x41;
                disk.set_content(&path, damaged);
                let replica = Replica::open(&disk, small()).await.unwrap();
                let log = replica.log(key);
                match log.read(batch.base_offset, batch.bytes.len(), true).await {
                    Err(ReadError::Damaged { path: told, position: at }) => {
                        assert_eq!((told.as_str(), at), (path.to_str().unwrap(), position as u64), "byte {byte}");
                        damage_seen += 1;
                    }
                    other => panic!("byte {byte} of the batch at {position} in {}: {other:?}", path.display()),
                }
                // What lies before can still be read.
                let before = log.read(0, usize::MAX, true).await;
                let whole = batches.iter().filter(|it| it.base_offset < batch.base_offset);
                let whole: Vec<u8> = whole.flat_map(|it| it.bytes.clone()).collect();
                if !whole.is_empty() {
                    assert_eq!(before.unwrap().concat(), whole);
                }
            }
            position += batch.bytes.len();
            if position >= content.len() {
                break;
            }
        }
        assert!(damage_seen > 0);
        disk.set_content(&path, content);
    }
}

#[tokio::test]
async fn a_read_of_many_small_batches_is_one_read_of_the_file() {
    let disk = MemoryDisk::default();
    let (replica, ModelLog { batches, .. }, _) = cold(&disk).await;
    let log = replica.log((lockstep_core::TopicId([1; 16]), 0));
    let read = log.read(0, 200_000, false).await.unwrap();
    assert_eq!(read.len(), 1, "batches of one file come in one piece");
    assert!(BatchHeader::parse(&read[0]).unwrap().len < read[0].len());
    assert_eq!(read.concat(), expected(&batches, 0, 200_000, false));
}

#[tokio::test]
async fn log_append_time_is_stamped_with_a_good_checksum() {
    let entries = random_entries(8, Shape { entries: 80, content_max: 500, drops: false, deletes: false });
    let disk = MemoryDisk::default();
    let mut replica = Replica::open(&disk, small()).await.unwrap();
    replica.apply(&entries).unwrap();
    let mut stamped = 0;
    for effect in entries.iter().flat_map(|entry| &entry.effects) {
        let lockstep_core::Effect::Append { topic_id, partition, base_offset, log_append_time_ms, .. } = *effect else {
            continue;
        };
        let read: Vec<Bytes> = replica.log((topic_id, partition)).read(base_offset, 1, true).await.unwrap();
        let read = read.concat();
        let header = BatchHeader::parse(&read).unwrap();
        assert!(header.verifies(&read));
        if let Some(time_ms) = log_append_time_ms {
            assert_eq!((header.max_timestamp_ms, read[22] & 8), (time_ms, 8));
            stamped += 1;
        }
    }
    assert!(stamped > 0);
}
