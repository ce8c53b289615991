//! A client of Lockstep, and of any cluster that speaks Kafka's protocol.
//!
//! [`Client`] knows the cluster; the others are made from one and share its connections. All are generic over
//! [`lockstep_env::Env`], so that the simulator runs this very code.

mod admin;
mod client;
mod config;
mod connection;
mod consumer;
mod error;
mod fetcher;
mod group;
mod offsets;
mod producer;
mod retry;
mod succession;
mod topology;

pub use admin::{Admin, ConfigEntry, CreatedTopic, GroupListing, NewTopic};
pub use client::Client;
pub use config::ClientConfig;
pub use connection::{BrokerConnection, InFlight};
pub use consumer::Consumer;
pub use error::{ClientError, ErrorCode, error_name};
pub use fetcher::{FetchConfig, Message, OffsetReset, StartAt};
pub use group::{
    ExportedOffset, GroupConsumer, GroupConsumerConfig, GroupDescription, GroupEvent, GroupExport, GroupLagListing,
    GroupMember, GroupOffset, Messages, OffsetChange, Polled, ResetTo, TopicSelection,
};
pub use offsets::{OffsetAt, TopicPartition};
pub use producer::{
    Acks, Delivery, Producer, ProducerConfig, ProducerRecord, RecordMetadata, murmur2, partition_for_key,
};
pub use topology::{PartitionInfo, TopicInfo};

pub use lockstep_wire::Compression;
/// What happened to a group: the answer of [`Admin::explain_group`].
pub use lockstep_wire::private::{GroupTimeline, PartitionsMoved, TimelineEvent, TimelineEventKind, TopicPartitions};
