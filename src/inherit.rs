//! Sockets that wait for visitors and that this process did not bind itself: a supervisor's, or those of the bridge that
//! ran before. Whoever listens on an address asks here first.
//! Promise: each socket is given out once.

use ringspan_engine::kernel::handover::Waiting;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One for the process, as its descriptors are.
static POOL: Mutex<Vec<Waiting>> = Mutex::new(Vec::new());

/// Keeps these until somebody asks.
pub(crate) fn put(sockets: Vec<Waiting>) {
    POOL.lock().unwrap_or_else(PoisonError::into_inner).extend(sockets);
}

/// A listener of this address.
pub(crate) fn tcp(address: SocketAddr) -> Option<OwnedFd> {
    take(address, false)
}

/// A socket for datagrams to this address.
pub(crate) fn udp(address: SocketAddr) -> Option<OwnedFd> {
    take(address, true)
}

/// Whether one of this address is here.
pub(crate) fn has(address: SocketAddr) -> bool {
    POOL.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|w| w.address == address)
}

fn take(address: SocketAddr, is_udp: bool) -> Option<OwnedFd> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let at = pool.iter().position(|w| w.address == address && w.is_udp == is_udp)?;
    // Those that are left keep their order: the sockets of a group have places (Socket::steer).
    Some(pool.remove(at).fd)
}

/// What nobody has asked for; at paths it is closed.
pub(crate) fn rest() -> Vec<Waiting> {
    PATHS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    std::mem::take(&mut *POOL.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A socket that waits for visitors at a path.
#[derive(Debug)]
pub(crate) struct AtPath {
    /// Where.
    pub(crate) path: PathBuf,
    /// It.
    pub(crate) listener: OwnedFd,
    /// The locked file beside it: whoever has it may replace what is at the path.
    pub(crate) lock: OwnedFd,
}

impl AtPath {
    /// The same ones, once more.
    pub(crate) fn try_clone(&self) -> io::Result<AtPath> {
        let AtPath { path, listener, lock } = self;
        Ok(AtPath { path: path.clone(), listener: listener.try_clone()?, lock: lock.try_clone()? })
    }
}

static PATHS: Mutex<Vec<AtPath>> = Mutex::new(Vec::new());

/// Keeps these until somebody asks.
pub(crate) fn put_paths(paths: Vec<AtPath>) {
    PATHS.lock().unwrap_or_else(PoisonError::into_inner).extend(paths);
}

/// The listener at this path.
pub(crate) fn path(path: &Path) -> Option<AtPath> {
    let mut pool = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    let at = pool.iter().position(|at| at.path == path)?;
    Some(pool.swap_remove(at))
}
