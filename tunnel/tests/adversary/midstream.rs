//! Whoever was let in, is given a stream, and lies in the middle of it loses that link and nothing else: a hostile agent to an
//! honest bridge, and a hostile bridge to an honest agent. Other links, their streams and newcomers notice nothing.

use super::Scene;
use super::harness::{Honest, PATIENCE, World};
use super::raw::{Raw, connect, hello_kind};
use ringspan_tunnel::frame::{FLAG_FIN, FLAG_MOVED, HEADER_BYTES, Header, Kind};
use ringspan_tunnel::hello::{BridgeHello, BridgeStep, Limits, VERSIONS, Welcome};
use ringspan_tunnel::keys;
use ringspan_tunnel::tls::Binding;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

/// What may be sent of a stream whose receiver grants nothing before an honest peer has had enough: several times all
/// that windows and the sockets' buffers can hold.
const FLOOD_BYTES: usize = 64 << 20;

/// A frame with an honest length.
fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
    [&Header { len: payload.len() as u32, ..header }.encode()[..], payload].concat()
}

/// The lies about a stream that both sides can tell. `None`: it says DATA, whatever it was granted.
fn lies(stream: u32) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let data = |flags| Header { flags, ..Header::new(Kind::Data, stream) };
    let grant = frame(Header { credit: u32::MAX, ..Header::new(Kind::Window, stream) }, b"");
    let mut version = frame(data(0), b"x");
    version[0] = 0x20 | (version[0] & 0x0f);
    let told = [
        ("more credit than there is", grant.repeat(2)),
        ("FIN twice", frame(data(FLAG_FIN), b"").repeat(2)),
        ("DATA after FIN", [frame(data(FLAG_FIN), b"end"), frame(data(0), b"more")].concat()),
        ("MOVED with bytes", frame(data(FLAG_MOVED), b"x")),
        ("MOVED and FIN", frame(data(FLAG_MOVED | FLAG_FIN), b"")),
        ("MOVED twice", frame(data(FLAG_MOVED), b"").repeat(2)),
        ("RST with bytes", frame(Header::new(Kind::Rst, stream), b"why")),
        ("another version behind a good frame", [frame(data(0), b"good"), version].concat()),
        ("a frame of 4 GiB behind a good one", {
            let long = Header { len: u32::MAX, ..data(0) }.encode();
            [frame(data(0), b"good"), long.to_vec()].concat()
        }),
    ];
    let told = told.into_iter().map(|(what, bytes)| (what, Some(bytes)));
    [("DATA beyond the window", None)].into_iter().chain(told).collect()
}

/// Says it; the far end may be gone before all is said.
fn tell(lie: Option<Vec<u8>>, stream: u32, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
    match lie {
        Some(bytes) => drop(write(&bytes)),
        None => {
            let piece = frame(Header::new(Kind::Data, stream), &[7; 16 << 10]);
            for _ in 0..FLOOD_BYTES / piece.len() {
                if write(&piece).is_err() {
                    return;
                }
            }
        }
    }
}

/// An agent with a visitor of the service on its link, and the stream's id.
fn traitor_with_stream(scene: &Scene) -> (Raw, String, u32, Vec<TcpStream>) {
    let introduction = scene.world.introduction("traitor");
    let id = introduction.identity.id().to_string();
    let (mut traitor, welcome) = Raw::enrol(&scene.world, &introduction);
    scene.world.journal.wait(&["up", &id]);
    let from = scene.world.journal.len();
    let health = format!(
        r#"{{"snapshot":{{"generation":{},"sequence":0,"backends":[{{"backend":0,"health":"up","code":"L4OK","age_ms":0}}]}}}}"#,
        welcome.generation
    );
    traitor.send(Header::new(Kind::Health, 0), health.as_bytes()).unwrap();
    scene.world.journal.wait_from(from, &["health", &id, "Up"]);
    // In turn: of three visitors on one worker, one comes here.
    let visitors: Vec<TcpStream> = (0..6).map(|_| connect(scene.world.public())).collect();
    loop {
        let (header, _) = traitor.frame().unwrap().expect("it has done nothing yet");
        if header.kind == Kind::Open {
            return (traitor, id, header.stream, visitors);
        }
    }
}

