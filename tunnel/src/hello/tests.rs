//! Every state with every message; every way of being refused; garbage always ends in a refusal and never panics; what
//! was heard on one connection is of no use on another.

use super::messages::{Auth, AuthBody, Challenge};
use super::*;
use crate::identity::AgentKey;
use crate::keys::random;
use crate::tls::Binding;
use crate::token::{GrantTerms, JoinGrant, JoinToken, Scope};
use proptest::prelude::*;

const KINDS: [Kind; 4] = [Kind::Challenge, Kind::Auth, Kind::Welcome, Kind::Refused];
const NOW: u64 = 1_000_000;

fn expose(service: &str, address: &str) -> Expose {
    Expose::new(service.to_owned().try_into().unwrap(), address.into())
}

fn introduction(token: Option<JoinToken>) -> Introduction {
    Introduction {
        identity: AgentKey::generate("box-1".to_owned().try_into().unwrap()),
        token,
        session: SessionId::generate(),
        exposes: vec![expose("web", "127.0.0.1:8081"), expose("web", "127.0.0.1:8082"), expose("db", "[::1]:3306")],
        watches: 0,
        software: "ringspan/test".into(),
    }
}

fn token(terms: GrantTerms) -> (JoinToken, JoinGrant) {
    JoinToken::create("127.0.0.1:1".parse().unwrap(), crate::fingerprint::Trust::Plain, terms, NOW)
}

fn bridge() -> (BridgeHello, Message) {
    BridgeHello::new(VERSIONS, random(), Binding([7; 32]), "ringspan/bridge")
}

fn agent(introduction: &Introduction) -> AgentHello {
    AgentHello::new(introduction.clone(), VERSIONS, Carrier::mux(0, 2), Binding([7; 32]))
}

fn welcome(introduction: &Introduction) -> Welcome {
    let limits = Limits { window_bytes: 262_144, frame_bytes_max: 65_536 };
    Welcome { agent: introduction.identity.id(), generation: 3, limits, software: String::new(), opened: None }
}

/// As far as the bridge's question to its control plane.
fn apply(introduction: &Introduction) -> (BridgeHello, AgentHello, Applicant) {
    let ((mut bridge, challenge), mut agent) = (bridge(), agent(introduction));
    let AgentStep::Send(auth) = agent.on_message(challenge.kind, &challenge.payload) else { panic!("no AUTH") };
    assert_eq!(auth.kind, Kind::Auth);
    let BridgeStep::Decide(applicant) = bridge.on_message(auth.kind, &auth.payload) else { panic!("not believed") };
    (bridge, agent, *applicant)
}

fn refusal(step: BridgeStep) -> Refusal {
    match step {
        BridgeStep::Refuse(message, refusal) => {
            assert_eq!((message.kind, messages::parse(&message.payload)), (Kind::Refused, Ok(refusal.clone())));
            refusal
        }
        other => panic!("{other:?}"),
    }
}

/// The whole way in, and what each side knows of the other afterwards.
#[test]
fn an_agent_is_welcomed() {
    let introduction = introduction(None);
    let (mut bridge, mut agent, applicant) = apply(&introduction);
    assert_eq!(applicant.agent, introduction.identity.id());
    assert_eq!((applicant.exposes, applicant.session), (introduction.exposes.clone(), introduction.session));
    assert_eq!((applicant.version, applicant.software.as_str()), (1, "ringspan/test"));
    let message = bridge.on_decision(&Ok(welcome(&introduction))).unwrap();
    let AgentStep::Welcomed(got) = agent.on_message(message.kind, &message.payload) else { panic!() };
    assert_eq!(got, welcome(&introduction));
    assert!(bridge.on_decision(&Ok(welcome(&introduction))).is_none(), "decided once");
}

