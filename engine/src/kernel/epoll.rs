//! `Io` over epoll(7), for where io_uring is refused. The same recycled sockets and the same promises as the ring;
//! more system calls per operation, no other difference.
//!
//! A knock is connect(2), one edge-triggered event, connect(2) again for the verdict (as POSIX says: it answers 0,
//! EALREADY or the error) and connect(AF_UNSPEC), which resets and recycles. A lane's socket is registered once for
//! its life. A caller's descriptor is registered one-shot for each poll, with a number of its own in the event, so that
//! an event of a descriptor that was closed and given out again is never taken for the new one's.

mod talks;

use self::talks::Line;
use super::lane::{self, may_meet_itself, tcp_facts};
use super::socket::{Fd, RawAddr, Socket, check, set_nonblocking, take_error};
use super::sys::monotonic_now;
use super::tokens::TokenTable;
use super::waker::Waker;
use crate::io::{Completion, Errno, Event, Family, Interest, Io, Lane, LaneKind, Op, TcpFacts, Way};
use crate::time::Instant;
use crate::token::Token;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// Events taken per system call; what does not fit comes with the next.
const EVENTS_MAX: usize = 256;
/// Connections accepted per event before others get their turn; the rest comes with the next wait.
const ACCEPTS_MAX: usize = 64;
/// In an event's data: the event is of a lane, and the low half is its number.
const OF_LANE: u64 = 1 << 63;
/// In an event's data: the event is the waker's.
const OF_WAKER: u64 = 1 << 62;
/// In a token's place: the operation is a knock, and the rest is its lane.
const LANE_PLACE: u32 = 1 << 31;
/// Uses of a watch are counted in the bits below the two flags.
const USES_MASK: u32 = (1 << 30) - 1;

pub(super) struct Epoll {
    epoll: OwnedFd,
    waker: Waker,
    lanes: Vec<LaneState>,
    /// By descriptor number.
    watches: Vec<Watch>,
    tokens: TokenTable,
    /// Completions found outside `wait`, where none may be given out.
    found: Vec<Completion>,
    events: Vec<libc::epoll_event>,
    /// epoll_pwait2 (5.11) takes nanoseconds; before it a wait is rounded up to milliseconds.
    nanosecond_wait: bool,
}

struct LaneState {
    kind: LaneKind,
    /// None between the uses of a lane that is not recycled, and where a lost socket could not be replaced.
    socket: Option<Socket>,
    knock: Option<(Token, RawAddr)>,
    /// The knock in flight is to look what TCP has measured.
    look: bool,
    looked: Option<TcpFacts>,
    /// Of lanes that talk.
    line: Option<Box<Line>>,
    /// Its socket holds the handshake's last ACK back.
    ack_waits: bool,
    /// Set if the socket may be connected to itself.
    suspect: Option<SocketAddr>,
}

impl LaneState {
    fn suspect_at(&mut self, to: &SocketAddr) {
        self.suspect = may_meet_itself(self.kind.source, to).then_some(*to);
    }

    /// What a connect's result says of the target: a socket that met itself found nobody there.
    fn verdict(&self, result: Result<(), Errno>) -> Result<(), Errno> {
        let local = || self.socket.as_ref().and_then(|socket| socket.local_addr().ok());
        let met_itself = result.is_ok() && self.suspect.is_some() && self.suspect == local();
        if met_itself { Err(Errno(libc::ECONNREFUSED)) } else { result }
    }
}

/// What is awaited on one descriptor.
#[derive(Clone, Copy, Default)]
struct Watch {
    uses: u32,
    read: Option<(Token, ReadFor)>,
    write: Option<(Token, WriteFor)>,
}

#[derive(Clone, Copy, PartialEq)]
enum ReadFor {
    Poll,
    Accept,
}

#[derive(Clone, Copy, PartialEq)]
enum WriteFor {
    Poll,
    Connect,
}

