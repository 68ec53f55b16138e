//! Claim: an instance that only an agent can reach is checked through that agent: it is healthy while the agent says so,
//! its end is pushed to subscribers, and with the agent gone - killed, cut off in silence, or not heard of yet by a bridge
//! that was killed - it is unknown and no view calls it healthy. Method: bridge, agents and servers as child processes;
//! agents and servers in network namespaces that the bridge has a way into for the link alone. Every wait ends with an
//! event. Namespaces take root: without it these tests say so and check nothing.

mod common;
#[path = "common/nacos.rs"]
mod nacos;

use common::world::get;
use common::{Running, parts, ringspan, run_with, until};
use nacos::Nacos;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use tempfile::TempDir;

/// A namespace with a wire to ours, and an address inside that the wire does not lead to.
struct Island {
    name: String,
    /// Our end of the wire, and its.
    wire: String,
    ours: String,
    theirs: String,
    /// What nobody else can reach.
    inside: String,
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("iproute2 is installed: scripts/setup");
    assert!(status.success(), "ip {args}");
}

/// Whether namespaces can be made here.
fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("coreutils");
    let is_root = id.stdout.starts_with(b"0\n");
    if !is_root {
        eprintln!("NOT CHECKED: network namespaces take root. Try: sudo -E cargo test --test vantage");
    }
    is_root
}

impl Island {
    fn new() -> Island {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let (n, pid) = (u32::from(NEXT.fetch_add(1, Ordering::Relaxed)), std::process::id() % 100_000);
        // Others may run these tests beside us.
        let net = format!("10.{}.{}", 200 + pid % 50, (pid / 50 + n) % 250);
        let island = Island {
            name: format!("rs-isle-{pid}-{n}"),
            wire: format!("rsi{pid}n{n}"),
            ours: format!("{net}.1"),
            theirs: format!("{net}.2"),
            inside: format!("{net}.9"),
        };
        let Island { name, wire, ours, theirs, inside } = &island;
        ip(&format!("netns add {name}"));
        ip(&format!("link add {wire} type veth peer name eth0 netns {name}"));
        ip(&format!("address add {ours}/30 dev {wire}"));
        ip(&format!("link set {wire} up"));
        ip(&format!("-n {name} address add {theirs}/30 dev eth0"));
        ip(&format!("-n {name} address add {inside}/32 dev lo"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set eth0 up"));
        // Whoever looks from here is told at once, and nothing leaves this machine.
        ip(&format!("route add unreachable {inside}/32"));
        island
    }

    /// A command in it.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Nothing comes through the wire any more, and nobody is told.
    fn cut(&self) {
        ip(&format!("link set {} down", self.wire));
    }

    fn mend(&self) {
        ip(&format!("link set {} up", self.wire));
    }

    /// A real nginx inside, on 8080.
    fn nginx(&self, folder: &Path) -> Server {
        let text = format!(
            "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log;\nevents {{}}\n\
             http {{ access_log off; server {{ listen {1}:8080;\n\
             location /good {{ return 204; }}\nlocation /bad {{ return 500; }} }} }}\n",
            folder.display(),
            self.inside
        );
        let conf = folder.join(format!("{}.conf", self.name));
        std::fs::write(&conf, text).expect("written");
        let mut command = self.command("nginx", &["-e", "stderr", "-c", conf.to_str().expect("a path")]);
        let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Server(started.expect("nginx is installed: scripts/setup"))
    }

    /// A real MariaDB inside, on 3306: its user `probe` has the password `secret`.
    fn mariadb(&self, folder: &Path) -> Running {
        let data = format!("--datadir={}", folder.join("mariadb").display());
        let mut install =
            self.command("mariadb-install-db", &["--no-defaults", &data, "--skip-test-db", "--user=root"]);
        let installed = install.output().expect("mariadb-install-db is installed: scripts/setup");
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stdout));
        let sql = folder.join("users.sql");
        std::fs::write(&sql, "create user 'probe'@'%' identified by 'secret';\n").expect("written");
        let file = |key: &str, name: &str| format!("--{key}={}", folder.join(name).display());
        let args = [
            "--no-defaults",
            &data,
            "--user=root",
            "--port=3306",
            "--performance-schema=OFF",
            "--innodb-buffer-pool-size=8M",
            &format!("--bind-address={}", self.inside),
            &format!("--init-file={}", sql.display()),
            &file("socket", "my.sock"),
            &file("pid-file", "my.pid"),
        ];
        let server = Running::start(&mut self.command("mariadbd", &args));
        server.wait_line(&["ready for connections"]);
        server
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["route", "delete", "unreachable", &format!("{}/32", self.inside)]).status();
        // The wire goes with it.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// A child process that ends with us.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bridge in our namespace, listening for links on an island's wire, and what it was told.
struct Shore {
    folder: TempDir,
    bridge: Option<Running>,
    http: SocketAddr,
    grpc: SocketAddr,
    dns: SocketAddr,
    token: String,
}

impl Shore {
    fn new(link_at: &str) -> Shore {
        let folder = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind((link_at, 0)).expect("a free port");
        let link = free.local_addr().expect("bound");
        drop(free);
        let toml = format!(
            "data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
             grpc_listen = \"127.0.0.1:0\"\n[dns]\nlisten = \"127.0.0.1:0\"\nttl = \"0s\"\n[link]\nlisten = \"{link}\"\n"
        );
        std::fs::write(folder.path().join("bridge.toml"), toml).expect("written");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut shore =
            Shore { folder, bridge: None, http: nowhere, grpc: nowhere, dns: nowhere, token: String::new() };
        shore.start();
        let mut create = ringspan(&["token", "create", "--config", "bridge.toml", "--uses", "9"]);
        let (code, token, err) = parts(&run_with(create.current_dir(shore.folder.path()), ""));
        assert_eq!(code, 0, "{err}");
        shore.token = token.trim().to_owned();
        shore
    }

