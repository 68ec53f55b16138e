//! Claim: a new configuration takes nobody down: no visitor is lost over reloads of bridge and agent, whoever they are
//! with; a bad file changes nothing and is told. Method: real processes and nginx on loopback; visitors as fast as two
//! threads can, all of them counted; every wait ends with an event.

mod common;

use common::load::Load;
use common::site::free;
use common::world::{Nginx, World, get};
use common::{Running, until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

fn write(world: &World, name: &str, text: &str) {
    // As an editor does it: another file in the old one's place.
    let path = world.folder.path().join(name);
    std::fs::write(path.with_extension("new"), text).expect("written");
    std::fs::rename(path.with_extension("new"), path).expect("renamed");
}

fn read(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.folder.path().join(name)).expect("it is there")
}

/// Listeners come, move and go by a change of the file; a file with a mistake, or with an address that another process
/// has, changes nothing and is told with line and key; SIGHUP reads it again.
#[test]
fn a_bridge_reads_its_file_again() {
    let world = World::start();
    let nginx = Nginx::start("a");
    let _agent = world.agent("agent", &world.token(&[]), &[nginx.address]);
    world.wait_visits(3);
    let load = Load::start(world.web);
    let good = read(&world, "bridge.toml");
    let more = free();
    let listener = |listen: SocketAddr, service: &str| {
        format!("[[listener]]\nname = \"more\"\ntype = \"tcp\"\nlisten = \"{listen}\"\nservice = \"{service}\"\n")
    };
    write(&world, "bridge.toml", &(good.clone() + &listener(more, "web")));
    world.bridge.wait_line(&["listener \"more\"", "is new"]);
    assert_eq!(get(more, "/").expect("it is open").1, "a");
    load.more(20);

    let before = world.bridge.line_count();
    write(&world, "bridge.toml", &(good.clone() + &listener(more, "nobody")));
    world.bridge.wait_line_from(before, &["for service \"nobody\" in place of \"web\""]);
    until("visitors to be told", || get(more, "/").is_err().then_some(()));

    let before = world.bridge.line_count();
    write(&world, "bridge.toml", &good.replace("type = \"tcp\"", "type = \"tpc\""));
    world.bridge.wait_line_from(before, &["the old one stays", "bridge.toml:8", "type = \"tpc\""]);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let before = world.bridge.line_count();
    write(&world, "bridge.toml", &(good.clone() + &listener(address, "web")));
    world.bridge.wait_line_from(before, &["the old one stays", "[[listener]]", "Address already in use"]);
    load.more(20);

    let before = world.bridge.line_count();
    write(&world, "bridge.toml", &good);
    world.bridge.wait_line_from(before, &["listener \"more\"", "is gone"]);
    until("nobody to listen", || std::net::TcpStream::connect(more).is_err().then_some(()));
    let before = world.bridge.line_count();
    world.bridge.signal("HUP");
    world.bridge.wait_line_from(before, &["configuration read again", "Asked"]);
    load.more(20);
    load.end();
}