impl Epoll {
    pub(super) fn new(waker: &Waker) -> io::Result<Epoll> {
        // SAFETY: epoll_create1(2) takes an integer.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the call above has just given us this descriptor, and nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let this = Epoll {
            epoll,
            waker: waker.clone(),
            lanes: Vec::new(),
            watches: Vec::new(),
            tokens: TokenTable::default(),
            found: Vec::new(),
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX],
            nanosecond_wait: true,
        };
        this.control(libc::EPOLL_CTL_ADD, waker.fd().0, libc::EPOLLIN as u32, OF_WAKER)?;
        Ok(this)
    }

    fn control(&self, what: i32, fd: i32, events: u32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: the pointer describes `event`, which outlives the call.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), what, fd, &raw mut event) })?;
        Ok(())
    }

    // --- knocks

    fn knock(&mut self, token: Token, lane: Lane, to: &SocketAddr, look: bool) {
        let Some(state) = self.lanes.get_mut(lane.0 as usize) else {
            return self.found.push(knocked(token, Err(Errno(libc::EBADF))));
        };
        if state.kind.talks() {
            return self.found.push(knocked(token, Err(Errno(libc::EOPNOTSUPP))));
        }
        if state.knock.is_some() {
            return self.found.push(knocked(token, Err(Errno(libc::EBUSY))));
        }
        if Family::of(to) != state.kind.family {
            return self.found.push(knocked(token, Err(Errno(libc::EAFNOSUPPORT))));
        }
        if state.socket.is_none()
            && let Err(error) = self.open_socket(lane)
        {
            return self.found.push(knocked(token, Err(errno_of(&error))));
        }
        let state = &mut self.lanes[lane.0 as usize];
        let address = RawAddr::new(to);
        state.suspect_at(to);
        (state.look, state.looked) = (look, None);
        let fd = state.socket.as_ref().expect("opened above").raw();
        match connect(fd, &address) {
            Err(Errno(libc::EINPROGRESS)) => {
                state.knock = Some((token, address));
                self.tokens.note(token, LANE_PLACE | lane.0);
            }
            result => {
                let result = state.verdict(result);
                self.recycle(lane, result.is_ok());
                self.found.push(knocked(token, result));
            }
        }
    }

    fn open_socket(&mut self, lane: Lane) -> io::Result<()> {
        let kind = self.lanes[lane.0 as usize].kind;
        let socket = lane::open(kind)?;
        let reads = if kind.talks() { libc::EPOLLIN | libc::EPOLLRDHUP } else { 0 };
        // A fresh socket reports EPOLLHUP at once; the lane is idle then, or its connect says EALREADY.
        let events = (libc::EPOLLOUT | reads | libc::EPOLLET) as u32;
        self.control(libc::EPOLL_CTL_ADD, socket.raw(), events, OF_LANE | u64::from(lane.0))?;
        let state = &mut self.lanes[lane.0 as usize];
        (state.socket, state.ack_waits) = (Some(socket), false);
        Ok(())
    }

    /// Makes the lane ready for its next knock.
    fn recycle(&mut self, lane: Lane, connected: bool) {
        let state = &mut self.lanes[lane.0 as usize];
        state.knock = None;
        if state.look && connected {
            state.looked = state.socket.as_ref().and_then(tcp_facts);
        }
        let keep = state.kind.is_recycled() && state.socket.as_ref().is_some_and(|socket| socket.dissolve().is_ok());
        if !keep {
            state.socket = None;
        }
    }

    fn on_lane(&mut self, lane: Lane, events: u32, completions: &mut Vec<Completion>) {
        let Some(state) = self.lanes.get(lane.0 as usize) else { return };
        if state.line.is_some() {
            return completions.extend(self.on_line(lane, events));
        }
        // The reset of the last knock is an event too; then the lane is idle or its connect still in progress.
        let (Some((token, address)), Some(socket)) = (&state.knock, &state.socket) else { return };
        let token = *token;
        match connect(socket.raw(), address) {
            Err(Errno(libc::EALREADY | libc::EINPROGRESS)) => {}
            result => {
                let result = if matches!(result, Err(Errno(libc::EISCONN))) { Ok(()) } else { result };
                let result = state.verdict(result);
                self.recycle(lane, result.is_ok());
                completions.push(knocked(token, result));
            }
        }
    }

    // --- callers' descriptors

    fn watch(&mut self, fd: Fd) -> &mut Watch {
        let index = usize::try_from(fd.0).unwrap_or(0);
        if self.watches.len() <= index {
            self.watches.resize(index + 1, Watch::default());
        }
        &mut self.watches[index]
    }

    fn await_read(&mut self, token: Token, fd: Fd, purpose: ReadFor) {
        if self.watch(fd).read.is_some() || fd.0 < 0 {
            return self.found.push(failed_read(
                token,
                purpose,
                Errno(if fd.0 < 0 { libc::EBADF } else { libc::EBUSY }),
            ));
        }
        self.watch(fd).read = Some((token, purpose));
        self.tokens.note(token, fd.0 as u32);
        self.arm(fd);
    }

    fn await_write(&mut self, token: Token, fd: Fd, purpose: WriteFor) {
        if self.watch(fd).write.is_some() || fd.0 < 0 {
            let errno = Errno(if fd.0 < 0 { libc::EBADF } else { libc::EBUSY });
            return self.found.push(failed_write(token, purpose, errno));
        }
        self.watch(fd).write = Some((token, purpose));
        self.tokens.note(token, fd.0 as u32);
        self.arm(fd);
    }

    /// Tells the kernel what is awaited on `fd` now. What cannot be watched ends, and the next call on the descriptor
    /// says why.
    fn arm(&mut self, fd: Fd) {
        let watch = self.watch(fd);
        watch.uses = (watch.uses + 1) & USES_MASK;
        let read = if watch.read.is_some() { libc::EPOLLIN | libc::EPOLLRDHUP } else { 0 };
        let write = if watch.write.is_some() { libc::EPOLLOUT } else { 0 };
        if read | write == 0 {
            return;
        }
        let data = u64::from(watch.uses) << 32 | u64::from(fd.0 as u32);
        let events = (read | write | libc::EPOLLONESHOT) as u32;
        let result = match self.control(libc::EPOLL_CTL_MOD, fd.0, events, data) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.control(libc::EPOLL_CTL_ADD, fd.0, events, data),
            result => result,
        };
        if let Err(error) = result {
            let watch = self.watch(fd);
            let (read, write) = (watch.read.take(), watch.write.take());
            self.found.extend(read.map(|(token, purpose)| failed_read(token, purpose, errno_of(&error))));
            self.found.extend(write.map(|(token, purpose)| failed_write(token, purpose, errno_of(&error))));
        }
    }

    fn connect(&mut self, token: Token, fd: Fd, to: &SocketAddr) {
        match connect(fd.0, &RawAddr::new(to)) {
            Err(Errno(libc::EINPROGRESS)) => self.await_write(token, fd, WriteFor::Connect),
            result => self.found.push(Completion { token, event: Event::Connected(result) }),
        }
    }

    fn accept(&mut self, token: Token, fd: Fd) {
        // Between the event and accept4 the connection may go away; a blocking accept4 would then hold the worker.
        match set_nonblocking(fd.0, true) {
            Ok(()) => self.await_read(token, fd, ReadFor::Accept),
            Err(error) => self.found.push(Completion { token, event: Event::Accepted(Err(errno_of(&error))) }),
        }
    }

    fn on_watch(&mut self, data: u64, events: u32, completions: &mut Vec<Completion>) {
        let fd = Fd(data as u32 as i32);
        let Some(watch) = self.watches.get_mut(fd.0 as usize) else { return };
        if watch.uses != (data >> 32) as u32 {
            return;
        }
        let failed = (libc::EPOLLHUP | libc::EPOLLERR) as u32;
        if events & (failed | (libc::EPOLLIN | libc::EPOLLRDHUP) as u32) != 0 {
            match watch.read {
                Some((token, ReadFor::Poll)) => {
                    watch.read = None;
                    let ends = events & libc::EPOLLRDHUP as u32 != 0;
                    completions.push(Completion { token, event: Event::Ready { ends } });
                }
                Some((token, ReadFor::Accept)) => {
                    if let Some(errno) = accept_some(token, fd, completions) {
                        watch.read = None;
                        completions.push(Completion { token, event: Event::Accepted(Err(errno)) });
                    }
                }
                None => {}
            }
        }
        if events & (failed | libc::EPOLLOUT as u32) != 0
            && let Some((token, purpose)) = watch.write.take()
        {
            let event = match purpose {
                WriteFor::Poll => Event::Ready { ends: false },
                WriteFor::Connect => Event::Connected(connect_result(fd)),
            };
            completions.push(Completion { token, event });
        }
        self.arm(fd);
    }

    // --- waiting

    fn poll_events(&mut self, deadline: Option<Instant>) -> usize {
        let left = deadline.map(|d| d.since(monotonic_now()));
        let (events, max) = (self.events.as_mut_ptr(), EVENTS_MAX as i32);
        if self.nanosecond_wait {
            let left = left.map(|d| libc::timespec {
                tv_sec: d.as_secs().min(i32::MAX as u64) as libc::time_t,
                tv_nsec: i64::from(d.subsec_nanos()),
            });
            let timeout = left.as_ref().map_or(ptr::null(), |t| t as *const libc::timespec);
            // SAFETY: `events` has room for `max` events and `timeout` is null or describes `left`; both outlive the
            // call. There is no signal mask.
            let n = unsafe {
                let mask = ptr::null::<libc::sigset_t>();
                libc::syscall(libc::SYS_epoll_pwait2, self.epoll.as_raw_fd(), events, max, timeout, mask, 0usize)
            };
            if let Ok(n) = usize::try_from(n) {
                return n;
            }
            match io::Error::last_os_error().raw_os_error() {
                // EPERM: a seccomp profile older than the call.
                Some(libc::ENOSYS | libc::EPERM) => self.nanosecond_wait = false,
                _ => return 0,
            }
        }
        let ms = left.map_or(-1, |d| d.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32);
        // SAFETY: `events` has room for `max` events and outlives the call.
        let n = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events, max, ms) };
        usize::try_from(n).unwrap_or(0)
    }
}

