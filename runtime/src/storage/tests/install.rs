//! Taking over another replica's checkpoint.

use std::io;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::storage::tests::memory_env::{MemoryDisk, MemoryEnv};
use crate::storage::tests::scenario::{
    Entry, Options, Replica, Shape, assert_same_files, model, random_entries, reference_files, small,
};
use crate::storage::{Cache, Installation, Manifest};

const SHAPE: Shape = Shape { entries: 150, content_max: 2_000, drops: true, deletes: true };

/// Fetches what is missing, in chunks of random lengths; the number of bytes fetched.
async fn fetch(installation: &mut Installation<MemoryEnv>, leader: &Replica, seed: u64) -> io::Result<u64> {
    fetch_some(installation, leader, seed, u64::MAX).await
}

/// The same, until it is so much.
async fn fetch_some(
    installation: &mut Installation<MemoryEnv>,
    leader: &Replica,
    seed: u64,
    enough: u64,
) -> io::Result<u64> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut fetched = 0;
    loop {
        let missing = installation.missing();
        if missing.is_empty() {
            return Ok(fetched);
        }
        for range in missing {
            let mut from = range.from;
            let end = range.from + range.len;
            while from < end {
                let len = random.random_range(1..4_000).min(end - from);
                let chunk = leader.store.read_chunk(&range.segment, from, len as usize).await?;
                from += chunk.len() as u64;
                fetched += chunk.len() as u64;
                installation.write_chunk(&range.segment, from - chunk.len() as u64, chunk).await?;
                if fetched >= enough {
                    return Ok(fetched);
                }
            }
        }
    }
}

async fn install(follower: &mut Replica, leader: &Replica, manifest: &Manifest, seed: u64) -> io::Result<u64> {
    let mut installation = Installation::begin(&follower.store, manifest.clone()).await?;
    let fetched = fetch(&mut installation, leader, seed).await?;
    installation.finish(&follower.checkpoints).await?;
    follower.removed().await;
    follower.applied = manifest.position.unwrap().index as usize;
    Ok(fetched)
}

async fn leader(entries: &[Entry]) -> (Replica, Manifest) {
    let mut leader = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    leader.apply(entries).unwrap();
    let manifest = leader.checkpoint().await.unwrap();
    (leader, manifest)
}

fn total(manifest: &Manifest) -> u64 {
    manifest.segments.iter().map(|entry| entry.len).sum()
}

/// The follower is at the manifest, keeps up from there, and a restart finds it all.
async fn check_installed(mut follower: Replica, options: Options, leader: &mut Replica, entries: &[Entry], at: usize) {
    follower.check_reads(&model(&entries[..at])).await;
    assert_same_files(&follower.log_files(), &leader.log_files(), "installed");
    follower.apply(entries).unwrap();
    follower.store.close().await;
    let mut follower = Replica::open(&follower.disk, options).await.unwrap();
    assert_eq!(follower.applied, at);
    follower.apply(entries).unwrap();
    follower.check_reads(&model(entries)).await;
    follower.checkpoint().await.unwrap();
    leader.apply(entries).unwrap();
    leader.checkpoint().await.unwrap();
    assert_same_files(&follower.log_files(), &leader.log_files(), "installed");
}

#[tokio::test]
async fn an_emptied_node_fetches_everything() {
    for seed in 0..5 {
        let entries = random_entries(seed, SHAPE);
        let (mut leader, manifest) = leader(&entries[..100]).await;
        let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
        let fetched = install(&mut follower, &leader, &manifest, seed).await.unwrap();
        assert_eq!(fetched, total(&manifest));
        check_installed(follower, small(), &mut leader, &entries, 100).await;
    }
}

