//! A long wire between two network namespaces: packets are delayed, lost, queued at a rate, or swallowed, one by one.
//! IP packets by two TUN devices and a program of ours in between, since many kernels have no netem: so TCP at both
//! ends meets what it would meet on a real wire, retransmissions and silence included.
//!
//! ```text
//! here (10.77.0.1)  rs-here ═ delay, loss, rate, swallow ═ rs-there  (10.77.0.2) there
//! ```
//! Promise: packets stay in order; the queue before the bottleneck is bounded and drops what does not fit. Needs a
//! network namespace of our own (the bench makes one where it may) and /dev/net/tun.

use crate::process::{self, Failure, Process};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Where the visitors and the bridge are.
pub(crate) const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Where the agent and its backends are.
pub(crate) const THERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

const DEVICES: [&str; 2] = ["rs-here", "rs-there"];
const MTU: u16 = 1500;

/// What a wire is like, the same both ways.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Nature {
    /// Mbit/s at the bottleneck; 0: no bottleneck.
    pub(crate) mbit_per_s: f64,
    /// From end to end, one way.
    pub(crate) delay_ms: f64,
    /// Of a million packets, lost at random.
    pub(crate) lost_ppm: u32,
    /// Of the losses.
    pub(crate) seed: u64,
}

/// The two namespaces and what is between them. Dropped: all gone.
pub(crate) struct Wire {
    control: ChildStdin,
    /// Moves the packets.
    _mover: Process,
    /// Keeps the other namespace.
    holder: Process,
}

