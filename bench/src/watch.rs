//! A prober that runs for long and says every change of its mind: the product, or the bare engine in a child of ours.
//! Owns what is read from it while it runs, stamped as it is read, and how it is told to stop.
//! Promise: no change is lost (a line each, read by a thread of its own), and what it says at its end is checked.

use crate::process::{Failure, Process};
use crate::product::ProbeReport;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use ringspan_engine::kernel::monotonic_now;
use serde::Deserialize;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, SystemTime};

/// How long it may take to end when it is told to: it has its last interval to write and its sockets to close.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// What is believed of a target.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Belief {
    /// Nothing yet.
    Unknown,
    /// It is well.
    Up,
    /// It is not.
    Down,
}

/// A change of mind: a line of JSON from a child of ours, a line for people from the product (`--watch=lines`).
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Change {
    /// When it was read here, CLOCK_MONOTONIC in ns.
    #[serde(skip)]
    pub(crate) at_ns: u64,
    /// Of whom.
    pub(crate) address: SocketAddr,
    /// What is believed now.
    pub(crate) to: Belief,
    /// The outcome that decided.
    pub(crate) code: String,
}

impl Change {
    /// Reads "TIME TARGET: FROM -> TO, CODE (DETAIL), ...", where the target is a URL or an address.
    fn of_line(line: &str) -> Option<Change> {
        let (head, tail) = line.split_once(" -> ")?;
        let (shown, _from) = head.split_once(' ')?.1.rsplit_once(": ")?;
        let (to, reason) = tail.split_once(", ")?;
        let to = match to {
            "up" => Belief::Up,
            "down" => Belief::Down,
            _ => Belief::Unknown,
        };
        let host = shown.split_once("://").map_or(shown, |(_, rest)| rest.split('/').next().unwrap_or(rest));
        let code = reason.split([',', ' ']).next().unwrap_or_default().to_owned();
        Some(Change { at_ns: 0, address: host.parse().ok()?, to, code })
    }
}

/// How a prober is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its standard input ends: a child of ours.
    EndOfInput,
    /// SIGINT: the product.
    Interrupt,
}

/// What a line of a prober is.
enum Line {
    Change(Change),
    /// Its last word.
    Report(Box<ProbeReport>),
}

/// A running prober.
pub(crate) struct Watch {
    /// For its CPU, memory and limits.
    pub(crate) process: Process,
    lines: Receiver<Line>,
    stop: Stop,
    /// Closed to say stop to a child of ours.
    stdin: Option<ChildStdin>,
    hlog: PathBuf,
    report: Option<Box<ProbeReport>>,
}

/// How late probes were started, and how many, in a stretch of time.
#[derive(Clone, Debug)]
pub(crate) struct Lateness {
    /// Microseconds; one for each probe.
    pub(crate) us: Histogram<u64>,
}

impl Lateness {
    /// Milliseconds within which this share of the probes started.
    pub(crate) fn ms(&self, quantile: f64) -> f64 {
        self.us.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The latest, milliseconds.
    pub(crate) fn max_ms(&self) -> f64 {
        self.us.max() as f64 / 1e3
    }
}

impl Watch {
    /// Starts it. `hlog`: where the command tells it to write its interval log.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(
        name: &str,
        command: Command,
        stop: Stop,
        folder: &Path,
        hlog: &Path,
    ) -> Result<Watch, Failure> {
        let (process, stdout, stdin) = Process::start_piped(name, command, folder)?;
        let (to, lines) = channel();
        thread::spawn(move || read_lines(stdout, |line| to.send(line).is_ok()));
        Ok(Watch { process, lines, stop, stdin: Some(stdin), hlog: hlog.to_owned(), report: None })
    }

