//! One file for each family of requests. A handler takes the broker, the context and the request's body, and returns the
//! response's body; whatever goes wrong is an error code in it.

pub(crate) mod alter_configs;
pub(crate) mod api_versions;
pub(crate) mod cluster;
pub(crate) mod coordinator;
pub(crate) mod create_partitions;
pub(crate) mod create_topics;
pub(crate) mod delete_records;
pub(crate) mod delete_topics;
pub(crate) mod describe_configs;
pub(crate) mod fetch;
pub(crate) mod fetch_session;
pub(crate) mod group_admin;
pub(crate) mod group_classic;
pub(crate) mod group_configs;
pub(crate) mod group_consumer;
pub(crate) mod group_coordinator;
pub(crate) mod group_deletion;
pub(crate) mod group_lag;
pub(crate) mod group_offsets;
pub(crate) mod group_timeline;
pub(crate) mod leader_epoch;
pub(crate) mod list_offsets;
pub(crate) mod metadata;
pub(crate) mod private;
pub(crate) mod produce;
pub(crate) mod producer_id;
pub(crate) mod topic_partitions;
