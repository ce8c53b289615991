//! Makes a failing case smaller: fewer faults, fewer clients, shorter, while it still breaks the same promise.

use crate::choices::{Case, Choices, Deletion};
use crate::convergence::LATE;
use crate::scenario::{self, Outcome};

/// A smaller schedule changes everything that follows from it, so a failure may need another seed to show itself again.
const SEEDS_TRIED: u64 = 8;

/// Clients work for so long at least: a run without them shows nothing.
const SAFETY_LEAST_MS: u64 = 1_000;

/// Why a run failed, without the values that differ from run to run. What did not come in time is told without any.
fn kind(verdict: &str) -> &str {
    if verdict.starts_with(LATE) { verdict } else { verdict.split(':').next().unwrap_or(verdict) }
}

/// The smallest case found that fails as `case` does, and its outcome; `None` when `case` does not fail. `progress` is told of each step.
pub fn shrink(case: &Case, mut progress: impl FnMut(&str)) -> Option<Outcome> {
    let mut best = scenario::run(case);
    let wanted = kind(best.verdict.as_deref()?).to_owned();
    let fails = |seed: u64, choices: &Choices| {
        (0..SEEDS_TRIED).find_map(|more| {
            let outcome = scenario::run(&Case { seed: seed.wrapping_add(more), choices: choices.clone() });
            outcome.verdict.as_deref().is_some_and(|verdict| kind(verdict) == wanted).then_some(outcome)
        })
    };
    loop {
        let before = best.case.choices.clone();
        // Halves first, then ever smaller parts, as in delta debugging.
        let mut size = before.faults.len().div_ceil(2);
        while size > 0 {
            let mut start = 0;
            while start < best.case.choices.faults.len() {
                let mut choices = best.case.choices.clone();
                let end = (start + size).min(choices.faults.len());
                choices.faults.drain(start..end);
                match fails(best.case.seed, &choices) {
                    Some(outcome) => {
                        progress(&format!("{} faults suffice", outcome.case.choices.faults.len()));
                        best = outcome;
                    }
                    None => start = end,
                }
            }
            size /= 2;
        }
        for client in (0..best.case.choices.clients.len()).rev() {
            let mut choices = best.case.choices.clone();
            choices.clients.remove(client);
            if let Some(outcome) = fails(best.case.seed, &choices) {
                progress(&format!("{} clients suffice", outcome.case.choices.clients.len()));
                best = outcome;
            }
        }
        for simplify in SIMPLER {
            let mut choices = best.case.choices.clone();
            simplify(&mut choices);
            if choices != best.case.choices
                && let Some(outcome) = fails(best.case.seed, &choices)
            {
                progress("a simpler run suffices");
                best = outcome;
            }
        }
        if best.case.choices == before {
            return Some(best);
        }
    }
}

/// What makes a run simpler, in one respect each.
const SIMPLER: &[fn(&mut Choices)] = &[
    |choices| choices.operations_least = 0,
    |choices| choices.operations_in_all = 0,
    |choices| choices.gone = None,
    |choices| choices.grows = false,
    |choices| choices.deletion = Deletion::Never,
    |choices| choices.deletion = choices.deletion.min(Deletion::OnRequest),
    |choices| choices.deletion = choices.deletion.min(Deletion::Compaction),
    |choices| choices.shards = choices.shards.min(1),
    |choices| choices.partitions = 1,
    |choices| choices.safety_ms = choices.safety_ms.min((choices.safety_ms / 2).max(SAFETY_LEAST_MS)),
    |choices| {
        let last = choices.faults.iter().map(|planned| planned.at_ms + planned.lasts_ms).max();
        choices.safety_ms = choices.safety_ms.min(last.unwrap_or(0) + 500);
    },
];
