//! The state machine of a shard, seen from outside: everything but consumer groups.

mod appends;
mod encodings;
mod feeds;
mod harness;
mod properties;
mod snapshots;
mod topics;
