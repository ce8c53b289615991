//! `lockstep bench group`: members that do what the protocol asks of them and nothing else, so that coordinators are measured.

mod commit;
mod connections;
mod crowd;
mod heartbeats;
mod join;
mod member;
mod pipeline;
mod scale;

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use lockstep_client::Client;
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::codec::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use lockstep_wire::codec::{IncrementalAlterConfigsRequest, StrBytes};

use super::ensure_topic;
use connections::Connections;
use crowd::name_of;

/// Kafka's number of resources that are groups.
const RESOURCE_GROUP: i8 = 32;
/// Kafka's number of the operation that sets a value.
const OPERATION_SET: i8 = 0;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchGroup {
    /// One member of a large group leaves, then one joins: how long until everybody has its partitions
    Scale(scale::BenchScale),
    /// Many members send heartbeats: what brokers spend on them
    Heartbeats(heartbeats::BenchHeartbeats),
    /// A member joins an empty group: how long until it has its partitions
    Join(join::BenchJoin),
    /// Members commit offsets, one request for each commit
    Commit(commit::BenchCommit),
}

pub(super) async fn run(client: &Client, command: BenchGroup) -> anyhow::Result<()> {
    match command {
        BenchGroup::Scale(arguments) => scale::run(client, arguments).await,
        BenchGroup::Heartbeats(arguments) => heartbeats::run(client, arguments).await,
        BenchGroup::Join(arguments) => join::run(client, arguments).await,
        BenchGroup::Commit(arguments) => commit::run(client, arguments).await,
    }
}

/// Names of groups that no other run has.
fn group_prefix(what: &str) -> String {
    format!("bench-{what}-{:08x}", TokioEnv::random_u64() as u32)
}

/// What stands behind a number of failures.
fn failure_text(last: Option<&str>) -> String {
    last.map(|last| format!(" (the last: {last})")).unwrap_or_default()
}

/// Makes sure that there is a topic with so many partitions.
async fn ensure_partitions(client: &Client, topic: &str, partitions: usize) -> anyhow::Result<()> {
    let count = i32::try_from(partitions).context("so many partitions cannot be")?;
    ensure_topic(client, topic, count).await?;
    let found = client.topic(topic, false).await?.partitions.len();
    if found != partitions {
        bail!("topic {topic} has {found} partitions, not {partitions}; --topic names another");
    }
    Ok(())
}

/// Has the coordinator ask the members of `group` for a heartbeat at this interval.
async fn configure_interval(connections: &Connections, group: &str, interval: Duration) -> anyhow::Result<()> {
    let mut config = AlterableConfig::default();
    config.name = StrBytes::from_static_str("consumer.heartbeat.interval.ms");
    config.config_operation = OPERATION_SET;
    config.value = Some(StrBytes::from_string(interval.as_millis().to_string()));
    let mut resource = AlterConfigsResource::default();
    resource.resource_type = RESOURCE_GROUP;
    resource.resource_name = StrBytes::from_string(group.to_owned());
    resource.configs = vec![config];
    let mut request = IncrementalAlterConfigsRequest::default();
    request.resources = vec![resource];
    let connection = connections.to_coordinator(group, 0).await?;
    let answer = connection.call(connections.client().config().timeout, |_| request).await?;
    let result = answer.responses.first().context("no answer for the group")?;
    if result.error_code != 0 {
        let message = result.error_message.as_deref().unwrap_or_default();
        bail!("the heartbeat interval of group {group}: {} {message}", name_of(result.error_code));
    }
    Ok(())
}
