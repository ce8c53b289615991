//! Finding topics in the directory, and making them.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_core::op::CreateTopic;
use lockstep_core::{Directory, Op, Reply, ShardId, TopicId, TopicRecord};
use lockstep_env::Env;
use lockstep_wire::codec::{TopicName, Uuid};

use crate::broker::Broker;
use crate::error_code::ErrorCode;
use crate::topic_config;

/// How long a handler waits for this node to see the newest directory before it says that a topic is unknown.
const FRESH_DIRECTORY_TIMEOUT: Duration = Duration::from_millis(500);

/// How a request names a topic: newer versions do it by id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TopicKey {
    Name(String),
    Id(TopicId),
}

impl TopicKey {
    /// By id if `by_id`, else by name.
    pub(crate) fn of(by_id: bool, name: &TopicName, id: &Uuid) -> Self {
        if by_id { Self::Id(topic_id(id)) } else { Self::Name(name.to_string()) }
    }

    pub(crate) fn find<'a>(&self, directory: &'a Directory) -> Option<&'a TopicRecord> {
        match self {
            Self::Name(name) => directory.topic(name),
            Self::Id(id) => directory.topics.get(id),
        }
    }

    /// What a client is told when there is no such topic.
    pub(crate) fn unknown(&self) -> ErrorCode {
        match self {
            Self::Name(_) => ErrorCode::UnknownTopicOrPartition,
            Self::Id(_) => ErrorCode::UnknownTopicId,
        }
    }
}

pub(crate) fn topic_id(id: &Uuid) -> TopicId {
    TopicId(*id.as_bytes())
}

pub(crate) fn uuid(id: TopicId) -> Uuid {
    Uuid::from_bytes(id.0)
}

/// What requests for records need to know of a topic.
#[derive(Clone, Debug)]
pub(crate) struct LocatedTopic {
    pub(crate) id: TopicId,
    pub(crate) max_message_bytes: usize,
    /// Of each key only the last record is kept: every record must have one.
    pub(crate) is_compacted: bool,
    /// For each partition asked for, the shard that hosts it; `None` when there is no such partition.
    pub(crate) shards: Vec<Option<ShardId>>,
}

/// Looks a topic up, with those of its partitions that are asked for.
pub(crate) fn locate<E: Env>(
    broker: &Broker<E>,
    key: &TopicKey,
    partitions: impl Iterator<Item = i32>,
) -> Result<LocatedTopic, ErrorCode> {
    broker.node().directory(|directory| {
        let topic = key.find(directory).ok_or_else(|| key.unknown())?;
        Ok(LocatedTopic {
            id: topic.id,
            max_message_bytes: topic_config::max_message_bytes(topic),
            is_compacted: topic.compaction().is_some(),
            shards: partitions.map(|index| topic.partitions.get(usize::try_from(index).ok()?).copied()).collect(),
        })
    })
}

/// Waits until this node's directory shows everything that was decided before the call, so that "unknown" is not merely
/// "not yet heard of". `false`: shard 0 has no leader that can be reached, and the directory is as fresh as can be had.
pub(crate) async fn freshen_directory<E: Env>(broker: &Broker<E>) -> bool {
    match broker.node().fresh_directory(FRESH_DIRECTORY_TIMEOUT).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "the directory may be out of date");
            false
        }
    }
}

/// A topic that was not made, with a sentence for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) error: ErrorCode,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(error: ErrorCode, message: impl Into<String>) -> Self {
        Self { error, message: message.into() }
    }
}

impl From<ErrorCode> for Refusal {
    fn from(error: ErrorCode) -> Self {
        Self::new(error, error.message())
    }
}

/// Makes a topic. The caller has checked the configuration.
pub(crate) async fn create<E: Env>(
    broker: &Broker<E>,
    name: String,
    partitions: u32,
    configs: BTreeMap<String, String>,
    timeout: Duration,
) -> Result<TopicRecord, Refusal> {
    let topic_id = TopicId(E::random_uuid());
    let op = Op::CreateTopic(CreateTopic { topic_id, name, partitions, configs });
    let topic = change(broker, op, timeout).await?;
    tracing::info!(topic = topic.name, partitions, id = %topic.id, "topic created");
    Ok(topic)
}

/// Proposes a change of a topic wherever shard 0 is led; gives the record as it then is (as it was, when deleted).
pub(crate) async fn change<E: Env>(broker: &Broker<E>, op: Op, timeout: Duration) -> Result<TopicRecord, Refusal> {
    match broker.node().forward(ShardId::METADATA, op, timeout).await {
        Ok(Reply::Topic(Ok(topic))) => Ok(topic),
        Ok(Reply::Topic(Err(error))) => Err(ErrorCode::of_topic(&error).into()),
        Ok(other) => {
            tracing::error!(?other, "a reply of another kind to a change of a topic");
            Err(ErrorCode::UnknownServerError.into())
        }
        Err(error) => Err(Refusal::new(ErrorCode::of_controller(&error), error.to_string())),
    }
}

/// After a change of the directory to `version`: waits until every shard's leader and this node know it, for at most `timeout`.
pub(crate) async fn settle<E: Env>(broker: &Broker<E>, version: u64, timeout: Duration) -> bool {
    let everywhere = broker.node().wait_metadata(version, timeout).await;
    if !everywhere {
        tracing::warn!(version, "some shards have not heard of the newest topics yet");
    }
    freshen_directory(broker).await;
    everywhere
}
