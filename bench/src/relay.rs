//! `bench relay`: what does it cost to carry bytes and requests through bridge and agent, beside nothing at all, beside
//! one bare splice relay, and beside rathole?
//! Every contender is started afresh in every round, carries one thing, and is charged the user and system time of all
//! its processes (/proc/PID/stat) meanwhile. Source, sink, nginx and wrk are nobody's account.

use crate::load::Sent;
use crate::peers::{self, RatholeTransport};
use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{Service, Tunnel};
use crate::report::{Goal, Section};
use crate::wrk;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const CPU: &str = "CPU s/GB";
const RATE: &str = "Gbit/s";

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// One bulk stream of this many GB (10^9 bytes).
    #[arg(long, default_value_t = 4.0)]
    gigabytes: f64,
    /// Seconds of each wrk run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections of wrk.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Carriers of the agent's link.
    #[arg(long, default_value_t = 2)]
    carriers: usize,
    /// Let the kernel place the processes of the bulk scenario too. Without this the tunnel's have core 0, source and
    /// sink core 1.
    #[arg(long)]
    unpinned: bool,
    /// The rathole to stand beside. Default: target/peers (scripts/peers), then the PATH.
    #[arg(long, value_name = "PATH")]
    rathole: Option<PathBuf>,
    /// Only contenders whose name contains this.
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
}

/// Who carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Direct,
    Splice,
    Ringspan { tls: bool },
    Rathole(RatholeTransport),
}

const DIRECT: &str = "direct";
const SPLICE: &str = "floor splice relay";
const OURS: &str = "ringspan";
const OURS_TLS: &str = "ringspan, TLS 1.3";
const RATHOLE: &str = "rathole";
const RATHOLE_NOISE: &str = "rathole, noise";

const ALL: [(&str, Contender); 6] = [
    (DIRECT, Contender::Direct),
    (SPLICE, Contender::Splice),
    (OURS, Contender::Ringspan { tls: false }),
    (OURS_TLS, Contender::Ringspan { tls: true }),
    (RATHOLE, Contender::Rathole(RatholeTransport::Plain)),
    (RATHOLE_NOISE, Contender::Rathole(RatholeTransport::Noise)),
];

/// A contender that is up: where to go in, and whom to charge.
struct Running {
    entry: SocketAddr,
    processes: Vec<Process>,
}

impl Running {
    fn cpu_seconds(&self) -> f64 {
        self.processes.iter().map(Process::cpu_seconds).sum()
    }

    fn rss_mib(&self) -> f64 {
        self.processes.iter().map(Process::rss_bytes).sum::<u64>() as f64 / f64::from(1 << 20)
    }

    fn logs(&self) -> String {
        self.processes.iter().map(Process::log_end).collect::<Vec<_>>().join("\n")
    }
}

/// One scenario's surroundings.
struct Stage<'a> {
    args: &'a Args,
    common: &'a Common,
    rathole: Option<PathBuf>,
    pinned: bool,
}

