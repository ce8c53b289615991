//! Heartbeats of all shards at once, and where leadership should be.

use std::time::{Duration, Instant};

use lockstep_core::{NodeId, ShardId};
use lockstep_env::Env;

use super::{Node, placement};
use crate::raft::heartbeats::LOOKS_PER_INTERVAL;
use crate::shard::Shard;
use lockstep_probe::Mark;

const BALANCE_EVERY: Duration = Duration::from_millis(500);
/// A node gets its shards back only after it was there for so long without a break.
const STEADY_FOR: Duration = Duration::from_secs(3);
/// How long a stopping node waits for others to take over.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);
/// A follower that lags by more entries than this does not get leadership handed over.
const LAG_ENTRIES_MAX: u64 = 64;

/// Of a cluster that has just been started: stands for election in the shards that this node should lead.
pub(super) async fn begin<E: Env>(node: Node<E>) {
    let patience = node.inner.config.election_timeout_min;
    let mut standing = Vec::new();
    for shard in node.shards() {
        if placement::replicas(&node.inner.config, shard.id())[0] == node.id() {
            standing.push(E::spawn(async move { shard.stand_first(patience).await }));
        }
    }
    for shard in standing {
        // Without it there is an election all the same, after a time-out.
        let _ = shard.await;
    }
}

/// One ticker for the heartbeats of all shards led here: when one is due, those that soon will be leave with it, and a peer gets them in one packet.
pub(super) async fn beat<E: Env>(node: Node<E>) {
    loop {
        let shards = node.shards();
        if shards.iter().any(Shard::owes_heartbeat) {
            shards.iter().for_each(Shard::beat);
        }
        E::sleep(node.inner.config.heartbeat_interval / LOOKS_PER_INTERVAL).await;
    }
}

/// Moves leadership of each shard to the replica that should have it, once that one is there and has caught up.
pub(super) async fn balance<E: Env>(node: Node<E>) {
    let mut steady: std::collections::BTreeMap<NodeId, Instant> = std::collections::BTreeMap::new();
    loop {
        E::sleep(BALANCE_EVERY).await;
        let now = E::now();
        for peer in node.inner.config.peers.keys() {
            if node.alive(*peer) && !node.is_stopping(*peer) {
                steady.entry(*peer).or_insert(now);
            } else {
                steady.remove(peer);
            }
        }
        for shard in node.shards() {
            let replicas = placement::replicas(&node.inner.config, shard.id());
            let here_long = |peer: &NodeId| {
                steady.get(peer).is_some_and(|at| now.saturating_duration_since(*at) >= STEADY_FOR)
                    && !node.is_peer_short(*peer)
            };
            if node.is_short_of_space() {
                let heir =
                    replicas.iter().find(|peer| **peer != node.id() && here_long(peer) && can_lead(&shard, **peer));
                if let Some(heir) = heir {
                    tracing::info!(target: "raft", node = node.id(), shard = %shard.id(), to = *heir,
                        "moving leadership to a replica that has room on its disk");
                    Mark::LeadershipMovedForSpace.reached();
                    shard.transfer_leader(*heir).await;
                }
                continue;
            }
            let preferred = replicas[0];
            if preferred != node.id() && here_long(&preferred) && can_lead(&shard, preferred) {
                tracing::info!(target: "raft", node = node.id(), shard = %shard.id(), to = preferred,
                    "moving leadership to the replica that should have it");
                Mark::LeadershipMovedBack.reached();
                shard.transfer_leader(preferred).await;
            }
        }
    }
}

/// Is this shard led and served here, and does `candidate` vote and hold nearly all of the log?
fn can_lead<E: Env>(shard: &Shard<E>, candidate: NodeId) -> bool {
    if shard.serving().is_err() {
        return false;
    }
    let status = shard.raft_status();
    let matched = status.matched.get(&candidate).copied().flatten();
    status.voters.contains_key(&candidate)
        && matched.is_some_and(|matched| matched.saturating_add(LAG_ENTRIES_MAX) >= status.last_log)
}

/// Hands every shard led here to another voter, and waits until they have taken over or the time is up.
pub(super) async fn hand_over<E: Env>(node: &Node<E>) {
    let deadline = E::now() + HAND_OVER_MAX;
    loop {
        let mut led: Vec<(Shard<E>, Option<NodeId>)> = Vec::new();
        for shard in node.shards() {
            if shard.serving().is_ok() {
                let replicas = placement::replicas(&node.inner.config, shard.id());
                let heir = replicas.iter().copied().find(|peer| {
                    *peer != node.id() && node.alive(*peer) && !node.is_stopping(*peer) && can_lead(&shard, *peer)
                });
                led.push((shard, heir));
            }
        }
        if led.iter().all(|(_, heir)| heir.is_none()) || E::now() >= deadline {
            return;
        }
        for (shard, heir) in led {
            if let Some(heir) = heir {
                Mark::LeadershipHandedOver.reached();
                shard.transfer_leader(heir).await;
            }
        }
        E::sleep(node.inner.config.heartbeat_interval).await;
    }
}

impl<E: Env> Node<E> {
    /// The shards led here with their terms, for the others to know.
    pub(super) fn leads(&self) -> Vec<(ShardId, u64)> {
        self.shards().iter().filter_map(|shard| shard.serving().ok().map(|term| (shard.id(), term))).collect()
    }
}
