//! A group as the snapshot holds it, brought into the one form that all states share which behave alike.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::op::TopicPartitions;
use lockstep_core::view::{GroupConfig, GroupEvent};
use lockstep_core::{BrokerRecord, ClusterStateMachine, Position, TopicId, TopicRecord};
use serde::{Deserialize, Serialize};

/// Everything before the groups, field by field as in `core/src/snapshot.rs`; no records are appended here, so that neither epochs
/// nor producers are ever there.
#[derive(Deserialize)]
struct Body {
    _shard: u16,
    _shard_count: u16,
    _applied: Position,
    _topics: Topics,
    _partitions: Vec<((TopicId, u32), Partition)>,
    _producers: Vec<()>,
    groups: (BTreeMap<String, Group>, BTreeMap<String, GroupConfig>),
}

/// First and next offset, leader epochs, and the last compaction.
type Partition = (i64, i64, Vec<()>, (u64, i64));

#[derive(Deserialize)]
struct Topics {
    _counters: (u64, u64, u64, i64),
    _topics: Vec<TopicRecord>,
    _brokers: Vec<BrokerRecord>,
    _deleted: Vec<(u64, TopicId)>,
}

pub(crate) type Owned = BTreeMap<TopicId, BTreeMap<u32, i32>>;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) protocol: Protocol,
    offsets: BTreeMap<(TopicId, u32), Offset>,
    empty_since_ms: Option<i64>,
    timeline: Timeline,
}

#[derive(Clone, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "as it is encoded")]
pub(crate) enum Protocol {
    Classic(Classic),
    Consumer(Consumer),
}

