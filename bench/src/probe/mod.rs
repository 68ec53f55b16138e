//! `bench probe`: what does one TCP probe cost, beside the bare loops and beside HAProxy?
//! One server on core 1 accepts and closes; the contenders take turns on core 0, several rounds, so that the noise of
//! the machine meets all of them. With `--scale`: does one core keep 100,000 targets on time?
//! Runs in a network namespace of its own where it may: the kernel's counter of connections opened (ActiveOpens) then
//! counts the contender's and nobody else's.

use crate::floor;
use crate::peers;
use crate::process::{self, Failure, Finished, Process};
use crate::product::{self, ProbeReport};
use crate::report::{Goal, Section};
use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The core of whoever probes, and the core of those who are probed.
const CORE_PROBER: usize = 0;
const CORE_SERVER: usize = 1;
/// Addresses the server listens on, 127.0.1.1 and up: enough that no accept queue is a bottleneck.
const SERVERS: u32 = 16;
/// Probes at once in every saturated run.
const IN_FLIGHT: usize = 512;
/// As many as HAProxy's own published measurement (its commit d48ed6643: "2000 servers checked every 10 milliseconds").
const HAPROXY_SERVERS: usize = 2000;
/// Before HAProxy is measured: it spreads the start of its checks.
const HAPROXY_WARM_UP: Duration = Duration::from_secs(2);

const HAPROXY: &str = "HAProxy tcp check";
const CPU: &str = "CPU us/probe";
const RATE: &str = "probes/s";
const COUNTED: &str = "CPU us/probe, from outside";

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Probes of one floor in one round; the product makes as many.
    #[arg(long, default_value_t = 200_000)]
    count: usize,
    /// Targets of the product in the saturated runs.
    #[arg(long, default_value_t = 20_000)]
    targets: usize,
    /// Seconds that HAProxy is watched in one round.
    #[arg(long, default_value_t = 5)]
    haproxy_seconds: u64,
    /// Only contenders whose name contains this.
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Also: 100,000 targets at 5 s on one core.
    #[arg(long)]
    scale: bool,
    /// Only that.
    #[arg(long)]
    scale_only: bool,
    /// Targets of the scale run.
    #[arg(long, default_value_t = 100_000)]
    scale_targets: u32,
    /// Seconds of the scale run; a multiple of 5.
    #[arg(long, default_value_t = 30)]
    scale_seconds: u64,
}

/// The settings that every scenario shares.
#[derive(Debug)]
pub(crate) struct Common {
    /// The binary under measurement.
    pub(crate) ringspan: PathBuf,
    /// First of ten ports that the scenario may use.
    pub(crate) port_base: u16,
    /// Configuration files and logs.
    pub(crate) folder: PathBuf,
}

fn servers(port: u16) -> Vec<SocketAddr> {
    (0..SERVERS).map(|i| (Ipv4Addr::from(0x7f00_0101 + i), port).into()).collect()
}

/// Runs what was asked for.
///
/// # Errors
/// The server or a contender does not work; with its log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    let port = common.port_base;
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port + 1));
    let mut listen: Vec<String> = servers(port).iter().map(SocketAddr::to_string).collect();
    listen.push(everywhere.to_string());
    let mut child_args = vec!["child", "accept"];
    child_args.extend(listen.iter().map(String::as_str));
    let command = process::command(&process::own_program(), &child_args, Some(CORE_SERVER));
    let mut server = Process::start("server", command, &common.folder)?;
    server.wait_listening(everywhere)?;

    let mut sections = Vec::new();
    if !args.scale_only {
        sections.push(saturated(args, common, port)?);
    }
    if args.scale || args.scale_only {
        sections.push(scale(args, common, port + 1)?);
    }
    match server.exited() {
        Some(status) => Err(format!("the server ended: {status}\n{}", server.log_end())),
        None => Ok(sections),
    }
}

