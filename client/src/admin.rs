//! Topics, groups and the cluster itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::codec::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use lockstep_wire::codec::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use lockstep_wire::codec::delete_topics_request::DeleteTopicState;
use lockstep_wire::codec::describe_configs_request::DescribeConfigsResource;
use lockstep_wire::codec::{
    CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeConfigsRequest, ListGroupsRequest,
    StrBytes, TopicName, Uuid,
};
use lockstep_wire::private::ClusterStatusRequest;
use serde::Serialize;

use crate::client::{Client, Purpose};
use crate::error::{ClientError, ErrorCode, check_code};
use crate::offsets::TopicPartition;
use crate::topology::TopicInfo;

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Name.
    pub name: String,
    /// Number of partitions; `None` for the cluster's default.
    pub partitions: Option<i32>,
    /// Number of copies; `None` for the cluster's default.
    pub replication: Option<i16>,
    /// Configuration that differs from the default, such as `retention.ms`.
    pub configs: BTreeMap<String, String>,
}

impl NewTopic {
    /// A topic with the cluster's default configuration.
    pub fn new(name: impl Into<String>, partitions: i32) -> Self {
        Self { name: name.into(), partitions: Some(partitions), replication: None, configs: BTreeMap::new() }
    }
}

/// A topic that was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreatedTopic {
    /// Name.
    pub name: String,
    /// Id as a UUID.
    pub id: String,
    /// Number of partitions; −1 if the broker does not tell.
    pub partitions: i32,
    /// Number of copies; −1 if the broker does not tell.
    pub replication: i16,
}

/// A setting of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigEntry {
    /// Name, such as `retention.ms`.
    pub name: String,
    /// Value; `None` if it is secret or unset.
    pub value: Option<String>,
    /// Nobody set it: it is the default.
    pub is_default: bool,
}

/// A group as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupListing {
    /// Group.
    pub group_id: String,
    /// `consumer` or `classic`; empty if the broker does not tell.
    pub group_type: String,
    /// What its members agreed to be, `consumer` mostly.
    pub protocol_type: String,
    /// State, such as `Stable`; empty if the broker does not tell.
    pub state: String,
}

/// Creates, lists and deletes.
#[derive(Clone, Debug)]
pub struct Admin<E: Env = TokioEnv> {
    client: Client<E>,
}

impl<E: Env> Admin<E> {
    /// An administrator of the client's cluster.
    pub fn new(client: &Client<E>) -> Self {
        Self { client: client.clone() }
    }

    /// The client it was made from.
    pub fn client(&self) -> &Client<E> {
        &self.client
    }

    fn timeout_ms(&self) -> i32 {
        i32::try_from(self.client.patience().as_millis()).unwrap_or(i32::MAX)
    }

