//! `bench nacos12068`: 80,000 HTTP-checked targets at 5 s that answer after 0 to 200 ms, on this machine with their
//! servers. Nobody may be called dead who lives; who dies must be found when the schedule says; and a prober that is
//! short of descriptors must blame nobody. (Nacos issue 12068: about as many persistent instances with HTTP checks,
//! masses of them wrongly unhealthy.)
//!
//! ```text
//! warm-up ─► (a) steady, N minutes ─► (b) 1 % die ─► (c) descriptors cut ─► (c) and answers slower ─► (d) revived
//! ```

mod theory;

use crate::probe::Common;
use crate::process::{self, Failure};
use crate::product;
use crate::report::{Goal, Section};
use crate::watch::{Belief, Change, Stop, Watch};
use crate::world::{Count, Death, Deaths, Plan, World};
use crate::{driver, probe};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use theory::Rhythm;

/// The core of the prober, and that of the world.
const CORE_PROBER: usize = 0;
const CORE_WORLD: usize = 1;
/// Ports of the crowd, each of which serves all of 127/8.
const CROWD_PORTS: u16 = 80;
/// The first address of the crowd, and of the mortals.
const CROWD_FROM: u32 = 0x7f14_0001;
const MORTALS_FROM: u32 = 0x7f1e_0001;
/// Every second one of a hundred dies one way, every other the other.
const MORTAL_SHARE: usize = 100;
/// Nacos' own patience with a check (HttpHealthCheckProcessor: 500 ms each for connect and read).
const TIMEOUT: Duration = Duration::from_millis(500);
const INTERVAL: Duration = Duration::from_secs(5);
const RISE: NonZeroU8 = NonZeroU8::new(2).expect("not 0");
const FALL: NonZeroU8 = NonZeroU8::new(3).expect("not 0");
/// Answers come after 0 to so many milliseconds; in the last phase twice as many, still within the patience.
const DELAY_MAX_MS: u16 = 200;
/// A tick of the prober's wheel: what "in time" is counted in.
const TICK: Duration = Duration::from_millis(1);
/// Descriptors that the prober is left with when its limit is cut: below what it has open, so it cannot open one more.
const NOFILE_CUT: usize = 64;
/// The promise about lateness.
const LATENESS_P99_MS: f64 = 20.0;

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How long the steady phase is.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// A minute's steady phase, and 20 s without descriptors.
    #[arg(long)]
    short: bool,
    /// Targets; one in a hundred is mortal.
    #[arg(long, default_value_t = 80_000)]
    targets: usize,
    /// Seconds that the prober's limit on open files stays cut; as long again with slower answers.
    #[arg(long, default_value_t = 60)]
    cut_seconds: u64,
    /// Probe with the bare engine in a child of ours, not with `ringspan probe`.
    #[arg(long)]
    engine: bool,
    /// Let the kernel place prober and world, and give the prober a worker per core. Default: a core for each.
    #[arg(long)]
    unpinned: bool,
    /// Probes in flight at most, per worker.
    #[arg(long, default_value_t = 8192)]
    in_flight: u32,
    /// Keep the times to detect here as an HdrHistogram log, milliseconds.
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
}

/// Who is there, and who of them is mortal.
struct Population {
    plan: Plan,
    all: Vec<SocketAddr>,
    mortals: HashSet<SocketAddr>,
}

fn populate(targets: usize, port: u16) -> Population {
    let mortal_count = (targets / MORTAL_SHARE).max(2);
    let at = |from: u32, i: usize, port: u16| SocketAddr::from((Ipv4Addr::from(from + i as u32), port));
    // Ports 0 to 1 of ours are the control's and the mortals'.
    let mortals: Vec<_> = (0..mortal_count).map(|i| at(MORTALS_FROM, i, port + 1)).collect();
    let ports = usize::from(CROWD_PORTS);
    let crowd: Vec<_> =
        (0..targets - mortal_count).map(|i| at(CROWD_FROM, i / ports, port + 2 + (i % ports) as u16)).collect();
    let listen = (0..CROWD_PORTS).map(|i| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port + 2 + i))).collect();
    let control = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let plan = Plan { crowd: listen, mortals: mortals.clone(), delay_max_ms: DELAY_MAX_MS, control, seed: 12068 };
    Population {
        plan,
        all: crowd.into_iter().chain(mortals.iter().copied()).collect(),
        mortals: mortals.into_iter().collect(),
    }
}

