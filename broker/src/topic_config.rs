//! Topic configuration by Kafka's names: what there is, its defaults, and which values are legal.
//!
//! `max.message.bytes`, `message.timestamp.type`, and those that `lockstep_core::topic_settings` reads (`cleanup.policy`, `retention.*`,
//! `segment.bytes`, `segment.ms`, those of compaction) change what the cluster does. The others are kept and shown: nothing is ever deleted earlier than they allow.

use std::collections::BTreeMap;

use lockstep_core::{BATCH_BYTES_MAX, TopicRecord};

/// Largest record batch a topic takes unless it says otherwise: Kafka's default, 1 MiB and a batch header's worth.
pub(crate) const MAX_MESSAGE_BYTES_DEFAULT: usize = 1_048_588;
/// The setting that says so.
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
/// The setting whose default is the broker's configuration.
const SEGMENT_BYTES: &str = "segment.bytes";

/// The type of a setting's value, with Kafka's `ConfigDef.Type` numbers (DescribeConfigs v3+).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub(crate) enum ConfigType {
    Boolean = 1,
    String = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// Which values are legal.
#[derive(Clone, Copy, Debug)]
enum Legal {
    Boolean,
    Integer { min: i64, max: i64 },
    Ratio,
    OneOf(&'static [&'static str]),
    ListOf(&'static [&'static str]),
    Anything,
}

/// A topic setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicSetting {
    pub(crate) name: &'static str,
    pub(crate) default: &'static str,
    pub(crate) config_type: ConfigType,
    pub(crate) documentation: &'static str,
    legal: Legal,
}

const fn setting(
    name: &'static str,
    default: &'static str,
    config_type: ConfigType,
    legal: Legal,
    documentation: &'static str,
) -> TopicSetting {
    TopicSetting { name, default, config_type, documentation, legal }
}

const fn at_least(min: i64) -> Legal {
    Legal::Integer { min, max: i64::MAX }
}

const fn int_at_least(min: i64) -> Legal {
    Legal::Integer { min, max: i32::MAX as i64 }
}

/// All settings, by name ascending.
pub(crate) const SETTINGS: &[TopicSetting] = &[
    setting(
        "cleanup.policy",
        "delete",
        ConfigType::List,
        Legal::ListOf(&["delete", "compact"]),
        "Whether old records are deleted, or compacted by key.",
    ),
    setting(
        "compression.type",
        "producer",
        ConfigType::String,
        Legal::OneOf(&["producer"]),
        "Batches are kept as the producer compressed them.",
    ),
    setting("delete.retention.ms", "86400000", ConfigType::Long, at_least(0), "How long tombstones are kept."),
    setting("file.delete.delay.ms", "60000", ConfigType::Long, at_least(0), "How long a removed file is kept."),
    setting(
        "flush.messages",
        "9223372036854775807",
        ConfigType::Long,
        at_least(1),
        "Not needed: a write is synced before it is acknowledged.",
    ),
    setting(
        "flush.ms",
        "9223372036854775807",
        ConfigType::Long,
        at_least(0),
        "Not needed: a write is synced before it is acknowledged.",
    ),
    setting("index.interval.bytes", "4096", ConfigType::Int, int_at_least(0), "How dense the offset index is."),
    setting(
        "max.compaction.lag.ms",
        "9223372036854775807",
        ConfigType::Long,
        at_least(1),
        "How long a record may stay uncompacted.",
    ),
    setting(
        MAX_MESSAGE_BYTES,
        "1048588",
        ConfigType::Int,
        Legal::Integer { min: 0, max: BATCH_BYTES_MAX as i64 },
        "The largest record batch that is accepted; no topic takes one of more than 7 MiB.",
    ),
    setting(
        "message.timestamp.after.max.ms",
        "9223372036854775807",
        ConfigType::Long,
        at_least(0),
        "How far a record's time may lie in the future.",
    ),
    setting(
        "message.timestamp.before.max.ms",
        "9223372036854775807",
        ConfigType::Long,
        at_least(0),
        "How far a record's time may lie in the past.",
    ),
    setting(
        "message.timestamp.type",
        "CreateTime",
        ConfigType::String,
        Legal::OneOf(&["CreateTime", "LogAppendTime"]),
        "Whether records carry their producer's time or the time of their append.",
    ),
    setting(
        "min.cleanable.dirty.ratio",
        "0.5",
        ConfigType::Double,
        Legal::Ratio,
        "How much of a log must be uncompacted before it is compacted.",
    ),
    setting("min.compaction.lag.ms", "0", ConfigType::Long, at_least(0), "How long a record stays uncompacted."),
    setting(
        "min.insync.replicas",
        "1",
        ConfigType::Int,
        int_at_least(1),
        "Kept for tools: a write is acknowledged when a majority of the replicas has it.",
    ),
    setting("preallocate", "false", ConfigType::Boolean, Legal::Boolean, "Whether files are allocated ahead."),
    setting("retention.bytes", "-1", ConfigType::Long, at_least(-1), "How much of a partition is kept; -1: all."),
    setting("retention.ms", "604800000", ConfigType::Long, at_least(-1), "How long records are kept; -1: for ever."),
    setting(SEGMENT_BYTES, "1073741824", ConfigType::Int, int_at_least(14), "The size of a segment file."),
    setting("segment.index.bytes", "10485760", ConfigType::Int, int_at_least(4), "The size of an index file."),
    setting("segment.jitter.ms", "0", ConfigType::Long, at_least(0), "How much the rolling of segments is spread."),
    setting(
        "segment.ms",
        "604800000",
        ConfigType::Long,
        at_least(1),
        "How old a segment grows before the next begins.",
    ),
    setting(
        "unclean.leader.election.enable",
        "false",
        ConfigType::Boolean,
        Legal::OneOf(&["false"]),
        "Never: a leader has every acknowledged record.",
    ),
];

