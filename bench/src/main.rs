//! `bench`: the product beside bare loops and beside its peers, in one run, as ratios.
//!
//! `bench probe`, `bench million`, `bench relay` (both parts), `bench bulk`, `bench http`: figures. `bench nacos12068`,
//! `bench blackhole`: are verdicts right and in time? `bench chaos`, `bench garbage`:
//! does it hold when processes are killed and ports are fed rubbish? Each starts the release binary `ringspan` that
//! lies beside this program, and needs nothing that runs already.

mod blackhole;
mod cable;
mod chaos;
mod driver;
mod fairness;
mod floor;
mod garbage;
mod idle;
mod load;
mod machine;
mod million;
mod nacos12068;
mod outage;
mod peers;
mod probe;
mod process;
mod product;
mod registry;
mod relay;
mod reload;
mod report;
mod roles;
mod soak;
mod stage;
mod sweep;
mod visitor;
mod wan;
mod watch;
mod wire;
mod world;
mod wrk;

use clap::{Parser, Subcommand};
use machine::Machine;
use probe::Common;
use process::Failure;
use report::{Report, Section};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// The product beside bare loops and beside its peers, in one run, as ratios.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    after_help = "Examples:\n  \
        bench probe --scale --json probe.json    CPU per probe beside floors and peers; 100,000 targets on one core\n  \
        bench nacos12068                         80,000 HTTP targets, 12 minutes; --short: 2\n  \
        bench million                            a million TCP targets, 3 minutes\n  \
        bench blackhole                          15,000 probes in flight that nobody answers\n  \
        bench relay                              CPU per GB and requests per second beside rathole\n  \
        bench registry                           registrations, queries, pushes, memory beside r-nacos\n  \
        bench checks                             80,000 instances with HTTP checks through the API\n  \
        bench chaos --kills 50 --seed 7          kill -9 in random order under load\n  \
        bench garbage                            rubbish and idle connections on every port\n\n\
        Exit codes: 0 all promises kept, 1 one missed, 2 it could not be run."
)]
struct Cli {
    /// The binary under measurement. Default: `ringspan` beside this program.
    #[arg(long, global = true, value_name = "PATH")]
    ringspan: Option<PathBuf>,
    /// Write the whole report to this file, every round's figures in it.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// First of the ports that may be used: ten, and a hundred by nacos12068.
    #[arg(long, global = true, default_value_t = 23000)]
    port_base: u16,
    /// Keep configuration files and logs.
    #[arg(long, global = true)]
    keep: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What does one TCP probe cost, beside bare loops and HAProxy?
    Probe(probe::Args),
    /// 80,000 HTTP targets: is anybody called dead who lives, and is who dies found in time?
    Nacos12068(nacos12068::Args),
    /// A million TCP targets: memory, lateness, and coming and going.
    Million(million::Args),
    /// Nobody answers: is each of many thousand probes in flight timed out when its time is over?
    Blackhole(blackhole::Args),
    /// Bulk and HTTP, one after the other.
    Relay(relay::Args),
    /// What does one GB cost through bridge and agent, beside a splice relay and rathole?
    Bulk(relay::Args),
    /// Which way of moving bytes is cheapest, for streams of which size?
    Sweep(sweep::Args),
    /// How many requests go through, on fresh and on kept connections, beside rathole?
    Http(relay::Args),
    /// What does an idle stream take in memory, beside rathole and frp?
    Idle(idle::Args),
    /// Does a visitor suffer from one who never reads, or from bulk beside it?
    Fairness(fairness::Args),
    /// Does the tunnel fill 100 Mbit/s at a round trip of 200 ms, beside no tunnel on the same wire?
    Wan(wan::Args),
    /// How soon is a silent cut noticed, and how soon is all well after it?
    Outage(outage::Args),
    /// Does anybody notice when the configuration changes, or the bridge is replaced?
    Reload(reload::Args),
    /// How many registrations, queries and pushes, and how much memory, beside r-nacos?
    Registry(registry::Args),
    /// 80,000 persistent instances with HTTP checks: is anybody called dead who lives, and does the API answer?
    Checks(registry::checks::Args),
    /// Does it hold at full speed on a bad network, every byte checked, and does nothing grow?
    Soak(soak::Args),
    /// Does everything come back from kill -9, in any order, under load?
    Chaos(chaos::Args),
    /// Does anybody notice rubbish and idle connections on every port?
    Garbage(garbage::Args),
    /// A load generator or a floor; started by the others.
    #[command(subcommand, hide = true)]
    Child(Child),
}

#[derive(Debug, Subcommand)]
enum Child {
    Accept { listen: Vec<SocketAddr> },
    Echo { listen: SocketAddr },
    Sink { listen: SocketAddr },
    Source { connect: SocketAddr, bytes: u64 },
    Splice { listen: SocketAddr, connect: SocketAddr },
    Messages { listen: SocketAddr, connect: SocketAddr },
    Roles { listen: SocketAddr },
    Crowd { plan: String },
    Hold { connect: SocketAddr, count: usize },
    Subscribers { plan: String },
    Vault { listen: SocketAddr },
    Herd { bridge: SocketAddr, token: String, count: usize },
    Wire { nature: String },
    World { plan: String },
    Prober { task: String },
    Churn { task: String },
    Floor { method: String, count: usize, in_flight: usize, targets: Vec<SocketAddr> },
}

