//! Simulated links: ordered byte streams with delay, that can be slow, cut in one direction or both, broken, or left half-open.
//!
//! A connection is TCP's: bytes arrive once and in the order in which they were written, whatever the packets beneath do; loss is
//! delay. Messages are duplicated and reordered all the same, where TCP lets them: a request whose connection broke before the answer
//! came is sent again over a new one, while the first copy may have arrived, may still be under way on the old connection, or may be
//! handled after the second. [`Network::reset`], [`LinkOptions::cut_per_million`] and blocks make that happen.

mod connection;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_env::Connection;

use super::clock::{WorldSleep, world_now};
use super::trace::Trace;
use super::{SimEnv, chance, random_below};
use connection::{End, Pipe};
pub use connection::{SimListener, SimReader, SimWriter};

/// How long a connection attempt to a silent host takes to fail.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often an attempt that gets no answer tries again meanwhile.
const CONNECT_AGAIN: Duration = Duration::from_millis(200);
/// First port handed out for port 0.
const FREE_PORT_FIRST: u16 = 40_000;

/// How a link behaves, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// Shortest delay of a write.
    pub delay_min: Duration,
    /// Longest usual delay.
    pub delay_max: Duration,
    /// Writes in a thousand that are lost once and so come `retransmit_delay` later.
    pub loss_per_mille: u64,
    /// How much later.
    pub retransmit_delay: Duration,
    /// How much the link carries, all connections together; `None`: any amount.
    pub bytes_per_second: Option<u64>,
    /// Writes in a million that break their connection: some first part of the write still arrives.
    pub cut_per_million: u64,
    /// Connection attempts in a thousand after which the listener has two connections: one that works, and one on which nothing ever
    /// comes, as when the answer to the first attempt was lost.
    pub ghost_per_mille: u64,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            delay_min: Duration::from_micros(50),
            delay_max: Duration::from_micros(500),
            loss_per_mille: 0,
            retransmit_delay: Duration::from_millis(40),
            bytes_per_second: None,
            cut_per_million: 0,
            ghost_per_mille: 0,
        }
    }
}

/// The network of a simulated world.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    trace: Trace,
}

/// From one host to another.
type Direction = (Arc<str>, Arc<str>);

/// Names something that keeps two hosts apart, to take it away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind {
    /// Nothing passes, and nobody is told.
    Silent,
    /// Connection attempts are refused at once; connections that are there go on.
    Refusal,
}

struct State {
    options: LinkOptions,
    /// What behaves differently.
    links: BTreeMap<Direction, LinkOptions>,
    /// Until when a link with a bandwidth is busy with what was written before.
    busy_until: BTreeMap<Direction, Instant>,
    blocks: BTreeMap<u64, (Direction, BlockKind)>,
    block_next: u64,
    listeners: BTreeMap<String, Arc<Mutex<Backlog>>>,
    down: BTreeSet<String>,
    pipes: Vec<Weak<Mutex<Pipe>>>,
    port_next: u16,
    connection_next: u64,
}

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<Connection<SimEnv>>,
    waker: Option<Waker>,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn direction(from: &str, to: &str) -> Direction {
    (from.into(), to.into())
}

impl State {
    fn is_blocked(&self, direction: &Direction, kind: BlockKind) -> bool {
        self.blocks.values().any(|(blocked, of)| *of == kind && blocked == direction)
    }

    fn options(&self, direction: &Direction) -> LinkOptions {
        self.links.get(direction).copied().unwrap_or(self.options)
    }

    /// When `len` bytes that leave now arrive.
    fn arrival(&mut self, direction: &Direction, len: usize) -> Instant {
        let options = self.options(direction);
        let mut leaves = world_now();
        if let Some(bytes_per_second) = options.bytes_per_second {
            let takes = (len as u128 * 1_000_000_000).div_ceil(u128::from(bytes_per_second.max(1)));
            let busy_until = self.busy_until.entry(direction.clone()).or_insert(leaves);
            leaves = leaves.max(*busy_until) + Duration::from_nanos(u64::try_from(takes).unwrap_or(u64::MAX / 2));
            *busy_until = leaves;
        }
        leaves + delay(&options)
    }
}

fn delay(options: &LinkOptions) -> Duration {
    let spread = options.delay_max.saturating_sub(options.delay_min);
    let mut delay =
        options.delay_min + Duration::from_nanos(random_below(u64::try_from(spread.as_nanos()).unwrap_or(1)));
    if chance(options.loss_per_mille) {
        delay += options.retransmit_delay;
    }
    delay
}

