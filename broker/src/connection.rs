//! Connections: frames in, responses out, in order.
//!
//! Each connection has two tasks. The reader takes frames off the socket and queues them; the writer handles them one after
//! another and writes each response. Only Produce, and an OffsetCommit with nothing but such requests before it, are begun by the
//! reader already, so that several can be under way while the order of their proposals is the order in which they arrived. A panic in a handler ends its connection and no other.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use lockstep_env::{Connection, Either, Env, Listener, Task, select, timeout};
use lockstep_wire::frame::{self, EncodedFrame, FrameError};
use lockstep_wire::{ApiKey, Request};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::answer_room::TakenRoom;
use crate::api;
use crate::broker::Broker;
use crate::connection_limits::{OpenGuard, Reserved};
use crate::dispatch::{self, Outcome, RequestContext};
use crate::frame_reader::{FrameReader, LENGTH_PREFIX_BYTES};

/// Requests of one connection that may be queued or under way.
const QUEUE_LEN_MAX: usize = 64;
/// Answers of so many bytes leave before further ones are looked at.
const UNSENT_BYTES_MAX: usize = 64 << 10;
/// A response that is being written must go on within this time.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// After the client has said that it sends nothing more, what it asked for may take so long.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long accepting pauses after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Answers must be taken in that time, plus what it takes at this rate: they hold memory that others wait for.
const SLOWEST_TAKEN_BYTES_PER_SECOND: usize = 64 << 10;

/// Accepts connections until the broker stops. While this node has no copy of the directory they are closed at once, as a Kafka broker does not listen
/// before it has caught up with the metadata log (KIP-631).
pub(crate) async fn accept<E: Env>(broker: Broker<E>, mut listener: E::Listener) {
    let mut turned_away = false;
    loop {
        let connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                E::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !broker.node().has_directory() {
            // It would be told that there is no broker and no topic. Closed at once, it asks another one of its list.
            if !turned_away {
                turned_away = true;
                tracing::info!("clients are turned away until this node has heard of brokers and topics");
            }
            broker.metrics().refused_connections.add(1);
            continue;
        }
        if std::mem::take(&mut turned_away) {
            tracing::info!("clients are served now");
        }
        let Some(guard) = broker.limits().admit() else {
            broker.metrics().refused_connections.add(1);
            tracing::warn!(peer = connection.peer_address, "too many connections: one more was closed at once");
            continue;
        };
        broker.metrics().accepted_connections.add(1);
        let serving = serve(broker.clone(), connection, guard);
        drop(E::spawn(serving));
    }
}

/// A request on its way to the writer.
enum Queued {
    /// Not looked at yet.
    Frame(Bytes),
    /// A Produce or OffsetCommit request whose proposals are made already.
    Begun { api_version: i16, correlation_id: i32, outcome: Pin<Box<dyn Future<Output = Outcome> + Send>> },
}

/// How many requests of a connection are queued or under way.
#[derive(Debug, Default)]
struct InQueue {
    all: AtomicUsize,
    /// Those that nobody has begun when they are queued.
    unbegun: AtomicUsize,
}

/// A queued request.
struct QueuedRequest {
    queued: Queued,
    /// When its last byte came.
    arrived: Instant,
    /// The part of the budget that it holds until it is answered.
    reserved: Reserved,
}

/// The identity of a connection, for handlers and logs.
#[derive(Clone, Debug)]
struct Peer {
    address: String,
    /// As Kafka writes it: a slash and the address without the port.
    host: Arc<str>,
}

impl Peer {
    fn new(address: String) -> Self {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        let host = format!("/{}", host.trim_start_matches('[').trim_end_matches(']')).into();
        Self { address, host }
    }

    fn context(&self, header: &frame::RequestHeader, request_bytes: usize) -> RequestContext {
        RequestContext {
            api_version: header.api_version,
            request_bytes,
            client_id: header.client_id.as_ref().map(|id| id.to_string()).unwrap_or_default(),
            client_host: Arc::clone(&self.host),
        }
    }
}

