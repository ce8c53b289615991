//! Simulated links: ordered byte streams with delay, that can be cut in one direction or both, broken, or left half-open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use lockstep_env::{Connection, Env, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::trace::Trace;
use super::{SimEnv, SimSleep, chance, random_below};

/// Bytes in flight on one direction of a connection before a writer waits.
const WINDOW_BYTES: usize = 1 << 20;
/// How long a connection attempt to a silent host takes to fail.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// First port handed out for port 0.
const FREE_PORT_FIRST: u16 = 40_000;

/// How links behave.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// Shortest delay of a write.
    pub delay_min: Duration,
    /// Longest usual delay.
    pub delay_max: Duration,
    /// Writes in a thousand that are lost once and so come `retransmit_delay` later.
    pub loss_per_mille: u64,
    /// How much later.
    pub retransmit_delay: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            delay_min: Duration::from_micros(50),
            delay_max: Duration::from_micros(500),
            loss_per_mille: 0,
            retransmit_delay: Duration::from_millis(40),
        }
    }
}

/// The network of a simulated world.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    trace: Trace,
}

struct State {
    options: LinkOptions,
    listeners: BTreeMap<String, Arc<Mutex<Backlog>>>,
    /// Directions in which nothing passes.
    blocked: BTreeSet<(String, String)>,
    down: BTreeSet<String>,
    pipes: Vec<Weak<Mutex<Pipe>>>,
    port_next: u16,
    pipe_next: u64,
}

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<Connection<SimEnv>>,
    waker: Option<Waker>,
    closed: bool,
}

/// One direction of one connection.
struct Pipe {
    id: u64,
    from: String,
    to: String,
    in_flight: VecDeque<(Instant, Bytes)>,
    /// Written while the direction was blocked; it leaves when the block is lifted.
    stalled: VecDeque<Bytes>,
    last_arrival: Instant,
    bytes: usize,
    end: End,
    /// One host went away without a word: nothing passes, and the other side is not told until the host is back.
    half_open: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// The writer closed: what is in flight arrives, then the end of the stream.
    Closed,
    /// Broken: both sides get an error at once.
    Reset,
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// A network without hosts.
    #[must_use]
    pub fn new(options: LinkOptions, trace: Trace) -> Self {
        let state = State {
            options,
            listeners: BTreeMap::new(),
            blocked: BTreeSet::new(),
            down: BTreeSet::new(),
            pipes: Vec::new(),
            port_next: FREE_PORT_FIRST,
            pipe_next: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), trace }
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Changes how links behave from now on.
    pub fn set_options(&self, options: LinkOptions) {
        lock(&self.state).options = options;
    }

    /// Stops everything from `from` to `to`; the other direction goes on. Connections stay open: neither side is told.
    pub fn block(&self, from: &str, to: &str) {
        self.trace.event("network", format!("{from} -> {to} cut"));
        lock(&self.state).blocked.insert((from.to_owned(), to.to_owned()));
    }

    /// Lifts every block; what had been written meanwhile arrives late.
    pub fn heal(&self) {
        self.trace.event("network", "healed");
        lock(&self.state).blocked.clear();
        for pipe in self.pipes() {
            let mut pipe = lock(&pipe);
            while let Some(bytes) = pipe.stalled.pop_front() {
                self.send(&mut pipe, bytes);
            }
            pipe.wake();
        }
    }

    /// Breaks every connection between two hosts; both may connect again.
    pub fn reset(&self, a: &str, b: &str) {
        self.trace.event("network", format!("connections {a} - {b} broken"));
        for pipe in self.pipes() {
            let mut pipe = lock(&pipe);
            if (pipe.from == a && pipe.to == b) || (pipe.from == b && pipe.to == a) {
                pipe.end = End::Reset;
                pipe.wake();
            }
        }
    }

    /// A host goes away with its listeners. If `silently` (power cut), its peers are told nothing: their connections are
    /// half-open until they give up; else (killed process) they see their connections break.
    pub fn host_down(&self, host: &str, silently: bool) {
        self.trace.event(host, if silently { "host down, silently" } else { "host down" });
        let mut state = lock(&self.state);
        state.down.insert(host.to_owned());
        let prefix = format!("{host}:");
        state.listeners.retain(|address, backlog| {
            let stays = !address.starts_with(&prefix);
            if !stays {
                lock(backlog).closed = true;
            }
            stays
        });
        drop(state);
        for pipe in self.pipes() {
            let mut pipe = lock(&pipe);
            if pipe.from == host || pipe.to == host {
                if silently {
                    pipe.in_flight.clear();
                    pipe.half_open = true;
                } else {
                    pipe.end = End::Reset;
                    pipe.wake();
                }
            }
        }
    }

