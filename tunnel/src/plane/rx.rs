//! From a carrier to the sockets of its streams.
//!
//! ```text
//! small frames   recv up to 64 KiB, parse many, write each payload straight from the buffer
//! large frames   read the 16 bytes alone, splice the payload link → pipe → socket
//! slow receiver  its bytes stay in their pipe, or in memory when no pipe is left: the carrier is read on
//! dead stream    its bytes are discarded in the kernel
//! ```
//! The switch costs nothing: whoever stands inside a large payload splices the rest of it, and after one such frame the
//! next header is read alone. A carrier whose records are made in user space always copies.

use super::carrier::{Carrier, Lost, Phase, Reading};
use super::endpoint::Endpoint;
use super::load::Load;
use super::offload::received;
use super::{Event, Plane, TURN_BYTES};
use crate::frame::{FLAG_JOIN, HEADER_BYTES, Header, Kind, OPEN_BYTES_MAX, Reason, Violation};
use crate::limits::Way;
use crate::mux::{Input, OpenInfo, Side};
use crate::slots::Key;
use ringspan_engine::resident::Cx;
use std::io;

/// A payload, or the rest of one, is spliced from this size on. Below it two splice(2) cost more than one recv and one
/// send of the same bytes (HAProxy splices from 4 KiB, levee from 16, Go's break-even is 32 to 64).
const SPLICE_BYTES_MIN: usize = 16 << 10;

/// How the next bytes are to be read.
enum Read {
    Head,
    Splice(usize),
    Discard(usize),
    Buffer,
}

impl Plane {
    /// Reads until the carrier has nothing more, or its turn is over.
    pub(super) fn rx(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(c) = self.carriers.get(key).filter(|c| c.is_live() && !c.paused) else { return };
        if !c.is_raw() && c.readable && !c.read_armed {
            let result = if c.plain { self.rx_plain(cx, key) } else { self.rx_tls(cx, key) };
            if let Err(lost) = result.and_then(|()| self.try_offload(key)) {
                return self.lose(cx, key, lost);
            }
        }
        if self.carriers.get(key).is_some_and(|c| c.is_live() && c.is_raw()) {
            self.rx_raw(cx, key);
        }
    }

    fn rx_plain(&mut self, cx: &mut Cx<'_>, key: Key) -> Result<(), Lost> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.rx_plain_into(cx, key, &mut scratch);
        self.scratch = scratch;
        result
    }

