//! Claim: an instance that only an agent can reach is checked through that agent: it is healthy while the agent says so,
//! its end is pushed to subscribers, and with the agent gone - killed, cut off in silence, or not heard of yet by a bridge
//! that was killed - it is unknown and no view calls it healthy. Method: bridge, agents and servers as child processes;
//! agents and servers in network namespaces that the bridge has a way into for the link alone. Every wait ends with an
//! event. Namespaces take root: without it these tests say so and check nothing.

mod common;
#[path = "common/nacos.rs"]
mod nacos;
#[path = "common/shore.rs"]
mod shore;

use common::until;
use nacos::Nacos;
use serde_json::{Value, json};
use shore::*;
use std::net::{TcpListener, UdpSocket};

/// Checks that tell fast, and bear a machine that is busy.
const FAST: &str = r#"{"type":"TCP","intervalMs":500,"timeoutMs":450,"rise":1,"fall":2}"#;

fn seen_by(vantages: &str) -> Value {
    json!({ "preserved.vantage": vantages, "preserved.checker": FAST })
}

/// Up, down with a push, killed agent, agent back; an address that is not allowed is not looked at; no threshold forges.
#[test]
fn what_only_an_agent_can_reach() {
    if !is_root() {
        return;
    }
    let island = Island::new();
    let shore = Shore::new(&island.ours);
    let nginx = island.nginx(shore.folder.path());
    assert_eq!(shore.register(&island.inside, 8080, &seen_by("agent:isle")), "ok");
    assert_eq!(shore.register(&island.theirs, 8081, &seen_by("agent:isle")), "ok", "taken, and not looked at");
    // Every instance is to be shown healthy below this: but not what nobody can reach.
    assert_eq!(shore.request("PUT", "/nacos/v1/ns/service?serviceName=isle&protectThreshold=1"), "ok");
    shore.wait(8080, "unknown", "AGENTGONE");
    assert_eq!(shore.healthy(), [0_u64; 0]);
    let agent = shore.agent(&island, "isle");
    shore.wait(8080, "up", "L4OK");
    shore.wait(8081, "unknown", "DENIED");
    let denied = &shore.truth(8081)["vantages"][0];
    assert!(denied["why"].as_str().is_some_and(|why| why.contains("[checks] allow")), "{denied}");
    assert!(shore.truth(8080)["vantages"][0]["rtt_us"].as_u64().is_some_and(|us| us > 0));
    assert_eq!(shore.healthy(), [8080]);
    // Allowed while it runs, and forbidden again.
    let theirs = format!("\"{}\", \"{}\"", island.inside, island.theirs);
    shore.allow("isle", &theirs);
    shore.wait(8081, "down", "L4CON");
    shore.allow("isle", &format!("\"{}\"", island.inside));
    shore.wait(8081, "unknown", "DENIED");

    // A subscriber is told of its end.
    assert_eq!(shore.request("PUT", "/nacos/v1/ns/service?serviceName=isle&protectThreshold=0"), "ok");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.set_read_timeout(Some(common::PATIENCE)).expect("set");
    let port = socket.local_addr().expect("bound").port();
    let subscribe = format!("/nacos/v1/ns/instance/list?serviceName=isle&udpPort={port}");
    request_as("GET", shore.http, &subscribe, "Nacos-Go-Client:v1.0");
    drop(nginx);
    let mut datagram = [0; 65_536];
    socket.recv(&mut datagram).expect("a push");
    shore.wait(8080, "down", "L4CON");
    assert_eq!(shore.healthy(), [0_u64; 0]);
    let nginx = island.nginx(shore.folder.path());
    shore.wait(8080, "up", "L4OK");

    agent.kill();
    shore.wait(8080, "unknown", "AGENTGONE");
    assert_eq!(shore.request("PUT", "/nacos/v1/ns/service?serviceName=isle&protectThreshold=1"), "ok");
    assert_eq!(shore.healthy(), [0_u64; 0]);
    let _agent = shore.agent(&island, "isle");
    shore.wait(8080, "up", "L4OK");
    assert_eq!(shore.healthy(), [8080]);
    drop(nginx);
}

