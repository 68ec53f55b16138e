//! What a visitor sees when there is no answer of a backend's: one short page a status, ours or the operator's.
//! People who come with a browser get HTML; programs get one line of text.

use super::body::{self, Body};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use ringspan_tunnel::frame::Reason;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Seconds after which to try again: a backend that is back is seen within a few checks.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// The operator's pages, in memory.
#[derive(Debug, Default)]
pub(super) struct Pages(BTreeMap<u16, bytes::Bytes>);

impl Pages {
    /// Reads them.
    pub(super) fn read(files: &BTreeMap<u16, PathBuf>) -> Result<Pages, String> {
        let read = |(status, path): (&u16, &PathBuf)| match std::fs::read(path) {
            Ok(bytes) => Ok((*status, bytes.into())),
            Err(error) => Err(format!("page for {status}: {}: {error}", path.display())),
        };
        Ok(Pages(files.iter().map(read).collect::<Result<_, _>>()?))
    }

    /// An answer. `why` is one sentence for people.
    pub(super) fn answer(&self, status: StatusCode, why: &str, is_browser: bool) -> Response<Body> {
        let (kind, text) = match self.0.get(&status.as_u16()) {
            Some(page) => ("text/html; charset=utf-8", page.clone()),
            None if is_browser => ("text/html; charset=utf-8", html(status, why).into()),
            None => ("text/plain; charset=utf-8", format!("{} {}\n", title(status), why).into()),
        };
        let mut answer = Response::new(body::full(text));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        answer
    }
}

/// What a visitor hears whose connection the listener's limits refuse: nothing was read of it, so it is one line of text.
pub(super) fn limited(reason: Reason) -> Vec<u8> {
    let (status, why) = match reason {
        Reason::RateMax => (StatusCode::TOO_MANY_REQUESTS, "Too many have come here in too short a time."),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "As many are here as may be."),
    };
    let text = format!("{} {why}\n", title(status));
    let (line, bytes) = (status.canonical_reason().unwrap_or("Error"), text.len());
    format!(
        "HTTP/1.1 {} {line}\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 5\r\nCache-Control: no-store\r\n\
         Connection: close\r\nContent-Length: {bytes}\r\n\r\n{text}",
        status.as_str()
    )
    .into_bytes()
}

/// Whether somebody asks who has a screen.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("text/html"))
}

fn title(status: StatusCode) -> String {
    format!("{} {}.", status.as_str(), status.canonical_reason().unwrap_or("Error"))
}

fn html(status: StatusCode, why: &str) -> String {
    let (code, name) = (status.as_str(), status.canonical_reason().unwrap_or("Error"));
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{code} {name}</title><style>\
         :root{{color-scheme:light dark}}\
         body{{margin:0;min-height:100vh;display:grid;place-items:center;\
         font:16px/1.6 system-ui,sans-serif;background:Canvas;color:CanvasText}}\
         main{{padding:2rem;max-width:34rem}}\
         p.code{{font-size:4.5rem;font-weight:700;line-height:1;margin:0;letter-spacing:-.03em}}\
         h1{{font-size:1.35rem;margin:.6rem 0 .2rem}}p.why{{margin:0;opacity:.75}}\
         </style></head><body><main><p class=\"code\">{code}</p><h1>{name}</h1><p class=\"why\">{why}</p>\
         </main></body></html>\n"
    )
}
