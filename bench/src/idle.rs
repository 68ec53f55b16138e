//! `bench idle`: what does a stream take that nobody uses?
//! Visitors come, have one byte given back, and stay silent. Memory is resident size (VmRSS) with all of them there less
//! that with none, for either process of a tunnel, over their number: user memory; what the kernel has for a socket is
//! the same for all and not in it.

use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::report::{Goal, Section};
use crate::stage::{AUTO, AUTO_TLS, FRP, RATHOLE, Running, Stage, Who, until_ready};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

/// What a stream may take on either side: the promise.
const BYTES_MAX: f64 = 2048.0;

/// Descriptors that are no stream's.
const SPARE_DESCRIPTORS: usize = 500;

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Idle streams; rathole takes two descriptors for each and gets half of what the limit allows.
    #[arg(long, default_value_t = 15_000)]
    streams: usize,
    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// 2,000 streams: does everything run?
    #[arg(long)]
    short: bool,
    #[command(flatten)]
    who: Who,
}

/// Holds them.
///
/// # Errors
/// A contender does not work; with its log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Section, Failure> {
    let stage = Stage::new(&args.who, common, false);
    let streams = if args.short { args.streams.min(2000) } else { args.streams };
    let question = format!("what does one of {streams} idle streams take in user memory?");
    let columns = [("streams", 0), (FRONT, 0), (BACK, 0), ("MiB before", 1), ("MiB with them", 1), ("MiB after", 1)];
    let mut section = Section::new("idle", question, &columns);
    let contenders = stage.contenders(&[AUTO, AUTO_TLS, RATHOLE, FRP], &mut section);
    let limit = nofile()?;
    let backend = stage.port(3);
    let folder = stage.scratch("echo")?;
    for round in 0..args.rounds {
        for &(name, contender) in &contenders {
            let each = if name == RATHOLE { 2 } else { 1 };
            let count = streams.min(limit.saturating_sub(SPARE_DESCRIPTORS) / each);
            eprintln!("idle: round {} of {}, {name}, {count} streams", round + 1, args.rounds);
            if count < streams {
                section.note(format!("{name}: {count} streams, {each} descriptors each: nofile is {limit}"));
            }
            // Afresh for each: what the last crowd has left behind is nobody's account.
            let _echo = stage.load("echo", &["echo", &backend.to_string()], backend, folder.path())?;
            let figures = stage.with(name, contender, backend, |running, folder| measure(name, running, count, folder));
            section.record_or_fail(name, figures);
        }
    }
    for ours in [AUTO, AUTO_TLS] {
        section.promise(ours, FRONT, Goal::AtMost(BYTES_MAX));
        section.promise(ours, BACK, Goal::AtMost(BYTES_MAX));
    }
    section.compare(FRONT, AUTO, RATHOLE, None);
    section.compare(BACK, AUTO, RATHOLE, None);
    Ok(section)
}

const FRONT: &str = "bytes/stream, visitors' side";
const BACK: &str = "bytes/stream, backends' side";

fn measure(name: &str, running: &Running, count: usize, folder: &std::path::Path) -> Result<[f64; 6], Failure> {
    let rss = || running.processes.iter().map(Process::rss_bytes).collect::<Vec<_>>();
    let mib = |sizes: &[u64]| sizes.iter().sum::<u64>() as f64 / f64::from(1 << 20);
    until_ready(name, || once(running.entry))?;
    settle();
    let before = rss();
    let (entry, count_arg) = (running.entry.to_string(), count.to_string());
    let command = process::command(&process::own_program(), &["child", "hold", &entry, &count_arg], None);
    let (mut visitors, stdout, stdin) = Process::start_piped("visitors", command, folder)?;
    let mut line = String::new();
    // Ends at the latest when the child gives up: each of its steps has a timeout.
    let _ = BufReader::new(stdout).read_line(&mut line);
    if !line.starts_with("held") {
        thread::sleep(Duration::from_millis(100));
        return Err(visitors.exited().map_or(String::new(), |s| s.to_string()) + "\n" + &visitors.log_end());
    }
    settle();
    let with = rss();
    drop(stdin);
    visitors.wait_ended(process::START_TIMEOUT, &[0])?;
    settle();
    let per_stream = |i: usize| match (before.get(i), with.get(i)) {
        (Some(&before), Some(&with)) => with.saturating_sub(before) as f64 / count as f64,
        _ => f64::NAN,
    };
    Ok([count as f64, per_stream(0), per_stream(1), mib(&before), mib(&with), mib(&rss())])
}

/// Long enough for everything that follows the last stream: dials, grants, timers of a second.
fn settle() {
    thread::sleep(Duration::from_secs(2));
}

fn once(entry: SocketAddr) -> Result<(), Failure> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&entry, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    ask().map_err(|e: std::io::Error| e.to_string())
}

/// The limit on open files, which children inherit.
fn nofile() -> Result<usize, Failure> {
    let text = std::fs::read_to_string("/proc/self/limits").map_err(|e| format!("/proc/self/limits: {e}"))?;
    let line = text.lines().find(|l| l.starts_with("Max open files")).unwrap_or_default();
    line.split_whitespace().nth(3).and_then(|n| n.parse().ok()).ok_or_else(|| format!("/proc/self/limits: {line:?}"))
}
