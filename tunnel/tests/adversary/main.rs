//! Whoever is hostile on the link port costs its own connection and nothing else. Every test holds an honest agent's
//! stream open while it attacks, and uses that very stream afterwards; then a new visitor and a new agent come in.

mod harness;
mod midstream;
mod raw;

use harness::{Honest, PATIENCE, Visitor, World};
use raw::{Raw, connect, until_closed};
use ringspan_engine::kernel::facts::raise_nofile;
use ringspan_tunnel::frame::{FRAME_BYTES_MAX, HEADER_BYTES, Header, Kind};
use ringspan_tunnel::hello::{AgentHello, AgentStep, Carrier, CarrierUse, Introduction, Message, VERSIONS};
use ringspan_tunnel::tls::{Binding, ClientTls, ServerTls};
use std::io::Write;
use std::net::Shutdown;

/// Before an attack: a bridge, an honest agent, a visitor with an open stream.
struct Scene {
    world: World,
    honest: Honest,
    visitor: Visitor,
    id: String,
}

impl Scene {
    fn new(with_tls: bool) -> Scene {
        let world = World::new(with_tls);
        let honest = world.agent("honest");
        let visitor = world.visitor();
        let id = world.journal.wait(&["up "]).split(' ').nth(1).unwrap().to_owned();
        Scene { world, honest, visitor, id }
    }

    /// Nothing of it was disturbed, and there is room for more.
    fn is_undisturbed(&mut self) {
        self.visitor.ask();
        self.world.visitor().ask();
        assert!(!self.world.journal.holds(&["gone", &self.id]), "the honest agent was lost");
        assert!(!self.honest.journal.holds(&["down"]), "the honest agent lost a carrier");
        let latecomer = self.world.agent("latecomer");
        assert!(!latecomer.journal.holds(&["down"]), "a newcomer had to try twice");
        // Whoever leaves takes its visitors along: wait until it is known to be gone.
        let from = self.world.journal.len();
        drop(latecomer);
        self.world.journal.wait_from(from, &["gone"]);
        self.world.visitor().ask();
    }
}

fn random(seed: u64, n: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| random.u8(..)).collect()
}

/// Rubbish of many kinds, with and without TLS on the port: each connection is ended by the bridge, and the reason is
/// reported.
#[test]
fn garbage_is_shown_the_door() {
    for with_tls in [true, false] {
        let mut scene = Scene::new(with_tls);
        let mut kinds: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
            vec![0; 4096],
            vec![0xff; 4096],
            // A frame of the right version that is out of place.
            Header { len: 16, ..Header::new(Kind::Data, 7) }.encode().repeat(4),
            // Well-formed TLS records that hold nonsense.
            [[22, 3, 1, 0, 200].as_slice(), &random(1, 200)].concat(),
            [[23, 3, 3, 1, 0].as_slice(), &random(2, 256)].concat(),
        ];
        kinds.extend((10..40).map(|seed| random(seed, 1 + seed as usize * 50)));
        for bytes in kinds {
            let mut socket = connect(scene.world.link());
            // The bridge may have closed before all is written.
            let _ = socket.write_all(&bytes);
            // What is too short to be judged ends when the sender ends.
            let _ = socket.shutdown(Shutdown::Write);
            until_closed(&mut socket);
        }
        scene.world.journal.wait(&["HandshakesFailed"]);
        scene.is_undisturbed();
    }
}

/// An agent that pins another key than the bridge's says so, and never shows its token's proof to the wrong bridge.
#[test]
fn the_wrong_bridge_gets_nothing() {
    let mut scene = Scene::new(true);
    let folder = tempfile::tempdir().unwrap();
    let other = ServerTls::self_signed(folder.path()).unwrap();
    let introduction = scene.world.introduction("misled");
    let id = introduction.identity.id().to_string();
    let misled = Honest::start(&scene.world, introduction, Some(other.fingerprint()));
    let line = misled.journal.wait(&["down", "fingerprint"]);
    assert!(line.contains(&other.fingerprint().to_string()), "{line}");
    scene.world.journal.wait(&["HandshakesFailed", "HandshakeBad"]);
    assert!(!scene.world.journal.holds(&[&id]));
    // TLS against a port without it, and the other way round: both ends say what is wrong, or give up in time.
    let plain = World::new(false);
    let confused = Honest::start(&plain, plain.introduction("confused"), Some(other.fingerprint()));
    confused.journal.wait(&["down", "does not speak TLS"]);
    plain.journal.wait(&["HandshakesFailed", "the peer speaks TLS, and this end does not"]);
    scene.is_undisturbed();
}

