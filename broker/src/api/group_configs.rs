//! The configuration of single groups (KIP-848): resources of type GROUP in DescribeConfigs, AlterConfigs and IncrementalAlterConfigs.
//!
//! It belongs to a group's id: a group need not exist to be configured. Any broker changes it, by way of the coordinator.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_core::op::ConfigureGroup;
use lockstep_core::view::GroupConfig;
use lockstep_core::{GroupError, Op, Reply, ShardId, shard_of_group};
use lockstep_env::Env;

use crate::broker::Broker;
use crate::config::GroupConfig as GroupDefaults;
use crate::error_code::ErrorCode;
use crate::topics::Refusal;

/// These requests carry no time-out.
const TIMEOUT: Duration = Duration::from_secs(10);

const SESSION_TIMEOUT: &str = "consumer.session.timeout.ms";
const HEARTBEAT_INTERVAL: &str = "consumer.heartbeat.interval.ms";

/// A setting of a group.
pub(crate) struct GroupSetting {
    pub(crate) name: &'static str,
    pub(crate) documentation: &'static str,
    /// What holds for groups for which it is not set.
    pub(crate) default: u32,
    /// What is set for this one.
    pub(crate) value: Option<u32>,
}

/// All settings of a group.
pub(crate) fn settings(defaults: &GroupDefaults, config: GroupConfig) -> [GroupSetting; 2] {
    [
        GroupSetting {
            name: HEARTBEAT_INTERVAL,
            documentation: "Heartbeat interval of members that speak the consumer protocol.",
            default: defaults.heartbeat_interval_ms,
            value: config.heartbeat_interval_ms,
        },
        GroupSetting {
            name: SESSION_TIMEOUT,
            documentation: "Session time-out of members that speak the consumer protocol.",
            default: defaults.session_timeout_ms,
            value: config.session_timeout_ms,
        },
    ]
}

/// The configurations of the groups of one request. However many groups it names, each shard is asked once how far it is: what is
/// there then was there when the request came.
pub(crate) struct GroupConfigs<'a, E: Env> {
    broker: &'a Broker<E>,
    /// How far this node is with the shards that were asked for.
    current: BTreeMap<ShardId, Result<(), Refusal>>,
    /// Groups that the request changed already. A follower may not have applied that yet.
    altered: BTreeSet<String>,
}

impl<'a, E: Env> GroupConfigs<'a, E> {
    pub(crate) fn new(broker: &'a Broker<E>) -> Self {
        Self { broker, current: BTreeMap::new(), altered: BTreeSet::new() }
    }

    /// What is configured for a group.
    pub(crate) async fn read(&mut self, group: &str) -> Result<GroupConfig, Refusal> {
        if group.is_empty() {
            return Err(Refusal::new(ErrorCode::InvalidRequest, "There is no configuration for all groups."));
        }
        let node = self.broker.node();
        let id = shard_of_group(group, node.shard_count());
        if self.altered.remove(group) {
            self.current.remove(&id);
        }
        let current = match self.current.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let current = node.linearizable(id, TIMEOUT).await;
                let refuse = |error| Refusal::new(ErrorCode::of_group_read(&error), error.to_string());
                unknown.insert(current.map(|_| ()).map_err(refuse))
            }
        };
        current.clone()?;
        let shard = node.shard(id).ok_or(ErrorCode::NotCoordinator)?;
        Ok(shard.read(|state| state.group_config(group)))
    }

    /// Gives a group the configuration that `next` makes of the one it has.
    pub(crate) async fn alter(
        &mut self,
        group: &str,
        validate_only: bool,
        next: impl FnOnce(&BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal>,
    ) -> Result<(), Refusal> {
        let config = self.read(group).await?;
        let altered = alter(self.broker, group, config, validate_only, next).await?;
        if altered {
            self.altered.insert(group.to_owned());
        }
        Ok(())
    }
}

