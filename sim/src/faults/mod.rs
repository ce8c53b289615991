//! What goes wrong in a run, as data, and how it is done to a cluster. Faults overlap; what one has broken it mends itself.

pub(crate) mod draw;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::{NodeId, ShardId};
use lockstep_env::{Env, Step, Task};
use madsim::runtime::{Handle, NodeHandle};
use serde::{Deserialize, Serialize};

use crate::cluster::{AtRest, Cluster, Death};
use crate::env::SimEnv;
use crate::env::disk::{DiskOptions, Operation};
use crate::env::net::{BlockId, LinkOptions};
use crate::inspector::Inspector;

/// Within so long some sync comes.
const SYNC_COMES: Duration = Duration::from_secs(1);
/// What failed last has ended its process after so long.
const FALLS_WITHIN: Duration = Duration::from_millis(200);
/// How long an emptied disk may take to be filled again, while other things go wrong.
const REFILL: Duration = Duration::from_secs(30);
/// How long a damaged segment may take to be whole again, while other things go wrong.
const REPAIRED: Duration = Duration::from_secs(30);
/// What is possible only while all brokers are well is tried for so long.
const MOMENT_COMES: Duration = Duration::from_secs(2);
/// Two brokers are up and connected within this time, whatever else goes wrong.
const CONNECTIONS_COME: Duration = Duration::from_secs(5);
/// Longest wait for a compaction.
const COMPACTION_AWAITED: Duration = Duration::from_secs(1);
/// For so long no sync ends before power fails.
const SYNCS_HANG: Duration = Duration::from_millis(40);
/// What a leader has been asked for is committed and known to its followers within this time, mostly.
const COMMITS_ARE_DONE: Duration = Duration::from_millis(80);
/// Whoever did not hear of a leader for so long stands for election.
const LEASES_RUN_OUT: Duration = Duration::from_millis(600);

