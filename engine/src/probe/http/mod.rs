//! One HTTP/1.1 request and its answer.
//!
//! ```text
//! Head ──complete──► Leaving ──the little that is still to come, or the peer has closed──► Over
//!   │ 1xx: again       ▲   └─ a redirect to follow ──► Again ─► Head
//!   └──► Body ─────────┘
//!      (only if the check looks at it)
//! ```
//! The verdict falls with the head, or with as much of the body as decides. What the server is still about to send is
//! heard if it is little, so that an answer is not reset in its face; nothing of that changes the verdict.
//!
//! Memory: `head_max` bytes while a head comes in pieces, `body_max` while a body is looked at, nothing else.

mod body;
mod head;
mod redirect;
mod settings;

pub use settings::{Content, HttpCheck, HttpSettings, Method, Redirects, Statuses};

use crate::check::Detail;
use crate::io::{End, HEAR_MAX, Trouble};
use crate::outcome::Code;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk, code_of};
use crate::time::Instant;
use body::Framing;
use head::{Head, Progress};
use redirect::Elsewhere;
use settings::{Asked, Condition};
use std::net::SocketAddr;
use std::sync::Arc;

/// Interim answers (1xx) that are skipped before the final one; a server sends one or two.
const INTERIMS_MAX: u8 = 8;

/// One check in progress.
pub(crate) struct Asking {
    check: Arc<HttpCheck>,
    stage: Stage,
    address: Option<SocketAddr>,
    /// Where a redirect led; boxed, because most never are.
    elsewhere: Option<Box<Elsewhere>>,
    redirects: u8,
    interims: u8,
    /// The latest status; 0: none yet.
    status: u16,
    /// The peer's bytes: of a head in several pieces, or of a body that is looked at.
    held: Vec<u8>,
}

/// See the module.
enum Stage {
    Head,
    Body {
        framing: Framing,
        endless: bool,
        /// More of the body came than the check holds.
        is_too_large: bool,
    },
    Leaving {
        then: Then,
        framing: Framing,
        /// The end is near enough to be waited for; if not, one more piece is.
        to_the_end: bool,
    },
}

/// What follows the end of an answer.
#[derive(Clone, Copy)]
enum Then {
    Judge(Finding),
    Follow,
}

impl Asking {
    /// A check that has not begun.
    pub(crate) fn new(check: Arc<HttpCheck>) -> Asking {
        Asking {
            check,
            stage: Stage::Head,
            address: None,
            elsewhere: None,
            redirects: 0,
            interims: 0,
            status: 0,
            held: Vec::new(),
        }
    }

