//! One TCP connection between bridge and agent: its socket, its cipher if it has one, its mux, and where it stands in
//! the frame it is reading and the frame it is writing.
//! Promise: a frame that was begun is finished before another begins, whatever blocks in between.

use super::load::{Load, Pool};
use super::signs::{Signs, silence};
use crate::frame::{HEADER_BYTES, Kind, Reason, Violation};
use crate::mux::Mux;
use crate::slots::Key;
use crate::tls::{Tls, TlsError, Wear};
use ringspan_engine::kernel::{Pipe, Socket};
use ringspan_engine::time::Instant;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// A carrier's socket holds unsent about what it sends in this time: a small stream waits that long for what was handed
/// to the kernel before it, and a worker that is busy elsewhere for that long does not let the link run dry.
const NOTSENT_TIME: Duration = Duration::from_millis(3);
/// At least this: 26 ms at 10 Mbit/s.
const NOTSENT_MIN: u32 = 32 << 10;
/// At most this: beyond it bulk on loopback gains nothing.
const NOTSENT_MAX: u32 = 512 << 10;
/// A carrier that moved more than this in a second is busy.
const BUSY_BYTES: u64 = 256 << 10;

/// What a carrier that sends so many bytes a second may hold unsent, and how long its frames may be.
pub(crate) fn unsent_bytes(per_second: u64) -> u32 {
    let bytes = per_second.saturating_mul(NOTSENT_TIME.as_millis() as u64) / 1000;
    bytes.clamp(NOTSENT_MIN.into(), NOTSENT_MAX.into()) as u32
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Only HELLO and GOAWAY are allowed, until the role says that the peer is who it should be.
    Hello,
    Up,
    /// Lost or ended; waits for its polls to come home.
    Closing,
    /// As `Closing`, then it is handed to the role, to live on another worker.
    Moving,
}

/// Where the reader stands.
#[derive(Debug)]
pub(super) enum Reading {
    Head,
    Data {
        id: u32,
        owner: Key,
        left: usize,
        fin: bool,
    },
    Discard {
        left: usize,
    },
    Control {
        kind: Kind,
        aux: u16,
        left: usize,
    },
    /// The payload of an OPEN.
    Open {
        id: u32,
        backend: u16,
        tell: bool,
        left: usize,
    },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub(super) socket: Socket,
    /// `None` only while the mover that holds it runs.
    pub(super) tls: Option<Tls>,
    /// The socket carries plaintext: there is no cipher, or the kernel has the keys.
    pub(super) plain: bool,
    /// Payloads may be spliced into the socket.
    pub(super) splice_out: bool,
    /// Payloads may be spliced out of the socket.
    pub(super) splice_in: bool,
    /// The kernel makes TLS records of what is written: see [`offload`](super::offload).
    pub(super) records: bool,
    /// Whether the kernel gets the keys is decided.
    pub(super) offload_settled: bool,
    /// close_notify has come among the kernel's records.
    pub(super) said_end: bool,
    /// What the keys have done, each way.
    pub(super) wear_in: Wear,
    pub(super) wear_out: Wear,
    pub(super) mux: Mux<Key>,
    pub(super) load: Load,
    pub(super) phase: Phase,
    pub(super) reading: Reading,
    pub(super) head: [u8; HEADER_BYTES],
    pub(super) head_len: usize,
    /// The payload of a control frame, as far as it has come.
    pub(super) body: Vec<u8>,
    /// The last DATA frame was worth splicing: read the next header alone, so that its payload stays in the kernel.
    pub(super) bulk: bool,
    pub(super) readable: bool,
    /// The kernel has said that it is, and no byte has come since.
    pub(super) woken: bool,
    /// The role looks at a HELLO: nothing is read or parsed until it is done.
    pub(super) paused: bool,
    /// Bytes that had been read behind that HELLO.
    pub(super) stash: Vec<u8>,
    /// The role was told that HELLO may flow.
    pub(super) announced: bool,
    pub(super) read_armed: bool,
    pub(super) write_armed: bool,
    /// Takes no new streams, and ends with its last one.
    pub(super) draining: bool,
    /// Drained: the peer was told then, and closes.
    pub(super) parted: Option<Instant>,
    /// Bytes of begun frames that the socket did not take.
    pub(super) out: Vec<u8>,
    pub(super) out_at: usize,
    /// The payload that follows them, if it is spliced: bytes left in the pipe.
    pub(super) out_pipe: Option<(Pipe, usize)>,
    /// Stands in the plane's list of carriers with work.
    pub(super) queued: bool,
    /// It waits for the end of bulk's rest.
    pub(super) rests: bool,
    pub(super) signs: Signs,
    /// The socket has taken bytes since the last look.
    pub(super) has_sent: bool,
    pub(super) since: Instant,
    /// Payload in the last full second, both ways.
    pub(super) bytes_last: u64,
    /// What the socket was told of how much may be unsent.
    notsent: u32,
}

impl Carrier {
    /// Bytes have come.
    pub(super) fn on_bytes(&mut self, now: Instant) {
        self.woken = false;
        self.signs.on_heard(now);
    }

    pub(super) fn new(socket: Socket, tls: Tls, mux: Mux<Key>, signs: Signs, now: Instant) -> Carrier {
        Carrier {
            socket,
            plain: tls.is_plain(),
            splice_out: tls.is_plain(),
            splice_in: tls.is_plain(),
            records: false,
            offload_settled: tls.is_plain(),
            said_end: false,
            wear_in: Wear::default(),
            wear_out: Wear::default(),
            tls: Some(tls),
            mux,
            load: Load::Mux(Pool::default()),
            phase: Phase::Hello,
            reading: Reading::Head,
            head: [0; HEADER_BYTES],
            head_len: 0,
            body: Vec::new(),
            bulk: false,
            readable: true,
            woken: false,
            paused: false,
            stash: Vec::new(),
            announced: false,
            read_armed: false,
            write_armed: false,
            draining: false,
            parted: None,
            out: Vec::new(),
            out_at: 0,
            out_pipe: None,
            queued: false,
            rests: false,
            signs,
            has_sent: false,
            since: now,
            bytes_last: 0,
            notsent: super::NOTSENT_BYTES,
        }
    }

