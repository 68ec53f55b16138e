//! The promises of `Io`, on every implementation this kernel gives: epoll and the ring at each tier.
//!
//! Nothing here waits for time to pass but where a deadline is the point; each wait ends by its event, or by a deadline
//! so far off that meeting it is the failure.

use super::{Tier, Waker, open_tier};
use crate::io::{Completion, Errno, Event, Family, Interest, Io, Lane, LaneKind, Mode, Op, Way};
use crate::kernel::{Shutdown, Socket};
use crate::mailbox::{Wake, mailbox};
use crate::time::Instant;
use crate::token::Token;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

mod accepts;
mod knocks;
mod polls;
mod random;
mod refused;
mod talks;
mod ways;

/// Long enough for any event on any machine; reached only by a failure.
const FAR: Duration = Duration::from_secs(30);
/// A loopback address that no knock comes from, so that a socket cannot meet itself there.
const ELSEWHERE: &str = "127.0.0.2";
/// Where knocks at the loopback come from: the ring makes them in two steps there.
const AT_HOME: &str = "127.0.0.1";
const KNOCK: u8 = 0;
const CONNECT: u8 = 1;
const ACCEPT: u8 = 2;
const READ: u8 = 3;
const WRITE: u8 = 4;
const TALK: u8 = 5;

/// An `Io` under test and what it has said.
struct Rig {
    io: Box<dyn Io>,
    waker: Waker,
    tier: Tier,
}

/// Runs `test` on every distinct `Io` there is here.
fn on_every_io(test: impl Fn(&mut Rig)) {
    let mut seen = Vec::new();
    for best in Tier::ALL {
        let waker = Waker::new().expect("an eventfd");
        let (io, capabilities) = match open_tier(best, &waker) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(best > Tier::Epoll, "epoll is everywhere: {error}");
                eprintln!("no {best} here: {error}");
                continue;
            }
        };
        if !seen.contains(&capabilities.tier) {
            seen.push(capabilities.tier);
            eprintln!("on {capabilities}");
            test(&mut Rig { io, waker, tier: capabilities.tier });
        }
    }
    // scripts/kernel-matrix knows what its kernels have; elsewhere io_uring may be forbidden, and that is fine.
    if let Ok(best) = std::env::var("RINGSPAN_TEST_BEST_TIER") {
        assert_eq!(seen.last().map(|t| t.as_str()), Some(best.as_str()), "the best tier that was opened");
    }
}

fn token(op: u8, index: u32) -> Token {
    Token::new(1, op, 7, index)
}

impl Rig {
    /// Waits until `count` completions have come.
    fn wait_for(&mut self, count: usize) -> Vec<Completion> {
        let mut completions = Vec::new();
        let deadline = self.io.now() + FAR;
        while completions.len() < count {
            assert!(self.io.now() < deadline, "{} of {count} came on {}", completions.len(), self.tier);
            self.io.wait(Some(deadline), &mut completions);
        }
        assert_eq!(completions.len(), count, "more came than was asked for on {}: {completions:?}", self.tier);
        completions
    }

    /// Asserts that nothing more comes of what has been submitted so far.
    fn is_quiet(&mut self) {
        let mut completions = Vec::new();
        for _ in 0..3 {
            self.io.wait(Some(self.io.now()), &mut completions);
        }
        assert!(completions.is_empty(), "unasked on {}: {completions:?}", self.tier);
    }

    /// What `look`, which does not block, finds in the end; nothing may complete before. Who waits for a peer's side must
    /// not stop looking at its own: where a kernel thread connects (5.10), what is said behind it waits for a look.
    fn meanwhile<T>(&mut self, mut look: impl FnMut() -> io::Result<T>) -> T {
        let (mut completions, deadline) = (Vec::new(), self.io.now() + FAR);
        loop {
            match look() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                found => return found.expect("the peer's side"),
            }
            assert!(self.io.now() < deadline, "nothing came to the peer on {}", self.tier);
            self.io.wait(Some(self.io.now() + Duration::from_millis(1)), &mut completions);
            assert!(completions.is_empty(), "unasked on {}: {completions:?}", self.tier);
        }
    }

    fn lanes(&mut self, mode: Mode, count: u32) -> Vec<Lane> {
        let range = self.io.open_lanes(LaneKind::knock(mode, Family::V4), count).expect("some lanes");
        assert_eq!(range.len(), count as usize);
        range.map(Lane).collect()
    }

    fn knock(&mut self, lane: Lane, to: SocketAddr) {
        self.io.submit(token(KNOCK, lane.0), Op::Knock { lane, to, look: false });
    }
}

/// What the knocks said, by lane.
fn knocked(completions: Vec<Completion>) -> HashMap<u32, Result<(), Errno>> {
    let said = completions.into_iter().map(|c| match c.event {
        Event::Knocked(result) => (c.token.index(), result),
        event => panic!("not a knock's: {event:?}"),
    });
    let count = said.len();
    let map: HashMap<_, _> = said.collect();
    assert_eq!(map.len(), count, "one end for each knock");
    map
}

