//! Consuming partitions that the caller chooses, without a group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;

use crate::client::Client;
use crate::error::ClientError;
use crate::fetcher::{FetchConfig, Fetcher, Message, StartAt};
use crate::offsets::{OffsetAt, TopicPartition};

/// Reads partitions that are assigned by hand.
#[derive(Debug)]
pub struct Consumer<E: Env = TokioEnv> {
    client: Client<E>,
    fetcher: Fetcher<E>,
}

impl<E: Env> Consumer<E> {
    /// A consumer of the client's cluster that reads nothing yet. Must be called within the environment's tasks.
    pub fn new(client: &Client<E>, config: FetchConfig) -> Self {
        Self { client: client.clone(), fetcher: Fetcher::new(client, config) }
    }

    /// Reads exactly these partitions from now on. One that is read already goes on from `StartAt`.
    ///
    /// # Errors
    /// A topic or partition does not exist.
    pub async fn assign(&self, partitions: &BTreeMap<TopicPartition, StartAt>) -> Result<(), ClientError> {
        for at in partitions.keys() {
            let topic = match self.client.cached_topic(&at.topic) {
                Some(topic) if topic.partition(at.partition).is_some() => topic,
                _ => self.client.topic(&at.topic, false).await?,
            };
            if topic.partition(at.partition).is_none() {
                let count = topic.partitions.len();
                let text = format!("topic {} has {count} partitions, none with index {}", at.topic, at.partition);
                return Err(ClientError::InvalidArgument(text));
            }
        }
        for at in self.fetcher.partitions().iter().filter(|at| !partitions.contains_key(at)) {
            self.fetcher.stop(at);
        }
        for (at, &start) in partitions {
            self.fetcher.start(at.clone(), start);
        }
        Ok(())
    }

    /// Reads all partitions of a topic from `start` on.
    ///
    /// # Errors
    /// The topic does not exist.
    pub async fn assign_topic(&self, topic: &str, start: StartAt) -> Result<(), ClientError> {
        let info = self.client.topic(topic, false).await?;
        let partitions = info.partitions.iter();
        let partitions = partitions.map(|info| (TopicPartition::new(topic, info.index), start)).collect();
        self.assign(&partitions).await
    }

    /// Partitions that are read.
    pub fn assignment(&self) -> BTreeSet<TopicPartition> {
        self.fetcher.partitions()
    }

    /// Goes on elsewhere in a partition that is read.
    ///
    /// # Errors
    /// The partition is not assigned.
    pub fn seek(&self, at: &TopicPartition, start: StartAt) -> Result<(), ClientError> {
        if !self.fetcher.partitions().contains(at) {
            return Err(ClientError::InvalidArgument(format!("{at} is not assigned")));
        }
        self.fetcher.start(at.clone(), start);
        Ok(())
    }

    /// The offset of the next message to come from a partition; `None` while the leader is asked where to begin, or if
    /// it is not assigned.
    pub fn position(&self, at: &TopicPartition) -> Option<i64> {
        self.fetcher.position(at)
    }

    /// The offsets that the next records of the assigned partitions will get.
    ///
    /// # Errors
    /// A leader did not answer within the time-out.
    pub async fn end_offsets(&self) -> Result<BTreeMap<TopicPartition, i64>, ClientError> {
        let places = self.fetcher.partitions().into_iter().map(|at| (at, OffsetAt::Latest)).collect();
        self.client.offsets(&places).await
    }

    /// Up to `count_max` messages of one partition, waited for up to `timeout` if there are none. Messages of a
    /// partition come in order.
    ///
    /// # Errors
    /// Reading failed in a way that waiting does not mend. What was read before is not lost; the next call goes on.
    pub async fn poll(&self, count_max: usize, timeout: Duration) -> Result<Vec<Message>, ClientError> {
        self.fetcher.poll(count_max, E::now() + timeout).await
    }

    /// The next message, waited for as long as it takes.
    ///
    /// # Errors
    /// As [`Consumer::poll`].
    pub async fn next(&self) -> Result<Message, ClientError> {
        loop {
            let mut messages = self.fetcher.take(1)?;
            match messages.pop() {
                Some(message) => return Ok(message),
                None => self.fetcher.ready().await,
            }
        }
    }
}