#[tokio::test]
async fn what_was_fetched_before_an_interruption_is_not_fetched_again() {
    for seed in 90..110 {
        let entries = random_entries(seed, SHAPE);
        let (mut leader, manifest) = leader(&entries[..100]).await;
        let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
        let mut before = 0;
        for part in 1..4 {
            let mut installation = Installation::begin(&follower.store, manifest.clone()).await.unwrap();
            let some = total(&manifest) / 4;
            before += fetch_some(&mut installation, &leader, seed + part, some).await.unwrap();
            drop(installation);
            if seed % 3 > 0 {
                follower.store.close().await;
                let disk =
                    if seed % 3 == 1 { follower.disk.clone() } else { follower.disk.after_power_cut(seed + part) };
                follower = Replica::open(&disk, small()).await.unwrap();
            }
        }
        let fetched = install(&mut follower, &leader, &manifest, seed).await.unwrap();
        if seed % 3 < 2 {
            assert_eq!(before + fetched, total(&manifest), "seed {seed}");
        }
        check_installed(follower, small(), &mut leader, &entries, 100).await;
    }
}

#[tokio::test]
async fn segments_that_were_whole_before_an_interruption_are_not_copied() {
    for seed in 110..120 {
        let entries = random_entries(seed, Shape { drops: false, deletes: false, ..SHAPE });
        let (mut leader, first) = leader(&entries[..100]).await;
        let longest = first.segments.iter().map(|entry| entry.len).max().unwrap();
        let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
        let mut fetched = 0;
        for part in 1..4 {
            let before = follower.disk.written();
            let mut installation = Installation::begin(&follower.store, first.clone()).await.unwrap();
            let copied = follower.disk.written() - before;
            assert!(copied <= longest, "seed {seed}: {copied} bytes of {fetched} were copied");
            fetched += fetch_some(&mut installation, &leader, seed + part, total(&first) / 4).await.unwrap();
            drop(installation);
            if part % 2 == seed % 2 {
                follower.store.close().await;
                follower = Replica::open(&follower.disk, small()).await.unwrap();
            }
        }
        // What has grown since goes on where it was whole, also when that is interrupted.
        leader.apply(&entries).unwrap();
        let second = leader.checkpoint().await.unwrap();
        let before = follower.disk.written();
        let mut installation = Installation::begin(&follower.store, second.clone()).await.unwrap();
        let some = fetch_some(&mut installation, &leader, seed, 2 * longest).await.unwrap();
        drop(installation);
        let rest = install(&mut follower, &leader, &second, seed).await.unwrap();
        let installed = follower.disk.written() - before;
        // Beside what was fetched: two files that were being written, the new checkpoint, and indexes.
        let beside = 2 * longest + second.encode().len() as u64 + (8 << 10);
        assert!(installed <= some + rest + beside, "seed {seed}: {installed} written for {some} and {rest}");
        check_installed(follower, small(), &mut leader, &entries, entries.len()).await;
    }
}

#[tokio::test]
async fn a_lagging_node_fetches_only_the_rest() {
    for seed in 10..20 {
        let entries = random_entries(seed, Shape { deletes: false, ..SHAPE });
        let (mut leader, manifest) = leader(&entries[..100]).await;
        let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
        follower.apply(&entries[..40]).unwrap();
        follower.checkpoint().await.unwrap();
        follower.apply(&entries[..70]).unwrap();
        let kept = model(&entries[..100]);
        let before: usize = model(&entries[..70])
            .iter()
            .filter(|(key, _)| kept.contains_key(key))
            .flat_map(|(_, log)| &log.batches)
            .map(|batch| batch.bytes.len())
            .sum();
        let fetched = install(&mut follower, &leader, &manifest, seed).await.unwrap();
        assert_eq!(fetched + before as u64, total(&manifest), "seed {seed}");
        check_installed(follower, small(), &mut leader, &entries, 100).await;
    }
}

#[tokio::test]
async fn applying_may_go_on_while_fetching() {
    for seed in 20..25 {
        let entries = random_entries(seed, SHAPE);
        let (mut leader, manifest) = leader(&entries[..100]).await;
        let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
        follower.apply(&entries[..40]).unwrap();
        let mut installation = Installation::begin(&follower.store, manifest).await.unwrap();
        follower.apply(&entries[..60]).unwrap();
        follower.checkpoint().await.unwrap();
        fetch(&mut installation, &leader, seed).await.unwrap();
        follower.apply(&entries[..80]).unwrap();
        follower.check_reads(&model(&entries[..80])).await;
        installation.finish(&follower.checkpoints).await.unwrap();
        follower.removed().await;
        follower.applied = 100;
        check_installed(follower, small(), &mut leader, &entries, 100).await;
    }
}

