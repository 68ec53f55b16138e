//! The bare engine as a prober of its own: what `ringspan probe` does, without the command around it, to tell the
//! engine's costs from the command's. A child process that speaks as the product does: a line of JSON for each change of
//! mind, a report at its end, an interval log. It ends when its standard input does.

use crate::process::Failure;
use ringspan_engine::check::{Check, HttpCheck, HttpSettings};
use ringspan_engine::engine::{Engine, Feed, Options};
use ringspan_engine::health::{Health, Thresholds};
use ringspan_engine::hlog::IntervalLog;
use ringspan_engine::io::Mode;
use ringspan_engine::kernel::{Backend, CpuOf, cpu_time};
use ringspan_engine::mailbox::{Full, Wake};
use ringspan_engine::outcome::Code;
use ringspan_engine::stats::Stats;
use ringspan_engine::target::{Policy, Target, Transition};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

/// One interval of the interval log.
const HLOG_INTERVAL: Duration = Duration::from_secs(1);

/// What to probe, and how.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Task {
    /// A file with an address a line.
    pub(crate) targets: PathBuf,
    /// Path of an HTTP check; `None`: half-open.
    pub(crate) http: Option<String>,
    pub(crate) interval_ms: u64,
    pub(crate) timeout_ms: u64,
    pub(crate) rise: NonZeroU8,
    pub(crate) fall: NonZeroU8,
    /// Threads; 0: one per core that it may use.
    pub(crate) workers: usize,
    /// For each worker.
    pub(crate) in_flight_max: u32,
    /// Where its interval log goes.
    pub(crate) hlog: PathBuf,
}

/// Unparks the thread that reads the feed.
struct Bell(Thread);

impl Wake for Bell {
    fn wake(&self) {
        self.0.unpark();
    }
}

/// Runs until standard input ends.
///
/// # Errors
/// A file cannot be read or written, or the engine does not start or does not last.
pub(crate) fn run(task: &Task) -> Result<(), Failure> {
    let text = fs::read_to_string(&task.targets).map_err(|e| format!("{}: {e}", task.targets.display()))?;
    let parse = |line: &str| line.parse().map_err(|e| format!("{}: \"{line}\": {e}", task.targets.display()));
    let addresses = text.lines().map(parse).collect::<Result<Vec<SocketAddr>, Failure>>()?;
    let log_trouble = |e: io::Error| format!("{}: {e}", task.hlog.display());
    let log = File::create(&task.hlog).map_err(log_trouble)?;
    let mut hlog = IntervalLog::begin(BufWriter::new(log), SystemTime::now(), &[]).map_err(log_trouble)?;

    let defaults = Options::default();
    let workers = if task.workers == 0 { defaults.workers } else { task.workers };
    let options = Options { workers, in_flight_max: task.in_flight_max, backend: Backend::Auto, ..defaults };
    let bell = Arc::new(Bell(thread::current()));
    let (mut engine, mut feed) =
        Engine::start(&options, bell.clone(), |_| Vec::new()).map_err(|e| format!("engine: {e}"))?;
    let (started, cpu) = (Instant::now(), cpu_time(CpuOf::Process));
    add_all(&engine, task, &addresses)?;
    let stop = when_input_ends(bell);
    let mut beliefs = vec![Health::Unknown; addresses.len()];
    let mut next_log = started + HLOG_INTERVAL;
    while !stop.load(Ordering::Acquire) {
        print_changes(&mut feed, &addresses, &mut beliefs);
        if Instant::now() >= next_log {
            hlog.write(SystemTime::now(), &engine.stats().total).map_err(log_trouble)?;
            next_log += HLOG_INTERVAL;
        }
        if !engine.is_whole() {
            return Err("the engine has lost a worker".into());
        }
        thread::park_timeout(next_log.saturating_duration_since(Instant::now()));
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), (cpu_time(CpuOf::Process) - cpu).as_secs_f64());
    engine.stop();
    let stats = engine.stats();
    hlog.write(SystemTime::now(), &stats.total).map_err(log_trouble)?;
    print_changes(&mut feed, &addresses, &mut beliefs);
    println!("{}", report(&engine, &stats, &beliefs, seconds, cpu));
    Ok(())
}

fn add_all(engine: &Engine, task: &Task, addresses: &[SocketAddr]) -> Result<(), Failure> {
    let check = match &task.http {
        None => Check::Tcp(Mode::HalfOpen),
        Some(path) => {
            let settings = HttpSettings { path: path.clone(), ..HttpSettings::default() };
            Check::Http(Arc::new(HttpCheck::new(settings).map_err(|e| e.to_string())?))
        }
    };
    let policy = Arc::new(Policy {
        interval: Duration::from_millis(task.interval_ms),
        timeout: Duration::from_millis(task.timeout_ms),
        thresholds: Thresholds { rise: task.rise, fall: task.fall },
        ..Policy::DEFAULT
    });
    let probes = engine.probes();
    for (key, &address) in addresses.iter().enumerate() {
        let (check, policy, key) = (check.clone(), policy.clone(), key as u64);
        let mut target = Target { address, check, policy, initial: Health::Unknown, count: None, key, group: 0 };
        while let Err(Full(back)) = probes.add(target) {
            target = back;
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Set, and the bell rung, when standard input has ended.
fn when_input_ends(bell: Arc<Bell>) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let its = stop.clone();
    thread::spawn(move || {
        // Whatever comes or fails: it is over.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        its.store(true, Ordering::Release);
        bell.wake();
    });
    stop
}

fn print_changes(feed: &mut Feed, addresses: &[SocketAddr], beliefs: &mut [Health]) {
    let mut changes: Vec<Transition> = Vec::new();
    feed.transitions(&mut changes);
    if changes.is_empty() {
        return;
    }
    let word = |health| match health {
        Health::Unknown => "unknown",
        Health::Up => "up",
        Health::Down => "down",
    };
    let mut text = String::new();
    for change in changes {
        beliefs[change.key as usize] = change.to;
        let address = addresses[change.key as usize];
        let line =
            json!({"address": address, "from": word(change.from), "to": word(change.to), "code": change.code.as_str()});
        text += &format!("{line}\n");
    }
    // Nobody reads any more: the parent is gone, and so are we soon (its death is ours).
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

fn report(engine: &Engine, stats: &Stats, beliefs: &[Health], seconds: f64, cpu: f64) -> serde_json::Value {
    let (counters, late, rtt) = (&stats.total.counters, stats.total.lateness_summary(), stats.total.rtt_summary());
    let counted = |health| beliefs.iter().filter(|belief| **belief == health).count();
    let outcomes: BTreeMap<&str, u64> =
        Code::ALL.iter().map(|code| (code.as_str(), counters.outcome(*code))).filter(|(_, n)| *n > 0).collect();
    json!({
        "targets": beliefs.len(), "probes": counters.finished(), "up": counted(Health::Up),
        "down": counted(Health::Down), "outcomes": outcomes,
        "rtt_us": {"p50": rtt.p50, "p99": rtt.p99, "max": rtt.max},
        "lateness_us": {"p50": late.p50, "p99": late.p99, "max": late.max},
        "missed": counters.missed, "duration_s": seconds, "probes_per_s": counters.finished() as f64 / seconds,
        "cpu_us_per_probe": cpu * 1e6 / counters.finished().max(1) as f64, "backend": engine.capabilities().backend(),
        "workers": stats.workers.len(),
    })
}