    fn start(&mut self) {
        let mut command = ringspan(&["bridge", "--config", "bridge.toml"]);
        let bridge = Running::start(command.current_dir(self.folder.path()));
        let address = |line: &str, key: &str| -> SocketAddr {
            let rest = line.split(key).nth(1).unwrap_or_else(|| panic!("{line}"));
            rest.split_whitespace().next().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("{line}"))
        };
        self.dns = address(&bridge.wait_line(&["dns", "zone"]), " address=");
        let line = bridge.wait_line(&["bridge is up"]);
        (self.http, self.grpc) = (address(&line, " http="), address(&line, " grpc="));
        self.bridge = Some(bridge);
    }

    /// As a crash: nothing is said to anybody.
    fn kill(&mut self) {
        self.bridge.take().expect("it runs").kill();
    }

    /// An agent on an island that may look at what is inside, and at nothing else.
    fn agent(&self, island: &Island, name: &str) -> Running {
        self.allow(name, &format!("\"{}\"", island.inside));
        let binary = env!("CARGO_BIN_EXE_ringspan");
        let mut command = island.command(binary, &["agent", "--config", &format!("{name}.toml")]);
        Running::start(command.current_dir(self.folder.path()))
    }

    /// Writes an agent's configuration. One that runs reads it again.
    fn allow(&self, name: &str, networks: &str) {
        let text = format!(
            "[link]\nname = \"{name}\"\ntoken = \"{}\"\nstate_dir = \"{name}\"\n[checks]\nallow = [{networks}]\n",
            self.token
        );
        let file = self.folder.path().join(format!("{name}.toml"));
        // In one step, as editors do it: no half file is read.
        let new = file.with_extension("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &file).expect("renamed");
    }

    /// Registers as any Nacos client would: metadata says who checks, and how, in the same step.
    fn register(&self, address: &str, port: u16, metadata: &Value) -> String {
        let ends = format!("serviceName=isle&ip={address}&port={port}&ephemeral=false&metadata=");
        self.request("POST", &format!("/nacos/v1/ns/instance?{ends}{}", escape(&metadata.to_string())))
    }

    fn request(&self, method: &str, path: &str) -> String {
        request_as(method, self.http, path, "test")
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = get(self.http, path).expect("it answers");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// What is known of the instance at this port.
    fn truth(&self, port: u16) -> Value {
        let all = self.json("/api/v1/services/public/DEFAULT_GROUP/isle");
        let mut all = all["instances"].as_array().expect("a list").iter();
        all.find(|i| i["port"] == port).expect("it is registered").clone()
    }

    /// Health and reason of the instance at this port.
    fn health(&self, port: u16) -> (String, String) {
        let truth = self.truth(port);
        let text = |key: &str| truth[key].as_str().expect("text").to_owned();
        (text("health"), text("reason"))
    }

    /// Waits until the instance at this port is `health` for `reason`.
    fn wait(&self, port: u16, health: &str, reason: &str) {
        let mut last = None;
        until(&format!("{port} to be {health} {reason}"), || {
            let is = self.health(port);
            if last.as_ref() != Some(&is) {
                eprintln!("{port} is {is:?}");
            }
            let done = is == (health.to_owned(), reason.to_owned());
            last = Some(is);
            done.then_some(())
        });
    }

    /// Ports that are healthy in each of Nacos' views; that they agree is part of the claim.
    fn healthy(&self) -> Vec<u64> {
        let views = [
            "/nacos/v1/ns/instance/list?serviceName=isle",
            "/nacos/v1/ns/instance/list?serviceName=isle&healthyOnly=true",
            "/nacos/v2/ns/instance/list?serviceName=isle",
            "/nacos/v3/client/ns/instance/list?serviceName=isle",
            "/nacos/v1/ns/catalog/instances?serviceName=isle&pageNo=1&pageSize=99",
        ];
        let ports = |path: &str| -> Vec<u64> {
            let answer = self.json(path);
            let data = answer.get("data").unwrap_or(&answer);
            let hosts = [data, &data["hosts"], &data["list"]].into_iter().find_map(Value::as_array);
            let hosts = hosts.unwrap_or_else(|| panic!("{path}: {answer}"));
            if path.contains("healthyOnly") {
                assert!(hosts.iter().all(|h| h["healthy"] == true), "{path}: {answer}");
            }
            hosts.iter().filter(|h| h["healthy"] == true).filter_map(|h| h["port"].as_u64()).collect()
        };
        let all: Vec<Vec<u64>> = views.iter().map(|view| ports(view)).collect();
        assert!(all.iter().all(|ports| *ports == all[0]), "{views:?}: {all:?}");
        all[0].clone()
    }

    /// Ports that SDKs find over gRPC, well ones alone; that they are called healthy is part of the claim.
    fn found_by(&self, client: &Nacos) -> Vec<u64> {
        let ask = |healthy: bool| {
            let question = json!({ "serviceName": "isle", "groupName": "DEFAULT_GROUP", "healthyOnly": healthy });
            let said = client.ask("ServiceQueryRequest", &question);
            said["serviceInfo"]["hosts"].as_array().expect("hosts").clone()
        };
        let (all, well) = (ask(false), ask(true));
        assert!(well.iter().all(|h| h["healthy"] == true), "{well:?}");
        let ports = |hosts: &[Value]| -> Vec<u64> {
            hosts.iter().filter(|h| h["healthy"] == true).filter_map(|h| h["port"].as_u64()).collect()
        };
        assert_eq!(ports(&all), ports(&well));
        ports(&well)
    }

    /// What `dig` has of a service: its addresses, and the ports of its SRV records.
    fn resolved(&self) -> (Vec<String>, Vec<u64>) {
        let dig = |kind: &str| {
            let (at, port) = (format!("@{}", self.dns.ip()), self.dns.port().to_string());
            let args = [&at, "-p", &port, "+short", "+tries=1", "+time=20", kind, "isle.svc.ringspan.internal"];
            let said = Command::new("dig").args(args).output().expect("dig is installed: scripts/setup");
            assert!(said.status.success(), "{said:?}");
            String::from_utf8(said.stdout).expect("text")
        };
        let port = |line: &str| line.split(' ').nth(2).and_then(|p| p.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        (dig("A").lines().map(str::to_owned).collect(), dig("SRV").lines().map(port).collect())
    }
}

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

fn escape(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
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
