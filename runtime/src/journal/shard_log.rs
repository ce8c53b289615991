//! One shard's part of the journal.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::{Position, ShardId};
use lockstep_env::Env;
use tokio::sync::oneshot;

use super::Handle;
use super::format::{ENTRY_BYTES_MAX, VOTE_BYTES_MAX};
use super::index::{Payload, ShardIndex};
use super::mark::follows;
use super::read::read_sources;
use super::state::{Done, Op, State};
use crate::config::Durability;
use lockstep_probe::Mistake;

/// In `Durability::Replicated`, once this many bytes are not written yet, appends are answered when they are durable: memory stays
/// bounded when the disk is slower than the network.
const UNWRITTEN_BYTES_MAX: u64 = 64 << 20;

/// One shard's log in the journal. Cheap to clone.
///
/// Calls that change the log take effect in memory at once and are written in the order of the calls, over all shards: what is found
/// after a crash is what some first part of the calls had made, and at least of those that were answered.
#[derive(Debug)]
pub struct ShardLog<E: Env> {
    handle: Arc<Handle<E>>,
    shard: ShardId,
}

impl<E: Env> Clone for ShardLog<E> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle), shard: self.shard }
    }
}

impl<E: Env> ShardLog<E> {
    pub(super) fn new(handle: Arc<Handle<E>>, shard: ShardId) -> Self {
        handle.inner.lock().shards.entry(shard).or_default();
        Self { handle, shard }
    }

    pub(crate) fn env(&self) -> &E {
        &self.handle.inner.env
    }

    fn index<R>(&self, read: impl FnOnce(&ShardIndex) -> R) -> R {
        read(self.handle.inner.lock().shards.entry(self.shard).or_default())
    }

    /// Everything up to and including this position was purged.
    #[must_use]
    pub fn purged(&self) -> Option<Position> {
        self.index(ShardIndex::purged)
    }

