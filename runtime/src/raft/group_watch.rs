//! Who waits for changes of which group.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Cell {
    /// Counts the changes.
    version: AtomicU64,
    changed: Notify,
}

impl Cell {
    fn change(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

/// The groups of one shard that somebody waits for.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupWatch {
    cells: Arc<Mutex<BTreeMap<String, Arc<Cell>>>>,
}

impl GroupWatch {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Cell>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket that sees every change from now on.
    pub(crate) fn watch(&self, group_id: &str) -> GroupWaiter {
        let mut cells = self.lock();
        let cell = match cells.get(group_id) {
            Some(cell) => cell.clone(),
            None => cells.entry(group_id.to_owned()).or_default().clone(),
        };
        let seen = cell.version.load(Ordering::SeqCst);
        GroupWaiter { watch: self.clone(), group_id: group_id.to_owned(), cell, seen }
    }

    /// A group changed.
    pub(crate) fn change(&self, group_id: &str) {
        let cell = self.lock().get(group_id).cloned();
        if let Some(cell) = cell {
            cell.change();
        }
    }

    /// Everything may have changed: a snapshot was installed, or this node no longer leads.
    pub(crate) fn change_all(&self) {
        let cells: Vec<Arc<Cell>> = self.lock().values().cloned().collect();
        for cell in cells {
            cell.change();
        }
    }
}

/// Waits for changes of one group on one shard.
#[derive(Debug)]
pub struct GroupWaiter {
    watch: GroupWatch,
    group_id: String,
    cell: Arc<Cell>,
    seen: u64,
}

impl GroupWaiter {
    /// Completes at the first change since the ticket was taken or since the last return, and when this node stops leading.
    pub async fn changed(&mut self) {
        loop {
            // A notification between the look and the wait is kept by this future, which counts from its creation.
            let changed = self.cell.changed.notified();
            let version = self.cell.version.load(Ordering::SeqCst);
            if version != self.seen {
                self.seen = version;
                return;
            }
            changed.await;
        }
    }
}

impl Drop for GroupWaiter {
    fn drop(&mut self) {
        let mut cells = self.watch.lock();
        // The table's and this waiter's: nobody else waits for the group.
        if Arc::strong_count(&self.cell) == 2 {
            cells.remove(&self.group_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_change_between_ticket_and_wait_is_not_missed() {
        let watch = GroupWatch::default();
        let mut waiter = watch.watch("g");
        watch.change("g");
        assert!(poll(pin!(waiter.changed())).is_ready());
        assert!(poll(pin!(waiter.changed())).is_pending());
        watch.change("other");
        assert!(poll(pin!(waiter.changed())).is_pending());
        watch.change_all();
        assert!(poll(pin!(waiter.changed())).is_ready());
    }

    #[test]
    fn groups_nobody_waits_for_are_forgotten() {
        let watch = GroupWatch::default();
        let (first, second) = (watch.watch("g"), watch.watch("g"));
        drop(first);
        assert_eq!(watch.lock().len(), 1);
        drop(second);
        assert!(watch.lock().is_empty());
    }
}
