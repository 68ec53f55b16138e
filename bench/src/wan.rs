//! `bench wan`: does the tunnel fill a long pipe?
//! Bridge and visitors on one side of a wire (wire.rs), agent and backend on the other: 100 Mbit/s at a round trip of 200 ms,
//! without loss and with some. One stream through the tunnel, beside one without a tunnel over the same wire, both ways.

use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{Carrier, Service, Tunnel};
use crate::report::{Goal, Section};
use crate::roles::{Found, Plan, Way};
use crate::stage::{AUTO, AUTO_TLS, MUX, NOBODY, until_ready};
use crate::wire::{HERE, Nature, THERE, Wire};
use std::net::SocketAddr;
use std::path::Path;

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement, after eight to get going.
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// The wire's rate, Mbit/s.
    #[arg(long, default_value_t = 100.0)]
    mbit: f64,
    /// The wire's round trip, ms.
    #[arg(long, default_value_t = 200.0)]
    rtt: f64,
    /// The second wire's losses, of a million packets.
    #[arg(long, default_value_t = 100)]
    lost_ppm: u32,
    /// One round of four seconds on the first wire: does everything run?
    #[arg(long)]
    short: bool,
    /// Only contenders whose name contains this.
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
}

const DOWN: &str = "down, Mbit/s";
const UP: &str = "up, Mbit/s";

/// Both wires.
///
/// # Errors
/// No wire, or a contender does not work.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    let clean = wire(args, common, "wan", 0)?;
    if args.short { Ok(vec![clean]) } else { Ok(vec![clean, wire(args, common, "wan-loss", args.lost_ppm)?]) }
}

fn wire(args: &Args, common: &Common, name: &'static str, lost_ppm: u32) -> Result<Section, Failure> {
    let (mbit, rtt) = (args.mbit, args.rtt);
    let question =
        format!("what does one stream get of {mbit} Mbit/s at a round trip of {rtt} ms, {lost_ppm} ppm lost?");
    let mut section = Section::new(name, question, &[(DOWN, 1), (UP, 1), ("CPU s/GB", 2)]);
    let nature = Nature { mbit_per_s: mbit, delay_ms: rtt / 2.0, lost_ppm, seed: 7 };
    let wire = Wire::lay(nature, &common.folder)?;
    let backend = SocketAddr::from((THERE, common.port_base + 3));
    let own = process::own_program();
    let serve = wire.command(&own, &["child", "roles", &backend.to_string()]);
    let mut backend_process = Process::start("backend", serve, &common.folder)?;
    backend_process.wait_listening(backend)?;
    let rounds = if args.short { 1 } else { args.rounds };
    let contenders = [
        (NOBODY, None),
        (MUX, Some((Carrier::Mux, false))),
        (AUTO, Some((Carrier::Auto, false))),
        (AUTO_TLS, Some((Carrier::Auto, true))),
    ];
    for round in 0..rounds {
        for &(who, how) in
            contenders.iter().filter(|(who, _)| args.only.as_ref().is_none_or(|w| who.contains(w.as_str())))
        {
            eprintln!("{name}: round {} of {rounds}, {who}", round + 1);
            section.record_or_fail(who, one(args, common, &wire, backend, (who, how)));
        }
    }
    for ours in [MUX, AUTO, AUTO_TLS] {
        for column in [DOWN, UP] {
            section.compare(column, ours, NOBODY, Some(Goal::AtLeast(0.9)));
        }
    }
    let congestion = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    section.note(format!("congestion control of all: {}", congestion.trim()));
    Ok(section)
}

/// One contender, both ways.
fn one(
    args: &Args,
    common: &Common,
    wire: &Wire,
    backend: SocketAddr,
    (who, how): (&str, Option<(Carrier, bool)>),
) -> Result<[f64; 3], Failure> {
    let folder = tempfile::tempdir_in(&common.folder).map_err(|e| format!("scratch folder: {e}"))?;
    let (entry, processes) = match how {
        None => (backend, Vec::new()),
        Some((carrier, tls)) => start(common, wire, folder.path(), backend, carrier, tls)?,
    };
    let cpu = || processes.iter().map(Process::cpu_seconds).sum::<f64>();
    let logs = |e| format!("{e}\n{}", processes.iter().map(Process::log_end).collect::<String>());
    until_ready(who, || crate::roles::echo_once(entry)).map_err(logs)?;
    let before = cpu();
    let [down, up] = [Way::Down, Way::Up].map(|way| goodput(args, entry, way));
    let (down, up) = (down.map_err(logs)?, up.map_err(logs)?);
    let bytes: u64 = down.bytes.iter().chain(&up.bytes).sum();
    let seconds = seconds(args);
    let mbit = |found: &Found| found.gbit_per_s(seconds) * 1e3;
    // The CPU of getting going is in it, its bytes are not: an upper bound.
    Ok([mbit(&down), mbit(&up), (cpu() - before) / bytes as f64 * 1e9])
}

fn start(
    common: &Common,
    wire: &Wire,
    folder: &Path,
    backend: SocketAddr,
    carrier: Carrier,
    tls: bool,
) -> Result<(SocketAddr, Vec<Process>), Failure> {
    let local = |offset| SocketAddr::from(([127, 0, 0, 1], common.port_base + offset));
    let link = SocketAddr::from((HERE, common.port_base + 1));
    let service = Service { name: "bench", listen: local(2), backends: vec![backend] };
    let mut tunnel = Tunnel::new(&common.ringspan, folder, None, (local(0), link), tls, &[service])?;
    tunnel.agents_in = Some(wire.there());
    tunnel.set_carrier(carrier)?;
    let bridge = tunnel.start_bridge()?;
    tunnel.enrol_agent("agent", 0, 1, 2)?;
    let agent = tunnel.start_agent("agent")?;
    Ok((local(2), vec![bridge, agent]))
}

fn seconds(args: &Args) -> f64 {
    if args.short { 4.0 } else { args.seconds }
}

fn goodput(args: &Args, entry: SocketAddr, way: Way) -> Result<Found, Failure> {
    let plan =
        Plan { entry, way, busy: 1, busy_rate: None, stalled: 0, askers: 0, warm_up: 8.0, seconds: seconds(args) };
    let found = crate::roles::in_a_child(&plan)?;
    if found.broken == 0 { Ok(found) } else { Err("the stream broke".to_owned()) }
}
