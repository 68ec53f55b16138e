//! The product as its users run it: the release binary, its configuration files, its token command.
//! Promise: nothing here uses the project's crates; what is measured and shaken is what is shipped.

use crate::process::{self, Failure, Finished, Process};
use crate::wire::command_in;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What `ringspan probe --format json` ends with; the part of it that is used here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ProbeReport {
    /// Probes that came out.
    pub(crate) probes: u64,
    /// Targets that ended up.
    pub(crate) up: u64,
    /// Targets that ended down.
    pub(crate) down: u64,
    /// Actual minus scheduled start of the probes.
    pub(crate) lateness_us: Quantiles,
    /// Connect to answer.
    pub(crate) rtt_us: Quantiles,
    /// Slots that came due while the target's probe was in flight.
    pub(crate) missed: u64,
    /// Probes a second over the run.
    pub(crate) probes_per_s: f64,
    /// User and system time of the run over its probes.
    pub(crate) cpu_us_per_probe: f64,
    /// How often each code came out.
    #[serde(default)]
    pub(crate) outcomes: BTreeMap<String, u64>,
    /// "io_uring" or "epoll".
    pub(crate) backend: String,
}

/// A distribution, in microseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Quantiles {
    /// Half of them are at most this.
    pub(crate) p50: f64,
    /// 99 of 100.
    pub(crate) p99: f64,
    /// The largest.
    pub(crate) max: f64,
}

/// Where the binary is: the given path, or beside this program.
///
/// # Errors
/// It is not there.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let path = given.map_or_else(|| process::own_program().with_file_name("ringspan"), Path::to_path_buf);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("no ringspan at {}. Try: cargo build --release, or --ringspan PATH", path.display()))
    }
}

/// Runs `ringspan probe` to its end on a core, with JSON output. Exit code 1 (something is down) is an answer too.
///
/// # Errors
/// It failed, or its last line is not the object that the documentation promises.
pub(crate) fn probe(program: &Path, core: usize, args: &[&str]) -> Result<(ProbeReport, Finished), Failure> {
    let mut all = vec!["probe", "--format", "json", "--workers", "1"];
    all.extend_from_slice(args);
    let finished = process::run("ringspan probe", process::command(program, &all, Some(core)), &[0, 1])?;
    let object = finished.stdout.find('{').map_or("", |at| &finished.stdout[at..]);
    let report =
        serde_json::from_str(object).map_err(|e| format!("ringspan probe printed no report: {e}: {object:.200}"))?;
    Ok((report, finished))
}

/// How a stream rides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// Framed, many streams on a connection.
    Mux,
    /// Unframed, a pooled connection of its own.
    Direct,
    /// It begins on the mux and moves when it proves to be bulk.
    Auto,
}

impl Carrier {
    fn as_str(self) -> &'static str {
        match self {
            Carrier::Mux => "mux",
            Carrier::Direct => "direct",
            Carrier::Auto => "auto",
        }
    }
}

/// One service offered through the tunnel.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: &'static str,
    /// Where visitors come in.
    pub(crate) listen: SocketAddr,
    /// Where the agents find it; several are taken in turn.
    pub(crate) backends: Vec<SocketAddr>,
}

