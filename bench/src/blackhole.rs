//! `bench blackhole`: as many unanswered probes in flight as the limit on open files allows: is each timed out when its
//! time is over, and how does that grow with the limit?
//! The black hole is a listener whose queue is full: the kernel drops every further SYN (net/ipv4/tcp_input.c,
//! tcp_conn_request), so a connect is met with silence and retransmits, on loopback and without a firewall. All targets
//! start within the first second and are in flight together until the timeout.

use crate::probe::{Common, write_targets};
use crate::process::{self, Failure, Process};
use crate::product::ProbeReport;
use crate::report::{Goal, Section};
use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const CORE_PROBER: usize = 0;
/// The first of the addresses, all of which are one black hole.
const FROM: u32 = 0x7f50_0001;
/// The share of the limit that probes may have: 15,000 of 20,000. The rest is the prober's own and a reserve.
const IN_FLIGHT_PERCENT: usize = 75;
/// Starts are spread over this.
const SPREAD: Duration = Duration::from_secs(1);
/// Connections that a queue of length 0 may take before it is full: the kernel takes one more than the length.
const FILL_MAX: usize = 16;
/// A connect that has not come through by then is met with silence: on loopback it takes microseconds.
const FILL_PATIENCE: Duration = Duration::from_millis(300);
/// The promise.
const OFF_P99_MS: f64 = 2.0;

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Limits on open files to run under, one after the other; what is above the hard limit is brought down to it.
    #[arg(long, value_delimiter = ',', default_value = "1024,4096,20000")]
    nofile: Vec<usize>,
    /// Timeout of a probe, seconds; more than 1.
    #[arg(long, default_value_t = 3)]
    timeout: u64,
    /// Probes of each target.
    #[arg(long, default_value_t = 3)]
    count: u32,
    /// One probe each, with 2 s.
    #[arg(long)]
    short: bool,
}

/// A probe's line in `--format ndjson`; the part that is used here.
#[derive(Debug, Deserialize)]
struct Line {
    code: String,
    rtt_us: f64,
    lateness_us: f64,
}

/// A listener with a full queue; as long as it lives, nothing that knocks is answered.
struct Hole {
    _listener: Socket,
    _queue: Vec<TcpStream>,
}

impl Hole {
    fn dig(port: u16) -> Result<Hole, Failure> {
        let trouble = |e: std::io::Error| format!("black hole on port {port}: {e}");
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).map_err(trouble)?;
        listener.set_reuse_address(true).map_err(trouble)?;
        listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).map_err(trouble)?;
        listener.listen(0).map_err(trouble)?;
        let address = SocketAddr::from((Ipv4Addr::from(FROM), port));
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, FILL_PATIENCE) {
            queue.push(stream);
            if queue.len() > FILL_MAX {
                return Err(format!(
                    "the queue on port {port} does not fill: {} connections came through",
                    queue.len()
                ));
            }
        }
        Ok(Hole { _listener: listener, _queue: queue })
    }
}

/// Runs what was asked for.
///
/// # Errors
/// No black hole can be made, or the prober does not work; with its log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Section, Failure> {
    let (timeout, count) = if args.short { (2, 1) } else { (args.timeout.max(2), args.count.max(1)) };
    let timeout = Duration::from_secs(timeout);
    let question = format!(
        "nobody answers: is each of {IN_FLIGHT_PERCENT} % of the limit's probes, in flight together, timed out at its {} \
         s? {count} probes of each target, one worker",
        timeout.as_secs()
    );
    let columns = [
        ("targets", 0),
        ("sockets open", 0),
        ("timeouts", 0),
        ("other", 0),
        ("off ms, min", 3),
        ("off p50", 3),
        ("off p99", 3),
        ("off p99.9", 3),
        ("off max", 3),
        ("lateness p99 ms", 3),
        ("CPU % of a core", 1),
        ("RSS MiB", 1),
    ];
    let mut section = Section::new("blackhole", question, &columns);
    let _hole = Hole::dig(common.port_base)?;
    let hard = hard_limit();
    for &wanted in &args.nofile {
        let nofile = wanted.min(hard);
        if nofile < wanted {
            section.note(format!("{wanted} is above the hard limit of {hard}"));
        }
        let name = format!("nofile {nofile}");
        if section.rows.iter().any(|row| row.contender == name) {
            continue;
        }
        eprintln!("blackhole: {name}");
        let figures = one_run(common, nofile, timeout, count, &mut section)?;
        section.record(&name, &figures);
        section.promise(&name, "off p99", Goal::AtMost(OFF_P99_MS));
        section.promise(&name, "other", Goal::AtMost(0.0));
    }
    Ok(section)
}

