//! Many streams on one carrier: which may send, which may receive, and when each is over.
//! Promise: frames of a stream leave and arrive in order; no stream sends beyond its credit; a slot is taken again only
//! when both sides are done with it; nothing here waits and every queue is bounded by the number of streams. Pure:
//! headers in, [`Input`]s out; commands in, [`Output`]s out. Payload never passes through it.
//!
//! ```text
//! each direction:   Open ──FIN──▶ Ended          both Ended ──▶ free
//! reset by us:      RST out, then whatever arrives is discarded until the peer's own end (FIN or RST) ──▶ free
//! reset by peer:    RST in; if our end was not sent yet, RST back                                      ──▶ free
//! ```
//! So each side sends exactly one end per stream (FIN or MOVED, or RST before or after it), and the slot is free when both ends
//! have been seen. A stream id is `generation << 16 | slot`: a WINDOW or RST that crossed the last end carries an old
//! generation and is ignored. Only the bridge opens streams.

mod round_trip;
mod table;
mod turns;
mod words;

pub use turns::{FRESH_BYTES, TURN_BYTES};
pub use words::{Input, Limits, OpenInfo, Output, Side};

use crate::credit::{RecvWindow, SendCredit, Step};
use crate::frame::{FLAG_FIN, FLAG_MOVED, FLAG_TELL, Header, Kind, OPEN_BYTES_MAX, Reason, Violation};
use crate::memory::Budget;
use ringspan_engine::time::Instant;
use round_trip::RoundTrip;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use table::{Stream, Table};
use turns::{FRAME_BYTES_MIN, Share, Turns};

/// Until the carrier's rate is known, no frame is longer: 5 ms at 100 Mbit/s.
const FRAME_BYTES_START: u32 = 64 << 10;

#[derive(Debug)]
enum Control {
    Open { id: u32, aux: u16, tell: bool, payload: Vec<u8> },
    Opened { id: u32 },
    Grant { id: u32 },
    Rst { id: u32, reason: Reason },
    Moved { id: u32 },
    Ping { cookie: u32 },
    Spare { count: u16 },
    Blob { kind: Kind, aux: u16, payload: Vec<u8> },
}

/// The streams of one carrier. `K` names the owner of a stream on this side.
#[derive(Debug)]
pub struct Mux<K> {
    side: Side,
    limits: Limits,
    table: Table<K>,
    control: VecDeque<Control>,
    /// The answer we owe to the latest PING; an older unanswered one is superseded.
    pong: Option<u32>,
    /// Streams whose source may have bytes and that have credit, each once.
    turns: Turns,
    /// By how much the windows of this carrier have grown, in bytes; taken from the process's budget.
    growth: u64,
    budget: Arc<Budget>,
    round_trip: RoundTrip,
    /// No frame is longer now: within the limits, what the carrier sends in a moment.
    frame_bytes: u32,
    /// Payload sent and received since [`take_traffic`](Mux::take_traffic).
    traffic: (u64, u64),
}

impl<K: Copy> Mux<K> {
    /// A mux without streams, with a budget of its own.
    pub fn new(side: Side, limits: Limits) -> Mux<K> {
        Mux::within(side, limits, Arc::default())
    }

    /// A mux without streams whose windows grow out of that budget.
    pub fn within(side: Side, limits: Limits, budget: Arc<Budget>) -> Mux<K> {
        Mux {
            side,
            limits,
            table: Table::new(side, &limits),
            control: VecDeque::new(),
            pong: None,
            turns: Turns::default(),
            growth: 0,
            budget,
            round_trip: RoundTrip::default(),
            frame_bytes: FRAME_BYTES_START,
            traffic: (0, 0),
        }
    }

    /// What the handshake agreed on; before the first stream.
    pub fn set_limits(&mut self, limits: Limits) {
        assert!(self.table.len() == 0, "limits are agreed on before the first stream");
        self.limits = limits;
        self.table = Table::new(self.side, &limits);
    }

    /// How many streams are not free yet.
    pub fn streams(&self) -> usize {
        self.table.len()
    }