    /// Whether the writer has something to do and nothing to wait for.
    pub(super) fn wants_tx(&self) -> bool {
        self.wants_tx_of(self.mux.has_output())
    }

    /// The same, while bulk rests.
    pub(super) fn wants_urgent_tx(&self) -> bool {
        self.wants_tx_of(self.mux.has_urgent())
    }

    fn wants_tx_of(&self, framed: bool) -> bool {
        let cipher = self.tls.as_ref().is_some_and(|tls| !tls.outgoing().is_empty());
        let left = self.out_at < self.out.len() || self.out_pipe.is_some() || cipher;
        self.is_live() && !self.write_armed && (left || ((framed || self.has_raw_output()) && !self.is_shaking_hands()))
    }

    /// Once a second: takes stock of the traffic, and lets the socket hold unsent what it sends in [`NOTSENT_TIME`].
    /// Returns whether it is busy: then its round trip is worth a look.
    pub(super) fn on_second(&mut self) -> bool {
        let (sent, received) = self.mux.take_traffic();
        self.bytes_last = sent + received;
        if self.bytes_last == 0 {
            self.release_idle();
        }
        let want = unsent_bytes(sent);
        // Only for a change that matters, and an idle carrier keeps what it had: bulk often comes back.
        if sent > BUSY_BYTES && want.abs_diff(self.notsent) > self.notsent / 4 {
            self.set_unsent(want);
        }
        self.bytes_last > BUSY_BYTES
    }

    /// Gives back what nothing is in: of a thousand agents most say nothing most of the time, and their buffers, of tens of
    /// KiB where this process encrypts, come back with the first byte.
    fn release_idle(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.release_idle();
        }
        for buffer in [&mut self.out, &mut self.body, &mut self.stash] {
            if buffer.is_empty() {
                *buffer = Vec::new();
            }
        }
    }

    /// After a turn: what was sent in the second that runs is the least it can send in a whole one.
    pub(super) fn keep_pace(&mut self) {
        let want = unsent_bytes(self.mux.sent_bytes());
        if want > self.notsent + self.notsent / 2 {
            self.set_unsent(want);
        }
    }

    fn set_unsent(&mut self, bytes: u32) {
        self.notsent = bytes;
        // It is a hint: without it, small streams wait longer behind bulk.
        let _ = self.socket.set_notsent_lowat(bytes);
        self.mux.set_frame_bytes(bytes);
    }

    /// Whether it reads and writes.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Hello | Phase::Up)
    }
}

/// Why a carrier is over.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) reason: Reason,
    pub(super) detail: String,
}

impl From<Violation> for Lost {
    fn from(violation: Violation) -> Lost {
        Lost { reason: Reason::Protocol, detail: violation.to_string() }
    }
}

impl From<TlsError> for Lost {
    fn from(error: TlsError) -> Lost {
        Lost { reason: Reason::HandshakeBad, detail: error.to_string() }
    }
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        if error.kind() == ErrorKind::TimedOut {
            // What the kernel says of a far end that answers neither bytes nor probes.
            return Lost { reason: Reason::Silent, detail: silence() };
        }
        Lost { reason: Reason::LinkLost, detail: error.to_string() }
    }
}

impl Lost {
    pub(super) fn end() -> Lost {
        Lost { reason: Reason::LinkLost, detail: "closed by the peer".into() }
    }

    /// Its last stream has ended, and it takes no new ones.
    pub(super) fn drained() -> Lost {
        Lost { reason: Reason::Disconnected, detail: super::ends::DRAINED.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mux::{Limits, Side};

    /// A second without payload, and the carrier holds no memory that nothing is in; what has half come stays, and one that
    /// is at work keeps its buffers.
    #[test]
    fn an_idle_carrier_holds_no_buffers() {
        let (socket, _far) = Socket::pair().expect("descriptors");
        let mux = Mux::new(Side::Accepter, Limits::default());
        let signs = Signs::new(Side::Accepter, false, Instant::ZERO);
        let mut carrier = Carrier::new(socket, Tls::plain(), mux, signs, Instant::ZERO);
        let tls = |carrier: &mut Carrier| carrier.tls.take().expect("nobody moves it");
        let mut cipher = tls(&mut carrier);
        assert!(cipher.receive_space().len() > 100);
        cipher.on_received(100).expect("it is plain");
        carrier.tls = Some(cipher);
        carrier.body.reserve(1000);
        carrier.on_second();
        let mut cipher = tls(&mut carrier);
        assert!(cipher.memory_bytes() > 0 && carrier.body.capacity() == 0, "a half frame waits, no payload does");
        cipher.consume(100);
        carrier.tls = Some(cipher);
        let header = crate::frame::Header { len: 100, ..crate::frame::Header::new(Kind::Data, 7) };
        // Of a stream that is over: payload all the same.
        let _ = carrier.mux.on_header(&header);
        carrier.on_second();
        assert!(carrier.tls.as_ref().is_some_and(|tls| tls.memory_bytes() > 0), "it was at work");
        carrier.on_second();
        assert_eq!(carrier.tls.as_ref().map(Tls::memory_bytes), Some(0));
    }
}
