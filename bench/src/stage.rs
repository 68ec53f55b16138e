//! Who carries, and how each is set up: the product by carrier, the floors, rathole and frp, each afresh between an entry
//! and a backend. Shared by the scenarios that compare them.
//! Promise: every contender runs with its own defaults but for what its name says, and is charged the user and system
//! time and the memory of all its processes, both ends of a tunnel summed.

use crate::peers::{self, RatholeTransport};
use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{Carrier, Service, Tunnel};
use crate::report::Section;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Who carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Nobody: the visitor dials the backend.
    Nobody,
    /// Bare relays one behind the other.
    Floor {
        /// The child that is one.
        relay: &'static str,
        /// How many.
        hops: u16,
    },
    /// The product.
    Ringspan {
        /// TLS 1.3 on the link.
        tls: bool,
        /// How a stream rides.
        carrier: Carrier,
    },
    /// rathole 0.5.0.
    Rathole(RatholeTransport),
    /// frp, yamux on.
    Frp {
        /// TLS on its link.
        tls: bool,
    },
}

/// The names in the reports.
pub(crate) const NOBODY: &str = "no tunnel";
pub(crate) const SPLICE: &str = "floor splice, one hop";
pub(crate) const SPLICE_TWO: &str = "floor splice, two hops";
pub(crate) const MESSAGES: &str = "floor relay, one hop";
pub(crate) const MESSAGES_TWO: &str = "floor relay, two hops";
pub(crate) const MUX: &str = "ringspan mux";
pub(crate) const DIRECT: &str = "ringspan direct";
pub(crate) const AUTO: &str = "ringspan auto";
pub(crate) const AUTO_TLS: &str = "ringspan auto, TLS 1.3";
pub(crate) const RATHOLE: &str = "rathole";
pub(crate) const RATHOLE_NOISE: &str = "rathole, noise";
pub(crate) const RATHOLE_TLS: &str = "rathole, TLS";
pub(crate) const FRP: &str = "frp";
pub(crate) const FRP_TLS: &str = "frp, TLS";

/// Everybody, in the order of the reports.
pub(crate) const ALL: [(&str, Contender); 14] = [
    (NOBODY, Contender::Nobody),
    (SPLICE, Contender::Floor { relay: "splice", hops: 1 }),
    (SPLICE_TWO, Contender::Floor { relay: "splice", hops: 2 }),
    (MESSAGES, Contender::Floor { relay: "messages", hops: 1 }),
    (MESSAGES_TWO, Contender::Floor { relay: "messages", hops: 2 }),
    (MUX, Contender::Ringspan { tls: false, carrier: Carrier::Mux }),
    (DIRECT, Contender::Ringspan { tls: false, carrier: Carrier::Direct }),
    (AUTO, Contender::Ringspan { tls: false, carrier: Carrier::Auto }),
    (AUTO_TLS, Contender::Ringspan { tls: true, carrier: Carrier::Auto }),
    (RATHOLE, Contender::Rathole(RatholeTransport::Plain)),
    (RATHOLE_NOISE, Contender::Rathole(RatholeTransport::Noise)),
    (RATHOLE_TLS, Contender::Rathole(RatholeTransport::Tls)),
    (FRP, Contender::Frp { tls: false }),
    (FRP_TLS, Contender::Frp { tls: true }),
];

/// What the command line says of the contenders.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Who {
    /// The rathole to stand beside. Default: target/peers (scripts/peers), then the PATH.
    #[arg(long, value_name = "PATH")]
    rathole: Option<PathBuf>,
    /// Only contenders whose name contains this.
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Carriers of the agent's link. The default is the product's.
    #[arg(long, default_value_t = 1)]
    carriers: usize,
}

impl Who {
    /// Carriers of the agent's link.
    pub(crate) fn carriers(&self) -> usize {
        self.carriers
    }
}

/// A contender that is up: where to go in, and whom to charge.
pub(crate) struct Running {
    /// Where visitors come in.
    pub(crate) entry: SocketAddr,
    /// The visitors' side first, then the backends'.
    pub(crate) processes: Vec<Process>,
}

