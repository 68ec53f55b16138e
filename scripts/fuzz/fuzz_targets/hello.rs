//! Who wants in says anything: handshake messages to either side, bodies that are signed well and hold whatever, health
//! feeds, and what an OPEN carries. No panic; every answer is the next step or a refusal; nobody is let in without a proof.
#![no_main]

use ringspan_engine::time::Instant;
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::health_feed::{HealthSource, HealthView};
use ringspan_tunnel::hello::{
    AgentHello, AgentStep, BridgeHello, BridgeStep, Carrier, Introduction, Kind, Refusal, RefusalCode, SessionId, VERSIONS,
    admit,
};
use ringspan_tunnel::identity::AgentKey;
use ringspan_tunnel::keys::SigningKey;
use ringspan_tunnel::mux::OpenInfo;
use ringspan_tunnel::tls::Binding;
use ringspan_tunnel::token::{GrantTerms, JoinGrant, JoinToken};
use std::sync::OnceLock;

const NONCE: [u8; 32] = [5; 32];
const NOW: u64 = 1_000_000;
const KINDS: [Kind; 4] = [Kind::Challenge, Kind::Auth, Kind::Welcome, Kind::Refused];

fn key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::from_seed([7; 32]))
}

fn token() -> &'static (JoinToken, JoinGrant) {
    static TOKEN: OnceLock<(JoinToken, JoinGrant)> = OnceLock::new();
    let address = || "127.0.0.1:1".parse().expect("an address");
    TOKEN.get_or_init(|| JoinToken::create(address(), Trust::Plain, GrantTerms::default(), NOW))
}

fn introduction() -> &'static Introduction {
    static IT: OnceLock<Introduction> = OnceLock::new();
    IT.get_or_init(|| Introduction {
        identity: AgentKey::generate("fuzz".to_owned().try_into().expect("a name")),
        token: Some(token().0.clone()),
        session: SessionId::generate(),
        exposes: Vec::new(),
        software: "fuzz".into(),
    })
}

/// Messages, each a kind, two bytes of length, and as many bytes as there are.
fn messages(mut data: &[u8]) -> impl Iterator<Item = (Kind, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = data.split_at_checked(3)?;
        let len = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
        let (payload, after) = rest.split_at(len);
        data = after;
        Some((KINDS[usize::from(head[0]) % 4], payload))
    })
}

fn bridge() -> BridgeHello {
    BridgeHello::new(VERSIONS, NONCE, Binding::NONE, "fuzz").0
}

fn signed(text: &str) {
    // docs/link-protocol.md: context, nonce, channel binding, body.
    let said = [&b"ringspan link 1: agent\0\0"[..], &NONCE, &[0; 32], text.as_bytes()].concat();
    let said_join = [&b"ringspan link 1: join\0\0\0"[..], &NONCE, &[0; 32], text.as_bytes()].concat();
    let auth = serde_json::json!({
        "body": text, "signature": key().sign(&said), "join": token().0.key().sign(&said_join),
    });
    let mut hello = bridge();
    match hello.on_message(Kind::Auth, auth.to_string().as_bytes()) {
        BridgeStep::Decide(applicant) => {
            // Only a body that names our key has a good signature.
            assert_eq!(applicant.key, key().public());
            for grant in [None, Some(&token().1)] {
                let admitted = admit(&applicant, None, grant, NOW);
                assert!(admitted.is_err() || (grant.is_some() && applicant.token.is_some()), "let in without a token");
            }
            assert!(hello.on_decision(&Err(Refusal::of(RefusalCode::TooBusy))).is_some());
        }
        BridgeStep::Refuse(..) => {}
        BridgeStep::Over => panic!("over before it began"),
    }
    assert!(matches!(hello.on_message(Kind::Auth, b"{}"), BridgeStep::Over | BridgeStep::Refuse(..)));
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    match which % 4 {
        0 => {
            let mut hello = bridge();
            for (kind, payload) in messages(rest) {
                match hello.on_message(kind, payload) {
                    BridgeStep::Decide(_) => panic!("believed without a signature that we made"),
                    BridgeStep::Refuse(message, _) => assert_eq!(message.kind, Kind::Refused),
                    BridgeStep::Over => {}
                }
            }
        }
        1 => signed(&String::from_utf8_lossy(rest)),
        2 => {
            let mut hello = AgentHello::new(introduction().clone(), VERSIONS, Carrier::mux(0, 1), Binding::NONE);
            for (kind, payload) in messages(rest) {
                if let AgentStep::Send(message) = hello.on_message(kind, payload) {
                    assert_eq!(message.kind, Kind::Auth);
                }
            }
        }
        _ => {
            let now = Instant::from_ns(1);
            let (mut view, mut source) = (HealthView::new(3, 4, now), HealthSource::new(4, now));
            for (_, payload) in messages(rest) {
                drop(view.on_message(payload, now).map_err(|e| e.to_string()));
                drop(source.on_message(payload).map_err(|e| e.to_string()));
                let info = OpenInfo::decode(payload);
                assert_eq!(OpenInfo::decode(&info.encode()), info, "what was understood is said the same way");
            }
        }
    }
});
