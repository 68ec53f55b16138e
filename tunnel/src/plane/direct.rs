//! Direct carriers: they wait for a stream, are given one, and end with it.
//! Promise: a stream gets a direct carrier of its own link and of this worker, or stays on the mux; whichever of the two
//! breaks resets the stream, once, at both ends; a direct carrier is never used twice.
//!
//! ```text
//! bridge  Spare ──take: OPEN goes out──▶ Stream ──both ways over──▶ Ending (what is unsent goes out) ──▶ closed
//! agent   Spare ──OPEN comes─▶ dial, or join the stream on the mux; OPENED goes out ─▶ Stream ─▶ ...
//! ```
//! Between OPEN and OPENED only the agent's words are frames; what the bridge sends behind OPEN is the stream's, at once.

use super::carrier::{Carrier, Lost, Phase};
use super::endpoint::{Endpoint, Stage};
use super::load::{Fin, Load, Raw};
use super::unplaced::Unplaced;
use super::{Arrival, Event, Plane};
use crate::bridge::Ticket;
use crate::frame::{FLAG_JOIN, Header, Kind, Reason, Violation};
use crate::moving::{Moving, Way};
use crate::mux::{Limits, Side};
use crate::slots::Key;
use ringspan_engine::kernel::{Shutdown, Socket};
use ringspan_engine::resident::Cx;
use ringspan_engine::time::Instant;
use std::time::Duration;

/// A direct carrier whose far end is gone without a word is asked about after this long without traffic.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// An agent that was given a stream answers within this: longer than it dials by default, so that the sentence is its own.
const ANSWER_MAX: Duration = Duration::from_secs(30);

impl Plane {
    /// The handshake of a direct carrier is over: it waits for a stream of `link`.
    pub(crate) fn raise_direct(&mut self, key: Key, link: Key) {
        let Some(c) = self.carriers.get_mut(key) else { return };
        (c.phase, c.load) = (Phase::Up, Load::Spare { link });
        c.mux.set_limits(Limits { streams_max: 1, ..Limits::default() });
        // A killed process must not look like a clean end; and a reader that pauses for longer than the user timeout
        // may do so: what is dead is found by the link's silence. Failures show at the first read or write.
        let _ = c.socket.reset_on_close();
        let _ = c.socket.set_user_timeout(Duration::ZERO);
        let _ = c.socket.set_keepalive(KEEPALIVE_IDLE);
        self.stats.direct_spare.add(1);
        if self.side == Side::Opener
            && let Some(pool) = self.carriers.get_mut(link).and_then(Carrier::pool)
        {
            pool.waiting.push(key);
            self.serve_asking(link);
        }
        self.queue(key);
    }

    /// The oldest stream that asked for a direct carrier gets the one that has come.
    fn serve_asking(&mut self, link: Key) {
        while let Some(pool) = self.carriers.get_mut(link).and_then(Carrier::pool) {
            if pool.waiting.is_empty() || pool.asking.is_empty() {
                return;
            }
            let key = pool.asking.remove(0);
            self.consider_move(key);
        }
    }

    /// Whether `link` is a carrier that takes streams.
    pub(crate) fn is_link(&self, link: Key) -> bool {
        self.carriers.get(link).is_some_and(|c| c.phase == Phase::Up && matches!(c.load, Load::Mux(_)))
    }

    /// A direct carrier of the link, for a stream that takes it now; or `None`, and one more is asked for.
    fn take_spare(&mut self, link: Key, asked: bool) -> Option<Key> {
        let pool = self.carriers.get_mut(link)?.pool()?;
        // The one that came last: the ones before it may go when the demand falls.
        let taken = pool.waiting.pop();
        let wish = if asked { None } else { pool.demand.on_want() };
        if let Some(count) = wish {
            self.carriers.get_mut(link)?.mux.want_spares(count);
            self.queue(link);
        }
        match taken {
            Some(_) => self.stats.direct_spare.sub(1),
            None => self.stats.direct_missed.add(1),
        }
        taken
    }

    /// The link's demand, once a second: tells the agent, and lets go what is too many.
    pub(super) fn tick_spares(&mut self, cx: &mut Cx<'_>, link: Key) {
        let Some(pool) = self.carriers.get_mut(link).and_then(Carrier::pool) else { return };
        let told = pool.demand.on_tick();
        let keep = usize::from(pool.demand.wish()).min(pool.waiting.len());
        let surplus: Vec<Key> = if told.is_some() { pool.waiting.drain(keep..).collect() } else { Vec::new() };
        if let (Some(count), Some(c)) = (told, self.carriers.get_mut(link)) {
            c.mux.want_spares(count);
            self.queue(link);
        }
        for key in surplus {
            self.dismiss(cx, key, Reason::Other, "not needed now");
        }
    }