/// One thing that goes wrong, and later is mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A broker dies and comes back.
    Crash(NodeId, Death),
    /// A broker dies and comes back while all others have what they acknowledged: with what it lost of its memory nobody else's may be lost.
    CrashAlone(NodeId, Death),
    /// The leader of a shard dies and comes back.
    CrashLeader(u16, Death),
    /// All brokers die at once and come back.
    CrashAll(Death),
    /// All brokers die as processes and, soon after they are back, with their machines.
    CrashAllTwice,
    /// Power fails everywhere soon after compacted segments took the place of others: they are in use, and hardly in a checkpoint yet.
    PowerCutAfterCompaction {
        /// How soon, in milliseconds.
        after_ms: u64,
    },
    /// Whoever comes to this step next for the `nth` time dies in the middle of it, and comes back. The step is a number in [`Step::ALL`].
    CrashAt {
        /// Which step.
        step: usize,
        /// 1: the next time.
        nth: u64,
        /// How it dies.
        death: Death,
    },
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
    /// Every broker reaches a majority, and no two the same one. With fewer than four brokers: one refuses new connections of another.
    Ring,
    /// A broker stands still, and then goes on as if nothing had been.
    Pause(NodeId),
    /// The leader of a shard hears from a bare majority only, one of which is started anew within moments, and then hears from the others but not from
    /// the leader: it must not vote for one of them while the leader relies on it. Clients reach neither of the two, so that little is committed
    /// that the others lack.
    RestartBesideCut {
        /// The shard.
        shard: u16,
        /// For how long the follower is away, in milliseconds.
        away_ms: u64,
    },
    /// One follower of a shard hears nothing of its leader for a moment; then the other one comes back with an empty disk, and the leader dies. What
    /// was committed in that moment is on the leader's disk alone: until it is back nobody may be elected. Of five brokers one is left to the leader.
    WipeBesideCut {
        /// The shard.
        shard: u16,
    },
    /// All connections between two brokers break.
    Reset(NodeId, NodeId),
    /// All connections of clients to a broker break, and what it was about to answer is lost.
    ResetClients(NodeId),
    /// Packets are lost and late everywhere.
    BadLinks,
    /// What one broker sends another is late.
    SlowLink(NodeId, NodeId),
    /// Syncs of a broker's disk take long.
    SlowDisk(NodeId),
    /// No sync of a broker's disk ends for a time.
    HangingDisk(NodeId),
    /// Reads, writes and syncs of a broker's disk fail now and then. The machine is started anew afterwards.
    FailingDisk(NodeId),
    /// A sync of a broker's disk fails, which ends the process, but not the machine: what was to be synced can still be read, and is not on the disk. The
    /// broker is started again, and some time later its power fails.
    FailedSync {
        /// Whose.
        node: NodeId,
        /// 1: the next sync.
        nth: u64,
    },
    /// A broker gets an empty disk, which fails now and then while it is filled. The machine is started anew afterwards.
    WipeOntoFailingDisk {
        /// Whose.
        node: NodeId,
        /// When the disk begins to fail, in milliseconds after the broker was started with it.
        after_ms: u64,
    },
    /// A broker's disk is full for a time, and no shard stops because of that. (A broker that was to start meanwhile and could not is started again,
    /// as everything that fell is.)
    FullDisk(NodeId),
    /// A bit flips in a file that a broker has closed, and the broker is started anew. When it refuses to start, it gets an empty disk.
    FlippedBit(NodeId, AtRest),
    /// A bit flips in a segment that a broker has closed, while the broker runs. It has to find that by itself.
    DamagedSegment {
        /// Which broker.
        node: NodeId,
        /// It is started anew before it can have noticed.
        restarts: bool,
    },
    /// A bit flips in a closed segment of a shard's leader, and another broker, whose disk is emptied, is given that segment. It must notice.
    WipeBesideDamage {
        /// The shard.
        shard: u16,
    },
    /// A broker's wall clock jumps.
    ClockJump(NodeId, i64),
    /// A broker's clocks run too fast or too slow, by so many millionths.
    ClockDrift(NodeId, i64),
    /// A consumer stands still beyond its session time-out, and then goes on with what it believes to own.
    Zombie(usize),
    /// All consumers stand still for so long, and the group is empty when they go on.
    AllZombies,
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

    /// A broker dies and its disk is exchanged for an empty one: nothing that it promised is there any more.
    fn lose_disk(&self, node: NodeId) {
        self.cluster.kill(node, Death::Process);
        self.cluster.disk(node).wipe();
        self.inspector.forget(node);
    }

    /// The same for one that is down.
    fn take_down(&self, node: NodeId) -> Option<Taken> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(node).then(|| Taken { all: self.taken.clone(), node })
    }

    /// `None`: another fault has it, or it is down.
    fn take(&self, node: NodeId) -> Option<Taken> {
        let up = self.cluster.is_up(node);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        (up && taken.insert(node)).then(|| Taken { all: self.taken.clone(), node })
    }
}

/// Lets the faults happen, each at its time. Returns when the last is mended, with how many happened.
pub(crate) async fn play(victims: &Victims, schedule: &[Planned]) -> u64 {
    let begun = SimEnv::now();
    let operator = SimEnv::spawn(operate(victims.clone()));
    let tasks: Vec<_> = schedule
        .iter()
        .cloned()
        .map(|planned| {
            let victims = victims.clone();
            SimEnv::spawn(async move {
                SimEnv::sleep_until(begun + Duration::from_millis(planned.at_ms)).await;
                let lasts = Duration::from_millis(planned.lasts_ms);
                victims.cluster.trace().event("faults", format!("{:?} for {lasts:?}", planned.fault));
                if happen(&victims, &planned.fault, lasts).await {
                    return true;
                }
                victims.cluster.trace().event("faults", format!("{:?}: not possible now", planned.fault));
                break_connections(&victims, planned.at_ms).await
            })
        })
        .collect();
    let mut happened = 0;
    for task in tasks {
        happened += u64::from(task.await.unwrap_or(false));
    }
    SimEnv::sleep(FALLS_WITHIN).await;
    operator.abort();
    restart_fallen(victims, Duration::ZERO).await;
    // A shard that has stopped stays so until its broker is started anew.
    for node in victims.cluster.ids() {
        if !victims.cluster.is_up(node) || !victims.cluster.stopped_shards(node).is_empty() {
            victims.cluster.kill(node, Death::Power);
            victims.cluster.start(node);
        }
    }
    happened
}

