//! How good the simulator is: every known bug is switched on, and must be found.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;

use lockstep_probe::Mistake;

use crate::choices::Case;
use crate::scenario;

/// How a known bug was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The first seed that shows it.
    pub seed: u64,
    /// Which promise it breaks there.
    pub verdict: String,
}

/// Looks for a mistake in the seeds from 0 on, at most `seeds` of them; `None`: it was not found.
///
/// Mistakes are switched on for the whole process: nothing else may be simulated meanwhile.
#[must_use]
pub fn search(mistake: Mistake, seeds: u64, jobs: usize) -> Option<Caught> {
    mistake.make();
    let next = AtomicU64::new(0);
    let found = AtomicBool::new(false);
    let mut caught: Vec<Caught> = std::thread::scope(|scope| {
        let work = || {
            let mut caught = Vec::new();
            // Seeds are begun in order, so none below the lowest that is found is left out.
            while !found.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    break;
                }
                if let Some(verdict) = scenario::run(&Case::of_seed(seed)).verdict {
                    found.store(true, Ordering::Relaxed);
                    caught.push(Caught { seed, verdict });
                }
            }
            caught
        };
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        // A worker that panics is a fault of the survey itself: the bug did not escape.
        let join = |thread: ScopedJoinHandle<'_, Vec<Caught>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    });
    Mistake::make_none();
    caught.sort_by_key(|caught| caught.seed);
    caught.into_iter().next()
}
