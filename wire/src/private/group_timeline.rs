//! What happened to a group lately: why it rebalanced.

use proto_kafka::error::Result;
use proto_kafka::protocol::buf::{ByteBuf, ByteBufMut};
use serde::{Deserialize, Serialize};

use super::{JsonResponse, PrivateRequest, get_text, private_request, put_text};

/// Asks any broker what happened to a group lately. Key 32001, version 0; the body is the group's id: a length (u16) and as
/// many bytes.
///
/// The answer is a linearizable read: it shows every change that was acknowledged before the request, whichever broker is
/// asked. Errors: INVALID_GROUP_ID (empty), GROUP_ID_NOT_FOUND, COORDINATOR_NOT_AVAILABLE (no majority was reached in time),
/// NOT_COORDINATOR (the broker keeps no copy of the group).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupTimelineRequest {
    /// Group.
    pub group_id: String,
}

/// Answers [`GroupTimelineRequest`] with a [`GroupTimeline`].
pub type GroupTimelineResponse = JsonResponse<GroupTimelineRequest>;

impl PrivateRequest for GroupTimelineRequest {
    const NAME: &'static str = "GroupTimelineRequest";

    fn put<B: ByteBufMut>(&self, buf: &mut B) -> Result<()> {
        put_text(buf, "group_id", &self.group_id)
    }

    fn get<B: ByteBuf>(buf: &mut B) -> Result<Self> {
        Ok(Self { group_id: get_text(buf)? })
    }

    fn len(&self) -> usize {
        2 + self.group_id.len()
    }
}

private_request!(GroupTimelineRequest);

/// What happened to a group lately, and where it stands. Times are milliseconds since 1970, by the wall clocks of the brokers
/// that coordinated the group then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupTimeline {
    /// Group.
    pub group_id: String,
    /// `consumer` or `classic`.
    pub group_type: String,
    /// State, such as `Stable`.
    pub state: String,
    /// Generation (classic) or group epoch (consumer).
    pub epoch: i32,
    /// Since when a rebalance is under way; `null` when the group is settled, or the time is not known.
    pub rebalance_since_ms: Option<i64>,
    /// Oldest first, the last 64 at most; fewer when they are large.
    pub events: Vec<TimelineEvent>,
}

/// Something that happened to a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// Where it stands in the log of the group's shard. Events of one entry have the same index.
    pub index: u64,
    /// When; `null` for changes of topics, which carry no time.
    pub at_ms: Option<i64>,
    /// Generation or group epoch before; `null` for the oldest event that is remembered.
    pub epoch_before: Option<i32>,
    /// Generation or group epoch after: the one that the event caused, when it is another. Events of one log entry share both.
    pub epoch: i32,
    /// What: the field `event`, and the fields of that event.
    #[serde(flatten)]
    pub what: TimelineEventKind,
}

/// What happened to a group. Member ids that are longer than 300 bytes are cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TimelineEventKind {
    /// A member came.
    Joined {
        /// Who.
        member_id: String,
        /// Static membership.
        instance_id: Option<String>,
        /// What its client calls itself.
        client_id: String,
        /// Where from.
        client_host: String,
    },
    /// Classic: a member joined again and asked for a new generation by that.
    Rejoined {
        /// Who.
        member_id: String,
    },
    /// A new process of a static member took its place.
    Replaced {
        /// Who.
        member_id: String,
        /// The new process's member id.
        by: String,
    },
    /// A static member left for a while.
    Away {
        /// Who.
        member_id: String,
    },
    /// A member left, or was removed by an administrator.
    Left {
        /// Who.
        member_id: String,
    },
    /// A member was removed because it did not do something in time.
    Expired {
        /// Who.
        member_id: String,
        /// `session` (no heartbeat within the session time-out), `rebalance` (did not rejoin, did not send SyncGroup, or did
        /// not give up revoked partitions within the rebalance time-out) or `pending` (never came back with the id that it was
        /// given).
        reason: String,
        /// How long nothing had been heard from it, in milliseconds; 0 when it was there and did not rejoin.
        silent_ms: u64,
    },
    /// A member subscribes to other topics.
    Subscribed {
        /// Who.
        member_id: String,
    },
    /// A regular expression matches other topics than before.
    RegexResolved {
        /// Which one.
        regex: String,
        /// How many topics it matches.
        topics: u32,
    },
    /// Topics that the group subscribes to were made, deleted, or got more partitions.
    TopicsChanged,
    /// Classic: a generation began, and waits for its assignment.
    Generation {
        /// Who leads.
        leader: String,
        /// How many members it has.
        members: u32,
    },
    /// The assignment was computed (consumer) or supplied by the group's leader (classic).
    Assigned {
        /// By which assignor.
        assignor: String,
        /// What goes from whom to whom.
        moves: Vec<PartitionsMoved>,
        /// Partitions that go elsewhere too and are not listed.
        omitted: u32,
    },
    /// Everybody has what it is assigned: the rebalance is over.
    Settled {
        /// Milliseconds since the rebalance began; `null` when that time is not known.
        after_ms: Option<u64>,
    },
    /// The group changed its protocol.
    Migrated {
        /// `consumer` or `classic`.
        to: String,
    },
    /// An event that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Partitions that go from one member to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionsMoved {
    /// Who had them; `null`: nobody.
    pub from: Option<String>,
    /// Who gets them; `null`: nobody.
    pub to: Option<String>,
    /// Which.
    pub topics: Vec<TopicPartitions>,
}

/// Partitions of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicPartitions {
    /// The topic's name; `null` when it was deleted since.
    pub topic: Option<String>,
    /// The topic's id, a UUID.
    pub topic_id: String,
    /// Indexes, ascending.
    pub partitions: Vec<u32>,
}
