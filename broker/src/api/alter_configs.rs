//! AlterConfigs, which replaces the configuration of a topic or group, and IncrementalAlterConfigs, which changes single settings (KIP-339).
//! Brokers are configured by their files only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_core::op::UpdateMetadata;
use lockstep_core::{Op, TopicRecord};
use lockstep_env::Env;
use lockstep_wire::codec::{
    AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    StrBytes, alter_configs_response, incremental_alter_configs_request, incremental_alter_configs_response,
};

use crate::api::describe_configs::{RESOURCE_BROKER, RESOURCE_GROUP, RESOURCE_TOPIC};
use crate::api::group_configs::GroupConfigs;
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topic_config;
use crate::topics::{self, Refusal};

/// These requests carry no time-out.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Kafka's `AlterConfigOp.OpType`.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

pub(crate) async fn replace<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: AlterConfigsRequest,
) -> AlterConfigsResponse {
    topics::freshen_directory(broker).await;
    let mut groups = GroupConfigs::new(broker);
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let (resource_type, name) = (resource.resource_type, &resource.resource_name);
        let outcome = alter(broker, &mut groups, resource_type, name, request.validate_only, |_| {
            let mut configs = BTreeMap::new();
            for config in &resource.configs {
                let value = config.value.as_ref().ok_or_else(|| no_value(&config.name))?;
                configs.insert(config.name.to_string(), value.to_string());
            }
            Ok(configs)
        });
        let (error_code, error_message) = told(outcome.await);
        responses.push(
            alter_configs_response::AlterConfigsResourceResponse::default()
                .with_error_code(error_code)
                .with_error_message(error_message)
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name),
        );
    }
    AlterConfigsResponse::default().with_responses(responses)
}

pub(crate) async fn incremental<E: Env>(
    broker: &Broker<E>,
    _context: &RequestContext,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    topics::freshen_directory(broker).await;
    let mut groups = GroupConfigs::new(broker);
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let (resource_type, name) = (resource.resource_type, &resource.resource_name);
        let outcome = alter(broker, &mut groups, resource_type, name, request.validate_only, |before| {
            change(before, &resource.configs)
        });
        let (error_code, error_message) = told(outcome.await);
        responses.push(
            incremental_alter_configs_response::AlterConfigsResourceResponse::default()
                .with_error_code(error_code)
                .with_error_message(error_message)
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name),
        );
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

fn told(outcome: Result<(), Refusal>) -> (i16, Option<StrBytes>) {
    match outcome {
        Ok(()) => (ErrorCode::None.code(), None),
        Err(refusal) => (refusal.error.code(), Some(refusal.message.into())),
    }
}

fn no_value(name: &str) -> Refusal {
    Refusal::new(ErrorCode::InvalidConfig, format!("Null value not supported for {name}"))
}

/// Gives a topic or group the configuration that `next` makes of the one it has.
async fn alter<E: Env>(
    broker: &Broker<E>,
    groups: &mut GroupConfigs<'_, E>,
    resource_type: i8,
    name: &str,
    validate_only: bool,
    next: impl FnOnce(&BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal>,
) -> Result<(), Refusal> {
    match resource_type {
        RESOURCE_TOPIC => {}
        RESOURCE_GROUP => return groups.alter(name, validate_only, next).await,
        RESOURCE_BROKER => {
            return Err(Refusal::new(ErrorCode::InvalidRequest, "A broker is configured by its file only."));
        }
        other => {
            let message = format!("Resources of type {other} have no configuration.");
            return Err(Refusal::new(ErrorCode::InvalidRequest, message));
        }
    }
    let topic: TopicRecord = broker
        .node()
        .directory(|directory| directory.topic(name).cloned())
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let configs = next(&topic.configs)?;
    for (name, value) in &configs {
        topic_config::check(name, value).map_err(|message| Refusal::new(ErrorCode::InvalidConfig, message))?;
    }
    if validate_only || configs == topic.configs {
        return Ok(());
    }
    let op = Op::UpdateMetadata(UpdateMetadata::SetTopicConfigs { topic_id: topic.id, configs });
    let changed = topics::change(broker, op, TIMEOUT).await?;
    tracing::info!(topic = changed.name, configs = ?changed.configs, "topic configured");
    topics::settle(broker, changed.version, TIMEOUT).await;
    Ok(())
}

/// Applies single changes, in order.
fn change(
    before: &BTreeMap<String, String>,
    changes: &[incremental_alter_configs_request::AlterableConfig],
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut configs = before.clone();
    let mut named = BTreeSet::new();
    for change in changes {
        let name = change.name.as_str();
        if !named.insert(name) {
            return Err(Refusal::new(ErrorCode::InvalidRequest, format!("Configuration {name} is named twice.")));
        }
        let value = || change.value.as_ref().map(|value| value.as_str()).ok_or_else(|| no_value(name));
        match change.config_operation {
            SET => {
                configs.insert(name.to_owned(), value()?.to_owned());
            }
            DELETE => {
                configs.remove(name);
            }
            operation @ (APPEND | SUBTRACT) => {
                let default = topic_config::list_default(name).ok_or_else(|| {
                    Refusal::new(ErrorCode::InvalidConfig, format!("Configuration {name} is not a list."))
                })?;
                let listed = configs.get(name).map_or(default, String::as_str);
                let given: Vec<&str> = value()?.split(',').map(str::trim).collect();
                let mut items: Vec<&str> = listed.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
                if operation == APPEND {
                    for item in given {
                        if !items.contains(&item) {
                            items.push(item);
                        }
                    }
                } else {
                    items.retain(|item| !given.contains(item));
                }
                let list = items.join(",");
                configs.insert(name.to_owned(), list);
            }
            other => {
                return Err(Refusal::new(ErrorCode::InvalidRequest, format!("Unknown operation {other} on {name}.")));
            }
        }
    }
    Ok(configs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use incremental_alter_configs_request::AlterableConfig;

    fn one(name: &'static str, operation: i8, value: Option<&'static str>) -> AlterableConfig {
        AlterableConfig::default()
            .with_name(name.into())
            .with_config_operation(operation)
            .with_value(value.map(StrBytes::from))
    }

    #[test]
    fn settings_are_set_removed_and_extended() {
        let before = BTreeMap::from([("retention.ms".to_owned(), "5".to_owned())]);
        let after = change(
            &before,
            &[
                one("retention.ms", DELETE, None),
                one("segment.ms", SET, Some("7")),
                one("cleanup.policy", APPEND, Some("compact,delete")),
            ],
        );
        let expected = [("cleanup.policy", "delete,compact"), ("segment.ms", "7")];
        assert_eq!(after, Ok(expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for changes in [
            vec![one("retention.ms", SET, None)],
            vec![one("retention.ms", APPEND, Some("1"))],
            vec![one("retention.ms", 9, Some("1"))],
            vec![one("retention.ms", SET, Some("1")), one("retention.ms", DELETE, None)],
        ] {
            assert!(change(&BTreeMap::new(), &changes).is_err(), "{changes:?}");
        }
    }
}
