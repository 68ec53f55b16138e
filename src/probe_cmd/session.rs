//! One run: gives the engine its targets, shows what happens, and sums up when all is done or somebody says so.
//! Promise: Ctrl-C ends it early and the report still comes; a verdict rests on transitions, which are never lost.

use super::flags::{Live, Plan};
use super::handover::Handover;
use super::hlog::Hlog;
use super::lines;
use super::metrics::{self, Ask, Of, Scrape};
use super::names::Names;
use super::reload::Reload;
use super::report::{NAMES_SHOWN, Named, Summary};
use super::roster::{Roster, Step};
use super::screen::Key;
use super::table::Table;
use crate::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use ringspan_engine::engine::{Engine, Feed};
use ringspan_engine::health::Health;
use ringspan_engine::kernel::{CpuOf, cpu_time};
use ringspan_engine::mailbox::Wake;
use ringspan_engine::outcome::Code;
use ringspan_engine::stats::Stats;
use ringspan_engine::target::{Sample, Transition};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

/// A run is looked at this often at least, and at most: often enough that a short one ends at once, seldom enough that
/// looking costs nothing.
const LOOK_MIN: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(100);
/// While targets wait for room in a worker's mailbox.
const LOOK_LOADING: Duration = Duration::from_millis(1);
/// In a run without end the counters are asked for so often: each time costs a copy of every histogram.
const STATS_EVERY: Duration = Duration::from_secs(1);
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

/// What the world may ask of a run.
struct Ears {
    interrupt: Signal,
    terminate: Signal,
    report: Signal,
    reload: Signal,
    keys: Option<mpsc::Receiver<Key>>,
    scrapes: Option<mpsc::Receiver<Ask>>,
}

/// What was asked.
enum Heard {
    Nothing,
    Stop,
    Report,
    Reload,
    Key(Key),
    Scrape(Ask),
}

/// What comes next; nothing ever where nobody can speak.
async fn next<T>(from: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(receiver) = from {
        if let Some(message) = receiver.recv().await {
            return message;
        }
        *from = None;
    }
    std::future::pending().await
}

impl Ears {
    /// Needs a runtime. What is asked from now on is heard, however long the start takes.
    fn open() -> Ears {
        let stream = |kind| signal(kind).expect("a runtime with signals can listen for them");
        Ears {
            interrupt: stream(SignalKind::interrupt()),
            terminate: stream(SignalKind::terminate()),
            report: stream(SignalKind::user_defined1()),
            reload: stream(SignalKind::hangup()),
            keys: None,
            scrapes: None,
        }
    }

    /// Waits so long, or until there is something to do.
    async fn listen(&mut self, look: Duration, bell: Option<&Notify>) -> Heard {
        let rung = async {
            match bell {
                Some(bell) => bell.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Heard::Stop,
            _ = self.terminate.recv() => Heard::Stop,
            _ = self.report.recv() => Heard::Report,
            _ = self.reload.recv() => Heard::Reload,
            key = next(&mut self.keys) => Heard::Key(key),
            ask = next(&mut self.scrapes) => Heard::Scrape(ask),
            () = rung => Heard::Nothing,
            () = tokio::time::sleep(look) => Heard::Nothing,
        }
    }
}

/// Probes all targets as the plan says.
pub(super) fn run(plan: &Plan, roster: Roster, reload: Reload) -> Result<Summary, Failure> {
    let hlog = plan.hlog.as_deref().map(|path| Hlog::create(path, &roster.groups)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Run(format!("no event loop: {e}. Try: ringspan doctor")))?;
    runtime.block_on(async {
        let mut ears = Ears::open();
        let (stop, stopped) = watch::channel(false);
        if let Some(address) = plan.listen {
            let bound = metrics::serve(address, stopped)
                .map_err(|e| Failure::Run(format!("--listen {address}: {e}. Try: another port")))?;
            ears.scrapes = Some(bound);
        }
        let mut session = Session::start(plan, roster, hlog, reload)?;
        let interrupted = session.probe(&mut ears).await;
        let _ = stop.send(true);
        session.finish(interrupted?)
    })
}

struct Session<'a> {
    plan: &'a Plan,
    roster: Roster,
    handover: Handover,
    names: Names,
    engine: Engine,
    feed: Feed,
    bell: Arc<Bell>,
    hlog: Option<Hlog>,
    reload: Reload,
    table: Option<Table>,
    transitions: Vec<Transition>,
    samples: Vec<Sample>,
    started: Instant,
    cpu_before: Duration,
}

