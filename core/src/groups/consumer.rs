//! The consumer protocol's group (KIP-848): members, their subscriptions, and who owns which partition.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::classic::protocol_names;
use super::group::{Context, Target, topic_partitions};
use super::reconcile::{MemberState, Owned, Reconciled, reconcile};
use super::regexes::ResolvedRegex;
use super::rows::Rows;
use super::table;
use super::timeline::short;
use crate::digest::row_hash;
use crate::ids::TopicId;
use crate::op::TopicPartitions;
use crate::reply::{GroupError, HeartbeatReply};
use crate::view::GroupConfig;
use lockstep_probe::{Mark, Mistake};

/// Member epoch of a static member that is away for a while.
pub(crate) const AWAY_EPOCH: i32 = -2;
/// Member epoch of a member that leaves.
pub(crate) const LEAVE_EPOCH: i32 = -1;

/// What the group itself knows, without its members.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConsumerHead {
    /// Raised by every change that may change the assignment.
    pub(super) epoch: i32,
    /// The group epoch that the target assignment was computed for.
    pub(super) assignment_epoch: i32,
    /// The assignor that computed it; empty before the first.
    pub(super) assignor: String,
    /// Targets of members that went since the target assignment was computed: for the timeline, which tells who gets them.
    pub(super) released: Rows<{ table::RELEASED }, String, Target>,
}

impl ConsumerHead {
    /// What the group's hash has of it. Released targets count by their sum: there may be as many as the group had members.
    pub(super) fn hashed(&self) -> (i32, i32, &str, u128) {
        (self.epoch, self.assignment_epoch, &self.assignor, self.released.sum())
    }
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsumerMember {
    pub(super) instance_id: Option<String>,
    pub(super) rack_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) rebalance_timeout_ms: u32,
    pub(super) session_timeout_ms: u32,
    pub(super) heartbeat_interval_ms: u32,
    pub(super) server_assignor: Option<String>,
    /// Topic names, ascending, each once.
    pub(super) subscribed: Vec<String>,
    /// Hash of `subscribed`: equal subscriptions are found without comparing names.
    pub(super) subscription_hash: u128,
    /// Regular expression for more topics.
    pub(super) regex: Option<String>,
    /// Set for a member that speaks the classic protocol: its group was upgraded, or it joined an upgraded one.
    pub(super) classic: Option<ClassicTerms>,
    /// Epoch it has reached; [`AWAY_EPOCH`] while a static member is away.
    pub(super) epoch: i32,
    /// The one before, which a member still names after a lost response.
    pub(super) previous_epoch: i32,
    pub(super) state: MemberState,
    /// What it may own, with the epoch at which each partition was assigned.
    pub(super) assigned: Owned,
    /// What it must give up and has not yet.
    pub(super) revoking: Owned,
    /// Log index at which that was asked of it.
    pub(super) revoking_since: Option<u64>,
    /// The request that waits for the target assignment: a heartbeat or, of a classic member, its JoinGroup.
    pub(super) waiting: Option<WaitingHeartbeat>,
}

/// What a consumer group knows of a member that speaks JoinGroup and SyncGroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClassicTerms {
    /// See [`super::classic::ClassicMember::protocols`].
    pub(super) protocols: Vec<(String, Vec<u8>)>,
    /// Log index of its last JoinGroup, or at which the group was upgraded.
    pub(super) joined_at: u64,
    /// It has joined since the group was upgraded.
    pub(super) joined: bool,
}

/// A heartbeat that was applied while the target assignment was behind: what is left to answer once it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaitingHeartbeat {
    /// What the member reported to own.
    pub(super) owned: Option<Vec<TopicPartitions>>,
    /// It must be told its assignment in any case.
    pub(super) full: bool,
}

