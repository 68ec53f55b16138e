//! The talking half of a lane: its two buffers, and what of its call the kernel has in hand.
//!
//! ```text
//!              connect ──────► say ──────► hear ──► over
//!  on its way     │ linked      │ linked     │
//!  after all:  POLLOUT       the rest     POLLIN          the kernel gave a step up instead of waiting (5.10)
//! ```
//! One operation is a few steps, several of them in the kernel at a time. Each completion is told to
//! [`on_done`](Line::on_done), and [`next`](Line::next) says what to do then; nothing else decides.
//!
//! Promise: what the kernel may read or write is neither moved nor freed nor shown to anybody while a step is out.
//! While an operation is in flight `outgoing` is another buffer than the one that was lent; whatever is put there is
//! thrown away when the operation ends.

use crate::io::{Errno, HEAR_MAX, Leg, Trouble};
use crate::time::Instant;

/// A step that the kernel can have in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Connect = 1,
    Say = 2,
    Hear = 4,
    /// A poll, for connect or recv(2) that would not wait.
    Poll = 8,
    /// connect(AF_UNSPEC).
    Hang = 16,
}

impl Step {
    pub(super) fn from_bits(bits: u8) -> Option<Step> {
        [Step::Connect, Step::Say, Step::Hear, Step::Poll, Step::Hang].into_iter().find(|step| *step as u8 == bits)
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: a completion is to come.
    Wait,
    /// Connect, and the rest behind it if that can be linked.
    Connect,
    /// Say the rest; hear behind it unless somebody listens already.
    Say {
        and_hear: bool,
    },
    Hear,
    PollConnect,
    PollHear,
    Hang,
    /// Cancel what is out.
    Cut,
    /// The operation is over.
    End,
}

pub(super) struct Line {
    /// The caller's.
    pub(super) outgoing: Vec<u8>,
    /// The kernel's, while an operation is in flight.
    lent: Vec<u8>,
    /// Empty until the first call.
    ear: Vec<u8>,
    heard: usize,
    said: usize,
    /// A call was begun, and there was no hanging up yet.
    pub(super) in_call: bool,
    pub(super) connected_at: Option<Instant>,
    /// Steps in the kernel's hand, as bits.
    out: u8,
    /// Steps whose cancel has been asked for.
    cut: bool,
    hanging: bool,
    cancelled: bool,
    must_poll: bool,
    /// Sends post a completion only if they fail.
    quiet_say: bool,
    outcome: Option<Result<usize, Trouble>>,
}

impl Line {
    pub(super) fn new(quiet_say: bool) -> Line {
        Line {
            outgoing: Vec::new(),
            lent: Vec::new(),
            ear: Vec::new(),
            heard: 0,
            said: 0,
            in_call: false,
            connected_at: None,
            out: 0,
            cut: false,
            hanging: false,
            cancelled: false,
            must_poll: false,
            quiet_say,
            outcome: None,
        }
    }

    /// A call begins, or a talk within one.
    pub(super) fn begin(&mut self, is_call: bool) {
        debug_assert!(self.out == 0 && self.lent.is_empty());
        if self.ear.is_empty() {
            self.ear = vec![0; HEAR_MAX];
        }
        std::mem::swap(&mut self.outgoing, &mut self.lent);
        if is_call {
            (self.in_call, self.connected_at) = (true, None);
        }
        (self.heard, self.said, self.outcome) = (0, 0, None);
        (self.cut, self.cancelled, self.must_poll, self.hanging) = (false, false, false, false);
    }

    pub(super) fn begin_hang(&mut self) {
        debug_assert!(self.out == 0);
        (self.hanging, self.outcome, self.heard) = (true, None, 0);
    }

    /// The operation is over: the buffers are the caller's again.
    pub(super) fn end(&mut self) -> Result<usize, Trouble> {
        debug_assert!(self.out == 0);
        let result = self.outcome.take().unwrap_or(Err(self.trouble(libc::ECANCELED)));
        self.lent.clear();
        std::mem::swap(&mut self.outgoing, &mut self.lent);
        self.lent.clear();
        result
    }

    /// There is no call any more, and nothing of it is left to be heard.
    pub(super) fn forget_call(&mut self) {
        (self.in_call, self.hanging, self.connected_at, self.heard) = (false, false, None, 0);
    }

    pub(super) fn is_hanging(&self) -> bool {
        self.hanging
    }

    pub(super) fn heard(&self) -> &[u8] {
        &self.ear[..self.heard]
    }

    /// What is still to be said.
    pub(super) fn to_say(&self) -> &[u8] {
        &self.lent[self.said..]
    }

    /// Where the answer goes.
    pub(super) fn ear(&mut self) -> (*mut u8, u32) {
        (self.ear.as_mut_ptr(), self.ear.len() as u32)
    }