/// A listener turns into each other type where it is, and moves between an address and the wildcard of its port: each time it is
/// open afterwards, as what it is then; one that another process has leaves open what was.
#[test]
fn listeners_change_where_they_are() {
    let world = World::start();
    let nginx = Nginx::start("a");
    let _agent = world.agent("agent", &world.token(&[]), &[nginx.address]);
    world.wait_visits(3);
    let good = read(&world, "bridge.toml");
    let port = free().port();
    let kinds = [("tcp", ""), ("http", ""), ("socks5", "auth = \"none\"\n"), ("connect", "auth = \"none\"\n")];
    let pairs = kinds.iter().flat_map(|from| kinds.iter().map(move |to| [from, to])).flatten();
    let places = ["127.0.0.1", "127.0.0.1", "0.0.0.0"];
    let mut is_now = ("", "");
    for ((kind, more), place) in pairs.zip(places.iter().cycle()) {
        if std::mem::replace(&mut is_now, (*kind, *place)) == (*kind, *place) {
            continue;
        }
        let before = world.bridge.line_count();
        let listener = format!(
            "[[listener]]\nname = \"turns\"\ntype = \"{kind}\"\nlisten = \"{place}:{port}\"\nservice = \"web\"\n{more}"
        );
        write(&world, "bridge.toml", &(good.clone() + &listener));
        world.bridge.wait_line_from(before, &["listener \"turns\""]);
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        match *kind {
            "tcp" | "http" => assert_eq!(get(at, "/").expect(kind).1, "a", "{kind} on {place}"),
            "connect" => assert_eq!(get(at, "/").expect(kind).0, 405, "{kind} on {place}"),
            _ => {
                let mut stream = TcpStream::connect(at).expect(kind);
                stream.write_all(&[5, 1, 0]).expect("it reads");
                stream.read_exact(&mut [0; 2]).expect("it answers");
            }
        }
    }
    assert_eq!(world.bridge.text().matches("could not be had again").count(), 0);
}

/// Backends come and go by a change of the agent's file, under visitors: none is lost, the new ones are visited and the
/// old ones are not; a service that the token does not cover is refused, and the old configuration stays.
#[test]
fn an_agent_reads_its_file_again() {
    let world = World::start();
    let (a, b) = (Nginx::start("a"), Nginx::start("b"));
    let agent = world.agent("agent", &world.token(&["--service", "web"]), &[a.address]);
    world.wait_visits(3);
    let load = Load::start(world.web);
    let names = || (0..20).map(|_| world.visit().expect("answered")).collect::<std::collections::HashSet<_>>();
    let one = read(&world, "agent.toml");
    let expose = |service: &str, address: SocketAddr| {
        format!("[[expose]]\nservice = \"{service}\"\naddress = \"{address}\"\ncheck = {{ interval = \"100ms\" }}\n")
    };
    for round in 0..3 {
        let before = agent.line_count();
        write(&world, "agent.toml", &(one.clone() + &expose("web", b.address)));
        agent.wait_line_from(before, &["the new configuration is in force", "exposes=2"]);
        until("both backends", || (names().len() == 2).then_some(()));
        load.more(20);
        let before = agent.line_count();
        let text = if round == 1 { one.clone() } else { one.replace(&a.address.to_string(), &b.address.to_string()) };
        write(&world, "agent.toml", &text);
        agent.wait_line_from(before, &["the new configuration is in force", "exposes=1"]);
        let left = if round == 1 { "a" } else { "b" };
        until("one backend", || (names() == [left.to_owned()].into()).then_some(()));
        load.more(20);
    }
    let before = agent.line_count();
    write(&world, "agent.toml", &(one.clone() + &expose("secret", b.address)));
    agent.wait_line_from(before, &["the bridge refuses the new configuration", "secret", "the old one stays"]);
    let before = agent.line_count();
    write(&world, "agent.toml", "[link]\ncarriers = 99\n");
    agent.wait_line_from(before, &["the old one stays", "carriers = 99"]);
    load.more(20);
    load.end();
}

