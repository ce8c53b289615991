//! openraft's state machine: the core, the partitions beside it, and checkpoints of both.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use lockstep_core::op::CompactLog;
use lockstep_core::{ClusterStateMachine, Effect, Op, Reply};
use lockstep_env::{Env, Step};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};

use super::replica::Replica;
use super::snapshot::{Builder, Snapshot, SnapshotData, read_current};
use super::type_config::{Command, LogId, Outcome, Payload, SnapshotMeta, StoredMembership, TypeConfig, position};

/// After so many entries in a row other tasks get a turn.
const ENTRIES_IN_A_ROW: usize = 64;
/// An op counts for one entry more for each so many bytes: one that was gathered from a thousand takes as long as they would.
const OP_BYTES_OF_ENTRY: usize = 1 << 10;

/// Debug builds check every invariant of the whole state after so many entries.
const ENTRIES_BETWEEN_CHECKS: u64 = 512;

/// The state machine of one shard on this node.
pub(crate) struct StateMachine<E: Env> {
    replica: Arc<Replica<E>>,
}

impl<E: Env> StateMachine<E> {
    pub(crate) fn new(replica: Arc<Replica<E>>) -> Self {
        Self { replica }
    }

    /// Applies one op and does what follows from it.
    fn apply_command(&self, at: &LogId, command: &Command) -> Result<(Reply, u128), String> {
        let replica = &*self.replica;
        let op = Op::decode(&command.op).map_err(|error| format!("the op cannot be decoded: {error}"))?;
        let (applied, digest, leading, unresolved) = {
            let mut core = replica.core_mut();
            let applied =
                core.apply(position(at), &op, command.payload.len()).map_err(|violation| violation.message)?;
            if cfg!(debug_assertions) && at.index.is_multiple_of(ENTRIES_BETWEEN_CHECKS) {
                core.check_invariants().map_err(|violation| violation.message)?;
            }
            let mut sessions = replica.sessions();
            if let Some(sessions) = sessions.as_mut() {
                let now_ms = replica.now_ms();
                for effect in &applied.effects {
                    if let Effect::GroupChanged { group_id } = effect {
                        sessions.observe(&core, group_id, now_ms);
                    }
                }
            }
            let unresolved = unresolved_regexes(&core, &applied.effects);
            replica.directory.reached(core.directory().version);
            (applied, core.digest().0, sessions.is_some(), unresolved)
        };
        for effect in &applied.effects {
            replica.store.apply(effect, &command.payload)?;
        }
        for effect in &applied.effects {
            match effect {
                Effect::GroupChanged { group_id } => replica.groups.change(group_id),
                Effect::AssignmentNeeded { group_id } if leading => {
                    replica.lock_assignments().insert(group_id.clone());
                    replica.duties.notify_one();
                }
                Effect::DirectoryChanged { .. } => {
                    replica.directory.tell();
                    // Clients ask any node for the topic that they have just made.
                    replica.commit_news.want(at.index);
                    replica.upkeep.notify_one();
                }
                _ => {}
            }
        }
        if !unresolved.is_empty() {
            replica.lock_unresolved_regexes().extend(unresolved);
            replica.upkeep.notify_one();
        }
        Ok((applied.reply, digest))
    }

    /// What a compaction replaces must be in its files: a checkpoint that was prepared before may list it.
    async fn prepare(&self, command: &Command) -> io::Result<()> {
        if !is_compaction(command) {
            return Ok(());
        }
        let Ok(Op::CompactLog(op)) = Op::decode(&command.op) else { return Ok(()) };
        let end = op.segments.last().map_or(0, |last| last.next_offset);
        let store = &self.replica.store;
        if store.is_written_to(op.topic_id, op.partition, end) { Ok(()) } else { store.flush().await }
    }

