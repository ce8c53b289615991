//! Memory for batches that are kept for readers and for the flusher.
//!
//! Batches come and go in the order of the log. In pieces of memory of their own, each of some ten KiB, they would leave the allocator with half-used pages: a third
//! of what a loaded node had resident. Here many share a chunk, which is given back when the last of them is forgotten.

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk: a little less than what the allocator hands out in whole pages.
const CHUNK_BYTES: usize = (1 << 20) - (4 << 10);
/// A longer batch gets a piece of its own.
const SHARED_BYTES_MAX: usize = CHUNK_BYTES / 4;

/// Where the next batches go.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    chunk: BytesMut,
}

impl Arena {
    /// A copy of `bytes`, after `change` was made to it.
    pub(crate) fn copy(&mut self, bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Bytes {
        if bytes.len() > SHARED_BYTES_MAX {
            let mut own = bytes.to_vec();
            change(&mut own);
            return Bytes::from(own);
        }
        if self.chunk.capacity() < bytes.len() {
            self.chunk = BytesMut::with_capacity(CHUNK_BYTES);
        }
        self.chunk.extend_from_slice(bytes);
        change(&mut self.chunk);
        self.chunk.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_and_apart() {
        let mut arena = Arena::default();
        let lengths =
            [1, 61, SHARED_BYTES_MAX, SHARED_BYTES_MAX + 1, CHUNK_BYTES * 2, 70_000, 70_000, SHARED_BYTES_MAX];
        let copies: Vec<Bytes> = lengths
            .iter()
            .cycle()
            .take(50)
            .enumerate()
            .map(|(number, len)| arena.copy(&vec![number as u8; *len], |copy| copy[0] = 255))
            .collect();
        for (number, (copy, len)) in copies.iter().zip(lengths.iter().cycle()).enumerate() {
            assert_eq!((copy.len(), copy[0]), (*len, 255));
            assert!(copy[1..].iter().all(|byte| *byte == number as u8), "{number}");
        }
    }
}