impl Wire {
    /// Lays it. The bench must be in a namespace of its own (`enter_own_namespace`).
    ///
    /// # Errors
    /// No right to make namespaces or TUN devices: what was refused.
    pub(crate) fn lay(nature: Nature, folder: &Path) -> Result<Wire, Failure> {
        let hold = process::command(Path::new("unshare"), &["--net", "sleep", "infinity"], None);
        let mut holder = Process::start("there", hold, folder)?;
        let nature = serde_json::to_string(&nature).expect("plain figures make JSON");
        let mover = process::command(&process::own_program(), &["child", "wire", &nature], None);
        let (mut mover, stdout, control) = Process::start_piped("wire", mover, folder)?;
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        if !line.starts_with("ready") {
            thread::sleep(Duration::from_millis(100));
            let ended = mover.exited().map_or(String::new(), |s| s.to_string());
            return Err(format!("no wire: {ended}. It needs root and /dev/net/tun\n{}", mover.log_end()));
        }
        let there = holder.pid().to_string();
        // unshare(1) must have been executed before its namespace can be named.
        let deadline = Instant::now() + process::START_TIMEOUT;
        while std::fs::read_link(format!("/proc/{there}/ns/net")).ok() == std::fs::read_link("/proc/self/ns/net").ok() {
            if holder.exited().is_some() || Instant::now() > deadline {
                return Err(format!("no second network namespace\n{}", holder.log_end()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        let net = format!("--net=/proc/{there}/ns/net");
        for (device, address, inside) in [(DEVICES[0], HERE, None), (DEVICES[1], THERE, Some(net.as_str()))] {
            if inside.is_some() {
                run("ip", &["link", "set", device, "netns", &there])?;
            }
            let address = format!("{address}/24");
            for words in [
                &["address", "add", &address, "dev", device][..],
                &["link", "set", device, "up"],
                &["link", "set", "lo", "up"],
            ] {
                match inside {
                    None => run("ip", words)?,
                    Some(net) => run("nsenter", &[&[net, "ip"][..], words].concat())?,
                }
            }
        }
        Ok(Wire { control, _mover: mover, holder })
    }

    /// From now on every packet is lost, both ways, or none is.
    ///
    /// # Errors
    /// The mover is gone.
    pub(crate) fn swallow(&mut self, all: bool) -> Result<(), Failure> {
        let word: &[u8] = if all { b"swallow\n" } else { b"carry\n" };
        self.control.write_all(word).and_then(|()| self.control.flush()).map_err(|e| format!("wire: {e}"))
    }

    /// What keeps the other namespace: enter it by `nsenter --net=/proc/PID/ns/net`.
    pub(crate) fn there(&self) -> u32 {
        self.holder.pid()
    }

    /// Runs a program there.
    pub(crate) fn command(&self, program: &Path, args: &[&str]) -> std::process::Command {
        command_in(self.there(), program, args)
    }
}

/// A program in the network namespace of a process.
pub(crate) fn command_in(pid: u32, program: &Path, args: &[&str]) -> std::process::Command {
    let (net, program) = (format!("--net=/proc/{pid}/ns/net"), program.to_string_lossy().into_owned());
    let mut all = vec![net.as_str(), &program];
    all.extend_from_slice(args);
    process::command(Path::new("nsenter"), &all, None)
}

fn run(program: &str, args: &[&str]) -> Result<(), Failure> {
    process::run(&format!("{program} {}", args.join(" ")), process::command(Path::new(program), args, None), &[0])
        .map(drop)
}

/// The mover, until its standard input ends.
///
/// # Errors
/// No TUN devices.
pub(crate) fn serve(nature: Nature) -> Result<(), Failure> {
    let device = |name: &str| {
        tun_rs::DeviceBuilder::new()
            .name(name)
            .mtu(MTU)
            .build_sync()
            .map(Arc::new)
            .map_err(|e| format!("TUN device {name}: {e}"))
    };
    let [here, there] = [device(DEVICES[0])?, device(DEVICES[1])?];
    let swallow = Arc::new(AtomicBool::new(false));
    for (from, to, salt) in [(here.clone(), there.clone(), 1), (there, here, 2)] {
        let (queue, due) = channel();
        let swallow = swallow.clone();
        thread::spawn(move || take(&from, nature, salt, &swallow, &queue));
        thread::spawn(move || give(&to, &due));
    }
    println!("ready");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        swallow.store(line == "swallow", Ordering::Relaxed);
    }
    Ok(())
}

/// A packet and when it comes out.
type Due = (Instant, Vec<u8>);

/// One direction's bottleneck: when is a packet through, if it is not lost?
struct Bottleneck {
    nature: Nature,
    rng: fastrand::Rng,
    free_at: Instant,
}

/// What the queue before the bottleneck holds, in time: one round trip of 200 ms, as people size buffers.
const QUEUE_MAX: Duration = Duration::from_millis(200);

impl Bottleneck {
    fn pass(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        if self.rng.u32(..1_000_000) < self.nature.lost_ppm {
            return None;
        }
        let begins = self.free_at.max(now);
        if begins.duration_since(now) > QUEUE_MAX {
            return None;
        }
        let takes = if self.nature.mbit_per_s > 0.0 { bytes as f64 * 8.0 / self.nature.mbit_per_s / 1e6 } else { 0.0 };
        self.free_at = begins + Duration::from_secs_f64(takes);
        Some(self.free_at + Duration::from_secs_f64(self.nature.delay_ms / 1e3))
    }
}

fn take(from: &tun_rs::SyncDevice, nature: Nature, salt: u64, swallow: &AtomicBool, queue: &Sender<Due>) {
    let rng = fastrand::Rng::with_seed(nature.seed ^ salt);
    let mut bottleneck = Bottleneck { nature, rng, free_at: Instant::now() };
    let mut packet = [0; MTU as usize + 64];
    // A device that is down says so until it is up.
    loop {
        match from.recv(&mut packet) {
            Ok(n) if !swallow.load(Ordering::Relaxed) => {
                if let Some(due) = bottleneck.pass(Instant::now(), n)
                    && queue.send((due, packet[..n].to_vec())).is_err()
                {
                    return;
                }
            }
            Ok(_) => {}
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn give(to: &tun_rs::SyncDevice, due: &Receiver<Due>) {
    for (at, packet) in due {
        // Sleeps are late by some 60 us, and all that is due then goes at once: fine beside a delay of milliseconds.
        let early = at.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            thread::sleep(early);
        }
        // A device that is not up loses the packet, as wires do.
        let _ = to.send(&packet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bottleneck keeps order, keeps its rate, drops what its queue does not hold, and loses as many as it was told.
    #[test]
    fn packets_are_delayed_queued_and_lost() {
        let nature = Nature { mbit_per_s: 12.0, delay_ms: 100.0, lost_ppm: 0, seed: 1 };
        let now = Instant::now();
        let mut it = Bottleneck { nature, rng: fastrand::Rng::with_seed(1), free_at: now };
        // 1500 bytes at 12 Mbit/s are a millisecond.
        let out: Vec<_> = (0..300).map_while(|_| it.pass(now, 1500)).collect();
        assert_eq!(out.len(), 201, "the queue holds 200 ms, and one is on its way");
        assert!(out.iter().zip(1..).all(|(&at, n)| at - now == Duration::from_millis(100 + n)));
        let mut it = Bottleneck { nature: Nature { lost_ppm: 10_000, mbit_per_s: 0.0, ..nature }, ..it };
        let lost = (0..100_000).filter(|_| it.pass(now + QUEUE_MAX * 2, 100).is_none()).count();
        assert!((700..1300).contains(&lost), "{lost} of 100,000");
    }
}
