//! The signature of a delivery: HMAC-SHA256 over `id.timestamp.body`, as Standard Webhooks has it (`v1,BASE64`).
//! Pure: no socket, no clock.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use std::fmt;

/// Before the Base64 of a secret's bytes.
const PREFIX: &str = "whsec_";
/// The fewest bytes of a secret: 128 bits. Standard Webhooks asks for 24 to 64 where they are Base64.
const BYTES_MIN: usize = 16;
const BYTES_MAX: usize = 256;

/// What deliveries are signed with. Never shown.
#[derive(Clone)]
pub struct Secret(hmac::Key);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Secret {
    /// `whsec_` and Base64: those bytes. Anything else: the bytes of the text itself. 16 to 256 of them.
    ///
    /// # Errors
    /// What is wrong with it, without saying it.
    pub fn new(text: &str) -> Result<Secret, String> {
        let bytes = match text.strip_prefix(PREFIX) {
            Some(rest) => STANDARD.decode(rest).map_err(|_| format!("what follows {PREFIX} is no Base64"))?,
            None => text.as_bytes().to_vec(),
        };
        if !(BYTES_MIN..=BYTES_MAX).contains(&bytes.len()) {
            return Err(format!("it has {} bytes, and needs {BYTES_MIN} to {BYTES_MAX}", bytes.len()));
        }
        Ok(Secret(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The value of `webhook-signature`.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        for part in [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body] {
            context.update(part);
        }
        format!("v1,{}", STANDARD.encode(context.sign().as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks reference libraries' own tests.
    #[test]
    fn as_the_reference_signs() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    /// Short and broken secrets are refused, and a secret shows itself nowhere.
    #[test]
    fn secrets() {
        assert!(Secret::new("whsec_%%%").unwrap_err().contains("Base64"));
        assert!(Secret::new("whsec_c2hvcnQ=").unwrap_err().contains("5 bytes"));
        let short = Secret::new("fifteen letters").unwrap_err();
        assert!(short.contains("15 bytes") && !short.contains("letters"));
        assert_eq!(format!("{:?}", Secret::new("sixteen letters!").unwrap()), "***");
    }
}
