//! What a seed chooses before anything starts: the cluster, its clients, and what goes wrong when. All of it is data, so that a
//! run can be printed, kept, and made smaller.

use lockstep_core::NodeId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::faults::{self, Planned};

/// One run, complete: the same case gives the same run, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Seed of everything that is drawn while the run goes on: delays, the order of tasks, what a power cut leaves.
    pub seed: u64,
    /// What was chosen before.
    pub choices: Choices,
}

impl Case {
    /// The case that a seed stands for.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        Self { seed, choices: Choices::draw(&mut StdRng::seed_from_u64(seed)) }
    }
}

/// What is chosen before a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choices {
    /// Brokers.
    pub nodes: u64,
    /// Shards.
    pub shards: u16,
    /// Partitions of each topic that is read and written.
    pub partitions: i32,
    /// Clients, each with a name of its own.
    pub clients: Vec<ClientChoice>,
    /// The faults, by the time at which they begin.
    pub faults: Vec<Planned>,
    /// How long clients work while faults happen, at least; in milliseconds.
    pub safety_ms: u64,
    /// A broker that never comes back after the faults.
    pub gone: Option<NodeId>,
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientChoice {
    /// Writes records, idempotently.
    Producer,
    /// Reads as a member of the group.
    Member,
}

impl Choices {
    /// Draws a run. Each kind of fault is either in it or not at all, so that some runs show a fault on its own.
    fn draw(rng: &mut StdRng) -> Self {
        let nodes = 3;
        let shards = if rng.random_ratio(1, 8) { 8 } else { 3 };
        let mut clients = vec![ClientChoice::Producer; 2];
        clients.extend(vec![ClientChoice::Member; 3]);
        let members = clients.iter().filter(|client| **client == ClientChoice::Member).count();
        let safety_ms = rng.random_range(6_000..9_000);
        let faults = faults::draw(rng, nodes, shards, members, safety_ms);
        let gone = rng.random_ratio(1, 10).then(|| rng.random_range(1..=nodes));
        Self { nodes, shards, partitions: 6, clients, faults, safety_ms, gone }
    }
}
