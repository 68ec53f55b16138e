//! The secret that two agents share, and the TLS that it makes between them.
//! Promise: who does not hold the secret can neither pass for either end nor read what passes; what was recorded stays
//! unreadable when the secret is lost later (TLS 1.3, ephemeral keys).
//!
//! ```text
//! secret ──HKDF-SHA-256, salt "ringspan secret 1", info role and service──▶ two Ed25519 keys: "serve", "visit"
//! TLS 1.3, both ends with a raw public key (RFC 7250): each proves its role's key, each expects exactly the other's
//! ```
//! Both ends can work out both keys, so there is nothing to exchange beforehand. The service's name is in the keys: a
//! bridge that leads a visitor to another service leads it to nobody it believes.

use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

/// Shorter secrets can be guessed by whoever records one handshake: 32 bytes of base64 hold 192 bits.
const SECRET_BYTES_MIN: usize = 32;
/// Longer ones are a mistake: some other file.
const SECRET_BYTES_MAX: usize = 4096;

/// A secret; never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretKey(Vec<u8>);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Clone, Copy)]
enum Role {
    Serve,
    Visit,
}

/// 32 bytes, for HKDF.
struct Seed;

impl KeyType for Seed {
    fn len(&self) -> usize {
        32
    }
}

impl SecretKey {
    /// Reads a file: its text without white space around it.
    ///
    /// # Errors
    /// A sentence: unreadable, too short, open to others.
    pub(crate) fn read(path: &Path) -> Result<SecretKey, String> {
        let say = |e: std::io::Error| format!("{}: {e}", path.display());
        let mode = fs::metadata(path).map_err(say)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(format!("{} can be read by others (mode {:03o})", path.display(), mode & 0o777));
        }
        SecretKey::new(fs::read(path).map_err(say)?.trim_ascii()).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// These bytes.
    pub(crate) fn new(bytes: &[u8]) -> Result<SecretKey, String> {
        match bytes.len() {
            n if n < SECRET_BYTES_MIN => Err(format!("{n} bytes can be guessed: at least {SECRET_BYTES_MIN}")),
            n if n > SECRET_BYTES_MAX => Err(format!("{n} bytes are no key: at most {SECRET_BYTES_MAX}")),
            _ => Ok(SecretKey(bytes.to_vec())),
        }
    }

    /// The key of one role for one service, as TLS wants it.
    fn key(&self, role: Role, service: &str) -> Result<Arc<CertifiedKey>, Error> {
        let role: &[u8] = match role {
            Role::Serve => b"serve\0",
            Role::Visit => b"visit\0",
        };
        let odd = |_| Error::General("a key cannot be derived".into());
        let prk = Salt::new(HKDF_SHA256, b"ringspan secret 1").extract(&self.0);
        let mut seed = [0; 32];
        prk.expand(&[role, service.as_bytes()], Seed).and_then(|okm| okm.fill(&mut seed)).map_err(odd)?;
        // RFC 8410 §7: PKCS #8 of an Ed25519 key, without its public half.
        let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let der = PrivatePkcs8KeyDer::from([&head[..], &seed].concat());
        let key = provider::sign::any_eddsa_type(&der)?;
        let public = key.public_key().ok_or_else(|| Error::General("a key has no public half".into()))?.to_vec();
        Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], key)))
    }

    /// The end of who exposes the service.
    pub(crate) fn server(&self, service: &str) -> Result<Arc<ServerConfig>, Error> {
        let own = AlwaysResolvesServerRawPublicKeys::new(self.key(Role::Serve, service)?);
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Expect::the(&*self.key(Role::Visit, service)?)))
            .with_cert_resolver(Arc::new(own));
        // A ticket would be a second way in.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The end of who visits it.
    pub(crate) fn client(&self, service: &str) -> Result<Arc<ClientConfig>, Error> {
        let own = AlwaysResolvesClientRawPublicKeys::new(self.key(Role::Visit, service)?);
        let mut config = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Expect::the(&*self.key(Role::Serve, service)?)))
            .with_client_cert_resolver(Arc::new(own));
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

