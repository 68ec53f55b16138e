//! One TLS session as a machine: bytes of the wire in, plaintext out, and back. Usable from the connection's first byte
//! or from any later one (STARTTLS, MySQL).
//! Memory: rustls holds at most one record and one handshake message, 64 KiB together; nothing grows beyond that.

use crate::check::Detail;
use crate::io::End;
use crate::outcome::Code;
use crate::probe::talk::Finding;
use crate::probe::tls::settings::TlsClient;
use crate::probe::tls::verify::{CertificateFault, Witness};
use crate::time::Instant;
use rustls::client::ClientConnection;
use rustls::{ClientConfig, Error};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::Arc;

/// See the module.
pub(crate) struct Session {
    connection: ClientConnection,
    witness: Arc<Witness>,
    opened: Option<Instant>,
    has_ended: bool,
}

impl Session {
    /// Begins the handshake: puts the first message behind what `say` holds already.
    pub(crate) fn new(client: &TlsClient, address: IpAddr, say: &mut Vec<u8>) -> Session {
        let witness = Arc::new(Witness::new(client.trusted.clone(), client.settings().cert_days_min));
        let mut config = ClientConfig::clone(&client.config);
        config.dangerous().set_certificate_verifier(witness.clone());
        let connection = ClientConnection::new(Arc::new(config), client.expects(address));
        let connection = connection.expect("the settings made a config that can begin: TlsClient::new tries it");
        let mut session = Session { connection, witness, opened: None, has_ended: false };
        session.flush(say);
        session
    }

    /// Takes what came over the wire; none: the peer has closed its side. Plaintext is put behind what `plain` holds,
    /// what must be said behind what `say` holds.
    ///
    /// # Errors
    /// The session is over, and this is why (`L6RSP`, `L6CERT`). If `say` has grown, it holds the alert that tells the
    /// server so: whoever is polite says it before leaving.
    pub(crate) fn feed(
        &mut self,
        now: Instant,
        mut wire: &[u8],
        plain: &mut Vec<u8>,
        say: &mut Vec<u8>,
    ) -> Result<(), Finding> {
        if wire.is_empty() {
            self.has_ended = true;
            return if self.is_open() { Ok(()) } else { Err(self.finding(Code::L6Response, 0)) };
        }
        while !wire.is_empty() && !self.has_ended {
            // Nothing taken, or an error: its buffer is full of what cannot become a message.
            if !self.connection.read_tls(&mut wire).is_ok_and(|taken| taken > 0) {
                return Err(self.finding(Code::L6Response, 0));
            }
            if let Err(error) = self.connection.process_new_packets() {
                // An alert is for those who speak TLS.
                if !matches!(error, Error::InvalidMessage(_)) {
                    self.flush(say);
                }
                return Err(self.finding_of(&error));
            }
            self.take_plain(plain);
        }
        if self.opened.is_none() && !self.connection.is_handshaking() {
            self.opened = Some(now);
        }
        self.flush(say);
        match self.has_ended && !self.is_open() {
            true => Err(self.finding(Code::L6Response, 0)),
            false => Ok(()),
        }
    }

    /// Encrypts `plain` behind what `say` holds. Before the session is open nothing may be written.
    pub(crate) fn write(&mut self, plain: &[u8], say: &mut Vec<u8>) {
        debug_assert!(self.is_open());
        let written = self.connection.writer().write(plain);
        debug_assert_eq!(written.ok(), Some(plain.len()), "a request is smaller than rustls' buffer");
        self.flush(say);
    }

    /// Says that nothing more will be said (close_notify).
    pub(crate) fn close(&mut self, say: &mut Vec<u8>) {
        self.connection.send_close_notify();
        self.flush(say);
    }

    /// Whether the handshake is over and plaintext may be written.
    pub(crate) fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    /// When the handshake was over.
    pub(crate) fn opened_at(&self) -> Option<Instant> {
        self.opened
    }

    /// Whether the peer has closed its side, with or without saying so first.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whole days until the server's certificate expires; `None`: none was seen, or it cannot be read.
    pub(crate) fn cert_days(&self) -> Option<i16> {
        self.witness.seen().cert_days
    }

    fn finding(&self, code: Code, number: u32) -> Finding {
        Finding { code, detail: Detail { number, cert_days: self.cert_days() }, end: End::Reset }
    }

    fn finding_of(&self, error: &Error) -> Finding {
        match (error, self.witness.seen().fault) {
            (_, Some(fault)) => self.finding(Code::L6Certificate, fault.number()),
            (Error::InvalidCertificate(_), None) => self.finding(Code::L6Certificate, CertificateFault::Other.number()),
            (Error::AlertReceived(alert), None) => self.finding(Code::L6Response, u32::from(u8::from(*alert))),
            (_, None) => self.finding(Code::L6Response, 0),
        }
    }

    fn take_plain(&mut self, plain: &mut Vec<u8>) {
        let mut chunk = [0; 4096];
        loop {
            match self.connection.reader().read(&mut chunk) {
                Ok(0) => {
                    self.has_ended = true;
                    return;
                }
                Ok(read) => plain.extend_from_slice(&chunk[..read]),
                // WouldBlock: that was all so far.
                Err(_) => return,
            }
        }
    }

    fn flush(&mut self, say: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(say).expect("a Vec takes everything");
        }
    }
}
