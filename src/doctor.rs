//! `ringspan doctor`: what this kernel and its limits allow, what each costs, and what to do about it.
//!
//! Facts in, findings out: [`judge`] is pure, so that a machine we have never met is a row in a table. Exit code 1 only
//! for what will fail; what merely costs is said and forgiven.

mod plan;

use crate::cli::{self, ListFormat};
use crate::{Ending, Failure};
use plan::Plan;
use ringspan_engine::cores::Cores;
use ringspan_engine::io::Family;
use ringspan_engine::kernel::facts::{self, Limit};
use ringspan_engine::kernel::{self, Backend, Capabilities, Tier, Waker, ktls};
use serde::Serialize;
use std::fs;

/// Open files below which an ordinary bridge fails soon: 4096 probes in flight and some ten thousand visitors do not fit
/// into fewer.
const NOFILE_GOOD: u64 = 65_536;
/// Open files below which nothing worth running fits.
const NOFILE_MIN: u64 = 1024;
/// Local ports below which probes of one address hinder each other.
const PORTS_GOOD: u64 = 10_000;
/// Locked memory a ring of ours needs before 5.12, where rings count against the limit (io_uring_setup(2)): 1 MiB each.
const MEMLOCK_GOOD: u64 = 16 << 20;
/// Connections waiting for accept(2), net.core.somaxconn: a burst of visitors in one turn of a worker.
const BACKLOG_GOOD: u64 = 1024;
/// What a page of a pipe holds, everywhere that io_uring runs fast.
const PAGE_BYTES: u64 = 4096;
/// Bits of capabilities (capabilities(7)).
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_RESOURCE: u64 = 1 << 24;
/// Pipes of one worker at most (tunnel/src/plane/pipes.rs, PIPES_MAX): they are lent for one splice at a time.
const PIPES_PER_WORKER: u64 = 64;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    /// As it should be.
    Good,
    /// It works and costs.
    Costs,
    /// It will fail.
    Bad,
}

/// One fact and what it means.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    mark: Mark,
    what: &'static str,
    value: String,
    means: String,
    /// Empty if there is nothing to do.
    remedy: String,
}

/// What a machine says of itself. `None`: it does not say.
#[derive(Clone, Debug)]
struct Facts {
    kernel: String,
    io: Result<Capabilities, String>,
    io_uring_disabled: Option<u64>,
    nofile: Option<Limit>,
    memlock: Option<Limit>,
    root: bool,
    /// fs.pipe-user-pages-soft; 0: no limit.
    pipe_pages_soft: Option<u64>,
    /// CAP_SYS_RESOURCE or CAP_SYS_ADMIN, which that limit is not for (pipe(7)).
    pipes_unlimited: bool,
    /// What a pipe asks for.
    pipe_bytes: u64,
    ports: Option<(u64, u64)>,
    /// net.ipv4.tcp_tw_reuse.
    tw_reuse: Option<u64>,
    /// Whether an ICMP echo may be sent without privileges.
    ping: Result<(), String>,
    somaxconn: Option<u64>,
    conntrack: Option<(u64, u64)>,
    /// What the kernel's TLS does, and whether it splices both ways; or why there is none.
    ktls: Result<(String, bool), String>,
    clock: Option<String>,
    cores: Cores,
    /// What a configuration makes of it.
    plan: Option<Plan>,
}

/// Runs the subcommand.
pub(crate) fn run(args: &cli::Doctor) -> Result<Ending, Failure> {
    let plan = args.config.as_deref().map(Plan::read).transpose()?;
    let findings = judge(&look(plan));
    crate::say(&match args.format {
        ListFormat::Text => page(&findings),
        ListFormat::Json => serde_json::to_string_pretty(&findings).expect("findings are JSON") + "\n",
    });
    Ok(if findings.iter().any(|f| f.mark == Mark::Bad) { Ending::Down } else { Ending::Good })
}