/// A bridge and its agents, their files in a folder.
#[derive(Debug)]
pub(crate) struct Tunnel {
    program: PathBuf,
    folder: PathBuf,
    core: Option<usize>,
    /// The registry's HTTP APIs.
    pub(crate) http: SocketAddr,
    /// Where agents come in.
    pub(crate) link: SocketAddr,
    services: Vec<Service>,
    tls: bool,
    /// How streams ride; none: as the product has it by default.
    carrier: Option<Carrier>,
    /// What new tokens tell agents to dial, if not the link's own address.
    pub(crate) via: Option<SocketAddr>,
    /// The process whose network namespace the agents run in; none: ours.
    pub(crate) agents_in: Option<u32>,
    /// What bridge and agents find in their environment besides.
    pub(crate) says: Vec<(&'static str, String)>,
    /// More lines of the agents' `[link]`.
    pub(crate) agent_link: String,
    /// A listener of type `http` besides, for the service `web`.
    pub(crate) site: Option<SocketAddr>,
}

impl Tunnel {
    /// Writes bridge.toml. `core`: run every process of the tunnel there.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn new(
        program: &Path,
        folder: &Path,
        core: Option<usize>,
        (http, link): (SocketAddr, SocketAddr),
        tls: bool,
        services: &[Service],
    ) -> Result<Tunnel, Failure> {
        let tunnel = Tunnel {
            program: program.to_owned(),
            folder: folder.to_owned(),
            core,
            http,
            link,
            services: services.to_vec(),
            carrier: None,
            via: None,
            agents_in: None,
            says: Vec::new(),
            agent_link: String::new(),
            site: None,
            tls,
        };
        tunnel.write_bridge(services)?;
        Ok(tunnel)
    }