/// An AUTH that was good on one connection is worth nothing on another.
#[test]
fn a_replayed_auth_is_refused() {
    for with_tls in [true, false] {
        let mut scene = Scene::new(with_tls);
        let introduction = scene.world.introduction("victim");
        let auth_on = |raw: &mut Raw, binding: Binding| -> Message {
            let (header, payload) = raw.frame().unwrap().unwrap();
            let mut hello = AgentHello::new(introduction.clone(), VERSIONS, Carrier::mux(0, 1), binding);
            match hello.on_message(raw::hello_kind(header.aux), &payload) {
                AgentStep::Send(message) => message,
                step => panic!("{step:?}"),
            }
        };
        let mut first = Raw::connect(&scene.world);
        let binding = first.tls.binding().unwrap();
        let captured = auth_on(&mut first, binding);
        // The same bytes on a second connection.
        let mut second = Raw::connect(&scene.world);
        second.frame().unwrap().unwrap();
        second.hello(&captured);
        let words = second.last_words();
        assert!(words.contains("refused") || words.contains("signature"), "{words:?}");
        assert!(words.contains("does not fit this connection"), "{words:?}");
        // A man in the middle: the victim signed for his nonce, with the binding of its own connection to him.
        if with_tls {
            let mut third = Raw::connect(&scene.world);
            let relayed = auth_on(&mut third, binding);
            third.hello(&relayed);
            assert!(third.last_words().contains("does not fit this connection"));
        }
        // And where it belongs it is good.
        first.hello(&captured);
        scene.world.journal.wait(&["up", &introduction.identity.id().to_string()]);
        scene.is_undisturbed();
    }
}

/// Before the welcome nothing but HELLO passes, of an honest size and once; each offence has an answer.
#[test]
fn strangers_may_only_say_hello() {
    let mut scene = Scene::new(true);
    let over = |kind, len| Header { len, ..Header::new(kind, 0) }.encode().to_vec();
    let hello = |payload: &[u8]| {
        let header = Header { aux: 1, len: payload.len() as u32, ..Header::new(Kind::Hello, 0) };
        [&header.encode(), payload].concat()
    };
    let mut bad_version = Header::new(Kind::Hello, 0).encode();
    bad_version[0] = 0x29;
    let mut bad_kind = Header::new(Kind::Hello, 0).encode();
    bad_kind[0] = 0x1f;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a HELLO over the limit", over(Kind::Hello, (64 << 10) + 1)),
        ("a HELLO of 4 GiB", over(Kind::Hello, u32::MAX)),
        ("DATA over the limit", over(Kind::Data, FRAME_BYTES_MAX + 1)),
        ("DATA", over(Kind::Data, 16)),
        ("OPEN", over(Kind::Open, 0)),
        ("HEALTH", over(Kind::Health, 0)),
        ("another version", bad_version.to_vec()),
        ("an unknown frame", bad_kind.to_vec()),
        ("an unknown step", Header { aux: 77, ..Header::new(Kind::Hello, 0) }.encode().to_vec()),
        ("no JSON", hello(b"nonsense")),
        ("an empty AUTH", hello(b"{}")),
        ("deep JSON", hello(&b"[".repeat(60_000))),
        ("AUTH without substance", hello(br#"{"body":"{\"version\":1}","signature":""}"#)),
    ];
    for (what, bytes) in cases {
        let mut stranger = Raw::connect(&scene.world);
        let _ = stranger.write(&bytes);
        // Bytes behind an offence are not looked at; the connection ends.
        let _ = stranger.write(&random(3, 10_000));
        stranger.last_words();
        assert!(!scene.world.journal.holds(&["panicked"]), "{what}");
    }
    scene.is_undisturbed();
}

/// An agent that was let in and then breaks the protocol loses its own link.
#[test]
fn a_traitor_loses_its_own_link() {
    for with_tls in [true, false] {
        let mut scene = Scene::new(with_tls);
        let raw_header = |byte: u8, len: u32| {
            let mut bytes = Header { len, ..Header::new(Kind::Data, 1) }.encode();
            bytes[0] = byte;
            bytes.to_vec()
        };
        let frame = |kind, payload: &[u8]| {
            [&Header { len: payload.len() as u32, ..Header::new(kind, 0) }.encode(), payload].concat()
        };
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("a frame of 4 GiB", Header { len: u32::MAX, ..Header::new(Kind::Data, 1) }.encode().to_vec()),
            ("another version", raw_header(0x21, 0)),
            ("an unknown frame", raw_header(0x1f, 0)),
            ("an OPEN of the agent's", Header::new(Kind::Open, 1).encode().to_vec()),
            ("a SPARE of the agent's", Header { aux: 9, ..Header::new(Kind::Spare, 0) }.encode().to_vec()),
            ("a second HELLO", frame(Kind::Hello, b"{}")),
            ("health without sense", frame(Kind::Health, b"nonsense")),
            (
                "health of what it has not",
                frame(
                    Kind::Health,
                    br#"{"changes":{"generation":1,"first":1,"changes":[{"backend":9,"health":"up","age_ms":0}]}}"#,
                ),
            ),
            ("health over the limit", Header { len: (64 << 10) + 1, ..Header::new(Kind::Health, 0) }.encode().to_vec()),
        ];
        for (what, bytes) in cases {
            let introduction = scene.world.introduction("traitor");
            let id = introduction.identity.id().to_string();
            let (mut traitor, _) = Raw::enrol(&scene.world, &introduction);
            scene.world.journal.wait(&["up", &id]);
            traitor.write(&bytes).unwrap();
            traitor.last_words();
            let line = scene.world.journal.wait(&["gone", &id]);
            assert!(!line.contains("silent"), "{what} was let pass: {line}");
        }
        // Random frames of the right version, until the bridge has had enough or they are all sent.
        for seed in 0..20u64 {
            let introduction = scene.world.introduction("traitor");
            let id = introduction.identity.id().to_string();
            let (mut traitor, _) = Raw::enrol(&scene.world, &introduction);
            scene.world.journal.wait(&["up", &id]);
            let mut dice = fastrand::Rng::with_seed(seed);
            for _ in 0..200 {
                let mut head = [0; HEADER_BYTES];
                head.fill_with(|| dice.u8(..));
                head[0] = 0x10 | dice.u8(1..11);
                head[6..8].fill(0);
                head[9..12].fill(0);
                let body = random(dice.u64(..), head[8].into());
                if traitor.write(&[&head[..], &body].concat()).is_err() {
                    break;
                }
            }
            drop(traitor);
            scene.world.journal.wait(&["gone", &id]);
        }
        scene.is_undisturbed();
    }
}

