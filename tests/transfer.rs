//! Claim: a registry's records go out and in, while the bridge runs and while it does not, into another bridge through its
//! Nacos API, and back in the place of a lost store. What cannot be done says why, and changes nothing.
//! Method: the real binary, two bridges, the command line of `ringspan registry`.

mod common;

use common::world::{World, get};
use common::{parts, run_with, until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

fn call(at: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("it listens");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
    answer
}

fn fill(world: &World) {
    for n in 1..=600 {
        let id = format!("ip=10.0.{}.{}&port=80", n / 250, n % 250 + 1);
        call(world.http, "POST", &format!("/nacos/v1/ns/instance?serviceName=g@@many&{id}&ephemeral=false&weight=2"));
    }
    call(
        world.http,
        "POST",
        "/nacos/v1/ns/instance?serviceName=dev-one&namespaceId=dev&ip=10.1.0.1&port=1&ephemeral=false&enabled=false&metadata=a%3Db",
    );
    call(world.http, "POST", "/nacos/v1/ns/instance?serviceName=passing&ip=10.1.0.2&port=1&ephemeral=true");
    let checker = "%7B%22type%22:%22HTTP%22,%22path%22:%22/up%22,%22expectedResponseCode%22:204%7D";
    call(
        world.http,
        "PUT",
        &format!(
            "/nacos/v1/ns/cluster?serviceName=g@@many&clusterName=DEFAULT&checkPort=81&useInstancePort4Check=false&healthChecker={checker}"
        ),
    );
    call(world.http, "PUT", "/nacos/v1/ns/service?serviceName=g@@many&protectThreshold=0.25&metadata=k%3Dv");
}

/// A command on the world's bridge: exit code, stdout, stderr.
fn registry(world: &World, args: &[&str], stdin: &str) -> (i32, String, String) {
    let mut all = vec!["registry"];
    all.extend(args);
    all.extend(["--config", "bridge.toml"]);
    parts(&run_with(&mut world.command(&all), stdin))
}

fn export(world: &World) -> String {
    let (code, out, err) = registry(world, &["export"], "");
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("2 services with 601 persistent instances"), "{err}");
    out
}

#[test]
fn records_move() {
    let (mut one, two) = (World::start(), World::start());
    fill(&one);
    let text = export(&one);
    assert!(text.contains("\"protect_threshold\":0.25") && !text.contains("passing"), "{text}");

    // Through the socket into another bridge, twice; a file that is cut off changes nothing.
    let (code, _, err) = registry(&two, &["import", "-"], &text[..text.len() - 10]);
    assert!(code == 1 && err.contains("Nothing was changed"), "{code} {err}");
    assert_eq!(registry(&two, &["export"], "").1.lines().count(), 2, "nothing is there");
    for _ in 0..2 {
        let (code, _, err) = registry(&two, &["import", "-"], &text);
        assert_eq!((code, export(&two)), (0, text.clone()), "{err}");
    }

    // Through the Nacos API.
    let third = World::start();
    let url = format!("http://{}/nacos", one.http);
    let (code, _, err) = registry(&third, &["import", "--from-nacos", &url], "");
    assert_eq!(code, 0, "{err}");
    assert_eq!(export(&third), text);
    let (code, _, err) = registry(&third, &["import", "--from-nacos", "http://127.0.0.1:1/nacos"], "");
    assert!(code == 1 && err.contains("127.0.0.1:1"), "{err}");

    // A snapshot while it runs, and back after the store is lost.
    let file = one.folder.path().join("snapshot.jsonl");
    let (code, _, err) = registry(&one, &["snapshot", file.to_str().expect("text")], "");
    assert_eq!(code, 0, "{err}");
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), text);
    let (code, _, err) = registry(&one, &["restore", "snapshot.jsonl"], "");
    assert!(code == 1 && err.contains("stop it first"), "{err}");
    one.bridge.signal("TERM");
    assert_eq!(one.bridge.wait(), 0);
    assert_eq!(export(&one), text, "the same without a bridge");
    let store = one.folder.path().join("data/registry.redb");
    std::fs::write(&store, b"nonsense").expect("it writes");
    let (code, _, err) = registry(&one, &["export"], "");
    assert!(code == 1 && err.contains("Try: ringspan registry restore"), "{err}");
    let (code, _, err) = registry(&one, &["restore", "snapshot.jsonl"], "");
    assert!(code == 0 && err.contains("registry.redb.before-"), "{err}");
    one.restart_bridge();
    until("the bridge to answer", || get(one.http, "/api/v1/health").ok());
    assert_eq!(export(&one), text);
}