fn look(plan: Option<Plan>) -> Facts {
    let text = |path: &str| fs::read_to_string(path).ok().map(|t| t.trim().to_owned());
    let number = |path: &str| text(path).and_then(|t| t.parse::<u64>().ok());
    let backend = plan.as_ref().map_or(Backend::Auto, |plan| plan.engine.backend.into());
    let io = Waker::new()
        .map_err(|e| format!("eventfd: {e}"))
        .and_then(|waker| kernel::open(backend, &waker).map(|(_, c)| c).map_err(|e| e.to_string()));
    let ports = text("/proc/sys/net/ipv4/ip_local_port_range").and_then(|t| {
        let mut ends = t.split_whitespace().map_while(|n| n.parse().ok());
        Some((ends.next()?, ends.next()?))
    });
    let conntrack = number("/proc/sys/net/netfilter/nf_conntrack_count");
    // Effective user id: the second number of the line (proc_pid_status(5)).
    let status = text("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")).and_then(|l| l.split_whitespace().nth(1));
    // Of the machine, not of a user namespace: there root's capabilities are worth nothing here (pipe_is_unprivileged_user).
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).unwrap_or(0);
    let all_users = text("/proc/self/uid_map").is_some_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    Facts {
        kernel: text("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
        io,
        io_uring_disabled: facts::io_uring_disabled(),
        nofile: facts::nofile(),
        memlock: facts::memlock(),
        root: uid == Some("0"),
        pipe_pages_soft: number("/proc/sys/fs/pipe-user-pages-soft"),
        pipes_unlimited: all_users && effective & (CAP_SYS_ADMIN | CAP_SYS_RESOURCE) != 0,
        // As the plane brings it into range.
        pipe_bytes: (crate::machine::plane_options().pipe_bytes as u64).clamp(64 << 10, 1 << 20),
        ports,
        tw_reuse: number("/proc/sys/net/ipv4/tcp_tw_reuse"),
        ping: facts::try_ping(Family::V4).map_err(|e| e.to_string()),
        somaxconn: number("/proc/sys/net/core/somaxconn"),
        conntrack: conntrack.zip(number("/proc/sys/net/netfilter/nf_conntrack_max")),
        ktls: ktls::look().as_ref().map_err(Clone::clone).map(|k| (k.to_string(), k.splice_in && k.splice_out)),
        clock: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        cores: Cores::allowed(),
        plan,
    }
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all =
        vec![finding(Mark::Good, "kernel", &facts.kernel, "what follows was tried, not read off this number", "")];
    match &facts.plan {
        None => all.push(finding(
            Mark::Good,
            "cores",
            &facts.cores,
            "one worker thread each; [engine] affinity keeps them in place",
            "",
        )),
        Some(plan) => {
            let means = format!("what follows is what this {} would have here, with this environment", plan.program);
            all.push(finding(Mark::Good, "configuration", &plan.file, means, ""));
            all.push(finding(Mark::Good, "cores", &facts.cores, "what this process may use", ""));
            all.push(plan.judge_workers());
        }
    }
    all.push(judge_io(facts));
    all.extend(facts.plan.iter().flat_map(|plan| plan.judge_links(facts)));
    all.extend(facts.nofile.map(judge_nofile));
    all.extend(judge_memlock(facts));
    all.extend(judge_pipes(facts));
    all.extend(facts.ports.map(|(low, high)| {
        let count = (high + 1).saturating_sub(low);
        let (mark, remedy) = match count {
            PORTS_GOOD.. => (Mark::Good, ""),
            _ => (Mark::Costs, "sysctl -w net.ipv4.ip_local_port_range='10000 65535'"),
        };
        let means = "ports: as many connections to one address and port at a time, probes and backends alike";
        finding(mark, "local ports", format!("{low}-{high}, {count}"), means, remedy)
    }));
    all.extend(facts.tw_reuse.map(|n| {
        let means = match n {
            1 => "graceful probes and other ends by FIN use ports again after a second",
            2 => "on loopback ports are used again after a second, elsewhere after 60 s: 470 graceful probes/s to one port",
            _ => "ports that end by FIN rest for 60 s: 470 graceful probes/s to one address and port; half-open and full leave none",
        };
        // Only graceful probes pay: a matter of taste, not of health.
        finding(Mark::Good, "tcp_tw_reuse", n, means, if n == 0 { "sysctl -w net.ipv4.tcp_tw_reuse=1" } else { "" })
    }));
    all.push(match &facts.ping {
        Ok(()) => finding(Mark::Good, "ping sockets", "permitted", "icmp:// targets work without root", ""),
        Err(why) => finding(
            Mark::Costs,
            "ping sockets",
            "refused",
            format!("icmp:// targets come out as SOCKERR ({why}); all else works"),
            "sysctl -w net.ipv4.ping_group_range='0 2147483647'",
        ),
    });
    all.extend(facts.somaxconn.map(|n| {
        let (mark, remedy) =
            if n >= BACKLOG_GOOD { (Mark::Good, "") } else { (Mark::Costs, "sysctl -w net.core.somaxconn=4096") };
        finding(
            mark,
            "somaxconn",
            n,
            "visitors that may wait to be accepted; a burst beyond it retries after 1 s",
            remedy,
        )
    }));
    all.extend(facts.conntrack.map(|(count, max)| {
        let value = format!("{count} of {max}");
        let means = "every probe and visitor takes an entry; a full table drops packets, and targets look dead";
        match count * 10 >= max * 8 {
            true => finding(
                Mark::Bad,
                "conntrack",
                value,
                means,
                "sysctl -w net.netfilter.nf_conntrack_max=1048576, or notrack rules",
            ),
            false => finding(Mark::Good, "conntrack", value, means, ""),
        }
    }));
    all.push(match &facts.ktls {
        Ok((value, true)) => finding(Mark::Good, "kernel TLS", value, "encrypted links are spliced like others", ""),
        Ok((value, false)) => finding(
            Mark::Good,
            "kernel TLS",
            value,
            "encrypted links are spliced where it says so; the rest is copied, once",
            "a kernel of 6.1 or later",
        ),
        Err(why) => finding(
            Mark::Good,
            "kernel TLS",
            "none",
            format!(
                "encrypted links are encrypted by this process and copied ({why}). What the kernel's would save is not \
                 measured"
            ),
            "modprobe tls, where the kernel has it",
        ),
    });
    all.extend(facts.clock.as_deref().map(|clock| match clock {
        "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter" | "xen" => {
            finding(Mark::Good, "clock", clock, "read without a system call", "")
        }
        _ => finding(
            Mark::Costs,
            "clock",
            clock,
            "each look at the time is a system call of about 1 µs; RTTs are that much too long",
            "boot with clocksource=tsc, if the hardware's is stable",
        ),
    }));
    all
}

