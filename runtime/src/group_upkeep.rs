//! What the leader of a shard does for its consumer groups besides timing their members: it lets committed offsets expire, and finds
//! out what subscriptions by regular expression match, which the state machine cannot.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::op::{ExpireOffsets, ResolveRegularExpression};
use lockstep_core::view::GroupRegex;
use lockstep_core::{Op, Reply, TopicId};
use lockstep_env::{Env, select};
use tokio::sync::oneshot;

use crate::error::ProposeError;
use crate::raft::{Leadership, Proposals, Replica};
use crate::topic_pattern::TopicPattern;

/// How soon a new leader takes up this work.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How soon what failed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Groups of one op that expires offsets.
const EXPIRED_GROUPS_MAX: usize = 100;
/// Ops under way at a time.
const OPS_MAX: usize = 64;
/// After so many names of topics other tasks get a turn.
const NAMES_IN_A_ROW: usize = 512;

/// Regular expressions that have to be looked at.
#[derive(Debug, Default)]
pub(crate) struct DueRegexes {
    /// Those of these groups, because they are new.
    pub(crate) groups: BTreeSet<String>,
    /// Those of all groups, because topics came or went.
    pub(crate) all: bool,
}

/// The task of one shard. It idles where this node does not lead.
pub(crate) struct GroupUpkeep<E: Env> {
    pub(crate) replica: Arc<Replica<E>>,
    pub(crate) leadership: Leadership<E>,
    pub(crate) proposals: Proposals,
    /// How long offsets are kept ([`crate::NodeConfig::offsets_retention`]).
    pub(crate) offsets_retention: Duration,
    /// How often it is looked for offsets that are older.
    pub(crate) offsets_retention_check_interval: Duration,
}

/// What was proposed, and the group that it is for.
type Proposed = (String, oneshot::Receiver<Result<Reply, ProposeError>>);

impl<E: Env> GroupUpkeep<E> {
    pub(crate) async fn run(self) {
        let mut led: Option<u64> = None;
        let mut looked_for_old: Option<Instant> = None;
        while !self.replica.is_stopped() {
            let mut pause = LOOK_EVERY;
            match self.leadership.serving() {
                Ok(term) => {
                    if led != Some(term) {
                        led = Some(term);
                        self.replica.lock_due_regexes().all = true;
                    }
                    if !self.resolve_regexes().await {
                        pause = RETRY_AFTER;
                    }
                    let now = E::now();
                    let due = looked_for_old.is_none_or(|before| {
                        now.saturating_duration_since(before) >= self.offsets_retention_check_interval
                    });
                    if due && self.expire_offsets().await {
                        looked_for_old = Some(now);
                    }
                    if let Some(before) = looked_for_old {
                        let next = before + self.offsets_retention_check_interval;
                        pause = pause.min(next.saturating_duration_since(E::now())).max(RETRY_AFTER);
                    }
                }
                Err(_) => {
                    led = None;
                    looked_for_old = None;
                    *self.replica.lock_due_regexes() = DueRegexes::default();
                }
            }
            select(self.replica.upkeep.notified(), E::sleep(pause)).await;
        }
    }

    /// False when something has to be tried again.
    async fn expire_offsets(&self) -> bool {
        let retention_ms = u64::try_from(self.offsets_retention.as_millis()).unwrap_or(u64::MAX);
        loop {
            let now_ms = self.replica.env.wall_clock_ms();
            let groups = self.replica.core().groups_to_expire(now_ms, retention_ms, EXPIRED_GROUPS_MAX);
            if groups.is_empty() {
                return true;
            }
            tracing::info!(
                target: "raft", node = self.replica.node_id, shard = %self.replica.id, groups = groups.len(),
                "committed offsets expire"
            );
            let op = Op::ExpireOffsets(ExpireOffsets { now_ms, retention_ms, groups });
            match self.proposals.push(op, Bytes::new()) {
                // Whatever is left is looked at in the next round.
                Ok(outcome) => match outcome.await {
                    Ok(Ok(Reply::Done(true))) => {}
                    Ok(Ok(_)) => return true,
                    _ => return false,
                },
                Err(_) => return false,
            }
        }
    }

    /// Resolves what is due; false when something has to be tried again.
    async fn resolve_regexes(&self) -> bool {
        let due = std::mem::take(&mut *self.replica.lock_due_regexes());
        let groups = if due.all { self.replica.core().groups_with_regexes() } else { due.groups.into_iter().collect() };
        if groups.is_empty() {
            return true;
        }
        let (version, topics) = {
            let core = self.replica.core();
            let directory = core.directory();
            let named = |(id, topic): (&TopicId, &lockstep_core::TopicRecord)| (*id, topic.name.clone());
            (directory.version, directory.topics.iter().map(named).collect::<Vec<_>>())
        };
        let mut failed = BTreeSet::new();
        let mut proposed: Vec<Proposed> = Vec::new();
        for group_id in groups {
            let regexes = self.replica.core().group_regexes(&group_id);
            for GroupRegex { group_id, regex, resolved } in regexes {
                if resolved.as_ref().is_some_and(|(resolved_version, _)| *resolved_version >= version) {
                    continue;
                }
                let found = matching::<E>(&regex, &topics).await;
                if resolved.is_some_and(|(_, known)| known == found) {
                    continue;
                }
                let op = Op::ResolveRegularExpression(ResolveRegularExpression {
                    group_id: group_id.clone(),
                    regex,
                    metadata_version: version,
                    topics: found,
                    now_ms: self.replica.env.wall_clock_ms(),
                });
                match self.proposals.push(op, Bytes::new()) {
                    Ok(outcome) => proposed.push((group_id, outcome)),
                    Err(_) => {
                        failed.insert(group_id);
                    }
                }
                if proposed.len() == OPS_MAX {
                    settle(&mut proposed, &mut failed).await;
                }
            }
        }
        settle(&mut proposed, &mut failed).await;
        let done = failed.is_empty();
        self.replica.lock_due_regexes().groups.append(&mut failed);
        done
    }
}

/// Waits for what is under way; the groups of what came to nothing are noted in `failed`.
async fn settle(proposed: &mut Vec<Proposed>, failed: &mut BTreeSet<String>) {
    for (group_id, outcome) in proposed.drain(..) {
        if !matches!(outcome.await, Ok(Ok(_))) {
            failed.insert(group_id);
        }
    }
}

/// Topics whose whole names match. None is left out: groups and their offsets are no topics here, as they are in Kafka.
async fn matching<E: Env>(regex: &str, topics: &[(TopicId, String)]) -> Vec<TopicId> {
    let pattern = match TopicPattern::new(regex) {
        Ok(pattern) => pattern,
        Err(error) => {
            // Brokers take no such pattern; it matches nothing rather than being looked at for ever.
            tracing::warn!(target: "raft", %error, "a subscription's regular expression cannot be used");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for names in topics.chunks(NAMES_IN_A_ROW) {
        found.extend(names.iter().filter(|(_, name)| pattern.matches(name)).map(|(id, _)| *id));
        if names.len() == NAMES_IN_A_ROW {
            E::sleep(Duration::ZERO).await;
        }
    }
    found
}
