//! The simulated links and clocks: what a cut link holds back, who is told what, how time passes, and that a seed repeats.

use std::io;
use std::time::Duration;

use lockstep_env::{Connection, Env, Listener, timeout};
use sim::env::SimEnv;
use sim::env::clock::{HostClock, world_now};
use sim::env::crash::CrashPoints;
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
    SimDisk::new(host, DiskOptions::default(), network.trace().clone())
}

fn env(network: &Network, host: &str) -> SimEnv {
    SimEnv::new(host, network, disk(network, host))
}

/// A connection from `a` to `b`: the end at `a`, and the one at `b`.
async fn connected(network: &Network) -> (Connection<SimEnv>, Connection<SimEnv>) {
    let mut listener = env(network, "b").listen("b:1").await.unwrap();
    let near = env(network, "a").connect("b:1").await.unwrap();
    (near, listener.accept().await.unwrap())
}

/// How long one write takes to arrive whole.
async fn transfer(from: &mut Connection<SimEnv>, to: &mut Connection<SimEnv>, len: usize) -> Duration {
    let begun_at = world_now();
    from.writer.write_all(&vec![1; len]).await.unwrap();
    to.reader.read_exact(&mut vec![0; len]).await.unwrap();
    world_now() - begun_at
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

#[test]
fn blocks_of_one_direction_are_lifted_one_by_one() {
    check(4, |network| async move {
        let (mut at_a, mut at_b) = connected(&network).await;
        let (first, second) = (network.block("a", "b"), network.block("a", "b"));
        at_a.writer.write_all(b"x").await.unwrap();
        network.unblock(first);
        let mut byte = [0; 1];
        assert!(timeout::<SimEnv, _>(Duration::from_secs(5), at_b.reader.read_exact(&mut byte)).await.is_err());
        network.unblock(second);
        at_b.reader.read_exact(&mut byte).await.unwrap();
    });
}

#[test]
fn a_slow_link_delays_by_what_it_carries_and_only_in_its_direction() {
    check(5, |network| async move {
        let (mut at_a, mut at_b) = connected(&network).await;
        let slow = LinkOptions { bytes_per_second: Some(100_000), ..LinkOptions::default() };
        network.set_link("a", "b", Some(slow));
        let took = transfer(&mut at_a, &mut at_b, 50_000).await;
        assert!((500..520).contains(&took.as_millis()), "{took:?}");
        assert!(transfer(&mut at_b, &mut at_a, 50_000).await < Duration::from_millis(10));
        // What two connections write shares the link.
        let (mut other_a, mut other_b) = connected(&network).await;
        let begun_at = world_now();
        other_a.writer.write_all(&[1; 20_000]).await.unwrap();
        transfer(&mut at_a, &mut at_b, 20_000).await;
        other_b.reader.read_exact(&mut [0; 20_000]).await.unwrap();
        let took = world_now() - begun_at;
        assert!((400..420).contains(&took.as_millis()), "{took:?}");
        network.set_link("a", "b", None);
        assert!(transfer(&mut at_a, &mut at_b, 50_000).await < Duration::from_millis(10));
    });
}

#[test]
fn in_a_ring_everybody_reaches_a_majority_and_nobody_the_same() {
    check(6, |network| async move {
        let hosts = ["a", "b", "c", "d", "e"];
        let mut listeners = Vec::new();
        for host in hosts {
            listeners.push(env(&network, host).listen(&format!("{host}:1")).await.unwrap());
        }
        let blocks = network.ring(&hosts);
        let mut reached = Vec::new();
        for from in hosts {
            let mut of_one = String::new();
            for to in hosts {
                if env(&network, from).connect(&format!("{to}:1")).await.is_ok() {
                    of_one.push_str(to);
                }
            }
            reached.push(of_one);
        }
        assert_eq!(reached, ["abe", "abc", "bcd", "cde", "ade"]);
        for block in blocks {
            network.unblock(block);
        }
        assert!(env(&network, "a").connect("c:1").await.is_ok());
    });
}

#[test]
fn refused_connections_fail_at_once_and_leave_the_others_alone() {
    check(7, |network| async move {
        let mut listener = env(&network, "b").listen("b:1").await.unwrap();
        let mut at_a = env(&network, "a").connect("b:1").await.unwrap();
        let mut at_b = listener.accept().await.unwrap();
        let refusal = network.refuse("a", "b");
        let refused = timeout::<SimEnv, _>(Duration::from_millis(100), env(&network, "a").connect("b:1")).await;
        assert_eq!(refused.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        transfer(&mut at_a, &mut at_b, 10).await;
        network.unblock(refusal);
        assert!(env(&network, "a").connect("b:1").await.is_ok());
    });
}

#[test]
fn a_cut_connection_delivers_some_first_part() {
    let mut partly = 0;
    for seed in 0..20 {
        let (arrived, error) = check(seed, |network| async move {
            let (mut at_a, mut at_b) = connected(&network).await;
            network.set_options(LinkOptions { cut_per_million: 1_000_000, ..LinkOptions::default() });
            at_a.writer.write_all(&[1; 100]).await.unwrap();
            assert!(at_a.writer.write_all(&[1; 100]).await.is_err());
            assert!(at_a.reader.read_u8().await.is_err(), "the other direction is broken too");
            let mut bytes = Vec::new();
            let ended = at_b.reader.read_to_end(&mut bytes).await;
            (bytes.len(), ended.unwrap_err().kind())
        });
        assert_eq!(error, io::ErrorKind::ConnectionReset, "seed {seed}");
        assert!(arrived < 100, "seed {seed}");
        partly += usize::from(arrived > 0);
    }
    assert!(partly > 0);
}

#[test]
fn a_ghost_connection_never_speaks_and_breaks_when_spoken_to() {
    check(8, |network| async move {
        network.set_options(LinkOptions { ghost_per_mille: 1000, ..LinkOptions::default() });
        let mut listener = env(&network, "b").listen("b:1").await.unwrap();
        let mut at_a = env(&network, "a").connect("b:1").await.unwrap();
        let mut ghost = listener.accept().await.unwrap();
        let mut at_b = listener.accept().await.unwrap();
        transfer(&mut at_a, &mut at_b, 10).await;
        assert!(timeout::<SimEnv, _>(Duration::from_secs(5), ghost.reader.read_u8()).await.is_err());
        ghost.writer.write_all(b"who is there?").await.unwrap();
        assert!(timeout::<SimEnv, _>(Duration::from_secs(5), ghost.reader.read_u8()).await.unwrap().is_err());
    });
}

#[test]
fn what_a_killed_process_had_sent_may_arrive() {
    let (mut arrived, mut lost) = (0, 0);
    for seed in 0..20 {
        let last_words = check(seed, |network| async move {
            let (mut at_a, mut at_b) = connected(&network).await;
            at_a.writer.write_all(b"x").await.unwrap();
            network.host_down("a", false);
            drop(at_a);
            let mut bytes = Vec::new();
            let _ = timeout::<SimEnv, _>(Duration::from_secs(1), at_b.reader.read_to_end(&mut bytes)).await.unwrap();
            bytes.len()
        });
        if last_words == 1 { arrived += 1 } else { lost += 1 }
    }
    assert!(arrived > 0 && lost > 0, "arrived {arrived}, lost {lost}");
}

/// A host whose tasks are those of the test itself, with its own clock.
fn env_with_clock(network: &Network) -> SimEnv {
    let clock = HostClock::new(network.trace().started_at());
    let points = CrashPoints::default();
    SimEnv::on_machine("a", network, disk(network, "a"), clock, points, madsim::plugin::node())
}

#[test]
fn a_drifting_clock_and_the_sleeps_by_it_agree() {
    for ppm in [-100_000, -500, 500, 100_000] {
        check(9, move |network| async move {
            let env = env_with_clock(&network);
            let (world, host, wall) = (world_now(), SimEnv::now(), env.wall_clock_ms());
            env.clock().set_drift_ppm(ppm);
            SimEnv::sleep(Duration::from_secs(100)).await;
            let (world, host, wall) = (world_now() - world, SimEnv::now() - host, env.wall_clock_ms() - wall);
            assert!(host >= Duration::from_secs(100) && host < Duration::from_millis(100_010), "{host:?}");
            assert!((wall - 100_000).abs() < 10, "{wall}");
            let expected = 100.0 / (1.0 + ppm as f64 / 1e6);
            assert!((world.as_secs_f64() - expected).abs() < 0.01, "{world:?} instead of {expected} s");
        });
    }
}

#[test]
fn a_clock_that_becomes_slower_never_goes_back_nor_ends_a_sleep_early() {
    check(10, |network| async move {
        let env = env_with_clock(&network);
        env.clock().set_drift_ppm(100_000);
        SimEnv::sleep(Duration::from_secs(10)).await;
        let begun_at = SimEnv::now();
        let sleeping = SimEnv::spawn(SimEnv::sleep(Duration::from_secs(10)));
        SimEnv::sleep(Duration::from_secs(5)).await;
        env.clock().set_drift_ppm(-100_000);
        assert!(SimEnv::now() >= begun_at + Duration::from_secs(5));
        sleeping.await.unwrap();
        assert!(SimEnv::now() >= begun_at + Duration::from_secs(10));
    });
}

#[test]
fn a_wall_clock_jumps_both_ways_and_the_monotonic_one_does_not() {
    check(11, |network| async move {
        let env = env_with_clock(&network);
        let (before, wall) = (SimEnv::now(), env.wall_clock_ms());
        env.clock().jump(3_600_000);
        assert_eq!(env.wall_clock_ms() - wall, 3_600_000);
        env.clock().jump(-7_200_000);
        assert_eq!(env.wall_clock_ms() - wall, -3_600_000);
        env.clock().set_skew(0);
        assert_eq!(env.wall_clock_ms(), wall);
        assert_eq!(SimEnv::now(), before);
    });
}