/// What takes the place of a fault that is not possible: two of the brokers that are up lose their connections. `turn` says which are tried first.
async fn break_connections(victims: &Victims, turn: u64) -> bool {
    let cluster = &victims.cluster;
    let deadline = SimEnv::now() + CONNECTIONS_COME;
    loop {
        let up: Vec<NodeId> = cluster.ids().into_iter().filter(|id| cluster.is_up(*id)).collect();
        let of = |turn: u64| cluster.host(up[turn as usize % up.len()]);
        if up.len() >= 2 && (turn..turn + 3).any(|turn| cluster.network().reset(&of(turn), &of(turn + 1)) > 0) {
            return true;
        }
        if SimEnv::now() >= deadline {
            return false;
        }
        SimEnv::sleep(CONNECTIONS_COME / 50).await;
    }
}

/// Starts again, after a while, who died by itself: as a service manager does.
async fn operate(victims: Victims) {
    loop {
        victims.cluster.crash_points().wait_for_fall().await;
        restart_fallen(&victims, Duration::from_millis(300)).await;
    }
}

async fn restart_fallen(victims: &Victims, after: Duration) {
    let falls = victims.cluster.crash_points().take_falls();
    SimEnv::sleep(after).await;
    for fall in falls {
        if let Some(node) = victims.cluster.id_of(&fall.host)
            && !victims.cluster.is_up(node)
            && let Some(_taken) = victims.take_down(node)
        {
            victims.cluster.start(node);
        }
    }
}

