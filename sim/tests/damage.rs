//! Segments that are damaged on the disk of a broker that runs: nobody is given a wrong record, and every file is whole again.

use lockstep_env::Step;
use lockstep_probe::Mark;
use sim::choices::Case;
use sim::cluster::Death;
use sim::faults::{Fault, Planned};
use sim::{scenario, timeline};

/// Runs, each with the clients of its seed.
const SEEDS: u64 = 8;

/// A run in which hardly anything else goes wrong.
fn case(seed: u64) -> Case {
    let mut case = Case::of_seed(seed);
    let place = |step: Step| Step::ALL.iter().position(|it| *it == step).unwrap_or_default();
    let damage =
        |at_ms, node, restarts| Planned { at_ms, fault: Fault::DamagedSegment { node, restarts }, lasts_ms: 0 };
    let crash = |at_ms, step, death| {
        let fault = Fault::CrashAt { step: place(step), nth: 1, death };
        Planned { at_ms, fault, lasts_ms: 1_500 }
    };
    let first = 1 + seed % 3;
    let mut faults: Vec<Planned> = (0..14)
        .map(|number| {
            let node = 1 + (first + number) % 3;
            damage(1_500 + 400 * number, node, (seed + number) % 4 == 0)
        })
        .collect();
    let death = if seed % 2 == 0 { Death::Power } else { Death::Process };
    faults.push(crash(2_500, Step::SegmentRepairStaged, death));
    faults.push(crash(4_500, Step::SegmentPieceFetched, death));
    faults.sort_by_key(|planned| planned.at_ms);
    case.choices.faults = faults;
    case.choices.gone = None;
    case
}

#[test]
fn damaged_segments_are_repaired_while_clients_go_on() {
    for seed in 0..SEEDS {
        let outcome = scenario::run(&case(seed));
        if let Some(verdict) = &outcome.verdict {
            panic!("seed {seed}: {verdict}\n{}", timeline::short(&outcome));
        }
    }
    for mark in [Mark::SegmentDamageFound, Mark::SegmentRepaired] {
        assert!(mark.count() >= SEEDS, "{mark:?}: {}", mark.count());
    }
    let counts = [Mark::SegmentRepairedByReader, Mark::RepairAskedNextPeer, Mark::DamageToldToPeer].map(Mark::count);
    println!("found {}, repaired {}, {counts:?}", Mark::SegmentDamageFound.count(), Mark::SegmentRepaired.count());
}