fn finding(mark: Mark, what: &'static str, value: impl ToString, means: impl Into<String>, remedy: &str) -> Finding {
    Finding { mark, what, value: value.to_string(), means: means.into(), remedy: remedy.into() }
}

fn judge_io(facts: &Facts) -> Finding {
    let disabled = match facts.io_uring_disabled {
        // What refused has said what to do.
        _ if facts.io.as_ref().is_ok_and(|c| c.why.contains("Try:")) => "",
        Some(1 | 2) => "sysctl -w kernel.io_uring_disabled=0",
        _ => "a newer kernel; in a container, a seccomp profile that allows io_uring",
    };
    let asked = facts.plan.as_ref().map_or(cli::Backend::Auto, |plan| plan.engine.backend);
    match &facts.io {
        Err(why) if asked == cli::Backend::IoUring => {
            finding(Mark::Bad, "io", "none", why.clone(), "[engine] backend = \"auto\"")
        }
        Ok(c) if asked == cli::Backend::Epoll => {
            let means = "probes by epoll: up to a third more CPU each; [engine] backend says so";
            finding(Mark::Costs, "io", c, means, "[engine] backend = \"auto\"")
        }
        Err(why) => finding(Mark::Bad, "io", "none", why.clone(), "raise the limit on open files"),
        Ok(c) => match c.tier {
            Tier::Epoll => {
                finding(Mark::Costs, "io", c, "probes by epoll: up to a third more CPU each; all else works", disabled)
            }
            Tier::Ring510 => finding(
                Mark::Costs,
                "io",
                c,
                "an early io_uring: connections are accepted and connected through helper threads",
                "a kernel of 5.15 or later",
            ),
            Tier::Ring515 | Tier::Ring519 | Tier::Ring61 => finding(Mark::Good, "io", c, "the fast way", ""),
        },
    }
}

fn judge_nofile(limit: Limit) -> Finding {
    let value = format!("{} (raised to {} at start)", shown(limit.soft), shown(limit.hard));
    let means = format!(
        "a probe in flight takes 1, a visitor 2 to 6: room for {} probes in flight, or about {} visitors",
        shown(limit.hard / 4 * 3),
        shown(limit.hard.saturating_sub(NOFILE_MIN) / 6)
    );
    match limit.hard {
        NOFILE_GOOD.. => finding(Mark::Good, "open files", value, means, ""),
        NOFILE_MIN.. => {
            finding(Mark::Costs, "open files", value, means, "LimitNOFILE=1048576 in the unit, or ulimit -Hn 1048576")
        }
        _ => finding(Mark::Bad, "open files", value, means, "LimitNOFILE=1048576 in the unit, or ulimit -Hn 1048576"),
    }
}

