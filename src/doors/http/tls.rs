//! TLS of an https listener: whom a greeting asks for, and the certificate that answers it.
//!
//! The greeting (ClientHello) is read before anything is decided: the connection may go to a backend as it is. rustls'
//! acceptor reads it, over as many records and segments as it takes, and bounds it (64 KiB, RFC 8446 §4).

use crate::config::http::CertFiles;
use crate::watch_file::is_news;
use arc_swap::ArcSwap;
use notify::{RecursiveMode, Watcher};
use rustls::client::verify_server_name;
use rustls::crypto::ring::{Ticketer, default_provider, sign::any_supported_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{Accepted, Acceptor, ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A greeting with everything in it, key shares of several post-quantum groups too, is under 10 KiB.
const GREETING_BYTES_MAX: usize = 32 << 10;
/// unrecognized_name, fatal (RFC 6066 §3): nobody here has that name.
pub(super) const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 1, 0, 2, 2, 112];
/// What somebody is told who speaks HTTP where TLS is spoken.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\
    Content-Length: 46\r\n\r\n400 Bad Request. This port speaks https only.\n";
/// Files that change in several steps are read when they have been still for so long.
const STILL: Duration = Duration::from_millis(300);
/// And after this at the latest, since another file in the folder may never be still.
const STILL_MAX: Duration = Duration::from_secs(3);
/// Files are looked at so often whatever inotify says: it does not see everything (network file systems).
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A greeting that has come whole.
pub(crate) struct Greeting {
    /// Where the handshake goes on.
    pub(crate) accepted: Accepted,
    /// All that was read: the greeting, and perhaps more.
    pub(super) bytes: Vec<u8>,
}

impl Greeting {
    /// The name that is asked for, lower case.
    pub(super) fn name(&self) -> Option<String> {
        self.accepted.client_hello().server_name().map(str::to_ascii_lowercase)
    }

    /// Reads one. `Err`: what to send before closing; empty: nothing.
    pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Greeting, Vec<u8>> {
        let mut reader = Reader::default();
        let mut chunk = [0; 4096];
        loop {
            match from.read(&mut chunk).await {
                Ok(n) if n > 0 => {
                    if let Some(accepted) = reader.push(&chunk[..n])? {
                        return Ok(Greeting { accepted, bytes: reader.bytes });
                    }
                }
                _ => return Err(Vec::new()),
            }
        }
    }
}

/// Takes a greeting in, in pieces. Pure.
#[derive(Default)]
struct Reader {
    acceptor: Acceptor,
    bytes: Vec<u8>,
}

impl Reader {
    /// The next piece. `Err`: what to answer.
    fn push(&mut self, piece: &[u8]) -> Result<Option<Accepted>, Vec<u8>> {
        self.bytes.extend_from_slice(piece);
        if self.bytes.len() > GREETING_BYTES_MAX {
            return Err(Vec::new());
        }
        if self.bytes[0].is_ascii_uppercase() {
            return Err(PLAIN_HTTP.to_vec());
        }
        let mut rest = piece;
        while !rest.is_empty() {
            match self.acceptor.read_tls(&mut rest) {
                Ok(n) if n > 0 => {}
                _ => return Err(Vec::new()),
            }
        }
        self.acceptor.accept().map_err(|(_, mut alert)| {
            let mut bytes = Vec::new();
            let _ = alert.write(&mut bytes);
            bytes
        })
    }
}

/// For the fuzzer: one greeting, in pieces as the first byte says.
pub(crate) fn fuzz_greeting(data: &[u8]) {
    let Some((&size, data)) = data.split_first() else { return };
    let mut reader = Reader::default();
    for piece in data.chunks(usize::from(size).max(1)) {
        match reader.push(piece) {
            Ok(None) => {}
            Ok(Some(accepted)) => return drop(accepted.client_hello().server_name().map(str::to_owned)),
            Err(_) => return,
        }
    }
}

/// Certificates that are replaced while they are used.
pub(crate) struct Keeper {
    /// For [`tokio_rustls`]: HTTP/2 and HTTP/1.1, TLS 1.2 and 1.3.
    pub(crate) config: Arc<rustls::ServerConfig>,
    watch: JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Keeper {
    /// Reads the files, and again whenever they change. Needs a runtime.
    pub(crate) fn start(listener: &str, files: &[CertFiles]) -> Result<Keeper, String> {
        let shelf = Arc::new(Shelf(ArcSwap::from_pointee(read(files)?)));
        let mut config = rustls::ServerConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider has suites for both")
            .with_no_client_auth()
            .with_cert_resolver(shelf.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = Ticketer::new().map_err(|error| format!("no keys for TLS tickets: {error}"))?;
        let watch = tokio::spawn(watch(listener.to_owned(), files.to_vec(), shelf));
        Ok(Keeper { config: Arc::new(config), watch })
    }
}

/// The certificates, and what they were read from: a file that changed without changing is no news.
struct Read {
    keys: Vec<Arc<CertifiedKey>>,
    texts: Vec<Vec<u8>>,
}

struct Shelf(ArcSwap<Read>);

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} certificates", self.0.load().keys.len())
    }
}