/// What the bridge is not told of follows the agent's file, too: where a proxy's visitors may go, and how a socket at a path
/// is checked. A name takes a restart, and that is said, each time.
#[test]
fn what_an_agent_keeps_to_itself_is_read_again() {
    let world = World::start();
    let nginx = Nginx::start("a");
    let socks = free();
    let listener = format!(
        "[[listener]]\nname = \"socks\"\ntype = \"socks5\"\nauth = \"none\"\nlisten = \"{socks}\"\nservice = \"out\"\n"
    );
    write(&world, "bridge.toml", &(read(&world, "bridge.toml") + &listener));
    world.bridge.wait_line(&["listener \"socks\"", "is new"]);
    let agent = world.agent("agent", &world.token(&[]), &[nginx.address]);
    world.wait_visits(3);
    let one = read(&world, "agent.toml");
    let change = |more: &str, lines: &[&str]| {
        let before = agent.line_count();
        write(&world, "agent.toml", &(one.clone() + more));
        lines.iter().for_each(|line| drop(agent.wait_line_from(before, &[line])));
    };
    // SOCKS 5 (RFC 1928): no login, CONNECT; what the reply says.
    let reply = || {
        let mut stream = TcpStream::connect(socks).expect("it listens");
        stream.set_read_timeout(Some(common::PATIENCE)).expect("a live socket");
        let port = nginx.address.port().to_be_bytes();
        stream.write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, port[0], port[1]]).expect("it listens");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("an answer");
        answer[3]
    };
    let proxy = |allow: &str| format!("[[expose]]\nservice = \"out\"\ntype = \"proxy\"\nallow = [\"{allow}\"]\n");
    change(&proxy("127.0.0.1:*"), &["[[expose]] \"out\" at proxy is new", "the new configuration is in force"]);
    until("the way to be open", || (reply() == 0).then_some(()));
    change(&proxy("10.0.0.1:80"), &["\"out\" at proxy has other settings", "the new configuration is in force"]);
    until("the way to be closed", || (reply() == 2).then_some(()));
    let path = |interval: &str| {
        let check = format!("check = {{ interval = \"{interval}\" }}");
        format!("[[expose]]\nservice = \"path\"\naddress = \"unix:no.sock\"\n{check}\n")
    };
    change(&path("1s"), &["is new", "the new configuration is in force"]);
    change(&path("2s"), &["has another check", "the new configuration is in force"]);
    let named = "[link] name = \"other\" cannot be had by a running agent";
    for more in ["", "drain = \"9s\"\n"] {
        let before = agent.line_count();
        let text = format!("{more}{}", one.replace("[link]\n", "[link]\nname = \"other\"\n"));
        write(&world, "agent.toml", &text);
        agent.wait_line_from(before, &[named, "Try: restart"]);
    }
}

/// A file that makes an agent somebody whom the bridge does not let in changes nothing: who is carried goes on, and others come. One that it
/// lets in takes the older one's place.
#[test]
fn an_agent_stays_who_it_was() {
    let world = World::start();
    let nginx = Nginx::start("a");
    // It is used up when the agent has joined.
    let agent = world.agent("one", &world.token(&["--uses", "1"]), &[nginx.address]);
    world.wait_visits(3);
    let mut long = TcpStream::connect(world.web).expect("it listens");
    long.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").expect("it listens");
    until("the long one to be carried", || (world.listing()["agents"][0]["connected"] == true).then_some(()));
    let good = read(&world, "one.toml");
    write(&world, "one.toml", &good.replace("state_dir = \"one\"", "state_dir = \"two\""));
    agent.wait_line(&["no bridge of the file wants us", "no uses left"]);
    world.wait_visits(20);

    let before = agent.line_count();
    let again = good.replace("state_dir = \"one\"", "state_dir = \"three\"");
    let token = again.lines().find(|line| line.starts_with("token")).expect("there is one").to_owned();
    write(&world, "one.toml", &again.replace(&token, &format!("token = \"{}\"", world.token(&[]))));
    agent.wait_line_from(before, &["a bridge is gone from the file"]);
    world.wait_visits(20);
    let mut answer = String::new();
    long.write_all(b"Connection: close\r\n\r\n").expect("it is open");
    long.read_to_string(&mut answer).expect("a whole answer");
    assert!(answer.ends_with("\r\n\r\na"), "{answer}");
    // By now nobody goes by the older one, and its end is no longer waited for.
    assert_eq!(world.listing()["agents"].as_array().map(Vec::len), Some(2));
}