    /// Creates a topic. It can be used when this returns.
    ///
    /// # Errors
    /// The topic exists, its name or numbers are not allowed, or the cluster did not answer in time. After a lost
    /// answer the retry may find the topic that the first attempt created; that is then an error too.
    pub async fn create_topic(&self, topic: &NewTopic) -> Result<CreatedTopic, ClientError> {
        let what = || format!("creating topic {}", topic.name);
        let mut retry = self.client.retry(what());
        loop {
            match self.try_create_topic(topic).await {
                Ok(created) => {
                    // Until a leader is elected nothing could be sent to it.
                    self.wait_for_leaders(&topic.name, retry.left()).await?;
                    return Ok(created);
                }
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    async fn wait_for_leaders(&self, name: &str, left: std::time::Duration) -> Result<(), ClientError> {
        let mut retry = crate::retry::Retry::<E>::new(format!("electing leaders of topic {name}"), left);
        loop {
            let topic = self.client.topic(name, false).await?;
            if topic.partitions.iter().all(|partition| partition.leader.is_some()) {
                return Ok(());
            }
            retry
                .pause(ClientError::broker(format!("topic {name}"), ErrorCode::LeaderNotAvailable.code(), None))
                .await?;
        }
    }

    async fn try_create_topic(&self, topic: &NewTopic) -> Result<CreatedTopic, ClientError> {
        let timeout_ms = self.timeout_ms();
        let (address, response) = self
            .client
            .tell_any(|_| {
                let mut creatable = CreatableTopic::default();
                creatable.name = topic_name(&topic.name);
                creatable.num_partitions = topic.partitions.unwrap_or(-1);
                creatable.replication_factor = topic.replication.unwrap_or(-1);
                creatable.configs = topic
                    .configs
                    .iter()
                    .map(|(name, value)| {
                        let mut config = CreatableTopicConfig::default();
                        config.name = StrBytes::from_string(name.clone());
                        config.value = Some(StrBytes::from_string(value.clone()));
                        config
                    })
                    .collect();
                let mut request = CreateTopicsRequest::default();
                request.topics = vec![creatable];
                request.timeout_ms = timeout_ms;
                request
            })
            .await?;
        let result = response.topics.first().ok_or_else(|| ClientError::bad_answer(&address, "no result"))?;
        check_code(|| format!("creating topic {}", topic.name), result.error_code, result.error_message.as_deref())?;
        Ok(CreatedTopic {
            name: topic.name.clone(),
            id: format_uuid(result.topic_id),
            partitions: result.num_partitions,
            replication: result.replication_factor,
        })
    }

    /// Deletes a topic with all that it holds.
    ///
    /// # Errors
    /// The topic does not exist, or the cluster did not answer in time.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let mut retry = self.client.retry(format!("deleting topic {name}"));
        loop {
            match self.try_delete_topic(name).await {
                Ok(()) => return Ok(()),
                // Not retried: the topic will not come to be by waiting.
                Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => return Err(error),
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    async fn try_delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let timeout_ms = self.timeout_ms();
        let (address, response) = self
            .client
            .tell_any(|version| {
                let mut request = DeleteTopicsRequest::default();
                request.timeout_ms = timeout_ms;
                if version >= 6 {
                    let mut topic = DeleteTopicState::default();
                    topic.name = Some(topic_name(name));
                    request.topics = vec![topic];
                } else {
                    request.topic_names = vec![topic_name(name)];
                }
                request
            })
            .await?;
        let result = response.responses.first().ok_or_else(|| ClientError::bad_answer(&address, "no result"))?;
        check_code(|| format!("deleting topic {name}"), result.error_code, result.error_message.as_deref())
    }

    /// Deletes the records of partitions below the given offsets, or all that there are by then (`None`). Gives each partition's first offset
    /// afterwards, which is higher than asked for where more was deleted before.
    ///
    /// # Errors
    /// A partition does not exist or ends before the offset, its topic is compacted only, or a leader did not answer in time. Records
    /// of other partitions may be deleted then.
    pub async fn delete_records(
        &self,
        before: &BTreeMap<TopicPartition, Option<i64>>,
    ) -> Result<BTreeMap<TopicPartition, i64>, ClientError> {
        let mut starts = BTreeMap::new();
        let mut left = before.clone();
        let mut retry = self.client.retry("deleting records");
        loop {
            let topics: BTreeSet<Arc<str>> = left.keys().map(|at| Arc::clone(&at.topic)).collect();
            for name in topics {
                self.client.topic(&name, false).await?;
            }
            let mut by_leader: BTreeMap<i32, BTreeMap<TopicPartition, Option<i64>>> = BTreeMap::new();
            let mut failed = None;
            for (at, offset) in &left {
                let topic = self.client.cached_topic(&at.topic);
                let refused = |code: ErrorCode| ClientError::broker(format!("partition {at}"), code.code(), None);
                match topic.as_ref().map(|topic| topic.partition(at.partition)) {
                    Some(None) => return Err(refused(ErrorCode::UnknownTopicOrPartition)),
                    Some(Some(partition)) if partition.leader.is_some() => {
                        by_leader.entry(partition.leader.unwrap_or(-1)).or_default().insert(at.clone(), *offset);
                    }
                    _ => failed = Some(refused(ErrorCode::LeaderNotAvailable)),
                }
            }
            for (leader, wanted) in by_leader {
                match self.try_delete_records(leader, &wanted).await {
                    Ok(results) => {
                        for (at, result) in results {
                            match result {
                                Ok(start) => {
                                    left.remove(&at);
                                    starts.insert(at, start);
                                }
                                Err(error) => failed = Some(error),
                            }
                        }
                    }
                    Err(error) => failed = Some(error),
                }
            }
            if left.is_empty() {
                return Ok(starts);
            }
            let unanswered = || ClientError::bad_answer("the leader", "nothing said of some partitions");
            retry.pause(failed.unwrap_or_else(unanswered)).await?;
        }
    }

    #[expect(clippy::type_complexity, reason = "an outcome for each partition")]
    async fn try_delete_records(
        &self,
        leader: i32,
        wanted: &BTreeMap<TopicPartition, Option<i64>>,
    ) -> Result<Vec<(TopicPartition, Result<i64, ClientError>)>, ClientError> {
        /// Kafka's `DeleteRecordsRequest.HIGH_WATERMARK`.
        const END: i64 = -1;
        let timeout_ms = self.timeout_ms();
        let address = self.client.address_of(leader)?;
        let request = |_| {
            let mut topics: BTreeMap<&Arc<str>, DeleteRecordsTopic> = BTreeMap::new();
            for (at, offset) in wanted {
                let topic = topics.entry(&at.topic).or_default();
                topic.name = topic_name(&at.topic);
                let mut partition = DeleteRecordsPartition::default();
                partition.partition_index = at.partition;
                partition.offset = offset.unwrap_or(END);
                topic.partitions.push(partition);
            }
            let mut request = DeleteRecordsRequest::default();
            request.topics = topics.into_values().collect();
            request.timeout_ms = timeout_ms;
            request
        };
        let response = self.client.ask(&address, Purpose::General, self.client.patience(), request).await?;
        let mut results = Vec::with_capacity(wanted.len());
        for topic in response.topics {
            for partition in topic.partitions {
                let at = TopicPartition::new(topic.name.as_str(), partition.partition_index);
                let outcome = check_code(|| format!("deleting records of {at}"), partition.error_code, None);
                results.push((at, outcome.map(|()| partition.low_watermark)));
            }
        }
        Ok(results)
    }

    /// All topics.
    ///
    /// # Errors
    /// The cluster did not answer in time.
    pub async fn list_topics(&self) -> Result<Vec<Arc<TopicInfo>>, ClientError> {
        self.client.all_topics().await
    }

    /// One topic.
    ///
    /// # Errors
    /// The topic does not exist, or the cluster did not answer in time.
    pub async fn describe_topic(&self, name: &str) -> Result<Arc<TopicInfo>, ClientError> {
        self.client.topic(name, false).await
    }

    /// The settings of a topic.
    ///
    /// # Errors
    /// The topic does not exist, or the cluster did not answer in time.
    pub async fn topic_configs(&self, name: &str) -> Result<Vec<ConfigEntry>, ClientError> {
        const TOPIC: i8 = 2;
        const SOURCE_DEFAULT: i8 = 5;
        let mut retry = self.client.retry(format!("settings of topic {name}"));
        loop {
            let attempt = async {
                let (address, response) = self
                    .client
                    .ask_any(|_| {
                        let mut resource = DescribeConfigsResource::default();
                        resource.resource_type = TOPIC;
                        resource.resource_name = StrBytes::from_string(name.to_owned());
                        resource.configuration_keys = None;
                        let mut request = DescribeConfigsRequest::default();
                        request.resources = vec![resource];
                        request
                    })
                    .await?;
                let result = response
                    .results
                    .into_iter()
                    .next()
                    .ok_or_else(|| ClientError::bad_answer(&address, "no result"))?;
                check_code(|| format!("settings of topic {name}"), result.error_code, result.error_message.as_deref())?;
                Ok(result)
            };
            match attempt.await {
                Ok(result) => {
                    let entry =
                        |config: &lockstep_wire::codec::describe_configs_response::DescribeConfigsResourceResult| {
                            ConfigEntry {
                                name: config.name.to_string(),
                                value: config.value.as_ref().map(ToString::to_string),
                                is_default: config.config_source == SOURCE_DEFAULT,
                            }
                        };
                    return Ok(result.configs.iter().map(entry).collect());
                }
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    /// All groups of both protocols, merged over all brokers, by id. Brokers that are down coordinate nothing and are
    /// passed over, as long as one answers.
    ///
    /// # Errors
    /// No broker answered in time.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>, ClientError> {
        let mut retry = self.client.retry("listing groups");
        loop {
            self.client.refresh(&[], false).await?;
            match self.try_list_groups().await {
                Ok(groups) => return Ok(groups),
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    async fn try_list_groups(&self) -> Result<Vec<GroupListing>, ClientError> {
        let mut groups = BTreeMap::new();
        let mut answered = false;
        let mut failed = None;
        // A broker that is gone must not use up the time of the others.
        let patience = self.client.patience() / 4;
        for address in self.client.brokers().into_values() {
            let request = |_| ListGroupsRequest::default();
            let response = match self.client.ask(&address, Purpose::General, patience, request).await {
                Ok(response) => response,
                Err(error) => {
                    tracing::warn!(address, %error, "groups of this broker are not listed");
                    failed = Some(error);
                    continue;
                }
            };
            // A coordinator that is still loading knows groups that it does not name yet.
            check_code(|| "listing groups".to_owned(), response.error_code, None)?;
            answered = true;
            for group in response.groups {
                let listing = GroupListing {
                    group_id: group.group_id.to_string(),
                    group_type: group.group_type.to_lowercase(),
                    protocol_type: group.protocol_type.to_string(),
                    state: group.group_state.to_string(),
                };
                groups.insert(listing.group_id.clone(), listing);
            }
        }
        match failed {
            Some(error) if !answered => Err(error),
            _ => Ok(groups.into_values().collect()),
        }
    }

    /// Nodes and shards, as a JSON document. Only Lockstep's brokers know this request.
    ///
    /// # Errors
    /// The cluster did not answer in time.
    pub async fn cluster_status(&self) -> Result<Bytes, ClientError> {
        let mut retry = self.client.retry("cluster status");
        loop {
            let attempt = async {
                let (_, response) = self.client.ask_any(|_| ClusterStatusRequest {}).await?;
                check_code(|| "cluster status".to_owned(), response.error_code, None)?;
                Ok(response.json)
            };
            match attempt.await {
                Ok(json) => return Ok(json),
                Err(error) => retry.pause(error).await?,
            }
        }
    }
}

pub(crate) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// A UUID in its usual form.
pub(crate) fn format_uuid(id: Uuid) -> String {
    id.hyphenated().to_string()
}