    /// The host is there again; nothing listens on it yet. Connections of its former life are refused, so they break.
    pub fn host_up(&self, host: &str) {
        self.trace.event(host, "host up");
        lock(&self.state).down.remove(host);
        for pipe in self.pipes() {
            let mut pipe = lock(&pipe);
            if pipe.half_open && (pipe.from == host || pipe.to == host) {
                pipe.end = End::Reset;
                pipe.wake();
            }
        }
    }

    fn pipes(&self) -> Vec<Arc<Mutex<Pipe>>> {
        let mut state = lock(&self.state);
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        state.pipes.iter().filter_map(Weak::upgrade).collect()
    }

    fn delay(&self) -> Duration {
        let options = lock(&self.state).options;
        let spread = options.delay_max.saturating_sub(options.delay_min);
        let mut delay =
            options.delay_min + Duration::from_nanos(random_below(u64::try_from(spread.as_nanos()).unwrap_or(1)));
        if chance(options.loss_per_mille) {
            delay += options.retransmit_delay;
        }
        delay
    }

    fn is_blocked(&self, from: &str, to: &str) -> bool {
        lock(&self.state).blocked.contains(&(from.to_owned(), to.to_owned()))
    }

    fn send(&self, pipe: &mut Pipe, bytes: Bytes) {
        // A byte stream: nothing overtakes what was written before.
        let arrival = (SimEnv::now() + self.delay()).max(pipe.last_arrival);
        pipe.last_arrival = arrival;
        self.trace.note((pipe.id, bytes.len(), crc(&bytes)));
        pipe.in_flight.push_back((arrival, bytes));
        if let Some(waker) = pipe.reader.take() {
            waker.wake();
        }
    }

    pub(crate) fn listen(&self, host: &str, address: &str) -> io::Result<SimListener> {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let Some(mut port) = port else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is not host:port")));
        };
        let mut state = lock(&self.state);
        if port == 0 {
            port = state.port_next;
            state.port_next += 1;
        }
        let address = format!("{host}:{port}");
        if state.listeners.contains_key(&address) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{address} is in use")));
        }
        let backlog = Arc::new(Mutex::new(Backlog::default()));
        state.listeners.insert(address.clone(), backlog.clone());
        Ok(SimListener { network: self.clone(), address, backlog })
    }

    pub(crate) async fn connect(&self, host: &str, address: &str) -> io::Result<Connection<SimEnv>> {
        let to = address.rsplit_once(':').map_or(address, |(to, _)| to).to_owned();
        SimEnv::sleep(self.delay()).await;
        // A handshake needs both directions. Where a packet vanishes, the attempt hangs until its time is up.
        let waits_until = SimEnv::now() + CONNECT_TIMEOUT;
        while self.is_blocked(host, &to) || self.is_blocked(&to, host) || lock(&self.state).down.contains(&to) {
            if SimEnv::now() >= waits_until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")));
            }
            SimEnv::sleep(Duration::from_millis(200)).await;
        }
        SimEnv::sleep(self.delay()).await;
        let mut state = lock(&self.state);
        let Some(backlog) = state.listeners.get(address).cloned() else {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("nothing listens on {address}")));
        };
        let mut pipe = |from: &str, to: &str| {
            let pipe = Arc::new(Mutex::new(Pipe {
                id: state.pipe_next,
                from: from.to_owned(),
                to: to.to_owned(),
                in_flight: VecDeque::new(),
                stalled: VecDeque::new(),
                last_arrival: SimEnv::now(),
                bytes: 0,
                end: End::Open,
                half_open: false,
                reader: None,
                writer: None,
            }));
            state.pipe_next += 1;
            state.pipes.push(Arc::downgrade(&pipe));
            pipe
        };
        let (there, back) = (pipe(host, &to), pipe(&to, host));
        drop(state);
        let end = |out: &Arc<Mutex<Pipe>>, into: &Arc<Mutex<Pipe>>, peer: &str| Connection {
            reader: SimReader { pipe: into.clone(), wait: None },
            writer: SimWriter { pipe: out.clone(), network: self.clone() },
            peer_address: peer.to_owned(),
        };
        let mut backlog = lock(&backlog);
        backlog.waiting.push_back(end(&back, &there, &format!("{host}:0")));
        if let Some(waker) = backlog.waker.take() {
            waker.wake();
        }
        Ok(end(&there, &back, address))
    }
}

