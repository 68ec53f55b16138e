//! A MySQL login, or a question.
//!
//! ```text
//! Greeting ─► (Securing: TLS) ─► Login ──OK──► Answer, if something is asked ─► Leaving: COM_QUIT, the server closes
//!    │                             ├─ ERR 1045, 1044, 1698, ...: L7OKC when nothing is asked, L7STS otherwise
//!    │                             ├─ ERR of any other number: L7STS
//!    │                             └─ a plugin we lack or do not trust ─► Declining: a proof of nothing, the server refuses
//!    └─ ERR 1040 too many connections, 1129 host blocked, 1130 host not allowed, ...: L7STS
//! ```
//! Promises: a check that logs in leaves no trace in Aborted_connects, Aborted_clients or the count towards
//! max_connect_errors; a check that is refused, or gives up, is counted as a failed login and not as a broken handshake, so
//! that it cannot get this host blocked (error 1129). Only what breaks off below the login counts as one: a timeout, a TLS
//! handshake that fails. Memory is bounded by `wire` and by TLS.
//!
//! What is not MySQL, or breaks off, is `L7RSP`; more of an answer than a check reads is `L7CONT`.

mod answer;
mod key;
mod login;
mod settings;
#[cfg(test)]
mod tests;
mod wire;

pub use settings::{MysqlAsk, MysqlCheck, MysqlColumn, MysqlError, MysqlTls, MysqlValue, Secret};

use crate::check::Detail;
use crate::io::{End, Trouble};
use crate::outcome::Code;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk, code_of};
use crate::probe::tls::{Session, TlsClient};
use crate::time::Instant;
use answer::{Answer, Heard, error_number};
use login::{Greeting, Login, Reason, Turn, no_proof};
use std::net::IpAddr;
use std::sync::Arc;
use wire::{Broken, Packets};

/// "Quit" and "here is a statement" (MySQL's my_command.h).
const COM_QUIT: u8 = 1;
const COM_QUERY: u8 = 3;

/// Errors of a login by which a living server says "not you": access denied (1044, 1045, 1698), the account is locked (3118
/// MySQL, 4151 MariaDB), its password has expired (1862), it has used up its connections (1203, 1226), its plugin is
/// missing or too new for us (1251, 1524), it must use TLS (3159).
const REFUSALS: [u32; 11] = [1044, 1045, 1203, 1226, 1251, 1524, 1698, 1862, 3118, 3159, 4151];

/// CR_SSL_CONNECTION_ERROR, "SSL is required, but the server does not support it" (MySQL's errmsg.h).
const NO_TLS: u32 = 2026;

/// One check in progress.
pub(crate) struct LoggingIn {
    check: Arc<MysqlCheck>,
    packets: Packets,
    state: State,
    /// Under the packets, from the greeting on.
    session: Option<Session>,
    address: Option<IpAddr>,
}

enum State {
    Greeting,
    /// The TLS handshake is under way.
    Securing(Greeting),
    Login(Login),
    Answer(Answer),
    /// We said COM_QUIT; the server is to close.
    Leaving(Finding),
    /// We gave the login up; the server is to refuse it.
    Declining(Finding),
    /// TLS has failed, and the server is told so.
    Parting(Finding),
}

/// What one packet made of it.
enum Step {
    On,
    Over(Finding),
}

impl LoggingIn {
    /// A check that has not begun.
    pub(crate) fn new(check: Arc<MysqlCheck>) -> LoggingIn {
        LoggingIn { check, packets: Packets::default(), state: State::Greeting, session: None, address: None }
    }

    /// Plaintext came; none: the server has closed its side.
    fn on_bytes(&mut self, bytes: &[u8], say: &mut Vec<u8>) -> Step {
        if bytes.is_empty() {
            return Step::Over(self.settled().unwrap_or_else(nonsense));
        }
        if matches!(self.state, State::Leaving(_)) {
            return Step::On;
        }
        self.packets.hear(bytes);
        loop {
            match self.packets.next() {
                Err(broken) => return Step::Over(self.broken(broken)),
                Ok(None) => return Step::On,
                Ok(Some(packet)) => match self.on_packet(&packet, say) {
                    Step::On => {}
                    over @ Step::Over(_) => return over,
                },
            }
        }
    }

