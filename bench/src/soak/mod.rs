//! `bench soak`: does it hold at full speed on a bad network, with everything checked?
//! A bridge and two agents, each behind a cable of ours (cable.rs) that freezes, delays, cuts in the middle of frames and
//! half-closes by a printed seed; agents and, in the first third, the bridge are killed too. Visitors move streams of
//! known content all the while (vault.rs). Once a minute they pause, and descriptors, pipes and memory of each process are
//! compared with its first rest. At the end: a thousand idle agents, and what the bridge's rest costs with them.

mod herd;
mod holdings;
pub(crate) mod vault;

pub(crate) use herd::run as run_herd;

use crate::cable::{Cable, Harm, lay};
use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{Service, Tunnel};
use crate::report::{Goal, Section};
use crate::visitor::Crowd;
use holdings::Holdings;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How long the visitors are kept at it.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Fate's seed; printed. Default: a random one.
    #[arg(long)]
    seed: Option<u64>,
    /// Visitors at once.
    #[arg(long, default_value_t = 12)]
    visitors: usize,
    /// Idle agents at the end.
    #[arg(long, default_value_t = 1000)]
    idle_agents: usize,
    /// TLS on the link. Without it splice(2) and direct carriers have more of the work.
    #[arg(long)]
    tls: bool,
    /// One minute, 100 idle agents: does everything run?
    #[arg(long)]
    short: bool,
}

/// Between two rests.
const REST_EVERY: Duration = Duration::from_secs(60);
/// Until what the last visitors left behind has gone: closing sockets, a pool that shrinks.
const REST: Duration = Duration::from_secs(5);
/// A process may have this many descriptors more than at its first rest, but for its pools: probe sockets that happen to be
/// open.
const DESCRIPTORS_SLACK: f64 = 16.0;
/// Pipes are kept for the next stream: at most this many for each worker, two descriptors each.
const PIPE_ENDS_MAX: usize = 2 * 64;
/// An agent's link: carriers, and for each this many connections at most that wait for the next bulk stream; half of them go
/// each 30 s in which nobody comes.
const CARRIERS: usize = 2;
const SPARES_MAX: usize = 64;
/// And this much more memory: buffers sized by their busiest moment.
const MIB_SLACK: f64 = 16.0;
/// What a bridge at rest may take of a core, in percent.
const REST_PERCENT_MAX: f64 = 0.1;

struct World {
    tunnel: Tunnel,
    cables: Vec<Cable>,
    /// The link's ports, and the cables'.
    ports: [u16; 3],
    alive: BTreeMap<&'static str, Process>,
    /// At the first rest of each, and at its last.
    sizes: BTreeMap<&'static str, (Holdings, Holdings)>,
    harms: BTreeMap<&'static str, u64>,
}

/// A draw of each kind of harm.
const EACH_KIND: [u8; 8] = [0, 25, 40, 50, 70, 85, 90, 92];

const AGENTS: [&str; 2] = ["agent-0", "agent-1"];

impl World {
    fn start(&mut self, name: &'static str) -> Result<(), Failure> {
        let process = if name == "bridge" { self.tunnel.start_bridge()? } else { self.tunnel.start_agent(name)? };
        self.alive.insert(name, process);
        Ok(())
    }

    fn kill(&mut self, name: &'static str) {
        self.alive.remove(name).expect("everybody lives between two deaths").kill();
        self.sizes.remove(name);
    }

    /// Nobody ends but by our hand.
    fn all_live(&mut self) -> Result<(), Failure> {
        for (name, process) in &mut self.alive {
            if let Some(status) = process.exited() {
                return Err(format!("{name} ended by itself: {status}\n{}", process.log_end()));
            }
        }
        Ok(())
    }

    fn weigh(&mut self) {
        for (&name, process) in &self.alive {
            let now = Holdings::of(process, &self.ports);
            self.sizes.entry(name).and_modify(|it| it.1 = now).or_insert((now, now));
        }
    }