fn judge_memlock(facts: &Facts) -> Option<Finding> {
    let limit = facts.memlock?;
    // From 5.12 on rings are counted by the memory cgroup instead; a higher tier is proof enough that one opened.
    let early = |c: &Capabilities| c.tier == Tier::Ring510 || c.tier == Tier::Epoll && c.why.contains("ENOMEM");
    let matters = facts.io.as_ref().is_ok_and(early) && !facts.root;
    let value = if limit.soft == u64::MAX { "unlimited".into() } else { format!("{} KiB", limit.soft >> 10) };
    Some(match matters && limit.soft < MEMLOCK_GOOD {
        true => finding(
            Mark::Costs,
            "locked memory",
            value,
            "kernels before 5.12 count rings against it, about 1 MiB a worker; where that is too much, rings are made smaller",
            "LimitMEMLOCK=64M in the unit, or ulimit -l 65536",
        ),
        false => finding(Mark::Good, "locked memory", value, "enough for the rings, or not counted for them", ""),
    })
}

/// A pipe counts with its whole capacity from the moment it has it, full or not. One that is made past the limit has two
/// pages (pipe(7)): then its worker makes no more, and copies what finds none (tunnel/src/plane/pipes.rs).
fn judge_pipes(facts: &Facts) -> Option<Finding> {
    let (pages, kib) = (facts.pipe_pages_soft?, facts.pipe_bytes >> 10);
    if facts.pipes_unlimited || pages == 0 {
        let means = format!("streams are spliced through pipes of {kib} KiB, at most {PIPES_PER_WORKER} a worker");
        return Some(finding(Mark::Good, "pipe pages", "no limit for this user", means, ""));
    }
    let each = facts.pipe_bytes.div_ceil(PAGE_BYTES);
    let pipes = pages / each;
    let workers = match &facts.plan {
        Some(plan) => plan.engine.options().workers,
        None => facts.cores.as_slice().len(),
    };
    let wanted = workers as u64 * PIPES_PER_WORKER;
    let means = format!(
        "room for {pipes} pipes of {kib} KiB, of all processes of this user; {workers} workers make {wanted} at most. \
         Bulk that finds no pipe is copied"
    );
    let remedy = format!("sysctl -w fs.pipe-user-pages-soft={}", wanted * each);
    let (mark, remedy) = if pipes >= wanted { (Mark::Good, "") } else { (Mark::Costs, remedy.as_str()) };
    Some(finding(mark, "pipe pages", pages, means, remedy))
}

fn shown(n: u64) -> String {
    if n >= 1 << 62 { "unlimited".into() } else { n.to_string() }
}

