//! What goes wrong stays where it went wrong, and is told: resets both ways, backends that refuse, agents that die,
//! links that are cut, garbage, crowds.

mod rig;

use rig::backend::{self, Order, ask, read_all};
use rig::cable;
use rig::{EPOLL, PATIENCE, RING, SHAPES, Shape};
use ringspan_engine::health::Health;
use ringspan_engine::io::Family;
use ringspan_engine::kernel::Socket;
use ringspan_engine::time::Instant as EngineInstant;
use ringspan_tunnel::frame::{Header, Kind, Reason};
use ringspan_tunnel::health_feed::BackendHealth;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

fn is_reset(kind: Option<ErrorKind>) -> bool {
    matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}

/// An address where nothing listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A reset is a reset at the other end, whichever side it starts from, and the link carries on.
#[test]
fn resets_stay_resets() {
    for shape in SHAPES {
        let (address, reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        for round in 0..20 {
            // The backend closes with unread bytes, the visitor waits for an answer.
            let mut visitor = bridge.visit(0);
            ask(&mut visitor, Order::Reset, round, 3);
            visitor.write_all(&[0; 4000]).unwrap();
            let (_, _, error) = read_all(&mut visitor, round);
            assert!(is_reset(error), "{shape:?}: the visitor saw {error:?}");
            // The visitor closes with unread bytes, the backend is in the middle of a flood.
            let mut visitor = bridge.visit(0);
            ask(&mut visitor, Order::Flood, round, 0);
            visitor.read_exact(&mut [0; 100_000]).unwrap();
            drop(visitor);
            // Both, in whatever order: one left behind would stand for the next round's.
            let both = [(); 2].map(|()| reports.recv_timeout(PATIENCE).unwrap());
            let flood = both.into_iter().find(|r| r.order == Order::Flood as u8);
            assert!(is_reset(flood.as_ref().unwrap().error), "{shape:?}: the backend saw {flood:?}");
        }
        assert_eq!(agent.log.count("down"), 0, "{shape:?}: the link did not survive");
    }
}

/// A visitor whose backend refuses is reset at once, and both sides say why; the next backend's visitors are served.
#[test]
fn refused_backends_are_told() {
    for shape in [RING, EPOLL] {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["gone", "web"]);
        let agent = bridge.agent(shape, &[("gone", nobody()), ("web", address)]);
        let mut visitor = bridge.visit(0);
        assert!(visitor.read(&mut [0; 10]).is_err(), "{shape:?}");
        bridge.log.wait_for("dial failed 0 dial_refused", 1);
        agent.log.wait_for("dial failed 0 dial_refused", 1);
        let mut visitor = bridge.visit(1);
        ask(&mut visitor, Order::Send, 1, 10);
        visitor.read_exact(&mut [0; 10]).unwrap();
    }
}

/// Visitors of a service without a healthy backend are reset at once and counted; with its health they come and go.
#[test]
fn visitors_follow_health() {
    let shape = RING;
    let (address, _reports) = backend::start();
    let bridge = rig::bridge(shape, &["web", "other"]);
    let agent = bridge.agent(shape, &[("web", address)]);
    let visit = |listener| {
        let mut visitor = bridge.visit(listener);
        ask(&mut visitor, Order::Send, 1, 10);
        visitor.read_exact(&mut [0; 10])
    };
    visit(0).unwrap();
    let set = |health| {
        let since = EngineInstant::from_ns(2);
        agent.handle.set_health(0, BackendHealth { health, code: None, since, rtt_us: None });
    };
    set(Health::Down);
    bridge.log.wait_for(" 0 Down", 1);
    // The reset may overtake the visitor's own words.
    let refused = |listener| {
        let mut visitor = bridge.visit(listener);
        assert!(visitor.read(&mut [0; 1]).is_err());
    };
    refused(0);
    bridge.log.wait_for("refused web no_backend", 1);
    refused(1);
    bridge.log.wait_for("refused other no_service", 1);
    set(Health::Up);
    bridge.log.wait_for(" 0 Up", 2);
    visit(0).unwrap();
}

