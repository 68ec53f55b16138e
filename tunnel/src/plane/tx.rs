//! From the sockets of its streams to a carrier.
//!
//! ```text
//! small   recv behind the place of its header; many frames, and the control lane, in one send
//! large   fill an empty pipe: now the length is known; send the header with MSG_MORE; splice the pipe
//! ```
//! Payload first, then its header: a frame on the wire never waits for a source. A stream is promoted after two full
//! reads and demoted after two small ones.

use super::carrier::{Carrier, Lost};
use super::endpoint::{Behind, Endpoint, Stage, drain, or_nothing};
use super::load::Load;
use super::{OP_CARRIER_WRITE, Plane};
use crate::frame::{HEADER_BYTES, Header, Reason};
use crate::limits::Way;
use crate::mux::Output;
use crate::slots::Key;
use crate::stats::WorkerStats;
use ringspan_engine::io::{Interest, Op};
use ringspan_engine::resident::Cx;
use std::io::ErrorKind;

/// One copying read: what a TLS record holds, and where splice begins to win. A stream whose reads are that long and that
/// cannot splice fills the batch instead: with its header that is four records, and a system call for all of them.
const COPY_BYTES: usize = 16 << 10;
/// A batch with less room than this is sent first.
const ROOM_BYTES_MIN: usize = 2 << 10;
/// A splice that moved less than this speaks for copying.
const SMALL_BYTES: usize = 8 << 10;
/// Reads in a row that change the mover.
const STREAK: u8 = 2;

/// Whether the carrier's socket took everything.
pub(super) enum Sent {
    All,
    Blocked,
}