fn child(child: Child) -> Result<(), Failure> {
    let print = |json: serde_json::Result<String>| println!("{}", json.expect("plain figures make JSON"));
    match child {
        Child::Accept { listen } => load::accept_and_close(&listen),
        Child::Echo { listen } => load::listen(listen).and_then(load::echo),
        Child::Sink { listen } => load::listen(listen).and_then(load::sink),
        Child::Source { connect, bytes } => {
            load::source(connect, bytes).map(|sent| print(serde_json::to_string(&sent)))
        }
        Child::Splice { listen, connect } => floor::splice(listen, connect),
        Child::Messages { listen, connect } => floor::messages(listen, connect),
        Child::Roles { listen } => roles::serve(listen),
        Child::Crowd { plan } => {
            let plan = serde_json::from_str(&plan).map_err(|e| format!("crowd: plan: {e}"))?;
            roles::crowd(&plan).map(|found| print(serde_json::to_string(&found)))
        }
        Child::Hold { connect, count } => roles::hold(connect, count),
        Child::Subscribers { plan } => {
            let plan = serde_json::from_str(&plan).map_err(|e| format!("subscribers: plan: {e}"))?;
            registry::subscribers::run(&plan).map(|found| print(serde_json::to_string(&found)))
        }
        Child::Vault { listen } => soak::vault::serve(listen),
        Child::Herd { bridge, token, count } => soak::run_herd(bridge, &token, count),
        Child::Wire { nature } => wire::serve(serde_json::from_str(&nature).map_err(|e| format!("wire: nature: {e}"))?),
        Child::World { plan } => {
            let plan = serde_json::from_str(&plan).map_err(|e| format!("world: plan: {e}"))?;
            world::serve(&plan)
        }
        Child::Prober { task } => {
            let task = serde_json::from_str(&task).map_err(|e| format!("prober: task: {e}"))?;
            driver::run(&task)
        }
        Child::Churn { task } => {
            let task = serde_json::from_str(&task).map_err(|e| format!("churn: task: {e}"))?;
            million::run_churn(&task)
        }
        Child::Floor { method, count, in_flight, targets } => {
            floor::probe(&method, count, in_flight, &targets).map(|ran| print(serde_json::to_string(&ran)))
        }
    }
}

fn scenario(cli: &Cli, common: &Common) -> Result<Vec<Section>, Failure> {
    match &cli.command {
        Command::Probe(args) => probe::run(args, common),
        Command::Nacos12068(args) => nacos12068::run(args, common),
        Command::Million(args) => million::run(args, common),
        Command::Blackhole(args) => Ok(vec![blackhole::run(args, common)?]),
        Command::Relay(args) => {
            let mut sections = vec![relay::bulk(args, common)?];
            sections.extend(relay::http(args, common)?);
            Ok(sections)
        }
        Command::Bulk(args) => Ok(vec![relay::bulk(args, common)?]),
        Command::Sweep(args) => Ok(vec![sweep::run(args, common)?]),
        Command::Http(args) => relay::http(args, common),
        Command::Idle(args) => Ok(vec![idle::run(args, common)?]),
        Command::Fairness(args) => fairness::run(args, common),
        Command::Wan(args) => wan::run(args, common),
        Command::Outage(args) => Ok(vec![outage::run(args, common)?]),
        Command::Reload(args) => Ok(vec![reload::run(args, common)?]),
        Command::Registry(args) => registry::run(args, common),
        Command::Checks(args) => Ok(vec![registry::checks::run(args, common)?]),
        Command::Soak(args) => soak::run(args, common),
        Command::Chaos(args) => Ok(vec![chaos::run(args, common)?]),
        Command::Garbage(args) => Ok(vec![garbage::run(args, common)?]),
        Command::Child(_) => unreachable!("main took it"),
    }
}

fn run(cli: &Cli) -> Result<bool, Failure> {
    let machine = Machine::read();
    println!("{machine}");
    let folder =
        tempfile::Builder::new().prefix("ringspan-bench-").tempdir().map_err(|e| format!("temporary folder: {e}"))?;
    let common = Common {
        ringspan: product::program(cli.ringspan.as_deref())?,
        port_base: cli.port_base,
        folder: folder.path().to_owned(),
    };
    let result = scenario(cli, &common);
    if cli.keep {
        eprintln!("files are in {}", folder.keep().display());
    }
    let report = Report { machine, sections: result? };
    for section in &report.sections {
        println!("{section}");
    }
    print!("{report}");
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(&report).expect("plain figures make JSON");
        product::write(path, &(text + "\n"))?;
    }
    Ok(report.sections.iter().all(Section::goals_met))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    use Command::{Checks, Outage, Probe, Registry, Wan};
    if let Probe(_) | Wan(_) | Outage(_) | Registry(_) | Checks(_) = cli.command {
        probe::enter_own_namespace();
    }
    let outcome = match cli.command {
        Command::Child(it) => child(it).map(|()| true),
        _ => run(&cli),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::from(2)
        }
    }
}
