//! `bench chaos`: a bridge, two agents, four backends and visitors on real release binaries; kill -9 in random order,
//! again and again. After each: everything reconnects, what was registered is still there, no byte was wrong, nobody
//! was left hanging, and the survivors' descriptors and memory do not grow.
//!
//! Each agent offers one echo and one nginx, and each nginx says its name: hearing both names through the bridge proves
//! that both agents are back.

use crate::peers;
use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{Service, Tunnel};
use crate::report::{Goal, Section};
use crate::visitor::{self, Crowd};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How many times something is killed.
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Who is killed when follows from this alone; the kernel's scheduling does not. Default: random, and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Visitors at once, half to the echo, half to nginx.
    #[arg(long, default_value_t = 8)]
    visitors: usize,
}

/// The mortals. Bridge and agents twice: they are what is on trial.
const VICTIMS: [&str; 10] =
    ["bridge", "agent-0", "agent-1", "bridge", "agent-0", "agent-1", "echo-0", "echo-1", "nginx-0", "nginx-1"];
const EVERYBODY: [&str; 7] = ["echo-0", "echo-1", "nginx-0", "nginx-1", "bridge", "agent-0", "agent-1"];

/// All must be well this soon after a death. An agent backs off up to some seconds when its bridge is gone; a person
/// watching would lose patience here.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// Visits in a row that must go well before a death counts as healed.
const GOOD_IN_A_ROW: usize = 20;
/// A file served by nginx: random, larger than any buffer on the way.
const FILE_BYTES: usize = 1 << 20;
/// Instances registered by hand at the start; they must outlive everything.
const REGISTERED: u16 = 20;
/// A survivor may hold this many descriptors more than when it was first at rest as an adult: a carrier being replaced, a pooled
/// pipe pair or two.
const DESCRIPTORS_SLACK: usize = 8;
/// And this much more memory: buffers sized by their busiest moment.
const RSS_SLACK_BYTES: u64 = 24 << 20;
/// A process is measured against what it was at this age: by then its engine has probed all that it knows (an instance's
/// interval is 5 s), and each worker has opened its first batch of probe sockets.
const ADULT: Duration = Duration::from_secs(7);
/// How long a process may take to come to rest after its visitors are gone.
const REST_MAX: Duration = Duration::from_secs(10);

struct World {
    tunnel: Tunnel,
    folder: PathBuf,
    root: PathBuf,
    echo: SocketAddr,
    web: SocketAddr,
    backends: BTreeMap<&'static str, SocketAddr>,
    alive: BTreeMap<&'static str, Process>,
    born: BTreeMap<&'static str, Instant>,
    /// Descriptors and bytes of each process when it was first at rest as an adult.
    at_first: BTreeMap<&'static str, (usize, u64)>,
    /// The most that a survivor had more than at first: descriptors and bytes.
    most: BTreeMap<&'static str, (usize, u64)>,
    growth: Vec<String>,
}

impl World {
    fn new(common: &Common, rng: &mut fastrand::Rng) -> Result<(World, Vec<u8>), Failure> {
        let port = |offset: u16| SocketAddr::from(([127, 0, 0, 1], common.port_base + offset));
        let backends: BTreeMap<_, _> = EVERYBODY[..4].iter().zip(4..).map(|(&name, i)| (name, port(i))).collect();
        let services = [("echo", 2), ("web", 3)].map(|(name, listen)| {
            let kind = if name == "web" { "nginx" } else { name };
            let backends = backends.iter().filter(|(n, _)| n.starts_with(kind)).map(|(_, &a)| a).collect();
            Service { name, listen: port(listen), backends }
        });
        let tunnel = Tunnel::new(&common.ringspan, &common.folder, None, (port(0), port(1)), true, &services)?;
        let root = common.folder.join("root");
        let mut file = vec![0; FILE_BYTES];
        rng.fill(&mut file);
        let written = fs::create_dir_all(&root).and_then(|()| fs::write(root.join("file"), &file));
        written.map_err(|e| format!("{}: {e}", root.display()))?;
        let mut world = World {
            tunnel,
            folder: common.folder.clone(),
            root,
            echo: port(2),
            web: port(3),
            backends,
            alive: BTreeMap::new(),
            born: BTreeMap::new(),
            at_first: BTreeMap::new(),
            most: BTreeMap::new(),
            growth: Vec::new(),
        };
        for name in EVERYBODY {
            if let Some(index) = name.strip_prefix("agent-") {
                let index = index.parse().expect("agents are numbered");
                world.tunnel.enrol_agent(name, index, 2, 2)?;
            }
            world.start(name)?;
        }
        Ok((world, file))
    }

