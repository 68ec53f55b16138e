//! Passwords: hashed with argon2id, compared in constant time, generated from the system's randomness.
//! Costs: 19 MiB and two passes (OWASP's first choice), some 15 ms; so it is done aside, and few at a time.

use argon2::password_hash::{PasswordHash, SaltString};
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};

/// The first administrator's name: the one that Nacos' users know. It has no default password.
pub const FIRST_ADMIN: &str = "nacos";

/// KiB, passes, lanes.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);

fn argon2() -> Argon2<'static> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, None).expect("these are within argon2's limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// `N` bytes that nobody can guess.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system has randomness");
    bytes
}

/// A password of 144 bits, 24 characters.
pub fn generate() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(random::<18>())
}

/// What is kept of a password. Slow.
pub(super) fn hash(password: &str) -> String {
    let salt = SaltString::encode_b64(&random::<16>()).expect("16 bytes are a salt");
    let hash = argon2().hash_password(password.as_bytes(), &salt).expect("its length was checked");
    hash.to_string()
}

/// Whether this is the password. As slow for a user who is not there (`None`) as for one who is.
pub(super) fn verify(password: &str, hash: Option<&str>) -> bool {
    // Of no password: what it is compared with matters to nobody.
    static NOBODY: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| self::hash(&generate()));
    let parsed = PasswordHash::new(hash.unwrap_or(&NOBODY));
    let good = parsed.is_ok_and(|parsed| argon2().verify_password(password.as_bytes(), &parsed).is_ok());
    good && hash.is_some()
}
