//! A token survives its text; every kind of damage has an answer of its own; the secret shows nowhere else.

use super::*;
use crate::fingerprint::Fingerprint;
use proptest::prelude::*;

fn token(address: &str, trust: Trust) -> (JoinToken, JoinGrant) {
    JoinToken::create(address.parse().unwrap(), trust, GrantTerms::default(), 1_000)
}

fn pinned() -> Trust {
    Trust::Pinned(Fingerprint::of_spki(b"a key"))
}

#[test]
fn text_round_trip() {
    for address in ["127.0.0.1:8024", "[2001:db8::1]:8024", "bridge.example.com:8024"] {
        for trust in [Trust::Plain, pinned()] {
            let (token, grant) = token(address, trust);
            let text = token.to_paste();
            let back: JoinToken = format!("  {text}\n").parse().unwrap();
            assert_eq!((back.address.to_string(), back.trust, back.id), (address.to_owned(), trust, token.id));
            assert_eq!((back.key().seed(), grant.public_key), (token.key().seed(), back.key().public()));
            assert!(text.len() <= TEXT_BYTES_MAX);
        }
    }
}

/// The grant checks a proof and cannot make one; neither it nor the token's `Debug` and `Display` hold the secret.
#[test]
fn the_bridge_keeps_no_secret() {
    let (token, grant) = token("127.0.0.1:1", pinned());
    let secret = to_base64(token.key().seed());
    for text in [format!("{token}"), format!("{token:?}"), format!("{grant:?}"), serde_json::to_string(&grant).unwrap()]
    {
        assert!(!text.contains(&secret), "{text}");
    }
    assert!(format!("{token:?}").contains("***"));
    let signature = token.key().sign(b"nonce");
    assert!(grant.public_key.verifies(b"nonce", &signature));
    assert_eq!(serde_json::from_str::<JoinGrant>(&serde_json::to_string(&grant).unwrap()).unwrap(), grant);
}

#[test]
fn mistakes_are_named() {
    let (token, _) = token("bridge.example.com:8024", pinned());
    let good = token.to_paste();
    let error = |text: &str| text.parse::<JoinToken>().unwrap_err();
    assert_eq!(error(" \n"), TokenError::Empty);
    assert_eq!(error(&"x".repeat(600)), TokenError::TooLong(600));
    assert_eq!(error(&good.replace('@', "\n@")), TokenError::Space);
    assert_eq!(error(good.split('@').next().unwrap()), TokenError::NoAddress);
    assert_eq!(error("hunter2@host:1"), TokenError::Prefix);
    assert_eq!(error(&good[1..]), TokenError::Prefix);
    assert_eq!(error("ringspan1.a.b@host:1"), TokenError::Parts(3));
    assert_eq!(error(&good.replace("8024", "8025")), TokenError::Check);
    assert_eq!(error(&good[..good.len() - 1]), TokenError::Check);
    // Whoever writes tokens by other means and gets the check right is told about the part.
    let made = |body: &str, address: &str| format!("{body}.{}@{address}", check_of(body, address));
    let secret = to_base64(&[1; 32]);
    assert_eq!(error(&made(&format!("ringspan1.xyz.{secret}.plain"), "h:1")), TokenError::Id);
    assert_eq!(error(&made("ringspan1.0123456789ab.short.plain", "h:1")), TokenError::Secret);
    assert_eq!(error(&made(&format!("ringspan1.0123456789ab.{secret}.off"), "h:1")), TokenError::Fingerprint);
    assert!(matches!(error(&made(&format!("ringspan1.0123456789ab.{secret}.plain"), "h")), TokenError::Address(_)));
}

#[test]
fn scope_is_by_exact_name() {
    assert!(Scope::of([]).covers("anything"));
    let scope = Scope::of(["web".to_owned(), "db".to_owned()]);
    assert!(scope.covers("web") && scope.covers("db") && !scope.covers("we") && !scope.covers("web2"));
}

proptest! {
    /// No text makes the parser panic, and no single changed byte of a token goes unnoticed.
    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        let _ = text.parse::<JoinToken>();
        let _ = format!("ringspan1.{text}@h:1").parse::<JoinToken>();
    }

    #[test]
    fn a_changed_character_is_noticed(at in 0usize..1000, to in "[A-Za-z0-9_.@:-]") {
        let (token, _) = token("bridge.example.com:8024", pinned());
        let good = token.to_paste();
        let at = at % good.len();
        let mut bad = good.clone();
        bad.replace_range(at..at + 1, &to);
        prop_assume!(bad != good);
        prop_assert!(bad.parse::<JoinToken>().is_err());
    }
}
