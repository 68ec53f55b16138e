//! Does one core keep 100,000 targets at 5 s on time?

use super::{Args, CORE_PROBER, CPU, Common, RATE, write_targets};
use crate::process::Failure;
use crate::product;
use crate::report::{Goal, Section};
use std::net::{Ipv4Addr, SocketAddr};

/// `port`: where every address of 127/8 accepts.
pub(super) fn run(args: &Args, common: &Common, port: u16) -> Result<Section, Failure> {
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
