//! Consumer groups: as a member, and seen from outside.

mod committed;
mod config;
mod consumer;
mod delete;
mod describe;
mod explain;
mod lag;
mod member;
mod reconciliation;
mod reset;
mod transfer;

pub use config::GroupConsumerConfig;
pub use consumer::{GroupConsumer, Messages, Polled};
pub use describe::{GroupDescription, GroupMember, GroupOffset};
pub use lag::GroupLagListing;
pub use member::GroupEvent;
pub use reset::{OffsetChange, ResetTo, TopicSelection};
pub use transfer::{ExportedOffset, GroupExport};