/// The bridge's table: state × message.
#[test]
fn bridge_table() {
    let introduction = introduction(None);
    for kind in KINDS {
        // AwaitAuth: Auth is believed or refused, everything else refused; then all is over.
        let (mut waiting, _) = bridge();
        assert_eq!(refusal(waiting.on_message(kind, b"{}")).code, RefusalCode::Protocol, "{kind:?}");
        // Deciding: nothing may come.
        let (mut deciding, _, _) = apply(&introduction);
        assert_eq!(refusal(deciding.on_message(kind, b"{}")).code, RefusalCode::Protocol, "{kind:?}");
        // Over, after a refusal, a decision or a deadline.
        let (mut decided, _, _) = apply(&introduction);
        decided.on_decision(&Err(Refusal::of(RefusalCode::TooBusy))).unwrap();
        let (mut late, _) = bridge();
        assert_eq!(refusal(late.on_deadline()).code, RefusalCode::TooSlow);
        for mut over in [waiting, deciding, decided, late] {
            assert!(matches!(over.on_message(kind, b"{}"), BridgeStep::Over));
            assert!(matches!(over.on_deadline(), BridgeStep::Over));
            assert!(matches!(over.on_nonsense("x"), BridgeStep::Over));
            assert!(over.on_decision(&Ok(welcome(&introduction))).is_none());
        }
    }
    let (mut waiting, _) = bridge();
    assert!(waiting.on_decision(&Ok(welcome(&introduction))).is_none(), "nothing was asked");
    assert_eq!(refusal(waiting.on_nonsense("a frame\r\nof type 9")).code, RefusalCode::Protocol);
    let (mut deciding, _, _) = apply(&introduction);
    assert_eq!(refusal(deciding.on_deadline()).code, RefusalCode::TooSlow);
}

/// The agent's table: state × message.
#[test]
fn agent_table() {
    let introduction = introduction(None);
    let challenge = bridge().1.payload;
    let refused = Refusal::of(RefusalCode::AgentRevoked).message().payload;
    let welcomed = Message::new(Kind::Welcome, &welcome(&introduction)).payload;
    let waiting = || agent(&introduction);
    let asked = || apply(&introduction).1;
    let code = |step| match step {
        AgentStep::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    };
    assert!(matches!(waiting().on_message(Kind::Challenge, &challenge), AgentStep::Send(_)));
    assert_eq!(code(waiting().on_message(Kind::Refused, &refused)), RefusalCode::AgentRevoked);
    assert_eq!(code(waiting().on_message(Kind::Welcome, &welcomed)), RefusalCode::Protocol);
    assert_eq!(code(waiting().on_message(Kind::Auth, b"{}")), RefusalCode::Protocol);
    assert_eq!(code(waiting().on_deadline()), RefusalCode::TooSlow);
    assert_eq!(code(waiting().on_nonsense("x")), RefusalCode::Protocol);

    assert!(matches!(asked().on_message(Kind::Welcome, &welcomed), AgentStep::Welcomed(_)));
    assert_eq!(code(asked().on_message(Kind::Refused, &refused)), RefusalCode::AgentRevoked);
    assert_eq!(code(asked().on_message(Kind::Challenge, &challenge)), RefusalCode::Protocol);
    assert_eq!(code(asked().on_message(Kind::Auth, b"{}")), RefusalCode::Protocol);
    assert_eq!(code(asked().on_deadline()), RefusalCode::TooSlow);
    assert_eq!(code(asked().on_nonsense("x")), RefusalCode::Protocol);

    for kind in KINDS {
        let mut over = asked();
        over.on_deadline();
        assert!(matches!(over.on_message(kind, &welcomed), AgentStep::Over));
        assert!(matches!(over.on_deadline(), AgentStep::Over));
        assert!(matches!(over.on_nonsense("x"), AgentStep::Over));
    }
    // A welcome for somebody else is none.
    let other = welcome(&self::introduction(None));
    let other = Message::new(Kind::Welcome, &other).payload;
    assert_eq!(code(asked().on_message(Kind::Welcome, &other)), RefusalCode::Protocol);
}

