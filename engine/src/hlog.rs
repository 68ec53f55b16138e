//! An HdrHistogram interval log: what the probers measured, second by second, for the tools that read such logs
//! (HdrHistogram's log format 1.3, histograms in V2 compressed form; values in µs).
//!
//! Each interval writes a line for the round trips of all, without a tag, which is what tools show first, one for the
//! lateness with `Tag=lateness`, and one for the round trips of each group with its name for a tag. What has nothing new
//! is left out. A tag has no comma, space or line break (log format 1.3): in a group's name they become `_`.

use crate::histogram::Histogram;
use crate::stats::Numbers;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

/// Writes intervals as they end. The log is whole after every [`write`](IntervalLog::write).
pub struct IntervalLog<W> {
    out: W,
    begin: SystemTime,
    /// The groups' tags, group 1 first.
    tags: Vec<Option<String>>,
    /// What has been written.
    before: Numbers,
    /// When the last interval ended, counted from `begin`.
    until: Duration,
}

impl<W: Write> IntervalLog<W> {
    /// Writes the log's head; the first interval begins at `begin`. `groups` are those of the engine's
    /// [`Options`](crate::engine::Options).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn begin(mut out: W, begin: SystemTime, groups: &[String]) -> io::Result<IntervalLog<W>> {
        IntervalLogWriterBuilder::new()
            .add_comment("[ringspan probe log: microseconds]")
            .with_start_time(begin)
            .with_base_time(begin)
            .begin_log_with(&mut out, &mut V2DeflateSerializer::new())?;
        writeln!(out, "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"")?;
        let tags = groups.iter().map(|name| tag_of(name)).collect();
        Ok(IntervalLog { out, begin, tags, before: Numbers::default(), until: Duration::ZERO })
    }

    /// Ends an interval at `now`: writes what `total`, which only grows, has more than at the end of the last one.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&mut self, now: SystemTime, total: &Numbers) -> io::Result<()> {
        let until = now.duration_since(self.begin).unwrap_or_default().max(self.until);
        let (start, length) = (self.until, until - self.until);
        let before = &mut self.before;
        let kinds =
            [(None, &total.rtt, &mut before.rtt), (Tag::new("lateness"), &total.lateness, &mut before.lateness)];
        for (tag, current, before) in kinds {
            let mut fresh = current.clone();
            // A worker that was asked in vain is missing from the sum; its times come with a later interval.
            if fresh.subtract(&*before).is_err() || fresh.is_empty() {
                continue;
            }
            write_line(&mut self.out, tag, start, length, &fresh)?;
            before.clone_from(current);
        }
        before.groups.resize(before.groups.len().max(total.groups.len()), None);
        let groups = self.tags.iter().zip(&total.groups).zip(&mut before.groups);
        for ((tag, current), before) in groups {
            let (Some(tag), Some(current)) = (tag.as_deref().and_then(Tag::new), current) else { continue };
            let mut fresh = current.rtt.clone();
            let known = before.as_ref().is_none_or(|before| fresh.subtract(&before.rtt).is_ok());
            if known && !fresh.is_empty() {
                write_line(&mut self.out, Some(tag), start, length, &fresh)?;
                *before = Some(current.clone());
            }
        }
        self.until = until;
        self.out.flush()
    }
}

/// A group's name as a tag; `None` for a name of nothing.
fn tag_of(name: &str) -> Option<String> {
    let tag = name.replace([',', ' ', '\n', '\r'], "_");
    (!tag.is_empty()).then_some(tag)
}

/// hdrhistogram's own writer borrows its output for its whole life; a line of its own each lets us keep it.
fn write_line(
    out: &mut impl Write,
    tag: Option<Tag<'_>>,
    start: Duration,
    length: Duration,
    histogram: &Histogram,
) -> io::Result<()> {
    let (mut lines, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    IntervalLogWriterBuilder::new()
        .begin_log_with(&mut lines, &mut serializer)?
        .write_histogram(histogram, start, length, tag)
        .map_err(|error| io::Error::other(format!("interval log: {error:?}")))?;
    // The head that the builder writes before the line is comments.
    let line = lines.split_inclusive(|byte| *byte == b'\n').find(|line| !line.starts_with(b"#"));
    out.write_all(line.expect("the builder has written one line"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn numbers(rtts: &[u64], lateness: &[u64]) -> Numbers {
        let mut numbers = Numbers::default();
        rtts.iter().for_each(|us| numbers.rtt.record(*us).expect("in range"));
        lateness.iter().for_each(|us| numbers.lateness.record(*us).expect("in range"));
        numbers
    }

    /// A reader gets back, by tag and interval, exactly the times that were new in it.
    #[test]
    fn a_reader_gets_back_what_was_new() {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut log =
            IntervalLog::begin(Vec::new(), begin, &["shop/a b".to_owned(), "idle".to_owned()]).expect("memory");
        let second = Duration::from_secs(1);
        log.write(begin + second, &numbers(&[10, 20], &[])).expect("memory");
        log.write(begin + 2 * second, &numbers(&[10, 20], &[])).expect("memory");
        let mut last = numbers(&[10, 20, 500], &[7]);
        last.groups = vec![None, None];
        last.on_group(1, crate::outcome::Code::L7Ok, Some(Duration::from_micros(30)));
        log.write(begin + 3 * second, &last).expect("memory");
        last.on_group(1, crate::outcome::Code::L7Timeout, None);
        log.write(begin + 4 * second, &last).expect("memory");
        last.on_group(1, crate::outcome::Code::L7Ok, Some(Duration::from_micros(40)));
        log.write(begin + 5 * second, &last).expect("memory");
        let mut seen = Vec::new();
        for entry in IntervalLogIterator::new(&log.out) {
            if let LogEntry::Interval(line) = entry.expect("a log that its own reader can read") {
                let bytes = base64(line.encoded_histogram());
                let histogram: Histogram = Deserializer::new().deserialize(&mut &bytes[..]).expect("V2");
                let tag = line.tag().map(|tag| tag.as_str().to_owned());
                seen.push((tag, line.start_timestamp(), line.duration(), histogram.len(), histogram.max()));
            }
        }
        let (late, shop) = (Some("lateness".to_owned()), Some("shop/a_b".to_owned()));
        let wanted = [(None, 0, 2, 20), (None, 2, 1, 500), (late, 2, 1, 7), (shop.clone(), 2, 1, 30), (shop, 4, 1, 40)];
        assert_eq!(seen, wanted.map(|(tag, at, count, max)| (tag, at * second, second, count, max)));
    }

    /// Standard base64 (RFC 4648, 4), to read the log without another dependency.
    fn base64(text: &str) -> Vec<u8> {
        let digit = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
        for c in text.bytes().filter(|c| *c != b'=') {
            (bits, count) = (bits << 6 | u32::from(digit(c)), count + 6);
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
            }
        }
        bytes
    }
}