/// Somebody who listens on a port of the loopback, with room for all that a test makes without accepting any: where it
/// runs out, SYNs are dropped and come again after a second.
fn open_target() -> (TcpListener, SocketAddr) {
    open_target_on(ELSEWHERE)
}

fn open_target_on(ip: &str) -> (TcpListener, SocketAddr) {
    let at = SocketAddr::new(ip.parse().expect("an address"), 0);
    let listener = TcpListener::from(Socket::listen(&at, 4096).expect("a port").fd);
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// A port nobody listens on: held, bound but not listening, by the socket that comes with it.
fn closed_target() -> (Socket, SocketAddr) {
    closed_target_on(ELSEWHERE)
}

fn closed_target_on(ip: &str) -> (Socket, SocketAddr) {
    let socket = Socket::tcp(Family::V4).expect("a socket");
    let any = super::socket::RawAddr::new(&SocketAddr::new(ip.parse().expect("an address"), 0));
    // SAFETY: the pointer and the length describe `any`, which outlives the call.
    assert_eq!(unsafe { libc::bind(socket.raw(), any.as_ptr(), any.len()) }, 0);
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// A listener that hears nobody: it drops what comes with a time to live below 255, and the loopback's is 64. A SYN to
/// it is never answered.
fn black_hole() -> (TcpListener, SocketAddr) {
    black_hole_on(ELSEWHERE)
}

fn black_hole_on(ip: &str) -> (TcpListener, SocketAddr) {
    let (listener, address) = open_target_on(ip);
    super::socket::set_option(listener.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MINTTL, 255i32).expect("IP_MINTTL");
    (listener, address)
}

/// Connections with this address at either end that are in TIME_WAIT (/proc/net/tcp, state 06).
fn time_waits(at: SocketAddr) -> usize {
    let SocketAddr::V4(at) = at else { panic!("the table of IPv4") };
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table of connections");
    let address = format!("{:08X}:{:04X}", u32::from_ne_bytes(at.ip().octets()), at.port());
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().skip(1).take(3).collect::<Vec<_>>());
    fields.filter(|f| f[2] == "06" && (f[0] == address || f[1] == address)).count()
}

/// Connections that this machine saw reset before they were accepted (/proc/net/netstat, TcpExt EmbryonicRsts).
fn embryonic_resets() -> u64 {
    let table = std::fs::read_to_string("/proc/net/netstat").expect("a table of counters");
    let mut lines = table.lines().filter(|l| l.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == "EmbryonicRsts").expect("a known counter").1.parse().expect("a number")
}

/// How many descriptors this process has.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("a list of descriptors").count()
}

/// A wake before, during or after the look is never lost, and one wake ends one wait.
#[test]
fn wakes_are_not_lost() {
    on_every_io(|rig| {
        let mut completions = Vec::new();
        rig.waker.wake();
        rig.io.wait(None, &mut completions);
        for _ in 0..200 {
            let waker = rig.waker.clone();
            let thread = std::thread::spawn(move || waker.wake());
            rig.io.wait(None, &mut completions);
            thread.join().expect("it only wakes");
        }
        assert!(completions.is_empty());
    });
}