    fn rx_plain_into(&mut self, cx: &mut Cx<'_>, key: Key, scratch: &mut [u8]) -> Result<(), Lost> {
        let mut budget = self.turn_bytes;
        while budget > 0 {
            let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live() && !c.paused && !c.is_raw()) else {
                return Ok(());
            };
            self.stats.link_reads.add(1);
            let (n, ask) = match c.next_read() {
                Read::Splice(left) => match self.rx_splice(cx, key, left)? {
                    Some(n) => {
                        budget = budget.saturating_sub(n);
                        continue;
                    }
                    None => {
                        let c = self.carriers.get_mut(key).expect("it was there a moment ago");
                        let ask = left.min(scratch.len());
                        (c.recv(&mut scratch[..ask])?, ask)
                    }
                },
                Read::Discard(left) => {
                    let n = received(c.socket.discard(left))?;
                    if let (Reading::Discard { left }, Some(n)) = (&mut c.reading, n) {
                        *left -= n;
                        if *left == 0 {
                            c.reading = Reading::Head;
                        }
                        budget = budget.saturating_sub(n);
                        continue;
                    }
                    (None, left)
                }
                Read::Head => {
                    let ask = HEADER_BYTES - c.head_len;
                    (c.recv(&mut scratch[..ask])?, ask)
                }
                Read::Buffer => (c.recv(scratch)?, scratch.len()),
            };
            let Some(n) = n else {
                self.wait_readable(cx, key);
                return Ok(());
            };
            let c = self.carriers.get_mut(key).expect("it was there a moment ago");
            c.on_bytes(cx.now);
            self.parse(cx, key, &scratch[..n])?;
            budget = budget.saturating_sub(n);
            // A short read has emptied the socket: the next one would only say so.
            if n < ask {
                self.wait_readable(cx, key);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Splices the rest of a payload and says how much of the turn that took. `None`: no pipe is left, copy.
    fn rx_splice(&mut self, cx: &mut Cx<'_>, key: Key, left: usize) -> Result<Option<usize>, Lost> {
        let c = self.carriers.get_mut(key).expect("the caller has just looked");
        if let Reading::Data { owner, .. } = c.reading
            && !self.endpoints.get(owner).is_some_and(Endpoint::is_live)
        {
            // Its socket failed inside the frame, and the mux has reset the stream.
            c.reading = Reading::Discard { left };
            return Ok(Some(0));
        }
        let Some(pipe) = self.pipes.take() else { return Ok(None) };
        let n = match c.splice_from(&pipe, left) {
            Ok(Some(n)) => n,
            Ok(None) => {
                self.pipes.put(pipe);
                self.wait_readable(cx, key);
                // Ends the caller's turn: nothing is readable now.
                return Ok(Some(TURN_BYTES));
            }
            Err(lost) => {
                self.pipes.put(pipe);
                return Err(lost);
            }
        };
        c.on_bytes(cx.now);
        let Reading::Data { id, owner, left, fin } = &mut c.reading else { unreachable!("only DATA is spliced") };
        *left -= n;
        let (id, owner, over, fin) = (*id, *owner, *left == 0, *fin);
        if over {
            c.reading = Reading::Head;
        }
        self.stats.bytes_spliced.add(n as u64);
        let e = self.endpoints.get_mut(owner).expect("looked at above");
        let held = e.held_bytes();
        let result = e.write_pipe(pipe, n, &mut self.pipes);
        let after = e.held_bytes();
        self.on_held(held, after);
        self.after_delivery(cx, key, id, owner, result);
        if over && fin {
            self.on_fin(cx, owner);
        }
        Ok(Some(n))
    }

    fn rx_tls(&mut self, cx: &mut Cx<'_>, key: Key) -> Result<(), Lost> {
        let Some(mut tls) = self.carriers.get_mut(key).and_then(|c| c.tls.take()) else { return Ok(()) };
        let mut budget = self.turn_bytes;
        let result = loop {
            let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live() && !c.paused && !c.is_raw() && budget > 0)
            else {
                break Ok(());
            };
            self.stats.link_reads.add(1);
            let space = tls.receive_space();
            let ask = space.len();
            if ask == 0 {
                break Err(Lost::end());
            }
            let n = match received(c.socket.recv(space)) {
                Ok(Some(n)) => n,
                Ok(None) => {
                    self.wait_readable(cx, key);
                    break Ok(());
                }
                Err(lost) => break Err(lost),
            };
            c.signs.on_heard(cx.now);
            let outcome = tls.on_received(n).map_err(Lost::from);
            let parsed = self.parse(cx, key, tls.plaintext());
            tls.consume(tls.plaintext().len());
            self.announce(key, tls.binding());
            if let Err(lost) = outcome.and(parsed) {
                break Err(lost);
            }
            // Behind a welcome that is not looked at yet there may be a whole stream.
            if tls.peer_closed() && self.carriers.get(key).is_some_and(|c| !c.is_raw() && !c.paused) {
                break Err(Lost::end());
            }
            budget = budget.saturating_sub(n);
            if n < ask {
                self.wait_readable(cx, key);
                break Ok(());
            }
        };
        if let Some(c) = self.carriers.get_mut(key) {
            if result.is_err() && !tls.outgoing().is_empty() {
                // The alert that says why, as far as it goes.
                let _ = c.socket.send(tls.outgoing(), false);
            }
            c.tls = Some(tls);
        }
        result
    }

    /// Takes bytes of the carrier in any pieces.
    pub(super) fn parse(&mut self, cx: &mut Cx<'_>, key: Key, mut bytes: &[u8]) -> Result<(), Lost> {
        while !bytes.is_empty() {
            let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live()) else { return Ok(()) };
            if c.paused || c.is_raw() {
                c.stash.extend_from_slice(bytes);
                return Ok(());
            }
            match &mut c.reading {
                Reading::Head => {
                    let n = bytes.len().min(HEADER_BYTES - c.head_len);
                    c.head[c.head_len..c.head_len + n].copy_from_slice(&bytes[..n]);
                    c.head_len += n;
                    bytes = &bytes[n..];
                    if c.head_len == HEADER_BYTES {
                        c.head_len = 0;
                        let header = Header::decode(&c.head)?;
                        self.on_header(cx, key, &header)?;
                    }
                }
                Reading::Discard { left } => {
                    let n = bytes.len().min(*left);
                    *left -= n;
                    bytes = &bytes[n..];
                    if *left == 0 {
                        c.reading = Reading::Head;
                    }
                }
                Reading::Data { id, owner, left, fin } => {
                    let n = bytes.len().min(*left);
                    *left -= n;
                    let (id, owner, over, fin) = (*id, *owner, *left == 0, *fin);
                    if over {
                        c.reading = Reading::Head;
                    }
                    self.deliver(cx, key, (id, owner), &bytes[..n], over && fin);
                    if over && fin {
                        self.on_fin(cx, owner);
                    }
                    bytes = &bytes[n..];
                }
                Reading::Open { id, backend, tell, left } => {
                    let n = bytes.len().min(*left);
                    *left -= n;
                    c.body.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    if *left == 0 {
                        let (id, backend, tell) = (*id, *backend, *tell);
                        c.reading = Reading::Head;
                        let info = OpenInfo::decode(&std::mem::take(&mut c.body));
                        self.dial(cx, (key, id), backend, tell, info);
                    }
                }
                Reading::Control { kind, aux, left } => {
                    let n = bytes.len().min(*left);
                    *left -= n;
                    c.body.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    if *left == 0 {
                        let (kind, aux) = (*kind, *aux);
                        c.reading = Reading::Head;
                        c.paused = c.phase == Phase::Hello;
                        let payload = std::mem::take(&mut c.body);
                        self.events.push(Event::Control { carrier: key, kind, aux, payload });
                    }
                }
            }
        }
        Ok(())
    }

