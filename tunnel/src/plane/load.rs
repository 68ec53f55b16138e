//! What a carrier carries: many streams in frames, none yet, one as it is, or that one's last bytes. What follows from it for
//! who reads and who writes; how one becomes another is in [`direct`](super::direct).

use super::carrier::Carrier;
use super::spares::Demand;
use crate::mux::Output;
use crate::slots::Key;
use ringspan_engine::time::Instant;

/// What a carrier carries.
#[derive(Debug)]
pub(super) enum Load {
    /// Many streams in frames.
    Mux(Pool),
    /// Nothing yet: waits for a stream of this carrier.
    Spare { link: Key },
    /// One stream, as it is.
    Stream(Raw),
    /// The last bytes of a stream that is over. It is closed when all is said and the peer's answer has been read: closing
    /// on unread bytes is a reset, which takes what is still unsent with it (RFC 2525 §2.17).
    Ending { link: Key, since: Instant, said: bool, answered: bool },
}

/// The direct carriers that wait for streams of one carrier.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) waiting: Vec<Key>,
    pub(super) demand: Demand,
    /// Bridge: streams that found none waiting, oldest first; they may have ended since.
    pub(super) asking: Vec<Key>,
    /// Agent: streams whose marker has come and whose direct carrier has not. The mux may have forgotten them: their other
    /// direction may be over.
    pub(super) awaited: Vec<(u32, Key)>,
}

/// A direct carrier with its stream.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) endpoint: Key,
    /// The carrier it was waiting for: if that falls silent, so has this one. If it is lost otherwise, this one is an orphan.
    pub(super) link: Key,
    pub(super) since: Instant,
    /// The peer's next byte is the stream's, no longer a header's.
    pub(super) answered: bool,
    /// The stream's socket may have bytes, or its end.
    pub(super) ready: bool,
    /// Not read on: the stream's socket is full, or not there yet, or the mux is to be finished first.
    pub(super) stalled: bool,
    /// The peer has ended its direction here.
    pub(super) in_ended: bool,
    /// Our direction ends behind what is unsent, and then: it has ended.
    pub(super) fin: Fin,
    /// What comes in is spliced; reads in a row that speak for the other mover.
    pub(super) splices: bool,
    pub(super) streak: u8,
    /// It moved little in the last turn in which it moved: it is served while bulk rests.
    pub(super) is_light: bool,
}

/// The end of our direction on a direct carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fin {
    No,
    Due,
    Said,
}

impl Raw {
    pub(super) fn new(endpoint: Key, link: Key, since: Instant, answered: bool) -> Raw {
        Raw {
            endpoint,
            link,
            since,
            answered,
            ready: true,
            stalled: false,
            in_ended: false,
            fin: Fin::No,
            splices: false,
            streak: 0,
            is_light: true,
        }
    }
}

impl Carrier {
    /// Whether its bytes are a stream's own.
    pub(super) fn is_raw(&self) -> bool {
        match &self.load {
            Load::Stream(raw) => raw.answered,
            Load::Ending { answered, .. } => *answered,
            Load::Mux(_) | Load::Spare { .. } => false,
        }
    }

    pub(super) fn raw(&mut self) -> Option<&mut Raw> {
        match &mut self.load {
            Load::Stream(raw) => Some(raw),
            Load::Mux(_) | Load::Spare { .. } | Load::Ending { .. } => None,
        }
    }

    /// Whether bulk is on it: it rests.
    pub(super) fn is_heavy(&self) -> bool {
        matches!(&self.load, Load::Stream(raw) if !raw.is_light)
    }

    /// Whether it only carries frames: it is asked for signs of life.
    pub(super) fn is_framed(&self) -> bool {
        matches!(self.load, Load::Mux(_) | Load::Spare { .. })
    }

    /// The link of the stream that it carries, or carries the last bytes of.
    pub(super) fn link_of_stream(&self) -> Option<Key> {
        match &self.load {
            Load::Stream(Raw { link, .. }) | Load::Ending { link, .. } => Some(*link),
            Load::Mux(_) | Load::Spare { .. } => None,
        }
    }

    /// Of the carrier of a link.
    pub(super) fn pool(&mut self) -> Option<&mut Pool> {
        match &mut self.load {
            Load::Mux(pool) => Some(pool),
            Load::Spare { .. } | Load::Stream(_) | Load::Ending { .. } => None,
        }
    }

    /// What is still to be said in frames goes out before the next word: a welcome, a sign of life.
    pub(super) fn leave_frames(&mut self) {
        while let Some(output) = self.mux.next_output() {
            if let Output::Control(header, payload) = output {
                self.out.extend_from_slice(&header.encode());
                self.out.extend_from_slice(&payload);
            }
        }
    }

    /// Something for the raw writer to do.
    pub(super) fn has_raw_output(&self) -> bool {
        match &self.load {
            Load::Stream(raw) => raw.ready || raw.fin == Fin::Due,
            Load::Ending { said, answered, .. } => !*said || *answered,
            Load::Mux(_) | Load::Spare { .. } => false,
        }
    }

    /// Whether the reader should look.
    pub(super) fn wants_rx(&self) -> bool {
        let waits = match &self.load {
            Load::Stream(raw) => raw.stalled || raw.in_ended,
            Load::Ending { answered, .. } => *answered,
            Load::Mux(_) | Load::Spare { .. } => false,
        };
        let has = self.readable || (self.is_raw() && !self.stash.is_empty());
        self.is_live() && has && !self.paused && !waits
    }
}
