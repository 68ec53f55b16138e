//! The agent's side of the handshake.

use super::messages::{Auth, AuthBody, Challenge, Purpose, parse, tame, transcript};
use super::{Carrier, Expose, HELLO_BYTES_MAX, Kind, Message, Refusal, RefusalCode, SessionId, Versions, Welcome};
use crate::identity::{AgentId, AgentKey};
use crate::tls::Binding;
use crate::token::JoinToken;

/// What an agent says of itself on every carrier.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Who it is.
    pub identity: AgentKey,
    /// The token to enrol with; needed until the first welcome, harmless after it.
    pub token: Option<JoinToken>,
    /// Which run this is.
    pub session: SessionId,
    /// What it offers.
    pub exposes: Vec<Expose>,
    /// Places that it will look at for the bridge, at most; 0: none.
    pub watches: u16,
    /// Name and version of the software, e.g. `ringspan/0.1.0`.
    pub software: String,
}

impl Introduction {
    /// Whether a bridge could take it: counts, lengths, duplicates. Check at start, so that a mistake in the
    /// configuration is an error there and not a refusal later.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn check(&self, carriers: u8) -> Result<(), String> {
        let body = self.body(super::VERSIONS.max, Carrier::mux(0, carriers));
        body.check()?;
        // Twice encoded, JSON in JSON, every quote is escaped: measure, do not guess.
        let auth = self.auth(&body, &[0; 32], &Binding::NONE);
        if auth.payload.len() > HELLO_BYTES_MAX {
            let n = auth.payload.len();
            return Err(format!("the list of exposed services makes a hello of {n} bytes, at most {HELLO_BYTES_MAX}"));
        }
        Ok(())
    }

    fn body(&self, version: u16, carrier: Carrier) -> AuthBody {
        AuthBody {
            version,
            key: self.identity.key().public(),
            name: self.identity.name.clone(),
            session: self.session,
            carrier,
            exposes: self.exposes.clone(),
            software: self.software.clone(),
            watches: self.watches,
            token: self.token.as_ref().map(|token| token.id),
        }
    }

    fn auth(&self, body: &AuthBody, nonce: &[u8; 32], binding: &Binding) -> Message {
        let body = serde_json::to_string(body).expect("strings and numbers are always JSON");
        let signature = self.identity.key().sign(&transcript(Purpose::Agent, nonce, binding, &body));
        let join = self.token.as_ref().map(|token| token.key().sign(&transcript(Purpose::Join, nonce, binding, &body)));
        Message::new(Kind::Auth, &Auth { body, signature, join })
    }
}

/// One carrier on its way in. See the module for the picture.
pub struct AgentHello {
    introduction: Introduction,
    versions: Versions,
    carrier: Carrier,
    binding: Binding,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitChallenge,
    AwaitVerdict,
    Over,
}

/// What the agent does next.
#[derive(Debug)]
pub enum AgentStep {
    /// Send this and wait.
    Send(Message),
    /// The link is up.
    Welcomed(Welcome),
    /// Close and come back later, or not: the refusal says so. Also what the agent itself makes of a bridge that does
    /// not follow the handshake.
    Refused(Refusal),
    /// It is over already: nothing to do.
    Over,
}

impl AgentHello {
    /// Starts, once TLS is through: wait for the bridge's challenge.
    pub fn new(introduction: Introduction, versions: Versions, carrier: Carrier, binding: Binding) -> AgentHello {
        AgentHello { introduction, versions, carrier, binding, state: State::AwaitChallenge }
    }

    /// A message of the bridge.
    pub fn on_message(&mut self, kind: Kind, payload: &[u8]) -> AgentStep {
        let step = match (self.state, kind) {
            (State::AwaitChallenge, Kind::Challenge) => self.on_challenge(payload),
            (State::AwaitVerdict, Kind::Welcome) => self.on_welcome(payload),
            // A bridge that is full may say so at once.
            (State::AwaitChallenge | State::AwaitVerdict, Kind::Refused) => on_refused(payload),
            (State::AwaitChallenge, Kind::Auth | Kind::Welcome) => {
                Err(Refusal::with(RefusalCode::Protocol, format_args!("{kind:?} where Challenge is due")))
            }
            (State::AwaitVerdict, Kind::Auth | Kind::Challenge) => {
                Err(Refusal::with(RefusalCode::Protocol, format_args!("{kind:?} where Welcome or Refused is due")))
            }
            (State::Over, _) => return AgentStep::Over,
        };
        step.unwrap_or_else(|refusal| self.refused(refusal))
    }

    /// Anything else than a handshake message came, or a broken frame: the sentence says what.
    pub fn on_nonsense(&mut self, what: &str) -> AgentStep {
        match self.state {
            State::AwaitChallenge | State::AwaitVerdict => {
                self.refused(Refusal::with(RefusalCode::Protocol, tame(what)))
            }
            State::Over => AgentStep::Over,
        }
    }

    /// [`DEADLINE`](super::DEADLINE) has passed.
    pub fn on_deadline(&mut self) -> AgentStep {
        match self.state {
            State::AwaitChallenge | State::AwaitVerdict => self.refused(Refusal::of(RefusalCode::TooSlow)),
            State::Over => AgentStep::Over,
        }
    }

    fn refused(&mut self, refusal: Refusal) -> AgentStep {
        self.state = State::Over;
        AgentStep::Refused(refusal)
    }

    fn on_challenge(&mut self, payload: &[u8]) -> Result<AgentStep, Refusal> {
        let Challenge { versions, nonce, .. } = parse(payload)?;
        // With nothing in common the bridge is told what we speak, so that its log names the agent to update.
        let version = self.versions.common(versions).unwrap_or(self.versions.max);
        self.state = State::AwaitVerdict;
        let body = self.introduction.body(version, self.carrier);
        Ok(AgentStep::Send(self.introduction.auth(&body, &nonce, &self.binding)))
    }

    fn on_welcome(&mut self, payload: &[u8]) -> Result<AgentStep, Refusal> {
        let welcome: Welcome = parse(payload)?;
        if welcome.agent != AgentId::of(&self.introduction.identity.key().public()) {
            return Err(Refusal::with(RefusalCode::Protocol, "the bridge welcomes somebody else"));
        }
        self.state = State::Over;
        Ok(AgentStep::Welcomed(welcome))
    }
}

/// `Err` in both cases: a refusal ends the handshake, whoever states it.
fn on_refused(payload: &[u8]) -> Result<AgentStep, Refusal> {
    let mut refusal: Refusal = parse(payload)?;
    refusal.sentence = tame(&refusal.sentence);
    Err(refusal)
}
