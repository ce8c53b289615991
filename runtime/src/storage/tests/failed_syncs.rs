//! After a sync that failed nothing is called durable any more; and what a process that died had not synced is synced by the next one.

use bytes::Bytes;
use lockstep_core::TopicId;

use crate::storage::Installation;
use crate::storage::SegmentName;
use crate::storage::check::{Checked, Pace};
use crate::storage::repair::Repair;
use crate::storage::staging::Staging;
use crate::storage::tests::batch::batch;
use crate::storage::tests::memory_env::{MemoryDisk, MemoryEnv};
use crate::storage::tests::scenario::{Entry, Key, Replica, STORE_DIR, Shape, model, random_entries, small};

const KEY: Key = (TopicId([1; 16]), 0);
const SHAPE: Shape = Shape { entries: 60, content_max: 1_000, drops: false, deletes: false };

async fn replica(disk: &MemoryDisk, entries: &[Entry]) -> Replica {
    let mut replica = Replica::open(disk, small()).await.unwrap();
    replica.apply(entries).unwrap();
    replica
}

/// A checkpoint after the failure would be one after an error that was forgotten.
async fn gives_up(replica: &Replica, what: &str) {
    assert!(replica.disk.a_sync_failed());
    assert!(replica.checkpoint().await.is_err(), "{what}: a checkpoint counts on what could not be synced");
}

/// Lets the `number`th sync fail; false when there are not so many.
async fn stages(number: u64) -> bool {
    let disk = MemoryDisk::default();
    let replica = replica(&disk, &random_entries(5, SHAPE)).await;
    // New files are in the directory, which no checkpoint has come to yet.
    replica.store.flush().await.unwrap();
    let name = SegmentName { topic_id: KEY.0, partition: KEY.1, base_offset: 0, revision: 1 };
    disk.fail_one_sync_after(number);
    let mut staging = Staging::begin(&replica.store, name).await.unwrap();
    staging.write(Bytes::from(batch(1, 1, b"compacted"))).await.unwrap();
    let finished = staging.finish().await;
    if finished.is_err() {
        gives_up(&replica, &format!("sync {number} of a compacted segment")).await;
    }
    finished.is_err()
}

async fn repairs(number: u64) -> bool {
    let entries = random_entries(5, SHAPE);
    let there = replica(&MemoryDisk::default(), &entries).await;
    there.store.flush().await.unwrap();
    let disk = MemoryDisk::default();
    let mut here = replica(&disk, &entries[..50]).await;
    here.checkpoint().await.unwrap();
    let repair = fetched(&disk, &here, &there).await;
    here.apply(&entries).unwrap();
    here.store.flush().await.unwrap();
    disk.fail_one_sync_after(number);
    let finished = repair.finish().await;
    if finished.is_err() {
        gives_up(&here, &format!("sync {number} of a repair")).await;
    }
    finished.is_err()
}

/// The segment that grows is damaged, and fetched.
async fn fetched(disk: &MemoryDisk, here: &Replica, there: &Replica) -> Repair<MemoryEnv> {
    let name = here.store.segments(KEY.0, KEY.1).pop().unwrap().name;
    let path = std::path::Path::new(STORE_DIR).join(name.key().directory()).join(name.log_file());
    let mut content = disk.files()[&path].clone();
    content[70] ^= 1;
    disk.set_content(&path, content);
    let Checked::Damaged(damage) = here.store.check_segment(name, &mut Pace::fast::<MemoryEnv>()).await.unwrap() else {
        panic!("it is damaged");
    };
    let mut repair = Repair::begin(&here.store, damage).await.unwrap().unwrap();
    while repair.missing().1 > 0 {
        let piece = there.store.read_part(name, damage.entry.len, repair.missing().0, 4_096).await.unwrap();
        repair.write(piece).await.unwrap();
    }
    repair
}

async fn fetch(installation: &mut Installation<MemoryEnv>, leader: &Replica) -> std::io::Result<()> {
    while let Some(range) = installation.missing().first().copied() {
        let chunk = leader.store.read_chunk(&range.segment, range.from, 1_500.min(range.len as usize)).await?;
        installation.write_chunk(&range.segment, range.from, chunk).await?;
    }
    Ok(())
}