/// An agent that dies in the middle of a flood: its visitors are reset, nobody is sent there, and when it is back they
/// are served again.
#[test]
fn a_dead_agent_takes_its_visitors_with_it() {
    for shape in SHAPES {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        let mut visitors: Vec<_> = (0..4).map(|_| bridge.visit(0)).collect();
        for visitor in &mut visitors {
            ask(visitor, Order::Flood, 1, 0);
            visitor.read_exact(&mut [0; 100_000]).unwrap();
        }
        let id = agent.id;
        drop(agent);
        for visitor in &mut visitors {
            assert!(is_reset(read_all(visitor, 1).2), "{shape:?}");
        }
        bridge.log.wait_for(&format!("gone {id}"), 1);
        let mut visitor = bridge.visit(0);
        assert!(visitor.read(&mut [0; 1]).is_err(), "{shape:?}");
        let _agent = bridge.agent(shape, &[("web", address)]);
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Send, 1, 1000);
        assert_eq!(read_end(visitor), 1000, "{shape:?}");
    }
}

fn read_end(mut visitor: TcpStream) -> u64 {
    visitor.shutdown(Shutdown::Write).unwrap();
    let (bytes, _, error) = read_all(&mut visitor, 1);
    assert_eq!(error, None);
    bytes
}

/// A link that is cut four times, in the middle of floods: each time the visitors are reset, the agent comes back by
/// itself, and a visitor's bytes are whole again.
#[test]
fn a_cut_link_comes_back() {
    for shape in [RING, Shape { tls: true, ..EPOLL }] {
        // One of each: else a new carrier may come before the last old one is missed, and nobody is ever gone.
        let shape = Shape { workers: 1, carriers: 1, ..shape };
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let cable = cable::straight(bridge.handle.link_address());
        let agent = bridge.agent_via(shape, cable.address, &[("web", address)]);
        for round in 1..=4 {
            bridge.log.wait_for(&format!("health {} 0 Up", agent.id), round);
            let mut visitor = bridge.visit(0);
            ask(&mut visitor, Order::Flood, 1, 0);
            visitor.read_exact(&mut [0; 100_000]).unwrap();
            cable.cut();
            assert!(is_reset(read_all(&mut visitor, 1).2), "{shape:?}");
            bridge.log.wait_for(&format!("gone {}", agent.id), round);
        }
        bridge.log.wait_for(&format!("health {} 0 Up", agent.id), 5);
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Send, 1, 1_000_000);
        assert_eq!(read_end(visitor), 1_000_000, "{shape:?}");
    }
}

/// A link that falls silent without an end, as when a machine loses its power: both sides find it dead by themselves,
/// the visitors are reset, and a new link takes its place.
#[test]
fn a_silent_link_is_found_dead() {
    let shape = Shape { carriers: 1, ..RING };
    let (address, _reports) = backend::start();
    let bridge = rig::bridge(shape, &["web"]);
    let cable = cable::straight(bridge.handle.link_address());
    let agent = bridge.agent_via(shape, cable.address, &[("web", address)]);
    bridge.log.wait_for(&format!("health {} 0 Up", agent.id), 1);
    let mut visitor = bridge.visit(0);
    ask(&mut visitor, Order::Listen, 1, 0);
    cable.freeze();
    assert!(is_reset(read_all(&mut visitor, 1).2));
    assert!(bridge.stats().reasons[Reason::Silent as usize] > 0);
    agent.log.wait_for("silent", 1);
    agent.log.wait_for("up 0", 2);
    // Whichever side noticed first, and until the news is everywhere: visitors are reset, then served.
    let started = Instant::now();
    let served = std::iter::repeat_with(|| {
        let mut visitor = bridge.visit(0);
        // The reset may overtake the order; then it is the write that hears of it, and a read would only say "over".
        visitor.write_all(&backend::order(Order::Send, 1, 1000)).ok()?;
        let _ = visitor.shutdown(Shutdown::Write);
        let read = read_all(&mut visitor, 1);
        read.2.is_none().then_some(read.0)
    })
    .find(|served| served.is_some() || started.elapsed() > PATIENCE);
    assert_eq!(served.flatten(), Some(1000));
}

