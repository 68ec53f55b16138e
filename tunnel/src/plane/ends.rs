//! How carriers end: drained, dismissed with a word, lost, moved to another worker, or with everything else.
//! Promises: each live carrier ends once, and the role is told why; its streams are reset; a socket is closed when its polls
//! have come home.

use super::carrier::{Lost, Phase};
use super::load::Load;
use super::{Event, OP_CARRIER_READ, OP_CARRIER_WRITE, Plane, tame};
use crate::frame::{Kind, Reason};
use crate::slots::Key;
use ringspan_engine::resident::Cx;

/// What such a peer is told.
pub(super) const DRAINED: &str = "drained: the last stream has ended";

impl Plane {
    /// The carrier is over, without a word: the peer said goodbye.
    pub(crate) fn drop_carrier(&mut self, cx: &mut Cx<'_>, key: Key, reason: Reason, detail: String) {
        self.lose(cx, key, Lost { reason, detail });
    }

    /// Bridge: the carrier takes no new streams, and ends within a [`TICK`](super::TICK) of its last one.
    pub(crate) fn drain(&mut self, key: Key) {
        if let Some(c) = self.carriers.get_mut(key) {
            c.draining = true;
        }
    }

    /// Tells the peer that no new streams are wanted; those that are on their way are taken.
    pub(crate) fn say_draining(&mut self, key: Key, sentence: &str) {
        self.send(key, Kind::Goaway, Reason::Draining as u16, sentence.as_bytes().to_vec());
    }

    /// Says goodbye with a reason and a sentence, as far as the socket takes it now, and closes.
    pub(crate) fn dismiss(&mut self, cx: &mut Cx<'_>, key: Key, reason: Reason, sentence: &str) {
        self.send(key, Kind::Goaway, reason as u16, sentence.as_bytes().to_vec());
        self.tx(cx, key);
        if let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live() && !c.wants_tx() && !c.write_armed) {
            c.say_goodbye();
        }
        self.lose(cx, key, Lost { reason, detail: sentence.into() });
    }

    /// The carrier is over: its streams are reset, the role is told. One that ends behind a goodbye, the peer's or ours,
    /// ends for that reason, whatever the socket says.
    pub(super) fn lose(&mut self, cx: &mut Cx<'_>, key: Key, lost: Lost) {
        let empty = self.new_mux();
        let said = self.events.iter().rev().find_map(|event| goodbye_of(event, key));
        let Some(c) = self.carriers.get_mut(key).filter(|c| c.is_live()) else { return };
        let lost = if c.parted.is_some() { Lost::drained() } else { said.unwrap_or(lost) };
        c.phase = Phase::Closing;
        let mux = std::mem::replace(&mut c.mux, empty);
        if let Some((pipe, _)) = c.out_pipe.take() {
            self.pipes.drop_waiting(pipe);
        }
        let load =
            std::mem::replace(&mut c.load, Load::Ending { link: key, since: cx.now, said: true, answered: true });
        // Before its visitors come back: they are not to be sent there again.
        self.events.push(Event::Lost { carrier: key, reason: lost.reason, detail: lost.detail.clone() });
        self.on_direct_lost(cx, key, &load, &lost);
        for endpoint in mux.owners() {
            self.stats.count(lost.reason);
            self.turn_away(cx, endpoint, lost.reason);
        }
        if matches!(load, Load::Mux(_)) {
            self.lose_companions(cx, key, lost.reason);
        }
        self.close_carrier(cx, key);
    }

    pub(super) fn close_carrier(&mut self, cx: &mut Cx<'_>, key: Key) {
        let Some(c) = self.carriers.get(key) else { return };
        for (armed, op) in [(c.read_armed, OP_CARRIER_READ), (c.write_armed, OP_CARRIER_WRITE)] {
            if armed {
                cx.io.cancel(cx.token(op, key.generation, key.index));
            }
        }
        self.reap_carrier(key);
    }

    pub(super) fn reap_carrier(&mut self, key: Key) {
        let Some(c) = self.carriers.get(key).filter(|c| !c.read_armed && !c.write_armed) else { return };
        let moving = c.phase == Phase::Moving;
        let Some(body) = self.carriers.remove(key) else { return };
        if moving && let Some(at) = self.moving.iter().position(|(k, _)| *k == key) {
            let (_, to) = self.moving.swap_remove(at);
            self.events.push(Event::Moved { carrier: key, body: Box::new(body), to });
        }
    }

    /// Ends everything: each peer is told, each socket reset.
    pub(crate) fn stop(&mut self, cx: &mut Cx<'_>) {
        for key in self.carriers.keys() {
            self.dismiss(cx, key, Reason::Stopping, Reason::Stopping.sentence());
        }
        for key in self.endpoints.keys() {
            self.abort(cx, key, Reason::Stopping);
        }
    }
}

/// The goodbye of that carrier's peer, if the event is one that the role has not seen yet. Draining is none.
fn goodbye_of(event: &Event, key: Key) -> Option<Lost> {
    match event {
        Event::Control { carrier, kind: Kind::Goaway, aux, payload } if *carrier == key => {
            let reason = Reason::of(*aux);
            (reason != Reason::Draining).then(|| Lost { reason, detail: tame(payload) })
        }
        _ => None,
    }
}
