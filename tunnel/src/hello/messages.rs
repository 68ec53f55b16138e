//! What is said in the handshake, as types. Their JSON is in docs/link-protocol.md.

use super::{CARRIERS_MAX, EXPOSES_MAX, HELLO_BYTES_MAX, Kind, Message};
use crate::identity::{AgentId, AgentName};
use crate::keys::{KEY_BYTES, PublicKey, Signature, from_base64, random, to_base64};
use crate::tls::Binding;
use crate::token::TokenId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// An inclusive range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl Versions {
    /// The newest version in both ranges.
    pub fn common(self, other: Versions) -> Option<u16> {
        let max = self.max.min(other.max);
        (max >= self.min.max(other.min)).then_some(max)
    }

    /// Whether `version` is in the range.
    pub fn contains(self, version: u16) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// A number that is used once: fresh for every connection.
pub(super) type Nonce = [u8; KEY_BYTES];

/// serde of a nonce and of a session id: base64url.
macro_rules! as_base64 {
    ($module:ident, $bytes:expr) => {
        pub(super) mod $module {
            use super::*;
            pub(in super::super) fn serialize<S: serde::Serializer>(
                bytes: &[u8; $bytes],
                to: S,
            ) -> Result<S::Ok, S::Error> {
                to.serialize_str(&to_base64(bytes))
            }
            pub(in super::super) fn deserialize<'de, D: serde::Deserializer<'de>>(
                from: D,
            ) -> Result<[u8; $bytes], D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                from_base64(&text)
                    .ok_or_else(|| serde::de::Error::custom(concat!("not ", stringify!($bytes), " bytes of base64url")))
            }
        }
    };
}

const SESSION_BYTES: usize = 16;
as_base64!(nonce, KEY_BYTES);
as_base64!(session, SESSION_BYTES);

/// CHALLENGE.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Challenge {
    pub(super) versions: Versions,
    #[serde(with = "nonce")]
    pub(super) nonce: Nonce,
    /// For the agent's log only.
    #[serde(default)]
    pub(super) software: String,
}

/// One run of an agent process. Its carriers share it; another one replaces it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(#[serde(with = "session")] [u8; SESSION_BYTES]);

impl SessionId {
    /// A fresh one, for the start of an agent process.
    pub fn generate() -> SessionId {
        SessionId(random())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base64(&self.0))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Which of a link's connections this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carrier {
    /// 0 to `count` - 1.
    pub index: u8,
    /// How many the agent keeps, 1 to [`CARRIERS_MAX`].
    pub count: u8,
    /// Tells the connections of one session apart that had this index one after the other; the agent counts them. A
    /// direct carrier has the number of the one that it belongs to.
    #[serde(default)]
    pub serial: u32,
    /// What the connection is for.
    #[serde(default, rename = "use")]
    pub used: CarrierUse,
    /// TCP ends on the way, at a proxy: what its far end's kernel says is no sign of life.
    #[serde(default)]
    pub relayed: bool,
}

/// What a connection of a link is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CarrierUse {
    /// Many streams in frames.
    #[default]
    Mux,
    /// It waits for one stream, and carries that one without frames.
    Direct,
}

impl Carrier {
    /// The first connection with this index, for many streams.
    pub fn mux(index: u8, count: u8) -> Carrier {
        Carrier { index, count, serial: 0, used: CarrierUse::Mux, relayed: false }
    }
}

/// What visitors ask for, by name: 1 to 128 bytes without white space and control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// Longest name of a service, in bytes.
const SERVICE_BYTES_MAX: usize = 128;

/// The text cannot be the name of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a service's name is 1 to {SERVICE_BYTES_MAX} bytes without white space and control characters")]
pub struct NotAService;

impl TryFrom<String> for ServiceName {
    type Error = NotAService;

