//! The simulator finds bugs: each known one is switched on in turn, and the seed that is known to show it must fail.
//!
//! `cargo run --profile simulation -p sim -- power` counts how many seeds each takes.

use std::collections::BTreeMap;

use lockstep_probe::Mistake;
use sim::choices::Case;
use sim::{scenario, seeds};

/// Seeds that show each bug, as `power` has found them: a name and a seed a line; or the name of a run in sim/seeds, made for the bug; or the word
/// `exhaustion` for those that core/tests/exhaustion_power finds.
const KNOWN: &str = include_str!("known_bugs.txt");

#[test]
fn every_known_bug_is_caught() {
    let known: BTreeMap<&str, &str> = KNOWN.lines().filter_map(|line| line.split_once(' ')).collect();
    assert!(Mistake::possible(), "known bugs are found in builds with debug assertions");
    let kept: BTreeMap<String, Case> = seeds::kept().expect("sim/seeds holds runs as JSON").into_iter().collect();
    let mut missed = Vec::new();
    for mistake in Mistake::ALL {
        let Some(seed) = known.get(mistake.name()) else {
            missed.push(format!("{} has no seed", mistake.name()));
            continue;
        };
        if *seed == "exhaustion" {
            println!("{}: {seed}", mistake.name());
            continue;
        }
        let case = match seed.parse() {
            Ok(seed) => Case::of_seed(seed),
            Err(_) => kept.get(*seed).cloned().expect("tests/known_bugs.txt names a seed or a run in sim/seeds"),
        };
        mistake.make();
        let verdict = scenario::run(&case).verdict;
        Mistake::make_none();
        match verdict {
            Some(verdict) => println!("{} is caught by seed {seed}: {verdict}", mistake.name()),
            None => missed.push(format!("{} escapes seed {seed}", mistake.name())),
        }
    }
    let hint = "cargo run --profile simulation -p sim -- power";
    assert!(missed.is_empty(), "{}; find other seeds with: {hint}", missed.join("; "));
}
