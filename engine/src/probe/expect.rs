//! TCP send and expect: a connection on which something is said, something expected, or both.
//!
//! ```text
//! connected ─► send, if any ─► hear ──pattern found──► bye, if any ─► the peer closes: L7OK
//!                               │ ├───peer closes────► L7RSP
//!                               │ ├───limit reached──► L7CONT
//!                               │ └───deadline───────► L7CONT, or L7TOUT when not one byte came
//!                               └─ nothing expected: any answer, a clean close, or the deadline ─► L4OK
//! ```
//! Promise: never keeps more than `limit_bytes` of an answer.
//!
//! Without something to expect the verdict has to wait: TCP takes the bytes whether or not anybody reads them, and only a
//! reset says that nobody did. So such a check lasts until the peer answers, closes, or the timeout is over, and what it
//! reports is `L4OK`: a connection, and no objection.
//!
//! It leaves quietly: with a `bye`, it waits for the peer to close, so that neither side keeps a TIME_WAIT and no
//! application sees a reset; without one it closes with FIN, which costs a TIME_WAIT of 60 s on this side.

use crate::check::Detail;
use crate::io::End;
use crate::outcome::Code;
use crate::probe::pattern::Pattern;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk};
use crate::time::Instant;
use std::sync::Arc;

/// The settings of the check: TCP send and expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    send: Vec<u8>,
    expect: Option<Pattern>,
    limit_bytes: usize,
    bye: Vec<u8>,
}

/// Why settings are no check.
#[derive(Debug, thiserror::Error)]
pub enum ExpectError {
    /// Neither `send` nor `expect`.
    #[error("neither send nor expect is given. A check that only connects is a tcp check")]
    Nothing,
    /// Too much to say.
    #[error("{what} has {bytes} bytes, at most {max} are possible", max = Expect::SEND_BYTES_MAX)]
    TooLong {
        /// Which of `send` and `bye`.
        what: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// The limit is out of its range.
    #[error("limit_bytes = {bytes} is not in 1 to {max}", max = Expect::LIMIT_BYTES_MAX)]
    Limit {
        /// What was asked for.
        bytes: usize,
    },
}

impl Expect {
    /// Bytes to say at once: half of what a lane's outgoing buffer holds ([`crate::io::SAY_MAX`]), the rest is for what
    /// goes before (PROXY header).
    pub const SEND_BYTES_MAX: usize = crate::io::SAY_MAX / 2;
    /// Bytes of the answer that are kept and looked at unless told otherwise: a banner, a status line, a screenful.
    pub const LIMIT_BYTES_DEFAULT: usize = 4 * 1024;
    /// The highest limit. Times the probes in flight it is the memory that hostile peers can claim.
    pub const LIMIT_BYTES_MAX: usize = 64 * 1024;

    /// Says `send` (may be empty: the peer speaks first) and waits for `expect` in the answer; with `None`, for no
    /// objection (see the module).
    ///
    /// # Errors
    /// Neither of both; `send` longer than [`Expect::SEND_BYTES_MAX`].
    pub fn new(send: Vec<u8>, expect: Option<Pattern>) -> Result<Expect, ExpectError> {
        if send.is_empty() && expect.is_none() {
            return Err(ExpectError::Nothing);
        }
        Expect::is_short_enough("send", &send)?;
        Ok(Expect { send, expect, limit_bytes: Expect::LIMIT_BYTES_DEFAULT, bye: Vec::new() })
    }

    /// How many bytes of the answer are looked at, 1 to [`Expect::LIMIT_BYTES_MAX`]; without the pattern among them the
    /// outcome is `L7CONT`. Default [`Expect::LIMIT_BYTES_DEFAULT`].
    ///
    /// # Errors
    /// Out of range.
    pub fn limited_to(mut self, bytes: usize) -> Result<Expect, ExpectError> {
        if !(1..=Expect::LIMIT_BYTES_MAX).contains(&bytes) {
            return Err(ExpectError::Limit { bytes });
        }
        self.limit_bytes = bytes;
        Ok(self)
    }

    /// What to say when the pattern was found, so that the peer closes first: `QUIT\r\n` for redis and SMTP. Default:
    /// nothing.
    ///
    /// # Errors
    /// Longer than [`Expect::SEND_BYTES_MAX`].
    pub fn leaving_with(mut self, bye: Vec<u8>) -> Result<Expect, ExpectError> {
        Expect::is_short_enough("bye", &bye)?;
        self.bye = bye;
        Ok(self)
    }

