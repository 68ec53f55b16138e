//! Claim: the whole main job works between real processes: an agent joins, visitors reach its nginx backends, the dead
//! ones get none, and whoever is killed comes back without anybody's help. Method: bridge, agents and nginx as child
//! processes on loopback; every wait ends with an event.

mod common;

use common::world::{Nginx, World, get};
use common::{Running, parts, ringspan, until};
use std::collections::HashSet;
use std::net::TcpStream;

fn names(world: &World, visits: usize) -> HashSet<String> {
    (0..visits).map(|_| world.visit().expect("a visitor is answered")).collect()
}

/// Visitors are spread over healthy backends; one that is killed gets none after `fall` checks, with the reason in
/// bridge's and agent's logs; it gets visitors again when it is back. The registry says the same all along.
#[test]
fn a_dead_backend_is_ejected_and_comes_back() {
    let world = World::start();
    let (mut a, b) = (Nginx::start("a"), Nginx::start("b"));
    let agent = world.agent("agent", &world.token(&["--service", "web"]), &[a.address, b.address]);
    let both: HashSet<String> = ["a".to_owned(), "b".to_owned()].into();
    until("both backends", || (world.visit().is_ok() && names(&world, 4) == both).then_some(()));
    assert_eq!(world.healthy().len(), 2);
    assert!(!a.access_log().contains("\" 400 "), "half-open checks are never seen by nginx: {}", a.access_log());

    let dead = a.address.to_string();
    a.kill();
    let line = agent.wait_line(&["backend down L4CON", &dead, "after=\"3 of 3\""]);
    assert!(line.contains("why=\"The host answered that nothing listens on the port.\""), "{line}");
    world.bridge.wait_line(&["backend down", &dead, "L4CON"]);
    // Ejected: from here on no visitor fails.
    assert_eq!(names(&world, 50), ["b".to_owned()].into());
    until("the registry to say so", || (world.healthy() == [u64::from(b.address.port())]).then_some(()));

    let metrics = get(world.http, "/metrics").expect("it serves").1;
    for series in
        ["ringspan_tunnel_carriers 2", "ringspan_tunnel_streams_opened_total ", "ringspan_probes_total{code=\"L4OK\"}"]
    {
        assert!(metrics.contains(series), "{series}\n{metrics}");
    }

    let before = world.bridge.line_count();
    let _a = Nginx::start_at("a", a.address);
    world.bridge.wait_line_from(before, &["backend up", &dead, "L4OK"]);
    assert_eq!(names(&world, 20), both);
    until("the registry to say so", || (world.healthy().len() == 2).then_some(()));
}

/// A backend that falls silent (its queue is full, so the kernel drops what comes) is ejected with the reason, too, and
/// the silence costs its visitors nothing once it is.
#[test]
fn a_black_hole_is_ejected() {
    common::raise_nofile();
    let world = World::start();
    let nginx = Nginx::start("b");
    let hole = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = hole.local_addr().expect("bound");
    let agent = world.agent("agent", &world.token(&[]), &[address, nginx.address]);
    agent.wait_line(&["backend up L4OK", &address.to_string()]);
    let patience = std::time::Duration::from_millis(300);
    let _queue: Vec<TcpStream> =
        (0..70_000).map_while(|_| TcpStream::connect_timeout(&address, patience).ok()).collect();
    let line = agent.wait_line(&["backend down L4TOUT", &address.to_string(), "after=\"3 of 3\""]);
    assert!(line.contains("why=\"No answer within the timeout.\""), "{line}");
    world.bridge.wait_line(&["backend down", &address.to_string(), "L4TOUT"]);
    assert_eq!(names(&world, 20), ["b".to_owned()].into());
}

