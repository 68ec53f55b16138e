//! A MySQL login, or a question.
//!
//! ```text
//! Greeting ─► Login ──OK──► Answer, if something is asked ─► Leaving: COM_QUIT ─► the server closes: the finding
//!    │           ├─ ERR 1045, 1044, 1698, ...: L7OKC when nothing is asked, L7STS otherwise
//!    │           ├─ ERR of any other number: L7STS
//!    │           └─ a plugin we lack or do not trust ─► Declining: an empty proof ─► ERR 1045, as if refused
//!    └─ ERR 1040 too many connections, 1129 host blocked, 1130 host not allowed, ...: L7STS
//! ```
//! Promises: a check that logs in leaves no trace in Aborted_connects, Aborted_clients or the count towards
//! max_connect_errors; a check that does not log in is counted as a failed login and never as a broken handshake, so that
//! no check can get this host blocked (error 1129). Memory is bounded by `wire`.
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
use crate::time::Instant;
use answer::{Answer, Heard, error_number};
use login::{Greeting, Login, Reason, Turn};
use std::sync::Arc;
use wire::{Broken, Packets};

/// "Quit" and "here is a statement" (MySQL's my_command.h).
const COM_QUIT: u8 = 1;
const COM_QUERY: u8 = 3;

/// Errors of a login by which a living server says "not you": access denied (1044, 1045, 1698), the account is locked (3118
/// MySQL, 4151 MariaDB), its password has expired (1862), it has used up its connections (1203, 1226), its plugin is
/// missing or too new for us (1251, 1524), it must use TLS (3159).
const REFUSALS: [u32; 11] = [1044, 1045, 1203, 1226, 1251, 1524, 1698, 1862, 3118, 3159, 4151];

/// One check in progress.
pub(crate) struct LoggingIn {
    check: Arc<MysqlCheck>,
    packets: Packets,
    state: State,
}

enum State {
    Greeting,
    Login(Login),
    Answer(Answer),
    /// We said COM_QUIT; the server is to close.
    Leaving(Finding),
    /// We gave the login up; the server is to refuse it.
    Declining(Finding),
}

/// What one packet made of it.
enum Step {
    On,
    Over(Finding),
}

impl LoggingIn {
    /// A check that has not begun.
    pub(crate) fn new(check: Arc<MysqlCheck>) -> LoggingIn {
        LoggingIn { check, packets: Packets::default(), state: State::Greeting }
    }

    fn on_bytes(&mut self, bytes: &[u8], say: &mut Vec<u8>) -> Step {
        if let Err(broken) = self.packets.hear(bytes) {
            return Step::Over(self.broken(broken));
        }
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
                        self.packets.say(&[], say);
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
            State::Leaving(_) => Step::On,
            State::Declining(finding) => match packet {
                // An account without a password lets in whoever proves nothing.
                [0x00, ..] => {
                    let finding = *finding;
                    self.leave(finding, say)
                }
                // MariaDB asks for the next plugin of an account that has several.
                [0xfe | 0x01, ..] => {
                    self.packets.say(&[], say);
                    Step::On
                }
                _ => Step::Over(*finding),
            },
        }
    }

    fn on_greeting(&mut self, packet: &[u8], say: &mut Vec<u8>) -> Step {
        let Some(greeting) = Greeting::read(packet) else { return Step::Over(nonsense()) };
        let Some((login, response)) = Login::begin(&greeting, &self.check, false) else {
            return Step::Over(nonsense());
        };
        self.packets.say(&response, say);
        self.state = State::Login(login);
        Step::On
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

    /// Says goodbye. Nothing may be left to read, or the server would be answered out of turn; it closes on COM_QUIT all
    /// the same.
    fn leave(&mut self, finding: Finding, say: &mut Vec<u8>) -> Step {
        self.packets.say_command(&[COM_QUIT], say);
        self.state = State::Leaving(finding);
        Step::On
    }

    /// The server refused, and closes by itself: as a greeting it speaks of us all, after the greeting of the account.
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
        match (&self.state, broken) {
            (State::Leaving(finding) | State::Declining(finding), _) => *finding,
            (State::Answer(_), Broken::TooMuch) => finding(Code::L7Content, 0),
            (State::Greeting | State::Login(_) | State::Answer(_), _) => nonsense(),
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
    fn open(&mut self, _now: Instant, _peer: &Peer, _say: &mut Vec<u8>) {}

    fn hear(&mut self, _now: Instant, heard: &[u8], say: &mut Vec<u8>) -> Next {
        if heard.is_empty() {
            return Next::Over(match &self.state {
                State::Leaving(finding) | State::Declining(finding) => *finding,
                State::Greeting | State::Login(_) | State::Answer(_) => nonsense(),
            });
        }
        match self.on_bytes(heard, say) {
            Step::Over(finding) => Next::Over(finding),
            Step::On if say.is_empty() => Next::Hear,
            Step::On => Next::Say,
        }
    }

    fn phase(&self) -> Phase {
        Phase::Answer
    }

    fn at_deadline(&self) -> Finding {
        match &self.state {
            State::Leaving(finding) | State::Declining(finding) => *finding,
            State::Greeting | State::Login(_) | State::Answer(_) => finding(Code::L7Timeout, 0),
        }
    }

    fn on_trouble(&self, trouble: Trouble) -> Finding {
        match &self.state {
            State::Leaving(finding) | State::Declining(finding) => *finding,
            State::Greeting | State::Login(_) | State::Answer(_) => Finding::of(code_of(trouble, self.phase())),
        }
    }
}
