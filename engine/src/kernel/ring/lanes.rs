//! The recycled sockets of a ring and the knocks on them.
//!
//! ```text
//! idle ─ knock → waiting for room → outstanding 2 ─ connect's and reset's completions → outstanding 0 → idle
//! ```
//! Promise: a lane is idle only when every completion of its last knock has come back. A lane whose reset failed gets
//! another socket.

use super::queue::File;
use crate::io::{Family, Mode};
use crate::kernel::socket::{RawAddr, Socket, may_meet_itself, open_lane_socket};
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
    pub(super) mode: Mode,
    pub(super) family: Family,
    /// None between the knocks of a graceful lane, and where a lost socket could not be replaced.
    pub(super) socket: Option<Socket>,
}

impl LaneSlot {
    pub(super) fn new(mode: Mode, family: Family) -> LaneSlot {
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
            mode,
            family,
            socket: None,
        }
    }

    pub(super) fn open(&mut self) -> io::Result<()> {
        self.socket = Some(open_lane_socket(self.mode, self.family)?);
        Ok(())
    }

    pub(super) fn begin(&mut self, token: Token, to: SocketAddr) {
        self.token = token;
        self.to = to;
        self.busy = true;
        self.cancelled = false;
        self.retries = 0;
        self.in_two_steps = self.mode != Mode::Graceful && may_meet_itself(&to);
    }

    /// The second of two steps: what the connect really said, and a socket that is idle again, or none.
    pub(super) fn finish_in_two_steps(&mut self, result: i32) -> i32 {
        let Some(socket) = &self.socket else { return result };
        let met_itself = result == 0 && socket.local_addr().is_ok_and(|local| local == self.to);
        if socket.dissolve().is_err() {
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
