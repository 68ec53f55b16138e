//! Calls on a ring. `line` says what is next; this pushes it.
//!
//! A call is one chain: connect, send, receive. The connect's completion is posted, for the time of it; the send's only if
//! it fails, where the kernel can do that. Hanging up is connect(AF_UNSPEC), an entry of its own.

use super::lanes::LaneSlot;
use super::line::{Next, Step};
use super::queue::{Chain, NoRoom};
use super::{LANE_PLACE, Ring, Waiting, errno_of, kind, user_data};
use crate::io::{Completion, End, Errno, Event, Family, Leg, SAY_MAX, Trouble, Way};
use crate::kernel::lane::{close_cleanly, let_ack_wait};
use crate::kernel::socket::{RawAddr, Socket, take_error};
use crate::time::Instant;
use crate::token::Token;
use std::net::SocketAddr;

fn step_data(step: Step, generation: u32, lane: u32) -> u64 {
    user_data(kind::STEP | step as u8, generation, lane)
}

impl Ring {
    pub(super) fn call(&mut self, token: Token, lane: u32, to: SocketAddr) {
        let refused = match self.lanes.get_mut(lane as usize) {
            None => Some(Errno(libc::EBADF)),
            Some(slot) => match &slot.line {
                None => Some(Errno(libc::EOPNOTSUPP)),
                Some(_) if slot.busy => Some(Errno(libc::EBUSY)),
                Some(line) if line.in_call => Some(Errno(libc::EISCONN)),
                Some(line) if line.outgoing.len() > SAY_MAX => Some(Errno(libc::EMSGSIZE)),
                Some(_) if slot.kind.family != Family::of(&to) => Some(Errno(libc::EAFNOSUPPORT)),
                Some(_) if slot.socket.is_none() => self.replace_socket(lane).err().map(|e| errno_of(&e)),
                Some(_) => None,
            },
        };
        if let Some(errno) = refused {
            return self.refuse(token, lane, Leg::Connect, errno);
        }
        let slot = &mut self.lanes[lane as usize];
        slot.to = to;
        let wait = slot.kind.way == Way::Stream && slot.line.as_ref().is_some_and(|line| !line.outgoing.is_empty());
        if wait != slot.ack_waits
            && let Some(socket) = &slot.socket
        {
            slot.ack_waits = wait;
            let_ack_wait(socket, wait);
        }
        self.begin_talk(token, lane, true);
    }

    pub(super) fn talk(&mut self, token: Token, lane: u32) {
        let refused = match self.lanes.get_mut(lane as usize) {
            None => Some(libc::EBADF),
            Some(slot) => match &slot.line {
                None => Some(libc::EOPNOTSUPP),
                Some(_) if slot.busy => Some(libc::EBUSY),
                Some(line) if !line.in_call || line.connected_at.is_none() => Some(libc::ENOTCONN),
                Some(line) if line.outgoing.len() > SAY_MAX => Some(libc::EMSGSIZE),
                Some(_) => None,
            },
        };
        match refused {
            Some(errno) => self.refuse(token, lane, Leg::Say, Errno(errno)),
            None => self.begin_talk(token, lane, false),
        }
    }

    /// Nothing is begun. What was to be said is not, unless the lane says something else just now.
    fn refuse(&mut self, token: Token, lane: u32, leg: Leg, errno: Errno) {
        if let Some(line) = self.lanes.get_mut(lane as usize).and_then(|slot| slot.line.as_mut()) {
            line.outgoing.clear();
        }
        self.found.push(Completion { token, event: Event::Heard(Err(Trouble { leg, errno })) });
    }

    fn begin_talk(&mut self, token: Token, lane: u32, is_call: bool) {
        let slot = &mut self.lanes[lane as usize];
        slot.begin(token);
        slot.line.as_mut().expect("looked at by the caller").begin(is_call);
        self.lanes_busy += 1;
        self.tokens.note(token, LANE_PLACE | lane);
        self.go_on(lane);
    }