/// Starts the prober on everybody.
fn start_prober(args: &Args, common: &Common, people: &Population) -> Result<Watch, Failure> {
    let core = (!args.unpinned).then_some(CORE_PROBER);
    let workers = usize::from(!args.unpinned);
    let hlog = common.folder.join("probe.hlog");
    if args.engine {
        let targets = PathBuf::from(probe::write_targets(&common.folder.join("targets"), people.all.iter().copied())?);
        let task = driver::Task {
            targets,
            http: Some("/health".into()),
            interval_ms: INTERVAL.as_millis() as u64,
            timeout_ms: TIMEOUT.as_millis() as u64,
            rise: RISE,
            fall: FALL,
            workers,
            in_flight_max: args.in_flight,
            hlog: hlog.clone(),
        };
        let text = serde_json::to_string(&task).expect("a task is plain data");
        let command = process::command(&process::own_program(), &["child", "prober", &text], core);
        return Watch::start("engine", command, Stop::EndOfInput, &common.folder, &hlog);
    }
    let mut urls = String::new();
    for address in &people.all {
        writeln!(urls, "http://{address}/health").expect("a String takes everything");
    }
    let file = common.folder.join("targets");
    product::write(&file, &urls)?;
    let config = common.folder.join("probe.toml");
    let text = format!(
        "[policy.nacos]\ninterval = \"{}ms\"\ntimeout = \"{}ms\"\nrise = {RISE}\nfall = {FALL}\n\
         [[target]]\nfile = {file:?}\npolicy = \"nacos\"\n",
        INTERVAL.as_millis(),
        TIMEOUT.as_millis()
    );
    product::write(&config, &text)?;
    let words = |path: &Path| path.to_string_lossy().into_owned();
    let (config, hlog_arg, in_flight) = (words(&config), words(&hlog), args.in_flight.to_string());
    let mut flags = vec!["probe", "--config", &config, "--watch=lines", "--format", "json"];
    flags.extend(["--hlog", &hlog_arg, "--in-flight", &in_flight]);
    if !args.unpinned {
        flags.extend(["--workers", "1"]);
    }
    let command = process::command(&common.ringspan, &flags, core);
    Watch::start("ringspan", command, Stop::Interrupt, &common.folder, &hlog)
}

/// One stretch of the run under observation.
struct Phase {
    name: &'static str,
    from: SystemTime,
    to: SystemTime,
    seconds: f64,
    /// Changes of mind about those who did not die.
    false_verdicts: usize,
    prober_cpu: f64,
    world_cpu: f64,
    rss: u64,
    served: u64,
}

/// The whole run: prober, world, and who is thought to be what.
struct Run {
    watch: Watch,
    world: World,
    people: Population,
    beliefs: HashMap<SocketAddr, Belief>,
    /// A few of the false verdicts, for the report.
    examples: Vec<String>,
}

impl Run {
    /// Watches until `enough` says so of a change, or the time is over. Changes about mortals are expected where
    /// `mortals_may` says so.
    fn phase(
        &mut self,
        name: &'static str,
        patience: Duration,
        mortals_may: bool,
        mut enough: impl FnMut(&Change) -> bool,
    ) -> Result<Phase, Failure> {
        eprintln!("nacos12068: {name}");
        let (from, started) = (SystemTime::now(), Instant::now());
        let (prober, world) = (self.watch.process.cpu_seconds(), self.world.process.cpu_seconds());
        let before = self.world.count()?;
        let (beliefs, mortals, examples) = (&mut self.beliefs, &self.people.mortals, &mut self.examples);
        let mut false_verdicts = 0;
        self.watch.until(started + patience, |change| {
            beliefs.insert(change.address, change.to);
            if !(mortals_may && mortals.contains(&change.address)) {
                false_verdicts += 1;
                if examples.len() < 5 {
                    examples.push(format!("{name}: {} {:?} by {}", change.address, change.to, change.code));
                }
            }
            enough(change)
        })?;
        let after: Count = self.world.count()?;
        Ok(Phase {
            name,
            from,
            to: SystemTime::now(),
            seconds: started.elapsed().as_secs_f64(),
            false_verdicts,
            prober_cpu: self.watch.process.cpu_seconds() - prober,
            world_cpu: self.world.process.cpu_seconds() - world,
            rss: self.watch.process.rss_bytes(),
            served: after.served - before.served,
        })
    }

