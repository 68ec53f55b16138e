//! One frame header: 16 bytes that say what follows.
//!
//! ```text
//!  0 u8   version << 4 | type
//!  1 u8   flags                FIN = 1, MOVED = 4 (DATA); TELL = 2, JOIN = 8 (OPEN)
//!  2 u16  aux                  OPEN: which exposed backend; RST, GOAWAY: a `Reason`
//!  4 u32  stream               generation << 16 | slot; 0 is the carrier itself
//!  8 u32  len                  bytes of payload that follow
//! 12 u32  credit               bytes granted to the receiver of this frame on this stream
//! ```
//! Little endian, fixed size: one read size for every frame, and a grant rides on each (0.006 % of a 256 KiB frame;
//! small frames are batched into one send). Pure: no socket. Written out in docs/link-protocol.md.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;

/// The protocol version this build speaks; another one ends the carrier.
pub const VERSION: u8 = 1;

/// No peer may announce a larger frame: bounds what one frame can hold up on a slow carrier.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;

/// Largest payload of a frame that is kept whole in memory (HELLO, HEALTH, OPEN, GOAWAY).
pub const CONTROL_BYTES_MAX: u32 = 64 << 10;

/// The last frame of its direction: the sender writes no more on this stream.
pub const FLAG_FIN: u8 = 1;

/// On an OPEN: answer OPENED as soon as the backend is reached, before it has said anything.
pub const FLAG_TELL: u8 = 2;

/// Largest payload of an OPEN: a target's name and then some.
pub const OPEN_BYTES_MAX: u32 = 1024;

/// On an empty DATA frame: the last of its direction on this carrier; what follows comes on the stream's direct carrier.
pub const FLAG_MOVED: u8 = 4;

/// On the OPEN of a direct carrier: it carries on the stream `stream` of the link's carrier that it belongs to.
pub const FLAG_JOIN: u8 = 8;

/// How a TLS connection begins (RFC 8446 §5.1: handshake record, legacy version 3.x). As a frame it would be a PONG with
/// flags that do not exist.
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of a stream; with `FLAG_FIN` the last ones.
    Data = 1,
    /// The bridge opens a stream to the backend `aux`. DATA may follow at once. The payload, mostly none, is an
    /// [`OpenInfo`](crate::mux::OpenInfo).
    Open = 2,
    /// The backend answered the dial. Only if the OPEN asked (`FLAG_TELL`); the first DATA says the same.
    Opened = 3,
    /// Nothing but its `credit`.
    Window = 4,
    /// Please answer; `credit` is the cookie, `stream` is 0.
    Ping = 5,
    /// The answer, with the cookie.
    Pong = 6,
    /// The stream is over, both ways, for the `Reason` in `aux`.
    Rst = 7,
    /// The carrier is over, for the `Reason` in `aux`; the payload may hold a sentence.
    Goaway = 8,
    /// A step of the handshake; the payload is `hello`'s.
    Hello = 9,
    /// Health of backends; the payload is `health_feed`'s.
    Health = 10,
    /// The bridge wants this many direct carriers (`aux`) to wait for streams of this carrier.
    Spare = 11,
}

impl Kind {
    fn of(value: u8) -> Option<Kind> {
        Some(match value {
            1 => Kind::Data,
            2 => Kind::Open,
            3 => Kind::Opened,
            4 => Kind::Window,
            5 => Kind::Ping,
            6 => Kind::Pong,
            7 => Kind::Rst,
            8 => Kind::Goaway,
            9 => Kind::Hello,
            10 => Kind::Health,
            11 => Kind::Spare,
            _ => return None,
        })
    }
}

