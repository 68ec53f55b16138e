//! What commands cost while probing goes on, and what a target costs in memory: `churn TARGETS INTERVAL_MS COMMANDS_PER_S
//! SECONDS [WORKERS]` keeps so many targets on closed doors of 127.0.0.0/8, and adds, updates and removes so many a second
//! (a third each) from one thread. Question: are a hundred thousand commands a second less than a fifth of that thread's
//! core, and are probes no later for them?

use ringspan_engine::check::Check;
use ringspan_engine::engine::{Engine, Options, Probes};
use ringspan_engine::health::Health;
use ringspan_engine::io::Mode;
use ringspan_engine::mailbox::{Full, NoWake};
use ringspan_engine::stats::Numbers;
use ringspan_engine::target::{Policy, Target, TargetId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The CPU time of this thread or this process, seconds, as /proc tells it: hundredths.
fn cpu_seconds(whose: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{whose}/stat")).expect("procfs");
    let fields: Vec<&str> = text.rsplit(')').next().expect("a command name").split_whitespace().collect();
    [11, 12].map(|field| fields[field].parse::<f64>().expect("ticks") / 100.0).iter().sum()
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    text.split_whitespace().nth(1).expect("resident pages").parse::<u64>().expect("a number") * 4096
}

fn target(key: u64, policy: &Arc<Policy>) -> Target {
    let [_, b, c, d] = (key as u32).to_be_bytes();
    Target {
        address: ([127, b, c, d.max(1)], 9).into(),
        check: Check::Tcp(Mode::HalfOpen),
        policy: policy.clone(),
        initial: Health::Down,
        count: None,
        key,
        group: 0,
    }
}

/// Sends all of them, waiting where there is no room. Returns how often it waited.
fn add_all(probes: &Probes, targets: impl Iterator<Item = Target>, ids: &mut Vec<TargetId>) -> u32 {
    let (mut targets, mut waits) = (targets.peekable(), 0);
    while targets.peek().is_some() {
        let mut first = None;
        while let Err(Full(target)) = match first.take() {
            Some(target) => probes.add(target).map(|id| ids.push(id)),
            None => probes.add_all(&mut targets, ids),
        } {
            first = Some(target);
            waits += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    waits
}

fn told(what: &str, before: &Numbers, after: &Numbers) {
    let mut lateness = after.lateness.clone();
    lateness.subtract(&before.lateness).expect("the same bounds, and only grown");
    let us = |quantile| lateness.value_at_quantile(quantile);
    println!(
        "{what}: {} probes, late by p50 {} us, p99 {} us, p99.9 {} us, max {} us; {} slots missed",
        lateness.len(),
        us(0.5),
        us(0.99),
        us(0.999),
        us(1.0),
        after.counters.missed - before.counters.missed,
    );
}

fn main() {
    let args: Vec<u64> = std::env::args().skip(1).map(|arg| arg.parse().expect("a number")).collect();
    let number = |place: usize, default: u64| args.get(place).copied().unwrap_or(default);
    let (count, interval, rate, seconds) = (number(0, 1_000_000), number(1, 30_000), number(2, 100_000), number(3, 10));
    let options = Options { workers: number(4, 2) as usize, ..Options::default() };
    let before = resident_bytes();
    let (mut engine, _feed) = Engine::start(&options, Arc::new(NoWake), |_| Vec::new()).expect("an engine");
    println!("{}", engine.capabilities());
    let interval = Duration::from_millis(interval);
    let policies =
        [1, 2].map(|timeout| Arc::new(Policy { interval, timeout: Duration::from_secs(timeout), ..Policy::DEFAULT }));
    let (probes, mut ids) = (engine.probes(), Vec::with_capacity(count as usize));
    let empty = resident_bytes();
    let begin = Instant::now();
    let waits = add_all(&probes, (0..count).map(|key| target(key, &policies[0])), &mut ids);
    let took = begin.elapsed();
    while engine.stats().total.counters.targets < count {}
    // The ids are the caller's own.
    let own = ids.capacity() as u64 * 8;
    let each = |from: u64| (resident_bytes() - from).saturating_sub(own) as f64 / count as f64;
    println!(
        "{count} targets added in {took:.1?} ({waits} waits for room): {:.0} bytes each, {:.0} with the engine's own",
        each(empty),
        each(before),
    );
    let still = engine.stats().total;
    std::thread::sleep(Duration::from_secs(seconds));
    let quiet = engine.stats().total;
    told("without commands", &still, &quiet);

    let mut ids: VecDeque<TargetId> = ids.into();
    let (mut next, mut sent, mut waits) = (count, 0u64, 0);
    let (cpu, all, begin) = (cpu_seconds("thread-self"), cpu_seconds("self"), Instant::now());
    while begin.elapsed() < Duration::from_secs(seconds) {
        let due = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
        let batch = due.saturating_sub(sent) / 3;
        let mut fresh = Vec::with_capacity(batch as usize);
        waits += add_all(&probes, (next..next + batch).map(|key| target(key, &policies[0])), &mut fresh);
        next += batch;
        ids.extend(fresh);
        let mut old = ids.drain(..batch as usize).collect::<Vec<_>>().into_iter();
        let mut changed = ids.iter().step_by(7).take(batch as usize).map(|id| (*id, policies[1].clone()));
        while let Err(Full((id, policy))) = probes.update_all(&mut changed) {
            waits += 1;
            std::thread::sleep(Duration::from_millis(1));
            let _ = probes.update(id, policy);
        }
        while let Err(Full(id)) = probes.remove_all(&mut old) {
            waits += 1;
            std::thread::sleep(Duration::from_millis(1));
            while probes.remove(id).is_err() {}
        }
        sent += 3 * batch;
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = begin.elapsed().as_secs_f64();
    let (cpu, all) = (cpu_seconds("thread-self") - cpu, cpu_seconds("self") - all);
    let busy = engine.stats().total;
    told("with commands", &quiet, &busy);
    println!(
        "{:.0} commands a second, {waits} waits for room: {:.1} % of a core in the thread that sends, {:.1} % in all",
        sent as f64 / took,
        cpu / took * 100.0,
        all / took * 100.0,
    );
    println!("{} targets, {:.0} bytes each", busy.counters.targets, each(empty));
    engine.stop();
}
