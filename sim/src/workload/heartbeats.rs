//! The consumer protocol (KIP-848) by raw requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_env::Env;
use lockstep_wire::codec::consumer_group_heartbeat_request::TopicPartitions;
use lockstep_wire::codec::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, Uuid};

use crate::env::SimEnv;

use super::coordinator::{group_id, text, topic_name};

pub(super) const HEARTBEAT_VERSION: i16 = 1;

/// Partitions by topic.
pub(super) type Owned = BTreeMap<Uuid, BTreeSet<i32>>;

/// What a member subscribes to.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Topics(Vec<String>),
    /// All topics whose whole name the expression matches.
    Regex(String),
}

/// A member as its client knows it.
#[derive(Clone, Debug)]
pub(super) struct ConsumerMember {
    pub(super) group: String,
    pub(super) member_id: String,
    pub(super) epoch: i32,
    pub(super) wanted: Wanted,
    pub(super) rebalance_timeout: Duration,
    /// What it has, as it tells the coordinator.
    pub(super) owned: Owned,
    /// What it is to have, as the coordinator told last.
    pub(super) target: Owned,
    pub(super) interval: Duration,
    /// An answer was lost, with what it may have assigned: only a request with everything is answered with the assignment again (KIP-848).
    pub(super) must_tell_all: bool,
}

impl ConsumerMember {
    pub(super) fn new(group: &str, name: &str, wanted: Wanted, rebalance_timeout: Duration) -> Self {
        Self {
            group: group.to_owned(),
            member_id: format!("{name}-{}", Uuid::from_bytes(SimEnv::random_uuid()).hyphenated()),
            epoch: 0,
            wanted,
            rebalance_timeout,
            owned: Owned::new(),
            target: Owned::new(),
            interval: Duration::from_secs(1),
            must_tell_all: false,
        }
    }

    /// The next heartbeat: everything when it joins, and after an answer was lost.
    pub(super) fn request(&self) -> ConsumerGroupHeartbeatRequest {
        let owned = self.owned.iter().filter(|(_, partitions)| !partitions.is_empty()).map(|(id, partitions)| {
            TopicPartitions::default().with_topic_id(*id).with_partitions(partitions.iter().copied().collect())
        });
        let request = self.bare_request(self.epoch).with_topic_partitions(Some(owned.collect()));
        if self.epoch != 0 && !self.must_tell_all {
            return request;
        }
        let request = request.with_rebalance_timeout_ms(self.rebalance_timeout.as_millis() as i32);
        match &self.wanted {
            Wanted::Topics(topics) => {
                let names = topics.iter().map(|topic| topic_name(topic)).collect();
                request.with_subscribed_topic_names(Some(names))
            }
            Wanted::Regex(pattern) => request.with_subscribed_topic_regex(Some(text(pattern))),
        }
    }

    /// A heartbeat with nothing but an epoch.
    pub(super) fn bare_request(&self, epoch: i32) -> ConsumerGroupHeartbeatRequest {
        ConsumerGroupHeartbeatRequest::default()
            .with_group_id(group_id(&self.group))
            .with_member_id(text(&self.member_id))
            .with_member_epoch(epoch)
            .with_rebalance_timeout_ms(-1)
            .with_subscribed_topic_names(None)
            .with_topic_partitions(None)
    }

    pub(super) fn hear(&mut self, response: &ConsumerGroupHeartbeatResponse) {
        self.epoch = response.member_epoch;
        self.must_tell_all = false;
        self.interval = Duration::from_millis(u64::try_from(response.heartbeat_interval_ms).unwrap_or(0))
            .clamp(Duration::from_millis(50), Duration::from_secs(5));
        if let Some(assignment) = &response.assignment {
            let topics = assignment.topic_partitions.iter();
            self.target = topics.map(|topic| (topic.topic_id, topic.partitions.iter().copied().collect())).collect();
        }
    }

    /// It is no member any more.
    pub(super) fn begin_anew(&mut self) {
        self.epoch = 0;
        self.owned.clear();
        self.target.clear();
    }
}
