//! `Io` over io_uring.
//!
//! A half-open or full knock is two entries, hard-linked: connect, then connect(AF_UNSPEC), which resets and recycles
//! the socket in the kernel, without a turn of ours in between. Its event is given out when both completions are back.
//! Cancelling aims at the connect; the reset then follows by itself. Where a socket could be connected to itself
//! (`may_meet_itself`) the two are separate steps. A graceful knock is a connect on a fresh socket and a plain close.
//!
//! The kernel never sees a token: user data is `kind:8 | generation:32 | index:24` of a table here, and a completion
//! counts only if the place it names is in that use. No allocation and no hashing per operation.

mod lanes;
mod line;
mod queue;
pub(super) mod setup;
mod slots;
mod talks;

use self::lanes::{LANES_MAX, LaneSlot, RETRIES_MAX};
use self::line::{Line, Step};
use self::queue::{File, NoRoom, Queue};
use self::slots::{Slots, Work};
use super::lane::tcp_facts;
use super::open::{Capabilities, Tier};
use super::socket::{RawAddr, Socket, take_error};
use super::sys::monotonic_now;
use super::tokens::TokenTable;
use super::waker::Waker;
use crate::io::{Completion, Errno, Event, Family, Interest, Io, Lane, LaneKind, Op, TcpFacts, Way};
use crate::time::Instant;
use crate::token::Token;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

/// Places in the table of registered files, for the first lanes: four pools of the default size, 128 KiB. 5.10 allows
/// twice as many (IORING_MAX_FIXED_FILES). Lanes beyond it work by descriptor, a little dearer.
const FIXED_MAX: u32 = 16_384;
/// How long a dropped ring waits for its operations to end, so that ports and descriptors are free when it is gone.
const DROP_MAX: Duration = Duration::from_millis(200);
/// In a token's place: the operation is a knock, and the rest is its lane.
const LANE_PLACE: u32 = 1 << 31;
const INDEX_MASK: u64 = (1 << 24) - 1;

/// The top byte of the user data.
mod kind {
    pub(super) const KNOCK: u8 = 1;
    pub(super) const RESET: u8 = 2;
    pub(super) const SLOT: u8 = 3;
    pub(super) const WAKER: u8 = 4;
    pub(super) const TIMER: u8 = 5;
    /// Cancels and timer removals: whatever they answer, what counts is the answer of their target.
    pub(super) const CANCEL: u8 = 6;
    /// A cancel of what a talking lane does, if it has found nothing.
    pub(super) const CUT: u8 = 7;
    /// A step of a talking lane; which one is in the low bits.
    pub(super) const STEP: u8 = 0x80;
}

fn user_data(kind: u8, generation: u32, index: u32) -> u64 {
    u64::from(kind) << 56 | u64::from(generation) << 24 | u64::from(index)
}

pub(super) struct Ring {
    queue: Queue,
    waker: Waker,
    waker_armed: bool,
    lanes: Vec<LaneSlot>,
    lanes_busy: usize,
    /// Places in the table of registered files.
    fixed_count: u32,
    slots: Slots,
    tokens: TokenTable,
    /// What found no room in the submission queue, oldest first. Each in-flight operation is in it at most twice.
    backlog: VecDeque<Waiting>,
    /// Completions found outside `wait`, where none may be given out.
    found: Vec<Completion>,
    multishot_accept: bool,
    /// Steps may be told to keep quiet of success (IORING_FEAT_CQE_SKIP, 5.17).
    quiet: bool,
    /// A connect and what follows it may be linked: it is never given up as in progress.
    linked_calls: bool,
    timer: Timer,
    /// Completions of no living operation. Zero, unless we or the kernel are mistaken.
    stale: u64,
}

enum Waiting {
    Lane(u32),
    Slot(u32),
    Cancel(u64),
}

/// The timeout operation that ends waits where io_uring_enter takes no time.
#[derive(Default)]
struct Timer {
    uses: u32,
    at: Option<Instant>,
}

