//! A server's RSA key, looked at before it is used.
//! Promise: a key that passes can be given to `mysql_common`'s RSA, which believes every length in it (it indexes beyond
//! the end otherwise) and computes with numbers of any size.

use mysql_common::crypto::der::{PubKeyFileType, pem_to_der};

/// Bytes of a modulus. MySQL makes keys of 2048 bits; shorter ones do not protect any more and have no room for the
/// longest password, and above 4096 one probe would cost the worker milliseconds.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=512;
/// OAEP with SHA-1 takes 42 bytes of the modulus (RFC 8017, 7.1.1), the zero byte after the password one more; of a longer
/// password `mysql_common` would compute a negative length.
const _: () = assert!(super::settings::MysqlCheck::PASSWORD_BYTES_MAX + 1 + 42 <= *MODULUS_BYTES.start());
/// Bytes of a public exponent: 65537 everywhere; longer ones only cost time.
const EXPONENT_BYTES_MAX: usize = 4;

/// Whether `pem` is an RSA public key of a size that we compute with.
pub(super) fn is_sound(pem: &[u8]) -> bool {
    match pem_to_der(pem) {
        Ok((der, PubKeyFileType::Pkcs1)) => is_pkcs1(&der),
        Ok((der, PubKeyFileType::Pkcs8)) => is_pkcs8(&der),
        Err(_) => false,
    }
}

/// RFC 8017, A.1.1: SEQUENCE { modulus INTEGER, publicExponent INTEGER }.
fn is_pkcs1(der: &[u8]) -> bool {
    let Some((fields, b"")) = element(0x30, der) else { return false };
    let Some((modulus, rest)) = element(0x02, fields) else { return false };
    let Some((exponent, b"")) = element(0x02, rest) else { return false };
    // DER puts a zero before a number whose first bit is set; a number may not be negative, nor padded further.
    let modulus = match modulus {
        [0, rest @ ..] => rest,
        all => all,
    };
    // The first bit is set, so that the bits are exactly eight times the bytes: mysql_common rounds otherwise.
    let modulus_is_odd = modulus.last().is_some_and(|byte| byte & 1 == 1);
    let exponent_is_good = exponent.len() <= EXPONENT_BYTES_MAX && exponent.last().is_some_and(|byte| byte & 1 == 1);
    MODULUS_BYTES.contains(&modulus.len()) && modulus[0] & 0x80 != 0 && modulus_is_odd && exponent_is_good
}

/// RFC 5280, 4.1: SEQUENCE { algorithm SEQUENCE, subjectPublicKey BIT STRING }.
fn is_pkcs8(der: &[u8]) -> bool {
    let Some((fields, b"")) = element(0x30, der) else { return false };
    let Some((_, rest)) = element(0x30, fields) else { return false };
    matches!(element(0x03, rest), Some(([0, key @ ..], b"")) if is_pkcs1(key))
}

/// The content of the element of type `tag` at the start of `der`, and what follows it (X.690, 8.1.3 and 10.1).
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    (first == tag && length <= rest.len()).then(|| rest.split_at(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    /// `openssl genrsa 2048 | openssl rsa -pubout`, made for this test.
    pub(crate) const KEY: &str = include_str!("key-for-tests.pem");

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    /// A real key is sound, in both of its forms, and what is not one is not.
    #[test]
    fn only_keys_are_keys() {
        let (der, _) = pem_to_der(KEY).unwrap();
        assert!(is_sound(KEY.as_bytes()));
        let pkcs1 = &der[24..];
        assert!(is_sound(
            format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----", STANDARD.encode(pkcs1))
                .as_bytes()
        ));
        for cut in 0..der.len() {
            assert!(!is_sound(pem(&der[..cut]).as_bytes()), "cut at {cut}");
        }
        for not in
            ["", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", "ssh-rsa AAAA", &pem(&[0x30, 0x80]), &pem(b"")]
        {
            assert!(!is_sound(not.as_bytes()), "{not}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Whatever is called sound can be computed with: nothing panics, and the result is as long as the key.
        #[test]
        fn what_is_sound_can_be_used(position in 0usize..294, value: u8, also in 0usize..60, other: u8) {
            let (mut der, _) = pem_to_der(KEY).unwrap();
            der[position] = value;
            der[also] = other;
            let pem = pem(&der);
            if is_sound(pem.as_bytes()) {
                let longest = [b'p'; crate::check::MysqlCheck::PASSWORD_BYTES_MAX + 1];
                let encrypted = mysql_common::crypto::encrypt(&longest, pem.as_bytes()).unwrap();
                prop_assert!(MODULUS_BYTES.contains(&encrypted.len()));
            }
        }
    }
}
