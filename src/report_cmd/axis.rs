//! Axes: where ticks stand and what they are called. Pure arithmetic.

/// A logarithmic axis of microseconds, from a power of ten to a 1, 2 or 5 of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeAxis {
    low: f64,
    high: f64,
}

impl TimeAxis {
    /// Around these values; at least one decade.
    pub(super) fn around(low_us: f64, high_us: f64) -> TimeAxis {
        let low = 10f64.powf(low_us.max(1.0).log10().floor());
        let ends = (0..=9).flat_map(|e| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(e)));
        let high = ends.into_iter().find(|end| *end >= high_us && *end >= low * 10.0).unwrap_or(1e9);
        TimeAxis { low, high }
    }

    /// 0 at the low end, 1 at the high one.
    pub(super) fn at(self, us: f64) -> f64 {
        ((us.max(self.low) / self.low).ln() / (self.high / self.low).ln()).clamp(0.0, 1.0)
    }

    /// Powers of ten (true), and 2 and 5 of them (false).
    pub(super) fn ticks(self) -> Vec<(f64, bool)> {
        let ends = (0..=9).flat_map(|e| [1.0, 2.0, 5.0].map(|m| (m * 10f64.powi(e), m == 1.0)));
        ends.into_iter().filter(|(v, _)| *v >= self.low * 0.999 && *v <= self.high * 1.001).collect()
    }
}

/// "10 µs", "1 ms", "20 s".
pub(super) fn time_label(us: f64) -> String {
    let (value, unit) = match us {
        n if n < 999.5 => (n, "µs"),
        n if n < 999.5e3 => (n / 1e3, "ms"),
        n => (n / 1e6, "s"),
    };
    let digits = if value >= 99.95 || (value - value.round()).abs() < 1e-9 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

/// Where percentiles stand: as HdrHistogram plots them, each nine as wide as the last. 0 at 0 %, 1 at `nines`.
pub(super) fn percentile_at(quantile: f64, nines: f64) -> f64 {
    (-(1.0 - quantile).max(1e-9).log10() / nines).clamp(0.0, 1.0)
}

/// 0 %, 90 %, 99 %, ... as far as the axis goes.
pub(super) fn percentile_ticks(nines: f64) -> Vec<(f64, String)> {
    let all = [0.0f64, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999];
    let label = |q: f64| {
        let text = format!("{:.3}", q * 100.0);
        format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
    };
    all.into_iter()
        .filter(|q| -(1.0 - q).log10() <= nines + 1e-6)
        .map(|q| (percentile_at(q, nines), label(q)))
        .collect()
}

/// Ticks of an axis of seconds, five to ten of them, with labels.
pub(super) fn span_ticks(length_s: f64) -> Vec<(f64, String)> {
    const STEPS: [f64; 20] = [
        0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0,
        28_800.0, 86_400.0, 604_800.0,
    ];
    let step = STEPS.into_iter().find(|step| length_s / step <= 10.0).unwrap_or(length_s.max(1.0) / 5.0);
    let label = |s: f64| match step {
        n if n < 1.0 => format!("{s:.1} s"),
        n if n < 60.0 && length_s <= 120.0 => format!("{s:.0} s"),
        n if n < 3600.0 => {
            let (minutes, seconds) = ((s / 60.0).floor(), s % 60.0);
            if s == 0.0 {
                "0".into()
            } else if seconds == 0.0 {
                format!("{minutes:.0} min")
            } else {
                format!("{minutes:.0}:{seconds:02.0} min")
            }
        }
        n if n < 86_400.0 => format!("{:.0} h", s / 3600.0),
        _ => format!("{:.0} d", s / 86_400.0),
    };
    let count = (length_s / step + 1e-9).floor() as usize;
    (0..=count).map(|n| (n as f64 * step, label(n as f64 * step))).collect()
}