    fn try_from(text: String) -> Result<Self, NotAService> {
        let printable = !text.chars().any(|c| c.is_control() || c.is_whitespace());
        let good = (1..=SERVICE_BYTES_MAX).contains(&text.len()) && printable;
        if good { Ok(ServiceName(text)) } else { Err(NotAService) }
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> String {
        name.0
    }
}

impl ServiceName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One backend an agent offers. Its place in the list is its index on the link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expose {
    /// For visitors of this service.
    pub service: ServiceName,
    /// What the agent dials, for people and for the registry; the bridge never dials it. At most 255 bytes.
    pub address: String,
    /// Share of visitors beside other backends of the service, 1 to 100. Default 1.
    #[serde(default = "weight_default")]
    pub weight: u8,
    /// 0 first; a larger number is used only when too few of the smaller ones are healthy. Default 0.
    #[serde(default, skip_serializing_if = "is_first")]
    pub priority: u8,
    /// The PROXY header that it wants to hear before a visitor's bytes. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<crate::proxy_header::Version>,
    /// Where the bridge is asked to listen for it. Default nowhere: the bridge's own listeners lead to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// The host whose requests the bridge's http listeners are asked to send to it. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_host: Option<String>,
}

impl Expose {
    /// One of weight 1, without further wishes.
    pub fn new(service: ServiceName, address: String) -> Expose {
        Expose { service, address, weight: 1, priority: 0, proxy_protocol: None, listen: None, http_host: None }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_first(priority: &u8) -> bool {
    *priority == 0
}

fn weight_default() -> u8 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_none(watches: &u16) -> bool {
    *watches == 0
}

/// What an agent says of itself. Signed as the exact text that is sent.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct AuthBody {
    pub(super) version: u16,
    pub(super) key: PublicKey,
    pub(super) name: AgentName,
    pub(super) session: SessionId,
    pub(super) carrier: Carrier,
    pub(super) exposes: Vec<Expose>,
    #[serde(default)]
    pub(super) software: String,
    /// Places that it will look at for the bridge; 0: it cannot.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(super) watches: u16,
    /// The join token that `join` in the envelope proves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<TokenId>,
}

impl AuthBody {
    /// What serde cannot see. `Err` is for the agent's operator.
    pub(super) fn check(&self) -> Result<(), String> {
        let Carrier { index, count, .. } = self.carrier;
        if count == 0 || count > CARRIERS_MAX || index >= count {
            return Err(format!("carrier {index} of {count}: there are 1 to {CARRIERS_MAX}, counted from 0"));
        }
        if self.exposes.len() > EXPOSES_MAX {
            return Err(format!("{} backends exposed: at most {EXPOSES_MAX}", self.exposes.len()));
        }
        if self.software.len() > 128 {
            return Err("the name of the software is longer than 128 bytes".into());
        }
        let mut seen = HashSet::new();
        for Expose { service, address, weight, listen, http_host, .. } in &self.exposes {
            if address.is_empty() || address.len() > 255 || address.chars().any(char::is_control) {
                return Err(format!("service {service}: an address is 1 to 255 bytes without control characters"));
            }
            if !(1..=100).contains(weight) {
                return Err(format!("service {service}: weight {weight} is not from 1 to 100"));
            }
            if listen.is_some_and(|listen| listen.port() == 0) {
                return Err(format!("service {service}: the bridge cannot listen on port 0 for it"));
            }
            if http_host.as_ref().is_some_and(|host| !crate::rights::is_host(host)) {
                return Err(format!("service {service}: its http_host is no name of a host"));
            }
            if !seen.insert((service, address)) {
                return Err(format!("service {service} is exposed at {address} twice"));
            }
        }
        Ok(())
    }
}

/// AUTH: the text that is signed, and the signatures.
#[derive(Serialize, Deserialize)]
pub(super) struct Auth {
    pub(super) body: String,
    pub(super) signature: Signature,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) join: Option<Signature>,
}

/// Which key signs: a signature made for one purpose means nothing for another.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Agent,
    Join,
}

/// The bytes that are signed. Every part but the last has a fixed length, so no two inputs give the same bytes.
pub(super) fn transcript(purpose: Purpose, nonce: &Nonce, binding: &Binding, body: &str) -> Vec<u8> {
    // 24 bytes each.
    let context: &[u8; 24] = match purpose {
        Purpose::Agent => b"ringspan link 1: agent\0\0",
        Purpose::Join => b"ringspan link 1: join\0\0\0",
    };
    [context, nonce.as_slice(), binding.0.as_slice(), body.as_bytes()].concat()
}

/// Bounds the bridge sets for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Credit that each stream starts with, in bytes.
    pub window_bytes: u32,
    /// Largest payload of a frame, in bytes.
    pub frame_bytes_max: u32,
}

/// WELCOME.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The agent's id as the bridge knows it.
    pub agent: AgentId,
    /// The number of this session at this bridge; carriers with the same session id get the same. Health carries it,
    /// so that what an older session says cannot pass for news.
    pub generation: u64,
    /// What the agent must keep to.
    pub limits: Limits,
    /// For the agent's log only.
    #[serde(default)]
    pub software: String,
    /// What has become of the listeners and hosts that were asked for; `None`: the bridge does not open any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Vec<Opened>>,
}