/// Serves one connection to its end.
async fn serve<E: Env>(broker: Broker<E>, connection: Connection<E>, guard: OpenGuard) {
    let peer = Peer::new(connection.peer_address);
    tracing::debug!(peer = peer.address, "connection opened");
    let (queue, queued) = mpsc::channel(QUEUE_LEN_MAX);
    let in_queue = Arc::new(InQueue::default());
    let mut writer = E::spawn(write(broker.clone(), connection.writer, queued, Arc::clone(&in_queue), peer.clone()));
    let reading = read(&broker, connection.reader, queue, &in_queue, &peer);
    // The reader ends when the client closes, breaks the protocol, or the broker stops; the writer when the client does not
    // take its responses or a handler panics. Neither needs the other then, but the writer first answers what was asked.
    let ended = match select(reading, &mut writer).await {
        Either::First(()) => timeout::<E, _>(LINGER_TIMEOUT, &mut writer).await,
        Either::Second(ended) => Ok(ended),
    };
    match ended {
        Ok(Ok(())) => tracing::debug!(peer = peer.address, "connection closed"),
        Ok(Err(error)) => {
            tracing::error!(peer = peer.address, %error, "a request failed unexpectedly: connection closed")
        }
        Err(_) => writer.abort(),
    }
    drop(guard);
}

/// Reads frames until the connection ends, and queues them.
async fn read<E: Env>(
    broker: &Broker<E>,
    reader: E::Reader,
    queue: mpsc::Sender<QueuedRequest>,
    in_queue: &InQueue,
    peer: &Peer,
) {
    let limits = broker.limits();
    let mut reader = FrameReader::new(reader, limits);
    loop {
        if !reader.wait::<E>(limits, broker.stop(), || in_queue.all.load(Ordering::Acquire) > 0).await {
            return;
        }
        let (frame, reserved) = match reader.read::<E>(limits).await {
            Ok(read) => read,
            Err(reason) => {
                tracing::warn!(peer = peer.address, reason, "connection closed");
                return;
            }
        };
        let arrived = E::now();
        broker.metrics().received_bytes.add(LENGTH_PREFIX_BYTES + frame.len());
        // A commit waits for all before it that may bear on it, such as a join; other commits need not be over.
        let begins = api::produce::is_produce(&frame)
            || api::group_offsets::is_commit(&frame) && in_queue.unbegun.load(Ordering::Acquire) == 0;
        let queued = if begins {
            match begin(broker, frame, peer).await {
                Some(begun) => begun,
                None => return,
            }
        } else {
            in_queue.unbegun.fetch_add(1, Ordering::AcqRel);
            Queued::Frame(frame)
        };
        in_queue.all.fetch_add(1, Ordering::AcqRel);
        if queue.send(QueuedRequest { queued, arrived, reserved }).await.is_err() {
            return;
        }
    }
}

/// Decodes a Produce or OffsetCommit request and makes its proposals. `None`: the connection must end.
async fn begin<E: Env>(broker: &Broker<E>, frame: Bytes, peer: &Peer) -> Option<Queued> {
    let request_bytes = frame.len();
    let (header, request) = match frame::decode_request(frame) {
        Ok(decoded) => decoded,
        Err(error) => {
            tracing::warn!(peer = peer.address, %error, "connection closed");
            return None;
        }
    };
    let context = peer.context(&header, request_bytes);
    let outcome: Pin<Box<dyn Future<Output = Outcome> + Send>> = match request {
        Request::Produce(request) => Box::pin(api::produce::begin(broker.clone(), context, request).await.finish()),
        Request::OffsetCommit(request) => {
            let begun = api::group_offsets::begin_commit(broker, &context, request).await;
            Box::pin(async move { Outcome::respond(begun.await.into()) })
        }
        other => {
            tracing::error!(
                peer = peer.address,
                api = other.api_key().name(),
                "a request changed its kind while it was decoded"
            );
            return None;
        }
    };
    Some(Queued::Begun { api_version: header.api_version, correlation_id: header.correlation_id, outcome })
}