    /// The owners of all streams that still have one.
    pub fn owners(&self) -> Vec<K> {
        self.table.owners()
    }

    /// Whether [`next_output`](Mux::next_output) has something.
    pub fn has_output(&self) -> bool {
        self.pong.is_some() || !self.control.is_empty() || !self.turns.is_empty()
    }

    /// Whether [`next_urgent`](Mux::next_urgent) has something.
    pub fn has_urgent(&self) -> bool {
        self.pong.is_some() || !self.control.is_empty() || self.turns.has_fresh()
    }

    /// Takes an arrived header.
    ///
    /// # Errors
    /// The peer broke the protocol: the carrier is lost.
    pub fn on_header(&mut self, header: &Header) -> Result<Input<K>, Violation> {
        match header.kind {
            Kind::Data => self.on_data(header),
            Kind::Open => self.on_open(header),
            Kind::Opened => {
                self.on_credit(header)?;
                let owner = self.table.get_mut(header.stream).and_then(|stream| stream.owner);
                match owner {
                    Some(owner) if header.len == 0 => Ok(Input::Opened { owner }),
                    _ => Ok(skip(header.len)),
                }
            }
            Kind::Window => {
                self.on_credit(header)?;
                Ok(skip(header.len))
            }
            Kind::Rst => {
                let reset = self.on_rst(header)?;
                if header.len > 0 { Err(Violation::Length(header.len)) } else { Ok(reset) }
            }
            Kind::Ping | Kind::Pong | Kind::Spare if header.len > 0 => Err(Violation::Length(header.len)),
            Kind::Ping => {
                self.pong = Some(header.credit);
                Ok(Input::Nothing)
            }
            Kind::Pong => Ok(Input::Pong { cookie: header.credit }),
            Kind::Spare if self.side == Side::Opener => Err(Violation::Unexpected(Kind::Spare)),
            Kind::Spare => Ok(Input::Spare { count: header.aux }),
            Kind::Goaway | Kind::Hello | Kind::Health => {
                Ok(Input::Control { kind: header.kind, aux: header.aux, len: header.len })
            }
        }
    }

    fn on_data(&mut self, header: &Header) -> Result<Input<K>, Violation> {
        if header.len > self.limits.frame_bytes_max {
            return Err(Violation::Length(header.len));
        }
        self.on_credit(header)?;
        self.traffic.1 += u64::from(header.len);
        let Some(stream) = self.table.get_mut(header.stream) else { return Ok(skip(header.len)) };
        if stream.recv_ended {
            return Err(Violation::AfterFin);
        }
        let (fin, moved) = (header.is_fin(), header.is_moved());
        if moved && (fin || header.len > 0) {
            return Err(Violation::Unexpected(Kind::Data));
        }
        let input = match stream.owner {
            Some(owner) if moved && !stream.reset => Input::Moved { owner },
            Some(owner) if !stream.reset => {
                stream.window.on_received(header.len)?;
                Input::Data { id: header.stream, owner, len: header.len, fin }
            }
            _ => skip(header.len),
        };
        stream.recv_ended = fin || moved;
        self.retire(header.stream);
        Ok(input)
    }

    fn on_open(&mut self, header: &Header) -> Result<Input<K>, Violation> {
        if self.side == Side::Opener {
            return Err(Violation::Unexpected(Kind::Open));
        }
        if header.len > OPEN_BYTES_MAX {
            return Err(Violation::Length(header.len));
        }
        self.table.place(header.stream)?;
        self.on_credit(header)?;
        let tell = header.flags & FLAG_TELL != 0;
        Ok(Input::Open { id: header.stream, aux: header.aux, len: header.len, tell })
    }

    fn on_credit(&mut self, header: &Header) -> Result<(), Violation> {
        if header.credit == 0 {
            return Ok(());
        }
        let Some(stream) = self.table.get_mut(header.stream) else { return Ok(()) };
        stream.credit.on_granted(header.credit)?;
        self.wake(header.stream);
        Ok(())
    }

