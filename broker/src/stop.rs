//! A signal that is given once and seen by everyone, also by those who look later.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Tells all tasks of a broker to stop. A semaphore without permits says nothing until it is closed, and then the same to all.
#[derive(Clone, Debug)]
pub(crate) struct StopSignal(Arc<Semaphore>);

impl StopSignal {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Gives the signal. Giving it again changes nothing.
    pub(crate) fn give(&self) {
        self.0.close();
    }

    /// Was it given?
    pub(crate) fn is_given(&self) -> bool {
        self.0.is_closed()
    }

    /// Completes once the signal was given.
    pub(crate) async fn given(&self) {
        let refused = self.0.acquire().await;
        assert!(refused.is_err(), "the semaphore has no permits");
    }
}
