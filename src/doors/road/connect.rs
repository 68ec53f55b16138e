//! Asking an HTTP proxy for a connection: CONNECT (RFC 9110 §9.3.6), with basic authentication (RFC 7617) if there is a
//! login. Promise: what follows the answer's head stays in the socket; at most [`HEAD_BYTES_MAX`] are read.

use super::{Login, RoadError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ringspan_tunnel::address::Address;
use std::io::{self, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest head of an answer: a proxy that says more explains itself in headers nobody reads.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers of an answer.
const HEADERS_MAX: usize = 64;

/// Asks for `to`; the same stream, which is then a connection to it.
pub(super) async fn ask(
    mut stream: TcpStream,
    to: &Address,
    login: Option<&Login>,
    who: &str,
) -> Result<TcpStream, RoadError> {
    let step = format!("CONNECT {to}");
    let io = |error: io::Error| RoadError::io(&who, &step, &error);
    let login_line = login.map_or_else(String::new, |login| {
        let both = STANDARD.encode(format!("{}:{}", login.user, login.password.0));
        format!("Proxy-Authorization: Basic {both}\r\n")
    });
    let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{login_line}\r\n");
    stream.write_all(head.as_bytes()).await.map_err(io)?;
    let head = read_head(&mut stream).await.map_err(io)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let wrong = |what: String| RoadError::answered(&who, &step, what);
    answer.parse(&head).map_err(|error| wrong(format!("its answer is no HTTP ({error})")))?;
    let (code, reason) = (answer.code.unwrap_or_default(), answer.reason.unwrap_or_default());
    let hint = match (code, login) {
        (200..300, _) => return Ok(stream),
        (407, None) => ". It wants a user and a password",
        (407, Some(_)) => ". It does not take this user and password",
        (403 | 405, _) => ". It does not let this address or port through",
        _ => "",
    };
    let reason: String = reason.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(wrong(format!("it answered {code} {reason}{hint}")))
}

/// To the empty line, and not a byte further.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (mut head, mut more) = (Vec::new(), [0; 1024]);
    loop {
        let n = stream.peek(&mut more).await?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let before = head.len();
        head.extend_from_slice(&more[..n]);
        // The end may have begun in what was read before.
        let from = before.saturating_sub(3);
        let end = head[from..].windows(4).position(|four| four == b"\r\n\r\n").map(|at| from + at + 4);
        let taken = end.unwrap_or(head.len()) - before;
        stream.read_exact(&mut more[..taken]).await?;
        if let Some(end) = end {
            head.truncate(end);
            return Ok(head);
        }
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("its answer has no end in {HEAD_BYTES_MAX} bytes"),
            ));
        }
    }
}
