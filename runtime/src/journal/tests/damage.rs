//! Files that are not as they were written.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use lockstep_core::ShardId;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::crash::run;
use super::memory_env::{MemoryDisk, MemoryEnv};
use super::model::{DIR, Driver, Model, at, open};
use crate::error::StartError;
use crate::journal::format::{
    BLOCK_BYTES, HEADER_BYTES, Header, Identity, Kind, RECORD_BYTES, Record, encode_head, file_name, padded,
};

const FILE_BYTES: u64 = 64 << 10;

fn path(generation: u64) -> PathBuf {
    Path::new(DIR).join(file_name(generation))
}

/// The files with records, ascending.
fn journal_files(disk: &MemoryDisk) -> Vec<PathBuf> {
    disk.paths().into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "journal")).collect()
}

/// Where the batches of a file begin and end, without padding.
fn batches(content: &[u8]) -> Vec<(usize, usize)> {
    let mut batches = Vec::new();
    let mut offset = 0;
    let first = Header::decode(content).unwrap().identity;
    while let Some(header) = content.get(offset..).and_then(Header::decode) {
        if header.identity.generation != first.generation {
            break;
        }
        let len = header.batch_len().unwrap() as usize;
        batches.push((offset, offset + len));
        offset += padded(len as u64) as usize;
    }
    batches
}

/// A journal with several files that was closed in order, and what it held.
async fn filled(seed: u64, calls: usize) -> (MemoryDisk, Model) {
    let env = MemoryEnv::default();
    let journal = open(&env, FILE_BYTES).await.unwrap();
    let mut driver = Driver::new(journal, Model::new());
    driver.random_calls(&mut StdRng::seed_from_u64(seed), calls).await;
    driver.journal.close().await;
    (env.disk, driver.model)
}

async fn damage_error(disk: MemoryDisk) -> (String, u64, String) {
    match open(&MemoryEnv { disk }, FILE_BYTES).await {
        Err(StartError::Damaged { path, offset, reason }) => (path, offset, reason),
        other => panic!("damage was not noticed: {other:?}"),
    }
}

#[test]
fn damage_before_the_tail_names_file_and_offset() {
    run(async {
        let (disk, _) = filled(1, 200).await;
        let files = journal_files(&disk);
        assert!(files.len() >= 2);
        let mut tried = 0;
        for (i, path) in files.iter().enumerate() {
            let content = disk.content(path);
            let mut batches = batches(&content);
            if i + 1 == files.len() {
                batches.pop();
            }
            for (start, end) in batches {
                for damaged_at in [start, start + 20, start + HEADER_BYTES, end - 1] {
                    if damaged_at >= end {
                        continue;
                    }
                    let copy = disk.after_power_cut(0);
                    let mut damaged = content.clone();
                    damaged[damaged_at] ^= 0x40;
                    copy.set_content(path, damaged);
                    let (found_path, offset, _) = damage_error(copy).await;
                    assert_eq!((found_path, offset), (path.display().to_string(), start as u64));
                    tried += 1;
                }
            }
        }
        assert!(tried > 100, "{tried}");
    });
}

#[test]
fn a_damaged_last_batch_is_cut() {
    run(async {
        let env = MemoryEnv::default();
        let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
        log.save_vote(Bytes::from("first")).await.unwrap();
        log.save_vote(Bytes::from("second")).await.unwrap();
        let mut content = env.disk.content(&path(1));
        let (start, end) = *batches(&content).last().unwrap();
        content[end - 1] ^= 1;
        let env = MemoryEnv { disk: env.disk.after_power_cut(0) };
        env.disk.set_content(&path(1), content);
        let journal = open(&env, FILE_BYTES).await.unwrap();
        assert_eq!(journal.shard(ShardId(0)).vote(), Some(Bytes::from("first")));
        journal.close().await;
        assert!(start > 0);
        let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
        assert_eq!(log.vote(), Some(Bytes::from("first")));
    });
}

#[test]
fn missing_and_foreign_files_are_noticed() {
    run(async {
        let (disk, _) = filled(2, 300).await;
        let files = journal_files(&disk);
        assert!(files.len() >= 3, "{files:?}");
        for missing in &files[..files.len() - 1] {
            let copy = disk.after_power_cut(0);
            copy.remove(missing);
            let (path, _, reason) = damage_error(copy).await;
            assert_eq!(
                (path.as_str(), reason.contains("missing") || reason.contains("gone")),
                (missing.to_str().unwrap(), true)
            );
        }
        // The same file of another journal.
        let (other, _) = filled(3, 300).await;
        let foreign = files.iter().skip(1).find(|path| journal_files(&other).contains(path)).unwrap();
        let copy = disk.after_power_cut(0);
        copy.set_content(foreign, other.content(foreign));
        let (path, offset, reason) = damage_error(copy).await;
        assert_eq!((path.as_str(), offset), (foreign.to_str().unwrap(), 0));
        assert!(reason.contains("another journal"), "{reason}");
        // Files that are not the journal's are left alone.
        disk.set_content(&Path::new(DIR).join("notes.txt"), b"hello".to_vec());
        open(&MemoryEnv { disk: disk.clone() }, FILE_BYTES).await.unwrap().close().await;
        assert_eq!(disk.content(&Path::new(DIR).join("notes.txt")), b"hello");
    });
}