macro_rules! reasons {
    ($($name:ident $value:literal $text:literal $sentence:literal)*) => {
        /// Why a stream or a carrier ended, or a visitor was not served.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Reason { $(#[doc = $sentence] $name = $value),* }

        impl Reason {
            /// Every reason, in the table's order.
            pub const ALL: &[Reason] = &[$(Reason::$name),*];
            /// The number on the wire, as a reason; one this build does not know is `Other`.
            pub const fn of(value: u16) -> Reason { match value { $($value => Reason::$name,)* _ => Reason::Other } }
            /// The short name in logs and metrics.
            pub const fn as_str(self) -> &'static str { match self { $(Reason::$name => $text),* } }
            /// One sentence for people.
            pub const fn sentence(self) -> &'static str { match self { $(Reason::$name => $sentence),* } }
        }
    };
}

reasons! {
    Other           0  "other"            "A reason this version has no word for."
    SocketReset     1  "socket_reset"     "The socket at the far side was reset."
    DialRefused     2  "dial_refused"     "Nothing listens at the backend's address."
    DialTimeout     3  "dial_timeout"     "The backend did not answer the dial in time."
    DialUnreachable 4  "dial_unreachable" "The network says that the backend cannot be reached."
    DialLocal       5  "dial_local"       "The agent had no descriptor, port or memory for the dial."
    UnknownBackend  6  "unknown_backend"  "The agent exposes no backend of that number."
    StreamsMax      7  "streams_max"      "The carrier carries as many streams as it may."
    MemoryMax       8  "memory_max"       "Too many bytes wait for slow receivers."
    Stopping        9  "stopping"         "The process is stopping."
    Protocol        10 "protocol"         "The peer broke the protocol."
    Silent          11 "silent"           "The peer has not been heard for too long."
    LinkLost        12 "link_lost"        "The connection to the peer broke."
    Refused         13 "refused"          "The bridge refused the agent."
    Disconnected    14 "disconnected"     "The operator or the control plane ended the link."
    NoBackend       15 "no_backend"       "The service has no healthy backend with a link."
    NoService       16 "no_service"       "No such service is known."
    HandoverFull    17 "handover_full"    "The worker that owns the link has too many visitors waiting."
    HandshakeSlow   18 "handshake_slow"   "The peer did not finish the handshake in time."
    HandshakeBad    19 "handshake_bad"    "The peer's handshake was wrong."
    HandshakesMax   20 "handshakes_max"   "Too many unauthenticated connections at once."
    Draining        21 "draining"         "No new streams: those that are there go on to their end."
    ConnectionsMax  22 "connections_max"  "As many connections at once as the limit allows."
    RateMax         23 "rate_max"         "More new connections a second than the limit allows."
    Denied          24 "denied"           "The visitor's address may not come in here."
    IdleTime        25 "idle_time"        "Nothing was said for longer than the limit allows."
    TotalTime       26 "total_time"       "The connection lasted as long as the limit allows."
    ProxyHeader     27 "proxy_header"     "The PROXY header is missing, late or wrong, or comes from who is not trusted."
    VisitorsMax     28 "visitors_max"     "More different visitors at once than the table of their limits has room for."
    TargetDenied    29 "target_denied"    "The agent does not go there: the target is not on its allow-list."
    TargetUnknown   30 "target_unknown"   "The target's name has no address where the agent is."
}

impl Reason {
    /// Whether it says that a backend could not be reached.
    pub const fn is_dial(self) -> bool {
        matches!(self, Self::DialRefused | Self::DialTimeout | Self::DialUnreachable | Self::DialLocal)
    }
}

impl Reason {
    /// Whether it says of a stream that its backend has not been reached, so that another may be tried.
    pub const fn is_unreached(self) -> bool {
        self.is_dial() || matches!(self, Self::UnknownBackend | Self::StreamsMax | Self::NoBackend | Self::HandoverFull)
    }

    /// Whether it says that the link ended under a stream: nobody knows whether the backend was reached.
    pub const fn is_link(self) -> bool {
        matches!(self, Self::LinkLost | Self::Silent | Self::Stopping | Self::Disconnected | Self::Protocol)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A header, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// `FLAG_FIN` and its like. Unknown flags are ignored.
    pub flags: u8,
    /// See the module's picture.
    pub aux: u16,
    /// Which stream; 0: the carrier.
    pub stream: u32,
    /// Bytes of payload, 0 to the negotiated maximum.
    pub len: u32,
    /// Bytes granted; the cookie of a PING or PONG.
    pub credit: u32,
}

impl Header {
    /// A header with nothing but its kind and stream.
    pub const fn new(kind: Kind, stream: u32) -> Header {
        Header { kind, flags: 0, aux: 0, stream, len: 0, credit: 0 }
    }