/// Settings that Kafka has for what does not exist here; they are accepted where they ask for nothing.
const HARMLESS: &[(&str, Legal)] = &[
    ("follower.replication.throttled.replicas", Legal::Anything),
    ("leader.replication.throttled.replicas", Legal::Anything),
    ("local.retention.bytes", Legal::Anything),
    ("local.retention.ms", Legal::Anything),
    ("message.downconversion.enable", Legal::Boolean),
    ("message.format.version", Legal::Anything),
    ("remote.storage.enable", Legal::OneOf(&["false"])),
];

/// The setting's default, when its value is a list to which items may be added.
pub(crate) fn list_default(name: &str) -> Option<&'static str> {
    SETTINGS
        .iter()
        .find(|setting| setting.name == name && setting.config_type == ConfigType::List)
        .map(|setting| setting.default)
}

/// Checks a setting's name and value. The error is a sentence for the client.
pub(crate) fn check(name: &str, value: &str) -> Result<(), String> {
    let legal = SETTINGS
        .iter()
        .find(|setting| setting.name == name)
        .map(|setting| setting.legal)
        .or_else(|| HARMLESS.iter().find(|(known, _)| *known == name).map(|(_, legal)| *legal))
        .ok_or_else(|| format!("Unknown topic config name: {name}"))?;
    legal.check(value).map_err(|reason| format!("Invalid value {value} for configuration {name}: {reason}"))
}

impl Legal {
    fn check(self, value: &str) -> Result<(), String> {
        let one_of = |allowed: &[&str], value: &str| {
            if allowed.contains(&value) { Ok(()) } else { Err(format!("must be one of {}", allowed.join(", "))) }
        };
        match self {
            Self::Boolean => one_of(&["true", "false"], value),
            Self::Integer { min, max } => match value.trim().parse::<i64>() {
                Ok(number) if (min..=max).contains(&number) => Ok(()),
                Ok(_) => Err(format!("must lie between {min} and {max}")),
                Err(_) => Err("must be a whole number".to_owned()),
            },
            Self::Ratio => match value.trim().parse::<f64>() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(()),
                _ => Err("must lie between 0 and 1".to_owned()),
            },
            Self::OneOf(allowed) => one_of(allowed, value),
            Self::ListOf(allowed) => value.split(',').try_for_each(|item| one_of(allowed, item.trim())),
            Self::Anything => Ok(()),
        }
    }
}

/// The largest record batch that a topic takes.
pub(crate) fn max_message_bytes(topic: &TopicRecord) -> usize {
    topic
        .configs
        .get(MAX_MESSAGE_BYTES)
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(MAX_MESSAGE_BYTES_DEFAULT)
}

/// A setting as a client is shown it.
pub(crate) struct Shown {
    pub(crate) setting: &'static TopicSetting,
    pub(crate) value: String,
    /// What says so.
    pub(crate) source: Source,
    /// What would be so if the topic said nothing.
    pub(crate) default: String,
}

/// Who decides a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Topic,
    /// The broker's own configuration.
    Broker,
    Default,
}

/// All settings of a topic, where brokers close segments at `segment_bytes` unless topics say otherwise.
pub(crate) fn shown(configs: &BTreeMap<String, String>, segment_bytes: u64) -> impl Iterator<Item = Shown> {
    SETTINGS.iter().map(move |setting| {
        let of_broker = (setting.name == SEGMENT_BYTES).then(|| segment_bytes.to_string());
        let default = of_broker.clone().unwrap_or_else(|| setting.default.to_owned());
        match configs.get(setting.name) {
            Some(value) => Shown { setting, value: value.clone(), source: Source::Topic, default },
            None => {
                let source = if of_broker.is_some() { Source::Broker } else { Source::Default };
                Shown { setting, value: default.clone(), source, default }
            }
        }
    })
}

/// Kafka's rule for topic names.
pub(crate) fn is_legal_topic_name(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_legal() {
        for setting in SETTINGS {
            assert_eq!(check(setting.name, setting.default), Ok(()), "{}", setting.name);
        }
        assert!(SETTINGS.is_sorted_by_key(|setting| setting.name));
    }

    #[test]
    fn wrong_names_and_values_are_refused_with_a_sentence() {
        for (name, value, says) in [
            ("retention.hours", "1", "Unknown topic config name: retention.hours"),
            ("retention.ms", "soon", "must be a whole number"),
            ("retention.ms", "-2", "must lie between -1"),
            ("cleanup.policy", "compact,burn", "must be one of delete, compact"),
            ("message.timestamp.type", "Now", "must be one of CreateTime, LogAppendTime"),
            ("min.cleanable.dirty.ratio", "7", "must lie between 0 and 1"),
            ("max.message.bytes", "7340033", "must lie between 0 and 7340032"),
        ] {
            let error = check(name, value).expect_err(name);
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(check("cleanup.policy", "compact,delete"), Ok(()));
    }

    #[test]
    fn names_follow_kafkas_rule() {
        for name in ["a", "orders.eu-1_x", "__consumer_offsets"] {
            assert!(is_legal_topic_name(name), "{name}");
        }
        let long = "x".repeat(250);
        for name in ["", ".", "..", "a b", "ü", "a/b", long.as_str()] {
            assert!(!is_legal_topic_name(name), "{name}");
        }
    }
}
