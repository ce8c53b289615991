//! openraft's log, in a shard's part of the journal.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use lockstep_core::Position;
use lockstep_env::{Env, Step};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};

use super::entry_codec;
use super::promises::Promises;
use super::type_config::{Entry, LeaderId, LogId, Payload, TypeConfig, Vote, log_id, position};
use crate::journal::ShardLog;
use lockstep_probe::Mark;

/// Entries of one append request together take at most so many bytes, unless one alone is longer: longer frames would hold up
/// those of other shards on the same connection.
const APPEND_BYTES_MAX: usize = 250 << 10;
/// A whole range that must be read is read in pieces of this size.
const READ_BYTES_MAX: usize = 4 << 20;

/// A vote's stable encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteWire {
    pub(crate) term: u64,
    pub(crate) node: u64,
    pub(crate) committed: bool,
}

impl From<Vote> for VoteWire {
    fn from(vote: Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<VoteWire> for Vote {
    fn from(wire: VoteWire) -> Self {
        Self { leader_id: LeaderId { term: wire.term, voted_for: wire.node }, committed: wire.committed }
    }
}

/// The log of one shard.
pub(crate) struct LogStore<E: Env> {
    log: ShardLog<E>,
    promises: Arc<Promises>,
    /// Was the log in doubt at the start? What was committed, as it says, may be gone from the others.
    is_in_doubt: bool,
    _env: PhantomData<E>,
}

impl<E: Env> LogStore<E> {
    pub(crate) fn new(log: ShardLog<E>, promises: Arc<Promises>, is_in_doubt: bool) -> Self {
        Self { log, promises, is_in_doubt, _env: PhantomData }
    }

    /// The part of a range that the log holds, as its first index and the one after the last.
    fn present(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let (from, to) = bounds(range);
        let first = self.log.purged().map_or(0, |purged| purged.index + 1);
        let end = self.log.last().map_or(0, |last| last.index + 1);
        (from.max(first), to.min(end))
    }
}

impl<E: Env> Clone for LogStore<E> {
    fn clone(&self) -> Self {
        Self::new(self.log.clone(), self.promises.clone(), self.is_in_doubt)
    }
}

fn decode_entries(stored: Vec<(Position, Bytes)>) -> io::Result<Vec<Entry>> {
    let decode = |(at, bytes)| Ok(Entry { log_id: log_id(at), payload: entry_codec::decode(bytes)? });
    stored.into_iter().map(decode).collect()
}

/// At least one entry of those from `from` on, which are there, and the index after the last one read.
async fn read_piece<E: Env>(log: &ShardLog<E>, from: u64, to: u64, bytes_max: usize) -> io::Result<(Vec<Entry>, u64)> {
    let stored = log.read(from, to, bytes_max).await?;
    let Some((last, _)) = stored.last() else {
        return Err(io::Error::other(format!("entries {from} .. {to} are missing from the log")));
    };
    let next = last.index + 1;
    Ok((decode_entries(stored)?, next))
}

/// The vote that the journal holds.
pub(crate) fn stored_vote<E: Env>(log: &ShardLog<E>) -> io::Result<Option<Vote>> {
    let Some(bytes) = log.vote() else { return Ok(None) };
    let wire: VoteWire = postcard::from_bytes(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("stored vote: {error}")))?;
    Ok(Some(wire.into()))
}

/// Drops what the log holds of another history than the checkpoint's, at a start.
///
/// A leader's snapshot becomes this node's checkpoint durably before the journal drops the entries whose place it takes: a former leader's, which may go
/// on beyond its end. A crash in between leaves both. The checkpoint ends with a committed entry, so if the log has another one there, or ends before it,
/// neither that one nor what follows it was ever committed; what comes before is in the checkpoint. Entries of the history that went on
/// after it are in the journal behind the record that dropped these.
pub(crate) fn drop_superseded<E: Env>(log: &ShardLog<E>, checkpoint: Option<&LogId>) {
    let Some(end) = checkpoint.map(position) else { return };
    // At a start every entry that the log has is durable.
    if log.is_durable(end) {
        return;
    }
    if let Some(last) = log.last().filter(|last| last.index >= end.index) {
        Mark::SupersededLogDropped.reached();
        tracing::warn!(
            target: "raft", ?last, checkpoint = ?end,
            "the journal holds entries of a former leader in the place of the checkpoint's last: they are dropped"
        );
    }
    log.purge(end);
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(from) => from.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(to) => to.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl<E: Env> RaftLogReader<TypeConfig<E>> for LogStore<E> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (mut from, to) = self.present(&range);
        let mut entries = Vec::new();
        while from < to {
            let (piece, next) = read_piece(&self.log, from, to, READ_BYTES_MAX).await?;
            entries.extend(piece);
            from = next;
        }
        Ok(entries)
    }

