//! Latencies, counted in buckets that are at most 3 % wide.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets to each power of two.
const STEPS: u64 = 32;
const BUCKETS: usize = 64 * STEPS as usize;

/// A histogram that many tasks may add to.
pub(crate) struct Latencies {
    buckets: Vec<AtomicU64>,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn add(&self, latency: Duration) {
        let at = bucket_of(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The latency that this share of all (0 to 1) does not exceed, in milliseconds; 0 without any.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        let wanted = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen >= wanted {
                return upper_end(at) as f64 / 1e6;
            }
        }
        0.0
    }
}

fn bucket_of(nanoseconds: u64) -> usize {
    if nanoseconds < STEPS {
        return nanoseconds as usize;
    }
    let power = u64::from(nanoseconds.ilog2());
    let shift = power - u64::from(STEPS.ilog2());
    let step = (nanoseconds >> shift) - STEPS;
    ((shift + 1) * STEPS + step) as usize
}

/// The greatest value that falls into the bucket.
fn upper_end(at: usize) -> u64 {
    let at = at as u64;
    if at < STEPS {
        return at;
    }
    let shift = at / STEPS - 1;
    let low = (STEPS + at % STEPS) << shift;
    low + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_its_bucket() {
        for value in (0..64).map(|power| 1_u64 << power).flat_map(|power| [power - 1, power, power + power / 3]) {
            let at = bucket_of(value);
            assert!(value <= upper_end(at), "{value}");
            assert!(at == 0 || value > upper_end(at - 1), "{value}");
            assert!((upper_end(at) - value) as f64 <= value as f64 / 31.0, "{value}");
        }
        assert!(bucket_of(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_are_of_what_was_added() {
        let latencies = Latencies::new();
        assert_eq!(latencies.quantile_ms(0.5), 0.0);
        for ms in 1..=1_000 {
            latencies.add(Duration::from_millis(ms));
        }
        for (share, ms) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1_000.0)] {
            let found = latencies.quantile_ms(share);
            assert!((ms..ms * 1.04).contains(&found), "{share}: {found}");
        }
        assert_eq!(latencies.count(), 1_000);
    }
}
