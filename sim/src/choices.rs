//! What a seed chooses before anything starts: the cluster, its clients, and what goes wrong when. All of it is data, so that a
//! run can be printed, kept, and made smaller.

use std::time::Duration;

use lockstep_core::NodeId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::cluster::Timing;
use crate::faults::{self, Fault, Planned};

/// What clients do in a run, at least: with less a run says little.
const OPERATIONS_LEAST: u64 = 500;
/// How much of it while faults happen.
const OPERATIONS_BESIDE_FAULTS: u64 = 200;
/// A broker that died is there again so long after its fault is over, mostly.
const MENDED_WITHIN_MS: u64 = 800;

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
    /// Partitions of the topic that is read and written.
    pub partitions: i32,
    /// The topic gets more partitions while it is used. Its records have no keys then.
    pub grows: bool,
    /// Clients, each with a name of its own.
    pub clients: Vec<ClientChoice>,
    /// The faults, by the time at which they begin.
    pub faults: Vec<Planned>,
    /// How long clients work while faults happen, at least; in milliseconds.
    pub safety_ms: u64,
    /// How much clients do before the faults count as over, at least: they go on for longer where faults kept them from it.
    #[serde(default)]
    pub operations_least: u64,
    /// How much they do in all: they go on after the faults until they have.
    #[serde(default)]
    pub operations_in_all: u64,
    /// How much producers send.
    #[serde(default)]
    pub pace: Pace,
    /// Heartbeats and elections.
    #[serde(default)]
    pub timing: Timing,
    /// A broker that never comes back after the faults.
    pub gone: Option<NodeId>,
    /// How records of the topic are deleted.
    #[serde(default)]
    pub deletion: Deletion,
    /// Entries are acknowledged from memory. Only one broker at a time may lose it.
    #[serde(default)]
    pub acknowledges_from_memory: bool,
}

/// How much a producer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Records that it sends before it waits for their outcome, at most.
    pub window_max: u64,
    /// Shortest pause before the next ones, in milliseconds.
    pub pause_ms_min: u64,
    /// Longest pause.
    pub pause_ms_max: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { window_max: 5, pause_ms_min: 110, pause_ms_max: 380 }
    }
}

/// How the oldest records of a topic go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deletion {
    /// Not at all.
    #[default]
    Never,
    /// An administrator asks for it.
    OnRequest,
    /// The topic keeps so many bytes only.
    BySize,
    /// The topic keeps records for a short time only.
    ByAge,
    /// The topic keeps the last record of each key.
    Compaction,
    /// And an administrator asks for deletions meanwhile.
    CompactionAndRequests,
}

impl Deletion {
    /// Does the topic keep the last record of each key only?
    #[must_use]
    pub fn is_compaction(self) -> bool {
        matches!(self, Self::Compaction | Self::CompactionAndRequests)
    }

    /// Does an administrator ask for it?
    #[must_use]
    pub fn is_on_request(self) -> bool {
        matches!(self, Self::OnRequest | Self::CompactionAndRequests)
    }
}

/// A client, by what it does; its name and its times are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientChoice {
    /// Writes records.
    Producer(ProducerChoice),
    /// Reads as a member of the group, with our own client (KIP-848).
    Member {
        /// It is a static member.
        is_static: bool,
        /// It leaves, vanishes, is slow and comes back, as it likes.
        has_whims: bool,
    },
    /// Reads as a member of the group by the classic protocol.
    Classic {
        /// Version of JoinGroup.
        version: i16,
        /// It is a static member.
        is_static: bool,
        /// As above.
        has_whims: bool,
    },
    /// Reads as a member that subscribes by a regular expression.
    Regex {
        /// As above.
        has_whims: bool,
    },
    /// Reads anywhere, in no group.
    Reader,
    /// Asks about groups and partitions, at any broker.
    Observer,
    /// Makes and deletes topics, changes configurations.
    Administrator,
    /// Repeats requests, sends them to the wrong broker, and goes on when it is no member any more.
    Zombie {
        /// Which protocol it speaks.
        is_classic: bool,
    },
}

/// What a producer promises itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProducerChoice {
    /// Stored once, in order.
    Idempotent,
    /// The same, with a large record now and then.
    IdempotentLarge,
    /// Stored on a majority; a retry may store it again.
    All,
    /// No answer is asked for.
    Unacknowledged,
}

impl ClientChoice {
    /// Is it a member of the group?
    #[must_use]
    pub fn is_member(self) -> bool {
        matches!(self, Self::Member { .. } | Self::Classic { .. } | Self::Regex { .. })
    }

    /// Does it give up soon what fails?
    pub(crate) fn is_impatient(self) -> bool {
        matches!(self, Self::Member { .. })
    }
}

