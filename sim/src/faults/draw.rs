//! What goes wrong in a run is drawn here, before it begins.

use lockstep_env::Step;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::{Fault, Planned};
use crate::cluster::{AtRest, Death};

/// Faults of a run.
const FAULTS: std::ops::Range<usize> = 10..15;
/// Clocks drift by so many millionths at most: leases allow for a tenth, either way.
const DRIFT_PPM: std::ops::RangeInclusive<i64> = -90_000..=90_000;

/// Draws the faults of a run that lasts `span_ms`. Each kind is either in this run or not at all, so that some runs show a fault on
/// its own.
pub(crate) fn kinds(rng: &mut StdRng, nodes: u64, shards: u16, members: usize, span_ms: u64) -> Vec<Planned> {
    const KINDS: u8 = 29;
    let mut kinds: Vec<u8> = (0..KINDS).filter(|_| rng.random_ratio(3, 10)).collect();
    if kinds.is_empty() {
        kinds.push(rng.random_range(0..KINDS));
    }
    let count = rng.random_range(FAULTS);
    let mut planned: Vec<Planned> = (0..count)
        .map(|_| {
            let kind = kinds[rng.random_range(0..kinds.len())];
            let node = rng.random_range(1..=nodes);
            let other = 1 + (node + rng.random_range(0..nodes - 1)) % nodes;
            let death = if rng.random_ratio(1, 2) { Death::Power } else { Death::Process };
            let fault = match kind {
                0 => Fault::Crash(node, death),
                1 => Fault::CrashLeader(rng.random_range(0..shards), death),
                2 => Fault::CrashAll(death),
                3 => Fault::Wipe(node),
                4 => Fault::Stop(node),
                5 => Fault::Isolate(node),
                6 => Fault::Mute(node),
                7 => Fault::CutOneWay(node, other),
                8 => Fault::Pause(node),
                9 => Fault::Reset(node, other),
                10 => Fault::BadLinks,
                11 => Fault::SlowDisk(node),
                12 => Fault::RollingRestart,
                13 | 14 => {
                    // Some steps are taken all the time, others once in a run.
                    let most = [2, 6, 30][rng.random_range(0..3)];
                    Fault::CrashAt { step: rng.random_range(0..Step::ALL.len()), nth: rng.random_range(1..most), death }
                }
                15 => Fault::Ring,
                16 => Fault::SlowLink(node, other),
                17 => Fault::HangingDisk(node),
                18 => Fault::FailingDisk(node),
                19 => Fault::FullDisk(node),
                20 => Fault::FlippedBit(
                    node,
                    [AtRest::Journal, AtRest::Checkpoint, AtRest::Index][rng.random_range(0..3)],
                ),
                21 => Fault::ClockJump(node, rng.random_range(-7_200_000..7_200_000)),
                22 => Fault::ClockDrift(node, rng.random_range(DRIFT_PPM)),
                23 => Fault::ResetClients(node),
                24 => Fault::AllZombies,
                25 => Fault::CrashAllTwice,
                26 => Fault::FailedSync { node, nth: rng.random_range(1..12) },
                27 => Fault::WipeOntoFailingDisk { node, after_ms: rng.random_range(20..900) },
                _ => Fault::Zombie(rng.random_range(0..members.max(1))),
            };
            let lasts_ms = match fault {
                // Longer than the session time-out, or it would be no zombie.
                Fault::Zombie(_) | Fault::AllZombies => rng.random_range(2_300..3_400),
                _ => some_time(rng),
            };
            Planned { at_ms: rng.random_range(0..span_ms), fault, lasts_ms }
        })
        .collect();
    planned.sort_by_key(|planned| planned.at_ms);
    planned
}

