//! How a node without a cluster finds one, or starts one with the others.
//!
//! A cluster is started only when **every** configured node has said that its disk is empty. Were a majority enough, two
//! nodes whose disks were emptied could start a second cluster beside the third node's acknowledged data. A node that hears
//! of a cluster joins it; if its disk is not the one that the cluster knows, the leaders add it as a learner (see `membership`).

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_core::NodeId;
use lockstep_env::{Env, Step};

use super::Node;
use super::identity::ClusterIdentity;
use super::message::{self, Introduction};
use crate::peer::{Lane, PeerRequest};

const ASK_TIMEOUT: Duration = Duration::from_millis(500);
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How often the wait for absent nodes is logged.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Runs until this node belongs to a cluster and its shards have been started.
pub(super) async fn run<E: Env>(node: Node<E>) {
    let mut logged_at = None;
    let cluster = loop {
        let introductions = ask_all(&node).await;
        if let Some(cluster) = introductions.values().find_map(|told| told.cluster.clone()) {
            break cluster;
        }
        if introductions.len() == node.inner.config.peers.len() {
            break found(&introductions);
        }
        if logged_at.is_none_or(|at| E::now().saturating_duration_since(at) >= LOG_EVERY) {
            logged_at = Some(E::now());
            let missing: Vec<&NodeId> =
                node.inner.config.peers.keys().filter(|id| !introductions.contains_key(id)).collect();
            tracing::info!(target: "cluster", node = node.id(), ?missing,
                "waiting for all nodes before the cluster is started for the first time");
        }
        E::sleep(ASK_AGAIN).await;
    };
    if let Err(error) = join(&node, cluster).await {
        node.fail(error.to_string());
    }
}

async fn join<E: Env>(node: &Node<E>, cluster: ClusterIdentity) -> Result<(), crate::error::StartError> {
    let founder = cluster.founders.get(&node.id()) == Some(&node.inner.incarnation);
    tracing::info!(target: "cluster", node = node.id(), cluster = %hex(&cluster.id), shards = cluster.shards, founder,
        "joined the cluster");
    node.inner.env.reached(Step::BeforeJoin);
    if let Some(directories) = node.inner.directories.lock().await.as_mut() {
        directories.join_cluster(&node.inner.env, cluster.clone()).await?;
    }
    let _ = node.inner.cluster.set(cluster);
    node.start_shards().await
}

/// What every founder computes alike from the same introductions.
fn found(introductions: &BTreeMap<NodeId, Introduction>) -> ClusterIdentity {
    let founders: BTreeMap<NodeId, [u8; 16]> =
        introductions.iter().map(|(node, told)| (*node, told.incarnation)).collect();
    let mut id = [0_u8; 16];
    for incarnation in founders.values() {
        for (position, byte) in incarnation.iter().enumerate() {
            // Incarnations are random, so their sum is; the rotation keeps two equal ones from cancelling out.
            id[position] = id[position].rotate_left(3) ^ byte;
        }
    }
    let shards = introductions.values().next().map_or(1, |told| told.shards);
    ClusterIdentity { id, shards, founders }
}

async fn ask_all<E: Env>(node: &Node<E>) -> BTreeMap<NodeId, Introduction> {
    let mut asked = Vec::new();
    for peer in node.inner.config.peers.keys().filter(|peer| **peer != node.id()) {
        let (node, peer) = (node.clone(), *peer);
        asked.push(E::spawn(async move {
            let request = PeerRequest {
                kind: message::INTRODUCE,
                shard: 0,
                body: message::encode(&node.introduction()),
                payload: Vec::new(),
            };
            let (body, _) = node.peers().call(peer, None, Lane::Control, request, ASK_TIMEOUT).await.ok()?;
            let told: Introduction = message::decode(&body).ok()?;
            (told.node_id == peer).then_some((peer, told))
        }));
    }
    let mut introductions = BTreeMap::from([(node.id(), node.introduction())]);
    for answer in asked {
        if let Ok(Some((peer, told))) = answer.await {
            introductions.insert(peer, told);
        }
    }
    introductions
}

impl<E: Env> Node<E> {
    pub(super) fn introduction(&self) -> Introduction {
        Introduction {
            node_id: self.id(),
            incarnation: self.inner.incarnation,
            shards: self.inner.config.shards,
            cluster: self.inner.cluster.get().cloned(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn founders_agree_whoever_computes() {
        let introduction =
            |node_id, shards| Introduction { node_id, incarnation: [node_id as u8; 16], shards, cluster: None };
        let told: BTreeMap<NodeId, Introduction> =
            [(1, introduction(1, 8)), (2, introduction(2, 4)), (3, introduction(3, 16))].into();
        let cluster = found(&told);
        assert_eq!(cluster, found(&told.clone()));
        assert_eq!(cluster.shards, 8, "the lowest node's number counts");
        assert_eq!(cluster.founders.len(), 3);
        assert_ne!(cluster.id, [0; 16]);
    }
}