    /// One stroke of fate; the first ones are each of the kinds once.
    fn strike(&mut self, fate: &mut fastrand::Rng, past: f64) -> Result<(), Failure> {
        let done = self.harms.values().sum::<u64>() as usize;
        let cable = fate.usize(..self.cables.len());
        let (bytes, ms) = (fate.u64(0..=4 << 20), Duration::from_millis(fate.u64(20..3000)));
        let late = Duration::from_millis(fate.u64(1..60));
        let (name, harm) = match EACH_KIND.get(done).copied().unwrap_or_else(|| fate.u8(..100)) {
            0..=24 => ("reset mid-frame", Harm::ResetAfter(bytes)),
            25..=39 => ("clean end mid-frame", Harm::EndAfter(bytes)),
            40..=49 => ("half-close of a link", Harm::HalfCloseAfter(bytes)),
            50..=69 => ("freeze", Harm::Freeze(ms)),
            70..=84 => ("delay", Harm::Late(late)),
            85..=89 => ("swallow", Harm::Swallow),
            90..=91 if past < 0.3 => {
                *self.harms.entry("kill of the bridge").or_default() += 1;
                self.kill("bridge");
                thread::sleep(ms / 3);
                return self.start("bridge");
            }
            // Late in the run nobody dies: the survivors are weighed.
            _ if past < 0.6 => {
                *self.harms.entry("kill of an agent").or_default() += 1;
                self.kill(AGENTS[cable]);
                thread::sleep(ms / 3);
                return self.start(AGENTS[cable]);
            }
            _ => ("freeze", Harm::Freeze(ms)),
        };
        self.cables[cable].harm(harm);
        *self.harms.entry(name).or_default() += 1;
        Ok(())
    }
}

/// Shakes it.
///
/// # Errors
/// A process ends by itself or does not come back, with the seed and its log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("soak: seed {seed}");
    let mut fate = fastrand::Rng::with_seed(seed);
    let minutes = if args.short { args.minutes.min(1.0) } else { args.minutes };
    let port = |offset: u16| SocketAddr::from(([127, 0, 0, 1], common.port_base + offset));
    let backend = port(3);
    let child = ["child", "vault", &backend.to_string()];
    let mut vault = Process::start("vault", process::command(&process::own_program(), &child, None), &common.folder)?;
    vault.wait_listening(backend)?;

    let service = Service { name: "vault", listen: port(2), backends: vec![backend; 2] };
    let tunnel = Tunnel::new(&common.ringspan, &common.folder, None, (port(0), port(1)), args.tls, &[service])?;
    let cables = vec![lay(port(4), port(1))?, lay(port(5), port(1))?];
    let (alive, sizes, harms) = Default::default();
    let mut world = World { tunnel, cables, ports: [1, 4, 5].map(|at| port(at).port()), alive, sizes, harms };
    world.start("bridge")?;
    for (i, name) in AGENTS.into_iter().enumerate() {
        world.tunnel.via = Some(world.cables[i].address);
        world.tunnel.enrol_agent(name, i, 2, CARRIERS)?;
        world.start(name)?;
    }
    let entry = port(2);
    crate::stage::until_ready("the tunnel", || {
        vault::visit(entry, &mut fastrand::Rng::with_seed(1)).map(drop).map_err(|e| e.to_string())
    })?;
    let crowd = Crowd::start(args.visitors, fate.u64(..), Duration::ZERO, move |rng| vault::visit(entry, rng));
    let story = |e: Failure| format!("seed {seed}: {e}");
    let whole = Duration::from_secs_f64(minutes * 60.0);
    let started = Instant::now();
    let mut rested = Instant::now();
    let rest_every = REST_EVERY.min(whole / 3);
    let rest = |world: &mut World, crowd: &Crowd| {
        crowd.pause();
        thread::sleep(REST);
        world.weigh();
        let good = crowd.tally.good.load(Ordering::Relaxed);
        eprintln!("soak: {:.1} of {minutes} minutes, {good} streams good", started.elapsed().as_secs_f64() / 60.0);
    };
    while started.elapsed() < whole {
        thread::sleep(Duration::from_millis(fate.u64(100..1500)));
        let past = started.elapsed().as_secs_f64() / whole.as_secs_f64();
        world.strike(&mut fate, past).and_then(|()| world.all_live()).map_err(story)?;
        if rested.elapsed() > rest_every {
            rest(&mut world, &crowd);
            crowd.resume();
            rested = Instant::now();
        }
    }
    rest(&mut world, &crowd);
    world.all_live().map_err(story)?;
    Ok(vec![judge(&world, &crowd, &vault, seed, minutes), at_rest(args, &mut world, common)?])
}

