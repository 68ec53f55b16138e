//! Claim: what is not a plain TCP server is carried as well: datagrams reach the right backend and the right visitor,
//! and what is denied is denied with its reason. Method: bridge and agents as child processes, real clients and servers.

mod common;

use common::doors::Place;
use common::{PATIENCE, raise_nofile, until};
use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Answers each datagram with its name and the datagram, until it is dropped.
struct Echo {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn start(name: &'static str) -> Echo {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("it has one");
        let (address, stop) = (socket.local_addr().expect("bound"), Arc::<AtomicBool>::default());
        let its_stop = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !its_stop.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                // The largest that there are come back as they are: there is no room for a name.
                let answer = if n > 60_000 { buffer[..n].to_vec() } else { [name.as_bytes(), &buffer[..n]].concat() };
                socket.send_to(&answer, from).expect("loopback takes it");
            }
        });
        Echo { address, stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("no panic");
    }
}

fn visitor(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).expect("a free port");
    socket.connect(to).expect("it is loopback");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("it has one");
    socket
}

/// Asks until there is an answer: datagrams may be lost.
fn ask(socket: &UdpSocket, text: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    until("an answer", || {
        socket.send(text).expect("loopback takes it");
        let n = socket.recv(&mut buffer).ok()?;
        Some(buffer[..n].to_vec())
    })
}

fn udp_place(echo: SocketAddr, listener: &str) -> Place {
    Place::start(
        &format!("[[listener]]\nname = \"dns\"\ntype = \"udp\"\n{listener}service = \"dns\"\n"),
        &format!("[[expose]]\nservice = \"dns\"\ntype = \"udp\"\naddress = \"{echo}\"\n"),
    )
}

/// Datagrams of every size, the empty one too, come back to who sent them.
#[test]
fn datagrams_of_every_size() {
    let echo = Echo::start("e");
    let place = udp_place(echo.address, "listen = \"127.0.0.1:0\"\n");
    let socket = visitor(place.listener("dns"));
    for size in [1, 2, 3, 1471, 1472, 1473, 4096, 40_000, 65_506, 65_507] {
        let text: Vec<u8> = (0..size).map(|n| (n * 31 % 251) as u8).collect();
        let answer = ask(&socket, &text);
        let body = if size > 60_000 { &answer[..] } else { &answer[1..] };
        assert!(body == text, "{size} bytes came back as {}", answer.len());
    }
    assert_eq!(ask(&socket, b""), b"e");
}

/// Two thousand visitors at once: each gets its own answers and nobody else's, and each is one session.
#[test]
fn visitors_are_kept_apart() {
    raise_nofile();
    let echo = Echo::start("e");
    let place = udp_place(echo.address, "listen = \"127.0.0.1:0\"\n");
    let to = place.listener("dns");
    assert_eq!(ask(&visitor(to), b"first"), b"efirst");
    let sockets: Vec<UdpSocket> = (0..2000).map(|_| visitor(to)).collect();
    for round in 0..3 {
        // In batches: nobody's receive buffer is to be the limit.
        for (batch, sockets) in sockets.chunks(100).enumerate() {
            for (n, socket) in sockets.iter().enumerate() {
                socket.send(format!("{round} {batch} {n}").as_bytes()).expect("loopback takes it");
            }
            for (n, socket) in sockets.iter().enumerate() {
                let mut buffer = [0; 100];
                let wanted = format!("e{round} {batch} {n}");
                let got = match socket.recv(&mut buffer) {
                    Ok(got) => buffer[..got].to_vec(),
                    Err(_) => ask(socket, &wanted.as_bytes()[1..]),
                };
                assert_eq!(String::from_utf8_lossy(&got), wanted);
            }
        }
    }
    let opened = place.metric("ringspan_udp_sessions_opened_total");
    assert!((2001..2100).contains(&opened), "{opened} sessions");
}

/// A visitor whose datagrams are never read holds up nobody; its session ends when nothing was said for long enough, and
/// another one begins with its next word.
#[test]
fn sessions_end_and_begin() {
    let echo = Echo::start("e");
    let place = udp_place(echo.address, "listen = \"127.0.0.1:0\"\nidle_timeout = \"1s\"\n");
    let to = place.listener("dns");
    let socket = visitor(to);
    assert_eq!(ask(&socket, b"1"), b"e1");
    until("the session to end", || (place.metric("ringspan_tunnel_streams") == 0).then_some(()));
    assert_eq!(ask(&socket, b"2"), b"e2");
    assert!(place.metric("ringspan_udp_sessions_opened_total") >= 2);
}

/// More conversations than may be are refused and counted, and do not disturb those that are.
#[test]
fn sessions_are_limited() {
    let echo = Echo::start("e");
    let place = udp_place(echo.address, "listen = \"127.0.0.1:0\"\nsessions_max = 2\n");
    let to = place.listener("dns");
    let (a, b, c) = (visitor(to), visitor(to), visitor(to));
    assert_eq!((ask(&a, b"a"), ask(&b, b"b")), (b"ea".to_vec(), b"eb".to_vec()));
    c.send(b"c").expect("loopback takes it");
    until("the refusal", || (place.metric("ringspan_udp_sessions_refused_total") > 0).then_some(()));
    assert_eq!(ask(&a, b"a2"), b"ea2");
    c.set_read_timeout(Some(Duration::from_millis(200))).expect("it has one");
    assert!(c.recv(&mut [0; 10]).is_err());
}

/// On a wildcard address the answer comes from the address that was asked: a connected visitor gets it.
#[test]
fn answers_come_from_where_was_asked() {
    let echo = Echo::start("e");
    for any in ["0.0.0.0", "[::]"] {
        let place = udp_place(echo.address, &format!("listen = \"{any}:0\"\n"));
        let port = place.listener("dns").port();
        let asked: &[&str] = if any == "0.0.0.0" { &["127.0.0.1", "127.0.0.2", "127.1.2.3"] } else { &["[::1]"] };
        for ip in asked {
            let to: SocketAddr = format!("{ip}:{port}").parse().expect("an address");
            assert_eq!(ask(&visitor(to), ip.as_bytes()), format!("e{ip}").as_bytes());
        }
    }
}

/// A backend that is not there ends the conversation; when it is back, the visitor's next words reach it.
#[test]
fn a_refused_backend_comes_back() {
    let echo = Echo::start("e");
    let address = echo.address;
    let place = udp_place(address, "listen = \"127.0.0.1:0\"\n");
    let socket = visitor(place.listener("dns"));
    assert_eq!(ask(&socket, b"1"), b"e1");
    drop(echo);
    until("the session to end", || {
        socket.send(b"lost").expect("loopback takes it");
        (place.metric("ringspan_tunnel_streams") == 0).then_some(())
    });
    let back = UdpSocket::bind(address).expect("nobody took it");
    back.set_read_timeout(Some(PATIENCE)).expect("it has one");
    let told = until("the backend to hear", || {
        socket.send(b"2").expect("loopback takes it");
        let mut buffer = [0; 10];
        back.set_read_timeout(Some(Duration::from_secs(1))).expect("it has one");
        back.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())
    });
    assert!(HashSet::from([b"2".to_vec(), b"lost".to_vec()]).contains(&told));
}