#[tokio::test]
async fn a_local_part_that_differs_is_fetched_too() {
    let entries = random_entries(30, SHAPE);
    let (mut leader, manifest) = leader(&entries[..100]).await;
    let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    follower.apply(&entries[..30]).unwrap();
    // The same batches up to here, another one then.
    let key = *model(&entries[..100]).keys().find(|key| follower.store.log(key.0, key.1).is_some()).unwrap();
    let end = follower.log(key).end_offset();
    let other = super::batch::batch(1, 7, b"this was never acknowledged");
    let effect = lockstep_core::Effect::Append {
        topic_id: key.0,
        partition: key.1,
        payload_start: 0,
        payload_len: other.len() as u32,
        base_offset: end,
        next_offset: end + 1,
        leader_epoch: 9,
        log_append_time_ms: None,
        limits: follower.limits(),
    };
    follower.store.apply(&effect, &other.into()).unwrap();
    follower.checkpoint().await.unwrap();
    install(&mut follower, &leader, &manifest, 30).await.unwrap();
    check_installed(follower, small(), &mut leader, &entries, 100).await;
}

#[tokio::test]
async fn other_segment_sizes_give_way_to_the_leaders() {
    for (seed, segment_bytes) in [(40, 1_000), (41, 7_000), (42, 100_000)] {
        let entries = random_entries(seed, SHAPE);
        let (leader, manifest) = leader(&entries[..100]).await;
        let options = Options::new(segment_bytes, Cache::new(1_000));
        let mut follower = Replica::open(&MemoryDisk::default(), options.clone()).await.unwrap();
        follower.apply(&entries[..70]).unwrap();
        follower.checkpoint().await.unwrap();
        install(&mut follower, &leader, &manifest, seed).await.unwrap();
        assert_same_files(&follower.log_files(), &leader.log_files(), "installed");
        follower.check_reads(&model(&entries[..100])).await;
        let mut follower = Replica::open(&follower.disk, options).await.unwrap();
        follower.apply(&entries).unwrap();
        follower.check_reads(&model(&entries)).await;
    }
}