/// A group that speaks ConsumerGroupHeartbeat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConsumerGroup {
    pub(super) head: ConsumerHead,
    pub(super) members: Rows<{ table::CONSUMER_MEMBER }, String, ConsumerMember>,
    /// Where each member is going. Disjoint.
    pub(super) targets: Rows<{ table::TARGET }, String, Target>,
    /// Subscribed topics with the numbers of partitions that the target was computed for.
    pub(super) topics: Rows<{ table::TARGET_TOPIC }, TopicId, u32>,
    /// What the members' regular expressions match, as far as that was found out.
    pub(super) regexes: Rows<{ table::REGEX }, String, ResolvedRegex>,
    pub(super) activity: Activity,
    /// Who holds each partition: assigned, or asked to give it up. What makes two owners impossible.
    #[serde(skip)]
    pub(super) owners: BTreeMap<(TopicId, u32), Arc<str>>,
    /// Member by instance id.
    #[serde(skip)]
    pub(super) instances: BTreeMap<String, String>,
    /// How many members subscribe to each topic name.
    #[serde(skip)]
    pub(super) subscribers: BTreeMap<String, usize>,
    /// How many members subscribe by each regular expression.
    #[serde(skip)]
    pub(super) regex_subscribers: BTreeMap<String, usize>,
    /// Members that speak the classic protocol.
    #[serde(skip)]
    pub(super) classic_members: usize,
    /// How many of those offer each classic protocol.
    #[serde(skip)]
    pub(super) support: BTreeMap<String, usize>,
    /// Log index at which partitions became free last, as far as it is known here. For timers only.
    #[serde(skip)]
    pub(super) freed_at: u64,
    /// A member that was found not to have its target yet, where the next search begins. It decides nothing.
    #[serde(skip)]
    unsettled: Option<String>,
}

impl ConsumerGroup {
    pub(super) fn new(epoch: i32) -> Self {
        Self {
            head: ConsumerHead { epoch, assignment_epoch: epoch, assignor: String::new(), released: Rows::default() },
            members: Rows::default(),
            targets: Rows::default(),
            topics: Rows::default(),
            regexes: Rows::default(),
            activity: Activity::default(),
            owners: BTreeMap::new(),
            instances: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            regex_subscribers: BTreeMap::new(),
            classic_members: 0,
            support: BTreeMap::new(),
            freed_at: 0,
            unsettled: None,
        }
    }

    pub(super) fn epoch(&self) -> i32 {
        self.head.epoch
    }

    /// The target assignment is behind the group, and there is somebody to assign to.
    pub(super) fn assignment_due(&self) -> bool {
        self.head.epoch > self.head.assignment_epoch && !self.members.is_empty()
    }

    /// Indexes that follow from the members.
    pub(super) fn rebuild(&mut self) {
        self.owners = BTreeMap::new();
        self.instances = BTreeMap::new();
        self.subscribers = BTreeMap::new();
        self.regex_subscribers = BTreeMap::new();
        self.classic_members = 0;
        self.support = BTreeMap::new();
        let members = self.members.clone();
        for (member_id, member) in members.iter() {
            self.index(member_id, member);
        }
    }

    /// Everything that is looked up by what a member has.
    fn index(&mut self, member_id: &str, member: &ConsumerMember) {
        let shared: Arc<str> = member_id.into();
        for (topic_id, partitions) in member.assigned.iter().chain(&member.revoking) {
            for partition in partitions.keys() {
                self.owners.insert((*topic_id, *partition), shared.clone());
            }
        }
        if let Some(instance_id) = &member.instance_id {
            self.instances.insert(instance_id.clone(), member_id.to_string());
        }
        self.count_subscription(&member.subscribed, member.regex.as_deref());
        if let Some(terms) = &member.classic {
            self.count_classic(terms);
        }
    }

    /// A change that may change the assignment.
    pub(super) fn bump(&mut self, cx: &mut Context<'_>) {
        self.head.epoch = self.head.epoch.saturating_add(1);
        cx.changed = true;
        cx.assignment_needed |= !self.members.is_empty();
    }

    pub(super) fn count_subscription(&mut self, names: &[String], regex: Option<&str>) {
        for name in names {
            count(&mut self.subscribers, name);
        }
        if let Some(regex) = regex {
            count(&mut self.regex_subscribers, regex);
        }
    }

    /// What a regular expression matched is forgotten with its last subscriber.
    pub(super) fn uncount_subscription(&mut self, names: &[String], regex: Option<&str>) {
        for name in names {
            uncount(&mut self.subscribers, name);
        }
        if let Some(regex) = regex {
            uncount(&mut self.regex_subscribers, regex);
            if !self.regex_subscribers.contains_key(regex) {
                self.regexes.remove(regex);
            }
        }
    }

