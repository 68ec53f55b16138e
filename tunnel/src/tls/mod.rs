//! The bytes of a link, with or without TLS 1.3, as a value that a worker drives.
//!
//! ```text
//! loop on the worker, after the socket said "readable" or "writable":
//!   socket.recv(tls.receive_space()) → tls.on_received(n)?
//!   parse tls.plaintext(), tls.consume(n)          // not consumed: receive_space() becomes empty, stop reading
//!   tls.write(bytes)? → how many it took            // 0: outgoing is full, wait for the socket to take some
//!   socket.send(tls.outgoing()) → tls.on_sent(n)
//! ```
//! Promises: bounded memory whatever the peer does (see the constants); plaintext comes only from a peer that has
//! completed the handshake; after an error, [`Tls::outgoing`] still holds the alert that tells the peer why, and
//! everything else fails with the same error. Sans-IO: no socket, no clock.
//!
//! The end of the TCP stream without [`Tls::peer_closed`] is a cut, not an end (RFC 8446 §6.1). A link treats both as
//! its loss; streams end by frames.

mod buffer;
mod config;
mod exporter;
mod offload;
mod session;
mod wear;

use crate::fingerprint::Fingerprint;
pub(crate) use buffer::Buffer;
pub use config::{ClientTls, ServerTls, ServerTlsError};
pub use exporter::{BINDING_BYTES, Binding};
pub use offload::{Offload, Refused};
use session::{ClientSession, ServerSession, Session};
use std::fmt;
pub(crate) use wear::Wear;

/// Most bytes that [`Tls::receive_space`] offers at once: four full records, one system call. Not a byte more, so that of
/// bulk no record is cut in two, whose first part would have to be moved.
pub const RECEIVE_BYTES: usize = 4 * (session::RECORD_BYTES + session::RECORD_OVERHEAD_BYTES);

/// With this much plaintext unread, no more is received.
pub const PLAINTEXT_BYTES_HIGH: usize = 64 * 1024;

/// Most bytes of data waiting in [`Tls::outgoing`]: a frame of 64 KiB is written while another is being sent.
pub const OUTGOING_BYTES_MAX: usize = 160 * 1024;

/// One end of a link's byte stream: [`Tls::plain`], [`ServerTls::accept`], [`ClientTls::connect`].
pub struct Tls {
    kind: Kind,
}

enum Kind {
    Plain(Plain),
    Server(Box<ServerSession>),
    Client(Box<ClientSession>),
    /// The kernel has the keys: nothing passes through here any more. The channel binding stays.
    Kernel(Option<Binding>),
}

/// The buffers of a link without TLS.
#[derive(Default)]
struct Plain {
    incoming: Buffer,
    outgoing: Buffer,
}

/// Calls the same method on either kind of session; where the kernel has the keys, there is nothing.
macro_rules! each {
    ($tls:expr, $plain:ident => $on_plain:expr, $session:ident => $on_session:expr, $on_kernel:expr) => {
        match $tls {
            Kind::Kernel(_) => $on_kernel,
            Kind::Plain($plain) => $on_plain,
            Kind::Server($session) => $on_session,
            Kind::Client($session) => $on_session,
        }
    };
}

impl Tls {
    /// A link without TLS.
    pub fn plain() -> Tls {
        Tls { kind: Kind::Plain(Plain::default()) }
    }

    fn server(session: ServerSession) -> Tls {
        Tls { kind: Kind::Server(Box::new(session)) }
    }

    fn client(session: ClientSession) -> Tls {
        Tls { kind: Kind::Client(Box::new(session)) }
    }

    /// Where to receive into: empty while [`PLAINTEXT_BYTES_HIGH`] bytes wait for [`consume`](Tls::consume), after
    /// the peer's end and after an error; else at most [`RECEIVE_BYTES`]. An empty slice means "do not receive": a
    /// recv(2) into it would look like the end of the stream.
    pub fn receive_space(&mut self) -> &mut [u8] {
        each!(&mut self.kind, plain => {
            if plain.incoming.len() >= PLAINTEXT_BYTES_HIGH {
                return &mut [];
            }
            let space = plain.incoming.spare(RECEIVE_BYTES);
            let room = space.len().min(RECEIVE_BYTES);
            &mut space[..room]
        }, session => session.receive_space(), &mut [])
    }

    /// The first `n` bytes of [`receive_space`](Tls::receive_space) have been received. Look at
    /// [`plaintext`](Tls::plaintext) and [`outgoing`](Tls::outgoing) afterwards.
    ///
    /// # Errors
    /// The peer broke TLS, is not who it should be, or sent an alert: send what is left in `outgoing`, then close.
    pub fn on_received(&mut self, n: usize) -> Result<(), TlsError> {
        each!(&mut self.kind, plain => { plain.incoming.fill(n); Ok(()) }, session => session.on_received(n), Ok(()))
    }

    /// What the peer wrote and nobody has consumed, in order.
    pub fn plaintext(&self) -> &[u8] {
        each!(&self.kind, plain => plain.incoming.filled(), session => session.plaintext(), &[])
    }

    /// The first `n` bytes of [`plaintext`](Tls::plaintext) are done with.
    pub fn consume(&mut self, n: usize) {
        each!(&mut self.kind, plain => plain.incoming.consume(n), session => session.consume(n), ());
    }

    /// All of [`plaintext`](Tls::plaintext), consumed, to be looked at while this value is elsewhere. Give its memory back
    /// with [`reuse`](Tls::reuse).
    pub(crate) fn take_plaintext(&mut self) -> Buffer {
        each!(&mut self.kind, plain => std::mem::take(&mut plain.incoming), session => session.take_plaintext(), Buffer::default())
    }

