//! What does one HTTP probe cost, beside the bare loop, HAProxy, and probers that a good engineer would write with
//! tokio/hyper, tokio-uring and Go (bench/peers)?
//! One request on a connection of its own each, against one world of ours (`world`) that answers at once: about five
//! system calls a request, so the server is never what a prober waits for, as nginx would be. It counts what it served:
//! a second opinion on every contender, and the only count that HAProxy has.

use super::{Args, CORE_PROBER, CORE_SERVER, Common, HAPROXY_WARM_UP, IN_FLIGHT, RATE, run_floor, servers};
use crate::process::{self, Failure};
use crate::product;
use crate::report::{Goal, Section};
use crate::world::{Plan, World};
use crate::{floor, peers};
use serde::Deserialize;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Process CPU over probes, the start of the process included: the one measure that all contenders share.
const CPU: &str = "CPU us/probe";
const PATH: &str = "/health";
const OURS: &str = "ringspan http";
const FLOOR: &str = "floor http";
const HAPROXY: &str = "HAProxy http-check";
/// Enough for its core to be saturated; few enough that a check's connection is made within its interval, which is all
/// the patience that HAProxy has with a connect (configuration manual, `timeout check`).
const HAPROXY_SERVERS: usize = 1000;
const HAPROXY_CHECK: peers::HaproxyCheck<'static> = peers::HaproxyCheck { http_path: Some(PATH), interval_ms: 25 };
/// The world's and the prober's counts may differ by this share: checks under way when HAProxy's clock is read.
const COUNTS_DIFFER_MAX: f64 = 0.01;

/// What a peer prints at its end.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Ran {
    up: usize,
    seconds: f64,
}

/// Probes, wall seconds, CPU seconds.
struct Cost {
    probes: f64,
    seconds: f64,
    cpu_seconds: f64,
}

/// `port`: where the world answers; the next one is its control.
pub(super) fn run(args: &Args, common: &Common, port: u16) -> Result<Section, Failure> {
    let crowd = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
    let control = SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1));
    let plan = Plan { crowd, mortals: Vec::new(), delay_max_ms: 0, control, seed: 1 };
    let mut world = World::start(&plan, Some(CORE_SERVER), &common.folder)?;
    let question = format!(
        "what does one HTTP probe cost on one saturated core? {} probes a round, {IN_FLIGHT} in flight, a connection \
         each, the same server on the other core, the handshake's kernel work included",
        args.count()
    );
    let columns = [(RATE, 0), (CPU, 2), ("of it by itself", 2), ("server CPU us/probe", 2)];
    let mut section = Section::new("http probe", question, &columns);
    let servers = servers(port);
    let targets = write_urls(&common.folder.join("targets-http"), args.targets, &servers)?;
    for round in 0..args.rounds() {
        eprintln!("http probe: round {} of {}", round + 1, args.rounds());
        for contender in contenders(&mut section) {
            let name = contender.name();
            if !args.wants(&name) {
                continue;
            }
            let (before, server_cpu) = (world.count()?, world.process.cpu_seconds());
            let cost = match &contender {
                Contender::Floor(method) => {
                    let [rate, inside, outside] = run_floor(method, args.count(), &servers)?;
                    let probes = args.count() as f64;
                    (Cost { probes, seconds: probes / rate, cpu_seconds: outside * probes / 1e6 }, inside)
                }
                Contender::Ours(backend) => ours(args, common, &targets, backend, &mut section)?,
                Contender::Peer(name, program) => (peer(name, program, args.count(), &servers)?, f64::NAN),
                Contender::Haproxy(program) => (haproxy(args, common, program, &servers, &mut world)?, f64::NAN),
            };
            let served = (world.count()?.served - before.served) as f64;
            let ((cost, inside), server_cpu) = (cost, world.process.cpu_seconds() - server_cpu);
            if !matches!(contender, Contender::Haproxy(_)) && (served / cost.probes - 1.0).abs() > COUNTS_DIFFER_MAX {
                section.note(format!("{name}: {} probes by its own count, {served} served", cost.probes));
            }
            section.record(
                &name,
                &[
                    cost.probes / cost.seconds,
                    cost.cpu_seconds / cost.probes * 1e6,
                    inside,
                    server_cpu / served.max(1.0) * 1e6,
                ],
            );
        }
    }
    section.compare(CPU, OURS, FLOOR, Some(Goal::AtMost(1.25)));
    section.compare(CPU, OURS, HAPROXY, Some(Goal::AtMost(0.60)));
    for (name, _) in peers::probers() {
        section.compare(CPU, OURS, name, Some(Goal::AtMost(0.40)));
    }
    section.compare(RATE, OURS, HAPROXY, None);
    Ok(section)
}

