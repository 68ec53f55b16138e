//! `bench reload`: does anybody notice when the configuration changes, or when the bridge is replaced?
//! Visitors ask all the while: some on a fresh connection each, some ten times over half a second on a kept one. Meanwhile
//! (1) the bridge's file changes again and again: a listener comes and goes; (2) the bridge is started again beside the
//! running one, which hands over its listening sockets, finishes what it carries, and ends. Every request that fails counts.

use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{Service, Tunnel};
use crate::report::{Goal, Section};
use crate::roles::echo_once;
use crate::stage::until_ready;
use crate::visitor::{Crowd, Trouble};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Changes of the file.
    #[arg(long, default_value_t = 30)]
    changes: usize,
    /// Restarts.
    #[arg(long, default_value_t = 5)]
    restarts: usize,
    /// Three changes and one restart: does everything run?
    #[arg(long)]
    short: bool,
}

/// Who asks: this many on fresh connections, and as many on kept ones.
const VISITORS: usize = 4;
/// Requests of one kept connection, and what is between them.
const ASKS: usize = 10;
const BETWEEN: Duration = Duration::from_millis(50);
/// How long the old bridge may take to end: its visitors stay half a second.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Changes and replaces.
///
/// # Errors
/// A bridge does not come up, or the old one does not go; with its log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Section, Failure> {
    let (changes, restarts) = if args.short { (3, 1) } else { (args.changes, args.restarts) };
    let question =
        format!("does anybody notice {changes} changes of the configuration and {restarts} restarts of the bridge?");
    let columns = [("requests", 0), ("failed", 0), ("slowest ms", 1)];
    let mut section = Section::new("reload", question, &columns);
    let local = |offset| SocketAddr::from(([127, 0, 0, 1], common.port_base + offset));
    let (entry, extra, backend) = (local(2), local(4), local(3));
    let child = ["child", "roles", &backend.to_string()];
    let mut roles = Process::start("backend", process::command(&process::own_program(), &child, None), &common.folder)?;
    roles.wait_listening(backend)?;
    let service = |name, listen| Service { name, listen, backends: vec![backend] };
    let ports = (local(0), local(1));
    let mut tunnel = Tunnel::new(&common.ringspan, &common.folder, None, ports, true, &[service("bench", entry)])?;
    let mut bridge = tunnel.start_bridge()?;
    tunnel.enrol_agent("agent", 0, 1, 2)?;
    let agent = tunnel.start_agent("agent")?;
    until_ready("the tunnel", || echo_once(entry))
        .map_err(|e| e + "\n" + &bridge.log_end() + "\n" + &agent.log_end())?;

    let mut restarted = 0;
    let phases: [(&str, usize); 3] = [("nothing", 3), ("configuration", changes), ("restart", restarts)];
    for (phase, times) in phases {
        let fresh = Crowd::start(VISITORS, 1, Duration::from_millis(5), move |_| ask(entry, 1));
        let kept = Crowd::start(VISITORS, 2, Duration::ZERO, move |_| ask(entry, ASKS));
        thread::sleep(Duration::from_secs(1));
        for n in 1..=times {
            eprintln!("reload: {phase}, {n} of {times}");
            match phase {
                "configuration" => {
                    let open = n % 2 == 1;
                    let more = if open {
                        vec![service("bench", entry), service("extra", extra)]
                    } else {
                        vec![service("bench", entry)]
                    };
                    tunnel.set_services(&more)?;
                    wait(&format!("listener extra {}", if open { "opens" } else { "closes" }), || {
                        TcpStream::connect_timeout(&extra, Duration::from_millis(200)).is_ok() == open
                    })
                    .map_err(|e| format!("{e}\n{}", bridge.log_end()))?;
                }
                "restart" => {
                    let mut next = tunnel.start_bridge_beside()?;
                    // Ends at once if there is no handing over: then the old one goes on, and that is a broken promise.
                    let gone = wait("the old bridge ends", || next.exited().is_some() || bridge.exited().is_some());
                    if let (Ok(()), None) = (gone, next.exited()) {
                        bridge = next;
                        restarted += 1;
                    } else {
                        section
                            .note(format!("restart {n}: no handing over: {}", next.log().lines().last().unwrap_or("")));
                        break;
                    }
                }
                _ => {}
            }
            thread::sleep(Duration::from_millis(500));
        }
        for (crowd, asks, what) in [(&fresh, 1, "fresh"), (&kept, ASKS as u64, "kept")] {
            crowd.pause();
            let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
            let violations = crowd.tally.violations.lock().expect("no visitor panics").clone();
            let failed = count(&crowd.tally.broken) as f64 + violations.len() as f64;
            let row = format!("{phase}, {what} connections");
            let slowest = count(&crowd.tally.longest_us) as f64 / 1e3;
            section.record(&row, &[(count(&crowd.tally.good) * asks) as f64, failed, slowest]);
            section.promise(&row, "failed", Goal::AtMost(0.0));
            if failed > 0.0 {
                let last = crowd.tally.last_broken.lock().expect("no visitor panics").clone();
                section.note(format!("{row}: {last} {}", violations.join("; ")));
            }
        }
    }
    section.hold("restarts with sockets handed over", f64::from(restarted), Goal::AtLeast(restarts as f64));
    section.note("a kept connection lives for half a second and ten requests; its slowest is that of the whole visit");
    Ok(section)
}

fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + DRAIN_MAX;
    while !done() {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {} s", DRAIN_MAX.as_secs()));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// So many requests on one connection, each echoed, and a clean end.
fn ask(entry: SocketAddr, asks: usize) -> Result<u64, Trouble> {
    let visit = || {
        let mut stream = TcpStream::connect_timeout(&entry, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_nodelay(true)?;
        stream.write_all(b"E")?;
        for n in 0..asks {
            if n > 0 {
                thread::sleep(BETWEEN);
            }
            let (question, mut answer) = ([n as u8; 64], [255; 64]);
            stream.write_all(&question)?;
            stream.read_exact(&mut answer)?;
            if answer != question {
                return Err(io::Error::other("wrong bytes"));
            }
        }
        stream.shutdown(Shutdown::Write)?;
        match stream.read(&mut [0])? {
            0 => Ok(asks as u64),
            _ => Err(io::Error::other("bytes after the end")),
        }
    };
    visit().map_err(|e: io::Error| Trouble::Broken(e.to_string()))
}