#[derive(Clone, Serialize, Deserialize)]
struct Offset {
    offset: i64,
    leader_epoch: i32,
    metadata: String,
    commit_time_ms: i64,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Timeline {
    events: BTreeMap<u64, GroupEvent>,
    rebalance: Option<Option<i64>>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Classic {
    state: ClassicState,
    pub(crate) generation: i32,
    generation_since: u64,
    protocol_type: Option<String>,
    protocol_name: Option<String>,
    leader: Option<String>,
    pub(crate) members: BTreeMap<String, ClassicMember>,
    pub(crate) pending: BTreeMap<String, u32>,
    seen: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum ClassicState {
    Empty,
    Preparing { since: u64, initial_delay_ms: u32, arrivals: u32 },
    Completing,
    Stable,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ClassicMember {
    identity: (Option<String>, String, String),
    timeouts_ms: (u32, u32),
    protocols: Vec<(String, Vec<u8>)>,
    assignment: Vec<u8>,
    joined: u64,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Consumer {
    epoch: i32,
    pub(crate) assignment_epoch: i32,
    assignor: String,
    released: BTreeMap<String, BTreeMap<TopicId, Vec<u32>>>,
    pub(crate) members: BTreeMap<String, ConsumerMember>,
    targets: BTreeMap<String, BTreeMap<TopicId, Vec<u32>>>,
    topics: BTreeMap<TopicId, u32>,
    regexes: BTreeMap<String, (u64, Vec<TopicId>)>,
    seen: BTreeMap<String, u64>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ConsumerMember {
    identity: (Option<String>, Option<String>, String, String),
    timeouts_ms: (u32, u32, u32),
    server_assignor: Option<String>,
    subscribed: Vec<String>,
    subscription_hash: u128,
    regex: Option<String>,
    pub(crate) classic: Option<ClassicTerms>,
    pub(crate) epoch: i32,
    previous_epoch: i32,
    state: MemberState,
    pub(crate) assigned: Owned,
    pub(crate) revoking: Owned,
    revoking_since: Option<u64>,
    waiting: Option<(Option<Vec<TopicPartitions>>, bool)>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ClassicTerms {
    protocols: Vec<(String, Vec<u8>)>,
    joined_at: u64,
    joined: bool,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum MemberState {
    Stable,
    Unrevoked,
    Unreleased,
}

impl Group {
    /// The only group there is.
    pub(crate) fn read(state: &ClusterStateMachine) -> Option<Self> {
        let bytes = state.snapshot();
        let body: Body = postcard::from_bytes(&bytes[1..]).expect("the snapshot's fields are those of this file");
        body.groups.0.into_values().next()
    }

    /// Is this somebody whose requests the group takes, a member that was told its id and has not come back included?
    pub(crate) fn knows(&self, member_id: &str) -> bool {
        match &self.protocol {
            Protocol::Classic(group) => group.members.contains_key(member_id) || group.pending.contains_key(member_id),
            Protocol::Consumer(group) => group.members.contains_key(member_id),
        }
    }

    /// Consumer: the target assignment is behind.
    pub(crate) fn assignment_due(&self) -> bool {
        match &self.protocol {
            Protocol::Classic(_) => false,
            Protocol::Consumer(group) => group.epoch > group.assignment_epoch && !group.members.is_empty(),
        }
    }

    /// Must a commit of this generation or epoch be taken for this partition? By the rules of Kafka's OffsetCommit with KIP-1251.
    pub(crate) fn takes_commit(&self, member_id: &str, epoch: i32, partition: (TopicId, u32)) -> bool {
        match &self.protocol {
            Protocol::Classic(group) => {
                group.members.contains_key(member_id)
                    && group.generation == epoch
                    && group.state != ClassicState::Completing
            }
            Protocol::Consumer(group) => group.members.get(member_id).is_some_and(|member| {
                let held_since = [&member.assigned, &member.revoking]
                    .into_iter()
                    .find_map(|owned| owned.get(&partition.0)?.get(&partition.1));
                epoch == member.epoch || epoch < member.epoch && held_since.is_some_and(|since| *since <= epoch)
            }),
        }
    }

    /// What decides nothing that happens later is dropped. States that are equal afterwards behave alike:
    ///
    /// * A log index is only ever compared with one that an op names, and the ops that name one are made from the state they meet: either
    ///   they name the index that is in it, or one that is not. Only whether a member has joined in the running phase is a relation
    ///   between two indexes of the state; that is kept.
    /// * The timeline is for people. No op reads it.
    /// * What was committed is compared with the model after every op, so that here it matters only for which partitions there is something.
    pub(crate) fn normalise(&mut self) {
        self.timeline = Timeline::default();
        for offset in self.offsets.values_mut() {
            offset.offset = 0;
        }
        match &mut self.protocol {
            Protocol::Classic(group) => {
                let phase = match &mut group.state {
                    ClassicState::Preparing { since, arrivals, .. } => {
                        // Extends the initial delay, which is 0 here.
                        *arrivals = 0;
                        std::mem::take(since)
                    }
                    _ => u64::MAX,
                };
                group.generation_since = 0;
                for member in group.members.values_mut() {
                    member.joined = u64::from(member.joined == phase);
                }
                group.seen.values_mut().for_each(|seen| *seen = 0);
            }
            Protocol::Consumer(group) => {
                // For the timeline only.
                group.released.clear();
                for member in group.members.values_mut() {
                    member.revoking_since = member.revoking_since.map(|_| 0);
                    if let Some(terms) = &mut member.classic {
                        terms.joined_at = 0;
                    }
                }
                group.seen.values_mut().for_each(|seen| *seen = 0);
            }
        }
    }

    /// Every generation and epoch.
    pub(crate) fn epochs(&mut self) -> Vec<&mut i32> {
        match &mut self.protocol {
            Protocol::Classic(group) => vec![&mut group.generation],
            Protocol::Consumer(group) => {
                let mut epochs = vec![&mut group.epoch, &mut group.assignment_epoch];
                for member in group.members.values_mut() {
                    epochs.extend([&mut member.epoch, &mut member.previous_epoch]);
                    let owned = member.assigned.values_mut().chain(member.revoking.values_mut());
                    epochs.extend(owned.flat_map(BTreeMap::values_mut));
                }
                epochs
            }
        }
    }
}

/// Numbers epochs and generations anew. They are only compared with each other, made one higher than all there are, and (when a classic
/// group is upgraded) compared with the one below a generation: so their order counts, and whether two of them are neighbours, but not
/// how far apart two others are. 0 is no epoch but "none yet", and stays.
pub(crate) fn close_gaps(mut epochs: Vec<&mut i32>) {
    let known: BTreeSet<i32> = epochs.iter().map(|epoch| **epoch).filter(|epoch| *epoch > 0).collect();
    let (mut before, mut number) = (0, 0);
    let mut numbers = BTreeMap::new();
    for epoch in known {
        number += (epoch - before).min(2);
        numbers.insert(epoch, number);
        before = epoch;
    }
    for epoch in &mut epochs {
        **epoch = numbers.get(*epoch).copied().unwrap_or(**epoch);
    }
}
