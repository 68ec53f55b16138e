//! The two queues shared with the kernel, and the only code that hands it pointers.
//!
//! Promise: but for what talking lanes say and hear (`line` keeps those) nothing is lent to the kernel for longer than
//! one system call. Addresses and times are read when an entry is consumed (IORING_FEAT_SUBMIT_STABLE, 5.5, without which no queue is opened), so they lie in a table that has one
//! place per entry of the submission queue: a place is written again only when its entry has been consumed.

use crate::kernel::socket::RawAddr;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};
use std::io;
use std::time::Duration;

/// Entries pushed before they are handed over: 16 knocks. So few that a connect's clock does not run long before its
/// SYN leaves, so many that the system call is a hundredth of the work.
const FLUSH_AT: usize = 32;

/// What an operation acts on.
#[derive(Clone, Copy, Debug)]
pub(super) enum File {
    /// A place in the table of registered files.
    Fixed(u32),
    /// A descriptor.
    Fd(i32),
}

/// An entry for either kind of file.
macro_rules! on_file {
    ($file:expr, |$fd:ident| $build:expr) => {
        match $file {
            File::Fixed(place) => {
                let $fd = Fixed(place);
                $build
            }
            File::Fd(number) => {
                let $fd = Fd(number);
                $build
            }
        }
    };
}

/// Steps of a talk, each with its user data.
pub(super) struct Chain {
    pub(super) connect: Option<(RawAddr, u64)>,
    pub(super) say: Option<(*const u8, u32, u64)>,
    pub(super) hear: Option<(*mut u8, u32, u64)>,
    /// A send that is linked to a receive posts a completion only if it fails, and then silences the receive.
    pub(super) quiet: bool,
}

/// In the `ioprio` of a receive: IORING_RECVSEND_POLL_FIRST (io_uring_prep_recv(3)).
const RECV_POLL_FIRST: u16 = 1;

pub(super) struct Queue {
    ring: IoUring,
    /// See the module. Boxed, never resized: its places do not move.
    addresses: Box<[RawAddr]>,
    unspec: Box<RawAddr>,
    timespec: Box<Timespec>,
    /// Entries ever pushed; the next entry's place is its remainder.
    pushed: u32,
    /// io_uring_enter takes a timeout (IORING_FEAT_EXT_ARG).
    timed_enter: bool,
    /// A receive may wait for the first byte before it looks (IORING_RECVSEND_POLL_FIRST, 5.19).
    poll_first: bool,
    enter_flags: EnterFlags,
}

/// No room in the submission queue, and the kernel takes nothing now: its completion queue has overflowed or it lacks
/// memory. Collect completions and try again.
pub(super) struct NoRoom;