    fn start(&mut self, name: &'static str) -> Result<(), Failure> {
        let process = match (name, self.backends.get(name)) {
            ("bridge", _) => self.tunnel.start_bridge()?,
            (_, None) => self.tunnel.start_agent(name)?,
            (_, Some(&address)) if name.starts_with("nginx") => {
                peers::start_nginx(name, &self.folder, address, &self.root)?
            }
            (_, Some(&address)) => {
                let args = ["child", "echo", &address.to_string()];
                let command = process::command(&process::own_program(), &args, None);
                let mut echo = Process::start(name, command, &self.folder)?;
                echo.wait_listening(address)?;
                echo
            }
        };
        self.alive.insert(name, process);
        self.born.insert(name, Instant::now());
        Ok(())
    }

    fn kill(&mut self, name: &'static str) {
        self.alive.remove(name).expect("everybody lives between two deaths").kill();
        self.at_first.remove(name);
    }

    /// Everything is well: both nginx answer through the bridge, visits succeed in a row, the registry knows all.
    fn is_well(&mut self, rng: &mut fastrand::Rng) -> Result<(), String> {
        for (name, process) in &mut self.alive {
            if let Some(status) = process.exited() {
                return Err(format!("{name} ended by itself: {status}"));
            }
        }
        let mut heard = BTreeMap::new();
        for _ in 0..GOOD_IN_A_ROW {
            let name = visitor::http(self.web, "GET", "/").map_err(|e| format!("web: {e}"))?;
            *heard.entry(String::from_utf8_lossy(&name).trim().to_owned()).or_insert(0) += 1;
            visitor::echo(self.echo, rng).map_err(|e| format!("echo: {e}"))?;
        }
        if !heard.contains_key("nginx-0") || !heard.contains_key("nginx-1") {
            return Err(format!("web is answered by {heard:?} alone"));
        }
        match self.tunnel.agents()? {
            (2, 2) => self.registered(),
            (known, linked) => Err(format!("the bridge knows {known} agents and has links with {linked}, not 2 and 2")),
        }
    }

    /// A persistent instance for each number, by the API that Nacos' clients speak.
    fn register(&self) -> Result<(), Failure> {
        for i in 0..REGISTERED {
            let path = format!(
                "/nacos/v1/ns/instance?serviceName=kept&ip=127.0.0.1&port={}&ephemeral=false&metadata=n%3D{i}",
                1000 + i
            );
            visitor::http(self.tunnel.http, "POST", &path).map_err(|e| format!("register: {e}"))?;
        }
        self.registered()
    }

