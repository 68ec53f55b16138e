//! `bench bulk` and `bench http`: what does it cost to carry bytes and requests through bridge and agent, beside nothing
//! at all, beside bare splice relays, and beside rathole and frp?
//! Every contender is started afresh in every round, carries one thing, and is charged the user and system time of all
//! its processes (/proc/PID/stat) meanwhile. Source, sink, nginx and wrk are nobody's account.

use crate::load::Sent;
use crate::peers;
use crate::probe::Common;
use crate::process::{self, Failure};
use crate::report::{Goal, Section};
use crate::stage::{
    AUTO, AUTO_TLS, DIRECT, FRP, FRP_TLS, MESSAGES, MESSAGES_TWO, MUX, NOBODY, RATHOLE, RATHOLE_NOISE, RATHOLE_TLS,
    SPLICE, SPLICE_TWO, Stage, Who, small_request, small_stream, until_ready,
};
use crate::wrk;
use std::net::SocketAddr;
use std::path::Path;

const CPU: &str = "CPU s/GB";
const RATE: &str = "Gbit/s";
const REQUESTS: &str = "requests/s";
const CPU_REQUEST: &str = "CPU us/request";
const P99: &str = "p99 ms";

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// One bulk stream of this many GB (10^9 bytes).
    #[arg(long, default_value_t = 4.0)]
    gigabytes: f64,
    /// Seconds of each wrk run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections of wrk.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Threads of wrk, and processes of nginx: one takes the least from what is measured, as many as there are cores is
    /// what people run.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// One round of half a GB, or of one second: does everything run?
    #[arg(long)]
    short: bool,
    /// Let the kernel place the processes of the bulk scenario too. Without this the tunnel's have core 0, source and
    /// sink core 1.
    #[arg(long)]
    unpinned: bool,
    #[command(flatten)]
    who: Who,
}

impl Args {
    fn rounds(&self) -> usize {
        if self.short { 1 } else { self.rounds }
    }
}

/// One bulk stream.
///
/// # Errors
/// A contender does not work; with its log.
pub(crate) fn bulk(args: &Args, common: &Common) -> Result<Section, Failure> {
    let stage = Stage::new(&args.who, common, !args.unpinned);
    let gigabytes = if args.short { 0.5 } else { args.gigabytes };
    let bytes = (gigabytes * 1e9) as u64;
    let placed = if args.unpinned { "processes not pinned" } else { "tunnel on core 0, source and sink on core 1" };
    let question = format!("what does it cost to carry {gigabytes} GB in one stream? {placed}");
    let mut section = Section::new("bulk", question, &[(RATE, 2), (CPU, 3), ("RSS MiB", 1)]);
    let everybody =
        [NOBODY, SPLICE, SPLICE_TWO, MUX, DIRECT, AUTO, AUTO_TLS, RATHOLE, RATHOLE_NOISE, RATHOLE_TLS, FRP, FRP_TLS];
    let contenders = stage.contenders(&everybody, &mut section);

    let sink_at = stage.port(3);
    let folder = stage.scratch("sink")?;
    let _sink = stage.load("sink", &["sink", &sink_at.to_string()], sink_at, folder.path())?;
    for round in 0..args.rounds() {
        for &(name, contender) in &contenders {
            eprintln!("bulk: round {} of {}, {name}", round + 1, args.rounds());
            let found = stage.with(name, contender, sink_at, |running, _| {
                until_ready(name, || small_stream(running.entry))?;
                let cpu = running.cpu_seconds();
                let sent = run_source(&stage, running.entry, bytes)?;
                let cpu = running.cpu_seconds() - cpu;
                Ok([sent.bytes as f64 * 8e-9 / sent.seconds, cpu / sent.bytes as f64 * 1e9, running.rss_mib()])
            });
            section.record_or_fail(name, found);
        }
    }
    for ours in [DIRECT, AUTO] {
        section.compare(CPU, ours, RATHOLE, Some(Goal::AtMost(0.25)));
        section.compare(RATE, ours, RATHOLE, Some(Goal::AtLeast(2.5)));
        section.compare(CPU, ours, SPLICE_TWO, Some(Goal::AtMost(1.35)));
    }
    section.compare(CPU, MUX, RATHOLE, Some(Goal::AtMost(0.40)));
    for theirs in [RATHOLE_TLS, RATHOLE_NOISE, FRP_TLS] {
        section.compare(CPU, AUTO_TLS, theirs, Some(Goal::AtMost(0.6)));
    }
    section.compare(CPU, AUTO, FRP, None);
    section.compare(CPU, AUTO_TLS, AUTO, None);
    Ok(section)
}

