//! Offsets of partitions, by time and at the ends, asked of their leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstep_env::Env;
use lockstep_wire::codec::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use lockstep_wire::codec::{BrokerId, ListOffsetsRequest};

use crate::admin::topic_name;
use crate::client::{Client, Purpose};
use crate::error::{ClientError, ErrorCode};
use crate::succession::Role;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct TopicPartition {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
}

impl TopicPartition {
    /// The partition with this index of this topic.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A place in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetAt {
    /// The first offset that is kept.
    Earliest,
    /// The offset that the next record will get.
    Latest,
    /// The first record whose timestamp, in milliseconds since 1970, is this or later; the end if there is none.
    Time(i64),
}

impl OffsetAt {
    fn timestamp(self) -> i64 {
        match self {
            OffsetAt::Latest => -1,
            OffsetAt::Earliest => -2,
            OffsetAt::Time(timestamp) => timestamp.max(0),
        }
    }
}

impl<E: Env> Client<E> {
    /// The offsets of all `places`. All leaders are asked at the same time, and asked again until every one has
    /// answered.
    ///
    /// # Errors
    /// A partition does not exist, or a leader did not answer within the time-out.
    pub async fn offsets(
        &self,
        places: &BTreeMap<TopicPartition, OffsetAt>,
    ) -> Result<BTreeMap<TopicPartition, i64>, ClientError> {
        let mut found = BTreeMap::new();
        let mut missing = places.clone();
        let mut retry = self.retry("finding offsets");
        let mut must_refresh = false;
        loop {
            let topics: BTreeSet<Arc<str>> = missing
                .keys()
                .map(|at| &at.topic)
                .filter(|name| must_refresh || self.cached_topic(name).is_none())
                .cloned()
                .collect();
            for name in topics {
                self.topic(&name, false).await?;
            }
            let (asked, mut error) = self.ask_leaders(&missing);
            let mut ends = Vec::new();
            for answers in asked {
                match answers.await {
                    Ok(Ok(answers)) => {
                        for (at, result) in answers {
                            match result {
                                Ok(-1) if matches!(places.get(&at), Some(OffsetAt::Time(_))) => ends.push(at),
                                Ok(offset) => {
                                    missing.remove(&at);
                                    found.insert(at, offset);
                                }
                                Err(refused) => error = Some(refused),
                            }
                        }
                    }
                    Ok(Err(failed)) => error = Some(failed),
                    Err(failed) => error = Some(ClientError::InvalidArgument(failed.to_string())),
                }
            }
            // No record is as late as asked for: the end is next.
            for at in ends {
                missing.insert(at, OffsetAt::Latest);
            }
            if missing.is_empty() {
                return Ok(found);
            }
            if let Some(error) = error {
                must_refresh = true;
                retry.pause(error).await?;
            }
        }
    }

    /// Starts a task for every leader. Gives an error if a partition has none.
    #[expect(clippy::type_complexity, reason = "a list of tasks, each with a list of results")]
    fn ask_leaders(
        &self,
        places: &BTreeMap<TopicPartition, OffsetAt>,
    ) -> (Vec<E::Task<Result<Vec<(TopicPartition, Result<i64, ClientError>)>, ClientError>>>, Option<ClientError>) {
        let mut by_leader: BTreeMap<i32, BTreeMap<TopicPartition, OffsetAt>> = BTreeMap::new();
        let mut error = None;
        for (at, &place) in places {
            let topic = self.cached_topic(&at.topic);
            let Some(partition) = topic.as_ref().and_then(|topic| topic.partition(at.partition)) else {
                let code = ErrorCode::UnknownTopicOrPartition.code();
                error = Some(ClientError::broker(format!("partition {at}"), code, None));
                continue;
            };
            match partition.leader {
                Some(leader) => {
                    by_leader.entry(leader).or_default().insert(at.clone(), place);
                }
                None => {
                    let code = ErrorCode::LeaderNotAvailable.code();
                    error = Some(ClientError::broker(format!("partition {at}"), code, None));
                }
            }
        }
        let tasks = by_leader
            .into_iter()
            .map(|(leader, places)| {
                let client = self.clone();
                E::spawn(async move { client.ask_leader(leader, &places).await })
            })
            .collect();
        (tasks, error)
    }

    async fn ask_leader(
        &self,
        leader: i32,
        places: &BTreeMap<TopicPartition, OffsetAt>,
    ) -> Result<Vec<(TopicPartition, Result<i64, ClientError>)>, ClientError> {
        let address = self.address_of(leader)?;
        let patience = self.patience().min(Duration::from_secs(10));
        let partitions = places.keys().map(|at| (Arc::clone(&at.topic), at.partition)).collect();
        let role = Role::Leader { broker: leader, partitions };
        let response = self
            .ask_in_role(&address, &role, Purpose::Question, patience, |_| {
                let mut topics: BTreeMap<&Arc<str>, ListOffsetsTopic> = BTreeMap::new();
                for (at, place) in places {
                    let topic = topics.entry(&at.topic).or_default();
                    topic.name = topic_name(&at.topic);
                    let mut partition = ListOffsetsPartition::default();
                    partition.partition_index = at.partition;
                    partition.timestamp = place.timestamp();
                    topic.partitions.push(partition);
                }
                let mut request = ListOffsetsRequest::default();
                request.replica_id = BrokerId(-1);
                request.topics = topics.into_values().collect();
                request
            })
            .await?;
        let mut answers = Vec::new();
        for topic in response.topics {
            let name: Arc<str> = Arc::from(topic.name.as_str());
            for partition in topic.partitions {
                let at = TopicPartition::new(Arc::clone(&name), partition.partition_index);
                let result = match partition.error_code {
                    0 => Ok(partition.offset),
                    code => Err(ClientError::broker(format!("offset of {at}"), code, None)),
                };
                answers.push((at, result));
            }
        }
        if answers.iter().filter(|(at, _)| places.contains_key(at)).count() != places.len() {
            return Err(ClientError::bad_answer(&address, "offsets of other partitions than asked for"));
        }
        Ok(answers)
    }
}
