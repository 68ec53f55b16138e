//! What one probe costs in this engine, and how late it starts: `probe_cost TARGETS INTERVAL_MS SECONDS [IN_FLIGHT]
//! [auto|epoll|ring] [PORT] [tcp|http|hole] [WORKERS] [TIMEOUT_MS]`, one worker, half-open by default, against listeners on
//! 127.0.1.1 to 127.0.1.16 (port 7777 by default). `hole`: half-open too, against ports that never answer; says how late
//! the verdicts are.

use ringspan_engine::check::{Check, HttpCheck};
use ringspan_engine::engine::{Engine, Options};
use ringspan_engine::health::Health;
use ringspan_engine::histogram::{Summary, histogram};
use ringspan_engine::io::Mode;
use ringspan_engine::kernel::Backend;
use ringspan_engine::mailbox::{Full, NoWake};
use ringspan_engine::outcome::Code;
use ringspan_engine::target::{Policy, Target};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn cpu_seconds() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = text.rsplit(')').next().expect("a command name").split_whitespace().collect();
    let seconds = |field: usize| fields[field].parse::<f64>().expect("a number of ticks") / 100.0;
    (seconds(11), seconds(12))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: u64| args.get(place).map_or(default, |a| a.parse().expect("a number"));
    let (targets, interval, seconds) = (number(0, 20_000), number(1, 100), number(2, 5));
    let backend = match args.get(4).map(String::as_str) {
        Some("epoll") => Backend::Epoll,
        Some("ring") => Backend::Ring,
        _ => Backend::Auto,
    };
    let check = match args.get(6).map(String::as_str) {
        Some("http") => Check::Http(Arc::new(HttpCheck::default())),
        _ => Check::Tcp(Mode::HalfOpen),
    };
    let holes = args.get(6).is_some_and(|kind| kind == "hole");
    let samples_max = if holes { 1 << 16 } else { 0 };
    let options = Options {
        samples_max,
        workers: number(7, 1) as usize,
        backend,
        in_flight_max: number(3, 512) as u32,
        ..Options::default()
    };
    let (mut engine, mut feed) = Engine::start(&options, Arc::new(NoWake), |_| Vec::new()).expect("engine");
    println!("{}", engine.capabilities());
    let probes = engine.probes();
    let policy = std::sync::Arc::new(Policy {
        interval: Duration::from_millis(interval),
        timeout: Duration::from_millis(number(8, 1000)),
        ..Policy::DEFAULT
    });
    for key in 0..targets {
        let mut target = Target {
            address: ([127, 0, 1, 1 + (key % 16) as u8], number(5, 7777) as u16).into(),
            check: check.clone(),
            policy: policy.clone(),
            initial: Health::Unknown,
            count: None,
            key,
            group: 0,
        };
        while let Err(Full(back)) = probes.add(target) {
            target = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let (before, cpu, begin) = (engine.stats().total, cpu_seconds(), Instant::now());
    let (mut late, mut samples, timeout) = (histogram(), Vec::new(), policy.timeout.as_nanos() as u64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(if holes { 10 } else { 1000 }));
        samples.clear();
        feed.samples(&mut samples);
        for sample in samples.iter().filter(|sample| sample.code == Code::L4Timeout) {
            late.record((sample.rtt_ns - timeout) / 1000).expect("within a minute");
        }
    }
    let (after, cpu_after, took) = (engine.stats().total, cpu_seconds(), begin.elapsed().as_secs_f64());
    let done = (after.counters.finished() - before.counters.finished()) as f64;
    println!(
        "{:.0} probes/s, CPU {:.2} us a probe (user {:.2}, kernel {:.2}), {:.0} % busy",
        done / took,
        (cpu_after.0 - cpu.0 + cpu_after.1 - cpu.1) / done * 1e6,
        (cpu_after.0 - cpu.0) / done * 1e6,
        (cpu_after.1 - cpu.1) / done * 1e6,
        (cpu_after.0 - cpu.0 + cpu_after.1 - cpu.1) / took * 100.0,
    );
    println!("{:?}", after.counters);
    let times = [
        ("rtt", &after.rtt, &before.rtt),
        ("lateness", &after.lateness, &before.lateness),
        ("kernel rtt", &after.kernel_rtt, &before.kernel_rtt),
        ("connect", &after.connect, &before.connect),
        ("first byte", &after.first_byte, &before.first_byte),
    ];
    for (name, after, before) in times {
        let mut fresh = after.clone();
        fresh.subtract(before).expect("numbers only grow");
        println!("{name} us {:?}", Summary::of(&fresh));
    }
    println!("verdicts of timeouts, us after the deadline {:?}", Summary::of(&late));
    engine.stop();
    let mut changes = Vec::new();
    feed.transitions(&mut changes);
    println!("{} transitions to read", changes.len());
}