    /// Bridge: gives a visitor a direct carrier from the start. `Err`: there is none.
    #[expect(
        clippy::result_large_err,
        reason = "a visitor comes back to be sent elsewhere at once; a box would cost them all"
    )]
    pub(super) fn open_direct(
        &mut self,
        socket: Socket,
        (link, backend): (Key, u16),
        arrival: Arrival,
        ticket: Box<Ticket>,
    ) -> Result<(), (Socket, Arrival, Box<Ticket>)> {
        let Some(direct) = self.take_spare(link, false) else { return Err((socket, arrival, ticket)) };
        let Arrival { prefix, mut header, info, fare, .. } = arrival;
        let payload = info.encode();
        let mut e = Endpoint::new(Some(socket), direct, backend, Stage::Open).with_nodelay();
        (e.moving, e.direct, e.fare) = (Moving::DIRECT, Some(direct), fare);
        // The answer to OPEN is the sign: there is nothing to ask for.
        e.unplaced = Some(Unplaced::new(&prefix, info, true, ticket));
        header.extend_from_slice(&prefix);
        e.prefix = header;
        let endpoint = self.endpoints.insert(e);
        let header = Header { aux: backend, len: payload.len() as u32, ..Header::new(Kind::Open, 0) };
        self.give(direct, link, endpoint, &header, &payload);
        self.stats.streams_total.add(1);
        self.stats.streams_open.add(1);
        Ok(())
    }

    /// Bridge: a stream that has carried enough leaves the mux, if a direct carrier waits for it.
    pub(super) fn consider_move(&mut self, key: Key) {
        let Some(e) = self.endpoints.get_mut(key).filter(|e| e.is_live() && e.may_move) else { return };
        let (link, stream) = (e.carrier, e.stream);
        if e.unplaced.is_some() {
            return;
        }
        if e.moving.is_bound() || e.moving.out() == Way::Over || e.moving.inward() == Way::Over {
            e.may_move = false;
            return;
        }
        let waits = self.carriers.get_mut(link).and_then(Carrier::pool).is_some_and(|pool| !pool.waiting.is_empty());
        if !waits && e.asked {
            return;
        }
        let asked = std::mem::replace(&mut e.asked, true);
        let Some(direct) = self.take_spare(link, asked) else {
            if let Some(pool) = self.carriers.get_mut(link).and_then(Carrier::pool) {
                // A stream asks once: as many places as streams, and those that have ended go when it doubles.
                if pool.asking.len() == pool.asking.capacity() {
                    let endpoints = &self.endpoints;
                    pool.asking.retain(|key| endpoints.get(*key).is_some_and(Endpoint::is_live));
                }
                pool.asking.push(key);
            }
            return;
        };
        let e = self.endpoints.get_mut(key).expect("looked at above");
        (e.may_move, e.direct) = (false, Some(direct));
        let moves = e.moving.bind().expect("it is not bound: looked at above");
        let header = Header { flags: FLAG_JOIN, ..Header::new(Kind::Open, stream) };
        self.give(direct, link, key, &header, &[]);
        if moves && let Some(c) = self.carriers.get_mut(link) {
            c.mux.move_out(stream);
            self.queue(link);
        }
        self.stats.streams_moved.add(1);
    }

    /// Gives a stream to a waiting direct carrier: its OPEN goes out first.
    fn give(&mut self, direct: Key, link: Key, endpoint: Key, header: &Header, payload: &[u8]) {
        let Some(c) = self.carriers.get_mut(direct) else { return };
        c.leave_frames();
        c.out.extend_from_slice(&header.encode());
        c.out.extend_from_slice(payload);
        c.load = Load::Stream(Raw::new(endpoint, link, self.tick_at, false));
        self.stats.direct_open.add(1);
        self.queue(direct);
    }

    /// Agent: an OPEN has come on a direct carrier that waited, for a stream of its own.
    pub(super) fn accept_direct(&mut self, direct: Key, endpoint: Key) {
        let Some(c) = self.carriers.get_mut(direct) else { return };
        let Load::Spare { link } = c.load else { return };
        c.leave_frames();
        c.load = Load::Stream(Raw::new(endpoint, link, self.tick_at, true));
        if let Some(e) = self.endpoints.get_mut(endpoint) {
            (e.moving, e.direct) = (Moving::DIRECT, Some(direct));
        }
        self.stats.direct_spare.sub(1);
        self.stats.direct_open.add(1);
        self.events.push(Event::DirectTaken { carrier: direct });
    }

    /// Agent: an OPEN has come on a direct carrier, for a stream that is on the mux.
    pub(super) fn join(&mut self, cx: &mut Cx<'_>, direct: Key, stream: u32) -> Result<(), Lost> {
        let Some(Load::Spare { link }) = self.carriers.get(direct).map(|c| &c.load) else {
            return Err(Violation::Unexpected(Kind::Open).into());
        };
        let link = *link;
        let owner = self.carriers.get_mut(link).and_then(|c| {
            let awaited = c.pool().and_then(|pool| {
                let at = pool.awaited.iter().position(|(id, _)| *id == stream)?;
                Some(pool.awaited.swap_remove(at).1)
            });
            awaited.or_else(|| c.mux.owner(stream))
        });
        let Some(e) = owner.and_then(|owner| self.endpoints.get_mut(owner)).filter(|e| e.is_live()) else {
            // It has ended, or was reset, while this was under way.
            self.refuse_direct(direct, Reason::Other);
            return Ok(());
        };
        let moves = match e.moving.bind() {
            Ok(moves) => moves,
            Err(confusion) => {
                let lost = Lost { reason: Reason::Protocol, detail: confusion.to_string() };
                self.lose(cx, link, lost);
                return Ok(());
            }
        };
        e.direct = Some(direct);
        let owner = owner.expect("an endpoint was found by it");
        let c = self.carriers.get_mut(direct).expect("looked at above");
        c.leave_frames();
        c.load = Load::Stream(Raw::new(owner, link, self.tick_at, true));
        c.out.extend_from_slice(&Header::new(Kind::Opened, 0).encode());
        if moves && let Some(c) = self.carriers.get_mut(link) {
            c.mux.move_out(stream);
            self.queue(link);
        }
        self.stats.direct_spare.sub(1);
        self.stats.direct_open.add(1);
        self.stats.streams_moved.add(1);
        self.events.push(Event::DirectTaken { carrier: direct });
        self.queue(direct);
        Ok(())
    }

    /// Agent: the stream of a direct carrier cannot be: the bridge is told why, and the carrier ends.
    pub(super) fn refuse_direct(&mut self, direct: Key, reason: Reason) {
        let Some(c) = self.carriers.get_mut(direct) else { return };
        let link = match &c.load {
            Load::Spare { link } => {
                self.stats.direct_spare.sub(1);
                self.stats.direct_open.add(1);
                self.events.push(Event::DirectTaken { carrier: direct });
                *link
            }
            Load::Stream(raw) => raw.link,
            Load::Mux(_) | Load::Ending { .. } => return,
        };
        c.leave_frames();
        c.out.extend_from_slice(&Header { aux: reason as u16, ..Header::new(Kind::Rst, 0) }.encode());
        c.load = Load::Ending { link, since: self.tick_at, said: false, answered: true };
        self.queue(direct);
    }

    /// Agent: the backend of a stream that began on a direct carrier is there.
    pub(super) fn answer_direct(&mut self, direct: Key) {
        let Some(c) = self.carriers.get_mut(direct) else { return };
        c.out.extend_from_slice(&Header::new(Kind::Opened, 0).encode());
        self.wake_direct(direct);
    }

    /// Bridge: the agent's word on a direct carrier that has been given a stream.
    pub(super) fn on_direct_header(&mut self, cx: &mut Cx<'_>, direct: Key, header: &Header) -> Result<(), Lost> {
        if let Some(Load::Ending { answered, .. }) = self.carriers.get_mut(direct).map(|c| &mut c.load) {
            // Whatever the answer is: the stream is over.
            if matches!(header.kind, Kind::Opened | Kind::Rst) {
                *answered = true;
                self.queue(direct);
            }
            return Ok(());
        }
        let Some(raw) = self.carriers.get_mut(direct).and_then(Carrier::raw) else { return Ok(()) };
        let endpoint = raw.endpoint;
        match header.kind {
            // They were under way when the carrier was taken.
            Kind::Ping | Kind::Pong if header.len == 0 => Ok(()),
            Kind::Opened if header.len == 0 => {
                raw.answered = true;
                self.on_placed(endpoint);
                Ok(())
            }
            Kind::Rst if header.len == 0 => {
                let reason = Reason::of(header.aux);
                let Some(e) = self.endpoints.get_mut(endpoint).filter(|e| e.is_live()) else { return Ok(()) };
                e.direct = None;
                let (backend, needs) = (e.backend, e.moving.needs_direct());
                let early = e.unplaced.as_ref().is_some_and(|unplaced| unplaced.is_telling());
                if needs {
                    // Before the role forgets whose carrier it was.
                    self.events.push(Event::StreamReset { carrier: direct, backend, reason, early });
                }
                self.close_direct(cx, direct);
                if needs {
                    self.stats.count(reason);
                    self.end_in_mux(endpoint, reason);
                    self.turn_away(cx, endpoint, reason);
                }
                Ok(())
            }
            kind => Err(Violation::Unexpected(kind).into()),
        }
    }

    /// The peer's next bytes of a stream come on its direct carrier.
    pub(super) fn on_marker(&mut self, endpoint: Key) -> Result<(), Lost> {
        let may_wait = self.side == Side::Accepter;
        let Some(e) = self.endpoints.get_mut(endpoint).filter(|e| e.is_live()) else { return Ok(()) };
        if let Err(confusion) = e.moving.on_marker(may_wait) {
            return Err(Lost { reason: Reason::Protocol, detail: confusion.to_string() });
        }
        let (link, stream) = (e.carrier, e.stream);
        match e.direct {
            Some(direct) => self.wake_direct(direct),
            None => {
                if let Some(pool) = self.carriers.get_mut(link).and_then(Carrier::pool) {
                    pool.awaited.push((stream, endpoint));
                }
            }
        }
        Ok(())
    }

    /// A stream is over, and waits for no direct carrier any more.
    pub(super) fn forget_awaited(&mut self, link: Key, endpoint: Key) {
        if let Some(pool) = self.carriers.get_mut(link).and_then(Carrier::pool) {
            pool.awaited.retain(|(_, key)| *key != endpoint);
        }
    }

    /// Its stream may be read on.
    pub(super) fn wake_direct(&mut self, direct: Key) {
        if let Some(raw) = self.carriers.get_mut(direct).and_then(Carrier::raw) {
            raw.stalled = false;
            self.queue(direct);
        }
    }

    /// A direct carrier has broken.
    pub(super) fn on_direct_lost(&mut self, cx: &mut Cx<'_>, direct: Key, load: &Load, lost: &Lost) {
        match load {
            Load::Mux(pool) => {
                for (_, endpoint) in &pool.awaited {
                    self.abort(cx, *endpoint, lost.reason);
                }
            }
            Load::Spare { link } => {
                self.stats.direct_spare.sub(1);
                let link = *link;
                if let Some(pool) = self.carriers.get_mut(link).and_then(Carrier::pool) {
                    pool.waiting.retain(|key| *key != direct);
                }
            }
            Load::Ending { .. } => self.stats.direct_open.sub(1),
            Load::Stream(raw) => {
                self.stats.direct_open.sub(1);
                let endpoint = raw.endpoint;
                let Some(e) = self.endpoints.get_mut(endpoint).filter(|e| e.is_live()) else { return };
                e.direct = None;
                if e.moving.needs_direct() {
                    self.stats.count(lost.reason);
                    self.end_in_mux(endpoint, lost.reason);
                    self.turn_away(cx, endpoint, lost.reason);
                }
            }
        }
    }

    /// What is left of the stream on the mux is reset.
    fn end_in_mux(&mut self, endpoint: Key, reason: Reason) {
        let Some(e) = self.endpoints.get(endpoint) else { return };
        let (link, stream) = (e.carrier, e.stream);
        if let Some(c) = self.carriers.get_mut(link) {
            c.mux.reset(stream, reason);
            self.queue(link);
        }
    }

    /// The stream of a direct carrier is over. `reset`: it was aborted; else what is unsent still goes out.
    pub(super) fn end_direct(&mut self, cx: &mut Cx<'_>, direct: Key, reset: bool) {
        let Some(c) = self.carriers.get_mut(direct).filter(|c| c.is_live()) else { return };
        let Load::Stream(raw) = &c.load else { return };
        if reset {
            return self.close_direct(cx, direct);
        }
        let (said, answered) = (raw.fin == Fin::Said, raw.answered);
        c.load = Load::Ending { link: raw.link, since: raw.since, said, answered };
        if said && answered {
            let _ = c.socket.keep_on_close();
            return self.close_direct(cx, direct);
        }
        self.queue(direct);
    }

    /// Everything was sent: says the end of both ways.
    pub(super) fn finish_direct(&mut self, cx: &mut Cx<'_>, direct: Key) {
        if let Some(c) = self.carriers.get_mut(direct) {
            let _ = c.socket.keep_on_close();
            c.socket.shutdown(Shutdown::Write);
        }
        self.close_direct(cx, direct);
    }

    fn close_direct(&mut self, cx: &mut Cx<'_>, direct: Key) {
        let Some(c) = self.carriers.get_mut(direct).filter(|c| c.is_live()) else { return };
        c.phase = Phase::Closing;
        if let Some((pipe, _)) = c.out_pipe.take() {
            self.pipes.drop_waiting(pipe);
        }
        self.stats.direct_open.sub(1);
        self.events.push(Event::DirectOver { carrier: direct });
        self.close_carrier(cx, direct);
    }

    /// A direct carrier whose agent does not answer is lost.
    pub(super) fn is_unanswered(&self, key: Key, now: Instant) -> bool {
        match self.carriers.get(key).map(|c| &c.load) {
            Some(Load::Stream(raw)) => !raw.answered && now.since(raw.since) >= ANSWER_MAX,
            Some(Load::Ending { answered: false, since, .. }) => now.since(*since) >= ANSWER_MAX,
            _ => false,
        }
    }
}