/// A name that TLS asks for and nobody looks at.
pub(crate) fn nobody() -> ServerName<'static> {
    ServerName::try_from("ringspan.invalid").expect("a name")
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// Believes one public key.
struct Expect(Vec<u8>);

impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Expect")
    }
}

impl Expect {
    fn the(key: &CertifiedKey) -> Expect {
        Expect(key.cert[0].to_vec())
    }

    fn is(&self, presented: &CertificateDer<'_>) -> Result<(), Error> {
        if presented.as_ref() == self.0 {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
        }
    }

    fn signed(
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        let algorithms = provider::default_provider().signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signed, &algorithms)
    }
}

/// What rustls asks of either end about a signature is one thing: TLS 1.3, and the one key that is expected.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.3 only".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            key: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Expect::signed(message, key, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Expect {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.is(presented).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Expect {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.is(presented).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    fn key(text: &str) -> SecretKey {
        SecretKey::new(text.repeat(32).as_bytes()).expect("long enough")
    }

    /// Whether both ends believe each other and bytes pass.
    async fn meet(server: &SecretKey, at: &str, client: &SecretKey, to: &str) -> bool {
        let acceptor = TlsAcceptor::from(server.server(at).expect("a configuration"));
        let connector = TlsConnector::from(client.client(to).expect("a configuration"));
        let (a, b) = tokio::io::duplex(4096);
        let serve = async {
            let mut stream = acceptor.accept(a).await?;
            let mut word = [0; 5];
            stream.read_exact(&mut word).await?;
            stream.write_all(&word).await?;
            stream.shutdown().await
        };
        let visit = async {
            let mut stream = connector.connect(nobody(), b).await?;
            stream.write_all(b"hello").await?;
            let mut word = [0; 5];
            stream.read_exact(&mut word).await?;
            std::io::Result::Ok(word)
        };
        let (served, visited) = tokio::join!(serve, visit);
        assert_eq!(served.is_ok(), visited.is_ok(), "{served:?} {visited:?}");
        visited.is_ok_and(|word| &word == b"hello")
    }

    /// The same secret and service, or nothing.
    #[tokio::test]
    async fn only_who_holds_the_secret() {
        let (a, b) = (key("a"), key("b"));
        assert!(meet(&a, "db", &a, "db").await);
        assert!(!meet(&a, "db", &b, "db").await);
        assert!(!meet(&a, "db", &a, "web").await);
    }

    /// The two roles of one secret are not one key, and a configured client that shows none is not let in.
    #[tokio::test]
    async fn roles_are_apart() {
        let a = key("a");
        let spki = |role| a.key(role, "db").expect("a key").cert[0].to_vec();
        assert_ne!(spki(Role::Serve), spki(Role::Visit));
        let anonymous = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("it has it")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Expect(spki(Role::Serve))))
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(4096);
        let acceptor = TlsAcceptor::from(a.server("db").expect("a configuration"));
        let connector = TlsConnector::from(Arc::new(anonymous));
        let (served, _) = tokio::join!(acceptor.accept(near), async move {
            let mut stream = connector.connect(nobody(), far).await?;
            stream.read_u8().await
        });
        assert!(served.is_err());
    }

    /// Files that others can read, short ones, and missing ones are refused; none is printed.
    #[test]
    fn files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("db.key");
        let write = |text: &str, mode: u32| {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
            SecretKey::read(&path)
        };
        let long = "k".repeat(44);
        assert_eq!(write(&format!(" {long}\n"), 0o600), SecretKey::new(long.as_bytes()));
        assert!(write(&long, 0o640).expect_err("open").contains("read by others (mode 640)"));
        assert!(write("short", 0o600).expect_err("short").contains("can be guessed"));
        assert!(SecretKey::read(&folder.path().join("none")).is_err());
        assert_eq!(format!("{:?}", SecretKey::new(long.as_bytes())), "Ok(***)");
    }
}