#[test]
fn remains_in_a_recycled_file_stay_dead() {
    run(async {
        let env = MemoryEnv::default();
        let journal = open(&env, FILE_BYTES).await.unwrap();
        let log = journal.shard(ShardId(0));
        let append = async |index| {
            let (sender, outcome) = tokio::sync::oneshot::channel();
            let entry = vec![(at(1, index), vec![Bytes::from(vec![5; 3_000])])];
            log.append(entry, Box::new(move |result| sender.send(result).unwrap()));
            outcome.await.unwrap().unwrap();
        };
        for index in 0..100 {
            append(index).await;
            log.purge(at(1, index));
        }
        append(100).await;
        let newest = journal_files(&env.disk).pop().unwrap();
        let content = env.disk.content(&newest);
        let end = padded(batches(&content).last().unwrap().1 as u64) as usize;
        let stale = content[end..].chunks(BLOCK_BYTES as usize).filter(|block| Header::decode(block).is_some()).count();
        assert!(stale > 3, "the newest file should have been used before");
        let found = open(&MemoryEnv { disk: env.disk.after_power_cut(9) }, FILE_BYTES).await.unwrap();
        let found = found.shard(ShardId(0));
        assert_eq!((found.last(), found.purged()), (Some(at(1, 100)), log.purged()));
    });
}

#[test]
fn a_payload_that_looks_like_a_batch_is_not_taken_for_one() {
    run(async {
        let env = MemoryEnv::default();
        let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
        log.save_vote(Bytes::from("real")).await.unwrap();
        // Blocks that claim to be later batches of this file, wherever they come to lie in it.
        let mut payload = vec![0; BLOCK_BYTES as usize - HEADER_BYTES - RECORD_BYTES];
        for sequence in 1..8 {
            let identity = Identity { generation: 1, sequence, salt: 0, next_salt: 0 };
            let mut block =
                encode_head(identity, &[Record::bare(Kind::Purge, ShardId(0), Some(at(9, 9_999)))]).to_vec();
            block.resize(BLOCK_BYTES as usize, 0);
            payload.extend(block);
        }
        let (sender, outcome) = tokio::sync::oneshot::channel();
        let entry = vec![(at(1, 0), vec![Bytes::from(payload)])];
        log.append(entry, Box::new(move |result| sender.send(result).unwrap()));
        outcome.await.unwrap().unwrap();
        let mut content = env.disk.content(&path(1));
        let (start, _) = *batches(&content).last().unwrap();
        assert!(Header::decode(&content[start + BLOCK_BYTES as usize..]).is_some());
        // Torn: the header never reached the disk, the payload did.
        content[start..start + HEADER_BYTES].fill(0);
        let env = MemoryEnv { disk: env.disk.after_power_cut(0) };
        env.disk.set_content(&path(1), content);
        let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
        assert_eq!((log.vote(), log.purged(), log.last()), (Some(Bytes::from("real")), None, None));
    });
}

#[test]
fn an_entry_that_rots_while_the_journal_runs_is_an_error() {
    run(async {
        let env = MemoryEnv::default();
        let journal = open(&env, FILE_BYTES).await.unwrap();
        let log = journal.shard(ShardId(0));
        for index in 0..20 {
            log.append(vec![(at(1, index), vec![Bytes::from(vec![index as u8; 2_000])])], Box::new(drop));
        }
        log.save_vote(Bytes::new()).await.unwrap();
        let file = lockstep_env::Disk::open(&env.disk, &path(1), lockstep_env::OpenMode::ReadWrite).await.unwrap();
        let content = env.disk.content(&path(1));
        let rotten = content.windows(2_000).position(|window| window == [3; 2_000]).unwrap() as u64;
        lockstep_env::DiskFile::write_at(&file, rotten + 7, vec![Bytes::from("rot")]).await.unwrap();
        assert_eq!(log.read(0, 3, usize::MAX).await.unwrap().len(), 3);
        let error = log.read(3, 4, usize::MAX).await.unwrap_err().to_string();
        assert!(error.contains("0000000000000001.journal") && error.contains(&rotten.to_string()), "{error}");
    });
}

