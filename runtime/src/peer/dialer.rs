//! The end of a connection that dials: it sends requests and waits for their replies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::ready;
use lockstep_core::NodeId;
use lockstep_env::{Connection, Either, Elapsed, Env, select, timeout, watch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};

use super::budget::cost;
use super::connection::{Ended, FrameReader, Heard, Outgoing, Owned, QUEUE_LEN, write_frames};
use super::frame::{Frame, FrameError, FrameHead, FrameKind, encode_frame};
use super::hello::{HELLO_LEN, Hello, HelloError, PROTOCOL_VERSION, Refusal, decode_hello};
use super::network::{Shared, ping};
use super::request::{Lane, PeerError, PeerFault, PeerRequest};
use lockstep_probe::Mark;

/// First wait after a failed connection; the following ones double.
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait between attempts.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// A connection that lived so long was a good one: the next wait is the shortest again.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);
/// A greeting must be answered within this time.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to one node on one lane.
#[derive(Debug)]
pub(super) struct Link {
    node: NodeId,
    lane: Lane,
    live: Mutex<Option<Arc<Live>>>,
    /// Somebody wants the connection, or the node has shown that it is there: do not wait for long.
    poked: Notify,
    /// Send a ping with fresh gossip at once.
    pub(super) ping_now: Notify,
}

/// An established connection.
#[derive(Debug)]
struct Live {
    incarnation: [u8; 16],
    queue: mpsc::Sender<Outgoing>,
    /// Bytes that may still be under way, with the calls' own cost.
    budget: Arc<Semaphore>,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Frame>>,
    closed: bool,
}

impl Live {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails the calls that wait and those that come.
    fn close(&self) {
        self.budget.close();
        let waiting = {
            let mut calls = self.calls();
            calls.closed = true;
            std::mem::take(&mut calls.waiting)
        };
        drop(waiting);
    }
}

/// Forgets a call whose caller has gone.
struct Registered {
    live: Arc<Live>,
    call: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let sender = self.live.calls().waiting.remove(&self.call);
        drop(sender);
    }
}

/// A call under way.
struct Call {
    node: NodeId,
    registered: Registered,
    reply: oneshot::Receiver<Frame>,
    permits: u32,
    /// Given back when the reply is here, or the caller has gone.
    permit: Option<OwnedSemaphorePermit>,
    /// Not queued yet: the lane is congested.
    unsent: Option<Outgoing>,
}

impl Call {
    async fn finish(mut self) -> Result<(Bytes, Bytes), PeerError> {
        let unreachable = PeerError::Unreachable(self.node);
        if self.permit.is_none() {
            let budget = Arc::clone(&self.registered.live.budget);
            self.permit = Some(budget.acquire_many_owned(self.permits).await.map_err(|_| unreachable.clone())?);
        }
        if let Some(unsent) = self.unsent.take() {
            self.registered.live.queue.send(unsent).await.map_err(|_| unreachable)?;
        }
        let reply = (&mut self.reply).await.map_err(|_| PeerError::Lost(self.node))?;
        match reply.head.kind {
            FrameKind::Reply => Ok((reply.body, reply.payload)),
            FrameKind::WrongIncarnation => Err(PeerError::WrongIncarnation(self.node)),
            _ => {
                let reason = String::from_utf8_lossy(&reply.body).into_owned();
                Err(PeerFault { code: reply.head.shard, reason }.into())
            }
        }
    }
}

impl Link {
    pub(super) fn new(node: NodeId, lane: Lane) -> Self {
        Self { node, lane, live: Mutex::new(None), poked: Notify::new(), ping_now: Notify::new() }
    }