impl Io for Epoll {
    fn now(&self) -> Instant {
        monotonic_now()
    }

    fn open_lanes(&mut self, kind: LaneKind, count: u32) -> io::Result<Range<u32>> {
        let first = self.lanes.len() as u32;
        lane::try_open(kind)?;
        for index in first..first.saturating_add(count).min(LANE_PLACE - 1) {
            let line = kind.talks().then(Box::default);
            let idle = LaneState {
                kind,
                socket: None,
                knock: None,
                look: false,
                looked: None,
                line,
                ack_waits: false,
                suspect: None,
            };
            self.lanes.push(idle);
            if !kind.is_recycled() {
                continue;
            }
            if let Err(error) = self.open_socket(Lane(index)) {
                self.lanes.pop();
                if index == first {
                    return Err(error);
                }
                break;
            }
        }
        Ok(first..self.lanes.len() as u32)
    }

    fn outgoing(&mut self, lane: Lane) -> &mut Vec<u8> {
        &mut self.lanes[lane.0 as usize].line.as_mut().expect("the caller opened this lane to talk").outgoing
    }

    fn heard(&self, lane: Lane) -> &[u8] {
        self.lanes[lane.0 as usize].line.as_ref().map_or(&[], |line| line.heard())
    }

    fn connected_at(&self, lane: Lane) -> Option<Instant> {
        self.lanes[lane.0 as usize].line.as_ref().and_then(|line| line.connected_at)
    }