/// Each lie of an agent's costs its link, at once and with a reason that is no silence; the honest agent's stream goes on.
#[test]
fn a_lying_agent_loses_its_link() {
    for with_tls in [true, false] {
        let mut scene = Scene::new(with_tls);
        // A marker for a direct carrier that the bridge has not chosen.
        let alone = |stream| {
            let marker = Header { flags: FLAG_MOVED, ..Header::new(Kind::Data, stream) };
            ("MOVED unasked", Some(frame(marker, b"")))
        };
        for case in 0..=lies(1).len() {
            let (mut traitor, id, stream, visitors) = traitor_with_stream(&scene);
            let (what, lie) = lies(stream).into_iter().nth(case).unwrap_or_else(|| alone(stream));
            tell(lie, stream, |bytes| traitor.write(bytes));
            let line = scene.world.journal.wait(&["gone", &id]);
            assert!(!line.contains("silent"), "{what} was let pass: {line}");
            drop(visitors);
        }
        scene.is_undisturbed();
    }
}

/// A hostile bridge, without TLS: one connection of an agent's.
struct Host {
    socket: TcpStream,
}

impl Host {
    /// Takes an agent in.
    fn welcome(listener: &TcpListener) -> Host {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut host = Host { socket };
        let (mut hello, challenge) = BridgeHello::new(VERSIONS, keys::random(), Binding::NONE, "hostile");
        host.say(Header { aux: challenge.kind as u16, ..Header::new(Kind::Hello, 0) }, &challenge.payload);
        let (header, payload) = host.frame().expect("an honest agent answers");
        let BridgeStep::Decide(applicant) = hello.on_message(hello_kind(header.aux), &payload) else {
            panic!("an honest agent proves who it is");
        };
        let limits = Limits { window_bytes: 256 << 10, frame_bytes_max: 64 << 10 };
        let welcome = Welcome { agent: applicant.agent, generation: 1, limits, software: String::new(), opened: None };
        let message = hello.on_decision(&Ok(welcome)).expect("it was asked to decide");
        host.say(Header { aux: message.kind as u16, ..Header::new(Kind::Hello, 0) }, &message.payload);
        host
    }

    fn say(&mut self, header: Header, payload: &[u8]) {
        self.socket.write_all(&frame(header, payload)).unwrap();
    }

    /// The next frame; `None` at the end.
    fn frame(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut head = [0; HEADER_BYTES];
        self.socket.read_exact(&mut head).ok()?;
        let header = Header::decode(&head).expect("an honest agent's frames are good");
        let mut payload = vec![0; header.len as usize];
        self.socket.read_exact(&mut payload).ok()?;
        Some((header, payload))
    }

    /// Opens a stream and hears from its backend through it.
    fn open(&mut self, stream: u32) {
        self.say(Header::new(Kind::Open, stream), b"");
        self.say(Header::new(Kind::Data, stream), b"hello");
        loop {
            let (header, payload) = self.frame().expect("the agent serves");
            if header.kind == Kind::Data && header.stream == stream && header.len > 0 {
                return assert_eq!(payload, b"hello");
            }
        }
    }
}

/// Each lie of a bridge's costs the carrier that it was told on; the agent's other carrier goes on serving, and a new one
/// comes for the one that was lost.
#[test]
fn a_lying_bridge_loses_the_agent() {
    let world = World::new(false);
    const STREAM: u32 = 1;
    let open = frame(Header::new(Kind::Open, STREAM), b"");
    let mut cases: Vec<_> = lies(STREAM).into_iter().collect();
    cases.push(("OPEN with an id in use", Some(open)));
    cases.push(("OPEN with no id", Some(frame(Header::new(Kind::Open, 0), b""))));
    for (what, lie) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let honest = Honest::start_at(listener.local_addr().unwrap(), world.introduction("honest"), None);
        let (mut lying, mut other) = (Host::welcome(&listener), Host::welcome(&listener));
        lying.open(STREAM);
        other.open(STREAM);
        let mut socket = lying.socket.try_clone().unwrap();
        tell(lie, STREAM, |bytes| socket.write_all(bytes));
        let line = honest.journal.wait(&["down"]);
        assert!(line.contains("protocol"), "{what}: {line}");
        other.open(STREAM + 1);
        Host::welcome(&listener).open(STREAM);
    }
}