fn page(findings: &[Finding]) -> String {
    let mut out = String::new();
    for f in findings {
        let mark = match f.mark {
            Mark::Good => "good ",
            Mark::Costs => "costs",
            Mark::Bad => "BAD  ",
        };
        out.push_str(&format!("{mark}  {:<14} {}\n                      {}\n", f.what, f.value, f.means));
        if !f.remedy.is_empty() {
            out.push_str(&format!("                      Try: {}\n", f.remedy));
        }
    }
    let count = |mark| findings.iter().filter(|f| f.mark == mark).count();
    out.push_str(&match (count(Mark::Bad), count(Mark::Costs)) {
        (0, 0) => "\nAll is as it should be.\n".to_owned(),
        (0, n) => format!("\nAll works; {n} of these cost more than they need to.\n"),
        (n, _) => format!("\n{n} of these will fail.\n"),
    });
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn machine() -> Facts {
        Facts {
            kernel: "6.1.0".into(),
            io: Ok(Capabilities { tier: Tier::Ring61, why: String::new() }),
            io_uring_disabled: Some(0),
            nofile: Some(Limit { soft: 1024, hard: 1 << 20 }),
            memlock: Some(Limit { soft: 8 << 20, hard: 8 << 20 }),
            root: false,
            pipe_pages_soft: Some(16_384),
            pipes_unlimited: false,
            pipe_bytes: 256 << 10,
            ports: Some((32_768, 60_999)),
            tw_reuse: Some(2),
            ping: Ok(()),
            somaxconn: Some(4096),
            conntrack: None,
            ktls: Ok(("AES-128-GCM; spliced both ways".into(), true)),
            clock: Some("tsc".into()),
            cores: "0-1".parse().unwrap(),
            plan: None,
        }
    }

    fn with(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Mark)> {
        let mut facts = machine();
        change(&mut facts);
        judge(&facts).into_iter().filter(|f| f.mark != Mark::Good).map(|f| (f.what, f.mark)).collect()
    }

    /// A good machine has nothing to complain of; each single trouble is named, with the right weight.
    #[test]
    fn each_trouble_is_named() {
        use Mark::{Bad, Costs};
        let tier = |tier| Ok(Capabilities { tier, why: "EPERM".into() });
        assert_eq!(with(|_| {}), []);
        assert_eq!(with(|f| f.io = tier(Tier::Epoll)), [("io", Costs)]);
        assert_eq!(with(|f| f.io = tier(Tier::Ring510)), [("io", Costs), ("locked memory", Costs)]);
        assert_eq!(with(|f| (f.io, f.root) = (tier(Tier::Ring510), true)), [("io", Costs)]);
        assert_eq!(with(|f| f.io = Err("EMFILE".into())), [("io", Bad)]);
        assert_eq!(with(|f| f.nofile = Some(Limit { soft: 256, hard: 512 })), [("open files", Bad)]);
        assert_eq!(with(|f| f.nofile = Some(Limit { soft: 1024, hard: 20_000 })), [("open files", Costs)]);
        assert_eq!(with(|f| f.pipe_pages_soft = Some(1024)), [("pipe pages", Costs)]);
        assert_eq!(with(|f| (f.pipe_pages_soft, f.pipes_unlimited) = (Some(1024), true)), []);
        assert_eq!(with(|f| f.pipe_pages_soft = Some(0)), []);
        // The kernel's default is enough for four workers and no more: 64 pipes of 64 pages each.
        assert_eq!(with(|f| f.cores = "0-3".parse().unwrap()), []);
        assert_eq!(with(|f| f.cores = "0-4".parse().unwrap()), [("pipe pages", Costs)]);
        assert_eq!(with(|f| (f.cores, f.pipe_bytes) = ("0-4".parse().unwrap(), 64 << 10)), []);
        assert_eq!(with(|f| f.ports = Some((60_000, 60_999))), [("local ports", Costs)]);
        assert_eq!(with(|f| f.ping = Err("EACCES".into())), [("ping sockets", Costs)]);
        assert_eq!(with(|f| f.tw_reuse = Some(0)), []);
        assert_eq!(with(|f| f.somaxconn = Some(128)), [("somaxconn", Costs)]);
        assert_eq!(with(|f| f.conntrack = Some((90, 100))), [("conntrack", Bad)]);
        assert_eq!(with(|f| f.clock = Some("hpet".into())), [("clock", Costs)]);
    }

    /// Pipes are counted as the workers make them, and the remedy is enough.
    #[test]
    fn pipes_are_counted() {
        let facts = |pages| Facts { pipe_pages_soft: Some(pages), cores: "0-7".parse().unwrap(), ..machine() };
        let few = judge_pipes(&facts(16_384)).expect("it is known");
        assert!(
            few.means.contains("room for 256 pipes of 256 KiB") && few.means.contains("8 workers make 512"),
            "{few:?}"
        );
        assert_eq!(few.remedy, "sysctl -w fs.pipe-user-pages-soft=32768");
        assert_eq!(judge_pipes(&facts(32_768)).expect("it is known").mark, Mark::Good);
        let pipes = ringspan_tunnel::bridge::PlaneOptions::default().pipe_bytes as u64;
        assert_eq!(pipes, machine().pipe_bytes, "what pipes ask for");
    }

    /// A machine that says nothing of itself is no reason to panic, and what costs has a remedy.
    #[test]
    fn silence_is_fine() {
        let (nofile, memlock, pipe_pages_soft, ports) = (None, None, None, None);
        let (somaxconn, conntrack, clock, io_uring_disabled) = (None, None, None, Some(2));
        let tw_reuse = None;
        let io = Ok(Capabilities { tier: Tier::Epoll, why: "EPERM".into() });
        let facts = Facts {
            nofile,
            memlock,
            pipe_pages_soft,
            ports,
            tw_reuse,
            somaxconn,
            conntrack,
            clock,
            io_uring_disabled,
            io,
            ..machine()
        };
        let findings = judge(&facts);
        let io = findings.iter().find(|f| f.what == "io").expect("always judged");
        assert_eq!(io.remedy, "sysctl -w kernel.io_uring_disabled=0");
        assert!(findings.iter().all(|f| f.mark == Mark::Good || !f.remedy.is_empty()));
        assert!(page(&findings).contains("epoll (EPERM)"));
    }
}