impl Plane {
    /// Writes until nothing is left to say, the socket is full, or the turn is over.
    pub(super) fn tx(&mut self, cx: &mut Cx<'_>, key: Key) {
        if !self.carriers.get(key).is_some_and(Carrier::wants_tx) {
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.tx_from(cx, key, &mut scratch);
        self.scratch = scratch;
        if let Some(c) = self.carriers.get_mut(key) {
            c.keep_pace();
        }
        let result = match result {
            Ok(Sent::All) => self.try_offload(key),
            Ok(Sent::Blocked) => return self.wait_writable(cx, key),
            Err(lost) => Err(lost),
        };
        if let Err(lost) = result {
            self.lose(cx, key, lost);
        }
    }

    fn tx_from(&mut self, cx: &mut Cx<'_>, key: Key, scratch: &mut [u8]) -> Result<Sent, Lost> {
        let Some(c) = self.carriers.get_mut(key) else { return Ok(Sent::All) };
        let raw = matches!(c.load, Load::Stream(_) | Load::Ending { .. });
        if (!raw || c.out_pipe.is_some())
            && let Sent::Blocked = c.send_rest(&self.stats)?
        {
            return Ok(Sent::Blocked);
        }
        if let Some((pipe, left)) = c.out_pipe.take() {
            let before = left;
            match drain(&pipe, &c.socket, left) {
                Ok(0) => {
                    self.pipes.put_waiting(pipe);
                    c.wrote(before)?;
                }
                Ok(left) => {
                    c.out_pipe = Some((pipe, left));
                    c.wrote(before - left)?;
                    return Ok(Sent::Blocked);
                }
                Err(error) => {
                    self.pipes.drop_waiting(pipe);
                    return Err(error.into());
                }
            }
        }
        if raw {
            return self.tx_raw(cx, key, scratch);
        }
        let (mut len, mut budget) = (0, self.turn_bytes);
        while budget > 0 {
            let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live() && !c.is_shaking_hands()) else { break };
            if scratch.len() - len < HEADER_BYTES + ROOM_BYTES_MIN {
                budget = budget.saturating_sub(len);
                if let Sent::Blocked = c.send(&scratch[..std::mem::take(&mut len)], &self.stats)? {
                    return Ok(Sent::Blocked);
                }
                continue;
            }
            let output = if self.rest.is_on() { c.mux.next_urgent() } else { c.mux.next_output() };
            match output {
                None => break,
                Some(Output::Control(header, payload)) => {
                    put(scratch, &mut len, &header);
                    if !payload.is_empty() {
                        c.out.extend_from_slice(&scratch[..std::mem::take(&mut len)]);
                        c.out.extend_from_slice(&payload);
                        if let Sent::Blocked = c.send_rest(&self.stats)? {
                            return Ok(Sent::Blocked);
                        }
                    }
                }
                Some(Output::Data { id, owner, len_max }) => {
                    let ready = self.endpoints.get(owner).filter(|e| e.stage == Stage::Open && !e.read_ended);
                    let Some(splices) = ready.map(Endpoint::may_splice) else {
                        c.mux.dry(id);
                        continue;
                    };
                    if splices
                        && c.splice_out
                        && let Some(pipe) = self.pipes.take()
                    {
                        let moved = self.tx_splice(cx, key, (id, owner, len_max), pipe, scratch, &mut len)?;
                        match moved {
                            None => return Ok(Sent::Blocked),
                            Some(n) => budget = budget.saturating_sub(n),
                        }
                    } else {
                        self.tx_copy(cx, key, (id, owner, len_max), scratch, &mut len);
                    }
                }
            }
        }
        let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live()) else { return Ok(Sent::All) };
        if len > 0 { c.send(&scratch[..len], &self.stats) } else { Ok(Sent::All) }
    }

    fn tx_copy(
        &mut self,
        cx: &mut Cx<'_>,
        key: Key,
        (id, owner, len_max): (u32, Key, u32),
        scratch: &mut [u8],
        len: &mut usize,
    ) {
        let (Some(c), Some(e)) = (self.carriers.get_mut(key), self.endpoints.get_mut(owner)) else { return };
        let at = *len + HEADER_BYTES;
        let one_read = if e.streak >= STREAK { scratch.len() } else { COPY_BYTES };
        let mut ask = (len_max as usize).min(one_read).min(scratch.len() - at);
        if !e.prefix.is_empty() {
            let n = e.prefix.len().min(ask);
            scratch[at..at + n].copy_from_slice(&e.prefix[..n]);
            e.prefix.drain(..n);
            e.prefix.shrink_to_fit();
            let first_words = e.unplaced.as_mut().is_some_and(|unplaced| unplaced.on_said());
            let header = c.mux.sent(id, n as u32, false, true);
            put(scratch, len, &header);
            *len += n;
            self.stats.frames_sent.add(1);
            self.stats.bytes_to_link.add(n as u64);
            if first_words {
                self.expect_sign(owner, cx.now);
            }
            return;
        }
        if e.fare.is_some() {
            let may = self.fare_up(owner, cx.now);
            let (Some(c), Some(_)) = (self.carriers.get_mut(key), self.endpoints.get(owner)) else { return };
            if may == 0 {
                return c.mux.dry(id);
            }
            ask = ask.min(may);
        }
        let (Some(c), Some(e)) = (self.carriers.get_mut(key), self.endpoints.get_mut(owner)) else { return };
        if let Some(unplaced) = &e.unplaced {
            ask = ask.min(unplaced.room());
            if unplaced.room() == 0 {
                // Read on when there is a sign.
                c.mux.dry(id);
                return self.ask_for_sign(owner);
            }
        }
        match e.open_socket().recv(&mut scratch[at..at + ask]) {
            Ok(0) => {
                let header = c.mux.sent(id, 0, true, false);
                put(scratch, len, &header);
                self.stats.frames_sent.add(1);
                self.on_read_end(cx, owner);
            }
            Ok(n) => {
                let (n, behind) = if e.end_is_near && n < ask {
                    e.read_on(&mut scratch[at..at + ask], n)
                } else {
                    (n, Behind::Unknown)
                };
                let first_words = e.unplaced.as_mut().is_some_and(|unplaced| unplaced.keep(&scratch[at..at + n]));
                let header = c.mux.sent(id, n as u32, behind == Behind::End, n == ask);
                put(scratch, len, &header);
                *len += n;
                self.stats.frames_sent.add(1);
                self.stats.bytes_to_link.add(n as u64);
                let is_fared = e.fare.is_some();
                if n >= COPY_BYTES {
                    e.streak = (e.streak + 1).min(STREAK);
                    if e.streak == STREAK && c.splice_out && self.options.may_splice {
                        (e.splices, e.streak) = (true, 0);
                    }
                } else if n < ask {
                    e.streak = 0;
                }
                if behind == Behind::End {
                    self.note_read_end(owner);
                } else if n < ask && behind == Behind::Unknown {
                    self.arm_read(cx, owner);
                }
                if first_words {
                    self.expect_sign(owner, cx.now);
                }
                if is_fared {
                    self.pay(owner, Way::Up, cx.now, n);
                }
                self.on_carried(owner, n, cx.now);
                match behind {
                    Behind::Unknown => {}
                    Behind::End => self.settle(cx, owner),
                    Behind::Failure => self.fail(cx, owner, Reason::SocketReset),
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                c.mux.dry(id);
                self.arm_read(cx, owner);
            }
            Err(_) => self.fail(cx, owner, Reason::SocketReset),
        }
    }

    /// One large frame, behind the batch that is already in `scratch`. `None`: the carrier's socket is full.
    fn tx_splice(
        &mut self,
        cx: &mut Cx<'_>,
        key: Key,
        (id, owner, len_max): (u32, Key, u32),
        pipe: ringspan_engine::kernel::Pipe,
        scratch: &mut [u8],
        len: &mut usize,
    ) -> Result<Option<usize>, Lost> {
        let (Some(c), Some(e)) = (self.carriers.get_mut(key), self.endpoints.get_mut(owner)) else {
            self.pipes.put(pipe);
            return Ok(Some(0));
        };
        let n = match pipe.fill(e.open_socket(), len_max as usize) {
            Ok(n) => n,
            Err(error) => {
                self.pipes.put(pipe);
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                    c.mux.dry(id);
                    self.arm_read(cx, owner);
                } else {
                    self.fail(cx, owner, Reason::SocketReset);
                }
                return Ok(Some(0));
            }
        };
        self.stats.frames_sent.add(1);
        let header = c.mux.sent(id, n as u32, n == 0, n == len_max as usize);
        put(scratch, len, &header);
        if n == 0 {
            self.pipes.put(pipe);
            self.on_read_end(cx, owner);
            return Ok(Some(0));
        }
        let is_fared = e.fare.is_some();
        self.stats.bytes_to_link.add(n as u64);
        self.stats.bytes_spliced.add(n as u64);
        e.streak = if n < SMALL_BYTES { e.streak + 1 } else { 0 };
        if e.streak >= STREAK {
            (e.splices, e.streak) = (false, 0);
        }
        let batch = &scratch[..std::mem::take(len)];
        self.stats.link_writes.add(2);
        let sent = or_nothing(c.socket.send(batch, true));
        let left = match sent {
            Ok(sent) if sent == batch.len() => drain(&pipe, &c.socket, n),
            Ok(sent) => {
                c.out.extend_from_slice(&batch[sent..]);
                Ok(n)
            }
            Err(error) => Err(error),
        };
        match left {
            Ok(0) => self.pipes.put(pipe),
            Ok(left) if (c.records && self.pipes.must_wait()) || self.pipes.may_wait() => {
                c.out_pipe = Some((pipe, left))
            }
            Ok(left) => c.out.extend_from_slice(&self.pipes.empty(pipe, left)?),
            Err(error) => {
                self.pipes.drop_full(pipe);
                return Err(error.into());
            }
        }
        let blocked = c.out_pipe.is_some() || !c.out.is_empty();
        c.wrote(batch.len() + n - c.out_pipe.as_ref().map_or(0, |(_, left)| *left))?;
        if n < len_max as usize {
            self.arm_read(cx, owner);
        }
        if is_fared {
            self.pay(owner, Way::Up, cx.now, n);
        }
        self.on_carried(owner, n, cx.now);
        Ok(if blocked { None } else { Some(n) })
    }

    /// The socket's clean end went out as FIN.
    fn on_read_end(&mut self, cx: &mut Cx<'_>, owner: Key) {
        self.note_read_end(owner);
        self.settle(cx, owner);
    }

    /// The same, and it is settled in a moment: from now on this direction does not move.
    fn note_read_end(&mut self, owner: Key) {
        if let Some(e) = self.endpoints.get_mut(owner) {
            e.read_ended = true;
            e.moving.end();
        }
    }

    fn wait_writable(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live() && !c.write_armed) else { return };
        c.write_armed = true;
        if c.records {
            c.push();
        }
        let (fd, interest) = (c.socket.fd(), Interest::Write);
        cx.io.submit(cx.token(OP_CARRIER_WRITE, key.generation, key.index), Op::Poll { fd, interest });
    }
}

