//! One TLS 1.3 connection over rustls' unbuffered API: bytes from the wire in, plaintext out, and back.
//!
//! ```text
//!   recv ─► incoming ─(decrypted in place by rustls)─► plaintext ─► frames
//!   send ◄─ outgoing ◄──────────(encrypt)──────────────────────────  write
//! ```
//! Promises: whatever the peer sends, `incoming` stays within [`INCOMING_BYTES_MAX`], `plaintext` within that plus
//! [`PLAINTEXT_BYTES_HIGH`], `outgoing` within [`OUTGOING_BYTES_MAX`] plus a handshake flight. After an error nothing
//! more is read or written, and `outgoing` holds the alert for the peer. Sans-IO.

use super::buffer::Buffer;
use super::exporter::{Binding, Tap};
use super::offload::Permit;
use super::{OUTGOING_BYTES_MAX, PLAINTEXT_BYTES_HIGH, RECEIVE_BYTES, TlsError};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CipherSuite, ExtractedSecrets};
use std::sync::Arc;

/// A handshake message may have 64 KiB in TLS, and rustls joins its pieces in our memory; a partial record comes on
/// top, and a full read after that.
const INCOMING_BYTES_MAX: usize = 64 * 1024 + 20 * 1024 + RECEIVE_BYTES;

/// One read while shaking hands: a ClientHello or a server's flight with a small certificate fits, and an idle
/// stranger costs no more.
const HANDSHAKE_RECEIVE_BYTES: usize = 4 * 1024;

/// Alerts, key updates and our handshake flight, on top of [`OUTGOING_BYTES_MAX`].
const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// Most plaintext in a record (RFC 8446 §5.1), and what a record adds: header, content type, tag.
pub(super) const RECORD_BYTES: usize = 16 * 1024;
pub(super) const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;

/// Kept free for a key update that rustls may put before the data.
const KEY_UPDATE_BYTES: usize = 64;

/// The two kinds of connection, which share all but their types.
pub(super) trait Connection {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn handshaking(&self) -> bool;
    /// Whether rustls has a message of its own to send.
    fn has_queued(&self) -> bool;
    /// What was agreed on.
    fn suite(&self) -> Option<CipherSuite>;
    /// The keys in force and how many records they have seen.
    fn into_secrets(self) -> Result<ExtractedSecrets, rustls::Error>;
}

impl Connection for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn handshaking(&self) -> bool {
        self.is_handshaking()
    }
    fn has_queued(&self) -> bool {
        self.wants_write()
    }
    fn suite(&self) -> Option<CipherSuite> {
        self.negotiated_cipher_suite().map(|suite| suite.suite())
    }
    fn into_secrets(self) -> Result<ExtractedSecrets, rustls::Error> {
        // What is left of rustls could only follow key updates, which the kernel could not.
        self.dangerous_into_kernel_connection().map(|(secrets, _)| secrets)
    }
}

impl Connection for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
    fn handshaking(&self) -> bool {
        self.is_handshaking()
    }
    fn has_queued(&self) -> bool {
        self.wants_write()
    }
    fn suite(&self) -> Option<CipherSuite> {
        self.negotiated_cipher_suite().map(|suite| suite.suite())
    }
    fn into_secrets(self) -> Result<ExtractedSecrets, rustls::Error> {
        // What is left of rustls could only follow key updates, which the kernel could not.
        self.dangerous_into_kernel_connection().map(|(secrets, _)| secrets)
    }
}

/// A connection of either kind and its three buffers.
pub(super) struct Session<C> {
    connection: C,
    tap: Arc<Tap>,
    permit: Permit,
    incoming: Buffer,
    plaintext: Buffer,
    outgoing: Buffer,
    peer_closed: bool,
    failed: Option<TlsError>,
}

/// The bridge's side.
pub(super) type ServerSession = Session<UnbufferedServerConnection>;
/// The agent's side.
pub(super) type ClientSession = Session<UnbufferedClientConnection>;