impl Running {
    /// User and system time of all its processes so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.processes.iter().map(Process::cpu_seconds).sum()
    }

    /// Resident memory of all its processes.
    pub(crate) fn rss_mib(&self) -> f64 {
        self.processes.iter().map(Process::rss_bytes).sum::<u64>() as f64 / f64::from(1 << 20)
    }

    /// The ends of their logs, for an error.
    pub(crate) fn logs(&self) -> String {
        self.processes.iter().map(Process::log_end).collect::<Vec<_>>().join("\n")
    }
}

/// One scenario's surroundings.
pub(crate) struct Stage<'a> {
    common: &'a Common,
    who: &'a Who,
    rathole: Option<PathBuf>,
    frp: Option<peers::Frp>,
    pinned: bool,
}

impl<'a> Stage<'a> {
    /// `pinned`: the tunnel has core 0, the load core 1; else the kernel places all.
    pub(crate) fn new(who: &'a Who, common: &'a Common, pinned: bool) -> Stage<'a> {
        Stage { common, who, rathole: peers::rathole(who.rathole.as_deref()), frp: peers::frp(), pinned }
    }

    /// Loopback, `offset` ports above the base.
    pub(crate) fn port(&self, offset: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.common.port_base + offset))
    }

    /// Where the load's processes run.
    pub(crate) fn core(&self, core: usize) -> Option<usize> {
        self.pinned.then_some(core)
    }

    /// Whether `--only` leaves it in.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.who.only.as_ref().is_none_or(|word| name.contains(word.as_str()))
    }

    /// Those of the given names who are wanted and there; a note for who is not.
    pub(crate) fn contenders(&self, names: &[&str], section: &mut Section) -> Vec<(&'static str, Contender)> {
        let has_tls = self.rathole.as_deref().is_some_and(peers::rathole_has_tls);
        let there = |c: Contender| match c {
            Contender::Rathole(RatholeTransport::Tls) => has_tls,
            Contender::Rathole(_) => self.rathole.is_some(),
            Contender::Frp { .. } => self.frp.is_some(),
            Contender::Nobody | Contender::Floor { .. } | Contender::Ringspan { .. } => true,
        };
        let wanted = |name: &str| names.contains(&name) && self.wants(name);
        let has_carriers = Tunnel::has_carriers(&self.common.ringspan, &self.common.folder);
        if !has_carriers {
            section.note("this ringspan has no choice of carriers: all of its rows are its one way");
        }
        for (name, _) in ALL.into_iter().filter(|&(name, c)| wanted(name) && !there(c)) {
            section.note(format!("{name} is not there (scripts/peers)"));
        }
        ALL.into_iter().filter(|&(name, c)| wanted(name) && there(c)).collect()
    }

    /// Starts a contender in a folder of its own, between its entry and `backend`. Takes the ports 0 to 3.
    ///
    /// # Errors
    /// It does not come up; with the end of its log.
    pub(crate) fn start(&self, contender: Contender, backend: SocketAddr, folder: &Path) -> Result<Running, Failure> {
        let (entry, core) = (self.port(2), self.core(0));
        for offset in 0..=2 {
            process::until_free(self.port(offset))?;
        }
        match contender {
            Contender::Nobody => Ok(Running { entry: backend, processes: Vec::new() }),
            Contender::Floor { relay, hops } => self.start_floor(relay, hops, backend, folder),
            Contender::Ringspan { tls, carrier } => {
                let service = Service { name: "bench", listen: entry, backends: vec![backend] };
                let ports = (self.port(0), self.port(1));
                let mut tunnel = Tunnel::new(&self.common.ringspan, folder, core, ports, tls, &[service])?;
                tunnel.set_carrier(carrier)?;
                let mut bridge = tunnel.start_bridge()?;
                bridge.wait_listening(entry)?;
                tunnel.enrol_agent("agent", 0, 1, self.who.carriers)?;
                let agent = tunnel.start_agent("agent")?;
                Ok(Running { entry, processes: vec![bridge, agent] })
            }
            Contender::Rathole(transport) => {
                let program = self.rathole.as_deref().expect("contenders() left it out otherwise");
                let ports = (self.port(1), entry, backend);
                Ok(Running { entry, processes: peers::start_rathole(program, folder, core, transport, ports)? })
            }
            Contender::Frp { tls } => {
                let frp = self.frp.as_ref().expect("contenders() left it out otherwise");
                let ports = (self.port(1), entry, backend);
                Ok(Running { entry, processes: frp.start(folder, core, tls, ports)? })
            }
        }
    }

    /// Starts a contender afresh, measures it, and ends it, whatever came of it.
    ///
    /// # Errors
    /// It does not come up or does not work; with its name and the ends of its logs.
    pub(crate) fn with<T>(
        &self,
        name: &str,
        contender: Contender,
        backend: SocketAddr,
        measure: impl FnOnce(&Running, &Path) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let folder = self.scratch(name)?;
        let running = self.start(contender, backend, folder.path())?;
        measure(&running, folder.path()).map_err(|e| format!("{e}\n{}", running.logs()))
    }

    fn start_floor(&self, relay: &str, hops: u16, backend: SocketAddr, folder: &Path) -> Result<Running, Failure> {
        let mut processes = Vec::new();
        let mut to = backend;
        for hop in (0..hops).rev() {
            let listen = self.port(if hop == 0 { 2 } else { hop - 1 });
            let (listen_arg, to_arg) = (listen.to_string(), to.to_string());
            let args = ["child", relay, &listen_arg, &to_arg];
            let command = process::command(&process::own_program(), &args, self.core(0));
            let mut process = Process::start(&format!("{relay}-{hop}"), command, folder)?;
            process.wait_listening(listen)?;
            processes.push(process);
            to = listen;
        }
        Ok(Running { entry: to, processes })
    }

    /// A scratch folder, removed when dropped.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn scratch(&self, name: &str) -> Result<tempfile::TempDir, Failure> {
        let prefix = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&self.common.folder)
            .map_err(|e| format!("scratch folder: {e}"))
    }

    /// A child of ours on the load's core, waited for at `listen`.
    ///
    /// # Errors
    /// It does not listen.
    pub(crate) fn load(
        &self,
        name: &str,
        args: &[&str],
        listen: SocketAddr,
        folder: &Path,
    ) -> Result<Process, Failure> {
        process::until_free(listen)?;
        let mut all = vec!["child"];
        all.extend_from_slice(args);
        let mut child = Process::start(name, process::command(&process::own_program(), &all, self.core(1)), folder)?;
        child.wait_listening(listen)?;
        Ok(child)
    }
}

/// Asks until it works: a tunnel is ready when a visitor is served, not when a port is open.
///
/// # Errors
/// It does not work in time.
pub(crate) fn until_ready(name: &str, mut attempt: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + process::START_TIMEOUT;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(format!("{name} does not serve its first visitor: {e}")),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn connect(entry: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&entry, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

/// Eight bytes to the sink and its answer.
///
/// # Errors
/// It does not answer.
pub(crate) fn small_stream(entry: SocketAddr) -> Result<(), Failure> {
    let ask = || {
        let mut stream = connect(entry)?;
        stream.write_all(&8u64.to_le_bytes())?;
        stream.write_all(&[7; 8])?;
        stream.read_exact(&mut [0; 8])
    };
    ask().map_err(|e: io::Error| e.to_string())
}

/// One request to nginx and its answer.
///
/// # Errors
/// It does not answer, or not with 200.
pub(crate) fn small_request(entry: SocketAddr) -> Result<(), Failure> {
    let ask = || {
        let mut stream = connect(entry)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(answer) => Err(format!("answer {answer:?}")),
        Err(e) => Err(io::Error::to_string(&e)),
    }
}