/// Draws faults of one pattern, with little beside them, for the runs that have one: what needs a clean start again and again, such as a commit that
/// is under way when its leader is cut off, is drowned by many faults of many kinds.
pub(crate) fn pattern(rng: &mut StdRng, nodes: u64, shards: u16, span_ms: u64) -> Option<Vec<Planned>> {
    let mut planned: Vec<Planned> = match rng.random_range(0..17) {
        // One broker after the other is cut off for longer than its lease, and comes back.
        0 => {
            let first = rng.random_range(0..nodes);
            let distance_ms = rng.random_range(1_700..2_000);
            let lasts_ms = rng.random_range(900..1_200);
            repeated(span_ms, 300, distance_ms, |number| (Fault::Isolate(1 + (first + number) % nodes), lasts_ms))
        }
        // Coordinators die just as they would tell where the group has got to.
        1 | 9 => {
            let distance_ms = rng.random_range(700..1_100);
            let step = Step::BeforeOffsetsAnswer as usize;
            let crash = |_| (Fault::CrashAt { step, nth: 1, death: Death::Process }, distance_ms * 4 / 5);
            repeated(span_ms, 500, distance_ms, crash)
        }
        // Bits flip in one journal after the other: some of them in what was written last but one, where a torn write is to be told from damage.
        2 => {
            let first = rng.random_range(0..nodes);
            let distance_ms = rng.random_range(1_200..1_800);
            let flip = |number| (Fault::FlippedBit(1 + (first + number) % nodes, AtRest::Journal), 0);
            repeated(span_ms, 1_000, distance_ms, flip)
        }
        // A follower of one shard after the other is started anew, and hears no more of its leader, whose lease holds.
        3 | 7 => {
            let first = rng.random_range(0..shards);
            let distance_ms = rng.random_range(1_000..1_300);
            let lasts_ms = rng.random_range(600..900);
            let away_ms = rng.random_range(0..40);
            let cut = |number| {
                let shard = shard_in_turn(first, number, shards);
                (Fault::RestartBesideCut { shard, away_ms }, lasts_ms)
            };
            repeated(span_ms, 800, distance_ms, cut)
        }
        // One disk after the other is full, for long enough that segments and checkpoints are due on it.
        4 => {
            let first = rng.random_range(0..nodes);
            let distance_ms = rng.random_range(2_000..2_600);
            let lasts_ms = rng.random_range(1_500..1_900);
            repeated(span_ms, 700, distance_ms, |number| (Fault::FullDisk(1 + (first + number) % nodes), lasts_ms))
        }
        // One broker after the other loses its disk, and the new one begins to fail just as it is filled: what a broker says it has, it must have.
        5 => {
            let first = rng.random_range(0..nodes);
            let distance_ms = rng.random_range(1_800..2_600);
            let wipe = |number| {
                let node = 1 + (first + number) % nodes;
                let fault = Fault::WipeOntoFailingDisk { node, after_ms: rng.random_range(20..250) };
                (fault, rng.random_range(300..800))
            };
            repeated(span_ms, 600, distance_ms, wipe)
        }
        // One broker after the other is filled from a leader with a damaged segment: damage must not be given on.
        6 => {
            let first = rng.random_range(0..shards);
            let distance_ms = rng.random_range(1_400..1_900);
            let wipe = |number| {
                let shard = shard_in_turn(first, number, shards);
                (Fault::WipeBesideDamage { shard }, rng.random_range(20..300))
            };
            repeated(span_ms, 1_400, distance_ms, wipe)
        }
        // All members stand still for longer than their sessions: the group is empty, and what it committed is what they go on from, though the first
        // broker that is asked for it dies.
        8 => {
            let (begin_ms, distance_ms) = (rng.random_range(500..900), 3_000);
            let lasts_ms = rng.random_range(2_300..2_600);
            let mut planned = repeated(span_ms, begin_ms, distance_ms, |_| (Fault::AllZombies, lasts_ms));
            let crash = Fault::CrashAt { step: Step::BeforeOffsetsAnswer as usize, nth: 1, death: Death::Process };
            planned.extend(repeated(span_ms, begin_ms + lasts_ms, distance_ms, |_| (crash.clone(), 700)));
            planned
        }
        _ => return None,
    };
    while planned.len() < FAULTS.start {
        let node = rng.random_range(1..=nodes);
        let other = 1 + (node + rng.random_range(0..nodes - 1)) % nodes;
        let fault = match rng.random_range(0..3) {
            0 => Fault::ClockJump(node, rng.random_range(-7_200_000..7_200_000)),
            1 => Fault::Reset(node, other),
            _ => Fault::SlowLink(node, other),
        };
        planned.push(Planned { at_ms: rng.random_range(0..span_ms), fault, lasts_ms: rng.random_range(20..300) });
    }
    Some(planned)
}

/// The shard whose turn it is at the given time, from `first` on.
fn shard_in_turn(first: u16, number: u64, shards: u16) -> u16 {
    ((u64::from(first) + number) % u64::from(shards)) as u16
}

/// The same again and again, from `begin_ms` to the end of the span: what happens the first, the second time and so on, and for how many milliseconds.
fn repeated(
    span_ms: u64,
    begin_ms: u64,
    distance_ms: u64,
    mut happening: impl FnMut(u64) -> (Fault, u64),
) -> Vec<Planned> {
    let all = (0..span_ms.div_ceil(distance_ms)).map(|number| {
        let (fault, lasts_ms) = happening(number);
        Planned { at_ms: begin_ms + number * distance_ms, fault, lasts_ms }
    });
    all.filter(|planned| planned.at_ms < span_ms).collect()
}

