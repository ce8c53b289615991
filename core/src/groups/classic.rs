//! The classic protocol's group: members, pending members, and what every request of a member is checked against.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::group::Context;
use super::rows::Rows;
use super::table;
use crate::op::ClassicJoin;
use crate::reply::GroupError;
use lockstep_probe::Mark;

/// Where a classic group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ClassicState {
    /// No members.
    Empty,
    /// Members are (re)joining.
    Preparing(JoinPhase),
    /// The generation has begun; the leader's assignment is missing.
    Completing,
    /// Everybody can have its assignment.
    Stable,
}

/// A join phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinPhase {
    /// Log index at which it began; a member has joined if it says so of this index.
    pub(crate) since: u64,
    /// Above zero: the group was empty, and waits so long for more members, longer while they keep coming.
    pub(crate) initial_delay_ms: u32,
    /// Members that came new in this phase.
    pub(crate) arrivals: u32,
}

/// What the group itself knows, without its members.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClassicHead {
    pub(super) state: ClassicState,
    pub(super) generation: i32,
    /// Log index at which the generation began.
    pub(super) generation_since: u64,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol_name: Option<String>,
    pub(super) leader: Option<String>,
}

/// A member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClassicMember {
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout_ms: u32,
    pub(super) rebalance_timeout_ms: u32,
    pub(super) protocols: Vec<(String, Vec<u8>)>,
    pub(super) assignment: Vec<u8>,
    /// The last join phase it has joined in, by the phase's `since`.
    pub(super) joined: u64,
}

/// A member that was told its id and must come back with it (KIP-394).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PendingMember {
    pub(super) session_timeout_ms: u32,
}

/// A group that speaks JoinGroup and SyncGroup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClassicGroup {
    pub(super) head: ClassicHead,
    pub(super) members: Rows<{ table::CLASSIC_MEMBER }, String, ClassicMember>,
    pub(super) pending: Rows<{ table::PENDING_MEMBER }, String, PendingMember>,
    pub(super) activity: Activity,
    /// How many members offer each protocol.
    #[serde(skip)]
    pub(super) support: BTreeMap<String, usize>,
    /// Member by instance id.
    #[serde(skip)]
    pub(super) instances: BTreeMap<String, String>,
    /// Members that have joined in the current join phase.
    #[serde(skip)]
    pub(super) joined: usize,
}

impl ClassicMember {
    pub(super) fn from_join(op: &ClassicJoin) -> Self {
        Self {
            instance_id: op.instance_id.clone(),
            client_id: op.client_id.clone(),
            client_host: op.client_host.clone(),
            session_timeout_ms: op.session_timeout_ms,
            rebalance_timeout_ms: op.rebalance_timeout_ms,
            protocols: op.protocols.clone(),
            assignment: Vec::new(),
            joined: 0,
        }
    }

    /// What it said for a protocol.
    pub(super) fn metadata(&self, protocol: &str) -> &[u8] {
        self.protocols.iter().find(|(name, _)| name == protocol).map_or(&[], |(_, metadata)| metadata.as_slice())
    }

    /// Names of its protocols, each once.
    fn protocol_names(&self) -> impl Iterator<Item = &str> {
        protocol_names(&self.protocols)
    }
}

/// What a SyncGroup says of whom it comes from.
#[derive(Clone, Copy)]
pub(crate) struct SyncSender<'a> {
    pub(crate) member_id: &'a str,
    pub(crate) instance_id: Option<&'a str>,
    pub(crate) generation: i32,
    /// Must be the group's, when given.
    pub(crate) protocol_type: Option<&'a str>,
    /// Must be the group's, when given.
    pub(crate) protocol_name: Option<&'a str>,
}

/// Is this instance id, if one is given, that of this member? `instances` has the members by instance id.
pub(super) fn check_instance(
    instances: &BTreeMap<String, String>,
    member_id: &str,
    instance_id: Option<&str>,
) -> Result<(), GroupError> {
    match instance_id.map(|instance_id| instances.get(instance_id)) {
        Some(None) => Err(GroupError::UnknownMember),
        Some(Some(current)) if current != member_id => {
            Mark::StaleStaticMemberFenced.reached();
            Err(GroupError::FencedInstance)
        }
        _ => Ok(()),
    }
}

/// The member that an administrator's LeaveGroup names by instance id alone; `None` when it gives a member id.
pub(super) fn named_by_instance(
    instances: &BTreeMap<String, String>,
    member_id: &str,
    instance_id: Option<&str>,
) -> Option<Result<String, GroupError>> {
    let instance_id = instance_id.filter(|_| member_id.is_empty())?;
    Some(instances.get(instance_id).cloned().ok_or(GroupError::UnknownMember))
}

/// Names of protocols that a member offers, each once.
pub(super) fn protocol_names(protocols: &[(String, Vec<u8>)]) -> impl Iterator<Item = &str> {
    protocols
        .iter()
        .enumerate()
        .filter(|(i, (name, _))| !protocols.iter().take(*i).any(|(earlier, _)| earlier == name))
        .map(|(_, (name, _))| name.as_str())
}

impl ClassicGroup {
    pub(super) fn new(generation: i32) -> Self {
        Self {
            head: ClassicHead {
                state: ClassicState::Empty,
                generation,
                generation_since: 0,
                protocol_type: None,
                protocol_name: None,
                leader: None,
            },
            members: Rows::default(),
            pending: Rows::default(),
            activity: Activity::default(),
            support: BTreeMap::new(),
            instances: BTreeMap::new(),
            joined: 0,
        }
    }

