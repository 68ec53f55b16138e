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
/// Addresses, by port, that newcomers are given in turn: four million of 127/8, so that they stay in it.
const NEW_ADDRESSES: usize = 16_000_000;
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
    /// So many a second are added, as many removed, and as many updated.
    pub(crate) of_each_per_second: usize,
}

/// What it came to.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Done {
    /// Added, removed, and updated.
    pub(crate) of_each: u64,
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
    crowd.add(task.targets);
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
    let mut steps = 0_u64;
    let ends = started + Duration::from_secs(task.seconds);
    let mut due = started;
    let batch = (task.of_each_per_second as f64 * STEP.as_secs_f64()) as usize;
    while due < ends {
        crowd.add(batch);
        crowd.update(batch, steps as usize);
        crowd.remove(batch);
        steps += 1;
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
        of_each: steps * batch as u64,
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
    fn add(&mut self, count: usize) {
        let (port, policy) = (self.port, self.policies[0].clone());
        let one = |n: usize| Target {
            address: target(n % NEW_ADDRESSES, port),
            check: Check::Tcp(Mode::HalfOpen),
            policy: policy.clone(),
            initial: Health::Unknown,
            count: None,
            key: n as u64,
            group: 0,
        };
        let mut targets = (self.next..self.next + count).map(one);
        let mut ids = Vec::with_capacity(count);
        let mut left = None;
        while let Err(Full(back)) = self.probes.add_all(&mut left.take().into_iter().chain(&mut targets), &mut ids) {
            left = Some(back);
            wait();
        }
        self.next += count;
        self.living.extend(ids);
    }

    fn remove(&mut self, count: usize) {
        let mut ids = self.living.drain(..count.min(self.living.len()));
        let mut left = None;
        while let Err(Full(back)) = self.probes.remove_all(&mut left.take().into_iter().chain(&mut ids)) {
            left = Some(back);
            wait();
        }
    }

    fn update(&mut self, count: usize, turn: usize) {
        let policy = &self.policies[turn % 2];
        // Some everywhere, others each time.
        let mut changes = (0..count).map(|n| {
            let place = (turn * count + n).wrapping_mul(7919) % self.living.len();
            (self.living[place], policy.clone())
        });
        let mut left = None;
        while let Err(Full(back)) = self.probes.update_all(&mut left.take().into_iter().chain(&mut changes)) {
            left = Some(back);
            wait();
        }
    }
}

/// The mailbox is full: as its documentation says.
fn wait() {
    thread::sleep(Duration::from_millis(1));
}
