//! HTTP CONNECT, the server's half of the handshake (RFC 9110 §9.3.6; Basic authentication, RFC 7617).
//! Promise: however the bytes are cut, the same answers; never more than [`HEAD_BYTES_MAX`] kept; no bytes panic. Pure.

use super::allow::Target;
use super::users::Users;
use super::{Step, Why};
use base64::Engine as _;
use ringspan_tunnel::frame::Reason;

/// Longest head of a request; as much as nginx and Apache take.
pub(crate) const HEAD_BYTES_MAX: usize = 8192;
/// Header lines of a request.
const HEADERS_MAX: usize = 64;

/// What is said when the connection is made.
pub(crate) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// See the module.
#[derive(Debug)]
pub(crate) struct Connect<'a> {
    /// `None`: everybody may come in.
    users: Option<&'a Users>,
    bytes: Vec<u8>,
}

impl<'a> Connect<'a> {
    /// Waits for a request.
    pub(crate) fn new(users: Option<&'a Users>) -> Connect<'a> {
        Connect { users, bytes: Vec::new() }
    }

    /// Takes bytes; says what to send and what comes next. After `Done` or `Failed` it is not to be called again.
    pub(crate) fn on_bytes(&mut self, bytes: &[u8]) -> Step {
        self.bytes.extend_from_slice(bytes);
        // What follows the head is the tunnel's, however much it is.
        let head_end = memchr::memmem::find(&self.bytes, b"\r\n\r\n").map(|at| at + 4);
        if head_end.unwrap_or(self.bytes.len()) > HEAD_BYTES_MAX {
            return failed(Answer::TooLarge, Why::Protocol("the request is too long"));
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let head_end = match request.parse(&self.bytes) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) => return Step::More { send: Vec::new() },
            Err(_) => return failed(Answer::Bad, Why::Protocol("the request is no HTTP")),
        };
        if request.method != Some("CONNECT") {
            return failed(Answer::Method, Why::Protocol("the request is not CONNECT"));
        }
        let login = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("proxy-authorization"));
        if let Some(users) = self.users
            && !login.is_some_and(|login| knows(users, login.value))
        {
            return failed(Answer::Login, Why::Login);
        }
        match request.path.unwrap_or_default().parse::<Target>() {
            Ok(target) => Step::Done { send: Vec::new(), target, rest: self.bytes.split_off(head_end) },
            Err(why) => failed(Answer::Bad, Why::Protocol(why)),
        }
    }
}

fn failed(answer: Answer, why: Why) -> Step {
    Step::Failed { send: answer.bytes(), why }
}

/// `Basic <base64 of name:password>`.
fn knows(users: &Users, value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let Some((scheme, token)) = text.trim().split_once(' ') else { return false };
    let Ok(pair) = base64::engine::general_purpose::STANDARD.decode(token.trim()) else { return false };
    let Some(colon) = pair.iter().position(|b| *b == b':') else { return false };
    scheme.eq_ignore_ascii_case("basic") && users.knows(&pair[..colon], &pair[colon + 1..])
}

/// How a request that gets no connection is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 400.
    Bad,
    /// 403: the rules say no.
    Denied,
    /// 405: it is not CONNECT.
    Method,
    /// 407: who are you?
    Login,
    /// 431.
    TooLarge,
    /// 502: refused, unreachable, no such name.
    Gateway,
    /// 503: nobody to go through.
    Unavailable,
    /// 504: silence.
    Timeout,
}

impl Answer {
    /// What a failed connection is called.
    pub(crate) fn of(reason: Reason) -> Answer {
        match reason {
            Reason::TargetDenied | Reason::Denied => Answer::Denied,
            Reason::DialTimeout => Answer::Timeout,
            Reason::DialRefused | Reason::DialUnreachable | Reason::TargetUnknown => Answer::Gateway,
            _ => Answer::Unavailable,
        }
    }

