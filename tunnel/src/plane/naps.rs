//! How a carrier waits for bytes: the kernel is asked to say when there are some. Promise: a carrier on which nothing comes
//! costs nothing, and half a record no more than a look a millisecond.
//!
//! Half a record is why this is a file. Where the kernel decrypts, a socket with a part of a record is "readable" by poll(2)
//! for as long as the rest is on its way, and recv(2) has nothing: since 6.0 the bytes stay with TCP until all of a record
//! are there (net/tls/tls_strp.c), and tcp_poll counts those. On a line that was cut that is until the carrier is given up.
//! (Seen on 6.1 and not on 5.10: as many wakes as the machine could make.) So a
//! carrier that was woken for nothing has a nap before the kernel is asked again.

use super::{OP_CARRIER_READ, Plane};
use crate::slots::Key;
use ringspan_engine::io::{Interest, Op};
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// What a record that comes in pieces may be late by; at 100 Mbit/s a whole one takes 1.3 ms.
const NAP: Duration = Duration::from_millis(1);

/// Carriers that are not to be read before their time, the next first: a nap is as long as any other.
pub(super) type Naps = VecDeque<(Instant, Key)>;

impl Plane {
    /// Nothing is readable now: reads on when there is.
    pub(super) fn wait_readable(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live() && !c.read_armed) else { return };
        c.readable = false;
        if std::mem::take(&mut c.woken) && c.records {
            return self.naps.push_back((cx.now + NAP, key));
        }
        c.read_armed = true;
        let (fd, interest) = (c.socket.fd(), Interest::Read);
        cx.io.submit(cx.token(OP_CARRIER_READ, key.generation, key.index), Op::Poll { fd, interest });
    }

    /// The kernel is asked again about those whose time has come.
    pub(super) fn end_naps(&mut self, cx: &mut Cx<'_>) {
        while let Some(&(_, key)) = self.naps.front().filter(|(at, _)| *at <= cx.now) {
            self.naps.pop_front();
            self.wait_readable(cx, key);
        }
    }
}
