//! Unix sockets: listeners of the bridge at a path, and backends of the agent at one.
//! Promises: a live socket is never deleted, whoever it belongs to; the file appears with its mode, never before; on a
//! machine that crashed, the file left behind is no obstacle.

use super::listening;
use super::proxy::dial::reason_of;
use super::threshold::Threshold;
use crate::inherit::AtPath;
use ringspan_engine::health::{Health, Verdict};
use ringspan_engine::kernel::{Socket, monotonic_now};
use ringspan_engine::outcome::Code;
use ringspan_engine::target::Policy;
use ringspan_tunnel::agent::AgentHandle;
use ringspan_tunnel::bridge::{BridgeHandle, Entry, Gate};
use ringspan_tunnel::frame::Reason;
use ringspan_tunnel::health_feed::BackendHealth;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener as TokioListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

/// A backend whose queue is full is tried again this soon: connect(2) on a Unix socket does not wait in the kernel.
const RETRY: Duration = Duration::from_millis(10);
/// A little less than the data path waits for an answer.
const DIAL_MAX: Duration = Duration::from_millis(4500);

/// A listener at a path that runs until it is dropped; then the file goes, if it is still ours.
#[derive(Debug)]
pub(crate) struct UnixListener {
    task: JoinHandle<()>,
    path: PathBuf,
    /// Device and inode of our socket file.
    identity: (u64, u64),
    /// Held as long as we live: whoever has it may replace what is at the path.
    lock: File,
    /// A copy of what waits for visitors.
    listener: OwnedFd,
    /// Somebody else listens there now.
    is_left: bool,
}

impl UnixListener {
    /// Binds and starts. Needs a runtime.
    pub(crate) fn start(
        path: &Path,
        mode: u32,
        gate: Arc<Gate>,
        handle: BridgeHandle,
        threshold: Arc<Threshold>,
    ) -> io::Result<UnixListener> {
        let (listener, lock) = match crate::inherit::path(path) {
            Some(AtPath { listener, lock, .. }) => {
                fs::set_permissions(path, Permissions::from_mode(mode))?;
                (listener.into(), lock.into())
            }
            None => bind(path, mode)?,
        };
        let copy = listener.try_clone()?.into();
        let meta = fs::symlink_metadata(path)?;
        let listener = TokioListener::from_std(listener)?;
        let task = tokio::spawn(accept(listener, gate, handle, threshold));
        Ok(UnixListener {
            task,
            path: path.to_owned(),
            identity: (meta.dev(), meta.ino()),
            lock,
            listener: copy,
            is_left: false,
        })
    }

    /// For somebody else to listen there, as well.
    pub(crate) fn copy(&self) -> io::Result<AtPath> {
        let (path, lock) = (self.path.clone(), self.lock.try_clone()?.into());
        Ok(AtPath { path, listener: self.listener.try_clone()?, lock })
    }

    /// Accepts nobody any more and leaves what is at the path to whoever has a copy.
    pub(crate) fn leave(mut self) {
        self.is_left = true;
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        self.task.abort();
        let is_ours = !self.is_left
            && fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `name` with something before and behind it, in the same folder.
fn beside(path: &Path, behind: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{behind}"))
}

/// A socket at the path, with this mode from its first moment on, and the lock that makes it ours.
fn bind(path: &Path, mode: u32) -> io::Result<(StdListener, File)> {
    let taken = |text: &str| io::Error::new(ErrorKind::AddrInUse, text.to_owned());
    let lock = File::create(beside(path, "lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(taken("another ringspan listens there")),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => return Err(taken("something that is no socket is there")),
        Ok(meta) if meta.uid() != lock.metadata()?.uid() => return Err(taken("another user's socket is there")),
        Ok(_) => match StdStream::connect(path) {
            // Nobody has it open: it was left behind.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(_) => return Err(taken("another program listens there")),
            Err(error) => return Err(error),
        },
    }
    // Made under another name, so that it has its mode before anybody can find it; the renaming replaces what was left.
    let fresh = beside(path, "new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdListener::bind(&fresh)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
    fs::rename(&fresh, path)?;
    Ok((listener, lock))
}

async fn accept(listener: TokioListener, gate: Arc<Gate>, handle: BridgeHandle, threshold: Arc<Threshold>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream.into_std(),
            Err(error) => {
                listening::pause(&gate.name, &error).await;
                continue;
            }
        };
        let (Ok(stream), Ok(pass)) = (stream, threshold.enter(None)) else { continue };
        let entry = Entry { pass, ..Entry::new(Socket::from_owned(stream.into()), gate.clone()) };
        if handle.admit(entry).is_err() {
            tracing::warn!(listener = gate.name, "a visitor was refused: the workers have too much mail");
        }
    }
}

/// A connection to a backend.
///
/// # Errors
/// Why there is none.
pub(crate) async fn dial(path: &Path) -> Result<Socket, Reason> {
    connect(path, DIAL_MAX).await.map(|stream| Socket::from_owned(stream.into())).map_err(|error| reason_of(&error))
}

async fn connect(path: &Path, patience: Duration) -> io::Result<StdStream> {
    let deadline = Instant::now() + patience;
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return stream.into_std(),
            // Its queue is full.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() + RETRY > deadline {
                    return Err(ErrorKind::TimedOut.into());
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Checks a backend for ever, by connecting and closing, and tells the bridge when the mind has changed.
pub(crate) async fn check(path: PathBuf, policy: Policy, backend: u16, handle: AgentHandle) {
    let mut verdict = Verdict::new(Health::Unknown);
    let mut ticks = tokio::time::interval(policy.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let started = Instant::now();
        let code = match connect(&path, policy.timeout).await {
            Ok(_) => Code::L4Ok,
            Err(error) if error.kind() == ErrorKind::TimedOut => Code::L4Timeout,
            // No file, nobody behind it, or no right to use it: it cannot be reached from here.
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "backend's socket");
                Code::L4Refused
            }
        };
        if let Some(health) = verdict.on_outcome(code, policy.thresholds) {
            let rtt_us = (code == Code::L4Ok).then(|| started.elapsed().as_micros() as u32);
            handle.set_health(backend, BackendHealth { health, code: Some(code), since: monotonic_now(), rtt_us });
            let (path, why) = (path.display(), code.sentence());
            match health {
                Health::Up => tracing::info!(%path, "backend up {code}", code = code.as_str()),
                _ => tracing::warn!(%path, why, "backend down {code}", code = code.as_str()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    /// A file left behind is replaced; a live socket, a second of ours, another kind of file are not touched.
    #[test]
    fn only_the_dead_are_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("web.sock");
        let error = |path: &Path| bind(path, 0o660).expect_err("it is taken").to_string();
        let (first, lock) = bind(&path, 0o660).expect("it is free");
        assert_eq!(mode(&path), 0o660);
        assert_eq!(error(&path), "another ringspan listens there");
        drop(lock);
        assert_eq!(error(&path), "another program listens there");
        StdStream::connect(&path).expect("the first is still there");
        drop(first);
        assert!(path.exists(), "it is left behind");
        let (_second, _lock) = bind(&path, 0o600).expect("nobody has it");
        assert_eq!(mode(&path), 0o600);
        StdStream::connect(&path).expect("the second listens");
        let other = folder.path().join("file");
        fs::write(&other, "precious").expect("written");
        assert_eq!(error(&other), "something that is no socket is there");
        assert_eq!(fs::read_to_string(&other).expect("it is there"), "precious");
    }
}