fn saturated(args: &Args, common: &Common, port: u16) -> Result<Section, Failure> {
    let question = format!(
        "what does one TCP probe cost on one saturated core? {} probes a round, {IN_FLIGHT} in flight, accepting server \
         on the other core, its kernel work included",
        args.count
    );
    let mut section = Section::new("probe", question, &[(RATE, 0), (CPU, 2), (COUNTED, 2), ("lateness p99 ms", 1)]);
    if !in_own_namespace() {
        section.note("not in a network namespace of its own: HAProxy's rate counts every connection this host opens");
    }
    let targets =
        write_targets(&common.folder.join("targets"), (0..args.targets).map(|i| servers(port)[i % SERVERS as usize]))?;
    let count = (args.count / args.targets).max(1).to_string();
    let in_flight = IN_FLIGHT.to_string();
    // Due far more often than it can be done, so that the core never waits; a timeout beyond any queueing.
    let load =
        ["--file", &targets, "--count", &count, "--in-flight", &in_flight, "--interval", "100ms", "--timeout", "5s"];
    let wanted = |name: &str| args.only.as_ref().is_none_or(|word| name.contains(word.as_str()));
    let haproxy = peers::haproxy();
    if haproxy.is_none() {
        section.note("HAProxy is not installed (scripts/setup)");
    }
    for round in 0..args.rounds {
        eprintln!("probe: round {} of {}", round + 1, args.rounds);
        for method in floor::probes() {
            let name = format!("floor {method}");
            if wanted(&name) {
                section.record(&name, &run_floor(method, args.count, port)?);
            }
        }
        for (name, mode, backend) in [
            ("ringspan half-open", "half-open", "io_uring"),
            ("ringspan full", "full", "io_uring"),
            ("ringspan half-open, epoll", "half-open", "epoll"),
        ] {
            if !wanted(name) {
                continue;
            }
            let mut all = load.to_vec();
            all.extend(["--mode", mode, "--backend", backend]);
            let (opened, waiting) = (active_opens(), time_wait());
            let (report, finished) = product::probe(&common.ringspan, CORE_PROBER, &all)?;
            let opened = active_opens() - opened;
            section.record(name, &product_figures(&report, &finished));
            // In the first round: later, HAProxy's and the floors' own come and go.
            if round == 0 {
                let left = time_wait().saturating_sub(waiting);
                section.note(format!("{name}: {left} sockets in TIME_WAIT after {} probes", report.probes));
            }
            if report.backend != backend {
                section.note(format!("{name}: ran on {}", report.backend));
            }
            if report.down > 0 {
                section.note(format!("{name}: {} of {} targets ended down", report.down, report.up + report.down));
            }
            if in_own_namespace() && opened != report.probes {
                section.note(format!(
                    "{name}: reported {} probes, the kernel counted {opened} connections",
                    report.probes
                ));
            }
        }
        if let Some(program) = haproxy.as_deref().filter(|_| wanted(HAPROXY)) {
            let figures = run_haproxy(program, common, port, Duration::from_secs(args.haproxy_seconds))?;
            section.record(HAPROXY, &figures);
        }
    }
    for (floor, goal) in [("floor reuse-half", Some(Goal::AtMost(1.25))), ("floor uring", None)] {
        section.compare(CPU, "ringspan half-open", floor, goal);
        section.compare(COUNTED, "ringspan half-open", floor, None);
    }
    section.compare(CPU, "ringspan half-open", HAPROXY, Some(Goal::AtMost(0.55)));
    section.compare(CPU, "ringspan full", "floor uring", None);
    section.compare(CPU, "ringspan full", HAPROXY, None);
    section.compare(CPU, "ringspan half-open, epoll", "floor epoll", None);
    Ok(section)
}

fn product_figures(report: &ProbeReport, finished: &Finished) -> [f64; 4] {
    let counted = finished.cpu_seconds / report.probes.max(1) as f64 * 1e6;
    [report.probes_per_s, report.cpu_us_per_probe, counted, report.lateness_us.p99 / 1e3]
}

fn run_floor(method: &str, count: usize, port: u16) -> Result<[f64; 4], Failure> {
    let (count_arg, depth) = (count.to_string(), IN_FLIGHT.to_string());
    let targets: Vec<String> = servers(port).iter().map(SocketAddr::to_string).collect();
    let mut child_args = vec!["child", "floor", method, &count_arg, &depth];
    child_args.extend(targets.iter().map(String::as_str));
    let command = process::command(&process::own_program(), &child_args, Some(CORE_PROBER));
    let finished = process::run(&format!("floor {method}"), command, &[0])?;
    let ran: floor::Ran = serde_json::from_str(finished.stdout.trim())
        .map_err(|e| format!("floor {method} printed no result: {e}: {}", finished.stdout))?;
    if ran.up != count {
        return Err(format!("floor {method}: {} of {count} probes came out up; the server is not well", ran.up));
    }
    let per = 1e6 / count as f64;
    Ok([count as f64 / ran.seconds, ran.cpu_seconds * per, finished.cpu_seconds * per, f64::NAN])
}

