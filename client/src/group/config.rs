//! How a member of a group behaves.

use std::time::Duration;

use crate::error::ClientError;
use crate::fetcher::{FetchConfig, OffsetReset};

/// Who a consumer is in its group, and how it behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConsumerConfig {
    /// Group.
    pub group_id: String,
    /// Name of the consumer, for people. Its id in the group begins with it and is unique.
    pub consumer_id: String,
    /// Name under which it comes back after a restart and finds its partitions again (static membership); no other
    /// member may have it.
    pub instance_id: Option<String>,
    /// Topics to share in.
    pub topics: Vec<String>,
    /// Without contact to the coordinator for so long, the consumer takes its partitions as lost. The coordinator has
    /// its own time-out for members that it does not hear from, 45 s by default; this should not be longer.
    pub session_timeout: Duration,
    /// How long the caller may take from one poll to the next when partitions must be handed over; past it the
    /// coordinator removes the member.
    pub rebalance_timeout: Duration,
    /// Assignor of the coordinator, `uniform` or `range`; `None` for the coordinator's choice.
    pub assignor: Option<String>,
    /// How much is fetched at a time, and where a partition without committed offset begins.
    pub fetch: FetchConfig,
}

impl GroupConsumerConfig {
    /// A consumer with the usual time-outs. Partitions without committed offset are read from their beginning.
    pub fn new(group_id: impl Into<String>, consumer_id: impl Into<String>, topics: Vec<String>) -> Self {
        Self {
            group_id: group_id.into(),
            consumer_id: consumer_id.into(),
            instance_id: None,
            topics,
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(60),
            assignor: None,
            fetch: FetchConfig { reset: OffsetReset::Earliest, ..FetchConfig::default() },
        }
    }

    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let invalid = |text: &str| Err(ClientError::InvalidArgument(text.to_owned()));
        if self.group_id.is_empty() {
            return invalid("the group id is empty");
        }
        if self.topics.is_empty() {
            return invalid("a group consumer needs a topic");
        }
        if self.session_timeout < Duration::from_millis(100) || self.rebalance_timeout < Duration::from_millis(100) {
            return invalid("session and rebalance time-out must be at least 100 ms");
        }
        Ok(())
    }
}