/// Handles queued requests one after another and writes what they answer. Answers that are ready at the same time leave together.
async fn write<E: Env>(
    broker: Broker<E>,
    mut writer: E::Writer,
    mut queued: mpsc::Receiver<QueuedRequest>,
    in_queue: Arc<InQueue>,
    peer: Peer,
) {
    let mut unsent = Unsent::default();
    loop {
        let next = match queued.try_recv() {
            Ok(next) if !unsent.is_full() => next,
            // Nobody waits for an answer longer than it takes to make it.
            taken => {
                if !send(&broker, &mut writer, &mut unsent, &in_queue, &peer).await {
                    return;
                }
                match taken {
                    Ok(next) => next,
                    Err(_) => match queued.recv().await {
                        Some(next) => next,
                        None => break,
                    },
                }
            }
        };
        let QueuedRequest { queued: request, arrived, reserved } = next;
        let was_begun = matches!(request, Queued::Begun { .. });
        let (api_version, correlation_id, outcome) = match request {
            Queued::Begun { api_version, correlation_id, mut outcome } => {
                let outcome = match poll_once(&mut outcome).await {
                    Poll::Ready(outcome) => outcome,
                    Poll::Pending => {
                        if !send(&broker, &mut writer, &mut unsent, &in_queue, &peer).await {
                            return;
                        }
                        outcome.await
                    }
                };
                (api_version, correlation_id, outcome)
            }
            Queued::Frame(frame) => {
                if !send(&broker, &mut writer, &mut unsent, &in_queue, &peer).await {
                    return;
                }
                let request_bytes = frame.len();
                match frame::decode_request(frame) {
                    Ok((header, request)) => {
                        let context = peer.context(&header, request_bytes);
                        // On the heap while it lasts: connections that rest need no room for what handlers remember.
                        let outcome = Box::pin(dispatch::dispatch(&broker, &context, request)).await;
                        (header.api_version, header.correlation_id, outcome)
                    }
                    Err(FrameError::UnsupportedApiVersions { correlation_id, .. }) => {
                        (0, correlation_id, Outcome::respond(api::api_versions::unsupported_version()))
                    }
                    Err(error) => {
                        tracing::warn!(peer = peer.address, %error, "connection closed");
                        return;
                    }
                }
            }
        };
        let (api_key, room) = match outcome {
            Outcome::Respond(response, mut room) => {
                let api_key = response.api_key();
                match frame::encode_response(api_version, correlation_id, &response) {
                    Ok(frame) => {
                        room.grow_to(frame.len());
                        unsent.add(frame);
                    }
                    Err(error) => {
                        tracing::warn!(peer = peer.address, api = api_key.name(), %error, "connection closed");
                        send(&broker, &mut writer, &mut unsent, &in_queue, &peer).await;
                        return;
                    }
                }
                (api_key, room)
            }
            Outcome::Silence => (ApiKey::Produce, TakenRoom::default()),
            Outcome::Close => {
                send(&broker, &mut writer, &mut unsent, &in_queue, &peer).await;
                return;
            }
        };
        unsent.requests.push(Answered { api_key, arrived, was_begun, _reserved: reserved, _room: room });
    }
    // Errors do not matter any more: the client may be gone.
    let _ = timeout::<E, _>(STALL_TIMEOUT, writer.shutdown()).await;
}

/// Polls a future once, with the waker of the task.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// A request that is answered as soon as what is unsent is sent.
struct Answered {
    api_key: ApiKey,
    arrived: Instant,
    was_begun: bool,
    _reserved: Reserved,
    _room: TakenRoom,
}

/// Answers that are to be sent, in order.
#[derive(Default)]
struct Unsent {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// Those that are answered by them, and those that want no answer.
    requests: Vec<Answered>,
}

impl Unsent {
    fn add(&mut self, frame: EncodedFrame) {
        self.bytes += frame.len();
        self.pieces.extend(frame.segments);
    }

    fn is_full(&self) -> bool {
        self.bytes >= UNSENT_BYTES_MAX || self.requests.len() >= QUEUE_LEN_MAX
    }