    fn on_header(&mut self, cx: &mut Cx<'_>, key: Key, header: &Header) -> Result<(), Lost> {
        let Some(c) = self.carriers.get_mut(key) else { return Ok(()) };
        if c.phase == Phase::Hello && !matches!(header.kind, Kind::Hello | Kind::Goaway) {
            return Err(Violation::Unexpected(header.kind).into());
        }
        match &c.load {
            Load::Stream(_) | Load::Ending { .. } => return self.on_direct_header(cx, key, header),
            Load::Spare { .. } if header.kind == Kind::Open && self.side == Side::Accepter => {
                let Header { flags, aux: backend, stream, len, .. } = *header;
                if len > OPEN_BYTES_MAX || (flags & FLAG_JOIN != 0 && len > 0) {
                    return Err(Violation::Length(len).into());
                }
                if flags & FLAG_JOIN != 0 {
                    return self.join(cx, key, stream);
                }
                if len > 0 {
                    c.reading = Reading::Open { id: 0, backend, tell: false, left: len as usize };
                } else {
                    self.dial(cx, (key, 0), backend, false, OpenInfo::default());
                }
                return Ok(());
            }
            Load::Spare { .. } | Load::Mux(_) => {}
        }
        match c.mux.on_header(header)? {
            Input::Nothing => {}
            Input::Pong { cookie } => c.mux.on_pong(cookie, cx.now),
            Input::Discard { len } => c.reading = Reading::Discard { left: len as usize },
            Input::Data { id, owner, len, fin } => {
                self.stats.frames_received.add(1);
                if self.side == Side::Opener {
                    self.on_placed(owner);
                }
                let Some(c) = self.carriers.get_mut(key) else { return Ok(()) };
                c.bulk = len as usize >= SPLICE_BYTES_MIN;
                if len > 0 {
                    c.reading = Reading::Data { id, owner, left: len as usize, fin };
                } else if fin {
                    self.on_fin(cx, owner);
                }
            }
            Input::Open { id, aux, len: 0, tell } => self.dial(cx, (key, id), aux, tell, OpenInfo::default()),
            Input::Open { id, aux, len, tell } => {
                c.reading = Reading::Open { id, backend: aux, tell, left: len as usize };
            }
            Input::Opened { owner } if self.side == Side::Opener => self.on_placed(owner),
            Input::Opened { owner } => self.on_asked_for_sign(owner),
            Input::Moved { owner } => self.on_marker(owner)?,
            Input::Spare { count } => self.events.push(Event::SpareWanted { carrier: key, count }),
            Input::Reset { owner, reason } => {
                if let Some(e) = self.endpoints.get(owner) {
                    let (backend, early) =
                        (e.backend, e.unplaced.as_ref().is_some_and(|unplaced| unplaced.is_telling()));
                    self.stats.count(reason);
                    self.events.push(Event::StreamReset { carrier: key, backend, reason, early });
                    self.turn_away(cx, owner, reason);
                }
            }
            Input::Control { kind, aux, len: 0 } => {
                c.paused = c.phase == Phase::Hello;
                self.events.push(Event::Control { carrier: key, kind, aux, payload: Vec::new() });
            }
            Input::Control { kind, aux, len } => c.reading = Reading::Control { kind, aux, left: len as usize },
        }
        Ok(())
    }

