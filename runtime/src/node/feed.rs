//! How topics and brokers reach every shard: the leader of shard 0 feeds the others with UpdateMetadata (op 4), and every
//! broker registers itself. Both compare and repair for ever, so that an interruption anywhere is made good.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::op::RegisterBroker;
use lockstep_core::{BrokerRecord, Op, Reply, ShardId};
use lockstep_env::{Env, timeout};
use tokio::sync::Notify;

use super::Node;
use super::message::{self, WaitMetadata};
use crate::error::ProposeError;
use crate::peer::{Lane, PeerRequest};
use lockstep_probe::Mark;

const LOOK_EVERY: Duration = Duration::from_millis(250);
const RETRY_AFTER: Duration = Duration::from_millis(25);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const REGISTER_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Highest feature level that this software supports.
const FEATURE_LEVEL: u16 = 1;

/// Which metadata version each shard is known to have applied. A version once applied is in that shard's log for ever, so what
/// is known stays true across changes of leaders.
#[derive(Debug, Default)]
pub(super) struct FeedProgress {
    applied: Mutex<BTreeMap<ShardId, u64>>,
    changed: Notify,
}

impl FeedProgress {
    fn get(&self, shard: ShardId) -> Option<u64> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).get(&shard).copied()
    }

    fn set(&self, shard: ShardId, version: u64) {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let known = applied.entry(shard).or_default();
        *known = version.max(*known);
        self.changed.notify_waiters();
    }
}

/// Feeds one shard while this node leads shard 0.
pub(super) async fn run<E: Env>(node: Node<E>, shard: ShardId) {
    let Some(source) = node.shard(ShardId::METADATA) else { return };
    loop {
        let changed = source.directory_changed();
        if source.serving().is_ok() {
            match feed_once(&node, shard).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(target: "cluster", node = node.id(), %shard, %error, "metadata feed waits");
                    Mark::MetadataFeedRetried.reached();
                    E::sleep(RETRY_AFTER).await;
                    continue;
                }
            }
        }
        let _ = timeout::<E, _>(LOOK_EVERY, changed).await;
    }
}

/// Brings `shard` one step further. `false`: it has all there is.
async fn feed_once<E: Env>(node: &Node<E>, shard: ShardId) -> Result<bool, ProposeError> {
    let version = match node.inner.feed.get(shard) {
        Some(version) => version,
        None => {
            let version = node.metadata_version(shard).await?;
            node.inner.feed.set(shard, version);
            version
        }
    };
    let Some(source) = node.shard(ShardId::METADATA) else { return Ok(false) };
    let Some(op) = source.read(|state| state.feed_since(version)) else { return Ok(false) };
    match node.forward(shard, op, PROPOSE_TIMEOUT).await? {
        Reply::Metadata { version: reached } => {
            node.inner.feed.set(shard, reached);
            if reached <= version {
                // The op did not fit the version that the shard really has: ask it.
                let version = node.metadata_version(shard).await?;
                node.inner.feed.set(shard, version);
                return Err(ProposeError::Unknown(format!("{shard:?} stays at metadata version {reached}")));
            }
            Ok(true)
        }
        reply => Err(ProposeError::Unknown(format!("{shard:?} answered a metadata feed with {reply:?}"))),
    }
}

/// Registers this broker in the directory, and again whenever the directory says something else of it.
pub(super) async fn register_broker<E: Env>(node: Node<E>) {
    let config = &node.inner.config;
    let broker = BrokerRecord {
        id: config.node_id,
        host: config.advertised_host.clone(),
        port: config.advertised_port,
        rack: config.rack.clone(),
        incarnation: node.inner.incarnation,
        feature_level: FEATURE_LEVEL,
    };
    loop {
        let registered = node.directory(|directory| directory.brokers.get(&broker.id) == Some(&broker));
        if registered {
            E::sleep(REGISTER_LOOK_EVERY).await;
            continue;
        }
        let op = Op::RegisterBroker(RegisterBroker { broker: broker.clone() });
        match node.forward(ShardId::METADATA, op, PROPOSE_TIMEOUT).await {
            Ok(_) => {
                tracing::info!(target: "cluster", node = broker.id, host = %broker.host, port = broker.port, "broker registered");
                let _ = node.fresh_directory(PROPOSE_TIMEOUT).await;
            }
            Err(error) => {
                tracing::debug!(target: "cluster", node = broker.id, %error, "broker not registered yet");
                E::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Tells the other nodes at once when this node has its first copy of the directory, so that they name it to clients.
pub(super) async fn tell_of_first_directory<E: Env>(node: Node<E>) {
    loop {
        let changed = node.inner.newest_directory.changed();
        if node.has_directory() {
            node.peers().poke_gossip();
            return;
        }
        changed.await;
    }
}

impl<E: Env> Node<E> {
    /// After it returns `true`, every shard's leader has applied at least this metadata version, and so has this node's own copy of
    /// the directory. `false` when the time was up first. Works on any node.
    pub async fn wait_metadata(&self, version: u64, timeout_in: Duration) -> bool {
        let deadline = E::now() + timeout_in;
        let own = async {
            loop {
                let changed = self.inner.newest_directory.changed();
                if self.inner.newest_directory.version() >= version {
                    return;
                }
                let _ = timeout::<E, _>(LOOK_EVERY, changed).await;
            }
        };
        if timeout::<E, _>(timeout_in, own).await.is_err() {
            return false;
        }
        loop {
            let left = deadline.saturating_duration_since(E::now());
            if left.is_zero() {
                return false;
            }
            match self.leader_of(ShardId::METADATA) {
                Some((leader, _)) if leader == self.id() => return self.wait_feed(version, left).await,
                Some((leader, _)) => {
                    let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                    let body = message::encode(&WaitMetadata { version, timeout_ms });
                    let request = PeerRequest { kind: message::WAIT_METADATA, shard: 0, body, payload: Vec::new() };
                    if let Ok((answer, _)) = self.peers().call(leader, None, Lane::Control, request, left).await
                        && message::decode::<bool>(&answer).unwrap_or(false)
                    {
                        return true;
                    }
                }
                None => {}
            }
            E::sleep(RETRY_AFTER).await;
        }
    }

    /// On the leader of shard 0: waits until the feed has reached every shard.
    pub(super) async fn wait_feed(&self, version: u64, timeout_in: Duration) -> bool {
        let reached = async {
            loop {
                let changed = self.inner.feed.changed.notified();
                if (1..self.shard_count()).all(|id| self.inner.feed.get(ShardId(id)).is_some_and(|at| at >= version)) {
                    return;
                }
                changed.await;
            }
        };
        timeout::<E, _>(timeout_in, reached).await.is_ok()
    }
}
