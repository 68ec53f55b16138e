//! The handshake of a visiting agent: the link's TLS and HELLO frames (docs/link-protocol.md) until the welcome; what
//! follows on the connection is the visitor's own, and no longer under that TLS.
//! Promise: nothing is read beyond the welcome; at most a frame of 64 KiB is kept.

use ringspan_tunnel::frame::{CONTROL_BYTES_MAX, HEADER_BYTES, Header, Kind as FrameKind};
use ringspan_tunnel::hello::{Kind, Message};
use ringspan_tunnel::tls::{Binding, Tls};
use std::io::{self, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A connection in its handshake.
pub(super) struct Greeting<S> {
    stream: S,
    tls: Tls,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeting<S> {
    /// Does the TLS handshake, if there is one.
    pub(super) async fn begin(stream: S, tls: Tls) -> io::Result<(Greeting<S>, Binding)> {
        let mut greeting = Greeting { stream, tls };
        greeting.flush().await?;
        loop {
            if let Some(binding) = greeting.tls.binding() {
                greeting.flush().await?;
                return Ok((greeting, binding));
            }
            greeting.fill().await?;
        }
    }

    /// Sends one message.
    pub(super) async fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut header = Header::new(FrameKind::Hello, 0);
        header.aux = message.kind as u16;
        header.len = message.payload.len() as u32;
        let frame = [&header.encode()[..], &message.payload].concat();
        let mut at = 0;
        while at < frame.len() {
            at += self.tls.write(&frame[at..]).map_err(io::Error::other)?;
            self.flush().await?;
        }
        Ok(())
    }

    /// Waits for one message.
    pub(super) async fn receive(&mut self) -> io::Result<(Kind, Vec<u8>)> {
        let wrong = |text: &str| io::Error::new(ErrorKind::InvalidData, text.to_owned());
        let head = self.take(HEADER_BYTES).await?;
        let head: [u8; HEADER_BYTES] = head.as_slice().try_into().expect("as many as asked for");
        let header = Header::decode(&head).map_err(|e| wrong(&e.to_string()))?;
        let kinds = [Kind::Challenge, Kind::Auth, Kind::Welcome, Kind::Refused];
        let kind = kinds.into_iter().find(|kind| *kind as u16 == header.aux);
        let (FrameKind::Hello, Some(kind), 0..=CONTROL_BYTES_MAX) = (header.kind, kind, header.len) else {
            return Err(wrong("the handshake was not followed"));
        };
        Ok((kind, self.take(header.len as usize).await?))
    }

    /// The connection, for what comes after the welcome.
    ///
    /// # Errors
    /// Something came too early: it would be lost.
    pub(super) fn end(self) -> io::Result<S> {
        if self.tls.plaintext().is_empty() {
            Ok(self.stream)
        } else {
            Err(io::Error::new(ErrorKind::InvalidData, "bytes came before their time"))
        }
    }

    async fn take(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < n {
            let there = self.tls.plaintext();
            let more = there.len().min(n - bytes.len());
            bytes.extend_from_slice(&there[..more]);
            self.tls.consume(more);
            if more == 0 {
                self.fill().await?;
            }
        }
        Ok(bytes)
    }

    async fn fill(&mut self) -> io::Result<()> {
        let n = self.stream.read(self.tls.receive_space()).await?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let received = self.tls.on_received(n).map_err(io::Error::other);
        // An alert, if there is one, is to be heard.
        self.flush().await?;
        received
    }

    async fn flush(&mut self) -> io::Result<()> {
        while !self.tls.outgoing().is_empty() {
            let n = self.stream.write(self.tls.outgoing()).await?;
            self.tls.on_sent(n);
        }
        Ok(())
    }
}
