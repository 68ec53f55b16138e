//! Claim: an instance that only an agent can reach is checked through that agent: it is healthy while the agent says so,
//! its end is pushed to subscribers, and with the agent gone it is unknown and nobody calls it healthy. Method: bridge,
//! agent and nginx as child processes, agent and nginx in a network namespace that the bridge has a way into for the link
//! alone. Needs root, as everything that makes namespaces does; every wait ends with an event.

mod common;

use common::world::get;
use common::{Running, parts, ringspan, run_with, until};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};

/// A namespace with a wire to ours, and an address inside that the wire does not lead to.
struct Island {
    name: String,
}

/// Our end of the wire.
const OURS: &str = "10.213.7.1";
/// Its end.
const THEIRS: &str = "10.213.7.2";
/// Where only the island is.
const INSIDE: &str = "10.213.99.9";

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("iproute2 is installed: scripts/setup");
    assert!(status.success(), "ip {args}: does this test run as root?");
}

impl Island {
    fn new() -> Island {
        let name = format!("rs-isle-{}", std::process::id());
        let (ours, theirs) =
            (format!("rsi{}a", std::process::id() % 100_000), format!("rsi{}b", std::process::id() % 100_000));
        ip(&format!("netns add {name}"));
        let island = Island { name: name.clone() };
        ip(&format!("link add {ours} type veth peer name {theirs} netns {name}"));
        ip(&format!("address add {OURS}/30 dev {ours}"));
        ip(&format!("link set {ours} up"));
        ip(&format!("-n {name} address add {THEIRS}/30 dev {theirs}"));
        ip(&format!("-n {name} address add {INSIDE}/32 dev lo"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set {theirs} up"));
        island
    }

    /// A command in it.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args);
        command
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // The wire goes with it.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

#[test]
fn what_only_an_agent_can_reach() {
    let island = Island::new();
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    let free = TcpListener::bind((OURS, 0)).expect("a free port");
    let link = free.local_addr().expect("bound");
    drop(free);
    let bridge_toml = format!("data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n[link]\nlisten = \"{link}\"\n");
    write("bridge.toml", &bridge_toml);
    let bridge = Running::start(ringspan(&["bridge", "--config", "bridge.toml"]).current_dir(folder.path()));
    let line = bridge.wait_line(&["bridge is up"]);
    let of = |key: &str| -> SocketAddr {
        let rest = line.split(&format!(" {key}=")).nth(1).unwrap_or_else(|| panic!("{key} in {line}"));
        rest.split_whitespace().next().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("{key} in {line}"))
    };
    let http = of("http");
    let mut create = ringspan(&["token", "create", "--config", "bridge.toml"]);
    let (code, token, err) = parts(&run_with(create.current_dir(folder.path()), ""));
    assert_eq!(code, 0, "{err}");
    let token = token.trim();
    write(
        "agent.toml",
        &format!(
            "[link]\ntoken = \"{token}\"\nstate_dir = \"agent\"\n[checks]\nallow = [\"10.213.99.0/24\"]\n\
             [[expose]]\nservice = \"other\"\naddress = \"{INSIDE}:1\"\n"
        ),
    );
    write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log;\nevents {{}}\n\
             http {{ access_log off; server {{ listen {INSIDE}:8080; location / {{ return 200; }} }} }}\n",
            folder.path().display()
        ),
    );
    let conf = folder.path().join("nginx.conf");
    let mut nginx = island
        .command("nginx", &["-e", "stderr", "-c", conf.to_str().expect("a path")])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx is installed: scripts/setup");
    let binary = env!("CARGO_BIN_EXE_ringspan");
    let agent = Running::start(island.command(binary, &["agent", "--config", "agent.toml"]).current_dir(folder.path()));
    let up = bridge.wait_line(&["agent up", "name="]);
    let name = up.split(" name=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a name").to_owned();
    // As the registry calls it: what a cluster's name cannot have in it is a dash.
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();

    // Registered as any Nacos client would: metadata says who checks, and how, in the same step.
    let checker = "{\"type\":\"TCP\",\"intervalMs\":200,\"timeoutMs\":150,\"rise\":1,\"fall\":2}";
    let metadata = serde_json::json!({ "preserved.vantage": format!("agent:{name}"), "preserved.checker": checker });
    let register = |port: u16, ip: &str| {
        let pairs = [("serviceName", "isle"), ("ip", ip), ("port", &port.to_string()), ("ephemeral", "false")];
        let mut all: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let escaped: String = metadata.to_string().bytes().map(|b| format!("%{b:02X}")).collect();
        all.push(format!("metadata={escaped}"));
        request("POST", http, &format!("/nacos/v1/ns/instance?{}", all.join("&")))
    };
    assert_eq!(register(8080, INSIDE), "ok");
    assert_eq!(register(8081, THEIRS), "ok", "taken, and not looked at: the agent may not look there");
    let healthy = || -> Vec<u64> {
        let (status, body) = get(http, "/nacos/v1/ns/instance/list?serviceName=isle").expect("it answers");
        assert_eq!(status, 200, "{body}");
        let all: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let hosts = all["hosts"].as_array().expect("a list").iter();
        hosts.filter(|h| h["healthy"] == true).filter_map(|h| h["port"].as_u64()).collect()
    };
    let votes = |port: u64| -> serde_json::Value {
        let (_, body) = get(http, "/api/v1/services/public/DEFAULT_GROUP/isle").expect("it answers");
        let all: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let mut all = all["instances"].as_array().expect("a list").iter();
        all.find(|i| i["port"] == port).expect("it is registered").clone()
    };
    until("the agent to see it", || (healthy() == [8080]).then_some(()));
    assert_eq!(votes(8080)["vantages"][0]["vantage"], format!("agent:{name}"));
    until("the agent to say that it may not", || (votes(8081)["vantages"][0]["reason"] == "DENIED").then_some(()));

    // A subscriber is told of its end.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.set_read_timeout(Some(common::PATIENCE)).expect("set");
    let port = socket.local_addr().expect("bound").port();
    let subscribe = format!("/nacos/v1/ns/instance/list?serviceName=isle&udpPort={port}");
    request_as("GET", http, &subscribe, "Nacos-Go-Client:v1.0");
    let _ = nginx.kill();
    let _ = nginx.wait();
    let mut datagram = [0; 65_536];
    socket.recv(&mut datagram).expect("a push");
    until("its end", || (votes(8080)["health"] == "down").then_some(()));
    assert_eq!((votes(8080)["reason"].as_str(), healthy()), (Some("L4CON"), vec![]));

    agent.kill();
    until("nobody to know", || (votes(8080)["reason"] == "AGENTGONE").then_some(()));
    assert_eq!((votes(8080)["health"].as_str(), healthy()), (Some("unknown"), vec![]));
}

fn request(method: &str, to: SocketAddr, path: &str) -> String {
    request_as(method, to, path, "test")
}

fn request_as(method: &str, to: SocketAddr, path: &str, agent: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(to).expect("it listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nUser-Agent: {agent}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
}
