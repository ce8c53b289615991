//! The power goes at any operation.

use std::future::Future;

use bytes::Bytes;
use lockstep_core::ShardId;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::memory_env::{MemoryDisk, MemoryEnv};
use super::model::{Driver, Model, open};
use crate::error::StartError;

pub(super) fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

const FILE_BYTES: u64 = 32 << 10;

/// Opens a journal, does `calls` random calls to it and lets the power go at `power_off_at`.
async fn workload(disk: MemoryDisk, base: Model, seed: u64, calls: usize, power_off_at: Option<u64>) -> Option<Driver> {
    let env = MemoryEnv { disk };
    env.disk.power_off_at(power_off_at);
    let journal = match open(&env, FILE_BYTES).await {
        Ok(journal) => journal,
        Err(StartError::Io { .. }) if power_off_at.is_some() => return None,
        Err(error) => panic!("{error}"),
    };
    let mut driver = Driver::new(journal, base);
    driver.random_calls(&mut StdRng::seed_from_u64(seed), calls).await;
    if power_off_at.is_none() {
        driver.journal.close().await;
    }
    Some(driver)
}

/// What a restart finds. Whoever is still at work on the former disk gets nothing done any more, so that nothing is answered after the cut.
fn cut_power(disk: &MemoryDisk, seed: u64) -> MemoryDisk {
    disk.power_off_at(Some(0));
    disk.after_power_cut(seed)
}

#[test]
fn what_was_answered_survives_a_power_cut_at_every_operation() {
    for seed in 0..2 {
        let operations = run(async {
            let disk = MemoryDisk::default();
            workload(disk.clone(), Model::new(), seed, 100, None).await;
            disk.operations()
        });
        assert!(operations > 120, "{operations}");
        for power_off_at in 0..operations {
            eprintln!("seed {seed}, power off at operation {power_off_at}");
            run(async {
                let disk = MemoryDisk::default();
                let driver = workload(disk.clone(), Model::new(), seed, 100, Some(power_off_at)).await;
                let disk = cut_power(&disk, seed * 1_000_003 + power_off_at);
                let env = MemoryEnv { disk: disk.clone() };
                let recovered = open(&env, FILE_BYTES).await.unwrap();
                let found = match driver {
                    Some(driver) => driver.check_recovered(&recovered).await,
                    None => Model::read(&recovered).await,
                };
                recovered.close().await;
                // And it goes on from there, to be found again.
                let driver = workload(disk.clone(), found, seed + 77, 20, None).await.unwrap();
                let again = open(&env, FILE_BYTES).await.unwrap();
                assert_eq!(Model::read(&again).await, driver.model);
            });
        }
    }
}

#[test]
fn repeated_power_cuts_during_recovery_lose_nothing() {
    for seed in 100..160 {
        eprintln!("seed {seed}");
        run(async {
            let mut disk = MemoryDisk::default();
            let mut base = Model::new();
            for round in 0..12 {
                let power_off_at = 1 + (seed * 31 + round * 17) % 60;
                let driver = workload(disk.clone(), base.clone(), seed + round, 60, Some(power_off_at)).await;
                disk = cut_power(&disk, seed * 1_000 + round);
                // A copy is recovered to look at, so that the next round is a recovery of what the cut left.
                let copy = disk.after_power_cut(0);
                let recovered = open(&MemoryEnv { disk: copy }, FILE_BYTES).await.unwrap();
                base = match driver {
                    Some(driver) => driver.check_recovered(&recovered).await,
                    None => {
                        let found = Model::read(&recovered).await;
                        assert_eq!(found, base, "a start that was cut short changed something");
                        found
                    }
                };
            }
        });
    }
}

#[test]
fn what_a_restart_found_survives_a_later_power_cut() {
    for seed in 200..230 {
        for killed_at in (5..90).step_by(7) {
            let power_off_after = (seed + killed_at) % 14;
            eprintln!("seed {seed}, killed at operation {killed_at}, power off {power_off_after} later");
            run(async {
                let disk = MemoryDisk::default();
                let driver = workload(disk.clone(), Model::new(), seed, 60, Some(killed_at)).await;
                // The process comes back, but what the machine had not synced is still only in its memory.
                disk.power_off_at(Some(killed_at + power_off_after));
                let found = match open(&MemoryEnv { disk: disk.clone() }, FILE_BYTES).await {
                    Ok(recovered) => {
                        disk.power_off_at(None);
                        Some(Model::read(&recovered).await)
                    }
                    Err(StartError::Io { .. }) => None,
                    Err(error) => panic!("{error}"),
                };
                let disk = cut_power(&disk, seed + killed_at);
                let recovered = open(&MemoryEnv { disk }, FILE_BYTES).await.unwrap();
                if let Some(driver) = driver {
                    driver.check_recovered(&recovered).await;
                }
                if let Some(found) = found {
                    assert_eq!(Model::read(&recovered).await, found);
                }
            });
        }
    }
}

#[test]
fn what_a_restart_found_after_a_failed_sync_survives_a_later_power_cut() {
    run(async {
        let env = MemoryEnv::default();
        let log = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0));
        env.disk.fail_syncs(true);
        log.save_vote(Bytes::from("not acknowledged")).await.unwrap_err();
        env.disk.fail_syncs(false);
        // The operating system shows the vote although the disk has lost it. Whoever has seen it relies on it.
        let found = open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0)).vote();
        let env = MemoryEnv { disk: env.disk.after_power_cut(1) };
        assert_eq!(open(&env, FILE_BYTES).await.unwrap().shard(ShardId(0)).vote(), found);
    });
}