impl Ring {
    /// # Errors
    /// A sentence with the errno and the remedy.
    pub(super) fn open(best: Tier, waker: &Waker) -> Result<(Ring, Capabilities), String> {
        let setup::Opened { ring, tier, why } = setup::open(best)?;
        let quiet = tier >= Tier::Ring519 && ring.params().is_feature_skip_cqe_on_success();
        let queue = Queue::new(ring, tier >= Tier::Ring515, tier >= Tier::Ring519);
        // Now or never: before 5.13 IORING_REGISTER_FILES waits until nothing is in flight, and the waker's poll always
        // is. Without a table lanes work by descriptor.
        let count = super::facts::nofile().map_or(FIXED_MAX, |limit| limit.soft.min(u64::from(FIXED_MAX)) as u32);
        let fixed_count = if queue.register_files(count).is_ok() { count } else { 0 };
        let ring = Ring {
            queue,
            waker: waker.clone(),
            waker_armed: false,
            lanes: Vec::new(),
            lanes_busy: 0,
            fixed_count,
            slots: Slots::default(),
            tokens: TokenTable::default(),
            backlog: VecDeque::new(),
            found: Vec::new(),
            multishot_accept: tier >= Tier::Ring519,
            quiet,
            linked_calls: tier >= Tier::Ring515,
            timer: Timer::default(),
            stale: 0,
        };
        Ok((ring, Capabilities { tier, why }))
    }

    // --- knocks

    fn knock(&mut self, token: Token, lane: u32, to: std::net::SocketAddr, look: bool) {
        let refused = match self.lanes.get_mut(lane as usize) {
            None => Some(Errno(libc::EBADF)),
            Some(slot) if slot.kind.talks() => Some(Errno(libc::EOPNOTSUPP)),
            Some(slot) if slot.busy => Some(Errno(libc::EBUSY)),
            Some(slot) if slot.kind.family != Family::of(&to) => Some(Errno(libc::EAFNOSUPPORT)),
            Some(slot) if slot.socket.is_none() => self.replace_socket(lane).err().map(|e| errno_of(&e)),
            Some(_) => None,
        };
        if let Some(errno) = refused {
            return self.found.push(Completion { token, event: Event::Knocked(Err(errno)) });
        }
        self.lanes[lane as usize].begin_knock(token, to, look);
        self.lanes_busy += 1;
        self.tokens.note(token, LANE_PLACE | lane);
        self.issue_lane(lane);
    }

    fn issue_lane(&mut self, lane: u32) {
        if self.backlog.is_empty() && self.try_issue_lane(lane).is_ok() {
            return;
        }
        self.lanes[lane as usize].waiting = true;
        self.backlog.push_back(Waiting::Lane(lane));
    }

    fn try_issue_lane(&mut self, lane: u32) -> Result<(), NoRoom> {
        let slot = &mut self.lanes[lane as usize];
        let generation = slot.generation;
        let connect = user_data(kind::KNOCK, generation, lane);
        slot.outstanding = if slot.is_graceful() || slot.in_two_steps {
            self.queue.push_connect(slot.file(lane), slot.address(), connect)?;
            1
        } else {
            let reset = user_data(kind::RESET, generation, lane);
            self.queue.push_knock(slot.file(lane), slot.address(), connect, reset)?;
            2
        };
        slot.waiting = false;
        Ok(())
    }

    /// A completion of a knock: of its connect, or of the reset after it.
    fn on_lane(&mut self, lane: u32, generation: u32, result: i32, of_connect: bool) {
        let slot = match self.lanes.get_mut(lane as usize) {
            Some(slot) if slot.generation == generation && slot.outstanding > 0 => slot,
            _ => return self.on_stale(),
        };
        slot.outstanding -= 1;
        if of_connect {
            slot.result = if slot.in_two_steps { slot.finish_in_two_steps(result) } else { result };
        } else if result < 0 {
            tracing::debug!(lane, errno = -result, "a lane's reset failed; it gets another socket");
            slot.socket = None;
        }
        if slot.outstanding > 0 {
            return;
        }
        slot.generation = slot.generation.wrapping_add(1);
        let result = -slot.result;
        if matches!(result, libc::EINPROGRESS | libc::EALREADY) && !slot.cancelled && slot.retries < RETRIES_MAX {
            slot.retries += 1;
            return self.issue_lane(lane);
        }
        if slot.is_graceful() {
            slot.socket = None;
        } else if slot.socket.is_none() {
            // If there is none to be had now, the next knock asks again.
            let _ = self.replace_socket(lane);
        }
        self.end_knock(lane, if result == 0 { Ok(()) } else { Err(Errno(result)) });
    }

    fn end_knock(&mut self, lane: u32, result: Result<(), Errno>) {
        let slot = &mut self.lanes[lane as usize];
        slot.busy = false;
        self.lanes_busy -= 1;
        self.found.push(Completion { token: slot.token, event: Event::Knocked(result) });
    }

