//! Claim: datagrams reach the right backend and the right visitor, through udp listeners and through SOCKS, and who sent
//! them is told where it is asked for. Method: bridge and agents as child processes, real sockets, PySocks.

mod common;

use common::doors::Place;
use common::{PATIENCE, parts, raise_nofile, run_with, until};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
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
    // The first visitor's port may have been given to a later one.
    let opened = place.metric("ringspan_udp_sessions_opened_total");
    assert!((2000..2100).contains(&opened), "{opened} sessions");
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

/// Version 2 of the PROXY protocol for datagrams over IPv4, by hand: HAProxy, doc/proxy-protocol.txt 2.2.
fn proxy_header(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\x00\x0c".to_vec();
    for address in [from, to] {
        let SocketAddr::V4(address) = address else { panic!("{address} is IPv4") };
        header.extend(address.ip().octets());
    }
    header.extend([from.port().to_be_bytes(), to.port().to_be_bytes()].concat());
    header
}

/// A backend that wants to hear who asks does: before the first datagram of a conversation, or before each.
#[test]
fn backends_hear_who_asks() {
    for (version, each) in [("v2", false), ("v2-each", true)] {
        let backend = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        backend.set_read_timeout(Some(PATIENCE)).expect("it has one");
        let place = Place::start(
            "[[listener]]\nname = \"dns\"\ntype = \"udp\"\nlisten = \"127.0.0.1:0\"\nservice = \"dns\"\n",
            &format!(
                "[[expose]]\nservice = \"dns\"\ntype = \"udp\"\naddress = \"{}\"\nproxy_protocol = \"{version}\"\n",
                backend.local_addr().expect("bound")
            ),
        );
        let to = place.listener("dns");
        let visitor = visitor(to);
        let header = proxy_header(visitor.local_addr().expect("bound"), to);
        let mut buffer = [0; 200];
        for (n, words) in [&b"one"[..], b"", b"three"].into_iter().enumerate() {
            visitor.send(words).expect("loopback takes it");
            let (got, from) = backend.recv_from(&mut buffer).expect("it arrives");
            let wanted = if each || n == 0 { [&header, words].concat() } else { words.to_vec() };
            assert_eq!(&buffer[..got], wanted, "{version} {n}");
            backend.send_to(b"answer", from).expect("loopback takes it");
            let got = visitor.recv(&mut buffer).expect("it arrives");
            assert_eq!(&buffer[..got], b"answer");
        }
    }
}

/// A proxy before the listener says for whom it sends: each of those has a conversation of its own, datagrams without a
/// header belong to the one named last, limits count the named; and nobody else is listened to.
#[test]
fn a_proxy_before_us_is_believed() {
    let backend = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    backend.set_read_timeout(Some(PATIENCE)).expect("it has one");
    let place = udp_place(
        backend.local_addr().expect("bound"),
        "listen = \"127.0.0.1:0\"\nproxy_protocol_from = [\"127.0.0.1\"]\nlimits = { deny = [\"203.0.113.66\"] }\n",
    );
    let to = place.listener("dns");
    let proxy = visitor(to);
    let said = |host: u8, words: &str| {
        let from = SocketAddr::from(([203, 0, 113, host], 1000));
        proxy.send(&[&proxy_header(from, to)[..], words.as_bytes()].concat()).expect("loopback takes it");
    };
    let heard = || {
        let mut buffer = [0; 200];
        let (n, from) = backend.recv_from(&mut buffer).expect("it arrives");
        (String::from_utf8_lossy(&buffer[..n]).into_owned(), from)
    };
    // Before anybody was named there is nobody to send for.
    proxy.send(b"bare").expect("loopback takes it");
    said(66, "denied");
    said(1, "a");
    let (text, a) = heard();
    assert_eq!(text, "a");
    said(2, "b");
    let (text, b) = heard();
    assert!(text == "b" && a != b, "two conversations");
    proxy.send(b"bare").expect("loopback takes it");
    assert_eq!(heard(), ("bare".into(), b));
    said(1, "a again");
    assert_eq!(heard(), ("a again".into(), a));
    proxy.send(b"bare").expect("loopback takes it");
    assert_eq!(heard(), ("bare".into(), a));
    // Whoever was named and not let in, or named with half a header, was named: what follows is not the one's before.
    said(66, "denied");
    proxy.send(b"of the denied").expect("loopback takes it");
    said(2, "b again");
    assert_eq!(heard(), ("b again".into(), b));
    proxy.send(&proxy_header(a, to)[..20]).expect("loopback takes it");
    proxy.send(b"of somebody").expect("loopback takes it");
    said(1, "a at last");
    assert_eq!(heard(), ("a at last".into(), a));
    let stranger = UdpSocket::bind("127.0.0.2:0").expect("it is loopback");
    stranger.send_to(&proxy_header(a, to), to).expect("loopback takes it");
    until("the stranger to be counted", || (place.metric("ringspan_udp_bad_headers_total") == 4).then_some(()));
    assert_eq!(place.metric("ringspan_door_visitors_refused_total"), 3);
    backend.send_to(b"to b", b).expect("loopback takes it");
    let mut buffer = [0; 20];
    let n = proxy.recv(&mut buffer).expect("it arrives");
    assert_eq!(&buffer[..n], b"to b", "answers go to the proxy as they are");
}