#[tokio::test]
async fn bytes_that_do_not_match_the_manifest_are_refused() {
    let entries = random_entries(50, SHAPE);
    let (leader, manifest) = leader(&entries[..100]).await;
    let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
    follower.apply(&entries[..20]).unwrap();
    follower.checkpoint().await.unwrap();
    let before = follower.log_files();
    let mut installation = Installation::begin(&follower.store, manifest.clone()).await.unwrap();
    assert_eq!(
        Installation::begin(&follower.store, manifest.clone()).await.unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    let range = *installation.missing().iter().find(|range| range.from == 0).unwrap();
    let chunk = leader.store.read_chunk(&range.segment, 0, range.len as usize).await.unwrap();
    for (offset, chunk) in [(1, chunk.slice(1..)), (0, [&chunk[..], b"x"].concat().into()), (0, bytes::Bytes::new())] {
        let error = installation.write_chunk(&range.segment, offset, chunk).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    let mut wrong = chunk.to_vec();
    *wrong.last_mut().unwrap() ^= 1;
    let error = installation.write_chunk(&range.segment, 0, wrong.into()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(installation.missing().contains(&range));
    drop(installation);

    assert_same_files(&follower.log_files(), &before, "given up");
    follower.check_reads(&model(&entries[..20])).await;
    let mut follower = Replica::open(&follower.disk, small()).await.unwrap();
    assert_eq!(follower.applied, 20);
    install(&mut follower, &leader, &manifest, 50).await.unwrap();
    assert_same_files(&follower.log_files(), &leader.log_files(), "installed");
}

#[tokio::test]
async fn a_crash_leaves_the_old_or_the_new_state() {
    for seed in 60..66 {
        let entries = random_entries(seed, SHAPE);
        let (leader, manifest) = leader(&entries[..100]).await;
        let ready = async || {
            let disk = MemoryDisk::default();
            let mut follower = Replica::open(&disk, small()).await.unwrap();
            if seed % 3 > 0 {
                follower.apply(&entries[..40]).unwrap();
                follower.checkpoint().await.unwrap();
                follower.apply(&entries[..70]).unwrap();
            }
            follower
        };
        let mut follower = ready().await;
        let start = follower.disk.operations();
        install(&mut follower, &leader, &manifest, seed).await.unwrap();
        let end = follower.disk.operations();
        let expected = reference_files(&entries, small()).await;
        let (mut old, mut new) = (0, 0);
        for at in start..end + 2 {
            let mut follower = ready().await;
            follower.disk.power_off_at(at);
            let _ = install(&mut follower, &leader, &manifest, seed).await;
            let mut disk = follower.disk.after_power_cut(seed * 100_000 + at);
            // The next start is cut off as well.
            disk.power_off_at(at % 7);
            let _ = Replica::open(&disk, small()).await;
            disk = disk.after_power_cut(at);
            let mut follower = match Replica::open(&disk, small()).await {
                Ok(follower) => follower,
                Err(error) => panic!("seed {seed}, power off at {at}: {error}"),
            };
            match follower.applied {
                100 => new += 1,
                0 | 40 => old += 1,
                other => panic!("seed {seed}, power off at {at}: {other} entries"),
            }
            follower.apply(&entries).unwrap();
            follower.check_reads(&model(&entries)).await;
            follower.checkpoint().await.unwrap();
            assert_same_files(&follower.log_files(), &expected, &format!("seed {seed}, power off at {at}"));
        }
        assert!(old > 0 && new > 0, "seed {seed}: {old} old, {new} new");
    }
}

#[tokio::test]
async fn a_disk_that_is_full_meanwhile_only_holds_up_the_end() {
    let seed = 66;
    let entries = random_entries(seed, SHAPE);
    let (leader, manifest) = leader(&entries[..100]).await;
    let fetched = async || {
        let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
        follower.apply(&entries[..40]).unwrap();
        follower.checkpoint().await.unwrap();
        let mut installation = Installation::begin(&follower.store, manifest.clone()).await.unwrap();
        fetch(&mut installation, &leader, seed).await.unwrap();
        // Still to be written when the installation ends.
        follower.apply(&entries[..70]).unwrap();
        (follower, installation)
    };
    let (follower, installation) = fetched().await;
    let start = follower.disk.operations();
    installation.finish(&follower.checkpoints).await.unwrap();
    let end = follower.disk.operations();
    let expected = reference_files(&entries, small()).await;
    let ends = (start..end).map(async |at| {
        let (mut follower, installation) = fetched().await;
        follower.disk.full_at(at);
        if let Err(error) = installation.finish(&follower.checkpoints).await {
            panic!("full at {at}: {error}");
        }
        let was_full = follower.disk.was_full();
        follower.applied = 100;
        follower.apply(&entries).unwrap();
        follower.check_reads(&model(&entries)).await;
        follower.checkpoint().await.unwrap();
        assert_same_files(&follower.log_files(), &expected, &format!("full at {at}"));
        was_full
    });
    let met = futures_util::future::join_all(ends).await.into_iter().filter(|was_full| *was_full).count();
    assert!(met > 10, "only {met} of {} changes met a full disk", end - start);
}

/// A replica that missed the deletion of what it has, and all that followed.
#[tokio::test]
async fn segments_that_the_leader_has_deleted_go_with_the_installation() {
    for seed in 70..80 {
        let shape = Shape { entries: 150, content_max: 2_000, drops: false, deletes: false };
        let mut entries = random_entries(seed, shape);
        // Everything that there is by entry 90 is deleted then.
        let effects =
            model(&entries[..90]).into_iter().filter(|(_, log)| log.end > 0).map(|((topic_id, partition), log)| {
                lockstep_core::Effect::TruncateBefore { topic_id, partition, start_offset: log.end }
            });
        entries.insert(90, Entry { effects: effects.collect(), payload: bytes::Bytes::new() });
        let (mut leader, manifest) = leader(&entries[..100]).await;
        let mut follower = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
        follower.apply(&entries[..40]).unwrap();
        follower.checkpoint().await.unwrap();
        follower.apply(&entries[..70]).unwrap();
        let fetched = install(&mut follower, &leader, &manifest, seed).await.unwrap();
        assert_eq!(fetched, total(&manifest), "seed {seed}: nothing of what it had is left");
        check_installed(follower, small(), &mut leader, &entries, 100).await;
    }
}
