//! ICMP echo (RFC 792, RFC 4443 4.1): is the host there at all?
//!
//! ```text
//! request(sequence, nonce) ─► hear ──reply with both──► L4OK
//!                              │ ▲───anything else: on listening
//!                              ├─────an ICMP error────► L4UNR
//!                              └─────deadline─────────► L4TOUT
//! ```
//! Messages are those of a ping socket (icmp(7)): from the ICMP type on, without the IP header; the kernel puts in the
//! identifier and the checksum and hands up only replies to that identifier.
//!
//! The nonce is a keyed hash that nobody outside this process can compute: a reply that has it is an answer to this very
//! request. Late replies to earlier ones, and forged ones, are not heard.

use crate::io::{End, Trouble};
use crate::outcome::Code;
use crate::probe::talk::{Finding, Next, Peer, Phase, Talk};
use crate::time::Instant;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Bytes of a message: an ICMP header and the nonce. The usual 56 bytes of ping(8) would tell nothing more.
const MESSAGE_BYTES: usize = 8 + 8;
/// ICMP's echo request and echo reply (RFC 792).
const V4: (u8, u8) = (8, 0);
/// ICMPv6's (RFC 4443).
const V6: (u8, u8) = (128, 129);

/// One check in progress.
pub(crate) struct Echoing {
    /// The reply that counts; checksum and identifier are the kernel's.
    wanted: [u8; MESSAGE_BYTES],
}

impl Echoing {
    /// A check that has not begun.
    pub(crate) fn new() -> Echoing {
        Echoing { wanted: [0; MESSAGE_BYTES] }
    }
}

impl Talk for Echoing {
    fn open(&mut self, now: Instant, peer: &Peer, say: &mut Vec<u8>) {
        // SipHash under a random key of this thread that changes with each use.
        let nonce = RandomState::new().hash_one((now.ns(), peer.address)).to_be_bytes();
        let (request, reply) = if peer.address.is_ipv4() { V4 } else { V6 };
        let sequence = [nonce[0] ^ nonce[2], nonce[1] ^ nonce[3]];
        let message = |kind| {
            let mut message = [0; MESSAGE_BYTES];
            message[0] = kind;
            message[6..8].copy_from_slice(&sequence);
            message[8..].copy_from_slice(&nonce);
            message
        };
        self.wanted = message(reply);
        say.extend_from_slice(&message(request));
    }

    fn hear(&mut self, _now: Instant, heard: &[u8], _say: &mut Vec<u8>) -> Next {
        let is_wanted =
            heard.len() == MESSAGE_BYTES && heard[..2] == self.wanted[..2] && heard[6..] == self.wanted[6..];
        match is_wanted {
            true => Next::Over(Finding { end: End::Reset, ..Finding::of(Code::L4Ok) }),
            false => Next::Hear,
        }
    }

    fn phase(&self) -> Phase {
        Phase::Answer
    }

    fn at_deadline(&self) -> Finding {
        Finding::of(Code::L4Timeout)
    }

    /// There is no port that could be refused: whatever ICMP error comes back says that the host was not reached.
    fn on_trouble(&self, trouble: Trouble) -> Finding {
        Finding::of(match Code::of_connect(trouble.errno) {
            Code::L4Refused => Code::L4Unreachable,
            code => code,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Errno, Leg};
    use crate::probe::talk::tests::{Step, converse};

    fn asked(address: &str) -> (Echoing, Vec<u8>) {
        let mut talk = Echoing::new();
        let mut said = Vec::new();
        talk.open(Instant::from_ns(7), &Peer { address: address.parse().unwrap() }, &mut said);
        (talk, said)
    }

    fn hears(talk: &mut Echoing, message: &[u8]) -> Next {
        talk.hear(Instant::from_ns(8), message, &mut Vec::new())
    }

    /// A reply counts when type, code, sequence and nonce are right, whatever identifier and checksum the kernel chose;
    /// each single wrong byte, a cut and a tail make it a stranger's.
    #[test]
    fn only_the_reply_to_this_request_counts() {
        for (address, request, reply) in [("127.0.0.1:0", 8, 0), ("[::1]:0", 128, 129)] {
            let (mut talk, said) = asked(address);
            assert_eq!((said[0], said[1], said.len()), (request, 0, MESSAGE_BYTES));
            let mut right = said.clone();
            right[0] = reply;
            assert_eq!(hears(&mut talk, &said), Next::Hear, "the request itself, as loopback shows it to others");
            assert_eq!(hears(&mut talk, &right[..15]), Next::Hear);
            assert_eq!(hears(&mut talk, &[&right[..], b"x"].concat()), Next::Hear);
            assert_eq!(hears(&mut talk, b""), Next::Hear);
            for position in 0..MESSAGE_BYTES {
                let mut message = right.clone();
                message[position] ^= 1;
                let kernels = (2..6).contains(&position);
                assert_eq!(matches!(hears(&mut talk, &message), Next::Over(_)), kernels, "byte {position}");
            }
            assert_eq!(hears(&mut talk, &right), Next::Over(Finding::of(Code::L4Ok)));
        }
    }

    /// The answer to one request is not an answer to the next, even in the same nanosecond.
    #[test]
    fn requests_are_told_apart() {
        let (_, first) = asked("127.0.0.1:0");
        let (mut talk, second) = asked("127.0.0.1:0");
        assert_ne!(first, second);
        let mut late = first;
        late[0] = 0;
        assert_eq!(hears(&mut talk, &late), Next::Hear);
    }

    /// Silence and errors.
    #[test]
    fn silence_and_errors_are_of_the_network() {
        let peer = [Step::Says(b"stray"), Step::Deadline];
        assert_eq!(converse(&mut Echoing::new(), &peer).0.code, Code::L4Timeout);
        let table = [
            (libc::EHOSTUNREACH, Code::L4Unreachable),
            (libc::ENETUNREACH, Code::L4Unreachable),
            (libc::ECONNREFUSED, Code::L4Unreachable),
            (libc::ENOPROTOOPT, Code::L4Unreachable),
            (libc::EACCES, Code::SockErr),
            (libc::ENOBUFS, Code::SockErr),
        ];
        for leg in [Leg::Connect, Leg::Say, Leg::Hear] {
            for (errno, code) in table {
                assert_eq!(Echoing::new().on_trouble(Trouble { leg, errno: Errno(errno) }).code, code, "{errno}");
            }
        }
    }
}
