//! Join tokens: one pasteable string that lets an agent enrol at a bridge, and what the bridge keeps of it.
//!
//! ```text
//! ringspan1.<id>.<secret>.<fingerprint | "plain">.<check>@<host:port>
//! ```
//! - `id`: 12 hex digits, the token's name in lists and logs; no secret.
//! - `secret`: the seed of an Ed25519 key. The bridge keeps the public half, so a stolen store enrols nobody, and the
//!   agent proves the secret by signing a fresh nonce, so nothing on the wire can be replayed.
//! - `check`: four bytes of SHA-256 over everything else: a cut or mistyped token is told apart from a refused one.
//!
//! Promise: the secret is printed by [`JoinToken::to_paste`] alone. Pure but for the random source of `create`.

use crate::address::Address;
use crate::fingerprint::Trust;
use crate::keys::{PublicKey, SigningKey, from_base64, random, to_base64};
use crate::rights::Rights;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// What every token of this format begins with; also what a secret scanner can look for.
const PREFIX: &str = "ringspan1";

/// Bytes of an id: 2^48 of them, so a bridge never meets the same twice.
const ID_BYTES: usize = 6;

/// Bytes of the check: one mistyped token in 4 billion passes it, and is then refused by the bridge.
const CHECK_BYTES: usize = 4;

/// Longest text looked at; the longest valid one is shorter (253 bytes of host name, RFC 1035 §2.3.4).
const TEXT_BYTES_MAX: usize = 512;

/// A token's name: 12 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId([u8; ID_BYTES]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let lower_hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        if text.len() != ID_BYTES * 2 || !text.as_bytes().iter().all(lower_hex) {
            return Err(TokenError::Id);
        }
        let mut id = [0; ID_BYTES];
        for (i, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).expect("two hex digits were just seen");
        }
        Ok(TokenId(id))
    }
}

impl Serialize for TokenId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an agent needs to enrol.
#[derive(Clone)]
pub struct JoinToken {
    /// Where the bridge's link port is.
    pub address: Address,
    /// How to know the bridge.
    pub trust: Trust,
    /// Which grant of the bridge this is.
    pub id: TokenId,
    secret: SigningKey,
}

impl JoinToken {
    /// A fresh token for the bridge at `address`, and the grant the bridge keeps. `now` is in seconds of Unix time.
    pub fn create(address: Address, trust: Trust, terms: GrantTerms, now: u64) -> (JoinToken, JoinGrant) {
        let (id, secret) = (TokenId(random()), SigningKey::generate());
        let grant = JoinGrant {
            id,
            public_key: secret.public(),
            scope: terms.scope,
            rights: terms.rights,
            created_at: now,
            expires_at: terms.expires_at,
            uses_left: terms.uses,
            revoked: false,
        };
        (JoinToken { address, trust, id, secret }, grant)
    }

    /// The key that proves possession of the token.
    pub fn key(&self) -> &SigningKey {
        &self.secret
    }

    /// The string to paste. It is a secret: print it once, to the person who asked.
    pub fn to_paste(&self) -> String {
        let JoinToken { address, trust, id, secret } = self;
        let body = format!("{PREFIX}.{id}.{}.{trust}", to_base64(secret.seed()));
        let check = check_of(&body, &address.to_string());
        format!("{body}.{check}@{address}")
    }
}

