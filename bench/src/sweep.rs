//! `bench sweep`: which way of moving bytes is cheapest, for streams of which size? One setting after the other on the bridge
//! and the agent (RINGSPAN_MOVER and its kin), streams of one size after each other through each, and the CPU of both.
//! What wins by more than noise should be the default; what the defaults are is in the first row.

use crate::probe::Common;
use crate::process::Failure;
use crate::product::{Carrier, Service, Tunnel};
use crate::report::{Section, median};
use crate::stage::{Stage, Who, small_stream, until_ready};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Rounds; every setting runs once in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Megabytes (10^6 bytes) of each size of stream, of 2,000 streams at most.
    #[arg(long, default_value_t = 400)]
    megabytes: u64,
    /// TLS on the link.
    #[arg(long)]
    tls: bool,
    /// One round of a tenth.
    #[arg(long)]
    short: bool,
    #[command(flatten)]
    who: Who,
}

/// Streams of these sizes.
const SIZES: [(&str, u64); 7] = [
    ("16 KiB", 16 << 10),
    ("64 KiB", 64 << 10),
    ("256 KiB", 256 << 10),
    ("1 MiB", 1 << 20),
    ("4 MiB", 4 << 20),
    ("16 MiB", 16 << 20),
    ("256 MiB", 256 << 20),
];

/// More streams of a size would measure their beginnings for minutes.
const STREAMS_MAX: u64 = 2_000;

/// Cheaper by less than this is noise.
const NOISE: f64 = 0.05;

/// One way of moving bytes.
struct Setting {
    name: String,
    carrier: Carrier,
    /// What bridge and agent are told.
    says: Vec<(&'static str, String)>,
}

fn settings() -> Vec<Setting> {
    let mut all = Vec::new();
    let mut add = |name: String, carrier, says: &[(&'static str, String)]| {
        all.push(Setting { name, carrier, says: says.to_vec() });
    };
    add("mux, as it is".into(), Carrier::Mux, &[]);
    for mover in ["copy", "splice", "ring-splice"] {
        add(format!("mux, mover {mover}"), Carrier::Mux, &[("RINGSPAN_MOVER", mover.into())]);
    }
    for kib in [4, 8, 32, 64] {
        let bytes = (kib << 10).to_string();
        add(format!("mux, splice from {kib} KiB"), Carrier::Mux, &[("RINGSPAN_SPLICE_BYTES", bytes)]);
    }
    for kib in [64, 128, 512, 1024] {
        let bytes = (kib << 10).to_string();
        add(format!("mux, pipes of {kib} KiB"), Carrier::Mux, &[("RINGSPAN_PIPE_BYTES", bytes)]);
    }
    add("direct".into(), Carrier::Direct, &[]);
    for kib in [256, 512, 1024, 2048, 4096, 8192] {
        let bytes = (kib << 10).to_string();
        add(format!("auto, moves after {kib} KiB"), Carrier::Auto, &[("RINGSPAN_MOVE_BYTES", bytes)]);
    }
    all
}

/// Sweeps.
///
/// # Errors
/// Nothing of it can be set up. A setting that breaks is a row that says so.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Section, Failure> {
    let stage = Stage::new(&args.who, common, true);
    let tls = if args.tls { "TLS 1.3" } else { "no TLS" };
    let question = format!(
        "what does a GB cost bridge and agent together, in CPU seconds, in streams of which size? {tls}, tunnel on core 0"
    );
    let columns: Vec<(&'static str, usize)> = SIZES.iter().map(|(name, _)| (*name, 3)).collect();
    let mut section = Section::new("sweep", question, &columns);
    let (rounds, megabytes) = if args.short { (1, args.megabytes / 10) } else { (args.rounds, args.megabytes) };
    let sink_at = stage.port(3);
    let folder = stage.scratch("sink")?;
    let _sink = stage.load("sink", &["sink", &sink_at.to_string()], sink_at, folder.path())?;
    for round in 0..rounds {
        for setting in settings().into_iter().filter(|it| stage.wants(&it.name)) {
            eprintln!("sweep: round {} of {rounds}, {}", round + 1, setting.name);
            let measured = measure(&stage, args, common, &setting, sink_at, megabytes * 1_000_000);
            section.record_or_fail(&setting.name, measured);
        }
    }
    for (column, (size, _)) in SIZES.iter().enumerate() {
        let figure = |name: &str| {
            let row = section.rows.iter().find(|row| row.contender == name)?;
            median(row.samples.get(column)?)
        };
        let figures: Vec<(String, f64)> =
            settings().into_iter().filter_map(|s| figure(&s.name).map(|f| (s.name, f))).collect();
        let Some((best, least)) = figures.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        let near: Vec<&str> = figures
            .iter()
            .filter(|(name, f)| *f <= least * (1.0 + NOISE) && name != best)
            .map(|(name, _)| name.as_str())
            .collect();
        let rest = if near.is_empty() { String::new() } else { format!("; within 5 %: {}", near.join(", ")) };
        section.note(format!("{size}: {best} is cheapest, {least:.3}{rest}"));
    }
    Ok(section)
}

fn measure(
    stage: &Stage<'_>,
    args: &Args,
    common: &Common,
    setting: &Setting,
    sink: SocketAddr,
    bytes: u64,
) -> Result<Vec<f64>, Failure> {
    let folder = stage.scratch("sweep")?;
    let entry = stage.port(2);
    let service = Service { name: "bench", listen: entry, backends: vec![sink] };
    let ports = (stage.port(0), stage.port(1));
    let mut tunnel = Tunnel::new(&common.ringspan, folder.path(), stage.core(0), ports, args.tls, &[service])?;
    tunnel.set_carrier(setting.carrier)?;
    tunnel.says.clone_from(&setting.says);
    let bridge = tunnel.start_bridge()?;
    tunnel.enrol_agent("agent", 0, 1, args.who.carriers())?;
    let agent = tunnel.start_agent("agent")?;
    let work = || {
        until_ready(&setting.name, || small_stream(entry))?;
        let cpu = || bridge.cpu_seconds_exact() + agent.cpu_seconds_exact();
        let mut figures = Vec::new();
        for (_, size) in SIZES {
            let count = (bytes / size).clamp(1, STREAMS_MAX);
            // One to warm up: sockets' buffers have grown, direct carriers wait.
            send(entry, size)?;
            let before = cpu();
            for _ in 0..count {
                send(entry, size)?;
            }
            figures.push((cpu() - before) / (count * size) as f64 * 1e9);
        }
        Ok::<_, Failure>(figures)
    };
    work().map_err(|e| format!("{e}\n{}\n{}", bridge.log_end(), agent.log_end()))
}

/// One stream to the sink, and its answer.
fn send(entry: SocketAddr, size: u64) -> Result<(), Failure> {
    let block = [7; 256 << 10];
    let work = || {
        let mut stream = TcpStream::connect(entry)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(&size.to_le_bytes())?;
        let mut left = size;
        while left > 0 {
            let n = left.min(block.len() as u64);
            stream.write_all(&block[..n as usize])?;
            left -= n;
        }
        stream.read_exact(&mut [0; 8])
    };
    work().map_err(|e| format!("a stream of {size} bytes: {e}"))
}
