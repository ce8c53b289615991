//! What a shard does by itself: the leader's timers, checkpoints, and a record of who leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::op::{LeaveConsumerGroup, RebalancePartitions};
use lockstep_core::view::GroupState;
use lockstep_core::{NodeId, Op, SessionTable};
use lockstep_env::{Disk, Env, select, timeout};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;

use super::leadership::Leadership;
use super::log_bound::{self, Bound};
use super::proposals::Proposals;
use super::replica::Replica;
use super::type_config::Member;
use super::{Raft, ShardContext};
use crate::error::ProposeError;
use lockstep_probe::{Mark, Mistake};

/// Longest sleep of a leader's timer.
const TICK_MAX: Duration = Duration::from_millis(100);
/// Shortest, so that a deadline that cannot be met does not spin.
const TICK_MIN: Duration = Duration::from_millis(5);
/// A leader that could not answer for so long starts its members' sessions anew: their heartbeats were refused, not missing.
const SILENCE_FORGIVEN_MAX: Duration = Duration::from_millis(500);
/// How often members that were heard from are put into the log.
const SEEN_EVERY: Duration = Duration::from_secs(1);
/// How often the journal's length is looked at.
const CHECKPOINT_LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long files of deleted records and topics wait for the next checkpoint, before which they cannot be removed, until one is taken for their sake.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for one checkpoint before the turn is passed on; it may still finish.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(20);
/// For members that answered what was sent so long ago entries are kept at least, and whoever of them lags too far is cut off: longer than a follower's disk may take
/// to answer a request with entries (`APPEND_TIMEOUT`), or one that is as slow as that would not count among them and nothing would bound what is kept for it.
const MEMBER_PATIENCE_MIN: Duration = Duration::from_secs(5);
/// Longest wait for the log to be purged before it is looked at again: Raft puts it off while a follower is sent these entries.
const PURGE_PATIENCE: Duration = Duration::from_secs(1);
/// Files that the journal has in any case: written to, next, and just left.
const JOURNAL_FILES_MIN: u64 = 3;
/// Entries kept in the log for members that lag a little, at most; bounded by bytes too.
const TAIL_ENTRIES_MAX: u64 = 20_000;
/// A member that answers may lag by so many times the bytes after which a checkpoint is taken, before it is given a snapshot instead of entries: a few seconds of
/// what a disk can write, with small checkpoints, half a minute with large ones.
const LAG_CHECKPOINTS: u64 = 4;
/// A member may lag by this part of the bytes after which a checkpoint is taken in any case, however long the journal is.
const LAG_FRACTION: u64 = 8;

/// The leader's part: sessions, assignments, and honesty towards those who wait.
pub(crate) struct LeaderDuties<E: Env> {
    pub(crate) replica: Arc<Replica<E>>,
    pub(crate) leadership: Leadership<E>,
    pub(crate) proposals: Proposals,
    /// A leader that has not heard from a quorum for so long tells those who wait that the outcome is unknown.
    pub(crate) patience: Duration,
}

impl<E: Env> LeaderDuties<E> {
    pub(crate) async fn run(self) {
        let assigning: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let mut led: Option<u64> = None;
        let mut seen_at = E::now();
        // Since when members could not be answered, and since when somebody waits in vain.
        let mut silent: Option<Instant> = None;
        let mut lapsed: Option<Instant> = None;
        while !self.replica.is_stopped() {
            let serving = self.leadership.serving();
            match serving {
                Ok(term) => {
                    lapsed = None;
                    let long = silent
                        .take()
                        .is_some_and(|since| E::now().saturating_duration_since(since) >= SILENCE_FORGIVEN_MAX);
                    if long {
                        Mark::SilenceForgiven.reached();
                    }
                    let kept = Mistake::SessionsKeptAcrossTerms.is_made() && self.replica.sessions().is_some();
                    if (led != Some(term) || long) && !kept {
                        led = Some(term);
                        seen_at = E::now();
                        self.start_sessions(term);
                    }
                    self.expire();
                    if E::now().saturating_duration_since(seen_at) >= SEEN_EVERY {
                        seen_at = E::now();
                        self.propose_seen();
                    }
                    self.assign(&assigning);
                }
                Err(reason) => {
                    if silent.is_none() && led.is_some() && self.leadership.term_led() == led {
                        Mark::LeaseLapsed.reached();
                    }
                    silent.get_or_insert_with(E::now);
                    // A leader whose lease lapsed for a moment keeps its table: it may still be the leader of this term.
                    if led.is_some() && self.leadership.term_led() != led {
                        led = None;
                        if !Mistake::SessionsKeptAcrossTerms.is_made() {
                            *self.replica.sessions() = None;
                        }
                        self.replica.lock_assignments().clear();
                        self.replica.groups.change_all();
                    }
                    self.give_up_if_stuck(&reason, &mut lapsed);
                }
            }
            let woken = self.replica.duties.notified();
            select(woken, E::sleep(self.pause())).await;
        }
        *self.replica.sessions() = None;
        self.proposals.close();
        self.proposals.give_up("the shard stopped", None);
    }

