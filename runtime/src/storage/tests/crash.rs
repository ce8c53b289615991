//! The power goes at any change of the disk, and a restart with a replay leads to the same files.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::storage::tests::memory_env::MemoryDisk;
use crate::storage::tests::scenario::{
    Entry, Replica, Shape, assert_same_files, model, random_entries, reference_files, small,
};

const SHAPE: Shape = Shape { entries: 120, content_max: 2_000, drops: true, deletes: true };

/// Applies, flushes and checkpoints until the end or until the power goes.
async fn work(replica: &mut Replica, entries: &[Entry], seed: u64) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    while replica.applied < entries.len() {
        let upto = (replica.applied + random.random_range(1..8)).min(entries.len());
        replica.apply(&entries[..upto])?;
        match random.random_range(0..10) {
            0..5 => replica.store.flush().await.map_err(|error| error.to_string())?,
            5 => {
                // More is applied between the view and its sync.
                let view = replica.store.prepare_checkpoint();
                let applied = replica.applied;
                let upto = (replica.applied + 3).min(entries.len());
                replica.apply(&entries[..upto])?;
                let segments = replica.store.sync_for(&view).await.map_err(|error| error.to_string())?;
                let manifest = crate::storage::Manifest {
                    position: Some(lockstep_core::Position { term: 1, index: applied as u64 }),
                    segments,
                    ..Default::default()
                };
                replica.checkpoints.write(&manifest).await.map_err(|error| error.to_string())?;
                replica.store.checkpointed(view).await;
                replica.removed().await;
            }
            6 => {
                replica.checkpoint().await.map_err(|error| error.to_string())?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_crash_at_any_change_loses_nothing_that_is_replayed() {
    for seed in 0..4 {
        let entries = random_entries(seed, SHAPE);
        let expected = reference_files(&entries, small()).await;
        let model = model(&entries);
        let total = {
            let disk = MemoryDisk::default();
            let mut replica = Replica::open(&disk, small()).await.unwrap();
            work(&mut replica, &entries, seed).await.unwrap();
            disk.operations()
        };
        assert!(total > 100, "{total} changes are too few to be interesting");
        for at in (seed..total).step_by(7) {
            let mut disk = MemoryDisk::default();
            // The second start is cut off too.
            for (round, power_off_at) in [at, at / 3 + 1].into_iter().enumerate() {
                disk.power_off_at(power_off_at);
                if let Ok(mut replica) = Replica::open(&disk, small()).await {
                    let _ = work(&mut replica, &entries, seed + round as u64).await;
                    replica.store.close().await;
                }
                disk = disk.after_power_cut(seed * 100_000 + at + round as u64);
            }
            let mut replica = match Replica::open(&disk, small()).await {
                Ok(replica) => replica,
                Err(error) => panic!("seed {seed}, power off at {at}: {error}"),
            };
            replica.apply(&entries).unwrap();
            replica.checkpoint().await.unwrap();
            replica.check_reads(&model).await;
            assert_same_files(&replica.log_files(), &expected, &format!("seed {seed}, power off at {at}"));
            replica.store.close().await;
        }
    }
}

#[tokio::test]
async fn files_do_not_depend_on_when_they_are_written() {
    for seed in 100..110 {
        let entries = random_entries(seed, SHAPE);
        let expected = reference_files(&entries, small()).await;
        for pace in 0..3 {
            let mut replica = Replica::open(&MemoryDisk::default(), small()).await.unwrap();
            work(&mut replica, &entries, seed + pace).await.unwrap();
            replica.checkpoint().await.unwrap();
            assert_same_files(&replica.log_files(), &expected, &format!("seed {seed}, pace {pace}"));
        }
    }
}

#[tokio::test]
async fn a_failed_sync_stops_the_store() {
    let entries = random_entries(1, SHAPE);
    let disk = MemoryDisk::default();
    let mut replica = Replica::open(&disk, small()).await.unwrap();
    replica.apply(&entries[..50]).unwrap();
    disk.fail_syncs();
    assert!(replica.checkpoint().await.is_err());
    assert!(replica.store.failed().is_some_and(|reason| reason.contains("the disk is broken")));
    assert!(replica.apply(&entries).is_err());
    assert!(replica.store.flush().await.is_err());
}
