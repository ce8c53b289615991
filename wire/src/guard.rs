//! A buffer that keeps the codec from allocating much more than it is given.
//!
//! The codec accepts an array's count when it is at most the number of bytes left, and allocates for all elements at
//! once: an element takes up to 160 bytes in memory, so an honest-looking count near the bytes left costs 160 times the
//! frame, at every level of nesting. This buffer says that fewer bytes remain than really do: at most `elements_max`.
//! All that the codec reads in one go and does not ask for by `try_get_bytes` is 16 bytes or less, so only array counts
//! notice. A budget of reads bounds how many elements there can be in all, since each takes at least one.

use std::ops::Range;

use bytes::{Buf, Bytes};
use proto_kafka::protocol::buf::{ByteBuf, NotEnoughBytesError};

/// What a frame may make the decoder do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// The highest count that one array may have.
    pub(crate) elements_max: usize,
    /// How many values may be read in all. A varint counts each of its bytes.
    pub(crate) reads_max: u64,
}

impl Budget {
    /// For frames from clients: at most some 30 MiB for a whole frame, beyond the bytes of the frame itself.
    pub(crate) const REQUEST: Self = Self { elements_max: 100_000, reads_max: 1_000_000 };
    /// For frames from brokers, which a client has chosen to trust with more: metadata of a million partitions.
    pub(crate) const RESPONSE: Self = Self { elements_max: 1_000_000, reads_max: 30_000_000 };
}

pub(crate) struct GuardedBuf {
    bytes: Bytes,
    elements_max: usize,
    reads_left: u64,
}

impl GuardedBuf {
    pub(crate) fn new(bytes: Bytes, budget: Budget) -> Self {
        assert!(budget.elements_max >= 16, "the longest value read in one go has 16 bytes");
        Self { bytes, elements_max: budget.elements_max, reads_left: budget.reads_max }
    }

    /// Bytes that nobody has read.
    pub(crate) fn unread_len(&self) -> usize {
        self.bytes.len()
    }
}

impl Buf for GuardedBuf {
    fn remaining(&self) -> usize {
        if self.reads_left == 0 { 0 } else { self.bytes.len().min(self.elements_max) }
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.reads_left = self.reads_left.saturating_sub(1);
        self.bytes.advance(count);
    }
}

impl ByteBuf for GuardedBuf {
    fn peek_bytes(&mut self, range: Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.bytes.split_to(size)
    }

    fn try_peek_bytes(&mut self, range: Range<usize>) -> Result<Bytes, NotEnoughBytesError> {
        if range.start > range.end || range.end > self.bytes.len() {
            return Err(NotEnoughBytesError);
        }
        Ok(self.bytes.slice(range))
    }

    fn try_get_bytes(&mut self, size: usize) -> Result<Bytes, NotEnoughBytesError> {
        if self.reads_left == 0 || size > self.bytes.len() {
            return Err(NotEnoughBytesError);
        }
        self.reads_left -= 1;
        Ok(self.bytes.split_to(size))
    }
}
