//! `bench reload`: does anybody notice when the configuration changes, or when the bridge is replaced?
//! Visitors ask all the while, a listener of type tcp and one of type http: some on a fresh connection each, some ten times
//! over half a second on a kept one. Meanwhile
//! (1) the bridge's file changes again and again: a listener comes and goes; (2) the bridge is started again beside the
//! running one, which hands over its listening sockets, finishes what it carries, and ends. Every request that fails counts.

use crate::peers;
use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{Service, Tunnel};
use crate::report::{Goal, Section};
use crate::roles::echo_once;
use crate::stage::until_ready;
use crate::visitor::{Crowd, Trouble};
use std::io::{self, BufRead, BufReader, Read, Write};
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
    let (web, server, site) = (local(5), local(6), local(7));
    let child = ["child", "roles", &backend.to_string()];
    let mut roles = Process::start("backend", process::command(&process::own_program(), &child, None), &common.folder)?;
    roles.wait_listening(backend)?;
    let _nginx = peers::start_nginx("nginx", &common.folder, server, &common.folder)?;
    let service = |name, listen| Service { name, listen, backends: vec![backend] };
    let always = || vec![service("bench", entry), Service { name: "web", listen: web, backends: vec![server] }];
    let ports = (local(0), local(1));
    let mut tunnel = Tunnel::new(&common.ringspan, &common.folder, None, ports, true, &[])?;
    tunnel.site = Some(site);
    tunnel.set_services(&always())?;
    let mut bridge = tunnel.start_bridge()?;
    tunnel.enrol_agent("agent", 0, 1, 2)?;
    let agent = tunnel.start_agent("agent")?;
    let is_ready = || echo_once(entry).and_then(|()| ask_http(site, 1).map(drop).map_err(|e| format!("{e:?}")));
    until_ready("the tunnel", is_ready).map_err(|e| e + "\n" + &bridge.log_end() + "\n" + &agent.log_end())?;

    let mut restarted = 0;
    let phases: [(&str, usize); 3] = [("nothing", 3), ("configuration", changes), ("restart", restarts)];
    for (phase, times) in phases {
        let fresh = Crowd::start(VISITORS, 1, Duration::from_millis(5), move |_| ask(entry, 1));
        let kept = Crowd::start(VISITORS, 2, Duration::ZERO, move |_| ask(entry, ASKS));
        let fresh_http = Crowd::start(VISITORS, 3, Duration::from_millis(5), move |_| ask_http(site, 1));
        let kept_http = Crowd::start(VISITORS, 4, Duration::ZERO, move |_| ask_http(site, ASKS));
        thread::sleep(Duration::from_secs(1));
        for n in 1..=times {
            eprintln!("reload: {phase}, {n} of {times}");
            match phase {
                "configuration" => {
                    let open = n % 2 == 1;
                    let mut services = always();
                    services.extend(open.then(|| service("extra", extra)));
                    tunnel.set_services(&services)?;
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
        let many = ASKS as u64;
        for (crowd, asks, what) in [
            (&fresh, 1, "fresh"),
            (&kept, many, "kept"),
            (&fresh_http, 1, "fresh http"),
            (&kept_http, many, "kept http"),
        ] {
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

/// So many requests over HTTP, on one connection as long as the answers do not say that it is closed.
fn ask_http(site: SocketAddr, asks: usize) -> Result<u64, Trouble> {
    let connect = || {
        let stream = TcpStream::connect_timeout(&site, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_nodelay(true)?;
        io::Result::Ok(BufReader::new(stream))
    };
    let visit = || {
        let mut kept = None;
        for n in 0..asks {
            if n > 0 {
                thread::sleep(BETWEEN);
            }
            let mut stream = kept.take().map_or_else(connect, Ok)?;
            let last = if n + 1 == asks { "Connection: close\r\n" } else { "" };
            let request = format!("GET / HTTP/1.1\r\nHost: bench\r\n{last}\r\n");
            stream.get_mut().write_all(request.as_bytes())?;
            let (mut length, mut closes, mut line) = (0, false, String::new());
            stream.read_line(&mut line)?;
            if !line.starts_with("HTTP/1.1 200 ") {
                return Err(io::Error::other(format!("{line:?}")));
            }
            while line != "\r\n" {
                line.clear();
                if stream.read_line(&mut line)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let lower = line.to_ascii_lowercase();
                closes |= lower.starts_with("connection: close");
                if let Some(n) = lower.strip_prefix("content-length:") {
                    length = n.trim().parse().map_err(io::Error::other)?;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body)?;
            if body != b"nginx\n" {
                return Err(io::Error::other("another answer"));
            }
            kept = Some(stream).filter(|_| !closes);
        }
        Ok(asks as u64)
    };
    visit().map_err(|e: io::Error| Trouble::Broken(e.to_string()))
}
