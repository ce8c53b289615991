//! What goes wrong in a run, as data, and how it is done to a cluster. Faults overlap; what one has broken it mends itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::{NodeId, ShardId};
use lockstep_env::Env;
use madsim::runtime::{Handle, NodeHandle};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Death};
use crate::env::SimEnv;
use crate::env::disk::DiskOptions;
use crate::env::net::LinkOptions;
use crate::inspector::Inspector;

/// Faults of a run.
const FAULTS: std::ops::Range<usize> = 10..15;
/// How long an emptied disk may take to be filled again, while other things go wrong.
const REFILL: Duration = Duration::from_secs(30);

/// One thing that goes wrong, and later is mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A broker dies and comes back.
    Crash(NodeId, Death),
    /// The leader of a shard dies and comes back.
    CrashLeader(u16, Death),
    /// All brokers die at once and come back.
    CrashAll(Death),
    /// A broker dies, comes back with an empty disk.
    Wipe(NodeId),
    /// A broker stops as SIGTERM does, and comes back.
    Stop(NodeId),
    /// One broker after the other stops as SIGTERM does and comes back.
    RollingRestart,
    /// Nothing passes between a broker and the other brokers.
    Isolate(NodeId),
    /// Nothing passes from a broker to the others; what they send it arrives.
    Mute(NodeId),
    /// Nothing passes from one broker to another.
    CutOneWay(NodeId, NodeId),
    /// A broker stands still, and then goes on as if nothing had been.
    Pause(NodeId),
    /// All connections between two brokers break.
    Reset(NodeId, NodeId),
    /// Packets are lost and late everywhere.
    BadLinks,
    /// Syncs of a broker's disk take long.
    SlowDisk(NodeId),
    /// A consumer stands still beyond its session time-out, and then goes on with what it believes to own.
    Zombie(usize),
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// When it begins, in milliseconds after the clients have started.
    pub at_ms: u64,
    /// What goes wrong.
    pub fault: Fault,
    /// For how long, in milliseconds.
    pub lasts_ms: u64,
}

/// Draws the faults of a run that lasts `span_ms`. Each kind is either in this run or not at all, so that some runs show a fault on
/// its own.
pub(crate) fn draw(rng: &mut StdRng, nodes: u64, shards: u16, members: usize, span_ms: u64) -> Vec<Planned> {
    const KINDS: u8 = 14;
    let mut kinds: Vec<u8> = (0..KINDS).filter(|_| rng.random_ratio(9, 20)).collect();
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
                _ => Fault::Zombie(rng.random_range(0..members.max(1))),
            };
            let lasts_ms = match fault {
                // Longer than the session time-out, or it would be no zombie.
                Fault::Zombie(_) => rng.random_range(3_500..5_000),
                _ => some_time(rng),
            };
            Planned { at_ms: rng.random_range(0..span_ms), fault, lasts_ms }
        })
        .collect();
    planned.sort_by_key(|planned| planned.at_ms);
    planned
}

/// Mostly short, sometimes longer than every time-out between brokers.
fn some_time(rng: &mut impl Rng) -> u64 {
    if rng.random_ratio(1, 4) { rng.random_range(1_000..2_500) } else { rng.random_range(20..700) }
}

/// What faults act on.
#[derive(Clone)]
pub(crate) struct Victims {
    pub(crate) cluster: Cluster,
    /// Machines of the group's members.
    pub(crate) members: Arc<Vec<NodeHandle>>,
    pub(crate) inspector: Inspector,
    /// Brokers that one fault has to itself: two faults do not start one broker twice.
    taken: Arc<Mutex<BTreeSet<NodeId>>>,
    /// Held while some broker's disk is not what its peers believe: two emptied disks of three are the loss of a majority, which
    /// nothing survives.
    majority_at_stake: Arc<tokio::sync::Mutex<()>>,
}

/// A broker that belongs to a fault until this is dropped.
struct Taken {
    all: Arc<Mutex<BTreeSet<NodeId>>>,
    node: NodeId,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.node);
    }
}

impl Victims {
    pub(crate) fn new(cluster: Cluster, members: Vec<NodeHandle>, inspector: Inspector) -> Self {
        Self {
            cluster,
            members: Arc::new(members),
            inspector,
            taken: Arc::default(),
            majority_at_stake: Arc::default(),
        }
    }

    /// `None`: another fault has it, or it is down.
    fn take(&self, node: NodeId) -> Option<Taken> {
        let up = self.cluster.is_up(node);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        (up && taken.insert(node)).then(|| Taken { all: self.taken.clone(), node })
    }
}

/// Lets the faults happen, each at its time. Returns when the last is mended.
pub(crate) async fn play(victims: &Victims, schedule: &[Planned]) {
    let begun = SimEnv::now();
    let tasks: Vec<_> = schedule
        .iter()
        .cloned()
        .map(|planned| {
            let victims = victims.clone();
            SimEnv::spawn(async move {
                SimEnv::sleep_until(begun + Duration::from_millis(planned.at_ms)).await;
                let lasts = Duration::from_millis(planned.lasts_ms);
                victims.cluster.trace().event("faults", format!("{:?} for {lasts:?}", planned.fault));
                if !happen(&victims, &planned.fault, lasts).await {
                    victims.cluster.trace().event("faults", format!("{:?}: not possible now", planned.fault));
                }
            })
        })
        .collect();
    for task in tasks {
        let _ = task.await;
    }
}

