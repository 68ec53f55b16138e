//! One run: gives the engine its targets, waits until each has had its probes, and sums up.
//! Promise: Ctrl-C ends it early and the report still comes; a verdict rests on transitions, which are never lost.

use super::report::{NAMES_SHOWN, Named, Summary};
use super::targets::Resolved;
use crate::Failure;
use crate::cli::{self, ReportFormat};
use crate::machine::Signals;
use indicatif::{ProgressBar, ProgressStyle};
use ringspan_engine::check::Check;
use ringspan_engine::engine::{Engine, Feed, Options};
use ringspan_engine::health::Health;
use ringspan_engine::hlog::IntervalLog;
use ringspan_engine::kernel::{CpuOf, cpu_time};
use ringspan_engine::mailbox::{Full, Wake};
use ringspan_engine::outcome::Code;
use ringspan_engine::stats::{Numbers, Stats};
use ringspan_engine::target::{INTERVAL_MIN, Policy, Sample, Target, Transition};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// Spread of a single round: 20 µs a target is 50 000 probes a second, about what two cores do.
const SPREAD_EACH: Duration = Duration::from_micros(20);
/// A run is looked at this often at least, and at most: often enough that a short one ends at once, seldom enough that
/// looking costs nothing.
const LOOK_MIN: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(100);
/// Samples that may wait for stdout (48 bytes each).
const SAMPLES_MAX: usize = 1 << 20;
/// A run that makes no progress for this long beyond interval and timeout will make none.
const STALL_MAX: Duration = Duration::from_secs(30);
/// One interval of the interval log.
const HLOG_INTERVAL: Duration = Duration::from_secs(1);
/// A bar is worth its line from here on.
const BAR_AFTER: Duration = Duration::from_secs(1);

/// Rung by the engine when there are transitions or samples.
#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// The interval log that `--hlog` asks for. It is whole after every interval, whatever becomes of us.
struct Hlog {
    log: IntervalLog<BufWriter<File>>,
    name: String,
}

impl Hlog {
    /// Creates the file now: a path that cannot be written is known before the first probe.
    fn create(path: &Path) -> Result<Hlog, Failure> {
        let name = path.display().to_string();
        let file = File::create(path)
            .map_err(|e| Failure::Usage(format!("--hlog {name}: {e}. Try: a path that can be written")))?;
        let log =
            IntervalLog::begin(BufWriter::new(file), SystemTime::now(), &[]).map_err(|e| cannot_write(&name, &e))?;
        Ok(Hlog { log, name })
    }

    /// Ends an interval now, with what was counted since the start.
    fn interval(&mut self, total: &Numbers) -> Result<(), Failure> {
        self.log.write(SystemTime::now(), total).map_err(|e| cannot_write(&self.name, &e))
    }
}

fn cannot_write(name: &str, error: &std::io::Error) -> Failure {
    Failure::Run(format!("--hlog {name}: {error}. Try: a place with room"))
}

/// Probes all targets as the flags say.
pub(super) fn run(args: &cli::Probe, targets: &[Resolved]) -> Result<Summary, Failure> {
    let hlog = args.hlog.as_deref().map(Hlog::create).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Run(format!("no event loop: {e}. Try: ringspan doctor")))?;
    runtime.block_on(async {
        let signals = Signals::catch();
        Session::start(args, targets, hlog)?.run(signals).await
    })
}

struct Session<'a> {
    args: &'a cli::Probe,
    targets: &'a [Resolved],
    engine: Engine,
    feed: Feed,
    bell: Arc<Bell>,
    /// By key: what is believed of each target, and what decided; `None`: nothing yet.
    verdicts: Vec<Option<Transition>>,
    hlog: Option<Hlog>,
    transitions: Vec<Transition>,
    samples: Vec<Sample>,
}

