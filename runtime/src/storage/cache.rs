//! The node-wide budget for recently appended batches.

use std::sync::Arc;

/// How many bytes of already written batches all partitions of a node may keep in memory; the oldest go first.
#[derive(Debug)]
pub struct Cache {}

impl Cache {
    /// A cache of `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: u64) -> Arc<Self> {
        let _ = bytes_max;
        todo!()
    }
}