    fn on_rst(&mut self, header: &Header) -> Result<Input<K>, Violation> {
        let Some(stream) = self.table.get_mut(header.stream) else { return Ok(Input::Nothing) };
        let (owner, answer) = (stream.owner.take(), !stream.reset && !stream.send_ended);
        let announce = !stream.reset;
        self.free(header.stream);
        if answer {
            self.push(Control::Rst { id: header.stream, reason: Reason::Other });
            if self.control.len() > self.control_max() {
                return Err(Violation::Flood);
            }
        }
        Ok(match owner {
            Some(owner) if announce => Input::Reset { owner, reason: Reason::of(header.aux) },
            _ => Input::Nothing,
        })
    }

    /// A peer that reads its carrier never makes us queue more: each stream has at most one OPEN or OPENED, one grant,
    /// and an RST for it and for its predecessor.
    fn control_max(&self) -> usize {
        4 * usize::from(self.limits.streams_max) + 1024
    }

    /// Opens a stream for backend `aux`. `None`: as many as allowed are open.
    pub fn open(&mut self, owner: K, aux: u16) -> Option<u32> {
        self.open_with(owner, aux, false, &OpenInfo::default())
    }

    /// The same, and whether the peer is to say when the backend is reached, and what else it must know.
    pub fn open_with(&mut self, owner: K, aux: u16, tell: bool, info: &OpenInfo) -> Option<u32> {
        assert!(self.side == Side::Opener, "only the bridge opens streams");
        let payload = info.encode();
        if payload.len() > OPEN_BYTES_MAX as usize {
            return None;
        }
        let id = self.table.open(owner)?;
        self.push(Control::Open { id, aux, tell, payload });
        Some(id)
    }

    /// Accepter: the backend of a stream whose OPEN asked is reached.
    pub fn opened(&mut self, id: u32) {
        if self.table.get_mut(id).is_some_and(|stream| !stream.send_ended) {
            self.push(Control::Opened { id });
        }
    }

    /// Names the owner of a stream that [`Input::Open`] announced.
    pub fn adopt(&mut self, id: u32, owner: K) {
        if let Some(stream) = self.table.get_mut(id) {
            stream.owner = Some(owner);
        }
    }

    /// The stream's source may have bytes, or its end.
    pub fn source_ready(&mut self, id: u32) {
        if let Some(stream) = self.table.get_mut(id) {
            stream.source_ready = true;
            self.wake(id);
        }
    }

    /// The source had nothing after all.
    pub fn dry(&mut self, id: u32) {
        if let Some(stream) = self.table.get_mut(id) {
            stream.source_ready = false;
        }
    }

    /// `n` bytes were taken from the source, and its end if `fin`. Returns the header that goes before them.
    /// `more`: the source may have more.
    pub fn sent(&mut self, id: u32, n: u32, fin: bool, more: bool) -> Header {
        let stream = self.table.get_mut(id).expect("the stream was named by next_output() just now");
        stream.credit.spend(n);
        self.traffic.0 += u64::from(n);
        stream.source_ready = more && !fin;
        stream.send_ended = fin;
        let credit = stream.grant();
        let more = stream.may_send();
        self.turns.sent(id, &mut stream.share, n, more);
        if fin {
            self.retire(id);
        }
        Header { flags: if fin { FLAG_FIN } else { 0 }, len: n, credit, ..Header::new(Kind::Data, id) }
    }

    /// `n` bytes of the stream were written to the far socket, for which `waiting` bytes are still there.
    pub fn delivered(&mut self, id: u32, n: u32, waiting: usize, now: Instant) {
        let Some(stream) = self.table.get_mut(id) else { return };
        let (limits, window) = (self.budget.limits(), &mut stream.window);
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        match window.on_delivered(n, waiting, limits.window_bytes_max, self.round_trip.get(), now) {
            Step::Grow(by) => {
                let room = limits.carrier_growth_bytes_max.saturating_sub(self.growth);
                let by = u64::from(by).min(room) as u32;
                if by > 0 && !stream.recv_ended && self.budget.take_growth(by.into()) {
                    self.growth += u64::from(by);
                    window.grow(by);
                }
            }
            Step::Ample if self.budget.is_tight() || self.growth > limits.carrier_growth_bytes_max / 2 => {
                let by = u64::from(window.shrink());
                self.growth -= by;
                self.budget.give_growth(by);
            }
            Step::Keep | Step::Ample => {}
        }
        if window.is_grant_due() && !stream.recv_ended && !stream.reset && !stream.grant_queued {
            stream.grant_queued = true;
            self.push(Control::Grant { id });
        }
    }

