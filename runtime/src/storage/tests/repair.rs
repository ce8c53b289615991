//! Damaged segments are found and replaced by another replica's, whatever else goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lockstep_core::{Effect, TopicId};

use crate::partition::ReadError;
use crate::storage::check::{Checked, Damage, Pace};
use crate::storage::repair::{Repair, RepairError, Replaced};
use crate::storage::segment::SegmentName;
use crate::storage::suspicion::FoundBy;
use crate::storage::tests::batch::batch;
use crate::storage::tests::memory_env::{MemoryDisk, MemoryEnv};
use crate::storage::tests::scenario::{
    Entry, Key, Replica, STORE_DIR, Shape, assert_same_files, model, random_entries, reference_files, small,
};
use crate::storage::{Installation, SegmentEntry};

const KEY: Key = (TopicId([1; 16]), 0);
const SHAPE: Shape = Shape { entries: 60, content_max: 1_000, drops: false, deletes: false };

fn fast() -> Pace {
    Pace::fast::<MemoryEnv>()
}

/// A replica that has applied `entries`, with nothing in memory.
async fn replica(disk: &MemoryDisk, entries: &[Entry]) -> Replica {
    let mut replica = Replica::open(disk, small()).await.unwrap();
    replica.apply(entries).unwrap();
    replica.checkpoint().await.unwrap();
    replica.store.close().await;
    Replica::open(disk, small()).await.unwrap()
}

fn path_of(name: SegmentName) -> PathBuf {
    Path::new(STORE_DIR).join(format!("{}-{}", name.topic_id, name.partition)).join(name.log_file())
}

/// Changes a byte of a segment's file.
fn damage(disk: &MemoryDisk, name: SegmentName, at: u64) {
    let path = path_of(name);
    let mut content = disk.files()[&path].clone();
    content[at as usize] ^= 0x10;
    disk.set_content(&path, content);
}

async fn found(replica: &Replica, name: SegmentName) -> Damage {
    match replica.store.check_segment(name, &mut fast()).await.unwrap() {
        Checked::Damaged(damage) => damage,
        other => panic!("{name:?}: {other:?}"),
    }
}

async fn is_sound(replica: &Replica, name: SegmentName) -> bool {
    matches!(replica.store.check_segment(name, &mut fast()).await.unwrap(), Checked::Sound)
}

/// Fetches the segment from `peer`, in pieces of `piece` bytes.
async fn fetch(replica: &Replica, peer: &Replica, damage: Damage, piece: usize) -> Repair<MemoryEnv> {
    let mut repair = Repair::begin(&replica.store, damage).await.unwrap().expect("the partition is there");
    loop {
        let (offset, missing) = repair.missing();
        if missing == 0 {
            return repair;
        }
        let entry = damage.entry;
        let bytes = peer.store.read_part(entry.name, entry.len, offset, piece).await.unwrap();
        repair.write(bytes).await.unwrap();
    }
}