    pub(super) fn count_classic(&mut self, terms: &ClassicTerms) {
        self.classic_members += 1;
        for name in protocol_names(&terms.protocols) {
            count(&mut self.support, name);
        }
    }

    pub(super) fn uncount_classic(&mut self, terms: &ClassicTerms) {
        self.classic_members = self.classic_members.saturating_sub(1);
        for name in protocol_names(&terms.protocols) {
            uncount(&mut self.support, name);
        }
    }

    /// Takes a member out with all it owned; the caller bumps the epoch unless somebody takes its place.
    pub(super) fn remove_member(
        &mut self,
        cx: &mut Context<'_>,
        member_id: &str,
    ) -> Option<(ConsumerMember, Option<Target>)> {
        let member = self.members.remove(member_id)?;
        self.freed_at = cx.position.index;
        for (topic_id, partitions) in member.assigned.iter().chain(&member.revoking) {
            for partition in partitions.keys() {
                self.owners.remove(&(*topic_id, *partition));
            }
        }
        if let Some(instance_id) = &member.instance_id {
            self.instances.remove(instance_id);
        }
        self.uncount_subscription(&member.subscribed, member.regex.as_deref());
        if let Some(terms) = &member.classic {
            self.uncount_classic(terms);
        }
        self.activity.forget(member_id, cx.position.index);
        cx.changed = true;
        let target = self.targets.remove(member_id);
        Some((member, target))
    }

    /// Puts a member in with all it owns.
    pub(super) fn insert_member(
        &mut self,
        cx: &mut Context<'_>,
        member_id: &str,
        member: ConsumerMember,
        target: Option<Target>,
    ) {
        self.index(member_id, &member);
        self.members.insert(member_id.to_string(), member);
        if let Some(target) = target {
            self.targets.insert(member_id.to_string(), target);
        }
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
    }

    /// Where this member would go next; `None` when nothing changes.
    pub(super) fn next_step(
        &self,
        member_id: &str,
        member: &ConsumerMember,
        owned: Option<&[TopicPartitions]>,
    ) -> Option<Reconciled> {
        static NOTHING: Target = Target::new();
        let target = self.targets.get(member_id).unwrap_or(&NOTHING);
        reconcile(member, self.head.assignment_epoch, target, owned, |topic_id, partition| {
            self.owners.get(&(topic_id, partition)).is_none_or(|owner| **owner == *member_id)
                || Mistake::PartitionGivenBeforeRelease.is_made()
        })
    }

