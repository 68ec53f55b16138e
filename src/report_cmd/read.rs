//! Interval logs (HdrHistogram, version 2) as data to draw: a histogram for each tag, and columns over time.
//! Promise: a file that is none is an error with its line; logs that share tags and time are added up.

use super::axis::time_label;
use base64::Engine as _;
use hdrhistogram::serialization::Deserializer;
use ringspan_engine::histogram::{Histogram, histogram};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What lines without a tag are called: the round trips.
pub(super) const RTT: &str = "rtt";
/// The prober's own lateness.
pub(super) const LATENESS: &str = "lateness";
/// Columns of a picture over time at most: four pixels each.
pub(super) const COLUMNS_MAX: usize = 200;
/// Rows of the heat map: twelve to a decade are finer than the eye needs.
pub(super) const ROWS: usize = 72;
/// Largest file: an hour at a line a second and a hundred tags is 300 MB.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// One stretch of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Column {
    /// Round trips by log-scaled time: [`row_of`].
    pub(super) rtt: Vec<u64>,
    /// p50, p99 of the round trips, µs; `None` without any.
    pub(super) rtt_us: Option<[u64; 2]>,
    /// p50, p99, max of the lateness.
    pub(super) lateness_us: Option<[u64; 3]>,
}

/// See the module.
pub(super) struct Data {
    /// Names of the files, without folder and ending.
    pub(super) names: Vec<String>,
    /// When the first interval began, if the logs say so.
    pub(super) begin: Option<SystemTime>,
    /// From the first interval's begin to the last one's end.
    pub(super) length: Duration,
    /// Lines that held a histogram.
    pub(super) intervals: usize,
    /// All of a tag.
    pub(super) tags: BTreeMap<String, Histogram>,
    pub(super) columns: Vec<Column>,
}

/// A line that holds a histogram.
struct Interval<'a> {
    line: usize,
    tag: String,
    start_s: f64,
    length_s: f64,
    encoded: &'a str,
}

/// Where a time stands among [`ROWS`] rows from 1 µs to 60 s.
pub(super) fn row_of(us: u64) -> usize {
    let at = (us.max(1) as f64).log10() / 6e7f64.log10();
    ((at * ROWS as f64) as usize).min(ROWS - 1)
}

/// Lower end of a row, µs.
pub(super) fn row_begin(row: usize) -> f64 {
    10f64.powf(6e7f64.log10() * row as f64 / ROWS as f64)
}

impl Data {
    /// Reads the files.
    pub(super) fn read(files: &[PathBuf]) -> Result<Data, String> {
        let mut texts = Vec::new();
        for path in files {
            let name = path.display();
            let size = std::fs::metadata(path).map_err(|e| format!("{name}: {e}. Try: a file of probe --hlog"))?.len();
            if size > FILE_BYTES_MAX {
                return Err(format!("{name}: more than 1 GiB. Try: a part of it (the lines that begin with # first)"));
            }
            let text = std::fs::read(path).map_err(|e| format!("{name}: {e}. Try: a file of probe --hlog"))?;
            let text = String::from_utf8(text)
                .map_err(|_| format!("{name}: it is no text, so no interval log. Try: a file of probe --hlog"))?;
            texts.push((path.as_path(), text));
        }
        Data::of(&texts)
    }

