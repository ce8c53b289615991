//! What the leader of a shard does for its consumer groups besides timing their members: it lets committed offsets expire, and finds
//! out what subscriptions by regular expression match, which the state machine cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_core::op::{ExpireOffsets, ResolveRegularExpression};
use lockstep_core::view::GroupRegex;
use lockstep_core::{Op, Reply, TopicId};
use lockstep_env::{Env, select};
use tokio::sync::oneshot;

use crate::error::ProposeError;
use crate::raft::{Leadership, Proposals, Replica, take_turns};
use crate::topic_pattern::TopicPattern;

/// How soon a new leader takes up this work.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How soon regular expressions that could not be resolved are tried again.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Between two ops that expire offsets.
const EXPIRY_PAUSE: Duration = Duration::from_millis(100);
/// How soon offsets are let expire again when that failed.
const EXPIRY_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Offsets and members that one look for old offsets goes over, while nothing is applied.
const EXPIRY_LOOK_ROWS: usize = 4_096;
/// Ids of groups in one op that expires offsets, so that it fits well into a message between nodes.
const EXPIRY_OP_BYTES: usize = 1 << 20;
/// Ops under way at a time.
const OPS_MAX: usize = 64;
/// After so many names of topics or regular expressions, or so much time, other tasks get a turn.
const LOOKS_IN_A_ROW: usize = 512;
const TIME_IN_A_ROW: Duration = Duration::from_millis(2);
/// So many topics found are remembered while groups are gone through, for groups that share regular expressions.
const REMEMBERED_TOPICS_MAX: usize = 1 << 18;

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

/// Topics by name, as of a version of the directory.
struct Topics {
    version: u64,
    named: Vec<(TopicId, String)>,
}

/// How far the regular expressions of a shard are resolved in a term.
#[derive(Default)]
struct Resolution {
    /// What they were matched with last.
    topics: Option<Topics>,
    /// Groups for which that failed.
    failed: BTreeSet<String>,
}

/// What became of a look for offsets to expire.
enum Expiry {
    /// Nothing more is old enough.
    Done,
    /// There may be more.
    Some,
    Failed,
}

/// What was proposed, and the group that it is for.
type Proposed = (String, oneshot::Receiver<Result<Reply, ProposeError>>);

impl<E: Env> GroupUpkeep<E> {
    pub(crate) async fn run(self) {
        let mut led: Option<u64> = None;
        let mut resolution = Resolution::default();
        let mut next_expiry: Option<Instant> = None;
        // The group after which the next look for old offsets begins.
        let mut looked_up_to: Option<String> = None;
        while !self.replica.is_stopped() {
            let mut pause = LOOK_EVERY;
            match self.leadership.serving() {
                Ok(term) => {
                    if led != Some(term) {
                        led = Some(term);
                        resolution = Resolution::default();
                        next_expiry = None;
                        looked_up_to = None;
                    }
                    // What is subscribed to does not expire: that has to be known first.
                    if !self.resolve_regexes(&mut resolution).await {
                        pause = RETRY_AFTER;
                    } else if next_expiry.is_none_or(|next| E::now() >= next) {
                        let wait = match self.expire_offsets(&mut looked_up_to).await {
                            Expiry::Done => self.offsets_retention_check_interval,
                            Expiry::Some => EXPIRY_PAUSE,
                            Expiry::Failed => EXPIRY_RETRY_AFTER,
                        };
                        next_expiry = Some(E::now() + wait);
                    }
                    if let Some(next) = next_expiry {
                        pause = pause.min(next.saturating_duration_since(E::now())).max(RETRY_AFTER);
                    }
                }
                Err(_) => {
                    led = None;
                    self.replica.lock_unresolved_regexes().clear();
                }
            }
            select(self.replica.upkeep.notified(), E::sleep(pause)).await;
        }
    }

    /// Lets the offsets of the next groups expire, after `looked_up_to`, and moves that on.
    async fn expire_offsets(&self, looked_up_to: &mut Option<String>) -> Expiry {
        let retention_ms = u64::try_from(self.offsets_retention.as_millis()).unwrap_or(u64::MAX);
        loop {
            let now_ms = self.replica.env.wall_clock_ms();
            let after = looked_up_to.as_deref();
            let look = self.replica.core().groups_to_expire(now_ms, retention_ms, after, EXPIRY_LOOK_ROWS);
            let found = !look.groups.is_empty();
            if found && !self.propose_expiry(now_ms, retention_ms, look.groups).await {
                return Expiry::Failed;
            }
            let is_over = look.last.is_none();
            *looked_up_to = look.last;
            if is_over {
                return Expiry::Done;
            }
            if found {
                return Expiry::Some;
            }
            take_turns().await;
        }
    }

    /// False when it came to nothing.
    async fn propose_expiry(&self, now_ms: i64, retention_ms: u64, mut groups: Vec<String>) -> bool {
        tracing::info!(
            target: "raft", node = self.replica.node_id, shard = %self.replica.id, groups = groups.len(),
            "committed offsets expire"
        );
        while !groups.is_empty() {
            let mut bytes = 0;
            let fits = |group_id: &&String| {
                bytes += group_id.len();
                bytes < EXPIRY_OP_BYTES
            };
            // One id is far shorter than the bound.
            let count = groups.iter().take_while(fits).count().max(1);
            let rest = groups.split_off(count);
            let op = Op::ExpireOffsets(ExpireOffsets { now_ms, retention_ms, groups });
            let expired = match self.proposals.push(op, Bytes::new()) {
                Ok(outcome) => matches!(outcome.await, Ok(Ok(Reply::Done(_)))),
                Err(_) => false,
            };
            if !expired {
                return false;
            }
            groups = rest;
        }
        true
    }