/// One fault from its beginning until it is mended. `false`: another one was in its way.
async fn happen(victims: &Victims, fault: &Fault, lasts: Duration) -> bool {
    let cluster = &victims.cluster;
    let ids = cluster.ids();
    match *fault {
        Fault::Crash(node, death) => return crash(victims, &[node], death, lasts).await,
        Fault::CrashLeader(shard, death) => {
            let Some(leader) = cluster.leader(ShardId(shard)) else { return false };
            return crash(victims, &[leader], death, lasts).await;
        }
        Fault::CrashAll(death) => return crash(victims, &ids, death, lasts).await,
        Fault::Wipe(node) => return wipe(victims, node, lasts).await,
        Fault::Stop(node) => return stop(victims, node, lasts).await,
        Fault::RollingRestart => {
            let mut any = false;
            for node in ids {
                any |= stop(victims, node, lasts / 3).await;
                let _ = cluster.wait_until(Duration::from_secs(3), |cluster| cluster.broker(node).is_some()).await;
            }
            return any;
        }
        Fault::Isolate(node) | Fault::Mute(node) => {
            let mut links = Vec::new();
            for peer in ids.into_iter().filter(|peer| *peer != node) {
                links.push((cluster.host(node), cluster.host(peer)));
                if matches!(fault, Fault::Isolate(_)) {
                    links.push((cluster.host(peer), cluster.host(node)));
                }
            }
            cut(cluster, &links, lasts).await;
        }
        Fault::CutOneWay(from, to) => cut(cluster, &[(cluster.host(from), cluster.host(to))], lasts).await,
        Fault::Pause(node) => {
            let Some(_taken) = victims.take(node) else { return false };
            cluster.pause(node);
            SimEnv::sleep(lasts).await;
            cluster.resume(node);
        }
        Fault::Reset(a, b) => cluster.network().reset(&cluster.host(a), &cluster.host(b)),
        Fault::BadLinks => {
            cluster.network().set_options(LinkOptions {
                delay_max: Duration::from_millis(20),
                loss_per_mille: 50,
                ..LinkOptions::default()
            });
            SimEnv::sleep(lasts).await;
            cluster.network().set_options(LinkOptions::default());
        }
        Fault::SlowDisk(node) => {
            let slow = DiskOptions { slow_sync_per_mille: 300, ..DiskOptions::default() };
            cluster.disk(node).set_options(slow);
            SimEnv::sleep(lasts).await;
            cluster.disk(node).set_options(DiskOptions::default());
        }
        Fault::Zombie(member) => {
            let Some(machine) = victims.members.get(member) else { return false };
            Handle::current().pause(machine.id());
            SimEnv::sleep(lasts).await;
            Handle::current().resume(machine.id());
        }
    }
    true
}

async fn cut(cluster: &Cluster, links: &[(String, String)], lasts: Duration) {
    for (from, to) in links {
        cluster.network().block(from, to);
    }
    SimEnv::sleep(lasts).await;
    cluster.network().heal();
}

async fn crash(victims: &Victims, nodes: &[NodeId], death: Death, lasts: Duration) -> bool {
    let taken: Vec<Taken> = nodes.iter().filter_map(|node| victims.take(*node)).collect();
    for victim in &taken {
        victims.cluster.kill(victim.node, death);
    }
    SimEnv::sleep(lasts).await;
    for victim in &taken {
        victims.cluster.start(victim.node);
    }
    !taken.is_empty()
}

async fn stop(victims: &Victims, node: NodeId, lasts: Duration) -> bool {
    let Some(_taken) = victims.take(node) else { return false };
    victims.cluster.stop(node).await;
    SimEnv::sleep(lasts).await;
    victims.cluster.start(node);
    true
}

async fn wipe(victims: &Victims, node: NodeId, lasts: Duration) -> bool {
    let cluster = &victims.cluster;
    let Ok(_at_stake) = victims.majority_at_stake.try_lock() else { return false };
    let Some(taken) = victims.take(node) else { return false };
    // A shard that counts another node's disk as lost already must not lose this one too.
    if !cluster.ids().iter().all(|id| cluster.votes_everywhere(*id)) {
        return false;
    }
    cluster.kill(node, Death::Process);
    cluster.disk(node).wipe();
    SimEnv::sleep(lasts).await;
    cluster.start(node);
    drop(taken);
    let _ = cluster.wait_until(REFILL, |cluster| cluster.votes_everywhere(node)).await;
    true
}

/// Kills a broker for good, once the others can do without it.
pub(crate) async fn leave_dead(cluster: &Cluster, node: NodeId) {
    let all_vote = |cluster: &Cluster| cluster.ids().iter().all(|id| cluster.votes_everywhere(*id));
    if cluster.wait_until(REFILL, all_vote).await {
        cluster.trace().event("faults", format!("broker {node} dies for good"));
        cluster.kill(node, Death::Power);
    }
}