    fn is_short_enough(what: &'static str, bytes: &[u8]) -> Result<(), ExpectError> {
        match bytes.len() {
            0..=Expect::SEND_BYTES_MAX => Ok(()),
            bytes => Err(ExpectError::TooLong { what, bytes }),
        }
    }
}

/// One check in progress.
pub(crate) struct Expecting {
    check: Arc<Expect>,
    heard: Vec<u8>,
    /// The pattern was found and `bye` was said; so many bytes came since.
    after_bye_bytes: Option<usize>,
}

impl Expecting {
    /// A check that has not begun.
    pub(crate) fn new(check: Arc<Expect>) -> Expecting {
        Expecting { check, heard: Vec::new(), after_bye_bytes: None }
    }

    fn found(end: End) -> Finding {
        Finding { code: Code::L7Ok, detail: Detail::default(), end }
    }

    fn unopposed() -> Finding {
        Finding { code: Code::L4Ok, detail: Detail::default(), end: End::Fin }
    }

    /// More of the answer to an `expect`.
    fn look(&mut self, pattern: &Pattern, heard: &[u8], say: &mut Vec<u8>) -> Next {
        if heard.is_empty() {
            return Next::Over(Finding::of(Code::L7Response));
        }
        let looked_bytes = self.heard.len();
        let room_bytes = self.check.limit_bytes - looked_bytes;
        self.heard.extend_from_slice(&heard[..heard.len().min(room_bytes)]);
        if pattern.is_in_longer(&self.heard, looked_bytes) {
            if self.check.bye.is_empty() {
                return Next::Over(Expecting::found(End::Fin));
            }
            say.extend_from_slice(&self.check.bye);
            self.after_bye_bytes = Some(0);
            return Next::Say;
        }
        if self.heard.len() == self.check.limit_bytes {
            return Next::Over(Finding { end: End::Fin, ..Finding::of(Code::L7Content) });
        }
        Next::Hear
    }
}

impl Talk for Expecting {
    fn open(&mut self, _now: Instant, _peer: &Peer, say: &mut Vec<u8>) {
        say.extend_from_slice(&self.check.send);
    }

    fn hear(&mut self, _now: Instant, heard: &[u8], say: &mut Vec<u8>) -> Next {
        let check = self.check.clone();
        match (&mut self.after_bye_bytes, &check.expect) {
            // The peer has closed, so a reset meets nobody and leaves no TIME_WAIT anywhere.
            (Some(_), _) if heard.is_empty() => Next::Over(Expecting::found(End::Reset)),
            // Whoever still talks after a bye and as much as an answer is not going to close.
            (Some(bytes), _) if *bytes + heard.len() >= check.limit_bytes => Next::Over(Expecting::found(End::Fin)),
            (Some(bytes), _) => {
                *bytes += heard.len();
                Next::Hear
            }
            (None, Some(pattern)) => self.look(pattern, heard, say),
            (None, None) => Next::Over(Expecting::unopposed()),
        }
    }

    fn phase(&self) -> Phase {
        Phase::Answer
    }

    fn at_deadline(&self) -> Finding {
        match (&self.after_bye_bytes, &self.check.expect) {
            (Some(_), _) => Expecting::found(End::Fin),
            (None, None) => Expecting::unopposed(),
            // It did answer, and what it said was not it: `-NOAUTH` instead of `+PONG`.
            (None, Some(_)) if !self.heard.is_empty() => Finding::of(Code::L7Content),
            (None, Some(_)) => Finding::of(Code::L7Timeout),
        }
    }