    fn tcp_facts(&mut self, lane: Lane) -> Option<TcpFacts> {
        let state = &self.lanes[lane.0 as usize];
        match &state.line {
            None => state.looked,
            Some(line) if line.in_call && state.kind.way == Way::Stream => state.socket.as_ref().and_then(tcp_facts),
            Some(_) => None,
        }
    }

    fn submit(&mut self, token: Token, op: Op) {
        match op {
            Op::Knock { lane, to, look } => self.knock(token, lane, &to, look),
            Op::Call { lane, to } => self.call(token, lane, &to),
            Op::Talk { lane } => self.talk(token, lane),
            Op::Hang { lane, end } => self.hang(token, lane, end),
            Op::Connect { fd, to } => self.connect(token, fd, &to),
            Op::Accept { fd } => self.accept(token, fd),
            Op::Poll { fd, interest: Interest::Read } => self.await_read(token, fd, ReadFor::Poll),
            Op::Poll { fd, interest: Interest::Write } => self.await_write(token, fd, WriteFor::Poll),
        }
    }

    fn cancel(&mut self, token: Token) {
        let Some(place) = self.tokens.find(token) else { return };
        if place & LANE_PLACE != 0 {
            let lane = Lane(place & !LANE_PLACE);
            self.cancel_talk(token, lane);
            if self.lanes[lane.0 as usize].knock.as_ref().is_some_and(|(t, _)| *t == token) {
                self.recycle(lane, false);
                self.found.push(knocked(token, Err(Errno(libc::ECANCELED))));
            }
            return;
        }
        // What stays armed in the kernel fires at most once more, and finds nobody waiting.
        let watch = &mut self.watches[place as usize];
        let cancelled = Errno(libc::ECANCELED);
        if let Some((t, purpose)) = watch.read
            && t == token
        {
            watch.read = None;
            self.found.push(failed_read(token, purpose, cancelled));
        } else if let Some((t, purpose)) = watch.write
            && t == token
        {
            watch.write = None;
            self.found.push(failed_write(token, purpose, cancelled));
        }
    }

    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>) {
        let before = completions.len();
        completions.append(&mut self.found);
        loop {
            let may_block = completions.len() == before && self.waker.park();
            let count = self.poll_events(if may_block { deadline } else { Some(Instant::ZERO) });
            let mut rung = self.waker.unpark();
            for index in 0..count {
                let libc::epoll_event { events, u64: data } = self.events[index];
                if data == OF_WAKER {
                    self.waker.clear();
                    rung = true;
                } else if data & OF_LANE != 0 {
                    self.on_lane(Lane(data as u32), events, completions);
                } else {
                    self.on_watch(data, events, completions);
                }
            }
            completions.append(&mut self.found);
            if rung || completions.len() > before || deadline.is_some_and(|d| d <= monotonic_now()) {
                return;
            }
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        self.hang_up_all();
    }
}