    fn count(&self, belief: Belief) -> usize {
        self.beliefs.values().filter(|b| **b == belief).count()
    }
}

/// Runs what was asked for.
///
/// # Errors
/// World or prober do not work, or not everybody comes up; with the log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    let steady = Duration::from_secs_f64(if args.short { 60.0 } else { args.minutes * 60.0 });
    let cut = Duration::from_secs(if args.short { 20 } else { args.cut_seconds });
    let people = populate(args.targets, common.port_base);
    let core = (!args.unpinned).then_some(CORE_WORLD);
    let world = World::start(&people.plan, core, &common.folder)?;
    let watch = start_prober(args, common, &people)?;
    let mut run = Run { watch, world, people, beliefs: HashMap::new(), examples: Vec::new() };

    let (all, mortal) = (run.people.all.len(), run.people.mortals.len());
    let mut up = HashSet::new();
    run.phase("warm-up", INTERVAL * 4 + Duration::from_secs(30), true, |change| {
        up.insert(change.address);
        up.len() == all
    })?;
    if run.count(Belief::Up) < all {
        let (is_up, is_down) = (run.count(Belief::Up), run.count(Belief::Down));
        let report = run.watch.finish()?;
        return Err(format!("of {all} targets only {is_up} came up, and {is_down} went down: {report:?}"));
    }
    run.examples.clear();
    let mut phases = vec![run.phase("steady", steady, false, |_| false)?];

    let deaths = run.world.die()?;
    let mut found: HashMap<SocketAddr, Change> = HashMap::new();
    let rhythm = Rhythm { interval: INTERVAL, interval_fast: None, timeout: TIMEOUT, fall: FALL.get().into() };
    let patience = rhythm.bounds(Death::Silent).1 + INTERVAL;
    phases.push(run.phase("1 % die", patience, true, |change| {
        if change.to == Belief::Down {
            found.entry(change.address).or_insert_with(|| change.clone());
        }
        found.len() == mortal
    })?);

    limit_files(&run.watch, NOFILE_CUT)?;
    phases.push(run.phase("descriptors cut", cut, false, |_| false)?);
    run.world.delay(2 * DELAY_MAX_MS)?;
    phases.push(run.phase("cut, answers slower", cut, false, |_| false)?);
    run.world.delay(DELAY_MAX_MS)?;
    restore_files(&run.watch)?;

    run.world.revive()?;
    let mut back = HashSet::new();
    phases.push(run.phase("revived", INTERVAL * (u32::from(RISE.get()) + 2), true, |change| {
        if change.to == Belief::Up {
            back.insert(change.address);
        }
        back.len() == mortal
    })?);
    let up_at_the_end = run.count(Belief::Up);
    let mut sections = vec![phase_section(args, &run, &phases)?, death_section(args, &rhythm, &deaths, &found)?];
    sections[0].hold("targets up at the end", up_at_the_end as f64, Goal::AtLeast(all as f64));
    let report = run.watch.finish()?;
    sections[0].note(format!(
        "whole run, by the prober: {} probes, {} missed slots, {:.1} us of CPU each, {}, outcomes {:?}",
        report.probes, report.missed, report.cpu_us_per_probe, report.backend, report.outcomes
    ));
    Ok(sections)
}

/// The prober's soft limit on open files, by prlimit(1).
fn limit_files(watch: &Watch, limit: usize) -> Result<(), Failure> {
    let open = watch.process.descriptors();
    if open <= limit {
        return Err(format!("the prober has {open} descriptors open: a limit of {limit} would cut nothing"));
    }
    prlimit(watch, &format!("--nofile={limit}:"))
}

