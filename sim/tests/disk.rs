//! The simulated disk: what a crash loses, what failed syncs, full disks and flipped bits leave behind.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, OpenMode};
use sim::env::clock::world_now;
use sim::env::disk::{DiskOptions, Flip, Operation, SimDisk};
use sim::env::trace::Trace;
use sim::simulate;

const FILE: &str = "data/file";

fn check<F: Future<Output = T>, T: Send + 'static>(
    seed: u64,
    test: impl Fn(SimDisk) -> F + Send + Copy + 'static,
) -> T {
    simulate(seed, move || test(SimDisk::new("n1", DiskOptions::default(), Trace::default())))
        .unwrap_or_else(|panic| panic!("seed {seed}: {panic}"))
}

/// A file whose directory entry is durable.
async fn file(disk: &SimDisk) -> <SimDisk as Disk>::File {
    disk.create_dir_all(Path::new("data")).await.unwrap();
    disk.sync_dir(Path::new("")).await.unwrap();
    let file = disk.open(Path::new(FILE), OpenMode::CreateNew).await.unwrap();
    disk.sync_dir(Path::new("data")).await.unwrap();
    file
}

async fn content(disk: &SimDisk) -> Vec<u8> {
    disk.read_file(Path::new(FILE), 1 << 20).await.unwrap()
}

fn bytes(byte: u8, len: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![byte; len])]
}

#[test]
fn what_is_synced_survives_a_power_cut_and_the_rest_may_go() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..60 {
        let survived = check(seed, |disk| async move {
            let file = file(&disk).await;
            file.write_and_sync(0, bytes(1, 1024)).await.unwrap();
            file.write_at(1024, bytes(2, 2048)).await.unwrap();
            let disk = disk.reboot(true);
            assert!(file.read_at(0, 1).await.is_err(), "a handle of the former life must be dead");
            content(&disk).await
        });
        assert_eq!(&survived[..1024], &[1; 1024], "seed {seed}: synced bytes were lost");
        match survived[1024..].iter().filter(|byte| **byte == 2).count() {
            0 => lost += 1,
            2048 => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 0 && lost > 0 && torn > 0, "kept {kept}, lost {lost}, torn {torn}");
}

#[test]
fn a_power_cut_goes_back_over_writes_cuts_and_growth_alike() {
    for seed in 0..60 {
        let survived = check(seed, |disk| async move {
            let file = file(&disk).await;
            file.write_and_sync(0, bytes(1, 4096)).await.unwrap();
            file.set_len(1000).await.unwrap();
            file.write_at(512, bytes(2, 512)).await.unwrap();
            file.allocate(8192).await.unwrap();
            file.write_at(6000, bytes(3, 100)).await.unwrap();
            assert_eq!(content(&disk).await.len(), 8192);
            content(&disk.reboot(true)).await
        });
        assert_eq!(&survived[..512], &[1; 512], "seed {seed}: nobody wrote there since the sync");
        let possible = |at: usize, byte: u8| match at {
            512..1024 => [0, 1, 2].contains(&byte),
            6000..6100 => [0, 3].contains(&byte),
            _ => [0, 1].contains(&byte),
        };
        let wrong = survived.iter().enumerate().find(|(at, byte)| !possible(*at, **byte));
        assert_eq!(wrong, None, "seed {seed}: a byte that was never written");
    }
}

#[test]
fn a_file_whose_directory_was_not_synced_may_be_gone() {
    let gone = |sync_parent: bool| {
        let is_gone = |seed| {
            check(seed, move |disk| async move {
                disk.create_dir_all(Path::new("data/deep")).await.unwrap();
                let file = disk.open(Path::new("data/deep/file"), OpenMode::CreateNew).await.unwrap();
                file.write_and_sync(0, bytes(1, 10)).await.unwrap();
                disk.sync_dir(Path::new("data/deep")).await.unwrap();
                disk.sync_dir(Path::new("data")).await.unwrap();
                if sync_parent {
                    disk.sync_dir(Path::new(".")).await.unwrap();
                }
                let opened = disk.reboot(true).open(Path::new("data/deep/file"), OpenMode::Read).await;
                opened.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            })
        };
        (0..40).filter(|seed| is_gone(*seed)).count()
    };
    assert_eq!(gone(true), 0);
    let gone = gone(false);
    assert!((1..40).contains(&gone), "{gone} of 40: the directory `data` itself was not synced");
}

#[test]
fn a_rename_is_whole_and_comes_after_what_it_renames() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..40 {
        let survived = check(seed, |disk| async move {
            file(&disk).await.write_and_sync(0, bytes(1, 10)).await.unwrap();
            disk.create_dir_all(Path::new("data/staged")).await.unwrap();
            let other = disk.open(Path::new("data/staged/other"), OpenMode::CreateNew).await.unwrap();
            other.write_and_sync(0, bytes(2, 10)).await.unwrap();
            disk.rename(Path::new("data/staged/other"), Path::new(FILE)).await.unwrap();
            let disk = disk.reboot(true);
            assert_eq!(disk.paths().iter().filter(|path| path.ends_with("file")).count(), 1);
            content(&disk).await
        });
        match survived[..] {
            [1, 1, ..] => old += 1,
            [2, 2, ..] => new += 1,
            _ => panic!("seed {seed}: {survived:?}"),
        }
    }
    assert!(old > 0 && new > 0, "old {old}, new {new}");
}