    /// The kernel may still write to these: they are never freed.
    pub(super) fn leak(&mut self) {
        std::mem::forget((std::mem::take(&mut self.lent), std::mem::take(&mut self.ear)));
    }

    pub(super) fn is_out(&self, step: Step) -> bool {
        self.out & step as u8 != 0
    }

    pub(super) fn is_any_out(&self) -> bool {
        self.out != 0
    }

    /// These steps are in the kernel's hand now.
    pub(super) fn sent(&mut self, steps: &[Step]) {
        for step in steps {
            debug_assert!(!self.is_out(*step));
            self.out |= *step as u8;
        }
    }

    fn back(&mut self, step: Step) {
        self.out &= !(step as u8);
    }

    pub(super) fn on_cancel(&mut self) {
        self.cancelled = !self.hanging;
    }

    pub(super) fn on_cut(&mut self) {
        self.cut = true;
    }

    /// The cancel has found nothing, but the steps are still out: they were between two places. Once more.
    pub(super) fn on_missed_cut(&mut self) {
        self.cut = false;
    }

    /// The whole call has come to nothing.
    pub(super) fn fail(&mut self, leg: Leg, errno: i32) {
        self.outcome = Some(Err(Trouble { leg, errno: Errno(errno) }));
    }

    pub(super) fn next(&self) -> Next {
        if self.hanging {
            return if self.outcome.is_some() { Next::End } else { self.unless_out(Next::Hang) };
        }
        if self.outcome.is_some() || self.cancelled {
            return match self.out {
                0 => Next::End,
                _ if self.cut => Next::Wait,
                _ => Next::Cut,
            };
        }
        if self.connected_at.is_none() {
            return self.unless_out(if self.must_poll { Next::PollConnect } else { Next::Connect });
        }
        if self.is_out(Step::Say) {
            return Next::Wait;
        }
        if self.said < self.lent.len() {
            return Next::Say { and_hear: !self.is_out(Step::Hear) && !self.must_poll };
        }
        self.unless_out(if self.must_poll { Next::PollHear } else { Next::Hear })
    }

    fn unless_out(&self, next: Next) -> Next {
        if self.out == 0 { next } else { Next::Wait }
    }

    /// A step has come back with this result: 0 or more, or a negative errno. `now` is for a connect, `failure` what a
    /// poll for a connect has found (SO_ERROR).
    pub(super) fn on_done(&mut self, step: Step, result: i32, now: Instant, failure: impl FnOnce() -> i32) {
        self.back(step);
        match step {
            Step::Connect => match -result {
                ..=0 => self.on_connected(now),
                libc::EINPROGRESS | libc::EALREADY => self.must_poll = true,
                errno => self.settle(Leg::Connect, errno),
            },
            Step::Say => {
                if self.quiet_say && self.connected_at.is_some() {
                    // A failure silences what is linked behind it.
                    self.back(Step::Hear);
                }
                match -result {
                    // A piece. Nothing at all is no answer to something.
                    ..0 => self.said += result as usize,
                    0 => self.settle(Leg::Say, libc::EIO),
                    libc::EINTR | libc::EAGAIN => {}
                    errno => self.settle(Leg::Say, errno),
                }
            }
            Step::Hear => {
                if self.quiet_say && self.connected_at.is_some() && self.is_out(Step::Say) {
                    self.back(Step::Say);
                    self.said = self.lent.len();
                }
                match -result {
                    ..=0 if self.outcome.is_none() => {
                        self.heard = result as usize;
                        self.outcome = Some(Ok(self.heard));
                    }
                    ..=0 => {}
                    libc::EAGAIN => self.must_poll = true,
                    libc::EINTR => {}
                    errno => self.settle(Leg::Hear, errno),
                }
            }
            Step::Poll => {
                self.must_poll = false;
                if self.connected_at.is_none() && result >= 0 {
                    match failure() {
                        0 => self.on_connected(now),
                        errno => self.settle(Leg::Connect, errno),
                    }
                }
            }
            Step::Hang => self.outcome = Some(Ok(0)),
        }
    }

    fn on_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
        // What was behind the connect has only now become something that a cancel can find.
        self.cut = false;
    }

    /// The first cause counts. ECANCELED is no cause of its own: the step before has failed, came short or is to be
    /// polled for, or the caller wished it.
    fn settle(&mut self, leg: Leg, errno: i32) {
        if errno != libc::ECANCELED && self.outcome.is_none() {
            self.fail(leg, errno);
            // What is linked behind a connect comes back by itself.
            self.cut |= leg == Leg::Connect;
        }
    }

    /// What the operation was at.
    fn trouble(&self, errno: i32) -> Trouble {
        let leg = match self.connected_at {
            None => Leg::Connect,
            Some(_) if self.said < self.lent.len() => Leg::Say,
            Some(_) => Leg::Hear,
        };
        Trouble { leg, errno: Errno(errno) }
    }
}

#[cfg(test)]
mod tests;
