//! The bytes of a stream on its direct carrier: no frames, a pipe in each direction only while bytes are in it.
//! Promise: each end reads no further than the other end's socket takes, so a slow reader stops its own sender through
//! TCP's windows and holds one pipe at most; the end of one direction is passed on behind its last byte, the other goes
//! on.
//!
//! ```text
//! in     carrier ─▶ pipe or buffer ─▶ the stream's socket       out    the stream's socket ─▶ pipe or buffer ─▶ carrier
//! ```
//! Small reads are copied, large ones spliced, as on the mux; under a cipher in user space all are copied. There the end
//! is close_notify (RFC 8446 §6.1), and an end without it is a cut.

use super::Plane;
use super::carrier::{Carrier, Lost};
use super::endpoint::{Stage, drain};
use super::load::{Fin, Load};
use super::tx::Sent;
use crate::frame::Reason;
use crate::moving::Way;
use crate::slots::Key;
use crate::stats::WorkerStats;
use ringspan_engine::kernel::ktls::{CLOSE_NOTIFY, record};
use ringspan_engine::kernel::{Pipe, Shutdown};
use ringspan_engine::resident::Cx;
use std::io::{self, ErrorKind};

/// What a read of the carrier or of a socket came to.
enum Got {
    Bytes(usize),
    Nothing,
    End,
}

