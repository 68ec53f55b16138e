//! Small system calls that others need and std does not have: the clock, CPU time, pinning a thread.

use super::socket::check;
use crate::time::Instant;
use std::io;
use std::mem;
use std::time::Duration;

/// CLOCK_MONOTONIC, read now. A few tens of nanoseconds (vDSO).
pub fn monotonic_now() -> Instant {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one timespec into `t`. This clock always exists, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    Instant::from_ns(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Whose CPU time is asked for (getrusage(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuOf {
    /// All threads of this process, the kernel's work for them included.
    Process,
    /// The children that have been waited for.
    Children,
    /// The calling thread.
    Thread,
}

/// CPU time used so far, user and system together.
pub fn cpu_time(of: CpuOf) -> Duration {
    let who = match of {
        CpuOf::Process => libc::RUSAGE_SELF,
        CpuOf::Children => libc::RUSAGE_CHILDREN,
        CpuOf::Thread => libc::RUSAGE_THREAD,
    };
    // SAFETY: rusage is plain integers; all zeroes is a value of it.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: getrusage writes one rusage into `usage`; with these constants it cannot fail.
    unsafe { libc::getrusage(who, &raw mut usage) };
    let of = |t: libc::timeval| Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64);
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// The cores this thread may run on, in order (sched_getaffinity(2)): containers and taskset make them fewer than the
/// machine has. Empty if the kernel would not say.
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: cpu_set_t is a bit set of plain integers; all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the length describes `set`, which outlives the call; 0 is the calling thread.
    let ok = unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &raw mut set) } == 0;
    let count = if ok { libc::CPU_SETSIZE as usize } else { 0 };
    // SAFETY: CPU_ISSET reads a bit below CPU_SETSIZE of `set`.
    (0..count).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// Keeps the calling thread on one core.
///
/// # Errors
/// EINVAL if the core does not exist or is not allowed (sched_setaffinity(2)).
pub fn pin_thread(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: as in `allowed_cores`; `core` is below CPU_SETSIZE.
    let set = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(core, &mut set);
        set
    };
    // SAFETY: the length describes `set`, which outlives the call; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set) })?;
    Ok(())
}

/// Lets the calling thread wake without pushing aside who runs on its core (SCHED_BATCH, sched(7)): under load it finds more
/// work at each wake-up and wakes less often, and it may wait for the end of another thread's tick (1 to 4 ms) when its
/// core is taken. Its share of the core and its place when nobody else wants it are what they were.
///
/// # Errors
/// EPERM where a sandbox forbids it.
pub fn batch_thread() -> io::Result<()> {
    // SAFETY: sched_param is a plain C struct; SCHED_BATCH takes priority 0.
    let param: libc::sched_param = unsafe { mem::zeroed() };
    // SAFETY: `param` outlives the call; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const param) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock moves forward and a busy thread's CPU time with it.
    #[test]
    fn clocks_move() {
        let (start, cpu) = (monotonic_now(), cpu_time(CpuOf::Thread));
        while cpu_time(CpuOf::Thread) == cpu {}
        assert!(monotonic_now() > start);
        assert!(cpu_time(CpuOf::Process) >= cpu_time(CpuOf::Thread) || cpu_time(CpuOf::Process) > Duration::ZERO);
    }

    /// A thread pinned to a core is allowed that core alone.
    #[test]
    fn a_pinned_thread_has_one_core() {
        let core = *allowed_cores().last().expect("a running thread has a core");
        let after = std::thread::spawn(move || pin_thread(core).map(|()| allowed_cores())).join();
        assert_eq!(after.expect("no panic").expect("the core was allowed"), [core]);
        assert!(pin_thread(usize::MAX).is_err());
    }
}
