//! What the other nodes said of themselves last.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lockstep_core::NodeId;
use lockstep_env::Env;

use super::Node;
use super::message::Gossip;

#[derive(Debug, Default)]
pub(super) struct PeerStates(Mutex<BTreeMap<NodeId, PeerState>>);

#[derive(Clone, Copy, Debug, Default)]
struct PeerState {
    is_stopping: bool,
    is_short_of_space: bool,
    has_directory: bool,
}

impl PeerStates {
    pub(super) fn heard(&self, node: NodeId, gossip: &Gossip) {
        let state = PeerState {
            is_stopping: gossip.stopping,
            is_short_of_space: gossip.short_of_space,
            has_directory: !gossip.without_directory,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, state);
    }

    /// Of one that said nothing yet nothing is true.
    fn of(&self, node: NodeId) -> PeerState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied().unwrap_or_default()
    }
}

impl<E: Env> Node<E> {
    /// Does this node live, and take clients? One that has no copy of the directory yet turns them away; one from which only Raft's messages came
    /// has not said yet whether it has.
    #[must_use]
    pub fn takes_clients(&self, node: NodeId) -> bool {
        if node == self.id() {
            return self.has_directory();
        }
        self.alive(node) && self.inner.peer_states.of(node).has_directory
    }

    /// Did the other node say that it is stopping? It should lead nothing.
    pub(super) fn is_stopping(&self, node: NodeId) -> bool {
        self.inner.peer_states.of(node).is_stopping
    }

    /// Did the other node say that it is short of space?
    pub(super) fn is_peer_short(&self, node: NodeId) -> bool {
        self.inner.peer_states.of(node).is_short_of_space
    }
}
