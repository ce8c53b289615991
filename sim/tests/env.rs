//! The simulated environment itself: what a crash loses, what a cut link holds back, and that a seed repeats.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use lockstep_env::{Disk, DiskFile, Env, Listener, OpenMode, timeout};
use sim::env::SimEnv;
use sim::env::disk::{DiskOptions, SimDisk};
use sim::env::net::{LinkOptions, Network};
use sim::env::trace::Trace;
use sim::simulate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn check<F: Future<Output = T>, T: Send + 'static>(
    seed: u64,
    test: impl Fn(Network) -> F + Send + Copy + 'static,
) -> T {
    simulate(seed, move || test(Network::new(LinkOptions::default(), Trace::default()))).unwrap()
}

fn disk(network: &Network, host: &str) -> SimDisk {
    SimDisk::new(
        host,
        DiskOptions::default(),
        SimEnv::new(host, network, SimDisk::new(host, DiskOptions::default(), Trace::default())).trace().clone(),
    )
}

#[test]
fn what_is_synced_survives_a_power_cut_and_the_rest_may_go() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..60 {
        let survived = check(seed, |network| async move {
            let disk = disk(&network, "n1");
            let directory = Path::new("data");
            disk.create_dir_all(directory).await.unwrap();
            let file = disk.open(&directory.join("file"), OpenMode::CreateNew).await.unwrap();
            disk.sync_dir(directory).await.unwrap();
            file.write_and_sync(0, vec![Bytes::from(vec![1; 1024])]).await.unwrap();
            file.write_at(1024, vec![Bytes::from(vec![2; 2048])]).await.unwrap();
            let disk = disk.reboot(true);
            assert!(file.read_at(0, 1).await.is_err(), "a handle of the former life must be dead");
            disk.read_file(&directory.join("file"), 1 << 20).await.unwrap()
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
fn a_file_whose_directory_was_not_synced_may_be_gone() {
    let mut gone = 0;
    for seed in 0..40 {
        gone += usize::from(check(seed, |network| async move {
            let disk = disk(&network, "n1");
            disk.create_dir_all(Path::new("data")).await.unwrap();
            let file = disk.open(Path::new("data/file"), OpenMode::CreateNew).await.unwrap();
            file.write_and_sync(0, vec![Bytes::from_static(b"content")]).await.unwrap();
            let missing = disk.reboot(true).open(Path::new("data/file"), OpenMode::Read).await;
            missing.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        }));
    }
    assert!((1..40).contains(&gone), "{gone} of 40");
}

#[test]
fn a_killed_process_loses_nothing_that_the_kernel_holds() {
    check(1, |network| async move {
        let disk = disk(&network, "n1");
        disk.create_dir_all(Path::new("data")).await.unwrap();
        let file = disk.open(Path::new("data/file"), OpenMode::CreateNew).await.unwrap();
        file.write_at(0, vec![Bytes::from_static(b"content")]).await.unwrap();
        assert_eq!(disk.reboot(false).read_file(Path::new("data/file"), 100).await.unwrap(), b"content");
    });
}

#[test]
fn a_cut_link_holds_bytes_back_in_one_direction_only() {
    check(2, |network| async move {
        let (a, b) = (SimEnv::new("a", &network, disk(&network, "a")), SimEnv::new("b", &network, disk(&network, "b")));
        let mut listener = b.listen("b:1").await.unwrap();
        let mut to_b = a.connect("b:1").await.unwrap();
        let mut to_a = listener.accept().await.unwrap();
        network.block("a", "b");
        to_b.writer.write_all(b"late").await.unwrap();
        to_a.writer.write_all(b"at once").await.unwrap();
        let mut bytes = [0; 7];
        to_b.reader.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"at once");
        let mut late = [0; 4];
        assert!(timeout::<SimEnv, _>(Duration::from_secs(5), to_a.reader.read_exact(&mut late)).await.is_err());
        assert!(timeout::<SimEnv, _>(Duration::from_secs(10), a.connect("b:1")).await.unwrap().is_err());
        network.heal();
        to_a.reader.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"late");
    });
}

#[test]
fn a_silent_death_leaves_connections_half_open_until_the_host_is_back() {
    check(3, |network| async move {
        let (a, b) = (SimEnv::new("a", &network, disk(&network, "a")), SimEnv::new("b", &network, disk(&network, "b")));
        let mut listener = b.listen("b:1").await.unwrap();
        let mut to_b = a.connect("b:1").await.unwrap();
        let to_a = listener.accept().await.unwrap();
        network.host_down("b", true);
        drop((to_a, listener));
        to_b.writer.write_all(b"into the void").await.unwrap();
        let mut byte = [0; 1];
        assert!(timeout::<SimEnv, _>(Duration::from_secs(5), to_b.reader.read_exact(&mut byte)).await.is_err());
        network.host_up("b");
        let broken = timeout::<SimEnv, _>(Duration::from_secs(5), to_b.reader.read_exact(&mut byte)).await.unwrap();
        assert!(broken.is_err());
        let refused = a.connect("b:1").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_seed_repeats_itself() {
    let run = |seed| {
        check(seed, |network| async move {
            let env = SimEnv::new("a", &network, disk(&network, "a"));
            let server = SimEnv::new("b", &network, disk(&network, "b"));
            let mut listener = server.listen("b:1").await.unwrap();
            let tasks: Vec<_> = (0..5_u8)
                .map(|number| {
                    let env = env.clone();
                    SimEnv::spawn(async move {
                        let mut connection = env.connect("b:1").await.unwrap();
                        for _ in 0..10 {
                            connection.writer.write_all(&[number; 100]).await.unwrap();
                            SimEnv::sleep(Duration::from_micros(SimEnv::random_u64() % 500)).await;
                        }
                    })
                })
                .collect();
            for _ in 0..5 {
                let mut connection = listener.accept().await.unwrap();
                let mut bytes = Vec::new();
                connection.reader.read_to_end(&mut bytes).await.unwrap();
                assert_eq!(bytes.len(), 1000);
            }
            for task in tasks {
                task.await.unwrap();
            }
            env.trace().fingerprint()
        })
    };
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1), run(2));
}