#[test]
fn a_killed_process_loses_nothing_that_the_kernel_holds() {
    check(1, |disk| async move {
        file(&disk).await.write_at(0, bytes(1, 10)).await.unwrap();
        assert_eq!(content(&disk.reboot(false)).await, [1; 10]);
    });
}

#[test]
fn what_a_failed_sync_was_to_write_is_not_durable_after_the_next_one_either() {
    let mut lost = 0;
    for seed in 0..40 {
        let survived = check(seed, |disk| async move {
            let file = file(&disk).await;
            file.write_and_sync(0, bytes(1, 4096)).await.unwrap();
            disk.fail_nth(Operation::Sync, 1);
            assert_eq!(file.write_and_sync(0, bytes(2, 2048)).await.unwrap_err().raw_os_error(), Some(5));
            assert_eq!(content(&disk).await[..2048], [2; 2048], "programs see what was written");
            file.write_and_sync(1024, bytes(3, 1024)).await.unwrap();
            content(&disk.reboot(true)).await
        });
        assert_eq!(survived[1024..2048], [3; 1024], "seed {seed}: a later sync that succeeds counts");
        assert_eq!(survived[2048..], [1; 2048], "seed {seed}");
        lost += usize::from(survived[..1024] != [2; 1024]);
    }
    assert!(lost > 0, "the failed sync had no consequence");
}

#[test]
fn operations_fail_as_often_as_they_are_told_to() {
    check(1, |disk| async move {
        let file = file(&disk).await;
        file.write_and_sync(0, bytes(1, 4096)).await.unwrap();
        disk.fail_nth(Operation::Read, 2);
        assert!(file.read_at(0, 1).await.is_ok());
        assert!(file.read_at(0, 1).await.is_err());
        assert!(file.read_at(0, 1).await.is_ok());
        disk.change_options(|options| options.write_error_per_mille = 1000);
        assert!(file.write_at(0, bytes(2, 10)).await.is_err());
        assert!(disk.rename(Path::new(FILE), Path::new("data/other")).await.is_err());
        disk.set_options(DiskOptions::default());
        disk.rename(Path::new(FILE), Path::new("data/other")).await.unwrap();
    });
}

#[test]
fn a_full_disk_takes_no_more_until_something_is_removed() {
    check(1, |disk| async move {
        let file = file(&disk).await;
        file.write_and_sync(0, bytes(1, 4096)).await.unwrap();
        let other = disk.open(Path::new("data/other"), OpenMode::CreateNew).await.unwrap();
        other.write_and_sync(0, bytes(2, 4096)).await.unwrap();
        disk.fill_up(1000);
        let is_full = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        };
        is_full(file.write_at(4096, bytes(3, 2000)).await);
        assert_eq!(content(&disk).await.len(), 5096, "as much as there was room for");
        is_full(file.allocate(6000).await);
        file.write_and_sync(0, bytes(4, 4096)).await.unwrap();
        disk.remove_file(Path::new("data/other")).await.unwrap();
        is_full(file.write_at(5096, bytes(3, 1)).await);
        drop(other);
        file.write_and_sync(5096, bytes(3, 4096)).await.unwrap();
        is_full(file.set_len(10_000).await);
    });
}

#[test]
fn a_sync_hangs_for_as_long_as_it_is_told_to() {
    check(1, |disk| async move {
        let file = file(&disk).await;
        disk.hang_syncs(Duration::from_secs(5));
        let begun_at = world_now();
        file.write_and_sync(0, bytes(1, 10)).await.unwrap();
        assert!(world_now() - begun_at >= Duration::from_secs(5));
        let begun_at = world_now();
        file.write_and_sync(0, bytes(1, 10)).await.unwrap();
        assert!(world_now() - begun_at < Duration::from_millis(10));
    });
}

#[test]
fn one_durable_bit_flips() {
    for seed in 0..20 {
        check(seed, move |disk| async move {
            let file = file(&disk).await;
            file.write_at(0, bytes(7, 100)).await.unwrap();
            assert_eq!(disk.flip_bit(|_| Some(Flip::Anywhere)), None, "nothing is durable");
            file.sync_data().await.unwrap();
            file.write_at(50, bytes(7, 100)).await.unwrap();
            let (path, at) = disk.flip_bit(|path| path.ends_with("file").then_some(Flip::Anywhere)).unwrap();
            assert_eq!(path, Path::new(FILE));
            assert!(at < 50, "seed {seed}: what is being written was flipped");
            let flipped = content(&disk).await;
            let differing: u32 = flipped.iter().map(|byte| (byte ^ 7).count_ones()).sum();
            assert_eq!(differing, 1, "seed {seed}");
            assert_ne!(flipped[at as usize], 7, "seed {seed}");
        });
    }
}