impl Carrier {
    /// Frames may not be written before the cipher is there.
    pub(super) fn is_shaking_hands(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| tls.is_handshaking())
    }

    /// Sends a batch of whole frames, keeping what the socket does not take.
    pub(super) fn send(&mut self, batch: &[u8], stats: &WorkerStats) -> Result<Sent, Lost> {
        if !self.plain {
            return self.send_encrypted(batch, stats);
        }
        stats.link_writes.add(1);
        let n = or_nothing(self.socket.send(batch, false))?;
        self.wrote(n)?;
        if n == batch.len() {
            return Ok(Sent::All);
        }
        self.out.extend_from_slice(&batch[n..]);
        Ok(Sent::Blocked)
    }

    /// Sends what an earlier batch left behind. MSG_MORE if a spliced payload follows at once.
    pub(super) fn send_rest(&mut self, stats: &WorkerStats) -> Result<Sent, Lost> {
        if !self.plain {
            return self.send_cipher(stats);
        }
        while self.out_at < self.out.len() {
            stats.link_writes.add(1);
            let n = or_nothing(self.socket.send(&self.out[self.out_at..], self.out_pipe.is_some()))?;
            if n == 0 {
                return Ok(Sent::Blocked);
            }
            self.wrote(n)?;
            self.out_at += n;
        }
        self.forget_out();
        Ok(Sent::All)
    }

    /// A batch goes to the cipher from where it is, unless others wait before it.
    fn send_encrypted(&mut self, batch: &[u8], stats: &WorkerStats) -> Result<Sent, Lost> {
        if self.out_at < self.out.len() {
            self.out.extend_from_slice(batch);
            return self.send_cipher(stats);
        }
        let (taken, sent) = self.encrypt(batch, stats)?;
        self.out.extend_from_slice(&batch[taken..]);
        Ok(sent)
    }

    fn send_cipher(&mut self, stats: &WorkerStats) -> Result<Sent, Lost> {
        let out = std::mem::take(&mut self.out);
        let (taken, sent) = self.encrypt(&out[self.out_at..], stats)?;
        self.out = out;
        self.out_at += taken;
        if self.out_at == self.out.len() {
            self.forget_out();
        }
        Ok(sent)
    }

    /// Encrypts and sends. Returns how much the cipher took, and whether the socket took all that it made of it.
    fn encrypt(&mut self, bytes: &[u8], stats: &WorkerStats) -> Result<(usize, Sent), Lost> {
        let tls = self.tls.as_mut().expect("the reader gives it back before the writer runs");
        let mut taken = 0;
        loop {
            let n = tls.write(&bytes[taken..])?;
            self.wear_out.add(n);
            taken += n;
            if tls.outgoing().is_empty() {
                return Ok((taken, Sent::All));
            }
            stats.link_writes.add(1);
            let n = or_nothing(self.socket.send(tls.outgoing(), false))?;
            if n == 0 {
                return Ok((taken, Sent::Blocked));
            }
            tls.on_sent(n);
            self.has_sent = true;
        }
    }

    fn forget_out(&mut self) {
        self.out.clear();
        self.out_at = 0;
        // A batch that once waited should not cost its memory for the life of an idle carrier.
        self.out.shrink_to(super::SCRATCH_BYTES);
    }
}

fn put(scratch: &mut [u8], len: &mut usize, header: &Header) {
    scratch[*len..*len + HEADER_BYTES].copy_from_slice(&header.encode());
    *len += HEADER_BYTES;
}