fn judge(world: &World, crowd: &Crowd, vault: &Process, seed: u64, minutes: f64) -> Section {
    let question = format!(
        "{minutes} minutes of full speed on a bad network: is every byte right, and does nothing grow? seed {seed}"
    );
    let columns = [
        ("descriptors at first rest", 0),
        ("at last", 0),
        ("pipes at first", 0),
        ("pipes at last", 0),
        ("link at first", 0),
        ("link at last", 0),
        ("MiB at first", 1),
        ("MiB at last", 1),
    ];
    let mut section = Section::new("soak", question, &columns);
    for (name, (first, last)) in &world.sizes {
        let figures = [first.others, last.others, first.pipes, last.pipes, first.link, last.link, first.mib, last.mib];
        section.record(name, &figures);
    }
    let tally = &crowd.tally;
    let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    section.note(format!(
        "{} streams with every SHA-256 right, {:.1} GB; {} broken by {:?}",
        count(&tally.good),
        count(&tally.bytes) as f64 / 1e9,
        count(&tally.broken),
        world.harms
    ));
    let mut violations = std::mem::take(&mut *tally.violations.lock().expect("no visitor panics"));
    violations.extend(vault.log().lines().filter(|l| l.contains(vault::CORRUPT)).map(|l| format!("backend: {l}")));
    for violation in violations.iter().take(20) {
        section.note(format!("VIOLATION: {violation}"));
    }
    section.hold("streams with wrong bytes or left hanging", violations.len() as f64, Goal::AtMost(0.0));
    section.hold("kinds of harm done", world.harms.len() as f64, Goal::AtLeast(EACH_KIND.len() as f64));
    section.hold("streams good", count(&tally.good) as f64, Goal::AtLeast(1.0));
    for (name, (first, last)) in &world.sizes {
        let grown =
            [("descriptors", last.others - first.others, DESCRIPTORS_SLACK), ("MiB", last.mib - first.mib, MIB_SLACK)];
        for (what, more, slack) in grown {
            section.hold(&format!("{name}, {what} more than at its first rest"), more, Goal::AtMost(slack));
        }
        let pool = PIPE_ENDS_MAX * thread::available_parallelism().map_or(1, usize::from);
        section.hold(&format!("{name}, pipes' ends at its last rest"), last.pipes, Goal::AtMost(pool as f64));
        let agents = if AGENTS.contains(name) { 1 } else { AGENTS.len() };
        let pool = agents * CARRIERS * (1 + SPARES_MAX);
        section.hold(&format!("{name}, the link's connections at its last rest"), last.link, Goal::AtMost(pool as f64));
    }
    section
}

/// What rest costs, with nobody else there and with many idle agents.
fn at_rest(args: &Args, world: &mut World, common: &Common) -> Result<Section, Failure> {
    let (idle, watched) = if args.short {
        (args.idle_agents.min(100), Duration::from_secs(10))
    } else {
        (args.idle_agents, Duration::from_secs(40))
    };
    let question = format!("what does a bridge's rest take of a core, with {idle} idle agents?");
    let mut section = Section::new("rest", question, &[("% of a core", 3), ("MiB", 1), ("descriptors", 0)]);
    let watch = |process: &Process| {
        let before = process.cpu_seconds_exact();
        thread::sleep(watched);
        let percent = (process.cpu_seconds_exact() - before) / watched.as_secs_f64() * 100.0;
        [percent, process.rss_bytes() as f64 / f64::from(1 << 20), process.descriptors() as f64]
    };
    section.record("bridge, two agents", &watch(&world.alive["bridge"]));
    section.record("agent", &watch(&world.alive["agent-0"]));
    if args.tls {
        section.note("no idle agents: the simulated ones speak without TLS. Run without --tls");
        return Ok(section);
    }
    world.tunnel.via = None;
    let token = world.tunnel.token(idle)?;
    let bridge = world.tunnel.link.to_string();
    let count = idle.to_string();
    let command = process::command(&process::own_program(), &["child", "herd", &bridge, &token, &count], None);
    let (mut herd, stdout, _stdin) = Process::start_piped("herd", command, &common.folder)?;
    let mut line = String::new();
    let _ = BufReader::new(stdout).read_line(&mut line);
    if !line.starts_with("up") {
        return Err(format!("the idle agents did not come: {}\n{}", herd.log_end(), world.alive["bridge"].log_end()));
    }
    thread::sleep(REST);
    let with = format!("bridge, {idle} idle agents");
    section.record(&with, &watch(&world.alive["bridge"]));
    if let Some(status) = herd.exited() {
        return Err(format!("the idle agents were lost: {status}\n{}", herd.log_end()));
    }
    section.promise(&with, "% of a core", Goal::AtMost(REST_PERCENT_MAX));
    Ok(section)
}

impl Process {
    /// User and system time of the threads there are, to the nanosecond: for what is too little to see in ticks of 10 ms.
    pub(crate) fn cpu_seconds_exact(&self) -> f64 {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return 0.0 };
        let of = |entry: fs::DirEntry| {
            let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        };
        threads.flatten().filter_map(of).sum::<u64>() as f64 / 1e9
    }
}