    fn registered(&self) -> Result<(), String> {
        let path = "/nacos/v1/ns/instance/list?serviceName=kept";
        let body = visitor::http(self.tunnel.http, "GET", path).map_err(|e| format!("registry: {e}"))?;
        let list: serde_json::Value = serde_json::from_slice(&body).map_err(|e| format!("registry: {e}"))?;
        let ports: Vec<u64> =
            list["hosts"].as_array().into_iter().flatten().filter_map(|h| h["port"].as_u64()).collect();
        let missing: Vec<u16> = (1000..1000 + REGISTERED).filter(|p| !ports.contains(&u64::from(*p))).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("registered instances are gone: ports {missing:?}")) }
    }

    /// Compares everybody with when they were first at rest as adults. Call with no visitor inside.
    fn weigh(&mut self) {
        for (&name, process) in &self.alive {
            let deadline = Instant::now() + REST_MAX;
            let first = self.at_first.get(name).copied();
            if first.is_none() && self.born[name].elapsed() < ADULT {
                continue;
            }
            loop {
                let now = (process.descriptors(), process.rss_bytes());
                let Some((descriptors, rss)) = first else {
                    // First rest: give pools and closing sockets a moment, else the yardstick is too long.
                    thread::sleep(Duration::from_millis(300));
                    self.at_first.insert(name, (process.descriptors(), process.rss_bytes()));
                    break;
                };
                let more = (now.0.saturating_sub(descriptors), now.1.saturating_sub(rss));
                let grown = more.0 > DESCRIPTORS_SLACK || more.1 > RSS_SLACK_BYTES;
                if !grown || Instant::now() > deadline {
                    let most = self.most.entry(name).or_default();
                    *most = (most.0.max(more.0), most.1.max(more.1));
                }
                if !grown {
                    break;
                }
                if Instant::now() > deadline {
                    let mib = |bytes: u64| bytes >> 20;
                    self.growth.push(format!(
                        "{name}: {descriptors} to {} descriptors, {} to {} MiB",
                        now.0,
                        mib(rss),
                        mib(now.1)
                    ));
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
    }

    fn logs(&self) -> String {
        ["bridge", "agent-0", "agent-1"].iter().filter_map(|n| self.alive.get(n)).map(Process::log_end).collect()
    }
}

/// Kills and watches.
///
/// # Errors
/// Something does not come back: who, after which death, with the seed and the logs' ends.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Section, Failure> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("chaos: seed {seed}");
    // Fate draws from its own numbers: how often a visit is tried until all is well must not change who dies next.
    let mut fate = fastrand::Rng::with_seed(seed);
    let mut rng = fate.fork();
    let question =
        format!("does everything come back from {} times kill -9, with no byte wrong? seed {seed}", args.kills);
    let columns =
        [("deaths", 0), ("well again after ms", 0), ("slowest ms", 0), ("fds more as survivor", 0), ("MiB more", 1)];
    let mut section = Section::new("chaos", question, &columns);

    let (mut world, file) = World::new(common, &mut rng)?;
    let story = |world: &World, what: &str, e: &str| format!("seed {seed}, {what}: {e}\n{}", world.logs());
    world.register().map_err(|e| story(&world, "registering", &e))?;
    wait_well(&mut world, &mut rng).map_err(|e| story(&world, "before any death", &e))?;
    let (echo, web) = (world.echo, world.web);
    let half = args.visitors.div_ceil(2);
    let crowds = [
        Crowd::start(half, rng.u64(..), Duration::ZERO, move |rng| visitor::echo(echo, rng)),
        Crowd::start(half, rng.u64(..), Duration::ZERO, move |_| {
            let body = visitor::http(web, "GET", "/file")?;
            let same = body == file;
            if same { Ok(body.len() as u64) } else { Err(visitor::Trouble::Corrupt("an HTTP body".to_owned())) }
        }),
    ];
    let mut healed: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for death in 1..=args.kills {
        // One in four comes not alone.
        let mut victims = vec![VICTIMS[fate.usize(..VICTIMS.len())]];
        let second = VICTIMS[fate.usize(..VICTIMS.len())];
        if fate.u8(..) < 64 && second != victims[0] {
            victims.push(second);
        }
        thread::sleep(Duration::from_millis(fate.u64(0..300)));
        for name in &victims {
            world.kill(name);
        }
        thread::sleep(Duration::from_millis(fate.u64(0..1500)));
        let back = Instant::now();
        for name in &victims {
            world.start(name).map_err(|e| story(&world, &format!("death {death} of {victims:?}"), &e))?;
        }
        wait_well(&mut world, &mut rng).map_err(|e| story(&world, &format!("death {death} of {victims:?}"), &e))?;
        let took = back.elapsed().as_secs_f64() * 1e3;
        eprintln!(
            "chaos: {death} of {}: {} killed, all well {took:.0} ms after restart",
            args.kills,
            victims.join(" and ")
        );
        for &name in &victims {
            healed.entry(name).or_default().push(took);
        }
        crowds.iter().for_each(Crowd::pause);
        world.weigh();
        crowds.iter().for_each(Crowd::resume);
    }
    // Those born late in the run must not escape: grown up, then loaded once more.
    for _ in 0..2 {
        thread::sleep(ADULT);
        crowds.iter().for_each(Crowd::pause);
        world.weigh();
        crowds.iter().for_each(Crowd::resume);
    }
    for (name, times) in &healed {
        let slowest = times.iter().copied().fold(0.0, f64::max);
        let middle = crate::report::median(times).expect("who is listed has died");
        let (descriptors, bytes) = world.most.get(name).copied().unwrap_or_default();
        let mib = bytes as f64 / f64::from(1 << 20);
        section.record(name, &[times.len() as f64, middle, slowest, descriptors as f64, mib]);
    }
    let mut violations = Vec::new();
    for (crowd, what) in crowds.iter().zip(["echo", "HTTP"]) {
        crowd.pause();
        let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        section.note(format!(
            "{what}: {} visits good, {:.1} GB compared, {} broken by a death",
            count(&crowd.tally.good),
            count(&crowd.tally.bytes) as f64 / 1e9,
            count(&crowd.tally.broken)
        ));
        violations.append(&mut crowd.tally.violations.lock().expect("no visitor panics"));
    }
    violations.append(&mut world.growth);
    for violation in violations.iter().take(20) {
        section.note(format!("VIOLATION: {violation}"));
    }
    section.hold("violations: wrong bytes, visitors left hanging, growth", violations.len() as f64, Goal::AtMost(0.0));
    Ok(section)
}

fn wait_well(world: &mut World, rng: &mut fastrand::Rng) -> Result<(), String> {
    let deadline = Instant::now() + RECOVERY_MAX;
    loop {
        match world.is_well(rng) {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
