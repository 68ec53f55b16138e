//! Where and when a figure was taken: kernel, CPU, limits, commit, date, command.
//! A figure without these is a rumour. Reads /proc and asks git and date; anything that is missing reads "unknown".

use serde::Serialize;
use std::fmt;
use std::fs;
use std::process::Command;

/// The header of every report.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// UTC, ISO 8601.
    pub(crate) date: String,
    /// Short hash, with "+" when the work tree had changes.
    pub(crate) commit: String,
    /// `uname -r`.
    pub(crate) kernel: String,
    /// Model name of /proc/cpuinfo.
    pub(crate) cpu: String,
    /// Cores this process may use.
    pub(crate) cores: usize,
    /// Load average of the last minute before the run: noise to be expected.
    pub(crate) load_before: String,
    /// The command line.
    pub(crate) command: String,
}

fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn commit() -> Option<String> {
    let hash = output_of("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changes = output_of("git", &["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { hash } else { hash + "+" })
}

impl Machine {
    /// Asks the machine.
    pub(crate) fn read() -> Machine {
        let unknown = || "unknown".to_owned();
        let file = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let cpu = file("/proc/cpuinfo").and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let load = file("/proc/loadavg").and_then(|text| Some(text.split_whitespace().next()?.to_owned()));
        Machine {
            date: output_of("date", &["-u", "+%Y-%m-%dT%H:%MZ"]).unwrap_or_else(unknown),
            commit: commit().unwrap_or_else(unknown),
            kernel: file("/proc/sys/kernel/osrelease").unwrap_or_else(unknown),
            cpu: cpu.unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            load_before: load.unwrap_or_else(unknown),
            command: std::env::args()
                .enumerate()
                .map(|(i, a)| if i == 0 { "bench".to_owned() } else { a })
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# {}", self.command)?;
        writeln!(f, "{}, commit {}, Linux {}, {}", self.date, self.commit, self.kernel, self.cpu)?;
        writeln!(f, "{} cores, load average before {}", self.cores, self.load_before)
    }
}
