//! What the kernel counts in this network namespace: a second opinion on what a contender says of itself.

use std::fs;

/// Connections that this network namespace has opened (RFC 1213 tcpActiveOpens, /proc/net/snmp): one for each SYN
/// that is not a retransmission, whatever becomes of it.
pub(super) fn active_opens() -> u64 {
    let text = fs::read_to_string("/proc/self/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Tcp: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(name, _)| *name == "ActiveOpens").and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

pub(super) fn time_wait() -> u64 {
    let text = fs::read_to_string("/proc/self/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("TCP: ")).unwrap_or_default();
    let mut words = line.split(' ').skip_while(|w| *w != "tw");
    words.nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}
