//! Asks a registry's own API: one request, one connection, over http or https.
//! Promise: an answer that is too long, too late or none is an error that says what to try; the token goes nowhere but to
//! the server that was named.

use super::args::Ask;
use crate::Failure;
use crate::config::bridge::Bridge;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::Url;

/// Where a registry is when nobody says.
const SERVER_DEFAULT: &str = "http://127.0.0.1:8848";
/// A page of instances with all the metadata they may have.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Above the server's own time limit, so that its clearer answer wins.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

/// A registry.
pub(super) struct Client {
    base: Url,
    token: Option<String>,
    ca: Option<Vec<u8>>,
}

/// What came back.
pub(super) struct Answer {
    /// As it was sent.
    pub(super) text: String,
    /// The same, read; null if there was nothing.
    pub(super) value: Value,
}

/// What the server refused.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) detail: String,
}

/// Why there is no answer.
pub(super) enum Trouble {
    Refused(Refused),
    Failed(Failure),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Failure {
        match trouble {
            Trouble::Failed(failure) => failure,
            Trouble::Refused(Refused { status, detail }) => Failure::Run(match status {
                StatusCode::UNAUTHORIZED => format!("{detail}. Try: RINGSPAN_TOKEN, or --token"),
                _ => detail,
            }),
        }
    }
}

impl Client {
    /// From flags, environment, configuration, defaults; in this order.
    pub(super) fn new(ask: &Ask) -> Result<Client, Failure> {
        let said = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let (text, whence) = match (&ask.server, said("RINGSPAN_SERVER"), &ask.config) {
            (Some(server), _, _) => (server.clone(), "--server"),
            (None, Some(server), None) => (server, "RINGSPAN_SERVER"),
            (None, _, Some(file)) => (of_config(file)?, "--config"),
            (None, None, None) => (SERVER_DEFAULT.to_owned(), "default"),
        };
        let wrong = |e: &dyn std::fmt::Display| Failure::Usage(format!("{whence} {text}: {e}. Try: {SERVER_DEFAULT}"));
        let base = Url::parse(&text).map_err(|e| wrong(&e))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(wrong(&"it should be http://HOST:PORT or https://HOST:PORT"));
        }
        let read =
            |path: &Path| std::fs::read(path).map_err(|e| Failure::Usage(format!("--ca {}: {e}", path.display())));
        Ok(Client {
            base,
            token: ask.token.clone().or_else(|| said("RINGSPAN_TOKEN")),
            ca: ask.ca.as_deref().map(read).transpose()?,
        })
    }

    /// `path`: segments below /api/v1.
    pub(super) fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Answer, Trouble> {
        if let Some(segment) = path.iter().find(|s| matches!(**s, "." | ".." | "")) {
            let text = format!("{segment:?} is no name that a URL can hold");
            return Err(Trouble::Failed(Failure::Usage(text)));
        }
        let mut url = self.base.clone();
        let below = ["api", "v1"].iter().chain(path);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(below);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Trouble::Failed(Failure::Run(e.to_string())))?;
        runtime.block_on(async {
            match tokio::time::timeout(ANSWER_TIME_MAX, self.ask(method, &url, body)).await {
                Ok(answer) => answer,
                Err(_elapsed) => {
                    let text = format!("{}: no answer within {} s", self.shown(), ANSWER_TIME_MAX.as_secs());
                    Err(Trouble::Failed(Failure::Run(text)))
                }
            }
        })
    }

    fn shown(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    async fn ask(&self, method: Method, url: &Url, body: Option<Value>) -> Result<Answer, Trouble> {
        let failed = |text: String| Trouble::Failed(Failure::Run(format!("{}: {text}", self.shown())));
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(80);
        let stream = TcpStream::connect(format!("{host}:{port}")).await.map_err(|e| {
            failed(format!("no registry answers there ({e}). Try: ringspan bridge, or --server URL of one that runs"))
        })?;
        let request = Request::builder()
            .method(method)
            .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
            .header("Host", &url[url::Position::BeforeHost..url::Position::AfterPort])
            .header("User-Agent", concat!("ringspan/", env!("CARGO_PKG_VERSION")))
            .header("Content-Type", "application/json");
        let request = match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        let body = body.map(|value| value.to_string()).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).map_err(|e| failed(e.to_string()))?;
        if url.scheme() == "http" {
            return self.send(stream, request).await;
        }
        let connector = tokio_rustls::TlsConnector::from(Arc::new(self.tls().map_err(Trouble::Failed)?));
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|e| failed(e.to_string()))?;
        let stream = connector.connect(name, stream).await.map_err(|e| {
            let remedy = match e.to_string().contains("CaUsedAsEndEntity") {
                true => "its certificate says that it is an authority; make one with basicConstraints CA:FALSE (docs/security.md)",
                false => "--ca with the authority of its certificate, or http:// if it speaks no TLS",
            };
            failed(format!("TLS: {e}. Try: {remedy}"))
        })?;
        self.send(stream, request).await
    }

    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, Trouble> {
        let failed = |text: String| Trouble::Failed(Failure::Run(format!("{}: {text}", self.shown())));
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| failed(e.to_string()))?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| {
            failed(format!("what answers there is no registry ({e}). Try: https:// if it speaks TLS, or another port"))
        })?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| failed(e.to_string()))?.to_bytes();
        connection.abort();
        let text = String::from_utf8_lossy(&body).into_owned();
        let value = match text.is_empty() {
            true => Ok(Value::Null),
            false => serde_json::from_str::<Value>(&text),
        };
        let detail = value.as_ref().ok().and_then(|v| v["detail"].as_str().map(str::to_owned));
        match (status.is_success(), value, detail) {
            (true, Ok(value), _) => Ok(Answer { text, value }),
            (false, Ok(_), Some(detail)) => Err(Trouble::Refused(Refused { status, detail })),
            _ => {
                let said: String = text.chars().filter(|c| !c.is_control()).take(100).collect();
                Err(failed(format!(
                    "{status}: {said}. Try: --server with the address of a ringspan bridge's [http] listen"
                )))
            }
        }
    }

    fn tls(&self) -> Result<rustls::ClientConfig, Failure> {
        let wrong = |e: &dyn std::fmt::Display| Failure::Usage(format!("--ca: {e}. Try: a PEM file of certificates"));
        let mut roots = rustls::RootCertStore::empty();
        match &self.ca {
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
                }
                if roots.is_empty() {
                    return Err(wrong(&"there is no certificate in it"));
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|e| Failure::Run(format!("TLS: {e}")))?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }
}

/// Where the registry of a configuration is.
fn of_config(file: &Path) -> Result<String, Failure> {
    let mut listen = Bridge::read(file)?.http_listen;
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen.is_ipv4() {
            true => std::net::Ipv4Addr::LOCALHOST.into(),
            false => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(format!("http://{listen}"))
}