    /// Opens a lane's socket anew.
    fn replace_socket(&mut self, lane: u32) -> io::Result<()> {
        let slot = &mut self.lanes[lane as usize];
        let was_fixed = std::mem::take(&mut slot.fixed);
        let opened = slot.open();
        let fd = slot.socket.as_ref().map_or(-1, Socket::raw);
        if was_fixed || (slot.kind.is_recycled() && lane < self.fixed_count) {
            // If the old one cannot be taken out of the table it stays there, unused, until the ring is closed.
            slot.fixed = self.queue.register_file(lane, fd).is_ok() && fd >= 0;
        }
        if let Err(error) = &opened {
            tracing::debug!(lane, %error, "a lane has no socket");
        }
        opened
    }

    // --- the rest

    fn start(&mut self, token: Token, fd: i32, work: Work) {
        let index = self.slots.take(token, fd, work);
        self.tokens.note(token, index);
        self.issue_slot(index);
    }

    fn issue_slot(&mut self, index: u32) {
        if self.backlog.is_empty() && self.try_issue_slot(index).is_ok() {
            return;
        }
        self.slots.get(index).expect("issued only while in use").waiting = true;
        self.backlog.push_back(Waiting::Slot(index));
    }

    fn try_issue_slot(&mut self, index: u32) -> Result<(), NoRoom> {
        let slot = self.slots.get(index).expect("issued only while in use");
        let data = user_data(kind::SLOT, slot.generation, index);
        match slot.work {
            Work::Connect(to) => self.queue.push_connect(File::Fd(slot.fd), RawAddr::new(&to), data)?,
            Work::ConnectPoll => self.queue.push_poll(File::Fd(slot.fd), libc::POLLOUT, data)?,
            Work::Accept => self.queue.push_accept(slot.fd, self.multishot_accept, data)?,
            Work::Poll { write: false } => {
                self.queue.push_poll(File::Fd(slot.fd), libc::POLLIN | libc::POLLRDHUP, data)?
            }
            Work::Poll { write: true } => self.queue.push_poll(File::Fd(slot.fd), libc::POLLOUT, data)?,
            Work::Free => unreachable!("`get` gives none that is free"),
        }
        slot.waiting = false;
        Ok(())
    }

    fn on_slot(&mut self, index: u32, generation: u32, result: i32, more: bool) {
        let slot = match self.slots.get(index) {
            Some(slot) if slot.generation == generation && !slot.waiting => *slot,
            _ => {
                if let Ok(fd) = u32::try_from(result) {
                    tracing::error!(fd, "a completion of no living operation");
                }
                return self.on_stale();
            }
        };
        let errno = Errno(-result.min(0));
        match slot.work {
            Work::Connect(_) if matches!(errno.0, libc::EINPROGRESS | libc::EALREADY) && !slot.cancelled => {
                self.slots.get(index).expect("just found").work = Work::ConnectPoll;
                self.issue_slot(index);
            }
            Work::Connect(_) => self.end_slot(index, Event::Connected(if result < 0 { Err(errno) } else { Ok(()) })),
            Work::ConnectPoll => {
                let verdict = match take_error(slot.fd) {
                    _ if result < 0 => Err(errno),
                    Ok(0) => Ok(()),
                    Ok(errno) => Err(Errno(errno)),
                    Err(error) => Err(errno_of(&error)),
                };
                self.end_slot(index, Event::Connected(verdict));
            }
            Work::Poll { .. } => {
                let ends = result > 0 && result & i32::from(libc::POLLRDHUP) != 0;
                self.end_slot(index, Event::Ready { ends });
            }
            Work::Accept => {
                if result >= 0 {
                    // SAFETY: an accept's positive result is a descriptor made for us (io_uring_enter(2)), nobody
                    // else's.
                    let socket = Socket::from_owned(unsafe { OwnedFd::from_raw_fd(result) });
                    self.found.push(Completion { token: slot.token, event: Event::Accepted(Ok(socket)) });
                }
                if more {
                    return;
                }
                let unknown = errno.0 == libc::EINVAL && self.multishot_accept;
                if slot.cancelled {
                    self.end_slot(index, Event::Accepted(Err(Errno(libc::ECANCELED))));
                } else if result >= 0 || unknown || super::is_of_the_connection(errno) {
                    // A listener that is none gives EINVAL to both kinds, so this happens at most once.
                    self.multishot_accept &= !unknown;
                    self.issue_slot(index);
                } else {
                    self.end_slot(index, Event::Accepted(Err(errno)));
                }
            }
            Work::Free => unreachable!("`get` gives none that is free"),
        }
    }