/// Draws what only some runs have beside their other faults.
pub(crate) fn composed(rng: &mut StdRng, shards: u16, span_ms: u64) -> Vec<Planned> {
    let count = if rng.random_ratio(1, 4) { rng.random_range(3..=6) } else { 0 };
    let draw = |_| Planned {
        at_ms: rng.random_range(0..span_ms),
        fault: Fault::RestartBesideCut { shard: rng.random_range(0..shards), away_ms: rng.random_range(0..120) },
        lasts_ms: rng.random_range(100..900),
    };
    let mut planned: Vec<Planned> = (0..count).map(draw).collect();
    if rng.random_ratio(1, 8) {
        let fault = Fault::WipeBesideCut { shard: rng.random_range(0..shards) };
        planned.push(Planned { at_ms: rng.random_range(0..span_ms), fault, lasts_ms: rng.random_range(500..2_000) });
    }
    // The one step that a client waits for while it has nothing to go by.
    let count = if rng.random_ratio(1, 2) { rng.random_range(1..=3) } else { 0 };
    for _ in 0..count {
        let death = if rng.random_ratio(1, 2) { Death::Power } else { Death::Process };
        let fault = Fault::CrashAt { step: Step::BeforeOffsetsAnswer as usize, nth: rng.random_range(1..=2), death };
        planned.push(Planned { at_ms: rng.random_range(0..span_ms), fault, lasts_ms: some_time(rng) });
    }
    planned
}

/// The same for segments that are damaged: late enough that some are closed.
pub(crate) fn damaged_segments(rng: &mut StdRng, nodes: u64, span_ms: u64) -> Vec<Planned> {
    let count = if rng.random_ratio(1, 4) { rng.random_range(1..=3) } else { 0 };
    let draw = |_| {
        let fault = Fault::DamagedSegment { node: rng.random_range(1..=nodes), restarts: rng.random_ratio(1, 2) };
        Planned { at_ms: rng.random_range(span_ms / 3..span_ms), fault, lasts_ms: 0 }
    };
    (0..count).map(draw).collect()
}

/// The same for disks that are full, for long enough that something is written meanwhile.
pub(crate) fn full_disks(rng: &mut StdRng, nodes: u64, span_ms: u64) -> Vec<Planned> {
    let count = if rng.random_ratio(1, 4) { rng.random_range(1..=2) } else { 0 };
    let draw = |_| Planned {
        at_ms: rng.random_range(0..span_ms),
        fault: Fault::FullDisk(rng.random_range(1..=nodes)),
        lasts_ms: rng.random_range(800..2_500),
    };
    (0..count).map(draw).collect()
}

/// Draws what goes wrong where logs are compacted: power fails everywhere while no checkpoint knows of it, and brokers die with a file that is about to
/// come to its place.
pub(crate) fn beside_compaction(rng: &mut StdRng, span_ms: u64) -> Vec<Planned> {
    let mut planned = Vec::new();
    for _ in 0..rng.random_range(1..=2) {
        let at_ms = rng.random_range(span_ms / 5..span_ms - 1_500);
        let fault = Fault::PowerCutAfterCompaction { after_ms: rng.random_range(1..80) };
        planned.push(Planned { at_ms, fault, lasts_ms: rng.random_range(20..300) });
    }
    if rng.random_ratio(1, 2) {
        for _ in 0..rng.random_range(1..=2) {
            let death = if rng.random_ratio(1, 2) { Death::Power } else { Death::Process };
            let step = Step::CompactedSegmentStaged as usize;
            let fault = Fault::CrashAt { step, nth: rng.random_range(1..=6), death };
            planned.push(Planned { at_ms: rng.random_range(0..span_ms), fault, lasts_ms: some_time(rng) });
        }
    }
    planned
}

/// Draws what damage is given on to others in the runs that have it.
pub(crate) fn wipes_beside_damage(rng: &mut StdRng, shards: u16, span_ms: u64) -> Vec<Planned> {
    let count = if rng.random_ratio(1, 8) { rng.random_range(1..=2) } else { 0 };
    let draw = |_| {
        let fault = Fault::WipeBesideDamage { shard: rng.random_range(0..shards) };
        Planned { at_ms: rng.random_range(span_ms / 3..span_ms), fault, lasts_ms: rng.random_range(20..400) }
    };
    (0..count).map(draw).collect()
}

/// Mostly short, sometimes longer than every time-out between brokers.
fn some_time(rng: &mut impl Rng) -> u64 {
    if rng.random_ratio(1, 4) { rng.random_range(1_000..2_500) } else { rng.random_range(20..700) }
}
