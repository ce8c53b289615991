//! Fresh seeds for as long as one likes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_probe::Mark;

use crate::choices::Case;
use crate::scenario::{self, Outcome};

/// So often a sweep says how far it is: what one that is stopped had come to is not lost.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct Swept {
    /// Runs.
    pub seeds: u64,
    /// What clients did and saw, over all runs.
    pub client_events: u64,
    /// Operations of clients ([`checker::Event::is_operation`]), over all runs.
    pub operations: u64,
    /// The fewest in one run that broke no promise.
    pub operations_min: Option<u64>,
    /// Faults that happened, over all runs.
    pub faults: u64,
    /// The fewest in one run that broke no promise.
    pub faults_min: Option<u64>,
    /// Simulated time, over all runs.
    pub simulated: Duration,
    /// Runs with eight shards.
    pub with_eight_shards: u64,
    /// Those that broke a promise.
    pub failures: Vec<(u64, String)>,
}

impl Swept {
    fn add(&mut self, outcome: &Outcome) {
        let events = outcome.history.with_records(|records| records.len() as u64);
        let operations = outcome.history.count(checker::Event::is_operation) as u64;
        self.operations += operations;
        if outcome.verdict.is_none() {
            self.operations_min = Some(self.operations_min.map_or(operations, |least| least.min(operations)));
            self.faults_min = Some(self.faults_min.map_or(outcome.faults, |least| least.min(outcome.faults)));
        }
        self.seeds += 1;
        self.client_events += events;
        self.faults += outcome.faults;
        self.simulated += outcome.simulated;
        self.with_eight_shards += u64::from(outcome.case.choices.shards == 8);
        if let Some(verdict) = &outcome.verdict {
            self.failures.push((outcome.case.seed, verdict.clone()));
        }
    }

    /// Prints how far it is.
    pub fn print_progress(&self, took: Duration) {
        println!("{} seeds in {:.0} s, {} failed", self.seeds, took.as_secs_f64(), self.failures.len());
    }

    /// Prints what it came to.
    pub fn print(&self, took: Duration, jobs: usize) {
        let seconds = took.as_secs_f64();
        println!(
            "{} seeds in {seconds:.1} s on {jobs} threads: {:.2} seeds a second and thread",
            self.seeds,
            self.seeds as f64 / seconds / jobs as f64
        );
        let each = |total: u64| total as f64 / self.seeds.max(1) as f64;
        println!(
            "simulated {:.0} s, {:.1} times as fast as the clock and thread; a seed: {:.0} client events, {:.0} operations (at least {}), {:.1} faults (at least {}); eight shards in {} seeds",
            self.simulated.as_secs_f64(),
            self.simulated.as_secs_f64() / seconds / jobs as f64,
            each(self.client_events),
            each(self.operations),
            self.operations_min.unwrap_or(0),
            each(self.faults),
            self.faults_min.unwrap_or(0),
            self.with_eight_shards
        );
        let (reached, never): (Vec<Mark>, Vec<Mark>) = Mark::ALL.iter().partition(|mark| mark.count() > 0);
        println!("rare situations reached: {} of {}", reached.len(), Mark::ALL.len());
        for mark in reached {
            println!("  {:>10} × {mark:?}", mark.count());
        }
        for mark in never {
            println!("       never   {mark:?}: {}", mark.meaning());
        }
        for (seed, verdict) in &self.failures {
            println!("BROKEN: seed {seed}: {verdict}");
        }
        println!("{} of {} seeds failed", self.failures.len(), self.seeds);
    }
}

/// Runs seeds from `first` on, until `limit` are done or `deadline` has come. Failures are told to `failed` as they come; `progress` hears now
/// and then how far it is.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "real time, outside of every simulation")]
pub fn sweep(
    first: u64,
    limit: u64,
    deadline: Instant,
    jobs: usize,
    failed: impl Fn(&Outcome) + Sync,
    progress: impl Fn(&Swept) + Sync,
) -> Swept {
    let next = AtomicU64::new(0);
    let swept = Mutex::new((Swept::default(), Instant::now()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= limit || Instant::now() >= deadline {
                        return;
                    }
                    let outcome = scenario::run(&Case::of_seed(first.wrapping_add(number)));
                    if outcome.verdict.is_some() {
                        failed(&outcome);
                    }
                    let mut swept = swept.lock().unwrap_or_else(PoisonError::into_inner);
                    let (swept, told_at) = &mut *swept;
                    swept.add(&outcome);
                    if told_at.elapsed() >= PROGRESS_EVERY {
                        *told_at = Instant::now();
                        progress(swept);
                    }
                }
            });
        }
    });
    let (mut swept, _) = swept.into_inner().unwrap_or_else(PoisonError::into_inner);
    swept.failures.sort();
    swept
}
