use super::*;
use crate::kernel::{Backend, OpenError, open};

/// From here on io_uring_setup fails with `errno` on this thread, as a container's seccomp profile makes it. False if
/// this kernel has no seccomp filters.
fn forbid_io_uring(errno: i32) -> bool {
    let load_number = libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    let if_setup = libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_io_uring_setup as u32 };
    let refuse = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | errno as u32 };
    let allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let mut filter = [load_number, if_setup, refuse, allow];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and the filter it points to outlive the calls, which copy them.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    }
}

/// Where io_uring is refused `Auto` is epoll and works, with a reason that names the remedy; `Ring` is an error that does.
#[test]
fn a_refusal_names_its_remedy() {
    for (errno, word, remedy) in
        [(libc::EPERM, "not permitted", "seccomp"), (libc::ENOSYS, "not implemented", "sandbox")]
    {
        std::thread::spawn(move || {
            let disabled = crate::kernel::facts::io_uring_disabled().unwrap_or(0) > 0;
            if !forbid_io_uring(errno) {
                eprintln!("no seccomp here");
                return;
            }
            let waker = Waker::new().expect("an eventfd");
            let error = open(Backend::Ring, &waker).err().expect("refused");
            assert!(matches!(error, OpenError::Ring(_)));
            let (io, capabilities) = open(Backend::Auto, &waker).expect("epoll");
            assert_eq!(capabilities.tier, Tier::Epoll);
            for said in [error.to_string(), capabilities.to_string()] {
                assert!(said.contains("io_uring_setup") && said.contains(word), "{said}");
                assert!(said.contains(remedy) || disabled, "{said}");
            }
            let mut rig = Rig { io, waker, tier: Tier::Epoll };
            let (_listener, at) = open_target();
            let lane = rig.lanes(Mode::HalfOpen, 1)[0];
            rig.knock(lane, at);
            assert_eq!(knocked(rig.wait_for(1))[&lane.0], Ok(()));
        })
        .join()
        .expect("as above");
    }
}