/// A direct carrier comes in beside its own link alone: not without one, not for another connection of it, not for another
/// agent's session. One that waits and talks
/// out of turn loses itself and not its link.
#[test]
fn direct_carriers_belong_to_links() {
    for with_tls in [true, false] {
        let mut scene = Scene::new(with_tls);
        let mine = scene.world.introduction("traitor");
        let id = mine.identity.id().to_string();
        let direct = Carrier { used: CarrierUse::Direct, ..Carrier::mux(0, 1) };
        let refused = |introduction: &Introduction, place| {
            let why = Raw::greet(&scene.world, introduction, place).err().expect("it is kept out");
            assert!(why.contains("without its link"), "{why}");
        };
        refused(&mine, direct);
        let (mut link, _) = Raw::enrol(&scene.world, &mine);
        scene.world.journal.wait(&["up", &id]);
        refused(&mine, Carrier { serial: 7, ..direct });
        refused(&mine, Carrier { index: 1, count: 2, ..direct });
        let mut stranger = scene.world.introduction("stranger");
        stranger.session = mine.session;
        refused(&stranger, direct);
        for frame in [Header { len: 1, ..Header::new(Kind::Rst, 1) }, Header::new(Kind::Open, 0)] {
            let (mut spare, _) = Raw::greet(&scene.world, &mine, direct).expect("its link is up");
            spare.write(&[&frame.encode()[..], &[0]].concat()).unwrap();
            spare.last_words();
        }
        assert!(!scene.world.journal.holds(&["gone", &id]), "the link outlives its direct carriers");
        link.write(&Header { aux: 1, ..Header::new(Kind::Spare, 0) }.encode()).unwrap();
        link.last_words();
        scene.world.journal.wait(&["gone", &id]);
        scene.is_undisturbed();
    }
}

/// 2,000 connections that say nothing, or half of something: honest agents come in meanwhile, the bridge's memory of
/// strangers stays within its limit, and all of them are gone in the end.
#[test]
fn two_thousand_idlers_keep_nobody_out() {
    // Both ends of each are in this process.
    raise_nofile().unwrap();
    let mut scene = Scene::new(true);
    let client_hello = ClientTls::pinned(scene.world.tls.as_ref().unwrap().fingerprint()).connect("x").unwrap();
    let client_hello = client_hello.outgoing().to_vec();
    let mut idlers = Vec::new();
    for n in 0..2_000 {
        let mut idler = connect(scene.world.link());
        // Nothing, half a ClientHello, a whole one and then silence.
        let said = [0, client_hello.len() / 2, client_hello.len()][n % 3];
        let _ = idler.write_all(&client_hello[..said]);
        idlers.push(idler);
        if n % 400 == 399 {
            scene.is_undisturbed();
        }
        let open = scene.world.handle.stats().handshakes_open;
        assert!(open <= 2 * 256, "{open} strangers are held");
    }
    for idler in &mut idlers {
        until_closed(idler);
    }
    scene.is_undisturbed();
    let deadline = std::time::Instant::now() + PATIENCE;
    while scene.world.handle.stats().handshakes_open > 0 {
        assert!(std::time::Instant::now() < deadline, "strangers are still held");
        std::thread::yield_now();
    }
}
