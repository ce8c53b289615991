//! A member of a consumer group that works on nothing.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_env::Env;
use lockstep_env::tokio_env::TokioEnv;
use lockstep_wire::codec::consumer_group_heartbeat_request::TopicPartitions;
use lockstep_wire::codec::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, GroupId, StrBytes, TopicName, Uuid,
};

/// Time to give up partitions: what clients ask for by default.
const REBALANCE_TIMEOUT_MS: i32 = 300_000;
/// Member epoch of one that leaves for good.
const LEAVE_EPOCH: i32 = -1;

/// A partition as heartbeats name it.
pub(super) type Partition = (Uuid, i32);

/// The protocol of a KIP-848 member, and nothing else: no connection, no clock, no records.
///
/// It says what its next heartbeat is, and takes the answers. What is to be given up it gives up at once, what it is given
/// it owns at once, and both are news that the coordinator is to be told without waiting, as clients do that have nothing
/// to finish. One request must be answered, refused or lost before the next.
#[derive(Debug)]
pub(super) struct Member {
    group_id: GroupId,
    member_id: StrBytes,
    topic: TopicName,
    /// 0 until it has joined.
    epoch: i32,
    owned: BTreeSet<Partition>,
    told: Told,
}

/// What the coordinator knows of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Everything,
    /// Not yet what the member owns now.
    NotWhatItOwns,
    /// Perhaps nothing: an answer was lost.
    Unsure,
}

/// What an answer changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) taken: Vec<Partition>,
    pub(super) given: Vec<Partition>,
}

impl Member {
    /// One that has not joined, with an id of its own making.
    pub(super) fn new(group_id: &str, topic: &str) -> Self {
        let member_id = Uuid::from_bytes(TokioEnv::random_uuid()).hyphenated().to_string();
        Self {
            group_id: GroupId(StrBytes::from_string(group_id.to_owned())),
            member_id: StrBytes::from_string(member_id),
            topic: TopicName(StrBytes::from_string(topic.to_owned())),
            epoch: 0,
            owned: BTreeSet::new(),
            told: Told::Unsure,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.member_id
    }

    pub(super) fn epoch(&self) -> i32 {
        self.epoch
    }

    pub(super) fn owned(&self) -> &BTreeSet<Partition> {
        &self.owned
    }

    /// The coordinator has heard what the member owns.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.epoch > 0 && self.told == Told::Everything
    }

    /// The next heartbeat must not wait for its turn.
    pub(super) fn has_news(&self) -> bool {
        self.told == Told::NotWhatItOwns
    }

    /// The next heartbeat; the first one joins.
    pub(super) fn heartbeat(&self) -> ConsumerGroupHeartbeatRequest {
        let mut request = self.request(self.epoch);
        if self.told == Told::Unsure {
            request.rebalance_timeout_ms = REBALANCE_TIMEOUT_MS;
            request.subscribed_topic_names = Some(vec![self.topic.clone()]);
        }
        if self.told != Told::Everything {
            let mut topics: BTreeMap<Uuid, TopicPartitions> = BTreeMap::new();
            for (topic_id, partition) in &self.owned {
                let topic = topics.entry(*topic_id).or_default();
                topic.topic_id = *topic_id;
                topic.partitions.push(*partition);
            }
            request.topic_partitions = Some(topics.into_values().collect());
        }
        request
    }

    /// What it says when it leaves.
    pub(super) fn farewell(&self) -> ConsumerGroupHeartbeatRequest {
        self.request(LEAVE_EPOCH)
    }

    fn request(&self, epoch: i32) -> ConsumerGroupHeartbeatRequest {
        let mut request = ConsumerGroupHeartbeatRequest::default();
        request.group_id = self.group_id.clone();
        request.member_id = self.member_id.clone();
        request.member_epoch = epoch;
        // No news, unless said otherwise.
        request.rebalance_timeout_ms = -1;
        request
    }