    /// The memory of plaintext that was taken and is done with.
    pub(crate) fn reuse(&mut self, buffer: Buffer) {
        each!(&mut self.kind, _plain => {}, session => session.reuse(buffer), ());
    }

    /// Takes as much of `bytes` as [`OUTGOING_BYTES_MAX`] allows and returns how much; 0 while shaking hands. One call
    /// with 64 KiB is cheaper than many small ones: a call makes at least one record.
    ///
    /// # Errors
    /// The connection has failed before, or its keys are worn out.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, TlsError> {
        each!(&mut self.kind, plain => {
            let n = bytes.len().min(OUTGOING_BYTES_MAX.saturating_sub(plain.outgoing.len()));
            plain.outgoing.push(&bytes[..n]);
            Ok(n)
        }, session => session.write(bytes), Ok(0))
    }

    /// What to send to the peer, in order.
    pub fn outgoing(&self) -> &[u8] {
        each!(&self.kind, plain => plain.outgoing.filled(), session => session.outgoing(), &[])
    }

    /// The first `n` bytes of [`outgoing`](Tls::outgoing) have been sent.
    pub fn on_sent(&mut self, n: usize) {
        each!(&mut self.kind, plain => plain.outgoing.consume(n), session => session.on_sent(n), ());
    }

    /// Whether plaintext cannot flow yet. Never for a plain link.
    pub fn is_handshaking(&self) -> bool {
        each!(&self.kind, _plain => false, session => session.is_handshaking(), false)
    }

    /// Whether the socket itself carries plaintext: a link without TLS, or one whose keys the kernel has. Only then may
    /// bytes bypass this value, and only while [`plaintext`](Tls::plaintext) and [`outgoing`](Tls::outgoing) are empty.
    pub fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain(_) | Kind::Kernel(_))
    }

    /// Whether bytes are protected on the way, by whomever.
    pub fn is_encrypted(&self) -> bool {
        !matches!(self.kind, Kind::Plain(_))
    }

    /// Whether the peer has said that it will write no more (close_notify). Never for a plain link: there the socket's
    /// end says it.
    pub fn peer_closed(&self) -> bool {
        each!(&self.kind, _plain => false, session => session.peer_closed(), false)
    }

    /// The channel binding (RFC 9266): the same at both ends and on no other connection. `None` while shaking hands;
    /// [`Binding::NONE`] for a plain link.
    pub fn binding(&self) -> Option<Binding> {
        match &self.kind {
            Kind::Plain(_) => Some(Binding::NONE),
            Kind::Server(session) => session.binding(),
            Kind::Client(session) => session.binding(),
            Kind::Kernel(binding) => *binding,
        }
    }

    /// Says goodbye (close_notify): send what is in [`outgoing`](Tls::outgoing), then shut the socket.
    pub fn close(&mut self) {
        each!(&mut self.kind, _plain => {}, session => session.close(), ());
    }

    /// What its buffers take.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        each!(&self.kind, plain => plain.incoming.memory_bytes() + plain.outgoing.memory_bytes(), session => session.memory_bytes(), 0)
    }

    /// Gives the memory of empty buffers back: for a link that has been idle for a while. They come back by
    /// themselves.
    pub fn release_idle(&mut self) {
        each!(&mut self.kind, plain => {
            plain.incoming.release_if_empty();
            plain.outgoing.release_if_empty();
        }, session => session.release_idle(), ());
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Plain(_) => "Plain",
            Kind::Server(_) => "Server",
            Kind::Client(_) => "Client",
            Kind::Kernel(_) => "Kernel",
        };
        f.debug_struct(kind)
            .field("handshaking", &self.is_handshaking())
            .field("plaintext", &self.plaintext().len())
            .field("outgoing", &self.outgoing().len())
            .finish_non_exhaustive()
    }
}

/// Why a link's TLS has ended. The peer's doing: an outcome of this connection, and of no other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// Somebody else answers at the bridge's address, or the bridge has a new key.
    #[error(
        "the bridge's fingerprint is {found}, and this agent pins {pinned}: either somebody else answers at its \
         address, or it has a new key and the agent needs a new join token"
    )]
    WrongFingerprint {
        /// What the token said.
        pinned: Fingerprint,
        /// What the peer has.
        found: Fingerprint,
    },
    /// The first bytes are not TLS.
    #[error("the peer does not speak TLS: is tls = \"off\" at one end only, or is this another port?")]
    NotTls,
    /// The peer refused us with an alert.
    #[error("the peer refused the TLS handshake: {0}")]
    Alert(String),
    /// A message larger than any that belongs here.
    #[error("the peer sent an oversized TLS message, or made us answer without reading the answers")]
    Oversized,
    /// The keys have encrypted as much as they may, and no new ones could be agreed.
    #[error("the TLS keys are worn out: reconnect")]
    KeysWornOut,
    /// Anything else against RFC 8446.
    #[error("the peer broke TLS: {0}")]
    Protocol(String),
}

impl TlsError {
    fn of(error: rustls::Error) -> TlsError {
        use rustls::{CertificateError, Error, InvalidMessage};
        if let Error::InvalidCertificate(CertificateError::Other(other)) = &error
            && let Some(wrong) = other.0.downcast_ref::<config::WrongFingerprint>()
        {
            return TlsError::WrongFingerprint { pinned: wrong.pinned, found: wrong.found };
        }
        match error {
            Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
                TlsError::NotTls
            }
            Error::AlertReceived(alert) => TlsError::Alert(format!("{alert:?}")),
            other => TlsError::Protocol(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
