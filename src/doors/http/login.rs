//! Basic authentication of one route (RFC 7617).
//! Promise: how long an answer takes does not tell how much of a password was right.

use crate::config::http::Login;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap};
use ring::digest::{SHA256, digest};

/// Who may pass. Holds digests, no passwords.
#[derive(Debug)]
pub(super) struct Guard {
    /// SHA-256 of `user:password`: all of one length, and what is compared is nobody's choice.
    digests: Vec<[u8; 32]>,
}

impl Guard {
    /// `None`: everybody may pass.
    pub(super) fn new(logins: &[Login]) -> Option<Guard> {
        let of = |login: &Login| sha256(format!("{}:{}", login.user, login.password.0).as_bytes());
        (!logins.is_empty()).then(|| Guard { digests: logins.iter().map(of).collect() })
    }

    /// Whether the request names a user and the password that goes with it.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (all.next(), all.next()) else { return false };
        let Some((scheme, rest)) = value.to_str().ok().and_then(|v| v.split_once(' ')) else { return false };
        if !scheme.eq_ignore_ascii_case("basic") {
            return false;
        }
        let Ok(credentials) = BASE64_STANDARD.decode(rest.trim()) else { return false };
        let given = sha256(&credentials);
        // Every byte of every one, whatever has been found.
        self.digests.iter().fold(false, |found, known| {
            let differs = given.iter().zip(known).fold(0, |bits, (a, b)| bits | (a ^ b));
            found | (std::hint::black_box(differs) == 0)
        })
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::agent::Secret;

    /// A user passes with his own password and no other way.
    #[test]
    fn who_passes() {
        let login = |user: &str, password: &str| Login { user: user.into(), password: Secret(password.into()) };
        assert!(Guard::new(&[]).is_none());
        let guard = Guard::new(&[login("alice", "a:b"), login("bob", "secret")]).unwrap();
        let with = |values: &[String]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            guard.admits(&headers)
        };
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for (values, passes) in [
            (vec![], false),
            (vec![basic("alice:a:b")], true),
            (vec![basic("bob:secret").replace("Basic", "bAsIc ")], true),
            (vec![basic("alice:secret")], false),
            (vec![basic("bob:")], false),
            (vec![basic(":secret")], false),
            (vec![basic("bob:secret ")], false),
            (vec!["Basic".into()], false),
            (vec!["Basic !!".into()], false),
            (vec!["Bearer Ym9iOnNlY3JldA==".into()], false),
            (vec![basic("bob:secret"), basic("alice:a:b")], false),
        ] {
            assert_eq!(with(&values), passes, "{values:?}");
        }
        assert!(!format!("{:?}", login("bob", "secret")).contains("secret"));
    }
}
