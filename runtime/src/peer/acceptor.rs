//! The end of a connection that was dialled: it reads requests, has them handled, and replies.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_env::{Connection, Either, Elapsed, Env, Listener, select, timeout, watch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use super::budget::{Budget, Charge, cost};
use super::connection::{Ended, FrameReader, Heard, Outgoing, Owned, QUEUE_LEN, write_frames};
use super::dialer::HELLO_TIMEOUT;
use super::frame::{Frame, FrameHead, FrameKind, encode_frame};
use super::hello::{HELLO_LEN, Hello, PROTOCOL_VERSION, Refusal, decode_hello};
use super::network::{Shared, ping};
use super::request::{
    FAULT_INTERNAL, FAULT_OVERLOADED, FAULT_TOO_LARGE, IncomingRequest, Lane, PeerFault, PeerIdentity, PeerReply,
};
use lockstep_probe::Mark;

/// Connections that have not greeted yet. More are closed at once.
const STRANGERS_MAX: usize = 64;
/// Wait after an error of the listening socket, which may be out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a fault's text.
const REASON_LEN_MAX: usize = 1024;

/// Accepts connections until the network stops, and returns when all of them have ended.
pub(super) async fn accept<E: Env>(shared: Arc<Shared<E>>, mut listener: E::Listener, mut stop: watch::Receiver<bool>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    // Every connection's task holds a sender.
    let (serving, mut all_ended) = mpsc::channel::<Infallible>(1);
    loop {
        let accepted = match select(stop.wait_for(|stop| *stop), listener.accept()).await {
            Either::First(_) => break,
            Either::Second(accepted) => accepted,
        };
        match accepted {
            Ok(connection) => {
                let Ok(stranger) = Arc::clone(&strangers).try_acquire_owned() else {
                    tracing::warn!(address = connection.peer_address, "too many connections that do not greet");
                    continue;
                };
                let shared = Arc::clone(&shared);
                let mut stop = stop.clone();
                let serving = serving.clone();
                drop(E::spawn(async move {
                    let _serving = serving;
                    let connection_ends = async {
                        let address = connection.peer_address.clone();
                        match greet(&shared, connection).await {
                            Ok((connection, hello)) => {
                                drop(stranger);
                                let reason = serve(&shared, connection, &hello).await;
                                tracing::debug!(node = hello.node, lane = ?hello.lane, %reason, "connection ended");
                            }
                            Err(reason) => tracing::warn!(address, reason, "connection refused"),
                        }
                    };
                    select(stop.wait_for(|stop| *stop), connection_ends).await;
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                select(stop.wait_for(|stop| *stop), E::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    drop((listener, serving));
    all_ended.recv().await;
}

/// Exchanges greetings, and checks the other one's.
async fn greet<E: Env>(shared: &Shared<E>, mut connection: Connection<E>) -> Result<(Connection<E>, Hello), String> {
    let greeting = async {
        let mut greeting = [0; HELLO_LEN];
        connection.reader.read_exact(&mut greeting).await.map_err(|error| error.to_string())?;
        let hello = decode_hello(&greeting).map_err(|error| error.to_string())?;
        let refusal = if hello.version != PROTOCOL_VERSION {
            Some(Refusal::Version)
        } else if hello.cluster_token != shared.options.cluster_token {
            Some(Refusal::Cluster)
        } else if hello.target != shared.options.me {
            Some(Refusal::Target)
        } else if !shared.knows(hello.node) || hello.refusal.is_some() {
            Some(Refusal::Node)
        } else {
            None
        };
        let answer = shared.hello(hello.lane, hello.node, refusal);
        connection.writer.write_all(&answer.encode()).await.map_err(|error| error.to_string())?;
        connection.writer.flush().await.map_err(|error| error.to_string())?;
        match refusal {
            Some(refusal) => Err(format!("node {}: {refusal}", hello.node)),
            None => Ok(hello),
        }
    };
    let hello =
        timeout::<E, _>(HELLO_TIMEOUT, greeting).await.map_err(|Elapsed| "no greeting in time".to_owned())??;
    Ok((connection, hello))
}

/// Serves a connection until it ends, or another one of the same node and lane takes its place.
async fn serve<E: Env>(shared: &Arc<Shared<E>>, connection: Connection<E>, hello: &Hello) -> Ended {
    let from = PeerIdentity { node: hello.node, incarnation: hello.incarnation };
    let lane = hello.lane;
    let (replaced, mut stop) = oneshot::channel::<()>();
    let inbound = shared.enter(from.node, lane, replaced);
    shared.greeted(from.node, from.incarnation);
    // The node is there: no need to wait for the next attempt to reach it.
    shared.poke(from.node);

    let (queue, queued) = mpsc::channel(QUEUE_LEN);
    let writer = E::spawn(write_frames::<E>(connection.writer, queued, shared.options.silence_max));
    let mut writer = Owned::<E, _>(writer);
    let heard = Heard::never();
    heard.now::<E>();
    let reading = async {
        let mut reader = FrameReader::<E>::new(connection.reader, lane.frame_len_max());
        loop {
            let frame = match reader.next(|| shared.heard(from.node, &heard)).await {
                Ok(frame) => frame,
                Err(ended) => return ended,
            };
            match frame.head.kind {
                FrameKind::Ping if frame.body.is_empty() => {}
                FrameKind::Ping => shared.handler.on_gossip(from, frame.body),
                FrameKind::Request => {
                    if let Err(ended) = start_handling(shared, from, lane, frame, &inbound.budget, &queue) {
                        return ended;
                    }
                }
                FrameKind::Reply | FrameKind::Fault | FrameKind::WrongIncarnation => return Ended::Unexpected,
            }
        }
    };
    let never = Notify::new();
    let pinging = ping(shared, &heard, &queue, &never, Bytes::new);
    let writing = async {
        match (&mut writer.0).await {
            Ok(ended) => ended,
            Err(failed) => Ended::Io(std::io::Error::other(failed)),
        }
    };
    match select(&mut stop, select(reading, select(pinging, writing))).await {
        Either::First(_) => {
            Mark::PeerConnectionReplaced.reached();
            Ended::Replaced
        }
        Either::Second(Either::First(ended) | Either::Second(Either::First(ended) | Either::Second(ended))) => ended,
    }
}

/// Hands a request to the handler and its future to a task of its own. Never waits: a lane that is overloaded must
/// still hear that the other end lives.
fn start_handling<E: Env>(
    shared: &Arc<Shared<E>>,
    from: PeerIdentity,
    lane: Lane,
    frame: Frame,
    budget: &Arc<Budget>,
    queue: &mpsc::Sender<Outgoing>,
) -> Result<(), Ended> {
    let call = frame.head.call;
    let expected = frame.head.incarnation;
    let refused = if expected != [0; 16] && expected != shared.options.incarnation {
        Mark::RequestForFormerDiskRefused.reached();
        Some(encode(&FrameHead::new(FrameKind::WrongIncarnation, call), &[]))
    } else {
        None
    };
    let charge = budget.charge(cost(frame.body.len() + frame.payload.len()));
    let (refused, charge) = match (refused, charge) {
        (None, Some(charge)) => (None, Some(charge)),
        (Some(refused), _) => (Some(refused), None),
        (None, None) => (Some(fault(call, FAULT_OVERLOADED, "too many requests under way")), None),
    };
    if let Some(refused) = refused {
        // A caller that does not take even its refusals is not worth the connection.
        return queue.try_send(refused).map_err(|_| Ended::Stalled);
    }
    let mut answering = Answering { call, lane, queue: queue.clone(), answered: false, _charge: charge };
    let request = IncomingRequest {
        kind: frame.head.request_kind,
        shard: frame.head.shard,
        lane,
        body: frame.body,
        payload: frame.payload,
        timeout: Duration::from_millis(u64::from(frame.head.timeout_ms)),
    };
    let handling = shared.handler.handle(from, request);
    drop(E::spawn(async move {
        let result = handling.await;
        answering.answer(result).await;
    }));
    Ok(())
}

/// Sees to it that every request is answered once, whatever becomes of its handler.
struct Answering {
    call: u64,
    lane: Lane,
    queue: mpsc::Sender<Outgoing>,
    answered: bool,
    _charge: Option<Charge>,
}

impl Answering {
    async fn answer(&mut self, result: Result<PeerReply, PeerFault>) {
        let outgoing = match result {
            Ok(reply) => {
                let head = FrameHead::new(FrameKind::Reply, self.call);
                match encode_frame(&head, &reply.body, &reply.payload, self.lane.frame_len_max()) {
                    Ok(head) => Outgoing { head, payload: reply.payload },
                    Err(error) => fault(self.call, FAULT_TOO_LARGE, &error.to_string()),
                }
            }
            Err(PeerFault { code, reason }) => fault(self.call, code, &reason),
        };
        self.answered = true;
        // If the connection has ended, the caller knows it.
        let _ = self.queue.send(outgoing).await;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.answered {
            let _ = self.queue.try_send(fault(self.call, FAULT_INTERNAL, "the handler ended without an answer"));
        }
    }
}

fn fault(call: u64, code: u16, reason: &str) -> Outgoing {
    let reason = &reason.as_bytes()[..reason.len().min(REASON_LEN_MAX)];
    encode(&FrameHead { shard: code, ..FrameHead::new(FrameKind::Fault, call) }, reason)
}

fn encode(head: &FrameHead, body: &[u8]) -> Outgoing {
    let head = encode_frame(head, body, &[], Lane::Control.frame_len_max());
    Outgoing { head: head.expect("a short frame fits every lane"), payload: Vec::new() }
}
