//! Who the ends of a link are to TLS: the bridge's key and certificate, and the agent's pin of it.
//!
//! TLS 1.3 only, no tickets, no resumption, no early data: an agent connects rarely and stays, and every connection
//! then has keys of its own. The agent does not care who signed the certificate, what it is called or when it expires:
//! it knows the key (the fingerprint in its token), and the handshake signature proves that the peer holds it.

use super::exporter::Tap;
use super::offload::permit;
use super::session::{ClientSession, ServerSession};
use super::{Tls, TlsError};
use crate::fingerprint::Fingerprint;
use crate::private_file;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, UnbufferedServerConnection};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Application protocol (RFC 7301): a peer that means something else is refused in the handshake.
const ALPN: &[u8] = b"ringspan-link/1";

/// The self-signed key and certificate in the data folder.
const KEY_FILE: &str = "link-key.pem";
const CERT_FILE: &str = "link-cert.pem";

/// AES-128-GCM first: a quarter less work than AES-256 for links of one lifetime, and kTLS knows it from 4.17 on.
fn crypto() -> Arc<CryptoProvider> {
    let mut provider = provider::default_provider();
    provider.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// The bridge's end: makes one [`Tls`] per accepted connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    fingerprint: Fingerprint,
    ktls: bool,
}

/// Why the bridge has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// The file system refused, or others may read the key. The text names the path.
    #[error("{0}")]
    File(#[source] io::Error),
    /// Not PEM, or not what it should hold.
    #[error("{path}: {why}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
}

impl ServerTls {
    /// The self-signed certificate of `data_dir`, made if the folder has none: the fingerprint survives restarts, so
    /// that tokens handed out stay good.
    ///
    /// # Errors
    /// [`ServerTlsError`]. A damaged key is an error, never replaced: every agent pins it.
    pub fn self_signed(data_dir: &Path) -> Result<ServerTls, ServerTlsError> {
        let (key_path, cert_path) = (data_dir.join(KEY_FILE), data_dir.join(CERT_FILE));
        let remedy = "restore it from a backup; if it is lost, remove it and give every agent a new join token";
        let key = match private_file::read(&key_path).map_err(ServerTlsError::File)? {
            Some(pem) => {
                let text = String::from_utf8(pem).map_err(|error| error.to_string());
                text.and_then(|text| rcgen::KeyPair::from_pem(&text).map_err(|error| error.to_string())).map_err(
                    |error| ServerTlsError::Content {
                        path: key_path.clone(),
                        why: format!("damaged: {error}. {remedy}"),
                    },
                )?
            }
            None => {
                let key = rcgen::KeyPair::generate().expect("the system's random source works");
                private_file::write(&key_path, key.serialize_pem().as_bytes()).map_err(ServerTlsError::File)?;
                key
            }
        };
        // The key is what is pinned. The certificate around it can be made anew at will, and is kept for people with
        // openssl to look at.
        let cert = match private_file::read(&cert_path).map_err(ServerTlsError::File)? {
            Some(pem) => CertificateDer::from_pem_slice(&pem).ok(),
            None => None,
        };
        let fingerprint = Fingerprint::of_spki(&rcgen::PublicKeyData::subject_public_key_info(&key));
        let cert = match cert.filter(|cert| spki_of(cert).ok() == Some(fingerprint)) {
            Some(cert) => cert,
            None => {
                let cert = rcgen::CertificateParams::new(vec!["ringspan-bridge".to_owned()])
                    .and_then(|params| params.self_signed(&key))
                    .expect("a certificate with one ASCII name can be signed");
                private_file::write(&cert_path, cert.pem().as_bytes()).map_err(ServerTlsError::File)?;
                cert.der().clone()
            }
        };
        let key_der = PrivateKeyDer::try_from(key.serialize_der()).expect("rcgen writes PKCS#8");
        ServerTls::new(vec![cert], key_der)
            .map_err(|why| ServerTlsError::Content { path: key_path, why: format!("{why}. {remedy}") })
    }

