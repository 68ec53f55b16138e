//! The words of a mux: which side it is, what both have agreed on, what an arrived header means, what goes out next.
//! Values without behaviour: who acts on them is [`Mux`](super::Mux), and the plane around it.

use crate::credit::{WINDOW_BYTES_INITIAL, WINDOW_BYTES_INITIAL_MAX};
use crate::frame::{FRAME_BYTES_MAX, Header, Kind, Reason};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Which side of the carrier this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens streams: the bridge.
    Opener,
    /// Takes them: the agent.
    Accepter,
}

/// What both sides agreed on in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest DATA payload, 16 KiB to 1 MiB. Default 256 KiB.
    pub frame_bytes_max: u32,
    /// Credit each stream starts with, 64 KiB to 4 MiB. Default 256 KiB.
    pub window_bytes: u32,
    /// Most streams at once on one carrier, 1 to 65,535: the opener's own bound, the accepter takes what comes.
    /// Default 16,384.
    pub streams_max: u16,
}

impl Limits {
    /// What the bridge's welcome says, brought into range the same way at both ends.
    pub fn agreed(said: &crate::hello::Limits, streams_max: u16) -> Limits {
        Limits {
            frame_bytes_max: said.frame_bytes_max.clamp(16 << 10, FRAME_BYTES_MAX),
            window_bytes: said.window_bytes.clamp(64 << 10, WINDOW_BYTES_INITIAL_MAX),
            streams_max,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { frame_bytes_max: 256 << 10, window_bytes: WINDOW_BYTES_INITIAL, streams_max: 16_384 }
    }
}

/// What an OPEN says beside the backend's number: the payload, JSON, or nothing at all. Unknown fields are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenInfo {
    /// Where to, for a backend that reaches many: `host:port`, at most 300 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Who comes, as the bridge sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visitor: Option<SocketAddr>,
}

impl OpenInfo {
    /// The payload: empty if nothing is said.
    pub fn encode(&self) -> Vec<u8> {
        if *self == OpenInfo::default() {
            return Vec::new();
        }
        serde_json::to_vec(self).expect("strings and addresses always have a JSON form")
    }

    /// Reads a payload; what is no `OpenInfo` says nothing.
    pub fn decode(payload: &[u8]) -> OpenInfo {
        let info: OpenInfo = serde_json::from_slice(payload).unwrap_or_default();
        let target = info.target.filter(|t| !t.is_empty() && t.len() <= 300 && !t.contains(char::is_control));
        OpenInfo { target, ..info }
    }
}

/// What an arrived header means. The payload, `len` bytes, follows it on the carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<K> {
    /// Nothing to do; no payload.
    Nothing,
    /// Throw `len` bytes away.
    Discard {
        /// Bytes.
        len: u32,
    },
    /// A new stream for backend `aux`: answer with [`Mux::adopt`](super::Mux::adopt) or [`Mux::reset`](super::Mux::reset). The payload is an [`OpenInfo`].
    Open {
        /// The stream.
        id: u32,
        /// Which exposed backend.
        aux: u16,
        /// Bytes of payload.
        len: u32,
        /// Whether [`Mux::opened`](super::Mux::opened) is wanted.
        tell: bool,
    },
    /// The backend of our stream was reached.
    Opened {
        /// Whose.
        owner: K,
    },
    /// `len` bytes for the owner, then, with `fin`, the end. Report what was written with [`Mux::delivered`](super::Mux::delivered).
    Data {
        /// The stream.
        id: u32,
        /// Whose.
        owner: K,
        /// Bytes.
        len: u32,
        /// Whether they are the last.
        fin: bool,
    },
    /// The peer's next bytes for this owner come on the stream's direct carrier, or they have ended there.
    Moved {
        /// Whose.
        owner: K,
    },
    /// The bridge wants `count` direct carriers to wait for streams of this carrier.
    Spare {
        /// How many.
        count: u16,
    },
    /// The peer reset the stream: reset the owner's socket. The mux has forgotten it.
    Reset {
        /// Whose.
        owner: K,
        /// Why.
        reason: Reason,
    },
    /// Our PING came back: tell [`Mux::on_pong`](super::Mux::on_pong) when.
    Pong {
        /// Its cookie.
        cookie: u32,
    },
    /// A payload of `len` bytes for the layer above (HELLO, HEALTH, GOAWAY).
    Control {
        /// Which.
        kind: Kind,
        /// The header's aux.
        aux: u16,
        /// Bytes.
        len: u32,
    },
}

/// What goes out next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<K> {
    /// This header and this payload (mostly empty).
    Control(Header, Vec<u8>),
    /// Take up to `len_max` bytes from the owner's socket, then call [`Mux::sent`](super::Mux::sent) or [`Mux::dry`](super::Mux::dry).
    Data {
        /// The stream.
        id: u32,
        /// Whose.
        owner: K,
        /// At least 1.
        len_max: u32,
    },
}
