//! What a journal should hold, and a driver that does the same to both.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use lockstep_core::{Position, ShardId};
use lockstep_env::Env;
use rand::RngExt;
use rand::rngs::StdRng;

use super::memory_env::MemoryEnv;
use crate::config::Durability;
use crate::error::StartError;
use crate::journal::{Journal, JournalOptions};

pub(super) const DIR: &str = "/node/journal";
pub(super) const SHARDS: u16 = 4;

pub(super) fn at(term: u64, index: u64) -> Position {
    Position { term, index }
}

pub(super) fn options(file_bytes: u64) -> JournalOptions {
    JournalOptions { file_bytes, cache_bytes_per_shard: 4096, durability: Durability::Fsync }
}

pub(super) async fn open(env: &MemoryEnv, file_bytes: u64) -> Result<Journal<MemoryEnv>, StartError> {
    Journal::open(env.clone(), Path::new(DIR), options(file_bytes)).await
}

/// One call to a journal.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Append(ShardId, Vec<(Position, Vec<Bytes>)>),
    Truncate(ShardId, Option<u64>),
    Purge(ShardId, Position),
    Vote(ShardId, Bytes),
    Committed(ShardId, Position),
}

/// What one shard should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ModelShard {
    pub(super) purged: Option<Position>,
    pub(super) entries: BTreeMap<u64, (u64, Vec<u8>)>,
    pub(super) vote: Option<Bytes>,
}

impl ModelShard {
    pub(super) fn last(&self) -> Option<Position> {
        self.entries.last_key_value().map(|(index, (term, _))| at(*term, *index)).or(self.purged)
    }
}

/// What all shards should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model(pub(super) BTreeMap<u16, ModelShard>);

impl Model {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|shard| (shard, ModelShard::default())).collect())
    }

    pub(super) fn shard(&self, shard: ShardId) -> &ModelShard {
        &self.0[&shard.0]
    }

    pub(super) fn apply(&mut self, call: &Call) {
        match call {
            Call::Append(shard, entries) => {
                let log = self.0.get_mut(&shard.0).unwrap();
                log.entries.extend(entries.iter().map(|(at, slices)| (at.index, (at.term, slices.concat()))));
            }
            Call::Truncate(shard, after) => {
                self.0.get_mut(&shard.0).unwrap().entries.retain(|index, _| after.is_some_and(|after| *index <= after));
            }
            Call::Purge(shard, upto) => {
                let log = self.0.get_mut(&shard.0).unwrap();
                if log.purged.is_none_or(|purged| purged.index < upto.index) {
                    log.entries.retain(|index, _| *index > upto.index);
                    log.purged = Some(*upto);
                }
            }
            Call::Vote(shard, vote) => self.0.get_mut(&shard.0).unwrap().vote = Some(vote.clone()),
            Call::Committed(..) => {}
        }
    }

    /// What the journal holds.
    pub(super) async fn read(journal: &Journal<MemoryEnv>) -> Self {
        let mut model = Self::new();
        for (shard, log) in &mut model.0 {
            let found = journal.shard(ShardId(*shard));
            log.purged = found.purged();
            log.vote = found.vote();
            let last = found.last().map_or(0, |last| last.index);
            let mut next = log.purged.map_or(0, |purged| purged.index + 1);
            while next <= last && found.last() != log.purged {
                let entries = found.read(next, last + 1, 10_000).await.unwrap();
                assert!(!entries.is_empty(), "entry {next} of shard {shard} is not there");
                for (position, payload) in entries {
                    assert_eq!(position.index, next);
                    log.entries.insert(next, (position.term, payload.to_vec()));
                    next += 1;
                }
            }
            assert_eq!(found.last(), log.last(), "shard {shard}");
        }
        model
    }

    /// A call that makes sense now.
    pub(super) fn random_call(&self, random: &mut StdRng) -> Call {
        let shard = ShardId(random.random_range(0..SHARDS));
        let log = self.shard(shard);
        let last = log.last();
        let term = last.map_or(1, |last| last.term);
        match random.random_range(0..100) {
            0..60 => {
                let first = last.map_or(0, |last| last.index + 1);
                let term = term + u64::from(random.random_bool(0.1));
                let count = random.random_range(1..=4);
                let entry = |index| (at(term, index), random_payload(random));
                Call::Append(shard, (first..first + count).map(entry).collect())
            }
            60..70 => match log.entries.keys().nth(random.random_range(0..=log.entries.len())) {
                Some(0) => Call::Truncate(shard, None),
                Some(index) => Call::Truncate(shard, Some(*index - 1)),
                None => Call::Truncate(shard, last.map(|last| last.index + 7)),
            },
            70..85 => match log.entries.iter().nth(random.random_range(0..=log.entries.len())) {
                Some((index, (term, _))) => Call::Purge(shard, at(*term, *index)),
                // A snapshot from elsewhere.
                None if random.random_bool(0.2) => {
                    Call::Purge(shard, at(term + 1, last.map_or(5, |last| last.index + 5)))
                }
                None => Call::Purge(shard, last.unwrap_or_default()),
            },
            85..93 => Call::Vote(shard, Bytes::from(random.random::<u64>().to_string())),
            _ => match last {
                Some(last) => Call::Committed(shard, last),
                None => Call::Vote(shard, Bytes::new()),
            },
        }
    }
}

