//! DescribeConfigs: of topics, brokers and groups.

use std::collections::BTreeSet;

use lockstep_env::Env;
use lockstep_runtime::Durability;
use lockstep_wire::codec::describe_configs_request::DescribeConfigsResource;
use lockstep_wire::codec::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use lockstep_wire::codec::{DescribeConfigsRequest, DescribeConfigsResponse, StrBytes};

use crate::api::group_configs::{self, GroupConfigs};
use crate::broker::Broker;
use crate::dispatch::RequestContext;
use crate::error_code::ErrorCode;
use crate::topic_config::{self, ConfigType};
use crate::topics::{self, Refusal};

/// Kafka's `ConfigResource.Type`.
pub(crate) const RESOURCE_TOPIC: i8 = 2;
pub(crate) const RESOURCE_BROKER: i8 = 4;
pub(crate) const RESOURCE_GROUP: i8 = 32;
/// Kafka's `ConfigSource`.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_STATIC_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;
const SOURCE_GROUP: i8 = 8;

/// One setting, before it is cut to what the request's version and options show.
struct Entry {
    name: &'static str,
    value: String,
    default: Option<String>,
    read_only: bool,
    source: i8,
    config_type: ConfigType,
    documentation: &'static str,
}

pub(crate) async fn handle<E: Env>(
    broker: &Broker<E>,
    context: &RequestContext,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let missing = |name: &str| broker.node().directory(|directory| directory.topic(name).is_none());
    if request
        .resources
        .iter()
        .any(|resource| resource.resource_type == RESOURCE_TOPIC && missing(&resource.resource_name))
    {
        topics::freshen_directory(broker).await;
    }
    let mut groups = GroupConfigs::new(broker);
    let mut results = Vec::new();
    let mut named = BTreeSet::new();
    for resource in request.resources {
        // Whoever asks twice is told once.
        let asked = (resource.resource_type, resource.resource_name.clone(), resource.configuration_keys.clone());
        if !named.insert(asked) {
            continue;
        }
        let entries = match resource.resource_type {
            RESOURCE_TOPIC => topic_entries(broker, &resource.resource_name),
            RESOURCE_BROKER => broker_entries(broker, &resource.resource_name),
            RESOURCE_GROUP => group_entries(broker, &mut groups, &resource.resource_name).await,
            other => Err(Refusal::new(
                ErrorCode::InvalidRequest,
                format!("Resources of type {other} have no configuration."),
            )),
        };
        let mut result = DescribeConfigsResult::default()
            .with_error_message(None)
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match entries {
            Ok(entries) => {
                result.configs = entries
                    .into_iter()
                    .filter(|entry| is_wanted(&resource, entry.name))
                    .map(|entry| {
                        show(context.api_version, request.include_synonyms, request.include_documentation, entry)
                    })
                    .collect();
            }
            Err(refusal) => {
                result.error_code = refusal.error.code();
                result.error_message = Some(refusal.message.into());
            }
        }
        results.push(result);
    }
    DescribeConfigsResponse::default().with_results(results)
}

/// No list of names asks for all, and so does an empty one from some clients.
fn is_wanted(resource: &DescribeConfigsResource, name: &str) -> bool {
    match &resource.configuration_keys {
        None => true,
        Some(keys) => keys.is_empty() || keys.iter().any(|key| key.as_str() == name),
    }
}

fn topic_entries<E: Env>(broker: &Broker<E>, name: &str) -> Result<Vec<Entry>, Refusal> {
    if !topic_config::is_legal_topic_name(name) {
        return Err(ErrorCode::InvalidTopic.into());
    }
    let configs = broker
        .node()
        .directory(|directory| directory.topic(name).map(|topic| topic.configs.clone()))
        .ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let segment_bytes = broker.config().node.segment_bytes;
    let entries = topic_config::shown(&configs, segment_bytes).map(|shown| Entry {
        name: shown.setting.name,
        value: shown.value,
        default: Some(shown.default),
        read_only: false,
        source: source_code(shown.source),
        config_type: shown.setting.config_type,
        documentation: shown.setting.documentation,
    });
    Ok(entries.collect())
}

pub(crate) fn source_code(source: topic_config::Source) -> i8 {
    match source {
        topic_config::Source::Topic => SOURCE_TOPIC,
        topic_config::Source::Broker => SOURCE_STATIC_BROKER,
        topic_config::Source::Default => SOURCE_DEFAULT,
    }
}

async fn group_entries<E: Env>(
    broker: &Broker<E>,
    groups: &mut GroupConfigs<'_, E>,
    group: &str,
) -> Result<Vec<Entry>, Refusal> {
    let config = groups.read(group).await?;
    let entries = group_configs::settings(&broker.config().groups, config).map(|setting| Entry {
        name: setting.name,
        value: setting.value.unwrap_or(setting.default).to_string(),
        default: Some(setting.default.to_string()),
        read_only: false,
        source: if setting.value.is_some() { SOURCE_GROUP } else { SOURCE_DEFAULT },
        config_type: ConfigType::Int,
        documentation: setting.documentation,
    });
    Ok(entries.into())
}