    fn end_slot(&mut self, index: u32, event: Event) {
        let token = self.slots.get(index).expect("ended only while in use").token;
        self.slots.free(index);
        self.found.push(Completion { token, event });
    }

    fn on_stale(&mut self) {
        self.stale += 1;
        tracing::warn!(stale = self.stale, "a completion of no living operation");
        debug_assert!(false, "a completion of no living operation");
    }

    fn cancel_in_kernel(&mut self, target: u64) {
        if !self.backlog.is_empty() || self.queue.push_cancel(target, user_data(kind::CANCEL, 0, 0)).is_err() {
            self.backlog.push_back(Waiting::Cancel(target));
        }
    }

    fn drain_backlog(&mut self) {
        while let Some(waiting) = self.backlog.pop_front() {
            let result = match waiting {
                Waiting::Lane(lane) if self.lanes[lane as usize].line.is_some() => self.try_go_on(lane),
                Waiting::Lane(lane) if self.lanes[lane as usize].cancelled => {
                    self.lanes[lane as usize].waiting = false;
                    self.end_knock(lane, Err(Errno(libc::ECANCELED)));
                    Ok(())
                }
                Waiting::Lane(lane) => self.try_issue_lane(lane),
                Waiting::Slot(index) => match *self.slots.get(index).expect("waiting is in use") {
                    slots::Slot { cancelled: true, work, .. } => {
                        self.end_slot(index, cancelled(work));
                        Ok(())
                    }
                    _ => self.try_issue_slot(index),
                },
                Waiting::Cancel(target) => self.queue.push_cancel(target, user_data(kind::CANCEL, 0, 0)),
            };
            if result.is_err() {
                return self.backlog.push_front(waiting);
            }
        }
    }

    /// Takes what the kernel has completed; whether the waker rang.
    fn reap(&mut self) -> bool {
        let mut rung = false;
        // Read when first asked for: all that is there now came before.
        let mut now = None;
        while let Some((data, result, more)) = self.queue.pop() {
            let (index, generation) = ((data & INDEX_MASK) as u32, (data >> 24) as u32);
            match (data >> 56) as u8 {
                kind::KNOCK => self.on_lane(index, generation, result, true),
                kind::RESET => self.on_lane(index, generation, result, false),
                kind::SLOT => self.on_slot(index, generation, result, more),
                kind::WAKER => {
                    self.waker.clear();
                    self.waker_armed = false;
                    rung = true;
                }
                kind::TIMER if generation == self.timer.uses => self.timer.at = None,
                kind::TIMER | kind::CANCEL => {}
                kind::CUT => self.on_cut(index, generation, result),
                step if step & kind::STEP != 0 => {
                    let now = *now.get_or_insert_with(monotonic_now);
                    self.on_step(index, generation, Step::from_bits(step & !kind::STEP), result, now);
                }
                _ => self.on_stale(),
            }
        }
        rung
    }

    fn arm_waker(&mut self) {
        if !self.waker_armed {
            let data = user_data(kind::WAKER, 0, 0);
            self.waker_armed = self.queue.push_poll(File::Fd(self.waker.fd().0), libc::POLLIN, data).is_ok();
        }
    }

    /// Sees to it that a completion comes at `deadline` where the system call itself cannot be timed.
    fn arm_timer(&mut self, now: Instant, deadline: Instant) {
        if self.queue.timed_enter() || self.timer.at.is_some_and(|at| at <= deadline) {
            return;
        }
        if self.timer.at.is_some() {
            let old = user_data(kind::TIMER, self.timer.uses, 0);
            if self.queue.push_timer_remove(old, user_data(kind::CANCEL, 0, 0)).is_err() {
                return;
            }
        }
        self.timer.uses = self.timer.uses.wrapping_add(1);
        let data = user_data(kind::TIMER, self.timer.uses, 0);
        let pushed = self.queue.push_timer(deadline.since(now), data);
        self.timer.at = pushed.is_ok().then_some(deadline);
    }
}

impl Io for Ring {
    fn now(&self) -> Instant {
        monotonic_now()
    }