/// AUTH belongs to one nonce and one TLS connection, and every byte of it is signed.
#[test]
fn nothing_can_be_replayed() {
    let introduction = introduction(None);
    let (mut first, challenge) = bridge();
    let AgentStep::Send(auth) = agent(&introduction).on_message(challenge.kind, &challenge.payload) else { panic!() };
    // Another nonce.
    let (mut second, _) = bridge();
    assert_eq!(refusal(second.on_message(Kind::Auth, &auth.payload)).code, RefusalCode::Protocol);
    // The same nonce over another TLS connection: somebody in the middle.
    let Challenge { nonce, .. } = messages::parse(&challenge.payload).unwrap();
    let (mut third, _) = BridgeHello::new(VERSIONS, nonce, Binding([8; 32]), "");
    assert_eq!(refusal(third.on_message(Kind::Auth, &auth.payload)).code, RefusalCode::Protocol);
    // A changed body.
    let mut changed: Auth = messages::parse(&auth.payload).unwrap();
    changed.body = changed.body.replace("127.0.0.1:8081", "127.0.0.1:9081");
    let (mut fourth, _) = BridgeHello::new(VERSIONS, nonce, Binding([7; 32]), "");
    let changed = Message::new(Kind::Auth, &changed).payload;
    assert_eq!(refusal(fourth.on_message(Kind::Auth, &changed)).code, RefusalCode::Protocol);
    // And where it belongs it is believed.
    assert!(matches!(first.on_message(Kind::Auth, &auth.payload), BridgeStep::Decide(_)));
}

/// Fields that a newer peer adds are ignored, and are signed all the same.
#[test]
fn unknown_fields_are_ignored() {
    let introduction = introduction(None);
    let (_, challenge) = bridge();
    let mut value: serde_json::Value = serde_json::from_slice(&challenge.payload).unwrap();
    value["motd"] = "hello".into();
    let payload = serde_json::to_vec(&value).unwrap();
    assert!(matches!(agent(&introduction).on_message(Kind::Challenge, &payload), AgentStep::Send(_)));

    let refusal: Refusal = serde_json::from_str(
        r#"{"code":"phase_of_the_moon","sentence":"not tonight\u001b[2J","retry":true,"retry_after_ms":4000000000,"x":1}"#,
    )
    .unwrap();
    assert_eq!(refusal.code, RefusalCode::Other);
    let payload = refusal.message().payload;
    let AgentStep::Refused(shown) = agent(&introduction).on_message(Kind::Refused, &payload) else { panic!() };
    assert_eq!(shown.sentence, "not tonight [2J");
    assert_eq!(shown.retry_after(), Duration::from_secs(3600));
}

