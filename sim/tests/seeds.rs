//! The seeds of every test run: those that once failed, then a fixed set. Each runs twice and must leave the same trace.

use std::sync::atomic::{AtomicU64, Ordering};

use sim::scenario;

/// Seeds of the fixed set.
const SEEDS: u64 = 100;

fn check(seed: u64) -> Result<(), String> {
    let outcome = scenario::run(seed);
    let replay = format!("replay it with: cargo run --release -p sim -- --seed {seed}");
    if let Some(verdict) = outcome.verdict {
        let schedule: Vec<String> = outcome.schedule.iter().map(|planned| format!("{planned:?}")).collect();
        return Err(format!("seed {seed}: {verdict}\n  faults: {}\n  {replay}", schedule.join("\n          ")));
    }
    let again = scenario::run(seed);
    if outcome.fingerprint != again.fingerprint || outcome.history != again.history {
        return Err(format!(
            "seed {seed} does not repeat itself: {:?}, then {:?}\n  {replay}",
            outcome.fingerprint, again.fingerprint
        ));
    }
    Ok(())
}

/// Runs seeds on all cores and reports all that fail.
fn check_all(seeds: &[u64]) {
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                failures.extend(check(*seed).err());
            }
            failures
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a worker of the test itself panicked")).collect()
    });
    assert!(failures.is_empty(), "{} of {} seeds failed\n{}", failures.len(), seeds.len(), failures.join("\n"));
}

#[test]
fn seeds_that_once_failed_hold() {
    let text = include_str!("../seeds/failed.txt");
    let seeds: Vec<u64> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| line.parse().expect("sim/seeds/failed.txt holds a number a line, then a comment"))
        .collect();
    check_all(&seeds);
}

#[test]
fn a_hundred_seeds_hold_and_repeat_themselves() {
    check_all(&(0..SEEDS).collect::<Vec<_>>());
}