/// Opens whatever is there, and uses it if it can be opened.
async fn open_and_use(disk: MemoryDisk) {
    let Ok(journal) = open(&MemoryEnv { disk }, FILE_BYTES).await else { return };
    for shard in 0..8 {
        let log = journal.shard(ShardId(shard));
        let last = log.last();
        let next = last.map_or(Some(0), |last| last.index.checked_add(1));
        for from in [log.purged().map_or(0, |purged| purged.index.saturating_add(1)), last.map_or(0, |last| last.index)]
        {
            let _ = log.read(from, u64::MAX, 1 << 20).await;
        }
        if let Some(next) = next {
            let term = last.map_or(0, |last| last.term);
            log.append(vec![(at(term, next), vec![Bytes::from("x")])], Box::new(drop));
        }
        log.save_vote(Bytes::from("x")).await.unwrap();
        log.truncate_after(last.map(|last| last.index.saturating_sub(2)));
        if let Some(last) = last {
            log.purge(last);
        }
    }
    journal.close().await;
}

fn position() -> impl Strategy<Value = Option<lockstep_core::Position>> {
    let number = || prop_oneof![8 => 0..12_u64, 1 => Just(u64::MAX), 1 => any::<u64>()];
    proptest::option::weighted(0.9, (number(), number()).prop_map(|(term, index)| at(term, index)))
}

fn record() -> impl Strategy<Value = (Record, Vec<u8>)> {
    let kind = prop_oneof![
        4 => Just(Kind::Entry),
        1 => Just(Kind::Truncate),
        1 => Just(Kind::Vote),
        1 => Just(Kind::Purge),
        1 => Just(Kind::Committed),
        2 => Just(Kind::Base),
        2 => Just(Kind::Carry),
    ];
    (kind, 0..3_u16, position(), proptest::collection::vec(any::<u8>(), 0..20), 0..20_u32).prop_map(
        |(kind, shard, position, payload, odd)| {
            let payload = if matches!(kind, Kind::Entry | Kind::Carry | Kind::Vote) { payload } else { Vec::new() };
            let payload_len = if odd == 0 { u32::MAX } else { payload.len() as u32 };
            let payload_crc = crc32c::crc32c(&payload);
            let position = if kind == Kind::Vote && odd > 1 { None } else { position };
            (Record { kind, shard: ShardId(shard), position, payload_len, payload_crc }, payload)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Records in right batches that make any sense or none.
    #[test]
    fn hostile_records_are_refused_without_a_panic(files in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(record(), 0..8), 1..5), 1..4)) {
        run(async {
            let disk = MemoryDisk::default();
            let mut sequence = 1;
            for (i, file) in files.into_iter().enumerate() {
                let generation = i as u64 + 1;
                let mut content = Vec::new();
                for batch in file {
                    let (records, payloads): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                    let identity = Identity { generation, sequence, salt: generation, next_salt: generation + 1 };
                    content.extend(encode_head(identity, &records));
                    content.extend(payloads.concat());
                    content.resize(content.len().next_multiple_of(BLOCK_BYTES as usize), 0);
                    sequence += 1;
                }
                disk.set_content(&path(generation), content);
            }
            open_and_use(disk).await;
        });
    }

    /// Real files with bytes changed, blocks moved and ends cut.
    #[test]
    fn mangled_files_are_refused_or_cut_without_a_panic(seed in any::<u64>()) {
        run(async {
            let (disk, _) = filled(seed % 8, 80).await;
            let mut random = StdRng::seed_from_u64(seed);
            let files = journal_files(&disk);
            for _ in 0..random.random_range(1..4) {
                let path = &files[random.random_range(0..files.len())];
                let mut content = disk.content(path);
                let blocks = content.len() / BLOCK_BYTES as usize;
                match random.random_range(0..5) {
                    0 => content.truncate(random.random_range(0..=content.len())),
                    1 if blocks > 0 => {
                        let (from, to) = (random.random_range(0..blocks) * 4_096, random.random_range(0..blocks) * 4_096);
                        content.copy_within(from..from + 4_096, to);
                    }
                    2 => content.extend((0..random.random_range(0..10_000)).map(|_| random.random::<u8>())),
                    _ if !content.is_empty() => {
                        let at = random.random_range(0..content.len());
                        content[at] = random.random();
                    }
                    _ => {}
                }
                disk.set_content(path, content);
            }
            open_and_use(disk).await;
        });
    }

    /// Files of nothing but noise.
    #[test]
    fn noise_is_refused_or_ignored_without_a_panic(content in proptest::collection::vec(any::<u8>(), 0..9_000), generation in any::<u64>()) {
        run(async {
            let disk = MemoryDisk::default();
            disk.set_content(&path(generation), content);
            open_and_use(disk).await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever is called in whatever order, a restart finds it.
    #[test]
    fn a_restart_finds_what_was_called(seed in any::<u64>(), calls in 1..150_usize) {
        run(async {
            let (disk, model) = filled(seed, calls).await;
            let journal = open(&MemoryEnv { disk }, FILE_BYTES).await.unwrap();
            assert_eq!(Model::read(&journal).await, model);
        });
    }
}
