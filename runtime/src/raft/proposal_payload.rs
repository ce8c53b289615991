//! What is proposed with an op, in the pieces in which it came.

use bytes::{Bytes, BytesMut};

/// The payload of a proposal: its pieces, one after another. They are copied when the entry is made, if there are several: together with those of
/// other proposals that share the entry, once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProposalPayload {
    pieces: Vec<Bytes>,
    len: usize,
}

impl ProposalPayload {
    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds what follows.
    pub(super) fn extend(&mut self, more: Self) {
        self.len += more.len;
        self.pieces.extend(more.pieces);
    }

    /// In one piece.
    pub(super) fn join(mut self) -> Bytes {
        match self.pieces.len() {
            0 => Bytes::new(),
            1 => self.pieces.swap_remove(0),
            _ => {
                let mut joined = BytesMut::with_capacity(self.len);
                self.pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
                joined.freeze()
            }
        }
    }
}

impl From<Vec<Bytes>> for ProposalPayload {
    fn from(pieces: Vec<Bytes>) -> Self {
        let len = pieces.iter().map(Bytes::len).sum();
        Self { pieces, len }
    }
}

impl From<Bytes> for ProposalPayload {
    fn from(whole: Bytes) -> Self {
        if whole.is_empty() { Self::default() } else { vec![whole].into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_order_and_one_alone_is_not_copied() {
        let whole = Bytes::from_static(b"abc");
        let alone = ProposalPayload::from(whole.clone()).join();
        assert_eq!((alone.as_ptr(), alone.len()), (whole.as_ptr(), 3));
        let mut payload = ProposalPayload::from(vec![whole, Bytes::from_static(b"de")]);
        payload.extend(Bytes::from_static(b"f").into());
        payload.extend(Bytes::new().into());
        assert_eq!((payload.len(), payload.is_empty()), (6, false));
        assert_eq!(payload.join(), "abcdef");
        assert!(ProposalPayload::from(Bytes::new()).is_empty());
    }
}
