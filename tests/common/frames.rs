//! A visitor that speaks HTTP/2 frame by frame, by hand, so that it can stop or lie anywhere.

use super::PATIENCE;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// How HTTP/2 begins, with empty SETTINGS (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A status as the first byte of an answer's HEADERS (RFC 7541, appendix A).
pub(crate) const OK: u8 = 0x88;
pub(crate) const BAD_REQUEST: u8 = 0x8c;

/// One frame.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    flags: u8,
    pub(crate) bytes: Vec<u8>,
}

/// A connection that answers SETTINGS and PING, takes all, and asks what it is told to.
pub(crate) struct Framed(pub(crate) TcpStream);

impl Framed {
    /// Says how it speaks.
    pub(crate) fn connect(to: SocketAddr) -> Framed {
        let mut stream = TcpStream::connect(to).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a live socket");
        stream.write_all(PREFACE).expect("it is open");
        Framed(stream)
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, bytes: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.write_all(&[&head, bytes].concat())
    }

    /// A GET with these headers; those of HTTP/2 itself are there but for `:authority`.
    pub(crate) fn get(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let always = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
        let mut block = Vec::new();
        for (name, value) in always.iter().chain(headers) {
            // Literal, not indexed, without Huffman codes (RFC 7541 §6.2.2).
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).ok().filter(|n| *n < 127).expect("short"));
                block.extend_from_slice(text.as_bytes());
            }
        }
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &block).expect("it is open");
    }

    /// What comes next, as far as it is not answered by itself; `None` at the end, however it comes.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).ok()?;
            let [_, _, _, kind, flags, ..] = head;
            let mut bytes = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut bytes).ok()?;
            match (kind, flags & ACK) {
                (SETTINGS, 0) => drop(self.send(SETTINGS, ACK, 0, &[])),
                (PING, 0) => drop(self.send(PING, ACK, 0, &bytes)),
                (DATA, _) => {
                    // What was read may come again, on the connection as a whole.
                    let more = u32::try_from(bytes.len()).expect("a frame is short").to_be_bytes();
                    let _ = if bytes.is_empty() { Ok(()) } else { self.send(WINDOW_UPDATE, 0, 0, &more) };
                    return Some(Frame { kind, flags, bytes });
                }
                _ => return Some(Frame { kind, flags, bytes }),
            }
        }
    }

    /// The first frame of a kind, which comes before the end.
    pub(crate) fn wait(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().unwrap_or_else(|| panic!("the end, and no frame of kind {kind}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// What is left of the one answer that is under way.
    pub(crate) fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let frame = self.wait(DATA);
            body.extend(frame.bytes);
            if frame.flags & END_STREAM != 0 {
                return body;
            }
        }
    }

    /// Reads to the end: the kinds of the frames that came.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let kinds = std::iter::from_fn(|| self.next()).map(|frame| frame.kind).collect();
        // The end, not the end of patience.
        let error = self.0.read(&mut [0]).err().map(|error| error.kind());
        assert!(!matches!(error, Some(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)), "it is open");
        kinds
    }
}
