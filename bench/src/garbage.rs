//! `bench garbage`: rubbish, half a TLS hello, a slow-loris and thousands of idle connections on each port of a bridge,
//! while visitors on every other way in must keep getting answers and nothing may stay behind.

use crate::peers;
use crate::probe::Common;
use crate::process::{Failure, Process};
use crate::product::{Service, Tunnel};
use crate::report::{Goal, Section};
use crate::visitor::{self, Crowd};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Idle connections on each port. Each costs this process and the bridge a descriptor; on a visitors' port, the
    /// agent and nginx too.
    #[arg(long, default_value_t = 5000)]
    idle: usize,
    /// Connections of each other kind of attack.
    #[arg(long, default_value_t = 200)]
    connections: usize,
    /// Seconds that slow and idle connections are held.
    #[arg(long, default_value_t = 5)]
    hold_seconds: u64,
    /// Seed of the rubbish. Default: random, and printed.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Attack {
    Rubbish,
    HalfHello,
    SlowLoris,
    Idle,
}

/// A TLS 1.3 ClientHello's record header that promises 512 bytes, and the first of them (RFC 8446, section 5.1).
const HALF_HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0x5a, 0x5a, 0x5a];
/// What a slow-loris dribbles: the beginning of a request that never ends.
const DRIBBLE: &[u8] = b"GET /nacos/v1/ns/instance/list?serviceName=kept HTTP/1.1\r\nX-Slow: ";
/// After the attackers have left, the bridge must be as light as before within this long: the time it may grant a
/// half-open handshake or request, with room.
const RELIEF_MAX: Duration = Duration::from_secs(20);
/// A visitor's answer may take this long while a port beside it is under attack, on two cores that the attackers share.
const ANSWER_MAX_MS: f64 = 2000.0;
const DESCRIPTORS_SLACK: usize = 16;

/// Attacks each port in turn.
///
/// # Errors
/// Bridge, agent or nginx do not come up.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Section, Failure> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("garbage: seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let port = |offset: u16| SocketAddr::from(([127, 0, 0, 1], common.port_base + offset));
    let (api, link, web, backend) = (port(0), port(1), port(2), port(4));
    let service = Service { name: "web", listen: web, backends: vec![backend] };
    let tunnel = Tunnel::new(&common.ringspan, &common.folder, None, (api, link), true, &[service])?;
    let _nginx = peers::start_nginx("nginx", &common.folder, backend, &common.folder)?;
    let mut bridge = tunnel.start_bridge()?;
    tunnel.enrol_agent("agent", 0, 1, 2)?;
    let mut agent = tunnel.start_agent("agent")?;
    let ready = Instant::now() + Duration::from_secs(20);
    while let Err(e) = visitor::http(web, "GET", "/") {
        if Instant::now() > ready {
            return Err(format!("the tunnel does not serve: {e}\n{}\n{}", bridge.log_end(), agent.log_end()));
        }
        thread::sleep(Duration::from_millis(50));
    }

    let question = format!(
        "does anybody notice {} idle connections and {} bad ones on a port? seed {seed}",
        args.idle, args.connections
    );
    let columns = [
        ("answers", 0),
        ("failed", 0),
        ("slowest ms", 0),
        ("accepted", 0),
        ("closed by us", 0),
        ("fds before", 0),
        ("at peak", 0),
        ("after", 0),
        ("MiB before", 1),
        ("after ", 1),
    ];
    let mut section = Section::new("garbage", question, &columns);
    let mut failures = 0;
    let mut slowest = 0f64;
    for (victim, address) in [("registry", api), ("link", link), ("visitors", web)] {
        for attack in [Attack::Rubbish, Attack::HalfHello, Attack::SlowLoris, Attack::Idle] {
            eprintln!("garbage: {attack:?} on the {victim} port");
            let before = (bridge.descriptors() + agent.descriptors(), bridge.rss_bytes());
            // One visitor for the tunnel, one for the registry: both stay well whichever port is attacked.
            let crowds = [(web, "/"), (api, "/nacos/v1/ns/service/list?pageNo=1&pageSize=10")].map(|(entry, path)| {
                Crowd::start(1, rng.u64(..), Duration::from_millis(20), move |_| {
                    visitor::http(entry, "GET", path).map(|body| body.len() as u64)
                })
            });
            let count = if matches!(attack, Attack::Idle) { args.idle } else { args.connections };
            let hold = Duration::from_secs(args.hold_seconds);
            let felt = strike(attack, address, count, hold, &mut rng, || bridge.descriptors() + agent.descriptors());
            crowds.iter().for_each(Crowd::pause);
            let mut row = [0.0; 3];
            for crowd in &crowds {
                let tally = &crowd.tally;
                let broken = tally.broken.load(Ordering::Relaxed);
                let hanging = tally.violations.lock().expect("no visitor panics").len() as u64;
                if broken > 0 {
                    let last = tally.last_broken.lock().expect("no visitor panics");
                    section.note(format!("{attack:?} on the {victim} port: last failure: {last}"));
                }
                row[0] += tally.good.load(Ordering::Relaxed) as f64;
                row[1] += (broken + hanging) as f64;
                row[2] = row[2].max(tally.longest_us.load(Ordering::Relaxed) as f64 / 1e3);
                failures += broken + hanging;
            }
            slowest = slowest.max(row[2]);
            drop(crowds);
            let deadline = Instant::now() + RELIEF_MAX;
            while bridge.descriptors() + agent.descriptors() > before.0 + DESCRIPTORS_SLACK && Instant::now() < deadline
            {
                thread::sleep(Duration::from_millis(100));
            }
            let after = (bridge.descriptors() + agent.descriptors(), bridge.rss_bytes());
            if after.0 > before.0 + DESCRIPTORS_SLACK {
                failures += 1;
                section.note(format!("{attack:?} on the {victim} port: descriptors stay behind"));
            }
            still_there(&mut bridge)?;
            still_there(&mut agent)?;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            section.record(
                &format!("{victim}: {attack:?}"),
                &[
                    row[0],
                    row[1],
                    row[2],
                    felt.accepted as f64,
                    felt.closed as f64,
                    before.0 as f64,
                    felt.peak as f64,
                    after.0 as f64,
                    mib(before.1),
                    mib(after.1),
                ],
            );
        }
    }
    section.note(
        "fds: bridge and agent together; closed by us: connections that the bridge had ended while they were held",
    );
    section.hold("visitors that failed, descriptors left behind", failures as f64, Goal::AtMost(0.0));
    section.hold("slowest answer, ms", slowest, Goal::AtMost(ANSWER_MAX_MS));
    Ok(section)
}

