//! An eye on the inside of all nodes while a run goes on: what Raft promises, and what no client can see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::{NodeId, ShardId};
use lockstep_env::Env;

use crate::cluster::Cluster;
use crate::env::SimEnv;
use crate::workload::GROUP;

/// Simulated time between two looks.
const PAUSE: Duration = Duration::from_millis(40);
/// Looks between two that check every invariant of every state.
const LOOKS_BETWEEN_INVARIANTS: u64 = 16;

/// What has been seen so far.
#[derive(Clone, Default)]
pub(crate) struct Inspector(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// Who led a shard in a term.
    leaders: BTreeMap<(u16, u64), NodeId>,
    /// Term and digest at an applied index of a shard, and where they were seen first. Equal on every replica, for ever: this holds only when
    /// committed entries never change and logs match.
    states: BTreeMap<(u16, u64), (u64, u128, NodeId)>,
    /// The highest epoch of a group, and the index at which it was seen.
    epochs: BTreeMap<String, (u64, i32)>,
    /// Nodes whose disks were made to fail: their shards stop, and must.
    excused: BTreeSet<NodeId>,
    looks: u64,
    violation: Option<String>,
}

impl Inspector {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again and again, until the run is over.
    pub(crate) async fn watch(self, cluster: Cluster) {
        loop {
            SimEnv::sleep(PAUSE).await;
            let looked = self.lock().look(&cluster);
            if let Err(violation) = looked {
                cluster.trace().event("inspector", violation.clone());
                self.lock().violation.get_or_insert(violation);
                return;
            }
        }
    }

    /// From now on shards may stop on this node: its disk was made to fail.
    pub(crate) fn excuse(&self, node: NodeId) {
        self.lock().excused.insert(node);
    }

    /// The first promise that was seen broken.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        self.lock().violation.clone().map_or(Ok(()), Err)
    }
}

impl Seen {
    fn look(&mut self, cluster: &Cluster) -> Result<(), String> {
        self.looks += 1;
        for shard in cluster.shards() {
            let serving = cluster.serving(shard);
            if serving.len() > 1 {
                return Err(format!("two leaders at one time: nodes {serving:?} answer for shard {}", shard.0));
            }
        }
        let thorough = self.looks.is_multiple_of(LOOKS_BETWEEN_INVARIANTS);
        for id in cluster.ids() {
            let Some(node) = cluster.node(id) else { continue };
            for shard in node.shards() {
                let (role, term) = shard.role();
                let number = shard.id().0;
                if role == "leader" {
                    let first = *self.leaders.entry((number, term)).or_insert(id);
                    if first != id {
                        return Err(format!(
                            "two leaders in one term: {first} and {id} lead shard {number} in term {term}"
                        ));
                    }
                }
                let reverted = shard.reverted();
                if let Some(member) = reverted.first() {
                    return Err(format!(
                        "a replica lost what it had acknowledged: shard {number} on node {member}, as node {id} found that leads it"
                    ));
                }
                if role == "stopped" && !cluster.is_stopping(id) && !self.excused.contains(&id) {
                    return Err(format!("a shard stopped: shard {number} on node {id}"));
                }
                shard.read(|state| self.state(id, shard.id(), state, thorough))?;
            }
        }
        Ok(())
    }

    fn state(
        &mut self,
        id: NodeId,
        shard: ShardId,
        state: &lockstep_core::ClusterStateMachine,
        thorough: bool,
    ) -> Result<(), String> {
        let (position, digest) = (state.applied(), state.digest().0);
        if position.index > 0 {
            let (term, first, node) =
                *self.states.entry((shard.0, position.index)).or_insert((position.term, digest, id));
            if (term, first) != (position.term, digest) {
                return Err(format!(
                    "replicas differ at one position: shard {} index {}: term {term} digest {first:032x} on node {node}, term {} digest {digest:032x} on node {id}",
                    shard.0, position.index, position.term
                ));
            }
        }
        if thorough {
            state
                .check_invariants()
                .map_err(|violation| format!("an invariant is broken: node {id}: {violation:?}"))?;
            for group in state.groups() {
                // Other groups are deleted and made again.
                if group.group_id != GROUP {
                    continue;
                }
                let Some(view) = state.group(&group.group_id) else { continue };
                let (index, epoch) = self.epochs.entry(group.group_id).or_insert((position.index, view.epoch));
                if position.index >= *index {
                    if view.epoch < *epoch {
                        return Err(format!("a group's epoch went back: from {epoch} to {}, node {id}", view.epoch));
                    }
                    (*index, *epoch) = (position.index, view.epoch);
                }
            }
        }
        Ok(())
    }
}
