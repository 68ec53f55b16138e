//! Calls over epoll: the same steps as the ring's, one system call each, as far as they go without waiting.

use super::{Epoll, LANE_PLACE, connect, errno_of};
use crate::io::{Completion, End, Errno, Event, Family, HEAR_MAX, Lane, Leg, SAY_MAX, Trouble, Way};
use crate::kernel::lane::{close_cleanly, let_ack_wait};
use crate::kernel::socket::RawAddr;
use crate::kernel::sys::monotonic_now;
use crate::time::Instant;
use crate::token::Token;
use std::net::SocketAddr;

/// The talking half of a lane.
#[derive(Default)]
pub(super) struct Line {
    pub(super) outgoing: Vec<u8>,
    /// Empty until the first call.
    ear: Vec<u8>,
    heard: usize,
    said: usize,
    pub(super) in_call: bool,
    pub(super) connected_at: Option<Instant>,
    /// Whose operation is in flight.
    pub(super) busy: Option<Token>,
    to: Option<RawAddr>,
}

impl Line {
    pub(super) fn heard(&self) -> &[u8] {
        &self.ear[..self.heard]
    }

    fn leg(&self) -> Leg {
        match self.connected_at {
            None => Leg::Connect,
            Some(_) if self.said < self.outgoing.len() => Leg::Say,
            Some(_) => Leg::Hear,
        }
    }

    fn end(&mut self) -> Option<Token> {
        self.outgoing.clear();
        self.busy.take()
    }
}

type Heard = Result<usize, Trouble>;

impl Epoll {
    pub(super) fn call(&mut self, token: Token, lane: Lane, to: &SocketAddr) {
        let refused = match self.lanes.get(lane.0 as usize) {
            None => Some(Errno(libc::EBADF)),
            Some(state) => match &state.line {
                None => Some(Errno(libc::EOPNOTSUPP)),
                Some(line) if line.busy.is_some() => Some(Errno(libc::EBUSY)),
                Some(line) if line.in_call => Some(Errno(libc::EISCONN)),
                Some(line) if line.outgoing.len() > SAY_MAX => Some(Errno(libc::EMSGSIZE)),
                Some(_) if state.kind.family != Family::of(to) => Some(Errno(libc::EAFNOSUPPORT)),
                Some(_) if state.socket.is_none() => self.open_socket(lane).err().map(|e| errno_of(&e)),
                Some(_) => None,
            },
        };
        if let Some(errno) = refused {
            return self.refuse(token, lane, Leg::Connect, errno);
        }
        let state = &mut self.lanes[lane.0 as usize];
        state.suspect_at(to);
        let line = state.line.as_mut().expect("looked at above");
        let wait = state.kind.way == Way::Stream && !line.outgoing.is_empty();
        if wait != state.ack_waits
            && let Some(socket) = &state.socket
        {
            state.ack_waits = wait;
            let_ack_wait(socket, wait);
        }
        (line.in_call, line.connected_at) = (true, None);
        line.to = Some(RawAddr::new(to));
        self.begin_talk(token, lane, false);
    }

    pub(super) fn talk(&mut self, token: Token, lane: Lane) {
        let refused = match self.lanes.get(lane.0 as usize).map(|state| &state.line) {
            None => Some(libc::EBADF),
            Some(None) => Some(libc::EOPNOTSUPP),
            Some(Some(line)) if line.busy.is_some() => Some(libc::EBUSY),
            Some(Some(line)) if line.connected_at.is_none() => Some(libc::ENOTCONN),
            Some(Some(line)) if line.outgoing.len() > SAY_MAX => Some(libc::EMSGSIZE),
            Some(Some(_)) => None,
        };
        match refused {
            Some(errno) => self.refuse(token, lane, Leg::Say, Errno(errno)),
            None => self.begin_talk(token, lane, true),
        }
    }

    fn refuse(&mut self, token: Token, lane: Lane, leg: Leg, errno: Errno) {
        if let Some(line) = self.lanes.get_mut(lane.0 as usize).and_then(|state| state.line.as_mut())
            && line.busy.is_none()
        {
            line.outgoing.clear();
        }
        self.found.push(heard(token, Err(Trouble { leg, errno })));
    }

