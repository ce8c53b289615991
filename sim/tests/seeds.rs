//! The seeds of every test run: those that once failed, then a fixed set. Each must leave the same trace twice in this process, and in
//! another one.

use std::collections::BTreeMap;
use std::process::Command;

use lockstep_probe::{Mark, Mistake};
use sim::choices::Case;
use sim::scenario::{self, Outcome};
use sim::{seeds, timeline};

/// Seeds of the fixed set.
const SEEDS: u64 = 100;
/// Further seeds, which reach rare situations that those do not: clocks that differ; members that never ask for their part of a generation, or do not give up
/// their partitions in time; groups that change their protocol; partitions and proposals that are given up; and pieces of a checkpoint that do not come.
const SEEDS_BESIDE: [u64; 6] = [206, 250, 264, 298, 383, 390];

/// Situations that the fixed set need not reach: sweeps of many seeds reach some of them, and name those that they do not.
const TOO_RARE: &[Mark] = &[
    Mark::ApplyWaitedForSegments,
    Mark::CommitDuringRebalanceRefused,
    Mark::CommitMetNewEpoch,
    Mark::CommitOfStaleEpochRefused,
    Mark::CoordinatorKnowsTopicLate,
    Mark::ExpiryOfFormerTermVoid,
    Mark::ExpiryVoid,
    Mark::FetchShortOfRoom,
    Mark::ForgottenDuplicateRecognised,
    Mark::InitialDelayExtended,
    Mark::LaggingMemberCutOff,
    Mark::MemberFenced,
    Mark::OffsetsExpired,
    Mark::OutOfOrderSequenceRefused,
    Mark::ProduceHeldUp,
    Mark::ProduceTimedOut,
    Mark::ProducerEpochFenced,
    Mark::ProducerEpochRaised,
    Mark::ProducerRenumbered,
    Mark::ProducerTookNewIdentity,
    Mark::ProposalQueueFull,
    Mark::ReadIndexAskedOfQuorum,
    Mark::ReadOfDeletedSegment,
    Mark::ReadOfExchangedFiles,
    Mark::RegexResolutionOutOfTurn,
    Mark::RequestForFormerDiskRefused,
    Mark::SnapshotNoLongerOnOffer,
    Mark::SnapshotPullBegunAnew,
    Mark::StaleGenerationRefused,
    Mark::StaleStaticMemberFenced,
    Mark::SupersededLogDropped,
];

/// Failures that are shown in full.
const SHOWN: usize = 3;

/// Switches on the known bug that the environment names, to see how a broken build is reported.
fn mistake() -> Option<Mistake> {
    let mistake = Mistake::named(&std::env::var("LOCKSTEP_MISTAKE").ok()?).expect("LOCKSTEP_MISTAKE names a known bug");
    mistake.make();
    Some(mistake)
}

fn failure(outcome: &Outcome, which: &str) -> Option<String> {
    let verdict = outcome.verdict.as_deref()?;
    let (profile, mistake) = match mistake() {
        Some(mistake) => ("--profile simulation", format!(" --mistake {}", mistake.name())),
        None => ("--release", String::new()),
    };
    Some(format!(
        "{which}: {verdict}\n{}  replay it with: cargo run {profile} -p sim -- {which}{mistake}\n  make it smaller: cargo run {profile} -p sim -- shrink {which}{mistake}\n",
        timeline::short(outcome)
    ))
}

/// A run that broke no promise, and repeats itself.
struct Held {
    fingerprint: (u64, u64),
    operations: usize,
    faults: u64,
}

/// Runs a case twice; gives what went wrong, or what it was.
fn check(case: &Case, which: &str) -> Result<Held, String> {
    let outcome = scenario::run(case);
    if let Some(failure) = failure(&outcome, which) {
        return Err(failure);
    }
    let again = scenario::run(case);
    if outcome.fingerprint != again.fingerprint || outcome.history.records() != again.history.records() {
        return Err(format!("{which} does not repeat itself: {:?}, then {:?}", outcome.fingerprint, again.fingerprint));
    }
    let operations = outcome.history.count(checker::Event::is_operation);
    Ok(Held { fingerprint: outcome.fingerprint, operations, faults: outcome.faults })
}

fn check_all(cases: &[(String, Case)]) -> Vec<Held> {
    mistake();
    let (good, bad): (Vec<_>, Vec<_>) = seeds::on_all_cores(cases, seeds::cores(), |(which, case)| check(case, which))
        .into_iter()
        .partition(Result::is_ok);
    let failures: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
    let shown = failures.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {} runs failed\n{shown}", failures.len(), cases.len());
    good.into_iter().flatten().collect()
}

#[test]
fn cases_that_once_failed_hold() {
    let cases = seeds::kept().expect("sim/seeds holds runs as JSON");
    let cases: Vec<_> = cases.into_iter().map(|(name, case)| (format!("--case sim/seeds/{name}.json"), case)).collect();
    check_all(&cases);
}

/// Traces of seeds that another process runs.
fn fingerprints_elsewhere(first: u64, count: u64) -> BTreeMap<u64, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["fingerprints", "--first", &first.to_string(), "--count", &count.to_string()])
        .output()
        .expect("the simulator can be started");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_once(' ').and_then(|(seed, trace)| Some((seed.parse().ok()?, trace.to_owned()))))
        .collect()
}

#[test]
fn a_hundred_seeds_hold_repeat_themselves_and_reach_the_rare_situations() {
    let seeds = || (0..SEEDS).chain(SEEDS_BESIDE);
    let cases: Vec<_> = seeds().map(|seed| (format!("--seed {seed}"), Case::of_seed(seed))).collect();
    let here = check_all(&cases);
    let mut elsewhere = fingerprints_elsewhere(0, SEEDS);
    for seed in SEEDS_BESIDE {
        elsewhere.extend(fingerprints_elsewhere(seed, 1));
    }
    for (seed, held) in seeds().zip(here) {
        assert!(held.operations >= 500, "clients do too little in seed {seed}: {} operations", held.operations);
        assert!(held.faults >= 10, "too little happens in seed {seed}: {} faults", held.faults);
        let (count, hash) = held.fingerprint;
        let there = elsewhere.get(&seed).map(String::as_str);
        assert_eq!(
            there,
            Some(format!("{count} {hash:016x}").as_str()),
            "seed {seed} runs otherwise in another process"
        );
    }
    let missed: Vec<_> = Mark::ALL.iter().filter(|mark| mark.count() == 0 && !TOO_RARE.contains(mark)).collect();
    assert!(
        missed.is_empty(),
        "the fixed seeds never reach {missed:?}: choose other faults or clients, or other seeds"
    );
}