/// An agent that is killed leaves its backends unroutable; its instances stay registered and nobody calls them healthy;
/// when it is back, so are they, without a new token.
#[test]
fn a_killed_agent_comes_back() {
    let world = World::start();
    let a = Nginx::start("a");
    let agent = world.agent("agent", &world.token(&[]), &[a.address]);
    world.wait_visits(3);
    agent.kill();
    world.bridge.wait_line(&["agent gone"]);
    assert!(world.visit().is_err(), "there is nobody to carry it");
    until("the registry to say so", || world.healthy().is_empty().then_some(()));
    assert_eq!(world.instances().len(), 1, "it is still registered");
    let listing = world.listing();
    assert_eq!((&listing["agents"][0]["connected"], &listing["tokens"][0]["uses_left"]), (&false.into(), &0.into()));

    let _agent = world.agent("agent", "", &[a.address]);
    world.wait_visits(3);
    until("the registry to say so", || (world.healthy().len() == 1).then_some(()));
}

/// A bridge that is killed comes back with its tokens, agents and instances; the agent finds it by itself.
#[test]
fn a_killed_bridge_comes_back() {
    let mut world = World::start();
    let a = Nginx::start("a");
    let agent = world.agent("agent", &world.token(&[]), &[a.address]);
    world.wait_visits(3);
    let (listing, instances) = (world.listing(), world.instances().len());
    world.bridge.signal("KILL");
    world.bridge.wait();
    agent.wait_line(&["link lost"]);
    world.restart_bridge();
    world.wait_visits(3);
    let again = world.listing();
    assert_eq!(again["agents"], listing["agents"]);
    assert_eq!(again["tokens"], listing["tokens"]);
    assert_eq!(world.instances().len(), instances);
    until("the registry to say so", || (world.healthy().len() == 1).then_some(()));
    // And a clean end, in good order.
    world.bridge.signal("TERM");
    assert_eq!(world.bridge.wait(), 0, "{}", world.bridge.text());
    world.bridge.wait_line(&["bridge has stopped"]);
}

/// Whoever may not come in is told why and what to do, and ends with 2; the log of the bridge has the reason.
#[test]
fn tokens_that_do_not_let_in() {
    let world = World::start();
    let refused = |state: &str, token: &str, code: i32, say: &str| {
        let mut agent = world.agent(state, token, &["127.0.0.1:9".parse().expect("an address")]);
        assert_eq!(agent.wait(), code, "{state}: {}", agent.text());
        agent.wait_line(&[say]);
    };
    let good = world.token(&[]);
    refused("none", "", 2, "this agent has not joined a bridge yet and has no token");
    refused("damaged", &good.replacen('.', ".0", 2), 2, "the join token is damaged");
    let revoked = world.token(&[]);
    let id = revoked.split('.').nth(1).expect("an id");
    assert_eq!(world.run(&["token", "revoke", id, "--config", "bridge.toml"]).0, 0);
    refused("revoked", &revoked, 2, "the join token was revoked. Create a new one: ringspan token create");
    world.bridge.wait_line(&["agent refused", "TokenRevoked"]);
    let narrow = world.token(&["--service", "db"]);
    refused("narrow", &narrow, 2, "does not cover an exposed service: web");
    let spent = world.token(&["--uses", "1"]);
    let _first = world.agent("first", &spent, &["127.0.0.1:9".parse().expect("an address")]);
    world.bridge.wait_line(&["agent enrolled"]);
    refused("second", &spent, 2, "the join token has no uses left");
    let brief = world.token(&["--expires", "1s"]);
    until("a second to pass", || {
        let listing = world.run(&["token", "list", "--config", "bridge.toml"]).1;
        listing.contains("expired").then_some(())
    });
    refused("late", &brief, 2, "the join token has expired");
}

/// A bridge that is not the one the token pins is no bridge, however well it answers; one that is away is waited for.
#[test]
fn only_the_pinned_bridge_is_believed() {
    let (world, other) = (World::start(), World::start());
    let backend = ["127.0.0.1:9".parse().expect("an address")];
    let elsewhere = world.token(&["--address", &other.link.to_string()]);
    let mut agent = world.agent("agent", &elsewhere, &backend);
    agent.wait_line(&["no link", "handshake_bad"]);
    let before = agent.line_count();
    drop(other);
    agent.wait_line_from(before, &["no link", "link_lost"]);
    agent.signal("INT");
    assert_eq!(agent.wait(), 0, "{}", agent.text());
}