/// What to do once the connection may write.
enum Want<'a> {
    Nothing,
    Write(&'a [u8]),
    Close,
}

impl<C: Connection> Session<C> {
    pub(super) fn new(connection: C, tap: Arc<Tap>, permit: Permit) -> Session<C> {
        Session {
            connection,
            tap,
            permit,
            incoming: Buffer::default(),
            plaintext: Buffer::default(),
            outgoing: Buffer::default(),
            peer_closed: false,
            failed: None,
        }
    }

    /// Puts the first flight into `outgoing`.
    pub(super) fn start(&mut self) -> Result<(), TlsError> {
        self.drive(Want::Nothing).map(drop)
    }

    pub(super) fn receive_space(&mut self) -> &mut [u8] {
        if self.plaintext.len() >= PLAINTEXT_BYTES_HIGH || self.peer_closed || self.failed.is_some() {
            return &mut [];
        }
        let wanted = if self.connection.handshaking() { HANDSHAKE_RECEIVE_BYTES } else { RECEIVE_BYTES };
        let space = self.incoming.spare(wanted);
        let room = space.len().min(RECEIVE_BYTES);
        &mut space[..room]
    }

    pub(super) fn on_received(&mut self, n: usize) -> Result<(), TlsError> {
        self.incoming.fill(n);
        self.drive(Want::Nothing)?;
        // drive() took all that was complete: what is left is one partial message.
        if self.incoming.len() > INCOMING_BYTES_MAX - RECEIVE_BYTES {
            return Err(self.fail(TlsError::Oversized));
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, TlsError> {
        if self.connection.handshaking() || bytes.is_empty() {
            return self.failed.clone().map_or(Ok(0), Err);
        }
        let room = OUTGOING_BYTES_MAX.saturating_sub(self.outgoing.len() + KEY_UPDATE_BYTES);
        let (full, rest) =
            (room / (RECORD_BYTES + RECORD_OVERHEAD_BYTES), room % (RECORD_BYTES + RECORD_OVERHEAD_BYTES));
        let fits = full * RECORD_BYTES + rest.saturating_sub(RECORD_OVERHEAD_BYTES);
        self.drive(Want::Write(&bytes[..bytes.len().min(fits)]))
    }

    pub(super) fn close(&mut self) {
        // An error says that it is closed already.
        let _ = self.drive(Want::Close);
    }

    /// Takes every complete record out of `incoming`, every control message into `outgoing`, then does what is wanted
    /// if the connection may send. Returns the plaintext bytes taken from `want`.
    fn drive(&mut self, want: Want<'_>) -> Result<usize, TlsError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let Session { connection, incoming, plaintext, outgoing, peer_closed, .. } = self;
        let outcome = loop {
            let UnbufferedStatus { mut discard, state, .. } = connection.process(incoming.filled_mut());
            let step = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                    match traffic.next_record() {
                        Some(Ok(record)) => {
                            discard += record.discard;
                            plaintext.push(record.payload);
                        }
                        Some(Err(error)) => break Some(Err(TlsError::of(error))),
                        None => break None,
                    }
                },
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let mut encoded = data.encode(outgoing.spare(0));
                    if let Err(EncodeError::InsufficientSize(needs)) = &encoded
                        && outgoing.len() + needs.required_size <= OUTGOING_BYTES_MAX + CONTROL_BYTES_MAX
                    {
                        encoded = data.encode(outgoing.spare(needs.required_size));
                    }
                    match encoded {
                        Ok(n) => {
                            outgoing.fill(n);
                            None
                        }
                        // The peer makes us answer and does not read the answers.
                        Err(_) => Some(Err(TlsError::Oversized)),
                    }
                }
                // It is in `outgoing`, and stays in order there.
                Ok(ConnectionState::TransmitTlsData(sent)) => {
                    sent.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    *peer_closed = true;
                    None
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => Some(match want {
                    Want::Nothing => Ok(0),
                    Want::Write(bytes) => {
                        let records = bytes.len().div_ceil(RECORD_BYTES);
                        let needed = bytes.len() + records * RECORD_OVERHEAD_BYTES + KEY_UPDATE_BYTES;
                        match traffic.encrypt(bytes, outgoing.spare(needed)) {
                            Ok(n) => {
                                outgoing.fill(n);
                                Ok(bytes.len())
                            }
                            Err(EncryptError::InsufficientSize(_)) => Ok(0),
                            Err(EncryptError::EncryptExhausted) => Err(TlsError::KeysWornOut),
                        }
                    }
                    Want::Close => {
                        // Fails only if it was queued before, or there is no room: then the socket's end says it.
                        if let Ok(n) = traffic.queue_close_notify(outgoing.spare(KEY_UPDATE_BYTES)) {
                            outgoing.fill(n);
                        }
                        Ok(0)
                    }
                }),
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Some(Ok(0)),
                // Early data is not offered, and rustls adds states only behind a flag.
                Ok(_) => Some(Err(TlsError::Protocol("early data, which was not offered".into()))),
                Err(error) => Some(Err(TlsError::of(error))),
            };
            incoming.consume(discard);
            if let Some(outcome) = step {
                break outcome;
            }
        };
        outcome.map_err(|error| self.fail(error))
    }

