//! Claim: a bridge takes another's place and no visitor notices: none is refused, none is cut, whatever is being carried
//! comes whole, at listeners of the file and at those that an agent has asked for; a new one that dies on the way leaves the old one in service, and an old one that dies leaves the place
//! to the new. Method: real processes and nginx on loopback, visitors without a pause, one long transfer through it all.

mod common;

use common::site::free;
use common::world::{Nginx, World};
use common::{Running, load::Load};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

const TAKEOVER: &[&str] = &["bridge", "--config", "bridge.toml", "--takeover"];

/// A backend that echoes.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let mut back = stream.try_clone().expect("cloned");
            // A visitor of a test that is over may be gone.
            thread::spawn(move || std::io::copy(&mut stream, &mut back));
        }
    });
    address
}

/// Says something and hears it back.
fn speak(stream: &mut TcpStream, n: u32) {
    let words: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(n) >> 11) as u8).collect();
    let mut heard = vec![0; words.len()];
    let mut writer = stream.try_clone().expect("cloned");
    let said = words.clone();
    let writing = thread::spawn(move || writer.write_all(&said));
    stream.read_exact(&mut heard).expect("it comes back");
    writing.join().expect("no panic").expect("it is taken");
    assert!(heard == words, "round {n}: other bytes came back");
}

/// What [`start`] starts.
struct Stage {
    world: World,
    /// A listener that the agent has asked for.
    own: SocketAddr,
    agent: Running,
    long: TcpStream,
    _nginx: Nginx,
}

/// A world with nginx behind `web`, at a listener of the agent's own, too, and an echo behind `echo`; a visitor of the
/// echo is there already.
fn start() -> Stage {
    let world = World::start();
    let nginx = Nginx::start("a");
    let (free, own) = (free(), free());
    let path = world.folder.path().join("bridge.toml");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let more = format!("[[listener]]\nname = \"echo\"\ntype = \"tcp\"\nlisten = \"{free}\"\nservice = \"echo\"\n");
    std::fs::write(&path, text + &more).expect("written");
    world.bridge.wait_line(&["listener \"echo\"", "is new"]);
    let text = format!(
        "[link]\ntoken = \"{}\"\nstate_dir = \"agent\"\n[[expose]]\nservice = \"web\"\naddress = \"{}\"\nlisten = \"{own}\"\n\
         check = {{ interval = \"100ms\" }}\n[[expose]]\nservice = \"echo\"\naddress = \"{}\"\ncheck = {{ interval = \"100ms\" }}\n",
        world.token(&["--listen", &own.to_string()]),
        nginx.address,
        echo()
    );
    std::fs::write(world.folder.path().join("agent.toml"), text).expect("written");
    let agent = Running::start(&mut world.command(&["agent", "--config", "agent.toml"]));
    world.wait_visits(3);
    let mut long = common::until("the echo to answer", || {
        let mut stream = TcpStream::connect(free).ok()?;
        (stream.write_all(b"?").is_ok() && stream.read_exact(&mut [0]).is_ok()).then_some(stream)
    });
    speak(&mut long, 0);
    agent.wait_line(&["the bridge listens for us", &own.to_string()]);
    Stage { world, own, agent, long, _nginx: nginx }
}

/// One bridge after the other under visitors, with one in the middle of a conversation; the old one ends with its last.
#[test]
fn bridges_follow_each_other() {
    let Stage { mut world, own, agent, mut long, _nginx } = start();
    let (load, at_own) = (Load::start(world.web), Load::start(own));
    load.more(20);
    at_own.more(20);
    let next = Running::start(&mut world.command(TAKEOVER));
    next.wait_line(&["taken over"]);
    let mut old = std::mem::replace(&mut world.bridge, next);
    old.wait_line(&["handed over"]);
    load.more(50);
    at_own.more(50);
    speak(&mut long, 1);
    drop(long);
    assert_eq!(old.wait(), 0, "{}", old.text());
    load.more(20);
    // Tokens and the registry are the new one's.
    assert_eq!(world.listing()["agents"][0]["connected"], true);
    common::until("the registry to know", || (world.healthy().len() == 1).then_some(()));
    assert_eq!(agent.text().matches("link up").count(), 2, "{}", agent.text());
    load.end();
    at_own.end();
}