    /// A broken invariant or an op of an unknown kind: this shard cannot go on here, the others can.
    fn refuse(&self, at: &LogId, op: &Bytes, reason: &str) -> io::Error {
        let digest = self.replica.core().digest();
        let reason = format!(
            "{:?} stops at term {} index {} (op {}, digest {:032x}): {reason}",
            self.replica.id,
            at.leader_id.term,
            at.index,
            op.get(1).copied().unwrap_or(0),
            digest.0
        );
        tracing::error!(target: "raft", node = self.replica.node_id, shard = %self.replica.id, "raft group stops on this node: {reason}");
        self.replica.stop(reason.clone());
        io::Error::other(reason)
    }
}

fn is_compaction(command: &Command) -> bool {
    command.op.get(1) == Some(&CompactLog::CODE)
}

/// Is it a compaction of which something was removed?
fn replaces_segments(command: &Command) -> bool {
    is_compaction(command)
        && matches!(Op::decode(&command.op), Ok(Op::CompactLog(compaction)) if !compaction.segments.is_empty())
}

/// Groups that changed and have subscriptions of which it is not known what they match, or what they match of altered topics.
fn unresolved_regexes(core: &ClusterStateMachine, effects: &[Effect]) -> Vec<String> {
    let unresolved = effects.iter().filter_map(|effect| match effect {
        Effect::GroupChanged { group_id } if core.has_unresolved_regexes(group_id) => Some(group_id),
        Effect::ResolutionNeeded { group_id } => Some(group_id),
        _ => None,
    });
    unresolved.cloned().collect()
}

/// Lets the executor run other tasks once.
pub(crate) async fn take_turns() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl<E: Env> RaftStateMachine<TypeConfig<E>> for StateMachine<E> {
    type SnapshotData = SnapshotData<E>;
    type SnapshotBuilder = Builder<E>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let progress = self.replica.progress();
        Ok((progress.last, progress.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig<E>>>> + Unpin + OptionalSend,
    {
        let mut in_a_row = 0;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            if in_a_row >= ENTRIES_IN_A_ROW {
                in_a_row = 0;
                take_turns().await;
            }
            in_a_row += 1;
            if let Some(reason) = self.replica.stopped() {
                return Err(io::Error::other(reason));
            }
            let (reply, membership, digest) = match &entry.payload {
                Payload::Blank => (None, None, self.replica.core().digest().0),
                Payload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                    (None, Some(stored), self.replica.core().digest().0)
                }
                Payload::Normal(command) => {
                    in_a_row += command.op.len() / OP_BYTES_OF_ENTRY;
                    self.replica.store.writable().await;
                    if let Err(error) = self.prepare(command).await {
                        return Err(self.refuse(&entry.log_id, &command.op, &error.to_string()));
                    }
                    match self.apply_command(&entry.log_id, command) {
                        Ok((reply, digest)) => {
                            if reply == Reply::Done(true) && replaces_segments(command) {
                                self.replica.env.reached(Step::CompactionApplied);
                            }
                            (Some(reply), None, digest)
                        }
                        Err(reason) => return Err(self.refuse(&entry.log_id, &command.op, &reason)),
                    }
                }
            };
            let changes_membership = membership.is_some();
            self.replica.advance(entry.log_id, membership, digest);
            if changes_membership {
                self.replica.env.reached(Step::MembershipApplied);
            }
            if let Some(responder) = responder {
                self.replica.env.reached(Step::BeforeReply);
                responder.send(Outcome(reply));
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder<E>> {
        // Called between two applies, so what is noted here is one state.
        let checkpointing = self.replica.checkpointing.clone();
        let turn = match checkpointing.clone().try_lock_owned() {
            Ok(turn) => turn,
            Err(_) if force => checkpointing.lock_owned().await,
            Err(_) => return None,
        };
        Some(Builder::prepare(self.replica.clone(), turn))
    }

    async fn get_snapshot_builder(&mut self) -> Builder<E> {
        let turn = self.replica.checkpointing.clone().lock_owned().await;
        Builder::prepare(self.replica.clone(), turn)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData<E>) -> io::Result<()> {
        let result = snapshot.install(&self.replica, meta).await;
        if let Err(error) = &result {
            self.replica.stop(format!("{:?}: a snapshot could not be installed: {error}", self.replica.id));
        }
        result
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot<E>>> {
        read_current(&self.replica).await
    }
}