    fn begin_talk(&mut self, token: Token, lane: Lane, may_hear: bool) {
        let line = self.lanes[lane.0 as usize].line.as_mut().expect("looked at by the caller");
        if line.ear.is_empty() {
            line.ear = vec![0; HEAR_MAX];
        }
        (line.said, line.heard, line.busy) = (0, 0, Some(token));
        self.tokens.note(token, LANE_PLACE | lane.0);
        let result = self.go_on(lane, may_hear);
        let completion = self.ended(lane, result);
        self.found.extend(completion);
    }

    /// Something has happened on a talking lane's socket. Edges tell all that is there; what comes later is another one.
    pub(super) fn on_line(&mut self, lane: Lane, events: u32) -> Option<Completion> {
        let result = self.go_on(lane, events != libc::EPOLLOUT as u32);
        self.ended(lane, result)
    }

    fn ended(&mut self, lane: Lane, result: Option<Heard>) -> Option<Completion> {
        let line = self.lanes[lane.0 as usize].line.as_mut()?;
        let result = result?;
        line.heard = result.unwrap_or(0);
        line.end().map(|token| heard(token, result))
    }

    /// Connects, says and hears, as far as it goes. `None`: an event will come.
    fn go_on(&mut self, lane: Lane, may_hear: bool) -> Option<Heard> {
        let state = &mut self.lanes[lane.0 as usize];
        let suspect = state.suspect;
        let (Some(line), Some(socket)) = (&mut state.line, &state.socket) else { return None };
        line.busy?;
        let trouble = |leg, errno| Some(Err(Trouble { leg, errno }));
        if line.connected_at.is_none() {
            match connect(socket.raw(), line.to.as_ref().expect("a call has an address")) {
                Ok(()) | Err(Errno(libc::EISCONN)) => line.connected_at = Some(monotonic_now()),
                Err(Errno(libc::EINPROGRESS | libc::EALREADY)) => return None,
                Err(errno) => return trouble(Leg::Connect, errno),
            }
            if suspect.is_some() && suspect == socket.local_addr().ok() {
                return trouble(Leg::Connect, Errno(libc::ECONNREFUSED));
            }
        }
        while line.said < line.outgoing.len() {
            match socket.send(&line.outgoing[line.said..], false) {
                Ok(said) => line.said += said,
                Err(error) => match errno_of(&error) {
                    Errno(libc::EAGAIN) => return None,
                    Errno(libc::EINTR) => {}
                    errno => return trouble(Leg::Say, errno),
                },
            }
        }
        if !may_hear {
            return None;
        }
        loop {
            match socket.recv(&mut line.ear) {
                Ok(heard) => return Some(Ok(heard)),
                Err(error) => match errno_of(&error) {
                    Errno(libc::EAGAIN) => return None,
                    Errno(libc::EINTR) => {}
                    errno => return trouble(Leg::Hear, errno),
                },
            }
        }
    }

    pub(super) fn cancel_talk(&mut self, token: Token, lane: Lane) {
        let Some(line) = &mut self.lanes[lane.0 as usize].line else { return };
        if line.busy == Some(token) {
            let leg = line.leg();
            line.end();
            self.found.push(heard(token, Err(Trouble { leg, errno: Errno(libc::ECANCELED) })));
        }
    }

    pub(super) fn hang(&mut self, token: Token, lane: Lane, end: End) {
        self.found.push(Completion { token, event: Event::Hung });
        let Some(state) = self.lanes.get_mut(lane.0 as usize) else { return };
        let Some(line) = state.line.as_mut().filter(|line| line.in_call) else { return };
        assert!(line.busy.is_none(), "{lane:?} is hung up while an operation is in flight");
        (line.in_call, line.connected_at, line.heard) = (false, None, 0);
        let Some(socket) = state.socket.take() else { return };
        match (state.kind.way, end) {
            (Way::Stream, End::Reset) if socket.dissolve().is_ok() => state.socket = Some(socket),
            (Way::Stream, End::Fin) => close_cleanly(socket),
            // The next call opens another.
            (Way::Stream | Way::Datagram | Way::Ping | Way::Knock(_), _) => {}
        }
    }

    /// At the end: no call leaves a TIME_WAIT.
    pub(super) fn hang_up_all(&mut self) {
        for state in &self.lanes {
            if let (Some(line), Some(socket)) = (&state.line, &state.socket)
                && line.in_call
            {
                // Closing does the rest.
                let _ = socket.dissolve();
            }
        }
    }
}

fn heard(token: Token, result: Heard) -> Completion {
    Completion { token, event: Event::Heard(result) }
}
