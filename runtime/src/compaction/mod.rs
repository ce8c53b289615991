//! Log compaction (`cleanup.policy=compact`): of the records of a key only the last one stays.
//!
//! The leader of a shard compacts: it reads the part of a log that is dirty and notes the last offset of each key ([`keys`]), then writes what stays of all segments
//! before ([`rewrite`]) to files beside them. The other members fetch these files, and once a majority has them the leader proposes that they take the place of the
//! old ones ([`CompactLog`]): on every replica at the same position, byte by byte the same. What comes out depends on
//! the leader's clock and on how much it remembers at once, which is why it is not left to each replica.
//!
//! Nothing depends on a compaction: when one fails, because of a leader's death or for want of room, files are left over that the next one removes, or the next start.

mod keys;
mod plan;
mod rewrite;
mod segment_reader;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_core::op::{AdvanceLogStart, CompactLog, CompactedSegment};
use lockstep_core::{CompactionSettings, Op, Reply, TopicId};
use lockstep_env::{Env, select};
use lockstep_probe::{Mark, Mistake};
use lockstep_wire::compaction::{takes_long, unfolded_bytes_max, visit_records};
use tokio::sync::Semaphore;

use self::keys::Keys;
use self::plan::{Plan, plan};
use self::rewrite::{Rules, rewrite};
use self::segment_reader::SegmentReader;
use crate::error::ProposeError;
use crate::node::Clocks;
use crate::peer::PeerNetwork;
use crate::raft::{Leadership, Proposals, Replica, StageAsk, has_room, spread, take_turns};
use crate::storage::check::Pace;
use crate::storage::suspicion::FoundBy;
use crate::storage::{SegmentEntry, SegmentName};

/// What compaction came to since the node started, on the shards that it led.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionCounts {
    /// Logs that were compacted.
    pub logs: u64,
    /// Bytes that they have become shorter by.
    pub bytes_removed: u64,
}

impl std::iter::Sum for CompactionCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, next| Self {
            logs: sum.logs + next.logs,
            bytes_removed: sum.bytes_removed + next.bytes_removed,
        })
    }
}

/// The task of one shard. It idles where this node does not lead.
pub(crate) struct Compaction<E: Env> {
    pub(crate) replica: Arc<Replica<E>>,
    pub(crate) leadership: Leadership<E>,
    pub(crate) proposals: Proposals,
    pub(crate) peers: PeerNetwork<E>,
    pub(crate) clocks: Clocks,
    /// One permit: shards of a node take turns.
    pub(crate) turns: Arc<Semaphore>,
    /// See [`crate::NodeConfig::compaction_check_interval`].
    pub(crate) check_interval: Duration,
    /// See [`crate::NodeConfig::compaction_bytes_per_second`].
    pub(crate) bytes_per_second: u64,
    /// See [`crate::NodeConfig::compaction_keys_max`].
    pub(crate) keys_max: usize,
    /// See [`crate::NodeConfig::segment_bytes`].
    pub(crate) segment_bytes: u64,
}

/// A partition whose topic asks for compaction.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    topic_id: TopicId,
    partition: u32,
    settings: CompactionSettings,
    segment_bytes: u64,
    log_start_offset: i64,
    compacted_to: i64,
}

/// A term in which this node leads.
struct Led {
    term: u64,
    attempts: u64,
    /// A proposal's outcome is unknown: the files of a compaction may be needed that looks as if it had failed.
    is_unsettled: bool,
}

/// Why a partition was not compacted.
#[derive(Debug, thiserror::Error)]
enum CompactionError {
    #[error("{name:?} cannot be read: {error}")]
    Segment { name: SegmentName, error: io::Error },
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    NotSpread(String),
    #[error(transparent)]
    NotProposed(#[from] ProposeError),
}

impl<E: Env> Compaction<E> {
    pub(crate) async fn run(self) {
        let mut led: Option<Led> = None;
        while !self.replica.is_stopped() {
            select(self.replica.compaction.notified(), E::sleep(self.check_interval)).await;
            let Ok(term) = self.leadership.serving() else { continue };
            let led = match &mut led {
                Some(led) if led.term == term => led,
                led => led.insert(Led { term, attempts: 0, is_unsettled: false }),
            };
            if led.is_unsettled {
                led.is_unsettled = !self.settles().await;
            }
            if !led.is_unsettled {
                self.check(led).await;
            }
        }
    }

    /// Whether a proposal whose outcome is unknown took effect is decided once a later one of the same term has.
    async fn settles(&self) -> bool {
        let nothing = Op::AdvanceLogStart(AdvanceLogStart { partitions: Vec::new() });
        match self.proposals.push(nothing, Bytes::new()) {
            Ok(outcome) => matches!(outcome.await, Ok(Ok(Reply::LogStarts(_)))),
            Err(_) => false,
        }
    }