    fn open_lanes(&mut self, kind: LaneKind, count: u32) -> io::Result<Range<u32>> {
        let first = self.lanes.len() as u32;
        super::lane::try_open(kind)?;
        for number in first..first.saturating_add(count).min(LANES_MAX) {
            let mut lane = LaneSlot::new(kind);
            lane.line = kind.talks().then(|| Box::new(Line::new(self.quiet)));
            if kind.is_recycled() {
                match lane.open() {
                    Ok(()) => {}
                    Err(error) if number == first => return Err(error),
                    Err(_) => break,
                }
                let fd = lane.socket.as_ref().expect("just opened").raw();
                lane.fixed = number < self.fixed_count && self.queue.register_file(number, fd).is_ok();
            }
            self.lanes.push(lane);
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
        let slot = &self.lanes[lane.0 as usize];
        match &slot.line {
            None => slot.looked,
            Some(line) if line.in_call && slot.kind.way == Way::Stream => slot.socket.as_ref().and_then(tcp_facts),
            Some(_) => None,
        }
    }

    fn submit(&mut self, token: Token, op: Op) {
        match op {
            Op::Knock { lane: Lane(lane), to, look } => self.knock(token, lane, to, look),
            Op::Call { lane: Lane(lane), to } => self.call(token, lane, to),
            Op::Talk { lane: Lane(lane) } => self.talk(token, lane),
            Op::Hang { lane: Lane(lane), end } => self.hang(token, lane, end),
            Op::Connect { fd, to } => self.start(token, fd.0, Work::Connect(to)),
            Op::Accept { fd } => self.start(token, fd.0, Work::Accept),
            Op::Poll { fd, interest } => {
                self.start(token, fd.0, Work::Poll { write: interest == Interest::Write });
            }
        }
    }

    fn cancel(&mut self, token: Token) {
        let Some(place) = self.tokens.find(token) else { return };
        if place & LANE_PLACE != 0 {
            let lane = place & !LANE_PLACE;
            let slot = &mut self.lanes[lane as usize];
            if slot.busy && slot.token == token && !slot.cancelled {
                slot.cancelled = true;
                let (waiting, generation) = (slot.waiting, slot.generation);
                if let Some(line) = &mut slot.line {
                    line.on_cancel();
                    self.go_on(lane);
                } else if !waiting {
                    self.cancel_in_kernel(user_data(kind::KNOCK, generation, lane));
                }
            }
        } else if let Some(slot) = self.slots.get(place)
            && slot.token == token
            && !slot.cancelled
        {
            slot.cancelled = true;
            let (waiting, generation) = (slot.waiting, slot.generation);
            if !waiting {
                self.cancel_in_kernel(user_data(kind::SLOT, generation, place));
            }
        }
    }

    fn wait(&mut self, deadline: Option<Instant>, completions: &mut Vec<Completion>) {
        let before = completions.len();
        completions.append(&mut self.found);
        loop {
            self.drain_backlog();
            self.arm_waker();
            let now = deadline.map(|_| monotonic_now());
            let left = deadline.zip(now).map(|(deadline, now)| deadline.since(now));
            let block = completions.len() == before
                && self.found.is_empty()
                && self.backlog.is_empty()
                && self.waker_armed
                && left != Some(Duration::ZERO)
                && self.waker.park();
            if let (true, Some(deadline), Some(now)) = (block, deadline, now) {
                self.arm_timer(now, deadline);
            }
            self.queue.enter(block, left);
            let rung = self.reap() | self.waker.unpark();
            completions.append(&mut self.found);
            if rung || completions.len() > before || left == Some(Duration::ZERO) {
                return;
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let lanes = self.lanes.iter().filter(|l| l.busy).map(|l| l.token);
        let tokens: Vec<Token> = lanes.chain(self.slots.tokens()).collect();
        for token in tokens {
            self.cancel(token);
        }
        let deadline = monotonic_now() + DROP_MAX;
        // Sockets that were accepted and never given out are closed with these.
        let mut completions = Vec::new();
        while self.lanes_busy + self.slots.in_use() > 0 && monotonic_now() < deadline {
            self.wait(Some(deadline), &mut completions);
        }
        self.hang_up_all();
        self.queue.unregister_files();
    }
}

fn cancelled(work: Work) -> Event {
    let errno = Errno(libc::ECANCELED);
    match work {
        Work::Connect(_) | Work::ConnectPoll => Event::Connected(Err(errno)),
        Work::Accept => Event::Accepted(Err(errno)),
        Work::Poll { .. } | Work::Free => Event::Ready { ends: false },
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}
