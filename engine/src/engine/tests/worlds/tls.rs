//! A host that speaks TLS around what another one says. Pure like every host, so the simulator can have it.

use crate::sim::{Host, Said, Speaker, Word};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};
use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

/// A certificate for every loopback address that tests use is not to be had; the name is what is asked for.
pub(super) struct TlsHost {
    config: Arc<ServerConfig>,
    certificate_pem: String,
    inside: Arc<dyn Host>,
}

impl TlsHost {
    /// `is_valid`: or its certificate has expired.
    pub(super) fn new(is_valid: bool, inside: impl Host + 'static) -> TlsHost {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = if is_valid { date_time_ymd(2100, 1, 1) } else { date_time_ymd(2021, 1, 1) };
        let certificate = params.self_signed(&key).expect("a certificate");
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .expect("its own certificate");
        TlsHost { config: Arc::new(config), certificate_pem: certificate.pem(), inside: Arc::new(inside) }
    }

    /// Whom to trust, to trust this host.
    pub(super) fn ca_pem(&self) -> Vec<u8> {
        self.certificate_pem.clone().into_bytes()
    }
}

/// Whom its certificate names.
pub(super) const NAME: &str = "world.test";

impl fmt::Debug for TlsHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS around {:?}", self.inside)
    }
}

impl Host for TlsHost {
    fn answer(&self) -> Box<dyn Speaker> {
        let session = ServerConnection::new(self.config.clone()).expect("a session");
        Box::new(Session { session, inside: self.inside.answer() })
    }
}

struct Session {
    session: ServerConnection,
    inside: Box<dyn Speaker>,
}

impl Session {
    /// What the session has to say, after so long.
    fn flush(&mut self, after: Duration, says: &mut Vec<Said>) {
        let mut bytes = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut bytes).expect("a vector takes everything");
        }
        if !bytes.is_empty() {
            says.push(Said { after, word: Word::Bytes(bytes) });
        }
    }
}

impl Speaker for Session {
    fn greet(&mut self, _says: &mut Vec<Said>) {}

    fn hear(&mut self, mut heard: &[u8], says: &mut Vec<Said>) {
        while !heard.is_empty() {
            if self.session.read_tls(&mut heard).is_err() {
                return;
            }
            let Ok(state) = self.session.process_new_packets() else {
                self.flush(Duration::ZERO, says);
                return says.push(Said { after: Duration::ZERO, word: Word::Close });
            };
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.session.reader().read_exact(&mut plain).expect("so many there are");
            self.flush(Duration::ZERO, says);
            if !plain.is_empty() {
                self.pass(&plain, says);
            }
        }
    }
}

impl Session {
    /// What the host inside says to that, in TLS.
    fn pass(&mut self, plain: &[u8], says: &mut Vec<Said>) {
        let mut inside = Vec::new();
        self.inside.hear(plain, &mut inside);
        for Said { after, word } in inside {
            match word {
                Word::Bytes(bytes) => {
                    self.session.writer().write_all(&bytes).expect("room for what a test says");
                    self.flush(after, says);
                }
                Word::Close => {
                    self.session.send_close_notify();
                    self.flush(after, says);
                    says.push(Said { after: Duration::ZERO, word: Word::Close });
                }
                Word::Reset => says.push(Said { after, word: Word::Reset }),
            }
        }
    }
}