    /// Every member gets a fresh session, and assignments that a former leader did not get to are due.
    fn start_sessions(&self, term: u64) {
        let core = self.replica.core();
        let table = SessionTable::start(&core, term, self.replica.now_ms());
        *self.replica.sessions() = Some(table);
        let due = core.groups().into_iter().filter(|group| group.state == GroupState::Assigning);
        self.replica.lock_assignments().extend(due.map(|group| group.group_id));
    }

    fn pause(&self) -> Duration {
        let deadline = self.replica.sessions().as_ref().and_then(SessionTable::next_deadline);
        let until = deadline.map_or(TICK_MAX, |at| Duration::from_millis(at.saturating_sub(self.replica.now_ms())));
        until.clamp(TICK_MIN, TICK_MAX)
    }

    fn push(&self, op: Op) {
        // Whoever is in the way of it now is not so for long: the table offers an op again until it was applied.
        let _ = self.proposals.push(op, Bytes::new());
    }

    fn expire(&self) {
        let now_ms = self.replica.now_ms();
        let wall_ms = self.replica.env.wall_clock_ms();
        let due =
            self.replica.sessions().as_mut().map(|sessions| sessions.expired(now_ms, wall_ms)).unwrap_or_default();
        for op in due {
            if let Op::LeaveConsumerGroup(LeaveConsumerGroup::Expired { group_id, members, .. }) = &op {
                for member in members {
                    tracing::info!(
                        target: "raft", node = self.replica.node_id, shard = %self.replica.id, group = group_id,
                        member = member.member_id, silent_ms = member.silent_ms, reason = ?member.reason,
                        "LeaveGroup on behalf of a member: its Heartbeat or JoinGroup did not come in time"
                    );
                }
            }
            self.push(op);
        }
    }

    fn propose_seen(&self) {
        let seen = self.replica.sessions().as_mut().and_then(SessionTable::take_seen);
        if let Some(op) = seen {
            self.push(op);
        }
    }

    /// Proposes assignments that are due, one at a time for each group.
    fn assign(&self, assigning: &Arc<Mutex<BTreeSet<String>>>) {
        let due: Vec<String> = {
            let mut due = self.replica.lock_assignments();
            let mut assigning = assigning.lock().unwrap_or_else(PoisonError::into_inner);
            let ready: Vec<String> = due.iter().filter(|group| !assigning.contains(*group)).cloned().collect();
            for group in &ready {
                due.remove(group);
                assigning.insert(group.clone());
            }
            ready
        };
        for group_id in due {
            let now_ms = self.replica.env.wall_clock_ms();
            let assign = RebalancePartitions::Assign { group_id: group_id.clone(), member_id: None, now_ms };
            let op = Op::RebalancePartitions(assign);
            let pushed = self.proposals.push(op, Bytes::new());
            let (replica, assigning) = (self.replica.clone(), assigning.clone());
            let _detached = E::spawn(async move {
                let retry = match pushed {
                    Ok(outcome) => !matches!(outcome.await, Ok(Ok(_))),
                    Err(_) => true,
                };
                assigning.lock().unwrap_or_else(PoisonError::into_inner).remove(&group_id);
                // A new leader finds out by itself what is due.
                if retry && replica.sessions().is_some() {
                    E::sleep(TICK_MAX).await;
                    replica.lock_assignments().insert(group_id);
                }
                replica.duties.notify_one();
            });
        }
    }