impl Queue {
    pub(super) fn new(ring: IoUring, timed_enter: bool, poll_first: bool) -> Queue {
        let entries = ring.params().sq_entries() as usize;
        debug_assert!(entries.is_power_of_two() && ring.params().is_feature_submit_stable());
        let mut enter_flags = EnterFlags::empty();
        if ring.params().is_feature_no_iowait() {
            // An idle worker is idle, not waiting for a disk.
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        Queue {
            ring,
            addresses: vec![RawAddr::unspec(); entries].into(),
            unspec: Box::new(RawAddr::unspec()),
            timespec: Box::new(Timespec::new()),
            pushed: 0,
            timed_enter,
            poll_first,
            enter_flags,
        }
    }

    pub(super) fn timed_enter(&self) -> bool {
        self.timed_enter
    }

    /// Makes sure that `count` entries fit, so that a chain is never cut.
    pub(super) fn reserve(&mut self, count: usize) -> Result<(), NoRoom> {
        let queue = self.ring.submission();
        let (free, queued) = (queue.capacity() - queue.len(), queue.len());
        drop(queue);
        if queued + count > FLUSH_AT || free < count {
            self.flush();
            let queue = self.ring.submission();
            if queue.capacity() - queue.len() < count {
                return Err(NoRoom);
            }
        }
        Ok(())
    }

    /// The caller has reserved room, and whatever `entry` points to stays until the kernel has consumed it.
    fn push(&mut self, entry: Entry, user_data: u64) {
        let entry = entry.user_data(user_data);
        // SAFETY: the entries built in this file point into `addresses`, `unspec` or `timespec` or nowhere (see the
        // module for how long those stay), or where the caller of `push_talk` answers for. Descriptors are plain
        // numbers to the kernel.
        unsafe { self.ring.submission().push(&entry) }.expect("room was reserved");
        self.pushed = self.pushed.wrapping_add(1);
    }

    /// Puts an address where it stays until the entry pushed next is consumed.
    fn lend(&mut self, address: RawAddr) -> (*const libc::sockaddr, libc::socklen_t) {
        let place = self.pushed as usize & (self.addresses.len() - 1);
        self.addresses[place] = address;
        (self.addresses[place].as_ptr(), self.addresses[place].len())
    }

    /// connect, then dissolve: the second whatever came of the first.
    pub(super) fn push_knock(&mut self, file: File, to: RawAddr, connect: u64, reset: u64) -> Result<(), NoRoom> {
        self.reserve(2)?;
        let (address, len) = self.lend(to);
        let entry = on_file!(file, |fd| opcode::Connect::new(fd, address, len).build());
        self.push(entry.flags(Flags::IO_HARDLINK), connect);
        self.push_dissolve_unchecked(file, reset);
        Ok(())
    }

    pub(super) fn push_connect(&mut self, file: File, to: RawAddr, user_data: u64) -> Result<(), NoRoom> {
        self.reserve(1)?;
        let (address, len) = self.lend(to);
        self.push(on_file!(file, |fd| opcode::Connect::new(fd, address, len).build()), user_data);
        Ok(())
    }

    /// connect(AF_UNSPEC).
    pub(super) fn push_dissolve(&mut self, file: File, user_data: u64) -> Result<(), NoRoom> {
        self.reserve(1)?;
        self.push_dissolve_unchecked(file, user_data);
        Ok(())
    }

    fn push_dissolve_unchecked(&mut self, file: File, user_data: u64) {
        let (address, len) = (self.unspec.as_ptr(), self.unspec.len());
        self.push(on_file!(file, |fd| opcode::Connect::new(fd, address, len).build()), user_data);
    }

    /// A chain of connect, send and receive, as far as each is asked for.
    ///
    /// # Safety
    /// What `say` and `hear` describe stays, and nobody writes to the one or touches the other, until the completions of
    /// these steps have been reaped or they cannot come any more.
    pub(super) unsafe fn push_talk(&mut self, file: File, chain: &Chain) -> Result<(), NoRoom> {
        self.reserve(3)?;
        if let Some((to, data)) = chain.connect {
            let (address, len) = self.lend(to);
            let entry = on_file!(file, |fd| opcode::Connect::new(fd, address, len).build());
            let more = chain.say.is_some() || chain.hear.is_some();
            self.push(entry.flags(if more { Flags::IO_LINK } else { Flags::empty() }), data);
        }
        if let Some((bytes, len, data)) = chain.say {
            // WAITALL: a short send breaks the chain, so that nobody waits for the answer to half a question.
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            let entry = on_file!(file, |fd| opcode::Send::new(fd, bytes, len).flags(flags).build());
            let quiet = if chain.quiet { Flags::SKIP_SUCCESS } else { Flags::empty() };
            let linked = if chain.hear.is_some() { Flags::IO_LINK | quiet } else { Flags::empty() };
            self.push(entry.flags(linked), data);
        }
        if let Some((bytes, len, data)) = chain.hear {
            let first = if self.poll_first { RECV_POLL_FIRST } else { 0 };
            self.push(on_file!(file, |fd| opcode::Recv::new(fd, bytes, len).ioprio(first).build()), data);
        }
        Ok(())
    }

    pub(super) fn push_accept(&mut self, fd: i32, multishot: bool, user_data: u64) -> Result<(), NoRoom> {
        self.reserve(1)?;
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let entry = if multishot {
            opcode::AcceptMulti::new(Fd(fd)).flags(flags).build()
        } else {
            opcode::Accept::new(Fd(fd), std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build()
        };
        self.push(entry, user_data);
        Ok(())
    }

    /// One-shot: multishot polls do not exist on 5.10 and lose edges under load on later ones.
    pub(super) fn push_poll(&mut self, file: File, events: i16, user_data: u64) -> Result<(), NoRoom> {
        self.reserve(1)?;
        self.push(on_file!(file, |fd| opcode::PollAdd::new(fd, events as u32).build()), user_data);
        Ok(())
    }

    pub(super) fn push_cancel(&mut self, target: u64, user_data: u64) -> Result<(), NoRoom> {
        self.reserve(1)?;
        self.push(opcode::AsyncCancel::new(target).build(), user_data);
        Ok(())
    }

    /// A completion after `after`, where [`wait`](Self::wait) cannot be given a time.
    pub(super) fn push_timer(&mut self, after: Duration, user_data: u64) -> Result<(), NoRoom> {
        self.reserve(1)?;
        // Two unconsumed timers would share this; then the earlier one takes the later one's time, and the worker
        // looks at its clock all the same.
        *self.timespec = Timespec::from(after);
        self.push(opcode::Timeout::new(&raw const *self.timespec).build(), user_data);
        Ok(())
    }

    pub(super) fn push_timer_remove(&mut self, target: u64, user_data: u64) -> Result<(), NoRoom> {
        self.reserve(1)?;
        self.push(opcode::TimeoutRemove::new(target).build(), user_data);
        Ok(())
    }

    /// Hands over what is queued. What the kernel does not take stays queued. GETEVENTS makes a deferring ring run the
    /// resets of this batch now, while its sockets are in the cache: a tenth of a knock's cost.
    pub(super) fn flush(&mut self) {
        loop {
            let queued = self.ring.submission().len();
            if queued == 0 {
                return;
            }
            let flags = EnterFlags::GETEVENTS.bits();
            // SAFETY: no argument is passed; the entries are those of `push`.
            let taken = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued as u32, 0, flags, None) };
            match taken {
                // Before SUBMIT_ALL (5.18) a bad entry ends the batch; its error is a completion like any other.
                Ok(taken) if taken > 0 => {}
                Ok(_) => return,
                Err(error) => return expected(&error),
            }
        }
    }