impl ResolvesServerCert for Shelf {
    /// The first that has the name and a key the visitor can check; without one, the first of all: a browser then says
    /// whose it is.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let read = self.0.load();
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let fits = |key: &&Arc<CertifiedKey>| match (&name, ParsedCertificate::try_from(&key.cert[0])) {
            (Some(name), Ok(parsed)) => verify_server_name(&parsed, name).is_ok(),
            _ => false,
        };
        let mut keys = read.keys.iter().filter(usable);
        keys.clone().find(fits).or(keys.next()).or(read.keys.first()).cloned()
    }
}

fn read(files: &[CertFiles]) -> Result<Read, String> {
    let mut read = Read { keys: Vec::new(), texts: Vec::new() };
    let file = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let provider_key = |key: &PrivateKeyDer<'_>, path: &Path| {
        any_supported_type(key).map_err(|error| format!("{}: {error}", path.display()))
    };
    for CertFiles { cert, key } in files {
        let (cert_text, key_text) = (file(cert)?, file(key)?);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&cert_text)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{}: no PEM certificate: {error}", cert.display()))?;
        if chain.is_empty() {
            return Err(format!("{}: it holds no certificate (-----BEGIN CERTIFICATE-----)", cert.display()));
        }
        let der = PrivateKeyDer::from_pem_slice(&key_text)
            .map_err(|error| format!("{}: it holds no private key: {error}", key.display()))?;
        let certified = CertifiedKey::new(chain, provider_key(&der, key)?);
        // An inconsistency that cannot be found out is none.
        if let Err(rustls::Error::InconsistentKeys(why @ rustls::InconsistentKeys::KeyMismatch)) =
            certified.keys_match()
        {
            return Err(format!("{}: this key is not the one of {}: {why:?}", key.display(), cert.display()));
        }
        read.keys.push(Arc::new(certified));
        read.texts.extend([cert_text, key_text]);
    }
    Ok(read)
}

