//! What every long-running subcommand asks of the machine: descriptors, a runtime, signals.

use crate::Failure;
use ringspan_engine::kernel::{facts, ktls};
use ringspan_tunnel::bridge::{Mover, PlaneOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Threads of the control plane: HTTP, store and admin leave the cores to the workers.
const CONTROL_THREADS: usize = 2;
/// Open files below which it is worth a warning.
const NOFILE_WARN: u64 = 4096;

/// Raises the limit on open files as far as we may.
pub(crate) fn prepare() {
    match facts::raise_nofile() {
        Ok(limit) if limit.soft < NOFILE_WARN => {
            tracing::warn!(nofile = limit.soft, "few open files are allowed. Try: ringspan doctor");
        }
        Ok(limit) => tracing::debug!(nofile = limit.soft, "open files"),
        Err(error) => tracing::warn!(%error, "the limit on open files cannot be raised. Try: ringspan doctor"),
    }
}

/// Says who encrypts the link, and why it is not the kernel.
pub(crate) fn tell_ktls(allowed: bool) {
    match ktls::look() {
        _ if !allowed => tracing::info!(ktls = "off", "the link is encrypted in user space: the configuration says so"),
        Ok(kernel) => tracing::info!(ktls = %kernel, "the kernel encrypts the link"),
        Err(why) => tracing::info!(ktls = "none", why, "the link is encrypted in user space"),
    }
}

/// How bytes are moved: the defaults, or what RINGSPAN_MOVER (adaptive, copy, splice, ring-splice),
/// RINGSPAN_PIPE_BYTES,
/// RINGSPAN_SPLICE_BYTES and RINGSPAN_MOVE_BYTES say, and whether bulk rests (RINGSPAN_BULK_RESTS=0: it does not), for
/// measurements. What cannot be read is said and ignored.
pub(crate) fn plane_options() -> PlaneOptions {
    let mut options = PlaneOptions::default();
    let said = |name: &str| std::env::var(name).ok();
    let number = |name: &str, default: u64| {
        said(name).map_or(default, |text| {
            text.parse().unwrap_or_else(|_| {
                tracing::warn!(name, text, "not a number: ignored");
                default
            })
        })
    };
    options.mover = match said("RINGSPAN_MOVER").as_deref() {
        None | Some("adaptive") => Mover::Adaptive,
        Some("copy") => Mover::Copy,
        Some("splice") => Mover::Splice,
        Some("ring-splice") => Mover::RingSplice,
        Some(text) => {
            tracing::warn!(text, "RINGSPAN_MOVER is adaptive, copy, splice or ring-splice: ignored");
            Mover::Adaptive
        }
    };
    options.pipe_bytes = number("RINGSPAN_PIPE_BYTES", options.pipe_bytes as u64) as usize;
    options.splice_bytes = number("RINGSPAN_SPLICE_BYTES", options.splice_bytes as u64) as usize;
    options.move_bytes = number("RINGSPAN_MOVE_BYTES", options.move_bytes);
    options.bulk_rests = number("RINGSPAN_BULK_RESTS", 1) != 0;
    options
}

/// The control plane's runtime.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|e| Failure::Run(format!("no threads for the control plane: {e}. Try: ringspan doctor")))
}

/// Tells a supervisor that asked for it (NOTIFY_SOCKET, sd_notify(3)) that we are up, and that this process is the one to
/// watch: after a takeover it is another one than it started.
pub(crate) fn notify_supervisor() {
    tell_supervisor(&format!("READY=1\nMAINPID={}\n", std::process::id()));
}

/// The same: we end, and whoever waits for us knows it.
pub(crate) fn notify_stopping() {
    tell_supervisor("STOPPING=1\n");
}

fn tell_supervisor(words: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let send = |to| UnixDatagram::unbound()?.send_to_addr(words.as_bytes(), &to);
    if let Err(error) = address.and_then(send) {
        tracing::warn!(%error, path, "the supervisor was not told");
    }
}

/// SIGINT and SIGTERM, caught from the moment this exists: make it before anything that takes time or has to be undone.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Needs a runtime.
    pub(crate) fn catch() -> Signals {
        let stream = |kind| signal(kind).expect("a runtime with signals can listen for them");
        Signals { interrupt: stream(SignalKind::interrupt()), terminate: stream(SignalKind::terminate()) }
    }

    /// Ends with the first one.
    pub(crate) async fn caught(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Ends with the next one, or after this long.
    pub(crate) async fn patience(&mut self, patience: std::time::Duration) {
        let _ = tokio::time::timeout(patience, self.caught()).await;
    }
}
