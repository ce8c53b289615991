//! What a history consists of.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A partition of a topic; written as `topic-0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Partition {
    /// Topic.
    pub topic: String,
    /// Number in the topic, from 0.
    pub index: i32,
}

impl Partition {
    /// A partition of a topic.
    pub fn new(topic: impl Into<String>, index: i32) -> Self {
        Self { topic: topic.into(), index }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.index)
    }
}

impl From<Partition> for String {
    fn from(partition: Partition) -> Self {
        partition.to_string()
    }
}

/// The text is not `topic-0`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a topic, a hyphen and the number of a partition: {0:?}")]
pub struct NoPartition(String);

impl TryFrom<String> for Partition {
    type Error = NoPartition;

    fn try_from(text: String) -> Result<Self, NoPartition> {
        let split = text.rsplit_once('-').and_then(|(topic, index)| Some((topic.to_owned(), index.parse().ok()?)));
        match split {
            Some((topic, index)) if index >= 0 => Ok(Self { topic, index }),
            _ => Err(NoPartition(text)),
        }
    }
}

/// A line of a history: something that was seen or done. Records stand in the order in which they became known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// When it was known, in microseconds by the one clock of the history. Never less than in the record before.
    pub at_us: u64,
    /// Who saw it: a client, a node, the harness. Only for people.
    pub lane: String,
    /// What was seen.
    pub event: Event,
}

