//! A whole ringspan on loopback, each part a real process: bridge, agents, nginx backends, and an HTTP visitor.

use super::{PATIENCE, Running, parts, ringspan, run_with, until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A folder, a bridge in it, and where its ports are.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) bridge: Running,
    pub(crate) http: SocketAddr,
    pub(crate) link: SocketAddr,
    pub(crate) web: SocketAddr,
}

impl World {
    /// Starts a bridge with one listener for the service `web`. Ports are the kernel's choice the first time, and the
    /// same ones after a restart.
    pub(crate) fn start() -> World {
        World::start_with("")
    }

    /// As [`start`](World::start), with more in the configuration.
    pub(crate) fn start_with(more: &str) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        write_config(folder.path(), any, any, any, more);
        let bridge = start_bridge(folder.path());
        let (http, link, web) = addresses(&bridge);
        // The bridge reads it again, and finds what it has.
        write_config(folder.path(), http, link, web, more);
        World { folder, bridge, http, link, web }
    }

    /// Starts the bridge again after its end, on the same ports.
    pub(crate) fn restart_bridge(&mut self) {
        self.bridge = start_bridge(self.folder.path());
        addresses(&self.bridge);
    }

    /// A command in the world's folder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = ringspan(args);
        command.current_dir(self.folder.path());
        command
    }

    /// Runs one to its end: exit code, stdout, stderr.
    pub(crate) fn run(&self, args: &[&str]) -> (i32, String, String) {
        parts(&run_with(&mut self.command(args), ""))
    }

    /// A fresh join token.
    pub(crate) fn token(&self, more: &[&str]) -> String {
        let mut args = vec!["token", "create", "--config", "bridge.toml"];
        args.extend(more);
        let (code, out, err) = self.run(&args);
        assert_eq!(code, 0, "{err}");
        out.trim().to_owned()
    }

    /// What `token list --format json` says.
    pub(crate) fn listing(&self) -> serde_json::Value {
        let (code, out, err) = self.run(&["token", "list", "--config", "bridge.toml", "--format", "json"]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).expect("JSON")
    }

    /// Starts an agent with this state folder, this token (empty: none) and these backends of `web`, checked each
    /// 100 ms: up after 2, down after 3.
    pub(crate) fn agent(&self, state: &str, token: &str, backends: &[SocketAddr]) -> Running {
        let token = if token.is_empty() { String::new() } else { format!("token = \"{token}\"\n") };
        let mut text = format!("[link]\n{token}state_dir = \"{state}\"\ncarriers = 2\n");
        for address in backends {
            text += &format!(
                "[[expose]]\nservice = \"web\"\naddress = \"{address}\"\n\
                 check = {{ type = \"tcp\", interval = \"100ms\", timeout = \"1s\", rise = 2, fall = 3 }}\n"
            );
        }
        let name = format!("{state}.toml");
        std::fs::write(self.folder.path().join(&name), text).expect("written");
        Running::start(&mut self.command(&["agent", "--config", &name]))
    }

    /// One visit: the body, or what went wrong.
    pub(crate) fn visit(&self) -> Result<String, String> {
        get(self.web, "/").map(|(_, body)| body)
    }

    /// Waits until `n` visits in a row are answered.
    pub(crate) fn wait_visits(&self, n: usize) {
        until("visitors to be answered", || (0..n).all(|_| self.visit().is_ok()).then_some(()));
    }

    /// The registry's instances of `web`, as Nacos clients see them.
    pub(crate) fn instances(&self) -> Vec<serde_json::Value> {
        let (status, body) =
            get(self.http, "/nacos/v1/ns/instance/list?serviceName=web").expect("the registry answers");
        assert_eq!(status, 200, "{body}");
        let all: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        all["hosts"].as_array().expect("a list").clone()
    }

    /// Ports of the registry's instances of `web` that are healthy, in order.
    pub(crate) fn healthy(&self) -> Vec<u64> {
        let all = self.instances();
        let healthy = all.iter().filter(|i| i["healthy"] == true).filter_map(|i| i["port"].as_u64());
        let mut ports: Vec<u64> = healthy.collect();
        ports.sort_unstable();
        ports
    }
}

