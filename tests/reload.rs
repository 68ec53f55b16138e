//! Claim: a new configuration takes nobody down: no visitor is lost over reloads of bridge and agent, whoever they are
//! with; a bad file changes nothing and is told. Method: real processes and nginx on loopback; visitors as fast as two
//! threads can, all of them counted; every wait ends with an event.

mod common;

use common::load::Load;
use common::until;
use common::world::{Nginx, World, get};
use std::net::{SocketAddr, TcpListener};

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound")
}

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
