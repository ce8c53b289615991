//! A latency histogram that many tasks record into at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets to each factor of ten: an estimate from a bucket is off by less than a third.
const BUCKETS_PER_DECADE: usize = 8;
/// From 1 µs to 100 s.
const DECADES: usize = 8;
/// Finite upper bounds; one more bucket holds what is longer than all of them.
const BOUNDS: usize = BUCKETS_PER_DECADE * DECADES + 1;

/// Latencies in fixed exponential buckets from 1 µs to 100 s. Recording takes no lock.
#[derive(Debug)]
pub struct Histogram {
    bounds_ns: [u64; BOUNDS],
    counts: [AtomicU64; BOUNDS + 1],
    sum_ns: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bound in seconds and the number of values up to it, ascending; the last bound is infinite and its number is `count`.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all values, in seconds.
    pub sum_seconds: f64,
    /// Number of values.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bounds_ns: std::array::from_fn(|i| {
                (1_000.0 * 10f64.powf(i as f64 / BUCKETS_PER_DECADE as f64)).round() as u64
            }),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            sum_ns: AtomicU64::new(0),
        }
    }

    /// Counts one value. Durations above 584 years count as that.
    pub fn record(&self, value: Duration) {
        let value_ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds_ns.partition_point(|bound_ns| *bound_ns < value_ns);
        self.sum_ns.fetch_add(value_ns, Ordering::Relaxed);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// The state now. Values recorded meanwhile may be missing from the sum or from the buckets.
    #[must_use]
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut count = 0;
        let buckets = self
            .counts
            .iter()
            .enumerate()
            .map(|(i, bucket)| {
                count += bucket.load(Ordering::Relaxed);
                let bound_seconds = self.bounds_ns.get(i).map_or(f64::INFINITY, |bound_ns| *bound_ns as f64 / 1e9);
                (bound_seconds, count)
            })
            .collect();
        HistogramSnapshot { buckets, sum_seconds: self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9, count }
    }
}

impl HistogramSnapshot {
    /// The value in seconds below which the fraction `q` (0 ..= 1) of the values lies, interpolated within its bucket; `None` when
    /// there are no values. Values beyond 100 s count as 100 s.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * self.count as f64).max(1.0);
        let mut below = (0.0, 0);
        for (bound_seconds, cumulative) in &self.buckets {
            if *cumulative as f64 >= rank {
                if bound_seconds.is_infinite() {
                    return Some(below.0);
                }
                let within = (rank - below.1 as f64) / (*cumulative - below.1) as f64;
                return Some(below.0 + (bound_seconds - below.0) * within);
            }
            below = (*bound_seconds, *cumulative);
        }
        Some(below.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_histogram_has_no_quantile() {
        let snapshot = Histogram::new().snapshot();
        assert_eq!(snapshot.count, 0);
        assert_eq!(snapshot.quantile(0.99), None);
    }

    #[test]
    fn buckets_are_cumulative_and_end_at_infinity() {
        let histogram = Histogram::new();
        for value in [Duration::ZERO, Duration::from_micros(1), Duration::from_millis(3), Duration::from_secs(1_000)] {
            histogram.record(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets.first(), Some(&(1e-6, 2)));
        assert_eq!(snapshot.buckets.last(), Some(&(f64::INFINITY, 4)));
        assert!(snapshot.buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        assert!((snapshot.sum_seconds - 1_000.003_001).abs() < 1e-9);
    }

    #[test]
    fn quantiles_are_close_to_the_truth() {
        let histogram = Histogram::new();
        for micros in 1..=10_000 {
            histogram.record(Duration::from_micros(micros));
        }
        let snapshot = histogram.snapshot();
        for q in [0.01, 0.5, 0.9, 0.99, 0.999] {
            let estimate = snapshot.quantile(q).unwrap();
            let truth = q * 0.01;
            assert!((estimate / truth - 1.0).abs() < 0.05, "q {q}: {estimate} instead of {truth}");
        }
    }

    #[test]
    fn what_is_longer_than_every_bound_counts_as_the_longest() {
        let histogram = Histogram::new();
        histogram.record(Duration::from_secs(5_000));
        assert_eq!(histogram.snapshot().quantile(0.5), Some(100.0));
    }
}
