//! Deadlines of members and groups, beside the replicated state: kept by a shard's leader in its monotonic time.

use alloc::vec::Vec;

use crate::op::Op;
use crate::state_machine::ClusterStateMachine;

/// The leader's timers. Pure: `now_ms` is the leader's monotonic time, and what must happen is returned as ops to propose.
#[derive(Clone, Debug, Default)]
pub struct SessionTable {}

#[allow(unused_variables)]
impl SessionTable {
    /// A new leader's table for `term`: every member of every group gets a fresh session.
    #[must_use]
    pub fn start(state: &ClusterStateMachine, term: u64, now_ms: u64) -> Self {
        todo!()
    }
    /// Called after [`crate::Effect::GroupChanged`]: timers follow the group's state (new members, join phases, missing
    /// SyncGroups, revocations), and members that an applied op has heard from are renewed.
    pub fn observe(&mut self, state: &ClusterStateMachine, group_id: &str, now_ms: u64) {
        todo!()
    }
    /// A request of this member was answered with success just now, from the applied state.
    pub fn heartbeat(&mut self, group_id: &str, member_id: &str, now_ms: u64) {
        todo!()
    }
    /// This member's SyncGroup for this generation arrived.
    pub fn synced(&mut self, group_id: &str, member_id: &str, generation: i32, now_ms: u64) {
        todo!()
    }
    /// Ops due at `now_ms`. An op whose proposal fails is offered again later.
    pub fn expired(&mut self, now_ms: u64) -> Vec<Op> {
        todo!()
    }
    /// When [`Self::expired`] is next worth calling.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        todo!()
    }
    /// The batched op 11 for members heard from since the last call; `None` when there were none. To be called about once a second.
    pub fn take_seen(&mut self) -> Option<Op> {
        todo!()
    }
}