    /// Of texts with their names.
    pub(super) fn of(texts: &[(&Path, String)]) -> Result<Data, String> {
        let mut logs = Vec::new();
        for (path, text) in texts {
            let (base_s, intervals) = intervals(text).map_err(|(line, e)| format!("{}:{line}: {e}", path.display()))?;
            if intervals.is_empty() {
                return Err(format!(
                    "{}: there is no interval in it. Try: a file of probe --hlog, after its first second",
                    path.display()
                ));
            }
            logs.push((*path, base_s, intervals));
        }
        let starts = logs.iter().flat_map(|(_, base, all)| all.iter().map(move |i| base + i.start_s));
        let ends = logs.iter().flat_map(|(_, base, all)| all.iter().map(move |i| base + i.start_s + i.length_s));
        let begin_s = starts.fold(f64::INFINITY, f64::min);
        let end_s = ends.fold(f64::NEG_INFINITY, f64::max);
        let length_s = (end_s - begin_s).clamp(1e-3, 1e9);
        let lines = logs.iter().map(|(_, _, all)| all.iter().filter(|i| i.tag == RTT).count()).max().unwrap_or(0);
        let count = lines.clamp(1, COLUMNS_MAX);
        let names =
            logs.iter().map(|(path, _, _)| path.file_stem().map_or("?".into(), |s| s.to_string_lossy().into_owned()));
        let mut data = Data {
            names: names.collect(),
            begin: (begin_s > 1e8 && begin_s < 1e11).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(begin_s)),
            length: Duration::from_secs_f64(length_s),
            intervals: logs.iter().map(|(_, _, all)| all.len()).sum(),
            tags: BTreeMap::new(),
            columns: vec![Column { rtt: vec![0; ROWS], ..Column::default() }; count],
        };
        // One column's histograms at a time would need the files in order of time; two a column are small enough.
        let mut over_time: Vec<[Option<Box<Histogram>>; 2]> = (0..count).map(|_| [None, None]).collect();
        for (file, (path, base_s, all)) in logs.iter().enumerate() {
            for interval in all {
                let fresh =
                    decode(interval.encoded).map_err(|e| format!("{}:{}: {e}", path.display(), interval.line))?;
                let tag = match (texts.len(), interval.tag.as_str()) {
                    (2.., RTT) => format!("{RTT} of {}", data.names[file]),
                    (_, tag) => tag.to_owned(),
                };
                add(data.tags.entry(tag).or_insert_with(histogram), &fresh);
                if texts.len() > 1 && interval.tag == RTT {
                    add(data.tags.entry(RTT.into()).or_insert_with(histogram), &fresh);
                }
                let kind = match interval.tag.as_str() {
                    RTT => 0,
                    LATENESS => 1,
                    _ => continue,
                };
                // Every column whose middle it covers; if it is shorter than one, the one that it stands in.
                let place = |s: f64| (base_s + s - begin_s) / length_s * count as f64;
                let (start, end) = (place(interval.start_s), place(interval.start_s + interval.length_s));
                let (first, last) = ((start - 0.5).ceil().max(0.0) as usize, (end - 0.5).ceil().max(0.0) as usize);
                let alone = (((start + end) / 2.0).max(0.0) as usize).min(count - 1);
                let covered = if first < last.min(count) { first..last.min(count) } else { alone..alone + 1 };
                for column in covered {
                    add(over_time[column][kind].get_or_insert_with(|| Box::new(histogram())), &fresh);
                }
            }
        }
        for (column, [rtt, lateness]) in data.columns.iter_mut().zip(over_time) {
            if let Some(rtt) = rtt {
                for step in rtt.iter_recorded() {
                    column.rtt[row_of(step.value_iterated_to())] += step.count_since_last_iteration();
                }
                column.rtt_us = Some([0.5, 0.99].map(|q| rtt.value_at_quantile(q)));
            }
            column.lateness_us = lateness.map(|l| [l.value_at_quantile(0.5), l.value_at_quantile(0.99), l.max()]);
        }
        Ok(data)
    }

    /// Tags in the order of a legend: round trips, lateness, the rest by name.
    pub(super) fn ordered(&self) -> Vec<(&str, &Histogram)> {
        let rank = |tag: &str| match tag {
            RTT => 0,
            LATENESS => 1,
            _ => 2,
        };
        let mut all: Vec<(&str, &Histogram)> = self.tags.iter().map(|(tag, h)| (tag.as_str(), h)).collect();
        all.sort_by_key(|(tag, _)| (rank(tag), *tag));
        all
    }

    /// When nobody says another.
    pub(super) fn title(&self) -> String {
        format!("Probes: {}", self.names.join(", "))
    }

    /// "2026-11-21 23:40:12 UTC, 60 s, 12 000 round trips".
    pub(super) fn subtitle(&self) -> String {
        let mut text = String::new();
        if let Some(begin) = self.begin {
            text += &format!("{}, ", utc(begin));
        }
        let s = self.length.as_secs_f64();
        text += &match s {
            s if s < 120.0 => format!("{s:.0} s"),
            s if s < 7200.0 => format!("{:.0} min", s / 60.0),
            s => format!("{:.1} h", s / 3600.0),
        };
        let count = self.tags.get(RTT).map_or(0, Histogram::len);
        text + &format!(", {} answered probes", thousands(count))
    }

    /// The table for the terminal.
    pub(super) fn text(&self) -> String {
        let mut out = format!("{}\n\n", self.subtitle());
        let _ = writeln!(
            out,
            "{:<24} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "count", "p50", "p90", "p99", "p99.9", "max"
        );
        for (tag, h) in self.ordered() {
            let at = |q| time_label(h.value_at_quantile(q) as f64);
            let (p50, p90, p99, p999, max) = (at(0.5), at(0.9), at(0.99), at(0.999), time_label(h.max() as f64));
            let count = thousands(h.len());
            let _ = writeln!(out, "{tag:<24} {count:>12} {p50:>9} {p90:>9} {p99:>9} {p999:>9} {max:>9}");
        }
        out
    }
}