    /// Whether this is the last frame of its direction.
    pub const fn is_fin(&self) -> bool {
        self.flags & FLAG_FIN != 0
    }

    /// Whether what follows of this direction comes on the direct carrier.
    pub const fn is_moved(&self) -> bool {
        self.flags & FLAG_MOVED != 0
    }

    /// The 16 bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = VERSION << 4 | self.kind as u8;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.aux.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.credit.to_le_bytes());
        bytes
    }

    /// Reads what [`encode`](Header::encode) wrote.
    ///
    /// # Errors
    /// [`Violation`] for another version, an unknown kind or a length over the cap: the peer is not one of ours, and
    /// nothing after this can be trusted.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Violation> {
        if bytes[..2] == TLS_HANDSHAKE {
            return Err(Violation::Tls);
        }
        if bytes[0] >> 4 != VERSION {
            return Err(Violation::Version(bytes[0] >> 4));
        }
        let u32_at = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        let header = Header {
            kind: Kind::of(bytes[0] & 15).ok_or(Violation::Kind(bytes[0] & 15))?,
            flags: bytes[1],
            aux: u16::from_le_bytes([bytes[2], bytes[3]]),
            stream: u32_at(4),
            len: u32_at(8),
            credit: u32_at(12),
        };
        let len_max = if header.kind == Kind::Data { FRAME_BYTES_MAX } else { CONTROL_BYTES_MAX };
        if header.len > len_max {
            return Err(Violation::Length(header.len));
        }
        Ok(header)
    }
}

/// How a peer broke the protocol. It costs the peer its carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Another protocol version, or no ringspan at all.
    #[error("frame of version {0}, not {VERSION}")]
    Version(u8),
    /// A TLS handshake.
    #[error("the peer speaks TLS, and this end does not: is tls = \"off\" at one end only?")]
    Tls,
    /// A frame type this version does not have.
    #[error("unknown frame type {0}")]
    Kind(u8),
    /// A frame over the cap.
    #[error("frame of {0} bytes is over the limit")]
    Length(u32),
    /// A frame that makes no sense at this point or in this direction.
    #[error("{0:?} frame out of place")]
    Unexpected(Kind),
    /// More bytes than were granted.
    #[error("{0} bytes beyond the window")]
    Window(u32),
    /// A grant that overflows.
    #[error("credit overflow")]
    Credit,
    /// DATA after FIN.
    #[error("data after the end of the stream")]
    AfterFin,
    /// OPEN of a slot that is out of range or in use.
    #[error("open of a slot that is not free")]
    Slot,
    /// The peer makes us answer and does not read the answers.
    #[error("too many unread answers")]
    Flood,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any 16 bytes either decode to a header that encodes back to them, or are refused; nothing panics.
        #[test]
        fn bytes_come_back(bytes: [u8; 16]) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    /// The table on the wire does not move: these bytes are version 1.
    #[test]
    fn the_wire_is_pinned() {
        let header = Header { kind: Kind::Data, flags: FLAG_FIN, aux: 0x0203, stream: 0x0405_0607, len: 8, credit: 9 };
        assert_eq!(header.encode(), [0x11, 1, 3, 2, 7, 6, 5, 4, 8, 0, 0, 0, 9, 0, 0, 0]);
        let long = Header { len: FRAME_BYTES_MAX + 1, ..header };
        assert_eq!(Header::decode(&long.encode()), Err(Violation::Length(FRAME_BYTES_MAX + 1)));
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!((*reason as usize, Reason::of(i as u16)), (i, *reason));
        }
    }
}
