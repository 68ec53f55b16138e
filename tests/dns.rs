//! Claim: what is registered over HTTP is found with dig, an instance that is down is not, and no question is lost while another
//! process takes over the bridge.
//! Method: the real binary, curl's HTTP by hand, dig.

mod common;

use common::{Running, ringspan, until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

fn call(to: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(to).expect("it listens");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("said");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
    answer
}

fn dig(at: SocketAddr, args: &[&str]) -> String {
    let mut dig = Command::new("dig");
    dig.args([&format!("@{}", at.ip()), "-p", &at.port().to_string(), "+short", "+tries=1", "+time=20"]).args(args);
    let output = dig.output().expect("dig is there: scripts/setup");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn after<'a>(line: &'a str, key: &str) -> &'a str {
    let (_, rest) = line.split_once(key).expect("the line says it");
    rest.split_whitespace().next().expect("a value")
}

/// Ports that are free at this moment: a process that takes over asks for the same ones.
fn free() -> [SocketAddr; 4] {
    let listeners = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("bound"))
}

#[test]
fn services_are_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let [http, grpc, link, dns] = free();
    let text = format!(
        "data_dir = \"data\"\n[http]\nlisten = \"{http}\"\ngrpc_listen = \"{grpc}\"\n[link]\nlisten = \"{link}\"\n\
         [engine]\nworkers = 1\n[dns]\nlisten = \"{dns}\"\nzone = \"svc.test\"\nttl = \"0s\"\n"
    );
    std::fs::write(folder.path().join("bridge.toml"), text).expect("written");
    let mut bridge = Running::start(ringspan(&["bridge", "--config", "bridge.toml"]).current_dir(folder.path()));
    let dns: SocketAddr = after(&bridge.wait_line(&["dns", "zone"]), "address=").parse().expect("an address");
    let http: SocketAddr = after(&bridge.wait_line(&["bridge is up"]), "http=").parse().expect("an address");
    let alive = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let listener = TcpListener::bind(alive).expect("it is free");
    let place =
        |ip: &str, port: u16| format!("/nacos/v1/ns/instance?serviceName=Web&ip={ip}&port={port}&ephemeral=false");
    call(http, "POST", &place("127.0.0.1", alive.port()));
    call(http, "POST", &place("127.0.0.2", alive.port()));
    let name = "web.svc.svc.test";
    until("both", || (dig(dns, &[name]).lines().count() == 1).then_some(()));
    assert_eq!(dig(dns, &[name]), "127.0.0.1\n", "nobody listens at the other one");
    let srv = dig(dns, &["SRV", "_web._tcp.svc.svc.test"]);
    assert_eq!(srv, format!("0 100 {} 127-0-0-1._x57eb.host.svc.test.\n", alive.port()));
    assert_eq!(dig(dns, &["127-0-0-1._x57eb.host.svc.test"]), "127.0.0.1\n");
    drop(listener);
    until("the other to be down, too", || dig(dns, &[name]).is_empty().then_some(()));
    let listener = TcpListener::bind(alive).expect("it is free");
    until("it to be back", || (dig(dns, &[name]) == "127.0.0.1\n").then_some(()));
    // Whoever asks while the bridge changes hands waits, and is answered.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                // The new process has yet to ask the other one how it is; until then it stands as it was registered.
                for how in ["+notcp", "+tcp"] {
                    let said = dig(dns, &[how, name]);
                    assert!(said.lines().any(|line| line == "127.0.0.1"), "question {asked}: {said}");
                }
                asked += 1;
            }
            asked
        });
        let next =
            Running::start(ringspan(&["bridge", "--config", "bridge.toml", "--takeover"]).current_dir(folder.path()));
        next.wait_line(&["taken over"]);
        assert_eq!(bridge.wait(), 0, "{}", bridge.text());
        bridge = next;
        over.store(true, Ordering::Relaxed);
        assert!(asking.join().expect("no panic") > 0);
    });
    drop(listener);
    bridge.signal("TERM");
    assert_eq!(bridge.wait(), 0, "{}", bridge.text());
}