    pub(super) fn hang(&mut self, token: Token, lane: u32, end: End) {
        let Some(slot) = self.lanes.get_mut(lane as usize) else {
            return self.found.push(Completion { token, event: Event::Hung });
        };
        assert!(!slot.busy, "lane {lane} is hung up while an operation is in flight");
        let in_call = slot.line.as_ref().is_some_and(|line| line.in_call);
        let is_reset = end == End::Reset && slot.kind.is_recycled() && slot.socket.is_some();
        if in_call && is_reset {
            slot.begin(token);
            slot.line.as_mut().expect("in a call").begin_hang();
            self.lanes_busy += 1;
            return self.go_on(lane);
        }
        if in_call {
            self.lanes[lane as usize].line.as_mut().expect("in a call").forget_call();
            self.end_socket(lane);
        }
        self.found.push(Completion { token, event: Event::Hung });
    }

    /// The lane's socket is done with. Where each call has its own the next one opens it.
    fn end_socket(&mut self, lane: u32) {
        let slot = &mut self.lanes[lane as usize];
        let socket = slot.socket.take();
        if slot.kind.way == Way::Stream {
            socket.into_iter().for_each(close_cleanly);
        }
        if slot.kind.is_recycled() {
            // If there is none to be had now, the next call asks again.
            let _ = self.replace_socket(lane);
        }
    }

    /// Does what is next on a talking lane.
    pub(super) fn go_on(&mut self, lane: u32) {
        let slot = &mut self.lanes[lane as usize];
        if slot.waiting {
            return;
        }
        if self.backlog.is_empty() && self.try_go_on(lane).is_ok() {
            return;
        }
        self.lanes[lane as usize].waiting = true;
        self.backlog.push_back(Waiting::Lane(lane));
    }

    pub(super) fn try_go_on(&mut self, lane: u32) -> Result<(), NoRoom> {
        let slot = &mut self.lanes[lane as usize];
        let (file, generation, to) = (slot.file(lane), slot.generation, slot.to);
        let line = slot.line.as_mut().expect("only talking lanes come here");
        let data = |step| step_data(step, generation, lane);
        let mut chain = Chain { connect: None, say: None, hear: None, quiet: self.quiet };
        let mut steps = [None; 3];
        let next = line.next();
        let (say, hear) = match next {
            Next::Wait => (false, false),
            Next::Connect => {
                chain.connect = Some((RawAddr::new(&to), data(Step::Connect)));
                steps[0] = Some(Step::Connect);
                (self.linked_calls && !line.to_say().is_empty(), self.linked_calls)
            }
            Next::Say { and_hear } => (true, and_hear),
            Next::Hear => (false, true),
            Next::PollConnect | Next::PollHear => {
                let events = if next == Next::PollConnect { libc::POLLOUT } else { libc::POLLIN };
                self.queue.push_poll(file, events, data(Step::Poll))?;
                line.sent(&[Step::Poll]);
                (false, false)
            }
            Next::Hang => {
                self.queue.push_dissolve(file, data(Step::Hang))?;
                line.sent(&[Step::Hang]);
                (false, false)
            }
            Next::Cut => {
                self.cut(lane)?;
                (false, false)
            }
            Next::End => {
                self.end_talk(lane);
                (false, false)
            }
        };
        let slot = &mut self.lanes[lane as usize];
        let line = slot.line.as_mut().expect("as above");
        if say {
            let bytes = line.to_say();
            chain.say = Some((bytes.as_ptr(), bytes.len() as u32, data(Step::Say)));
            steps[1] = Some(Step::Say);
        }
        if hear {
            let (bytes, len) = line.ear();
            chain.hear = Some((bytes, len, data(Step::Hear)));
            steps[2] = Some(Step::Hear);
        }
        if steps.iter().any(Option::is_some) {
            // SAFETY: the bytes are the line's. It neither frees nor moves nor touches them until these steps, which it
            // is told of here, are back; `Ring::drop` leaks them if they do not come back.
            unsafe { self.queue.push_talk(file, &chain) }?;
            steps.into_iter().flatten().for_each(|step| line.sent(&[step]));
        }
        slot.waiting = false;
        Ok(())
    }