    /// The answer without a reason of a connection.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.with("")
    }

    /// The answer, with the reason's word in a header for people who look for it.
    pub(crate) fn with(self, reason: &str) -> Vec<u8> {
        let (status, more) = match self {
            Answer::Bad => ("400 Bad Request", ""),
            Answer::Denied => ("403 Forbidden", ""),
            Answer::Method => ("405 Method Not Allowed", "Allow: CONNECT\r\n"),
            Answer::Login => (
                "407 Proxy Authentication Required",
                "Proxy-Authenticate: Basic realm=\"ringspan\", charset=\"UTF-8\"\r\n",
            ),
            Answer::TooLarge => ("431 Request Header Fields Too Large", ""),
            Answer::Gateway => ("502 Bad Gateway", ""),
            Answer::Unavailable => ("503 Service Unavailable", ""),
            Answer::Timeout => ("504 Gateway Timeout", ""),
        };
        let reason =
            if reason.is_empty() { String::new() } else { format!("Proxy-Status: ringspan; details=\"{reason}\"\r\n") };
        format!("HTTP/1.1 {status}\r\n{more}{reason}Content-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Target and what was read too far, or the status line.
    type Ended = Result<(String, Vec<u8>), String>;

    fn talk(users: Option<&Users>, bytes: &[u8], cut: usize) -> Option<Ended> {
        let mut connect = Connect::new(users);
        let mut pieces = bytes.chunks(cut.max(1));
        while let Some(piece) = pieces.next() {
            match connect.on_bytes(piece) {
                Step::More { send } => assert!(send.is_empty()),
                Step::Done { target, mut rest, .. } => {
                    pieces.for_each(|piece| rest.extend_from_slice(piece));
                    return Some(Ok((target.to_string(), rest)));
                }
                Step::Associate { .. } => panic!("HTTP has no such word"),
                Step::Failed { send, .. } => {
                    let text = String::from_utf8(send).expect("it is ASCII");
                    return Some(Err(text.lines().next().expect("a line").to_owned()));
                }
            }
        }
        None
    }

    /// Requests and their ends, however they are cut.
    #[test]
    fn requests() {
        let users = Users::new(vec![("alice".into(), "se:cret".into())]);
        let good = Ok(("db.lan:5432".to_owned(), b"\x16rest".to_vec()));
        let rows: &[(Option<&Users>, &str, Ended)] = &[
            (None, "CONNECT db.lan:5432 HTTP/1.1\r\nHost: db.lan:5432\r\n\r\n\x16rest", good.clone()),
            (None, "CONNECT DB.LAN.:5432 HTTP/1.0\r\n\r\n\x16rest", good.clone()),
            (None, "CONNECT [::1]:443 HTTP/1.1\r\n\r\n", Ok(("[::1]:443".into(), vec![]))),
            (None, "CONNECT db.lan HTTP/1.1\r\n\r\n", Err("HTTP/1.1 400 Bad Request".into())),
            (None, "CONNECT db.lan:0 HTTP/1.1\r\n\r\n", Err("HTTP/1.1 400 Bad Request".into())),
            (None, "GET http://db.lan/ HTTP/1.1\r\n\r\n", Err("HTTP/1.1 405 Method Not Allowed".into())),
            (None, "\x05\x01\x00", Err("HTTP/1.1 400 Bad Request".into())),
            (
                Some(&users),
                "CONNECT db.lan:5432 HTTP/1.1\r\nPROXY-authorization: basic YWxpY2U6c2U6Y3JldA==\r\n\r\n\x16rest",
                good,
            ),
            (
                Some(&users),
                "CONNECT db.lan:5432 HTTP/1.1\r\nProxy-Authorization: Basic YWxpY2U6c2U6Y3JldDE=\r\n\r\n",
                Err("HTTP/1.1 407 Proxy Authentication Required".into()),
            ),
            (
                Some(&users),
                "CONNECT db.lan:5432 HTTP/1.1\r\n\r\n",
                Err("HTTP/1.1 407 Proxy Authentication Required".into()),
            ),
        ];
        for (users, text, ended) in rows {
            for cut in 1..=text.len() {
                assert_eq!(talk(*users, text.as_bytes(), cut).as_ref(), Some(ended), "{text:?} by {cut}");
            }
        }
    }

    /// A head without an end is stopped.
    #[test]
    fn bounded() {
        let endless = format!("CONNECT a:1 HTTP/1.1\r\nx: {}", "y".repeat(20_000));
        let ended = talk(None, endless.as_bytes(), 1000);
        assert_eq!(ended, Some(Err("HTTP/1.1 431 Request Header Fields Too Large".into())));
    }

    proptest! {
        /// No bytes panic.
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..50, real: bool) {
            let bytes = if real { [b"CONNECT a:1 HTTP/1.1\r\n".as_slice(), &bytes].concat() } else { bytes };
            let _ = talk(None, &bytes, cut);
        }
    }
}