    /// What this side sends from now on goes by the stream's direct carrier: nothing more of it on this one. Says so to
    /// the peer, behind all that was sent. Returns `false`, and says nothing, if this direction has ended already.
    pub fn move_out(&mut self, id: u32) -> bool {
        let Some(stream) = self.table.get_mut(id).filter(|s| !s.send_ended) else { return false };
        stream.send_ended = true;
        stream.source_ready = false;
        self.push(Control::Moved { id });
        self.retire(id);
        true
    }

    /// Whose stream this is; `None`: nobody's any more.
    pub fn owner(&mut self, id: u32) -> Option<K> {
        self.table.get_mut(id)?.owner
    }

    /// Tells the agent how many direct carriers should wait.
    pub fn want_spares(&mut self, count: u16) {
        self.control.retain(|c| !matches!(c, Control::Spare { .. }));
        self.push(Control::Spare { count });
    }

    /// Ends the stream both ways. Its owner will not be named again.
    pub fn reset(&mut self, id: u32, reason: Reason) {
        let Some(stream) = self.table.get_mut(id) else { return };
        if stream.reset {
            return;
        }
        stream.reset = true;
        stream.owner = None;
        stream.source_ready = false;
        stream.send_ended = true;
        self.push(Control::Rst { id, reason });
        self.retire(id);
    }

    /// Asks the peer for a sign of life, and measures how far away it is.
    pub fn ping(&mut self, now: Instant) {
        if !self.control.iter().any(|c| matches!(c, Control::Ping { .. })) {
            let cookie = self.round_trip.on_asked(now);
            // Behind a WELCOME that waits: nothing else may come before it.
            self.push(Control::Ping { cookie });
        }
    }

    /// The answer with this cookie came.
    pub fn on_pong(&mut self, cookie: u32, now: Instant) {
        self.round_trip.on_answered(cookie, now);
    }

    /// A frame that was begun is finished before anything else goes out, so on a slow carrier it had better be short:
    /// from now on none is longer than this, but 16 KiB are always allowed.
    pub fn set_frame_bytes(&mut self, bytes: u32) {
        self.frame_bytes = bytes.max(FRAME_BYTES_MIN);
    }

    /// Payload bytes since they were last taken, both ways.
    pub fn traffic(&self) -> u64 {
        self.traffic.0 + self.traffic.1
    }

    /// Payload bytes sent since they were last taken.
    pub fn sent_bytes(&self) -> u64 {
        self.traffic.0
    }