impl Stage<'_> {
    fn port(&self, offset: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.common.port_base + offset))
    }

    fn core(&self, core: usize) -> Option<usize> {
        self.pinned.then_some(core)
    }

    fn contenders(&self, section: &mut Section) -> Vec<(&'static str, Contender)> {
        if self.rathole.is_none() {
            section.note("rathole is not installed (scripts/peers)");
        }
        let wanted = |name: &str| self.args.only.as_ref().is_none_or(|word| name.contains(word.as_str()));
        let there = |c: Contender| !matches!(c, Contender::Rathole(_)) || self.rathole.is_some();
        ALL.into_iter().filter(|&(name, c)| wanted(name) && there(c)).collect()
    }

    /// Starts a contender in a folder of its own, between its entry and `backend`.
    fn start(&self, contender: Contender, backend: SocketAddr, folder: &Path) -> Result<Running, Failure> {
        let (entry, core) = (self.port(2), self.core(0));
        match contender {
            Contender::Direct => Ok(Running { entry: backend, processes: Vec::new() }),
            Contender::Splice => {
                let (listen, to) = (entry.to_string(), backend.to_string());
                let command = process::command(&process::own_program(), &["child", "splice", &listen, &to], core);
                let mut relay = Process::start("splice", command, folder)?;
                relay.wait_listening(entry)?;
                Ok(Running { entry, processes: vec![relay] })
            }
            Contender::Ringspan { tls } => {
                let service = Service { name: "bench", listen: entry, backends: vec![backend] };
                let ports = (self.port(0), self.port(1));
                let tunnel = Tunnel::new(&self.common.ringspan, folder, core, ports, tls, &[service])?;
                let mut bridge = tunnel.start_bridge()?;
                bridge.wait_listening(entry)?;
                tunnel.enrol_agent("agent", 0, 1, self.args.carriers)?;
                let agent = tunnel.start_agent("agent")?;
                Ok(Running { entry, processes: vec![bridge, agent] })
            }
            Contender::Rathole(transport) => {
                let program = self.rathole.as_deref().expect("contenders() left it out otherwise");
                let ports = (self.port(1), entry, backend);
                Ok(Running { entry, processes: peers::start_rathole(program, folder, core, transport, ports)? })
            }
        }
    }

    fn scratch(&self, name: &str) -> Result<tempfile::TempDir, Failure> {
        let prefix = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&self.common.folder)
            .map_err(|e| format!("scratch folder: {e}"))
    }
}

fn stage<'a>(args: &'a Args, common: &'a Common, pinned: bool) -> Stage<'a> {
    Stage { args, common, rathole: peers::rathole(args.rathole.as_deref()), pinned }
}

/// One bulk stream.
///
/// # Errors
/// A contender does not work; with its log.
pub(crate) fn bulk(args: &Args, common: &Common) -> Result<Section, Failure> {
    let stage = stage(args, common, !args.unpinned);
    let bytes = (args.gigabytes * 1e9) as u64;
    let placed = if stage.pinned { "tunnel on core 0, source and sink on core 1" } else { "processes not pinned" };
    let question = format!("what does it cost to carry {} GB in one stream? {placed}", args.gigabytes);
    let mut section = Section::new("bulk", question, &[(RATE, 2), (CPU, 3), ("RSS MiB", 1)]);
    let contenders = stage.contenders(&mut section);

    let sink_at = stage.port(3);
    let folder = stage.scratch("sink")?;
    let command = process::command(&process::own_program(), &["child", "sink", &sink_at.to_string()], stage.core(1));
    let mut sink = Process::start("sink", command, folder.path())?;
    sink.wait_listening(sink_at)?;
    for round in 0..args.rounds {
        for &(name, contender) in &contenders {
            eprintln!("bulk: round {} of {}, {name}", round + 1, args.rounds);
            let folder = stage.scratch(name)?;
            let running = stage.start(contender, sink_at, folder.path())?;
            let send = || {
                until_ready(name, || small_stream(running.entry))?;
                let cpu = running.cpu_seconds();
                let sent = run_source(&stage, running.entry, bytes)?;
                Ok::<_, Failure>((sent, running.cpu_seconds() - cpu))
            };
            let (sent, cpu) = send().map_err(|e| format!("{name}: {e}\n{}", running.logs()))?;
            section.record(
                name,
                &[sent.bytes as f64 * 8e-9 / sent.seconds, cpu / sent.bytes as f64 * 1e9, running.rss_mib()],
            );
        }
    }
    section.compare(CPU, OURS, RATHOLE, Some(Goal::AtMost(0.45)));
    section.compare(RATE, OURS, RATHOLE, None);
    section.compare(CPU, OURS, SPLICE, None);
    section.compare(CPU, OURS_TLS, RATHOLE_NOISE, None);
    section.compare(CPU, OURS_TLS, OURS, None);
    Ok(section)
}