    /// The heartbeat was answered without an error.
    pub(super) fn on_answer(&mut self, answer: &ConsumerGroupHeartbeatResponse) -> Change {
        self.epoch = answer.member_epoch;
        self.told = Told::Everything;
        let Some(assignment) = &answer.assignment else { return Change::default() };
        let assigned: BTreeSet<Partition> = assignment
            .topic_partitions
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(|&partition| (topic.topic_id, partition)))
            .collect();
        let change = Change {
            taken: self.owned.difference(&assigned).copied().collect(),
            given: assigned.difference(&self.owned).copied().collect(),
        };
        if change != Change::default() {
            self.owned = assigned;
            self.told = Told::NotWhatItOwns;
        }
        change
    }

    /// No answer came, or not from the coordinator: what was said may not have been heard.
    pub(super) fn on_lost_answer(&mut self) {
        self.told = Told::Unsure;
    }

    /// The coordinator does not know the member any more: it begins anew, with nothing. Gives what it owned.
    pub(super) fn on_fenced(&mut self) -> Vec<Partition> {
        self.epoch = 0;
        self.told = Told::Unsure;
        std::mem::take(&mut self.owned).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_wire::codec::consumer_group_heartbeat_response as answered;

    fn answer(epoch: i32, partitions: Option<&[i32]>) -> ConsumerGroupHeartbeatResponse {
        let mut answer = ConsumerGroupHeartbeatResponse::default();
        answer.member_epoch = epoch;
        answer.assignment = partitions.map(|partitions| {
            let mut topic = answered::TopicPartitions::default();
            topic.partitions = partitions.to_vec();
            let mut assignment = answered::Assignment::default();
            assignment.topic_partitions = vec![topic];
            assignment
        });
        answer
    }

    fn reported(member: &Member) -> Option<Vec<i32>> {
        let topics = member.heartbeat().topic_partitions?;
        Some(topics.into_iter().flat_map(|topic| topic.partitions).collect())
    }

    fn partitions(indexes: &[i32]) -> Vec<Partition> {
        indexes.iter().map(|&index| (Uuid::nil(), index)).collect()
    }

    #[test]
    fn a_change_is_news_until_it_was_heard_and_a_steady_heartbeat_says_nothing() {
        let mut member = Member::new("g", "t");
        let join = member.heartbeat();
        assert_eq!((join.member_epoch, reported(&member)), (0, Some(vec![])));
        assert_eq!(join.subscribed_topic_names.map(|names| names.len()), Some(1));
        assert_eq!(member.on_answer(&answer(1, Some(&[0, 1]))).given, partitions(&[0, 1]));
        assert!(member.has_news() && !member.is_acknowledged());
        assert_eq!(reported(&member), Some(vec![0, 1]));
        assert_eq!(member.on_answer(&answer(1, None)), Change::default());
        assert!(member.is_acknowledged() && !member.has_news());
        let steady = member.heartbeat();
        assert_eq!((steady.member_epoch, steady.topic_partitions, steady.subscribed_topic_names), (1, None, None));
        assert_eq!(member.on_answer(&answer(1, Some(&[1]))).taken, partitions(&[0]));
        assert_eq!(reported(&member), Some(vec![1]));
    }

    #[test]
    fn after_a_lost_answer_everything_is_said_and_after_a_fence_it_joins_again() {
        let mut member = Member::new("g", "t");
        member.on_answer(&answer(3, Some(&[7])));
        member.on_lost_answer();
        assert_eq!((member.heartbeat().member_epoch, reported(&member)), (3, Some(vec![7])));
        assert!(member.heartbeat().subscribed_topic_names.is_some());
        assert_eq!(member.on_fenced(), partitions(&[7]));
        assert_eq!((member.heartbeat().member_epoch, reported(&member)), (0, Some(vec![])));
        assert_eq!(member.farewell().member_epoch, -1);
    }
}