/// Senders that ring while the owner falls asleep and wakes, thousands of times: it never sleeps on a message.
#[test]
fn nobody_sleeps_on_a_message() {
    const EACH: u32 = 20_000;
    on_every_io(|rig| {
        let (sender, receiver) = mailbox::<u32>(8, Arc::new(rig.waker.clone()));
        let mut sums = [0u64; 2];
        std::thread::scope(|scope| {
            for whose in 0..2 {
                let sender = sender.clone();
                scope.spawn(move || {
                    for n in 0..EACH {
                        while sender.send(n * 2 + whose).is_err() {
                            std::thread::yield_now();
                        }
                        if n % 64 == 0 {
                            // Lets the owner fall asleep now and then.
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let (mut got, mut completions) = (0, Vec::new());
            while got < 2 * EACH {
                while let Some(message) = receiver.try_recv() {
                    sums[(message % 2) as usize] += u64::from(message / 2);
                    got += 1;
                }
                if got < 2 * EACH {
                    rig.io.wait(None, &mut completions);
                }
            }
        });
        let all = u64::from(EACH) * u64::from(EACH - 1) / 2;
        assert_eq!(sums, [all; 2], "{}", rig.tier);
    });
}

/// A wait with nothing to come ends at its deadline, not before; one in the past does not wait.
#[test]
fn deadlines_are_kept() {
    on_every_io(|rig| {
        let mut completions = Vec::new();
        for ms in [1u64, 30, 3, 20] {
            let deadline = rig.io.now() + Duration::from_millis(ms);
            rig.io.wait(Some(deadline), &mut completions);
            assert!(rig.io.now() >= deadline, "{ms} ms on {}", rig.tier);
        }
        rig.io.wait(Some(Instant::ZERO), &mut completions);
        assert!(completions.is_empty());
        // A far deadline, then a near one: the near one counts.
        let (_hole, to) = black_hole();
        let lane = rig.lanes(Mode::HalfOpen, 1)[0];
        rig.knock(lane, to);
        let waker = rig.waker.clone();
        let thread = std::thread::spawn(move || waker.wake());
        rig.io.wait(Some(rig.io.now() + FAR), &mut completions);
        thread.join().expect("it only wakes");
        let start = rig.io.now();
        rig.io.wait(Some(start + Duration::from_millis(5)), &mut completions);
        assert!(rig.io.now().since(start) < FAR / 2, "the far deadline counted on {}", rig.tier);
    });
}

/// Cancelling what never was, or is over, does nothing.
#[test]
fn idle_cancels_are_harmless() {
    on_every_io(|rig| {
        rig.io.cancel(token(READ, 5));
        let (_listener, to) = open_target();
        let lane = rig.lanes(Mode::HalfOpen, 1)[0];
        rig.knock(lane, to);
        knocked(rig.wait_for(1));
        rig.io.cancel(token(KNOCK, lane.0));
        rig.is_quiet();
        rig.knock(lane, to);
        assert_eq!(knocked(rig.wait_for(1))[&lane.0], Ok(()));
    });
}

/// An `Io` dropped with everything in flight gives back every descriptor and every port.
#[test]
fn a_drop_leaves_nothing_behind() {
    // Descriptors are the process's, and other tests run beside this one: a process of its own counts them.
    if std::env::var_os("RINGSPAN_TEST_ALONE").is_none() {
        let me = std::env::current_exe().expect("a path");
        let name = "kernel::tests::a_drop_leaves_nothing_behind";
        let run = std::process::Command::new(me)
            .args(["--exact", name, "--test-threads=1", "--nocapture"])
            .env("RINGSPAN_TEST_ALONE", "1")
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stdout));
        return;
    }
    let before = descriptors();
    let mut ports = Vec::new();
    for best in Tier::ALL {
        let waker = Waker::new().expect("an eventfd");
        let Ok((io, capabilities)) = open_tier(best, &waker) else { continue };
        let mut rig = Rig { io, waker, tier: capabilities.tier };
        let (hole, hole_at) = black_hole();
        let (target, target_at) = open_target();
        for mode in [Mode::HalfOpen, Mode::Full, Mode::Graceful] {
            let lanes = rig.lanes(mode, 20);
            for (lane, to) in lanes.into_iter().zip([hole_at, target_at].into_iter().cycle()) {
                rig.knock(lane, to);
            }
        }
        for way in [Way::Stream, Way::Datagram] {
            let lanes = rig.lines(way, 20);
            for (lane, to) in lanes.into_iter().zip([hole_at, target_at].into_iter().cycle()) {
                rig.call(lane, to, b"hello");
            }
        }
        // Connected, and nobody's turn.
        let idle = rig.lines(Way::Stream, 1)[0];
        rig.call(idle, target_at, b"hello");
        rig.io.wait(Some(rig.io.now()), &mut Vec::new());
        rig.io.cancel(token(TALK, idle.0));
        let listener = Socket::listen(&SocketAddr::from(([127, 0, 0, 1], 0)), 16).expect("a listener");
        rig.io.submit(token(ACCEPT, 0), Op::Accept { fd: listener.fd() });
        let caller = Socket::tcp(Family::V4).expect("a socket");
        rig.io.submit(token(CONNECT, 0), Op::Connect { fd: caller.fd(), to: hole_at });
        rig.io.submit(token(READ, 0), Op::Poll { fd: caller.fd(), interest: Interest::Read });
        rig.io.wait(Some(rig.io.now()), &mut Vec::new());
        // Accepted by the kernel for us, but never handed out.
        let late = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        drop(rig);
        drop(late);
        ports.extend([hole_at, target_at, listener.local_addr().expect("bound")]);
        drop((hole, target, listener, caller));
        assert_eq!(descriptors(), before, "on {}", capabilities.tier);
    }
    for at in ports {
        Socket::listen(&at, 16).unwrap_or_else(|error| panic!("{at} is still held: {error}"));
    }
}

/// A socket shut while a poll is on it ends the poll.
#[test]
fn shutdown_ends_polls() {
    on_every_io(|rig| {
        let (listener, at) = open_target();
        let near = Socket::from_owned(TcpStream::connect(at).expect("it listens").into());
        let (_far, _) = listener.accept().expect("it called");
        rig.io.submit(token(READ, 0), Op::Poll { fd: near.fd(), interest: Interest::Read });
        rig.is_quiet();
        near.shutdown(Shutdown::Both);
        assert!(matches!(rig.wait_for(1)[0].event, Event::Ready { .. }));
    });
}