fn broker_entries<E: Env>(broker: &Broker<E>, name: &str) -> Result<Vec<Entry>, Refusal> {
    if name.is_empty() {
        // Defaults for all brokers that were set at run time: there are none.
        return Ok(Vec::new());
    }
    if name.parse() != Ok(broker.node_id()) {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            format!("Unexpected broker id, expected {}, but received {name}", broker.node_id()),
        ));
    }
    let config = broker.config();
    let node = &config.node;
    let entry = |name, value: String, config_type, documentation| Entry {
        name,
        value,
        default: None,
        read_only: true,
        source: SOURCE_STATIC_BROKER,
        config_type,
        documentation,
    };
    let listener = |host: &str, port: u16| format!("PLAINTEXT://{host}:{port}");
    let port = broker.address().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(config.port);
    let durability = match node.durability {
        Durability::Fsync => "fsync",
        Durability::Replicated => "replicated",
    };
    use ConfigType::{Boolean, Int, List, Long, String as Text};
    let replication = usize::from(node.replication).min(node.peers.len());
    Ok(vec![
        entry(
            "advertised.listeners",
            listener(&node.advertised_host, node.advertised_port),
            Text,
            "Where clients reach this broker.",
        ),
        entry(
            "auto.create.topics.enable",
            config.topics.auto_create.to_string(),
            Boolean,
            "Whether a Metadata request may create topics.",
        ),
        entry("broker.id", node.node_id.to_string(), Int, "This broker."),
        entry("default.replication.factor", replication.to_string(), Int, "Replicas of a partition."),
        entry(
            "group.consumer.heartbeat.interval.ms",
            config.groups.heartbeat_interval_ms.to_string(),
            Int,
            "Heartbeat interval of consumer-protocol groups.",
        ),
        entry(
            "group.consumer.session.timeout.ms",
            config.groups.session_timeout_ms.to_string(),
            Int,
            "Session time-out of consumer-protocol groups.",
        ),
        entry(
            "group.initial.rebalance.delay.ms",
            config.groups.initial_rebalance_delay_ms.to_string(),
            Int,
            "How long an empty classic group waits for more members.",
        ),
        entry(
            "group.max.session.timeout.ms",
            config.groups.session_timeout_max_ms.to_string(),
            Int,
            "The longest session time-out a classic member may ask for.",
        ),
        entry("group.max.size", config.groups.members_max.to_string(), Int, "Members of a group, at most."),
        entry(
            "group.min.session.timeout.ms",
            config.groups.session_timeout_min_ms.to_string(),
            Int,
            "The shortest session time-out a classic member may ask for.",
        ),
        entry("listeners", listener(&config.host, port), Text, "Where this broker listens."),
        entry("lockstep.durability", durability.to_owned(), Text, "What an acknowledged write has survived."),
        entry("log.dirs", node.data_dir.display().to_string(), List, "Where partitions are stored."),
        entry(
            "log.retention.check.interval.ms",
            node.retention_check_interval.as_millis().to_string(),
            Long,
            "How often it is looked for records that are to be deleted.",
        ),
        entry("log.segment.bytes", node.segment_bytes.to_string(), Long, "The size of a segment file."),
        entry("max.connections", config.connections_max.to_string(), Int, "Connections served at one time."),
        entry(
            "message.max.bytes",
            topic_config::MAX_MESSAGE_BYTES_DEFAULT.to_string(),
            Int,
            "The largest record batch, unless a topic says otherwise.",
        ),
        entry("node.id", node.node_id.to_string(), Int, "This node."),
        entry(
            "num.partitions",
            config.topics.partitions.to_string(),
            Int,
            "Partitions of a topic, unless said otherwise.",
        ),
        entry(
            "offsets.retention.minutes",
            (node.offsets_retention.as_secs() / 60).to_string(),
            Int,
            "How long committed offsets are kept once nobody reads the topic any more.",
        ),
        entry("socket.request.max.bytes", config.frame_bytes_max.to_string(), Int, "The longest request."),
    ])
}

fn show(
    version: i16,
    include_synonyms: bool,
    include_documentation: bool,
    entry: Entry,
) -> DescribeConfigsResourceResult {
    let name: StrBytes = entry.name.into();
    let synonym = |value: &str, source: i8| {
        DescribeConfigsSynonym::default()
            .with_name(name.clone())
            .with_value(Some(value.to_owned().into()))
            .with_source(source)
    };
    let mut synonyms = Vec::new();
    if include_synonyms {
        if entry.source != SOURCE_DEFAULT {
            synonyms.push(synonym(&entry.value, entry.source));
        }
        if let Some(default) = &entry.default {
            synonyms.push(synonym(default, SOURCE_DEFAULT));
        }
    }
    let mut result = DescribeConfigsResourceResult::default()
        .with_name(name.clone())
        .with_value(Some(entry.value.into()))
        .with_read_only(entry.read_only)
        .with_config_source(entry.source)
        .with_synonyms(synonyms);
    if version >= 3 {
        result.config_type = entry.config_type as i8;
        result.documentation = include_documentation.then(|| entry.documentation.into());
    }
    result
}
