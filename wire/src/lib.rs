//! Kafka's wire protocol, as the broker and the client share it.
//!
//! The codec crate is hidden behind [`codec`] and [`frame`], so that it can be replaced. What stands in front of it is
//! here: the table of versions ([`api`]), the caps on frames and on what a frame may make the decoder allocate
//! ([`frame`]), record batches whose bytes are never decoded and encoded again ([`batch`]) but where compaction removes
//! records ([`compaction`]), and decompression with a bounded output ([`compression`]). Nothing in this crate does I/O.

pub mod api;
pub mod batch;
pub mod codec;
pub mod compaction;
pub mod compression;
pub mod frame;
mod guard;
pub mod private;
pub mod records;
pub mod varint;
pub mod versions;

pub use api::{ApiKey, Request, Response};
pub use batch::{BatchError, BatchHeader, check_batch};
pub use compression::Compression;
pub use frame::{EncodeError, EncodedFrame, FrameError, RequestHeader};
pub use records::{BatchBuilder, Record};
