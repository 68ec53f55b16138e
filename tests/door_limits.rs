//! Claim: every kind of listener keeps its limits: who may come, how many, how often, how fast, how long. Method: bridge
//! and agent as processes; for each kind a visitor that only connects, and one that is served.

mod common;

use common::doors::Place;
use common::origin::{Origin, ask, value};
use common::site::{certificate, status};
use common::{PATIENCE, until};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

/// A port whose server sends so many bytes to whoever comes, and ends; or none, and says back what it hears.
fn server(bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                if bytes > 0 {
                    return stream.write_all(&vec![7; bytes]);
                }
                let mut reader = stream.try_clone()?;
                std::io::copy(&mut reader, &mut stream).map(drop)
            });
        }
    });
    address
}

/// A bridge with a listener of each kind, named by it, all with these limits; and an agent with what they lead to.
fn place(limits: &str, bytes: usize) -> Place {
    let (server, web) = (server(bytes), Origin::saying(answer(bytes)));
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "one", "DNS:one.example");
    let at = folder.path().display();
    let listeners: String = [
        ("http", "http", "service = \"web\""),
        ("https", "https", &format!("service = \"web\"\ntls = [{{ cert = \"{at}/one.pem\", key = \"{at}/one.key\" }}]")),
        ("through", "https", "service = \"tcp\"\npassthrough = true"),
        ("socks5", "socks5", "service = \"net\"\nauth = \"none\""),
        ("connect", "connect", "service = \"net\"\nauth = \"none\""),
        ("visit", "visit", "service = \"tcp\""),
        ("unix", "tcp", "service = \"tcp\""),
    ]
    .map(|(name, kind, more)| {
        let listen = if name == "unix" { "unix:door.sock" } else { "127.0.0.1:0" };
        format!("[[listener]]\nname = \"{name}\"\ntype = \"{kind}\"\nlisten = \"{listen}\"\n{more}\nlimits = {{ {limits} }}\n")
    })
    .concat();
    let exposes = format!(
        "[[expose]]\nservice = \"tcp\"\naddress = \"{server}\"\n[[expose]]\nservice = \"web\"\naddress = \"{}\"\n\
         [[expose]]\nservice = \"net\"\ntype = \"proxy\"\nallow = [\"127.0.0.1:*\"]\n",
        web.address
    );
    let place = Place::start(&listeners, &exposes);
    std::fs::write(place.folder.path().join("target"), server.to_string()).expect("written");
    place
}

fn answer(bytes: usize) -> Vec<u8> {
    let bytes = bytes.max(2);
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").as_bytes(), &vec![b'x'; bytes]].concat()
}

/// Connects from this address, as far as the kind has addresses.
fn connect(place: &Place, kind: &str, from: [u8; 4]) -> Socket {
    let socket = if kind == "unix" {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        let path = place.folder.path().join("door.sock");
        socket.connect(&SockAddr::unix(path).expect("a path")).expect("it listens");
        socket
    } else {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((from, 0)).into()).expect("it is loopback");
        socket.connect(&place.listener(kind).into()).expect("it listens");
        socket
    };
    socket.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    socket
}

/// All that is said until the end, whatever the end is.
fn rest(mut socket: &Socket) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = socket.read_to_end(&mut read);
    read
}

/// Whether it has neither ended nor been told anything.
fn is_open(mut socket: &Socket) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a live socket");
    let read = socket.read(&mut [0; 10]).map_err(|error| error.kind());
    socket.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    matches!(read, Err(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut))
}

const HERE: [u8; 4] = [127, 0, 0, 1];
const KINDS: [&str; 7] = ["http", "https", "through", "socks5", "connect", "visit", "unix"];

/// One visitor more than may be is closed, before any handshake; in plain HTTP it is told so. Its place is free when the
/// other has gone.
#[test]
fn as_many_as_may_be() {
    let place = place("connections = 1", 0);
    for kind in KINDS {
        let first = connect(&place, kind, HERE);
        let said = String::from_utf8(rest(&connect(&place, kind, HERE))).expect("words or nothing");
        if kind == "http" {
            assert!(status(&said) == 503 && said.contains("As many are here as may be."), "{said}");
            assert!(value(&said, "retry-after").is_some(), "{said}");
        } else {
            assert_eq!(said, "", "{kind}");
        }
        drop(first);
        until("the place to be free", || is_open(&connect(&place, kind, HERE)).then_some(()));
    }
    assert!(place.metric("ringspan_door_visitors_refused_total") >= 7);
    place.bridge.wait_line(&["a visitor was not let in", "connections_max", "socks5"]);
}

/// Who is denied is closed at accept, without a word; who has no address is denied where only addresses are allowed.
#[test]
fn the_denied() {
    let place = place("deny = [\"127.0.0.2\"], allow = [\"127.0.0.0/8\"]", 0);
    for kind in KINDS {
        assert!(rest(&connect(&place, kind, [127, 0, 0, 2])).is_empty(), "{kind}");
        if kind != "unix" {
            assert!(is_open(&connect(&place, kind, HERE)), "{kind}");
        }
    }
    assert_eq!(place.metric("ringspan_door_visitors_refused_total"), 7);
}

