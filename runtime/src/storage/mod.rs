//! Partition segments, their tail in memory, and checkpoints of one shard.
//!
//! The files of a partition lie in `<data_dir>/<shard>/<topic id, hexadecimal>-<partition>/`:
//!
//! - `<base offset, 20 digits>.log`: record batches (Kafka's format, version 2), one after another, as applied.
//! - `<base offset, 20 digits>.index`: positions and timestamps, see `index.rs`; can be made anew from the log at any time.
//! - `<base offset, 20 digits>-<revision>.log` and `.index`: the same of segments that a compaction made, see `staging.rs`.
//!
//! Everything that shapes a `.log` file is decided by the applied sequence, so the files of all replicas are byte-identical.
//! They are written behind `apply` and synced by checkpoints only. A checkpoint's [`Manifest`] names every segment with its length and
//! checksum; what lies in the directory beyond it is a leftover that a replay of the journal makes again.
//!
//! `check.rs` compares files with these checksums, `repair.rs` replaces a damaged one by another replica's.

mod arena;
pub(crate) mod batch;
pub mod cache;
pub(crate) mod check;
pub mod checkpoint;
mod flush;
mod gates;
mod index;
pub mod install;
mod lookup;
mod lru;
pub mod manifest;
pub(crate) mod read;
mod read_compacted;
mod recovery;
mod removal;
pub(crate) mod repair;
pub mod segment;
pub(crate) mod staging;
pub(crate) mod state;
pub mod store;
pub(crate) mod suspicion;
#[cfg(test)]
mod tests;

pub use cache::Cache;
pub use checkpoint::Checkpoints;
pub use install::{Installation, MissingRange};
pub use manifest::{Manifest, ManifestError};
pub use segment::{SegmentEntry, SegmentName};
pub use store::{PartitionStore, Pin, SegmentView, StoreOptions};
pub use suspicion::ScrubCounts;
