//! What the session table must know of a group, without its types.

use alloc::string::String;

use super::Groups;
use super::classic::{ClassicState, JoinPhase};
use super::group::Protocol;

use super::group::Group;
use crate::view::GroupConfig;

/// A group as its timers see it.
#[derive(Clone, Copy)]
pub(crate) struct TimedGroup<'a> {
    group: &'a Group,
    config: GroupConfig,
}

/// The part of a group's state that timers hang on. Members' own timers start anew when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Classic, without members (some may be pending).
    Empty,
    /// Classic: the join phase that began at this index is running.
    Joining { since: u64 },
    /// Classic: the generation that began at this index waits for its assignment.
    AwaitingSync { since: u64 },
    /// Classic: the generation that began at this index has its assignment.
    Stable { since: u64 },
    /// Consumer: members go each their own way, with the session timeout that is configured for the group. While some of them speak
    /// the classic protocol, all are looked at when the group's epoch moves or partitions become free: those may have to join again.
    Consumer { session_timeout_ms: Option<u32>, classic: Option<ClassicMoves> },
}

/// What classic members of a consumer group may have to join again for, whoever brought it about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClassicMoves {
    epoch: i32,
    /// Log index at which partitions became free last.
    freed_at: u64,
}

/// What one member's timers hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberTimed {
    /// Last log index at which it was heard from.
    pub(crate) last_seen: u64,
    pub(crate) session_timeout_ms: u32,
    /// It was told its id and has not come back yet.
    pub(crate) pending: bool,
    /// Classic: its JoinGroup waits for the join phase to end, or for the target assignment, so it cannot heartbeat.
    pub(crate) waits_to_join: bool,
    /// In a consumer group: since when it has to give up partitions, or (classic) with which join it still is while it should join
    /// again; and how long it may take.
    pub(crate) revoking: Option<(u64, u32)>,
    /// A classic member of a consumer group: its last JoinGroup, and how long its SyncGroup may take.
    pub(crate) joined: Option<(u64, u32)>,
}

impl Groups {
    /// A group, for its timers.
    pub(crate) fn timed(&self, group_id: &str) -> Option<TimedGroup<'_>> {
        Some(TimedGroup { group: self.groups.get(group_id)?, config: self.config(group_id) })
    }

    /// Ids of all groups.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &String> {
        self.groups.keys()
    }
}

impl<'a> TimedGroup<'a> {
    pub(crate) fn phase(&self) -> Phase {
        match &self.group.protocol {
            Protocol::Classic(group) => match group.head.state {
                ClassicState::Empty => Phase::Empty,
                ClassicState::Preparing(phase) => Phase::Joining { since: phase.since },
                ClassicState::Completing => Phase::AwaitingSync { since: group.head.generation_since },
                ClassicState::Stable => Phase::Stable { since: group.head.generation_since },
            },
            Protocol::Consumer(group) => Phase::Consumer {
                session_timeout_ms: self.config.session_timeout_ms,
                classic: (group.classic_members > 0)
                    .then_some(ClassicMoves { epoch: group.head.epoch, freed_at: group.freed_at }),
            },
        }
    }

    /// The running join phase.
    pub(crate) fn join_phase(&self) -> Option<JoinPhase> {
        match &self.group.protocol {
            Protocol::Classic(group) => match group.head.state {
                ClassicState::Preparing(phase) => Some(phase),
                _ => None,
            },
            Protocol::Consumer(_) => None,
        }
    }

    /// Classic: the generation.
    pub(crate) fn classic_generation(&self) -> Option<i32> {
        match &self.group.protocol {
            Protocol::Classic(group) => Some(group.generation()),
            Protocol::Consumer(_) => None,
        }
    }

    /// Classic: who leads, and so is the one whose SyncGroup made the group stable.
    pub(crate) fn classic_leader(&self) -> Option<&'a str> {
        match &self.group.protocol {
            Protocol::Classic(group) => group.head.leader.as_deref(),
            Protocol::Consumer(_) => None,
        }
    }

    /// Classic: the longest rebalance timeout of the members. Reads every member.
    pub(crate) fn longest_rebalance_timeout_ms(&self) -> u32 {
        match &self.group.protocol {
            Protocol::Classic(group) => group.rebalance_timeout_ms(),
            Protocol::Consumer(_) => 0,
        }
    }

    /// Consumer: the target assignment is behind.
    pub(crate) fn assignment_due(&self) -> bool {
        match &self.group.protocol {
            Protocol::Classic(_) => false,
            Protocol::Consumer(group) => group.assignment_due(),
        }
    }

    /// One member, pending or not.
    pub(crate) fn timed_member(&self, member_id: &str) -> Option<MemberTimed> {
        let last_seen = self.group.activity().last_seen(member_id)?;
        match &self.group.protocol {
            Protocol::Classic(group) => {
                if let Some(pending) = group.pending.get(member_id) {
                    return Some(MemberTimed {
                        last_seen,
                        session_timeout_ms: pending.session_timeout_ms,
                        pending: true,
                        waits_to_join: false,
                        revoking: None,
                        joined: None,
                    });
                }
                let member = group.members.get(member_id)?;
                let waits_to_join =
                    matches!(group.head.state, ClassicState::Preparing(phase) if member.joined == phase.since);
                Some(MemberTimed {
                    last_seen,
                    session_timeout_ms: member.session_timeout_ms,
                    pending: false,
                    waits_to_join,
                    revoking: None,
                    joined: None,
                })
            }
            Protocol::Consumer(group) => {
                let member = group.members.get(member_id)?;
                let timeout_ms = member.rebalance_timeout_ms;
                let classic = member.classic.as_ref();
                let configured_ms = self.config.session_timeout_ms.filter(|_| classic.is_none());
                let late = classic.filter(|_| group.must_rejoin(member_id, member)).map(|terms| terms.joined_at);
                Some(MemberTimed {
                    last_seen,
                    session_timeout_ms: configured_ms.unwrap_or(member.session_timeout_ms),
                    pending: false,
                    waits_to_join: classic.is_some() && member.waiting.is_some(),
                    revoking: member.revoking_since.or(late).map(|since| (since, timeout_ms)),
                    joined: classic.filter(|terms| terms.joined).map(|terms| (terms.joined_at, timeout_ms)),
                })
            }
        }
    }

    /// Everybody who has timers.
    pub(crate) fn timed_members(&self) -> impl Iterator<Item = &'a String> + use<'a> {
        self.group.activity().members()
    }

    /// Members whose timers may have changed after `index`; `None`: all of them must be looked at.
    pub(crate) fn changed_since(&self, index: u64) -> Option<impl Iterator<Item = &'a str> + use<'a>> {
        self.group.activity().changed_since(index)
    }
}
