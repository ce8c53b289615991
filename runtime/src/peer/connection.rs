//! What both ends of an established connection do: read frames, write what is queued, and notice silence.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lockstep_env::{Elapsed, Env, Task, timeout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::frame::{Frame, FrameError, decode_frame, frame_length};

/// Bytes that are read at a time while frames are small.
const READ_BUFFER_LEN: usize = 64 << 10;
/// A frame of which part is still to come is read straight into its own buffer from this length on.
const DIRECT_READ_LEN: usize = 16 << 10;
/// Payloads below this length are copied so that they leave in one piece with their neighbours.
const COPY_LEN_MAX: usize = 2 << 10;
/// Frames that are gathered for one write.
const FRAMES_PER_WRITE: usize = 256;
/// Pieces handed to one system call.
const SLICES_PER_WRITE: usize = 64;
/// Frames that wait for the writer of one connection.
pub(super) const QUEUE_LEN: usize = 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The other end closed it.
    #[error("closed by the other end")]
    Closed,
    /// The operating system reported an error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Bytes that are not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that this end must not get.
    #[error("unexpected frame")]
    Unexpected,
    /// Nothing arrived for too long.
    #[error("silent for too long")]
    Silent,
    /// The other end takes nothing any more.
    #[error("the other end does not read")]
    Stalled,
    /// A newer connection took its place, or the node stops.
    #[error("no longer needed")]
    Replaced,
}

/// An encoded frame on its way to the writer.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Header and body.
    pub(super) head: Bytes,
    /// What follows them.
    pub(super) payload: Vec<Bytes>,
}

/// When something last arrived.
#[derive(Debug)]
pub(super) struct Heard(Mutex<Option<Instant>>);

impl Heard {
    pub(super) const fn never() -> Self {
        Self(Mutex::new(None))
    }

    pub(super) fn now<E: Env>(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(E::now());
    }

    pub(super) fn last(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that ends with its owner.
pub(super) struct Owned<E: Env, T: Send + 'static>(pub(super) E::Task<T>);

impl<E: Env, T: Send + 'static> Drop for Owned<E, T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Splits what arrives into frames.
pub(super) struct FrameReader<E: Env> {
    reader: E::Reader,
    buffer: BytesMut,
    len_max: usize,
}

impl<E: Env> FrameReader<E> {
    pub(super) fn new(reader: E::Reader, len_max: usize) -> Self {
        Self { reader, buffer: BytesMut::with_capacity(READ_BUFFER_LEN), len_max }
    }

    /// The next frame, in an allocation of exactly its size, so that whoever keeps it keeps nothing else alive.
    /// Calls `heard` whenever bytes arrive.
    pub(super) async fn next(&mut self, heard: impl Fn()) -> Result<Frame, Ended> {
        loop {
            if let Some(len) = frame_length(&self.buffer, self.len_max)? {
                if self.buffer.len() >= len {
                    let frame = Bytes::copy_from_slice(&self.buffer[..len]);
                    self.buffer.advance(len);
                    return Ok(decode_frame(&frame)?);
                }
                if len >= DIRECT_READ_LEN {
                    let mut frame = BytesMut::with_capacity(len);
                    frame.extend_from_slice(&self.buffer);
                    self.buffer.clear();
                    while frame.len() < len {
                        let missing = len - frame.len();
                        if self.reader.read_buf(&mut (&mut frame).limit(missing)).await? == 0 {
                            return Err(Ended::Closed);
                        }
                        heard();
                    }
                    return Ok(decode_frame(&frame.freeze())?);
                }
            }
            self.buffer.reserve(READ_BUFFER_LEN - self.buffer.len());
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(Ended::Closed);
            }
            heard();
        }
    }
}

/// Writes what is queued until all senders are gone. Everything that waits when the writer is free leaves together.
/// `stall_max` bounds the wait for the other end to take anything at all.
pub(super) async fn write_frames<E: Env>(
    mut writer: E::Writer,
    mut queue: mpsc::Receiver<Outgoing>,
    stall_max: Duration,
) -> Ended {
    let mut frames = Vec::with_capacity(FRAMES_PER_WRITE);
    while queue.recv_many(&mut frames, FRAMES_PER_WRITE).await > 0 {
        let pieces = gather(frames.drain(..));
        if let Err(ended) = write_pieces::<E>(&mut writer, pieces, stall_max).await {
            return ended;
        }
    }
    Ended::Replaced
}

/// Joins small pieces, leaves large ones as they are.
fn gather(frames: impl Iterator<Item = Outgoing>) -> VecDeque<Bytes> {
    let mut pieces = VecDeque::new();
    let mut small = BytesMut::new();
    for frame in frames {
        for piece in std::iter::once(frame.head).chain(frame.payload) {
            if piece.len() < COPY_LEN_MAX {
                small.extend_from_slice(&piece);
            } else {
                if !small.is_empty() {
                    pieces.push_back(small.split().freeze());
                }
                pieces.push_back(piece);
            }
        }
    }
    if !small.is_empty() {
        pieces.push_back(small.freeze());
    }
    pieces
}

async fn write_pieces<E: Env>(
    writer: &mut E::Writer,
    mut pieces: VecDeque<Bytes>,
    stall_max: Duration,
) -> Result<(), Ended> {
    while !pieces.is_empty() {
        let slices: Vec<IoSlice<'_>> = pieces.iter().take(SLICES_PER_WRITE).map(|piece| IoSlice::new(piece)).collect();
        let written = timeout::<E, _>(stall_max, writer.write_vectored(&slices)).await;
        let mut written = written.map_err(|Elapsed| Ended::Stalled)??;
        if written == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        while let Some(first) = pieces.front_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            pieces.pop_front();
        }
    }
    timeout::<E, _>(stall_max, writer.flush()).await.map_err(|Elapsed| Ended::Stalled)??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathering_keeps_the_order_and_copies_only_what_is_small() {
        let large = Bytes::from(vec![7; COPY_LEN_MAX]);
        let small = Bytes::from_static(b"small");
        let head = Bytes::from_static(b"head");
        let frames = [
            Outgoing { head: head.clone(), payload: vec![] },
            Outgoing { head: head.clone(), payload: vec![small.clone(), large.clone(), small.clone()] },
            Outgoing { head: head.clone(), payload: vec![large.clone()] },
        ];
        let pieces = gather(frames.into_iter());
        assert_eq!(pieces, [&b"headheadsmall"[..], &large, &b"smallhead"[..], &large]);
        assert_eq!(pieces[1].as_ptr(), large.as_ptr());
        assert_eq!(pieces[3].as_ptr(), large.as_ptr());
    }
}
