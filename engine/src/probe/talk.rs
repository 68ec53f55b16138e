//! What a conversation with a target is: bytes in, bytes out, a finding at the end.
//! Pure: no socket, no clock, no allocation that a peer can make grow beyond its written bound. The prober owns the
//! connection, the deadlines and the belief; a conversation owns the protocol.
//!
//! ```text
//! open ─► says ─► hear ─► Hear | Say | Again ─► ... ─► Over(finding)
//! ```

use crate::check::{Check, Detail};
use crate::io::{End, Errno, Leg, Trouble};
use crate::outcome::Code;
use crate::time::Instant;
use std::net::SocketAddr;

/// What a conversation knows of whom it speaks to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Where it is connected to.
    pub(crate) address: SocketAddr,
}

/// Which patience applies: each phase may have a timeout of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Between handshake and answer of TLS.
    Tls,
    /// What follows: request and answer.
    Answer,
}

/// What a conversation wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// More bytes.
    Hear,
    /// What it put into `say` said, then more bytes.
    Say,
    /// A new connection to the same address, and to be opened again (a redirect, a server that closed early).
    Again,
    /// It knows.
    Over(Finding),
}

/// What a conversation found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) code: Code,
    pub(crate) detail: Detail,
    /// How to leave.
    pub(crate) end: End,
}

impl Finding {
    /// A finding without a detail, left by reset.
    pub(crate) fn of(code: Code) -> Finding {
        Finding { code, detail: Detail::default(), end: End::Reset }
    }
}

/// A conversation in progress. One per probe.
pub(crate) trait Talk: Send {
    /// The connection is about to be made: puts what is to be said first into `say`, or nothing where the peer speaks
    /// first. Called again after [`Next::Again`]. `say` may hold bytes already: they come before (PROXY header).
    fn open(&mut self, now: Instant, peer: &Peer, say: &mut Vec<u8>);

    /// Bytes came; none: the peer has closed its side.
    fn hear(&mut self, now: Instant, heard: &[u8], say: &mut Vec<u8>) -> Next;

    /// Where it stands.
    fn phase(&self) -> Phase;

    /// The time is up after the connection was made. Default: a timeout of the present phase.
    fn at_deadline(&self) -> Finding {
        Finding::of(match self.phase() {
            Phase::Tls => Code::L6Timeout,
            Phase::Answer => Code::L7Timeout,
        })
    }

    /// The connection failed under it. Default: by leg and errno.
    fn on_trouble(&self, trouble: Trouble) -> Finding {
        Finding::of(code_of(trouble, self.phase()))
    }

    /// When the TLS handshake was over.
    fn tls_at(&self) -> Option<Instant> {
        None
    }

    /// What is known already, for outcomes that the conversation does not decide itself.
    fn detail(&self) -> Detail {
        Detail::default()
    }
}

/// What a failed call says of the target. Whoever resets after the connection was made has answered badly; local
/// trouble stays local.
pub(crate) fn code_of(trouble: Trouble, phase: Phase) -> Code {
    match (trouble.leg, trouble.errno) {
        (Leg::Connect, errno) => Code::of_connect(errno),
        (_, Errno(libc::ECONNRESET | libc::EPIPE | libc::ECONNREFUSED)) => match phase {
            Phase::Tls => Code::L6Response,
            Phase::Answer => Code::L7Response,
        },
        (_, errno) => Code::of_connect(errno),
    }
}

/// A new conversation for a check that needs one.
pub(crate) fn talk(check: &Check) -> Option<Box<dyn Talk>> {
    match check {
        Check::None | Check::Tcp(_) => None,
        Check::Expect(check) => Some(Box::new(super::expect::Expecting::new(check.clone()))),
        Check::Tls(check) => Some(Box::new(super::tls::Handshaking::new(check.clone()))),
        Check::Http(check) => {
            let asking = super::http::Asking::new(check.clone());
            Some(match check.tls() {
                None => Box::new(asking),
                Some(client) => Box::new(super::tls::Wrapped::new(client.clone(), asking)),
            })
        }
        Check::Mysql(check) => Some(Box::new(super::mysql::LoggingIn::new(check.clone()))),
        Check::Udp(check) => Some(Box::new(super::udp::Exchanging::new(check.clone()))),
        Check::Ping => Some(Box::new(super::ping::Echoing::new())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! What the tests of conversations share: a peer that follows a script.

    use super::*;

    /// What the peer or the network does next.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Step<'a> {
        /// These bytes come.
        Says(&'a [u8]),
        /// The peer closes its side.
        Closes,
        /// The peer resets.
        Reset,
        /// ECONNREFUSED while listening: ICMP port unreachable.
        Refused,
        /// The time is up.
        Deadline,
    }

    /// Holds the conversation to its end; returns the finding and all that was said. Panics if the script is over first.
    pub(crate) fn converse(talk: &mut dyn Talk, steps: &[Step<'_>]) -> (Finding, Vec<u8>) {
        let now = Instant::from_ns(1);
        let peer = Peer { address: "127.0.0.1:3306".parse().expect("an address") };
        let mut said = Vec::new();
        let mut say = Vec::new();
        talk.open(now, &peer, &mut say);
        for step in steps {
            said.append(&mut say);
            let trouble = |errno| Trouble { leg: Leg::Hear, errno: Errno(errno) };
            let next = match step {
                Step::Says(bytes) => talk.hear(now, bytes, &mut say),
                Step::Closes => talk.hear(now, b"", &mut say),
                Step::Reset => Next::Over(talk.on_trouble(trouble(libc::ECONNRESET))),
                Step::Refused => Next::Over(talk.on_trouble(trouble(libc::ECONNREFUSED))),
                Step::Deadline => Next::Over(talk.at_deadline()),
            };
            match next {
                Next::Hear => assert!(say.is_empty(), "has put something to say and does not say it"),
                Next::Say => {}
                Next::Again => talk.open(now, &peer, &mut say),
                Next::Over(finding) => return (finding, said),
            }
        }
        panic!("the script is over and the conversation is not: {steps:?}");
    }
}