/// A revoked agent is thrown out at once, stays out, and says what to do; its instances leave the registry.
#[test]
fn a_revoked_agent_is_thrown_out() {
    let world = World::start();
    let a = Nginx::start("a");
    let mut agent = world.agent("agent", &world.token(&[]), &[a.address]);
    world.wait_visits(3);
    let id = world.listing()["agents"][0]["id"].as_str().expect("an id").to_owned();
    let (code, _, say) = world.run(&["token", "revoke", &id, "--config", "bridge.toml"]);
    assert!(code == 0 && say.contains("It was connected and has been thrown out."), "{say}");
    assert_eq!(agent.wait(), 1, "{}", agent.text());
    assert!(agent.text().contains("this agent was revoked"), "{}", agent.text());
    assert!(world.visit().is_err());
    until("the registry to forget it", || world.instances().is_empty().then_some(()));
    let mut again = world.agent("agent", "x", &[a.address]);
    assert_eq!(again.wait(), 1, "{}", again.text());
}

/// A port or a folder that is taken is told by key and address, and nothing else is disturbed.
#[test]
fn what_is_taken_is_named() {
    let world = World::start();
    let config = std::fs::read_to_string(world.folder.path().join("bridge.toml")).expect("it is there");
    let (http, link, web) = (world.http.to_string(), world.link.to_string(), world.web.to_string());
    let start = |text: &str| {
        std::fs::write(world.folder.path().join("other.toml"), text).expect("written");
        world.run(&["bridge", "--config", "other.toml"])
    };
    let (code, _, err) = start(&config);
    assert!(code == 1 && err.contains("data: another ringspan process has it open"), "{err}");
    let other = config.replace("\"data\"", "\"data2\"");
    for (free, say) in [
        (vec![&link, &web], format!("[http] listen = \"{http}\": cannot listen: Address already in use")),
        (vec![&http, &web], format!("[link] listen = \"{link}\": cannot listen: Address already in use")),
        (vec![&http, &link], format!("[[listener]] \"web\" listen = \"{web}\": cannot listen: Address already in use")),
    ] {
        let text = free.iter().fold(other.clone(), |text, address| text.replace(*address, "127.0.0.1:0"));
        let (code, _, err) = start(&text);
        assert!(code == 1 && err.contains(&say) && err.contains("ss -ltnp"), "{err}");
    }
    assert_eq!(get(world.http, "/metrics").expect("it serves").0, 200);
}

/// 5,000 connections that say nothing, to each port in turn, disturb nobody; garbage costs its own connection.
#[test]
fn idle_connections_and_garbage_disturb_nobody() {
    common::raise_nofile();
    let world = World::start();
    let a = Nginx::start("a");
    let _agent = world.agent("agent", &world.token(&[]), &[a.address]);
    world.wait_visits(3);
    for port in [world.http, world.link, world.web] {
        let idle: Vec<TcpStream> = (0..5000).map_while(|_| TcpStream::connect(port).ok()).collect();
        assert_eq!(idle.len(), 5000, "connections to {port}");
        world.wait_visits(20);
        assert_eq!(get(world.http, "/metrics").expect("it serves").0, 200);
        assert_eq!(world.listing()["agents"][0]["connected"], true);
        let garbage: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for mut stream in idle.into_iter().take(200) {
            // A connection that was closed for its silence is one that nobody minds.
            let _ = std::io::Write::write_all(&mut stream, &garbage);
        }
        world.wait_visits(20);
    }
    assert!(world.bridge.text().contains("bridge is up") && !world.bridge.text().contains("panicked"));
}

/// The demo keeps its promise.
#[test]
fn the_demo_keeps_its_promise() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut demo = Running::start(ringspan(&["demo"]).current_dir(folder.path()).env("TMPDIR", folder.path()));
    demo.wait_line(&["that was the story"]);
    demo.signal("INT");
    assert_eq!(demo.wait(), 0, "{}", demo.text());
    demo.wait_line(&["All went as promised."]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
    // A short time is long enough: the story is told once at least.
    let (code, out, err) = parts(&common::run(&["demo", "--seconds", "1"], folder.path()));
    assert!(code == 0 && out.contains("UP         it passed 2 checks"), "{out}{err}");
}
