//! Retries with exponential back-off and jitter, bounded by a total time-out.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use lockstep_env::Env;

use crate::error::ClientError;

const DELAY_MIN: Duration = Duration::from_millis(20);
/// Longest delay while an election may still be under way: its end must not be slept through.
const DELAY_MAX_AT_FIRST: Duration = Duration::from_millis(50);
/// By then an election is over, and what does not succeed fails for a reason that lasts.
const AT_FIRST: Duration = Duration::from_secs(2);
const DELAY_MAX: Duration = Duration::from_secs(1);

/// The delays between attempts: doubled each time, each varied by a fifth either way so that clients do not come in
/// step.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    /// All delays so far, without their variation.
    sum: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: DELAY_MIN, sum: Duration::ZERO }
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }

    /// After so many failures in a row.
    pub(crate) fn after(failures: u32) -> Self {
        let mut backoff = Self::new();
        // Later delays are all the same.
        for _ in 0..failures.min(64) {
            backoff.next_delay(0);
        }
        backoff
    }

    /// May the reason for so many failures in a row still be an election?
    pub(crate) fn is_at_first(failures: u32) -> bool {
        Self::after(failures).sum < AT_FIRST
    }

    /// `random` is any 64 bits.
    pub(crate) fn next_delay(&mut self, random: u64) -> Duration {
        let delay = self.next;
        self.sum += delay;
        self.next = (delay * 2).min(if self.sum < AT_FIRST { DELAY_MAX_AT_FIRST } else { DELAY_MAX });
        let percent = 80 + (random % 41) as u32;
        delay * percent / 100
    }
}

/// The attempts of one operation.
pub(crate) struct Retry<E> {
    what: String,
    timeout: Duration,
    deadline: Instant,
    backoff: Backoff,
    env: PhantomData<fn() -> E>,
}

impl<E: Env> Retry<E> {
    /// `what` says what is being done, for the error of a time-out.
    pub(crate) fn new(what: impl Into<String>, timeout: Duration) -> Self {
        Self { what: what.into(), timeout, deadline: E::now() + timeout, backoff: Backoff::new(), env: PhantomData }
    }

    /// Time that is left.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(E::now())
    }

    /// Waits before the next attempt. Gives `error` back if retrying cannot help, and a time-out if there is no time
    /// for another attempt.
    pub(crate) async fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_retriable() {
            return Err(error);
        }
        self.pause_anyway(&error).await
    }

    /// [`Retry::pause`] for errors that are not retriable in general, but are where the caller is.
    pub(crate) async fn pause_anyway(&mut self, error: &ClientError) -> Result<(), ClientError> {
        let delay = self.backoff.next_delay(E::random_u64());
        if delay >= self.left() {
            return Err(ClientError::TimedOut {
                what: self.what.clone(),
                after: self.timeout,
                last: error.to_string(),
            });
        }
        tracing::debug!(what = %self.what, %error, delay_ms = delay.as_millis() as u64, "retrying");
        E::sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_vary_by_a_fifth() {
        for random in [0, 40, u64::MAX] {
            let mut backoff = Backoff::new();
            for expected in [20, 40, 50, 50] {
                let expected = Duration::from_millis(expected);
                let delay = backoff.next_delay(random);
                assert!(delay >= expected * 80 / 100 && delay <= expected * 120 / 100, "{delay:?} for {expected:?}");
            }
            for _ in 0..60 {
                assert!(backoff.next_delay(random) <= DELAY_MAX * 120 / 100);
            }
            assert!(backoff.next_delay(random) >= DELAY_MAX * 80 / 100, "attempts get rare when they fail for long");
        }
    }

    #[test]
    fn failures_in_a_row_count_like_attempts() {
        let mut backoff = Backoff::new();
        for failures in 0..100 {
            assert_eq!(Backoff::after(failures).next_delay(20), backoff.next_delay(20), "after {failures} failures");
        }
    }
}
