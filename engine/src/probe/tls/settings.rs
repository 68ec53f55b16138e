//! How a check speaks TLS: [`TlsSettings`] as they are written, [`TlsClient`] as they have been checked, with everything
//! that can be made once made once.

use crate::check::CheckError;
use crate::probe::tls::verify::{Pin, Trusted};
use rustls::client::{ClientConnection, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Whose certificates are accepted.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// Chains up to a root of this machine: what the OpenSSL of the distribution trusts (Debian: package
    /// ca-certificates), or the environment's SSL_CERT_FILE and SSL_CERT_DIR. Read once per process; a machine without
    /// any is an error of the check. Default.
    #[default]
    System,
    /// Chains up to a certificate of this PEM file, or one of these very certificates, self-signed or not.
    CaFile(PathBuf),
    /// The same as PEM text.
    CaPem(Vec<u8>),
    /// A certificate or key that is one of these. Names, dates and issuers are not looked at: they may be written by
    /// anybody who has the key.
    Pinned(Vec<Pin>),
    /// Everything, even a server that does not have its certificate's key. For servers whose answer is all that matters.
    Insecure,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trust::System => f.write_str("System"),
            Trust::CaFile(path) => write!(f, "CaFile({})", path.display()),
            Trust::CaPem(pem) => write!(f, "CaPem({} bytes)", pem.len()),
            Trust::Pinned(pins) => write!(f, "Pinned({pins:?})"),
            Trust::Insecure => f.write_str("Insecure"),
        }
    }
}

/// Which versions are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// TLS 1.2 and 1.3. Default.
    #[default]
    Both,
    /// TLS 1.2 alone.
    Only12,
    /// TLS 1.3 alone.
    Only13,
}

/// The certificate that is shown to servers that ask for one.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The chain, PEM, the leaf first.
    pub chain_pem: Vec<u8>,
    /// Its key, PEM: PKCS #8, PKCS #1 or SEC1.
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How a check speaks TLS, as somebody writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// The name that is asked for (SNI) and that the certificate must have. Default `None`: of an HTTP check, its
    /// `host` if that is a name; else the target's IP address, for which no name is asked (RFC 6066, 3) and which the
    /// certificate must have.
    pub name: Option<String>,
    /// Whose certificates are accepted.
    pub trust: Trust,
    /// Which versions are offered.
    pub versions: Versions,
    /// Application protocols that are offered (ALPN), the best first. Default none; an HTTP check offers `http/1.1`.
    pub alpn: Vec<String>,
    /// Fewer whole days than this before the certificate expires fail the check (`L6CERT`, too few days left). Default
    /// `None`: an accepted certificate will do to its last second.
    pub cert_days_min: Option<i16>,
    /// Shown to servers that ask for it. Default none.
    pub identity: Option<Identity>,
}

/// How a check speaks TLS, checked. Cloning shares.
#[derive(Clone)]
pub struct TlsClient {
    settings: Arc<TlsSettings>,
    /// All but the verifier, which belongs to one session.
    pub(super) config: Arc<ClientConfig>,
    pub(super) trusted: Arc<Trusted>,
    name: Option<ServerName<'static>>,
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

/// The one cryptography there is, shared by all checks.
pub(super) fn crypto() -> &'static Arc<CryptoProvider> {
    static CRYPTO: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    CRYPTO.get_or_init(|| Arc::new(provider::default_provider()))
}

