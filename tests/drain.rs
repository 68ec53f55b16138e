//! Claim: a stop lets visitors finish and takes no new ones, at the bridge and at the agent; a second signal, or a time
//! that is over, ends it. Method: real processes on loopback; a backend that says half of its answer and waits.

mod common;

use common::origin::{Origin, head, value};
use common::world::{World, get};
use common::{PATIENCE, Running, until};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

/// Bytes of a download: more than sockets and windows hold.
const BYTES: usize = 4 << 20;

fn pattern() -> Vec<u8> {
    (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A backend that sends the first half of a download, and the rest when it is told to.
fn halves() -> (Origin, Sender<()>) {
    let (release, released) = channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let origin = Origin::start(move |mut from, _| {
        let Some(head) = head(&mut from) else { return };
        if !head.starts_with("GET /slow") {
            let _ = from.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            return;
        }
        let (all, first) = (pattern(), format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n"));
        let _ = from.get_mut().write_all(first.as_bytes());
        let _ = from.get_mut().write_all(&all[..BYTES / 2]);
        let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
        let _ = from.get_mut().write_all(&all[BYTES / 2..]);
    });
    (origin, release)
}

/// A visitor in the middle of a download.
fn begin(to: SocketAddr) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(TcpStream::connect(to).expect("it listens"));
    stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream.get_mut().write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").expect("it listens");
    head(&mut stream).expect("a head");
    let mut half = vec![0; BYTES / 2];
    stream.read_exact(&mut half).expect("the first half");
    assert!(half == pattern()[..BYTES / 2], "other bytes came");
    stream
}

fn finish(mut stream: BufReader<TcpStream>, release: &Sender<()>) {
    release.send(()).expect("the backend waits");
    let mut rest = vec![0; BYTES / 2];
    stream.read_exact(&mut rest).expect("the second half");
    assert!(rest == pattern()[BYTES / 2..], "other bytes came");
}

/// Bridge and agent, and which of them is to stop.
fn start(more: &str) -> (World, Origin, Sender<()>, Running) {
    let world = World::start_with(more);
    let (origin, release) = halves();
    let agent = world.agent_of(&[("web", origin.address)]);
    world.wait_visits(3);
    (world, origin, release, agent)
}

const SITE: &str = "[[listener]]\nname = \"site\"\ntype = \"http\"\nlisten = \"127.0.0.1:0\"\nservice = \"web\"\n";

fn connect(to: SocketAddr) -> BufReader<TcpStream> {
    let stream = BufReader::new(TcpStream::connect(to).expect("it listens"));
    stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a live socket");
    stream
}

/// A bridge that stops: downloads through a tcp and an http listener come whole, nobody new is let in, and it ends with
/// the last of them.
#[test]
fn a_bridge_lets_them_finish() {
    let (mut world, _origin, release, agent) = start(SITE);
    let (tcp, http) = (begin(world.web), begin(world.listener("site")));
    world.bridge.signal("TERM");
    world.bridge.wait_line(&["bridge drains", "a second signal"]);
    agent.wait_line(&["draining"]);
    until("nobody to be let in", || TcpStream::connect(world.web).is_err().then_some(()));
    until("nobody to be let in", || TcpStream::connect(world.listener("site")).is_err().then_some(()));
    finish(tcp, &release);
    assert!(!world.bridge.text().contains("bridge stops"), "{}", world.bridge.text());
    finish(http, &release);
    assert_eq!(world.bridge.wait(), 0, "{}", world.bridge.text());
    assert!(!world.bridge.text().contains("ended by a second signal"));
}

/// The second signal ends it, whoever is there; a time of 0 ends it at the first.
#[test]
fn a_second_signal_ends_it() {
    let (mut world, _origin, _release, _agent) = start("");
    let mut tcp = begin(world.web);
    world.bridge.signal("TERM");
    world.bridge.wait_line(&["bridge drains"]);
    until("nobody to be let in", || TcpStream::connect(world.web).is_err().then_some(()));
    world.bridge.signal("INT");
    world.bridge.wait_line(&["ended by a second signal"]);
    assert_eq!(world.bridge.wait(), 0);
    assert!(tcp.read_exact(&mut vec![0; BYTES / 2]).is_err(), "it was not whole");

    let (mut world, _origin, _release, _agent) = start("");
    let file = world.folder.path().join("bridge.toml");
    let text = std::fs::read_to_string(&file).expect("it is there");
    std::fs::write(&file, "drain = \"0s\"\n".to_owned() + &text).expect("written");
    world.bridge.wait_line(&["drain is 0ns"]);
    let mut tcp = begin(world.web);
    world.bridge.signal("TERM");
    assert_eq!(world.bridge.wait(), 0, "{}", world.bridge.text());
    assert!(tcp.read_exact(&mut vec![0; BYTES / 2]).is_err(), "it was not whole");
}

/// An agent that stops: what it carries comes whole, and the bridge sends new visitors to another agent, without one
/// that is lost; its second signal ends it.
#[test]
fn an_agent_lets_them_finish() {
    let (world, _origin, release, mut agent) = start("");
    let tcp = begin(world.web);
    let (other, _other_release) = halves();
    let second = world.agent("second", &world.token(&[]), &[other.address]);
    until("the second agent", || (get(world.web, "/").is_ok() && other.connections() > 2).then_some(()));
    let load = common::load::Load::start(world.web);
    load.more(10);
    agent.signal("TERM");
    agent.wait_line(&["agent drains"]);
    load.more(30);
    finish(tcp, &release);
    assert_eq!(agent.wait(), 0, "{}", agent.text());
    load.more(30);
    load.end();

    let mut tcp = begin(world.web);
    second.signal("TERM");
    second.wait_line(&["agent drains"]);
    until("no new visitors", || get(world.web, "/").is_err().then_some(()));
    let mut second = second;
    second.signal("TERM");
    second.wait_line(&["ended by a second signal"]);
    assert_eq!(second.wait(), 0);
    assert!(tcp.read_exact(&mut vec![0; BYTES / 2]).is_err(), "it was not whole");
}

/// An http visitor whose connection would be kept is told that it is not, with the answer that was under way.
#[test]
fn kept_connections_are_closed() {
    let mut world = World::start_with(SITE);
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let origin = Origin::start(move |mut from, _| {
        while head(&mut from).is_some() {
            let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
            let _ = from.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let _agent = world.agent_of(&[("web", origin.address)]);
    let site = world.listener("site");
    let (mut idle, mut busy) = (connect(site), connect(site));
    release.send(()).expect("the backend waits");
    for (stream, answered) in [(&mut idle, true), (&mut busy, false)] {
        stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it listens");
        if answered {
            let head = head(stream).expect("an answer");
            assert_eq!(value(&head, "connection"), None, "it is kept: {head}");
            stream.read_exact(&mut [0; 2]).expect("a body");
        }
    }
    until("the request to be under way", || (origin.connections() >= 1).then_some(()));
    world.bridge.signal("TERM");
    world.bridge.wait_line(&["bridge drains"]);
    assert_eq!(idle.read(&mut [0]).expect("a clean end"), 0, "one that is idle ends in a second");
    release.send(()).expect("the backend waits");
    let head = head(&mut busy).expect("an answer");
    assert_eq!(value(&head, "connection"), Some("close"), "{head}");
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).expect("a clean end");
    assert_eq!(rest, b"ok");
    assert_eq!(world.bridge.wait(), 0, "{}", world.bridge.text());
}

/// A request that is on its way when the bridge stops is answered, and its visitor told not to send another one: the first
/// of a connection that was just let in, and the next of one that was kept.
#[test]
fn requests_on_their_way_are_answered() {
    let mut world = World::start_with(SITE);
    let origin = Origin::mirror();
    let _agent = world.agent_of(&[("web", origin.address)]);
    let site = world.listener("site");
    let ask = |stream: &mut BufReader<TcpStream>| {
        stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it reads");
    };
    let hear = |stream: &mut BufReader<TcpStream>| {
        let answer = head(stream).expect("an answer");
        let length = value(&answer, "content-length").expect("a length").parse().expect("a number");
        stream.read_exact(&mut vec![0; length]).expect("a body");
        answer
    };
    let (mut fresh, mut kept) = (connect(site), connect(site));
    ask(&mut kept);
    assert_eq!(value(&hear(&mut kept), "connection"), None, "it is kept");
    until("both to be let in", || {
        let (_, text) = common::world::get(world.http, "/metrics").ok()?;
        text.contains("ringspan_http_visitors{listener=\"site\"} 2").then_some(())
    });
    world.bridge.signal("TERM");
    world.bridge.wait_line(&["bridge drains"]);
    until("the door to be closed", || TcpStream::connect(site).is_err().then_some(()));
    ask(&mut fresh);
    ask(&mut kept);
    for stream in [&mut fresh, &mut kept] {
        let answer = hear(stream);
        assert!(answer.starts_with("HTTP/1.1 200") && value(&answer, "connection") == Some("close"), "{answer}");
        assert_eq!(stream.read(&mut [0]).expect("a clean end"), 0);
    }
    assert_eq!(world.bridge.wait(), 0, "{}", world.bridge.text());
}
