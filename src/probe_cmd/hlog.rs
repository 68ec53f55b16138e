//! An HdrHistogram interval log (format 1.3, histograms in V2 with deflate), as HistogramLogAnalyzer and others read it.
//! RTT lines have no tag, lateness lines have Tag=lateness. Values are microseconds; the column of maxima is in ms.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriter, IntervalLogWriterBuilder, Tag};
use ringspan_engine::stats::Numbers;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Values per unit of the maxima's column: µs in a ms.
const MAX_UNIT: f64 = 1000.0;

/// Collects intervals and writes the file at the end: a log of an hour is a few megabytes.
pub(super) struct Hlog {
    file: BufWriter<File>,
    name: String,
    last: Numbers,
    last_at: Duration,
    intervals: Vec<Interval>,
}

struct Interval {
    start: Duration,
    length: Duration,
    rtt: Histogram<u64>,
    lateness: Histogram<u64>,
}

impl Hlog {
    /// Creates the file now: a path that cannot be written is known before the first probe.
    pub(super) fn create(path: &Path) -> Result<Hlog, String> {
        let name = path.display().to_string();
        let file = File::create(path).map_err(|e| format!("--hlog {name}: {e}. Try: a path that can be written"))?;
        let (last, intervals) = (Numbers::default(), Vec::new());
        Ok(Hlog { file: BufWriter::new(file), name, last, last_at: Duration::ZERO, intervals })
    }

    /// Ends an interval at `at` after the start, with what was counted since the start.
    pub(super) fn interval(&mut self, at: Duration, total: &Numbers) {
        let less = |now: &Histogram<u64>, before: &Histogram<u64>| {
            let mut diff = now.clone();
            diff.subtract(before).expect("a cumulative histogram only grows, within the same bounds");
            diff
        };
        self.intervals.push(Interval {
            start: self.last_at,
            length: at.saturating_sub(self.last_at),
            rtt: less(&total.rtt, &self.last.rtt),
            lateness: less(&total.lateness, &self.last.lateness),
        });
        (self.last, self.last_at) = (total.clone(), at);
    }

    /// Writes all of it. `started` is the wall clock at the start.
    pub(super) fn finish(mut self, started: SystemTime) -> Result<(), String> {
        let mut serializer = V2DeflateSerializer::new();
        let written = (|| {
            let mut log = IntervalLogWriterBuilder::new()
                .add_comment("ringspan probe: RTT untagged, lateness as Tag=lateness, in microseconds")
                .with_start_time(started)
                .with_base_time(started)
                .with_max_value_divisor(MAX_UNIT)
                .begin_log_with(&mut self.file, &mut serializer)
                .map_err(|e| e.to_string())?;
            for i in &self.intervals {
                write(&mut log, i, &i.rtt, None)?;
                write(&mut log, i, &i.lateness, Tag::new("lateness"))?;
            }
            Ok::<(), String>(())
        })();
        written
            .and_then(|()| self.file.flush().map_err(|e| e.to_string()))
            .map_err(|e| format!("--hlog {}: {e}", self.name))
    }
}

fn write(
    log: &mut IntervalLogWriter<'_, '_, BufWriter<File>, V2DeflateSerializer>,
    interval: &Interval,
    histogram: &Histogram<u64>,
    tag: Option<Tag<'_>>,
) -> Result<(), String> {
    log.write_histogram(histogram, interval.start, interval.length, tag).map_err(|e| format!("{e:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    /// What was recorded in each second can be read back from its line, and from no other.
    #[test]
    fn intervals_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.hlog");
        let mut hlog = Hlog::create(&path).expect("it can be written");
        let mut total = Numbers::default();
        for second in 1..=3u64 {
            total.rtt.record_n(second * 100, second).expect("in range");
            total.lateness.record(second).expect("in range");
            hlog.interval(Duration::from_secs(second), &total);
        }
        hlog.finish(SystemTime::now()).expect("written");
        let text = std::fs::read(&path).expect("it is there");
        let mut seen = Vec::new();
        for entry in IntervalLogIterator::new(&text) {
            if let LogEntry::Interval(i) = entry.expect("the format is right") {
                let bytes = base64::engine::general_purpose::STANDARD.decode(i.encoded_histogram()).expect("base64");
                let h: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).expect("V2");
                seen.push((i.tag().map(|t| t.as_str().to_owned()), i.start_timestamp().as_secs(), h.len(), h.max()));
            }
        }
        let late = || Some("lateness".to_owned());
        assert_eq!(
            seen,
            [
                (None, 0, 1, 100),
                (late(), 0, 1, 1),
                (None, 1, 2, 200),
                (late(), 1, 1, 2),
                (None, 2, 3, 300),
                (late(), 2, 1, 3)
            ]
        );
    }
}
