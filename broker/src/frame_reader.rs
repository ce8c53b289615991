//! Frames off a socket: waits for them, bounds them before there is memory for them, and reads them.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lockstep_env::{Either, Env, select, timeout};
use lockstep_wire::frame;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;

use crate::connection_limits::{ConnectionLimits, READ_STEP_BYTES, Reserved};
use crate::stop::StopSignal;

/// Before each frame stands its length.
pub(crate) const LENGTH_PREFIX_BYTES: usize = 4;
/// Longest frame before a connection has sent its first valid request.
const FIRST_FRAME_BYTES_MAX: usize = 64 << 10;
/// Smaller frames are read through this buffer, larger ones directly.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// What is left of the buffer while nothing comes, enough for a heartbeat: ten thousand connections, most of which rest, would have 160 MiB of buffers.
const RESTING_BUFFER_BYTES: usize = 512;
/// A connection on which nothing came for so long rests.
const REST_AFTER: Duration = Duration::from_secs(1);
/// A frame that has begun must go on within this time...
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// ...and be complete in it, plus what it takes at this rate.
const SLOWEST_BYTES_PER_SECOND: usize = 1 << 20;
const STALLED: &str = "a frame was begun and not finished in time";
const CUT_OFF: &str = "the client closed in the middle of a frame";

/// One connection's frames.
pub(crate) struct FrameReader<R> {
    reader: R,
    /// What came and is in no frame yet.
    ahead: BytesMut,
    /// The buffer is a small one.
    rests: bool,
    /// What this connection may hold of the budget of all.
    share: Arc<Semaphore>,
    /// A valid frame has come.
    is_trusted: bool,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(reader: R, limits: &ConnectionLimits) -> Self {
        let ahead = BytesMut::with_capacity(RESTING_BUFFER_BYTES);
        Self { reader, ahead, rests: true, share: limits.share(), is_trusted: false }
    }

    /// Waits for the first byte of a frame. `false`: the client has closed, was idle for too long while nothing of its was under way, or
    /// the broker stops.
    pub(crate) async fn wait<E: Env>(
        &mut self,
        limits: &ConnectionLimits,
        stop: &StopSignal,
        is_under_way: impl Fn() -> bool,
    ) -> bool {
        if !self.ahead.is_empty() {
            return true;
        }
        if self.rests {
            self.ahead.reserve(RESTING_BUFFER_BYTES);
        } else {
            self.make_room();
        }
        let mut idle_until = E::now() + limits.idle_timeout;
        loop {
            let now = E::now();
            let until = if self.rests { idle_until } else { idle_until.min(now + REST_AFTER) };
            let left = until.saturating_duration_since(now);
            let arrived = timeout::<E, _>(left, self.reader.read_buf(&mut self.ahead));
            match select(arrived, stop.given()).await {
                Either::First(Ok(Ok(read))) => return read > 0,
                Either::First(Ok(Err(_))) | Either::Second(()) => return false,
                Either::First(Err(_)) if until < idle_until => self.rest(),
                // A client that waits for a long poll is not idle.
                Either::First(Err(_)) if is_under_way() => idle_until = E::now() + limits.idle_timeout,
                Either::First(Err(_)) => return false,
            }
        }
    }

    fn rest(&mut self) {
        self.ahead = BytesMut::with_capacity(RESTING_BUFFER_BYTES);
        self.rests = true;
    }

    /// Room in the buffer for what comes next.
    fn make_room(&mut self) {
        if self.rests || self.ahead.is_empty() || self.ahead.len() == self.ahead.capacity() {
            self.rests = false;
            self.ahead.reserve(READ_BUFFER_BYTES.saturating_sub(self.ahead.len()));
        }
    }

    /// Reads a frame that has begun. What it holds of the budget it should hold until it is answered.
    pub(crate) async fn read<E: Env>(&mut self, limits: &ConnectionLimits) -> Result<(Bytes, Reserved), String> {
        let begin = self.fill(LENGTH_PREFIX_BYTES + frame::REQUEST_PREFIX_LEN);
        timeout::<E, _>(STALL_TIMEOUT, begin).await.map_err(|_| STALLED.to_owned())??;
        let announced = self.ahead.get_i32();
        let api_key = i16::from_be_bytes([self.ahead[0], self.ahead[1]]);
        let mut len_max = frame::request_len_max(api_key).min(limits.frame_bytes_max);
        if !self.is_trusted {
            len_max = len_max.min(FIRST_FRAME_BYTES_MAX);
        }
        let len = usize::try_from(announced)
            .ok()
            .filter(|len| (frame::REQUEST_PREFIX_LEN..=len_max).contains(len))
            .ok_or_else(|| format!("a frame of {announced} bytes with API key {api_key} is not accepted here"))?;
        if self.rests && len > RESTING_BUFFER_BYTES {
            self.make_room();
        }
        let patience =
            STALL_TIMEOUT + Duration::from_secs(1) * u32::try_from(len / SLOWEST_BYTES_PER_SECOND).unwrap_or(u32::MAX);
        let read = timeout::<E, _>(patience, self.read_body(limits, len)).await.map_err(|_| STALLED.to_owned())??;
        self.is_trusted = true;
        Ok(read)
    }