/// The newest common version is taken; with none in common both sides say so.
#[test]
fn versions_are_negotiated() {
    let range = |min, max| Versions { min, max };
    assert_eq!(range(1, 3).common(range(2, 9)), Some(3));
    assert_eq!(range(1, 3).common(range(3, 3)), Some(3));
    assert_eq!(range(1, 3).common(range(4, 9)), None);
    let introduction = introduction(None);
    let (mut newer, challenge) = BridgeHello::new(range(4, 9), random(), Binding([7; 32]), "");
    let AgentStep::Send(auth) = agent(&introduction).on_message(Kind::Challenge, &challenge.payload) else { panic!() };
    let refusal = refusal(newer.on_message(Kind::Auth, &auth.payload));
    assert_eq!(refusal.code, RefusalCode::VersionMismatch);
    assert!(refusal.sentence.contains("asks for 1") && refusal.sentence.contains("4 to 9"), "{refusal}");
    // A body of another shape is still answered by its version.
    let auth = Auth { body: r#"{"version":77}"#.into(), signature: messages_signature(), join: None };
    let (mut bridge, _) = bridge();
    let payload = Message::new(Kind::Auth, &auth).payload;
    assert_eq!(self::refusal(bridge.on_message(Kind::Auth, &payload)).code, RefusalCode::VersionMismatch);
}

fn messages_signature() -> crate::keys::Signature {
    crate::keys::Signature::from_bytes([0; 64])
}

/// What serde cannot see is checked on both sides: at the agent's start, and at the bridge.
#[test]
fn bounds_are_checked() {
    type Change = fn(&mut Introduction);
    let changes: [(&str, Change); 7] = [
        ("at most 256", |i| i.exposes = (0..257).map(|n| expose("s", &format!("h:{n}"))).collect()),
        ("twice", |i| i.exposes.push(expose("web", "127.0.0.1:8081"))),
        ("weight 0", |i| i.exposes[0].weight = 0),
        ("weight 101", |i| i.exposes[0].weight = 101),
        ("1 to 255 bytes", |i| i.exposes[0].address = "x".repeat(256)),
        ("control characters", |i| i.exposes[0].address = "h:1\n".into()),
        ("software", |i| i.software = "x".repeat(200)),
    ];
    let good = introduction(None);
    assert_eq!(good.check(2), Ok(()));
    for (word, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let why = bad.check(2).unwrap_err();
        assert!(why.contains(word), "{why}");
        let ((mut bridge, challenge), mut agent) = (bridge(), agent(&bad));
        let AgentStep::Send(auth) = agent.on_message(challenge.kind, &challenge.payload) else { panic!() };
        let refusal = refusal(bridge.on_message(Kind::Auth, &auth.payload));
        assert!(refusal.code == RefusalCode::Protocol && refusal.sentence.contains(word), "{refusal}");
    }
    for carriers in [0, CARRIERS_MAX + 1] {
        assert!(good.check(carriers).unwrap_err().contains("carrier"));
    }
    // As large as it gets with ordinary names, it fits; with the longest ones the agent says so at its start.
    let mut large = good.clone();
    large.exposes = (0..EXPOSES_MAX).map(|n| expose(&format!("team-service-{n}"), "backend.internal:65535")).collect();
    assert_eq!(large.check(2), Ok(()));
    apply(&large);
    large.exposes.iter_mut().for_each(|e| e.address = "x".repeat(255));
    assert!(large.check(2).unwrap_err().contains("bytes, at most 65536"));
    for bad in ["", "a b", "a\n", &"x".repeat(129)] {
        assert_eq!(ServiceName::try_from(bad.to_owned()), Err(NotAService));
    }
}

/// Who may come in: one row per refusal, and the two ways in.
#[test]
fn admission_table() {
    let scope = |names: &[&str]| Scope::of(names.iter().map(|name| (*name).to_owned()));
    let terms =
        GrantTerms { scope: scope(&["web", "db"]), expires_at: Some(NOW + 10), uses: Some(1), ..GrantTerms::default() };
    let (join, grant) = token(terms);
    let introduced = introduction(Some(join));
    let (_, _, applicant) = apply(&introduced);
    let stranger = apply(&introduction(None)).2;
    let code = |outcome: Result<Admission, Refusal>| outcome.unwrap_err().code;

    // Without a record.
    assert_eq!(code(admit(&stranger, None, None, NOW)), RefusalCode::UnknownAgent);
    assert_eq!(code(admit(&applicant, None, None, NOW)), RefusalCode::UnknownToken);
    let (_, other) = token(GrantTerms::default());
    assert_eq!(code(admit(&applicant, None, Some(&other), NOW)), RefusalCode::UnknownToken);
    let forged = JoinGrant { public_key: other.public_key, ..grant.clone() };
    assert_eq!(code(admit(&applicant, None, Some(&forged), NOW)), RefusalCode::WrongSecret);
    let revoked = JoinGrant { revoked: true, ..grant.clone() };
    assert_eq!(code(admit(&applicant, None, Some(&revoked), NOW)), RefusalCode::TokenRevoked);
    assert_eq!(code(admit(&applicant, None, Some(&grant), NOW + 10)), RefusalCode::TokenExpired);
    let used = JoinGrant { uses_left: Some(0), ..grant.clone() };
    assert_eq!(code(admit(&applicant, None, Some(&used), NOW)), RefusalCode::TokenUsedUp);
    let narrow = JoinGrant { scope: scope(&["web"]), ..grant.clone() };
    let refusal = admit(&applicant, None, Some(&narrow), NOW).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ServiceOutOfScope);
    assert!(refusal.sentence.contains("db") && !refusal.retry, "{refusal}");
    let Ok(Admission::Enrols { record, grant: spent }) = admit(&applicant, None, Some(&grant), NOW) else { panic!() };
    assert_eq!((spent.uses_left, record.id, record.token), (Some(0), applicant.agent, grant.id));

    // With one. The spent token that still stands in its configuration does no harm.
    assert_eq!(admit(&applicant, Some(&record), Some(&spent), NOW + 99), Ok(Admission::Known));
    assert_eq!(admit(&applicant, Some(&record), None, NOW + 99), Ok(Admission::Known));
    let gone = AgentRecord { revoked: true, ..record.clone() };
    assert_eq!(code(admit(&applicant, Some(&gone), Some(&grant), NOW)), RefusalCode::AgentRevoked);
    let twin = AgentRecord { public_key: stranger.key, ..record.clone() };
    assert_eq!(code(admit(&applicant, Some(&twin), Some(&grant), NOW)), RefusalCode::UnknownAgent);
    let small = AgentRecord { scope: scope(&["web"]), ..record.clone() };
    assert_eq!(code(admit(&applicant, Some(&small), Some(&spent), NOW)), RefusalCode::ServiceOutOfScope);
    let db_only = JoinGrant { scope: scope(&["db"]), ..grant.clone() };
    let Ok(Admission::Enrols { record: wider, .. }) = admit(&applicant, Some(&small), Some(&db_only), NOW + 5) else {
        panic!("a good token widens the scope")
    };
    assert_eq!((wider.scope, wider.enrolled_at), (scope(&["web", "db"]), NOW));
    let mut tokenless = applicant.clone();
    tokenless.token = None;
    assert_eq!(code(admit(&tokenless, Some(&small), None, NOW)), RefusalCode::ServiceOutOfScope);
}