impl<'a> Session<'a> {
    fn start(plan: &'a Plan, mut roster: Roster, hlog: Option<Hlog>, reload: Reload) -> Result<Session<'a>, Failure> {
        let bell = Arc::new(Bell::default());
        let (engine, feed) =
            Engine::start(&plan.options, bell.clone(), |_| Vec::new()).map_err(|e| Failure::Run(e.to_string()))?;
        Ok(Session {
            handover: Handover::new(engine.probes(), &mut roster, plan.count),
            names: Names::new(bell.clone(), &mut roster),
            plan,
            roster,
            engine,
            feed,
            bell,
            hlog,
            reload,
            table: None,
            transitions: vec![],
            samples: vec![],
            started: Instant::now(),
            cpu_before: cpu_time(CpuOf::Process),
        })
    }

    /// Stops, and sums up.
    fn finish(mut self, interrupted: bool) -> Result<Summary, Failure> {
        self.table = None;
        let (duration, cpu) = (self.started.elapsed(), self.cpu());
        self.engine.stop();
        self.collect();
        let stats = self.engine.stats();
        if let Some(hlog) = &mut self.hlog {
            hlog.interval(&stats.total)?;
        }
        if stats.total.counters.samples_dropped > 0 && self.plan.live == Live::Ndjson {
            eprintln!(
                "ringspan: stdout was too slow: {} lines were left out; the summary counts them",
                stats.total.counters.samples_dropped
            );
        }
        Ok(self.summary(&stats, duration, cpu, interrupted))
    }

    /// Until all is done (false) or somebody says so (true).
    async fn probe(&mut self, ears: &mut Ears) -> Result<bool, Failure> {
        if let Live::Table(sort) = self.plan.live {
            let mut table = Table::open(sort).map_err(|e| Failure::Run(format!("--watch: {e}. Try: --watch=lines")))?;
            ears.keys = table.keys();
            self.table = Some(table);
        }
        let bar = Bar::new(self.plan.live == Live::Bar && self.plan.count.is_some());
        let mut progress = Progress { finished: 0, at: Instant::now() };
        let (mut hlog_at, mut stats_at, mut report_at) = (HLOG_INTERVAL, Duration::ZERO, self.plan.report_every);
        loop {
            self.handover.pump(&mut self.roster);
            self.collect();
            let elapsed = self.started.elapsed();
            self.names.turn(elapsed.as_secs() as u32, &mut self.roster, &mut self.handover, self.plan.count.is_none());
            if let Some(new) = self.reload.turn(elapsed).await {
                self.change_to(new, elapsed);
            }
            if elapsed >= stats_at {
                let stats = self.engine.stats();
                if let Some(table) = &mut self.table {
                    let unresolved = self.names.unresolved(&self.roster);
                    table.on_stats(&stats, self.roster.tally(), unresolved, elapsed);
                }
                if let Some(hlog) = &mut self.hlog
                    && elapsed >= hlog_at
                {
                    hlog.interval(&stats.total)?;
                    hlog_at = elapsed + HLOG_INTERVAL;
                }
                if self.is_over(&stats, elapsed) {
                    return Ok(false);
                }
                bar.show(stats.total.counters.finished(), self.expected(), elapsed);
                self.check_progress(&stats, &mut progress)?;
                stats_at = elapsed + if self.plan.count.is_some() { Duration::ZERO } else { STATS_EVERY };
            }
            if report_at.is_some_and(|at| elapsed >= at) {
                report_at = self.plan.report_every.map(|every| elapsed + every);
                self.report();
            }
            if let Some(table) = &mut self.table {
                table.draw(&self.roster, elapsed);
            }
            let mut look =
                if self.handover.is_idle() { (elapsed / 50).clamp(LOOK_MIN, LOOK_MAX) } else { LOOK_LOADING };
            if let Some(duration) = self.plan.duration {
                look = look.min(duration.saturating_sub(elapsed));
            }
            // Nobody waits for single results but who reads them: looking at intervals costs less than being woken.
            let bell = matches!(self.plan.live, Live::Ndjson | Live::Lines).then_some(&self.bell.0);
            match ears.listen(look, bell).await {
                Heard::Nothing => {}
                Heard::Stop => return Ok(true),
                Heard::Report => self.report(),
                Heard::Reload => self.reload.ask(),
                Heard::Key(Key::Quit) => return Ok(true),
                Heard::Key(key) => {
                    if let Some(table) = &mut self.table {
                        table.on_key(key, self.roster.count());
                    }
                }
                // Whoever asked may be gone.
                Heard::Scrape(Ask::Metrics(to)) => drop(to.send(self.scrape().page())),
                Heard::Scrape(Ask::Health(to)) => drop(to.send(self.engine.is_whole())),
            }
        }
    }

    /// Probes there will be, as far as is known.
    fn expected(&self) -> u64 {
        self.roster.count() as u64 * u64::from(self.plan.count.unwrap_or(0))
    }

    fn is_over(&self, stats: &Stats, elapsed: Duration) -> bool {
        let all_ended = self.plan.count.is_some()
            && self.handover.is_idle()
            && self.names.is_settled()
            && stats.total.counters.ended >= self.handover.added;
        all_ended || self.plan.duration.is_some_and(|duration| elapsed >= duration)
    }

    fn check_progress(&self, stats: &Stats, progress: &mut Progress) -> Result<(), Failure> {
        let finished = stats.total.counters.finished();
        if !self.engine.is_whole() {
            return Err(Failure::Run("a prober has died. Try: RINGSPAN_LOG=debug, and tell us".into()));
        }
        let waits = self.plan.count.is_none() || stats.total.counters.ended >= self.handover.added;
        if finished > progress.finished || waits {
            *progress = Progress { finished, at: Instant::now() };
            return Ok(());
        }
        let policy = &self.plan.sheet.policy;
        if progress.at.elapsed() > STALL_MAX + policy.interval + policy.timeout {
            return Err(Failure::Run(format!(
                "the prober stands still at {finished} of {} probes. Try: RINGSPAN_LOG=debug, ringspan doctor",
                self.expected()
            )));
        }
        Ok(())
    }

    /// Other targets, by what has been read anew.
    fn change_to(&mut self, new: Roster, elapsed: Duration) {
        let steps = self.roster.become_like(new);
        let count = |is: fn(&Step) -> bool| steps.iter().filter(|step| is(step)).count();
        tracing::info!(
            targets = self.roster.count(),
            added = count(|step| matches!(step, Step::Add(_))),
            removed = count(|step| matches!(step, Step::Remove(_))),
            updated = count(|step| matches!(step, Step::Update(_))),
            "targets read again"
        );
        steps.into_iter().for_each(|step| self.handover.push(step));
        self.names.restart(&mut self.roster, elapsed.as_secs() as u32);
        if let Some(table) = &mut self.table {
            table.forget();
        }
    }

    fn scrape(&self) -> Scrape {
        let of = |row: u32| {
            let belief = self.roster.belief(row);
            Of {
                target: self.roster.shown(row).to_owned(),
                kind: self.roster.check(row).as_str(),
                health: belief.health,
                code: belief.code.map_or("", Code::as_str),
                rtt_us: belief.rtt_us,
                cert_days: belief.detail.cert_days,
            }
        };
        let is_short = self.roster.count() <= self.plan.metrics_targets;
        Scrape {
            stats: self.engine.stats(),
            groups: self.roster.groups.clone(),
            tally: self.roster.tally(),
            unresolved: self.names.unresolved(&self.roster),
            targets: if is_short { self.roster.live().map(of).collect() } else { vec![] },
            rss_bytes: rss_bytes(),
            cpu_s: cpu_time(CpuOf::Process).as_secs_f64(),
        }
    }

    fn cpu(&self) -> Duration {
        cpu_time(CpuOf::Process).saturating_sub(self.cpu_before)
    }

    fn now_cs(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_millis() / 10).unwrap_or(u32::MAX)
    }