fn one_run(
    common: &Common,
    nofile: usize,
    timeout: Duration,
    count: u32,
    section: &mut Section,
) -> Result<[f64; 12], Failure> {
    let targets = nofile * IN_FLIGHT_PERCENT / 100;
    let addresses = (0..targets).map(|i| SocketAddr::from((Ipv4Addr::from(FROM + i as u32), common.port_base)));
    let file = write_targets(&common.folder.join(format!("targets-{nofile}")), addresses)?;
    let (in_flight, limit) = (targets.to_string(), format!("--nofile={nofile}:{nofile}"));
    let (patience, spread, count_arg) =
        (format!("{}ms", timeout.as_millis()), format!("{}ms", SPREAD.as_millis()), count.to_string());
    let ringspan = common.ringspan.to_string_lossy().into_owned();
    let mut args = vec![limit.as_str(), &ringspan, "probe", "--format", "ndjson", "--workers", "1", "--file", &file];
    args.extend(["--in-flight", &in_flight, "--interval", &spread, "--timeout", &patience, "--count", &count_arg]);
    let command = process::command(std::path::Path::new("prlimit"), &args, Some(CORE_PROBER));
    let name = format!("ringspan-{nofile}");
    let mut process = Process::start(&name, command, &common.folder)?;
    let (started, patience) = (Instant::now(), (timeout + SPREAD) * (count + 1) + Duration::from_secs(60));
    let (mut open, mut rss, mut cpu_seconds) = (0, 0, 0.0_f64);
    while process.exited().is_none() {
        open = open.max(process.descriptors());
        rss = rss.max(process.rss_bytes());
        cpu_seconds = cpu_seconds.max(process.cpu_seconds());
        if started.elapsed() > patience {
            return Err(format!("{name} does not end\n{}", process.log_end()));
        }
        // Counting descriptors costs the prober nothing, but holds its table's lock: seldom.
        thread::sleep(Duration::from_millis(300));
    }
    let log = process.log();
    let lines: Vec<Line> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let report: ProbeReport = log
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok())
        .ok_or_else(|| format!("{name} printed no report\n{}", process.log_end()))?;
    let mut off: Vec<f64> = Vec::new();
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for line in &lines {
        match line.code.as_str() {
            "L4TOUT" => off.push(line.rtt_us / 1e3 - timeout.as_secs_f64() * 1e3),
            other => *others.entry(other).or_default() += 1,
        }
    }
    let mut late: Vec<f64> = lines.iter().map(|line| line.lateness_us / 1e3).collect();
    let expected = targets * count as usize;
    if lines.len() != expected || report.probes as usize != expected {
        section.note(format!(
            "nofile {nofile}: {expected} probes expected, {} reported, {} lines",
            report.probes,
            lines.len()
        ));
    }
    if !others.is_empty() {
        section.note(format!("nofile {nofile}: other outcomes: {others:?}"));
    }
    off.sort_by(f64::total_cmp);
    late.sort_by(f64::total_cmp);
    Ok([
        targets as f64,
        open as f64,
        off.len() as f64,
        others.values().sum::<usize>() as f64,
        at(&off, 0.0),
        at(&off, 0.5),
        at(&off, 0.99),
        at(&off, 0.999),
        at(&off, 1.0),
        at(&late, 0.99),
        cpu_seconds / started.elapsed().as_secs_f64() * 100.0,
        rss as f64 / f64::from(1 << 20),
    ])
}

fn at(sorted: &[f64], quantile: f64) -> f64 {
    let index = (sorted.len() as f64 - 1.0) * quantile;
    sorted.get(index.round() as usize).copied().unwrap_or(f64::NAN)
}

/// The limit on open files that this process may raise its own to.
fn hard_limit() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A black hole is silent on every address, and stays so.
    #[test]
    fn a_hole_is_silent() {
        let free = std::net::TcpListener::bind("0.0.0.0:0").and_then(|l| l.local_addr()).expect("a free port");
        let _hole = Hole::dig(free.port()).expect("a queue that fills");
        for address in [FROM + 1, FROM + 70_000] {
            let address = SocketAddr::from((Ipv4Addr::from(address), free.port()));
            let error = TcpStream::connect_timeout(&address, FILL_PATIENCE).expect_err("silence");
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        }
    }
}