    /// In pieces: what is to be applied after a restart may be as long as the journal. A range that is not wholly there is an error: Raft
    /// takes the end of the stream for the end of the range, and would count entries as applied that a failed journal never took.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let asked = bounds(&range);
        let (from, to) = self.present(&range);
        let lacks_first = from > asked.0 && !matches!(range.start_bound(), Bound::Unbounded);
        let lacks_last = to < asked.1 && !matches!(range.end_bound(), Bound::Unbounded);
        let lacks = lacks_first || lacks_last;
        let pieces = stream::try_unfold((self.log.clone(), from), move |(log, from)| async move {
            if lacks {
                return Err(io::Error::other(format!(
                    "of entries {} .. {} only {from} .. {to} are here",
                    asked.0, asked.1
                )));
            }
            if from >= to {
                return Ok(None);
            }
            let (entries, next) = read_piece(&log, from, to, READ_BYTES_MAX).await?;
            Ok::<_, io::Error>(Some((stream::iter(entries.into_iter().map(Ok)), (log, next))))
        });
        Box::pin(pieces.try_flatten())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        decode_entries(self.log.read(start, end, APPEND_BYTES_MAX).await?)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        stored_vote(&self.log)
    }
}

impl<E: Env> RaftLogStorage<TypeConfig<E>> for LogStore<E> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig<E>>> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(log_id),
            last_log_id: self.log.last().or(self.log.purged()).map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = postcard::to_allocvec(&VoteWire::from(*vote)).map_err(io::Error::other)?;
        self.log.save_vote(Bytes::from(bytes)).await?;
        self.promises.voted(vote);
        self.log.env().reached(Step::VoteWritten);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.log.save_committed(position(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        if self.is_in_doubt {
            return Ok(None);
        }
        // The journal writes it along with whatever comes next, so it may name an entry that a torn tail took with it.
        let last = self.log.last().or(self.log.purged());
        Ok(self.log.committed().filter(|committed| last.is_some_and(|last| committed.index <= last.index)).map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<E>>) -> io::Result<()>
    where
        I: IntoIterator<Item = <TypeConfig<E> as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut changes_membership = false;
        let entries = entries.into_iter().map(|entry| {
            changes_membership |= matches!(entry.payload, Payload::Membership(_));
            (position(&entry.log_id), entry_codec::encode(&entry.payload))
        });
        let entries: Vec<(Position, Vec<Bytes>)> = entries.collect();
        let last = entries.last().map(|(position, _)| *position);
        let (promises, appending) = (self.promises.clone(), self.promises.appending());
        let done = move |result: io::Result<()>| {
            if let (Some(last), Ok(())) = (last, &result) {
                promises.appended(last, appending);
            }
            callback.io_completed(result);
        };
        self.log.append(entries, Box::new(done));
        if changes_membership {
            self.log.env().reached(Step::MembershipAppended);
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        Mark::LogTruncated.reached();
        self.promises.cut(last.as_ref().map(position));
        self.log.truncate_after(last.map(|last| last.index));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(position(&upto));
        self.log.env().reached(Step::JournalPurged);
        Ok(())
    }
}
