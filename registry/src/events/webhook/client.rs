//! One receiver's address, and the one connection to it.
//! Promise: an answer counts only when it has come whole; no redirect is followed; a certificate is checked against the
//! roots that this machine trusts, or against those that were given.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::rt::{Read, Write};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// An answer's body is read so far, to use the connection again; of a longer one the status counts all the same.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where a receiver listens.
#[derive(Clone)]
pub struct Destination {
    host: String,
    port: u16,
    path: String,
    /// As it stands in the URL.
    authority: HeaderValue,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl fmt::Debug for Destination {
    /// Without the path: many a receiver's is its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}/***", self.host, self.port)
    }
}

impl Destination {
    /// By an `http://` or `https://` URL without user and password. `ca`: PEM of whom to trust in place of this machine's
    /// roots. Reads those from the disk.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(url: &str, ca: Option<&[u8]>) -> Result<Destination, String> {
        let uri: Uri = url.parse().map_err(|e| format!("it is no URL: {e}"))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("it should begin with http:// or https://".into()),
        };
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("user and password belong into headers (Authorization)".into());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err("it names no host".into());
        }
        let tls = match is_tls {
            false => None,
            true => {
                let name = ServerName::try_from(host.clone()).map_err(|e| format!("{host:?}: {e}"))?;
                Some((Arc::new(tls_config(ca)?), name))
            }
        };
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let authority = HeaderValue::from_str(authority.as_str()).map_err(|e| format!("its host: {e}"))?;
        Ok(Destination { host, port, path, authority, tls })
    }
}

fn tls_config(ca: Option<&[u8]>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let given: Vec<CertificateDer<'static>> = match ca {
        Some(pem) => CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| format!("ca: {e}"))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let (taken, _unreadable) = roots.add_parsable_certificates(given);
    if taken == 0 {
        return Err("there is no root certificate to check it by: give ca, or install ca-certificates".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| e.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Why a delivery was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// There is no connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// The answer is none, or not whole.
    #[error("no whole answer: {0}")]
    Broken(String),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// An answer that is no yes.
    #[error("status {status}{}", if status.is_redirection() { ": redirects are not followed" } else { "" })]
    Status {
        /// Which.
        status: StatusCode,
        /// `Retry-After`, if it was a number.
        after: Option<Duration>,
    },
}

impl Trouble {
    /// How long it asks to wait, at most `max`, before the next attempt; `None`: there should be none.
    pub(super) fn wait(&self, max: Duration) -> Option<Duration> {
        match self {
            Trouble::Status { status, after } => {
                let again = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
                let is_final = !status.is_server_error() && !again.contains(status);
                (!is_final).then(|| after.unwrap_or_default().min(max))
            }
            Trouble::Connect(_) | Trouble::Broken(_) | Trouble::Timeout(_) => Some(Duration::ZERO),
        }
    }

    /// For the counters.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Trouble::Connect(_) => "connect",
            Trouble::Broken(_) => "broken",
            Trouble::Timeout(_) => "timeout",
            Trouble::Status { .. } if self.wait(Duration::ZERO).is_none() => "refused",
            Trouble::Status { .. } => "status",
        }
    }
}

/// The connection to a receiver, while there is one.
pub(super) struct Client {
    to: Destination,
    open: Option<Open>,
}

struct Open {
    sender: http1::SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    pub(super) fn new(to: Destination) -> Client {
        Client { to, open: None }
    }

    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Sends it, and reads the answer whole. If this is dropped half-way, [`close`](Client::close) it.
    pub(super) async fn post(&mut self, headers: &HeaderMap, body: &Bytes) -> Result<(), Trouble> {
        // A connection that rests may have been closed by the other side just now: that is no failure yet.
        if let Some(mut open) = self.open.take()
            && open.sender.ready().await.is_ok()
        {
            match self.talk(open, headers, body).await {
                Err(Trouble::Broken(why)) => tracing::debug!(why, "webhook: the connection had rested too long"),
                done => return done,
            }
        }
        let open = self.connect().await?;
        self.talk(open, headers, body).await
    }

    async fn talk(&mut self, mut open: Open, headers: &HeaderMap, body: &Bytes) -> Result<(), Trouble> {
        let broken = |e: &dyn std::error::Error| Trouble::Broken(reasons(e));
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.to.path.parse().map_err(|e| broken(&e))?;
        *request.headers_mut() = headers.clone();
        request.headers_mut().insert(HOST, self.to.authority.clone());
        let (head, answer) = open.sender.send_request(request).await.map_err(|e| broken(&e))?.into_parts();
        match Limited::new(answer, ANSWER_BYTES_MAX).collect().await {
            Ok(_) => self.open = Some(open),
            Err(e) if e.is::<LengthLimitError>() => {}
            Err(e) => return Err(broken(&*e)),
        }
        if head.status.is_success() {
            return Ok(());
        }
        let after = head.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
        Err(Trouble::Status { status: head.status, after: after.map(Duration::from_secs) })
    }

    async fn connect(&self) -> Result<Open, Trouble> {
        let Destination { host, port, tls, .. } = &self.to;
        let failed = |e: std::io::Error| Trouble::Connect(reasons(&e));
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        match tls {
            None => handshake(TokioIo::new(stream)).await,
            Some((config, name)) => {
                let stream = TlsConnector::from(config.clone()).connect(name.clone(), stream).await;
                handshake(TokioIo::new(stream.map_err(failed)?)).await
            }
        }
    }
}

async fn handshake(io: impl Read + Write + Send + Unpin + 'static) -> Result<Open, Trouble> {
    let (sender, connection) = http1::handshake(io).await.map_err(|e| Trouble::Connect(reasons(&e)))?;
    let task = tokio::spawn(async move {
        // Whoever waits for an answer hears of its end.
        let _end = connection.await;
    });
    Ok(Open { sender, task })
}

/// An error with all that is behind it.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(behind) = source {
        let more = behind.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = behind.source();
    }
    text
}
