//! A bridge's fingerprint: SHA-256 of the SubjectPublicKeyInfo of its certificate (as in RFC 7469 §2.4), so that it
//! outlives a renewed certificate as long as the key stays. Pure.

use crate::keys::{KEY_BYTES, from_base64, to_base64};
use std::fmt;
use std::str::FromStr;

/// Names a bridge's TLS key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; KEY_BYTES]);

impl Fingerprint {
    /// The fingerprint of a DER-encoded SubjectPublicKeyInfo.
    pub fn of_spki(der: &[u8]) -> Fingerprint {
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        Fingerprint(digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes"))
    }
}

/// Unpadded base64url, 43 characters.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base64(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        from_base64(text).map(Fingerprint).ok_or(NotAFingerprint)
    }
}

/// The text is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 43 characters of unpadded base64url")]
pub struct NotAFingerprint;

/// How an agent knows that it talks to its bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// TLS 1.3 with a server whose key has this fingerprint.
    Pinned(Fingerprint),
    /// No TLS: whoever answers is believed. For loopback, or inside a network that already encrypts.
    Plain,
}

/// The word that stands for [`Trust::Plain`] where a fingerprint is expected.
const PLAIN: &str = "plain";

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trust::Pinned(fingerprint) => fingerprint.fmt(f),
            Trust::Plain => f.write_str(PLAIN),
        }
    }
}

impl FromStr for Trust {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        if text == PLAIN { Ok(Trust::Plain) } else { text.parse().map(Trust::Pinned) }
    }
}

impl serde::Serialize for Trust {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Trust {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text and value are one to one, and nothing else parses.
    #[test]
    fn text_round_trip() {
        for trust in [Trust::Plain, Trust::Pinned(Fingerprint::of_spki(b"key"))] {
            assert_eq!(trust.to_string().parse(), Ok(trust));
        }
        for bad in ["", "Plain", "plain ", "AAAA", &"A".repeat(44), &"*".repeat(43)] {
            assert_eq!(bad.parse::<Trust>(), Err(NotAFingerprint), "{bad:?}");
        }
    }
}