    /// The changes that come until `until` has passed; ends early when `enough` says so of one.
    ///
    /// # Errors
    /// The prober has ended.
    pub(crate) fn until(
        &mut self,
        until: std::time::Instant,
        mut enough: impl FnMut(&Change) -> bool,
    ) -> Result<(), Failure> {
        loop {
            let patience = until.saturating_duration_since(std::time::Instant::now());
            match self.lines.recv_timeout(patience) {
                Ok(Line::Change(change)) if enough(&change) => return Ok(()),
                Ok(Line::Change(_)) => {}
                Ok(Line::Report(report)) => self.report = Some(report),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.process.exited().map_or("its output ended".to_owned(), |s| s.to_string());
                    return Err(format!("{}: {status}\n{}", self.process.name, self.process.log_end()));
                }
            }
        }
    }

    /// Tells it to stop, and takes its last word.
    ///
    /// # Errors
    /// It does not end, or its last word is missing.
    pub(crate) fn finish(mut self) -> Result<ProbeReport, Failure> {
        drop(self.stdin.take());
        if self.stop == Stop::Interrupt {
            let pid = self.process.pid().to_string();
            let sent = Command::new("kill").args(["-INT", &pid]).output();
            sent.map_err(|e| format!("kill -INT {pid}: {e}"))?;
        }
        self.process.wait_ended(END_TIMEOUT, &[0, 1])?;
        let last = self.lines.iter().filter_map(|line| match line {
            Line::Report(report) => Some(report),
            Line::Change(_) => None,
        });
        let report = last.last().or(self.report.take());
        let missing = || format!("{} ended without a report\n{}", self.process.name, self.process.log_end());
        report.map(|report| *report).ok_or_else(missing)
    }

    /// The lateness of what was started between two times, from its interval log; whole seconds.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) fn lateness(&self, from: SystemTime, to: SystemTime) -> Result<Lateness, Failure> {
        let text = fs::read(&self.hlog).map_err(|e| format!("{}: {e}", self.hlog.display()))?;
        lateness_of(&text, from, to).map_err(|e| format!("{}: {e}", self.hlog.display()))
    }
}

fn read_lines(from: ChildStdout, mut take: impl FnMut(Line) -> bool) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let at_ns = monotonic_now().ns();
        let change = serde_json::from_str(&line).ok().or_else(|| Change::of_line(&line));
        let line = match change {
            Some(change) => Line::Change(Change { at_ns, ..change }),
            None => match serde_json::from_str::<ProbeReport>(&line) {
                Ok(report) => Line::Report(Box::new(report)),
                // Something for people.
                Err(_) => continue,
            },
        };
        if !take(line) {
            return;
        }
    }
}

/// Adds up the intervals tagged `lateness` that lie between the two times.
fn lateness_of(log: &[u8], from: SystemTime, to: SystemTime) -> Result<Lateness, String> {
    let mut us = Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are constants");
    let since_epoch = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (from, to) = (since_epoch(from), since_epoch(to));
    let mut base = Duration::ZERO;
    for entry in IntervalLogIterator::new(log) {
        match entry.map_err(|e| format!("{e:?}"))? {
            LogEntry::StartTime(at) | LogEntry::BaseTime(at) => base = at,
            LogEntry::Interval(it) if it.tag().is_some_and(|tag| tag.as_str() == "lateness") => {
                let begins = base + it.start_timestamp();
                if begins >= from && begins + it.duration() <= to {
                    let bytes = decode(it.encoded_histogram())?;
                    let histogram: Histogram<u64> =
                        Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|e| format!("{e:?}"))?;
                    us.add(&histogram).map_err(|e| format!("{e:?}"))?;
                }
            }
            LogEntry::Interval(_) => {}
        }
    }
    Ok(Lateness { us })
}

fn decode(base64: &str) -> Result<Vec<u8>, String> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(base64).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line for people and a line of JSON say the same.
    #[test]
    fn a_change_is_read_from_either_kind_of_line() {
        let address = SocketAddr::from(([127, 20, 0, 1], 27300));
        let expected = Change { at_ns: 0, address, to: Belief::Down, code: "L7STS".into() };
        for line in [
            "2026-11-22T00:09:12.345678Z http://127.20.0.1:27300/health: up -> down, L7STS (status 503), 3 in a row, after 5 m",
            "2026-11-22T00:09:12.345678Z 127.20.0.1:27300: unknown -> down, L7STS",
        ] {
            assert_eq!(Change::of_line(line), Some(expected.clone()), "{line}");
        }
        let json = r#"{"address":"127.20.0.1:27300","from":"up","to":"down","code":"L7STS"}"#;
        assert_eq!(serde_json::from_str::<Change>(json).expect("a change"), expected);
        assert_eq!(Change::of_line("8,000 targets: 7,999 up, 1 down."), None);
    }

    /// Only intervals within the two times count, and only those of lateness.
    #[test]
    fn lateness_is_that_of_the_stretch() {
        use hdrhistogram::serialization::V2DeflateSerializer;
        use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let second = Duration::from_secs(1);
        let (mut text, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
        let mut builder = IntervalLogWriterBuilder::new();
        let mut log = builder.with_base_time(begin).begin_log_with(&mut text, &mut serializer).expect("memory");
        for n in 0..4 {
            let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("the bounds are constants");
            histogram.record_n(100 * (u64::from(n) + 1), 10).expect("in range");
            for tag in [None, Tag::new("lateness")] {
                log.write_histogram(&histogram, second * n, second, tag).expect("memory");
            }
        }
        let late = lateness_of(&text, begin + second, begin + second * 3).expect("a log");
        assert_eq!((late.us.len(), late.us.min(), late.us.max()), (20, 200, 300));
    }
}
