//! Targets that come, go and change while the rest is probed: the bare engine in a child of ours, one worker on core 0,
//! the commands given from core 1 at a steady rate.

use super::target;
use crate::process::Failure;
use crate::product::Quantiles;
use ringspan_engine::check::Check;
use ringspan_engine::engine::{Engine, Options, Probes};
use ringspan_engine::health::Health;
use ringspan_engine::histogram::Summary;
use ringspan_engine::io::Mode;
use ringspan_engine::kernel::{CpuOf, cpu_time, pin_thread};
use ringspan_engine::mailbox::{Full, NoWake};
use ringspan_engine::target::{Policy, Target, TargetId};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Commands are given in steps of this: a hundredth of a second's worth at once.
const STEP: Duration = Duration::from_millis(10);
/// What is left of the timeout when it changes by an update.
const TIMEOUTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(900)];
/// Between loading and measuring: the first probes are spread over an interval, so the rate is steady at once.
const SETTLE: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Task {
    /// How many are there at any time.
    pub(crate) targets: usize,
    /// The first of their ports.
    pub(crate) port: u16,
    pub(crate) interval_ms: u64,
    /// How long.
    pub(crate) seconds: u64,
    /// Commands a second: a third each added, removed, updated.
    pub(crate) per_second: usize,
}

/// What it came to.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Done {
    pub(crate) added: u64,
    pub(crate) removed: u64,
    pub(crate) updated: u64,
    /// Targets there must be now, and those the engine counts.
    pub(crate) expected: u64,
    pub(crate) counted: u64,
    /// Probes that came out meanwhile.
    pub(crate) probes: u64,
    pub(crate) lateness_us: Quantiles,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// Runs it and prints what it came to.
///
/// # Errors
/// The engine does not start.
pub(crate) fn run(task: &Task) -> Result<(), Failure> {
    // The worker takes the first core by itself.
    let options = Options { workers: 1, ..Options::default() };
    let (mut engine, mut feed) =
        Engine::start(&options, Arc::new(NoWake), |_| Vec::new()).map_err(|e| format!("engine: {e}"))?;
    // One core is enough where there is only one.
    let _ = pin_thread(super::CORE_SERVER);
    let policies = TIMEOUTS.map(|timeout| {
        let interval = Duration::from_millis(task.interval_ms);
        Arc::new(Policy { interval, timeout, ..Policy::DEFAULT })
    });
    let mut crowd = Crowd { probes: engine.probes(), next: 0, port: task.port, living: VecDeque::new(), policies };
    (0..task.targets).for_each(|_| crowd.add());
    let mut changes = Vec::new();
    let mut drain = || {
        feed.transitions(&mut changes);
        changes.clear();
    };
    let settled = Instant::now() + SETTLE;
    while Instant::now() < settled {
        drain();
        thread::sleep(STEP);
    }
    let (before, cpu, started) = (engine.stats().total, cpu_time(CpuOf::Process), Instant::now());
    let mut done = [0_u64; 3];
    let ends = started + Duration::from_secs(task.seconds);
    let mut due = started;
    while due < ends {
        for n in 0..task.per_second / 100 {
            match n % 3 {
                0 => crowd.add(),
                1 => crowd.remove(),
                _ => crowd.update(n),
            }
            done[n % 3] += 1;
        }
        drain();
        due += STEP;
        // Late: then the next step begins at once, and the rate falls short if it never catches up.
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_time(CpuOf::Process) - cpu);
    let after = engine.stats().total;
    let mut late = after.lateness.clone();
    late.subtract(&before.lateness).map_err(|e| format!("lateness: {e:?}"))?;
    let late = Summary::of(&late);
    let result = Done {
        added: done[0],
        removed: done[1],
        updated: done[2],
        expected: crowd.living.len() as u64,
        counted: after.counters.targets,
        probes: after.counters.finished() - before.counters.finished(),
        lateness_us: Quantiles { p50: late.p50 as f64, p99: late.p99 as f64, max: late.max as f64 },
        seconds,
        cpu_seconds: cpu.as_secs_f64(),
    };
    engine.stop();
    println!("{}", serde_json::to_string(&result).expect("plain data makes JSON"));
    Ok(())
}

/// Who is there: the oldest go first, so that after a while everybody has been replaced.
struct Crowd {
    probes: Probes,
    next: usize,
    port: u16,
    living: VecDeque<TargetId>,
    policies: [Arc<Policy>; 2],
}

impl Crowd {
    fn add(&mut self) {
        let mut target = Target {
            address: target(self.next % 16_000_000, self.port),
            check: Check::Tcp(Mode::HalfOpen),
            policy: self.policies[0].clone(),
            initial: Health::Unknown,
            count: None,
            key: self.next as u64,
            group: 0,
        };
        self.next += 1;
        loop {
            match self.probes.add(target) {
                Ok(id) => return self.living.push_back(id),
                Err(Full(back)) => target = back,
            }
            wait();
        }
    }

    fn remove(&mut self) {
        let Some(id) = self.living.pop_front() else { return };
        while self.probes.remove(id).is_err() {
            wait();
        }
    }

    fn update(&mut self, n: usize) {
        let Some(&id) = self.living.get(n * 7919 % self.living.len().max(1)) else { return };
        while self.probes.update(id, self.policies[n / 3 % 2].clone()).is_err() {
            wait();
        }
    }
}

/// The mailbox is full: as its documentation says.
fn wait() {
    thread::sleep(Duration::from_millis(1));
}