    /// Compacts every partition that is due, the one with the largest dirty part first.
    async fn check(&self, led: &mut Led) {
        let mut due: Vec<(f64, Candidate)> = Vec::new();
        for candidate in self.candidates() {
            due.extend(self.plan(&candidate).map(|plan| (plan.dirty_ratio, candidate)));
        }
        due.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        for (_, candidate) in due {
            let Ok(_turn) = self.turns.acquire().await else { return };
            if self.leadership.serving() != Ok(led.term) || led.is_unsettled {
                return;
            }
            // Others had their turns before this.
            let Some(candidate) = self.candidate(candidate.topic_id, candidate.partition) else { continue };
            let Some(plan) = self.plan(&candidate) else { continue };
            self.compact(led, candidate, plan).await;
        }
    }

    async fn compact(&self, led: &mut Led, candidate: Candidate, mut plan: Plan) {
        let Candidate { topic_id, partition, .. } = candidate;
        led.attempts += 1;
        // When a term's numbers are used up, the next leader goes on.
        let Some(revision) = CompactLog::revision_of(led.term, led.attempts) else { return };
        let store = &self.replica.store;
        let began = E::now();
        match self.attempt(led, candidate, &mut plan, revision).await {
            Ok(Some((segments, bytes))) => {
                let bytes_before = bytes_of(&plan.segments);
                {
                    let mut counts = self.replica.lock_compactions();
                    counts.logs += 1;
                    counts.bytes_removed += bytes_before.saturating_sub(bytes);
                }
                tracing::info!(
                    target: "raft", node = self.replica.node_id, shard = %self.replica.id, topic = %topic_id, partition,
                    to = plan.end(), bytes_before, bytes_after = bytes, segments,
                    elapsed_ms = E::now().saturating_duration_since(began).as_millis() as u64, "a log was compacted"
                );
            }
            // Records were deleted meanwhile, or the topic wants it no more; the next look will see what is left.
            Ok(None) => {
                store.discard_staged(topic_id, partition, revision + 1).await;
                tracing::info!(
                    target: "raft", node = self.replica.node_id, shard = %self.replica.id, topic = %topic_id, partition,
                    "a compaction came too late: the log has changed since"
                );
            }
            Err(error) => {
                if led.is_unsettled {
                    return;
                }
                Mark::CompactionGivenUp.reached();
                store.discard_staged(topic_id, partition, revision + 1).await;
                tracing::warn!(
                    target: "raft", node = self.replica.node_id, shard = %self.replica.id, topic = %topic_id, partition,
                    %error, "a log could not be compacted: trying again later"
                );
                if let CompactionError::Segment { name, error } = error
                    && matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound)
                {
                    store.suspect(name, FoundBy::Reader);
                }
            }
        }
    }

    /// The number of segments that were written, and the bytes of the log's compacted part afterwards. `None`: it was too late.
    async fn attempt(
        &self,
        led: &mut Led,
        candidate: Candidate,
        plan: &mut Plan,
        revision: u64,
    ) -> Result<Option<(usize, u64)>, CompactionError> {
        let Candidate { topic_id, partition, log_start_offset, .. } = candidate;
        let Replica { store, .. } = &*self.replica;
        let applied = *self.replica.applied.borrow();
        // Files of segments that are deleted meanwhile stay until this is done.
        let _pin = store.pin_partition(topic_id, partition);
        // This leader has applied what all earlier terms committed, and proposes one compaction after the other.
        store.discard_staged(topic_id, partition, revision).await;
        has_room(&self.replica, plan.bytes).await?;
        let mut pace = Pace::slow::<E>(self.bytes_per_second);
        let (keys, keys_end) = self.keys(plan, &mut pace).await?;
        plan.cut(keys_end);
        let now_ms = self.replica.env.wall_clock_ms();
        let clocks_agree = self.clocks.agree(now_ms, E::now());
        let retention_ms = i64::try_from(candidate.settings.delete_retention_ms).unwrap_or(i64::MAX);
        let rules = Arc::new(Rules {
            keys,
            keys_end,
            log_start_offset,
            now_ms: clocks_agree.then_some(now_ms),
            horizon_ms: clocks_agree.then(|| now_ms.saturating_add(retention_ms)),
            group_bytes: plan.group_bytes(candidate.segment_bytes),
        });
        let segments = rewrite(&self.replica.env, store, plan, revision, &rules, &mut pace).await;
        let segments = segments.map_err(|(name, error)| CompactionError::Segment { name, error })?;
        let ask = StageAsk { applied, topic_id, partition, revision, segments: segments.clone() };
        if !segments.is_empty() {
            let spread = spread(&self.replica, &self.peers, &self.leadership, &ask).await;
            spread.map_err(CompactionError::NotSpread)?;
        }
        if self.leadership.serving()? != led.term {
            return Err(CompactionError::NotSpread("leadership was lost".to_owned()));
        }
        if self.candidate(topic_id, partition).is_none() {
            return Ok(None);
        }
        let bytes_after = bytes_after(&plan.segments, &segments);
        let written = segments.len();
        let op = CompactLog { topic_id, partition, revision, log_start_offset, compacted_to: keys_end, segments };
        match self.proposals.push(Op::CompactLog(op), Bytes::new())?.await {
            Ok(Ok(Reply::Done(done))) => Ok(done.then_some((written, bytes_after))),
            Ok(Err(error @ (ProposeError::NotLeader { .. } | ProposeError::TooLarge(_)))) => Err(error.into()),
            other => {
                led.is_unsettled = true;
                let reason = format!("whether the compaction takes effect is unknown: {other:?}");
                Err(ProposeError::Unknown(reason).into())
            }
        }
    }

