//! One shard's part of the journal.

use std::io;

use bytes::Bytes;
use lockstep_core::Position;
use lockstep_env::Env;

/// One shard's log in the journal. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShardLog<E: Env> {
    _env: std::marker::PhantomData<E>,
}

#[allow(unused_variables, clippy::unused_async)]
impl<E: Env> ShardLog<E> {
    /// Everything up to and including this position was purged.
    #[must_use]
    pub fn purged(&self) -> Option<Position> {
        todo!()
    }
    /// The last entry, or [`ShardLog::purged`] when there is none.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        todo!()
    }
    /// The vote saved last.
    #[must_use]
    pub fn vote(&self) -> Option<Bytes> {
        todo!()
    }
    /// The committed position saved last.
    #[must_use]
    pub fn committed(&self) -> Option<Position> {
        todo!()
    }
    /// Appends entries, which must follow [`ShardLog::last`] without a gap. They can be read at once. `done` is called when they are durable
    /// (`Durability::Fsync`) or queued (`Durability::Replicated`), never while a lock of the journal is held. An entry is its slices, one after another.
    pub fn append(&self, entries: Vec<(Position, Vec<Bytes>)>, done: Box<dyn FnOnce(io::Result<()>) + Send>) {
        todo!()
    }
    /// Drops entries with a greater index; with `None` all of them. Ordered with appends.
    pub fn truncate_after(&self, index: Option<u64>) {
        todo!()
    }
    /// Drops entries up to and including `upto.index`, which may lie beyond the last entry (after a snapshot was installed). Ordered with appends.
    pub fn purge(&self, upto: Position) {
        todo!()
    }
    /// Saves the vote; durable in every mode when it returns.
    pub async fn save_vote(&self, vote: Bytes) -> io::Result<()> {
        todo!()
    }
    /// Saves the committed position with whatever is written next.
    pub fn save_committed(&self, position: Position) {
        todo!()
    }
    /// Entries from `from` on, without a gap, up to `to_exclusive` and until `bytes_max` bytes are reached; at least one when `from` is there,
    /// none when it is not.
    pub async fn read(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> io::Result<Vec<(Position, Bytes)>> {
        todo!()
    }
}