fn run_source(stage: &Stage<'_>, entry: SocketAddr, bytes: u64) -> Result<Sent, Failure> {
    let own = process::own_program();
    let (own, entry, bytes) = (own.to_string_lossy(), entry.to_string(), bytes.to_string());
    // timeout(1): a tunnel that stalls ends the run with an error, not never.
    let bounded = ["-s", "KILL", "600", &own, "child", "source", &entry, &bytes];
    let finished = process::run("source", process::command(Path::new("timeout"), &bounded, stage.core(1)), &[0])?;
    serde_json::from_str(finished.stdout.trim()).map_err(|e| format!("the source printed no result: {e}"))
}

/// HTTP to nginx: fresh connections, then kept ones.
///
/// # Errors
/// A contender or wrk does not work.
pub(crate) fn http(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    // Not pinned: wrk and nginx on one core would be the bottleneck, and every tunnel would look alike.
    let stage = Stage::new(&args.who, common, false);
    let backend = stage.port(4);
    let folder = stage.scratch("nginx")?;
    let _nginx = peers::start_nginxes(args.threads, folder.path(), backend)?;
    let seconds = if args.short { 1 } else { args.seconds };
    let mut sections = Vec::new();
    for (name, fresh, what) in [
        ("http-fresh", true, "on a connection of its own each (Connection: close)"),
        ("http-kept", false, "on kept connections"),
    ] {
        let (visitors, threads) = (args.connections, args.threads);
        let question = format!(
            "requests to nginx {what}, {visitors} visitors at once, wrk and nginx on {threads} thread(s) each: how many, \
             how late?"
        );
        let columns = [(REQUESTS, 0), ("p50 ms", 2), (P99, 2), (CPU_REQUEST, 1), ("RSS MiB", 1), ("errors", 0)];
        let mut section = Section::new(name, question, &columns);
        section.note("wrk is a closed loop: its p99 leaves out the requests that it did not make while it waited");
        let everybody =
            [NOBODY, MESSAGES, MESSAGES_TWO, MUX, DIRECT, AUTO, AUTO_TLS, RATHOLE, RATHOLE_NOISE, FRP, FRP_TLS];
        let contenders = stage.contenders(&everybody, &mut section);
        for round in 0..args.rounds() {
            for &(contender_name, contender) in &contenders {
                eprintln!("{name}: round {} of {}, {contender_name}", round + 1, args.rounds());
                let found = stage.with(contender_name, contender, backend, |running, _| {
                    until_ready(contender_name, || small_request(running.entry))?;
                    let cpu = running.cpu_seconds();
                    let result = wrk::run(running.entry, args.connections, args.threads, seconds, fresh)?;
                    let cpu = running.cpu_seconds() - cpu;
                    Ok([
                        result.requests_per_s,
                        result.p50_ms,
                        result.p99_ms,
                        cpu / result.requests.max(1) as f64 * 1e6,
                        running.rss_mib(),
                        result.errors as f64,
                    ])
                });
                section.record_or_fail(contender_name, found);
            }
        }
        if fresh {
            section.compare(CPU_REQUEST, AUTO, RATHOLE, Some(Goal::AtMost(0.40)));
            section.compare(REQUESTS, AUTO, RATHOLE, Some(Goal::AtLeast(1.8)));
            section.compare(P99, AUTO, RATHOLE, Some(Goal::AtMost(0.6)));
        } else {
            section.compare(REQUESTS, AUTO, RATHOLE, Some(Goal::AtLeast(1.5)));
            section.compare(CPU_REQUEST, AUTO, RATHOLE, Some(Goal::AtMost(0.5)));
        }
        for column in [REQUESTS, CPU_REQUEST] {
            section.compare(column, AUTO, FRP, None);
            section.compare(column, AUTO_TLS, RATHOLE_NOISE, None);
            // One process and nothing but the system calls that a request costs anywhere: what is to be had at all.
            for floor in [MESSAGES, MESSAGES_TWO] {
                section.compare(column, AUTO, floor, None);
            }
        }
        section.compare(REQUESTS, MESSAGES, RATHOLE, None);
        section.compare(REQUESTS, AUTO, NOBODY, None);
        section.promise(AUTO, "errors", Goal::AtMost(0.0));
        sections.push(section);
    }
    Ok(sections)
}
