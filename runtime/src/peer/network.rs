//! The network as a node sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::ready;
use lockstep_core::NodeId;
use lockstep_env::{Elapsed, Env, Listener, select, timeout, watch};
use tokio::sync::{Notify, mpsc, oneshot};

use super::acceptor;
use super::budget::Budget;
use super::connection::{Ended, Heard, Outgoing};
use super::dialer::{Link, keep_connected};
use super::frame::{FrameHead, FrameKind, encode_frame};
use super::hello::{Hello, PROTOCOL_VERSION, Refusal};
use super::options::PeerOptions;
use super::request::{
    FAULT_INTERNAL, IncomingRequest, Lane, PeerError, PeerFault, PeerHandler, PeerIdentity, PeerRequest,
};
use crate::error::StartError;

/// Bytes of gossip in a ping.
const GOSSIP_LEN_MAX: usize = 64 << 10;

/// Connections to all other nodes. Cheap to clone; works until [`PeerNetwork::shutdown`].
#[derive(Clone)]
pub struct PeerNetwork<E: Env> {
    shared: Arc<Shared<E>>,
    running: Arc<Running<E>>,
    local_address: Arc<str>,
}

struct Running<E: Env> {
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<E::Task<()>>>,
}

impl<E: Env> fmt::Debug for PeerNetwork<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerNetwork").field("me", &self.shared.options.me).finish_non_exhaustive()
    }
}

impl<E: Env> PeerNetwork<E> {
    /// Listens, and begins to dial the other nodes. Does not wait for any of them.
    pub async fn start(env: E, options: PeerOptions, handler: Arc<dyn PeerHandler>) -> Result<Self, StartError> {
        assert_ne!(options.incarnation, [0; 16], "an incarnation of zeros means any");
        let failed = |source| StartError::Listen { address: options.listen.clone(), source };
        let listener = env.listen(&options.listen).await.map_err(failed)?;
        let local_address = listener.local_address().map_err(failed)?;
        let (stop, stopping) = watch::channel(false);
        let peers = options
            .peers
            .iter()
            .filter(|(node, _)| **node != options.me)
            .map(|(node, address)| (*node, Peer::new(*node, address.clone())))
            .collect();
        let shared = Arc::new(Shared { env, options, handler, peers });
        let mut tasks = vec![E::spawn(acceptor::accept(Arc::clone(&shared), listener, stopping.clone()))];
        for peer in shared.peers.values() {
            for link in &peer.links {
                tasks.push(E::spawn(keep_connected(Arc::clone(&shared), Arc::clone(link), stopping.clone())));
            }
        }
        let running = Arc::new(Running { stop, tasks: Mutex::new(tasks) });
        Ok(Self { shared, running, local_address: local_address.into() })
    }

    /// Where it listens, `host:port`.
    #[must_use]
    pub fn local_address(&self) -> &str {
        &self.local_address
    }

    /// Sends a request and waits for its reply: body and payload. Fails at once when there is no connection.
    ///
    /// Requests leave in the order in which this function is called, whether or not the futures are awaited yet, as long
    /// as no more than the lane's bytes are under way (8 MiB on the control lane, 32 MiB on the bulk lane, and 4 KiB
    /// more for each call); beyond that they wait for their turn when they are awaited. A call to this node itself goes to its own handler.
    pub fn call(
        &self,
        to: NodeId,
        expect_incarnation: Option<[u8; 16]>,
        lane: Lane,
        request: PeerRequest,
        timeout: Duration,
    ) -> impl Future<Output = Result<(Bytes, Bytes), PeerError>> + Send + use<E> {
        let shared = &self.shared;
        if to == shared.options.me {
            return shared.call_self(expect_incarnation, lane, request, timeout).left_future();
        }
        match shared.peers.get(&to) {
            Some(peer) => peer.link(lane).call::<E>(expect_incarnation, request, timeout).left_future(),
            None => ready(Err(PeerError::Unreachable(to))).right_future(),
        }
        .right_future()
    }

