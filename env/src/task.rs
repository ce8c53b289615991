//! Tasks, time-outs and a select without hidden randomness.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

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

// Futures of their own rather than `async fn`: those hold what they wait for twice, as argument and as what is awaited, and such
// waits are nested several deep in what is moved with every request.
pin_project! {
    /// What [`timeout`] gives.
    #[must_use = "futures do nothing unless they are polled"]
    pub struct Timeout<E: Env, F> {
        #[pin]
        future: F,
        #[pin]
        sleep: E::Sleep,
    }
}

/// Waits for `future`, at most until `duration` from now.
pub fn timeout<E: Env, F: Future>(duration: Duration, future: F) -> Timeout<E, F> {
    Timeout { future, sleep: E::sleep(duration) }
}

/// Waits for `future`, at most until `deadline`.
pub fn timeout_at<E: Env, F: Future>(deadline: Instant, future: F) -> Timeout<E, F> {
    Timeout { future, sleep: E::sleep_until(deadline) }
}

impl<E: Env, F: Future> Future for Timeout<E, F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.future.poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => this.sleep.poll(cx).map(|()| Err(Elapsed)),
        }
    }
}

pin_project! {
    /// What [`select`] gives.
    #[must_use = "futures do nothing unless they are polled"]
    pub struct Select<A, B> {
        #[pin]
        a: A,
        #[pin]
        b: B,
    }
}

/// Waits for whichever is ready first; the first argument wins a tie, so that a run can be repeated.
pub fn select<A: Future, B: Future>(a: A, b: B) -> Select<A, B> {
    Select { a, b }
}

impl<A: Future, B: Future> Future for Select<A, B> {
    type Output = Either<A::Output, B::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.a.poll(cx) {
            Poll::Ready(output) => Poll::Ready(Either::First(output)),
            Poll::Pending => this.b.poll(cx).map(Either::Second),
        }
    }
}
