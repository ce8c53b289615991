//! The deterministic state machine of one shard.
//!
//! [`ClusterStateMachine::apply`] takes one [`Op`] at one log position and returns a typed [`Reply`] and
//! [`Effect`]s as data. It has no clock, no randomness and no I/O: equal ops at equal positions give equal
//! states on every replica, which [`ClusterStateMachine::digest`] makes checkable.

#![no_std]
extern crate alloc;

mod append;
mod compaction;
mod digest;
pub mod directory;
pub mod effect;
mod encoding;
mod feed;
mod groups;
pub mod ids;
mod invariants;
pub mod op;
mod partitions;
mod producers;
pub mod reply;
pub mod session;
mod snapshot;
pub mod state_machine;
pub mod topic_settings;
mod topics;
pub mod view;

pub use directory::{BrokerRecord, Directory, TopicRecord};
pub use effect::Effect;
pub use ids::{GROUP_SLOTS, NodeId, Position, ShardId, TopicId, group_slot, shard_of_group};
pub use op::Op;
pub use reply::{GroupError, Reply, TopicError};
pub use session::SessionTable;
pub use state_machine::{Applied, ClusterStateMachine, Digest, Violation};
pub use topic_settings::{BATCH_BYTES_MAX, CompactionSettings, SegmentLimits};
