//! The handshake of a carrier, after TLS and before anything else: two pure state machines and what they say.
//!
//! ```text
//! bridge  AwaitAuth ──CHALLENGE──►  AwaitChallenge  agent
//!             │     ◄────AUTH─────  AwaitVerdict
//!          Deciding (control plane looks into its keyring)
//!             └──WELCOME | REFUSED─► over
//! ```
//! The agent signs (context, nonce, channel binding, everything it says) with its own key; to enrol, it also signs with
//! the key of its join token. The nonce is fresh and the binding belongs to this one TLS connection, so nothing heard
//! on the wire is of use anywhere else.
//!
//! Promises: whatever comes in, the answer is the next step or a refusal with a reason; never a panic, never more than
//! [`HELLO_BYTES_MAX`] looked at. Payloads are JSON; unknown fields are ignored; versions are negotiated. Both machines
//! are pure: the nonce and the decision come in, messages go out. Deadlines are the caller's ([`DEADLINE`]).

mod admission;
mod agent;
mod bridge;
mod messages;

pub use admission::{Admission, AgentRecord, admit, admit_visit};
pub use agent::{AgentHello, AgentStep, Introduction};
pub use bridge::{Applicant, BridgeHello, BridgeStep};
pub use messages::{
    Carrier, CarrierUse, Expose, Limits, NotAService, Opened, Refusal, RefusalCode, ServiceName, SessionId, Versions,
    Welcome,
};

use std::time::Duration;

/// Largest payload of a handshake message: 256 backends with long names fit, and an unknown peer costs no more.
pub const HELLO_BYTES_MAX: usize = 64 * 1024;

/// From TCP connect to WELCOME, TLS included. The longest honest case is a slow store on the bridge; a silent
/// connection is closed after this and holds a few KiB until then.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Versions of the link protocol that this code speaks.
pub const VERSIONS: Versions = Versions { min: 1, max: 1 };

/// Most services with a backend that one agent exposes: the index of a backend travels as u16 and in small tables.
pub const EXPOSES_MAX: usize = 256;

/// Most carriers of one link.
pub const CARRIERS_MAX: u8 = 16;

/// The four messages. The number is the `aux` of their HELLO frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Bridge: versions and nonce.
    Challenge = 0,
    /// Agent: who it is, and the proof.
    Auth = 1,
    /// Bridge: come in.
    Welcome = 2,
    /// Bridge: stay out, and why.
    Refused = 3,
}

/// One message to send: a control frame with this payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which.
    pub kind: Kind,
    /// JSON, at most [`HELLO_BYTES_MAX`].
    pub payload: Vec<u8>,
}

impl Message {
    fn new<T: serde::Serialize>(kind: Kind, content: &T) -> Message {
        let payload = serde_json::to_vec(content).expect("strings and numbers are always JSON");
        Message { kind, payload }
    }
}

#[cfg(test)]
mod tests;