fn run_source(stage: &Stage<'_>, entry: SocketAddr, bytes: u64) -> Result<Sent, Failure> {
    let own = process::own_program();
    let (own, entry, bytes) = (own.to_string_lossy(), entry.to_string(), bytes.to_string());
    // timeout(1): a tunnel that stalls ends the run with an error, not never.
    let bounded = ["-s", "KILL", "600", &own, "child", "source", &entry, &bytes];
    let finished = process::run("source", process::command(Path::new("timeout"), &bounded, stage.core(1)), &[0])?;
    serde_json::from_str(finished.stdout.trim()).map_err(|e| format!("the source printed no result: {e}"))
}

/// Asks until it works: a tunnel is ready when a visitor is served, not when a port is open.
fn until_ready(name: &str, mut attempt: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + process::START_TIMEOUT;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(format!("{name} does not serve its first visitor: {e}")),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn connect(entry: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&entry, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

/// Eight bytes to the sink and its answer.
fn small_stream(entry: SocketAddr) -> Result<(), Failure> {
    let ask = || {
        let mut stream = connect(entry)?;
        stream.write_all(&8u64.to_le_bytes())?;
        stream.write_all(&[7; 8])?;
        stream.read_exact(&mut [0; 8])
    };
    ask().map_err(|e: std::io::Error| e.to_string())
}

/// One request to nginx and its answer.
fn small_request(entry: SocketAddr) -> Result<(), Failure> {
    let ask = || {
        let mut stream = connect(entry)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(answer) => Err(format!("answer {answer:?}")),
        Err(e) => Err(std::io::Error::to_string(&e)),
    }
}

/// HTTP to nginx: fresh connections, then kept ones.
///
/// # Errors
/// A contender or wrk does not work.
pub(crate) fn http(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    // Not pinned: wrk and nginx on one core would be the bottleneck, and every tunnel would look alike.
    let stage = stage(args, common, false);
    let backend = stage.port(4);
    let folder = stage.scratch("nginx")?;
    let _nginx = peers::start_nginx("nginx", folder.path(), backend, folder.path())?;
    let mut sections = Vec::new();
    for (name, fresh, what) in [
        ("http-fresh", true, "on a connection of its own each (Connection: close)"),
        ("http-kept", false, "on kept connections"),
    ] {
        let question = format!("requests to nginx {what}, {} visitors at once: how many, how late?", args.connections);
        let columns =
            [("requests/s", 0), ("p50 ms", 2), ("p99 ms", 2), ("CPU us/request", 1), ("RSS MiB", 1), ("errors", 0)];
        let mut section = Section::new(name, question, &columns);
        section.note("wrk is a closed loop: its p99 leaves out the requests that it did not make while it waited");
        let contenders = stage.contenders(&mut section);
        for round in 0..args.rounds {
            for &(contender_name, contender) in contenders.iter().filter(|(_, c)| *c != Contender::Splice) {
                eprintln!("{name}: round {} of {}, {contender_name}", round + 1, args.rounds);
                let folder = stage.scratch(contender_name)?;
                let running = stage.start(contender, backend, folder.path())?;
                let load = || {
                    until_ready(contender_name, || small_request(running.entry))?;
                    let cpu = running.cpu_seconds();
                    let result = wrk::run(running.entry, args.connections, args.seconds, fresh, stage.core(1))?;
                    Ok::<_, Failure>((result, running.cpu_seconds() - cpu))
                };
                let (result, cpu) = load().map_err(|e| format!("{contender_name}: {e}\n{}", running.logs()))?;
                section.record(
                    contender_name,
                    &[
                        result.requests_per_s,
                        result.p50_ms,
                        result.p99_ms,
                        cpu / result.requests.max(1) as f64 * 1e6,
                        running.rss_mib(),
                        result.errors as f64,
                    ],
                );
            }
        }
        section.compare("requests/s", OURS, RATHOLE, fresh.then_some(Goal::AtLeast(1.5)));
        section.compare("CPU us/request", OURS, RATHOLE, None);
        section.compare("requests/s", OURS_TLS, RATHOLE_NOISE, None);
        section.compare("requests/s", OURS, DIRECT, None);
        sections.push(section);
    }
    Ok(sections)
}