/// Who was named is still who sends when the conversation is over, and when it never began for want of room: a datagram
/// without a header begins one, of the same visitor.
#[test]
fn a_name_outlives_its_conversation() {
    let backend = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    backend.set_read_timeout(Some(PATIENCE)).expect("it has one");
    let place = Place::start(
        "[[listener]]\nname = \"dns\"\ntype = \"udp\"\nlisten = \"127.0.0.1:0\"\nservice = \"dns\"\nidle_timeout = \"1s\"\n\
         sessions_max = 1\nproxy_protocol_from = [\"127.0.0.1\"]\n",
        &format!(
            "[[expose]]\nservice = \"dns\"\ntype = \"udp\"\naddress = \"{}\"\nproxy_protocol = \"v2\"\n",
            backend.local_addr().expect("bound")
        ),
    );
    let (to, asked) = (place.listener("dns"), SocketAddr::from(([198, 51, 100, 7], 53)));
    let header = |host: u8| proxy_header(SocketAddr::from(([203, 0, 113, host], 1000)), asked);
    let heard = |wanted: &[u8]| {
        let mut buffer = [0; 200];
        let (n, from) = backend.recv_from(&mut buffer).expect("it arrives");
        assert_eq!(&buffer[..n], wanted);
        from
    };
    let over = || until("the conversation to end", || (place.metric("ringspan_tunnel_streams") == 0).then_some(()));
    let (one, two) = (visitor(to), visitor(to));
    one.send(&[&header(1)[..], b"first"].concat()).expect("loopback takes it");
    let first = heard(&[&header(1)[..], b"first"].concat());
    two.send(&[&header(2)[..], b"no room"].concat()).expect("loopback takes it");
    until("the refusal", || (place.metric("ringspan_udp_sessions_refused_total") == 1).then_some(()));
    over();
    one.send(b"second").expect("loopback takes it");
    assert_ne!(heard(&[&header(1)[..], b"second"].concat()), first, "a conversation of its own");
    over();
    two.send(b"room").expect("loopback takes it");
    heard(&[&header(2)[..], b"room"].concat());
    assert_eq!(place.metric("ringspan_udp_bad_headers_total"), 0);
}

const SOCKS: &str =
    "[[listener]]\nname = \"socks\"\ntype = \"socks5\"\nauth = \"none\"\nlisten = \"127.0.0.1:0\"\nservice = \"net\"\n";

/// A visitor of a SOCKS listener with a UDP association: the TCP connection that keeps it, and a socket that sends to it.
fn associate(to: SocketAddr) -> (TcpStream, UdpSocket) {
    let mut stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it has one");
    stream.write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).expect("it reads");
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).expect("it answers");
    assert_eq!(reply[..10], [5, 0, 5, 0, 0, 1, 127, 0, 0, 1]);
    let at = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([reply[10], reply[11]])));
    (stream, visitor(at))
}

fn to_target(target: SocketAddr, words: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 1, 127, 0, 0, 1][..], &target.port().to_be_bytes(), words].concat()
}