/// Something that was seen or done.
///
/// Where an event has a `started_at_us`, it tells of a request: what the request did was done between that time and the record's own.
/// Requests whose outcome is not known have no end: they may take effect at any time from when they started, or never.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// For people only.
    Note {
        /// What there is to say.
        text: String,
    },

    // ---- topics
    /// A topic is compacted: its records may go while later ones stay.
    Compacted {
        /// Topic.
        topic: String,
    },
    /// Records below `start` may be gone from now on: recorded before their deletion is asked for.
    Truncated {
        /// Partition.
        partition: Partition,
        /// The lowest offset that must stay.
        start: i64,
    },

    // ---- producers
    /// A producer is about to send a record.
    Sent {
        /// One life of a producer, within which its records must keep their order. An idempotent producer's life ends where Kafka's protocol
        /// ends it: when a record failed.
        producer: String,
        /// Where to.
        topic: String,
        /// The partition, if the producer names one.
        partition: Option<i32>,
        /// The key, if there is one and every record with it must come to the same partition.
        key: Option<String>,
        /// What is sent: unique in the history, but for records that the caller itself sends again.
        value: String,
        /// It must not be stored more often than it was sent.
        is_idempotent: bool,
        /// It deletes what has its key, where the topic is compacted.
        #[serde(default)]
        is_tombstone: bool,
    },
    /// The record is stored.
    Acknowledged {
        /// The record.
        value: String,
        /// Where it is.
        partition: Partition,
        /// At which offset; unknown when a retry found it stored already.
        offset: Option<i64>,
    },
    /// The record was refused: it is certainly not stored, by whatever attempt.
    Refused {
        /// The record.
        value: String,
        /// Why.
        reason: String,
    },
    /// The producer gave up: whether the record is stored, or will be, is unknown.
    Unknown {
        /// The record.
        value: String,
        /// Why.
        reason: String,
    },

    // ---- plain readers
    /// Somebody who is in no group read a record.
    Read {
        /// Partition.
        partition: Partition,
        /// Offset.
        offset: i64,
        /// The record.
        value: String,
    },
    /// Somebody was told the end of a partition: the offset after the last record that can be read. A linearizable answer, whichever node
    /// gave it.
    EndObserved {
        /// Who answered, if known.
        node: Option<u64>,
        /// Partition.
        partition: Partition,
        /// The offset.
        end: i64,
        /// When it was asked for.
        started_at_us: u64,
    },

    // ---- members of groups
    /// A member joined.
    Joined {
        /// Group.
        group: String,
        /// One life of a member, named uniquely in the group.
        member: String,
        /// Generation or epoch, if known.
        epoch: Option<i32>,
    },
    /// A member learnt that it is none any more.
    Fenced {
        /// Group.
        group: String,
        /// Member.
        member: String,
        /// Generation or epoch that it had, if known.
        epoch: Option<i32>,
    },
    /// A member has left.
    Left {
        /// Group.
        group: String,
        /// Member.
        member: String,
    },
    /// A member was told that it has these.
    Assigned {
        /// Group.
        group: String,
        /// Member.
        member: String,
        /// The partitions; some of them may be such that it has already.
        partitions: Vec<Partition>,
        /// Generation or epoch, if known.
        epoch: Option<i32>,
    },
    /// A member no longer reads these.
    Released {
        /// Group.
        group: String,
        /// Member.
        member: String,
        /// The partitions; some of them may be such that it was never told of.
        partitions: Vec<Partition>,
        /// Others may have them already. `false`: it was asked to give them up, and recorded this before it said that it had.
        is_lost: bool,
    },
    /// A member was given a record.
    Polled {
        /// Group.
        group: String,
        /// Member.
        member: String,
        /// Partition.
        partition: Partition,
        /// Offset.
        offset: i64,
        /// The record.
        value: String,
    },
    /// A commit was acknowledged.
    Committed {
        /// Group.
        group: String,
        /// Member.
        member: String,
        /// Partition.
        partition: Partition,
        /// The next offset to read.
        offset: i64,
        /// When it was sent.
        started_at_us: u64,
    },
    /// A commit was refused: it certainly changed nothing.
    CommitRefused {
        /// Group.
        group: String,
        /// Member.
        member: String,
        /// Partition.
        partition: Partition,
        /// The next offset to read.
        offset: i64,
        /// Why.
        reason: String,
    },
    /// A commit had no answer, or one that does not tell: whether it took effect, or will, is unknown.
    CommitUnknown {
        /// Group.
        group: String,
        /// Member.
        member: String,
        /// Partition.
        partition: Partition,
        /// The next offset to read.
        offset: i64,
        /// When it was sent.
        started_at_us: u64,
        /// Why.
        reason: String,
    },
    /// An administrator set a committed offset, or removed it: it may go anywhere.
    OffsetReset {
        /// Group.
        group: String,
        /// Partition.
        partition: Partition,
        /// The next offset to read; `None`: removed.
        offset: Option<i64>,
        /// When it was sent.
        started_at_us: u64,
        /// It was acknowledged; else the outcome is unknown.
        is_acknowledged: bool,
    },
    /// Somebody was told what a group has committed. A linearizable answer.
    OffsetFetched {
        /// Group.
        group: String,
        /// Partition.
        partition: Partition,
        /// The next offset to read; `None`: there is none.
        offset: Option<i64>,
        /// When it was asked for.
        started_at_us: u64,
    },
    /// A group was seen.
    GroupObserved(GroupObserved),
    /// A broker answered a member's heartbeat, and had no objection.
    HeartbeatAnswered {
        /// The broker.
        node: u64,
        /// Group.
        group: String,
        /// When it was sent.
        started_at_us: u64,
    },
    /// All the time a broker was the group's coordinator, so that no other one may have been.
    Coordinated {
        /// The broker.
        node: u64,
        /// Group.
        group: String,
        /// When it was seen to be first.
        from_us: u64,
        /// When it was seen to be last.
        until_us: u64,
    },

    // ---- Raft
    /// A node says that it leads a shard.
    LeaderObserved {
        /// Node.
        node: u64,
        /// Shard.
        shard: u16,
        /// In this term.
        term: u64,
    },

    // ---- the end of a run
    /// All records of a partition from `start` up to `end`. Several such pieces follow one another where there are many.
    FinalRecords {
        /// Partition.
        partition: Partition,
        /// First offset that the piece covers.
        start: i64,
        /// The offset after the last that it covers.
        end: i64,
        /// Offsets and values, ascending.
        records: Vec<(i64, String)>,
    },
    /// What a group has committed in the end, read when all its members were done.
    FinalCommitted {
        /// Group.
        group: String,
        /// Partition.
        partition: Partition,
        /// The next offset to read; `None`: there is none.
        offset: Option<i64>,
    },
    /// A replica of a shard in the end.
    FinalReplica {
        /// Node.
        node: u64,
        /// Shard.
        shard: u16,
        /// Position of the last entry that it applied: its term.
        term: u64,
        /// Its index.
        index: u64,
        /// Digest of the state.
        digest: String,
        /// What is wrong with the state by its own invariants.
        violation: Option<String>,
    },
    /// A node's copy of a partition in the end, up to the high watermark.
    FinalFile {
        /// Node.
        node: u64,
        /// Partition.
        partition: Partition,
        /// First offset.
        start: i64,
        /// The offset after the last.
        end: i64,
        /// Bytes.
        length: u64,
        /// Hash of the bytes.
        hash: String,
    },
}

