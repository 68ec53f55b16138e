//! Ed25519 keys (RFC 8032) as values: a public half to store and compare, a private half that prints as `***`.
//! Promise: a private seed leaves this type only through [`SigningKey::seed`], never through `Debug` or an error.
//! Uses `ring`. Pure but for the system's random source.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Bytes of an Ed25519 seed, of a public key, and of a SHA-256 digest.
pub const KEY_BYTES: usize = 32;

/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// Unpadded base64url (RFC 4648 §5): safe in shells, URLs and TOML strings.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The inverse of [`to_base64`], for exactly `N` bytes.
pub(crate) fn from_base64<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // decode_slice refuses a text that needs more room than N; a shorter one is caught by the length.
    match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
        Ok(n) if n == N => Some(bytes),
        _ => None,
    }
}

/// `N` bytes from the system's random source.
///
/// # Panics
/// If the system has none: nothing that needs a secret can go on then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("getrandom(2) gives bytes on Linux 5.10 and newer");
    bytes
}

/// The public half of a key pair. Safe to store and to show.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// From its 32 raw bytes.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> PublicKey {
        PublicKey(bytes)
    }

    /// Its 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Whether the private half signed `message`.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, &signature.0).is_ok()
    }
}

/// A detached Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; SIGNATURE_BYTES]);

impl Signature {
    /// From its 64 raw bytes.
    pub const fn from_bytes(bytes: [u8; SIGNATURE_BYTES]) -> Signature {
        Signature(bytes)
    }
}

/// Text, `Debug` and serde of a public value: base64url.
macro_rules! public_text {
    ($type:ident, $bytes:expr, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_base64(&self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                from_base64::<{ $bytes }>(&text).map($type).ok_or_else(|| serde::de::Error::custom($what))
            }
        }
    };
}

public_text!(PublicKey, KEY_BYTES, "a public key is 43 characters of unpadded base64url");
public_text!(Signature, SIGNATURE_BYTES, "a signature is 86 characters of unpadded base64url");

/// A key pair, named by its seed.
pub struct SigningKey {
    seed: [u8; KEY_BYTES],
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// A fresh one.
    ///
    /// # Panics
    /// As [`random`].
    pub fn generate() -> SigningKey {
        SigningKey::from_seed(random())
    }

    /// The one that `seed` names. Any 32 bytes are a seed.
    pub fn from_seed(seed: [u8; KEY_BYTES]) -> SigningKey {
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&seed).expect("any 32 bytes are an Ed25519 seed (RFC 8032 §5.1.5)");
        SigningKey { seed, pair }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes"))
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.pair.sign(message).as_ref().try_into().expect("an Ed25519 signature has 64 bytes"))
    }

    /// The secret itself: for the file or the token it is kept in, and for nothing else.
    pub fn seed(&self) -> &[u8; KEY_BYTES] {
        &self.seed
    }
}

impl Clone for SigningKey {
    fn clone(&self) -> Self {
        SigningKey::from_seed(self.seed)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, seed: ***)", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032 §7.1, test 2: our keys are Ed25519 and nothing of our own.
    #[test]
    fn rfc_8032_vector() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
        };
        let key = SigningKey::from_seed(
            hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").try_into().unwrap(),
        );
        assert_eq!(key.public().0.to_vec(), hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"));
        let signature = key.sign(&[0x72]);
        assert_eq!(
            signature.0.to_vec(),
            hex("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                 085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00")
        );
        assert!(key.public().verifies(&[0x72], &signature));
        assert!(!key.public().verifies(&[0x73], &signature));
        assert!(!SigningKey::generate().public().verifies(&[0x72], &signature));
    }

    /// A seed is never printed; a public key survives serde.
    #[test]
    fn secrets_print_as_stars() {
        let key = SigningKey::from_seed([7; 32]);
        let text = format!("{key:?}");
        assert!(text.contains("***") && !text.contains(&to_base64(&[7; 32])), "{text}");
        let public = key.public();
        let json = serde_json::to_string(&public).unwrap();
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), public);
        for bad in ["\"\"", "\"AAAA\"", "\"****\"", "7", "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\""] {
            assert!(serde_json::from_str::<PublicKey>(bad).is_err(), "{bad}");
        }
    }
}