    /// Those who wait for a leader without a quorum are told so, once it is clear that another may have been elected.
    fn give_up_if_stuck(&self, reason: &ProposeError, lapsed: &mut Option<Instant>) {
        if !self.proposals.busy() {
            *lapsed = None;
            return;
        }
        let now = E::now();
        let since = *lapsed.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.patience {
            let leader = match reason {
                ProposeError::NotLeader { leader, .. } => *leader,
                _ => None,
            };
            self.proposals.give_up("this node lost its quorum while it was under way", leader);
            *lapsed = None;
        }
    }
}

/// Logs every election, change of leader and change of membership as this node sees them.
pub(crate) async fn record_changes<E: Env>(raft: Raft<E>, replica: Arc<Replica<E>>) {
    let mut metrics = raft.server_metrics();
    let mut last: Option<(ServerState, Option<NodeId>, u64, String)> = None;
    loop {
        let (state, leader, term, members) = {
            let now = metrics.borrow_watched();
            let members = describe(now.membership_config.membership());
            (now.state, now.current_leader, now.vote.leader_id.term, members)
        };
        let (node, shard) = (replica.node_id, replica.id);
        let before = last.replace((state, leader, term, members.clone()));
        let (state_before, leader_before, term_before, members_before) = match before {
            Some((state, leader, term, members)) => (Some(state), leader, term, members),
            None => (None, None, 0, String::new()),
        };
        if state == ServerState::Candidate && (state_before != Some(state) || term != term_before) {
            tracing::info!(target: "raft", node, shard = %shard, term, "raft election: standing for leader");
        }
        if leader != leader_before || (leader.is_some() && term != term_before) {
            match leader {
                Some(leader) if leader == node => {
                    Mark::ElectionWon.reached();
                    tracing::info!(target: "raft", node, shard = %shard, term, "raft cluster: this node is the leader");
                }
                Some(leader) => {
                    tracing::info!(target: "raft", node, shard = %shard, term, leader, "raft cluster: another node is the leader");
                }
                None => tracing::info!(target: "raft", node, shard = %shard, term, "raft cluster: there is no leader"),
            }
        }
        if members != members_before {
            tracing::info!(target: "raft", node, shard = %shard, %members, "raft cluster membership");
        }
        if leader_before == Some(node) && leader != Some(node) {
            Mark::LeadershipLost.reached();
            replica.groups.change_all();
        }
        replica.duties.notify_one();
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn describe(membership: &openraft::Membership<NodeId, Member>) -> String {
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    let nodes: BTreeMap<NodeId, &Member> = membership.nodes().map(|(id, member)| (*id, member)).collect();
    let learners: Vec<NodeId> = nodes.keys().filter(|id| !voters.contains(id)).copied().collect();
    format!("voters {voters:?}, learners {learners:?}")
}

/// Checkpoints the shard when its part of the journal has grown, or holds up the whole journal, or deleted files wait for it, and purges what the checkpoint covers.
pub(crate) async fn checkpoint<E: Env>(context: ShardContext<E>, raft: Raft<E>, replica: Arc<Replica<E>>) {
    let log = context.journal.shard(context.id);
    let bytes_max = context.config.checkpoint_journal_bytes;
    // A journal longer than half of what all shards may hold is held up by shards that see little traffic.
    let files_max = (bytes_max.saturating_mul(1 + u64::from(context.shard_count) / 2)
        / context.config.journal_file_bytes.max(1))
    .max(JOURNAL_FILES_MIN);
    // Beyond that it is too long whatever members lack.
    let lag_files_max = (bytes_max.saturating_mul(LAG_CHECKPOINTS) / context.config.journal_file_bytes.max(1)
        + JOURNAL_FILES_MIN)
        .max(files_max.saturating_mul(2));
    let member_patience = (context.config.election_timeout_max * 2).max(MEMBER_PATIENCE_MIN);
    let mut removal_awaited_since: Option<Instant> = None;
    loop {
        E::sleep(CHECKPOINT_LOOK_EVERY).await;
        if replica.is_stopped() {
            return;
        }
        removal_awaited_since =
            replica.store.removal_awaits_checkpoint().then(|| removal_awaited_since.unwrap_or_else(E::now));
        let removal_due =
            removal_awaited_since.is_some_and(|since| E::now().saturating_duration_since(since) >= REMOVAL_PATIENCE);
        let held = context.journal.bytes_since_purge(context.id);
        let large = held > bytes_max;
        let in_the_way = context.journal.files() as u64 > files_max && context.journal.pinned_by() == Some(context.id);
        if !large && !in_the_way && !removal_due {
            continue;
        }
        let covered = covered(&raft);
        // While members lag the log stays long; more checkpoints would not make it shorter.
        let checkpoint_due = removal_due
            || covered.is_none_or(|covered| {
                let grown = large && log.bytes_from(covered + 1) >= bytes_max / 4 * 3;
                grown || in_the_way && log.purged().is_some_and(|purged| purged.index >= covered)
            });
        let covered = if checkpoint_due {
            removal_awaited_since = None;
            let Ok(_turn) = context.checkpoints.acquire().await else { return };
            cover(&raft, &replica).await
        } else {
            covered
        };
        let Some(covered) = covered else { continue };
        // Whoever lags only a little is spared a snapshot; but a shard in the way gives up all it can.
        let keep = if in_the_way {
            0
        } else {
            let first = log.purged().map_or(0, |purged| purged.index + 1);
            let entries = log.last().map_or(1, |last| (last.index + 1).saturating_sub(first)).max(1);
            let average = (held / entries).max(1);
            (bytes_max / 8 / average).min(TAIL_ENTRIES_MAX)
        };
        let Some(upto) = covered.checked_sub(keep) else { continue };
        let scarce = context.journal.files() as u64 > lag_files_max && context.journal.pinned_by() == Some(context.id)
            || is_short_of_room(&replica).await;
        let allowance = if scarce { bytes_max / LAG_FRACTION } else { bytes_max.saturating_mul(LAG_CHECKPOINTS) };
        let waiting = log_bound::waiting(&raft, &replica, &log, member_patience);
        let bound = Bound::new(upto, &waiting, allowance, |index| log.bytes_from(index));
        let purged = log.purged().map(|purged| purged.index);
        if let Some(upto) = bound.upto.filter(|upto| purged.is_none_or(|purged| purged < *upto)) {
            if raft.trigger().purge_log(upto).await.is_err() {
                return;
            }
            for member in bound.too_far {
                replica.acknowledged(member).cut_off(upto);
            }
            wait_for::<E>(&raft, PURGE_PATIENCE, |metrics| metrics.purged.is_some_and(|at| at.index >= upto)).await;
        }
    }
}

/// Has the journal's disk less room than its reserve?
async fn is_short_of_room<E: Env>(replica: &Replica<E>) -> bool {
    let free = replica.env.disk().free_bytes(&replica.raft_dir).await;
    free.is_ok_and(|free| free < replica.disk_reserve_bytes)
}

/// The last index that a checkpoint covers.
fn covered<E: Env>(raft: &Raft<E>) -> Option<u64> {
    raft.metrics().borrow_watched().snapshot.map(|at| at.index)
}

/// Makes sure that a checkpoint covers what is applied now; the last index that one covers.
async fn cover<E: Env>(raft: &Raft<E>, replica: &Replica<E>) -> Option<u64> {
    let target = replica.applied.borrow().index;
    if covered(raft).is_some_and(|at| at >= target) {
        return covered(raft);
    }
    raft.trigger().snapshot().await.ok()?;
    wait_for::<E>(raft, CHECKPOINT_PATIENCE, |metrics| metrics.snapshot.is_some_and(|at| at.index >= target)).await;
    covered(raft)
}

async fn wait_for<E: Env>(
    raft: &Raft<E>,
    patience: Duration,
    condition: impl Fn(&openraft::RaftMetrics<super::type_config::TypeConfig<E>>) -> bool,
) {
    let mut metrics = raft.metrics();
    let _ = timeout::<E, _>(patience, async {
        loop {
            {
                let now = metrics.borrow_watched();
                if condition(&now) || now.running_state.is_err() {
                    return;
                }
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    })
    .await;
}
