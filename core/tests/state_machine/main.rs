//! The state machine of a shard, seen from outside: what each op does, and what no op may do.

mod appends;
mod encodings;
mod feeds;
mod group_properties;
mod harness;
mod properties;
mod snapshots;
mod strategies;
mod topics;