async fn installs(number: u64) -> bool {
    let entries = random_entries(5, SHAPE);
    let leader = replica(&MemoryDisk::default(), &entries).await;
    let manifest = leader.checkpoint().await.unwrap();
    let disk = MemoryDisk::default();
    let here = replica(&disk, &entries[..30]).await;
    let mut installation = Installation::begin(&here.store, manifest).await.unwrap();
    disk.fail_one_sync_after(number);
    let fetched = fetch(&mut installation, &leader).await;
    let finished = match fetched {
        Ok(()) => installation.finish(&here.checkpoints).await.map(drop),
        Err(error) => Err(error),
    };
    if finished.is_err() {
        gives_up(&here, &format!("sync {number} of an installation")).await;
    }
    finished.is_err()
}

#[tokio::test]
async fn nothing_is_durable_after_a_sync_that_failed() {
    let mut failed = [0; 3];
    for number in 0..60 {
        failed[0] += u64::from(stages(number).await);
        failed[1] += u64::from(repairs(number).await);
        failed[2] += u64::from(installs(number).await);
    }
    assert!(failed[0] >= 3 && failed[1] >= 3 && failed[2] >= 8, "{failed:?}");
}

#[tokio::test]
async fn an_installation_that_was_killed_and_ended_by_a_start_survives_a_power_cut() {
    let entries = random_entries(5, SHAPE);
    let leader = replica(&MemoryDisk::default(), &entries).await;
    let manifest = leader.checkpoint().await.unwrap();
    let mut ended = 0;
    for killed_after in 0..80 {
        let disk = MemoryDisk::default();
        let here = replica(&disk, &entries[..10]).await;
        here.checkpoint().await.unwrap();
        let mut installation = Installation::begin(&here.store, manifest.clone()).await.unwrap();
        fetch(&mut installation, &leader).await.unwrap();
        disk.power_off_at(disk.operations() + killed_after);
        let _ = installation.finish(&here.checkpoints).await;
        let disk = disk.after_kill();
        let restarted = Replica::open(&disk, small()).await.unwrap();
        if restarted.applied < entries.len() {
            continue;
        }
        ended += 1;
        for seed in 0..4 {
            let again = Replica::open(&disk.after_power_cut(seed), small()).await;
            let again = again.unwrap_or_else(|error| panic!("killed after {killed_after}: {error}"));
            again.check_reads(&model(&entries)).await;
        }
    }
    assert!(ended > 10, "{ended}");
}

#[tokio::test]
async fn a_repair_that_was_killed_is_not_taken_back_by_a_power_cut_when_more_was_written() {
    let all = random_entries(5, SHAPE);
    let there = replica(&MemoryDisk::default(), &all).await;
    there.store.flush().await.unwrap();
    // More is written to the repaired file, and no other file is made: nothing else would have the directory synced.
    let last = async |count: usize| {
        replica(&MemoryDisk::default(), &all[..count]).await.store.segments(KEY.0, KEY.1).pop().unwrap()
    };
    let mut until = 50;
    while last(until).await.name != last(until + 1).await.name || last(until).await.len == last(until + 1).await.len {
        until -= 1;
    }
    let (entries, name) = (&all[..=until], last(until).await.name);
    let mut repaired = 0;
    for killed_after in 0..10 {
        let disk = MemoryDisk::default();
        let here = replica(&disk, &entries[..until]).await;
        here.checkpoint().await.unwrap();
        let repair = fetched(&disk, &here, &there).await;
        disk.power_off_at(disk.operations() + killed_after);
        let _ = repair.finish().await;
        let disk = disk.after_kill();
        let mut restarted = Replica::open(&disk, small()).await.unwrap();
        let checked = restarted.store.check_segment(name, &mut Pace::fast::<MemoryEnv>()).await.unwrap();
        if !matches!(checked, Checked::Sound) {
            continue;
        }
        repaired += 1;
        restarted.apply(entries).unwrap();
        restarted.checkpoint().await.unwrap();
        for seed in 0..12 {
            let again = Replica::open(&disk.after_power_cut(seed), small()).await;
            let again = again.unwrap_or_else(|error| panic!("killed after {killed_after}: {error}"));
            again.check_reads(&model(entries)).await;
        }
    }
    assert!(repaired > 0);
}
