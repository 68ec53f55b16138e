//! What does one TCP probe cost, beside the bare loops and beside HAProxy?

use super::counts::{active_opens, time_wait};
use super::namespace::in_own_namespace;
use super::{
    Args, CORE_PROBER, CPU, Common, HAPROXY_WARM_UP, IN_FLIGHT, OUTSIDE, RATE, SERVERS, run_floor, servers,
    write_targets,
};
use crate::process::{Failure, Finished};
use crate::product::{self, ProbeReport};
use crate::report::{Goal, Section};
use crate::{floor, peers};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// As many as HAProxy's own published measurement (its commit d48ed6643: "2000 servers checked every 10 milliseconds").
const HAPROXY_SERVERS: usize = 2000;
const HAPROXY: &str = "HAProxy tcp check";
const TCP_CHECK: peers::HaproxyCheck = peers::HaproxyCheck { http_path: None, interval_ms: 10 };

pub(super) fn run(args: &Args, common: &Common, port: u16) -> Result<Section, Failure> {
    let question = format!(
        "what does one TCP probe cost on one saturated core? {} probes a round, {IN_FLIGHT} in flight, accepting server \
         on the other core, its kernel work included",
        args.count()
    );
    let mut section = Section::new("probe", question, &[(RATE, 0), (CPU, 2), (OUTSIDE, 2), ("lateness p99 ms", 1)]);
    if !in_own_namespace() {
        section.note("not in a network namespace of its own: HAProxy's rate counts every connection this host opens");
    }
    let targets =
        write_targets(&common.folder.join("targets"), (0..args.targets).map(|i| servers(port)[i % SERVERS as usize]))?;
    let count = (args.count() / args.targets).max(1).to_string();
    let in_flight = IN_FLIGHT.to_string();
    // Due far more often than it can be done, so that the core never waits; a timeout beyond any queueing.
    let load =
        ["--file", &targets, "--count", &count, "--in-flight", &in_flight, "--interval", "100ms", "--timeout", "5s"];
    let haproxy = peers::haproxy();
    if haproxy.is_none() {
        section.note("HAProxy is not installed (scripts/setup)");
    }
    for round in 0..args.rounds() {
        eprintln!("probe: round {} of {}", round + 1, args.rounds());
        for method in floor::probes() {
            let name = format!("floor {method}");
            if args.wants(&name) {
                let [rate, inside, outside] = run_floor(method, args.count(), &servers(port))?;
                section.record(&name, &[rate, inside, outside, f64::NAN]);
            }
        }
        for (name, mode, backend) in [
            ("ringspan half-open", "half-open", "io_uring"),
            ("ringspan full", "full", "io_uring"),
            ("ringspan half-open, epoll", "half-open", "epoll"),
        ] {
            if !args.wants(name) {
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
        if let Some(program) = haproxy.as_deref().filter(|_| args.wants(HAPROXY)) {
            let figures = run_haproxy(program, common, port, Duration::from_secs(args.haproxy_seconds))?;
            section.record(HAPROXY, &figures);
        }
    }
    section.compare(CPU, "ringspan half-open", "floor reuse-half", Some(Goal::AtMost(1.10)));
    section.compare(OUTSIDE, "ringspan half-open", "floor reuse-half", None);
    section.compare(CPU, "ringspan half-open", HAPROXY, Some(Goal::AtMost(0.45)));
    section.compare(CPU, "ringspan full", "floor epoll", Some(Goal::AtMost(0.85)));
    section.compare(CPU, "ringspan full", "floor uring", None);
    section.compare(CPU, "ringspan full", HAPROXY, None);
    section.compare(CPU, "ringspan half-open, epoll", "floor epoll", None);
    Ok(section)
}

fn product_figures(report: &ProbeReport, finished: &Finished) -> [f64; 4] {
    let counted = finished.cpu_seconds / report.probes.max(1) as f64 * 1e6;
    [report.probes_per_s, report.cpu_us_per_probe, counted, report.lateness_us.p99 / 1e3]
}

fn run_haproxy(program: &Path, common: &Common, port: u16, watched: Duration) -> Result<[f64; 4], Failure> {
    let mut process =
        peers::start_haproxy_checks(program, &common.folder, CORE_PROBER, &TCP_CHECK, &servers(port), HAPROXY_SERVERS)?;
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