fn still_there(process: &mut Process) -> Result<(), Failure> {
    match process.exited() {
        Some(status) => Err(format!("{} died of it: {status}\n{}", process.name, process.log_end())),
        None => Ok(()),
    }
}

/// What the attackers saw.
struct Felt {
    accepted: usize,
    closed: usize,
    peak: usize,
}

fn strike(
    attack: Attack,
    address: SocketAddr,
    count: usize,
    hold: Duration,
    rng: &mut fastrand::Rng,
    descriptors: impl Fn() -> usize,
) -> Felt {
    let mut held = Vec::new();
    for _ in 0..count {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else { continue };
        // Errors: the bridge has hung up on us, which is an answer.
        let _ = match attack {
            Attack::Rubbish => {
                let mut bytes = vec![0; rng.usize(1..=16 << 10)];
                rng.fill(&mut bytes);
                stream.set_write_timeout(Some(Duration::from_millis(200))).and_then(|()| stream.write_all(&bytes))
            }
            Attack::HalfHello => stream.write_all(HALF_HELLO),
            Attack::SlowLoris => stream.write_all(&DRIBBLE[..1]),
            Attack::Idle => Ok(()),
        };
        held.push(stream);
    }
    let accepted = held.len();
    let mut peak = descriptors();
    let until = Instant::now() + hold;
    let mut next = 1;
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(100));
        peak = peak.max(descriptors());
        if matches!(attack, Attack::SlowLoris) {
            for stream in &mut held {
                let _ = stream.write_all(&DRIBBLE[next..=next]);
            }
            next = (next + 1).min(DRIBBLE.len() - 1);
        }
    }
    let closed = held.iter_mut().filter_map(|s| is_closed(s).then_some(())).count();
    Felt { accepted, closed, peak }
}

/// Whether the other side has ended the connection, after whatever it had to say.
fn is_closed(stream: &mut TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}
