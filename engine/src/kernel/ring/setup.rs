//! Opens a ring by trying: the best flags first, fewer on EINVAL, smaller on ENOMEM.

use crate::kernel::facts::Uring;
use crate::kernel::open::Tier;
use io_uring::{Builder, IoUring, Probe, opcode};
use std::io;

/// Sizes to try, submission and completion entries. Submissions are handed over every few dozen, so theirs is room for
/// chains, not a batch size. Completions: 4,096 knocks in flight with two each, and as much again for polls and accepts
/// (256 KiB); what overflows is not lost but waits in the kernel (IORING_FEAT_NODROP). The small ones are for kernels
/// that count queues against RLIMIT_MEMLOCK, before 5.12 and again of late: the last takes 16 KiB of 5.10's 64.
const SIZES: [(u32, u32); 4] = [(256, 16_384), (256, 4_096), (128, 1_024), (64, 256)];

/// A ring, what it can do, and why it is not better.
pub(super) struct Opened {
    pub(super) ring: IoUring,
    pub(super) tier: Tier,
    pub(super) why: String,
}

/// The best ring of tier `best` or below.
///
/// # Errors
/// A sentence with the errno and the remedy.
pub(super) fn open(best: Tier) -> Result<Opened, String> {
    let mut why = if best < Tier::Ring61 { format!("held at {best}") } else { String::new() };
    let tiers = [Tier::Ring61, Tier::Ring519, Tier::Ring515];
    for tier in tiers.into_iter().filter(|t| *t <= best.max(Tier::Ring515)) {
        match build(tier) {
            Ok(ring) => {
                let tier =
                    if best <= Tier::Ring510 || !ring.params().is_feature_ext_arg() { Tier::Ring510 } else { tier };
                check(&ring)?;
                return Ok(Opened { ring, tier, why });
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                why = format!("this kernel does not know the flags of {tier}");
            }
            Err(error) => return Err(refusal(&error)),
        }
    }
    Err("io_uring_setup: EINVAL. This kernel's io_uring is older than 5.10's".to_owned())
}

fn build(tier: Tier) -> io::Result<IoUring> {
    let mut result = Err(io::Error::from_raw_os_error(libc::ENOMEM));
    for (entries, completions) in SIZES {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(completions);
        flags(tier, &mut builder);
        result = builder.build(entries);
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {}
            _ => break,
        }
    }
    result
}

fn flags(tier: Tier, builder: &mut Builder) {
    match tier {
        Tier::Ring61 => {
            builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_submit_all();
        }
        Tier::Ring519 => {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        Tier::Ring515 | Tier::Ring510 | Tier::Epoll => {}
    }
}

/// What every tier leans on.
fn check(ring: &IoUring) -> Result<(), String> {
    let params = ring.params();
    if !params.is_feature_nodrop() || !params.is_feature_submit_stable() {
        return Err("io_uring lacks NODROP or SUBMIT_STABLE: this kernel's is older than 5.10's".to_owned());
    }
    let probe = probe(ring).map_err(|e| format!("io_uring REGISTER_PROBE: {e}"))?;
    match NEEDED.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => Err(format!("io_uring has no {name}")),
        None => Ok(()),
    }
}

/// What every tier leans on, by opcode.
const NEEDED: [(u8, &str); 8] = [
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::Timeout::CODE, "TIMEOUT"),
    (opcode::TimeoutRemove::CODE, "TIMEOUT_REMOVE"),
];

fn probe(ring: &IoUring) -> io::Result<Probe> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    Ok(probe)
}

/// See [`crate::kernel::facts::io_uring`].
pub(in crate::kernel) fn look() -> Result<Uring, String> {
    let ring = IoUring::new(2).map_err(|error| refusal(&error))?;
    let probe = probe(&ring).map_err(|e| format!("io_uring REGISTER_PROBE: {e}"))?;
    let (present, missing): (Vec<_>, Vec<_>) = NEEDED.iter().partition(|(code, _)| probe.is_supported(*code));
    let names = |list: Vec<&(u8, &'static str)>| list.into_iter().map(|(_, name)| *name).collect();
    let params = ring.params();
    let features = [
        ("NODROP", params.is_feature_nodrop()),
        ("SUBMIT_STABLE", params.is_feature_submit_stable()),
        ("FAST_POLL", params.is_feature_fast_poll()),
        ("EXT_ARG", params.is_feature_ext_arg()),
        ("NATIVE_WORKERS", params.is_feature_native_workers()),
        ("CQE_SKIP", params.is_feature_skip_cqe_on_success()),
        ("NO_IOWAIT", params.is_feature_no_iowait()),
    ];
    let features = features.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect();
    let opcodes_count = (0..=u8::MAX).filter(|code| probe.is_supported(*code)).count() as u32;
    Ok(Uring { features, opcodes: names(present), opcodes_missing: names(missing), opcodes_count })
}

fn refusal(error: &io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => match super::super::facts::io_uring_disabled() {
            Some(value @ 1..) => format!("kernel.io_uring_disabled = {value}. Try: sysctl kernel.io_uring_disabled=0"),
            _ => "A seccomp profile forbids it (Docker's does). Try: --security-opt seccomp=... with a profile that \
                  allows io_uring_setup, io_uring_enter and io_uring_register"
                .to_owned(),
        },
        Some(libc::ENOSYS) => "This kernel was built without it, or a sandbox hides it (gVisor, seccomp)".to_owned(),
        Some(libc::ENOMEM) => "Try: raise the limit on locked memory (ulimit -l)".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "Try: raise the limit on open files (ulimit -n)".to_owned(),
        _ => "The cause is not known".to_owned(),
    };
    format!("io_uring_setup: {error}. {remedy}")
}
