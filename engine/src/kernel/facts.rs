//! What this machine offers and limits, for `doctor` and for choosing sizes. Reads; changes nothing but, when asked,
//! the soft limit on open files.

use super::socket::check;
use std::fs;
use std::io;

/// A resource limit (getrlimit(2)); `u64::MAX` is "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// How far the process may raise it by itself.
    pub hard: u64,
}

/// Open files: sockets, pipes, all of them (RLIMIT_NOFILE).
pub fn nofile() -> Option<Limit> {
    limit(libc::RLIMIT_NOFILE)
}

/// Locked memory in bytes (RLIMIT_MEMLOCK): rings count against it before 5.12.
pub fn memlock() -> Option<Limit> {
    limit(libc::RLIMIT_MEMLOCK)
}

fn limit(resource: libc::__rlimit_resource_t) -> Option<Limit> {
    let mut raw = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit into `raw`.
    check(unsafe { libc::getrlimit(resource, &raw mut raw) }).ok()?;
    Some(Limit { soft: raw.rlim_cur, hard: raw.rlim_max })
}

/// Raises the soft limit on open files to the hard one; the limit after it.
///
/// # Errors
/// EPERM where a sandbox forbids even that.
pub fn raise_nofile() -> io::Result<Limit> {
    let Limit { hard, .. } = nofile().ok_or_else(io::Error::last_os_error)?;
    let raw = libc::rlimit { rlim_cur: hard, rlim_max: hard };
    // SAFETY: setrlimit reads one rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raw) })?;
    Ok(Limit { soft: hard, hard })
}

/// `kernel.io_uring_disabled` (6.6): 0 everybody may, 1 a group and root, 2 nobody. None where there is no such switch.
pub fn io_uring_disabled() -> Option<u64> {
    number("/proc/sys/kernel/io_uring_disabled")
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