    /// When anything last arrived from a node; now for this node. `None` before the first time.
    #[must_use]
    pub fn last_heard(&self, node: NodeId) -> Option<Instant> {
        if node == self.shared.options.me {
            return Some(E::now());
        }
        self.shared.peers.get(&node)?.heard.last()
    }

    /// The incarnation that a node last greeted with.
    #[must_use]
    pub fn incarnation_of(&self, node: NodeId) -> Option<[u8; 16]> {
        if node == self.shared.options.me {
            return Some(self.shared.options.incarnation);
        }
        *lock(&self.shared.peers.get(&node)?.incarnation)
    }

    /// Are requests to the node possible now, on both lanes? Always for this node.
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        node == self.shared.options.me
            || self.shared.peers.get(&node).is_some_and(|peer| peer.links.iter().all(|link| link.is_up()))
    }

    /// Sends fresh gossip to every node that is connected, without waiting for the next ping.
    pub fn poke_gossip(&self) {
        for peer in self.shared.peers.values() {
            peer.link(Lane::Control).ping_now.notify_one();
        }
    }

    /// Reaches a node under another address from the next attempt to connect on.
    pub fn redirect(&self, node: NodeId, address: String) {
        if let Some(peer) = self.shared.peers.get(&node) {
            *lock(&peer.address) = address;
            peer.poke();
        }
    }

    /// Closes all connections and stops listening. Calls fail from now on. When it returns, the handler is not called any
    /// more; requests being handled run on without an answer.
    pub async fn shutdown(&self) {
        self.running.stop.send_modify(|stop| *stop = true);
        let tasks = std::mem::take(&mut *lock(&self.running.tasks));
        for task in tasks {
            // A task that panicked has stopped too.
            let _ = task.await;
        }
    }
}

fn joined(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| joined.extend_from_slice(part));
    joined.freeze()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all tasks of the network share.
pub(super) struct Shared<E: Env> {
    pub(super) env: E,
    pub(super) options: PeerOptions,
    pub(super) handler: Arc<dyn PeerHandler>,
    /// All nodes but this one.
    peers: BTreeMap<NodeId, Peer>,
}

/// The connections that a node dialled.
#[derive(Default)]
struct Inbounds {
    /// Numbers them.
    count: u64,
    /// The one of each lane; dropping the sender closes it.
    current: BTreeMap<Lane, (u64, oneshot::Sender<()>)>,
}

struct Peer {
    address: Mutex<String>,
    heard: Heard,
    incarnation: Mutex<Option<[u8; 16]>>,
    links: [Arc<Link>; 2],
    inbound: Mutex<Inbounds>,
    budgets: [Arc<Budget>; 2],
}

impl Peer {
    fn new(node: NodeId, address: String) -> Self {
        Self {
            address: Mutex::new(address),
            heard: Heard::never(),
            incarnation: Mutex::new(None),
            links: Lane::ALL.map(|lane| Arc::new(Link::new(node, lane))),
            inbound: Mutex::default(),
            budgets: Lane::ALL.map(|lane| Budget::new(lane.handled_bytes_max())),
        }
    }

    fn link(&self, lane: Lane) -> &Link {
        &self.links[usize::from(lane.code())]
    }

    fn poke(&self) {
        self.links.iter().for_each(|link| link.poke());
    }
}

impl<E: Env> Shared<E> {
    fn call_self(
        &self,
        expect_incarnation: Option<[u8; 16]>,
        lane: Lane,
        request: PeerRequest,
        time: Duration,
    ) -> impl Future<Output = Result<(Bytes, Bytes), PeerError>> + Send + use<E> {
        let PeerOptions { me: node, incarnation, .. } = self.options;
        let handling = if expect_incarnation.is_none_or(|expected| expected == incarnation) {
            let PeerRequest { kind, shard, body, payload } = request;
            let request = IncomingRequest { kind, shard, lane, body, payload: joined(payload), timeout: time };
            Some(E::spawn(self.handler.handle(PeerIdentity { node, incarnation }, request)))
        } else {
            None
        };
        async move {
            let handling = handling.ok_or(PeerError::WrongIncarnation(node))?;
            match timeout::<E, _>(time, handling).await {
                Ok(Ok(Ok(reply))) => Ok((reply.body, joined(reply.payload))),
                Ok(Ok(Err(fault))) => Err(fault.into()),
                Ok(Err(failed)) => Err(PeerFault { code: FAULT_INTERNAL, reason: failed.to_string() }.into()),
                Err(Elapsed) => Err(PeerError::Timeout(node)),
            }
        }
    }