impl Choices {
    /// Draws a run. Each kind of fault and of client is either in it or not at all, so that some runs show one on its own.
    fn draw(rng: &mut StdRng) -> Self {
        let nodes = if rng.random_ratio(1, 24) { 5 } else { 3 };
        // What a run costs grows with its shards.
        let shards = match rng.random_range(0..200) {
            0..21 => 8,
            21..53 => 3,
            _ => 2,
        };
        let clients = draw_clients(rng);
        let members = clients.iter().filter(|client| client.is_member()).count();
        let safety_ms = rng.random_range(3_200..4_200);
        // What begins later would last beyond the time that clients are given.
        let begin_ms = safety_ms * 2 / 3;
        let mut faults = faults::draw::kinds(rng, nodes, shards, members, begin_ms);
        let gone = (nodes == 3 && rng.random_ratio(1, 10)).then(|| rng.random_range(1..=nodes));
        let grows = rng.random_ratio(1, 4);
        let partitions = [1, 3, 6, 6][rng.random_range(0..4)];
        let mut deletion = match rng.random_range(0..12) {
            0 | 1 => Deletion::OnRequest,
            2 => Deletion::BySize,
            3 => Deletion::ByAge,
            _ => Deletion::Never,
        };
        // Drawn last, so that everything else is as it would be without them.
        faults.extend(faults::draw::composed(rng, shards, begin_ms));
        faults.extend(faults::draw::damaged_segments(rng, nodes, safety_ms));
        faults.extend(faults::draw::wipes_beside_damage(rng, shards, safety_ms));
        faults.extend(faults::draw::full_disks(rng, nodes, begin_ms));
        // What lasts long begins early enough to end, and be mended, with the time that clients are given.
        for planned in &mut faults {
            planned.at_ms = planned.at_ms.min(safety_ms.saturating_sub(planned.lasts_ms + MENDED_WITHIN_MS));
        }
        // A pattern takes the place of all that was drawn.
        let pattern = faults::draw::pattern(rng, nodes, shards, safety_ms);
        let has_pattern = pattern.is_some();
        faults = pattern.unwrap_or(faults);
        faults.sort_by_key(|planned| planned.at_ms);
        let timing = match rng.random_range(0..8) {
            // The times of a pattern are made for this one.
            _ if has_pattern => Timing { heartbeat_ms: 105, ..Timing::default() },
            0 => Timing::shipped(),
            _ => Timing { heartbeat_ms: rng.random_range(115..=125), ..Timing::default() },
        };
        let pace = Pace { window_max: rng.random_range(5..=8), pause_ms_min: 120, pause_ms_max: 400 };
        // Records of a topic that grows have no keys.
        if rng.random_ratio(1, 4) && deletion == Deletion::Never && !grows {
            deletion = Deletion::Compaction;
            faults.extend(faults::draw::beside_compaction(rng, safety_ms));
            faults.sort_by_key(|planned| planned.at_ms);
            if rng.random_ratio(1, 3) {
                deletion = Deletion::CompactionAndRequests;
            }
        }
        Self {
            nodes,
            shards,
            partitions,
            grows,
            clients,
            faults,
            safety_ms,
            operations_least: OPERATIONS_BESIDE_FAULTS,
            operations_in_all: OPERATIONS_LEAST,
            pace,
            timing,
            gone,
            deletion,
            acknowledges_from_memory: false,
        }
    }
}

impl Choices {
    /// How often it is looked for what can be compacted. Where nothing can that would only take time.
    pub(crate) fn compaction_check_interval(&self) -> Duration {
        if self.deletion.is_compaction() { Duration::from_millis(300) } else { Duration::from_secs(3_600) }
    }

    /// How often every segment is looked at. Where a copy of a damaged one is to be noticed as it is made, the scrub must not come first; where nothing is
    /// damaged it would only take time.
    pub(crate) fn scrub_interval(&self) -> Duration {
        let has = |is: fn(&Fault) -> bool| self.faults.iter().any(|planned| is(&planned.fault));
        let is_quick = has(|fault| matches!(fault, Fault::DamagedSegment { .. }))
            && !has(|fault| matches!(fault, Fault::WipeBesideDamage { .. }));
        Duration::from_secs(if is_quick { 1 } else { 8 })
    }
}

fn draw_clients(rng: &mut StdRng) -> Vec<ClientChoice> {
    let mut clients = vec![ClientChoice::Producer(ProducerChoice::Idempotent)];
    clients.push(ClientChoice::Producer(match rng.random_range(0..6) {
        0 => ProducerChoice::IdempotentLarge,
        1 => ProducerChoice::All,
        2 => ProducerChoice::Unacknowledged,
        _ => ProducerChoice::Idempotent,
    }));
    // A group of one protocol, or of both.
    let mix = rng.random_range(0..5);
    let has_whims = rng.random_ratio(2, 3);
    for number in 0..3 {
        let is_static = rng.random_ratio(1, 3);
        let is_classic = match mix {
            0 | 1 => false,
            2 | 3 => true,
            _ => number > 0,
        };
        clients.push(if is_classic {
            // A member with a name of its own that comes back exists since version 5.
            let version = if is_static { 9 } else { rng.random_range(0..=9) };
            ClientChoice::Classic { version, is_static, has_whims }
        } else if mix != 4 && rng.random_ratio(1, 6) {
            ClientChoice::Regex { has_whims }
        } else {
            ClientChoice::Member { is_static, has_whims }
        });
    }
    // Of all that clients do, reading takes the least time to simulate.
    clients.push(ClientChoice::Reader);
    let others = [
        ClientChoice::Observer,
        ClientChoice::Administrator,
        ClientChoice::Zombie { is_classic: matches!(mix, 2 | 3) },
    ];
    clients.extend(others.into_iter().filter(|_| rng.random_ratio(3, 5)));
    clients
}