    /// Takes what the engine has to say.
    fn collect(&mut self) {
        self.feed.transitions(&mut self.transitions);
        let now_cs = self.now_cs();
        let mut text = String::new();
        for t in self.transitions.drain(..) {
            let Some(before) = self.roster.on_transition(&t, now_cs) else { continue };
            let row = t.key as u32;
            tracing::debug!(target = self.roster.shown(row), to = ?t.to, code = t.code.as_str(), "transition");
            if self.plan.live == Live::Lines {
                text += &lines::change(&self.roster, row, &t, &before, now_cs);
                text.push('\n');
            }
        }
        if !text.is_empty() {
            crate::say(&text);
        }
        self.feed.samples(&mut self.samples);
        if self.samples.is_empty() {
            return;
        }
        if let Some(table) = &mut self.table {
            self.samples.drain(..).for_each(|s| table.on_sample(&s));
            return;
        }
        let mut out = io::BufWriter::new(io::stdout().lock());
        for s in self.samples.drain(..) {
            let row = s.key as u32;
            if self.roster.is_live(row) {
                // A reader that has gone away does not stop the run: its exit code still counts.
                let _ = writeln!(out, "{}", lines::probe(&self.roster, row, &s));
            }
        }
        let _ = out.flush();
    }

    /// The report of now.
    fn report(&mut self) {
        if self.table.is_some() {
            return;
        }
        self.collect();
        let stats = self.engine.stats();
        super::print(&self.summary(&stats, self.started.elapsed(), self.cpu(), false), self.plan.format);
    }

