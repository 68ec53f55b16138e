//! What a process holds: memory, and descriptors by kind.
//! Promise: a descriptor is counted once. Pipes and the link's connections are apart because both are pools, which are as
//! large as their last minute made them; what is left must stay as it is.

use crate::process::Process;
use std::collections::HashSet;
use std::fs;

/// At one moment. Zeros if the process is gone.
#[derive(Clone, Copy, Default)]
pub(super) struct Holdings {
    /// Ends of pipes.
    pub(super) pipes: f64,
    /// Connections between agents and bridge: carriers, and direct ones, those that wait among them.
    pub(super) link: f64,
    /// All other descriptors.
    pub(super) others: f64,
    /// Resident memory.
    pub(super) mib: f64,
}

impl Holdings {
    /// Of a process whose link's connections have one of these ports at either end.
    pub(super) fn of(process: &Process, ports: &[u16]) -> Holdings {
        let mut it = Holdings { mib: process.rss_bytes() as f64 / f64::from(1 << 20), ..Holdings::default() };
        let connections = connections(&table(process), ports);
        let Ok(folder) = fs::read_dir(format!("/proc/{}/fd", process.pid())) else { return it };
        for to in folder.flatten().map(|entry| fs::read_link(entry.path()).unwrap_or_default()) {
            let to = to.to_string_lossy();
            let inode = to.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            if to.starts_with("pipe:") {
                it.pipes += 1.0;
            } else if inode.is_some_and(|inode: u64| connections.contains(&inode)) {
                it.link += 1.0;
            } else {
                it.others += 1.0;
            }
        }
        it
    }
}

/// The TCP sockets of its network namespace.
fn table(process: &Process) -> String {
    fs::read_to_string(format!("/proc/{}/net/tcp", process.pid())).unwrap_or_default()
}

/// The inodes of connections with one of the ports at either end: proc_pid_net(5), /proc/net/tcp.
fn connections(table: &str, ports: &[u16]) -> HashSet<u64> {
    const LISTEN: &str = "0A";
    let port = |address: &str| u16::from_str_radix(address.split(':').nth(1)?, 16).ok();
    let of = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[_, local, remote, state, ..] = fields.as_slice() else { return None };
        let ours = [local, remote].into_iter().filter_map(port).any(|p| ports.contains(&p));
        (ours && state != LISTEN).then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().skip(1).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a table as the kernel prints it: connections at either end, no listener, nobody else's.
    #[test]
    fn a_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:4CF5 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0 0 10 0\n   \
            1: 0100007F:4CF5 0100007F:B001 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0 20 4 30 10 -1\n   \
            2: 0100007F:B001 0100007F:4CF5 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0 20 4 30 10 -1\n   \
            3: 0100007F:B002 0100007F:4CF6 01 00000000:00000000 00:00000000 00000000     0        0 14 1 0 20 4 30 10 -1\n";
        assert_eq!(connections(table, &[0x4CF5]), HashSet::from([12, 13]));
        assert_eq!(connections(table, &[]), HashSet::new());
    }
}
