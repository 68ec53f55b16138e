//! TLS under a check: a handshake and nothing more, or a handshake and then another conversation inside.
//!
//! ```text
//! Shaking ──handshake over──► Inside ──► Over
//!    └── not accepted ──► Parting (the alert is said) ──► Over
//! ```
//! The clock of the day, which certificates are judged by, is read by rustls in the moment of judging; everything else
//! is told the time.

mod session;
mod settings;
mod verify;

pub(crate) use session::Session;
pub use settings::{Identity, TlsClient, TlsSettings, Trust, Versions};
pub use verify::{CertificateFault, Pin};

use crate::check::{CheckError, Detail};
use crate::io::{End, Trouble};
use crate::outcome::Code;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk, code_of};
use crate::time::Instant;
use std::sync::Arc;

/// A TLS handshake and nothing more: close_notify ends it.
#[derive(Clone, Debug)]
pub struct TlsCheck {
    client: TlsClient,
}

impl TlsCheck {
    /// Checks the settings.
    ///
    /// # Errors
    /// As [`TlsClient::new`].
    pub fn new(settings: TlsSettings) -> Result<TlsCheck, CheckError> {
        TlsClient::new(settings).map(|client| TlsCheck { client })
    }

    /// What it was made of.
    pub fn settings(&self) -> &TlsSettings {
        self.client.settings()
    }
}

/// A conversation inside TLS. `T` neither knows nor cares.
pub(crate) struct Wrapped<T> {
    client: TlsClient,
    session: Option<Session>,
    inner: T,
    /// What `inner` has said before it could be heard. Emptied when the session opens.
    waiting: Vec<u8>,
    plain: Vec<u8>,
    /// Known, but the peer is told first.
    parting: Option<Finding>,
}

impl<T: Talk> Wrapped<T> {
    /// A conversation that has not begun.
    pub(crate) fn new(client: TlsClient, inner: T) -> Wrapped<T> {
        Wrapped { client, session: None, inner, waiting: Vec::new(), plain: Vec::new(), parting: None }
    }

    fn with_days(&self, mut finding: Finding) -> Finding {
        finding.detail.cert_days = self.session.as_ref().and_then(Session::cert_days);
        finding
    }
}

impl<T: Talk> Talk for Wrapped<T> {
    fn open(&mut self, now: Instant, peer: &Peer, say: &mut Vec<u8>) {
        self.waiting.clear();
        self.inner.open(now, peer, &mut self.waiting);
        self.session = Some(Session::new(&self.client, peer.address.ip(), say));
    }

    fn hear(&mut self, now: Instant, heard: &[u8], say: &mut Vec<u8>) -> Next {
        let Some(session) = &mut self.session else { return Next::Over(Finding::of(Code::L6Response)) };
        if let Some(finding) = self.parting {
            return Next::Over(finding);
        }
        self.plain.clear();
        if let Err(finding) = session.feed(now, heard, &mut self.plain, say) {
            if say.is_empty() {
                return Next::Over(finding);
            }
            self.parting = Some(finding);
            return Next::Say;
        }
        if !session.is_open() {
            return if say.is_empty() { Next::Hear } else { Next::Say };
        }
        if !self.waiting.is_empty() {
            session.write(&self.waiting, say);
            self.waiting = Vec::new();
        }
        let mut answer = Vec::new();
        let mut next = Next::Hear;
        if !self.plain.is_empty() {
            next = self.inner.hear(now, &self.plain, &mut answer);
        }
        if session.has_ended() && matches!(next, Next::Hear) {
            next = self.inner.hear(now, &[], &mut answer);
        }
        if !answer.is_empty() {
            session.write(&answer, say);
        }
        match next {
            Next::Hear if say.is_empty() => Next::Hear,
            Next::Hear | Next::Say => Next::Say,
            Next::Again => Next::Again,
            Next::Over(finding) => Next::Over(self.with_days(finding)),
        }
    }

    fn phase(&self) -> Phase {
        match self.session.as_ref().is_some_and(Session::is_open) {
            true => self.inner.phase(),
            false => Phase::Tls,
        }
    }

    fn at_deadline(&self) -> Finding {
        self.with_days(match (self.parting, self.phase()) {
            (Some(finding), _) => finding,
            (None, Phase::Tls) => Finding::of(Code::L6Timeout),
            (None, Phase::Answer) => self.inner.at_deadline(),
        })
    }

    fn on_trouble(&self, trouble: Trouble) -> Finding {
        self.with_days(match (self.parting, self.phase()) {
            (Some(finding), _) => finding,
            (None, Phase::Tls) => Finding::of(code_of(trouble, Phase::Tls)),
            (None, Phase::Answer) => self.inner.on_trouble(trouble),
        })
    }

    fn tls_at(&self) -> Option<Instant> {
        self.session.as_ref().and_then(Session::opened_at)
    }

    fn detail(&self) -> Detail {
        Detail { cert_days: self.session.as_ref().and_then(Session::cert_days), ..self.inner.detail() }
    }
}

/// One handshake in progress.
pub(crate) struct Handshaking {
    check: Arc<TlsCheck>,
    session: Option<Session>,
    /// Known, but the peer is told first.
    parting: Option<Finding>,
}

impl Handshaking {
    /// A check that has not begun.
    pub(crate) fn new(check: Arc<TlsCheck>) -> Handshaking {
        Handshaking { check, session: None, parting: None }
    }
}

impl Talk for Handshaking {
    fn open(&mut self, _now: Instant, peer: &Peer, say: &mut Vec<u8>) {
        self.session = Some(Session::new(&self.check.client, peer.address.ip(), say));
    }

    fn hear(&mut self, now: Instant, heard: &[u8], say: &mut Vec<u8>) -> Next {
        let Some(session) = &mut self.session else { return Next::Over(Finding::of(Code::L6Response)) };
        let outcome = session.feed(now, heard, &mut Vec::new(), say);
        let finding = match (outcome, self.parting) {
            // A server may refuse our certificate only after the handshake (TLS 1.3): that is worse than well.
            (Err(finding), Some(Finding { code: Code::L6Ok, .. })) if finding.detail.number != 0 => {
                return Next::Over(finding);
            }
            (_, Some(finding)) => return Next::Over(finding),
            (Err(finding), None) if say.is_empty() => return Next::Over(finding),
            (Err(finding), None) => finding,
            (Ok(()), None) if session.is_open() => {
                session.close(say);
                let detail = Detail { number: 0, cert_days: session.cert_days() };
                Finding { code: Code::L6Ok, detail, end: End::Reset }
            }
            (Ok(()), None) if say.is_empty() => return Next::Hear,
            (Ok(()), None) => return Next::Say,
        };
        self.parting = Some(finding);
        Next::Say
    }

    fn phase(&self) -> Phase {
        Phase::Tls
    }

    fn at_deadline(&self) -> Finding {
        self.parting.unwrap_or(Finding { code: Code::L6Timeout, detail: self.detail(), end: End::Reset })
    }

    fn on_trouble(&self, trouble: Trouble) -> Finding {
        let code = code_of(trouble, Phase::Tls);
        self.parting.unwrap_or(Finding { code, detail: self.detail(), end: End::Reset })
    }

    fn tls_at(&self) -> Option<Instant> {
        self.session.as_ref().and_then(Session::opened_at)
    }

    fn detail(&self) -> Detail {
        Detail { number: 0, cert_days: self.session.as_ref().and_then(Session::cert_days) }
    }
}

#[cfg(test)]
mod tests;