impl<'a> Session<'a> {
    fn start(args: &'a cli::Probe, targets: &'a [Resolved], hlog: Option<Hlog>) -> Result<Session<'a>, Failure> {
        let bell = Arc::new(Bell::default());
        let defaults = Options::default();
        let probes = targets.len() as u64 * u64::from(args.count.get());
        let options = Options {
            workers: args.workers.map_or(defaults.workers, |n| n.get().into()),
            backend: args.backend.into(),
            in_flight_max: args.in_flight.get(),
            rate_max: args.rate.map(|n| n.get()),
            samples_max: match args.format {
                ReportFormat::Ndjson => usize::try_from(probes).unwrap_or(usize::MAX).clamp(1, SAMPLES_MAX),
                ReportFormat::Text | ReportFormat::Json => 0,
            },
            ..defaults
        };
        let (engine, feed) =
            Engine::start(&options, bell.clone(), |_| Vec::new()).map_err(|e| Failure::Run(e.to_string()))?;
        let verdicts = vec![None; targets.len()];
        Ok(Session { args, targets, engine, feed, bell, verdicts, hlog, transitions: vec![], samples: vec![] })
    }

    async fn run(mut self, mut signals: Signals) -> Result<Summary, Failure> {
        let (started, cpu) = (Instant::now(), cpu_time(CpuOf::Process));
        let interrupted = tokio::select! {
            biased;
            () = signals.caught() => true,
            result = self.probe(started) => { result?; false }
        };
        let duration = started.elapsed();
        let cpu = cpu_time(CpuOf::Process).saturating_sub(cpu);
        self.engine.stop();
        self.collect();
        let stats = self.engine.stats();
        if let Some(hlog) = &mut self.hlog {
            hlog.interval(&stats.total)?;
        }
        if stats.total.counters.samples_dropped > 0 {
            eprintln!(
                "ringspan: stdout was too slow: {} lines were left out; the summary counts them",
                stats.total.counters.samples_dropped
            );
        }
        Ok(self.summary(&stats, duration, cpu, interrupted))
    }

    /// Hands over all targets, then waits for all probes.
    async fn probe(&mut self, started: Instant) -> Result<(), Failure> {
        let expected = self.targets.len() as u64 * u64::from(self.args.count.get());
        let bar = Bar::new(expected);
        self.add_all().await;
        let (mut finished, mut progress_at) = (0, Instant::now());
        let mut hlog_at = HLOG_INTERVAL;
        let patience = STALL_MAX + self.args.interval + self.args.timeout;
        loop {
            self.collect();
            let stats = self.engine.stats();
            let elapsed = started.elapsed();
            if let Some(hlog) = &mut self.hlog
                && elapsed >= hlog_at
            {
                hlog.interval(&stats.total)?;
                hlog_at = elapsed + HLOG_INTERVAL;
            }
            let now_finished = stats.total.counters.finished();
            bar.show(now_finished, elapsed);
            if stats.total.counters.ended >= self.targets.len() as u64 {
                return Ok(());
            }
            if now_finished > finished {
                (finished, progress_at) = (now_finished, Instant::now());
            } else if progress_at.elapsed() > patience || !self.engine.is_whole() {
                return Err(Failure::Run(format!(
                    "the prober stands still at {now_finished} of {expected} probes. Try: RINGSPAN_LOG=debug, ringspan doctor"
                )));
            }
            let look = (elapsed / 50).clamp(LOOK_MIN, LOOK_MAX);
            match self.args.format {
                ReportFormat::Ndjson => {
                    let _ = tokio::time::timeout(look, self.bell.0.notified()).await;
                }
                // Nobody waits for single results: looking at intervals costs less than being woken for each.
                ReportFormat::Text | ReportFormat::Json => tokio::time::sleep(look).await,
            }
        }
    }

    async fn add_all(&mut self) {
        let args = self.args;
        // A single round has no rhythm to keep: it is spread just enough not to be a burst.
        let spread = (SPREAD_EACH * u32::try_from(self.targets.len()).unwrap_or(u32::MAX)).max(INTERVAL_MIN);
        let interval = if args.count.get() == 1 { args.interval.min(spread) } else { args.interval };
        let policy = Arc::new(Policy { interval, timeout: args.timeout, ..Policy::DEFAULT });
        let check = Check::Tcp(args.mode.into());
        let probes = self.engine.probes();
        for (key, target) in self.targets.iter().enumerate() {
            let (address, count) = (target.address, Some(args.count.get()));
            let (check, policy, key) = (check.clone(), policy.clone(), key as u64);
            let mut target = Target { address, check, policy, initial: Health::Unknown, count, key, group: 0 };
            while let Err(Full(back)) = probes.add(target) {
                target = back;
                self.collect();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Takes what the engine has to say.
    fn collect(&mut self) {
        self.feed.transitions(&mut self.transitions);
        for t in self.transitions.drain(..) {
            tracing::debug!(target = self.targets[t.key as usize].text, to = ?t.to, code = t.code.as_str(), "transition");
            self.verdicts[t.key as usize] = Some(t);
        }
        self.feed.samples(&mut self.samples);
        if self.samples.is_empty() {
            return;
        }
        let mut out = io::BufWriter::new(io::stdout().lock());
        for s in self.samples.drain(..) {
            // A reader that has gone away does not stop the run: its exit code still counts.
            let _ = writeln!(out, "{}", line(&self.targets[s.key as usize], &s));
        }
        let _ = out.flush();
    }

    fn summary(&self, stats: &Stats, duration: Duration, cpu: Duration, interrupted: bool) -> Summary {
        let total = &stats.total;
        let belief = |v: &Option<Transition>| v.map_or(Health::Unknown, |t| t.to);
        let counted = |health| self.verdicts.iter().filter(|v| belief(v) == health).count() as u64;
        let all_named = self.targets.len() <= NAMES_SHOWN;
        let named = self.targets.iter().zip(&self.verdicts).filter(|(_, v)| all_named || belief(v) != Health::Up);
        let named = named.take(NAMES_SHOWN).map(|(target, v)| Named {
            text: target.text.clone(),
            health: belief(v),
            code: v.map(|t| t.code),
            rtt_us: v.map_or(0.0, |t| t.rtt_ns as f64 / 1e3),
        });
        let outcomes = Code::ALL.iter().map(|code| (*code, total.counters.outcome(*code))).filter(|(_, n)| *n > 0);
        Summary {
            targets: self.targets.len() as u64,
            probes: total.counters.finished(),
            up: counted(Health::Up),
            down: counted(Health::Down),
            outcomes: outcomes.collect(),
            rtt: total.rtt.clone(),
            lateness: total.lateness.clone(),
            missed: total.counters.missed,
            duration,
            cpu,
            backend: self.engine.capabilities().backend().to_owned(),
            workers: stats.workers.len(),
            named: named.collect(),
            interrupted,
        }
    }
}

/// One probe as a JSON line.
fn line(target: &Resolved, s: &Sample) -> String {
    serde_json::json!({
        "target": target.text,
        "address": target.address.to_string(),
        "code": s.code.as_str(),
        "errno": s.errno,
        "rtt_us": s.rtt_ns as f64 / 1e3,
        "lateness_us": s.lateness_ns as f64 / 1e3,
        "health": match s.health { Health::Unknown => "unknown", Health::Up => "up", Health::Down => "down" },
        "last": s.last,
    })
    .to_string()
}

/// The progress bar: on a terminal, and only if the run is long.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(expected: u64) -> Bar {
        if !io::stderr().is_terminal() {
            return Bar(None);
        }
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} probes, {per_sec}, {eta} left")
            .expect("the template is a constant that indicatif accepts");
        Bar(Some(ProgressBar::hidden().with_style(style)).inspect(|bar| bar.set_length(expected)))
    }

    fn show(&self, finished: u64, elapsed: Duration) {
        let Some(bar) = &self.0 else { return };
        if elapsed >= BAR_AFTER && bar.is_hidden() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        bar.set_position(finished);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
