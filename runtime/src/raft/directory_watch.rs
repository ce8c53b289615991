//! How new a shard's copy of the directory of topics and brokers is, for those who would not take the shard's lock to ask.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The version of one shard's copy. It only rises.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    version: AtomicU64,
    changed: Notify,
}

impl DirectoryWatch {
    pub(crate) fn new(version: u64) -> Self {
        Self { version: AtomicU64::new(version), changed: Notify::new() }
    }

    /// The state shows this version now, to whoever reads it from here on.
    pub(crate) fn reached(&self, version: u64) {
        self.version.fetch_max(version, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// The state shows at least this version.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Completes at the next change after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}