    fn summary(&self, stats: &Stats, duration: Duration, cpu: Duration, interrupted: bool) -> Summary {
        let total = &stats.total;
        let [up, down, unknown] = self.roster.tally();
        let all_named = self.roster.count() <= NAMES_SHOWN;
        let named = self.roster.live().filter(|row| all_named || self.roster.health(*row) != Health::Up);
        let named = named.take(NAMES_SHOWN).map(|row| {
            let belief = self.roster.belief(row);
            let kind = self.roster.check(row).as_str();
            Named {
                text: self.roster.shown(row).to_owned(),
                health: belief.health,
                code: belief.code,
                detail: match self.names.trouble(&self.roster, row) {
                    Some(why) if belief.code.is_none() => format!("the name has no address: {why}"),
                    _ => lines::detail(kind, belief.detail),
                },
                rtt_us: f64::from(belief.rtt_us),
            }
        });
        let outcomes = Code::ALL.iter().map(|code| (*code, total.counters.outcome(*code))).filter(|(_, n)| *n > 0);
        Summary {
            targets: self.roster.count() as u64,
            probes: total.counters.finished(),
            up,
            down,
            unknown,
            unresolved: self.names.unresolved(&self.roster),
            outcomes: outcomes.collect(),
            rtt: total.rtt.clone(),
            lateness: total.lateness.clone(),
            missed: total.counters.missed,
            duration,
            cpu,
            backend: self.engine.capabilities().backend().to_owned(),
            workers: stats.workers.len(),
            rss_bytes: rss_bytes(),
            named: named.collect(),
            interrupted,
        }
    }
}

/// Memory of this process that is in use, bytes (proc_pid_status(5)); 0 where nobody says.
fn rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next());
    kib.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

struct Progress {
    finished: u64,
    at: Instant,
}

/// The progress bar: on a terminal, and only if the run is long.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(is_wanted: bool) -> Bar {
        if !is_wanted || !io::stderr().is_terminal() {
            return Bar(None);
        }
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} probes, {per_sec}, {eta} left")
            .expect("the template is a constant that indicatif accepts");
        Bar(Some(ProgressBar::hidden().with_style(style)))
    }

    fn show(&self, finished: u64, expected: u64, elapsed: Duration) {
        let Some(bar) = &self.0 else { return };
        if elapsed >= BAR_AFTER && bar.is_hidden() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        bar.set_length(expected);
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
