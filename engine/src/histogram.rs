//! How long things took: constant-memory histograms, and the few numbers people read from them.
//! Promise: recording never fails and never allocates; what is longer than [`US_MAX`] counts as that.

use std::time::Duration;

/// The longest time told apart, in microseconds: a minute, the longest timeout.
pub const US_MAX: u64 = 60_000_000;

/// Significant digits: 1000 µs and 1001 µs are told apart, at about 140 KiB a histogram.
const DIGITS: u8 = 3;

/// Times in microseconds (hdrhistogram).
pub type Histogram = hdrhistogram::Histogram<u64>;

/// An empty histogram of 1 µs to 60 s with three digits.
pub fn histogram() -> Histogram {
    Histogram::new_with_bounds(1, US_MAX, DIGITS).expect("the bounds are constants that hdrhistogram accepts")
}

/// An empty histogram of 1 µs to 60 s with two digits, about 20 KiB: for what there is much of.
pub fn histogram_coarse() -> Histogram {
    Histogram::new_with_bounds(1, US_MAX, 2).expect("the bounds are constants that hdrhistogram accepts")
}

/// Counts one time.
pub(crate) fn record(histogram: &mut Histogram, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(US_MAX).min(US_MAX));
}

/// The few numbers people read, in microseconds. All zero when nothing was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// How many times were counted.
    pub count: u64,
    /// The shortest.
    pub min: u64,
    /// Half were shorter.
    pub p50: u64,
    /// Nine in ten were shorter.
    pub p90: u64,
    /// Ninety-nine in a hundred were shorter.
    pub p99: u64,
    /// All but one in a thousand were shorter.
    pub p999: u64,
    /// The longest.
    pub max: u64,
    /// The arithmetic mean.
    pub mean: f64,
}

impl Summary {
    /// Reads them off a histogram.
    pub fn of(histogram: &Histogram) -> Summary {
        if histogram.is_empty() {
            return Summary::default();
        }
        Summary {
            count: histogram.len(),
            min: histogram.min(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
            mean: histogram.mean(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of the times that went in, to three digits, and the longest times count as a minute.
    #[test]
    fn a_summary_reads_what_was_recorded() {
        assert_eq!(Summary::of(&histogram()), Summary::default());
        let mut times = histogram();
        (1..=1000).for_each(|us| record(&mut times, Duration::from_micros(us)));
        let s = Summary::of(&times);
        assert_eq!((s.count, s.min, s.p50, s.p90, s.p99, s.p999, s.max), (1000, 1, 500, 900, 990, 999, 1000));
        assert!((s.mean - 500.5).abs() < 0.1);
        record(&mut times, Duration::from_secs(3600));
        assert_eq!(times.max(), times.highest_equivalent(US_MAX));
    }
}
