//! SOCKS version 5, the server's half of the handshake (RFC 1928, RFC 1929): CONNECT and UDP ASSOCIATE.
//! Promise: however the bytes are cut, the same answers; never more than [`BYTES_MAX`] kept; no bytes panic. Pure.
//!
//! ```text
//! Greeting ──method──▶ Login ──user, password──▶ Request ──▶ done: where to, and what was read too far
//!     └────────────── no login asked for ──────────┘
//! ```

use super::allow::Target;
use super::users::Users;
use super::{Step, Why};
use ringspan_tunnel::frame::Reason;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest handshake: greeting 257, login 513, request 262; and some bytes of whoever does not wait.
pub(crate) const BYTES_MAX: usize = 2048;

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const METHOD_NONE: u8 = 0;
const METHOD_LOGIN: u8 = 2;
const METHOD_NO_ACCEPTABLE: u8 = 0xff;
const CONNECT: u8 = 1;
const UDP_ASSOCIATE: u8 = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct Socks<'a> {
    /// `None`: everybody may come in.
    users: Option<&'a Users>,
    stage: Stage,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Login,
    Request,
    Over,
}

impl<'a> Socks<'a> {
    /// Waits for a greeting.
    pub(crate) fn new(users: Option<&'a Users>) -> Socks<'a> {
        Socks { users, stage: Stage::Greeting, bytes: Vec::new() }
    }

    /// Takes bytes; says what to send and what comes next. After `Done` or `Failed` nothing more is taken.
    pub(crate) fn on_bytes(&mut self, bytes: &[u8]) -> Step {
        let mut send = Vec::new();
        if self.bytes.len() + bytes.len() > BYTES_MAX {
            self.stage = Stage::Over;
            return Step::Failed { send, why: Why::Protocol("the handshake is too long") };
        }
        self.bytes.extend_from_slice(bytes);
        loop {
            let part = match self.stage {
                Stage::Greeting => self.greeting(&mut send),
                Stage::Login => self.login(&mut send),
                Stage::Request => self.request(&mut send),
                Stage::Over => return Step::Failed { send, why: Why::Protocol("the handshake is over") },
            };
            match part {
                Part::Next(stage) => self.stage = stage,
                Part::More => return Step::More { send },
                Part::Done(target) => {
                    self.stage = Stage::Over;
                    return Step::Done { send, target, rest: std::mem::take(&mut self.bytes) };
                }
                Part::Associate => {
                    self.stage = Stage::Over;
                    return Step::Associate { send };
                }
                Part::Failed(why) => {
                    self.stage = Stage::Over;
                    return Step::Failed { send, why };
                }
            }
        }
    }

    /// VER, NMETHODS, METHODS.
    fn greeting(&mut self, send: &mut Vec<u8>) -> Part {
        match self.bytes.first() {
            Some(&VERSION) | None => {}
            Some(4) => return Part::Failed(Why::Protocol("the client speaks SOCKS 4")),
            Some(_) => return Part::Failed(Why::Protocol("the client does not speak SOCKS")),
        }
        let Some(methods) = self.bytes.get(1).and_then(|n| self.bytes.get(2..2 + usize::from(*n))) else {
            return Part::More;
        };
        let wanted = if self.users.is_some() { METHOD_LOGIN } else { METHOD_NONE };
        let (offered, taken) = (methods.contains(&wanted), 2 + methods.len());
        self.bytes.drain(..taken);
        if !offered {
            send.extend_from_slice(&[VERSION, METHOD_NO_ACCEPTABLE]);
            return Part::Failed(Why::Login);
        }
        send.extend_from_slice(&[VERSION, wanted]);
        Part::Next(if self.users.is_some() { Stage::Login } else { Stage::Request })
    }

    /// VER, ULEN, UNAME, PLEN, PASSWD.
    fn login(&mut self, send: &mut Vec<u8>) -> Part {
        let bytes = &self.bytes;
        if bytes.first().is_some_and(|version| *version != LOGIN_VERSION) {
            send.extend_from_slice(&[LOGIN_VERSION, 1]);
            return Part::Failed(Why::Protocol("the login is of another version"));
        }
        let field = |at: usize| bytes.get(at).and_then(|n| bytes.get(at + 1..at + 1 + usize::from(*n)));
        let Some(user) = field(1) else { return Part::More };
        let Some(password) = field(2 + user.len()) else { return Part::More };
        let taken = 3 + user.len() + password.len();
        let good = self.users.is_some_and(|users| users.knows(user, password));
        self.bytes.drain(..taken);
        send.extend_from_slice(&[LOGIN_VERSION, u8::from(!good)]);
        if good { Part::Next(Stage::Request) } else { Part::Failed(Why::Login) }
    }

    /// VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT.
    fn request(&mut self, send: &mut Vec<u8>) -> Part {
        let bytes = &self.bytes;
        if bytes.first().is_some_and(|version| *version != VERSION) {
            send.extend_from_slice(&reply(Reply::Failure));
            return Part::Failed(Why::Protocol("the request is of another version"));
        }
        let [_, command, _, kind, rest @ ..] = bytes.as_slice() else { return Part::More };
        let (host, used) = match (kind, rest) {
            (1, [a, b, c, d, ..]) => (Ipv4Addr::new(*a, *b, *c, *d).to_string(), 4),
            (4, rest) if rest.len() >= 16 => {
                let octets: [u8; 16] = rest[..16].try_into().expect("16 bytes");
                (Ipv6Addr::from(octets).to_string(), 16)
            }
            (3, [n, rest @ ..]) if rest.len() >= usize::from(*n) => {
                let name = &rest[..usize::from(*n)];
                (String::from_utf8_lossy(name).into_owned(), 1 + name.len())
            }
            (1 | 3 | 4, _) => return Part::More,
            _ => {
                send.extend_from_slice(&reply(Reply::AddressKind));
                return Part::Failed(Why::Protocol("the kind of address is unknown"));
            }
        };
        let Some([high, low]) = rest.get(used..used + 2).and_then(|port| <[u8; 2]>::try_from(port).ok()) else {
            return Part::More;
        };
        let (command, taken) = (*command, 4 + used + 2);
        self.bytes.drain(..taken);
        match command {
            CONNECT => {}
            // From where its datagrams will come the client says here, or nothing (0.0.0.0:0); behind an address
            // translator it does not know. The first datagram shows it.
            UDP_ASSOCIATE => return Part::Associate,
            _ => {
                send.extend_from_slice(&reply(Reply::Command));
                return Part::Failed(Why::Protocol("the command is neither CONNECT nor UDP ASSOCIATE"));
            }
        }
        match Target::new(&host, u16::from_be_bytes([high, low])) {
            Ok(target) => Part::Done(target),
            Err(why) => {
                send.extend_from_slice(&reply(Reply::Unreachable));
                Part::Failed(Why::Protocol(why))
            }
        }
    }
}

enum Part {
    Next(Stage),
    More,
    Done(Target),
    Associate,
    Failed(Why),
}

/// The codes of a reply that we give (RFC 1928 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reply {
    /// The connection is made.
    Succeeded = 0,
    /// None of the others.
    Failure = 1,
    /// The rules say no.
    Denied = 2,
    /// The network cannot be reached.
    Network = 3,
    /// The host cannot be reached, is silent, or its name has no address.
    Unreachable = 4,
    /// Nothing listens there.
    Refused = 5,
    /// The command is BIND, or none.
    Command = 7,
    /// The kind of address is unknown.
    AddressKind = 8,
}