    fn deliver(&mut self, cx: &mut Cx<'_>, key: Key, (id, owner): (u32, Key), bytes: &[u8], last: bool) {
        // A socket that failed inside the frame takes no more; the mux has reset its stream.
        let Some(e) = self.endpoints.get_mut(owner).filter(|e| e.is_live()) else { return };
        let held = e.held_bytes();
        let result = e.write(bytes, last);
        let after = e.held_bytes();
        self.on_held(held, after);
        self.stats.bytes_spilled.add((after - held) as u64);
        self.after_delivery(cx, key, id, owner, result);
    }

    pub(super) fn after_delivery(&mut self, cx: &mut Cx<'_>, key: Key, id: u32, owner: Key, result: io::Result<usize>) {
        match result {
            Ok(n) => {
                self.stats.bytes_from_link.add(n as u64);
                let e = self.endpoints.get(owner);
                let waiting = e.map_or(0, Endpoint::held_bytes);
                if e.is_some_and(|e| e.fare.is_some()) {
                    self.pay(owner, Way::Down, cx.now, n);
                }
                if let Some(c) = self.carriers.get_mut(key) {
                    c.mux.delivered(id, n as u32, waiting, cx.now);
                }
                self.on_carried(owner, n, cx.now);
                self.settle(cx, owner);
                if waiting > 0 && self.shares.budget.is_exceeded() {
                    self.relieve(cx);
                }
            }
            Err(_) => self.fail(cx, owner, Reason::SocketReset),
        }
    }

    /// Too much waits for slow receivers: the stream that holds most on this worker is reset.
    fn relieve(&mut self, cx: &mut Cx<'_>) {
        let holding = self.endpoints.iter().filter(|(_, e)| e.is_live());
        if let Some((key, _)) = holding.max_by_key(|(_, e)| e.held_bytes()) {
            self.fail(cx, key, Reason::MemoryMax);
        }
    }

    pub(super) fn on_fin(&mut self, cx: &mut Cx<'_>, owner: Key) {
        if let Some(e) = self.endpoints.get_mut(owner).filter(|e| e.is_live()) {
            e.fin_due = true;
            e.moving.on_end();
            self.settle(cx, owner);
        }
    }
}

impl Carrier {
    fn next_read(&self) -> Read {
        match self.reading {
            Reading::Head if self.bulk && self.splice_in => Read::Head,
            Reading::Data { left, .. } if left >= SPLICE_BYTES_MIN && self.splice_in => Read::Splice(left),
            // The kernel has decrypted them already; MSG_TRUNC is not for such sockets.
            Reading::Discard { left } if left >= SPLICE_BYTES_MIN && !self.records => Read::Discard(left),
            _ => Read::Buffer,
        }
    }
}