/// A listener or host that an agent has asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The backend's place in `exposes`.
    pub backend: u16,
    /// The address or host.
    pub at: String,
    /// Why it is not there; `None`: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why a carrier is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The bridge has no such token.
    UnknownToken,
    /// The token's secret is another.
    WrongSecret,
    /// The token is too old.
    TokenExpired,
    /// The token was revoked.
    TokenRevoked,
    /// The token has enrolled as many agents as it may.
    TokenUsedUp,
    /// A service is exposed that the token does not cover.
    ServiceOutOfScope,
    /// A listener or host is asked for that the token does not cover.
    ListenOutOfScope,
    /// The bridge does not know the agent, and it brings no token.
    UnknownAgent,
    /// The agent was revoked.
    AgentRevoked,
    /// No common version of the link protocol.
    VersionMismatch,
    /// Too many agents, or the bridge is starting or stopping.
    TooBusy,
    /// The bridge could not look: its store failed.
    Internal,
    /// The handshake took longer than [`DEADLINE`](super::DEADLINE).
    TooSlow,
    /// The handshake was not followed.
    Protocol,
    /// A reason that this version does not know.
    #[serde(other)]
    Other,
}

impl RefusalCode {
    /// Whether trying again soon may help. If not, a person has to act first.
    pub const fn is_transient(self) -> bool {
        use RefusalCode::*;
        match self {
            TooBusy | Internal | TooSlow => true,
            UnknownToken | WrongSecret | TokenExpired | TokenRevoked | TokenUsedUp | ServiceOutOfScope
            | ListenOutOfScope | UnknownAgent | AgentRevoked | VersionMismatch | Protocol | Other => false,
        }
    }

    /// What to do, for people.
    const fn sentence(self) -> &'static str {
        use RefusalCode::*;
        match self {
            UnknownToken => "the bridge has no join token with this id. Create one there: ringspan token create",
            WrongSecret => "the secret of the join token is wrong",
            TokenExpired => "the join token has expired. Create a new one: ringspan token create",
            TokenRevoked => "the join token was revoked. Create a new one: ringspan token create",
            TokenUsedUp => "the join token has no uses left. Create a new one: ringspan token create",
            ServiceOutOfScope => "the join token does not cover an exposed service",
            ListenOutOfScope => "the join token does not cover a listener",
            UnknownAgent => "the bridge does not know this agent. Enrol it with a join token: ringspan token create",
            AgentRevoked => "this agent was revoked. To enrol it anew, remove its state folder and use a new token",
            VersionMismatch => "bridge and agent have no version of the link protocol in common. Update the older one",
            TooBusy => "the bridge takes no more agents at the moment",
            Internal => "the bridge could not read its keyring",
            TooSlow => "the handshake took too long",
            Protocol => "the handshake was not followed",
            Other => "refused for a reason that this version does not know",
        }
    }
}

/// REFUSED, and how a handshake ends in any other way than a welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// The reason, for machines.
    pub code: RefusalCode,
    /// The reason, for people; at most 512 bytes, no control characters.
    pub sentence: String,
    /// Whether trying again soon may help; if not, the agent goes to its longest delay at once.
    pub retry: bool,
    /// Not sooner than this, in milliseconds; 0: the agent's own backoff decides. At most one hour counts.
    #[serde(default)]
    pub retry_after_ms: u32,
}

/// Longest sentence of a refusal that is kept.
const SENTENCE_BYTES_MAX: usize = 512;

/// Longest wait that a bridge may ask of an agent.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

impl Refusal {
    /// With the sentence of the code.
    pub fn of(code: RefusalCode) -> Refusal {
        Refusal { code, sentence: code.sentence().into(), retry: code.is_transient(), retry_after_ms: 0 }
    }

    /// With details after the sentence of the code.
    pub fn with(code: RefusalCode, details: impl fmt::Display) -> Refusal {
        let mut refusal = Refusal::of(code);
        refusal.sentence = tame(&format!("{}: {details}", refusal.sentence));
        refusal
    }

    /// The bridge's wish for the next attempt.
    pub fn retry_after(&self) -> Duration {
        Duration::from_millis(self.retry_after_ms.into()).min(RETRY_AFTER_MAX)
    }

    /// As a message to the agent.
    pub fn message(&self) -> Message {
        Message::new(Kind::Refused, self)
    }
}

/// Text of a peer as it may enter a log: short, and no control characters that would move a terminal's cursor.
pub(super) fn tame(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() + c.len_utf8() > SENTENCE_BYTES_MAX {
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

/// Reads a payload, or says what is wrong with it.
pub(super) fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Refusal> {
    if payload.len() > HELLO_BYTES_MAX {
        return Err(Refusal::with(RefusalCode::Protocol, format_args!("{} bytes in one message", payload.len())));
    }
    serde_json::from_slice(payload).map_err(|error| Refusal::with(RefusalCode::Protocol, error))
}