fn write_config(folder: &Path, http: SocketAddr, link: SocketAddr, web: SocketAddr, more: &str) {
    let text = format!(
        "data_dir = \"data\"\n[http]\nlisten = \"{http}\"\n[link]\nlisten = \"{link}\"\n\
         [[listener]]\nname = \"web\"\ntype = \"tcp\"\nlisten = \"{web}\"\nservice = \"web\"\n{more}"
    );
    std::fs::write(folder.join("bridge.toml"), text).expect("written");
}

fn start_bridge(folder: &Path) -> Running {
    Running::start(ringspan(&["bridge", "--config", "bridge.toml"]).current_dir(folder))
}

/// Registry, link and visitor addresses, from the bridge's log.
fn addresses(bridge: &Running) -> (SocketAddr, SocketAddr, SocketAddr) {
    let up = bridge.wait_line(&["bridge is up"]);
    let listener = bridge.wait_line(&["listener", "name=\"web\""]);
    let of = |line: &str, key: &str| -> SocketAddr {
        let rest = line.split(&format!(" {key}=")).nth(1).unwrap_or_else(|| panic!("{key} in {line}"));
        rest.split_whitespace().next().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("{key} in {line}"))
    };
    (of(&up, "http"), of(&up, "link"), of(&listener, "address"))
}

impl World {
    /// Where a listener of this name is.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        let line = self.bridge.wait_line(&["listener", &format!("name=\"{name}\"")]);
        let rest = line.split(" address=").nth(1).unwrap_or_else(|| panic!("an address in {line}"));
        rest.split_whitespace().next().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("an address in {line}"))
    }

    /// Starts an agent that exposes these services, checked each 100 ms.
    pub(crate) fn agent_of(&self, exposes: &[(&str, SocketAddr)]) -> Running {
        let token = self.token(&[]);
        let mut text = format!("[link]\ntoken = \"{token}\"\nstate_dir = \"agent-of\"\ncarriers = 2\n");
        for (service, address) in exposes {
            text += &format!(
                "[[expose]]\nservice = \"{service}\"\naddress = \"{address}\"\n\
                 check = {{ type = \"tcp\", interval = \"100ms\", timeout = \"1s\", rise = 2, fall = 3 }}\n"
            );
        }
        std::fs::write(self.folder.path().join("agent-of.toml"), text).expect("written");
        let agent = Running::start(&mut self.command(&["agent", "--config", "agent-of.toml"]));
        for (service, address) in exposes {
            self.bridge.wait_line(&["backend up", service, &address.to_string()]);
        }
        agent
    }
}

/// One HTTP request on a fresh connection: status and body.
pub(crate) fn get(to: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer was cut off")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status line")?;
    Ok((status, body.to_owned()))
}

/// A real nginx that answers every request with its name.
pub(crate) struct Nginx {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Nginx {
    /// Starts one on a port of the kernel's choice. Panics where nginx is not installed: `scripts/setup` installs it.
    pub(crate) fn start(name: &str) -> Nginx {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        Nginx::start_at(name, address)
    }

    /// Starts one where another has died.
    pub(crate) fn start_at(name: &str, address: SocketAddr) -> Nginx {
        Nginx::start_server(address, &format!("location / {{ return 200 \"{name}\"; }}"))
    }

    /// Starts one with this inside its server block.
    pub(crate) fn start_server(address: SocketAddr, server: &str) -> Nginx {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path().display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ worker_connections 8192; }}\n\
             http {{ access_log {at}/access.log; client_body_temp_path {at}/b; proxy_temp_path {at}/p;\n\
             fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen {address}; {server} }} }}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).expect("written");
        // Debian keeps it out of an ordinary user's PATH.
        let debian = Path::new("/usr/sbin/nginx");
        let program = if debian.exists() { debian } else { Path::new("nginx") };
        let child = Command::new(program)
            .arg("-p")
            .arg(folder.path())
            .args(["-e", "error.log", "-c", "nginx.conf"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed: scripts/setup");
        let nginx = Nginx { child, address, folder };
        until("nginx to listen", || TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok());
        nginx
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What its clients did: one line a request. A connection without a request leaves none.
    pub(crate) fn access_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}