fn random_payload(random: &mut StdRng) -> Vec<Bytes> {
    let slices = random.random_range(0..=3);
    let mut slice = || {
        let len = match random.random_range(0..20) {
            0 => 0,
            1 => random.random_range(0..9_000),
            _ => random.random_range(0..400),
        };
        let mut bytes = vec![0; len];
        random.fill(&mut bytes[..]);
        Bytes::from(bytes)
    };
    (0..slices).map(|_| slice()).collect()
}

/// Does calls to a journal and remembers which were answered.
pub(super) struct Driver {
    pub(super) journal: Journal<MemoryEnv>,
    /// What the journal held before the first call.
    pub(super) base: Model,
    /// What it should hold after all calls.
    pub(super) model: Model,
    pub(super) calls: Vec<Call>,
    /// All calls before this number took effect durably.
    acknowledged: Arc<AtomicUsize>,
    pub(super) committed: BTreeMap<u16, BTreeSet<Option<Position>>>,
}

impl Driver {
    /// A driver for a journal that holds what `base` says.
    pub(super) fn new(journal: Journal<MemoryEnv>, base: Model) -> Self {
        let committed = |shard| BTreeSet::from([journal.shard(ShardId(shard)).committed()]);
        Self {
            committed: (0..SHARDS).map(|shard| (shard, committed(shard))).collect(),
            journal,
            model: base.clone(),
            base,
            calls: Vec::new(),
            acknowledged: Arc::new(AtomicUsize::new(0)),
        }
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub(super) async fn call(&mut self, call: Call) {
        self.model.apply(&call);
        self.calls.push(call.clone());
        let number = self.calls.len();
        let acknowledged = Arc::clone(&self.acknowledged);
        let done = move |outcome: std::io::Result<()>| {
            if outcome.is_ok() {
                acknowledged.fetch_max(number, Ordering::SeqCst);
            }
        };
        match call {
            Call::Append(shard, entries) => self.journal.shard(shard).append(entries, Box::new(done)),
            Call::Truncate(shard, after) => self.journal.shard(shard).truncate_after(after),
            Call::Purge(shard, upto) => self.journal.shard(shard).purge(upto),
            Call::Vote(shard, vote) => {
                let log = self.journal.shard(shard);
                let mut saved = Box::pin(async move { done(log.save_vote(vote).await) });
                // Polled once here, so that the vote is queued in the order of the calls.
                if poll_fn(|cx| Poll::Ready(saved.as_mut().poll(cx))).await.is_pending() {
                    drop(MemoryEnv::spawn(saved));
                }
            }
            Call::Committed(shard, position) => {
                self.committed.get_mut(&shard.0).unwrap().insert(Some(position));
                self.journal.shard(shard).save_committed(position);
            }
        }
    }

    /// Does random calls until the journal has failed.
    pub(super) async fn random_calls(&mut self, random: &mut StdRng, count: usize) {
        for _ in 0..count {
            if self.journal.failed().is_some() {
                return;
            }
            let call = self.model.random_call(random);
            self.call(call).await;
            if random.random_bool(0.1) {
                self.check_now().await;
            }
            for _ in 0..random.random_range(0..6) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The journal shows the calls' effects at once.
    async fn check_now(&self) {
        if self.journal.failed().is_none() {
            let log = self.journal.shard(ShardId(0));
            let expected = self.model.shard(ShardId(0));
            assert_eq!(
                (log.last(), log.purged(), log.vote()),
                (expected.last(), expected.purged, expected.vote.clone())
            );
            if let Some((index, (term, payload))) = expected.entries.first_key_value() {
                match log.read(*index, index + 1, 0).await {
                    Ok(entries) => assert_eq!(entries, [(at(*term, *index), Bytes::from(payload.clone()))]),
                    Err(error) => assert!(self.journal.failed().is_some(), "{error}"),
                }
            }
        }
    }

    /// A journal opened later on the same disk holds what some first part of the calls made, and at least of those that were answered.
    pub(super) async fn check_recovered(&self, recovered: &Journal<MemoryEnv>) -> Model {
        let found = Model::read(recovered).await;
        let mut expected = self.base.clone();
        let acknowledged = self.acknowledged();
        let mut matches = false;
        for (number, call) in self.calls.iter().enumerate() {
            matches |= number >= acknowledged && expected == found;
            match call {
                // An append that was not answered may have come half the way.
                Call::Append(shard, entries) => {
                    for entry in entries {
                        expected.apply(&Call::Append(*shard, vec![entry.clone()]));
                        matches |= number >= acknowledged && expected == found;
                    }
                }
                call => expected.apply(call),
            }
        }
        matches |= expected == found;
        if !matches {
            let mut expected = self.base.clone();
            self.calls[..acknowledged].iter().for_each(|call| expected.apply(call));
            for (shard, found) in &found.0 {
                let expected = &expected.0[shard];
                let range = |log: &ModelShard| (log.entries.keys().next().copied(), log.last());
                eprintln!("shard {shard}: found {:?} {:?} {:?}", found.purged, range(found), found.vote);
                eprintln!("  answered {:?} {:?} {:?}", expected.purged, range(expected), expected.vote);
            }
            panic!("what was recovered is no first part of {} calls with at least {acknowledged}", self.calls.len());
        }
        for (shard, saved) in &self.committed {
            let log = recovered.shard(ShardId(*shard));
            let committed = log.committed();
            assert!(
                saved.contains(&committed) || committed == log.last(),
                "shard {shard}: {committed:?} was never saved, only {saved:?}"
            );
            assert!(committed.is_none_or(|committed| log.last().is_some_and(|last| committed.index <= last.index)));
        }
        found
    }
}
