//! Entries that are acknowledged from memory, and brokers that die one at a time: what one of them has lost, the others have, and nobody is elected without it.

use lockstep_probe::Mark;
use sim::choices::{Case, Deletion};
use sim::cluster::Death;
use sim::faults::{Fault, Planned};
use sim::{scenario, timeline};

/// Runs, each with the clients of its seed.
const SEEDS: u64 = 24;

/// One broker after the other loses its memory, while another hears nothing, or nobody hears the leaders.
fn case(seed: u64) -> Case {
    let mut case = Case::of_seed(seed);
    let planned = |at_ms, fault, lasts_ms| Planned { at_ms, fault, lasts_ms };
    let mut faults = Vec::new();
    for round in 0..6 {
        let at_ms = 1_500 + 1_500 * round;
        let (dies, alone, deaf) = (1 + (seed + round) % 3, 1 + (seed + round + 1) % 3, 1 + (seed + round + 2) % 3);
        // What is acknowledged meanwhile is on two of them: on the one that dies, and on the one that is alone when it is back.
        faults.push(planned(at_ms, Fault::CutOneWay(alone, deaf), 500));
        faults.push(planned(at_ms, Fault::CutOneWay(dies, deaf), 450));
        let death = if (seed + round).is_multiple_of(3) { Death::Process } else { Death::Power };
        faults.push(planned(at_ms + 200, Fault::CrashAlone(dies, death), 150));
        faults.push(planned(at_ms + 430, Fault::Isolate(alone), 900));
    }
    faults.sort_by_key(|planned| planned.at_ms);
    case.choices.nodes = 3;
    case.choices.faults = faults;
    case.choices.gone = None;
    case.choices.deletion = Deletion::Never;
    case.choices.acknowledges_from_memory = true;
    case
}

#[test]
fn what_one_broker_has_lost_of_its_memory_is_not_lost() {
    for seed in 0..SEEDS {
        let outcome = scenario::run(&case(seed));
        if let Some(verdict) = &outcome.verdict {
            panic!("seed {seed}: {verdict}\n{}", timeline::short(&outcome));
        }
    }
    assert!(Mark::VoteKeptBack.count() > 0, "nobody who was in doubt was asked for its vote");
}