/// The same over gRPC and DNS: found, pushed and routed while the agent says that it is well; pushed as unhealthy and
/// routed no more when it is not, when the agent is gone, and when a bridge that was killed has not heard of it yet.
#[test]
fn what_sdks_and_resolvers_see() {
    if !is_root() {
        return;
    }
    let island = Island::new();
    let mut shore = Shore::new(&island.ours);
    let nginx = island.nginx(shore.folder.path());
    let mut client = Nacos::connect(shore.grpc);
    let subscription =
        json!({ "serviceName": "isle", "groupName": "DEFAULT_GROUP", "clusters": "", "subscribe": true });
    client.ask("SubscribeServiceRequest", &subscription);
    assert_eq!(client.pushed()["hosts"], json!([]));
    // Each push, until one is this.
    let until_pushed = |client: &mut Nacos, healthy: bool| {
        loop {
            let hosts = client.pushed()["hosts"].clone();
            eprintln!("pushed {hosts}");
            let [host] = hosts.as_array().expect("hosts").as_slice() else { panic!("it stays registered: {hosts}") };
            if host["healthy"] == healthy {
                return;
            }
        }
    };
    let nobody = (Vec::new(), Vec::new());
    let here = (vec![island.inside.clone()], vec![8080]);
    assert_eq!(shore.register(&island.inside, 8080, &seen_by("agent:isle")), "ok");
    // No threshold makes it well, either.
    assert_eq!(shore.request("PUT", "/nacos/v1/ns/service?serviceName=isle&protectThreshold=1"), "ok");
    shore.wait(8080, "unknown", "AGENTGONE");
    until_pushed(&mut client, false);
    assert_eq!((shore.found_by(&client), shore.resolved()), (vec![], nobody.clone()));

    let agent = shore.agent(&island, "isle");
    until_pushed(&mut client, true);
    assert_eq!((shore.found_by(&client), shore.resolved()), (vec![8080], here.clone()));
    assert_eq!(shore.request("PUT", "/nacos/v1/ns/service?serviceName=isle&protectThreshold=0"), "ok");
    drop(nginx);
    until_pushed(&mut client, false);
    assert_eq!((shore.found_by(&client), shore.resolved()), (vec![], nobody.clone()));
    let _nginx = island.nginx(shore.folder.path());
    until_pushed(&mut client, true);
    assert_eq!(shore.request("PUT", "/nacos/v1/ns/service?serviceName=isle&protectThreshold=1"), "ok");

    agent.kill();
    until_pushed(&mut client, false);
    shore.wait(8080, "unknown", "AGENTGONE");
    assert_eq!((shore.found_by(&client), shore.resolved()), (vec![], nobody.clone()));

    let agent = shore.agent(&island, "isle");
    until_pushed(&mut client, true);
    assert_eq!((shore.found_by(&client), shore.resolved()), (vec![8080], here.clone()));
    agent.signal("STOP");
    shore.kill();
    shore.start();
    let client = Nacos::connect(shore.grpc);
    assert_eq!((shore.found_by(&client), shore.resolved()), (vec![], nobody));
    agent.signal("CONT");
    shore.wait(8080, "up", "L4OK");
    assert_eq!((shore.found_by(&client), shore.resolved()), (vec![8080], here));
}

/// Who cannot wait has the agent look at once; what it finds counts. With the agent gone nobody can look.
#[test]
fn agents_probe_out_of_turn() {
    if !is_root() {
        return;
    }
    let island = Island::new();
    let shore = Shore::new(&island.ours);
    let nginx = island.nginx(shore.folder.path());
    let agent = shore.agent(&island, "isle");
    // Its turn comes within an hour.
    let slow = r#"{"type":"TCP","intervalMs":3600000,"timeoutMs":450,"rise":2,"fall":3}"#;
    let metadata = json!({ "preserved.vantage": "agent:isle", "preserved.checker": slow });
    assert_eq!(shore.register(&island.inside, 8080, &metadata), "ok");
    let instance = format!("/api/v1/services/public/DEFAULT_GROUP/isle/instances/DEFAULT/{}/8080", island.inside);
    let probe =
        || -> Value { serde_json::from_str(&shore.request("POST", &format!("{instance}/probe"))).expect("JSON") };
    let probed = until("the agent to be there", || Some(probe()).filter(|p| p["done"] == true));
    let found = probed["found"][0].clone();
    assert_eq!((&found["vantage"], &found["health"]), (&"agent:isle".into(), &"up".into()), "{probed}");
    assert_eq!((&probed["instance"]["health"], shore.healthy()), (&"up".into(), vec![8080]));
    drop(nginx);
    let probed = probe();
    assert_eq!((&probed["found"][0]["reason"], &probed["instance"]["health"]), (&"L4CON".into(), &"down".into()));
    assert_eq!(shore.healthy(), [0_u64; 0]);
    agent.kill();
    shore.wait(8080, "unknown", "AGENTGONE");
    assert_eq!(probe()["type"], "urn:ringspan:problem:not-probed");
}

