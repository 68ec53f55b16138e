//! One kept HTTP connection to a naming server, and the Nacos v1 calls that the benchmarks make: blocking, plain, and not
//! ours.
//! Promise: an answer other than 2xx is an error that shows it; a server that says nothing for [`PATIENCE`] is one too.

use crate::process::Failure;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

/// Longer than any request of ours may take on a machine that is saturated by the run.
const PATIENCE: Duration = Duration::from_secs(30);

/// Instances of one service: the size that the published figures speak of.
pub(crate) const SERVICE_SIZE: usize = 100;

/// A connection.
pub(crate) struct Api {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub(crate) fn connect(to: SocketAddr) -> Result<Api, Failure> {
        let open = || {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(BufReader::new(stream))
        };
        let stream = open().map_err(|e: io::Error| format!("{to}: {e}"))?;
        Ok(Api { stream, host: to })
    }

    /// One request without a body; returns the answer's.
    ///
    /// # Errors
    /// No answer, or one other than 2xx.
    pub(crate) fn call(&mut self, method: &str, path: &str) -> Result<String, Failure> {
        self.call_as("bench", method, path)
    }

    /// The same by a client of this User-Agent.
    ///
    /// # Errors
    /// As [`call`](Api::call).
    pub(crate) fn call_as(&mut self, agent: &str, method: &str, path: &str) -> Result<String, Failure> {
        let outcome = match self.exchange(agent, method, path) {
            // A server may close a connection that has been idle for long (RFC 9112 section 9.3.1): once is no failure.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) =>
            {
                *self = Api::connect(self.host)?;
                self.exchange(agent, method, path)
            }
            outcome => outcome,
        };
        let (status, body) = outcome.map_err(|e| format!("{method} {path} of {}: {e}", self.host))?;
        if (200..300).contains(&status) { Ok(body) } else { Err(format!("{method} {path}: {status} {body:.200}")) }
    }

    fn exchange(&mut self, agent: &str, method: &str, path: &str) -> io::Result<(u16, String)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {agent}\r\nContent-Length: 0\r\n\r\n",
            self.host
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let bad = |what: &str| io::Error::other(what.to_owned());
        let mut line = String::new();
        let mut next = |stream: &mut BufReader<TcpStream>| {
            line.clear();
            match stream.read_line(&mut line)? {
                0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                _ => Ok(line.trim_end().to_owned()),
            }
        };
        let first = next(&mut self.stream)?;
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("no status"))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let header = next(&mut self.stream)?.to_ascii_lowercase();
            match header.split_once(':') {
                None => break,
                Some(("content-length", n)) => length = n.trim().parse().map_err(|_| bad("content-length"))?,
                Some(("transfer-encoding", how)) => chunked = how.contains("chunked"),
                Some(_) => {}
            }
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                let size = next(&mut self.stream)?;
                let size = size.split(';').next().unwrap_or_default();
                length = usize::from_str_radix(size, 16).map_err(|_| bad("chunk"))?;
                (&mut self.stream).take(length as u64).read_to_end(&mut body)?;
                next(&mut self.stream)?;
                if length == 0 {
                    return Ok((status, String::from_utf8_lossy(&body).into_owned()));
                }
            }
        }
        body.resize(length, 0);
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// The address of instance `n`: one of its own each, all on loopback.
pub(crate) fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x7f01_0000 + n as u32)
}

/// The query of instance `n`, in a service of [`SERVICE_SIZE`].
pub(crate) fn instance(n: usize, ephemeral: bool) -> String {
    format!("serviceName=bench-{}&ip={}&port=1&ephemeral={ephemeral}", n / SERVICE_SIZE, address(n))
}

/// Calls for each of `0..count`, on `connections` connections at once.
///
/// # Errors
/// The first that fails.
pub(crate) fn for_each(
    to: SocketAddr,
    connections: usize,
    count: usize,
    call: impl Fn(&mut Api, usize) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    thread::scope(|scope| {
        let call = &call;
        let workers: Vec<_> = (0..connections)
            .map(|first| {
                scope.spawn(move || {
                    let mut api = Api::connect(to)?;
                    (first..count).step_by(connections).try_for_each(|n| call(&mut api, n))
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a caller does not panic"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn answering(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut stream = BufReader::new(stream);
            for answer in answers {
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    if stream.read_line(&mut line).expect("a request") == 0 {
                        return;
                    }
                }
                stream.get_mut().write_all(answer.as_bytes()).expect("the client reads");
            }
        });
        address
    }

    /// Answers of either framing are read to their end, one after the other on one connection, and a refusal is an error.
    #[test]
    fn answers_are_read_to_their_end() {
        let to = answering(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 400 Bad\r\ncontent-length: 4\r\n\r\nalas",
        ]);
        let mut api = Api::connect(to).expect("it listens");
        assert_eq!(api.call("POST", "/a").expect("200"), "ok");
        assert_eq!(api.call("GET", "/b").expect("200"), "abcde");
        assert_eq!(api.call("GET", "/c").expect("204"), "");
        let refused = api.call("GET", "/d").expect_err("400");
        assert!(refused.contains("400 alas"), "{refused}");
    }

    /// Every instance has an address of its own on loopback, up to the million.
    #[test]
    fn addresses_are_loopback() {
        assert_eq!(address(0), Ipv4Addr::new(127, 1, 0, 0));
        assert!(address(2_000_000).is_loopback());
        assert_eq!(instance(250, false), "serviceName=bench-2&ip=127.1.0.250&port=1&ephemeral=false");
    }
}