/// Limits, lists, agents' limits and memory follow the file, and whoever is counted stays counted; what a running bridge
/// cannot change is named with both values and the way out, and the rest of that file holds.
#[test]
fn rules_are_read_again() {
    let world = World::start();
    let nginx = Nginx::start("a");
    let _agent = world.agent("agent", &world.token(&[]), &[nginx.address]);
    world.wait_visits(3);
    let good = read(&world, "bridge.toml");
    let change = |more: &str, lines: &[&str]| {
        let before = world.bridge.line_count();
        write(&world, "bridge.toml", &(good.clone() + more));
        lines.iter().for_each(|line| drop(world.bridge.wait_line_from(before, &[line])));
        world.bridge.wait_line_from(before, &["configuration read again", "Changed"]);
    };
    // One that is carried, and counted: nginx waits for the end of its request.
    let enter = || {
        let mut stream = TcpStream::connect(world.web).expect("it listens");
        stream.set_read_timeout(Some(common::PATIENCE)).expect("a live socket");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").expect("it listens");
        stream
    };
    let finish = |mut stream: TcpStream| {
        let mut answer = String::new();
        let said = stream.write_all(b"Connection: close\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
        said.is_ok_and(|_| answer.ends_with("\r\n\r\na"))
    };
    // One that is in, and after which nobody is let in.
    let fill = || {
        until("one that fills it", || {
            let one = enter();
            let is_full = (0..3).all(|_| world.visit().is_err());
            one.set_nonblocking(true).expect("a live socket");
            let is_in = one.peek(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            one.set_nonblocking(false).expect("a live socket");
            (is_full && is_in).then_some(one)
        })
    };
    let service = |limits: &str| format!("[[service]]\nname = \"web\"\nlimits = {{ {limits} }}\n");
    let agents = |n: u32| format!("[[agent]]\nlimits = {{ connections = {n} }}\n");

    for (limits, told) in [
        (&(&|n: u32| service(&format!("connections = {n}"))) as &dyn Fn(u32) -> String, "service \"web\""),
        (&agents, "[[agent]] limits"),
    ] {
        change(&limits(1), &[told]);
        let first = fill();
        change(&limits(2), &[told]);
        until("room for a second", || world.visit().is_ok().then_some(()));
        // The first is counted still: one more, and it is full.
        let second = fill();
        assert!(finish(first) && finish(second), "who is in is carried on");
    }
    change(&service("deny = [\"127.0.0.0/8\"]"), &["service \"web\""]);
    until("the list to hold", || world.visit().is_err().then_some(()));
    change("[memory]\nwaiting = \"32MiB\"\n", &["[memory] is another one"]);
    world.wait_visits(3);
    change(
        &("[engine]\nworkers = 7\n".to_owned() + &service("connections = 9")),
        &["[engine] workers = 7 cannot be had by a running bridge", "restart (or --takeover)", "service \"web\""],
    );
    world.wait_visits(3);
}

/// The file is deleted under a running bridge: nothing changes, and SIGHUP is told why.
#[test]
fn a_deleted_file_changes_nothing() {
    let world = World::start();
    let nginx = Nginx::start("a");
    let _agent = world.agent("agent", &world.token(&[]), &[nginx.address]);
    world.wait_visits(3);
    let good = read(&world, "bridge.toml");
    std::fs::remove_file(world.folder.path().join("bridge.toml")).expect("it is there");
    world.bridge.signal("HUP");
    world.bridge.wait_line(&["the old one stays", "bridge.toml: cannot be read"]);
    world.wait_visits(3);
    let before = world.bridge.line_count();
    write(&world, "bridge.toml", &good);
    world.bridge.wait_line_from(before, &["configuration read again: the same"]);
}

/// One agent at two bridges: both serve, the loss of one is none to the other, and one that is gone from the file gets
/// its last visitors carried and no more.
#[test]
fn an_agent_has_several_bridges() {
    let (mut here, there) = (World::start(), World::start());
    let nginx = Nginx::start("a");
    let text = |more: &str| {
        format!(
            "[link]\ntoken = \"{}\"\nstate_dir = \"one\"\n{more}[[expose]]\nservice = \"web\"\naddress = \"{}\"\n\
             check = {{ interval = \"100ms\" }}\n",
            here.token(&[]),
            nginx.address
        )
    };
    let both = text(&format!("[[bridge]]\ntoken = \"{}\"\nstate_dir = \"two\"\n", there.token(&[])));
    write(&here, "agent.toml", &both);
    let agent = Running::start(&mut here.command(&["agent", "--config", "agent.toml"]));
    here.wait_visits(3);
    there.wait_visits(3);
    let load = Load::start(there.web);
    load.more(10);
    here.bridge.signal("KILL");
    here.bridge.wait();
    load.more(30);
    here.restart_bridge();
    here.wait_visits(3);
    load.more(10);
    load.end();
    let load = Load::start(here.web);
    let before = agent.line_count();
    write(&here, "agent.toml", &both.replace("[[bridge]]", "[[bridge_]]"));
    agent.wait_line_from(before, &["the old one stays", "bridge_"]);
    let one = both.lines().filter(|line| *line != "[[bridge]]" && !line.contains("\"two\"")).collect::<Vec<_>>();
    let token = |line: &&&str| line.starts_with("token");
    let extra = one.iter().filter(token).nth(1).expect("the second bridge's token").to_string();
    write(
        &here,
        "agent.toml",
        &(one.iter().filter(|line| **line != extra).fold(String::new(), |all, l| all + l + "\n")),
    );
    agent.wait_line_from(before, &["a bridge is gone from the file"]);
    until("no more visitors there", || there.visit().is_err().then_some(()));
    load.more(30);
    load.end();
}

/// Two agents for one service: both are visited; one that goes takes no visitor along; and limits of an agent are its
/// own: who finds it full is sent to the other.
#[test]
fn a_service_has_several_agents() {
    let world = World::start();
    let (a, b) = (Nginx::start("a"), Nginx::start("b"));
    let token = world.token(&[]);
    let id = world.listing()["tokens"][0]["id"].as_str().expect("an id").to_owned();
    let text = read(&world, "bridge.toml") + &format!("[[agent]]\ntoken = \"{id}\"\nlimits = {{ connections = 1 }}\n");
    write(&world, "bridge.toml", &text);
    world.bridge.wait_line(&["[[agent]] limits"]);
    let small = world.agent("small", &token, &[a.address]);
    let _large = world.agent("large", &world.token(&[]), &[b.address]);
    [&a, &b].iter().for_each(|nginx| drop(world.bridge.wait_line(&["backend up", &nginx.address.to_string()])));
    let names = || (0..20).map(|_| world.visit().expect("answered")).collect::<std::collections::HashSet<_>>();
    until("both agents", || (world.visit().is_ok() && names().len() == 2).then_some(()));
    // Those visitors have their answers, and may still count.
    let carries_none = |text: &str| text.lines().any(|line| line == "ringspan_tunnel_streams 0.0");
    until("nobody to be carried", || {
        get(world.http, "/metrics").is_ok_and(|(_, text)| carries_none(&text)).then_some(())
    });
    // Visitors that stay: at most one of them at the small one, the others at the large one, none refused.
    let stay: Vec<TcpStream> = (0..6)
        .map(|_| {
            let mut stream = TcpStream::connect(world.web).expect("it listens");
            stream.set_read_timeout(Some(common::PATIENCE)).expect("a live socket");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it listens");
            stream
        })
        .collect();
    let answers = stay.into_iter().map(|mut stream| {
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"\r\n\r\na") && !answer.ends_with(b"\r\n\r\nb") {
            stream.read_exact(&mut byte).expect("nobody is refused");
            answer.push(byte[0]);
        }
        (byte[0], stream)
    });
    let answers: Vec<(u8, TcpStream)> = answers.collect();
    assert_eq!(answers.iter().filter(|(name, _)| *name == b'a').count(), 1, "one at the small agent");
    drop(answers);
    let load = Load::start(world.web);
    load.more(10);
    small.signal("TERM");
    until("the other alone", || (names() == ["b".to_owned()].into()).then_some(()));
    load.more(10);
    load.end();
}
