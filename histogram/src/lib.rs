//! Histograms that keep nothing but the number of their samples, with as much of the interface of the crate `base2histogram` as openraft uses.
//!
//! openraft measures itself with that crate, and we never ask for what it measured: latencies are measured where a user feels them. The crate makes
//! tables for every resolution that there may be when the first histogram is made: 13.6 MiB in each process, a third of an idle broker's memory.

use std::fmt;
use std::marker::PhantomData;

/// Counts samples. `T` has no meaning here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    samples: u64,
    metadata: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// Without samples.
    #[must_use]
    pub const fn new() -> Self {
        Self { samples: 0, metadata: PhantomData }
    }

    /// Counts one sample.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts `count` samples.
    pub fn record_n(&mut self, _value: u64, count: u64) {
        self.samples = self.samples.saturating_add(count);
    }

    /// Samples so far.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.samples
    }

    /// The number of samples; nothing is known of their values.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats { samples: self.samples, ..PercentileStats::default() }
    }
}

/// What a histogram says of its samples: their number. The percentiles are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it, and all but the first are 0")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[samples: {}]", self.samples)
    }
}

/// The numbers of samples of several histograms, a line each.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    series: Vec<(String, u64)>,
}

impl AsciiChart {
    /// Without histograms.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more.
    #[must_use]
    pub fn add<T>(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.series.push((name.to_owned(), histogram.samples));
        self
    }

    /// Itself.
    #[must_use]
    pub fn detailed(&self) -> &Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.series.iter().try_for_each(|(name, samples)| writeln!(f, "{name}: {samples} samples"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_counted_and_their_values_forgotten() {
        let mut histogram = Histogram::<()>::new();
        histogram.record(7);
        histogram.record_n(u64::MAX, 2);
        assert_eq!(histogram.total(), 3);
        assert_eq!(histogram.percentile_stats().to_string(), "[samples: 3]");
        assert_eq!(AsciiChart::new().add("latency", histogram).detailed().to_string(), "latency: 3 samples\n");
    }
}
