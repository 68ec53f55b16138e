//! A bridge whose place another process takes: what it gives away, and what it carries to its end.

use super::listeners;
use super::server::{BridgeServer, WATCH, visitors_gone};
use super::takeover::{self, Estate, Successor};
use crate::Failure;
use crate::doors::Doors;
use crate::inherit::AtPath;
use ringspan_engine::engine::Engine;
use ringspan_engine::kernel::handover::Waiting;
use ringspan_tunnel::bridge::BridgeHandle;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// SIGUSR2: the program that is on disk now, with our own arguments, takes over.
pub(super) fn start_successor() {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if !arguments.iter().any(|a| a == "--takeover") {
        arguments.push("--takeover".into());
    }
    // A program that was replaced on disk is "/path (deleted)" to the kernel: the path is what we want.
    let program = std::env::current_exe().map(|path| match path.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        Some(path) => path.into(),
        None => path,
    });
    match program.and_then(|program| std::process::Command::new(program).args(arguments).spawn()) {
        Ok(mut child) => {
            tracing::info!(pid = child.id(), "SIGUSR2: a new bridge is to take over");
            std::thread::spawn(move || child.wait());
        }
        Err(error) => tracing::error!(%error, "SIGUSR2: a new bridge cannot be started"),
    }
}

impl BridgeServer {
    /// Gives everything but the visitors to another process; whether it has taken it.
    pub(super) async fn hand_over(self, stream: std::os::unix::net::UnixStream) -> (Retired, std::io::Result<()>) {
        tracing::info!("another process takes over");
        let estate = self.estate();
        let doors = self.doors.addresses().map(|(_, address)| address);
        let addresses: HashSet<SocketAddr> = self
            .handle
            .addresses()
            .into_iter()
            .map(|(_, address)| address)
            .chain(doors)
            .chain([self.http_address, self.link_address()])
            .chain(self.grpc_address)
            .chain(self.dns_addresses.iter().copied())
            .collect();
        // Copies: whatever happens, they do not go with us.
        let sockets = takeover::sockets(&addresses).and_then(|sockets| Ok((sockets, self.doors.paths()?)));
        listeners::closed(&self.handle.leave_listeners(false)).await;
        let _ = self.stop.send(true);
        let _ = self.http.await;
        for server in [self.grpc, self.dns].into_iter().flatten() {
            let _ = server.await;
        }
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        let (registry, keyring, access) = (self.registry, self.hall.keyring.clone(), self.hall.access.clone());
        let _ = tokio::task::spawn_blocking(move || {
            registry.stop();
            access.stop();
            keyring.close();
        })
        .await;
        let mut retired = Retired {
            engine: self.engine,
            handle: self.handle,
            doors: Some(self.doors),
            pump: self.pump,
            patience: self.config.drain_takeover,
            sockets: None,
            requests: None,
        };
        let result = match sockets {
            Ok(sockets) => retired.introduce(stream, estate, sockets).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(successor) => {
                retired.leave().await;
                // Which it waits for.
                drop(successor);
                Ok(())
            }
            Err(error) => Err(error),
        };
        (retired, result)
    }
}

/// A bridge whose place another one has taken: it carries its visitors to their end.
pub(super) struct Retired {
    engine: Arc<Mutex<Engine>>,
    pub(super) handle: BridgeHandle,
    doors: Option<Doors>,
    pump: JoinHandle<()>,
    /// Visitors have this long.
    patience: Duration,
    /// Copies of everything it listened on.
    sockets: Option<Sockets>,
    /// Ends with the last http visitor.
    requests: Option<JoinHandle<()>>,
}

type Sockets = (Vec<Waiting>, Vec<AtPath>);

impl Retired {
    async fn introduce(
        &mut self,
        stream: std::os::unix::net::UnixStream,
        estate: Estate,
        sockets: Sockets,
    ) -> std::io::Result<Arc<Successor>> {
        let successor = Arc::new(Successor::new(stream)?);
        let sockets = Arc::new(sockets);
        let (to, what) = (successor.clone(), sockets.clone());
        let ready = tokio::task::spawn_blocking(move || {
            to.give(estate, &what.0, &what.1)?;
            to.wait("ready")
        })
        .await
        .map_err(std::io::Error::other);
        self.sockets = Arc::into_inner(sockets);
        ready??;
        self.handle.call_over("another process takes over this bridge");
        let asked = successor.clone();
        tokio::task::spawn_blocking(move || asked.wait("settled")).await.map_err(std::io::Error::other)??;
        Ok(successor)
    }

    /// Accepts nobody any more, from when this ends.
    pub(super) async fn leave(&mut self) {
        listeners::closed(&self.handle.leave_listeners(true)).await;
        if let Some(mut doors) = self.doors.take() {
            doors.leave_paths();
            let until = Instant::now() + self.patience;
            self.requests = Some(tokio::spawn(async move { doors.drain(until).await }));
        }
        self.sockets = None;
        tracing::info!(visitors = self.handle.stats().streams_open, "handed over: what is left are these visitors");
    }

    /// What it listened on, for another start.
    pub(super) fn sockets(&self) -> Result<Sockets, Failure> {
        let copy = |w: &Waiting| Ok(Waiting { address: w.address, is_udp: w.is_udp, fd: w.fd.try_clone()? });
        let copies = || -> std::io::Result<Sockets> {
            let Some((sockets, paths)) = &self.sockets else { return Ok(Sockets::default()) };
            let sockets = sockets.iter().map(copy).collect::<std::io::Result<_>>()?;
            Ok((sockets, paths.iter().map(AtPath::try_clone).collect::<std::io::Result<_>>()?))
        };
        copies().map_err(|e| Failure::Run(format!("the listening sockets cannot be kept: {e}")))
    }

    /// Ends with the last visitor, or when they have had long enough.
    pub(super) async fn drained(&mut self) {
        let until = Instant::now() + self.patience;
        // Whoever was accepted in the last moment is a stream within a turn.
        tokio::time::sleep(WATCH).await;
        if let Some(requests) = &mut self.requests {
            let _ = requests.await;
        }
        visitors_gone(&self.handle, until).await;
    }

    pub(super) async fn stop(self) {
        let engine = self.engine;
        let _ = tokio::task::spawn_blocking(move || engine.lock().unwrap_or_else(PoisonError::into_inner).stop()).await;
        self.pump.abort();
        tracing::info!("the old bridge has stopped");
    }
}
