//! `bench million`: a million TCP targets at 30 s in one process: what memory does each take, are they probed on time,
//! and does it go on while 100,000 targets a second come, go and change?
//! Targets are 250,000 addresses of 127/8 by four ports; on three of them something accepts, on the fourth nobody does.

mod churn;

use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{self, ProbeReport};
use crate::report::{Goal, Section};
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use churn::{Task as ChurnTask, run as run_churn};

const CORE_PROBER: usize = 0;
const CORE_SERVER: usize = 1;
/// The first address.
const FROM: u32 = 0x7f40_0001;
/// Ports of an address; the last of them is closed.
const PORTS: usize = 4;
const INTERVAL: Duration = Duration::from_secs(30);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The promises: all told, and in time.
const BYTES_MAX: f64 = 200.0;
const LATENESS_P99_MS: f64 = 10.0;
const COMMANDS_PER_S: f64 = 100_000.0;
/// A third of them added, a third removed, a third changed.
const ALL_IN_TURN: &str = "100,000 a second";

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Targets.
    #[arg(long, default_value_t = 1_000_000)]
    targets: usize,
    /// Probes of each target: so many times 30 s.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// 100,000 targets, two rounds of 5 s.
    #[arg(long)]
    short: bool,
    /// Seconds of coming and going.
    #[arg(long, default_value_t = 30)]
    churn_seconds: u64,
    /// Only this part.
    #[arg(long, value_enum)]
    part: Option<Part>,
}

/// One of the questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Memory and lateness, by `ringspan probe`.
    Memory,
    /// Coming and going, by the bare engine.
    Churn,
}

/// The targets in order: address by address, port by port.
pub(crate) fn target(index: usize, port: u16) -> SocketAddr {
    (Ipv4Addr::from(FROM + (index / PORTS) as u32), port + (index % PORTS) as u16).into()
}

/// What one run of the product came to.
struct Seen {
    report: ProbeReport,
    /// Resident at the end, when all that it needs is there.
    rss: u64,
    rss_peak: u64,
    /// From the outside.
    cpu_seconds: f64,
    wall: Duration,
}

/// Runs what was asked for.
///
/// # Errors
/// Server or prober do not work; with the log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    let port = common.port_base;
    let open: Vec<String> = (0..PORTS as u16 - 1).map(|i| format!("0.0.0.0:{}", port + i)).collect();
    let mut child_args = vec!["child", "accept"];
    child_args.extend(open.iter().map(String::as_str));
    let command = process::command(&process::own_program(), &child_args, Some(CORE_SERVER));
    let mut server = Process::start("server", command, &common.folder)?;
    server.wait_listening((Ipv4Addr::LOCALHOST, port).into())?;
    let mut sections = Vec::new();
    if args.part != Some(Part::Churn) {
        sections.push(memory(args, common)?);
    }
    if args.part != Some(Part::Memory) {
        sections.push(churn(args, common)?);
    }
    Ok(sections)
}

fn memory(args: &Args, common: &Common) -> Result<Section, Failure> {
    let (targets, rounds) = if args.short { (args.targets.min(100_000), 2) } else { (args.targets, args.rounds) };
    let interval = if args.short { Duration::from_secs(5) } else { INTERVAL };
    let question = format!(
        "{targets} TCP targets every {} s in one process, one core, {rounds} rounds: what does each take, and is it \
         probed on time?",
        interval.as_secs()
    );
    let columns = [
        ("probes/s", 0),
        ("RSS MiB", 1),
        ("bytes/target more than empty", 1),
        ("bytes/target of all", 1),
        ("at the peak", 1),
        ("lateness p50 ms", 3),
        ("lateness p99 ms", 3),
        ("lateness max ms", 1),
        ("missed", 0),
        ("CPU % of a core", 1),
        ("CPU us/probe", 2),
    ];
    let mut section = Section::new("million", question, &columns);
    eprintln!("million: the empty run");
    let empty = one_run(common, 1, Duration::from_secs(1), 5)?;
    eprintln!("million: {targets} targets, {} s", interval.as_secs() * u64::from(rounds));
    let full = one_run(common, targets, interval, rounds)?;
    for (name, seen, count) in [("one target", &empty, 1), ("ringspan", &full, targets)] {
        let per = |bytes: u64| if count > 1 { bytes as f64 / count as f64 } else { f64::NAN };
        section.record(
            name,
            &[
                seen.report.probes_per_s,
                seen.rss as f64 / f64::from(1 << 20),
                per(seen.rss.saturating_sub(empty.rss)),
                per(seen.rss),
                per(seen.rss_peak),
                seen.report.lateness_us.p50 / 1e3,
                seen.report.lateness_us.p99 / 1e3,
                seen.report.lateness_us.max / 1e3,
                seen.report.missed as f64,
                seen.cpu_seconds / seen.wall.as_secs_f64() * 100.0,
                seen.cpu_seconds * 1e6 / seen.report.probes.max(1) as f64,
            ],
        );
    }
    section.promise("ringspan", "bytes/target more than empty", Goal::AtMost(BYTES_MAX));
    // What the process needs by itself is spread over the million, and does not show; over fewer it does.
    if targets >= 1_000_000 {
        section.promise("ringspan", "bytes/target of all", Goal::AtMost(BYTES_MAX));
    }
    section.promise("ringspan", "lateness p99 ms", Goal::AtMost(LATENESS_P99_MS));
    let up = (targets - targets / PORTS) as f64;
    section.hold("targets up, of those that accept", full.report.up as f64 / up, Goal::AtLeast(1.0));
    section.hold(
        "targets down, of those that refuse",
        full.report.down as f64 / (targets / PORTS) as f64,
        Goal::AtLeast(1.0),
    );
    Ok(section)
}

