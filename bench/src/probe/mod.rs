//! `bench probe`: what does one probe cost, beside the bare loops and beside others who do the same?
//! One server on core 1; the contenders take turns on core 0, several rounds, so that the noise of the machine meets all
//! of them: TCP (`tcp`), HTTP (`http`), and with `--scale`: does one core keep 100,000 targets on time (`scale`)?
//! Runs in a network namespace of its own where it may: the kernel's counter of connections opened (ActiveOpens) then
//! counts the contender's and nobody else's.

mod counts;
mod http;
mod namespace;
mod scale;
mod tcp;

use crate::floor;
use crate::process::{self, Failure, Process};
use crate::product;
use crate::report::Section;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use namespace::enter_own_namespace;

/// The core of whoever probes, and the core of those who are probed.
const CORE_PROBER: usize = 0;
const CORE_SERVER: usize = 1;
/// Addresses the server listens on, 127.0.1.1 and up: enough that no accept queue is a bottleneck.
const SERVERS: u32 = 16;
/// Probes at once in every saturated run.
const IN_FLIGHT: usize = 512;
/// Before HAProxy is measured: it spreads the start of its checks.
const HAPROXY_WARM_UP: Duration = Duration::from_secs(2);

const CPU: &str = "CPU us/probe";
const RATE: &str = "probes/s";
const OUTSIDE: &str = "CPU us/probe, from outside";

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Probes of one contender in one round.
    #[arg(long, default_value_t = 200_000)]
    count: usize,
    /// One round of 50,000 probes: does everything run?
    #[arg(long)]
    short: bool,
    /// Targets of the product in the saturated runs.
    #[arg(long, default_value_t = 20_000)]
    targets: usize,
    /// Seconds that HAProxy is watched in one round.
    #[arg(long, default_value_t = 5)]
    haproxy_seconds: u64,
    /// Only contenders whose name contains this.
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Only this part.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Also: 100,000 targets at 5 s on one core.
    #[arg(long)]
    scale: bool,
    /// Targets of the scale run.
    #[arg(long, default_value_t = 100_000)]
    scale_targets: u32,
    /// Seconds of the scale run; a multiple of 5.
    #[arg(long, default_value_t = 30)]
    scale_seconds: u64,
}

/// One of the questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// TCP probes.
    Tcp,
    /// HTTP probes.
    Http,
    /// 100,000 targets.
    Scale,
}

impl Args {
    fn rounds(&self) -> usize {
        if self.short { 1 } else { self.rounds }
    }

    fn count(&self) -> usize {
        if self.short { self.count.min(50_000) } else { self.count }
    }

    fn wants(&self, contender: &str) -> bool {
        self.only.as_ref().is_none_or(|word| contender.contains(word.as_str()))
    }

    fn wants_part(&self, part: Part) -> bool {
        self.part.map_or(part != Part::Scale || self.scale, |only| only == part)
    }
}

/// The settings that every scenario shares.
#[derive(Debug)]
pub(crate) struct Common {
    /// The binary under measurement.
    pub(crate) ringspan: PathBuf,
    /// First of the ports that the scenario may use: ten, and a hundred for nacos12068.
    pub(crate) port_base: u16,
    /// Configuration files and logs.
    pub(crate) folder: PathBuf,
}

fn servers(port: u16) -> Vec<SocketAddr> {
    (0..SERVERS).map(|i| (Ipv4Addr::from(0x7f00_0101 + i), port).into()).collect()
}

/// Runs what was asked for.
///
/// # Errors
/// The server or a contender does not work; with its log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    let port = common.port_base;
    let mut sections = Vec::new();
    if args.wants_part(Part::Tcp) || args.wants_part(Part::Scale) {
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port + 1));
        let mut listen: Vec<String> = servers(port).iter().map(SocketAddr::to_string).collect();
        listen.push(everywhere.to_string());
        let mut child_args = vec!["child", "accept"];
        child_args.extend(listen.iter().map(String::as_str));
        let command = process::command(&process::own_program(), &child_args, Some(CORE_SERVER));
        let mut server = Process::start("server", command, &common.folder)?;
        server.wait_listening(everywhere)?;
        if args.wants_part(Part::Tcp) {
            sections.push(tcp::run(args, common, port)?);
        }
        if args.wants_part(Part::Scale) {
            sections.push(scale::run(args, common, port + 1)?);
        }
        if let Some(status) = server.exited() {
            return Err(format!("the server ended: {status}\n{}", server.log_end()));
        }
    }
    if args.wants_part(Part::Http) {
        sections.push(http::run(args, common, port + 2)?);
    }
    Ok(sections)
}

fn run_floor(method: &str, count: usize, targets: &[SocketAddr]) -> Result<[f64; 3], Failure> {
    let (count_arg, depth) = (count.to_string(), IN_FLIGHT.to_string());
    let targets: Vec<String> = targets.iter().map(SocketAddr::to_string).collect();
    let mut child_args = vec!["child", "floor", method, &count_arg, &depth];
    child_args.extend(targets.iter().map(String::as_str));
    let command = process::command(&process::own_program(), &child_args, Some(CORE_PROBER));
    let finished = process::run(&format!("floor {method}"), command, &[0])?;
    let ran: floor::Ran = serde_json::from_str(finished.stdout.trim())
        .map_err(|e| format!("floor {method} printed no result: {e}: {}", finished.stdout))?;
    if ran.up != count {
        return Err(format!("floor {method}: {} of {count} probes came out up; the server is not well", ran.up));
    }
    let per = 1e6 / count as f64;
    Ok([count as f64 / ran.seconds, ran.cpu_seconds * per, finished.cpu_seconds * per])
}

pub(crate) fn write_targets(path: &Path, targets: impl Iterator<Item = SocketAddr>) -> Result<String, Failure> {
    let mut text = String::new();
    for target in targets {
        writeln!(text, "{target}").expect("a String takes everything");
    }
    product::write(path, &text)?;
    Ok(path.to_string_lossy().into_owned())
}
