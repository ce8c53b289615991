//! What peers ask of this node, and where it is answered.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lockstep_core::{Op, ShardId};
use lockstep_env::Env;

use super::message::{self, Gossip, Proposed, ReadIndex, WaitMetadata};
use super::{Inner, Node};
use crate::peer::{IncomingRequest, PeerFault, PeerHandler, PeerIdentity, PeerReply};

const FAULT_STOPPING: u16 = 1;
const FAULT_NOT_HOSTED: u16 = 2;
const FAULT_MALFORMED: u16 = 3;
const FAULT_UNKNOWN_KIND: u16 = 4;

/// Longest wait for metadata that a peer may ask for.
const WAIT_METADATA_MAX: Duration = Duration::from_secs(60);

/// The node as its peers see it. It holds the node weakly: the network must not keep a stopped node alive.
pub(super) struct Dispatch<E: Env> {
    node: Weak<Inner<E>>,
}

impl<E: Env> Dispatch<E> {
    pub(super) fn new(inner: &Arc<Inner<E>>) -> Self {
        Self { node: Arc::downgrade(inner) }
    }

    fn node(&self) -> Option<Node<E>> {
        self.node.upgrade().map(|inner| Node { inner })
    }
}

impl<E: Env> PeerHandler for Dispatch<E> {
    fn handle(&self, from: PeerIdentity, request: IncomingRequest) -> BoxFuture<'static, Result<PeerReply, PeerFault>> {
        let Some(node) = self.node() else {
            return Box::pin(async { Err(fault(FAULT_STOPPING, "this node is stopping")) });
        };
        if request.kind < message::INTRODUCE {
            let Some(shard) = node.shard(ShardId(request.shard)) else {
                return Box::pin(async { Err(fault(FAULT_NOT_HOSTED, "the shard is not served by this node")) });
            };
            // Called on the reading task, so that appends of one shard are taken in the order in which they came.
            return shard.handle_raft(from, request);
        }
        Box::pin(async move { answer(node, request).await })
    }

    fn gossip(&self) -> Bytes {
        let Some(node) = self.node() else { return Bytes::new() };
        message::encode(&Gossip {
            leads: node.leads(),
            stopping: node.stopping(),
            short_of_space: node.is_short_of_space(),
            without_directory: !node.has_directory(),
            doubts: node.inner.doubts.own(),
            wall_clock_ms: node.inner.env.wall_clock_ms(),
        })
    }

    fn on_gossip(&self, from: PeerIdentity, gossip: Bytes) {
        let from = from.node;
        let (Some(node), Ok(gossip)) = (self.node(), message::decode::<Gossip>(&gossip)) else { return };
        node.inner.peer_states.heard(from, &gossip);
        node.inner.doubts.heard(from, &gossip.doubts, E::now());
        let mut leaders = node.lock_leaders();
        for (shard, term) in gossip.leads {
            let known = leaders.get(&shard).map_or(0, |(term, _)| *term);
            if shard.0 < node.shard_count() && term >= known {
                leaders.insert(shard, (term, from));
            }
        }
        drop(leaders);
        if node.inner.config.peers.contains_key(&from) {
            node.inner.clocks.heard(from, gossip.wall_clock_ms, E::now());
        }
    }
}

fn fault(code: u16, reason: &str) -> PeerFault {
    PeerFault { code, reason: reason.to_owned() }
}

fn body<T: serde::Serialize>(message: &T) -> Result<PeerReply, PeerFault> {
    Ok(PeerReply { body: message::encode(message), payload: Vec::new() })
}

async fn answer<E: Env>(node: Node<E>, request: IncomingRequest) -> Result<PeerReply, PeerFault> {
    let shard = ShardId(request.shard);
    match request.kind {
        message::INTRODUCE => body(&node.introduction()),
        message::PROPOSE => {
            let op = Op::decode(&request.payload).map_err(|error| fault(FAULT_MALFORMED, &error.to_string()))?;
            let proposed: Proposed = node.propose(shard, op, Bytes::new()).await.map_err(Into::into);
            body(&proposed)
        }
        message::READ_INDEX => {
            let answer: ReadIndex = match node.shard(shard) {
                Some(hosted) => hosted.read_index_for_member().await.map_err(Into::into),
                None => Err(message::Refusal::NotLeader { leader: None }),
            };
            body(&answer)
        }
        message::METADATA_VERSION => {
            let answer: ReadIndex = node.own_metadata_version(shard).await.map_err(Into::into);
            body(&answer)
        }
        message::WAIT_METADATA => {
            let wait: WaitMetadata =
                message::decode(&request.body).map_err(|error| fault(FAULT_MALFORMED, &error.to_string()))?;
            let timeout = Duration::from_millis(u64::from(wait.timeout_ms)).min(WAIT_METADATA_MAX);
            body(&node.wait_feed(wait.version, timeout).await)
        }
        message::REPORT => Ok(PeerReply { body: Bytes::new(), payload: vec![message::encode(&node.report())] }),
        kind => Err(fault(FAULT_UNKNOWN_KIND, &format!("request kind {kind} is not known"))),
    }
}