/// A wire that is cut in silence, and a bridge that is killed: unknown until the agent is heard of again, and says so.
#[test]
fn silence_and_crashes() {
    if !is_root() {
        return;
    }
    let island = Island::new();
    let mut shore = Shore::new(&island.ours);
    let _nginx = island.nginx(shore.folder.path());
    let agent = shore.agent(&island, "isle");
    assert_eq!(shore.register(&island.inside, 8080, &seen_by("agent:isle")), "ok");
    shore.wait(8080, "up", "L4OK");
    island.cut();
    shore.wait(8080, "unknown", "AGENTGONE");
    assert_eq!(shore.healthy(), [0_u64; 0]);
    island.mend();
    shore.wait(8080, "up", "L4OK");

    // The agent is stopped where it is, so that nobody comes back before we have looked.
    agent.signal("STOP");
    shore.kill();
    shore.start();
    assert_eq!(shore.health(8080), ("unknown".to_owned(), "AGENTGONE".to_owned()));
    assert_eq!(shore.healthy(), [0_u64; 0]);
    agent.signal("CONT");
    shore.wait(8080, "up", "L4OK");
    assert_eq!(shore.healthy(), [8080]);
}

/// Every kind of checker is carried out by the agent; what an agent is asked about is its cluster's to say, too.
#[test]
fn every_kind_of_checker() {
    if !is_root() {
        return;
    }
    let island = Island::new();
    let shore = Shore::new(&island.ours);
    let _nginx = island.nginx(shore.folder.path());
    let _agent = shore.agent(&island, "isle");
    let database = island.mariadb(shore.folder.path());
    let own = json!({});
    for (cluster, port) in [("tcp", 8080), ("good", 8080), ("bad", 8080), ("sql", 3306), ("locked", 3306)] {
        let path = format!(
            "/nacos/v1/ns/instance?serviceName={cluster}&clusterName={cluster}&ip={}&port={port}&ephemeral=false\
             &metadata={}",
            island.inside,
            escape(&own.to_string())
        );
        assert_eq!(shore.request("POST", &path), "ok");
    }
    let pace = r#""intervalMs":500,"timeoutMs":450,"rise":1,"fall":2"#;
    let checkers = [
        ("tcp", format!(r#"{{"type":"TCP",{pace}}}"#), ("up", "L4OK")),
        ("good", format!(r#"{{"type":"HTTP","path":"/good","expectedResponseCode":204,{pace}}}"#), ("up", "L7OK")),
        ("bad", format!(r#"{{"type":"HTTP","path":"/bad",{pace}}}"#), ("down", "L7STS")),
        ("sql", format!(r#"{{"type":"MYSQL","user":"probe","pwd":"secret","cmd":"select 1",{pace}}}"#), ("up", "")),
        ("locked", format!(r#"{{"type":"MYSQL","user":"probe","pwd":"wrong","cmd":"select 1",{pace}}}"#), ("down", "")),
    ];
    for (cluster, checker, _) in &checkers {
        let metadata = escape(&json!({ "preserved.vantage": "agent:isle" }).to_string());
        let port = if checker.contains("MYSQL") { 3306 } else { 8080 };
        let put = format!(
            "/nacos/v1/ns/cluster?serviceName={cluster}&clusterName={cluster}&checkPort={port}&useInstancePort4Check=true\
             &healthChecker={}&metadata={metadata}",
            escape(checker)
        );
        assert_eq!(shore.request("PUT", &put), "ok", "{checker}");
    }
    for (cluster, _, (health, reason)) in checkers {
        let path = format!("/api/v1/services/public/DEFAULT_GROUP/{cluster}");
        let last = until(&format!("{cluster} to be {health} {reason}"), || {
            let instance = shore.json(&path)["instances"][0].clone();
            let is_so = instance["health"] == health && (reason.is_empty() || instance["reason"] == reason);
            if !is_so {
                eprintln!("{cluster} is {} {}", instance["health"], instance["reason"]);
            }
            is_so.then_some(instance)
        });
        assert_eq!(last["vantages"][0]["vantage"], "agent:isle");
    }
    database.kill();
    let path = "/api/v1/services/public/DEFAULT_GROUP/sql";
    until("the database's end", || (shore.json(path)["instances"][0]["health"] == "down").then_some(()));
}

/// Of three vantages two decide: one may be wrong or gone; with two gone nobody knows. What each found is shown.
#[test]
fn a_quorum_of_vantages() {
    if !is_root() {
        return;
    }
    let island = Island::new();
    let shore = Shore::new(&island.ours);
    let nginx = island.nginx(shore.folder.path());
    let (first, second) = (shore.agent(&island, "first"), shore.agent(&island, "second"));
    let mut metadata = seen_by("registry,agent:first,agent:second");
    metadata["preserved.quorum"] = json!("2");
    assert_eq!(shore.register(&island.inside, 8080, &metadata), "ok");
    shore.wait(8080, "up", "L4OK");
    let votes = |shore: &Shore| -> Vec<(String, String)> {
        let truth = shore.truth(8080);
        let text = |v: &Value, key: &str| v[key].as_str().expect("text").to_owned();
        let votes = truth["vantages"].as_array().expect("a list").iter();
        votes.map(|v| (text(v, "vantage"), text(v, "health"))).collect()
    };
    let want = |of: [&str; 3]| -> Vec<(String, String)> {
        let names = ["registry", "agent:first", "agent:second"];
        names.into_iter().zip(of).map(|(name, health)| (name.to_owned(), health.to_owned())).collect()
    };
    until("all three votes", || (votes(&shore) == want(["down", "up", "up"])).then_some(()));
    assert_eq!((shore.truth(8080)["quorum"].as_u64(), shore.healthy()), (Some(2), vec![8080]));
    second.kill();
    until("one gone", || (votes(&shore) == want(["down", "up", "unknown"])).then_some(()));
    assert_eq!(
        (shore.health(8080).0.as_str(), shore.healthy()),
        ("unknown", vec![]),
        "one yes of two that are asked for"
    );
    let _second = shore.agent(&island, "second");
    shore.wait(8080, "up", "L4OK");
    drop(nginx);
    shore.wait(8080, "down", "L4CON");
    first.kill();
    until("one gone, one against", || (votes(&shore) == want(["down", "unknown", "down"])).then_some(()));
    assert_eq!(shore.health(8080).0, "down", "two of three are against: a third cannot make a quorum");
}

/// An ephemeral instance that asks for it is checked, too: it lives by its beats and is well by its checks; converted, it
/// is one that is checked without asking.
#[test]
fn ephemeral_ones_are_checked_too() {
    let shore = Shore::new("127.0.0.1");
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let mut metadata = seen_by("registry");
    metadata["preserved.heart.beat.timeout"] = json!("600000");
    let metadata = escape(&metadata.to_string());
    let port = address.port();
    let ends = format!("serviceName=isle&ip=127.0.0.1&port={port}&ephemeral=true&metadata={metadata}");
    assert_eq!(shore.request("POST", &format!("/nacos/v1/ns/instance?{ends}")), "ok");
    shore.wait(port, "down", "L4CON");
    let beat = format!("/nacos/v1/ns/instance/beat?serviceName=isle&ip=127.0.0.1&port={port}");
    assert!(shore.request("PUT", &beat).contains("10200"));
    assert_eq!((shore.health(port).0.as_str(), shore.healthy()), ("down", vec![]), "a beat makes nobody well");
    let _listens = TcpListener::bind(address).expect("still free");
    shore.wait(port, "up", "L4OK");
    let kind = "/api/v1/services/public/DEFAULT_GROUP/isle/kind";
    assert!(shore.request("PUT", &format!("{kind}?kind=persistent")).contains("\"converted\":1"));
    assert_eq!(shore.healthy(), [u64::from(port)]);
    assert_eq!(shore.truth(port)["ephemeral"], false);
}