    fn on_packet(&mut self, packet: &[u8], say: &mut Vec<u8>) -> Step {
        match &mut self.state {
            State::Greeting => match packet {
                [0xff, ..] => self.refused(packet, false),
                _ => self.on_greeting(packet, say),
            },
            State::Login(login) => match packet {
                [0x00, ..] => self.on_logged_in(say),
                [0xff, ..] => self.refused(packet, true),
                _ => match login.hear(packet, &self.check) {
                    Turn::Hear => Step::On,
                    Turn::Say(proof) => {
                        self.packets.say(&proof, say);
                        Step::On
                    }
                    Turn::Decline(reason) => {
                        self.packets.say(&no_proof(packet), say);
                        self.state = State::Declining(self.not_in(reason));
                        Step::On
                    }
                    Turn::Nonsense => Step::Over(nonsense()),
                },
            },
            State::Answer(answer) => match answer.hear(packet, &self.check.ask) {
                Heard::More => Step::On,
                Heard::Over(code, number) => self.leave(finding(code, number), say),
                Heard::Nonsense => Step::Over(nonsense()),
            },
            // Servers do not speak between the request for TLS and its first message: somebody else did.
            State::Securing(_) => Step::Over(finding(Code::L6Response, 0)),
            State::Leaving(_) | State::Parting(_) => Step::On,
            State::Declining(finding) => match packet {
                // An account without a password lets in whoever proves nothing.
                [0x00, ..] => {
                    let finding = *finding;
                    self.leave(finding, say)
                }
                // MariaDB asks for the next plugin of an account that has several.
                [0xfe | 0x01, ..] => {
                    self.packets.say(&no_proof(packet), say);
                    Step::On
                }
                _ => Step::Over(*finding),
            },
        }
    }

    fn on_greeting(&mut self, packet: &[u8], say: &mut Vec<u8>) -> Step {
        let Some(greeting) = Greeting::read(packet) else { return Step::Over(nonsense()) };
        match (&self.check.tls, greeting.offers_tls()) {
            (MysqlTls::Off, _) | (MysqlTls::Preferred(_), false) => self.log_in(&greeting, false, say),
            (MysqlTls::Preferred(client) | MysqlTls::Required(client), true) => {
                let client = client.clone();
                self.secure(greeting, &client, say)
            }
            (MysqlTls::Required(_), false) => {
                let nobody = Login::begin(&greeting, &MysqlCheck::nobody(), false);
                let Some((_, hello)) = nobody else { return Step::Over(nonsense()) };
                self.packets.say(&hello, say);
                self.state = State::Declining(finding(Code::L6Response, NO_TLS));
                Step::On
            }
        }
    }

    fn secure(&mut self, greeting: Greeting, client: &TlsClient, say: &mut Vec<u8>) -> Step {
        // What came with the greeting came unprotected, and must not be taken for something said inside.
        let Some(address) = self.address.filter(|_| self.packets.is_at_rest()) else { return Step::Over(nonsense()) };
        self.packets.say(&greeting.tls_request(&self.check), say);
        self.session = Some(Session::new(client, address, say));
        self.state = State::Securing(greeting);
        Step::On
    }

    fn log_in(&mut self, greeting: &Greeting, is_tls: bool, say: &mut Vec<u8>) -> Step {
        let begun = Login::begin(greeting, &self.check, is_tls);
        let Some((login, response)) = begun else { return Step::Over(nonsense()) };
        self.packets.say(&response, say);
        self.state = State::Login(login);
        Step::On
    }

    /// Bytes of TLS came; none: the server has closed its side.
    fn on_wire(&mut self, now: Instant, session: &mut Session, wire: &[u8], say: &mut Vec<u8>) -> Step {
        let mut plain = Vec::new();
        if let Err(failed) = session.feed(now, wire, &mut plain, say) {
            let failed = self.settled().unwrap_or(failed);
            if say.is_empty() {
                return Step::Over(failed);
            }
            self.state = State::Parting(failed);
            return Step::On;
        }
        if !session.is_open() {
            return Step::On;
        }
        let mut answer = Vec::new();
        let mut step = Step::On;
        if let State::Securing(greeting) = &self.state {
            let greeting = greeting.clone();
            step = self.log_in(&greeting, true, &mut answer);
        }
        if matches!(step, Step::On) && !plain.is_empty() {
            step = self.on_bytes(&plain, &mut answer);
        }
        if matches!(step, Step::On) && session.has_ended() {
            step = self.on_bytes(&[], &mut answer);
        }
        if !answer.is_empty() {
            session.write(&answer, say);
        }
        step
    }