fn run_haproxy(program: &Path, common: &Common, port: u16, watched: Duration) -> Result<[f64; 4], Failure> {
    let mut process =
        peers::start_haproxy_checks(program, &common.folder, CORE_PROBER, &servers(port), HAPROXY_SERVERS)?;
    thread::sleep(HAPROXY_WARM_UP);
    let (cpu, opened, started) = (process.cpu_seconds(), active_opens(), Instant::now());
    thread::sleep(watched);
    if let Some(status) = process.exited() {
        return Err(format!("HAProxy ended: {status}\n{}", process.log_end()));
    }
    let (cpu, checks) = (process.cpu_seconds() - cpu, (active_opens() - opened) as f64);
    let per = cpu / checks * 1e6;
    Ok([checks / started.elapsed().as_secs_f64(), per, per, f64::NAN])
}

fn scale(args: &Args, common: &Common, port: u16) -> Result<Section, Failure> {
    let (targets, seconds) = (args.scale_targets, args.scale_seconds);
    let question = format!("does one core keep {targets} targets at 5 s on time? {seconds} s, half-open");
    let columns = [
        (RATE, 0),
        ("lateness p50 ms", 3),
        ("lateness p99 ms", 3),
        ("lateness max ms", 1),
        ("missed", 0),
        ("down", 0),
        ("CPU % of a core", 1),
        (CPU, 2),
        ("rtt p50 us", 0),
    ];
    let mut section = Section::new("scale", question, &columns);
    // A different address each, as in life: 127.16.0.0 and up.
    let addresses = (0..targets).map(|i| SocketAddr::from((Ipv4Addr::from(0x7f10_0000 + i), port)));
    let file = write_targets(&common.folder.join("targets-scale"), addresses)?;
    let count = (seconds / 5).max(1).to_string();
    for (name, backend) in [("ringspan", "io_uring"), ("ringspan, epoll", "epoll")] {
        if args.only.as_ref().is_some_and(|word| !name.contains(word.as_str())) {
            continue;
        }
        eprintln!("scale: {name}, {seconds} s");
        let load = ["--file", &file, "--count", &count, "--interval", "5s", "--timeout", "1s", "--backend", backend];
        let (report, finished) = product::probe(&common.ringspan, CORE_PROBER, &load)?;
        let late = report.lateness_us;
        section.record(
            name,
            &[
                report.probes_per_s,
                late.p50 / 1e3,
                late.p99 / 1e3,
                late.max / 1e3,
                report.missed as f64,
                report.down as f64,
                finished.cpu_seconds / finished.wall.as_secs_f64() * 100.0,
                report.cpu_us_per_probe,
                report.rtt_us.p50,
            ],
        );
    }
    section.promise("ringspan", "lateness p99 ms", Goal::AtMost(5.0));
    Ok(section)
}

pub(crate) fn write_targets(path: &Path, targets: impl Iterator<Item = SocketAddr>) -> Result<String, Failure> {
    let mut text = String::new();
    for target in targets {
        writeln!(text, "{target}").expect("a String takes everything");
    }
    product::write(path, &text)?;
    Ok(path.to_string_lossy().into_owned())
}

/// Connections that this network namespace has opened (RFC 1213 tcpActiveOpens, /proc/net/snmp): one for each SYN
/// that is not a retransmission, whatever becomes of it.
fn active_opens() -> u64 {
    let text = fs::read_to_string("/proc/self/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Tcp: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(name, _)| *name == "ActiveOpens").and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

fn time_wait() -> u64 {
    let text = fs::read_to_string("/proc/self/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("TCP: ")).unwrap_or_default();
    let mut words = line.split(' ').skip_while(|w| *w != "tw");
    words.nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Set in the environment of the run inside the namespace.
const MARK: &str = "RINGSPAN_BENCH_NETNS";

fn in_own_namespace() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts this program again in a network namespace of its own, if this user may make one; else returns.
pub(crate) fn enter_own_namespace() {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    if in_own_namespace() {
        return;
    }
    let inside = "ip link set lo up && exec \"$0\" \"$@\"";
    for how in [&["--net"][..], &["--net", "--map-root-user"]] {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(how).env(MARK, "1");
            command
        };
        if unshare().args(["ip", "link", "set", "lo", "up"]).output().is_ok_and(|o| o.status.success()) {
            let error = unshare()
                .args(["sh", "-c", inside])
                .arg(process::own_program())
                .args(std::env::args_os().skip(1))
                .exec();
            eprintln!("unshare: {error}");
            return;
        }
    }
}