    fn asked(&self) -> Asked<'_> {
        match &self.elsewhere {
            None => Asked::first(&self.check),
            Some(elsewhere) => Asked {
                method: elsewhere.method,
                path: &elsewhere.path,
                host: elsewhere.host.as_deref().or(self.check.settings().host.as_deref()),
            },
        }
    }

    fn finding(&self, code: Code) -> Finding {
        Finding { code, detail: self.detail(), end: End::Reset }
    }

    fn over(&self, code: Code) -> Next {
        Next::Over(self.finding(code))
    }

    fn on_head_bytes(&mut self, mut heard: &[u8]) -> Next {
        loop {
            let settings = self.check.settings();
            let locate = matches!(settings.redirects, Redirects::Follow { .. });
            match head::read(&mut self.held, heard, settings.head_max, locate) {
                Progress::Partial => return Next::Hear,
                Progress::Malformed => return self.over(Code::L7Response),
                Progress::Complete(head, rest) => {
                    self.status = head.status;
                    // 101 is final: what follows is another protocol (RFC 9110, 15.2.2).
                    if !(100..200).contains(&head.status) || head.status == 101 {
                        return self.on_head(head, rest);
                    }
                    self.interims += 1;
                    if self.interims > INTERIMS_MAX {
                        return self.over(Code::L7Response);
                    }
                    if rest.is_empty() {
                        return Next::Hear;
                    }
                    heard = rest;
                }
            }
        }
    }

    fn on_head(&mut self, head: Head, rest: &[u8]) -> Next {
        let Head { status, mut framing, location, endless } = head;
        // RFC 9112, 6.3: these have no body, whatever their headers say.
        if self.asked().method == Method::Head || matches!(status, 101 | 204 | 304) {
            framing = Framing::Length(0);
        }
        if let (Redirects::Follow { max, any_host }, 301 | 302 | 303 | 307 | 308, Some(location), Some(address)) =
            (self.check.settings().redirects, status, location, self.address)
            && let Some(elsewhere) = redirect::resolve(&self.check, &self.asked(), address, status, &location, any_host)
        {
            self.redirects += 1;
            if self.redirects > max {
                return self.leave(Then::Judge(self.finding(Code::L7Status)), framing, endless, rest);
            }
            self.elsewhere = Some(Box::new(elsewhere));
            return self.leave(Then::Follow, framing, endless, rest);
        }
        let code = match self.check.settings().status.contains(status) {
            false => Code::L7Status,
            true if self.check.condition.is_none() => Code::L7Ok,
            true => {
                self.stage = Stage::Body { framing, endless, is_too_large: false };
                return self.on_body_bytes(rest);
            }
        };
        self.leave(Then::Judge(self.finding(code)), framing, endless, rest)
    }

    /// Bytes of a body that the check looks at; may be none.
    fn on_body_bytes(&mut self, heard: &[u8]) -> Next {
        let Stage::Body { framing, endless, is_too_large } = &mut self.stage else { return Next::Hear };
        let (before, max) = (self.held.len(), self.check.settings().body_max);
        let held = &mut self.held;
        let read = framing.read(heard, |bytes| {
            let taken = bytes.len().min(max - held.len());
            held.extend_from_slice(&bytes[..taken]);
            *is_too_large |= taken < bytes.len();
        });
        let (is_over, framing, endless, is_too_large) = (framing.is_over(), framing.clone(), *endless, *is_too_large);
        let code = match self.decided(before, is_over && !is_too_large) {
            Some(code) => code,
            None if read.is_err() => return self.over(Code::L7Response),
            None if is_too_large => Code::L7Response,
            None => return Next::Hear,
        };
        // The present piece is spent; nothing of it is behind the body.
        self.leave(Then::Judge(self.finding(code)), framing, endless, &[])
    }

    /// What the condition says of the body so far, of which all before `searched` has been looked at.
    fn decided(&self, searched: usize, is_complete: bool) -> Option<Code> {
        let verdict = |well| Some(if well { Code::L7Ok } else { Code::L7Content });
        match self.check.condition.as_ref()? {
            Condition::Literal { pattern, wanted } => match pattern.is_in_longer(&self.held, searched) {
                true => verdict(*wanted),
                false if is_complete => verdict(!*wanted),
                false => None,
            },
            Condition::Regex { pattern, wanted } if is_complete => verdict(pattern.is_in(&self.held) == *wanted),
            Condition::Regex { .. } => None,
        }
    }

    /// It is known what comes next: hears the little that is still to come.
    fn leave(&mut self, then: Then, mut framing: Framing, endless: bool, rest: &[u8]) -> Next {
        self.held = Vec::new();
        let is_broken = framing.read(rest, |_| ()).is_err();
        let to_the_end = match &framing {
            _ if is_broken || framing.is_over() => return self.finish(then),
            Framing::Length(left) if *left <= HEAR_MAX as u64 => true,
            Framing::Length(_) => return self.finish(then),
            // A redirect is not settled before it is followed: it must not depend on how much more comes, or when.
            Framing::Chunked(_) | Framing::UntilClose if endless || matches!(then, Then::Follow) => {
                return self.finish(then);
            }
            Framing::Chunked(_) | Framing::UntilClose => false,
        };
        self.stage = Stage::Leaving { then, framing, to_the_end };
        Next::Hear
    }

    fn finish(&mut self, then: Then) -> Next {
        match then {
            Then::Judge(finding) => Next::Over(finding),
            Then::Follow => Next::Again,
        }
    }

    /// The peer has closed its side.
    fn on_closed(&mut self) -> Next {
        match &self.stage {
            Stage::Leaving { then, .. } => self.finish(*then),
            Stage::Body { framing: Framing::UntilClose, is_too_large: false, .. } => {
                let code = self.decided(self.held.len(), true).unwrap_or(Code::L7Response);
                self.over(code)
            }
            Stage::Head | Stage::Body { .. } => self.over(Code::L7Response),
        }
    }

    /// What was known before the conversation was cut off.
    fn settled(&self) -> Option<Finding> {
        match &self.stage {
            Stage::Leaving { then: Then::Judge(finding), .. } => Some(*finding),
            _ => None,
        }
    }
}

impl Talk for Asking {
    fn open(&mut self, _now: Instant, peer: &Peer, say: &mut Vec<u8>) {
        self.stage = Stage::Head;
        self.address = Some(peer.address);
        self.interims = 0;
        self.held.clear();
        self.check.request(&self.asked(), peer.address, say);
    }

    fn hear(&mut self, _now: Instant, heard: &[u8], _say: &mut Vec<u8>) -> Next {
        if heard.is_empty() {
            return self.on_closed();
        }
        match &mut self.stage {
            Stage::Head => self.on_head_bytes(heard),
            Stage::Body { .. } => self.on_body_bytes(heard),
            Stage::Leaving { then, framing, to_the_end } => {
                let is_over = framing.read(heard, |_| ()).is_err() || framing.is_over();
                let then = *then;
                if *to_the_end && !is_over { Next::Hear } else { self.finish(then) }
            }
        }
    }

    fn phase(&self) -> Phase {
        Phase::Answer
    }

    fn at_deadline(&self) -> Finding {
        self.settled().unwrap_or_else(|| self.finding(Code::L7Timeout))
    }

    fn on_trouble(&self, trouble: Trouble) -> Finding {
        self.settled().unwrap_or_else(|| self.finding(code_of(trouble, Phase::Answer)))
    }

    fn detail(&self) -> Detail {
        Detail { number: u32::from(self.status), cert_days: None }
    }
}

#[cfg(test)]
mod tests;