/// Looks at the files whenever something happens in their folders: renewals replace files, and links to folders.
async fn watch(listener: String, files: Vec<CertFiles>, shelf: Arc<Shelf>) {
    let (ring, mut bell) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event| {
        if is_news(&event) {
            // Full: somebody is about to look already.
            let _ = ring.try_send(());
        }
    });
    let folders: BTreeSet<PathBuf> = files
        .iter()
        .flat_map(|f| [&f.cert, &f.key])
        .map(|path| path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned())
        .collect();
    let _watcher = match watcher {
        Ok(mut watcher) => {
            for folder in folders {
                if let Err(error) = watcher.watch(&folder, RecursiveMode::NonRecursive) {
                    let folder = folder.display();
                    tracing::warn!(listener, %folder, %error, "certificates are looked at once a minute");
                }
            }
            Some(watcher)
        }
        Err(error) => {
            tracing::warn!(listener, %error, "certificates are looked at once a minute");
            None
        }
    };
    // A change between the first reading and the watch is seen here.
    let mut complaint = String::new();
    loop {
        let again = files.clone();
        match tokio::task::spawn_blocking(move || read(&again)).await {
            Ok(Ok(fresh)) => {
                complaint.clear();
                if fresh.texts != shelf.0.load().texts {
                    shelf.0.store(Arc::new(fresh));
                    tracing::info!(listener, "certificates renewed");
                }
            }
            Ok(Err(why)) if why != complaint => {
                tracing::warn!(listener, why, "the certificates stay as they were");
                complaint = why;
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::select! {
            Some(()) = bell.recv() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        // Until nothing more has happened for a while; a folder that is never still is looked at all the same.
        let still = async { while let Ok(Some(())) = tokio::time::timeout(STILL, bell.recv()).await {} };
        let _never_still = tokio::time::timeout(STILL_MAX, still).await;
    }
}

/// Whether the files can serve; for check-config.
pub(crate) fn check_files(files: &[CertFiles]) -> Result<(), String> {
    read(files).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn greeting(name: &str) -> Vec<u8> {
        let config = rustls::ClientConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same greeting in records of `size` bytes each (RFC 8446 §5.1 allows it).
    fn split(greeting: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for part in greeting[5..].chunks(size) {
            out.write_all(&[22, 3, 1]).unwrap();
            out.write_all(&u16::try_from(part.len()).unwrap().to_be_bytes()).unwrap();
            out.write_all(part).unwrap();
        }
        out
    }

    fn name_in(bytes: &[u8], piece: usize) -> Result<Option<String>, Vec<u8>> {
        let mut reader = Reader::default();
        for piece in bytes.chunks(piece) {
            if let Some(accepted) = reader.push(piece)? {
                return Ok(Greeting { accepted, bytes: reader.bytes }.name());
            }
        }
        Ok(Some("unfinished".into()))
    }

    /// The name is found however the greeting is cut into records and segments; an address is no name.
    #[test]
    fn names_are_found() {
        let whole = greeting("WWW.Example.com");
        for records in [1, 50, 60_000] {
            for segments in [1, 7, 4096] {
                let bytes = split(&whole, records);
                // Records of one byte each are a flood, and may be refused; never misread.
                match name_in(&bytes, segments) {
                    Ok(name) => assert_eq!(name.as_deref(), Some("www.example.com"), "{records} {segments}"),
                    Err(_) => assert_eq!(records, 1),
                }
            }
        }
        assert_eq!(name_in(&greeting("127.0.0.1"), 4096).unwrap(), None);
        assert_eq!(name_in(&whole[..whole.len() - 1], 64).unwrap().as_deref(), Some("unfinished"));
    }

    /// What is no greeting is answered with an alert, or with words where it is HTTP; one without an end is cut.
    #[test]
    fn nonsense_is_refused() {
        assert_eq!(name_in(b"GET / HTTP/1.1\r\n\r\n", 100).unwrap_err(), PLAIN_HTTP);
        let end = PLAIN_HTTP.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        assert_eq!(PLAIN_HTTP.len() - end - 4, 46);
        let alert = name_in(&[22, 3, 1, 0, 4, 2, 0, 0, 0], 100).unwrap_err();
        assert_eq!(alert.first(), Some(&21));
        let endless = split(&[&[0; 5][..], &[1, 0, 0xff, 0xff], &[0; 70_000]].concat(), 16_000);
        assert!(name_in(&endless, 4096).is_err());
    }

    /// The fuzzer's door takes whatever comes.
    #[test]
    fn the_fuzzers_door() {
        fuzz_greeting(&[]);
        fuzz_greeting(&[&[3], &greeting("a.example")[..]].concat());
    }
}
