//! Every target over its committed seeds, and over mutations of them.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuzz::{TARGETS, Target};
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// No target may take longer: slower machines try fewer mutations.
const TIME_MAX: Duration = Duration::from_secs(3);
/// Mutations of all seeds of a target together.
const MUTATIONS: usize = 3_000;
const LEN_MAX: usize = 64 << 10;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The seeds of a target in the order of their names.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).unwrap_or_else(|error| panic!("no seeds of {target}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.display().to_string(), fs::read(&path).expect("a seed can be read"))).collect()
}

fn mutate(bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)], random: &mut StdRng) {
    for _ in 0..random.random_range(1..5_u8) {
        let at = if bytes.is_empty() { 0 } else { random.random_range(0..bytes.len()) };
        match random.random_range(0..9_u8) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.random_range(0..8_u8),
            2 if !bytes.is_empty() => {
                bytes[at] = *[0, 1, 0x7f, 0x80, 0xff].get(usize::from(random.random::<u8>()) % 5).unwrap_or(&0)
            }
            3 if !bytes.is_empty() => bytes[at] = random.random(),
            4 => bytes.insert(at, random.random()),
            5 if !bytes.is_empty() => drop(bytes.remove(at)),
            6 => {
                // A number of four bytes: the lengths and counts of most formats.
                let number = *[0, 1, u32::MAX, i32::MAX as u32, 1 << 24]
                    .get(usize::from(random.random::<u8>()) % 5)
                    .unwrap_or(&0);
                let end = bytes.len().min(at + 4);
                bytes.splice(at..end, number.to_be_bytes());
            }
            7 => {
                let (_, other) = &others[random.random_range(0..others.len())];
                let from = random.random_range(0..=other.len());
                let part = &other[from..other.len().min(from + random.random_range(0..256_usize))];
                bytes.splice(at..at, part.iter().copied());
            }
            _ => {
                let mut noise = vec![0; random.random_range(0..64)];
                random.fill_bytes(&mut noise);
                bytes.extend(noise);
            }
        }
    }
    bytes.truncate(LEN_MAX);
}

fn run(target: Target, bytes: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
        let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{what} broke the target; its bytes: {shown}");
    }
}

fn over_corpus_and_mutations(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(target, _)| *target == name).expect("a target");
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    for (seed, bytes) in &seeds {
        run(target, bytes, seed);
    }
    let random_seed: u64 = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("FUZZ_SEED={random_seed}");
    let mut random = StdRng::seed_from_u64(random_seed);
    let start = TokioEnv::now();
    for number in 0..MUTATIONS {
        if start.elapsed() > TIME_MAX {
            println!("{name}: {number} mutations within {} s", TIME_MAX.as_secs());
            break;
        }
        let (seed, bytes) = &seeds[number % seeds.len()];
        let mut bytes = bytes.clone();
        mutate(&mut bytes, &seeds, &mut random);
        run(target, &bytes, &format!("mutation {number} of {seed}, FUZZ_SEED={random_seed},"));
    }
}

#[test]
fn request_frames_do_no_harm() {
    over_corpus_and_mutations("request_frame");
}

#[test]
fn response_frames_do_no_harm() {
    over_corpus_and_mutations("response_frame");
}

#[test]
fn record_batches_do_no_harm() {
    over_corpus_and_mutations("record_batch");
}

#[test]
fn peer_frames_do_no_harm() {
    over_corpus_and_mutations("peer_frame");
}

#[test]
fn journals_do_no_harm() {
    over_corpus_and_mutations("journal");
}

#[test]
fn ops_do_no_harm() {
    over_corpus_and_mutations("op");
}

#[test]
fn snapshots_do_no_harm() {
    over_corpus_and_mutations("snapshot");
}

#[test]
fn no_sequence_of_ops_breaks_an_invariant() {
    over_corpus_and_mutations("apply");
}

#[test]
fn every_target_is_run() {
    let mut folders: Vec<String> = fs::read_dir(folder(""))
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    let mut targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    assert_eq!(folders, targets);
}