/// Everything but the secret.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.***@{}", self.id, self.address)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn check_of(body: &str, address: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{body}@{address}").as_bytes());
    to_base64(&digest.as_ref()[..CHECK_BYTES])
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// White space around the token is forgiven (a file ends in a newline); anything else is not.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        match text {
            "" => return Err(TokenError::Empty),
            _ if text.len() > TEXT_BYTES_MAX => return Err(TokenError::TooLong(text.len())),
            _ if text.contains(char::is_whitespace) => return Err(TokenError::Space),
            _ => {}
        }
        let (head, address) = text.split_once('@').ok_or(TokenError::NoAddress)?;
        let mut parts = head.split('.');
        if parts.next() != Some(PREFIX) {
            return Err(TokenError::Prefix);
        }
        let [Some(id), Some(secret), Some(trust), Some(check), None] = std::array::from_fn(|_| parts.next()) else {
            return Err(TokenError::Parts(head.split('.').count()));
        };
        let body = &head[..head.len() - check.len() - 1];
        if check_of(body, address) != check {
            return Err(TokenError::Check);
        }
        Ok(JoinToken {
            address: address.parse().map_err(TokenError::Address)?,
            trust: trust.parse().map_err(|_| TokenError::Fingerprint)?,
            id: id.parse()?,
            secret: SigningKey::from_seed(from_base64(secret).ok_or(TokenError::Secret)?),
        })
    }
}

/// Why a text is no join token. Never shows the text: it may hold most of a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing there.
    #[error("the join token is empty. Create one on the bridge: ringspan token create")]
    Empty,
    /// More bytes than any token has.
    #[error("this is {0} bytes long, and a join token is at most {TEXT_BYTES_MAX}: is it the right file?")]
    TooLong(usize),
    /// White space within.
    #[error("the join token has white space or a line break inside: paste it as one line")]
    Space,
    /// No `@`.
    #[error("the join token has no @host:port at its end: it was cut off. Paste all of it")]
    NoAddress,
    /// Another first word.
    #[error("a join token begins with \"{PREFIX}.\": this is something else, or its beginning was cut off")]
    Prefix,
    /// A wrong count of dots.
    #[error("a join token has 5 parts between its dots before the @, and this has {0}: a piece is missing or doubled")]
    Parts(usize),
    /// The check does not match the rest.
    #[error("the join token is damaged: its check does not match. A character was changed or lost; paste it again")]
    Check,
    /// The address is not one.
    #[error("the address in the join token: {0}")]
    Address(#[source] crate::address::AddressError),
    /// Neither fingerprint nor `plain`.
    #[error("the fingerprint in the join token is neither 43 characters of base64url nor the word plain")]
    Fingerprint,
    /// Not an id.
    #[error("a token id is 12 lower-case hex digits")]
    Id,
    /// Not a seed.
    #[error("the secret in the join token is not 43 characters of base64url")]
    Secret,
}

/// Which services an agent may expose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Any.
    #[default]
    All,
    /// These, by exact name.
    Services(BTreeSet<String>),
}

impl Scope {
    /// Whether `service` may be exposed.
    pub fn covers(&self, service: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Services(names) => names.contains(service),
        }
    }

    /// No names mean: any.
    pub fn of(names: impl IntoIterator<Item = String>) -> Scope {
        let names: BTreeSet<String> = names.into_iter().collect();
        if names.is_empty() { Scope::All } else { Scope::Services(names) }
    }
}

/// What the creator of a token asks for.
#[derive(Clone, Debug, Default)]
pub struct GrantTerms {
    /// Services that agents enrolled with it may expose. Default: all.
    pub scope: Scope,
    /// What else they may do. Default: nothing.
    pub rights: Rights,
    /// Unix time in seconds from which it is refused. Default: never.
    pub expires_at: Option<u64>,
    /// How many agents it enrols. Default: any number.
    pub uses: Option<u32>,
}

/// The bridge's side of a token: enough to check a proof, too little to make one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// The token's id.
    pub id: TokenId,
    /// The public half of the token's secret.
    pub public_key: PublicKey,
    /// Which services its agents may expose.
    pub scope: Scope,
    /// What else they may do.
    #[serde(default, skip_serializing_if = "Rights::is_nothing")]
    pub rights: Rights,
    /// Unix time in seconds.
    pub created_at: u64,
    /// Unix time in seconds from which it is refused; `None`: never.
    pub expires_at: Option<u64>,
    /// Enrolments left; `None`: any number.
    pub uses_left: Option<u32>,
    /// Refused whatever the rest says. Agents that it has enrolled stay: revoke those by their own ids.
    pub revoked: bool,
}

#[cfg(test)]
mod tests;