    /// A certificate chain and its key from PEM files, for example from an ACME client. Agents pin the key: renew with
    /// the same one (certbot: `--reuse-key`), or every agent needs a new token.
    ///
    /// # Errors
    /// [`ServerTlsError`], naming the file and what it lacks.
    pub fn from_files(cert: &Path, key: &Path) -> Result<ServerTls, ServerTlsError> {
        let file = |path: &Path| {
            std::fs::read(path).map_err(|error| {
                ServerTlsError::File(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
            })
        };
        let content = |path: &Path, why: String| ServerTlsError::Content { path: path.to_owned(), why };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&file(cert)?)
            .collect::<Result<_, _>>()
            .map_err(|error| content(cert, format!("not a PEM certificate: {error}")))?;
        if chain.is_empty() {
            return Err(content(cert, "holds no PEM certificate (-----BEGIN CERTIFICATE-----)".into()));
        }
        let key_der = PrivateKeyDer::from_pem_slice(&file(key)?)
            .map_err(|error| content(key, format!("holds no PEM private key: {error}")))?;
        ServerTls::new(chain, key_der).map_err(|why| content(key, why))
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<ServerTls, String> {
        let fingerprint = spki_of(&chain[0]).map_err(|error| error.to_string())?;
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3 suites")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| format!("the key cannot serve this certificate: {error}"))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        // For the kernel, which makes the records where it can: see `offload`.
        config.enable_secret_extraction = true;
        Ok(ServerTls { config: Arc::new(config), fingerprint, ktls: true })
    }

    /// Whether the kernel may be given the keys of a connection, where it can use them. Default true.
    pub fn with_ktls(self, ktls: bool) -> ServerTls {
        look_early(ktls);
        ServerTls { ktls, ..self }
    }

    /// What agents pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The server side of one new connection.
    ///
    /// # Errors
    /// None is known for a config that was built; passed on all the same.
    pub fn accept(&self) -> Result<Tls, TlsError> {
        let tap = Tap::new();
        let mut config = ServerConfig::clone(&self.config);
        config.key_log = tap.clone();
        let connection = UnbufferedServerConnection::new(Arc::new(config)).map_err(TlsError::of)?;
        Ok(Tls::server(ServerSession::new(connection, tap, permit(self.ktls))))
    }
}

/// The agent's end: makes one [`Tls`] per connection it dials. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    ktls: bool,
}

impl ClientTls {
    /// Believes a server that holds the key with this fingerprint, and no other.
    pub fn pinned(fingerprint: Fingerprint) -> ClientTls {
        let provider = crypto();
        let verifier = Arc::new(Pin { fingerprint, provider: provider.clone() });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3 suites")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        ClientTls { config: Arc::new(config), ktls: true }
    }

    /// Whether the kernel may be given the keys of a connection, where it can use them. Default true.
    pub fn with_ktls(self, ktls: bool) -> ClientTls {
        look_early(ktls);
        ClientTls { ktls, ..self }
    }

    /// The client side of one new connection. `host` is sent as SNI if it is a name; it plays no part in the trust.
    /// The ClientHello is ready to send.
    ///
    /// # Errors
    /// None is known for a config that was built; passed on all the same.
    pub fn connect(&self, host: &str) -> Result<Tls, TlsError> {
        let tap = Tap::new();
        let mut config = ClientConfig::clone(&self.config);
        config.key_log = tap.clone();
        let name = ServerName::try_from(host.to_owned())
            .unwrap_or_else(|_| ServerName::try_from("ringspan-bridge").expect("a plain ASCII name"));
        let connection = UnbufferedClientConnection::new(Arc::new(config), name).map_err(TlsError::of)?;
        let mut session = ClientSession::new(connection, tap, permit(self.ktls));
        session.start()?;
        Ok(Tls::client(session))
    }
}

/// What the kernel can is tried here, where waiting costs nobody anything, and not by a worker at its first connection.
fn look_early(ktls: bool) {
    if ktls {
        let _ = ringspan_engine::kernel::ktls::look();
    }
}

/// The agent's verifier, for an oracle that is built from rustls alone.
#[cfg(test)]
pub(super) fn pin_for_tests(fingerprint: Fingerprint) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Pin { fingerprint, provider: crypto() })
}

fn spki_of(cert: &CertificateDer<'_>) -> Result<Fingerprint, rustls::Error> {
    Ok(Fingerprint::of_spki(&ParsedCertificate::try_from(cert)?.subject_public_key_info()))
}

/// The peer has another key than the pinned one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bridge's fingerprint is {found}, and the join token pins {pinned}")]
pub(super) struct WrongFingerprint {
    pub(super) pinned: Fingerprint,
    pub(super) found: Fingerprint,
}

/// Accepts one key, whatever the certificate says of it.
#[derive(Debug)]
struct Pin {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = WrongFingerprint { pinned: self.fingerprint, found: spki_of(end_entity)? };
        if wrong.found == wrong.pinned {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