    /// Takes the payload bytes sent and received since the last time.
    pub fn take_traffic(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.traffic)
    }

    /// How far away the peer is: the shortest of the last 10 to 20 s; 0 if it never answered.
    pub fn round_trip(&self) -> Duration {
        self.round_trip.get()
    }

    /// Sends a payload of the layer above, at most `CONTROL_BYTES_MAX` long.
    pub fn blob(&mut self, kind: Kind, aux: u16, payload: Vec<u8>) {
        self.push(Control::Blob { kind, aux, payload });
    }

    /// What goes out next: the control lane first, then the streams in turn.
    pub fn next_output(&mut self) -> Option<Output<K>> {
        self.next_control().or_else(|| self.next_data(Turns::pick))
    }

    /// The same without bulk: the control lane, and the first bytes of streams that were quiet.
    pub fn next_urgent(&mut self) -> Option<Output<K>> {
        self.next_control().or_else(|| self.next_data(Turns::pick_fresh))
    }

    fn next_control(&mut self) -> Option<Output<K>> {
        if let Some(cookie) = self.pong.take() {
            return Some(Output::Control(Header { credit: cookie, ..Header::new(Kind::Pong, 0) }, Vec::new()));
        }
        while let Some(control) = self.control.pop_front() {
            if let Some(output) = self.control_output(control) {
                return Some(output);
            }
        }
        None
    }

    fn next_data(&mut self, pick: fn(&mut Turns) -> Option<u32>) -> Option<Output<K>> {
        while let Some(id) = pick(&mut self.turns) {
            let Some(stream) = self.table.get_mut(id) else { continue };
            stream.share.leave();
            let (Some(owner), true) = (stream.owner, stream.may_send()) else { continue };
            let whole = self.frame_bytes.min(self.limits.frame_bytes_max);
            let turn = self.turns.len_max(&mut stream.share, whole);
            return Some(Output::Data { id, owner, len_max: stream.credit.left().min(turn) });
        }
        None
    }

    fn control_output(&mut self, control: Control) -> Option<Output<K>> {
        let (header, payload) = match control {
            Control::Open { id, aux, tell, payload } => {
                let flags = if tell { FLAG_TELL } else { 0 };
                (Header { aux, flags, len: payload.len() as u32, ..Header::new(Kind::Open, id) }, payload)
            }
            Control::Opened { id } => {
                self.table.get_mut(id)?;
                (Header::new(Kind::Opened, id), Vec::new())
            }
            Control::Grant { id } => {
                let stream = self.table.get_mut(id)?;
                stream.grant_queued = false;
                let credit = if stream.reset || stream.recv_ended { 0 } else { stream.grant() };
                if credit == 0 {
                    return None;
                }
                (Header { credit, ..Header::new(Kind::Window, id) }, Vec::new())
            }
            Control::Rst { id, reason } => (Header { aux: reason as u16, ..Header::new(Kind::Rst, id) }, Vec::new()),
            Control::Moved { id } => (Header { flags: FLAG_MOVED, ..Header::new(Kind::Data, id) }, Vec::new()),
            Control::Spare { count } => (Header { aux: count, ..Header::new(Kind::Spare, 0) }, Vec::new()),
            Control::Ping { cookie } => (Header { credit: cookie, ..Header::new(Kind::Ping, 0) }, Vec::new()),
            Control::Blob { kind, aux, payload } => {
                (Header { aux, len: payload.len() as u32, ..Header::new(kind, 0) }, payload)
            }
        };
        Some(Output::Control(header, payload))
    }

    fn push(&mut self, control: Control) {
        self.control.push_back(control);
    }

    /// Queues the stream for its turn if it has something to send and may.
    fn wake(&mut self, id: u32) {
        let Some(stream) = self.table.get_mut(id) else { return };
        if stream.may_send() {
            self.turns.wake(id, &mut stream.share);
        }
    }

    /// Frees the slot when both ends have been seen.
    fn retire(&mut self, id: u32) {
        if self.table.get_mut(id).is_some_and(|s| s.send_ended && s.recv_ended) {
            self.free(id);
        }
    }

    fn free(&mut self, id: u32) {
        if let Some(stream) = self.table.remove(id) {
            self.growth -= stream.window.growth();
            self.budget.give_growth(stream.window.growth());
        }
    }
}

impl<K> Drop for Mux<K> {
    fn drop(&mut self) {
        self.budget.give_growth(self.growth);
    }
}

impl<K> Stream<K> {
    fn may_send(&self) -> bool {
        self.source_ready && !self.send_ended && self.credit.left() > 0
    }

    /// What the next header of this stream grants.
    fn grant(&mut self) -> u32 {
        if self.recv_ended || self.reset { 0 } else { self.window.take_grant() }
    }
}

fn skip<K>(len: u32) -> Input<K> {
    if len == 0 { Input::Nothing } else { Input::Discard { len } }
}

fn fresh<K>(owner: Option<K>, window_bytes: u32) -> Stream<K> {
    Stream {
        owner,
        credit: SendCredit::new(window_bytes),
        window: RecvWindow::new(window_bytes),
        send_ended: false,
        recv_ended: false,
        reset: false,
        source_ready: false,
        share: Share::default(),
        grant_queued: false,
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