    /// Moves a member one step towards its target; true when what it may own has changed.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>, member_id: &str, owned: Option<&[TopicPartitions]>) -> bool {
        let Some(member) = self.members.get(member_id) else { return false };
        let Some(step) = self.next_step(member_id, member, owned) else { return false };
        self.take_step(cx, member_id, step)
    }

    /// Makes a step that [`Self::next_step`] found.
    pub(super) fn take_step(&mut self, cx: &mut Context<'_>, member_id: &str, step: Reconciled) -> bool {
        let Some(mut member) = self.members.get_mut(member_id) else { return false };
        let shared: Arc<str> = member_id.into();
        let held = |partitions: &Owned, topic_id: &TopicId, partition: &u32| {
            partitions.get(topic_id).is_some_and(|partitions| partitions.contains_key(partition))
        };
        for (topic_id, partitions) in member.assigned.iter().chain(&member.revoking) {
            for partition in partitions.keys() {
                if !held(&step.assigned, topic_id, partition) && !held(&step.revoking, topic_id, partition) {
                    self.freed_at = cx.position.index;
                    self.owners.remove(&(*topic_id, *partition));
                }
            }
        }
        for (topic_id, partitions) in &step.assigned {
            for partition in partitions.keys() {
                if !held(&member.assigned, topic_id, partition) {
                    self.owners.insert((*topic_id, *partition), shared.clone());
                }
            }
        }
        let assigned_changed = member.assigned != step.assigned;
        if step.state == MemberState::Unreleased {
            Mark::PartitionAwaitedFromAnotherMember.reached();
        }
        if step.state != MemberState::Unrevoked {
            if !Mistake::RevocationTimeoutNotCancelled.is_made() {
                member.revoking_since = None;
            }
        } else if member.revoking != step.revoking {
            member.revoking_since = Some(cx.position.index);
        }
        if member.epoch != step.epoch {
            member.previous_epoch = member.epoch;
            member.epoch = step.epoch;
        }
        member.state = step.state;
        member.assigned = step.assigned;
        member.revoking = step.revoking;
        cx.changed = true;
        assigned_changed
    }

    /// A member went for good, and nobody takes its place.
    pub(super) fn release_member(&mut self, cx: &mut Context<'_>, member_id: &str) {
        if let Some((_, Some(target))) = self.remove_member(cx, member_id) {
            self.head.released.insert(short(member_id), target);
        }
        if self.members.is_empty() {
            // Nobody is left to get any of it.
            self.head.released = Rows::default();
            if Mistake::EmptyGroupRestartsEpochs.is_made() {
                (self.head.epoch, self.head.assignment_epoch) = (0, 0);
            }
        }
    }

    /// Everybody has its target, or is away. Looks on from the member that was found to be behind the last time, so that a rebalance
    /// costs each member about one look.
    pub(super) fn is_settled(&mut self) -> bool {
        if self.assignment_due() {
            return false;
        }
        let start = self.unsettled.take().unwrap_or_default();
        let target_epoch = self.head.assignment_epoch;
        let behind = |(_, member): &(&String, &ConsumerMember)| {
            !member.is_away() && (member.epoch != target_epoch || member.state != MemberState::Stable)
        };
        self.unsettled = self
            .members
            .range(start.clone()..)
            .find(behind)
            .or_else(|| self.members.range(..start).find(behind))
            .map(|(member_id, _)| member_id.clone());
        self.unsettled.is_none()
    }

    /// What a member is answered. `tell`: with its assignment.
    pub(super) fn reply(&self, member_id: &str, tell: bool, config: GroupConfig) -> Result<HeartbeatReply, GroupError> {
        let member = self.members.get(member_id).ok_or(GroupError::UnknownMember)?;
        Ok(HeartbeatReply {
            member_id: member_id.to_string(),
            member_epoch: member.epoch,
            heartbeat_interval_ms: config.heartbeat_interval_ms.unwrap_or(member.heartbeat_interval_ms),
            assignment: tell.then(|| member.assignment()),
            assignment_due: self.assignment_due(),
        })
    }

    /// OffsetCommit by a member: its own epoch, or an older one not below that at which each partition was assigned (KIP-1251). The same
    /// holds of the generation of a classic member.
    pub(super) fn check_commit(
        &self,
        member_id: &str,
        epoch: i32,
        partitions: impl Iterator<Item = (TopicId, u32)>,
    ) -> Result<(), GroupError> {
        let member = self.members.get(member_id).ok_or(GroupError::UnknownMember)?;
        let stale = if member.classic.is_some() { GroupError::IllegalGeneration } else { GroupError::StaleMemberEpoch };
        if epoch < 0 || epoch > member.epoch {
            return Err(stale);
        }
        if epoch == member.epoch || Mistake::CommitOfStaleEpoch.is_made() {
            return Ok(());
        }
        for (topic_id, partition) in partitions {
            let assigned_at = [&member.assigned, &member.revoking]
                .into_iter()
                .find_map(|owned| owned.get(&topic_id)?.get(&partition));
            if assigned_at.is_none_or(|assigned_at| epoch < *assigned_at) {
                Mark::CommitOfStaleEpochRefused.reached();
                return Err(stale);
            }
        }
        Mark::CommitOfFormerEpochAccepted.reached();
        Ok(())
    }
}

/// One more of `key`.
fn count(counts: &mut BTreeMap<String, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count += 1;
    } else {
        counts.insert(key.to_string(), 1);
    }
}

/// One less of `key`.
fn uncount(counts: &mut BTreeMap<String, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The hash that equal subscriptions share.
pub(super) fn subscription_hash(names: &[String]) -> u128 {
    row_hash(table::SUBSCRIPTION, &(), &names)
}

impl ConsumerMember {
    /// What it should own, as it is told.
    pub(super) fn assignment(&self) -> Vec<TopicPartitions> {
        topic_partitions(self.assigned.iter().map(|(topic_id, partitions)| (topic_id, partitions.keys().copied())))
    }

    /// A static member that said it would be back.
    pub(super) fn is_away(&self) -> bool {
        self.epoch == AWAY_EPOCH
    }
}