    /// Lets the bridge's file have other listeners; a running bridge reads it again by itself.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn set_services(&mut self, services: &[Service]) -> Result<(), Failure> {
        self.services = services.to_vec();
        self.write_bridge(services)
    }

    fn write_bridge(&self, services: &[Service]) -> Result<(), Failure> {
        let (data, http, link) = (self.folder.join("bridge-data"), self.http, self.link);
        let tls = if self.tls { "auto" } else { "off" };
        let mut text =
            format!("data_dir = {data:?}\n[http]\nlisten = \"{http}\"\n[link]\nlisten = \"{link}\"\ntls = \"{tls}\"\n");
        if !link.ip().is_loopback() && !self.tls {
            text += "insecure = true\n";
        }
        for service in services {
            text += &format!(
                "[[listener]]\nname = \"{0}\"\ntype = \"tcp\"\nlisten = \"{1}\"\nservice = \"{0}\"\n",
                service.name, service.listen
            );
            if let Some(carrier) = self.carrier {
                text += &format!("carrier = \"{}\"\n", carrier.as_str());
            }
        }
        if let Some(site) = self.site {
            text +=
                &format!("[[listener]]\nname = \"site\"\ntype = \"http\"\nlisten = \"{site}\"\nservice = \"web\"\n");
        }
        // Renamed over the old one, so that nobody reads half of it.
        let (new, file) = (self.folder.join("bridge.toml.new"), self.folder.join("bridge.toml"));
        write(&new, &text)?;
        fs::rename(&new, &file).map_err(|e| format!("{}: {e}", file.display()))
    }

    /// Lets streams ride like this; before the bridge starts. A product that has no choice keeps what it has.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn set_carrier(&mut self, carrier: Carrier) -> Result<(), Failure> {
        self.carrier = Some(carrier);
        let services = self.services.clone();
        self.write_bridge(&services)?;
        if !self.accepts_its_config() {
            self.carrier = None;
            self.write_bridge(&services)?;
        }
        Ok(())
    }

    /// Whether the product has a choice of carriers.
    pub(crate) fn has_carriers(program: &Path, folder: &Path) -> bool {
        let (http, link, listen) = (([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into(), ([127, 0, 0, 1], 3).into());
        let service = Service { name: "x", listen, backends: Vec::new() };
        let tunnel = Tunnel::new(program, folder, None, (http, link), false, &[service]);
        tunnel.is_ok_and(|mut it| it.set_carrier(Carrier::Mux).is_ok() && it.carrier.is_some())
    }

    fn accepts_its_config(&self) -> bool {
        let config = self.path("bridge.toml");
        process::run("check-config", process::command(&self.program, &["check-config", &config], None), &[0]).is_ok()
    }

    /// Starts the bridge again beside the one that runs, which hands its sockets over.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start_bridge_beside(&self) -> Result<Process, Failure> {
        self.spawn_bridge(&["--takeover"])
    }

    fn spawn_bridge(&self, more: &[&str]) -> Result<Process, Failure> {
        let config = self.path("bridge.toml");
        let args = [&["bridge", "--config", &config], more].concat();
        let mut command = process::command(&self.program, &args, self.core);
        command.envs(self.says.iter().map(|(name, value)| (name, value)));
        Process::start("bridge", command, &self.folder)
    }

    /// Starts the bridge, once its ports are free, and waits until it listens.
    ///
    /// # Errors
    /// It does not come up; with the end of its log.
    pub(crate) fn start_bridge(&self) -> Result<Process, Failure> {
        for address in [self.http, self.link].into_iter().chain(self.services.iter().map(|it| it.listen)) {
            process::until_free(address)?;
        }
        let mut bridge = self.spawn_bridge(&[])?;
        bridge.wait_listening(self.http)?;
        bridge.wait_listening(self.link)?;
        Ok(bridge)
    }

    /// A token from the running bridge, and an agent.toml that uses it. Backend `i` of each service goes to agent
    /// `i % agents`, so that every backend has one agent.
    ///
    /// # Errors
    /// The bridge gives no token, or the folder cannot be written.
    pub(crate) fn enrol_agent(&self, name: &str, index: usize, agents: usize, carriers: usize) -> Result<(), Failure> {
        let token = self.token(1)?;
        write(&self.folder.join(format!("{name}.token")), token.trim())?;
        let (token_file, state) = (self.path(&format!("{name}.token")), self.path(&format!("{name}-state")));
        let mut text = format!("[link]\ntoken_file = {token_file:?}\nstate_dir = {state:?}\ncarriers = {carriers}\n");
        text += &self.agent_link;
        for service in &self.services {
            for backend in service.backends.iter().skip(index).step_by(agents) {
                text += &format!(
                    "[[expose]]\nservice = \"{}\"\naddress = \"{backend}\"\n\
                     check = {{ type = \"tcp\", interval = \"500ms\", timeout = \"300ms\", rise = 1, fall = 2 }}\n",
                    service.name
                );
            }
        }
        write(&self.folder.join(format!("{name}.toml")), &text)
    }

    /// A token for so many agents.
    ///
    /// # Errors
    /// The bridge gives none.
    pub(crate) fn token(&self, uses: usize) -> Result<String, Failure> {
        let (config, uses) = (self.path("bridge.toml"), uses.to_string());
        let mut args = vec!["token", "create", "--config", &config, "--uses", &uses];
        let via = self.via.map(|address| address.to_string());
        if let Some(via) = &via {
            args.extend(["--address", via]);
        }
        let token = process::run("ringspan token create", process::command(&self.program, &args, None), &[0])?.stdout;
        Ok(token.trim().to_owned())
    }

    /// The agents that the bridge knows, and how many of them have a link.
    ///
    /// # Errors
    /// The bridge does not say.
    pub(crate) fn agents(&self) -> Result<(usize, usize), Failure> {
        let args = ["token", "list", "--format", "json", "--config", &self.path("bridge.toml")];
        let text = process::run("ringspan token list", process::command(&self.program, &args, None), &[0])?.stdout;
        let list: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| format!("ringspan token list: {e}: {text}"))?;
        let agents = list["agents"].as_array().ok_or("ringspan token list shows no agents")?;
        Ok((agents.len(), agents.iter().filter(|a| a["connected"] == true).count()))
    }

    /// Starts an agent that was enrolled before.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start_agent(&self, name: &str) -> Result<Process, Failure> {
        let config = self.path(&format!("{name}.toml"));
        let args = ["agent", "--config", &config];
        let mut command = match self.agents_in {
            None => process::command(&self.program, &args, self.core),
            Some(pid) => command_in(pid, &self.program, &args),
        };
        command.envs(self.says.iter().map(|(name, value)| (name, value)));
        Process::start(name, command, &self.folder)
    }

    fn path(&self, file: &str) -> String {
        self.folder.join(file).to_string_lossy().into_owned()
    }
}

/// Writes a configuration file.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