/// `ringspan probe` on the first so many targets, watched until it ends.
fn one_run(common: &Common, targets: usize, interval: Duration, rounds: u32) -> Result<Seen, Failure> {
    let file = common.folder.join(format!("targets-{targets}"));
    let mut text = String::new();
    for i in 0..targets {
        writeln!(text, "{}", target(i, common.port_base)).expect("a String takes everything");
    }
    product::write(&file, &text)?;
    let (file, every, count) =
        (file.to_string_lossy().into_owned(), format!("{}ms", interval.as_millis()), rounds.to_string());
    let args = [
        "probe",
        "--format",
        "json",
        "--workers",
        "1",
        "--file",
        &file,
        "--interval",
        &every,
        "--timeout",
        "1s",
        "--count",
        &count,
    ];
    let command = process::command(&common.ringspan, &args, Some(CORE_PROBER));
    let name = format!("ringspan-{targets}");
    let mut process = Process::start(&name, command, &common.folder)?;
    let (started, patience) = (Instant::now(), interval * (rounds + 1) + Duration::from_secs(60));
    let (mut rss, mut rss_peak, mut cpu_seconds) = (0, 0, 0.0);
    while process.exited().is_none() {
        // A process that ends between two looks has 0 of all three.
        if process.rss_bytes() > 0 {
            (rss, rss_peak, cpu_seconds) = (process.rss_bytes(), process.rss_peak_bytes(), process.cpu_seconds());
        }
        if started.elapsed() > patience {
            return Err(format!("{name} does not end\n{}", process.log_end()));
        }
        thread::sleep(LOOK);
    }
    let wall = started.elapsed();
    let log = process.log();
    let report = log.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    let report = report.ok_or_else(|| format!("{name} printed no report\n{}", process.log_end()))?;
    Ok(Seen { report, rss, rss_peak, cpu_seconds, wall })
}

fn churn(args: &Args, common: &Common) -> Result<Section, Failure> {
    let targets = if args.short { args.targets.min(100_000) } else { args.targets };
    let seconds = if args.short { 5 } else { args.churn_seconds };
    let question = format!(
        "{targets} targets every {} s by the bare engine, one worker, while for {seconds} s others come, go and change: \
         does it keep up, and stay on time?",
        INTERVAL.as_secs()
    );
    let columns = [
        ("adds/s", 0),
        ("removes/s", 0),
        ("updates/s", 0),
        ("commands/s", 0),
        ("targets off", 0),
        ("probes/s", 0),
        ("lateness p50 ms", 3),
        ("lateness p99 ms", 3),
        ("lateness max ms", 1),
        ("CPU % of a core", 1),
    ];
    let mut section = Section::new("coming and going", question, &columns);
    let third = (COMMANDS_PER_S / 3.0).ceil() as usize;
    let rows = [("nobody comes", 0), (ALL_IN_TURN, third), ("100,000 of each", COMMANDS_PER_S as usize)];
    for (name, of_each_per_second) in rows {
        eprintln!("million: {name}, {seconds} s");
        let task = ChurnTask {
            targets,
            port: common.port_base,
            interval_ms: INTERVAL.as_millis() as u64,
            seconds,
            of_each_per_second,
        };
        let text = serde_json::to_string(&task).expect("a task is plain data");
        // Two cores: the engine's worker takes the first, who gives the commands the second.
        let command = process::command(&process::own_program(), &["child", "churn", &text], None);
        let finished = process::run("churn", command, &[0])?;
        let done: churn::Done = serde_json::from_str(finished.stdout.trim())
            .map_err(|e| format!("churn printed no result: {e}: {}", finished.stdout))?;
        let per_s = |n: u64| n as f64 / done.seconds;
        section.record(
            name,
            &[
                per_s(done.of_each),
                per_s(done.of_each),
                per_s(done.of_each),
                per_s(3 * done.of_each),
                done.expected.abs_diff(done.counted) as f64,
                per_s(done.probes),
                done.lateness_us.p50 / 1e3,
                done.lateness_us.p99 / 1e3,
                done.lateness_us.max / 1e3,
                done.cpu_seconds / done.seconds * 100.0,
            ],
        );
    }
    section.promise(ALL_IN_TURN, "commands/s", Goal::AtLeast(COMMANDS_PER_S * 0.99));
    section.promise(ALL_IN_TURN, "lateness p99 ms", Goal::AtMost(LATENESS_P99_MS));
    section.promise(ALL_IN_TURN, "targets off", Goal::AtMost(0.0));
    Ok(section)
}
