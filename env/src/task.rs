//! Tasks, time-outs and a select without hidden randomness.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::Env;

/// A running task. Dropping it lets the task run on.
pub trait Task<T>: Future<Output = Result<T, TaskFailed>> + Send + Unpin + 'static {
    /// Stops the task at its next await.
    fn abort(&self);
}

/// Why a task has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskFailed {
    /// It panicked, with what is known about it.
    #[error("task panicked: {0}")]
    Panicked(String),
    /// It was aborted, or its executor stopped.
    #[error("task aborted")]
    Aborted,
}

/// The time was up first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time-out")]
pub struct Elapsed;

/// Which of two futures was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first one.
    First(A),
    /// The second one.
    Second(B),
}

/// Waits for `future`, at most `duration`.
pub async fn timeout<E: Env, F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    match select(future, E::sleep(duration)).await {
        Either::First(output) => Ok(output),
        Either::Second(()) => Err(Elapsed),
    }
}

/// Waits for whichever is ready first; the first argument wins a tie, so that a run can be repeated.
pub async fn select<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let mut a = pin!(a);
    let mut b = pin!(b);
    std::future::poll_fn(move |cx: &mut Context<'_>| {
        if let Poll::Ready(output) = Pin::as_mut(&mut a).poll(cx) {
            return Poll::Ready(Either::First(output));
        }
        if let Poll::Ready(output) = Pin::as_mut(&mut b).poll(cx) {
            return Poll::Ready(Either::Second(output));
        }
        Poll::Pending
    })
    .await
}