    /// The last entry, or [`ShardLog::purged`] when there is none.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        self.index(ShardIndex::last)
    }

    /// The term of the entry at `index`; `None` when it is not there.
    #[must_use]
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.index(|log| log.term_at(index))
    }

    /// Journal bytes held by the entries from `index` on.
    #[must_use]
    pub(crate) fn bytes_from(&self, index: u64) -> u64 {
        self.index(|log| log.held_bytes_from(index))
    }

    /// Is this entry durable, with all before it? What was purged is so elsewhere: see [`ShardLog::purge`].
    #[must_use]
    pub fn is_durable(&self, position: Position) -> bool {
        self.index(|index| {
            index.purged().is_some_and(|purged| position.index <= purged.index) || index.is_written(position)
        })
    }

    /// The vote saved last.
    #[must_use]
    pub fn vote(&self) -> Option<Bytes> {
        self.index(|index| index.vote.clone())
    }

    /// The committed position saved last, or, after a start, one saved before.
    #[must_use]
    pub fn committed(&self) -> Option<Position> {
        self.index(|index| index.committed)
    }

    /// Appends entries, which must follow [`ShardLog::last`] without a gap and with ascending terms; an entry is its slices, one after
    /// another, at most 64 MiB together. They can be read at once. `done` is called when they are durable (`Durability::Fsync`) or
    /// queued (`Durability::Replicated`), never while a lock of the journal is held; with an error when the journal has failed or is
    /// closed, or, and then nothing is appended, when the entries are not as they must be. The slices are kept, not copied, until they are
    /// durable and have left the cache.
    pub fn append(&self, entries: Vec<(Position, Vec<Bytes>)>, done: Box<dyn FnOnce(io::Result<()>) + Send>) {
        // CRCs are computed here and not by the writer: shards append on many cores.
        let entries = entries.into_iter().map(|(position, slices)| {
            let len = slices.iter().map(Bytes::len).sum::<usize>();
            let crc = slices.iter().fold(0, |crc, slice| crc32c::crc32c_append(crc, slice));
            (position, Payload::from(slices), len, crc)
        });
        let entries: Vec<_> = entries.collect();
        let appended = self.append_checked(entries, done);
        self.handle.inner.wake_writer.notify_one();
        if let Some((done, outcome)) = appended {
            done(outcome);
        }
    }

    /// Appends, and gives `done` back when it is to be called at once.
    fn append_checked(
        &self,
        entries: Vec<(Position, Payload, usize, u32)>,
        done: Done,
    ) -> Option<(Done, io::Result<()>)> {
        let mut state = self.handle.inner.lock();
        if let Err(error) = state.check_open() {
            return Some((done, Err(error)));
        }
        let mut last = state.shards.entry(self.shard).or_default().last();
        for (position, _, len, _) in &entries {
            if !follows(last, *position) {
                let reason = format!("entry {position:?} of {:?} does not follow {last:?}", self.shard);
                return Some((done, Err(io::Error::new(io::ErrorKind::InvalidInput, reason))));
            }
            if *len > ENTRY_BYTES_MAX {
                let reason = format!("entry {position:?} of {:?} has {len} bytes", self.shard);
                return Some((done, Err(io::Error::new(io::ErrorKind::InvalidInput, reason))));
            }
            last = Some(*position);
        }
        for (position, payload, len, crc) in entries {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            let len = len as u32;
            state.shards.entry(self.shard).or_default().append(position, Arc::clone(&payload), len, ticket);
            state.enqueue(Op::Entry { shard: self.shard, position, payload, len, crc, ticket });
        }
        let deferred = match self.handle.inner.options.durability {
            Durability::Fsync if Mistake::AppendAcknowledgedBeforeSync.is_made() => return Some((done, Ok(()))),
            Durability::Fsync => false,
            // Once one answer waits, all later ones do: answers keep the order of the calls.
            Durability::Replicated if state.unwritten_bytes > UNWRITTEN_BYTES_MAX || state.deferred > 0 => true,
            Durability::Replicated => return Some((done, Ok(()))),
        };
        state.deferred += usize::from(deferred);
        state.enqueue(Op::Done { done, deferred });
        None
    }

    /// Changes the log and hands what `change` gives to the writer. Nothing happens once the journal has failed or is closed.
    fn change(&self, change: impl FnOnce(&mut ShardIndex) -> [Option<Op>; 2]) {
        let mut state = self.handle.inner.lock();
        if state.check_open().is_err() {
            return;
        }
        let ops = change(state.shards.entry(self.shard).or_default());
        ops.into_iter().flatten().for_each(|op| state.enqueue(op));
        drop(state);
        self.handle.inner.wake_writer.notify_one();
    }

    /// Drops entries with a greater index; with `None` all of them. Ordered with appends, and durable when a later append is.
    pub fn truncate_after(&self, index: Option<u64>) {
        self.change(|log| [self.truncated(log, index), None]);
    }

    fn truncated(&self, log: &mut ShardIndex, index: Option<u64>) -> Option<Op> {
        log.truncate_after(index).map(|last| Op::Truncate { shard: self.shard, last })
    }

    /// Drops entries up to and including `upto.index`, which may lie beyond the last entry (after a snapshot was installed): the log is
    /// then empty and continues after `upto`. If the entry at `upto.index` is of another term than `upto`, the entries after it continue
    /// another history, and all are dropped. Ordered with appends, and durable when a later append is. What was purged must be durable
    /// elsewhere before the call.
    pub fn purge(&self, upto: Position) {
        self.change(|log| {
            let is_other = log.term_at(upto.index).is_some_and(|term| term != upto.term);
            let truncated = if is_other { self.truncated(log, Some(upto.index)) } else { None };
            [truncated, log.purge(upto).then_some(Op::Purge { shard: self.shard, upto })]
        });
    }

    /// Saves the vote, at most 4,096 bytes; durable in every mode when it returns.
    pub async fn save_vote(&self, vote: Bytes) -> io::Result<()> {
        if vote.len() > VOTE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a vote of {} bytes", vote.len())));
        }
        let (sender, outcome) = oneshot::channel();
        let done = Box::new(move |result| {
            // The caller may have gone away meanwhile.
            let _ = sender.send(result);
        });
        {
            let mut state = self.handle.inner.lock();
            state.check_open()?;
            // A copy, because the vote stays for as long as the shard and must not keep a larger buffer alive.
            let vote = Bytes::copy_from_slice(&vote);
            state.shards.entry(self.shard).or_default().vote = Some(vote.clone());
            state.enqueue(Op::Vote { shard: self.shard, vote });
            state.enqueue(Op::Done { done, deferred: false });
        }
        if Mistake::VoteNotSynced.is_made() {
            return Ok(());
        }
        self.handle.inner.wake_writer.notify_one();
        outcome.await.unwrap_or_else(|_| Err(io::Error::other("the journal has stopped")))
    }

    /// Saves the committed position with whatever is written next.
    pub fn save_committed(&self, position: Position) {
        let mut state = self.handle.inner.lock();
        if state.check_open().is_err() {
            return;
        }
        let State { shards, committed_unwritten, .. } = &mut *state;
        shards.entry(self.shard).or_default().committed = Some(position);
        committed_unwritten.insert(self.shard);
    }

    /// Entries from `from` on, without a gap, up to `to_exclusive` and while they take at most `bytes_max` bytes, 32 more counted for
    /// each; at least one when `from` is there, none when it is not. An entry that is damaged in its file is an error that names the file.
    pub async fn read(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> io::Result<Vec<(Position, Bytes)>> {
        let inner = &self.handle.inner;
        loop {
            let sources = {
                let state = inner.lock();
                if let Some(reason) = &state.failed {
                    return Err(io::Error::other(reason.clone()));
                }
                state
                    .shards
                    .get(&self.shard)
                    .map(|index| index.sources(from, to_exclusive, bytes_max))
                    .unwrap_or_default()
            };
            if sources.is_empty() {
                return Ok(Vec::new());
            }
            let entries = read_sources(inner, self.shard, sources).await?;
            // Nothing, although there was something: the log was changed meanwhile, so look again.
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }
}
