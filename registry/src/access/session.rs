//! Tokens. A login gives a *session*: who, until when, of which generation, signed (HMAC-SHA256) with a key that was made at
//! random for this registry; so a login writes nothing, holds after a restart and on every member of a cluster at once, and no
//! table can be filled with them. An *API token* is 256 random bits with a name and an expiry; its SHA-256 is kept.
//! A session ends when it expires, with its user, or with its user's password. Pure.

use super::book::Digest;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::{digest as sha, hmac};

/// What API tokens begin with, so that people and scanners know them when they see them.
pub(super) const API_PREFIX: &str = "rsk_";
/// What sessions begin with.
const PREFIX: &str = "rss_";
/// What is signed begins with this: the same key signs nothing else.
const PURPOSE: &[u8] = b"ringspan session 1\0";
const MAC_BYTES: usize = 32;
/// Longest token that is looked at: a session of the longest name has 160 bytes.
const TOKEN_BYTES_MAX: usize = 512;

/// What a session says.
#[derive(Debug, PartialEq)]
pub(super) struct Session {
    pub(super) user: String,
    pub(super) generation: u64,
    pub(super) expires_ms: u64,
}

/// Makes a session.
pub(super) fn write(key: &[u8; 32], said: &Session) -> String {
    let mut bytes = Vec::with_capacity(16 + said.user.len() + MAC_BYTES);
    bytes.extend(said.expires_ms.to_le_bytes());
    bytes.extend(said.generation.to_le_bytes());
    bytes.extend(said.user.as_bytes());
    let signer = hmac::Key::new(hmac::HMAC_SHA256, key);
    let tag = hmac::sign(&signer, &[PURPOSE, &bytes].concat());
    bytes.extend(tag.as_ref());
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// What a session says, if we have signed it.
pub(super) fn read(key: &[u8; 32], token: &str) -> Option<Session> {
    let text = token.strip_prefix(PREFIX).filter(|t| t.len() <= TOKEN_BYTES_MAX)?;
    let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    let body = bytes.len().checked_sub(MAC_BYTES).filter(|n| *n >= 16)?;
    // In constant time.
    let signer = hmac::Key::new(hmac::HMAC_SHA256, key);
    let signed = [PURPOSE, &bytes[..body]].concat();
    hmac::verify(&signer, &signed, &bytes[body..]).ok()?;
    bytes.truncate(body);
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (expires_ms, generation) = (number(0), number(8));
    let user = String::from_utf8(bytes.split_off(16)).ok()?;
    Some(Session { user, generation, expires_ms })
}

/// SHA-256 of an API token's secret part. It is a look-up of a hash, not a comparison of secrets: how long it takes says
/// nothing that helps to find one.
pub(super) fn digest(secret: &str) -> Digest {
    let secret = secret.get(..TOKEN_BYTES_MAX).unwrap_or(secret);
    sha::digest(&sha::SHA256, secret.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// A new API token and its SHA-256.
pub(super) fn api_token() -> (String, Digest) {
    let secret = BASE64_URL_SAFE_NO_PAD.encode(super::password::random::<32>());
    let digest = digest(&secret);
    (format!("{API_PREFIX}{secret}"), digest)
}
