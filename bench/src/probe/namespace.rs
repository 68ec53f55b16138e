//! A network namespace of its own for a run, so that the kernel's counters count the contender and nobody else.

use crate::process;

/// Set in the environment of the run inside the namespace.
const MARK: &str = "RINGSPAN_BENCH_NETNS";

pub(super) fn in_own_namespace() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts this program again in a network namespace of its own, if this user may make one; else returns.
pub(crate) fn enter_own_namespace() {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    if in_own_namespace() {
        return;
    }
    let inside = "ip link set lo up && exec \"$0\" \"$@\"";
    for how in [&["--net"][..], &["--net", "--map-root-user"]] {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(how).env(MARK, "1");
            command
        };
        if unshare().args(["ip", "link", "set", "lo", "up"]).output().is_ok_and(|o| o.status.success()) {
            let error = unshare()
                .args(["sh", "-c", inside])
                .arg(process::own_program())
                .args(std::env::args_os().skip(1))
                .exec();
            eprintln!("unshare: {error}");
            return;
        }
    }
}
