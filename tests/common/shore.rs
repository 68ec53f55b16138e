//! A bridge on the shore, islands that only their agents can reach, and what is asked of them.
//! Promise: namespaces and processes end with the test.

use super::common::world::get;
use super::common::{Running, parts, ringspan, run_with, until};
use super::nacos::Nacos;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use tempfile::TempDir;

/// A namespace with a wire to ours, and an address inside that the wire does not lead to.
pub(crate) struct Island {
    pub(crate) name: String,
    /// Our end of the wire, and its.
    pub(crate) wire: String,
    pub(crate) ours: String,
    pub(crate) theirs: String,
    /// What nobody else can reach.
    pub(crate) inside: String,
}

pub(crate) fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("iproute2 is installed: scripts/setup");
    assert!(status.success(), "ip {args}");
}

/// Whether namespaces can be made here.
pub(crate) fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("coreutils");
    let is_root = id.stdout.starts_with(b"0\n");
    if !is_root {
        eprintln!("NOT CHECKED: network namespaces take root. Try: sudo -E cargo test --test vantage");
    }
    is_root
}

impl Island {
    pub(crate) fn new() -> Island {
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
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(args);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Nothing comes through the wire any more, and nobody is told.
    pub(crate) fn cut(&self) {
        ip(&format!("link set {} down", self.wire));
    }

    pub(crate) fn mend(&self) {
        ip(&format!("link set {} up", self.wire));
    }

    /// A real nginx inside, on 8080.
    pub(crate) fn nginx(&self, folder: &Path) -> Server {
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
    pub(crate) fn mariadb(&self, folder: &Path) -> Running {
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
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bridge in our namespace, listening for links on an island's wire, and what it was told.
pub(crate) struct Shore {
    pub(crate) folder: TempDir,
    pub(crate) bridge: Option<Running>,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) dns: SocketAddr,
    pub(crate) token: String,
}

impl Shore {
    pub(crate) fn new(link_at: &str) -> Shore {
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

    pub(crate) fn start(&mut self) {
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
    pub(crate) fn kill(&mut self) {
        self.bridge.take().expect("it runs").kill();
    }

    /// An agent on an island that may look at what is inside, and at nothing else.
    pub(crate) fn agent(&self, island: &Island, name: &str) -> Running {
        self.allow(name, &format!("\"{}\"", island.inside));
        let binary = env!("CARGO_BIN_EXE_ringspan");
        let mut command = island.command(binary, &["agent", "--config", &format!("{name}.toml")]);
        Running::start(command.current_dir(self.folder.path()))
    }

    /// Writes an agent's configuration. One that runs reads it again.
    pub(crate) fn allow(&self, name: &str, networks: &str) {
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
    pub(crate) fn register(&self, address: &str, port: u16, metadata: &Value) -> String {
        let ends = format!("serviceName=isle&ip={address}&port={port}&ephemeral=false&metadata=");
        self.request("POST", &format!("/nacos/v1/ns/instance?{ends}{}", escape(&metadata.to_string())))
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> String {
        request_as(method, self.http, path, "test")
    }

    pub(crate) fn json(&self, path: &str) -> Value {
        let (status, body) = get(self.http, path).expect("it answers");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// What is known of the instance at this port.
    pub(crate) fn truth(&self, port: u16) -> Value {
        let all = self.json("/api/v1/services/public/DEFAULT_GROUP/isle");
        let mut all = all["instances"].as_array().expect("a list").iter();
        all.find(|i| i["port"] == port).expect("it is registered").clone()
    }

    /// Health and reason of the instance at this port.
    pub(crate) fn health(&self, port: u16) -> (String, String) {
        let truth = self.truth(port);
        let text = |key: &str| truth[key].as_str().expect("text").to_owned();
        (text("health"), text("reason"))
    }

    /// Waits until the instance at this port is `health` for `reason`.
    pub(crate) fn wait(&self, port: u16, health: &str, reason: &str) {
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
    pub(crate) fn healthy(&self) -> Vec<u64> {
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
    pub(crate) fn found_by(&self, client: &Nacos) -> Vec<u64> {
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
    pub(crate) fn resolved(&self) -> (Vec<String>, Vec<u64>) {
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

pub(crate) fn escape(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

pub(crate) fn request_as(method: &str, to: SocketAddr, path: &str, agent: &str) -> String {
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