    fn on_trouble(&self, trouble: crate::io::Trouble) -> Finding {
        match self.after_bye_bytes {
            // Found is found: a reset in answer to a bye is bad manners and no more.
            Some(_) => Expecting::found(End::Reset),
            None => Finding::of(crate::probe::talk::code_of(trouble, Phase::Answer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Errno, Leg, Trouble};
    use crate::probe::talk::tests::{Step, converse};
    use proptest::prelude::*;

    fn banner(text: &str) -> Expect {
        Expect::new(Vec::new(), Some(Pattern::regex(text).unwrap())).unwrap()
    }

    fn redis() -> Expect {
        Expect::new(b"PING\r\n".to_vec(), Some(Pattern::bytes(b"+PONG").unwrap())).unwrap()
    }

    /// What the peer does, and what is found.
    #[test]
    fn every_way_it_can_go() {
        use Step::{Closes, Deadline, Reset, Says};
        let only_send = || Expect::new(b"x".to_vec(), None).unwrap();
        let polite = || redis().leaving_with(b"QUIT\r\n".to_vec()).unwrap();
        /// The check, what the peer does, what is found, how it is left, what was said.
        type Row<'a> = (Expect, &'a [Step<'a>], Code, End, &'a [u8]);
        let table: [Row<'_>; 18] = [
            (banner("^SSH-"), &[Says(b"SSH-2.0-x\r\n")], Code::L7Ok, End::Fin, b""),
            (banner("^SSH-"), &[Says(b"S"), Says(b"SH"), Says(b"-")], Code::L7Ok, End::Fin, b""),
            (banner("^220 "), &[Says(b"554 no\r\n"), Closes], Code::L7Response, End::Reset, b""),
            (banner("^220 "), &[Closes], Code::L7Response, End::Reset, b""),
            (banner("^220 "), &[Reset], Code::L7Response, End::Reset, b""),
            (banner("^220 "), &[Deadline], Code::L7Timeout, End::Reset, b""),
            (banner("^220 "), &[Says(b"554 no\r\n"), Deadline], Code::L7Content, End::Reset, b""),
            (banner("z").limited_to(3).unwrap(), &[Says(b"ab"), Says(b"cz")], Code::L7Content, End::Fin, b""),
            (banner("z").limited_to(3).unwrap(), &[Says(b"ab"), Says(b"zc")], Code::L7Ok, End::Fin, b""),
            (redis(), &[Says(b"+PO"), Says(b"NG\r\n")], Code::L7Ok, End::Fin, b"PING\r\n"),
            (polite(), &[Says(b"+PONG\r\n"), Says(b"+OK\r\n"), Closes], Code::L7Ok, End::Reset, b"PING\r\nQUIT\r\n"),
            (polite(), &[Says(b"+PONG\r\n"), Deadline], Code::L7Ok, End::Fin, b"PING\r\nQUIT\r\n"),
            (polite(), &[Says(b"+PONG\r\n"), Reset], Code::L7Ok, End::Reset, b"PING\r\nQUIT\r\n"),
            (
                polite().limited_to(8).unwrap(),
                &[Says(b"+PONG"), Says(b"12345678")],
                Code::L7Ok,
                End::Fin,
                b"PING\r\nQUIT\r\n",
            ),
            (only_send(), &[Says(b"?")], Code::L4Ok, End::Fin, b"x"),
            (only_send(), &[Closes], Code::L4Ok, End::Fin, b"x"),
            (only_send(), &[Deadline], Code::L4Ok, End::Fin, b"x"),
            (only_send(), &[Reset], Code::L7Response, End::Reset, b"x"),
        ];
        for (position, (check, steps, code, end, said)) in table.into_iter().enumerate() {
            let (finding, words) = converse(&mut Expecting::new(Arc::new(check)), steps);
            assert_eq!((finding.code, finding.end), (code, end), "row {position}");
            assert_eq!(words.escape_ascii().to_string(), said.escape_ascii().to_string(), "row {position}");
        }
    }

    /// Trouble before the connection speaks of the network, local trouble of nobody.
    #[test]
    fn trouble_keeps_its_layer() {
        let talk = Expecting::new(Arc::new(redis()));
        let table = [
            (Leg::Connect, libc::ECONNREFUSED, Code::L4Refused),
            (Leg::Connect, libc::EMFILE, Code::SockErr),
            (Leg::Say, libc::EPIPE, Code::L7Response),
            (Leg::Hear, libc::ECONNRESET, Code::L7Response),
            (Leg::Hear, libc::EHOSTUNREACH, Code::L4Unreachable),
        ];
        for (leg, errno, code) in table {
            assert_eq!(talk.on_trouble(Trouble { leg, errno: Errno(errno) }).code, code, "{leg:?} {errno}");
        }
    }

    /// Settings out of range are refused, with the range.
    #[test]
    fn settings_have_ranges() {
        let long = vec![b'a'; Expect::SEND_BYTES_MAX + 1];
        let table = [
            (Expect::new(Vec::new(), None), "neither send nor expect"),
            (Expect::new(long.clone(), None), "send has 8193 bytes, at most 8192"),
            (redis().leaving_with(long), "bye has 8193 bytes"),
            (redis().limited_to(0), "limit_bytes = 0 is not in 1 to 65536"),
            (redis().limited_to(65537), "limit_bytes = 65537"),
        ];
        for (result, words) in table {
            let error = result.expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    proptest! {
        /// However the network cuts an answer, the finding is that of the whole, and no more than the limit is kept.
        #[test]
        fn cuts_change_nothing(
            answer in proptest::collection::vec(proptest::sample::select(b"+PONG\r\n".to_vec()), 1..60),
            cuts in proptest::collection::vec(1usize..7, 1..60),
            limit in 1usize..50,
        ) {
            let check = Arc::new(redis().limited_to(limit).unwrap());
            let whole = converse(&mut Expecting::new(check.clone()), &[Step::Says(&answer), Step::Closes]).0;
            let mut pieces = Vec::new();
            let mut rest = &answer[..];
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(Step::Says(piece));
                rest = after;
                if rest.is_empty() { break }
            }
            pieces.push(Step::Closes);
            let mut talk = Expecting::new(check);
            let cut_up = converse(&mut talk, &pieces).0;
            prop_assert_eq!(whole, cut_up);
            prop_assert!(talk.heard.len() <= limit);
        }
    }
}
