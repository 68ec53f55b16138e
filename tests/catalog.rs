//! Claim: what is in a registry can be seen and changed from the command line, as tables and as the API's own JSON; what is
//! unwell makes `ringspan health` end with 1 and says why; what cannot be done says why not.
//! Method: the real binary, a bridge, an agent, and backends that are there or not.

mod common;

use common::until;
use common::world::World;
use serde_json::Value;
use std::net::TcpListener;

/// A command that asks the world's bridge: exit code, stdout, stderr.
fn ask(world: &World, args: &[&str]) -> (i32, String, String) {
    let all: Vec<&str> = args.iter().copied().chain(["--config", "bridge.toml"]).collect();
    world.run(&all)
}

fn good(world: &World, args: &[&str]) -> String {
    let (code, out, err) = ask(world, args);
    assert_eq!(code, 0, "{args:?}: {out}{err}");
    out
}

fn json(world: &World, args: &[&str]) -> Value {
    serde_json::from_str(&good(world, &[args, &["--format", "json"]].concat())).expect("JSON")
}

#[test]
fn the_catalog_from_the_command_line() {
    let world = World::start();
    let well = TcpListener::bind("127.0.0.1:0").expect("a port");
    let well = well.local_addr().expect("an address").to_string();
    let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let _stays = TcpListener::bind(&well);

    assert!(good(&world, &["health"]).contains("no instances"));
    let (code, _, err) = ask(&world, &["health", "web"]);
    assert!(code == 1 && err.contains("no service"), "{code} {err}");

    // Registered with its checker in one step; the first look comes soon.
    let check = ["--check", "tcp", "--interval", "100ms", "--fall", "1", "--metadata", "zone=a"];
    good(&world, &[&["instance", "register", "web", &well][..], &check].concat());
    good(&world, &["instance", "register", "web", &gone, "--metadata", "zone=b", "--weight", "2.5"]);
    let is = |health: &str| json(&world, &["instance", "list", "web", "--health", health])["count"] == 1;
    until("one to be down", || is("down").then_some(()));
    let (code, out, err) = ask(&world, &["health", "web"]);
    assert!(code == 1 && out.contains("L4CON") && out.contains(&gone) && out.contains("registry"), "{out}{err}");
    assert!(out.contains("of 2 instances"), "{out}");

    let labelled = json(&world, &["instance", "list", "web", "--label", "zone in (b,c)"]);
    assert_eq!(labelled["instances"][0]["weight"], 2.5, "{labelled}");
    let (code, _, err) = ask(&world, &["instance", "list", "web", "--label", "zone in"]);
    assert!(code == 1 && err.contains("character 8"), "{err}");
    good(&world, &["instance", "set", "web", &gone, "--enabled", "false", "--unset", "zone"]);
    let shown = json(&world, &["instance", "show", "web", &gone]);
    assert_eq!((&shown["enabled"], shown["metadata"].get("zone")), (&Value::Bool(false), None));

    // A service that comes to be by being configured, and changes.
    let set = ["service", "set", "g@@shop", "--namespace", "dev", "--protect-threshold", "0.5", "--check", "none"];
    assert!(good(&world, &set).contains("dev/g@@shop"));
    good(&world, &["service", "set", "g@@shop", "--namespace", "dev", "--metadata", "team=shop"]);
    let shown = json(&world, &["service", "show", "g@@shop", "--namespace", "dev"]);
    assert_eq!((&shown["protect_threshold"], &shown["metadata"]["team"]), (&0.5.into(), &"shop".into()));
    assert_eq!(shown["clusters"]["DEFAULT"]["checker"]["type"], "none");
    let by_hand = |health| ["instance", "health", "g@@shop", "10.0.0.1:80", health, "--namespace", "dev"];
    good(&world, &["instance", "register", "g@@shop", "10.0.0.1:80", "--namespace", "dev"]);
    assert!(good(&world, &by_hand("up")).contains("MANUAL"));
    let listed = good(&world, &["service", "list", "--namespace", "*"]);
    assert!(listed.contains("dev/g@@shop") && listed.contains("web"), "{listed}");
    assert!(good(&world, &["namespace", "list"]).contains("dev"));
    let (code, _, err) = ask(&world, &["service", "delete", "g@@shop", "--namespace", "dev"]);
    assert!(code == 1 && err.contains("still has instances"), "{err}");
    assert!(
        good(&world, &["service", "convert", "g@@shop", "--namespace", "dev", "--to", "ephemeral"]).starts_with('1')
    );
    good(&world, &["instance", "deregister", "g@@shop", "10.0.0.1:80", "--namespace", "dev"]);
    good(&world, &["service", "delete", "g@@shop", "--namespace", "dev"]);
    let (code, _, err) = ask(&world, &["service", "show", "g@@shop", "--namespace", "dev"]);
    assert!(code == 1 && err.contains("no service"), "{err}");
}