fn crc(bytes: &[u8]) -> u32 {
    // A cheap fingerprint for the trace, not a checksum.
    bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)))
}

/// Accepts simulated connections.
pub struct SimListener {
    network: Network,
    address: String,
    backlog: Arc<Mutex<Backlog>>,
}

impl Listener<SimEnv> for SimListener {
    async fn accept(&mut self) -> io::Result<Connection<SimEnv>> {
        poll_fn(|cx| {
            let mut backlog = lock(&self.backlog);
            if let Some(connection) = backlog.waiting.pop_front() {
                return Poll::Ready(Ok(connection));
            }
            if backlog.closed {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the host is down")));
            }
            backlog.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn local_address(&self) -> io::Result<String> {
        Ok(self.address.clone())
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut state = lock(&self.network.state);
        // A restarted host may listen on the same address already.
        if state.listeners.get(&self.address).is_some_and(|backlog| Arc::ptr_eq(backlog, &self.backlog)) {
            state.listeners.remove(&self.address);
        }
        drop(state);
        let refused: Vec<_> = lock(&self.backlog).waiting.drain(..).collect();
        drop(refused);
    }
}

/// The receiving half of a simulated connection.
pub struct SimReader {
    pipe: Arc<Mutex<Pipe>>,
    wait: Option<Mutex<SimSleep>>,
}

impl std::fmt::Debug for SimReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pipe = lock(&self.pipe);
        write!(f, "SimReader({} -> {})", pipe.from, pipe.to)
    }
}

impl std::fmt::Debug for SimWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pipe = lock(&self.pipe);
        write!(f, "SimWriter({} -> {})", pipe.from, pipe.to)
    }
}

impl AsyncRead for SimReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = self.pipe.clone();
        loop {
            let mut pipe = lock(&shared);
            if pipe.end == End::Reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let now = SimEnv::now();
            let ended = pipe.end == End::Closed && pipe.stalled.is_empty();
            match pipe.in_flight.front_mut() {
                Some((arrival, bytes)) if *arrival <= now => {
                    let taken = bytes.len().min(buf.remaining());
                    buf.put_slice(&bytes[..taken]);
                    bytes.advance(taken);
                    if bytes.is_empty() {
                        pipe.in_flight.pop_front();
                    }
                    pipe.bytes -= taken;
                    if let Some(waker) = pipe.writer.take() {
                        waker.wake();
                    }
                    self.wait = None;
                    return Poll::Ready(Ok(()));
                }
                Some((arrival, _)) => {
                    let arrival = *arrival;
                    pipe.reader = Some(cx.waker().clone());
                    drop(pipe);
                    let mut wait = SimEnv::sleep_until(arrival);
                    let polled = Pin::new(&mut wait).poll(cx);
                    self.wait = Some(Mutex::new(wait));
                    if polled.is_pending() {
                        return Poll::Pending;
                    }
                }
                None if ended => return Poll::Ready(Ok(())),
                None => {
                    pipe.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Drop for SimReader {
    fn drop(&mut self) {
        let mut pipe = lock(&self.pipe);
        // Nobody reads any more: the writer gets an error, as from a peer that closed its socket.
        if pipe.end == End::Open && !pipe.half_open {
            pipe.end = End::Reset;
        }
        pipe.wake();
    }
}

/// The sending half of a simulated connection.
pub struct SimWriter {
    pipe: Arc<Mutex<Pipe>>,
    network: Network,
}

impl AsyncWrite for SimWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.pipe);
        if pipe.end != End::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = WINDOW_BYTES.saturating_sub(pipe.bytes);
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = room.min(buf.len());
        let bytes = Bytes::copy_from_slice(&buf[..taken]);
        pipe.bytes += taken;
        if pipe.half_open {
            // Into the void, as into the kernel's buffers of a half-open connection.
        } else if !pipe.stalled.is_empty() || self.network.is_blocked(&pipe.from, &pipe.to) {
            pipe.stalled.push_back(bytes);
        } else {
            self.network.send(&mut pipe, bytes);
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.pipe);
        if pipe.end == End::Open {
            pipe.end = End::Closed;
        }
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimWriter {
    fn drop(&mut self) {
        let mut pipe = lock(&self.pipe);
        if pipe.end == End::Open && !pipe.half_open {
            pipe.end = End::Closed;
        }
        pipe.wake();
    }
}
