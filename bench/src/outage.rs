//! `bench outage`: how soon is a silent cut noticed, and how soon is all well after it?
//! Bridge and visitors on one side of a wire (wire.rs), agent and backend on the other. From one moment on the wire
//! swallows every packet, both ways: no FIN, no reset, no answer. The bridge must say that the agent is gone, and, when the
//! wire carries again, a visitor must be served soon: after a short outage and after long ones, whatever the agent's
//! patience has grown to.

use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{Service, Tunnel};
use crate::report::{Goal, Section};
use crate::roles::echo_once;
use crate::stage::until_ready;
use crate::wire::{HERE, Nature, THERE, Wire};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Seconds of silence, each once a round; more than 10, or nobody need notice.
    #[arg(long, value_delimiter = ',', default_values_t = [12, 20, 45])]
    outages: Vec<u64>,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// One outage of 12 s: does everything run?
    #[arg(long)]
    short: bool,
}

const DEAD: &str = "found dead after s";
const BACK: &str = "served again after s";

/// The wire: a fair one, so that nothing but the outage is in the figures.
const NATURE: Nature = Nature { mbit_per_s: 0.0, delay_ms: 10.0, lost_ppm: 0, seed: 1 };

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Cuts and waits.
///
/// # Errors
/// No wire, or nobody comes back.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Section, Failure> {
    let question = "how soon is an agent that fell silent found dead, and back when the network is?";
    let mut section = Section::new("outage", question, &[(DEAD, 2), (BACK, 2)]);
    let mut wire = Wire::lay(NATURE, &common.folder)?;
    let local = |offset| SocketAddr::from(([127, 0, 0, 1], common.port_base + offset));
    let backend = SocketAddr::from((THERE, common.port_base + 3));
    let link = SocketAddr::from((HERE, common.port_base + 1));
    let own = process::own_program();
    let serve = wire.command(&own, &["child", "roles", &backend.to_string()]);
    let mut backend_process = Process::start("backend", serve, &common.folder)?;
    backend_process.wait_listening(backend)?;
    let service = Service { name: "bench", listen: local(2), backends: vec![backend] };
    let mut tunnel = Tunnel::new(&common.ringspan, &common.folder, None, (local(0), link), true, &[service])?;
    tunnel.agents_in = Some(wire.there());
    let bridge = tunnel.start_bridge()?;
    tunnel.enrol_agent("agent", 0, 1, 2)?;
    let agent = tunnel.start_agent("agent")?;
    let logs = |e: Failure| format!("{e}\n{}\n{}", bridge.log_end(), agent.log_end());
    until_ready("the tunnel", || echo_once(local(2))).map_err(logs)?;
    let outages = if args.short { &args.outages[..1] } else { &args.outages[..] };
    for round in 0..if args.short { 1 } else { args.rounds } {
        for &seconds in outages {
            eprintln!("outage: round {}, {seconds} s", round + 1);
            // A link that is young, and one that is stable: both happen.
            thread::sleep(Duration::from_secs(2));
            let outage = Duration::from_secs(seconds);
            wire.swallow(true)?;
            let cut = Instant::now();
            let dead = loop {
                if tunnel.agents().map_err(logs)?.1 == 0 {
                    break cut.elapsed().as_secs_f64();
                }
                if cut.elapsed() > outage {
                    break f64::INFINITY;
                }
                thread::sleep(LOOK_EVERY);
            };
            thread::sleep(outage.saturating_sub(cut.elapsed()));
            wire.swallow(false)?;
            let healed = Instant::now();
            let back = loop {
                if echo_once(local(2)).is_ok() {
                    break healed.elapsed().as_secs_f64();
                }
                if healed.elapsed() > Duration::from_secs(60) {
                    return Err(logs(format!("not back 60 s after an outage of {seconds} s")));
                }
                thread::sleep(LOOK_EVERY);
            };
            section.record(&format!("{seconds} s of silence"), &[dead, back]);
        }
    }
    for seconds in outages {
        let row = format!("{seconds} s of silence");
        let most = |column: usize| {
            let rows = section.rows.iter().filter(|r| r.contender == row);
            rows.flat_map(|r| &r.samples[column]).copied().fold(0.0, f64::max)
        };
        let (dead, back) = (most(0), most(1));
        section.hold(&format!("{row}, {DEAD}, the worst"), dead, Goal::AtMost(10.0));
        section.hold(&format!("{row}, {BACK}, the worst"), back, Goal::AtMost(2.0));
    }
    Ok(section)
}