fn nothing_left_over(disk: &MemoryDisk) {
    let left: Vec<_> = disk.files().into_keys().filter(|path| path.starts_with("/data/3/repairing")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Closed ones, and the last one.
fn segments(replica: &Replica) -> Vec<SegmentEntry> {
    let segments = replica.store.segments(KEY.0, KEY.1);
    assert!(segments.len() > 2);
    segments
}

#[tokio::test]
async fn every_damaged_byte_is_found_and_the_file_is_whole_again_afterwards() {
    let entries = random_entries(5, SHAPE);
    let model = model(&entries);
    let expected = reference_files(&entries, small()).await;
    let disk = MemoryDisk::default();
    let here = replica(&disk, &entries).await;
    let there = replica(&MemoryDisk::default(), &entries).await;
    for name in here.store.listed_segments() {
        assert!(is_sound(&here, name).await);
    }
    let all = segments(&here);
    for entry in [all[0], all[all.len() - 1]] {
        // The leader epoch (12..16) is covered by no batch's checksum.
        for at in [0, 5, 9, 13, 16, 18, 30, 60, 61, entry.len / 2, entry.len - 1] {
            damage(&disk, entry.name, at);
            let damage = found(&here, entry.name).await;
            let located = here.store.locate_damage(&damage).await;
            assert!(located.is_none_or(|position| position <= at), "{at}: {located:?}");
            assert_eq!(located.is_none(), at == 13, "{at}: {located:?}");
            let replaced = fetch(&here, &there, damage, 700).await.finish().await.unwrap();
            assert_eq!(replaced, Replaced::Done);
            assert!(is_sound(&here, entry.name).await);
        }
    }
    assert_same_files(&here.log_files(), &expected, "after the repairs");
    nothing_left_over(&disk);
    here.check_reads(&model).await;
    let counts = here.store.scrub_counts();
    assert!(counts.segments > 40 && counts.bytes > 10_000, "{counts:?}");
}

#[tokio::test]
async fn a_file_that_is_missing_or_cut_off_is_damaged_too() {
    let entries = random_entries(5, SHAPE);
    let disk = MemoryDisk::default();
    let here = replica(&disk, &entries).await;
    let there = replica(&MemoryDisk::default(), &entries).await;
    let [first, second, ..] = segments(&here)[..] else { unreachable!() };
    disk.remove(&path_of(first.name));
    let mut content = disk.files()[&path_of(second.name)].clone();
    content.truncate(content.len() - 1);
    disk.set_content(&path_of(second.name), content);
    for entry in [first, second] {
        let damage = found(&here, entry.name).await;
        assert_eq!(fetch(&here, &there, damage, 4_096).await.finish().await.unwrap(), Replaced::Done);
    }
    here.check_reads(&model(&entries)).await;
}

#[tokio::test]
async fn a_reader_is_given_nothing_damaged_and_has_the_segment_looked_at() {
    let entries = random_entries(5, SHAPE);
    let disk = MemoryDisk::default();
    let here = replica(&disk, &entries).await;
    let there = replica(&MemoryDisk::default(), &entries).await;
    let entry = segments(&here)[1];
    damage(&disk, entry.name, 70);
    let log = here.log(KEY);
    let read = log.read(entry.name.base_offset, 100, true).await;
    assert!(matches!(read, Err(ReadError::Damaged { .. })), "{read:?}");
    assert_eq!(here.store.suspicions().take(), BTreeMap::from([(entry.name, FoundBy::Reader)]));
    let damage = found(&here, entry.name).await;
    assert_eq!(here.store.locate_damage(&damage).await, Some(0));
    fetch(&here, &there, damage, 4_096).await.finish().await.unwrap();
    // The same log, with the file that it had open.
    assert!(!log.read(entry.name.base_offset, 100, true).await.unwrap().is_empty());
    here.check_reads(&model(&entries)).await;
    assert!(here.store.suspicions().take().is_empty());
}

#[tokio::test]
async fn a_copy_that_is_damaged_too_is_not_taken() {
    let entries = random_entries(5, SHAPE);
    let (disk, bad_disk) = (MemoryDisk::default(), MemoryDisk::default());
    let here = replica(&disk, &entries).await;
    let bad = replica(&bad_disk, &entries).await;
    let good = replica(&MemoryDisk::default(), &entries).await;
    let entry = segments(&here)[0];
    damage(&disk, entry.name, 80);
    damage(&bad_disk, entry.name, 300);
    let before = disk.files();
    let damage = found(&here, entry.name).await;
    let refused = fetch(&here, &bad, damage, 4_096).await.finish().await;
    assert!(matches!(refused, Err(RepairError::WrongChecksum)), "{refused:?}");
    assert_eq!(disk.files(), before, "nothing was touched");
    // A replica that is behind has none to give.
    let behind = replica(&MemoryDisk::default(), &entries[..5]).await;
    let refused = behind.store.read_part(entry.name, entry.len, 0, 100).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    fetch(&here, &good, damage, 4_096).await.finish().await.unwrap();
    assert!(is_sound(&here, entry.name).await);
}

#[tokio::test]
async fn a_segment_that_grows_is_repaired_with_what_was_appended_meanwhile() {
    let entries = random_entries(5, SHAPE);
    let expected = reference_files(&entries, small()).await;
    for upto in 20..50 {
        let disk = MemoryDisk::default();
        let mut here = replica(&disk, &entries[..upto]).await;
        let there = replica(&MemoryDisk::default(), &entries).await;
        let entry = segments(&here).pop().unwrap();
        damage(&disk, entry.name, 90);
        let damage = found(&here, entry.name).await;
        let repair = fetch(&here, &there, damage, 4_096).await;
        here.apply(&entries[..upto + 5]).unwrap();
        here.store.flush().await.unwrap();
        here.apply(&entries[..upto + 6]).unwrap();
        assert_eq!(repair.finish().await.unwrap(), Replaced::Done);
        // What is appended from now on goes to the new file.
        here.apply(&entries).unwrap();
        here.checkpoint().await.unwrap();
        assert_same_files(&here.log_files(), &expected, &format!("after {upto}"));
        here.check_reads(&model(&entries)).await;
        let after = disk.after_power_cut(upto as u64);
        let again = Replica::open(&after, small()).await.unwrap();
        again.check_reads(&model(&entries)).await;
    }
}

#[tokio::test]
async fn what_was_deleted_meanwhile_is_no_damage_and_comes_not_back() {
    let shape = Shape { deletes: true, drops: true, ..SHAPE };
    let mut gone = 0;
    for seed in 0..20 {
        let entries = random_entries(seed, shape);
        let disk = MemoryDisk::default();
        let mut here = replica(&disk, &entries[..40]).await;
        let there = replica(&MemoryDisk::default(), &entries[..40]).await;
        let name = here.store.listed_segments()[0];
        damage(&disk, name, 61);
        let damage = found(&here, name).await;
        let repair = fetch(&here, &there, damage, 4_096).await;
        here.apply(&entries).unwrap();
        here.checkpoint().await.unwrap();
        let replaced = repair.finish().await.unwrap();
        gone += i32::from(!here.store.listed_segments().contains(&name));
        assert!(replaced == Replaced::Done || !here.store.listed_segments().contains(&name));
        assert!(!matches!(here.store.check_segment(name, &mut fast()).await.unwrap(), Checked::Damaged(_)));
        here.checkpoint().await.unwrap();
        here.check_reads(&model(&entries)).await;
        nothing_left_over(&disk);
        assert_same_files(&here.log_files(), &reference_files(&entries, small()).await, &format!("seed {seed}"));
    }
    assert!(gone > 0, "nothing was deleted under a repair");
}

#[tokio::test]
async fn an_installation_meanwhile_is_not_undone() {
    let entries = random_entries(7, SHAPE);
    let disk = MemoryDisk::default();
    let here = replica(&disk, &entries[..30]).await;
    let there = replica(&MemoryDisk::default(), &entries).await;
    let entry = segments(&here).pop().unwrap();
    damage(&disk, entry.name, 61);
    let damage = found(&here, entry.name).await;
    let repair = fetch(&here, &there, damage, 4_096).await;
    let manifest = there.checkpoint().await.unwrap();
    let mut installation = Installation::begin(&here.store, manifest).await.unwrap();
    while let Some(range) = installation.missing().first().copied() {
        let chunk = there.store.read_chunk(&range.segment, range.from, range.len as usize).await.unwrap();
        installation.write_chunk(&range.segment, range.from, chunk).await.unwrap();
    }
    installation.finish(&here.checkpoints).await.unwrap();
    assert_eq!(repair.finish().await.unwrap(), Replaced::Gone, "these are other files");
    // The installation built upon the damaged beginning: that is found, and repaired.
    let damage = found(&here, entry.name).await;
    fetch(&here, &there, damage, 4_096).await.finish().await.unwrap();
    here.check_reads(&model(&entries)).await;
    assert_same_files(&here.log_files(), &there.log_files(), "after both");
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_repair_leaves_one_file_or_the_other() {
    let entries = random_entries(5, SHAPE);
    let expected = reference_files(&entries, small()).await;
    let there = replica(&MemoryDisk::default(), &entries).await;
    let (mut still_damaged, mut whole) = (0, 0);
    for cut_after in 0..12 {
        for seed in 0..6 {
            let disk = MemoryDisk::default();
            let here = replica(&disk, &entries).await;
            let entry = segments(&here)[if seed % 2 == 0 { 0 } else { 2 }];
            damage(&disk, entry.name, 200);
            let damaged_content = disk.files()[&path_of(entry.name)].clone();
            let damage = found(&here, entry.name).await;
            disk.power_off_at(disk.operations() + cut_after);
            let begun = Repair::begin(&here.store, damage).await;
            if let Ok(Some(mut repair)) = begun {
                let mut fetched = true;
                while fetched && repair.missing().1 > 0 {
                    let piece = there.store.read_part(entry.name, entry.len, repair.missing().0, 1_500).await.unwrap();
                    fetched = repair.write(piece).await.is_ok();
                }
                if fetched {
                    let _ = repair.finish().await;
                }
            }
            let after = disk.after_power_cut(seed * 100 + cut_after);
            let again = Replica::open(&after, small()).await.unwrap();
            let content = &after.files()[&path_of(entry.name)];
            assert!(
                *content == damaged_content || *content == expected[&path_of(entry.name)],
                "neither the one nor the other"
            );
            nothing_left_over(&after);
            if is_sound(&again, entry.name).await {
                whole += 1;
            } else {
                still_damaged += 1;
                let damage = found(&again, entry.name).await;
                fetch(&again, &there, damage, 4_096).await.finish().await.unwrap();
            }
            assert_same_files(&again.log_files(), &expected, "after the second repair");
        }
    }
    assert!(still_damaged > 0 && whole > 0, "{still_damaged} were damaged still, {whole} whole");
}

#[tokio::test]
async fn an_index_made_from_the_damaged_log_is_made_again() {
    let entries = random_entries(77, Shape { entries: 300, content_max: 40_000, drops: false, deletes: false });
    let options = super::scenario::Options::new(100_000, crate::storage::Cache::new(0));
    let disk = MemoryDisk::default();
    let other = MemoryDisk::default();
    let mut replicas = Vec::new();
    for disk in [&disk, &other] {
        let mut replica = Replica::open(disk, options.clone()).await.unwrap();
        replica.apply(&entries).unwrap();
        replica.checkpoint().await.unwrap();
        replica.store.close().await;
        replicas.push(Replica::open(disk, options.clone()).await.unwrap());
    }
    let [here, there] = &replicas[..] else { unreachable!() };
    let entry = here.store.segments(KEY.0, KEY.1)[0];
    let index_path = path_of(entry.name).with_extension("index");
    let good_index = disk.files()[&index_path].clone();
    // A timestamp in a header: the log can be followed through it, and an index takes it over.
    damage(&disk, entry.name, 36);
    disk.remove(&index_path);
    let log = here.log(KEY);
    for batch in &model(&entries)[&KEY].batches {
        let read = log.read(batch.base_offset, 1, true).await;
        assert!(read.is_ok() || batch.base_offset == 0);
    }
    assert!(log.offset_for_time(i64::MAX, 0).await.is_ok_and(|found| found.is_none()));
    let damage = found(here, entry.name).await;
    fetch(here, there, damage, 100_000).await.finish().await.unwrap();
    assert_eq!(disk.files()[&index_path], good_index);
    here.check_reads(&model(&entries)).await;
    assert_eq!(log.offset_for_time(950, 0).await.unwrap(), there.log(KEY).offset_for_time(950, 0).await.unwrap());
}

/// Appends so many batches of half a MiB.
fn append_large(replica: &Replica, batches: usize) {
    for _ in 0..batches {
        let base_offset = replica.log(KEY).end_offset();
        replica.append(KEY, base_offset, batch(1, base_offset, &vec![base_offset as u8; 512 << 10])).unwrap();
    }
}

/// One large segment, which grows.
async fn large(disk: &MemoryDisk) -> Replica {
    let options = super::scenario::Options::new(64 << 20, crate::storage::Cache::new(0));
    let mut replica = Replica::open(disk, options).await.unwrap();
    let create = Effect::CreatePartition { topic_id: KEY.0, partition: KEY.1 };
    replica.store.apply(&create, &bytes::Bytes::new()).unwrap();
    append_large(&replica, 4);
    replica.applied = 1;
    replica.checkpoint().await.unwrap();
    replica
}

#[tokio::test]
async fn a_segment_that_grows_fast_is_repaired_all_the_same() {
    let disk = MemoryDisk::default();
    let here = large(&disk).await;
    let there = large(&MemoryDisk::default()).await;
    let entry = here.store.segments(KEY.0, KEY.1)[0];
    damage(&disk, entry.name, 90);
    let damage = found(&here, entry.name).await;
    let repair = fetch(&here, &there, damage, 256 << 10).await;
    append_large(&here, 60);
    here.store.flush().await.unwrap();
    append_large(&here, 3);
    assert_eq!(repair.finish().await.unwrap(), Replaced::Done);
    append_large(&here, 2);
    here.checkpoint().await.unwrap();
    assert_eq!(here.store.segments(KEY.0, KEY.1).len(), 1);
    assert!(is_sound(&here, entry.name).await);
    append_large(&there, 65);
    there.store.flush().await.unwrap();
    assert_same_files(&here.log_files(), &there.log_files(), "after the repair");
}

#[tokio::test]
async fn a_length_that_is_wrong_decides_nothing_about_memory() {
    let disk = MemoryDisk::default();
    let here = large(&disk).await;
    append_large(&here, 100);
    here.checkpoint().await.unwrap();
    let entry = here.store.segments(KEY.0, KEY.1)[0];
    let log = here.log(KEY);
    // Byte 8 of the second batch is the highest one of its length: 16 MiB more, of 50 that there are.
    let second = (512 << 10) + 61;
    damage(&disk, entry.name, second + 8);
    let mut content = disk.files()[&path_of(entry.name)].clone();
    content[second as usize + 8] = 1;
    disk.set_content(&path_of(entry.name), content);
    let read = log.read(1, 100, true).await;
    assert!(matches!(read, Err(ReadError::Damaged { position, .. }) if position == second), "{read:?}");
    assert_eq!(here.store.suspicions().take(), BTreeMap::from([(entry.name, FoundBy::Reader)]));
    assert!(log.offset_for_time(5, 0).await.is_err());
    let damage = found(&here, entry.name).await;
    assert_eq!(here.store.locate_damage(&damage).await, Some(second));
    let (_, longest) = disk.reads();
    assert!(longest <= 4 << 20, "{longest} bytes were read at once");
}