/// Who cannot wait has an instance probed at once, and is told by the exit code.
#[test]
fn probed_out_of_turn() {
    let world = World::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    // Its turn comes within an hour.
    good(&world, &["instance", "register", "slow", &address, "--check", "tcp", "--interval", "1h"]);
    let probe = ["instance", "probe", "slow", &address];
    let shown = good(&world, &probe);
    assert!(shown.contains("registry finds it up") && shown.contains("L4OK"), "{shown}");
    drop(listener);
    let (code, out, err) = ask(&world, &probe);
    assert!(code == 1 && out.contains("registry finds it down") && out.contains("L4CON"), "{code} {out}{err}");
    assert_eq!(json(&world, &["instance", "show", "slow", &address])["health"], "down", "it counts at once");
    let _listener = TcpListener::bind(&address).expect("still free");
    let probed = json(&world, &probe);
    assert_eq!((&probed["done"], &probed["instance"]["health"]), (&true.into(), &"up".into()));
    good(&world, &["service", "set", "slow", "--check", "none"]);
    let (code, _, err) = ask(&world, &probe);
    assert!(code == 1 && err.contains("nobody here probes this instance"), "{err}");
}

#[test]
fn agents_are_seen_with_their_links() {
    let world = World::start();
    let token = world.token(&["--service", "web"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let expose = format!("web={}", listener.local_addr().expect("an address"));
    let _agent = common::Running::start(&mut world.command(&["agent", "--token", &token, "--expose", &expose]));
    let agent = until("an agent that is well", || {
        let agents = json(&world, &["agent", "list"]);
        (agents["agents"][0]["up"] == 1).then(|| agents["agents"][0].clone())
    });
    assert_eq!((&agent["connected"], &agent["exposes"]), (&true.into(), &1.into()));
    assert!(agent["link"]["software"].as_str().is_some_and(|s| s.starts_with("ringspan/")), "{agent}");
    assert!(agent["link"]["peer"].as_str().is_some_and(|p| p.starts_with("127.0.0.1:")), "{agent}");
    let name = agent["name"].as_str().expect("a name");
    let shown = good(&world, &["agent", "show", name]);
    assert!(shown.contains("connected") && shown.contains("It exposes"), "{shown}");
    let (code, _, err) = ask(&world, &["agent", "show", "moon"]);
    assert!(code == 1 && err.contains("no agent"), "{err}");
    let (code, out, err) = ask(&world, &["health"]);
    assert!(code == 0 && out.contains("All 1"), "{out}{err}");
}

/// Whoever is not there, or is something else, is told apart.
#[test]
fn no_registry() {
    let world = World::start();
    let at = |server: &str| world.run(&["service", "list", "--server", server]);
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let (code, _, err) = at(&format!("http://{free}"));
    assert!(code == 1 && err.contains("no registry answers there") && err.contains("--server"), "{err}");
    let (code, _, err) = at(&format!("http://{}", world.link));
    assert!(code == 1 && err.contains("no registry"), "{err}");
    let (code, _, err) = at(&format!("https://{}", world.http));
    assert!(code == 1 && err.contains("TLS"), "{err}");
    let (code, _, err) = at("127.0.0.1");
    assert!(code == 2 && err.contains("http://127.0.0.1:8848"), "{err}");
    let (code, _, err) = world.run(&["service", "list", "--ca", "missing.pem", "--server", "https://127.0.0.1:1"]);
    assert!(code == 2 && err.contains("missing.pem"), "{err}");
    let mut command = world.command(&["service", "list"]);
    command.env("RINGSPAN_SERVER", format!("http://{}", world.http));
    assert_eq!(common::parts(&common::run_with(&mut command, "")).0, 0, "the environment names it");
}
