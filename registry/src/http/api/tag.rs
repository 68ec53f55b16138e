//! Entity tags (RFC 9110, 8.8.3) of what is read: whoever has an answer already, and says so, is told that it still is
//! (304), and spares the network and himself the rest.
//! Promise: a tag is of the bytes of the answer, so two answers with one tag are the same, from whichever member of a
//! cluster and before and after a restart; what nobody can see does not change it. It costs a SHA-256 of the answer.

use axum::body::{self, Body};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::digest::{SHA256, digest};
use std::fmt::Write;

/// Bytes of the digest in a tag: two answers that differ have one tag with a chance of 2^-128.
const TAG_BYTES: usize = 16;

/// Tags good answers, and leaves out the body of one that the asker has.
pub(super) async fn tagged(request: Request, next: Next) -> Response {
    let wanted = request.headers().get_all(header::IF_NONE_MATCH).iter().cloned().collect::<Vec<_>>();
    let response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // It is in memory already.
    let Ok(bytes) = body::to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let tag = tag_of(&bytes);
    let value = HeaderValue::from_str(&tag).expect("quotes and hexadecimal digits");
    if wanted.iter().any(|w| w.to_str().is_ok_and(|w| has(w, &tag))) {
        // What a 200 would say of its body is not said (RFC 9110, 15.4.5).
        let headers = HeaderMap::from_iter([(header::ETAG, value)]);
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    parts.headers.insert(header::ETAG, value);
    // Stored by whoever likes, and asked about each time.
    parts.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    Response::from_parts(parts, Body::from(bytes))
}

fn tag_of(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    let mut tag = String::from('"');
    for byte in &digest.as_ref()[..TAG_BYTES] {
        write!(tag, "{byte:02x}").expect("a string takes all");
    }
    tag.push('"');
    tag
}

/// Whether an `If-None-Match` has a tag: `*`, or a list, in which weak ones count as strong ones (RFC 9110, 13.1.2).
fn has(wanted: &str, tag: &str) -> bool {
    wanted.trim() == "*" || wanted.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists, weak tags and the star: table.
    #[test]
    fn lists() {
        let tag = tag_of(b"a");
        assert_eq!((tag.len(), tag_of(b"a") == tag, tag_of(b"b") == tag), (34, true, false));
        let cases = [
            (tag.clone(), true),
            (format!("W/{tag}"), true),
            (format!("\"x\", {tag}"), true),
            (" * ".into(), true),
            (format!("\"x\",W/\"{}\"", "0".repeat(32)), false),
            (tag.trim_matches('"').to_owned(), false),
            (String::new(), false),
        ];
        for (wanted, want) in cases {
            assert_eq!(has(&wanted, &tag), want, "{wanted}");
        }
    }
}
