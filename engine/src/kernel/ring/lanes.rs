//! The recycled sockets of a ring and the knocks on them.
//!
//! ```text
//! idle ─ knock → waiting for room → outstanding 2 ─ connect's and reset's completions → outstanding 0 → idle
//! ```
//! Promise: a lane is idle only when every completion of its last knock has come back. A lane whose reset failed gets
//! another socket.

use super::line::Line;
use super::queue::File;
use crate::io::{LaneKind, Mode, TcpFacts, Way};
use crate::kernel::lane::{self, may_meet_itself};
use crate::kernel::socket::{RawAddr, Socket};
use crate::token::Token;
use std::io;
use std::net::SocketAddr;

/// Lanes there may be: what fits the index field of the user data.
pub(super) const LANES_MAX: u32 = 1 << 24;
/// How often a knock is made again because a kernel thread gave it up as in progress (5.10: a non-blocking socket's
/// connect that was handed to io-wq).
pub(super) const RETRIES_MAX: u8 = 3;

pub(super) struct LaneSlot {
    pub(super) token: Token,
    pub(super) to: SocketAddr,
    pub(super) generation: u32,
    /// What connect said: 0 or a negative errno.
    pub(super) result: i32,
    /// Completions that are to come.
    pub(super) outstanding: u8,
    pub(super) retries: u8,
    pub(super) busy: bool,
    pub(super) waiting: bool,
    pub(super) cancelled: bool,
    /// The knock is not linked to its reset: where a socket could meet itself, it is asked who it met.
    pub(super) in_two_steps: bool,
    /// In the table of registered files, at its own number.
    pub(super) fixed: bool,
    /// Its socket holds the handshake's last ACK back.
    pub(super) ack_waits: bool,
    pub(super) kind: LaneKind,
    /// None between the uses of a lane that is not recycled, and where a lost socket could not be replaced.
    pub(super) socket: Option<Socket>,
    /// Of lanes that talk.
    pub(super) line: Option<Box<Line>>,
    /// What the last knock has seen, if it was to look.
    pub(super) looked: Option<TcpFacts>,
    look: bool,
}

// What `io.rs` says a lane costs.
const _: () = assert!(size_of::<LaneSlot>() <= 112 && size_of::<Line>() <= 152);

impl LaneSlot {
    pub(super) fn new(kind: LaneKind) -> LaneSlot {
        LaneSlot {
            token: Token::new(0, 0, 0, 0),
            to: SocketAddr::from(([0, 0, 0, 0], 0)),
            generation: 0,
            result: 0,
            outstanding: 0,
            retries: 0,
            busy: false,
            waiting: false,
            cancelled: false,
            in_two_steps: false,
            fixed: false,
            ack_waits: false,
            kind,
            socket: None,
            line: None,
            looked: None,
            look: false,
        }
    }

    pub(super) fn open(&mut self) -> io::Result<()> {
        self.ack_waits = false;
        self.socket = Some(lane::open(self.kind)?);
        Ok(())
    }

    pub(super) fn begin(&mut self, token: Token) {
        self.token = token;
        self.busy = true;
        self.cancelled = false;
        self.retries = 0;
    }

    pub(super) fn begin_knock(&mut self, token: Token, to: SocketAddr, look: bool) {
        self.begin(token);
        self.to = to;
        (self.look, self.looked) = (look, None);
        self.in_two_steps = look || (!self.is_graceful() && may_meet_itself(self.kind.source, &to));
    }

    pub(super) fn is_graceful(&self) -> bool {
        self.kind.way == Way::Knock(Mode::Graceful)
    }

    pub(super) fn has_met_itself(&self) -> bool {
        let local = || self.socket.as_ref().and_then(|socket| socket.local_addr().ok());
        may_meet_itself(self.kind.source, &self.to) && local() == Some(self.to)
    }

    /// The second of two steps: what the connect really said, and a socket that is idle again, or none. It must not wait
    /// for the next turn: after 200 ms a half-open knock would send its ACK (TCP_DELACK_MAX).
    pub(super) fn finish_in_two_steps(&mut self, result: i32) -> i32 {
        let met_itself = result == 0 && self.has_met_itself();
        let Some(socket) = &self.socket else { return result };
        if self.look && result == 0 {
            self.looked = lane::tcp_facts(socket);
        }
        if !self.is_graceful() && socket.dissolve().is_err() {
            self.socket = None;
        }
        if met_itself { -libc::ECONNREFUSED } else { result }
    }

    pub(super) fn file(&self, number: u32) -> File {
        match (&self.socket, self.fixed) {
            (_, true) => File::Fixed(number),
            (Some(socket), false) => File::Fd(socket.raw()),
            (None, false) => File::Fd(-1),
        }
    }

    pub(super) fn address(&self) -> RawAddr {
        RawAddr::new(&self.to)
    }
}
