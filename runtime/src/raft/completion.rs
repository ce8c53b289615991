//! How openraft hands back what became of a proposal.

use openraft::raft::responder::Responder;

/// Runs a callback with the outcome of one proposal. Dropped without one (the Raft core is gone), the callback is dropped too,
/// and with it whatever it would have answered.
pub(crate) struct Completion<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Completion<T> {
    /// The callback runs on openraft's tasks: it must be short and must not block.
    pub(crate) fn new(callback: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(callback))
    }
}

impl<C, T> Responder<C, T> for Completion<T>
where
    C: openraft::RaftTypeConfig,
    T: openraft::OptionalSend + 'static,
{
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}
