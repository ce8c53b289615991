//! What goes wrong in a run: a schedule drawn from the seed before anything starts, as data.

use std::time::Duration;

use lockstep_core::NodeId;

use crate::cluster::{Cluster, Death};
use crate::env::SimEnv;
use crate::env::disk::DiskOptions;
use crate::env::net::LinkOptions;
use crate::env::{chance, random_below};
use lockstep_env::Env;

/// One thing that goes wrong, and later is mended.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// How long after the fault before it was mended this one starts.
    pub after: Duration,
    /// What goes wrong.
    pub fault: Fault,
    /// For how long.
    pub lasts: Duration,
}

/// Draws a schedule. Each kind of fault is either in this seed or not at all, so that some seeds show a fault on its own.
#[must_use]
pub fn draw(nodes: u64, shards: u16, members: usize) -> Vec<Planned> {
    let any = || 1 + random_below(nodes);
    let other = |than: NodeId| 1 + (than + random_below(nodes - 1)) % nodes;
    let death = || if chance(500) { Death::Power } else { Death::Process };
    let kinds: Vec<u64> = (0..13).filter(|_| chance(450)).collect();
    let kinds = if kinds.is_empty() { vec![random_below(13)] } else { kinds };
    let count = 2 + random_below(4);
    (0..count)
        .map(|_| {
            let kind = kinds[usize::try_from(random_below(kinds.len() as u64)).unwrap_or(0)];
            let node = any();
            let fault = match kind {
                0 => Fault::Crash(node, death()),
                1 => Fault::CrashLeader(u16::try_from(random_below(u64::from(shards))).unwrap_or(0), death()),
                2 => Fault::CrashAll(death()),
                3 => Fault::Wipe(node),
                4 => Fault::Stop(node),
                5 => Fault::Isolate(node),
                6 => Fault::Mute(node),
                7 => Fault::CutOneWay(node, other(node)),
                8 => Fault::Pause(node),
                9 => Fault::Reset(node, other(node)),
                10 => Fault::BadLinks,
                11 => Fault::SlowDisk(node),
                _ => Fault::Zombie(usize::try_from(random_below(members as u64)).unwrap_or(0)),
            };
            let lasts = match fault {
                // Longer than the session time-out, or it would be no zombie.
                Fault::Zombie(_) => Duration::from_millis(7_000 + random_below(3_000)),
                _ => Duration::from_millis(50 + random_below(2_500)),
            };
            Planned { after: Duration::from_millis(random_below(1_500)), fault, lasts }
        })
        .collect()
}

/// Lets the faults happen, one after another; each is mended before the next.
pub async fn play(cluster: &Cluster, schedule: &[Planned], pause_member: impl Fn(usize, bool)) {
    for planned in schedule {
        SimEnv::sleep(planned.after).await;
        cluster.trace().event("faults", format!("{:?} for {:?}", planned.fault, planned.lasts));
        begin(cluster, &planned.fault, planned.lasts, &pause_member).await;
    }
}

async fn begin(cluster: &Cluster, fault: &Fault, lasts: Duration, pause_member: &impl Fn(usize, bool)) {
    let ids = cluster.ids();
    match *fault {
        Fault::Crash(node, death) => crash(cluster, &[node], death, lasts).await,
        Fault::CrashLeader(shard, death) => {
            let leader = cluster.leader(lockstep_core::ShardId(shard));
            crash(cluster, leader.as_slice(), death, lasts).await;
        }
        Fault::CrashAll(death) => crash(cluster, &ids, death, lasts).await,
        Fault::Wipe(node) => {
            cluster.kill(node, Death::Process);
            cluster.disk(node).wipe();
            SimEnv::sleep(lasts).await;
            cluster.start(node);
            // Two emptied disks at once would be the loss of a majority, which nothing survives.
            let _ = cluster.wait_until(Duration::from_secs(60), |cluster| cluster.votes_everywhere(node)).await;
        }
        Fault::Stop(node) => {
            cluster.stop(node).await;
            SimEnv::sleep(lasts).await;
            cluster.start(node);
        }
        Fault::Isolate(node) | Fault::Mute(node) => {
            let network = cluster.network().clone();
            for peer in ids.into_iter().filter(|peer| *peer != node) {
                network.block(&cluster.host(node), &cluster.host(peer));
                if matches!(fault, Fault::Isolate(_)) {
                    network.block(&cluster.host(peer), &cluster.host(node));
                }
            }
            SimEnv::sleep(lasts).await;
            network.heal();
        }
        Fault::CutOneWay(from, to) => {
            let network = cluster.network().clone();
            network.block(&cluster.host(from), &cluster.host(to));
            SimEnv::sleep(lasts).await;
            network.heal();
        }
        Fault::Pause(node) => {
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
            pause_member(member, true);
            SimEnv::sleep(lasts).await;
            pause_member(member, false);
        }
    }
}

async fn crash(cluster: &Cluster, nodes: &[NodeId], death: Death, lasts: Duration) {
    for node in nodes {
        cluster.kill(*node, death);
    }
    SimEnv::sleep(lasts).await;
    for node in nodes {
        cluster.start(*node);
    }
}