/// A captured enrolment is no use to the thief: the join proof names the agent's key, nonce and connection.
#[test]
fn a_join_proof_cannot_be_moved() {
    let (join, grant) = token(GrantTerms::default());
    let honest = introduction(Some(join));
    let (_, challenge) = bridge();
    let AgentStep::Send(auth) = agent(&honest).on_message(Kind::Challenge, &challenge.payload) else { panic!() };
    let captured: Auth = messages::parse(&auth.payload).unwrap();
    // The thief sees the same challenge, names the same token and attaches the captured proof to its own AUTH.
    let Challenge { nonce, .. } = messages::parse(&challenge.payload).unwrap();
    let thief = Introduction { token: Some(token(GrantTerms::default()).0), ..introduction(None) };
    let AgentStep::Send(auth) = agent(&thief).on_message(Kind::Challenge, &challenge.payload) else { panic!() };
    let own: Auth = messages::parse(&auth.payload).unwrap();
    let body: AuthBody = messages::parse(own.body.as_bytes()).unwrap();
    let text = serde_json::to_string(&AuthBody { token: Some(grant.id), ..body }).unwrap();
    let binding = Binding([7; 32]);
    let signature = thief.identity.key().sign(&messages::transcript(messages::Purpose::Agent, &nonce, &binding, &text));
    let forged = Message::new(Kind::Auth, &Auth { body: text, signature, join: captured.join });
    let (mut bridge, _) = BridgeHello::new(VERSIONS, nonce, binding, "");
    let BridgeStep::Decide(applicant) = bridge.on_message(Kind::Auth, &forged.payload) else { panic!() };
    assert_eq!(admit(&applicant, None, Some(&grant), NOW).unwrap_err().code, RefusalCode::WrongSecret);
}

