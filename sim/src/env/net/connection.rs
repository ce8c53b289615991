//! The ends of simulated connections, and what is between them.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Buf, Bytes};
use lockstep_env::{Connection, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Backlog, Direction, Network, lock};
use crate::env::clock::{WorldSleep, world_now};
use crate::env::{SimEnv, random_below};

/// Bytes in flight on one direction of a connection before a writer waits.
const WINDOW_BYTES: usize = 1 << 20;

/// One direction of one connection.
pub(super) struct Pipe {
    pub(super) id: u64,
    pub(super) direction: Direction,
    /// The other direction.
    pub(super) partner: Weak<Mutex<Pipe>>,
    pub(super) in_flight: VecDeque<(Instant, Bytes)>,
    /// Written while the direction was blocked; it leaves when the block is lifted.
    pub(super) stalled: VecDeque<Bytes>,
    pub(super) last_arrival: Instant,
    /// Written and not read yet.
    pub(super) bytes: usize,
    pub(super) end: End,
    /// One host went away without a word: nothing more passes, and the other side is not told.
    pub(super) half_open: bool,
    /// The host that went away is back: it answers whatever is sent with a reset.
    pub(super) breaks_when_used: bool,
    pub(super) reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Open,
    /// The writer closed: what is in flight arrives, then the end of the stream.
    Closed,
    /// What is in flight arrives, then the connection turns out to be broken.
    Cut,
    /// Broken: both sides get an error at once.
    Reset,
}

impl Pipe {
    pub(super) fn new(id: u64, direction: &Direction, ghost: bool) -> Self {
        Self {
            id,
            direction: direction.clone(),
            partner: Weak::new(),
            in_flight: VecDeque::new(),
            stalled: VecDeque::new(),
            last_arrival: world_now(),
            bytes: 0,
            end: End::Open,
            half_open: ghost,
            breaks_when_used: ghost,
            reader: None,
            writer: None,
        }
    }

    pub(super) fn from(&self) -> &str {
        &self.direction.0
    }

    pub(super) fn to(&self) -> &str {
        &self.direction.1
    }

    pub(super) fn reset(&mut self) {
        self.end = End::Reset;
        self.wake();
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Accepts simulated connections.
pub struct SimListener {
    network: Network,
    address: String,
    backlog: Arc<Mutex<Backlog>>,
}

impl SimListener {
    pub(super) fn new(network: Network, address: String, backlog: Arc<Mutex<Backlog>>) -> Self {
        Self { network, address, backlog }
    }
}

impl Listener<SimEnv> for SimListener {
    async fn accept(&mut self) -> io::Result<Connection<SimEnv>> {
        poll_fn(|cx| {
            let mut backlog = lock(&self.backlog);
            if backlog.closed {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the host is down")));
            }
            if let Some(connection) = backlog.waiting.pop_front() {
                return Poll::Ready(Ok(connection));
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
    wait: Option<Mutex<WorldSleep>>,
}

impl SimReader {
    pub(super) fn new(pipe: Arc<Mutex<Pipe>>) -> Self {
        Self { pipe, wait: None }
    }
}

impl std::fmt::Debug for SimReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pipe = lock(&self.pipe);
        write!(f, "SimReader({} -> {})", pipe.from(), pipe.to())
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
            let now = world_now();
            let end = if pipe.stalled.is_empty() { pipe.end } else { End::Open };
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
                    let mut wait = WorldSleep::until(arrival);
                    let polled = Pin::new(&mut wait).poll(cx);
                    self.wait = Some(Mutex::new(wait));
                    if polled.is_pending() {
                        return Poll::Pending;
                    }
                }
                None if end == End::Closed => return Poll::Ready(Ok(())),
                None if end == End::Cut => {
                    pipe.reset();
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
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

impl SimWriter {
    pub(super) fn new(pipe: Arc<Mutex<Pipe>>, network: Network) -> Self {
        Self { pipe, network }
    }
}

impl std::fmt::Debug for SimWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pipe = lock(&self.pipe);
        write!(f, "SimWriter({} -> {})", pipe.from(), pipe.to())
    }
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
        pipe.bytes += taken;
        let mut partner = None;
        if pipe.half_open {
            // Into the void, as into the kernel's buffers of a half-open connection.
            if pipe.breaks_when_used {
                pipe.reset();
                partner = pipe.partner.upgrade();
            }
        } else {
            let cut = self.network.cuts(&pipe.direction);
            let arrives = if cut { random_below(taken as u64) as usize } else { taken };
            let bytes = Bytes::copy_from_slice(&buf[..arrives]);
            if !pipe.stalled.is_empty() || self.network.is_blocked(&pipe.direction) {
                pipe.stalled.push_back(bytes);
            } else {
                self.network.send(&mut pipe, bytes);
            }
            if cut {
                pipe.end = End::Cut;
                partner = pipe.partner.upgrade();
            }
        }
        drop(pipe);
        if let Some(partner) = partner {
            lock(&partner).reset();
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
