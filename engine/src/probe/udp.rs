//! A datagram and its answer.
//!
//! ```text
//! send ─► hear ──an answer with the pattern──► L7OK
//!          │ ▲───any other answer: on listening
//!          ├─────port unreachable (ICMP)─────► L4CON
//!          └─────deadline────────────────────► L7TOUT; L7CONT if only other answers came; L4OK if silence is fine
//! ```
//! Anybody can send a datagram in the name of the target, and an answer can come late, to the probe before this one. So
//! an answer without the pattern proves nothing and ends nothing: it can neither take a good target down nor end a check
//! early. It is remembered as a hint for people alone: `L7CONT` in place of `L7TOUT`, both failures.
//!
//! The socket is connected: the kernel drops what does not come from the target's address and port, and turns an ICMP
//! port unreachable into ECONNREFUSED. Where silence is fine that message is the only bad news there is, and hosts
//! limit how many of them they send (Linux: net.ipv4.icmp_ratelimit, one a second and peer after a burst of six).

use crate::check::Detail;
use crate::io::{End, Trouble};
use crate::outcome::Code;
use crate::probe::pattern::Pattern;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk};
use crate::time::Instant;
use std::sync::Arc;

/// The settings of the check: UDP send and expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpCheck {
    send: Vec<u8>,
    expect: Option<Pattern>,
    silence_is_ok: bool,
}

/// Why settings are no check.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Longer than [`UdpCheck::SEND_BYTES_MAX`].
    #[error("send has {bytes} bytes, at most {max} fit into one datagram everywhere", max = UdpCheck::SEND_BYTES_MAX)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
}

impl UdpCheck {
    /// Bytes of the question: what fits into one packet on every IPv6 path (RFC 8200, 5: 1280 bytes, less 40 of IPv6 and
    /// 8 of UDP). A longer question could be lost to fragmentation and would blame the target for it.
    pub const SEND_BYTES_MAX: usize = 1280 - 40 - 8;

    /// Sends `send` (may be empty: an empty datagram) and waits for an answer that contains `expect`; with `None`, for
    /// any. An answer is looked at up to [`crate::io::HEAR_MAX`] bytes.
    ///
    /// `silence_is_ok`: no answer at all is as good, once the timeout is over (`L4OK`); for services that never answer
    /// (syslog, statsd). Such a check lasts its whole timeout, and finds only what answers "port unreachable".
    ///
    /// # Errors
    /// `send` longer than [`UdpCheck::SEND_BYTES_MAX`].
    pub fn new(send: Vec<u8>, expect: Option<Pattern>, silence_is_ok: bool) -> Result<UdpCheck, UdpError> {
        match send.len() {
            0..=UdpCheck::SEND_BYTES_MAX => Ok(UdpCheck { send, expect, silence_is_ok }),
            bytes => Err(UdpError::TooLong { bytes }),
        }
    }
}

/// One check in progress.
pub(crate) struct Exchanging {
    check: Arc<UdpCheck>,
    /// Answers came that were not the one.
    others_came: bool,
}

impl Exchanging {
    /// A check that has not begun.
    pub(crate) fn new(check: Arc<UdpCheck>) -> Exchanging {
        Exchanging { check, others_came: false }
    }
}

impl Talk for Exchanging {
    fn open(&mut self, _now: Instant, _peer: &Peer, say: &mut Vec<u8>) {
        say.extend_from_slice(&self.check.send);
    }

    /// Nothing heard is an empty datagram: there is no end of stream.
    fn hear(&mut self, _now: Instant, heard: &[u8], _say: &mut Vec<u8>) -> Next {
        if self.check.expect.as_ref().is_none_or(|pattern| pattern.is_in(heard)) {
            return Next::Over(Finding { code: Code::L7Ok, detail: Detail::default(), end: End::Reset });
        }
        self.others_came = true;
        Next::Hear
    }

    fn phase(&self) -> Phase {
        Phase::Answer
    }

    fn at_deadline(&self) -> Finding {
        Finding::of(match (self.check.silence_is_ok, self.others_came) {
            (true, _) => Code::L4Ok,
            (false, true) => Code::L7Content,
            (false, false) => Code::L7Timeout,
        })
    }

    /// What ICMP said comes with whatever system call is next: no leg is a connection here.
    fn on_trouble(&self, trouble: Trouble) -> Finding {
        Finding::of(Code::of_connect(trouble.errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Errno, Leg};
    use crate::probe::talk::tests::{Step, converse};

    fn check(expect: Option<&[u8]>, silence_is_ok: bool) -> Exchanging {
        let expect = expect.map(|bytes| Pattern::bytes(bytes).unwrap());
        Exchanging::new(Arc::new(UdpCheck::new(b"?".to_vec(), expect, silence_is_ok).unwrap()))
    }

    /// Answers, strays and silence, with each setting.
    #[test]
    fn every_way_it_can_go() {
        use Step::{Closes, Deadline, Refused, Says};
        /// What is expected, whether silence is fine, what comes, what is found.
        type Row<'a> = (Option<&'a [u8]>, bool, &'a [Step<'a>], Code);
        let table: [Row<'_>; 12] = [
            (Some(b"ok"), false, &[Says(b"ok")], Code::L7Ok),
            (Some(b"ok"), false, &[Says(b"late"), Says(b""), Says(b"it is ok")], Code::L7Ok),
            (Some(b"ok"), false, &[Says(b"o"), Says(b"k"), Deadline], Code::L7Content),
            (Some(b"ok"), false, &[Deadline], Code::L7Timeout),
            (Some(b"ok"), false, &[Says(b"stray"), Refused], Code::L4Refused),
            (Some(b"ok"), true, &[Says(b"stray"), Deadline], Code::L4Ok),
            (Some(b"ok"), true, &[Deadline], Code::L4Ok),
            (Some(b"ok"), true, &[Refused], Code::L4Refused),
            (None, false, &[Says(b"anything")], Code::L7Ok),
            (None, false, &[Closes], Code::L7Ok), // an empty datagram
            (None, false, &[Deadline], Code::L7Timeout),
            (None, true, &[Deadline], Code::L4Ok),
        ];
        for (position, (expect, silence_is_ok, steps, code)) in table.into_iter().enumerate() {
            let (finding, said) = converse(&mut check(expect, silence_is_ok), steps);
            assert_eq!((finding.code, finding.end, &said[..]), (code, End::Reset, &b"?"[..]), "row {position}");
        }
    }

    /// ICMP's word counts the same on every leg; our own trouble blames nobody.
    #[test]
    fn trouble_has_no_leg() {
        for leg in [Leg::Connect, Leg::Say, Leg::Hear] {
            for (errno, code) in [
                (libc::ECONNREFUSED, Code::L4Refused),
                (libc::EHOSTUNREACH, Code::L4Unreachable),
                (libc::ENETUNREACH, Code::L4Unreachable),
                (libc::EPERM, Code::SockErr),
                (libc::EMSGSIZE, Code::SockErr),
            ] {
                assert_eq!(check(None, true).on_trouble(Trouble { leg, errno: Errno(errno) }).code, code);
            }
        }
    }

    /// A question that may not arrive is refused beforehand.
    #[test]
    fn long_questions_are_refused() {
        assert!(UdpCheck::new(vec![0; 1232], None, false).is_ok());
        let error = UdpCheck::new(vec![0; 1233], None, false).unwrap_err().to_string();
        assert!(error.contains("send has 1233 bytes, at most 1232"), "{error}");
    }
}