    /// At least so many bytes of a frame are in the buffer when it returns.
    async fn fill(&mut self, bytes: usize) -> Result<(), String> {
        while self.ahead.len() < bytes {
            self.make_room();
            if self.reader.read_buf(&mut self.ahead).await.map_err(|error| error.to_string())? == 0 {
                return Err(CUT_OFF.to_owned());
            }
        }
        Ok(())
    }

    /// Takes the body of a frame. Memory and budget are taken in steps as the bytes arrive, so that announcing much costs others
    /// nothing; whoever waits for budget too long is closed, so that half-read frames never wait for each other for ever.
    async fn read_body(&mut self, limits: &ConnectionLimits, len: usize) -> Result<(Bytes, Reserved), String> {
        let mut frame = BytesMut::new();
        let mut reserved = Reserved::default();
        let mut room = 0;
        while frame.len() < len {
            if frame.len() >= room {
                let step = (len - room).min(READ_STEP_BYTES);
                reserved.add(limits, &self.share, step).await?;
                room += step;
                frame.reserve(room - frame.len());
            }
            let missing = room - frame.len();
            if self.ahead.is_empty() && missing < READ_BUFFER_BYTES {
                self.fill(1).await?;
            }
            if self.ahead.is_empty() {
                let read = self.reader.read_buf(&mut (&mut frame).limit(missing)).await;
                if read.map_err(|error| error.to_string())? == 0 {
                    return Err(CUT_OFF.to_owned());
                }
            } else {
                let known = missing.min(self.ahead.len());
                frame.put_slice(&self.ahead[..known]);
                self.ahead.advance(known);
            }
        }
        Ok((frame.freeze(), reserved))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use lockstep_env::tokio_env::TokioEnv;
    use tokio::io::{AsyncWriteExt, DuplexStream, ReadBuf, duplex};

    use super::*;
    use crate::config::BrokerConfig;

    fn limits() -> ConnectionLimits {
        ConnectionLimits::new(&BrokerConfig::single("unused"))
    }

    /// Frames that differ in each byte, as they come over the wire; the first one is short enough for a new connection.
    fn frames() -> Vec<Vec<u8>> {
        let lens = [8, 9, 40, 507, 508, 509, 5_000, 16_383, 16_384, 16_385, 8, 70_000, READ_STEP_BYTES + 1, 11, 8, 300];
        let body = |(number, len): (usize, usize)| {
            // Produce, the kind whose frames may be long.
            let begin = [0, 0, 0, 9];
            begin.into_iter().chain((4..len).map(|at| (at * 7 + number) as u8)).collect()
        };
        lens.into_iter().enumerate().map(body).collect()
    }

    #[tokio::test]
    async fn frames_are_read_as_they_were_sent_however_they_are_cut() {
        let limits = limits();
        let stop = StopSignal::new();
        for piece in [1, 3, 13, 511, 512, 600, 16_384, 20_000, usize::MAX] {
            // Byte by byte, long ones would take the test's time.
            let frames = frames().into_iter().filter(|frame| piece >= 511 || frame.len() < 20_000).collect::<Vec<_>>();
            let prefixed = |frame: &Vec<u8>| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
            let sent: Vec<u8> = frames.iter().flat_map(prefixed).collect();
            for rests_between in [false, true] {
                let (mut client, server) = duplex(piece.min(1 << 20));
                let sent = sent.clone();
                let sending = TokioEnv::spawn(async move { client.write_all(&sent).await });
                let mut reader = FrameReader::new(server, &limits);
                for expected in &frames {
                    assert!(reader.wait::<TokioEnv>(&limits, &stop, || false).await);
                    let (frame, _) = reader.read::<TokioEnv>(&limits).await.expect("a frame");
                    assert_eq!(frame, expected, "in pieces of {piece}");
                    if rests_between && reader.ahead.is_empty() {
                        reader.rest();
                    }
                    assert!(reader.ahead.capacity() <= 2 * READ_BUFFER_BYTES);
                }
                assert!(!reader.wait::<TokioEnv>(&limits, &stop, || false).await, "the client has closed");
                sending.await.expect("no panic").expect("sent");
            }
        }
    }

    /// Ends when somebody waits for it with little memory.
    struct EndsAtRest {
        server: DuplexStream,
        ends_at_rest: bool,
    }

    impl AsyncRead for EndsAtRest {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            if self.ends_at_rest && buffer.remaining() <= RESTING_BUFFER_BYTES {
                return Poll::Ready(Ok(()));
            }
            Pin::new(&mut self.server).poll_read(cx, buffer)
        }
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_comes_gives_its_buffer_back() {
        let limits = limits();
        let stop = StopSignal::new();
        let (mut client, server) = duplex(1 << 20);
        let mut reader = FrameReader::new(EndsAtRest { server, ends_at_rest: false }, &limits);
        let frame = [&600_u32.to_be_bytes()[..], &[0; 600]].concat();
        client.write_all(&frame).await.expect("sent");
        assert!(reader.wait::<TokioEnv>(&limits, &stop, || false).await);
        reader.read::<TokioEnv>(&limits).await.expect("a frame");
        assert!(!reader.rests);
        reader.reader.ends_at_rest = true;
        let is_open = reader.wait::<TokioEnv>(&limits, &stop, || false).await;
        assert!(!is_open && reader.rests && reader.ahead.capacity() == RESTING_BUFFER_BYTES);
    }
}