/// Garbage on the link port, of every kind, costs its sender the connection and nobody else anything.
#[test]
fn garbage_costs_its_own_connection() {
    for shape in [RING, Shape { tls: true, ..EPOLL }] {
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["web"]);
        let agent = bridge.agent(shape, &[("web", address)]);
        let mut rng = fastrand::Rng::with_seed(1);
        let frame = |header: Header, payload: &[u8]| [&header.encode(), payload].concat();
        let hello = |aux, payload: &[u8]| {
            frame(Header { aux, len: payload.len() as u32, ..Header::new(Kind::Hello, 0) }, payload)
        };
        let mut words: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0; 100_000],
            vec![0xff; 16],
            frame(Header::new(Kind::Open, 0x1_0001), b""),
            frame(Header { len: 1 << 20, ..Header::new(Kind::Data, 1) }, &[7; 1000]),
            frame(Header::new(Kind::Ping, 0), b""),
            frame(Header { aux: Reason::Other as u16, len: 3, ..Header::new(Kind::Goaway, 0) }, b"bye"),
            hello(1, b"{}"),
            hello(1, b"not json"),
            hello(2, b"{\"generation\": 1}"),
            hello(77, b""),
            hello(1, &[b'['; 60_000]),
        ];
        words.extend((0..40).map(|_| (0..rng.usize(1..3000)).map(|_| rng.u8(..)).collect()));
        for word in &words {
            let mut stream = TcpStream::connect(bridge.handle.link_address()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = stream.write_all(word);
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            // Until the bridge closes; with a reset if it had unread bytes.
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 4096);
        }
        bridge.log.wait_for("handshake", words.len());
        let mut visitor = bridge.visit(0);
        ask(&mut visitor, Order::Send, 1, 1000);
        assert_eq!(read_end(visitor), 1000, "{shape:?}");
        assert_eq!(agent.log.count("down"), 0);
    }
}

/// Silent connections to the link port are capped, those that have been silent longest are closed at once and counted,
/// and agents still get in past the crowd.
#[test]
fn strangers_are_capped() {
    let shape = Shape { workers: 1, ..RING };
    let bridge = rig::bridge(shape, &["web"]);
    let mut crowd: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(bridge.handle.link_address()).unwrap()).collect();
    bridge.log.wait_for("handshake handshakes_max", 100 - 64);
    for stream in &mut crowd[..100 - 64] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Closed at once, perhaps behind a challenge: the end, or a reset, but not our patience.
        let end = stream.read_to_end(&mut Vec::new());
        assert!(end.as_ref().map_err(std::io::Error::kind) != Err(std::io::ErrorKind::WouldBlock), "{end:?}");
    }
    let (address, _reports) = backend::start();
    let agent = bridge.agent(shape, &[("web", address)]);
    assert_eq!(agent.log.count("down"), 0);
    drop(crowd);
}

/// Five thousand visitors that say nothing, and one that does.
#[test]
fn a_crowd_of_idle_visitors() {
    for shape in [RING, EPOLL] {
        // Their backend never accepts: the kernel completes the connections, two queues of it.
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let sleepers = [(); 2].map(|()| Socket::listen(&local, 4096).unwrap());
        let sleeping = sleepers.each_ref().map(|socket| socket.local_addr().unwrap());
        assert_eq!(Family::of(&sleeping[0]), Family::V4);
        let (address, _reports) = backend::start();
        let bridge = rig::bridge(shape, &["idle", "web"]);
        let agent = bridge.agent(shape, &[("idle", sleeping[0]), ("idle", sleeping[1]), ("web", address)]);
        let crowd: Vec<TcpStream> = (0..5_000).map(|_| bridge.visit(0)).collect();
        let mut visitor = bridge.visit(1);
        ask(&mut visitor, Order::Send, 1, 1_000_000);
        assert_eq!(read_end(visitor), 1_000_000, "{shape:?}");
        drop(crowd);
        assert_eq!(agent.log.count("down"), 0);
    }
}