/// One fault from its beginning until it is mended. `false`: it was not possible, or befell nobody.
async fn happen(victims: &Victims, fault: &Fault, lasts: Duration) -> bool {
    let cluster = &victims.cluster;
    let ids = cluster.ids();
    if let Fault::Isolate(node)
    | Fault::Mute(node)
    | Fault::CutOneWay(node, _)
    | Fault::SlowLink(node, _)
    | Fault::SlowDisk(node)
    | Fault::HangingDisk(node)
    | Fault::FailingDisk(node)
    | Fault::FullDisk(node) = *fault
        && !cluster.is_up(node)
    {
        return false;
    }
    match *fault {
        Fault::Crash(node, death) => return crash(victims, &[node], death, lasts).await,
        Fault::CrashAlone(node, death) => {
            let Some((_at_stake, taken)) = all_well(victims, node).await else { return false };
            drop(taken);
            if !crash(victims, &[node], death, lasts).await {
                return false;
            }
            let _ = cluster.wait_until(REFILL, |cluster| cluster.is_sure(node)).await;
        }
        Fault::CrashLeader(shard, death) => {
            let Some(leader) = cluster.leader(ShardId(shard)) else { return false };
            return crash(victims, &[leader], death, lasts).await;
        }
        Fault::CrashAll(death) => return crash(victims, &ids, death, lasts).await,
        Fault::CrashAllTwice => {
            let once = crash(victims, &ids, Death::Process, lasts / 2).await;
            // Long enough for some to have read their disks, not for all to have written much.
            SimEnv::sleep(lasts / 2).await;
            return crash(victims, &ids, Death::Power, lasts / 2).await || once;
        }
        Fault::PowerCutAfterCompaction { after_ms } => {
            let applied = || cluster.crash_points().reached_counts().get(&Step::CompactionApplied).copied();
            let before = applied();
            let give_up_at = SimEnv::now() + COMPACTION_AWAITED;
            while applied() == before {
                if SimEnv::now() >= give_up_at {
                    return false;
                }
                SimEnv::sleep(Duration::from_millis(5)).await;
            }
            SimEnv::sleep(Duration::from_millis(after_ms)).await;
            return crash(victims, &ids, Death::Power, lasts).await;
        }
        Fault::Wipe(node) => {
            let Some(_at_stake) = empty_disk(victims, node, lasts).await else { return false };
            let _ = cluster.wait_until(REFILL, |cluster| cluster.votes_everywhere(node)).await;
        }
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
            let network = cluster.network();
            let mut blocks = Vec::new();
            for peer in ids.into_iter().filter(|peer| *peer != node) {
                blocks.push(network.block(&cluster.host(node), &cluster.host(peer)));
                if matches!(fault, Fault::Isolate(_)) {
                    blocks.push(network.block(&cluster.host(peer), &cluster.host(node)));
                }
            }
            lift(cluster, blocks, lasts).await;
        }
        Fault::WipeBesideCut { shard } => return wipe_beside_cut(victims, shard, lasts).await,
        Fault::RestartBesideCut { shard, away_ms } => return restart_beside_cut(victims, shard, away_ms, lasts).await,
        Fault::CutOneWay(from, to) => {
            let block = cluster.network().block(&cluster.host(from), &cluster.host(to));
            lift(cluster, vec![block], lasts).await;
        }
        Fault::Ring if ids.len() > 3 => lift(cluster, cluster.ring(), lasts).await,
        Fault::Ring => {
            let refusal = cluster.network().refuse(&cluster.host(1), &cluster.host(2));
            lift(cluster, vec![refusal], lasts).await;
        }
        Fault::CrashAt { step, nth, death } => {
            let Some(step) = Step::ALL.get(step) else { return false };
            let trap = cluster.arm(None, *step, nth, death);
            SimEnv::sleep(lasts + Duration::from_secs(1)).await;
            return !cluster.crash_points().disarm(trap);
        }
        Fault::Pause(node) => {
            let Some(_taken) = victims.take(node) else { return false };
            cluster.pause(node);
            SimEnv::sleep(lasts).await;
            cluster.resume(node);
        }
        Fault::Reset(a, b) => return cluster.network().reset(&cluster.host(a), &cluster.host(b)) > 0,
        Fault::ResetClients(node) => {
            let (clients, host) = (cluster.client_names(), cluster.host(node));
            let broken: usize = clients.iter().map(|client| cluster.network().reset(&host, client)).sum();
            return broken > 0;
        }
        Fault::AllZombies => {
            for machine in victims.members.iter() {
                Handle::current().pause(machine.id());
            }
            SimEnv::sleep(lasts).await;
            for machine in victims.members.iter() {
                Handle::current().resume(machine.id());
            }
        }
        Fault::BadLinks => {
            cluster.network().set_options(LinkOptions {
                delay_max: Duration::from_millis(20),
                loss_per_mille: 50,
                ..LinkOptions::default()
            });
            SimEnv::sleep(lasts).await;
            cluster.network().set_options(LinkOptions::default());
        }
        Fault::SlowLink(from, to) => {
            let (from, to) = (cluster.host(from), cluster.host(to));
            let slow = LinkOptions { delay_max: Duration::from_millis(60), ..LinkOptions::default() };
            cluster.network().set_link(&from, &to, Some(slow));
            SimEnv::sleep(lasts).await;
            cluster.network().set_link(&from, &to, None);
        }
        Fault::SlowDisk(node) => {
            cluster.disk(node).change_options(|options| options.slow_sync_per_mille = 300);
            SimEnv::sleep(lasts).await;
            cluster.disk(node).change_options(|options| options.slow_sync_per_mille = 0);
        }
        Fault::HangingDisk(node) => {
            cluster.disk(node).hang_syncs(lasts);
            SimEnv::sleep(lasts).await;
        }
        Fault::FailingDisk(node) => fail_disk(victims, node, (2, 2, 4), lasts).await,
        Fault::FailedSync { node, nth } => return fail_sync(victims, node, nth, lasts).await,
        Fault::WipeOntoFailingDisk { node, after_ms } => {
            let Some(_at_stake) = empty_disk(victims, node, Duration::from_millis(50)).await else { return false };
            SimEnv::sleep(Duration::from_millis(after_ms)).await;
            fail_disk(victims, node, (0, 20, 40), lasts).await;
            let _ = cluster.wait_until(REFILL, |cluster| cluster.votes_everywhere(node)).await;
        }
        Fault::FullDisk(node) => {
            cluster.disk(node).fill_up(4 << 10);
            SimEnv::sleep(lasts).await;
            cluster.disk(node).change_options(|options| options.capacity_bytes = None);
        }
        Fault::FlippedBit(node, kind) => return flip_bit(victims, node, kind).await,
        Fault::WipeBesideDamage { shard } => return wipe_beside_damage(victims, ShardId(shard), lasts).await,
        Fault::DamagedSegment { node, restarts } => return damage_segment(victims, node, restarts).await,
        Fault::ClockJump(node, by_ms) => {
            cluster.clock(node).jump(by_ms);
            SimEnv::sleep(lasts).await;
            cluster.clock(node).jump(-by_ms);
        }
        Fault::ClockDrift(node, ppm) => {
            cluster.clock(node).set_drift_ppm(ppm);
            SimEnv::sleep(lasts).await;
            cluster.clock(node).set_drift_ppm(0);
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

async fn restart_beside_cut(victims: &Victims, shard: u16, away_ms: u64, lasts: Duration) -> bool {
    let cluster = &victims.cluster;
    let Some(leader) = cluster.leader(ShardId(shard)) else { return false };
    let count = cluster.ids().len() as u64;
    // The others, beginning with the one after the leader: as many as make a majority with it go on hearing from it.
    let mut heard: Vec<NodeId> = (1..count).map(|step| 1 + (leader - 1 + step) % count).collect();
    let unheard = heard.split_off(heard.len() / 2);
    let Some(follower) = heard.pop() else { return false };
    let Some(_taken) = victims.take(follower) else { return false };
    let (leader, name) = (cluster.host(leader), |node| cluster.host(node));
    let cut = |one: &str, other: &str| [cluster.network().block(one, other), cluster.network().block(other, one)];
    // Clients reach neither the leader nor who hears it, so that little is committed meanwhile: a vote goes only to whose log is as long as the
    // voter's.
    let mut blocks: Vec<BlockId> = Vec::new();
    for client in cluster.client_names() {
        blocks.extend(cut(&leader, &client));
        blocks.extend(cut(&name(follower), &client));
    }
    SimEnv::sleep(COMMITS_ARE_DONE / 2).await;
    let is_known = |cluster: &Cluster| {
        let replicas = cluster.ids().into_iter().filter_map(|id| cluster.node(id)?.shard(ShardId(shard)));
        let applied: BTreeSet<_> = replicas.map(|replica| replica.applied()).collect();
        applied.len() <= 1
    };
    let _ = cluster.wait_until(COMMITS_ARE_DONE * 2, is_known).await;
    blocks.extend(unheard.into_iter().flat_map(|other| cut(&leader, &name(other))));
    SimEnv::sleep(LEASES_RUN_OUT).await;
    cluster.kill(follower, Death::Process);
    SimEnv::sleep(Duration::from_millis(away_ms)).await;
    blocks.extend(cut(&leader, &name(follower)));
    cluster.start(follower);
    lift(cluster, blocks, lasts).await;
    true
}

async fn wipe_beside_cut(victims: &Victims, shard: u16, lasts: Duration) -> bool {
    let cluster = &victims.cluster;
    let Ok(_at_stake) = victims.majority_at_stake.try_lock() else { return false };
    let Some(leader) = cluster.leader(ShardId(shard)) else { return false };
    let count = cluster.ids().len() as u64;
    let mut followers = (1..count).map(|step| 1 + (leader - 1 + step) % count);
    let (Some(deaf), Some(wiped)) = (followers.next(), followers.next()) else { return false };
    let (Some(taken_leader), Some(taken_wiped)) = (victims.take(leader), victims.take(wiped)) else { return false };
    if !cluster.ids().iter().all(|id| cluster.votes_everywhere(*id)) {
        return false;
    }
    let cut = cluster.network().block(&cluster.host(leader), &cluster.host(deaf));
    SimEnv::sleep(LEASES_RUN_OUT / 3).await;
    victims.lose_disk(wiped);
    cluster.start(wiped);
    let serves = |cluster: &Cluster| cluster.broker(wiped).is_some() || !cluster.is_up(wiped);
    let _ = cluster.wait_until(LEASES_RUN_OUT / 3, serves).await;
    cluster.kill(leader, Death::Process);
    lift(cluster, vec![cut], lasts).await;
    cluster.start(leader);
    drop((taken_leader, taken_wiped));
    let _ = cluster.wait_until(REFILL, |cluster| cluster.votes_everywhere(wiped)).await;
    true
}

async fn lift(cluster: &Cluster, blocks: Vec<BlockId>, after: Duration) {
    SimEnv::sleep(after).await;
    for block in blocks {
        cluster.network().unblock(block);
    }
}

/// Starts a broker's machine anew when something on it has stopped.
async fn restart(victims: &Victims, node: NodeId) {
    let cluster = &victims.cluster;
    if cluster.is_up(node) && cluster.stopped_shards(node).is_empty() {
        return;
    }
    // Another fault that has the broker starts it too.
    let Some(_taken) = victims.take_down(node) else { return };
    cluster.kill(node, Death::Power);
    SimEnv::sleep(Duration::from_millis(200)).await;
    cluster.start(node);
}

/// Waits for a moment at which a disk may be lost or damaged: every broker votes in all its shards, none has a damaged segment, and nothing else has
/// this broker. `None`: it does not come. Until the first of what is given is dropped no other disk is lost or damaged.
async fn all_well(victims: &Victims, node: NodeId) -> Option<(tokio::sync::MutexGuard<'_, ()>, Taken)> {
    let cluster = &victims.cluster;
    let deadline = SimEnv::now() + MOMENT_COMES;
    loop {
        // A shard that counts another node's disk as lost already must not lose this one too.
        if let Ok(at_stake) = victims.majority_at_stake.try_lock()
            && cluster.ids().iter().all(|id| cluster.votes_everywhere(*id))
            && cluster.all_whole()
            && let Some(taken) = victims.take(node)
        {
            return Some((at_stake, taken));
        }
        if SimEnv::now() >= deadline {
            return None;
        }
        SimEnv::sleep(MOMENT_COMES / 20).await;
    }
}

async fn damage_segment(victims: &Victims, node: NodeId, restarts: bool) -> bool {
    let cluster = &victims.cluster;
    let Some((_at_stake, taken)) = all_well(victims, node).await else { return false };
    if !cluster.damage_segment(node, None) {
        return false;
    }
    if restarts {
        cluster.kill(node, Death::Process);
        cluster.start(node);
    }
    drop(taken);
    let _ = cluster.wait_until(REPAIRED, Cluster::all_whole).await;
    true
}

async fn wipe_beside_damage(victims: &Victims, shard: ShardId, lasts: Duration) -> bool {
    let cluster = &victims.cluster;
    let Some(leader) = cluster.leader(shard) else { return false };
    let node = 1 + leader % cluster.ids().len() as u64;
    let Some(_at_stake) = empty_disk(victims, node, lasts).await else { return false };
    // Only now: what is found before the disk is lost is repaired before. Whoever leads by now may have no segment that can be damaged.
    let _ = cluster.leader(shard).is_some_and(|leader| leader != node && cluster.damage_segment(leader, Some(shard)));
    let _ = cluster.wait_until(REFILL, |cluster| cluster.votes_everywhere(node)).await;
    victims.inspector.compare_copies(cluster);
    let _ = cluster.wait_until(REPAIRED, Cluster::all_whole).await;
    true
}

async fn flip_bit(victims: &Victims, node: NodeId, kind: AtRest) -> bool {
    let cluster = &victims.cluster;
    let Some((_at_stake, taken)) = all_well(victims, node).await else { return false };
    if cluster.flip_bit(node, kind).is_none() {
        return false;
    }
    victims.inspector.excuse(node);
    cluster.kill(node, Death::Process);
    cluster.start(node);
    let decided = |cluster: &Cluster| cluster.broker(node).is_some() || !cluster.is_up(node);
    let _ = cluster.wait_until(Duration::from_secs(5), decided).await;
    if cluster.broker(node).is_none() {
        cluster.trace().event("faults", format!("broker {node} refuses its disk and gets an empty one"));
        victims.lose_disk(node);
        cluster.start(node);
    }
    drop(taken);
    let _ = cluster.wait_until(REFILL, |cluster| cluster.votes_everywhere(node)).await;
    true
}

async fn crash(victims: &Victims, nodes: &[NodeId], death: Death, lasts: Duration) -> bool {
    let taken: Vec<Taken> = nodes.iter().filter_map(|node| victims.take(*node)).collect();
    if death == Death::Power && !taken.is_empty() {
        // Power fails while syncs are under way: what was acknowledged by then must have been durable before.
        for victim in &taken {
            victims.cluster.disk(victim.node).hang_syncs(SYNCS_HANG);
        }
        SimEnv::sleep(SYNCS_HANG * 3 / 4).await;
    }
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

/// Exchanges a broker's disk for an empty one, and starts it; `None`: it is not possible now. Until what is given is dropped nobody else's disk may be lost.
async fn empty_disk(victims: &Victims, node: NodeId, away: Duration) -> Option<tokio::sync::MutexGuard<'_, ()>> {
    let (at_stake, _taken) = all_well(victims, node).await?;
    victims.lose_disk(node);
    SimEnv::sleep(away).await;
    victims.cluster.start(node);
    Some(at_stake)
}

/// Reads, writes and syncs fail so often in a thousand times. What stopped because of it is started anew afterwards.
async fn fail_disk(victims: &Victims, node: NodeId, per_mille: (u64, u64, u64), lasts: Duration) {
    victims.inspector.excuse(node);
    let set = |(reads, writes, syncs)| {
        victims.cluster.disk(node).change_options(|options| {
            (options.read_error_per_mille, options.write_error_per_mille, options.sync_error_per_mille) =
                (reads, writes, syncs);
        });
    };
    set(per_mille);
    SimEnv::sleep(lasts).await;
    let usual = DiskOptions::default();
    set((usual.read_error_per_mille, usual.write_error_per_mille, usual.sync_error_per_mille));
    restart(victims, node).await;
}

async fn fail_sync(victims: &Victims, node: NodeId, nth: u64, lasts: Duration) -> bool {
    let cluster = &victims.cluster;
    let Some(taken) = victims.take(node) else { return false };
    victims.inspector.excuse(node);
    cluster.disk(node).fail_nth(Operation::Sync, nth);
    let fallen = cluster.wait_until(SYNC_COMES, |cluster| !cluster.is_up(node)).await;
    let has_failed = !cluster.disk(node).fail_no_more();
    // The operator starts it again.
    drop(taken);
    if !fallen {
        // It was not the journal's, or there was none.
        restart(victims, node).await;
        return has_failed;
    }
    let _ = cluster.wait_until(Duration::from_secs(3), |cluster| cluster.broker(node).is_some()).await;
    SimEnv::sleep(lasts / 2).await;
    let _ = crash(victims, &[node], Death::Power, lasts / 2).await;
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