impl Event {
    /// Is it a client's doing: a request, or a record that it was given? What became of a record that was sent does not count once more, nor
    /// do what follows from an answer and what the harness reads in the end.
    #[must_use]
    pub fn is_operation(&self) -> bool {
        match self {
            Self::Sent { .. }
            | Self::Read { .. }
            | Self::EndObserved { .. }
            | Self::Joined { .. }
            | Self::Left { .. }
            | Self::Polled { .. }
            | Self::Committed { .. }
            | Self::CommitRefused { .. }
            | Self::CommitUnknown { .. }
            | Self::OffsetReset { .. }
            | Self::OffsetFetched { .. }
            | Self::GroupObserved(_) => true,
            Self::Note { .. }
            | Self::Compacted { .. }
            | Self::Truncated { .. }
            | Self::Acknowledged { .. }
            | Self::Refused { .. }
            | Self::Unknown { .. }
            | Self::Fenced { .. }
            | Self::Assigned { .. }
            | Self::Released { .. }
            | Self::HeartbeatAnswered { .. }
            | Self::Coordinated { .. }
            | Self::LeaderObserved { .. }
            | Self::FinalRecords { .. }
            | Self::FinalCommitted { .. }
            | Self::FinalReplica { .. }
            | Self::FinalFile { .. } => false,
        }
    }
}

/// A group as a node had it or told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupObserved {
    /// Who had it or answered, if known.
    pub node: Option<u64>,
    /// Group.
    pub group: String,
    /// When it was asked for, if the answer is linearizable; else what is seen may be past.
    pub started_at_us: Option<u64>,
    /// Index in its shard's log of the last entry behind what is seen, if known.
    pub index: Option<u64>,
    /// Its protocol.
    pub protocol: GroupProtocol,
    /// Its state, by Kafka's name: `Stable`, …; `Dead`: there is no such group.
    pub state: String,
    /// Generation or group epoch, if known.
    pub epoch: Option<i32>,
    /// Epoch of the target assignment, if known; the generation of a classic group.
    pub assignment_epoch: Option<i32>,
    /// Its members.
    pub members: Vec<MemberObserved>,
    /// All partitions that members subscribe to, by what the group knew then; empty: not known.
    pub subscribed: Vec<Partition>,
}

/// The protocol that a group speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupProtocol {
    /// The client that leads it computes the assignment.
    Classic,
    /// The coordinator does (KIP-848).
    Consumer,
}

/// A member of a group that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberObserved {
    /// Its id: another than the name of a life in other events.
    pub id: String,
    /// Generation or member epoch, if known.
    pub epoch: Option<i32>,
    /// What it owns or may own now, with what it was asked to give up and has not yet. Classic: its assignment.
    pub owned: Vec<Partition>,
    /// Where it is going. Classic: its assignment.
    pub target: Vec<Partition>,
}