impl Network {
    /// A network without hosts.
    #[must_use]
    pub fn new(options: LinkOptions, trace: Trace) -> Self {
        let state = State {
            options,
            links: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            blocks: BTreeMap::new(),
            block_next: 0,
            listeners: BTreeMap::new(),
            down: BTreeSet::new(),
            pipes: Vec::new(),
            port_next: FREE_PORT_FIRST,
            connection_next: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), trace }
    }

    /// What happened so far.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Changes how links behave from now on, but for those that [`Network::set_link`] names.
    pub fn set_options(&self, options: LinkOptions) {
        lock(&self.state).options = options;
    }

    /// Changes how what goes from `from` to `to` behaves from now on; with `None` it is like the other links again.
    pub fn set_link(&self, from: &str, to: &str, options: Option<LinkOptions>) {
        let direction = direction(from, to);
        let mut state = lock(&self.state);
        // What waits for a slow link is on its way already.
        state.busy_until.remove(&direction);
        match options {
            Some(options) => state.links.insert(direction, options),
            None => state.links.remove(&direction),
        };
    }

    /// Stops everything from `from` to `to`; the other direction goes on. Connections stay open: neither side is told. Blocks of the same
    /// direction add up: each is lifted for itself.
    pub fn block(&self, from: &str, to: &str) -> BlockId {
        self.trace.event("network", format!("{from} -> {to} cut"));
        self.add_block(from, to, BlockKind::Silent)
    }

    /// Refuses new connections from `from` to `to`.
    pub fn refuse(&self, from: &str, to: &str) -> BlockId {
        self.trace.event("network", format!("connections {from} -> {to} refused"));
        self.add_block(from, to, BlockKind::Refusal)
    }

    fn add_block(&self, from: &str, to: &str, kind: BlockKind) -> BlockId {
        let mut state = lock(&self.state);
        let id = state.block_next;
        state.block_next += 1;
        state.blocks.insert(id, (direction(from, to), kind));
        BlockId(id)
    }

    /// Lets every host reach a majority, and no two hosts the same one: each reaches only its neighbours on a ring in the order
    /// given. With fewer than four hosts all are neighbours, and nothing is blocked; five or more are what this is for.
    pub fn ring(&self, hosts: &[&str]) -> Vec<BlockId> {
        // A majority with the host itself: so many neighbours to either side.
        let reach = hosts.len() / 2 / 2 + (hosts.len() / 2) % 2;
        let mut blocks = Vec::new();
        for (from, from_host) in hosts.iter().enumerate() {
            for (to, to_host) in hosts.iter().enumerate() {
                let apart = from.abs_diff(to);
                if apart.min(hosts.len() - apart) > reach {
                    blocks.push(self.block(from_host, to_host));
                }
            }
        }
        blocks
    }

    /// Lifts one block or refusal; what had been written meanwhile arrives late, unless another block is left.
    pub fn unblock(&self, block: BlockId) {
        let Some(((from, to), kind)) = lock(&self.state).blocks.remove(&block.0) else { return };
        match kind {
            BlockKind::Silent => self.trace.event("network", format!("{from} -> {to} no longer cut")),
            BlockKind::Refusal => self.trace.event("network", format!("connections {from} -> {to} no longer refused")),
        }
        self.send_stalled();
    }

    /// Lifts every block and refusal; what had been written meanwhile arrives late.
    pub fn heal(&self) {
        self.trace.event("network", "healed");
        lock(&self.state).blocks.clear();
        self.send_stalled();
    }

    fn send_stalled(&self) {
        for pipe in self.pipes() {
            let mut pipe = lock(&pipe);
            if pipe.stalled.is_empty() || lock(&self.state).is_blocked(&pipe.direction, BlockKind::Silent) {
                continue;
            }
            while let Some(bytes) = pipe.stalled.pop_front() {
                self.send(&mut pipe, bytes);
            }
            pipe.wake();
        }
    }

    /// Breaks every connection between two hosts; both may connect again. Returns how many directions of connections there were.
    pub fn reset(&self, a: &str, b: &str) -> usize {
        self.trace.event("network", format!("connections {a} - {b} broken"));
        let mut broken = 0;
        for pipe in self.pipes() {
            let mut pipe = lock(&pipe);
            if (pipe.from() == a && pipe.to() == b) || (pipe.from() == b && pipe.to() == a) {
                pipe.reset();
                broken += 1;
            }
        }
        broken
    }

    /// A host goes away with its listeners. If `silently` (power cut), its peers are told nothing: their connections are
    /// half-open until they give up; else (killed process) they see their connections end or break. What the host had sent may still arrive,
    /// or be lost.
    pub fn host_down(&self, host: &str, silently: bool) {
        self.trace.event(host, if silently { "host down, silently" } else { "host down" });
        let mut state = lock(&self.state);
        state.down.insert(host.to_owned());
        let prefix = format!("{host}:");
        state.listeners.retain(|address, backlog| {
            let stays = !address.starts_with(&prefix);
            if !stays {
                let mut backlog = lock(backlog);
                backlog.closed = true;
                if let Some(waker) = backlog.waker.take() {
                    waker.wake();
                }
            }
            stays
        });
        drop(state);
        let sent_arrives = chance(500);
        for pipe in self.pipes() {
            let mut pipe = lock(&pipe);
            let (leaves, comes) = (pipe.from() == host, pipe.to() == host);
            if pipe.half_open || !(leaves || comes) {
                continue;
            }
            if silently {
                pipe.half_open = true;
                pipe.stalled.clear();
                if comes || !sent_arrives {
                    pipe.in_flight.clear();
                }
            } else if leaves && sent_arrives {
                if pipe.end == End::Open {
                    pipe.end = End::Closed;
                }
                pipe.wake();
            } else {
                pipe.reset();
            }
        }
    }

    /// The host is there again; nothing listens on it yet. It knows nothing of the connections of its former life: they break as soon as
    /// anything is sent on them, or has been sent and not been acknowledged.
    pub fn host_up(&self, host: &str) {
        self.trace.event(host, "host up");
        lock(&self.state).down.remove(host);
        let mut broken = Vec::new();
        for shared in self.pipes() {
            let mut pipe = lock(&shared);
            if pipe.half_open && (pipe.from() == host || pipe.to() == host) {
                pipe.breaks_when_used = true;
                if pipe.to() == host && pipe.bytes > 0 {
                    pipe.reset();
                    broken.extend(pipe.partner.upgrade());
                }
            }
        }
        for partner in broken {
            lock(&partner).reset();
        }
    }

    fn pipes(&self) -> Vec<Arc<Mutex<Pipe>>> {
        let mut state = lock(&self.state);
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        state.pipes.iter().filter_map(Weak::upgrade).collect()
    }

    fn is_blocked(&self, direction: &Direction) -> bool {
        lock(&self.state).is_blocked(direction, BlockKind::Silent)
    }

    /// Is this the write after which the connection breaks?
    fn cuts(&self, direction: &Direction) -> bool {
        let per_million = lock(&self.state).options(direction).cut_per_million;
        per_million > 0 && random_below(1_000_000) < per_million
    }

    fn send(&self, pipe: &mut Pipe, bytes: Bytes) {
        // A byte stream: nothing overtakes what was written before.
        let arrival = lock(&self.state).arrival(&pipe.direction, bytes.len()).max(pipe.last_arrival);
        pipe.last_arrival = arrival;
        self.trace.note((pipe.id, &bytes[..]));
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
        if state.down.contains(host) {
            return Err(io::Error::other("the host is down"));
        }
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
        Ok(SimListener::new(self.clone(), address, backlog))
    }

    pub(crate) async fn connect(&self, host: &str, address: &str) -> io::Result<Connection<SimEnv>> {
        let to = address.rsplit_once(':').map_or(address, |(to, _)| to);
        let (there, back) = (direction(host, to), direction(to, host));
        let delay_there = || delay(&lock(&self.state).options(&there));
        WorldSleep::of(delay_there()).await;
        // A handshake needs both directions. Where a packet vanishes, the attempt hangs until its time is up.
        let waits_until = world_now() + CONNECT_TIMEOUT;
        loop {
            let passes = {
                let state = lock(&self.state);
                if state.down.contains(host) {
                    return Err(io::Error::other("the host is down"));
                }
                let blocked = [&there, &back].iter().any(|direction| state.is_blocked(direction, BlockKind::Silent));
                !blocked && !state.down.contains(to)
            };
            if passes {
                break;
            }
            if world_now() >= waits_until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")));
            }
            WorldSleep::of(CONNECT_AGAIN).await;
        }
        WorldSleep::of(delay_there()).await;
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, format!("nothing listens on {address}"));
        let (backlog, ghost) = {
            let state = lock(&self.state);
            if state.is_blocked(&there, BlockKind::Refusal) || state.down.contains(host) {
                return Err(refused());
            }
            (state.listeners.get(address).cloned().ok_or_else(refused)?, state.options(&there).ghost_per_mille)
        };
        let ghost = if chance(ghost) { Some(self.open(&there, &back, address, true)) } else { None };
        let (near, far) = self.open(&there, &back, address, false);
        let mut backlog = lock(&backlog);
        backlog.waiting.extend(ghost.map(|(_, far)| far));
        backlog.waiting.push_back(far);
        if let Some(waker) = backlog.waker.take() {
            waker.wake();
        }
        Ok(near)
    }

    /// Both ends of a new connection; of a ghost, the near end is to be dropped.
    fn open(
        &self,
        there: &Direction,
        back: &Direction,
        address: &str,
        ghost: bool,
    ) -> (Connection<SimEnv>, Connection<SimEnv>) {
        let mut state = lock(&self.state);
        let connection = state.connection_next;
        state.connection_next += 1;
        let out = Arc::new(Mutex::new(Pipe::new(connection * 2, there, ghost)));
        let into = Arc::new(Mutex::new(Pipe::new(connection * 2 + 1, back, ghost)));
        lock(&out).partner = Arc::downgrade(&into);
        lock(&into).partner = Arc::downgrade(&out);
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        state.pipes.extend([Arc::downgrade(&out), Arc::downgrade(&into)]);
        drop(state);
        let end = |out: &Arc<Mutex<Pipe>>, into: &Arc<Mutex<Pipe>>, peer: String| Connection {
            reader: SimReader::new(into.clone()),
            writer: SimWriter::new(out.clone(), self.clone()),
            peer_address: peer,
        };
        (end(&out, &into, address.to_owned()), end(&into, &out, format!("{}:0", there.0)))
    }
}
