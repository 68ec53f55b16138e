//! The audit: who changed what, when, from where, and who was not let in. JSON, an object a line.
//! Promise: it never holds a password or a token; it is never waited for: a disk that is full or slow costs lines, which are
//! counted, and nothing else; on disk it is as large as its options say, plus one line.
//! One thread writes. The same lines go to `tracing`, target `audit`.

use serde::Serialize;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines that may wait for the disk: a third of a second of the fastest registrations.
const QUEUE_LEN: usize = 8_192;
/// After a failure the file is opened anew this often at most.
const AGAIN: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// The file; older ones are beside it, as `audit.log.1` and so on.
    pub path: PathBuf,
    /// A file that has grown to this is put aside. Bytes.
    pub bytes_max: u64,
    /// Older files that are kept.
    pub files_max: u32,
}

impl AuditOptions {
    /// 16 MiB each, eight of them.
    pub fn new(path: PathBuf) -> AuditOptions {
        AuditOptions { path, bytes_max: 16 << 20, files_max: 8 }
    }
}

/// One line.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line {
    /// RFC 3339, UTC.
    pub(super) time: String,
    /// The user; empty: nobody, or access is open.
    pub(super) who: String,
    /// Where from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<String>,
    /// "http", "grpc", "socket".
    pub(super) via: &'static str,
    /// What was asked for.
    pub(super) action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<String>,
    /// Whom a change of accounts is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(super) before: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(super) after: Value,
    /// "ok", or why not.
    pub(super) outcome: String,
}

/// See the module.
pub(crate) struct Audit {
    lines: Mutex<Option<SyncSender<Vec<u8>>>>,
    lost: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    pub(super) fn start(options: AuditOptions) -> io::Result<Audit> {
        let (lines, waiting) = sync_channel(QUEUE_LEN);
        let lost = Arc::<AtomicU64>::default();
        let writer = Writer { options, file: None, failed: None, pending: 0, lost: lost.clone() };
        let thread = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&waiting))?;
        Ok(Audit { lines: Mutex::new(Some(lines)), lost, thread: Mutex::new(Some(thread)) })
    }

    /// Notes a line, or counts that it could not.
    pub(super) fn note(&self, line: &Line) {
        let mut bytes = serde_json::to_vec(line).expect("strings are JSON");
        bytes.push(b'\n');
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.as_ref().is_none_or(|lines| lines.try_send(bytes).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Writes what waits, and ends.
    pub(super) fn stop(&self) {
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ended = thread.join();
        }
    }
}

struct Writer {
    options: AuditOptions,
    /// And how long it is.
    file: Option<(io::BufWriter<File>, u64)>,
    failed: Option<Instant>,
    /// Lines that the file has been given and the disk has not.
    pending: u64,
    lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, lines: &Receiver<Vec<u8>>) {
        while let Ok(line) = lines.recv() {
            self.take(&line);
            while let Ok(line) = lines.try_recv() {
                self.take(&line);
            }
            match self.file.as_mut().map(|(file, _)| file.flush()) {
                Some(Err(error)) => self.fail(&error),
                Some(Ok(())) | None => self.pending = 0,
            }
        }
    }

    fn take(&mut self, line: &[u8]) {
        if self.failed.is_some_and(|then| then.elapsed() < AGAIN) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.pending += 1;
        if let Err(error) = self.write(line) {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        if self.failed.is_none() {
            let file = self.options.path.display();
            tracing::warn!(%file, %error, "the audit cannot be written; lines are lost, and counted");
        }
        self.lost.fetch_add(std::mem::take(&mut self.pending), Ordering::Relaxed);
        if let Some((file, _)) = self.file.take() {
            // What it still holds is lost, and not to be tried again.
            let _ = file.into_parts();
        }
        self.failed = Some(Instant::now());
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, len)| *len >= self.options.bytes_max) {
            if let Some((mut file, _)) = self.file.take() {
                file.flush()?;
                self.pending = 1;
            }
            self.put_aside()?;
        }
        let (file, len) = match self.file.take() {
            Some(open) => self.file.insert(open),
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.options.path)?;
                let len = file.metadata()?.len();
                self.file.insert((io::BufWriter::new(file), len))
            }
        };
        file.write_all(line)?;
        *len += line.len() as u64;
        if self.failed.take().is_some() {
            tracing::info!(lost = self.lost.load(Ordering::Relaxed), "the audit is written again");
        }
        Ok(())
    }

    /// Each file takes the next one's name; the last one goes.
    fn put_aside(&self) -> io::Result<()> {
        let path = &self.options.path;
        let moved = |from: &Path, to: &Path| match std::fs::rename(from, to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        };
        for n in (1..self.options.files_max).rev() {
            moved(&numbered(path, n), &numbered(path, n + 1))?;
        }
        match self.options.files_max {
            0 => std::fs::remove_file(path),
            _ => moved(path, &numbered(path, 1)),
        }
    }
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Milliseconds since 1970 as RFC 3339, UTC (the calendar: H. Hinnant, "chrono-compatible low-level date algorithms").
pub(super) fn rfc3339(unix_ms: u64) -> String {
    let (days, rest) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second, ms) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1_000 % 60, rest % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: usize) -> Line {
        Line { action: format!("{n:0>100}"), ..Line::default() }
    }

    /// Lines come in order, over as many files as may be, the oldest of which goes; each file is as large as it may be.
    #[test]
    fn files_are_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = Audit::start(AuditOptions { path: path.clone(), bytes_max: 1_000, files_max: 2 }).unwrap();
        for n in 0..100 {
            audit.note(&line(n));
        }
        audit.stop();
        assert_eq!(audit.lost(), 0);
        let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2"]);
        let text: String = [numbered(&path, 2), numbered(&path, 1), path.clone()]
            .iter()
            .map(|p| std::fs::read_to_string(p).unwrap())
            .collect();
        let numbers: Vec<u64> = text
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap()["action"].as_str().unwrap().parse().unwrap())
            .collect();
        let first = *numbers.first().unwrap();
        assert_eq!(numbers, (first..100).collect::<Vec<_>>(), "in order, without a hole, to the last one");
        assert!(std::fs::metadata(numbered(&path, 1)).unwrap().len() < 1_200);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// A disk that takes nothing (/dev/full) costs lines, each of which is counted.
    #[test]
    fn a_full_disk_costs_lines() {
        let audit = Audit::start(AuditOptions::new("/dev/full".into())).unwrap();
        for n in 0..50 {
            audit.note(&line(n));
        }
        audit.stop();
        assert_eq!(audit.lost(), 50);
        audit.note(&line(50));
        assert_eq!(audit.lost(), 51, "nobody writes any more");
    }

    /// Times as `date -u` says them.
    #[test]
    fn times() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_338_123_004, "2026-11-22T09:02:03.004Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (ms, text) in table {
            assert_eq!(rfc3339(ms), text);
        }
    }
}
