//! Backends that speak HTTP by a script, and what is needed to talk to a listener byte by byte.

use super::PATIENCE;
use ring::digest::{Context, SHA256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A backend; each connection is served by the script, on a thread of its own.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Origin {
    /// `serve` is given each connection and how many came before it.
    pub(crate) fn start(serve: impl Fn(BufReader<TcpStream>, usize) + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let (serve, count) = (Arc::new(serve), connections.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (serve, nth) = (serve.clone(), count.fetch_add(1, Ordering::SeqCst));
                stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
                std::thread::spawn(move || serve(BufReader::new(stream), nth));
            }
        });
        Origin { address, connections }
    }

    /// Answers each request with its head as it came, an empty line, and bytes and SHA-256 of its body.
    pub(crate) fn mirror() -> Origin {
        Origin::start(|mut from, _| {
            while let Some(head) = head(&mut from) {
                let Some((bytes, sha)) = body(&mut from, &head) else { return };
                let text = format!("{head}\r\n{bytes} {sha}");
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                if from.get_mut().write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        })
    }

    /// Answers each request with these bytes.
    pub(crate) fn saying(answer: impl Into<Vec<u8>>) -> Origin {
        let answer = answer.into();
        Origin::start(move |mut from, _| {
            while let Some(head) = head(&mut from) {
                if body(&mut from, &head).is_none() || from.get_mut().write_all(&answer).is_err() {
                    return;
                }
            }
        })
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Lines up to the empty one; `None` at the end.
pub(crate) fn head(from: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if from.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if &head[before..] == "\r\n" {
            head.truncate(before);
            return Some(head);
        }
    }
}

/// A header's value.
pub(crate) fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).next()
}

/// Reads a body as its head frames it: how many bytes, and their SHA-256.
pub(crate) fn body(from: &mut impl BufRead, head: &str) -> Option<(u64, String)> {
    let (mut sum, mut bytes) = (Context::new(&SHA256), 0);
    let mut take = |from: &mut dyn BufRead, mut left: u64| {
        while left > 0 {
            let buffer = from.fill_buf().ok().filter(|b| !b.is_empty())?;
            let n = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sum.update(&buffer[..n]);
            from.consume(n);
            (left, bytes) = (left - n as u64, bytes + n as u64);
        }
        Some(())
    };
    if value(head, "transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok()?;
            let size = u64::from_str_radix(line.trim(), 16).ok()?;
            if size == 0 {
                // Trailers, if there are any.
                while line != "\r\n" {
                    line.clear();
                    if from.read_line(&mut line).ok()? == 0 {
                        return None;
                    }
                }
                break;
            }
            take(from, size)?;
            from.read_exact(&mut [0; 2]).ok()?;
        }
    } else if let Some(length) = value(head, "content-length") {
        take(from, length.parse().ok()?)?;
    }
    Some((bytes, hex(sum)))
}

/// A digest in hexadecimal digits.
pub(crate) fn hex(sum: Context) -> String {
    sum.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that do not compress or repeat, and their digest.
pub(crate) fn noise(bytes: usize) -> (Vec<u8>, String) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    out.truncate(bytes);
    let mut sum = Context::new(&SHA256);
    sum.update(&out);
    (out, hex(sum))
}

/// Sends bytes and reads until the other side has ended, or broken off: `Err` is what was read before.
pub(crate) fn talk(to: SocketAddr, bytes: &[u8]) -> Result<String, String> {
    let mut stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
    let _ = stream.write_all(bytes);
    let mut read = Vec::new();
    let ended = stream.read_to_end(&mut read);
    let text = String::from_utf8_lossy(&read).into_owned();
    if ended.is_ok() { Ok(text) } else { Err(text) }
}

/// A request that is the last of its connection; the answer's head and body.
pub(crate) fn ask(to: SocketAddr, line: &str, headers: &str) -> (String, String) {
    let request = format!("{line} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    let answer = talk(to, request.as_bytes()).expect("a whole answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("a head in {answer:?}"));
    (head.to_owned(), body.to_owned())
}