impl Got {
    fn of(result: io::Result<usize>) -> Result<Got, Lost> {
        match result {
            Ok(0) => Ok(Got::End),
            Ok(n) => Ok(Got::Bytes(n)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(Got::Nothing),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                Err(Lost { reason: Reason::SocketReset, detail: error.to_string() })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Plane {
    /// Reads the carrier as far as the stream's socket takes it.
    pub(super) fn rx_raw(&mut self, cx: &mut Cx<'_>, key: Key) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.rx_raw_into(cx, key, &mut scratch);
        self.scratch = scratch;
        if let Err(lost) = result {
            self.lose(cx, key, lost);
        }
    }

    fn rx_raw_into(&mut self, cx: &mut Cx<'_>, key: Key, scratch: &mut [u8]) -> Result<(), Lost> {
        let mut budget = self.turn_bytes;
        while budget > 0 {
            let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live()) else { return Ok(()) };
            let (readable, plain) = (c.readable && !c.read_armed, c.plain);
            let has_stash = !c.stash.is_empty();
            let Some(raw) = c.raw().filter(|raw| raw.answered && !raw.in_ended) else { return Ok(()) };
            let (endpoint, splices) = (raw.endpoint, raw.splices);
            let Some(e) = self.endpoints.get_mut(endpoint) else { return Ok(()) };
            if e.stage != Stage::Open || !e.moving.reads_direct(e.held_bytes() > 0) {
                raw.stalled = true;
                return Ok(());
            }
            if has_stash {
                let stash = std::mem::take(&mut c.stash);
                self.raw_bytes(cx, key, endpoint, &stash);
                budget = self.bulk_moved(budget, stash.len());
                continue;
            }
            if c.said_end || c.tls.as_ref().is_some_and(|tls| tls.peer_closed()) {
                self.raw_end(cx, key, endpoint);
                return Ok(());
            }
            if !readable {
                return Ok(());
            }
            self.stats.link_reads.add(1);
            if !plain {
                match self.rx_raw_tls(cx, key, endpoint)? {
                    Got::Bytes(n) => budget = self.bulk_came(cx, key, budget, n),
                    Got::Nothing | Got::End => return Ok(()),
                }
                continue;
            }
            if splices && let Some(pipe) = self.pipes.take() {
                match self.rx_raw_splice(cx, key, endpoint, pipe)? {
                    Got::Bytes(n) => budget = self.bulk_came(cx, key, budget, n),
                    Got::Nothing | Got::End => return Ok(()),
                }
                continue;
            }
            let ask = scratch.len();
            match c.recv_raw(scratch)? {
                Got::Bytes(n) => {
                    let splice_in = c.splice_in;
                    if let Some(raw) = c.raw() {
                        raw.streak = if n >= self.options.splice_bytes { raw.streak + 1 } else { 0 };
                        if raw.streak >= self.options.streak {
                            (raw.splices, raw.streak) = (splice_in && self.options.may_splice, 0);
                        }
                    }
                    self.raw_bytes(cx, key, endpoint, &scratch[..n]);
                    budget = self.bulk_came(cx, key, budget, n);
                    // A short read has emptied the socket: the next one would only say so.
                    if n < ask {
                        self.wait_readable(cx, key);
                        return Ok(());
                    }
                }
                Got::Nothing => {
                    self.wait_readable(cx, key);
                    return Ok(());
                }
                Got::End => {
                    self.raw_end(cx, key, endpoint);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The peer has said something, which a readable socket alone does not mean: see [`naps`](super::naps).
    fn bulk_came(&mut self, cx: &Cx<'_>, key: Key, budget: usize, n: usize) -> usize {
        if let Some(c) = self.carriers.get_mut(key) {
            c.on_bytes(cx.now);
        }
        self.bulk_moved(budget, n)
    }

    /// What is left of a carrier's budget; the turn's is counted too.
    fn bulk_moved(&mut self, budget: usize, n: usize) -> usize {
        self.bulk_bytes += n;
        budget.saturating_sub(n)
    }

    fn rx_raw_splice(&mut self, cx: &mut Cx<'_>, key: Key, endpoint: Key, pipe: Pipe) -> Result<Got, Lost> {
        let c = self.carriers.get_mut(key).expect("the caller has just looked");
        let got = c.splice_raw(&pipe, self.options.pipe_bytes);
        let n = match got {
            Ok(Got::Bytes(n)) => n,
            other => {
                self.pipes.put(pipe);
                match &other {
                    Ok(Got::Nothing) => self.wait_readable(cx, key),
                    Ok(Got::End) => self.raw_end(cx, key, endpoint),
                    Ok(Got::Bytes(_)) | Err(_) => {}
                }
                return other;
            }
        };
        if let Some(raw) = c.raw() {
            raw.streak = if n < self.options.small_bytes { raw.streak + 1 } else { 0 };
            if raw.streak >= self.options.streak {
                (raw.splices, raw.streak) = (false, 0);
            }
        }
        self.stats.bytes_spliced.add(n as u64);
        let e = self.endpoints.get_mut(endpoint).expect("the caller has just looked");
        let result = e.write_pipe(pipe, n, &mut self.pipes);
        let held = e.held_bytes();
        self.on_held(0, held);
        self.after_delivery(cx, key, 0, endpoint, result);
        Ok(Got::Bytes(n))
    }

    fn rx_raw_tls(&mut self, cx: &mut Cx<'_>, key: Key, endpoint: Key) -> Result<Got, Lost> {
        let c = self.carriers.get_mut(key).expect("the caller has just looked");
        let Some(tls) = &mut c.tls else { return Ok(Got::Nothing) };
        let space = tls.receive_space();
        let ask = space.len();
        if ask == 0 {
            return Err(Lost::end());
        }
        let n = match Got::of(c.socket.recv(space))? {
            Got::Bytes(n) => n,
            Got::Nothing => {
                self.wait_readable(cx, key);
                return Ok(Got::Nothing);
            }
            Got::End => return Err(Lost::end()),
        };
        tls.on_received(n)?;
        let plaintext = tls.take_plaintext();
        self.raw_bytes(cx, key, endpoint, plaintext.filled());
        if let Some(tls) = self.carriers.get_mut(key).and_then(|c| c.tls.as_mut()) {
            tls.reuse(plaintext);
        }
        // An answer of the cipher's own (a key update) may have to go out.
        self.queue(key);
        if n < ask {
            self.wait_readable(cx, key);
        }
        Ok(Got::Bytes(n))
    }

    fn raw_bytes(&mut self, cx: &mut Cx<'_>, key: Key, endpoint: Key, bytes: &[u8]) {
        let Some(e) = self.endpoints.get_mut(endpoint).filter(|e| e.is_live()) else { return };
        let held = e.held_bytes();
        let result = e.write(bytes, false);
        let after = e.held_bytes();
        self.on_held(held, after);
        self.stats.bytes_spilled.add((after - held) as u64);
        self.after_delivery(cx, key, 0, endpoint, result);
    }

    /// The peer's direction has ended on the carrier.
    fn raw_end(&mut self, cx: &mut Cx<'_>, key: Key, endpoint: Key) {
        if let Some(raw) = self.carriers.get_mut(key).and_then(Carrier::raw) {
            raw.in_ended = true;
        }
        if let Some(e) = self.endpoints.get_mut(endpoint) {
            e.moving.on_end();
        }
        self.on_fin(cx, endpoint);
    }

    /// Writes what the stream's socket has, behind what the carrier did not take before.
    pub(super) fn tx_raw(&mut self, cx: &mut Cx<'_>, key: Key, scratch: &mut [u8]) -> Result<Sent, Lost> {
        let mut budget = self.turn_bytes;
        loop {
            let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live()) else { return Ok(Sent::All) };
            // A header that waits alone goes with the first bytes behind it.
            let alone = c.plain && c.out_pipe.is_none() && c.out_at == 0 && c.out.len() <= scratch.len() / 2;
            let source = match &mut c.load {
                Load::Stream(raw) if raw.ready && raw.fin == Fin::No && budget > 0 => Some(raw.endpoint),
                _ => None,
            };
            if source.is_none() || !alone {
                match c.send_rest(&self.stats)? {
                    Sent::All => {}
                    Sent::Blocked => return Ok(Sent::Blocked),
                }
            }
            let Some(endpoint) = source else { return self.tx_raw_end(cx, key) };
            budget = match self.tx_raw_piece(cx, key, endpoint, scratch)? {
                Piece::Moved(n) => self.bulk_moved(budget, n),
                Piece::Blocked => return Ok(Sent::Blocked),
            };
        }
    }

    /// Nothing is left of what there was: now the end of our direction, if it is due.
    fn tx_raw_end(&mut self, cx: &mut Cx<'_>, key: Key) -> Result<Sent, Lost> {
        let Some(c) = self.carriers.get_mut(key) else { return Ok(Sent::All) };
        let due = match &c.load {
            Load::Stream(raw) => raw.fin == Fin::Due,
            Load::Ending { said, answered, .. } => !said || *answered,
            Load::Mux(_) | Load::Spare { .. } => false,
        };
        if !due {
            return Ok(Sent::All);
        }
        let was_said = matches!(c.load, Load::Ending { said: true, .. });
        if !was_said && let Sent::Blocked = c.say_raw_end(&self.stats)? {
            return Ok(Sent::Blocked);
        }
        match &mut c.load {
            Load::Stream(raw) => {
                raw.fin = Fin::Said;
                c.socket.shutdown(Shutdown::Write);
            }
            Load::Ending { said, answered: false, .. } => {
                *said = true;
                c.socket.shutdown(Shutdown::Write);
            }
            Load::Mux(_) | Load::Spare { .. } | Load::Ending { .. } => self.finish_direct(cx, key),
        }
        Ok(Sent::All)
    }

    fn tx_raw_piece(&mut self, cx: &mut Cx<'_>, key: Key, owner: Key, scratch: &mut [u8]) -> Result<Piece, Lost> {
        let c = self.carriers.get_mut(key).expect("the caller has just looked");
        let raw = match &mut c.load {
            Load::Stream(raw) => raw,
            Load::Mux(_) | Load::Spare { .. } | Load::Ending { .. } => return Ok(Piece::Moved(0)),
        };
        let open = |e: &&mut super::Endpoint| e.stage == Stage::Open && !e.read_ended && e.moving.out() == Way::Direct;
        let Some(e) = self.endpoints.get_mut(owner).filter(open) else {
            raw.ready = false;
            return Ok(Piece::Moved(0));
        };
        let pending = c.out.len() - c.out_at;
        if e.splices
            && c.splice_out
            && e.prefix.is_empty()
            && e.unplaced.is_none()
            && pending == 0
            && let Some(pipe) = self.pipes.take()
        {
            return self.tx_raw_splice(cx, key, owner, pipe);
        }
        // A TLS carrier takes what fits beside what waits for it.
        let at = if c.plain { pending } else { 0 };
        scratch[..at].copy_from_slice(&c.out[c.out_at..c.out_at + at]);
        let room = match &e.unplaced {
            Some(unplaced) if e.prefix.is_empty() => unplaced.room(),
            Some(_) | None => usize::MAX,
        };
        if room == 0 {
            // Read on when there is a sign.
            raw.ready = false;
            return Ok(Piece::Moved(0));
        }
        let space = (scratch.len() - at).min(room);
        let ask = if e.prefix.is_empty() { space } else { e.prefix.len().min(space) };
        let result = if e.prefix.is_empty() {
            let result = e.open_socket().recv(&mut scratch[at..at + ask]);
            if let (Ok(n), Some(unplaced)) = (&result, &mut e.unplaced) {
                unplaced.keep(&scratch[at..at + n]);
            }
            result
        } else {
            scratch[at..at + ask].copy_from_slice(&e.prefix[..ask]);
            e.prefix.drain(..ask);
            e.prefix.shrink_to_fit();
            if let Some(unplaced) = &mut e.unplaced {
                unplaced.on_said();
            }
            Ok(ask)
        };
        let n = match Got::of(result) {
            Ok(Got::Bytes(n)) => n,
            Ok(Got::Nothing) => {
                raw.ready = false;
                self.arm_read(cx, owner);
                return Ok(Piece::Moved(0));
            }
            Ok(Got::End) => {
                self.tx_raw_source_end(cx, key, owner);
                return Ok(Piece::Moved(0));
            }
            Err(_) => {
                self.fail(cx, owner, Reason::SocketReset);
                return Ok(Piece::Moved(0));
            }
        };
        self.stats.bytes_to_link.add(n as u64);
        self.rest.on_piece(&self.shares.talk, &mut e.pieces, n, cx.now);
        e.streak = if n >= self.options.splice_bytes { e.streak + 1 } else { 0 };
        if e.streak >= self.options.streak {
            (e.splices, e.streak) = (c.splice_out && self.options.may_splice, 0);
        }
        if n < ask {
            raw.ready = false;
            self.arm_read(cx, owner);
        }
        let c = self.carriers.get_mut(key).expect("looked at above");
        if at > 0 {
            c.out.clear();
            c.out_at = 0;
        }
        match c.send(&scratch[..at + n], &self.stats)? {
            Sent::All => Ok(Piece::Moved(n)),
            Sent::Blocked => Ok(Piece::Blocked),
        }
    }

    fn tx_raw_splice(&mut self, cx: &mut Cx<'_>, key: Key, owner: Key, pipe: Pipe) -> Result<Piece, Lost> {
        let (Some(c), Some(e)) = (self.carriers.get_mut(key), self.endpoints.get_mut(owner)) else {
            self.pipes.put(pipe);
            return Ok(Piece::Moved(0));
        };
        let n = match Got::of(pipe.fill(e.open_socket(), self.options.pipe_bytes)) {
            Ok(Got::Bytes(n)) => n,
            other => {
                self.pipes.put(pipe);
                match other {
                    Ok(Got::End) => self.tx_raw_source_end(cx, key, owner),
                    Err(_) => self.fail(cx, owner, Reason::SocketReset),
                    Ok(Got::Bytes(_) | Got::Nothing) => {
                        if let Some(raw) = c.raw() {
                            raw.ready = false;
                        }
                        self.arm_read(cx, owner);
                    }
                }
                return Ok(Piece::Moved(0));
            }
        };
        self.stats.bytes_to_link.add(n as u64);
        self.stats.bytes_spliced.add(n as u64);
        self.stats.link_writes.add(1);
        self.rest.on_piece(&self.shares.talk, &mut e.pieces, n, cx.now);
        e.streak = if n < self.options.small_bytes { e.streak + 1 } else { 0 };
        if e.streak >= self.options.streak {
            (e.splices, e.streak) = (false, 0);
        }
        match drain(&pipe, &c.socket, n) {
            Ok(0) => {
                self.pipes.put(pipe);
                c.wrote(n)?;
            }
            Ok(left) => {
                c.wrote(n - left)?;
                if c.records {
                    c.push();
                }
                if (c.records && self.pipes.must_wait()) || self.pipes.may_wait() {
                    c.out_pipe = Some((pipe, left));
                } else {
                    c.out.extend_from_slice(&self.pipes.empty(pipe, left)?);
                }
                return Ok(Piece::Blocked);
            }
            Err(error) => {
                self.pipes.drop_full(pipe);
                return Err(error.into());
            }
        }
        Ok(Piece::Moved(n))
    }

    /// The stream's socket has ended: so does our direction, behind what is unsent.
    fn tx_raw_source_end(&mut self, cx: &mut Cx<'_>, key: Key, owner: Key) {
        if let Some(raw) = self.carriers.get_mut(key).and_then(Carrier::raw) {
            (raw.ready, raw.fin) = (false, Fin::Due);
        }
        if let Some(e) = self.endpoints.get_mut(owner) {
            e.read_ended = true;
            e.moving.end();
            self.settle(cx, owner);
        }
    }
}

impl Carrier {
    /// recv(2) of a stream's bytes: an end that the peer has meant is no loss.
    fn recv_raw(&mut self, buffer: &mut [u8]) -> Result<Got, Lost> {
        if !self.records {
            return Got::of(self.socket.recv(buffer));
        }
        let result = self.recv(buffer);
        self.meant(result)
    }

    fn splice_raw(&mut self, pipe: &Pipe, len: usize) -> Result<Got, Lost> {
        if !self.records {
            return Got::of(pipe.fill(&self.socket, len));
        }
        let result = self.splice_from(pipe, len);
        self.meant(result)
    }

    fn meant(&self, result: Result<Option<usize>, Lost>) -> Result<Got, Lost> {
        match result {
            Ok(Some(n)) => Ok(Got::Bytes(n)),
            Ok(None) => Ok(Got::Nothing),
            Err(_) if self.said_end => Ok(Got::End),
            Err(lost) => Err(lost),
        }
    }

    /// close_notify, where there is a cipher: an end without it is a cut.
    fn say_raw_end(&mut self, stats: &WorkerStats) -> Result<Sent, Lost> {
        if self.records {
            return match self.socket.send_record(record::ALERT, &CLOSE_NOTIFY) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Sent::Blocked),
                // A peer that is gone shows at the next read.
                Ok(_) | Err(_) => Ok(Sent::All),
            };
        }
        match self.tls.as_mut().filter(|tls| tls.is_encrypted()) {
            Some(tls) => {
                tls.close();
                self.send_rest(stats)
            }
            None => Ok(Sent::All),
        }
    }
}

/// What one piece of writing came to.
enum Piece {
    Moved(usize),
    Blocked,
}