    /// The last offset of each key in the dirty part, as far as there is room; and where that ends.
    async fn keys(&self, plan: &Plan, pace: &mut Pace) -> Result<(Keys, i64), CompactionError> {
        let mut keys = Keys::new::<E>(self.keys_max);
        for entry in plan.segments.iter().filter(|entry| entry.next_offset > plan.dirty_from) {
            let failed = |error| CompactionError::Segment { name: entry.name, error };
            let mut reader = SegmentReader::open(&self.replica.store, *entry).await.map_err(failed)?;
            while let Some((header, batch)) = reader.next(pace).await.map_err(failed)? {
                if header.next_offset <= plan.dirty_from {
                    continue;
                }
                if !keys.has_room_for(records_of(&batch)) {
                    return Ok((keys, header.base_offset));
                }
                keys = if takes_long(&batch) {
                    let noting = move || {
                        note_keys(&mut keys, &batch);
                        keys
                    };
                    self.replica.env.compute(noting).await
                } else {
                    note_keys(&mut keys, &batch);
                    keys
                };
                take_turns().await;
            }
        }
        Ok((keys, plan.end()))
    }

    fn plan(&self, candidate: &Candidate) -> Option<Plan> {
        let segments = self.replica.store.segments(candidate.topic_id, candidate.partition);
        let now_ms = self.replica.env.wall_clock_ms();
        // Nobody knows what is old enough while clocks differ.
        if candidate.settings.min_lag_ms > 0 && !self.clocks.agree(now_ms, E::now()) {
            return None;
        }
        plan(&segments, candidate.compacted_to, &candidate.settings, now_ms)
    }

    fn candidates(&self) -> Vec<Candidate> {
        let topics: Vec<(TopicId, u32)> = {
            let core = self.replica.core();
            let topics = core.directory().topics.values().filter(|topic| topic.compaction().is_some());
            topics
                .flat_map(|topic| {
                    (0_u32..).zip(&topic.partitions).map(move |(partition, shard)| (topic.id, partition, *shard))
                })
                .filter(|(_, _, shard)| *shard == self.replica.id)
                .map(|(topic_id, partition, _)| (topic_id, partition))
                .collect()
        };
        topics.into_iter().filter_map(|(topic_id, partition)| self.candidate(topic_id, partition)).collect()
    }

    fn candidate(&self, topic_id: TopicId, partition: u32) -> Option<Candidate> {
        let core = self.replica.core();
        let topic = core.directory().topics.get(&topic_id)?;
        let view = core.partition(topic_id, partition)?;
        Some(Candidate {
            topic_id,
            partition,
            settings: topic.compaction()?,
            segment_bytes: topic.segment_limits(self.segment_bytes).bytes,
            log_start_offset: view.log_start_offset,
            compacted_to: view.compacted_to,
        })
    }
}

/// Records that a batch says it has.
fn records_of(batch: &Bytes) -> usize {
    lockstep_wire::BatchHeader::parse(batch)
        .ok()
        .and_then(|header| usize::try_from(header.record_count).ok())
        .unwrap_or(0)
}

/// A batch that cannot be read counts for nothing: its records stay, and supersede nothing.
fn note_keys(keys: &mut Keys, batch: &Bytes) {
    let mut found: Vec<(u128, i64)> = Vec::new();
    let visited = visit_records(batch, unfolded_bytes_max(batch.len()), |record| {
        if !(record.is_tombstone && Mistake::TombstoneSupersedesNothing.is_made()) {
            found.extend(record.key.map(|key| (keys.hash(key), record.offset)));
        }
    });
    if visited.is_ok() {
        for (hash, offset) in found {
            keys.note(hash, offset);
        }
    }
}

/// What the log's compacted part has once these segments have taken the place of others.
fn bytes_after(before: &[SegmentEntry], compacted: &[CompactedSegment]) -> u64 {
    let is_replaced = |entry: &&SegmentEntry| {
        let after = compacted.partition_point(|new| new.base_offset <= entry.name.base_offset);
        let before = after.checked_sub(1).and_then(|before| compacted.get(before));
        before.is_some_and(|new| entry.name.base_offset < new.next_offset)
    };
    let replaced: u64 = before.iter().filter(is_replaced).map(|entry| entry.len).sum();
    bytes_of(before) - replaced + compacted.iter().map(|new| new.len).sum::<u64>()
}

fn bytes_of(segments: &[SegmentEntry]) -> u64 {
    segments.iter().map(|entry| entry.len).sum()
}
