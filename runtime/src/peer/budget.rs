//! How much of one node's requests may be under way at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a call costs beside the bytes of its frame. It bounds the number of calls together with their bytes.
const CALL_BYTES: usize = 4 << 10;

/// What a frame of `len` bytes costs.
pub(super) const fn cost(len: usize) -> usize {
    len.saturating_add(CALL_BYTES)
}

/// Bytes that are handed out and come back.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    /// Takes `bytes` until the charge is dropped; `None` if so many are not left.
    pub(super) fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        self.left
            .try_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(bytes))
            .ok()
            .map(|_| Charge { budget: Arc::clone(self), bytes })
    }
}

/// Part of a budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::AcqRel);
    }
}
