//! What this machine offers and limits, for `doctor` and for choosing sizes. Reads; changes nothing but, when asked,
//! the soft limit on open files.

use super::socket::check;
use crate::io::{Family, LaneKind, Way};
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

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

/// Makes room for as many descriptors as the soft limit allows, 65,536 at most (half a MiB): a table that grows under
/// running threads makes each of them wait for the others (kernel fs/file.c, expand_fdtable calls synchronize_rcu).
pub(crate) fn reserve_descriptors(any: super::Fd) {
    let Some(limit) = nofile() else { return };
    let last = limit.soft.min(65_536) as libc::c_int - 1;
    // SAFETY: fcntl(2) with this command takes and gives integers. If there is no such number nothing is reserved.
    let fd = unsafe { libc::fcntl(any.0, libc::F_DUPFD_CLOEXEC, last) };
    if fd >= 0 {
        // SAFETY: the call above has just given us this descriptor, and nobody else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

/// What this kernel's io_uring is made of, as far as we use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uring {
    /// Features of io_uring_setup(2) that the ring makes use of, without their prefix IORING_FEAT_.
    pub features: Vec<&'static str>,
    /// Opcodes of io_uring_enter(2) that the ring makes use of and that are there, without IORING_OP_.
    pub opcodes: Vec<&'static str>,
    /// Those that are not: with any of them missing there is no ring.
    pub opcodes_missing: Vec<&'static str>,
    /// How many opcodes the kernel has in all: 34 in 5.10, 49 in 6.1.
    pub opcodes_count: u32,
}

/// Opens a small ring and looks.
///
/// # Errors
/// A sentence with the errno and the remedy.
pub fn io_uring() -> Result<Uring, String> {
    super::ring::setup::look()
}

/// Whether this process may send pings of this family: a ping socket is opened and closed again (icmp(7)).
///
/// # Errors
/// EACCES: no group of this process is in `net.ipv4.ping_group_range`, which counts for both families; being root does
/// not help. Try: sysctl net.ipv4.ping_group_range="0 2147483647". EAFNOSUPPORT: the machine has none of this family.
pub fn try_ping(family: Family) -> io::Result<()> {
    super::lane::try_open(LaneKind { way: Way::Ping, family, source: None })
}

/// `kernel.io_uring_disabled` (6.6): 0 everybody may, 1 a group and root, 2 nobody. None where there is no such switch.
pub fn io_uring_disabled() -> Option<u64> {
    number("/proc/sys/kernel/io_uring_disabled")
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits are there and ordered.
    #[test]
    fn facts_are_plausible() {
        for limit in [nofile(), memlock()] {
            let limit = limit.expect("the kernel says");
            assert!(limit.soft <= limit.hard && limit.hard > 0, "{limit:?}");
        }
        for family in [Family::V4, Family::V6] {
            if let Err(error) = try_ping(family) {
                assert!(matches!(error.raw_os_error(), Some(libc::EACCES | libc::EAFNOSUPPORT)), "{error}");
            }
        }
        match io_uring() {
            Ok(uring) => {
                assert!(uring.opcodes.contains(&"SEND") && uring.features.contains(&"NODROP"), "{uring:?}");
                assert!(uring.opcodes_missing.is_empty() && uring.opcodes_count >= 34, "{uring:?}");
            }
            Err(why) => assert!(why.contains("io_uring_setup"), "{why}"),
        }
    }
}