/// Histograms of other bounds than ours are welcome: what is longer than a minute counts as a minute.
fn add(to: &mut Histogram, fresh: &Histogram) {
    if fresh.high() <= to.high() && to.add(fresh).is_ok() {
        return;
    }
    for step in fresh.iter_recorded() {
        to.saturating_record_n(step.value_iterated_to(), step.count_since_last_iteration());
    }
}

fn decode(encoded: &str) -> Result<Histogram, String> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|e| format!("what should be a histogram is no base64: {e}"))?;
    let decoded = Deserializer::new().deserialize(&mut Cursor::new(bytes));
    decoded.map_err(|e| format!("the histogram cannot be read: {e}. It is cut off, or of a version before 2"))
}

/// The file's base time in seconds, and its intervals.
fn intervals(text: &str) -> Result<(f64, Vec<Interval<'_>>), (usize, String)> {
    let (mut base_s, mut start_s, mut all) = (None, None, Vec::new());
    for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line.trim_end())) {
        if let Some(comment) = line.strip_prefix('#') {
            let seconds = |key: &str| {
                let rest = comment.trim_start_matches('[').strip_prefix(key)?;
                rest.split([' ', ']', '(']).find_map(|word| word.trim().parse::<f64>().ok()).filter(|s| s.is_finite())
            };
            base_s = seconds("BaseTime:").or(base_s);
            start_s = seconds("StartTime:").or(start_s);
            continue;
        }
        if line.is_empty() || line.starts_with('"') {
            continue;
        }
        let foreign =
            |what: &str| (number, format!("{what}. Try: a file of probe --hlog (an HdrHistogram interval log)"));
        let (tag, rest) = match line.strip_prefix("Tag=") {
            Some(rest) => rest.split_once(',').ok_or_else(|| foreign("a tag and nothing else"))?,
            None => (RTT, line),
        };
        let mut fields = rest.splitn(4, ',').map(str::trim);
        let mut field = || fields.next().ok_or_else(|| foreign("not the four fields of an interval"));
        let (start, length, _max, encoded) = (field()?, field()?, field()?, field()?);
        let time = |text: &str| {
            let seconds = text.parse::<f64>().ok().filter(|s| (0.0..1e11).contains(s));
            seconds.ok_or_else(|| {
                foreign(&format!("{:?} is no time in seconds", text.chars().take(40).collect::<String>()))
            })
        };
        let (start_s, length_s) = (time(start)?, time(length)?);
        all.push(Interval { line: number, tag: tag.to_owned(), start_s, length_s, encoded });
    }
    // Time stamps are relative to the base; without one, small ones are relative to the start.
    let is_relative = all.first().is_some_and(|first| first.start_s < 1e8);
    let base = base_s.or(start_s.filter(|_| is_relative)).unwrap_or(0.0);
    Ok((if is_relative { base } else { 0.0 }, all))
}

pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// "2026-11-21 23:40:12 UTC" (days to a date: Howard Hinnant, chrono-Compatible Low-Level Date Algorithms, civil_from_days).
fn utc(time: SystemTime) -> String {
    let s = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = (s / 86_400, s % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", of_day / 3600, of_day / 60 % 60, of_day % 60)
}