    /// Ends the connection: the alert that rustls has for the peer goes to `outgoing`, everything read is forgotten.
    fn fail(&mut self, error: TlsError) -> TlsError {
        let Session { connection, incoming, outgoing, .. } = self;
        // Only as long as there is one: with none queued, rustls would look at the offending bytes again, and it
        // believes (common_state.rs, a debug_assert) that nobody asks it to after a fatal alert.
        while connection.has_queued() {
            match connection.process(incoming.filled_mut()).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    if let Ok(n) = data.encode(outgoing.spare(CONTROL_BYTES_MAX)) {
                        outgoing.fill(n);
                    }
                }
                _ => break,
            }
        }
        self.incoming = Buffer::default();
        self.failed = Some(error.clone());
        error
    }

    pub(super) fn plaintext(&self) -> &[u8] {
        self.plaintext.filled()
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.plaintext.consume(n);
    }

    pub(super) fn take_plaintext(&mut self) -> Buffer {
        std::mem::take(&mut self.plaintext)
    }

    pub(super) fn reuse(&mut self, buffer: Buffer) {
        self.plaintext.adopt(buffer);
    }

    pub(super) fn outgoing(&self) -> &[u8] {
        self.outgoing.filled()
    }

    pub(super) fn on_sent(&mut self, n: usize) {
        self.outgoing.consume(n);
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.handshaking()
    }

    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    pub(super) fn binding(&self) -> Option<Binding> {
        if self.connection.handshaking() { None } else { self.tap.binding() }
    }

    /// Whether the kernel may have it.
    pub(super) fn permit(&self) -> &Permit {
        &self.permit
    }

    pub(super) fn suite(&self) -> Option<CipherSuite> {
        self.connection.suite()
    }

    /// Whether both directions stand between two records, and nothing of them is here.
    pub(super) fn is_quiet(&self) -> bool {
        let empty = self.incoming.len() == 0 && self.plaintext.len() == 0 && self.outgoing.len() == 0;
        let idle = !self.connection.handshaking() && !self.connection.has_queued();
        empty && idle && !self.peer_closed && self.failed.is_none()
    }

    /// What the kernel needs to go on from here. Only while [`is_quiet`](Session::is_quiet).
    pub(super) fn into_secrets(self) -> Result<ExtractedSecrets, rustls::Error> {
        self.connection.into_secrets()
    }

    #[cfg(test)]
    pub(super) fn memory_bytes(&self) -> usize {
        [&self.incoming, &self.plaintext, &self.outgoing].iter().map(|buffer| buffer.memory_bytes()).sum()
    }

    pub(super) fn release_idle(&mut self) {
        self.incoming.release_if_empty();
        self.plaintext.release_if_empty();
        self.outgoing.release_if_empty();
    }
}
