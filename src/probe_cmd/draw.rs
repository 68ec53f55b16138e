//! A histogram drawn in the terminal: a line for each step of RTT, a bar as long as its share.
//! Pure: numbers in, text out.

use hdrhistogram::Histogram;
use std::fmt::Write as _;

/// Lines of a drawing: enough for a shape, few enough to see at a glance.
const LINES_MAX: usize = 12;
/// Cells of the longest bar.
const BAR_CELLS: usize = 40;
/// Eighths of a cell, from one to seven; a full cell is █.
const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Microseconds as people read them: three digits and a unit.
pub(super) fn time(us: f64) -> String {
    let (value, unit) = match us {
        n if n < 1e3 => (n, "µs"),
        n if n < 1e6 => (n / 1e3, "ms"),
        n => (n / 1e6, "s"),
    };
    let digits = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

/// Seconds as people read them: two units at most.
pub(super) fn span(s: u64) -> String {
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// A count with its thousands apart.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// Draws a histogram of microseconds. Steps grow by a constant factor: RTTs spread over decades. What lies outside the
/// 0.5th and 99.9th percentile goes into the first and last line, so that one straggler does not flatten the rest.
pub(super) fn histogram(h: &Histogram<u64>) -> String {
    let mut out = String::new();
    if h.is_empty() {
        return out;
    }
    let (low, high) = (h.value_at_quantile(0.005).max(1), h.value_at_quantile(0.999).max(2));
    let edges = edges(low as f64, high as f64);
    let mut counts = vec![0u64; edges.len()];
    for step in h.iter_recorded() {
        let value = step.value_iterated_to() as f64;
        let line = edges.iter().position(|edge| value <= *edge).unwrap_or(edges.len() - 1);
        counts[line] += step.count_since_last_iteration();
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    for (i, n) in counts.iter().enumerate() {
        let sign = if i + 1 == counts.len() { '>' } else { '≤' };
        let edge = if i + 1 == counts.len() && i > 0 { edges[i - 1] } else { edges[i] };
        let sign = if counts.len() == 1 { '≤' } else { sign };
        let _ = writeln!(out, "  {sign} {:>8}  {:<BAR_CELLS$} {}", time(edge), bar(*n, most), count(*n));
    }
    out
}

/// Upper ends of the lines; the last takes whatever is above.
fn edges(low: f64, high: f64) -> Vec<f64> {
    let factor = (high / low).powf(1.0 / (LINES_MAX - 1) as f64).max(1.05);
    let mut edges = vec![low];
    while let Some(last) = edges.last().copied()
        && last < high
        && edges.len() < LINES_MAX
    {
        edges.push(last * factor);
    }
    edges
}

fn bar(n: u64, most: u64) -> String {
    let eighths = ((n as f64 / most as f64) * (BAR_CELLS * 8) as f64).round() as usize;
    // Something is never nothing: a bar of one eighth shows that there was one.
    let eighths = if n > 0 { eighths.max(1) } else { 0 };
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units change where three digits end.
    #[test]
    fn times() {
        for (us, text) in [
            (0.0, "0.00 µs"),
            (950.0, "950 µs"),
            (14.96, "15.0 µs"),
            (1500.0, "1.50 ms"),
            (999_499.0, "999 ms"),
            (60e6, "60.0 s"),
        ] {
            assert_eq!(time(us), text);
        }
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(count(n), text);
        }
    }

    /// Every recorded value is in one line and one only, whatever the spread; the longest bar is full.
    #[test]
    fn nothing_is_lost_in_the_drawing() {
        for spread in [vec![5], vec![1, 1_000_000_000], (1..2000).collect(), vec![14_000; 99]] {
            let mut h = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("bounds are good");
            for v in &spread {
                h.record(*v).expect("within bounds");
            }
            let text = histogram(&h);
            let last = |line: &str| {
                line.rsplit("  ").next().unwrap_or_default().trim().replace(['█', ' '], "").replace(EIGHTHS, "")
            };
            let sum: u64 = text.lines().map(|l| last(l).parse::<u64>().unwrap_or_else(|_| panic!("{l:?}"))).sum();
            assert_eq!(sum, spread.len() as u64, "{text}");
            assert!(text.contains(&"█".repeat(BAR_CELLS)), "{text}");
            assert!(text.lines().count() <= LINES_MAX);
        }
        assert_eq!(histogram(&Histogram::<u64>::new(3).expect("three digits")), "");
    }
}