    /// Writes the answers without joining their pieces. Returns the number of bytes.
    async fn write<E: Env>(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> Result<usize, String> {
        const SLICES_MAX: usize = 64;
        if self.pieces.is_empty() {
            return Ok(0);
        }
        let seconds = u64::try_from(self.bytes / SLOWEST_TAKEN_BYTES_PER_SECOND).unwrap_or(u64::MAX);
        let deadline = E::now() + STALL_TIMEOUT + Duration::from_secs(seconds);
        while !self.pieces.is_empty() {
            let patience = deadline.saturating_duration_since(E::now()).min(STALL_TIMEOUT);
            let slices: Vec<_> = self.pieces.iter().take(SLICES_MAX).map(|piece| IoSlice::new(piece)).collect();
            let mut written = timeout::<E, _>(patience, writer.write_vectored(&slices))
                .await
                .map_err(|_| "the client does not take its responses".to_owned())?
                .map_err(|error| error.to_string())?;
            if written == 0 {
                return Err("the client has closed".to_owned());
            }
            while written > 0 {
                let Some(first) = self.pieces.front_mut() else { break };
                if written < first.len() {
                    first.advance(written);
                    break;
                }
                written -= first.len();
                self.pieces.pop_front();
            }
        }
        writer.flush().await.map_err(|error| error.to_string())?;
        Ok(std::mem::take(&mut self.bytes))
    }
}

/// Sends what is unsent, and with that is done with its requests. `false`: the connection must end.
async fn send<E: Env>(
    broker: &Broker<E>,
    writer: &mut E::Writer,
    unsent: &mut Unsent,
    in_queue: &InQueue,
    peer: &Peer,
) -> bool {
    match unsent.write::<E>(writer).await {
        Ok(sent_bytes) => broker.metrics().sent_bytes.add(sent_bytes),
        Err(reason) => {
            let api = unsent.requests.first().map(|request| request.api_key.name());
            tracing::warn!(peer = peer.address, api, reason, "connection closed");
            return false;
        }
    }
    for request in unsent.requests.drain(..) {
        broker.metrics().answered(request.api_key, E::now().saturating_duration_since(request.arrived));
        in_queue.all.fetch_sub(1, Ordering::AcqRel);
        if !request.was_begun {
            in_queue.unbegun.fetch_sub(1, Ordering::AcqRel);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::task::Context;

    use lockstep_env::tokio_env::TokioEnv;
    use tokio::io::AsyncReadExt;

    use super::*;

    const ANSWER_BYTES: usize = 8 << 20;

    /// Takes at most so many bytes at a time, and notes each time how many.
    struct SlowWriter {
        taken: Vec<u8>,
        writes: Vec<usize>,
        bytes_max: usize,
        flushes: usize,
    }

    impl SlowWriter {
        fn new(bytes_max: usize) -> Self {
            Self { taken: Vec::new(), writes: Vec::new(), bytes_max, flushes: 0 }
        }
    }

    impl AsyncWrite for SlowWriter {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(self.bytes_max).collect();
            self.writes.push(bytes.len());
            self.taken.extend(&bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn answers_that_are_ready_leave_in_order_and_together() {
        let frames = || (0..40_u8).map(|frame| EncodedFrame { segments: vec![Bytes::from(vec![frame; 5]); 3] });
        let expected: Vec<u8> = (0..40_u8).flat_map(|frame| [frame; 15]).collect();
        for (bytes_max, writes) in [(usize::MAX, vec![64 * 5, 56 * 5]), (7, [vec![7; 85], vec![5]].concat())] {
            let mut unsent = Unsent::default();
            frames().for_each(|frame| unsent.add(frame));
            let mut writer = SlowWriter::new(bytes_max);
            assert_eq!(unsent.write::<TokioEnv>(&mut writer).await, Ok(600));
            assert_eq!((writer.taken, writer.writes, writer.flushes), (expected.clone(), writes, 1));
            let mut writer = SlowWriter::new(bytes_max);
            assert_eq!(unsent.write::<TokioEnv>(&mut writer).await, Ok(0));
            assert_eq!((writer.writes.len(), writer.flushes), (0, 0), "nothing is left");
        }
    }

    #[test]
    fn large_answers_do_not_wait_for_more() {
        let mut unsent = Unsent::default();
        unsent.add(EncodedFrame { segments: vec![Bytes::from(vec![0; UNSENT_BYTES_MAX - 1])] });
        assert!(!unsent.is_full());
        unsent.add(EncodedFrame { segments: vec![Bytes::from_static(b"x")] });
        assert!(unsent.is_full());
    }

    #[test]
    fn a_client_is_known_by_its_host() {
        assert_eq!(&*Peer::new("127.0.0.1:50123".to_owned()).host, "/127.0.0.1");
        assert_eq!(&*Peer::new("[::1]:50123".to_owned()).host, "/::1");
    }

    /// Writes an answer to a client that takes so much every second; how that ended, and after how long.
    async fn written_to(taken_a_second: usize) -> (Result<usize, String>, Duration) {
        let (mut broker_end, mut client_end) = tokio::io::duplex(64 << 10);
        let client = TokioEnv::spawn(async move {
            let mut taken = vec![0; taken_a_second];
            while client_end.read_exact(&mut taken).await.is_ok() {
                TokioEnv::sleep(Duration::from_secs(1)).await;
            }
        });
        let mut unsent =
            Unsent { pieces: [Bytes::from(vec![0; ANSWER_BYTES])].into(), bytes: ANSWER_BYTES, requests: Vec::new() };
        let began = TokioEnv::now();
        let written = unsent.write::<TokioEnv>(&mut broker_end).await;
        let took = TokioEnv::now() - began;
        drop(broker_end);
        client.await.expect("the client ends");
        (written, took)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_be_taken_slowly_but_not_for_ever() {
        // At half of the rate that must be kept it is over once twice the time and what may be a stall are past, though the client never stops taking.
        let (written, took) = written_to(SLOWEST_TAKEN_BYTES_PER_SECOND / 2).await;
        assert!(written.is_err(), "{written:?}");
        assert!((Duration::from_secs(128)..Duration::from_secs(160)).contains(&took), "{took:?}");
        let (written, took) = written_to(SLOWEST_TAKEN_BYTES_PER_SECOND).await;
        assert_eq!(written, Ok(ANSWER_BYTES));
        assert!(took > Duration::from_secs(120), "{took:?}");
    }
}