    /// Resolves what is not resolved, and everything when topics came or went. False when something is left to be done.
    async fn resolve_regexes(&self, resolution: &mut Resolution) -> bool {
        let unresolved = std::mem::take(&mut *self.replica.lock_unresolved_regexes());
        let renewed = self.renew(&mut resolution.topics);
        let Some(topics) = &resolution.topics else { return true };
        // Where nothing was matched with these topics yet, all regular expressions are looked at, elsewhere only new ones.
        let stale = std::mem::take(&mut resolution.failed);
        let groups: BTreeMap<String, bool> = if renewed {
            self.replica.core().groups_with_regexes().into_iter().map(|group_id| (group_id, true)).collect()
        } else {
            let new = unresolved.into_iter().map(|group_id| (group_id, false));
            new.chain(stale.into_iter().map(|group_id| (group_id, true))).collect()
        };
        let mut failed = BTreeSet::new();
        let mut proposed: Vec<Proposed> = Vec::new();
        let mut matcher = Matcher::<E>::new(&topics.named);
        for (group_id, all) in groups {
            let regexes = self.replica.core().group_regexes(&group_id);
            for GroupRegex { group_id, regex, resolved } in regexes {
                matcher.rest_when_due().await;
                if resolved.as_ref().is_some_and(|(version, _)| !all || *version >= topics.version) {
                    continue;
                }
                if self.leadership.serving().is_err() {
                    // Whoever leads next begins again.
                    *resolution = Resolution::default();
                    return false;
                }
                let found = matcher.matching(&regex).await;
                if resolved.is_some_and(|(_, known)| known == found) {
                    continue;
                }
                let op = Op::ResolveRegularExpression(ResolveRegularExpression {
                    group_id: group_id.clone(),
                    regex,
                    metadata_version: topics.version,
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
        let version = topics.version;
        resolution.failed = failed;
        // The state may have moved on meanwhile.
        resolution.failed.is_empty()
            && self.replica.lock_unresolved_regexes().is_empty()
            && self.replica.core().directory().version == version
    }

    /// Brings `topics` up to date. True when there are other ones than before: brokers and configurations change the directory too.
    fn renew(&self, topics: &mut Option<Topics>) -> bool {
        let core = self.replica.core();
        let directory = core.directory();
        let version = directory.version;
        if topics.as_ref().is_some_and(|topics| topics.version == version) {
            return false;
        }
        let current = directory.topics.iter().map(|(id, topic)| (id, &topic.name));
        if let Some(topics) = topics
            && topics.named.iter().map(|(id, name)| (id, name)).eq(current.clone())
        {
            topics.version = version;
            return false;
        }
        let named = current.map(|(id, name)| (*id, name.clone())).collect();
        *topics = Some(Topics { version, named });
        true
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

/// Matches regular expressions with topics, each but once. Other tasks get their turns meanwhile, whatever clients wrote.
struct Matcher<'a, E: Env> {
    topics: &'a [(TopicId, String)],
    found: BTreeMap<String, Vec<TopicId>>,
    /// How much `found` holds, at least one for each.
    remembered: usize,
    /// Since other tasks had a turn.
    looks: usize,
    since: Instant,
    env: std::marker::PhantomData<fn() -> E>,
}

impl<'a, E: Env> Matcher<'a, E> {
    fn new(topics: &'a [(TopicId, String)]) -> Self {
        let env = std::marker::PhantomData;
        Self { topics, found: BTreeMap::new(), remembered: 0, looks: 0, since: E::now(), env }
    }

    /// Topics whose whole names match. None is left out: groups and their offsets are no topics here, as they are in Kafka.
    async fn matching(&mut self, regex: &str) -> Vec<TopicId> {
        if let Some(found) = self.found.get(regex) {
            return found.clone();
        }
        self.rest().await;
        let mut found = Vec::new();
        match TopicPattern::new(regex) {
            Ok(pattern) => {
                for (id, name) in self.topics {
                    self.rest_when_due().await;
                    if pattern.matches(name) {
                        found.push(*id);
                    }
                }
            }
            // Brokers take no such pattern; it matches nothing rather than being looked at for ever.
            Err(error) => {
                tracing::warn!(target: "raft", %error, "a subscription's regular expression cannot be used");
            }
        }
        if self.remembered + found.len() < REMEMBERED_TOPICS_MAX {
            self.remembered += found.len() + 1;
            self.found.insert(regex.to_owned(), found.clone());
        }
        self.rest().await;
        found
    }

    /// Gives other tasks a turn when there was none for long. To be called for each thing that is looked at.
    async fn rest_when_due(&mut self) {
        if self.looks >= LOOKS_IN_A_ROW || E::now().saturating_duration_since(self.since) >= TIME_IN_A_ROW {
            self.rest().await;
        }
        self.looks += 1;
    }

    /// Gives other tasks a turn.
    async fn rest(&mut self) {
        take_turns().await;
        self.looks = 0;
        self.since = E::now();
    }
}