/// One association, many targets: each answers as itself; what is not on the agent's list, a fragment and a stranger are
/// not heard; and the end of the TCP connection is the end of it.
#[test]
fn socks_carries_datagrams() {
    let (a, b, secret) = (Echo::start("a"), Echo::start("b"), UdpSocket::bind("127.0.0.1:0").expect("a free port"));
    let denied = secret.local_addr().expect("bound");
    let place = Place::start(
        SOCKS,
        &format!(
            "[[expose]]\nservice = \"net\"\ntype = \"proxy\"\nallow = [\"127.0.0.1:{},{}/udp\", \"127.0.0.1:{}\"]\n",
            a.address.port(),
            b.address.port(),
            denied.port()
        ),
    );
    let (stream, socket) = associate(place.listener("socks"));
    for round in 0..3 {
        for (echo, name) in [(&a, "a"), (&b, "b")] {
            let words = format!("{round}");
            let answer = ask(&socket, &to_target(echo.address, words.as_bytes()));
            assert_eq!(answer, to_target(echo.address, format!("{name}{words}").as_bytes()));
        }
    }
    assert_eq!(ask(&socket, &to_target(a.address, b"")), to_target(a.address, b"a"), "an empty datagram is one");
    let large = vec![7; 60_000];
    assert_eq!(ask(&socket, &to_target(a.address, &large)).len(), 60_011);
    // A rule for connections is none for datagrams.
    socket.send(&to_target(denied, b"x")).expect("loopback takes it");
    place.agent.wait_line(&["proxy: not connected", "target_denied", "udp:127.0.0.1"]);
    secret.set_nonblocking(true).expect("it can");
    assert!(secret.recv(&mut [0; 10]).is_err());
    let mut fragment = to_target(a.address, b"fragment");
    fragment[2] = 1;
    socket.send(&fragment).expect("loopback takes it");
    until("the fragment to be counted", || (place.metric("ringspan_socks_bad_datagrams_total") == 1).then_some(()));
    let stranger = UdpSocket::bind("127.0.0.2:0").expect("it is loopback");
    let at = socket.peer_addr().expect("it has one");
    let heard = place.metric("ringspan_udp_received_datagrams_total");
    stranger.send_to(&to_target(a.address, b"stranger"), at).expect("loopback takes it");
    assert_eq!(ask(&socket, &to_target(a.address, b"still")), to_target(a.address, b"astill"));
    assert!(place.metric("ringspan_udp_received_datagrams_total") - heard < 2 + 3, "the stranger does not count");
    stranger.set_nonblocking(true).expect("it can");
    assert!(stranger.recv(&mut [0; 10]).is_err());
    drop(stream);
    until("the streams to end", || (place.metric("ringspan_tunnel_streams") == 0).then_some(()));
    until("the socket to close", || {
        let _ = socket.send(&to_target(a.address, b"x"));
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("it has one");
        let refused = socket.recv(&mut [0; 100]).map_err(|error| error.kind());
        (refused == Err(std::io::ErrorKind::ConnectionRefused)).then_some(())
    });
}

/// Associations are bounded, and a listener may have none; for one more target the most silent one goes.
#[test]
fn associations_are_bounded() {
    let echoes: Vec<Echo> = (0..70).map(|_| Echo::start("e")).collect();
    let place = Place::start(
        &format!("{SOCKS}associations_max = 1\n{}associations_max = 0\n", SOCKS.replace("\"socks\"", "\"none\"")),
        "[[expose]]\nservice = \"net\"\ntype = \"proxy\"\nallow = [\"127.0.0.1:*/udp\"]\n",
    );
    let to = place.listener("socks");
    let (stream, socket) = associate(to);
    let code = |to| {
        let mut stream = TcpStream::connect(to).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("it has one");
        stream.write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).expect("it reads");
        let mut reply = [0; 4];
        stream.read_exact(&mut reply).expect("it answers");
        reply[3]
    };
    assert_eq!((code(to), code(place.listener("none"))), (1, 7));
    for echo in &echoes {
        assert_eq!(ask(&socket, &to_target(echo.address, b"1")), to_target(echo.address, b"e1"));
    }
    until("the silent to go", || (place.metric("ringspan_tunnel_streams") <= 64).then_some(()));
    assert_eq!(ask(&socket, &to_target(echoes[0].address, b"2")), to_target(echoes[0].address, b"e2"));
    drop(stream);
    until("the place to be free", || (code(to) == 0).then_some(()));
}

/// A client that others wrote: PySocks asks by a name, with a login, and hears the answer.
#[test]
fn pysocks_asks() {
    let echo = Echo::start("echo ");
    let place = Place::start(
        &SOCKS.replace("auth = \"none\"", "users = [\"alice:secret\"]"),
        &format!(
            "[[expose]]\nservice = \"net\"\ntype = \"proxy\"\nallow = [\"127.0.0.0/8:{}/udp\"]\n",
            echo.address.port()
        ),
    );
    let script = "import socks, sys\n\
                  s = socks.socksocket(socks.socket.AF_INET, socks.socket.SOCK_DGRAM)\n\
                  s.set_proxy(socks.SOCKS5, '127.0.0.1', int(sys.argv[1]), True, 'alice', 'secret')\n\
                  s.settimeout(20)\n\
                  s.sendto(b'hello', ('localhost', int(sys.argv[2])))\n\
                  print(s.recvfrom(100)[0].decode())\n";
    // Debian's own: its packages are not for other Pythons.
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", script]);
    python.args([place.listener("socks").port().to_string(), echo.address.port().to_string()]);
    assert_eq!(
        parts(&run_with(&mut python, "")),
        (0, "echo hello\n".into(), String::new()),
        "scripts/setup installs it"
    );
}
