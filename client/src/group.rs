//! Consumer groups: as a member, and seen from outside.

mod config;
mod consumer;
mod delete;
mod describe;
mod member;
mod reconciliation;

pub use config::GroupConsumerConfig;
pub use consumer::{GroupConsumer, Messages, Polled};
pub use describe::{GroupDescription, GroupMember, GroupOffset};
pub use member::GroupEvent;
