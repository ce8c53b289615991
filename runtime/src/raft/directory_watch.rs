//! How new the copies of the directory of topics and brokers are, for those who would not take a shard's lock to ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The newest version that any shard of a node shows.
#[derive(Debug, Default)]
pub(crate) struct NewestDirectory {
    version: AtomicU64,
    changed: Notify,
}

impl NewestDirectory {
    /// At least this version can be read on this node.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Completes at the next change of any copy after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

/// The version of one shard's copy. It only rises.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    version: AtomicU64,
    changed: Notify,
    newest: Arc<NewestDirectory>,
}

impl DirectoryWatch {
    pub(crate) fn new(version: u64, newest: Arc<NewestDirectory>) -> Self {
        newest.version.fetch_max(version, Ordering::AcqRel);
        Self { version: AtomicU64::new(version), changed: Notify::new(), newest }
    }

    /// The state shows this version. To be called before anybody else can see that state, so that no reader is led from it to an older copy.
    pub(crate) fn reached(&self, version: u64) {
        if version == self.version() {
            return;
        }
        self.version.fetch_max(version, Ordering::AcqRel);
        self.newest.version.fetch_max(version, Ordering::AcqRel);
    }

    /// Wakes those who wait for a change, once it can be seen.
    pub(crate) fn tell(&self) {
        self.changed.notify_waiters();
        self.newest.changed.notify_waiters();
    }

    /// The version that the state shows, or is about to.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Completes at the next change after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}
