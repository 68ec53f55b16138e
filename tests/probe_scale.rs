//! Claim: of 20,000 targets, open, closed and black-holed mixed, every one gets the right verdict, on either backend;
//! the applications behind the open ones never see a half-open probe; nothing stays in TIME_WAIT.
//! Method: targets are addresses in 127/8 on three ports of our own; each probe's line is compared with what its
//! target is known to be.

mod common;

use common::{parts, ringspan, run_with};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const TARGETS: usize = 20_000;

/// The three kinds of target, each a port that is so on all of 127.0.0.0/9.
struct World {
    open: TcpListener,
    _closed: TcpListener,
    _full: TcpListener,
    _queue: Vec<TcpStream>,
    ports: [(u16, &'static str); 3],
}

impl World {
    fn new() -> World {
        common::raise_nofile();
        let open = TcpListener::bind("0.0.0.0:0").expect("a free port");
        open.set_nonblocking(true).expect("a socket");
        // The port is taken on one address, so that nobody listens on it on all.
        let closed = TcpListener::bind("127.255.0.1:0").expect("a free port");
        let full = TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
        // A listener whose queue is full drops SYNs (net/ipv4/tcp_input.c, tcp_conn_request): the silence of a black
        // hole, on loopback and without a firewall.
        let address = SocketAddr::from(([127, 0, 0, 1], port(&full)));
        let queue: Vec<TcpStream> =
            (0..70_000).map_while(|_| TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok()).collect();
        let ports = [(port(&open), "L4OK"), (port(&closed), "L4CON"), (port(&full), "L4TOUT")];
        World { open, _closed: closed, _full: full, _queue: queue, ports }
    }

    /// Target and the code it must come out with. A quarter is black-holed.
    fn targets(&self) -> HashMap<String, &'static str> {
        (0..TARGETS)
            .map(|n| {
                let (port, code) = self.ports[[0, 1, 0, 1, 0, 1, 2, 2][n % 8]];
                (format!("127.{}.{}.{}:{port}", n / 62_500, n / 250 % 250, n % 250 + 1), code)
            })
            .collect()
    }
}

fn every_verdict_is_right(backend: &str) {
    let world = World::new();
    let targets = world.targets();
    // Our ports may have been somebody else's a minute ago.
    let left_before = time_wait(&world.ports.map(|p| p.0));
    let list: String = targets.keys().map(|t| format!("{t}\n")).collect();
    let args = ["probe", "--file", "-", "--timeout", "2s", "--format", "ndjson", "--backend", backend];
    let (code, out, err) = parts(&run_with(&mut ringspan(&args), &list));
    assert_eq!(code, 1, "{err}");
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let (summary, probes) = lines.split_last().expect("at least the summary");
    assert_eq!(probes.len(), TARGETS, "{err}");
    let wrong: Vec<_> = probes
        .iter()
        .filter(|l| targets.get(l["target"].as_str().unwrap_or_default()).is_none_or(|code| l["code"] != *code))
        .take(5)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}\n{summary}");
    let distinct: std::collections::HashSet<_> = probes.iter().map(|l| l["target"].as_str()).collect();
    assert_eq!(distinct.len(), TARGETS);
    let up = targets.values().filter(|code| **code == "L4OK").count();
    assert_eq!((&summary["up"], &summary["down"]), (&up.into(), &(TARGETS - up).into()), "{summary}");
    assert_eq!(summary["backend"], backend);
    let seen = world.open.accept();
    assert!(matches!(&seen, Err(e) if e.kind() == ErrorKind::WouldBlock), "an application saw a probe: {seen:?}");
    let left = time_wait(&world.ports.map(|p| p.0));
    assert!(left <= left_before, "{left} sockets in TIME_WAIT, {left_before} before");
}

/// Sockets in TIME_WAIT with one of these ports at either end (proc(5): state 06; addresses end in a hex port).
fn time_wait(ports: &[u16]) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("procfs is mounted");
    let of = |field: &str| field.rsplit(':').next().and_then(|p| u16::from_str_radix(p, 16).ok()).unwrap_or(0);
    table
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>())
        .filter(|f| f.len() > 3 && f[3] == "06" && (ports.contains(&of(f[1])) || ports.contains(&of(f[2]))))
        .count()
}

#[test]
fn every_verdict_is_right_on_io_uring() {
    // Where the kernel refuses io_uring there is nothing to test here, and the report of `doctor` says why.
    let folder = tempfile::tempdir().expect("a folder");
    let doctor = parts(&run_with(ringspan(&["doctor"]).current_dir(folder.path()), "")).1;
    if doctor.contains("io_uring, tier") {
        every_verdict_is_right("io_uring");
    } else {
        eprintln!("no io_uring here:\n{doctor}");
    }
}

#[test]
fn every_verdict_is_right_on_epoll() {
    every_verdict_is_right("epoll");
}