    fn live(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poke(&self) {
        self.poked.notify_one();
    }

    pub(super) fn is_up(&self) -> bool {
        self.live().is_some()
    }

    /// Sends a request and waits for its reply. It is queued before this returns, unless the lane is congested.
    pub(super) fn call<E: Env>(
        &self,
        expect_incarnation: Option<[u8; 16]>,
        request: PeerRequest,
        time: Duration,
    ) -> impl Future<Output = Result<(Bytes, Bytes), PeerError>> + Send + use<E> {
        let node = self.node;
        match self.start_call(expect_incarnation, request, time) {
            Ok(call) => {
                let late = move |Elapsed| Err(PeerError::Timeout(node));
                timeout::<E, _>(time, call.finish()).map(move |answered| answered.unwrap_or_else(late)).left_future()
            }
            Err(error) => ready(Err(error)).right_future(),
        }
    }

    fn start_call(
        &self,
        expect_incarnation: Option<[u8; 16]>,
        request: PeerRequest,
        time: Duration,
    ) -> Result<Call, PeerError> {
        let node = self.node;
        let live = self.live().clone();
        let Some(live) = live else {
            self.poke();
            return Err(PeerError::Unreachable(node));
        };
        if expect_incarnation.is_some_and(|expected| expected != live.incarnation) {
            Mark::RequestForFormerDiskNotSent.reached();
            return Err(PeerError::WrongIncarnation(node));
        }
        let (sender, reply) = oneshot::channel();
        let call = {
            let mut calls = live.calls();
            if calls.closed {
                return Err(PeerError::Unreachable(node));
            }
            let call = calls.next;
            calls.next += 1;
            calls.waiting.insert(call, sender);
            call
        };
        let registered = Registered { live: Arc::clone(&live), call };
        let head = FrameHead {
            kind: FrameKind::Request,
            request_kind: request.kind,
            shard: request.shard,
            timeout_ms: u32::try_from(time.as_millis()).unwrap_or(u32::MAX),
            call,
            incarnation: expect_incarnation.unwrap_or_default(),
        };
        let head = match encode_frame(&head, &request.body, &request.payload, self.lane.frame_len_max()) {
            Ok(head) => head,
            Err(FrameError::TooLong { len, len_max }) => return Err(PeerError::TooLarge { len, len_max }),
            Err(error) => unreachable!("encoding fails for no other reason: {error}"),
        };
        let len = request.payload.iter().fold(head.len(), |sum, part| sum.saturating_add(part.len()));
        let permits = u32::try_from(cost(len)).unwrap_or(u32::MAX);
        let outgoing = Outgoing { head, payload: request.payload };
        let (permit, unsent) = match Arc::clone(&live.budget).try_acquire_many_owned(permits) {
            Ok(permit) => match live.queue.try_send(outgoing) {
                Ok(()) => (Some(permit), None),
                Err(TrySendError::Full(outgoing)) => (Some(permit), Some(outgoing)),
                Err(TrySendError::Closed(_)) => return Err(PeerError::Unreachable(node)),
            },
            Err(TryAcquireError::NoPermits) => (None, Some(outgoing)),
            Err(TryAcquireError::Closed) => return Err(PeerError::Unreachable(node)),
        };
        Ok(Call { node, registered, reply, permits, permit, unsent })
    }
}

/// Keeps a connection to a node until the network stops.
pub(super) async fn keep_connected<E: Env>(shared: Arc<Shared<E>>, link: Arc<Link>, mut stop: watch::Receiver<bool>) {
    let mut failures = 0_u32;
    let mut last_reason = String::new();
    loop {
        let attempted_at = E::now();
        let ended = match select(stop.wait_for(|stop| *stop), connect_and_serve(&shared, &link)).await {
            Either::First(_) => return,
            Either::Second(ended) => ended,
        };
        let lived = E::now().saturating_duration_since(attempted_at);
        let good = matches!(ended, DialError::Ended(_)) && lived >= GOOD_CONNECTION;
        failures = if good { 0 } else { failures.saturating_add(1) };
        let reason = ended.to_string();
        if reason == last_reason {
            tracing::debug!(node = link.node, lane = ?link.lane, reason, "no connection");
        } else {
            tracing::warn!(node = link.node, lane = ?link.lane, reason, "no connection");
            last_reason = reason;
        }

        let wait = back_off::<E>(failures);
        let poked_or_late = select(E::sleep_until(attempted_at + wait), link.poked.notified());
        if let Either::Second(Either::Second(())) = select(stop.wait_for(|stop| *stop), poked_or_late).await {
            let soonest = E::sleep_until(attempted_at + back_off::<E>(0));
            select(stop.wait_for(|stop| *stop), soonest).await;
        }
        if *stop.borrow() {
            return;
        }
    }
}

/// The time from one attempt to the next, at random between half and all of the step.
fn back_off<E: Env>(failures: u32) -> Duration {
    let step = BACK_OFF_MIN.saturating_mul(1 << failures.min(10)).min(BACK_OFF_MAX);
    let half = step / 2;
    let half_us = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_micros(E::random_u64() % half_us)
}

/// Why there is no connection to a node.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0} cannot be reached: {1}")]
    Connect(String, std::io::Error),
    #[error("{0} cannot be reached in time")]
    ConnectTimeout(String),
    #[error("{0} did not greet: {1}")]
    Greeting(String, std::io::Error),
    #[error("{0} did not greet in time")]
    GreetingTimeout(String),
    #[error("{0} does not greet as a node does: {1}")]
    Hello(String, HelloError),
    #[error("{0} refuses: {1}")]
    Refused(String, Refusal),
    #[error("{0} is refused: {1}")]
    Unwanted(String, Refusal),
    #[error("the connection ended: {0}")]
    Ended(Ended),
}