    pub(super) fn generation(&self) -> i32 {
        self.head.generation
    }

    pub(super) fn state(&self) -> ClassicState {
        self.head.state
    }

    pub(super) fn is_leader(&self, member_id: &str) -> bool {
        self.head.leader.as_deref() == Some(member_id)
    }

    /// How long the others wait for members in a rebalance: the longest that any member asks for.
    pub(super) fn rebalance_timeout_ms(&self) -> u32 {
        self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0)
    }

    /// Indexes that follow from the members.
    pub(super) fn rebuild(&mut self) {
        (self.support, self.instances, self.joined) = self.derived();
    }

    /// Support of protocols, members by instance id, and how many have joined in the current phase: from scratch.
    pub(super) fn derived(&self) -> (BTreeMap<String, usize>, BTreeMap<String, String>, usize) {
        let mut support = BTreeMap::new();
        let mut instances = BTreeMap::new();
        let mut joined = 0;
        for (member_id, member) in self.members.iter() {
            for name in member.protocol_names() {
                *support.entry(name.to_string()).or_insert(0) += 1;
            }
            if let Some(instance_id) = &member.instance_id {
                instances.insert(instance_id.clone(), member_id.clone());
            }
            if let ClassicState::Preparing(phase) = self.head.state
                && member.joined == phase.since
            {
                joined += 1;
            }
        }
        (support, instances, joined)
    }

    /// Is this member, with this instance id if it gives one, part of the group? Kafka checks every request of a member so.
    pub(super) fn check_member(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
    ) -> Result<&ClassicMember, GroupError> {
        check_instance(&self.instances, member_id, instance_id)?;
        self.members.get(member_id).ok_or(GroupError::UnknownMember)
    }

    /// Does a member with these protocols fit? One of them must be offered by every member.
    pub(super) fn supports(&self, protocol_type: &str, protocols: &[(String, Vec<u8>)]) -> bool {
        if self.members.is_empty() {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        self.head.protocol_type.as_deref() == Some(protocol_type)
            && protocols
                .iter()
                .any(|(name, _)| self.support.get(name).is_some_and(|count| *count == self.members.len()))
    }

    /// The protocol of the next generation: each member votes for the first of its protocols that all offer. Among equals
    /// the leader's preference decides, so that every replica agrees.
    pub(super) fn elect_protocol(&self) -> Option<String> {
        let everybody = self.members.len();
        let offered_by_all = |name: &str| self.support.get(name).is_some_and(|count| *count == everybody);
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some(name) = member.protocol_names().find(|name| offered_by_all(name)) {
                *votes.entry(name).or_insert(0) += 1;
            }
        }
        let most = *votes.values().max()?;
        let leader = self.head.leader.as_ref().and_then(|leader| self.members.get(leader));
        leader
            .into_iter()
            .flat_map(ClassicMember::protocol_names)
            .chain(votes.keys().copied())
            .find(|name| votes.get(name) == Some(&most))
            .map(ToString::to_string)
    }

    /// Puts a member in, in whatever state; the caller rebalances. A pending member of that id is pending no longer.
    pub(super) fn insert_member(
        &mut self,
        cx: &mut Context<'_>,
        member_id: &str,
        protocol_type: &str,
        member: ClassicMember,
    ) {
        if self.members.is_empty() {
            self.head.protocol_type = Some(protocol_type.to_string());
        }
        self.pending.remove(member_id);
        for name in member.protocol_names() {
            *self.support.entry(name.to_string()).or_insert(0) += 1;
        }
        if let Some(instance_id) = &member.instance_id {
            self.instances.insert(instance_id.clone(), member_id.to_string());
        }
        self.members.insert(member_id.to_string(), member);
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
    }

    /// Takes a member out, in whatever state; the caller rebalances.
    pub(super) fn remove_member(&mut self, cx: &mut Context<'_>, member_id: &str) -> Option<ClassicMember> {
        let member = self.members.remove(member_id)?;
        for name in member.protocol_names() {
            if let Some(count) = self.support.get_mut(name) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.support.remove(name);
                }
            }
        }
        if let Some(instance_id) = &member.instance_id {
            self.instances.remove(instance_id);
        }
        if let ClassicState::Preparing(phase) = self.head.state
            && member.joined == phase.since
        {
            self.joined = self.joined.saturating_sub(1);
        }
        if self.is_leader(member_id) {
            self.head.leader = None;
        }
        self.activity.forget(member_id, cx.position.index);
        cx.changed = true;
        Some(member)
    }

    /// What a member says of itself in a join replaces what it said before.
    pub(super) fn update_member(&mut self, cx: &mut Context<'_>, member_id: &str, op: &ClassicJoin) {
        let Some(mut member) = self.members.get_mut(member_id) else { return };
        if member.protocols != op.protocols {
            for name in member.protocol_names() {
                if let Some(count) = self.support.get_mut(name) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.support.remove(name);
                    }
                }
            }
            member.protocols.clone_from(&op.protocols);
            for name in member.protocol_names() {
                *self.support.entry(name.to_string()).or_insert(0) += 1;
            }
        }
        member.client_id.clone_from(&op.client_id);
        member.client_host.clone_from(&op.client_host);
        member.session_timeout_ms = op.session_timeout_ms;
        member.rebalance_timeout_ms = op.rebalance_timeout_ms;
        drop(member);
        self.activity.saw(member_id, cx.position.index);
        cx.changed = true;
    }
}