/// No secret in what may be logged.
#[test]
fn nothing_secret_is_printed() {
    let (join, _) = token(GrantTerms::default());
    let introduced = introduction(Some(join.clone()));
    let text = format!("{introduced:?} {:?}", apply(&introduced).2);
    for secret in [join.key().seed(), introduced.identity.key().seed()] {
        assert!(!text.contains(&crate::keys::to_base64(secret)));
    }
}

/// JSON that is nearly right: a good message with one byte changed, removed or doubled.
fn mutate(payload: &[u8], at: usize, how: u8, byte: u8) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    let at = at % bytes.len();
    match how % 3 {
        0 => bytes[at] = byte,
        1 => drop(bytes.remove(at)),
        _ => bytes.insert(at, byte),
    }
    bytes
}

proptest! {
    /// Whatever bytes come, in whatever kind of message, either machine goes its one way or refuses; after at most
    /// three messages it is over or welcomed.
    #[test]
    fn garbage_ends_in_a_refusal(
        messages in proptest::collection::vec((0usize..4, proptest::collection::vec(any::<u8>(), 0..400)), 1..5),
    ) {
        let introduction = introduction(None);
        let ((mut bridge, _), mut agent) = (bridge(), agent(&introduction));
        let (mut refused_by_bridge, mut refused_by_agent) = (false, false);
        for (kind, payload) in &messages {
            match bridge.on_message(KINDS[*kind], payload) {
                BridgeStep::Refuse(_, refusal) => { refused_by_bridge = true; prop_assert!(!refusal.sentence.is_empty()) }
                BridgeStep::Over => prop_assert!(refused_by_bridge),
                BridgeStep::Decide(_) => prop_assert!(false, "garbage was believed"),
            }
            match agent.on_message(KINDS[*kind], payload) {
                AgentStep::Refused(_) => refused_by_agent = true,
                AgentStep::Over => prop_assert!(refused_by_agent),
                step => prop_assert!(false, "{step:?}"),
            }
        }
        prop_assert!(refused_by_bridge && refused_by_agent);
    }

    /// One changed byte in an AUTH: it is refused, unless the byte was outside what means something (JSON white space,
    /// case of an escape): then it is believed with the same content.
    #[test]
    fn a_changed_auth_is_refused(at in 0usize..5000, how: u8, byte: u8) {
        let (join, grant) = token(GrantTerms::default());
        let introduction = introduction(Some(join));
        let ((mut bridge, challenge), mut agent) = (bridge(), agent(&introduction));
        let AgentStep::Send(auth) = agent.on_message(challenge.kind, &challenge.payload) else { panic!() };
        match bridge.on_message(Kind::Auth, &mutate(&auth.payload, at, how, byte)) {
            BridgeStep::Refuse(..) => {}
            BridgeStep::Decide(applicant) => {
                prop_assert_eq!(applicant.key, introduction.identity.key().public());
                prop_assert_eq!(&applicant.exposes, &introduction.exposes);
                // The join proof may have been spoilt; then it proves nothing.
                let _ = applicant.proves(&grant.public_key);
            }
            BridgeStep::Over => prop_assert!(false),
        }
    }

    /// The same for what the agent hears.
    #[test]
    fn a_changed_answer_never_panics(at in 0usize..5000, how: u8, byte: u8, welcomed: bool) {
        let introduction = introduction(None);
        let (mut bridge, mut agent, _) = apply(&introduction);
        let decision = if welcomed { Ok(welcome(&introduction)) } else { Err(Refusal::of(RefusalCode::TooBusy)) };
        let message = bridge.on_decision(&decision).unwrap();
        match agent.on_message(message.kind, &mutate(&message.payload, at, how, byte)) {
            AgentStep::Welcomed(_) => prop_assert!(welcomed),
            AgentStep::Refused(_) => {}
            step => prop_assert!(false, "{step:?}"),
        }
    }
}