fn knocked(token: Token, result: Result<(), Errno>) -> Completion {
    Completion { token, event: Event::Knocked(result) }
}

fn failed_read(token: Token, purpose: ReadFor, errno: Errno) -> Completion {
    let event = match purpose {
        ReadFor::Poll => Event::Ready { ends: false },
        ReadFor::Accept => Event::Accepted(Err(errno)),
    };
    Completion { token, event }
}

fn failed_write(token: Token, purpose: WriteFor, errno: Errno) -> Completion {
    let event = match purpose {
        WriteFor::Poll => Event::Ready { ends: false },
        WriteFor::Connect => Event::Connected(Err(errno)),
    };
    Completion { token, event }
}

/// Accepts what waits, up to a turn's share. `Some` ends the accept.
fn accept_some(token: Token, listener: Fd, completions: &mut Vec<Completion>) -> Option<Errno> {
    for _ in 0..ACCEPTS_MAX {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: accept4(2) with null addresses takes integers.
        match check(unsafe { libc::accept4(listener.0, ptr::null_mut(), ptr::null_mut(), flags) }) {
            Ok(fd) => {
                // SAFETY: the call above has just given us this descriptor, and nobody else owns it.
                let socket = Socket::from_owned(unsafe { OwnedFd::from_raw_fd(fd) });
                completions.push(Completion { token, event: Event::Accepted(Ok(socket)) });
            }
            Err(error) => match errno_of(&error) {
                Errno(libc::EAGAIN) => return None,
                errno if super::is_of_the_connection(errno) => {}
                errno => return Some(errno),
            },
        }
    }
    None
}

fn connect(fd: i32, to: &RawAddr) -> Result<(), Errno> {
    // SAFETY: the pointer and the length describe `to`, which outlives the call.
    check(unsafe { libc::connect(fd, to.as_ptr(), to.len()) }).map_err(|e| errno_of(&e))?;
    Ok(())
}

fn connect_result(fd: Fd) -> Result<(), Errno> {
    match take_error(fd.0) {
        Ok(0) => Ok(()),
        Ok(errno) => Err(Errno(errno)),
        Err(error) => Err(errno_of(&error)),
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}
