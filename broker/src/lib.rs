//! The broker: Kafka's wire protocol on one side, a [`lockstep_runtime::Node`] on the other.
//!
//! `frame_reader` turns bytes into frames, `connection` keeps the order of requests, `dispatch` finds the handler, `api` has one file for
//! each family of requests, and `error_code` is the only place that knows Kafka's error numbers. No wire type passes the line
//! to the runtime.

mod answer_room;
mod api;
mod broker;
mod cluster_view;
pub mod config;
mod connection;
mod connection_limits;
mod dispatch;
mod error_code;
mod frame_reader;
mod http;
mod metrics;
mod stop;
mod topic_config;
mod topics;

pub use broker::{Broker, StartError};
pub use config::{BrokerConfig, ConfigError, ConfigFile};
pub use error_code::{ErrorCode, NOT_COORDINATOR_MESSAGE};