async fn connect_and_serve<E: Env>(shared: &Arc<Shared<E>>, link: &Arc<Link>) -> DialError {
    match connect(shared, link).await {
        Ok((connection, hello)) => DialError::Ended(serve(shared, link, connection, hello).await),
        Err(error) => error,
    }
}

async fn connect<E: Env>(shared: &Shared<E>, link: &Link) -> Result<(Connection<E>, Hello), DialError> {
    let address = shared.address(link.node);
    let mut connection = match timeout::<E, _>(shared.options.connect_timeout, shared.env.connect(&address)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(DialError::Connect(address, error)),
        Err(Elapsed) => return Err(DialError::ConnectTimeout(address)),
    };
    let hello = shared.hello(link.lane, link.node, None);
    let greeting = async {
        connection.writer.write_all(&hello.encode()).await?;
        connection.writer.flush().await?;
        let mut answer = [0; HELLO_LEN];
        connection.reader.read_exact(&mut answer).await?;
        Ok(answer)
    };
    let answer = match timeout::<E, _>(HELLO_TIMEOUT, greeting).await {
        Ok(Ok(answer)) => decode_hello(&answer).map_err(|error| DialError::Hello(address.clone(), error))?,
        Ok(Err(error)) => return Err(DialError::Greeting(address, error)),
        Err(Elapsed) => return Err(DialError::GreetingTimeout(address)),
    };
    if let Some(refusal) = answer.refusal {
        return Err(DialError::Refused(address, refusal));
    }
    let unwanted = if answer.version != PROTOCOL_VERSION {
        Some(Refusal::Version)
    } else if answer.cluster_token != shared.options.cluster_token {
        Some(Refusal::Cluster)
    } else if answer.target != shared.options.me || answer.lane != link.lane {
        Some(Refusal::Target)
    } else if answer.node != link.node {
        Some(Refusal::Node)
    } else {
        None
    };
    match unwanted {
        Some(refusal) => Err(DialError::Unwanted(address, refusal)),
        None => Ok((connection, answer)),
    }
}

/// Takes the connection out of use, however its task ends.
struct Up<'a> {
    link: &'a Link,
    live: Arc<Live>,
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        let live = self.link.live().take();
        drop(live);
        self.live.close();
    }
}

async fn serve<E: Env>(shared: &Arc<Shared<E>>, link: &Arc<Link>, connection: Connection<E>, hello: Hello) -> Ended {
    let (queue, queued) = mpsc::channel(QUEUE_LEN);
    let writer = E::spawn(write_frames::<E>(connection.writer, queued, shared.options.silence_max));
    let mut writer = Owned::<E, _>(writer);
    let live = Arc::new(Live {
        incarnation: hello.incarnation,
        queue: queue.clone(),
        budget: Arc::new(Semaphore::new(link.lane.sent_bytes_max())),
        calls: Mutex::default(),
    });
    shared.greeted(link.node, hello.incarnation);
    *link.live() = Some(Arc::clone(&live));
    let up = Up { link, live };
    tracing::debug!(node = link.node, lane = ?link.lane, address = connection.peer_address, "connected");

    let heard = Heard::never();
    heard.now::<E>();
    let reading = async {
        let mut reader = FrameReader::<E>::new(connection.reader, link.lane.frame_len_max());
        loop {
            let frame = match reader.next(|| shared.heard(link.node, &heard)).await {
                Ok(frame) => frame,
                Err(ended) => return ended,
            };
            match frame.head.kind {
                FrameKind::Ping => {}
                FrameKind::Reply | FrameKind::Fault | FrameKind::WrongIncarnation => {
                    let waiting = up.live.calls().waiting.remove(&frame.head.call);
                    // A caller whose time was up has gone.
                    waiting.map(|waiting| waiting.send(frame));
                }
                FrameKind::Request => return Ended::Unexpected,
            }
        }
    };
    let gossip = || if link.lane == Lane::Control { shared.handler.gossip() } else { Bytes::new() };
    let pinging = ping(shared, &heard, &queue, &link.ping_now, gossip);
    let writing = async {
        match (&mut writer.0).await {
            Ok(ended) => ended,
            Err(failed) => Ended::Io(std::io::Error::other(failed)),
        }
    };
    match select(reading, select(pinging, writing)).await {
        Either::First(ended) | Either::Second(Either::First(ended) | Either::Second(ended)) => ended,
    }
}