    /// Hands over what is queued, lets completions be made (with DEFER_TASKRUN only GETEVENTS does), and if `wait`
    /// stays until there is one or the time is up. `None`: without end.
    pub(super) fn enter(&mut self, wait: bool, timeout: Option<Duration>) {
        let queued = self.ring.submission().len() as u32;
        // One completion is enough to come back: waiting for more would add their time to this one's.
        let want = u32::from(wait);
        let flags = EnterFlags::GETEVENTS;
        let submitter = self.ring.submitter();
        let result = match timeout {
            Some(timeout) if wait && self.timed_enter => {
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                let flags = flags | EnterFlags::EXT_ARG | self.enter_flags;
                // SAFETY: `args` and the time it points to outlive the call; EXT_ARG says what they are.
                unsafe { submitter.enter(queued, want, flags.bits(), Some(&args)) }
            }
            _ => {
                let flags = if wait { flags | self.enter_flags } else { flags };
                // SAFETY: no argument is passed; the entries are those of `push`.
                unsafe { submitter.enter::<libc::sigset_t>(queued, want, flags.bits(), None) }
            }
        };
        if let Err(error) = result {
            expected(&error);
        }
    }

    /// The oldest completion: user data, result, and whether more follow from the same entry.
    pub(super) fn pop(&mut self) -> Option<(u64, i32, bool)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data(), entry.result(), cqueue::more(entry.flags())))
    }

    pub(super) fn register_files(&self, count: u32) -> io::Result<()> {
        self.ring.submitter().register_files(&vec![-1; count as usize])
    }

    pub(super) fn register_file(&self, place: u32, fd: i32) -> io::Result<()> {
        self.ring.submitter().register_files_update(place, &[fd])?;
        Ok(())
    }

    pub(super) fn unregister_files(&self) {
        // There may be no table; then there is nothing to give back.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// What io_uring_enter may say on a good day: the time is up, a signal came, completions have overflowed or there is no
/// memory for a request (both: come again). Anything else means that the ring is not what we believe it is.
fn expected(error: &io::Error) {
    match error.raw_os_error() {
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
        Some(libc::ENOMEM) => tracing::warn!("io_uring_enter: the kernel is out of memory"),
        // Completions were lost for want of memory (5.19). Their operations end by their owners' timeouts.
        Some(libc::EBADR) => tracing::error!("io_uring_enter: completions were lost, the kernel is out of memory"),
        _ => panic!("io_uring_enter on a ring of this thread's own: {error}"),
    }
}