impl TlsClient {
    /// Checks the settings, reads the files they name, and builds what all sessions share.
    ///
    /// # Errors
    /// Names the setting that is wrong and what would be right; files that cannot be read; no roots on this machine.
    pub fn new(settings: TlsSettings) -> Result<TlsClient, CheckError> {
        let name = settings.name.as_deref().map(server_name).transpose()?;
        let trusted = trusted(&settings.trust)?;
        let versions: &[&SupportedProtocolVersion] = match settings.versions {
            Versions::Both => &[&rustls::version::TLS12, &rustls::version::TLS13],
            Versions::Only12 => &[&rustls::version::TLS12],
            Versions::Only13 => &[&rustls::version::TLS13],
        };
        let builder = ClientConfig::builder_with_provider(crypto().clone())
            .with_protocol_versions(versions)
            .expect("the provider has suites for both versions")
            .with_root_certificates(RootCertStore::empty());
        let mut config = match &settings.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = certificates("tls.cert", &identity.chain_pem)?;
                let key = PrivateKeyDer::from_pem_slice(&identity.key_pem);
                let key = key.map_err(|_| CheckError::new("tls.key", "***", "must be PEM with a private key"))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    CheckError::new("tls.key", "***", &format!("must be the key of tls.cert: {error}"))
                })?
            }
        };
        if let Some(bad) = settings.alpn.iter().find(|name| name.is_empty() || name.len() > 255) {
            return Err(CheckError::new("tls.alpn", bad, "a protocol's name has 1 to 255 bytes, such as http/1.1"));
        }
        config.alpn_protocols = settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        // Each probe must prove the whole handshake, certificate included.
        config.resumption = Resumption::disabled();
        let (config, trusted) = (Arc::new(config), Arc::new(trusted));
        let client = TlsClient { settings: Arc::new(settings), config, trusted, name };
        let expected = client.expects(std::net::IpAddr::from([127, 0, 0, 1]));
        let tried = ClientConnection::new(client.config.clone(), expected);
        tried.map_err(|error| CheckError::new("tls", "", &format!("no session can begin: {error}")))?;
        Ok(client)
    }

    /// What it was made of.
    pub fn settings(&self) -> &TlsSettings {
        &self.settings
    }

    /// Whom a session at this address expects.
    pub(super) fn expects(&self, address: std::net::IpAddr) -> ServerName<'static> {
        self.name.clone().unwrap_or_else(|| ServerName::IpAddress(IpAddr::from(address)))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, CheckError> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| CheckError::new("tls.name", name, "must be a DNS name or an IP address, without port"))
}

fn certificates(key: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CheckError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all =
        all.map_err(|error| CheckError::new(key, &format!("{} bytes", pem.len()), &format!("must be PEM: {error}")))?;
    match all.is_empty() {
        true => Err(CheckError::new(key, &format!("{} bytes", pem.len()), "must be PEM with at least one CERTIFICATE")),
        false => Ok(all),
    }
}

fn trusted(trust: &Trust) -> Result<Trusted, CheckError> {
    match trust {
        Trust::System => Ok(Trusted::Chains { verifier: system_roots()?, themselves: Vec::new() }),
        Trust::CaFile(path) => {
            let shown = path.display().to_string();
            let pem = std::fs::read(path).map_err(|error| CheckError::new("tls.ca", &shown, &error.to_string()))?;
            of_ca(&pem).map_err(|error| CheckError { value: shown, ..error })
        }
        Trust::CaPem(pem) => of_ca(pem),
        Trust::Pinned(pins) if pins.is_empty() => {
            Err(CheckError::new("tls.pins", "", "must name at least one, cert:HEX or key:HEX"))
        }
        Trust::Pinned(pins) => Ok(Trusted::Pinned(pins.clone())),
        Trust::Insecure => Ok(Trusted::Everything),
    }
}

fn of_ca(pem: &[u8]) -> Result<Trusted, CheckError> {
    let themselves = certificates("tls.ca", pem)?;
    let mut roots = RootCertStore::empty();
    for certificate in &themselves {
        roots.add(certificate.clone()).map_err(|error| {
            let right = format!("must be certificates: {error}");
            CheckError::new("tls.ca", &format!("{} bytes", pem.len()), &right)
        })?;
    }
    Ok(Trusted::Chains { verifier: verifier(roots), themselves })
}

fn verifier(roots: RootCertStore) -> Arc<WebPkiServerVerifier> {
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto().clone());
    builder.build().expect("there are roots, and no revocation lists that could be wrong")
}

/// This machine's roots, read once: a million checks share them.
fn system_roots() -> Result<Arc<WebPkiServerVerifier>, CheckError> {
    static ROOTS: OnceLock<Result<Arc<WebPkiServerVerifier>, CheckError>> = OnceLock::new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        for error in found.errors {
            tracing::debug!(%error, "a root certificate could not be read");
        }
        tracing::debug!(added, ignored, "roots of this machine");
        match roots.is_empty() {
            false => Ok(verifier(roots)),
            true => Err(CheckError::new(
                "tls.trust",
                "system",
                "this machine has no root certificates. Install ca-certificates, or set tls.ca, tls.pins or tls.insecure",
            )),
        }
    };
    ROOTS.get_or_init(read).clone()
}
