//! What all connections share: how many there may be, and how much memory their requests may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockstep_wire::frame;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::config::BrokerConfig;

/// Memory and budget are set aside for a frame in steps of so many bytes.
pub(crate) const READ_STEP_BYTES: usize = 1 << 20;
/// The part of the budget of all connections that one of them may hold, or the longest frame if that is more.
const CONNECTION_SHARE: usize = 4;
/// Bytes under way are counted in units of this many, rounded up.
pub(crate) const BUDGET_UNIT_BYTES: usize = 1 << 10;

/// What all connections share: how many there are, and the bytes of requests under way.
#[derive(Debug)]
pub(crate) struct ConnectionLimits {
    connections_max: usize,
    /// Longest frame of a connection that has sent a valid one.
    pub(crate) frame_bytes_max: usize,
    /// A connection on which nothing is asked for so long is closed.
    pub(crate) idle_timeout: Duration,
    open: Arc<OpenConnections>,
    budget: Arc<Semaphore>,
    /// Of the budget, what one connection may hold.
    share_units: u32,
}

#[derive(Debug, Default)]
struct OpenConnections {
    count: AtomicUsize,
    closed: Notify,
}

/// Counts a connection for as long as one of its tasks lives.
pub(crate) struct OpenGuard(Arc<OpenConnections>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.closed.notify_waiters();
    }
}

impl ConnectionLimits {
    pub(crate) fn new(config: &BrokerConfig) -> Self {
        let frame_bytes_max = config.frame_bytes_max.min(frame::REQUEST_LEN_MAX);
        // Steps are rounded up, so the longest frame needs a little more than its length.
        let longest = frame_bytes_max + 2 * READ_STEP_BYTES;
        let all = config.in_flight_bytes_max.max(longest);
        let share = (all / CONNECTION_SHARE).max(longest);
        Self {
            connections_max: config.connections_max,
            frame_bytes_max,
            idle_timeout: config.idle_timeout,
            open: Arc::default(),
            budget: Arc::new(Semaphore::new(budget_units(all) as usize)),
            share_units: budget_units(share),
        }
    }

    /// What one connection may hold of the budget of all.
    pub(crate) fn share(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(self.share_units as usize))
    }

    pub(crate) fn connections(&self) -> usize {
        self.open.count.load(Ordering::Acquire)
    }

    /// Completes when no connection is open.
    pub(crate) async fn all_closed(&self) {
        loop {
            let closed = self.open.closed.notified();
            if self.connections() == 0 {
                return;
            }
            closed.await;
        }
    }

    /// Counts one more connection. `None`: there are too many.
    pub(crate) fn admit(&self) -> Option<OpenGuard> {
        if self.open.count.fetch_add(1, Ordering::AcqRel) >= self.connections_max {
            self.open.count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(OpenGuard(Arc::clone(&self.open)))
    }
}

/// What a frame holds of its connection's share and of the budget of all, until it is answered.
#[derive(Default)]
pub(crate) struct Reserved(Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>);

impl Reserved {
    /// Sets more bytes aside, waiting until enough requests are done.
    pub(crate) async fn add(
        &mut self,
        limits: &ConnectionLimits,
        share: &Arc<Semaphore>,
        bytes: usize,
    ) -> Result<(), String> {
        let units = budget_units(bytes);
        let take = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).acquire_many_owned(units);
        let (Ok(own), Ok(all)) = (take(share).await, take(&limits.budget).await) else {
            return Err("the broker stops".to_owned());
        };
        match &mut self.0 {
            Some((held_own, held_all)) => {
                held_own.merge(own);
                held_all.merge(all);
            }
            None => self.0 = Some((own, all)),
        }
        Ok(())
    }
}

pub(crate) fn budget_units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_frames_count_too() {
        assert_eq!(budget_units(1), 1);
        assert_eq!(budget_units(BUDGET_UNIT_BYTES + 1), 2);
    }
}