    /// Cancels what is out. Behind a connect that is out nothing can be found yet.
    fn cut(&mut self, lane: u32) -> Result<(), NoRoom> {
        let slot = &mut self.lanes[lane as usize];
        let (generation, line) = (slot.generation, slot.line.as_mut().expect("only talking lanes come here"));
        let all = if line.is_out(Step::Connect) {
            &[Step::Connect][..]
        } else {
            // The receive last: if it is not found, it has become what it is waiting for in the meantime.
            &[Step::Poll, Step::Say, Step::Hear][..]
        };
        let out: Vec<Step> = all.iter().copied().filter(|step| line.is_out(*step)).collect();
        self.queue.reserve(out.len())?;
        for (place, step) in out.iter().enumerate() {
            let answer = if place + 1 == out.len() { kind::CUT } else { kind::CANCEL };
            self.queue.push_cancel(step_data(*step, generation, lane), user_data(answer, generation, lane))?;
        }
        line.on_cut();
        Ok(())
    }

    /// A cancel has come back. If it has found nothing and yet there is something, it came between two steps.
    pub(super) fn on_cut(&mut self, lane: u32, generation: u32, result: i32) {
        let Some(slot) = self.lanes.get_mut(lane as usize) else { return };
        let Some(line) = slot.line.as_mut() else { return };
        if result < 0 && slot.busy && slot.generation == generation && line.is_any_out() {
            line.on_missed_cut();
            self.go_on(lane);
        }
    }

    pub(super) fn on_step(&mut self, lane: u32, generation: u32, step: Option<Step>, result: i32, now: Instant) {
        let (slot, step) = match (self.lanes.get_mut(lane as usize), step) {
            (Some(slot), Some(step)) if slot.generation == generation && slot.busy => (slot, step),
            _ => return self.on_stale(),
        };
        let line = slot.line.as_mut().expect("steps are made on talking lanes only");
        if !line.is_out(step) {
            return self.on_stale();
        }
        let was_connected = line.connected_at.is_some();
        let fd = slot.socket.as_ref().map_or(-1, Socket::raw);
        line.on_done(step, result, now, || take_error(fd).unwrap_or_else(|error| errno_of(&error).0));
        let is_connected = line.connected_at.is_some();
        if is_connected && !was_connected && slot.has_met_itself() {
            slot.line.as_mut().expect("as above").fail(Leg::Connect, libc::ECONNREFUSED);
        }
        if step == Step::Hang && result < 0 {
            tracing::debug!(lane, errno = -result, "a lane's reset failed; it gets another socket");
            slot.socket = None;
            let _ = self.replace_socket(lane);
        }
        self.go_on(lane);
    }

    fn end_talk(&mut self, lane: u32) {
        let slot = &mut self.lanes[lane as usize];
        let line = slot.line.as_mut().expect("only talking lanes come here");
        let event = if line.is_hanging() {
            line.forget_call();
            Event::Hung
        } else {
            Event::Heard(line.end())
        };
        slot.busy = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.lanes_busy -= 1;
        self.found.push(Completion { token: slot.token, event });
    }

    /// At the end of the ring: no call leaves a TIME_WAIT, and what the kernel may still write to is not freed.
    pub(super) fn hang_up_all(&mut self) {
        for LaneSlot { socket, line, .. } in &mut self.lanes {
            let Some(line) = line else { continue };
            if line.is_any_out() {
                line.leak();
            } else if line.in_call
                && let Some(socket) = socket
            {
                // Closing does the rest.
                let _ = socket.dissolve();
            }
        }
    }
}