impl Reply {
    /// What a failed connection is called.
    pub(crate) fn of(reason: Reason) -> Reply {
        match reason {
            Reason::DialRefused => Reply::Refused,
            Reason::DialTimeout | Reason::TargetUnknown => Reply::Unreachable,
            Reason::DialUnreachable => Reply::Network,
            Reason::TargetDenied | Reason::Denied => Reply::Denied,
            _ => Reply::Failure,
        }
    }
}

/// VER, REP, RSV, ATYP, BND.ADDR, BND.PORT. The address is that of the agent's socket, which the client has no use for:
/// 0.0.0.0:0, as most servers say it.
pub(crate) fn reply(code: Reply) -> [u8; 10] {
    [VERSION, code as u8, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// The reply to UDP ASSOCIATE: where datagrams are taken.
pub(crate) fn reply_at(bound: SocketAddr) -> Vec<u8> {
    let mut reply = vec![VERSION, Reply::Succeeded as u8, 0];
    write_host(&mut reply, &Target::Address(bound.ip().to_canonical(), bound.port()));
    reply
}

/// What stands before each datagram of a target: RSV, RSV, FRAG, ATYP, DST.ADDR, DST.PORT (RFC 1928 §7).
pub(crate) fn datagram_header(target: &Target) -> Vec<u8> {
    let mut header = vec![0, 0, 0];
    write_host(&mut header, target);
    header
}

fn write_host(to: &mut Vec<u8>, target: &Target) {
    match target {
        Target::Address(IpAddr::V4(ip), _) => {
            to.push(1);
            to.extend_from_slice(&ip.octets());
        }
        Target::Address(IpAddr::V6(ip), _) => {
            to.push(4);
            to.extend_from_slice(&ip.octets());
        }
        Target::Name(name, _) => {
            // A name has 253 bytes at most.
            to.extend_from_slice(&[3, name.len() as u8]);
            to.extend_from_slice(name.as_bytes());
        }
    }
    to.extend_from_slice(&target.port().to_be_bytes());
}

/// Where a visitor's datagram goes, and what it says. `None`: a fragment (they are dropped, as RFC 1928 lets a server that
/// does not put them together), or no datagram of SOCKS.
pub(crate) fn datagram(packet: &[u8]) -> Option<(Target, &[u8])> {
    let [0, 0, 0, kind, rest @ ..] = packet else { return None };
    let (host, rest) = match kind {
        1 => rest.split_first_chunk::<4>().map(|(ip, rest)| (Ipv4Addr::from(*ip).to_string(), rest))?,
        4 => rest.split_first_chunk::<16>().map(|(ip, rest)| (Ipv6Addr::from(*ip).to_string(), rest))?,
        3 => {
            let (n, rest) = rest.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*n))?;
            (std::str::from_utf8(name).ok()?.to_owned(), rest)
        }
        _ => return None,
    };
    let (port, data) = rest.split_first_chunk::<2>()?;
    Some((Target::new(&host, u16::from_be_bytes(*port)).ok()?, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn users() -> Users {
        Users::new(vec![("alice".into(), "secret".into())])
    }

    /// Target and what was read too far, or why not.
    type Ended = Result<(Target, Vec<u8>), Why>;

    /// Feeds a whole conversation in pieces of `cut` bytes: everything that was sent, and how it ended.
    fn talk(users: Option<&Users>, bytes: &[u8], cut: usize) -> (Vec<u8>, Option<Ended>) {
        let (mut socks, mut sent) = (Socks::new(users), Vec::new());
        let mut pieces = bytes.chunks(cut.max(1));
        while let Some(piece) = pieces.next() {
            match socks.on_bytes(piece) {
                Step::More { send } => sent.extend(send),
                Step::Done { send, target, mut rest } => {
                    sent.extend(send);
                    pieces.for_each(|piece| rest.extend_from_slice(piece));
                    return (sent, Some(Ok((target, rest))));
                }
                Step::Associate { send } => {
                    sent.extend(send);
                    return (sent, Some(Err(Why::Protocol("associate"))));
                }
                Step::Failed { send, why } => {
                    sent.extend(send);
                    return (sent, Some(Err(why)));
                }
            }
        }
        (sent, None)
    }

    const TO_V4: &[u8] = &[5, 1, 0, 1, 192, 0, 2, 7, 0, 80];

    /// Each request that is good, and where it goes.
    #[test]
    fn good_requests() {
        let name = [&[5, 1, 0, 3, 6][..], b"DB.lan", &[21, 56]].concat();
        let v6 = [&[5, 1, 0, 4][..], &Ipv6Addr::LOCALHOST.octets(), &[1, 187]].concat();
        for (request, target) in [(TO_V4, "192.0.2.7:80"), (&name, "db.lan:5432"), (&v6, "[::1]:443")] {
            let all = [&[5, 1, 0][..], request, b"more"].concat();
            for cut in 1..all.len() + 1 {
                let (sent, ended) = talk(None, &all, cut);
                let (got, rest) = ended.expect("it ends").expect("it is good");
                assert_eq!(
                    (sent.as_slice(), got.to_string().as_str(), rest.as_slice()),
                    (&[5, 0][..], target, &b"more"[..])
                );
            }
        }
    }

    /// A login is asked for where there are users; a wrong one, or none, ends the conversation.
    #[test]
    fn logins() {
        let users = users();
        let login = |user: &str, password: &str| {
            let login = [&[1, user.len() as u8][..], user.as_bytes(), &[password.len() as u8], password.as_bytes()];
            [&[5, 2, 0, 2][..], &login.concat(), TO_V4].concat()
        };
        let (sent, ended) = talk(Some(&users), &login("alice", "secret"), 1);
        assert_eq!((sent.as_slice(), ended.is_some_and(|e| e.is_ok())), (&[5, 2, 1, 0][..], true));
        for (user, password) in [("alice", "secre"), ("alice", "secret2"), ("bob", "secret"), ("", ""), ("alice", "")] {
            let (sent, ended) = talk(Some(&users), &login(user, password), 3);
            assert_eq!((sent.as_slice(), ended), (&[5, 2, 1, 1][..], Some(Err(Why::Login))), "{user}:{password}");
        }
        assert_eq!(talk(Some(&users), &[5, 1, 0], 9), (vec![5, 0xff], Some(Err(Why::Login))));
        assert_eq!(talk(None, &[5, 1, 2], 9), (vec![5, 0xff], Some(Err(Why::Login))));
    }

    /// What is wrong, and the code it is answered with.
    #[test]
    fn bad_requests() {
        let rows: &[(&[u8], &[u8])] = &[
            (&[4, 1, 0, 80, 1, 2, 3, 4, 0], &[]),
            (b"GET / HTTP/1.1\r\n", &[]),
            (&[5, 1, 0, 5, 2, 0, 1, 192, 0, 2, 7, 0, 80], &[5, 0, 5, 7]),
            (&[5, 1, 0, 5, 4, 0, 1, 0, 0, 0, 0, 0, 0], &[5, 0, 5, 7]),
            (&[5, 1, 0, 5, 1, 0, 2, 0], &[5, 0, 5, 8]),
            (&[5, 1, 0, 4, 1, 0, 1], &[5, 0, 5, 1]),
            (&[5, 1, 0, 5, 1, 0, 1, 192, 0, 2, 7, 0, 0], &[5, 0, 5, 4]),
            (&[5, 1, 0, 5, 1, 0, 3, 0, 0, 80], &[5, 0, 5, 4]),
            (&[5, 1, 0, 5, 1, 0, 3, 3, b'a', 0, b'b', 0, 80], &[5, 0, 5, 4]),
        ];
        for (bytes, answer) in rows {
            let (sent, ended) = talk(None, bytes, 1);
            assert!(matches!(ended, Some(Err(Why::Protocol(_)))), "{bytes:?}");
            assert!(sent.starts_with(answer), "{bytes:?}: {sent:?}");
            assert_eq!(sent.is_empty(), answer.is_empty(), "{bytes:?}");
        }
    }

    /// UDP ASSOCIATE is asked for like CONNECT, and with a login like it.
    #[test]
    fn association() {
        let asked = [5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0];
        for cut in 1..asked.len() + 1 {
            let (mut socks, mut sent) = (Socks::new(None), Vec::new());
            let steps: Vec<Step> = asked.chunks(cut).map(|piece| socks.on_bytes(piece)).collect();
            for step in &steps[..steps.len() - 1] {
                let Step::More { send } = step else { panic!("{step:?}") };
                sent.extend_from_slice(send);
            }
            let Some(Step::Associate { send }) = steps.last() else { panic!("{steps:?}") };
            sent.extend_from_slice(send);
            assert_eq!(sent, [5, 0]);
        }
        let users = users();
        assert!(matches!(Socks::new(Some(&users)).on_bytes(&asked), Step::Failed { why: Why::Login, .. }));
        let at = reply_at(([192, 0, 2, 1], 258).into());
        assert_eq!(at, [5, 0, 0, 1, 192, 0, 2, 1, 1, 2]);
    }

    /// Datagrams say where to; fragments and what is cut short are none.
    #[test]
    fn datagrams() {
        for text in ["192.0.2.7:53", "[2001:db8::1]:53", "ns.lan:53"] {
            let target: Target = text.parse().expect("a target");
            let packet = [&datagram_header(&target)[..], b"data"].concat();
            assert_eq!(datagram(&packet), Some((target.clone(), &b"data"[..])));
            for end in 0..packet.len() - 4 {
                assert_eq!(datagram(&packet[..end]), None, "{text} cut at {end}");
            }
            let mut fragment = packet.clone();
            fragment[2] = 1;
            assert_eq!(datagram(&fragment), None);
        }
        assert_eq!(datagram(&[0, 0, 0, 3, 2, 0xff, 0xfe, 0, 53]), None);
        assert_eq!(datagram(&[0, 0, 0, 1, 192, 0, 2, 7, 0, 0]), None, "port 0");
        assert_eq!(datagram(&[0, 0, 0, 2, 192, 0, 2, 7, 0, 53]), None);
    }

    proptest! {
        /// No packet panics.
        #[test]
        fn any_packet(packet in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some((target, data)) = datagram(&packet) {
                prop_assert!(packet.ends_with(data) && target.port() > 0);
            }
        }

        /// No bytes panic, and how they are cut changes nothing.
        #[test]
        fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 1usize..50, login: bool, real: bool) {
            if real && bytes.len() > 12 {
                bytes[..10].copy_from_slice(if login { &[5, 1, 2, 1, 1, b'a', 1, b'b', 5, 1] } else { &[5, 1, 0, 5, 1, 0, 3, 4, b'a', b'b'] });
            }
            let users = users();
            let users = login.then_some(&users);
            prop_assert_eq!(talk(users, &bytes, cut), talk(users, &bytes, bytes.len()));
        }

        /// A client that never comes to the point is stopped.
        #[test]
        fn bounded(cut in 1usize..400) {
            let all = vec![5u8; 5000];
            let mut socks = Socks::new(None);
            let failed = all.chunks(cut).any(|piece| {
                let step = socks.on_bytes(piece);
                assert!(socks.bytes.len() <= BYTES_MAX);
                matches!(step, Step::Failed { .. })
            });
            prop_assert!(failed);
        }
    }
}
