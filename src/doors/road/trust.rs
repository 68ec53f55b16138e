//! Whom the outer TLS of a WebSocket believes. The link's own TLS is inside, and knows its bridge by the join token; this
//! one is for the networks in between, which may insist on certificates of their own.

use ring::digest::{SHA256, digest};
use ringspan_engine::check::Pin;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// Who is believed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trust {
    /// Who this machine believes.
    System,
    /// Chains up to one of these, PEM.
    Ca(Vec<u8>),
    /// Who has this certificate or key, whatever it says of itself.
    Pin(Pin),
}

impl Trust {
    /// What TLS makes of it.
    ///
    /// # Errors
    /// A sentence: no roots, no PEM.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, String> {
        let crypto = Arc::new(provider::default_provider());
        let builder = ClientConfig::builder_with_provider(crypto.clone());
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]);
        let builder = builder.map_err(|error| error.to_string())?;
        let mut config = match self {
            Trust::Pin(pin) => {
                let verifier = Arc::new(Pinned { pin: *pin, crypto });
                builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
            }
            Trust::System => builder.with_root_certificates(system()?).with_no_client_auth(),
            Trust::Ca(pem) => builder.with_root_certificates(of_pem(pem)?).with_no_client_auth(),
        };
        // WebSocket's handshake is HTTP/1.1's.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        false => Ok(roots),
        true => Err("this machine has no root certificates: install ca-certificates, or name websocket_ca".into()),
    }
}

fn of_pem(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("it is no PEM: {error}"))?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("there is no certificate in it".into()) } else { Ok(roots) }
}

#[derive(Debug)]
struct Pinned {
    pin: Pin,
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_it = match self.pin {
            Pin::Certificate(hash) => digest(&SHA256, presented).as_ref() == hash,
            Pin::Key(hash) => {
                let key = ParsedCertificate::try_from(presented)?.subject_public_key_info();
                digest(&SHA256, &key).as_ref() == hash
            }
        };
        if is_it {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.crypto.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.crypto.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}
