//! An eye on the inside of all nodes while a run goes on: what Raft promises, and what no client can see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use checker::{Event, History};
use lockstep_core::{NodeId, ShardId, shard_of_group};
use lockstep_env::{Env, timeout};
use lockstep_runtime::Shard;
use lockstep_runtime::raft::Promises;

use crate::cluster::Cluster;
use crate::env::SimEnv;
use crate::workload::GROUP;

/// Simulated time between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Looks between two that check every invariant of every state.
const LOOKS_BETWEEN_INVARIANTS: u64 = 16;
/// Looks between two at which every node is asked for a read index.
const LOOKS_BETWEEN_READS: u64 = 4;
/// How long a read index is waited for.
const READ_PATIENCE: Duration = Duration::from_secs(1);
/// Looks after which a leader that goes on with sessions of another term does so for good, and not for the moment until it notices.
const LOOKS_WITH_FORMER_SESSIONS: u64 = 40;

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
    /// The last index of a shard's term that any node has applied.
    ends: BTreeMap<(u16, u64), u64>,
    /// By shard: who served it in which term at every look from one time to another, in microseconds.
    served: BTreeMap<u16, Vec<Served>>,
    /// What the present life of each node promised, kept when it dies: the next one must find it.
    promises: BTreeMap<(NodeId, u16), Arc<Promises>>,
    /// Nodes that lead a shard in a term with sessions of another: at how many looks in a row.
    former_sessions: BTreeMap<(NodeId, u16), (u64, u64)>,
    /// The highest epoch of a group, and the index at which it was seen.
    epochs: BTreeMap<String, (u64, i32)>,
    /// Nodes whose disks were made to fail: their shards stop, and must.
    excused: BTreeSet<NodeId>,
    looks: u64,
    violation: Option<String>,
}