/// The new one dies when it has the sockets, before it is ready or after: the old one starts over, and nobody notices.
#[test]
fn a_new_one_that_dies() {
    let Stage { mut world, own, agent: _agent, mut long, _nginx } = start();
    let (load, at_own) = (Load::start(world.web), Load::start(own));
    for round in 1..3 {
        let before = world.bridge.line_count();
        let mut client = UnixStream::connect(world.folder.path().join("data/admin.sock")).expect("it listens");
        client.write_all(b"\"takeover\"\n").expect("said");
        client.read_exact(&mut [0; 8]).expect("a letter");
        if round == 2 {
            client.write_all(b"ready\n").expect("said");
            world.bridge.wait_line_from(before, &["another process takes over"]);
        }
        drop(client);
        world.bridge.wait_line_from(before, &["starting over"]);
        world.bridge.wait_line_from(before, &["handed over"]);
        load.more(30);
        at_own.more(30);
        speak(&mut long, round);
        assert_eq!(world.listing()["agents"][0]["connected"], true);
    }
    // Then one that lives: who was there before all of it is carried on by the process that started over.
    let next = Running::start(&mut world.command(TAKEOVER));
    next.wait_line(&["taken over"]);
    let mut old = std::mem::replace(&mut world.bridge, next);
    load.more(30);
    at_own.more(30);
    speak(&mut long, 3);
    drop(long);
    assert_eq!(old.wait(), 0, "{}", old.text());
    load.end();
    at_own.end();
}

/// The old one dies when it has given the sockets away: the new one serves.
#[test]
fn an_old_one_that_dies() {
    let Stage { mut world, own, agent: _agent, long: _long, _nginx } = start();
    let next = Running::start(&mut world.command(TAKEOVER));
    world.bridge.wait_line(&["another process takes over"]);
    world.bridge.signal("KILL");
    world.bridge.wait();
    // It had the sockets, or found the place empty.
    next.wait_line(&["bridge is up"]);
    world.bridge = next;
    world.wait_visits(5);
    common::until("a visitor of the agent's listener", || common::world::get(own, "/").ok());
}

/// On four workers, of which one has the agent's link, visitors come to that one alone: after each takeover as before.
#[test]
fn visitors_still_come_where_the_link_is() {
    let mut world = World::start_with("[engine]\nworkers = 4\n");
    let nginx = Nginx::start("a");
    let text = format!(
        "[link]\ntoken = \"{}\"\nstate_dir = \"agent\"\ncarriers = 1\n[[expose]]\nservice = \"web\"\naddress = \"{}\"\n",
        world.token(&[]),
        nginx.address
    );
    std::fs::write(world.folder.path().join("agent.toml"), text).expect("written");
    let _agent = Running::start(&mut world.command(&["agent", "--config", "agent.toml"]));
    for round in 0..3 {
        if round > 0 {
            let next = Running::start(&mut world.command(TAKEOVER));
            next.wait_line(&["taken over"]);
            let mut old = std::mem::replace(&mut world.bridge, next);
            assert_eq!(old.wait(), 0, "{}", old.text());
        }
        // The bridge looks once a second.
        common::until("forty visitors in a row that nobody hands over", || {
            let before = handovers(&world);
            world.wait_visits(40);
            (handovers(&world) == before).then_some(())
        });
    }
}

/// Visitors that a worker has handed to another.
fn handovers(world: &World) -> u64 {
    let (_, text) = common::world::get(world.http, "/metrics").expect("it serves");
    let line =
        text.lines().find_map(|line| line.strip_prefix("ringspan_tunnel_handovers_total ")).expect("it is counted");
    line.parse().expect("a number")
}
