//! The log of one partition: recent batches in memory, all of them in segment files.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_env::Env;

/// A partition's log on this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionLog<E: Env> {
    _env: std::marker::PhantomData<E>,
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The offset lies before the log's start or after its end.
    #[error("offset out of range: the log holds {start}..{end}")]
    OutOfRange {
        /// First offset there is.
        start: i64,
        /// Offset after the last.
        end: i64,
    },
    /// The partition was deleted meanwhile.
    #[error("the partition is gone")]
    Gone,
    /// A batch read from disk is damaged.
    #[error("{path} is damaged at {position}")]
    Damaged {
        /// File.
        path: String,
        /// Byte position.
        position: u64,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

#[allow(unused_variables, clippy::unused_async)]
impl<E: Env> PartitionLog<E> {
    /// First offset that can be read.
    #[must_use]
    pub fn start_offset(&self) -> i64 {
        todo!()
    }
    /// Offset after the last applied record (high watermark).
    #[must_use]
    pub fn end_offset(&self) -> i64 {
        todo!()
    }
    /// Whole batches from the one that holds `offset` on, as stored: together at most `bytes_max` bytes, but at least one batch if
    /// `at_least_one` and there is one. Empty at the end of the log.
    pub async fn read(&self, offset: i64, bytes_max: usize, at_least_one: bool) -> Result<Vec<Bytes>, ReadError> {
        todo!()
    }
    /// The first offset whose batch has a max timestamp ≥ `timestamp_ms`, refined to the record by the caller if it wishes: (timestamp, offset) of the batch.
    pub async fn offset_for_time(&self, timestamp_ms: i64) -> Result<Option<(i64, i64)>, ReadError> {
        todo!()
    }
    /// The largest timestamp in the log with its batch's last offset (ListOffsets −3).
    pub async fn max_timestamp(&self) -> Result<Option<(i64, i64)>, ReadError> {
        todo!()
    }
    /// Wakes `waiter` at every append after this call, until the waiter is dropped.
    pub fn wake_on_append(&self, waiter: &Arc<tokio::sync::Notify>) {
        todo!()
    }
}
