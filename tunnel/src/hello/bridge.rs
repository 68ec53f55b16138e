//! The bridge's side of the handshake.

use super::messages::{Auth, AuthBody, Challenge, Nonce, Purpose, parse, tame, transcript};
use super::{Carrier, Expose, Kind, Message, Refusal, RefusalCode, SessionId, Versions, Welcome};
use crate::identity::{AgentId, AgentName};
use crate::keys::{PublicKey, Signature};
use crate::tls::Binding;
use crate::token::TokenId;

/// One carrier that wants to come in. See the module for the picture.
pub struct BridgeHello {
    versions: Versions,
    nonce: Nonce,
    binding: Binding,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitAuth,
    Deciding,
    Over,
}

/// What the bridge does next.
#[derive(Debug)]
pub enum BridgeStep {
    /// Ask the control plane about this agent (its own signature is good), and come back with
    /// [`BridgeHello::on_decision`]. Meanwhile read nothing more from it.
    Decide(Box<Applicant>),
    /// Send this, then close. The refusal is for the log.
    Refuse(Message, Refusal),
    /// It is over already: nothing to do.
    Over,
}

/// An agent that has proved to hold its own key, as it presents itself.
#[derive(Clone, Debug)]
pub struct Applicant {
    /// Derived from `key`.
    pub agent: AgentId,
    /// The agent's public key.
    pub key: PublicKey,
    /// What people call it.
    pub name: AgentName,
    /// Which run of the agent this is.
    pub session: SessionId,
    /// Which of the link's connections this is.
    pub carrier: Carrier,
    /// What it offers; the index of a backend on the link is its place here.
    pub exposes: Vec<Expose>,
    /// Places that it will look at for us, at most; 0: it cannot.
    pub watches: u16,
    /// Name and version of its software, for people.
    pub software: String,
    /// The protocol version it has chosen.
    pub version: u16,
    /// The join token it brings, if any. Not proved until [`proves`](Applicant::proves) says so.
    pub token: Option<TokenId>,
    join: Option<Signature>,
    join_transcript: Vec<u8>,
}

impl Applicant {
    /// Whether the agent holds the secret of the join token with this public key.
    pub fn proves(&self, key: &PublicKey) -> bool {
        self.join.is_some_and(|signature| key.verifies(&self.join_transcript, &signature))
    }
}

impl BridgeHello {
    /// Starts, once TLS is through: send the message. `nonce` must come from
    /// [`keys::random`](crate::keys::random), fresh for each connection.
    pub fn new(versions: Versions, nonce: [u8; 32], binding: Binding, software: &str) -> (BridgeHello, Message) {
        let challenge = Challenge { versions, nonce, software: software.to_owned() };
        let hello = BridgeHello { versions, nonce, binding, state: State::AwaitAuth };
        (hello, Message::new(Kind::Challenge, &challenge))
    }

    /// A message of the agent.
    pub fn on_message(&mut self, kind: Kind, payload: &[u8]) -> BridgeStep {
        match (self.state, kind) {
            (State::AwaitAuth, Kind::Auth) => match self.on_auth(payload) {
                Ok(applicant) => {
                    self.state = State::Deciding;
                    BridgeStep::Decide(Box::new(applicant))
                }
                Err(refusal) => self.refuse(refusal),
            },
            (State::AwaitAuth, Kind::Challenge | Kind::Welcome | Kind::Refused) => {
                self.refuse(Refusal::with(RefusalCode::Protocol, format_args!("{kind:?} where Auth is due")))
            }
            (State::Deciding, _) => {
                self.refuse(Refusal::with(RefusalCode::Protocol, format_args!("{kind:?} before the answer to Auth")))
            }
            (State::Over, _) => BridgeStep::Over,
        }
    }

    /// Anything else than a handshake message came, or a broken frame: the sentence says what.
    pub fn on_nonsense(&mut self, what: &str) -> BridgeStep {
        match self.state {
            State::AwaitAuth | State::Deciding => self.refuse(Refusal::with(RefusalCode::Protocol, tame(what))),
            State::Over => BridgeStep::Over,
        }
    }

    /// [`DEADLINE`](super::DEADLINE) has passed.
    pub fn on_deadline(&mut self) -> BridgeStep {
        match self.state {
            State::AwaitAuth | State::Deciding => self.refuse(Refusal::of(RefusalCode::TooSlow)),
            State::Over => BridgeStep::Over,
        }
    }

    /// The control plane's answer to [`BridgeStep::Decide`]: the message to send. `Ok`: the link is up behind it;
    /// `Err`: close behind it. `None` if the handshake ended meanwhile: forget the decision.
    pub fn on_decision(&mut self, decision: &Result<Welcome, Refusal>) -> Option<Message> {
        match self.state {
            State::Deciding => {
                self.state = State::Over;
                Some(match decision {
                    Ok(welcome) => Message::new(Kind::Welcome, welcome),
                    Err(refusal) => refusal.message(),
                })
            }
            State::AwaitAuth | State::Over => None,
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> BridgeStep {
        self.state = State::Over;
        BridgeStep::Refuse(refusal.message(), refusal)
    }

    fn on_auth(&self, payload: &[u8]) -> Result<Applicant, Refusal> {
        let Auth { body: text, signature, join } = parse(payload)?;
        // The version first: a later one may have another shape.
        let OnlyVersion { version } = parse(text.as_bytes())?;
        if !self.versions.contains(version) {
            let details = format_args!("the agent asks for {version}, this bridge speaks {}", self.versions);
            return Err(Refusal::with(RefusalCode::VersionMismatch, details));
        }
        let body: AuthBody = parse(text.as_bytes())?;
        if !body.key.verifies(&transcript(Purpose::Agent, &self.nonce, &self.binding, &text), &signature) {
            return Err(Refusal::with(RefusalCode::Protocol, "the agent's signature does not fit this connection"));
        }
        body.check().map_err(|why| Refusal::with(RefusalCode::Protocol, why))?;
        let AuthBody { version, key, name, session, carrier, exposes, software, watches, token } = body;
        let software = tame(&software);
        let agent = AgentId::of(&key);
        let join_transcript = transcript(Purpose::Join, &self.nonce, &self.binding, &text);
        Ok(Applicant {
            agent,
            key,
            name,
            session,
            carrier,
            exposes,
            watches,
            software,
            version,
            token,
            join,
            join_transcript,
        })
    }
}

#[derive(serde::Deserialize)]
struct OnlyVersion {
    version: u16,
}