    pub(super) fn hello(&self, lane: Lane, target: NodeId, refusal: Option<Refusal>) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            lane,
            refusal,
            node: self.options.me,
            target,
            incarnation: self.options.incarnation,
            cluster_token: self.options.cluster_token,
        }
    }

    /// Is it one of the other nodes?
    pub(super) fn knows(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    fn peer(&self, node: NodeId) -> &Peer {
        self.peers.get(&node).expect("connections exist to nodes of the configuration only")
    }

    pub(super) fn address(&self, node: NodeId) -> String {
        lock(&self.peer(node).address).clone()
    }

    pub(super) fn poke(&self, node: NodeId) {
        self.peer(node).poke();
    }

    /// Notes that bytes arrived from a node.
    pub(super) fn heard(&self, node: NodeId, connection: &Heard) {
        connection.now::<E>();
        self.peer(node).heard.now::<E>();
    }

    /// Notes a node's greeting.
    pub(super) fn greeted(&self, node: NodeId, incarnation: [u8; 16]) {
        let peer = self.peer(node);
        peer.heard.now::<E>();
        let before = lock(&peer.incarnation).replace(incarnation);
        if before.is_some_and(|before| before != incarnation) {
            tracing::warn!(node, "the node came back with another disk");
        }
    }

    /// Makes a connection that a node dialled the only one of its lane.
    pub(super) fn enter(&self, node: NodeId, lane: Lane, replaced: oneshot::Sender<()>) -> Inbound<'_> {
        let peer = self.peer(node);
        let (number, former) = {
            let mut inbound = lock(&peer.inbound);
            inbound.count += 1;
            let number = inbound.count;
            (number, inbound.current.insert(lane, (number, replaced)))
        };
        drop(former);
        Inbound { peer, lane, number, budget: Arc::clone(&peer.budgets[usize::from(lane.code())]) }
    }
}

/// The place of a connection that a node dialled.
pub(super) struct Inbound<'a> {
    peer: &'a Peer,
    lane: Lane,
    number: u64,
    /// Shared by all connections that the node dials on this lane, one after another.
    pub(super) budget: Arc<Budget>,
}

impl Drop for Inbound<'_> {
    fn drop(&mut self) {
        let mut inbound = lock(&self.peer.inbound);
        if inbound.current.get(&self.lane).is_some_and(|(number, _)| *number == self.number) {
            inbound.current.remove(&self.lane);
        }
    }
}

/// Says again and again that this end lives, and ends when the other end has been silent for too long.
pub(super) async fn ping<E: Env>(
    shared: &Shared<E>,
    heard: &Heard,
    queue: &mpsc::Sender<Outgoing>,
    at_once: &Notify,
    gossip: impl Fn() -> Bytes,
) -> Ended {
    loop {
        let mut body = gossip();
        if body.len() > GOSSIP_LEN_MAX {
            tracing::error!(len = body.len(), "gossip is too long to be sent");
            body.clear();
        }
        let head = FrameHead::new(FrameKind::Ping, 0);
        if let Ok(head) = encode_frame(&head, &body, &[], Lane::Control.frame_len_max()) {
            // A full queue says as much as a ping.
            let _ = queue.try_send(Outgoing { head, payload: Vec::new() });
        }
        select(E::sleep(shared.options.ping_interval), at_once.notified()).await;
        let silence = heard.last().map_or(Duration::ZERO, |last| E::now().saturating_duration_since(last));
        if silence > shared.options.silence_max {
            return Ended::Silent;
        }
    }
}