/// Who takes part.
enum Contender {
    /// By the floor's name.
    Floor(&'static str),
    /// By backend.
    Ours(&'static str),
    /// Name and program.
    Peer(&'static str, std::path::PathBuf),
    /// Its program.
    Haproxy(std::path::PathBuf),
}

impl Contender {
    fn name(&self) -> String {
        match self {
            Contender::Floor(method) => format!("floor {method}"),
            Contender::Ours("io_uring") => OURS.to_owned(),
            Contender::Ours(backend) => format!("{OURS}, {backend}"),
            Contender::Peer(name, _) => (*name).to_owned(),
            Contender::Haproxy(_) => HAPROXY.to_owned(),
        }
    }
}

/// All that are there; a note for each that is not.
fn contenders(section: &mut Section) -> Vec<Contender> {
    let mut all: Vec<Contender> = floor::http_probes().map(Contender::Floor).collect();
    all.extend([Contender::Ours("io_uring"), Contender::Ours("epoll")]);
    match peers::haproxy() {
        Some(program) => all.push(Contender::Haproxy(program)),
        None => section.note("HAProxy is not installed (scripts/setup)"),
    }
    for (name, program) in peers::probers() {
        match program {
            Some(program) => all.push(Contender::Peer(name, program)),
            None => section.note(format!("{name} is not built (scripts/peers probers)")),
        }
    }
    all
}

fn write_urls(path: &Path, count: usize, servers: &[SocketAddr]) -> Result<String, Failure> {
    let mut text = String::new();
    for server in servers.iter().cycle().take(count) {
        writeln!(text, "http://{server}{PATH}").expect("a String takes everything");
    }
    product::write(path, &text)?;
    Ok(path.to_string_lossy().into_owned())
}

fn ours(
    args: &Args,
    common: &Common,
    targets: &str,
    backend: &str,
    section: &mut Section,
) -> Result<(Cost, f64), Failure> {
    let (count, in_flight) = ((args.count() / args.targets).max(1).to_string(), IN_FLIGHT.to_string());
    // Due far more often than it can be done, so that the core never waits; a timeout beyond any queueing.
    let mut load = vec!["--file", targets, "--count", &count, "--in-flight", &in_flight, "--interval", "100ms"];
    load.extend(["--timeout", "5s", "--backend", backend]);
    let (report, finished) = product::probe(&common.ringspan, CORE_PROBER, &load)?;
    if report.down > 0 || report.backend != backend {
        section.note(format!(
            "{OURS}: ran on {}, {} targets ended down: {:?}",
            report.backend, report.down, report.outcomes
        ));
    }
    let probes = report.probes as f64;
    let cost = Cost { probes, seconds: probes / report.probes_per_s, cpu_seconds: finished.cpu_seconds };
    Ok((cost, report.cpu_us_per_probe))
}

fn peer(name: &str, program: &Path, count: usize, servers: &[SocketAddr]) -> Result<Cost, Failure> {
    let (count_arg, in_flight) = (count.to_string(), IN_FLIGHT.to_string());
    let addresses: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    let mut arguments = vec![count_arg.as_str(), &in_flight, PATH];
    arguments.extend(addresses.iter().map(String::as_str));
    let finished = process::run(name, process::command(program, &arguments, Some(CORE_PROBER)), &[0])?;
    let ran: Ran = serde_json::from_str(finished.stdout.trim())
        .map_err(|e| format!("{name} printed no result: {e}: {}", finished.stdout))?;
    if ran.up != count {
        return Err(format!("{name}: {} of {count} probes came out up", ran.up));
    }
    Ok(Cost { probes: count as f64, seconds: ran.seconds, cpu_seconds: finished.cpu_seconds })
}

fn haproxy(
    args: &Args,
    common: &Common,
    program: &Path,
    servers: &[SocketAddr],
    world: &mut World,
) -> Result<Cost, Failure> {
    let mut process =
        peers::start_haproxy_checks(program, &common.folder, CORE_PROBER, &HAPROXY_CHECK, servers, HAPROXY_SERVERS)?;
    thread::sleep(HAPROXY_WARM_UP);
    let (cpu, before, started) = (process.cpu_seconds(), world.count()?, Instant::now());
    thread::sleep(Duration::from_secs(args.haproxy_seconds));
    if let Some(status) = process.exited() {
        return Err(format!("HAProxy ended: {status}\n{}", process.log_end()));
    }
    let (cpu, after, seconds) = (process.cpu_seconds() - cpu, world.count()?, started.elapsed().as_secs_f64());
    Ok(Cost { probes: (after.served - before.served) as f64, seconds, cpu_seconds: cpu })
}