/// True when anything was changed.
async fn alter<E: Env>(
    broker: &Broker<E>,
    group: &str,
    config: GroupConfig,
    validate_only: bool,
    next: impl FnOnce(&BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal>,
) -> Result<bool, Refusal> {
    let defaults = &broker.config().groups;
    let set = settings(defaults, config).into_iter().filter_map(|setting| {
        let value = setting.value?.to_string();
        Some((setting.name.to_owned(), value))
    });
    let before: BTreeMap<String, String> = set.collect();
    let after = check(defaults, &next(&before)?)?;
    // Only what differs: another client may be changing the rest.
    let changes: Vec<(String, Option<String>)> = settings(defaults, config)
        .iter()
        .filter(|setting| before.get(setting.name) != after.get(setting.name))
        .map(|setting| (setting.name.to_owned(), after.get(setting.name).cloned()))
        .collect();
    if validate_only || changes.is_empty() {
        return Ok(false);
    }
    let shard = shard_of_group(group, broker.node().shard_count());
    let op = Op::ConfigureGroup(ConfigureGroup { group_id: group.to_owned(), changes: changes.clone() });
    match broker.node().forward(shard, op, TIMEOUT).await {
        Ok(Reply::Group(Ok(()))) => {
            tracing::info!(group, ?changes, "group configured");
            Ok(true)
        }
        Ok(Reply::Group(Err(GroupError::InvalidRequest(message)))) => {
            Err(Refusal::new(ErrorCode::InvalidConfig, message))
        }
        Ok(Reply::Group(Err(error))) => Err(ErrorCode::of_group(&error).into()),
        Ok(other) => {
            tracing::error!(group, ?other, "a reply of another kind to a change of a group's configuration");
            Err(ErrorCode::UnknownServerError.into())
        }
        Err(error) => Err(Refusal::new(ErrorCode::of_coordinator(&error), error.to_string())),
    }
}

/// Checks a whole configuration against the bounds of this broker, and gives it as it is written down: plain numbers, whatever
/// signs and blanks they came with.
fn check(limits: &GroupDefaults, configs: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidConfig, message));
    let (mut session_timeout_ms, mut heartbeat_interval_ms) = (limits.session_timeout_ms, limits.heartbeat_interval_ms);
    let mut checked = BTreeMap::new();
    for (name, value) in configs {
        let (setting, min, max) = match name.as_str() {
            SESSION_TIMEOUT => {
                (&mut session_timeout_ms, limits.session_timeout_min_ms.max(1), limits.session_timeout_max_ms)
            }
            HEARTBEAT_INTERVAL => (&mut heartbeat_interval_ms, 1, limits.session_timeout_max_ms),
            _ => return invalid(format!("Groups have no configuration {name}.")),
        };
        match value.trim().parse::<u32>() {
            Ok(number) if (min..=max).contains(&number) && i32::try_from(number).is_ok() => {
                *setting = number;
                checked.insert(name.clone(), number.to_string());
            }
            _ => return invalid(format!("{name} is {value}, but must be a number between {min} and {max}.")),
        }
    }
    if !configs.is_empty() && heartbeat_interval_ms >= session_timeout_ms {
        return invalid(format!(
            "{HEARTBEAT_INTERVAL} would be {heartbeat_interval_ms}, which must be less than {SESSION_TIMEOUT}, {session_timeout_ms}."
        ));
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_must_lie_within_the_brokers_bounds() {
        let limits = GroupDefaults::default();
        let check = |configs: &[(&str, &str)]| {
            let configs = configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            check(&limits, &configs)
                .map(|checked| checked.into_values().collect::<Vec<_>>())
                .map_err(|refusal| refusal.error)
        };
        assert_eq!(check(&[]), Ok(vec![]));
        assert_eq!(check(&[(SESSION_TIMEOUT, "6000")]), Ok(vec!["6000".to_owned()]));
        assert_eq!(check(&[(SESSION_TIMEOUT, " +6000\t")]), Ok(vec!["6000".to_owned()]));
        let both = check(&[(SESSION_TIMEOUT, "60000"), (HEARTBEAT_INTERVAL, "059999")]);
        assert_eq!(both, Ok(vec!["59999".to_owned(), "60000".to_owned()]));
        for configs in [
            &[(SESSION_TIMEOUT, "5999")][..],
            &[(SESSION_TIMEOUT, "1800001")],
            &[(SESSION_TIMEOUT, "soon")],
            &[(SESSION_TIMEOUT, "-1")],
            &[(HEARTBEAT_INTERVAL, "0")],
            // The session time-out is the broker's, 45 s.
            &[(HEARTBEAT_INTERVAL, "45000")],
            &[(SESSION_TIMEOUT, "6000"), (HEARTBEAT_INTERVAL, "6000")],
            &[("retention.ms", "1")],
        ] {
            assert_eq!(check(configs), Err(ErrorCode::InvalidConfig), "{configs:?}");
        }
    }
}