/// Somebody served a shard, at every look of this time.
struct Served {
    node: NodeId,
    term: u64,
    from_us: u64,
    until_us: u64,
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
                self.found(&cluster, violation);
            }
            if self.lock().violation.is_some() {
                return;
            }
            self.ask_for_read_index(&cluster);
        }
    }

    fn found(&self, cluster: &Cluster, violation: String) {
        cluster.trace().event("inspector", violation.clone());
        self.lock().violation.get_or_insert(violation);
    }

    /// Asks every node for a read index of a shard: whoever gives one has made sure that it leads, so that it lies behind all that was
    /// committed before.
    fn ask_for_read_index(&self, cluster: &Cluster) {
        let looks = self.lock().looks;
        if !looks.is_multiple_of(LOOKS_BETWEEN_READS) {
            return;
        }
        let shard = ShardId((looks / LOOKS_BETWEEN_READS % u64::from(cluster.options().shards)) as u16);
        let committed = self.lock().applied_anywhere(shard);
        for id in cluster.ids() {
            let asked = cluster.spawn_on(id, |node| async move {
                let hosted = node.shard(shard)?;
                timeout::<SimEnv, _>(READ_PATIENCE, hosted.read_index()).await.ok()?.ok()
            });
            let Some(asked) = asked else { continue };
            let (inspector, cluster) = (self.clone(), cluster.clone());
            drop(SimEnv::spawn(async move {
                if let Ok(Some(index)) = asked.await
                    && index < committed
                {
                    inspector.found(&cluster, format!(
                        "a read index is too low: node {id} gave {index} for shard {}, where {committed} had been applied before",
                        shard.0
                    ));
                }
            }));
        }
    }

    /// Copies of segments are equal, as far as both go and nothing has damaged them.
    pub(crate) fn compare_copies(&self, cluster: &Cluster) {
        if let Some(difference) = cluster.differing_copies() {
            self.found(cluster, format!("replicas hold different bytes: {difference}"));
        }
    }

    /// The node got an empty disk: what it promised is void.
    pub(crate) fn forget(&self, node: NodeId) {
        self.lock().promises.retain(|(id, _), _| *id != node);
    }

    /// Adds to the history who coordinated the group when.
    pub(crate) fn record_coordinators(&self, cluster: &Cluster, history: &History) {
        let at_us = cluster.trace().now_us();
        let shard = shard_of_group(GROUP, cluster.options().shards);
        for served in self.lock().served.get(&shard.0).into_iter().flatten() {
            let Served { node, from_us, until_us, .. } = *served;
            history.add(at_us, "inspector", Event::Coordinated { node, group: GROUP.to_owned(), from_us, until_us });
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
            match serving.first() {
                Some(node) => self.serves(cluster, shard, *node)?,
                None => self.serves_nobody(shard),
            }
        }
        let thorough = self.looks.is_multiple_of(LOOKS_BETWEEN_INVARIANTS);
        for id in cluster.ids() {
            let Some(node) = cluster.node(id) else { continue };
            for shard in &node.shards() {
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
                self.promises_hold(id, shard)?;
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

    /// The highest index of a shard that any node has applied.
    fn applied_anywhere(&self, shard: ShardId) -> u64 {
        self.applied_before(shard, u64::MAX)
    }

    /// The same, of terms before this one.
    fn applied_before(&self, shard: ShardId, term: u64) -> u64 {
        self.ends.range((shard.0, 0)..(shard.0, term)).next_back().map_or(0, |(_, index)| *index)
    }

    fn serves(&mut self, cluster: &Cluster, shard: ShardId, node: NodeId) -> Result<(), String> {
        let seen = cluster.ask(node, |node| {
            let hosted = node.shard(shard)?;
            Some((hosted.serving().ok()?, hosted.applied(), hosted.session_term()))
        });
        let Some((term, applied, session_term)) = seen.flatten() else { return Ok(()) };
        let at_us = cluster.trace().now_us();
        let served = self.served.entry(shard.0).or_default();
        match served.last_mut().filter(|last| last.node == node && last.term == term) {
            Some(last) => last.until_us = at_us,
            None => served.push(Served { node, term, from_us: at_us, until_us: at_us }),
        }
        let former = self.applied_before(shard, term);
        if applied.index < former {
            return Err(format!(
                "a leader answers too early: node {node} serves shard {} in term {term} with entries up to {}, and {former} was committed before",
                shard.0, applied.index
            ));
        }
        let with_former = self.former_sessions.entry((node, shard.0)).or_default();
        if session_term.is_none_or(|session_term| session_term == term) {
            *with_former = (term, 0);
        } else {
            *with_former = (term, if with_former.0 == term { with_former.1 + 1 } else { 0 });
            if with_former.1 > LOOKS_WITH_FORMER_SESSIONS {
                return Err(format!(
                    "sessions of another term: node {node} leads shard {} in term {term} with those of {session_term:?}",
                    shard.0
                ));
            }
        }
        Ok(())
    }

    fn serves_nobody(&mut self, shard: ShardId) {
        self.former_sessions.retain(|(_, number), _| *number != shard.0);
        // The next time is another one, even if it is the same node in the same term.
        if let Some(last) = self.served.get_mut(&shard.0).and_then(|served| served.last_mut()) {
            last.term = u64::MAX;
        }
    }

    fn promises_hold(&mut self, id: NodeId, shard: &Shard<SimEnv>) -> Result<(), String> {
        let present = shard.promises();
        let former = self.promises.insert((id, shard.id().0), present.clone());
        match former.filter(|former| !Arc::ptr_eq(former, &present)) {
            Some(former) => match former.made().broken_by(&present.found()) {
                Some(how) => Err(format!("a node broke its promise: node {id}, shard {}: {how}", shard.id().0)),
                None => Ok(()),
            },
            None => Ok(()),
        }
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
            let end = self.ends.entry((shard.0, position.term)).or_default();
            *end = position.index.max(*end);
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