    /// What is known already.
    fn settled(&self) -> Option<Finding> {
        match &self.state {
            State::Leaving(finding) | State::Declining(finding) | State::Parting(finding) => Some(*finding),
            State::Greeting | State::Securing(_) | State::Login(_) | State::Answer(_) => None,
        }
    }

    fn with_days(&self, mut finding: Finding) -> Finding {
        finding.detail.cert_days = self.detail().cert_days;
        finding
    }

    fn on_logged_in(&mut self, say: &mut Vec<u8>) -> Step {
        match self.check.ask.sql() {
            None => self.leave(finding(Code::L7Ok, 0), say),
            Some(sql) => {
                self.packets.say_command(&[&[COM_QUERY], sql.as_bytes()].concat(), say);
                self.state = State::Answer(Answer::default());
                Step::On
            }
        }
    }

    /// Says goodbye; the server closes, and counts nothing.
    fn leave(&mut self, finding: Finding, say: &mut Vec<u8>) -> Step {
        self.packets.say_command(&[COM_QUIT], say);
        self.state = State::Leaving(finding);
        Step::On
    }

    /// The server refused and closes by itself: in place of a greeting it means all of us, later this account.
    fn refused(&self, packet: &[u8], is_login: bool) -> Step {
        let Some(number) = error_number(packet) else { return Step::Over(nonsense()) };
        let is_alive = is_login && self.check.ask == MysqlAsk::Nothing && REFUSALS.contains(&number);
        Step::Over(finding(if is_alive { Code::L7OkLogin } else { Code::L7Status }, number))
    }

    /// We did not log in: alive, if that was the question.
    fn not_in(&self, reason: Reason) -> Finding {
        match self.check.ask {
            MysqlAsk::Nothing => finding(Code::L7OkLogin, reason.number()),
            MysqlAsk::IsPrimary | MysqlAsk::Statement { .. } => finding(Code::L7Status, reason.number()),
        }
    }

    fn broken(&self, broken: Broken) -> Finding {
        match (self.settled(), &self.state, broken) {
            (Some(finding), ..) => finding,
            (None, State::Answer(_), Broken::TooMuch) => finding(Code::L7Content, 0),
            (None, ..) => nonsense(),
        }
    }
}

/// Left by reset: whoever was told goodbye has closed by then or does not listen any more, and neither side keeps a
/// TIME_WAIT.
fn finding(code: Code, number: u32) -> Finding {
    Finding { code, detail: Detail { number, ..Detail::default() }, end: End::Reset }
}

fn nonsense() -> Finding {
    finding(Code::L7Response, 0)
}

impl Talk for LoggingIn {
    /// The server speaks first.
    fn open(&mut self, _now: Instant, peer: &Peer, _say: &mut Vec<u8>) {
        self.address = Some(peer.address.ip());
    }

    fn hear(&mut self, now: Instant, heard: &[u8], say: &mut Vec<u8>) -> Next {
        if let State::Parting(finding) = self.state {
            return Next::Over(finding);
        }
        let step = match self.session.take() {
            None => self.on_bytes(heard, say),
            Some(mut session) => {
                let step = self.on_wire(now, &mut session, heard, say);
                self.session = Some(session);
                step
            }
        };
        match step {
            Step::Over(finding) => Next::Over(self.with_days(finding)),
            Step::On if say.is_empty() => Next::Hear,
            Step::On => Next::Say,
        }
    }

    fn phase(&self) -> Phase {
        match &self.session {
            Some(session) if !session.is_open() => Phase::Tls,
            Some(_) | None => Phase::Answer,
        }
    }

    fn at_deadline(&self) -> Finding {
        self.with_days(self.settled().unwrap_or_else(|| match self.phase() {
            Phase::Tls => finding(Code::L6Timeout, 0),
            Phase::Answer => finding(Code::L7Timeout, 0),
        }))
    }

    fn on_trouble(&self, trouble: Trouble) -> Finding {
        self.with_days(self.settled().unwrap_or_else(|| Finding::of(code_of(trouble, self.phase()))))
    }

    fn tls_at(&self) -> Option<Instant> {
        self.session.as_ref().and_then(Session::opened_at)
    }

    fn detail(&self) -> Detail {
        Detail { number: 0, cert_days: self.session.as_ref().and_then(Session::cert_days) }
    }
}