/// Too many in too short a time: closed, or told so with 429.
#[test]
fn as_often_as_may_be() {
    let place = place("rate = 1, burst = 1", 0);
    for kind in KINDS {
        until("one too many", || {
            if kind == "http" {
                let (head, body) = ask(place.listener("http"), "GET /", "Host: a\r\n");
                return (status(&head) == 429 && body.contains("too short a time")).then_some(());
            }
            (!is_open(&connect(&place, kind, HERE))).then_some(())
        });
    }
}

/// Leads a connection to the backend, through whatever the kind asks for.
fn served(place: &Place, kind: &str) -> Socket {
    let mut socket = connect(place, kind, HERE);
    let target: SocketAddr = std::fs::read_to_string(place.folder.path().join("target")).unwrap().parse().unwrap();
    match kind {
        "socks5" => {
            let request = [&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1][..], &target.port().to_be_bytes()].concat();
            socket.write_all(&request).expect("it is open");
            socket.read_exact(&mut [0; 12]).expect("it answers");
        }
        "connect" => {
            socket.write_all(format!("CONNECT {target} HTTP/1.1\r\n\r\n").as_bytes()).expect("it is open");
            socket.read_exact(&mut [0; 39]).expect("it answers");
        }
        "http" => socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("it is open"),
        _ => {}
    }
    socket
}

/// Bytes to a visitor come no faster than they may: the only claim that can be made of a time is that it is not less.
#[test]
fn as_fast_as_may_be() {
    const BYTES: usize = 300 << 10;
    let place = place("down = \"100KiB\"", BYTES);
    for kind in ["http", "socks5", "connect", "unix"] {
        let began = Instant::now();
        let got = rest(&served(&place, kind)).len();
        assert!(got >= BYTES, "{kind}: {got} bytes");
        assert!(began.elapsed() > Duration::from_secs(2), "{kind}: {BYTES} bytes in {:?}", began.elapsed());
    }
}

/// Silence ends a visitor's connection, and so does its age, whatever it does.
#[test]
fn as_long_as_may_be() {
    let silent = place("idle = \"1s\"", 0);
    for kind in ["http", "socks5", "connect", "unix"] {
        let socket = match kind {
            "http" => connect(&silent, kind, HERE),
            _ => served(&silent, kind),
        };
        assert!(rest(&socket).is_empty(), "{kind}");
    }
    let short = place("total = \"1s\"", 0);
    for kind in ["http", "socks5", "connect", "unix"] {
        let mut socket = served(&short, kind);
        until("its end", || {
            let words: &[u8] = if kind == "http" { b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" } else { b"words" };
            (socket.write_all(words).is_err() || matches!(socket.read(&mut [0; 500]), Ok(0) | Err(_))).then_some(())
        });
    }
}

/// Conversations of datagrams are visitors, too: counted, denied, ended.
#[test]
fn conversations_are_visitors() {
    let echo = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = echo.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((n, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..n], from);
        }
    });
    let place = Place::start(
        "[[listener]]\nname = \"dns\"\ntype = \"udp\"\nlisten = \"127.0.0.1:0\"\nservice = \"dns\"\n\
         limits = { connections = 1, idle = \"1s\", deny = [\"127.0.0.2\"] }\n",
        &format!("[[expose]]\nservice = \"dns\"\ntype = \"udp\"\naddress = \"{address}\"\n"),
    );
    let to = place.listener("dns");
    let visitor = |ip: &str| {
        let socket = UdpSocket::bind((ip, 0)).expect("it is loopback");
        socket.connect(to).expect("it is loopback");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("it has one");
        socket
    };
    let asks = |socket: &UdpSocket| {
        socket.send(b"x").expect("loopback takes it");
        socket.recv(&mut [0; 10]).is_ok()
    };
    let (first, second, denied) = (visitor("127.0.0.1"), visitor("127.0.0.1"), visitor("127.0.0.2"));
    until("an answer", || asks(&first).then_some(()));
    assert!(!asks(&denied) && place.metric("ringspan_door_visitors_refused_total") > 0);
    // The first one has its place until it has been silent for a second; then the second has it.
    until("the place to be free", || asks(&second).then_some(()));
}

/// A crowd that says nothing keeps nobody out of a proxy's handshake: the one that has been silent for longest goes.
#[test]
fn the_silent_make_room() {
    common::raise_nofile();
    let place = place("connections = 0", 0);
    for kind in ["socks5", "visit"] {
        let crowd: Vec<Socket> = (0..1100).map(|_| connect(&place, kind, HERE)).collect();
        if kind == "socks5" {
            let mut late = served(&place, kind);
            late.write_all(b"words").expect("it is open");
            let mut heard = [0; 5];
            late.read_exact(&mut heard).expect("it comes back");
            assert_eq!(&heard, b"words");
        }
        assert!(rest(&crowd[0]).len() < 100, "{kind}: the first has gone");
        assert!(place.bridge.wait_line(&["was given to another"]).contains("given"));
    }
}