fn restore_files(watch: &Watch) -> Result<(), Failure> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files")).unwrap_or_default();
    let hard = line.split_whitespace().nth(1).unwrap_or("unlimited").to_owned();
    prlimit(watch, &format!("--nofile={hard}:"))
}

fn prlimit(watch: &Watch, what: &str) -> Result<(), Failure> {
    let pid = watch.process.pid().to_string();
    let out = Command::new("prlimit").args(["--pid", &pid, what]).output().map_err(|e| format!("prlimit: {e}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(()) } else { Err(format!("prlimit --pid {pid} {what}: {said}")) }
}

fn phase_section(args: &Args, run: &Run, phases: &[Phase]) -> Result<Section, Failure> {
    let who = if args.engine { "the bare engine" } else { "ringspan probe" };
    let question = format!(
        "{} HTTP targets every {} s that answer after 0 to {DELAY_MAX_MS} ms, timeout {} ms, fall {FALL}, by {who}: is \
         anybody called dead who lives?",
        run.people.all.len(),
        INTERVAL.as_secs(),
        TIMEOUT.as_millis()
    );
    let columns = [
        ("seconds", 0),
        ("probes/s", 0),
        ("served/s", 0),
        ("false verdicts", 0),
        ("lateness p50 ms", 2),
        ("lateness p99 ms", 2),
        ("lateness max ms", 1),
        ("CPU % of a core", 1),
        ("CPU us/probe", 2),
        ("world CPU %", 1),
        ("RSS MiB", 1),
    ];
    let mut section = Section::new("nacos12068", question, &columns);
    for phase in phases {
        let late = run.watch.lateness(phase.from, phase.to)?;
        let per_s = |n: f64| n / phase.seconds;
        section.record(
            phase.name,
            &[
                phase.seconds,
                // Whole intervals of the log: a little less than the phase.
                per_s(late.us.len() as f64),
                per_s(phase.served as f64),
                phase.false_verdicts as f64,
                late.ms(0.5),
                late.ms(0.99),
                late.max_ms(),
                per_s(phase.prober_cpu) * 100.0,
                phase.prober_cpu * 1e6 / phase.served.max(1) as f64,
                per_s(phase.world_cpu) * 100.0,
                phase.rss as f64 / f64::from(1 << 20),
            ],
        );
        section.promise(phase.name, "false verdicts", Goal::AtMost(0.0));
    }
    section.promise("steady", "lateness p99 ms", Goal::AtMost(LATENESS_P99_MS));
    run.examples.iter().for_each(|example| section.note(example.clone()));
    Ok(section)
}

/// Seconds from the death, one list by observation and one by the schedule, of those who died one way.
#[derive(Default)]
struct Times {
    took_s: Vec<f64>,
    due_s: Vec<f64>,
    /// Observed minus due, milliseconds, sorted.
    off_ms: Vec<f64>,
}

impl Times {
    fn of(death: Death, rhythm: &Rhythm, deaths: &Deaths, found: &HashMap<SocketAddr, Change>) -> Times {
        let mut times = Times::default();
        let after_s = |ns: u64| ns.saturating_sub(deaths.at_ns) as f64 / 1e9;
        for who in deaths.dead.iter().filter(|d| d.death == death) {
            let due_ns = rhythm.due_ns(who, deaths.at_ns);
            times.due_s.push(after_s(due_ns));
            if let Some(change) = found.get(&who.address) {
                times.took_s.push(after_s(change.at_ns));
                times.off_ms.push((change.at_ns as f64 - due_ns as f64) / 1e6);
            }
        }
        for list in [&mut times.took_s, &mut times.due_s, &mut times.off_ms] {
            list.sort_by(f64::total_cmp);
        }
        times
    }

    /// How many came in each second, observed and due: "10 s: 41/41, 11 s: 80/79".
    fn histogram(&self) -> String {
        let count = |list: &[f64], s: usize| list.iter().filter(|t| **t as usize == s).count();
        let last = self.took_s.iter().chain(&self.due_s).copied().fold(0.0, f64::max) as usize;
        let seconds = (0..=last).map(|s| (s, count(&self.took_s, s), count(&self.due_s, s)));
        let words = seconds.filter(|(_, a, b)| a + b > 0).map(|(s, took, due)| format!("{s} s: {took}/{due}"));
        words.collect::<Vec<_>>().join(", ")
    }
}

fn at(sorted: &[f64], quantile: f64) -> f64 {
    let index = (sorted.len() as f64 - 1.0) * quantile;
    sorted.get(index.round() as usize).copied().unwrap_or(f64::NAN)
}

fn death_section(
    args: &Args,
    rhythm: &Rhythm,
    deaths: &Deaths,
    found: &HashMap<SocketAddr, Change>,
) -> Result<Section, Failure> {
    let question = format!(
        "{} of them die, half refuse and half fall silent: is each found when the schedule says? (fall {FALL} of \
         {} s; a tick is {} ms)",
        deaths.dead.len(),
        rhythm.interval.as_secs(),
        TICK.as_millis()
    );
    let columns = [
        ("died", 0),
        ("found", 0),
        ("after s, min", 3),
        ("after p50", 3),
        ("after max", 3),
        ("theory min", 3),
        ("theory max", 3),
        ("off theory ms, p1", 2),
        ("off p50", 2),
        ("off p99", 2),
        ("off max", 2),
        ("within 2 ticks %", 1),
    ];
    let mut section = Section::new("time to detect", question, &columns);
    let mut kept = Vec::new();
    let two_ticks_ms = 2.0 * TICK.as_secs_f64() * 1e3;
    for death in [Death::Refused, Death::Silent] {
        let name = if death == Death::Refused { "refused" } else { "silent" };
        let times = Times::of(death, rhythm, deaths, found);
        let (low, high) = rhythm.bounds(death);
        let (died, off) = (times.due_s.len(), &times.off_ms);
        let near = off.iter().filter(|ms| ms.abs() <= two_ticks_ms).count();
        section.record(
            name,
            &[
                died as f64,
                off.len() as f64,
                at(&times.took_s, 0.0),
                at(&times.took_s, 0.5),
                at(&times.took_s, 1.0),
                low.as_secs_f64(),
                high.as_secs_f64(),
                at(off, 0.01),
                at(off, 0.5),
                at(off, 0.99),
                at(off, 1.0),
                near as f64 * 100.0 / off.len().max(1) as f64,
            ],
        );
        section.promise(name, "found", Goal::AtLeast(died as f64));
        section.promise(name, "off theory ms, p1", Goal::AtLeast(-two_ticks_ms));
        section.promise(name, "off p99", Goal::AtMost(two_ticks_ms));
        section.note(format!("{name}: found/due in each second after the death: {}", times.histogram()));
        kept.push((name, times));
    }
    if let Some(path) = &args.hlog {
        product::write(path, &interval_log(&kept))?;
    }
    Ok(section)
}

/// The times to detect and the theory's as an interval log (milliseconds), tagged "refused", "refused-theory" and so on.
fn interval_log(kept: &[(&str, Times)]) -> String {
    let (mut text, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment("[time to detect: milliseconds]").with_start_time(SystemTime::now());
    let mut log = builder.begin_log_with(&mut text, &mut serializer).expect("a Vec takes everything");
    for (name, times) in kept {
        for (tag, list) in [((*name).to_owned(), &times.took_s), (format!("{name}-theory"), &times.due_s)] {
            let mut histogram = Histogram::<u64>::new_with_bounds(1, 3_600_000, 3).expect("the bounds are constants");
            list.iter().for_each(|s| histogram.saturating_record((s * 1e3) as u64));
            let length = Duration::from_secs_f64(list.last().copied().unwrap_or_default());
            log.write_histogram(&histogram, Duration::ZERO, length, Tag::new(&tag)).expect("a Vec takes everything");
        }
    }
    String::from_utf8(text).expect("a log is text")
}
